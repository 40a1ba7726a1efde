//! Qwen3.5 with experts. Reference: transformers 5.23 `modeling_qwen3_5_moe.py`. Differs from
//! qwen3_5: every layer has experts and a shared one, as Qwen3-Next has them; the weights of the
//! chosen always add up to 1.

use crate::checkpoint::Weights;
use crate::config::Config;
use crate::qwen3_5::to_mlx;
use crate::qwen3_moe::MoeConfig;
use crate::qwen3_next::Hybrid;
use crate::registry::{Family, FamilyFacts, RopeTokens};
use crate::{Model, Result};

pub(crate) const FAMILY: Family = Family {
    facts: FamilyFacts {
        model_type: "qwen3_5_moe",
        also: &["qwen3_5_moe_text"],
        published: "Qwen3.5-35B-A3B and larger",
        state: "keys and values on every fourth layer, a recurrent state on the others",
        deviations: &[
            "text only: the vision tower is listed and not run",
            "the head for multi-token prediction is listed and not run",
        ],
    },
    to_mlx,
    build,
};

/// Reads the config and loads the model.
fn build(config: &Config<'_>, weights: &Weights<'_>, tokens: RopeTokens) -> Result<Box<dyn Model>> {
    let mut hybrid = Hybrid::read(config, tokens, 2, false)?;
    hybrid.moe = Some(MoeConfig::read(config, true)?);
    hybrid.shared_inner = config.size_or("shared_expert_intermediate_size", 512)?;
    hybrid.load(weights)
}
