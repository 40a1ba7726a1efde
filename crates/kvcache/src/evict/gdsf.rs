//! Greedy dual, size and frequency (Cherkasova 1998): a unit's worth is `age + uses · cost /
//! bytes`, where `age` is the worth of the last victim when the unit was used. What is not used
//! again is overtaken by what comes later.

use std::collections::{BTreeMap, BTreeSet};

use super::order::{Order, Ordered};
use super::{Tick, Unit, UnitId};

/// Evicts the lowest worth; of equal ones what was used first.
pub type Gdsf = Ordered<ByWorth>;

#[derive(Debug, Clone, Copy)]
struct Entry {
    /// Worth of the last victim at the time of the last use.
    age: f64,
    n_uses: f64,
    density: f64,
    place: u64,
}

impl Entry {
    fn worth(&self) -> f64 {
        self.age + self.n_uses * self.density
    }

    /// The bits of a float that is not negative sort as the float does.
    fn rank(&self) -> (u64, u64) {
        (self.worth().to_bits(), self.place)
    }
}

/// The order of [`Gdsf`].
#[derive(Debug, Default)]
pub struct ByWorth {
    line: BTreeSet<((u64, u64), UnitId)>,
    entries: BTreeMap<UnitId, Entry>,
    age: f64,
    n_places: u64,
}

impl ByWorth {
    fn put(&mut self, id: UnitId, n_uses: f64, density: f64) {
        let entry = Entry { age: self.age, n_uses, density, place: self.n_places };
        self.n_places += 1;
        self.line.insert((entry.rank(), id));
        self.entries.insert(id, entry);
    }
}

impl Order for ByWorth {
    fn insert(&mut self, id: UnitId, unit: Unit, _: Tick) {
        self.put(id, 1.0, unit.density());
    }

    fn touch(&mut self, id: UnitId, _: Tick) {
        if let Some(&Entry { n_uses, density, .. }) = self.entries.get(&id) {
            self.remove(id);
            self.put(id, n_uses + 1.0, density);
        }
    }

    fn update(&mut self, id: UnitId, unit: Unit) {
        if let Some(entry) = self.entries.get_mut(&id) {
            self.line.remove(&(entry.rank(), id));
            entry.density = unit.density();
            self.line.insert((entry.rank(), id));
        }
    }

    fn remove(&mut self, id: UnitId) {
        self.hide(id);
        self.entries.remove(&id);
    }

    fn first(&mut self, _: Tick) -> Option<UnitId> {
        self.line.first().map(|&(_, id)| id)
    }

    fn chosen(&mut self, id: UnitId) {
        self.age = self.entries.get(&id).map_or(self.age, |entry| self.age.max(entry.worth()));
    }

    fn hide(&mut self, id: UnitId) {
        if let Some(entry) = self.entries.get(&id) {
            self.line.remove(&(entry.rank(), id));
        }
    }

    fn show(&mut self, id: UnitId) {
        if let Some(entry) = self.entries.get(&id) {
            self.line.insert((entry.rank(), id));
        }
    }
}
