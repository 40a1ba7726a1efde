//! The scheduler's state, and what it is told between two plans.

use std::collections::BTreeMap;

use crate::fair::Keys;
use crate::request::{Arrival, Id, Request, Seat, State};

/// How far, in steps of prompt tokens, a key's account may be from what all get alike.
const CREDIT_STEPS: usize = 4;

/// Sizes that hold for the scheduler's life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Requests that have a place in the cache at a time, at least 1.
    pub max_rows: usize,
    /// Of them, of one key; at least 1.
    pub max_rows_per_key: usize,
    /// Requests that wait, besides those that were paused.
    pub max_waiting: usize,
    /// Of them, of one key.
    pub max_waiting_per_key: usize,
    /// Tokens of all slices of a step, at least a chunk.
    pub step_tokens: usize,
    /// Prompts are cut at its multiples, counted from their first token; at least 1.
    pub chunk_tokens: usize,
    /// The same of prompts that begin while others answer, who wait for each slice; at least 1. If
    /// it is smaller, a step has no more slice tokens than this while anybody answers, or a single
    /// slice.
    pub chunk_tokens_beside: usize,
    /// Tokens by which every answer is expected to grow when another request begins.
    pub headroom_tokens: usize,
    /// What had been drawn before a pause and is lost is computed token by token, as it was at
    /// first, where every bit of it counts; otherwise in chunks, in a fraction of the time.
    pub replays_by_token: bool,
}

/// There is no place for another request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QueueFull {
    /// Requests that wait.
    pub n_waiting: usize,
    /// Whether it is the caller's own share that is full.
    pub is_of_key: bool,
    /// Tokens of prompts that are still to be computed; at the rate that was measured, how long
    /// that takes.
    pub ahead_tokens: u64,
}

impl std::fmt::Display for QueueFull {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { n_waiting, ahead_tokens, .. } = self;
        let whose = if self.is_of_key { "of this key " } else { "" };
        write!(
            f,
            "too many requests {whose}wait ({n_waiting} in all, {ahead_tokens} prompt tokens are \
             to be computed)"
        )
    }
}

impl std::error::Error for QueueFull {}

/// The requests on one model, and whose turn it is.
#[derive(Debug)]
pub struct Scheduler {
    pub(crate) limits: Limits,
    pub(crate) requests: BTreeMap<Id, Request>,
    /// Those with a seat, the eldest first.
    pub(crate) seated: BTreeMap<u64, Id>,
    pub(crate) keys: Keys,
    /// Requests that wait and never began.
    pub(crate) n_waiting: usize,
    /// Tokens before all requests draw.
    pub(crate) n_ahead: u64,
    /// Tokens computed since the start.
    pub(crate) clock: u64,
    /// Counts what may change what is known of a prompt, or what room there is.
    pub(crate) version: u64,
    n_submitted: u64,
    /// Spreads the checks of debug builds.
    n_changes: u64,
}

impl Scheduler {
    /// # Panics
    /// If a size is 0, or a step is smaller than a chunk: a slice would never fit.
    pub fn new(limits: Limits) -> Self {
        let Limits { max_rows, max_rows_per_key, chunk_tokens, step_tokens, .. } = limits;
        assert!(max_rows > 0 && max_rows_per_key > 0, "something must be able to run");
        assert!(limits.chunk_tokens_beside > 0, "a small chunk has a token");
        assert!(chunk_tokens > 0 && step_tokens >= chunk_tokens, "a step has room for a chunk");
        Self {
            limits,
            requests: BTreeMap::new(),
            seated: BTreeMap::new(),
            keys: Keys::new(CREDIT_STEPS * step_tokens),
            n_waiting: 0,
            n_ahead: 0,
            clock: 0,
            version: 0,
            n_submitted: 0,
            n_changes: 0,
        }
    }

    /// Takes a request into the queue.
    ///
    /// # Errors
    /// `QueueFull`; nothing has changed then.
    ///
    /// # Panics
    /// If the id is in use, or the prompt or the answer has no token.
    pub fn submit(&mut self, arrival: Arrival) -> Result<(), QueueFull> {
        let Arrival { id, key, n_prompt, n_max_new, n_cached } = arrival;
        assert!(!self.requests.contains_key(&id), "an id is of one request");
        assert!(n_prompt > 0 && n_max_new > 0, "a request has something to compute");
        let is_of_key = self.keys.n_waiting(key) >= self.limits.max_waiting_per_key;
        if is_of_key || self.n_waiting >= self.limits.max_waiting {
            let (n_waiting, ahead_tokens) = (self.n_waiting, self.n_ahead);
            return Err(QueueFull { n_waiting, is_of_key, ahead_tokens });
        }
        self.n_submitted += 1;
        let request = Request {
            no: self.n_submitted,
            key,
            n_prompt,
            n_max: n_prompt.saturating_add(n_max_new),
            n_tokens: n_prompt,
            n_cached,
            arrived: self.clock,
            chunk_tokens: self.limits.chunk_tokens,
            has_begun: false,
            n_had: 0,
            is_protected: false,
            has_lost: false,
            n_holds: 0,
            looked: u64::MAX,
            state: State::Queued,
        };
        self.count(id, &request, true);
        self.requests.insert(id, request);
        self.after();
        Ok(())
    }

    /// A row or a slice of the step was computed: `n_tokens`, one for a row. Ignored for a request
    /// without tokens in place, as one that was ended is.
    pub fn computed(&mut self, id: Id, n_tokens: usize) {
        let Some(at) = self.requests.get(&id).and_then(Request::at) else { return };
        let key = self.update(id, |request| {
            if let Some(seat) = request.seat_mut() {
                seat.at = Some(at + n_tokens);
            }
            request.n_had = request.n_had.max(at + n_tokens);
            request.is_protected &= request.n_gained() == 0;
            request.key
        });
        self.clock += n_tokens as u64;
        if let Some(key) = key {
            self.keys.serve(key, n_tokens);
        }
        self.release_until(id, at + n_tokens);
        self.after();
    }

    /// What a request waited for has come, or will not: it goes on at token `at`. Ignored for one
    /// that waits for nothing.
    pub fn arrived(&mut self, id: Id, at: usize) {
        let is_waiting =
            self.requests.get(&id).and_then(Request::seat).is_some_and(|seat| seat.at.is_none());
        if !is_waiting {
            return;
        }
        self.update(id, |request| request.resume(at));
        self.release_until(id, at);
        self.after();
    }

    /// A request is over, wherever it stands: finished, failed or cancelled. Its place in the cache
    /// is the owner's to free. False for one that is not known.
    pub fn end(&mut self, id: Id) -> bool {
        let is_known = self.forget(id);
        self.after();
        is_known
    }

    /// Whether no request is there.
    pub fn is_idle(&self) -> bool {
        self.requests.is_empty()
    }

    /// Requests without a seat, paused ones included.
    pub fn n_waiting(&self) -> usize {
        self.requests.len() - self.seated.len()
    }

    /// Requests with a seat.
    pub fn n_running(&self) -> usize {
        self.seated.len()
    }

    /// Tokens of prompts that are still to be computed.
    pub fn ahead_tokens(&self) -> u64 {
        self.n_ahead
    }

    /// Changes a request, and all totals with it.
    pub(crate) fn update<T>(&mut self, id: Id, f: impl FnOnce(&mut Request) -> T) -> Option<T> {
        let request = self.requests.get_mut(&id)?;
        let before = request.mark();
        let result = f(request);
        let (after, key, no) = (request.mark(), request.key, request.no);
        if before == after {
            return Some(result);
        }
        self.n_ahead = self.n_ahead - before.n_ahead + after.n_ahead;
        self.n_waiting -= usize::from(before.is_waiting);
        self.n_waiting += usize::from(after.is_waiting);
        if before.is_seated != after.is_seated {
            self.version += 1;
            match after.is_seated {
                true => self.seated.insert(no, id),
                false => self.seated.remove(&no),
            };
        }
        self.keys.change(key, id, Some(before), Some(after));
        Some(result)
    }

    /// Adds a request to all totals, or takes it out.
    fn count(&mut self, id: Id, request: &Request, is_there: bool) {
        let mark = request.mark();
        let (before, after) = if is_there { (None, Some(mark)) } else { (Some(mark), None) };
        self.keys.change(request.key, id, before, after);
        if is_there {
            self.n_ahead += mark.n_ahead;
            self.n_waiting += usize::from(mark.is_waiting);
        } else {
            self.n_ahead -= mark.n_ahead;
            self.n_waiting -= usize::from(mark.is_waiting);
            if mark.is_seated {
                self.version += 1;
                self.seated.remove(&request.no);
            }
        }
    }

    pub(crate) fn forget(&mut self, id: Id) -> bool {
        self.release_until(id, usize::MAX);
        let Some(request) = self.requests.remove(&id) else { return false };
        if let State::Held { by, until } = request.state
            && let Some(seat) = self.requests.get_mut(&by).and_then(Request::seat_mut)
        {
            seat.held.remove(&(until, id));
        }
        self.count(id, &request, false);
        true
    }

    /// Those that are held by a request queue again, as far as they waited for tokens before `at`.
    pub(crate) fn release_until(&mut self, by: Id, at: usize) {
        loop {
            let seat = self.requests.get_mut(&by).and_then(Request::seat_mut);
            let Some(held) = seat.map(|seat| &mut seat.held) else { return };
            let Some((until, id)) = held.first().copied().filter(|(until, _)| *until <= at) else {
                return;
            };
            held.remove(&(until, id));
            self.update(id, |request| {
                request.looked = u64::MAX;
                request.state = State::Queued;
            });
        }
    }

    /// Gives a request a row.
    pub(crate) fn seat(&mut self, id: Id, at: Option<usize>) {
        let chunk_tokens = self.chunk_tokens_now().unwrap_or(self.limits.chunk_tokens);
        self.update(id, |request| {
            // Who begins again keeps the cuts that it has.
            if !request.has_begun {
                request.chunk_tokens = chunk_tokens;
            }
            request.has_begun = true;
            request.n_holds = 0;
            request.state = State::Seated(Seat::default());
            if let Some(at) = at {
                request.resume(at);
            }
        });
    }

    /// The size of small chunks, if there are such and somebody answers.
    pub(crate) fn chunk_tokens_now(&self) -> Option<usize> {
        let Limits { chunk_tokens, chunk_tokens_beside: small, .. } = self.limits;
        let is_wanted =
            small < chunk_tokens && self.seated.values().any(|id| self.requests[id].is_decoding());
        is_wanted.then_some(small)
    }

    /// The end of every public change.
    pub(crate) fn after(&mut self) {
        self.n_changes += 1;
        // Recounting is linear in the requests: always while they are few, sampled beyond that.
        let stride = self.requests.len() as u64 / 32 + 1;
        if cfg!(debug_assertions) && self.n_changes.is_multiple_of(stride) {
            self.check();
        }
    }
}
