//! What many requests cost each other: throughput of several at once beside one alone, gaps between
//! tokens while a long prompt is computed, and the time to the first token of a prompt that is
//! cached. Random weights in a known shape, through the engine as the runner drives it.
//!
//! ```text
//! cargo run --release -p engine --example concurrency -- SHAPE QUANTIZATION LONG_TOKENS [LAYERS]
//! cargo run --release -p engine --example concurrency -- qwen3-8b bf16 32768
//! ```
//! Prints a JSON object per figure.
#![allow(clippy::unwrap_used)]

#[path = "../tests/common/mod.rs"]
mod common;

use std::collections::BTreeMap;
use std::time::Instant;

use common::{engine_of_shape, prompt, request};
use engine::Engine;
use protocol::{CacheSettings, Event, RequestId};

const PROMPT_TOKENS: usize = 512;
const NEW_TOKENS: u32 = 128;
const AT_ONCE: [usize; 4] = [1, 8, 32, 64];
/// Rows that decode while a long prompt arrives.
const N_BESIDE: usize = 4;

fn main() {
    let args = std::env::args().skip(1).collect::<Vec<_>>();
    let [name, quantization, n_long, rest @ ..] = &args[..] else {
        eprintln!("usage: concurrency SHAPE QUANTIZATION LONG_TOKENS [LAYERS]");
        std::process::exit(2);
    };
    let n_long = n_long.parse::<usize>().expect("LONG_TOKENS is a number");
    let n_layers = rest.first().map(|n| n.parse().expect("LAYERS is a number"));
    let begun = Instant::now();
    let engine = engine_of_shape(name, quantization, n_layers, CacheSettings::default());
    println!("{{\"what\": \"load\", \"ms\": {:.0}}}", ms(begun, Instant::now()));
    let mut run = Run { engine, n_asked: 0 };
    // Once for what is compiled at first use.
    AT_ONCE.iter().for_each(|n| drop(run.together(*n, 8)));
    for n in AT_ONCE {
        let events = run.together(n, NEW_TOKENS);
        println!(
            "{{\"what\": \"decode\", \"n\": {n}, \"tok_s\": {:.1}, \"peak_mib\": {}}}",
            throughput(&events),
            mlx::memory::peak_bytes().unwrap_or(0) >> 20,
        );
    }
    run.beside(n_long);
    run.cached(n_long);
}

fn ms(from: Instant, to: Instant) -> f64 {
    to.duration_since(from).as_secs_f64() * 1e3
}

/// When each request's tokens came.
type Times = BTreeMap<RequestId, Vec<Instant>>;

struct Run {
    engine: Engine,
    n_asked: u64,
}

impl Run {
    fn submit(&mut self, n_prompt: usize, max_tokens: u32) -> (RequestId, Vec<u32>) {
        self.n_asked += 1;
        let prompt = prompt(&self.engine, self.n_asked as usize, n_prompt);
        (self.ask(&prompt, max_tokens), prompt)
    }

    fn ask(&mut self, prompt: &[u32], max_tokens: u32) -> RequestId {
        self.n_asked += 1;
        let request = request(self.n_asked, prompt, max_tokens);
        self.engine.submit(request).map_err(|e| e.message).expect("it fits");
        RequestId(self.n_asked)
    }

    fn step(&mut self, times: &mut Times) -> bool {
        let mut take = |event| match event {
            Event::Token { id, .. } => times.entry(id).or_default().push(Instant::now()),
            Event::Failed { message, .. } => panic!("{message}"),
            _ => {}
        };
        self.engine.step(&mut take).map_err(|e| e.message).expect("the engine goes on")
    }

    fn together(&mut self, n: usize, max_tokens: u32) -> Times {
        let mut times = Times::new();
        for _ in 0..n {
            self.submit(PROMPT_TOKENS, max_tokens);
        }
        while self.step(&mut times) {}
        times
    }

    /// Gaps between tokens of a few rows, before and while a long prompt is computed.
    fn beside(&mut self, n_long: usize) {
        let mut times = Times::new();
        let rows = (0..N_BESIDE).map(|_| self.submit(PROMPT_TOKENS, 100_000).0);
        let rows = rows.collect::<Vec<_>>();
        while times.len() < N_BESIDE || times.values().any(|times| times.len() < 100) {
            self.step(&mut times);
        }
        let begun = Instant::now();
        let (long, _) = self.submit(n_long, 1);
        while !times.contains_key(&long) {
            self.step(&mut times);
        }
        let took = ms(begun, times[&long][0]);
        for id in &rows {
            self.engine.cancel(*id);
        }
        while self.step(&mut times) {}
        let gaps = |when: &dyn Fn(Instant) -> bool| {
            let gaps = rows.iter().flat_map(|id| times[id].windows(2));
            let gaps = gaps.filter(|pair| when(pair[0])).map(|pair| ms(pair[0], pair[1]));
            let mut gaps = gaps.collect::<Vec<_>>();
            gaps.sort_by(f64::total_cmp);
            gaps
        };
        let report = |what: &str, gaps: Vec<f64>| {
            let at = |share: f64| gaps[((gaps.len() - 1) as f64 * share) as usize];
            let (p50, p99) = (at(0.5), at(0.99));
            println!(
                "{{\"what\": \"gaps {what}\", \"n\": {}, \"p50_ms\": {p50:.2}, \
                 \"p99_ms\": {p99:.2}}}",
                gaps.len(),
            );
        };
        let first = rows.iter().filter_map(|id| times[id].get(20)).max().copied();
        let first = first.expect("every row has many tokens");
        report("alone", gaps(&|at| at >= first && at < begun));
        report("beside a long prompt", gaps(&|at| at >= begun));
        println!("{{\"what\": \"the long prompt\", \"tokens\": {n_long}, \"ms\": {took:.1}}}");
    }

    /// Time to the first token of what the device has, beside a decode step of the same context.
    fn cached(&mut self, n_long: usize) {
        let mut times = Times::new();
        let (_, prompt) = self.submit(n_long, 1);
        while self.step(&mut times) {}
        for _ in 0..3 {
            let mut times = Times::new();
            let begun = Instant::now();
            let id = self.ask(&prompt, 20);
            while self.step(&mut times) {}
            let times = &times[&id];
            let step = ms(times[4], times[19]) / 15.0;
            let first = ms(begun, times[0]);
            println!(
                "{{\"what\": \"first token, cached\", \"ms\": {first:.2}, \"step_ms\": {step:.2}}}"
            );
        }
    }
}

/// New tokens per second of all while all decode.
fn throughput(times: &Times) -> f64 {
    let from = times.values().filter_map(|times| times.first()).max();
    let to = times.values().filter_map(|times| times.last()).min();
    let (Some(from), Some(to)) = (from, to) else { return 0.0 };
    let within = times.values().flatten().filter(|at| *at > from && *at <= to).count();
    within as f64 / to.duration_since(*from).as_secs_f64()
}
