//! Values by unit, found without a search: slots of units are dense, so a vector holds them.

use super::UnitId;

/// At most one value for each slot, of its latest unit.
#[derive(Debug)]
pub struct BySlot<T> {
    slots: Vec<Option<(u32, T)>>,
    n: usize,
}

impl<T> Default for BySlot<T> {
    fn default() -> Self {
        Self { slots: Vec::new(), n: 0 }
    }
}

impl<T> BySlot<T> {
    pub fn len(&self) -> usize {
        self.n
    }

    pub fn get(&self, UnitId(slot, generation): UnitId) -> Option<&T> {
        let (of, value) = self.slots.get(slot as usize)?.as_ref()?;
        (*of == generation).then_some(value)
    }

    pub fn get_mut(&mut self, UnitId(slot, generation): UnitId) -> Option<&mut T> {
        let (of, value) = self.slots.get_mut(slot as usize)?.as_mut()?;
        (*of == generation).then_some(value)
    }

    pub fn insert(&mut self, UnitId(slot, generation): UnitId, value: T) {
        let slot = slot as usize;
        if self.slots.len() <= slot {
            self.slots.resize_with(slot + 1, || None);
        }
        let before = self.slots[slot].replace((generation, value));
        self.n += usize::from(before.is_none());
    }

    pub fn remove(&mut self, id: UnitId) -> Option<T> {
        self.get(id)?;
        self.n -= 1;
        self.slots[id.0 as usize].take().map(|(_, value)| value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slot_has_the_value_of_its_latest_unit_alone() {
        let mut values = BySlot::default();
        values.insert(UnitId(3, 0), 'a');
        values.insert(UnitId(1, 5), 'b');
        assert_eq!((values.len(), values.get(UnitId(3, 0))), (2, Some(&'a')));
        assert_eq!((values.get(UnitId(3, 1)), values.get(UnitId(9, 0))), (None, None));
        values.insert(UnitId(3, 1), 'c');
        assert_eq!((values.len(), values.get(UnitId(3, 0))), (2, None));
        assert_eq!((values.remove(UnitId(3, 0)), values.remove(UnitId(3, 1))), (None, Some('c')));
        assert_eq!((values.remove(UnitId(3, 1)), values.len()), (None, 1));
        *values.get_mut(UnitId(1, 5)).unwrap() = 'd';
        assert_eq!(values.get(UnitId(1, 5)), Some(&'d'));
    }
}
