//! Errors of this crate, typed by whose fault they are.

/// Why text could not be rendered, encoded or decoded.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The caller's fault: the request has to change; the message says how.
    #[error("{0}")]
    Request(String),
    /// The world's fault: a file that came with the model is missing, broken or not supported.
    #[error("{0}")]
    Model(String),
}

/// Result with this crate's [`Error`].
pub type Result<T> = std::result::Result<T, Error>;
