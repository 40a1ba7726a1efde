//! What nodes have in the tiers: rows come at the end of a path and go from the end of a leaf, so
//! each tier holds a smaller tree of the same root. Pins keep a path in a tier from shrinking.

use crate::arena::Handle;
use crate::blocks::BlockId;
use crate::cache::{Cache, Owner};
use crate::layout::Tier;
use crate::trie::Saved;

/// Blocks of consecutive indices, one of each full group per index.
pub(crate) struct Rows<'a> {
    pub first_idx: usize,
    pub blocks: &'a [BlockId],
}

impl Cache {
    fn n_full(&self) -> usize {
        self.layout.full.len()
    }

    /// Pins the path to `node` in `tier`: its blocks are live until `unlock`.
    pub(crate) fn lock(&mut self, node: Handle, tier: Tier) {
        let mut at = Some(node);
        while let Some(here) = at {
            self.lock_one(here, tier);
            at = self.trie.nodes[here].parent;
        }
    }

    pub(crate) fn lock_one(&mut self, node: Handle, tier: Tier) {
        let here = &mut self.trie.nodes[node];
        here.n_locks[tier.idx()] += 1;
        if here.n_locks[tier.idx()] == 1 {
            for (k, id) in here.runs[tier.idx()].blocks.iter().enumerate() {
                let group = self.layout.full[k % self.layout.full.len()];
                self.blocks.pool(tier, group).enliven(*id);
            }
        }
    }

    /// Takes the pin back and drops what no checkpoint can use any more.
    pub(crate) fn unlock(&mut self, node: Handle, tier: Tier) {
        let mut at = Some(node);
        while let Some(here) = at {
            self.unlock_one(here, tier);
            at = self.trie.nodes[here].parent;
        }
        self.prune(node, tier);
        let root = self.trie.root_of(node);
        self.bury(node);
        if self.trie.orphans.contains(&root) {
            self.drop_tree(root);
        }
    }

    /// As `unlock`, for a node whose path above stays pinned.
    pub(crate) fn unlock_one(&mut self, node: Handle, tier: Tier) {
        let here = &mut self.trie.nodes[node];
        here.n_locks[tier.idx()] -= 1;
        if here.n_locks[tier.idx()] > 0 {
            return;
        }
        for (k, id) in here.runs[tier.idx()].blocks.iter().enumerate() {
            let group = self.layout.full[k % self.layout.full.len()];
            self.blocks.drop_live(tier, group, *id);
        }
        self.name_units(node, tier);
    }

    /// Tells the policy of indices that came while the node was pinned, the deepest first: what
    /// comes first is the first to go.
    fn name_units(&mut self, node: Handle, tier: Tier) {
        let run = &self.trie.nodes[node].runs[tier.idx()];
        if self.layout.needs_checkpoints() {
            return;
        }
        let n_named = run.units.len();
        let n_indices = run.blocks.len() / self.n_full();
        if n_named == n_indices {
            return;
        }
        let mut named = Vec::with_capacity(n_indices - n_named);
        let keys = self.block_keys(node, n_named);
        let first_idx = self.trie.nodes[node].start / self.layout.block_tokens;
        for offset in (n_named..n_indices).rev() {
            let unit = self.value_of_block(node, first_idx + offset, keys[offset - n_named]);
            let id = self.units.insert(Owner { node, tier }).into();
            self.policies[tier.idx()].insert(id, unit, self.now);
            named.push(id);
        }
        let run = &mut self.trie.nodes[node].runs[tier.idx()];
        run.units.extend(named.into_iter().rev());
    }

    /// Covers the path's tokens up to `to` within `node`, which is pinned, with `rows`. What is
    /// covered already stays, but for a last block of fewer rows.
    pub(crate) fn extend(&mut self, node: Handle, tier: Tier, to: usize, rows: &Rows) {
        let (block_tokens, n_full) = (self.layout.block_tokens, self.n_full());
        let here = &mut self.trie.nodes[node];
        let (start, covered) = (here.start, here.covered(tier.idx()));
        assert!(to <= here.end() && here.n_locks[tier.idx()] > 0, "a pinned node takes its rows");
        if to <= covered {
            return;
        }
        let n_known = here.n_known();
        self.trie.n_bare -= usize::from(n_known == 0);
        let is_first = covered == start;
        let run = &mut here.runs[tier.idx()];
        let first_idx = start / block_tokens;
        let from_idx = covered / block_tokens;
        for idx in from_idx..self.layout.n_blocks(to) {
            for (k, group) in self.layout.full.iter().enumerate() {
                let id = rows.blocks[(idx - rows.first_idx) * n_full + k];
                let at = (idx - first_idx) * n_full + k;
                let pool = self.blocks.pool(tier, *group);
                match run.blocks.get_mut(at) {
                    Some(old) if *old == id => {}
                    Some(old) => {
                        pool.enliven(id);
                        pool.hold(id);
                        let old = std::mem::replace(old, id);
                        self.blocks.drop_live(tier, *group, old);
                        self.blocks.drop_held(tier, *group, old);
                    }
                    None => {
                        pool.enliven(id);
                        pool.hold(id);
                        run.blocks.push(id);
                    }
                }
            }
        }
        run.n_tokens = to - start;
        self.trie.n_known_tokens += here.n_known() - n_known;
        if is_first && let Some(parent) = here.parent {
            let above = &mut self.trie.nodes[parent];
            self.trie.n_bare -= usize::from(above.is_bare());
            above.n_resident_children[tier.idx()] += 1;
        }
    }

    /// Takes rows from the end of an unpinned node until it covers no more than the path's tokens
    /// up to `to`.
    pub(crate) fn shrink(&mut self, node: Handle, tier: Tier, to: usize) {
        let n_full = self.n_full();
        let here = &mut self.trie.nodes[node];
        let (start, covered) = (here.start, here.covered(tier.idx()));
        assert!(here.n_locks[tier.idx()] == 0, "a pinned path keeps its rows");
        assert!(here.n_resident_children[tier.idx()] == 0, "rows go from the end of a leaf");
        if covered <= to.max(start) {
            return;
        }
        let n_known = here.n_known();
        let run = &mut here.runs[tier.idx()];
        run.n_tokens = to.max(start) - start;
        let first_idx = start / self.layout.block_tokens;
        let n_indices = match run.n_tokens {
            0 => 0,
            n => self.layout.n_blocks(start + n) - first_idx,
        };
        let is_empty = n_indices == 0;
        for id in run.units.drain(n_indices.min(run.units.len())..) {
            self.policies[tier.idx()].remove(id);
            self.units.remove(id.into());
        }
        for (k, id) in run.blocks.drain(n_indices * n_full..).enumerate() {
            self.blocks.drop_held(tier, self.layout.full[k % n_full], id);
        }
        if is_empty {
            // What is only remembered holds nothing in reserve.
            (run.blocks, run.units) = (Vec::new(), Vec::new());
        }
        self.trie.n_known_tokens -= n_known - here.n_known();
        self.trie.n_bare += usize::from(here.n_known() == 0);
        if is_empty && let Some(parent) = here.parent {
            let above = &mut self.trie.nodes[parent];
            above.n_resident_children[tier.idx()] -= 1;
            self.trie.n_bare += usize::from(above.is_bare());
        }
        self.bury(node);
    }

    /// Makes a node end at `at` on the path to `node` and returns it. Nothing but the shape of the
    /// trie changes: both parts refer to the block they share.
    pub(crate) fn node_ending(&mut self, node: Handle, at: usize) -> Handle {
        let lower = self.trie.ancestor_at(node, at);
        if self.trie.nodes[lower].end() == at {
            return lower;
        }
        let upper = self.trie.cut(lower, at);
        self.trie.nodes[upper].n_locks = self.trie.nodes[lower].n_locks;
        for tier in Tier::ALL {
            self.cut_run(lower, upper, tier, at);
        }
        // The upper part came bare. It has rows now if there were any, and the lower may have none.
        self.trie.n_bare -= usize::from(self.trie.nodes[lower].n_known() > 0);
        upper
    }

    fn cut_run(&mut self, lower: Handle, upper: Handle, tier: Tier, at: usize) {
        let (block_tokens, n_full) = (self.layout.block_tokens, self.n_full());
        let t = tier.idx();
        let mut low = std::mem::take(&mut self.trie.nodes[lower].runs[t]);
        let start = self.trie.nodes[upper].start;
        let n_upper = low.n_tokens.min(at - start);
        let n_lower = low.n_tokens - n_upper;
        let first_idx = start / block_tokens;
        // Indices below `cut_idx` go up; the one that both parts have tokens in goes to both.
        let cut_idx = if n_lower > 0 { at / block_tokens } else { self.layout.n_blocks(at) };
        let n_up = (cut_idx.saturating_sub(first_idx)).min(low.blocks.len() / n_full.max(1));
        let below = low.blocks.split_off(n_up * n_full);
        let units_below = low.units.split_off(n_up.min(low.units.len()));
        let (mut up, shared) =
            (low, if n_lower > 0 && !at.is_multiple_of(block_tokens) { n_full } else { 0 });
        let is_locked = self.trie.nodes[upper].n_locks[t] > 0;
        for (k, id) in below.iter().take(shared).enumerate() {
            let pool = self.blocks.pool(tier, self.layout.full[k]);
            pool.hold(*id);
            if is_locked {
                pool.enliven(*id);
            }
            up.blocks.push(*id);
        }
        up.n_tokens = n_upper;
        for id in &up.units {
            self.units[(*id).into()].node = upper;
        }
        let node = &mut self.trie.nodes[upper];
        node.runs[t] = up;
        node.n_resident_children[t] = u32::from(n_lower > 0);
        let node = &mut self.trie.nodes[lower];
        node.runs[t] = crate::trie::Run { n_tokens: n_lower, blocks: below, units: units_below };
        if !is_locked {
            self.name_units(upper, tier);
        }
    }

    /// The blocks of [`from_idx`, n_blocks(`to`)) on the path to `node`, all covered in `tier`.
    pub(crate) fn path_rows(
        &self,
        node: Handle,
        tier: Tier,
        from_idx: usize,
        to: usize,
    ) -> Vec<BlockId> {
        let (block_tokens, n_full) = (self.layout.block_tokens, self.n_full());
        let mut end_idx = self.layout.n_blocks(to);
        let mut rows = vec![BlockId(u32::MAX); end_idx.saturating_sub(from_idx) * n_full];
        let mut at = Some(self.trie.ancestor_at(node, to));
        while let Some(here) = at
            && end_idx > from_idx
        {
            let here = &self.trie.nodes[here];
            let first_idx = (here.start / block_tokens).max(from_idx);
            let run = &here.runs[tier.idx()];
            if run.n_tokens > 0 && first_idx < end_idx {
                let skipped = (first_idx - here.start / block_tokens) * n_full;
                let n = (end_idx - first_idx) * n_full;
                let to = (first_idx - from_idx) * n_full;
                rows[to..to + n].copy_from_slice(&run.blocks[skipped..skipped + n]);
                end_idx = first_idx;
            }
            at = here.parent;
        }
        rows
    }

    /// Puts a checkpoint at the end of `node`, whose path is covered in `tier`. The blocks are
    /// live by their giver, who gives that up afterwards.
    pub(crate) fn save(&mut self, node: Handle, tier: Tier, blocks: Vec<Vec<BlockId>>) {
        for (group, ids) in blocks.iter().enumerate() {
            for id in ids {
                self.blocks.pool(tier, group).hold(*id);
            }
        }
        let unit: crate::UnitId = self.units.insert(Owner { node, tier }).into();
        self.trie.nodes[node].saved[tier.idx()] = Some(Saved { blocks, unit });
        let value = self.value_of_checkpoint(node, tier);
        self.policies[tier.idx()].insert(unit, value, self.now);
        self.revalue_around(node, tier);
        self.queue_copy(node, tier);
    }

    /// Drops the checkpoint at the end of `node`; the caller prunes.
    pub(crate) fn unsave(&mut self, node: Handle, tier: Tier) {
        let Some(saved) = self.trie.nodes[node].saved[tier.idx()].take() else { return };
        for (group, ids) in saved.blocks.iter().enumerate() {
            for id in ids {
                self.blocks.drop_held(tier, group, *id);
            }
        }
        self.policies[tier.idx()].remove(saved.unit);
        self.units.remove(saved.unit.into());
        self.revalue_around(node, tier);
    }

    /// Drops rows in `tier` that no checkpoint there can use, from `node` upwards (C3).
    pub(crate) fn prune(&mut self, node: Handle, tier: Tier) {
        let t = tier.idx();
        let mut here = node;
        while let Some(parent) = self.trie.nodes[here].parent {
            let node = &self.trie.nodes[here];
            let is_used = node.n_locks[t] > 0
                || node.n_resident_children[t] > 0
                || node.saved[t].is_some()
                || !self.layout.needs_checkpoints();
            if is_used {
                break;
            }
            self.shrink(here, tier, 0);
            here = parent;
        }
        self.revalue(here, tier);
    }
}
