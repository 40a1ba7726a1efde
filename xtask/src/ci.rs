//! The steps that every change must pass. All run, so that one run shows everything that is wrong.

use std::time::Instant;

use crate::served::{self, Clients};
use crate::{cargo, tidy};

/// The release that `cargo xtask deny` installs.
const CARGO_DENY_VERSION: &str = "0.20.2";

struct Step {
    name: &'static str,
    run: fn() -> Result<Outcome, String>,
}

enum Outcome {
    Passed,
    Skipped(&'static str),
}

const STEPS: &[Step] = &[
    Step { name: "fmt", run: || passed(cargo::cargo(&["fmt", "--all", "--check"])) },
    Step {
        name: "clippy",
        run: || {
            let what = ["clippy", "--workspace", "--all-targets", "--keep-going"];
            passed(cargo::cargo(&[&what[..], &["--", "--deny", "warnings"]].concat()))
        },
    },
    Step { name: "tidy", run: || passed(tidy::run(&cargo::root())) },
    Step { name: "deny", run: deny_offline },
    Step { name: "test", run: || passed(cargo::cargo(&["xtask", "test"])) },
    Step { name: "clients", run: clients },
    Step { name: "load", run: || passed(served::load()) },
];

/// Runs all steps, then lists them with their durations.
pub fn run() -> Result<(), String> {
    let mut lines = Vec::new();
    let mut n_failed = 0;
    for step in STEPS {
        eprintln!("\n== {}", step.name);
        let start = Instant::now();
        let result = (step.run)();
        let outcome = match result {
            Ok(Outcome::Passed) => "passed".to_owned(),
            Ok(Outcome::Skipped(why)) => format!("skipped: {why}"),
            Err(message) => {
                n_failed += 1;
                format!("FAILED: {message}")
            }
        };
        let line = format!("{:8} {:7.1} s  {outcome}", step.name, start.elapsed().as_secs_f64());
        eprintln!("{line}");
        lines.push(line);
    }
    println!("\n{}", lines.join("\n"));
    if n_failed == 0 { Ok(()) } else { Err(format!("{n_failed} of {} steps failed", STEPS.len())) }
}

/// Everything `deny.toml` says, known advisories included: that list is fetched from the network.
pub fn deny_all() -> Result<(), String> {
    if !has_deny() {
        let version = format!("cargo-deny@{CARGO_DENY_VERSION}");
        cargo::cargo(&["install", "--locked", &version])?;
    }
    cargo::cargo(&["deny", "check"])
}

/// The part of `deny.toml` that needs no network.
fn deny_offline() -> Result<Outcome, String> {
    if !has_deny() {
        return Ok(Outcome::Skipped("cargo-deny is not installed; `cargo xtask deny` installs it"));
    }
    passed(cargo::cargo(&["deny", "--offline", "check", "bans", "licenses", "sources"]))
}

fn clients() -> Result<Outcome, String> {
    served::clients().map(|clients| match clients {
        Clients::Passed => Outcome::Passed,
        Clients::Unreachable => {
            Outcome::Skipped("no package registry answers; nothing was checked with any client")
        }
    })
}

fn has_deny() -> bool {
    let output = cargo::command().args(["deny", "--version"]).output();
    output.is_ok_and(|output| output.status.success())
}

fn passed(result: Result<(), String>) -> Result<Outcome, String> {
    result.map(|()| Outcome::Passed)
}
