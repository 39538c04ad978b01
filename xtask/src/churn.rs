//! `cargo xtask churn`: links of hundreds of machines against a model, at length.

use anyhow::Result;

use crate::{
    build,
    run::{show, step},
    setup, test,
};

/// Arguments of `cargo xtask churn`.
#[derive(clap::Args)]
pub struct Args {
    /// How long
    #[arg(long, default_value_t = 30)]
    minutes: u64,
    /// What the changes are made from
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// How many machines there are
    #[arg(long, default_value_t = 450)]
    machines: u64,
}

/// Sets the machine up, builds, and runs the suite.
pub fn run(args: Args) -> Result<()> {
    setup::ready()?;
    build::programs(false)?;
    step("links of machines against a model");
    let mut command = test::suite("churn");
    command
        .args(["--", "--nocapture", "--test-threads=1"])
        .env("NETSPAWN_CHURN_MINUTES", args.minutes.to_string())
        .env("NETSPAWN_CHURN_SEED", args.seed.to_string())
        .env("NETSPAWN_CHURN_MACHINES", args.machines.to_string());
    show(&mut command)
}
