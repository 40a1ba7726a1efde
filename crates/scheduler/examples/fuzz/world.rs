//! A scheduler, a device and callers at random, and what must hold at every step (G1 to G5 of the
//! crate's first page).

use std::collections::BTreeSet;

use kvcache::{Budgets, Cache, Costs, Group, Kind, Layout, Link, Ns, Policy, Prefill, Tier, Token};
use scheduler::{AGEING, Arrival, Id, Key, Limits, Scheduler, Slice, Step};

use crate::device::{Device, Served};
use crate::draws::Rng;

/// Steps for which a cache may be over a budget that was cut: it is whole again after that.
const CUT_STEPS: u64 = 40;

/// What a run came past: one that never pauses proves nothing about pausing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Folds what was decided, so that runs can be compared.
    pub hash: u64,
    pub n_steps: u64,
    pub n_empty: u64,
    pub n_ended: u64,
    pub n_cancelled: u64,
    pub n_refused: u64,
    pub n_full: u64,
    pub n_paused: u64,
    /// Of them, before anything was computed, and for another key's turn.
    pub n_fruitless: u64,
    pub n_turns: u64,
    pub n_holds: u64,
    pub n_restores: u64,
    pub n_denied: u64,
    pub n_computed: u64,
    pub n_needed: u64,
    /// The longest stay, in thousandths of its bound.
    pub worst_stay: u64,
}

impl Outcome {
    pub fn add(&mut self, o: &Outcome) {
        self.hash = self.hash.rotate_left(5) ^ o.hash;
        self.n_steps += o.n_steps;
        self.n_empty += o.n_empty;
        self.n_ended += o.n_ended;
        self.n_cancelled += o.n_cancelled;
        self.n_refused += o.n_refused;
        self.n_full += o.n_full;
        self.n_paused += o.n_paused;
        self.n_fruitless += o.n_fruitless;
        self.n_turns += o.n_turns;
        self.n_holds += o.n_holds;
        self.n_restores += o.n_restores;
        self.n_denied += o.n_denied;
        self.n_computed += o.n_computed;
        self.n_needed += o.n_needed;
        self.worst_stay = self.worst_stay.max(o.worst_stay);
    }
}

/// What callers do between two steps.
#[derive(Debug, Clone)]
pub enum Act {
    Submit { key: u64, prompt: Vec<Token>, n_new: usize, n_max_new: usize },
    Cancel { nth: usize },
    CopyDown { max_bytes: u64 },
    CutBudget { percent: u64 },
    Nothing,
}

pub struct World {
    pub scheduler: Scheduler,
    pub device: Device,
    limits: Limits,
    n_keys: usize,
    /// Longest request, and how many of a hundred turns bring one.
    max_tokens: usize,
    load: usize,
    device_bytes: u64,
    cut_until: u64,
    /// Tokens computed.
    clock: u64,
    n_ids: u64,
    /// Who decodes or prefills, and at which token; by the device's books.
    seated: BTreeSet<Id>,
    restoring: BTreeSet<Id>,
    /// Who computed something since it began.
    progressed: BTreeSet<Id>,
    n_idle_steps: usize,
    pub outcome: Outcome,
}

fn layout(rng: &mut Rng) -> Layout {
    let kinds: &[&[Kind]] = &[
        &[Kind::Full],
        &[Kind::Full],
        &[Kind::Full, Kind::Recurrent],
        &[Kind::Full, Kind::Window { tokens: 6 }],
        &[Kind::Recurrent, Kind::Full, Kind::Window { tokens: 3 }],
    ];
    let bytes = |kind| if kind == Kind::Recurrent { 23 } else { 10 };
    let groups = rng.pick(kinds).iter().map(|kind| Group { kind: *kind, bytes: bytes(*kind) });
    Layout::new(1 + rng.below(6), groups.collect()).expect("a sound layout")
}

impl World {
    pub fn random(seed: u64) -> Self {
        let mut rng = Rng(seed);
        let layout = layout(&mut rng);
        let chunk_tokens = 1 + rng.below(12);
        let max_rows = 1 + rng.below(9);
        let limits = Limits {
            max_rows,
            max_rows_per_key: 1 + rng.below(max_rows),
            max_waiting: 1 + rng.below(24),
            max_waiting_per_key: 1 + rng.below(12),
            step_tokens: chunk_tokens * (1 + rng.below(3)) + rng.below(chunk_tokens),
            chunk_tokens,
            chunk_tokens_beside: match rng.one_in(2) {
                true => usize::MAX,
                false => 1 + rng.below(chunk_tokens),
            },
            headroom_tokens: rng.pick(&[0, 2, 8, 1000]),
            replays_by_token: rng.one_in(3),
        };
        let layout_bytes = layout.groups().iter().map(|group| group.bytes).sum::<u64>();
        let max_tokens = 20 + rng.pick(&[30, 100, 300]) * (1 + rng.below(8)) / 8;
        let link = |rng: &mut Rng| Link { latency_us: 1.0, bytes_per_us: rng.pick(&[0.5, 100.0]) };
        let costs = Costs {
            prefill: Prefill { a: 3.0, b: 1.0, c: 0.01 },
            host: link(&mut rng),
            disk: link(&mut rng),
        };
        let policies = std::array::from_fn(|_| Policy::Lru.build());
        let cache = Cache::new(layout, Budgets([0; 3]), costs, policies);
        let delay = rng.below(5);
        let device_rng = Rng(rng.next());
        let mut device = Device::new(cache, chunk_tokens, delay, device_rng);
        let alone = device.alone_bytes(max_tokens, chunk_tokens);
        let spare = 4 * layout_bytes;
        let device_bytes = (alone + spare) * rng.pick(&[100, 110, 150, 300, 2000]) / 100;
        let below = |rng: &mut Rng| alone * rng.pick(&[0, 0, 1, 3, 20]);
        let budgets = [device_bytes, below(&mut rng), below(&mut rng)];
        for (tier, bytes) in Tier::ALL.into_iter().zip(budgets) {
            device.cache.resize(tier, bytes, 0);
        }
        let mut world = Self::new(limits, device);
        world.n_keys = 1 + rng.below(4);
        (world.max_tokens, world.load) = (max_tokens, 5 + rng.below(60));
        world
    }

    /// Without callers.
    pub fn new(limits: Limits, device: Device) -> Self {
        Self {
            scheduler: Scheduler::new(limits),
            limits,
            n_keys: 1,
            max_tokens: 1,
            load: 0,
            device_bytes: device.cache.stats().tiers[0].budget_bytes,
            device,
            cut_until: 0,
            clock: 0,
            n_ids: 0,
            seated: BTreeSet::new(),
            restoring: BTreeSet::new(),
            progressed: BTreeSet::new(),
            n_idle_steps: 0,
            outcome: Outcome::default(),
        }
    }

    /// The next act. Prompts often begin like one that is there, also inside of blocks.
    pub fn choose(&self, rng: &mut Rng) -> Act {
        match rng.below(100) {
            n if n < self.load => {
                let key = rng.below(self.n_keys) as u64;
                let n_max = 2 + rng.below(self.max_tokens - 2);
                let n_prompt = if rng.one_in(2) { 1 + rng.below(n_max - 1) } else { n_max - 1 };
                let head = self.device.requests.values().nth(rng.below(20));
                let head = head.filter(|_| !rng.one_in(3)).map(|other| &other.tokens[..]);
                let mut prompt = head.unwrap_or(&[]).to_vec();
                let n_shared = if rng.one_in(2) { n_prompt } else { rng.below(self.max_tokens) };
                prompt.truncate(n_prompt.min(n_shared));
                prompt.resize_with(n_prompt, || rng.below(3) as Token);
                let n_max_new = n_max - n_prompt;
                Act::Submit { key, prompt, n_new: 1 + rng.below(n_max_new), n_max_new }
            }
            94..96 => Act::Cancel { nth: rng.below(self.device.requests.len()) },
            96..98 => Act::CopyDown { max_bytes: rng.below(300) as u64 },
            98 if rng.one_in(20) => Act::CutBudget { percent: 30 + rng.below(60) as u64 },
            _ => Act::Nothing,
        }
    }

    pub fn act(&mut self, act: Act) {
        match act {
            Act::Submit { key, prompt, n_new, n_max_new } => {
                self.submit(key, prompt, n_new, n_max_new);
            }
            Act::Cancel { nth } => {
                if let Some(id) = self.device.requests.keys().nth(nth).copied() {
                    self.outcome.n_cancelled += 1;
                    self.end(id);
                }
            }
            Act::CopyDown { max_bytes } => self.device.copy_down(max_bytes, false),
            Act::CutBudget { percent } => {
                self.cut_until = self.outcome.n_steps + CUT_STEPS;
                let bytes = self.device_bytes * percent / 100;
                self.device.cache.resize(Tier::Device, bytes, self.device.now);
            }
            Act::Nothing => {}
        }
    }

    pub fn submit(&mut self, key: u64, prompt: Vec<Token>, n_new: usize, n_max_new: usize) {
        self.n_ids += 1;
        let (id, n_prompt) = (Id(self.n_ids), prompt.len());
        // Keys share what they have computed, or not.
        let ns = Ns(key / 2);
        let n_cached = self.device.cache.find(ns, &prompt).usable;
        let arrival = Arrival { id, key: Key(key), n_prompt, n_max_new, n_cached };
        let of_key = self.device.requests.values().filter(|other| other.key == key);
        let ahead = of_key.map(|other| (other.n_prompt + other.n_new) as u64).sum::<u64>();
        if let Err(full) = self.scheduler.submit(arrival) {
            assert!(full.n_waiting <= self.limits.max_waiting, "the queue is bounded");
            let share = self.limits.max_waiting.min(self.limits.max_waiting_per_key);
            assert!(full.n_waiting >= share, "nobody is sent away while there is a place");
            self.outcome.n_full += 1;
            return;
        }
        self.outcome.n_needed += (n_prompt - n_cached + n_new) as u64;
        // G1: what of its key is ahead of it, what may overtake it (shorter ones until it is due,
        // and those that wait then), what accounts may differ by, and the same for each other key.
        let longest = self.max_tokens as u64;
        let overtaking = AGEING * n_prompt as u64 + self.limits.max_waiting as u64 * longest;
        let credit = 8 * self.limits.step_tokens as u64;
        let share = ahead + overtaking + credit + 2 * longest;
        // While it answers, a token a step, others compute whole steps.
        let beside = (n_new * (self.limits.max_rows + self.limits.step_tokens)) as u64;
        let due = self.clock + self.n_keys as u64 * share + beside;
        let request = Served {
            key,
            ns,
            n_prompt,
            n_new,
            tokens: prompt,
            seq: None,
            n_found: 0,
            captures: BTreeSet::new(),
            arrived: self.clock,
            due,
        };
        self.device.requests.insert(id, request);
    }

    fn end(&mut self, id: Id) {
        self.device.end(id);
        self.forget(id);
        assert!(self.scheduler.end(id), "a request ends once");
        assert!(!self.scheduler.end(id), "a request ends once");
    }

    fn forget(&mut self, id: Id) {
        self.seated.remove(&id);
        self.restoring.remove(&id);
        self.progressed.remove(&id);
    }

    /// One step as the engine makes it.
    pub fn step(&mut self) {
        self.outcome.n_steps += 1;
        self.device.now += 1;
        if self.outcome.n_steps == self.cut_until {
            self.device.cache.resize(Tier::Device, self.device_bytes, self.device.now);
        }
        let waiting = self.restoring.iter().copied().collect::<Vec<_>>();
        for (id, at) in self.device.transfer(&waiting) {
            self.restoring.remove(&id);
            self.scheduler.arrived(id, at);
        }
        self.device.denied.clear();
        let step = self.scheduler.plan(&mut self.device);
        self.take_note(&step);
        self.check_step(&step);
        for slice in &step.prefill {
            self.device.compute(*slice);
            self.report(slice.id, slice.to - slice.from);
            if slice.draws {
                self.draw(slice.id);
            }
        }
        for id in &step.decode {
            let at = self.device.requests[id].tokens.len() - 1;
            self.device.compute(Slice { id: *id, from: at, to: at + 1, draws: true });
            self.report(*id, 1);
            self.draw(*id);
        }
        self.check_memory();
    }

    fn report(&mut self, id: Id, n_tokens: usize) {
        self.scheduler.computed(id, n_tokens);
        self.progressed.insert(id);
        self.clock += n_tokens as u64;
        self.outcome.n_computed += n_tokens as u64;
        self.outcome.hash = (self.outcome.hash.rotate_left(7) ^ id.0).wrapping_mul(0x9e37_79b9);
        let request = &self.device.requests[&id];
        let (stay, bound) = (self.clock - request.arrived, request.due - request.arrived);
        self.outcome.worst_stay = self.outcome.worst_stay.max(stay * 1000 / bound);
    }

    fn draw(&mut self, id: Id) {
        if self.device.draw(id) {
            self.outcome.n_ended += 1;
            self.end(id);
        }
    }

    /// Who has begun, was paused or refused.
    fn take_note(&mut self, step: &Step) {
        for id in &step.paused {
            self.outcome.n_paused += 1;
            let had_progressed = self.progressed.contains(id);
            self.outcome.n_fruitless += u64::from(!had_progressed);
            self.forget(*id);
        }
        // What ended while it was paused, or could not begin, is gone from the device's books.
        let requests = &self.device.requests;
        self.seated.retain(|id| requests.contains_key(id));
        self.restoring.retain(|id| requests.contains_key(id));
        self.progressed.retain(|id| requests.contains_key(id));
        for id in &step.refused {
            self.check_refusal(*id);
            self.outcome.n_refused += 1;
            self.device.end(*id);
            self.forget(*id);
        }
        let is_there = |id: &&Id| self.device.requests.get(id).is_some_and(|r| r.seq.is_some());
        for id in step.begun.iter().filter(is_there) {
            let seq = self.device.requests[id].seq.expect("it was seen to have begun");
            self.seated.insert(*id);
            if self.device.cache.position(seq).is_none() {
                self.restoring.insert(*id);
            }
        }
        self.outcome.n_denied += self.device.denied.len() as u64;
        self.outcome.n_turns = self.device.n_turns;
        self.outcome.n_holds = self.device.n_holds;
        self.outcome.n_restores = self.device.n_restores;
    }

    /// Nobody who fits alone is refused, unless the budget was cut, or the cache pins more for it
    /// than its tokens take: where others parted from its path inside of blocks, both parts count.
    fn check_refusal(&self, id: Id) {
        let is_cut = self.cut_until >= self.outcome.n_steps;
        let live_bytes = self.device.cache.stats().tiers[0].live_bytes;
        let n_tokens = self.device.requests[&id].tokens.len();
        let own_bytes = self.device.bytes_of(n_tokens, self.limits.chunk_tokens);
        assert!(is_cut || live_bytes > own_bytes, "what fits alone is not refused");
    }

    fn position(&self, id: Id) -> Option<usize> {
        let seq = self.device.requests.get(&id)?.seq?;
        Some(self.device.cache.position(seq)?.at)
    }

    fn check_step(&mut self, step: &Step) {
        assert_eq!(self.scheduler.n_running(), self.seated.len(), "both know who is seated");
        let n_all = self.device.requests.len();
        assert_eq!(
            self.scheduler.n_running() + self.scheduler.n_waiting(),
            n_all,
            "nobody is lost"
        );
        let n_tokens = step.prefill.iter().map(|slice| slice.to - slice.from).sum::<usize>();
        assert!(n_tokens <= self.limits.step_tokens, "G4: slices keep to the budget");
        let ids = step.prefill.iter().map(|slice| slice.id).chain(step.decode.iter().copied());
        let planned = ids.clone().collect::<BTreeSet<_>>();
        assert_eq!(planned.len(), ids.count(), "G4: a request is in a step once");
        step.prefill.iter().for_each(|slice| self.check_slice(*slice));
        let answers = |id: &&Id| {
            let request = &self.device.requests[*id];
            self.position(**id).is_some_and(|at| at + 1 == request.tokens.len())
                && request.tokens.len() > request.n_prompt
        };
        for id in self.seated.iter().filter(answers) {
            let has_reason = self.device.denied.contains(id) || step.begun.contains(id);
            assert!(planned.contains(id) || has_reason, "G4: who answers is never put off");
        }
        self.check_idle(step);
    }

    fn check_slice(&self, slice: Slice) {
        let Slice { id, from, to, draws } = slice;
        let request = &self.device.requests[&id];
        let (n_prompt, n_all) = (request.n_prompt, request.tokens.len());
        assert_eq!(self.position(id), Some(from), "G3: a slice begins where the cache stands");
        assert_eq!(draws, to == n_all, "a token is drawn after the last one");
        // By the prompt's length and a chunk: nothing else can have a say.
        let end = |chunk_tokens: usize| {
            let next_chunk = from - from % chunk_tokens + chunk_tokens;
            match from < n_prompt {
                true => next_chunk.min(n_prompt),
                false if self.limits.replays_by_token => from + 1,
                false => next_chunk.min(n_all),
            }
        };
        let Limits { chunk_tokens, chunk_tokens_beside, .. } = self.limits;
        let ends = [chunk_tokens, chunk_tokens_beside.min(chunk_tokens)].map(end);
        assert!(ends.contains(&to), "G3: a slice ends at the next break point");
    }

    fn check_idle(&mut self, step: &Step) {
        let has_work = !self.device.requests.is_empty();
        if !step.is_empty() || !has_work || self.device.is_flying() {
            self.n_idle_steps = 0;
            return;
        }
        // It may take a few steps to find out that nobody fits who could begin.
        self.outcome.n_empty += 1;
        self.n_idle_steps += 1;
        let n_steps = 4 + 3 * self.device.requests.len();
        assert!(self.n_idle_steps <= n_steps, "G2: something is done while anything can be");
    }

    fn check_memory(&self) {
        let device = self.device.cache.stats().tiers[0];
        let is_cut = self.cut_until >= self.outcome.n_steps;
        let used = device.live_bytes + device.cached_bytes;
        assert!(is_cut || used <= device.budget_bytes, "memory keeps to the budget");
        for (id, request) in &self.device.requests {
            assert!(self.clock <= request.due, "G1: {id:?} ends in its time: {request:?}");
        }
    }
}

/// `n_steps` with callers, and then until all have their answers.
pub fn run(seed: u64, n_steps: usize, is_told: bool) -> Outcome {
    let mut world = World::random(seed);
    let mut rng = Rng(seed ^ 0x5eed);
    for _ in 0..n_steps {
        let act = world.choose(&mut rng);
        if is_told {
            println!("{} {act:?}", world.outcome.n_steps);
        }
        world.act(act);
        world.step();
    }
    let mut n_left = 100_000;
    while !world.scheduler.is_idle() {
        world.step();
        n_left -= 1;
        assert!(n_left > 0, "G1: all end when nobody else comes");
    }
    assert!(world.device.requests.is_empty(), "all have ended");
    let stats = world.device.cache.stats();
    assert_eq!(stats.n_live, 0, "no place is left behind");
    world.scheduler.check();
    world.outcome
}
