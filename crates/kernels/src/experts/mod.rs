//! Products with matrices chosen by index, in floats: experts that are not quantized.
//!
//! | form | where |
//! |---|---|
//! | [`reference`] | everywhere: the twin, MLX's `gather_mm` in f32 |
//! | [`crate::few_rows`] | CUDA, few rows of 16-bit floats |
//! | MLX's `gather_mm` in the dtype of x | CUDA, Metal |
//! | `cpu.rs` | CPU, where MLX multiplies f32 alone: rows of one matrix share what is read of it |
//!
//! Sums are f32 in every form. [`Sum`] adds what the experts gave.

mod cpu;
mod sum;

use mlx::{Array, Backend, Device, Dtype, Result};

use crate::few_rows::{self, Join, Weights};
use crate::input::{expect_dtype, expect_float, refused};

pub use sum::{Shared, Sum};

const OP: &str = "experts";

/// From how many rows on they had better be sorted by their matrices, so that each matrix is read
/// once for all of its rows.
pub fn sorts_from() -> i32 {
    match Device::current_backend() {
        Backend::Cuda => few_rows::MAX_CHOSEN + 1,
        Backend::Cpu | Backend::Metal => 64,
    }
}

/// The sizes that the inputs share.
#[derive(Clone, Copy, Debug)]
struct Sizes {
    n_in: i32,
    n_out: i32,
    n_matrices: i32,
}

/// x·wᵀ: rows `x` `[.., 1, in]` times the matrices of `w` `[E, out, in]` that `which` (u32) names
/// → `[.., 1, out]` in the dtype of x. The axes before the last two broadcast to those of `which`.
/// `sorted` promises that the indices ascend, for speed.
///
/// # Errors
/// Shapes or dtypes do not fit each other. An index beyond the matrices shows at evaluation on the
/// CPU; elsewhere it is the caller's duty that there is none.
pub fn product(x: &Array, w: &Array, which: &Array, sorted: bool) -> Result<Array> {
    let sizes = check(x, w, which)?;
    match Device::current_backend() {
        Backend::Cpu => cpu::run(x, w, which, sizes),
        Backend::Cuda | Backend::Metal => {
            let weights = [Weights::Floats(w)];
            if let Some(made) = few_rows::chosen(x, which, &weights, Join::Apart)? {
                return Ok(made);
            }
            // CUDA's form for sorted indices takes the stride of the axis of one row, which
            // inserting that axis leaves at 1, for the distance of rows.
            let rows = x.flatten(0, -2)?.reshape(x.shape())?;
            rows.gather_mm(&w.swap_axes(-1, -2)?, None, Some(which), sorted)?.astype(x.dtype())
        }
    }
}

/// The twin of [`product`], in MLX's operations.
///
/// # Errors
/// The same.
pub fn reference(x: &Array, w: &Array, which: &Array) -> Result<Array> {
    check(x, w, which)?;
    let (wide, w) = (x.astype(Dtype::F32)?, w.astype(Dtype::F32)?.swap_axes(-1, -2)?);
    wide.gather_mm(&w, None, Some(which), false)?.astype(x.dtype())
}

fn check(x: &Array, w: &Array, which: &Array) -> Result<Sizes> {
    expect_float(OP, "x", x)?;
    expect_float(OP, "w", w)?;
    expect_dtype(OP, "which", which, Dtype::U32)?;
    let fits = w.n_dims() == 3 && x.n_dims() >= 2 && x.dim(-2) == 1 && x.dim(-1) == w.dim(2);
    if !fits {
        return Err(refused(OP, &[x, w], "rows and matrices do not fit each other".to_owned()));
    }
    let of_x = &x.shape()[..x.n_dims() - 2];
    let shared = of_x.len().min(which.n_dims());
    let ends = of_x[of_x.len() - shared..].iter().zip(&which.shape()[which.n_dims() - shared..]);
    if shared < of_x.len() || ends.into_iter().any(|(n, all)| n != all && *n != 1) {
        let message = "rows and indices do not fit each other".to_owned();
        return Err(refused(OP, &[x, which], message));
    }
    Ok(Sizes { n_in: w.dim(2), n_out: w.dim(1), n_matrices: w.dim(0) })
}
