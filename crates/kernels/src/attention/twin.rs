//! Attention as it is defined: all scores, a mask, a softmax, a weighted sum.

use mlx::{Array, Dtype, Result, concatenate};

use super::{Attention, Kv, Masks, Positions, Sizes};
use crate::blocks;

pub(super) fn run(a: &Attention<'_>, s: Sizes, masks: &Masks) -> Result<Array> {
    let (first, share) = (a.kv.first_key(), s.share());
    let mask = masks.get(a, s, a.window, (first, first + s.keys))?;
    let (keys, values) = defined(a, s)?;
    let by_group = |x: Array| x.astype(Dtype::F32)?.expand_dims(&[2]);
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

/// Keys and values `[B, K, T, D]` with 0 for what lies behind a row's last query that counts: it
/// may be anything, and a weight of 0 makes no 0 of it.
pub(super) fn defined(a: &Attention<'_>, s: Sizes) -> Result<(Array, Array)> {
    let number = |n: i32| Array::from_slice(&[n], &[]);
    let end = match a.positions {
        Positions::Same(position) => Array::from_slice(&[position + s.queries], &[1])?,
        Positions::Rows { positions, lengths: None } => positions.add(&number(s.queries)?)?,
        Positions::Rows { positions, lengths: Some(lengths) } => {
            // A row of which nothing counts may stand anywhere.
            lengths.gt(&number(0)?)?.select(&positions.add(lengths)?, &number(0)?)?
        }
    };
    let first = a.kv.first_key();
    let at = Array::arange(f64::from(first), f64::from(first + s.keys), 1.0, Dtype::I32)?;
    let is_defined = at.lt(&end.expand_dims(&[1])?)?.expand_dims(&[1, 3])?; // [B or 1, 1, T, 1]
    let (keys, values) = laid_out(a)?;
    let or_zero = |x: Array| is_defined.select(&x, &Array::scalar(0.0, x.dtype())?);
    Ok((or_zero(keys)?, or_zero(values)?))
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
