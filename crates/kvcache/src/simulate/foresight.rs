//! Who goes first in a simulated tier: a policy, or a yardstick that no cache can afford, because
//! it looks at all units for each victim or knows the future.

use std::collections::BTreeSet;

use crate::evict::{Evict, Tick, Unit, UnitId};

use super::agents::AgentRequest;
use super::checkpoints::Held;
use super::prefixes::{NodeIdx, Prefixes};

/// When each prefix is asked for.
#[derive(Debug)]
pub struct Future(Vec<Vec<usize>>);

impl Future {
    /// Of a whole trace.
    pub fn of(prefixes: &Prefixes, requests: &[AgentRequest]) -> Self {
        let mut asked = vec![Vec::new(); prefixes.n_nodes()];
        for (request_idx, request) in requests.iter().enumerate() {
            for &node in &request.prompt {
                asked[node as usize].push(request_idx);
            }
        }
        Self(asked)
    }

    /// Requests until a prefix is next asked for, after the one with this index.
    fn distance(&self, node: NodeIdx, request_idx: usize) -> Option<usize> {
        let asked = &self.0[node as usize];
        let next = asked.get(asked.partition_point(|&at| at <= request_idx))?;
        Some(next - request_idx)
    }
}

/// Who chooses.
pub enum Chooser<'a> {
    /// A policy, as a cache would run it.
    Policy(Box<dyn Evict>),
    /// rank(recency) + weight · rank(cost per byte), ranks in [0, 1).
    Ranks(f64),
    /// Cost per byte over the time to the next use: greedy with foresight, no bound.
    Clairvoyant(&'a Future),
}

impl Chooser<'_> {
    /// See [`Evict::insert`].
    pub fn insert(&mut self, id: UnitId, unit: Unit, now: Tick) {
        if let Self::Policy(policy) = self {
            policy.insert(id, unit, now);
        }
    }

    /// See [`Evict::touch`].
    pub fn touch(&mut self, id: UnitId, now: Tick) {
        if let Self::Policy(policy) = self {
            policy.touch(id, now);
        }
    }

    /// See [`Evict::update`].
    pub fn update(&mut self, id: UnitId, unit: Unit) {
        if let Self::Policy(policy) = self {
            policy.update(id, unit);
        }
    }

    /// See [`Evict::remove`].
    pub fn remove(&mut self, id: UnitId) {
        if let Self::Policy(policy) = self {
            policy.remove(id);
        }
    }

    /// See [`Evict::missed`].
    pub fn missed(&mut self, key: u64, now: Tick) {
        if let Self::Policy(policy) = self {
            policy.missed(key, now);
        }
    }

    /// The next to go; of equal ones the prefix that came first into the trace.
    pub fn victim(
        &mut self,
        all: &BTreeSet<NodeIdx>,
        held: &[Option<Held>],
        request_idx: usize,
        now: Tick,
    ) -> Option<NodeIdx> {
        let density = |held: &Held| held.unit.saved_cost / held.unit.bytes as f64;
        let mut units: Vec<(NodeIdx, Held)> =
            all.iter().filter_map(|&node| Some((node, held[node as usize]?))).collect();
        let scores: Vec<f64> = match self {
            Self::Policy(policy) => {
                return policy.victim(now, &mut |_| true).map(|UnitId(slot, _)| slot);
            }
            Self::Ranks(weight) => {
                units.sort_by(|a, b| density(&a.1).total_cmp(&density(&b.1)));
                let mut by_use: Vec<usize> = (0..units.len()).collect();
                by_use.sort_by_key(|&idx| units[idx].1.last_use);
                let mut scores: Vec<f64> = (0..units.len()).map(|k| *weight * k as f64).collect();
                for (rank, idx) in by_use.into_iter().enumerate() {
                    scores[idx] += rank as f64;
                }
                scores
            }
            Self::Clairvoyant(future) => {
                let score = |(node, held): &(NodeIdx, Held)| {
                    let next = future.distance(*node, request_idx);
                    next.map_or(-1.0, |distance| density(held) / distance as f64)
                };
                units.iter().map(score).collect()
            }
        };
        let lowest =
            units.iter().zip(scores).min_by(|a, b| a.1.total_cmp(&b.1).then(a.0.0.cmp(&b.0.0)));
        lowest.map(|((node, _), _)| *node)
    }
}
