//! What a lookup found and what limited it. Looking changes nothing (C13).

use std::collections::VecDeque;

use crate::arena::Handle;
use crate::cache::{Cache, SeqId};
use crate::layout::{N_TIERS, Ns, Tier, Token};
use crate::trie::{Walk, n_common};

/// Lookups that are kept to be explained.
const N_KEPT: usize = 256;
/// Tokens of each side that are shown around a divergence.
const N_SHOWN: usize = 8;

/// Why no more of a prompt is reused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Cause {
    /// All that can be is reused: one token must be computed to go on.
    Complete,
    /// A state that would serve stands at the prompt's very end; it cannot be taken back by the one
    /// token that must be computed. A checkpoint before the end would serve.
    Layout,
    /// Rows are there up to `matched`, but the nearest checkpoint is at `usable`.
    NoCheckpoint,
    /// A live sequence is computing what is missing.
    InFlight {
        /// Which.
        seq: SeqId,
        /// Tokens that will be there when its prompt is done.
        until: usize,
    },
    /// Bringing up to `at` tokens back would take longer than computing them.
    CostGate {
        /// Tokens that a slower tier has.
        at: usize,
    },
    /// A slower tier has `at` tokens, but the device has no room for them.
    NoRoom {
        /// Tokens that a slower tier has.
        at: usize,
    },
    /// The tokens up to `until` were known, and their rows are gone.
    Evicted {
        /// Tokens that were there.
        until: usize,
    },
    /// What is cached goes on with other tokens.
    Diverged {
        /// The index of the first token that differs.
        at: usize,
        /// What is cached from there on.
        cached: Vec<Token>,
        /// What was asked from there on.
        asked: Vec<Token>,
    },
    /// Nothing is known from this token on.
    NeverSeen {
        /// The index of the first unknown token.
        at: usize,
    },
}

/// A length at which a prompt may be resumed.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Candidate {
    /// Tokens that need no computing.
    pub at: usize,
    /// The slowest tier that takes part.
    pub tier: Tier,
    /// Bytes to bring to the device, by the tier they come from.
    pub bytes: [u64; N_TIERS],
    /// Microseconds until the whole prompt is there.
    pub cost_us: f64,
}

/// What is known of a prompt.
#[derive(Debug, Clone, PartialEq)]
pub struct Match {
    /// Who asked.
    pub ns: Ns,
    /// Tokens of the prompt.
    pub n_tokens: usize,
    /// Leading tokens that are known, with or without rows.
    pub seen: usize,
    /// Leading tokens whose rows some tier has.
    pub matched: usize,
    /// Leading tokens whose rows each tier has, device first.
    pub by_tier: [usize; N_TIERS],
    /// Leading tokens that need no computing, by the cheapest plan.
    pub usable: usize,
    /// The slowest tier of that plan.
    pub tier: Tier,
    /// What limited it.
    pub cause: Cause,
    /// All lengths at which it could be resumed, the cheapest first.
    pub candidates: Vec<Candidate>,
}

/// A part of a restore: what one tier gives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Segment {
    pub tier: Tier,
    /// Tokens whose rows it brings.
    pub from: usize,
    pub to: usize,
    /// Whether it brings the checkpoint.
    pub has_saved: bool,
}

/// The latest matches.
#[derive(Debug, Default)]
pub(crate) struct Log(VecDeque<Match>);

impl Log {
    pub fn push(&mut self, found: Match) {
        if self.0.len() == N_KEPT {
            self.0.pop_front();
        }
        self.0.push_back(found);
    }

    pub fn iter(&self) -> impl Iterator<Item = &Match> {
        self.0.iter()
    }
}

impl Cache {
    /// What is known of `tokens`, and how they would be resumed.
    pub fn find(&self, ns: Ns, tokens: &[Token]) -> Match {
        self.explain(ns, tokens, &self.trie.walk(ns, tokens))
    }

    /// Leading tokens whose rows on the device are pinned: what begins on them takes no room for
    /// them.
    pub fn n_pinned(&self, ns: Ns, tokens: &[Token]) -> usize {
        let walk = self.trie.walk(ns, tokens);
        let nodes = walk.nodes.iter().map(|node| &self.trie.nodes[*node]);
        let pinned = nodes.take_while(|node| node.n_locks[0] > 0).last();
        pinned.map_or(0, |node| node.end().min(walk.covered[0]))
    }

    pub(crate) fn explain(&self, ns: Ns, tokens: &[Token], walk: &Walk) -> Match {
        let candidates = self.candidates(tokens.len(), walk);
        let (usable, tier) = candidates.first().map_or((0, Tier::Device), |c| (c.at, c.tier));
        let matched = walk.covered.into_iter().max().unwrap_or(0);
        let mut found = Match {
            ns,
            n_tokens: tokens.len(),
            seen: walk.seen,
            matched,
            by_tier: walk.covered,
            usable,
            tier,
            cause: Cause::Complete,
            candidates,
        };
        found.cause = self.cause(tokens, walk, &found);
        found
    }

    /// Where a prompt of `n_tokens` can be resumed, the cheapest first, then the longest.
    ///
    /// Between two ends of what tiers have, cost as a function of the length is concave (bytes
    /// come linearly, computing is convex), so only the ends can be best.
    fn candidates(&self, n_tokens: usize, walk: &Walk) -> Vec<Candidate> {
        let max = n_tokens.saturating_sub(1);
        let mut places = vec![(0, Tier::Device)];
        if self.layout.needs_checkpoints() {
            for node in walk.nodes.iter().map(|n| &self.trie.nodes[*n]) {
                let tier = Tier::ALL.into_iter().find(|t| node.saved[t.idx()].is_some());
                let is_place = node.end().is_multiple_of(self.layout.stride);
                if let Some(tier) = tier.filter(|_| is_place && node.end() <= max.min(walk.seen)) {
                    places.push((node.end(), tier));
                }
            }
        } else {
            for tier in Tier::ALL {
                let at =
                    walk.covered[tier.idx()].min(max) / self.layout.stride * self.layout.stride;
                if places.iter().all(|p| p.0 < at) {
                    places.push((at, tier));
                }
            }
        }
        let at_place = |(at, tier)| {
            let mut bytes = [0; N_TIERS];
            let mut slowest = Tier::Device;
            for segment in self.segments(walk, at, tier) {
                bytes[segment.tier.idx()] += self.segment_bytes(&segment);
                slowest = slowest.max(segment.tier);
            }
            let load = Tier::ALL.map(|t| self.costs.load_us(t, bytes[t.idx()]));
            let cost_us = load.iter().sum::<f64>() + self.costs.prefill.us(at, n_tokens);
            Candidate { at, tier: slowest, bytes, cost_us }
        };
        let mut candidates = places.into_iter().map(at_place).collect::<Vec<_>>();
        candidates.sort_by(|a, b| a.cost_us.total_cmp(&b.cost_us).then(b.at.cmp(&a.at)));
        candidates
    }

    /// What must be brought to the device to resume at `at`, whose checkpoint, if the layout has
    /// any, lies in `saved_tier`. Every token comes from the fastest tier that has it.
    pub(crate) fn segments(&self, walk: &Walk, at: usize, saved_tier: Tier) -> Vec<Segment> {
        let mut from = walk.covered[0].min(at);
        let mut segments = Vec::new();
        for tier in [Tier::Host, Tier::Disk] {
            let to = walk.covered[tier.idx()].min(at).max(from);
            let has_saved = self.layout.needs_checkpoints() && at > 0 && tier == saved_tier;
            if to > from || has_saved {
                segments.push(Segment { tier, from, to, has_saved });
            }
            from = to;
        }
        segments
    }

    pub(crate) fn segment_bytes(&self, segment: &Segment) -> u64 {
        let first_idx = segment.from / self.layout.block_tokens;
        let n_rows = match segment.to > segment.from {
            true => self.layout.n_blocks(segment.to) - first_idx,
            false => 0,
        };
        let saved = if segment.has_saved { self.layout.saved_bytes(segment.to) } else { 0 };
        n_rows as u64 * self.layout.full_bytes() + saved
    }

    /// The tier of the checkpoint that a candidate resumes at.
    pub(crate) fn saved_tier(&self, node: Handle) -> Tier {
        let saved = &self.trie.nodes[node].saved;
        Tier::ALL.into_iter().find(|t| saved[t.idx()].is_some()).unwrap_or(Tier::Device)
    }

    fn cause(&self, tokens: &[Token], walk: &Walk, found: &Match) -> Cause {
        let max = tokens.len().saturating_sub(1);
        if found.usable >= max {
            return Cause::Complete;
        }
        let longest = found.candidates.iter().map(|c| c.at).max().unwrap_or(0);
        if longest > found.usable {
            return Cause::CostGate { at: longest };
        }
        let until = |seq: &crate::sequence::Sequence| n_common(&seq.prompt, tokens);
        let same_ns = self.seqs.iter().filter(|(_, seq)| Some(seq.root) == walk.root);
        let ahead = same_ns.map(|(handle, seq)| (until(seq), handle)).max();
        if let Some((until, handle)) = ahead.filter(|(until, _)| *until > found.matched) {
            return Cause::InFlight { seq: SeqId(handle), until };
        }
        let ends_here = |n: &Handle| {
            let node = &self.trie.nodes[*n];
            node.end() == tokens.len() && node.saved.iter().any(Option::is_some)
        };
        if found.matched == tokens.len() && walk.nodes.last().is_some_and(ends_here) {
            return Cause::Layout;
        }
        if found.matched.min(max) > found.usable {
            return Cause::NoCheckpoint;
        }
        if walk.seen > found.matched {
            return Cause::Evicted { until: walk.seen };
        }
        self.continuation(tokens, walk)
    }

    /// Nothing of ours is limiting: the prompt itself parts from what is known.
    pub(crate) fn continuation(&self, tokens: &[Token], walk: &Walk) -> Cause {
        let at = walk.seen;
        let Some(last) = walk.nodes.last().or(walk.root.as_ref()) else {
            return Cause::NeverSeen { at };
        };
        let mut node = &self.trie.nodes[*last];
        if at == node.end() {
            // Which of several continuations is the one that the caller meant is not known; one
            // that is pinned or was cached first is as good as any.
            match node.children.first() {
                Some((_, child)) => node = &self.trie.nodes[*child],
                None => return Cause::NeverSeen { at },
            }
        }
        let cached = &node.edge.tokens()[at - node.start..];
        let shown = |tokens: &[Token]| tokens[..tokens.len().min(N_SHOWN)].to_vec();
        Cause::Diverged { at, cached: shown(cached), asked: shown(&tokens[at..]) }
    }
}
