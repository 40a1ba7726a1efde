//! What the names of models mean to callers over the network: identifiers, never paths.

use std::sync::Arc;

use hub::{DEMO, Hub, HubError, Model, ModelFolder, ModelName};
use protocol::Sampling;

use crate::prompter::{PromptError, Prompter};
use crate::sampling::{self, SettingsError};

/// The models that can be asked for.
#[derive(Debug)]
pub struct Catalog {
    hub: Hub,
    /// What the operator named, which may lie anywhere; also the model of requests that name none.
    given: Option<(String, ModelFolder)>,
}

/// A model that can be asked for.
#[derive(Debug, Clone)]
pub struct Listed {
    /// Its name.
    pub name: String,
    /// Seconds from 1970 to when its files were written.
    pub created_unix_s: u64,
    /// Its folder.
    pub folder: ModelFolder,
}

/// The text side of a model, and its defaults.
#[derive(Debug)]
pub struct TextSide {
    /// Tokenizer, template, stop tokens.
    pub prompter: Prompter,
    /// The settings that it comes with.
    pub sampling: Sampling,
    /// The longest text in tokens, as its config states it.
    pub context_tokens: Option<u64>,
}

/// A model's text side cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TextError {
    /// Tokenizer or template.
    #[error(transparent)]
    Prompt(#[from] PromptError),
    /// Sampling settings.
    #[error(transparent)]
    Settings(#[from] SettingsError),
}

impl Catalog {
    /// The models of a store and one that the operator names.
    pub fn new(hub: Hub, given: Option<(String, ModelFolder)>) -> Self {
        Self { hub, given }
    }

    /// The model of requests that name none.
    pub fn default_name(&self) -> Option<&str> {
        self.given.as_ref().map(|(name, _)| name.as_str())
    }

    /// Finds a model and the name under which it is kept.
    ///
    /// # Errors
    /// The name is unknown, no name, or its folder is broken.
    pub fn find(&self, name: &str) -> Result<(String, ModelFolder), HubError> {
        if let Some((given, folder)) = self.given.as_ref().filter(|(given, _)| given == name) {
            return Ok((given.clone(), folder.clone()));
        }
        match self.hub.resolve_name(&ModelName::parse(name)?)? {
            Model::Folder { name, folder } => Ok((name, folder)),
            Model::Shape(_) => unreachable!("a name with a colon is no model name"),
        }
    }

    /// All models that have words: those with a tokenizer.
    pub fn list(&self) -> Result<Vec<Listed>, HubError> {
        let mut listed = Vec::new();
        if let Some((name, folder)) = &self.given {
            listed.push(of(name.clone(), folder.clone()));
        }
        for entry in self.hub.list()? {
            let is_new = listed.iter().all(|listed: &Listed| listed.name != entry.name);
            match entry.folder {
                Ok(folder) if is_new && folder.tokenizer().is_ok() => {
                    listed.push(of(entry.name, folder));
                }
                _ => {}
            }
        }
        Ok(listed)
    }

    /// The nearest thing to say to those who name no model.
    pub fn example(&self) -> &str {
        self.default_name().unwrap_or(DEMO)
    }
}

fn of(name: String, folder: ModelFolder) -> Listed {
    let modified = folder.path().join("config.json").metadata().and_then(|meta| meta.modified());
    let since = modified.ok().and_then(|time| time.duration_since(std::time::UNIX_EPOCH).ok());
    Listed { name, created_unix_s: since.unwrap_or_default().as_secs(), folder }
}

impl TextSide {
    /// Reads a folder's text files.
    ///
    /// # Errors
    /// One of them is missing or broken.
    pub fn load(folder: &ModelFolder) -> Result<Arc<Self>, TextError> {
        Ok(Arc::new(Self {
            prompter: Prompter::load(folder)?,
            sampling: sampling::of_folder(folder)?,
            context_tokens: folder.context_tokens(),
        }))
    }
}
