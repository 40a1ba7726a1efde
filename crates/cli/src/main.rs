//! `offshoot`: the command line. One file per command, one definition per flag.
//!
//! Invariants: data goes to standard output, talk to standard error; a closed standard output is
//! success; no MLX is linked here. Exit codes are documented in `docs/cli.md`.

mod commands;
mod downloads;
mod failure;
mod flags;
mod interrupts;
mod model;
mod npy;
mod output;
mod remaining;
mod serving;
mod session;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::failure::Result;
use crate::interrupts::Interrupts;
use crate::output::Output;

/// Runs large language models on Apple's MLX.
#[derive(Debug, Parser)]
#[command(name = "offshoot", version, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Run(commands::run::Run),
    Serve(commands::serve::Serve),
    Ps(commands::ps::Ps),
    Stop(commands::stop::Stop),
    Pull(commands::pull::Pull),
    List(commands::list::List),
    Show(commands::show::Show),
    Rm(commands::rm::Rm),
    Bench(commands::bench::Bench),
    Logits(commands::logits::Logits),
    Quantize(commands::quantize::Quantize),
    Cache(commands::cache::Cache),
    Doctor(commands::doctor::Doctor),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let mut out = Output::of_process();
    let result = Interrupts::install().and_then(|interrupts| execute(cli, &mut out, &interrupts));
    match result.and_then(|()| out.flush()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    }
}

fn execute(cli: Cli, out: &mut Output, interrupts: &Interrupts) -> Result<()> {
    match cli.command {
        Command::Run(command) => command.execute(out, interrupts),
        Command::Serve(command) => command.execute(interrupts),
        Command::Ps(command) => command.execute(out),
        Command::Stop(command) => command.execute(),
        Command::Pull(command) => command.execute(out, interrupts),
        Command::List(command) => command.execute(out),
        Command::Show(command) => command.execute(out, interrupts),
        Command::Rm(command) => command.execute(),
        Command::Bench(command) => command.execute(out, interrupts),
        Command::Logits(command) => command.execute(interrupts),
        Command::Quantize(command) => command.execute(out, interrupts),
        Command::Cache(command) => command.execute(out),
        Command::Doctor(command) => command.execute(out),
    }
}
