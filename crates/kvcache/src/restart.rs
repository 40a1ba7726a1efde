//! What survives the process: the record of each extent, and entering it again. A record is enough:
//! pieces lie in an extent in the order of its transfer's items.

use crate::arena::Handle;
use crate::blocks::BlockId;
use crate::cache::{Cache, NoRoom};
use crate::evict::{Class, Tick};
use crate::extents::ExtentId;
use crate::layout::{Ns, Tier, Token};
use crate::reason::Segment;
use crate::tiers::{Flight, TransferId};

/// What an index keeps of an extent, so that a later process finds what is in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Whose.
    pub ns: Ns,
    /// The whole prefix.
    pub tokens: Vec<Token>,
    /// Tokens whose rows lie in other extents. The block that `start` falls into is whole here.
    pub start: usize,
    /// Why its checkpoint is there.
    pub class: Class,
}

impl Cache {
    /// What the index should keep of a running transfer to disk.
    pub fn record(&self, id: TransferId) -> Option<Record> {
        let flight = self.batches.get(id.0)?.flights.get(id.1 as usize)?;
        let root = self.trie.root_of(flight.node);
        let (ns, _) = self.trie.roots.iter().find(|(_, r)| **r == root)?;
        let mut edges = Vec::new();
        let mut at = Some(self.trie.ancestor_at(flight.node, flight.end));
        let class = at.map_or(Class::Interior, |node| self.trie.nodes[node].class);
        while let Some(here) = at {
            let here = &self.trie.nodes[here];
            edges.push(here.edge.tokens());
            at = here.parent;
        }
        edges.reverse();
        let mut tokens = edges.concat();
        tokens.truncate(flight.end);
        Some(Record { ns: *ns, tokens, start: flight.start, class })
    }

    /// Enters all that an index says is on disk: extents, their records, and how many bytes of
    /// pieces are left of each. Those with what lies before `record.start` should come first.
    /// Returns those that are of no use, or have no room: the owner deletes them.
    pub fn adopt_all(
        &mut self,
        found: impl Iterator<Item = (Record, ExtentId, u64)>,
        now: Tick,
    ) -> Vec<ExtentId> {
        let mut is_refused = |(record, id, piece_bytes): &(Record, ExtentId, u64)| {
            !self.adopt(record, *id, *piece_bytes, now).unwrap_or(false)
        };
        let mut refused = found.filter(&mut is_refused).collect::<Vec<_>>();
        // Rows that another has, too, may have been cut off here: what builds on them waits for it.
        loop {
            let n_before = refused.len();
            refused.retain(&mut is_refused);
            if refused.len() == n_before {
                break;
            }
        }
        self.adopted(now);
        refused.into_iter().map(|(_, id, _)| id).collect()
    }

    /// Enters an extent that a transfer wrote, by its record, or the `piece_bytes` of it that are
    /// left. Those with what lies before `record.start` must come first, and after the last comes
    /// [`Cache::adopted`]. False if the extent is of no use: its
    /// beginning is missing, or others have all of it. The owner deletes it then.
    ///
    /// # Errors
    /// `NoRoom` if the disk tier's budget does not allow it; nothing has been entered then.
    pub fn adopt(
        &mut self,
        record: &Record,
        extent: ExtentId,
        piece_bytes: u64,
        now: Tick,
    ) -> Result<bool, NoRoom> {
        self.now = now;
        let disk = Tier::Disk;
        let (end, is_whole) = self.left_of(record, piece_bytes);
        let tokens = &record.tokens[..end];
        let walk = self.trie.walk(record.ns, tokens);
        let covered = walk.covered[disk.idx()];
        let known = walk.node_at(&self.trie, covered);
        let here = known.map(|node| &self.trie.nodes[node]);
        let is_saved =
            covered == end && here.is_some_and(|h| h.end() == end && h.saved[disk.idx()].is_some());
        let has_saved = self.layout.needs_checkpoints() && is_whole && !is_saved;
        // The block that it starts in is whole in it, if it has rows.
        let block_tokens = self.layout.block_tokens;
        let first = match record.start < record.tokens.len() {
            true => record.start / block_tokens * block_tokens,
            false => record.start,
        };
        let is_reached = covered >= first || self.layout.full.is_empty();
        let is_of_use = is_reached && (covered < end || has_saved) && end > 0;
        self.blocks.extents.adopt(extent);
        if !is_of_use || self.blocks.extents.knows(extent) {
            return Ok(false);
        }
        let start = record.start.min(covered);
        let segment = Segment { tier: disk, from: start, to: end, has_saved };
        let root = self.trie.root(record.ns);
        let known = known.unwrap_or(root);
        self.lock(known, disk);
        let room = self.make_room(disk, self.segment_bytes(&segment));
        if let Err(error) = room {
            self.unlock(known, disk);
            self.drop_empty_root(root);
            return Err(error);
        }
        let seen = walk.node_at(&self.trie, walk.seen).unwrap_or(root);
        let mut node = self.node_ending(seen, walk.seen);
        if walk.seen < end {
            node = self.trie.add_child(node, &tokens[walk.seen..]);
        }
        self.lock(node, disk);
        if has_saved {
            self.trie.nodes[node].class = record.class;
        }
        let saved = (self.layout.needs_checkpoints() && is_whole).then_some(has_saved);
        self.enter(node, covered, (start, end), saved, extent);
        self.blocks.extents.has(extent, piece_bytes);
        if self.layout.needs_checkpoints() && self.trie.nodes[node].saved[disk.idx()].is_none() {
            // What uses its rows comes later.
            self.entered.push(node);
        } else {
            self.unlock(node, disk);
        }
        self.unlock(known, disk);
        self.after();
        Ok(true)
    }

    /// All that an index says has been entered: rows that nothing uses go.
    pub fn adopted(&mut self, now: Tick) {
        self.now = now;
        for node in std::mem::take(&mut self.entered) {
            self.unlock(node, Tier::Disk);
        }
        self.after();
    }

    /// Up to which token `piece_bytes` of an extent have its rows, and whether all of it is there.
    fn left_of(&self, record: &Record, piece_bytes: u64) -> (usize, bool) {
        let (start, end) = (record.start, record.tokens.len());
        let has_saved = self.layout.needs_checkpoints();
        let whole = Segment { tier: Tier::Disk, from: start, to: end, has_saved };
        if piece_bytes >= self.segment_bytes(&whole) {
            return (end, true);
        }
        let n_blocks = piece_bytes.checked_div(self.layout.full_bytes()).unwrap_or(0) as usize;
        let until = (start / self.layout.block_tokens + n_blocks) * self.layout.block_tokens;
        (end.min(until), false)
    }

    /// Gives the path to `node` rows on disk from token `covered` on, and a checkpoint. `saved`
    /// says whether the extent has one, and whether that is needed.
    fn enter(
        &mut self,
        node: Handle,
        covered: usize,
        (start, end): (usize, usize),
        saved: Option<bool>,
        extent: ExtentId,
    ) {
        let disk = Tier::Disk;
        let first_idx = start / self.layout.block_tokens;
        let end_idx = if end > start { self.layout.n_blocks(end) } else { first_idx };
        let needed_idx = if end > covered { covered / self.layout.block_tokens } else { end_idx };
        // Names for pieces that are not needed stay out of all counts: nothing refers to them.
        let unused = BlockId(u32::MAX);
        let mut new = |group: usize, is_needed: bool| match is_needed {
            true => self.blocks.pool(disk, group).alloc(),
            false => unused,
        };
        let mut rows = Vec::new();
        for idx in first_idx..end_idx {
            rows.extend(self.layout.full.iter().map(|g| new(*g, idx >= needed_idx)));
        }
        let pairs = |ids: Vec<BlockId>| ids.into_iter().map(|id| (id, id)).collect::<Vec<_>>();
        let saved_pairs = saved.map(|is_needed| {
            let ids = |group: usize| {
                let indices = self.layout.saved_blocks(group, end);
                pairs(indices.map(|_| new(group, is_needed)).collect())
            };
            (0..self.layout.groups.len()).map(ids).collect()
        });
        let (from, to, rows) = (disk, disk, pairs(rows));
        let mut flight = Flight { node, from, to, start, end, rows, saved: saved_pairs };
        self.put(&flight, extent, |id| id != unused);
        let items = self.items(&flight);
        if saved != Some(true) {
            flight.saved = None;
        }
        self.land(&flight);
        for item in items.into_iter().filter(|item| item.to != unused) {
            self.blocks.drop_live(disk, item.group, item.to);
        }
    }
}
