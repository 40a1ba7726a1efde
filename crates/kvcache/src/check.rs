//! The counter-check: recounts the cache from its parts and compares with what it believes.

use std::collections::{BTreeMap, BTreeSet};

use crate::arena::Handle;
use crate::blocks::{Block, BlockId};
use crate::cache::Cache;
use crate::layout::{Kind, N_TIERS, Tier};
use crate::trie::Node;

type Counts = BTreeMap<(usize, usize, BlockId), (u32, u32)>;

impl Cache {
    /// Recounts everything; linear in the cache. Debug builds call it after changes.
    ///
    /// # Panics
    /// With the number of the invariant that does not hold.
    pub fn check(&self) {
        let order = self.check_tree();
        for node in &order {
            self.check_node(*node);
        }
        self.check_anchors(&order);
        self.check_locks();
        self.check_sequences();
        self.check_units();
        self.check_counts();
    }

    /// I1, I2, I10, I12. Returns all nodes but the roots, parents first.
    fn check_tree(&self) -> Vec<Handle> {
        let roots = self.trie.roots.values().chain(&self.trie.orphans).copied();
        let roots = roots.collect::<Vec<_>>();
        let n_roots = roots.iter().collect::<BTreeSet<_>>().len();
        assert_eq!(n_roots, roots.len(), "I10: a root is that of one namespace");
        let (mut order, mut next) = (roots, 0);
        let (mut n_tokens, mut n_known, mut n_bare) = (0, 0, 0);
        while let Some(at) = order.get(next).copied() {
            next += 1;
            let here = self.trie.nodes.get(at).expect("I1: children are there");
            n_tokens += here.edge.tokens().len();
            n_known += here.n_known();
            n_bare += usize::from(here.is_bare());
            for (k, (first, child)) in here.children.iter().enumerate() {
                let below = self.trie.nodes.get(*child).expect("I1: children are there");
                assert_eq!(below.parent, Some(at), "I1: child and parent know each other");
                assert_eq!(below.start, here.end(), "I1: a child begins where its parent ends");
                assert_eq!(below.edge.tokens().first(), Some(first), "I2: first tokens are keys");
                assert!(k == 0 || here.children[k - 1].0 < *first, "I2: siblings differ");
                order.push(*child);
            }
        }
        assert_eq!(order.len(), self.trie.nodes.len(), "I10: every node hangs on one root");
        assert_eq!(n_tokens, self.trie.n_tokens, "I12: tokens of edges");
        assert_eq!(n_known, self.trie.n_known_tokens, "I12: tokens with rows");
        assert_eq!(n_bare, self.trie.n_bare, "I12: nodes without rows");
        let is_pinned = self.seqs.len() + self.batches.len() + self.entered.len() > 0;
        let is_bounded = self.trie.dead_bytes() <= self.max_dead_bytes;
        assert!(is_pinned || is_bounded, "I12: what is only remembered is bounded");
        order.split_off(n_roots)
    }

    /// I3 and I4.
    fn check_node(&self, at: Handle) {
        let here = &self.trie.nodes[at];
        let parent = &self.trie.nodes[here.parent.expect("I1: only roots have no parent")];
        for t in 0..N_TIERS {
            let run = &here.runs[t];
            assert!(run.n_tokens <= here.edge.tokens().len(), "I3: rows lie in the edge");
            let first_idx = here.start / self.layout.block_tokens;
            let n_indices = match run.n_tokens {
                0 => 0,
                n => self.layout.n_blocks(here.start + n) - first_idx,
            };
            let n_blocks = n_indices * self.layout.full.len();
            assert_eq!(run.blocks.len(), n_blocks, "I3: one block per index and full group");
            let is_whole = run.n_tokens == 0 || parent.parent.is_none() || parent.is_covered(t);
            assert!(is_whole, "I3: rows lie within the parent's");
            let children = here.children.iter().map(|c| &self.trie.nodes[c.1]);
            let n_resident = children.filter(|c| c.runs[t].n_tokens > 0).count();
            assert_eq!(here.n_resident_children[t] as usize, n_resident, "I3: resident children");
            let Some(saved) = &here.saved[t] else { continue };
            assert!(here.is_covered(t), "I4: a checkpoint has its path");
            for (group, ids) in saved.blocks.iter().enumerate() {
                let n = self.layout.saved_blocks(group, here.end()).len();
                assert_eq!(ids.len(), n, "I4: a checkpoint has what its layout asks for");
            }
        }
    }

    /// I7.
    fn check_anchors(&self, order: &[Handle]) {
        if !self.layout.needs_checkpoints() {
            return;
        }
        let mut anchored = BTreeSet::new();
        for at in order.iter().rev() {
            let here = &self.trie.nodes[*at];
            for t in 0..N_TIERS {
                let below = here.children.iter().any(|c| anchored.contains(&(t, c.1)));
                let is_anchored = here.saved[t].is_some() || below;
                let is_used = is_anchored || here.n_locks[t] > 0 || here.runs[t].n_tokens == 0;
                assert!(is_used, "I7: rows have a checkpoint that can use them");
                if is_anchored {
                    anchored.insert((t, *at));
                }
            }
        }
    }

    /// I8.
    fn check_locks(&self) {
        let mut locks = BTreeMap::<(Handle, usize), u32>::new();
        let mut pin = |node: Handle, tier: Tier| {
            let mut at = Some(node);
            while let Some(here) = at {
                *locks.entry((here, tier.idx())).or_default() += 1;
                at = self.trie.nodes.get(here).expect("I8: pinned paths are there").parent;
            }
        };
        self.seqs.iter().for_each(|(_, seq)| pin(seq.node, Tier::Device));
        self.entered.iter().for_each(|node| pin(*node, Tier::Disk));
        for flight in self.batches.iter().flat_map(|(_, batch)| &batch.flights) {
            pin(flight.node, flight.from);
            pin(flight.node, flight.to);
        }
        for (at, here) in self.trie.nodes.iter() {
            let counted = |t| locks.get(&(at, t)).copied().unwrap_or(0);
            let counted: [u32; N_TIERS] = std::array::from_fn(counted);
            assert_eq!(here.n_locks, counted, "I8: pins are sequences and transfers");
        }
    }

    /// I11.
    fn check_sequences(&self) {
        let mut writers = BTreeSet::new();
        for (_, seq) in self.seqs.iter().filter(|(_, seq)| seq.restore.is_none()) {
            let until = seq.pos.max(seq.kv_until);
            let node = &self.trie.nodes[self.trie.ancestor_at(seq.node, until)];
            assert!(node.end() >= until, "I11: the path leads to the position");
            assert!(node.covered(0) >= until, "I11: what was computed is covered");
            for (group, table) in seq.tables.iter().enumerate() {
                if self.layout.groups[group].kind == Kind::Recurrent {
                    continue;
                }
                let end_idx = table.first_idx + table.blocks.len();
                assert!(end_idx >= self.layout.n_blocks(seq.pos), "I11: the table has the rows");
                for idx in table.own_from.max(table.first_idx)..end_idx {
                    let id = table.blocks[idx - table.first_idx];
                    assert!(writers.insert((group, id)), "I11: a block has one writer");
                    let pool = &self.blocks.store(Tier::Device).pools[group];
                    assert!(pool.get(id).is_owned, "I11: a writer owns its blocks");
                }
            }
        }
        for (group, pool) in self.blocks.store(Tier::Device).pools.iter().enumerate() {
            let ids = (0..pool.blocks.len() as u32).map(BlockId);
            let used = |b: &Block| b.n_held + b.n_live > 0;
            for id in ids.filter(|id| used(pool.get(*id)) && pool.get(*id).is_owned) {
                assert!(writers.contains(&(group, id)), "I11: who owns a block lives");
            }
        }
    }

    /// I9.
    fn check_units(&self) {
        let mut n_units = 0;
        for (at, here) in self.trie.nodes.iter() {
            for tier in Tier::ALL {
                let t = tier.idx();
                let run = &here.runs[t];
                if !self.layout.needs_checkpoints() && here.n_locks[t] == 0 {
                    let n_indices = run.blocks.len() / self.layout.full.len();
                    assert_eq!(run.units.len(), n_indices, "I9: rows are units");
                }
                for unit in run.units.iter().chain(here.saved[t].as_ref().map(|s| &s.unit)) {
                    let owner = self.units.get((*unit).into()).expect("I9: units are known");
                    assert_eq!((owner.node, owner.tier), (at, tier), "I9: owners own");
                    n_units += 1;
                }
            }
        }
        assert_eq!(n_units, self.units.len(), "I9: every unit is owned");
    }

    /// I5 and I6.
    fn check_counts(&self) {
        let counts = self.recount();
        let nothing = (0, 0);
        for tier in Tier::ALL {
            let store = self.blocks.store(tier);
            for (group, pool) in store.pools.iter().enumerate() {
                let (mut n_live, mut n_cached) = (0, 0);
                for (k, block) in pool.blocks.iter().enumerate() {
                    let key = (tier.idx(), group, BlockId(k as u32));
                    let counted = *counts.get(&key).unwrap_or(&nothing);
                    assert_eq!((block.n_held, block.n_live), counted, "I5: references {key:?}");
                    n_live += u64::from(counted.1 > 0);
                    n_cached += u64::from(counted.1 == 0 && counted.0 > 0);
                }
                assert_eq!((pool.n_live, pool.n_cached), (n_live, n_cached), "I6: totals");
                let n_ids = pool.free.len() as u64 + n_live + n_cached;
                assert_eq!(n_ids, pool.blocks.len() as u64, "I6: free and used ids are all ids");
                let is_free = |id: &BlockId| !pool.is_in_use(*id);
                assert!(pool.free.iter().all(is_free), "I6: what is free is not in use");
            }
            let (live, taken) = (store.live_bytes(), self.blocks.taken_bytes(tier));
            assert!(live + store.cached_bytes() <= taken, "I6: what is in use is taken");
            // On disk something live may lie behind what is not.
            let is_pinned = tier == Tier::Disk && live > 0;
            let is_within = taken <= store.budget.max(live) || is_pinned;
            assert!(is_within, "I6: cached bytes are within the budget");
            let is_whole =
                taken > store.budget || self.blocks.free_bytes(tier) + taken == store.budget;
            assert!(is_whole, "I6: free + cached + live == budget");
        }
        let on_disk = self.blocks.store(Tier::Disk).pools.iter();
        let n_on_disk = on_disk.map(|p| (p.n_live + p.n_cached) as usize).sum();
        self.blocks.extents.check(n_on_disk);
    }

    fn recount(&self) -> Counts {
        let mut counts = Counts::new();
        let full = &self.layout.full;
        let mut count = |t: usize, group: usize, id: BlockId, held: u32, live: u32| {
            let entry = counts.entry((t, group, id)).or_default();
            (entry.0, entry.1) = (entry.0 + held, entry.1 + live);
        };
        let nodes = self.trie.nodes.iter().map(|(_, node): (_, &Node)| node);
        for (node, t) in nodes.flat_map(|node| (0..N_TIERS).map(move |t| (node, t))) {
            let is_live = u32::from(node.n_locks[t] > 0);
            for (k, id) in node.runs[t].blocks.iter().enumerate() {
                count(t, full[k % full.len()], *id, 1, is_live);
            }
            for (group, ids) in node.saved[t].iter().flat_map(|s| s.blocks.iter().enumerate()) {
                ids.iter().for_each(|id| count(t, group, *id, 1, 0));
            }
        }
        for (_, seq) in self.seqs.iter() {
            for (group, table) in seq.tables.iter().enumerate() {
                table.blocks.iter().for_each(|id| count(0, group, *id, 0, 1));
            }
        }
        for flight in self.batches.iter().flat_map(|(_, batch)| &batch.flights) {
            let (from, to) = (flight.from.idx(), flight.to.idx());
            for (k, pair) in flight.rows.iter().enumerate() {
                count(from, full[k % full.len()], pair.0, 0, 1);
                count(to, full[k % full.len()], pair.1, 0, 1);
            }
            for (group, pairs) in flight.saved.iter().flat_map(|s| s.iter().enumerate()) {
                for pair in pairs {
                    count(from, group, pair.0, 0, 1);
                    count(to, group, pair.1, 0, 1);
                }
            }
        }
        counts
    }
}
