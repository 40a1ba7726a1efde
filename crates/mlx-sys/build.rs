//! Finds MLX's headers and library, compiles the shim against them, and tells cargo how to link.
//!
//! MLX is looked for in this order: `MLX_DIR` (a folder with `include/` and `lib/`), the wheel kept
//! in `target/mlx/`, then `pip download` of the exact wheel named in `MLX_VERSION` (its sha256 is
//! checked by pip; retried with back-off; put in place by one rename). Where none succeeds, the
//! build stops and says what to install.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread::sleep;
use std::time::Duration;

/// Platforms: Rust's (os, arch), the wheel's package and platform tag, and the library's file name.
const PLATFORMS: &[Platform] = &[
    Platform::new("linux", "x86_64", "mlx-cpu", "manylinux_2_35_x86_64", "libmlx.so"),
    Platform::new("linux", "aarch64", "mlx-cpu", "manylinux_2_35_aarch64", "libmlx.so"),
    Platform::new("macos", "aarch64", "mlx-metal", "macosx_14_0_arm64", "libmlx.dylib"),
    Platform::new("windows", "x86_64", "mlx-cpu", "win_amd64", "mlx.lib"),
    Platform::new("windows", "aarch64", "mlx-cpu", "win_arm64", "mlx.lib"),
];

const DOWNLOAD_TRIES: u32 = 4;

struct Platform {
    os: &'static str,
    arch: &'static str,
    package: &'static str,
    tag: &'static str,
    library: &'static str,
}

impl Platform {
    const fn new(
        os: &'static str,
        arch: &'static str,
        package: &'static str,
        tag: &'static str,
        library: &'static str,
    ) -> Self {
        Self { os, arch, package, tag, library }
    }
}

fn main() {
    let manifest = PathBuf::from(env("CARGO_MANIFEST_DIR"));
    let pin_file = manifest.join("../../MLX_VERSION");
    let sources = ["chain", "driver", "joined", "pinned", "program", "shim"];
    for path in ["build.rs", "src/lib.rs"] {
        println!("cargo:rerun-if-changed={path}");
    }
    for name in sources {
        println!("cargo:rerun-if-changed=src/{name}.h");
        println!("cargo:rerun-if-changed=src/{name}.cc");
    }
    println!("cargo:rerun-if-changed={}", pin_file.display());
    println!("cargo:rerun-if-env-changed=MLX_DIR");

    let pin = fs::read_to_string(&pin_file).unwrap_or_else(|e| fail(&format!("MLX_VERSION: {e}")));
    let (os, arch) = (env("CARGO_CFG_TARGET_OS"), env("CARGO_CFG_TARGET_ARCH"));
    let platform = PLATFORMS.iter().find(|p| p.os == os && p.arch == arch).unwrap_or_else(|| {
        fail(&format!(
            "MLX publishes no library for {os} on {arch}. Build MLX yourself and set MLX_DIR to \
             the folder that holds its include/ and lib/."
        ))
    });
    let mlx_dir = find_mlx(platform, &pin);
    check_headers(&mlx_dir, &version(&pin));

    cxx_build::bridge("src/lib.rs")
        .files(sources.map(|name| format!("src/{name}.cc")))
        .std("c++20")
        .include(manifest.join("src"))
        .include(mlx_dir.join("include"))
        .warnings(false) // MLX's headers are not ours to warn about
        .compile("offshoot_mlx_shim");

    let lib_dir = mlx_dir.join("lib");
    println!("cargo:rerun-if-changed={}", mlx_dir.join("include/mlx/version.h").display());
    println!("cargo:rustc-link-search=native={}", lib_dir.display());
    println!("cargo:rustc-link-lib=dylib=mlx");
    // Executables that link MLX read this as DEP_MLX_LIB_DIR and set their run-time search path
    // with it.
    println!("cargo:lib_dir={}", lib_dir.display());
    println!("cargo:rustc-env=MLX_PINNED_VERSION={}", version(&pin));
}

fn find_mlx(platform: &Platform, pin: &str) -> PathBuf {
    if let Some(dir) = std::env::var_os("MLX_DIR").filter(|d| !d.is_empty()) {
        let dir = PathBuf::from(dir);
        if is_complete(&dir, platform) {
            return dir;
        }
        fail(&format!(
            "MLX_DIR is {}, but that folder has no include/mlx/version.h or no lib/{}.",
            dir.display(),
            platform.library
        ));
    }
    // Below OUT_DIR, because cargo lets tests and `cargo run` find dynamic libraries only there.
    let unpacked = PathBuf::from(env("OUT_DIR")).join(format!("mlx-{}", version(pin)));
    let found = unpacked.join("mlx");
    if !is_complete(&found, platform) {
        let wheel = fetch(platform, pin, &target_dir().join("mlx"));
        unpack(&wheel, &unpacked);
    }
    if !is_complete(&found, platform) {
        fail(&format!(
            "the {} wheel does not hold include/ and lib/{}; set MLX_DIR to a folder that does.",
            platform.package, platform.library
        ));
    }
    found
}

fn is_complete(dir: &Path, platform: &Platform) -> bool {
    dir.join("include/mlx/version.h").is_file() && dir.join("lib").join(platform.library).is_file()
}

/// The wheel in `cache`, downloaded if it is not there yet. It gets its name by a rename, so a
/// wheel there is whole.
fn fetch(platform: &Platform, pin: &str, cache: &Path) -> PathBuf {
    let version = version(pin);
    let kept = cache.join(format!("{}-{version}-{}.whl", platform.package, platform.tag));
    if kept.is_file() {
        return kept;
    }
    let python = python();
    let part = cache.join(format!("{}.part", std::process::id()));
    let _ = fs::remove_dir_all(&part);
    let requirement = part.join("requirements.txt");
    let line = format!("{}=={version} --hash=sha256:{}\n", platform.package, sha256(pin, platform));
    fs::create_dir_all(&part)
        .and_then(|()| fs::write(&requirement, line))
        .unwrap_or_else(|e| fail(&format!("{}: {e}", part.display())));

    let mut last_error = String::new();
    for attempt in 0..DOWNLOAD_TRIES {
        sleep(Duration::from_secs(if attempt == 0 { 0 } else { 2 << attempt }));
        match download(&python, platform, &requirement, &part) {
            Ok(wheel) => {
                fs::rename(&wheel, &kept)
                    .unwrap_or_else(|e| fail(&format!("{}: {e}", kept.display())));
                let _ = fs::remove_dir_all(&part);
                return kept;
            }
            Err(e) => last_error = e,
        }
    }
    let _ = fs::remove_dir_all(&part);
    fail(&format!(
        "cannot download {}=={version} for {} in {DOWNLOAD_TRIES} tries. The last one said:\n\
         {last_error}\nCheck the network (pip's own settings apply), or install MLX {version} \
         elsewhere and set MLX_DIR to the folder that holds its include/ and lib/.",
        platform.package, platform.tag
    ));
}

/// Unpacks beside `to` and renames, so that `to` is whole or absent.
fn unpack(wheel: &Path, to: &Path) {
    let part = to.with_extension("part");
    let _ = fs::remove_dir_all(&part);
    let _ = fs::remove_dir_all(to);
    run(Command::new(python()).args(["-m", "zipfile", "-e"]).arg(wheel).arg(&part))
        .and_then(|()| fs::rename(&part, to).map_err(|e| e.to_string()))
        .unwrap_or_else(|e| {
            fail(&format!("cannot unpack {} (remove it and build again): {e}", wheel.display()))
        });
}

fn download(
    python: &str,
    platform: &Platform,
    requirement: &Path,
    dest: &Path,
) -> Result<PathBuf, String> {
    run(Command::new(python)
        .args([
            "-m",
            "pip",
            "download",
            "--quiet",
            "--no-deps",
            "--only-binary=:all:",
            "--require-hashes",
        ])
        .args(["--disable-pip-version-check", "--platform", platform.tag, "--dest"])
        .arg(dest)
        .arg("--requirement")
        .arg(requirement))?;
    fs::read_dir(dest)
        .map_err(|e| e.to_string())?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .find(|path| path.extension().is_some_and(|ext| ext == "whl"))
        .ok_or_else(|| "pip reported success but left no wheel".to_owned())
}

fn run(command: &mut Command) -> Result<(), String> {
    let output = command.output().map_err(|e| format!("{command:?}: {e}"))?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    ))
}

fn python() -> String {
    let named = std::env::var("PYTHON").ok();
    let candidates = named.as_deref().into_iter().chain(["python3", "python", "py"]);
    for name in candidates {
        if run(Command::new(name).args(["-m", "pip", "--version"])).is_ok() {
            return name.to_owned();
        }
    }
    fail(
        "MLX is fetched with pip, but no python3 with pip was found. Install it (Debian, Ubuntu: \
         apt-get install python3 python3-pip; macOS: xcode-select --install; Windows: winget \
         install Python.Python.3.13), or set MLX_DIR to a folder that holds MLX's include/ and \
         lib/.",
    )
}

/// The folder cargo marks as its target directory: downloads live there, so `cargo clean` removes
/// them.
fn target_dir() -> PathBuf {
    let out_dir = PathBuf::from(env("OUT_DIR"));
    let marked = out_dir.ancestors().find(|dir| dir.join("CACHEDIR.TAG").is_file());
    marked.or_else(|| out_dir.ancestors().nth(4)).unwrap_or(&out_dir).to_owned()
}

/// Stops when the headers found are of another release than the one the shim was written for.
fn check_headers(mlx_dir: &Path, version: &str) {
    let header = mlx_dir.join("include/mlx/version.h");
    let text =
        fs::read_to_string(&header).unwrap_or_else(|e| fail(&format!("{}: {e}", header.display())));
    let field = |name: &str| {
        text.lines()
            .find_map(|line| {
                line.strip_prefix("#define ")?.strip_prefix(name)?.trim().parse::<u32>().ok()
            })
            .unwrap_or_else(|| fail(&format!("{}: no {name}", header.display())))
    };
    let found = format!(
        "{}.{}.{}",
        field("MLX_VERSION_MAJOR"),
        field("MLX_VERSION_MINOR"),
        field("MLX_VERSION_PATCH")
    );
    if found != version {
        fail(&format!(
            "{} is MLX {found}, but Offshoot is written for {version} (MLX_VERSION).",
            header.display()
        ));
    }
}

fn version(pin: &str) -> String {
    pin.lines()
        .find_map(|line| line.strip_prefix("version "))
        .map(|v| v.trim().to_owned())
        .unwrap_or_else(|| fail("MLX_VERSION has no line 'version X.Y.Z'"))
}

fn sha256(pin: &str, platform: &Platform) -> String {
    pin.lines()
        .filter_map(|line| line.strip_prefix("wheel "))
        .map(|line| line.split_whitespace().collect::<Vec<_>>())
        .find(|fields| {
            matches!(
                fields[..],
                [package, tag, _] if package == platform.package && tag == platform.tag
            )
        })
        .map(|fields| fields[2].to_owned())
        .unwrap_or_else(|| {
            fail(&format!(
                "MLX_VERSION has no wheel line for {} {}",
                platform.package, platform.tag
            ))
        })
}

fn env(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| fail(&format!("cargo did not set {name}")))
}

fn fail(message: &str) -> ! {
    eprintln!("\nerror: {message}\n");
    std::process::exit(1)
}
