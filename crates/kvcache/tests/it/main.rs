//! The cache as its owner sees it.

#[path = "../../examples/fuzz/acts.rs"]
mod acts;
mod eviction;
mod failures;
mod inspecting;
#[path = "../../examples/fuzz/moves.rs"]
mod moves;
mod reasons;
mod sharing;
mod tiers;
#[path = "../../examples/fuzz/world.rs"]
mod world;

use kvcache::{Boundary, Costs, Group, Kind, Link, Match, Ns, Prefill, Token, plan_captures};
use world::World;

const FULL: Kind = Kind::Full;
const WINDOW: Kind = Kind::Window { tokens: 6 };
const STATE: Kind = Kind::Recurrent;
const PLENTY: u64 = 1 << 40;
const NS: Ns = Ns(1);

/// Computing is dear, and bringing bytes back is nearly free.
const CHEAP_LINKS: Costs = costs(1.0, 1e6);

const fn costs(latency_us: f64, bytes_per_us: f64) -> Costs {
    let link = Link { latency_us, bytes_per_us };
    Costs { prefill: Prefill { a: 10.0, b: 10.0, c: 0.001 }, host: link, disk: link }
}

/// A block of a group of rows weighs 100 bytes, a state 1,000.
fn world(block_tokens: usize, kinds: &[Kind], budgets: [u64; 3]) -> World {
    let bytes = |kind| if kind == Kind::Recurrent { 1_000 } else { 100 };
    let groups = kinds.iter().map(|kind| Group { kind: *kind, bytes: bytes(*kind) });
    World::new(block_tokens, groups.collect(), budgets, CHEAP_LINKS)
}

/// Tokens that belong to `who` alone.
fn text(who: u32, n_tokens: usize) -> Vec<Token> {
    (0..n_tokens as u32).map(|k| who * 1_000_000 + 10 + k).collect()
}

fn join(parts: &[Vec<Token>]) -> Vec<Token> {
    parts.concat()
}

/// Computes a prompt and some output as an engine does, and says what was found.
fn serve(world: &mut World, prompt: &[Token], seams: &[Boundary], n_output: usize) -> Match {
    serve_in(world, NS, prompt, seams, n_output)
}

fn serve_in(
    world: &mut World,
    ns: Ns,
    prompt: &[Token],
    seams: &[Boundary],
    n_output: usize,
) -> Match {
    world.now += 1;
    let seq = world.begin(ns, prompt.to_vec()).expect("there is room to begin");
    land_all(world);
    let found = world.cache.recent().last().expect("what began is kept").clone();
    let captures = plan_captures(&found, seams, false);
    for at in captures.iter().map(|c| c.at).chain([prompt.len()]) {
        run_to(world, seq, at);
        if at < prompt.len() {
            world.capture(seq);
        }
    }
    run_to(world, seq, prompt.len() + n_output);
    world.capture(seq);
    world.end(seq);
    world.cache.check();
    found
}

fn position(world: &World, seq: usize) -> usize {
    world.cache.position(world.live[seq].id).expect("it does not wait").at
}

fn run_to(world: &mut World, seq: usize, at: usize) {
    while position(world, seq) < at {
        let n = at - position(world, seq);
        assert!(world.step(seq, n), "there is room to go on");
    }
}

fn land_all(world: &mut World) {
    while !world.flying.is_empty() {
        world.finish(0, true);
    }
}

/// Copies down all that there is to copy.
fn copy_all(world: &mut World) {
    loop {
        world.copies(u64::MAX);
        if world.flying.is_empty() {
            return;
        }
        land_all(world);
    }
}

fn used_bytes(world: &World) -> u64 {
    let device = world.cache.stats().tiers[0];
    device.live_bytes + device.cached_bytes
}

#[test]
fn random_worlds_read_only_what_was_computed() {
    let mut sum = world::Outcome::default();
    for seed in 0..300 {
        sum.add(&acts::run(seed, 400, false));
    }
    let reached = [
        sum.n_block_copies,
        sum.n_state_copies,
        sum.n_restores,
        sum.n_lost,
        sum.n_cut,
        sum.n_moved,
        sum.n_no_room,
        sum.n_captured,
        sum.n_capture_refused,
        *sum.n_evicted.iter().min().unwrap(),
        *sum.n_transfers.iter().min().unwrap(),
    ];
    assert!(reached.iter().all(|n| *n > 100), "{sum:?}");
}

#[test]
fn the_same_seed_decides_the_same() {
    let run = |seed| acts::run(seed, 300, false);
    assert_eq!(run(5), run(5));
    assert_ne!(run(5).hash, run(6).hash);
}
