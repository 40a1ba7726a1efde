//! What a layer remembers of a sequence: contiguous keys and values, the reference form, and the
//! states of recurrent layers.

use mlx::Array;

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

/// Buffers `[B, K, capacity, D]`, each with its own D, filled up to the sequence's position.
#[derive(Debug, Default)]
pub struct KvState {
    buffers: Vec<Array>,
}

impl KvState {
    /// Writes `new` (each `[B, K, L, D]`) where the step stands and returns all up to there, each
    /// `[B, K, T, D]`. Of rows at different positions, T is the longest; what lies beyond a row's
    /// own end is not defined and must be masked.
    pub fn append<const N: usize>(&mut self, new: [&Array; N], step: &Step) -> Result<[Array; N]> {
        let (position, end) = (step.position, step.position + step.n_tokens);
        let mut old = std::mem::take(&mut self.buffers).into_iter();
        let filled = new.map(|new| {
            let buffer = match old.next() {
                Some(buffer) if buffer.dim(2) >= end => buffer,
                old => grown(old.as_ref(), new, position, end)?,
            };
            // The old handle is gone by the time of evaluation, so MLX writes into the buffer in
            // place.
            let buffer = match step.rows() {
                None => write(buffer, new, 0..new.dim(0), position)?,
                Some(positions) => write_rows(buffer, new, positions)?,
            };
            let filled = buffer.slice_axis(2, 0..end)?;
            self.buffers.push(buffer);
            Ok(filled)
        });
        let mut failed = None;
        let filled = filled.map(|result: Result<Array>| result.map_err(|e| failed = Some(e)).ok());
        match failed {
            Some(error) => Err(error),
            None => Ok(filled.map(|array| array.expect("nothing failed"))),
        }
    }
}

fn write(buffer: Array, new: &Array, rows: std::ops::Range<i32>, position: i32) -> Result<Array> {
    let stop = [rows.end, buffer.dim(1), position + new.dim(2), buffer.dim(3)];
    Ok(buffer.slice_update(new, &[rows.start, 0, position, 0], &stop)?)
}

fn write_rows(buffer: Array, new: &Array, positions: &[i32]) -> Result<Array> {
    (0..).zip(positions).try_fold(buffer, |buffer, (row, &position)| {
        write(buffer, &new.slice_axis(0, row..row + 1)?, row..row + 1, position)
    })
}

/// A buffer with room up to `end` that begins with the filled part of the old one.
fn grown(old: Option<&Array>, new: &Array, position: i32, end: i32) -> Result<Array> {
    let capacity = (end + GROWTH_TOKENS - 1) / GROWTH_TOKENS * GROWTH_TOKENS;
    let room = [new.dim(0), new.dim(1), capacity - position, new.dim(3)];
    let room = Array::zeros(&room, new.dtype())?;
    Ok(match old {
        Some(old) if position > 0 => {
            let filled = old.slice_axis(2, 0..position.min(old.dim(2)))?;
            mlx::concatenate(&[&filled, &room], 2)?
        }
        _ => room,
    })
}
