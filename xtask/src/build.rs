//! `cargo xtask build`: the programs of the workspace, and the prebuilt object.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result};

use crate::{
    ebpf::{Prebuilt, Toolchain},
    run::{show, step},
    setup,
};

/// Arguments of `cargo xtask build`.
#[derive(clap::Args)]
pub struct Args {
    /// Optimized, as for installation
    #[arg(long)]
    release: bool,
    /// Builds the eBPF object anew and keeps it in netspawn-ebpf/prebuilt
    #[arg(long, conflicts_with = "release")]
    prebuilt: bool,
}

/// Sets the machine up, then builds.
pub fn run(args: Args) -> Result<()> {
    if args.prebuilt {
        return refresh(&setup::toolchain()?);
    }
    setup::ready()?;
    programs(args.release)
}

/// Builds the programs; the loader carries the eBPF object in itself.
pub fn programs(release: bool) -> Result<()> {
    step("building netspawn-xdp and the other programs");
    let mut command = Command::new("cargo");
    command.current_dir(workspace()).args([
        "build",
        "--workspace",
        "--bins",
        "--exclude",
        "netspawn-ebpf",
        "--exclude",
        "xtask",
    ]);
    if release {
        command.arg("--release");
    }
    show(&mut command)
}

fn refresh(toolchain: &Toolchain) -> Result<()> {
    let object = object(toolchain)?;
    Prebuilt::write(workspace(), &object, &toolchain.version)?;
    step(format_args!(
        "{}: {} bytes",
        Prebuilt::object_path(workspace()).display(),
        object.len()
    ));
    Ok(())
}

/// Builds the eBPF object anew and returns its bytes.
pub fn object(toolchain: &Toolchain) -> Result<Vec<u8>> {
    step("building the eBPF object");
    let linker = toolchain.usable_linker().map_err(anyhow::Error::msg)?;
    let path = toolchain.build_object(&linker, workspace(), &target_dir().join("bpf"))?;
    fs::read(&path).with_context(|| format!("cannot read {}", path.display()))
}

/// Root of the repository.
pub fn workspace() -> &'static Path {
    // xtask lies directly below it.
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .unwrap_or(Path::new("."))
}

/// Where cargo puts the programs.
pub fn target_dir() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR")
        .map_or_else(|| workspace().join("target"), |dir| workspace().join(dir))
}
