//! `offshoot-runner`: one process per loaded model. It owns MLX; `offshoot` starts it and talks
//! to it over its standard input. Started by hand it only says so.

use std::ops::ControlFlow;
use std::process::ExitCode;
use std::time::Duration;

use protocol::{
    BenchRequest, BenchResult, DeviceInfo, Event, GenerateRequest, InspectRequest, Inspected,
    LoadRequest, LogitsRequest, ModelInfo, QuantizeProgress, QuantizeReport, QuantizeRequest,
    RequestId, Timings, Usage,
};
use runner::{EngineError, Outcome, RunError, StepOutcome};

fn main() -> ExitCode {
    let channel = match runner::inherited() {
        Ok(channel) => channel,
        Err(error) => return fail(error),
    };
    if let Err(error) = set_up_cpu() {
        return fail(error);
    }
    let build = env!("CARGO_PKG_VERSION");
    let reader = runner::Watched::new(channel.reader, end_soon);
    match runner::run(reader, channel.writer, build, Loader { backend: backend() }) {
        Ok(()) => ExitCode::SUCCESS,
        Err(RunError::Reported(_)) => ExitCode::FAILURE,
        Err(error) => fail(error),
    }
}

/// For a step that is nearly done when the parent goes, and for an orderly end.
const ORPHAN_PATIENCE: Duration = Duration::from_secs(2);

/// The parent has gone: ends the process also in the midst of a step. It must not wait for the
/// threads that compute, as an orderly exit does.
fn end_soon() {
    std::thread::spawn(|| {
        std::thread::sleep(ORPHAN_PATIENCE);
        #[cfg(unix)]
        let _ = nix::sys::signal::kill(nix::unistd::Pid::this(), nix::sys::signal::SIGKILL);
        std::process::abort();
    });
}

fn fail(error: impl std::fmt::Display) -> ExitCode {
    eprintln!("error: {error}");
    ExitCode::FAILURE
}

/// The backend that `offshoot` asks for; none leaves the choice to the library.
fn backend() -> Option<String> {
    std::env::var("OFFSHOOT_BACKEND").ok().filter(|name| !name.is_empty() && name != "auto")
}

/// How `offshoot` wants the CPU to compute.
fn set_up_cpu() -> Result<(), String> {
    if let Ok(threads) = std::env::var("OFFSHOOT_THREADS") {
        let n = threads.parse::<std::num::NonZeroUsize>().map_err(|_| {
            format!("OFFSHOOT_THREADS is '{threads}': it must be a number of threads from 1 on")
        })?;
        engine::set_threads(n.get());
    }
    engine::set_exact(std::env::var_os("OFFSHOOT_EXACT").is_some_and(|value| value == "1"));
    Ok(())
}

struct Loader {
    backend: Option<String>,
}

impl runner::Loader for Loader {
    type Engine = Engine;

    fn probe(&mut self) -> Result<DeviceInfo, EngineError> {
        engine::Engine::probe(self.backend.as_deref()).map_err(told)
    }

    fn quantize(
        &mut self,
        request: &QuantizeRequest,
        progress: &mut dyn FnMut(QuantizeProgress) -> ControlFlow<()>,
    ) -> Result<Outcome<QuantizeReport>, EngineError> {
        let outcome = engine::quantize(request, self.backend.as_deref(), progress);
        outcome.map(ended).map_err(told)
    }

    fn load(
        self,
        request: &LoadRequest,
        progress: &mut dyn FnMut(u64, u64) -> ControlFlow<()>,
    ) -> Result<Engine, EngineError> {
        let engine = engine::Engine::load(request, self.backend.as_deref(), progress);
        engine.map(Engine).map_err(told)
    }
}

/// The engine as the loop sees it.
struct Engine(engine::Engine);

impl runner::Engine for Engine {
    fn info(&self) -> ModelInfo {
        self.0.info()
    }

    fn submit(&mut self, request: GenerateRequest) -> Result<(), EngineError> {
        self.0.submit(request).map_err(told)
    }

    fn inspect(&self, request: &InspectRequest) -> Inspected {
        self.0.inspect(request)
    }

    fn cancel(&mut self, id: RequestId) -> (Usage, Timings) {
        self.0.cancel(id)
    }

    fn step(&mut self, emit: &mut dyn FnMut(Event)) -> Result<StepOutcome, EngineError> {
        match self.0.step(emit) {
            Ok(true) => Ok(StepOutcome::Busy),
            Ok(false) => Ok(StepOutcome::Idle),
            Err(error) => Err(told(error)),
        }
    }

    fn logits(
        &mut self,
        request: &LogitsRequest,
        rows: &mut dyn FnMut(u32, &[f32]),
        should_stop: &mut dyn FnMut() -> bool,
    ) -> Result<Outcome<()>, EngineError> {
        self.0.logits(request, rows, should_stop).map(ended).map_err(told)
    }

    fn bench(
        &mut self,
        request: &BenchRequest,
        should_stop: &mut dyn FnMut() -> bool,
    ) -> Result<Outcome<BenchResult>, EngineError> {
        self.0.bench(request, should_stop).map(ended).map_err(told)
    }
}

fn ended<T>(outcome: engine::Outcome<T>) -> Outcome<T> {
    match outcome {
        engine::Outcome::Done(result) => Outcome::Done(result),
        engine::Outcome::Stopped => Outcome::Stopped,
    }
}

fn told(error: engine::Error) -> EngineError {
    EngineError { fault: error.fault, message: error.message }
}
