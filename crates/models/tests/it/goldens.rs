//! Every float golden: logits from transformers in f32, whole and in chunks.

use models::LoadOptions;

use crate::folder::{self, case_tokens, difference, expected, folder_of, json, logits};

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
        for chunk in [tokens.len(), 1, 3, 7] {
            let found = logits(&loaded, &tokens, chunk);
            let (relative, kl) = difference(&found, &wanted, loaded.info.vocab_size as usize);
            assert!(
                relative <= TOLERANCE && kl <= TOLERANCE_KL,
                "{} in chunks of {chunk}: relative {relative:.2e}, KL {kl:.2e}",
                case.display()
            );
        }
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
