//! What `offshoot` does besides talking to its user: it chooses a backend and supervises runners.
//!
//! Invariants:
//! - Links no MLX: a driver fault ends a runner, never this process.
//! - However a runner ends, the caller gets an error that says how, with its last output.
//! - No runner outlives the process that started it.

pub mod backend;
mod log_tail;
pub mod supervisor;
