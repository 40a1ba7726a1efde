//! The causal convolution on CUDA: one launch.

use mlx::{Launch, Result};

use super::{CausalConv, Convolved, Sizes};
use crate::cuda::Kernel;

/// Threads of a block.
const THREADS: i32 = 128;
/// Steps that one thread computes, when decoding and when not.
const RUNS: [i32; 2] = [2, 16];

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
        call: &|| {
            format!(
                "offshoot::causal_conv<WIDTH, RUN, T, Weight>(u, weight, {tail}, {lengths}, out, \
             new_tail, u_shape[1], u_shape[2]);"
            )
        },
        shared_bytes: 0,
    };
    let run = RUNS[usize::from(s.steps > RUNS[0])];
    let tail_shape = [s.rows, s.width - 1, s.channels];
    let dtype = conv.u.dtype();
    let mut made = kernel
        .launch(&Launch {
            outputs: &[(conv.u.shape(), dtype), (&tail_shape, dtype)],
            grid: [
                (s.channels + THREADS - 1) / THREADS * THREADS,
                (s.steps + run - 1) / run,
                s.rows,
            ],
            group: [THREADS, 1, 1],
            ints: &[("WIDTH", s.width), ("RUN", run)],
            dtypes: &[("T", dtype), ("Weight", conv.weight.dtype())],
        })?
        .into_iter();
    match (made.next(), made.next()) {
        (Some(out), Some(tail)) => Ok(Convolved { out, tail }),
        _ => unreachable!("as many outputs as were asked for"),
    }
}
