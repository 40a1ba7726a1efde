//! Building, running and testing through cargo.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The repository.
pub fn root() -> PathBuf {
    let manifest = std::env::var_os("CARGO_MANIFEST_DIR");
    let manifest = manifest.map_or_else(|| env!("CARGO_MANIFEST_DIR").into(), PathBuf::from);
    manifest.parent().map(Path::to_owned).unwrap_or(manifest)
}

/// The cargo that started us, in the repository.
pub fn command() -> Command {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(root());
    cargo
}

/// Runs `cargo ARGS...`; what it says goes to the terminal.
pub fn cargo(args: &[&str]) -> Result<(), String> {
    cargo_with(args, &[])
}

/// The same with variables of the environment.
pub fn cargo_with(args: &[&str], variables: &[(&str, &str)]) -> Result<(), String> {
    let mut cargo = command();
    cargo.args(args).envs(variables.iter().copied());
    let status = cargo.status().map_err(|e| format!("cannot start cargo: {e}"))?;
    if status.success() {
        return Ok(());
    }
    Err(format!("`cargo {}` failed ({status})", args.join(" ")))
}

/// Builds both executables in release, then becomes `offshoot run ARGS...`, in the caller's folder.
pub fn build_and_run(args: &[OsString]) -> Result<(), String> {
    cargo(&["build", "--release", "--package", "cli", "--package", "runner"])?;
    let program = target_dir()?.join("release").join(executable("offshoot"));
    let mut offshoot = Command::new(&program);
    offshoot.arg("run").args(args);
    become_program(offshoot).map_err(|e| format!("cannot start {}: {e}", program.display()))
}

/// Builds the executables that tests start, then runs every test of the workspace.
pub fn test() -> Result<(), String> {
    cargo(&["build", "--workspace", "--bins"])?;
    cargo(&["test", "--workspace", "--no-fail-fast"])?;
    println!("\nAll tests of the workspace passed.");
    Ok(())
}

/// Where cargo builds to. This program lies in `<target>/<profile>/`, wherever a variable or a
/// setting has put it.
pub fn target_dir() -> Result<PathBuf, String> {
    let own = std::env::current_exe().map_err(|e| format!("cannot find this executable: {e}"))?;
    let target = own.parent().and_then(Path::parent);
    target.map(Path::to_owned).ok_or_else(|| format!("{} lies in no target folder", own.display()))
}

/// What an executable of this name is called on this system.
pub fn executable(name: &str) -> String {
    format!("{name}{}", std::env::consts::EXE_SUFFIX)
}

/// Replaces this process, so that the terminal and its signals belong to the program alone.
#[cfg(unix)]
fn become_program(mut program: Command) -> std::io::Result<()> {
    use std::os::unix::process::CommandExt;
    Err(program.exec())
}

/// Waits for the program and exits as it did.
#[cfg(not(unix))]
fn become_program(mut program: Command) -> std::io::Result<()> {
    let status = program.status()?;
    std::process::exit(status.code().unwrap_or(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_root_is_the_folder_of_the_workspace() {
        let manifest = std::fs::read_to_string(root().join("Cargo.toml")).unwrap();
        assert!(manifest.contains("[workspace]"), "{manifest}");
    }

    #[test]
    fn a_failing_cargo_command_is_named() {
        let error = cargo(&["no-such-command-of-cargo"]).unwrap_err();
        assert!(error.contains("`cargo no-such-command-of-cargo` failed"), "{error}");
    }
}
