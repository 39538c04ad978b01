//! `cargo xtask bench`: runs the crate `bench` optimized.

use std::process::Command;

use anyhow::Result;

use crate::{
    build::{self, target_dir, workspace},
    run::{show, step},
    setup,
};

/// Arguments of `cargo xtask bench`.
#[derive(clap::Args)]
pub struct Args {
    /// Passed on to the benchmark program
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    rest: Vec<String>,
}

/// Sets the machine up, then runs the benchmarks.
pub fn run(args: Args) -> Result<()> {
    setup::ready()?;
    build::programs(true)?;
    step("benchmarks");
    show(
        Command::new("cargo")
            .current_dir(workspace())
            .args(["run", "--release", "--package", "netspawn-bench", "--"])
            .env("NETSPAWN_XDP", target_dir().join("release/netspawn-xdp"))
            .args(args.rest),
    )
}
