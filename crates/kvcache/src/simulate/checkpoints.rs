//! A hybrid model's cache under a trace of agents: checkpoints of recurrent state on a trie of
//! attention rows, on a device and a host tier, without prefill time.
//!
//! A request resumes at its deepest checkpoint in any tier. It then captures where the placement
//! says, in both tiers (write-through), and each tier lets units go until it is within its budget.
//! A hit on the host comes back to the device. The budget counts a state for each checkpoint and
//! the rows of every prefix that has a checkpoint at or below it.

use std::collections::BTreeSet;

use crate::evict::{Class, Tick, Unit, UnitId, Waiting};

use super::agents::AgentRequest;
use super::foresight::Chooser;
use super::prefixes::{End, NodeIdx, Prefixes};

/// Bytes and costs of the simulated model: Qwen3-Next-80B-A3B in 16 bits.
const ROW_BYTES: u64 = 24_576;
const STATE_BYTES: u64 = 75 << 20;
/// Prefill of n tokens costs n + n² / this, in tokens.
const QUADRATIC_TOKENS: f64 = 60_000.0;
/// Share of the requests that only warm the cache.
const WARM_SHARE: usize = 5;

/// Where checkpoints are captured, beside the end of each answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Placement {
    /// Where a prompt leaves what the cache has rows of (speculative insertion, as in Marconi).
    BranchPoints,
    /// At the ends of the system prompt and of the messages of the user.
    Template,
}

/// Cost of computing the first `n_tokens` of a prompt, in tokens at no depth.
fn prefill_cost(n_tokens: u32) -> f64 {
    let n_tokens = f64::from(n_tokens);
    n_tokens + n_tokens * n_tokens / QUADRATIC_TOKENS
}

/// A checkpoint as the choosers see it.
#[derive(Debug, Clone, Copy)]
pub struct Held {
    /// As policies see it.
    pub unit: Unit,
    /// Last use.
    pub last_use: Tick,
}

/// One tier: which prefixes have a checkpoint, and what they weigh.
struct Tier<'a> {
    prefixes: &'a Prefixes,
    budget_bytes: u64,
    used_bytes: u64,
    chooser: Chooser<'a>,
    held: Vec<Option<Held>>,
    /// All that are held.
    all: BTreeSet<NodeIdx>,
    /// Checkpoints at and below each node: rows are kept while there is one.
    n_below: Vec<u32>,
    /// Nearest checkpoints below each checkpoint (or the root).
    children: Vec<BTreeSet<NodeIdx>>,
    was_held: Vec<bool>,
}

impl<'a> Tier<'a> {
    fn new(prefixes: &'a Prefixes, budget_bytes: u64, chooser: Chooser<'a>) -> Self {
        let n = prefixes.n_nodes();
        Self {
            prefixes,
            budget_bytes,
            used_bytes: 0,
            chooser,
            held: vec![None; n],
            all: BTreeSet::new(),
            n_below: vec![0; n],
            children: vec![BTreeSet::new(); n],
            was_held: vec![false; n],
        }
    }

    fn has(&self, node: NodeIdx) -> bool {
        self.held[node as usize].is_some()
    }

    /// The nearest checkpoint above, or the root.
    fn parent(&self, node: NodeIdx) -> NodeIdx {
        self.prefixes.upwards(node).skip(1).find(|&at| self.has(at)).unwrap_or(0)
    }

    /// What only this checkpoint keeps, and what it saves against the next one above.
    fn value(&self, node: NodeIdx, class: Class) -> Unit {
        let is_leaf = self.n_below[node as usize] == 1;
        let own = self.prefixes.upwards(node).take_while(|&at| self.n_below[at as usize] == 1);
        let n_rows: u64 = if is_leaf {
            own.map(|at| u64::from(self.prefixes.node_at(at).n_tokens)).sum()
        } else {
            0
        };
        let depth = self.prefixes.depth(node);
        let parent_depth = self.prefixes.depth(self.parent(node));
        Unit {
            key: u64::from(node),
            bytes: STATE_BYTES + n_rows * ROW_BYTES,
            saved_cost: prefill_cost(depth) - prefill_cost(parent_depth),
            depth_tokens: u64::from(depth),
            class,
        }
    }

    /// Values anew what a change at `node` can have changed: itself, what is next to it, and what
    /// hangs on the same parent.
    fn revalue(&mut self, node: NodeIdx, parent: NodeIdx) {
        let near = self.children[node as usize].iter().chain(&self.children[parent as usize]);
        for at in near.copied().chain([node, parent]).collect::<BTreeSet<_>>() {
            let Some(Held { unit, last_use }) = self.held[at as usize] else { continue };
            let new = self.value(at, unit.class);
            if new != unit {
                self.held[at as usize] = Some(Held { unit: new, last_use });
                self.chooser.update(UnitId(at, 0), new);
            }
        }
    }

    fn insert(&mut self, node: NodeIdx, class: Class, now: Tick) {
        let parent = self.parent(node);
        self.used_bytes += STATE_BYTES;
        for at in self.prefixes.upwards(node) {
            if self.n_below[at as usize] == 0 {
                self.used_bytes += ROW_BYTES * u64::from(self.prefixes.node_at(at).n_tokens);
            }
            self.n_below[at as usize] += 1;
        }
        let siblings = std::mem::take(&mut self.children[parent as usize]);
        let (mut below, beside): (BTreeSet<_>, BTreeSet<_>) =
            siblings.into_iter().partition(|&at| self.prefixes.is_below(at, node));
        self.children[parent as usize] = beside;
        self.children[parent as usize].insert(node);
        self.children[node as usize].append(&mut below);
        self.all.insert(node);
        let unit = self.value(node, class);
        self.held[node as usize] = Some(Held { unit, last_use: now });
        self.chooser.insert(UnitId(node, 0), unit, now);
        self.revalue(node, parent);
    }

    fn remove(&mut self, node: NodeIdx) {
        self.chooser.remove(UnitId(node, 0));
        self.held[node as usize] = None;
        self.was_held[node as usize] = true;
        self.all.remove(&node);
        self.used_bytes -= STATE_BYTES;
        for at in self.prefixes.upwards(node) {
            self.n_below[at as usize] -= 1;
            if self.n_below[at as usize] == 0 {
                self.used_bytes -= ROW_BYTES * u64::from(self.prefixes.node_at(at).n_tokens);
            }
        }
        let parent = self.parent(node);
        let mut orphans = std::mem::take(&mut self.children[node as usize]);
        self.children[parent as usize].remove(&node);
        self.children[parent as usize].append(&mut orphans);
        self.revalue(node, parent);
    }

    /// The deepest checkpoint on the path, which is thereby used, or the root.
    fn resume(&mut self, path: &[NodeIdx], now: Tick) -> NodeIdx {
        let hit = path.iter().rev().copied().find(|&at| self.has(at)).unwrap_or(0);
        if let Some(held) = &mut self.held[hit as usize] {
            held.last_use = now;
            self.chooser.touch(UnitId(hit, 0), now);
        }
        let depth = self.prefixes.depth(hit);
        let lost = path.iter().rev().take_while(|&&at| self.prefixes.depth(at) > depth);
        if let Some(&at) = lost.into_iter().find(|&&at| self.was_held[at as usize]) {
            self.chooser.missed(u64::from(at), now);
        }
        hit
    }

    fn shrink(&mut self, request_idx: usize, now: Tick) {
        while self.used_bytes > self.budget_bytes && self.all.len() > 1 {
            let victim = self.chooser.victim(&self.all, &self.held, request_idx, now);
            let Some(victim) = victim else { return };
            self.remove(victim);
        }
    }
}

/// Where and how to replay.
pub struct Setup<'a> {
    /// Where to capture.
    pub placement: Placement,
    /// Bytes of the device tier, and who goes first there.
    pub device: (u64, Chooser<'a>),
    /// The same of the host tier, if there is one.
    pub host: Option<(u64, Chooser<'a>)>,
}

/// What a replay came to, after warming.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Figures {
    /// Tokens of all prompts.
    pub prompt_tokens: u64,
    /// Tokens that a boundless cache would have to compute: beyond the longest prefix of any
    /// earlier prompt and answer, and at least the last one.
    pub fresh_tokens: u64,
    /// Tokens computed.
    pub prefilled_tokens: u64,
    /// Tokens that came from the host tier.
    pub restored_tokens: u64,
    /// Checkpoints on the device at the end.
    pub n_checkpoints: usize,
}

impl Figures {
    /// Tokens computed for each that had to be.
    pub fn amplification(&self) -> f64 {
        self.prefilled_tokens as f64 / self.fresh_tokens as f64
    }

    /// Hits over those of a boundless cache.
    pub fn share_of_ideal(&self) -> f64 {
        (self.prompt_tokens - self.prefilled_tokens) as f64
            / (self.prompt_tokens - self.fresh_tokens) as f64
    }
}

/// The class of a capture at `node`, if the placement wants one.
fn class_at(
    placement: Placement,
    prefixes: &Prefixes,
    request: &AgentRequest,
    idx: usize,
    branch: NodeIdx,
) -> Option<Class> {
    let node = request.full[idx];
    if idx + 1 == request.full.len() {
        let waiting = if request.awaits_tool { Waiting::Tool } else { Waiting::Person };
        return Some(Class::OutputEnd(waiting));
    }
    if idx >= request.prompt.len() {
        return None;
    }
    match (placement, prefixes.node_at(node).end) {
        (Placement::BranchPoints, _) => (node == branch).then_some(Class::BranchPoint),
        (Placement::Template, End::System) => Some(Class::System),
        (Placement::Template, End::Turn) => Some(Class::TurnEnd),
        (Placement::Template, _) => None,
    }
}

/// Replays all requests.
pub fn replay(prefixes: &Prefixes, requests: &[AgentRequest], setup: Setup<'_>) -> Figures {
    let (budget_bytes, chooser) = setup.device;
    let mut device = Tier::new(prefixes, budget_bytes, chooser);
    let mut host = setup.host.map(|(bytes, chooser)| Tier::new(prefixes, bytes, chooser));
    let mut figures = Figures::default();
    let mut seen = vec![false; prefixes.n_nodes()];
    for (request_idx, request) in requests.iter().enumerate() {
        let now = (request.at_s * 1e6) as Tick;
        let n_prompt = request.prompt.last().map_or(0, |&last| prefixes.depth(last));
        let branch = request.prompt.iter().rev().find(|&&at| device.n_below[at as usize] > 0);
        let branch = branch.copied().unwrap_or(0);
        let on_device = device.resume(&request.prompt, now);
        let on_host = host.as_mut().map_or(0, |host| host.resume(&request.prompt, now));
        let device_depth = prefixes.depth(on_device);
        let hit_depth = device_depth.max(prefixes.depth(on_host));
        if request_idx >= requests.len() / WARM_SHARE {
            let known = request.prompt.iter().rev().find(|&&at| seen[at as usize]);
            let known = known.map_or(0, |&at| prefixes.depth(at)).min(n_prompt - 1);
            figures.prompt_tokens += u64::from(n_prompt);
            figures.fresh_tokens += u64::from(n_prompt - known);
            figures.prefilled_tokens += u64::from(n_prompt - hit_depth);
            figures.restored_tokens += u64::from(hit_depth - device_depth);
        }
        let from_host = host.as_ref().filter(|_| hit_depth > device_depth);
        if let Some(held) = from_host.and_then(|host| host.held[on_host as usize]) {
            device.insert(on_host, held.unit.class, now);
        }
        for idx in (0..request.full.len()).rev() {
            let node = request.full[idx];
            if prefixes.depth(node) <= hit_depth {
                break;
            }
            let class = class_at(setup.placement, prefixes, request, idx, branch);
            let Some(class) = class else { continue };
            for tier in [Some(&mut device), host.as_mut()].into_iter().flatten() {
                if !tier.has(node) {
                    tier.insert(node, class, now);
                }
            }
        }
        request.full.iter().for_each(|&at| seen[at as usize] = true);
        for tier in [Some(&mut device), host.as_mut()].into_iter().flatten() {
            tier.shrink(request_idx, now);
        }
    }
    figures.n_checkpoints = device.all.len();
    figures
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::evict::Policy;
    use crate::simulate::agents::AgentTrace;

    /// What the books must say, counted from the set of checkpoints alone.
    fn check(tier: &Tier<'_>) {
        let mut rows = BTreeSet::new();
        for &node in &tier.all {
            rows.extend(tier.prefixes.upwards(node));
        }
        let n_rows: u64 = rows.iter().map(|&r| u64::from(tier.prefixes.node_at(r).n_tokens)).sum();
        assert_eq!(tier.used_bytes, n_rows * ROW_BYTES + tier.all.len() as u64 * STATE_BYTES);
        for &node in &tier.all {
            let held = tier.held[node as usize].unwrap();
            assert_eq!(held.unit, tier.value(node, held.unit.class), "values follow neighbours");
            assert!(tier.children[tier.parent(node) as usize].contains(&node));
        }
    }

    #[test]
    fn bytes_and_values_are_those_of_the_checkpoints_that_are_held() {
        let trace = AgentTrace { n_agents: 4, n_requests: 60, strips_reasoning: true, seed: 5 };
        let (prefixes, requests) = trace.generate();
        let mut tier = Tier::new(&prefixes, u64::MAX, Chooser::Policy(Policy::Lru.build()));
        for (request, now) in requests.iter().zip(1..) {
            let at = request.full.len() - 1;
            for (idx, &node) in request.full.iter().enumerate() {
                if !tier.has(node) && (idx == at || (node + now as u32).is_multiple_of(5)) {
                    tier.insert(node, Class::Interior, now);
                    check(&tier);
                }
            }
            for node in tier.all.clone() {
                if (node + now as u32).is_multiple_of(3) {
                    tier.remove(node);
                    check(&tier);
                }
            }
        }
        for node in tier.all.clone() {
            tier.remove(node);
        }
        assert_eq!(tier.used_bytes, 0);
    }
}
