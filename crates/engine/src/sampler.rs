//! Choosing the next token, on the device, for many rows at once.
//!
//! Order: logit bias, penalties, what a grammar allows, temperature, top-k, top-p, min-p, draw. A
//! draw adds Gumbel noise to the logits and takes the largest, so greedy and random rows share one
//! path. A row's noise depends only on its own seed and on how many tokens it has drawn: the same
//! seed gives the same tokens, whatever else is in the batch. Ties at a limit are all kept.

use std::collections::HashMap;

use kernels::sampling::{self, Draw, Logprobs};
use mlx::{Array, Dtype};
use protocol::Sampling;

use crate::Result;

/// What the sampler needs to know of one row.
#[derive(Clone, Copy, Debug)]
pub struct Row<'a> {
    /// Its settings, validated.
    pub sampling: &'a Sampling,
    /// Prompt and answer so far; read only where penalties are on.
    pub tokens: &'a [u32],
    /// How many tokens this row has drawn before.
    pub n_drawn: u64,
    /// Log probabilities wanted: of the token, and of this many best ones.
    pub top_logprobs: Option<u32>,
    /// For each token whether it may be drawn; none: all may.
    pub allowed: Option<&'a [bool]>,
}

/// What was chosen, still on the device.
#[derive(Debug)]
pub struct Sampled {
    /// u32 `[B]`.
    pub tokens: Array,
    /// f32 `[B]`: log probability of each token under the unmodified distribution; if any row asks.
    pub logprobs: Option<Array>,
    /// The best tokens, u32 `[B, n]`, and their log probabilities, f32 `[B, n]`, in no stated
    /// order; n is the most asked for.
    pub best: Option<(Array, Array)>,
}

impl Sampled {
    /// All that is to be computed before it is read.
    pub(crate) fn arrays(&self) -> impl Iterator<Item = &Array> {
        let best = self.best.iter().flat_map(|(ids, values)| [ids, values]);
        [&self.tokens].into_iter().chain(&self.logprobs).chain(best)
    }
}

/// Chooses one token per row of `logits` `[B, V]`.
///
/// # Errors
/// MLX refuses an operation.
pub fn sample(logits: &Array, rows: &[Row<'_>]) -> Result<Sampled> {
    let scores = masked(&penalized(&biased(logits, rows)?, rows)?, rows)?;
    let tokens = sampling::draw(&scores, &rows.iter().map(draw).collect::<Vec<_>>())?;
    let Some(n) = rows.iter().filter_map(|row| row.top_logprobs).max() else {
        return Ok(Sampled { tokens, logprobs: None, best: None });
    };
    let n = n.min(i32::MAX as u32) as i32;
    let Logprobs { chosen, best } = sampling::logprobs(logits, &tokens, n)?;
    Ok(Sampled { tokens, logprobs: Some(chosen), best })
}

/// What a row asks of its draw.
fn draw(row: &Row<'_>) -> Draw {
    let s = row.sampling;
    if s.is_greedy() {
        return Draw::GREEDY;
    }
    Draw {
        temperature: s.temperature,
        top_k: s.top_k,
        top_p: s.top_p,
        min_p: s.min_p,
        key: mixed(s.seed, row.n_drawn),
    }
}

/// One number per row as a column `[B, 1]`.
fn column(rows: &[Row<'_>], value: impl Fn(&Sampling) -> f32) -> Result<Array> {
    let values = rows.iter().map(|row| value(row.sampling)).collect::<Vec<_>>();
    Ok(Array::staged(&values, &[rows.len() as i32, 1])?)
}

fn biased(scores: &Array, rows: &[Row<'_>]) -> Result<Array> {
    let lists = rows.iter().map(|row| row.sampling.logit_bias.clone()).collect::<Vec<_>>();
    let Some((ids, bias)) = ragged(&lists, |_| (0, 0.0))? else { return Ok(scores.clone()) };
    // Added one by one, so that a token named twice gets both.
    let row_ids = Array::arange(0.0, rows.len() as f64, 1.0, Dtype::U32)?.expand_dims(&[1])?;
    let row_ids = row_ids.broadcast_to(ids.shape())?;
    let updates = bias.expand_dims(&[2, 3])?;
    let scores = scores.astype(Dtype::F32)?;
    Ok(scores.scatter_add(&[&row_ids, &ids], &updates, &[0, 1])?)
}

fn penalized(scores: &Array, rows: &[Row<'_>]) -> Result<Array> {
    let lists = rows.iter().map(seen).collect::<Vec<_>>();
    // Padding writes what the row's first entry writes; a row without entries writes what is there.
    let pad = |list: &[(u32, f32)]| list.first().copied().unwrap_or((0, 0.0));
    let Some((ids, count)) = ragged(&lists, pad)? else { return Ok(scores.clone()) };
    let scores = scores.astype(Dtype::F32)?;
    let repetition = column(rows, |s| s.repetition_penalty)?;
    let presence = column(rows, |s| s.presence_penalty)?;
    let frequency = column(rows, |s| s.frequency_penalty)?;
    let old = scores.take_along(&ids, -1)?;
    let zero = Array::scalar(0.0, Dtype::F32)?;
    let new = old.gt(&zero)?.select(&old.div(&repetition)?, &old.mul(&repetition)?)?;
    let new = new.sub(&frequency.mul(&count)?)?.sub(&presence)?;
    let new = count.gt(&zero)?.select(&new, &old)?;
    Ok(scores.put_along(&ids, &new, -1)?)
}

/// What is not allowed becomes −∞. Rows that may draw anything keep their scores.
fn masked(scores: &Array, rows: &[Row<'_>]) -> Result<Array> {
    if rows.iter().all(|row| row.allowed.is_none()) {
        return Ok(scores.clone());
    }
    let vocab = scores.dim(-1) as usize;
    let mut allowed = vec![true; rows.len() * vocab];
    for (to, row) in allowed.chunks_mut(vocab).zip(rows) {
        if let Some(of_row) = row.allowed {
            to.copy_from_slice(of_row);
        }
    }
    let allowed = Array::staged(&allowed, scores.shape())?;
    Ok(allowed.select(scores, &Array::scalar(f32::NEG_INFINITY, scores.dtype())?)?)
}

/// The distinct tokens that a row's penalties look back on, with their counts.
fn seen(row: &Row<'_>) -> Vec<(u32, f32)> {
    let s = row.sampling;
    if !has_penalties(s) {
        return Vec::new();
    }
    let window = match s.penalty_window_tokens {
        0 => row.tokens.len(),
        n => (n as usize).min(row.tokens.len()),
    };
    let mut counts = HashMap::<u32, f32>::new();
    for token in &row.tokens[row.tokens.len() - window..] {
        *counts.entry(*token).or_default() += 1.0;
    }
    let mut counts = counts.into_iter().collect::<Vec<_>>();
    counts.sort_by_key(|(token, _)| *token);
    counts
}

/// Whether the row's earlier tokens change its distribution.
pub(crate) fn has_penalties(s: &Sampling) -> bool {
    s.repetition_penalty != 1.0 || s.presence_penalty != 0.0 || s.frequency_penalty != 0.0
}

/// Lists of (token, number) as two arrays `[B, n]`, short rows filled up; none if all are empty.
fn ragged(
    lists: &[Vec<(u32, f32)>],
    pad: impl Fn(&[(u32, f32)]) -> (u32, f32),
) -> Result<Option<(Array, Array)>> {
    let width = lists.iter().map(Vec::len).max().unwrap_or(0);
    if width == 0 {
        return Ok(None);
    }
    let filled = |list: &Vec<(u32, f32)>| {
        let n_pad = width - list.len();
        list.iter().copied().chain(std::iter::repeat_n(pad(list), n_pad)).collect::<Vec<_>>()
    };
    let (ids, numbers): (Vec<u32>, Vec<f32>) = lists.iter().flat_map(filled).unzip();
    let shape = [lists.len() as i32, width as i32];
    Ok(Some((Array::staged(&ids, &shape)?, Array::staged(&numbers, &shape)?)))
}

/// The key of the n-th draw of a seed's stream (splitmix64's finaliser over both).
fn mixed(seed: u64, n: u64) -> u64 {
    let mut z = seed.wrapping_add((n + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15));
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}
