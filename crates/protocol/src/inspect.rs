//! Looking into the prefix cache.

use serde::{Deserialize, Serialize};

use crate::cache::CacheMatch;
use crate::message::ModelInfo;
use crate::request::{RequestId, known_tokens, within_context};
use crate::sampling::InvalidField;

/// The most nodes of one answer.
pub const MAX_INSPECTED_NODES: u32 = 20_000;

/// Look into the cache; answered by `Inspected`, then `Finished`. It changes nothing, and does not
/// wait for requests that run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(proptest_derive::Arbitrary))]
pub struct InspectRequest {
    /// Names the request in all events about it.
    pub id: RequestId,
    /// Tokens that are told of each node, from its first.
    pub shown_tokens: u32,
    /// Which nodes.
    pub what: Inspect,
}

/// Which nodes of the cache are told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(proptest_derive::Arbitrary))]
pub enum Inspect {
    /// Those that a prompt runs through, and what it would be given.
    Prompt {
        /// Whose.
        namespace: u64,
        /// The prompt.
        tokens: Vec<u32>,
    },
    /// All, level by level.
    Tree {
        /// At most so many.
        max_nodes: u32,
    },
}

/// What is in the cache. Arrays are by tier: device, host, disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(proptest_derive::Arbitrary))]
pub struct Inspected {
    /// Which request.
    pub id: RequestId,
    /// Of a prompt, what it would be given.
    pub found: Option<CacheMatch>,
    /// Where it parts from what is known, which need not be what limits it.
    pub differs: Option<Divergence>,
    /// The nodes, those above before those below.
    pub nodes: Vec<CacheNode>,
    /// Nodes of the whole cache.
    pub n_nodes: u64,
    /// Totals.
    pub tiers: [TierTotals; 3],
}

/// What is cached goes on otherwise than a prompt.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(proptest_derive::Arbitrary))]
pub struct Divergence {
    /// The index of the first token that differs.
    pub at: u32,
    /// Cached tokens from there on, a few.
    pub cached: Vec<u32>,
    /// The prompt's.
    pub asked: Vec<u32>,
}

/// A piece of cached text that begins where others part from it, and ends where it parts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(proptest_derive::Arbitrary))]
pub struct CacheNode {
    /// Whose it is.
    pub namespace: u64,
    /// The index of the node above in the same list; `None`: the text begins here.
    pub parent: Option<u32>,
    /// Tokens before it.
    pub from: u32,
    /// Tokens of its own.
    pub n_tokens: u32,
    /// The first of them.
    pub first: Vec<u32>,
    /// How many of them have keys and values.
    pub covered: [u32; 3],
    /// Whether a state to go on from stands at its end.
    pub has_checkpoint: [bool; 3],
    /// What ends there.
    pub kind: NodeKind,
    /// Whether requests use it now.
    pub is_in_use: bool,
    /// Nodes right below it.
    pub n_children: u32,
}

/// What ends with a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(proptest_derive::Arbitrary))]
pub enum NodeKind {
    /// Nothing: others part from it there, or it goes on.
    Interior,
    /// Conversations parted there.
    Branch,
    /// A message, or a prompt.
    Turn,
    /// An answer.
    Answer,
    /// The system prompt and the tools.
    System,
}

/// Totals of a tier.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(proptest_derive::Arbitrary))]
pub struct TierTotals {
    /// What it may hold.
    pub budget_bytes: u64,
    /// In use by requests.
    pub live_bytes: u64,
    /// Kept for later.
    pub cached_bytes: u64,
    /// Pieces evicted since the start.
    pub n_evicted: u64,
    /// Tokens of prompts that it gave since the start.
    pub hit_tokens: u64,
}

impl InspectRequest {
    /// Checks it against the loaded model.
    pub fn fits(&self, model: &ModelInfo) -> Result<(), InvalidField> {
        match &self.what {
            Inspect::Prompt { tokens, .. } => {
                known_tokens("prompt", tokens.iter(), model)?;
                within_context("prompt", tokens.len() as u64, 0, model)
            }
            Inspect::Tree { max_nodes } if *max_nodes > MAX_INSPECTED_NODES => {
                let reason = format!("must be at most {MAX_INSPECTED_NODES}, not {max_nodes}");
                Err(InvalidField::new("max_nodes", reason))
            }
            Inspect::Tree { .. } => Ok(()),
        }
    }
}
