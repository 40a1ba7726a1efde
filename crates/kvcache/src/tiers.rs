//! Moving between tiers. What is new on a tier is copied to the next one in the background, so that
//! evicting is freeing; what a match needs from below is brought up before its sequence goes on.
//! Each tier has the whole path of what it has, so a restore is a range of rows per tier, and the
//! checkpoint. A transfer pins source and destination; what it brings enters the trie when it has
//! ended well, and otherwise nothing has happened.

use crate::arena::Handle;
use crate::blocks::BlockId;
use crate::cache::{Cache, NoRoom, Op, SeqId};
use crate::evict::Tick;
use crate::extents::{ExtentId, Place};
use crate::layout::{Kind, Tier};
use crate::reason::Segment;
use crate::residency::Rows;
use crate::sequence::{Sequence, Table};
use crate::trie::Walk;

/// A running transfer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TransferId(pub(crate) Handle, pub(crate) u32);

/// Bytes to bring from tier to tier: best written or read as one extent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Transfer {
    /// For `finish`.
    pub id: TransferId,
    /// Where the bytes are.
    pub from: Tier,
    /// Where they go.
    pub to: Tier,
    /// What to copy, in the order of an extent's pieces.
    pub items: Vec<Item>,
    /// Bytes of all items.
    pub n_bytes: u64,
}

/// One block or state of a transfer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Item {
    /// Which group.
    pub group: usize,
    /// In the tier that it comes from.
    pub from: BlockId,
    /// In the tier that it goes to.
    pub to: BlockId,
    /// Rows that count; 0 for a state.
    pub n_tokens: usize,
    /// Where the one that is on disk lies, or goes.
    pub place: Option<Place>,
}

/// A range of rows and a checkpoint, all or nothing.
#[derive(Debug)]
pub(crate) struct Flight {
    pub node: Handle,
    pub from: Tier,
    pub to: Tier,
    pub start: usize,
    pub end: usize,
    /// Pairs of source and destination, one of each full group per index from that of `start`.
    pub rows: Vec<(BlockId, BlockId)>,
    /// As in a checkpoint.
    pub saved: Option<Vec<Vec<(BlockId, BlockId)>>>,
}

/// Flights that count only together.
#[derive(Debug)]
pub(crate) struct Batch {
    pub seq: Option<SeqId>,
    pub flights: Vec<Flight>,
    /// Those that have not ended.
    pub pending: Vec<bool>,
    pub has_failed: bool,
}

impl Cache {
    /// A sequence whose prefix must be brought up first. `seq.node` is pinned on the device.
    pub(crate) fn begin_restore(
        &mut self,
        walk: &Walk,
        at: usize,
        seq: Sequence,
    ) -> Result<(SeqId, Vec<Op>), NoRoom> {
        let end_node = self.node_ending(seq.node, at);
        let segments = self.segments(walk, at, self.saved_tier(end_node));
        let is_state = |kind: Kind| kind == Kind::Recurrent;
        let groups = self.layout.groups.iter();
        let state_bytes: u64 = groups.filter(|g| is_state(g.kind)).map(|g| g.bytes).sum();
        let row_bytes: u64 = segments.iter().map(|s| self.segment_bytes(s)).sum();
        self.make_room(Tier::Device, state_bytes + row_bytes)?;
        let mut tables = vec![Table::default(); self.layout.groups.len()];
        for (group, table) in tables.iter_mut().enumerate() {
            if is_state(self.layout.groups[group].kind) {
                table.blocks.push(self.blocks.pool(Tier::Device, group).alloc());
            }
        }
        let node = seq.node;
        let flights = segments
            .iter()
            .map(|s| self.take_off(node, s.tier, Tier::Device, (s.from, s.to), s.has_saved));
        let flights = flights.collect::<Vec<_>>();
        let pending = vec![true; flights.len()];
        let batch = self.batches.insert(Batch { seq: None, flights, pending, has_failed: false });
        let seq = SeqId(self.seqs.insert(Sequence { tables, restore: Some(batch), ..seq }));
        let batch_now = &mut self.batches[batch];
        batch_now.seq = Some(seq);
        let n_flights = batch_now.flights.len();
        let ops = (0..n_flights).map(|idx| Op::Restore(self.transfer(batch, idx))).collect();
        Ok((seq, ops))
    }

    /// Allocates the destination, for which there is room, and pins both ends.
    fn take_off(
        &mut self,
        node: Handle,
        from: Tier,
        to: Tier,
        range: (usize, usize),
        has_saved: bool,
    ) -> Flight {
        let (start, end) = range;
        let node = self.trie.ancestor_at(node, end);
        self.lock(node, from);
        self.lock(node, to);
        let block_tokens = self.layout.block_tokens;
        let first_idx = start / block_tokens;
        let sources = match end > start {
            true => self.path_rows(node, from, first_idx, end),
            false => Vec::new(),
        };
        let n_full = self.layout.full.len();
        let mut rows = Vec::with_capacity(sources.len());
        for (k, source) in sources.into_iter().enumerate() {
            let (idx, group) = (first_idx + k / n_full, self.layout.full[k % n_full]);
            let n_rows = (end - idx * block_tokens).min(block_tokens);
            rows.push((source, self.book(from, to, group, source, n_rows)));
        }
        let saved = self.trie.nodes[node].saved[from.idx()].as_ref();
        let saved = saved.filter(|_| has_saved).map(|s| s.blocks.clone());
        let saved = saved.map(|groups| {
            let per_group = groups.into_iter().enumerate().map(|(group, ids)| {
                let first_idx = self.layout.saved_blocks(group, end).start;
                let ids = ids.into_iter().enumerate().map(|(k, source)| {
                    let n_rows =
                        (end - ((first_idx + k) * block_tokens).min(end)).min(block_tokens);
                    (source, self.book(from, to, group, source, n_rows))
                });
                ids.collect()
            });
            per_group.collect()
        });
        let flight = Flight { node, from, to, start, end, rows, saved };
        if to == Tier::Disk {
            let extent = self.blocks.extents.new_id();
            self.put(&flight, extent, |_| true);
        }
        flight
    }

    /// Gives the destinations of a flight to disk their places, one after the other; skips pieces
    /// that nobody needs.
    pub(crate) fn put(
        &mut self,
        flight: &Flight,
        extent: ExtentId,
        is_needed: impl Fn(BlockId) -> bool,
    ) {
        let mut offset = 0;
        for Item { group, to, .. } in self.items(flight) {
            let n_bytes = self.layout.groups[group].bytes;
            if is_needed(to) {
                self.blocks.extents.put(group, to, Place { extent, offset, n_bytes });
            }
            offset += n_bytes;
        }
    }

    /// Keeps `source` and gives it a destination.
    fn book(
        &mut self,
        from: Tier,
        to: Tier,
        group: usize,
        source: BlockId,
        n_rows: usize,
    ) -> BlockId {
        self.blocks.pool(from, group).enliven(source);
        let pool = self.blocks.pool(to, group);
        let id = pool.alloc();
        pool.get_mut(id).n_rows = n_rows as u32;
        id
    }

    fn transfer(&self, batch: Handle, idx: usize) -> Transfer {
        let flight = &self.batches[batch].flights[idx];
        let items = self.items(flight);
        let bytes = items.iter().map(|i| self.layout.groups[i.group].bytes);
        Transfer {
            id: TransferId(batch, idx as u32),
            from: flight.from,
            to: flight.to,
            n_bytes: bytes.sum(),
            items,
        }
    }

    fn item(
        &self,
        flight: &Flight,
        group: usize,
        (from, to): (BlockId, BlockId),
        n_tokens: usize,
    ) -> Item {
        let extents = &self.blocks.extents;
        let place = match (flight.from, flight.to) {
            (Tier::Disk, _) => extents.get(group, from),
            (_, Tier::Disk) => extents.get(group, to),
            _ => None,
        };
        Item { group, from, to, n_tokens, place }
    }

    pub(crate) fn items(&self, flight: &Flight) -> Vec<Item> {
        let (block_tokens, n_full) = (self.layout.block_tokens, self.layout.full.len());
        let first_idx = flight.start / block_tokens;
        let n_tokens = |idx: usize| (flight.end - idx * block_tokens).min(block_tokens);
        let rows = flight.rows.iter().enumerate().map(|(k, pair)| {
            let group = self.layout.full[k % n_full];
            self.item(flight, group, *pair, n_tokens(first_idx + k / n_full))
        });
        let mut items = rows.collect::<Vec<_>>();
        for (group, pairs) in flight.saved.iter().flatten().enumerate() {
            let indices = self.layout.saved_blocks(group, flight.end);
            let is_state = self.layout.groups[group].kind == Kind::Recurrent;
            for (idx, pair) in indices.zip(pairs) {
                let n_tokens = if is_state { 0 } else { n_tokens(idx) };
                items.push(self.item(flight, group, *pair, n_tokens));
            }
        }
        items
    }

    /// A transfer has ended, well or not; one that is not known, or has ended, is ignored. Returns
    /// what is to be done before a sequence that waited for it goes on.
    pub fn finish(&mut self, id: TransferId, is_ok: bool, now: Tick) -> Vec<Op> {
        self.now = now;
        let TransferId(handle, idx) = id;
        let Some(batch) = self.batches.get_mut(handle) else { return Vec::new() };
        let Some(pending @ true) = batch.pending.get_mut(idx as usize) else { return Vec::new() };
        *pending = false;
        batch.has_failed |= !is_ok;
        self.stats.n_transfers[usize::from(!is_ok)] += 1;
        if batch.pending.contains(&true) {
            return Vec::new();
        }
        let Some(batch) = self.batches.remove(handle) else { return Vec::new() };
        for flight in batch.flights.iter().filter(|_| !batch.has_failed) {
            self.land(flight);
        }
        let waiting = batch.seq.filter(|seq| self.seqs.get(seq.0).is_some());
        let ops = waiting.map_or_else(Vec::new, |seq| self.settle(seq));
        for flight in batch.flights {
            self.release(flight);
        }
        self.after();
        ops
    }

    /// What has been brought enters the trie.
    pub(crate) fn land(&mut self, flight: &Flight) {
        if self.trie.orphans.contains(&self.trie.root_of(flight.node)) {
            return;
        }
        let first_idx = flight.start / self.layout.block_tokens;
        let blocks = flight.rows.iter().map(|r| r.1).collect::<Vec<_>>();
        let rows = Rows { first_idx, blocks: &blocks };
        let end_node = match flight.saved {
            Some(_) => self.node_ending(flight.node, flight.end),
            None => self.trie.ancestor_at(flight.node, flight.end),
        };
        let mut path = Vec::new();
        let mut at = Some(end_node).filter(|_| flight.end > flight.start);
        while let Some(here) = at.filter(|n| self.trie.nodes[*n].end() > flight.start) {
            path.push(here);
            at = self.trie.nodes[here].parent;
        }
        for here in path.into_iter().rev() {
            let end = self.trie.nodes[here].end().min(flight.end);
            self.extend(here, flight.to, end, &rows);
        }
        let has_none = self.trie.nodes[end_node].saved[flight.to.idx()].is_none();
        if let Some(saved) = flight.saved.as_ref().filter(|_| has_none) {
            let ids = saved.iter().map(|pairs| pairs.iter().map(|p| p.1).collect());
            self.save(end_node, flight.to, ids.collect());
        } else if flight.saved.is_none() {
            self.queue_copy(end_node, flight.to);
            if flight.from < flight.to {
                // A long run goes down in parts.
                self.queue_copy(flight.node, flight.from);
            }
        }
    }

    /// Whether rows on the way to the end of `node` are on their way down to `to`.
    fn is_in_flight(&self, node: Handle, to: Tier) -> bool {
        let end = self.trie.nodes[node].end();
        self.batches.iter().flat_map(|(_, batch)| &batch.flights).any(|flight| {
            let (other, other_end) = (flight.node, self.trie.nodes[flight.node].end());
            let (upper, lower) = if end < other_end { (node, other) } else { (other, node) };
            let at = self.trie.nodes[upper].end();
            flight.to == to && flight.from < to && self.trie.ancestor_at(lower, at) == upper
        })
    }

    fn release(&mut self, flight: Flight) {
        let Flight { node, from, to, rows, saved, .. } = flight;
        let n_full = self.layout.full.len();
        for (k, (source, destination)) in rows.into_iter().enumerate() {
            let group = self.layout.full[k % n_full];
            self.blocks.drop_live(from, group, source);
            self.blocks.drop_live(to, group, destination);
        }
        for (group, pairs) in saved.into_iter().flatten().enumerate() {
            for (source, destination) in pairs {
                self.blocks.drop_live(from, group, source);
                self.blocks.drop_live(to, group, destination);
            }
        }
        let root = self.trie.root_of(node);
        self.unlock(node, from);
        // Dropping the first pin may have dropped the tree, but not a path that is still pinned.
        self.unlock(node, to);
        self.drop_empty_root(root);
    }

    /// Puts a sequence that waited on the best the device has by now: what it waited for, or less.
    fn settle(&mut self, id: SeqId) -> Vec<Op> {
        let seq = &mut self.seqs[id.0];
        seq.restore = None;
        let (node, states) = (seq.node, std::mem::take(&mut seq.tables));
        let wanted = (seq.pos, seq.kv_until.min(self.trie.covered_to(node, 0)));
        let max = seq.prompt.len().saturating_sub(1);
        let mut places = vec![(0, 0)];
        if !self.layout.needs_checkpoints() {
            places.push((wanted.1.min(max) / self.layout.stride * self.layout.stride, wanted.1));
        } else {
            places.push((0, wanted.1));
            let mut at = Some(self.trie.ancestor_at(node, wanted.0));
            while let Some(here) = at {
                if self.trie.nodes[here].saved[0].is_some() {
                    places.push((self.trie.nodes[here].end(), wanted.1));
                    break;
                }
                at = self.trie.nodes[here].parent;
            }
        }
        for (at, kv_until) in places.into_iter().rev() {
            let seated = self.node_ending(node, kv_until);
            self.lock(seated, Tier::Device);
            let Ok((tables, ops)) = self.seat(seated, at, kv_until, Some(states.clone())) else {
                self.unlock(seated, Tier::Device);
                continue;
            };
            let seq = &mut self.seqs[id.0];
            (seq.node, seq.pos, seq.kv_until, seq.tables) = (seated, at, kv_until, tables);
            self.unlock(node, Tier::Device);
            return ops;
        }
        unreachable!("beginning with nothing needs no room: the states were allocated before")
    }

    /// Notes that a node has something that the tier below may not have.
    pub(crate) fn queue_copy(&mut self, node: Handle, tier: Tier) {
        let has_below = self.below(tier).is_some();
        let is_queued = &mut self.trie.nodes[node].is_queued[tier.idx()];
        if has_below && !std::mem::replace(is_queued, true) {
            self.copies.push_back((node, tier));
        }
    }

    /// The next tier that has a budget.
    fn below(&self, tier: Tier) -> Option<Tier> {
        let lower = Tier::ALL.into_iter().filter(|t| *t > tier);
        lower.into_iter().find(|t| self.blocks.store(*t).budget > 0)
    }

    /// What should be copied down next: about `max_bytes`, the oldest first. A checkpoint goes in
    /// one piece with the rows it needs, whatever its size.
    pub fn next_copies(&mut self, max_bytes: u64, now: Tick) -> Vec<Transfer> {
        self.now = now;
        let (mut transfers, mut n_bytes) = (Vec::new(), 0);
        for _ in 0..self.copies.len() {
            if n_bytes >= max_bytes {
                break;
            }
            let Some((node, from)) = self.copies.pop_front() else { break };
            let Some(to) = self.below(from) else { continue };
            if self.trie.nodes.get(node).is_some() && self.is_in_flight(node, to) {
                self.copies.push_back((node, from));
                continue;
            }
            let Some(here) = self.trie.nodes.get_mut(node) else { continue };
            here.is_queued[from.idx()] = false;
            if let Some(batch) = self.copy_down(node, from, to, max_bytes - n_bytes) {
                let transfer = self.transfer(batch, 0);
                n_bytes += transfer.n_bytes;
                transfers.push(transfer);
            }
        }
        self.after();
        transfers
    }

    fn copy_down(&mut self, node: Handle, from: Tier, to: Tier, max_bytes: u64) -> Option<Handle> {
        let here = &self.trie.nodes[node];
        let block_tokens = self.layout.block_tokens;
        let has_saved = self.layout.needs_checkpoints();
        let mut end = self.trie.covered_to(node, from.idx());
        let start = self.trie.covered_to(node, to.idx()).min(end);
        if has_saved && (here.saved[from.idx()].is_none() || here.saved[to.idx()].is_some()) {
            return None;
        }
        if !has_saved {
            let last = self.trie.ancestor_at(node, end);
            if self.trie.nodes[last].n_locks[from.idx()] > 0 {
                // Its last block may still grow; it follows when the sequence ends.
                end -= end % block_tokens;
            }
            let n_blocks = (max_bytes / self.layout.full_bytes()).max(1) as usize;
            let until = n_blocks.saturating_add(start / block_tokens);
            end = end.min(until.saturating_mul(block_tokens));
            if end <= start {
                return None;
            }
        }
        self.lock(node, to);
        let segment = Segment { tier: from, from: start, to: end, has_saved };
        let room = self.make_room(to, self.segment_bytes(&segment));
        let flight = room.is_ok().then(|| self.take_off(node, from, to, (start, end), has_saved));
        self.unlock(node, to);
        let flights = vec![flight?];
        let pending = vec![true];
        Some(self.batches.insert(Batch { seq: None, flights, pending, has_failed: false }))
    }
}
