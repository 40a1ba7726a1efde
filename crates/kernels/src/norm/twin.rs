//! Norms in MLX's operations.

use mlx::{Array, Dtype, Result};

use super::Norm;

pub(super) fn run(norm: &Norm<'_>) -> Result<(Array, Option<Array>)> {
    let dtype = norm.x.dtype();
    let sum = norm.added.map(|y| norm.x.add(y)).transpose()?;
    let x = sum.as_ref().unwrap_or(norm.x);
    let mut normed = x.rms_norm(norm.weight, norm.eps)?.astype(dtype)?;
    if norm.factor != 1.0 {
        normed = normed.scale(norm.factor)?;
    }
    if let Some(gate) = norm.gate {
        let gate = gate.astype(Dtype::F32)?.silu()?;
        normed = normed.astype(Dtype::F32)?.mul(&gate)?.astype(dtype)?;
    }
    Ok((normed, sum))
}
