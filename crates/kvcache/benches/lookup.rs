//! What the cache costs per request, per token and per eviction, in microseconds: the median and
//! the longest of many. `cargo bench -p kvcache` measures, `cargo test` runs it small. The hash is
//! of what was found, so that nobody makes it faster by finding something else.

use std::hint::black_box;
use std::time::Instant;

use kvcache::{
    Budgets, Cache, Class, Costs, Group, Kind, Layout, Link, Lru, Ns, Op, Policy, Prefill, Tier,
    Token, policies,
};

const NS: Ns = Ns(1);

fn fold(hash: &mut u64, found: u64) {
    *hash = (hash.rotate_left(23) ^ found).wrapping_mul(0x9e37_79b9_7f4a_7c15);
}

struct Size {
    n_tokens: usize,
    n_conversations: u32,
    n_rounds: usize,
}

/// Times of one kind of act.
struct Times {
    name: &'static str,
    us: Vec<f64>,
}

impl Times {
    fn new(name: &'static str) -> Self {
        Self { name, us: Vec::new() }
    }

    fn take<T>(&mut self, act: impl FnOnce() -> T) -> T {
        let start = Instant::now();
        let result = black_box(act());
        self.us.push(start.elapsed().as_secs_f64() * 1e6);
        result
    }

    fn print(mut self) {
        self.us.sort_by(f64::total_cmp);
        let (n, last) = (self.us.len(), self.us.last().copied().unwrap_or(0.0));
        println!(
            "{:<42} median {:>9.2} us  longest {last:>9.2} us  n {n}",
            self.name,
            self.us[n / 2]
        );
    }
}

fn cache(kinds: &[Kind], budget: u64) -> Cache {
    let group = |kind: &Kind| Group { kind: *kind, bytes: 1 };
    let layout = Layout::new(16, kinds.iter().map(group).collect()).expect("a sound layout");
    let link = Link { latency_us: 100.0, bytes_per_us: 1e4 };
    let prefill = Prefill { a: 100.0, b: 100.0, c: 1e-3 };
    let costs = Costs { prefill, host: link, disk: link };
    Cache::new(layout, Budgets([budget, 0, 0]), costs, policies(Lru::new))
}

fn text(who: u32, n_tokens: usize) -> Vec<Token> {
    let token = |k: u32| k.wrapping_mul(2_654_435_761) ^ who.wrapping_mul(40_503);
    (0..n_tokens as u32).map(token).collect()
}

/// A fifth shared by all, then its own; turns of a twentieth.
fn conversation(size: &Size, who: u32) -> Vec<Token> {
    let mut tokens = text(0, size.n_tokens / 5);
    tokens.extend(text(who + 1, size.n_tokens - tokens.len()));
    tokens
}

fn compute(cache: &mut Cache, prompt: &[Token], turn: usize, now: u64) {
    let begun = cache.begin(NS, prompt, now).expect("there is room");
    let mut at = cache.position(begun.seq).expect("nothing to restore").at;
    while at < prompt.len() {
        let n = (turn - at % turn).min(prompt.len() - at);
        cache.reserve(begun.seq, n, now).expect("there is room");
        cache.advance(begun.seq, &prompt[at..at + n]);
        cache.capture(begun.seq, Class::TurnEnd, now);
        at += n;
    }
    cache.end(begun.seq, now);
}

fn requests(kinds: &[Kind], size: &Size, hash: &mut u64) {
    println!("{kinds:?}, {} conversations of {} tokens", size.n_conversations, size.n_tokens);
    let mut cache = cache(kinds, u64::MAX / 4);
    let mut prompts = (0..size.n_conversations).map(|w| conversation(size, w)).collect::<Vec<_>>();
    for (now, prompt) in prompts.iter().enumerate() {
        compute(&mut cache, prompt, size.n_tokens / 20, now as u64);
    }
    let (mut cold, mut warm) =
        (Times::new("  find, each conversation in turn"), Times::new("  find, the one just used"));
    for _ in 0..size.n_rounds {
        for prompt in &mut prompts {
            let mut longer = prompt.clone();
            longer.extend([7; 200]);
            let found = cold.take(|| cache.find(NS, &longer));
            fold(hash, found.usable as u64);
            let found = warm.take(|| cache.find(NS, &longer));
            fold(hash, found.matched as u64);
        }
    }
    cold.print();
    warm.print();
    let mut begin = Times::new("  begin on a hit");
    let mut end = Times::new("  end");
    let mut decode = Times::new("  reserve and advance by one token");
    for (now, prompt) in prompts.iter().enumerate() {
        let begun = begin.take(|| cache.begin(NS, prompt, now as u64)).expect("there is room");
        fold(hash, begun.found.usable as u64);
        let rest = &prompt[cache.position(begun.seq).expect("nothing to restore").at..];
        cache.reserve(begun.seq, rest.len(), 0).expect("there is room");
        cache.advance(begun.seq, rest);
        for token in 0..64 {
            decode.take(|| {
                cache.reserve(begun.seq, 1, 0).expect("there is room");
                cache.advance(begun.seq, &[token]);
            });
        }
        end.take(|| cache.end(begun.seq, now as u64));
    }
    begin.print();
    decode.print();
    end.print();
}

/// Evicts the half of a cache of `n_blocks` blocks, and gives the time per block.
fn evictions(n_blocks: usize, hash: &mut u64) {
    let mut cache = cache(&[Kind::Full], n_blocks as u64);
    for who in 0..n_blocks.div_ceil(64) as u32 {
        compute(&mut cache, &text(who, 64 * 16), 1_000_000, u64::from(who));
    }
    let start = Instant::now();
    cache.resize(Tier::Device, n_blocks as u64 / 2, 0);
    let n_evicted = cache.stats().tiers[0].n_evicted;
    let us = start.elapsed().as_secs_f64() * 1e6 / n_evicted as f64;
    println!("evict one of {n_blocks:>8} blocks{:>16} mean   {us:>9.2} us  n {n_evicted}", "");
    fold(hash, n_evicted);
}

/// Conversations of `n_blocks` blocks in turn, where the device has room for one and a little and
/// the host for all: each begins by making room for all of itself, under the policy of the engine.
fn switches(n_blocks: usize, n_rounds: usize, hash: &mut u64) {
    let n_tokens = 32 * n_blocks;
    let layout = Layout::new(32, vec![Group { kind: Kind::Full, bytes: 1 }]);
    let link = Link { latency_us: 50.0, bytes_per_us: 1e4 };
    let prefill = Prefill { a: 1_000.0, b: 30.0, c: 2e-4 };
    let costs = Costs { prefill, host: link, disk: link };
    let budgets = Budgets([n_blocks as u64 * 9 / 8, 8 * n_blocks as u64, 0]);
    let policies = std::array::from_fn(|_| Policy::Hazard.build());
    let mut cache = Cache::new(layout.expect("a sound layout"), budgets, costs, policies);
    let mut begin = Times::new("  begin on what only the host has");
    for round in 0..n_rounds as u64 {
        for who in 0..3 {
            let (prompt, now) = (text(who, n_tokens), (3 * round + u64::from(who)) * 1_000_000);
            let n_before = cache.stats().tiers[0].n_evicted;
            let begun = match round {
                0 => cache.begin(NS, &prompt, now),
                _ => begin.take(|| cache.begin(NS, &prompt, now)),
            };
            let begun = begun.expect("there is room");
            fold(hash, cache.stats().tiers[0].n_evicted - n_before);
            for op in begun.ops {
                if let Op::Restore(transfer) = op {
                    cache.finish(transfer.id, true, now);
                }
            }
            let rest = &prompt[cache.position(begun.seq).expect("all has come").at..];
            cache.reserve(begun.seq, rest.len(), now).expect("there is room");
            cache.advance(begun.seq, rest);
            cache.end(begun.seq, now);
            for transfer in cache.next_copies(u64::MAX, now) {
                cache.finish(transfer.id, true, now);
            }
        }
    }
    println!("3 conversations of {n_blocks} blocks in turn, room for one");
    begin.print();
}

fn main() {
    let is_measuring = std::env::args().any(|a| a == "--bench");
    let size = match is_measuring {
        true => Size { n_tokens: 100_000, n_conversations: 64, n_rounds: 10 },
        false => Size { n_tokens: 2_000, n_conversations: 4, n_rounds: 1 },
    };
    let mut hash = 0;
    requests(&[Kind::Full], &size, &mut hash);
    requests(&[Kind::Full, Kind::Recurrent], &size, &mut hash);
    let sizes: &[usize] = if is_measuring { &[10_000, 100_000, 1_000_000] } else { &[1_000] };
    sizes.iter().for_each(|n| evictions(*n, &mut hash));
    let (n_blocks, n_rounds) = if is_measuring { (1_024, 8) } else { (64, 3) };
    switches(n_blocks, n_rounds, &mut hash);
    println!("hash {hash:016x}");
}
