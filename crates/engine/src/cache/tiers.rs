//! The tiers below the device: bytes of blocks and states on the host.

use std::collections::HashMap;

use kvcache::{BlockId, Item, Kind, Tier, Transfer};

use super::pools::Pools;
use crate::Result;

/// Bytes by their place in a tier.
#[derive(Debug)]
pub(crate) struct Tiers {
    /// For each group. What is evicted stays until its id is used again, within the budget.
    host: Vec<HashMap<BlockId, Vec<u8>>>,
}

impl Tiers {
    pub fn new(n_groups: usize) -> Self {
        Self { host: vec![HashMap::new(); n_groups] }
    }

    /// Brings bytes to the device; whether they were there.
    pub fn bring_up(&mut self, transfer: &Transfer, pools: &mut Pools) -> Result<bool> {
        if transfer.from != Tier::Host {
            return Ok(false);
        }
        for (group, items) in by_group(&transfer.items) {
            let kept = items.iter().map(|item| self.host[group].get(&item.from));
            let Some(kept) = kept.collect::<Option<Vec<_>>>() else { return Ok(false) };
            let ids = items.iter().map(|item| item.to.0).collect::<Vec<_>>();
            let kept = kept.into_iter().map(|bytes| &bytes[..]).collect::<Vec<_>>();
            put(pools, group, &ids, &kept)?;
        }
        Ok(true)
    }

    /// Takes bytes from the device.
    pub fn bring_down(&mut self, transfer: &Transfer, pools: &Pools) -> Result<bool> {
        if (transfer.from, transfer.to) != (Tier::Device, Tier::Host) {
            return Ok(false);
        }
        for (group, items) in by_group(&transfer.items) {
            let ids = items.iter().map(|item| item.from.0).collect::<Vec<_>>();
            let bytes = get(pools, group, &ids)?;
            self.host[group].extend(items.iter().map(|item| item.to).zip(bytes));
        }
        Ok(true)
    }
}

/// The items of each group, in order.
fn by_group(items: &[Item]) -> Vec<(usize, Vec<Item>)> {
    let mut groups = Vec::<(usize, Vec<Item>)>::new();
    for item in items {
        match groups.iter_mut().find(|(group, _)| *group == item.group) {
            Some((_, list)) => list.push(*item),
            None => groups.push((item.group, vec![*item])),
        }
    }
    groups
}

fn get(pools: &Pools, group: usize, ids: &[u32]) -> Result<Vec<Vec<u8>>> {
    match pools.layout().groups()[group].kind {
        Kind::Recurrent => ids.iter().map(|id| pools.read_state(group, *id)).collect(),
        _ => pools.read_blocks(group, ids),
    }
}

fn put(pools: &mut Pools, group: usize, ids: &[u32], bytes: &[&[u8]]) -> Result<()> {
    match pools.layout().groups()[group].kind {
        Kind::Recurrent => {
            ids.iter().zip(bytes).try_for_each(|(id, bytes)| pools.write_state(group, *id, bytes))
        }
        _ => pools.write_blocks(group, ids, bytes),
    }
}
