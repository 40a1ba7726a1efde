//! What the prefix cache is worth on a device: time to the first token of long conversations when
//! they are new, when the device has them, when only the host has them, what switching between them
//! costs, and what bringing one up costs a request that decodes. Random weights in a known shape.
//!
//! ```text
//! cargo run --release -p engine --example cache_speed -- SHAPE QUANTIZATION TOKENS [LAYERS]
//! cargo run --release -p engine --example cache_speed -- qwen3-30b-a3b 4bit 32768
//! ```
//! Prints a JSON object per figure: what, milliseconds (the median and all), cached tokens, tier.
#![allow(clippy::unwrap_used)]

#[path = "../tests/common/mod.rs"]
mod common;

use std::time::Instant;

use common::{engine_of_shape, prompt, request};
use engine::Engine;
use protocol::{CacheSettings, CacheTier, Event, GenerateRequest, RequestId};

const N_TIMES: usize = 5;

fn main() {
    let args = std::env::args().skip(1).collect::<Vec<_>>();
    let [name, quantization, n_tokens, rest @ ..] = &args[..] else {
        eprintln!("usage: cache_speed SHAPE QUANTIZATION TOKENS [LAYERS]");
        std::process::exit(2);
    };
    let n_tokens = n_tokens.parse::<usize>().expect("TOKENS is a number");
    let n_layers = rest.first().map(|n| n.parse().expect("LAYERS is a number"));
    let load = |cache| Run {
        engine: engine_of_shape(name, quantization, n_layers, cache),
        n_asked: 0,
        tells: false,
    };
    let mut run = load(CacheSettings::default());
    let bytes = run.cold_and_warm(n_tokens);
    run.switch(n_tokens);
    drop(run);
    // A device that has room for one of the conversations and a little, and a host for several.
    // What it has beyond the one may hold a part of the other, which is then not brought up.
    let device_bytes = Some(bytes + bytes / 8);
    let settings = CacheSettings { device_bytes, host_bytes: Some(8 * bytes), disk: None };
    load(settings).restore(n_tokens, bytes);
}

struct Run {
    engine: Engine,
    n_asked: u64,
    /// Whether answers have log probabilities, which cost time.
    tells: bool,
}

/// Of one request.
struct Answer {
    first_ms: f64,
    /// The first token and its log probability.
    first: Option<(u32, f32)>,
    cached_tokens: u32,
    tier: CacheTier,
}

impl Run {
    fn text(&self, who: usize, n: usize) -> Vec<u32> {
        prompt(&self.engine, who, n)
    }

    fn submit(&mut self, prompt: &[u32], max_tokens: u32) -> RequestId {
        self.n_asked += 1;
        let request = GenerateRequest {
            top_logprobs: self.tells.then_some(1),
            ..request(self.n_asked, prompt, max_tokens)
        };
        self.engine.submit(request).map_err(|e| e.message).expect("it fits");
        RequestId(self.n_asked)
    }

    /// Answers with a few tokens. Notes the times of the tokens of another request that goes on;
    /// without one, everything behind the answer is done too when this returns.
    fn answer(&mut self, prompt: &[u32], other: Option<(RequestId, &mut Vec<Instant>)>) -> Answer {
        let begun = Instant::now();
        let own = self.submit(prompt, 2);
        let mut answer =
            Answer { first_ms: 0.0, first: None, cached_tokens: 0, tier: CacheTier::Device };
        let (row, mut times) = other.unzip();
        let mut has_ended = false;
        loop {
            let mut take = |event| match event {
                Event::Matched(found) => answer.tier = found.tier,
                Event::Token { id, token, logprob, .. } if id == own && answer.first_ms == 0.0 => {
                    answer.first_ms = begun.elapsed().as_secs_f64() * 1e3;
                    answer.first = logprob.map(|value| (token, value));
                }
                Event::Token { id, .. } if Some(id) == row => {
                    times.iter_mut().for_each(|times| times.push(Instant::now()));
                }
                Event::Finished { id, usage, .. } if id == own => {
                    (answer.cached_tokens, has_ended) = (usage.cached_tokens, true);
                }
                Event::Failed { message, .. } => panic!("{message}"),
                _ => {}
            };
            let is_busy = self.engine.step(&mut take).map_err(|e| e.message);
            if !is_busy.expect("the engine goes on") || has_ended && row.is_some() {
                return answer;
            }
        }
    }

    fn ask(&mut self, prompt: &[u32]) -> Answer {
        self.answer(prompt, None)
    }

    fn report(&self, what: &str, answers: &[Answer]) {
        let mut ms = answers.iter().map(|a| a.first_ms).collect::<Vec<_>>();
        let all = ms.iter().map(|ms| format!("{ms:.2}")).collect::<Vec<_>>().join(", ");
        ms.sort_by(f64::total_cmp);
        let last = &answers[answers.len() - 1];
        let logprobs = answers.iter().filter_map(|a| Some(a.first?.1.to_string()));
        println!(
            "{{\"what\": \"{what}\", \"ms\": {:.2}, \"all_ms\": [{all}], \"cached_tokens\": {}, \
             \"tier\": \"{:?}\", \"logprobs\": [{}]}}",
            ms[ms.len() / 2],
            last.cached_tokens,
            last.tier,
            logprobs.collect::<Vec<_>>().join(", ")
        );
    }

    /// Returns what the device keeps of one conversation.
    fn cold_and_warm(&mut self, n_tokens: usize) -> u64 {
        // Once for what is compiled at first use.
        let other = self.text(99, n_tokens);
        self.ask(&other);
        let before = self.engine.cache_stats().tiers[0].cached_bytes;
        let prompt = self.text(1, n_tokens);
        let cold = self.ask(&prompt);
        self.report("first token, new conversation", &[cold]);
        let bytes = self.engine.cache_stats().tiers[0].cached_bytes - before;
        println!("{{\"what\": \"bytes of the conversation\", \"bytes\": {bytes}}}");
        let warm = (0..N_TIMES).map(|_| self.ask(&prompt)).collect::<Vec<_>>();
        self.report("first token, the same prompt again", &warm);
        bytes
    }

    /// Two conversations that share half, by turns; each goes on with a few tokens.
    fn switch(&mut self, n_tokens: usize) {
        let shared = self.text(2, n_tokens / 2);
        let rest = [3, 4].map(|who| self.text(who, n_tokens / 2));
        let mut talks = rest.map(|rest| [&shared[..], &rest].concat());
        for talk in &talks {
            self.ask(talk);
        }
        let before = self.engine.cache_stats().tiers[0].cached_bytes;
        let mut answers = Vec::new();
        for turn in 0..2 * N_TIMES {
            let talk = &mut talks[turn % 2];
            talk.push(turn as u32);
            answers.push(self.ask(&talk.clone()));
        }
        self.report("first token, switching between two that share half", &answers);
        let grown = self.engine.cache_stats().tiers[0].cached_bytes - before;
        println!("{{\"what\": \"bytes added by {} switches\", \"bytes\": {grown}}}", 2 * N_TIMES);
    }

    /// A conversation that only the host has, again and again: others push it off the device.
    fn restore(&mut self, n_tokens: usize, bytes: u64) {
        let prompts = [1, 5].map(|who| self.text(who, n_tokens));
        // Computed, and then as the device has it, before the other pushes it off.
        self.tells = true;
        let device = prompts.each_ref().map(|prompt| {
            let answers = [self.ask(prompt), self.ask(prompt)];
            self.report("first token, new and as the device has it", &answers);
            answers[1].first
        });
        let answers = prompts.each_ref().map(|prompt| self.ask(prompt));
        self.report("first token with its log probability, from the host", &answers);
        self.tells = false;
        let most =
            answers.iter().zip(device).map(|(answer, device)| match (answer.first, device) {
                (Some((token, a)), Some((wanted, b))) if token == wanted => (a - b).abs(),
                _ => f32::INFINITY,
            });
        let most = most.fold(0.0, f32::max);
        println!(
            "{{\"what\": \"difference of log probabilities, host or device\", \"max\": {most}}}"
        );
        let answers = (0..2 * N_TIMES).map(|i| self.ask(&prompts[i % 2])).collect::<Vec<_>>();
        self.report("first token, from the host", &answers);
        let best = answers.iter().map(|a| a.first_ms).fold(f64::INFINITY, f64::min);
        let gb_s = bytes as f64 / best / 1e6;
        println!("{{\"what\": \"bytes per second of the fastest\", \"gb_s\": {gb_s:.1}}}");
        self.decode_beside(&prompts);
    }

    /// Time per token of a request that decodes, alone and while conversations are brought up.
    fn decode_beside(&mut self, prompts: &[Vec<u32>; 2]) {
        let row = self.submit(&self.text(7, 512), 1_000_000);
        let (mut alone, mut beside) = (Vec::new(), Vec::new());
        // The first is for what is compiled at first use.
        for turn in 0..=2 * N_TIMES {
            let mut times = Vec::new();
            while times.len() < 40 {
                let mut take = |event| {
                    if matches!(event, Event::Token { .. }) {
                        times.push(Instant::now());
                    }
                };
                self.engine.step(&mut take).map_err(|e| e.message).expect("the engine goes on");
            }
            let gaps_alone = gaps(&times[10..]);
            let mut times = Vec::new();
            let answer = self.answer(&prompts[turn % 2], Some((row, &mut times)));
            let until = times.len().saturating_sub(2);
            if turn > 0 {
                alone.extend(gaps_alone);
                beside.push((answer, gaps(&times[..until])));
            }
        }
        self.engine.cancel(row);
        let mean = |gaps: &[f64]| gaps.iter().sum::<f64>() / gaps.len().max(1) as f64;
        let most = |gaps: &[f64]| gaps.iter().copied().fold(0.0, f64::max);
        let all = beside.iter().flat_map(|(_, gaps)| gaps).copied().collect::<Vec<_>>();
        let answers = beside.into_iter().map(|(answer, _)| answer).collect::<Vec<_>>();
        self.report("first token, from the host beside one that decodes", &answers);
        for (what, gaps) in [("alone", &alone), ("beside restores", &all)] {
            println!(
                "{{\"what\": \"time per token {what}\", \"n\": {}, \"mean_ms\": {:.2}, \
                 \"max_ms\": {:.2}}}",
                gaps.len(),
                mean(gaps),
                most(gaps)
            );
        }
    }
}

fn gaps(times: &[Instant]) -> Vec<f64> {
    times.windows(2).map(|pair| (pair[1] - pair[0]).as_secs_f64() * 1e3).collect()
}
