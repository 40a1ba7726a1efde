//! Quantized products on the CPU. A task makes a band of outputs for all rows that want the same
//! matrix, so that a row of codes is read once, unpacked once and used for all of them.

use std::cell::RefCell;
use std::ops::Range;

use mlx::{Array, CpuKernel, Quantization, Quantized, Result, TensorMut, TensorRef};

use super::activations::{Activations, BLOCK};
use super::coded::{Coded, Scalings};
use super::tile::{self, Kind, Source, TOKENS, Table, Weights};
use super::unpack::unpack;
use super::{Join, exact};
use crate::activation::join_swiglu;
use crate::cpu::{Failure, Floats, Parts, each, n_threads};

/// Most outputs of a task.
const BAND: usize = 64;
/// Bytes of codes that a task of one row should have at least: a stream that is read from its begin
/// has not been asked for ahead.
const TASK_BYTES: usize = 32 << 10;
/// Up to so many rows codes are taken apart for each anew rather than once for all.
const STORED_TO_ROWS: usize = 1;

/// What one node computes.
pub(super) struct Call<'a> {
    pub x: &'a Array,
    /// Absent: every row of x wants the one matrix.
    pub which: Option<&'a Array>,
    /// Added to the one output, whose shape it has.
    pub onto: Option<&'a Array>,
    pub matrices: &'a [&'a Quantized],
    pub join: Join,
    pub exact: bool,
}

impl Call<'_> {
    /// Adds the node; one output for each matrix, or one for two that are joined.
    pub fn run(&self) -> Result<Vec<Array>> {
        let x = self.x;
        let leading = match self.which {
            Some(which) => [which.shape(), &[1]].concat(),
            None => x.shape()[..x.n_dims() - 1].to_vec(),
        };
        let shape = |w: &Quantized| {
            let mut shape = leading.clone();
            shape.push(w.weight.dim(-2));
            shape
        };
        let shapes = self.matrices.iter().step_by(self.join.n_matrices()).map(|w| shape(w));
        let shapes = shapes.collect::<Vec<_>>();
        let outputs = shapes.iter().map(|shape| (&shape[..], x.dtype())).collect::<Vec<_>>();
        let mut inputs = vec![x];
        inputs.extend(self.which.into_iter().chain(self.onto));
        let mut forms = Vec::new();
        for w in self.matrices {
            inputs.extend([&w.weight, &w.scales]);
            inputs.extend(&w.biases);
            forms.push((w.quantization, 2 + usize::from(w.biases.is_some())));
        }
        let how = How {
            has_which: self.which.is_some(),
            has_onto: self.onto.is_some(),
            forms,
            join: self.join,
            exact: self.exact,
        };
        CpuKernel::call(&inputs, &outputs, move |ins, outs| {
            Work::new(ins, &how, outs)?.run();
            Ok(())
        })
    }
}

/// What the closure of a node keeps of its call.
struct How {
    has_which: bool,
    has_onto: bool,
    /// Of each matrix, and how many inputs it is.
    forms: Vec<(Quantization, usize)>,
    join: Join,
    exact: bool,
}

/// A row of x and the row of the output that it belongs to.
#[derive(Clone, Copy)]
struct Slot {
    x: usize,
    out: usize,
}

/// The rows that want one matrix.
struct Group {
    matrix: usize,
    slots: Range<usize>,
}

struct Work<'a> {
    matrices: Vec<Coded<'a>>,
    join: Join,
    /// Rows of x for the exact form.
    ordered: Vec<f32>,
    /// x once for every unit that the matrices have; empty in the exact form.
    rounded: Vec<Activations>,
    slots: Vec<Slot>,
    groups: Vec<Group>,
    onto: Option<Floats<'a>>,
    outs: Vec<Parts<'a>>,
}

/// Memory of a thread, kept from task to task.
#[derive(Default)]
struct Room {
    codes: Vec<u8>,
    floats: Vec<f32>,
    scalings: Scalings,
    tables: [Vec<f32>; 2],
}

thread_local! {
    static ROOM: RefCell<Room> = RefCell::default();
}

/// At least `n` elements.
fn at_least<T: Clone + Default>(room: &mut Vec<T>, n: usize) -> &mut [T] {
    if room.len() < n {
        room.resize(n, T::default());
    }
    &mut room[..n]
}

impl<'a> Work<'a> {
    fn new(
        ins: &[TensorRef<'a>],
        how: &How,
        outs: &'a mut [TensorMut<'_>],
    ) -> std::result::Result<Self, Failure> {
        let n_before = 1 + usize::from(how.has_which);
        let onto = if how.has_onto { Some(Floats::new(&ins[n_before])?) } else { None };
        let mut rest = &ins[n_before + usize::from(how.has_onto)..];
        let mut matrices = Vec::new();
        for (quantization, n) in &how.forms {
            let (these, others) = rest.split_at(*n);
            matrices.push(Coded::new(these, *quantization)?);
            rest = others;
        }
        let width = matrices[0].n_in;
        let mut x = vec![0.0; ins[0].shape.iter().map(|n| *n as usize).product()];
        Floats::new(&ins[0])?.read(0, &mut x);
        let (slots, groups) = if how.has_which {
            by_matrix(&ins[0], &ins[1], matrices[0].n_matrices)?
        } else {
            let slots = (0..x.len() / width).map(|i| Slot { x: i, out: i }).collect::<Vec<_>>();
            let groups = vec![Group { matrix: 0, slots: 0..slots.len() }];
            (slots, groups)
        };
        let is_exact = |coded: &Coded<'_>| how.exact || !coded.is_integer();
        let ordered =
            if matrices.iter().any(is_exact) { exact::ordered(&x, width) } else { Vec::new() };
        let mut rounded = Vec::<Activations>::new();
        for coded in matrices.iter().filter(|coded| !is_exact(coded)) {
            if !rounded.iter().any(|r| r.unit() == coded.unit()) {
                rounded.push(Activations::new(&x, width, coded.unit()));
            }
        }
        let outs = outs.iter_mut().map(Parts::new).collect::<std::result::Result<Vec<_>, _>>()?;
        Ok(Self { matrices, join: how.join, ordered, rounded, slots, groups, onto, outs })
    }

    fn run(&self) {
        let joined = self.join.n_matrices();
        let mut tasks = Vec::new();
        for output in 0..self.outs.len() {
            let n_out = self.matrices[output * joined].n_out;
            for group in &self.groups {
                let band = self.band(output, group);
                let firsts = (0..n_out).step_by(band);
                tasks.extend(firsts.map(|first| (output, group, first..n_out.min(first + band))));
            }
        }
        each(tasks.len(), &|i| {
            let (output, group, band) = &tasks[i];
            ROOM.with_borrow_mut(|room| self.task(*output, group, band.clone(), room));
        });
    }

    /// Outputs of a task: some for each thread.
    fn band(&self, output: usize, group: &Group) -> usize {
        let coded = &self.matrices[output * self.join.n_matrices()];
        let row_bytes = coded.n_in * coded.bits() / 8;
        let least = if group.slots.len() == 1 { TASK_BYTES.div_ceil(row_bytes) } else { 16 };
        let shared = coded.n_out / (4 * n_threads());
        least.max(shared).min(coded.n_out / n_threads()).next_multiple_of(4).clamp(4, BAND)
    }

    /// Outputs `band` of the rows of a group.
    fn task(&self, output: usize, group: &Group, band: Range<usize>, room: &mut Room) {
        let matrices = &self.matrices[output * self.join.n_matrices()..];
        let n_out = matrices[0].n_out;
        let (first, n) = (band.start, band.len());
        let slots = &self.slots[group.slots.clone()];
        let mut tables = std::mem::take(&mut room.tables);
        for (coded, table) in matrices.iter().zip(&mut tables).take(self.join.n_matrices()) {
            let values = at_least(table, slots.len() * n);
            let rows = group.matrix * n_out + first..group.matrix * n_out + first + n;
            match self.rounded.iter().find(|r| r.unit() == coded.unit() && coded.is_integer()) {
                Some(x) => integer_band(coded, rows, x, slots, room, values),
                None => self.exact_band(coded, rows, slots, room, values),
            }
        }
        let [first_values, second_values] = &mut tables;
        let values = match self.join {
            Join::Apart => first_values,
            Join::Swiglu => {
                let n_values = slots.len() * n;
                join_swiglu(&first_values[..n_values], &mut second_values[..n_values]);
                second_values
            }
        };
        let added = at_least(&mut room.floats, n);
        for (slot, values) in slots.iter().zip(values.chunks_mut(n)) {
            if let Some(onto) = &self.onto {
                onto.read(slot.out * n_out + first, added);
                values.iter_mut().zip(&*added).for_each(|(value, added)| *value += added);
            }
            // SAFETY: this band of this row of this output belongs to one task alone.
            unsafe { self.outs[output].write(slot.out * n_out + first, values) };
        }
        room.tables = tables;
    }

    fn exact_band(
        &self,
        coded: &Coded<'_>,
        rows: Range<usize>,
        slots: &[Slot],
        room: &mut Room,
        values: &mut [f32],
    ) {
        let (padded, stride) = (coded.n_in.next_multiple_of(BLOCK), rows.len());
        let x = slots.iter().map(|slot| &self.ordered[slot.x * padded..][..padded]);
        let x = x.collect::<Vec<_>>();
        room.scalings.read(coded, rows.start, rows.len());
        let (codes, w) = (at_least(&mut room.codes, padded), at_least(&mut room.floats, padded));
        for (r, row) in rows.enumerate() {
            unpack(coded, coded.packed(row), codes);
            coded.floats(codes, &room.scalings, r, w);
            exact::products(w, &x, &mut Table { values: &mut values[r..], stride });
        }
    }
}

/// The products of a band of rows with the slots' rows: `values[slot · n + row]`.
fn integer_band(
    coded: &Coded<'_>,
    rows: Range<usize>,
    x: &Activations,
    slots: &[Slot],
    room: &mut Room,
    values: &mut [f32],
) {
    let n = rows.len();
    if let ([slot], Some(stored)) = (slots, coded.stored(rows.start, n))
        && stored.products(&x.row(slot.x), values)
    {
        return;
    }
    let as_stored = coded.n_in.is_multiple_of(BLOCK) && slots.len() <= STORED_TO_ROWS;
    let source = match coded.bits() {
        4 if as_stored => Source::Nibbles(coded.table()),
        8 if as_stored => Source::Bytes,
        _ => Source::Unpacked,
    };
    let kind = Kind { signed: coded.is_signed(), source, lanes: coded.has_lanes() };
    let unpacks = source == Source::Unpacked;
    let n_bytes = x.n_blocks * BLOCK;
    let unpacked = at_least(&mut room.codes, if unpacks { n * n_bytes } else { 0 });
    room.scalings.read(coded, rows.start, n);
    // Codes are asked for on the way; scales come too seldom for that.
    coded.prefetch_scalings(rows.start + n * n_threads(), n);
    if unpacks {
        for (i, row) in rows.clone().enumerate() {
            unpack(coded, coded.packed(row), &mut unpacked[i * n_bytes..][..n_bytes]);
        }
    }
    let weights = Weights {
        codes: if unpacks { unpacked } else { coded.packed_rows(rows.start, n) },
        n_bytes: if unpacks { n_bytes } else { coded.n_in * coded.bits() / 8 },
        scalings: &room.scalings,
        n,
    };
    for (t, slots) in slots.chunks(TOKENS).enumerate() {
        let mut tokens = [x.row(slots[0].x); TOKENS];
        for (token, slot) in tokens.iter_mut().zip(slots) {
            *token = x.row(slot.x);
        }
        let values = &mut values[t * TOKENS * n..];
        let to = &mut Table { values, stride: n };
        tile::products(&weights, &tokens[..slots.len()], kind, to);
    }
}

/// Pairs of rows and matrices, by matrix. x `[.., 1, in]` broadcasts against `which`.
fn by_matrix(
    x: &TensorRef<'_>,
    which: &TensorRef<'_>,
    n_matrices: usize,
) -> std::result::Result<(Vec<Slot>, Vec<Group>), Failure> {
    let wanted = which.as_slice::<u32>()?;
    if let Some(wrong) = wanted.iter().find(|i| **i as usize >= n_matrices) {
        return Err(format!("matrix {wrong} is none of {n_matrices}"));
    }
    let axes = &x.shape[..x.shape.len() - 2];
    let row_of = |pair: usize| {
        let (mut rest, mut row, mut stride) = (pair, 0, 1);
        let sizes = axes.iter().rev().map(|n| *n as usize).chain(std::iter::repeat(1));
        for (n_which, n_x) in which.shape.iter().rev().zip(sizes) {
            let n_which = *n_which as usize;
            if n_x > 1 {
                row += rest % n_which * stride;
            }
            stride *= n_x;
            rest /= n_which;
        }
        row
    };
    let mut pairs = (0..wanted.len()).collect::<Vec<_>>();
    pairs.sort_by_key(|pair| wanted[*pair]);
    let slots = pairs.iter().map(|pair| Slot { x: row_of(*pair), out: *pair }).collect();
    let mut groups = Vec::<Group>::new();
    let mut begin = 0;
    for pairs in pairs.chunk_by(|a, b| wanted[*a] == wanted[*b]) {
        let slots = begin..begin + pairs.len();
        begin = slots.end;
        groups.push(Group { matrix: wanted[pairs[0]] as usize, slots });
    }
    Ok((slots, groups))
}
