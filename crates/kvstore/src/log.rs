//! The file `index`: entries, one after the other. It is only ever appended to, until most of it is
//! dead; then a new one is written beside it and takes its name.
//!
//! ```text
//!  byte  0   8  magic "OFFSHIX\x01"
//!        8   4  version
//!       12  16  hash of the fingerprint
//!       28   8  generation: 1 more than that of the file before
//!       36   8  checksum of all before
//!       44      entries, to the end of the file:
//!               4  n, bytes of the entry
//!               8  checksum of the entry, seeded with its place and the generation
//!               n  see `Entry`
//! ```
//!
//! An entry counts when it and all before it are whole: what follows the last such entry is what a
//! crash has left of an append, and is cut off. The seed keeps bytes of an earlier file, which a
//! crash may bring back, from being entries of this one.

use std::io;

use crate::fields::{Fields, checksum};
use crate::files::{Files, Handle};
use crate::fingerprint::VERSION;
use crate::index::{Entry, Index};

pub const NAME: &str = "index";
/// The name until all is there.
pub const NEW_NAME: &str = "index.new";

const MAGIC: [u8; 8] = *b"OFFSHIX\x01";
const HEADER_BYTES: usize = 44;
const FRAME_BYTES: usize = 12;
/// What is read or written at once.
const CHUNK_BYTES: usize = 1 << 20;
/// Less is not worth three syncs.
const MIN_DEAD_BYTES: u64 = 4 << 10;

/// The file, at its end.
pub struct Log {
    handle: Box<dyn Handle>,
    generation: u64,
    n_bytes: u64,
}

/// Why an append failed.
pub enum Failed {
    /// The file is as it was.
    Undone(io::Error),
    /// Nobody knows what is in it.
    Unknown(io::Error),
}

/// What was found in a file.
pub struct Found {
    pub log: Log,
    pub index: Index,
    /// Bytes at its end that are no entries.
    pub n_torn_bytes: u64,
}

impl Log {
    /// What is in the file; nothing if it has no header of ours.
    pub fn read(handle: Box<dyn Handle>, fingerprint: u128) -> io::Result<Option<Found>> {
        let mut window = Window { n_bytes: handle.n_bytes()?, start: 0, chunk: Vec::new() };
        let header = window.bytes(&*handle, 0, HEADER_BYTES)?;
        let Some(generation) = header.and_then(|bytes| generation_of(bytes, fingerprint)) else {
            return Ok(None);
        };
        let mut index = Index::default();
        let mut log = Log { handle, generation, n_bytes: HEADER_BYTES as u64 };
        while let Some((entry, n_bytes)) = log.next(&mut window)? {
            if index.apply(entry, n_bytes).is_none() {
                break;
            }
            log.n_bytes += n_bytes;
        }
        let n_torn_bytes = window.n_bytes - log.n_bytes;
        Ok(Some(Found { log, index, n_torn_bytes }))
    }

    /// The entry that begins where the log ends so far, and its bytes.
    fn next(&self, window: &mut Window) -> io::Result<Option<(Entry, u64)>> {
        let Some(frame) = window.bytes(&*self.handle, self.n_bytes, FRAME_BYTES)? else {
            return Ok(None);
        };
        let mut fields = Fields(frame);
        let (Some(n), Some(sum)) = (fields.u32(), fields.u64()) else { return Ok(None) };
        let at = self.n_bytes + FRAME_BYTES as u64;
        let Some(bytes) = window.bytes(&*self.handle, at, n as usize)? else { return Ok(None) };
        if sum != checksum(bytes, seed(self.n_bytes, self.generation)) {
            return Ok(None);
        }
        Ok(Entry::parse(bytes).map(|entry| (entry, FRAME_BYTES as u64 + u64::from(n))))
    }

    /// Cuts off what is no entry.
    pub fn cut(&self) -> io::Result<()> {
        self.handle.cut(self.n_bytes)
    }

    /// What was read is there after a crash too.
    pub fn sync(&self) -> io::Result<()> {
        self.handle.sync()
    }

    /// How many bytes an entry takes. `None` if it is too long.
    pub fn entry_bytes(entry: &[u8]) -> Option<u64> {
        u32::try_from(entry.len()).ok().map(|n| u64::from(n) + FRAME_BYTES as u64)
    }

    /// Appends an entry, so that it is there after a crash too.
    pub fn append(&mut self, entry: &[u8]) -> Result<(), Failed> {
        let mut bytes = Vec::with_capacity(FRAME_BYTES + entry.len());
        if frame(&mut bytes, entry, self.n_bytes, self.generation).is_none() {
            return Err(Failed::Undone(io::ErrorKind::InvalidInput.into()));
        }
        let written = self.handle.write_at(&bytes, self.n_bytes);
        let is_written = written.is_ok();
        match written.and_then(|()| self.handle.sync()) {
            Ok(()) => {
                self.n_bytes += bytes.len() as u64;
                Ok(())
            }
            // What could not be synced may seem to be there until the machine stops.
            Err(error) => match self.cut() {
                Ok(()) if !is_written => Err(Failed::Undone(error)),
                _ => Err(Failed::Unknown(error)),
            },
        }
    }

    /// Writes a log of what `index` has in place of the one that is there. `Undone` if that one
    /// still is.
    pub fn rewrite(
        files: &dyn Files,
        fingerprint: u128,
        generation: u64,
        index: &Index,
    ) -> Result<(Log, Index), Failed> {
        let written = Self::write_new(files, fingerprint, generation, index);
        let (log, index) = written.map_err(|error| {
            // It is deleted at the next start otherwise.
            let _ = files.remove(NEW_NAME);
            Failed::Undone(error)
        })?;
        let renamed = files.rename(NEW_NAME, NAME).and_then(|()| files.sync());
        renamed.map(|()| (log, index)).map_err(Failed::Unknown)
    }

    fn write_new(
        files: &dyn Files,
        fingerprint: u128,
        generation: u64,
        old: &Index,
    ) -> io::Result<(Log, Index)> {
        let no_room = || io::Error::from(io::ErrorKind::InvalidInput);
        let handle = files.create(NEW_NAME)?;
        let (mut log, mut index) = (Log { handle, generation, n_bytes: 0 }, Index::default());
        let mut chunk = header(fingerprint, generation);
        for id in old.by_age() {
            let (Some(record), Some(sealed)) = (old.record(id), old.sealed(id)) else { continue };
            let entry = index.entry(id, &record, sealed).ok_or_else(no_room)?;
            let at = log.n_bytes + chunk.len() as u64;
            let n_bytes = frame(&mut chunk, &entry.bytes(), at, generation).ok_or_else(no_room)?;
            index.apply(entry, n_bytes).ok_or_else(no_room)?;
            if chunk.len() >= CHUNK_BYTES {
                log.handle.write_at(&chunk, log.n_bytes)?;
                log.n_bytes += chunk.len() as u64;
                chunk.clear();
            }
        }
        log.handle.write_at(&chunk, log.n_bytes)?;
        log.n_bytes += chunk.len() as u64;
        log.handle.sync()?;
        Ok((log, index))
    }

    pub fn n_bytes(&self) -> u64 {
        self.n_bytes
    }

    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// Whether most of it is of no use to `index`.
    pub fn is_mostly_dead(&self, index: &Index) -> bool {
        self.n_bytes > index.entry_bytes().saturating_mul(2).saturating_add(MIN_DEAD_BYTES)
    }
}

fn header(fingerprint: u128, generation: u64) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEADER_BYTES);
    bytes.extend(MAGIC);
    bytes.extend(VERSION.to_le_bytes());
    bytes.extend(fingerprint.to_le_bytes());
    bytes.extend(generation.to_le_bytes());
    bytes.extend(checksum(&bytes, 0).to_le_bytes());
    bytes
}

fn generation_of(bytes: &[u8], fingerprint: u128) -> Option<u64> {
    let generation = Fields(bytes.get(28..)?).u64()?;
    (bytes == header(fingerprint, generation)).then_some(generation)
}

/// Adds an entry that will stand at `at`; gives its bytes.
fn frame(to: &mut Vec<u8>, entry: &[u8], at: u64, generation: u64) -> Option<u64> {
    let n_bytes = Log::entry_bytes(entry)?;
    to.extend((entry.len() as u32).to_le_bytes());
    to.extend(checksum(entry, seed(at, generation)).to_le_bytes());
    to.extend(entry);
    Some(n_bytes)
}

fn seed(at: u64, generation: u64) -> u64 {
    at ^ generation.wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

/// A part of a file in memory.
struct Window {
    n_bytes: u64,
    start: u64,
    chunk: Vec<u8>,
}

impl Window {
    /// Some bytes of the file; `None` if it ends before.
    fn bytes(&mut self, handle: &dyn Handle, at: u64, n: usize) -> io::Result<Option<&[u8]>> {
        let Some(end) = at.checked_add(n as u64).filter(|end| *end <= self.n_bytes) else {
            return Ok(None);
        };
        if at < self.start || end > self.start + self.chunk.len() as u64 {
            let n_read = (self.n_bytes - at).min(n.max(CHUNK_BYTES) as u64) as usize;
            self.chunk.resize(n_read, 0);
            self.start = at;
            handle.read_at(&mut self.chunk, at)?;
        }
        let from = (at - self.start) as usize;
        Ok(self.chunk.get(from..from + n))
    }
}
