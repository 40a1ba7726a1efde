//! Hits of all eviction policies on traces of blocks, replayed through the cache itself: a trace in
//! Mooncake's format from standard input, or with `--synthetic` those that `Workload` makes.
//! `xz -dc TRACE | cargo run --release -p kvcache --example blocks -- [--percent 1,2,5,10,20]`.

mod arguments;

use std::io::BufRead;
use std::process::ExitCode;
use std::time::Instant;

use kvcache::Policy;
use kvcache::simulate::replay::replay;
use kvcache::simulate::trace::Trace;
use kvcache::simulate::workloads::Workload;

fn measure(name: &str, trace: &Trace, percents: &[f64]) {
    let (n_requests, n_distinct) = (trace.requests().len(), trace.n_distinct());
    println!("{name}: {n_requests} requests, {} blocks, {n_distinct} distinct", trace.n_blocks());
    println!("percent  blocks policy      hits  ratio    min  hits/min  seconds");
    for percent in percents {
        let budget = (n_distinct as f64 * percent / 100.0) as u64;
        for policy in Policy::ALL {
            let start = Instant::now();
            let figures = replay(trace, budget, policy.build());
            println!(
                "{percent:>7} {budget:>7} {:8} {:>7}  {:.3}  {:.3}     {:.3}     {:.1}",
                policy.name(),
                figures.n_hits,
                figures.hit_ratio(),
                figures.min_hit_ratio(),
                figures.n_hits as f64 / figures.n_min_hits.max(1) as f64,
                start.elapsed().as_secs_f64()
            );
        }
    }
}

/// Of one line of a trace.
fn hash_ids(line: &str) -> Option<Vec<u64>> {
    let request: serde_json::Value = serde_json::from_str(line).ok()?;
    request.get("hash_ids")?.as_array()?.iter().map(serde_json::Value::as_u64).collect()
}

fn run(arguments: &[String]) -> Result<(), String> {
    let percents: Vec<f64> = arguments::numbers(arguments, "--percent", "1,2,5,10,20")?;
    if arguments.iter().any(|a| a == "--synthetic") {
        for workload in Workload::ALL {
            measure(&format!("{workload:?}"), &workload.generate(10_000, 1), &percents);
        }
        return Ok(());
    }
    let mut trace = Trace::new();
    for (line, number) in std::io::stdin().lock().lines().zip(1..) {
        let line = line.map_err(|error| error.to_string())?;
        let ids = hash_ids(&line).ok_or_else(|| format!("line {number} has no hash_ids"))?;
        trace.push(&ids).map_err(|error| format!("line {number}: {error}"))?;
    }
    measure("standard input", &trace, &percents);
    Ok(())
}

fn main() -> ExitCode {
    arguments::main(run)
}
