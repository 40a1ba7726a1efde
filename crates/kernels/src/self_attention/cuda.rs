//! Pools of blocks on CUDA: one launch writes the new tokens and lays out each row, then MLX's own
//! attention runs over rows.
//!
//! MLX writes in place only what no launch under way still reads, and copies the whole array
//! otherwise: a pool would be copied in every layer of every step. So the launch writes into its
//! input. That is sound as long as each pool is extended once between two evaluations, which one
//! pass over a model's layers does: launches of one evaluation come after those of the one before.

use mlx::{Array, Launch, Result};

use super::{Attended, Cache, Layout, SelfAttention, attend_over_rows};
use crate::cuda::Kernel;

const THREADS: i32 = 256;
/// Bytes that a thread moves at once, at most.
const RUN_BYTES: i32 = 16;

pub(super) fn run(a: &SelfAttention<'_>, cache: Cache) -> Result<Attended> {
    let (q, k) = (a.q.turn()?, a.k.turn()?);
    let keys = extend(&cache.keys, &k, true, a.layout, a.window)?;
    let values = extend(&cache.values, a.v, false, a.layout, a.window)?;
    let out = attend_over_rows(a, &q, &keys, &values)?;
    Ok(Attended { out, cache })
}

/// All tokens of each row `[B, K, T, D]`, T as many as the table has room for, after the new ones
/// are written into the pool: `[B, K, L, D]` if `by_head`, else `[B, L, K·D]`. Tokens that no query
/// of a `window` sees are zero.
pub(super) fn extend(
    pool: &Array,
    new: &Array,
    by_head: bool,
    layout: Layout<'_>,
    window: Option<i32>,
) -> Result<Array> {
    let Layout::Blocks { table, slots, begins } = layout else {
        unreachable!("rows are not extended this way")
    };
    let [n_heads, n, dim] = [1, 2, 3].map(|axis| pool.dim(axis));
    let (rows, width) = (table.dim(0), table.dim(1));
    let widest = RUN_BYTES / pool.dtype().size_bytes() as i32;
    let run = (1..=widest).rev().find(|run| run.count_ones() == 1 && dim % run == 0).unwrap_or(1);
    let window = window.unwrap_or(0);
    let kernel = Kernel {
        name: format!("offshoot_extend_{window}"),
        source: include_str!("extend.cu"),
        inputs: vec![
            ("pool", Some(pool)),
            ("fresh", Some(new)),
            ("table", Some(table)),
            ("slots", Some(slots)),
            ("begins", Some(begins)),
        ],
        outputs: vec!["out"],
        call: &|| {
            format!(
                "offshoot::extend<HEADS, DIM, BLOCK, RUN, BY_HEAD, T>(pool, fresh, table, slots, \
                 begins, out, slots_shape[1], table_shape[1], {window});"
            )
        },
        shared_bytes: 0,
    };
    let n_threads = width * n * n_heads * (dim / run);
    let shape = [rows, n_heads, width * n, dim];
    let made = kernel.launch(&Launch {
        outputs: &[(&shape, pool.dtype())],
        grid: [(n_threads + THREADS - 1) / THREADS * THREADS, rows, 1],
        group: [THREADS, 1, 1],
        ints: &[
            ("HEADS", n_heads),
            ("DIM", dim),
            ("BLOCK", n),
            ("RUN", run),
            ("BY_HEAD", i32::from(by_head)),
        ],
        dtypes: &[("T", pool.dtype())],
    })?;
    Ok(made.into_iter().next().expect("one output was asked for"))
}
