//! Self-attention between its projections: heads of queries and keys are normed and turned, keys
//! and values of the new tokens join those of earlier ones, and the queries attend over all of
//! them.
//!
//! ```text
//! keys[place of token i] = turn(norm(k_i)); values[place of token i] = v_i
//! out = attention(turn(norm(q)), keys, values)
//! ```
//! What it consists of is described where it is: [`Heads`](crate::rope::Heads) and
//! [`Attention`](crate::Attention).
//!
//! | form | where |
//! |---|---|
//! | [`SelfAttention::reference`] | everywhere: the twin, twins of the parts one after another |
//! | `twin.rs` with the parts' fastest forms | Metal; CUDA over rows |
//! | `cuda.rs` | CUDA over blocks: one new token per row in one launch; others laid out |
//! | `flash.rs` | CUDA over blocks, many new tokens in 16 bits: through the table as well |
//! | `cpu.rs` | CPU: three nodes, two write into the cache in place and one attends |

mod cpu;
mod cuda;
mod flash;
mod latent;
mod latent_cuda;
mod twin;

use mlx::{Array, Backend, Device, Dtype, Result};

use crate::Positions;
use crate::attention::{Attention, Kv, Masks};
use crate::input::{dims, expect_dtype, expect_float, expect_shape, refused};
use crate::rope::{self, Heads};

pub use self::latent::Latent;
pub use self::twin::write_rows;

const OP: &str = "self_attention";

/// The inputs beside the cache.
#[derive(Clone, Copy, Debug)]
pub struct SelfAttention<'a> {
    /// Queries, H heads of D elements.
    pub q: Heads<'a>,
    /// Keys, K heads of D elements; K divides H. They stand where the queries do.
    pub k: Heads<'a>,
    /// `[B, L, K·Dv]`.
    pub v: &'a Array,
    /// What multiplies the logits.
    pub scale: f32,
    /// A query sees that many keys, itself among them; all if absent. ≥ 1.
    pub window: Option<i32>,
    /// One logit per query head `[H]`.
    pub sinks: Option<&'a Array>,
    /// Masks that the calls of one step share where a form needs them.
    pub masks: &'a Masks,
    /// How the cache is laid out.
    pub layout: Layout<'a>,
}

/// How keys and values lie in a cache.
#[derive(Clone, Copy, Debug)]
pub enum Layout<'a> {
    /// Keys `[B, K, T, D]` and values `[B, K, T, Dv]`, token t at t. T may be more than is filled.
    Rows {
        /// The positions of the rows as numbers, where `q.positions` has them as an array.
        begins: Option<&'a [i32]>,
    },
    /// Pools of N blocks of n tokens, keys `[N, K, n, D]` and values `[N, K, n, Dv]`. Of the last
    /// slot, N·n − 1, nothing is known after a call.
    Blocks {
        /// Numbers of blocks `[B, max]`, u32: token t of row b lies in block `t / n` of its row.
        table: &'a Array,
        /// Where the new tokens are written, `[B, L]`, u32: block · n + place in it. No two are the
        /// same but for [`NOWHERE`], which is not written: others have written it, or it is
        /// padding.
        slots: &'a Array,
        /// The position of each row's first new token, `[B]`, i32.
        begins: &'a Array,
    },
}

/// The slot of a token that is not written.
pub const NOWHERE: u32 = u32::MAX;

/// What the tokens so far left, as [`Layout`] says.
#[derive(Debug)]
pub struct Cache {
    /// Turned.
    pub keys: Array,
    /// As projected.
    pub values: Array,
}

/// A pool `[N, K, n, D]` with `new` `[B, L, K·D]` at the slots of a [`Layout::Blocks`]: for caches
/// that are read in other ways than [`SelfAttention`]'s. A pool that nothing else holds is written
/// in place, on CUDA any pool.
#[derive(Debug)]
pub struct Extended {
    /// The pool with the new tokens; nothing is known of its last slot.
    pub pool: Array,
    /// All tokens of each row, `[B, K, T, D]`, T as many as the table has room for, where the form
    /// lays them out on the way.
    pub rows: Option<Array>,
}

/// See [`Extended`].
///
/// # Errors
/// Shapes or dtypes do not fit each other. On the CPU, that a slot is none shows at evaluation.
///
/// # Panics
/// The layout is one of rows.
pub fn extend(pool: Array, new: &Array, layout: Layout<'_>) -> Result<Extended> {
    let slots = check_slots(&pool, new, layout)?;
    let in_place = |pool| Ok(Extended { pool, rows: None });
    match Device::current_backend() {
        Backend::Cpu => in_place(cpu::write_slots(pool, new, slots)?),
        Backend::Metal => in_place(twin::write_slots(&pool, new, slots)?),
        Backend::Cuda => {
            let rows = cuda::extend(&pool, new, false, layout, None)?;
            Ok(Extended { pool, rows: Some(rows) })
        }
    }
}

/// The same in MLX's operations.
///
/// # Errors
/// Those of [`extend`].
///
/// # Panics
/// The layout is one of rows.
pub fn extend_reference(pool: &Array, new: &Array, layout: Layout<'_>) -> Result<Array> {
    twin::write_slots(pool, new, check_slots(pool, new, layout)?)
}

/// Where the new tokens go.
fn check_slots<'a>(pool: &Array, new: &Array, layout: Layout<'a>) -> Result<&'a Array> {
    let Layout::Blocks { table, slots, begins } = layout else {
        unreachable!("rows are extended by `write_rows`")
    };
    let [_, n_heads, _, dim] = dims(OP, "pool", pool)?;
    let [rows, n_tokens, _] = dims(OP, "new", new)?;
    let [_, width] = dims(OP, "table", table)?;
    expect_float(OP, "pool", pool)?;
    expect_dtype(OP, "new", new, pool.dtype())?;
    expect_shape(OP, "new", new, &[rows, n_tokens, n_heads * dim])?;
    expect_dtype(OP, "table", table, Dtype::U32)?;
    expect_shape(OP, "table", table, &[rows, width])?;
    expect_dtype(OP, "slots", slots, Dtype::U32)?;
    expect_shape(OP, "slots", slots, &[rows, n_tokens])?;
    expect_dtype(OP, "begins", begins, Dtype::I32)?;
    expect_shape(OP, "begins", begins, &[rows])?;
    Ok(slots)
}

/// What comes out.
#[derive(Debug)]
pub struct Attended {
    /// `[B, L, H·Dv]` in the dtype of the queries.
    pub out: Array,
    /// The cache with the new tokens.
    pub cache: Cache,
}

#[derive(Clone, Copy)]
struct Sizes {
    q: rope::Sizes,
    k: rope::Sizes,
}

impl SelfAttention<'_> {
    /// Extends the cache and attends over it, in the fastest form that this backend has. A cache
    /// that nothing else holds is written in place; on CUDA pools are, whoever holds them, and
    /// must not be extended again before the result is evaluated.
    ///
    /// # Errors
    /// Shapes or dtypes do not fit each other, or the cache has no room for the new tokens.
    pub fn run(&self, cache: Cache) -> Result<Attended> {
        let sizes = self.check(&cache)?;
        match Device::current_backend() {
            Backend::Cpu => cpu::run(self, cache, sizes),
            Backend::Cuda if matches!(self.layout, Layout::Blocks { .. }) => cuda::run(self, cache),
            Backend::Cuda | Backend::Metal => twin::run(self, cache, |h| h.turn(), |a| a.run()),
        }
    }

    /// The same in MLX's operations: what the other forms are held against.
    ///
    /// # Errors
    /// Those of [`SelfAttention::run`].
    pub fn reference(&self, cache: Cache) -> Result<Attended> {
        self.check(&cache)?;
        twin::run(self, cache, |h| h.reference(), |a| a.reference())
    }

    fn check(&self, cache: &Cache) -> Result<Sizes> {
        let (q, k) = (self.q.check()?, self.k.check()?);
        let (keys, values) = (&cache.keys, &cache.values);
        let [first, _, third, _] = dims(OP, "keys", keys)?;
        let [_, _, _, value_dim] = dims(OP, "values", values)?;
        let n_kv_heads = self.k.n_heads;
        expect_shape(OP, "k", self.k.x, &[q.rows, q.tokens, self.k.x.dim(2)])?;
        expect_shape(OP, "v", self.v, &[q.rows, q.tokens, n_kv_heads * value_dim])?;
        let [a, b, c] = match self.layout {
            Layout::Rows { .. } => [q.rows, n_kv_heads, third],
            Layout::Blocks { .. } => [first, n_kv_heads, third],
        };
        expect_shape(OP, "keys", keys, &[a, b, c, self.k.head_dim])?;
        expect_shape(OP, "values", values, &[a, b, c, value_dim])?;
        for (name, array) in [("k", self.k.x), ("v", self.v), ("keys", keys), ("values", values)] {
            expect_dtype(OP, name, array, self.q.x.dtype())?;
        }
        if let Some(sinks) = self.sinks {
            expect_float(OP, "sinks", sinks)?;
            expect_shape(OP, "sinks", sinks, &[self.q.n_heads])?;
        }
        if self.q.head_dim != self.k.head_dim || self.q.n_heads % n_kv_heads != 0 {
            let text = "heads of queries and of keys do not fit each other".to_owned();
            return Err(refused(OP, &[self.q.x, self.k.x], text));
        }
        if self.window.is_some_and(|window| window < 1) {
            return Err(refused(OP, &[self.q.x], "a window of no keys sees nothing".to_owned()));
        }
        match self.layout {
            Layout::Rows { .. } => self.check_rows(keys, q)?,
            Layout::Blocks { table, slots, begins } => {
                expect_dtype(OP, "begins", begins, Dtype::I32)?;
                expect_shape(OP, "begins", begins, &[q.rows])?;
                let [_, width] = dims(OP, "table", table)?;
                expect_dtype(OP, "table", table, Dtype::U32)?;
                expect_shape(OP, "table", table, &[q.rows, width])?;
                expect_dtype(OP, "slots", slots, Dtype::U32)?;
                expect_shape(OP, "slots", slots, &[q.rows, q.tokens])?;
            }
        }
        Ok(Sizes { q, k })
    }

    /// Where the rows begin, as numbers: one if all stand alike. Absent if nothing says it.
    fn begins(&self) -> Option<Vec<i32>> {
        match (self.q.positions, self.layout) {
            (Positions::Same(position), _) => Some(vec![position]),
            (_, Layout::Rows { begins }) => begins.map(<[i32]>::to_vec),
            _ => None,
        }
    }

    /// Whether there is room in rows.
    fn check_rows(&self, keys: &Array, q: rope::Sizes) -> Result<()> {
        let all = |begins: &Vec<i32>| match self.q.positions {
            Positions::Same(_) => true,
            Positions::Rows { .. } => begins.len() == q.rows as usize,
        };
        let Some(begins) = self.begins().filter(all) else {
            let text = format!("positions of {} rows are missing as numbers", q.rows);
            return Err(refused(OP, &[self.q.x], text));
        };
        let room = keys.dim(2);
        match begins.iter().find(|begin| **begin < 0 || room - q.tokens < **begin) {
            None => Ok(()),
            Some(begin) => {
                let n = q.tokens;
                let text = format!("a cache of {room} tokens has no room for {n} at {begin}");
                Err(refused(OP, &[keys], text))
            }
        }
    }
}

impl SelfAttention<'_> {
    /// Of the queries over keys and values that are laid out as rows `[B, K, T, D]`.
    fn over_rows<'b>(&'b self, q: &'b Array, keys: &'b Array, values: &'b Array) -> Attention<'b> {
        Attention {
            q,
            kv: Kv::Rows { keys, values, first_key: 0 },
            scale: self.scale,
            positions: self.q.positions,
            window: self.window,
            sinks: self.sinks,
            masks: self.masks,
        }
    }
}
