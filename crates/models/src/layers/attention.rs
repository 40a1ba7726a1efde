//! Grouped-query attention with rotary positions; optional per-head norms, window, sinks, output
//! gate.

use std::rc::Rc;

use kernels::activation;
use kernels::self_attention::{Attended, Cache, SelfAttention};
use mlx::Array;

use crate::checkpoint::Scope;
use crate::layers::{HeadsIn, Linear, Mixer, RmsNorm, Rope};
use crate::state::{KvState, LayerState, Memory};
use crate::{Result, Step};

/// What distinguishes the attention of one family, or one layer, from another's.
#[derive(Clone, Debug)]
pub struct AttentionConfig {
    /// E.
    pub hidden: i32,
    /// H.
    pub n_heads: i32,
    /// K, a divisor of H.
    pub n_kv_heads: i32,
    /// D.
    pub head_dim: i32,
    /// Biases on q, k and v.
    pub qkv_bias: bool,
    /// A bias on o.
    pub o_bias: bool,
    /// An RMS norm over each head of q and k before rope; none if absent.
    pub qk_norm: Option<QkNorm>,
    /// Query i sees key j iff 0 ≤ i − j < window.
    pub window: Option<i32>,
    /// One learned logit per query head that takes part in the softmax and has no value.
    pub sinks: bool,
    /// q_proj yields a gate beside each query head, whose sigmoid multiplies the head's output.
    pub gate: bool,
    /// What multiplies the logits; none means D^−½.
    pub scale: Option<f32>,
}

/// The norm over each head of q and k.
#[derive(Clone, Copy, Debug)]
pub struct QkNorm {
    /// ε.
    pub eps: f32,
    /// The weight is stored around 0, and 1 is added when it runs.
    pub around_zero: bool,
}

impl AttentionConfig {
    /// Plain attention of these sizes.
    pub fn plain(hidden: i32, n_heads: i32, n_kv_heads: i32, head_dim: i32) -> Self {
        Self {
            hidden,
            n_heads,
            n_kv_heads,
            head_dim,
            qkv_bias: false,
            o_bias: false,
            qk_norm: None,
            window: None,
            sinks: false,
            gate: false,
            scale: None,
        }
    }
}

/// The layer.
#[derive(Debug)]
pub struct Attention {
    q_proj: Linear, // E → H·D, or H·2D with a gate
    k_proj: Linear, // E → K·D
    v_proj: Linear, // E → K·D
    o_proj: Linear, // H·D → E
    q_norm: Option<RmsNorm>,
    k_norm: Option<RmsNorm>,
    sinks: Option<Array>, // [H]
    rope: Rc<Rope>,
    config: AttentionConfig,
    scale: f32,
}

impl Attention {
    /// Takes its projections and norms from `weights`.
    pub(crate) fn load(
        weights: &Scope<'_, '_>,
        config: &AttentionConfig,
        rope: &Rc<Rope>,
    ) -> Result<Self> {
        let c = config;
        let (q_width, kv_width) = (c.n_heads * c.head_dim, c.n_kv_heads * c.head_dim);
        let q_out = if c.gate { 2 * q_width } else { q_width };
        let norm = |name| {
            let load = |norm: QkNorm| match norm.around_zero {
                true => weights.norm_around_zero(name, c.head_dim, norm.eps),
                false => weights.norm(name, c.head_dim, norm.eps),
            };
            c.qk_norm.map(load).transpose()
        };
        let sinks = c.sinks.then(|| weights.vector("sinks", c.n_heads, 0.0)).transpose()?;
        Ok(Self {
            q_proj: weights.linear("q_proj", c.hidden, q_out, c.qkv_bias)?,
            k_proj: weights.linear("k_proj", c.hidden, kv_width, c.qkv_bias)?,
            v_proj: weights.linear("v_proj", c.hidden, kv_width, c.qkv_bias)?,
            o_proj: weights.linear("o_proj", q_width, c.hidden, c.o_bias)?,
            q_norm: norm("q_norm")?,
            k_norm: norm("k_norm")?,
            sinks,
            rope: rope.clone(),
            config: c.clone(),
            scale: rope.logit_factor * c.scale.unwrap_or(1.0 / (c.head_dim as f32).sqrt()),
        })
    }

    /// The heads of a projection to `n` of them, whatever stands behind each.
    fn heads_in<'a>(&self, x: &'a Array, n: i32, norm: &'a Option<RmsNorm>) -> HeadsIn<'a> {
        let head_dim = self.config.head_dim;
        HeadsIn { x, n_heads: n, begin: 0, head_dim, norm: norm.as_ref() }
    }
}

impl Mixer for Attention {
    fn new_state(&self) -> LayerState {
        LayerState::Kv(KvState::default())
    }

    fn memory(&self) -> Memory {
        let c = &self.config;
        Memory::Tokens { buffers: vec![[c.n_kv_heads, c.head_dim]; 2], window: c.window }
    }

    fn forward(&self, x: &Array, step: &Step, state: &mut LayerState) -> Result<Array> {
        let LayerState::Kv(kv) = state else { unreachable!("an attention layer's own state") };
        let c = &self.config;
        let [q, k, v] = Linear::forward_all([&self.q_proj, &self.k_proj, &self.v_proj], x)?;
        let attention = SelfAttention {
            q: self.rope.queries(&self.heads_in(&q, c.n_heads, &self.q_norm), step),
            k: self.rope.keys(&self.heads_in(&k, c.n_kv_heads, &self.k_norm), step),
            v: &v,
            scale: self.scale,
            window: c.window,
            sinks: self.sinks.as_ref(),
            masks: step.masks(),
            layout: kv.layout(step),
        };
        let shape = [x.dim(0), c.n_kv_heads, 0, c.head_dim];
        let [keys, values] = kv.take([shape; 2], x.dtype(), step)?; // [B, K, T, D] or [N, K, n, D]
        let Attended { out, cache } = attention.run(Cache { keys, values })?; // [B, L, H·D]
        kv.keep([cache.keys, cache.values]);
        self.o_proj.forward(&match c.gate {
            true => activation::sigmoid_gated_behind(&out, &q, c.head_dim)?,
            false => out,
        })
    }
}
