//! Three nodes of the graph in place of nine: two bring keys and values to their places, the third
//! turns the queries and attends. MLX reuses memory only for the one output of a node.

use mlx::{Array, CpuKernel, Dtype, Result, StridedRef, TensorMut};

use super::{Attended, Cache, SelfAttention, Sizes};
use crate::Positions;
use crate::attention::cpu::{Call, Given};
use crate::cpu::{Failure, Parts, Rows, each_rows};
use crate::rope::cpu::{Plan, Target, integers};

/// Where the rows of a call begin.
#[derive(Clone, Copy)]
enum Begins {
    Same(i32),
    /// The next input says it.
    Given,
}

pub(super) fn run(a: &SelfAttention<'_>, cache: Cache, sizes: Sizes) -> Result<Attended> {
    let cache = Cache {
        keys: with_keys(a, cache.keys, sizes)?,
        values: with_values(a, cache.values, sizes)?,
    };
    let out = attended(a, &cache, sizes)?;
    Ok(Attended { out, cache })
}

/// The buffer of keys with the new tokens'.
fn with_keys(a: &SelfAttention<'_>, keys: Array, sizes: Sizes) -> Result<Array> {
    let plan = Plan::new(&a.k, sizes.k);
    let (begins, positions) = Begins::of(a);
    let inputs = [plan.inputs(&a.k), positions].concat();
    CpuKernel::update(keys, &inputs, move |ins, keys| {
        let (of_k, rest) = ins.split_at(plan.n_inputs());
        let positions = begins.read(rest, sizes.k.rows);
        plan.run(of_k, &positions, &target(keys, sizes.k.tokens, &positions)?)
    })
}

/// The buffer of values with the new tokens'.
fn with_values(a: &SelfAttention<'_>, values: Array, sizes: Sizes) -> Result<Array> {
    let (begins, positions) = Begins::of(a);
    let (n_tokens, dim) = (sizes.k.tokens, values.dim(3) as usize);
    CpuKernel::update(values, &[vec![a.v], positions].concat(), move |ins, values| {
        let positions = begins.read(&ins[1..], sizes.k.rows);
        let to = target(values, n_tokens, &positions)?;
        copy_values(&Rows::new(&ins[0])?, n_tokens as usize, dim, &positions, &to);
        Ok(())
    })
}

/// A buffer `[B, K, T, D]` as the place of tokens at their positions.
fn target<'a>(
    buffer: &'a mut TensorMut<'_>,
    n_tokens: i32,
    positions: &[i32],
) -> std::result::Result<Target<'a>, Failure> {
    let [_, n_heads, room, dim] = *buffer.shape else {
        return Err("a cache has four dimensions".to_owned());
    };
    if let Some(begin) = positions.iter().find(|p| !(0..=room - n_tokens).contains(*p)) {
        return Err(format!("a cache of {room} tokens has no room for {n_tokens} at {begin}"));
    }
    let strides = [n_heads * room * dim, room * dim, dim].map(|n| n as usize);
    Ok(Target { out: Parts::new(buffer)?, strides, by_position: true })
}

/// Brings v to its places.
fn copy_values(v: &Rows<'_>, n_tokens: usize, dim: usize, positions: &[i32], to: &Target<'_>) {
    let [by_row, by_head, by_token] = to.strides;
    each_rows(positions.len() * n_tokens, v.width, &|tokens| {
        let mut values = vec![0.0; v.width];
        for i in tokens {
            let (row, token) = (i / n_tokens, i % n_tokens);
            v.read(i, 0, &mut values);
            let begin = row * by_row + (positions[row] as usize + token) * by_token;
            for (head, values) in values.chunks_exact(dim).enumerate() {
                // SAFETY: a token's values belong to one task, and lie apart from others'.
                unsafe { to.out.write(begin + head * by_head, values) };
            }
        }
    });
}

/// The queries' attention over the cache.
fn attended(a: &SelfAttention<'_>, cache: &Cache, sizes: Sizes) -> Result<Array> {
    let plan = Plan::new(&a.q, sizes.q);
    let (rows, queries, dim) = (sizes.q.rows, sizes.q.tokens, a.q.head_dim);
    let value_dim = cache.values.dim(3);
    let (begins, positions) = Begins::of(a);
    let (position, lengths) = match a.q.positions {
        Positions::Same(position) => (position, None),
        Positions::Rows { lengths, .. } => (0, lengths),
    };
    let sinks = a.sinks.map(|sinks| sinks.astype(Dtype::F32)).transpose()?;
    let attention = Call {
        sizes: crate::attention::Sizes {
            rows,
            heads: a.q.n_heads,
            kv_heads: a.k.n_heads,
            queries,
            keys: cache.keys.dim(2),
            dim,
            value_dim,
        },
        scale: a.scale,
        window: a.window.map(|window| window as usize),
        first_key: 0,
        position,
        given: Given {
            table: false,
            positions: !positions.is_empty(),
            lengths: lengths.is_some(),
            sinks: sinks.is_some(),
        },
    };
    let mut inputs = [plan.inputs(&a.q), vec![&cache.keys, &cache.values], positions].concat();
    inputs.extend(lengths.into_iter().chain(sinks.as_ref()));
    let (shape, dtype) = ([rows, queries, a.q.n_heads * value_dim], a.q.x.dtype());
    let made = CpuKernel::call_strided(&inputs, &[(&shape, dtype)], move |ins, outs| {
        let (of_q, rest) = ins.split_at(plan.n_inputs());
        let (cache, rest) = rest.split_at(2);
        let positions = begins.read(rest, rows);
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
        let to = [0, 1, 2].map(|axis| strides[axis] as usize);
        plan.run(ins, positions, &Target { out, strides: to, by_position: false })?;
        Ok(Self { bytes, shape, strides: strides.map(i64::from), dtype })
    }

    fn as_ref(&self) -> StridedRef<'_> {
        StridedRef::new(&self.bytes, &self.shape, &self.strides, self.dtype)
    }
}

impl Begins {
    /// And the input that says where they are, if one does.
    fn of<'a>(a: &SelfAttention<'a>) -> (Self, Vec<&'a Array>) {
        match a.q.positions {
            Positions::Same(position) => (Self::Same(position), Vec::new()),
            Positions::Rows { positions, .. } => (Self::Given, vec![positions]),
        }
    }

    /// `ins` from where the positions are, if they are given.
    fn read(self, ins: &[StridedRef<'_>], n_rows: i32) -> Vec<i32> {
        match self {
            Self::Same(position) => vec![position; n_rows as usize],
            Self::Given => integers(&ins[0]),
        }
    }
}
