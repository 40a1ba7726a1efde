//! What is decoded, alone, in batches and beside prompts, has the log probabilities that one pass
//! over the same tokens gives: a model of a known shape with random weights is asked in all these
//! ways, and every token that it drew is held against that pass.
//!
//! ```text
//! cargo run --release -p engine --example parity -- SHAPE QUANTIZATION LAYERS
//! cargo run --release -p engine --example parity -- qwen3-30b-a3b 4bit 4
//! ```
//! Prints how many tokens were compared and how far apart they are; ends with an error if they are
//! farther than 16-bit floats explain.
#![allow(clippy::unwrap_used)]

#[path = "../tests/common/mod.rs"]
mod common;

use std::collections::BTreeMap;

use common::{engine_of_shape, prompt, request};
use engine::Engine;
use protocol::{CacheSettings, Event, GenerateRequest, LogitsRequest, RequestId};

const NEW_TOKENS: u32 = 80;
/// More than sums over a few layers in another order explain, in bf16.
const FAR: f64 = 0.1;
/// One of so many tokens may be: where the next expert was nearly as good, another one is chosen.
const MAX_FAR: usize = 20;

fn main() {
    let args = std::env::args().skip(1).collect::<Vec<_>>();
    let [name, quantization, n_layers] = &args[..] else {
        eprintln!("usage: parity SHAPE QUANTIZATION LAYERS");
        std::process::exit(2);
    };
    let n_layers = Some(n_layers.parse().expect("LAYERS is a number"));
    let engine = engine_of_shape(name, quantization, n_layers, CacheSettings::default());
    let mut run = Run { engine, asked: BTreeMap::new(), drawn: BTreeMap::new() };
    run.ask(300);
    run.finish();
    // Several at once, some of them beside a long prompt that comes while they decode.
    (0..5).for_each(|i| run.ask(40 + 37 * i));
    run.until_drawn(20);
    run.ask(3_000);
    run.finish();
    // Rows that leave one by one, and one whose prompt is known.
    (0..3).for_each(|i| run.ask(500 + i));
    run.again();
    run.finish();
    let apart = run.compare();
    let (n, most) = (apart.len(), apart.last().copied().unwrap_or(0.0));
    let n_far = apart.iter().filter(|apart| **apart > FAR).count();
    println!("{n} tokens compared: at most {most:.4} apart, {n_far} more than {FAR}");
    assert!(n > 0 && n_far * MAX_FAR <= n, "more than one in {MAX_FAR} is far");
}

struct Run {
    engine: Engine,
    asked: BTreeMap<RequestId, Vec<u32>>,
    drawn: BTreeMap<RequestId, Vec<(u32, f32)>>,
}

impl Run {
    fn ask(&mut self, n_prompt: usize) {
        let prompt = prompt(&self.engine, self.asked.len() + 1, n_prompt);
        self.submit(prompt);
    }

    /// The first prompt once more.
    fn again(&mut self) {
        let first = self.asked.values().next().expect("something was asked").clone();
        self.submit(first);
    }

    fn submit(&mut self, prompt: Vec<u32>) {
        let id = RequestId(self.asked.len() as u64 + 1);
        let n_new = NEW_TOKENS - (id.0 % 7) as u32 * 5;
        let request = GenerateRequest { top_logprobs: Some(0), ..request(id.0, &prompt, n_new) };
        self.asked.insert(id, prompt);
        self.engine.submit(request).map_err(|e| e.message).expect("it is accepted");
    }

    /// Whether there is more to do.
    fn step(&mut self) -> bool {
        let drawn = &mut self.drawn;
        let mut emit = |event| match event {
            Event::Token { id, token, logprob, .. } => {
                let logprob = logprob.expect("it was asked for");
                drawn.entry(id).or_default().push((token, logprob));
            }
            Event::Failed { message, .. } => panic!("{message}"),
            _ => {}
        };
        self.engine.step(&mut emit).map_err(|e| e.message).expect("the engine goes on")
    }

    fn finish(&mut self) {
        while self.step() {}
    }

    fn until_drawn(&mut self, n: usize) {
        let newest = *self.asked.keys().last().expect("something was asked");
        while self.drawn.get(&newest).map_or(0, Vec::len) < n && self.step() {}
    }

    /// How far each token's log probability is from the one that a pass gives, ascending.
    fn compare(&mut self) -> Vec<f64> {
        let mut apart = Vec::new();
        for (id, prompt) in std::mem::take(&mut self.asked) {
            let drawn = &self.drawn[&id];
            let tokens = prompt.iter().copied().chain(drawn.iter().map(|(token, _)| *token));
            let tokens = tokens.collect::<Vec<_>>();
            let request = LogitsRequest { id, tokens: tokens.clone(), chunk_tokens: None };
            let vocab = self.engine.info().vocab_size as usize;
            let mut take = |first: u32, rows: &[f32]| {
                for (i, row) in rows.chunks_exact(vocab).enumerate() {
                    let next = first as usize + i + 1;
                    let Some((token, found)) =
                        next.checked_sub(prompt.len()).and_then(|i| drawn.get(i))
                    else {
                        continue;
                    };
                    let top = row.iter().fold(f32::NEG_INFINITY, |top, x| top.max(*x));
                    let sum = row.iter().map(|x| f64::from(x - top).exp()).sum::<f64>();
                    let wanted = f64::from(row[*token as usize] - top) - sum.ln();
                    apart.push((wanted - f64::from(*found)).abs());
                }
            };
            let done = self.engine.logits(&request, &mut take, &mut || false);
            done.map_err(|e| e.message).expect("logits are computed");
        }
        apart.sort_by(f64::total_cmp);
        apart
    }
}
