//! Tests for a processor that this machine is not, under emulation: they show that results are
//! right, and nothing of speed.

use crate::cargo;

const TARGET: &str = "aarch64-unknown-linux-gnu";

/// What a Debian or Ubuntu of another architecture needs.
const NEEDS: &str = "\
needs the target (`rustup target add aarch64-unknown-linux-gnu`), a linker and an emulator \
(`apt-get install g++-aarch64-linux-gnu qemu-user`)";

/// Runs the tests of `kernels` as arm64 on Linux: on a processor with everything that there are
/// forms for, then on one of the first generation, which lacks dot products of bytes.
pub fn arm64() -> Result<(), String> {
    for cpu in ["max", "cortex-a72"] {
        println!("\n== {TARGET}, {cpu}");
        let runner = format!("qemu-aarch64 -L /usr/aarch64-linux-gnu -cpu {cpu}");
        let variables = [
            ("CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER", "aarch64-linux-gnu-g++"),
            ("CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER", &runner),
        ];
        let tests = ["test", "--package", "kernels", "--lib", "--test", "it", "--target", TARGET];
        cargo::cargo_with(&tests, &variables).map_err(|e| format!("{e}; it {NEEDS}"))?;
    }
    Ok(())
}
