//! Model families against reference logits, and checkpoints that are not what they should be.
#![allow(clippy::unwrap_used)]

mod broken;
mod documentation;
mod folder;
mod goldens;
mod pools;
mod quantize;
mod quantized;
mod shapes;
