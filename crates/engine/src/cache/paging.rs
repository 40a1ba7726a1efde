//! The host's tier beside a CUDA device: pinned memory, between which and the device one launch
//! moves all layers of many blocks, on a stream of its own. Passes go on meanwhile.
//!
//! Blocks and states lie in it by their ids, layer after layer. A move begins after all that the
//! device was given before, and nothing that it moves is freed or used before it has ended: the
//! books see to that. Arrays that moves are under way for must not be replaced: see
//! [`Paging::wait`].

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use kernels::swap::{ALIGN_BYTES, Swap, Way, swap};
use kvcache::{Item, Kind, Tier, Transfer};
use mlx::{Array, Device, Dtype, PinnedMemory, Stream};

use super::pools::Pools;
use super::tiers::by_group;
use crate::{Error, Result};

/// Memory through which bytes pass that do not stay on the host.
const LANDING_BYTES: usize = 64 << 20;
/// Bytes that are pinned before they are needed.
const AHEAD_BYTES: usize = 512 << 20;
/// Bytes under way beyond which no more are taken.
const MAX_MOVING_BYTES: u64 = 1 << 30;

/// The pinned memory and what is under way.
#[derive(Debug)]
pub(crate) struct Paging {
    stream: Stream,
    /// For each group.
    host: Vec<PinnedMemory>,
    /// The bytes of each group that have been used.
    used_bytes: Vec<usize>,
    landing: PinnedMemory,
    /// Oldest first, which is the order in which they end.
    moves: VecDeque<Move>,
    /// Once is enough.
    has_warned: bool,
}

#[derive(Debug)]
struct Move {
    transfer: Transfer,
    done: Vec<Array>,
    begun: Instant,
}

impl Paging {
    /// For tiers of so many bytes on the host. None, with a word about it, where memory cannot be
    /// pinned or layers cannot be moved like this.
    pub fn new(device: &Device, pools: &mut Pools, host_bytes: u64) -> Option<Self> {
        match Self::reserve(device, pools, host_bytes) {
            Ok(paging) => Some(paging),
            Err(error) => {
                eprintln!("note: moving keys and values to the host is slow: {}", error.message);
                None
            }
        }
    }

    fn reserve(device: &Device, pools: &mut Pools, host_bytes: u64) -> Result<Self> {
        if pools.parts_bytes().any(|bytes| bytes % ALIGN_BYTES != 0) {
            return Err(Error::ours(format!("layers keep no multiples of {ALIGN_BYTES} bytes")));
        }
        let groups = pools.layout().groups();
        let host = groups.iter().map(|_| {
            let memory = PinnedMemory::reserve(host_bytes as usize)?;
            memory.ask_for(if host_bytes > 0 { AHEAD_BYTES } else { 0 });
            Ok(memory)
        });
        let largest = groups.iter().map(|group| group.bytes as usize).max().unwrap_or(0);
        let paging = Self {
            stream: device.new_stream()?,
            used_bytes: vec![0; groups.len()],
            host: host.collect::<Result<_>>()?,
            landing: PinnedMemory::reserve(LANDING_BYTES.max(largest))?,
            moves: VecDeque::new(),
            has_warned: false,
        };
        // What moves bytes is compiled before anybody waits for it.
        for group in 0..pools.layout().groups().len() {
            let pieces = paging.read(group, &[0], pools)?;
            let pieces = pieces.iter().map(Vec::as_slice).collect::<Vec<_>>();
            paging.write(group, &[0], &pieces, pools)?;
        }
        Ok(paging)
    }

    /// Begins to move a transfer's items between device and host; whether the host has room.
    ///
    /// # Errors
    /// MLX refuses an operation.
    pub fn begin(&mut self, transfer: Transfer, pools: &mut Pools) -> Result<bool> {
        let way = if transfer.from == Tier::Host { Way::In } else { Way::Out };
        let parts = by_group(&transfer.items).into_iter().map(|(group, indices)| {
            let bytes = pools.layout().groups()[group].bytes as usize;
            let sides = |i: usize| match (way, transfer.items[i]) {
                (Way::In, Item { from, to, .. }) => (to.0, from.0 as usize * bytes),
                (Way::Out, Item { from, to, .. }) => (from.0, to.0 as usize * bytes),
            };
            let (ids, places) = indices.into_iter().map(sides).unzip::<_, _, Vec<_>, Vec<_>>();
            let end = places.iter().max().map_or(0, |place| place + bytes);
            (group, ids, places, end)
        });
        let mut parts = parts.collect::<Vec<_>>();
        // Memory for states is taken from the device's pool, which may have what takes it wait for
        // moves that were begun before. Blocks have theirs.
        parts.sort_by_key(|(group, ..)| pools.layout().groups()[*group].kind != Kind::Recurrent);
        for (group, _, _, end) in &parts {
            if !self.has_pinned(*group, *end) {
                return Ok(false);
            }
        }
        let (mut done, after) = (Vec::new(), marker()?);
        for (group, ids, places, _) in &parts {
            let what = (*group, &ids[..], &places[..]);
            done.extend(self.launch(way, &self.host[*group], what, &after, pools)?);
        }
        self.moves.push_back(Move { transfer, done, begun: Instant::now() });
        Ok(true)
    }

    /// Waits until a group's memory is pinned up to `end`; whether it is.
    fn has_pinned(&mut self, group: usize, end: usize) -> bool {
        if let Err(error) = self.host[group].wait_for(end) {
            if !std::mem::replace(&mut self.has_warned, true) {
                eprintln!("warning: no more keys and values are kept on the host: {error}");
            }
            return false;
        }
        self.used_bytes[group] = end.max(self.used_bytes[group]);
        true
    }

    /// Moves blocks or states of a group.
    fn launch(
        &self,
        way: Way,
        memory: &PinnedMemory,
        (group, ids, places): (usize, &[u32], &[usize]),
        after: &Array,
        pools: &mut Pools,
    ) -> Result<Vec<Array>> {
        if pools.layout().groups()[group].kind != Kind::Recurrent {
            let arrays = pools.arrays_of(group);
            let what = Swap { arrays: &arrays, rows: ids, places, after };
            return Ok(vec![self.stream.scope(|| launched(way, memory, &what))?]);
        }
        let moved = ids.iter().zip(places).map(|(id, place)| {
            let arrays = match way {
                Way::In => pools.blank_state(group, *id)?,
                Way::Out => pools.state_arrays(group, *id)?,
            };
            let arrays = arrays.iter().collect::<Vec<_>>();
            // States may have been begun only now.
            let what = Swap { arrays: &arrays, rows: &[0], places: &[*place], after: &marker()? };
            self.stream.scope(|| launched(way, memory, &what))
        });
        moved.collect()
    }

    /// What has ended since, and how long it took; with `waits` the oldest that has not is waited
    /// for.
    ///
    /// # Errors
    /// The device fails.
    pub fn next_ended(&mut self, waits: bool) -> Result<Option<(Transfer, Duration)>> {
        let Some(oldest) = self.moves.front() else { return Ok(None) };
        if waits {
            mlx::eval(&oldest.done)?;
        }
        for done in &oldest.done {
            if !done.is_available()? {
                return Ok(None);
            }
        }
        Ok(self.moves.pop_front().map(|ended| (ended.transfer, ended.begun.elapsed())))
    }

    /// Waits for all that is under way, which stays to be told of by [`Paging::next_ended`].
    ///
    /// # Errors
    /// The device fails.
    pub fn wait(&self) -> Result<()> {
        Ok(mlx::eval(self.moves.iter().flat_map(|m| &m.done))?)
    }

    /// Whether something is under way.
    pub fn is_busy(&self) -> bool {
        !self.moves.is_empty()
    }

    /// Whether about `n_bytes` more should be taken now: not while much is under way, nor, unless
    /// somebody `waits` for it, where memory for them is still being pinned.
    pub fn has_room(&self, n_bytes: u64, waits: bool) -> bool {
        let is_pinned = |(memory, used): (&PinnedMemory, &usize)| {
            let end = (used + n_bytes as usize).min(memory.n_bytes());
            memory.ask_for(end + AHEAD_BYTES);
            waits || memory.n_pinned() >= end || memory.has_failed()
        };
        let moving_bytes = self.moves.iter().map(|m| m.transfer.n_bytes).sum::<u64>();
        moving_bytes < MAX_MOVING_BYTES && self.host.iter().zip(&self.used_bytes).all(is_pinned)
    }

    /// Gives up what is under way, because the device has failed.
    pub fn give_up(&mut self) -> Vec<Transfer> {
        self.moves.drain(..).map(|m| m.transfer).collect()
    }

    /// The bytes of an item that the host has.
    ///
    /// # Errors
    /// There is no such item.
    pub fn read_host(&self, item: &Item, bytes: usize) -> Result<Vec<u8>> {
        let begin = item.from.0 as usize * bytes;
        Ok(self.host[item.group].read(begin..begin + bytes)?)
    }

    /// The bytes of blocks or states on the device, in order.
    ///
    /// # Errors
    /// The device fails.
    pub fn read(&self, group: usize, ids: &[u32], pools: &mut Pools) -> Result<Vec<Vec<u8>>> {
        let bytes = pools.layout().groups()[group].bytes as usize;
        let mut out = Vec::with_capacity(ids.len());
        for ids in ids.chunks(self.landing.n_bytes() / bytes) {
            let places = (0..ids.len()).map(|i| i * bytes).collect::<Vec<_>>();
            let what = (group, ids, &places[..]);
            mlx::eval(&self.launch(Way::Out, &self.landing, what, &marker()?, pools)?)?;
            for place in places {
                out.push(self.landing.read(place..place + bytes)?);
            }
        }
        Ok(out)
    }

    /// Brings bytes to blocks or states of the device.
    ///
    /// # Errors
    /// The device fails.
    pub fn write(
        &self,
        group: usize,
        ids: &[u32],
        pieces: &[&[u8]],
        pools: &mut Pools,
    ) -> Result<()> {
        let bytes = pools.layout().groups()[group].bytes as usize;
        let n_at_once = self.landing.n_bytes() / bytes;
        for (ids, pieces) in ids.chunks(n_at_once).zip(pieces.chunks(n_at_once)) {
            let places = (0..ids.len()).map(|i| i * bytes).collect::<Vec<_>>();
            for (place, piece) in places.iter().zip(pieces) {
                self.landing.write(*place, piece)?;
            }
            let what = (group, ids, &places[..]);
            mlx::eval(&self.launch(Way::In, &self.landing, what, &marker()?, pools)?)?;
        }
        Ok(())
    }
}

/// A value that is there when all that the device was given before has been computed.
fn marker() -> Result<Array> {
    let marker = Array::zeros(&[1], Dtype::U32)?;
    mlx::async_eval([&marker])?;
    Ok(marker)
}

fn launched(way: Way, memory: &PinnedMemory, what: &Swap<'_>) -> Result<Array> {
    let done = swap(way, memory, what)?;
    mlx::async_eval([&done])?;
    Ok(done)
}
