//! Root-mean-square norms, with what stands beside them in a block.
//!
//! | operation | result |
//! |---|---|
//! | [`rms_norm`] | x / √(mean(x²) + ε) · weight |
//! | [`add_rms_norm`] | h = x + y, and its norm |
//! | [`gated_rms_norm`] | norm(x) · silu(gate) |
//! | [`unit`] | norm(x) · factor, without a weight |
//!
//! Over the last axis; in the dtype of x, whatever the weight's; a sum is rounded to that dtype
//! before its norm is taken. Everything else is f32 until the result is rounded. `twin.rs` has each
//! in MLX's operations, which Metal runs; `cpu.rs` and `cuda.rs` are one node of the graph.

mod cpu;
mod cuda;
mod twin;

use mlx::{Array, Backend, Device, Result};

use crate::input::{expect_dtype, expect_float, expect_shape, refused};

const OP: &str = "norm";

/// What [`add_rms_norm`] gives.
#[derive(Debug)]
pub struct Added {
    /// x + y.
    pub sum: Array,
    /// Its norm.
    pub normed: Array,
}

/// A norm with all that it may have, as its forms take it.
#[derive(Clone, Copy, Debug)]
struct Norm<'a> {
    x: &'a Array,
    added: Option<&'a Array>,
    gate: Option<&'a Array>,
    weight: Option<&'a Array>,
    eps: f32,
    factor: f32,
}

/// A form: the norm, and the sum where there is one.
type Form = fn(&Norm<'_>) -> Result<(Array, Option<Array>)>;

/// The norm of `x` `[.., E]`, times `weight` `[E]`.
///
/// # Errors
/// A shape or dtype does not fit.
pub fn rms_norm(x: &Array, weight: Option<&Array>, eps: f32) -> Result<Array> {
    let norm = Norm { x, added: None, gate: None, weight, eps, factor: 1.0 };
    Ok(run(fastest, &norm)?.0)
}

/// `x + y`, both `[.., E]` of one dtype, and the norm of the sum times `weight` `[E]`.
///
/// # Errors
/// A shape or dtype does not fit.
pub fn add_rms_norm(x: &Array, y: &Array, weight: Option<&Array>, eps: f32) -> Result<Added> {
    let norm = Norm { x, added: Some(y), gate: None, weight, eps, factor: 1.0 };
    added(run(fastest, &norm)?)
}

/// The norm of `x` `[.., E]` times `weight` `[E]` and the silu of `gate`, which has x's shape and
/// any float dtype.
///
/// # Errors
/// A shape or dtype does not fit.
pub fn gated_rms_norm(x: &Array, gate: &Array, weight: Option<&Array>, eps: f32) -> Result<Array> {
    let norm = Norm { x, added: None, gate: Some(gate), weight, eps, factor: 1.0 };
    Ok(run(fastest, &norm)?.0)
}

/// The norm of `x` `[.., E]`, times `factor`.
///
/// # Errors
/// A shape or dtype does not fit.
pub fn unit(x: &Array, eps: f32, factor: f32) -> Result<Array> {
    let norm = Norm { x, added: None, gate: None, weight: None, eps, factor };
    Ok(run(fastest, &norm)?.0)
}

/// The twins, in MLX's operations: what the other forms are held against.
pub mod reference {
    use super::*;

    /// As [`super::rms_norm`].
    ///
    /// # Errors
    /// The same.
    pub fn rms_norm(x: &Array, weight: Option<&Array>, eps: f32) -> Result<Array> {
        let norm = Norm { x, added: None, gate: None, weight, eps, factor: 1.0 };
        Ok(run(twin::run, &norm)?.0)
    }

    /// As [`super::add_rms_norm`].
    ///
    /// # Errors
    /// The same.
    pub fn add_rms_norm(x: &Array, y: &Array, weight: Option<&Array>, eps: f32) -> Result<Added> {
        let norm = Norm { x, added: Some(y), gate: None, weight, eps, factor: 1.0 };
        added(run(twin::run, &norm)?)
    }

    /// As [`super::gated_rms_norm`].
    ///
    /// # Errors
    /// The same.
    pub fn gated_rms_norm(
        x: &Array,
        gate: &Array,
        weight: Option<&Array>,
        eps: f32,
    ) -> Result<Array> {
        let norm = Norm { x, added: None, gate: Some(gate), weight, eps, factor: 1.0 };
        Ok(run(twin::run, &norm)?.0)
    }

    /// As [`super::unit`].
    ///
    /// # Errors
    /// The same.
    pub fn unit(x: &Array, eps: f32, factor: f32) -> Result<Array> {
        let norm = Norm { x, added: None, gate: None, weight: None, eps, factor };
        Ok(run(twin::run, &norm)?.0)
    }
}

fn added((normed, sum): (Array, Option<Array>)) -> Result<Added> {
    let sum = sum.expect("a norm with an addend has a sum");
    Ok(Added { sum, normed })
}

fn fastest(norm: &Norm<'_>) -> Result<(Array, Option<Array>)> {
    match Device::current_backend() {
        Backend::Cpu => cpu::run(norm),
        Backend::Cuda if cuda::fits(norm) => cuda::run(norm),
        Backend::Cuda | Backend::Metal => twin::run(norm),
    }
}

fn run(form: Form, norm: &Norm<'_>) -> Result<(Array, Option<Array>)> {
    let x = norm.x;
    expect_float(OP, "x", x)?;
    let Some(&width) = x.shape().last() else {
        return Err(refused(OP, &[x], "x must have a dimension".to_owned()));
    };
    if x.n_elements() == 0 {
        return Err(refused(OP, &[x], "no dimension of x may be 0".to_owned()));
    }
    if let Some(y) = norm.added {
        expect_dtype(OP, "y", y, x.dtype())?;
        expect_shape(OP, "y", y, x.shape())?;
    }
    if let Some(gate) = norm.gate {
        expect_float(OP, "gate", gate)?;
        expect_shape(OP, "gate", gate, x.shape())?;
    }
    if let Some(weight) = norm.weight {
        expect_float(OP, "weight", weight)?;
        expect_shape(OP, "weight", weight, &[width])?;
    }
    form(norm)
}
