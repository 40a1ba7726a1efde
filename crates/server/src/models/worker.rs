//! A runner with a loaded model, shared by many requests.
//!
//! Two threads serve it: one writes commands in order, one reads events and hands each to the
//! request that it is about, over a bounded channel. Neither ever waits for a request: one that
//! does not take its events loses its place, and its work is cancelled.
//!
//! Invariants:
//! - A ticket ends with exactly one `Finished` or `Failed` event, or with a [`Lost`].
//! - A ticket that is dropped before its end has its work cancelled.

use std::collections::HashMap;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use protocol::{
    CacheMatch, Command, Event, GenerateRequest, Inspect, InspectRequest, LoadRequest, ModelInfo,
    RequestId,
};
use tokio::sync::{mpsc, watch};

use crate::supervisor::{Handle, Runner, RunnerError, RunnerProgram};

/// Events that a request may leave lying before it counts as stalled.
const MAX_UNREAD_EVENTS: usize = 1024;

/// Why a request has no end of its own.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Lost {
    /// Its events were not taken for too long.
    #[error("the answer was not read fast enough, so it was stopped")]
    Stalled,
    /// The runner ended by itself.
    #[error("{0}")]
    Crashed(Arc<str>),
    /// The model was unloaded.
    #[error("the model was unloaded")]
    Stopped,
}

struct Route {
    /// None once it has stalled: its end is awaited, and nothing is sent.
    events: Option<mpsc::Sender<Event>>,
    verdict: Arc<OnceLock<Lost>>,
}

#[derive(Default)]
struct Routes {
    by_id: HashMap<RequestId, Route>,
    next_id: u64,
    /// Set when no event will come any more.
    ended: Option<Lost>,
    is_stopping: bool,
}

type Shared = Arc<Mutex<Routes>>;

fn lock(routes: &Mutex<Routes>) -> MutexGuard<'_, Routes> {
    routes.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A loaded model.
pub struct Worker {
    /// What was loaded.
    pub info: ModelInfo,
    /// The process.
    pub pid: u32,
    handle: Handle,
    commands: Sender<Command>,
    routes: Shared,
    /// True once the process has ended.
    ended: watch::Receiver<bool>,
}

impl std::fmt::Debug for Worker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Worker").field("pid", &self.pid).finish_non_exhaustive()
    }
}

/// One request's place at a worker.
pub struct Ticket {
    id: RequestId,
    events: mpsc::Receiver<Event>,
    verdict: Arc<OnceLock<Lost>>,
    commands: Sender<Command>,
    has_ended: bool,
}

impl Worker {
    /// Starts a runner and has it load a model; blocks until that is done. `on_start` gets what
    /// can end it meanwhile; `progress` is told of bytes done and in all. `on_end` is called once,
    /// on a thread of its own, when the process has ended: with an error unless it was asked to.
    ///
    /// # Errors
    /// The runner does not start, or cannot load the model.
    pub fn start(
        program: &RunnerProgram,
        build: &str,
        request: LoadRequest,
        on_start: impl FnOnce(Handle),
        progress: &mut dyn FnMut(u64, u64),
        on_end: impl FnOnce(Option<RunnerError>) + Send + 'static,
    ) -> Result<Self, RunnerError> {
        let mut runner = Runner::spawn(program, build)?;
        on_start(runner.handle());
        runner.greet()?;
        let info = runner.load(request, progress)?;
        let (handle, pid) = (runner.handle(), runner.pid());
        let routes = Shared::default();
        let (commands, receiver) = channel();
        let (ended_sender, ended) = watch::channel(false);
        let writer = runner.handle();
        std::thread::spawn(move || write_commands(&writer, &receiver));
        let (shared, sender) = (Arc::clone(&routes), commands.clone());
        std::thread::spawn(move || {
            let error = read_events(&mut runner, &shared, &sender);
            drop(runner);
            // First what decides on a restart, then those who may ask for one.
            let asked = lock(&shared).is_stopping;
            on_end((!asked).then_some(error));
            release(&shared);
            let _ = ended_sender.send(true);
        });
        Ok(Self { info, pid, handle, commands, routes, ended })
    }

    /// Sends a request; its id is chosen here.
    ///
    /// # Errors
    /// The runner has ended.
    pub fn submit(&self, request: GenerateRequest) -> Result<Ticket, Lost> {
        self.send(|id| Command::Generate(GenerateRequest { id, ..request }))
    }

    /// Looks into the cache.
    ///
    /// # Errors
    /// The runner has ended.
    pub fn inspect(&self, what: Inspect, shown_tokens: u32) -> Result<Ticket, Lost> {
        self.send(|id| Command::Inspect(InspectRequest { id, shown_tokens, what }))
    }

    fn send(&self, command: impl FnOnce(RequestId) -> Command) -> Result<Ticket, Lost> {
        let (sender, events) = mpsc::channel(MAX_UNREAD_EVENTS);
        let verdict = Arc::default();
        let mut routes = lock(&self.routes);
        if let Some(lost) = &routes.ended {
            return Err(lost.clone());
        }
        if routes.is_stopping {
            return Err(Lost::Stopped);
        }
        routes.next_id += 1;
        let id = RequestId(routes.next_id);
        let route = Route { events: Some(sender), verdict: Arc::clone(&verdict) };
        routes.by_id.insert(id, route);
        // Under the lock, so that the end of the runner cannot come between.
        let _ = self.commands.send(command(id));
        Ok(Ticket { id, events, verdict, commands: self.commands.clone(), has_ended: false })
    }

    /// Whether requests can be sent.
    pub fn is_alive(&self) -> bool {
        let routes = lock(&self.routes);
        routes.ended.is_none() && !routes.is_stopping
    }

    /// Requests that have not ended.
    pub fn n_requests(&self) -> usize {
        lock(&self.routes).by_id.len()
    }

    /// Asks the process to end: running requests end as cancelled. Returns at once.
    pub fn stop(&self) {
        lock(&self.routes).is_stopping = true;
        let _ = self.commands.send(Command::Shutdown);
    }

    /// Waits for the end of the process, which is killed after `patience`.
    pub async fn ended(&self, patience: Duration) {
        let mut ended = self.ended.clone();
        let has_ended = async { ended.wait_for(|ended| *ended).await.is_ok() };
        if tokio::time::timeout(patience, has_ended).await.is_err() {
            self.handle.kill();
            let _ = self.ended.clone().wait_for(|ended| *ended).await;
        }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Ticket {
    /// The next event; after the last one, why there is none. Cancel safe.
    pub async fn next(&mut self) -> Result<Event, Lost> {
        match self.events.recv().await {
            Some(event) => {
                self.has_ended |=
                    matches!(event, Event::Finished { .. } | Event::Failed { id: Some(_), .. });
                Ok(event)
            }
            None => {
                self.has_ended = true;
                Err(self.verdict.get().cloned().unwrap_or(Lost::Stopped))
            }
        }
    }

    /// Asks the runner to stop; the end comes as an event.
    pub fn cancel(&self) {
        let _ = self.commands.send(Command::Cancel { id: self.id });
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if !self.has_ended {
            self.cancel();
        }
    }
}

fn write_commands(handle: &Handle, commands: &Receiver<Command>) {
    for command in commands {
        let is_last = matches!(command, Command::Shutdown);
        handle.send(&command);
        if is_last {
            return;
        }
    }
}

/// Hands out events until the process has ended.
fn read_events(runner: &mut Runner, routes: &Shared, commands: &Sender<Command>) -> RunnerError {
    loop {
        match runner.next_event() {
            Ok(event) => route(&mut lock(routes), event, commands),
            Err(error) => {
                let mut routes = lock(routes);
                routes.ended = Some(match routes.is_stopping {
                    true => Lost::Stopped,
                    false => Lost::Crashed(error.to_string().into()),
                });
                // The thread that writes would wait for ever.
                let _ = commands.send(Command::Shutdown);
                return error;
            }
        }
    }
}

/// Tells all that still wait how the process has ended.
fn release(routes: &Shared) {
    let mut routes = lock(routes);
    let lost = routes.ended.clone().unwrap_or(Lost::Stopped);
    for (_, route) in routes.by_id.drain() {
        let _ = route.verdict.set(lost.clone());
    }
}

fn route(routes: &mut Routes, event: Event, commands: &Sender<Command>) {
    let (id, is_end) = match &event {
        Event::Inspected(inspected) => (inspected.id, false),
        Event::Matched(CacheMatch { id, .. })
        | Event::PrefillProgress { id, .. }
        | Event::Token { id, .. } => (*id, false),
        Event::Finished { id, .. } | Event::Failed { id: Some(id), .. } => (*id, true),
        _ => return,
    };
    let Some(route) = routes.by_id.get_mut(&id) else { return };
    let may_be_lost = matches!(event, Event::PrefillProgress { .. });
    if let Some(events) = &route.events
        && let Err(mpsc::error::TrySendError::Full(_)) = events.try_send(event)
        && !may_be_lost
    {
        let _ = route.verdict.set(Lost::Stalled);
        route.events = None;
        let _ = commands.send(Command::Cancel { id });
    }
    if is_end {
        routes.by_id.remove(&id);
    }
}
