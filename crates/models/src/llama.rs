//! Llama (1 to 3.x), and what is published in its clothes. Reference: transformers 5.23
//! `modeling_llama.py`. The plain pre-norm decoder: rope over the whole head, grouped KV heads,
//! SwiGLU, no biases unless the config says so.

use crate::checkpoint::Weights;
use crate::config::Config;
use crate::dense::{Defaults, DenseConfig};
use crate::registry::{Family, FamilyFacts, RopeTokens, same_layout};
use crate::{Model, Result};

pub(crate) const FAMILY: Family = Family {
    facts: FamilyFacts {
        model_type: "llama",
        also: &[],
        published: "Llama 2, 3, 3.1, 3.2 (text), and others in its clothes",
        state: "keys and values",
        deviations: &[],
    },
    to_mlx: same_layout,
    build,
};

/// Reads the config and loads the model.
fn build(config: &Config<'_>, weights: &Weights<'_>, tokens: RopeTokens) -> Result<Box<dyn Model>> {
    let defaults = Defaults::default();
    let mut dense = DenseConfig::read(config, &defaults, tokens)?;
    let bias = config.flag_or("attention_bias", false)?;
    dense.attention.qkv_bias = bias;
    dense.attention.o_bias = bias;
    dense.mlp_bias = config.flag_or("mlp_bias", false)?;
    config.layer_types(dense.sizes.n_layers, &["full_attention"])?;
    dense.decoder(weights, &[])
}
