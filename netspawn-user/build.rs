//! Builds the eBPF object that the loader carries in itself, and names its path in
//! `NETSPAWN_BPF_OBJECT`.
//!
//! `NETSPAWN_PREBUILT=1` takes the object kept in the repository instead.

use std::{env, path::Path, process::ExitCode};

use anyhow::{Context as _, Result};
use ebpf::{Prebuilt, Toolchain};

#[allow(dead_code, reason = "xtask calls the rest of it")]
#[allow(clippy::disallowed_methods, reason = "no machine depends on a build")]
#[path = "../xtask/src/ebpf.rs"]
mod ebpf;

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    let manifest_dir = env::var("CARGO_MANIFEST_DIR")?;
    let workspace = Path::new(&manifest_dir)
        .parent()
        .context("netspawn-user lies in no workspace")?;
    for input in ebpf::inputs(workspace) {
        println!("cargo::rerun-if-changed={}", input.display());
    }
    for input in ["netspawn-ebpf/prebuilt", "xtask/src/ebpf.rs"] {
        println!(
            "cargo::rerun-if-changed={}",
            workspace.join(input).display()
        );
    }
    for name in ["NETSPAWN_PREBUILT", "XDG_CACHE_HOME"] {
        println!("cargo::rerun-if-env-changed={name}");
    }

    let prebuilt = |reason: &str| {
        let object = Prebuilt::usable(workspace).with_context(|| {
            format!(
                "no eBPF object: {reason}, and the prebuilt one does not serve; \
                 run `cargo xtask setup`, which installs the eBPF toolchain"
            )
        })?;
        println!("cargo::warning=using the prebuilt eBPF object: {reason}");
        anyhow::Ok(object)
    };
    let object = if env::var_os("NETSPAWN_PREBUILT").is_some_and(|value| value == "1") {
        prebuilt("NETSPAWN_PREBUILT=1")?
    } else {
        let toolchain = Toolchain::find()?;
        match toolchain.usable_linker() {
            Ok(linker) => {
                let target_dir = Path::new(&env::var("OUT_DIR")?).join("bpf");
                toolchain.build_object(&linker, workspace, &target_dir)?
            }
            Err(missing) => prebuilt(&missing)?,
        }
    };
    println!("cargo::rustc-env=NETSPAWN_BPF_OBJECT={}", object.display());
    Ok(())
}
