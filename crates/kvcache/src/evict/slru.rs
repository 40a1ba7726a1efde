//! Segmented LRU (Karedla, Love, Wherry 1994): what was used once stands apart from what was used
//! again, so that a flood of single uses cannot drive out what is shared.

use std::collections::BTreeMap;

use super::order::{Order, Ordered};
use super::{Tick, Unit, UnitId};

/// Share of all bytes that what was used again may hold before its oldest count as used once.
const PROTECTED_SHARE: f64 = 0.5;

/// Evicts the oldest of what was used once; only then the oldest of what was used again.
pub type Slru = Ordered<BySegment>;

#[derive(Debug)]
struct Entry {
    place: u64,
    bytes: u64,
    protected: bool,
}

/// The order of [`Slru`].
#[derive(Debug, Default)]
pub struct BySegment {
    /// By segment (used again or not), then by use.
    line: BTreeMap<(bool, u64), UnitId>,
    /// What was used again by use, hidden or not.
    protected: BTreeMap<u64, UnitId>,
    entries: BTreeMap<UnitId, Entry>,
    n_uses: u64,
    total_bytes: u64,
    protected_bytes: u64,
}

impl BySegment {
    fn put(&mut self, id: UnitId, bytes: u64, protected: bool) {
        let place = self.n_uses;
        self.n_uses += 1;
        self.total_bytes += bytes;
        if protected {
            self.protected_bytes += bytes;
            self.protected.insert(place, id);
        }
        self.line.insert((protected, place), id);
        self.entries.insert(id, Entry { place, bytes, protected });
    }

    fn take(&mut self, id: UnitId) -> Option<Entry> {
        let entry = self.entries.remove(&id)?;
        self.line.remove(&(entry.protected, entry.place));
        self.total_bytes -= entry.bytes;
        if entry.protected {
            self.protected_bytes -= entry.bytes;
            self.protected.remove(&entry.place);
        }
        Some(entry)
    }

    /// Until what was used again is within its share. A demoted unit stands behind what was used
    /// once, where it stands among its like.
    fn demote(&mut self) {
        while self.protected_bytes as f64 > PROTECTED_SHARE * self.total_bytes as f64 {
            let Some((place, id)) = self.protected.pop_first() else { return };
            let Some(entry) = self.entries.get_mut(&id) else { return };
            self.protected_bytes -= entry.bytes;
            entry.protected = false;
            let was_shown = self.line.remove(&(true, place)).is_some();
            entry.place = self.n_uses;
            self.n_uses += 1;
            if was_shown {
                self.line.insert((false, entry.place), id);
            }
        }
    }
}

impl Order for BySegment {
    fn insert(&mut self, id: UnitId, unit: Unit, _: Tick) {
        self.put(id, unit.bytes, false);
    }

    fn touch(&mut self, id: UnitId, _: Tick) {
        if let Some(entry) = self.take(id) {
            self.put(id, entry.bytes, true);
            self.demote();
        }
    }

    fn update(&mut self, id: UnitId, unit: Unit) {
        if let Some(entry) = self.entries.get_mut(&id) {
            self.total_bytes = self.total_bytes - entry.bytes + unit.bytes;
            if entry.protected {
                self.protected_bytes = self.protected_bytes - entry.bytes + unit.bytes;
            }
            entry.bytes = unit.bytes;
        }
    }

    fn remove(&mut self, id: UnitId) {
        self.take(id);
    }

    fn first(&mut self, _: Tick) -> Option<UnitId> {
        self.line.first_key_value().map(|(_, &id)| id)
    }

    fn hide(&mut self, id: UnitId) {
        if let Some(entry) = self.entries.get(&id) {
            self.line.remove(&(entry.protected, entry.place));
        }
    }

    fn show(&mut self, id: UnitId) {
        if let Some(entry) = self.entries.get(&id) {
            self.line.insert((entry.protected, entry.place), id);
        }
    }
}
