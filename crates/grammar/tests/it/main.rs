//! Grammars over the vocabulary of the demo model: what masks allow, what they refuse, and what
//! cannot be used.
#![allow(clippy::unwrap_used)]

mod answers;
mod hostile;
mod preambles;

use std::path::Path;

use grammar::{Compiler, Constraint, Grammars, Vocabulary};
use protocol::{Grammar, Rule};

/// Rows of logits; the tokenizer has 2048 entries.
const N_ROWS: usize = 2100;
const END_OF_TEXT: u32 = 2039;
const IM_START: u32 = 2040;
const IM_END: u32 = 2041;
const THINK: u32 = 2042;
const END_THINK: u32 = 2043;

fn vocabulary() -> Vocabulary {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/demo/tokenizer.json");
    Vocabulary::parse(&std::fs::read(path).unwrap(), N_ROWS).unwrap()
}

fn grammars() -> Grammars {
    Grammars::new(Compiler::new(vocabulary()).unwrap().into(), 8 << 20)
}

fn at_once(rule: Rule) -> Grammar {
    Grammar { rule, reasoning: None }
}

fn regex(text: &str) -> Rule {
    Rule::Regex(text.to_owned())
}

fn lark(text: &str) -> Rule {
    Rule::Lark(text.to_owned())
}

fn schema(text: &str) -> Rule {
    Rule::JsonSchema(text.to_owned())
}

/// The token that spells exactly this.
fn token(vocabulary: &Vocabulary, text: &str) -> u32 {
    let mut all = 0..N_ROWS as u32;
    all.find(|token| vocabulary.text(*token) == text.as_bytes()).expect(text)
}

fn allowed(constraint: &mut Constraint) -> Vec<u32> {
    let mask = constraint.mask().unwrap();
    (0..N_ROWS as u32).filter(|token| mask.allows(*token)).collect()
}

/// Splitmix64.
struct Rng(u64);

impl Rng {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % n as u64) as usize
    }
}
