//! The blocks that families are built from. Field names are tensor names; shapes are written where
//! the layout changes.
//!
//! B batch rows · L new tokens · T all tokens · H query heads · K KV heads · D head dim · E hidden
//! · V vocabulary

mod attention;
mod decoder;
mod embedding;
mod linear;
mod mlp;
mod norm;
mod rope;

pub use attention::{Attention, AttentionConfig};
pub use decoder::{Block, Decoder, DecoderSizes};
pub use embedding::Embedding;
pub use linear::{Linear, Matrix, Product};
pub use mlp::SwiGlu;
pub use norm::RmsNorm;
pub use rope::{Rope, RopeConfig, RopeKind};
