//! Times what grammars cost with the vocabulary of a tokenizer.json: reading it, compiling, a mask
//! for each token of an answer (the least of several walks), copying what is compiled.
//!
//! `cargo run --release -p grammar --example masks -- models/demo/tokenizer.json 2048`
#![allow(clippy::unwrap_used)]

use std::collections::HashMap;
use std::time::{Duration, Instant};

use grammar::{Compiler, Constraint, Grammars, Vocabulary};
use protocol::{Grammar, Rule};

const PERSON: &str = r#"{"type": "object", "additionalProperties": false, "properties": {
    "name": {"type": "string"}, "age": {"type": "integer"}, "email": {"type": "string"},
    "tags": {"type": "array", "items": {"enum": ["new", "old", "vip"]}}},
    "required": ["name", "age", "email", "tags"]}"#;
const PERSON_ANSWER: &str = r#"{"name": "Ada Lovelace, countess and first programmer", "age": 36,
  "email": "ada@analytical.example", "tags": ["vip", "old"]}"#;

/// Each begins with automata that nobody has used.
const N_WALKS: usize = 15;

fn main() {
    let mut args = std::env::args().skip(1);
    let path = args.next().expect("the path of a tokenizer.json");
    let n_rows = args.next().expect("rows of logits").parse::<usize>().unwrap();
    let bytes = std::fs::read(path).unwrap();
    let began = Instant::now();
    let vocabulary = Vocabulary::parse(&bytes, n_rows).unwrap();
    println!("read the vocabulary: {:?}", began.elapsed());
    let tokens = (0..n_rows as u32).map(|token| (vocabulary.text(token).to_vec(), token));
    let tokens = tokens.filter(|(text, _)| !text.is_empty()).collect::<HashMap<_, _>>();
    let began = Instant::now();
    let mut grammars = Grammars::new(Compiler::new(vocabulary).unwrap().into(), 64 << 20);
    println!("prepare it: {:?}", began.elapsed());
    let lark = "start: item (\"\\n\" item)*\nitem: \"- \" /[^\\n]{1,60}/\n";
    let cases = [
        ("json_object", Rule::JsonSchema(r#"{"type": "object"}"#.into()), PERSON_ANSWER),
        ("json_schema", Rule::JsonSchema(PERSON.into()), PERSON_ANSWER),
        (
            "regex",
            Rule::Regex(r"\d{4}-\d{2}-\d{2}T[a-z ]+".into()),
            "2026-08-01Tthe first of the month",
        ),
        ("lark", Rule::Lark(lark.into()), "- one thing to do\n- and another one\n- the last"),
    ];
    for (name, rule, answer) in cases {
        measure(&mut grammars, &tokens, name, rule, answer);
    }
    for n in [100, 300, 500] {
        let property = |i| format!(r#""property_{i}": {{"type": "string"}}"#);
        let list = (0..n).map(property).collect::<Vec<_>>().join(",");
        let wide = format!(r#"{{"type": "object", "properties": {{{list}}}}}"#);
        let name = format!("{n} properties");
        measure(
            &mut grammars,
            &tokens,
            &name,
            Rule::JsonSchema(wide),
            r#"{"property_7": "x y z"}"#,
        );
    }
}

fn measure(
    grammars: &mut Grammars,
    tokens: &HashMap<Vec<u8>, u32>,
    name: &str,
    rule: Rule,
    answer: &str,
) {
    let grammar = Grammar { rule, reasoning: None };
    let before = (grammars.kept_bytes(), resident_bytes());
    let began = Instant::now();
    let constraint = grammars.begin(&grammar, &[]);
    let compiled = began.elapsed();
    if let Err(error) = constraint {
        return println!("{name}: refused after {compiled:?}: {error}");
    }
    let bytes = grammars.kept_bytes().saturating_sub(before.0);
    let began = Instant::now();
    drop(grammars.begin(&grammar, &[]).unwrap());
    println!(
        "{name}: compiled in {compiled:?}, copied in {:?}, counted as {bytes} bytes, process grew \
         by {}",
        began.elapsed(),
        resident_bytes().saturating_sub(before.1),
    );
    let walks = (0..N_WALKS).map(|_| walk(grammars.begin(&grammar, &[]).unwrap(), tokens, answer));
    let least = walks.reduce(|a, b| a.into_iter().zip(b).map(|(a, b)| least(a, b)).collect());
    let (masks, accepts): (Vec<_>, Vec<_>) = least.unwrap().into_iter().unzip();
    println!("  masks [us]: {}", micros(&masks));
    println!("  accepts [us]: {}", micros(&accepts));
}

fn least(a: (Duration, Duration), b: (Duration, Duration)) -> (Duration, Duration) {
    (a.0.min(b.0), a.1.min(b.1))
}

/// Goes through an answer with the longest tokens that spell it: time of each mask and of each
/// step.
fn walk(
    mut constraint: Constraint,
    tokens: &HashMap<Vec<u8>, u32>,
    answer: &str,
) -> Vec<(Duration, Duration)> {
    let mut times = Vec::new();
    let mut rest = answer.as_bytes();
    while !rest.is_empty() {
        let known = |n: &usize| tokens.contains_key(&rest[..*n]);
        let n = (1..=rest.len().min(32)).rev().find(known).expect("every byte has a token");
        let (text, after) = rest.split_at(n);
        let began = Instant::now();
        let mask = constraint.mask().unwrap();
        let masked = began.elapsed();
        assert!(mask.allows(tokens[text]), "{}", String::from_utf8_lossy(rest));
        let began = Instant::now();
        constraint.accept(tokens[text]).unwrap();
        times.push((masked, began.elapsed()));
        rest = after;
    }
    times
}

fn micros(times: &[Duration]) -> String {
    let mut sorted = times.to_vec();
    sorted.sort_unstable();
    let all = times.iter().map(|time| time.as_micros().to_string()).collect::<Vec<_>>().join(" ");
    let (n, mean) = (times.len(), times.iter().sum::<Duration>() / times.len() as u32);
    format!("{all}\n    n {n}, mean {mean:?}, median {:?}, most {:?}", sorted[n / 2], sorted[n - 1])
}

/// Of this process, where Linux says so.
fn resident_bytes() -> u64 {
    let text = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages = text.split(' ').nth(1).and_then(|pages| pages.parse::<u64>().ok());
    pages.unwrap_or(0) * 4096
}
