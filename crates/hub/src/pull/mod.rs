//! Brings a model from the Hub into the store.
//!
//! Invariants:
//! - The token goes to the endpoint alone, never to where it redirects.
//! - Files are fetched at one commit, checked against the hashes the Hub lists, and appear in the
//!   store together: a model is there as a whole or not at all.
//! - What was fetched stays in `models/.pull/NAME` until then, under names that end in the hash, so
//!   that any later pull can go on, also at another revision.
//! - No name that a server gives is a path.
//!
//! None of the ready-made clients for the Hub keeps these: the token follows redirections, ranges
//! are not checked, hashes neither, or an async run time and a second TLS library come along.

mod client;
mod error;
mod install;
mod listing;
mod manifest;
mod part;
mod patience;
mod revision;
mod transfer;

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use crate::environment::Environment;
use crate::folder::{INDEX, ModelFolder};
use crate::name::ModelName;
use crate::text_file;

use self::client::Client;
use self::install::Staging;
use self::listing::{Asked, Listing, MAX_PAGES, RemoteFile};
use self::transfer::Transfer;

pub(crate) use self::client::is_loopback;
pub(crate) use self::install::{has_parts, remove_empty_parents, staging_of};

pub use self::error::PullError;
pub use self::manifest::Origin;
pub use self::patience::Patience;
pub use self::revision::{Revision, parse_reference};

/// The folder in the store with what is being fetched. No model's name begins with a dot.
pub(crate) const STAGING: &str = ".pull";

/// Files that are fetched at the same time, if nothing else is said.
pub const DEFAULT_PARALLEL: usize = 4;

/// Tells how many bytes can be written in a folder.
pub type FreeBytes = dyn Fn(&Path) -> std::io::Result<u64> + Send + Sync;

/// How a pull behaves.
#[derive(Clone)]
pub struct PullOptions {
    /// Files that are fetched at the same time; at least 1.
    pub n_parallel: usize,
    /// How long a server may send nothing.
    pub stall: Duration,
    /// When to give up.
    pub patience: Patience,
    /// How much space there is.
    pub free_bytes: Arc<FreeBytes>,
}

impl Default for PullOptions {
    fn default() -> Self {
        Self {
            n_parallel: DEFAULT_PARALLEL,
            stall: Duration::from_secs(60),
            patience: Patience::default(),
            free_bytes: Arc::new(|path| fs4::available_space(path)),
        }
    }
}

/// What a pull is going to do.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The commit.
    pub commit: String,
    /// Names and sizes in bytes of the model's files, and how much of each is here.
    pub files: Vec<PlannedFile>,
}

/// A file of the model.
#[derive(Debug, Clone)]
pub struct PlannedFile {
    /// Its name.
    pub name: String,
    /// Its size.
    pub size_bytes: u64,
    /// What of it is here already.
    pub present_bytes: u64,
}

/// Who is told how a pull goes. Calls come from several threads.
pub trait Watch: Sync {
    /// What is going to be fetched. Not called where nothing is.
    fn planned(&self, plan: &Plan);
    /// So many bytes of a file are here. Fewer than before if it had to begin anew.
    fn has(&self, file: &str, bytes: u64);
    /// A file is complete and checked.
    fn done(&self, file: &str);
    /// Something failed and is tried again after a wait.
    fn waits(&self, error: &PullError, wait: Duration);
}

/// Where a model is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// In Offshoot's store.
    Store,
    /// In the cache of the Hugging Face tools.
    HfCache,
    /// It came with Offshoot.
    Bundled,
    /// Anywhere else.
    Elsewhere,
}

/// A model that is here.
#[derive(Debug, Clone)]
pub struct Pulled {
    /// Its folder.
    pub path: PathBuf,
    /// Its commit, where that is known.
    pub commit: Option<String>,
    /// In which of the places.
    pub place: Place,
    /// Whether nothing had to be done.
    pub was_here: bool,
}

/// A store and a way to the Hub.
pub struct Puller<'a> {
    pub(crate) models_dir: &'a Path,
    pub(crate) environment: &'a Environment,
    pub(crate) options: PullOptions,
}

impl Puller<'_> {
    /// Makes sure that a model is here, complete, at the commit that the revision stands for now.
    pub fn pull(
        &self,
        name: &ModelName,
        revision: &Revision,
        watch: &dyn Watch,
    ) -> Result<Pulled, PullError> {
        if self.environment.is_offline {
            return self.offline(name, revision);
        }
        let staging = Staging::open(self.models_dir, name)?;
        let client = Client::new(self.environment, self.options.stall);
        let asked = Asked { client: &client, name, revision };
        let job = Job { puller: self, asked: &asked, watch, stop: AtomicBool::new(false) };
        let listing = job.listing()?;
        if let Some(pulled) = self.present(&asked, &listing) {
            staging.discard();
            return Ok(pulled);
        }
        staging.check_target()?;
        let index = job.index(&listing, &staging)?;
        let files = listing.needed(&asked, index.as_deref())?;
        job.fetch_all(&listing.commit, &files, &staging)?;
        let origin = Origin {
            repo: name.to_string(),
            revision: revision.to_string(),
            commit: listing.commit.clone(),
        };
        let path = staging.install(&origin, &files)?;
        Ok(Pulled { path, commit: Some(listing.commit), place: Place::Store, was_here: false })
    }

    fn target(&self, name: &ModelName) -> PathBuf {
        self.models_dir.join(name.as_str())
    }

    /// Without the network, what is here has to do.
    fn offline(&self, name: &ModelName, revision: &Revision) -> Result<Pulled, PullError> {
        let target = self.target(name);
        let origin = Origin::of(&target);
        let is_asked = |origin: &Origin| {
            origin.revision == revision.as_str() || origin.commit == revision.as_str()
        };
        if origin.as_ref().is_some_and(is_asked) && manifest::is_complete(&target) {
            let commit = origin.map(|origin| origin.commit);
            return Ok(Pulled { path: target, commit, place: Place::Store, was_here: true });
        }
        let cached = self.environment.cache.find(name).filter(|cached| {
            (revision.is_default() || cached.commit == revision.as_str())
                && ModelFolder::open(&cached.path).is_ok_and(|folder| folder.weights().is_ok())
        });
        let cached = cached.ok_or_else(|| PullError::Offline { name: name.to_string() })?;
        let commit = Some(cached.commit);
        Ok(Pulled { path: cached.path, commit, place: Place::HfCache, was_here: true })
    }

    /// The model, if the store or the cache has the whole of it at this commit.
    fn present(&self, asked: &Asked<'_>, listing: &Listing) -> Option<Pulled> {
        let target = self.target(asked.name);
        let commit = Some(listing.commit.clone());
        let origin = Origin::of(&target);
        if origin.map(|origin| origin.commit) == commit && manifest::is_complete(&target) {
            return Some(Pulled { path: target, commit, place: Place::Store, was_here: true });
        }
        // A name means the cache's copy only where the store has none.
        if !asked.revision.is_default() || target.exists() {
            return None;
        }
        let cached = self.environment.cache.find(asked.name)?;
        let is_complete =
            cached.commit == listing.commit && self.is_whole(asked, listing, &cached.path);
        is_complete.then_some(Pulled {
            path: cached.path,
            commit,
            place: Place::HfCache,
            was_here: true,
        })
    }

    /// Whether a folder has all files that a model needs, with the lengths that are listed.
    fn is_whole(&self, asked: &Asked<'_>, listing: &Listing, folder: &Path) -> bool {
        let index = match listing.find(INDEX) {
            Some(_) => match text_file::read(&folder.join(INDEX)) {
                Ok(Some(index)) => Some(index),
                Ok(None) | Err(_) => return false,
            },
            None => None,
        };
        let has = |file: &RemoteFile| {
            folder.join(&file.name).metadata().is_ok_and(|meta| meta.len() == file.size_bytes)
        };
        let needed = listing.needed(asked, index.as_deref());
        needed.is_ok_and(|files| files.iter().all(has))
            && ModelFolder::open(folder).is_ok_and(|folder| folder.weights().is_ok())
    }
}

/// One pull.
struct Job<'a> {
    puller: &'a Puller<'a>,
    asked: &'a Asked<'a>,
    watch: &'a dyn Watch,
    /// Set when a file has failed, for the others.
    stop: AtomicBool,
}

impl Job<'_> {
    fn listing(&self) -> Result<Listing, PullError> {
        // Who mistyped a host does not want to wait for it.
        let patience = Patience { max_failures: 3, ..self.puller.options.patience.clone() };
        let on_wait = |error: &PullError, wait| self.watch.waits(error, wait);
        let commit = patience.insist(&self.stop, &on_wait, &mut || {
            self.asked.commit().map_err(|trouble| (trouble, false))
        })?;
        let (mut files, mut cursor) = (Vec::new(), None);
        for _ in 0..MAX_PAGES {
            let page = patience.insist(&self.stop, &on_wait, &mut || {
                self.asked.page(&commit, cursor.as_deref()).map_err(|trouble| (trouble, false))
            })?;
            files.extend(page.files);
            cursor = page.next;
            if cursor.is_none() {
                return Ok(Listing { commit, files: self.asked.checked(files)? });
            }
        }
        Err(self.asked.bad("its list of files does not end"))
    }

    /// The index has to be read before it is known which weights are needed.
    fn index(&self, listing: &Listing, staging: &Staging) -> Result<Option<String>, PullError> {
        let Some(file) = listing.find(INDEX) else { return Ok(None) };
        if file.size_bytes > text_file::MAX_BYTES {
            return Err(self.asked.bad(format!("{INDEX} is larger than any index is")));
        }
        let path = staging.complete(file);
        if !path.is_file() {
            self.transfer(&listing.commit, file).fetch(&staging.part(file), &path)?;
        }
        text_file::read(&path).map_err(|source| PullError::Io { path, source })
    }

    fn transfer<'a>(&'a self, commit: &'a str, file: &'a RemoteFile) -> Transfer<'a> {
        Transfer {
            asked: self.asked,
            commit,
            file,
            patience: &self.puller.options.patience,
            stop: &self.stop,
            watch: self.watch,
        }
    }

    /// Fetches all files, several at a time, the largest first.
    fn fetch_all(
        &self,
        commit: &str,
        files: &[RemoteFile],
        staging: &Staging,
    ) -> Result<(), PullError> {
        staging.clean(files);
        let installed = self.puller.target(self.asked.name);
        let mut waiting = Vec::new();
        let mut planned = Vec::new();
        for file in files {
            let is_here = staging.complete(file).is_file();
            let part = staging.part(file).metadata().map_or(0, |meta| meta.len());
            let present_bytes = if is_here { file.size_bytes } else { part.min(file.size_bytes) };
            if !is_here {
                waiting.push(Waiting {
                    file,
                    present_bytes,
                    copies: self.copies(file, &installed),
                });
            }
            let (name, size_bytes) = (file.name.clone(), file.size_bytes);
            planned.push(PlannedFile { name, size_bytes, present_bytes });
        }
        self.watch.planned(&Plan { commit: commit.to_owned(), files: planned });
        self.check_space(&waiting, staging.path())?;
        waiting.sort_by_key(|waiting| waiting.file.size_bytes);
        let n_threads = self.puller.options.n_parallel.clamp(1, waiting.len().max(1));
        let queue = Mutex::new(VecDeque::from(waiting));
        let first_error = Mutex::new(None);
        let work = || {
            loop {
                // A statement of its own: the lock is let go before the file is fetched.
                let next = lock(&queue).pop_back();
                let Some(next) = next else { return };
                if let Err(error) = self.bring(commit, &next, staging) {
                    if !self.stop.swap(true, Ordering::Relaxed) {
                        *lock(&first_error) = Some(error);
                    }
                    return;
                }
            }
        };
        thread::scope(|scope| {
            for _ in 0..n_threads {
                scope.spawn(work);
            }
        });
        match first_error.into_inner().unwrap_or_else(PoisonError::into_inner) {
            Some(error) => Err(error),
            None => Ok(()),
        }
    }

    /// Local files that may have the same content.
    fn copies(&self, file: &RemoteFile, installed: &Path) -> Vec<PathBuf> {
        let cached = self.puller.environment.cache.blob(self.asked.name, &file.digest);
        let candidates = cached.into_iter().chain([installed.join(&file.name)]);
        let has_size = |path: &PathBuf| {
            path.metadata().is_ok_and(|meta| meta.is_file() && meta.len() == file.size_bytes)
        };
        candidates.filter(has_size).collect()
    }

    /// Files that are linked to a local copy take no space, but that is known only afterwards.
    fn check_space(&self, waiting: &[Waiting<'_>], path: &Path) -> Result<(), PullError> {
        let missing = waiting.iter().filter(|waiting| waiting.copies.is_empty());
        let needed_bytes =
            missing.map(|waiting| waiting.file.size_bytes - waiting.present_bytes).sum();
        let free_bytes = (self.puller.options.free_bytes)(path)
            .map_err(|source| PullError::Io { path: path.to_owned(), source })?;
        if needed_bytes > free_bytes {
            return Err(PullError::NoSpace { path: path.to_owned(), needed_bytes, free_bytes });
        }
        Ok(())
    }

    fn bring(&self, commit: &str, next: &Waiting<'_>, staging: &Staging) -> Result<(), PullError> {
        let file = next.file;
        let (part, complete) = (staging.part(file), staging.complete(file));
        let transfer = self.transfer(commit, file);
        let is_copied =
            next.copies.iter().any(|copy| transfer.take(copy, &part, &complete).is_ok());
        if !is_copied {
            transfer.fetch(&part, &complete)?;
        }
        self.watch.done(&file.name);
        Ok(())
    }
}

/// A file that is not complete.
struct Waiting<'a> {
    file: &'a RemoteFile,
    present_bytes: u64,
    copies: Vec<PathBuf>,
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
