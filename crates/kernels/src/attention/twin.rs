//! Attention as it is defined: all scores, a mask, a softmax, a weighted sum.

use mlx::{Array, Dtype, Result, concatenate};

use super::{Attention, Kv, Masks, Positions, Sizes};

pub(super) fn run(a: &Attention<'_>, s: Sizes) -> Result<Array> {
    let (first, share) = (a.kv.first_key(), s.share());
    let mask = Masks::default().get(a, s, a.window, (first, first + s.keys))?;
    let (keys, values) = laid_out(a, s)?;
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
pub(super) fn laid_out(a: &Attention<'_>, s: Sizes) -> Result<(Array, Array)> {
    let (pool, table) = match a.kv {
        Kv::Rows { keys, values, .. } => return Ok((keys.clone(), values.clone())),
        Kv::Blocks { keys, table, .. } => (keys, table),
    };
    let (n_blocks, block) = (pool.dim(0), pool.dim(1));
    // Entries that no query needs may be anything: block 0 in their place.
    let known = table.lt(&Array::from_slice(&[n_blocks as u32], &[])?)?;
    let table = known.select(table, &Array::from_slice(&[0u32], &[])?)?;
    let gather = |pool: &Array| {
        let blocks = pool.take(&table, 0)?; // [B, max, n, K, D]
        let shape = [s.rows, table.dim(1) * block, s.kv_heads, pool.dim(3)];
        blocks.reshape(&shape)?.swap_axes(1, 2)
    };
    let (keys, values) = a.kv.both();
    Ok((gather(keys)?, gather(values)?))
}
