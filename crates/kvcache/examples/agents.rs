//! Prefill amplification of eviction policies on the trace of agents, one table row per placement,
//! budget and chooser, one column per seed:
//! `cargo run --release -p kvcache --example agents -- [--seeds 1,2,3,4] [--gb 20,40,80]
//! [--host-gb 0] [--agents 64] [--requests 8000]`.

mod arguments;

use std::process::ExitCode;

use arguments::numbers;
use kvcache::Policy;
use kvcache::simulate::agents::AgentTrace;
use kvcache::simulate::checkpoints::{Figures, Placement, Setup, replay};
use kvcache::simulate::foresight::{Chooser, Future};

const YARDSTICKS: [&str; 2] = ["ranks", "clairvoyant"];

fn chooser<'a>(name: &str, future: &'a Future) -> Chooser<'a> {
    match Policy::from_name(name) {
        Some(policy) => Chooser::Policy(policy.build()),
        None if name == "ranks" => Chooser::Ranks(0.5),
        None => Chooser::Clairvoyant(future),
    }
}

fn run(arguments: &[String]) -> Result<(), String> {
    let seeds = numbers::<u64>(arguments, "--seeds", "1,2,3,4")?;
    let device_gb = numbers::<u64>(arguments, "--gb", "20,40,80")?;
    let host_gb = numbers::<u64>(arguments, "--host-gb", "0")?;
    let n_agents = numbers(arguments, "--agents", "64")?[0];
    let n_requests = numbers(arguments, "--requests", "8000")?[0];
    let traces: Vec<_> = seeds
        .iter()
        .map(|&seed| {
            let trace = AgentTrace { n_agents, n_requests, strips_reasoning: true, seed };
            let (prefixes, requests) = trace.generate();
            let future = Future::of(&prefixes, &requests);
            (prefixes, requests, future)
        })
        .collect();
    println!("seeds {seeds:?}, {n_agents} agents, {n_requests} requests, reasoning stripped");
    println!("device host placement    chooser      ideal   amplification: mean, each seed");
    for (&gb, &host) in device_gb.iter().flat_map(|gb| host_gb.iter().map(move |host| (gb, host))) {
        for placement in [Placement::BranchPoints, Placement::Template] {
            for name in Policy::ALL.map(Policy::name).into_iter().chain(YARDSTICKS) {
                let figures: Vec<Figures> = traces
                    .iter()
                    .map(|(prefixes, requests, future)| {
                        let device = (gb * 1_000_000_000, chooser(name, future));
                        let host =
                            (host > 0).then(|| (host * 1_000_000_000, chooser(name, future)));
                        replay(prefixes, requests, Setup { placement, device, host })
                    })
                    .collect();
                let mean = |of: fn(&Figures) -> f64| {
                    figures.iter().map(of).sum::<f64>() / figures.len() as f64
                };
                print!(
                    "{gb:>3} GB {host:>3}  {:12} {name:12} {:.3}  {:6.2} ",
                    format!("{placement:?}"),
                    mean(Figures::share_of_ideal),
                    mean(Figures::amplification)
                );
                figures.iter().for_each(|f| print!(" {:6.2}", f.amplification()));
                println!();
            }
        }
    }
    Ok(())
}

fn main() -> ExitCode {
    arguments::main(run)
}
