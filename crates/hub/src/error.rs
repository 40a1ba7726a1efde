//! What can be wrong with a MODEL argument or a model folder, and what to do about it.

use std::io;
use std::path::PathBuf;

/// Why a model cannot be used. All but [`HubError::Io`] and [`HubError::NoDataDir`] are the
/// caller's fault.
#[derive(Debug, thiserror::Error)]
pub enum HubError {
    /// The argument can be neither a name nor a path.
    #[error("{name:?} is not a model name: {reason}")]
    InvalidName {
        /// The argument.
        name: String,
        /// Which rule it breaks.
        reason: String,
    },
    /// A well-formed name that nothing answers to.
    #[error("there is no model {name:?}")]
    UnknownModel {
        /// The argument.
        name: String,
        /// The nearest name there is.
        nearest: Option<String>,
    },
    /// A path that leads nowhere.
    #[error("there is no folder {}", path.display())]
    NoSuchFolder {
        /// The path.
        path: PathBuf,
    },
    /// A path to a file.
    #[error("{} is a file; a model is a folder in Hugging Face layout", path.display())]
    NotAFolder {
        /// The path.
        path: PathBuf,
    },
    /// A folder that is no loadable model.
    #[error("{} cannot be loaded: {problem}", path.display())]
    Folder {
        /// The folder.
        path: PathBuf,
        /// What is wrong.
        problem: FolderProblem,
    },
    /// A model whose download has begun and not ended.
    #[error("the download of {name} is not complete")]
    Incomplete {
        /// The model.
        name: String,
    },
    /// Something that is not the store's to delete.
    #[error("{name} is not deleted: {reason}")]
    NotRemovable {
        /// The argument.
        name: String,
        /// Why not.
        reason: String,
        /// What can be done instead.
        hint: Option<String>,
    },
    /// The bundled demo model is not where it should be.
    #[error("the bundled demo model is missing; looked in {}", list(searched))]
    NoDemo {
        /// The folders that were looked in.
        searched: Vec<PathBuf>,
    },
    /// The platform has no data folder and none was named.
    #[error("no home folder is known, so there is no place for models")]
    NoDataDir,
    /// Something could not be read.
    #[error("cannot read {}: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// What is wrong with a folder.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FolderProblem {
    /// Nothing in it.
    #[error("the folder is empty")]
    Empty,
    /// GGUF files only.
    #[error("it holds GGUF weights only, which are not supported")]
    OnlyGguf,
    /// PyTorch pickles only.
    #[error("it holds PyTorch weights only, which can run code when opened and are not supported")]
    OnlyPickle,
    /// No `config.json`.
    #[error("config.json is missing")]
    NoConfig,
    /// A JSON file that is not what it should be.
    #[error("{file} {reason}")]
    BadFile {
        /// The file's name.
        file: String,
        /// What is wrong with it.
        reason: String,
    },
    /// No `*.safetensors`.
    #[error("it has no weights (*.safetensors)")]
    NoWeights,
    /// The index names files that are not there.
    #[error("{n_missing} of {n_shards} weight files are missing, the first is {first}")]
    MissingShards {
        /// How many are missing.
        n_missing: usize,
        /// How many the index names.
        n_shards: usize,
        /// One of them.
        first: String,
    },
    /// A weight file that ends early.
    #[error("{file} is cut off: it has {found_bytes} bytes of at least {needed_bytes}")]
    Truncated {
        /// The file's name.
        file: String,
        /// What it has.
        found_bytes: u64,
        /// What its own header asks for.
        needed_bytes: u64,
    },
    /// No `tokenizer.json`.
    #[error("tokenizer.json is missing")]
    NoTokenizer,
}

impl HubError {
    /// What to do about it, where more can be said than the error itself says.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::InvalidName { .. } => Some(
                "a model is a folder (./name or /name), a name from `offshoot list`, or \
                 shape:NAME:4bit"
                    .into(),
            ),
            Self::UnknownModel { name, nearest } if name.contains('/') => {
                let pull = format!("offshoot pull {name}");
                Some(match nearest {
                    Some(nearest) => format!("did you mean {nearest:?}? If not: {pull}"),
                    None => format!("to fetch it from the Hub: {pull}"),
                })
            }
            Self::UnknownModel { nearest: Some(nearest), .. } => {
                Some(format!("did you mean {nearest:?}?"))
            }
            Self::UnknownModel { nearest: None, .. } => Some(
                "give a folder, a name from `offshoot list`, or pull a model: offshoot pull \
                     ORG/NAME"
                    .into(),
            ),
            Self::Incomplete { name } => Some(format!("to go on with it: offshoot pull {name}")),
            Self::NotRemovable { hint, .. } => hint.clone(),
            Self::NotAFolder { path } => {
                let parent = path.parent().filter(|parent| parent.join("config.json").is_file());
                parent.map(|parent| format!("did you mean {}?", parent.display()))
            }
            Self::Folder { problem, .. } => problem.hint().map(str::to_owned),
            Self::NoDemo { .. } => Some("name a model: offshoot run FOLDER".into()),
            Self::NoDataDir => Some("set OFFSHOOT_HOME to a folder".into()),
            Self::NoSuchFolder { .. } | Self::Io { .. } => None,
        }
    }
}

impl FolderProblem {
    fn hint(&self) -> Option<&'static str> {
        match self {
            Self::OnlyGguf | Self::OnlyPickle => {
                Some("get the same model as safetensors in Hugging Face layout")
            }
            Self::MissingShards { .. } | Self::Truncated { .. } => {
                Some("the download is incomplete: fetch it again")
            }
            Self::NoTokenizer => Some("copy tokenizer.json from where the model came from"),
            Self::Empty | Self::NoConfig | Self::NoWeights => {
                Some("a model folder holds config.json, *.safetensors and tokenizer.json")
            }
            Self::BadFile { .. } => None,
        }
    }
}

fn list(paths: &[PathBuf]) -> String {
    let paths: Vec<_> = paths.iter().map(|path| path.display().to_string()).collect();
    paths.join(", ")
}
