//! Routers on CUDA: one launch.

use mlx::{Array, Dtype, Launch, Result};

use super::{Routed, Rule};
use crate::cuda::Kernel;

/// Tokens of a block.
const WARPS: i32 = 4;

/// Whether the kernel has room: a lane holds up to 32 experts, a warp up to 32 picks and groups.
pub(super) fn fits(logits: &Array, k: i32, rule: Rule<'_>) -> bool {
    let n_group = if let Rule::SigmoidTopk { how, .. } = rule { how.n_group } else { 1 };
    logits.dim(1) <= 1024 && k <= 32 && n_group <= 32
}

pub(super) fn run(logits: &Array, k: i32, rule: Rule<'_>) -> Result<Routed> {
    let (number, normalise, groups, bias, scale) = match rule {
        Rule::SoftmaxTopk { normalise } => (0, normalise, (1, 1), None, 1.0),
        Rule::TopkSoftmax => (1, true, (1, 1), None, 1.0),
        Rule::SigmoidTopk { bias, how } => {
            (2, how.normalise, (how.n_group, how.topk_group), Some(bias), how.scale)
        }
    };
    let name = if bias.is_some() { "bias" } else { "nullptr" };
    let kernel = Kernel {
        name: format!("offshoot_route_{number}_{:x}", f32::to_bits(scale)),
        source: include_str!("router.cu"),
        inputs: vec![("logits", Some(logits)), ("bias", bias)],
        outputs: vec!["indices", "weights"],
        call: &|| {
            format!(
                "offshoot::route<RULE, E, K, NORMALISE, N_GROUP, TOPK_GROUP, WARPS, T>(logits, \
                 {name}, indices, weights, logits_shape[0], {scale:?}f);"
            )
        },
        shared_bytes: 0,
    };
    let n = logits.dim(0);
    let shape = [n, k];
    let mut made = kernel
        .launch(&Launch {
            outputs: &[(&shape, Dtype::U32), (&shape, Dtype::F32)],
            grid: [(n + WARPS - 1) / WARPS * WARPS * 32, 1, 1],
            group: [WARPS * 32, 1, 1],
            ints: &[
                ("RULE", number),
                ("E", logits.dim(1)),
                ("K", k),
                ("NORMALISE", i32::from(normalise)),
                ("N_GROUP", groups.0),
                ("TOPK_GROUP", groups.1),
                ("WARPS", WARPS),
            ],
            dtypes: &[("T", logits.dtype())],
        })?
        .into_iter();
    match (made.next(), made.next()) {
        (Some(indices), Some(weights)) => Ok(Routed { indices, weights }),
        _ => unreachable!("as many outputs as were asked for"),
    }
}
