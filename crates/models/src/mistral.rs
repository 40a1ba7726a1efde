//! Mistral. Reference: transformers 5.23 `modeling_mistral.py`.
//! Differs from llama: every layer sees through a window, unless `sliding_window` is null or
//! `layer_types` says otherwise. No biases.

use crate::checkpoint::Weights;
use crate::config::Config;
use crate::dense::{Defaults, DenseConfig};
use crate::registry::{Family, FamilyFacts, RopeTokens, same_layout};
use crate::{Model, Result};

pub(crate) const FAMILY: Family = Family {
    facts: FamilyFacts {
        model_type: "mistral",
        also: &[],
        published: "Mistral 7B, Nemo, Small (text)",
        state: "keys and values",
        deviations: &[],
    },
    to_mlx: same_layout,
    build,
};

/// Where the key is missing; null means none.
const DEFAULT_WINDOW: i32 = 4096;

/// Reads the config and loads the model.
fn build(config: &Config<'_>, weights: &Weights<'_>, tokens: RopeTokens) -> Result<Box<dyn Model>> {
    let defaults = Defaults { n_kv_heads: Some(8), ..Defaults::default() };
    let dense = DenseConfig::read(config, &defaults, tokens)?;
    let window = match config.has("sliding_window") {
        true => config.size_opt("sliding_window")?,
        false => Some(DEFAULT_WINDOW),
    };
    let n_layers = dense.sizes.n_layers;
    let windows = match config.layer_types(n_layers, &["full_attention", "sliding_attention"])? {
        None => vec![window; n_layers as usize],
        Some(types) => {
            types.iter().map(|kind| window.filter(|_| *kind == "sliding_attention")).collect()
        }
    };
    dense.decoder(weights, &windows)
}
