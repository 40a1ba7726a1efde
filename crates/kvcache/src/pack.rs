//! Moving blocks of the device together, so that an owner whose memory lies by id can give back
//! what lies behind them. It walks over all nodes: for owners who are short, not for each step.

use std::collections::{BTreeMap, BTreeSet};

use crate::blocks::BlockId;
use crate::cache::Cache;
use crate::layout::Tier;

const DEVICE: Tier = Tier::Device;

impl Cache {
    /// Whether anybody refers to a block of the device.
    pub fn is_in_use(&self, group: usize, id: BlockId) -> bool {
        self.blocks.store(DEVICE).pools[group].is_in_use(id)
    }

    /// Ids of a group on the device up to the last that is in use.
    pub fn n_ids(&self, group: usize) -> usize {
        let pool = &self.blocks.store(DEVICE).pools[group];
        let ids = (0..pool.blocks.len() as u32).rev().map(BlockId);
        ids.into_iter().find(|id| pool.is_in_use(*id)).map_or(0, |last| last.0 as usize + 1)
    }

    /// Gives the blocks of a group with the highest ids the lowest that are free. The owner copies
    /// what is in the first of each pair to the second, before it does anything else: no block is
    /// in two pairs. Blocks that transfers move stay where they are. So do those in `fixed`, what
    /// the owner has been told to do something with and has not yet; they may be free by now, and
    /// are no place for others.
    pub fn pack(&mut self, group: usize, fixed: &[BlockId]) -> Vec<(BlockId, BlockId)> {
        let mut stays = self.in_flight(group);
        stays.extend(fixed);
        let pool = self.blocks.pool(DEVICE, group);
        let mut moved = BTreeMap::new();
        for from in (0..pool.blocks.len() as u32).rev().map(BlockId) {
            if !pool.is_in_use(from) || stays.contains(&from) {
                continue;
            }
            let free = pool.free.iter().find(|to| !stays.contains(to)).copied();
            let Some(to) = free.filter(|to| *to < from) else { break };
            pool.rename(from, to);
            moved.insert(from, to);
        }
        pool.shorten();
        if !moved.is_empty() {
            self.rename(group, &moved);
        }
        self.after();
        moved.into_iter().collect()
    }

    /// Blocks of the device that transfers read or write.
    fn in_flight(&self, group: usize) -> BTreeSet<BlockId> {
        let flights = self.batches.iter().flat_map(|(_, batch)| &batch.flights);
        let of_device = flights.filter(|flight| flight.from == DEVICE || flight.to == DEVICE);
        let ids = of_device.flat_map(|flight| {
            let is_of_group = |item: &crate::tiers::Item| item.group == group;
            let id = |item: crate::tiers::Item| match flight.from == DEVICE {
                true => item.from,
                false => item.to,
            };
            self.items(flight).into_iter().filter(is_of_group).map(id)
        });
        ids.collect()
    }

    fn rename(&mut self, group: usize, moved: &BTreeMap<BlockId, BlockId>) {
        let rename = |id: &mut BlockId| *id = moved.get(id).copied().unwrap_or(*id);
        let (n_full, full) = (self.layout.full.len(), &self.layout.full);
        let nth = full.iter().position(|g| *g == group);
        for node in self.trie.nodes.values_mut() {
            if let Some(nth) = nth {
                let blocks = node.runs[DEVICE.idx()].blocks.iter_mut();
                blocks.skip(nth).step_by(n_full).for_each(rename);
            }
            if let Some(saved) = &mut node.saved[DEVICE.idx()] {
                saved.blocks[group].iter_mut().for_each(rename);
            }
        }
        for seq in self.seqs.values_mut() {
            let table = seq.tables.get_mut(group);
            table.into_iter().flat_map(|table| &mut table.blocks).for_each(rename);
        }
    }
}
