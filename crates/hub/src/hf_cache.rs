//! The cache of the Hugging Face tools: `models--ORG--NAME/{refs,snapshots,blobs}`. It is read,
//! never written.

use std::fs;
use std::path::{Path, PathBuf};

use crate::digest::Digest;
use crate::name::ModelName;

const MODEL_PREFIX: &str = "models--";
const SEPARATOR: &str = "--";

/// A branch or commit that a cache has a folder for.
const MAX_REF_BYTES: u64 = 256;

/// The folder, if there is one.
#[derive(Debug, Clone, Default)]
pub struct HfCache {
    root: Option<PathBuf>,
}

/// A model in the cache, at the commit that its default branch pointed to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cached {
    /// Its name on the Hub.
    pub name: String,
    /// The commit.
    pub commit: String,
    /// The folder with its files, most of them links into the cache's blobs.
    pub path: PathBuf,
}

impl HfCache {
    /// A cache in a folder; none at all without one.
    pub fn new(root: Option<PathBuf>) -> Self {
        Self { root }
    }

    /// The folder.
    pub fn root(&self) -> Option<&Path> {
        self.root.as_deref()
    }

    /// A model at its default branch, if the cache holds a config and weights of it. Programs that
    /// want only a tokenizer leave folders without.
    pub fn find(&self, name: &ModelName) -> Option<Cached> {
        let folder = self.folder(name)?;
        let commit = read_ref(&folder.join("refs/main"))?;
        let path = folder.join("snapshots").join(&commit);
        let is_model = path.join("config.json").is_file() && has_weights(&path);
        is_model.then(|| Cached { name: name.to_string(), commit, path })
    }

    /// All such models, by name.
    pub fn models(&self) -> Vec<Cached> {
        let entries = self.root.as_deref().and_then(|root| fs::read_dir(root).ok());
        let names = entries.into_iter().flatten().flatten().filter_map(|entry| {
            let name = entry.file_name().into_string().ok()?;
            let name = name.strip_prefix(MODEL_PREFIX)?.replacen(SEPARATOR, "/", 1);
            ModelName::parse(&name).ok()
        });
        let mut models: Vec<_> = names.filter_map(|name| self.find(&name)).collect();
        models.sort_by(|a, b| a.name.cmp(&b.name));
        models
    }

    /// The file with this content, if some revision of the model brought it here. Whether the
    /// content is what its name says is for the caller to check.
    pub(crate) fn blob(&self, name: &ModelName, digest: &Digest) -> Option<PathBuf> {
        let path = self.folder(name)?.join("blobs").join(digest.hex());
        path.is_file().then_some(path)
    }

    fn folder(&self, name: &ModelName) -> Option<PathBuf> {
        let folder = name.as_str().replace('/', SEPARATOR);
        Some(self.root.as_deref()?.join(format!("{MODEL_PREFIX}{folder}")))
    }
}

fn read_ref(path: &Path) -> Option<String> {
    let length = path.metadata().ok().filter(fs::Metadata::is_file)?.len();
    let text = (length <= MAX_REF_BYTES).then(|| fs::read_to_string(path).ok())??;
    let commit = text.trim();
    is_commit(commit).then(|| commit.to_owned())
}

/// Whether a text is a git commit's full name.
pub(crate) fn is_commit(text: &str) -> bool {
    text.len() == 40 && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

fn has_weights(folder: &Path) -> bool {
    let names = fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.file_name());
    names.into_iter().any(|name| {
        name.to_str()
            .is_some_and(|name| name.ends_with(".safetensors") || name.ends_with(".index.json"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

    fn cache(reference: &str, files: &[&str]) -> (tempfile::TempDir, HfCache) {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("models--acme--tiny");
        fs::create_dir_all(folder.join("refs")).unwrap();
        fs::write(folder.join("refs/main"), reference).unwrap();
        for file in files {
            let path = folder.join("snapshots").join(COMMIT).join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "{}").unwrap();
        }
        let cache = HfCache::new(Some(dir.path().to_owned()));
        (dir, cache)
    }

    #[test]
    fn a_model_is_a_config_and_weights_at_the_default_branch() {
        let model = &["config.json", "model.safetensors"][..];
        for (reference, files, found) in [
            (COMMIT, model, true),
            (&format!("{COMMIT}\n"), model, true),
            (COMMIT, &["config.json", "tokenizer.json"][..], false),
            (COMMIT, &["model.safetensors"][..], false),
            ("../../../outside", model, false),
            ("", model, false),
        ] {
            let (dir, cache) = cache(reference, files);
            let name = ModelName::parse("acme/tiny").unwrap();
            assert_eq!(cache.find(&name).is_some(), found, "{reference} {files:?}");
            fs::create_dir_all(dir.path().join("datasets--acme--tiny/refs")).unwrap();
            let names: Vec<_> = cache.models().into_iter().map(|model| model.name).collect();
            assert_eq!(names, if found { vec!["acme/tiny"] } else { vec![] });
        }
        assert_eq!(HfCache::default().models(), []);
    }
}
