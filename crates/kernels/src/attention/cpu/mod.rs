//! Attention on the CPU as one node of the graph, over keys and values as they lie.
//!
//! The queries of all heads that share a head of keys are worked on together, so that keys and
//! values are read once for all of them. Logits of a tile of keys become weights at once, with the
//! largest logit so far taken off; what was summed before is scaled when a larger one comes. Keys
//! that are parted between tasks give partial results, which are merged in the end.

mod few;
mod many;
mod place;
mod plan;
mod softmax;

use std::sync::OnceLock;

use mlx::{Array, CpuKernel, Dtype, Result, StridedRef, TensorMut};

use self::place::{Place, Tensor, check_row, read_scaled, seen, seen_by_all};
use self::plan::{FEW, Plan, Unit, tiles};
use self::softmax::Softmax;
use super::{Attention, Kv, Positions, Sizes};
use crate::cpu::lanes::{Lanes, Plain, Stored, StoredBf16, StoredF16, StoredF32, Wide};
use crate::cpu::{Failure, Parts, each, for_processor, n_threads, numbers};

/// Keys of a tile.
const TILE: usize = 64;

/// Which inputs there are beside q, keys and values, in this order.
#[derive(Clone, Copy)]
pub(crate) struct Given {
    pub(crate) table: bool,
    pub(crate) positions: bool,
    pub(crate) lengths: bool,
    pub(crate) sinks: bool,
}

/// What the closure of a node keeps of its call.
#[derive(Clone, Copy)]
pub(crate) struct Call {
    pub(crate) sizes: Sizes,
    pub(crate) scale: f32,
    pub(crate) window: Option<usize>,
    pub(crate) first_key: i32,
    /// Of all rows, unless there is one for each.
    pub(crate) position: i32,
    pub(crate) given: Given,
}

impl Call {
    /// Attention of q, keys, values and what else is given, into one output.
    pub(crate) fn run(
        &self,
        ins: &[StridedRef<'_>],
        outs: &mut [TensorMut<'_>],
    ) -> std::result::Result<(), Failure> {
        Task::new(self, ins, outs)?.run(n_threads(), unit_as_fast_as_possible);
        Ok(())
    }
}

/// Attention as one node.
pub(super) fn run(a: &Attention<'_>, sizes: Sizes) -> Result<Array> {
    node(a, sizes, |task| task.run(n_threads(), unit_as_fast_as_possible))
}

fn node(
    a: &Attention<'_>,
    sizes: Sizes,
    run: impl Fn(&Task<'_>) + Send + Sync + 'static,
) -> Result<Array> {
    let (keys, values) = a.kv.both();
    let mut inputs = vec![a.q, keys, values];
    let table = match a.kv {
        Kv::Rows { .. } => None,
        Kv::Blocks { table, .. } => Some(table),
    };
    let (position, positions, lengths) = match a.positions {
        Positions::Same(position) => (position, None, None),
        Positions::Rows { positions, lengths } => (0, Some(positions), lengths),
    };
    let sinks = a.sinks.map(|sinks| sinks.astype(Dtype::F32)).transpose()?;
    inputs.extend([table, positions, lengths, sinks.as_ref()].into_iter().flatten());
    let given = Given {
        table: table.is_some(),
        positions: positions.is_some(),
        lengths: lengths.is_some(),
        sinks: sinks.is_some(),
    };
    let window = a.window.map(|window| window as usize);
    let first_key = a.kv.first_key();
    let call = Call { sizes, scale: a.scale, window, first_key, position, given };
    let shape = sizes.out();
    let mut made = CpuKernel::call_strided(&inputs, &[(&shape, a.q.dtype())], move |ins, outs| {
        run(&Task::new(&call, ins, outs)?);
        Ok(())
    })?;
    Ok(made.remove(0))
}

/// Where the tasks of one call find and leave things.
struct Task<'a> {
    call: &'a Call,
    q: Tensor<'a>,
    keys: Tensor<'a>,
    values: Tensor<'a>,
    place: Place,
    /// Position of each row's first query, and how many queries it has.
    rows: Vec<(usize, usize)>,
    sinks: Option<Vec<f32>>,
    out: Parts<'a>,
}

/// What some keys make of the queries of a unit.
struct Partial {
    /// Scaled queries `[n, D]`.
    q: Vec<f32>,
    softmax: Vec<Softmax>,
    /// Weighted sums `[n, width]`.
    out: Vec<f32>,
    /// Dv and what fills the last panel.
    width: usize,
}

impl<'a> Task<'a> {
    fn new(
        call: &'a Call,
        ins: &[StridedRef<'a>],
        outs: &'a mut [TensorMut<'_>],
    ) -> std::result::Result<Self, Failure> {
        let (Call { sizes, given, .. }, mut rest) = (call, ins[3..].iter());
        let mut next = |is_given: bool| if is_given { rest.next() } else { None };
        let table = next(given.table);
        let place = match table {
            None => Place::Rows { first_key: call.first_key as usize },
            Some(table) => Place::Blocks {
                table: numbers(table, u32::from_le_bytes),
                max: table.shape[1] as usize,
                block: ins[1].shape[2] as usize,
            },
        };
        let positions = next(given.positions).map(|list| numbers(list, i32::from_le_bytes));
        let lengths = next(given.lengths).map(|list| numbers(list, i32::from_le_bytes));
        let sinks = next(given.sinks).map(|list| numbers(list, f32::from_le_bytes));
        let mut rows = Vec::new();
        for row in 0..sizes.rows as usize {
            let position = positions.as_ref().map_or(call.position, |list| list[row]);
            let n = lengths.as_ref().map_or(sizes.queries, |l| l[row].clamp(0, sizes.queries));
            if n > 0 {
                check_row(sizes, call.first_key, row, position, n)?;
            }
            let (position, n) = (position.max(0) as usize, n as usize);
            let tokens = seen_by_all(position, n, call.window, call.first_key as usize);
            place.check(row, tokens, ins[1].shape[0] as usize)?;
            rows.push((position, n));
        }
        let [out] = outs else {
            return Err("one output was asked for".to_owned());
        };
        Ok(Self {
            call,
            q: Tensor::new(&ins[0])?,
            keys: Tensor::new(&ins[1])?,
            values: Tensor::new(&ins[2])?,
            place,
            rows,
            sinks,
            out: Parts::new(out)?,
        })
    }

    fn share(&self) -> usize {
        self.call.sizes.share() as usize
    }

    fn dim(&self) -> usize {
        self.call.sizes.dim as usize
    }

    fn value_dim(&self) -> usize {
        self.call.sizes.value_dim as usize
    }

    /// All queries, with all the keys that they see.
    fn units(&self) -> Vec<Unit> {
        let (kv_heads, share) = (self.call.sizes.kv_heads as usize, self.share());
        let mut units = Vec::new();
        for (row, &(_, n)) in self.rows.iter().enumerate() {
            for head in 0..kv_heads {
                for rows in tiles(n * share, self.dim(), self.value_dim()) {
                    let mut unit = Unit { row, head, rows, keys: 0..0 };
                    let last = self.seen(&unit, unit.rows.len() - 1);
                    unit.keys = self.seen(&unit, 0).start..last.end;
                    units.push(unit);
                }
            }
        }
        // Those with the most work first, so that none of them is the last to end.
        units.sort_by_key(|unit| std::cmp::Reverse(unit.keys.len() * unit.rows.len()));
        units
    }

    fn run(&self, n_threads: usize, work: fn(&Task<'_>, &Unit, &mut Partial)) {
        let plan = Plan::new(self.units(), n_threads);
        let is_parted = plan.units.len() > plan.parts.len();
        let made = plan.units.iter().map(|_| OnceLock::new()).collect::<Vec<_>>();
        each(plan.units.len(), &|i| {
            let unit = &plan.units[i];
            let mut partial = Partial::new(self, unit);
            work(self, unit, &mut partial);
            if is_parted {
                // Each index is visited once, so nothing is set yet.
                let _ = made[i].set(partial);
            } else {
                self.finish(unit, partial);
            }
        });
        if is_parted {
            let mut made = made.into_iter().map(OnceLock::into_inner);
            for part in &plan.parts {
                let mut of_part = made.by_ref().take(part.len()).flatten();
                if let Some(mut first) = of_part.next() {
                    of_part.for_each(|other| first.merge(&other));
                    self.finish(&plan.units[part.start], first);
                }
            }
        }
    }

    /// The keys that the r-th query of a unit sees.
    #[inline(always)]
    fn seen(&self, unit: &Unit, r: usize) -> std::ops::Range<usize> {
        let position = self.rows[unit.row].0 + (unit.rows.start + r) / self.share();
        seen(position, self.call.window, self.call.first_key as usize)
    }

    #[inline(always)]
    fn key(&self, unit: &Unit, token: usize) -> &[u8] {
        self.keys.at(self.place.index(unit.row, unit.head, token))
    }

    #[inline(always)]
    fn value(&self, unit: &Unit, token: usize) -> &[u8] {
        self.values.at(self.place.index(unit.row, unit.head, token))
    }

    /// The query, and its head, that the r-th of a unit is.
    fn query(&self, unit: &Unit, r: usize) -> (usize, usize) {
        let (n, share) = (unit.rows.start + r, self.share());
        (n / share, unit.head * share + n % share)
    }

    /// Writes what the sums of a unit with all its keys come to.
    fn finish(&self, unit: &Unit, mut partial: Partial) {
        let value_dim = self.value_dim();
        let (heads, queries) = (self.call.sizes.heads as usize, self.call.sizes.queries as usize);
        for r in 0..unit.rows.len() {
            let (query, head) = self.query(unit, r);
            let softmax = &mut partial.softmax[r];
            let kept = self.sinks.as_ref().map_or(1.0, |sinks| softmax.absorb_sink(sinks[head]));
            let factor = kept / softmax.sum;
            let out = &mut partial.out[r * partial.width..][..value_dim];
            out.iter_mut().for_each(|x| *x *= factor);
            let at = ((unit.row * queries + query) * heads + head) * value_dim;
            // SAFETY: this query's part of the output; no other unit of other keys is written.
            unsafe { self.out.write(at, out) };
        }
    }
}

impl Partial {
    fn new(task: &Task<'_>, unit: &Unit) -> Self {
        let n = unit.rows.len();
        let width = task.value_dim().next_multiple_of(many::PANEL);
        Self {
            q: vec![0.0; n * task.dim()],
            softmax: vec![Softmax::EMPTY; n],
            out: vec![0.0; n * width],
            width,
        }
    }

    #[inline(always)]
    fn scale_row<V: Lanes>(&mut self, r: usize, factor: f32) {
        if factor == 1.0 {
            return;
        }
        let (eights, _) = self.out[r * self.width..][..self.width].as_chunks_mut::<8>();
        for eight in eights {
            V::load(eight).mul(V::splat(factor)).store(eight);
        }
    }

    /// Adds what other keys made of the same queries.
    fn merge(&mut self, other: &Partial) {
        let rows = self.out.chunks_exact_mut(self.width).zip(other.out.chunks_exact(self.width));
        for ((softmax, theirs), (out, others)) in
            self.softmax.iter_mut().zip(&other.softmax).zip(rows)
        {
            // A query that saw none of the other's keys has nothing to add.
            if theirs.max == f32::NEG_INFINITY && theirs.sum == 0.0 {
                continue;
            }
            let max = softmax.max.max(theirs.max);
            let (own, added) = ((softmax.max - max).exp(), (theirs.max - max).exp());
            softmax.sum = softmax.sum * own + theirs.sum * added;
            softmax.max = max;
            out.iter_mut().zip(others).for_each(|(x, other)| *x = *x * own + other * added);
        }
    }
}

for_processor! {
    /// One unit.
    unit_as_fast_as_possible = unit_body(task: &Task<'_>, unit: &Unit, to: &mut Partial)
}

#[inline(always)]
fn unit_body<const FUSED: bool>(task: &Task<'_>, unit: &Unit, to: &mut Partial) {
    if FUSED { by_dtype::<Wide>(task, unit, to) } else { by_dtype::<Plain<false>>(task, unit, to) }
}

#[inline(always)]
fn by_dtype<V: Lanes>(task: &Task<'_>, unit: &Unit, to: &mut Partial) {
    for (r, q) in to.q.chunks_exact_mut(task.dim()).enumerate() {
        let (query, head) = task.query(unit, r);
        let bytes = task.q.at([unit.row, head, query]);
        read_scaled::<V>(task.q.dtype, bytes, task.call.scale, q);
    }
    match task.keys.dtype {
        Dtype::Bf16 => by_number::<V, StoredBf16>(task, unit, to),
        Dtype::F16 => by_number::<V, StoredF16>(task, unit, to),
        _ => by_number::<V, StoredF32>(task, unit, to),
    }
}

#[inline(always)]
fn by_number<V: Lanes, E: Stored>(task: &Task<'_>, unit: &Unit, to: &mut Partial) {
    if unit.rows.len() <= FEW {
        few::run::<V, E>(task, unit, to);
    } else {
        many::run::<V, E>(task, unit, to);
    }
}

#[cfg(test)]
mod tests {
    use mlx::{Device, Key};

    use super::*;
    use crate::attention::Masks;

    fn plain(task: &Task<'_>, unit: &Unit, to: &mut Partial) {
        unit_body::<false>(task, unit, to);
    }

    #[test]
    fn neither_the_processor_nor_the_number_of_threads_changes_more_than_rounding() {
        Device::open().unwrap();
        let normal =
            |seed, shape: &[i32]| Key::from_seed(seed).unwrap().normal(shape, Dtype::F32).unwrap();
        for (queries, dtype) in [
            (1, Dtype::F32),
            (1, Dtype::Bf16),
            (3, Dtype::F16),
            (41, Dtype::F32),
            (41, Dtype::Bf16),
        ] {
            let q = normal(1, &[2, 6, queries, 21]).astype(dtype).unwrap();
            let keys = normal(2, &[2, 2, 1200, 21]).astype(dtype).unwrap();
            let values = normal(3, &[2, 2, 1200, 19]).astype(dtype).unwrap();
            let (sinks, masks) = (normal(4, &[6]), Masks::default());
            let a = Attention {
                q: &q,
                kv: Kv::Rows { keys: &keys, values: &values, first_key: 0 },
                scale: 0.5,
                positions: Positions::Same(1100),
                window: Some(1000),
                sinks: Some(&sinks),
                masks: &masks,
            };
            let numbers = |x: &Array| x.to_f32_vec().unwrap();
            let wanted = numbers(&a.reference().unwrap());
            let bound = if dtype == Dtype::F32 { 1e-5 } else { 1e-2 };
            let works: [fn(&Task<'_>, &Unit, &mut Partial); 2] = [plain, unit_as_fast_as_possible];
            let numbers_of_threads = [1, 2, 3, 7, 64, 1000];
            for (n_threads, work) in
                numbers_of_threads.map(|n| works.map(|w| (n, w))).as_flattened()
            {
                let (n_threads, work) = (*n_threads, *work);
                let found = node(&a, a.check().unwrap(), move |task| task.run(n_threads, work));
                for (found, wanted) in numbers(&found.unwrap()).iter().zip(&wanted) {
                    let off = (found - wanted).abs();
                    assert!(off <= bound * wanted.abs().max(1.0), "{n_threads}: {found} {wanted}");
                }
            }
        }
    }
}
