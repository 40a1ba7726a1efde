//! Pools of blocks on CUDA. One new token of each row, in 16 bits: one launch writes it and attends
//! through the table; more of them: `flash.rs`. Otherwise one launch writes the new tokens and lays
//! out each row, then attention over rows runs, mostly by MLX's own.
//!
//! MLX writes in place only what no launch under way still reads, and copies the whole array
//! otherwise: a pool would be copied in every layer of every step. So the launch writes into its
//! input. That is sound as long as each pool is extended once between two evaluations, and read by
//! that launch alone, which one pass over a model's layers does: launches of one evaluation come
//! after those of the one before.

use std::cell::OnceCell;

use mlx::{Array, Dtype, Launch, Result};

use super::flash::Many;
use super::{Attended, Cache, Layout, SelfAttention};
use crate::Positions;
use crate::cuda::{Kernel, MULTIPROCESSORS, shared_limit_bytes};
use crate::rope::{Heads, turn_both};

const THREADS: i32 = 256;
/// Bytes that a thread moves at once, at most.
const RUN_BYTES: i32 = 16;

/// Parts of one row's tokens, at most, as the sources have it: the last to end joins them alone.
const MAX_PARTS: i32 = 64;
/// Tokens that a warp takes at a time, query heads that share them, and steps of tokens in shared
/// memory, as `attend.cu` has them.
const TILE: i32 = 16;
const STAGES: i32 = 2;
/// Rows times heads of keys, times sixteens of the query heads that share one, that may wait for
/// each other.
pub(super) const N_TICKETS: i32 = 4096;

pub(super) fn run(a: &SelfAttention<'_>, cache: Cache) -> Result<Attended> {
    let Layout::Blocks { begins, .. } = a.layout else {
        unreachable!("rows are not attended over this way")
    };
    let positions = Positions::Rows { positions: begins, lengths: None };
    let [q, k] = turn_both(&Heads { positions, ..a.q }, &a.k)?;
    let (new, pools) = ([&k, a.v], [&cache.keys, &cache.values]);
    let (one, many) = (One::over(&q, &cache), Many::over(&q, pools));
    let call = Call { layout: a.layout, window: a.window, scale: a.scale, sinks: a.sinks };
    if one.fits() {
        let out = attend_one(&one, &q, new, pools, &call)?;
        return Ok(Attended { out, cache });
    }
    if many.fits() {
        let out = many.attend(&q, new, pools, &call)?;
        return Ok(Attended { out, cache });
    }
    let keys = extend(&cache.keys, &k, true, a.layout, a.window)?;
    let values = extend(&cache.values, a.v, false, a.layout, a.window)?;
    let out = a.over_rows(&q, &keys, &values).run()?;
    Ok(Attended { out, cache })
}

/// The sizes of attention of one new token per row.
struct One {
    rows: i32,
    tokens: i32,
    heads: i32,
    kv_heads: i32,
    key_dim: i32,
    value_dim: i32,
    block: i32,
    dtype: Dtype,
}

impl One {
    /// Of queries `[B, H, L, D]` over keys and values.
    fn over(q: &Array, cache: &Cache) -> Self {
        let [rows, heads, tokens, key_dim] = [0, 1, 2, 3].map(|axis| q.dim(axis));
        Self {
            rows,
            tokens,
            heads,
            kv_heads: cache.keys.dim(1),
            key_dim,
            value_dim: cache.values.dim(3),
            block: cache.keys.dim(2),
            dtype: q.dtype(),
        }
    }

    /// Of a row, blocks of threads that each see all of its tokens.
    fn groups(&self) -> i32 {
        self.kv_heads * ((self.heads / self.kv_heads + TILE - 1) / TILE)
    }

    /// As many as have registers for their sums, and room.
    fn warps(&self) -> i32 {
        let most = if self.value_dim <= 128 { 8 } else { 4 };
        let fits = |warps: &i32| self.shared_bytes(*warps) <= shared_limit_bytes();
        [8, 4, 2].into_iter().filter(|warps| *warps <= most).find(fits).unwrap_or(0)
    }

    fn shared_bytes(&self, warps: i32) -> i32 {
        let tiles = STAGES * TILE * 2 * (self.key_dim + 8 + self.value_dim + 8);
        let sums = TILE * 4 * (self.value_dim + 8);
        TILE * 2 * (self.key_dim + 8) + warps * (tiles.max(sums) + 2 * TILE * 4)
    }

    /// Whether there is a form for them.
    fn fits(&self) -> bool {
        self.tokens == 1
            && matches!(self.dtype, Dtype::Bf16 | Dtype::F16)
            && self.key_dim % 16 == 0
            && (16..=256).contains(&self.key_dim)
            && [64, 128, 256].contains(&self.value_dim)
            && self.block % TILE == 0
            && self.rows * self.groups() <= N_TICKETS
            && self.warps() > 0
    }

    /// Over at most `n_tokens` of every row.
    fn launch(&self, kernel: &Kernel<'_>, n_tokens: i32, sink_dtype: Dtype) -> Result<Array> {
        let warps = self.warps();
        let parts = parts(self.rows * self.groups(), n_tokens / (TILE * warps) + 1);
        let kept = if parts > 1 { parts } else { 0 };
        let launch = Launch {
            outputs: &[
                (&[self.rows, 1, self.heads * self.value_dim], self.dtype),
                (&[self.rows, self.heads, kept, self.value_dim], Dtype::F32),
                (&[self.rows, self.heads, kept, 2], Dtype::F32),
            ],
            grid: [self.groups() * 32 * warps, self.rows, parts],
            group: [32 * warps, 1, 1],
            ints: &[
                ("HEADS", self.heads),
                ("KV", self.kv_heads),
                ("DK", self.key_dim),
                ("DV", self.value_dim),
                ("BLOCK", self.block),
                ("WARPS", warps),
                ("STAGES", STAGES),
            ],
            dtypes: &[("T", self.dtype), ("S", sink_dtype)],
        };
        // Pools, tables and sinks are there before; queries and new tokens are not.
        let made = kernel.launch_early(&launch, 3)?;
        Ok(made.into_iter().next().expect("three outputs were asked for"))
    }
}

/// How many blocks of threads share each of `groups` rows of work that take `n_steps` steps of
/// theirs at most: as many as end soonest, when the device runs [`MULTIPROCESSORS`] at a time and
/// joining takes as long as two steps.
pub(super) fn parts(groups: i32, n_steps: i32) -> i32 {
    let rounds = |parts: i32| (groups * parts + MULTIPROCESSORS - 1) / MULTIPROCESSORS;
    let each = |parts: i32| (n_steps + parts - 1) / parts + if parts > 1 { 2 } else { 0 };
    let most = (MULTIPROCESSORS / groups).max(4).min(n_steps).min(MAX_PARTS);
    (1..=most).min_by_key(|&parts| rounds(parts) * each(parts)).unwrap_or(1)
}

thread_local! {
    /// Zeros with which blocks of threads find out which is the last; they leave zeros behind.
    static TICKETS: OnceCell<Array> = const { OnceCell::new() };
}

pub(super) fn tickets() -> Result<Array> {
    TICKETS.with(|tickets| match tickets.get() {
        Some(tickets) => Ok(tickets.clone()),
        None => {
            let zeros = Array::zeros(&[N_TICKETS], Dtype::U32)?;
            zeros.eval()?;
            Ok(tickets.get_or_init(|| zeros).clone())
        }
    })
}

/// What attention is told beside arrays of tokens.
pub(super) struct Call<'a> {
    pub layout: Layout<'a>,
    pub window: Option<i32>,
    pub scale: f32,
    pub sinks: Option<&'a Array>,
}

/// Attention of one new token per row, `new` keys and values, which are written into the pools on
/// the way: `[B, 1, H·Dv]`.
fn attend_one(
    s: &One,
    q: &Array,
    new: [&Array; 2],
    pools: [&Array; 2],
    a: &Call<'_>,
) -> Result<Array> {
    let Layout::Blocks { table, slots, begins } = a.layout else {
        unreachable!("rows are not attended over this way")
    };
    let (window, scale) = (a.window.unwrap_or(0), a.scale);
    let n_tokens = table.dim(1) * s.block;
    let n_seen = if window > 0 { n_tokens.min(window) } else { n_tokens };
    let tickets = tickets()?;
    let (sinks, sink_dtype) = match a.sinks {
        Some(sinks) => ("sinks", sinks.dtype()),
        None => ("static_cast<const T*>(nullptr)", s.dtype),
    };
    let shared_bytes = s.shared_bytes(s.warps());
    let has_sinks = u8::from(a.sinks.is_some());
    let kernel = Kernel {
        name: format!("offshoot_attend_{window}_{:x}_{shared_bytes}_{has_sinks}", scale.to_bits()),
        source: concat!(
            include_str!("../cuda/tiles.cuh"),
            include_str!("parts.cuh"),
            include_str!("attend.cu")
        ),
        inputs: vec![
            ("q", Some(q)),
            ("new_keys", Some(new[0])),
            ("new_values", Some(new[1])),
            ("keys", Some(pools[0])),
            ("values", Some(pools[1])),
            ("table", Some(table)),
            ("slots", Some(slots)),
            ("begins", Some(begins)),
            ("sinks", a.sinks),
            ("tickets", Some(&tickets)),
        ],
        outputs: vec!["out", "part_out", "part_sums"],
        call: &|| {
            format!(
                "offshoot::attend<HEADS, KV, DK, DV, BLOCK, WARPS, STAGES, T, S>(q, new_keys, \
                 new_values, keys, values, table, slots, begins, {sinks}, tickets, out, part_out, \
                 part_sums, table_shape[1], {window}, {scale:e}f);"
            )
        },
        shared_bytes,
    };
    s.launch(&kernel, n_seen, sink_dtype)
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
