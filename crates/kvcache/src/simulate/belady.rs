//! The most hits that any eviction can have (Belady 1966), for blocks of equal cost.
//!
//! A block's ancestors are asked for whenever it is, so the next use of a parent is never later
//! than that of a child, and letting go of the farthest next use, the deepest of equal ones, always
//! takes a leaf: the trie costs MIN nothing. Budgets bind between requests, and a block may be let
//! go as soon as its request is over. O(N log N) for N blocks of all requests.

use std::collections::BTreeSet;

use super::trace::Trace;

const NEVER: usize = usize::MAX;

/// Hits of a cache of `budget_blocks` that knows the future.
pub fn min_hits(trace: &Trace, budget_blocks: usize) -> u64 {
    let next_uses = next_uses(trace);
    let mut next_uses = next_uses.iter();
    // What is held: by next use, then depth, then block.
    let mut held = BTreeSet::new();
    let mut keys = vec![None; trace.n_distinct()];
    let mut n_hits = 0;
    for request in trace.requests() {
        for (depth, (&block, &next_use)) in request.iter().zip(next_uses.by_ref()).enumerate() {
            if let Some(key) = keys[block as usize].take() {
                held.remove(&key);
                n_hits += 1;
            }
            if next_use != NEVER {
                let key = (next_use, depth, block);
                keys[block as usize] = Some(key);
                held.insert(key);
            }
        }
        while held.len() > budget_blocks
            && let Some((_, _, block)) = held.pop_last()
        {
            keys[block as usize] = None;
        }
    }
    n_hits
}

/// For each block of each request, in order, the index of the next request that has it.
fn next_uses(trace: &Trace) -> Vec<usize> {
    let mut next = vec![NEVER; trace.n_distinct()];
    let mut uses = Vec::with_capacity(trace.n_blocks());
    for (request_idx, request) in trace.requests().iter().enumerate().rev() {
        for &block in request.iter().rev() {
            uses.push(std::mem::replace(&mut next[block as usize], request_idx));
        }
    }
    uses.reverse();
    uses
}

#[cfg(test)]
mod tests {
    use super::*;

    /// All ways to let go, tried out: the most hits from request `at` on with `held` in the cache.
    fn best(trace: &Trace, budget: usize, at: usize, held: &BTreeSet<u32>) -> u64 {
        let Some(request) = trace.requests().get(at) else { return 0 };
        let n_hits = request.iter().filter(|block| held.contains(block)).count() as u64;
        let all: Vec<u32> =
            held.iter().chain(request).copied().collect::<BTreeSet<_>>().into_iter().collect();
        let kept = |mask: u32| {
            all.iter()
                .enumerate()
                .filter(move |(k, _)| mask >> k & 1 == 1)
                .map(|(_, &b)| b)
                .collect()
        };
        let most = (0..1u32 << all.len())
            .filter(|mask| mask.count_ones() as usize == budget.min(all.len()))
            .map(|mask| best(trace, budget, at + 1, &kept(mask)))
            .max();
        n_hits + most.unwrap_or(0)
    }

    #[test]
    fn min_is_the_best_of_all_ways_to_let_go() {
        let paths: [&[u64]; 6] = [&[1], &[1, 2], &[1, 2, 3], &[1, 4], &[5], &[5, 6]];
        let orders: [&[usize]; 5] = [
            &[1, 3, 5, 1, 3],
            &[2, 5, 2, 4, 3],
            &[0, 4, 0, 5, 2, 0],
            &[2, 2, 3, 3, 5, 1],
            &[5, 1, 4, 3, 5, 0],
        ];
        for order in orders {
            let mut trace = Trace::new();
            order.iter().for_each(|&idx| trace.push(paths[idx]).unwrap());
            for budget in 0..5 {
                let expected = best(&trace, budget, 0, &BTreeSet::new());
                assert_eq!(min_hits(&trace, budget), expected, "{order:?} with {budget}");
            }
        }
    }
}
