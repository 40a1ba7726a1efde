//! `offshoot cache`: what the prefix cache is worth, and what it has on disk.

mod flush;
mod simulate;
mod stats;

use clap::{Args, Subcommand};

use crate::failure::Result;
use crate::output::Output;

/// Look into the prefix cache
#[derive(Debug, Args)]
pub struct Cache {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Stats(stats::Stats),
    Flush(flush::Flush),
    Simulate(simulate::Simulate),
}

impl Cache {
    /// Runs the command.
    pub fn execute(self, out: &mut Output) -> Result<()> {
        match self.command {
            Command::Stats(command) => command.execute(out),
            Command::Flush(command) => command.execute(),
            Command::Simulate(command) => command.execute(out),
        }
    }
}
