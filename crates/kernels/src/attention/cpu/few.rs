//! Few queries per head of keys: keys and values go from memory into the sums as they are stored.
//!
//! A tile of keys is read from memory once for all queries; while it is near, each group of
//! queries passes over it. Sums stay in registers: dot products of some keys with some queries,
//! then some columns of values for some queries. Values are asked for while keys are read, and the
//! next tile's keys while values are: few queries do not keep the processor busy until memory
//! answers.

use super::softmax::Softmax;
use super::{Partial, TILE, Task, Unit};
use crate::cpu::lanes::{Lanes, Stored};
use crate::cpu::prefetch;

/// A tile of keys or values.
type Rows<'t> = [&'t [u8]];

#[inline(always)]
pub(super) fn run<V: Lanes, E: Stored>(task: &Task<'_>, unit: &Unit, to: &mut Partial) {
    let (n_rows, dim) = (unit.rows.len(), task.dim());
    let mut logits = vec![0.0; n_rows * TILE];
    let mut from = unit.keys.start;
    let (mut keys, mut values): ([&[u8]; TILE], [&[u8]; TILE]) = ([&[]; TILE], [&[]; TILE]);
    let mut n = fill(&mut keys, unit, from, |token| task.key(unit, token));
    while n > 0 {
        fill(&mut values, unit, from, |token| task.value(unit, token));
        all_scores::<V, E>(&to.q, dim, &keys[..n], &values[..n], &mut logits);
        for (r, logits) in logits.chunks_exact_mut(TILE).enumerate() {
            let seen = task.seen(unit, r);
            let (a, b) = (seen.start.clamp(from, from + n), seen.end.clamp(from, from + n));
            let (a, b) = (a - from, b.max(a) - from);
            logits[..a].fill(0.0);
            logits[b..n].fill(0.0);
            if a == b {
                continue;
            }
            let kept = Softmax::absorb::<V>(&mut to.softmax[r], &mut logits[a..b]);
            to.scale_row::<V>(r, kept);
        }
        let n_next = fill(&mut keys, unit, from + n, |token| task.key(unit, token));
        let next = &keys[..n_next];
        all_sums::<V, E>(&logits, &values[..n], next, &mut to.out, to.width, task.value_dim());
        (from, n) = (from + n, n_next);
    }
}

/// Finds a tile's rows, from this token on. Returns how many there are.
#[inline(always)]
fn fill<'t>(
    rows: &mut [&'t [u8]; TILE],
    unit: &Unit,
    from: usize,
    find: impl Fn(usize) -> &'t [u8],
) -> usize {
    let n = TILE.min(unit.keys.end - from);
    for (i, row) in rows[..n].iter_mut().enumerate() {
        *row = find(from + i);
    }
    n
}

/// Logits of all queries `q` `[n, D]`, each with all keys of the tile.
#[inline(always)]
fn all_scores<V: Lanes, E: Stored>(
    q: &[f32],
    dim: usize,
    keys: &Rows<'_>,
    values: &Rows<'_>,
    logits: &mut [f32],
) {
    let n_rows = q.len() / dim;
    let mut r = 0;
    while r < n_rows {
        let soon = if r == 0 { values } else { &[] };
        let q = &q[r * dim..];
        let logits = &mut logits[r * TILE..];
        // Four sums at least, so that one does not wait for another.
        r += match n_rows - r {
            1 => scores_of::<V, E, 1, 8>(q, dim, keys, soon, logits),
            2 => scores_of::<V, E, 2, 4>(q, dim, keys, soon, logits),
            3 => scores_of::<V, E, 3, 2>(q, dim, keys, soon, logits),
            _ => scores_of::<V, E, 4, 2>(q, dim, keys, soon, logits),
        };
    }
}

/// The first R queries with all keys, N at a time. Returns R.
#[inline(always)]
fn scores_of<V: Lanes, E: Stored, const R: usize, const N: usize>(
    q: &[f32],
    dim: usize,
    keys: &Rows<'_>,
    soon: &Rows<'_>,
    logits: &mut [f32],
) -> usize {
    let (groups, rest) = keys.as_chunks::<N>();
    for (i, group) in groups.iter().enumerate() {
        if !soon.is_empty() {
            for row in &soon[i * N..(i + 1) * N] {
                prefetch(row);
            }
        }
        scores::<V, E, R, N>(q, dim, group, &mut logits[i * N..]);
    }
    for (i, key) in rest.iter().enumerate() {
        scores::<V, E, R, 1>(q, dim, &[key], &mut logits[groups.len() * N + i..]);
    }
    R
}

#[inline(always)]
fn scores<V: Lanes, E: Stored, const R: usize, const N: usize>(
    q: &[f32],
    dim: usize,
    keys: &[&[u8]; N],
    logits: &mut [f32],
) {
    let n = dim / 8;
    let mut wide: [&[E::Eight]; N] = [&[]; N];
    let mut queries: [&[[f32; 8]]; R] = [&[]; R];
    for j in 0..N {
        wide[j] = &E::eights(keys[j]).0[..n];
    }
    for r in 0..R {
        queries[r] = &q[r * dim..].as_chunks().0[..n];
    }
    let mut sums = [[V::splat(0.0); N]; R];
    for c in 0..n {
        let mut key = [V::splat(0.0); N];
        for j in 0..N {
            key[j] = E::widen::<V>(&wide[j][c]);
        }
        for r in 0..R {
            let query = V::load(&queries[r][c]);
            for j in 0..N {
                sums[r][j] = query.madd(key[j], sums[r][j]);
            }
        }
    }
    for r in 0..R {
        for j in 0..N {
            let mut sum = sums[r][j].sum();
            for d in 8 * n..dim {
                sum += q[r * dim + d] * E::one(&keys[j][d * E::BYTES..]);
            }
            logits[r * TILE + j] = sum;
        }
    }
}

/// Adds the tile's values, weighted, to `out`, whose rows are `width` apart.
#[inline(always)]
fn all_sums<V: Lanes, E: Stored>(
    weights: &[f32],
    values: &Rows<'_>,
    next_keys: &Rows<'_>,
    out: &mut [f32],
    width: usize,
    value_dim: usize,
) {
    let n_rows = weights.len() / TILE;
    let mut r = 0;
    while r < n_rows {
        let soon = if r == 0 { next_keys } else { &[] };
        let weights = &weights[r * TILE..];
        let out = &mut out[r * width..];
        r += match n_rows - r {
            1 => sums_of::<V, E, 1, 8>(weights, values, soon, out, width, value_dim),
            2 => sums_of::<V, E, 2, 4>(weights, values, soon, out, width, value_dim),
            3 => sums_of::<V, E, 3, 2>(weights, values, soon, out, width, value_dim),
            _ => sums_of::<V, E, 4, 2>(weights, values, soon, out, width, value_dim),
        };
    }
}

/// The first R queries, 8·N columns at a time. Returns R.
#[inline(always)]
fn sums_of<V: Lanes, E: Stored, const R: usize, const N: usize>(
    weights: &[f32],
    values: &Rows<'_>,
    soon: &Rows<'_>,
    out: &mut [f32],
    width: usize,
    value_dim: usize,
) -> usize {
    let n_eights = value_dim / 8;
    let mut c = 0;
    while c + N <= n_eights {
        sums::<V, E, R, N>(weights, values, if c == 0 { soon } else { &[] }, c, out, width);
        c += N;
    }
    while c < n_eights {
        sums::<V, E, R, 1>(weights, values, &[], c, out, width);
        c += 1;
    }
    for r in 0..R {
        for d in 8 * n_eights..value_dim {
            for (value, weight) in values.iter().zip(&weights[r * TILE..]) {
                out[r * width + d] += weight * E::one(&value[d * E::BYTES..]);
            }
        }
    }
    R
}

#[inline(always)]
fn sums<V: Lanes, E: Stored, const R: usize, const N: usize>(
    weights: &[f32],
    values: &Rows<'_>,
    soon: &Rows<'_>,
    c: usize,
    out: &mut [f32],
    width: usize,
) {
    let mut by_query: [&[f32]; R] = [&[]; R];
    let mut sums = [[V::splat(0.0); N]; R];
    for r in 0..R {
        by_query[r] = &weights[r * TILE..][..values.len()];
        let (from, _) = out[r * width + 8 * c..].as_chunks::<8>();
        for j in 0..N {
            sums[r][j] = V::load(&from[j]);
        }
    }
    for (t, row) in values.iter().enumerate() {
        if let Some(row) = soon.get(t) {
            prefetch(row);
        }
        let row = &E::eights(row).0[c..c + N];
        let mut value = [V::splat(0.0); N];
        for j in 0..N {
            value[j] = E::widen::<V>(&row[j]);
        }
        for r in 0..R {
            let weight = V::splat(by_query[r][t]);
            for j in 0..N {
                sums[r][j] = weight.madd(value[j], sums[r][j]);
            }
        }
    }
    for r in 0..R {
        let (to, _) = out[r * width + 8 * c..].as_chunks_mut::<8>();
        for j in 0..N {
            sums[r][j].store(&mut to[j]);
        }
    }
}
