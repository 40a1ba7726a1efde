//! MLX for Rust: arrays that free themselves, with methods that return `Result`.
//!
//! An [`Array`] is a node of MLX's lazy graph; nothing is computed before [`eval`]. Streams and
//! command encoders are thread-local in MLX, so `Array` is `!Send`: everything on a device happens
//! on the thread that opened it. Whatever MLX throws becomes an [`Error`] that names the operation
//! and the shapes it was given.

mod array;
mod device;
mod dtype;
mod error;
mod fast;
mod files;
mod kernel;
pub mod memory;
mod ops;
mod pinned;
mod quantized;
mod random;
mod recording;

pub use array::{Array, async_eval, concatenate, eval, joined, stack};
pub use device::{Backend, Device, Stream, library_version};
pub use dtype::{Dtype, Element};
pub use error::{Error, Result};
pub use fast::{Attend, Rope};
pub use files::{Safetensors, load_safetensors, save_safetensors};
pub use kernel::{
    CpuKernel, CudaKernel, CudaSource, Launch, MetalKernel, MetalSource, StridedRef, TensorMut,
    TensorRef,
};
pub use mlx_sys::PINNED_VERSION;
pub use pinned::PinnedMemory;
pub use quantized::{Gathered, QuantMode, Quantization, Quantized};
pub use random::Key;
pub use recording::Recording;
