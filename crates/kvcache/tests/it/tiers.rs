//! Write-through, restore, and restart.

use kvcache::{Boundary, Cause, Tier};

use crate::{
    FULL, NS, PLENTY, STATE, WINDOW, copy_all, costs, join, land_all, position, run_to, serve,
    text, used_bytes, world,
};

const LAYOUTS: [&[kvcache::Kind]; 3] = [&[FULL], &[FULL, STATE], &[FULL, WINDOW, STATE]];

/// Everything is on host and disk, and nothing on the device.
fn cold_device(kinds: &[kvcache::Kind], n_tokens: usize) -> crate::world::World {
    let mut world = world(4, kinds, [PLENTY, PLENTY, PLENTY]);
    serve(&mut world, &text(1, n_tokens), &[], 0);
    copy_all(&mut world);
    world.cache.resize(Tier::Device, 0, 1);
    world.cache.resize(Tier::Device, PLENTY, 1);
    assert_eq!(used_bytes(&world), 0);
    world
}

#[test]
fn a_checkpoint_goes_down_in_one_piece_with_its_rows() {
    let mut world = world(4, &[FULL, STATE], [PLENTY, PLENTY, 0]);
    serve(&mut world, &text(1, 30), &[], 0);
    world.copies(1);
    let items = world.flying.iter().map(|t| t.items.len()).collect::<Vec<_>>();
    assert_eq!(items, [8 + 1]);
}

#[test]
fn a_long_run_goes_down_in_parts_and_once() {
    let mut world = world(4, &[FULL], [PLENTY, PLENTY, 0]);
    serve(&mut world, &text(1, 100), &[], 0);
    let (mut n_items, mut n_calls) = (0, 0);
    loop {
        world.copies(300);
        if world.flying.is_empty() {
            break;
        }
        n_calls += 1;
        n_items += world.flying.iter().map(|t| t.items.len()).sum::<usize>();
        land_all(&mut world);
    }
    assert_eq!((n_items, n_calls), (25, 9));
}

#[test]
fn both_lower_tiers_get_what_is_new_and_a_missing_one_is_skipped() {
    for budgets in [[PLENTY, PLENTY, PLENTY], [PLENTY, 0, PLENTY], [PLENTY, PLENTY, 0]] {
        let mut world = world(4, &[FULL, STATE], budgets);
        serve(&mut world, &text(1, 30), &[], 0);
        copy_all(&mut world);
        let found = world.cache.find(NS, &text(1, 30));
        assert_eq!(found.by_tier, budgets.map(|b| if b > 0 { 30 } else { 0 }));
    }
}

#[test]
fn a_restored_prefix_is_resumed_and_stays_on_the_device() {
    for kinds in LAYOUTS {
        for n_tokens in [5, 16, 30] {
            let mut world = cold_device(kinds, n_tokens);
            let goes_on = join(&[text(1, n_tokens), text(2, 9)]);
            let seq = world.begin(NS, goes_on.clone()).unwrap();
            assert_eq!(world.cache.position(world.live[seq].id), None, "it waits");
            land_all(&mut world);
            assert_eq!(position(&world, seq), n_tokens);
            run_to(&mut world, seq, n_tokens + 9);
            world.end(seq);
            let found = world.cache.find(NS, &goes_on);
            assert!(found.usable >= n_tokens && found.tier == Tier::Device, "{found:?}");
        }
    }
}

#[test]
fn a_failed_restore_is_a_plain_miss() {
    for kinds in LAYOUTS {
        let mut world = cold_device(kinds, 30);
        let before = world.cache.stats();
        let seq = world.begin(NS, join(&[text(1, 30), text(2, 9)])).unwrap();
        while !world.flying.is_empty() {
            world.finish(0, false);
        }
        assert_eq!(position(&world, seq), 0);
        run_to(&mut world, seq, 39);
        world.end(seq);
        let after = world.cache.stats();
        assert_eq!(before.tiers[1].cached_bytes, after.tiers[1].cached_bytes);
    }
}

#[test]
fn a_sequence_may_end_while_it_waits() {
    for kinds in LAYOUTS {
        let mut world = cold_device(kinds, 30);
        let seq = world.begin(NS, join(&[text(1, 30), text(2, 9)])).unwrap();
        world.end(seq);
        land_all(&mut world);
        assert_eq!(world.cache.stats().tiers[0].live_bytes, 0);
        assert_eq!(world.cache.find(NS, &text(1, 31)).by_tier[0], 30, "what came is kept");
        world.close();
    }
}

#[test]
fn without_room_for_a_restore_less_is_reused() {
    let mut world = cold_device(&[FULL, STATE], 30);
    world.cache.resize(Tier::Device, 2_500, 1);
    let seq = world.begin(NS, join(&[text(1, 30), text(2, 2)])).unwrap();
    assert_eq!(position(&world, seq), 0);
    let found = world.cache.recent().last().unwrap();
    assert_eq!((found.usable, &found.cause), (0, &Cause::NoRoom { at: 30 }));
}

#[test]
fn what_is_slower_to_bring_than_to_compute_is_computed() {
    for (bytes_per_us, usable) in [(1e6, 30), (1e-3, 0)] {
        let mut world = cold_device(&[FULL, STATE], 30);
        world.cache.measured(costs(1.0, bytes_per_us));
        let found = world.cache.find(NS, &join(&[text(1, 30), text(2, 2)]));
        assert_eq!(found.usable, usable, "{found:?}");
        let cold = found.candidates.iter().find(|c| c.at == 0).unwrap();
        assert!(found.candidates[0].cost_us <= cold.cost_us);
    }
}

#[test]
fn what_was_written_is_found_after_a_restart() {
    for kinds in LAYOUTS {
        let mut world = world(4, kinds, [PLENTY, 0, PLENTY]);
        let trunk = text(1, 21);
        let long = join(&[trunk.clone(), text(2, 14)]);
        let other = join(&[trunk.clone(), text(3, 5)]);
        for tokens in [&trunk, &long, &other] {
            serve(&mut world, tokens, &[], 0);
            world.copies(u64::MAX);
            land_all(&mut world);
        }
        world.restart();
        world.cache.check();
        for tokens in [&trunk, &other, &long] {
            let goes_on = join(&[tokens.clone(), text(9, 3)]);
            let seq = world.begin(NS, goes_on).unwrap();
            land_all(&mut world);
            assert_eq!(position(&world, seq), tokens.len(), "{kinds:?}");
        }
    }
}

#[test]
fn an_extent_that_is_lost_takes_along_what_builds_on_it_and_nothing_else() {
    for kinds in LAYOUTS {
        let mut world = world(4, kinds, [PLENTY, 0, PLENTY]);
        let trunk = text(1, 21);
        let long = join(&[trunk.clone(), text(2, 14)]);
        let other = join(&[trunk.clone(), text(3, 5)]);
        for tokens in [&trunk, &long, &other] {
            serve(&mut world, tokens, &[], 0);
            world.copies(u64::MAX);
            land_all(&mut world);
        }
        world.restart();
        let last_of = |world: &crate::world::World, n: usize| {
            world.index.iter().rev().find(|(_, record)| record.tokens.len() == n).unwrap().0
        };
        let usable = |world: &crate::world::World, tokens: &[u32]| {
            let found = world.cache.find(NS, &join(&[tokens.to_vec(), text(9, 3)]));
            (found.usable, found.cause)
        };
        let extent = last_of(&world, long.len());
        world.cache.lose(&[extent], 1);
        world.cache.check();
        // Without checkpoints the block that both share goes with the one that has more of it.
        assert!((20..=21).contains(&usable(&world, &long).0), "{kinds:?}");
        assert_eq!(usable(&world, &other).0, other.len(), "{kinds:?}");
        let extent = last_of(&world, trunk.len());
        world.cache.lose(&[extent], 2);
        world.cache.check();
        for tokens in [&trunk, &long, &other] {
            let (n_usable, cause) = usable(&world, tokens);
            assert!(n_usable < 21, "{kinds:?}");
            assert_eq!(cause, Cause::Evicted { until: tokens.len() }, "{kinds:?}");
        }
    }
}

#[test]
fn an_extent_without_its_beginning_or_with_nothing_new_is_not_adopted() {
    for kinds in LAYOUTS {
        let mut world = world(4, kinds, [PLENTY, 0, PLENTY]);
        let long = text(1, 30);
        assert_eq!(world.adopt(NS, &long, 10), Some(false));
        assert_eq!(world.adopt(NS, &long[..13], 0), Some(true));
        assert_eq!(world.adopt(NS, &long, 17), Some(false));
        assert_eq!(world.adopt(NS, &long, 10), Some(true));
        assert_eq!(world.adopt(NS, &long, 0), Some(false));
        world.cache.check();
    }
}

#[test]
fn a_disk_that_is_full_adopts_by_the_block_and_refuses_what_cannot_fit() {
    let mut world = world(4, &[FULL], [PLENTY, 0, 500]);
    world.adopt(NS, &text(1, 20), 0);
    world.adopt(NS, &text(2, 8), 0);
    let found = [text(1, 20), text(2, 8)].map(|t| world.cache.find(NS, &t).matched);
    assert_eq!(found, [12, 8]);
    assert_eq!(world.cache.stats().extent_bytes, 500, "two pieces are cut off");
    let shortened = world.cache.take_shortened_extents();
    assert_eq!(shortened.iter().map(|(_, n_bytes)| *n_bytes).collect::<Vec<_>>(), [300]);
    assert_eq!(world.adopt(NS, &text(3, 24), 0), None);
    world.flush(NS);
    assert_eq!(world.cache.take_dead_extents().len(), 2);
}

#[test]
fn a_copy_that_failed_is_tried_again_when_it_was_used_again() {
    for kinds in LAYOUTS {
        let mut world = world(4, kinds, [PLENTY, PLENTY, 0]);
        serve(&mut world, &text(1, 30), &[], 0);
        world.copies(u64::MAX);
        assert_eq!(world.flying.len(), 1);
        world.finish(0, false);
        world.copies(u64::MAX);
        assert_eq!((world.flying.len(), world.cache.stats().tiers[1].cached_bytes), (0, 0));
        serve(&mut world, &join(&[text(1, 30), text(2, 1)]), &[], 0);
        copy_all(&mut world);
        assert_eq!(world.cache.find(NS, &text(1, 31)).by_tier[1], 30);
    }
}

#[test]
fn what_is_on_its_way_down_is_not_sent_twice() {
    let mut world = world(4, &[FULL, STATE], [PLENTY, PLENTY, 0]);
    serve(&mut world, &text(1, 40), &[Boundary::Message(20)], 0);
    world.copies(u64::MAX);
    world.copies(u64::MAX);
    let items = world.flying.iter().map(|t| t.items.len()).collect::<Vec<_>>();
    assert_eq!(items, [5 + 1], "the deeper one waits for the rows of the upper");
    copy_all(&mut world);
    assert_eq!(world.cache.stats().n_transfers, [2, 0]);
    assert_eq!(world.cache.stats().tiers[1].cached_bytes, 10 * 100 + 2 * 1_000);
}

#[test]
fn whole_blocks_go_down_while_a_sequence_runs_and_its_last_one_when_it_ends() {
    let mut world = world(4, &[FULL], [PLENTY, PLENTY, 0]);
    let seq = world.begin(NS, text(1, 30)).unwrap();
    run_to(&mut world, seq, 30);
    copy_all(&mut world);
    assert_eq!(world.cache.find(NS, &text(1, 31)).by_tier, [30, 28, 0]);
    world.end(seq);
    copy_all(&mut world);
    assert_eq!(world.cache.find(NS, &text(1, 31)).by_tier, [30, 30, 0]);
}

#[test]
fn a_budget_is_met_block_by_block_and_not_by_whole_conversations() {
    let mut world = world(4, &[FULL], [2_500, 0, 0]);
    serve(&mut world, &text(1, 80), &[], 0);
    serve(&mut world, &text(2, 40), &[], 0);
    let found = [text(1, 80), text(2, 40)].map(|t| world.cache.find(NS, &t).matched);
    assert_eq!((found, used_bytes(&world)), ([60, 40], 2_500));
}
