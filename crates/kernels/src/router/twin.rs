//! Routers in MLX's operations.

use mlx::{Array, Dtype, Result};

use super::{Routed, Rule, Sigmoid};

pub(super) fn run(logits: &Array, k: i32, rule: Rule<'_>) -> Result<Routed> {
    let logits = logits.astype(Dtype::F32)?;
    match rule {
        Rule::SoftmaxTopk { normalise } => {
            let indices = best(&logits, k)?;
            let weights = logits.softmax(&[-1])?.take_along(&indices, -1)?;
            let weights = if normalise { weights.div(&weights.sum_keep(&[-1])?)? } else { weights };
            Ok(Routed { indices, weights })
        }
        Rule::TopkSoftmax => {
            let indices = best(&logits, k)?;
            let weights = logits.take_along(&indices, -1)?.softmax(&[-1])?;
            Ok(Routed { indices, weights })
        }
        Rule::SigmoidTopk { bias, how } => sigmoid(&logits, k, bias, how),
    }
}

fn sigmoid(logits: &Array, k: i32, bias: &Array, how: Sigmoid) -> Result<Routed> {
    let scores = logits.sigmoid()?;
    let mut biased = scores.add(bias)?;
    if how.n_group > 1 {
        let in_groups = biased.reshape(&[logits.dim(0), how.n_group, -1])?;
        let two = in_groups.take_along(&best(&in_groups, 2)?, -1)?;
        let groups = best(&two.sum(&[-1])?, how.topk_group)?;
        let zeros = Array::zeros(&[logits.dim(0), how.n_group], Dtype::F32)?;
        let chosen = zeros.put_along(&groups, &Array::scalar(1.0, Dtype::F32)?, 1)?;
        let chosen = chosen.astype(Dtype::Bool)?.expand_dims(&[2])?;
        let never = Array::scalar(f32::NEG_INFINITY, Dtype::F32)?;
        biased = chosen.select(&in_groups, &never)?.reshape(biased.shape())?;
    }
    let indices = best(&biased, k)?;
    let mut weights = scores.take_along(&indices, -1)?;
    if how.normalise {
        weights = weights.div(&weights.sum_keep(&[-1])?.offset(1e-20)?)?;
    }
    Ok(Routed { indices, weights: weights.scale(how.scale)? })
}

/// Indices of the `k` largest along the last axis, the largest first.
fn best(x: &Array, k: i32) -> Result<Array> {
    x.neg()?.argsort(-1)?.slice_axis(-1, 0..k)
}
