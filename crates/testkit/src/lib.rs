//! Other sides for tests: a scripted engine behind the protocol, without a model or a device, a
//! Hub on this machine, and whoever takes a JSON Schema at its word.
//!
//! What it does is data ([`Script`], [`Program`]), so that a test says in one place how the runner
//! behaves: answer, wait for a cancellation, fail or die.

mod hub_server;
mod program;
pub mod schema;
mod scripted;

pub use hub_server::{Fault, HubRequest, HubServer, hub_digest};
pub use program::{PROGRAM_VAR, Program, scripted_runner};
pub use scripted::{
    DIES, FAILS, LoadScript, QuantizeScript, REFUSED, Script, ScriptedEngine, ScriptedLoader,
    VOCAB_SIZE,
};
