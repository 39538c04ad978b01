//! `cargo xtask bench`: runs the crate `bench` optimized.

use std::{os::unix::process::CommandExt as _, process::Command};

use anyhow::{Context as _, Result};

use crate::{
    build::{self, target_dir},
    run::step,
    setup,
};

/// Arguments of `cargo xtask bench`.
#[derive(clap::Args)]
#[command(disable_help_flag = true)]
pub struct Args {
    /// Passed on to the benchmark program
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    rest: Vec<String>,
}

/// Sets the machine up, then becomes the benchmark program: Ctrl-C and the exit code are
/// its own, and files that it is given are where the user is.
pub fn run(args: Args) -> Result<()> {
    setup::ready()?;
    build::programs(true)?;
    step("benchmarks");
    let programs = target_dir().join("release");
    let error = Command::new(programs.join("netspawn-bench"))
        .env("NETSPAWN_XDP", programs.join("netspawn-xdp"))
        .args(args.rest)
        .exec();
    Err(error).with_context(|| format!("cannot start netspawn-bench in {}", programs.display()))
}
