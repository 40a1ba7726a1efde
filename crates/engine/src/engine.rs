//! The engine: a queue of requests, the few that run, and one step after another.

use std::collections::VecDeque;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use kvcache::Cause;
use mlx::{Backend, Device};
use models::{LoadOptions, Loaded, Source, Step};
use protocol::{
    BenchRequest, BenchResult, DeviceInfo, Event, Fault, FinishReason, GenerateRequest,
    LoadRequest, LogitsRequest, ModelInfo, ModelSource, RequestId, Timings, Usage,
};

use crate::cache::{DISK_PATIENCE, Folder, PrefixCache};
use crate::found::told;
use crate::sequence::{Drawn, Sequence};
use crate::{Error, Result, bench, memory};

/// Told of loaded bytes and of all bytes; may call it off.
pub type Progress<'p> = &'p mut dyn FnMut(u64, u64) -> ControlFlow<()>;

/// Requests that hold state at the same time; others wait.
const MAX_RUNNING: usize = 4;
/// Prompt tokens per forward pass. Fixed, so that what else runs never changes a result.
const PREFILL_CHUNK_TOKENS_CPU: usize = 256;
const PREFILL_CHUNK_TOKENS_GPU: usize = 2048;
/// Bytes that are copied to the next tier between two steps, and a little more.
const COPY_BYTES: u64 = 16 << 20;
/// Between two such copies while requests run.
const COPY_PAUSE: Duration = Duration::from_secs(2);
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
    waiting: VecDeque<Sequence>,
    running: Vec<Sequence>,
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
        let chunk_tokens = match (request.chunk_tokens, device.backend()) {
            (Some(n), _) => n.max(1) as usize,
            (None, Backend::Cpu) => PREFILL_CHUNK_TOKENS_CPU,
            (None, Backend::Cuda | Backend::Metal) => PREFILL_CHUNK_TOKENS_GPU,
        };
        let stride = if request.deterministic { chunk_tokens } else { 1 };
        let cache = PrefixCache::new(&loaded, budgets, folder, stride)?;
        let (waiting, running) = (VecDeque::new(), Vec::new());
        let copied = Instant::now();
        Ok(Self { device, loaded, cache, chunk_tokens, copied, waiting, running })
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

    /// Accepts a request, which must fit the model. It may end before `max_tokens` where the
    /// context or the cache's memory ends.
    ///
    /// # Errors
    /// The prompt and one new token would not fit into the cache, even alone.
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
        self.waiting.push_back(Sequence::new(request));
        Ok(())
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
        let is_it = |sequence: &Sequence| sequence.request.id == id;
        let sequence = match self.running.iter().position(is_it) {
            Some(i) => Some(self.running.remove(i)),
            None => self.waiting.iter().position(is_it).and_then(|i| self.waiting.remove(i)),
        };
        let Some(mut sequence) = sequence else { return Default::default() };
        sequence.end(&mut self.cache);
        (sequence.usage(), sequence.timings())
    }

    /// Begins requests that wait, one token for each decoding request, then one chunk of the oldest
    /// prompt. Returns whether anything is left to do.
    ///
    /// # Errors
    /// One that is not a single request's: the engine cannot go on.
    pub fn step(&mut self, emit: &mut dyn FnMut(Event)) -> Result<bool> {
        self.admit(emit)?;
        let mut may_prefill = true;
        let chunk_tokens = self.chunk_tokens;
        let (loaded, cache) = (&self.loaded, &mut self.cache);
        let mut i = 0;
        while let Some(sequence) = self.running.get_mut(i) {
            let result = match sequence.is_prefilling() {
                false => decode(sequence, loaded, cache, emit),
                true if !sequence.waits(cache) && std::mem::take(&mut may_prefill) => {
                    prefill(sequence, loaded, cache, chunk_tokens, emit)
                }
                true => Ok(ControlFlow::Continue(())),
            };
            match result {
                Ok(ControlFlow::Continue(())) => i += 1,
                Ok(ControlFlow::Break(())) => {
                    self.running.remove(i).end(cache);
                    mlx::memory::clear_cache()?;
                }
                Err(error) if error.fault == Fault::Ours => return Err(error),
                Err(error) if error.is_of_device => {
                    self.recover(&error, emit)?;
                    break;
                }
                Err(Error { fault, message, .. }) => {
                    let mut sequence = self.running.remove(i);
                    emit(Event::Failed { id: Some(sequence.request.id), fault, message });
                    sequence.end(cache);
                }
            }
        }
        let is_idle = self.running.is_empty() && self.waiting.is_empty();
        match self.copy_down(is_idle) {
            Err(error) if error.is_of_device && error.fault != Fault::Ours => {
                self.recover(&error, emit)?;
                Ok(true)
            }
            copied => Ok(copied? || !is_idle),
        }
    }

    /// Copies what is new to other tiers: all of it when nothing else is to be done, now and then a
    /// part of it otherwise, because what is copied in small parts is slow to bring back. Returns
    /// whether there is more.
    fn copy_down(&mut self, is_idle: bool) -> Result<bool> {
        if !is_idle && self.copied.elapsed() < COPY_PAUSE {
            let waits = self.running.iter().all(|sequence| sequence.waits(&self.cache));
            return self.cache.poll(if waits { DISK_PATIENCE } else { Duration::ZERO });
        }
        self.copied = Instant::now();
        let has_copied = self.cache.copy_down(COPY_BYTES)?;
        let patience = if is_idle && !has_copied { DISK_PATIENCE } else { Duration::ZERO };
        Ok(self.cache.poll(patience)? || has_copied)
    }

    /// Begins requests in the order of their arrival, as long as there is room. One that would
    /// compute what another is just computing waits for it, which takes no time: prompts are
    /// computed one after another.
    fn admit(&mut self, emit: &mut dyn FnMut(Event)) -> Result<()> {
        while self.running.len() < MAX_RUNNING {
            let Some(next) = self.waiting.front_mut() else { break };
            let found = self.cache.find(next.ns(), &next.request.prompt);
            if let Cause::InFlight { until, .. } = found.cause
                && self.cache.resumes_at(until) > found.usable
            {
                break;
            }
            let id = next.request.id;
            let refusal = match next.begin(&mut self.cache) {
                Ok(Ok(found)) => {
                    emit(Event::Matched(told(id, &found)));
                    self.running.extend(self.waiting.pop_front());
                    continue;
                }
                Ok(Err(_)) if !self.running.is_empty() => break,
                Ok(Err(no_room)) => {
                    Error::world(format!("{no_room}: give the cache more memory (--cache-memory)"))
                }
                Err(error) if error.fault == Fault::Ours => return Err(error),
                Err(error) => error,
            };
            self.waiting.pop_front();
            let (fault, message) = (refusal.fault, refusal.message.clone());
            emit(Event::Failed { id: Some(id), fault, message });
            if refusal.is_of_device {
                self.recover(&refusal, emit)?;
            }
        }
        Ok(())
    }

    /// The device failed in the middle of its work: all that run fail, and what the device had
    /// cached is forgotten, here and not in other tiers. Others may begin anew.
    ///
    /// # Errors
    /// The engine cannot go on.
    pub fn recover(&mut self, error: &Error, emit: &mut dyn FnMut(Event)) -> Result<()> {
        for sequence in self.running.drain(..) {
            let (fault, message) = (error.fault, error.message.clone());
            emit(Event::Failed { id: Some(sequence.request.id), fault, message });
            sequence.abandon(&mut self.cache);
        }
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
            let ids = mlx::Array::from_slice(&ids, &[1, ids.len() as i32])?;
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

fn prefill(
    sequence: &mut Sequence,
    loaded: &Loaded,
    cache: &mut PrefixCache,
    chunk_tokens: usize,
    emit: &mut dyn FnMut(Event),
) -> Result<ControlFlow<()>> {
    sequence.prefill(loaded, cache, chunk_tokens)?;
    let total = sequence.request.prompt.len();
    if total > chunk_tokens {
        emit(Event::PrefillProgress {
            id: sequence.request.id,
            done_tokens: sequence.n_prefilled().min(total) as u32,
            total_tokens: total as u32,
        });
    }
    Ok(ControlFlow::Continue(()))
}

fn decode(
    sequence: &mut Sequence,
    loaded: &Loaded,
    cache: &mut PrefixCache,
    emit: &mut dyn FnMut(Event),
) -> Result<ControlFlow<()>> {
    let Drawn { token, logprob, top } = sequence.decode(loaded, cache)?;
    let id = sequence.request.id;
    emit(Event::Token { id, token, logprob, top });
    let reason = if sequence.request.stop_tokens.contains(&token) {
        FinishReason::Stop
    } else if sequence.n_new() >= sequence.request.max_tokens as usize {
        FinishReason::Length
    } else {
        return Ok(ControlFlow::Continue(()));
    };
    let (usage, timings) = (sequence.usage(), sequence.timings());
    emit(Event::Finished { id, reason, usage, timings });
    Ok(ControlFlow::Break(()))
}
