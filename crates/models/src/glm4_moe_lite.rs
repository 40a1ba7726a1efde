//! GLM-4.7-Flash. Reference: transformers 5.23 `modeling_glm4_moe_lite.py`; DeepSeek-V2 (2024) for
//! the attention. Differs from llama: keys and values are expanded from one latent per token, the
//! only thing that is cached beside one rotated key for all heads; experts are chosen by sigmoids
//! with a correction bias, from the second layer on.

use std::rc::Rc;

use kernels::router;
use mlx::Dtype;

use crate::checkpoint::{Scope, Tensors, Weights};
use crate::config::Config;
use crate::dense::sizes;
use crate::layers::{
    Activation, Block, Decoder, Experts, ExpertsConfig, FeedForward, LatentAttention, LatentConfig,
    Layer, Moe, Rope, RopeKind, Router, SharedExpert, SwiGlu,
};
use crate::registry::{Family, FamilyFacts, RopeTokens};
use crate::{Error, Model, Result};

pub(crate) const FAMILY: Family = Family {
    facts: FamilyFacts {
        model_type: "glm4_moe_lite",
        also: &[],
        published: "GLM-4.7-Flash",
        state: "one latent and one rotated key",
        deviations: &["layers for multi-token prediction are listed and not run"],
    },
    to_mlx,
    build,
};

/// The keys of attention.
fn latent_config(config: &Config<'_>, hidden: i32) -> Result<LatentConfig> {
    let q_lora_rank = match config.has("q_lora_rank") {
        true => config.size_opt("q_lora_rank")?,
        false => Some(768),
    };
    let n_heads = config.size("num_attention_heads")?;
    let (nope, rope) =
        (config.size_or("qk_nope_head_dim", 192)?, config.size_or("qk_rope_head_dim", 64)?);
    config.fits("qk_nope_head_dim", n_heads, nope + rope)?;
    let kind = config.rope(1e4, 1.0)?.kind;
    let sharper = match kind {
        RopeKind::Yarn { factor, mscale_all_dim: Some(all), .. } if factor > 1.0 => {
            0.1 * all * factor.ln() + 1.0
        }
        _ => 1.0,
    };
    Ok(LatentConfig {
        hidden,
        n_heads,
        q_lora_rank,
        kv_lora_rank: config.size_or("kv_lora_rank", 512)?,
        nope,
        rope,
        value: config.size_or("v_head_dim", 256)?,
        bias: config.flag_or("attention_bias", false)?,
        scale: (sharper * sharper / f64::from(nope + rope).sqrt()) as f32,
    })
}

/// The keys of router and experts.
struct MoeConfig {
    experts: ExpertsConfig,
    shared_inner: i32,
    how: router::Sigmoid,
    is_sparse: Vec<bool>,
}

impl MoeConfig {
    fn read(config: &Config<'_>, sizes_n_layers: i32) -> Result<Self> {
        config.only("topk_method", "noaux_tc")?;
        config.only("scoring_func", "sigmoid")?;
        let inner = config.size_or("moe_intermediate_size", 1536)?;
        let experts = ExpertsConfig {
            hidden: config.size("hidden_size")?,
            inner,
            n_experts: config.size_of_any(&["n_routed_experts", "num_local_experts"])?,
            n_used: config.size_or("num_experts_per_tok", 4)?,
            bias: false,
            activation: Activation::SwiGlu,
        };
        experts.check("num_experts_per_tok", "n_routed_experts")?;
        let (n_groups, n_used_groups) =
            (config.size_or("n_group", 1)?, config.size_or("topk_group", 1)?);
        let n = experts.n_experts;
        let is_odd = n % n_groups != 0 || n_groups > 1 && n / n_groups < 2;
        if is_odd || n_used_groups > n_groups {
            let reason =
                format!("{n_used_groups} of {n_groups} groups of {n} experts make no sense");
            return Err(Error::config("n_group", reason));
        }
        if n / n_groups * n_used_groups < experts.n_used {
            let reason = format!("{n_used_groups} groups hold fewer experts than a token uses");
            return Err(Error::config("topk_group", reason));
        }
        let n_shared = config.size_or("n_shared_experts", 1)?;
        config.fits("n_shared_experts", n_shared, inner)?;
        Ok(Self {
            experts,
            shared_inner: inner * n_shared,
            how: router::Sigmoid {
                k: experts.n_used,
                n_group: n_groups,
                topk_group: n_used_groups,
                normalise: config.flag_or("norm_topk_prob", true)?,
                scale: config.number_or("routed_scaling_factor", 1.8)? as f32,
            },
            is_sparse: sparse_layers(config, sizes_n_layers)?,
        })
    }

    fn load(&self, mlp: &Scope<'_, '_>) -> Result<Moe> {
        let c = &self.experts;
        let gate = mlp.floats("gate.weight", &[c.n_experts, c.hidden], Dtype::F32)?;
        let bias = mlp.vector_f32("gate.e_score_correction_bias", c.n_experts, 0.0)?;
        let router =
            Router::Sigmoid { gate: gate.swap_axes(0, 1)?, correction_bias: bias, how: self.how };
        let shared = SwiGlu::load(&mlp.at("shared_experts"), c.hidden, self.shared_inner, false)?;
        Ok(Moe {
            router,
            experts: Experts::load(&mlp.at("switch_mlp"), c)?,
            shared: Some(SharedExpert { mlp: shared, gate: None }),
        })
    }
}

/// By `mlp_layer_types`, else all from `first_k_dense_replace` on.
fn sparse_layers(config: &Config<'_>, n_layers: i32) -> Result<Vec<bool>> {
    let first = config.count_or("first_k_dense_replace", 1)?;
    let every = config.size_or("moe_layer_freq", 1)?;
    Ok(match config.kinds("mlp_layer_types", n_layers, &["dense", "sparse"])? {
        Some(kinds) => kinds.iter().map(|kind| *kind == "sparse").collect(),
        None => (0..n_layers).map(|i| i >= first && i % every == 0).collect(),
    })
}

/// Reads the config and loads the model.
fn build(config: &Config<'_>, weights: &Weights<'_>, tokens: RopeTokens) -> Result<Box<dyn Model>> {
    config.only("hidden_act", "silu")?;
    let sizes = sizes(config, None, 1e-5, false)?;
    let mla = latent_config(config, sizes.hidden)?;
    let moe = MoeConfig::read(config, sizes.n_layers)?;
    let inner = config.size_or("intermediate_size", 10240)?;
    let interleaved = config.flag_or("rope_interleave", true)?;
    let rope = Rc::new(Rope::new(&config.rope(1e4, 1.0)?, mla.rope, tokens, interleaved)?);
    let layer = |scope: &Scope<'_, '_>, i: i32| -> Result<Box<dyn Layer>> {
        let mixer = LatentAttention::load(&scope.at("self_attn"), &mla, &rope)?;
        let mlp: Box<dyn FeedForward> = match moe.is_sparse[i as usize] {
            true => Box::new(moe.load(&scope.at("mlp"))?),
            false => Box::new(SwiGlu::load(&scope.at("mlp"), sizes.hidden, inner, false)?),
        };
        Block::load(scope, &sizes, Box::new(mixer), mlp)
    };
    let norm = |model: &Scope<'_, '_>| model.norm("norm", sizes.hidden, sizes.norm_eps);
    Ok(Box::new(Decoder::load(&weights.root(), sizes, norm, layer)?))
}

/// Stacks experts, splits `kv_b_proj` by what it makes, and sets the layers for multi-token
/// prediction aside.
pub(crate) fn to_mlx(tensors: &mut Tensors, config: &Config<'_>) -> Result<()> {
    let n_layers = config.n_layers()?;
    let n_more = config.count_or("num_nextn_predict_layers", 0)?;
    tensors.set_aside("the layer for multi-token prediction", |name| {
        let layer = name.strip_prefix("model.layers.").and_then(|rest| rest.split('.').next());
        let layer = layer.and_then(|number| number.parse::<i32>().ok());
        layer.is_some_and(|i| (n_layers..n_layers.saturating_add(n_more)).contains(&i))
    });
    tensors.stack_experts()?;
    tensors.split_fused_experts()?;
    let mla = latent_config(config, config.size("hidden_size")?)?;
    tensors.dequantize(".kv_b_proj", mla.kv_lora_rank)?;
    tensors.split(".kv_b_proj.weight", |name, both| {
        let (width, latent) = (mla.nope + mla.value, mla.kv_lora_rank);
        if *both.array.shape() != [mla.n_heads * width, latent] {
            let (found, heads) = (both.array.shape(), mla.n_heads);
            let reason = format!(
                "has shape {found:?}, but the config implies [{heads} · {width}, {latent}]"
            );
            return Err(both.error(name, reason));
        }
        let heads = both.array.reshape(&[mla.n_heads, width, latent])?;
        let keys = heads.slice_axis(1, 0..mla.nope)?.swap_axes(1, 2)?.contiguous()?;
        let values = heads.slice_axis(1, mla.nope..width)?.contiguous()?;
        Ok(vec![(".embed_q.weight", both.with(keys)), (".unembed_out.weight", both.with(values))])
    })
}
