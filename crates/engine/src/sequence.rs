//! One request on its way: its tokens, its place in the cache, and how far it is.

use std::collections::VecDeque;
use std::time::Instant;

use kvcache::{Capture, Class, Match, NoRoom, Ns, SeqId, Waiting, plan_captures};
use mlx::{Array, Dtype};
use models::Loaded;
use protocol::{GenerateRequest, Timings, Usage};

use crate::Result;
use crate::cache::{Passed, PrefixCache};
use crate::found::boundary;
use crate::sampler::{Row, Sampled, has_penalties, sample};

/// A request with its state.
pub(crate) struct Sequence {
    pub request: GenerateRequest,
    /// Prompt, then every token that was sent.
    tokens: Vec<u32>,
    /// Once it has begun.
    seat: Option<Seat>,
    /// Tokens that were not computed again.
    n_cached: usize,
    /// Tokens whose state exists.
    position: usize,
    n_drawn: u64,
    /// The token that is being computed while the host does something else.
    ahead: Option<Sampled>,
    submitted: Instant,
    started: Option<Instant>,
    prefilled: Option<Instant>,
}

/// Its place in the cache.
struct Seat {
    seq: SeqId,
    /// Where states are kept for others, in order.
    captures: VecDeque<Capture>,
}

impl Sequence {
    pub fn new(request: GenerateRequest) -> Self {
        Self {
            tokens: request.prompt.clone(),
            seat: None,
            n_cached: 0,
            position: 0,
            n_drawn: 0,
            ahead: None,
            submitted: Instant::now(),
            started: None,
            prefilled: None,
            request,
        }
    }

    /// Whose prefixes it shares.
    pub fn ns(&self) -> Ns {
        Ns(self.request.namespace)
    }

    /// Takes its place on the best known prefix.
    ///
    /// # Errors
    /// Memory is short. The inner one: there is no room now.
    pub fn begin(&mut self, cache: &mut PrefixCache) -> Result<std::result::Result<Match, NoRoom>> {
        let (seq, found) = match cache.begin(self.ns(), &self.request.prompt)? {
            Ok(begun) => begun,
            Err(no_room) => return Ok(Err(no_room)),
        };
        let seams = self.request.boundaries.iter().map(boundary).collect::<Vec<_>>();
        let mut captures = plan_captures(&found, &seams, cache.is_tight());
        captures.iter_mut().for_each(|c| c.at = cache.resumes_at(c.at));
        captures.dedup_by_key(|c| c.at);
        captures.retain(|c| c.at > found.usable);
        let captures = captures.into();
        self.seat = Some(Seat { seq, captures });
        self.position = found.usable;
        Ok(Ok(found))
    }

    pub fn is_prefilling(&self) -> bool {
        self.prefilled.is_none()
    }

    /// Whether it can do nothing before bytes come from another tier.
    pub fn waits(&self, cache: &PrefixCache) -> bool {
        self.seat.as_ref().is_some_and(|seat| cache.position(seat.seq).is_none())
    }

    /// Tokens of the prompt whose state exists.
    pub fn n_prefilled(&self) -> usize {
        self.position
    }

    fn seq(&self) -> SeqId {
        self.seat.as_ref().expect("only what has begun is computed").seq
    }

    /// Computes the next chunk of the prompt; with the last one also the first token. Chunks end at
    /// multiples of their size, whatever the cache had.
    pub fn prefill(
        &mut self,
        loaded: &Loaded,
        cache: &mut PrefixCache,
        chunk_tokens: usize,
    ) -> Result<()> {
        let seq = self.seq();
        let Some(position) = cache.position(seq) else { return Ok(()) };
        if self.started.is_none() {
            (self.started, self.n_cached) = (Some(Instant::now()), position.at);
        }
        let (begun, at) = (Instant::now(), position.at);
        let chunk_end = (at / chunk_tokens + 1) * chunk_tokens;
        let end = at + cache.reserve(seq, self.request.prompt.len().min(chunk_end) - at)?;
        let captures = self.captures_until(at, end);
        let counts = captures.iter().map(|c| (c.at - at) as i32).collect::<Vec<_>>();
        let chunk = self.request.prompt[at..end].iter().map(|&t| t as i32).collect::<Vec<_>>();
        let ids = Array::from_slice(&chunk, &[1, chunk.len() as i32])?;
        let passed = cache.pass(loaded, &ids, &[seq], &counts)?;
        let is_last = end == self.request.prompt.len();
        let sampled = is_last.then(|| self.draw(loaded, &passed.hidden)).transpose()?;
        let drawn = sampled.iter().flat_map(Sampled::arrays);
        cache.evaluate(&[seq], &passed, drawn)?;
        cache.advance(seq, &self.request.prompt[at..end], &captures, passed)?;
        cache.prefilled(end - at, begun.elapsed().as_secs_f64() * 1e6);
        self.position = end;
        if let Some(sampled) = sampled {
            self.ahead = Some(sampled);
            self.prefilled = Some(Instant::now());
        }
        Ok(())
    }

    /// Takes the planned captures after `at` and up to `end`.
    fn captures_until(&mut self, at: usize, end: usize) -> Vec<Capture> {
        let seat = self.seat.as_mut().expect("only what has begun is computed");
        let n = seat.captures.iter().take_while(|c| c.at <= end).count();
        seat.captures.drain(..n).filter(|c| c.at > at).collect()
    }

    /// The next token. While its value travels to the host, the device already computes the one
    /// after it, unless that one depends on the value (penalties) or can never be sent.
    pub fn decode(&mut self, loaded: &Loaded, cache: &mut PrefixCache) -> Result<Drawn> {
        let seq = self.seq();
        let current = match self.ahead.take() {
            Some(sampled) => sampled,
            None => {
                let last = *self.tokens.last().expect("a prompt has at least one token");
                let ids = Array::from_slice(&[last as i32], &[1, 1])?;
                let (sampled, passed) = self.compute_next(loaded, cache, &ids)?;
                cache.issue(sampled.arrays())?;
                cache.advance(seq, &[last], &[], passed)?;
                sampled
            }
        };
        let is_last = self.n_drawn >= u64::from(self.request.max_tokens);
        let mut pending = None;
        if !is_last && !has_penalties(&self.request.sampling) {
            let ids = current.tokens.astype(Dtype::I32)?.reshape(&[1, 1])?;
            let (next, passed) = self.compute_next(loaded, cache, &ids)?;
            cache.issue(next.arrays())?;
            (self.ahead, pending) = (Some(next), Some(passed));
        }
        let drawn = Drawn::read(&current, self.request.top_logprobs)?;
        self.tokens.push(drawn.token);
        if let Some(passed) = pending {
            cache.advance(seq, &[drawn.token], &[], passed)?;
        }
        Ok(drawn)
    }

    /// Runs the model on the newest token and samples after it.
    fn compute_next(
        &mut self,
        loaded: &Loaded,
        cache: &mut PrefixCache,
        ids: &Array,
    ) -> Result<(Sampled, Passed)> {
        let seq = self.seq();
        cache.reserve(seq, 1)?;
        let passed = cache.pass(loaded, ids, &[seq], &[])?;
        let sampled = self.draw(loaded, &passed.hidden)?;
        Ok((sampled, passed))
    }

    /// Leaves the cache what was computed. Nothing to do twice, or before it began. What cannot be
    /// kept costs nobody an answer.
    pub fn end(&mut self, cache: &mut PrefixCache) {
        let Some(Seat { seq, .. }) = self.seat.take() else { return };
        let class = match self.is_prefilling() {
            true => Class::TurnEnd,
            false => Class::OutputEnd(Waiting::Person),
        };
        let is_new = cache.position(seq).is_some_and(|position| position.at > self.n_cached);
        if is_new && let Err(error) = cache.capture(seq, class) {
            eprintln!("warning: {} leaves no state behind: {}", self.request.id, error.message);
        }
        cache.end(seq);
    }

    /// Ends without a look at what was computed.
    pub fn abandon(mut self, cache: &mut PrefixCache) {
        if let Some(Seat { seq, .. }) = self.seat.take() {
            cache.end(seq);
        }
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
            cached_tokens: n(self.n_cached),
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
