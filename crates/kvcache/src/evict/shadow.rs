//! What another policy would have kept: its decisions on names and numbers of units, without the
//! units. Dependencies between units are not followed; pins are unknown.

use std::collections::BTreeMap;

use super::{Evict, Tick, Unit, UnitId};

/// A pretended tier.
#[derive(Debug)]
pub(super) struct Shadow {
    policy: Box<dyn Evict>,
    units: BTreeMap<u64, (UnitId, Unit)>,
    /// The key of each slot.
    keys: Vec<u64>,
    free: Vec<u32>,
    used_bytes: u64,
    /// Cost that hits saved so far, older ones weighing less.
    pub saved_cost: f64,
}

impl Shadow {
    pub fn new(policy: Box<dyn Evict>) -> Self {
        Self {
            policy,
            units: BTreeMap::new(),
            keys: Vec::new(),
            free: Vec::new(),
            used_bytes: 0,
            saved_cost: 0.0,
        }
    }

    /// A request asks for a unit; true if it is here.
    pub fn ask(&mut self, key: u64, now: Tick) -> bool {
        let Some(&(id, unit)) = self.units.get(&key) else {
            self.policy.missed(key, now);
            return false;
        };
        self.policy.touch(id, now);
        self.saved_cost += unit.saved_cost;
        true
    }

    /// A unit was made; it takes part unless it does already.
    pub fn take(&mut self, unit: Unit, budget_bytes: u64, now: Tick) {
        if let Some((id, known)) = self.units.get_mut(&unit.key) {
            self.used_bytes = self.used_bytes - known.bytes + unit.bytes;
            *known = unit;
            self.policy.update(*id, unit);
        } else {
            let id = self.free.pop().unwrap_or_else(|| {
                self.keys.push(0);
                u32::try_from(self.keys.len() - 1).expect("fewer than 2^32 units fit in memory")
            });
            self.keys[id as usize] = unit.key;
            let id = UnitId(id, 0);
            self.used_bytes += unit.bytes;
            self.units.insert(unit.key, (id, unit));
            self.policy.insert(id, unit, now);
        }
        while self.used_bytes > budget_bytes
            && let Some(id) = self.policy.victim(now, &mut |_| true)
        {
            self.policy.remove(id);
            self.free.push(id.0);
            if let Some((_, gone)) = self.units.remove(&self.keys[id.0 as usize]) {
                self.used_bytes -= gone.bytes;
            }
        }
    }
}
