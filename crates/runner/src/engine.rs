//! What the loop needs from an engine: the contract between `runner` and whatever computes.

use std::ops::ControlFlow;

use protocol::{
    BenchRequest, BenchResult, DeviceInfo, Event, Fault, GenerateRequest, InspectRequest,
    Inspected, LoadRequest, LogitsRequest, ModelInfo, QuantizeProgress, QuantizeReport,
    QuantizeRequest, RequestId, Timings, Usage,
};

/// Something went wrong, and whose fault it is.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct EngineError {
    /// Whose fault it is. [`Fault::Ours`] from [`Engine::step`] ends the process.
    pub fault: Fault,
    /// What happened and, where it is known, what to do.
    pub message: String,
}

impl EngineError {
    /// An error with its fault.
    pub fn new(fault: Fault, message: impl Into<String>) -> Self {
        Self { fault, message: message.into() }
    }
}

/// Whether there is more to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StepOutcome {
    /// Call again.
    Busy,
    /// No request is left; the loop waits for the next command.
    Idle,
}

/// How a job that may be stopped has ended.
#[derive(Debug, Clone, PartialEq)]
pub enum Outcome<T> {
    /// With its result.
    Done(T),
    /// Because it was asked to stop.
    Stopped,
}

/// Makes an engine. Consumed by loading: one process serves one model.
pub trait Loader {
    /// What it makes.
    type Engine: Engine;

    /// Describes the device without loading anything.
    fn probe(&mut self) -> Result<DeviceInfo, EngineError>;

    /// Writes a model anew, quantized, without loading it. `progress` is called after each piece;
    /// on `Break` the work stops, and is stopped.
    fn quantize(
        &mut self,
        request: &QuantizeRequest,
        progress: &mut dyn FnMut(QuantizeProgress) -> ControlFlow<()>,
    ) -> Result<Outcome<QuantizeReport>, EngineError>;

    /// Loads a model. `progress(done_bytes, total_bytes)` is called after each piece; on `Break`
    /// the loader returns at once (with any error: nobody is left to read it).
    fn load(
        self,
        request: &LoadRequest,
        progress: &mut dyn FnMut(u64, u64) -> ControlFlow<()>,
    ) -> Result<Self::Engine, EngineError>;
}

/// Runs requests on one loaded model. Requests arrive validated against [`Engine::info`].
pub trait Engine {
    /// The loaded model.
    fn info(&self) -> ModelInfo;

    /// Accepts a request, or refuses it with an error that becomes its `Failed`.
    fn submit(&mut self, request: GenerateRequest) -> Result<(), EngineError>;

    /// What is in the prefix cache, without a change to it.
    fn inspect(&self, request: &InspectRequest) -> Inspected;

    /// Drops a request that was submitted and has not ended, and frees what it holds. The loop
    /// sends its `Finished`; the engine emits nothing more about it.
    fn cancel(&mut self, id: RequestId) -> (Usage, Timings);

    /// Does one bounded piece of work for the submitted requests, emitting `PrefillProgress`,
    /// `Token`, `Finished` and `Failed` events about them. What goes wrong for one request is a
    /// `Failed` event; an error means that the step failed for all of them.
    fn step(&mut self, emit: &mut dyn FnMut(Event)) -> Result<StepOutcome, EngineError>;

    /// Computes the logits of every position. `rows(first_row, values)` takes whole rows in
    /// order, `values[row * vocab_size + col]`; `should_stop` is asked after each chunk.
    fn logits(
        &mut self,
        request: &LogitsRequest,
        rows: &mut dyn FnMut(u32, &[f32]),
        should_stop: &mut dyn FnMut() -> bool,
    ) -> Result<Outcome<()>, EngineError>;

    /// Measures speed; `should_stop` is asked at least once per decode step and prefill chunk.
    fn bench(
        &mut self,
        request: &BenchRequest,
        should_stop: &mut dyn FnMut() -> bool,
    ) -> Result<Outcome<BenchResult>, EngineError>;
}
