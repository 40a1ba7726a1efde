//! Lets `offshoot-runner` find the libmlx that it was built against, wherever it is started from.
//!
//! As RUNPATH, so that LD_LIBRARY_PATH wins: `offshoot` chooses another backend's library by it.

fn main() {
    let Ok(lib_dir) = std::env::var("DEP_MLX_LIB_DIR") else { return };
    match std::env::var("CARGO_CFG_TARGET_OS").as_deref() {
        Ok("linux") => {
            println!("cargo:rustc-link-arg-bins=-Wl,--enable-new-dtags,-rpath,{lib_dir}");
        }
        Ok("macos") => println!("cargo:rustc-link-arg-bins=-Wl,-rpath,{lib_dir}"),
        _ => {}
    }
}
