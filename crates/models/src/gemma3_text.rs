//! Gemma 3, the text model. Reference: transformers 5.23 `modeling_gemma3.py`. Differs from qwen3:
//! embeddings are scaled by √E; norms after attention and feed-forward too, all around 0; windows
//! on five of six layers, which turn by a base of their own; gelu in place of silu; tied head.

use std::rc::Rc;

use kernels::activation;
use mlx::{Array, Dtype};

use crate::checkpoint::{Scope, Tensors, Weights};
use crate::config::Config;
use crate::dense::sizes;
use crate::layers::{
    Attention, AttentionConfig, Decoder, DecoderSizes, Layer, Linear, Mixer, QkNorm, RmsNorm, Rope,
};
use crate::qwen3_5::unwrap_text_model;
use crate::registry::{Family, FamilyFacts, RopeTokens};
use crate::state::LayerState;
use crate::{Error, Model, Result, Step};

pub(crate) const FAMILY: Family = Family {
    facts: FamilyFacts {
        model_type: "gemma3_text",
        also: &["gemma3"],
        published: "Gemma 3 (270M to 27B)",
        state: "keys and values; five of six layers see only their window",
        deviations: &[
            "text only: the vision tower is listed and not run",
            "`attn_logit_softcapping` and bidirectional attention are refused",
            "in f16, residuals are added in f32 and limited",
            "`rope_scaling.type`, yarn's `truncate` for one layer type, and \
             `final_logit_softcapping` inside the wrapper count; transformers passes over them",
        ],
    },
    to_mlx,
    build,
};

/// down( gelu(gate x) ⊙ up x ), gelu by its tanh form.
#[derive(Debug)]
struct GeGlu {
    gate_proj: Linear,
    up_proj: Linear,
    down_proj: Linear,
}

impl GeGlu {
    fn load(weights: &Scope<'_, '_>, hidden: i32, inner: i32) -> Result<Self> {
        Ok(Self {
            gate_proj: weights.linear("gate_proj", hidden, inner, false)?,
            up_proj: weights.linear("up_proj", hidden, inner, false)?,
            down_proj: weights.linear("down_proj", inner, hidden, false)?,
        })
    }

    fn forward(&self, x: &Array) -> Result<Array> {
        let (gate, up) = (self.gate_proj.forward(x)?, self.up_proj.forward(x)?);
        self.down_proj.forward(&activation::geglu(&gate, &up)?)
    }
}

/// h = x + norm(attention(norm x)); out = h + norm(mlp(norm h)).
#[derive(Debug)]
struct Block {
    input_layernorm: RmsNorm,
    self_attn: Attention,
    post_attention_layernorm: RmsNorm,
    pre_feedforward_layernorm: RmsNorm,
    mlp: GeGlu,
    post_feedforward_layernorm: RmsNorm,
}

impl Layer for Block {
    fn mixer(&self) -> &dyn Mixer {
        &self.self_attn
    }

    fn forward(&self, x: &Array, step: &Step, state: &mut LayerState) -> Result<Array> {
        let mixed = self.self_attn.forward(&self.input_layernorm.forward(x)?, step, state)?;
        let mixed = self.post_attention_layernorm.forward(&mixed)?;
        let norm = &self.pre_feedforward_layernorm;
        let [h, normed] = if x.dtype() == Dtype::F16 {
            let h = added(x, &mixed)?;
            let normed = norm.forward(&h)?;
            [h, normed]
        } else {
            norm.of_sum(x, &mixed)?
        };
        let mixed = self.mlp.forward(&normed)?;
        added(&h, &self.post_feedforward_layernorm.forward(&mixed)?)
    }
}

/// a + b. Gemma's residuals outgrow f16: there the sum is formed in f32 and limited.
fn added(a: &Array, b: &Array) -> Result<Array> {
    if a.dtype() != Dtype::F16 {
        return Ok(a.add(b)?);
    }
    let limit = |value| Array::scalar(value, Dtype::F32);
    let sum = a.astype(Dtype::F32)?.add(&b.astype(Dtype::F32)?)?;
    Ok(sum.clip(Some(&limit(-65504.0)?), Some(&limit(65504.0)?))?.astype(Dtype::F16)?)
}

/// Reads the config and loads the model.
fn build(config: &Config<'_>, weights: &Weights<'_>, tokens: RopeTokens) -> Result<Box<dyn Model>> {
    for key in ["attn_logit_softcapping", "use_bidirectional_attention"] {
        config.absent(key, "is not supported for this family")?;
    }
    config.only("hidden_activation", "gelu_pytorch_tanh")?;
    // The wrapper's text_config may leave the vocabulary to transformers' default.
    let sizes = sizes(config, Some(262_208), 1e-6, true)?;
    let inner = config.size("intermediate_size")?;
    let attention = attention(config, &sizes)?;
    let slides = sliding_layers(config, sizes.n_layers)?;
    let window = match config.has("sliding_window") {
        true => config.size_opt("sliding_window")?,
        false => Some(4096),
    };
    let rope = |kind, is_scaled, key, theta| -> Result<Rc<Rope>> {
        let rope = config.rope_of(kind, is_scaled, key, theta)?;
        Ok(Rc::new(Rope::new(&rope, attention.head_dim, tokens, false)?))
    };
    let wide = rope("full_attention", true, "rope_theta", 1e6)?;
    let local = rope("sliding_attention", false, "rope_local_base_freq", 1e4)?;

    let layer = |scope: &Scope<'_, '_>, i: i32| -> Result<Box<dyn Layer>> {
        let norm = |name| scope.norm_around_zero(name, sizes.hidden, sizes.norm_eps);
        let (rope, window) = if slides[i as usize] { (&local, window) } else { (&wide, None) };
        let attention = AttentionConfig { window, ..attention.clone() };
        Ok(Box::new(Block {
            input_layernorm: norm("input_layernorm")?,
            self_attn: Attention::load(&scope.at("self_attn"), &attention, rope)?,
            post_attention_layernorm: norm("post_attention_layernorm")?,
            pre_feedforward_layernorm: norm("pre_feedforward_layernorm")?,
            mlp: GeGlu::load(&scope.at("mlp"), sizes.hidden, inner)?,
            post_feedforward_layernorm: norm("post_feedforward_layernorm")?,
        }))
    };
    let norm = |model: &Scope<'_, '_>| model.norm_around_zero("norm", sizes.hidden, sizes.norm_eps);
    let mut decoder = Decoder::load(&weights.root(), sizes, norm, layer)?;
    decoder.embedding_scale = Some((sizes.hidden as f32).sqrt());
    decoder.logit_softcap = config.number_opt("final_logit_softcapping")?.map(|cap| cap as f32);
    if decoder.logit_softcap.is_some_and(|cap| cap <= 0.0) {
        return Err(Error::config("final_logit_softcapping", "must be above 0"));
    }
    Ok(Box::new(decoder))
}

fn attention(config: &Config<'_>, sizes: &DecoderSizes) -> Result<AttentionConfig> {
    let n_heads = config.size_or("num_attention_heads", 8)?;
    let n_kv_heads = config.size_or("num_key_value_heads", 4)?;
    if n_heads % n_kv_heads != 0 {
        let reason = format!("{n_kv_heads} does not divide the {n_heads} query heads");
        return Err(Error::config("num_key_value_heads", reason));
    }
    let head_dim = config.size_or("head_dim", 256)?;
    config.fits("head_dim", n_heads, head_dim)?;
    let scalar = config.number_or("query_pre_attn_scalar", 256.0)? as f32;
    if scalar <= 0.0 {
        return Err(Error::config("query_pre_attn_scalar", "must be above 0"));
    }
    let bias = config.flag_or("attention_bias", false)?;
    Ok(AttentionConfig {
        qkv_bias: bias,
        o_bias: bias,
        qk_norm: Some(QkNorm { eps: sizes.norm_eps, around_zero: true }),
        scale: Some(scalar.sqrt().recip()),
        ..AttentionConfig::plain(sizes.hidden, n_heads, n_kv_heads, head_dim)
    })
}

/// By `layer_types`, else all but every `sliding_window_pattern`-th layer.
fn sliding_layers(config: &Config<'_>, n_layers: i32) -> Result<Vec<bool>> {
    let types = config.layer_types(n_layers, &["full_attention", "sliding_attention"])?;
    let pattern = match config.size_opt("sliding_window_pattern")? {
        Some(pattern) => pattern,
        None => config.size_or("_sliding_window_pattern", 6)?,
    };
    Ok(match types {
        Some(types) => types.iter().map(|kind| *kind == "sliding_attention").collect(),
        None => (0..n_layers).map(|i| (i + 1) % pattern != 0).collect(),
    })
}

/// Names inside the wrapper become those of the text model; what sees images is set aside.
pub(crate) fn to_mlx(tensors: &mut Tensors, _: &Config<'_>) -> Result<()> {
    unwrap_text_model(tensors);
    tensors.set_aside("the projector of images", |name| {
        name.trim_start_matches("model.").starts_with("multi_modal_projector.")
    });
    Ok(())
}
