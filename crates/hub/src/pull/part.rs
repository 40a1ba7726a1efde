//! A file that is being fetched: its bytes so far, and their hash.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::path::{Path, PathBuf};

use super::error::PullError;
use super::listing::RemoteFile;
use crate::digest::Hasher;

pub(super) const BUFFER_BYTES: usize = 1 << 18;

/// Told how many bytes of a file are there.
pub(super) type OnBytes<'a> = &'a dyn Fn(u64);

/// `NAME.DIGEST.part`. Every write goes to the file at once, so that nothing is lost when the
/// process is stopped.
pub(super) struct Part<'a> {
    path: PathBuf,
    file: File,
    hasher: Hasher,
    /// Bytes so far.
    pub len: u64,
    of: &'a RemoteFile,
}

impl<'a> Part<'a> {
    /// Opens what is there, or begins. Bytes that are there are read once, for the hash.
    pub fn open(
        path: PathBuf,
        of: &'a RemoteFile,
        on_bytes: OnBytes<'_>,
    ) -> Result<Self, PullError> {
        let failed = |source| PullError::Io { path: path.clone(), source };
        // Only what an earlier pull left is gone on with: never a link.
        match fs::symlink_metadata(&path) {
            Ok(meta) if !meta.is_file() => fs::remove_file(&path).map_err(failed)?,
            Ok(_) | Err(_) => {}
        }
        let mut options = OpenOptions::new();
        let options = options.read(true).write(true).create(true).truncate(false);
        let file = options.open(&path).map_err(failed)?;
        let mut part = Self { file, hasher: of.digest.hasher(of.size_bytes), len: 0, of, path };
        part.take_up(on_bytes)?;
        Ok(part)
    }

    fn take_up(&mut self, on_bytes: OnBytes<'_>) -> Result<(), PullError> {
        let present = self.file.metadata().map_err(|e| self.failed(e))?.len();
        if present > self.of.size_bytes {
            return self.restart();
        }
        let mut buffer = vec![0; BUFFER_BYTES];
        loop {
            let n = self.file.read(&mut buffer).map_err(|e| self.failed(e))?;
            if n == 0 {
                return Ok(());
            }
            self.hasher.update(&buffer[..n]);
            self.len += n as u64;
            on_bytes(self.len);
        }
    }

    /// Forgets all bytes.
    pub fn restart(&mut self) -> Result<(), PullError> {
        self.file.set_len(0).and_then(|()| self.file.rewind()).map_err(|e| self.failed(e))?;
        self.hasher = self.of.digest.hasher(self.of.size_bytes);
        self.len = 0;
        Ok(())
    }

    /// Adds bytes; more than the file has are an error.
    pub fn append(&mut self, bytes: &[u8]) -> Result<(), PullError> {
        let len = self.len + bytes.len() as u64;
        if len > self.of.size_bytes {
            return Err(self.wrong_size(len));
        }
        if let Err(error) = self.file.write_all(bytes) {
            return Err(write_failed(&self.path, error));
        }
        self.hasher.update(bytes);
        self.len = len;
        Ok(())
    }

    /// Whether no byte is missing.
    pub fn is_complete(&self) -> bool {
        self.len == self.of.size_bytes
    }

    /// The server has another length than the list says. What there is of it is deleted.
    pub fn wrong_size(&self, found_bytes: u64) -> PullError {
        let _ = fs::remove_file(&self.path);
        let file = self.of.name.clone();
        PullError::WrongSize { file, found_bytes, listed_bytes: self.of.size_bytes }
    }

    /// Checks the hash of the complete file and gives it its name. A wrong one is deleted.
    pub fn finish(self, name: &Path) -> Result<(), PullError> {
        let Self { path, file, hasher, of, .. } = self;
        if !hasher.matches(&of.digest) {
            let failed = |source| PullError::Io { path: path.clone(), source };
            fs::remove_file(&path).map_err(failed)?;
            let (file, expected) = (of.name.clone(), of.digest.to_string());
            return Err(PullError::WrongHash { file, expected });
        }
        let moved = file.sync_all().and_then(|()| fs::rename(&path, name));
        moved.map_err(|error| write_failed(&path, error))
    }

    fn failed(&self, source: io::Error) -> PullError {
        PullError::Io { path: self.path.clone(), source }
    }
}

/// Writing has failed: the disk is full, or something else is wrong.
pub(super) fn write_failed(path: &Path, source: io::Error) -> PullError {
    let path = path.to_owned();
    match source.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => PullError::DiskFull { path },
        _ => PullError::Io { path, source },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest::Digest;

    fn abc() -> RemoteFile {
        let digest = Digest::parse_git_blob("f2ba8f84ab5c1bce84a7b441cb1959cfc7093b7f").unwrap();
        RemoteFile { name: "abc".into(), size_bytes: 3, digest }
    }

    #[test]
    fn a_part_goes_on_where_it_was_left() {
        let dir = tempfile::tempdir().unwrap();
        let (path, name) = (dir.path().join("abc.part"), dir.path().join("abc"));
        let of = abc();
        Part::open(path.clone(), &of, &|_| {}).unwrap().append(b"a").unwrap();
        let mut part = Part::open(path.clone(), &of, &|_| {}).unwrap();
        assert_eq!((part.len, part.is_complete()), (1, false));
        part.append(b"bc").unwrap();
        assert!(part.is_complete());
        part.finish(&name).unwrap();
        assert_eq!((fs::read(&name).unwrap(), path.exists()), (b"abc".to_vec(), false));
    }

    #[test]
    fn wrong_bytes_are_deleted() {
        let dir = tempfile::tempdir().unwrap();
        let (path, name) = (dir.path().join("abc.part"), dir.path().join("abc"));
        let of = abc();
        let mut part = Part::open(path.clone(), &of, &|_| {}).unwrap();
        part.append(b"abd").unwrap();
        assert!(matches!(part.finish(&name), Err(PullError::WrongHash { .. })));
        assert!(!path.exists() && !name.exists());
        let mut part = Part::open(path.clone(), &of, &|_| {}).unwrap();
        let error = part.append(b"abcd").unwrap_err();
        assert!(matches!(error, PullError::WrongSize { found_bytes: 4, listed_bytes: 3, .. }));
        assert!(!path.exists());
    }

    #[test]
    fn what_is_too_long_or_no_file_is_not_gone_on_with() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("abc.part");
        let of = abc();
        fs::write(&path, "abcdef").unwrap();
        assert_eq!(Part::open(path.clone(), &of, &|_| {}).unwrap().len, 0);
        #[cfg(unix)]
        {
            let outside = dir.path().join("outside");
            fs::write(&outside, "ab").unwrap();
            fs::remove_file(&path).unwrap();
            std::os::unix::fs::symlink(&outside, &path).unwrap();
            let mut part = Part::open(path.clone(), &of, &|_| {}).unwrap();
            part.append(b"a").unwrap();
            assert_eq!(fs::read(&outside).unwrap(), b"ab");
        }
    }

    /// A device that is always full stands for a disk that is.
    #[cfg(target_os = "linux")]
    #[test]
    fn a_full_disk_is_called_so() {
        let file = OpenOptions::new().write(true).open("/dev/full").unwrap();
        let of = abc();
        let hasher = of.digest.hasher(3);
        let mut part = Part { path: "abc.part".into(), file, hasher, len: 0, of: &of };
        let error = part.append(b"a").unwrap_err();
        assert!(matches!(error, PullError::DiskFull { .. }), "{error}");
        assert!(error.hint().unwrap().contains("free some space"));
    }
}
