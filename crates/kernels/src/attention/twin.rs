//! Attention as it is defined: all scores, a mask, a softmax, a weighted sum.

use mlx::{Array, Dtype, Result, concatenate};

use super::{Attention, Kv, Masks, Positions, Sizes};
use crate::blocks;

pub(super) fn run(a: &Attention<'_>, s: Sizes) -> Result<Array> {
    let (first, share) = (a.kv.first_key(), s.share());
    let mask = Masks::default().get(a, s, a.window, (first, first + s.keys))?;
    let (keys, values) = laid_out(a)?;
    // What lies behind the last query is not defined: 0 in its place, which no query sees.
    let end = match a.positions {
        Positions::Same(position) => Array::from_slice(&[position + s.queries], &[1])?,
        Positions::Rows { positions, .. } => {
            positions.add(&Array::from_slice(&[s.queries], &[])?)?
        }
    };
    let at = Array::arange(f64::from(first), f64::from(first + s.keys), 1.0, Dtype::I32)?;
    let defined = at.lt(&end.expand_dims(&[1])?)?.expand_dims(&[1, 3])?; // [B or 1, 1, T, 1]
    let by_group = |x: Array| {
        let x = defined.select(&x, &Array::scalar(0.0, x.dtype())?)?.astype(Dtype::F32)?;
        x.expand_dims(&[2])
    };
    let (keys, values) = (by_group(keys)?, by_group(values)?); // [B, K, 1, T, D]

    let shape = [s.rows, s.kv_heads, share, s.queries, s.dim];
    let q = a.q.astype(Dtype::F32)?.scale(a.scale)?.reshape(&shape)?;
    let scores = q.matmul(&keys.swap_axes(-1, -2)?)?; // [B, K, H/K, L, T]
    let mask = if mask.n_dims() == 2 { mask } else { mask.expand_dims(&[2])? };
    let mut scores = mask.select(&scores, &Array::scalar(f32::NEG_INFINITY, Dtype::F32)?)?;
    if let Some(sinks) = a.sinks {
        let sinks = sinks.astype(Dtype::F32)?.reshape(&[1, s.kv_heads, share, 1, 1])?;
        let column = [s.rows, s.kv_heads, share, s.queries, 1];
        scores = concatenate(&[&scores, &sinks.broadcast_to(&column)?], -1)?;
    }
    let weights = scores.softmax(&[-1])?.slice_axis(-1, 0..s.keys)?;
    let out = weights.matmul(&values)?; // [B, K, H/K, L, Dv]
    out.transpose(&[0, 3, 1, 2, 4])?.reshape(&s.out())?.astype(a.q.dtype())
}

/// Keys and values `[B, K, T, D]`, gathered from blocks if they lie there.
pub(super) fn laid_out(a: &Attention<'_>) -> Result<(Array, Array)> {
    match a.kv {
        Kv::Rows { keys, values, .. } => Ok((keys.clone(), values.clone())),
        Kv::Blocks { keys, values, table } => {
            Ok((blocks::laid_out(keys, table)?, blocks::laid_out(values, table)?))
        }
    }
}
