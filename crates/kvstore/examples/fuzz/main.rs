//! Long runs of what the tests run short: `cargo run --release -p kvstore --example kvstore_fuzz --
//! FIRST_SEED N_SEEDS [N_ACTS]`. A seed that fails is printed before its panic.

#[allow(dead_code, reason = "the tests use the rest")]
mod acts;
#[allow(dead_code, reason = "the tests use the rest")]
mod forgetful;

fn main() {
    let mut numbers = std::env::args().skip(1).map(|n| n.parse::<u64>().expect("a number"));
    let (first, n_seeds) = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(1_000));
    let n_acts = numbers.next().unwrap_or(200) as usize;
    let mut sum = acts::Outcome::default();
    for seed in first..first + n_seeds {
        let outcome = std::panic::catch_unwind(|| acts::run(seed, n_acts));
        match outcome {
            Ok(outcome) => sum.add(&outcome),
            Err(panic) => {
                eprintln!("seed {seed}, {n_acts} acts");
                std::panic::resume_unwind(panic);
            }
        }
    }
    let fewest = sum.reached().into_iter().min().unwrap_or(0);
    println!("the rarest of what can happen: {fewest} times");
    println!("seeds {first}..{} of {n_acts} acts: {sum:#?}", first + n_seeds);
}
