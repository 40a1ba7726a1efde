//! Norms on the CPU: a row is read once, and each result written once.

use std::ops::Range;

use mlx::{Array, CpuKernel, Dtype, Result, StridedRef, TensorMut};

use super::Norm;
use crate::cpu::{Failure, Parts, Rows, dot, each_rows, exp, for_processor, round_to};

struct Task<'a> {
    x: Rows<'a>,
    added: Option<Rows<'a>>,
    gate: Option<Rows<'a>>,
    weight: Option<Rows<'a>>,
    eps: f32,
    factor: f32,
    dtype: Dtype,
    out: Parts<'a>,
    sum: Option<Parts<'a>>,
}

/// What the inputs are, in order.
#[derive(Clone, Copy)]
struct Given {
    added: bool,
    gate: bool,
    weight: bool,
    eps: f32,
    factor: f32,
}

/// The norm as one node of the graph.
pub(super) fn run(norm: &Norm<'_>) -> Result<(Array, Option<Array>)> {
    let given = Given {
        added: norm.added.is_some(),
        gate: norm.gate.is_some(),
        weight: norm.weight.is_some(),
        eps: norm.eps,
        factor: norm.factor,
    };
    let mut inputs = vec![norm.x];
    inputs.extend(norm.added.into_iter().chain(norm.gate).chain(norm.weight));
    let output = (norm.x.shape(), norm.x.dtype());
    let outputs = if given.added { vec![output; 2] } else { vec![output] };
    let made = CpuKernel::call_strided(&inputs, &outputs, move |ins, outs| {
        let task = Task::new(ins, given, outs)?;
        let n = ins[0].shape.iter().map(|&n| n as usize).product::<usize>() / task.x.width;
        each_rows(n, task.x.width, &|rows| norms(&task, rows));
        Ok(())
    })?;
    let mut made = made.into_iter();
    let normed = made.next().expect("as many outputs as were asked for");
    Ok((normed, made.next()))
}

impl<'a> Task<'a> {
    fn new(
        ins: &[StridedRef<'a>],
        given: Given,
        outs: &'a mut [TensorMut<'_>],
    ) -> std::result::Result<Self, Failure> {
        let mut ins = ins.iter();
        let mut next = |is_given: bool| -> std::result::Result<_, Failure> {
            if is_given { ins.next().map(Rows::new).transpose() } else { Ok(None) }
        };
        let x = next(true)?.ok_or("x is missing")?;
        let (added, gate, weight) = (next(given.added)?, next(given.gate)?, next(given.weight)?);
        let dtype = outs[0].dtype;
        let mut outs = outs.iter_mut().map(Parts::new);
        Ok(Self {
            x,
            added,
            gate,
            weight,
            eps: given.eps,
            factor: given.factor,
            dtype,
            out: outs.next().ok_or("an output is missing")??,
            sum: outs.next().transpose()?,
        })
    }
}

for_processor! {
    norms = norms_body(task: &Task<'_>, rows: Range<usize>)
}

#[inline(always)]
fn norms_body<const FUSED: bool>(task: &Task<'_>, rows: Range<usize>) {
    let width = task.x.width;
    let (mut x, mut other) = (vec![0.0; width], vec![0.0; width]);
    let weight = task.weight.map(|weight| {
        let mut values = vec![0.0; width];
        weight.read(0, 0, &mut values);
        values
    });
    for row in rows {
        task.x.read(row, 0, &mut x);
        if let (Some(added), Some(sum)) = (&task.added, &task.sum) {
            added.read(row, 0, &mut other);
            x.iter_mut().zip(&other).for_each(|(x, y)| *x += y);
            round_to(task.dtype, &mut x);
            // SAFETY: a row belongs to one task.
            unsafe { sum.write(row * width, &x) };
        }
        let mean = dot::<FUSED>(&x, &x) / width as f32;
        let factor = task.factor / (mean + task.eps).sqrt();
        match &weight {
            Some(weight) => x.iter_mut().zip(weight).for_each(|(x, w)| *x = *x * factor * w),
            None => x.iter_mut().for_each(|x| *x *= factor),
        }
        if let Some(gate) = &task.gate {
            gate.read(row, 0, &mut other);
            x.iter_mut().zip(&other).for_each(|(x, z)| *x *= z / (1.0 + exp::<FUSED>(-z)));
        }
        // SAFETY: as above.
        unsafe { task.out.write(row * width, &x) };
    }
}
