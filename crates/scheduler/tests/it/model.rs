//! The rules of turns written down as plainly as can be: lists that are searched from end to end.
//! Where there is always room it says exactly what each step does.

use std::collections::BTreeMap;

use scheduler::{AGEING, Id, Key, Limits, Slice, Step};

use crate::draws::Rng;
use crate::fake::{LIMITS, Run};

const UNITS: u64 = 1 << 16;

#[derive(Debug, Clone)]
struct Modelled {
    id: Id,
    key: Key,
    n_prompt: usize,
    arrived: u64,
    /// Tokens that are there, of one that has begun.
    at: Option<usize>,
}

impl Modelled {
    fn due(&self) -> (u64, bool, Id) {
        let due = self.arrived + AGEING * self.n_prompt as u64;
        (due, self.at.is_none(), self.id)
    }

    fn has_backlog(&self) -> bool {
        self.at.is_none_or(|at| at < self.n_prompt)
    }
}

struct Model {
    limits: Limits,
    requests: Vec<Modelled>,
    served: BTreeMap<Key, u64>,
    virtual_time: u64,
    clock: u64,
}

impl Model {
    fn lift(&mut self, key: Key) {
        let served = self.served.entry(key).or_insert(0);
        *served = (*served).max(self.virtual_time);
    }

    fn has_backlog(&self, key: Key) -> bool {
        self.requests.iter().any(|request| request.key == key && request.has_backlog())
    }

    fn submit(&mut self, id: Id, key: Key, n_prompt: usize) {
        if !self.has_backlog(key) {
            self.lift(key);
        }
        self.requests.push(Modelled { id, key, n_prompt, arrived: self.clock, at: None });
    }

    fn n_seated(&self, key: Option<Key>) -> usize {
        let is_of = |request: &&Modelled| key.is_none_or(|key| request.key == key);
        self.requests.iter().filter(is_of).filter(|request| request.at.is_some()).count()
    }

    fn plan(&mut self) -> Step {
        let answers = |r: &&Modelled| r.at.is_some_and(|at| at >= r.n_prompt);
        let decode = self.requests.iter().filter(answers).map(|r| r.id).collect();
        let mut step = Step { decode, ..Step::default() };
        while self.n_seated(None) < self.limits.max_rows {
            let may = |r: &&Modelled| {
                r.at.is_none() && self.n_seated(Some(r.key)) < self.limits.max_rows_per_key
            };
            let waiting = self.requests.iter().filter(may);
            let Some(next) = waiting.min_by_key(|r| (self.served[&r.key], r.key, r.due())) else {
                break;
            };
            let id = next.id;
            step.begun.push(id);
            let next = self.requests.iter_mut().find(|r| r.id == id);
            next.expect("it was found").at = Some(0);
        }
        let mut served = self.served.clone();
        let mut ready = self.requests.clone();
        ready.retain(|r| r.at.is_some_and(|at| at < r.n_prompt));
        let mut left = self.limits.step_tokens;
        while let Some(next) = ready.iter().min_by_key(|r| (served[&r.key], r.key, r.due())) {
            let Modelled { id, key, n_prompt, at, .. } = *next;
            let from = at.expect("what is ready has begun");
            ready.retain(|r| r.id != id);
            let chunk = self.limits.chunk_tokens;
            let to = ((from / chunk + 1) * chunk).min(n_prompt);
            if to - from <= left {
                left -= to - from;
                *served.get_mut(&key).expect("keys have accounts") += (to - from) as u64 * UNITS;
                step.prefill.push(Slice { id, from, to, draws: to == n_prompt });
            }
        }
        step
    }

    fn computed(&mut self, id: Id, n_tokens: usize) {
        let request = self.requests.iter_mut().find(|r| r.id == id).expect("it is there");
        let key = request.key;
        *request.at.as_mut().expect("it has begun") += n_tokens;
        self.clock += n_tokens as u64;
        let mut keys = self.requests.iter().map(|r| r.key).collect::<Vec<_>>();
        keys.sort_unstable();
        keys.dedup();
        self.virtual_time += n_tokens as u64 * UNITS / keys.len() as u64;
        let credit = 4 * self.limits.step_tokens as u64 * UNITS;
        let served = self.served[&key].max(self.virtual_time.saturating_sub(credit));
        let served = served + n_tokens as u64 * UNITS;
        self.served.insert(key, served.min(self.virtual_time + credit));
    }
}

fn check(seed: u64) -> usize {
    let mut rng = Rng(seed);
    let chunk_tokens = 1 + rng.below(20);
    let limits = Limits {
        max_rows: 1 + rng.below(6),
        max_rows_per_key: 1 + rng.below(6),
        step_tokens: chunk_tokens + rng.below(40),
        chunk_tokens,
        ..LIMITS
    };
    let mut run = Run::new(limits, usize::MAX / 2);
    run.fake.has_tier = false;
    let mut model =
        Model { limits, requests: Vec::new(), served: BTreeMap::new(), virtual_time: 0, clock: 0 };
    let (n_keys, load, longest) = (1 + rng.below(4), 1 + rng.below(6), 1 + rng.below(80));
    let mut n_begun = 0;
    for id in 0..600 {
        if rng.one_in(load) {
            let (key, n_prompt) = (rng.below(n_keys) as u64, 1 + rng.below(longest));
            if run.submit(id, key, n_prompt, 1 + rng.below(12)) {
                model.submit(Id(id), Key(key), n_prompt);
            }
        }
        if rng.one_in(30)
            && let Some(id) = run.ends.keys().nth(rng.below(8)).copied()
        {
            run.end(id);
            model.requests.retain(|r| r.id != id);
        }
        let expected = model.plan();
        let step = run.step();
        assert_eq!(step, expected, "seed {seed}, step {}", run.steps.len());
        n_begun += step.begun.len();
        for slice in &step.prefill {
            model.computed(slice.id, slice.to - slice.from);
            model.requests.retain(|r| run.ends.contains_key(&r.id) || r.id != slice.id);
        }
        for id in &step.decode {
            model.computed(*id, 1);
            model.requests.retain(|r| run.ends.contains_key(&r.id) || r.id != *id);
        }
    }
    n_begun
}

#[test]
fn where_there_is_room_every_step_is_what_the_plain_rules_say() {
    let n_begun = (0..100).map(check).sum::<usize>();
    assert!(n_begun > 5_000, "{n_begun}");
}
