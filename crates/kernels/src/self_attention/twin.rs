//! The parts one after another.

use mlx::{Array, Result};

use super::{Attended, Cache, SelfAttention};
use crate::rope::Heads;
use crate::{Attention, Kv};

pub(super) fn run(
    a: &SelfAttention<'_>,
    cache: Cache,
    turn: fn(&Heads<'_>) -> Result<Array>,
    attend: fn(&Attention<'_>) -> Result<Array>,
) -> Result<Attended> {
    let (q, k) = (turn(&a.q)?, turn(&a.k)?);
    let heads = [a.v.dim(0), a.v.dim(1), a.k.n_heads, cache.values.dim(3)];
    let v = a.v.reshape(&heads)?.swap_axes(1, 2)?; // [B, K, L, Dv]
    let begins = match a.q.positions {
        crate::Positions::Same(position) => vec![position],
        crate::Positions::Rows { .. } => a.begins.unwrap_or_default().to_vec(),
    };
    let (keys, values) = (written(cache.keys, &k, &begins)?, written(cache.values, &v, &begins)?);
    // Shorter, so that MLX's attention does not read what is not filled.
    let end = begins.iter().max().map_or(0, |begin| begin + k.dim(2));
    let (filled_keys, filled_values) = (keys.slice_axis(2, 0..end)?, values.slice_axis(2, 0..end)?);
    let attention = Attention {
        q: &q,
        kv: Kv::Rows { keys: &filled_keys, values: &filled_values, first_key: 0 },
        scale: a.scale,
        positions: a.q.positions,
        window: a.window,
        sinks: a.sinks,
        masks: a.masks,
    };
    let out = attend(&attention)?;
    Ok(Attended { out, cache: Cache { keys, values } })
}

/// `buffer` with `new` `[B, K, L, D]` from token `begins[b]` of row b on, or of all rows. Its
/// handle is gone by the time of evaluation, so that MLX writes in place.
fn written(buffer: Array, new: &Array, begins: &[i32]) -> Result<Array> {
    let [_, n_heads, n, dim] = [0, 1, 2, 3].map(|axis| new.dim(axis));
    let write = |buffer: Array, new: &Array, first: i32, begin: i32| {
        let stop = [first + new.dim(0), n_heads, begin + n, dim];
        buffer.slice_update(new, &[first, 0, begin, 0], &stop)
    };
    if let [begin] = begins {
        return write(buffer, new, 0, *begin);
    }
    (0..).zip(begins).try_fold(buffer, |buffer, (row, &begin)| {
        write(buffer, &new.slice_axis(0, row..row + 1)?, row, begin)
    })
}
