//! The project's own commands: `cargo xtask <command>`. No dependencies, so that the first command
//! on a fresh machine starts at once.

mod cargo;
mod ci;
mod cross;
mod served;
mod tidy;

use std::process::ExitCode;

const HELP: &str = "\
cargo xtask run [ARGS...]     build offshoot in release and execute `offshoot run ARGS...`
cargo xtask test              build the executables and run all tests of the workspace
cargo xtask tidy              check the rules of CONTRIBUTING.md that a program can check
cargo xtask ci                what a change must pass: fmt, clippy, tidy, deny (if installed), test,
                              clients and load (the server, from outside)
cargo xtask deny              install cargo-deny if it is missing; check advisories as well
cargo xtask cross-test-arm64  run the tests of the kernels as arm64 under emulation
";

fn main() -> ExitCode {
    let mut args = std::env::args_os().skip(1);
    let command = args.next().unwrap_or_default();
    let rest = args.collect::<Vec<_>>();
    let result = match command.to_str() {
        Some("run") => cargo::build_and_run(&rest),
        Some("test" | "tidy" | "ci" | "deny" | "cross-test-arm64") if !rest.is_empty() => {
            Err(format!("`{}` takes no arguments", command.display()))
        }
        Some("test") => cargo::test(),
        Some("tidy") => tidy::run(&cargo::root()),
        Some("ci") => ci::run(),
        Some("deny") => ci::deny_all(),
        Some("cross-test-arm64") => cross::arm64(),
        Some("" | "help" | "--help" | "-h") => {
            print!("{HELP}");
            Ok(())
        }
        _ => Err(format!("no command `{}`; there are:\n{HELP}", command.display())),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("error: {message}");
            ExitCode::FAILURE
        }
    }
}
