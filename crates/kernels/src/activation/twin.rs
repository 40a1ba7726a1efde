//! Activations in MLX's operations.

use mlx::{Array, Result};

use super::Rule;

pub(super) fn run(rule: Rule, gate: &Array, up: &Array) -> Result<Array> {
    match rule {
        Rule::SwiGlu => gate.silu()?.mul(up),
        Rule::GeGlu => gate.gelu_tanh()?.mul(up),
        Rule::Clamped { alpha, limit } => {
            let (low, high) =
                (Array::scalar(-limit, up.dtype())?, Array::scalar(limit, up.dtype())?);
            let gate = gate.clip(None, Some(&high))?;
            let up = up.clip(Some(&low), Some(&high))?;
            up.offset(1.0)?.mul(&gate.mul(&gate.scale(alpha)?.sigmoid()?)?)
        }
        Rule::Sigmoid => up.mul(&gate.reshape(up.shape())?.sigmoid()?),
    }
}
