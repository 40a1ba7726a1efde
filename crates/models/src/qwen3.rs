//! Qwen3 (dense). Reference: transformers 5.23 `modeling_qwen3.py`. Differs from llama: RMS norm
//! over each head of q and k before rope; heads of 128 unless stated; windows as in Qwen2.

use crate::checkpoint::Weights;
use crate::config::Config;
use crate::dense::{Defaults, DenseConfig};
use crate::layers::QkNorm;
use crate::qwen2::windows;
use crate::registry::{Family, FamilyFacts, RopeTokens, same_layout};
use crate::{Model, Result};

pub(crate) const FAMILY: Family = Family {
    facts: FamilyFacts {
        model_type: "qwen3",
        also: &[],
        published: "Qwen3 (dense)",
        state: "keys and values",
        deviations: &[],
    },
    to_mlx: same_layout,
    build,
};

/// Reads the config and loads the model.
fn build(config: &Config<'_>, weights: &Weights<'_>, tokens: RopeTokens) -> Result<Box<dyn Model>> {
    let defaults = Defaults { n_kv_heads: Some(32), head_dim: Some(128), ..Defaults::default() };
    let mut dense = DenseConfig::read(config, &defaults, tokens)?;
    let bias = config.flag_or("attention_bias", false)?;
    dense.attention.qkv_bias = bias;
    dense.attention.o_bias = bias;
    dense.attention.qk_norm = Some(QkNorm { eps: dense.sizes.norm_eps, around_zero: false });
    dense.decoder(weights, &windows(config, dense.sizes.n_layers)?)
}
