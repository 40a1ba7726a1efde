//! A scripted engine: the other side of the protocol for tests, without a model or a device.
//!
//! What it does is data ([`Script`], [`Program`]), so that a test says in one place how the runner
//! behaves: answer, wait for a cancellation, fail or die.

mod program;
mod scripted;

pub use program::{PROGRAM_VAR, Program, scripted_runner};
pub use scripted::{
    DIES, FAILS, LoadScript, REFUSED, Script, ScriptedEngine, ScriptedLoader, VOCAB_SIZE,
};
