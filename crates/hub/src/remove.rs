//! Takes a model out of the store, and never anything else.

use std::fs;
use std::path::{Path, PathBuf};

use crate::error::HubError;
use crate::name::{ModelName, ShapeName};
use crate::pull::{STAGING, has_parts, remove_empty_parents, staging_of};
use crate::store::{DEMO, Hub};

/// Something in the store that can be deleted.
#[derive(Debug)]
pub struct Removable {
    name: ModelName,
    models_dir: PathBuf,
    /// The model's folder, if there is one.
    folder: Option<PathBuf>,
    /// Whether that is only a link to somewhere else.
    is_link: bool,
    /// What was fetched of an incomplete download, if there is any.
    staging: Option<PathBuf>,
}

impl Hub {
    /// What a name stands for in the store, if it may be deleted. Folders elsewhere may not, nor
    /// what a link in the store leads to.
    pub fn removable(&self, argument: &str) -> Result<Removable, HubError> {
        let not = |reason: &str, hint: Option<String>| {
            let (name, reason) = (argument.to_owned(), reason.to_owned());
            Err(HubError::NotRemovable { name, reason, hint })
        };
        if argument == DEMO {
            return not("it comes with Offshoot", None);
        }
        if argument.starts_with(ShapeName::PREFIX) {
            return not("a shape is no file", None);
        }
        let is_path = argument.starts_with(['.', '~', '/']) || Path::new(argument).is_absolute();
        if is_path {
            let hint = "names from `offshoot list` are deleted; delete other folders by hand";
            return not("it is a path", Some(hint.into()));
        }
        let name = ModelName::parse(argument)?;
        let models_dir = self.models_dir().to_owned();
        let path = models_dir.join(name.as_str());
        if let Some(parent) = path.parent().filter(|parent| *parent != models_dir) {
            let meta = fs::symlink_metadata(parent);
            if meta.is_ok_and(|meta| meta.is_symlink()) {
                let hint =
                    format!("{} is a link; delete what it leads to by hand", parent.display());
                return not("it lies outside the store", Some(hint));
            }
        }
        let meta = fs::symlink_metadata(&path).ok();
        let is_link = meta.as_ref().is_some_and(fs::Metadata::is_symlink);
        let is_folder = meta.as_ref().is_some_and(fs::Metadata::is_dir);
        if is_folder && is_organisation(&path) {
            let hint = "delete its models one by one: see `offshoot list`".to_owned();
            return not("it holds several models", Some(hint));
        }
        let folder = (is_link || is_folder).then_some(path);
        let staging = Some(staging_of(&models_dir, &name)).filter(|staging| has_parts(staging));
        if folder.is_none() && staging.is_none() {
            if let Some(cached) = self.cache().find(&name) {
                let hint =
                    format!("delete it with the tool that put it there: {}", cached.path.display());
                return not("it belongs to the Hugging Face cache", Some(hint));
            }
            if Path::new(argument).is_dir() {
                let hint = "it is a folder here, not in the store; delete it by hand";
                return not("it is a path", Some(hint.into()));
            }
            return Err(self.unknown(&name));
        }
        Ok(Removable { name, models_dir, folder, is_link, staging })
    }
}

impl Removable {
    /// The model's name.
    pub fn name(&self) -> &str {
        self.name.as_str()
    }

    /// What will be gone.
    pub fn paths(&self) -> impl Iterator<Item = &Path> {
        [&self.folder, &self.staging].into_iter().flatten().map(PathBuf::as_path)
    }

    /// Whether only a link goes, and what it leads to stays.
    pub fn is_link(&self) -> bool {
        self.is_link
    }

    /// Bytes of the files in it; those behind links are not counted.
    pub fn bytes(&self) -> u64 {
        if self.is_link { 0 } else { self.paths().map(bytes_below).sum() }
    }

    /// Deletes it. The model is gone at once, even if deleting its files takes long or fails.
    pub fn remove(self) -> Result<(), HubError> {
        let io = |path: &Path| {
            let path = path.to_owned();
            move |source| HubError::Io { path, source }
        };
        if let Some(folder) = &self.folder {
            if self.is_link {
                remove_link(folder).map_err(io(folder))?;
            } else {
                // A name that no model can have.
                let name = format!(".trash-{}", std::process::id());
                let trash = self.models_dir.join(STAGING).join(name);
                fs::create_dir_all(trash.parent().unwrap_or(&trash)).map_err(io(&trash))?;
                fs::rename(folder, &trash).map_err(io(folder))?;
                // It does not follow links.
                fs::remove_dir_all(&trash).map_err(io(&trash))?;
                remove_empty_parents(&trash, &self.models_dir);
            }
            remove_empty_parents(folder, &self.models_dir);
        }
        if let Some(staging) = &self.staging {
            fs::remove_dir_all(staging).map_err(io(staging))?;
            remove_empty_parents(staging, &self.models_dir);
        }
        Ok(())
    }
}

/// On Windows a link to a folder is a kind of folder.
fn remove_link(link: &Path) -> std::io::Result<()> {
    fs::remove_file(link).or_else(|error| fs::remove_dir(link).map_err(|_| error))
}

/// A folder with folders and no files.
fn is_organisation(folder: &Path) -> bool {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut kinds = entries.filter_map(|entry| entry.file_type().ok()).peekable();
    kinds.peek().is_some() && kinds.all(|kind| !kind.is_file())
}

fn bytes_below(folder: &Path) -> u64 {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let bytes = |entry: fs::DirEntry| match entry.metadata() {
        Ok(meta) if meta.is_dir() => bytes_below(&entry.path()),
        Ok(meta) if meta.is_file() => meta.len(),
        Ok(_) | Err(_) => 0,
    };
    entries.map(bytes).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn store() -> (tempfile::TempDir, Hub) {
        let dir = tempfile::tempdir().unwrap();
        for name in ["models/acme/one", "models/acme/two", "models/bare", "outside"] {
            let folder = dir.path().join(name);
            fs::create_dir_all(&folder).unwrap();
            fs::write(folder.join("config.json"), "{}").unwrap();
        }
        let hub = Hub::new(dir.path(), vec![]);
        (dir, hub)
    }

    #[test]
    fn a_model_goes_and_its_empty_organisation_with_it() {
        let (dir, hub) = store();
        let parts = dir.path().join("models/.pull/acme/two");
        fs::create_dir_all(&parts).unwrap();
        fs::write(parts.join("x.part"), "123").unwrap();
        for (name, bytes) in [("acme/one", 2), ("acme/two", 5), ("bare", 2)] {
            let removable = hub.removable(name).unwrap();
            assert_eq!((removable.name(), removable.bytes()), (name, bytes));
            removable.remove().unwrap();
        }
        let left = fs::read_dir(dir.path().join("models")).unwrap().count();
        assert_eq!(left, 0, "organisation and parts are gone as well");
        assert!(dir.path().join("outside/config.json").exists());
        assert!(matches!(hub.removable("bare"), Err(HubError::UnknownModel { .. })));
    }

    #[test]
    fn nothing_but_models_in_the_store_is_deleted() {
        let (dir, hub) = store();
        let outside = dir.path().join("outside");
        for (name, says) in [
            ("demo", "comes with Offshoot"),
            ("shape:qwen3-8b:4bit", "no file"),
            (outside.to_str().unwrap(), "it is a path"),
            ("./bare", "it is a path"),
            ("~/x", "it is a path"),
            ("..", "it is a path"),
            ("acme", "several models"),
            ("acme/..", "begins with a dot"),
            ("acme/../../outside", "more than one slash"),
        ] {
            let error = hub.removable(name).unwrap_err().to_string();
            assert!(error.contains(says), "{name}: {error}");
        }
    }

    #[cfg(unix)]
    #[test]
    fn links_go_and_what_they_lead_to_stays() {
        use std::os::unix::fs::symlink;
        let (dir, hub) = store();
        let (models, outside) = (dir.path().join("models"), dir.path().join("outside"));
        symlink(&outside, models.join("link")).unwrap();
        symlink(dir.path(), models.join("org")).unwrap();
        symlink(&outside, models.join("bare/inner")).unwrap();
        let link = hub.removable("link").unwrap();
        assert!(link.is_link() && link.bytes() == 0);
        link.remove().unwrap();
        hub.removable("bare").unwrap().remove().unwrap();
        let error = hub.removable("org/outside").unwrap_err().to_string();
        assert!(error.contains("outside the store"), "{error}");
        assert!(outside.join("config.json").exists());
        assert!(!models.join("link").exists() && !models.join("bare").exists());
    }
}
