//! Rotary position embedding in all its kinds: which frequencies turn the pairs of a head.
//!
//! Formulas: transformers 5.23 `modeling_rope_utils.py`. Frequencies are computed in f64. The kinds
//! whose frequencies depend on the length (dynamic, longrope) choose once per load, for a stated
//! length: keys in a shared cache must not depend on the length of the request that wrote them.

use std::f64::consts::PI;

use kernels::rope::{HeadNorm, Heads, Rotation};
use mlx::Array;

use crate::layers::RmsNorm;
use crate::{Error, Result, Step};

/// What config.json says of the rotary embedding.
#[derive(Clone, Debug, PartialEq)]
pub struct RopeConfig {
    /// Frequency base.
    pub theta: f64,
    /// Share of the head that turns.
    pub partial: f64,
    /// `max_position_embeddings`.
    pub max_tokens: i32,
    /// How frequencies are changed for longer contexts.
    pub kind: RopeKind,
}

/// How the frequencies differ from θ^(−2i/n).
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs)]
pub enum RopeKind {
    /// Not at all.
    Default,
    /// Positions divided by `factor`.
    Linear { factor: f64 },
    /// NTK: the base grows with the length beyond `max_tokens`.
    Dynamic { factor: f64 },
    /// Slow frequencies divided, fast ones kept, blended between.
    Llama3 { factor: f64, low: f64, high: f64, original_tokens: f64 },
    /// Blend by the number of turns within the original context, and sharper attention.
    Yarn {
        factor: f64,
        original_tokens: f64,
        beta_fast: f64,
        beta_slow: f64,
        truncate: bool,
        attention_factor: Option<f64>,
        mscale: Option<f64>,
        mscale_all_dim: Option<f64>,
    },
    /// One divisor per pair, from one of two lists.
    LongRope {
        short: Vec<f64>,
        long: Vec<f64>,
        original_tokens: f64,
        factor: f64,
        attention_factor: Option<f64>,
    },
}

/// A rotary embedding ready to apply.
#[derive(Debug)]
pub struct Rope {
    keys: Rotation,
    /// Where part of a head turns, logits get their factor from the queries alone.
    queries: Rotation,
    /// What the logits of attention are multiplied by, where the whole head turns: the square of
    /// the factor on the rotated q and k.
    pub logit_factor: f32,
}

/// Heads within a projection's output.
#[derive(Clone, Copy, Debug)]
pub struct HeadsIn<'a> {
    /// `[B, L, n·G]`, a group of G elements for each head.
    pub x: &'a Array,
    /// n.
    pub n_heads: i32,
    /// Where in its group a head begins.
    pub begin: i32,
    /// D.
    pub head_dim: i32,
    /// Over each head, before it turns.
    pub norm: Option<&'a RmsNorm>,
}

impl Rope {
    /// `tokens` is the length for which the length-dependent kinds choose their frequencies.
    /// `traditional` turns pairs (2i, 2i + 1) instead of (i, i + n/2).
    ///
    /// # Errors
    /// The config's lists do not fit the head.
    pub fn new(config: &RopeConfig, head_dim: i32, tokens: i32, traditional: bool) -> Result<Self> {
        let dims = (f64::from(head_dim) * config.partial) as i32;
        if dims < 2 || dims % 2 != 0 {
            let reason = format!("{dims} of {head_dim} dimensions cannot turn in pairs");
            return Err(Error::config("partial_rotary_factor", reason));
        }
        let (frequencies, magnitude) = frequencies(config, dims as usize, tokens)?;
        let keys = match config.kind {
            RopeKind::Default => Rotation::powers(config.theta, dims, traditional)?,
            _ => Rotation::frequencies(&frequencies, traditional)?,
        };
        let squared = (magnitude * magnitude) as f32;
        if dims == head_dim || magnitude == 1.0 {
            return Ok(Self { queries: keys.clone(), keys, logit_factor: squared });
        }
        Ok(Self { queries: keys.magnified(squared, head_dim)?, keys, logit_factor: 1.0 })
    }

    /// Keys, to be turned to where the step stands.
    pub fn keys<'a>(&'a self, heads: &HeadsIn<'a>, step: &'a Step) -> Heads<'a> {
        of_kernel(&self.keys, heads, step)
    }

    /// Queries, to be turned to where the step stands.
    pub fn queries<'a>(&'a self, heads: &HeadsIn<'a>, step: &'a Step) -> Heads<'a> {
        of_kernel(&self.queries, heads, step)
    }
}

fn of_kernel<'a>(rotation: &'a Rotation, heads: &HeadsIn<'a>, step: &'a Step) -> Heads<'a> {
    Heads {
        x: heads.x,
        n_heads: heads.n_heads,
        begin: heads.begin,
        head_dim: heads.head_dim,
        norm: heads.norm.map(|norm| HeadNorm { weight: &norm.weight, eps: norm.eps }),
        rotation,
        positions: step.positions(),
    }
}

/// The frequencies of `n/2` pairs, and the factor on rotated q and k.
fn frequencies(config: &RopeConfig, n: usize, tokens: i32) -> Result<(Vec<f64>, f64)> {
    let base = config.theta;
    let plain = powers(base, n);
    let unchanged = |list: Vec<f64>| Ok((list, 1.0));
    match &config.kind {
        RopeKind::Default => unchanged(plain),
        RopeKind::Linear { factor } => unchanged(plain.iter().map(|f| f / factor).collect()),
        RopeKind::Dynamic { factor } => {
            let max = f64::from(config.max_tokens);
            let stretch = factor * f64::from(tokens).max(max) / max - (factor - 1.0);
            unchanged(powers(base * stretch.powf(n as f64 / (n as f64 - 2.0)), n))
        }
        RopeKind::Llama3 { factor, low, high, original_tokens } => {
            let bend = |f: &f64| {
                let wave = 2.0 * PI / f;
                let t = ((original_tokens / wave - low) / (high - low)).clamp(0.0, 1.0);
                f * ((1.0 - t) / factor + t)
            };
            unchanged(plain.iter().map(bend).collect())
        }
        RopeKind::Yarn { .. } => Ok(yarn(config, &plain, n)),
        RopeKind::LongRope { short, long, original_tokens, factor, attention_factor } => {
            let (name, list) = match f64::from(tokens) > *original_tokens {
                true => ("long_factor", long),
                false => ("short_factor", short),
            };
            if list.len() != plain.len() {
                let reason = format!("has {} numbers, but {} pairs turn", list.len(), plain.len());
                return Err(Error::config(name, reason));
            }
            let magnitude = attention_factor.unwrap_or(if *factor <= 1.0 {
                1.0
            } else {
                (1.0 + factor.ln() / original_tokens.ln()).sqrt()
            });
            Ok((plain.iter().zip(list).map(|(f, divisor)| f / divisor).collect(), magnitude))
        }
    }
}

fn powers(base: f64, n: usize) -> Vec<f64> {
    (0..n / 2).map(|i| base.powf(-2.0 * i as f64 / n as f64)).collect()
}

fn yarn(config: &RopeConfig, plain: &[f64], n: usize) -> (Vec<f64>, f64) {
    let RopeKind::Yarn {
        factor,
        original_tokens,
        beta_fast,
        beta_slow,
        truncate,
        attention_factor,
        mscale,
        mscale_all_dim,
    } = &config.kind
    else {
        unreachable!("called for yarn only")
    };
    // The pair that makes `turns` turns within the original context.
    let pair = |turns: f64| {
        n as f64 * (original_tokens / (turns * 2.0 * PI)).ln() / (2.0 * config.theta.ln())
    };
    let (mut first, mut last) = (pair(*beta_fast), pair(*beta_slow));
    if *truncate {
        (first, last) = (first.floor(), last.ceil());
    }
    (first, last) = (first.max(0.0), last.min(n as f64 - 1.0));
    if first == last {
        last += 0.001;
    }
    let blend = |(i, f): (usize, &f64)| {
        let t = ((i as f64 - first) / (last - first)).clamp(0.0, 1.0);
        f * (1.0 - t) + f / factor * t
    };
    let sharper = |k: f64| if *factor <= 1.0 { 1.0 } else { 0.1 * k * factor.ln() + 1.0 };
    let given = |k: &Option<f64>| k.filter(|k| *k != 0.0);
    let magnitude = attention_factor.unwrap_or(match (given(mscale), given(mscale_all_dim)) {
        (Some(m), Some(all)) => sharper(m) / sharper(all),
        _ => sharper(1.0),
    });
    (plain.iter().enumerate().map(blend).collect(), magnitude)
}
