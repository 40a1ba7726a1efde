//! What a layer remembers of a sequence: contiguous keys and values, the reference form.

use mlx::Array;

use crate::Result;

/// One layer's state of one sequence (or of a batch of rows at the same position).
#[derive(Debug)]
pub enum LayerState {
    /// Keys and values of every token.
    Kv(KvState),
}

impl LayerState {
    /// The arrays it holds, for evaluation and accounting.
    pub fn arrays(&self) -> impl Iterator<Item = &Array> {
        let LayerState::Kv(kv) = self;
        kv.buffers.iter().flat_map(|(keys, values)| [keys, values])
    }
}

/// Room grows by this many tokens at a time.
const GROWTH_TOKENS: i32 = 256;

/// Keys and values `[B, K, capacity, D]`, filled up to the sequence's position.
#[derive(Debug, Default)]
pub struct KvState {
    buffers: Option<(Array, Array)>,
}

impl KvState {
    /// Writes `k` and `v` `[B, K, L, D]` at `position` and returns all up to there, `[B, K, T, D]`.
    pub fn append(&mut self, k: &Array, v: &Array, position: i32) -> Result<(Array, Array)> {
        let end = position + k.dim(2);
        let (keys, values) = match self.buffers.take() {
            Some((keys, values)) if keys.dim(2) >= end => (keys, values),
            old => {
                let grow =
                    |old: Option<Array>, new: &Array| grown(old.as_ref(), new, position, end);
                let (old_keys, old_values) = old.unzip();
                (grow(old_keys, k)?, grow(old_values, v)?)
            }
        };
        // The old handles are gone by the time of evaluation, so MLX writes into the buffer in
        // place.
        let keys = write(keys, k, position, end)?;
        let values = write(values, v, position, end)?;
        let filled = (keys.slice_axis(2, 0..end)?, values.slice_axis(2, 0..end)?);
        self.buffers = Some((keys, values));
        Ok(filled)
    }
}

fn write(buffer: Array, new: &Array, position: i32, end: i32) -> Result<Array> {
    let stop = [buffer.dim(0), buffer.dim(1), end, buffer.dim(3)];
    Ok(buffer.slice_update(new, &[0, 0, position, 0], &stop)?)
}

/// A buffer with room up to `end` that begins with the filled part of the old one.
fn grown(old: Option<&Array>, new: &Array, position: i32, end: i32) -> Result<Array> {
    let capacity = (end + GROWTH_TOKENS - 1) / GROWTH_TOKENS * GROWTH_TOKENS;
    let room = [new.dim(0), new.dim(1), capacity - position, new.dim(3)];
    let room = Array::zeros(&room, new.dtype())?;
    Ok(match old {
        Some(old) if position > 0 => {
            mlx::concatenate(&[&old.slice_axis(2, 0..position)?, &room], 2)?
        }
        _ => room,
    })
}
