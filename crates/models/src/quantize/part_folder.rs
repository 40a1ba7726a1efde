//! Where the output grows: a folder beside the target that bears the plan's mark. A finished shard
//! is recorded there with its hash, so that the same command goes on where it was stopped. The
//! target appears at the end, complete, by one rename.

use std::collections::BTreeMap;
use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::{Error, Result};

use super::shard;

/// What has been finished, in the folder itself.
const RECORD: &str = "offshoot-quantize.json";
/// Held by the process that writes.
const LOCK: &str = "offshoot-quantize.lock";
/// A record larger than this is none of ours.
const MAX_RECORD_BYTES: u64 = 64 << 20;

/// One finished shard.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Done {
    pub n_bytes: u64,
    pub hash: u64,
    /// By role: Σ weights · distance, Σ weights.
    pub distances: BTreeMap<String, [f64; 2]>,
}

/// The folder, locked for this process.
#[derive(Debug)]
pub(super) struct PartFolder {
    pub folder: PathBuf,
    target: PathBuf,
    /// Shards by file name.
    pub done: BTreeMap<String, Done>,
    /// What became of folders of earlier runs.
    pub notes: Vec<String>,
    lock: File,
}

impl PartFolder {
    /// Opens or creates the folder for this mark. Folders that earlier runs with other choices left
    /// are removed.
    ///
    /// # Errors
    /// Another process writes there, or the disk refuses.
    pub fn open(target: &Path, mark: &str) -> Result<Self> {
        let folder = beside(target, &format!(".part-{mark}"));
        let notes = remove_others(target, &folder)?;
        fs::create_dir_all(&folder).map_err(|e| Error::write(&folder, e))?;
        let lock = locked(&folder)?;
        let done = finished(&folder);
        Ok(Self { folder, target: target.to_owned(), done, notes, lock })
    }

    /// Records a shard that is on the disk.
    pub fn record(&mut self, name: &str, done: Done) -> Result<()> {
        self.done.insert(name.to_owned(), done);
        let entry = |done: &Done| {
            let hash = format!("{:016x}", done.hash);
            json!({ "n_bytes": done.n_bytes, "hash": hash, "distances": done.distances })
        };
        let shards = self.done.iter().map(|(name, done)| (name.clone(), entry(done)));
        let record = json!({ "shards": shards.collect::<serde_json::Map<_, _>>() });
        let (path, new) = (self.folder.join(RECORD), self.folder.join(format!("{RECORD}.new")));
        write_synced(&new, record.to_string().as_bytes())?;
        fs::rename(&new, &path).map_err(|e| Error::write(&path, e))
    }

    /// After a failure. What stopped the run by its own nature stops it again: nothing of it is
    /// kept. A full disk and a cancellation leave what is finished.
    pub fn failed(self, error: Error) -> Error {
        let goes_on = matches!(
            error,
            Error::Cancelled | Error::Write { .. } | Error::Disk { .. } | Error::Mlx(_)
        );
        if !goes_on || self.done.is_empty() {
            // What cannot be removed now is found by the next run.
            let _ = fs::remove_dir_all(&self.folder);
        }
        error
    }

    /// Puts the complete folder in the target's place, also where another stands if `overwrites`.
    pub fn finish(self, overwrites: bool) -> Result<()> {
        let Self { folder, target, lock, .. } = self;
        for name in [RECORD, LOCK] {
            let path = folder.join(name);
            fs::remove_file(&path).map_err(|e| Error::write(&path, e))?;
        }
        drop(lock);
        sync_folder(&folder);
        let mark = folder.extension().unwrap_or_default().to_string_lossy();
        let old = beside(&target, &format!(".replaced-by-{mark}"));
        let moved = overwrites && target.exists();
        if moved {
            fs::rename(&target, &old).map_err(|e| Error::write(&target, e))?;
        }
        if let Err(error) = fs::rename(&folder, &target) {
            if moved {
                // The old model goes back; if that fails, the error below still tells the truth.
                let _ = fs::rename(&old, &target);
            }
            return Err(Error::write(&target, error));
        }
        sync_folder(parent(&target));
        if moved {
            fs::remove_dir_all(&old).map_err(|e| Error::write(&old, e))?;
        }
        Ok(())
    }
}

/// The folder that a path lies in.
pub(super) fn parent(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// A file that is on the disk when this returns.
pub(super) fn write_synced(path: &Path, bytes: &[u8]) -> Result<()> {
    let failed = |e| Error::write(path, e);
    let mut file = File::create(path).map_err(failed)?;
    std::io::Write::write_all(&mut file, bytes).map_err(failed)?;
    file.sync_all().map_err(failed)
}

/// The names in a folder are on the disk, where the system knows how.
fn sync_folder(folder: &Path) {
    if let Ok(folder) = File::open(folder) {
        let _ = folder.sync_all();
    }
}

/// `target` with something after its name.
fn beside(target: &Path, ending: &str) -> PathBuf {
    let mut name = target.file_name().unwrap_or_default().to_owned();
    name.push(ending);
    target.with_file_name(name)
}

fn locked(folder: &Path) -> Result<File> {
    let path = folder.join(LOCK);
    let file = File::create(&path).map_err(|e| Error::write(&path, e))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => {
            let reason = "another process is writing this model: wait for it or end it".to_owned();
            Err(Error::Write { path: folder.to_owned(), reason })
        }
        Err(TryLockError::Error(e)) => Err(Error::write(&path, e)),
    }
}

/// Folders for the same target with other marks: made from other files or by other choices.
fn remove_others(target: &Path, ours: &Path) -> Result<Vec<String>> {
    let start = beside(target, ".part-");
    let start = start.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let mut notes = Vec::new();
    let Ok(list) = fs::read_dir(parent(target)) else { return Ok(notes) };
    for path in list.filter_map(|entry| Some(entry.ok()?.path())) {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let mark = name.strip_prefix(&start).unwrap_or_default();
        let is_ours = mark.len() == 16 && mark.chars().all(|c| c.is_ascii_hexdigit());
        if path == ours || !is_ours || !path.join(LOCK).is_file() {
            continue;
        }
        drop(locked(&path)?);
        fs::remove_dir_all(&path).map_err(|e| Error::write(&path, e))?;
        notes.push(format!(
            "{} was left by a run of other files or choices: removed",
            path.display()
        ));
    }
    Ok(notes)
}

/// The shards that the record names and whose bytes are those that it knows.
fn finished(folder: &Path) -> BTreeMap<String, Done> {
    let read = || -> Option<Value> {
        let path = folder.join(RECORD);
        (path.metadata().ok()?.len() <= MAX_RECORD_BYTES).then_some(())?;
        serde_json::from_slice(&fs::read(path).ok()?).ok()
    };
    let record = read().unwrap_or_default();
    let Some(shards) = record["shards"].as_object() else { return BTreeMap::new() };
    let intact = |(name, entry): (&String, &Value)| {
        let done = Done {
            n_bytes: entry["n_bytes"].as_u64()?,
            hash: u64::from_str_radix(entry["hash"].as_str()?, 16).ok()?,
            distances: distances(&entry["distances"])?,
        };
        let is_plain = Path::new(name).file_name().is_some_and(|file| file == name.as_str());
        let path = folder.join(name);
        let is_whole = is_plain && path.metadata().is_ok_and(|meta| meta.len() == done.n_bytes);
        (is_whole && shard::hash(&path).is_ok_and(|hash| hash == done.hash))
            .then(|| (name.clone(), done))
    };
    shards.iter().filter_map(intact).collect()
}

fn distances(value: &Value) -> Option<BTreeMap<String, [f64; 2]>> {
    let pair = |(role, pair): (&String, &Value)| {
        Some((role.clone(), [pair.get(0)?.as_f64()?, pair.get(1)?.as_f64()?]))
    };
    value.as_object()?.iter().map(pair).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MARK: &str = "0123456789abcdef";

    fn done(folder: &Path, name: &str, bytes: &[u8]) -> Done {
        let path = folder.join(name);
        fs::write(&path, bytes).unwrap();
        let distances = [("mlp".to_owned(), [0.25, 3.0])].into();
        Done { n_bytes: bytes.len() as u64, hash: shard::hash(&path).unwrap(), distances }
    }

    #[test]
    fn recorded_shards_are_found_again_unless_a_byte_of_them_changed() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("model");
        let mut place = PartFolder::open(&target, MARK).unwrap();
        let [a, b] = ["a", "b"].map(|name| done(&place.folder, name, name.as_bytes()));
        place.record("a", a.clone()).unwrap();
        place.record("b", b.clone()).unwrap();
        let folder = place.folder.clone();
        drop(place);
        let wanted = [("a".to_owned(), a.clone()), ("b".to_owned(), b)].into();
        let found = || PartFolder::open(&target, MARK).unwrap().done;
        assert_eq!(found(), wanted);
        fs::write(folder.join("b"), "c").unwrap();
        assert_eq!(found(), [("a".to_owned(), a)].into());
        fs::write(folder.join(RECORD), r#"{"shards": {"../a": {"n_bytes": 1}, "a": 7}}"#).unwrap();
        assert!(found().is_empty());
    }

    #[test]
    fn a_folder_in_use_is_not_taken_and_one_of_other_choices_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("model");
        let first = PartFolder::open(&target, MARK).unwrap();
        for mark in [MARK, "00000000000000ff"] {
            let error = PartFolder::open(&target, mark).unwrap_err().to_string();
            assert!(error.contains("another process"), "{error}");
        }
        let folder = first.folder.clone();
        drop(first);
        let strangers = ["model.part-notours", "model2.part-0123456789abcdef"];
        strangers.iter().for_each(|name| fs::create_dir(dir.path().join(name)).unwrap());
        let second = PartFolder::open(&target, "00000000000000ff").unwrap();
        assert_eq!(second.notes.len(), 1);
        assert!(!folder.exists() && second.folder.exists());
        assert!(strangers.iter().all(|name| dir.path().join(name).exists()));
    }

    #[test]
    fn the_target_appears_whole_and_replaces_only_on_request() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("model");
        let build = |text: &str| {
            let mut place = PartFolder::open(&target, MARK).unwrap();
            let one = done(&place.folder, "a", text.as_bytes());
            place.record("a", one).unwrap();
            assert!(!target.exists() || text != "first");
            place
        };
        build("first").finish(false).unwrap();
        assert_eq!(fs::read_to_string(target.join("a")).unwrap(), "first");
        assert!(build("second").finish(false).is_err());
        assert_eq!(fs::read_to_string(target.join("a")).unwrap(), "first");
        build("third").finish(true).unwrap();
        assert_eq!(fs::read_to_string(target.join("a")).unwrap(), "third");
        let names = fs::read_dir(&target).unwrap().map(|e| e.unwrap().file_name());
        assert_eq!(names.collect::<Vec<_>>(), ["a"]);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
