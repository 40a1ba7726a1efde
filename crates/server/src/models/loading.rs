//! Loading a model: room is made for it first, and again where the machine turns out to be short of
//! memory. One load at a time.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use protocol::{Fault, LoadRequest, ModelSource};
use tokio::sync::watch;

use super::room::{Room, at_rest};
use super::slot::{Attempt, Phase, Slot};
use super::unavailable::{first_line, no_room};
use super::worker::Worker;
use super::{Models, Unavailable, lock};
use crate::supervisor::RunnerError;

impl Models {
    pub(super) async fn load(
        self,
        slot: Arc<Slot>,
        sender: watch::Sender<Attempt>,
        pause: Duration,
    ) {
        tokio::time::sleep(pause).await;
        let outcome = {
            let _gate = self.0.gate.lock().await;
            let room = match self.0.is_draining.load(Ordering::SeqCst) {
                true => Err(Unavailable::Draining),
                false => self.make_room(&slot).await,
            };
            match room {
                Ok(()) => self.start_or_make_way(&slot, &sender).await,
                Err(error) => Err(error),
            }
        };
        {
            let mut state = slot.lock();
            state.idle_since = Instant::now();
            state.loading = None;
            state.phase = match &outcome {
                Ok(worker) => Phase::Ready(Arc::clone(worker)),
                Err(_) => Phase::AtRest,
            };
        }
        self.0.metrics.loaded(&slot.name, outcome.is_ok());
        sender.send_modify(|attempt| attempt.outcome = Some(outcome));
        self.0.changed.notify_one();
        // What was drained while this one loaded must not stay.
        if self.0.is_draining.load(Ordering::SeqCst) {
            self.unload(&slot, &|_| true);
        }
    }

    /// Unloads what has to go for a model, and waits until all that were unloaded have ended.
    async fn make_room(&self, slot: &Arc<Slot>) -> Result<(), Unavailable> {
        let weight_bytes = slot.lock().folder.weight_bytes();
        let cache_bytes = (self.0.settings.cache)(&slot.name).device_bytes.unwrap_or(0);
        let bytes = weight_bytes.saturating_add(cache_bytes);
        let room = Room {
            budget_bytes: self.0.settings.memory_bytes,
            max_models: self.0.settings.max_models.max(1),
        };
        loop {
            let leaving = room.make(&self.tenants(), bytes);
            let leaving = leaving.map_err(|shortage| no_room(&slot.name, bytes, shortage))?;
            leaving.iter().for_each(|name| self.unload_at_rest(name));
            self.wait_for_ends().await;
            if leaving.is_empty() {
                break;
            }
        }
        slot.lock().bytes = bytes;
        Ok(())
    }

    /// Starts a model. Where the machine has no memory left for it, models at rest make way, the
    /// one that was used longest ago first.
    async fn start_or_make_way(
        &self,
        slot: &Arc<Slot>,
        sender: &watch::Sender<Attempt>,
    ) -> Result<Arc<Worker>, Unavailable> {
        loop {
            match self.clone().start(slot, sender).await? {
                Ok(worker) => return Ok(Arc::new(worker)),
                Err(RunnerError::Failed { fault: Fault::Memory, .. })
                    if self.unload_longest_at_rest().await => {}
                Err(error) => return Err(self.load_failed(slot, &error)),
            }
        }
    }

    /// Unloads the model that has been at rest longest; says whether there was one.
    async fn unload_longest_at_rest(&self) -> bool {
        let tenants = self.tenants();
        let Some(tenant) = at_rest(&tenants).next() else { return false };
        self.unload_at_rest(&tenant.name);
        self.wait_for_ends().await;
        true
    }

    /// Unloads a model, unless it has been taken again in between.
    fn unload_at_rest(&self, name: &str) {
        let slot = lock(&self.0.slots).get(name).cloned();
        if let Some(slot) = slot {
            self.unload(&slot, &|state| state.n_users == 0);
        }
    }

    async fn start(
        self,
        slot: &Arc<Slot>,
        sender: &watch::Sender<Attempt>,
    ) -> Result<Result<Worker, RunnerError>, Unavailable> {
        let settings = &self.0.settings;
        let folder = slot.lock().folder.clone();
        let Some(path) = folder.path().to_str() else {
            return Err(Unavailable::Broken("the model's folder is not UTF-8".into()));
        };
        let request = LoadRequest {
            source: ModelSource::Folder { path: path.to_owned() },
            cache: (settings.cache)(&slot.name),
            chunk_tokens: None,
            deterministic: settings.is_deterministic,
            max_rows: settings.max_rows,
        };
        let (program, build) = (settings.program.clone(), settings.build.clone());
        let (progress, models, of) = (sender.clone(), self.clone(), Arc::clone(slot));
        let run_time = tokio::runtime::Handle::current();
        let loading = Arc::clone(slot);
        let start = move || {
            Worker::start(
                &program,
                &build,
                request,
                |handle| loading.lock().loading = Some(handle),
                &mut |done_bytes, total_bytes| {
                    progress.send_modify(|attempt| {
                        attempt.done_bytes = done_bytes;
                        attempt.total_bytes = total_bytes;
                    });
                },
                move |error| {
                    if let Some(error) = error {
                        let _in_run_time = run_time.enter();
                        models.crashed(&of, &error);
                    }
                },
            )
        };
        let started = tokio::task::spawn_blocking(start).await;
        started.map_err(|e| Unavailable::Broken(e.to_string().into()))
    }

    fn load_failed(&self, slot: &Slot, error: &RunnerError) -> Unavailable {
        eprintln!("error: {} cannot be loaded: {error}", slot.name);
        if let RunnerError::Failed { fault: Fault::Caller, .. } = error {
            return Unavailable::Broken(format!("{}: {error}", slot.name).into());
        }
        let retry_after = slot.lock().crashed();
        let message = format!("{} cannot be loaded: {}", slot.name, first_line(error));
        Unavailable::Down { message: message.into(), retry_after }
    }
}
