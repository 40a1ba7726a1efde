//! The runners of several models: loaded when asked for, one at a time, kept while they are used,
//! unloaded for others when memory is short, restarted after a crash.
//!
//! Invariants:
//! - At most one runner of a model is alive, and none is started before a former one has ended.
//! - A model is not unloaded while somebody holds a [`Lease`] on it.
//! - Names that callers send are looked up as names, never as paths.

mod catalog;
mod loading;
mod room;
mod slot;
mod unavailable;
mod worker;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use hub::HubError;
use protocol::{CacheSettings, GenerateRequest, Inspect, ModelInfo};
use tokio::sync::{Notify, watch};

use crate::metrics::Metrics;
use crate::supervisor::{RunnerError, RunnerProgram};

pub use catalog::{Catalog, Listed, TextError, TextSide};
pub use slot::{KeepAlive, MAX_KEEP_ALIVE_S};
pub use unavailable::Unavailable;
pub use worker::Lost;

use room::Tenant;
use slot::{Attempt, Phase, Slot, State};
use unavailable::{broken, with_hint};
use worker::Worker;

pub(crate) use worker::Ticket;

/// For a runner that was asked to end, which writes its cache to disk.
const ENDING_PATIENCE: Duration = Duration::from_secs(15);
/// A crashed model is loaded again unasked until this many crashes in a row.
const MAX_UNASKED_RESTARTS: u32 = 3;
/// The longest that a request waits for a crashed model's next start.
const MAX_WAIT_FOR_RESTART: Duration = Duration::from_secs(10);

/// How runners are started and how long they stay.
pub struct Settings {
    /// The executable and its variables.
    pub program: RunnerProgram,
    /// Named in the greeting.
    pub build: String,
    /// What a model's cache may hold, by the model's name.
    pub cache: Box<dyn Fn(&str) -> CacheSettings + Send + Sync>,
    /// Answers that are equal bit for bit whatever was cached.
    pub is_deterministic: bool,
    /// Requests of one model that run at the same time; none: as many as the runner thinks fit.
    pub max_rows: Option<u32>,
    /// How long a model rests before it is unloaded.
    pub keep_alive: KeepAlive,
    /// Weights and caches of all models; none: not bounded.
    pub memory_bytes: Option<u64>,
    /// Models that are loaded at the same time, at least 1.
    pub max_models: usize,
    /// Requests that one model has at the same time, waiting ones included.
    pub max_requests: usize,
}

/// A loaded model, as it is shown.
#[derive(Debug, Clone)]
pub struct Running {
    /// Its name.
    pub name: String,
    /// What was loaded; none while it loads.
    pub info: Option<ModelInfo>,
    /// Bytes loaded and in all, while it loads.
    pub progress: Option<(u64, u64)>,
    /// Requests that it has.
    pub n_requests: usize,
    /// When it will be unloaded if nobody asks; none: not by itself, or it is at work.
    pub expires_in: Option<Duration>,
    /// Weights and, where it is bounded, cache.
    pub bytes: u64,
    /// The process; 0 while it loads.
    pub pid: u32,
}

/// All models of a server. Cheap to clone.
#[derive(Clone)]
pub struct Models(Arc<Inner>);

struct Inner {
    settings: Settings,
    catalog: Catalog,
    metrics: Arc<Metrics>,
    slots: Mutex<BTreeMap<String, Arc<Slot>>>,
    /// Held by the load that is under way.
    gate: tokio::sync::Mutex<()>,
    /// Runners that were asked to end.
    ending: Mutex<Vec<Arc<Worker>>>,
    /// Something has come to rest, or its time has changed.
    changed: Notify,
    is_draining: AtomicBool,
}

/// The right to use a loaded model: while it is held, the model stays.
pub struct Lease {
    claim: Claim,
    worker: Arc<Worker>,
}

/// The wish to use a model: once it is loaded, it stays while this is held.
struct Claim {
    models: Models,
    slot: Arc<Slot>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Models {
    /// Models that are loaded when they are asked for. Must be called within the run time, on
    /// which a task unloads what has rested long enough.
    pub fn new(settings: Settings, catalog: Catalog, metrics: Arc<Metrics>) -> Self {
        let models = Self(Arc::new(Inner {
            settings,
            catalog,
            metrics,
            slots: Mutex::default(),
            gate: tokio::sync::Mutex::default(),
            ending: Mutex::default(),
            changed: Notify::new(),
            is_draining: AtomicBool::new(false),
        }));
        tokio::spawn(models.clone().unload_what_rests());
        models
    }

    /// The names there are.
    pub fn catalog(&self) -> &Catalog {
        &self.0.catalog
    }

    /// The model's name and text side, which is read when first needed. Loads no weights.
    ///
    /// # Errors
    /// The model is unknown or its files are broken.
    pub async fn text(&self, name: &str) -> Result<(String, Arc<TextSide>), Unavailable> {
        let (models, name) = (self.clone(), name.to_owned());
        let read = tokio::task::spawn_blocking(move || models.read_text(&name)).await;
        read.unwrap_or_else(|e| Err(Unavailable::Broken(format!("the reader failed: {e}").into())))
    }

    fn read_text(&self, name: &str) -> Result<(String, Arc<TextSide>), Unavailable> {
        let slot = self.slot(name)?;
        let (folder, text) = {
            let state = slot.lock();
            (state.folder.clone(), state.text.clone())
        };
        if let Some(text) = text {
            return Ok((slot.name.clone(), text));
        }
        let text = TextSide::load(&folder).map_err(|e| broken(&slot.name, &e))?;
        slot.lock().text = Some(Arc::clone(&text));
        Ok((slot.name.clone(), text))
    }

    /// The place of a model, by any of its names. Reads files.
    fn slot(&self, name: &str) -> Result<Arc<Slot>, Unavailable> {
        if let Some(slot) = self.busy_slot(name) {
            return Ok(slot);
        }
        let (name, folder) = self.0.catalog.find(name).map_err(|e| match e {
            HubError::UnknownModel { .. } | HubError::InvalidName { .. } => {
                Unavailable::Unknown(with_hint(&e).into())
            }
            HubError::Incomplete { .. } => Unavailable::Broken(e.to_string().into()),
            e => broken(name, &e),
        })?;
        let mut slots = lock(&self.0.slots);
        let keep_alive = self.0.settings.keep_alive;
        let slot = match slots.get(&name) {
            Some(slot) => Arc::clone(slot),
            None => {
                let slot = Arc::new(Slot::new(name.clone(), folder.clone(), keep_alive));
                slots.insert(name, Arc::clone(&slot));
                slot
            }
        };
        // It may have been fetched anew since.
        slot.lock().folder = folder;
        Ok(slot)
    }

    /// The place of a model that is loaded or being loaded; of others the files may have changed.
    fn busy_slot(&self, name: &str) -> Option<Arc<Slot>> {
        let slot = lock(&self.0.slots).get(name).cloned()?;
        let is_busy = !matches!(slot.lock().phase, Phase::AtRest);
        is_busy.then_some(slot)
    }

    /// Has a model loaded, if it is not, and keeps it while the lease is held. `progress` is told
    /// of bytes loaded and in all; the load goes on when this is dropped.
    ///
    /// # Errors
    /// See [`Unavailable`].
    pub async fn lease(
        &self,
        name: &str,
        progress: &mut (dyn FnMut(u64, u64) + Send),
    ) -> Result<Lease, Unavailable> {
        let slot = match self.busy_slot(name) {
            Some(slot) => slot,
            None => {
                let (models, name) = (self.clone(), name.to_owned());
                let found = tokio::task::spawn_blocking(move || models.slot(&name)).await;
                found.map_err(|e| Unavailable::Broken(e.to_string().into()))??
            }
        };
        let claim = self.claim(slot);
        loop {
            let mut attempt = match self.attempt(&claim.slot)? {
                Ok(worker) => return Ok(Lease { claim, worker }),
                Err(attempt) => attempt,
            };
            loop {
                let now = attempt.borrow_and_update().clone();
                match now.outcome {
                    // Taken anew, because it may have gone again.
                    Some(Ok(_)) => break,
                    Some(Err(error)) => return Err(error),
                    None => progress(now.done_bytes, now.total_bytes),
                }
                if attempt.changed().await.is_err() {
                    break;
                }
            }
        }
    }

    fn claim(&self, slot: Arc<Slot>) -> Claim {
        {
            let mut state = slot.lock();
            state.n_users += 1;
            state.leaves_when_idle = false;
        }
        Claim { models: self.clone(), slot }
    }

    /// The loaded model, or the load to wait for, which is begun here if need be.
    #[allow(clippy::type_complexity, reason = "two good outcomes and an error")]
    fn attempt(
        &self,
        slot: &Arc<Slot>,
    ) -> Result<Result<Arc<Worker>, watch::Receiver<Attempt>>, Unavailable> {
        if self.0.is_draining.load(Ordering::SeqCst) {
            return Err(Unavailable::Draining);
        }
        let mut state = slot.lock();
        if let Some(worker) = state.worker() {
            let (worker, n_requests) = (Arc::clone(worker), worker.n_requests());
            if n_requests >= self.0.settings.max_requests {
                return Err(Unavailable::Full { n_requests });
            }
            return Ok(Ok(worker));
        }
        if let Phase::Loading(attempt) = &state.phase {
            return Ok(Err(attempt.clone()));
        }
        let pause = state.not_before.map(|at| at.saturating_duration_since(Instant::now()));
        let pause = pause.unwrap_or_default();
        if pause > MAX_WAIT_FOR_RESTART {
            let message = format!("{} crashed repeatedly and waits for its next start", slot.name);
            return Err(Unavailable::Down { message: message.into(), retry_after: pause });
        }
        let (sender, receiver) = watch::channel(Attempt::default());
        state.phase = Phase::Loading(receiver.clone());
        tokio::spawn(self.clone().load(Arc::clone(slot), sender, pause));
        Ok(Err(receiver))
    }

    async fn wait_for_ends(&self) {
        let ending = std::mem::take(&mut *lock(&self.0.ending));
        for worker in ending {
            worker.ended(ENDING_PATIENCE).await;
        }
    }

    fn tenants(&self) -> Vec<Tenant> {
        let slots: Vec<_> = lock(&self.0.slots).values().cloned().collect();
        let tenant = |slot: Arc<Slot>| {
            let state = slot.lock();
            state.worker().is_some().then(|| Tenant {
                name: slot.name.clone(),
                bytes: state.bytes,
                idle_since: (state.n_users == 0).then_some(state.idle_since),
                is_pinned: state.keep_alive == KeepAlive::Forever,
            })
        };
        slots.into_iter().filter_map(tenant).collect()
    }

    /// A runner has ended by itself: its model is loaded again after a pause.
    fn crashed(&self, slot: &Arc<Slot>, error: &RunnerError) {
        eprintln!("error: {}: {error}", slot.name);
        self.0.metrics.crashed(&slot.name);
        let (pause, n_crashes) = {
            let mut state = slot.lock();
            if let Phase::Ready(_) = state.phase {
                state.phase = Phase::AtRest;
            }
            (state.crashed(), state.n_crashes)
        };
        if n_crashes > MAX_UNASKED_RESTARTS || self.0.is_draining.load(Ordering::SeqCst) {
            return;
        }
        let (models, slot) = (self.clone(), Arc::clone(slot));
        tokio::spawn(async move {
            tokio::time::sleep(pause).await;
            let _ = models.lease(&slot.name, &mut |_, _| {}).await;
        });
    }

    /// Sets how long a model rests before it is unloaded.
    pub fn keep(&self, lease: &Lease, keep_alive: KeepAlive) {
        lease.claim.slot.lock().keep_alive = keep_alive;
    }

    /// Has a model unloaded as soon as nobody uses it. False if it is not loaded.
    pub fn unload_when_idle(&self, name: &str) -> bool {
        let Some(slot) = lock(&self.0.slots).get(name).cloned() else { return false };
        let is_loaded = {
            let mut state = slot.lock();
            state.leaves_when_idle = true;
            state.worker().is_some()
        };
        self.0.changed.notify_one();
        is_loaded
    }

    fn unload(&self, slot: &Slot, if_so: &dyn Fn(&State) -> bool) {
        let mut state = slot.lock();
        if !if_so(&state) {
            return;
        }
        if let Phase::Ready(worker) = &state.phase {
            worker.stop();
            lock(&self.0.ending).push(Arc::clone(worker));
            state.phase = Phase::AtRest;
            state.text = None;
        }
        state.leaves_when_idle = false;
    }

    async fn unload_what_rests(self) {
        loop {
            let slots: Vec<_> = lock(&self.0.slots).values().cloned().collect();
            let now = Instant::now();
            let is_due = |state: &State| state.expires().is_some_and(|at| at <= now);
            let mut next: Option<Instant> = None;
            for slot in slots {
                let expires = slot.lock().expires();
                match expires {
                    Some(at) if at <= now => self.unload(&slot, &is_due),
                    Some(at) => next = Some(next.map_or(at, |next| next.min(at))),
                    None => {}
                }
            }
            let wait = next.map_or(Duration::from_secs(3600), |at| at - now);
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = self.0.changed.notified() => {}
            }
        }
    }

    /// The models that are loaded or being loaded.
    pub fn running(&self) -> Vec<Running> {
        let slots: Vec<_> = lock(&self.0.slots).values().cloned().collect();
        slots.iter().filter_map(|slot| running(slot)).collect()
    }

    /// Whether no more requests are taken.
    pub fn is_draining(&self) -> bool {
        self.0.is_draining.load(Ordering::SeqCst)
    }

    /// Takes no more requests.
    pub fn drain(&self) {
        self.0.is_draining.store(true, Ordering::SeqCst);
    }

    /// Ends all runners in good order; by force where one does not end in time.
    pub async fn end(&self) {
        self.drain();
        let slots: Vec<_> = lock(&self.0.slots).values().cloned().collect();
        for slot in &slots {
            self.unload(slot, &|_| true);
            if let Some(loading) = slot.lock().loading.take() {
                loading.kill();
            }
        }
        // A load that was under way leaves the gate when its runner is gone.
        let gate = tokio::time::timeout(ENDING_PATIENCE, self.0.gate.lock()).await;
        drop(gate);
        self.wait_for_ends().await;
    }
}

fn running(slot: &Slot) -> Option<Running> {
    let state = slot.lock();
    let (info, progress, n_requests, pid) = match &state.phase {
        Phase::AtRest => return None,
        Phase::Loading(attempt) => {
            let attempt = attempt.borrow();
            (None, Some((attempt.done_bytes, attempt.total_bytes)), 0, 0)
        }
        Phase::Ready(worker) => (Some(worker.info.clone()), None, worker.n_requests(), worker.pid),
    };
    let expires_in = state.expires().map(|at| at.saturating_duration_since(Instant::now()));
    let bytes = state.bytes;
    Some(Running { name: slot.name.clone(), info, progress, n_requests, expires_in, bytes, pid })
}

impl Lease {
    /// The model's name.
    pub fn name(&self) -> &str {
        &self.claim.slot.name
    }

    /// What was loaded.
    pub fn info(&self) -> &ModelInfo {
        &self.worker.info
    }

    /// Sends a request. The lease must be held until its end.
    pub(crate) fn submit(&self, request: GenerateRequest) -> Result<Ticket, Lost> {
        self.worker.submit(request)
    }

    /// Looks into the cache; of each node so many tokens are told.
    pub(crate) fn inspect(&self, what: Inspect, shown_tokens: u32) -> Result<Ticket, Lost> {
        self.worker.inspect(what, shown_tokens)
    }

    /// A request has been answered: the model works.
    pub(crate) fn proved(&self) {
        self.claim.slot.lock().proved();
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        {
            let mut state = self.slot.lock();
            state.n_users = state.n_users.saturating_sub(1);
            state.idle_since = Instant::now();
        }
        self.models.0.changed.notify_one();
    }
}
