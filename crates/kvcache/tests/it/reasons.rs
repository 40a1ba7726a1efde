//! Every miss has a reason.

use kvcache::{Boundary, Cause, Ns, Tier};

use crate::{FULL, NS, PLENTY, STATE, copy_all, costs, join, run_to, serve, serve_in, text, world};

#[test]
fn a_prompt_that_is_known_is_complete_and_one_that_is_not_was_never_seen() {
    let mut world = world(4, &[FULL], [PLENTY, 0, 0]);
    let cause = |world: &crate::world::World, tokens: &[u32]| world.cache.find(NS, tokens).cause;
    assert_eq!(cause(&world, &text(1, 20)), Cause::NeverSeen { at: 0 });
    assert_eq!(cause(&world, &[]), Cause::Complete);
    serve(&mut world, &text(1, 20), &[], 0);
    assert_eq!(cause(&world, &text(1, 20)), Cause::Complete);
    let goes_on = join(&[text(1, 20), text(2, 9)]);
    assert_eq!(cause(&world, &goes_on), Cause::NeverSeen { at: 20 });
}

#[test]
fn a_divergence_shows_both_sides() {
    let mut world = world(4, &[FULL], [PLENTY, 0, 0]);
    serve(&mut world, &text(1, 20), &[], 0);
    let parted = join(&[text(1, 13), text(2, 9)]);
    let (cached, asked) = (text(1, 20)[13..].to_vec(), text(2, 9)[..8].to_vec());
    let expected = Cause::Diverged { at: 13, cached, asked };
    assert_eq!(world.cache.find(NS, &parted).cause, expected);
    // Also where conversations parted before.
    serve(&mut world, &parted, &[], 0);
    let again = join(&[text(1, 13), text(3, 2)]);
    let found = world.cache.find(NS, &again);
    let Cause::Diverged { at: 13, asked, .. } = found.cause else { panic!("{found:?}") };
    assert_eq!(asked, text(3, 2));
}

#[test]
fn a_gap_between_rows_and_checkpoint_is_told() {
    let mut world = world(4, &[FULL, STATE], [PLENTY, 0, 0]);
    serve(&mut world, &text(1, 20), &[Boundary::System(8)], 0);
    let found = world.cache.find(NS, &join(&[text(1, 15), text(2, 9)]));
    assert_eq!((found.usable, found.matched, found.cause), (8, 15, Cause::NoCheckpoint));
    let found = world.cache.find(NS, &text(1, 20));
    assert_eq!((found.usable, found.cause), (8, Cause::Layout));
}

#[test]
fn what_is_being_computed_is_told_with_its_sequence() {
    let mut world = world(4, &[FULL], [PLENTY, 0, 0]);
    let seq = world.begin(NS, text(1, 20)).unwrap();
    run_to(&mut world, seq, 7);
    let found = world.cache.find(NS, &join(&[text(1, 18), text(2, 9)]));
    let expected = Cause::InFlight { seq: world.live[seq].id, until: 18 };
    assert_eq!((found.usable, found.cause), (7, expected));
}

#[test]
fn what_was_evicted_is_remembered_for_a_while() {
    for (max_dead_bytes, expected) in
        [(1_000, Cause::Evicted { until: 20 }), (0, Cause::NeverSeen { at: 0 })]
    {
        let mut world = world(4, &[FULL, STATE], [PLENTY, 0, 0]);
        world.cache.remember(max_dead_bytes);
        serve(&mut world, &text(1, 20), &[], 0);
        world.cache.resize(Tier::Device, 0, 1);
        assert_eq!(world.cache.find(NS, &text(1, 30)).cause, expected);
        assert!(4 * world.cache.stats().n_tokens <= max_dead_bytes);
    }
}

#[test]
fn what_is_remembered_is_bounded_in_bytes_also_where_every_prompt_parts_at_once() {
    for kinds in [&[FULL][..], &[FULL, STATE]] {
        for n_own_tokens in [1, 40] {
            let mut world = world(4, kinds, [5_000, 0, 0]);
            let max_dead_bytes = 20_000;
            world.cache.remember(max_dead_bytes);
            for who in 0..200 {
                serve(&mut world, &join(&[text(0, 5), text(1 + who, n_own_tokens)]), &[], 0);
            }
            let stats = world.cache.stats();
            // A node takes some hundred bytes; those with rows come on top, one a block at most.
            assert!(stats.n_nodes <= max_dead_bytes / 400 + 50 + 2, "{kinds:?}: {stats:?}");
            assert!(4 * stats.n_tokens <= max_dead_bytes + 4 * 4 * 50, "{kinds:?}: {stats:?}");
            let mut causes = (0..200).map(|who| {
                let parts = [text(0, 5), text(1 + who, n_own_tokens), text(900, 3)];
                world.cache.find(NS, &join(&parts)).cause
            });
            let evicted = Cause::Evicted { until: 5 + n_own_tokens };
            assert!(causes.any(|cause| cause == evicted), "{kinds:?}, {n_own_tokens}");
        }
    }
}

#[test]
fn what_is_remembered_is_bounded_also_where_every_prompt_is_in_a_namespace_of_its_own() {
    for kinds in [&[FULL][..], &[FULL, STATE]] {
        let mut world = world(4, kinds, [5_000, 0, 0]);
        let max_dead_bytes = 20_000;
        world.cache.remember(max_dead_bytes);
        for who in 0..200 {
            serve_in(&mut world, Ns(who.into()), &text(who, 10), &[], 0);
        }
        let stats = world.cache.stats();
        let n_with_rows = 2 * stats.tiers[0].cached_bytes as usize / 300;
        assert!(stats.n_nodes <= max_dead_bytes / 400 + n_with_rows, "{kinds:?}: {stats:?}");
        assert!(stats.remembered_bytes > max_dead_bytes - 1_000, "{kinds:?}: {stats:?}");
    }
}

#[test]
fn a_small_cache_remembers_little() {
    for budgets in [[16_000, 0, 0], [8_000, 4_000, 4_000]] {
        let mut world = world(4, &[FULL], budgets);
        for who in 0..400 {
            serve(&mut world, &text(who, 10), &[], 0);
            copy_all(&mut world);
        }
        let remembered_bytes = world.cache.stats().remembered_bytes;
        assert!((1..=1_000).contains(&remembered_bytes), "{remembered_bytes}");
    }
}

#[test]
fn a_slow_tier_and_a_full_device_are_told() {
    let mut world = world(4, &[FULL], [PLENTY, PLENTY, 0]);
    serve(&mut world, &text(1, 20), &[], 0);
    copy_all(&mut world);
    world.cache.resize(Tier::Device, 0, 1);
    world.cache.measured(costs(1e9, 1.0));
    let found = world.cache.find(NS, &text(1, 30));
    assert_eq!((found.usable, found.cause), (0, Cause::CostGate { at: 20 }));
}

#[test]
fn the_latest_lookups_are_kept_and_no_more() {
    let mut world = world(4, &[FULL], [PLENTY, 0, 0]);
    for who in 0..300 {
        serve(&mut world, &text(who, 3), &[], 0);
    }
    let kept = world.cache.recent().collect::<Vec<_>>();
    assert_eq!(kept.len(), 256);
    assert!(kept.iter().all(|found| found.n_tokens == 3));
}
