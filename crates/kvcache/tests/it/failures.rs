//! What other caches got wrong, one test each.

use kvcache::Boundary;

use crate::world::Rng;
use crate::{
    FULL, NS, PLENTY, STATE, WINDOW, copy_all, join, land_all, position, run_to, serve, text,
    used_bytes, world,
};

/// The shared beginning, then what only request `who` has.
fn request(n_shared: usize, who: u32) -> Vec<u32> {
    join(&[text(1, n_shared), text(who, 23)])
}

#[test]
fn f1_a_shared_beginning_hits_whatever_follows_it() {
    for block_tokens in [1, 5, 16] {
        for n_shared in 1..70 {
            let mut world = world(block_tokens, &[FULL, STATE], [PLENTY, 0, 0]);
            serve(&mut world, &request(n_shared, 2), &[], 3);
            let second = serve(&mut world, &request(n_shared, 3), &[], 3);
            let third = serve(&mut world, &request(n_shared, 4), &[], 3);
            assert_eq!((second.matched, third.usable), (n_shared, n_shared));
        }
    }
}

#[test]
fn f2_short_beginnings_hit() {
    for kinds in [&[FULL][..], &[FULL, WINDOW], &[FULL, WINDOW, STATE]] {
        for n_shared in [1, 2, 10, 63, 64, 65, 500, 1_999] {
            let mut world = world(64, kinds, [PLENTY, 0, 0]);
            let seams = [Boundary::System(n_shared)];
            serve(&mut world, &request(n_shared, 2), &seams, 1);
            let second = serve(&mut world, &request(n_shared, 3), &seams, 1);
            assert_eq!(second.usable, n_shared, "{kinds:?}");
        }
    }
}

#[test]
fn f3_states_do_not_push_out_the_beginnings_of_conversations_that_go_on() {
    // Room for the rows of all four conversations and some twenty states; 160 are captured.
    let mut world = world(4, &[FULL, STATE], [4 * 5_000 + 17_000, 0, 0]);
    let mut conversations = (0..4).map(|c| text(10 + c, 20)).collect::<Vec<_>>();
    for turn in 0..20 {
        for (c, said) in conversations.iter_mut().enumerate() {
            let end = said.len();
            let found = serve(&mut world, said, &[Boundary::Prompt(end - 2)], 2);
            let expected = if turn == 0 { 0 } else { end - 10 };
            assert!(found.usable >= expected, "turn {turn} of {c}: {found:?}");
            said.truncate(end - 2);
            said.extend(text(100 + turn * 4 + c as u32, 10));
        }
    }
}

#[test]
fn f4_a_known_boundary_hits_on_the_second_sighting() {
    let mut world = world(16, &[FULL, WINDOW, STATE], [PLENTY, 0, 0]);
    let seams = [Boundary::System(100)];
    let first = serve(&mut world, &request(100, 2), &seams, 1);
    let second = serve(&mut world, &request(100, 3), &seams, 1);
    assert_eq!((first.usable, second.usable), (0, 100));
}

#[test]
fn f5_no_tier_keeps_rows_that_no_state_of_it_can_use() {
    let mut world = world(4, &[FULL, STATE], [6_000, 5_000, 0]);
    for who in 0..30 {
        let prompt = text(who, 40);
        serve(&mut world, &prompt, &[Boundary::Prompt(30)], 0);
        copy_all(&mut world);
        for known in 0..=who {
            let found = world.cache.find(NS, &join(&[text(known, 40), text(99, 1)]));
            let on_host = found.candidates.iter().map(|c| c.at).max();
            assert!(found.by_tier[1] <= on_host.unwrap(), "dead bytes: {found:?}");
        }
    }
    assert!(world.cache.stats().tiers[1].n_evicted > 0);
}

#[test]
fn f6_no_room_for_a_state_is_a_request_that_is_not_cached() {
    // Exactly the live state and the rows.
    let mut world = world(4, &[FULL, STATE], [1_000 + 8 * 100, 0, 0]);
    let seq = world.begin(NS, text(1, 32)).unwrap();
    for at in 1..=32 {
        run_to(&mut world, seq, at);
        assert!(!world.capture(seq));
    }
    assert!(!world.step(seq, 1), "the pool is full, and says so");
    assert_eq!(world.cache.stats().n_capture_refused, 32);
    world.end(seq);
    assert_eq!(used_bytes(&world), 0);
}

#[test]
fn f7_what_the_device_evicts_is_still_found_on_the_host() {
    for kinds in [&[FULL][..], &[FULL, STATE], &[FULL, WINDOW, STATE]] {
        let mut world = world(4, kinds, [PLENTY, PLENTY, 0]);
        serve(&mut world, &text(1, 33), &[], 1);
        copy_all(&mut world);
        world.cache.resize(kvcache::Tier::Device, 0, 1);
        assert_eq!(used_bytes(&world), 0);
        world.cache.resize(kvcache::Tier::Device, PLENTY, 1);
        let goes_on = join(&[text(1, 33), vec![world_token(&world)], text(2, 9)]);
        let found = serve(&mut world, &goes_on, &[], 1);
        assert_eq!((found.usable, found.tier), (34, kvcache::Tier::Host), "{kinds:?}");
    }
}

/// What the first answer's first token was.
fn world_token(_: &crate::world::World) -> u32 {
    (crate::world::prefix_hash(NS, &text(1, 33)) % 2) as u32
}

#[test]
fn f12_nothing_is_found_after_everything_was_evicted() {
    let mut world = world(4, &[FULL], [PLENTY, 0, 0]);
    let seq = world.begin(NS, text(1, 33)).unwrap();
    let id = world.live[seq].id;
    run_to(&mut world, seq, 33);
    world.end(seq);
    world.cache.resize(kvcache::Tier::Device, 0, 1);
    let found = world.cache.find(NS, &text(1, 34));
    assert_eq!((found.usable, found.matched, found.by_tier), (0, 0, [0; 3]));
    // The old handle finds nothing, also when another sequence has its slot.
    world.cache.resize(kvcache::Tier::Device, PLENTY, 1);
    world.begin(NS, text(2, 5)).unwrap();
    world.cache.end(id, 2);
    assert_eq!((world.cache.position(id), world.cache.stats().n_live), (None, 1));
}

#[test]
fn f15_a_rewind_costs_no_more_than_the_gap_to_the_checkpoint_before_it() {
    let mut world = world(4, &[FULL, STATE], [PLENTY, 0, 0]);
    let history = text(1, 300);
    let seams = [40, 90, 160, 230, 299].map(Boundary::Message);
    serve(&mut world, &history, &seams, 1);
    let mut rng = Rng(15);
    for who in 0..60 {
        let at = 41 + rng.below(250);
        let found = world.cache.find(NS, &join(&[history[..at].to_vec(), text(2 + who, 5)]));
        let nearest = [40, 90, 160, 230, 299].into_iter().rfind(|s| *s <= at).unwrap();
        assert!(found.usable >= nearest, "{at}: {found:?}");
        let rewound = join(&[history[..at].to_vec(), text(2 + who, 5)]);
        serve(&mut world, &rewound, &[], 1);
    }
}

#[test]
fn f16_sessions_on_one_prefix_compute_it_once() {
    for kinds in [&[FULL][..], &[FULL, WINDOW, STATE]] {
        let mut world = world(4, kinds, [PLENTY, 0, 0]);
        let prefix = text(1, 50);
        serve(&mut world, &prefix, &[], 0);
        let seqs = (0..12).map(|who| {
            let prompt = join(&[prefix.clone(), text(2 + who, 7)]);
            let seq = world.begin(NS, prompt).unwrap();
            assert_eq!(position(&world, seq), 50);
            seq
        });
        for seq in seqs.collect::<Vec<_>>() {
            run_to(&mut world, seq, 57);
        }
        land_all(&mut world);
        (0..12).for_each(|seq| world.check_reads(seq));
    }
}
