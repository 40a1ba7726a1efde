//! Routers of mixtures of experts: which experts a token goes to, and with what weights.
//!
//! | kind | chosen by | weight |
//! |---|---|---|
//! | [`softmax_topk`] | p = softmax(logits) | p, divided by the sum of the chosen if normalised |
//! | [`topk_softmax`] | logits | softmax over the chosen |
//! | [`sigmoid_topk`] | σ(logits) + bias, in the best groups | σ, likewise, times a factor |
//!
//! Experts come best first; of equal ones, which is chosen is unspecified. Everything is computed
//! in f32. `twin.rs` has each in MLX's operations, `cpu.rs` in Rust, `router.cu` with one warp per
//! token.

mod cpu;
mod cuda;
mod twin;

use mlx::{Array, Backend, Device, Dtype, Result};

use crate::input::{dims, expect_dtype, expect_float, expect_shape, refused};

const OP: &str = "router";

/// The experts of `N` tokens.
#[derive(Debug)]
pub struct Routed {
    /// Experts `[N, k]`, u32, best first.
    pub indices: Array,
    /// Their weights `[N, k]`, f32.
    pub weights: Array,
}

/// How [`sigmoid_topk`] chooses and weighs.
#[derive(Clone, Copy, Debug)]
pub struct Sigmoid {
    /// Experts per token.
    pub k: i32,
    /// Groups that experts are divided into in order, equally; 1 for none. A group is as good as
    /// the sum of its two best experts.
    pub n_group: i32,
    /// Groups that are chosen from, the best ones.
    pub topk_group: i32,
    /// Divide weights by their sum + 1e-20.
    pub normalise: bool,
    /// Multiplies the weights.
    pub scale: f32,
}

/// A router's rule, as its forms take it.
#[derive(Clone, Copy, Debug)]
enum Rule<'a> {
    SoftmaxTopk { normalise: bool },
    TopkSoftmax,
    SigmoidTopk { bias: &'a Array, how: Sigmoid },
}

/// A form of all rules.
type Form = fn(&Array, i32, Rule<'_>) -> Result<Routed>;

/// The `k` most probable of the experts in `logits` `[N, E]`, weighed by their probability.
///
/// # Errors
/// `logits` has another form, or k is not within 1..=E.
pub fn softmax_topk(logits: &Array, k: i32, normalise: bool) -> Result<Routed> {
    run(fastest, logits, k, Rule::SoftmaxTopk { normalise })
}

/// The `k` largest of `logits` `[N, E]`, weighed by the softmax over them.
///
/// # Errors
/// Those of [`softmax_topk`].
pub fn topk_softmax(logits: &Array, k: i32) -> Result<Routed> {
    run(fastest, logits, k, Rule::TopkSoftmax)
}

/// The experts with the largest σ(logits) + bias, `[N, E]` and `[E]`, weighed by σ(logits).
///
/// # Errors
/// Those of [`softmax_topk`]; groups do not divide the experts into two or more each, or have fewer
/// than k experts together.
pub fn sigmoid_topk(logits: &Array, bias: &Array, how: &Sigmoid) -> Result<Routed> {
    run(fastest, logits, how.k, Rule::SigmoidTopk { bias, how: *how })
}

/// The twins, in MLX's operations: what the other forms are held against.
pub mod reference {
    use super::*;

    /// As [`super::softmax_topk`].
    ///
    /// # Errors
    /// The same.
    pub fn softmax_topk(logits: &Array, k: i32, normalise: bool) -> Result<Routed> {
        run(twin::run, logits, k, Rule::SoftmaxTopk { normalise })
    }

    /// As [`super::topk_softmax`].
    ///
    /// # Errors
    /// The same.
    pub fn topk_softmax(logits: &Array, k: i32) -> Result<Routed> {
        run(twin::run, logits, k, Rule::TopkSoftmax)
    }

    /// As [`super::sigmoid_topk`].
    ///
    /// # Errors
    /// The same.
    pub fn sigmoid_topk(logits: &Array, bias: &Array, how: &Sigmoid) -> Result<Routed> {
        run(twin::run, logits, how.k, Rule::SigmoidTopk { bias, how: *how })
    }
}

fn fastest(logits: &Array, k: i32, rule: Rule<'_>) -> Result<Routed> {
    match Device::current_backend() {
        Backend::Cpu => cpu::run(logits, k, rule),
        Backend::Cuda if cuda::fits(logits, k, rule) => cuda::run(logits, k, rule),
        Backend::Cuda | Backend::Metal => twin::run(logits, k, rule),
    }
}

fn run(form: Form, logits: &Array, k: i32, rule: Rule<'_>) -> Result<Routed> {
    let [n, experts] = dims(OP, "logits", logits)?;
    expect_float(OP, "logits", logits)?;
    let refuse = |message| Err(refused(OP, &[logits], message));
    if n == 0 {
        return refuse("there must be a token".to_owned());
    }
    if !(1..=experts).contains(&k) {
        return refuse(format!("{k} of {experts} experts cannot be chosen"));
    }
    if let Rule::SigmoidTopk { bias, how } = rule {
        expect_dtype(OP, "bias", bias, Dtype::F32)?;
        expect_shape(OP, "bias", bias, &[experts])?;
        let (groups, chosen) = (how.n_group, how.topk_group);
        if groups < 1 || experts % groups != 0 || (groups > 1 && experts / groups < 2) {
            return refuse(format!("{groups} groups do not divide {experts} experts"));
        }
        if !(1..=groups).contains(&chosen) || experts / groups * chosen < k {
            return refuse(format!("{chosen} of {groups} groups do not hold {k} experts"));
        }
    }
    form(logits, k, rule)
}
