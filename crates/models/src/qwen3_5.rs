//! Qwen3.5 (dense), Qwen3.6 and 3.8 in its clothes. Reference: transformers 5.23
//! `modeling_qwen3_5.py`. Differs from qwen3_next: q, k, v and z, b, a come from matrices of their
//! own; dense blocks; the text model is wrapped beside a vision tower, which is not run.

use crate::checkpoint::{Tensors, Weights};
use crate::config::Config;
use crate::qwen3_next::{self, Hybrid};
use crate::registry::{Family, FamilyFacts, RopeTokens};
use crate::{Model, Result};

pub(crate) const FAMILY: Family = Family {
    facts: FamilyFacts {
        model_type: "qwen3_5",
        also: &["qwen3_5_text"],
        published: "Qwen3.5 (dense: 0.8B to 27B)",
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
    Hybrid::read(config, tokens, 4, false)?.load(weights)
}

/// Brings the wrapper's names to those of the text model.
pub(crate) fn to_mlx(tensors: &mut Tensors, config: &Config<'_>) -> Result<()> {
    unwrap_text_model(tensors);
    qwen3_next::to_mlx(tensors, config)
}

/// Names of the text model inside a wrapper, as HF and as MLX write them, become `model.…` and
/// `lm_head`; the vision tower is set aside.
pub(crate) fn unwrap_text_model(tensors: &mut Tensors) {
    tensors.replace_prefix("model.language_model.", "model.");
    tensors.replace_prefix("language_model.model.", "model.");
    tensors.replace_prefix("language_model.lm_head.", "lm_head.");
    tensors.set_aside("the vision tower", |name| {
        let prefixes = ["model.visual.", "vision_tower.", "visual.", "model.vision_tower."];
        prefixes.iter().any(|prefix| name.starts_with(prefix))
    });
}
