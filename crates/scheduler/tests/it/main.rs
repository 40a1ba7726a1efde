//! The scheduler as its owner sees it.

#[path = "../../examples/fuzz/device.rs"]
mod device;
#[path = "../../examples/fuzz/draws.rs"]
mod draws;
mod fake;
mod model;
mod room;
mod turns;
#[path = "../../examples/fuzz/world.rs"]
mod world;

use device::Device;
use draws::Rng;
use fake::LIMITS;
use kvcache::{Budgets, Cache, Costs, Group, Kind, Layout, Link, Policy, Prefill};
use scheduler::Limits;
use world::World;

#[test]
fn every_request_of_random_worlds_ends_in_its_time() {
    let mut sum = world::Outcome::default();
    for seed in 0..60 {
        sum.add(&world::run(seed, 400, false));
    }
    let reached = [
        sum.n_ended,
        sum.n_cancelled,
        sum.n_full,
        sum.n_paused,
        sum.n_turns,
        sum.n_restores,
        sum.n_denied,
    ];
    assert!(reached.iter().all(|n| *n > 100), "{sum:?}");
    assert!(sum.n_holds > 20, "{sum:?}");
}

#[test]
fn the_same_seed_decides_the_same() {
    let run = |seed| world::run(seed, 300, false);
    assert_eq!(run(5), run(5));
    assert_ne!(run(5).hash, run(6).hash);
}

#[test]
fn siblings_over_a_real_cache_compute_what_they_share_once() {
    let link = Link { latency_us: 1.0, bytes_per_us: 1.0 };
    let costs = Costs { prefill: Prefill { a: 3.0, b: 1.0, c: 0.01 }, host: link, disk: link };
    for kinds in [&[Kind::Full][..], &[Kind::Full, Kind::Recurrent], &[Kind::Window { tokens: 6 }]]
    {
        let groups = kinds.iter().map(|kind| Group { kind: *kind, bytes: 10 });
        let layout = Layout::new(4, groups.collect()).expect("a sound layout");
        let policies = std::array::from_fn(|_| Policy::Lru.build());
        let cache = Cache::new(layout, Budgets([1 << 30, 0, 0]), costs, policies);
        let limits = Limits { chunk_tokens: 24, step_tokens: 24, ..LIMITS };
        let mut world = World::new(limits, Device::new(cache, 24, 0, Rng(1)));
        let shared = (0..200).map(|k| k % 3).collect::<Vec<_>>();
        for sibling in 0..6 {
            let own = [7 + sibling; 10];
            world.submit(u64::from(sibling % 2), [&shared[..], &own].concat(), 4, 4);
            world.step();
        }
        while !world.scheduler.is_idle() {
            world.step();
        }
        // The first answer's last token is drawn and not computed.
        assert_eq!(world.outcome.n_computed, 200 + 6 * (10 + 3), "{kinds:?}");
        assert_eq!(world.outcome.n_holds, 5, "{kinds:?}");
    }
}
