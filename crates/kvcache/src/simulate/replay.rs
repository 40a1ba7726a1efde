//! Replays a trace of blocks through the [`Cache`] itself: one token is one block of one byte.

use crate::evict::{Evict, Lru, Tick};
use crate::layout::{Budgets, Costs, Group, Kind, Layout, Link, Ns, Prefill, Token};
use crate::{Cache, NoRoom, SeqId};

use super::belady::min_hits;
use super::trace::Trace;

/// Ends every prompt and is never computed: a cache leaves the last token to compute, and the
/// whole of a trace's prompt may be a hit.
const LAST: Token = Token::MAX;

/// What a replay came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Figures {
    /// Prompts.
    pub n_requests: u64,
    /// Blocks of all prompts.
    pub n_blocks: u64,
    /// Blocks that were there when they were asked for, with all before them.
    pub n_hits: u64,
    /// What a cache of this size that knows the future would have found.
    pub n_min_hits: u64,
}

impl Figures {
    /// Hits per block; 0 for none.
    pub fn hit_ratio(&self) -> f64 {
        self.n_hits as f64 / self.n_blocks.max(1) as f64
    }

    /// Of the cache that knows the future.
    pub fn min_hit_ratio(&self) -> f64 {
        self.n_min_hits as f64 / self.n_blocks.max(1) as f64
    }
}

fn cache(budget_blocks: u64, policy: Box<dyn Evict>) -> Cache {
    let groups = vec![Group { kind: Kind::Full, bytes: 1 }];
    let layout = Layout::new(1, groups).expect("blocks of one token and one byte are sound");
    let link = Link { latency_us: 0.0, bytes_per_us: 1.0 };
    // Every block costs the same.
    let prefill = Prefill { a: 0.0, b: 1.0, c: 0.0 };
    let costs = Costs { prefill, host: link, disk: link };
    let budgets = Budgets([budget_blocks, 0, 0]);
    Cache::new(layout, budgets, costs, [policy, Box::new(Lru::new()), Box::new(Lru::new())])
}

/// Replays all requests of a trace, one after the other, through a cache of `budget_blocks`.
pub fn replay(trace: &Trace, budget_blocks: u64, policy: Box<dyn Evict>) -> Figures {
    let mut cache = cache(budget_blocks, policy);
    for (request, now) in trace.requests().iter().zip(1..) {
        // A prompt that has no room at all is computed without the cache.
        let _: Result<(), NoRoom> = serve(&mut cache, request, now);
    }
    let budget_blocks = usize::try_from(budget_blocks).unwrap_or(usize::MAX);
    Figures {
        n_requests: trace.requests().len() as u64,
        n_blocks: trace.n_blocks() as u64,
        n_hits: cache.stats().tiers[0].n_hit_tokens,
        n_min_hits: min_hits(trace, budget_blocks),
    }
}

fn serve(cache: &mut Cache, request: &[Token], now: Tick) -> Result<(), NoRoom> {
    let prompt = [request, &[LAST]].concat();
    let begun = cache.begin(Ns(0), &prompt, now)?;
    compute(cache, begun.seq, &request[begun.found.usable..], now);
    cache.end(begun.seq, now);
    Ok(())
}

/// Computes as many of `tokens` as there is room for.
fn compute(cache: &mut Cache, seq: SeqId, tokens: &[Token], now: Tick) {
    if !tokens.is_empty() && cache.reserve(seq, tokens.len(), now).is_ok() {
        return cache.advance(seq, tokens);
    }
    for token in tokens {
        if cache.reserve(seq, 1, now).is_err() {
            return;
        }
        cache.advance(seq, &[*token]);
    }
}
