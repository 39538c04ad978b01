//! The suite `offloads` where kernels have 802.1Q, SCTP, and all kinds of tunnels.

use std::{
    env,
    io::{self, Write as _},
    time::Duration,
};

use anyhow::{Result, ensure};
use netspawn_tests::{Guest, Kernel};

use crate::matrix::{kernels, suite};

const LIMIT: Duration = Duration::from_secs(1200);

const MODULES: &[&str] = &[
    "veth",
    "8021q",
    "vxlan",
    "geneve",
    "ip_gre",
    "ip6_gre",
    "ipip",
    "sit",
    "ip6_tunnel",
    "sctp",
    "sch_ingress",
    "cls_bpf",
];

/// Where the most is left, and where it is then done behind the programs;
/// `NETSPAWN_OFFLOADS_SETTINGS` names others.
const SETTINGS: &str = "all on,host completes";
/// In emulation a megabyte takes long.
const BYTES: &str = "60000";

/// The oldest, which reads what is left another way than later ones, and the newest.
#[test]
fn tunnels_tags_and_sctp_are_whole_with_offloads() -> Result<()> {
    let executable = suite("offloads")?;
    let mut kernels = kernels()?;
    let newest = kernels.pop().into_iter();
    let chosen: Vec<Kernel> = match env::var("NETSPAWN_OFFLOADS_KERNEL") {
        Ok(wanted) => kernels
            .into_iter()
            .chain(newest)
            .filter(|kernel| kernel.release().starts_with(&wanted))
            .collect(),
        Err(_) => kernels.into_iter().take(1).chain(newest).collect(),
    };
    ensure!(!chosen.is_empty(), "no such kernel can be had");
    let mut failed = Vec::new();
    for kernel in chosen {
        if let Err(error) = one(&kernel, &executable) {
            failed.push(format!("{}: {error:#}", kernel.release()));
        }
    }
    ensure!(failed.is_empty(), "{}", failed.join("\n"));
    Ok(())
}

fn one(kernel: &Kernel, executable: &std::path::Path) -> Result<()> {
    let variable =
        |name: &str, otherwise: &str| env::var(name).unwrap_or_else(|_| otherwise.to_owned());
    let script = format!(
        "export NETSPAWN_XDP=/bin/netspawn-xdp RUST_BACKTRACE=0\n\
         export NETSPAWN_OFFLOADS_BYTES={} NETSPAWN_OFFLOADS_SETTINGS='{}'\n\
         export NETSPAWN_OFFLOADS_ALL={}\n\
         offloads --exact --nocapture \
         tc::traffic_is_whole_with_every_offload_on_and_off",
        variable("NETSPAWN_OFFLOADS_BYTES", BYTES),
        variable("NETSPAWN_OFFLOADS_SETTINGS", SETTINGS),
        variable("NETSPAWN_OFFLOADS_ALL", "rest"),
    );
    let report = Guest::new(kernel)
        .modules(MODULES)?
        .programs(&["ip", "ethtool", "tcpdump"])?
        .netspawn_xdp()?
        .executable("offloads", executable)?
        .run(&script, LIMIT)?;
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
