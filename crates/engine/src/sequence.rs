//! One request on its way: its tokens, its place in the cache, and how far it is.

use std::collections::VecDeque;
use std::time::Instant;

use kvcache::{Capture, Class, Match, NoRoom, Ns, SeqId, Waiting, plan_captures};
use mlx::Array;
use models::Loaded;
use protocol::{Event, FinishReason, GenerateRequest, Timings, Usage};

use crate::batch::{Batch, Drawn, Pending};
use crate::cache::PrefixCache;
use crate::constrained::Constrained;
use crate::found::boundary;
use crate::sampler::{Row, Sampled, has_penalties, sample};
use crate::{Error, Result};

/// A request with its state.
#[derive(Debug)]
pub(crate) struct Sequence {
    pub request: GenerateRequest,
    /// Prompt, then every token that was sent.
    tokens: Vec<u32>,
    /// What its answer may go on with, where that is not anything. It stays when the place is left.
    constrained: Option<Box<Constrained>>,
    /// While it has a place in the cache.
    seat: Option<Seat>,
    /// Tokens that were not computed again.
    n_cached: usize,
    submitted: Instant,
    started: Option<Instant>,
    prefilled: Option<Instant>,
}

/// Its place in the cache.
#[derive(Debug)]
struct Seat {
    seq: SeqId,
    /// Where states are kept for others, in order.
    captures: VecDeque<Capture>,
    /// What was sampled and not read, oldest first. Of two the first has already been computed on.
    unread: VecDeque<Pending>,
}

impl Sequence {
    pub fn new(request: GenerateRequest) -> Self {
        Self {
            tokens: request.prompt.clone(),
            constrained: None,
            seat: None,
            n_cached: 0,
            submitted: Instant::now(),
            started: None,
            prefilled: None,
            request,
        }
    }

    /// What its answer may go on with; before it begins.
    pub fn obey(&mut self, constrained: Option<Box<Constrained>>) {
        self.constrained = constrained;
    }

    /// Whose prefixes it shares.
    pub fn ns(&self) -> Ns {
        Ns(self.request.namespace)
    }

    /// All its tokens that the host knows: what it begins on.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// Takes its place on the best known prefix of its tokens.
    ///
    /// # Errors
    /// Memory is short. The inner one: there is no room now.
    pub fn begin(&mut self, cache: &mut PrefixCache) -> Result<std::result::Result<Match, NoRoom>> {
        let (seq, found) = match cache.begin(self.ns(), &self.tokens)? {
            Ok(begun) => begun,
            Err(no_room) => return Ok(Err(no_room)),
        };
        let seams = self.request.boundaries.iter().map(boundary).collect::<Vec<_>>();
        let mut captures = plan_captures(&found, &seams, cache.is_tight());
        captures.iter_mut().for_each(|c| c.at = cache.resumes_at(c.at));
        captures.dedup_by_key(|c| c.at);
        captures.retain(|c| c.at > found.usable);
        let captures = captures.into();
        self.seat = Some(Seat { seq, captures, unread: VecDeque::new() });
        Ok(Ok(found))
    }

    /// Whether nothing of it has been computed yet.
    pub fn is_new(&self) -> bool {
        self.started.is_none()
    }

    /// Plans another capture, if its place is still to come.
    pub fn also_capture(&mut self, capture: Capture) {
        let n_prompt = self.request.prompt.len();
        let Some(Seat { captures, .. }) = &mut self.seat else { return };
        let idx = captures.partition_point(|c| c.at < capture.at);
        let is_planned = captures.get(idx).is_some_and(|c| c.at == capture.at);
        if !is_planned && capture.at <= n_prompt {
            captures.insert(idx, capture);
        }
    }

    pub fn is_seated(&self) -> bool {
        self.seat.is_some()
    }

    /// Tokens whose state exists; none while bytes of it come from another tier, or without a seat.
    pub fn position(&self, cache: &PrefixCache) -> Option<usize> {
        self.seat.as_ref().and_then(|seat| cache.position(seat.seq)).map(|position| position.at)
    }

    fn seat(&mut self) -> &mut Seat {
        self.seat.as_mut().expect("only what has a place is computed")
    }

    pub fn seq(&self) -> SeqId {
        self.seat.as_ref().expect("only what has a place is computed").seq
    }

    /// What was sampled last, if the host does not know it yet.
    pub fn unread(&self) -> Option<&Pending> {
        self.seat.as_ref().and_then(|seat| seat.unread.back())
    }

    /// The last token that the host knows.
    pub fn newest(&self) -> u32 {
        *self.tokens.last().expect("a prompt has at least one token")
    }

    /// Whether no token of its answer is known yet.
    pub fn has_told_nothing(&self) -> bool {
        self.tokens.len() == self.request.prompt.len()
    }

    /// Whether a token can be drawn before those before it are on the host.
    pub fn runs_ahead(&self) -> bool {
        !has_penalties(&self.request.sampling) && !self.is_constrained()
    }

    /// Whether what it may draw is worked out on the host.
    pub fn is_constrained(&self) -> bool {
        self.constrained.as_deref().is_some_and(Constrained::needs_mask)
    }

    /// Works out what it may draw, before it draws.
    pub fn constrain(&mut self) {
        if let Some(constrained) = self.constrained.as_mut().filter(|c| c.needs_mask()) {
            constrained.prepare();
        }
    }

    /// Why its answer cannot go on, if that is so.
    pub fn fault(&self) -> Option<&Error> {
        self.constrained.as_deref().and_then(Constrained::fault)
    }

    /// Whether all tokens are sampled that were asked for.
    pub fn has_drawn_all(&self) -> bool {
        self.n_drawn() >= u64::from(self.request.max_tokens)
    }

    fn n_drawn(&self) -> u64 {
        let n_unread = self.seat.as_ref().map_or(0, |seat| seat.unread.len());
        (self.n_new() + n_unread) as u64
    }

    /// What the sampler needs to know.
    pub fn sampler_row(&self) -> Row<'_> {
        Row {
            sampling: &self.request.sampling,
            tokens: &self.tokens,
            n_drawn: self.n_drawn(),
            top_logprobs: self.request.top_logprobs,
            allowed: self.constrained.as_deref().and_then(Constrained::allowed),
        }
    }

    /// Computes tokens `from..to`, for which there is room; with the last one also what follows it.
    ///
    /// # Errors
    /// The device fails, memory first of all.
    pub fn prefill(
        &mut self,
        loaded: &Loaded,
        cache: &mut PrefixCache,
        from: usize,
        to: usize,
    ) -> Result<()> {
        self.start(from);
        let seq = self.seq();
        let captures = self.captures_until(from, to);
        let counts = captures.iter().map(|c| (c.at - from) as i32).collect::<Vec<_>>();
        let ids = self.tokens[from..to].iter().map(|&t| t as i32).collect::<Vec<_>>();
        let ids = Array::staged(&ids, &[1, ids.len() as i32])?;
        let passed = cache.pass(loaded, &ids, &[seq], &counts)?;
        let is_last = to == self.tokens.len();
        let sampled = match is_last {
            true => Some(self.draw(loaded, cache, &passed.hidden)?),
            false => None,
        };
        let drawn = sampled.iter().flat_map(Sampled::arrays);
        cache.compute(&[seq], &passed, drawn, to - from)?;
        cache.advance(seq, &self.tokens[from..to], &captures, passed.captured)?;
        if let Some(sampled) = sampled {
            self.seat().unread.extend(Batch::rows(sampled, 1));
        }
        Ok(())
    }

    /// Its first work begins, at token `at`.
    fn start(&mut self, at: usize) {
        if self.started.is_none() {
            (self.started, self.n_cached) = (Some(Instant::now()), at);
        }
    }

    /// Takes the planned captures after `at` and up to `end`.
    fn captures_until(&mut self, at: usize, end: usize) -> Vec<Capture> {
        let seat = self.seat();
        let n = seat.captures.iter().take_while(|c| c.at <= end).count();
        seat.captures.drain(..n).filter(|c| c.at > at).collect()
    }

    /// A pass over the newest token has begun, and sampled this.
    ///
    /// # Errors
    /// Memory is short.
    pub fn issued(&mut self, pending: Pending, cache: &mut PrefixCache) -> Result<()> {
        if self.started.is_none() {
            self.start(self.tokens.len() - 1);
        }
        let seat = self.seat();
        let is_known = seat.unread.is_empty();
        seat.unread.push_back(pending);
        if is_known { self.advance(cache) } else { Ok(()) }
    }

    /// The newest known token has been computed on.
    fn advance(&mut self, cache: &mut PrefixCache) -> Result<()> {
        let (seq, newest) = (self.seq(), self.newest());
        cache.advance_one(seq, newest)?;
        let end = self.tokens.len();
        match self.captures_until(end - 1, end).pop() {
            Some(capture) => cache.capture(seq, capture.class),
            None => Ok(()),
        }
    }

    /// Waits for the oldest token that was sampled; none if there is none.
    ///
    /// # Errors
    /// The device fails.
    pub fn read(&mut self, cache: &mut PrefixCache) -> Result<Option<Drawn>> {
        let Some(pending) = self.seat.as_mut().and_then(|seat| seat.unread.pop_front()) else {
            return Ok(None);
        };
        let mut drawn = pending.read()?;
        self.prefilled.get_or_insert_with(Instant::now);
        self.tokens.push(drawn.token);
        if let Some(constrained) = &mut self.constrained {
            constrained.accept(drawn.token);
        }
        if self.unread().is_some() {
            self.advance(cache)?;
        }
        match self.request.top_logprobs {
            Some(n) => drawn.top.truncate(n as usize),
            None => (drawn.logprob, drawn.top) = (None, Vec::new()),
        }
        Ok(Some(drawn))
    }

    /// Why it has ended by its last token, if it has.
    pub fn reason_to_end(&self) -> Option<FinishReason> {
        let is_over = self.constrained.as_deref().is_some_and(Constrained::is_over);
        if self.n_new() > 0 && (is_over || self.request.stop_tokens.contains(&self.newest())) {
            Some(FinishReason::Stop)
        } else if self.n_new() >= self.request.max_tokens as usize {
            Some(FinishReason::Length)
        } else {
            None
        }
    }

    /// Leaves the cache what was computed. Nothing to do twice, or before it began. What cannot be
    /// kept costs nobody an answer.
    pub fn end(&mut self, cache: &mut PrefixCache) {
        let Some(Seat { seq, .. }) = self.seat.take() else { return };
        let class = match self.prefilled {
            None => Class::TurnEnd,
            Some(_) => Class::OutputEnd(Waiting::Person),
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
    fn draw(
        &mut self,
        loaded: &Loaded,
        cache: &mut PrefixCache,
        hidden: &Array,
    ) -> Result<Sampled> {
        let logits = last_logits(loaded, hidden)?.squeeze(&[1])?;
        if self.is_constrained() {
            cache.issue([&logits].into_iter())?;
            self.constrain();
        }
        sample(&logits, &[self.sampler_row()])
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

/// Sends a token, and the end if it is the last; says whether it was. Instead of a token that was
/// drawn against the grammar, the failure is sent.
pub(crate) fn told_drawn(sequence: &Sequence, drawn: Drawn, emit: &mut dyn FnMut(Event)) -> bool {
    let id = sequence.request.id;
    if let Some(Error { fault, message, .. }) = sequence.fault() {
        emit(Event::Failed { id: Some(id), fault: *fault, message: message.clone() });
        return true;
    }
    let Drawn { token, logprob, top } = drawn;
    emit(Event::Token { id, token, logprob, top });
    let Some(reason) = sequence.reason_to_end() else { return false };
    let (usage, timings) = (sequence.usage(), sequence.timings());
    emit(Event::Finished { id, reason, usage, timings });
    true
}

/// Logits `[B, 1, V]` after the last of these hidden states `[B, L, E]`.
pub(crate) fn last_logits(loaded: &Loaded, hidden: &Array) -> Result<Array> {
    let n = hidden.dim(1);
    let last = if n == 1 { hidden.clone() } else { hidden.slice_axis(1, n - 1..n)? };
    Ok(loaded.model.logits(&last)?)
}
