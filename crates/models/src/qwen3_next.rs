//! Qwen3-Next. Reference: transformers 5.23 `modeling_qwen3_next.py`. Differs from qwen3_moe: three
//! of four layers are gated delta nets; attention has an output gate and turns a quarter of each
//! head; experts have a shared one beside them; norms are stored around 0 in HF's files.

use crate::checkpoint::{Scope, Tensors, Weights};
use crate::config::Config;
use crate::dense::{Defaults, DenseConfig};
use crate::layers::{
    Attention, AttentionConfig, Block, Decoder, FeedForward, GatedDeltaConfig, GatedDeltaNet,
    Layer, Mixer, QkNorm, SharedExpert, SwiGlu,
};
use crate::qwen3_moe::{self, MoeConfig};
use crate::registry::{Family, FamilyFacts, RopeTokens};
use crate::{Model, Result};

pub(crate) const FAMILY: Family = Family {
    facts: FamilyFacts {
        model_type: "qwen3_next",
        also: &[],
        published: "Qwen3-Next-80B-A3B, Qwen3-Coder-Next",
        state: "keys and values on every fourth layer, a recurrent state on the others",
        deviations: &["the head for multi-token prediction is listed and not run"],
    },
    to_mlx,
    build,
};

/// A decoder of gated delta nets and gated attention, as Qwen3-Next and Qwen3.5 have it.
pub(crate) struct Hybrid {
    pub dense: DenseConfig,
    pub delta: GatedDeltaConfig,
    /// None in dense models.
    pub moe: Option<MoeConfig>,
    /// The width of the block that every token passes beside its experts.
    pub shared_inner: i32,
    /// For each layer whether it is a gated delta net.
    pub is_linear: Vec<bool>,
}

impl Hybrid {
    /// The keys that both families share; `defaults` are those of `head_dim` 256 and the like.
    pub fn read(
        config: &Config<'_>,
        tokens: RopeTokens,
        n_kv_heads: i32,
        interleaved: bool,
    ) -> Result<Self> {
        let defaults = Defaults {
            n_kv_heads: Some(n_kv_heads),
            head_dim: Some(256),
            partial_rotary_factor: 0.25,
            ..Defaults::default()
        };
        let mut dense = DenseConfig::read(config, &defaults, tokens)?;
        let bias = config.flag_or("attention_bias", false)?;
        dense.attention = AttentionConfig {
            qkv_bias: bias,
            o_bias: bias,
            qk_norm: Some(QkNorm { eps: dense.sizes.norm_eps, around_zero: false }),
            gate: true,
            ..dense.attention
        };
        let delta = GatedDeltaConfig {
            hidden: dense.sizes.hidden,
            n_key_heads: config.size_or("linear_num_key_heads", 16)?,
            n_value_heads: config.size_or("linear_num_value_heads", 32)?,
            key_dim: config.size_or("linear_key_head_dim", 128)?,
            value_dim: config.size_or("linear_value_head_dim", 128)?,
            conv_tokens: config.size_or("linear_conv_kernel_dim", 4)?,
            norm_eps: dense.sizes.norm_eps,
            interleaved,
        };
        delta.check()?;
        let is_linear = linear_layers(config, dense.sizes.n_layers)?;
        Ok(Self { dense, delta, moe: None, shared_inner: 0, is_linear })
    }

    /// The model.
    pub fn load(&self, weights: &Weights<'_>) -> Result<Box<dyn Model>> {
        let layer = |scope: &Scope<'_, '_>, i: i32| -> Result<Box<dyn Layer>> {
            let mixer: Box<dyn Mixer> = match self.is_linear[i as usize] {
                true => Box::new(GatedDeltaNet::load(&scope.at("linear_attn"), &self.delta)?),
                false => {
                    let (attention, rope) = (&self.dense.attention, &self.dense.rope);
                    Box::new(Attention::load(&scope.at("self_attn"), attention, rope)?)
                }
            };
            Block::load(scope, &self.dense.sizes, mixer, self.mlp(&scope.at("mlp"), i)?)
        };
        let norm = |model: &Scope<'_, '_>| self.dense.last_norm(model);
        Ok(Box::new(Decoder::load(&weights.root(), self.dense.sizes, norm, layer)?))
    }

    fn mlp(&self, mlp: &Scope<'_, '_>, layer_idx: i32) -> Result<Box<dyn FeedForward>> {
        let Some(moe) = self.moe.as_ref().filter(|moe| moe.is_sparse(layer_idx)) else {
            return Ok(Box::new(self.dense.mlp(mlp)?));
        };
        let (hidden, inner) = (self.dense.sizes.hidden, self.shared_inner);
        let shared = SharedExpert {
            mlp: SwiGlu::load(&mlp.at("shared_expert"), hidden, inner, false)?,
            gate: Some(mlp.linear("shared_expert_gate", hidden, 1, false)?),
        };
        Ok(Box::new(moe.load(mlp, Some(shared))?))
    }
}

/// By `layer_types`, else all but every `full_attention_interval`-th layer.
fn linear_layers(config: &Config<'_>, n_layers: i32) -> Result<Vec<bool>> {
    let types = config.layer_types(n_layers, &["full_attention", "linear_attention"])?;
    let interval = config.size_or("full_attention_interval", 4)?;
    Ok(match types {
        Some(types) => types.iter().map(|kind| *kind == "linear_attention").collect(),
        None => (0..n_layers).map(|i| (i + 1) % interval != 0).collect(),
    })
}

/// Reads the config and loads the model.
fn build(config: &Config<'_>, weights: &Weights<'_>, tokens: RopeTokens) -> Result<Box<dyn Model>> {
    let mut hybrid = Hybrid::read(config, tokens, 2, true)?;
    hybrid.moe = Some(MoeConfig::read(config, config.flag_or("norm_topk_prob", true)?)?);
    hybrid.shared_inner = config.size_or("shared_expert_intermediate_size", 512)?;
    hybrid.load(weights)
}

/// Stacks experts; in HF's files also adds 1 to the norms and turns the convolutions.
pub(crate) fn to_mlx(tensors: &mut Tensors, config: &Config<'_>) -> Result<()> {
    tensors.set_aside("the head for multi-token prediction", |name| name.starts_with("mtp."));
    qwen3_moe::to_mlx(tensors, config)?;
    if tensors.is_mlx {
        return Ok(());
    }
    for norm in ["input_layernorm", "post_attention_layernorm", "q_norm", "k_norm", "model.norm"] {
        tensors.add_one(&format!("{norm}.weight"))?;
    }
    tensors.swap_conv_axes(".conv1d.weight")
}
