//! Routers on the CPU: a token is scored and its best experts picked in one pass over its logits
//! each.

use mlx::{Array, CpuKernel, Dtype, Result, TensorMut, TensorRef};

use super::{Routed, Rule, Sigmoid};
use crate::cpu::{Failure, Floats};

/// The rule without the arrays.
#[derive(Clone, Copy)]
enum Choice {
    SoftmaxTopk { normalise: bool },
    TopkSoftmax,
    SigmoidTopk(Sigmoid),
}

pub(super) fn run(logits: &Array, k: i32, rule: Rule<'_>) -> Result<Routed> {
    let native = if logits.dtype() == Dtype::F16 { Dtype::F32 } else { logits.dtype() };
    let logits = logits.astype(native)?;
    let mut inputs = vec![&logits];
    let choice = match rule {
        Rule::SoftmaxTopk { normalise } => Choice::SoftmaxTopk { normalise },
        Rule::TopkSoftmax => Choice::TopkSoftmax,
        Rule::SigmoidTopk { bias, how } => {
            inputs.push(bias);
            Choice::SigmoidTopk(how)
        }
    };
    let shape = [logits.dim(0), k];
    let outputs = [(&shape[..], Dtype::U32), (&shape[..], Dtype::F32)];
    let mut made =
        CpuKernel::call(&inputs, &outputs, move |ins, outs| route(ins, k as usize, choice, outs))?
            .into_iter();
    match (made.next(), made.next()) {
        (Some(indices), Some(weights)) => Ok(Routed { indices, weights }),
        _ => unreachable!("as many outputs as were asked for"),
    }
}

fn route(
    ins: &[TensorRef<'_>],
    k: usize,
    choice: Choice,
    outs: &mut [TensorMut<'_>],
) -> std::result::Result<(), Failure> {
    let logits = Floats::new(&ins[0])?;
    let bias = ins.get(1).map(TensorRef::as_slice::<f32>).transpose()?;
    let experts = ins[0].shape[1] as usize;
    let [indices, weights] = outs else {
        return Err("two outputs were asked for".to_owned());
    };
    let indices = indices.as_mut_slice::<u32>()?.chunks_exact_mut(k);
    let weights = weights.as_mut_slice::<f32>()?.chunks_exact_mut(k);
    let (mut x, mut scores) = (vec![0.0f32; experts], vec![0.0f32; experts]);
    for (i, (indices, weights)) in indices.zip(weights).enumerate() {
        logits.read(i * experts, &mut x);
        match (choice, bias) {
            (Choice::SigmoidTopk(how), Some(bias)) => {
                for ((score, x), bias) in scores.iter_mut().zip(&x).zip(bias) {
                    *score = 1.0 / (1.0 + (-x).exp()) + bias;
                }
                if how.n_group > 1 {
                    drop_groups(&mut scores, how.n_group as usize, how.topk_group as usize);
                }
            }
            _ => scores.copy_from_slice(&x),
        }
        pick(&mut scores, indices);
        weigh(&x, choice, indices, weights);
    }
    Ok(())
}

/// The indices of the largest scores, the largest first. What was picked becomes −∞.
fn pick(scores: &mut [f32], indices: &mut [u32]) {
    for index in indices {
        let best = (0..scores.len()).reduce(|a, b| if scores[b] > scores[a] { b } else { a });
        let best = best.unwrap_or(0);
        scores[best] = f32::NEG_INFINITY;
        *index = best as u32;
    }
}

/// Makes the scores of all but the best groups −∞.
fn drop_groups(scores: &mut [f32], n_group: usize, topk_group: usize) {
    let size = scores.len() / n_group;
    let mut sums = scores.chunks_exact(size).map(sum_of_two_best).collect::<Vec<_>>();
    let mut chosen = vec![0; topk_group];
    pick(&mut sums, &mut chosen);
    for (group, scores) in scores.chunks_exact_mut(size).enumerate() {
        if !chosen.contains(&(group as u32)) {
            scores.fill(f32::NEG_INFINITY);
        }
    }
}

fn sum_of_two_best(scores: &[f32]) -> f32 {
    let (mut first, mut second) = (f32::NEG_INFINITY, f32::NEG_INFINITY);
    for &score in scores {
        if score > first {
            (first, second) = (score, first);
        } else if score > second {
            second = score;
        }
    }
    first + second
}

fn weigh(logits: &[f32], choice: Choice, indices: &[u32], weights: &mut [f32]) {
    let chosen = || indices.iter().map(|&i| logits[i as usize]);
    let (normalise, epsilon, scale) = match choice {
        Choice::SigmoidTopk(how) => {
            let scores = chosen().map(|x| 1.0 / (1.0 + (-x).exp()));
            weights.iter_mut().zip(scores).for_each(|(to, score)| *to = score);
            (how.normalise, 1e-20, how.scale)
        }
        Choice::SoftmaxTopk { normalise } => {
            let max = chosen().fold(f32::NEG_INFINITY, f32::max);
            let sum = logits.iter().map(|x| (x - max).exp()).sum::<f32>();
            weights.iter_mut().zip(chosen()).for_each(|(to, x)| *to = (x - max).exp() / sum);
            (normalise, 0.0, 1.0)
        }
        Choice::TopkSoftmax => {
            let max = chosen().fold(f32::NEG_INFINITY, f32::max);
            weights.iter_mut().zip(chosen()).for_each(|(to, x)| *to = (x - max).exp());
            (true, 0.0, 1.0)
        }
    };
    let divisor = if normalise { weights.iter().sum::<f32>() + epsilon } else { 1.0 };
    weights.iter_mut().for_each(|w| *w = *w / divisor * scale);
}
