//! The messages themselves: [`Command`] to the runner, [`Event`] from it.
//!
//! Order: `Probe` at any time; `Load` once; requests only after `Loaded`. Each request ends with
//! exactly one `Finished`, or one `Failed` that names it; nothing about it comes afterwards.

use serde::{Deserialize, Serialize};

use crate::cache::CacheMatch;
use crate::inspect::{InspectRequest, Inspected};
use crate::quantize::{QuantizeProgress, QuantizeReport, QuantizeRequest};
use crate::request::{BenchRequest, GenerateRequest, LoadRequest, LogitsRequest, RequestId};

/// From `offshoot` to the runner.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(proptest_derive::Arbitrary))]
pub enum Command {
    /// Describe the device; answered by `Probed`, or `Failed` without an id.
    Probe,
    /// Load the model; answered by `Loaded`, or `Failed` without an id.
    Load(LoadRequest),
    /// Continue a prompt.
    Generate(GenerateRequest),
    /// Stop a request as soon as possible. No error when it is unknown or has ended already.
    Cancel {
        /// Which request.
        id: RequestId,
    },
    /// Compute logits.
    Logits(LogitsRequest),
    /// Measure speed.
    Bench(BenchRequest),
    /// Look into the prefix cache.
    Inspect(InspectRequest),
    /// Write a model anew, quantized; instead of loading one.
    Quantize(QuantizeRequest),
    /// End the process: running requests finish as cancelled.
    Shutdown,
}

/// From the runner to `offshoot`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(proptest_derive::Arbitrary))]
pub enum Event {
    /// The device and the library that drives it.
    Probed(DeviceInfo),
    /// How far loading is.
    LoadProgress {
        /// Weight bytes that are ready.
        done_bytes: u64,
        /// Weight bytes in all.
        total_bytes: u64,
    },
    /// The model is ready for requests.
    Loaded(ModelInfo),
    /// What the prefix cache has of a prompt; comes before anything else about the request.
    Matched(CacheMatch),
    /// How far a prompt is computed.
    PrefillProgress {
        /// Which request.
        id: RequestId,
        /// Prompt tokens that are computed or came from the cache.
        done_tokens: u32,
        /// Prompt tokens in all.
        total_tokens: u32,
    },
    /// One more token of an answer.
    Token {
        /// Which request.
        id: RequestId,
        /// The token.
        token: u32,
        /// Its natural log probability, when `top_logprobs` was asked.
        logprob: Option<f32>,
        /// The most likely tokens with their natural log probabilities, best first.
        top: Vec<(u32, f32)>,
    },
    /// Some rows of logits, in order.
    LogitsRows(LogitsRows),
    /// What a bench measured.
    BenchResult(BenchResult),
    /// What is in the prefix cache.
    Inspected(Box<Inspected>),
    /// How far a quantization is.
    QuantizeProgress(QuantizeProgress),
    /// What a quantization has made.
    QuantizeReport(QuantizeReport),
    /// A request has ended without an error.
    Finished {
        /// Which request.
        id: RequestId,
        /// Why it ended.
        reason: FinishReason,
        /// Tokens that went in and out.
        usage: Usage,
        /// Where the time went.
        timings: Timings,
    },
    /// A request, or without an id the whole conversation, has failed.
    Failed {
        /// Which request.
        id: Option<RequestId>,
        /// Whose fault it is.
        fault: Fault,
        /// What happened and, where it is known, what to do.
        message: String,
    },
}

/// Why a request ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(proptest_derive::Arbitrary))]
pub enum FinishReason {
    /// A stop token was sampled; for logits, bench and quantize: the work is complete.
    Stop,
    /// `max_tokens` or the model's context was reached.
    Length,
    /// `Cancel` or `Shutdown` came first.
    Cancelled,
}

/// Whose fault a failure is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(proptest_derive::Arbitrary))]
pub enum Fault {
    /// The request cannot be served as it is; the message says what to change.
    Caller,
    /// Memory is short; the same request may succeed when others have left.
    Memory,
    /// Disk or device; the same request may succeed later or elsewhere.
    World,
    /// A defect of Offshoot.
    Ours,
}

/// Tokens that went in and out of one request.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(proptest_derive::Arbitrary))]
pub struct Usage {
    /// Tokens of the prompt, cached ones included.
    pub prompt_tokens: u32,
    /// Tokens of the prompt that were not computed again.
    pub cached_tokens: u32,
    /// Tokens generated, the stop token included.
    pub new_tokens: u32,
}

/// Where one request's time went, in milliseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(proptest_derive::Arbitrary))]
pub struct Timings {
    /// From its arrival to the first work on it.
    pub queue_ms: f64,
    /// From there to the first token.
    pub prefill_ms: f64,
    /// From the first token to the last.
    pub decode_ms: f64,
}

/// The device a runner drives.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(proptest_derive::Arbitrary))]
pub struct DeviceInfo {
    /// `cpu`, `cuda` or `metal`.
    pub backend: String,
    /// The device's own name.
    pub device: String,
    /// Memory the device can use, in bytes, where it says so.
    pub memory_bytes: Option<u64>,
    /// The version that the loaded libmlx reports.
    pub mlx_version: String,
}

/// A loaded model.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(proptest_derive::Arbitrary))]
pub struct ModelInfo {
    /// The family as the model's config names it (`model_type`).
    pub family: String,
    /// Parameters, counted as if not quantized.
    pub n_parameters: u64,
    /// Bytes of the weights in memory, scales included.
    pub weight_bytes: u64,
    /// Token ids are below this; also the columns of logits.
    pub vocab_size: u32,
    /// Layers that are loaded.
    pub n_layers: u32,
    /// Prompt and answer together, in tokens.
    pub context_tokens: u32,
    /// The type activations are computed in, e.g. `bfloat16`.
    pub dtype: String,
    /// How weights are quantized, e.g. `4bit`; `None` when they are not.
    pub quantization: Option<String>,
    /// Where it runs.
    pub device: DeviceInfo,
}

/// Whole rows of logits, `values[row * n_cols + col]`. Senders keep each frame below the cap.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(proptest_derive::Arbitrary))]
pub struct LogitsRows {
    /// Which request.
    pub id: RequestId,
    /// Position of the first row in the request's tokens.
    pub first_row: u32,
    /// Columns, the vocabulary's size.
    pub n_cols: u32,
    /// Row after row.
    pub values: Vec<f32>,
}

/// Speed at one batch size.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(proptest_derive::Arbitrary))]
pub struct BenchResult {
    /// Which request.
    pub id: RequestId,
    /// Rows run together.
    pub batch: u32,
    /// Prompt tokens per second, summed over rows.
    pub prefill_tok_s: f64,
    /// New tokens per second, summed over rows.
    pub decode_tok_s: f64,
    /// From the start to the first token of every row, in milliseconds.
    pub ttft_ms: f64,
    /// Most device memory in use at once.
    pub peak_bytes: u64,
    /// Weight bytes read to decode one token at batch 1.
    pub weight_bytes_per_token: u64,
    /// Decode speed as a share of what the device's memory bandwidth allows; `None` when the
    /// bandwidth is not known.
    pub bound_share: Option<f64>,
}
