//! What a pulled folder says about where it came from.

use std::io;
use std::path::Path;

use serde_json::{Map, Value, json};

use super::listing::RemoteFile;
use crate::folder::is_plain_file_name;
use crate::text_file;

/// Hidden, so that nothing takes it for a part of the model.
pub(crate) const FILE_NAME: &str = ".offshoot.json";

/// Where a pulled model came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin {
    /// The repository.
    pub repo: String,
    /// The revision that was asked for.
    pub revision: String,
    /// The commit that it stood for.
    pub commit: String,
}

impl Origin {
    /// That of a folder in the store; none for folders that were not pulled.
    pub fn of(folder: &Path) -> Option<Self> {
        let object = read(folder)?;
        let text = |key: &str| Some(object.get(key)?.as_str()?.to_owned());
        Some(Self { repo: text("repo")?, revision: text("revision")?, commit: text("commit")? })
    }

    /// Writes it into a folder, with the files that belong to the model.
    pub(super) fn write(&self, folder: &Path, files: &[RemoteFile]) -> io::Result<()> {
        let file = |file: &RemoteFile| {
            let digest = file.digest.to_string();
            json!({ "name": file.name, "size_bytes": file.size_bytes, "digest": digest })
        };
        let files: Vec<_> = files.iter().map(file).collect();
        let Self { repo, revision, commit } = self;
        let object =
            json!({ "repo": repo, "revision": revision, "commit": commit, "files": files });
        std::fs::write(folder.join(FILE_NAME), format!("{object:#}\n"))
    }
}

/// Whether all files of a pulled folder have the lengths that they were pulled with.
pub(super) fn is_complete(folder: &Path) -> bool {
    let is_whole = |file: &Value| {
        let name = file.get("name").and_then(Value::as_str).filter(|name| is_plain_file_name(name));
        let size = file.get("size_bytes").and_then(Value::as_u64);
        let meta = name.and_then(|name| folder.join(name).metadata().ok());
        meta.is_some_and(|meta| Some(meta.len()) == size)
    };
    let object = read(folder).unwrap_or_default();
    object.get("files").and_then(Value::as_array).is_some_and(|files| files.iter().all(is_whole))
}

/// The names of a pulled folder's files and the digits of their hashes.
pub(super) fn files(folder: &Path) -> Vec<(String, String)> {
    let object = read(folder).unwrap_or_default();
    let files = object.get("files").and_then(Value::as_array);
    let files = files.into_iter().flatten().filter_map(|file| {
        let name = file.get("name")?.as_str().filter(|name| is_plain_file_name(name))?;
        let (_, hex) = file.get("digest")?.as_str()?.split_once(':')?;
        is_plain_file_name(hex).then(|| (name.to_owned(), hex.to_owned()))
    });
    files.collect()
}

fn read(folder: &Path) -> Option<Map<String, Value>> {
    let text = text_file::read(&folder.join(FILE_NAME)).ok()??;
    serde_json::from_str(&text).ok()
}
