//! The device's memory of all sequences: a pool of blocks for every buffer of every layer that
//! keeps something for each token, and slots of states for recurrent layers. Which block or slot is
//! whose is `kvcache`'s to say; here they are arrays.
//!
//! Pools grow as their blocks come into use, by half or more at a time, a buffer after another, and
//! not ahead of need beyond the device's budget. The last block of a pool belongs to nobody: what
//! is written nowhere may land there. States are handles of arrays that nothing changes in place,
//! so that copying one copies no bytes.

use kernels::blocks;
use kvcache::{Group, Kind, Layout};
use mlx::{Array, Dtype};
use models::{KvState, LayerState, Memory, RecurrentState};

use crate::{Error, Result};

/// Tokens of one block.
pub(crate) const BLOCK_TOKENS: usize = 32;
/// Blocks that the first growth makes.
const MIN_BLOCKS: usize = 16;

/// What a layer keeps and with which layers it shares a table or a slot.
#[derive(Debug)]
struct Layer {
    memory: Memory,
    group: usize,
}

/// The arrays.
#[derive(Debug)]
pub(crate) struct Pools {
    layout: Layout,
    layers: Vec<Layer>,
    dtype: Dtype,
    /// What a pass works on: all pools, and of recurrent layers the states of its rows.
    states: Vec<LayerState>,
    /// Blocks that the pools of each group have, nobody's included.
    n_blocks: Vec<usize>,
    /// For each group the states of every slot, in the order of its layers.
    slots: Vec<Vec<Vec<RecurrentState>>>,
    /// Pools do not grow beyond it ahead of need.
    budget_bytes: u64,
}

/// The memory of recurrent layers after the same tokens, in the order of layers.
pub(crate) type States = Vec<RecurrentState>;

impl Pools {
    /// Empty pools for layers that remember this, for sequences that resume at multiples of
    /// `stride`, of about `budget_bytes` at most; none if they remember nothing.
    pub fn new(
        memory: Vec<Memory>,
        dtype: Dtype,
        stride: usize,
        budget_bytes: u64,
    ) -> Option<Self> {
        let mut groups = Vec::<Group>::new();
        let mut layers = Vec::new();
        for memory in memory {
            let (kind, bytes) = match &memory {
                Memory::Recurrent { .. } => {
                    (Kind::Recurrent, memory.fixed_bytes(dtype.size_bytes()))
                }
                Memory::Tokens { window, .. } => {
                    let bytes = memory.bytes_per_token(dtype.size_bytes());
                    let kind = window.map_or(Kind::Full, |n| Kind::Window { tokens: n as usize });
                    (kind, bytes * BLOCK_TOKENS as u64)
                }
            };
            let group = groups.iter().position(|g| g.kind == kind).unwrap_or_else(|| {
                groups.push(Group { kind, bytes: 0 });
                groups.len() - 1
            });
            groups[group].bytes += bytes;
            layers.push(Layer { memory, group });
        }
        let layout = Layout::new(BLOCK_TOKENS, groups)?.resuming_at_multiples_of(stride);
        let n_groups = layout.groups().len();
        let mut pools = Self {
            layout,
            layers,
            dtype,
            states: Vec::new(),
            n_blocks: Vec::new(),
            slots: vec![Vec::new(); n_groups],
            budget_bytes,
        };
        pools.clear();
        Some(pools)
    }

    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// Which of a step's tables is that of a group: recurrent layers have none.
    pub fn table_idx(&self, group: usize) -> usize {
        let before = &self.layout.groups()[..group];
        before.iter().filter(|g| g.kind != Kind::Recurrent).count()
    }

    /// The group of recurrent layers, if there are any.
    pub fn recurrent_group(&self) -> Option<usize> {
        self.layout.groups().iter().position(|g| g.kind == Kind::Recurrent)
    }

    /// Forgets all there is.
    pub fn clear(&mut self) {
        let empty = |layer: &Layer| match &layer.memory {
            Memory::Recurrent { .. } => LayerState::Recurrent(RecurrentState::default()),
            Memory::Tokens { .. } => {
                LayerState::Kv(KvState::pools(Vec::new(), self.table_idx(layer.group)))
            }
        };
        self.states = self.layers.iter().map(empty).collect();
        self.n_blocks = vec![0; self.layout.groups().len()];
        self.slots.iter_mut().for_each(Vec::clear);
    }

    /// All arrays of pools and of the last pass's states.
    pub fn arrays(&self) -> impl Iterator<Item = &Array> {
        self.states.iter().flat_map(LayerState::arrays)
    }

    /// Bytes that growing would add to hold block or slot `id` of a group; 0 if it is there.
    pub fn growth_bytes(&self, group: usize, id: u32) -> u64 {
        match self.layout.groups()[group].kind {
            Kind::Recurrent => 0,
            _ => {
                let n = self.grown(group, id) - self.n_blocks[group];
                n as u64 * self.layout.groups()[group].bytes
            }
        }
    }

    /// Blocks that a group has when it can hold `id`.
    fn grown(&self, group: usize, id: u32) -> usize {
        let (needed, n) = (id as usize + 2, self.n_blocks[group]);
        if needed <= n {
            return n;
        }
        let most = self.budget_bytes / self.layout.groups()[group].bytes;
        let ahead = (n + n / 2).max(MIN_BLOCKS).min(most as usize + 1);
        needed.max(ahead)
    }

    /// Makes room for block or slot `id` of a group.
    ///
    /// # Errors
    /// Memory is short; pools that grew already are larger than others then, which harms nothing.
    pub fn fit(&mut self, group: usize, id: u32) -> Result<()> {
        if self.layout.groups()[group].kind == Kind::Recurrent {
            let n_layers = self.layers.iter().filter(|l| l.group == group).count();
            let n = self.slots[group].len().max(id as usize + 1);
            self.slots[group].resize_with(n, || vec![RecurrentState::default(); n_layers]);
            return Ok(());
        }
        let n = self.grown(group, id);
        if n == self.n_blocks[group] {
            return Ok(());
        }
        let dtype = self.dtype;
        for (layer, state) in self.layers.iter().zip(&mut self.states) {
            let (Memory::Tokens { buffers, .. }, LayerState::Kv(kv)) = (&layer.memory, state)
            else {
                continue;
            };
            if layer.group != group {
                continue;
            }
            for (k, [n_heads, dim]) in buffers.iter().enumerate() {
                let n_old = kv.buffers.get(k).map_or(0, |pool| pool.dim(0));
                let shape = [n as i32 - n_old, *n_heads, BLOCK_TOKENS as i32, *dim];
                let room = Array::zeros(&shape, dtype)?;
                let pool = match kv.buffers.get(k) {
                    Some(old) => mlx::concatenate(&[old, &room], 0)?,
                    None => room,
                };
                pool.eval()?;
                match kv.buffers.get_mut(k) {
                    Some(old) => *old = pool,
                    None => kv.buffers.push(pool),
                }
            }
        }
        self.n_blocks[group] = n;
        Ok(())
    }

    /// Puts the states of slots where a pass finds them, a row for each, and gives the layers of
    /// the pass. They are the slots' again after [`Pools::keep`].
    ///
    /// # Errors
    /// MLX refuses an operation.
    pub fn lend(&mut self, slots: &[(usize, u32)]) -> Result<&mut [LayerState]> {
        let mut rows = Vec::new();
        for (group, slot) in slots {
            rows.push(std::mem::take(&mut self.slots[*group][*slot as usize]));
        }
        let (mut layer_idx, dtype) = (0, self.dtype);
        for (layer, state) in self.layers.iter().zip(&mut self.states) {
            let (Memory::Recurrent { tail, state: size }, LayerState::Recurrent(state)) =
                (&layer.memory, state)
            else {
                continue;
            };
            let of_rows = rows.iter().filter_map(|row| row.get(layer_idx)).collect::<Vec<_>>();
            *state = match of_rows[..] {
                [] => RecurrentState::default(),
                [one] => one.clone(),
                _ => RecurrentState {
                    conv_tail: joined(of_rows.iter().map(|row| &row.conv_tail), tail, dtype)?,
                    state: joined(of_rows.iter().map(|row| &row.state), size, Dtype::F32)?,
                    captured: Vec::new(),
                },
            };
            layer_idx += 1;
        }
        Ok(&mut self.states)
    }

    /// After a pass: its states are the slots', and those that it captured come back.
    ///
    /// # Errors
    /// MLX refuses an operation.
    pub fn keep(&mut self, slots: &[(usize, u32)], n_captures: usize) -> Result<Vec<States>> {
        let mut captured = vec![Vec::new(); n_captures];
        for state in &mut self.states {
            let LayerState::Recurrent(state) = state else { continue };
            let state = std::mem::take(state);
            for (row, (group, slot)) in (0..).zip(slots) {
                let part = |whole: &Option<Array>| match whole {
                    Some(whole) if slots.len() > 1 => {
                        whole.slice_axis(0, row..row + 1)?.contiguous().map(Some)
                    }
                    whole => Ok(whole.clone()),
                };
                self.slots[*group][*slot as usize].push(RecurrentState {
                    conv_tail: part(&state.conv_tail)?,
                    state: part(&state.state)?,
                    captured: Vec::new(),
                });
            }
            captured.iter_mut().zip(state.captured).for_each(|(list, state)| list.push(state));
        }
        Ok(captured)
    }

    /// The states of a slot.
    pub fn slot(&self, group: usize, slot: u32) -> &States {
        &self.slots[group][slot as usize]
    }

    /// Sets the states of a slot, which must have room; none: those before the first token.
    pub fn set_slot(&mut self, group: usize, slot: u32, states: Option<States>) {
        let to = &mut self.slots[group][slot as usize];
        let n_layers = self.layers.iter().filter(|l| l.group == group).count();
        *to = states.unwrap_or_else(|| vec![RecurrentState::default(); n_layers]);
    }

    /// Copies a block.
    pub fn copy_block(&mut self, group: usize, from: u32, to: u32) -> Result<()> {
        self.each_pool(group, |pool| {
            let block = blocks::read(&pool, &[from])?;
            // What is being read is not written in place.
            block.eval()?;
            Ok(blocks::write(pool, &block, &[to])?)
        })
    }

    /// Replaces every pool of a group by what `change` makes of it.
    fn each_pool(
        &mut self,
        group: usize,
        mut change: impl FnMut(Array) -> Result<Array>,
    ) -> Result<()> {
        for (layer, state) in self.layers.iter().zip(&mut self.states) {
            let LayerState::Kv(kv) = state else { continue };
            if layer.group != group {
                continue;
            }
            let pools = std::mem::take(&mut kv.buffers).into_iter();
            kv.buffers = pools.map(&mut change).collect::<Result<Vec<_>>>()?;
            mlx::eval(&kv.buffers)?;
        }
        Ok(())
    }

    /// The bytes of blocks, layer after layer.
    pub fn read_blocks(&self, group: usize, ids: &[u32]) -> Result<Vec<Vec<u8>>> {
        let bytes = self.layout.groups()[group].bytes as usize;
        let mut out = vec![Vec::with_capacity(bytes); ids.len()];
        let layers = self.layers.iter().zip(&self.states).filter(|(l, _)| l.group == group);
        for (_, state) in layers {
            let LayerState::Kv(kv) = state else { continue };
            for pool in &kv.buffers {
                let parts = blocks::read(pool, ids)?.to_bytes()?;
                let size = parts.len() / ids.len();
                out.iter_mut().zip(parts.chunks_exact(size)).for_each(|(o, p)| o.extend(p));
            }
        }
        Ok(out)
    }

    /// Writes blocks as [`Pools::read_blocks`] gave them.
    pub fn write_blocks(&mut self, group: usize, ids: &[u32], bytes: &[&[u8]]) -> Result<()> {
        let n_bytes = self.layout.groups()[group].bytes as usize;
        if bytes.iter().any(|b| b.len() != n_bytes) {
            return Err(Error::world("a cached block has another size than blocks of this model"));
        }
        let (mut begin, dtype) = (0, self.dtype);
        self.each_pool(group, |pool| {
            let shape = [ids.len() as i32, pool.dim(1), pool.dim(2), pool.dim(3)];
            let size = shape[1..].iter().map(|n| *n as usize).product::<usize>();
            let end = begin + size * dtype.size_bytes();
            let part = bytes.iter().flat_map(|b| &b[begin..end]).copied().collect::<Vec<_>>();
            begin = end;
            let new = Array::from_bytes(&part, &shape, dtype)?;
            Ok(blocks::write(pool, &new, ids)?)
        })
    }

    /// The bytes of a slot's states, layer after layer: the convolution's tail, then the state.
    pub fn read_state(&self, group: usize, slot: u32) -> Result<Vec<u8>> {
        let mut out = Vec::with_capacity(self.layout.groups()[group].bytes as usize);
        let layers = self.layers.iter().filter(|l| l.group == group);
        for (layer, state) in layers.zip(self.slot(group, slot)) {
            for (array, n_bytes) in
                [&state.conv_tail, &state.state].into_iter().zip(self.parts(layer))
            {
                match array {
                    Some(array) => out.extend(array.to_bytes()?),
                    None => out.resize(out.len() + n_bytes, 0),
                }
            }
        }
        Ok(out)
    }

    /// Bytes of a recurrent layer's tail and state.
    fn parts(&self, layer: &Layer) -> [usize; 2] {
        let Memory::Recurrent { tail, state } = &layer.memory else { return [0; 2] };
        let n = |sizes: &[i32]| sizes.iter().map(|n| *n as usize).product::<usize>();
        [n(tail) * self.dtype.size_bytes(), n(state) * 4]
    }

    /// Sets a slot's states from bytes as [`Pools::read_state`] gave them.
    pub fn write_state(&mut self, group: usize, slot: u32, bytes: &[u8]) -> Result<()> {
        if bytes.len() != self.layout.groups()[group].bytes as usize {
            return Err(Error::world("a cached state has another size than states of this model"));
        }
        let (mut rest, mut states) = (bytes, Vec::new());
        for layer in self.layers.iter().filter(|l| l.group == group) {
            let Memory::Recurrent { tail, state } = &layer.memory else { continue };
            let [tail_bytes, state_bytes] = self.parts(layer);
            let (of_tail, after) = rest.split_at(tail_bytes);
            let (of_state, after) = after.split_at(state_bytes);
            rest = after;
            let [kept, channels] = *tail;
            let [heads, values, keys] = *state;
            states.push(RecurrentState {
                conv_tail: Some(Array::from_bytes(of_tail, &[1, kept, channels], self.dtype)?),
                state: Some(Array::from_bytes(of_state, &[1, heads, values, keys], Dtype::F32)?),
                captured: Vec::new(),
            });
        }
        self.set_slot(group, slot, Some(states));
        Ok(())
    }
}

/// The same state of several rows, `[B, ..]`; zeros for those before their first token.
fn joined<'a>(
    rows: impl Iterator<Item = &'a Option<Array>>,
    size: &[i32],
    dtype: Dtype,
) -> Result<Option<Array>> {
    let shape = [&[1], size].concat();
    let rows = rows.map(|row| match row {
        Some(row) => Ok(row.clone()),
        None => Array::zeros(&shape, dtype),
    });
    let rows = rows.collect::<mlx::Result<Vec<_>>>()?;
    Ok(Some(mlx::concatenate(&rows.iter().collect::<Vec<_>>(), 0)?))
}
