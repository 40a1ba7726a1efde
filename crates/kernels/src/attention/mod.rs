//! Attention over a cache: new queries at stated positions over all keys up to their own.
//!
//! ```text
//! query i of row b stands at s = position_b + i and sees the keys j with 0 ≤ s − j < window
//! out_i = Σ_j softmax_j(scale · q_i·k_j) v_j
//! ```
//! Query head h reads head h // (H/K) of keys and values. A sink is a logit without a value: it
//! takes part in the softmax's denominator alone. Keys and values may lie in rows of one buffer or
//! in blocks that a table finds. What lies behind a row's last query may be anything; on Metal,
//! where rows stand at different positions, anything finite.
//!
//! | form | where | how |
//! |---|---|---|
//! | [`Attention::reference`] | everywhere | the twin: the definition in MLX's operations |
//! | `cpu/few.rs` | CPU, few queries per head | each key and value is read once, as it is stored |
//! | `cpu/many.rs` | CPU, more | tiles as f32 in panels, as small matrix products |
//! | `device.rs` | CUDA, Metal | MLX's own attention |
//! | `twin.rs` | CUDA in 16 bits, up to 2²² scores | the definition, in f32 |
//!
//! For sizes for which MLX has no kernel it rounds scores to the inputs' dtype, which in bf16 puts
//! results off by percents. Few scores cost little in f32. For many, as prompts to models with
//! latents have them, f32 would give up tensor cores: those are still rounded.
//!
//! On the CPU sums are f32, and keys may be shared out over threads, so that results depend on the
//! number of threads by rounding.

pub(crate) mod cpu;
mod device;
mod masks;
mod twin;

use mlx::{Array, Backend, Device, Dtype, Result};

pub use self::masks::Masks;
use crate::input::{dims, expect_dtype, expect_float, expect_shape, refused};

const OP: &str = "attention";

/// The inputs of attention.
#[derive(Clone, Copy, Debug)]
pub struct Attention<'a> {
    /// Queries `[B, H, L, D]`, L ≥ 1.
    pub q: &'a Array,
    /// Keys and values, those of the new tokens among them.
    pub kv: Kv<'a>,
    /// What multiplies the logits.
    pub scale: f32,
    /// Where the queries stand.
    pub positions: Positions<'a>,
    /// A query sees that many keys, itself among them; all if absent. ≥ 1.
    pub window: Option<i32>,
    /// One logit per query head `[H]`.
    pub sinks: Option<&'a Array>,
    /// Masks that the calls of one step share where a form needs them: one per set of positions.
    pub masks: &'a Masks,
}

/// Where keys and values lie. Both have one dtype, and a last axis of consecutive elements, or
/// they are copied. K divides H.
#[derive(Clone, Copy, Debug)]
pub enum Kv<'a> {
    /// Token t of row b lies at `[b, :, t − first_key]`.
    Rows {
        /// `[B, K, T, D]`, T at least up to the last query: may be longer.
        keys: &'a Array,
        /// `[B, K, T, Dv]`.
        values: &'a Array,
        /// The position of the first key, at most that of any query.
        first_key: i32,
    },
    /// Token t of row b lies at `[table[b, t / n], :, t mod n]`: a head's tokens of a block stand
    /// together, as a head reads them.
    Blocks {
        /// A pool of N blocks of n tokens, `[N, K, n, D]`.
        keys: &'a Array,
        /// `[N, K, n, Dv]`.
        values: &'a Array,
        /// Numbers of blocks `[B, max]`, u32. What no query sees may be anything.
        table: &'a Array,
    },
}

/// Where the queries of a call stand: how many tokens come before the first.
#[derive(Clone, Copy, Debug)]
pub enum Positions<'a> {
    /// The same in all rows.
    Same(i32),
    /// Each row its own.
    Rows {
        /// `[B]`, i32.
        positions: &'a Array,
        /// How many queries of each row count, `[B]`, i32; what comes out for others is
        /// unspecified. All if absent.
        lengths: Option<&'a Array>,
    },
}

/// The sizes that the inputs share.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sizes {
    pub(crate) rows: i32,
    pub(crate) heads: i32,
    pub(crate) kv_heads: i32,
    pub(crate) queries: i32,
    /// T, or for blocks the tokens that a row of the table has room for.
    pub(crate) keys: i32,
    pub(crate) dim: i32,
    pub(crate) value_dim: i32,
}

impl Attention<'_> {
    /// Attention in the fastest form that this backend has: `[B, L, H·Dv]` in q's dtype.
    ///
    /// # Errors
    /// Shapes or dtypes do not fit each other. That positions of rows or a table lead beyond the
    /// keys shows at evaluation, on the CPU.
    pub fn run(&self) -> Result<Array> {
        let sizes = self.check()?;
        match Device::current_backend() {
            Backend::Cpu => cpu::run(self, sizes),
            Backend::Cuda => device::on_cuda(self, sizes),
            Backend::Metal => device::run(self, sizes),
        }
    }

    /// Attention in MLX's operations: what every other form is held against.
    ///
    /// # Errors
    /// Those of [`Attention::run`]; what shows at evaluation there shows nowhere here.
    pub fn reference(&self) -> Result<Array> {
        twin::run(self, self.check()?, &Masks::default())
    }

    /// Attention by MLX's own operation, which every backend has. Where rows stand at different
    /// positions, what no query sees must be finite.
    ///
    /// # Errors
    /// Those of [`Attention::reference`].
    pub fn built_in(&self) -> Result<Array> {
        device::run(self, self.check()?)
    }

    fn check(&self) -> Result<Sizes> {
        let refuse = |array: &Array, message: String| Err(refused(OP, &[array], message));
        let [rows, heads, queries, dim] = dims(OP, "q", self.q)?;
        let (keys, values) = self.kv.both();
        let key_sizes = dims::<4>(OP, "keys", keys)?;
        let value_sizes = dims::<4>(OP, "values", values)?;
        for (name, array) in [("q", self.q), ("keys", keys), ("values", values)] {
            expect_float(OP, name, array)?;
            if array.shape().contains(&0) {
                return refuse(array, format!("no dimension of {name} may be 0"));
            }
        }
        expect_dtype(OP, "values", values, keys.dtype())?;
        let value_dim = value_sizes[3];
        let [first, second, third, _] = key_sizes;
        expect_shape(OP, "keys", keys, &[first, second, third, dim])?;
        expect_shape(OP, "values", values, &[first, second, third, value_dim])?;
        let (kv_heads, n_keys) = match self.kv {
            Kv::Rows { .. } => {
                expect_shape(OP, "keys", keys, &[rows, second, third, dim])?;
                (second, third)
            }
            Kv::Blocks { table, .. } => {
                let [_, width] = dims(OP, "table", table)?;
                expect_dtype(OP, "table", table, Dtype::U32)?;
                expect_shape(OP, "table", table, &[rows, width])?;
                let Some(room) = width.checked_mul(third) else {
                    return refuse(table, format!("blocks of {third} are too many tokens"));
                };
                (second, room)
            }
        };
        if heads % kv_heads != 0 {
            return refuse(keys, format!("{kv_heads} heads do not divide the {heads} of q"));
        }
        let sizes = Sizes { rows, heads, kv_heads, queries, keys: n_keys, dim, value_dim };
        self.check_rest(sizes)?;
        Ok(sizes)
    }

    fn check_rest(&self, s: Sizes) -> Result<()> {
        let refuse = |array: &Array, message: String| Err(refused(OP, &[array], message));
        if let Some(window) = self.window.filter(|&window| window < 1) {
            return refuse(self.q, format!("a window of {window} keys sees nothing"));
        }
        if let Some(sinks) = self.sinks {
            expect_float(OP, "sinks", sinks)?;
            expect_shape(OP, "sinks", sinks, &[s.heads])?;
        }
        if self.kv.first_key() < 0 {
            let message = format!("first_key is {}, which is no position", self.kv.first_key());
            return refuse(self.kv.both().0, message);
        }
        match self.positions {
            Positions::Same(position) => {
                s.check_position(self.kv.first_key(), position, s.queries)
                    .or_else(|message| refuse(self.kv.both().0, message))?;
            }
            Positions::Rows { positions, lengths } => {
                expect_dtype(OP, "positions", positions, Dtype::I32)?;
                expect_shape(OP, "positions", positions, &[s.rows])?;
                if let Some(lengths) = lengths {
                    expect_dtype(OP, "lengths", lengths, Dtype::I32)?;
                    expect_shape(OP, "lengths", lengths, &[s.rows])?;
                }
            }
        }
        Ok(())
    }
}

impl Sizes {
    /// Query heads per head of keys.
    fn share(&self) -> i32 {
        self.heads / self.kv_heads
    }

    /// The shape of the result.
    fn out(&self) -> [i32; 3] {
        [self.rows, self.queries, self.heads * self.value_dim]
    }

    /// Whether `n` queries from `position` on have all their keys.
    fn check_position(
        &self,
        first_key: i32,
        position: i32,
        n: i32,
    ) -> std::result::Result<(), String> {
        let (first, last) = (i64::from(first_key), i64::from(first_key) + i64::from(self.keys));
        let end = i64::from(position) + i64::from(n);
        if i64::from(position) >= first && end <= last {
            return Ok(());
        }
        Err(format!("queries at {position}..{end} do not lie among the keys at {first}..{last}"))
    }
}

impl<'a> Kv<'a> {
    fn both(&self) -> (&'a Array, &'a Array) {
        match *self {
            Kv::Rows { keys, values, .. } | Kv::Blocks { keys, values, .. } => (keys, values),
        }
    }

    fn first_key(&self) -> i32 {
        match *self {
            Kv::Rows { first_key, .. } => first_key,
            Kv::Blocks { .. } => 0,
        }
    }
}
