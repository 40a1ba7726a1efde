//! Many new tokens per row on CUDA, in 16 bits: one launch writes them into their pools, one
//! attends through the table. Both are compiled once for a layer's sizes, whatever the prompts'
//! lengths: MLX's attention is compiled for each number of queries and keys, which takes 50 ms on
//! an H200.
//!
//! `flash.cu` is for all tensor cores of 16 bits, `flash_groups.cu` for Hopper's and heads of 64 or
//! 128 elements.

use mlx::{Array, Dtype, Launch, Result};

use super::Layout;
use super::cuda::{Call, N_TICKETS, tickets};
use crate::cuda::{Kernel, MULTIPROCESSORS, has_warp_groups, shared_limit_bytes};

const THREADS: i32 = 256;
/// Elements that a thread writes.
const RUN: i32 = 8;
/// Parts of one row's tokens, at most: the last one to end joins them alone.
const MAX_PARTS: i32 = 32;
/// Tiles of keys below which a part is not worth joining.
const MIN_TILES: i32 = 4;

const SINGLE: &str =
    concat!(include_str!("../cuda/tiles.cuh"), include_str!("parts.cuh"), include_str!("flash.cu"));
const GROUPED: &str = concat!(
    include_str!("../cuda/tiles.cuh"),
    include_str!("parts.cuh"),
    include_str!("flash.cu"),
    include_str!("flash_groups.cu")
);

/// The sizes of a call.
pub(super) struct Many {
    rows: i32,
    tokens: i32,
    heads: i32,
    kv_heads: i32,
    key_dim: i32,
    value_dim: i32,
    block: i32,
    dtype: Dtype,
}

impl Many {
    /// Of queries `[B, H, L, D]` over pools of keys and of values.
    pub fn over(q: &Array, [keys, values]: [&Array; 2]) -> Self {
        let [rows, heads, tokens, key_dim] = [0, 1, 2, 3].map(|axis| q.dim(axis));
        let (kv_heads, block, value_dim) = (keys.dim(1), keys.dim(2), values.dim(3));
        Self { rows, tokens, heads, kv_heads, key_dim, value_dim, block, dtype: q.dtype() }
    }

    /// Whether there is a form for them.
    pub fn fits(&self) -> bool {
        let is_fine = |dim: i32| dim % 16 == 0 && (16..=256).contains(&dim);
        matches!(self.dtype, Dtype::Bf16 | Dtype::F16)
            && is_fine(self.key_dim)
            && is_fine(self.value_dim)
            && self.shared_bytes() <= shared_limit_bytes()
    }

    /// Whether groups of warps multiply.
    fn is_grouped(&self) -> bool {
        let fits = |dim| matches!(dim, 64 | 128);
        has_warp_groups() && fits(self.key_dim) && fits(self.value_dim)
    }

    fn is_wide(&self) -> bool {
        self.key_dim.max(self.value_dim) > 128
    }

    /// Query heads of all new tokens over one head of keys.
    fn queries(&self) -> i32 {
        self.tokens * (self.heads / self.kv_heads)
    }

    /// Of a block of threads, each of which has sixteen queries.
    fn warps(&self) -> i32 {
        if self.is_wide() || self.queries() <= 64 { 4 } else { 8 }
    }

    /// Keys that are read at once.
    fn tile(&self) -> i32 {
        if self.is_wide() { 32 } else { 64 }
    }

    /// As the sources lay it out.
    fn shared_bytes(&self) -> i32 {
        let of_queries = 2 * 16 * self.warps() * (self.key_dim + 8);
        let of_tiles = |padding| 2 * 2 * self.tile() * (self.key_dim + self.value_dim + padding);
        if self.is_grouped() {
            return 1024 + of_queries.max(of_tiles(0));
        }
        match self.key_dim {
            ..=128 => of_queries.max(of_tiles(16)),
            _ => of_queries + of_tiles(16),
        }
    }

    /// Blocks of threads side by side that share a row's queries.
    fn tiles(&self) -> i32 {
        let queries = 16 * self.warps();
        (self.queries() + queries - 1) / queries
    }

    /// Among how many blocks of threads the keys of as many as `n_keys` tokens are shared out.
    fn parts(&self, n_keys: i32) -> i32 {
        let groups = self.rows * self.kv_heads * self.tiles();
        if groups > N_TICKETS {
            return 1;
        }
        (MULTIPROCESSORS / groups).min(n_keys / self.tile() / MIN_TILES).clamp(1, MAX_PARTS)
    }

    /// Writes `new` keys `[B, K, L, D]` and values `[B, L, K·Dv]` into the pools, in place. What
    /// comes back is there when they are.
    fn write(&self, new: [&Array; 2], pools: [&Array; 2], slots: &Array) -> Result<Array> {
        let kernel = Kernel {
            name: "offshoot_write_new".to_owned(),
            source: include_str!("write.cu"),
            inputs: vec![
                ("keys", Some(pools[0])),
                ("values", Some(pools[1])),
                ("new_keys", Some(new[0])),
                ("new_values", Some(new[1])),
                ("slots", Some(slots)),
            ],
            outputs: vec!["done"],
            call: &|| {
                "offshoot::write_new<HEADS, DK, DV, BLOCK>(keys, values, new_keys, new_values, \
                 slots, done, slots_shape[0], slots_shape[1]);"
                    .to_owned()
            },
            shared_bytes: 0,
        };
        let widest = self.key_dim.max(self.value_dim);
        let n_threads = self.rows * self.tokens * self.kv_heads * (widest / RUN);
        let made = kernel.launch(&Launch {
            outputs: &[(&[1], Dtype::U32)],
            grid: [(n_threads + THREADS - 1) / THREADS * THREADS, 2, 1],
            group: [THREADS, 1, 1],
            ints: &[
                ("HEADS", self.kv_heads),
                ("DK", self.key_dim),
                ("DV", self.value_dim),
                ("BLOCK", self.block),
            ],
            dtypes: &[],
        })?;
        Ok(made.into_iter().next().expect("one output was asked for"))
    }

    /// Attention of the queries over pools that gain `new` keys and values on the way:
    /// `[B, L, H·Dv]`.
    pub fn attend(
        &self,
        q: &Array,
        new: [&Array; 2],
        pools: [&Array; 2],
        a: &Call<'_>,
    ) -> Result<Array> {
        let Layout::Blocks { table, slots, begins } = a.layout else {
            unreachable!("rows are not attended over this way")
        };
        let written = self.write(new, pools, slots)?;
        let tickets = tickets()?;
        let (sinks, sink_dtype) = match a.sinks {
            Some(sinks) => ("sinks", sinks.dtype()),
            None => ("static_cast<const T*>(nullptr)", self.dtype),
        };
        let (window, scale, shared_bytes) = (a.window.unwrap_or(0), a.scale, self.shared_bytes());
        let n_keys = table.dim(1) * self.block;
        let n_keys = if window > 0 { n_keys.min(window + self.tokens) } else { n_keys };
        let parts = self.parts(n_keys);
        let has_sinks = u32::from(a.sinks.is_some());
        let (function, source) = match self.is_grouped() {
            true => ("flash_groups", GROUPED),
            false => ("flash", SINGLE),
        };
        let kernel = Kernel {
            name: format!(
                "offshoot_{function}_{window}_{:x}_{shared_bytes}_{has_sinks}",
                scale.to_bits()
            ),
            source,
            inputs: vec![
                ("q", Some(q)),
                ("keys", Some(pools[0])),
                ("values", Some(pools[1])),
                ("table", Some(table)),
                ("begins", Some(begins)),
                ("sinks", a.sinks),
                ("tickets", Some(&tickets)),
                ("written", Some(&written)),
            ],
            outputs: vec!["out", "part_out", "part_sums"],
            call: &|| {
                format!(
                    "offshoot::{function}<GROUP, KV, DK, DV, BLOCK, WARPS, TILE, T, S>(q, keys, \
                     values, table, begins, {sinks}, tickets, out, part_out, part_sums, \
                     q_shape[2], table_shape[1], gridDim.z / q_shape[0], {window}, {scale:e}f);"
                )
            },
            shared_bytes,
        };
        self.launch(&kernel, parts, sink_dtype)
    }

    fn launch(&self, kernel: &Kernel<'_>, parts: i32, sink_dtype: Dtype) -> Result<Array> {
        let (tiles, kept) = (self.tiles(), if parts > 1 { parts } else { 0 });
        let (warps, queries) = (self.warps(), 16 * self.warps());
        let n_kept = self.rows * self.kv_heads * tiles * kept;
        let made = kernel.launch(&Launch {
            outputs: &[
                (&[self.rows, self.tokens, self.heads * self.value_dim], self.dtype),
                (&[n_kept, queries, self.value_dim], Dtype::F32),
                (&[n_kept, queries, 2], Dtype::F32),
            ],
            grid: [tiles * 32 * warps, self.kv_heads, self.rows * parts],
            group: [32 * warps, 1, 1],
            ints: &[
                ("GROUP", self.heads / self.kv_heads),
                ("KV", self.kv_heads),
                ("DK", self.key_dim),
                ("DV", self.value_dim),
                ("BLOCK", self.block),
                ("WARPS", warps),
                ("TILE", self.tile()),
            ],
            dtypes: &[("T", self.dtype), ("S", sink_dtype)],
        })?;
        Ok(made.into_iter().next().expect("three outputs were asked for"))
    }
}
