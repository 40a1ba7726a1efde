//! `offshoot serve` as programs outside meet it: clients that others wrote, and many streams at
//! once, of which some leave, some are bad, and some lose their runner. On the debug build that the
//! tests have made.

use std::path::PathBuf;
use std::process::Command;

use crate::cargo;

/// What `bench/clients/run.py` exits with when no package registry answers.
const UNREACHABLE: i32 = 75;

/// How checking with clients went, unless one of them failed.
pub enum Clients {
    Passed,
    Unreachable,
}

/// Runs bench/clients, which installs the clients that are not there.
pub fn clients() -> Result<Clients, String> {
    match python("bench/clients/run.py", &[])? {
        0 => Ok(Clients::Passed),
        UNREACHABLE => Ok(Clients::Unreachable),
        code => Err(format!("bench/clients/run.py exited with {code}")),
    }
}

/// Runs bench/load for half a minute; it kills the runner twice.
pub fn load() -> Result<(), String> {
    let arguments = ["--streams", "8", "--minutes", "0.5", "--kill-every-s", "12"];
    match python("bench/load/run.py", &arguments)? {
        0 => Ok(()),
        code => Err(format!("bench/load/run.py exited with {code}")),
    }
}

/// Runs a script of ours on the debug build, which is made if it is missing; its exit code.
fn python(script: &str, arguments: &[&str]) -> Result<i32, String> {
    cargo::cargo(&["build", "--package", "cli", "--package", "runner"])?;
    let program: PathBuf = cargo::target_dir()?.join("debug").join(cargo::executable("offshoot"));
    let mut command = Command::new("python3");
    command.current_dir(cargo::root()).arg(script).arg("--offshoot").arg(program).args(arguments);
    let status = command.status().map_err(|e| format!("cannot start python3: {e}"))?;
    status.code().ok_or_else(|| format!("{script} was ended: {status}"))
}
