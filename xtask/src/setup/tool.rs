//! Tools that crates.io has, installed when they are first needed.

use std::{path::PathBuf, process::Command};

use anyhow::{Context as _, Result};

use crate::{
    ebpf::Toolchain,
    run::{show, step},
};

/// Installs `cargo NAME` below the cache folder unless this version is there, and returns
/// its path.
///
/// # Errors
/// When it cannot be built.
pub fn install(name: &str, version: &str) -> Result<PathBuf> {
    let cache = Toolchain::find()?.cache;
    let program = format!("cargo-{name}");
    let tool = cache.join("bin").join(&program);
    let current = Command::new(&tool)
        .args([name, "--version"])
        .output()
        .is_ok_and(|output| String::from_utf8_lossy(&output.stdout).contains(version));
    if current {
        return Ok(tool);
    }
    step(format_args!(
        "{program} {version}: building (about a minute)"
    ));
    show(
        Command::new("cargo")
            .args(["install", &program, "--locked", "--force"])
            .args(["--version", &format!("={version}")])
            .arg("--root")
            .arg(&cache),
    )
    .with_context(|| {
        format!("{program} {version} could not be built: check the network, then try again")
    })?;
    Ok(tool)
}
