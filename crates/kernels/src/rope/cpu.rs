//! Norm and turn of heads on the CPU: token by token, with its sines and cosines for all heads.

use std::ops::Range;
use std::sync::Arc;

use mlx::{Array, CpuKernel, Result, StridedRef};

use super::{Heads, Sizes};
use crate::Positions;
use crate::cpu::{Failure, Parts, Rows, dot, each_rows, for_processor, numbers};

/// What is known before the kernel runs.
pub(crate) struct Plan {
    sizes: Sizes,
    n_heads: usize,
    head_dim: usize,
    begin: usize,
    frequencies: Arc<[f32]>,
    traditional: bool,
    eps: Option<f32>,
    factor: f32,
}

struct Task<'a> {
    plan: &'a Plan,
    x: Rows<'a>,
    weight: Option<Rows<'a>>,
    /// The position of each row's first token.
    positions: &'a [i32],
    to: &'a Target<'a>,
}

/// Where heads go.
pub(crate) struct Target<'a> {
    pub(crate) out: Parts<'a>,
    /// Of each token of each row, where its first head begins; none for one that goes nowhere. No
    /// two tokens meet.
    pub(crate) begins: Begins<'a>,
    /// Elements from one head to the next.
    pub(crate) by_head: usize,
}

/// Where tokens begin in an output.
pub(crate) enum Begins<'a> {
    /// At a place of their own each.
    Each(Vec<Option<usize>>),
    /// At regular distances.
    Rows {
        /// Elements from one row, and from one token, to the next.
        strides: [usize; 2],
        /// Where the first token of each row is put; at 0 if absent.
        first: Option<&'a [i32]>,
    },
}

impl Begins<'_> {
    #[inline(always)]
    pub(crate) fn of(&self, row: usize, token: usize, n_tokens: usize) -> Option<usize> {
        match self {
            Begins::Each(list) => list[row * n_tokens + token],
            Begins::Rows { strides: [by_row, by_token], first } => {
                let first = first.map_or(0, |first| first[row] as usize);
                Some(row * by_row + (first + token) * by_token)
            }
        }
    }
}

/// All heads as one node of the graph.
pub(super) fn run(heads: &Heads<'_>, sizes: Sizes) -> Result<Array> {
    let plan = Plan::new(heads, sizes);
    let mut inputs = plan.inputs(heads);
    let same = match heads.positions {
        Positions::Same(position) => Some(vec![position; sizes.rows as usize]),
        Positions::Rows { positions, .. } => {
            inputs.push(positions);
            None
        }
    };
    let shape = [sizes.rows, heads.n_heads, sizes.tokens, heads.head_dim];
    let made = CpuKernel::call_strided(&inputs, &[(&shape, heads.x.dtype())], move |ins, outs| {
        let [out] = outs else { return Err("one output was asked for".to_owned()) };
        let (ins, rest) = ins.split_at(plan.n_inputs());
        let positions = same.clone().unwrap_or_else(|| numbers(&rest[0], i32::from_le_bytes));
        let token = plan.head_dim;
        let head = token * sizes.tokens as usize;
        let begins = Begins::Rows { strides: [head * plan.n_heads, token], first: None };
        let to = Target { out: Parts::new(out)?, begins, by_head: head };
        plan.run(ins, &positions, &to)
    })?;
    Ok(made.into_iter().next().expect("as many outputs as were asked for"))
}

impl Plan {
    pub(crate) fn new(heads: &Heads<'_>, sizes: Sizes) -> Self {
        Self {
            sizes,
            n_heads: heads.n_heads as usize,
            head_dim: heads.head_dim as usize,
            begin: heads.begin as usize,
            frequencies: heads.rotation.frequencies.clone(),
            traditional: heads.rotation.mlx.traditional,
            eps: heads.norm.map(|norm| norm.eps),
            factor: heads.rotation.factor.as_ref().map_or(1.0, |(factor, _)| *factor),
        }
    }

    pub(crate) fn n_tokens(&self) -> usize {
        self.sizes.tokens as usize
    }

    pub(crate) fn head_dim(&self) -> usize {
        self.head_dim
    }

    /// What the kernel reads, positions apart.
    pub(crate) fn inputs<'a>(&self, heads: &Heads<'a>) -> Vec<&'a Array> {
        [Some(heads.x), heads.norm.map(|norm| norm.weight)].into_iter().flatten().collect()
    }

    /// How many those are.
    pub(crate) fn n_inputs(&self) -> usize {
        1 + usize::from(self.eps.is_some())
    }

    /// Turns all heads. `positions` has the position of each row's first token.
    pub(crate) fn run(
        &self,
        ins: &[StridedRef<'_>],
        positions: &[i32],
        to: &Target<'_>,
    ) -> std::result::Result<(), Failure> {
        let weight = ins.get(1).map(Rows::new).transpose()?;
        let task = Task { plan: self, x: Rows::new(&ins[0])?, weight, positions, to };
        let n = self.sizes.rows as usize * self.sizes.tokens as usize;
        each_rows(n, self.n_heads * self.head_dim, &|tokens| turn(&task, tokens));
        Ok(())
    }
}

for_processor! {
    turn = turn_body(task: &Task<'_>, tokens: Range<usize>)
}

#[inline(always)]
fn turn_body<const FUSED: bool>(task: &Task<'_>, tokens: Range<usize>) {
    let plan = task.plan;
    let (dim, n_tokens) = (plan.head_dim, plan.sizes.tokens as usize);
    let half = plan.frequencies.len();
    let weight = task.weight.map(|weight| {
        let mut values = vec![0.0; dim];
        weight.read(0, 0, &mut values);
        values
    });
    let (mut head, mut turned) = (vec![0.0; dim], vec![0.0; 2 * half]);
    let (mut sines, mut cosines) = (vec![0.0; half], vec![0.0; half]);
    for i in tokens {
        let (row, token) = (i / n_tokens, i % n_tokens);
        let position = task.positions[row] + token as i32;
        let Some(begin) = task.to.begins.of(row, token, n_tokens) else { continue };
        for ((sin, cos), f) in sines.iter_mut().zip(&mut cosines).zip(&*plan.frequencies) {
            let (s, c) = sin_cos(position as f32 * f);
            (*sin, *cos) = (s * plan.factor, c * plan.factor);
        }
        for h in 0..plan.n_heads {
            task.x.read(i, h * plan.sizes.group as usize + plan.begin, &mut head);
            if let (Some(weight), Some(eps)) = (&weight, plan.eps) {
                let mean = dot::<FUSED>(&head, &head) / dim as f32;
                let factor = 1.0 / (mean + eps).sqrt();
                head.iter_mut().zip(weight).for_each(|(x, w)| *x = *x * factor * w);
            }
            if plan.traditional {
                turn_neighbours(&head[..2 * half], &sines, &cosines, &mut turned);
            } else {
                turn_halves(&head[..2 * half], &sines, &cosines, &mut turned);
            }
            head[..2 * half].copy_from_slice(&turned);
            // SAFETY: a token's heads belong to one task, and lie apart from those of others.
            unsafe { task.to.out.write(begin + h * task.to.by_head, &head) };
        }
    }
}

#[inline(always)]
fn turn_halves(x: &[f32], sines: &[f32], cosines: &[f32], out: &mut [f32]) {
    let half = sines.len();
    let ((a, b), (to_a, to_b)) = (x.split_at(half), out.split_at_mut(half));
    let (a, b, cosines) = (&a[..half], &b[..half], &cosines[..half]);
    let (to_a, to_b) = (&mut to_a[..half], &mut to_b[..half]);
    for i in 0..half {
        to_a[i] = a[i] * cosines[i] - b[i] * sines[i];
        to_b[i] = b[i] * cosines[i] + a[i] * sines[i];
    }
}

#[inline(always)]
fn turn_neighbours(x: &[f32], sines: &[f32], cosines: &[f32], out: &mut [f32]) {
    let pairs = x.chunks_exact(2).zip(out.chunks_exact_mut(2));
    for ((x, out), (sin, cos)) in pairs.zip(sines.iter().zip(cosines)) {
        out[0] = x[0] * cos - x[1] * sin;
        out[1] = x[1] * cos + x[0] * sin;
    }
}

/// Sine and cosine to f32, |x| < 2³⁰, in a form that compilers can do on many values at once.
#[inline(always)]
fn sin_cos(x: f32) -> (f32, f32) {
    // x = n π/2 + r, in f64. Adding and subtracting 1.5·2⁵² rounds to an integer.
    const ROUND: f64 = 6_755_399_441_055_744.0;
    let x = f64::from(x);
    let rounded = x * std::f64::consts::FRAC_2_PI + ROUND;
    let n = rounded - ROUND;
    let r = x - n * std::f64::consts::FRAC_PI_2;
    let square = r * r;
    let series = |terms: [f64; 4]| terms.iter().fold(0.0, |sum, term| sum * square + term);
    let sin = series([1.0 / 362_880.0, -1.0 / 5040.0, 1.0 / 120.0, -1.0 / 6.0]);
    let sin = r + r * square * sin;
    let cos = series([1.0 / 40_320.0, -1.0 / 720.0, 1.0 / 24.0, -0.5]);
    let cos = 1.0 + square * cos;
    // The low bits of the rounded sum are n: which quarter of the circle.
    let quarter = rounded.to_bits();
    let (a, b) = if quarter & 1 == 0 { (sin, cos) } else { (cos, sin) };
    let sign = |value: f64, quarter: u64| f64::from_bits(value.to_bits() ^ ((quarter & 2) << 62));
    (sign(a, quarter) as f32, sign(b, quarter.wrapping_add(1)) as f32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sines_and_cosines_are_the_libraries() {
        for i in -40_000..40_000i32 {
            for x in [i as f32 * 0.001, i as f32 * 0.7, i as f32 * 26.3] {
                let (sin, cos) = sin_cos(x);
                let (wanted_sin, wanted_cos) = f64::from(x).sin_cos();
                assert!((f64::from(sin) - wanted_sin).abs() < 7e-8, "{x}: {sin}");
                assert!((f64::from(cos) - wanted_cos).abs() < 7e-8, "{x}: {cos}");
            }
        }
    }
}
