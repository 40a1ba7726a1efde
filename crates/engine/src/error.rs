//! A failure, and whose fault it is.

use protocol::Fault;

/// What went wrong, in words for the one whose fault it is.
#[derive(Debug, Clone)]
pub struct Error {
    /// Whose fault it is.
    pub fault: Fault,
    /// What happened and, where it is known, what to do.
    pub message: String,
    /// The device itself failed in the middle of its work: what it holds is not to be trusted.
    pub(crate) is_of_device: bool,
}

/// `Result` with this crate's [`Error`].
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    pub(crate) fn caller(message: impl Into<String>) -> Self {
        Self { fault: Fault::Caller, message: message.into(), is_of_device: false }
    }

    /// The same with what lies behind it.
    pub(crate) fn because(mut self, cause: &dyn std::fmt::Display) -> Self {
        self.message = format!("{}: {cause}", self.message);
        self
    }

    pub(crate) fn ours(message: impl Into<String>) -> Self {
        Self { fault: Fault::Ours, message: message.into(), is_of_device: false }
    }

    pub(crate) fn world(message: impl Into<String>) -> Self {
        Self { fault: Fault::World, message: message.into(), is_of_device: false }
    }
}

/// Memory is the world's fault, anything else that MLX refuses is ours: inputs were validated
/// before.
impl From<mlx::Error> for Error {
    fn from(error: mlx::Error) -> Self {
        let fault = match &error {
            mlx::Error::OutOfMemory { .. } => Fault::Memory,
            mlx::Error::NoBackend(_) | mlx::Error::Version { .. } => Fault::World,
            _ => Fault::Ours,
        };
        Self { fault, message: error.to_string(), is_of_device: true }
    }
}

/// A model that does not load is the fault of whoever chose or made it.
impl From<models::Error> for Error {
    fn from(error: models::Error) -> Self {
        let message = error.to_string();
        match error {
            models::Error::Mlx(error) => error.into(),
            models::Error::Memory { .. } => Self { fault: Fault::Memory, ..Self::world(message) },
            models::Error::Disk { .. } | models::Error::Write { .. } => Self::world(message),
            _ => Self::caller(message),
        }
    }
}
