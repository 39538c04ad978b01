//! bpf-linker, built against the LLVM that rustc itself uses.
//!
//! The linker reads LLVM bitcode that rustc wrote, so both must be of one LLVM
//! version. Linking rustc's own library makes that true by construction.

use std::{
    env,
    ffi::OsString,
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, anyhow};

use crate::{
    ebpf::{LINKER_VERSION, Toolchain},
    run::{show, step},
};

/// Builds bpf-linker below the cache folder unless a working one is there.
pub fn install(toolchain: &Toolchain) -> Result<()> {
    if toolchain.linker_works() {
        step(format_args!("bpf-linker {LINKER_VERSION}: ok"));
        return Ok(());
    }
    step(format_args!(
        "bpf-linker {LINKER_VERSION}: building against rustc's LLVM {} (about a minute)",
        toolchain.llvm_major
    ));
    let prefix = llvm_prefix(toolchain)?;
    show(
        Command::new("cargo")
            .args(["install", "bpf-linker", "--locked", "--force"])
            .args(["--version", &format!("={LINKER_VERSION}")])
            .args(["--no-default-features", "--features"])
            .arg(format!("llvm-{}", toolchain.llvm_major))
            .arg("--root")
            .arg(&toolchain.cache)
            // A build folder of its own: the one of this workspace may be locked by the caller.
            .arg("--target-dir")
            .arg(toolchain.cache.join("build"))
            .env("LLVM_PREFIX", &prefix)
            // Otherwise cargo advises to put the folder into PATH, which nothing here needs.
            .env("PATH", path_with(&toolchain.cache.join("bin"))?)
            // Flags meant for this workspace must not reach another project's build.
            .env_remove("RUSTFLAGS")
            .env_remove("CARGO_ENCODED_RUSTFLAGS"),
    )
    .with_context(|| {
        format!(
            "bpf-linker {LINKER_VERSION} could not be built: if it has no feature llvm-{}, use the \
             Rust version of rust-toolchain.toml; otherwise check the network and that a C++ \
             compiler is installed, then run `cargo xtask setup` again",
            toolchain.llvm_major
        )
    })?;
    fs::remove_dir_all(toolchain.cache.join("build"))?;
    if !toolchain.linker_works() {
        return Err(anyhow!(
            "{} was built but does not start: remove {} and run `cargo xtask setup` again",
            toolchain.linker().display(),
            toolchain.cache.display()
        ));
    }
    Ok(())
}

/// Makes a folder that looks like an LLVM installation and holds rustc's LLVM.
/// The linker's rpath points there, so it stays.
fn llvm_prefix(toolchain: &Toolchain) -> Result<PathBuf> {
    let library = rustc_llvm(toolchain)?;
    let prefix = toolchain.cache.join("llvm");
    let lib = prefix.join("lib");
    if prefix.exists() {
        fs::remove_dir_all(&prefix)?;
    }
    fs::create_dir_all(&lib).with_context(|| {
        format!(
            "cannot create {}: make it writable, or set XDG_CACHE_HOME to a folder that is",
            lib.display()
        )
    })?;
    // The loader looks for the SONAME, which is the file's name; the link editor for libLLVM.so.
    let soname = library.file_name().context("LLVM library has no name")?;
    symlink(&library, lib.join(soname))?;
    symlink(&library, lib.join("libLLVM.so"))?;
    Ok(prefix)
}

fn path_with(folder: &Path) -> Result<OsString> {
    let path = env::var_os("PATH").unwrap_or_default();
    let folders = env::split_paths(&path).chain([folder.to_owned()]);
    Ok(env::join_paths(folders)?)
}

fn rustc_llvm(toolchain: &Toolchain) -> Result<PathBuf> {
    let folder = toolchain.sysroot.join("lib");
    for entry in fs::read_dir(&folder)? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        // libLLVM-22-rust-….so beside it is a linker script of one line.
        if name.starts_with("libLLVM") && fs::metadata(&path)?.len() > 1 << 20 {
            return Ok(path);
        }
    }
    Err(anyhow!(
        "{} holds no libLLVM: use a Rust toolchain from rustup, which brings its LLVM along",
        folder.display()
    ))
}
