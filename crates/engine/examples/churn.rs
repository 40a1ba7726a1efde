//! Whether memory comes back: small models under traffic that never rests, minute after minute.
//! Requests arrive at random, branch off from others or go on, are cancelled, live in namespaces
//! that come and go, and pass through a device, a host and a disk that are all too small.
//!
//! ```text
//! cargo run --release -p engine --example churn -- MINUTES [SEED [MODEL...]]
//! ```
//! MODEL is a folder of `goldens/quantized`; all given run in turn in this process, each with a
//! cache of its own, on one thread. Prints a line a minute and, at the end, what is left when all
//! requests have ended and all namespaces are forgotten. Ends with an error unless every tier is
//! empty then and MLX holds, to the byte, what it held before the first request.
#![allow(clippy::unwrap_used)]

#[path = "../tests/common/mod.rs"]
mod common;

use std::collections::HashMap;
use std::path::Path;
use std::time::{Duration, Instant};

use common::twice::{CHUNK_TOKENS, Rng, on_disk};
use common::{engine_in_chunks, request};
use engine::Engine;
use protocol::{
    Boundary, BoundaryKind, CacheSettings, Event, GenerateRequest, Inspect, InspectRequest,
    RequestId, Sampling,
};

/// One of each kind of memory beside plain attention: states, windows, none.
const MODELS: [&str; 3] = ["qwen3_next_affine4_32", "gpt_oss_mxfp4", "qwen3_affine8_32_tied"];
/// Bytes of device, host and disk: some prompts, twice as many, and some more.
const BYTES: [u64; 3] = [600_000, 1_200_000, 5_000_000];
/// Callers at a time, each in a namespace of its own, and what each remembers.
const N_CALLERS: usize = 4;
const N_TALKS: usize = 8;
/// Requests at a time.
const MAX_AT_ONCE: usize = 12;
const MAX_TALK_TOKENS: usize = 320;
/// Between two readings of the process's memory.
const READING: Duration = Duration::from_secs(10);
/// Namespaces of callers that come once and never again have numbers from here on.
const FIRST_PASSER_BY: u64 = 1 << 40;

/// What happened so far.
#[derive(Default)]
struct Counts {
    n_asked: u64,
    n_finished: u64,
    n_cancelled: u64,
    n_failed: u64,
    n_refused: u64,
    n_flushed: u64,
    prompt_tokens: u64,
    new_tokens: u64,
    /// Requests that found something, by the slowest tier that gave it.
    n_hits: [u64; 3],
}

/// One engine and those who ask it.
struct Traffic {
    name: String,
    engine: Engine,
    rng: Rng,
    /// The namespace of each caller, and its conversations.
    callers: Vec<(u64, Vec<Vec<u32>>)>,
    /// The caller, and the conversation as far as it is known.
    running: HashMap<RequestId, (usize, Vec<u32>)>,
    n_named: u64,
    n_passed_by: u64,
    counts: Counts,
    folder: tempfile::TempDir,
}

impl Traffic {
    fn new(name: &str, seed: u64) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut settings = CacheSettings {
            device_bytes: Some(BYTES[0]),
            host_bytes: Some(BYTES[1]),
            ..on_disk(folder.path())
        };
        if let Some(disk) = &mut settings.disk {
            disk.bytes = Some(BYTES[2]);
        }
        let engine = engine_in_chunks(name, settings, Some(CHUNK_TOKENS as u32), false);
        Self {
            name: name.to_owned(),
            engine,
            rng: Rng(seed),
            callers: (0..N_CALLERS as u64).map(|namespace| (namespace, Vec::new())).collect(),
            running: HashMap::new(),
            n_named: N_CALLERS as u64,
            n_passed_by: 0,
            counts: Counts::default(),
            folder,
        }
    }

    /// A conversation that goes on, branches off, or is new.
    fn prompt(&mut self, caller: usize) -> Vec<u32> {
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
        let prompt = self.prompt(caller);
        let mut namespace = self.callers[caller].0;
        if self.rng.below(16) == 0 {
            namespace = FIRST_PASSER_BY + self.n_passed_by;
            self.n_passed_by += 1;
        }
        self.counts.n_asked += 1;
        self.counts.prompt_tokens += prompt.len() as u64;
        let seam = Boundary { at: prompt.len() as u32, kind: BoundaryKind::Message };
        let temperature = self.rng.below(2) as f32;
        let asked = GenerateRequest {
            sampling: Sampling { temperature, seed: self.rng.0, ..Sampling::greedy() },
            top_logprobs: (self.rng.below(4) == 0).then_some(2),
            namespace,
            boundaries: if self.rng.below(2) == 0 { vec![seam] } else { Vec::new() },
            ..request(self.counts.n_asked, &prompt, 1 + self.rng.below(40) as u32)
        };
        let id = asked.id;
        match self.engine.submit(asked) {
            Ok(()) => {
                self.running.insert(id, (caller, prompt));
            }
            Err(_) => self.counts.n_refused += 1,
        }
    }

    fn cancel_one(&mut self) {
        let nth = self.rng.below(self.running.len().max(1));
        let mut ids = self.running.keys().copied().collect::<Vec<_>>();
        ids.sort_unstable();
        if let Some(id) = ids.get(nth) {
            self.engine.cancel(*id);
            self.running.remove(id);
            self.counts.n_cancelled += 1;
        }
    }

    /// A caller is forgotten, and another takes its place; what it asked may still be running.
    fn flush_one(&mut self) {
        let caller = self.rng.below(N_CALLERS);
        self.engine.flush(self.callers[caller].0);
        self.callers[caller] = (self.n_named, Vec::new());
        (self.n_named, self.counts.n_flushed) = (self.n_named + 1, self.counts.n_flushed + 1);
    }

    /// A step, and what may come before it.
    fn turn(&mut self) {
        match self.rng.below(200) {
            0..30 if self.running.len() < MAX_AT_ONCE => self.arrive(),
            // All at once, more than there is room for.
            30 => (0..MAX_AT_ONCE).for_each(|_| self.arrive()),
            31..35 => self.cancel_one(),
            35 if self.rng.below(8) == 0 => self.flush_one(),
            36 => {
                let what = Inspect::Tree { max_nodes: 50 };
                self.engine.inspect(&InspectRequest { id: RequestId(0), shown_tokens: 4, what });
            }
            // Nobody comes until all is done and copied.
            37 if self.rng.below(8) == 0 => while self.step() {},
            _ => {}
        }
        self.step();
    }

    fn step(&mut self) -> bool {
        let mut events = Vec::new();
        let step = self.engine.step(&mut |event| events.push(event));
        let is_busy = step.map_err(|e| e.message).unwrap();
        for event in events {
            self.take(event);
        }
        is_busy
    }

    fn take(&mut self, event: Event) {
        match event {
            Event::Matched(found) if found.usable_tokens > 0 => {
                self.counts.n_hits[found.tier as usize] += 1;
            }
            Event::Token { id, token, .. } => {
                self.counts.new_tokens += 1;
                if let Some((_, talk)) = self.running.get_mut(&id) {
                    talk.push(token);
                }
            }
            Event::Finished { id, .. } => {
                self.counts.n_finished += 1;
                let Some((caller, talk)) = self.running.remove(&id) else { return };
                let talks = &mut self.callers[caller].1;
                match talks.len() {
                    N_TALKS => talks[self.rng.below(N_TALKS)] = talk,
                    _ => talks.push(talk),
                }
            }
            Event::Failed { id, message, .. } => {
                self.counts.n_failed += 1;
                println!("{}: {id:?} failed: {message}", self.name);
                if let Some(id) = id {
                    self.running.remove(&id);
                }
            }
            _ => {}
        }
    }

    fn told(&self, at: Duration) {
        let (c, stats) = (&self.counts, self.engine.cache_stats());
        let tiers = stats.tiers.map(|tier| (tier.live_bytes, tier.cached_bytes, tier.n_evicted));
        println!(
            "{:4.1} min {}: asked {}, finished {}, cancelled {}, failed {}, refused {}, flushed \
             {}, prompt tokens {}, new tokens {}, hits {:?}, transfers {:?}, (live, cached bytes, \
             evicted) {tiers:?}, nodes {}, tokens known {}, remembered {} bytes, files {} \
             bytes",
            at.as_secs_f64() / 60.0,
            self.name,
            c.n_asked,
            c.n_finished,
            c.n_cancelled,
            c.n_failed,
            c.n_refused,
            c.n_flushed,
            c.prompt_tokens,
            c.new_tokens,
            c.n_hits,
            stats.n_transfers,
            stats.n_nodes,
            stats.n_tokens,
            stats.remembered_bytes,
            file_bytes(self.folder.path()),
        );
    }

    /// Ends all and forgets all; what every tier still has, and the nodes that are left.
    fn settle(&mut self) -> ([u64; 3], usize) {
        for id in self.running.drain().map(|(id, _)| id) {
            self.engine.cancel(id);
        }
        while self.step() {}
        let passers_by = FIRST_PASSER_BY..FIRST_PASSER_BY + self.n_passed_by;
        (0..self.n_named).chain(passers_by).for_each(|namespace| self.engine.flush(namespace));
        while self.step() {}
        let stats = self.engine.cache_stats();
        (stats.tiers.map(|tier| tier.live_bytes + tier.cached_bytes), stats.n_nodes)
    }

    /// Takes from the device what it still has for later requests.
    fn forget(&mut self) {
        let message = "asked for by the churn".to_owned();
        let error = mlx::Error::OutOfMemory { op: "churn", message }.into();
        self.engine.recover(&error, &mut |_| {}).map_err(|e| e.message).unwrap();
    }
}

fn main() {
    let args = std::env::args().skip(1).collect::<Vec<_>>();
    let number = |i: usize| args.get(i).map(|arg| arg.parse::<f64>());
    let (Some(Ok(minutes)), seed) = (number(0), number(1)) else {
        eprintln!("usage: churn MINUTES [SEED [MODEL...]]");
        std::process::exit(2);
    };
    engine::set_threads(1);
    let seed = seed.map_or(1, |seed| seed.unwrap() as u64);
    let named = args.iter().skip(2).map(String::as_str).collect::<Vec<_>>();
    let names = if named.is_empty() { &MODELS[..] } else { &named };
    let mut all = names.iter().map(|name| Traffic::new(name, seed)).collect::<Vec<_>>();
    // What a model makes at its first pass and keeps is no leak.
    for traffic in &mut all {
        traffic.arrive();
        while traffic.step() {}
        traffic.forget();
    }
    let at_start = mlx::memory::active_bytes().unwrap();
    println!("start: active {at_start} bytes, resident {} KiB, {} files open", rss(), n_open());

    let (begun, whole) = (Instant::now(), Duration::from_secs_f64(minutes * 60.0));
    let (mut readings, mut n_minutes) = (Vec::<(f64, f64)>::new(), 0);
    while begun.elapsed() < whole {
        all.iter_mut().for_each(Traffic::turn);
        let at = begun.elapsed();
        if at >= READING * readings.len() as u32 {
            readings.push((at.as_secs_f64() / 60.0, rss() as f64 * 1024.0));
        }
        if at.as_secs() / 60 > n_minutes {
            n_minutes = at.as_secs() / 60;
            all.iter().for_each(|traffic| traffic.told(at));
            let active = mlx::memory::active_bytes().unwrap();
            let kept = mlx::memory::cache_bytes().unwrap();
            println!(
                "     active {active} bytes ({} above the start, budgets {}), kept {kept}, \
                 resident {} KiB, {} files open",
                active - at_start,
                BYTES[0] * all.len() as u64,
                rss(),
                n_open()
            );
        }
    }
    let second_half = &readings[readings.len() / 2..];
    println!("slope of resident memory, second half: {:.0} bytes a minute", slope(second_half));
    end(all, at_start);
}

/// What is left when all has ended.
fn end(mut all: Vec<Traffic>, at_start: usize) {
    for traffic in &mut all {
        let left = traffic.settle();
        println!("end {}: bytes left in tiers {:?}, nodes {}", traffic.name, left.0, left.1);
        assert_eq!(left, ([0; 3], 0));
    }
    mlx::memory::clear_cache().unwrap();
    let active = mlx::memory::active_bytes().unwrap();
    println!("end: active {active} bytes with the pools of the device, {} KiB resident", rss());
    all.iter_mut().for_each(Traffic::forget);
    let active = mlx::memory::active_bytes().unwrap();
    println!(
        "end: active {active} bytes without, {at_start} at the start; {} files open",
        n_open()
    );
    assert_eq!(active, at_start);
}

/// Change of the second by the first, by least squares.
fn slope(points: &[(f64, f64)]) -> f64 {
    let n = points.len() as f64;
    let mean_x = points.iter().map(|p| p.0).sum::<f64>() / n;
    let mean_y = points.iter().map(|p| p.1).sum::<f64>() / n;
    let both = points.iter().map(|p| (p.0 - mean_x) * (p.1 - mean_y)).sum::<f64>();
    both / points.iter().map(|p| (p.0 - mean_x).powi(2)).sum::<f64>()
}

fn rss() -> u64 {
    common::resident_kib()
}

/// Open files of this process, where Linux says it.
fn n_open() -> usize {
    std::fs::read_dir("/proc/self/fd").map_or(0, Iterator::count)
}

/// Bytes of all files below a folder.
fn file_bytes(folder: &Path) -> u64 {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let bytes = entries.map(|entry| match entry.metadata() {
        Ok(metadata) if metadata.is_dir() => file_bytes(&entry.path()),
        Ok(metadata) => metadata.len(),
        Err(_) => 0,
    });
    bytes.sum()
}
