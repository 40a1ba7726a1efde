//! Many rows, each with the matrices that were chosen for it, in the order of those matrices, so
//! that rows of one matrix share what is read of it: experts over prompts.
//!
//! | form | where |
//! |---|---|
//! | the order by MLX's sort, products of [`crate::quantized`] | everywhere: the twin |
//! | `order.cu` | CUDA: the order, and which rows make a tile, in one launch |
//! | `grouped.cu` | CUDA, 16 bits, affine of 4 and 8 bits: tiles of rows on tensor cores |
//!
//! 4 bits want more shared memory than devices of compute capability 8.6, 8.9 and 12 have. In
//! `grouped.cu` weights are rounded to the dtype of x as a dequantized matrix has them; sums are
//! f32, and what becomes of a row does not depend on others.

mod cuda;

use std::ops::RangeInclusive;

use mlx::{Array, Backend, Device, Dtype, Quantized, Result};

use crate::input::{dims, expect_dtype, refused};
use crate::quantized;

const OP: &str = "grouped";

/// Pairs from which on rows share what is read of their matrices: fewer are faster one by one. On
/// an H200, 128 experts of 2048 and 768 in 4 bits: 8 pairs 20 µs one by one, 64 pairs 112; 256
/// pairs 54 in order.
const MANY_PAIRS: i32 = 32;
/// Rows of one matrix that [`crate::few_rows`] may have no form for; of more the matrix becomes
/// floats, which are multiplied faster.
const PLAIN_ROWS: RangeInclusive<usize> = 9..=256;

/// Whether so many pairs had better be put in order for stacks that [`Groups`] multiplies with: on
/// CUDA, where there is a form for rows `x` `[N, in]`.
pub fn pays(n_pairs: i32, x: &Array, stacks: &[&Quantized]) -> bool {
    n_pairs >= MANY_PAIRS
        && Device::current_backend() == Backend::Cuda
        && cuda::fits(x, &stacks[..1])
}

/// Pairs of a row and a matrix, in the order of the matrices.
#[derive(Debug)]
pub struct Groups {
    /// The pair at each place, `[N·k]`, u32.
    order: Array,
    /// The place of each pair, `[N, k]`, u32.
    pub places: Array,
    /// `[N·k]`, u32.
    pairs: Array,
    n_matrices: i32,
    /// Rows that share a matrix, on CUDA.
    tiles: Option<cuda::Tiles>,
    k: i32,
}

impl Groups {
    /// Of `which` `[N, k]`, u32: the matrices of N rows, k of `n_matrices` for each.
    ///
    /// # Errors
    /// `which` has another shape or dtype. That an index is none is the caller's duty.
    pub fn of(which: &Array, n_matrices: i32) -> Result<Self> {
        let [n, k] = dims(OP, "which", which)?;
        expect_dtype(OP, "which", which, Dtype::U32)?;
        let pairs = which.flatten(0, 1)?;
        if Device::current_backend() == Backend::Cuda && n > 0 {
            let ordered = cuda::order(&pairs, n_matrices)?;
            let places = ordered.places.reshape(&[n, k])?;
            let (order, tiles) = (ordered.order, Some(ordered.tiles));
            return Ok(Self { order, places, pairs, n_matrices, tiles, k });
        }
        let order = pairs.argsort(0)?;
        let places = order.argsort(0)?.reshape(&[n, k])?;
        Ok(Self { order, places, pairs, n_matrices, tiles: None, k })
    }

    /// The matrix at each place, `[N·k]`, u32.
    ///
    /// # Errors
    /// MLX refuses an operation.
    pub fn which(&self) -> Result<Array> {
        self.pairs.take(&self.order, 0)
    }

    /// The row of `x` `[N, E]` of each place, `[N·k, 1, E]`.
    ///
    /// # Errors
    /// MLX refuses an operation.
    pub fn rows(&self, x: &Array) -> Result<Array> {
        let k = Array::scalar(self.k as f32, Dtype::U32)?;
        x.take(&self.order.floor_div(&k)?, 0)?.expand_dims(&[1])
    }

    /// silu(x·gateᵀ) ⊙ x·upᵀ of rows `x` `[N, in]` with stacks `[n, out, in]`: `[N·k, out]`. On
    /// CUDA x is no view that begins beside a multiple of 16 bytes.
    ///
    /// # Errors
    /// Shapes or dtypes do not fit each other.
    pub fn swiglu(&self, x: &Array, gate: &Quantized, up: &Quantized) -> Result<Array> {
        self.check(x, &[gate, up], self.places.dim(0))?;
        if let Some(made) = self.on_cuda(x, &[gate, up], Some((&self.order, self.k)))? {
            return Ok(made);
        }
        let which = self.which()?;
        quantized::chosen_swiglu(&self.rows(x)?, gate, up, &which, true)?.squeeze(&[1])
    }

    /// x·wᵀ of rows `x` `[N·k, in]`, one for each place, as [`Groups::swiglu`] takes them:
    /// `[N·k, out]`.
    ///
    /// # Errors
    /// Shapes or dtypes do not fit each other.
    pub fn product(&self, x: &Array, w: &Quantized) -> Result<Array> {
        self.check(x, &[w], self.order.dim(0))?;
        if let Some(made) = self.on_cuda(x, &[w], None)? {
            return Ok(made);
        }
        quantized::chosen(&x.expand_dims(&[1])?, w, &self.which()?, true)?.squeeze(&[1])
    }

    fn check(&self, x: &Array, stacks: &[&Quantized], n_rows: i32) -> Result<()> {
        stacks.iter().try_for_each(|w| quantized::check(x, w, 3))?;
        let [rows, _] = dims(OP, "x", x)?;
        if rows == n_rows && stacks.iter().all(|w| w.weight.dim(0) == self.n_matrices) {
            return Ok(());
        }
        let (n, message) = (self.n_matrices, "rows of x, or stacks of");
        Err(refused(OP, &[x, &stacks[0].weight], format!("{n_rows} {message} {n} were expected")))
    }

    /// By tiles, where there is a form.
    fn on_cuda(
        &self,
        x: &Array,
        stacks: &[&Quantized],
        order: Option<(&Array, i32)>,
    ) -> Result<Option<Array>> {
        match &self.tiles {
            Some(tiles) if cuda::fits(x, stacks) => {
                let shape = [self.order.dim(0), stacks[0].weight.dim(1)];
                cuda::Call { x, order, tiles }.launch(stacks, &shape).map(Some)
            }
            _ => Ok(None),
        }
    }
}

/// Rows `x` `[.., in]`, which begin at a multiple of 16 bytes, times a matrix `[out, in]`, or
/// silu(x·gateᵀ) ⊙ x·upᵀ with two, by the same kernel. None where there is no form, or others are
/// faster.
pub(crate) fn plain(x: &Array, matrices: &[&Quantized]) -> Result<Option<Array>> {
    let n_rows = x.n_elements() / x.dim(-1).max(1) as usize;
    if !PLAIN_ROWS.contains(&n_rows) || !cuda::fits(x, matrices) {
        return Ok(None);
    }
    let tiles = cuda::Tiles::plain(n_rows as i32, cuda::n_blocks(matrices))?;
    let shape = [&x.shape()[..x.n_dims() - 1], &[matrices[0].weight.dim(0)]].concat();
    cuda::Call { x, order: None, tiles: &tiles }.launch(matrices, &shape).map(Some)
}
