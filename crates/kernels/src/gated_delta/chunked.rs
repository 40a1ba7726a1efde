//! The gated delta rule in chunks of C steps, as matrix products.
//!
//! Inside a chunk with state S₀ before it, and G_i = Σ_{j≤i} ln g_j:
//! ```text
//! A_ij = β_i·e^{G_i−G_j}·(k̂_i·k̂_j) for j < i       T = (I + A)⁻¹
//! U = T(β⊙V)     W = T(β⊙e^G⊙K̂)     V' = U − W S₀ᵀ
//! O = (e^G⊙Q̂) S₀ᵀ + (tril(Q̂K̂ᵀ) ⊙ e^{G_i−G_j}) V'
//! S_m = e^{G_m} S₀ + Σ_{i≤m} v'_i ⊗ e^{G_m−G_i} k̂_i
//! ```
//! Everything but the last three lines is independent of S₀, so it is computed for all chunks at
//! once; S_m is the state after any m steps of the chunk, not only after all of them.

use mlx::{Array, Dtype, Result, concatenate};

use super::{Prepared, Sizes};

/// Steps of a chunk, at most.
const CHUNK: i32 = 64;

/// Shape legend: B rows, K key heads, r value heads per key head, N chunks, C steps of a chunk.
struct Chunks {
    n: i32,
    c: i32,
    /// K̂ `[B, K, 1, N, C, Dk]`.
    k: Array,
    /// e^G ⊙ Q̂ `[B, K, r, N, C, Dk]`.
    decayed_q: Array,
    /// tril(Q̂K̂ᵀ) ⊙ e^{G_i−G_j} `[B, K, r, N, C, C]`.
    scores: Array,
    /// G `[B, K, r, N, C]`.
    decay: Array,
    /// U `[B, K, r, N, C, Dv]`.
    u: Array,
    /// W `[B, K, r, N, C, Dk]`.
    w: Array,
}

/// Outputs `[B, T, Hv, Dv]`, the last state, and the captured ones.
pub(super) fn run(p: &Prepared, capture: &[i32]) -> Result<(Array, Array, Vec<Array>)> {
    let s = p.sizes;
    let chunks = Chunks::new(p)?;
    let per_head = [s.rows, s.k_heads, s.share(), s.v_dim, s.k_dim];
    let mut state = p.state.reshape(&per_head)?;
    let (mut outputs, mut captured) = (Vec::new(), Vec::new());
    if capture.first() == Some(&0) {
        captured.push(p.state.clone());
    }
    for i in 0..chunks.n {
        let values = at(&chunks.u, i)?.sub(&times(&at(&chunks.w, i)?, &state)?)?; // V'
        let from_state = times(&at(&chunks.decayed_q, i)?, &state)?;
        outputs.push(from_state.add(&at(&chunks.scores, i)?.matmul(&values)?)?);
        let first = i * chunks.c;
        for m in capture.iter().map(|p| p - first).filter(|m| (1..=chunks.c).contains(m)) {
            captured.push(chunks.state_after(i, m, &values, &state)?.reshape(&s.state())?);
        }
        state = chunks.state_after(i, chunks.c, &values, &state)?;
    }
    let out = concatenate(&outputs.iter().collect::<Vec<_>>(), 3)?; // [B, K, r, N·C, Dv]
    let out = out.transpose(&[0, 3, 1, 2, 4])?.slice_axis(1, 0..s.steps)?;
    let out = out.reshape(&[s.rows, s.steps, s.v_heads, s.v_dim])?;
    Ok((out, state.reshape(&s.state())?, captured))
}

impl Chunks {
    fn new(p: &Prepared) -> Result<Self> {
        let s = p.sizes;
        let c = CHUNK.min(s.steps);
        let n = (s.steps + c - 1) / c;
        let split = |x: &Array, heads: [i32; 2], dim: i32| split(x, &s, [n, c], heads, dim);
        let (q, k) = (split(&p.q, [s.k_heads, 1], s.k_dim)?, split(&p.k, [s.k_heads, 1], s.k_dim)?);
        let heads = [s.k_heads, s.share()];
        let v = split(&p.v, heads, s.v_dim)?;
        let beta = split(&p.beta, heads, 1)?; // [B, K, r, N, C, 1]
        let decay = split(&p.log_decay, heads, 1)?.cumsum(4)?;
        let kept = decay.exp()?;

        // The upper triangle is masked before exp, where it would overflow.
        let apart = decay.sub(&decay.swap_axes(4, 5)?)?;
        let never = Array::scalar(f32::NEG_INFINITY, Dtype::F32)?;
        let apart = mask(c, |i, j| j <= i)?.select(&apart, &never)?.exp()?;
        let keys = k.swap_axes(4, 5)?;
        let below = mask(c, |i, j| j < i)?.astype(Dtype::F32)?;
        let a = k.matmul(&keys)?.mul(&apart)?.mul(&beta)?.mul(&below)?;
        let t = inverse(&a, c)?;
        Ok(Self {
            n,
            c,
            decayed_q: q.mul(&kept)?,
            scores: q.matmul(&keys)?.mul(&apart)?,
            u: t.matmul(&v.mul(&beta)?)?,
            w: t.matmul(&k.mul(&beta.mul(&kept)?)?)?,
            decay: decay.squeeze(&[5])?,
            k,
        })
    }

    /// The state after the first `m` steps of chunk `i`, `values` being its V' and `before` the
    /// state before it.
    fn state_after(&self, i: i32, m: i32, values: &Array, before: &Array) -> Result<Array> {
        let decay = at(&self.decay, i)?.slice_axis(-1, 0..m)?.expand_dims(&[4])?; // [B, K, r, m, 1]
        let last = decay.slice_axis(3, m - 1..m)?; // [B, K, r, 1, 1]
        let keys = at(&self.k, i)?.slice_axis(3, 0..m)?.mul(&last.sub(&decay)?.exp()?)?;
        let added = values.slice_axis(3, 0..m)?.swap_axes(3, 4)?.matmul(&keys)?;
        before.mul(&last.exp()?)?.add(&added)
    }
}

/// `[B, T, H.., (D)]` as `[B, H1, H2, N, C, D]`, padded with zeros to whole chunks: a β of 0 and a
/// ln g of 0 leave the state as it is.
fn split(x: &Array, s: &Sizes, [n, c]: [i32; 2], heads: [i32; 2], dim: i32) -> Result<Array> {
    let padded = x.pad(&[1], &[0], &[n * c - s.steps], 0.0)?;
    let parts = padded.reshape(&[s.rows, n, c, heads[0], heads[1], dim])?;
    parts.transpose(&[0, 3, 4, 1, 2, 5])
}

/// Chunk `i` of `[B, K, r, N, ..]`.
fn at(x: &Array, i: i32) -> Result<Array> {
    x.slice_axis(3, i..i + 1)?.squeeze(&[3])
}

/// x Sᵀ.
fn times(x: &Array, state: &Array) -> Result<Array> {
    x.matmul(&state.swap_axes(3, 4)?)
}

/// Where `keep(i, j)`, `[C, C]`, bool.
fn mask(c: i32, keep: impl Fn(i32, i32) -> bool) -> Result<Array> {
    let values = (0..c * c).map(|at| keep(at / c, at % c)).collect::<Vec<_>>();
    Array::from_slice(&values, &[c, c])
}

/// (I + A)⁻¹ for strictly lower triangular A `[.., C, C]`.
///
/// With T the inverse of the diagonal blocks of width b, the blocks of width 2b are inverted by
/// T − T (lower left quadrants of A) T: forward substitution by blocks, and as accurate. (Products
/// of powers of A need fewer steps, but where keys are alike the powers grow far beyond the result
/// and cancel.)
fn inverse(a: &Array, c: i32) -> Result<Array> {
    let mut t = mask(c, |i, j| i == j)?.astype(Dtype::F32)?;
    let mut b = 1;
    while b < c {
        let quadrants = mask(c, |i, j| i / (2 * b) == j / (2 * b) && i / b > j / b)?;
        let lower = a.mul(&quadrants.astype(Dtype::F32)?)?;
        t = t.sub(&if b == 1 { lower } else { t.matmul(&lower)?.matmul(&t)? })?;
        b *= 2;
    }
    Ok(t)
}
