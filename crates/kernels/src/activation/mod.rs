//! What stands between the projections of a feed-forward block, and behind attention with gates:
//! a function of one array times another, in one pass over both.
//!
//! | operation | result |
//! |---|---|
//! | [`swiglu`] | silu(gate) · up |
//! | [`geglu`] | gelu(gate) · up, gelu by its tanh form |
//! | [`clamped_swiglu`] | (up + 1) · gate · σ(α · gate), both limited first |
//! | [`sigmoid_gated`], [`sigmoid_gated_behind`] | x · σ(gate) |
//!
//! Both arrays have one dtype, which the result has too; between them everything is f32 in
//! `cpu.rs` and `cuda.rs`, one node of the graph. `twin.rs` has each in MLX's operations, which
//! Metal runs.

mod cpu;
mod cuda;
mod twin;

pub(crate) use cpu::join_swiglu;

use mlx::{Array, Backend, Device, Result};

use crate::input::{expect_dtype, expect_float, refused};

const OP: &str = "activation";

/// The function of the gate, and what it does to the other array.
#[derive(Clone, Copy, Debug)]
enum Rule {
    SwiGlu,
    GeGlu,
    Clamped { alpha: f32, limit: f32 },
    Sigmoid,
}

/// A form of all rules.
type Form = fn(Rule, &Array, &Array) -> Result<Array>;

/// silu(gate) · up, of one shape.
///
/// # Errors
/// Shapes or dtypes differ, or are not floats.
pub fn swiglu(gate: &Array, up: &Array) -> Result<Array> {
    run(fastest, Rule::SwiGlu, gate, up)
}

/// gelu(gate) · up, of one shape, with gelu(x) = ½x(1 + tanh(√(2/π)(x + 0.044715x³))).
///
/// # Errors
/// Shapes or dtypes differ, or are not floats.
pub fn geglu(gate: &Array, up: &Array) -> Result<Array> {
    run(fastest, Rule::GeGlu, gate, up)
}

/// (up + 1) · gate · σ(alpha · gate), with gate limited from above and up on both sides by `limit`.
///
/// # Errors
/// Shapes or dtypes differ, or are not floats; the limit is below 0.
pub fn clamped_swiglu(gate: &Array, up: &Array, alpha: f32, limit: f32) -> Result<Array> {
    run(fastest, Rule::Clamped { alpha, limit }, gate, up)
}

/// x · σ(gate). The last axis of the gate may be parted in two: `[.., n·D]` by `[.., n, D]`.
///
/// # Errors
/// Shapes or dtypes do not fit, or are not floats.
pub fn sigmoid_gated(x: &Array, gate: &Array) -> Result<Array> {
    run(fastest, Rule::Sigmoid, gate, x)
}

/// [`sigmoid_gated`] with gates that a projection gives beside queries: of `queries` `[.., n·2D]`
/// the D behind each head's first D, for x `[.., n·D]`.
///
/// # Errors
/// Shapes or dtypes do not fit, or are not floats.
pub fn sigmoid_gated_behind(x: &Array, queries: &Array, head_dim: i32) -> Result<Array> {
    expect_float(OP, "x", x)?;
    expect_dtype(OP, "queries", queries, x.dtype())?;
    let fits = match (x.shape(), queries.shape()) {
        ([rows @ .., width], [outer @ .., both]) => {
            rows == outer && *both == 2 * width && head_dim > 0 && width % head_dim == 0
        }
        _ => false,
    };
    if !fits || x.n_elements() == 0 {
        return Err(refused(OP, &[x, queries], "shapes do not fit".to_owned()));
    }
    if Device::current_backend() == Backend::Cuda && cuda::fits(head_dim) {
        return cuda::behind(queries, x, head_dim);
    }
    sigmoid_gated(x, &gates_behind(queries, head_dim)?)
}

/// `[.., n·2D]` → the second halves of the heads, `[.., n, D]`.
fn gates_behind(queries: &Array, head_dim: i32) -> Result<Array> {
    let (width, outer) = (queries.dim(-1), &queries.shape()[..queries.n_dims() - 1]);
    let heads = queries.reshape(&[outer, &[width / (2 * head_dim), 2 * head_dim]].concat())?;
    heads.slice_axis(heads.n_dims() as i32 - 1, head_dim..2 * head_dim)
}

/// The twins, in MLX's operations: what the other forms are held against.
pub mod reference {
    use super::*;

    /// As [`super::swiglu`].
    ///
    /// # Errors
    /// The same.
    pub fn swiglu(gate: &Array, up: &Array) -> Result<Array> {
        run(twin::run, Rule::SwiGlu, gate, up)
    }

    /// As [`super::geglu`].
    ///
    /// # Errors
    /// The same.
    pub fn geglu(gate: &Array, up: &Array) -> Result<Array> {
        run(twin::run, Rule::GeGlu, gate, up)
    }

    /// As [`super::clamped_swiglu`].
    ///
    /// # Errors
    /// The same.
    pub fn clamped_swiglu(gate: &Array, up: &Array, alpha: f32, limit: f32) -> Result<Array> {
        run(twin::run, Rule::Clamped { alpha, limit }, gate, up)
    }

    /// As [`super::sigmoid_gated_behind`].
    ///
    /// # Errors
    /// The same.
    pub fn sigmoid_gated_behind(x: &Array, queries: &Array, head_dim: i32) -> Result<Array> {
        sigmoid_gated(x, &gates_behind(queries, head_dim)?)
    }

    /// As [`super::sigmoid_gated`].
    ///
    /// # Errors
    /// The same.
    pub fn sigmoid_gated(x: &Array, gate: &Array) -> Result<Array> {
        run(twin::run, Rule::Sigmoid, gate, x)
    }
}

fn fastest(rule: Rule, gate: &Array, up: &Array) -> Result<Array> {
    match Device::current_backend() {
        Backend::Cpu => cpu::run(rule, gate, up),
        Backend::Cuda => cuda::run(rule, gate, up),
        Backend::Metal => twin::run(rule, gate, up),
    }
}

fn run(form: Form, rule: Rule, gate: &Array, up: &Array) -> Result<Array> {
    expect_float(OP, "gate", gate)?;
    expect_dtype(OP, "the other array", up, gate.dtype())?;
    if !is_same(gate.shape(), up.shape(), rule) {
        return Err(refused(OP, &[gate, up], "shapes do not fit".to_owned()));
    }
    if up.shape().is_empty() || up.n_elements() == 0 {
        return Err(refused(OP, &[gate, up], "there must be an element".to_owned()));
    }
    if let Rule::Clamped { limit, .. } = rule
        && (limit.is_nan() || limit < 0.0)
    {
        return Err(refused(OP, &[gate, up], format!("{limit} is no limit")));
    }
    form(rule, gate, up)
}

fn is_same(gate: &[i32], x: &[i32], rule: Rule) -> bool {
    match (gate, x, rule) {
        ([outer @ .., n, dim], [rest @ .., width], Rule::Sigmoid) if outer == rest => {
            i64::from(*n) * i64::from(*dim) == i64::from(*width)
        }
        _ => gate == x,
    }
}
