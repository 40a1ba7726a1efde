//! Whose turn it is, and where prompts are cut.

use std::collections::BTreeMap;

use scheduler::{AGEING, Ahead, Id, Key, Limits, Step};

use crate::fake::{LIMITS, Run};

const PLENTY: usize = 1 << 40;

/// Where the prompt of request 1 is cut, with others beside it.
fn cuts(limits: Limits, n_cached: usize, others: &[(u64, u64, usize, usize)]) -> Vec<usize> {
    let mut run = Run::new(limits, PLENTY);
    run.fake.kept.insert(Id(1), n_cached);
    let (before, after) = others.split_at(others.len() / 2);
    let submit = |run: &mut Run, &(id, key, n_prompt, n_new): &(u64, u64, usize, usize)| {
        assert!(run.submit(id, key, n_prompt, n_new), "there is a place");
    };
    before.iter().for_each(|other| submit(&mut run, other));
    run.step();
    run.submit(1, 0, 777, 5);
    run.step();
    after.iter().for_each(|other| submit(&mut run, other));
    run.finish();
    run.cuts.remove(&Id(1)).unwrap_or_default()
}

#[test]
fn prompts_are_cut_at_the_same_tokens_whatever_else_runs() {
    let crowd = (2..9).map(|id| (id, id % 3, 100 * id as usize + 13, 7 * id as usize));
    let crowd = crowd.collect::<Vec<_>>();
    let check = |chunk_tokens, step_tokens, n_cached, expected: &[usize]| {
        let limits = Limits { chunk_tokens, step_tokens, ..LIMITS };
        assert_eq!(cuts(limits, n_cached, &[]), expected, "alone, {limits:?}");
        assert_eq!(cuts(limits, n_cached, &crowd), expected, "in a crowd, {limits:?}");
    };
    check(256, 256, 0, &[256, 512, 768, 777]);
    check(256, 1000, 0, &[256, 512, 768, 777]);
    check(256, 300, 130, &[256, 512, 768, 777]);
    check(256, 300, 512, &[768, 777]);
    check(256, 300, 777, &[777]);
    check(1000, 1000, 0, &[777]);
}

#[test]
fn answers_get_a_token_in_every_step_beside_a_huge_prompt() {
    let mut run = Run::new(LIMITS, PLENTY);
    (1..4).for_each(|id| assert!(run.submit(id, id, 10, 500)));
    run.step();
    run.submit(9, 9, 100_000, 5);
    for _ in 0..400 {
        let step = run.step();
        assert_eq!(step.decode, [Id(1), Id(2), Id(3)]);
        let n_tokens = step.prefill.iter().map(|slice| slice.to - slice.from).sum::<usize>();
        assert_eq!(n_tokens, LIMITS.step_tokens, "and the rest of the step is the prompt's");
    }
}

#[test]
fn a_prompt_that_comes_while_others_answer_is_cut_small_and_keeps_its_cuts() {
    let limits = Limits { chunk_tokens_beside: 30, ..LIMITS };
    let mut run = Run::new(limits, PLENTY);
    let sizes = |step: &Step| step.prefill.iter().map(|s| s.to - s.from).collect::<Vec<_>>();
    assert!(run.submit(1, 1, 250, 5));
    assert_eq!(sizes(&run.step()), [100], "alone");
    assert_eq!(sizes(&run.step()), [100]);
    assert_eq!(sizes(&run.step()), [50]);
    assert!(run.submit(2, 2, 100, 5));
    assert!(run.submit(3, 3, 100, 5));
    assert_eq!(sizes(&run.step()), [30], "beside 1");
    run.finish();
    assert_eq!(run.cuts[&Id(2)], [30, 60, 90, 100]);
    assert_eq!(run.cuts[&Id(3)], [30, 60, 90, 100], "also when 1 has ended");

    // Who began alone goes on as it began, a slice a step.
    let mut run = Run::new(limits, PLENTY);
    assert!(run.submit(1, 1, 50, 9));
    assert!(run.submit(2, 2, 250, 5));
    assert_eq!(sizes(&run.step()), [50]);
    assert_eq!(sizes(&run.step()), [100]);
}

#[test]
fn a_short_prompt_waits_two_steps_for_any_prompts_of_other_keys() {
    for n_huge in [1, 3, 7] {
        for n_before in [0, 1, 2, 50, 999] {
            let mut run = Run::new(LIMITS, PLENTY);
            (0..n_huge).for_each(|id| assert!(run.submit(id, id % 2, 100_000, 50)));
            (0..n_before).for_each(|_| drop(run.step()));
            run.submit(100, 7, 90, 1);
            // A slice of each key that had the same may come first.
            let n_steps = run.steps_until_end_of(100);
            let n_keys = n_huge.min(2) as usize;
            assert!(n_steps <= 1 + n_keys, "{n_steps} steps beside {n_huge} after {n_before}");
        }
    }
}

#[test]
fn keys_with_work_get_the_same_however_many_requests_they_have() {
    let limits = Limits { max_rows: 12, ..LIMITS };
    for n_requests in [[1, 1, 1], [1, 4, 7], [2, 9, 1]] {
        let mut run = Run::new(limits, PLENTY);
        let mut id = 0;
        for (key, n_requests) in n_requests.iter().enumerate() {
            for k in 0..*n_requests {
                id += 1;
                assert!(run.submit(id, key as u64, 100_000 + 7 * k, 50));
            }
        }
        for _ in 0..1000 {
            run.step();
            let of = |key| run.computed.get(&Key(key)).copied().unwrap_or(0);
            let (least, most) = ((0..3).map(of).min(), (0..3).map(of).max());
            let apart = most.unwrap_or(0) - least.unwrap_or(0);
            assert!(apart <= 2 * LIMITS.step_tokens, "{n_requests:?}: {apart}");
        }
    }
}

#[test]
fn a_key_that_decodes_much_computes_fewer_prompts() {
    let mut run = Run::new(Limits { max_rows: 80, max_rows_per_key: 70, ..LIMITS }, PLENTY);
    (0..50).for_each(|id| assert!(run.submit(id, 1, 2, 3_000)));
    (0..10).for_each(|_| drop(run.step()));
    (50..55).for_each(|id| assert!(run.submit(id, 1, 100_000, 1)));
    (60..65).for_each(|id| assert!(run.submit(id, 2, 100_000, 1)));
    let before = run.computed.clone();
    (0..500).for_each(|_| drop(run.step()));
    let gained = |key| run.computed[&Key(key)] - before.get(&Key(key)).copied().unwrap_or(0);
    let (busy, other) = (gained(1), gained(2));
    assert!(busy.abs_diff(other) <= 6 * LIMITS.step_tokens, "{busy} {other}");
}

#[test]
fn what_nobody_else_wanted_is_no_debt_for_long() {
    let mut run = Run::new(LIMITS, PLENTY);
    run.submit(1, 1, 1_000_000, 1);
    (0..5_000).for_each(|_| drop(run.step()));
    run.submit(2, 2, 1_000_000, 1);
    let before = run.computed.clone();
    (0..200).for_each(|_| drop(run.step()));
    let gained = |key| run.computed[&Key(key)] - before.get(&Key(key)).copied().unwrap_or(0);
    assert!(gained(1).abs_diff(gained(2)) <= 2 * LIMITS.step_tokens, "{:?}", run.computed);
}

#[test]
fn a_long_prompt_is_overtaken_by_short_ones_of_its_key_only_until_it_is_due() {
    let limits = Limits { max_rows: 1, ..LIMITS };
    let mut run = Run::new(limits, PLENTY);
    run.submit(0, 0, 50, 1);
    run.step();
    run.submit(1, 0, 1_000, 1);
    let (mut id, mut n_overtaking) = (2, 0);
    while run.ends.contains_key(&Id(1)) {
        while run.ends.len() < 4 {
            run.submit(id, 0, 100, 1);
            id += 1;
        }
        let step = run.step();
        n_overtaking += step.begun.iter().filter(|begun| **begun != Id(1)).count();
        if step.begun.contains(&Id(1)) {
            break;
        }
    }
    // Shorter ones that came while 4 · (1,000 − 100) tokens were computed, and those in the queue.
    let expected = (AGEING as usize * 900) / 100;
    assert!((expected..=expected + 4).contains(&n_overtaking), "{n_overtaking}");
}

#[test]
fn siblings_wait_until_the_shared_prefix_is_there() {
    let mut run = Run::new(LIMITS, PLENTY);
    run.submit(1, 1, 900, 1);
    run.step();
    for id in 2..6 {
        run.submit(id, id, 1_000, 1);
        run.fake.ahead.insert(Id(id), Ahead { by: Id(1), until: 800 });
    }
    for _ in 0..7 {
        let step = run.step();
        assert_eq!((step.prefill.len(), step.begun.len()), (1, 0), "the first one computes alone");
    }
    run.fake.ahead.clear();
    run.fake.kept.extend((2..6).map(|id| (Id(id), 800)));
    assert_eq!(run.step().begun.len(), 4);
    run.finish();
    let n_computed = run.computed.values().sum::<usize>();
    assert_eq!(n_computed, 900 + 4 * 200);
}

#[test]
fn siblings_go_on_alone_when_the_one_they_waited_for_is_gone() {
    for is_first_left in [false, true] {
        let mut run = Run::new(LIMITS, PLENTY);
        run.submit(1, 1, 900, 1);
        run.step();
        for id in 2..4 {
            run.submit(id, id, 1_000, 1);
            run.fake.ahead.insert(Id(id), Ahead { by: Id(1), until: 800 });
        }
        run.step();
        if is_first_left {
            run.end(Id(2));
        }
        run.end(Id(1));
        run.fake.ahead.clear();
        assert_eq!(run.step().begun.len(), if is_first_left { 1 } else { 2 });
        run.finish();
    }
}

#[test]
fn nobody_waits_for_ever_for_ones_that_never_come_that_far() {
    let mut run = Run::new(LIMITS, PLENTY);
    run.submit(10, 2, 900, 1);
    run.step();
    run.submit(1, 1, 1_000, 1);
    let mut n_held = 0;
    for id in 10..30 {
        run.fake.ahead.insert(Id(1), Ahead { by: Id(id), until: 800 });
        if run.step().begun.contains(&Id(1)) {
            break;
        }
        n_held += 1;
        run.submit(id + 1, 2, 900, 1);
        run.step();
        run.end(Id(id));
    }
    assert_eq!(n_held, scheduler::MAX_HOLDS);
}

#[test]
fn short_prefixes_are_not_waited_for() {
    let mut run = Run::new(LIMITS, PLENTY);
    run.submit(1, 1, 900, 1);
    run.step();
    run.submit(2, 2, 900, 1);
    run.fake.ahead.insert(Id(2), Ahead { by: Id(1), until: 20 });
    run.submit(3, 3, 900, 1);
    // Nobody has this name, and nobody waits for it.
    run.fake.ahead.insert(Id(3), Ahead { by: Id(77), until: 800 });
    assert_eq!(run.step().begun, [Id(2), Id(3)]);
}

#[test]
fn the_queue_is_bounded_in_all_and_for_each_key() {
    let limits = Limits { max_rows: 1, max_waiting: 6, max_waiting_per_key: 3, ..LIMITS };
    let mut run = Run::new(limits, PLENTY);
    run.submit(0, 0, 1_000, 1);
    run.step();
    let mut taken: BTreeMap<u64, usize> = BTreeMap::new();
    for id in 1..20 {
        let key = id % 4;
        *taken.entry(key).or_default() += usize::from(run.submit(id, key, 10, 1));
    }
    assert_eq!(taken.values().sum::<usize>(), 6);
    assert!(taken.values().all(|n| *n <= 3), "{taken:?}");
    run.end(Id(1));
    assert!(run.submit(100, 1, 10, 1), "what ends makes a place");
    let arrival =
        scheduler::Arrival { id: Id(101), key: Key(9), n_prompt: 1, n_max_new: 1, n_cached: 0 };
    let full = run.scheduler.submit(arrival).expect_err("it is full");
    // 900 of the one that runs, and 10 of each that waits.
    assert_eq!((full.n_waiting, full.is_of_key, full.ahead_tokens), (6, false, 900 + 60));
    assert_eq!(
        full.to_string(),
        "too many requests wait (6 in all, 960 prompt tokens are to be computed)"
    );
}

#[test]
fn rows_of_a_key_are_bounded_and_others_use_the_rest() {
    let limits = Limits { max_rows: 5, max_rows_per_key: 3, ..LIMITS };
    let mut run = Run::new(limits, PLENTY);
    (0..10).for_each(|id| assert!(run.submit(id, 0, 10, 50)));
    assert_eq!(run.step().begun.len(), 3);
    (10..20).for_each(|id| assert!(run.submit(id, 1, 10, 50)));
    assert_eq!(run.step().begun.len(), 2);
    run.finish();
}

#[test]
fn a_storm_of_requests_that_are_dropped_leaves_nothing_behind() {
    let mut run =
        Run::new(Limits { max_waiting: 2_000, max_waiting_per_key: 2_000, ..LIMITS }, PLENTY);
    run.submit(0, 0, 100, 2_000);
    for round in 0..20 {
        let ids = 1 + round * 100..1 + (round + 1) * 100;
        ids.clone().for_each(|id| assert!(run.submit(id, id, 100_000, 10)));
        let step = run.step();
        assert!(round == 0 || step.decode.contains(&Id(0)));
        ids.for_each(|id| run.end(Id(id)));
        assert_eq!((run.scheduler.n_waiting(), run.scheduler.n_running()), (0, 1));
        assert_eq!(run.fake.held.len(), 1);
        run.scheduler.check();
    }
}
