//! Memory of the books alone: small models' layouts under traffic that never rests, as in the
//! engine's `churn`, without arrays and files, so that an hour of it takes a minute. Prints what
//! the cache counts and what the process has resident, where Linux says it:
//! `cargo run --release -p kvcache --example growth -- [--requests 600000] [--seed 1]
//! [--remember TOKENS] [--layout 0,1,2]`.

mod arguments;

use std::process::ExitCode;

use arguments::numbers;
use kvcache::{
    Boundary, Budgets, Cache, Capture, Class, Costs, Group, Kind, Layout, Link, Ns, Op, Policy,
    Prefill, SeqId, Token, Waiting, plan_captures,
};

/// Bytes of device, host and disk, tokens of a block and of a pass, as in `churn`.
const BUDGETS: Budgets = Budgets([600_000, 1_200_000, 4_000_000]);
const BLOCK_TOKENS: usize = 32;
const CHUNK_TOKENS: usize = 48;
/// Callers at a time, what each remembers, and requests at a time.
const N_CALLERS: usize = 4;
const N_TALKS: usize = 8;
const N_AT_ONCE: usize = 4;
const MAX_TALK_TOKENS: usize = 320;
/// Namespaces of callers that come once have numbers from here on.
const FIRST_PASSER_BY: u64 = 1 << 40;

const LAYOUTS: [(&str, &[(Kind, u64)]); 3] = [
    ("states and rows", &[(Kind::Recurrent, 7_104), (Kind::Full, 4_096)]),
    ("windows and rows", &[(Kind::Window { tokens: 7 }, 4_096), (Kind::Full, 4_096)]),
    ("rows", &[(Kind::Full, 6_144)]),
];

/// Splitmix64.
struct Rng(u64);

impl Rng {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % n as u64) as usize
    }

    fn tokens(&mut self, n: usize) -> Vec<Token> {
        (0..n).map(|_| self.below(72) as Token).collect()
    }
}

struct Running {
    seq: SeqId,
    caller: usize,
    talk: Vec<Token>,
    captures: Vec<Capture>,
    n_new: usize,
}

struct Traffic {
    cache: Cache,
    rng: Rng,
    callers: Vec<(u64, Vec<Vec<Token>>)>,
    running: Vec<Running>,
    now: u64,
    n_named: u64,
    n_asked: u64,
    n_failed: u64,
    n_hit_tokens: u64,
    n_prompt_tokens: u64,
}

impl Traffic {
    fn new(groups: &[(Kind, u64)], seed: u64) -> Option<Self> {
        let groups = groups.iter().map(|(kind, bytes)| Group { kind: *kind, bytes: *bytes });
        let layout = Layout::new(BLOCK_TOKENS, groups.collect())?;
        let link = |bytes_per_us| Link { latency_us: 20.0, bytes_per_us };
        let prefill = Prefill { a: 500.0, b: 20.0, c: 0.001 };
        let costs = Costs { prefill, host: link(2_000.0), disk: link(500.0) };
        let policies = std::array::from_fn(|_| Policy::Hazard.build());
        Some(Self {
            cache: Cache::new(layout, BUDGETS, costs, policies),
            rng: Rng(seed),
            callers: (0..N_CALLERS as u64).map(|ns| (ns, Vec::new())).collect(),
            running: Vec::new(),
            now: 0,
            n_named: N_CALLERS as u64,
            n_asked: 0,
            n_failed: 0,
            n_hit_tokens: 0,
            n_prompt_tokens: 0,
        })
    }

    /// A conversation that goes on, branches off, or is new.
    fn prompt(&mut self, caller: usize) -> Vec<Token> {
        let talks = &self.callers[caller].1;
        let mut talk = match talks.len() {
            0 => Vec::new(),
            n => talks[self.rng.below(n)].clone(),
        };
        match self.rng.below(8) {
            0 => talk.clear(),
            1..3 => talk.truncate(self.rng.below(talk.len() + 1)),
            _ => {}
        }
        let n_more = 1 + self.rng.below(90);
        talk.extend(self.rng.tokens(n_more));
        if talk.len() > MAX_TALK_TOKENS {
            talk.truncate(1 + self.rng.below(MAX_TALK_TOKENS / 2));
        }
        talk
    }

    fn arrive(&mut self) {
        let caller = self.rng.below(N_CALLERS);
        let talk = self.prompt(caller);
        let ns = match self.rng.below(16) {
            0 => FIRST_PASSER_BY + self.n_asked,
            _ => self.callers[caller].0,
        };
        self.n_asked += 1;
        let Ok(begun) = self.cache.begin(Ns(ns), &talk, self.now) else {
            self.n_failed += 1;
            return;
        };
        self.n_prompt_tokens += talk.len() as u64;
        self.n_hit_tokens += begun.found.usable as u64;
        for op in begun.ops {
            if let Op::Restore(transfer) = op {
                self.cache.finish(transfer.id, true, self.now);
            }
        }
        let seams = [Boundary::Message(talk.len())];
        let n_seams = self.rng.below(2);
        let captures = plan_captures(&begun.found, &seams[..n_seams], false);
        let n_new = self.rng.below(40);
        self.running.push(Running { seq: begun.seq, caller, talk, captures, n_new });
    }

    /// The next pass of one of those that run.
    fn step(&mut self, nth: usize) {
        let running = &mut self.running[nth];
        let seq = running.seq;
        let Some(at) = self.cache.position(seq).map(|position| position.at) else { return };
        let is_done = at >= running.talk.len() && running.n_new == 0;
        if is_done || self.rng.below(300) == 0 {
            self.cache.capture(seq, Class::OutputEnd(Waiting::Person), self.now);
            self.cache.end(seq, self.now);
            let Running { caller, talk, .. } = self.running.swap_remove(nth);
            let talks = &mut self.callers[caller].1;
            match talks.len() {
                N_TALKS => talks[self.rng.below(N_TALKS)] = talk,
                _ => talks.push(talk),
            }
            return;
        }
        if at >= running.talk.len() {
            running.talk.push(self.rng.below(72) as Token);
            running.n_new -= 1;
        }
        let next_capture = running.captures.iter().find(|capture| capture.at > at).copied();
        let to = (at + CHUNK_TOKENS).min(running.talk.len());
        let to = next_capture.map_or(to, |capture| to.min(capture.at));
        if self.cache.reserve(seq, to - at, self.now).is_err() {
            self.cache.end(seq, self.now);
            self.running.swap_remove(nth);
            self.n_failed += 1;
            return;
        }
        self.cache.advance(seq, &running.talk[at..to]);
        if let Some(capture) = next_capture.filter(|capture| capture.at == to) {
            self.cache.capture(seq, capture.class, self.now);
        }
    }

    fn turn(&mut self) {
        self.now += 1_000;
        while self.running.len() < N_AT_ONCE {
            self.arrive();
        }
        let nth = self.rng.below(N_AT_ONCE);
        self.step(nth);
        if self.rng.below(4) == 0 {
            for transfer in self.cache.next_copies(64 << 10, self.now) {
                self.cache.finish(transfer.id, true, self.now);
            }
        }
        self.cache.take_dead_extents();
        if self.rng.below(80_000) == 0 {
            let caller = self.rng.below(N_CALLERS);
            self.cache.flush(Ns(self.callers[caller].0));
            self.callers[caller] = (self.n_named, Vec::new());
            self.n_named += 1;
        }
    }
}

/// KiB of this process, where Linux says it.
fn resident_kib() -> u64 {
    let text = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|line| line.trim().trim_end_matches(" kB").parse().ok()).unwrap_or(0)
}

fn run(arguments: &[String]) -> Result<(), String> {
    let n_requests = numbers::<u64>(arguments, "--requests", "600000")?[0];
    let seed = numbers::<u64>(arguments, "--seed", "1")?[0];
    let remember = numbers::<usize>(arguments, "--remember", "0")?[0];
    for layout_idx in numbers::<usize>(arguments, "--layout", "0,1,2")? {
        let (name, groups) = LAYOUTS.get(layout_idx).ok_or("--layout: 0, 1 or 2")?;
        let mut traffic = Traffic::new(groups, seed).ok_or("an unsound layout")?;
        if remember > 0 {
            traffic.cache.remember(remember);
        }
        let at_start = resident_kib();
        println!("{name}: {at_start} KiB resident at the start; more since then:");
        println!("requests    nodes   tokens   hit   failed resident KiB");
        for part in 1..=20 {
            while traffic.n_asked < n_requests * part / 20 {
                traffic.turn();
            }
            let stats = traffic.cache.stats();
            println!(
                "{:>8} {:>8} {:>8} {:.3} {:>8} {:>8}",
                traffic.n_asked,
                stats.n_nodes,
                stats.n_tokens,
                traffic.n_hit_tokens as f64 / traffic.n_prompt_tokens as f64,
                traffic.n_failed,
                resident_kib().saturating_sub(at_start),
            );
        }
    }
    Ok(())
}

fn main() -> ExitCode {
    arguments::main(run)
}
