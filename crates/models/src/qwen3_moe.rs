//! Qwen3-MoE and Qwen3-Coder. Reference: transformers 5.23 `modeling_qwen3_moe.py`. Differs from
//! qwen3: experts in place of the dense block, on every layer unless the config says otherwise.
//!
//! Router: softmax over all experts, then the k best, divided by their sum if `norm_topk_prob`.

use crate::checkpoint::{Scope, Tensors, Weights};
use crate::config::Config;
use crate::dense::{Defaults, DenseConfig};
use crate::layers::{
    Activation, Attention, AttentionConfig, Block, Decoder, Experts, ExpertsConfig, FeedForward,
    Layer, Moe, QkNorm, Router, SharedExpert,
};
use crate::registry::{Family, FamilyFacts, RopeTokens};
use crate::{Model, Result};

pub(crate) const FAMILY: Family = Family {
    facts: FamilyFacts {
        model_type: "qwen3_moe",
        also: &[],
        published: "Qwen3-30B-A3B, Qwen3-235B-A22B, Qwen3-Coder",
        state: "keys and values",
        deviations: &[],
    },
    to_mlx,
    build,
};

/// The keys of experts that Qwen's families share.
pub(crate) struct MoeConfig {
    pub experts: ExpertsConfig,
    pub normalizes: bool,
    /// Layers with a dense block instead.
    dense_layers: Vec<i32>,
    /// Only every n-th layer has experts.
    sparse_step: i32,
}

impl MoeConfig {
    pub fn read(config: &Config<'_>, normalizes: bool) -> Result<Self> {
        let experts = ExpertsConfig {
            hidden: config.size("hidden_size")?,
            inner: config.size("moe_intermediate_size")?,
            n_experts: config.size_of_any(&["num_experts", "num_local_experts"])?,
            n_used: config.size("num_experts_per_tok")?,
            bias: false,
            activation: Activation::SwiGlu,
        };
        experts.check("num_experts_per_tok", "num_experts")?;
        Ok(Self {
            experts,
            normalizes,
            dense_layers: config.counts("mlp_only_layers")?,
            sparse_step: config.size_or("decoder_sparse_step", 1)?,
        })
    }

    pub fn is_sparse(&self, layer_idx: i32) -> bool {
        !self.dense_layers.contains(&layer_idx) && (layer_idx + 1) % self.sparse_step == 0
    }

    pub fn load(&self, mlp: &Scope<'_, '_>, shared: Option<SharedExpert>) -> Result<Moe> {
        let c = &self.experts;
        let gate = mlp.linear("gate", c.hidden, c.n_experts, false)?;
        Ok(Moe {
            router: Router::Softmax { gate, n_used: c.n_used, normalizes: self.normalizes },
            experts: Experts::load(&mlp.at("switch_mlp"), c)?,
            shared,
        })
    }
}

/// Reads the config and loads the model.
fn build(config: &Config<'_>, weights: &Weights<'_>, tokens: RopeTokens) -> Result<Box<dyn Model>> {
    let defaults = Defaults { n_kv_heads: Some(4), ..Defaults::default() };
    let mut dense = DenseConfig::read(config, &defaults, tokens)?;
    let bias = config.flag_or("attention_bias", false)?;
    let window = match config.flag_or("use_sliding_window", false)? {
        true if config.has("sliding_window") => config.size_opt("sliding_window")?,
        true => Some(4096),
        false => None,
    };
    dense.attention = AttentionConfig {
        qkv_bias: bias,
        o_bias: bias,
        qk_norm: Some(QkNorm { eps: dense.sizes.norm_eps, around_zero: false }),
        window,
        ..dense.attention
    };
    let moe = MoeConfig::read(config, config.flag_or("norm_topk_prob", false)?)?;
    let layer = |scope: &Scope<'_, '_>, i: i32| -> Result<Box<dyn Layer>> {
        let mixer = Attention::load(&scope.at("self_attn"), &dense.attention, &dense.rope)?;
        let mlp: Box<dyn FeedForward> = match moe.is_sparse(i) {
            true => Box::new(moe.load(&scope.at("mlp"), None)?),
            false => Box::new(dense.mlp(&scope.at("mlp"))?),
        };
        Block::load(scope, &dense.sizes, Box::new(mixer), mlp)
    };
    let norm = |model: &Scope<'_, '_>| dense.last_norm(model);
    Ok(Box::new(Decoder::load(&weights.root(), dense.sizes, norm, layer)?))
}

/// Experts one by one, or gate and up fused, become stacks.
pub(crate) fn to_mlx(tensors: &mut Tensors, _: &Config<'_>) -> Result<()> {
    tensors.stack_experts()?;
    tensors.split_fused_experts()
}
