//! Attention of one new token per row over latents on CUDA: see `attend_latents.cu`.

use mlx::{Array, Dtype, Launch, Result};

use super::Layout;
use super::cuda::{N_TICKETS, parts, tickets};
use crate::cuda::{Kernel, shared_limit_bytes};

/// Tokens that a block of threads takes at a time.
const TILE: i32 = 32;
const THREADS: i32 = 128;

/// The sizes of attention of one new token per row over latents.
pub(super) struct One {
    rows: i32,
    tokens: i32,
    heads: i32,
    dim: i32,
    value_dim: i32,
    block: i32,
    dtype: Dtype,
}

impl One {
    /// Of queries `[B, H, L, D]` over a pool whose latents begin with the values.
    pub fn over(q: &Array, pool: &Array, value_dim: i32) -> Self {
        let [rows, heads, tokens, dim] = [0, 1, 2, 3].map(|axis| q.dim(axis));
        Self { rows, tokens, heads, dim, value_dim, block: pool.dim(2), dtype: q.dtype() }
    }

    fn shared_bytes(&self) -> i32 {
        let rows = (self.heads + 15) / 16 * 16;
        let halves = (rows + 2 * TILE) * (self.dim + 8) + rows * (TILE + 8);
        2 * halves + 4 * rows * (TILE + 4) + 2 * 4 * rows
    }

    /// Whether there is a form for them.
    pub fn fits(&self) -> bool {
        self.tokens == 1
            && matches!(self.dtype, Dtype::Bf16 | Dtype::F16)
            && self.dim % 16 == 0
            && self.dim <= 640
            && [64, 128, 256, 512].contains(&self.value_dim)
            && self.heads <= 32
            && (TILE % self.block == 0 || self.block % TILE == 0)
            && self.rows <= N_TICKETS
            && self.shared_bytes() <= shared_limit_bytes()
    }

    /// Of queries over a pool that gains the `new` latents `[B, 1, D]` on the way: `[B, 1, H·Dv]`.
    pub fn attend(
        &self,
        q: &Array,
        new: &Array,
        pool: &Array,
        layout: Layout<'_>,
        scale: f32,
    ) -> Result<Array> {
        let Layout::Blocks { table, slots, begins } = layout else {
            unreachable!("rows are not attended over this way")
        };
        let parts = parts(self.rows, table.dim(1) * self.block / TILE + 1);
        let kept = if parts > 1 { parts } else { 0 };
        let (tickets, shared_bytes) = (tickets()?, self.shared_bytes());
        let kernel = Kernel {
            name: format!("offshoot_attend_latents_{:x}_{shared_bytes}", scale.to_bits()),
            source: concat!(
                include_str!("../cuda/tiles.cuh"),
                include_str!("parts.cuh"),
                include_str!("attend_latents.cu")
            ),
            inputs: vec![
                ("q", Some(q)),
                ("fresh", Some(new)),
                ("latents", Some(pool)),
                ("table", Some(table)),
                ("slots", Some(slots)),
                ("begins", Some(begins)),
                ("tickets", Some(&tickets)),
            ],
            outputs: vec!["out", "part_out", "part_sums"],
            call: &|| {
                format!(
                    "offshoot::attend_latents<HEADS, D, DV, BLOCK, TILE>(q, fresh, latents, \
                     table, slots, begins, tickets, out, part_out, part_sums, table_shape[1], \
                     {scale:e}f);"
                )
            },
            shared_bytes,
        };
        let launch = Launch {
            outputs: &[
                (&[self.rows, 1, self.heads * self.value_dim], self.dtype),
                (&[self.rows, self.heads, kept, self.value_dim], Dtype::F32),
                (&[self.rows, self.heads, kept, 2], Dtype::F32),
            ],
            grid: [THREADS, self.rows, parts],
            group: [THREADS, 1, 1],
            ints: &[
                ("HEADS", self.heads),
                ("D", self.dim),
                ("DV", self.value_dim),
                ("BLOCK", self.block),
                ("TILE", TILE),
            ],
            dtypes: &[],
        };
        let made = kernel.launch_early(&launch, 2)?;
        Ok(made.into_iter().next().expect("three outputs were asked for"))
    }
}
