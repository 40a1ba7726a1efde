//! The model store: what a MODEL argument means, whether it can be loaded, what is there, how it
//! gets there from the Hub, and how it goes.
//!
//! Invariants:
//! - A name is an identifier, never a path: it cannot reach outside the store.
//! - Nothing outside the store is written or deleted. The Hugging Face cache is only read.
//! - A [`ModelFolder`] that exists has a readable config and all its weight files.
//! - Text files are read up to a limit, so that a wrong file costs no memory.

mod digest;
mod environment;
mod error;
mod folder;
mod hf_cache;
mod memory;
mod name;
mod pull;
mod remove;
mod store;
mod text_file;
mod weights;

pub use environment::{Environment, Token};
pub use error::{FolderProblem, HubError};
pub use folder::ModelFolder;
pub use hf_cache::{Cached, HfCache};
pub use memory::SequenceMemory;
pub use name::{ModelName, Quantization, ShapeName};
pub use pull::{
    DEFAULT_PARALLEL, FreeBytes, Origin, Patience, Place, Plan, PlannedFile, PullError,
    PullOptions, Pulled, Puller, Revision, Watch, parse_reference,
};
pub use remove::Removable;
pub use store::{DEMO, Entry, Hub, Model, cache_dir, data_dir};
pub use weights::Weights;
