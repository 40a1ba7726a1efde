//! The blocks that families are built from. Field names are tensor names; shapes are written where
//! the layout changes.
//!
//! B batch rows · L new tokens · T all tokens · H query heads · K KV heads · D head dim · E hidden
//! · V vocabulary

mod attention;
mod decoder;
mod embedding;
mod gated_delta;
mod latent;
mod linear;
mod mlp;
mod moe;
mod norm;
mod rope;

pub use attention::{Attention, AttentionConfig, QkNorm};
pub use decoder::{Block, Decoder, DecoderSizes, FeedForward, Layer, Mixer};
pub use embedding::Embedding;
pub use gated_delta::{GatedDeltaConfig, GatedDeltaNet};
pub use latent::{LatentAttention, LatentConfig};
pub use linear::{Linear, Matrix, PerHead, Product, Stack};
pub use mlp::SwiGlu;
pub use moe::{Activation, Experts, ExpertsConfig, Moe, Router, SharedExpert};
pub use norm::RmsNorm;
pub use rope::{HeadsIn, Rope, RopeConfig, RopeKind};
