//! What happens where memory or rows are short.

use scheduler::{Id, Limits, Step};

use crate::fake::{LIMITS, Run};

/// Requests that all answer, with so many tokens in place; the room they have is used up.
fn full(at: &[usize]) -> Run {
    let limits = Limits { headroom_tokens: 0, step_tokens: 1_000, ..LIMITS };
    let mut run = Run::new(limits, 1 << 30);
    for (k, n_prompt) in at.iter().enumerate() {
        assert!(run.submit(k as u64, 0, *n_prompt, 10_000));
    }
    while run.scheduler.plan(&mut run.fake).decode.len() < at.len() {
        run.step();
    }
    run.fake.room = run.fake.held.values().sum();
    run
}

fn paused(step: &Step) -> Vec<u64> {
    step.paused.iter().map(|id| id.0).collect()
}

#[test]
fn who_is_paused_has_the_least_to_lose_then_is_the_newest_and_never_the_eldest() {
    let check = |lost: &[usize], expected: &[u64]| {
        let mut run = full(&vec![40; lost.len()]);
        // Each has reserved a token by now: it takes the next one to want of room.
        run.step();
        run.fake.lost = lost.iter().enumerate().map(|(k, n)| (Id(k as u64), *n)).collect();
        assert_eq!(paused(&run.step()), expected, "{lost:?}");
    };
    check(&[0, 0, 0, 0], &[3]);
    check(&[0, 5, 5, 5], &[3]);
    check(&[0, 5, 4, 5], &[2]);
    check(&[0, 4, 5, 4], &[3]);
    check(&[0, 1, 2, 3], &[1]);
    check(&[9, 9], &[1]);
    check(&[9], &[0]);
}

#[test]
fn a_paused_request_resumes_where_it_was_and_before_new_ones() {
    let mut run = full(&[300, 250, 200]);
    run.submit(10, 0, 200, 5);
    run.step();
    let step = run.step();
    assert_eq!((paused(&step), step.begun), (vec![2], vec![]));
    let at = run.fake.kept[&Id(2)];
    run.end(Id(0));
    let step = run.step();
    assert_eq!(step.begun.first(), Some(&Id(2)), "it is first, although both find room");
    assert_eq!(run.fake.at[&Id(2)], at);
    assert!(run.step().decode.contains(&Id(2)), "nothing of it is computed again");
    run.fake.room = 1 << 30;
    run.finish();
}

#[test]
fn what_a_pause_has_lost_is_computed_in_chunks_or_token_by_token() {
    let check = |replays_by_token, expected: &[usize]| {
        let limits = Limits { chunk_tokens: 50, replays_by_token, headroom_tokens: 0, ..LIMITS };
        let mut run = Run::new(limits, 1 << 30);
        run.fake.has_tier = false;
        run.submit(0, 0, 20, 1_000);
        run.submit(1, 0, 120, 7);
        while run.fake.at.get(&Id(1)).is_none_or(|at| *at < 125) {
            run.step();
        }
        run.fake.room = run.fake.held.values().sum();
        while run.fake.at.contains_key(&Id(1)) {
            run.step();
        }
        run.cuts.clear();
        run.fake.room = 1 << 30;
        run.steps_until_end_of(1);
        assert_eq!(run.cuts[&Id(1)], expected);
    };
    check(false, &[50, 100, 120, 126]);
    check(true, &[50, 100, 120, 121, 122, 123, 124, 125]);
}

#[test]
fn nothing_begins_that_leaves_answers_no_room_to_grow() {
    let limits = Limits { headroom_tokens: 100, ..LIMITS };
    let check = |room, expected: usize| {
        let mut run = Run::new(limits, room);
        (0..5).for_each(|id| assert!(run.submit(id, 0, 50, 1_000)));
        (0..20).for_each(|_| drop(run.step()));
        assert_eq!(run.scheduler.n_running(), expected, "in {room}");
    };
    check(149, 1);
    check(299, 1);
    check(300, 2);
    check(750, 5);
}

#[test]
fn a_request_that_finds_no_room_is_passed_by_other_keys_until_it_is_due() {
    let mut run = Run::new(Limits { headroom_tokens: 0, ..LIMITS }, 1_000);
    run.submit(0, 0, 400, 300);
    run.step();
    run.submit(1, 1, 900, 10);
    let mut id = 10;
    while !run.fake.at.contains_key(&Id(1)) {
        if run.ends.len() < 4 {
            run.submit(id, 2, 100, 20);
            id += 1;
        }
        run.step();
    }
    let passing = run.steps.iter().flat_map(|step| &step.begun).filter(|begun| begun.0 >= 10);
    assert!(passing.count() > 5, "others begin meanwhile");
    run.finish();
}

#[test]
fn a_key_that_has_all_rows_makes_way_for_another_if_that_costs_nothing() {
    let n_steps = |has_tier| {
        let mut run = Run::new(Limits { max_rows: 3, ..LIMITS }, 1 << 30);
        run.fake.has_tier = has_tier;
        (0..9).for_each(|id| assert!(run.submit(id, 0, 10, 20_000)));
        (0..1_000).for_each(|_| drop(run.step()));
        run.submit(100, 1, 50, 10);
        run.steps_until_end_of(100)
    };
    // Due when 4 · 50 tokens were computed, by three rows a step; then its own eleven.
    let n = n_steps(true);
    assert!(n <= 4 * 50 / 3 + 1 + 11, "{n}");
    let n = n_steps(false);
    assert!(n > 10_000, "{n}");
}

#[test]
fn who_has_lost_by_making_way_is_left_to_end() {
    let n_paused = |forgets| {
        let mut run = Run::new(Limits { max_rows: 1, ..LIMITS }, 1 << 30);
        run.fake.forgets = forgets;
        (0..3).for_each(|id| assert!(run.submit(id, id, 50, 3_000)));
        run.finish();
        run.steps.iter().map(|step| step.paused.len()).sum::<usize>()
    };
    // Each makes way once before it is known that this costs; where it does not, turns go on.
    let (kept, lost) = (n_paused(false), n_paused(true));
    assert!(lost <= 3, "{lost}");
    assert!(kept > 10, "{kept}");
}

#[test]
fn what_fits_not_even_alone_is_refused_and_nothing_else() {
    let mut run = Run::new(LIMITS, 500);
    run.fake.kept.insert(Id(1), 700);
    run.submit(1, 0, 800, 5);
    run.fake.is_moving = true;
    assert_eq!(run.step(), Step::default(), "bytes on their way may be in the way");
    run.fake.is_moving = false;
    run.submit(2, 0, 450, 5);
    let refused = (0..3).flat_map(|_| run.step().refused).collect::<Vec<_>>();
    assert_eq!(refused, [Id(1)]);
    run.finish();
}

#[test]
fn one_that_is_alone_begins_anew_before_it_is_refused() {
    let mut run = Run::new(LIMITS, 100);
    run.submit(1, 0, 90, 5);
    run.step();
    run.fake.room = 92;
    let steps = (0..8).map(|_| run.step()).collect::<Vec<_>>();
    let of = |f: fn(&Step) -> &Vec<Id>| steps.iter().map(|s| f(s).len()).sum::<usize>();
    assert_eq!((of(|s| &s.paused), of(|s| &s.begun), of(|s| &s.refused)), (2, 2, 1));
    assert!(run.scheduler.is_idle());
}

#[test]
fn one_that_is_alone_may_begin_anew_whenever_it_has_gained_something() {
    let mut run = full(&[90]);
    for _ in 0..3 {
        run.step();
        let twice = [run.step(), run.step()].map(|step| paused(&step));
        assert_eq!(twice, [[0], [0]], "the second time it has gained nothing");
        run.fake.room += 2;
        while run.step().decode.is_empty() {}
    }
    assert!(run.steps.iter().all(|step| step.refused.is_empty()));
    run.fake.room = 1 << 30;
    run.finish();
}

#[test]
fn who_waits_for_bytes_computes_nothing_and_may_get_less_than_hoped() {
    let mut run = Run::new(LIMITS, 1 << 30);
    run.fake.kept.insert(Id(1), 700);
    run.fake.restores.insert(Id(1));
    run.submit(1, 0, 800, 5);
    run.submit(2, 0, 450, 50);
    for _ in 0..3 {
        assert!(run.step().prefill.iter().all(|slice| slice.id == Id(2)));
    }
    run.fake.at.insert(Id(1), 30);
    run.scheduler.arrived(Id(1), 30);
    run.scheduler.arrived(Id(1), 600);
    run.finish();
    assert_eq!(run.cuts[&Id(1)], [100, 200, 300, 400, 500, 600, 700, 800]);
}

#[test]
fn a_request_may_end_wherever_it_stands() {
    let mut run = Run::new(Limits { max_rows: 3, ..LIMITS }, 1 << 30);
    run.fake.restores.insert(Id(3));
    [1, 2, 3, 4].into_iter().for_each(|id| assert!(run.submit(id, 0, 100, 50)));
    (0..3).for_each(|_| drop(run.step()));
    for id in [3, 1, 4, 2] {
        run.end(Id(id));
        run.scheduler.check();
        run.scheduler.computed(Id(id), 1);
        run.scheduler.arrived(Id(id), 5);
        assert!(!run.scheduler.end(Id(id)));
    }
    assert!(run.scheduler.is_idle());
}
