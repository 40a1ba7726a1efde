//! The few acts on files that a store needs, so that tests can let each of them fail, and forget
//! what was not synced. [`Files`] is one folder; names in it are names, never paths.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// One folder of files.
pub trait Files: Send + Sync {
    /// Where a file is, for messages.
    fn path(&self, name: &str) -> PathBuf;
    /// Names and bytes of the files that there are.
    ///
    /// # Errors
    /// What the system says; so for all acts.
    fn names(&self) -> io::Result<Vec<(String, u64)>>;
    /// An empty file in place of any that has the name, for its owner's eyes only.
    fn create(&self, name: &str) -> io::Result<Box<dyn Handle>>;
    /// A file to read.
    fn open(&self, name: &str) -> io::Result<Box<dyn Handle>>;
    /// A file to read and to write.
    fn edit(&self, name: &str) -> io::Result<Box<dyn Handle>>;
    /// Gives a file another name, in place of any file that has it. Either all of that has
    /// happened after a crash, or nothing.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;
    /// Takes a name away.
    fn remove(&self, name: &str) -> io::Result<()>;
    /// Names that were made, changed or taken away before are so after a crash too.
    fn sync(&self) -> io::Result<()>;
}

/// An open file.
pub trait Handle: Send + Sync {
    /// How long it is.
    ///
    /// # Errors
    /// What the system says; so for all acts.
    fn n_bytes(&self) -> io::Result<u64>;
    /// Fills `into` from `offset` on; a file that is too short is `UnexpectedEof`.
    fn read_at(&self, into: &mut [u8], offset: u64) -> io::Result<()>;
    /// Writes all of `bytes` at `offset`. When it fails, some may be written.
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()>;
    /// Makes it `n_bytes` long.
    fn cut(&self, n_bytes: u64) -> io::Result<()>;
    /// What was written before is so after a crash too.
    fn sync(&self) -> io::Result<()>;
}

/// A folder of the system. Its files have mode 0600 on Unix.
#[derive(Debug)]
pub struct Folder {
    path: PathBuf,
}

impl Folder {
    /// A folder that exists.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into() }
    }
}

impl Files for Folder {
    fn path(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    fn names(&self) -> io::Result<Vec<(String, u64)>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.path)? {
            let entry = entry?;
            let Ok(name) = entry.file_name().into_string() else { continue };
            match entry.metadata() {
                Ok(meta) if meta.is_file() => names.push((name, meta.len())),
                Ok(_) => {}
                // Another process may delete while this one lists.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        Ok(names)
    }

    fn create(&self, name: &str) -> io::Result<Box<dyn Handle>> {
        let mut options = private();
        let file = options.read(true).write(true).create(true).truncate(true);
        Ok(Box::new(file.open(self.path(name))?))
    }

    fn open(&self, name: &str) -> io::Result<Box<dyn Handle>> {
        Ok(Box::new(fs::File::open(self.path(name))?))
    }

    fn edit(&self, name: &str) -> io::Result<Box<dyn Handle>> {
        Ok(Box::new(private().read(true).write(true).open(self.path(name))?))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        fs::rename(self.path(from), self.path(to))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        fs::remove_file(self.path(name))
    }

    /// Elsewhere than on Unix a folder cannot be synced, and names are as durable as the system
    /// makes them.
    fn sync(&self) -> io::Result<()> {
        if cfg!(unix) { fs::File::open(&self.path)?.sync_all() } else { Ok(()) }
    }
}

impl Handle for fs::File {
    fn n_bytes(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }

    #[cfg(unix)]
    fn read_at(&self, into: &mut [u8], offset: u64) -> io::Result<()> {
        std::os::unix::fs::FileExt::read_exact_at(self, into, offset)
    }

    #[cfg(windows)]
    fn read_at(&self, into: &mut [u8], offset: u64) -> io::Result<()> {
        let mut n_read = 0;
        while n_read < into.len() {
            let rest = &mut into[n_read..];
            match std::os::windows::fs::FileExt::seek_read(self, rest, offset + n_read as u64) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(n) => n_read += n,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    #[cfg(unix)]
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        std::os::unix::fs::FileExt::write_all_at(self, bytes, offset)
    }

    #[cfg(windows)]
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let mut n_written = 0;
        while n_written < bytes.len() {
            let rest = &bytes[n_written..];
            match std::os::windows::fs::FileExt::seek_write(self, rest, offset + n_written as u64) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(n) => n_written += n,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn cut(&self, n_bytes: u64) -> io::Result<()> {
        self.set_len(n_bytes)
    }

    fn sync(&self) -> io::Result<()> {
        self.sync_data()
    }
}

/// How files are opened that may be made.
fn private() -> fs::OpenOptions {
    #[cfg_attr(not(unix), expect(unused_mut, reason = "modes are Unix's"))]
    let mut options = fs::OpenOptions::new();
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options
}

/// A file that serves as a lock.
pub(crate) fn lock_file(path: &Path) -> io::Result<fs::File> {
    private().read(true).write(true).create(true).truncate(false).open(path)
}

/// Makes a folder and those above it that are missing, for their owner's eyes only.
pub(crate) fn make_folder(path: &Path) -> io::Result<()> {
    let mut builder = fs::DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(path)?;
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        if fs::metadata(path)?.permissions().mode() & 0o077 != 0 {
            fs::set_permissions(path, fs::Permissions::from_mode(0o700))?;
        }
    }
    Ok(())
}

/// Whether there is a folder itself, not a link to one.
pub(crate) fn is_folder(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|meta| meta.is_dir())
}
