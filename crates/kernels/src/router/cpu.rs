//! Routers on the CPU: one pass over a token's logits keeps the best so far, another sums.

use mlx::{Array, CpuKernel, Dtype, Result, TensorMut, TensorRef};

use super::{Routed, Rule, Sigmoid};
use crate::cpu::{Failure, Floats, Parts, each, exp, for_processor};

/// Tokens of a task.
const BLOCK: usize = 32;

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
    let (tokens, experts) = (ins[0].shape[0] as usize, ins[0].shape[1] as usize);
    let [indices, weights] = outs else {
        return Err("two outputs were asked for".to_owned());
    };
    let (indices, weights) = (Parts::new(indices)?, Parts::new(weights)?);
    each(tokens.div_ceil(BLOCK), &|block| {
        let (mut x, mut scores) = (vec![0.0f32; experts], vec![0.0f32; experts]);
        let mut best = vec![0.0; k];
        for token in block * BLOCK..tokens.min((block + 1) * BLOCK) {
            logits.read(token * experts, &mut x);
            score(&x, bias, choice, &mut scores);
            // SAFETY: a token belongs to one task.
            let indices = unsafe { indices.slice::<u32>(token * k, k) };
            pick(&scores, &mut best, indices);
            // SAFETY: as above.
            weigh(&x, choice, indices, unsafe { weights.slice::<f32>(token * k, k) });
        }
    });
    Ok(())
}

/// What experts are chosen by.
fn score(logits: &[f32], bias: Option<&[f32]>, choice: Choice, scores: &mut [f32]) {
    let (Choice::SigmoidTopk(how), Some(bias)) = (choice, bias) else {
        scores.copy_from_slice(logits);
        return;
    };
    for ((score, x), bias) in scores.iter_mut().zip(logits).zip(bias) {
        *score = 1.0 / (1.0 + (-x).exp()) + bias;
    }
    if how.n_group > 1 {
        drop_groups(scores, how.n_group as usize, how.topk_group as usize);
    }
}

/// The indices of the largest scores, the largest first; `best` is room for their scores.
fn pick(scores: &[f32], best: &mut [f32], indices: &mut [u32]) {
    let k = indices.len();
    for (i, &score) in scores.iter().enumerate() {
        let mut at = i.min(k);
        while at > 0 && score > best[at - 1] {
            at -= 1;
        }
        if at < k {
            best.copy_within(at..(i.min(k - 1)), at + 1);
            indices.copy_within(at..(i.min(k - 1)), at + 1);
            best[at] = score;
            indices[at] = i as u32;
        }
    }
}

/// Makes the scores of all but the best groups −∞.
fn drop_groups(scores: &mut [f32], n_group: usize, topk_group: usize) {
    let size = scores.len() / n_group;
    let sums = scores.chunks_exact(size).map(sum_of_two_best).collect::<Vec<_>>();
    let mut chosen = vec![0; topk_group];
    pick(&sums, &mut vec![0.0; topk_group], &mut chosen);
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
            let mut sum = 0.0;
            sum_of_exponentials(logits, max, &mut sum);
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

for_processor! {
    /// Σ e^(x − max).
    sum_of_exponentials = sum_body(logits: &[f32], max: f32, sum: &mut f32)
}

#[inline(always)]
fn sum_body<const FUSED: bool>(logits: &[f32], max: f32, sum: &mut f32) {
    let (whole, rest) = logits.as_chunks::<8>();
    let mut sums = [0.0f32; 8];
    for x in whole {
        for i in 0..8 {
            sums[i] += exp::<FUSED>(x[i] - max);
        }
    }
    *sum = sums.iter().sum::<f32>() + rest.iter().map(|x| exp::<FUSED>(x - max)).sum::<f32>();
}
