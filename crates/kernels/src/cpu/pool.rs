//! One set of threads for all kernels of the process: a step of a model runs hundreds of them, and
//! starting threads anew would cost more than many of them take.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};

/// The work of one call of [`each`].
struct Job {
    task: *const (dyn Fn(usize) + Sync),
    n: usize,
    next: AtomicUsize,
    finished: AtomicUsize,
}

// SAFETY: `task` points to something `Sync`, and is only followed for an index below `n`, while
// `each` waits for that index to finish.
unsafe impl Send for Job {}
// SAFETY: as above.
unsafe impl Sync for Job {}

struct Pool {
    n_workers: usize,
    /// Held by the caller of `each`, so that jobs come one at a time.
    turn: Mutex<()>,
    /// Number of the latest job, and the job.
    latest: Mutex<(u64, Option<Arc<Job>>)>,
    posted: Condvar,
    /// The number again, to be watched without the lock.
    n_posted: AtomicU64,
}

/// Looks for a new job before a thread goes to sleep. Waking one takes longer than many kernels
/// run, and within a step the next kernel follows in microseconds. Between looks other threads may
/// have the processor, so that waiting costs nobody time.
const N_LOOKS: u32 = 400;
/// Pauses between two looks.
const N_PAUSES: u32 = 20;

/// How many threads compute; 0 until it is decided.
static N_THREADS: AtomicUsize = AtomicUsize::new(0);

/// Sets how many threads compute, the caller of a kernel among them. Without it all processors that
/// this process may use do. It is decided once: later calls, and those after the first kernel,
/// change nothing.
pub fn set_threads(n: usize) {
    let _ = N_THREADS.compare_exchange(0, n.max(1), Ordering::Relaxed, Ordering::Relaxed);
}

/// How many threads compute. Sums over the keys of attention are parted by it and may be rounded
/// otherwise with another number; nothing else depends on it.
pub fn n_threads() -> usize {
    if N_THREADS.load(Ordering::Relaxed) == 0 {
        set_threads(std::thread::available_parallelism().map_or(1, usize::from));
    }
    N_THREADS.load(Ordering::Relaxed)
}

/// Ends the process when dropped by a panic: a kernel that panics is our own fault, and the threads
/// of a job cannot go on without each other.
struct AbortOnPanic;

impl Drop for AbortOnPanic {
    fn drop(&mut self) {
        if std::thread::panicking() {
            std::process::abort();
        }
    }
}

impl Job {
    /// Takes indices until none are left.
    fn work(&self) {
        loop {
            let i = self.next.fetch_add(1, Ordering::Relaxed);
            if i >= self.n {
                return;
            }
            // SAFETY: `each` does not return before index i < n is finished, and its caller's
            // borrow of the task lasts as long.
            (unsafe { &*self.task })(i);
            self.finished.fetch_add(1, Ordering::Release);
        }
    }
}

impl Pool {
    fn get() -> &'static Pool {
        static POOL: OnceLock<Pool> = OnceLock::new();
        static STARTED: OnceLock<()> = OnceLock::new();
        let pool = POOL.get_or_init(|| Pool {
            n_workers: n_threads() - 1,
            turn: Mutex::new(()),
            latest: Mutex::new((0, None)),
            posted: Condvar::new(),
            n_posted: AtomicU64::new(0),
        });
        STARTED.get_or_init(|| {
            for i in 0..pool.n_workers {
                let name = format!("kernel-{i}");
                // Without a thread the others do its share.
                let _ = std::thread::Builder::new().name(name).spawn(move || pool.serve());
            }
        });
        pool
    }

    fn serve(&self) {
        let _guard = AbortOnPanic;
        let mut seen = 0;
        loop {
            for _ in 0..N_LOOKS {
                if self.n_posted.load(Ordering::Acquire) != seen {
                    break;
                }
                (0..N_PAUSES).for_each(|_| std::hint::spin_loop());
                std::thread::yield_now();
            }
            let mut latest = lock(&self.latest);
            while latest.0 == seen {
                latest = self.posted.wait(latest).unwrap_or_else(PoisonError::into_inner);
            }
            seen = latest.0;
            let job = latest.1.clone();
            drop(latest);
            if let Some(job) = job {
                job.work();
            }
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Calls `task` with every index below `n`, on all processors, in no stated order, and returns when
/// all calls have. `task` must not call `each`. A panic in it ends the process.
pub(crate) fn each(n: usize, task: &(dyn Fn(usize) + Sync)) {
    let pool = Pool::get();
    if n <= 1 || pool.n_workers == 0 {
        (0..n).for_each(task);
        return;
    }
    let _guard = AbortOnPanic;
    let _turn = lock(&pool.turn);
    // SAFETY: only the lifetime changes; the job follows the pointer no longer than this call.
    let task = unsafe {
        std::mem::transmute::<*const (dyn Fn(usize) + Sync + '_), *const (dyn Fn(usize) + Sync)>(
            task,
        )
    };
    let job = Arc::new(Job { task, n, next: AtomicUsize::new(0), finished: AtomicUsize::new(0) });
    {
        let mut latest = lock(&pool.latest);
        *latest = (latest.0 + 1, Some(job.clone()));
        pool.n_posted.store(latest.0, Ordering::Release);
    }
    pool.posted.notify_all();
    job.work();
    let mut spins = 0;
    while job.finished.load(Ordering::Acquire) < n {
        spins += 1;
        if spins < 1000 { std::hint::spin_loop() } else { std::thread::yield_now() }
    }
    lock(&pool.latest).1 = None;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_index_is_visited_once_also_when_callers_compete() {
        std::thread::scope(|scope| {
            for n in [0usize, 1, 2, 7, 100, 1000] {
                scope.spawn(move || {
                    for _ in 0..20 {
                        let visits = (0..n).map(|_| AtomicUsize::new(0)).collect::<Vec<_>>();
                        each(n, &|i| {
                            visits[i].fetch_add(1, Ordering::Relaxed);
                        });
                        assert!(visits.iter().all(|v| v.load(Ordering::Relaxed) == 1), "{n}");
                    }
                });
            }
        });
    }
}
