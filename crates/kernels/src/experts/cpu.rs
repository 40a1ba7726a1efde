//! Products with chosen matrices on the CPU. A task makes a band of outputs for all rows, expert by
//! expert, so that a row of a matrix is read and widened once for all that use it.

use mlx::{Array, CpuKernel, Dtype, Result, TensorMut, TensorRef};

use super::Sizes;
use crate::cpu::{Failure, Floats, Parts, dot, each, for_processor};

/// Outputs of a task.
const BAND: usize = 32;

struct Task<'a> {
    /// `[P, in]`.
    x: Vec<f32>,
    w: Floats<'a>,
    /// Rows of x by the matrix that they want.
    order: Vec<usize>,
    which: &'a [u32],
    n_in: usize,
    n_out: usize,
    out: Parts<'a>,
}

/// The product as one node of the graph.
pub(super) fn run(x: &Array, w: &Array, which: &Array, sizes: Sizes) -> Result<Array> {
    let mut rows_shape = which.shape().to_vec();
    rows_shape.extend([1, sizes.n_in]);
    let rows = x.broadcast_to(&rows_shape)?;
    let mut shape = which.shape().to_vec();
    shape.extend([1, sizes.n_out]);
    // f16 is read, but not written.
    let native = if x.dtype() == Dtype::F16 { Dtype::F32 } else { x.dtype() };
    let outputs = [(&shape[..], native)];
    let made = CpuKernel::call(&[&rows, w, which], &outputs, move |ins, outs| {
        Task::new(ins, sizes, &mut outs[0])?.run();
        Ok(())
    })?;
    made.into_iter().next().expect("one output was asked for").astype(x.dtype())
}

impl<'a> Task<'a> {
    fn new(
        ins: &[TensorRef<'a>],
        sizes: Sizes,
        out: &'a mut TensorMut<'_>,
    ) -> std::result::Result<Self, Failure> {
        let which = ins[2].as_slice::<u32>()?;
        if let Some(wrong) = which.iter().find(|&&i| i >= sizes.n_matrices as u32) {
            return Err(format!("matrix {wrong} is none of {}", sizes.n_matrices));
        }
        let n_in = sizes.n_in as usize;
        let mut x = vec![0.0; which.len() * n_in];
        Floats::new(&ins[0])?.read(0, &mut x);
        let mut order = (0..which.len()).collect::<Vec<_>>();
        order.sort_by_key(|&row| which[row]);
        let w = Floats::new(&ins[1])?;
        let (n_out, out) = (sizes.n_out as usize, Parts::new(out)?);
        Ok(Self { x, w, order, which, n_in, n_out, out })
    }

    fn run(&self) {
        each(self.n_out.div_ceil(BAND), &|band| {
            let first = band * BAND;
            self.band(first, BAND.min(self.n_out - first));
        });
    }

    /// Outputs `first..first + n` of all rows.
    fn band(&self, first: usize, n: usize) {
        let mut matrix_row = vec![0.0; self.n_in];
        let by_expert = self.order.chunk_by(|&a, &b| self.which[a] == self.which[b]);
        for rows in by_expert {
            let expert = self.which[rows[0]] as usize;
            for output in first..first + n {
                self.w.read((expert * self.n_out + output) * self.n_in, &mut matrix_row);
                for &row in rows {
                    let mut sum = 0.0;
                    product(&self.x[row * self.n_in..][..self.n_in], &matrix_row, &mut sum);
                    // SAFETY: this output of this row, which is in this band of one task alone.
                    unsafe { self.out.write(row * self.n_out + output, &[sum]) };
                }
            }
        }
    }
}

for_processor! {
    /// The sum of products.
    product = product_body(a: &[f32], b: &[f32], sum: &mut f32)
}

#[inline(always)]
fn product_body<const FUSED: bool>(a: &[f32], b: &[f32], sum: &mut f32) {
    *sum = dot::<FUSED>(a, b);
}
