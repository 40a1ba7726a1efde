//! The prefix cache's bookkeeping: which tokens were computed, where their rows and states lie, who
//! uses them, and what goes first when room is short. It has never seen an array, a clock, a
//! thread or a file: time is an argument, bytes are numbers, and what is to be done with memory
//! comes back as an [`Op`] or a [`Transfer`] for the owner to obey. All that can fail comes before
//! the first change.
//!
//! Invariants; [`Cache::check`] recounts everything and asserts each under its number.
//! I1 A child's edge begins where its parent's ends; child and parent know each other.
//! I2 Siblings differ in their first token.
//! I3 A node's run has the blocks of exactly its covered tokens, and a child has rows in a tier
//!    only if the parent's edge is covered there: each tier holds whole paths (C5).
//! I4 A checkpoint has the whole path under it in its tier, and the blocks that its layout asks
//!    for (C4).
//! I5 A block's counts are the references to it, and it is live while one of them is pinned (C1).
//! I6 Per tier `free + cached + live == budget` in bytes, where extents on disk count to the end,
//!    and free and used ids are all ids (C2).
//! I7 Rows in a tier that are not pinned have a checkpoint at or below them in that tier, in
//!    layouts that need one (C3).
//! I8 The pins of a node are the sequences, transfers and extents just adopted whose path leads
//!    through it (C6).
//! I9 A unit and its owner name each other; rows that are not pinned are all units, in layouts
//!    without checkpoints.
//! I10 A node hangs on one root, and a root is that of one namespace, or of none after a flush
//!    (C8).
//! I11 What a sequence has computed is covered on its pinned path; a block that may be written
//!    has one writer.
//! I12 Totals of tokens and of nodes without rows are those of the trie, and what is remembered
//!     without rows stays within its bound while nothing is pinned.
//!
//! Handles carry a generation (C7), a flush returns all that is not live (C10), want of room is
//! `None` or [`NoRoom`] and leaves all as it was (C12), and looking up takes `&self` (C13). What a
//! restored byte is worth (C9) and what a crash leaves of an index (C11) are the owner's to prove:
//! no byte is seen here.
//!
//! A sequence's way: [`Cache::begin`], then [`Cache::reserve`], a pass, [`Cache::advance`], perhaps
//! [`Cache::capture`], and so on until [`Cache::end`]. Between passes, [`Cache::next_copies`] and
//! [`Cache::finish`].

mod arena;
mod blocks;
mod cache;
mod check;
pub mod evict;
mod extents;
mod inspect;
mod layout;
mod lost;
mod pack;
mod plan;
mod reason;
mod residency;
mod restart;
mod room;
mod sequence;
pub mod simulate;
mod tiers;
mod trie;

pub use blocks::BlockId;
pub use cache::{Begun, Cache, NoRoom, Op, Position, SeqId, Stats, TierStats, policies};
pub use evict::{
    Adaptive, Class, Evict, Gdsf, Hazard, Lru, Policy, Regret, Slru, Tick, Unit, UnitId, Waiting,
};
pub use extents::{ExtentId, Place};
pub use inspect::NodeView;
pub use layout::{Budgets, Costs, Group, Kind, Layout, Link, N_TIERS, Ns, Prefill, Tier, Token};
pub use plan::{Boundary, Capture, plan_captures};
pub use reason::{Candidate, Cause, Match};
pub use restart::Record;
pub use sequence::BlockTable;
pub use tiers::{Item, Transfer, TransferId};
