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

    /// Enters what an index says is on disk: an extent that a transfer wrote, by its record. Those
    /// with what lies before `record.start` must come first. False if the extent is of no use: its
    /// beginning is missing, or others have all of it. The owner deletes it then.
    ///
    /// # Errors
    /// `NoRoom` if the disk tier's budget does not allow it; nothing has changed then.
    pub fn adopt(&mut self, record: &Record, extent: ExtentId, now: Tick) -> Result<bool, NoRoom> {
        self.now = now;
        let (disk, tokens, end) = (Tier::Disk, &record.tokens[..], record.tokens.len());
        let walk = self.trie.walk(record.ns, tokens);
        let covered = walk.covered[disk.idx()];
        let known = walk.node_at(&self.trie, covered);
        let here = known.map(|node| &self.trie.nodes[node]);
        let is_saved =
            covered == end && here.is_some_and(|h| h.end() == end && h.saved[disk.idx()].is_some());
        let has_saved = self.layout.needs_checkpoints() && !is_saved;
        let is_of_use = covered >= record.start && (covered < end || has_saved) && end > 0;
        self.blocks.extents.adopt(extent);
        if !is_of_use || self.blocks.extents.knows(extent) {
            return Ok(false);
        }
        let segment = Segment { tier: disk, from: covered, to: end, has_saved };
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
        self.enter(node, covered, record, has_saved, extent);
        self.unlock(node, disk);
        self.unlock(known, disk);
        self.after();
        Ok(true)
    }

    /// Gives the path to `node` rows on disk from token `covered` on, and a checkpoint.
    fn enter(
        &mut self,
        node: Handle,
        covered: usize,
        record: &Record,
        has_saved: bool,
        extent: ExtentId,
    ) {
        let (disk, start, end) = (Tier::Disk, record.start, record.tokens.len());
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
        let saved = self.layout.needs_checkpoints().then(|| {
            let ids = |group: usize| {
                let indices = self.layout.saved_blocks(group, end);
                pairs(indices.map(|_| new(group, has_saved)).collect())
            };
            (0..self.layout.groups.len()).map(ids).collect()
        });
        let (from, to, rows) = (disk, disk, pairs(rows));
        let mut flight = Flight { node, from, to, start, end, rows, saved };
        self.put(&flight, extent, |id| id != unused);
        let items = self.items(&flight);
        if !has_saved {
            flight.saved = None;
        }
        self.land(&flight);
        for item in items.into_iter().filter(|item| item.to != unused) {
            self.blocks.drop_live(disk, item.group, item.to);
        }
    }
}
