//! One model's place: whether it is loaded, being loaded or at rest, and who uses it.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use hub::ModelFolder;
use tokio::sync::watch;

use super::Unavailable;
use super::catalog::TextSide;
use super::worker::Worker;
use crate::supervisor::Handle;

/// The first pause before a crashed model is loaded again; it doubles with each crash.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const MAX_PAUSE: Duration = Duration::from_secs(60);

/// The longest that a request may ask a model to stay, for ever aside.
pub const MAX_KEEP_ALIVE_S: u64 = 10_000_000;

/// How long a model stays loaded after its last request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeepAlive {
    /// This long.
    For(Duration),
    /// Until it is unloaded by name.
    Forever,
}

/// How a load goes on, and how it has ended.
#[derive(Debug, Clone, Default)]
pub(crate) struct Attempt {
    pub done_bytes: u64,
    pub total_bytes: u64,
    pub outcome: Option<Result<Arc<Worker>, Unavailable>>,
}

#[derive(Debug, Clone, Default)]
pub(crate) enum Phase {
    #[default]
    AtRest,
    Loading(watch::Receiver<Attempt>),
    Ready(Arc<Worker>),
}

pub(crate) struct Slot {
    pub name: String,
    state: Mutex<State>,
}

pub(crate) struct State {
    pub folder: ModelFolder,
    pub text: Option<Arc<TextSide>>,
    pub phase: Phase,
    /// Ends the runner that is loading.
    pub loading: Option<Handle>,
    /// Leases that are held.
    pub n_users: usize,
    pub idle_since: Instant,
    pub keep_alive: KeepAlive,
    /// Crashes since the last answer.
    pub n_crashes: u32,
    /// Not loaded before.
    pub not_before: Option<Instant>,
    pub leaves_when_idle: bool,
    /// What it may take of memory, weights and cache.
    pub bytes: u64,
}

impl Slot {
    pub fn new(name: String, folder: ModelFolder, keep_alive: KeepAlive) -> Self {
        let state = State {
            folder,
            text: None,
            phase: Phase::AtRest,
            loading: None,
            n_users: 0,
            idle_since: Instant::now(),
            keep_alive,
            n_crashes: 0,
            not_before: None,
            leaves_when_idle: false,
            bytes: 0,
        };
        Self { name, state: Mutex::new(state) }
    }

    pub fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// The loaded model, if requests can be sent to it.
    pub fn worker(&self) -> Option<&Arc<Worker>> {
        match &self.phase {
            Phase::Ready(worker) if worker.is_alive() => Some(worker),
            _ => None,
        }
    }

    /// When it is to be unloaded for having rested long enough.
    pub fn expires(&self) -> Option<Instant> {
        match self.keep_alive {
            _ if self.n_users > 0 || self.worker().is_none() => None,
            _ if self.leaves_when_idle => Some(self.idle_since),
            KeepAlive::For(time) => Some(self.idle_since + time),
            KeepAlive::Forever => None,
        }
    }

    /// The runner has ended by itself: how long to wait before the next.
    pub fn crashed(&mut self) -> Duration {
        let doublings = self.n_crashes.min(16);
        self.n_crashes = self.n_crashes.saturating_add(1);
        let pause = FIRST_PAUSE.saturating_mul(1 << doublings).min(MAX_PAUSE);
        self.not_before = Some(Instant::now() + pause);
        pause
    }

    /// A request has been answered.
    pub fn proved(&mut self) {
        self.n_crashes = 0;
        self.not_before = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_a_bound_and_end_with_an_answer() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("config.json"), r#"{"model_type": "x"}"#).unwrap();
        std::fs::write(dir.path().join("model.safetensors"), b"\x02\0\0\0\0\0\0\0{}").unwrap();
        let folder = ModelFolder::open(dir.path()).unwrap();
        let slot = Slot::new("x".into(), folder, KeepAlive::Forever);
        let mut state = slot.lock();
        let pauses: Vec<_> = (0..9).map(|_| state.crashed().as_millis()).collect();
        assert_eq!(pauses, [500, 1000, 2000, 4000, 8000, 16_000, 32_000, 60_000, 60_000]);
        state.proved();
        assert_eq!((state.crashed().as_millis(), state.expires()), (500, None));
    }
}
