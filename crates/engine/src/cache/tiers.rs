//! Bytes below the device: those on the host, and the way of blocks and states into bytes and back.

use std::collections::HashMap;
use std::time::Duration;

use kvcache::{BlockId, Item, Kind, Tier, Transfer};
use mlx::{Backend, Device};

use super::paging::Paging;
use super::pools::Pools;
use crate::{Error, Result};

/// Bytes on the host.
#[derive(Debug)]
pub(crate) enum Tiers {
    /// In pinned memory, moved beside the passes.
    Paged(Paging),
    /// In memory like any other, copied between two passes. For each group; what is evicted stays
    /// until its id is used again, within the budget.
    Copied(Vec<HashMap<BlockId, Vec<u8>>>),
}

impl Tiers {
    /// The best there is for a device.
    pub fn new(device: &Device, pools: &mut Pools, host_bytes: u64) -> Self {
        let paging = match device.backend() {
            Backend::Cuda => Paging::new(device, pools, host_bytes),
            Backend::Cpu | Backend::Metal => None,
        };
        let n_groups = pools.layout().groups().len();
        paging.map_or_else(|| Self::Copied(vec![HashMap::new(); n_groups]), Self::Paged)
    }

    /// Moves a transfer's items between device and host. Whether they were there, and were moved;
    /// none if they are under way.
    ///
    /// # Errors
    /// MLX refuses an operation.
    pub fn begin(&mut self, transfer: &Transfer, pools: &mut Pools) -> Result<Option<bool>> {
        match (self, transfer.from) {
            (Self::Paged(paging), _) => {
                let has_begun = paging.begin(transfer.clone(), pools)?;
                Ok((!has_begun).then_some(false))
            }
            (Self::Copied(host), Tier::Host) => {
                let kept = |item: &Item| host[item.group].get(&item.from).map(Vec::as_slice);
                let pieces = transfer.items.iter().map(kept).collect::<Option<Vec<_>>>();
                let Some(pieces) = pieces else { return Ok(Some(false)) };
                each_group(&transfer.items, &pieces, |group, ids, pieces| {
                    write(pools, group, ids, pieces)
                })?;
                Ok(Some(true))
            }
            (tiers, _) => {
                let Some(pieces) = tiers.read(transfer, pools)? else { return Ok(Some(false)) };
                let Self::Copied(host) = tiers else { return Ok(Some(false)) };
                for (item, bytes) in transfer.items.iter().zip(pieces) {
                    host[item.group].insert(item.to, bytes);
                }
                Ok(Some(true))
            }
        }
    }

    /// The bytes of a transfer's items, from the device or the host, in order; none if they are
    /// not there.
    ///
    /// # Errors
    /// MLX refuses an operation.
    pub fn read(&self, transfer: &Transfer, pools: &mut Pools) -> Result<Option<Vec<Vec<u8>>>> {
        if transfer.from == Tier::Host {
            let kept = |item: &Item| match self {
                Self::Copied(host) => Ok(host[item.group].get(&item.from).cloned()),
                Self::Paged(paging) => {
                    let bytes = pools.layout().groups()[item.group].bytes as usize;
                    paging.read_host(item, bytes).map(Some)
                }
            };
            return transfer.items.iter().map(kept).collect();
        }
        let mut pieces = vec![Vec::new(); transfer.items.len()];
        for (group, indices) in by_group(&transfer.items) {
            let ids = indices.iter().map(|i| transfer.items[*i].from.0).collect::<Vec<_>>();
            let bytes = match (self, pools.layout().groups()[group].kind) {
                (Self::Paged(paging), _) => paging.read(group, &ids, pools)?,
                (_, Kind::Recurrent) => {
                    ids.iter().map(|id| pools.read_state(group, *id)).collect::<Result<_>>()?
                }
                _ => pools.read_blocks(group, &ids)?,
            };
            for (i, bytes) in indices.into_iter().zip(bytes) {
                pieces[i] = bytes;
            }
        }
        Ok(Some(pieces))
    }

    /// Writes the bytes of a transfer's items where they go on the device.
    ///
    /// # Errors
    /// They have another size than this model's, or MLX refuses an operation.
    pub fn write(&self, transfer: &Transfer, pieces: &[Vec<u8>], pools: &mut Pools) -> Result<()> {
        let pieces = pieces.iter().map(Vec::as_slice).collect::<Vec<_>>();
        each_group(&transfer.items, &pieces, |group, ids, pieces| {
            let n_bytes = pools.layout().groups()[group].bytes as usize;
            if pieces.iter().any(|piece| piece.len() != n_bytes) {
                return Err(Error::world("what is cached has another size than this model's"));
            }
            match self {
                Self::Paged(paging) => paging.write(group, ids, pieces, pools),
                Self::Copied(_) => write(pools, group, ids, pieces),
            }
        })
    }

    /// A transfer that has ended since it began, and the time that it took; with `waits` one is
    /// waited for, if any is under way.
    ///
    /// # Errors
    /// The device fails.
    pub fn next_ended(&mut self, waits: bool) -> Result<Option<(Transfer, Duration)>> {
        match self {
            Self::Paged(paging) => paging.next_ended(waits),
            Self::Copied(_) => Ok(None),
        }
    }

    /// Waits for all that is under way.
    ///
    /// # Errors
    /// The device fails.
    pub fn wait(&self) -> Result<()> {
        match self {
            Self::Paged(paging) => paging.wait(),
            Self::Copied(_) => Ok(()),
        }
    }

    /// Whether something is under way.
    pub fn is_busy(&self) -> bool {
        matches!(self, Self::Paged(paging) if paging.is_busy())
    }

    /// Whether about `n_bytes` more should be taken down now, or after a while if that is wanted.
    pub fn has_room(&self, n_bytes: u64, waits: bool) -> bool {
        !matches!(self, Self::Paged(paging) if !paging.has_room(n_bytes, waits))
    }

    /// Gives up what is under way.
    pub fn give_up(&mut self) -> Vec<Transfer> {
        match self {
            Self::Paged(paging) => paging.give_up(),
            Self::Copied(_) => Vec::new(),
        }
    }
}

/// Calls `work` with a group, where its items go, and their bytes.
fn each_group(
    items: &[Item],
    pieces: &[&[u8]],
    mut work: impl FnMut(usize, &[u32], &[&[u8]]) -> Result<()>,
) -> Result<()> {
    for (group, indices) in by_group(items) {
        let ids = indices.iter().map(|i| items[*i].to.0).collect::<Vec<_>>();
        let pieces = indices.iter().map(|i| pieces[*i]).collect::<Vec<_>>();
        work(group, &ids, &pieces)?;
    }
    Ok(())
}

fn write(pools: &mut Pools, group: usize, ids: &[u32], pieces: &[&[u8]]) -> Result<()> {
    match pools.layout().groups()[group].kind {
        Kind::Recurrent => {
            let mut each = ids.iter().zip(pieces);
            each.try_for_each(|(id, bytes)| pools.write_state(group, *id, bytes))
        }
        _ => pools.write_blocks(group, ids, pieces),
    }
}

/// The indices of each group's items, in order.
pub(super) fn by_group(items: &[Item]) -> Vec<(usize, Vec<usize>)> {
    let mut groups = Vec::<(usize, Vec<usize>)>::new();
    for (i, item) in items.iter().enumerate() {
        match groups.iter_mut().find(|(group, _)| *group == item.group) {
            Some((_, list)) => list.push(i),
            None => groups.push((item.group, vec![i])),
        }
    }
    groups
}
