//! From a layer's projections to the rule's decay and β.

use mlx::{Array, Backend, CpuKernel, Device, Dtype, Result};

use super::OP;
use crate::cpu::{Parts, Rows, each_rows};
use crate::input::{dims, expect_dtype, expect_float, expect_shape, refused};

/// The rule's gates.
#[derive(Debug)]
pub struct Gates {
    /// ln g = softplus(a + dt_bias) · decay, `[B, T, Hv]`, f32.
    pub log_decay: Array,
    /// β = σ(b), `[B, T, Hv]`, f32.
    pub beta: Array,
}

/// The gates of `a` and `b` `[B, T, Hv]`, with `dt_bias` and `decay` `[Hv]` in f32.
///
/// # Errors
/// Shapes or dtypes do not fit each other.
pub fn gates(a: &Array, b: &Array, dt_bias: &Array, decay: &Array) -> Result<Gates> {
    check(a, b, dt_bias, decay)?;
    match Device::current_backend() {
        Backend::Cpu => on_cpu(a, b, dt_bias, decay),
        Backend::Cuda | Backend::Metal => twin(a, b, dt_bias, decay),
    }
}

/// The same in MLX's operations: what the CPU's form is held against.
///
/// # Errors
/// Those of [`gates`].
pub fn gates_reference(a: &Array, b: &Array, dt_bias: &Array, decay: &Array) -> Result<Gates> {
    check(a, b, dt_bias, decay)?;
    twin(a, b, dt_bias, decay)
}

fn check(a: &Array, b: &Array, dt_bias: &Array, decay: &Array) -> Result<()> {
    let [_, _, heads] = dims(OP, "a", a)?;
    expect_float(OP, "a", a)?;
    expect_float(OP, "b", b)?;
    expect_shape(OP, "b", b, a.shape())?;
    for (name, list) in [("dt_bias", dt_bias), ("decay", decay)] {
        expect_dtype(OP, name, list, Dtype::F32)?;
        expect_shape(OP, name, list, &[heads])?;
    }
    if a.n_elements() == 0 {
        return Err(refused(OP, &[a], "no dimension of a may be 0".to_owned()));
    }
    Ok(())
}

fn twin(a: &Array, b: &Array, dt_bias: &Array, decay: &Array) -> Result<Gates> {
    let a = a.astype(Dtype::F32)?.add(dt_bias)?;
    let softplus = a.log_add_exp(&Array::scalar(0.0, Dtype::F32)?)?;
    let beta = b.astype(Dtype::F32)?.sigmoid()?;
    Ok(Gates { log_decay: softplus.mul(decay)?, beta })
}

fn on_cpu(a: &Array, b: &Array, dt_bias: &Array, decay: &Array) -> Result<Gates> {
    let outputs = [(a.shape(), Dtype::F32); 2];
    let made = CpuKernel::call_strided(&[a, b, dt_bias, decay], &outputs, |ins, outs| {
        let [a, b, dt_bias, decay] = ins else { return Err("an input is missing".to_owned()) };
        let n = a.shape.iter().map(|&n| n as usize).product::<usize>();
        let (a, b) = (Rows::new(a)?, Rows::new(b)?);
        let heads = a.width;
        let list = |x| -> std::result::Result<Vec<f32>, String> {
            let mut values = vec![0.0; heads];
            Rows::new(x)?.read(0, 0, &mut values);
            Ok(values)
        };
        let (dt_bias, decay) = (list(dt_bias)?, list(decay)?);
        let [log_decay, beta] = outs else { return Err("an output is missing".to_owned()) };
        let (log_decay, beta) = (Parts::new(log_decay)?, Parts::new(beta)?);
        each_rows(n / heads, heads * 8, &|rows| {
            for row in rows {
                // SAFETY: a row belongs to one task.
                let (log_decay, beta) = unsafe {
                    let first = row * heads;
                    (log_decay.slice::<f32>(first, heads), beta.slice::<f32>(first, heads))
                };
                a.read(row, 0, log_decay);
                b.read(row, 0, beta);
                for ((x, bias), decay) in log_decay.iter_mut().zip(&dt_bias).zip(&decay) {
                    let a = *x + bias;
                    *x = (a.max(0.0) + (-a.abs()).exp().ln_1p()) * decay;
                }
                beta.iter_mut().for_each(|x| *x = 1.0 / (1.0 + (-*x).exp()));
            }
        });
        Ok(())
    })?;
    let mut made = made.into_iter();
    match (made.next(), made.next()) {
        (Some(log_decay), Some(beta)) => Ok(Gates { log_decay, beta }),
        _ => unreachable!("as many outputs as were asked for"),
    }
}
