//! One request on its way: its tokens, its state on the device, and how far it is.

use std::time::Instant;

use mlx::{Array, Backend, Device, Dtype};
use models::{LayerState, Loaded, Step};
use protocol::{GenerateRequest, Timings, Usage};

use crate::Result;
use crate::sampler::{Row, Sampled, has_penalties, sample};

/// A request with its state.
pub(crate) struct Sequence {
    pub request: GenerateRequest,
    /// Prompt, then every token that was sent.
    tokens: Vec<u32>,
    states: Vec<LayerState>,
    /// Tokens whose state exists.
    position: i32,
    n_drawn: u64,
    /// The token that is being computed while the host does something else.
    ahead: Option<Sampled>,
    submitted: Instant,
    started: Option<Instant>,
    prefilled: Option<Instant>,
}

impl Sequence {
    pub fn new(request: GenerateRequest, loaded: &Loaded) -> Self {
        Self {
            tokens: request.prompt.clone(),
            states: loaded.model.new_state(),
            position: 0,
            n_drawn: 0,
            ahead: None,
            submitted: Instant::now(),
            started: None,
            prefilled: None,
            request,
        }
    }

    pub fn is_prefilling(&self) -> bool {
        self.prefilled.is_none()
    }

    /// Tokens of the prompt whose state exists.
    pub fn n_prefilled(&self) -> usize {
        self.position as usize
    }

    /// Computes the next chunk of the prompt; with the last one also the first token.
    pub fn prefill(&mut self, loaded: &Loaded, chunk_tokens: usize) -> Result<()> {
        self.started.get_or_insert_with(Instant::now);
        let first = self.n_prefilled();
        let end = self.request.prompt.len().min(first + chunk_tokens);
        let chunk = self.request.prompt[first..end].iter().map(|&t| t as i32).collect::<Vec<_>>();
        let ids = Array::from_slice(&chunk, &[1, chunk.len() as i32])?;
        let hidden = self.forward(loaded, &ids)?;
        if end < self.request.prompt.len() {
            mlx::eval(self.states.iter().flat_map(LayerState::arrays))?;
            return Ok(());
        }
        let sampled = self.draw(loaded, &hidden)?;
        mlx::eval(sampled.arrays().chain(self.states.iter().flat_map(LayerState::arrays)))?;
        self.ahead = Some(sampled);
        self.prefilled = Some(Instant::now());
        Ok(())
    }

    /// The next token. While its value travels to the host, the device already computes the one
    /// after it, unless that one depends on the value (penalties) or can never be sent.
    pub fn decode(&mut self, loaded: &Loaded) -> Result<Drawn> {
        let current = match self.ahead.take() {
            Some(sampled) => sampled,
            None => self.compute_next(loaded, None)?,
        };
        let is_last = self.n_drawn >= u64::from(self.request.max_tokens);
        if !is_last && !has_penalties(&self.request.sampling) {
            let next = self.compute_next(loaded, Some(&current.tokens))?;
            wait_before_reuse(current.arrays())?;
            mlx::async_eval(next.arrays())?;
            self.ahead = Some(next);
        }
        let drawn = Drawn::read(&current, self.request.top_logprobs)?;
        self.tokens.push(drawn.token);
        Ok(drawn)
    }

    /// Runs the model on the newest token, given on the device or known to the host, and samples
    /// after it.
    fn compute_next(&mut self, loaded: &Loaded, newest: Option<&Array>) -> Result<Sampled> {
        let ids = match newest {
            Some(token) => token.astype(Dtype::I32)?.reshape(&[1, 1])?,
            None => {
                let token = *self.tokens.last().expect("a prompt has at least one token");
                Array::from_slice(&[token as i32], &[1, 1])?
            }
        };
        let hidden = self.forward(loaded, &ids)?;
        self.draw(loaded, &hidden)
    }

    /// Hidden states `[1, L, E]` of the next L tokens.
    fn forward(&mut self, loaded: &Loaded, ids: &Array) -> Result<Array> {
        let step = Step::new(self.position, ids.dim(1));
        let hidden = loaded.model.forward(ids, &step, &mut self.states)?;
        self.position += ids.dim(1);
        Ok(hidden)
    }

    /// Samples after the last of these hidden states.
    fn draw(&mut self, loaded: &Loaded, hidden: &Array) -> Result<Sampled> {
        let logits = last_logits(loaded, hidden)?.squeeze(&[1])?;
        let row = Row {
            sampling: &self.request.sampling,
            tokens: &self.tokens,
            n_drawn: self.n_drawn,
            top_logprobs: self.request.top_logprobs,
        };
        self.n_drawn += 1;
        sample(&logits, &[row])
    }

    pub fn n_new(&self) -> usize {
        self.tokens.len() - self.request.prompt.len()
    }

    pub fn usage(&self) -> Usage {
        let n = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        Usage {
            prompt_tokens: n(self.request.prompt.len()),
            cached_tokens: 0,
            new_tokens: n(self.n_new()),
        }
    }

    pub fn timings(&self) -> Timings {
        let now = Instant::now();
        let ms = |from: Instant, to: Instant| to.duration_since(from).as_secs_f64() * 1e3;
        let started = self.started.unwrap_or(now);
        let prefilled = self.prefilled.unwrap_or(now);
        Timings {
            queue_ms: ms(self.submitted, started),
            prefill_ms: ms(started, prefilled),
            decode_ms: ms(prefilled, now),
        }
    }
}

/// Logits `[B, 1, V]` after the last of these hidden states `[B, L, E]`.
pub(crate) fn last_logits(loaded: &Loaded, hidden: &Array) -> Result<Array> {
    let n = hidden.dim(1);
    let last = if n == 1 { hidden.clone() } else { hidden.slice_axis(1, n - 1..n)? };
    Ok(loaded.model.logits(&last)?)
}

/// One token on the host.
pub(crate) struct Drawn {
    pub token: u32,
    pub logprob: Option<f32>,
    /// Best tokens first.
    pub top: Vec<(u32, f32)>,
}

impl Drawn {
    fn read(sampled: &Sampled, top_logprobs: Option<u32>) -> Result<Self> {
        let token = sampled.tokens.item::<u32>()?;
        let Some(n) = top_logprobs else {
            return Ok(Self { token, logprob: None, top: Vec::new() });
        };
        let logprob = sampled.logprobs.as_ref().map(|l| l.item::<f32>()).transpose()?;
        let mut top = match &sampled.best {
            Some((ids, values)) => {
                ids.to_vec::<u32>()?.into_iter().zip(values.to_vec::<f32>()?).collect::<Vec<_>>()
            }
            None => Vec::new(),
        };
        top.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        top.truncate(n as usize);
        Ok(Self { token, logprob, top })
    }
}

/// Waits for `current` where the next step must not begin before it is there: on the CPU an array
/// is written in place only if nothing else is going to read it, so that a step begun while the
/// one before still runs would copy all keys and values.
pub(crate) fn wait_before_reuse<'a>(current: impl IntoIterator<Item = &'a Array>) -> Result<()> {
    if Device::current_backend() == Backend::Cpu {
        mlx::eval(current)?;
    }
    Ok(())
}
