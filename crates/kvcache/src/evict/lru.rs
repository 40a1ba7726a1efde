//! Least recently used: a list through the slots of units, so that every act is O(1). What may not
//! go when its turn comes is in use, so it goes to the end of the line.

use super::{Evict, Tick, Unit, UnitId};

/// No slot.
const NONE: u32 = u32::MAX;

#[derive(Debug, Clone, Copy)]
struct Link {
    generation: u32,
    is_in_line: bool,
    before: u32,
    after: u32,
}

const UNLINKED: Link = Link { generation: 0, is_in_line: false, before: NONE, after: NONE };

/// Evicts what was used longest ago; of units used in one tick, what was touched first.
#[derive(Debug)]
pub struct Lru {
    /// By slot.
    links: Vec<Link>,
    first: u32,
    last: u32,
    n_units: usize,
}

impl Default for Lru {
    fn default() -> Self {
        Self { links: Vec::new(), first: NONE, last: NONE, n_units: 0 }
    }
}

impl Lru {
    /// Knows no unit yet.
    pub fn new() -> Self {
        Self::default()
    }

    fn knows(&self, UnitId(slot, generation): UnitId) -> bool {
        let link = self.links.get(slot as usize);
        link.is_some_and(|l| l.is_in_line && l.generation == generation)
    }

    fn unlink(&mut self, slot: u32) {
        let Link { before, after, .. } = self.links[slot as usize];
        match self.links.get_mut(before as usize) {
            Some(link) => link.after = after,
            None => self.first = after,
        }
        match self.links.get_mut(after as usize) {
            Some(link) => link.before = before,
            None => self.last = before,
        }
        self.links[slot as usize].is_in_line = false;
        self.n_units -= 1;
    }

    fn append(&mut self, UnitId(slot, generation): UnitId) {
        let before = self.last;
        self.links[slot as usize] = Link { generation, is_in_line: true, before, after: NONE };
        match self.links.get_mut(before as usize) {
            Some(link) => link.after = slot,
            None => self.first = slot,
        }
        self.last = slot;
        self.n_units += 1;
    }
}

impl Evict for Lru {
    fn insert(&mut self, id: UnitId, _: Unit, _: Tick) {
        if self.links.len() <= id.0 as usize {
            self.links.resize(id.0 as usize + 1, UNLINKED);
        }
        if self.links[id.0 as usize].is_in_line {
            self.unlink(id.0);
        }
        self.append(id);
    }

    fn touch(&mut self, id: UnitId, _: Tick) {
        if self.knows(id) {
            self.unlink(id.0);
            self.append(id);
        }
    }

    fn update(&mut self, _: UnitId, _: Unit) {}

    fn remove(&mut self, id: UnitId) {
        if self.knows(id) {
            self.unlink(id.0);
        }
    }

    fn victim(&mut self, now: Tick, may: &mut dyn FnMut(UnitId) -> bool) -> Option<UnitId> {
        for _ in 0..self.n_units {
            let id = UnitId(self.first, self.links.get(self.first as usize)?.generation);
            if may(id) {
                return Some(id);
            }
            self.touch(id, now);
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::evict::Class;

    #[test]
    fn the_line_is_in_the_order_of_use_and_passes_over_what_may_not_go() {
        let mut lru = Lru::new();
        let ids = [UnitId(2, 0), UnitId(0, 7), UnitId(5, 1), UnitId(1, 1)];
        let unit =
            Unit { key: 0, bytes: 1, saved_cost: 0.0, depth_tokens: 1, class: Class::Interior };
        ids.iter().for_each(|id| lru.insert(*id, unit, 0));
        lru.touch(ids[0], 1);
        lru.touch(UnitId(0, 6), 1);
        let mut order = Vec::new();
        while let Some(id) = lru.victim(1, &mut |id| id != ids[1] || order.len() == 3) {
            order.push(id);
            lru.remove(id);
            lru.remove(id);
        }
        assert_eq!(order, [ids[2], ids[3], ids[0], ids[1]]);
        assert_eq!(lru.victim(1, &mut |_| true), None);
    }
}
