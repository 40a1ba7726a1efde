//! Memory of the host that a CUDA device reads and writes where it lies, at the speed of the link
//! between them.
//!
//! Pinning takes the system a while, so a thread does it, from the beginning on and ahead of need.
//! What is read here while the device writes it, or the other way round, is torn: whoever launches
//! the writing waits for it before reading.

use std::cell::Cell;
use std::ops::Range;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use cxx::SharedPtr;
use mlx_sys::ffi;

use crate::{Array, Dtype, Error, Result, error};

const OP: &str = "pinned_memory";
/// Bytes that are pinned at once: others wait for the driver meanwhile.
const PART_BYTES: usize = 16 << 20;

/// A range of addresses whose beginning is pinned memory.
pub struct PinnedMemory {
    memory: Shared,
    n_bytes: usize,
    progress: Arc<(Mutex<Progress>, Condvar)>,
    wanted: Sender<usize>,
    asked: Cell<usize>,
}

impl std::fmt::Debug for PinnedMemory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "PinnedMemory({} of {} bytes)", self.progress().n_pinned, self.n_bytes)
    }
}

#[derive(Debug, Default)]
struct Progress {
    n_pinned: usize,
    failed: Option<String>,
}

#[derive(Clone)]
struct Shared(SharedPtr<ffi::Pinned>);

// SAFETY: C++ counts the references atomically, and one thread alone grows the memory; what others
// read of it is constant.
unsafe impl Send for Shared {}

impl PinnedMemory {
    /// Addresses for so many bytes, rounded up; none of them is pinned yet.
    ///
    /// # Errors
    /// The device is none of CUDA's, or the system is not Linux.
    pub fn reserve(n_bytes: usize) -> Result<Self> {
        // The driver's context belongs to a thread once that has computed something.
        Array::zeros(&[1], Dtype::U32)?.eval()?;
        let n_bytes = n_bytes.max(1).next_multiple_of(PART_BYTES);
        let memory = Shared(ffi::pinned_new(n_bytes).map_err(|e| error::of_op(OP, &[], e))?);
        let progress = Arc::<(Mutex<Progress>, Condvar)>::default();
        let (wanted, requests) = channel();
        let (shared, reported) = (memory.clone(), Arc::clone(&progress));
        std::thread::Builder::new()
            .name("pinning".to_owned())
            .spawn(move || pin(&shared, &requests, &reported))
            .map_err(|e| refused(e.to_string()))?;
        Ok(Self { memory, n_bytes, progress, wanted, asked: Cell::new(0) })
    }

    /// All bytes that may come to be pinned.
    pub fn n_bytes(&self) -> usize {
        self.n_bytes
    }

    /// Has the bytes before `end` pinned in the background.
    pub fn ask_for(&self, end: usize) {
        if self.asked.replace(end.max(self.asked.get())) < end {
            // The thread lives as long as this does.
            let _ = self.wanted.send(end.min(self.n_bytes));
        }
    }

    /// Waits until the bytes before `end` are pinned.
    ///
    /// # Errors
    /// They cannot be: there are not so many, or memory is short.
    pub fn wait_for(&self, end: usize) -> Result<()> {
        if end > self.n_bytes {
            return Err(refused(format!(
                "{end} bytes are more than the {} there are",
                self.n_bytes
            )));
        }
        let mut progress = self.progress();
        if progress.n_pinned < end {
            self.ask_for(end);
        }
        while progress.n_pinned < end && progress.failed.is_none() {
            let waited = self.progress.1.wait(progress);
            progress = waited.unwrap_or_else(PoisonError::into_inner);
        }
        match &progress.failed {
            Some(why) if progress.n_pinned < end => Err(refused(why.clone())),
            _ => Ok(()),
        }
    }

    /// Whether no more will be pinned.
    pub fn has_failed(&self) -> bool {
        self.progress().failed.is_some()
    }

    /// Copies bytes out.
    ///
    /// # Errors
    /// Those of [`PinnedMemory::wait_for`].
    pub fn read(&self, range: Range<usize>) -> Result<Vec<u8>> {
        self.wait_for(range.end)?;
        let mut bytes = Vec::with_capacity(range.len());
        // SAFETY: the range is pinned, so it is readable, and initialised with zeros by who pinned
        // it; the vector has room for it.
        unsafe {
            std::ptr::copy_nonoverlapping(
                self.data()?.add(range.start),
                bytes.as_mut_ptr(),
                range.len(),
            );
            bytes.set_len(range.len());
        }
        Ok(bytes)
    }

    /// Copies bytes in.
    ///
    /// # Errors
    /// Those of [`PinnedMemory::wait_for`].
    pub fn write(&self, at: usize, bytes: &[u8]) -> Result<()> {
        self.wait_for(at + bytes.len())?;
        // SAFETY: the range is pinned, so it is writable, and nothing in Rust refers to it.
        unsafe {
            std::ptr::copy_nonoverlapping(bytes.as_ptr(), self.data()?.add(at), bytes.len());
        }
        Ok(())
    }

    /// Where it begins, for kernels on the device, which may go beyond the few bytes that the array
    /// names, as far as is pinned.
    ///
    /// # Errors
    /// Memory is short.
    pub fn array(&self) -> Result<Array> {
        Array::wrap(OP, &[], ffi::pinned_array(&self.memory.0))
    }

    /// Bytes that are pinned by now.
    pub fn n_pinned(&self) -> usize {
        self.progress().n_pinned
    }

    fn data(&self) -> Result<*mut u8> {
        ffi::pinned_data(&self.memory.0).map_err(|e| error::of_op(OP, &[], e))
    }

    fn progress(&self) -> MutexGuard<'_, Progress> {
        self.progress.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn refused(message: String) -> Error {
    Error::Op { op: OP, inputs: String::new(), message }
}

/// Pins part after part for as long as somebody may ask for it.
fn pin(memory: &Shared, requests: &Receiver<usize>, progress: &(Mutex<Progress>, Condvar)) {
    let mut n_pinned = 0;
    for wanted in requests {
        while n_pinned < wanted {
            let grown = ffi::pinned_grow(&memory.0, PART_BYTES);
            let mut progress_now = progress.0.lock().unwrap_or_else(PoisonError::into_inner);
            if let Err(thrown) = grown {
                progress_now.failed = Some(thrown.what().to_owned());
                progress.1.notify_all();
                return;
            }
            n_pinned += PART_BYTES;
            progress_now.n_pinned = n_pinned;
            progress.1.notify_all();
        }
    }
}
