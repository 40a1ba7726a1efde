//! What is shared, what is copied, and what that allocates.

use kvcache::{Kind, Ns};

use crate::{
    FULL, NS, PLENTY, STATE, WINDOW, join, position, run_to, serve, text, used_bytes, world,
};

#[test]
fn branching_at_every_offset_allocates_a_block_per_group_at_most() {
    let layouts: [&[Kind]; 4] = [&[FULL], &[FULL, FULL], &[FULL, WINDOW], &[FULL, WINDOW, STATE]];
    for kinds in layouts {
        for block_tokens in [1, 3, 7] {
            for at in 1..40 {
                check_branch(block_tokens, kinds, at);
            }
        }
    }
}

fn check_branch(block_tokens: usize, kinds: &[Kind], at: usize) {
    let mut world = world(block_tokens, kinds, [PLENTY, 0, 0]);
    let trunk = text(1, 40);
    let seq = world.begin(NS, trunk.clone()).expect("there is room");
    run_to(&mut world, seq, at);
    world.capture(seq);
    run_to(&mut world, seq, 40);
    world.capture(seq);
    let before = used_bytes(&world);
    let parted = join(&[trunk[..at].to_vec(), text(2, 5)]);
    let branch = world.begin(NS, parted).expect("there is room");
    assert_eq!(position(&world, branch), at, "exact to the token");
    let n_rows = kinds.iter().filter(|k| **k != STATE).count() as u64;
    let n_states = kinds.len() as u64 - n_rows;
    let n_copied = if at.is_multiple_of(block_tokens) { 0 } else { n_rows };
    assert_eq!(used_bytes(&world) - before, n_copied * 100 + n_states * 1_000, "{kinds:?} {at}");
    world.step(branch, 5);
    world.check_reads(seq);
    world.check_reads(branch);
}

#[test]
fn a_conversation_that_goes_on_copies_nothing() {
    for n_tokens in 1..20 {
        let mut world = world(8, &[FULL], [PLENTY, 0, 0]);
        let first = text(1, n_tokens);
        serve(&mut world, &first, &[], 0);
        let before = used_bytes(&world);
        let seq = world.begin(NS, join(&[first.clone(), text(2, 3)])).unwrap();
        assert_eq!((position(&world, seq), used_bytes(&world)), (n_tokens, before));
        assert_eq!(world.outcome.n_block_copies, 0);
    }
}

#[test]
fn a_whole_match_leaves_one_token_to_compute_and_writes_no_row_again() {
    let mut world = world(8, &[FULL], [PLENTY, 0, 0]);
    let prompt = text(1, 21);
    serve(&mut world, &prompt, &[], 0);
    let seq = world.begin(NS, prompt.clone()).unwrap();
    let position = world.cache.position(world.live[seq].id).unwrap();
    assert_eq!((position.at, position.kv_until), (20, 21));
}

#[test]
fn siblings_share_what_is_computed_while_it_is_computed() {
    let mut world = world(4, &[FULL], [PLENTY, 0, 0]);
    let prompt = text(1, 30);
    let first = world.begin(NS, prompt.clone()).unwrap();
    run_to(&mut world, first, 13);
    let second = world.begin(NS, prompt.clone()).unwrap();
    assert_eq!(position(&world, second), 13);
    // Both go on over the same tokens, in turns, and read only their own rows.
    for at in 14..=30 {
        run_to(&mut world, first, at);
        run_to(&mut world, second, at);
    }
    world.check_reads(first);
    world.check_reads(second);
    world.end(second);
    world.end(first);
    assert_eq!(world.cache.find(NS, &prompt).matched, 30);
}

#[test]
fn a_cancelled_prefill_keeps_what_it_computed() {
    for kinds in [&[FULL][..], &[FULL, STATE], &[FULL, WINDOW]] {
        let mut world = world(4, kinds, [PLENTY, 0, 0]);
        let prompt = text(1, 30);
        let seq = world.begin(NS, prompt.clone()).unwrap();
        run_to(&mut world, seq, 17);
        world.capture(seq);
        world.end(seq);
        assert_eq!(world.cache.find(NS, &prompt).usable, 17, "{kinds:?}");
    }
}

#[test]
fn rows_without_a_checkpoint_do_not_outlive_their_sequence() {
    let mut world = world(4, &[FULL, STATE], [PLENTY, 0, 0]);
    let seq = world.begin(NS, text(1, 30)).unwrap();
    run_to(&mut world, seq, 10);
    world.capture(seq);
    run_to(&mut world, seq, 30);
    world.end(seq);
    assert_eq!(world.cache.find(NS, &text(1, 30)).matched, 10);
    assert_eq!(used_bytes(&world), 3 * 100 + 1_000);
}

#[test]
fn rows_beyond_the_checkpoint_are_not_written_again() {
    let mut world = world(4, &[FULL, STATE], [PLENTY, 0, 0]);
    let trunk = text(1, 30);
    serve(&mut world, &trunk, &[kvcache::Boundary::System(8)], 0);
    let before = used_bytes(&world);
    let seq = world.begin(NS, join(&[trunk[..21].to_vec(), text(2, 4)])).unwrap();
    let at = world.cache.position(world.live[seq].id).unwrap();
    assert_eq!((at.at, at.kv_until), (8, 21));
    run_to(&mut world, seq, 21);
    assert_eq!(used_bytes(&world) - before, 1_000 + 100, "a live state and one block");
}

#[test]
fn namespaces_never_share() {
    let mut world = world(4, &[FULL], [PLENTY, 0, 0]);
    serve(&mut world, &text(1, 30), &[], 0);
    assert_eq!(world.cache.find(Ns(2), &text(1, 30)).seen, 0);
    world.begin(Ns(2), text(1, 30)).unwrap();
    world.flush(Ns(2));
    assert_eq!(world.cache.find(NS, &text(1, 30)).matched, 30);
}

#[test]
fn a_flush_returns_everything_when_the_last_sequence_ends() {
    for kinds in [&[FULL][..], &[FULL, WINDOW, STATE]] {
        let mut world = world(4, kinds, [PLENTY, PLENTY, PLENTY]);
        let seq = world.begin(NS, text(1, 30)).unwrap();
        run_to(&mut world, seq, 20);
        world.capture(seq);
        world.copies(u64::MAX);
        world.flush(NS);
        run_to(&mut world, seq, 30);
        world.check_reads(seq);
        world.close();
    }
}

#[test]
fn what_a_sequence_holds_is_pinned_for_others_until_it_ends() {
    let mut world = world(4, &[FULL], [PLENTY, 0, 0]);
    let prompt = text(1, 20);
    let seq = world.begin(NS, prompt.clone()).expect("there is room");
    run_to(&mut world, seq, 10);
    let longer = join(&[prompt, text(2, 5)]);
    assert_eq!(world.cache.n_pinned(NS, &longer), 10);
    assert_eq!(world.cache.n_pinned(NS, &longer[..7]), 7);
    assert_eq!(world.cache.n_pinned(NS, &text(2, 5)), 0);
    assert_eq!(world.cache.n_pinned(Ns(2), &longer), 0);
    world.end(seq);
    assert_eq!(world.cache.n_pinned(NS, &longer), 0);
    assert_eq!(world.cache.find(NS, &longer).usable, 10);
}
