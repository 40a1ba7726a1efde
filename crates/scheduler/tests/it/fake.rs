//! A device of so many tokens, each a byte, that shares and caches nothing but what a test says,
//! and requests that are computed as planned.

use std::collections::{BTreeMap, BTreeSet};

use scheduler::{Ahead, Arrival, Begin, Id, Key, Limits, Look, Scheduler, Seats, Step};

pub const LIMITS: Limits = Limits {
    max_rows: 8,
    max_rows_per_key: 8,
    max_waiting: 100,
    max_waiting_per_key: 100,
    step_tokens: 100,
    chunk_tokens: 100,
    chunk_tokens_beside: usize::MAX,
    headroom_tokens: 10,
    replays_by_token: false,
};

#[derive(Debug, Default)]
pub struct Fake {
    pub room: usize,
    /// Whether there is said to be room for what is paused, and whether it is lost all the same.
    pub has_tier: bool,
    pub forgets: bool,
    /// Tokens that each has room for.
    pub held: BTreeMap<Id, usize>,
    /// What paused ones had.
    pub kept: BTreeMap<Id, usize>,
    pub n_tokens: BTreeMap<Id, usize>,
    pub at: BTreeMap<Id, usize>,
    pub ahead: BTreeMap<Id, Ahead>,
    pub lost: BTreeMap<Id, usize>,
    /// Who has to wait for bytes when it begins.
    pub restores: BTreeSet<Id>,
    pub is_moving: bool,
}

impl Fake {
    fn used(&self) -> usize {
        self.held.values().sum()
    }

    pub fn forget(&mut self, id: Id) {
        self.held.remove(&id);
        self.at.remove(&id);
    }
}

impl Seats for Fake {
    fn look(&mut self, id: Id) -> Look {
        let n_cached = self.kept.get(&id).copied().unwrap_or(0);
        Look { n_cached, ahead: self.ahead.get(&id).copied() }
    }

    fn room_bytes(&self) -> u64 {
        (self.room - self.used()) as u64
    }

    fn needs_bytes(&self, id: Id, n_tokens: usize) -> u64 {
        n_tokens.saturating_sub(self.held.get(&id).copied().unwrap_or(0)) as u64
    }

    fn begin(&mut self, id: Id) -> Begin {
        let at = self.kept.get(&id).copied().unwrap_or(0).min(self.n_tokens[&id] - 1);
        if self.used() + at > self.room {
            return Begin::NoRoom;
        }
        self.held.insert(id, at);
        self.at.insert(id, at);
        if self.restores.contains(&id) { Begin::Restoring } else { Begin::Seated { at } }
    }

    fn reserve(&mut self, id: Id, n_tokens: usize) -> bool {
        let wanted = (self.at[&id] + n_tokens).max(self.held[&id]);
        let fits = self.used() - self.held[&id] + wanted <= self.room;
        if fits {
            self.held.insert(id, wanted);
        }
        fits
    }

    fn lost_tokens(&self, id: Id) -> usize {
        let all = if self.has_tier { 0 } else { self.at[&id] };
        self.lost.get(&id).copied().unwrap_or(all)
    }

    fn pause(&mut self, id: Id) -> Option<usize> {
        if self.has_tier && !self.forgets {
            self.kept.insert(id, self.at[&id]);
        }
        self.forget(id);
        Some(self.n_tokens[&id])
    }

    fn is_room_coming(&self) -> bool {
        false
    }

    fn is_moving(&self) -> bool {
        self.is_moving
    }
}

/// Requests that are computed as the scheduler plans, until their answers end.
pub struct Run {
    pub scheduler: Scheduler,
    pub fake: Fake,
    /// How long prompt and answer are when a request ends.
    pub ends: BTreeMap<Id, usize>,
    pub keys: BTreeMap<Id, Key>,
    /// Tokens computed for each key.
    pub computed: BTreeMap<Key, usize>,
    /// Where each was cut.
    pub cuts: BTreeMap<Id, Vec<usize>>,
    pub steps: Vec<Step>,
}

impl Run {
    pub fn new(limits: Limits, room: usize) -> Self {
        Self {
            scheduler: Scheduler::new(limits),
            fake: Fake { room, has_tier: true, ..Fake::default() },
            ends: BTreeMap::new(),
            keys: BTreeMap::new(),
            computed: BTreeMap::new(),
            cuts: BTreeMap::new(),
            steps: Vec::new(),
        }
    }

    /// A request that uses all of its answer.
    pub fn submit(&mut self, id: u64, key: u64, n_prompt: usize, n_new: usize) -> bool {
        let (id, key) = (Id(id), Key(key));
        let arrival = Arrival { id, key, n_prompt, n_max_new: n_new, n_cached: 0 };
        let is_taken = self.scheduler.submit(arrival).is_ok();
        if is_taken {
            self.ends.insert(id, n_prompt + n_new);
            self.keys.insert(id, key);
            self.fake.n_tokens.insert(id, n_prompt);
        }
        is_taken
    }

    pub fn end(&mut self, id: Id) {
        assert!(self.scheduler.end(id), "it is there");
        self.fake.forget(id);
        self.ends.remove(&id);
    }

    pub fn step(&mut self) -> Step {
        assert!(self.steps.len() < 50_000, "no test needs as many steps");
        let step = self.scheduler.plan(&mut self.fake);
        for id in &step.refused {
            self.fake.forget(*id);
            self.ends.remove(id);
        }
        for slice in &step.prefill {
            self.cuts.entry(slice.id).or_default().push(slice.to);
            self.computed(slice.id, slice.to - slice.from, slice.draws);
        }
        for id in &step.decode {
            self.computed(*id, 1, true);
        }
        self.steps.push(step.clone());
        step
    }

    fn computed(&mut self, id: Id, n_tokens: usize, draws: bool) {
        self.scheduler.computed(id, n_tokens);
        *self.computed.entry(self.keys[&id]).or_default() += n_tokens;
        *self.fake.at.get_mut(&id).expect("it is seated") += n_tokens;
        let at = self.fake.at[&id];
        if draws {
            self.fake.n_tokens.insert(id, at + 1);
            if at + 1 >= self.ends[&id] {
                self.end(id);
            }
        }
    }

    /// Steps until a request ends; says how many.
    pub fn steps_until_end_of(&mut self, id: u64) -> usize {
        let before = self.steps.len();
        while self.ends.contains_key(&Id(id)) {
            self.step();
        }
        self.steps.len() - before
    }

    pub fn finish(&mut self) {
        while let Some(id) = self.ends.keys().next().copied() {
            self.steps_until_end_of(id.0);
        }
        assert!(self.scheduler.is_idle(), "nothing is left");
        self.scheduler.check();
    }
}
