//! Room on the device for what the books hand out. They count blocks and states in use; memory lies
//! in pools that grow as ids come into use, and may be longer than that.
//!
//! A model with several kinds of layers has a pool of blocks for each, and slots of states. When
//! what is kept shifts from one kind to another, one pool grows while another is left with room
//! that nobody uses. Before all together exceed the budget by more than a step, they give that
//! back: states go that no slot of the books has any more, blocks move down, and pools end behind
//! them. What is free then, a step at least, is shared out among the pools, so that much must shift
//! before it comes to that again; nothing of it happens while there is room.

use kvcache::{BlockId, Kind, Op, Tier};

use super::PrefixCache;
use crate::{Error, Result};

/// The share of the budget by which pools may exceed it.
const STEP_SHARE: u64 = 8;

/// Blocks and states of the device that an op is about.
pub(super) fn ids_of(op: &Op) -> Vec<(usize, BlockId)> {
    match op {
        Op::CopyBlock { group, from, to, .. } | Op::CopyState { group, from, to } => {
            vec![(*group, *from), (*group, *to)]
        }
        Op::ZeroState { group, to } => vec![(*group, *to)],
        Op::Restore(transfer) if transfer.to == Tier::Device => {
            transfer.items.iter().map(|item| (item.group, item.to)).collect()
        }
        Op::Restore(_) => Vec::new(),
    }
}

impl PrefixCache {
    /// Makes room for a block or slot. Pools grow when they are used, not before, so that this may
    /// find less memory than there was when the budget was set: the budget follows.
    pub(super) fn fit(&mut self, group: usize, id: u32) -> Result<()> {
        let wanted = self.pools.growth_bytes(group, id);
        let available = match wanted {
            0 => None,
            _ => crate::memory::available_bytes()?,
        };
        if let Some(available) = available.filter(|available| *available < wanted) {
            let device = self.books.stats().tiers[0];
            let used = device.live_bytes + device.cached_bytes;
            self.books.resize(Tier::Device, used.min(device.budget_bytes), self.now());
            return Err(Error::world(format!(
                "keys and values need {} MiB more of memory, but only {} MiB are free: try again \
                 later, or send a shorter prompt",
                wanted >> 20,
                available >> 20
            )));
        }
        if wanted > 0 {
            // Growing replaces the arrays.
            self.tiers.wait()?;
        }
        self.pools.fit(group, id)
    }

    /// Makes room for blocks and slots, also where others must give way: those move down if at all,
    /// so that the highest id of a table stays the highest.
    pub(super) fn fit_all(&mut self, ids: &[(usize, BlockId)]) -> Result<()> {
        self.make_way(ids)?;
        ids.iter().try_for_each(|(group, id)| self.fit(*group, id.0))
    }

    /// Lets pools give back what nobody uses, if the device has no room for these blocks and
    /// states otherwise. They keep their ids; others may get new ones.
    ///
    /// # Errors
    /// MLX refuses an operation.
    pub(super) fn make_way(&mut self, ids: &[(usize, BlockId)]) -> Result<()> {
        let wanted = self.pools.missing_bytes(ids);
        let budget = self.books.stats().tiers[0].budget_bytes;
        let most = budget + budget / STEP_SHARE;
        self.pools.limit(most);
        if wanted == 0 || self.pools.held_bytes() + wanted <= most {
            return Ok(());
        }
        // What moves must not be replaced.
        self.tiers.wait()?;
        let books = &self.books;
        // What an op is to copy may belong to nobody any more.
        let is_kept = |group, id| books.is_in_use(group, id) || ids.contains(&(group, id));
        self.pools.keep_slots(|group, slot| is_kept(group, BlockId(slot)));
        if self.pools.held_bytes() + wanted <= most {
            return Ok(());
        }
        let groups = self.pools.layout().groups().iter().enumerate();
        let groups = groups.filter(|(_, of)| of.kind != Kind::Recurrent);
        let groups = groups.map(|(group, of)| (group, of.bytes)).collect::<Vec<_>>();
        for (group, _) in &groups {
            let fixed = ids.iter().filter(|(of, _)| of == group).map(|(_, id)| *id);
            let moved = self.books.pack(*group, &fixed.collect::<Vec<_>>());
            let (from, to) =
                moved.iter().map(|(from, to)| (from.0, to.0)).unzip::<_, _, Vec<_>, Vec<_>>();
            self.pools.copy_blocks(*group, &from, &to)?;
        }
        let n_ids = groups.iter().map(|(group, _)| {
            let of_ops = ids.iter().filter(|(of, _)| of == group).map(|(_, id)| id.0 as usize + 1);
            of_ops.max().unwrap_or(0).max(self.books.n_ids(*group))
        });
        let n_ids = n_ids.collect::<Vec<_>>();
        let used = n_ids.iter().zip(&groups).map(|(n, (_, bytes))| (*n as u64 + 1) * bytes);
        let used = used.sum::<u64>() + self.pools.state_bytes() + self.pools.missing_states(ids);
        let spare = most.saturating_sub(used) / groups.len().max(1) as u64;
        for (n, (group, bytes)) in n_ids.into_iter().zip(groups) {
            self.pools.cut(group, n + 1 + (spare / bytes) as usize)?;
        }
        Ok(())
    }
}
