//! A long run of the fuzz: `cargo run --release -p kvcache --example fuzz -- SEED STEPS`. A third
//! argument prints every act of the first world.

mod acts;
mod moves;
mod world;

use std::panic::catch_unwind;

const STEPS_OF_A_WORLD: usize = 2_000;

fn main() {
    let args = std::env::args().skip(1).map(|a| a.parse::<u64>());
    let args = args.collect::<Result<Vec<_>, _>>().unwrap_or_default();
    let [seed, n_steps, rest @ ..] = &args[..] else {
        eprintln!("usage: fuzz SEED STEPS [1]");
        std::process::exit(2);
    };
    let n_worlds = n_steps.div_ceil(STEPS_OF_A_WORLD as u64);
    let mut sum = world::Outcome::default();
    for seed in *seed..*seed + n_worlds {
        match catch_unwind(|| acts::run(seed, STEPS_OF_A_WORLD, !rest.is_empty())) {
            Ok(outcome) => sum.add(&outcome),
            Err(_) => {
                eprintln!("seed {seed} fails");
                std::process::exit(1);
            }
        }
    }
    println!("{n_worlds} worlds of {STEPS_OF_A_WORLD} steps: {sum:?}");
}
