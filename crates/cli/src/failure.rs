//! Why a command ends without success, and how that is shown.

use std::io;
use std::process::ExitCode;

use hub::{HubError, PullError};
use protocol::InvalidField;
use server::backend::BackendError;
use server::prompter::PromptError;
use server::sampling::SettingsError;
use server::supervisor::RunnerError;

/// A command's result.
pub type Result<T> = std::result::Result<T, Failure>;

/// Exit code of any failure that has no code of its own.
const FAILED: u8 = 1;
/// Exit code of arguments that make no sense; `clap` uses the same.
const USAGE: u8 = 2;
/// Exit code after Ctrl-C, as shells have it (128 + SIGINT).
pub const INTERRUPTED: u8 = 130;

/// Why a command ends.
#[derive(Debug)]
pub enum Failure {
    /// The arguments make no sense together.
    Usage(Message),
    /// It did not work.
    Failed(Message),
    /// The user said stop.
    Interrupted,
    /// Nobody reads our output any more: success.
    StdoutClosed,
}

/// What is shown.
#[derive(Debug)]
pub struct Message {
    /// What happened.
    pub error: String,
    /// What to do about it.
    pub hint: Option<String>,
}

impl Failure {
    /// A failure without a hint.
    pub fn new(error: impl Into<String>) -> Self {
        Self::Failed(Message { error: error.into(), hint: None })
    }

    /// A usage error without a hint.
    pub fn usage(error: impl Into<String>) -> Self {
        Self::Usage(Message { error: error.into(), hint: None })
    }

    /// The same with what to do about it.
    pub fn with_hint(mut self, hint: impl Into<String>) -> Self {
        if let Self::Usage(message) | Self::Failed(message) = &mut self {
            message.hint = Some(hint.into());
        }
        self
    }

    fn with_hint_of(self, hint: Option<String>) -> Self {
        match hint {
            Some(hint) => self.with_hint(hint),
            None => self,
        }
    }

    /// What happened, in one line.
    pub fn message(&self) -> &str {
        match self {
            Self::Usage(message) | Self::Failed(message) => &message.error,
            Self::Interrupted => "stopped",
            Self::StdoutClosed => "standard output is closed",
        }
    }

    /// Standard output cannot be written.
    pub fn of_stdout(error: &io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::BrokenPipe => Self::StdoutClosed,
            _ => Self::new(format!("cannot write to standard output: {error}")),
        }
    }

    /// Prints it to standard error; the process's exit code.
    pub fn report(self) -> ExitCode {
        let (message, code) = match self {
            Self::StdoutClosed => return ExitCode::SUCCESS,
            Self::Interrupted => return ExitCode::from(INTERRUPTED),
            Self::Usage(message) => (message, USAGE),
            Self::Failed(message) => (message, FAILED),
        };
        crate::output::say(&format!("error: {}", message.error));
        if let Some(hint) = message.hint {
            crate::output::say(&format!("hint: {hint}"));
        }
        ExitCode::from(code)
    }
}

impl From<HubError> for Failure {
    fn from(error: HubError) -> Self {
        Self::new(error.to_string()).with_hint_of(error.hint())
    }
}

impl From<PullError> for Failure {
    fn from(error: PullError) -> Self {
        Self::new(error.to_string()).with_hint_of(error.hint())
    }
}

impl From<kvstore::Error> for Failure {
    fn from(error: kvstore::Error) -> Self {
        Self::new(error.to_string())
    }
}

impl From<BackendError> for Failure {
    fn from(error: BackendError) -> Self {
        Self::new(error.to_string()).with_hint_of(error.hint())
    }
}

impl From<RunnerError> for Failure {
    fn from(error: RunnerError) -> Self {
        Self::new(error.to_string()).with_hint_of(error.hint())
    }
}

impl From<PromptError> for Failure {
    fn from(error: PromptError) -> Self {
        match error {
            PromptError::Hub(error) => error.into(),
            PromptError::NoTemplate => {
                Self::new(error.to_string()).with_hint("use --raw to continue a text")
            }
            error => Self::new(error.to_string()),
        }
    }
}

impl From<SettingsError> for Failure {
    fn from(error: SettingsError) -> Self {
        match error {
            SettingsError::Hub(error) => error.into(),
            error => Self::new(error.to_string()),
        }
    }
}

impl From<InvalidField> for Failure {
    fn from(error: InvalidField) -> Self {
        Self::new(error.to_string())
    }
}

impl From<text::Error> for Failure {
    fn from(error: text::Error) -> Self {
        Self::new(error.to_string())
    }
}
