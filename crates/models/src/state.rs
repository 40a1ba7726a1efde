//! What a layer remembers of a sequence: keys and values in one buffer per sequence, the reference
//! form, or in pools of blocks that all sequences share; and the states of recurrent layers.

use kernels::blocks::laid_out;
use kernels::self_attention::{Extended, Layout, extend, write_rows};
use mlx::{Array, Dtype};

use crate::{Result, Step};

/// How much a layer remembers, and of what shape.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Memory {
    /// Something for every token: keys and values, or a latent.
    Tokens {
        /// Heads and elements of each, `[K, D]`, for each buffer.
        buffers: Vec<[i32; 2]>,
        /// How many tokens a query sees, itself among them; all if absent.
        window: Option<i32>,
    },
    /// A state of fixed size, valid at exactly one position.
    Recurrent {
        /// Of the convolution's tail, `[Kc − 1, C]`, in the activations' dtype.
        tail: [i32; 2],
        /// `[Hv, Dv, Dk]`, f32.
        state: [i32; 3],
    },
}

impl Memory {
    /// Bytes that one token of one sequence adds, with activations of `dtype_bytes`.
    pub fn bytes_per_token(&self, dtype_bytes: usize) -> u64 {
        let Memory::Tokens { buffers, .. } = self else { return 0 };
        buffers.iter().map(|buffer| product(buffer)).sum::<u64>() * dtype_bytes as u64
    }

    /// Bytes of one sequence, whatever its length.
    pub fn fixed_bytes(&self, dtype_bytes: usize) -> u64 {
        let Memory::Recurrent { tail, state } = self else { return 0 };
        product(tail) * dtype_bytes as u64 + product(state) * 4
    }
}

fn product(sizes: &[i32]) -> u64 {
    sizes.iter().map(|n| *n as u64).product()
}

/// One layer's state of one sequence, of a batch of rows, or of all sequences.
#[derive(Debug)]
pub enum LayerState {
    /// Something for every token: keys and values, or a latent.
    Kv(KvState),
    /// A state of fixed size, valid at exactly one position.
    Recurrent(RecurrentState),
}

impl LayerState {
    /// The arrays it holds, for evaluation and accounting.
    pub fn arrays(&self) -> impl Iterator<Item = &Array> {
        let (kv, recurrent) = match self {
            LayerState::Kv(kv) => (Some(kv), None),
            LayerState::Recurrent(recurrent) => (None, Some(recurrent)),
        };
        let recurrent = recurrent.into_iter().flat_map(RecurrentState::arrays);
        kv.into_iter().flat_map(|kv| &kv.buffers).chain(recurrent)
    }
}

/// The memory of a gated delta layer. Absent before the first token: zeros.
#[derive(Clone, Debug, Default)]
pub struct RecurrentState {
    /// `[B, Kc − 1, C]`, the last inputs of the convolution.
    pub conv_tail: Option<Array>,
    /// `[B, Hv, Dv, Dk]`, f32.
    pub state: Option<Array>,
    /// What it was at the places that the last step asked for ([`Step::capturing`]).
    pub captured: Vec<RecurrentState>,
}

impl RecurrentState {
    fn arrays(&self) -> impl Iterator<Item = &Array> {
        let captured = self.captured.iter().flat_map(|c| [&c.conv_tail, &c.state]);
        [&self.conv_tail, &self.state].into_iter().chain(captured).flatten()
    }
}

/// Room grows by this many tokens at a time.
const GROWTH_TOKENS: i32 = 256;

/// Buffers `[B, K, capacity, D]`, each with its own K and D, filled up to the sequence's position;
/// or pools of blocks `[N, K, n, D]`, whose tokens are found by the tables of a step.
#[derive(Debug, Default)]
pub struct KvState {
    /// One of each kind that the layer keeps.
    pub buffers: Vec<Array>,
    /// Which of a step's tables is meant; none: the buffers are one sequence's rows.
    group: Option<usize>,
}

impl KvState {
    /// Pools whose tokens are found by table `group` of a step.
    pub fn pools(buffers: Vec<Array>, group: usize) -> Self {
        Self { buffers, group: Some(group) }
    }

    /// How the buffers are laid out.
    pub(crate) fn layout<'s>(&self, step: &'s Step) -> Layout<'s> {
        match self.group {
            None => Layout::Rows { begins: step.rows() },
            Some(group) => step.blocks(group),
        }
    }

    /// Hands out the buffers, with room for the new tokens of a step; they must come back by
    /// [`KvState::keep`]. `shapes` are theirs, whatever stands for the capacity.
    ///
    /// # Errors
    /// MLX refuses an operation. The state is lost then.
    pub fn take<const N: usize>(
        &mut self,
        shapes: [[i32; 4]; N],
        dtype: Dtype,
        step: &Step,
    ) -> Result<[Array; N]> {
        let mut old = std::mem::take(&mut self.buffers).into_iter();
        if self.group.is_some() {
            let pools = old.collect::<Vec<_>>();
            return Ok(pools.try_into().expect("one pool for each buffer"));
        }
        let buffers = shapes.into_iter().map(|shape| with_room(old.next(), shape, dtype, step));
        let buffers = buffers.collect::<Result<Vec<_>>>()?;
        Ok(buffers.try_into().expect("one buffer for each shape"))
    }

    /// Keeps what a step made of the buffers.
    pub fn keep<const N: usize>(&mut self, buffers: [Array; N]) {
        self.buffers = buffers.into();
    }

    /// Writes `new` `[B, L, D]`, one head, where the step stands; returns what there is by now.
    ///
    /// # Errors
    /// MLX refuses an operation. The state is lost then.
    pub(crate) fn append<'s>(&mut self, new: &Array, step: &'s Step) -> Result<Kept<'s>> {
        let [rows, n, dim] = [0, 1, 2].map(|axis| new.dim(axis));
        let [buffer] = self.take([[rows, 1, n, dim]], new.dtype(), step)?;
        let (buffer, kept) = match self.layout(step) {
            Layout::Rows { begins } => {
                let begins = begins.unwrap_or(std::slice::from_ref(&step.position));
                let buffer = write_rows(buffer, &new.expand_dims(&[1])?, begins)?;
                let filled = buffer.slice_axis(2, 0..step.position + step.n_tokens)?;
                (buffer, Kept::Rows(filled))
            }
            blocks @ Layout::Blocks { table, .. } => match extend(buffer, new, blocks)? {
                Extended { pool, rows: None } => (pool.clone(), Kept::Blocks { pool, table }),
                Extended { pool, rows: Some(rows) } => {
                    let filled = rows.slice_axis(2, 0..step.position + step.n_tokens)?;
                    (pool, Kept::Rows(filled))
                }
            },
        };
        self.keep([buffer]);
        Ok(kept)
    }
}

/// All that a layer with one head per token has kept. Of rows at different positions, T is the
/// longest; what lies beyond a row's own end is not defined and must be masked.
#[derive(Debug)]
pub(crate) enum Kept<'s> {
    /// `[B, 1, T, D]`.
    Rows(Array),
    /// `[N, 1, n, D]`, and where in it the tokens of each row are.
    Blocks { pool: Array, table: &'s Array },
}

impl Kept<'_> {
    /// `[B, 1, T, D]`, T the tokens of the longest row.
    pub fn rows(&self, step: &Step) -> Result<Array> {
        match self {
            Kept::Rows(rows) => Ok(rows.clone()),
            Kept::Blocks { pool, table } => {
                Ok(laid_out(pool, table)?.slice_axis(2, 0..step.position + step.n_tokens)?)
            }
        }
    }

    /// For attention over all D as keys and the first `value_dim` as values, which
    /// [`Kept::values`] made.
    pub fn kv<'a>(&'a self, values: &'a Array) -> kernels::Kv<'a> {
        match self {
            Kept::Rows(keys) => kernels::Kv::Rows { keys, values, first_key: 0 },
            Kept::Blocks { pool, table } => kernels::Kv::Blocks { keys: pool, values, table },
        }
    }

    /// The first `dim` elements of every token.
    pub fn values(&self, dim: i32) -> Result<Array> {
        let (Kept::Rows(all) | Kept::Blocks { pool: all, .. }) = self;
        Ok(all.slice_axis(3, 0..dim)?)
    }
}

/// A buffer with room for the step that begins with the filled part of the old one.
fn with_room(
    old: Option<Array>,
    [rows, n_heads, _, dim]: [i32; 4],
    dtype: Dtype,
    step: &Step,
) -> Result<Array> {
    let end = step.position + step.n_tokens;
    let old = match old {
        Some(old) if old.dim(2) >= end => return Ok(old),
        old => old,
    };
    let filled = old.as_ref().map_or(0, |old| step.position.min(old.dim(2)));
    let capacity = (end + GROWTH_TOKENS - 1) / GROWTH_TOKENS * GROWTH_TOKENS;
    let room = Array::zeros(&[rows, n_heads, capacity - filled, dim], dtype)?;
    Ok(match old {
        Some(old) if filled > 0 => mlx::concatenate(&[&old.slice_axis(2, 0..filled)?, &room], 2)?,
        _ => room,
    })
}
