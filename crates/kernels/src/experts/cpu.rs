//! Products with chosen matrices on the CPU, as one node of the graph: rows that want the same
//! matrix share what is read of it.

use mlx::{Array, CpuKernel, Result, StridedRef, TensorMut};

use super::Sizes;
use crate::cpu::products::{Products, Row, View, begins, step};
use crate::cpu::{Failure, Parts};

pub(super) fn run(x: &Array, w: &Array, which: &Array, sizes: Sizes) -> Result<Array> {
    let mut shape = which.shape().to_vec();
    shape.extend([1, sizes.n_out]);
    let outputs = [(&shape[..], x.dtype())];
    let mut made = CpuKernel::call_strided(&[x, w, which], &outputs, move |ins, outs| {
        multiply(&ins[0], &ins[1], &ins[2], sizes, &mut outs[0])
    })?;
    Ok(made.pop().expect("one output was asked for"))
}

fn multiply(
    x: &StridedRef<'_>,
    w: &StridedRef<'_>,
    which: &StridedRef<'_>,
    sizes: Sizes,
    out: &mut TensorMut<'_>,
) -> std::result::Result<(), Failure> {
    let (words, _) = which.span().as_chunks::<4>();
    let chosen = begins(which, 0, which.shape).into_iter().map(|i| u32::from_ne_bytes(words[i]));
    let rows = chosen.zip(begins(x, 2, which.shape)).enumerate().map(|(to, (matrix, from))| {
        if matrix >= sizes.n_matrices as u32 {
            return Err(format!("matrix {matrix} is none of {}", sizes.n_matrices));
        }
        Ok(Row { matrix: matrix as usize * step(w, 0), from, to })
    });
    let mut rows = rows.collect::<std::result::Result<Vec<_>, Failure>>()?;
    rows.sort_by_key(|row| row.matrix);
    let products = Products {
        x: View::new(x)?,
        x_step: step(x, x.shape.len() - 1),
        w: View::new(w)?,
        w_steps: [step(w, 1), step(w, 2)],
        n_in: sizes.n_in as usize,
        n_out: sizes.n_out as usize,
        rows,
        out: Parts::new(out)?,
    };
    // SAFETY: rows were counted through.
    unsafe { products.run() };
    Ok(())
}
