//! Memory: what requests took comes back, to the byte, once the cache is as large as it may be, and
//! what one kind of layer has too much another gets.
#![allow(clippy::unwrap_used)]

#[path = "../common/mod.rs"]
mod common;

use std::sync::{Mutex, PoisonError};

use common::twice::{CHUNK_TOKENS, Rng};
use common::{engine_in_chunks, engine_of, request, run};
use engine::Engine;
use protocol::{CacheSettings, Event, GenerateRequest};

/// MLX's counters are of the process: one test at a time.
static COUNTERS: Mutex<()> = Mutex::new(());

#[test]
fn ten_thousand_decode_steps_leave_active_memory_flat() {
    let _alone = COUNTERS.lock().unwrap_or_else(PoisonError::into_inner);
    let device_bytes = Some(300_000);
    let settings = CacheSettings { device_bytes, ..CacheSettings::default() };
    let mut engine = engine_of("qwen3_affine8_32_tied", settings);
    let mut cycle = |i: u64| {
        engine.submit(request(i, &[(i % 72) as u32, 4, 4], 250)).map_err(|e| e.message).unwrap();
        run(&mut engine);
        mlx::memory::active_bytes().unwrap()
    };
    let full = (0..10).map(&mut cycle).max().unwrap();
    for i in 10..50 {
        assert_eq!(cycle(i), full, "after request {i}");
    }
    assert!(engine.cache_stats().tiers[0].n_evicted > 0);
}

/// Whose, which token, and the best ones with their log probabilities.
type Drawn = (u64, u32, Vec<(u32, f32)>);

/// Asks prompts that share nothing, four at a time.
fn ask(engine: &mut Engine, rng: &mut Rng, n_tokens: usize) -> Vec<Drawn> {
    for i in 0..4 {
        let prompt = rng.tokens(n_tokens + i);
        let asked = GenerateRequest { top_logprobs: Some(2), ..request(i as u64, &prompt, 5) };
        engine.submit(asked).map_err(|e| e.message).unwrap();
    }
    let tokens = run(engine).into_iter().filter_map(|event| match event {
        Event::Token { id, token, top, .. } => Some((id.0, token, top)),
        Event::Failed { message, .. } => panic!("{message}"),
        _ => None,
    });
    tokens.collect()
}

#[test]
fn pools_of_all_groups_stay_within_the_budget_when_the_mix_shifts() {
    let _alone = COUNTERS.lock().unwrap_or_else(PoisonError::into_inner);
    for model in ["gpt_oss_mxfp4", "qwen3_next_affine4_32"] {
        let budget = 500_000;
        let engine = |device_bytes| {
            let settings = CacheSettings { device_bytes, ..CacheSettings::default() };
            engine_in_chunks(model, settings, Some(CHUNK_TOKENS as u32), true)
        };
        let (mut plenty, mut small) = (engine(None), engine(Some(budget)));
        let mut expected = Vec::new();
        let shift = |engine: &mut Engine, mut each: Box<dyn FnMut(Vec<_>) + '_>| {
            let mut rng = Rng(20);
            for n_tokens in [CHUNK_TOKENS + 3, 350, CHUNK_TOKENS + 3, 350] {
                (0..12).for_each(|_| each(ask(engine, &mut rng, n_tokens)));
            }
        };
        shift(&mut plenty, Box::new(|answers| expected.push(answers)));
        // What the first pass makes and keeps is no pool.
        let before = mlx::memory::active_bytes().unwrap();
        let (mut most, mut nth) = (0, 0);
        shift(
            &mut small,
            Box::new(|answers| {
                assert_eq!(answers, expected[nth], "{model}: {nth}");
                most = most.max(mlx::memory::active_bytes().unwrap() - before);
                nth += 1;
            }),
        );
        println!("{model}: at most {most} bytes, budget {budget}");
        assert!(small.cache_stats().tiers[0].n_evicted > 100, "{model}");
        assert!(most as u64 <= budget + budget / 8 + (32 << 10), "{model}: {most}");
    }
}
