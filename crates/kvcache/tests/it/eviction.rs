//! What eviction policies are worth on traces, in small: figures that the long runs of the examples
//! show in large.

use std::collections::BTreeMap;

use kvcache::Policy;
use kvcache::simulate::agents::AgentTrace;
use kvcache::simulate::checkpoints::{Figures, Placement, Setup, replay as replay_agents};
use kvcache::simulate::foresight::{Chooser, Future};
use kvcache::simulate::replay::replay;
use kvcache::simulate::trace::Trace;
use kvcache::simulate::workloads::Workload;

/// Least recently used over paths, by looking at everything.
fn naive_lru_hits(trace: &Trace, budget: usize) -> u64 {
    let mut last_use: BTreeMap<u32, (usize, usize)> = BTreeMap::new();
    let mut n_hits = 0;
    for (now, request) in trace.requests().iter().enumerate() {
        n_hits += request.iter().take_while(|block| last_use.contains_key(block)).count() as u64;
        // Of blocks used together the deepest goes first.
        for (depth, &block) in request.iter().enumerate() {
            last_use.insert(block, (now, usize::MAX - depth));
        }
        while last_use.len() > budget {
            let (&oldest, _) =
                last_use.iter().min_by_key(|(_, used)| **used).expect("some are held");
            last_use.remove(&oldest);
        }
    }
    n_hits
}

#[test]
fn the_cache_under_lru_hits_what_a_list_would() {
    for workload in Workload::ALL {
        let trace = workload.generate(300, 3);
        let longest = trace.requests().iter().map(Vec::len).max().unwrap();
        for share in [10, 4, 1] {
            let budget = longest.max(trace.n_distinct() / share);
            let figures = replay(&trace, budget as u64, Policy::Lru.build());
            let expected = naive_lru_hits(&trace, budget);
            assert_eq!(figures.n_hits, expected, "{workload:?} with {budget} blocks");
        }
    }
}

#[test]
fn the_default_policy_is_never_much_worse_than_the_simple_ones() {
    for workload in Workload::ALL {
        let trace = workload.generate(700, 2);
        for percent in [5, 20] {
            let budget = (trace.n_distinct() * percent / 100) as u64;
            let ratio = |policy: Policy| replay(&trace, budget, policy.build()).hit_ratio();
            let ours = ratio(Policy::default());
            for simple in [Policy::Lru, Policy::Slru, Policy::Gdsf] {
                let theirs = ratio(simple);
                let name = simple.name();
                assert!(ours > theirs - 0.01, "{workload:?} {percent} %: {ours} {name} {theirs}");
            }
            let figures = replay(&trace, budget, Policy::default().build());
            assert!(figures.n_hits <= figures.n_min_hits, "nothing beats MIN");
        }
    }
}

#[test]
fn agents_prefill_less_under_the_default_policy() {
    let trace = AgentTrace { n_agents: 64, n_requests: 8000, strips_reasoning: true, seed: 1 };
    let (prefixes, requests) = trace.generate();
    let future = Future::of(&prefixes, &requests);
    let run = |chooser: Chooser<'_>| {
        let (device, host) = ((40_000_000_000, chooser), None);
        let placement = Placement::Template;
        replay_agents(&prefixes, &requests, Setup { placement, device, host }).amplification()
    };
    let lru = run(Chooser::Policy(Policy::Lru.build()));
    let ours = run(Chooser::Policy(Policy::default().build()));
    let clairvoyant = run(Chooser::Clairvoyant(&future));
    // The published figures of this trace are 2.46 for LRU, and for the best policy 2.2.
    assert!((2.4..2.5).contains(&lru), "{lru}");
    assert!(clairvoyant < ours && ours < 2.0, "{clairvoyant} {ours}");
}

#[test]
fn a_host_tier_gives_back_what_the_device_let_go() {
    let trace = AgentTrace { n_agents: 16, n_requests: 2000, strips_reasoning: true, seed: 1 };
    let (prefixes, requests) = trace.generate();
    let run = |host: Option<u64>| -> Figures {
        let chooser = || Chooser::Policy(Policy::default().build());
        let device = (5_000_000_000, chooser());
        let host = host.map(|bytes| (bytes, chooser()));
        replay_agents(&prefixes, &requests, Setup { placement: Placement::Template, device, host })
    };
    let (alone, small, large) = (run(None), run(Some(10_000_000_000)), run(Some(u64::MAX)));
    assert_eq!(alone.restored_tokens, 0);
    assert!(alone.prefilled_tokens > small.prefilled_tokens);
    assert!(small.prefilled_tokens > large.prefilled_tokens);
    assert!(large.amplification() < 1.1, "{large:?}");
}
