//! Choosing tokens from scores over a whole vocabulary.
//!
//! | operation | result |
//! |---|---|
//! | [`argmax`] | the first largest |
//! | [`draw`] | one token per row: temperature, top-k, top-p, min-p, then a draw |
//! | [`logprobs`] | ln of softmax, of given tokens and of the best ones |
//!
//! A draw adds Gumbel noise to the scores and takes the largest. Noise is that of MLX's generator
//! for the row's key, in every form. A limit is a threshold: what equals it is kept.
//!
//! `twin.rs` has each in MLX's operations, which CUDA and Metal run. `cpu.rs` neither sorts a
//! vocabulary nor makes noise for tokens that cannot win.

mod cpu;
mod twin;

use mlx::{Array, Backend, Device, Dtype, Result};

use crate::input::{dims, expect_dtype, expect_float, expect_shape, refused};

const OP: &str = "sampling";

/// How one row draws.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Draw {
    /// Divides scores, ≥ 0; 0 takes the largest, whatever else is set.
    pub temperature: f32,
    /// Only so many of the largest; 0 for all.
    pub top_k: u32,
    /// Only the largest that have this share of the probability together, 0..=1.
    pub top_p: f32,
    /// Only those with at least this share of the largest probability, 0..=1.
    pub min_p: f32,
    /// Of the noise.
    pub key: u64,
}

impl Draw {
    /// Takes the largest.
    pub const GREEDY: Self = Self { temperature: 0.0, top_k: 0, top_p: 1.0, min_p: 0.0, key: 0 };

    fn is_greedy(&self) -> bool {
        self.temperature == 0.0
    }

    /// Whether the order of scores matters, not their sizes alone.
    fn ranks(&self) -> bool {
        !self.is_greedy() && (self.top_k > 0 || self.top_p < 1.0)
    }

    /// What scores' distances to the largest are divided by; a quotient of the scores themselves
    /// overflows when the temperature is tiny.
    fn divisor(&self) -> f32 {
        // GPUs take numbers below the smallest normal one for 0.
        if self.is_greedy() { 1.0 } else { self.temperature.max(f32::MIN_POSITIVE) }
    }

    /// top-k as a number of tokens among `vocab`.
    fn k_of(&self, vocab: i32) -> i32 {
        match self.top_k {
            0 => vocab,
            k => vocab.min(k.min(i32::MAX as u32) as i32),
        }
    }

    fn fault(&self) -> Option<String> {
        let within = |x: f32| (0.0..=1.0).contains(&x);
        if self.temperature.is_nan() || self.temperature < 0.0 {
            return Some(format!("a temperature of {} is below 0", self.temperature));
        }
        if !within(self.top_p) || !within(self.min_p) {
            let (p, min) = (self.top_p, self.min_p);
            return Some(format!("top-p {p} and min-p {min} must be from 0 to 1"));
        }
        None
    }
}

/// What [`logprobs`] gives.
#[derive(Debug)]
pub struct Logprobs {
    /// Of the given tokens, f32 `[B]`.
    pub chosen: Array,
    /// The best tokens, u32 `[B, n]`, and theirs, f32 `[B, n]`, in no stated order; if n > 0.
    pub best: Option<(Array, Array)>,
}

/// The index (u32) of the first largest element along the last axis of `x` `[.., V]`, which is
/// removed.
///
/// # Errors
/// `x` holds no floats, or nothing.
pub fn argmax(x: &Array) -> Result<Array> {
    check_argmax(x)?;
    match Device::current_backend() {
        Backend::Cpu => cpu::argmax(x),
        Backend::Cuda | Backend::Metal => x.argmax(-1),
    }
}

/// One token (u32 `[B]`) per row of `scores` `[B, V]`.
///
/// # Errors
/// There is another number of `draws`, or one has a setting that is not allowed.
pub fn draw(scores: &Array, draws: &[Draw]) -> Result<Array> {
    check_draw(scores, draws)?;
    match Device::current_backend() {
        Backend::Cpu => cpu::draw(scores, draws),
        Backend::Cuda | Backend::Metal => twin::draw(scores, draws),
    }
}

/// ln of the softmax of `logits` `[B, V]`, of `tokens` (u32 `[B]`, below V), and of the `n` best or
/// all.
///
/// # Errors
/// A shape or dtype does not fit. On the CPU, evaluation fails if a token is not below V. Elsewhere
/// nothing checks that, and what is read in its place means nothing.
pub fn logprobs(logits: &Array, tokens: &Array, n: i32) -> Result<Logprobs> {
    check_logprobs(logits, tokens)?;
    let n = n.clamp(0, logits.dim(1));
    match Device::current_backend() {
        Backend::Cpu => cpu::logprobs(logits, tokens, n),
        Backend::Cuda | Backend::Metal => twin::logprobs(logits, tokens, n),
    }
}

/// The twins, in MLX's operations: what the other forms are held against.
pub mod reference {
    use super::*;

    /// As [`super::argmax`].
    ///
    /// # Errors
    /// The same.
    pub fn argmax(x: &Array) -> Result<Array> {
        check_argmax(x)?;
        x.argmax(-1)
    }

    /// As [`super::draw`].
    ///
    /// # Errors
    /// The same.
    pub fn draw(scores: &Array, draws: &[Draw]) -> Result<Array> {
        check_draw(scores, draws)?;
        twin::draw(scores, draws)
    }

    /// As [`super::logprobs`].
    ///
    /// # Errors
    /// The same.
    pub fn logprobs(logits: &Array, tokens: &Array, n: i32) -> Result<Logprobs> {
        check_logprobs(logits, tokens)?;
        twin::logprobs(logits, tokens, n.clamp(0, logits.dim(1)))
    }
}

fn check_argmax(x: &Array) -> Result<()> {
    expect_float(OP, "x", x)?;
    if x.shape().is_empty() || x.n_elements() == 0 {
        return Err(refused(OP, &[x], "there must be an element".to_owned()));
    }
    Ok(())
}

fn check_draw(scores: &Array, draws: &[Draw]) -> Result<()> {
    let [rows, _] = dims(OP, "scores", scores)?;
    check_argmax(scores)?;
    if rows as usize != draws.len() {
        let message = format!("{} draws do not fit {rows} rows", draws.len());
        return Err(refused(OP, &[scores], message));
    }
    match draws.iter().find_map(Draw::fault) {
        Some(message) => Err(refused(OP, &[scores], message)),
        None => Ok(()),
    }
}

fn check_logprobs(logits: &Array, tokens: &Array) -> Result<()> {
    let [rows, _] = dims(OP, "logits", logits)?;
    check_argmax(logits)?;
    expect_dtype(OP, "tokens", tokens, Dtype::U32)?;
    expect_shape(OP, "tokens", tokens, &[rows])
}
