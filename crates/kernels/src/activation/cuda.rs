//! Activations on CUDA: one launch.

use mlx::{Array, Launch, Result};

use super::Rule;
use crate::cuda::{Kernel, count, literal};

const THREADS: i32 = 256;
/// Elements of a thread: 16 bytes of 16-bit floats.
const RUN: i32 = 8;

pub(super) fn run(rule: Rule, gate: &Array, x: &Array) -> Result<Array> {
    launch(rule, gate, x, 0)
}

/// Whether there is a form for gates that stand behind heads of this size.
pub(super) fn fits(head_dim: i32) -> bool {
    head_dim % RUN == 0
}

/// With gates behind heads of queries.
pub(super) fn behind(queries: &Array, x: &Array, head_dim: i32) -> Result<Array> {
    launch(Rule::Sigmoid, queries, x, head_dim)
}

fn launch(rule: Rule, gate: &Array, x: &Array, head_dim: i32) -> Result<Array> {
    let (number, alpha, limit) = match rule {
        Rule::SwiGlu => (0, 0.0, 0.0),
        Rule::GeGlu => (1, 0.0, 0.0),
        Rule::Clamped { alpha, limit } => (2, alpha, limit),
        Rule::Sigmoid => (3, 0.0, 0.0),
    };
    let kernel = Kernel {
        name: format!("offshoot_gated_{number}_{:x}_{:x}", f32::to_bits(alpha), limit.to_bits()),
        source: include_str!("gated.cu"),
        inputs: vec![("gate", Some(gate)), ("x", Some(x))],
        outputs: vec!["out"],
        call: &|| {
            let (n, alpha, limit) = (count("x"), literal(alpha), literal(limit));
            format!(
                "{n}\noffshoot::gated_all<{number}, {RUN}, HEAD, T>(\
                 gate, x, out, n, {alpha}, {limit});"
            )
        },
        shared_bytes: 0,
    };
    let n_threads = (x.n_elements() as i64 + i64::from(RUN) - 1) / i64::from(RUN);
    let n_groups = (n_threads + i64::from(THREADS) - 1) / i64::from(THREADS);
    let made = kernel.launch(&Launch {
        outputs: &[(x.shape(), x.dtype())],
        grid: [n_groups as i32 * THREADS, 1, 1],
        group: [THREADS, 1, 1],
        ints: &[("HEAD", head_dim)],
        dtypes: &[("T", x.dtype())],
    })?;
    Ok(made.into_iter().next().expect("one output was asked for"))
}
