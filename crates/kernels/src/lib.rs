//! Fused operations that MLX lacks or has in a slow form, one folder each.
//!
//! Every operation has a slow twin made of MLX's own operations, which runs on every backend and is
//! what the operation means, and fast forms: CUDA sources compiled at run time, and Rust code for
//! the CPU. Which form runs is decided by the backend and the shapes, never by the caller. A parity
//! test holds every form against its twin. Nothing here knows a model.

pub mod activation;
pub mod attention;
pub mod blocks;
pub mod causal_conv;
mod cpu;
mod cuda;
pub mod dense;
pub mod embedding;
pub mod experts;
mod few_rows;
pub mod gated_delta;
pub mod grouped;
mod input;
pub mod norm;
pub mod quantized;
pub mod rope;
pub mod router;
pub mod sampling;
pub mod self_attention;
pub mod swap;
mod upload;

pub use attention::{Attention, Kv, Masks, Positions};
pub use causal_conv::{CausalConv, Convolved};
pub use cpu::{n_threads, set_threads};
pub use gated_delta::{GatedDelta, Updated};
pub use upload::upload;
