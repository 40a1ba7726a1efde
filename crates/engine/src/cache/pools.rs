//! The device's memory of all sequences: a pool of blocks for every buffer of every layer that
//! keeps something for each token, and slots of states for recurrent layers. Which block or slot is
//! whose is `kvcache`'s to say; here they are arrays.
//!
//! Pools grow as their blocks come into use, by half or more at a time, a buffer after another, and
//! all together not ahead of need beyond the device's budget and a step; `room.rs` has them cut. On
//! CUDA, where growing stalls everybody for as long as the driver maps memory, they begin with a
//! good part of the budget. The last block of a pool belongs to nobody: what is written nowhere may
//! land there. States are handles of arrays that nothing changes in place, so that copying one
//! copies no bytes.

use std::rc::Rc;

use kernels::blocks::{self, Changed};
use kvcache::{BlockId, Group, Kind, Layout};
use mlx::{Array, Backend, Device, Dtype};
use models::{KvState, LayerState, Memory, RecurrentState};

use super::states::{Held, States, joined};
use crate::Result;

/// Tokens of one block.
pub(crate) const BLOCK_TOKENS: usize = 32;
/// Blocks that the first growth makes.
const MIN_BLOCKS: usize = 16;
/// The share of the budget that it takes on CUDA.
const FIRST_SHARE: u64 = 4;

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
    slots: Vec<Vec<Held>>,
    /// What they were made for.
    budget_bytes: u64,
    /// All together do not grow beyond it ahead of need.
    most_bytes: u64,
}

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
            most_bytes: budget_bytes,
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

    /// Pools together do not grow beyond this ahead of need.
    pub fn limit(&mut self, most_bytes: u64) {
        self.most_bytes = most_bytes;
    }

    /// Bytes of pools and states.
    pub fn held_bytes(&self) -> u64 {
        let pools = self.layout.groups().iter().zip(&self.n_blocks);
        pools.map(|(group, n)| *n as u64 * group.bytes).sum::<u64>() + self.state_bytes()
    }

    /// Bytes of states in slots.
    pub fn state_bytes(&self) -> u64 {
        let slots = self.layout.groups().iter().zip(&self.slots);
        let n_held = |slots: &[Held]| slots.iter().filter(|held| !held.is_empty()).count() as u64;
        slots.map(|(group, slots)| n_held(slots) * group.bytes).sum()
    }

    /// Bytes of those of these states whose slots have none yet.
    pub fn missing_states(&self, ids: &[(usize, BlockId)]) -> u64 {
        let groups = self.layout.groups();
        let of_states = ids.iter().filter(|(group, _)| groups[*group].kind == Kind::Recurrent);
        let is_missing = |(group, id): &&(usize, BlockId)| {
            self.slots[*group].get(id.0 as usize).is_none_or(Held::is_empty)
        };
        of_states.filter(is_missing).map(|(group, _)| groups[*group].bytes).sum()
    }

    /// Bytes without which there is no room for these blocks and states.
    pub fn missing_bytes(&self, ids: &[(usize, BlockId)]) -> u64 {
        let groups = self.layout.groups().iter().enumerate();
        let of_blocks = groups.filter(|(_, of)| of.kind != Kind::Recurrent).map(|(group, of)| {
            let last = ids.iter().filter(|(g, _)| *g == group).map(|(_, id)| id.0).max();
            let needed = last.map_or(0, |last| last as usize + 2);
            needed.saturating_sub(self.n_blocks[group]) as u64 * of.bytes
        });
        of_blocks.sum::<u64>() + self.missing_states(ids)
    }

    /// Lets go of the states of all slots but those that `is_kept` names.
    pub fn keep_slots(&mut self, is_kept: impl Fn(usize, u32) -> bool) {
        for (group, slots) in self.slots.iter_mut().enumerate() {
            for (slot, held) in (0..).zip(slots) {
                if !is_kept(group, slot) {
                    *held = Held::default();
                }
            }
        }
    }

    /// Leaves a group's pools no more than `n` blocks.
    ///
    /// # Errors
    /// Memory is short; pools that were cut already are smaller than others then.
    pub fn cut(&mut self, group: usize, n: usize) -> Result<()> {
        if n >= self.n_blocks[group] {
            return Ok(());
        }
        // From here on nobody takes there to be more.
        self.n_blocks[group] = n;
        for (layer, state) in self.layers.iter().zip(&mut self.states) {
            let LayerState::Kv(kv) = state else { continue };
            for pool in kv.buffers.iter_mut().filter(|_| layer.group == group) {
                // A copy, or the rest would be kept.
                let rest = pool.slice_axis(0, 0..n as i32)?.contiguous()?;
                rest.eval()?;
                *pool = rest;
            }
        }
        Ok(())
    }

    /// Blocks that a group has when it can hold `id`.
    fn grown(&self, group: usize, id: u32) -> usize {
        let (needed, n) = (id as usize + 2, self.n_blocks[group]);
        if needed <= n {
            return n;
        }
        let (budget, layout) = (self.budget_bytes, &self.layout);
        let bytes = layout.groups()[group].bytes;
        let others = self.held_bytes() - n as u64 * bytes;
        let most = self.most_bytes.saturating_sub(others) / bytes;
        let all_bytes = layout.groups().iter().map(|group| group.bytes).sum::<u64>();
        let first = match Device::current_backend() {
            Backend::Cuda => (budget / FIRST_SHARE / all_bytes) as usize,
            Backend::Cpu | Backend::Metal => 0,
        };
        let ahead = (n + n / 2).max(MIN_BLOCKS).max(first).min(most as usize + 1);
        needed.max(ahead)
    }

    /// Makes the first growth of every group, and copies a block, where it is better not done for
    /// the first time while somebody waits.
    ///
    /// # Errors
    /// Memory is short.
    pub fn begin(&mut self) -> Result<()> {
        if Device::current_backend() != Backend::Cuda {
            return Ok(());
        }
        for group in 0..self.layout.groups().len() {
            self.fit(group, 1)?;
            if self.layout.groups()[group].kind != Kind::Recurrent {
                self.copy_block(group, 0, 1)?;
            }
        }
        Ok(())
    }

    /// Makes room for block or slot `id` of a group.
    ///
    /// # Errors
    /// Memory is short; pools that grew already are larger than others then, which harms nothing.
    pub fn fit(&mut self, group: usize, id: u32) -> Result<()> {
        if self.layout.groups()[group].kind == Kind::Recurrent {
            let n = self.slots[group].len().max(id as usize + 1);
            self.slots[group].resize_with(n, Held::default);
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
        let take =
            |(group, slot): &(usize, u32)| std::mem::take(&mut self.slots[*group][*slot as usize]);
        let rows = slots.iter().map(take).collect::<Vec<_>>();
        let is_recurrent = |layer: &&Layer| matches!(layer.memory, Memory::Recurrent { .. });
        let layers = self.layers.iter().filter(is_recurrent).map(|layer| &layer.memory);
        let mut states = joined(&rows, &layers.collect::<Vec<_>>(), self.dtype)?.into_iter();
        for state in &mut self.states {
            if let LayerState::Recurrent(state) = state {
                *state = states.next().unwrap_or_default();
            }
        }
        Ok(&mut self.states)
    }

    /// After a pass: its states are the slots', and those that it captured come back.
    pub fn keep(&mut self, slots: &[(usize, u32)], n_captures: usize) -> Vec<States> {
        let mut captured = vec![Vec::new(); n_captures];
        let mut states = States::new();
        for state in &mut self.states {
            let LayerState::Recurrent(state) = state else { continue };
            let mut state = std::mem::take(state);
            let of_layer = std::mem::take(&mut state.captured);
            captured.iter_mut().zip(of_layer).for_each(|(list, state)| list.push(state));
            states.push(state);
        }
        match slots {
            [(group, slot)] => self.slots[*group][*slot as usize] = Held::Own(states),
            _ => {
                let of = Rc::new(states);
                for (row, (group, slot)) in (0..).zip(slots) {
                    self.slots[*group][*slot as usize] = Held::Row { of: Rc::clone(&of), row };
                }
            }
        }
        captured
    }

    /// What a slot holds.
    pub fn slot(&self, group: usize, slot: u32) -> &Held {
        &self.slots[group][slot as usize]
    }

    /// Sets what a slot, which must have room, holds; none: the states before the first token.
    pub fn set_slot(&mut self, group: usize, slot: u32, states: Option<States>) {
        self.slots[group][slot as usize] = Held::Own(states.unwrap_or_default());
    }

    /// Copies a block.
    pub fn copy_block(&mut self, group: usize, from: u32, to: u32) -> Result<()> {
        self.copy_blocks(group, &[from], &[to])
    }

    /// Copies blocks, none of which is in both lists.
    pub fn copy_blocks(&mut self, group: usize, from: &[u32], to: &[u32]) -> Result<()> {
        if from.is_empty() {
            return Ok(());
        }
        let done = self.change(group, |pools| Ok(blocks::copy(pools, from, to)?))?;
        match Device::current_backend() {
            // Launches that follow come after it.
            Backend::Cuda => Ok(mlx::async_eval(&done)?),
            Backend::Cpu | Backend::Metal => Ok(mlx::eval(&done)?),
        }
    }

    /// Changes blocks in all pools of a group; what comes back is to be evaluated.
    fn change(
        &mut self,
        group: usize,
        change: impl FnOnce(Vec<Array>) -> Result<Vec<Changed>>,
    ) -> Result<Vec<Array>> {
        let layers = self.layers.iter().zip(&mut self.states).filter(|(l, _)| l.group == group);
        let places = layers.flat_map(|(_, state)| match state {
            LayerState::Kv(kv) => &mut kv.buffers[..],
            LayerState::Recurrent(_) => &mut [],
        });
        let mut places = places.collect::<Vec<_>>();
        // Nothing else may hold a pool, or it is copied.
        let nothing = Array::scalar(0.0, self.dtype)?;
        let take = |place: &mut &mut Array| std::mem::replace(*place, nothing.clone());
        let changed = change(places.iter_mut().map(take).collect())?;
        let all_done = places.iter_mut().zip(changed).map(|(place, changed)| {
            **place = changed.pool;
            changed.done
        });
        Ok(all_done.collect())
    }

    /// The pools of a group, layer after layer.
    pub fn arrays_of(&self, group: usize) -> Vec<&Array> {
        let layers = self.layers.iter().zip(&self.states).filter(|(l, _)| l.group == group);
        let pools = layers.flat_map(|(_, state)| match state {
            LayerState::Kv(kv) => &kv.buffers[..],
            LayerState::Recurrent(_) => &[],
        });
        pools.collect()
    }

    /// Bytes of each array's part of a block or a state.
    pub fn parts_bytes(&self) -> impl Iterator<Item = usize> {
        let of_token = |n: &[i32; 2]| n[0] as usize * n[1] as usize * BLOCK_TOKENS;
        self.layers.iter().flat_map(move |layer| match &layer.memory {
            Memory::Recurrent { .. } => self.parts(layer).to_vec(),
            Memory::Tokens { buffers, .. } => {
                buffers.iter().map(|n| of_token(n) * self.dtype.size_bytes()).collect()
            }
        })
    }

    /// The bytes of blocks, layer after layer.
    pub fn read_blocks(&self, group: usize, ids: &[u32]) -> Result<Vec<Vec<u8>>> {
        let bytes = self.layout.groups()[group].bytes as usize;
        let mut out = vec![Vec::with_capacity(bytes); ids.len()];
        let pools = self.arrays_of(group).into_iter();
        let parts = pools.map(|pool| Ok(blocks::read(pool, ids)?)).collect::<Result<Vec<_>>>()?;
        mlx::eval(&parts)?;
        for part in parts {
            let bytes = part.to_bytes()?;
            let size = bytes.len() / ids.len();
            out.iter_mut().zip(bytes.chunks_exact(size)).for_each(|(o, p)| o.extend(p));
        }
        Ok(out)
    }

    /// Writes blocks as [`Pools::read_blocks`] gave them.
    pub fn write_blocks(&mut self, group: usize, ids: &[u32], bytes: &[&[u8]]) -> Result<()> {
        let (mut begin, dtype) = (0, self.dtype);
        let write = |pool: Array| {
            let shape = [ids.len() as i32, pool.dim(1), pool.dim(2), pool.dim(3)];
            let size = shape[1..].iter().map(|n| *n as usize).product::<usize>();
            let end = begin + size * dtype.size_bytes();
            let mut part = Vec::with_capacity(size * dtype.size_bytes() * bytes.len());
            bytes.iter().for_each(|b| part.extend_from_slice(&b[begin..end]));
            begin = end;
            let new = Array::from_bytes(&part, &shape, dtype)?;
            Ok(blocks::write(pool, &new, ids)?)
        };
        let done = self.change(group, |pools| pools.into_iter().map(write).collect())?;
        Ok(mlx::eval(&done)?)
    }

    /// The bytes of a slot's states, layer after layer: the convolution's tail, then the state.
    pub fn read_state(&self, group: usize, slot: u32) -> Result<Vec<u8>> {
        let mut out = Vec::with_capacity(self.layout.groups()[group].bytes as usize);
        let states = self.slot(group, slot).own()?;
        for (i, layer) in self.layers.iter().filter(|l| l.group == group).enumerate() {
            let state = states.get(i).cloned().unwrap_or_default();
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

    /// A slot's states as arrays, layer after layer: tail, then state. They are being computed.
    pub fn state_arrays(&self, group: usize, slot: u32) -> Result<Vec<Array>> {
        let states = self.slot(group, slot).own()?;
        let mut arrays = Vec::new();
        for (i, layer) in self.layers.iter().filter(|l| l.group == group).enumerate() {
            let state = states.get(i).cloned().unwrap_or_default();
            let Memory::Recurrent { tail, state: size } = &layer.memory else { continue };
            arrays.push(match state.conv_tail {
                Some(tail) => tail,
                None => Array::zeros(&[&[1], &tail[..]].concat(), self.dtype)?,
            });
            arrays.push(match state.state {
                Some(state) => state,
                None => Array::zeros(&[&[1], &size[..]].concat(), Dtype::F32)?,
            });
        }
        mlx::async_eval(&arrays)?;
        Ok(arrays)
    }

    /// Gives a slot states of zeros, and the arrays of them to be written in place.
    pub fn blank_state(&mut self, group: usize, slot: u32) -> Result<Vec<Array>> {
        self.set_slot(group, slot, None);
        let arrays = self.state_arrays(group, slot)?;
        let states = arrays.chunks(2).map(|pair| RecurrentState {
            conv_tail: pair.first().cloned(),
            state: pair.get(1).cloned(),
            captured: Vec::new(),
        });
        self.set_slot(group, slot, Some(states.collect()));
        Ok(arrays)
    }

    /// Bytes of a recurrent layer's tail and state.
    fn parts(&self, layer: &Layer) -> [usize; 2] {
        let Memory::Recurrent { tail, state } = &layer.memory else { return [0; 2] };
        let n = |sizes: &[i32]| sizes.iter().map(|n| *n as usize).product::<usize>();
        [n(tail) * self.dtype.size_bytes(), n(state) * 4]
    }

    /// Sets a slot's states from bytes as [`Pools::read_state`] gave them.
    pub fn write_state(&mut self, group: usize, slot: u32, bytes: &[u8]) -> Result<()> {
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
