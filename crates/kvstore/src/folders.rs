//! All fingerprints below a root: who uses which, what they hold, and deleting them.
//!
//! A folder belongs to the process that has locked its file `lock`. The root's own `lock` is held
//! for moments by who makes, looks at or deletes folders, so that none is deleted between being
//! made and being locked. A process that is being started shares the locks of the one that starts
//! it until its program runs; a lock that was just given back may then seem to be held.

use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use crate::error::{Error, Result};
use crate::files::{Files, Folder, is_folder, lock_file, make_folder};
use crate::fingerprint::Fingerprint;
use crate::log::{self, Log};
use crate::opening::read_fingerprint;

const LOCK: &str = "lock";

/// A folder that is this process's own until this is dropped.
#[derive(Debug)]
pub(crate) struct FolderLock {
    _file: File,
}

/// What there is of one fingerprint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FolderStats {
    /// The folder's name: the hash of its fingerprint.
    pub folder: String,
    /// What people call the model; empty if that is not known.
    pub label: String,
    /// What it depends on, a line for each part; empty if that is not known.
    pub fingerprint: String,
    /// Extents in its index.
    pub n_extents: usize,
    /// Tokens whose rows they have.
    pub n_tokens: u64,
    /// Bytes of all its files.
    pub n_bytes: u64,
    /// When it was last opened or written.
    pub last_used: Option<SystemTime>,
    /// Whether a process has it now.
    pub is_in_use: bool,
    /// Why nothing in it can be used.
    pub problem: Option<String>,
}

/// What became of a folder that was to be deleted.
#[derive(Debug)]
pub struct Flushed {
    /// What there was.
    pub stats: FolderStats,
    /// Whether it is gone. A folder in use is not an error, and not gone.
    pub result: Result<bool>,
}

impl FolderLock {
    /// Makes the folder, if it is not there, and locks it.
    pub(crate) fn take(root: &Path, folder: &Path) -> Result<Self> {
        let io = |source| Error::Io { path: folder.to_owned(), source };
        make_folder(root).map_err(io)?;
        let _root = lock_root(root)?;
        make_folder(folder).map_err(io)?;
        if !is_folder(folder) {
            return Err(io(io::ErrorKind::NotADirectory.into()));
        }
        let lock = try_lock(folder)?.ok_or_else(|| Error::Locked { path: folder.to_owned() })?;
        // It says when the folder was last used, and nothing depends on it.
        let _ = lock._file.set_modified(SystemTime::now());
        Ok(lock)
    }
}

/// `None` if another process has it.
fn try_lock(folder: &Path) -> Result<Option<FolderLock>> {
    let path = folder.join(LOCK);
    let taken = lock_file(&path).map(|file| (file.try_lock(), file));
    match taken {
        Ok((Ok(()), file)) => Ok(Some(FolderLock { _file: file })),
        Ok((Err(TryLockError::WouldBlock), _)) => Ok(None),
        Ok((Err(TryLockError::Error(source)), _)) | Err(source) => Err(Error::Io { path, source }),
    }
}

/// Waits for the others: they hold it for moments.
fn lock_root(root: &Path) -> Result<File> {
    let path = root.join(LOCK);
    let locked = lock_file(&path).and_then(|file| {
        loop {
            match file.lock() {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                other => break other.map(|()| file),
            }
        }
    });
    locked.map_err(|source| Error::Io { path, source })
}

/// What there is below `root`, by name. Nothing if there is no such folder.
///
/// # Errors
/// `Io` if the root cannot be read; what is wrong with a single folder is in its `problem`.
pub fn list(root: &Path) -> Result<Vec<FolderStats>> {
    let names = names(root)?;
    if names.is_empty() {
        return Ok(Vec::new());
    }
    let _root = lock_root(root)?;
    Ok(names.into_iter().map(|name| stats(root, name)).collect())
}

/// Deletes the folders below `root` that `which` chooses and nobody uses, and says what became of
/// each.
///
/// # Errors
/// As `list`.
pub fn flush(root: &Path, which: impl Fn(&FolderStats) -> bool) -> Result<Vec<Flushed>> {
    let names = names(root)?;
    if names.is_empty() {
        return Ok(Vec::new());
    }
    let _root = lock_root(root)?;
    let chosen = names.into_iter().map(|name| stats(root, name)).filter(which);
    Ok(chosen.map(|stats| Flushed { result: delete(&root.join(&stats.folder)), stats }).collect())
}

fn delete(folder: &Path) -> Result<bool> {
    let Some(_lock) = try_lock(folder)? else { return Ok(false) };
    // The index first: without it the rest is strays.
    let removed = match fs::remove_file(folder.join(log::NAME)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => fs::remove_dir_all(folder),
    };
    removed.map(|()| true).map_err(|source| Error::Io { path: folder.to_owned(), source })
}

/// The folders that can be ours.
fn names(root: &Path) -> Result<Vec<String>> {
    let io = |source| Error::Io { path: root.to_owned(), source };
    let entries = match fs::read_dir(root) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.map_err(io)?,
    };
    let mut names = Vec::new();
    for entry in entries {
        let Ok(name) = entry.map_err(io)?.file_name().into_string() else { continue };
        let is_hash = name.len() == 32 && name.bytes().all(|b| b.is_ascii_hexdigit());
        if is_hash && is_folder(&root.join(&name)) {
            names.push(name);
        }
    }
    names.sort();
    Ok(names)
}

fn stats(root: &Path, name: String) -> FolderStats {
    let folder = root.join(&name);
    let modified = |file: &str| folder.join(file).metadata().and_then(|m| m.modified()).ok();
    let mut stats = FolderStats {
        last_used: modified(LOCK).max(modified(log::NAME)),
        is_in_use: matches!(try_lock(&folder), Ok(None)),
        label: String::new(),
        fingerprint: String::new(),
        n_extents: 0,
        n_tokens: 0,
        n_bytes: 0,
        problem: None,
        folder: name,
    };
    stats.problem = fill(&mut stats, folder).err();
    stats
}

fn fill(stats: &mut FolderStats, folder: PathBuf) -> std::result::Result<(), String> {
    let files = Folder::new(folder);
    let names = files.names().map_err(|e| format!("cannot list it: {e}"))?;
    stats.n_bytes = names.iter().fold(0, |sum: u64, (_, n_bytes)| sum.saturating_add(*n_bytes));
    let fingerprint = read_fingerprint(&files).map_err(|e| format!("its fingerprint: {e}"))?;
    let fingerprint = fingerprint.filter(|known: &Fingerprint| known.folder() == stats.folder);
    let fingerprint = fingerprint.ok_or("its fingerprint is damaged")?;
    // It may be shown on a terminal.
    stats.label = fingerprint.label().replace(char::is_control, "?");
    stats.fingerprint = fingerprint.text().to_owned();
    let handle = files.open(log::NAME).map_err(|e| format!("its index: {e}"))?;
    let found = Log::read(handle, fingerprint.hash()).map_err(|e| format!("its index: {e}"))?;
    let index = found.ok_or("its index is damaged")?.index;
    (stats.n_extents, stats.n_tokens) = (index.n_extents(), index.n_tokens());
    Ok(())
}
