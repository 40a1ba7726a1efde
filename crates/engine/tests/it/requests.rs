//! Requests through the engine: the tokens of a plain loop, whatever else runs; ends, cancels and
//! refusals.

use engine::{Engine, Outcome};
use protocol::{
    BenchRequest, Event, FinishReason, GenerateRequest, LogitsRequest, RequestId, Sampling,
};

use crate::common::{engine, engine_of_rows, request, run};

fn tokens_of(events: &[Event], wanted: u64) -> Vec<u32> {
    let token = |event: &Event| match event {
        Event::Token { id, token, .. } if id.0 == wanted => Some(*token),
        _ => None,
    };
    events.iter().filter_map(token).collect()
}

fn reason_of(events: &[Event], wanted: u64) -> Option<FinishReason> {
    events.iter().find_map(|event| match event {
        Event::Finished { id, reason, .. } if id.0 == wanted => Some(*reason),
        _ => None,
    })
}

/// The logits after all tokens, computed anew.
fn last_logits(engine: &mut Engine, tokens: &[u32]) -> Vec<f32> {
    let mut last = Vec::new();
    let vocab = engine.info().vocab_size as usize;
    let request = LogitsRequest { id: RequestId(0), tokens: tokens.to_vec(), chunk_tokens: None };
    let mut rows = |_, values: &[f32]| last = values[values.len() - vocab..].to_vec();
    engine.logits(&request, &mut rows, &mut || false).map_err(|e| e.message).unwrap();
    last
}

#[test]
fn greedy_decoding_takes_the_best_token_of_recomputed_logits() {
    let mut engine = engine();
    let prompt = [5, 17, 60, 2, 2, 41, 8];
    engine.submit(request(1, &prompt, 12)).map_err(|e| e.message).unwrap();
    let events = run(&mut engine);
    let chosen = tokens_of(&events, 1);
    assert_eq!(chosen.len(), 12);
    for i in 0..12 {
        let tokens = [&prompt[..], &chosen[..i]].concat();
        let logits = last_logits(&mut engine, &tokens);
        let (low, high) =
            logits.iter().fold((f32::MAX, f32::MIN), |(low, high), x| (low.min(*x), high.max(*x)));
        // Sums of one row and of many are ordered otherwise, and the model computes in 16 bits.
        let behind = (high - logits[chosen[i] as usize]) / (high - low);
        assert!(behind < 0.01, "token {i} is {behind} of the range behind the best");
    }
    assert_eq!(reason_of(&events, 1), Some(FinishReason::Length));
}

#[test]
fn a_stop_token_is_sent_and_ends_the_request() {
    let mut engine = engine();
    let prompt = [5, 17, 60, 2, 2, 41, 8];
    engine.submit(request(1, &prompt, 30)).map_err(|e| e.message).unwrap();
    let all = tokens_of(&run(&mut engine), 1);
    let stop = all[4];
    let n = all.iter().position(|&t| t == stop).unwrap() + 1;
    engine
        .submit(GenerateRequest { stop_tokens: vec![stop], ..request(2, &prompt, 30) })
        .map_err(|e| e.message)
        .unwrap();
    let events = run(&mut engine);
    assert_eq!(tokens_of(&events, 2), all[..n]);
    assert_eq!(reason_of(&events, 2), Some(FinishReason::Stop));
}

#[test]
fn what_else_runs_changes_no_token() {
    let mut engine = engine();
    let sampling = |i: u64| Sampling {
        temperature: 0.9,
        top_p: 0.95,
        seed: i,
        repetition_penalty: if i.is_multiple_of(2) { 1.0 } else { 1.3 },
        ..Sampling::greedy()
    };
    let prompt =
        |i: u64| (0..3 + 40 * i as u32).map(|t| (t * 7 + i as u32) % 72).collect::<Vec<_>>();
    let make =
        |i| GenerateRequest { sampling: sampling(i), ..request(i, &prompt(i), 10 + i as u32) };
    let alone = (0..7).map(|i| {
        engine.submit(make(i)).map_err(|e| e.message).unwrap();
        tokens_of(&run(&mut engine), i)
    });
    let alone = alone.collect::<Vec<_>>();
    (0..7).for_each(|i| engine.submit(make(i)).map_err(|e| e.message).unwrap());
    let events = run(&mut engine);
    for (i, wanted) in alone.iter().enumerate() {
        assert_eq!(&tokens_of(&events, i as u64), wanted, "request {i}");
        assert!(reason_of(&events, i as u64).is_some());
    }
}

#[test]
fn a_cancelled_request_says_nothing_more_and_others_go_on() {
    let mut engine = engine_of_rows(4);
    for id in 1..=6 {
        engine.submit(request(id, &[id as u32, 9, 9], 20)).map_err(|e| e.message).unwrap();
    }
    let mut events = Vec::new();
    for _ in 0..5 {
        engine.step(&mut |event| events.push(event)).map_err(|e| e.message).unwrap();
    }
    let (usage, _) = engine.cancel(RequestId(1));
    assert_eq!(usage.new_tokens as usize, tokens_of(&events, 1).len());
    assert_eq!(engine.cancel(RequestId(6)).0.new_tokens, 0, "still waiting");
    assert_eq!(engine.cancel(RequestId(99)).0.new_tokens, 0, "unknown");
    let rest = run(&mut engine);
    assert!(tokens_of(&rest, 1).is_empty() && tokens_of(&rest, 6).is_empty());
    for id in 2..=5 {
        let n = tokens_of(&events, id).len() + tokens_of(&rest, id).len();
        assert_eq!(n, 20, "request {id}");
    }
}

#[test]
fn logprobs_come_with_the_tokens_best_first() {
    let mut engine = engine();
    engine
        .submit(GenerateRequest { top_logprobs: Some(5), ..request(1, &[1, 2, 3], 6) })
        .map_err(|e| e.message)
        .unwrap();
    let mut n_tokens = 0;
    for event in run(&mut engine) {
        let Event::Token { token, logprob, top, .. } = event else { continue };
        n_tokens += 1;
        assert_eq!(top.len(), 5);
        assert_eq!((top[0].0, Some(top[0].1)), (token, logprob), "greedy takes the best");
        assert!(top.windows(2).all(|pair| pair[0].1 >= pair[1].1));
    }
    assert_eq!(n_tokens, 6);
}

#[test]
fn answers_end_where_the_context_does() {
    let mut engine = engine();
    let context = engine.info().context_tokens;
    let prompt = vec![3; context as usize - 4];
    engine.submit(request(1, &prompt, 1000)).map_err(|e| e.message).unwrap();
    let events = run(&mut engine);
    assert_eq!(tokens_of(&events, 1).len(), 4);
    assert_eq!(reason_of(&events, 1), Some(FinishReason::Length));
}

#[test]
fn logits_come_in_chunks_and_can_be_stopped() {
    let mut engine = engine();
    let tokens = (0..23u32).collect::<Vec<_>>();
    let mut collect = |chunk_tokens| {
        let request = LogitsRequest { id: RequestId(1), tokens: tokens.clone(), chunk_tokens };
        let mut all = Vec::new();
        let mut starts = Vec::new();
        let mut rows = |first, values: &[f32]| {
            starts.push(first);
            all.extend_from_slice(values);
        };
        engine.logits(&request, &mut rows, &mut || false).map_err(|e| e.message).unwrap();
        (starts, all)
    };
    let (_, whole) = collect(None);
    let (starts, parts) = collect(Some(7));
    assert_eq!(starts, [0, 7, 14, 21]);
    assert_eq!(whole.len(), 23 * 72);
    let scale = whole.iter().fold(0f32, |m, v| m.max(v.abs()));
    assert!(whole.iter().zip(&parts).all(|(a, b)| (a - b).abs() < 0.03 * scale));
    let request = LogitsRequest { id: RequestId(1), tokens, chunk_tokens: Some(1) };
    let mut n = 0;
    let outcome = engine.logits(&request, &mut |_, _| n += 1, &mut || true).map_err(|e| e.message);
    assert_eq!((outcome.unwrap(), n), (Outcome::Stopped, 0));
}

#[test]
fn logits_of_a_long_chunk_come_in_pieces() {
    let mut engine = engine();
    let tokens = (0..300u32).map(|i| i * 5 % 72).collect::<Vec<_>>();
    let mut collect = |chunk_tokens| {
        let request = LogitsRequest { id: RequestId(1), tokens: tokens.clone(), chunk_tokens };
        let (mut starts, mut all) = (Vec::new(), Vec::new());
        let mut rows = |first, values: &[f32]| {
            starts.push(first);
            all.extend_from_slice(values);
        };
        engine.logits(&request, &mut rows, &mut || false).map_err(|e| e.message).unwrap();
        (starts, all)
    };
    let (starts, pieces) = collect(Some(300));
    assert_eq!(starts, [0, 256]);
    let (_, small) = collect(Some(50));
    assert_eq!((pieces.len(), small.len()), (300 * 72, 300 * 72));
    let scale = small.iter().fold(0f32, |m, v| m.max(v.abs()));
    assert!(pieces.iter().zip(&small).all(|(a, b)| (a - b).abs() < 0.03 * scale));
}

#[test]
fn time_spent_in_the_queue_is_counted() {
    let mut engine = engine_of_rows(4);
    for id in 1..=5 {
        engine.submit(request(id, &[id as u32, 9, 9], 20)).map_err(|e| e.message).unwrap();
    }
    let mut ended = Vec::new();
    for event in run(&mut engine) {
        if let Event::Finished { id, timings, .. } = event {
            ended.push((id.0, timings));
        }
    }
    assert_eq!((ended.len(), ended[4].0), (5, 5));
    let (first, last) = (&ended[0].1, &ended[4].1);
    assert!(last.queue_ms > first.prefill_ms + first.decode_ms, "{first:?} {last:?}");
}

#[test]
fn a_bench_counts_and_measures() {
    let mut engine = engine();
    let request = BenchRequest { id: RequestId(1), prompt_tokens: 20, new_tokens: 12, batch: 3 };
    let outcome = engine.bench(&request, &mut || false).map_err(|e| e.message).unwrap();
    let Outcome::Done(result) = outcome else { panic!("nobody stopped it") };
    assert_eq!(result.batch, 3);
    assert!(result.prefill_tok_s > 0.0 && result.decode_tok_s > 0.0 && result.ttft_ms > 0.0);
    assert!(result.peak_bytes >= result.weight_bytes_per_token);
    let outcome = engine.bench(&request, &mut || true).map_err(|e| e.message).unwrap();
    assert_eq!(outcome, Outcome::Stopped);
}

#[test]
fn a_request_that_memory_cannot_hold_is_refused_with_numbers() {
    let mut engine = engine();
    for batch in [1 << 24, u32::MAX] {
        let request = BenchRequest { id: RequestId(1), prompt_tokens: 400, new_tokens: 100, batch };
        let error = engine.bench(&request, &mut || false).err().unwrap();
        assert_eq!(error.fault, protocol::Fault::World);
        assert!(error.message.contains("MiB are free"), "{}", error.message);
    }
}
