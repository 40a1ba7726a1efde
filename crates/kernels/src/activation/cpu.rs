//! Activations on the CPU.

use std::ops::Range;

use mlx::{Array, CpuKernel, Result};

use super::Rule;
use crate::cpu::{Parts, Rows, each_rows, exp, for_processor};

/// Elements that are worked on together: they stay in the processor's nearest cache.
const BLOCK: usize = 1024;

struct Task<'a> {
    rule: Rule,
    gate: Rows<'a>,
    up: Rows<'a>,
    /// Rows of the gate to one of the other array.
    n_parts: usize,
    out: Parts<'a>,
}

/// The activation as one node of the graph.
pub(super) fn run(rule: Rule, gate: &Array, up: &Array) -> Result<Array> {
    let outputs = [(up.shape(), up.dtype())];
    let made = CpuKernel::call_strided(&[gate, up], &outputs, move |ins, outs| {
        let [out] = outs else { return Err("one output was asked for".to_owned()) };
        let (gate, up) = (Rows::new(&ins[0])?, Rows::new(&ins[1])?);
        let n = ins[0].shape.iter().map(|&n| n as usize).product::<usize>() / gate.width;
        let task = Task { rule, gate, up, n_parts: up.width / gate.width, out: Parts::new(out)? };
        each_rows(n, gate.width, &|rows| activate(&task, rows));
        Ok(())
    })?;
    Ok(made.into_iter().next().expect("as many outputs as were asked for"))
}

for_processor! {
    /// For these rows of the gate.
    activate = activate_body(task: &Task<'_>, rows: Range<usize>)
}

#[inline(always)]
fn activate_body<const FUSED: bool>(task: &Task<'_>, rows: Range<usize>) {
    let width = task.gate.width;
    let (mut gates, mut ups) = ([0.0; BLOCK], [0.0; BLOCK]);
    for row in rows {
        let (up_row, up_begin) = (row / task.n_parts, row % task.n_parts * width);
        for from in (0..width).step_by(BLOCK) {
            let n = BLOCK.min(width - from);
            let (gate, up) = (&mut gates[..n], &mut ups[..n]);
            task.gate.read(row, from, gate);
            task.up.read(up_row, up_begin + from, up);
            apply::<FUSED>(task.rule, gate, up);
            // SAFETY: a row of the gate belongs to one task.
            unsafe { task.out.write(row * width + from, up) };
        }
    }
}

for_processor! {
    /// silu(gate) ⊙ up, left in `up`.
    swiglu = swiglu_body(gate: &[f32], up: &mut [f32])
}

#[inline(always)]
fn swiglu_body<const FUSED: bool>(gate: &[f32], up: &mut [f32]) {
    apply::<FUSED>(Rule::SwiGlu, gate, up);
}

/// silu(gate) ⊙ up in f32, left in `up`, for kernels that join a gate with more.
pub(crate) fn join_swiglu(gate: &[f32], up: &mut [f32]) {
    swiglu(gate, up);
}

/// Leaves the result in `up`.
#[inline(always)]
fn apply<const FUSED: bool>(rule: Rule, gate: &[f32], up: &mut [f32]) {
    let pairs = gate.iter().zip(up);
    match rule {
        Rule::SwiGlu => pairs.for_each(|(g, u)| *u *= g / (1.0 + exp::<FUSED>(-g))),
        Rule::Sigmoid => pairs.for_each(|(g, u)| *u /= 1.0 + exp::<FUSED>(-g)),
        Rule::GeGlu => pairs.for_each(|(g, u)| {
            // ½(1 + tanh t) = σ(2t).
            let t = (g + 0.044_715 * g * g * g) * std::f32::consts::FRAC_2_PI.sqrt();
            *u *= g / (1.0 + exp::<FUSED>(-2.0 * t));
        }),
        Rule::Clamped { alpha, limit } => pairs.for_each(|(g, u)| {
            let g = if *g > limit { limit } else { *g };
            *u = (u.clamp(-limit, limit) + 1.0) * (g / (1.0 + exp::<FUSED>(-alpha * g)));
        }),
    }
}
