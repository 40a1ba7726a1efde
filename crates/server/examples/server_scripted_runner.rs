//! Stands in for `offshoot-runner` in this package's tests, which build and find it.

fn main() -> std::process::ExitCode {
    testkit::scripted_runner()
}
