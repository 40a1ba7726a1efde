//! One runner process: started, greeted, spoken to, ended, and reported on when it ends by itself.
//!
//! The channel is one socket pair used in both directions (on Windows: the standard input and
//! output pipes, not verified yet); the runner ends when its side sees the end of it. What the
//! runner prints is copied to our standard error.

use std::env;
use std::ffi::OsString;
use std::io::{self, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command as Process, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use protocol::{
    Command, DeviceInfo, Event, Fault, FrameError, Hello, HelloError, LoadRequest, ModelInfo,
    RequestId,
};

use crate::log_tail::LogTail;

const RUNNER: &str = if cfg!(windows) { "offshoot-runner.exe" } else { "offshoot-runner" };
/// Linking the GPU libraries from a cold disk takes long; nothing before the hello takes longer.
const GREETING_PATIENCE: Duration = Duration::from_secs(120);
/// For a process whose channel has closed, or that was killed.
const ENDING_PATIENCE: Duration = Duration::from_secs(5);
const POLL_INTERVAL: Duration = Duration::from_millis(2);

/// How to start a runner.
#[derive(Debug, Clone)]
pub struct RunnerProgram {
    /// The executable.
    pub path: PathBuf,
    /// Variables to set, beyond the inherited ones.
    pub env: Vec<(OsString, OsString)>,
}

/// What can go wrong with a runner.
#[derive(Debug, thiserror::Error)]
pub enum RunnerError {
    /// The executable is not where it should be.
    #[error("offshoot-runner is missing; looked for {}", .0.display())]
    NotFound(PathBuf),
    /// The executable does not start.
    #[error("cannot start {}: {source}", path.display())]
    Spawn {
        /// The executable.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The executable is not a runner, or not one of this build.
    #[error("{} does not fit: {source}", path.display())]
    Misfit {
        /// The executable.
        path: PathBuf,
        /// Why.
        source: HelloError,
    },
    /// No greeting came.
    #[error("{} has not answered for {} s", path.display(), GREETING_PATIENCE.as_secs())]
    Silent {
        /// The executable.
        path: PathBuf,
    },
    /// It said something that is no event.
    #[error("the runner does not keep to the protocol: {0}")]
    Nonsense(#[source] FrameError),
    /// It ended by itself.
    #[error("the runner has ended unexpectedly ({status}){}", quote(last_lines))]
    Crashed {
        /// How the process ended.
        status: String,
        /// The last lines it printed.
        last_lines: Vec<String>,
    },
    /// It was ended by [`Handle::kill`].
    #[error("the runner was stopped")]
    Killed,
    /// It reported a failure of its own.
    #[error("{message}")]
    Failed {
        /// Whose fault it is.
        fault: Fault,
        /// What happened.
        message: String,
    },
}

impl RunnerError {
    /// What to do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::NotFound(_) => {
                Some("install offshoot-runner beside offshoot, or set OFFSHOOT_RUNNER".into())
            }
            Self::Crashed { status, .. } if status.contains("SIGKILL") => {
                Some("the system may have run out of memory: try a smaller model".into())
            }
            Self::Crashed { last_lines, .. }
                if last_lines.iter().any(|line| line.contains("error while loading shared")) =>
            {
                Some("see `offshoot doctor` for the libraries it needs".into())
            }
            _ => None,
        }
    }
}

fn quote(lines: &[String]) -> String {
    match lines {
        [] => "; it printed nothing".to_owned(),
        lines => format!("; its last output:\n  | {}", lines.join("\n  | ")),
    }
}

/// Finds the runner: `OFFSHOOT_RUNNER`, else beside the running executable.
pub fn find_runner() -> Result<PathBuf, RunnerError> {
    let explicit = env::var_os("OFFSHOOT_RUNNER").filter(|path| !path.is_empty());
    let path = match explicit {
        Some(path) => PathBuf::from(path),
        None => {
            let exe = env::current_exe().unwrap_or_default();
            exe.parent().unwrap_or(Path::new("")).join(RUNNER)
        }
    };
    if path.is_file() { Ok(path) } else { Err(RunnerError::NotFound(path)) }
}

enum Incoming {
    Hello(Result<Hello, HelloError>),
    Event(Event),
    Ended(Option<FrameError>),
}

/// A running process. Dropping it kills it.
pub struct Runner {
    path: PathBuf,
    shared: Arc<Shared>,
    incoming: Receiver<Incoming>,
    log_tail: LogTail,
}

struct Shared {
    writer: Mutex<Option<Box<dyn Write + Send>>>,
    child: Mutex<Child>,
    killed: Mutex<bool>,
}

/// Reaches a runner from another thread, e.g. a signal handler's.
#[derive(Clone)]
pub struct Handle(Arc<Shared>);

impl Handle {
    /// Asks the runner to stop a request. Nothing happens when it is gone.
    pub fn cancel(&self, id: RequestId) {
        self.0.send(&Command::Cancel { id });
    }

    /// Sends a command. That the runner is gone is reported by [`Runner::next_event`].
    pub fn send(&self, command: &Command) {
        self.0.send(command);
    }

    /// Ends the process at once.
    pub fn kill(&self) {
        *lock(&self.0.killed) = true;
        let _ = lock(&self.0.child).kill();
    }
}

impl Shared {
    /// A write error is not an error here: the reading side reports how the runner ended.
    fn send(&self, command: &Command) {
        if let Some(writer) = lock(&self.writer).as_mut() {
            let _ = protocol::write_frame(writer, command);
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Runner {
    /// Starts the process. Returns before it has greeted: see [`Runner::greet`].
    pub fn spawn(program: &RunnerProgram, build: &str) -> Result<Self, RunnerError> {
        let path = program.path.clone();
        let failed = |source| RunnerError::Spawn { path: path.clone(), source };
        let mut process = Process::new(&program.path);
        process.envs(program.env.iter().cloned());
        let log_tail = LogTail::new();
        let (child, reader, mut writer) = start(process, &log_tail).map_err(failed)?;
        let (sender, incoming) = channel();
        // The greeting is small: it fits the channel's buffer even if nobody reads yet.
        let greeted = Hello::ours(build).write(&mut writer);
        std::thread::spawn(move || receive(reader, &sender));
        let shared = Shared {
            writer: Mutex::new(greeted.is_ok().then_some(writer)),
            child: Mutex::new(child),
            killed: Mutex::new(false),
        };
        Ok(Self { path, shared: Arc::new(shared), incoming, log_tail })
    }

    /// A handle for other threads.
    pub fn handle(&self) -> Handle {
        Handle(Arc::clone(&self.shared))
    }

    /// The process's id.
    pub fn pid(&self) -> u32 {
        lock(&self.shared.child).id()
    }

    /// Waits for the greeting. Returns the runner's build.
    pub fn greet(&mut self) -> Result<String, RunnerError> {
        let misfit = |source| RunnerError::Misfit { path: self.path.clone(), source };
        match self.incoming.recv_timeout(GREETING_PATIENCE) {
            Ok(Incoming::Hello(Ok(hello))) if hello.version == protocol::VERSION => Ok(hello.build),
            Ok(Incoming::Hello(Ok(hello))) => Err(misfit(HelloError::VersionMismatch {
                ours: protocol::VERSION,
                theirs: hello.version,
                their_build: hello.build,
            })),
            Ok(Incoming::Hello(Err(source @ HelloError::NotOurs(_)))) => Err(misfit(source)),
            Err(RecvTimeoutError::Timeout) => Err(RunnerError::Silent { path: self.path.clone() }),
            _ => Err(self.how_it_ended()),
        }
    }

    /// Asks what the device is.
    pub fn probe(&mut self) -> Result<DeviceInfo, RunnerError> {
        self.send(&Command::Probe);
        loop {
            if let Event::Probed(device) = self.next_event()? {
                return Ok(device);
            }
        }
    }

    /// Has a model loaded; `progress(done_bytes, total_bytes)`.
    pub fn load(
        &mut self,
        request: LoadRequest,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<ModelInfo, RunnerError> {
        self.send(&Command::Load(request));
        loop {
            match self.next_event()? {
                Event::Loaded(info) => return Ok(info),
                Event::LoadProgress { done_bytes, total_bytes } => {
                    progress(done_bytes, total_bytes);
                }
                _ => {}
            }
        }
    }

    /// Sends a command. That the runner is gone is reported by [`Runner::next_event`].
    pub fn send(&self, command: &Command) {
        self.shared.send(command);
    }

    /// Waits for the next event. A failure that belongs to no request is an error.
    pub fn next_event(&mut self) -> Result<Event, RunnerError> {
        match self.incoming.recv() {
            Ok(Incoming::Event(Event::Failed { id: None, fault, message })) => {
                Err(RunnerError::Failed { fault, message })
            }
            Ok(Incoming::Event(event)) => Ok(event),
            Ok(Incoming::Ended(Some(error))) if !matches!(error, FrameError::Io(_)) => {
                Err(RunnerError::Nonsense(error))
            }
            _ => Err(self.how_it_ended()),
        }
    }

    /// Ends the process in good order, or by force after `deadline`.
    pub fn shutdown(self, deadline: Duration) {
        self.send(&Command::Shutdown);
        // Where the channel is a pipe, only closing it ends the runner's reading.
        *lock(&self.shared.writer) = None;
        let _ = self.wait(deadline);
    }

    fn wait(&self, patience: Duration) -> io::Result<ExitStatus> {
        let until = Instant::now() + patience;
        loop {
            if let Some(status) = lock(&self.shared.child).try_wait()? {
                return Ok(status);
            }
            if Instant::now() >= until {
                return Err(io::Error::other("still running"));
            }
            std::thread::sleep(POLL_INTERVAL);
        }
    }

    fn how_it_ended(&mut self) -> RunnerError {
        let status = match self.wait(ENDING_PATIENCE) {
            Ok(status) => status.to_string(),
            Err(e) => format!("its channel closed, {e}"),
        };
        if *lock(&self.shared.killed) {
            return RunnerError::Killed;
        }
        RunnerError::Crashed { status, last_lines: self.log_tail.last_lines(ENDING_PATIENCE) }
    }
}

impl Drop for Runner {
    fn drop(&mut self) {
        let mut child = lock(&self.shared.child);
        if let Ok(None) = child.try_wait() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn receive(mut reader: impl Read, sender: &Sender<Incoming>) {
    let hello = Hello::read(&mut reader);
    let go_on = hello.as_ref().is_ok_and(|hello| hello.version == protocol::VERSION);
    if sender.send(Incoming::Hello(hello)).is_err() || !go_on {
        return;
    }
    loop {
        let incoming = match protocol::read_frame(&mut reader) {
            Ok(Some(event)) => Incoming::Event(event),
            Ok(None) | Err(FrameError::Truncated) => Incoming::Ended(None),
            Err(error) => Incoming::Ended(Some(error)),
        };
        let last = matches!(incoming, Incoming::Ended(_));
        if sender.send(incoming).is_err() || last {
            return;
        }
    }
}

type Started = (Child, Box<dyn Read + Send>, Box<dyn Write + Send>);

#[cfg(unix)]
fn start(mut process: Process, log_tail: &LogTail) -> io::Result<Started> {
    use std::os::fd::OwnedFd;
    use std::os::unix::net::UnixStream;
    use std::os::unix::process::CommandExt;

    let (ours, theirs) = UnixStream::pair()?;
    process.stdin(Stdio::from(OwnedFd::from(theirs)));
    process.stdout(Stdio::piped()).stderr(Stdio::piped());
    // A terminal's Ctrl-C is for us; we decide what it means for the runner.
    process.process_group(0);
    let mut child = process.spawn()?;
    // Holds the runner's end of the channel: must go, or its end is never seen.
    drop(process);
    copy_output(&mut child, log_tail);
    Ok((child, Box::new(BufReader::new(ours.try_clone()?)), Box::new(ours)))
}

#[cfg(not(unix))]
fn start(mut process: Process, log_tail: &LogTail) -> io::Result<Started> {
    process.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = process.spawn()?;
    let missing = || io::Error::other("a pipe to the runner is missing");
    let reader = child.stdout.take().ok_or_else(missing)?;
    let writer = child.stdin.take().ok_or_else(missing)?;
    copy_output(&mut child, log_tail);
    Ok((child, Box::new(BufReader::new(reader)), Box::new(writer)))
}

fn copy_output(child: &mut Child, log_tail: &LogTail) {
    if let Some(stdout) = child.stdout.take() {
        log_tail.copy(stdout, io::stderr());
    }
    if let Some(stderr) = child.stderr.take() {
        log_tail.copy(stderr, io::stderr());
    }
}
