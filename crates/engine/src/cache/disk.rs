//! The disk tier: `kvstore`'s files, and a thread that reads and writes them, so that no pass waits
//! for a disk. What is on its way is remembered by the books, not here.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use kvcache::{ExtentId, Layout, Place, Record, Transfer, TransferId};
use kvstore::{Fingerprint, FoundExtents, Store};
use mlx::{Backend, Device};
use models::ModelInfo;
use protocol::{CacheSettings, ModelSource};

/// Bytes that may wait to be written; more are not taken from the device meanwhile.
const MAX_WAITING_BYTES: u64 = 256 << 20;

/// Most bytes of files where nobody set a number, and the share of what is free.
const MAX_DEFAULT_BYTES: u64 = 16 << 30;
const DEFAULT_SHARE: u64 = 4;

/// Where a model's cache survives, and how much of it.
#[derive(Debug)]
pub(crate) struct Folder {
    root: PathBuf,
    label: String,
    /// What cached bytes depend on.
    parts: Vec<(&'static str, String)>,
    quota_bytes: u64,
}

impl Folder {
    /// For a model in a folder; none if nothing is to be kept, or for weights that are not of a
    /// file. The same files are taken to hold the same weights as long as neither they nor their
    /// times have changed: their bytes are not read for it.
    pub fn of(settings: &CacheSettings, source: &ModelSource, info: &ModelInfo) -> Option<Self> {
        let (disk, ModelSource::Folder { path }) = (settings.disk.as_ref()?, source) else {
            return None;
        };
        let root = PathBuf::from(&disk.folder);
        let quota_bytes = disk.bytes.unwrap_or_else(|| {
            let existing = root.ancestors().find(|folder| folder.exists());
            let free = existing.and_then(|folder| fs4::available_space(folder).ok());
            MAX_DEFAULT_BYTES.min(free.unwrap_or(0) / DEFAULT_SHARE)
        });
        let parts = vec![
            ("offshoot", env!("CARGO_PKG_VERSION").to_owned()),
            ("mlx", mlx::library_version().ok()?),
            ("backend", Device::current_backend().to_string()),
            ("model", format!("{} {} {:?}", info.family, info.dtype, info.quantization)),
            ("exact", kernels::quantized::exact().to_string()),
            ("files", files(Path::new(path)).ok()?),
        ];
        (quota_bytes > 0).then(|| Self { root, label: disk.label.clone(), parts, quota_bytes })
    }

    /// What the books may use: the files also have headers, and an index.
    pub fn budget_bytes(&self) -> u64 {
        self.quota_bytes / 10 * 9
    }

    /// With what lies in a block and a state. Where answers must not depend on the cache by a bit
    /// (a stride of more than 1), also the number of threads, which changes the rounding of
    /// attention on the CPU: elsewhere that is as good as any other rounding.
    pub fn naming_layout(mut self, layout: &Layout) -> Self {
        let (n, stride) = (layout.block_tokens(), layout.stride());
        let text = format!("{n} tokens, at multiples of {stride}, {:?}", layout.groups());
        self.parts.push(("layout", text));
        if stride > 1 && Device::current_backend() == Backend::Cpu {
            self.parts.push(("threads", kernels::n_threads().to_string()));
        }
        self
    }

    fn fingerprint(&self) -> Fingerprint {
        let parts = self.parts.iter().map(|(name, value)| (*name, &value[..]));
        Fingerprint::new(&self.label, parts)
    }
}

/// What tells the files of a model from any others, without reading them.
fn files(folder: &Path) -> std::io::Result<String> {
    let mut names = std::fs::read_dir(folder)?
        .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
        .collect::<std::io::Result<Vec<_>>>()?;
    names.retain(|name| name.ends_with(".safetensors") || name.ends_with(".json"));
    names.sort_unstable();
    let mut text = String::new();
    for name in names {
        let metadata = std::fs::metadata(folder.join(&name))?;
        text += &format!("{name} {} {}; ", metadata.len(), identity(&metadata));
    }
    // A fingerprint is short, and a model may have hundreds of files.
    Ok(format!("{:032x}", xxhash_rust::xxh3::xxh3_128(text.as_bytes())))
}

/// Changes with every change of a file, also with those that keep its length and its time.
#[cfg(unix)]
fn identity(metadata: &std::fs::Metadata) -> String {
    use std::os::unix::fs::MetadataExt;
    let modified = (metadata.mtime(), metadata.mtime_nsec());
    let changed = (metadata.ctime(), metadata.ctime_nsec());
    format!("{} {} {modified:?} {changed:?}", metadata.dev(), metadata.ino())
}

#[cfg(not(unix))]
fn identity(metadata: &std::fs::Metadata) -> String {
    format!("{:?} {:?}", metadata.modified().ok(), metadata.created().ok())
}

/// The files, and what is on its way.
#[derive(Debug)]
pub(crate) struct Disk {
    store: Arc<Store>,
    jobs: Option<Sender<Job>>,
    done: Receiver<Done>,
    n_waiting: usize,
    waiting_bytes: u64,
    thread: Option<JoinHandle<()>>,
}

enum Job {
    Write { id: TransferId, extent: ExtentId, record: Record, pieces: Vec<Vec<u8>> },
    Read { transfer: Transfer },
    Remove { extents: Vec<ExtentId> },
    Cut { extents: Vec<(ExtentId, u64)> },
}

/// What has ended.
pub(crate) enum Done {
    /// An extent is on disk, or is not.
    Wrote { id: TransferId, is_ok: bool, n_bytes: u64 },
    /// The bytes of a transfer's items, or the extent of the first that could not be read.
    Read { transfer: Transfer, pieces: Result<Vec<Vec<u8>>, Option<ExtentId>>, took: Duration },
}

impl Disk {
    /// Opens a model's folder; none, with a word about it, if it cannot be used. A cache without a
    /// disk is a cache.
    pub fn open(folder: &Folder) -> Option<(Self, FoundExtents)> {
        let (store, found) =
            match Store::open(&folder.root, &folder.fingerprint(), folder.quota_bytes) {
                Ok(opened) => opened,
                Err(error) => {
                    eprintln!("note: nothing is cached on disk: {error}");
                    return None;
                }
            };
        if let Some(why) = store.opening().restarted {
            eprintln!("note: the cache on disk begins anew: {why}");
        }
        let store = Arc::new(store);
        let (jobs, todo) = channel();
        let (report, done) = channel();
        let shared = store.clone();
        let work = move || {
            for job in todo {
                if let Some(ended) = do_job(&shared, job)
                    && report.send(ended).is_err()
                {
                    return;
                }
            }
        };
        let thread = std::thread::Builder::new().name("disk".to_owned()).spawn(work).ok()?;
        let (n_waiting, waiting_bytes) = (0, 0);
        let jobs = Some(jobs);
        Some((Self { store, jobs, done, n_waiting, waiting_bytes, thread: Some(thread) }, found))
    }

    /// Whether more may be written now.
    pub fn has_room(&self) -> bool {
        self.waiting_bytes < MAX_WAITING_BYTES && !self.store.stats().is_latched
    }

    /// Whether anything is on its way.
    pub fn is_busy(&self) -> bool {
        self.n_waiting > 0
    }

    /// Writes the pieces of a transfer.
    pub fn write(
        &mut self,
        id: TransferId,
        extent: ExtentId,
        record: Record,
        pieces: Vec<Vec<u8>>,
    ) {
        self.waiting_bytes += pieces.iter().map(|piece| piece.len() as u64).sum::<u64>();
        self.send(Job::Write { id, extent, record, pieces });
    }

    /// Reads what a transfer brings up.
    pub fn read(&mut self, transfer: Transfer) {
        self.send(Job::Read { transfer });
    }

    /// Deletes extents.
    pub fn remove(&mut self, extents: Vec<ExtentId>) {
        if let Some(jobs) = self.jobs.as_ref().filter(|_| !extents.is_empty()) {
            // The thread ends only after this does.
            let _ = jobs.send(Job::Remove { extents });
        }
    }

    /// Cuts extents off after so many bytes of pieces.
    pub fn cut(&mut self, extents: Vec<(ExtentId, u64)>) {
        if let Some(jobs) = self.jobs.as_ref().filter(|_| !extents.is_empty()) {
            let _ = jobs.send(Job::Cut { extents });
        }
    }

    fn send(&mut self, job: Job) {
        self.n_waiting += 1;
        let jobs = self.jobs.as_ref().expect("the thread has work until this goes");
        jobs.send(job).expect("the thread ends only after this does");
    }

    /// Something that has ended; waits for it for a while.
    pub fn next(&mut self, patience: Duration) -> Option<Done> {
        if self.n_waiting == 0 {
            return None;
        }
        let done = self.done.recv_timeout(patience).ok()?;
        self.n_waiting -= 1;
        if let Done::Wrote { n_bytes, .. } = done {
            self.waiting_bytes -= n_bytes;
        }
        Some(done)
    }
}

impl Drop for Disk {
    /// Waits until all is written that was taken.
    fn drop(&mut self) {
        self.jobs = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn do_job(store: &Store, job: Job) -> Option<Done> {
    match job {
        Job::Write { id, extent, record, pieces } => {
            let parts = pieces.iter().map(|piece| &piece[..]).collect::<Vec<_>>();
            let result = store.write(extent, &record, &parts);
            if let Err(error) = &result {
                eprintln!("warning: not cached on disk: {error}");
            }
            let n_bytes = parts.iter().map(|part| part.len() as u64).sum();
            Some(Done::Wrote { id, is_ok: result.is_ok(), n_bytes })
        }
        Job::Read { transfer } => {
            let begun = Instant::now();
            let places = transfer.items.iter().map(|item| item.place);
            let pieces = places.map(|place| read(store, place.ok_or(None)?)).collect();
            Some(Done::Read { transfer, pieces, took: begun.elapsed() })
        }
        Job::Remove { extents } => {
            if let Err(error) = store.remove(&extents) {
                eprintln!("warning: deleting from the cache on disk: {error}");
            }
            None
        }
        Job::Cut { extents } => {
            if let Err(error) = store.cut(&extents) {
                eprintln!("warning: shortening the cache on disk: {error}");
            }
            None
        }
    }
}

fn read(store: &Store, place: Place) -> Result<Vec<u8>, Option<ExtentId>> {
    let mut piece = vec![0; usize::try_from(place.n_bytes).map_err(|_| place.extent)?];
    match store.read(place, &mut piece) {
        Ok(()) => Ok(piece),
        Err(error) => {
            eprintln!("warning: a part of the cache on disk is of no use: {error}");
            Err(Some(place.extent))
        }
    }
}
