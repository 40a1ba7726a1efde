//! What `offshoot` does besides talking to its user: it chooses a backend and supervises runners.
//!
//! Invariants:
//! - Links no MLX: a driver fault ends a runner, never this process.
//! - However a runner ends, the caller gets an error that says how, with its last output.
//! - No runner outlives the process that started it.

mod anthropic;
pub mod backend;
mod blocking;
pub mod dialect;
mod document;
pub mod explain;
pub mod failure;
pub mod generation;
pub mod http;
mod log_tail;
pub mod metrics;
pub mod models;
mod ollama;
mod openai;
mod ops;
pub mod prompter;
pub mod sampling;
pub mod supervisor;

pub use openai::StoredResponses;
