//! The sampler on the device against the same rules in plain f64 arithmetic on the host.

use engine::{Row, sample};
use mlx::{Array, Device};
use protocol::Sampling;

const VOCAB: usize = 37;

/// Irregular logits without ties, different for each `i`.
fn logits(i: usize) -> Vec<f32> {
    (0..VOCAB)
        .map(|t| (((t * t + 7 * t + 13 * i) as f32) * 0.731).sin() * 3.0 + t as f32 * 1e-3)
        .collect()
}

fn random(seed: u64) -> Sampling {
    Sampling { temperature: 1.0, seed, ..Sampling::greedy() }
}

fn row<'a>(sampling: &'a Sampling, tokens: &'a [u32], n_drawn: u64) -> Row<'a> {
    Row { sampling, tokens, n_drawn, top_logprobs: None, allowed: None }
}

/// One token per row.
fn draw(rows: &[(Vec<f32>, Row<'_>)]) -> Vec<u32> {
    Device::open().unwrap();
    let flat = rows.iter().flat_map(|(l, _)| l.iter().copied()).collect::<Vec<_>>();
    let array = Array::from_slice(&flat, &[rows.len() as i32, VOCAB as i32]).unwrap();
    let rows = rows.iter().map(|(_, row)| *row).collect::<Vec<_>>();
    sample(&array, &rows).unwrap().tokens.to_vec::<u32>().unwrap()
}

/// The scores after bias and penalties, by the definition.
fn scores(logits: &[f32], s: &Sampling, tokens: &[u32]) -> Vec<f64> {
    let mut scores = logits.iter().map(|&l| f64::from(l)).collect::<Vec<_>>();
    for (token, bias) in &s.logit_bias {
        scores[*token as usize] += f64::from(*bias);
    }
    let window = match s.penalty_window_tokens as usize {
        0 => tokens.len(),
        n => n.min(tokens.len()),
    };
    let looked_at = &tokens[tokens.len() - window..];
    for (t, score) in scores.iter_mut().enumerate() {
        let count = looked_at.iter().filter(|&&x| x as usize == t).count() as f64;
        if count > 0.0 {
            let r = f64::from(s.repetition_penalty);
            *score = if *score > 0.0 { *score / r } else { *score * r };
            *score -= f64::from(s.frequency_penalty) * count + f64::from(s.presence_penalty);
        }
    }
    scores
}

/// The distribution after temperature and limits, by the definition.
fn distribution(logits: &[f32], s: &Sampling, tokens: &[u32]) -> Vec<f64> {
    let scores =
        scores(logits, s, tokens).iter().map(|l| l / f64::from(s.temperature)).collect::<Vec<_>>();
    let mut order = (0..VOCAB).collect::<Vec<_>>();
    order.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]));
    if s.top_k > 0 {
        order.truncate(s.top_k as usize);
    }
    let total = |order: &[usize]| order.iter().map(|&t| scores[t].exp()).sum::<f64>();
    let all = total(&order);
    let mut sum = 0.0;
    order.retain(|&t| {
        let keep = sum < f64::from(s.top_p);
        sum += scores[t].exp() / all;
        keep
    });
    let best = scores[order[0]];
    order.retain(|&t| scores[t] >= best + f64::from(s.min_p).ln());
    let all = total(&order);
    let mut shares = vec![0.0; VOCAB];
    order.iter().for_each(|&t| shares[t] = scores[t].exp() / all);
    shares
}

fn argmax(values: &[f64]) -> u32 {
    (0..values.len()).max_by(|&a, &b| values[a].total_cmp(&values[b])).unwrap() as u32
}

#[test]
fn greedy_rows_take_the_largest_score_after_bias_and_penalties() {
    let history = [3, 3, 3, 11, 20, 36, 0, 11];
    let settings = [
        Sampling::greedy(),
        Sampling { logit_bias: vec![(5, 2.5), (30, -1.0), (5, 2.5)], ..Sampling::greedy() },
        Sampling { repetition_penalty: 1.7, ..Sampling::greedy() },
        Sampling { presence_penalty: 2.5, ..Sampling::greedy() },
        Sampling { frequency_penalty: 1.1, ..Sampling::greedy() },
        Sampling { frequency_penalty: 1.1, penalty_window_tokens: 2, ..Sampling::greedy() },
        Sampling {
            repetition_penalty: 0.8,
            presence_penalty: -1.0,
            frequency_penalty: 0.3,
            logit_bias: vec![(0, 4.0)],
            ..Sampling::greedy()
        },
    ];
    let mut rows = Vec::new();
    let mut wanted = Vec::new();
    for i in 0..12 {
        for s in &settings {
            // The row's best tokens are made to stand in its history, so that penalties matter.
            let mut l = logits(i);
            history.iter().for_each(|&t| l[t as usize] += 2.0);
            wanted.push(argmax(&scores(&l, s, &history)));
            rows.push((l, row(s, &history, 0)));
        }
    }
    assert_eq!(draw(&rows), wanted);
    for (one, wanted) in rows.into_iter().zip(wanted) {
        assert_eq!(draw(&[one]), [wanted], "alone as in a batch");
    }
}

#[test]
fn the_smallest_temperatures_take_the_best_token() {
    for temperature in [1e-3, 1e-38, f32::MIN_POSITIVE, f32::from_bits(1)] {
        for (top_p, seed) in [(1.0, 1), (0.9, 2)] {
            let s = Sampling { temperature, top_p, ..random(seed) };
            let wanted = argmax(&scores(&logits(seed as usize), &s, &[]));
            let found = draw(&[(logits(seed as usize), row(&s, &[], 0))]);
            assert_eq!(found, [wanted], "temperature {temperature:e}, top_p {top_p}");
        }
    }
}

#[test]
fn draws_follow_the_limited_distribution() {
    let settings = [
        random(1),
        Sampling { temperature: 0.5, ..random(2) },
        Sampling { top_k: 5, ..random(3) },
        Sampling { top_p: 0.7, ..random(4) },
        Sampling { min_p: 0.2, ..random(5) },
        Sampling { temperature: 1.6, top_k: 12, top_p: 0.9, min_p: 0.1, ..random(6) },
        Sampling { top_k: 1000, top_p: 0.5, ..random(7) },
        Sampling { top_p: 1e-6, ..random(8) },
        Sampling {
            temperature: 0.8,
            frequency_penalty: 0.5,
            logit_bias: vec![(9, 3.0)],
            ..random(9)
        },
    ];
    let history = [1u32, 1, 2, 30];
    let n_draws = 3000;
    for (i, s) in settings.iter().enumerate() {
        let l = logits(i);
        let wanted = distribution(&l, s, &history);
        let mut counts = [0.0; VOCAB];
        for batch in 0..n_draws / 100 {
            let rows = (0..100)
                .map(|j| (l.clone(), row(s, &history, batch * 100 + j)))
                .collect::<Vec<_>>();
            draw(&rows).into_iter().for_each(|t| counts[t as usize] += 1.0);
        }
        for (t, (&n, &share)) in counts.iter().zip(&wanted).enumerate() {
            assert!(share > 0.0 || n == 0.0, "setting {i}: token {t} is excluded, but was drawn");
            let mean = share * n_draws as f64;
            let deviation = (mean * (1.0 - share)).sqrt();
            assert!(
                (n - mean).abs() <= 5.0 * deviation + 1e-9,
                "setting {i}: token {t}: {n}, not {mean}"
            );
        }
    }
}

#[test]
fn a_rows_draws_depend_on_its_own_seed_and_count_alone() {
    let (a, b, c) = (random(7), random(8), Sampling { top_k: 3, ..random(7) });
    let greedy = Sampling::greedy();
    let alone = (0..20).map(|n| draw(&[(logits(1), row(&a, &[], n))])[0]).collect::<Vec<_>>();
    let beside = |others: &[&Sampling]| {
        let of = |n| {
            let mut rows = vec![(logits(1), row(&a, &[], n))];
            rows.extend(others.iter().map(|s| (logits(4), row(s, &[], n + 3))));
            draw(&rows)[0]
        };
        (0..20).map(of).collect::<Vec<_>>()
    };
    assert_eq!(alone, beside(&[&b]));
    assert_eq!(alone, beside(&[&greedy, &c, &b]));
    let other_seed = (0..20).map(|n| draw(&[(logits(1), row(&b, &[], n))])[0]).collect::<Vec<_>>();
    assert_ne!(alone, other_seed);
}

#[test]
fn logprobs_are_those_of_the_unmodified_distribution() {
    Device::open().unwrap();
    let sampling =
        Sampling { top_k: 2, repetition_penalty: 3.0, logit_bias: vec![(4, 50.0)], ..random(3) };
    let l = logits(2);
    let array = Array::from_slice(&l, &[1, VOCAB as i32]).unwrap();
    let plain = Sampling { temperature: 1.0, ..Sampling::greedy() };
    let wanted = distribution(&l, &plain, &[]);
    let mut best = (0..VOCAB as u32).collect::<Vec<_>>();
    best.sort_by(|&a, &b| wanted[b as usize].total_cmp(&wanted[a as usize]));
    for n in [0u32, 1, 5, 20, VOCAB as u32] {
        let asked = Row { top_logprobs: Some(n), ..row(&sampling, &[1, 2], 0) };
        let sampled = sample(&array, &[asked]).unwrap();
        let token = sampled.tokens.item::<u32>().unwrap();
        assert_eq!(token, 4, "the bias decides");
        let logprob = sampled.logprobs.unwrap().item::<f32>().unwrap();
        assert!((f64::from(logprob) - wanted[4].ln()).abs() < 1e-5);
        let Some((ids, values)) = sampled.best else {
            assert_eq!(n, 0);
            continue;
        };
        let (ids, values) = (ids.to_vec::<u32>().unwrap(), values.to_vec::<f32>().unwrap());
        let mut found = ids.clone();
        found.sort_by_key(|t| best.iter().position(|b| b == t));
        assert_eq!(found, best[..n as usize], "the {n} best");
        for (t, v) in ids.iter().zip(&values) {
            assert!((f64::from(*v) - wanted[*t as usize].ln()).abs() < 1e-5);
        }
    }
}

#[test]
fn what_is_not_allowed_is_never_drawn_and_other_rows_draw_as_without() {
    let settings = |seed| Sampling {
        temperature: [1.3, 0.0][seed as usize % 2],
        top_k: [0, 4, 0][seed as usize % 3],
        top_p: [1.0, 0.8, 0.9][seed as usize % 3],
        logit_bias: vec![(3, 4.0)],
        ..random(seed)
    };
    for seed in 0..40 {
        let (own, other) = (settings(seed), settings(seed + 1));
        let allowed = (0..VOCAB).map(|t| t % 9 == seed as usize % 9).collect::<Vec<_>>();
        let within = Row { allowed: Some(&allowed), ..row(&own, &[], seed) };
        let rows = [(logits(1), within), (logits(2), row(&other, &[], 5))];
        let drawn = draw(&rows);
        assert!(allowed[drawn[0] as usize], "{seed}: {drawn:?}");
        assert_eq!(drawn[1], draw(&rows[1..])[0]);
        // What is left is drawn as it would be from scores without the rest.
        let mut left = logits(1);
        let refused = |t: &(usize, &mut f32)| !allowed[t.0];
        left.iter_mut().enumerate().filter(refused).for_each(|(_, x)| *x = f32::NEG_INFINITY);
        assert_eq!(drawn[0], draw(&[(left, row(&own, &[], seed))])[0]);
    }
}
