//! Why a model cannot be loaded or run, in words that name the file, the field and the tensor.

use std::path::PathBuf;

/// A failure of loading or running a model.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// config.json is not usable.
    #[error("config.json: {field}: {reason}")]
    Config {
        /// The key, as it stands in the file.
        field: String,
        /// What is wrong, and what would be right.
        reason: String,
    },
    /// A file is unreadable or broken as a whole.
    #[error("{}: {reason}", .path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// One tensor is not what the config promises.
    #[error("{}: tensor {name}: {reason}", .path.display())]
    Tensor {
        /// The file that holds it.
        path: PathBuf,
        /// The tensor's name in the file.
        name: String,
        /// What is wrong with it.
        reason: String,
    },
    /// Tensors that the model needs are in no file.
    #[error("{}: missing tensors: {}", .folder.display(), listed(.names))]
    Missing {
        /// The model's folder.
        folder: PathBuf,
        /// Their names.
        names: Vec<String>,
    },
    /// Tensors in the files belong to nothing in the model.
    #[error(
        "{}: tensors that a model of family {family} does not have: {}",
        .folder.display(),
        listed(.names)
    )]
    Unused {
        /// The model's folder.
        folder: PathBuf,
        /// The family that was loaded.
        family: String,
        /// Their names, each with its file.
        names: Vec<String>,
    },
    /// The name of a shape is unknown.
    #[error("shape '{name}' is none of {}", crate::SHAPE_NAMES.join(", "))]
    UnknownShape {
        /// The name given.
        name: String,
    },
    /// A shape cannot be built as asked.
    #[error("shape '{name}': {reason}")]
    Shape {
        /// The shape's name.
        name: String,
        /// What is wrong, and what would be right.
        reason: String,
    },
    /// The weights do not fit into memory.
    #[error(
        "the weights need {} MiB of memory or more, but only {} MiB are free: close other \
         programs, or take a smaller or more quantized model",
        .needed_bytes >> 20,
        .free_bytes >> 20
    )]
    Memory {
        /// What is needed at least.
        needed_bytes: u64,
        /// What there is.
        free_bytes: u64,
    },
    /// The choices for a quantization cannot be met.
    #[error("{0}")]
    Settings(String),
    /// The disk is too small for what is to be written.
    #[error(
        "{} needs {} MiB, but its disk has {} MiB free: make room, or choose another folder",
        .folder.display(),
        .needed_bytes.div_ceil(1 << 20),
        .free_bytes >> 20
    )]
    Disk {
        /// Where it was to be written.
        folder: PathBuf,
        /// What is needed.
        needed_bytes: u64,
        /// What there is.
        free_bytes: u64,
    },
    /// A file cannot be written.
    #[error("cannot write {}: {reason}", .path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// The work was called off by the caller's progress callback.
    #[error("the work was cancelled")]
    Cancelled,
    /// MLX refused an operation.
    #[error(transparent)]
    Mlx(#[from] mlx::Error),
}

/// `Result` with this crate's [`Error`].
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    pub(crate) fn config(field: impl Into<String>, reason: impl Into<String>) -> Self {
        Error::Config { field: field.into(), reason: reason.into() }
    }

    pub(crate) fn file(path: impl Into<PathBuf>, reason: impl ToString) -> Self {
        Error::File { path: path.into(), reason: reason.to_string() }
    }

    pub(crate) fn write(path: impl Into<PathBuf>, reason: impl ToString) -> Self {
        Error::Write { path: path.into(), reason: reason.to_string() }
    }
}

const N_LISTED: usize = 8;

/// The first names, and how many more there are.
pub(crate) fn listed(names: &[String]) -> String {
    let shown = names.iter().take(N_LISTED).map(String::as_str).collect::<Vec<_>>().join(", ");
    match names.len().saturating_sub(N_LISTED) {
        0 => shown,
        n_more => format!("{shown} and {n_more} more"),
    }
}
