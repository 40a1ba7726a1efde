//! Grouped-query attention with rotary positions, optional per-head norms and an optional window.

use std::rc::Rc;

use mlx::{Array, Attend};

use crate::checkpoint::Scope;
use crate::layers::{Linear, RmsNorm, Rope};
use crate::state::{KvState, LayerState};
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
    /// ε of an RMS norm over each head of q and k before rope; none if absent.
    pub qk_norm_eps: Option<f32>,
    /// Query i sees key j iff 0 ≤ i − j < window.
    pub window: Option<i32>,
}

/// The layer.
#[derive(Debug)]
pub struct Attention {
    q_proj: Linear, // E → H·D
    k_proj: Linear, // E → K·D
    v_proj: Linear, // E → K·D
    o_proj: Linear, // H·D → E
    q_norm: Option<RmsNorm>,
    k_norm: Option<RmsNorm>,
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
        let norm = |name| c.qk_norm_eps.map(|eps| weights.norm(name, c.head_dim, eps)).transpose();
        Ok(Self {
            q_proj: weights.linear("q_proj", c.hidden, q_width, c.qkv_bias)?,
            k_proj: weights.linear("k_proj", c.hidden, kv_width, c.qkv_bias)?,
            v_proj: weights.linear("v_proj", c.hidden, kv_width, c.qkv_bias)?,
            o_proj: weights.linear("o_proj", q_width, c.hidden, c.o_bias)?,
            q_norm: norm("q_norm")?,
            k_norm: norm("k_norm")?,
            rope: rope.clone(),
            config: c.clone(),
            scale: rope.logit_factor / (c.head_dim as f32).sqrt(),
        })
    }

    /// Bytes of keys and values that one token adds.
    pub fn kv_bytes_per_token(&self, dtype_bytes: usize) -> u64 {
        let c = &self.config;
        (2 * c.n_kv_heads * c.head_dim) as u64 * dtype_bytes as u64
    }

    /// The state of this layer before the first token.
    pub fn new_state(&self) -> LayerState {
        LayerState::Kv(KvState::default())
    }

    /// `[B, L, E]` → `[B, L, E]`; appends the new keys and values to `state`.
    pub fn forward(&self, x: &Array, step: &Step, state: &mut LayerState) -> Result<Array> {
        let c = &self.config;
        let q = self.heads(&self.q_proj.forward(x)?, c.n_heads)?; // [B, H, L, D]
        let k = self.heads(&self.k_proj.forward(x)?, c.n_kv_heads)?; // [B, K, L, D]
        let v = self.heads(&self.v_proj.forward(x)?, c.n_kv_heads)?;
        let q = self.rope.apply(&normed(&self.q_norm, q)?, step.position)?;
        let k = self.rope.apply(&normed(&self.k_norm, k)?, step.position)?;

        let LayerState::Kv(kv) = state;
        let (keys, values) = kv.append(&k, &v, step.position)?; // [B, K, T, D]
        let out = self.attend(&q, &keys, &values, step)?;
        let width = c.n_heads * c.head_dim;
        let out = out.swap_axes(1, 2)?.reshape(&[x.dim(0), step.n_tokens, width])?;
        self.o_proj.forward(&out)
    }

    /// `[B, L, n·D]` → `[B, n, L, D]`.
    fn heads(&self, x: &Array, n: i32) -> Result<Array> {
        let split = x.reshape(&[x.dim(0), x.dim(1), n, self.config.head_dim])?;
        Ok(split.swap_axes(1, 2)?)
    }

    fn attend(&self, q: &Array, keys: &Array, values: &Array, step: &Step) -> Result<Array> {
        let n_keys = step.position + step.n_tokens;
        let Some(window) = self.config.window.filter(|w| *w < n_keys) else {
            let attend = if step.n_tokens == 1 { Attend::All } else { Attend::Causal };
            return Ok(q.attention(keys, values, self.scale, attend, None)?);
        };
        let first = (step.position - (window - 1)).max(0);
        let (keys, values) =
            (keys.slice_axis(2, first..n_keys)?, values.slice_axis(2, first..n_keys)?);
        if step.n_tokens == 1 {
            return Ok(q.attention(&keys, &values, self.scale, Attend::All, None)?);
        }
        let mask = step.window_mask(window, first)?;
        Ok(q.attention(&keys, &values, self.scale, Attend::Mask(&mask), None)?)
    }
}

fn normed(norm: &Option<RmsNorm>, x: Array) -> Result<Array> {
    match norm {
        Some(norm) => norm.forward(&x),
        None => Ok(x),
    }
}
