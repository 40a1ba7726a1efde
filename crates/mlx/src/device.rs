//! The device that a thread computes on, and its streams.

use std::collections::BTreeMap;
use std::fmt;
use std::marker::PhantomData;
use std::path::Path;
use std::sync::atomic::{AtomicU8, Ordering};

use cxx::UniquePtr;
use mlx_sys::ffi;

use crate::{Error, Result, error};

/// The environment variable that names a folder of the user's own for the machine code of kernels:
/// what one process has compiled, the next ones need not.
const KERNELS_VAR: &str = "OFFSHOOT_KERNELS";

/// Which of MLX's backends computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Backend {
    Cpu,
    Cuda,
    Metal,
}

impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Backend::Cpu => "cpu",
            Backend::Cuda => "cuda",
            Backend::Metal => "metal",
        })
    }
}

/// The version of the libmlx that was loaded, for example "0.32.4".
pub fn library_version() -> Result<String> {
    ffi::library_version().map_err(|e| error::of_op("library_version", &[], e))
}

/// The backend of the process's default device, as [`Device`] chose it last.
static CHOSEN: AtomicU8 = AtomicU8::new(0);

/// Proof that this thread's device is chosen and its library is of the right release. `!Send`, like
/// everything on it.
#[derive(Debug)]
pub struct Device {
    backend: Backend,
    not_send: PhantomData<*const ()>,
}

impl Device {
    /// Checks the library's version and makes its GPU, or the CPU if it has none, this process's
    /// default device.
    ///
    /// # Errors
    /// The library is of another release than the headers.
    pub fn open() -> Result<Self> {
        check_version()?;
        match ffi::device_is_available(true) {
            Ok(true) => Self::choose(gpu_backend()),
            _ => Self::choose(Backend::Cpu),
        }
    }

    /// Like [`Device::open`], with the backend named.
    ///
    /// # Errors
    /// The library lacks the backend, no such device is present, or the release is another one.
    pub fn open_backend(backend: Backend) -> Result<Self> {
        check_version()?;
        let available = backend == Backend::Cpu
            || (backend == gpu_backend() && matches!(ffi::device_is_available(true), Ok(true)));
        if available { Self::choose(backend) } else { Err(Error::NoBackend(backend)) }
    }

    fn choose(backend: Backend) -> Result<Self> {
        ffi::set_default_device(backend != Backend::Cpu)
            .map_err(|e| error::of_op("set_default_device", &[], e))?;
        if let (Backend::Cuda, Some(folder)) = (backend, std::env::var_os(KERNELS_VAR)) {
            keep_kernels(Path::new(&folder))?;
        }
        CHOSEN.store(backend as u8, Ordering::Relaxed);
        Ok(Self { backend, not_send: PhantomData })
    }

    /// The backend that the last opened device chose for this process, where no `Device` is at
    /// hand; the CPU before any was opened.
    pub fn current_backend() -> Backend {
        [Backend::Cpu, Backend::Cuda, Backend::Metal]
            .into_iter()
            .find(|backend| *backend as u8 == CHOSEN.load(Ordering::Relaxed))
            .unwrap_or(Backend::Cpu)
    }

    /// The backend that computes.
    pub fn backend(&self) -> Backend {
        self.backend
    }

    /// What MLX tells of the device: `device_name`, `memory_size` (bytes) and more, as text.
    ///
    /// # Errors
    /// The driver does not answer.
    pub fn facts(&self) -> Result<BTreeMap<String, String>> {
        Self::current_facts()
    }

    /// Like [`Device::facts`], where no `Device` is at hand.
    ///
    /// # Errors
    /// The driver does not answer.
    pub fn current_facts() -> Result<BTreeMap<String, String>> {
        let facts = ffi::device_facts().map_err(|e| error::of_op("device_facts", &[], e))?;
        Ok(facts.keys.into_iter().zip(facts.values).collect())
    }

    /// The stream on which this thread's operations run.
    pub fn default_stream(&self) -> Result<Stream> {
        Stream::default_of_thread()
    }

    /// A second stream on the same device, whose work may overlap with the default stream's.
    pub fn new_stream(&self) -> Result<Stream> {
        ffi::new_stream().map(Stream).map_err(|e| error::of_op("new_stream", &[], e))
    }
}

/// A queue of work on the device.
pub struct Stream(UniquePtr<ffi::Stream>);

impl fmt::Debug for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Stream")
    }
}

impl Stream {
    /// Runs `work` with this stream as the thread's default: operations that it builds belong to
    /// this stream.
    ///
    /// # Errors
    /// Those of `work`, or the default could not be switched.
    pub fn scope<T, E: From<Error>>(
        &self,
        work: impl FnOnce() -> std::result::Result<T, E>,
    ) -> std::result::Result<T, E> {
        let before = Self::default_of_thread()?;
        self.set_default()?;
        let result = work();
        before.set_default()?;
        result
    }

    /// Waits until all work on this stream is done.
    pub fn synchronize(&self) -> Result<()> {
        ffi::synchronize(&self.0).map_err(|e| error::of_op("synchronize", &[], e))
    }

    fn default_of_thread() -> Result<Self> {
        ffi::default_stream().map(Self).map_err(|e| error::of_op("default_stream", &[], e))
    }

    fn set_default(&self) -> Result<()> {
        ffi::set_default_stream(&self.0).map_err(|e| error::of_op("set_default_stream", &[], e))
    }
}

/// The only GPU backend that MLX has on this system.
const fn gpu_backend() -> Backend {
    if cfg!(target_os = "macos") { Backend::Metal } else { Backend::Cuda }
}

/// Code is for one release of MLX and one kind of device.
fn keep_kernels(folder: &Path) -> Result<()> {
    let facts = Device::current_facts()?;
    let [major, minor] = ["major", "minor"]
        .map(|part| facts.get(&format!("compute_capability_{part}")).cloned().unwrap_or_default());
    let version = library_version()?;
    let folder = folder.join(format!("mlx-{version}-sm_{major}{minor}"));
    let Some(folder) = folder.to_str() else { return Ok(()) };
    ffi::keep_programs(folder).map_err(|e| error::of_op("keep_programs", &[], e))
}

fn check_version() -> Result<()> {
    let found = library_version()?;
    let wanted = mlx_sys::PINNED_VERSION;
    if found == wanted { Ok(()) } else { Err(Error::Version { found, wanted }) }
}
