//! One request: how much of it there is, where it stands, and what it counts for.

use std::collections::BTreeSet;

use crate::AGEING;
use crate::scheduler::Limits;

/// A request, by the owner's name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Id(pub u64);

/// Whose request it is: those with equal keys share one turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key(pub u64);

/// A request arrives. Alone on the device it must be able to finish: the owner has seen to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Arrival {
    /// Not in use.
    pub id: Id,
    /// Whose.
    pub key: Key,
    /// Tokens of its prompt, at least 1.
    pub n_prompt: usize,
    /// Tokens of its answer, at most; at least 1.
    pub n_max_new: usize,
    /// Tokens that need no computing, as far as is known now. It decides the order alone, and is
    /// asked for again before the request begins.
    pub n_cached: usize,
}

/// Where a request stands.
#[derive(Debug)]
pub(crate) enum State {
    Queued,
    /// Waits until `by` has computed `until` tokens.
    Held {
        by: Id,
        until: usize,
    },
    Seated(Seat),
}

/// A place in the cache, and a row.
#[derive(Debug, Default)]
pub(crate) struct Seat {
    /// Tokens that are there; none while they are on their way.
    pub at: Option<usize>,
    /// What it computes beyond this token is new: it never came as far, or found it.
    pub new_from: usize,
    /// Who is held by it, and until which token.
    pub held: BTreeSet<(usize, Id)>,
}

/// The order of one key's requests: when it is due, those that began before, then by age.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Place {
    /// On the clock of computed tokens.
    pub due: u64,
    pub is_new: bool,
    pub no: u64,
}

#[derive(Debug)]
pub(crate) struct Request {
    /// Counts requests: the smaller, the older.
    pub no: u64,
    pub key: Key,
    pub n_prompt: usize,
    /// Prompt and longest answer.
    pub n_max: usize,
    /// What must be computed before the next token is drawn: the prompt and, after a pause, what
    /// had been drawn.
    pub n_tokens: usize,
    /// Of them, as was found last.
    pub n_cached: usize,
    /// On the clock of computed tokens.
    pub arrived: u64,
    /// Its prompt is cut at multiples of it, which are settled when it begins.
    pub chunk_tokens: usize,
    pub has_begun: bool,
    /// The most tokens that it ever had.
    pub n_had: usize,
    /// It was paused before it computed anything new: it begins again only beside what leaves it
    /// all it may need, and is the last to be paused for room.
    pub is_protected: bool,
    /// A pause has cost it more than a chunk: it makes way for nobody's turn any more.
    pub has_lost: bool,
    pub n_holds: u32,
    /// The state of the seats for which `n_cached` was found.
    pub looked: u64,
    pub state: State,
}

/// What a request counts for in the totals. All totals are sums of these.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Mark {
    /// In its key's queue.
    pub place: Option<Place>,
    pub is_seated: bool,
    /// Not seated, and never was.
    pub is_waiting: bool,
    /// It would compute a slice now, or begin.
    pub is_backlog: bool,
    /// Tokens before the next one is drawn.
    pub n_ahead: u64,
}

impl Request {
    /// Uncached tokens, at least 1.
    pub fn work(&self) -> usize {
        self.n_tokens.saturating_sub(self.n_cached).max(1)
    }

    pub fn place(&self) -> Place {
        let due = self.arrived.saturating_add(AGEING.saturating_mul(self.work() as u64));
        Place { due, is_new: !self.has_begun, no: self.no }
    }

    pub fn seat(&self) -> Option<&Seat> {
        match &self.state {
            State::Seated(seat) => Some(seat),
            _ => None,
        }
    }

    pub fn seat_mut(&mut self) -> Option<&mut Seat> {
        match &mut self.state {
            State::Seated(seat) => Some(seat),
            _ => None,
        }
    }

    /// Tokens that are there, of one that is seated and does not wait for bytes.
    pub fn at(&self) -> Option<usize> {
        self.seat()?.at
    }

    /// New tokens since it was seated.
    pub fn n_gained(&self) -> usize {
        let gained = self.seat().and_then(|seat| Some(seat.at?.saturating_sub(seat.new_from)));
        gained.unwrap_or(0)
    }

    /// Bytes have come, or were there: it goes on at `at`.
    pub fn resume(&mut self, at: usize) {
        let at = at.min(self.n_tokens.saturating_sub(1));
        self.has_lost |= self.n_had > at + self.chunk_tokens;
        let new_from = at.max(self.n_had);
        if let Some(seat) = self.seat_mut() {
            (seat.at, seat.new_from) = (Some(at), new_from);
        }
    }

    /// Whether no more than the token that was drawn last is to be computed.
    pub fn is_decoding(&self) -> bool {
        self.at().is_some_and(|at| at >= self.n_tokens.saturating_sub(1).max(self.n_prompt))
    }

    pub fn is_prefilling(&self) -> bool {
        self.at().is_some() && !self.is_decoding()
    }

    pub fn mark(&self) -> Mark {
        let is_queued = matches!(self.state, State::Queued);
        let (is_seated, at) = (self.seat().is_some(), self.at());
        Mark {
            place: is_queued.then(|| self.place()),
            is_seated,
            is_waiting: !is_seated && !self.has_begun,
            is_backlog: is_queued || self.is_prefilling(),
            n_ahead: match at {
                Some(at) => self.n_tokens.saturating_sub(at) as u64,
                None => self.work() as u64,
            },
        }
    }

    /// Tokens that it may come to, as far as room is left for it before another begins.
    pub fn forecast(&self, headroom_tokens: usize) -> usize {
        let known = self.at().unwrap_or(0).max(self.n_tokens);
        match self.is_protected {
            true => known.max(self.n_max),
            false => known.max(self.n_max.min(known.saturating_add(headroom_tokens))),
        }
    }

    /// Where the slice that begins at `from` ends. Once it has begun this depends on nothing but
    /// its length: what runs beside it cannot change what sums are split.
    pub fn break_after(&self, from: usize, limits: &Limits) -> usize {
        let chunk_end = (from / self.chunk_tokens + 1) * self.chunk_tokens;
        if from < self.n_prompt {
            chunk_end.min(self.n_prompt)
        } else if limits.replays_by_token {
            from + 1
        } else {
            chunk_end.min(self.n_tokens)
        }
    }
}
