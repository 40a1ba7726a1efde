//! Three nodes of the graph in place of nine: two bring keys and values to their places, the third
//! turns the queries and attends. MLX reuses memory only for the one output of a node.

use mlx::{Array, CpuKernel, Dtype, Result, StridedRef, TensorMut};

use super::{Attended, Cache, Layout, NOWHERE, SelfAttention, Sizes};
use crate::Positions;
use crate::attention::cpu::{Call, Given};
use crate::cpu::{Failure, Parts, Rows, each_rows, numbers};
use crate::rope::cpu::{Begins, Plan, Target};

pub(super) fn run(a: &SelfAttention<'_>, cache: Cache, sizes: Sizes) -> Result<Attended> {
    let cache = Cache {
        keys: with_keys(a, cache.keys, sizes)?,
        values: with_values(a, cache.values, sizes)?,
    };
    let out = attended(a, &cache, sizes)?;
    Ok(Attended { out, cache })
}

/// The keys with the new tokens'.
fn with_keys(a: &SelfAttention<'_>, keys: Array, sizes: Sizes) -> Result<Array> {
    let plan = Plan::new(&a.k, sizes.k);
    let (rows, positions) = RowPositions::of(a);
    let (place, slots) = Place::of(a);
    let inputs = [plan.inputs(&a.k), positions, slots].concat();
    CpuKernel::update(keys, &inputs, move |ins, keys| {
        let (of_k, rest) = ins.split_at(plan.n_inputs());
        let (positions, rest) = rows.read(rest, sizes.k.rows);
        plan.run(of_k, &positions, &place.target(keys, sizes.k.tokens, &positions, rest)?)
    })
}

/// The values with the new tokens'.
fn with_values(a: &SelfAttention<'_>, values: Array, sizes: Sizes) -> Result<Array> {
    let (rows, positions) = RowPositions::of(a);
    let (place, slots) = Place::of(a);
    let inputs = [vec![a.v], positions, slots].concat();
    let (n_tokens, dim) = (sizes.k.tokens, values.dim(3) as usize);
    CpuKernel::update(values, &inputs, move |ins, values| {
        let (positions, rest) = rows.read(&ins[1..], sizes.k.rows);
        let to = place.target(values, n_tokens, &positions, rest)?;
        copy_values(&Rows::new(&ins[0])?, sizes.k.rows as usize, n_tokens as usize, dim, &to);
        Ok(())
    })
}

pub(super) fn write_slots(pool: Array, new: &Array, slots: &Array) -> Result<Array> {
    let [rows, n_tokens] = [new.dim(0), new.dim(1)];
    let dim = pool.dim(3) as usize;
    CpuKernel::update(pool, &[new, slots], move |ins, pool| {
        let to = Place::Slots.target(pool, n_tokens, &[], &ins[1..])?;
        copy_values(&Rows::new(&ins[0])?, rows as usize, n_tokens as usize, dim, &to);
        Ok(())
    })
}

/// Brings v to its places.
fn copy_values(v: &Rows<'_>, n_rows: usize, n_tokens: usize, dim: usize, to: &Target<'_>) {
    each_rows(n_rows * n_tokens, v.width, &|tokens| {
        let mut values = vec![0.0; v.width];
        for i in tokens {
            let Some(begin) = to.begins.of(i / n_tokens, i % n_tokens, n_tokens) else { continue };
            v.read(i, 0, &mut values);
            for (head, values) in values.chunks_exact(dim).enumerate() {
                // SAFETY: a token's values belong to one task, and lie apart from others'.
                unsafe { to.out.write(begin + head * to.by_head, values) };
            }
        }
    });
}

/// The queries' attention over the cache.
fn attended(a: &SelfAttention<'_>, cache: &Cache, sizes: Sizes) -> Result<Array> {
    let plan = Plan::new(&a.q, sizes.q);
    let (rows, queries, dim) = (sizes.q.rows, sizes.q.tokens, a.q.head_dim);
    let value_dim = cache.values.dim(3);
    let (row_positions, positions) = RowPositions::of(a);
    let (position, lengths) = match a.q.positions {
        Positions::Same(position) => (position, None),
        Positions::Rows { lengths, .. } => (0, lengths),
    };
    let sinks = a.sinks.map(|sinks| sinks.astype(Dtype::F32)).transpose()?;
    let table = match a.layout {
        Layout::Rows { .. } => None,
        Layout::Blocks { table, .. } => Some(table),
    };
    let attention = Call {
        sizes: crate::attention::Sizes {
            rows,
            heads: a.q.n_heads,
            kv_heads: a.k.n_heads,
            queries,
            keys: match a.layout {
                Layout::Rows { .. } => cache.keys.dim(2),
                Layout::Blocks { table, .. } => table.dim(1).saturating_mul(cache.keys.dim(2)),
            },
            dim,
            value_dim,
        },
        scale: a.scale,
        window: a.window.map(|window| window as usize),
        first_key: 0,
        position,
        given: Given {
            table: table.is_some(),
            positions: !positions.is_empty(),
            lengths: lengths.is_some(),
            sinks: sinks.is_some(),
        },
    };
    let mut inputs = [plan.inputs(&a.q), vec![&cache.keys, &cache.values]].concat();
    inputs.extend(table.into_iter().chain(positions));
    inputs.extend(lengths.into_iter().chain(sinks.as_ref()));
    let (shape, dtype) = ([rows, queries, a.q.n_heads * value_dim], a.q.x.dtype());
    let made = CpuKernel::call_strided(&inputs, &[(&shape, dtype)], move |ins, outs| {
        let (of_q, rest) = ins.split_at(plan.n_inputs());
        let (cache, rest) = rest.split_at(2);
        let after_table = &rest[usize::from(attention.given.table)..];
        let (positions, _) = row_positions.read(after_table, rows);
        let turned = Turned::new(&plan, of_q, &positions, attention.sizes.heads, dtype)?;
        attention.run(&[&[turned.as_ref()], cache, rest].concat(), outs)
    })?;
    Ok(made.into_iter().next().expect("one output was asked for"))
}

/// Turned queries, which only this node needs.
struct Turned {
    bytes: Vec<u8>,
    shape: [i32; 4],
    strides: [i64; 4],
    dtype: Dtype,
}

impl Turned {
    fn new(
        plan: &Plan,
        ins: &[StridedRef<'_>],
        positions: &[i32],
        n_heads: i32,
        dtype: Dtype,
    ) -> std::result::Result<Self, Failure> {
        let (n_tokens, dim) = (plan.n_tokens() as i32, plan.head_dim() as i32);
        let shape = [positions.len() as i32, n_heads, n_tokens, dim];
        let strides = [n_heads * n_tokens * dim, n_tokens * dim, dim, 1];
        let n_elements = shape.iter().map(|n| *n as usize).product::<usize>();
        let mut bytes = vec![0; n_elements * dtype.size_bytes()];
        let mut tensor = TensorMut::new(&mut bytes, &shape, dtype);
        let out = Parts::new(&mut tensor)?;
        let [by_row, by_head, by_token] = [0, 1, 2].map(|axis| strides[axis] as usize);
        let begins = Begins::Rows { strides: [by_row, by_token], first: None };
        plan.run(ins, positions, &Target { out, begins, by_head })?;
        Ok(Self { bytes, shape, strides: strides.map(i64::from), dtype })
    }

    fn as_ref(&self) -> StridedRef<'_> {
        StridedRef::new(&self.bytes, &self.shape, &self.strides, self.dtype)
    }
}

/// Where the rows of a call begin.
#[derive(Clone, Copy)]
enum RowPositions {
    Same(i32),
    /// The next input says it.
    Given,
}

impl RowPositions {
    /// And the input that says where they are, if one does.
    fn of<'a>(a: &SelfAttention<'a>) -> (Self, Vec<&'a Array>) {
        match a.q.positions {
            Positions::Same(position) => (Self::Same(position), Vec::new()),
            Positions::Rows { positions, .. } => (Self::Given, vec![positions]),
        }
    }

    /// `ins` from where the positions are, if they are given; the inputs behind them come back.
    fn read<'i, 'a>(
        self,
        ins: &'i [StridedRef<'a>],
        n_rows: i32,
    ) -> (Vec<i32>, &'i [StridedRef<'a>]) {
        match self {
            Self::Same(position) => (vec![position; n_rows as usize], ins),
            Self::Given => (numbers(&ins[0], i32::from_le_bytes), &ins[1..]),
        }
    }
}

/// Where new tokens are written.
#[derive(Clone, Copy)]
enum Place {
    /// At their positions in rows.
    Rows,
    /// At the slots that the next input names.
    Slots,
}

impl Place {
    /// And the input with the slots, if there are any.
    fn of<'a>(a: &SelfAttention<'a>) -> (Self, Vec<&'a Array>) {
        match a.layout {
            Layout::Rows { .. } => (Self::Rows, Vec::new()),
            Layout::Blocks { slots, .. } => (Self::Slots, vec![slots]),
        }
    }

    /// The places in keys or values.
    fn target<'a>(
        self,
        cache: &'a mut TensorMut<'_>,
        n_tokens: i32,
        positions: &'a [i32],
        ins: &[StridedRef<'_>],
    ) -> std::result::Result<Target<'a>, Failure> {
        let [first, second, third, dim] = *cache.shape else {
            return Err("a cache has four dimensions".to_owned());
        };
        let size = |n: i32| n as usize;
        let (begins, by_head) = match self {
            Place::Rows => {
                let room = third - n_tokens;
                if let Some(begin) = positions.iter().find(|p| !(0..=room).contains(*p)) {
                    return Err(format!(
                        "a cache of {third} tokens has no room for {n_tokens} at {begin}"
                    ));
                }
                let head = size(third) * size(dim);
                let strides = [size(second) * head, size(dim)];
                (Begins::Rows { strides, first: Some(positions) }, head)
            }
            Place::Slots => {
                let sizes = [first, second, third, dim].map(size);
                (Begins::Each(places(&ins[0], sizes)?), size(third) * size(dim))
            }
        };
        Ok(Target { out: Parts::new(cache)?, begins, by_head })
    }
}

/// Where the first heads of the tokens with these slots begin in a pool of these sizes.
fn places(
    slots: &StridedRef<'_>,
    [n_blocks, n_heads, block, dim]: [usize; 4],
) -> std::result::Result<Vec<Option<usize>>, Failure> {
    let (slots, n_slots) = (numbers(slots, u32::from_le_bytes), n_blocks * block);
    let mut taken = slots.iter().copied().filter(|slot| *slot != NOWHERE).collect::<Vec<_>>();
    taken.sort_unstable();
    if let Some(slot) = taken.last().filter(|slot| **slot as usize >= n_slots) {
        return Err(format!("self_attention: slot {slot} is none of {n_slots}"));
    }
    if let Some(pair) = taken.windows(2).find(|pair| pair[0] == pair[1]) {
        return Err(format!("self_attention: two tokens go to slot {}", pair[0]));
    }
    let begin = |slot: usize| (slot / block * n_heads * block + slot % block) * dim;
    let begins = slots.into_iter().map(|slot| (slot != NOWHERE).then(|| begin(slot as usize)));
    Ok(begins.collect())
}
