//! The model store: what a MODEL argument means, whether it can be loaded, and what is there.
//!
//! Invariants:
//! - A name is an identifier, never a path: it cannot reach outside the store.
//! - A [`ModelFolder`] that exists has a readable config and all its weight files.
//! - Text files are read up to a limit, so that a wrong file costs no memory.

mod error;
mod folder;
mod name;
mod store;
mod text_file;

pub use error::{FolderProblem, HubError};
pub use folder::ModelFolder;
pub use name::{ModelName, Quantization, ShapeName};
pub use store::{DEMO, Entry, Hub, Model, data_dir};
