//! The causal convolution as a sum of shifted products.

use mlx::{Array, Dtype, Result, concatenate};

use super::{CausalConv, Convolved, Sizes};

pub(super) fn run(conv: &CausalConv<'_>, s: Sizes) -> Result<Convolved> {
    let before = s.width - 1;
    let tail = match conv.tail {
        Some(tail) => tail.clone(),
        None => Array::zeros(&[s.rows, before, s.channels], conv.u.dtype())?,
    };
    let lengths = match conv.lengths {
        Some(lengths) => lengths
            .maximum(&Array::scalar(0.0, Dtype::I32)?)?
            .minimum(&Array::scalar(s.steps as f32, Dtype::I32)?)?
            .reshape(&[s.rows, 1])?,
        None => Array::full(&[s.rows, 1], s.steps as f32, Dtype::I32)?,
    };
    let step = Array::arange(0.0, f64::from(s.steps), 1.0, Dtype::I32)?;
    let counts = step.reshape(&[1, s.steps])?.lt(&lengths)?.expand_dims(&[2])?;
    let u = counts.select(conv.u, &Array::scalar(0.0, conv.u.dtype())?)?;
    let rows = concatenate(&[&tail, &u], 1)?; // [B, Kc − 1 + L, C]

    let weight = conv.weight.astype(Dtype::F32)?;
    let mut sum = Array::scalar(0.0, Dtype::F32)?;
    for j in 0..s.width {
        let shifted = rows.slice_axis(1, j..j + s.steps)?.astype(Dtype::F32)?;
        sum = sum.add(&shifted.mul(&weight.slice_axis(1, j..j + 1)?.reshape(&[-1])?)?)?;
    }
    let last = Array::arange(0.0, f64::from(before), 1.0, Dtype::I32)?.add(&lengths)?;
    let last = last.expand_dims(&[2])?.broadcast_to(&[s.rows, before, s.channels])?;
    Ok(Convolved { out: sum.silu()?.astype(conv.u.dtype())?, tail: rows.take_along(&last, 1)? })
}
