//! Products with matrices of floats on the CPU, as one node of the graph.

use mlx::{Array, CpuKernel, Result, StridedRef, TensorMut};

use crate::cpu::products::{Products, Row, View, begins, step};
use crate::cpu::{Failure, Parts};

/// `batch`: the axes of the result before the last two.
pub(super) fn run(x: &Array, w: &Array, batch: &[i32]) -> Result<Array> {
    let mut shape = batch.to_vec();
    shape.extend((x.n_dims() > 1).then(|| x.dim(-2)));
    shape.push(w.dim(-2));
    let batch = batch.to_vec();
    let outputs = [(&shape[..], x.dtype())];
    let mut made = CpuKernel::call_strided(&[x, w], &outputs, move |ins, outs| {
        multiply(&ins[0], &ins[1], &batch, &mut outs[0])
    })?;
    Ok(made.pop().expect("one output was asked for"))
}

fn multiply(
    x: &StridedRef<'_>,
    w: &StridedRef<'_>,
    batch: &[i32],
    out: &mut TensorMut<'_>,
) -> std::result::Result<(), Failure> {
    let (n_x, n_w) = (x.shape.len(), w.shape.len());
    let (n_rows, row_step) = match n_x.checked_sub(2) {
        Some(axis) => (x.shape[axis] as usize, step(x, axis)),
        None => (1, 0),
    };
    let mut rows = Vec::with_capacity(n_rows * batch.iter().product::<i32>() as usize);
    let begins = begins(x, n_x.min(2), batch).into_iter().zip(begins(w, 2, batch));
    for (i, (from, matrix)) in begins.enumerate() {
        rows.extend((0..n_rows).map(|row| Row {
            matrix,
            from: from + row * row_step,
            to: i * n_rows + row,
        }));
    }
    rows.sort_by_key(|row| row.matrix);
    let products = Products {
        x: View::new(x)?,
        x_step: step(x, n_x - 1),
        w: View::new(w)?,
        w_steps: [step(w, n_w - 2), step(w, n_w - 1)],
        n_in: w.shape[n_w - 1] as usize,
        n_out: w.shape[n_w - 2] as usize,
        rows,
        out: Parts::new(out)?,
    };
    // SAFETY: rows were counted through.
    unsafe { products.run() };
    Ok(())
}
