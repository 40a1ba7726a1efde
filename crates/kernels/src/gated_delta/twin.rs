//! The gated delta rule step by step: slow, obvious, and right on every backend.

use mlx::{Array, Result, stack};

use super::Prepared;

/// Outputs `[B, T, Hv, Dv]`, the last state, and the captured ones.
pub(super) fn run(p: &Prepared, capture: &[i32]) -> Result<(Array, Array, Vec<Array>)> {
    let s = p.sizes;
    let (q, k) = (p.q.repeat(s.share(), 2)?, p.k.repeat(s.share(), 2)?); // [B, T, Hv, Dk]
    let at = |x: &Array, t: i32, tail: [i32; 2]| {
        x.slice_axis(1, t..t + 1)?.reshape(&[s.rows, s.v_heads, tail[0], tail[1]])
    };
    let mut state = p.state.clone();
    let mut outputs = Vec::with_capacity(s.steps as usize);
    let mut captured = Vec::with_capacity(capture.len());
    for t in 0..s.steps {
        if capture.contains(&t) {
            captured.push(state.clone());
        }
        let key = at(&k, t, [s.k_dim, 1])?;
        let decayed = state.mul(&at(&p.log_decay, t, [1, 1])?.exp()?)?;
        let missing = at(&p.v, t, [s.v_dim, 1])?.sub(&decayed.matmul(&key)?)?;
        let delta = missing.mul(&at(&p.beta, t, [1, 1])?)?; // [B, Hv, Dv, 1]
        state = decayed.add(&delta.mul(&at(&k, t, [1, s.k_dim])?)?)?;
        outputs.push(state.matmul(&at(&q, t, [s.k_dim, 1])?)?.squeeze(&[3])?);
    }
    if capture.contains(&s.steps) {
        captured.push(state.clone());
    }
    let out = stack(&outputs.iter().collect::<Vec<_>>(), 1)?;
    Ok((out, state, captured))
}
