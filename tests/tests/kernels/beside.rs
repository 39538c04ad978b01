//! What a sender says beside the bytes, on every kernel: by which way the programs see it
//! differs, and what the kernel lets be said.

use std::{
    io::{self, Write as _},
    time::Duration,
};

use anyhow::{Result, ensure};
use netspawn_tests::{Guest, Kernel, Report};

use crate::matrix::{kernels, suite};

const LIMIT: Duration = Duration::from_secs(300);

const MODULES: &[&str] = &["veth", "tun", "sch_ingress", "cls_bpf", "sch_fq"];

fn run(kernel: &Kernel, executable: &str, script: &str) -> Result<Report> {
    let report = Guest::new(kernel)
        .modules(MODULES)?
        .programs(&["ip", "ping", "ethtool", "tc"])?
        .netspawn_xdp()?
        .executable(executable, &suite(executable)?)?
        .run(script, LIMIT)?;
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
    Ok(report)
}

#[test]
fn what_is_said_beside_the_bytes_fits_on_every_kernel() -> Result<()> {
    const SCRIPT: &str = "export NETSPAWN_XDP=/bin/netspawn-xdp RUST_BACKTRACE=0\n\
        beside --test-threads=1 --nocapture tc::sums_segments departure_time >/tmp/out 2>&1\n\
        status=$?\n\
        cat /tmp/out\n\
        grep -q skipped /tmp/out && exit 1\n\
        exit $status";
    let mut failed = Vec::new();
    for kernel in kernels()? {
        if let Err(error) = run(&kernel, "beside", SCRIPT) {
            failed.push(format!("{}: {error:#}", kernel.release()));
        }
    }
    ensure!(failed.is_empty(), "{}", failed.join("\n"));
    Ok(())
}

/// Linux 6.1 has no other way than to copy kernel memory, which the lockdown mode
/// `confidentiality` forbids.
#[test]
fn guard_that_cannot_see_says_so_and_does_the_rest() -> Result<()> {
    const SCRIPT: &str = "set -e\n\
        mount -t securityfs none /sys/kernel/security\n\
        echo confidentiality >/sys/kernel/security/lockdown\n\
        ip link add eth0 type veth peer name lan0\n\
        for link in eth0 lan0; do ip link set $link up; done\n\
        ip addr add 203.0.113.10/24 dev eth0\n\
        netspawn-xdp attach eth0 --once >/tmp/out 2>&1\n\
        grep -q 'the guard of ports is incomplete' /tmp/out\n\
        netspawn-xdp check eth0 >/tmp/out || true\n\
        grep -q offload-fields-unseen /tmp/out\n\
        netspawn-xdp detach\n\
        RUST_BACKTRACE=0 frames --test-threads=1 --skip cost_of_a_frame";
    run(&Kernel::series("6.1")?, "frames", SCRIPT).map(drop)
}
