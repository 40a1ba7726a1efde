//! Qwen2 and 2.5. Reference: transformers 5.23 `modeling_qwen2.py`.
//! Differs from llama: biases on q, k and v, never on o; optionally a window on the upper layers.

use crate::checkpoint::Weights;
use crate::config::Config;
use crate::dense::{Defaults, DenseConfig};
use crate::registry::{Family, FamilyFacts, RopeTokens, same_layout};
use crate::{Model, Result};

pub(crate) const FAMILY: Family = Family {
    facts: FamilyFacts {
        model_type: "qwen2",
        also: &[],
        published: "Qwen2, Qwen2.5, QwQ",
        state: "keys and values",
        deviations: &[],
    },
    to_mlx: same_layout,
    build,
};

/// Reads the config and loads the model.
fn build(config: &Config<'_>, weights: &Weights<'_>, tokens: RopeTokens) -> Result<Box<dyn Model>> {
    let defaults = Defaults { n_kv_heads: Some(32), ..Defaults::default() };
    let mut dense = DenseConfig::read(config, &defaults, tokens)?;
    dense.attention.qkv_bias = true;
    dense.decoder(weights, &windows(config, dense.sizes.n_layers)?)
}

/// The window of each layer: by `layer_types`, else on layers from `max_window_layers` on. Only if
/// `use_sliding_window`.
pub(crate) fn windows(config: &Config<'_>, n_layers: i32) -> Result<Vec<Option<i32>>> {
    let window = match config.flag_or("use_sliding_window", false)? {
        true if config.has("sliding_window") => config.size_opt("sliding_window")?,
        true => Some(4096),
        false => None,
    };
    let first = config.count_or("max_window_layers", 28)?;
    let types = config.layer_types(n_layers, &["full_attention", "sliding_attention"])?;
    let slides = |i: i32| match &types {
        Some(types) => types[i as usize] == "sliding_attention",
        None => i >= first,
    };
    Ok((0..n_layers).map(|i| window.filter(|_| slides(i))).collect())
}
