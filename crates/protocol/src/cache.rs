//! The prefix cache in messages: what it may hold, where prompts have seams, and what was found.

use serde::{Deserialize, Serialize};

use crate::request::RequestId;

/// What a model's cache may hold. `None` leaves it to the runner, which measures.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(proptest_derive::Arbitrary))]
pub struct CacheSettings {
    /// Bytes of keys, values and states on the device, those of running requests included.
    pub device_bytes: Option<u64>,
    /// Bytes of copies in the host's memory, where the device has memory of its own.
    pub host_bytes: Option<u64>,
    /// Where copies survive the process; `None`: nowhere.
    pub disk: Option<DiskSettings>,
}

/// Copies in storage.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(proptest_derive::Arbitrary))]
pub struct DiskSettings {
    /// Absolute path of the folder with those of all models.
    pub folder: String,
    /// What people call this model.
    pub label: String,
    /// Most bytes of files for this model; `None` leaves it to the runner.
    pub bytes: Option<u64>,
}

/// Where a prompt has a seam: other prompts may have the same beginning up to there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(proptest_derive::Arbitrary))]
pub struct Boundary {
    /// Tokens before it.
    pub at: u32,
    /// What ends there.
    pub kind: BoundaryKind,
}

/// What ends at a seam.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(proptest_derive::Arbitrary))]
pub enum BoundaryKind {
    /// The system prompt and the tools.
    System,
    /// A message.
    Message,
    /// The prompt, but for the header that opens the answer.
    Prompt,
    /// What the client marked.
    Named,
}

/// What the cache had of a prompt when the request began.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(proptest_derive::Arbitrary))]
pub struct CacheMatch {
    /// Which request.
    pub id: RequestId,
    /// Tokens of the prompt.
    pub prompt_tokens: u32,
    /// Leading tokens whose keys and values were there, on any tier.
    pub matched_tokens: u32,
    /// Leading tokens that are not computed again.
    pub usable_tokens: u32,
    /// The slowest tier that gave some of them.
    pub tier: CacheTier,
    /// Why it is not more.
    pub cause: MissCause,
}

/// Where cached bytes lay.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(proptest_derive::Arbitrary))]
pub enum CacheTier {
    /// The device's memory.
    Device,
    /// The host's memory.
    Host,
    /// Storage.
    Disk,
}

/// Why no more of a prompt was reused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(proptest_derive::Arbitrary))]
pub enum MissCause {
    /// Nothing more could be: one token must be computed to go on.
    Complete,
    /// A state stands at the very end of the prompt, and none before it.
    StateAtEnd,
    /// Keys and values are there, but no state of the recurrent or window layers.
    NoCheckpoint,
    /// Another request is computing what is missing.
    InFlight,
    /// Bringing it back would have taken longer than computing it.
    Slower,
    /// The device had no room for it.
    NoRoom,
    /// It was known once, and is evicted.
    Evicted,
    /// What is cached goes on with other tokens.
    Diverged {
        /// The index of the first that differs.
        at: u32,
        /// Cached tokens from there on, a few.
        cached: Vec<u32>,
        /// The prompt's.
        asked: Vec<u32>,
    },
    /// Nothing is known from there on.
    NeverSeen,
}
