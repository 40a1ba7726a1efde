//! Follows the policy that would have done best lately.
//!
//! Each candidate orders the real units, and also runs a [`Shadow`]: a pretended tier of the same
//! size that sees the same requests. After every window the one whose shadow has saved most cost
//! leads, by a margin, so that noise does not turn it over. What was asked for in a window is kept,
//! and replayed with foresight at its end: the difference is the regret.
//!
//! It takes about as much memory and time as two of each candidate.

use std::collections::{BTreeMap, BTreeSet};

use super::shadow::Shadow;
use super::{Evict, Gdsf, Hazard, Lru, Tick, Unit, UnitId};

/// Candidates; the first leads at the start.
const CANDIDATES: [&str; 3] = ["hazard", "lru", "gdsf"];
/// Uses between two decisions, at least; else as many as there are units.
const MIN_WINDOW: usize = 1024;
/// Uses that are kept to be replayed.
const MAX_WINDOW: usize = 1 << 16;
/// By how much a candidate must do better than the leader.
const MARGIN: f64 = 1.02;
/// What a window leaves of the weight of older ones.
const KEEP: f64 = 0.5;

/// What the last full window came to, in cost saved.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Regret {
    /// By the leader's shadow.
    pub saved_cost: f64,
    /// By evicting what is used farthest in the future, beginning with what any candidate had. The
    /// most there is if units are equal, a good cache otherwise.
    pub clairvoyant_cost: f64,
}

impl Regret {
    /// The part of the clairvoyant's savings that the leader missed.
    pub fn share(&self) -> f64 {
        if self.clairvoyant_cost > 0.0 {
            (1.0 - self.saved_cost / self.clairvoyant_cost).max(0.0)
        } else {
            0.0
        }
    }
}

#[derive(Debug, Clone, Copy)]
struct Asked {
    key: u64,
    bytes: u64,
    saved_cost: f64,
    /// Whether some candidate had it.
    was_there: bool,
}

/// See the module.
#[derive(Debug)]
pub struct Adaptive {
    real: [Box<dyn Evict>; 3],
    shadows: [Shadow; 3],
    leader: usize,
    units: BTreeMap<UnitId, Unit>,
    used_bytes: u64,
    /// Bytes held when room was last short; shadows get as much.
    budget_bytes: u64,
    window: Vec<Asked>,
    /// Uses in the window of what was not there and has not come since, by key.
    unmade: BTreeMap<u64, usize>,
    n_asked: usize,
    /// Saved by the leader's shadow before this window.
    saved_before: f64,
    regret: Regret,
}

fn candidates() -> [Box<dyn Evict>; 3] {
    [Box::new(Hazard::new()), Box::new(Lru::new()), Box::new(Gdsf::new())]
}

impl Default for Adaptive {
    fn default() -> Self {
        Self {
            real: candidates(),
            shadows: candidates().map(Shadow::new),
            leader: 0,
            units: BTreeMap::new(),
            used_bytes: 0,
            budget_bytes: u64::MAX,
            window: Vec::new(),
            unmade: BTreeMap::new(),
            n_asked: 0,
            saved_before: 0.0,
            regret: Regret::default(),
        }
    }
}

impl Adaptive {
    /// Knows no unit yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Whom it follows.
    pub fn leader(&self) -> &'static str {
        CANDIDATES[self.leader]
    }

    /// Of the last full window.
    pub fn regret(&self) -> Regret {
        self.regret
    }

    fn ask(&mut self, key: u64, unit: Option<&Unit>, now: Tick) {
        let mut was_there = false;
        for shadow in &mut self.shadows {
            was_there |= shadow.ask(key, now);
        }
        if self.window.len() < MAX_WINDOW {
            // What nobody knows weighs nothing until it is made.
            let (bytes, saved_cost) = unit.map_or((0, 0.0), |u| (u.bytes, u.saved_cost));
            if unit.is_none() {
                self.unmade.insert(key, self.window.len());
            }
            self.window.push(Asked { key, bytes, saved_cost, was_there });
        }
        self.n_asked += 1;
        if self.n_asked >= MIN_WINDOW.max(self.units.len()).min(MAX_WINDOW) {
            self.decide();
        }
    }

    fn decide(&mut self) {
        let saved_cost = self.shadows[self.leader].saved_cost - self.saved_before;
        let clairvoyant_cost = foresight(&self.window, self.budget_bytes);
        self.regret = Regret { saved_cost, clairvoyant_cost };
        let score = |idx: &usize| self.shadows[*idx].saved_cost;
        let best = (0..self.shadows.len()).max_by(|a, b| score(a).total_cmp(&score(b)));
        if let Some(best) = best.filter(|best| score(best) > MARGIN * score(&self.leader)) {
            self.leader = best;
        }
        self.shadows.iter_mut().for_each(|shadow| shadow.saved_cost *= KEEP);
        self.saved_before = self.shadows[self.leader].saved_cost;
        self.window.clear();
        self.unmade.clear();
        self.n_asked = 0;
    }
}

/// Cost that a tier of `budget_bytes` saves that knows what is asked for, in O(n log n).
fn foresight(window: &[Asked], budget_bytes: u64) -> f64 {
    let mut next_by_key = BTreeMap::new();
    let mut next_uses = vec![usize::MAX; window.len()];
    for (at, asked) in window.iter().enumerate().rev() {
        next_uses[at] = next_by_key.insert(asked.key, at).unwrap_or(usize::MAX);
    }
    // What some candidate had at its first use was there from the start.
    let mut held: BTreeMap<u64, (usize, u64)> = BTreeMap::new();
    let mut by_next_use = BTreeSet::new();
    let mut used_bytes = 0;
    for (key, at) in next_by_key {
        if window[at].was_there {
            held.insert(key, (at, window[at].bytes));
            by_next_use.insert((at, key));
            used_bytes += window[at].bytes;
        }
    }
    let mut saved_cost = 0.0;
    for (asked, &next_use) in window.iter().zip(&next_uses) {
        if let Some((at, bytes)) = held.remove(&asked.key) {
            by_next_use.remove(&(at, asked.key));
            used_bytes -= bytes;
            saved_cost += asked.saved_cost;
        }
        if next_use != usize::MAX {
            held.insert(asked.key, (next_use, asked.bytes));
            by_next_use.insert((next_use, asked.key));
            used_bytes += asked.bytes;
        }
        while used_bytes > budget_bytes
            && let Some((_, key)) = by_next_use.pop_last()
        {
            used_bytes -= held.remove(&key).map_or(0, |(_, bytes)| bytes);
        }
    }
    saved_cost
}

impl Evict for Adaptive {
    fn insert(&mut self, id: UnitId, unit: Unit, now: Tick) {
        if let Some(asked) = self.unmade.remove(&unit.key).and_then(|at| self.window.get_mut(at)) {
            (asked.bytes, asked.saved_cost) = (unit.bytes, unit.saved_cost);
        }
        self.used_bytes += unit.bytes;
        self.used_bytes -= self.units.insert(id, unit).map_or(0, |old| old.bytes);
        self.real.iter_mut().for_each(|policy| policy.insert(id, unit, now));
        let budget_bytes = self.budget_bytes;
        self.shadows.iter_mut().for_each(|shadow| shadow.take(unit, budget_bytes, now));
    }

    fn touch(&mut self, id: UnitId, now: Tick) {
        self.real.iter_mut().for_each(|policy| policy.touch(id, now));
        if let Some(&unit) = self.units.get(&id) {
            self.ask(unit.key, Some(&unit), now);
            // A shadow that had let it go makes it again.
            let budget_bytes = self.budget_bytes;
            self.shadows.iter_mut().for_each(|shadow| shadow.take(unit, budget_bytes, now));
        }
    }

    fn update(&mut self, id: UnitId, unit: Unit) {
        if let Some(known) = self.units.get_mut(&id) {
            self.used_bytes = self.used_bytes - known.bytes + unit.bytes;
            *known = unit;
            self.real.iter_mut().for_each(|policy| policy.update(id, unit));
        }
    }

    fn remove(&mut self, id: UnitId) {
        self.used_bytes -= self.units.remove(&id).map_or(0, |unit| unit.bytes);
        self.real.iter_mut().for_each(|policy| policy.remove(id));
    }

    fn missed(&mut self, key: u64, now: Tick) {
        self.real.iter_mut().for_each(|policy| policy.missed(key, now));
        self.ask(key, None, now);
    }

    fn victim(&mut self, now: Tick, may: &mut dyn FnMut(UnitId) -> bool) -> Option<UnitId> {
        self.budget_bytes = self.used_bytes;
        self.real[self.leader].victim(now, may)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::evict::Class;

    fn unit(key: u64) -> Unit {
        let (bytes, saved_cost, depth_tokens, class) = (1, 1.0, 1, Class::Interior);
        Unit { key, bytes, saved_cost, depth_tokens, class }
    }

    /// A tier of `n` units under a policy; returns hits.
    fn serve(policy: &mut Adaptive, n: usize, keys: impl Iterator<Item = u64>) -> usize {
        let mut held = BTreeMap::new();
        let mut free: Vec<u32> = (0..=n as u32).collect();
        let mut n_hits = 0;
        for (key, now) in keys.zip(1..) {
            if let Some(&id) = held.get(&key) {
                policy.touch(id, now);
                n_hits += 1;
                continue;
            }
            policy.missed(key, now);
            let id = UnitId(free.pop().unwrap(), 0);
            held.insert(key, id);
            policy.insert(id, unit(key), now);
            if held.len() > n {
                let victim = policy.victim(now, &mut |_| true).unwrap();
                policy.remove(victim);
                held.retain(|_, id| *id != victim);
                free.push(victim.0);
            }
        }
        n_hits
    }

    #[test]
    fn regret_is_none_where_all_fits_and_large_where_a_loop_does_not() {
        let mut policy = Adaptive::new();
        serve(&mut policy, 100, (0..20_000).map(|k| k % 80));
        assert_eq!(policy.regret().share(), 0.0);
        let mut policy = Adaptive::new();
        policy.real = [Box::new(Lru::new()), Box::new(Lru::new()), Box::new(Lru::new())];
        policy.shadows = [(); 3].map(|()| Shadow::new(Box::new(Lru::new())));
        let n_hits = serve(&mut policy, 100, (0..20_000).map(|k| k % 130));
        assert_eq!((n_hits, policy.regret().saved_cost), (0, 0.0), "LRU never hits in a loop");
        // Belady keeps 99 of 130 and so hits about three times in four.
        let Regret { clairvoyant_cost, .. } = policy.regret();
        let most = MIN_WINDOW as f64;
        assert!((0.6..0.9).contains(&(clairvoyant_cost / most)), "{clairvoyant_cost} of {most}");
    }

    #[test]
    fn the_candidate_that_hits_leads() {
        let mut policy = Adaptive::new();
        // A candidate that never had a chance, and one that suits: the second in the list leads.
        policy.shadows[0] = Shadow::new(Box::new(MostRecent::default()));
        policy.real[0] = Box::new(MostRecent::default());
        let looks_back = (0..60_000u64).map(|k| if k % 2 == 0 { k } else { k - k % 50 });
        serve(&mut policy, 60, looks_back);
        assert_ne!(policy.leader, 0);
    }

    /// Evicts what was used last.
    #[derive(Debug, Default)]
    struct MostRecent(Vec<UnitId>);

    impl Evict for MostRecent {
        fn insert(&mut self, id: UnitId, _: Unit, _: Tick) {
            self.0.push(id);
        }
        fn touch(&mut self, id: UnitId, _: Tick) {
            self.remove(id);
            self.0.push(id);
        }
        fn update(&mut self, _: UnitId, _: Unit) {}
        fn remove(&mut self, id: UnitId) {
            self.0.retain(|known| *known != id);
        }
        fn victim(&mut self, _: Tick, may: &mut dyn FnMut(UnitId) -> bool) -> Option<UnitId> {
            self.0.iter().rev().copied().find(|id| may(*id))
        }
    }
}
