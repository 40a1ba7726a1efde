//! Norm and turn of heads on CUDA: one launch, also for heads of several arrays.

use mlx::{Array, Launch, Result};

use super::{Heads, Sizes};
use crate::cuda::{Kernel, literal};

const THREADS: i32 = 128;
/// Arrays of a launch.
const MAX: usize = 2;
/// What the launch is given of each array.
const NAMES: [[&str; 4]; MAX] =
    [["x0", "frequencies0", "weight0", "out0"], ["x1", "frequencies1", "weight1", "out1"]];

/// Of at most two arrays of as many tokens, with the position of each row's first one, i32 `[B]`.
pub(super) fn run(all: &[(&Heads<'_>, Sizes)], begins: &Array) -> Result<Vec<Array>> {
    let kinds = all.iter().map(|(heads, s)| kind(heads, *s)).collect::<Vec<_>>().join("_");
    let late = all.iter().zip(NAMES).map(|((heads, _), [x, ..])| (x, Some(heads.x)));
    let of_each = all.iter().zip(NAMES).flat_map(|((heads, _), [_, frequencies, weight, _])| {
        [
            (frequencies, Some(&heads.rotation.on_device)),
            (weight, heads.norm.map(|norm| norm.weight)),
        ]
    });
    let kernel = Kernel {
        name: format!("offshoot_turn_{kinds}"),
        source: include_str!("turn.cu"),
        inputs: late.chain([("begins", Some(begins))]).chain(of_each).collect(),
        outputs: NAMES[..all.len()].iter().map(|[.., out]| *out).collect(),
        call: &|| text(all),
        shared_bytes: 0,
    };
    let shapes = all.iter().map(|(heads, s)| [s.rows, heads.n_heads, s.tokens, heads.head_dim]);
    let shapes = shapes.collect::<Vec<_>>();
    let outputs = shapes.iter().zip(all).map(|(shape, (heads, _))| (&shape[..], heads.x.dtype()));
    let n_warps = all.iter().map(|(heads, s)| s.rows * s.tokens * heads.n_heads).sum::<i32>();
    let n_groups = (n_warps + THREADS / 32 - 1) / (THREADS / 32);
    let launch = Launch {
        outputs: &outputs.collect::<Vec<_>>(),
        grid: [n_groups * THREADS, 1, 1],
        group: [THREADS, 1, 1],
        ints: &[],
        dtypes: &[],
    };
    kernel.launch_early(&launch, all.len())
}

/// Everything that the source states of one array.
fn kind(heads: &Heads<'_>, s: Sizes) -> String {
    let Heads { n_heads, begin, head_dim, rotation, .. } = heads;
    let eps = heads.norm.map_or("none".to_owned(), |norm| format!("{:x}", norm.eps.to_bits()));
    let (turned, neighbours) = (rotation.n_turned(), u8::from(rotation.mlx.traditional));
    let (group, factor) = (s.group, factor(heads).to_bits());
    format!("{n_heads}_{group}_{begin}_{head_dim}_{turned}_{neighbours}_{eps}_{factor:x}")
}

fn factor(heads: &Heads<'_>) -> f32 {
    heads.rotation.factor.as_ref().map_or(1.0, |(factor, _)| *factor)
}

/// Warps go to the heads of one array after the other.
fn text(all: &[(&Heads<'_>, Sizes)]) -> String {
    let begin = "long warp = (static_cast<long>(blockIdx.x) * blockDim.x + threadIdx.x) / 32;\n";
    all.iter().zip(NAMES).fold(begin.to_owned(), |text, ((heads, s), names)| {
        let [x, frequencies, weight, out] = names;
        let Heads { n_heads, begin, head_dim, rotation, .. } = heads;
        let (turned, neighbours) = (rotation.n_turned(), rotation.mlx.traditional);
        let (eps, factor) = (heads.norm.map_or(0.0, |norm| norm.eps), factor(heads));
        let (eps, factor, group) = (literal(eps), literal(factor), s.group);
        let weight = heads.norm.map_or("static_cast<const float*>(nullptr)", |_| weight);
        text + &format!(
            "{{\nconst long n = static_cast<long>({x}_shape[0]) * {x}_shape[1] * {n_heads};\n\
             if (warp < n) {{\n\
             offshoot::turn<{n_heads}, {group}, {begin}, {head_dim}, {turned}, {neighbours}>(\
             warp, {x}, {frequencies}, begins, {weight}, {out}, {x}_shape[1], {eps}, {factor});\n\
             return;\n}}\nwarp -= n;\n}}\n"
        )
    })
}
