//! The engine: requests, and one step after another.
//!
//! What a step computes is the scheduler's plan: one token of every sequence that decodes, in one
//! pass, then slices of prompts. In deterministic mode each sequence has passes of its own, because
//! sums over more rows may be rounded otherwise.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use mlx::{Backend, Device};
use models::{LoadOptions, Loaded, Source, Step};
use protocol::{
    BenchRequest, BenchResult, DeviceInfo, Event, Fault, GenerateRequest, InspectRequest,
    Inspected, LoadRequest, LogitsRequest, ModelInfo, ModelSource, RequestId, Timings, Usage,
};
use scheduler::{Arrival, Id, Key, Limits, Scheduler, Slice};

use crate::batch::issue;
use crate::cache::{DISK_PATIENCE, Folder, PrefixCache};
use crate::chunks::Chunks;
use crate::constrained::Constrained;
use crate::seats::Seating;
use crate::sequence::{Sequence, told_drawn};
use crate::shelf::{Begun, ByTokenizer, Shelf};
use crate::{Error, Result, bench, memory};

/// Told of loaded bytes and of all bytes; may call it off.
pub type Progress<'p> = &'p mut dyn FnMut(u64, u64) -> ControlFlow<()>;

/// Requests that have a place in the cache at the same time; others wait.
const MAX_ROWS: usize = 64;
/// Requests that wait; others are refused.
const MAX_WAITING: usize = 1024;
/// Room for so much of every answer is there when a request begins.
const HEADROOM_TOKENS: usize = 256;
/// Bytes that are copied to the next tier between two steps, and a little more.
const COPY_BYTES: u64 = 16 << 20;
/// Between two such copies while requests run.
const COPY_PAUSE: Duration = Duration::from_secs(2);
/// The same where bytes move beside the passes.
const COPY_BYTES_BESIDE: u64 = 64 << 20;
const COPY_PAUSE_BESIDE: Duration = Duration::from_millis(25);
/// What is freed in smaller amounts stays for the next request: taking memory from the driver takes
/// longer than many a pass.
const KEPT_BYTES_GPU: usize = 512 << 20;
/// Rows of logits that exist at a time: with the vocabularies of today more than a hundred MiB.
const LOGITS_ROWS: usize = 256;

/// How a job that may be stopped has ended.
#[derive(Debug, PartialEq)]
pub enum Outcome<T> {
    /// With its result.
    Done(T),
    /// Because it was asked to stop.
    Stopped,
}

/// One loaded model and the requests on it.
pub struct Engine {
    device: Device,
    loaded: Loaded,
    cache: PrefixCache,
    /// Prompt tokens of a pass.
    chunk_tokens: usize,
    /// When something was last copied to another tier.
    copied: Instant,
    is_deterministic: bool,
    scheduler: Scheduler,
    /// All that wait or run.
    sequences: BTreeMap<RequestId, Sequence>,
    /// Of them those whose bytes come from another tier.
    restoring: Vec<RequestId>,
    grammars: Shelf,
}

/// The device by the backend's name; none takes the best one that the library has.
pub(crate) fn open(backend: Option<&str>) -> Result<Device> {
    let named = match backend {
        None => return Ok(Device::open()?),
        Some("cpu") => Backend::Cpu,
        Some("cuda") => Backend::Cuda,
        Some("metal") => Backend::Metal,
        Some(name) => {
            return Err(Error::caller(format!("backend '{name}' is none of cpu, cuda, metal")));
        }
    };
    Ok(Device::open_backend(named)?)
}

/// What can be said of the device without a model.
///
/// # Errors
/// The library is of another release, or the driver does not answer.
pub(crate) fn describe(device: &Device) -> Result<DeviceInfo> {
    let facts = device.facts()?;
    let name = facts.get("device_name").or_else(|| facts.get("architecture"));
    Ok(DeviceInfo {
        backend: device.backend().to_string(),
        device: name.cloned().unwrap_or_else(|| device.backend().to_string()),
        memory_bytes: memory::total_bytes(device, &facts),
        mlx_version: mlx::library_version()?,
    })
}

fn queue_is_full(n_waiting: usize, ahead_tokens: u64) -> Error {
    Error::world(format!(
        "{n_waiting} requests wait already, with {ahead_tokens} tokens of prompts ahead: try again \
         later"
    ))
}

impl Engine {
    /// Describes the device that an engine would use.
    ///
    /// # Errors
    /// The library is of another release, or the driver does not answer.
    pub fn probe(backend: Option<&str>) -> Result<DeviceInfo> {
        describe(&open(backend)?)
    }

    /// Opens the device and loads a model. `backend` is cpu, cuda or metal; none takes the best one
    /// that the library has.
    ///
    /// # Errors
    /// The caller's if the model is unknown or broken, the world's if memory or the device is
    /// missing.
    pub fn load(
        request: &LoadRequest,
        backend: Option<&str>,
        progress: Progress<'_>,
    ) -> Result<Self> {
        let device = open(backend)?;
        let source = match &request.source {
            ModelSource::Folder { path } => Source::Folder(PathBuf::from(path)),
            ModelSource::Shape { name, quantization, n_layers } => Source::Shape {
                name: name.clone(),
                quantization: quantization.parse()?,
                n_layers: n_layers.map(|n| i32::try_from(n).unwrap_or(i32::MAX)),
            },
        };
        let proves_products = device.backend() != Backend::Cpu;
        let memory_bytes = memory::available_bytes()?;
        let options = LoadOptions { proves_products, memory_bytes, ..LoadOptions::default() };
        let loaded = models::load(&source, &options, progress)?;
        mlx::memory::clear_cache()?;
        for note in &loaded.notes {
            eprintln!("{note}");
        }
        let folder = Folder::of(&request.cache, &request.source, &loaded.info);
        let budgets = memory::budgets(&device, &request.cache, folder.as_ref())?;
        let chunks = Chunks::of(request, device.backend(), &loaded.info);
        let stride = if request.deterministic { chunks.tokens } else { 1 };
        let cache = PrefixCache::new(&device, &loaded, budgets, folder, stride)?;
        let max_rows = request.max_rows.map_or(MAX_ROWS, |n| n.max(1) as usize);
        let scheduler = Scheduler::new(Limits {
            max_rows,
            max_rows_per_key: max_rows,
            max_waiting: MAX_WAITING,
            max_waiting_per_key: MAX_WAITING,
            step_tokens: chunks.tokens,
            chunk_tokens: chunks.tokens,
            chunk_tokens_beside: chunks.tokens_beside,
            headroom_tokens: HEADROOM_TOKENS,
            replays_by_token: request.deterministic,
        });
        Ok(Self {
            grammars: Shelf::new(
                Box::new(ByTokenizer::of(&request.source, loaded.info.vocab_size)),
                loaded.info.vocab_size.max(0) as usize,
            ),
            device,
            loaded,
            cache,
            chunk_tokens: chunks.tokens,
            copied: Instant::now(),
            is_deterministic: request.deterministic,
            scheduler,
            sequences: BTreeMap::new(),
            restoring: Vec::new(),
        })
    }

    /// Facts about the model.
    pub fn info(&self) -> ModelInfo {
        let info = &self.loaded.info;
        let size = |n: i32| u32::try_from(n).expect("sizes were checked to be positive");
        ModelInfo {
            family: info.family.clone(),
            n_parameters: info.n_parameters,
            weight_bytes: info.weight_bytes,
            vocab_size: size(info.vocab_size),
            n_layers: size(info.n_layers),
            context_tokens: size(info.context_tokens),
            dtype: info.dtype.to_string(),
            quantization: info.quantization.clone(),
            device: describe(&self.device).unwrap_or_default(),
        }
    }

    /// Totals of the prefix cache.
    pub fn cache_stats(&self) -> kvcache::Stats {
        self.cache.stats()
    }

    /// What is in the prefix cache.
    pub fn inspect(&self, request: &InspectRequest) -> Inspected {
        self.cache.inspect(request)
    }

    /// Accepts a request, which must fit the model. It may end before `max_tokens` where the
    /// context or the cache's memory ends. With a grammar that is not compiled it waits until it
    /// is; if the grammar is of no use, the request fails then.
    ///
    /// # Errors
    /// The prompt and one new token would not fit into the cache, even alone; too many wait.
    pub fn submit(&mut self, mut request: GenerateRequest) -> Result<()> {
        let n_prompt = request.prompt.len() as u64;
        let in_cache = self.cache.max_tokens();
        if n_prompt + 1 > in_cache {
            return Err(Error::world(format!(
                "a prompt of {n_prompt} tokens does not fit into the cache, which holds \
                 {in_cache}: send a shorter prompt or give it more memory (--cache-memory)",
            )));
        }
        let in_context = self.loaded.info.context_tokens as u64;
        let room = in_context.min(in_cache).saturating_sub(n_prompt).max(1);
        request.max_tokens = request.max_tokens.min(u32::try_from(room).unwrap_or(u32::MAX));
        let mut sequence = Sequence::new(request);
        match self.grammars.begin(&sequence.request) {
            Begun::Known(constrained) => self.queue(&mut sequence, constrained)?,
            Begun::Unknown => {
                let n_waiting = self.grammars.n_waiting() + self.scheduler.n_waiting();
                if n_waiting >= MAX_WAITING {
                    return Err(queue_is_full(n_waiting, self.scheduler.ahead_tokens()));
                }
                self.grammars.ask(&sequence.request)?;
            }
        }
        self.sequences.insert(sequence.request.id, sequence);
        Ok(())
    }

    /// Gives a request to the scheduler, with what its answer must obey.
    ///
    /// # Errors
    /// Too many wait.
    fn queue(
        &mut self,
        sequence: &mut Sequence,
        constrained: Option<Box<Constrained>>,
    ) -> Result<()> {
        sequence.obey(constrained);
        let request = &sequence.request;
        let arrival = Arrival {
            id: Id(request.id.0),
            key: Key(request.namespace),
            n_prompt: request.prompt.len(),
            n_max_new: request.max_tokens as usize,
            n_cached: self.cache.find(sequence.ns(), &request.prompt).usable,
        };
        let queued = self.scheduler.submit(arrival);
        queued.map_err(|full| queue_is_full(full.n_waiting, full.ahead_tokens))
    }

    /// Those whose grammars have been compiled since queue, and fail where these are of no use.
    fn take_compiled(&mut self, emit: &mut dyn FnMut(Event)) {
        while let Some((ids, useless)) = self.grammars.next_compiled(self.scheduler.is_idle()) {
            for id in ids {
                let Some(mut sequence) = self.sequences.remove(&id) else { continue };
                let mut begin = || self.grammars.begin(&sequence.request);
                let queued = match useless.clone().map_or_else(|| Ok(begin()), Err) {
                    Ok(Begun::Known(constrained)) => self.queue(&mut sequence, constrained),
                    Ok(Begun::Unknown) => Err(Error::ours("what was compiled is not kept")),
                    Err(useless) => Err(useless),
                };
                match queued {
                    Ok(()) => drop(self.sequences.insert(id, sequence)),
                    Err(Error { fault, message, .. }) => {
                        emit(Event::Failed { id: Some(id), fault, message });
                    }
                }
            }
        }
    }

    /// Fails unless keys and values of so many tokens fit into memory; returns how many fit.
    fn check_memory(&self, n_tokens: usize, n_rows: usize) -> Result<u64> {
        let Some(free_bytes) = memory::available_bytes()? else { return Ok(u64::MAX) };
        let n_all = (n_tokens as u64).saturating_mul(n_rows as u64);
        let info = &self.loaded.info;
        let fixed_bytes = info.fixed_state_bytes.saturating_mul(n_rows as u64);
        let needed_bytes =
            info.kv_bytes_per_token.saturating_mul(n_all).saturating_add(fixed_bytes);
        if needed_bytes > free_bytes {
            return Err(Error::world(format!(
                "{n_tokens} tokens need {} MiB of memory for keys and values, but only {} MiB are \
                 free: send a shorter prompt or ask for fewer new tokens",
                needed_bytes >> 20,
                free_bytes >> 20
            )));
        }
        Ok((free_bytes - fixed_bytes) / info.kv_bytes_per_token.max(1))
    }

    /// Drops a request and leaves the cache what it computed; returns how far it had come.
    pub fn cancel(&mut self, id: RequestId) -> (Usage, Timings) {
        let Some(mut sequence) = self.forget(id) else { return Default::default() };
        sequence.end(&mut self.cache);
        (sequence.usage(), sequence.timings())
    }

    /// Forgets a namespace on every tier. What runs in it goes on, and finds nothing anew; what it
    /// holds is free when it ends.
    pub fn flush(&mut self, namespace: u64) {
        self.cache.flush(kvcache::Ns(namespace));
    }

    fn forget(&mut self, id: RequestId) -> Option<Sequence> {
        self.scheduler.end(Id(id.0));
        self.grammars.forget(id);
        self.sequences.remove(&id)
    }

    /// One step: a token of every sequence that decodes, and slices of prompts. Returns whether
    /// anything is left to do.
    ///
    /// # Errors
    /// One that is not a single request's: the engine cannot go on.
    pub fn step(&mut self, emit: &mut dyn FnMut(Event)) -> Result<bool> {
        match self.compute(emit).and_then(|is_busy| Ok(self.copy_down(!is_busy)? || is_busy)) {
            Err(error) if error.is_of_device && error.fault != Fault::Ours => {
                self.recover(&error, emit)?;
                Ok(true)
            }
            stepped => stepped,
        }
    }

    /// Plans and computes; says whether requests are left.
    fn compute(&mut self, emit: &mut dyn FnMut(Event)) -> Result<bool> {
        self.take_compiled(emit);
        self.take_arrivals();
        let mut seats = Seating {
            cache: &mut self.cache,
            sequences: &mut self.sequences,
            emit,
            no_room: None,
            failure: None,
        };
        let step = self.scheduler.plan(&mut seats);
        let (no_room, failure) = (seats.no_room, seats.failure);
        if let Some(failure) = failure {
            return Err(failure);
        }
        for id in step.refused {
            let reason = no_room.as_ref().map_or("there is no room for it", |e| &e.message);
            let (id, message) = (RequestId(id.0), reason.to_owned());
            emit(Event::Failed { id: Some(id), fault: Fault::World, message });
            if let Some(mut sequence) = self.sequences.remove(&id) {
                sequence.end(&mut self.cache);
            }
        }
        let begun = step.begun.iter().map(|id| RequestId(id.0));
        let waiting = begun.filter(|id| self.position(*id).is_none()).collect::<Vec<_>>();
        self.restoring.extend(waiting);
        // The last token of a prompt of which all else is known is as any token that is decoded.
        let (single, slices) =
            step.prefill.into_iter().partition::<Vec<_>, _>(|s| s.draws && s.to - s.from == 1);
        let decode = step.decode.iter().copied().chain(single.iter().map(|s| s.id));
        self.decode(decode.map(|id| RequestId(id.0)).collect(), emit)?;
        for slice in slices {
            self.prefill(slice, emit)?;
        }
        if self.sequences.is_empty() {
            self.free_memory()?;
        }
        Ok(!self.sequences.is_empty())
    }

    /// Gives back what nobody may need for a while.
    fn free_memory(&self) -> Result<()> {
        let kept_bytes = match self.device.backend() {
            Backend::Cpu => 0,
            Backend::Cuda | Backend::Metal => KEPT_BYTES_GPU,
        };
        if mlx::memory::cache_bytes()? > kept_bytes {
            mlx::memory::clear_cache()?;
        }
        Ok(())
    }

    fn position(&self, id: RequestId) -> Option<usize> {
        self.sequences.get(&id).and_then(|sequence| sequence.position(&self.cache))
    }

    /// Tells the scheduler of those whose bytes have come.
    fn take_arrivals(&mut self) {
        for id in std::mem::take(&mut self.restoring) {
            match self.position(id) {
                Some(at) => self.scheduler.arrived(Id(id.0), at),
                None if self.sequences.contains_key(&id) => self.restoring.push(id),
                None => {}
            }
        }
    }

    /// One token of each. Where all can be computed ahead of the host, the next pass begins before
    /// the tokens of the last are read, except the first ones of requests that nobody runs beside.
    fn decode(&mut self, ids: Vec<RequestId>, emit: &mut dyn FnMut(Event)) -> Result<()> {
        let runs_ahead = |id: &RequestId| self.sequences.get(id).is_some_and(Sequence::runs_ahead);
        if ids.iter().all(runs_ahead) {
            let has_unread = |id: &&RequestId| self.sequences[id].unread().is_some();
            let unread = ids.iter().filter(has_unread).copied().collect::<Vec<_>>();
            if unread.iter().all(|id| self.sequences[id].has_told_nothing()) {
                self.read(&unread, emit)?;
                return self.issue(&ids);
            }
            self.issue(&ids)?;
            self.read(&unread, emit)
        } else {
            self.read(&ids, emit)?;
            self.issue(&ids)
        }
    }

    /// A pass over the newest token of each that is not at its end.
    fn issue(&mut self, ids: &[RequestId]) -> Result<()> {
        let mut rows = Vec::new();
        let mut lives = ids.iter().copied().collect::<std::collections::BTreeSet<_>>();
        for (id, sequence) in &mut self.sequences {
            if lives.remove(id) && !sequence.has_drawn_all() {
                rows.push(sequence);
            }
        }
        if rows.is_empty() {
            return Ok(());
        }
        let n_together = if self.is_deterministic { 1 } else { rows.len() };
        for rows in rows.chunks_mut(n_together) {
            issue(rows, &self.loaded, &mut self.cache)?;
            for row in rows {
                self.scheduler.computed(Id(row.request.id.0), 1);
            }
        }
        Ok(())
    }

    /// Sends the oldest unread token of each, and the ends of those that have come to theirs.
    fn read(&mut self, ids: &[RequestId], emit: &mut dyn FnMut(Event)) -> Result<()> {
        for id in ids {
            let Some(sequence) = self.sequences.get_mut(id) else { continue };
            let Some(drawn) = sequence.read(&mut self.cache)? else { continue };
            if told_drawn(sequence, drawn, emit) {
                self.cancel(*id);
            }
        }
        Ok(())
    }

    /// A slice of a prompt.
    fn prefill(&mut self, slice: Slice, emit: &mut dyn FnMut(Event)) -> Result<()> {
        let Slice { id, from, to, .. } = slice;
        let Some(sequence) = self.sequences.get_mut(&RequestId(id.0)) else { return Ok(()) };
        sequence.prefill(&self.loaded, &mut self.cache, from, to)?;
        self.scheduler.computed(id, to - from);
        let total = sequence.request.prompt.len();
        if total > self.chunk_tokens {
            emit(Event::PrefillProgress {
                id: RequestId(id.0),
                done_tokens: to.min(total) as u32,
                total_tokens: total as u32,
            });
        }
        Ok(())
    }

    /// Copies what is new to other tiers: all of it when nothing else is to be done, now and then a
    /// part of it otherwise, because what is copied in small parts is slow to bring back. Returns
    /// whether there is more.
    fn copy_down(&mut self, is_idle: bool) -> Result<bool> {
        let (n_bytes, pause) = match self.cache.moves_beside() {
            true => (COPY_BYTES_BESIDE, COPY_PAUSE_BESIDE),
            false => (COPY_BYTES, COPY_PAUSE),
        };
        if !is_idle && self.copied.elapsed() < pause {
            let waits = self.restoring.len() == self.scheduler.n_running();
            return self.cache.poll(if waits { DISK_PATIENCE } else { Duration::ZERO });
        }
        self.copied = Instant::now();
        let has_copied = self.cache.copy_down(n_bytes, is_idle)?;
        let patience = if is_idle && !has_copied { DISK_PATIENCE } else { Duration::ZERO };
        Ok(self.cache.poll(patience)? || has_copied)
    }

    /// The device failed in the middle of its work: all that run fail, and what the device had
    /// cached is forgotten, here and not in other tiers. Others may begin anew.
    ///
    /// # Errors
    /// The engine cannot go on.
    pub fn recover(&mut self, error: &Error, emit: &mut dyn FnMut(Event)) -> Result<()> {
        let seated = self.sequences.iter().filter(|(_, sequence)| sequence.is_seated());
        for id in seated.map(|(id, _)| *id).collect::<Vec<_>>() {
            let Some(sequence) = self.forget(id) else { continue };
            let (fault, message) = (error.fault, error.message.clone());
            emit(Event::Failed { id: Some(id), fault, message });
            sequence.abandon(&mut self.cache);
        }
        self.restoring.clear();
        self.cache.forget_device()?;
        Ok(mlx::memory::clear_cache()?)
    }

    /// Logits of every position in f32, whole rows in order, in the checkpoint's own dtype before.
    ///
    /// # Errors
    /// Memory is short, or MLX refuses an operation.
    pub fn logits(
        &mut self,
        request: &LogitsRequest,
        rows: &mut dyn FnMut(u32, &[f32]),
        should_stop: &mut dyn FnMut() -> bool,
    ) -> Result<Outcome<()>> {
        let chunk = request.chunk_tokens.map_or(self.chunk_tokens, |n| n as usize);
        self.check_memory(request.tokens.len(), 1)?;
        let mut states = self.loaded.model.new_state();
        for (i, part) in request.tokens.chunks(chunk).enumerate() {
            if should_stop() {
                return Ok(Outcome::Stopped);
            }
            let position = i * chunk;
            let step = Step::new(position as i32, part.len() as i32);
            let ids = part.iter().map(|&t| t as i32).collect::<Vec<_>>();
            let ids = mlx::Array::staged(&ids, &[1, ids.len() as i32])?;
            let hidden = self.loaded.model.forward(&ids, &step, &mut states)?;
            for first in (0..hidden.dim(1)).step_by(LOGITS_ROWS) {
                let end = hidden.dim(1).min(first + LOGITS_ROWS as i32);
                let logits = self.loaded.model.logits(&hidden.slice_axis(1, first..end)?)?;
                rows(position as u32 + first as u32, &logits.to_f32_vec()?);
            }
        }
        Ok(Outcome::Done(()))
    }

    /// Measures prefill and decode of random tokens; see [`BenchResult`].
    ///
    /// # Errors
    /// Memory is short, or MLX refuses an operation.
    pub fn bench(
        &mut self,
        request: &BenchRequest,
        should_stop: &mut dyn FnMut() -> bool,
    ) -> Result<Outcome<BenchResult>> {
        let n_tokens = (request.prompt_tokens + request.new_tokens) as usize;
        self.check_memory(n_tokens, request.batch as usize)?;
        let chunk_tokens = self.chunk_tokens;
        let cache = &mut self.cache;
        bench::run(&self.device, &self.loaded, cache, request, chunk_tokens, should_stop)
    }
}

#[cfg(test)]
mod compiling_test;
