//! The open store: writing, reading and removing extents.
//!
//! One lock is for who changes files, held through a whole write; another is for who looks into
//! memory, held for moments. Reading takes only the second one, so it never waits for the disk of
//! a writer.

use std::collections::VecDeque;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use kvcache::{ExtentId, Place, Record};

use crate::error::{Error, Result};
use crate::extent::{self, Opened};
use crate::files::Files;
use crate::folders::FolderLock;
use crate::index::{Entry, Index};
use crate::log::{self, Failed, Log};

/// What cutting an extent gives, at least: the entry about it takes 16 bytes, and 13 with others.
const MIN_CUT_BYTES: u64 = 64;

/// Files that stay open, with their headers, because a restore reads piece by piece.
const MAX_OPENED: usize = 16;

/// The disk tier's files of one fingerprint. This process alone has them until it is dropped.
pub struct Store {
    pub(crate) files: Box<dyn Files>,
    pub(crate) fingerprint: u128,
    pub(crate) quota_bytes: u64,
    pub(crate) index: Arc<RwLock<Index>>,
    pub(crate) writer: Mutex<Writer>,
    /// The one that was used last is the last.
    opened: Mutex<VecDeque<Arc<Opened>>>,
    n_read_bytes: AtomicU64,
    n_written_bytes: AtomicU64,
    n_corrupt: AtomicU64,
    opening: Opening,
    /// Given back last.
    pub(crate) lock: Option<FolderLock>,
}

/// What only one thread at a time changes.
pub(crate) struct Writer {
    pub log: Log,
    /// Removed, and the log does not say so yet. No file may get the name of one of them before.
    pub unlogged: Vec<ExtentId>,
    /// To be cut to this many bytes of pieces, when there is room in the log to say so.
    pub uncut: Vec<(ExtentId, u64)>,
    pub is_latched: bool,
    /// Below this length a new log is not worth a try.
    pub rewrite_from_bytes: u64,
}

/// What opening found that was not as it should be.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Opening {
    /// Why nothing that was in the folder could be used.
    pub restarted: Option<&'static str>,
    /// Extents in the index whose files are gone or have another length.
    pub n_lost: usize,
    /// Files of extents that the index does not name: they were deleted.
    pub n_strays: usize,
    /// Bytes at the end of the index that a crash, or damage, has left: they were cut off.
    pub n_torn_bytes: u64,
}

/// Totals.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stats {
    /// Extents that there are.
    pub n_extents: usize,
    /// Tokens whose rows they have.
    pub n_tokens: u64,
    /// Bytes of their files.
    pub extent_bytes: u64,
    /// Bytes of the index.
    pub index_bytes: u64,
    /// What both together may be.
    pub quota_bytes: u64,
    /// Whether writing is over until the store is opened again.
    pub is_latched: bool,
    /// Bytes of pieces that were read, and found as they were written, since it was opened.
    pub n_read_bytes: u64,
    /// Bytes of extents that were written since then.
    pub n_written_bytes: u64,
    /// Reads since then that found damage.
    pub n_corrupt: u64,
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Store").field("stats", &self.stats()).finish_non_exhaustive()
    }
}

impl Store {
    pub(crate) fn new(
        files: Box<dyn Files>,
        fingerprint: u128,
        quota_bytes: u64,
        (index, writer): (Index, Writer),
        opening: Opening,
    ) -> Self {
        Self {
            files,
            fingerprint,
            quota_bytes,
            index: Arc::new(RwLock::new(index)),
            writer: Mutex::new(writer),
            opened: Mutex::default(),
            n_read_bytes: AtomicU64::new(0),
            n_written_bytes: AtomicU64::new(0),
            n_corrupt: AtomicU64::new(0),
            opening,
            lock: None,
        }
    }

    /// What opening found.
    pub fn opening(&self) -> Opening {
        self.opening
    }

    /// Writes an extent of these pieces, in this order. When it returns, the extent is there after
    /// a crash too. `id` must not be there already, no piece may be empty.
    ///
    /// # Errors
    /// `Full` leaves everything as it was. `Io` is of the extent's own file, and later writes may
    /// work; `Latched` comes after an error of the index. After both a crash or a new start may
    /// find the extent there or not, but never a part of it.
    pub fn write(&self, id: ExtentId, record: &Record, pieces: &[&[u8]]) -> Result<()> {
        let no_room =
            Error::Invalid { what: "a record or an extent is too long, or a piece empty" };
        let Some((header, sealed)) = extent::header(self.fingerprint, id, pieces) else {
            return Err(no_room);
        };
        let mut writer = self.writer();
        self.log_removed(&mut writer)?;
        let entry = {
            let index = self.read_index();
            if index.sealed(id).is_some() {
                return Err(Error::Invalid { what: "an extent of this id is there already" });
            }
            index.entry(id, record, sealed)
        };
        let Some(entry) = entry else { return Err(no_room) };
        let bytes = entry.bytes();
        let Some(entry_bytes) = Log::entry_bytes(&bytes) else { return Err(no_room) };
        let wanted_bytes = sealed.n_bytes.saturating_add(entry_bytes);
        let free_bytes = self.free_bytes(&writer);
        if wanted_bytes > free_bytes {
            return Err(Error::Full { wanted_bytes, free_bytes: Some(free_bytes) });
        }
        let files = &*self.files;
        let made = extent::write(files, id, &header, pieces).and_then(|()| files.sync());
        let path = || files.path(&extent::name(id));
        let made = made.map_err(|error| Error::of_write(path(), error, wanted_bytes));
        if let Err(error) = made.and_then(|()| self.append(&mut writer, &bytes)) {
            // What stays is deleted at the next start.
            let _ = files.remove(&extent::name(id));
            return Err(error);
        }
        if self.change_index().apply(entry, entry_bytes).is_none() {
            writer.is_latched = true;
            return Err(Error::Latched);
        }
        self.n_written_bytes.fetch_add(sealed.n_bytes, Ordering::Relaxed);
        self.rewrite_log(&mut writer);
        Ok(())
    }

    /// Fills `into` with the piece at `place`, and checks that it is what was written. From any
    /// thread.
    ///
    /// # Errors
    /// `Corrupt` if it is not, or is gone; `Invalid` if there is no such extent, or no piece of
    /// it begins and ends there, or `into` is not as long.
    pub fn read(&self, place: Place, into: &mut [u8]) -> Result<()> {
        if into.len() as u64 != place.n_bytes {
            return Err(Error::Invalid {
                what: "the room for a piece is not as long as the piece",
            });
        }
        let opened = self.open_extent(place.extent);
        match opened.and_then(|opened| opened.read(&*self.files, place, into)) {
            Ok(()) => {
                self.n_read_bytes.fetch_add(place.n_bytes, Ordering::Relaxed);
                Ok(())
            }
            Err(error) => {
                let n_corrupt = u64::from(matches!(error, Error::Corrupt { .. }));
                self.n_corrupt.fetch_add(n_corrupt, Ordering::Relaxed);
                Err(error)
            }
        }
    }

    /// Deletes extents. Those that are not there are nothing to do. What is being read may be read
    /// to its end.
    ///
    /// # Errors
    /// They are gone for this process in any case. After an error a crash may bring them back.
    pub fn remove(&self, ids: &[ExtentId]) -> Result<()> {
        let mut writer = self.writer();
        let mut ids = ids.to_vec();
        ids.sort_unstable();
        ids.dedup();
        {
            let mut index = self.change_index();
            ids.retain(|id| index.sealed(*id).is_some());
            index.apply(Entry::Remove(ids.clone()), 0);
        }
        self.lock_opened().retain(|opened| !ids.contains(&opened.id));
        for id in &ids {
            // Files before the log: where the disk is full this makes room for the entry. An
            // entry without a file is nothing, and so is a file without an entry.
            let _ = self.files.remove(&extent::name(*id));
        }
        writer.unlogged.extend(ids);
        self.log_removed(&mut writer)?;
        self.rewrite_log(&mut writer);
        Ok(())
    }

    /// Cuts extents off after so many bytes of their pieces, where a piece ends. Those that are not
    /// there or not as long are nothing to do.
    ///
    /// # Errors
    /// They are cut when the index has room to say so, before the next write at the latest. After
    /// an error of the index a crash may bring back what was cut, as part of a longer file.
    pub fn cut(&self, cuts: &[(ExtentId, u64)]) -> Result<()> {
        let mut writer = self.writer();
        writer.uncut.extend(cuts);
        self.log_removed(&mut writer)?;
        self.rewrite_log(&mut writer);
        Ok(())
    }

    /// Totals as of now.
    pub fn stats(&self) -> Stats {
        let (index_bytes, is_latched) = {
            let writer = self.writer();
            (writer.log.n_bytes(), writer.is_latched)
        };
        let index = self.read_index();
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Stats {
            n_extents: index.n_extents(),
            n_tokens: index.n_tokens(),
            extent_bytes: index.extent_bytes(),
            index_bytes,
            quota_bytes: self.quota_bytes,
            is_latched,
            n_read_bytes: count(&self.n_read_bytes),
            n_written_bytes: count(&self.n_written_bytes),
            n_corrupt: count(&self.n_corrupt),
        }
    }

    /// The file of an extent, open.
    fn open_extent(&self, id: ExtentId) -> Result<Arc<Opened>> {
        let Some(sealed) = self.read_index().sealed(id) else {
            return Err(Error::Invalid { what: "there is no such extent" });
        };
        let is_it = |opened: &Arc<Opened>| opened.id == id && opened.sealed == sealed;
        let known = {
            let mut opened = self.lock_opened();
            let known = opened.iter().position(is_it).and_then(|idx| opened.remove(idx));
            opened.extend(known.clone());
            known
        };
        if let Some(known) = known {
            return Ok(known);
        }
        let new = Arc::new(Opened::open(&*self.files, self.fingerprint, id, sealed)?);
        let mut opened = self.lock_opened();
        if !opened.iter().any(is_it) {
            if opened.len() == MAX_OPENED {
                opened.pop_front();
            }
            opened.push_back(Arc::clone(&new));
        }
        Ok(new)
    }

    fn free_bytes(&self, writer: &Writer) -> u64 {
        let used_bytes = self.read_index().extent_bytes().saturating_add(writer.log.n_bytes());
        self.quota_bytes.saturating_sub(used_bytes)
    }

    /// Tells the log of what was removed and is to be cut, if it does not know.
    pub(crate) fn log_removed(&self, writer: &mut Writer) -> Result<()> {
        if writer.is_latched {
            return Err(Error::Latched);
        }
        if !writer.unlogged.is_empty() {
            let entry = Entry::Remove(writer.unlogged.clone());
            self.append(writer, &entry.bytes())?;
            writer.unlogged.clear();
        }
        self.cut_files(writer)
    }

    /// Cuts what is to be cut. Here the log is first: a file that is longer than it says is good,
    /// and one that is shorter is lost.
    fn cut_files(&self, writer: &mut Writer) -> Result<()> {
        let shorter = |(id, piece_bytes): &(ExtentId, u64)| {
            let sealed = self.read_index().sealed(*id)?;
            let cut = sealed.cut(*piece_bytes);
            (cut.n_bytes + MIN_CUT_BYTES <= sealed.n_bytes).then_some((*id, cut))
        };
        let cuts = writer.uncut.iter().filter_map(shorter).collect::<Vec<_>>();
        if !cuts.is_empty() {
            let entry = Entry::Cut(cuts.iter().map(|(id, cut)| (*id, cut.n_bytes)).collect());
            self.append(writer, &entry.bytes())?;
            self.change_index().apply(entry, 0);
            self.lock_opened().retain(|opened| cuts.iter().all(|(id, _)| *id != opened.id));
            for (id, cut) in cuts {
                // What cannot be cut now is cut at the next start.
                let _ = extent::cut(&*self.files, id, cut);
            }
        }
        writer.uncut.clear();
        Ok(())
    }

    fn append(&self, writer: &mut Writer, entry: &[u8]) -> Result<()> {
        let wanted_bytes = Log::entry_bytes(entry).unwrap_or(u64::MAX);
        let (error, is_undone) = match writer.log.append(entry) {
            Ok(()) => return Ok(()),
            Err(Failed::Undone(error)) => (error, true),
            Err(Failed::Unknown(error)) => (error, false),
        };
        let error = Error::of_write(self.files.path(log::NAME), error, wanted_bytes);
        writer.is_latched = !(is_undone && matches!(error, Error::Full { .. }));
        Err(error)
    }

    /// Writes the log anew if most of it is dead. That it did not work is no failure of whatever
    /// made it necessary.
    pub(crate) fn rewrite_log(&self, writer: &mut Writer) {
        let is_due = writer.log.n_bytes() >= writer.rewrite_from_bytes
            && writer.log.is_mostly_dead(&self.read_index());
        if !is_due || writer.is_latched || !writer.unlogged.is_empty() {
            return;
        }
        let generation = writer.log.generation().wrapping_add(1);
        let written = Log::rewrite(&*self.files, self.fingerprint, generation, &self.read_index());
        match written {
            Ok((log, index)) => {
                writer.log = log;
                writer.rewrite_from_bytes = 0;
                *self.change_index() = index;
            }
            Err(Failed::Undone(_)) => {
                writer.rewrite_from_bytes = writer.log.n_bytes().saturating_mul(2);
            }
            Err(Failed::Unknown(_)) => writer.is_latched = true,
        }
    }

    pub(crate) fn writer(&self) -> MutexGuard<'_, Writer> {
        self.writer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock_opened(&self) -> MutexGuard<'_, VecDeque<Arc<Opened>>> {
        self.opened.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn read_index(&self) -> std::sync::RwLockReadGuard<'_, Index> {
        self.index.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn change_index(&self) -> std::sync::RwLockWriteGuard<'_, Index> {
        self.index.write().unwrap_or_else(PoisonError::into_inner)
    }
}
