//! The language between `offshoot` and `offshoot-runner`.
//!
//! One process per loaded model speaks it over any ordered byte stream. Each side first sends a
//! fixed-format hello ([`Hello`]), so that two builds that do not fit are told apart before
//! anything else is decoded; then come frames ([`write_frame`], [`read_frame`]) that hold a
//! [`Command`] (to the runner) or an [`Event`] (from it).
//!
//! Invariants:
//! - Token ids, never text: rendering, tokenizing and parsing stay in `offshoot`. A grammar is not
//!   text of a conversation and travels as it is.
//! - Any change of a type in this crate that alters its encoding raises [`VERSION`].
//! - No input, however broken, panics or allocates more than it has sent (plus a small constant).
//! - Pure: no file, clock, thread or environment.

mod cache;
mod frame;
mod grammar;
mod hello;
mod inspect;
mod message;
mod quantize;
mod request;
mod sampling;

pub use cache::{
    Boundary, BoundaryKind, CacheMatch, CacheSettings, CacheTier, DiskSettings, MissCause,
};
pub use frame::{FrameError, MAX_FRAME_BYTES, read_frame, write_frame};
pub use grammar::{Grammar, MAX_GRAMMAR_BYTES, MAX_TAG_LENGTH, Reasoning, Rule, Tag};
pub use hello::{Hello, HelloError, VERSION, exchange};
pub use inspect::{
    CacheNode, Divergence, Inspect, InspectRequest, Inspected, MAX_INSPECTED_NODES, NodeKind,
    TierTotals,
};
pub use message::{
    BenchResult, Command, DeviceInfo, Event, Fault, FinishReason, LogitsRows, ModelInfo, Timings,
    Usage,
};
pub use quantize::{
    Coding, CodingMode, FloatType, QuantizeProgress, QuantizeReport, QuantizeRequest,
    QuantizeTarget, RoleReport,
};
pub use request::{
    BenchRequest, GenerateRequest, LoadRequest, LogitsRequest, MAX_TOP_LOGPROBS, ModelSource,
    RequestId,
};
pub use sampling::{InvalidField, Sampling};
