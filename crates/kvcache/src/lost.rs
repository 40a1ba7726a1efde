//! Extents whose bytes turned out not to be what was written, or cannot be read: they go, with all
//! that builds on them, and nothing else does.

use std::collections::BTreeSet;

use crate::arena::Handle;
use crate::blocks::BlockId;
use crate::cache::Cache;
use crate::evict::Tick;
use crate::extents::ExtentId;
use crate::layout::Tier;

const DISK: Tier = Tier::Disk;

impl Cache {
    /// Forgets what lies in extents on disk, and below it what cannot be used without. What other
    /// tiers have of it stays. Rows that a transfer is just moving stay until they fail again.
    pub fn lose(&mut self, extents: &[ExtentId], now: Tick) {
        self.now = now;
        let extents = extents.iter().copied().collect::<BTreeSet<_>>();
        let roots = self.trie.roots.values().chain(&self.trie.orphans).copied();
        let mut order = roots.map(|root| (root, false)).collect::<Vec<_>>();
        let mut next = 0;
        while let Some(&(node, above_is_lost)) = order.get(next) {
            let is_lost = above_is_lost || self.n_whole(node, &extents).is_some();
            order.extend(self.trie.nodes[node].children.iter().map(|c| (c.1, is_lost)));
            next += 1;
        }
        // Children come after their parents, so backwards they go first.
        for (node, above_is_lost) in order.into_iter().rev() {
            let whole = self.n_whole(node, &extents);
            let end = if above_is_lost { Some(0) } else { whole };
            if end.is_some() || self.is_saved_in(node, &extents) {
                self.unsave(node, DISK);
            }
            let here = &self.trie.nodes[node];
            let is_free =
                here.n_locks[DISK.idx()] == 0 && here.n_resident_children[DISK.idx()] == 0;
            if let Some(end) = end.filter(|_| is_free) {
                self.shrink(node, DISK, end);
            }
            self.prune(node, DISK);
        }
        self.after();
    }

    /// Tokens up to the first of a node's blocks that lies in one of the extents, if any does.
    fn n_whole(&self, node: Handle, extents: &BTreeSet<ExtentId>) -> Option<usize> {
        let here = &self.trie.nodes[node];
        let full = &self.layout.full;
        let mut blocks = here.runs[DISK.idx()].blocks.iter().enumerate();
        let is_in = |(k, id): (usize, &BlockId)| self.lies_in(full[k % full.len()], *id, extents);
        let at = blocks.position(is_in)?;
        let block_tokens = self.layout.block_tokens;
        Some((here.start / block_tokens + at / full.len()) * block_tokens)
    }

    fn is_saved_in(&self, node: Handle, extents: &BTreeSet<ExtentId>) -> bool {
        let groups = self.trie.nodes[node].saved[DISK.idx()].iter().flat_map(|saved| &saved.blocks);
        let mut ids =
            groups.enumerate().flat_map(|(group, ids)| ids.iter().map(move |i| (group, i)));
        ids.any(|(group, id)| self.lies_in(group, *id, extents))
    }

    fn lies_in(&self, group: usize, id: BlockId, extents: &BTreeSet<ExtentId>) -> bool {
        let place = self.blocks.extents.get(group, id);
        place.is_some_and(|place| extents.contains(&place.extent))
    }
}
