//! Many requests in one pass: what one says does not depend on the others.

use protocol::{Event, FinishReason, GenerateRequest, RequestId, Sampling};

use crate::common::twice::{Rng, Twice, bytes_of_ten, models};
use crate::common::{request, run};

const N: u64 = 32;

/// Prompts of one token to several chunks, answers of one token to many; a few share a beginning.
fn mixed() -> Vec<GenerateRequest> {
    let mut rng = Rng(21);
    let shared = rng.tokens(70);
    (0..N)
        .map(|i| {
            let n = 1 + rng.below(if i % 4 == 0 { 130 } else { 40 });
            let own = rng.tokens(n);
            let prompt = if i % 5 == 0 { [&shared[..], &own].concat() } else { own };
            GenerateRequest {
                top_logprobs: Some(4),
                ..request(100 + i, &prompt, 1 + rng.below(12) as u32)
            }
        })
        .collect()
}

#[test]
fn an_answer_is_the_same_alone_and_among_31_others() {
    for (i, model) in models().enumerate() {
        let mut twice = Twice::new(model, Default::default());
        twice.ask_together(&mixed(), i % 3);
        assert!(twice.n_compared > 400, "{model}: {}", twice.n_compared);
    }
}

#[test]
fn a_deterministic_answer_is_the_same_among_others_bit_for_bit() {
    for model in models() {
        let mut twice = Twice::deterministic(model, Default::default());
        twice.ask_together(&mixed()[..12], 2);
        assert!(twice.n_compared > 150 && twice.worst == 0.0, "{model}: {}", twice.worst);
    }
}

#[test]
fn requests_that_memory_cannot_hold_together_take_turns() {
    for model in models() {
        let device_bytes = Some(bytes_of_ten(model) / 4);
        let settings = || protocol::CacheSettings { device_bytes, ..Default::default() };
        for host_bytes in [Some(1 << 30), Some(0)] {
            let settings = protocol::CacheSettings { host_bytes, ..settings() };
            let mut twice = Twice::new(model, settings);
            let mut rng = Rng(23);
            let asked = (0..12).map(|i| GenerateRequest {
                top_logprobs: Some(4),
                ..request(100 + i, &rng.tokens(30), 60)
            });
            twice.ask_together(&asked.collect::<Vec<_>>(), 0);
            assert!(twice.n_compared > 400, "{model}: {}", twice.n_compared);
            let device = twice.engine.cache_stats().tiers[0];
            assert_eq!(device.live_bytes, 0, "{model}");
        }
    }
}

#[test]
fn rows_with_settings_of_their_own_share_a_pass() {
    let settings = |i: u64| Sampling {
        temperature: [0.0, 0.7, 1.3][i as usize % 3],
        top_k: [0, 5][i as usize % 2],
        repetition_penalty: if i % 4 == 3 { 1.2 } else { 1.0 },
        logit_bias: if i % 5 == 4 { vec![(7, 3.0)] } else { vec![] },
        seed: i,
        ..Sampling::greedy()
    };
    let with_penalties = |i: u64| i < 16;
    for is_first in [true, false] {
        let mut twice = Twice::new("qwen3_affine8_32_tied", Default::default());
        let asked = mixed().into_iter().enumerate().map(|(i, asked)| GenerateRequest {
            sampling: settings(i as u64),
            max_tokens: 9,
            top_logprobs: (i % 2 == 0).then_some(3),
            ..asked
        });
        let asked = asked.filter(|r| is_first || with_penalties(r.sampling.seed));
        twice.ask_together(&asked.collect::<Vec<_>>(), 1);
        assert!(twice.n_compared > 100);
    }
}

#[test]
fn those_who_leave_disturb_nobody() {
    for model in models() {
        let mut twice = Twice::new(model, Default::default());
        let asked = mixed().into_iter().map(|r| GenerateRequest { max_tokens: 20, ..r });
        let asked = asked.collect::<Vec<_>>();
        for request in &asked {
            twice.engine.submit(request.clone()).map_err(|e| e.message).unwrap();
        }
        let (mut events, mut rng) = (Vec::new(), Rng(29));
        let mut gone = Vec::new();
        for _ in 0..24 {
            let step = twice.engine.step(&mut |event| events.push(event));
            step.map_err(|e| e.message).unwrap();
            let id = RequestId(100 + rng.below(N as usize) as u64);
            if id.0.is_multiple_of(2) {
                twice.engine.cancel(id);
                gone.push(id);
            }
        }
        events.extend(run(&mut twice.engine));
        for asked in asked.into_iter().filter(|r| !gone.contains(&r.id)) {
            let mine = |event: &&Event| matches!(event, Event::Token { id, .. } if *id == asked.id);
            assert_eq!(events.iter().filter(mine).count(), 20, "{model}");
            let ended = events.iter().filter(|event| {
                matches!(event, Event::Finished { id, reason: FinishReason::Length, .. }
                    if *id == asked.id)
            });
            assert_eq!(ended.count(), 1, "{model}");
        }
        assert_eq!(twice.engine.cache_stats().tiers[0].live_bytes, 0, "{model}");
    }
}
