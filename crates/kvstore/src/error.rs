//! What can go wrong. None of it is fatal to the owner: what cannot be written is not cached, and
//! what cannot be read is a miss.

use std::fmt;
use std::io;
use std::path::PathBuf;

/// What an act on the store gives.
pub type Result<T> = std::result::Result<T, Error>;

/// Why an act on the store did not work.
#[derive(Debug)]
pub enum Error {
    /// The quota does not allow it, or the disk has no room. Nothing has changed; something must
    /// go before it is worth another try.
    Full {
        /// What was asked for.
        wanted_bytes: u64,
        /// What the quota leaves; `None` if it is the disk that is full.
        free_bytes: Option<u64>,
    },
    /// The operating system refused.
    Io {
        /// Which file or folder.
        path: PathBuf,
        /// What it said.
        source: io::Error,
    },
    /// A file is not what was written. Remove the extent; what was asked for is a miss.
    Corrupt {
        /// Which file.
        path: PathBuf,
        /// What gave it away.
        what: &'static str,
    },
    /// Another process uses the folder. It has all that would have been found there; do without.
    Locked {
        /// Which folder.
        path: PathBuf,
    },
    /// Writing the index has failed before. Nothing more is written until the store is opened
    /// again; reading goes on.
    Latched,
    /// The caller asked for what cannot be.
    Invalid {
        /// Why not.
        what: &'static str,
    },
}

impl Error {
    /// An error of a system call that was to make `wanted_bytes` more.
    pub(crate) fn of_write(path: PathBuf, source: io::Error, wanted_bytes: u64) -> Self {
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                Self::Full { wanted_bytes, free_bytes: None }
            }
            _ => Self::Io { path, source },
        }
    }

    /// An error of a system call that reads; a file that ends too soon is not what was written.
    pub(crate) fn of_read(path: PathBuf, source: io::Error) -> Self {
        match source.kind() {
            io::ErrorKind::UnexpectedEof => Self::Corrupt { path, what: "it ends too soon" },
            io::ErrorKind::NotFound => Self::Corrupt { path, what: "it is gone" },
            _ => Self::Io { path, source },
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Full { wanted_bytes, free_bytes: Some(free) } => {
                write!(f, "the quota leaves {free} of the {wanted_bytes} bytes that are wanted")
            }
            Self::Full { wanted_bytes, free_bytes: None } => {
                write!(f, "the disk has no room for {wanted_bytes} bytes")
            }
            Self::Io { path, source } => write!(f, "{}: {source}", path.display()),
            Self::Corrupt { path, what } => write!(f, "{} is damaged: {what}", path.display()),
            Self::Locked { path } => {
                write!(f, "{} is in use by another process", path.display())
            }
            Self::Latched => write!(f, "writing the index has failed before"),
            Self::Invalid { what } => write!(f, "{what}"),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Io { source, .. } => Some(source),
            _ => None,
        }
    }
}
