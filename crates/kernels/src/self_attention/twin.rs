//! The parts one after another.

use mlx::{Array, Result};

use super::{Attended, Cache, Layout, SelfAttention};
use crate::rope::Heads;
use crate::{Attention, Kv};

pub(super) fn run(
    a: &SelfAttention<'_>,
    cache: Cache,
    turn: fn(&Heads<'_>) -> Result<Array>,
    attend: fn(&Attention<'_>) -> Result<Array>,
) -> Result<Attended> {
    let (q, k) = (turn(&a.q)?, turn(&a.k)?);
    let (keys, values) = match a.layout {
        Layout::Rows { .. } => {
            let begins = a.begins().unwrap_or_default();
            let heads = [a.v.dim(0), a.v.dim(1), a.k.n_heads, cache.values.dim(3)];
            let v = a.v.reshape(&heads)?.swap_axes(1, 2)?; // [B, K, L, Dv]
            (write_rows(cache.keys, &k, &begins)?, write_rows(cache.values, &v, &begins)?)
        }
        Layout::Blocks { slots, .. } => {
            let [rows, n] = [a.v.dim(0), a.v.dim(1)];
            let k = k.swap_axes(1, 2)?.reshape(&[rows, n, -1])?;
            (write_slots(&cache.keys, &k, slots)?, write_slots(&cache.values, a.v, slots)?)
        }
    };
    let cache = Cache { keys, values };
    let out = attend_over(a, &cache, &q, attend)?;
    Ok(Attended { out, cache })
}

fn attend_over(
    a: &SelfAttention<'_>,
    cache: &Cache,
    q: &Array,
    attend: fn(&Attention<'_>) -> Result<Array>,
) -> Result<Array> {
    let with = |kv: Kv<'_>| {
        attend(&Attention {
            q,
            kv,
            scale: a.scale,
            positions: a.q.positions,
            window: a.window,
            sinks: a.sinks,
            masks: a.masks,
        })
    };
    match a.layout {
        Layout::Blocks { table, .. } => {
            with(Kv::Blocks { keys: &cache.keys, values: &cache.values, table })
        }
        Layout::Rows { .. } => {
            // Shorter, so that MLX's attention does not read what is not filled.
            let last = a.begins().into_iter().flatten().max().unwrap_or(0);
            let filled = |x: &Array| x.slice_axis(2, 0..last + q.dim(2));
            let (keys, values) = (filled(&cache.keys)?, filled(&cache.values)?);
            with(Kv::Rows { keys: &keys, values: &values, first_key: 0 })
        }
    }
}

/// What goes nowhere goes to the last slot.
pub(super) fn write_slots(pool: &Array, new: &Array, slots: &Array) -> Result<Array> {
    let [n_blocks, n_heads, n, dim] = [0, 1, 2, 3].map(|axis| pool.dim(axis));
    let number = |x: i32| Array::from_slice(&[x as u32], &[]);
    let slots = slots.flatten(0, 1)?.minimum(&number(n_blocks * n - 1)?)?;
    let (block, place) = (slots.floor_div(&number(n)?)?, slots.rem(&number(n)?)?);
    let rows = new.reshape(&[-1, 1, n_heads, 1, dim])?; // [B·L, 1, K, 1, D]
    pool.scatter(&[&block, &place], &rows, &[0, 2])
}

/// `buffer` `[B, K, T, D]` with `new` `[B, K, L, D]` from token `begins[b]` of row b on, or from
/// the one number of all rows. Written in place if nothing else holds the buffer at evaluation.
///
/// # Errors
/// The new tokens do not fit into the buffer.
pub fn write_rows(buffer: Array, new: &Array, begins: &[i32]) -> Result<Array> {
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
