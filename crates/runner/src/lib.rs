//! The loop of `offshoot-runner`: commands in, engine steps, events out.
//!
//! The thread that calls [`run`] owns the engine (and with it the device); a second thread only
//! decodes commands into a channel. Commands are drained between steps, so that a cancellation
//! takes effect within one step, and long jobs (loading, logits, bench) ask between their pieces
//! whether to stop.
//!
//! Invariants:
//! - Every accepted request ends with exactly one `Finished` or `Failed`; no event about it
//!   follows.
//! - When the parent is gone (its end of the channel is closed), the loop ends, and the executable
//!   ends soon after even in the midst of a step.
//! - Nothing here knows MLX, a file or a clock.

mod channel;
mod engine;
mod run;

pub use channel::{Inherited, Watched, inherited};
pub use engine::{Engine, EngineError, Loader, Outcome, StepOutcome};
pub use run::{RunError, run};
