//! Where blocks lie on disk. One transfer writes one extent: rows in the order of their path, then
//! the checkpoint. Its pieces are freed one by one, nearly always from its end: paths lose their
//! ends, and checkpoints go before the rows under them. So an extent ends with the last piece that
//! is in use, and is dead when there is none. The owner, who is told, cuts it off there or deletes
//! it. What is freed before the end takes room until then. Ids of extents are never used again.

use std::collections::{BTreeMap, BTreeSet};

use crate::blocks::BlockId;

/// Names one extent, also across restarts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ExtentId(pub u64);

/// Where the bytes of a block or state are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// In which extent.
    pub extent: ExtentId,
    /// Bytes before it.
    pub offset: u64,
    /// Its bytes.
    pub n_bytes: u64,
}

#[derive(Debug, Default)]
pub(crate) struct Extents {
    places: BTreeMap<(usize, BlockId), Place>,
    /// Where the pieces that are in use begin and end. The last of them ends the extent.
    extents: BTreeMap<ExtentId, BTreeMap<u64, u64>>,
    /// Of all extents.
    n_bytes: u64,
    dead: Vec<ExtentId>,
    /// Those whose end is another than the owner knows.
    shortened: BTreeSet<ExtentId>,
    next: u64,
}

fn end_of(pieces: &BTreeMap<u64, u64>) -> u64 {
    pieces.last_key_value().map_or(0, |(_, end)| *end)
}

impl Extents {
    pub fn new_id(&mut self) -> ExtentId {
        self.next += 1;
        ExtentId(self.next - 1)
    }

    /// An extent that was there before this cache was.
    pub fn adopt(&mut self, id: ExtentId) {
        self.next = self.next.max(id.0 + 1);
    }

    pub fn knows(&self, id: ExtentId) -> bool {
        self.extents.contains_key(&id)
    }

    pub fn put(&mut self, group: usize, id: BlockId, place: Place) {
        let before = self.places.insert((group, id), place);
        assert!(before.is_none(), "a block is put where it lies once");
        let pieces = self.extents.entry(place.extent).or_default();
        let end = end_of(pieces);
        pieces.insert(place.offset, place.offset + place.n_bytes);
        self.n_bytes += end_of(pieces) - end;
    }

    pub fn get(&self, group: usize, id: BlockId) -> Option<Place> {
        self.places.get(&(group, id)).copied()
    }

    pub fn free(&mut self, group: usize, id: BlockId) {
        let place = self.places.remove(&(group, id)).expect("a block on disk has a place");
        let pieces = self.extents.get_mut(&place.extent).expect("a place is in an extent");
        let end = end_of(pieces);
        pieces.remove(&place.offset);
        let n_gone = end - end_of(pieces);
        self.n_bytes -= n_gone;
        if pieces.is_empty() {
            self.extents.remove(&place.extent);
            self.shortened.remove(&place.extent);
            self.dead.push(place.extent);
        } else if n_gone > 0 {
            self.shortened.insert(place.extent);
        }
    }

    /// The owner has `n_bytes` of an extent.
    pub fn has(&mut self, id: ExtentId, n_bytes: u64) {
        if self.extents.get(&id).is_some_and(|pieces| end_of(pieces) < n_bytes) {
            self.shortened.insert(id);
        }
    }

    pub fn take_dead(&mut self) -> Vec<ExtentId> {
        std::mem::take(&mut self.dead)
    }

    pub fn take_shortened(&mut self) -> Vec<(ExtentId, u64)> {
        let ids = std::mem::take(&mut self.shortened).into_iter();
        ids.filter_map(|id| Some((id, end_of(self.extents.get(&id)?)))).collect()
    }

    /// Bytes of extents up to their ends, with those of freed pieces that lie before.
    pub fn n_bytes(&self) -> u64 {
        self.n_bytes
    }

    /// Pieces per extent, for the counter-check.
    pub fn check(&self, n_blocks: usize) {
        assert_eq!(self.places.len(), n_blocks, "I6: what is on disk has a place");
        let mut counted = BTreeMap::<ExtentId, BTreeMap<u64, u64>>::new();
        for place in self.places.values() {
            let pieces = counted.entry(place.extent).or_default();
            pieces.insert(place.offset, place.offset + place.n_bytes);
        }
        assert_eq!(counted, self.extents, "I5: an extent has the pieces that lie in it");
        let n_bytes = counted.values().map(end_of).sum::<u64>();
        assert_eq!(n_bytes, self.n_bytes, "I6: bytes of extents to their ends");
    }
}
