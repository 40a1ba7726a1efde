//! Products of a few rows with matrices of weights on CUDA: what a decoding step is made of, and
//! bounded by how fast the weights are read. One launch for several matrices of one input, for a
//! gate and an up-projection joined by silu(gate) ⊙ up, and for matrices chosen by index.
//!
//! Sums are f32. What becomes of a row does not depend on the rows beside it, to the last bit. The
//! twins are those of the operations that call this: [`crate::dense::reference`],
//! [`crate::quantized::reference`], [`crate::experts::reference`].

use mlx::{Array, Backend, Device, Dtype, Launch, QuantMode, Quantized, Result};

use crate::cuda::{Kernel, MULTIPROCESSORS, shared_limit_bytes};

/// The columns of a tile.
const TILE_COLUMNS: i32 = 8;
/// Rows that are few. Beyond, the device's library is as fast with floats; codes are read again for
/// each tile's columns, which is less than making floats of them.
const MAX_ROWS_FLOATS: i32 = TILE_COLUMNS;
const MAX_ROWS_CODES: i32 = 8 * TILE_COLUMNS;
/// Codes that are read in all where they are read again, at most: of more, [`crate::grouped`] is
/// faster. On an H200 5 MB read 8 times take 40 µs, and 50 there; 160 MB 4 times 500, and 240.
const MAX_READ_BYTES: usize = 96 << 20;
/// Rows of all chosen matrices together; beyond, they had better be sorted and share what is read.
pub(crate) const MAX_CHOSEN: i32 = 512;
/// Matrices of a launch.
const MAX_MATRICES: usize = 4;
/// As the source has them.
const TILE_ROWS: i32 = 16;
const WARPS: i32 = 8;
const THREADS: i32 = WARPS * 32;
const FLOATS_STEP: i32 = 32;
/// Steps of a warp whose weights are on their way or in use, and the shared memory that more than
/// the fewest of them may take. More than a warp has leave less room for other blocks.
const STAGES: [i32; 2] = [3, 6];
/// Blocks of threads that a large device runs at a time: of more, as many as there is room for are
/// better than many steps of each.
const MANY_BLOCKS: i32 = 4 * MULTIPROCESSORS;
const WARP_BYTES: i32 = 8 << 10;
/// Shared memory for the warps' sums of a tile.
const PARTS_BYTES: i32 = WARPS * TILE_ROWS * TILE_COLUMNS * 4;

/// A matrix `[out, in]`, or a stack of them.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Weights<'a> {
    Floats(&'a Array),
    Quantized(&'a Quantized),
}

/// What becomes of the products.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Join {
    /// One output for each matrix.
    Apart,
    /// silu(x·w₀ᵀ) ⊙ x·w₁ᵀ.
    Swiglu,
}

impl Join {
    /// Tiles of a block.
    fn n_tiles(self) -> i32 {
        match self {
            Join::Apart => 1,
            Join::Swiglu => 2,
        }
    }
}

/// The form that several matrices share: bits and group, none for floats.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Form(Option<(i32, i32)>);

impl<'a> Weights<'a> {
    fn array(self) -> &'a Array {
        match self {
            Weights::Floats(w) => w,
            Weights::Quantized(w) => &w.weight,
        }
    }

    /// The dtype of its scales, or its own.
    fn scales(self) -> Dtype {
        match self {
            Weights::Floats(w) => w.dtype(),
            Weights::Quantized(w) => w.scales.dtype(),
        }
    }

    /// What the launch is given of matrix `i`, named as the call names them.
    fn inputs(self, i: usize) -> Vec<(&'static str, Option<&'a Array>)> {
        const NAMES: [[&str; 3]; MAX_MATRICES] =
            [["w0", "s0", "b0"], ["w1", "s1", "b1"], ["w2", "s2", "b2"], ["w3", "s3", "b3"]];
        let [w, s, b] = NAMES[i];
        match self {
            Weights::Floats(weight) => vec![(w, Some(weight))],
            Weights::Quantized(q) => {
                vec![(w, Some(&q.weight)), (s, Some(&q.scales)), (b, q.biases.as_ref())]
            }
        }
    }

    /// If there is code for it.
    fn form(self, x: &Array) -> Option<Form> {
        let n_in = x.dim(-1);
        match self {
            Weights::Floats(w) => {
                (w.dtype() == x.dtype() && n_in % FLOATS_STEP == 0).then_some(Form(None))
            }
            Weights::Quantized(w) => {
                let (bits, group) = (w.quantization.bits, w.quantization.group_size);
                let fits = w.quantization.mode == QuantMode::Affine
                    && matches!(bits, 4 | 8)
                    && matches!(group, 32 | 64 | 128)
                    && n_in % (2 * group) == 0
                    && w.biases.as_ref().is_some_and(|b| b.dtype() == w.scales.dtype());
                fits.then_some(Form(Some((bits, group))))
            }
        }
    }
}

impl Form {
    /// The name of the type in the source.
    fn type_name(self) -> String {
        match self.0 {
            None => "offshoot::Floats<T>".to_owned(),
            Some((bits, group)) => format!("offshoot::Affine<T, S, {bits}, {group}>"),
        }
    }

    /// The inner size, by the shape of the first matrix of `n_dims` axes.
    fn inner(self, n_dims: usize) -> String {
        let codes = self.0.map_or(1, |(bits, _)| 32 / bits);
        format!("w0_shape[{}] * {codes}", n_dims - 1)
    }

    /// Constructs matrix `i`.
    fn matrix(self, i: usize) -> String {
        match self.0 {
            None => format!("{{w{i}}}"),
            Some(_) => format!("{{w{i}, s{i}, b{i}}}"),
        }
    }

    /// Steps of a warp that are in shared memory, with `n_in` inputs and `n_blocks` blocks for a
    /// group of rows; with none, at most so many.
    fn stages(self, n_in: i32, n_blocks: i32, join: Join, scales: Dtype) -> i32 {
        let step = self.0.map_or(FLOATS_STEP, |(_, group)| 2 * group);
        let n_own = (n_in / step + WARPS - 1) / WARPS;
        let fit = (WARP_BYTES / self.stage_bytes(join, scales)).clamp(STAGES[0], STAGES[1]);
        let most = if n_blocks > MANY_BLOCKS { STAGES[0] } else { fit };
        most.min(n_own + 1)
    }

    /// As the source counts them.
    fn stage_bytes(self, join: Join, scales: Dtype) -> i32 {
        let scale_bytes = if scales == Dtype::F32 { 4 } else { 2 };
        let tile_bytes = match self.0 {
            None => 2 * 4 * 32 * 4,
            Some((bits, group)) => {
                2 * 2 * (group / 32 * bits / 4) * 32 * 4 + 2 * TILE_ROWS * 2 * scale_bytes
            }
        };
        join.n_tiles() * tile_bytes
    }

    /// What a launch asks for.
    fn shared_bytes(self, stages: i32, join: Join, scales: Dtype) -> i32 {
        WARPS * stages * self.stage_bytes(join, scales) + PARTS_BYTES * join.n_tiles()
    }
}

/// x `[.., in]` times matrices `[out, in]` → `[.., out]` each, or one where they are joined. None
/// where there is no such form.
pub(crate) fn products(
    x: &Array,
    matrices: &[Weights<'_>],
    join: Join,
) -> Result<Option<Vec<Array>>> {
    let n_rows = (x.n_elements() / x.dim(-1).max(1) as usize).min(i32::MAX as usize) as i32;
    let Some(form) = shared_form(x, matrices, join) else { return Ok(None) };
    let most = form.0.map_or(MAX_ROWS_FLOATS, |_| MAX_ROWS_CODES);
    if !(1..=most).contains(&n_rows) {
        return Ok(None);
    }
    let shape = |w: &Weights<'_>| [&x.shape()[..x.n_dims() - 1], &[w.array().dim(0)]].concat();
    let n_groups = (n_rows + TILE_COLUMNS - 1) / TILE_COLUMNS;
    let n_bytes = matrices.iter().map(|w| w.array().n_bytes()).sum::<usize>();
    if n_groups > 1 && n_bytes * n_groups as usize > MAX_READ_BYTES {
        return Ok(None);
    }
    let call = Call { x, which: None, n_groups, matrices, join, form };
    call.launch(matrices.iter().map(shape).collect()).map(Some)
}

/// Rows `x` `[.., 1, in]` times the matrices of stacks `[E, out, in]` that `which` names →
/// `[.., 1, out]`. None where there is no such form.
pub(crate) fn chosen(
    x: &Array,
    which: &Array,
    matrices: &[Weights<'_>],
    join: Join,
) -> Result<Option<Array>> {
    let n = which.n_elements();
    let Some(form) = shared_form(x, matrices, join) else { return Ok(None) };
    if !(1..=MAX_CHOSEN as usize).contains(&n) || shared_rows(x, which).is_none() {
        return Ok(None);
    }
    let shape = [which.shape(), &[1, matrices[0].array().dim(1)]].concat();
    let call = Call { x, which: Some(which), n_groups: 1, matrices, join, form };
    Ok(call.launch(vec![shape])?.pop())
}

/// The form of all matrices, if the device and the source have it.
fn shared_form(x: &Array, matrices: &[Weights<'_>], join: Join) -> Option<Form> {
    let has_code = Device::current_backend() == Backend::Cuda
        && matches!(x.dtype(), Dtype::Bf16 | Dtype::F16)
        && matrices.len() <= MAX_MATRICES;
    let first = matrices.first().filter(|_| has_code)?;
    let form = first.form(x)?;
    let is_alike = |w: &Weights<'_>| w.form(x) == Some(form) && w.scales() == first.scales();
    let stages = form.stages(x.dim(-1), 0, join, first.scales());
    let n_bytes = form.shared_bytes(stages, join, first.scales());
    let has_outputs = matrices.iter().all(|w| w.array().dim(-2) > 0);
    let fits = has_outputs && matrices.iter().all(is_alike) && n_bytes <= shared_limit_bytes();
    fits.then_some(form)
}

/// How many indices in a row share a row of x: 1, or the last axis of `which`.
fn shared_rows(x: &Array, which: &Array) -> Option<i32> {
    let axes = &x.shape()[..x.n_dims() - 2];
    let last = which.shape().last().copied().unwrap_or(1);
    if axes == which.shape() {
        return Some(1);
    }
    let (before, own) = axes.split_last().map(|(last, before)| (before, *last))?;
    (own == 1 && before == &which.shape()[..which.n_dims() - 1]).then_some(last)
}

struct Call<'a> {
    x: &'a Array,
    which: Option<&'a Array>,
    /// Of rows, each of which reads all weights; neighbours in time.
    n_groups: i32,
    matrices: &'a [Weights<'a>],
    join: Join,
    form: Form,
}

impl Call<'_> {
    /// `shapes`: those of the outputs, one for each matrix where they stay apart.
    fn launch(&self, mut shapes: Vec<Vec<i32>>) -> Result<Vec<Array>> {
        const OUTPUTS: [&str; MAX_MATRICES] = ["y0", "y1", "y2", "y3"];
        let Self { x, which, n_groups, matrices, join, form } = *self;
        let n_dims = matrices[0].array().n_dims();
        if join == Join::Swiglu {
            shapes.truncate(1);
        }
        let outputs = shapes.iter().map(|shape| (&shape[..], x.dtype())).collect::<Vec<_>>();
        let n_tiles = |w: &Weights<'_>| (w.array().dim(-2) + TILE_ROWS - 1) / TILE_ROWS;
        let n_blocks = matrices[..shapes.len()].iter().map(n_tiles).sum::<i32>();
        let scales = matrices[0].scales();
        let stages = form.stages(x.dim(-1), n_blocks, join, scales);
        let (bits, group) = form.0.unwrap_or_default();
        let of_matrices = matrices.iter().enumerate().flat_map(|(i, w)| w.inputs(i));
        let kernel = Kernel {
            name: format!(
                "offshoot_few_rows_{}_{}_{bits}_{group}_{stages}_{}",
                matrices.len(),
                join.n_tiles(),
                u8::from(which.is_some())
            ),
            source: concat!(include_str!("../cuda/codes.cuh"), include_str!("few_rows.cu")),
            inputs: [("x", Some(x)), ("which", which)].into_iter().chain(of_matrices).collect(),
            outputs: OUTPUTS[..shapes.len()].to_vec(),
            call: &|| self.text(n_dims),
            shared_bytes: form.shared_bytes(stages, join, scales),
        };
        let share = which.and_then(|which| shared_rows(x, which)).unwrap_or(1);
        let launch = Launch {
            outputs: &outputs,
            grid: [
                n_blocks * n_groups * THREADS,
                which.map_or(1, |which| which.n_elements() as i32),
                1,
            ],
            group: [THREADS, 1, 1],
            ints: &[("STAGES", stages), ("SHARE", share)],
            dtypes: &[("T", x.dtype()), ("S", scales)],
        };
        // Which matrices to read is mostly found out right before.
        match which {
            Some(_) => kernel.launch(&launch),
            None => kernel.launch_early(&launch, 1),
        }
    }

    fn text(&self, n_dims: usize) -> String {
        let Self { which, matrices, join, form, .. } = *self;
        let (n, name) = (matrices.len(), form.type_name());
        let list = |item: &dyn Fn(usize) -> String| (0..n).map(item).collect::<Vec<_>>().join(", ");
        // A pair is a row and a matrix that was chosen for it, or the first row of a group.
        let place = match which {
            Some(_) => {
                "const long pair = blockIdx.y;\nconst int m = 1, block = blockIdx.x;".to_owned()
            }
            None => format!(
                "{}\nconst int n_rows = n / k;\n\
                 const int n_groups = (n_rows + {TILE_COLUMNS} - 1) / {TILE_COLUMNS};\n\
                 const int block = blockIdx.x / n_groups;\n\
                 const long pair = blockIdx.x % n_groups * {TILE_COLUMNS};\n\
                 const int m = min({TILE_COLUMNS}, n_rows - static_cast<int>(pair));",
                crate::cuda::count("x")
            ),
        };
        let matrix = |i: usize| match which {
            Some(_) => {
                format!("{name}{}.chosen(which[pair], w{i}_shape[1], k)", form.matrix(i))
            }
            None => format!("{name}{}", form.matrix(i)),
        };
        let axis = n_dims - 2;
        let launch = match join {
            Join::Apart => format!(
                "const int sizes[] = {{{}}};\nT* const y[] = {{{}}};\n\
                 offshoot::few_rows_apart<{n}, STAGES>(from, m, of, sizes, y, k, block);",
                list(&|i| format!("w{i}_shape[{axis}]")),
                list(&|i| format!("y{i} + pair * w{i}_shape[{axis}]")),
            ),
            Join::Swiglu => format!(
                "const int size = w0_shape[{axis}];\noffshoot::few_rows_swiglu<STAGES>(\
                 from, m, of[0], of[1], size, y0 + pair * size, k, block);"
            ),
        };
        let (inner, of) = (form.inner(n_dims), list(&matrix));
        format!(
            "const int k = {inner};\n{place}\n\
             const {name} of[] = {{{of}}};\nconst T* from = x + pair / SHARE * k;\n{launch}"
        )
    }
}
