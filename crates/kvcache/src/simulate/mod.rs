//! What eviction is worth, without a device: traces of requests, the bounds that no cache can
//! beat, and replays. Text lines go in and figures come out; whoever has the files reads them.
//!
//! Two kinds of trace: blocks of equal cost, where all that is used is used with its whole path
//! ([`trace`], [`workloads`], [`belady`], [`replay`]: through the [`Cache`](crate::Cache) itself),
//! and conversations of agents on a model with recurrent state, where units are checkpoints of all
//! sizes ([`agents`], [`checkpoints`], [`foresight`]: a simulator that shares only the policies
//! with the cache).

pub mod agents;
pub mod belady;
pub mod checkpoints;
mod draws;
pub mod foresight;
pub mod prefixes;
pub mod replay;
pub mod trace;
pub mod workloads;
