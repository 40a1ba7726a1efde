//! Bytes below the device: those on the host, and the way of blocks and states into bytes and back.

use std::collections::HashMap;

use kvcache::{BlockId, Item, Kind, Tier, Transfer};

use super::pools::Pools;
use crate::Result;

/// Bytes on the host.
#[derive(Debug)]
pub(crate) struct Tiers {
    /// For each group. What is evicted stays until its id is used again, within the budget.
    host: Vec<HashMap<BlockId, Vec<u8>>>,
}

impl Tiers {
    pub fn new(n_groups: usize) -> Self {
        Self { host: vec![HashMap::new(); n_groups] }
    }

    /// Brings bytes from the host to the device; whether they were there.
    pub fn bring_up(&self, transfer: &Transfer, pools: &mut Pools) -> Result<bool> {
        let kept = |item: &Item| self.host[item.group].get(&item.from);
        let Some(pieces) = transfer.items.iter().map(kept).collect::<Option<Vec<_>>>() else {
            return Ok(false);
        };
        put_items(transfer, &pieces, pools)?;
        Ok(true)
    }

    /// The bytes of a transfer's items, from the device or the host, in order; none if they are
    /// not there.
    pub fn take_down(&self, transfer: &Transfer, pools: &Pools) -> Result<Option<Vec<Vec<u8>>>> {
        if transfer.from == Tier::Host {
            let kept = |item: &Item| self.host[item.group].get(&item.from).cloned();
            return Ok(transfer.items.iter().map(kept).collect());
        }
        let mut pieces = vec![Vec::new(); transfer.items.len()];
        for (group, indices) in by_group(&transfer.items) {
            let ids = indices.iter().map(|i| transfer.items[*i].from.0).collect::<Vec<_>>();
            for (i, bytes) in indices.into_iter().zip(get(pools, group, &ids)?) {
                pieces[i] = bytes;
            }
        }
        Ok(Some(pieces))
    }

    /// Keeps the bytes of a transfer's items on the host.
    pub fn keep(&mut self, transfer: &Transfer, pieces: Vec<Vec<u8>>) {
        for (item, bytes) in transfer.items.iter().zip(pieces) {
            self.host[item.group].insert(item.to, bytes);
        }
    }
}

/// Writes the bytes of a transfer's items where they go on the device.
pub(super) fn put_items(
    transfer: &Transfer,
    pieces: &[impl AsRef<[u8]>],
    pools: &mut Pools,
) -> Result<()> {
    for (group, indices) in by_group(&transfer.items) {
        let ids = indices.iter().map(|i| transfer.items[*i].to.0).collect::<Vec<_>>();
        let bytes = indices.iter().map(|i| pieces[*i].as_ref()).collect::<Vec<_>>();
        match pools.layout().groups()[group].kind {
            Kind::Recurrent => {
                for (id, bytes) in ids.into_iter().zip(bytes) {
                    pools.write_state(group, id, bytes)?;
                }
            }
            _ => pools.write_blocks(group, &ids, &bytes)?,
        }
    }
    Ok(())
}

/// The indices of each group's items, in order.
fn by_group(items: &[Item]) -> Vec<(usize, Vec<usize>)> {
    let mut groups = Vec::<(usize, Vec<usize>)>::new();
    for (i, item) in items.iter().enumerate() {
        match groups.iter_mut().find(|(group, _)| *group == item.group) {
            Some((_, list)) => list.push(i),
            None => groups.push((item.group, vec![i])),
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
