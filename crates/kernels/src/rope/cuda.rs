//! Norm and turn of heads on CUDA: one launch.

use mlx::{Array, Launch, Result};

use super::{Heads, Sizes};
use crate::cuda::{Kernel, literal};

const THREADS: i32 = 128;

/// With the position of each row's first token, i32 `[B]`.
pub(super) fn run(heads: &Heads<'_>, s: Sizes, begins: &Array) -> Result<Array> {
    let rotation = heads.rotation;
    let weight = match heads.norm {
        Some(_) => "weight",
        None => "static_cast<const T*>(nullptr)",
    };
    let eps = heads.norm.map_or(0.0, |norm| norm.eps);
    let factor = rotation.factor.as_ref().map_or(1.0, |(factor, _)| *factor);
    let has_norm = u32::from(heads.norm.is_some());
    let kernel = Kernel {
        name: format!("offshoot_turn_{has_norm}_{:x}_{:x}", eps.to_bits(), factor.to_bits()),
        source: include_str!("turn.cu"),
        inputs: vec![
            ("x", Some(heads.x)),
            ("frequencies", Some(&rotation.on_device)),
            ("begins", Some(begins)),
            ("weight", heads.norm.map(|norm| norm.weight)),
        ],
        outputs: vec!["out"],
        call: &|| {
            let (eps, factor) = (literal(eps), literal(factor));
            format!(
                "offshoot::turn<HEADS, GROUP, BEGIN, DIM, TURNED, NEIGHBOURS>(x, frequencies, \
                 begins, {weight}, out, x_shape[0], x_shape[1], {eps}, {factor});"
            )
        },
        shared_bytes: 0,
    };
    let n_warps = s.rows * s.tokens * heads.n_heads;
    let n_groups = (n_warps + THREADS / 32 - 1) / (THREADS / 32);
    let made = kernel.launch(&Launch {
        outputs: &[(&[s.rows, heads.n_heads, s.tokens, heads.head_dim], heads.x.dtype())],
        grid: [n_groups * THREADS, 1, 1],
        group: [THREADS, 1, 1],
        ints: &[
            ("HEADS", heads.n_heads),
            ("GROUP", s.group),
            ("BEGIN", heads.begin),
            ("DIM", heads.head_dim),
            ("TURNED", rotation.n_turned()),
            ("NEIGHBOURS", i32::from(rotation.mlx.traditional)),
        ],
        dtypes: &[("T", heads.x.dtype())],
    })?;
    Ok(made.into_iter().next().expect("one output was asked for"))
}
