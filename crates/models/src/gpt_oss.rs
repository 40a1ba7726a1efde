//! gpt-oss. Reference: transformers 5.23 `modeling_gpt_oss.py`. Differs from llama: sinks in
//! attention, windows on every other layer, biases everywhere, yarn; experts with a clamped SwiGLU,
//! weighed by the softmax over the chosen logits alone.

use safetensors::tensor::Dtype as FileDtype;

use mlx::Dtype;

use crate::checkpoint::{Scope, Tensor, Tensors, Weights, even_and_odd};
use crate::config::Config;
use crate::dense::{Defaults, DenseConfig};
use crate::layers::{
    Activation, Attention, AttentionConfig, Block, Decoder, Experts, ExpertsConfig, Layer, Moe,
    Rope, RopeConfig, RopeKind, Router,
};
use crate::registry::{Family, FamilyFacts, RopeTokens};
use crate::{Model, Result};

pub(crate) const FAMILY: Family = Family {
    facts: FamilyFacts {
        model_type: "gpt_oss",
        also: &[],
        published: "gpt-oss-20b, gpt-oss-120b",
        state: "keys and values; every other layer sees only its window",
        deviations: &[],
    },
    to_mlx,
    build,
};

const DEFAULT_THETA: f64 = 150_000.0;

/// What transformers assumes where a config has no rotary settings at all.
const DEFAULT_ROPE: RopeKind = RopeKind::Yarn {
    factor: 32.0,
    original_tokens: 4096.0,
    beta_fast: 32.0,
    beta_slow: 1.0,
    truncate: false,
    attention_factor: None,
    mscale: None,
    mscale_all_dim: None,
};

/// Reads the config and loads the model.
fn build(config: &Config<'_>, weights: &Weights<'_>, tokens: RopeTokens) -> Result<Box<dyn Model>> {
    let defaults = Defaults {
        n_kv_heads: Some(8),
        head_dim: Some(64),
        rope_theta: DEFAULT_THETA,
        norm_eps: 1e-5,
        ..Defaults::default()
    };
    let mut dense = DenseConfig::read(config, &defaults, tokens)?;
    if !config.has_rope() {
        let plain = config.rope(DEFAULT_THETA, 1.0)?;
        let rope = RopeConfig { kind: DEFAULT_ROPE, ..plain };
        dense.rope = Rope::new(&rope, dense.attention.head_dim, tokens, false)?.into();
    }
    let bias = config.flag_or("attention_bias", true)?;
    let attention =
        AttentionConfig { qkv_bias: bias, o_bias: bias, sinks: true, ..dense.attention.clone() };
    let windows = windows(config, dense.sizes.n_layers)?;
    let experts = experts(config)?;
    let layer = |scope: &Scope<'_, '_>, i: i32| -> Result<Box<dyn Layer>> {
        let attention = AttentionConfig { window: windows[i as usize], ..attention.clone() };
        let mixer = Attention::load(&scope.at("self_attn"), &attention, &dense.rope)?;
        let mlp = scope.at("mlp");
        let gate = mlp.linear("router", experts.hidden, experts.n_experts, true)?;
        let mlp = Moe {
            router: Router::TopSoftmax { gate, n_used: experts.n_used },
            experts: Experts::load(&mlp.at("experts"), &experts)?,
            shared: None,
        };
        Block::load(scope, &dense.sizes, Box::new(mixer), Box::new(mlp))
    };
    let norm = |model: &Scope<'_, '_>| dense.last_norm(model);
    Ok(Box::new(Decoder::load(&weights.root(), dense.sizes, norm, layer)?))
}

fn experts(config: &Config<'_>) -> Result<ExpertsConfig> {
    let experts = ExpertsConfig {
        hidden: config.size("hidden_size")?,
        inner: config.size("intermediate_size")?,
        n_experts: config.size_of_any(&["num_local_experts", "num_experts"])?,
        n_used: config.size_of_any(&["num_experts_per_tok", "experts_per_token"])?,
        bias: true,
        activation: Activation::ClampedSwiGlu {
            alpha: config.number_or("swiglu_alpha", 1.702)? as f32,
            limit: config.number_or("swiglu_limit", 7.0)? as f32,
        },
    };
    experts.check("num_experts_per_tok", "num_local_experts")?;
    Ok(experts)
}

/// By `layer_types`, else every other layer, the first included.
fn windows(config: &Config<'_>, n_layers: i32) -> Result<Vec<Option<i32>>> {
    let window = match config.has("sliding_window") {
        true => config.size_opt("sliding_window")?,
        false => Some(128),
    };
    let types = config.layer_types(n_layers, &["full_attention", "sliding_attention"])?;
    let slides = |i: i32| match &types {
        Some(types) => types[i as usize] == "sliding_attention",
        None => i % 2 == 0,
    };
    Ok((0..n_layers).map(|i| window.filter(|_| slides(i))).collect())
}

/// HF's experts, in floats or as mxfp4 blocks, become one stack for each projection.
pub(crate) fn to_mlx(tensors: &mut Tensors, _: &Config<'_>) -> Result<()> {
    // Blocks: rows of gate and up by turns, codes of 32 values in 16 bytes.
    tensors.change("_proj_blocks", |_, blocks| packed(blocks))?;
    tensors.split(".gate_up_proj_blocks", |name, codes| {
        let [gate, up] = even_and_odd(name, codes, 1)?;
        Ok(vec![(".gate_proj.weight", gate), (".up_proj.weight", up)])
    })?;
    tensors.split(".gate_up_proj_scales", |name, scales| {
        let [gate, up] = even_and_odd(name, scales, 1)?;
        Ok(vec![(".gate_proj.scales", gate), (".up_proj.scales", up)])
    })?;
    tensors.replace_part(".down_proj_blocks", ".down_proj.weight");
    tensors.replace_part(".down_proj_scales", ".down_proj.scales");
    // Floats: input first, columns of gate and up by turns.
    tensors.split(".experts.gate_up_proj", |name, floats| {
        let [gate, up] = even_and_odd(name, floats, 2)?;
        Ok(vec![
            (".experts.gate_proj.weight", swapped(&gate)?),
            (".experts.up_proj.weight", swapped(&up)?),
        ])
    })?;
    tensors.split(".experts.down_proj", |_, floats| {
        Ok(vec![(".experts.down_proj.weight", swapped(floats)?)])
    })?;
    tensors.split(".gate_up_proj_bias", |name, bias| {
        let [gate, up] = even_and_odd(name, bias, 1)?;
        Ok(vec![(".gate_proj.bias", gate), (".up_proj.bias", up)])
    })?;
    tensors.replace_part(".down_proj_bias", ".down_proj.bias");
    Ok(())
}

/// Blocks `[.., n, 16]` of bytes as MLX's mxfp4 codes `[.., n·4]`, the same bits in words.
fn packed(blocks: &Tensor) -> Result<Tensor> {
    let last = blocks.array.n_dims() as i32 - 1;
    let words = blocks.array.flatten(last - 1, last)?.view(Dtype::U32)?;
    Ok(Tensor { dtype: FileDtype::U32, ..blocks.with(words) })
}

fn swapped(tensor: &Tensor) -> Result<Tensor> {
    Ok(tensor.with(tensor.array.swap_axes(-1, -2)?.contiguous()?))
}
