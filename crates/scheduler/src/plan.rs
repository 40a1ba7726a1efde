//! One step: who answers, who begins, who is paused, and which slices of prompts are computed.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};

use crate::MAX_HOLDS;
use crate::fair::Keys;
use crate::request::{Id, Key, Place, Request, State};
use crate::scheduler::Scheduler;

/// Lookups of a step that lead to no beginning: each walks a prompt.
const MAX_VAIN_LOOKS: usize = 4;
/// A prefix that is shorter is not worth waiting for.
const MIN_SHARED_TOKENS: usize = 32;
/// Chunks that a request computes before it makes way for another key.
const TURN_CHUNKS: usize = 4;

/// What the next pass computes. All of it has room.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Step {
    /// One token each, the eldest first.
    pub decode: Vec<Id>,
    /// In the order of their turns.
    pub prefill: Vec<Slice>,
    /// Had no room even with nothing else on the device. They are forgotten: the owner answers, and
    /// frees their places.
    pub refused: Vec<Id>,
    /// Have begun, also those that wait for bytes.
    pub begun: Vec<Id>,
    /// Were paused, and queue.
    pub paused: Vec<Id>,
}

impl Step {
    /// Whether there is nothing to compute.
    pub fn is_empty(&self) -> bool {
        self.decode.is_empty() && self.prefill.is_empty()
    }

    fn drop_request(&mut self, id: Id) {
        self.decode.retain(|decoding| *decoding != id);
        self.prefill.retain(|slice| slice.id != id);
    }
}

/// Tokens [`from`, `to`) of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Slice {
    /// Whose.
    pub id: Id,
    /// Where it stands.
    pub from: usize,
    /// Where it comes to.
    pub to: usize,
    /// Whether it is the last: a token is drawn after it.
    pub draws: bool,
}

/// What is known of a request's tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Look {
    /// Tokens that need no computing.
    pub n_cached: usize,
    /// Whether another is just computing more of them.
    pub ahead: Option<Ahead>,
}

/// A request with a seat that computes what another lacks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ahead {
    /// Which.
    pub by: Id,
    /// Tokens that the other need not compute when it has come so far.
    pub until: usize,
}

/// How a beginning went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Begin {
    /// It goes on at token `at`.
    Seated {
        /// Tokens that need no computing.
        at: usize,
    },
    /// It waits for bytes; `arrived` says when they are there.
    Restoring,
    /// There is no room. Nothing has changed.
    NoRoom,
    /// It is over, and answered.
    Failed,
}

/// The cache and its owner, as a plan sees them. Ids are of requests that were submitted.
pub trait Seats {
    /// What is known of all tokens that a request without a seat has: its prompt, and what was
    /// drawn before it was paused.
    fn look(&mut self, id: Id) -> Look;

    /// Bytes that can be had on the device now, by evicting or without.
    fn room_bytes(&self) -> u64;

    /// Bytes that become live, besides those that are, when a request comes to `n_tokens`: of one
    /// without a seat also those that its beginning pins. A forecast, best from above.
    fn needs_bytes(&self, id: Id, n_tokens: usize) -> u64;

    /// Gives a request its place on the best known prefix.
    fn begin(&mut self, id: Id) -> Begin;

    /// Makes room for the next `n_tokens` of a seated request, all or none; true if it is there
    /// already.
    fn reserve(&mut self, id: Id, n_tokens: usize) -> bool;

    /// Tokens that would be computed again if it were paused now: those that no lower tier has, or
    /// has room for.
    fn lost_tokens(&self, id: Id) -> usize;

    /// Takes a seated request's place away and leaves what it computed to the cache, on lower tiers
    /// as far as there is room. Returns its tokens so far, on which it begins again; none if it is
    /// over, and answered.
    fn pause(&mut self, id: Id) -> Option<usize>;

    /// Whether bytes of requests that were paused or are over are leaving the device, so that room
    /// comes without another pause.
    fn is_room_coming(&self) -> bool;

    /// Whether any transfer is under way: it may keep what could be evicted otherwise, and nobody
    /// is refused before it has ended.
    fn is_moving(&self) -> bool;

    /// `id` is going to wait until `by` has computed `until` tokens; a state should be kept there.
    fn hold(&mut self, id: Id, by: Id, until: usize) {
        let _ = (id, by, until);
    }
}

/// What became of a try to begin the first request of a queue.
enum Tried {
    /// It is in the queue no more.
    Gone,
    /// It is held, or another is first by what is known now.
    InVain,
    NoRoom,
}

/// What was refused is still on the device until the plan is over: one at a time.
fn may_refuse(seats: &dyn Seats, step: &Step) -> bool {
    step.refused.is_empty() && !seats.is_moving()
}

impl Scheduler {
    /// The next step.
    pub fn plan(&mut self, seats: &mut dyn Seats) -> Step {
        let mut step = Step::default();
        self.plan_rows(seats, &mut step);
        self.admit(seats, &mut step);
        self.plan_slices(seats, &mut step);
        self.after();
        step
    }

    /// A token for everyone that answers.
    fn plan_rows(&mut self, seats: &mut dyn Seats, step: &mut Step) {
        let ids = self.seated.values().copied();
        let ids = ids.filter(|id| self.requests[id].is_decoding()).collect::<Vec<_>>();
        for id in ids {
            if self.requests.get(&id).is_some_and(Request::is_decoding)
                && self.make_room(seats, step, id, 1)
            {
                step.decode.push(id);
            }
        }
    }

    /// Slices by the turns of keys, and of one key in the order of its queue.
    fn plan_slices(&mut self, seats: &mut dyn Seats, step: &mut Step) {
        let mut ready: BTreeMap<Key, Vec<(Reverse<Place>, Id)>> = BTreeMap::new();
        for id in self.seated.values() {
            let request = &self.requests[id];
            if request.is_prefilling() {
                ready.entry(request.key).or_default().push((Reverse(request.place()), *id));
            }
        }
        ready.values_mut().for_each(|ids| ids.sort_unstable());
        let turns = ready.keys().map(|key| Reverse((self.keys.served(*key), *key)));
        let mut turns = turns.collect::<BinaryHeap<_>>();
        let mut left = self.chunk_tokens_now().unwrap_or(self.limits.step_tokens);
        while left > 0
            && let Some(Reverse((mut served, key))) = turns.pop()
        {
            let Some((_, id)) = ready.get_mut(&key).and_then(Vec::pop) else { continue };
            let is_first = step.prefill.is_empty();
            let fits = |slice: &Slice| slice.to - slice.from <= left || is_first;
            if let Some(slice) = self.slice(id).filter(fits)
                && self.make_room(seats, step, id, slice.to - slice.from)
            {
                left = left.saturating_sub(slice.to - slice.from);
                served = Keys::after(served, slice.to - slice.from);
                step.prefill.push(slice);
            }
            turns.push(Reverse((served, key)));
        }
    }

    /// The next slice of a request, if it has a seat.
    pub(crate) fn slice(&self, id: Id) -> Option<Slice> {
        let request = self.requests.get(&id).filter(|request| request.is_prefilling())?;
        let from = request.at()?;
        let to = request.break_after(from, &self.limits);
        Some(Slice { id, from, to, draws: to == request.n_tokens })
    }

    /// Reserves for a seated request, at the cost of younger ones if it must be. Whoever has no
    /// younger one waits for an elder to end, and the eldest of all for nobody.
    fn make_room(
        &mut self,
        seats: &mut dyn Seats,
        step: &mut Step,
        id: Id,
        n_tokens: usize,
    ) -> bool {
        loop {
            if seats.reserve(id, n_tokens) {
                return true;
            }
            if seats.is_room_coming() {
                return false;
            }
            match self.victim(seats, id) {
                Some(victim) => self.pause(seats, step, victim),
                None => {
                    if self.seated.len() == 1 && may_refuse(seats, step) {
                        self.unseat_last(seats, step, id);
                    }
                    return false;
                }
            }
        }
    }

    /// One that is alone has no room. It may hold rows that others have computed beside it: it
    /// begins anew on theirs. If it then gains nothing, it is over.
    fn unseat_last(&mut self, seats: &mut dyn Seats, step: &mut Step, id: Id) {
        if self.requests.get(&id).is_some_and(|request| !request.is_protected) {
            self.pause(seats, step, id);
        } else {
            self.forget(id);
            step.refused.push(id);
        }
    }

    /// Who makes room for `id`: of the younger, rather one that has computed something new since it
    /// began, then the one that loses the fewest tokens, then the newest.
    fn victim(&self, seats: &dyn Seats, id: Id) -> Option<Id> {
        let elder = self.requests.get(&id)?.no;
        let younger = self.seated.range(elder + 1..).map(|(no, id)| {
            let request = &self.requests[id];
            let has_none = request.n_gained() == 0;
            (request.is_protected, has_none, seats.lost_tokens(*id), Reverse(*no), *id)
        });
        younger.min().map(|(.., id)| id)
    }

    fn pause(&mut self, seats: &mut dyn Seats, step: &mut Step, id: Id) {
        let n_tokens = seats.pause(id);
        step.drop_request(id);
        let Some(n_tokens) = n_tokens else {
            self.forget(id);
            return;
        };
        self.release_until(id, usize::MAX);
        self.update(id, |request| {
            request.is_protected = request.n_gained() == 0;
            // How much of it is still there is looked up before it begins again.
            request.n_cached = n_tokens.saturating_sub(1);
            request.n_tokens = n_tokens;
            request.state = State::Queued;
        });
        step.paused.push(id);
    }

    /// Begins requests while there are rows and room. If the first of a key finds none, those of
    /// other keys may, until it is due.
    fn admit(&mut self, seats: &mut dyn Seats, step: &mut Step) {
        let (mut after, mut n_vain) = (None, 0);
        while n_vain < MAX_VAIN_LOOKS
            && step.refused.is_empty()
            && let Some((turn, id)) = self.keys.next_queued(after)
        {
            let account = &self.keys.accounts[&turn.1];
            if account.n_seated >= self.limits.max_rows_per_key {
                after = Some(turn);
                continue;
            }
            let has_row = self.seated.len() < self.limits.max_rows;
            match if has_row { self.try_begin(seats, step, id) } else { Tried::NoRoom } {
                Tried::Gone => {}
                Tried::InVain => n_vain += 1,
                Tried::NoRoom => {
                    let is_due = self.requests[&id].place().due <= self.clock;
                    if is_due {
                        self.take_turn(seats, step, id);
                    }
                    if is_due || !has_row {
                        return;
                    }
                    n_vain += 1;
                    after = Some(turn);
                }
            }
        }
    }

    fn try_begin(&mut self, seats: &mut dyn Seats, step: &mut Step, id: Id) -> Tried {
        if self.requests[&id].looked != self.version {
            let key = self.requests[&id].key;
            self.look(seats, id);
            let head = self.keys.accounts.get(&key).and_then(|account| account.queue.first());
            if head.is_none_or(|(_, head)| *head != id) {
                return Tried::InVain;
            }
        }
        if !self.fits(seats, id) {
            return Tried::NoRoom;
        }
        match seats.begin(id) {
            Begin::Seated { at } => self.seat(id, Some(at)),
            Begin::Restoring => self.seat(id, None),
            Begin::NoRoom if !self.seated.is_empty() || !may_refuse(seats, step) => {
                return Tried::NoRoom;
            }
            Begin::NoRoom => {
                self.forget(id);
                step.refused.push(id);
                return Tried::InVain;
            }
            Begin::Failed => {
                self.forget(id);
                return Tried::InVain;
            }
        }
        step.begun.push(id);
        Tried::Gone
    }

    /// Asks what is known of a request; it may have to wait for another that computes the same.
    fn look(&mut self, seats: &mut dyn Seats, id: Id) {
        let Look { n_cached, ahead } = seats.look(id);
        let version = self.version;
        let may_hold = self.update(id, |request| {
            (request.n_cached, request.looked) = (n_cached, version);
            request.n_holds < MAX_HOLDS
        });
        let Some(Ahead { by, until }) = ahead.filter(|ahead| {
            let at = self.requests.get(&ahead.by).and_then(Request::seat).map(|seat| seat.at);
            may_hold == Some(true)
                && ahead.until >= n_cached + MIN_SHARED_TOKENS
                && at.is_some_and(|at| at.unwrap_or(0) < ahead.until)
        }) else {
            return;
        };
        self.update(id, |request| {
            request.n_holds += 1;
            request.state = State::Held { by, until };
        });
        let seat = self.requests.get_mut(&by).and_then(Request::seat_mut);
        seat.expect("the holder was seen to have a seat").held.insert((until, id));
        seats.hold(id, by, until);
    }

    /// Whether all that have a seat, and this one, find the room that is expected of them. Alone it
    /// always does.
    fn fits(&self, seats: &dyn Seats, id: Id) -> bool {
        if self.seated.is_empty() {
            return true;
        }
        let headroom_tokens = match self.requests[&id].is_protected {
            true => usize::MAX,
            false => self.limits.headroom_tokens,
        };
        let all = self.seated.values().copied().chain([id]);
        let needs =
            all.map(|id| seats.needs_bytes(id, self.requests[&id].forecast(headroom_tokens)));
        needs.fold(0, u64::saturating_add) <= seats.room_bytes()
    }

    /// A request is due and finds no row or room: a request of a key for which more was computed
    /// makes way, if it has had its turn and nothing of it is lost. One a step.
    fn take_turn(&mut self, seats: &mut dyn Seats, step: &mut Step, id: Id) {
        if seats.is_room_coming() {
            return;
        }
        let turn_tokens = TURN_CHUNKS * self.limits.chunk_tokens;
        let served = self.keys.served(self.requests[&id].key);
        let others = self.seated.iter().filter_map(|(no, other)| {
            let request = &self.requests[other];
            let has_had_turn = !request.has_lost && request.n_gained() >= turn_tokens;
            let of_key = self.keys.served(request.key);
            (has_had_turn && of_key > served).then_some((of_key, *no, *other))
        });
        let mut others = others.collect::<Vec<_>>();
        others.sort_unstable();
        let is_kept = |id: &Id| seats.lost_tokens(*id) == 0;
        if let Some((.., victim)) = others.into_iter().rev().find(|(.., id)| is_kept(id)) {
            self.pause(seats, step, victim);
        }
    }
}
