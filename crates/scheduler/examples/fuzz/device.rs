//! An engine without a model over the real prefix cache: requests have tokens that a hash draws,
//! transfers take steps, and every answer to the scheduler is the cache's own.

use std::collections::{BTreeMap, BTreeSet};

use kvcache::{
    Begun, Boundary, Cache, Cause, Class, Kind, Layout, Ns, Op, SeqId, Token, Transfer, Waiting,
    plan_captures,
};
use scheduler::{Ahead, Begin, Id, Look, Seats, Slice};

use crate::draws::Rng;

/// A request as its engine sees it.
#[derive(Debug)]
pub struct Served {
    pub key: u64,
    pub ns: Ns,
    pub n_prompt: usize,
    /// Tokens that it draws before it ends.
    pub n_new: usize,
    /// Prompt, and all that was drawn.
    pub tokens: Vec<Token>,
    pub seq: Option<SeqId>,
    /// Tokens that the beginning found, or hopes to have when bytes have come.
    pub n_found: usize,
    pub captures: BTreeSet<usize>,
    /// The clock and the step when it came, and by which time of the clock it must end.
    pub arrived: u64,
    pub due: u64,
}

/// Bytes on their way.
#[derive(Debug)]
struct Flying {
    transfer: Transfer,
    steps_left: usize,
    /// Of a request that was paused, or ended while it waited: its bytes leave the device.
    is_leaving: bool,
}

pub struct Device {
    pub cache: Cache,
    layout: Layout,
    pub requests: BTreeMap<Id, Served>,
    flying: Vec<Flying>,
    chunk_tokens: usize,
    max_delay_steps: usize,
    pub rng: Rng,
    pub now: u64,
    /// Who was refused room since the plan began.
    pub denied: BTreeSet<Id>,
    /// Who was refused room last, if nobody has got any since.
    short: Option<Id>,
    pub n_turns: u64,
    pub n_holds: u64,
    pub n_restores: u64,
}

impl Device {
    pub fn new(cache: Cache, chunk_tokens: usize, max_delay_steps: usize, rng: Rng) -> Self {
        Self {
            layout: cache.layout().clone(),
            cache,
            requests: BTreeMap::new(),
            flying: Vec::new(),
            chunk_tokens,
            max_delay_steps,
            rng,
            now: 0,
            denied: BTreeSet::new(),
            short: None,
            n_turns: 0,
            n_holds: 0,
            n_restores: 0,
        }
    }

    /// Bytes of a sequence of `n_tokens`, if it shared nothing.
    pub fn bytes_of(&self, n_tokens: usize, n_pass: usize) -> u64 {
        let block_tokens = self.layout.block_tokens();
        let bytes = self.layout.groups().iter().map(|group| {
            let n_blocks = match group.kind {
                Kind::Full => n_tokens.div_ceil(block_tokens),
                Kind::Window { tokens } => n_tokens.min(tokens + n_pass).div_ceil(block_tokens) + 1,
                Kind::Recurrent => 1,
            };
            n_blocks as u64 * group.bytes
        });
        bytes.sum()
    }

    /// What a request that may come to `n_tokens` alone needs at most: its rows and state, and a
    /// copy of the block and of the state that it resumes from.
    pub fn alone_bytes(&self, n_tokens: usize, n_pass: usize) -> u64 {
        let spare = self.layout.groups().iter().map(|group| group.bytes).sum::<u64>();
        self.bytes_of(n_tokens, n_pass) + spare
    }

    fn fly(&mut self, transfer: Transfer, is_leaving: bool) {
        let steps_left = self.rng.below(self.max_delay_steps + 1);
        self.flying.push(Flying { transfer, steps_left, is_leaving });
    }

    pub fn is_flying(&self) -> bool {
        !self.flying.is_empty()
    }

    /// A step has passed: transfers go on. Returns who waited and goes on, and where.
    pub fn transfer(&mut self, waiting: &[Id]) -> Vec<(Id, usize)> {
        let mut i = 0;
        while let Some(flying) = self.flying.get_mut(i) {
            if flying.steps_left > 0 {
                flying.steps_left -= 1;
                i += 1;
                continue;
            }
            let Flying { transfer, .. } = self.flying.swap_remove(i);
            let is_ok = !self.rng.one_in(8);
            self.cache.finish(transfer.id, is_ok, self.now);
        }
        let mut arrived = Vec::new();
        for id in waiting {
            let request = self.requests.get_mut(id).expect("who waits is there");
            let seq = request.seq.expect("who waits has begun");
            if let Some(position) = self.cache.position(seq) {
                request.n_found = position.at;
                arrived.push((*id, position.at));
            }
        }
        arrived
    }

    /// Copies down some of what is new, as an engine does between passes.
    pub fn copy_down(&mut self, max_bytes: u64, is_leaving: bool) {
        for transfer in self.cache.next_copies(max_bytes, self.now) {
            self.fly(transfer, is_leaving);
        }
    }

    /// Computes a slice, with the captures in it.
    pub fn compute(&mut self, slice: Slice) {
        let request = self.requests.get_mut(&slice.id).expect("only what is there is computed");
        let seq = request.seq.expect("only what has begun is computed");
        let position = self.cache.position(seq).expect("only what has its bytes is computed");
        assert_eq!(position.at, slice.from, "both know where it is");
        let mut at = slice.from;
        let captures = request.captures.range(slice.from + 1..slice.to + 1).copied();
        for to in captures.chain([slice.to]) {
            self.cache.advance(seq, &request.tokens[at..to]);
            if request.captures.contains(&to) {
                self.cache.capture(seq, Class::TurnEnd, self.now);
            }
            at = to;
        }
    }

    /// The next token of a request; true if it was its last.
    pub fn draw(&mut self, id: Id) -> bool {
        let request = self.requests.get_mut(&id).expect("only what is there draws");
        let token = 1000 + (id.0 % 7) as Token * 100 + request.tokens.len() as Token % 90;
        request.tokens.push(token);
        request.tokens.len() >= request.n_prompt + request.n_new
    }

    /// Room is made at the cost of the younger alone, unless somebody is alone, and a turn is for
    /// others than have had one.
    fn check_pause(&mut self, id: Id) {
        assert!(!self.is_room_coming(), "nobody is paused while room is coming");
        let is_younger = self.short.is_some_and(|short| id > short);
        let seated = self.requests.values().filter(|request| request.seq.is_some());
        let is_alone = self.short == Some(id) && seated.count() == 1;
        if is_younger || is_alone {
            return;
        }
        self.n_turns += 1;
        let request = &self.requests[&id];
        let seq = request.seq.expect("only what has begun is paused");
        let at = self.cache.position(seq).map_or(0, |position| position.at);
        assert!(at >= request.n_found + 4 * self.chunk_tokens, "G5: a turn is not cut short");
        let of_others = self.requests.values().filter(|other| other.key != request.key);
        let waits = of_others.filter(|other| other.seq.is_none()).count();
        assert!(waits > 0, "G5: nobody makes way for the own key");
    }

    /// Forgets a request and frees its place.
    pub fn end(&mut self, id: Id) {
        let request = self.requests.remove(&id).expect("only what is there ends");
        let Some(seq) = request.seq else { return };
        if self.cache.position(seq).is_none() {
            // What it waited for is still written to the device.
            self.flying.iter_mut().for_each(|flying| flying.is_leaving = true);
        } else {
            self.cache.capture(seq, Class::OutputEnd(Waiting::Tool), self.now);
        }
        self.cache.end(seq, self.now);
    }
}

impl Seats for Device {
    fn look(&mut self, id: Id) -> Look {
        let request = &self.requests[&id];
        let found = self.cache.find(request.ns, &request.tokens);
        let ahead = match found.cause {
            Cause::InFlight { seq, until } => {
                let by = self.requests.iter().find(|(_, other)| other.seq == Some(seq));
                let until = until.min(request.tokens.len() - 1);
                by.map(|(by, _)| Ahead { by: *by, until }).filter(|a| a.until > found.usable)
            }
            _ => None,
        };
        Look { n_cached: found.usable, ahead }
    }

    fn room_bytes(&self) -> u64 {
        let device = self.cache.stats().tiers[0];
        device.budget_bytes.saturating_sub(device.live_bytes)
    }

    fn needs_bytes(&self, id: Id, n_tokens: usize) -> u64 {
        let request = &self.requests[&id];
        let full = self.layout.groups().iter().filter(|group| group.kind == Kind::Full);
        let row_bytes = full.map(|group| group.bytes).sum::<u64>();
        let all = self.bytes_of(n_tokens, 0);
        let n_there = match request.seq {
            None => self.cache.n_pinned(request.ns, &request.tokens),
            Some(seq) => match self.cache.position(seq) {
                None => request.n_found,
                Some(_) => {
                    let table = |group| self.cache.block_table(seq, group);
                    let there = self.layout.groups().iter().enumerate().map(|(group, of)| {
                        table(group).map_or(0, |table| table.blocks.len() as u64 * of.bytes)
                    });
                    return all.saturating_sub(there.sum());
                }
            },
        };
        all.saturating_sub((n_there / self.layout.block_tokens()) as u64 * row_bytes)
    }

    fn begin(&mut self, id: Id) -> Begin {
        self.now += 1;
        let request = self.requests.get_mut(&id).expect("only what is there begins");
        assert!(request.seq.is_none(), "it begins once");
        if self.rng.one_in(500) {
            self.requests.remove(&id);
            return Begin::Failed;
        }
        let Ok(begun) = self.cache.begin(request.ns, &request.tokens, self.now) else {
            return Begin::NoRoom;
        };
        let Begun { seq, ops, found } = begun;
        (request.seq, request.n_found) = (Some(seq), found.usable);
        let seams = [Boundary::Prompt(request.n_prompt - request.n_prompt.min(3))];
        let captures = plan_captures(&found, &seams, false);
        request.captures = captures.iter().map(|capture| capture.at).collect();
        let mut is_waiting = false;
        for op in ops {
            if let Op::Restore(transfer) = op {
                is_waiting = true;
                self.n_restores += 1;
                self.fly(transfer, false);
            }
        }
        if is_waiting { Begin::Restoring } else { Begin::Seated { at: found.usable } }
    }

    fn reserve(&mut self, id: Id, n_tokens: usize) -> bool {
        let seq = self.requests[&id].seq.expect("only what has begun reserves");
        let has_room = self.cache.reserve(seq, n_tokens, self.now).is_ok();
        self.short = Some(id).filter(|_| !has_room);
        self.denied.extend(self.short);
        has_room
    }

    fn lost_tokens(&self, id: Id) -> usize {
        let request = &self.requests[&id];
        let seq = request.seq.expect("only what has begun is asked for");
        let Some(position) = self.cache.position(seq) else { return 0 };
        let bytes = self.bytes_of(position.at, 0);
        let tiers = self.cache.stats().tiers;
        let has_room = |tier: &kvcache::TierStats| tier.free_bytes + tier.cached_bytes >= bytes;
        if tiers[1..].iter().any(has_room) { 0 } else { position.at }
    }

    fn pause(&mut self, id: Id) -> Option<usize> {
        self.now += 1;
        self.check_pause(id);
        let request = self.requests.get_mut(&id).expect("only what is there is paused");
        let seq = request.seq.take().expect("only what has begun is paused");
        let is_last = request.tokens.len() + 1 >= request.n_prompt + request.n_new;
        let n_tokens = request.tokens.len();
        if self.cache.position(seq).is_none() {
            self.flying.iter_mut().for_each(|flying| flying.is_leaving = true);
        }
        self.cache.capture(seq, Class::TurnEnd, self.now);
        self.cache.end(seq, self.now);
        self.flying.iter_mut().for_each(|flying| flying.is_leaving = true);
        self.copy_down(u64::MAX, true);
        if is_last && self.rng.one_in(2) {
            // The token that was on its way was its last.
            self.requests.remove(&id);
            return None;
        }
        Some(n_tokens)
    }

    fn is_room_coming(&self) -> bool {
        self.flying.iter().any(|flying| flying.is_leaving)
    }

    fn is_moving(&self) -> bool {
        self.is_flying()
    }

    fn hold(&mut self, id: Id, by: Id, until: usize) {
        assert!(self.requests[&id].seq.is_none(), "who waits has no seat");
        self.n_holds += 1;
        let holder = self.requests.get_mut(&by).expect("only what is there is waited for");
        holder.captures.insert(until);
    }
}
