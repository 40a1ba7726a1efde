//! MLX's fused operations: norms, rotary embedding, attention, the gated delta rule.

use mlx_sys::ffi;

use crate::array::{opt, unlist};
use crate::{Array, Result};

/// How [`Array::rope`] rotates.
#[derive(Clone, Debug)]
pub struct Rope {
    /// How many of the last axis's elements turn.
    pub dims: i32,
    /// Pairs (2i, 2i + 1) if true, else (i, i + dims/2).
    pub traditional: bool,
    /// Frequency base; not used when `freqs` is given.
    pub base: f32,
    /// Multiplies the **position**.
    pub scale: f32,
    /// The **reciprocals** of the frequencies, `[dims/2]`, f32.
    pub freqs: Option<Array>,
}

/// Which keys a query sees.
#[derive(Clone, Debug)]
pub enum Attend<'a> {
    /// All.
    All,
    /// Those up to its own position, the last query seeing all keys.
    Causal,
    /// Where the boolean array (broadcast to `[B, H, L, T]`) is true, or weighted by an additive
    /// one.
    Mask(&'a Array),
}

impl Array {
    /// x / √(mean(x²) + ε) · weight over the last axis, computed in f32.
    /// The result's dtype is the promotion of x's and the weight's.
    pub fn rms_norm(&self, weight: Option<&Array>, eps: f32) -> Result<Array> {
        // SAFETY: the pointer is null or borrowed from an array that outlives the call.
        let result = unsafe { ffi::rms_norm(&self.0, opt(weight), eps) };
        Array::wrap("rms_norm", &shown(self, &[weight]), result)
    }

    /// (x − mean) / √(variance + ε) · weight + bias over the last axis.
    pub fn layer_norm(
        &self,
        weight: Option<&Array>,
        bias: Option<&Array>,
        eps: f32,
    ) -> Result<Array> {
        // SAFETY: the pointers are null or borrowed from arrays that outlive the call.
        let result = unsafe { ffi::layer_norm(&self.0, opt(weight), opt(bias), eps) };
        Array::wrap("layer_norm", &shown(self, &[weight, bias]), result)
    }

    /// Rotary position embedding of `[.., L, D]`, the first of the L positions being `position`.
    pub fn rope(&self, rope: &Rope, position: i32) -> Result<Array> {
        let freqs = opt(rope.freqs.as_ref());
        // SAFETY: the pointer is null or borrowed from an array that outlives the call.
        let result = unsafe {
            ffi::rope_from(
                &self.0,
                rope.dims,
                rope.traditional,
                rope.base,
                rope.scale,
                position,
                freqs,
            )
        };
        Array::wrap("rope", &[self], result)
    }

    /// Like [`Array::rope`] with one first position per batch row: `positions` is `[B]`, i32.
    pub fn rope_rows(&self, rope: &Rope, positions: &Array) -> Result<Array> {
        let freqs = opt(rope.freqs.as_ref());
        // SAFETY: the pointer is null or borrowed from an array that outlives the call.
        let result = unsafe {
            ffi::rope(
                &self.0,
                rope.dims,
                rope.traditional,
                rope.base,
                rope.scale,
                &positions.0,
                freqs,
            )
        };
        Array::wrap("rope_rows", &[self, positions], result)
    }

    /// softmax(scale · q kᵀ) v with `self` as q `[B, H, L, D]`, keys `[B, K, T, D]`, values `[B, K,
    /// T, V]`. Query head h reads key head h / (H/K). `sinks` `[H]` adds a logit without value to
    /// each row's softmax.
    pub fn attention(
        &self,
        keys: &Array,
        values: &Array,
        scale: f32,
        attend: Attend<'_>,
        sinks: Option<&Array>,
    ) -> Result<Array> {
        let (mode, mask) = match attend {
            Attend::All => ("", None),
            Attend::Causal => ("causal", None),
            Attend::Mask(mask) => ("array", Some(mask)),
        };
        // SAFETY: the pointers are null or borrowed from arrays that outlive the call.
        let result = unsafe {
            ffi::attention(&self.0, &keys.0, &values.0, scale, mode, opt(mask), opt(sinks))
        };
        Array::wrap("attention", &shown(self, &[Some(keys), Some(values), mask, sinks]), result)
    }

    /// The gated delta rule, `self` being q `[B, T, Hk, Dk]`; k like q; v `[B, T, Hv, Dv]`; decay
    /// `gates` (linear, not log) and `beta` `[B, T, Hv]`; state `[B, Hv, Dv, Dk]`. Neither
    /// normalises nor scales q and k. Returns the outputs and the last state.
    pub fn gated_delta_update(
        &self,
        k: &Array,
        v: &Array,
        gates: &Array,
        beta: &Array,
        state: Option<&Array>,
    ) -> Result<(Array, Array)> {
        // SAFETY: the pointers are null or borrowed from arrays that outlive the call.
        let result = unsafe {
            ffi::gated_delta_update(
                &self.0,
                &k.0,
                &v.0,
                &gates.0,
                &beta.0,
                opt(state),
                std::ptr::null(),
            )
        };
        let inputs = shown(self, &[Some(k), Some(v), Some(gates), Some(beta), state]);
        let mut parts = unlist("gated_delta_update", &inputs, result)?.into_iter();
        match (parts.next(), parts.next()) {
            (Some(outputs), Some(state)) => Ok((outputs, state)),
            _ => unreachable!("MLX returns outputs and state"),
        }
    }
}

/// The inputs that are there, for an error message.
pub(crate) fn shown<'a>(first: &'a Array, rest: &[Option<&'a Array>]) -> Vec<&'a Array> {
    std::iter::once(first).chain(rest.iter().flatten().copied()).collect()
}
