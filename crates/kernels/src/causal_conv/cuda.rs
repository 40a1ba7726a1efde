//! The causal convolution on CUDA: one launch.

use mlx::{Launch, Result};

use super::{CausalConv, Convolved, Sizes};
use crate::cuda::Kernel;

/// Threads of a block.
const THREADS: i32 = 128;
/// Steps that one thread computes.
const RUN: i32 = 16;

pub(super) fn run(conv: &CausalConv<'_>, s: Sizes) -> Result<Convolved> {
    let name = |present: bool, name: &'static str| if present { name } else { "nullptr" };
    let tail = name(conv.tail.is_some(), "tail");
    let lengths = name(conv.lengths.is_some(), "lengths");
    let kernel = Kernel {
        name: format!("offshoot_causal_conv_{tail}_{lengths}"),
        source: include_str!("conv.cu"),
        inputs: vec![
            ("u", Some(conv.u)),
            ("weight", Some(conv.weight)),
            ("tail", conv.tail),
            ("lengths", conv.lengths),
        ],
        outputs: vec!["out", "new_tail"],
        call: format!(
            "offshoot::causal_conv<WIDTH, W, RUN, T, Weight>(u, weight, {tail}, {lengths}, out, \
             new_tail, u_shape[1], u_shape[2]);"
        ),
        shared_bytes: 0,
    };
    let per_thread = if s.channels % 2 == 0 { 2 } else { 1 };
    let threads = s.channels / per_thread;
    let tail_shape = [s.rows, s.width - 1, s.channels];
    let dtype = conv.u.dtype();
    let mut made = kernel
        .launch(&Launch {
            outputs: &[(conv.u.shape(), dtype), (&tail_shape, dtype)],
            grid: [(threads + THREADS - 1) / THREADS * THREADS, (s.steps + RUN - 1) / RUN, s.rows],
            group: [THREADS, 1, 1],
            ints: &[("WIDTH", s.width), ("W", per_thread), ("RUN", RUN)],
            dtypes: &[("T", dtype), ("Weight", conv.weight.dtype())],
        })?
        .into_iter();
    match (made.next(), made.next()) {
        (Some(out), Some(tail)) => Ok(Convolved { out, tail }),
        _ => unreachable!("as many outputs as were asked for"),
    }
}
