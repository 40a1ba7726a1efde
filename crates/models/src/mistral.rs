//! Mistral. Reference: transformers 5.23 `modeling_mistral.py`. Differs from llama: every layer
//! sees through a window, unless `sliding_window` is null. No biases.

use crate::checkpoint::Weights;
use crate::config::Config;
use crate::dense::{Defaults, DenseConfig};
use crate::registry::RopeTokens;
use crate::{Model, Result};

/// Where the key is missing; null means none.
const DEFAULT_WINDOW: i32 = 4096;

/// Reads the config and loads the model.
pub(crate) fn build(
    config: &Config<'_>,
    weights: &Weights<'_>,
    tokens: RopeTokens,
) -> Result<Box<dyn Model>> {
    let defaults = Defaults { n_kv_heads: Some(8), head_dim: None };
    let dense = DenseConfig::read(config, &defaults, tokens)?;
    let window = match config.has("sliding_window") {
        true => config.size_opt("sliding_window")?,
        false => Some(DEFAULT_WINDOW),
    };
    dense.decoder(weights, &vec![window; dense.sizes.n_layers as usize])
}
