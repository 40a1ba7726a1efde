//! Products of rows with matrices of weights in floats.
//!
//! ```text
//! y[.., o] = Σ_i x[.., i] · w[o, i]
//! ```
//!
//! | form | where |
//! |---|---|
//! | [`reference`] | everywhere: the twin, MLX's product in f32 |
//! | [`crate::few_rows`] | CUDA, few rows of 16-bit floats |
//! | MLX's product in the common dtype of x and w | CUDA, Metal |
//! | `cpu.rs` | CPU, where MLX's is slow and widens all of w: w is read as it lies, once |
//!
//! The CPU form and the twin sum in f32. x and w may have different dtypes; the result has that of
//! x. Nothing is copied that is not row-contiguous.

mod cpu;
mod twin;

use mlx::{Array, Backend, Device, Result};

use crate::activation;
use crate::few_rows::{self, Join, Weights};
use crate::input::{expect_float, refused};

const OP: &str = "dense";

/// x·wᵀ: `x` `[.., in]` times `w` `[out, in]` → `[.., out]` in the dtype of x. With more axes, w is
/// a matrix for each index of them, and its axes before the last two broadcast against those of x.
///
/// # Errors
/// Shapes or dtypes do not fit each other.
pub fn product(x: &Array, w: &Array) -> Result<Array> {
    let batch = check(x, w, -1)?;
    match Device::current_backend() {
        Backend::Cpu => cpu::run(x, w, &batch),
        Backend::Cuda | Backend::Metal => {
            if let Some(made) = of_few_rows(x, &[w], Join::Apart)? {
                return Ok(only(made));
            }
            x.matmul(&w.swap_axes(-1, -2)?)?.astype(x.dtype())
        }
    }
}

/// [`product`] with each of several matrices `[out, in]`, in one launch where there is a form for
/// it.
///
/// # Errors
/// Those of [`product`].
pub fn products(x: &Array, matrices: &[&Array]) -> Result<Vec<Array>> {
    matrices.iter().try_for_each(|w| check(x, w, -1).map(|_| ()))?;
    match of_few_rows(x, matrices, Join::Apart)? {
        Some(made) => Ok(made),
        None => matrices.iter().map(|w| product(x, w)).collect(),
    }
}

/// silu(x·gateᵀ) ⊙ x·upᵀ: `[.., in]` → `[.., out]` in the dtype of x; gate and up are `[out, in]`.
///
/// # Errors
/// Those of [`product`]; gate and up differ in their outputs.
pub fn swiglu(x: &Array, gate: &Array, up: &Array) -> Result<Array> {
    check(x, gate, -1)?;
    check(x, up, -1)?;
    if gate.dim(-2) != up.dim(-2) {
        return Err(refused(OP, &[gate, up], "gate and up differ in their outputs".to_owned()));
    }
    match of_few_rows(x, &[gate, up], Join::Swiglu)? {
        Some(made) => Ok(only(made)),
        None => activation::swiglu(&product(x, gate)?, &product(x, up)?),
    }
}

fn of_few_rows(x: &Array, matrices: &[&Array], join: Join) -> Result<Option<Vec<Array>>> {
    if matrices.iter().any(|w| w.n_dims() != 2) {
        return Ok(None);
    }
    let weights = matrices.iter().map(|w| Weights::Floats(w)).collect::<Vec<_>>();
    few_rows::products(x, &weights, join)
}

fn only(made: Vec<Array>) -> Array {
    made.into_iter().next().expect("one output was asked for")
}

/// The same with the matrices written as `[in, out]`. On the CPU few rows are faster where this is
/// a view of `[out, in]`.
///
/// # Errors
/// Those of [`product`].
pub fn product_transposed(x: &Array, transposed: &Array) -> Result<Array> {
    let batch = check(x, transposed, -2)?;
    match Device::current_backend() {
        Backend::Cpu => cpu::run(x, &transposed.swap_axes(-1, -2)?, &batch),
        Backend::Cuda | Backend::Metal => x.matmul(transposed)?.astype(x.dtype()),
    }
}

/// The twin of [`product`], in MLX's operations.
///
/// # Errors
/// The same.
pub fn reference(x: &Array, w: &Array) -> Result<Array> {
    check(x, w, -1)?;
    twin::run(x, w)
}

/// The axes of the result before the last two; none if x is a row. `in_axis`: that of w.
fn check(x: &Array, w: &Array, in_axis: i32) -> Result<Vec<i32>> {
    expect_float(OP, "x", x)?;
    expect_float(OP, "w", w)?;
    let does_not_fit =
        || refused(OP, &[x, w], "rows and matrices do not fit each other".to_owned());
    let fits = x.n_dims() >= 1 && w.n_dims() >= 2 && x.dim(-1) == w.dim(in_axis);
    if !fits || (x.n_dims() == 1 && w.n_dims() > 2) {
        return Err(does_not_fit());
    }
    let of_x = &x.shape()[..x.n_dims().saturating_sub(2)];
    let of_w = &w.shape()[..w.n_dims() - 2];
    let n = of_x.len().max(of_w.len());
    let dim = |shape: &[i32], axis: usize| {
        (axis + shape.len()).checked_sub(n).map_or(1, |axis| shape[axis])
    };
    let axes = (0..n).map(|axis| match (dim(of_x, axis), dim(of_w, axis)) {
        (a, b) if a == b || b == 1 => Ok(a),
        (1, b) => Ok(b),
        _ => Err(does_not_fit()),
    });
    axes.collect()
}
