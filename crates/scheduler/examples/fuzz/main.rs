//! A long run of the fuzz: `cargo run --release -p scheduler --example fuzz -- SEED STEPS`, with
//! the steps of one world as a third argument. A fourth prints every act of the first world.

mod device;
mod draws;
mod world;

use std::panic::catch_unwind;

fn main() {
    let args = std::env::args().skip(1).map(|a| a.parse::<u64>());
    let args = args.collect::<Result<Vec<_>, _>>().unwrap_or_default();
    let [seed, n_steps, rest @ ..] = &args[..] else {
        eprintln!("usage: fuzz SEED STEPS [STEPS_OF_A_WORLD [1]]");
        std::process::exit(2);
    };
    let of_a_world = rest.first().copied().unwrap_or(5_000);
    let n_worlds = n_steps.div_ceil(of_a_world.max(1));
    let mut sum = world::Outcome::default();
    for seed in *seed..*seed + n_worlds {
        match catch_unwind(|| world::run(seed, of_a_world as usize, rest.len() > 1)) {
            Ok(outcome) => sum.add(&outcome),
            Err(_) => {
                eprintln!("seed {seed} fails");
                std::process::exit(1);
            }
        }
    }
    println!("{n_worlds} worlds of {of_a_world} steps: {sum:?}");
}
