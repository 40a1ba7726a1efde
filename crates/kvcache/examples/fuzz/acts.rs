//! What happens to a world: chosen at random, so that prompts collide often, also inside blocks.

use kvcache::{Costs, Group, Kind, Link, Ns, Prefill, Tier, Token};

use crate::world::{Outcome, Rng, World};

/// What happens to the world.
#[derive(Debug, Clone)]
pub enum Act {
    Begin { ns: Ns, prompt: Vec<Token> },
    Step { seq: usize, n_tokens: usize },
    Capture { seq: usize },
    End { seq: usize },
    Copies { max_bytes: u64 },
    Finish { transfer: usize, is_ok: bool },
    Resize { tier: Tier, bytes: u64 },
    Flush { ns: Ns },
    Lose { nth: usize },
    Adopt { ns: Ns, tokens: Vec<Token>, start: usize },
    Find { ns: Ns, prompt: Vec<Token> },
    Restart,
    Pack { group: usize },
}

impl World {
    /// A layout, budgets and costs as the seed has them.
    pub fn random(rng: &mut Rng) -> Self {
        let kinds: &[&[Kind]] = &[
            &[Kind::Full],
            &[Kind::Full, Kind::Full],
            &[Kind::Full, Kind::Window { tokens: 3 }],
            &[Kind::Recurrent, Kind::Full],
            &[Kind::Full, Kind::Window { tokens: 5 }, Kind::Recurrent],
            &[Kind::Recurrent],
            &[Kind::Window { tokens: 4 }, Kind::Full, Kind::Recurrent, Kind::Recurrent],
        ];
        let kinds = kinds[rng.below(kinds.len())];
        let group = |(k, kind): (usize, &Kind)| Group { kind: *kind, bytes: 3 + 2 * k as u64 };
        let groups = kinds.iter().enumerate().map(group).collect();
        let mut size = |n: usize| if rng.one_in(4) { 100_000 } else { 40 + rng.below(n) as u64 };
        let mut budgets = [size(400), size(900), size(2_000)];
        if rng.one_in(4) {
            budgets[1] = 0;
        }
        if rng.one_in(4) {
            budgets[2] = 0;
        }
        let mut link = || Link {
            latency_us: rng.below(4) as f64,
            bytes_per_us: if rng.one_in(4) { 0.01 } else { 100.0 },
        };
        let (host, disk) = (link(), link());
        let prefill = Prefill { a: 3.0, b: 1.0, c: 0.01 };
        let mut world = Self::new(1 + rng.below(5), groups, budgets, Costs { prefill, host, disk });
        if rng.one_in(2) {
            world.cache.remember(rng.below(6_000));
        }
        world
    }

    pub fn act(&mut self, act: Act) {
        self.now += 1;
        match act {
            Act::Begin { ns, prompt } => {
                self.begin(ns, prompt);
            }
            Act::Step { seq, n_tokens } => {
                self.step(seq, n_tokens);
            }
            Act::Capture { seq } => {
                self.capture(seq);
            }
            Act::End { seq } => self.end(seq),
            Act::Copies { max_bytes } => self.copies(max_bytes),
            Act::Finish { transfer, is_ok } => self.finish(transfer, is_ok),
            Act::Resize { tier, bytes } => {
                self.cache.resize(tier, bytes, self.now);
            }
            Act::Flush { ns } => self.flush(ns),
            Act::Lose { nth } => self.lose(nth),
            Act::Adopt { ns, tokens, start } => {
                self.adopt(ns, &tokens, start);
            }
            Act::Restart => self.restart(),
            Act::Pack { group } => self.pack(group),
            Act::Find { ns, prompt } => self.check_found(ns, &prompt),
        }
        self.settle();
    }

    /// The next act. Prompts are often beginnings of what lives or lived, with another end.
    pub fn choose(&self, rng: &mut Rng, known: &mut Vec<(Ns, Vec<Token>)>) -> Act {
        let (n_live, n_flying) = (self.live.len(), self.flying.len());
        let prompt = |rng: &mut Rng| {
            let (ns, mut tokens) = match known.len() {
                0 => (Ns(1), Vec::new()),
                n => known[rng.below(n)].clone(),
            };
            let ns = if rng.one_in(10) { Ns(rng.below(3) as u64) } else { ns };
            if !rng.one_in(5) {
                tokens.truncate(rng.below(tokens.len() + 1));
            }
            let n_new = if rng.one_in(6) { 0 } else { rng.below(12) };
            tokens.extend((0..n_new).map(|_| rng.below(3) as Token));
            tokens.truncate(60);
            (ns, tokens)
        };
        let act = match rng.below(100) {
            0..18 if n_live < 6 => {
                let (ns, prompt) = prompt(rng);
                Act::Begin { ns, prompt }
            }
            18..48 if n_live > 0 => {
                let n_tokens = if rng.one_in(3) { 1 } else { 1 + rng.below(13) };
                Act::Step { seq: rng.below(n_live), n_tokens }
            }
            48..60 if n_live > 0 => Act::Capture { seq: rng.below(n_live) },
            60..68 if n_live > 0 => Act::End { seq: rng.below(n_live) },
            68..76 if n_flying < 6 => Act::Copies { max_bytes: rng.below(120) as u64 },
            76..92 if n_flying > 0 => {
                Act::Finish { transfer: rng.below(n_flying), is_ok: !rng.one_in(5) }
            }
            92 if rng.one_in(4) => {
                let tier = Tier::ALL[rng.below(3)];
                let full = self.budgets[tier as usize];
                let bytes = if rng.one_in(2) { full } else { full / 2 + rng.below(50) as u64 };
                Act::Resize { tier, bytes: if full == 0 { 0 } else { bytes } }
            }
            96 if rng.one_in(20) => Act::Restart,
            96 if rng.one_in(2) => Act::Pack { group: rng.below(self.layout.groups().len()) },
            93 if rng.one_in(5) => Act::Flush { ns: Ns(rng.below(3) as u64) },
            97 if rng.one_in(2) => Act::Lose { nth: rng.below(1 << 16) },
            94..96 if self.budgets[2] > 0 => {
                let (ns, tokens) = prompt(rng);
                let start = if rng.one_in(2) { 0 } else { rng.below(tokens.len()) };
                Act::Adopt { ns, tokens, start }
            }
            _ => {
                let (ns, prompt) = prompt(rng);
                Act::Find { ns, prompt }
            }
        };
        if let Act::Begin { ns, prompt } | Act::Adopt { ns, tokens: prompt, .. } = &act {
            known.push((*ns, prompt.clone()));
        }
        if let Act::End { seq } = &act {
            known.push((self.live[*seq].ns, self.live[*seq].tokens.clone()));
        }
        if known.len() > 40 {
            known.swap_remove(rng.below(40));
        }
        act
    }
}

/// One world from its seed to its end; returns what it came past.
pub fn run(seed: u64, n_steps: usize, trace: bool) -> Outcome {
    let mut rng = Rng(seed);
    let mut world = World::random(&mut rng);
    let mut known = Vec::new();
    for step in 0..n_steps {
        let act = world.choose(&mut rng, &mut known);
        if trace {
            eprintln!("{step}: {act:?}");
        }
        world.act(act);
        if step % 16 == 0 {
            world.cache.check();
        }
    }
    world.close();
    world.note_stats();
    world.outcome
}
