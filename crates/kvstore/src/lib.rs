//! The prefix cache's files: what `kvcache` puts into extents on its disk tier, kept so that a
//! later process finds it, whatever ended the one before.
//!
//! ```text
//! <root>/lock                          held for moments by who makes or deletes folders
//! <root>/<hash of a fingerprint>/
//!     lock                             held by the process that uses the folder
//!     fingerprint                      what cached bytes depend on, as text
//!     index                            which extents there are, and their records
//!     <id>.extent                      one transfer's rows and states
//!     index.new, fingerprint.new       what was being written when a process ended
//! ```
//!
//! Invariants; tests drop every write that was not synced, at every write, and compare with a map:
//! S1 An extent counts by its entry in the index, which is written when its file and name are
//!    synced. What is opened is what was acknowledged, and perhaps what was being written or
//!    removed when the process ended; nothing of it is a part of something (C11).
//! S2 A read gives the bytes that were written, or an error (C9). All bytes of a file are under
//!    checksums that the index's entry vouches for.
//! S3 No file content makes this crate panic, or allocate more than a few times the file's length.
//! S4 No byte that was synced is written again: files grow, or are replaced, or go.
//! S5 An id gets a file only when the index on disk does not name it any more.
//! S6 After an error of the index nothing is written to it until it is opened again.
//! S7 One process has a folder. Folders are for their owner's eyes only, and so are files.
//!
//! On Apple's systems the standard library syncs through the drive's cache, which takes
//! milliseconds: write extents of megabytes, not of kilobytes.

mod error;
mod extent;
mod fields;
pub mod files;
mod fingerprint;
mod folders;
mod index;
mod log;
mod opening;
mod prefixes;
mod store;

pub use error::{Error, Result};
pub use fingerprint::Fingerprint;
pub use folders::{Flushed, FolderStats, flush, list};
pub use opening::{Found, FoundExtents};
pub use store::{Opening, Stats, Store};
