//! A runner with a loaded model, from the command line's view: started with a progress line,
//! stopped by Ctrl-C, one request at a time.

use std::time::{Duration, Instant};

use hub::Model;
use protocol::{
    CacheSettings, Command, Event, FinishReason, LoadRequest, ModelInfo, ModelSource, RequestId,
    Timings, Usage,
};
use server::backend::{Chosen, Machine, Places, choose};
use server::supervisor::{Runner, RunnerError, RunnerProgram, find_runner};

use crate::failure::{Failure, Result};
use crate::flags::BackendFlags;
use crate::interrupts::Interrupts;
use crate::output::{Progress, say};

/// Named in the greeting and in version errors.
pub const BUILD: &str = env!("CARGO_PKG_VERSION");

/// Time for a runner to end by itself before it is killed.
const SHUTDOWN_PATIENCE: Duration = Duration::from_secs(5);

/// A runner, one request at a time.
pub struct Worker {
    runner: Option<Runner>,
    /// Until it has failed as a whole.
    is_alive: bool,
    interrupts: Interrupts,
    next_id: u64,
}

/// A loaded model.
pub struct Session {
    worker: Worker,
    /// What was loaded.
    pub info: ModelInfo,
    /// From the start of the process to the loaded model.
    pub load_ms: f64,
}

/// How a request ended.
#[derive(Debug, Clone, Copy)]
pub struct Ending {
    /// Why.
    pub reason: FinishReason,
    /// Tokens in and out.
    pub usage: Usage,
    /// Where the time went.
    pub timings: Timings,
}

/// What the runner is to load for a resolved model. `n_layers` shortens a shape.
pub fn source(model: &Model, n_layers: Option<u32>) -> Result<ModelSource> {
    match model {
        Model::Shape(shape) => Ok(ModelSource::Shape {
            name: shape.name.clone(),
            quantization: shape.quantization.as_str().to_owned(),
            n_layers,
        }),
        Model::Folder { .. } if n_layers.is_some() => {
            Err(Failure::usage("--layers shortens shapes only (shape:NAME:QUANT)"))
        }
        Model::Folder { folder, .. } => {
            let path = folder.path().to_str().ok_or_else(|| {
                Failure::new(format!("{} is not UTF-8", folder.path().display()))
                    .with_hint("rename the folder")
            })?;
            Ok(ModelSource::Folder { path: path.to_owned() })
        }
    }
}

/// Chooses the backend for this machine. A data folder is not needed for that.
pub fn choose_backend(flags: &BackendFlags) -> Result<Chosen> {
    let places = Places::of_process(hub::data_dir().ok());
    let mut chosen = choose(flags.asked()?, Machine::detect(), &places)?;
    chosen.env.extend(flags.env());
    Ok(chosen)
}

/// Bytes of memory of the device that would compute, as a runner names them; none where the device
/// does not say. Nothing is loaded.
pub fn device_memory(flags: &BackendFlags) -> Result<Option<u64>> {
    let program = RunnerProgram { path: find_runner()?, env: choose_backend(flags)?.env };
    let mut runner = Runner::spawn(&program, BUILD)?;
    let device = runner.greet().and_then(|_| runner.probe());
    runner.shutdown(SHUTDOWN_PATIENCE);
    Ok(device?.memory_bytes)
}

impl Session {
    /// Starts a runner and has it load a model.
    pub fn start(
        source: ModelSource,
        cache: CacheSettings,
        deterministic: bool,
        backend: &BackendFlags,
        interrupts: &Interrupts,
    ) -> Result<Self> {
        let start = Instant::now();
        let (worker, info) = Worker::started(backend, interrupts, |runner| {
            let mut progress = Progress::new("loading");
            runner.load(
                LoadRequest { source, cache, chunk_tokens: None, deterministic, max_rows: None },
                &mut |done, total| progress.update(done, total),
            )
        })?;
        let load_ms = start.elapsed().as_secs_f64() * 1000.0;
        Ok(Self { worker, info, load_ms })
    }

    /// Whether the runner can take another request.
    pub fn is_alive(&self) -> bool {
        self.worker.is_alive
    }

    /// A new request's name.
    pub fn next_id(&mut self) -> RequestId {
        self.worker.next_id()
    }

    /// As [`Worker::request`].
    pub fn request(
        &mut self,
        id: RequestId,
        command: &Command,
        on_event: &mut dyn FnMut(Event) -> Result<()>,
    ) -> Result<Ending> {
        self.worker.request(id, command, on_event)
    }
}

impl Worker {
    /// Starts a runner that loads no model.
    pub fn start(backend: &BackendFlags, interrupts: &Interrupts) -> Result<Self> {
        Ok(Self::started(backend, interrupts, |_| Ok(()))?.0)
    }

    /// Starts a runner, which then does what comes before its first request.
    fn started<T>(
        backend: &BackendFlags,
        interrupts: &Interrupts,
        begin: impl FnOnce(&mut Runner) -> std::result::Result<T, RunnerError>,
    ) -> Result<(Self, T)> {
        let chosen = choose_backend(backend)?;
        if let Some(hint) = &chosen.hint {
            say(&format!("hint: {}; {hint}", chosen.reason));
        }
        let program = RunnerProgram { path: find_runner()?, env: chosen.env };
        let mut runner = Runner::spawn(&program, BUILD)?;
        interrupts.end_runner(runner.handle());
        let begun = runner.greet().and_then(|_| begin(&mut runner)).map_err(of_runner)?;
        let interrupts = interrupts.clone();
        let worker = Self { runner: Some(runner), is_alive: true, interrupts, next_id: 1 };
        // Ctrl-C that came too late for the beginning still counts.
        if worker.interrupts.was_pressed() {
            return Err(Failure::Interrupted);
        }
        Ok((worker, begun))
    }

    /// A new request's name.
    pub fn next_id(&mut self) -> RequestId {
        self.next_id += 1;
        RequestId(self.next_id - 1)
    }

    /// Sends a request and waits for its end; `on_event` sees the events before it. When that
    /// fails, the request is cancelled and its end awaited all the same.
    pub fn request(
        &mut self,
        id: RequestId,
        command: &Command,
        on_event: &mut dyn FnMut(Event) -> Result<()>,
    ) -> Result<Ending> {
        let runner = self.runner.as_mut().ok_or_else(|| Failure::new("the runner has ended"))?;
        self.interrupts.stop_request(runner.handle(), id);
        runner.send(command);
        let mut failed = None;
        let result = loop {
            let event = match runner.next_event() {
                Ok(event) => event,
                Err(error) => {
                    self.is_alive = false;
                    break Err(of_runner(error));
                }
            };
            match event {
                Event::Finished { id: of, reason, usage, timings } if of == id => {
                    break Ok(Ending { reason, usage, timings });
                }
                Event::Failed { id: Some(of), message, .. } if of == id => {
                    break Err(Failure::new(message));
                }
                event if failed.is_none() => {
                    if let Err(error) = on_event(event) {
                        runner.handle().cancel(id);
                        failed = Some(error);
                    }
                }
                _ => {}
            }
        };
        self.interrupts.end_process();
        match failed {
            Some(failure) => Err(failure),
            None => result,
        }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        if let Some(runner) = self.runner.take() {
            self.interrupts.end_process();
            runner.shutdown(SHUTDOWN_PATIENCE);
        }
    }
}

/// Only Ctrl-C kills a runner that is waited for.
fn of_runner(error: RunnerError) -> Failure {
    match error {
        RunnerError::Killed => Failure::Interrupted,
        error => error.into(),
    }
}
