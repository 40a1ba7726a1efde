//! Opening a store: whose folder it is, what its index says, and which of that is there.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, PoisonError, RwLock};

use kvcache::{ExtentId, Record};

use crate::error::{Error, Result};
use crate::extent;
use crate::files::{Files, Folder};
use crate::fingerprint::{Fingerprint, MAX_TEXT_BYTES};
use crate::folders::FolderLock;
use crate::index::Index;
use crate::log::{self, Failed, Log};
use crate::store::{Opening, Store, Writer};

/// The file with a fingerprint's text.
pub const FINGERPRINT: &str = "fingerprint";
const NEW_FINGERPRINT: &str = "fingerprint.new";

/// An extent that is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// Which one.
    pub id: ExtentId,
    /// What was recorded of it.
    pub record: Record,
    /// Bytes of its file.
    pub n_bytes: u64,
    /// Bytes of the pieces in it: what followed them is cut off.
    pub piece_bytes: u64,
}

/// The extents that an opened store has, in the order in which `kvcache::Cache::adopt` wants them:
/// by `record.start`, then by length. Records are made one by one, because together they would take
/// many times the memory of the conversations that they share. What is removed meanwhile is left
/// out.
pub struct FoundExtents {
    index: Arc<RwLock<Index>>,
    ids: std::vec::IntoIter<ExtentId>,
}

impl Iterator for FoundExtents {
    type Item = Found;

    fn next(&mut self) -> Option<Found> {
        let index = self.index.read().unwrap_or_else(PoisonError::into_inner);
        self.ids.find_map(|id| {
            let (record, sealed) = (index.record(id)?, index.sealed(id)?);
            let (n_bytes, piece_bytes) = (sealed.n_bytes, sealed.piece_bytes());
            Some(Found { id, record, n_bytes, piece_bytes })
        })
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (0, Some(self.ids.len()))
    }
}

impl Store {
    /// Opens the folder of `fingerprint` below `root`, and makes it if it is not there. The
    /// extents' files and the index together may have `quota_bytes`; what there is already is kept
    /// in any case.
    ///
    /// # Errors
    /// `Locked` if another process has it, `Full` if there is no room to begin, else `Io`.
    pub fn open(
        root: &Path,
        fingerprint: &Fingerprint,
        quota_bytes: u64,
    ) -> Result<(Self, FoundExtents)> {
        let folder = root.join(fingerprint.folder());
        let lock = FolderLock::take(root, &folder)?;
        let files = Box::new(Folder::new(folder));
        let (mut store, found) = Self::open_in(files, fingerprint, quota_bytes)?;
        store.lock = Some(lock);
        Ok((store, found))
    }

    /// The same in a folder that the caller sees to: tests can let it fail.
    ///
    /// # Errors
    /// As `open`, without `Locked`.
    pub fn open_in(
        files: Box<dyn Files>,
        fingerprint: &Fingerprint,
        quota_bytes: u64,
    ) -> Result<(Self, FoundExtents)> {
        if fingerprint.file().len() as u64 > MAX_TEXT_BYTES {
            return Err(Error::Invalid { what: "a fingerprint has more than 64 KiB" });
        }
        let mut opening = Opening::default();
        let names = io(&*files, "", files.names())?;
        let names = names.into_iter().collect::<BTreeMap<_, _>>();
        let is_known = claim(&*files, &names, fingerprint, &mut opening)?;
        let (log, mut index) = read_log(&*files, is_known, &names, fingerprint, &mut opening)?;
        let there = |id: &ExtentId| names.get(&extent::name(*id)).copied().unwrap_or(0);
        let is_whole =
            |id: &ExtentId| index.sealed(*id).is_some_and(|sealed| there(id) >= sealed.n_bytes);
        let lost = index.ids().filter(|id| !is_whole(id)).collect::<Vec<_>>();
        opening.n_lost = lost.len();
        index.apply(crate::index::Entry::Remove(lost.clone()), 0);
        let ids = names.keys().filter_map(|name| extent::id_of(name));
        for id in ids.filter(|id| index.sealed(*id).is_none()) {
            opening.n_strays += usize::from(!lost.contains(&id) && is_known);
            let _ = files.remove(&extent::name(id));
        }
        for name in [log::NEW_NAME, NEW_FINGERPRINT].iter().filter(|n| names.contains_key(**n)) {
            let _ = files.remove(name);
        }
        // What is found counts as acknowledged: a process may have been killed before it had
        // synced it.
        io(&*files, log::NAME, log.sync())?;
        io(&*files, "", files.sync())?;
        // Only now: a file that is shorter than the log says is lost, and a longer one is as good.
        for (id, sealed) in index.ids().filter_map(|id| Some((id, index.sealed(id)?))) {
            if there(&id) > sealed.n_bytes {
                let _ = extent::cut(&*files, id, sealed);
            }
        }
        let found = index.by_start().into_iter();
        let uncut = Vec::new();
        let writer =
            Writer { log, unlogged: lost, uncut, is_latched: false, rewrite_from_bytes: 0 };
        let made = (index, writer);
        let store = Self::new(files, fingerprint.hash(), quota_bytes, made, opening);
        {
            let mut writer = store.writer();
            // Where there is no room for it now, it is made up for before the next write.
            let _ = store.log_removed(&mut writer);
            store.rewrite_log(&mut writer);
        }
        let found = FoundExtents { index: Arc::clone(&store.index), ids: found };
        Ok((store, found))
    }
}

/// Makes the folder this fingerprint's own. Whether it was before.
fn claim(
    files: &dyn Files,
    names: &BTreeMap<String, u64>,
    fingerprint: &Fingerprint,
    opening: &mut Opening,
) -> Result<bool> {
    let known = match names.contains_key(FINGERPRINT) {
        true => read_fingerprint(files).map_err(|e| Error::of_read(files.path(FINGERPRINT), e))?,
        false => None,
    };
    if known.is_some_and(|known| known.text() == fingerprint.text()) {
        return Ok(true);
    }
    if names.contains_key(log::NAME) {
        opening.restarted = Some("its fingerprint is missing or another one");
        // Before the fingerprint, so that the two never meet.
        io(files, log::NAME, files.remove(log::NAME))?;
        io(files, "", files.sync())?;
    }
    let text = fingerprint.file();
    let written = || {
        let handle = files.create(NEW_FINGERPRINT)?;
        handle.write_at(text.as_bytes(), 0)?;
        handle.sync()?;
        files.rename(NEW_FINGERPRINT, FINGERPRINT)?;
        files.sync()
    };
    let of_write = |e| Error::of_write(files.path(FINGERPRINT), e, text.len() as u64);
    written().map(|()| false).map_err(of_write)
}

/// The fingerprint of a folder, if its file is one.
pub fn read_fingerprint(files: &dyn Files) -> std::io::Result<Option<Fingerprint>> {
    let handle = files.open(FINGERPRINT)?;
    let n_bytes = handle.n_bytes()?;
    if n_bytes > MAX_TEXT_BYTES {
        return Ok(None);
    }
    let mut bytes = vec![0; n_bytes as usize];
    handle.read_at(&mut bytes, 0)?;
    Ok(Fingerprint::parse(&bytes))
}

/// The log at its end, and what it says; a new one if there is none that can be read.
fn read_log(
    files: &dyn Files,
    is_known: bool,
    names: &BTreeMap<String, u64>,
    fingerprint: &Fingerprint,
    opening: &mut Opening,
) -> Result<(Log, Index)> {
    if is_known && names.contains_key(log::NAME) {
        let handle = io(files, log::NAME, files.edit(log::NAME))?;
        let found = Log::read(handle, fingerprint.hash());
        match found.map_err(|e| Error::of_read(files.path(log::NAME), e))? {
            Some(log::Found { log, index, n_torn_bytes }) => {
                opening.n_torn_bytes = n_torn_bytes;
                if n_torn_bytes > 0 {
                    io(files, log::NAME, log.cut())?;
                }
                return Ok((log, index));
            }
            None => opening.restarted = Some("its index is damaged at the beginning"),
        }
    }
    let new = Log::rewrite(files, fingerprint.hash(), 0, &Index::default());
    new.map_err(|(Failed::Undone(e) | Failed::Unknown(e))| {
        Error::of_write(files.path(log::NAME), e, 0)
    })
}

fn io<T>(files: &dyn Files, name: &str, result: std::io::Result<T>) -> Result<T> {
    result.map_err(|source| Error::Io { path: files.path(name), source })
}
