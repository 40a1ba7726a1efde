//! Draws in MLX's operations, for many rows at once.

use mlx::{Array, Dtype, Key, Result, concatenate};

use super::{Draw, Logprobs};

pub(super) fn draw(scores: &Array, draws: &[Draw]) -> Result<Array> {
    let mut scores = scores.astype(Dtype::F32)?;
    if !draws.iter().all(Draw::is_greedy) {
        scores = tempered(&scores, draws)?;
        scores = limited(&scores, draws)?;
        scores = scores.add(&noise(draws, scores.dim(-1))?)?;
    }
    scores.argmax(-1)
}

/// One number per row as a column `[B, 1]`.
fn column(draws: &[Draw], value: impl Fn(&Draw) -> f32) -> Result<Array> {
    let values = draws.iter().map(value).collect::<Vec<_>>();
    Array::from_slice(&values, &[draws.len() as i32, 1])
}

/// Divides the distance to the best score by the temperature, greedy rows' by 1.
fn tempered(scores: &Array, draws: &[Draw]) -> Result<Array> {
    if draws.iter().all(|draw| draw.divisor() == 1.0) {
        return Ok(scores.clone());
    }
    scores.sub(&scores.max_keep(&[-1])?)?.div(&column(draws, Draw::divisor)?)
}

/// Sets what top-k, top-p and min-p exclude to −∞.
fn limited(scores: &Array, draws: &[Draw]) -> Result<Array> {
    let mut limits = Vec::new();
    if draws.iter().any(Draw::ranks) {
        limits.push(rank_limit(scores, draws)?);
    }
    if draws.iter().any(|draw| draw.min_p > 0.0) {
        let share =
            column(draws, |d| if d.is_greedy() { f32::NEG_INFINITY } else { d.min_p.ln() })?;
        limits.push(scores.max_keep(&[-1])?.add(&share)?);
    }
    let out = Array::scalar(f32::NEG_INFINITY, Dtype::F32)?;
    limits.iter().try_fold(scores.clone(), |kept, limit| scores.ge(limit)?.select(&kept, &out))
}

/// The score `[B, 1]` of the last token that top-k and then top-p keep; −∞ for rows without either.
fn rank_limit(scores: &Array, draws: &[Draw]) -> Result<Array> {
    let vocab = scores.dim(-1);
    // Sorting only as many as the largest k asks for; a row without k needs all of them.
    let needs = |draw: &Draw| if draw.is_greedy() { 1 } else { draw.k_of(vocab) };
    let width = draws.iter().map(needs).max().unwrap_or(vocab);
    let best = if width < vocab { scores.topk(width, -1)? } else { scores.clone() };
    let sorted = best.neg()?.sort(-1)?.neg()?; // [B, width], descending
    let rank = Array::arange(0.0, f64::from(width), 1.0, Dtype::F32)?;
    let in_k = rank.lt(&column(draws, |draw| draw.k_of(vocab) as f32)?)?;
    let out = Array::scalar(f32::NEG_INFINITY, Dtype::F32)?;
    let share = in_k.select(&sorted, &out)?.softmax(&[-1])?;
    let before = share.cumsum_exclusive(-1)?;
    let in_p =
        before.lt(&column(draws, |d| if d.top_p < 1.0 { d.top_p } else { f32::INFINITY })?)?;
    let kept = in_k.logical_and(&in_p)?.astype(Dtype::I32)?.sum_keep(&[-1])?;
    let zero = Array::from_slice(&[0i32], &[])?;
    let last = kept.sub(&Array::from_slice(&[1i32], &[])?)?.maximum(&zero)?;
    let limit = sorted.take_along(&last, -1)?;
    let has_limit = column(draws, |draw| if draw.ranks() { 1.0 } else { 0.0 })?;
    has_limit.gt(&Array::scalar(0.0, Dtype::F32)?)?.select(&limit, &out)
}

/// Gumbel noise `[B, V]`, each row from its own key; zeros for greedy rows.
fn noise(draws: &[Draw], vocab: i32) -> Result<Array> {
    let of_row = |draw: &Draw| -> Result<Array> {
        if draw.is_greedy() {
            return Array::zeros(&[1, vocab], Dtype::F32);
        }
        Key::from_seed(draw.key)?.gumbel(&[1, vocab], Dtype::F32)
    };
    let list = draws.iter().map(of_row).collect::<Result<Vec<_>>>()?;
    match &list[..] {
        [one] => Ok(one.clone()),
        many => concatenate(&many.iter().collect::<Vec<_>>(), 0),
    }
}

pub(super) fn logprobs(logits: &Array, tokens: &Array, n: i32) -> Result<Logprobs> {
    let logits = logits.astype(Dtype::F32)?;
    let normalized = logits.sub(&logits.log_sum_exp_keep(&[-1])?)?;
    let chosen = normalized.take_along(&tokens.expand_dims(&[1])?, -1)?.squeeze(&[1])?;
    if n == 0 {
        return Ok(Logprobs { chosen, best: None });
    }
    let ids = normalized.neg()?.argpartition(n - 1, -1)?.slice_axis(-1, 0..n)?;
    let values = normalized.take_along(&ids, -1)?;
    Ok(Logprobs { chosen, best: Some((ids, values)) })
}
