//! Other kernels than this machine's, in guests.

mod beside;
mod fuzz;
mod matrix;
mod offloads;

use std::{
    io::{self, Write as _},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use netspawn_tests::{Guest, Kernel, Report, protocol::holds};

const LIMIT: Duration = Duration::from_secs(240);

/// Linux 6.1 has no tcx: filters on clsact qdiscs stand in.
#[test]
fn bond_failover_is_followed_without_tcx() -> Result<()> {
    bond_failover("6.1")
}

#[test]
fn bond_failover_is_followed_with_tcx() -> Result<()> {
    bond_failover("6.12")
}

fn bond_failover(series: &str) -> Result<()> {
    let kernel = Kernel::series(series)?;
    let report = Guest::new(&kernel)
        .modules(&["veth", "bonding", "bridge", "sch_ingress", "cls_bpf"])?
        .programs(&["ip", "ping"])?
        .netspawn_xdp()?
        .run(include_str!("bond.sh"), LIMIT)?;
    writeln!(
        io::stderr(),
        "kernel {}\n{}",
        kernel.release(),
        report.console
    )?;
    ensure!(report.status == 0, "the script failed: {}", report.status);
    let told = figures(&report, "neighbor")?;
    ensure!(
        told.len() == 2 && told.iter().all(|seconds| *seconds < 1.0),
        "{told:?}"
    );
    // The host announces its own address itself: what that loses is the kernel's.
    let own = figures(&report, "lost-203.0.113.10")?;
    for address in ["203.0.113.2", "2001:db8::2"] {
        let lost = figures(&report, &format!("lost-{address}"))?;
        ensure!(lost.len() == 2, "{address}: {lost:?}");
        // One in 50 ms. The kernel tells of the host's own at once, the agent when it gets
        // the processor, which is emulated here.
        for (lost, own) in lost.iter().zip(&own) {
            ensure!(
                *lost <= own + 10.0,
                "{address}: {lost} lost, of the host's own {own}"
            );
        }
    }
    Ok(())
}

/// What this machine's own kernel may lack: ipvlan, VLANs, VRFs.
#[test]
fn devices_on_an_uplink_forge_no_machine_without_tcx() -> Result<()> {
    devices_on_an_uplink_forge_no_machine("6.1")
}

#[test]
fn devices_on_an_uplink_forge_no_machine_with_tcx() -> Result<()> {
    devices_on_an_uplink_forge_no_machine("6.12")
}

/// Not among those of every run.
#[test]
#[ignore = "older and newer kernels stand for these"]
fn devices_on_an_uplink_forge_no_machine_elsewhere() -> Result<()> {
    devices_on_an_uplink_forge_no_machine("6.18")?;
    devices_on_an_uplink_forge_no_machine(&Kernel::newest_series()?)
}

fn devices_on_an_uplink_forge_no_machine(series: &str) -> Result<()> {
    let _rows = holds("kernels::devices_on_an_uplink", None, &["U2"]);
    let kernel = Kernel::series(series)?;
    let modules = [
        "veth",
        "macvlan",
        "ipvlan",
        "8021q",
        "vrf",
        "sch_ingress",
        "cls_bpf",
    ];
    let report = Guest::new(&kernel)
        .modules(&modules)?
        .programs(&["ip", "ping"])?
        .netspawn_xdp()?
        .run(include_str!("children.sh"), LIMIT)?;
    writeln!(
        io::stderr(),
        "kernel {}\n{}",
        kernel.release(),
        report.console
    )?;
    ensure!(report.status == 0, "the script failed: {}", report.status);
    Ok(())
}

/// The figures said under a key.
fn figures(report: &Report, key: &str) -> Result<Vec<f64>> {
    report
        .console
        .lines()
        .filter_map(|line| line.trim().strip_prefix(key)?.strip_prefix('='))
        .map(|text| {
            let number = text.split(' ').next().unwrap_or_default();
            number.parse().with_context(|| format!("{key}={text}"))
        })
        .collect()
}
