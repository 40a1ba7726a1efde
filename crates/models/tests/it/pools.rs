//! Models over pools of blocks that lie in any order, and resumed from captured states.

use kernels::self_attention::NOWHERE;
use mlx::{Array, Dtype};
use models::{Blocks, KvState, LayerState, Loaded, Memory, RecurrentState, Step};

const BLOCK_TOKENS: usize = 4;
/// A prime, so that strides lead to every block. One more has the last slot, which is nobody's.
const N_BLOCKS: usize = 31;
/// Blocks of a row in a table.
const WIDTH: usize = 12;

/// The memory of up to two rows.
pub struct Pools {
    pub states: Vec<LayerState>,
    n_groups: usize,
}

impl Pools {
    /// Filled with what must not be read.
    pub fn new(loaded: &Loaded) -> Self {
        let mut windows = Vec::new();
        let state = |memory: &Memory| match memory {
            Memory::Recurrent { .. } => LayerState::Recurrent(RecurrentState::default()),
            Memory::Tokens { buffers, window } => {
                let known = windows.iter().position(|w| w == window);
                let group = known.unwrap_or_else(|| {
                    windows.push(*window);
                    windows.len() - 1
                });
                let pool = |[n_heads, dim]: &[i32; 2]| {
                    let shape = [N_BLOCKS as i32 + 1, *n_heads, BLOCK_TOKENS as i32, *dim];
                    Array::full(&shape, 1e3, loaded.info.dtype).unwrap()
                };
                LayerState::Kv(KvState::pools(buffers.iter().map(pool).collect(), group))
            }
        };
        let states = loaded.model.memory().iter().map(state).collect();
        Self { states, n_groups: windows.len() }
    }

    fn block(group: usize, row: usize, idx: usize) -> usize {
        (7 * (row * WIDTH + idx) + 5 * group + 3) % N_BLOCKS
    }

    /// Tables for rows at `positions` with so many new tokens each, of which those before
    /// `written` are not written again.
    pub fn tables(&self, positions: &[usize], lengths: &[usize], written: usize) -> Vec<Blocks> {
        let n = lengths.iter().copied().max().unwrap();
        let array = |list: Vec<usize>, width: usize| {
            let list = list.into_iter().map(|x| x as u32).collect::<Vec<_>>();
            Array::from_slice(&list, &[positions.len() as i32, width as i32]).unwrap()
        };
        let group = |group: usize| {
            let rows = 0..positions.len();
            let table =
                rows.clone().flat_map(|r| (0..WIDTH).map(move |i| Self::block(group, r, i)));
            let slot = |row: usize, i: usize| {
                let token = positions[row] + i;
                let block = Self::block(group, row, token / BLOCK_TOKENS);
                let is_written = i < lengths[row] && token >= written;
                let slot = block * BLOCK_TOKENS + token % BLOCK_TOKENS;
                if is_written { slot } else { NOWHERE as usize }
            };
            let slots = rows.flat_map(|r| (0..n).map(move |i| (r, i))).map(|(r, i)| slot(r, i));
            Blocks { table: array(table.collect(), WIDTH), slots: array(slots.collect(), n) }
        };
        (0..self.n_groups).map(group).collect()
    }

    /// Logits of the next tokens of one row.
    pub fn forward(
        &mut self,
        loaded: &Loaded,
        tokens: &[i32],
        position: usize,
        written: usize,
        captures: &[i32],
    ) -> Vec<f32> {
        let tables = self.tables(&[position], &[tokens.len()], written);
        let step = Step::new(position as i32, tokens.len() as i32).over_blocks(tables).unwrap();
        let step = step.capturing(captures.to_vec());
        let ids = Array::from_slice(tokens, &[1, tokens.len() as i32]).unwrap();
        let hidden = loaded.model.forward(&ids, &step, &mut self.states).unwrap();
        let logits = loaded.model.logits(&hidden).unwrap();
        logits.astype(Dtype::F32).unwrap().to_f32_vec().unwrap()
    }
}

/// Logits of every position, prefilled in chunks, as rows.
pub fn logits(loaded: &Loaded, tokens: &[i32], chunk: usize) -> Vec<f32> {
    let mut pools = Pools::new(loaded);
    let parts = tokens.chunks(chunk).enumerate();
    parts.flat_map(|(i, part)| pools.forward(loaded, part, i * chunk, 0, &[])).collect()
}

/// For each of some positions the logits from there on, after all was computed in one pass that
/// captured the states there. Keys and values stay as that pass left them.
pub fn resumed(loaded: &Loaded, tokens: &[i32], captures: &[i32]) -> Vec<(usize, Vec<f32>)> {
    let mut pools = Pools::new(loaded);
    pools.forward(loaded, tokens, 0, 0, captures);
    let captured = pools.states.iter_mut().map(|state| match state {
        LayerState::Kv(_) => Vec::new(),
        LayerState::Recurrent(state) => std::mem::take(&mut state.captured),
    });
    let captured = captured.collect::<Vec<_>>();
    for state in captured.iter().flatten() {
        for array in [&state.conv_tail, &state.state] {
            let array = array.as_ref().expect("tokens were seen");
            let kept_bytes = array.buffer_bytes().unwrap();
            assert!(kept_bytes <= array.n_bytes() + 16_384, "{kept_bytes} for {array:?}");
        }
    }
    let resume = |(i, &at): (usize, &i32)| {
        for (state, captured) in pools.states.iter_mut().zip(&captured) {
            if let LayerState::Recurrent(state) = state {
                *state = captured[i].clone();
            }
        }
        let at = at as usize;
        (at, pools.forward(loaded, &tokens[at..], at, tokens.len(), &[]))
    };
    captures.iter().enumerate().map(resume).collect()
}
