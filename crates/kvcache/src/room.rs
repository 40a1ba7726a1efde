//! Making room: what evicting takes, what units are worth, and what is left of them.

use crate::arena::Handle;
use crate::cache::{Cache, NoRoom};
use crate::evict::{Class, Tick, Unit};
use crate::layout::{N_TIERS, Ns, Tier, Token};
use crate::trie::Walk;

/// Descendants whose value is brought up to date when an anchor above them comes or goes. Others
/// follow when they are used; without a bound one eviction could cost as much as the cache has
/// conversations.
const MAX_REVALUED: usize = 16;

impl Cache {
    /// Evicts until `bytes` are free in `tier`. Answers before it changes anything.
    pub(crate) fn make_room(&mut self, tier: Tier, bytes: u64) -> Result<(), NoRoom> {
        let free = self.blocks.free_bytes(tier);
        let evictable = self.blocks.taken_bytes(tier) - self.blocks.store(tier).live_bytes();
        let missing = if bytes == 0 { 0 } else { (bytes + self.over(tier)).saturating_sub(free) };
        if missing > evictable {
            return Err(NoRoom { tier, wanted_bytes: bytes, evictable_bytes: evictable });
        }
        while bytes > 0 && self.blocks.free_bytes(tier) < bytes {
            if !self.evict_one(tier) {
                // On disk something pinned may lie behind what was freed.
                debug_assert!(tier == Tier::Disk, "what is cached can be evicted");
                return Err(NoRoom { tier, wanted_bytes: bytes, evictable_bytes: 0 });
            }
        }
        Ok(())
    }

    /// Evicts the policy's choice. False if nothing can go.
    pub(crate) fn evict_one(&mut self, tier: Tier) -> bool {
        let t = tier.idx();
        let (units, trie) = (&self.units, &self.trie);
        let mut may = |id: crate::UnitId| {
            let Some(owner) = units.get(id.into()).filter(|o| o.tier == tier) else { return false };
            let node = &trie.nodes[owner.node];
            let is_last = node.runs[t].units.last() == Some(&id);
            let is_leaf = node.n_locks[t] == 0 && node.n_resident_children[t] == 0;
            node.saved[t].as_ref().is_some_and(|s| s.unit == id) || is_last && is_leaf
        };
        let Some(id) = self.policies[t].victim(self.now, &mut may) else { return false };
        let Some(owner) = self.units.get(id.into()) else { return false };
        let (node, here) = (owner.node, &self.trie.nodes[owner.node]);
        self.stats.tiers[t].n_evicted += 1;
        if here.saved[t].as_ref().is_some_and(|s| s.unit == id) {
            self.unsave(node, tier);
            self.prune(node, tier);
        } else {
            let last_idx = here.start / self.layout.block_tokens + here.runs[t].units.len() - 1;
            self.shrink(node, tier, last_idx * self.layout.block_tokens);
        }
        true
    }

    /// What block `idx` of a node saves, by the name `key`. It counts as whole, so that it is worth
    /// the same wherever nodes are cut.
    pub(crate) fn value_of_block(&self, node: Handle, idx: usize, key: u64) -> Unit {
        let prompt_end = self.trie.nodes[node].prompt_end;
        let ends_prompt = prompt_end > 0 && (prompt_end - 1) / self.layout.block_tokens == idx;
        let block_tokens = self.layout.block_tokens;
        let from = idx * block_tokens;
        let (to, prefill) = (from + block_tokens, self.costs.prefill);
        Unit {
            key,
            bytes: self.layout.full_bytes(),
            saved_cost: prefill.us(from, to) - prefill.a,
            depth_tokens: to as u64,
            class: if ends_prompt { Class::TurnEnd } else { Class::Interior },
        }
    }

    /// For each of a node's block indices from `offset` on, the hash of what lies before its end.
    pub(crate) fn block_keys(&self, node: Handle, offset: usize) -> Vec<u64> {
        let here = &self.trie.nodes[node];
        let Some(parent) = here.parent else { return Vec::new() };
        let mut keys = Vec::new();
        let mut hash = self.trie.nodes[parent].hash;
        let mut rest = here.edge.tokens();
        let mut n = self.layout.block_tokens - here.start % self.layout.block_tokens;
        while !rest.is_empty() {
            let (block, after) = rest.split_at(n.min(rest.len()));
            hash = crate::trie::hash(hash, block);
            keys.push(hash);
            (rest, n) = (after, self.layout.block_tokens);
        }
        keys.split_off(offset.min(keys.len()))
    }

    /// Tells the policies of every tier what a prompt would have used and did not find there.
    pub(crate) fn miss(&mut self, walk: &Walk, tokens: &[Token], root: Handle, usable: usize) {
        if self.layout.needs_checkpoints() {
            for node in &walk.nodes {
                let here = &self.trie.nodes[*node];
                let would_serve = here.end() > usable && here.end() < tokens.len();
                for t in (0..N_TIERS).filter(|_| would_serve && here.end() <= walk.seen) {
                    if here.saved[t].is_none() {
                        self.policies[t].missed(here.hash, self.now);
                    }
                }
            }
            return;
        }
        let block_tokens = self.layout.block_tokens;
        let covered = walk.covered.into_iter().min().unwrap_or(0);
        let whole =
            |n: &&Handle| self.trie.nodes[**n].end() <= covered / block_tokens * block_tokens;
        let known = walk.nodes.iter().rfind(whole).unwrap_or(&root);
        let (mut at, mut hash) = (self.trie.nodes[*known].end(), self.trie.nodes[*known].hash);
        while at / block_tokens < tokens.len() / block_tokens {
            let end = (at / block_tokens + 1) * block_tokens;
            hash = crate::trie::hash(hash, &tokens[at..end]);
            for tier in Tier::ALL {
                if walk.covered[tier.idx()] < end && self.blocks.store(tier).budget > 0 {
                    self.policies[tier.idx()].missed(hash, self.now);
                }
            }
            at = end;
        }
    }

    /// What the checkpoint at the end of a node saves against the next one above it, and frees.
    pub(crate) fn value_of_checkpoint(&self, node: Handle, tier: Tier) -> Unit {
        let (t, nodes) = (tier.idx(), &self.trie.nodes);
        let here = &nodes[node];
        let mut bytes = self.layout.saved_bytes(here.end());
        let mut is_alone = here.n_resident_children[t] == 0;
        let (mut at, mut anchor) = (node, 0);
        loop {
            let step = &nodes[at];
            is_alone &= step.n_locks[t] == 0;
            if is_alone {
                let n_blocks = step.runs[t].blocks.len() / self.layout.full.len().max(1);
                bytes += n_blocks as u64 * self.layout.full_bytes();
            }
            let Some(parent) = step.parent else { break };
            if nodes[parent].saved[t].is_some() {
                anchor = nodes[parent].end();
                break;
            }
            is_alone &= nodes[parent].n_resident_children[t] == 1;
            at = parent;
        }
        Unit {
            key: here.hash,
            bytes,
            saved_cost: self.costs.prefill.us(anchor, here.end()),
            depth_tokens: here.end() as u64,
            class: here.class,
        }
    }

    pub(crate) fn revalue(&mut self, node: Handle, tier: Tier) {
        if let Some(saved) = &self.trie.nodes[node].saved[tier.idx()] {
            let unit = saved.unit;
            let value = self.value_of_checkpoint(node, tier);
            self.policies[tier.idx()].update(unit, value);
        }
    }

    /// Brings the values of the nearest anchors above and below a node up to date.
    pub(crate) fn revalue_around(&mut self, node: Handle, tier: Tier) {
        let t = tier.idx();
        let mut above = self.trie.nodes[node].parent;
        while let Some(here) = above {
            if self.trie.nodes[here].saved[t].is_some() {
                self.revalue(here, tier);
                break;
            }
            above = self.trie.nodes[here].parent;
        }
        let children = |node: Handle| self.trie.nodes[node].children.iter().map(|c| c.1);
        let mut below = children(node).take(MAX_REVALUED).collect::<Vec<_>>();
        let mut next = 0;
        while let Some(here) = below.get(next).copied() {
            next += 1;
            if self.trie.nodes[here].saved[t].is_none() && below.len() < MAX_REVALUED {
                let n = MAX_REVALUED - below.len();
                let children = self.trie.nodes[here].children.iter().map(|c| c.1);
                below.extend(children.take(n));
            }
        }
        for here in below {
            self.revalue(here, tier);
        }
    }

    /// Notes that a node may have tokens without rows. They are kept for a while, as the memory of
    /// what was evicted.
    pub(crate) fn bury(&mut self, node: Handle) {
        if let Some(here) = self.trie.nodes.get(node)
            && here.children.is_empty()
            && here.n_known() < here.edge.tokens().len()
        {
            self.graves.push_back(node);
        }
    }

    /// Forgets the oldest tokens without rows until no more than the bound are left. Called at the
    /// end of what is public: handles in use stay valid until then.
    pub(crate) fn clear_graves(&mut self) {
        while self.trie.dead_bytes() > self.max_dead_bytes
            && let Some(node) = self.graves.pop_front()
        {
            let Some(here) = self.trie.nodes.get(node) else { continue };
            let is_dead = here.children.is_empty() && here.n_known() < here.edge.tokens().len();
            if !is_dead || here.is_locked() {
                continue;
            }
            if let Some(parent) = self.trie.trim_leaf(node) {
                let above = &self.trie.nodes[parent];
                if above.parent.is_none() {
                    self.drop_empty_root(parent);
                } else if above.children.is_empty() && above.n_known() < above.edge.tokens().len() {
                    self.graves.push_front(parent);
                }
            }
        }
        // A node may lie in several graves; nobody but this queue knows, so it is cut short here.
        if self.graves.len() > 2 * self.trie.nodes.len() + 64 {
            let mut seen = std::collections::BTreeSet::new();
            let nodes = &self.trie.nodes;
            self.graves.retain(|g| nodes.get(*g).is_some() && seen.insert(*g));
        }
    }

    pub(crate) fn drop_empty_root(&mut self, root: Handle) {
        let Some(node) = self.trie.nodes.get(root) else { return };
        if node.parent.is_none() && node.children.is_empty() && !node.is_locked() {
            self.trie.drop_root(root);
        }
    }

    /// Drops all that is not pinned under a root.
    pub(crate) fn drop_tree(&mut self, root: Handle) {
        let mut order = vec![root];
        let mut next = 0;
        while let Some(here) = order.get(next) {
            order.extend(self.trie.nodes[*here].children.iter().map(|c| c.1));
            next += 1;
        }
        // Children come after their parents, so backwards they go first.
        for node in order.into_iter().skip(1).rev() {
            for tier in Tier::ALL {
                self.unsave(node, tier);
                let here = &self.trie.nodes[node];
                if here.n_locks[tier.idx()] == 0 && here.n_resident_children[tier.idx()] == 0 {
                    self.shrink(node, tier, 0);
                }
            }
            let here = &self.trie.nodes[node];
            if !here.is_locked() && here.children.is_empty() && here.n_known() == 0 {
                self.trie.trim_leaf(node);
            }
        }
        self.drop_empty_root(root);
    }

    /// Forgets a namespace on every tier. Live sequences of it go on, unseen by new ones; what
    /// they hold is freed when they end.
    pub fn flush(&mut self, ns: Ns) {
        if let Some(root) = self.trie.roots.remove(&ns) {
            self.trie.orphans.push(root);
            self.drop_tree(root);
        }
        self.after();
    }

    /// Sets the budget of a tier, evicting what is over it. Returns the bytes that are still over
    /// it because they are live; nothing new gets room until they are gone.
    pub fn resize(&mut self, tier: Tier, budget_bytes: u64, now: Tick) -> u64 {
        self.now = now;
        self.blocks.store_mut(tier).budget = budget_bytes;
        self.after();
        self.over(tier)
    }

    fn over(&self, tier: Tier) -> u64 {
        self.blocks.taken_bytes(tier).saturating_sub(self.blocks.store(tier).budget)
    }

    /// Evicts what is over the budget.
    pub(crate) fn shed(&mut self, tier: Tier) {
        while self.over(tier) > 0 && self.blocks.store(tier).cached_bytes() > 0 {
            if !self.evict_one(tier) {
                break;
            }
        }
    }
}
