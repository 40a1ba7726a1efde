//! Slots with generations: a handle to something removed never finds what took its place (C7).

use std::ops::{Index, IndexMut};

use crate::evict::UnitId;

/// Names a value in an [`Arena`], and only that value, also after its slot is used again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Handle {
    pub(crate) slot: u32,
    pub(crate) generation: u32,
}

impl From<Handle> for UnitId {
    fn from(handle: Handle) -> Self {
        Self(handle.slot, handle.generation)
    }
}

impl From<UnitId> for Handle {
    fn from(unit: UnitId) -> Self {
        Self { slot: unit.0, generation: unit.1 }
    }
}

/// Values by [`Handle`]. A slot costs the value and four bytes.
#[derive(Debug)]
pub(crate) struct Arena<T> {
    slots: Vec<(u32, Option<T>)>,
    free: Vec<u32>,
}

impl<T> Arena<T> {
    pub fn new() -> Self {
        Self { slots: Vec::new(), free: Vec::new() }
    }

    pub fn insert(&mut self, value: T) -> Handle {
        if let Some(slot) = self.free.pop() {
            let (generation, place) = &mut self.slots[slot as usize];
            *place = Some(value);
            return Handle { slot, generation: *generation };
        }
        let slot = u32::try_from(self.slots.len()).expect("fewer than 2^32 values fit in memory");
        self.slots.push((0, Some(value)));
        Handle { slot, generation: 0 }
    }

    pub fn remove(&mut self, handle: Handle) -> Option<T> {
        self.get(handle)?;
        let (generation, place) = &mut self.slots[handle.slot as usize];
        *generation = generation.wrapping_add(1);
        self.free.push(handle.slot);
        place.take()
    }

    pub fn get(&self, handle: Handle) -> Option<&T> {
        let (generation, place) = self.slots.get(handle.slot as usize)?;
        place.as_ref().filter(|_| *generation == handle.generation)
    }

    pub fn get_mut(&mut self, handle: Handle) -> Option<&mut T> {
        let (generation, place) = self.slots.get_mut(handle.slot as usize)?;
        place.as_mut().filter(|_| *generation == handle.generation)
    }

    pub fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    pub fn values_mut(&mut self) -> impl Iterator<Item = &mut T> {
        self.slots.iter_mut().filter_map(|(_, place)| place.as_mut())
    }

    pub fn iter(&self) -> impl Iterator<Item = (Handle, &T)> {
        self.slots.iter().enumerate().filter_map(|(slot, (generation, place))| {
            let handle = Handle { slot: slot as u32, generation: *generation };
            place.as_ref().map(|value| (handle, value))
        })
    }
}

impl<T> Index<Handle> for Arena<T> {
    type Output = T;

    fn index(&self, handle: Handle) -> &T {
        self.get(handle).expect("the holder of a handle keeps its value alive")
    }
}

impl<T> IndexMut<Handle> for Arena<T> {
    fn index_mut(&mut self, handle: Handle) -> &mut T {
        self.get_mut(handle).expect("the holder of a handle keeps its value alive")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_handle_does_not_find_what_took_its_place() {
        let mut arena = Arena::new();
        let first = arena.insert('a');
        assert_eq!(arena.remove(first), Some('a'));
        let second = arena.insert('b');
        assert_eq!(first.slot, second.slot);
        assert_eq!((arena.get(first), arena.get(second)), (None, Some(&'b')));
        assert_eq!((arena.remove(first), arena.len()), (None, 1));
    }
}
