//! Why a model cannot be pulled, and what to do about it.

use std::io;
use std::path::PathBuf;

use crate::error::HubError;

/// Why a pull ended. What was fetched until then stays and is used by the next one, unless it is
/// the very thing that is wrong.
#[derive(Debug, thiserror::Error)]
pub enum PullError {
    /// The name, or the folder that came of it.
    #[error(transparent)]
    Hub(#[from] HubError),
    /// A revision that can be none.
    #[error("{revision:?} is not a revision: {reason}")]
    BadRevision {
        /// As it was given.
        revision: String,
        /// Which rule it breaks.
        reason: &'static str,
    },
    /// A variable, or a file that stands for one, with a value that cannot be meant.
    #[error("{name} {reason}")]
    BadVariable {
        /// The variable or the file.
        name: String,
        /// What is wrong; never the value.
        reason: &'static str,
    },
    /// The network may not be used and the model is not here.
    #[error("{name} is not here, and HF_HUB_OFFLINE forbids to fetch it")]
    Offline {
        /// The model.
        name: String,
    },
    /// The Hub does not show it to whoever asks.
    #[error("the Hub refuses access to {name} ({status}){}", detail(.message))]
    NoAccess {
        /// The model.
        name: String,
        /// 401 or 403.
        status: u16,
        /// Its own words.
        message: String,
        /// Whether its conditions have to be accepted first.
        is_gated: bool,
        /// Whether a token was sent.
        has_token: bool,
        /// Where it is asked for.
        page: String,
    },
    /// No such model.
    #[error("the Hub has no model {name}")]
    NotFound {
        /// The model.
        name: String,
        /// Whether a token was sent: private models are not found without.
        has_token: bool,
    },
    /// No such revision.
    #[error("{name} has no revision {revision:?}")]
    NoRevision {
        /// The model.
        name: String,
        /// The revision.
        revision: String,
    },
    /// The Hub asks to come back later, and will not say yes before.
    #[error("{host} takes no more requests for now (429)")]
    TooManyRequests {
        /// Who said so.
        host: String,
        /// Seconds to wait, where it says.
        retry_after_s: Option<u64>,
    },
    /// A server's fault, again and again.
    #[error("{host} fails with status {status}")]
    Server {
        /// Whose.
        host: String,
        /// 5xx or 408.
        status: u16,
    },
    /// An answer that means nothing here.
    #[error("{host} answers with status {status}, which was not expected")]
    Status {
        /// Whose.
        host: String,
        /// The status.
        status: u16,
    },
    /// No answer, or one that was cut, again and again.
    #[error("cannot fetch from {host}: {reason}")]
    Unreachable {
        /// From where.
        host: String,
        /// Why not.
        reason: String,
    },
    /// The server's certificate does not hold, or there is nothing to check it with.
    #[error("no safe connection to {host}: {reason}")]
    Tls {
        /// To whom.
        host: String,
        /// Why not.
        reason: String,
    },
    /// A redirection that is not followed.
    #[error("{host} redirects {reason}; that is not followed")]
    Redirect {
        /// Who redirects.
        host: String,
        /// To what.
        reason: &'static str,
    },
    /// A list of files that cannot be trusted.
    #[error("the Hub's answer about {name} cannot be used: {reason}")]
    BadListing {
        /// The model.
        name: String,
        /// What is wrong with it.
        reason: String,
    },
    /// Files, but no model that can be loaded.
    #[error("{name} cannot be loaded by Offshoot: {reason}")]
    NotAModel {
        /// The repository.
        name: String,
        /// What it is instead.
        reason: &'static str,
        /// What to do.
        hint: &'static str,
    },
    /// The content is not what the Hub says it is.
    #[error("{file} is damaged: its hash is not {expected}; it was deleted")]
    WrongHash {
        /// The file.
        file: String,
        /// What the Hub says.
        expected: String,
    },
    /// More or less bytes than the Hub says.
    #[error("{file} is {found_bytes} bytes long on the server, but the Hub lists {listed_bytes}")]
    WrongSize {
        /// The file.
        file: String,
        /// What is sent.
        found_bytes: u64,
        /// What was announced.
        listed_bytes: u64,
    },
    /// The disk is too small.
    #[error(
        "{} needs {needed_bytes} more bytes, but only {free_bytes} are free", path.display()
    )]
    NoSpace {
        /// Where.
        path: PathBuf,
        /// What is missing of the model.
        needed_bytes: u64,
        /// What the disk has.
        free_bytes: u64,
    },
    /// The disk is full after all.
    #[error("the disk is full: {} could not be written further", path.display())]
    DiskFull {
        /// What was written.
        path: PathBuf,
    },
    /// Another process pulls the same model.
    #[error("{name} is being pulled by another process")]
    InUse {
        /// The model.
        name: String,
    },
    /// Something that was not pulled lies where the model would be put.
    #[error("{} {reason}; it is not replaced", path.display())]
    Occupied {
        /// The place.
        path: PathBuf,
        /// What is there.
        reason: &'static str,
    },
    /// Something could not be read or written.
    #[error("cannot use {}: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Given up because another file's download has failed. Never leaves this module.
    #[error("stopped")]
    Stopped,
}

impl PullError {
    /// What to do about it, where more can be said than the error itself says.
    pub fn hint(&self) -> Option<String> {
        const AGAIN: &str = "the same command goes on where this one stopped";
        Some(match self {
            Self::Hub(error) => return error.hint(),
            Self::BadRevision { .. } => {
                "a revision is a branch, a tag or a commit: org/name@main".into()
            }
            Self::Offline { .. } => "unset HF_HUB_OFFLINE to use the network".into(),
            Self::NoAccess { is_gated, has_token, page, .. } => {
                access_hint(*is_gated, *has_token, page)
            }
            Self::NotFound { has_token: false, .. } => {
                "check the name; for a private model set HF_TOKEN to a token that may read it"
                    .into()
            }
            Self::NotFound { .. } => {
                "check the name; a private model needs a token in HF_TOKEN that may read it".into()
            }
            Self::NoRevision { name, .. } => format!("without a revision: offshoot pull {name}"),
            Self::TooManyRequests { retry_after_s: Some(s), .. } => {
                format!("try again in {s} seconds; {AGAIN}")
            }
            Self::TooManyRequests { .. } => format!("try again later; {AGAIN}"),
            Self::Server { .. } => format!("try again later; {AGAIN}"),
            Self::Unreachable { .. } => {
                format!("check the network, HTTPS_PROXY and HF_ENDPOINT; {AGAIN}")
            }
            Self::Tls { .. } => "the system's certificates are used: install ca-certificates, or \
                                 name a file with SSL_CERT_FILE"
                .into(),
            Self::NotAModel { hint, .. } => (*hint).into(),
            Self::WrongHash { .. } => "fetch it again; if that fails too, the server has a \
                                       damaged copy"
                .into(),
            Self::NoSpace { .. } | Self::DiskFull { .. } => {
                format!("free some space, or set OFFSHOOT_HOME to a larger disk; {AGAIN}")
            }
            Self::InUse { .. } => "wait for it to end".into(),
            Self::Occupied { path, .. } => format!("move {} away first", path.display()),
            Self::WrongSize { .. } | Self::BadListing { .. } | Self::Redirect { .. } => {
                "check that HF_ENDPOINT is a Hub that can be trusted".into()
            }
            Self::BadVariable { .. } | Self::Status { .. } | Self::Io { .. } | Self::Stopped => {
                return None;
            }
        })
    }
}

fn access_hint(is_gated: bool, has_token: bool, page: &str) -> String {
    let accept = format!("ask for access at {page}");
    match (is_gated, has_token) {
        (true, true) => format!("{accept} with the account that HF_TOKEN belongs to"),
        (true, false) => format!("{accept}, then set HF_TOKEN to a token of that account"),
        (false, true) => "HF_TOKEN is not valid, or may not read this model".into(),
        (false, false) => "check the name; a private model needs HF_TOKEN, a gated one your \
                           consent on its page as well"
            .into(),
    }
}

fn detail(message: &str) -> String {
    if message.is_empty() { String::new() } else { format!(": {message}") }
}
