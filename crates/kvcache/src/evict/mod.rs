//! Who goes first when a tier is full. The cache says what may go and does the freeing; a policy
//! only orders units.
//!
//! A unit is a checkpoint with the rows that only it keeps alive or, in a model without
//! checkpoints, one block: there all blocks of a matched path are touched together, deepest first,
//! so that a policy that goes by time meets leaves before what they hang on.
//!
//! All policies are deterministic: equal calls give equal victims.

mod adaptive;
mod by_slot;
mod curve;
mod gdsf;
mod hazard;
mod lru;
mod order;
mod policy;
mod shadow;
mod slru;
#[cfg(test)]
mod twin_fuzz;

pub use adaptive::{Adaptive, Regret};
pub use gdsf::Gdsf;
pub use hazard::Hazard;
pub use lru::Lru;
pub use policy::Policy;
pub use slru::Slru;

/// Time, in a unit that the caller chooses; it never goes back.
pub type Tick = u64;

/// Names one unit; a slot that is used again has another generation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UnitId(pub u32, pub u32);

/// Whom the end of an output waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Waiting {
    /// A tool: the next request comes in seconds.
    Tool,
    /// A person: minutes, or never.
    Person,
}

/// Why a checkpoint is where it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// A rung inside a long stretch; a block.
    Interior,
    /// Conversations parted here.
    BranchPoint,
    /// A message ends here; the last block of a prompt.
    TurnEnd,
    /// An answer ends here.
    OutputEnd(Waiting),
    /// The system prompt and the tools end here.
    System,
}

/// What a policy may know of one evictable unit.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Unit {
    /// What the unit is, across tiers and evictions: a hash of its namespace and of all tokens up
    /// to its end. Two units with one key cost a policy some accuracy and nothing else.
    pub key: u64,
    /// Bytes that evicting it frees. Blocks at the seams of nodes may be counted twice.
    pub bytes: u64,
    /// Recompute cost that it saves against the nearest surviving ancestor anchor, microseconds.
    pub saved_cost: f64,
    /// Tokens from the root to its end.
    pub depth_tokens: u64,
    /// Why it is there.
    pub class: Class,
}

impl Unit {
    /// Cost saved per byte held, never negative.
    fn density(&self) -> f64 {
        self.saved_cost.max(0.0) / self.bytes.max(1) as f64
    }
}

/// An order of eviction for the units of one tier.
pub trait Evict: std::fmt::Debug {
    /// A unit came.
    fn insert(&mut self, id: UnitId, unit: Unit, now: Tick);
    /// It served a request.
    fn touch(&mut self, id: UnitId, now: Tick);
    /// Its bytes, cost or class changed because a neighbour came or went.
    fn update(&mut self, id: UnitId, unit: Unit);
    /// It is gone. Called for victims too; a unit that is not known is nothing to do.
    fn remove(&mut self, id: UnitId);
    /// A request would have been served by the unit with this key, which is not here. Policies that
    /// learn compare it with what they let go; keys that they do not know are nothing to do.
    fn missed(&mut self, _key: u64, _now: Tick) {}
    /// The next to go among those that `may` allows (not pinned, nothing depends on it); amortised
    /// O(log n). The caller evicts it before it calls anything else.
    fn victim(&mut self, now: Tick, may: &mut dyn FnMut(UnitId) -> bool) -> Option<UnitId>;
}
