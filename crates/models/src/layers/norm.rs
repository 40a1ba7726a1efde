//! Root-mean-square norm.

use kernels::norm;
use mlx::Array;

use crate::Result;

/// x / √(mean(x²) + ε) · weight.
#[derive(Debug)]
pub struct RmsNorm {
    /// `[E]`, in the activations' dtype or in f32.
    pub weight: Array,
    /// ε.
    pub eps: f32,
}

impl RmsNorm {
    /// Over the last axis, in the dtype of x: a wider weight must not widen the rest of the model.
    pub fn forward(&self, x: &Array) -> Result<Array> {
        Ok(norm::rms_norm(x, Some(&self.weight), self.eps)?)
    }

    /// h = x + y, and the norm of h.
    pub fn of_sum(&self, x: &Array, y: &Array) -> Result<[Array; 2]> {
        let added = norm::add_rms_norm(x, y, Some(&self.weight), self.eps)?;
        Ok([added.sum, added.normed])
    }

    /// The norm of x, times silu(gate).
    pub fn gated(&self, x: &Array, gate: &Array) -> Result<Array> {
        Ok(norm::gated_rms_norm(x, gate, Some(&self.weight), self.eps)?)
    }
}
