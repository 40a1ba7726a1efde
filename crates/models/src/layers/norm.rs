//! Root-mean-square norm.

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
        Ok(x.rms_norm(Some(&self.weight), self.eps)?.astype(x.dtype())?)
    }
}
