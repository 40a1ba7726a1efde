//! The gated delta rule on CUDA: step by step for few steps, in chunks on tensor cores for many.

use mlx::{Array, Dtype, Launch, Result};

use super::{GatedDelta, Sizes, Updated};
use crate::cuda::{Kernel, shared_limit_bytes};

/// More steps than this go in chunks.
const FEW: i32 = 64;
/// Steps of a chunk.
const CHUNK: i32 = 64;
/// Threads of a block of the chunked kernels.
const THREADS: i32 = 256;

/// Whether the kernels have a form for these sizes.
pub(super) fn fits(s: &Sizes) -> bool {
    s.k_dim % 16 == 0 && s.k_dim <= 256
}

/// The rule in one launch, or two.
pub(super) fn run(g: &GatedDelta<'_>, s: Sizes, capture: &[i32]) -> Result<Updated> {
    let dtype = g.common_dtype();
    let (q, k, v) = (g.q.astype(dtype)?, g.k.astype(dtype)?, g.v.astype(dtype)?);
    let g = GatedDelta { q: &q, k: &k, v: &v, ..*g };
    let n_captures = capture.len() as i32;
    let at = (n_captures > 0).then(|| Array::staged(capture, &[n_captures])).transpose()?;
    let capture = at.as_ref();
    if s.steps <= FEW || s.v_dim % 16 != 0 || shared_bytes(&s).1 > shared_limit_bytes() {
        steps(&g, &s, capture)
    } else {
        chunks(&g, &s, capture)
    }
}

/// Rows of the state that one block of the scan owns.
fn tile(s: &Sizes) -> i32 {
    if s.v_dim % 32 == 0 && s.k_dim <= 192 { 32 } else { 16 }
}

/// What the two chunked kernels need.
fn shared_bytes(s: &Sizes) -> (i32, i32) {
    let (row_k, row_c, tile) = (s.k_dim + 8, CHUNK + 8, tile(s));
    let matrix = CHUNK * row_c;
    let prepare =
        2 * (CHUNK * row_k).max(matrix) + 2 * matrix + 3 * 16 * 17 + 2 * CHUNK * s.share();
    let scan = 2 * CHUNK * row_k + 2 * matrix + 3 * CHUNK * (tile + 4) + tile * row_k + CHUNK;
    (4 * prepare, 4 * scan)
}

/// Which optional inputs there are, as a kernel's name and arguments say it.
struct Optional<'a> {
    state: Option<&'a Array>,
    lengths: Option<&'a Array>,
    capture: Option<&'a Array>,
}

impl Optional<'_> {
    fn suffix(&self) -> String {
        let letters = [(self.state, 's'), (self.lengths, 'l'), (self.capture, 'c')];
        letters.iter().filter(|(array, _)| array.is_some()).map(|(_, letter)| letter).collect()
    }

    /// "state, lengths, capture, n_captures", with nulls for what is absent.
    fn arguments(&self) -> String {
        let name = |array: Option<&Array>, name: &str| {
            if array.is_some() { name.to_owned() } else { "nullptr".to_owned() }
        };
        let n_captures = name(self.capture, "capture_shape[0]").replace("nullptr", "0");
        let (state, lengths) = (name(self.state, "state"), name(self.lengths, "lengths"));
        format!("{state}, {lengths}, {}, {n_captures}", name(self.capture, "capture"))
    }

    /// "out, last, captured".
    fn outputs(&self) -> (Vec<&'static str>, &'static str) {
        match self.capture {
            Some(_) => (vec!["out", "last", "captured"], "out, last, captured"),
            None => (vec!["out", "last"], "out, last, nullptr"),
        }
    }
}

/// The sizes as kernels read them from the inputs' shapes.
const SIZES: &str = "q_shape[0], q_shape[1], q_shape[2], v_shape[2], v_shape[3]";

fn steps(g: &GatedDelta<'_>, s: &Sizes, capture: Option<&Array>) -> Result<Updated> {
    let optional = Optional { state: g.state, lengths: g.lengths, capture };
    let (outputs, targets) = optional.outputs();
    let kernel = Kernel {
        name: format!("offshoot_delta_steps_{}", optional.suffix()),
        source: include_str!("steps.cu"),
        inputs: vec![
            ("q", Some(g.q)),
            ("k", Some(g.k)),
            ("v", Some(g.v)),
            ("log_decay", Some(g.log_decay)),
            ("beta", Some(g.beta)),
            ("state", g.state),
            ("lengths", g.lengths),
            ("capture", capture),
        ],
        outputs,
        call: &|| {
            format!(
                "__shared__ offshoot::Tile<DK, STEPS> tile;\n\
             offshoot::delta_steps<DK, STEPS, T>(tile, q, k, v, log_decay, beta, {}, \
                 {targets}, {SIZES});",
                optional.arguments()
            )
        },
        shared_bytes: 0,
    };
    let at_once = if s.steps == 1 { 1 } else { 16 };
    let grid = [(s.v_dim + 15) / 16 * 128, s.v_heads, s.rows];
    update(&kernel, g, s, capture, grid, [128, 1, 1], &[("DK", s.k_dim), ("STEPS", at_once)])
}

fn chunks(g: &GatedDelta<'_>, s: &Sizes, capture: Option<&Array>) -> Result<Updated> {
    let [inverse, scores, decay] = &prepare(g, s)?[..] else {
        unreachable!("three outputs were asked for");
    };
    let optional = Optional { state: g.state, lengths: g.lengths, capture };
    let (outputs, targets) = optional.outputs();
    let kernel = Kernel {
        name: format!("offshoot_delta_scan_{}_{}", s.k_dim, optional.suffix()),
        source: include_str!("chunks.cu"),
        inputs: vec![
            ("q", Some(g.q)),
            ("k", Some(g.k)),
            ("v", Some(g.v)),
            ("inverse", Some(inverse)),
            ("scores", Some(scores)),
            ("decay", Some(decay)),
            ("state", g.state),
            ("lengths", g.lengths),
            ("capture", capture),
        ],
        outputs,
        call: &|| {
            format!(
                "extern __shared__ float4 pool[];\n\
             offshoot::delta_scan<DK, TILE, T>(reinterpret_cast<float*>(pool), q, k, v, inverse, \
             scores, decay, {}, {targets}, {SIZES});",
                optional.arguments()
            )
        },
        shared_bytes: shared_bytes(s).1,
    };
    let tile = tile(s);
    let grid = [s.v_dim / tile * THREADS, s.v_heads, s.rows];
    update(&kernel, g, s, capture, grid, [THREADS, 1, 1], &[("DK", s.k_dim), ("TILE", tile)])
}

/// T with columns scaled by β and the decayed scores, `[B, Hv, N, C, C]`, and G `[B, Hv, N, C]`.
fn prepare(g: &GatedDelta<'_>, s: &Sizes) -> Result<Vec<Array>> {
    let n = (s.steps + CHUNK - 1) / CHUNK;
    let optional = Optional { state: None, lengths: g.lengths, capture: None };
    let lengths = if g.lengths.is_some() { "lengths" } else { "nullptr" };
    let kernel = Kernel {
        name: format!("offshoot_delta_prepare_{}_{}", s.k_dim, optional.suffix()),
        source: include_str!("chunks.cu"),
        inputs: vec![
            ("q", Some(g.q)),
            ("k", Some(g.k)),
            ("log_decay", Some(g.log_decay)),
            ("beta", Some(g.beta)),
            ("lengths", g.lengths),
        ],
        outputs: vec!["inverse", "scores", "decay"],
        call: &|| {
            format!(
                "extern __shared__ float4 pool[];\n\
             offshoot::delta_prepare<DK, T>(reinterpret_cast<float*>(pool), q, k, log_decay, beta, \
             {lengths}, inverse, scores, decay, q_shape[1], q_shape[2], beta_shape[2]);"
            )
        },
        shared_bytes: shared_bytes(s).0,
    };
    let matrix = [s.rows, s.v_heads, n, CHUNK, CHUNK];
    kernel.launch(&Launch {
        outputs: &[(&matrix, Dtype::F32), (&matrix, Dtype::F32), (&matrix[..4], Dtype::F32)],
        grid: [n * THREADS, s.k_heads, s.rows],
        group: [THREADS, 1, 1],
        ints: &[("DK", s.k_dim)],
        dtypes: &[("T", g.q.dtype())],
    })
}

/// Launches a kernel whose outputs are those of the rule.
fn update(
    kernel: &Kernel<'_>,
    g: &GatedDelta<'_>,
    s: &Sizes,
    capture: Option<&Array>,
    grid: [i32; 3],
    group: [i32; 3],
    ints: &[(&str, i32)],
) -> Result<Updated> {
    let state = s.state();
    let n_captures = capture.map_or(0, |at| at.dim(0));
    let [b, h, v, k] = state;
    let captured = [n_captures, b, h, v, k];
    let mut outputs = vec![(g.v.shape(), g.v.dtype()), (&state[..], Dtype::F32)];
    outputs.extend(capture.map(|_| (&captured[..], Dtype::F32)));
    let dtypes = [("T", g.v.dtype())];
    let launch = Launch { outputs: &outputs, grid, group, ints, dtypes: &dtypes };
    let mut made = kernel.launch(&launch)?.into_iter();
    let (Some(out), Some(last)) = (made.next(), made.next()) else {
        unreachable!("as many outputs as were asked for");
    };
    let Some(all) = made.next() else {
        return Ok(Updated { out, state: last, captured: Vec::new() });
    };
    // Each state in a buffer of its own: they live longer than one another.
    let own = |i: i32| all.slice_axis(0, i..i + 1)?.reshape(&state)?.contiguous();
    let captured = (0..n_captures).map(own).collect::<Result<Vec<_>>>()?;
    Ok(Updated { out, state: last, captured })
}
