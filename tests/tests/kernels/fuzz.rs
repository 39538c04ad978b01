//! The suite `fuzz_live` on several kernels: what a sender may say beside its frames, and
//! what the programs can see of it, changed from one to the next.

use std::{
    env,
    io::{self, Write as _},
    time::Duration,
};

use anyhow::{Result, ensure};
use netspawn_tests::{Guest, Kernel};

use crate::matrix::{kernels, suite};

/// In emulation each frame takes milliseconds.
const FRAMES: &str = "2000";
const LIMIT: Duration = Duration::from_secs(600);
/// A second for so many frames comes on top.
const PACE: u64 = 10;

const MODULES: &[&str] = &[
    "veth",
    "tun",
    "sch_ingress",
    "cls_bpf",
    "nf_tables",
    "nft_dup_netdev",
];

/// A veth and a tap; `NETSPAWN_FUZZ_TESTS` names others.
const TESTS: &str = "port_veth_tc port_tap_tc";

#[test]
fn no_kernel_completes_a_sum_into_another_source() -> Result<()> {
    let executable = suite("fuzz_live")?;
    let wanted = env::var("NETSPAWN_FUZZ_KERNEL");
    let mut failed = Vec::new();
    let mut ran = 0;
    for kernel in kernels()? {
        if let Ok(wanted) = &wanted
            && !kernel.release().starts_with(wanted)
        {
            continue;
        }
        ran += 1;
        if let Err(error) = one(&kernel, &executable) {
            failed.push(format!("{}: {error:#}", kernel.release()));
        }
    }
    ensure!(failed.is_empty(), "{}", failed.join("\n"));
    ensure!(ran > 0, "no kernel {wanted:?} can be had");
    Ok(())
}

fn one(kernel: &Kernel, executable: &std::path::Path) -> Result<()> {
    let variable =
        |name: &str, otherwise: &str| env::var(name).unwrap_or_else(|_| otherwise.to_owned());
    let frames: u64 = variable("NETSPAWN_FUZZ_FRAMES", FRAMES).parse()?;
    let limit = LIMIT + Duration::from_secs(frames / PACE);
    let script = format!(
        "export NETSPAWN_FUZZ_FRAMES={frames} NETSPAWN_FUZZ_SEED={} RUST_BACKTRACE=0\n\
         export NETSPAWN_XDP=/bin/netspawn-xdp\n\
         fuzz_live --test-threads=1 --nocapture --exact {}",
        variable("NETSPAWN_FUZZ_SEED", "1"),
        variable("NETSPAWN_FUZZ_TESTS", TESTS),
    );
    let report = Guest::new(kernel)
        .modules(MODULES)?
        .programs(&["ip", "ethtool", "nft", "tcpdump"])?
        .netspawn_xdp()?
        .executable("fuzz_live", executable)?
        .run(&script, limit)?;
    writeln!(
        io::stderr(),
        "kernel {}\n{}",
        kernel.release(),
        report.console
    )?;
    ensure!(
        report.status == 0,
        "the script ended with {}",
        report.status
    );
    Ok(())
}
