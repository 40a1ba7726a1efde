//! Runs requests on one loaded model: prefill, decode, sample.
//!
//! One thread owns the engine and with it the device. A step is a bounded piece of work, planned by
//! `scheduler`: one token for every decoding request, all in one pass, then slices of prompts. A
//! request's result does not depend on what else runs: it has its own state, its own random stream,
//! and break points that its prompt alone decides.

mod batch;
mod bench;
mod cache;
mod chunks;
mod constrained;
mod engine;
mod error;
mod found;
mod memory;
mod quantize;
mod sampler;
mod seats;
mod sequence;
mod shelf;

pub use engine::{Engine, Outcome, Progress};
pub use error::{Error, Result};
pub use kernels::quantized::set_exact;
pub use kernels::set_threads;
pub use quantize::{OnProgress, quantize};
pub use sampler::{Row, Sampled, sample};
