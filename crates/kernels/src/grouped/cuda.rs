//! Rows in the order of their matrices on CUDA: see `order.cu` and `grouped.cu`.

use std::cell::RefCell;
use std::collections::HashMap;

use mlx::{Array, Dtype, Launch, QuantMode, Quantized, Result};

use crate::cuda::{Kernel, MULTIPROCESSORS, shared_limit_bytes};

/// Rows of a tile, at most.
const TILE: i32 = 64;
/// Rows of a tile of one matrix, about, where blocks of threads are few.
const FEWEST: i32 = 16;
const ORDER_THREADS: i32 = 1024;

/// As `grouped.cu` has them.
const WARPS: i32 = 8;
const STAGES: i32 = 3;
/// Bytes of a row's codes that a step takes.
const STEP_BYTES: i32 = 64;

const SOURCE: &str = concat!(
    include_str!("../cuda/tiles.cuh"),
    include_str!("../cuda/codes.cuh"),
    include_str!("grouped.cu")
);

/// Rows that share a matrix.
#[derive(Debug)]
pub(super) struct Tiles {
    /// `[most, 3]`, u32: matrix, first place, number of rows, 0 where there is no tile.
    tiles: Array,
}

/// What `order.cu` makes.
pub(super) struct Ordered {
    pub order: Array,
    pub places: Array,
    pub tiles: Tiles,
}

/// The order of pairs by their matrices `which` `[n]`.
pub(super) fn order(which: &Array, n_matrices: i32) -> Result<Ordered> {
    let n = which.dim(0);
    // A matrix has at most one tile that is not full.
    let most = n / TILE + n_matrices.min(n);
    let kernel = Kernel {
        name: format!("offshoot_order_pairs_{n_matrices}"),
        source: include_str!("order.cu"),
        inputs: vec![("which", Some(which))],
        outputs: vec!["order", "places", "tiles", "counts"],
        call: &|| {
            format!(
                "const int n = which_shape[0];\n\
                 offshoot::order_pairs<{TILE}, {ORDER_THREADS}>(which, order, places, tiles, \
                 counts, n, {n_matrices}, n / {TILE} + min(n, {n_matrices}));"
            )
        },
        shared_bytes: 0,
    };
    let made = kernel.launch(&Launch {
        outputs: &[
            (&[n], Dtype::U32),
            (&[n], Dtype::U32),
            (&[most, 3], Dtype::U32),
            (&[n_matrices], Dtype::U32),
        ],
        grid: [ORDER_THREADS, 1, 1],
        group: [ORDER_THREADS, 1, 1],
        ints: &[],
        dtypes: &[],
    })?;
    let Ok([order, places, tiles, _]) = <[Array; 4]>::try_from(made) else {
        unreachable!("as many outputs as were asked for")
    };
    Ok(Ordered { order, places, tiles: Tiles { tiles } })
}

thread_local! {
    /// So many tiles of so many rows of one matrix.
    static PLAIN: RefCell<HashMap<(i32, i32), Array>> = RefCell::new(HashMap::new());
}

impl Tiles {
    /// Of `n` rows of one matrix, in order, whose outputs are shared out to `n_blocks` blocks of
    /// threads: small ones where these would be few.
    pub fn plain(n: i32, n_blocks: i32) -> Result<Self> {
        let at_least = |rows: i32| (n + rows - 1) / rows;
        let n_tiles = (MULTIPROCESSORS / n_blocks.max(1)).clamp(at_least(TILE), at_least(FEWEST));
        let known = PLAIN.with_borrow(|plain| plain.get(&(n, n_tiles)).cloned());
        let tiles = known.map_or_else(|| plain_tiles(n, n_tiles), Ok)?;
        Ok(Self { tiles })
    }
}

fn plain_tiles(n: i32, n_tiles: i32) -> Result<Array> {
    let begin = |i: i32| (n * i / n_tiles) as u32;
    let tiles = (0..n_tiles).flat_map(|i| [0, begin(i), begin(i + 1) - begin(i)]);
    let tiles = Array::from_slice(&tiles.collect::<Vec<_>>(), &[n_tiles, 3])?;
    // Launches read it again and again: not from the host's memory.
    let tiles = tiles.offset(0.0)?;
    mlx::async_eval([&tiles])?;
    PLAIN.with_borrow_mut(|plain| plain.insert((n, n_tiles), tiles.clone()));
    Ok(tiles)
}

/// Bytes of shared memory with `bits` to a code.
fn shared_bytes(bits: i32) -> i32 {
    let quarter = STEP_BYTES * 8 / bits / 4;
    STAGES * (TILE * 4 * (2 * quarter + 16) + WARPS * 32 * STEP_BYTES)
}

/// Whether there is a form for rows of x and these stacks.
pub(super) fn fits(x: &Array, stacks: &[&Quantized]) -> bool {
    let is_fine = |w: &&Quantized| {
        let (bits, group) = (w.quantization.bits, w.quantization.group_size);
        w.quantization.mode == QuantMode::Affine
            && matches!(bits, 4 | 8)
            && matches!(group, 32 | 64 | 128)
            && w.weight.dim(-1) * 4 % STEP_BYTES == 0
            && w.weight.dim(-1) * 32 / bits == x.dim(-1)
            && w.scales.dtype() == x.dtype()
            && w.biases.as_ref().is_some_and(|biases| biases.dtype() == x.dtype())
            && shared_bytes(bits) <= shared_limit_bytes()
    };
    let shape = |w: &Quantized| (w.quantization, w.weight.shape().to_vec());
    matches!(x.dtype(), Dtype::Bf16 | Dtype::F16)
        && stacks.iter().all(is_fine)
        && stacks.iter().all(|w| shape(w) == shape(stacks[0]))
}

/// Blocks of threads to which outputs of a tile are shared out.
pub(super) fn n_blocks(stacks: &[&Quantized]) -> i32 {
    let width = WARPS * 16 * if stacks.len() == 2 { 1 } else { 2 };
    (stacks[0].weight.dim(-2) + width - 1) / width
}

/// Products of rows in the order of their matrices.
pub(super) struct Call<'a> {
    /// `[.., in]`.
    pub x: &'a Array,
    /// The pair at each place, and pairs of a row of x; if absent each place has its own row.
    pub order: Option<(&'a Array, i32)>,
    pub tiles: &'a Tiles,
}

impl Call<'_> {
    /// With one matrix or stack `[.., out, in]`, or silu(x·gateᵀ) ⊙ x·upᵀ with two: an output of
    /// this shape, `out` for each place.
    pub fn launch(&self, stacks: &[&Quantized], shape: &[i32]) -> Result<Array> {
        const NAMES: [[&str; 3]; 2] = [["w0", "s0", "b0"], ["w1", "s1", "b1"]];
        let (bits, group) = (stacks[0].quantization.bits, stacks[0].quantization.group_size);
        let function = if stacks.len() == 2 { "grouped_swiglu" } else { "grouped_apart" };
        let names = NAMES[..stacks.len()].concat().join(", ");
        let of_stacks = stacks.iter().zip(NAMES).flat_map(|(stack, [w, s, b])| {
            [(w, Some(&stack.weight)), (s, Some(&stack.scales)), (b, stack.biases.as_ref())]
        });
        let (order, share) = self.order.unzip();
        let (given_order, share) = (order.map_or("nullptr", |_| "order"), share.unwrap_or(0));
        let given = [("x", Some(self.x)), ("order", order), ("tiles", Some(&self.tiles.tiles))];
        let n_dims = stacks[0].weight.n_dims();
        let kernel = Kernel {
            name: format!("offshoot_{function}_{bits}_{group}_{share}_{n_dims}"),
            source: SOURCE,
            inputs: given.into_iter().chain(of_stacks).collect(),
            outputs: vec!["y"],
            call: &|| {
                format!(
                    "offshoot::{function}<{bits}, {group}>(x, {given_order}, tiles, {names}, y, \
                     {share}, w0_shape[{}], w0_shape[{}] * {});",
                    n_dims - 2,
                    n_dims - 1,
                    32 / bits
                )
            },
            shared_bytes: shared_bytes(bits),
        };
        let made = kernel.launch(&Launch {
            outputs: &[(shape, self.x.dtype())],
            grid: [n_blocks(stacks) * WARPS * 32, self.tiles.tiles.dim(0), 1],
            group: [WARPS * 32, 1, 1],
            ints: &[],
            dtypes: &[],
        })?;
        Ok(made.into_iter().next().expect("one output was asked for"))
    }
}
