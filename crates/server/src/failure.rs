//! Why a request is not answered, in no dialect: whose fault it is, which field, when to try again.

use std::time::Duration;

use protocol::{Fault, InvalidField};

use crate::models::{Lost, Unavailable};
use crate::prompter::PromptError;

/// A reason, which decides the status.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names are those of HTTP's statuses")]
pub enum Kind {
    Invalid,
    Unauthorized,
    Forbidden,
    NotFound,
    MethodNotAllowed,
    TimedOut,
    TooLarge,
    UnsupportedMedia,
    TooMany,
    Ours,
    Unavailable,
}

/// Why a request is not answered.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    /// What kind of failure.
    pub kind: Kind,
    /// What happened, and what to change.
    pub message: String,
    /// The field of the request that is to blame, e.g. `messages[2].role`.
    pub field: Option<String>,
    /// When to try again.
    pub retry_after: Option<Duration>,
}

/// For want of memory.
const LATER: Duration = Duration::from_secs(5);
/// For failures that pass by themselves.
const SOON: Duration = Duration::from_secs(2);

impl Kind {
    /// What it means, for people.
    pub fn words(self) -> &'static str {
        match self {
            Self::Invalid => "The request cannot be answered as it is; the message names the field",
            Self::Unauthorized => "A key is missing or unknown",
            Self::Forbidden => "The host, the origin or the key may not ask for this",
            Self::NotFound => "There is no such thing",
            Self::MethodNotAllowed => "The route has other methods",
            Self::TimedOut => "The body did not come in time",
            Self::TooLarge => "The body is too large",
            Self::UnsupportedMedia => "The body is no plain JSON",
            Self::TooMany => "Too many requests at the same time",
            Self::Ours => "The server has failed",
            Self::Unavailable => "There is no room, or the server is ending: try again later",
        }
    }

    /// HTTP's number for it.
    pub fn status(self) -> u16 {
        match self {
            Self::Invalid => 400,
            Self::Unauthorized => 401,
            Self::Forbidden => 403,
            Self::NotFound => 404,
            Self::MethodNotAllowed => 405,
            Self::TimedOut => 408,
            Self::TooLarge => 413,
            Self::UnsupportedMedia => 415,
            Self::TooMany => 429,
            Self::Ours => 500,
            Self::Unavailable => 503,
        }
    }
}

impl Failure {
    /// A failure of a kind.
    pub fn new(kind: Kind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), field: None, retry_after: None }
    }

    /// A field that cannot be used: 400. The message begins with its name.
    pub fn invalid(field: impl Into<String>, reason: impl std::fmt::Display) -> Self {
        let field = field.into();
        let message = format!("{field} {reason}");
        Self { field: Some(field), ..Self::new(Kind::Invalid, message) }
    }

    /// What a runner says of one request.
    pub fn of_fault(fault: Fault, message: String) -> Self {
        match fault {
            Fault::Caller => Self::new(Kind::Invalid, message),
            Fault::Memory | Fault::World => {
                Self::new(Kind::Unavailable, message).retry_after(LATER)
            }
            Fault::Ours => Self::new(Kind::Ours, message),
        }
    }

    /// The same with the time of the next try.
    pub fn retry_after(mut self, wait: Duration) -> Self {
        self.retry_after = Some(wait);
        self
    }
}

impl From<InvalidField> for Failure {
    fn from(error: InvalidField) -> Self {
        Self::invalid(error.field, error.reason)
    }
}

impl From<Unavailable> for Failure {
    fn from(error: Unavailable) -> Self {
        let message = error.to_string();
        match error {
            Unavailable::Unknown(_) => {
                Self { field: Some("model".into()), ..Self::new(Kind::NotFound, message) }
            }
            Unavailable::Broken(_) => Self::new(Kind::Ours, message),
            Unavailable::Down { retry_after, .. } => {
                Self::new(Kind::Unavailable, message).retry_after(retry_after)
            }
            Unavailable::NoRoom(_) => Self::new(Kind::Unavailable, message).retry_after(SOON),
            Unavailable::Draining => Self::new(Kind::Unavailable, message).retry_after(SOON),
            Unavailable::Full { .. } => Self::new(Kind::TooMany, message).retry_after(SOON),
        }
    }
}

impl From<Lost> for Failure {
    fn from(lost: Lost) -> Self {
        let message = match &lost {
            // What the runner printed last is for the operator.
            Lost::Crashed(_) => "the model's process has ended; it is being started again".into(),
            lost => lost.to_string(),
        };
        Self::new(Kind::Unavailable, message).retry_after(SOON)
    }
}

impl From<PromptError> for Failure {
    fn from(error: PromptError) -> Self {
        let message = error.to_string();
        match error {
            PromptError::NoTemplate => Self::invalid(
                "messages",
                "cannot be used: the model has no chat template, only completions",
            ),
            PromptError::Text(text::Error::Request(_)) => Self::new(Kind::Invalid, message),
            // Templates refuse conversations by raising errors of their own.
            PromptError::Text(_) => Self::new(Kind::Invalid, message),
            PromptError::Hub(_) | PromptError::BadEos { .. } => {
                Self::new(Kind::Ours, "the model's files cannot be used")
            }
        }
    }
}
