//! A gated delta net: linear attention with a recurrent state. Reference: transformers 5.23
//! `modeling_qwen3_next.py`, `Qwen3NextGatedDeltaNet`; Yang, Kautz, Hatamizadeh, "Gated Delta
//! Networks" (2024).
//!
//! Hk key heads of Dk, Hv value heads of Dv, Hk divides Hv: value head h reads key head
//! h / (Hv/Hk). C = 2·Hk·Dk + Hv·Dv channels pass a causal depthwise convolution over Kc tokens.

use kernels::GatedDelta;
use kernels::causal_conv::CausalConv;
use kernels::gated_delta::{Inputs, Projected};
use mlx::Array;

use crate::checkpoint::Scope;
use crate::layers::{Linear, Mixer, RmsNorm};
use crate::state::{LayerState, Memory, RecurrentState};
use crate::{Error, Result, Step};

/// On the sum of squares of a head of q or k, not on the mean.
const L2_EPS: f32 = 1e-6;

/// The sizes.
#[derive(Clone, Copy, Debug)]
pub struct GatedDeltaConfig {
    /// E.
    pub hidden: i32,
    /// Hk.
    pub n_key_heads: i32,
    /// Hv.
    pub n_value_heads: i32,
    /// Dk.
    pub key_dim: i32,
    /// Dv.
    pub value_dim: i32,
    /// Kc.
    pub conv_tokens: i32,
    /// ε of the norm over each head's output.
    pub norm_eps: f32,
    /// q, k, v and z come from one matrix, and b and a from another, grouped by key head
    /// (Qwen3-Next); else from four.
    pub interleaved: bool,
}

impl GatedDeltaConfig {
    fn keys_width(&self) -> i32 {
        self.n_key_heads * self.key_dim
    }

    fn values_width(&self) -> i32 {
        self.n_value_heads * self.value_dim
    }

    fn conv_width(&self) -> i32 {
        2 * self.keys_width() + self.values_width()
    }

    /// Fails where key heads do not divide value heads, or the convolution is of no known width.
    pub(crate) fn check(&self) -> Result<()> {
        if !(2..=8).contains(&self.conv_tokens) {
            let reason = format!("must be from 2 to 8, not {}", self.conv_tokens);
            return Err(Error::config("linear_conv_kernel_dim", reason));
        }
        if self.n_value_heads % self.n_key_heads == 0 {
            return Ok(());
        }
        let (keys, values) = (self.n_key_heads, self.n_value_heads);
        let reason = format!("{keys} does not divide the {values} value heads");
        Err(Error::config("linear_num_key_heads", reason))
    }

    /// For q|k|v and for z: which rows of the interleaved matrix `[Hk, Dk | Dk | r·Dv | r·Dv]` they
    /// are, r = Hv/Hk.
    fn qkvz_rows(&self) -> [Vec<i32>; 2] {
        let (dk, values) = (self.key_dim, self.values_width() / self.n_key_heads);
        let group = 2 * dk + 2 * values;
        let part = |from: i32, n: i32| {
            (0..self.n_key_heads).flat_map(move |head| (0..n).map(move |i| head * group + from + i))
        };
        let qkv = part(0, dk).chain(part(dk, dk)).chain(part(2 * dk, values));
        [qkv.collect(), part(2 * dk + values, values).collect()]
    }

    /// For b and for a, in `[Hk, r | r]`.
    fn ba_rows(&self) -> [Vec<i32>; 2] {
        let r = self.n_value_heads / self.n_key_heads;
        let part = |from: i32| {
            (0..self.n_key_heads).flat_map(move |head| (0..r).map(move |i| head * 2 * r + from + i))
        };
        [part(0).collect(), part(r).collect()]
    }
}

/// The layer.
#[derive(Debug)]
pub struct GatedDeltaNet {
    in_proj_qkv: Linear, // E → C
    in_proj_z: Linear,   // E → Hv·Dv
    in_proj_b: Linear,   // E → Hv
    in_proj_a: Linear,   // E → Hv
    conv1d: Array,       // [C, Kc]
    dt_bias: Array,      // [Hv], f32
    decay: Array,        // [Hv], f32: −exp(A_log)
    norm: RmsNorm,       // Dv
    out_proj: Linear,    // Hv·Dv → E
    config: GatedDeltaConfig,
}

impl GatedDeltaNet {
    /// Takes its tensors from `weights`.
    pub(crate) fn load(weights: &Scope<'_, '_>, config: &GatedDeltaConfig) -> Result<Self> {
        let c = *config;
        let linear = |name, n_out| weights.linear(name, c.hidden, n_out, false);
        let [in_proj_qkv, in_proj_z, in_proj_b, in_proj_a] = if c.interleaved {
            let width = c.conv_width() + c.values_width();
            let [qkv, z] =
                pair(weights.linear_rows("in_proj_qkvz", c.hidden, width, &c.qkvz_rows())?);
            let width = 2 * c.n_value_heads;
            let [b, a] = pair(weights.linear_rows("in_proj_ba", c.hidden, width, &c.ba_rows())?);
            [qkv, z, b, a]
        } else {
            [
                linear("in_proj_qkv", c.conv_width())?,
                linear("in_proj_z", c.values_width())?,
                linear("in_proj_b", c.n_value_heads)?,
                linear("in_proj_a", c.n_value_heads)?,
            ]
        };
        let shape = [c.conv_width(), c.conv_tokens, 1];
        let conv1d = weights.floats("conv1d.weight", &shape, weights.dtype())?;
        Ok(Self {
            in_proj_qkv,
            in_proj_z,
            in_proj_b,
            in_proj_a,
            conv1d: conv1d.squeeze(&[2])?,
            dt_bias: weights.vector_f32("dt_bias", c.n_value_heads, 0.0)?,
            decay: weights.vector_f32("A_log", c.n_value_heads, 0.0)?.exp()?.neg()?,
            norm: weights.norm("norm", c.value_dim, c.norm_eps)?,
            out_proj: weights.linear("out_proj", c.values_width(), c.hidden, false)?,
            config: c,
        })
    }

    /// Convolves `[B, L, C]` after the tail of what came before; the silu of it.
    fn convolve(&self, u: &Array, step: &Step, state: &mut RecurrentState) -> Result<Array> {
        let tails = step.captures().iter().map(|p| self.tail_after(*p, u, &state.conv_tail));
        let captured = tails
            .map(|tail| Ok(RecurrentState { conv_tail: Some(tail?), ..RecurrentState::default() }));
        state.captured = captured.collect::<Result<_>>()?;
        let conv = CausalConv {
            u,
            tail: state.conv_tail.as_ref(),
            weight: &self.conv1d,
            lengths: step.lengths(),
        };
        let convolved = conv.run()?;
        state.conv_tail = Some(convolved.tail);
        Ok(convolved.out)
    }

    /// The tail of a convolution of the first `n` of `u` `[B, L, C]`.
    fn tail_after(&self, n: i32, u: &Array, tail: &Option<Array>) -> Result<Array> {
        let before = self.config.conv_tokens - 1;
        if n >= before {
            return Ok(u.slice_axis(1, n - before..n)?.contiguous()?);
        }
        let rows = u.slice_axis(1, 0..n)?;
        let rest = match tail {
            Some(tail) => tail.slice_axis(1, n..before)?,
            None => Array::zeros(&[u.dim(0), before - n, u.dim(2)], u.dtype())?,
        };
        Ok(mlx::concatenate(&[&rest, &rows], 1)?)
    }
}

fn pair(list: Vec<Linear>) -> [Linear; 2] {
    list.try_into().expect("two lists of rows make two layers")
}

impl Mixer for GatedDeltaNet {
    fn new_state(&self) -> LayerState {
        LayerState::Recurrent(RecurrentState::default())
    }

    fn memory(&self) -> Memory {
        let c = &self.config;
        Memory::Recurrent {
            tail: [c.conv_tokens - 1, c.conv_width()],
            state: [c.n_value_heads, c.value_dim, c.key_dim],
        }
    }

    fn forward(&self, x: &Array, step: &Step, state: &mut LayerState) -> Result<Array> {
        let LayerState::Recurrent(state) = state else {
            unreachable!("a gated delta layer's own state")
        };
        let c = &self.config;
        let (rows, n) = (x.dim(0), x.dim(1));
        let layers = [&self.in_proj_qkv, &self.in_proj_z, &self.in_proj_b, &self.in_proj_a];
        let [qkv, z, b, a] = Linear::forward_all(layers, x)?;
        let u = self.convolve(&qkv, step, state)?;
        let projected = Projected {
            qkv: &u,
            a: &a,
            b: &b,
            dt_bias: &self.dt_bias,
            decay: &self.decay,
            k_heads: c.n_key_heads,
            k_dim: c.key_dim,
            eps: L2_EPS,
        };
        let Inputs { q, k, v, gates } = projected.inputs()?;
        let rule = GatedDelta {
            q: &q,
            k: &k,
            v: &v,
            log_decay: &gates.log_decay,
            beta: &gates.beta,
            state: state.state.as_ref(),
            lengths: step.lengths(),
        };
        let updated = rule.update(step.captures())?;
        state.state = Some(updated.state);
        for (captured, made) in state.captured.iter_mut().zip(updated.captured) {
            captured.state = Some(made);
        }
        let z = z.reshape(&[rows, n, c.n_value_heads, c.value_dim])?;
        let y = self.norm.gated(&updated.out, &z)?.astype(x.dtype())?;
        self.out_proj.forward(&y.reshape(&[rows, n, c.values_width()])?)
    }
}
