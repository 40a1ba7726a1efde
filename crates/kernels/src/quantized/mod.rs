//! Products with quantized matrices: x·wᵀ with one matrix, with several at once, or with matrices
//! chosen by index (experts); also a gate and an up-projection joined by silu(gate) ⊙ up.
//!
//! | form | where | how |
//! |---|---|---|
//! | [`reference`] | everywhere | the twin: dequantized to f32, then multiplied |
//! | [`crate::few_rows`] | CUDA, few rows of 16 bits, affine of 4 and 8 bits | tensor cores |
//! | [`crate::grouped`] | CUDA, some hundred rows of the same forms | tensor cores |
//! | `cuda.rs` | CUDA | MLX's for one row, or with floats made on the way |
//! | MLX's `quantized_matmul`, `gather_qmm` | Metal | |
//! | `tile.rs` | CPU, 16-bit activations | activations rounded to 8 bits, eight to a scale |
//! | `exact.rs` | CPU, f32 activations, mxfp8, on request | f32 throughout |
//!
//! The integer form differs from the exact one by the rounding of the activations, 0.3 % of the
//! norm of a normal vector, which is about that of bf16 itself (0.2 %).

mod activations;
mod coded;
mod cpu;
mod cuda;
mod exact;
mod tile;
mod unpack;

use std::sync::atomic::{AtomicBool, Ordering};

use mlx::{Array, Backend, Device, Dtype, Gathered, QuantMode, Quantized, Result};

use crate::activation;
use crate::few_rows::{self, Weights};
use crate::grouped;
use crate::input::{expect_dtype, expect_float, expect_shape, refused};

const OP: &str = "quantized";

/// Whether the CPU computes exactly also where activations have 16 bits.
static EXACT: AtomicBool = AtomicBool::new(false);

/// Chooses f32 throughout for quantized products on the CPU, instead of 8-bit activations: slower,
/// and exact to f32. Holds for nodes made from now on, in the whole process.
pub fn set_exact(exact: bool) {
    EXACT.store(exact, Ordering::Relaxed);
}

/// What [`set_exact`] has set.
pub fn exact() -> bool {
    EXACT.load(Ordering::Relaxed)
}

/// What becomes of the products.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Join {
    /// One output for each matrix.
    Apart,
    /// silu(x·w₀ᵀ) ⊙ x·w₁ᵀ.
    Swiglu,
}

impl Join {
    /// Matrices of one output.
    fn n_matrices(self) -> usize {
        match self {
            Join::Apart => 1,
            Join::Swiglu => 2,
        }
    }
}

/// x `[.., in]` times every matrix `[out, in]` → `[.., out]` each, in the dtype of x. On the CPU
/// they are one node, which reads and rounds x once.
///
/// # Errors
/// Shapes or dtypes do not fit each other.
pub fn products(x: &Array, matrices: &[&Quantized]) -> Result<Vec<Array>> {
    matrices.iter().try_for_each(|w| check(x, w, 2))?;
    match Device::current_backend() {
        Backend::Cpu => on_cpu(x, None, matrices, Join::Apart),
        backend @ (Backend::Cuda | Backend::Metal) => {
            let made = few_rows::products(x, &weights(matrices), few_rows::Join::Apart)?;
            match (made, matrices) {
                (Some(made), _) => Ok(made),
                (None, [w]) if backend == Backend::Cuda => Ok(vec![cuda::product(x, w)?]),
                (None, [w]) => Ok(vec![x.quantized_matmul(w)?.astype(x.dtype())?]),
                (None, all) => all.iter().map(|w| Ok(only(products(x, &[w])?))).collect(),
            }
        }
    }
}

fn weights<'a>(matrices: &[&'a Quantized]) -> Vec<Weights<'a>> {
    matrices.iter().map(|w| Weights::Quantized(w)).collect()
}

/// `onto` `[.., out]` plus x `[.., in]` times the matrix `[out, in]`, in their dtype.
///
/// # Errors
/// Shapes or dtypes do not fit each other.
pub fn product_onto(onto: &Array, x: &Array, w: &Quantized) -> Result<Array> {
    check(x, w, 2)?;
    let n_before = x.n_dims() - 1;
    expect_shape(OP, "onto", onto, &[&x.shape()[..n_before], &[w.weight.dim(0)]].concat())?;
    expect_dtype(OP, "onto", onto, x.dtype())?;
    match Device::current_backend() {
        Backend::Cpu => {
            let exact = is_exact(x);
            let (matrices, join) = (&[w][..], Join::Apart);
            let call = cpu::Call { x, which: None, onto: Some(onto), matrices, join, exact };
            Ok(only(call.run()?))
        }
        Backend::Cuda | Backend::Metal => onto.add(&only(products(x, &[w])?)),
    }
}

/// silu(x·gateᵀ) ⊙ x·upᵀ: `[.., in]` → `[.., out]` in the dtype of x.
///
/// # Errors
/// Shapes or dtypes do not fit each other.
pub fn swiglu(x: &Array, gate: &Quantized, up: &Quantized) -> Result<Array> {
    check_pair(x, gate, up, 2)?;
    match Device::current_backend() {
        Backend::Cpu => Ok(only(on_cpu(x, None, &[gate, up], Join::Swiglu)?)),
        backend @ (Backend::Cuda | Backend::Metal) => {
            let pair = weights(&[gate, up]);
            if let Some(made) = few_rows::products(x, &pair, few_rows::Join::Swiglu)? {
                return Ok(only(made));
            }
            if backend == Backend::Cuda
                && let Some(made) = grouped::plain(x, &[gate, up])?
            {
                return Ok(made);
            }
            let made = products(x, &[gate, up])?;
            activation::swiglu(&made[0], &made[1])
        }
    }
}

/// Rows `x` `[.., 1, in]` times the matrices of the stack `w` `[E, out, in]` that `which` (u32)
/// names → `[.., 1, out]` in the dtype of x. The axes before the last two broadcast against
/// `which`. `sorted` promises that the indices ascend, for speed.
///
/// # Errors
/// Shapes or dtypes do not fit each other. An index beyond the matrices shows at evaluation on the
/// CPU; elsewhere it is the caller's duty that there is none.
pub fn chosen(x: &Array, w: &Quantized, which: &Array, sorted: bool) -> Result<Array> {
    check_chosen(x, w, which)?;
    match Device::current_backend() {
        Backend::Cpu => Ok(only(on_cpu(x, Some(which), &[w], Join::Apart)?)),
        backend @ (Backend::Cuda | Backend::Metal) => {
            match few_rows::chosen(x, which, &weights(&[w]), few_rows::Join::Apart)? {
                Some(made) => Ok(made),
                None if backend == Backend::Cuda => cuda::chosen(x, w, which, sorted),
                None => x
                    .gather_qmm(w, Gathered { lhs: None, rhs: Some(which), sorted })?
                    .astype(x.dtype()),
            }
        }
    }
}

/// [`swiglu`] with the matrices that `which` names, as [`chosen`] takes them.
///
/// # Errors
/// As [`chosen`].
pub fn chosen_swiglu(
    x: &Array,
    gate: &Quantized,
    up: &Quantized,
    which: &Array,
    sorted: bool,
) -> Result<Array> {
    check_pair(x, gate, up, 3)?;
    check_chosen(x, gate, which)?;
    match Device::current_backend() {
        Backend::Cpu => Ok(only(on_cpu(x, Some(which), &[gate, up], Join::Swiglu)?)),
        Backend::Cuda | Backend::Metal => {
            let pair = weights(&[gate, up]);
            if let Some(made) = few_rows::chosen(x, which, &pair, few_rows::Join::Swiglu)? {
                return Ok(made);
            }
            let gate = chosen(x, gate, which, sorted)?;
            activation::swiglu(&gate, &chosen(x, up, which, sorted)?)
        }
    }
}

/// x `[B, H, L, in]` times a matrix for each head `[H, out, in]` → `[B, H, L, out]` in the dtype of
/// x.
///
/// # Errors
/// Shapes or dtypes do not fit each other.
pub fn batched(x: &Array, w: &Quantized) -> Result<Array> {
    check(x, w, 3)?;
    let n_heads = w.weight.dim(0);
    if x.n_dims() != 4 || x.dim(1) != n_heads {
        return Err(refused(OP, &[x, &w.weight], format!("x has not the {n_heads} heads")));
    }
    match Device::current_backend() {
        Backend::Cpu => {}
        Backend::Cuda => return cuda::batched(x, w),
        Backend::Metal => return x.quantized_matmul(w)?.astype(x.dtype()),
    }
    let heads = (0..n_heads as u32).collect::<Vec<_>>();
    let which = Array::from_slice(&heads, &[1, n_heads, 1])?;
    let which = which.broadcast_to(&x.shape()[..3])?;
    only(on_cpu(&x.expand_dims(&[-2])?, Some(&which), &[w], Join::Apart)?).squeeze(&[-2])
}

/// The twin of one product: `w` as floats, multiplied in f32; chosen by `which` if it is there.
///
/// # Errors
/// As [`chosen`].
pub fn reference(x: &Array, w: &Quantized, which: Option<&Array>) -> Result<Array> {
    let (wide, floats) = (x.astype(Dtype::F32)?, floats(w)?.swap_axes(-1, -2)?);
    let y = match which {
        None => wide.matmul(&floats)?,
        Some(which) => wide.gather_mm(&floats, None, Some(which), false)?,
    };
    y.astype(x.dtype())
}

/// A matrix, or a stack, in f32: MLX computes code·scale + bias in the dtype of the scales.
///
/// # Errors
/// The parts do not fit each other.
pub fn floats(w: &Quantized) -> Result<Array> {
    let is_affine = w.quantization.mode == QuantMode::Affine;
    let wide = |x: &Array| if is_affine { x.astype(Dtype::F32) } else { Ok(x.clone()) };
    let (scales, biases) = (wide(&w.scales)?, w.biases.as_ref().map(wide).transpose()?);
    Quantized { weight: w.weight.clone(), scales, biases, quantization: w.quantization }
        .dequantize(Dtype::F32)
}

fn on_cpu(
    x: &Array,
    which: Option<&Array>,
    matrices: &[&Quantized],
    join: Join,
) -> Result<Vec<Array>> {
    cpu::Call { x, which, onto: None, matrices, join, exact: is_exact(x) }.run()
}

fn is_exact(x: &Array) -> bool {
    x.dtype() == Dtype::F32 || exact()
}

fn only(made: Vec<Array>) -> Array {
    made.into_iter().next().expect("one output was asked for")
}

pub(crate) fn check(x: &Array, w: &Quantized, n_dims: usize) -> Result<()> {
    expect_float(OP, "x", x)?;
    expect_dtype(OP, "w", &w.weight, Dtype::U32)?;
    let (bits, group) = (w.quantization.bits, w.quantization.group_size);
    let (codes, scales) = (w.weight.shape(), w.scales.shape());
    let fits = codes.len() == n_dims
        && x.n_dims() >= 1
        && codes[n_dims - 1] * 32 == x.dim(-1) * bits
        && scales.len() == n_dims
        && scales[..n_dims - 1] == codes[..n_dims - 1]
        && scales[n_dims - 1] * group == x.dim(-1)
        && w.biases.as_ref().is_none_or(|b| b.shape() == scales);
    if fits {
        return Ok(());
    }
    let text = format!("codes of {bits} bits in groups of {group} do not fit x or their scales");
    Err(refused(OP, &[x, &w.weight, &w.scales], text))
}

fn check_pair(x: &Array, gate: &Quantized, up: &Quantized, n_dims: usize) -> Result<()> {
    check(x, gate, n_dims)?;
    check(x, up, n_dims)?;
    let sizes = |w: &Quantized| w.weight.shape()[..n_dims - 1].to_vec();
    if sizes(gate) == sizes(up) {
        return Ok(());
    }
    let text = "gate and up differ in their outputs".to_owned();
    Err(refused(OP, &[&gate.weight, &up.weight], text))
}

fn check_chosen(x: &Array, w: &Quantized, which: &Array) -> Result<()> {
    check(x, w, 3)?;
    expect_dtype(OP, "which", which, Dtype::U32)?;
    let axes = &x.shape()[..x.n_dims().saturating_sub(2)];
    let sizes = which.shape().iter().rev().zip(axes.iter().rev());
    let fits = x.n_dims() >= 2
        && x.dim(-2) == 1
        && axes.len() <= which.n_dims()
        && sizes.into_iter().all(|(n, x)| n == x || *x == 1);
    if fits {
        return Ok(());
    }
    Err(refused(OP, &[x, which], "the rows do not fit the indices".to_owned()))
}
