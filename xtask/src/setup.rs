//! `cargo xtask setup`: from a fresh Debian machine with Rust to one that
//! builds and tests everything.

mod linker;
mod packages;
mod rust_src;
pub mod tool;

use anyhow::Result;

use crate::{
    build::workspace,
    ebpf::{Prebuilt, Toolchain},
    run::step,
};

/// Arguments of `cargo xtask setup`.
#[derive(clap::Args)]
pub struct Args {}

/// Runs every step that is not done yet.
pub fn run(_args: Args) -> Result<()> {
    packages::install()?;
    let toolchain = toolchain()?;
    step(format_args!(
        "eBPF toolchain ready: rustc {}, {}",
        toolchain.version,
        toolchain.linker().display()
    ));
    Ok(())
}

/// Installs the eBPF toolchain, or fails with what to do.
pub fn toolchain() -> Result<Toolchain> {
    let toolchain = Toolchain::find()?;
    rust_src::install(&toolchain)?;
    linker::install(&toolchain)?;
    Ok(toolchain)
}

/// Makes the machine ready to build and run. `None` where the eBPF toolchain cannot be
/// had but the prebuilt object, made of these very sources, does instead.
pub fn ready() -> Result<Option<Toolchain>> {
    packages::install()?;
    match toolchain() {
        Ok(toolchain) => Ok(Some(toolchain)),
        Err(error) if Prebuilt::usable(workspace()).is_ok() => {
            step(format_args!("using the prebuilt eBPF object: {error:#}"));
            Ok(None)
        }
        Err(error) => Err(error),
    }
}
