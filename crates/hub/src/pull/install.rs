//! Where files gather until a model is complete, and the step that makes it appear.

use std::collections::BTreeSet;
use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};

use super::STAGING;
use super::error::PullError;
use super::listing::RemoteFile;
use super::manifest::{self, Origin};
use super::part::write_failed;
use crate::folder::ModelFolder;
use crate::name::ModelName;

const LOCK: &str = "lock";
/// The complete model, under its files' real names.
const MODEL: &str = "model";
/// The one that it replaces.
const OLD: &str = "old";

/// A folder that one process at a time uses.
pub(super) struct Staging {
    path: PathBuf,
    target: PathBuf,
    models_dir: PathBuf,
    /// Whether the folder is gone, and may be another process's by now.
    is_discarded: bool,
    _lock: File,
}

/// What is being fetched of a model, while it is not complete.
pub(crate) fn staging_of(models_dir: &Path, name: &ModelName) -> PathBuf {
    models_dir.join(STAGING).join(name.as_str())
}

impl Staging {
    /// Makes the folder, or takes up what an earlier pull left in it.
    pub fn open(models_dir: &Path, name: &ModelName) -> Result<Self, PullError> {
        let path = staging_of(models_dir, name);
        fs::create_dir_all(&path).map_err(|error| write_failed(&path, error))?;
        let lock_path = path.join(LOCK);
        let lock = File::create(&lock_path).map_err(|error| write_failed(&lock_path, error))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(PullError::InUse { name: name.to_string() });
            }
            Err(TryLockError::Error(source)) => {
                return Err(PullError::Io { path: lock_path, source });
            }
        }
        let target = models_dir.join(name.as_str());
        let models_dir = models_dir.to_owned();
        let staging = Self { path, target, models_dir, is_discarded: false, _lock: lock };
        staging.take_back();
        Ok(staging)
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Where a file gathers.
    pub fn part(&self, file: &RemoteFile) -> PathBuf {
        self.path.join(format!("{}.{}.part", file.name, file.digest.hex()))
    }

    /// Where it is when it is complete and checked.
    pub fn complete(&self, file: &RemoteFile) -> PathBuf {
        self.path.join(format!("{}.{}", file.name, file.digest.hex()))
    }

    /// Removes what belongs to none of these files: other revisions, other versions.
    pub fn clean(&self, files: &[RemoteFile]) {
        let known: BTreeSet<_> =
            files.iter().flat_map(|file| [self.part(file), self.complete(file)]).collect();
        for entry in fs::read_dir(&self.path).into_iter().flatten().flatten() {
            if !known.contains(&entry.path()) && entry.file_name() != LOCK {
                let _ = fs::remove_file(entry.path());
            }
        }
    }

    /// Refuses to put a model where something else is.
    pub fn check_target(&self) -> Result<(), PullError> {
        let occupied =
            |path: &Path, reason| Err(PullError::Occupied { path: path.to_owned(), reason });
        if let Some(parent) = self.target.parent().filter(|parent| *parent != self.models_dir) {
            match fs::symlink_metadata(parent) {
                Ok(meta) if meta.is_symlink() => return occupied(parent, "is a link"),
                Ok(meta) if !meta.is_dir() => return occupied(parent, "is a file"),
                Ok(_) if parent.join("config.json").exists() => {
                    return occupied(parent, "is a model itself");
                }
                Ok(_) | Err(_) => {}
            }
        }
        match fs::symlink_metadata(&self.target) {
            Ok(meta) if meta.is_symlink() => occupied(&self.target, "is a link"),
            Ok(meta) if !meta.is_dir() => occupied(&self.target, "is a file"),
            Ok(_) if Origin::of(&self.target).is_none() => {
                occupied(&self.target, "is a folder that was not pulled")
            }
            Ok(_) | Err(_) => Ok(()),
        }
    }

    /// Gives all files their names, checks that they are a model, and puts it into the store in
    /// place of an earlier one. Returns its folder.
    pub fn install(self, origin: &Origin, files: &[RemoteFile]) -> Result<PathBuf, PullError> {
        let model = self.path.join(MODEL);
        let failed = |error: io::Error| write_failed(&model, error);
        fs::create_dir_all(&model).map_err(failed)?;
        // First, so that a later pull knows what the files are if this one ends here.
        origin.write(&model, files).map_err(failed)?;
        for file in files {
            fs::rename(self.complete(file), model.join(&file.name)).map_err(failed)?;
        }
        ModelFolder::open(&model).and_then(|folder| folder.weights()).map_err(PullError::Hub)?;
        self.check_target()?;
        if let Some(parent) = self.target.parent() {
            fs::create_dir_all(parent).map_err(|error| write_failed(parent, error))?;
        }
        let old = self.path.join(OLD);
        let has_old = self.target.exists();
        let moved = |error| PullError::Io { path: self.target.clone(), source: error };
        if has_old {
            fs::rename(&self.target, &old).map_err(moved)?;
        }
        if let Err(error) = fs::rename(&model, &self.target) {
            if has_old {
                let _ = fs::rename(&old, &self.target);
            }
            return Err(moved(error));
        }
        let target = self.target.clone();
        self.discard();
        Ok(target)
    }

    /// Undoes an installation that was interrupted.
    fn take_back(&self) {
        let old = self.path.join(OLD);
        if old.exists() && !self.target.exists() {
            let _ = fs::rename(&old, &self.target);
        }
        let model = self.path.join(MODEL);
        for (name, digest) in manifest::files(&model) {
            let _ = fs::rename(model.join(&name), self.path.join(format!("{name}.{digest}")));
        }
        for folder in [model, old] {
            let _ = fs::remove_dir_all(folder);
        }
    }

    /// Removes it all. What cannot be removed is in nobody's way.
    pub fn discard(mut self) {
        self.remove();
    }

    fn remove(&mut self) {
        let _ = fs::remove_dir_all(&self.path);
        remove_empty_parents(&self.path, &self.models_dir);
        self.is_discarded = true;
    }
}

/// Where nothing has come, nothing is left.
impl Drop for Staging {
    fn drop(&mut self) {
        if !self.is_discarded && !has_parts(&self.path) {
            self.remove();
        }
    }
}

/// Whether a download has begun in a staging folder.
pub(crate) fn has_parts(staging: &Path) -> bool {
    let mut entries = fs::read_dir(staging).into_iter().flatten().flatten();
    entries.any(|entry| entry.file_name() != LOCK)
}

/// Removes the folders between `path` and `root` that have become empty.
pub(crate) fn remove_empty_parents(path: &Path, root: &Path) {
    let parents = path.ancestors().skip(1).take_while(|parent| *parent != root);
    for parent in parents {
        if fs::remove_dir(parent).is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest::Digest;

    const CONFIG: &str = r#"{"model_type": "qwen3"}"#;

    fn files() -> Vec<RemoteFile> {
        let digest = |c: &str| Digest::parse_git_blob(&c.repeat(40)).unwrap();
        let file = |name: &str, content: &[u8], c| RemoteFile {
            name: name.into(),
            size_bytes: content.len() as u64,
            digest: digest(c),
        };
        vec![
            file("config.json", CONFIG.as_bytes(), "a"),
            file("model.safetensors", &weights(), "b"),
        ]
    }

    fn weights() -> Vec<u8> {
        [&2u64.to_le_bytes()[..], b"{}"].concat()
    }

    fn staged(models: &Path) -> Staging {
        let staging = Staging::open(models, &ModelName::parse("a/b").unwrap()).unwrap();
        for (file, content) in files().iter().zip([CONFIG.as_bytes().to_vec(), weights()]) {
            fs::write(staging.complete(file), content).unwrap();
        }
        staging
    }

    fn origin(commit: &str) -> Origin {
        Origin { repo: "a/b".into(), revision: "main".into(), commit: commit.into() }
    }

    #[test]
    fn a_model_appears_as_a_whole_and_replaces_an_earlier_one() {
        let dir = tempfile::tempdir().unwrap();
        for commit in ["1", "2"] {
            let path = staged(dir.path()).install(&origin(commit), &files()).unwrap();
            assert_eq!(Origin::of(&path).unwrap().commit, commit);
            assert!(manifest::is_complete(&path));
            assert!(!dir.path().join(STAGING).exists());
        }
    }

    #[test]
    fn an_interrupted_installation_is_undone() {
        let dir = tempfile::tempdir().unwrap();
        staged(dir.path()).install(&origin("1"), &files()).unwrap();
        let staging = staged(dir.path());
        let model = staging.path.join(MODEL);
        fs::create_dir_all(&model).unwrap();
        origin("2").write(&model, &files()).unwrap();
        fs::rename(staging.complete(&files()[0]), model.join("config.json")).unwrap();
        fs::rename(&staging.target, staging.path.join(OLD)).unwrap();
        drop(staging);
        let staging = Staging::open(dir.path(), &ModelName::parse("a/b").unwrap()).unwrap();
        assert!(files().iter().all(|file| staging.complete(file).is_file()));
        assert_eq!(Origin::of(&staging.target).unwrap().commit, "1");
        staging.install(&origin("2"), &files()).unwrap();
    }

    #[test]
    fn one_process_at_a_time_pulls_a_model() {
        let dir = tempfile::tempdir().unwrap();
        let staging = staged(dir.path());
        let again = Staging::open(dir.path(), &ModelName::parse("a/b").unwrap());
        assert!(matches!(again, Err(PullError::InUse { .. })));
        drop(staging);
        Staging::open(dir.path(), &ModelName::parse("a/b").unwrap()).unwrap();
    }

    #[test]
    fn what_was_not_pulled_is_not_replaced() {
        let check = |make: &dyn Fn(&Path), says: &str| {
            let dir = tempfile::tempdir().unwrap();
            make(dir.path());
            let error = staged(dir.path()).check_target().unwrap_err();
            assert!(error.to_string().contains(says), "{error}");
        };
        check(&|dir| fs::create_dir_all(dir.join("a/b")).unwrap(), "was not pulled");
        check(&|dir| fs::write(dir.join("a"), "").unwrap(), "is a file");
        let model = |dir: &Path| {
            fs::create_dir_all(dir.join("a")).unwrap();
            fs::write(dir.join("a/config.json"), "").unwrap();
        };
        check(&model, "is a model itself");
        #[cfg(unix)]
        {
            use std::os::unix::fs::symlink;
            check(&|dir| symlink("elsewhere", dir.join("a")).unwrap(), "is a link");
            let inner = |dir: &Path| {
                fs::create_dir_all(dir.join("a")).unwrap();
                symlink("elsewhere", dir.join("a/b")).unwrap();
            };
            check(&inner, "is a link");
        }
    }
}
