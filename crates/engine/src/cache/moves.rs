//! What moves between tiers: copies down in the background, bytes that the disk has read, and the
//! end of what is not to be trusted.

use std::time::{Duration, Instant};

use kvcache::{Tier, Transfer};

use super::disk::{Disk, Done};
use super::tiers::Tiers;
use super::{DISK_PATIENCE, PrefixCache};
use crate::{Error, Result};

/// Time to write what is not on disk yet when a model is unloaded.
const MAX_SAVE: Duration = Duration::from_secs(3);
/// Bytes that are copied at once then.
const SAVE_BYTES: u64 = 64 << 20;
/// Bytes that are copied at once when a sequence makes room for others.
const PAGE_OUT_BYTES: u64 = 64 << 20;

impl PrefixCache {
    /// Copies about `max_bytes` of what is new to the tier below; whether there was anything. With
    /// `waits` it takes the time to get memory for it there.
    ///
    /// # Errors
    /// MLX refuses an operation.
    pub fn copy_down(&mut self, max_bytes: u64, waits: bool) -> Result<bool> {
        let is_full = self.disk.as_ref().is_some_and(|disk| !disk.has_room());
        if is_full || !self.tiers.has_room(max_bytes, waits) {
            return Ok(false);
        }
        let transfers = self.books.next_copies(max_bytes, self.now());
        let is_any = !transfers.is_empty();
        // What made room for them goes first.
        self.clear_disk();
        for transfer in transfers {
            if transfer.to == Tier::Host {
                self.begin_move(&transfer)?;
                continue;
            }
            let pieces = self.tiers.read(&transfer, &mut self.pools)?;
            let extent = transfer.items.first().and_then(|item| item.place).map(|p| p.extent);
            match (&mut self.disk, self.books.record(transfer.id), pieces, extent) {
                (Some(disk), Some(record), Some(pieces), Some(extent)) => {
                    disk.write(transfer.id, extent, record, pieces);
                }
                _ => self.finish(transfer.id, false)?,
            }
        }
        Ok(is_any)
    }

    /// Copies all that is new to the tier below, to the host to the end: the device is short.
    ///
    /// # Errors
    /// MLX refuses an operation.
    pub fn page_out(&mut self) -> Result<()> {
        loop {
            if self.copy_down(PAGE_OUT_BYTES, true)? {
                continue;
            }
            if !self.tiers.is_busy() {
                return Ok(());
            }
            self.poll(DISK_PATIENCE)?;
        }
    }

    /// Whether bytes are on their way to another tier or from it.
    pub fn is_moving(&self) -> bool {
        self.tiers.is_busy() || self.disk.as_ref().is_some_and(Disk::is_busy)
    }

    /// Whether bytes move between device and host while passes go on.
    pub fn moves_beside(&self) -> bool {
        matches!(self.tiers, Tiers::Paged(_))
    }

    /// Takes up what has been moved, for which it waits a while if nothing is there yet. Returns
    /// whether something has been or is still to come: there may be more to copy then.
    ///
    /// # Errors
    /// MLX refuses an operation, or memory is short.
    pub fn poll(&mut self, mut patience: Duration) -> Result<bool> {
        let mut is_any = false;
        while let Some((transfer, took)) = self.tiers.next_ended(!patience.is_zero())? {
            (patience, is_any) = (Duration::ZERO, true);
            self.ended(&transfer, true, took)?;
        }
        while let Some(done) = self.disk.as_mut().and_then(|disk| disk.next(patience)) {
            (patience, is_any) = (Duration::ZERO, true);
            match done {
                Done::Wrote { id, is_ok, .. } => self.finish(id, is_ok)?,
                Done::Read { transfer, pieces, took } => {
                    self.measured.moved(Tier::Disk, transfer.n_bytes, took);
                    let damaged = pieces.as_ref().err().copied().flatten();
                    let put = pieces.map_or(Ok(false), |p| self.put(&transfer, &p).map(|()| true));
                    self.finish(transfer.id, *put.as_ref().unwrap_or(&false))?;
                    // It is not asked for again.
                    if let Some(extent) = damaged {
                        self.books.lose(&[extent], self.now());
                    }
                    match put {
                        Err(error) if error.is_of_device => return Err(error),
                        Err(error) => eprintln!("warning: not restored: {}", error.message),
                        Ok(_) => {}
                    }
                }
            }
        }
        self.clear_disk();
        Ok(is_any || self.is_moving())
    }

    /// Takes from the disk what the books have freed.
    fn clear_disk(&mut self) {
        let dead = self.books.take_dead_extents();
        let shortened = self.books.take_shortened_extents();
        if let Some(disk) = &mut self.disk {
            disk.remove(dead);
            disk.cut(shortened);
        }
    }

    /// Writes bytes that came from elsewhere where they go on the device.
    fn put(&mut self, transfer: &Transfer, pieces: &[Vec<u8>]) -> Result<()> {
        let ids = transfer.items.iter().map(|item| (item.group, item.to)).collect::<Vec<_>>();
        self.fit_all(&ids)?;
        self.tiers.write(transfer, pieces, &mut self.pools)
    }

    /// Copies what is not on disk yet, as far as there is time for it.
    fn save(&mut self) -> Result<()> {
        let begun = Instant::now();
        while self.disk.is_some() && begun.elapsed() < MAX_SAVE {
            let has_copied = self.copy_down(SAVE_BYTES, true)?;
            let is_busy = self.poll(if has_copied { Duration::ZERO } else { DISK_PATIENCE })?;
            if !has_copied && !is_busy {
                break;
            }
        }
        Ok(())
    }

    /// Nothing on the device is to be trusted any more: sequences must have ended.
    ///
    /// # Errors
    /// MLX refuses an operation, or something still holds what the device had.
    pub fn forget_device(&mut self) -> Result<()> {
        self.pools.clear();
        self.issued.clear();
        for transfer in self.tiers.give_up() {
            self.finish(transfer.id, false)?;
        }
        self.under_way.clear();
        // What is on its way holds blocks; what comes from the disk is sound.
        while self.poll(DISK_PATIENCE)? {}
        let budget = self.books.stats().tiers[0].budget_bytes;
        let n_held = self.books.resize(Tier::Device, 0, self.now());
        self.books.resize(Tier::Device, budget, self.now());
        match n_held {
            0 => Ok(()),
            n => Err(Error::ours(format!("{n} bytes that the device lost are still held"))),
        }
    }
}

impl Drop for PrefixCache {
    fn drop(&mut self) {
        if let Err(error) = self.save() {
            eprintln!("warning: not all is cached on disk: {}", error.message);
        }
    }
}
