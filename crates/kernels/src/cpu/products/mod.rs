//! Rows of x times the matrix that each of them wants, sums in f32: what every product with float
//! weights comes down to on the CPU.
//!
//! A task makes some outputs of some rows of one matrix. Few rows take dot products with the matrix
//! as it lies, several of its rows at once, at the pace of the memory. Many rows are worth writing
//! the matrix out first, in panels of 16 outputs that a tile of up to 6 rows × 16 outputs of sums,
//! all in registers, runs along.
//!
//! How a sum is ordered depends on the form and on `n_in` alone, not on the other rows.

use std::marker::PhantomData;
use std::ops::Range;

use mlx::{Dtype, StridedRef};

use super::lanes::{Lanes, Stored, StoredBf16, StoredF16, StoredF32, Work, natively};
use super::{Failure, Parts, each, n_threads};

/// Up to how many rows of one matrix are few.
const FEW_ROWS: usize = 16;
/// Rows of a tile, and inputs of a panel: it fits the first level of cache.
const TILE: usize = 6;
const DEPTH: usize = 256;
/// Outputs of a task at most, and rows where they are many: panels and sums fit the second level.
const MOST_OUTPUTS: usize = 128;
const MOST_ROWS: usize = 384;
/// Products of a task at least, so that it is worth another thread's while.
const LEAST_WORK: usize = 1 << 16;

/// A row of a panel, or of sums: a line of cache.
#[derive(Clone, Copy)]
#[repr(align(64))]
struct Line([f32; 16]);

impl Line {
    #[inline(always)]
    fn halves<V: Lanes>(&self) -> [V; 2] {
        let (halves, _) = self.0.as_chunks::<8>();
        [V::load(&halves[0]), V::load(&halves[1])]
    }
}

/// The memory of floats, to be read at any element.
#[derive(Clone, Copy)]
pub(crate) struct View<'a> {
    span: &'a [u8],
    dtype: Dtype,
}

impl<'a> View<'a> {
    pub(crate) fn new(tensor: &StridedRef<'a>) -> Result<Self, Failure> {
        match tensor.dtype {
            Dtype::F32 | Dtype::Bf16 | Dtype::F16 => {
                Ok(Self { span: tensor.span(), dtype: tensor.dtype })
            }
            other => Err(format!("{other} is not converted")),
        }
    }

    fn n_elements(&self) -> usize {
        self.span.len() / self.dtype.size_bytes()
    }

    /// Every `step`th element from `at` on as f32, as many as `to` takes.
    ///
    /// # Safety
    /// They are there, and the processor has what `V` needs.
    #[inline(always)]
    unsafe fn read<V: Lanes>(&self, at: usize, step: usize, to: &mut [f32]) {
        // SAFETY: the caller's promise; the dtype says how elements are stored.
        unsafe {
            match self.dtype {
                Dtype::Bf16 => widen::<V, StoredBf16>(self.span.as_ptr().add(at * 2), step, to),
                Dtype::F16 => widen::<V, StoredF16>(self.span.as_ptr().add(at * 2), step, to),
                _ => widen::<V, StoredF32>(self.span.as_ptr().add(at * 4), step, to),
            }
        }
    }
}

/// # Safety
/// As many elements as `to` takes are there, and the processor has what `V` needs.
#[inline(always)]
unsafe fn widen<V: Lanes, E: Stored>(from: *const u8, step: usize, to: &mut [f32]) {
    let n_wide = if step == 1 { to.len() / 8 * 8 } else { 0 };
    let (wide, rest) = to.split_at_mut(n_wide);
    // SAFETY: the caller's promise.
    unsafe {
        for (i, to) in wide.as_chunks_mut::<8>().0.iter_mut().enumerate() {
            eight::<V, E>(from.add(8 * i * E::BYTES)).store(to);
        }
        for (i, to) in rest.iter_mut().enumerate() {
            *to = one::<E>(from.add((n_wide + i) * step * E::BYTES));
        }
    }
}

/// Eight elements.
///
/// # Safety
/// They are there, and the processor has what `V` needs.
#[inline(always)]
unsafe fn eight<V: Lanes, E: Stored>(from: *const u8) -> V {
    // SAFETY: the caller's promise; bytes need no alignment.
    E::widen::<V>(unsafe { &*from.cast::<E::Eight>() })
}

/// Eight f32.
///
/// # Safety
/// They are there, and the processor has what `V` needs.
#[inline(always)]
unsafe fn loaded<V: Lanes>(from: *const f32) -> V {
    // SAFETY: the caller's promise.
    V::load(unsafe { &*from.cast() })
}

/// One element.
///
/// # Safety
/// It is there.
#[inline(always)]
unsafe fn one<E: Stored>(from: *const u8) -> f32 {
    // SAFETY: the caller's promise.
    E::one(unsafe { std::slice::from_raw_parts(from, E::BYTES) })
}

/// A row of x, the matrix that it is multiplied with, and the row of the output that it makes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Row {
    /// Where the matrix begins in w, elements.
    pub matrix: usize,
    /// Where the row begins in x, elements.
    pub from: usize,
    /// Which row of the output.
    pub to: usize,
}

/// Products of rows with matrices `[n_out, n_in]`.
pub(crate) struct Products<'a> {
    pub x: View<'a>,
    /// Elements from one input of a row of x to the next.
    pub x_step: usize,
    pub w: View<'a>,
    /// Elements of w from one output to the next, and from one input to the next.
    pub w_steps: [usize; 2],
    pub n_in: usize,
    pub n_out: usize,
    /// Those of one matrix stand together.
    pub rows: Vec<Row>,
    /// `[rows, n_out]`.
    pub out: Parts<'a>,
}

/// A part of the output, of rows that share a matrix.
struct Task {
    rows: Range<usize>,
    outputs: Range<usize>,
}

impl Products<'_> {
    /// Writes all rows of the output.
    ///
    /// # Safety
    /// No two rows make the same row of the output.
    pub(crate) unsafe fn run(&self) {
        self.assert_inside();
        let tasks = self.tasks();
        each(tasks.len(), &|i| {
            // SAFETY: all reads are inside, by the assertion; the tasks are parts of the output
            // without overlap, by the caller's promise.
            unsafe {
                match self.w.dtype {
                    Dtype::Bf16 => self.run_task::<StoredBf16>(&tasks[i]),
                    Dtype::F16 => self.run_task::<StoredF16>(&tasks[i]),
                    _ => self.run_task::<StoredF32>(&tasks[i]),
                }
            }
        });
    }

    /// What all reads rely on.
    fn assert_inside(&self) {
        if self.n_in == 0 || self.n_out == 0 {
            return;
        }
        let row_end = (self.n_in - 1) * self.x_step;
        let matrix_end = (self.n_out - 1) * self.w_steps[0] + (self.n_in - 1) * self.w_steps[1];
        let (n_x, n_w) = (self.x.n_elements(), self.w.n_elements());
        for row in &self.rows {
            let inside = row.from + row_end < n_x && row.matrix + matrix_end < n_w;
            assert!(inside, "rows and matrices lie inside their tensors");
        }
    }

    /// Parts of about equal size, for all threads.
    fn tasks(&self) -> Vec<Task> {
        let mut blocks = Vec::new();
        let mut first = 0;
        for rows in self.rows.chunk_by(|a, b| a.matrix == b.matrix) {
            blocks.extend(even(first..first + rows.len(), MOST_ROWS));
            first += rows.len();
        }
        let per_block = (4 * n_threads()).div_ceil(blocks.len().max(1));
        let rows_of_block = self.rows.len().div_ceil(blocks.len().max(1));
        let least = LEAST_WORK.div_ceil((rows_of_block * self.n_in).max(1)).max(16);
        let outputs = self.n_out.div_ceil(per_block).min(MOST_OUTPUTS).max(least);
        let outputs = outputs.next_multiple_of(16);
        let bands = || (0..self.n_out).step_by(outputs);
        let tasks = blocks.iter().flat_map(|rows| {
            bands().map(|begin| Task {
                rows: rows.clone(),
                outputs: begin..self.n_out.min(begin + outputs),
            })
        });
        tasks.collect()
    }

    /// # Safety
    /// w holds `E`, the tensors are as [`Products::assert_inside`] wants them, and this part of the
    /// output belongs to this task alone.
    unsafe fn run_task<E: Stored>(&self, task: &Task) {
        if task.rows.len() <= FEW_ROWS && self.w_steps[1] == 1 {
            natively(OneTask::<E, true> { products: self, task, stored: PhantomData });
        } else {
            natively(OneTask::<E, false> { products: self, task, stored: PhantomData });
        }
    }

    /// Dot products with the rows of the matrix.
    ///
    /// # Safety
    /// That of [`Products::run_task`], inputs of w lie side by side, and the processor has what `V`
    /// needs.
    #[inline(always)]
    unsafe fn few<V: Lanes, E: Stored>(&self, task: &Task) {
        let rows = &self.rows[task.rows.clone()];
        let (n_in, n_out) = (self.n_in, task.outputs.len());
        let (mut x, mut sums) = (vec![0.0; rows.len() * n_in], vec![0.0; rows.len() * n_out]);
        // SAFETY: rows, their matrix and its outputs are inside, by the caller's promise; the rows
        // of `x` are full; of the output only this task's part is written.
        unsafe {
            for (row, x) in rows.iter().zip(x.chunks_exact_mut(n_in.max(1))) {
                self.x.read::<V>(row.from, self.x_step, x);
            }
            let first = rows[0].matrix + task.outputs.start * self.w_steps[0];
            let strips = Strips {
                x: &x,
                w: self.w.span.as_ptr().wrapping_add(first * E::BYTES),
                w_bytes: self.w_steps[0] * E::BYTES,
                n_in,
                n_out,
            };
            // Every multiple of 12 is one of all widths; 12 rows of the matrix stay in cache for
            // all rows of x.
            for begin in (0..n_out).step_by(12) {
                let outputs = begin..n_out.min(begin + 12);
                for group in even(0..rows.len(), 4) {
                    let (at, outputs) = (group.start, outputs.clone());
                    match group.len() {
                        1 => strips.run::<V, E, 1, 4>(at, outputs, &mut sums),
                        2 => strips.run::<V, E, 2, 4>(at, outputs, &mut sums),
                        3 => strips.run::<V, E, 3, 3>(at, outputs, &mut sums),
                        _ => strips.run::<V, E, 4, 3>(at, outputs, &mut sums),
                    }
                }
            }
            for (row, sums) in rows.iter().zip(sums.chunks_exact(n_out)) {
                self.out.write(row.to * self.n_out + task.outputs.start, sums);
            }
        }
    }

    /// Tiles along panels.
    ///
    /// # Safety
    /// That of [`Products::run_task`], and the processor has what `V` needs.
    #[inline(always)]
    unsafe fn many<V: Lanes, E: Stored>(&self, task: &Task) {
        let rows = &self.rows[task.rows.clone()];
        let n_panels = task.outputs.len().div_ceil(16);
        let mut panels = vec![Line([0.0; 16]); n_panels * DEPTH.min(self.n_in)];
        let mut sums = vec![Line([0.0; 16]); rows.len() * n_panels];
        let mut x = [Line([0.0; 16]); TILE * DEPTH / 16];
        for at in (0..self.n_in).step_by(DEPTH) {
            let depth = DEPTH.min(self.n_in - at);
            for (i, panel) in panels.chunks_exact_mut(depth).take(n_panels).enumerate() {
                let first = task.outputs.start + 16 * i;
                let n = (task.outputs.end - first).min(16);
                let begin = rows[0].matrix + first * self.w_steps[0] + at * self.w_steps[1];
                // SAFETY: these outputs and inputs of the matrix are inside, by the caller's
                // promise.
                unsafe {
                    let w = self.w.span.as_ptr().add(begin * E::BYTES);
                    pack::<V, E>(w, self.w_steps, n, panel);
                }
            }
            for tile in even(0..rows.len(), TILE) {
                for (i, row) in rows[tile.clone()].iter().enumerate() {
                    // SAFETY: the row is inside, by the caller's promise; every row of the tile has
                    // `DEPTH` values in `x`.
                    unsafe {
                        let to = x.as_mut_ptr().cast::<f32>().add(i * DEPTH);
                        let to = std::slice::from_raw_parts_mut(to, depth);
                        self.x.read::<V>(row.from + at * self.x_step, self.x_step, to);
                    }
                }
                for (i, panel) in panels.chunks_exact(depth).take(n_panels).enumerate() {
                    let x = x.as_ptr().cast();
                    let sums = &mut sums[tile.start * n_panels + i..];
                    // SAFETY: the processor has what `V` needs, by the caller's promise; `x` has
                    // `depth` ≤ `DEPTH` values for each row, `sums` a line for each row in steps
                    // of `n_panels`.
                    unsafe {
                        match tile.len() {
                            1 => run_tile::<V, 1>(x, panel, sums, n_panels),
                            2 => run_tile::<V, 2>(x, panel, sums, n_panels),
                            3 => run_tile::<V, 3>(x, panel, sums, n_panels),
                            4 => run_tile::<V, 4>(x, panel, sums, n_panels),
                            5 => run_tile::<V, 5>(x, panel, sums, n_panels),
                            _ => run_tile::<V, TILE>(x, panel, sums, n_panels),
                        }
                    }
                }
            }
        }
        for (row, sums) in rows.iter().zip(sums.chunks_exact(n_panels)) {
            // SAFETY: this task's part of the output, by the caller's promise.
            unsafe {
                let begin = row.to * self.n_out + task.outputs.start;
                self.out.write(begin, &flat(sums)[..task.outputs.len()]);
            }
        }
    }
}

/// A task whose maker promises what [`Products::few`] or [`Products::many`] want.
struct OneTask<'a, E, const FEW: bool> {
    products: &'a Products<'a>,
    task: &'a Task,
    stored: PhantomData<E>,
}

impl<E: Stored, const FEW: bool> Work for OneTask<'_, E, FEW> {
    type Out = ();

    #[inline(always)]
    fn run<V: Lanes>(self) {
        // SAFETY: the maker's promise; whoever runs it chose `V` for the processor.
        unsafe {
            match FEW {
                true => self.products.few::<V, E>(self.task),
                false => self.products.many::<V, E>(self.task),
            }
        }
    }
}

/// Lines as the values they hold.
#[inline(always)]
fn flat(lines: &[Line]) -> &[f32] {
    // SAFETY: a line is 16 f32 and nothing else.
    unsafe { std::slice::from_raw_parts(lines.as_ptr().cast(), 16 * lines.len()) }
}

/// Where the matrices (or rows, with one of `last` axes less) of a tensor begin, in elements, in
/// the order of `batch`, the axes before them, which the tensor's own broadcast against.
pub(crate) fn begins(tensor: &StridedRef<'_>, last: usize, batch: &[i32]) -> Vec<usize> {
    let own = tensor.shape.len() - last;
    let missing = batch.len() - own;
    let step = |axis: usize| match axis.checked_sub(missing) {
        Some(axis) if tensor.shape[axis] != 1 => tensor.strides[axis] as usize,
        _ => 0,
    };
    let mut begins = vec![0];
    for (axis, &n) in batch.iter().enumerate() {
        let inner = |begin: usize| (0..n as usize).map(move |i| begin + i * step(axis));
        begins = begins.into_iter().flat_map(inner).collect();
    }
    begins
}

/// Elements from one index of an axis to the next; 1 where there is no next.
pub(crate) fn step(tensor: &StridedRef<'_>, axis: usize) -> usize {
    if tensor.shape[axis] == 1 { 1 } else { tensor.strides[axis] as usize }
}

/// `range` in as few parts of at most `most` as can be, of about equal size.
fn even(range: Range<usize>, most: usize) -> impl Iterator<Item = Range<usize>> {
    let (n, n_parts) = (range.len(), range.len().div_ceil(most));
    (0..n_parts).map(move |i| range.start + i * n / n_parts..range.start + (i + 1) * n / n_parts)
}

/// Rows of x against the rows of a matrix.
struct Strips<'a> {
    /// `[rows, n_in]`.
    x: &'a [f32],
    w: *const u8,
    /// From one row of the matrix to the next.
    w_bytes: usize,
    n_in: usize,
    n_out: usize,
}

impl Strips<'_> {
    /// Sums of M rows of x from `row` on with `outputs`, N at once, into `sums` `[rows, n_out]`.
    ///
    /// # Safety
    /// These rows of the matrix hold `n_in` elements of `E`, and the processor has what `V` needs.
    #[inline(always)]
    unsafe fn run<V: Lanes, E: Stored, const M: usize, const N: usize>(
        &self,
        row: usize,
        outputs: Range<usize>,
        sums: &mut [f32],
    ) {
        let x = &self.x[row * self.n_in..(row + M) * self.n_in];
        let (n_in, w_bytes) = (self.n_in, self.w_bytes);
        let w = |output: usize| self.w.wrapping_add(output * w_bytes);
        let mut at = outputs.start;
        // SAFETY: the caller's promise; `x` holds M rows.
        unsafe {
            while at + N <= outputs.end {
                let dots = Dots::<E, M, N> { x, w: w(at), w_bytes, n_in, stored: PhantomData };
                for (i, found) in V::apart(dots).iter().enumerate() {
                    sums[(row + i) * self.n_out + at..][..N].copy_from_slice(found);
                }
                at += N;
            }
            for at in at..outputs.end {
                let dots = Dots::<E, M, 1> { x, w: w(at), w_bytes, n_in, stored: PhantomData };
                for (i, [found]) in V::apart(dots).into_iter().enumerate() {
                    sums[(row + i) * self.n_out + at] = found;
                }
            }
        }
    }
}

/// M rows of x times N rows of a matrix, which hold `n_in` elements of `E`: its maker promises it.
struct Dots<'a, E, const M: usize, const N: usize> {
    /// `[M, n_in]`.
    x: &'a [f32],
    /// The first of the matrix's rows.
    w: *const u8,
    /// From one row of the matrix to the next.
    w_bytes: usize,
    n_in: usize,
    stored: PhantomData<E>,
}

impl<E: Stored, const M: usize, const N: usize> Work for Dots<'_, E, M, N> {
    type Out = [[f32; N]; M];

    #[inline(always)]
    fn run<V: Lanes>(self) -> [[f32; N]; M] {
        let (n_in, whole) = (self.n_in, self.n_in / 8 * 8);
        assert_eq!(self.x.len(), M * n_in, "M rows");
        let (x, w) = (self.x.as_ptr(), self.w);
        let mut sums = [[0.0; N]; M];
        // SAFETY: the maker's promise; eight inputs are left below `whole`.
        unsafe {
            let mut lanes = [[V::splat(0.0); N]; M];
            let mut k = 0;
            while k < whole {
                let mut rows = [V::splat(0.0); N];
                for (j, row) in rows.iter_mut().enumerate() {
                    *row = eight::<V, E>(w.add(j * self.w_bytes + k * E::BYTES));
                }
                for (i, lanes) in lanes.iter_mut().enumerate() {
                    let x = loaded::<V>(x.add(i * n_in + k));
                    for (lanes, row) in lanes.iter_mut().zip(rows) {
                        *lanes = x.madd(row, *lanes);
                    }
                }
                k += 8;
            }
            for (i, (sums, lanes)) in sums.iter_mut().zip(lanes).enumerate() {
                for (j, (sum, lanes)) in sums.iter_mut().zip(lanes).enumerate() {
                    *sum = lanes.sum();
                    for k in whole..n_in {
                        let w = one::<E>(w.add(j * self.w_bytes + k * E::BYTES));
                        *sum += *x.add(i * n_in + k) * w;
                    }
                }
            }
        }
        sums
    }
}

/// Writes `n` outputs of the matrix at `w` out as a panel: line k holds input k of 16 outputs, of
/// which those from `n` on mean nothing.
///
/// # Safety
/// `n` in 1..=16 outputs have as many inputs as the panel has lines, and the processor has what `V`
/// needs.
#[inline(always)]
unsafe fn pack<V: Lanes, E: Stored>(w: *const u8, steps: [usize; 2], n: usize, panel: &mut [Line]) {
    let steps = steps.map(|step| step * E::BYTES);
    let depth = panel.len();
    // SAFETY: only the first `n` outputs are read, each below `depth`; a line has 16 places.
    unsafe {
        let mut done = 0;
        if steps[1] == E::BYTES {
            done = depth / 8 * 8;
            for half in [0, 8] {
                let mut rows = [w; 8];
                for (i, row) in rows.iter_mut().enumerate() {
                    *row = w.add((half + i).min(n - 1) * steps[0]);
                }
                for k in (0..done).step_by(8) {
                    let mut block = [V::splat(0.0); 8];
                    for i in 0..8 {
                        block[i] = eight::<V, E>(rows[i].add(k * E::BYTES));
                    }
                    let block = V::transpose(block);
                    for i in 0..8 {
                        let (halves, _) = panel[k + i].0.as_chunks_mut::<8>();
                        block[i].store(&mut halves[half / 8]);
                    }
                }
            }
        } else if steps[0] == E::BYTES && n == 16 {
            done = depth;
            for (k, line) in panel.iter_mut().enumerate() {
                let row = w.add(k * steps[1]);
                let (halves, _) = line.0.as_chunks_mut::<8>();
                eight::<V, E>(row).store(&mut halves[0]);
                eight::<V, E>(row.add(8 * E::BYTES)).store(&mut halves[1]);
            }
        }
        for (k, line) in panel.iter_mut().enumerate().skip(done) {
            for (i, to) in line.0.iter_mut().enumerate().take(n) {
                *to = one::<E>(w.add(i * steps[0] + k * steps[1]));
            }
        }
    }
}

/// Adds the products of M rows at `x`, `DEPTH` values apart, with the 16 outputs of `panel` to
/// `sums`, whose rows are `step` lines apart.
///
/// # Safety
/// Every row of `x` has as many values as the panel has lines, `sums` holds M rows, and the
/// processor has what `V` needs.
#[inline(always)]
unsafe fn run_tile<V: Lanes, const M: usize>(
    x: *const f32,
    panel: &[Line],
    sums: &mut [Line],
    step: usize,
) {
    // SAFETY: the caller's promise; a line has 16 values.
    unsafe {
        let mut lanes = [[V::splat(0.0); 2]; M];
        for (i, lanes) in lanes.iter_mut().enumerate() {
            *lanes = sums.get_unchecked(i * step).halves();
        }
        for (k, line) in panel.iter().enumerate() {
            let w = line.halves::<V>();
            for (i, lanes) in lanes.iter_mut().enumerate() {
                let x = V::splat(*x.add(i * DEPTH + k));
                *lanes = [x.madd(w[0], lanes[0]), x.madd(w[1], lanes[1])];
            }
        }
        for (i, lanes) in lanes.into_iter().enumerate() {
            let (halves, _) = sums.get_unchecked_mut(i * step).0.as_chunks_mut::<8>();
            lanes[0].store(&mut halves[0]);
            lanes[1].store(&mut halves[1]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::lanes::Plain;

    /// Both forms of the same products as sums in f64.
    struct Check;

    impl Work for Check {
        type Out = ();

        #[inline(always)]
        fn run<V: Lanes>(self) {
            check::<V>();
        }
    }

    #[inline(always)]
    fn check<V: Lanes>() {
        for (n_rows, n_in, n_out, transposed) in
            [(1, 19, 37, false), (7, 300, 29, false), (67, 523, 50, false), (13, 21, 35, true)]
        {
            let value = |i: usize| ((i * 7919 + 13) % 1009) as f32 / 1009.0 - 0.5;
            let x = (0..n_rows * n_in).map(value).collect::<Vec<_>>();
            let w = (0..n_out * n_in).map(|i| value(3 * i + 1)).collect::<Vec<_>>();
            let w_steps = if transposed { [1, n_out] } else { [n_in, 1] };
            let mut out = vec![f32::NAN; n_rows * n_out];
            let bytes =
                |values: &[f32]| values.iter().flat_map(|v| v.to_ne_bytes()).collect::<Vec<_>>();
            let (x_bytes, w_bytes) = (bytes(&x), bytes(&w));
            let products = Products {
                x: View { span: &x_bytes, dtype: Dtype::F32 },
                x_step: 1,
                w: View { span: &w_bytes, dtype: Dtype::F32 },
                w_steps,
                n_in,
                n_out,
                // From the last row to the first.
                rows: (0..n_rows)
                    .map(|i| Row { matrix: 0, from: (n_rows - 1 - i) * n_in, to: i })
                    .collect(),
                out: Parts::of(&mut out),
            };
            products.assert_inside();
            for task in products.tasks() {
                // SAFETY: everything is inside; tasks run one by one; the caller asked for the
                // instructions.
                unsafe {
                    match n_rows <= 7 {
                        true => products.few::<V, StoredF32>(&task),
                        false => products.many::<V, StoredF32>(&task),
                    }
                }
            }
            drop(products);
            for (i, o) in (0..n_rows).flat_map(|i| (0..n_out).map(move |o| (i, o))) {
                let term = |k: usize| {
                    let w = w[o * w_steps[0] + k * w_steps[1]];
                    f64::from(x[(n_rows - 1 - i) * n_in + k]) * f64::from(w)
                };
                let wanted = (0..n_in).map(term).sum::<f64>();
                let found = f64::from(out[i * n_out + o]);
                assert!(
                    (found - wanted).abs() < 1e-5 * wanted.abs().max(1.0),
                    "{n_rows}, {i}, {o}: {found} {wanted}"
                );
            }
        }
    }

    #[test]
    fn every_processors_form_is_the_sum() {
        check::<Plain<false>>();
        check::<Plain<true>>();
        natively(Check);
    }

    #[test]
    fn parts_are_even_and_cover_all() {
        let parts = |n: usize, most| even(5..5 + n, most).map(|r| r.len()).collect::<Vec<_>>();
        assert_eq!(parts(0, 6), [0; 0]);
        assert_eq!(parts(6, 6), [6]);
        assert_eq!(parts(8, 6), [4, 4]);
        assert_eq!(parts(13, 6), [4, 4, 5]);
        assert_eq!(even(5..18, 6).last(), Some(13..18));
    }
}
