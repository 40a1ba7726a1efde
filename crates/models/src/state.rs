//! What a layer remembers of a sequence: contiguous keys and values, the reference form, and the
//! states of recurrent layers.

use kernels::self_attention::write_rows;
use mlx::{Array, Dtype};

use crate::{Result, Step};

/// One layer's state of one sequence, or of a batch of rows.
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
        let recurrent = recurrent.into_iter().flat_map(|r| [&r.conv_tail, &r.state]).flatten();
        kv.into_iter().flat_map(|kv| &kv.buffers).chain(recurrent)
    }
}

/// The memory of a gated delta layer. Absent before the first token: zeros.
#[derive(Debug, Default)]
pub struct RecurrentState {
    /// `[B, Kc − 1, C]`, the last inputs of the convolution.
    pub conv_tail: Option<Array>,
    /// `[B, Hv, Dv, Dk]`, f32.
    pub state: Option<Array>,
}

/// Room grows by this many tokens at a time.
const GROWTH_TOKENS: i32 = 256;

/// Buffers `[B, K, capacity, D]`, each with its own K and D, filled up to the sequence's position.
#[derive(Debug, Default)]
pub struct KvState {
    buffers: Vec<Array>,
}

impl KvState {
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
        let buffers = shapes.into_iter().map(|shape| with_room(old.next(), shape, dtype, step));
        let buffers = buffers.collect::<Result<Vec<_>>>()?;
        Ok(buffers.try_into().expect("one buffer for each shape"))
    }

    /// Keeps what a step made of the buffers.
    pub fn keep<const N: usize>(&mut self, buffers: [Array; N]) {
        self.buffers = buffers.into();
    }

    /// Writes `new` `[B, K, L, D]` where the step stands and returns all up to there, `[B, K, T,
    /// D]`. Of rows at different positions, T is the longest; what lies beyond a row's own end is
    /// not defined and must be masked.
    ///
    /// # Errors
    /// MLX refuses an operation. The state is lost then.
    pub fn append(&mut self, new: &Array, step: &Step) -> Result<Array> {
        let shape = [0, 1, 2, 3].map(|axis| new.dim(axis));
        let [buffer] = self.take([shape], new.dtype(), step)?;
        let begins = step.rows().unwrap_or(std::slice::from_ref(&step.position));
        let buffer = write_rows(buffer, new, begins)?;
        let filled = buffer.slice_axis(2, 0..step.position + step.n_tokens)?;
        self.keep([buffer]);
        Ok(filled)
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
