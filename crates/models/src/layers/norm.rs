//! Root-mean-square norm.

use mlx::Array;

use crate::Result;

/// x / √(mean(x²) + ε) · weight.
#[derive(Debug)]
pub struct RmsNorm {
    /// `[E]`, in the activations' dtype: a wider one would widen the rest of the model.
    pub weight: Array,
    /// ε.
    pub eps: f32,
}

impl RmsNorm {
    /// Over the last axis.
    pub fn forward(&self, x: &Array) -> Result<Array> {
        Ok(x.rms_norm(Some(&self.weight), self.eps)?)
    }
}
