//! What a grammar that is not compiled costs those who answer already: the longest gap between two
//! tokens of a row, alone, and beside requests that each bring a large schema of their own. Several
//! times over, and the least of the longest gaps: what else the machine does is in the others.
//!
//! ```text
//! cargo run --release -p engine --example grammar_gap -- FOLDER [SCHEMAS]
//! cargo run --release -p engine --example grammar_gap -- models/demo 5
//! ```
//! Prints a JSON object per figure. Names of properties differ from schema to schema, so that no
//! two are the same rule; reading the tokenizer is in none of the figures.
#![allow(clippy::unwrap_used)]

#[path = "../tests/common/mod.rs"]
mod common;

use std::ops::ControlFlow;
use std::time::Instant;

use engine::Engine;
use protocol::{
    CacheSettings, Event, GenerateRequest, Grammar, LoadRequest, ModelSource, RequestId, Rule,
};

const N_PROPERTIES: usize = 400;
/// Tokens of the row between two schemas.
const STRIDE_TOKENS: usize = 60;
const N_RUNS: usize = 15;

fn main() {
    let args = std::env::args().skip(1).collect::<Vec<_>>();
    let [path, rest @ ..] = &args[..] else {
        eprintln!("usage: grammar_gap FOLDER [SCHEMAS]");
        std::process::exit(2);
    };
    let n_schemas = rest.first().map_or(5, |n| n.parse().expect("SCHEMAS is a number"));
    let request = LoadRequest {
        source: ModelSource::Folder { path: path.clone() },
        cache: CacheSettings::default(),
        chunk_tokens: None,
        deterministic: false,
        max_rows: None,
    };
    let engine = Engine::load(&request, None, &mut |_, _| ControlFlow::Continue(()));
    let engine = engine.map_err(|e| e.message).expect("the model loads");
    let mut run = Run { engine, n_asked: 0 };
    run.longest_gap_ms(1);
    for n in [0, n_schemas] {
        let mut gaps = (0..N_RUNS).map(|_| run.longest_gap_ms(n)).collect::<Vec<_>>();
        gaps.sort_unstable_by(f64::total_cmp);
        println!(
            "{{\"what\": \"longest gap\", \"schemas\": {n}, \"least_ms\": {:.2}, \
             \"median_ms\": {:.2}}}",
            gaps[0],
            gaps[N_RUNS / 2],
        );
    }
}

struct Run {
    engine: Engine,
    n_asked: u64,
}

impl Run {
    /// Between two tokens of a row, while so many schemas come.
    fn longest_gap_ms(&mut self, n_schemas: usize) -> f64 {
        let n_tokens = (n_schemas.max(5) + 1) * STRIDE_TOKENS;
        let row = self.submit(n_tokens as u32, None);
        let (mut times, mut n_here, mut n_ended) = (Vec::<Instant>::new(), 0, 0);
        let mut is_busy = true;
        while is_busy {
            if n_here < n_schemas && times.len() > STRIDE_TOKENS * (n_here + 1) {
                n_here += 1;
                self.submit(4, Some(schema(self.n_asked)));
            }
            let stepped = self.engine.step(&mut |event| match event {
                Event::Token { id, .. } if id == row => times.push(Instant::now()),
                Event::Failed { message, .. } => panic!("{message}"),
                Event::Finished { .. } => n_ended += 1,
                _ => {}
            });
            is_busy = stepped.map_err(|e| e.message).expect("the engine goes on");
        }
        assert_eq!((times.len(), n_ended), (n_tokens, n_here + 1), "all ended");
        let gap = |pair: &[Instant]| pair[1].duration_since(pair[0]).as_secs_f64() * 1e3;
        times.windows(2).map(gap).fold(0.0, f64::max)
    }

    fn submit(&mut self, max_tokens: u32, rule: Option<Rule>) -> RequestId {
        self.n_asked += 1;
        let prompt = (10..40).collect::<Vec<_>>();
        let request = GenerateRequest {
            grammar: rule.map(|rule| Grammar { rule, reasoning: None }),
            ..common::request(self.n_asked, &prompt, max_tokens)
        };
        let id = request.id;
        self.engine.submit(request).map_err(|e| e.message).expect("it is accepted");
        id
    }
}

/// Hundreds of properties with enumerations, patterns, numbers and nested objects.
fn schema(no: u64) -> Rule {
    let property = |i: usize| {
        let kind = match i % 5 {
            0 => r#"{"enum": ["red", "green", "blue", "none of these"]}"#.to_owned(),
            1 => format!(r#"{{"type": "string", "pattern": "^[A-Z]{{2,6}}-[0-9]{{{}}}$"}}"#, i % 7),
            2 => r#"{"type": "integer", "minimum": 3, "maximum": 40000}"#.to_owned(),
            3 => r#"{"type": "string", "maxLength": 80}"#.to_owned(),
            _ => format!(r#"{{"type": "object", "properties": {{"k{i}": {{"type": "number"}}}}}}"#),
        };
        format!(r#""schema_{no}_property_{i}": {kind}"#)
    };
    let list = (0..N_PROPERTIES).map(property).collect::<Vec<_>>().join(",");
    Rule::JsonSchema(format!(r#"{{"type": "object", "properties": {{{list}}}}}"#))
}
