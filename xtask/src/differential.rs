//! `cargo xtask differential`: the data plane against the kernel, at length.

use anyhow::Result;

use crate::{
    ci::cargo,
    run::{show, step},
    setup,
};

/// Arguments of `cargo xtask differential`.
#[derive(clap::Args)]
pub struct Args {
    /// Frames to compare
    #[arg(long, default_value_t = 20_000_000)]
    frames: u64,
    /// What the frames are made from
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Sends this frame alone: `uplink:DIGITS`, or the number of a machine and `:DIGITS`
    #[arg(long, value_name = "FRAME", conflicts_with = "frames")]
    frame: Option<String>,
}

/// Sets the machine up, then compares.
pub fn run(args: Args) -> Result<()> {
    setup::ready()?;
    step("the data plane against the kernel");
    let mut command = cargo();
    command
        .args(["test", "--release", "--package", "netspawn-tests"])
        .args(["--test", "differential", "--", "--nocapture"])
        .env("NETSPAWN_DIFFERENTIAL_FRAMES", args.frames.to_string())
        .env("NETSPAWN_DIFFERENTIAL_SEED", args.seed.to_string());
    if let Some(frame) = args.frame {
        command.env("NETSPAWN_DIFFERENTIAL_FRAME", frame);
    }
    show(&mut command)
}
