//! Norm and turn of heads in MLX's operations.

use mlx::{Array, Result};

use super::{Heads, Sizes};
use crate::Positions;

pub(super) fn run(heads: &Heads<'_>, s: Sizes) -> Result<Array> {
    let mut x = heads.x.reshape(&[s.rows, s.tokens, heads.n_heads, s.group])?;
    if s.group != heads.head_dim {
        x = x.slice_axis(3, heads.begin..heads.begin + heads.head_dim)?;
    }
    let mut x = x.swap_axes(1, 2)?; // [B, n, L, D]
    if let Some(norm) = &heads.norm {
        x = x.rms_norm(Some(norm.weight), norm.eps)?.astype(x.dtype())?;
    }
    let rope = &heads.rotation.mlx;
    let turned = match heads.positions {
        Positions::Same(position) => x.rope(rope, position)?,
        Positions::Rows { positions, .. } => x.rope_rows(rope, positions)?,
    };
    match &heads.rotation.factor {
        None => Ok(turned),
        Some((_, factors)) => turned.mul(&factors.astype(x.dtype())?),
    }
}
