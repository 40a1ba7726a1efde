//! Rows of many arrays between a CUDA device and pinned memory of the host, in one launch.
//!
//! The arrays are read, or written in place, behind MLX's back: nothing may change what is read, or
//! use what is written, before the result is evaluated. Arrays of one call may differ in everything
//! but their number of rows. The twin is [`Array::to_bytes`] of the rows.

use mlx::{Array, Dtype, Launch, PinnedMemory, Result};

use crate::cuda::Kernel;
use crate::input::refused;

const OP: &str = "swap";
/// Bytes that a thread moves at once: rows and places are multiples of them.
pub const ALIGN_BYTES: usize = 16;
/// Thread blocks of a launch and their threads: enough to fill the link, and so few that they stay
/// on some of the multiprocessors. Others' kernels may need a whole one, and would wait.
const MAX_BLOCKS: usize = 16;
const THREADS: i32 = 512;
/// Vectors of an array that a launch counts.
const MAX_VECTORS: usize = (u32::MAX / 2) as usize;

/// Which way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// From the device to the host.
    Out,
    /// From the host to the device.
    In,
}

/// What goes where.
#[derive(Clone, Copy, Debug)]
pub struct Swap<'a> {
    /// The device's side, evaluated and row-contiguous: `[N, ..]` each.
    pub arrays: &'a [&'a Array],
    /// Rows of the arrays' first axis; no two alike on the way in.
    pub rows: &'a [u32],
    /// For each row where its bytes begin in the host's memory, one array's after the other's.
    pub places: &'a [usize],
    /// What must be computed before.
    pub after: &'a Array,
}

/// Adds the launch to the graph. Evaluating the result moves the bytes.
///
/// # Errors
/// Rows are none of the arrays', places lie outside the memory, sizes are no multiples of
/// [`ALIGN_BYTES`], or the memory cannot be pinned.
pub fn swap(way: Way, memory: &PinnedMemory, swap: &Swap<'_>) -> Result<Array> {
    let sizes = check(memory, swap)?;
    let end = swap.places.iter().max().map_or(0, |place| place + sizes.iter().sum::<usize>());
    memory.wait_for(end)?;
    let (n_arrays, n) = (swap.arrays.len(), swap.rows.len());
    let vectors = |bytes: usize| (bytes / ALIGN_BYTES) as i64;
    let plan = sizes.iter().map(|bytes| vectors(*bytes));
    let plan = plan.chain(swap.rows.iter().map(|row| i64::from(*row)));
    let plan = plan.chain(swap.places.iter().map(|place| vectors(*place))).collect::<Vec<_>>();
    let plan = Array::staged(&plan, &[plan.len() as i32])?;
    let names = (0..n_arrays).map(|i| format!("a{i}_")).collect::<Vec<_>>();
    let host = memory.array()?;
    let named = names.iter().map(String::as_str).zip(swap.arrays.iter().copied());
    let inputs = named.chain([("host", &host), ("plan", &plan), ("after", swap.after)]);
    let call = || {
        let pointers = names.iter().map(|name| format!("(uint4*){name}"));
        let pointers = pointers.collect::<Vec<_>>().join(", ");
        format!(
            "uint4* const arrays[] = {{{pointers}}};\n\
             const int n = (plan_shape[0] - {n_arrays}) / 2;\n\
             offshoot::swap_rows<{}>(arrays, {n_arrays}, host, plan, n, done);",
            way == Way::Out
        )
    };
    let kernel = Kernel {
        name: format!("offshoot_swap_{way:?}_{n_arrays}").to_lowercase(),
        source: include_str!("swap.cu"),
        inputs: inputs.map(|(name, array)| (name, Some(array))).collect(),
        outputs: vec!["done"],
        call: &call,
        shared_bytes: 0,
    };
    let most = sizes.iter().max().map_or(0, |bytes| bytes / ALIGN_BYTES * n);
    let n_blocks = most.div_ceil(THREADS as usize).min(MAX_BLOCKS) as i32;
    let made = kernel.launch(&Launch {
        outputs: &[(&[1], Dtype::U32)],
        grid: [n_blocks * THREADS, 1, 1],
        group: [THREADS, 1, 1],
        ints: &[],
        dtypes: &[],
    })?;
    Ok(made.into_iter().next().expect("one output was asked for"))
}

/// Bytes of a row of each array.
fn check(memory: &PinnedMemory, swap: &Swap<'_>) -> Result<Vec<usize>> {
    let refuse = |text: String| Err(refused(OP, &[], text));
    if swap.arrays.is_empty() || swap.rows.is_empty() {
        return refuse("there is nothing to move".to_owned());
    }
    if swap.rows.len() != swap.places.len() {
        return refuse(format!("{} rows for {} places", swap.rows.len(), swap.places.len()));
    }
    let mut sizes = Vec::with_capacity(swap.arrays.len());
    for array in swap.arrays {
        let n_rows = array.shape().first().copied().unwrap_or(0) as usize;
        if let Some(row) = swap.rows.iter().find(|row| **row as usize >= n_rows) {
            return refuse(format!("row {row} is none of {n_rows}"));
        }
        let bytes = array.n_bytes() / n_rows;
        if !bytes.is_multiple_of(ALIGN_BYTES) || bytes / ALIGN_BYTES * swap.rows.len() > MAX_VECTORS
        {
            return refuse(format!("rows of {bytes} bytes cannot be moved"));
        }
        sizes.push(bytes);
    }
    let all = sizes.iter().sum::<usize>();
    let is_off =
        |place: &&usize| !place.is_multiple_of(ALIGN_BYTES) || **place + all > memory.n_bytes();
    match swap.places.iter().find(is_off) {
        Some(place) => refuse(format!("nothing can lie at byte {place}")),
        None => Ok(sizes),
    }
}
