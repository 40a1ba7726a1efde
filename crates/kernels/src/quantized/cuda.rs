//! Quantized products on CUDA that are more than [`crate::few_rows`] has code for.
//!
//! MLX has products with codes for one row, which are in its library, and others that it compiles
//! for each form and number of rows at their first use, ten seconds each and more. So only the
//! former are used, row after row while rows are few; else the matrix becomes floats on the way,
//! which costs many rows little.

use std::cell::RefCell;

use mlx::{Array, Gathered, Quantized, Result};

use crate::{experts, grouped};

/// Rows, or chosen matrices, that are taken one after the other.
const MAX_SINGLE: i32 = 8;
/// Chosen matrices that MLX's library takes at once.
const MAX_CHOSEN: i32 = 7;
/// The largest side of a matrix for which it has a product of one row in every form.
const MAX_SIDE: i32 = 16_384;
/// Floats that are made before what was made before them is waited for: the host is ahead of the
/// device by a whole pass otherwise, whose floats would fill the memory.
const MAX_PENDING_BYTES: usize = 512 << 20;

thread_local! {
    static PENDING: RefCell<Pending> = const { RefCell::new(Pending { n_bytes: 0, before: None }) };
}

/// What was not waited for.
struct Pending {
    n_bytes: usize,
    /// A number that is there when the floats before these are of no more use.
    before: Option<Array>,
}

/// x `[.., in]` times the matrix `[out, in]` → `[.., out]` in the dtype of x.
pub(super) fn product(x: &Array, w: &Quantized) -> Result<Array> {
    if let Some(made) = grouped::plain(x, &[w])? {
        return Ok(made);
    }
    let (n_in, n_out) = (x.dim(-1), w.weight.dim(0));
    let n_rows = (x.n_elements() / n_in.max(1) as usize) as i32;
    if !(1..=MAX_SINGLE).contains(&n_rows) || n_in.max(n_out) > MAX_SIDE {
        return by_floats(x, w);
    }
    let rows = x.reshape(&[n_rows, n_in])?;
    let row = |i| rows.slice_axis(0, i..i + 1)?.quantized_matmul(w)?.astype(x.dtype());
    let made = (0..n_rows).map(row).collect::<Result<Vec<_>>>()?;
    let shape = [&x.shape()[..x.n_dims() - 1], &[n_out]].concat();
    mlx::concatenate(&made.iter().collect::<Vec<_>>(), 0)?.reshape(&shape)
}

/// Rows `x` `[.., 1, in]` times the matrices that `which` names, as [`super::chosen`] takes them.
pub(super) fn chosen(x: &Array, w: &Quantized, which: &Array, sorted: bool) -> Result<Array> {
    let (n_in, n_out, n) = (x.dim(-1), w.weight.dim(1), which.n_elements() as i32);
    let is_many = !(1..=MAX_SINGLE * MAX_CHOSEN).contains(&n);
    if is_many && sorted {
        let floats = w.dequantize(x.dtype())?;
        return computed(experts::product(x, &floats, which, true)?, &floats);
    }
    let shape = [which.shape(), &[1, n_out]].concat();
    let all = x.broadcast_to(&[which.shape(), &[1, n_in]].concat())?.reshape(&[n, 1, n_in])?;
    let flat = which.reshape(&[n])?;
    if is_many {
        // MLX's library takes many in order alone.
        let order = flat.argsort(0)?;
        let in_order = chosen(&all.take(&order, 0)?, w, &flat.take(&order, 0)?, true)?;
        return in_order.take(&order.argsort(0)?, 0)?.reshape(&shape);
    }
    let some = |begin: i32| {
        let range = begin..n.min(begin + MAX_CHOSEN);
        let which = flat.slice_axis(0, range.clone())?;
        let gathered = Gathered { lhs: None, rhs: Some(&which), sorted };
        all.slice_axis(0, range)?.gather_qmm(w, gathered)?.astype(x.dtype())
    };
    let made = (0..n).step_by(MAX_CHOSEN as usize).map(some).collect::<Result<Vec<_>>>()?;
    mlx::concatenate(&made.iter().collect::<Vec<_>>(), 0)?.reshape(&shape)
}

/// x `[B, H, L, in]` times a matrix for each head `[H, out, in]`.
pub(super) fn batched(x: &Array, w: &Quantized) -> Result<Array> {
    by_floats(x, w)
}

/// x times the matrix, or the matrices of its heads, as floats.
fn by_floats(x: &Array, w: &Quantized) -> Result<Array> {
    let floats = w.dequantize(x.dtype())?;
    computed(x.matmul(&floats.swap_axes(-1, -2)?)?.astype(x.dtype())?, &floats)
}

/// Has a product computed if many floats wait to be made for it and for others, and waits for those
/// before them.
fn computed(y: Array, floats: &Array) -> Result<Array> {
    PENDING.with_borrow_mut(|pending| {
        pending.n_bytes += floats.n_bytes();
        if pending.n_bytes <= MAX_PENDING_BYTES || y.n_elements() == 0 {
            return Ok(());
        }
        pending.n_bytes = 0;
        let first = y.reshape(&[-1])?.slice_axis(0, 0..1)?.offset(0.0)?;
        mlx::async_eval([&first])?;
        match pending.before.replace(first) {
            Some(before) => before.eval(),
            None => Ok(()),
        }
    })?;
    Ok(y)
}
