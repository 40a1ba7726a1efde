//! Where blocks lie on disk. One transfer writes one extent, rows and checkpoint together; its
//! pieces are freed one by one, and the extent is dead when its last piece is. Ids of extents are
//! never used again, so an owner may delete the dead whenever it likes.

use std::collections::BTreeMap;

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
    /// Pieces that are in use, and bytes of all that there ever were.
    extents: BTreeMap<ExtentId, (usize, u64)>,
    dead: Vec<ExtentId>,
    next: u64,
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
        let extent = self.extents.entry(place.extent).or_default();
        extent.0 += 1;
        extent.1 += place.n_bytes;
    }

    pub fn get(&self, group: usize, id: BlockId) -> Option<Place> {
        self.places.get(&(group, id)).copied()
    }

    pub fn free(&mut self, group: usize, id: BlockId) {
        let place = self.places.remove(&(group, id)).expect("a block on disk has a place");
        let extent = self.extents.get_mut(&place.extent).expect("a place is in an extent");
        extent.0 -= 1;
        if extent.0 == 0 {
            self.extents.remove(&place.extent);
            self.dead.push(place.extent);
        }
    }

    pub fn take_dead(&mut self) -> Vec<ExtentId> {
        std::mem::take(&mut self.dead)
    }

    /// Bytes of extents that are not dead, with those of their freed pieces.
    pub fn n_bytes(&self) -> u64 {
        self.extents.values().map(|e| e.1).sum()
    }

    /// Pieces per extent, for the counter-check.
    pub fn check(&self, n_blocks: usize) {
        assert_eq!(self.places.len(), n_blocks, "I6: what is on disk has a place");
        let mut n_pieces = BTreeMap::<ExtentId, usize>::new();
        self.places.values().for_each(|place| *n_pieces.entry(place.extent).or_default() += 1);
        let counted = self.extents.iter().map(|(id, extent)| (*id, extent.0)).collect();
        assert_eq!(n_pieces, counted, "I5: an extent has the pieces that lie in it");
    }
}
