//! Model families over MLX: from a folder of files to logits.
//!
//! A family is one file that reads in checkpoint order (config, attention, mlp, model) and one line
//! in [`registry`]. Models are stateless: a sequence's state ([`LayerState`]) and its position
//! ([`Step`]) are arguments, and only the caller advances them. A model that exists is complete:
//! missing, unused and misshapen tensors are errors of loading. Models know neither scheduler nor
//! cache policy.

mod checkpoint;
mod config;
mod dense;
mod error;
pub mod layers;
mod model;
pub mod quantize;
mod shapes;
mod state;

mod gemma3_text;
mod glm4_moe_lite;
mod gpt_oss;
mod llama;
mod mistral;
mod qwen2;
mod qwen3;
mod qwen3_5;
mod qwen3_5_moe;
mod qwen3_moe;
mod qwen3_next;
pub mod registry;

pub use checkpoint::{Progress, Weights};
pub use error::{Error, Result};
pub use model::{Blocks, Loaded, Model, ModelInfo, Step};
pub use registry::{FamilyFacts, LoadOptions, Source, load};
pub use shapes::{SHAPE_NAMES, ShapeQuantization};
pub use state::{KvState, LayerState, Memory, RecurrentState};
