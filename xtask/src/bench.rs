//! `cargo xtask bench`: runs the crate `bench` optimized.

use std::{os::unix::process::CommandExt as _, path::PathBuf, process::Command};

use anyhow::{Context as _, Result};
use clap::Parser;

use crate::{
    build::{self, target_dir},
    run::{show, step},
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

/// The measurement that is a test, in guests that count instructions.
const INSTRUCTIONS: &str = "instructions";

/// `cargo xtask bench instructions`.
#[derive(Parser)]
#[command(bin_name = "cargo xtask bench instructions")]
struct Instructions {
    /// The series of kernels that it is counted on
    #[arg(long, value_delimiter = ',', default_value = "6.1,6.12,6.18")]
    kernels: Vec<String>,
    /// A netspawn-xdp of another build, to count beside this one
    #[arg(long, value_name = "FILE")]
    before: Option<PathBuf>,
}

/// Sets the machine up, then becomes the benchmark program: Ctrl-C and the exit code are
/// its own, and files that it is given are where the user is.
pub fn run(args: Args) -> Result<()> {
    setup::ready()?;
    if args.rest.first().is_some_and(|word| word == INSTRUCTIONS) {
        return instructions(Instructions::parse_from(&args.rest));
    }
    build::programs(true)?;
    step("benchmarks");
    let programs = target_dir().join("release");
    let error = Command::new(programs.join("netspawn-bench"))
        .env("NETSPAWN_XDP", programs.join("netspawn-xdp"))
        .args(args.rest)
        .exec();
    Err(error).with_context(|| format!("cannot start netspawn-bench in {}", programs.display()))
}

/// Counts the instructions of a packet in guests.
fn instructions(args: Instructions) -> Result<()> {
    build::programs(false)?;
    step("instructions of a packet, in guests that count them");
    let mut command = crate::test::suite(INSTRUCTIONS);
    command
        .args(["--", "--ignored", "--exact", "--nocapture"])
        .arg("instructions_of_a_packet")
        .env("NETSPAWN_KERNEL_SERIES", args.kernels.join(" "));
    if let Some(before) = args.before {
        let before = before
            .canonicalize()
            .with_context(|| format!("cannot find {}", before.display()))?;
        command.env("NETSPAWN_BEFORE", before);
    }
    show(&mut command)
}
