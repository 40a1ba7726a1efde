//! The gated delta rule on the CPU: step by step, with a band of the state's rows in the
//! processor's nearest cache.
//!
//! The rows of a state (one per value) do not depend on each other, so many steps run over one band
//! of rows before the next band is touched. The chunked form would need more arithmetic, not less:
//! its advantage, fewer passes over the state, is there already. Many steps lay a band out with the
//! values beside each other, so that sums over keys need no horizontal additions; a few steps are
//! not worth turning the state around and go row by row. For a given form, results do not depend on
//! where a sequence is split.

use mlx::{Array, CpuKernel, Dtype, Result, TensorMut, TensorRef};

use super::{GatedDelta, Sizes, Updated};
use crate::cpu::{Failure, Floats, Parts, dot, each, for_processor, madd};

/// Rows of a band.
const BAND: usize = 32;
/// Steps that run over a band before the next.
const BLOCK: usize = 64;
/// Fewer steps than this go row by row.
const FEW: usize = 6;

/// Where one task finds and leaves things.
struct Task<'a> {
    q: Floats<'a>,
    k: Floats<'a>,
    v: Floats<'a>,
    log_decay: &'a [f32],
    beta: &'a [f32],
    state: Option<&'a [f32]>,
    lengths: Option<&'a [i32]>,
    capture: &'a [i32],
    sizes: Sizes,
    out: Parts<'a>,
    /// The last state, then the captured ones.
    states: Vec<Parts<'a>>,
}

/// The rule as one node of the graph. q, k and v in f32 or bf16.
pub(super) fn run(g: &GatedDelta<'_>, sizes: Sizes, capture: &[i32]) -> Result<Updated> {
    let native = |x: &Array| {
        let dtype = if x.dtype() == Dtype::Bf16 { Dtype::Bf16 } else { Dtype::F32 };
        x.astype(dtype)
    };
    let (q, k, v) = (native(g.q)?, native(g.k)?, native(g.v)?);
    let mut inputs = vec![&q, &k, &v, g.log_decay, g.beta];
    inputs.extend(g.state);
    inputs.extend(g.lengths);
    let (has_state, has_lengths) = (g.state.is_some(), g.lengths.is_some());
    let shape = sizes.state();
    let mut outputs = vec![(v.shape(), v.dtype())];
    outputs.extend(std::iter::repeat_n((&shape[..], Dtype::F32), 1 + capture.len()));
    let capture = capture.to_vec();
    let mut made = CpuKernel::call(&inputs, &outputs, move |ins, outs| {
        let mut rest = ins[5..].iter();
        let state = if has_state { rest.next() } else { None };
        let lengths = if has_lengths { rest.next() } else { None };
        Task::new(ins, state, lengths, &capture, sizes, outs)?.run();
        Ok(())
    })?
    .into_iter();
    match (made.next(), made.next()) {
        (Some(out), Some(state)) => {
            Ok(Updated { out: out.astype(g.v.dtype())?, state, captured: made.collect() })
        }
        _ => unreachable!("as many outputs as were asked for"),
    }
}

impl<'a> Task<'a> {
    fn new(
        ins: &[TensorRef<'a>],
        state: Option<&TensorRef<'a>>,
        lengths: Option<&TensorRef<'a>>,
        capture: &'a [i32],
        sizes: Sizes,
        outs: &'a mut [TensorMut<'_>],
    ) -> std::result::Result<Self, Failure> {
        let mut parts =
            outs.iter_mut().map(Parts::new).collect::<std::result::Result<Vec<_>, _>>()?;
        Ok(Self {
            q: Floats::new(&ins[0])?,
            k: Floats::new(&ins[1])?,
            v: Floats::new(&ins[2])?,
            log_decay: ins[3].as_slice()?,
            beta: ins[4].as_slice()?,
            state: state.map(TensorRef::as_slice).transpose()?,
            lengths: lengths.map(TensorRef::as_slice).transpose()?,
            capture,
            sizes,
            out: parts.remove(0),
            states: parts,
        })
    }

    fn run(&self) {
        let heads = self.sizes.v_heads as usize;
        each(self.sizes.rows as usize * heads, &|i| {
            let (row, head) = (i / heads, i % heads);
            let steps = self.sizes.steps as usize;
            let n = self.lengths.map_or(steps, |l| (l[row].max(0) as usize).min(steps));
            if n < FEW { self.by_rows(row, head, n) } else { self.by_bands(row, head, n) }
        });
    }

    /// The element where the state of a head begins.
    fn state_at(&self, row: usize, head: usize) -> usize {
        let s = self.sizes;
        (row * s.v_heads as usize + head) * (s.v_dim * s.k_dim) as usize
    }

    /// Keys, queries and gates of steps `from..from + n`.
    fn read(&self, row: usize, head: usize, from: usize, n: usize, to: &mut Block) {
        let s = self.sizes;
        let (dk, hk, hv) = (s.k_dim as usize, s.k_heads as usize, s.v_heads as usize);
        for i in 0..n {
            let step = row * s.steps as usize + from + i;
            let key = (step * hk + head / s.share() as usize) * dk;
            self.k.read(key, &mut to.k[i * dk..][..dk]);
            self.q.read(key, &mut to.q[i * dk..][..dk]);
            to.gate[i] = self.log_decay[step * hv + head].exp();
            to.beta[i] = self.beta[step * hv + head];
        }
    }

    /// Where values and outputs of a step lie.
    fn value_at(&self, row: usize, head: usize, step: usize) -> usize {
        let s = self.sizes;
        ((row * s.steps as usize + step) * s.v_heads as usize + head) * s.v_dim as usize
    }

    /// The steps from `from` on that end at a block's end, a capture, or the last step.
    fn next_block(&self, from: usize, n: usize) -> usize {
        let captures = self.capture.iter().map(|&p| p as usize).filter(|&p| p > from);
        captures.chain([n, from + BLOCK]).min().expect("there is an end") - from
    }

    /// The outputs that hold the state after `step` steps of `n`.
    fn kept(&self, step: usize, n: usize) -> impl Iterator<Item = &Parts<'a>> {
        let last = (step == n).then(|| &self.states[0]);
        let captured = self.capture.iter().zip(&self.states[1..]);
        last.into_iter().chain(
            captured.filter_map(move |(&p, state)| ((p as usize).min(n) == step).then_some(state)),
        )
    }

    fn by_rows(&self, row: usize, head: usize, n: usize) {
        let (dk, dv) = (self.sizes.k_dim as usize, self.sizes.v_dim as usize);
        let at = self.state_at(row, head);
        let mut state = vec![0.0; dv * dk];
        if let Some(before) = self.state {
            state.copy_from_slice(&before[at..at + dv * dk]);
        }
        let mut block = Block::new(n, dk);
        self.read(row, head, 0, n, &mut block);
        let (mut v, mut out) = (vec![0.0; dv], vec![0.0; dv]);
        for step in 0..=n {
            for kept in self.kept(step, n) {
                // SAFETY: this head's part of the state, which no other task touches.
                unsafe { kept.write(at, &state) };
            }
            if step == n {
                break;
            }
            self.v.read(self.value_at(row, head, step), &mut v);
            one_step(&mut state, &block, step, &v, &mut out);
            // SAFETY: this head's outputs, which no other task touches.
            unsafe { self.out.write(self.value_at(row, head, step), &out) };
        }
    }

    fn by_bands(&self, row: usize, head: usize, n: usize) {
        let (dk, dv) = (self.sizes.k_dim as usize, self.sizes.v_dim as usize);
        let at = self.state_at(row, head);
        let n_bands = dv.div_ceil(BAND);
        let mut state = vec![0.0; n_bands * dk * BAND]; // [bands, Dk, BAND]
        if let Some(before) = self.state {
            turn(&before[at..at + dv * dk], dk, |d, i, value| {
                state[(d / BAND * dk + i) * BAND + d % BAND] = *value;
            });
        }
        let mut block = Block::new(BLOCK, dk);
        let mut v = vec![0.0; BLOCK * n_bands * BAND];
        let mut out = v.clone();
        let width = n_bands * BAND;
        let mut done = 0;
        loop {
            for kept in self.kept(done, n) {
                // SAFETY: this head's part of the state, which no other task touches.
                let to = unsafe { kept.slice::<f32>(at, dv * dk) };
                for (d, to) in to.chunks_exact_mut(dk).enumerate() {
                    let from = &state[d / BAND * dk * BAND..];
                    to.iter_mut().enumerate().for_each(|(i, x)| *x = from[i * BAND + d % BAND]);
                }
            }
            if done == n {
                return;
            }
            let count = self.next_block(done, n);
            self.read(row, head, done, count, &mut block);
            for i in 0..count {
                self.v.read(self.value_at(row, head, done + i), &mut v[i * width..][..dv]);
            }
            for (i, band) in state.chunks_exact_mut(dk * BAND).enumerate() {
                many_steps(band, &block, count, &v[i * BAND..], &mut out[i * BAND..], width);
            }
            for i in 0..count {
                // SAFETY: this head's outputs, which no other task touches.
                unsafe {
                    self.out.write(self.value_at(row, head, done + i), &out[i * width..][..dv]);
                }
            }
            done += count;
        }
    }
}

fn turn<'s>(state: &'s [f32], dk: usize, mut visit: impl FnMut(usize, usize, &'s f32)) {
    for (d, values) in state.chunks_exact(dk).enumerate() {
        values.iter().enumerate().for_each(|(i, value)| visit(d, i, value));
    }
}

/// Keys and queries `[n, Dk]`, gates and betas `[n]` of some steps of one head.
struct Block {
    k: Vec<f32>,
    q: Vec<f32>,
    gate: Vec<f32>,
    beta: Vec<f32>,
}

impl Block {
    fn new(n: usize, dk: usize) -> Self {
        let zeros = |n| vec![0.0; n];
        Self { k: zeros(n * dk), q: zeros(n * dk), gate: zeros(n), beta: zeros(n) }
    }
}

for_processor! {
    /// One step over all rows of `state` `[Dv, Dk]`.
    one_step = rows_body(state: &mut [f32], block: &Block, step: usize, v: &[f32], out: &mut [f32])
}

#[inline(always)]
fn rows_body<const FUSED: bool>(
    state: &mut [f32],
    block: &Block,
    step: usize,
    v: &[f32],
    out: &mut [f32],
) {
    let dk = state.len() / v.len();
    let (k, q) = (&block.k[step * dk..][..dk], &block.q[step * dk..][..dk]);
    let (gate, beta) = (block.gate[step], block.beta[step]);
    for ((row, v), out) in state.chunks_exact_mut(dk).zip(v).zip(out) {
        let delta = (v - gate * dot::<FUSED>(row, k)) * beta;
        for (s, k) in row.iter_mut().zip(k) {
            *s = madd::<FUSED>(delta, *k, gate * *s);
        }
        *out = dot::<FUSED>(row, q);
    }
}

for_processor! {
    /// `n` steps over one band `[Dk, BAND]` of the state. Values and outputs of a step lie `width`
    /// apart.
    many_steps = band_body(
        band: &mut [f32],
        block: &Block,
        n: usize,
        v: &[f32],
        out: &mut [f32],
        width: usize,
    )
}

#[inline(always)]
fn band_body<const FUSED: bool>(
    band: &mut [f32],
    block: &Block,
    n: usize,
    v: &[f32],
    out: &mut [f32],
    width: usize,
) {
    let (band, _) = band.as_chunks_mut::<BAND>();
    let dk = band.len();
    for step in 0..n {
        let (k, q) = (&block.k[step * dk..][..dk], &block.q[step * dk..][..dk]);
        let (gate, beta) = (block.gate[step], block.beta[step]);
        // Two sums, so that one does not wait for the other.
        let (mut even, mut odd) = ([0.0f32; BAND], [0.0f32; BAND]);
        let (pairs, keys) = (band.as_chunks::<2>(), k.as_chunks::<2>());
        for (s, k) in pairs.0.iter().zip(keys.0) {
            for l in 0..BAND {
                even[l] = madd::<FUSED>(s[0][l], k[0], even[l]);
                odd[l] = madd::<FUSED>(s[1][l], k[1], odd[l]);
            }
        }
        for (s, k) in pairs.1.iter().zip(keys.1) {
            for l in 0..BAND {
                even[l] = madd::<FUSED>(s[l], *k, even[l]);
            }
        }
        let v = &v[step * width..][..BAND];
        let mut delta = [0.0f32; BAND];
        for l in 0..BAND {
            delta[l] = (v[l] - gate * (even[l] + odd[l])) * beta;
        }
        let mut y = [0.0f32; BAND];
        for ((s, k), q) in band.iter_mut().zip(k).zip(q) {
            for l in 0..BAND {
                s[l] = madd::<FUSED>(delta[l], *k, gate * s[l]);
                y[l] = madd::<FUSED>(s[l], *q, y[l]);
            }
        }
        out[step * width..][..BAND].copy_from_slice(&y);
    }
}
