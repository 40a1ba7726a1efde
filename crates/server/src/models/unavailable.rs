//! Why a model cannot be used: to callers in words that name no path, to the operator in full.

use std::sync::Arc;
use std::time::Duration;

use hub::HubError;

use super::room::Shortage;
use crate::supervisor::RunnerError;

/// Why a model cannot be used, and for how long at least.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Unavailable {
    /// There is none of that name.
    #[error("{0}")]
    Unknown(Arc<str>),
    /// Its files cannot be used; the operator has to look.
    #[error("{0}")]
    Broken(Arc<str>),
    /// It did not load, or has crashed and is not back yet.
    #[error("{message}")]
    Down {
        /// What happened.
        message: Arc<str>,
        /// When to ask again.
        retry_after: Duration,
    },
    /// Others take the memory.
    #[error("{0}")]
    NoRoom(Arc<str>),
    /// Too many requests wait for it.
    #[error("{n_requests} requests wait for the model already")]
    Full {
        /// How many.
        n_requests: usize,
    },
    /// The server is ending.
    #[error("the server is shutting down")]
    Draining,
}

pub(super) fn no_room(name: &str, bytes: u64, shortage: Shortage) -> Unavailable {
    let message = match shortage {
        Shortage::TooLarge { budget_bytes } => {
            let (need, all) = (bytes >> 20, budget_bytes >> 20);
            format!("{name} needs {need} MiB, and all models together may take {all} MiB")
        }
        Shortage::Busy { names } => {
            format!("there is no room for {name} beside {}", names.join(", "))
        }
    };
    Unavailable::NoRoom(message.into())
}

pub(super) fn with_hint(error: &HubError) -> String {
    match error.hint() {
        Some(hint) => format!("{error}; {hint}"),
        None => error.to_string(),
    }
}

/// What is wrong with a model's files is for the operator: it may name paths.
pub(super) fn broken(name: &str, error: &dyn std::fmt::Display) -> Unavailable {
    eprintln!("error: {name}: {error}");
    Unavailable::Broken(format!("{name} cannot be used; the server's log says why").into())
}

/// What the runner printed last is for the operator.
pub(super) fn first_line(error: &RunnerError) -> String {
    error.to_string().lines().next().unwrap_or_default().trim_end_matches(':').to_owned()
}
