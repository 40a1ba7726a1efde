//! The engine on small committed models, and the sampler against plain arithmetic.
#![allow(clippy::unwrap_used)]

mod batches;
mod cache;
#[path = "../common/mod.rs"]
mod common;
mod grammars;
mod quantize;
mod requests;
mod sampler;
