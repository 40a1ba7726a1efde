//! Every float golden: logits from transformers in f32, whole, in chunks, as one of two rows of
//! different length, over buffers and over pools of blocks, and resumed in the middle.

use std::path::Path;

use mlx::{Array, Dtype};
use models::{LoadOptions, Loaded, Step};
use serde_json::Value;

use crate::folder::{self, case_tokens, difference, expected, folder_of, json, logits};
use crate::pools::{self, Pools};

pub const TOLERANCE: f64 = 1e-4;
pub const TOLERANCE_KL: f64 = 1e-6;

fn check(family: &str) {
    for (i, case) in folder::cases(family).iter().enumerate() {
        let facts = json(&case.join("case.json"));
        let tokens = case_tokens(&facts);
        let wanted = expected(case, "expected.f32");
        let dir = folder_of(case, 1 + i % 2);
        let rope_tokens = facts["rope_length"].as_i64().map(|n| n as i32);
        let options = LoadOptions { rope_tokens, ..LoadOptions::default() };
        let loaded = folder::load(dir.path(), &options)
            .unwrap_or_else(|e| panic!("{}: {e}", case.display()));
        assert_eq!(loaded.info.family, family);
        let n_cols = loaded.info.vocab_size as usize;
        let agree = |found: &[f32], wanted: &[f32], how: &str| {
            let (relative, kl) = difference(found, wanted, n_cols);
            assert!(
                relative <= TOLERANCE && kl <= TOLERANCE_KL,
                "{} {how}: relative {relative:.2e}, KL {kl:.2e}",
                case.display()
            );
        };
        for chunk in [tokens.len(), 1, 3, 7] {
            agree(&logits(&loaded, &tokens, chunk), &wanted, &format!("in chunks of {chunk}"));
            let found = pools::logits(&loaded, &tokens, chunk);
            agree(&found, &wanted, &format!("over blocks, in chunks of {chunk}"));
        }
        let last = tokens.len() as i32 - 1;
        for (at, found) in pools::resumed(&loaded, &tokens, &[1, 2, 5, 16, last]) {
            agree(&found, &wanted[at * n_cols..], &format!("resumed at {at}"));
        }
        if facts.get("tokens_b").is_some() {
            for over_blocks in [false, true] {
                check_two_rows(&loaded, case, &facts, &wanted, over_blocks);
            }
        }
    }
}

/// Both prompts of a case in one batch: most of each at once, then token by token, the last ones of
/// the longer row alone.
fn check_two_rows(
    loaded: &Loaded,
    case: &Path,
    facts: &Value,
    wanted_a: &[f32],
    over_blocks: bool,
) {
    let row = |key: &str| case_tokens(&serde_json::json!({ "tokens": facts[key] }));
    let (a, b) = (row("tokens"), row("tokens_b"));
    let mut pools = Pools::new(loaded);
    if !over_blocks {
        pools.states = loaded.model.new_state();
    }
    let mut at = [0, 0];
    let mut found = [Vec::new(), Vec::new()];
    let first = [[a.len() - 6, b.len() - 4], [1, 1], [2, 3]];
    let rest = (0..3).map(|_| [1, 0]);
    for lengths in first.into_iter().chain(rest) {
        let n = lengths[0].max(lengths[1]);
        let part = |tokens: &[i32], at: usize, len: usize| {
            (0..n).map(|i| if i < len { tokens[at + i] } else { 0 }).collect::<Vec<_>>()
        };
        let ids = [part(&a, at[0], lengths[0]), part(&b, at[1], lengths[1])].concat();
        let ids = Array::from_slice(&ids, &[2, n as i32]).unwrap();
        let step = Step::ragged(&at.map(|n| n as i32), &lengths.map(|n| n as i32)).unwrap();
        let step = match over_blocks {
            true => step.over_blocks(pools.tables(&at, &lengths, 0)).unwrap(),
            false => step,
        };
        let hidden = loaded.model.forward(&ids, &step, &mut pools.states).unwrap();
        let logits = loaded.model.logits(&hidden).unwrap().astype(Dtype::F32).unwrap();
        for i in 0..2 {
            let own = logits.slice_axis(0, i as i32..i as i32 + 1).unwrap();
            let own = own.slice_axis(1, 0..lengths[i] as i32).unwrap();
            found[i].extend(own.to_f32_vec().unwrap());
            at[i] += lengths[i];
        }
    }
    let wanted_b = expected(case, "expected_b.f32");
    for (name, found, wanted) in [("first", &found[0], wanted_a), ("second", &found[1], &wanted_b)]
    {
        let (relative, kl) = difference(found, wanted, loaded.info.vocab_size as usize);
        assert!(
            relative <= TOLERANCE && kl <= TOLERANCE_KL,
            "{}, {name} of two rows, blocks: {over_blocks}: relative {relative:.2e}, KL {kl:.2e}",
            case.display()
        );
    }
}

#[test]
fn llama_agrees_with_transformers() {
    check("llama");
}

#[test]
fn mistral_agrees_with_transformers() {
    check("mistral");
}

#[test]
fn qwen2_agrees_with_transformers() {
    check("qwen2");
}

#[test]
fn qwen3_agrees_with_transformers() {
    check("qwen3");
}

#[test]
fn qwen3_moe_agrees_with_transformers() {
    check("qwen3_moe");
}

#[test]
fn qwen3_next_agrees_with_transformers() {
    check("qwen3_next");
}

#[test]
fn qwen3_5_agrees_with_transformers() {
    check("qwen3_5");
}

#[test]
fn qwen3_5_moe_agrees_with_transformers() {
    check("qwen3_5_moe");
}

#[test]
fn glm4_moe_lite_agrees_with_transformers() {
    check("glm4_moe_lite");
}

#[test]
fn gpt_oss_agrees_with_transformers() {
    check("gpt_oss");
}

#[test]
fn gemma3_text_agrees_with_transformers() {
    check("gemma3_text");
}
