//! Norms on CUDA: one launch.

use mlx::{Array, Launch, Result};

use super::Norm;
use crate::cuda::{Kernel, count, literal};

/// Elements that a thread loads at once, at most.
const MAX_RUN: i32 = 4;
/// Elements of a row that a warp takes, at least.
const WARP_ELEMENTS: i32 = 32 * MAX_RUN;
const MAX_WARPS: i32 = 32;
/// Rows of a block where each has one warp.
const BLOCK_ROWS: i32 = 4;
/// Widths beyond it would not fit into registers.
const MAX_WIDTH: i32 = 16 * MAX_WARPS * WARP_ELEMENTS;

/// Whether there is a form for it.
pub(super) fn fits(norm: &Norm<'_>) -> bool {
    norm.x.dim(-1) <= MAX_WIDTH
}

pub(super) fn run(norm: &Norm<'_>) -> Result<(Array, Option<Array>)> {
    let (x, width) = (norm.x, norm.x.dim(-1));
    let name = |array: Option<&Array>, name: &'static str, type_name: &str| match array {
        Some(_) => name.to_owned(),
        None => format!("static_cast<const {type_name}*>(nullptr)"),
    };
    let (y, gate) = (name(norm.added, "y", "T"), name(norm.gate, "gate", "Gate"));
    let weight = name(norm.weight, "weight", "W");
    let sum = if norm.added.is_some() { "sum" } else { "static_cast<T*>(nullptr)" };
    let kinds = u32::from(norm.added.is_some())
        + 2 * u32::from(norm.gate.is_some())
        + 4 * u32::from(norm.weight.is_some());
    let kernel = Kernel {
        name: format!("offshoot_norm_{kinds}_{:x}_{:x}", norm.eps.to_bits(), norm.factor.to_bits()),
        source: include_str!("norm.cu"),
        inputs: vec![
            ("x", Some(x)),
            ("y", norm.added),
            ("gate", norm.gate),
            ("weight", norm.weight),
        ],
        outputs: if norm.added.is_some() { vec!["normed", "sum"] } else { vec!["normed"] },
        call: &|| {
            let (n, eps, factor) = (count("x"), literal(norm.eps), literal(norm.factor));
            format!(
                "{n}\noffshoot::rms_norm<WIDTH, WARPS, RUN, T, Gate, W>(x, {y}, {gate}, {weight}, \
                 normed, {sum}, n / WIDTH, {eps}, {factor});"
            )
        },
        shared_bytes: 0,
    };
    let run = [MAX_RUN, 2, 1].into_iter().find(|run| width % run == 0).unwrap_or(1);
    let warps = ((width + WARP_ELEMENTS - 1) / WARP_ELEMENTS).min(MAX_WARPS);
    let n_beside = if warps == 1 { BLOCK_ROWS } else { 1 };
    let n_rows = (x.n_elements() / width as usize) as i32;
    let outputs = [(x.shape(), x.dtype()); 2];
    let mut made = kernel
        .launch(&Launch {
            outputs: &outputs[..1 + usize::from(norm.added.is_some())],
            grid: [(n_rows + n_beside - 1) / n_beside * 32 * warps, n_beside, 1],
            group: [32 * warps, n_beside, 1],
            ints: &[("WIDTH", width), ("WARPS", warps), ("RUN", run)],
            dtypes: &[
                ("T", x.dtype()),
                ("Gate", norm.gate.unwrap_or(x).dtype()),
                ("W", norm.weight.unwrap_or(x).dtype()),
            ],
        })?
        .into_iter();
    let normed = made.next().expect("as many outputs as were asked for");
    Ok((normed, made.next()))
}
