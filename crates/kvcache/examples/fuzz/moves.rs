//! Blocks that get other ids on the device: what is in them goes along.

use std::collections::HashSet;

use kvcache::{BlockId, Op, Tier};

use crate::world::{POISON, World};

impl World {
    /// Blocks move, but for those that these are about.
    pub fn pack_around(&mut self, ops: &[Op]) {
        for group in 0..self.layout.groups().len() {
            let fixed = ops.iter().flat_map(|op| match op {
                Op::CopyBlock { group: of, from, to, .. }
                | Op::CopyState { group: of, from, to } => [(*of, Some(*from)), (*of, Some(*to))],
                Op::ZeroState { group: of, to } => [(*of, Some(*to)), (*of, None)],
                Op::Restore(_) => [(group, None); 2],
            });
            let fixed = fixed.filter_map(|(of, id)| id.filter(|_| of == group));
            self.move_blocks(group, &fixed.collect::<Vec<_>>());
        }
    }

    fn move_blocks(&mut self, group: usize, fixed: &[BlockId]) {
        let moved = self.cache.pack(group, fixed);
        self.outcome.n_moved += moved.len() as u64;
        let n = self.n_rows();
        let ids = moved.iter().flat_map(|(from, to)| [from, to]);
        assert_eq!(ids.collect::<HashSet<_>>().len(), 2 * moved.len(), "each is in one pair");
        for (from, to) in moved {
            self.copy(Tier::Device, Tier::Device, group, from, to, n);
            self.rows(Tier::Device, group, from).fill(POISON);
            assert!(self.cache.is_in_use(group, to) && !self.cache.is_in_use(group, from));
        }
    }

    /// Blocks move together on the device; what is in them goes along.
    pub fn pack(&mut self, group: usize) {
        self.move_blocks(group, &[]);
        if self.flying.is_empty() {
            let in_use = |id: &u32| self.cache.is_in_use(group, BlockId(*id));
            assert!((0..self.cache.n_ids(group) as u32).all(|id| in_use(&id)), "no gap is left");
        }
        (0..self.live.len()).for_each(|seq| self.check_reads(seq));
    }
}
