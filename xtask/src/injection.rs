//! `cargo xtask faults`: every system call that may fail does so once.

use anyhow::Result;

use crate::{
    build,
    run::{show, step},
    setup, test,
};

/// Arguments of `cargo xtask faults`.
#[derive(clap::Args)]
pub struct Args {
    /// One operation alone: attach, re-attach, add, remove, detach, sync, cni-add or cni-del
    #[arg(long)]
    operation: Option<String>,
    /// As many cases as go into that time, each call once before any of them again; all of them otherwise
    #[arg(long)]
    minutes: Option<u64>,
    /// What the order of cases is made from, where not all of them are run
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// One case, as a failure names it: OPERATION:CALL:INDEX:FAULT
    #[arg(long, conflicts_with_all = ["operation", "minutes"])]
    case: Option<String>,
}

/// Sets the machine up, builds, and runs the suite.
pub fn run(args: Args) -> Result<()> {
    setup::ready()?;
    build::programs(false)?;
    step("every system call fails once");
    let mut command = test::suite("injection");
    command
        .args(["--", "--nocapture", "--test-threads=1"])
        .env("NETSPAWN_INJECTION", "all")
        .env("NETSPAWN_INJECTION_SEED", args.seed.to_string());
    if let Some(minutes) = args.minutes {
        command.env("NETSPAWN_INJECTION_MINUTES", minutes.to_string());
    }
    for (name, value) in [
        ("NETSPAWN_INJECTION_OPERATION", args.operation),
        ("NETSPAWN_INJECTION_CASE", args.case),
    ] {
        if let Some(value) = value {
            command.env(name, value);
        }
    }
    show(&mut command)
}
