//! What Ctrl-C means at each moment.
//!
//! The first one stops what is running in good order, the second by force, the third leaves
//! without waiting for anything. While nothing is running it ends the process.

use std::process;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use protocol::RequestId;
use server::supervisor::Handle;

use crate::failure::{Failure, INTERRUPTED, Result};
use crate::output::say;

/// What the next Ctrl-C stops.
#[derive(Clone)]
enum Target {
    /// Nothing is running, or nothing that has to be ended in order: the process ends.
    Process,
    /// The same, with a last line.
    ProcessSaying(&'static str),
    /// A line editor is reading the keyboard and sees Ctrl-C itself.
    Editor,
    /// A runner that has no request yet.
    Runner(Handle),
    /// A request.
    Request(Handle, RequestId),
    /// A server, which drains.
    Server(Arc<dyn Fn() + Send + Sync>),
}

struct State {
    target: Target,
    /// Ctrl-C presses since the target was set.
    n_presses: u32,
}

/// Shared with the thread that signals arrive on.
#[derive(Clone)]
pub struct Interrupts(Arc<Mutex<State>>);

impl Interrupts {
    /// Takes over Ctrl-C for this process. Once.
    pub fn install() -> Result<Self> {
        let state = State { target: Target::Process, n_presses: 0 };
        let interrupts = Self(Arc::new(Mutex::new(state)));
        let pressed = interrupts.clone();
        ctrlc::set_handler(move || pressed.press())
            .map_err(|e| Failure::new(format!("cannot watch for Ctrl-C: {e}")))?;
        Ok(interrupts)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What a press of Ctrl-C does.
    pub fn press(&self) {
        let (target, n_presses) = {
            let mut state = self.lock();
            state.n_presses += 1;
            (state.target.clone(), state.n_presses)
        };
        match (target, n_presses) {
            (Target::Editor, _) => {}
            (Target::Server(drain), 1) => drain(),
            (Target::ProcessSaying(line), _) => {
                // The cursor may be at the end of a progress bar.
                say(&format!("\n{line}"));
                process::exit(INTERRUPTED.into())
            }
            (Target::Request(runner, id), 1) => runner.cancel(id),
            (Target::Request(runner, _), 2) | (Target::Runner(runner), 1) => runner.kill(),
            _ => process::exit(INTERRUPTED.into()),
        }
    }

    fn aim(&self, target: Target) {
        *self.lock() = State { target, n_presses: 0 };
    }

    /// From now on Ctrl-C ends the process.
    pub fn end_process(&self) {
        self.aim(Target::Process);
    }

    /// From now on Ctrl-C ends the process, which says so.
    pub fn end_process_saying(&self, line: &'static str) {
        self.aim(Target::ProcessSaying(line));
    }

    /// From now on a line editor handles Ctrl-C.
    pub fn leave_to_editor(&self) {
        self.aim(Target::Editor);
    }

    /// From now on Ctrl-C ends this runner.
    pub fn end_runner(&self, runner: Handle) {
        self.aim(Target::Runner(runner));
    }

    /// From now on Ctrl-C stops this request.
    pub fn stop_request(&self, runner: Handle, id: RequestId) {
        self.aim(Target::Request(runner, id));
    }

    /// From now on the first Ctrl-C calls this, and the second ends the process.
    pub fn drain_server(&self, drain: Arc<dyn Fn() + Send + Sync>) {
        self.aim(Target::Server(drain));
    }

    /// Whether Ctrl-C was pressed since the target was set.
    pub fn was_pressed(&self) -> bool {
        self.lock().n_presses > 0
    }
}
