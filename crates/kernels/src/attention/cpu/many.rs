//! Many queries per head of keys: tiles of keys and values become f32 in panels once, and groups of
//! queries are multiplied with them in blocks of registers.
//!
//! A panel is 16 columns wide: two registers. A block is six queries: twelve sums, two registers of
//! the panel, one of a query's number. Keys lie in panels of 16 keys `[D, 16]`, values in panels of
//! 16 columns `[keys, 16]`, so that both products are the same loop.

use super::softmax::Softmax;
use super::{Partial, TILE, Task, Unit};
use crate::cpu::lanes::{Lanes, Stored};

/// Columns of a panel.
pub(super) const PANEL: usize = 16;
/// Queries of a block.
pub(super) const BLOCK: usize = 6;
/// Blocks that pass over a panel before the next.
const GROUP: usize = 4;

/// A tile of keys and values in panels.
struct Tile {
    keys: Vec<[f32; PANEL]>,
    values: Vec<[f32; PANEL]>,
    /// Rows of a panel of values.
    size: usize,
    dim: usize,
}

/// Keys of a tile: so many that a tile of both stays in the second-nearest cache.
fn tile_keys(task: &Task<'_>) -> usize {
    if task.dim() + task.value_dim() > 8 * TILE { TILE / 2 } else { TILE }
}

#[inline(always)]
pub(super) fn run<V: Lanes, E: Stored>(task: &Task<'_>, unit: &Unit, to: &mut Partial) {
    let size = tile_keys(task);
    let mut tile = Tile {
        keys: vec![[0.0; PANEL]; size.div_ceil(PANEL) * task.dim()],
        values: vec![[0.0; PANEL]; size * task.value_dim().div_ceil(PANEL)],
        size,
        dim: task.dim(),
    };
    let mut logits = vec![0.0; GROUP * BLOCK * TILE];
    let mut from = unit.keys.start;
    while from < unit.keys.end {
        let n = size.min(unit.keys.end - from);
        tile.fill::<V, E>(task, unit, from, n);
        let mut r = 0;
        while r < unit.rows.len() {
            let n_rows = (GROUP * BLOCK).min(unit.rows.len() - r);
            group::<V>(task, unit, &tile, from, n, r, n_rows, &mut logits, to);
            r += n_rows;
        }
        from += n;
    }
}

impl Tile {
    /// Takes keys and values `from..from + n`.
    #[inline(always)]
    fn fill<V: Lanes, E: Stored>(&mut self, task: &Task<'_>, unit: &Unit, from: usize, n: usize) {
        for first in (0..n).step_by(8) {
            let mut rows: [&[u8]; 8] = [&[]; 8];
            for (i, row) in rows.iter_mut().enumerate() {
                // Beyond the last key it is taken again: no query looks there.
                *row = task.key(unit, from + (first + i).min(n - 1));
            }
            let panel = &mut self.keys[first / PANEL * self.dim..][..self.dim];
            turn::<V, E>(&rows, panel, first % PANEL);
        }
        for i in 0..n {
            let (eights, rest) = E::eights(task.value(unit, from + i));
            for (c, eight) in eights.iter().enumerate() {
                let row = &mut self.values[c / 2 * self.size + i];
                let (halves, _) = row.as_chunks_mut::<8>();
                E::widen::<V>(eight).store(&mut halves[c % 2]);
            }
            for (d, one) in rest.chunks_exact(E::BYTES).enumerate() {
                let d = 8 * eights.len() + d;
                self.values[d / PANEL * self.size + i][d % PANEL] = E::one(one);
            }
        }
    }
}

/// Eight keys become eight columns of a panel, from column `first` on.
#[inline(always)]
fn turn<V: Lanes, E: Stored>(rows: &[&[u8]; 8], panel: &mut [[f32; PANEL]], first: usize) {
    let n = panel.len() / 8;
    let mut wide: [&[E::Eight]; 8] = [&[]; 8];
    for j in 0..8 {
        wide[j] = &E::eights(rows[j]).0[..n];
    }
    for c in 0..n {
        let mut square = [V::splat(0.0); 8];
        for j in 0..8 {
            square[j] = E::widen::<V>(&wide[j][c]);
        }
        let square = V::transpose(square);
        let to = &mut panel[8 * c..8 * c + 8];
        for j in 0..8 {
            let (halves, _) = to[j].as_chunks_mut::<8>();
            square[j].store(&mut halves[first / 8]);
        }
    }
    for d in 8 * n..panel.len() {
        for (j, row) in rows.iter().enumerate() {
            panel[d][first + j] = E::one(&row[d * E::BYTES..]);
        }
    }
}

/// The tile's part of the result for queries `first..first + n_rows` of the unit.
#[allow(clippy::too_many_arguments)]
#[inline(always)]
fn group<V: Lanes>(
    task: &Task<'_>,
    unit: &Unit,
    tile: &Tile,
    from: usize,
    n: usize,
    first: usize,
    n_rows: usize,
    logits: &mut [f32],
    to: &mut Partial,
) {
    // What any query of the group sees, in whole panels from the front.
    let all = (task.seen(unit, first).start.max(from), task.seen(unit, first + n_rows - 1).end);
    let (a, b) = (all.0 - from, all.1.min(from + n).max(from) - from);
    let a = a / PANEL * PANEL;
    if a >= b {
        return;
    }
    let dim = tile.dim;
    let q = &to.q[first * dim..][..n_rows * dim];
    for column in (a..b).step_by(PANEL) {
        let panel = &tile.keys[column / PANEL * dim..][..dim];
        products::<V>(q, dim, panel, &mut logits[column..], TILE, false);
    }
    for r in 0..n_rows {
        let seen = task.seen(unit, first + r);
        let logits = &mut logits[r * TILE..][..TILE];
        let (own, end) = (seen.start.clamp(from + a, from + b), seen.end.clamp(from + a, from + b));
        let (own, end) = (own - from, end.max(own) - from);
        logits[a..own].fill(0.0);
        logits[end..b].fill(0.0);
        if own < end {
            let softmax = &mut to.softmax[first + r];
            let kept = Softmax::absorb::<V>(softmax, &mut logits[own..end]);
            to.scale_row::<V>(first + r, kept);
        }
    }
    let (out, width) = (&mut to.out[first * to.width..][..n_rows * to.width], to.width);
    let weights = &logits[..n_rows * TILE];
    for column in (0..width).step_by(PANEL) {
        let panel = &tile.values[column / PANEL * tile.size..][a..b];
        products::<V>(&weights[a..], TILE, panel, &mut out[column..], width, true);
    }
}

/// `to` [+]= `left` · `panel`: rows of `left` are `stride` apart, those of `to` `width`; the last
/// row of `left` may be cut short behind what is used.
#[inline(always)]
fn products<V: Lanes>(
    left: &[f32],
    stride: usize,
    panel: &[[f32; PANEL]],
    to: &mut [f32],
    width: usize,
    adds: bool,
) {
    let n_rows = left.len().div_ceil(stride);
    let mut r = 0;
    while r < n_rows {
        let left = &left[r * stride..];
        let to = &mut to[r * width..];
        r += match n_rows - r {
            1 => block::<V, 1>(left, stride, panel, to, width, adds),
            2 => block::<V, 2>(left, stride, panel, to, width, adds),
            3 => block::<V, 3>(left, stride, panel, to, width, adds),
            4 => block::<V, 4>(left, stride, panel, to, width, adds),
            5 => block::<V, 5>(left, stride, panel, to, width, adds),
            _ => block::<V, BLOCK>(left, stride, panel, to, width, adds),
        };
    }
}

/// The same for the first R rows. Returns R.
#[inline(always)]
fn block<V: Lanes, const R: usize>(
    left: &[f32],
    stride: usize,
    panel: &[[f32; PANEL]],
    to: &mut [f32],
    width: usize,
    adds: bool,
) -> usize {
    let mut rows: [&[f32]; R] = [&[]; R];
    for r in 0..R {
        rows[r] = &left[r * stride..][..panel.len()];
    }
    let mut sums = [[V::splat(0.0); 2]; R];
    for (k, line) in panel.iter().enumerate() {
        let (halves, _) = line.as_chunks::<8>();
        let (low, high) = (V::load(&halves[0]), V::load(&halves[1]));
        for r in 0..R {
            let x = V::splat(rows[r][k]);
            sums[r][0] = x.madd(low, sums[r][0]);
            sums[r][1] = x.madd(high, sums[r][1]);
        }
    }
    for r in 0..R {
        let (halves, _) = to[r * width..][..PANEL].as_chunks_mut::<8>();
        for i in 0..2 {
            let sum = if adds { sums[r][i].add(V::load(&halves[i])) } else { sums[r][i] };
            sum.store(&mut halves[i]);
        }
    }
    R
}
