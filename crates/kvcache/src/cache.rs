//! The cache's state, its totals, and the words in which it speaks to its owner.

use std::collections::VecDeque;

use crate::arena::{Arena, Handle};
use crate::blocks::{BlockId, Blocks};
use crate::evict::{Evict, Tick};
use crate::extents::ExtentId;
use crate::layout::{Budgets, Costs, Layout, N_TIERS, Tier};
use crate::reason::{Log, Match};
use crate::sequence::Sequence;
use crate::tiers::{Batch, Transfer};
use crate::trie::Trie;

/// Bytes for tokens without rows, which are remembered to tell what was evicted from what was never
/// seen: a million of long prompts, a third of that of short ones.
const MAX_DEAD_BYTES: u64 = 4 << 20;
/// Of small budgets the sixteenth part: what explains misses is not to grow as large as what makes
/// hits.
const BUDGET_PER_DEAD: u64 = 16;

/// A live sequence.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SeqId(pub(crate) Handle);

/// What the owner does on the device, at once and in the order given, before it computes or
/// obeys anything that came later.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Op {
    /// Copy the first `n_tokens` rows of a block in every layer of the group.
    CopyBlock {
        /// Which group.
        group: usize,
        /// Its block that others go on using.
        from: BlockId,
        /// Its block that nobody else has.
        to: BlockId,
        /// Rows that count.
        n_tokens: usize,
    },
    /// Copy a state.
    CopyState {
        /// Which recurrent group.
        group: usize,
        /// The checkpoint's.
        from: BlockId,
        /// The sequence's.
        to: BlockId,
    },
    /// Make a state that has seen nothing.
    ZeroState {
        /// Which recurrent group.
        group: usize,
        /// The sequence's.
        to: BlockId,
    },
    /// Start bringing bytes to the device; call `finish` when it is over. The sequence has no
    /// position until then.
    Restore(Transfer),
}

/// Where a sequence goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Position {
    /// Tokens that need no computing.
    pub at: usize,
    /// Tokens whose rows in full groups are there. Between `at` and here the pass runs, but its
    /// rows are not written: others read them.
    pub kv_until: usize,
}

/// A sequence has begun.
#[derive(Debug, Clone, PartialEq)]
pub struct Begun {
    /// Its name until `end`.
    pub seq: SeqId,
    /// What to do first.
    pub ops: Vec<Op>,
    /// What was found, and what limited it.
    pub found: Match,
}

/// A tier cannot hold what was asked for, even if all that is cached there went. Nothing changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NoRoom {
    /// Where.
    pub tier: Tier,
    /// What was asked for.
    pub wanted_bytes: u64,
    /// What evicting could have given, besides what is free.
    pub evictable_bytes: u64,
}

impl std::fmt::Display for NoRoom {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { tier, wanted_bytes, evictable_bytes } = self;
        write!(f, "{tier:?} has no room for {wanted_bytes} bytes; {evictable_bytes} can be evicted")
    }
}

impl std::error::Error for NoRoom {}

/// Totals of one tier. `free + cached + live == budget`, unless live bytes exceed the budget after
/// it shrank; on disk [`Stats::extent_bytes`] take the place of what is cached and live.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct TierStats {
    /// What it may hold.
    pub budget_bytes: u64,
    /// Held by sequences, transfers and pinned paths.
    pub live_bytes: u64,
    /// Kept for later; can be evicted.
    pub cached_bytes: u64,
    /// The rest.
    pub free_bytes: u64,
    /// Units evicted since the start.
    pub n_evicted: u64,
    /// Tokens of begun sequences that this tier was the slowest to serve.
    pub n_hit_tokens: u64,
}

/// Totals. What counts since the start never falls (C13).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Stats {
    /// Device first.
    pub tiers: [TierStats; N_TIERS],
    /// Sequences begun.
    pub n_begun: u64,
    /// Tokens of their prompts.
    pub n_asked_tokens: u64,
    /// Checkpoints made.
    pub n_captured: u64,
    /// Checkpoints not made for want of room.
    pub n_capture_refused: u64,
    /// Transfers that ended well, and not.
    pub n_transfers: [u64; 2],
    /// Bytes of extents now, each to its end: what exceeds the disk tier's live and cached bytes
    /// are freed pieces that others follow.
    pub extent_bytes: u64,
    /// Sequences that live now.
    pub n_live: usize,
    /// Nodes of the trie now.
    pub n_nodes: usize,
    /// Tokens of the trie now, with those that are only remembered.
    pub n_tokens: usize,
    /// About what those tokens and nodes take that are only remembered.
    pub remembered_bytes: usize,
}

/// Whose unit it is.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Owner {
    pub node: Handle,
    pub tier: Tier,
}

/// The prefix cache of one model.
pub struct Cache {
    pub(crate) layout: Layout,
    pub(crate) costs: Costs,
    pub(crate) trie: Trie,
    pub(crate) blocks: Blocks,
    pub(crate) units: Arena<Owner>,
    pub(crate) policies: [Box<dyn Evict>; N_TIERS],
    pub(crate) seqs: Arena<Sequence>,
    pub(crate) batches: Arena<Batch>,
    /// Pinned on disk until all that an index says has been entered.
    pub(crate) entered: Vec<Handle>,
    /// Nodes with something to copy down, and from where.
    pub(crate) copies: VecDeque<(Handle, Tier)>,
    /// Leaves that have tokens without rows, oldest first.
    pub(crate) graves: VecDeque<Handle>,
    pub(crate) max_dead_bytes: usize,
    /// The caller's latest time.
    pub(crate) now: Tick,
    pub(crate) stats: Stats,
    pub(crate) log: Log,
    /// Spreads the checks of debug builds over large caches.
    n_changes: u64,
}

impl std::fmt::Debug for Cache {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cache").field("stats", &self.stats()).finish_non_exhaustive()
    }
}

impl Cache {
    /// An empty cache; `policies` order the tiers, device first.
    pub fn new(
        layout: Layout,
        budgets: Budgets,
        costs: Costs,
        policies: [Box<dyn Evict>; N_TIERS],
    ) -> Self {
        Self {
            blocks: Blocks::new(&layout, budgets.0),
            layout,
            costs,
            trie: Trie::new(),
            units: Arena::new(),
            policies,
            seqs: Arena::new(),
            batches: Arena::new(),
            entered: Vec::new(),
            copies: VecDeque::new(),
            graves: VecDeque::new(),
            max_dead_bytes: max_dead_bytes(&budgets),
            now: 0,
            stats: Stats::default(),
            log: Log::default(),
            n_changes: 0,
        }
    }

    /// The layout it was made for.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// Bounds the bytes for tokens without rows, and for nodes that have no others, that are
    /// remembered; 0 remembers none.
    pub fn remember(&mut self, max_dead_bytes: usize) {
        self.max_dead_bytes = max_dead_bytes;
        self.after();
    }

    /// Takes new measurements. Values that policies know already follow as their units are used.
    pub fn measured(&mut self, costs: Costs) {
        self.costs = costs;
    }

    /// Totals as of now.
    pub fn stats(&self) -> Stats {
        let mut stats = self.stats;
        for tier in Tier::ALL {
            let store = self.blocks.store(tier);
            let entry = &mut stats.tiers[tier.idx()];
            entry.budget_bytes = store.budget;
            entry.live_bytes = store.live_bytes();
            entry.cached_bytes = store.cached_bytes();
            entry.free_bytes = self.blocks.free_bytes(tier);
        }
        stats.extent_bytes = self.blocks.extents.n_bytes();
        stats.n_live = self.seqs.len();
        stats.n_nodes = self.trie.nodes.len();
        stats.n_tokens = self.trie.n_tokens;
        stats.remembered_bytes = self.trie.dead_bytes();
        stats
    }

    /// What was found for the latest sequences that began, oldest first.
    pub fn recent(&self) -> impl Iterator<Item = &Match> {
        self.log.iter()
    }

    /// Extents of which nothing is in use any more, since the last call: the owner deletes them
    /// before it writes anything new.
    pub fn take_dead_extents(&mut self) -> Vec<ExtentId> {
        self.blocks.extents.take_dead()
    }

    /// Extents that have less in use than they had, and bytes of their pieces up to the end of what
    /// is, since the last call: the owner cuts them off there before it writes anything new.
    pub fn take_shortened_extents(&mut self) -> Vec<(ExtentId, u64)> {
        self.blocks.extents.take_shortened()
    }

    /// One use of units, the deepest first: what is touched first goes first.
    pub(crate) fn touch(&mut self, node: Handle, at: usize, until: usize) {
        if self.layout.needs_checkpoints() {
            let node = self.trie.ancestor_at(node, at);
            for tier in Tier::ALL {
                if let Some(saved) = &self.trie.nodes[node].saved[tier.idx()] {
                    let unit = saved.unit;
                    self.revalue(node, tier);
                    self.policies[tier.idx()].touch(unit, self.now);
                    // What could not be copied down before is worth another try.
                    self.queue_copy(node, tier);
                }
            }
            return;
        }
        let mut next = Some(self.trie.ancestor_at(node, until));
        while let Some(node) = next {
            let here = &self.trie.nodes[node];
            let n_used =
                self.layout.n_blocks(until).saturating_sub(here.start / self.layout.block_tokens);
            for tier in Tier::ALL {
                for unit in here.runs[tier.idx()].units.iter().take(n_used).rev() {
                    self.policies[tier.idx()].touch(*unit, self.now);
                }
            }
            next = here.parent;
        }
    }

    /// The end of every public change.
    pub(crate) fn after(&mut self) {
        // What was live when a budget shrank may be cached by now.
        for tier in Tier::ALL {
            self.shed(tier);
        }
        self.clear_graves();
        self.n_changes += 1;
        // Recounting is linear in the cache: always while it is small, sampled beyond that.
        let stride = self.trie.nodes.len() as u64 / 32 + 1;
        if cfg!(debug_assertions) && self.n_changes.is_multiple_of(stride) {
            self.check();
        }
    }
}

fn max_dead_bytes(budgets: &Budgets) -> usize {
    let bytes = budgets.0.iter().fold(0_u64, |sum, bytes| sum.saturating_add(*bytes));
    MAX_DEAD_BYTES.min(bytes / BUDGET_PER_DEAD) as usize
}

/// Makes the policies of all tiers.
pub fn policies<E: Evict + 'static>(make: impl Fn() -> E) -> [Box<dyn Evict>; N_TIERS] {
    std::array::from_fn(|_| Box::new(make()) as Box<dyn Evict>)
}
