//! Draws on the CPU: few passes over the scores of a row, which skip what cannot matter by blocks.

use std::borrow::Cow;

use mlx::{Array, CpuKernel, Dtype, Result, TensorRef};

use super::{Draw, Logprobs};
use crate::cpu::{Floats, Parts, each, exp, for_processor};

/// Scores that are looked at together.
const BLOCK: usize = 64;

/// Above what Gumbel noise can be: the largest number that it is made of is 1 − 2⁻²⁴.
const MAX_NOISE: f32 = 16.7;

/// How many candidates top-p looks at first.
const FIRST_CANDIDATES: usize = 256;
/// How many times more it looks at when they were too few.
const MORE_CANDIDATES: usize = 16;

/// A score and its index.
type Scored = (f32, u32);

pub(super) fn argmax(x: &Array) -> Result<Array> {
    let outer = &x.shape()[..x.n_dims() - 1];
    let made = CpuKernel::call(&[x], &[(outer, Dtype::U32)], |ins, outs| {
        let rows = Rows::new(&ins[0])?;
        let tokens = Parts::new(&mut outs[0])?;
        each(rows.n, &|row| {
            let mut best = (0.0, 0);
            first_largest(&rows.get(row), &mut best);
            // SAFETY: a row belongs to one task.
            let token = unsafe { tokens.slice::<u32>(row, 1) };
            token[0] = best.1;
        });
        Ok(())
    })?;
    Ok(made.into_iter().next().expect("as many outputs as were asked for"))
}

pub(super) fn draw(scores: &Array, draws: &[Draw]) -> Result<Array> {
    let draws = draws.to_vec();
    let outputs = [(&[scores.dim(0)][..], Dtype::U32)];
    let made = CpuKernel::call(&[scores], &outputs, move |ins, outs| {
        let rows = Rows::new(&ins[0])?;
        let tokens = Parts::new(&mut outs[0])?;
        each(rows.n, &|row| {
            // SAFETY: a row belongs to one task.
            let token = unsafe { tokens.slice::<u32>(row, 1) };
            draw_one(&rows.get(row), &draws[row], &mut token[0]);
        });
        Ok(())
    })?;
    Ok(made.into_iter().next().expect("as many outputs as were asked for"))
}

pub(super) fn logprobs(logits: &Array, tokens: &Array, n: i32) -> Result<Logprobs> {
    let (rows, n_best) = (logits.dim(0), n as usize);
    let (one, list) = ([rows], [rows, n]);
    let outputs = [(&one[..], Dtype::F32), (&list[..], Dtype::U32), (&list[..], Dtype::F32)];
    let outputs = if n > 0 { &outputs[..] } else { &outputs[..1] };
    let made = CpuKernel::call(&[logits, tokens], outputs, move |ins, outs| {
        let (rows, tokens) = (Rows::new(&ins[0])?, ins[1].as_slice::<u32>()?);
        if tokens.iter().any(|token| *token as usize >= rows.width) {
            return Err(format!("a token is not below {}", rows.width));
        }
        let outs = outs.iter_mut().map(Parts::new).collect::<std::result::Result<Vec<_>, _>>()?;
        each(rows.n, &|row| {
            let x = rows.get(row);
            let mut best = (0.0, 0);
            first_largest(&x, &mut best);
            let mut sum = 0.0;
            sum_of_exponentials(&x, best.0, 1.0, &mut sum);
            let log_sum = sum.ln();
            let of = |x: f32| (f64::from(x) - f64::from(best.0) - log_sum) as f32;
            // SAFETY: a row belongs to one task.
            let chosen = unsafe { outs[0].slice::<f32>(row, 1) };
            chosen[0] = of(x[tokens[row] as usize]);
            let [_, ids, values] = &outs[..] else { return };
            // SAFETY: as above.
            let (ids, values) = unsafe {
                let first = row * n_best;
                (ids.slice::<u32>(first, n_best), values.slice::<f32>(first, n_best))
            };
            for (i, (x, id)) in largest(&x, n_best).into_iter().enumerate() {
                (ids[i], values[i]) = (id, of(x));
            }
        });
        Ok(())
    })?;
    let mut made = made.into_iter();
    let chosen = made.next().expect("as many outputs as were asked for");
    Ok(Logprobs { chosen, best: made.next().zip(made.next()) })
}

/// The rows of an input as f32.
struct Rows<'a> {
    values: Floats<'a>,
    n: usize,
    width: usize,
}

impl<'a> Rows<'a> {
    fn new(x: &TensorRef<'a>) -> std::result::Result<Self, String> {
        let width = x.shape.last().map_or(1, |&n| n as usize);
        let n = x.shape.iter().map(|&n| n as usize).product::<usize>() / width;
        Ok(Self { values: Floats::new(x)?, n, width })
    }

    fn get(&self, row: usize) -> Cow<'a, [f32]> {
        if let Floats::F32(values) = self.values {
            return Cow::Borrowed(&values[row * self.width..(row + 1) * self.width]);
        }
        let mut copy = vec![0.0; self.width];
        convert(&self.values, row * self.width, &mut copy);
        Cow::Owned(copy)
    }
}

for_processor! {
    convert = convert_body(values: &Floats<'_>, start: usize, to: &mut [f32])
}

#[inline(always)]
fn convert_body<const FUSED: bool>(values: &Floats<'_>, start: usize, to: &mut [f32]) {
    values.read(start, to);
}

/// The largest, NaN passed over.
#[inline(always)]
fn max_of(x: &[f32]) -> f32 {
    let larger = |a: f32, b: f32| if b > a { b } else { a };
    let (whole, rest) = x.as_chunks::<32>();
    let mut lanes = [f32::NEG_INFINITY; 32];
    for x in whole {
        for i in 0..32 {
            lanes[i] = larger(lanes[i], x[i]);
        }
    }
    lanes.iter().chain(rest).fold(f32::NEG_INFINITY, |max, x| larger(max, *x))
}

for_processor! {
    first_largest = first_largest_body(x: &[f32], best: &mut Scored)
}

#[inline(always)]
fn first_largest_body<const FUSED: bool>(x: &[f32], best: &mut Scored) {
    let max = max_of(x);
    // In the first block that has it; where all are NaN, the first of all.
    let mut first = 0;
    for (block, x) in x.chunks(BLOCK).enumerate() {
        if x.iter().fold(false, |found, x| found | (*x == max)) {
            first = block * BLOCK + x.iter().position(|x| *x == max).unwrap_or(0);
            break;
        }
    }
    *best = (max, first as u32);
}

for_processor! {
    /// Σ e^((x − max) / divisor).
    sum_of_exponentials = sum_body(x: &[f32], max: f32, divisor: f32, sum: &mut f64)
}

#[inline(always)]
fn sum_body<const FUSED: bool>(x: &[f32], max: f32, divisor: f32, sum: &mut f64) {
    let (whole, rest) = x.as_chunks::<32>();
    let mut lanes = [0.0f32; 32];
    for x in whole {
        for i in 0..32 {
            lanes[i] += exp::<FUSED>((x[i] - max) / divisor);
        }
    }
    let rest = rest.iter().map(|x| f64::from(exp::<FUSED>((x - max) / divisor))).sum::<f64>();
    *sum = lanes.iter().map(|x| f64::from(*x)).sum::<f64>() + rest;
}

/// The `n` largest, in no stated order.
fn largest(x: &[f32], n: usize) -> Vec<Scored> {
    let descending = |a: &Scored, b: &Scored| b.0.total_cmp(&a.0);
    let cut = |list: &mut Vec<Scored>| {
        if list.len() > n {
            list.select_nth_unstable_by(n - 1, descending);
            list.truncate(n);
        }
    };
    let mut found = Vec::new();
    if 4 * n < x.len() {
        collect_above(x, n, &mut found, &cut);
    }
    if found.len() < n {
        found = x.iter().enumerate().map(|(i, x)| (*x, i as u32)).collect();
        cut(&mut found);
    }
    found
}

/// Collects what can be among the `n` largest, passing over blocks without any: `cut` leaves the n
/// largest of a list. Fewer than n are left where others are −∞ or NaN.
fn collect_above(x: &[f32], n: usize, found: &mut Vec<Scored>, cut: &dyn Fn(&mut Vec<Scored>)) {
    let room = 2 * n.max(BLOCK);
    let mut above = f32::NEG_INFINITY;
    let mut next = 0;
    while next < x.len() {
        pass_over(x, above, &mut next);
        let block = &x[next..x.len().min(next + BLOCK)];
        let ids = next as u32..;
        found.extend(block.iter().copied().zip(ids).filter(|(x, _)| *x > above));
        next += block.len();
        if found.len() >= room {
            cut(found);
            above = found.iter().fold(f32::INFINITY, |min, (x, _)| min.min(*x));
        }
    }
    cut(found);
}

for_processor! {
    /// Moves `next` by blocks to the first one that holds more than `above`.
    pass_over = pass_over_body(x: &[f32], above: f32, next: &mut usize)
}

#[inline(always)]
fn pass_over_body<const FUSED: bool>(x: &[f32], above: f32, next: &mut usize) {
    while let Some(block) = x.get(*next..*next + BLOCK) {
        if block.iter().fold(false, |found, x| found | (*x > above)) {
            return;
        }
        *next += BLOCK;
    }
}

/// Scores as the temperature changes them.
#[derive(Clone, Copy)]
struct Tempered {
    max: f32,
    divisor: f32,
}

impl Tempered {
    /// Never decreases with x.
    #[inline(always)]
    fn of(self, x: f32) -> f32 {
        if self.divisor == 1.0 { x } else { (x - self.max) / self.divisor }
    }
}

fn draw_one(x: &[f32], draw: &Draw, token: &mut u32) {
    let mut best = (0.0, 0);
    first_largest(x, &mut best);
    *token = best.1;
    if draw.is_greedy() || !best.0.is_finite() {
        return;
    }
    let scale = Tempered { max: best.0, divisor: draw.divisor() };
    let mut limit = f32::NEG_INFINITY;
    if draw.ranks() {
        limit = rank_limit(x, draw, scale);
    }
    if draw.min_p > 0.0 {
        limit = limit.max(scale.of(best.0) + draw.min_p.ln());
    }
    with_noise(x, draw.key, scale, limit, token);
}

/// The score of the last token that top-k and then top-p keep.
fn rank_limit(x: &[f32], draw: &Draw, scale: Tempered) -> f32 {
    let k = draw.k_of(x.len() as i32) as usize;
    let lowest = |list: &[Scored]| list.iter().fold(f32::INFINITY, |min, (x, _)| min.min(*x));
    if draw.top_p >= 1.0 {
        return scale.of(lowest(&largest(x, k)));
    }
    let share_of =
        |x: f32| ((f64::from(x) - f64::from(scale.max)) / f64::from(scale.divisor)).exp();
    let mut n = if k < x.len() { k } else { FIRST_CANDIDATES.min(k) };
    let mut sum = 0.0;
    if k == x.len() {
        sum_of_exponentials(x, scale.max, scale.divisor, &mut sum);
    }
    loop {
        let mut list = largest(x, n);
        list.sort_unstable_by(|a, b| b.0.total_cmp(&a.0));
        if k < x.len() {
            sum = list.iter().map(|(x, _)| share_of(*x)).sum();
        }
        let (mut before, wanted) = (0.0, f64::from(draw.top_p) * sum);
        let mut last = scale.max;
        let mut is_enough = n == k;
        for (x, _) in &list {
            if before >= wanted {
                is_enough = true;
                break;
            }
            last = *x;
            before += share_of(*x);
        }
        if is_enough {
            return scale.of(last);
        }
        n = (n * MORE_CANDIDATES).min(k);
    }
}

for_processor! {
    /// The token whose score, at least `limit`, is largest with its noise added.
    with_noise = noise_body(
        x: &[f32], key: u64, scale: Tempered, limit: f32, token: &mut u32
    )
}

#[inline(always)]
fn noise_body<const FUSED: bool>(
    x: &[f32],
    key: u64,
    scale: Tempered,
    limit: f32,
    token: &mut u32,
) {
    let noise = Noise::new(key, x.len());
    // The best score goes first: what cannot reach it with noise needs none.
    let mut winner = (scale.of(scale.max) + gumbel(noise.uniform(*token)), *token);
    let mut uniform = [0.0; BLOCK];
    for (block, x) in x.chunks(BLOCK).enumerate() {
        let first = (block * BLOCK) as u32;
        let largest = scale.of(max_of(x));
        if largest < limit || largest + MAX_NOISE < winner.0 {
            continue;
        }
        for i in 0..BLOCK as u32 {
            uniform[i as usize] = noise.uniform(first + i);
        }
        // −ln(−ln u) ≤ −ln(1 − u): where even that is too little, the noise is not worked out.
        let mut reaches = [false; BLOCK];
        for ((reaches, x), u) in reaches.iter_mut().zip(x).zip(&uniform) {
            let missing = winner.0 - scale.of(*x);
            *reaches = 1.0 - u <= exp::<FUSED>(-missing) * 1.001;
        }
        for (i, x) in x.iter().enumerate() {
            let score = scale.of(*x);
            if !reaches[i] || score < limit {
                continue;
            }
            let (with, i) = (score + gumbel(uniform[i]), first + i as u32);
            if with > winner.0 || (with == winner.0 && i < winner.1) {
                winner = (with, i);
            }
        }
    }
    *token = winner.1;
}

fn gumbel(u: f32) -> f32 {
    -(-u.ln()).ln()
}

/// The numbers that MLX draws for a row of `n` with a key: Threefry-2x32 of 20 rounds (Salmon et
/// al., "Parallel random numbers: as easy as 1, 2, 3", 2011). A call gives numbers i and
/// i + ⌈n/2⌉; the middle one of an odd n comes alone.
#[derive(Clone, Copy)]
struct Noise {
    keys: [u32; 3],
    half: u32,
    is_odd: bool,
}

impl Noise {
    fn new(key: u64, n: usize) -> Self {
        let (a, b) = ((key >> 32) as u32, key as u32);
        Self { keys: [a, b, a ^ b ^ 0x1bd1_1bda], half: n as u32 / 2, is_odd: n % 2 == 1 }
    }

    /// Number i, in 0..1.
    #[inline(always)]
    fn uniform(&self, i: u32) -> f32 {
        let upper = self.half + u32::from(self.is_odd);
        let is_upper = i >= upper;
        let is_middle = self.is_odd && i == self.half;
        let first = if is_upper { i.wrapping_sub(upper) } else { i };
        let second = if is_upper { i } else { i.wrapping_add(upper) };
        let [a, b] = self.hash(first, if is_middle { 0 } else { second });
        let bits = if is_upper { b } else { a };
        // Rounding may give 1.
        (bits as f32 * 2f32.powi(-32)).min(1.0 - f32::EPSILON / 2.0)
    }

    #[inline(always)]
    fn hash(&self, a: u32, b: u32) -> [u32; 2] {
        let keys = &self.keys;
        let (mut a, mut b) = (a.wrapping_add(keys[0]), b.wrapping_add(keys[1]));
        for round in 0..5 {
            let turns = if round % 2 == 0 { [13, 15, 26, 6] } else { [17, 29, 16, 24] };
            for turn in turns {
                a = a.wrapping_add(b);
                b = b.rotate_left(turn) ^ a;
            }
            a = a.wrapping_add(keys[(round + 1) % 3]);
            b = b.wrapping_add(keys[(round + 2) % 3]).wrapping_add(round as u32 + 1);
        }
        [a, b]
    }
}
