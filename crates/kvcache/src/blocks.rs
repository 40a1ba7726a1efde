//! Blocks and states of one tier: who refers to them, and what they weigh.
//!
//! A block has two counts. *Held* counts the trie and its checkpoints; *live* counts sequences,
//! transfers, and the nodes of pinned paths. Live > 0 means that it cannot be freed; held alone
//! means cached, and all that is cached can be freed by evicting. So `cached_bytes` is exactly what
//! eviction can give, and a question for room is answered before anything changes.
//!
//! The lowest id that is free is handed out first, so that an owner whose memory lies by id needs
//! little more of it than is in use.

use std::collections::BTreeSet;

use crate::extents::Extents;
use crate::layout::{Layout, N_TIERS, Tier};

/// A block of a group in a tier, or a state of a recurrent group. Ids are dense from 0 per tier and
/// group, so that an owner may index an array with them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BlockId(pub u32);

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Block {
    pub n_held: u32,
    pub n_live: u32,
    /// Rows that anyone wrote, from the first.
    pub n_rows: u32,
    /// A live sequence may write further rows, and nobody else.
    pub is_owned: bool,
}

/// The blocks of one group in one tier.
#[derive(Debug)]
pub(crate) struct Pool {
    pub bytes: u64,
    pub blocks: Vec<Block>,
    pub free: BTreeSet<BlockId>,
    pub n_live: u64,
    pub n_cached: u64,
}

impl Pool {
    /// A block that its caller has alive; room was asked for before.
    pub fn alloc(&mut self) -> BlockId {
        let id = self.free.pop_first().unwrap_or_else(|| {
            self.blocks.push(Block::default());
            BlockId(u32::try_from(self.blocks.len() - 1).expect("a budget bounds the blocks"))
        });
        self.blocks[id.0 as usize] = Block { n_live: 1, ..Block::default() };
        self.n_live += 1;
        id
    }

    pub fn is_in_use(&self, id: BlockId) -> bool {
        self.blocks.get(id.0 as usize).is_some_and(|block| block.n_held + block.n_live > 0)
    }

    /// What `from` was is `to` from now on, which is free.
    pub fn rename(&mut self, from: BlockId, to: BlockId) {
        assert!(self.free.remove(&to), "a block moves to where there is none");
        *self.get_mut(to) = std::mem::take(self.get_mut(from));
        self.free.insert(from);
    }

    /// Forgets ids behind the last one that is in use.
    pub fn shorten(&mut self) {
        while let Some(last) = self.blocks.len().checked_sub(1)
            && self.free.remove(&BlockId(last as u32))
        {
            self.blocks.pop();
        }
    }

    pub fn get(&self, id: BlockId) -> &Block {
        &self.blocks[id.0 as usize]
    }

    pub fn get_mut(&mut self, id: BlockId) -> &mut Block {
        &mut self.blocks[id.0 as usize]
    }

    pub fn hold(&mut self, id: BlockId) {
        let block = self.get_mut(id);
        assert!(block.n_held + block.n_live > 0, "only what is referred to can be shared");
        block.n_held += 1;
    }

    pub fn enliven(&mut self, id: BlockId) {
        let block = self.get_mut(id);
        assert!(block.n_held + block.n_live > 0, "only what is referred to can be shared");
        block.n_live += 1;
        if block.n_live == 1 {
            self.n_live += 1;
            self.n_cached -= 1;
        }
    }

    /// Gives one hold back; true if the block is free now.
    pub fn drop_held(&mut self, id: BlockId) -> bool {
        let block = self.get_mut(id);
        block.n_held = block.n_held.checked_sub(1).expect("a hold is given back once");
        let is_free = block.n_held + block.n_live == 0;
        if is_free {
            self.n_cached -= 1;
            self.free.insert(id);
        }
        is_free
    }

    /// Gives one live reference back; true if the block is free now.
    pub fn drop_live(&mut self, id: BlockId) -> bool {
        let block = self.get_mut(id);
        block.n_live = block.n_live.checked_sub(1).expect("a live reference is given back once");
        if block.n_live > 0 {
            return false;
        }
        let is_free = block.n_held == 0;
        self.n_live -= 1;
        if is_free {
            self.free.insert(id);
        } else {
            self.n_cached += 1;
        }
        is_free
    }
}

/// All pools of one tier under one budget.
#[derive(Debug)]
pub(crate) struct Store {
    pub budget: u64,
    pub pools: Vec<Pool>,
}

impl Store {
    pub fn live_bytes(&self) -> u64 {
        self.pools.iter().map(|p| p.n_live * p.bytes).sum()
    }

    /// What evicting can give.
    pub fn cached_bytes(&self) -> u64 {
        self.pools.iter().map(|p| p.n_cached * p.bytes).sum()
    }
}

/// The blocks of all tiers.
#[derive(Debug)]
pub(crate) struct Blocks {
    stores: [Store; N_TIERS],
    /// Where the blocks of the disk tier lie.
    pub extents: Extents,
}

impl Blocks {
    pub fn new(layout: &Layout, budgets: [u64; N_TIERS]) -> Self {
        let pool = |bytes| Pool {
            bytes,
            blocks: Vec::new(),
            free: BTreeSet::new(),
            n_live: 0,
            n_cached: 0,
        };
        let pools = || layout.groups.iter().map(|g| pool(g.bytes)).collect();
        let stores = budgets.map(|budget| Store { budget, pools: pools() });
        Self { stores, extents: Extents::default() }
    }

    pub fn store(&self, tier: Tier) -> &Store {
        &self.stores[tier.idx()]
    }

    pub fn store_mut(&mut self, tier: Tier) -> &mut Store {
        &mut self.stores[tier.idx()]
    }

    /// What a tier has of its budget: what is in use, and on disk what lies freed between that.
    pub fn taken_bytes(&self, tier: Tier) -> u64 {
        let store = self.store(tier);
        match tier {
            Tier::Disk => self.extents.n_bytes(),
            Tier::Device | Tier::Host => store.live_bytes() + store.cached_bytes(),
        }
    }

    pub fn free_bytes(&self, tier: Tier) -> u64 {
        self.store(tier).budget.saturating_sub(self.taken_bytes(tier))
    }

    pub fn pool(&mut self, tier: Tier, group: usize) -> &mut Pool {
        &mut self.stores[tier.idx()].pools[group]
    }

    pub fn drop_held(&mut self, tier: Tier, group: usize, id: BlockId) {
        if self.pool(tier, group).drop_held(id) && tier == Tier::Disk {
            self.extents.free(group, id);
        }
    }

    pub fn drop_live(&mut self, tier: Tier, group: usize, id: BlockId) {
        if self.pool(tier, group).drop_live(id) && tier == Tier::Disk {
            self.extents.free(group, id);
        }
    }
}
