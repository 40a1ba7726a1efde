//! The loop itself. See the crate's documentation for its invariants.

use std::collections::{BTreeSet, VecDeque};
use std::io::{self, Read, Write};
use std::ops::ControlFlow;
use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};

use protocol::{
    BenchRequest, CacheMatch, Command, Event, Fault, FinishReason, FrameError, GenerateRequest,
    HelloError, InspectRequest, InvalidField, LoadRequest, LogitsRequest, LogitsRows, ModelInfo,
    QuantizeRequest, RequestId, Timings, Usage,
};

use crate::engine::{Engine, EngineError, Loader, Outcome, StepOutcome};

/// Values per `LogitsRows` event are kept below this, far under the frame cap.
const MAX_EVENT_VALUES: usize = 1 << 20;

/// Why the loop ended early. Exit with a failure; print all but [`RunError::Reported`].
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// No conversation came about.
    #[error(transparent)]
    Hello(#[from] HelloError),
    /// The parent sent something that is not a command.
    #[error("cannot read a command: {0}")]
    Command(#[source] FrameError),
    /// An event could not be sent although the parent is there.
    #[error("cannot send an event: {0}")]
    Event(#[source] FrameError),
    /// The engine failed; the parent has been told already.
    #[error("{0}")]
    Reported(#[source] EngineError),
}

/// Serves one conversation: hello, probes, one load, requests; until shutdown, the end of
/// `reader`, or an error that leaves nothing to serve.
///
/// `build` names this build in the hello. The thread that reads commands outlives this call until
/// `reader` ends.
pub fn run<L: Loader>(
    mut reader: impl Read + Send + 'static,
    mut writer: impl Write,
    build: &str,
    loader: L,
) -> Result<(), RunError> {
    protocol::exchange(&mut reader, &mut writer, build)?;
    let (sender, receiver) = channel();
    std::thread::spawn(move || read_commands(reader, &sender));
    let mut link = Link { inbox: Inbox::new(receiver), writer, ended: None };
    let result = serve(&mut link, loader);
    match (link.ended, result) {
        (Some(Ended::Broken(error)), _) => Err(error),
        (Some(Ended::ParentGone | Ended::Shutdown), _) => Ok(()),
        (None, result) => result.map_err(RunError::Reported),
    }
}

fn read_commands(mut reader: impl Read, sender: &Sender<Result<Option<Command>, FrameError>>) {
    loop {
        let message = match protocol::read_frame(&mut reader) {
            Err(FrameError::Io(e)) if is_gone(&e) => Ok(None),
            other => other,
        };
        let last = !matches!(message, Ok(Some(_)));
        if sender.send(message).is_err() || last {
            return;
        }
    }
}

fn is_gone(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset)
}

/// Why nothing more is to be done.
enum Ended {
    Shutdown,
    ParentGone,
    Broken(RunError),
}

/// Commands in order; those seen while looking ahead wait in `ahead`.
struct Inbox {
    receiver: Receiver<Result<Option<Command>, FrameError>>,
    ahead: VecDeque<Command>,
}

impl Inbox {
    fn new(receiver: Receiver<Result<Option<Command>, FrameError>>) -> Self {
        Self { receiver, ahead: VecDeque::new() }
    }
}

/// The parent's side of the loop: what it says, what is said to it, and whether it is over.
struct Link<W> {
    inbox: Inbox,
    writer: W,
    ended: Option<Ended>,
}

impl<W: Write> Link<W> {
    fn send(&mut self, event: &Event) {
        if self.ended.is_some() {
            return;
        }
        self.ended = match protocol::write_frame(&mut self.writer, event) {
            Ok(()) => None,
            Err(FrameError::Io(e)) if is_gone(&e) => Some(Ended::ParentGone),
            Err(error) => Some(Ended::Broken(RunError::Event(error))),
        };
    }

    fn fail(&mut self, id: Option<RequestId>, error: EngineError) {
        self.send(&Event::Failed { id, fault: error.fault, message: error.message });
    }

    /// The next command; waits for it when `wait`. `None`: nothing there, or it is over.
    fn next_command(&mut self, wait: bool) -> Option<Command> {
        if self.ended.is_some() {
            return None;
        }
        match self.inbox.ahead.pop_front() {
            Some(command) => Some(command),
            None => self.receive(wait),
        }
    }

    fn receive(&mut self, wait: bool) -> Option<Command> {
        let message = if wait {
            self.inbox.receiver.recv().unwrap_or(Ok(None))
        } else {
            match self.inbox.receiver.try_recv() {
                Ok(message) => message,
                Err(TryRecvError::Empty) => return None,
                Err(TryRecvError::Disconnected) => Ok(None),
            }
        };
        match message {
            Ok(Some(command)) => return Some(command),
            Ok(None) => self.ended = Some(Ended::ParentGone),
            Err(error) => {
                let message = format!("cannot read a command: {error}");
                self.fail(None, EngineError::new(Fault::Ours, message));
                self.ended = Some(Ended::Broken(RunError::Command(error)));
            }
        }
        None
    }

    /// Looks at what has arrived without executing it: whether the job `id` is to stop.
    fn should_stop(&mut self, id: Option<RequestId>) -> bool {
        while self.ended.is_none()
            && let Some(command) = self.receive(false)
        {
            self.inbox.ahead.push_back(command);
        }
        self.ended.is_some()
            || self.inbox.ahead.iter().any(|command| match command {
                Command::Shutdown => true,
                Command::Cancel { id: cancelled } => Some(*cancelled) == id,
                _ => false,
            })
    }
}

/// Before the load: probes, then exactly one load.
fn serve<L: Loader>(link: &mut Link<impl Write>, mut loader: L) -> Result<(), EngineError> {
    while let Some(command) = link.next_command(true) {
        match command {
            Command::Probe => match loader.probe() {
                Ok(device) => link.send(&Event::Probed(device)),
                Err(error) => link.fail(None, error),
            },
            Command::Load(request) => return load(link, loader, &request),
            Command::Quantize(request) => quantize(link, &mut loader, &request),
            Command::Shutdown => link.ended = Some(Ended::Shutdown),
            Command::Cancel { .. } => {}
            Command::Generate(GenerateRequest { id, .. })
            | Command::Inspect(InspectRequest { id, .. })
            | Command::Logits(LogitsRequest { id, .. })
            | Command::Bench(BenchRequest { id, .. }) => {
                link.fail(Some(id), EngineError::new(Fault::Ours, "no model is loaded yet"));
            }
        }
    }
    Ok(())
}

fn quantize<L: Loader>(link: &mut Link<impl Write>, loader: &mut L, request: &QuantizeRequest) {
    let id = request.id;
    if let Err(invalid) = request.validate() {
        return link.fail(Some(id), caller(invalid));
    }
    let outcome = loader.quantize(request, &mut |progress| {
        link.send(&Event::QuantizeProgress(progress));
        if link.should_stop(Some(id)) { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    let reason = match outcome {
        Ok(Outcome::Done(report)) => {
            link.send(&Event::QuantizeReport(report));
            FinishReason::Stop
        }
        Ok(Outcome::Stopped) => FinishReason::Cancelled,
        Err(error) => return link.fail(Some(id), error),
    };
    let (usage, timings) = (Usage::default(), Timings::default());
    link.send(&Event::Finished { id, reason, usage, timings });
}

fn load<L: Loader>(
    link: &mut Link<impl Write>,
    loader: L,
    request: &LoadRequest,
) -> Result<(), EngineError> {
    let loaded = loader.load(request, &mut |done_bytes, total_bytes| {
        link.send(&Event::LoadProgress { done_bytes, total_bytes });
        if link.should_stop(None) { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    match loaded {
        Ok(engine) => {
            let info = engine.info();
            link.send(&Event::Loaded(info.clone()));
            Serving { link, engine, info, live: BTreeSet::new() }.run()
        }
        // Stopped on request: an error that nobody waits for.
        Err(_) if link.should_stop(None) => {
            link.ended.get_or_insert(Ended::Shutdown);
            Ok(())
        }
        Err(error) => {
            link.fail(None, error.clone());
            Err(error)
        }
    }
}

/// After the load.
struct Serving<'a, E, W> {
    link: &'a mut Link<W>,
    engine: E,
    info: ModelInfo,
    /// Requests the engine holds.
    live: BTreeSet<RequestId>,
}

impl<E: Engine, W: Write> Serving<'_, E, W> {
    fn run(&mut self) -> Result<(), EngineError> {
        let mut idle = true;
        while self.link.ended.is_none() {
            if let Some(command) = self.link.next_command(idle) {
                self.execute(command)?;
                idle = idle && self.live.is_empty();
            } else if self.link.ended.is_none() {
                idle = self.step()? == StepOutcome::Idle;
            }
        }
        Ok(())
    }

    fn execute(&mut self, command: Command) -> Result<(), EngineError> {
        match command {
            Command::Generate(request) => self.submit(request),
            Command::Logits(request) => self.logits(&request)?,
            Command::Bench(request) => self.bench(&request)?,
            Command::Inspect(request) => self.inspect(&request),
            Command::Cancel { id } => self.cancel(id),
            Command::Probe => self.link.send(&Event::Probed(self.info.device.clone())),
            Command::Quantize(QuantizeRequest { id, .. }) => {
                let message = "a model is loaded: a runner without one quantizes";
                self.link.fail(Some(id), EngineError::new(Fault::Ours, message));
            }
            Command::Load(_) => {
                let message = "a model is loaded already; one runner serves one model";
                self.link.fail(None, EngineError::new(Fault::Ours, message));
            }
            Command::Shutdown => {
                for id in std::mem::take(&mut self.live) {
                    self.end_cancelled(id);
                }
                self.link.ended = Some(Ended::Shutdown);
            }
        }
        Ok(())
    }

    fn submit(&mut self, request: GenerateRequest) {
        let id = request.id;
        if self.live.contains(&id) {
            let message = format!("{id} is still running; ids are never used twice");
            return self.link.fail(None, EngineError::new(Fault::Ours, message));
        }
        let accepted = request
            .validate()
            .and_then(|()| request.fits(&self.info))
            .map_err(caller)
            .and_then(|()| self.engine.submit(request));
        match accepted {
            Ok(()) => {
                self.live.insert(id);
            }
            Err(error) => self.link.fail(Some(id), error),
        }
    }

    fn inspect(&mut self, request: &InspectRequest) {
        match request.fits(&self.info) {
            Err(invalid) => self.link.fail(Some(request.id), caller(invalid)),
            Ok(()) => {
                self.link.send(&Event::Inspected(Box::new(self.engine.inspect(request))));
                let (usage, timings) = (Usage::default(), Timings::default());
                self.finish(request.id, FinishReason::Stop, usage, timings);
            }
        }
    }

    fn cancel(&mut self, id: RequestId) {
        if self.live.remove(&id) {
            self.end_cancelled(id);
        }
    }

    fn end_cancelled(&mut self, id: RequestId) {
        let (usage, timings) = self.engine.cancel(id);
        self.finish(id, FinishReason::Cancelled, usage, timings);
    }

    fn finish(&mut self, id: RequestId, reason: FinishReason, usage: Usage, timings: Timings) {
        self.link.send(&Event::Finished { id, reason, usage, timings });
    }

    fn step(&mut self) -> Result<StepOutcome, EngineError> {
        let Self { link, engine, live, .. } = self;
        let stepped = engine.step(&mut |event| {
            let passes = match &event {
                Event::Matched(CacheMatch { id, .. })
                | Event::PrefillProgress { id, .. }
                | Event::Token { id, .. } => live.contains(id),
                Event::Finished { id, .. } | Event::Failed { id: Some(id), .. } => live.remove(id),
                _ => false,
            };
            debug_assert!(passes, "the engine emits {event:?} for no live request");
            if passes {
                link.send(&event);
            }
        });
        match stepped {
            Ok(StepOutcome::Idle) if !self.live.is_empty() => {
                let message = format!("the engine is idle but {} requests live", self.live.len());
                self.fail_all(&EngineError::new(Fault::Ours, message))
            }
            Ok(outcome) => Ok(outcome),
            Err(error) => self.fail_all(&error),
        }
    }

    /// The step failed for every request. After a fault of ours the engine is not to be trusted.
    fn fail_all(&mut self, error: &EngineError) -> Result<StepOutcome, EngineError> {
        for id in std::mem::take(&mut self.live) {
            self.engine.cancel(id);
            self.link.fail(Some(id), error.clone());
        }
        match error.fault {
            Fault::Ours => {
                self.link.fail(None, error.clone());
                Err(error.clone())
            }
            Fault::Caller | Fault::Memory | Fault::World => Ok(StepOutcome::Idle),
        }
    }

    fn logits(&mut self, request: &LogitsRequest) -> Result<(), EngineError> {
        let id = request.id;
        if let Err(invalid) = request.validate().and_then(|()| request.fits(&self.info)) {
            self.link.fail(Some(id), caller(invalid));
            return Ok(());
        }
        let n_cols = self.info.vocab_size as usize;
        let rows_per_event = (MAX_EVENT_VALUES / n_cols.max(1)).max(1);
        // Both callbacks need the link, one at a time.
        let link = std::cell::RefCell::new(&mut *self.link);
        let outcome = self.engine.logits(
            request,
            &mut |first_row, values| {
                let mut first_row = first_row;
                for piece in values.chunks(rows_per_event * n_cols) {
                    link.borrow_mut().send(&Event::LogitsRows(LogitsRows {
                        id,
                        first_row,
                        n_cols: n_cols as u32,
                        values: piece.to_vec(),
                    }));
                    first_row += rows_per_event as u32;
                }
            },
            &mut || link.borrow_mut().should_stop(Some(id)),
        );
        let n_tokens = request.tokens.len();
        self.end_job(id, n_tokens, outcome)
    }

    fn bench(&mut self, request: &BenchRequest) -> Result<(), EngineError> {
        let id = request.id;
        if let Err(invalid) = request.validate().and_then(|()| request.fits(&self.info)) {
            self.link.fail(Some(id), caller(invalid));
            return Ok(());
        }
        let link = &mut *self.link;
        let outcome = self.engine.bench(request, &mut || link.should_stop(Some(id)));
        if let Ok(Outcome::Done(result)) = &outcome {
            self.link.send(&Event::BenchResult(result.clone()));
        }
        let n_tokens = request.prompt_tokens as usize * request.batch as usize;
        self.end_job(id, n_tokens, outcome)
    }

    /// Ends a job that ran in one go. The `Cancel` that stopped it finds nothing to do later.
    fn end_job<T>(
        &mut self,
        id: RequestId,
        n_tokens: usize,
        outcome: Result<Outcome<T>, EngineError>,
    ) -> Result<(), EngineError> {
        let reason = match outcome {
            Ok(Outcome::Done(_)) => FinishReason::Stop,
            Ok(Outcome::Stopped) => FinishReason::Cancelled,
            Err(error) => {
                self.link.fail(Some(id), error.clone());
                return match error.fault {
                    Fault::Ours => self.fail_all(&error).map(drop),
                    Fault::Caller | Fault::Memory | Fault::World => Ok(()),
                };
            }
        };
        let prompt_tokens = u32::try_from(n_tokens).unwrap_or(u32::MAX);
        self.finish(id, reason, Usage { prompt_tokens, ..Usage::default() }, Timings::default());
        Ok(())
    }
}

fn caller(invalid: InvalidField) -> EngineError {
    EngineError::new(Fault::Caller, invalid.to_string())
}
