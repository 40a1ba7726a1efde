//! The same products in f32 throughout: rows of weights as floats times rows of activations, both
//! in the order of unpacked codes and filled up to whole blocks.

use super::activations::BLOCK;
use super::tile::Table;
use crate::cpu::{for_processor, madd};

/// Lanes of a sum.
const LANES: usize = 16;

/// One row of weights times the rows of x: `to[t * stride]`.
pub(super) fn products(w: &[f32], x: &[&[f32]], to: &mut Table<'_>) {
    run(w, x, to);
}

/// Rows of `width` in the order of unpacked codes.
pub(super) fn ordered(x: &[f32], width: usize) -> Vec<f32> {
    let padded = width.next_multiple_of(BLOCK);
    let mut to = vec![0.0; x.len() / width * padded];
    for (x, to) in x.chunks(width).zip(to.chunks_mut(padded)) {
        for (x, to) in x.chunks(BLOCK).zip(to.chunks_mut(BLOCK)) {
            for (e, x) in x.iter().enumerate() {
                to[e % 2 * 32 + e / 2] = *x;
            }
        }
    }
    to
}

for_processor! {
    /// The same.
    run = products_body(w: &[f32], x: &[&[f32]], to: &mut Table<'_>)
}

#[inline(always)]
fn products_body<const FUSED: bool>(w: &[f32], x: &[&[f32]], to: &mut Table<'_>) {
    let mut t = 0;
    while t < x.len() {
        if x.len() - t >= 4 {
            let sums = sums::<FUSED, 4>(w, [x[t], x[t + 1], x[t + 2], x[t + 3]]);
            for (i, sum) in sums.iter().enumerate() {
                to.values[(t + i) * to.stride] = *sum;
            }
            t += 4;
        } else {
            to.values[t * to.stride] = sums::<FUSED, 1>(w, [x[t]])[0];
            t += 1;
        }
    }
}

#[inline(always)]
fn sums<const FUSED: bool, const T: usize>(w: &[f32], x: [&[f32]; T]) -> [f32; T] {
    let mut lanes = [[0.0f32; LANES]; T];
    for at in (0..w.len()).step_by(LANES) {
        let w = &w[at..at + LANES];
        for t in 0..T {
            let x = &x[t][at..at + LANES];
            for i in 0..LANES {
                lanes[t][i] = madd::<FUSED>(w[i], x[i], lanes[t][i]);
            }
        }
    }
    let mut sums = [0.0; T];
    for t in 0..T {
        let mut lanes = lanes[t];
        for half in [8, 4, 2, 1] {
            for i in 0..half {
                lanes[i] += lanes[i + half];
            }
        }
        sums[t] = lanes[0];
    }
    sums
}
