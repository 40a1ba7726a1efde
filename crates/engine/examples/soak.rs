//! A hit equals a miss, many times over: random conversations on small models of every kind of
//! layer, through a device, a host and a disk that are all too small, each answer compared with
//! that of a run of its own.
//!
//! ```text
//! cargo run --release -p engine --example soak -- COMPARISONS [SEED [MODEL]]
//! ```
//! Ends with an error at the first difference; prints what was compared and what it came past.
#![allow(clippy::unwrap_used)]

#[path = "../tests/common/mod.rs"]
mod common;

use common::twice::{Rng, Twice, converse, models, on_disk};
use protocol::CacheSettings;

/// Prompts of one engine, before the next model has its turn.
const N_ASKED: usize = 60;

fn main() {
    let args = std::env::args().skip(1).collect::<Vec<_>>();
    let number = |i: usize| args.get(i).map(|arg| arg.parse::<u64>());
    let (Some(Ok(n_wanted)), seed) = (number(0), number(1)) else {
        eprintln!("usage: soak COMPARISONS [SEED [MODEL]]");
        std::process::exit(2);
    };
    let is_wanted = |model: &&str| args.get(2).is_none_or(|wanted| wanted == model);
    assert!(models().any(|model| is_wanted(&model)), "the last argument is one of the models");
    let mut seed = seed.map_or(1, |seed| seed.unwrap());
    let (mut n_compared, mut n_asked, mut worst, mut by_tier) = (0, 0, 0f32, [0u64; 3]);
    let (mut n_evicted, mut memory) = ([0; 3], Vec::new());
    while n_compared < n_wanted {
        for model in models().filter(is_wanted) {
            let folder = tempfile::tempdir().unwrap();
            // From a device that holds a few prompts to one that holds many.
            let device_bytes = Some(200_000 + Rng(seed).below(600_000) as u64);
            let host_bytes = Some(Rng(seed + 1).below(2) as u64 * 1_000_000);
            let mut settings = CacheSettings { device_bytes, host_bytes, ..on_disk(folder.path()) };
            if let Some(disk) = &mut settings.disk {
                disk.bytes = Some(4_000_000);
            }
            let mut twice = Twice::new(model, settings);
            let (_, hits) = converse(&mut twice, &mut Rng(seed), N_ASKED);
            by_tier.iter_mut().zip(hits).for_each(|(sum, n)| *sum += u64::from(n));
            let stats = twice.engine.cache_stats();
            n_evicted.iter_mut().zip(stats.tiers).for_each(|(sum, tier)| *sum += tier.n_evicted);
            (n_compared, n_asked) = (n_compared + twice.n_compared, n_asked + N_ASKED);
            worst = worst.max(twice.worst);
            seed += 1;
        }
        memory.push(common::resident_kib());
    }
    println!("prompts asked twice      {n_asked}");
    println!("log probabilities        {n_compared} compared, 0 differ");
    println!("largest difference       {:.0} % of what is allowed", worst * 100.0);
    println!(
        "hits                     device {}, host {}, disk {}",
        by_tier[0], by_tier[1], by_tier[2]
    );
    println!(
        "evicted                  device {}, host {}, disk {}",
        n_evicted[0], n_evicted[1], n_evicted[2]
    );
    println!("resident after rounds    {memory:?} KiB");
}
