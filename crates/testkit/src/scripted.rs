//! The script, and the loader and engine that follow it.

use std::collections::BTreeMap;
use std::fs::File;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::time::Duration;

use protocol::{
    BenchRequest, BenchResult, CacheMatch, CacheNode, CacheTier, DeviceInfo, Event, Fault,
    FinishReason, GenerateRequest, Inspect, InspectRequest, Inspected, LoadRequest, LogitsRequest,
    MissCause, ModelInfo, NodeKind, QuantizeProgress, QuantizeReport, QuantizeRequest, RequestId,
    RoleReport, Timings, Usage,
};
use runner::{Engine, EngineError, Loader, Outcome, StepOutcome};
use serde::{Deserialize, Serialize};

/// Token ids are below this.
pub const VOCAB_SIZE: u32 = 512;
/// A prompt that holds this token is refused by `submit`.
pub const REFUSED: u32 = 500;
/// A prompt that holds this token fails in its first step.
pub const FAILS: u32 = 501;
/// A prompt that holds this token makes the whole step fail with a fault of ours.
pub const DIES: u32 = 502;

/// How loading goes.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LoadScript {
    /// At once.
    #[default]
    Succeeds,
    /// With this message, as a fault of the world.
    Fails(String),
    /// Never ends, but reports progress and heeds a stop.
    Hangs,
    /// At once, but not while another process has this file, which stands for the memory that both
    /// need.
    Takes(PathBuf),
    /// Ends the process with this code, after a line on standard error.
    Exits(i32),
}

/// How quantizing goes.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum QuantizeScript {
    /// At once, in two files.
    #[default]
    Succeeds,
    /// With this message, as a fault of the world, after the first file.
    Fails(String),
    /// Never ends after the first file, but reports progress and heeds a stop.
    Hangs,
}

/// What the engine does.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Script {
    /// How loading goes.
    pub load: LoadScript,
    /// How quantizing goes.
    pub quantize: QuantizeScript,
    /// Steps before the first token of each request; `None`: the prefill never ends.
    pub prefill_steps: Option<u32>,
    /// Tokens of each prompt that the cache has; told where it is not 0.
    pub cached_tokens: u32,
    /// The tokens of every answer, one per step.
    pub answer: Vec<u32>,
    /// Answer with the tokens of the prompt instead.
    pub echoes: bool,
    /// Start the answer again instead of ending it.
    pub endless: bool,
    /// Abort the process, after a line on standard error, when this many tokens have been sent.
    pub abort_after_tokens: Option<u32>,
    /// The model's context in tokens.
    pub context_tokens: u32,
    /// Write a line to standard error when loading, prefilling and answering begin.
    pub announces: bool,
}

impl Default for Script {
    fn default() -> Self {
        Self {
            load: LoadScript::Succeeds,
            quantize: QuantizeScript::Succeeds,
            prefill_steps: Some(1),
            cached_tokens: 0,
            answer: vec![1, 2, 3],
            echoes: false,
            endless: false,
            abort_after_tokens: None,
            context_tokens: 64,
            announces: false,
        }
    }
}

/// Loads a [`ScriptedEngine`].
#[derive(Debug)]
pub struct ScriptedLoader(pub Script);

/// Follows a script.
#[derive(Debug)]
pub struct ScriptedEngine {
    script: Script,
    running: BTreeMap<RequestId, Running>,
    n_sent: u32,
}

#[derive(Debug)]
struct Running {
    request: GenerateRequest,
    cached_tokens: u32,
    answer: Vec<u32>,
    n_prefills: u32,
    n_new: u32,
}

fn device() -> DeviceInfo {
    DeviceInfo {
        backend: "cpu".into(),
        device: "scripted".into(),
        memory_bytes: Some(1 << 30),
        mlx_version: "0.0.0".into(),
    }
}

impl Loader for ScriptedLoader {
    type Engine = ScriptedEngine;

    fn probe(&mut self) -> Result<DeviceInfo, EngineError> {
        Ok(device())
    }

    fn quantize(
        &mut self,
        request: &QuantizeRequest,
        progress: &mut dyn FnMut(QuantizeProgress) -> ControlFlow<()>,
    ) -> Result<Outcome<QuantizeReport>, EngineError> {
        self.0.announce("quantizing");
        let id = request.id;
        let mut done = |done_shards: u32| {
            let done_bytes = 500 * u64::from(done_shards);
            progress(QuantizeProgress {
                id,
                done_bytes,
                total_bytes: 1000,
                done_shards,
                n_shards: 2,
            })
        };
        let _ = done(1);
        match &self.0.quantize {
            QuantizeScript::Succeeds => {}
            QuantizeScript::Fails(message) => {
                return Err(EngineError::new(Fault::World, message.clone()));
            }
            QuantizeScript::Hangs => {
                while done(1).is_continue() {
                    pause();
                }
                return Ok(Outcome::Stopped);
            }
        }
        match done(2) {
            ControlFlow::Continue(()) => Ok(Outcome::Done(report(request))),
            ControlFlow::Break(()) => Ok(Outcome::Stopped),
        }
    }

    fn load(
        self,
        _: &LoadRequest,
        progress: &mut dyn FnMut(u64, u64) -> ControlFlow<()>,
    ) -> Result<ScriptedEngine, EngineError> {
        self.0.announce("loading");
        match &self.0.load {
            LoadScript::Succeeds => {
                for done in 1..=2 {
                    let _ = progress(done, 2);
                }
            }
            LoadScript::Fails(message) => {
                return Err(EngineError::new(Fault::World, message.clone()));
            }
            LoadScript::Takes(path) => {
                if let Err(error) = File::create_new(path) {
                    let message = format!("no memory is left: {error}");
                    return Err(EngineError::new(Fault::Memory, message));
                }
            }
            LoadScript::Hangs => {
                while progress(1, 2).is_continue() {
                    pause();
                }
                return Err(EngineError::new(Fault::World, "stopped"));
            }
            LoadScript::Exits(code) => {
                eprintln!("scripted: cannot allocate the weights");
                std::process::exit(*code);
            }
        }
        Ok(ScriptedEngine { script: self.0, running: BTreeMap::new(), n_sent: 0 })
    }
}

/// The request itself stands in the notes: a test sees what arrived.
fn report(request: &QuantizeRequest) -> QuantizeReport {
    QuantizeReport {
        id: request.id,
        family: "scripted".into(),
        coding: "scripted".into(),
        roles: vec![RoleReport {
            role: "mlp".into(),
            n_tensors: 3,
            n_weights: 500,
            n_bytes: 281,
            bits_per_weight: 4.496,
            relative_rms_error: 0.0625,
        }],
        n_weights: 500,
        bits_per_weight: 4.496,
        source_bytes: 1000,
        target_bytes: 300,
        n_shards: 2,
        n_resumed_shards: 0,
        floats: vec![("lm_head".into(), "scripted reason".into())],
        notes: vec![format!("{request:?}")],
    }
}

impl Script {
    fn announce(&self, what: &str) {
        if self.announces {
            eprintln!("scripted: {what}");
        }
    }
}

/// Endless scripts yield the processor: only a command ends them.
fn pause() {
    std::thread::park_timeout(Duration::from_millis(1));
}

impl Running {
    fn usage(&self) -> Usage {
        let found = self.found();
        Usage {
            prompt_tokens: found.prompt_tokens,
            cached_tokens: found.usable_tokens,
            new_tokens: self.n_new,
        }
    }

    fn found(&self) -> CacheMatch {
        let prompt_tokens = self.request.prompt.len() as u32;
        let usable_tokens = self.cached_tokens.min(prompt_tokens.saturating_sub(1));
        found(self.request.id, prompt_tokens, usable_tokens)
    }
}

fn found(id: RequestId, prompt_tokens: u32, usable_tokens: u32) -> CacheMatch {
    CacheMatch {
        id,
        prompt_tokens,
        matched_tokens: usable_tokens,
        usable_tokens,
        tier: CacheTier::Device,
        cause: MissCause::Complete,
    }
}

impl Drop for ScriptedEngine {
    fn drop(&mut self) {
        if let LoadScript::Takes(path) = &self.script.load {
            let _ = std::fs::remove_file(path);
        }
    }
}

impl ScriptedEngine {
    fn advance(&mut self, id: RequestId, emit: &mut dyn FnMut(Event)) -> Result<(), EngineError> {
        let Some(running) = self.running.get_mut(&id) else { return Ok(()) };
        if running.request.prompt.contains(&DIES) {
            return Err(EngineError::new(Fault::Ours, "scripted defect"));
        }
        if running.request.prompt.contains(&FAILS) {
            self.running.remove(&id);
            let message = "scripted failure".to_owned();
            emit(Event::Failed { id: Some(id), fault: Fault::World, message });
            return Ok(());
        }
        if self.script.prefill_steps.is_none_or(|n| running.n_prefills < n) {
            if running.n_prefills == 0 {
                self.script.announce("prefill");
                if running.cached_tokens > 0 {
                    emit(Event::Matched(running.found()));
                }
            }
            running.n_prefills = running.n_prefills.saturating_add(1);
            let total_tokens = running.request.prompt.len() as u32;
            emit(Event::PrefillProgress { id, done_tokens: 0, total_tokens });
            return Ok(());
        }
        if self.script.abort_after_tokens == Some(self.n_sent) {
            eprintln!("scripted: the device is lost");
            std::process::abort();
        }
        let n_answer = running.answer.len();
        let token = running.answer[running.n_new as usize % n_answer];
        running.n_new += 1;
        self.n_sent += 1;
        if running.n_new == n_answer as u32 {
            self.script.announce("answering");
        }
        let asked = running.request.top_logprobs;
        let logprob = asked.map(|_| -0.5);
        let top = (0..asked.unwrap_or(0)).map(|n| (n, -0.5 - n as f32)).collect();
        emit(Event::Token { id, token, logprob, top });
        let ended = !self.script.endless && running.n_new as usize == n_answer;
        let reason = if ended || running.request.stop_tokens.contains(&token) {
            FinishReason::Stop
        } else if running.n_new == running.request.max_tokens {
            FinishReason::Length
        } else {
            return Ok(());
        };
        let usage = running.usage();
        self.running.remove(&id);
        emit(Event::Finished { id, reason, usage, timings: Timings::default() });
        Ok(())
    }
}

impl Engine for ScriptedEngine {
    fn info(&self) -> ModelInfo {
        ModelInfo {
            family: "scripted".into(),
            n_parameters: 1000,
            weight_bytes: 2000,
            vocab_size: VOCAB_SIZE,
            n_layers: 2,
            context_tokens: self.script.context_tokens,
            dtype: "float32".into(),
            quantization: None,
            device: device(),
        }
    }

    fn submit(&mut self, request: GenerateRequest) -> Result<(), EngineError> {
        if request.prompt.contains(&REFUSED) {
            return Err(EngineError::new(Fault::Caller, "scripted refusal"));
        }
        let cached_tokens = self.script.cached_tokens;
        let answer = match self.script.echoes {
            true => request.prompt.clone(),
            false => self.script.answer.clone(),
        };
        let running = Running { request, cached_tokens, answer, n_prefills: 0, n_new: 0 };
        self.running.insert(running.request.id, running);
        Ok(())
    }

    /// One node with the prompt's tokens, or three in a row.
    fn inspect(&self, request: &InspectRequest) -> Inspected {
        let (found, n_nodes, tokens) = match &request.what {
            Inspect::Prompt { tokens, .. } => {
                let usable_tokens = self.script.cached_tokens.min(tokens.len() as u32);
                let found = found(request.id, tokens.len() as u32, usable_tokens);
                (Some(found), 1, tokens.clone())
            }
            Inspect::Tree { max_nodes } => (None, 3.min(*max_nodes), vec![1, 2, 3]),
        };
        let node = |idx: u32| CacheNode {
            namespace: 0,
            parent: idx.checked_sub(1),
            from: idx * tokens.len() as u32,
            n_tokens: tokens.len() as u32,
            first: tokens.iter().copied().take(request.shown_tokens as usize).collect(),
            covered: [tokens.len() as u32, 0, 0],
            has_checkpoint: [idx == 0, false, false],
            kind: NodeKind::Turn,
            is_in_use: false,
            n_children: u32::from(idx + 1 < n_nodes),
        };
        Inspected {
            id: request.id,
            found,
            differs: None,
            nodes: (0..n_nodes).map(node).collect(),
            n_nodes: 3,
            tiers: Default::default(),
        }
    }

    fn cancel(&mut self, id: RequestId) -> (Usage, Timings) {
        let usage = self.running.remove(&id).map(|running| running.usage());
        (usage.unwrap_or_default(), Timings::default())
    }

    fn step(&mut self, emit: &mut dyn FnMut(Event)) -> Result<StepOutcome, EngineError> {
        if self.script.endless || self.script.prefill_steps.is_none() {
            pause();
        }
        let ids: Vec<_> = self.running.keys().copied().collect();
        for id in ids {
            self.advance(id, emit)?;
        }
        Ok(if self.running.is_empty() { StepOutcome::Idle } else { StepOutcome::Busy })
    }

    fn logits(
        &mut self,
        request: &LogitsRequest,
        rows: &mut dyn FnMut(u32, &[f32]),
        should_stop: &mut dyn FnMut() -> bool,
    ) -> Result<Outcome<()>, EngineError> {
        let n_rows = request.chunk_tokens.unwrap_or(request.tokens.len() as u32) as usize;
        for (chunk_idx, chunk) in request.tokens.chunks(n_rows).enumerate() {
            // Column c of the row of token t is t + c / 1024: every value tells where it belongs.
            let row = |&t: &u32| (0..VOCAB_SIZE).map(move |c| t as f32 + c as f32 / 1024.0);
            let values: Vec<f32> = chunk.iter().flat_map(row).collect();
            rows((chunk_idx * n_rows) as u32, &values);
            while self.script.endless && !should_stop() {
                pause();
            }
            if should_stop() {
                return Ok(Outcome::Stopped);
            }
        }
        Ok(Outcome::Done(()))
    }

    fn bench(
        &mut self,
        request: &BenchRequest,
        should_stop: &mut dyn FnMut() -> bool,
    ) -> Result<Outcome<BenchResult>, EngineError> {
        while self.script.endless && !should_stop() {
            pause();
        }
        if should_stop() {
            return Ok(Outcome::Stopped);
        }
        Ok(Outcome::Done(BenchResult {
            id: request.id,
            batch: request.batch,
            prefill_tok_s: 1000.0,
            decode_tok_s: 100.0 * f64::from(request.batch),
            ttft_ms: 12.5,
            peak_bytes: 4096,
            weight_bytes_per_token: 2000,
            bound_share: None,
        }))
    }
}
