//! The Debian packages that building, the lab and the tests call.

use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};

use crate::run::{exists, show, step};

/// Package and what it is needed for.
const PACKAGES: &[(&str, &str)] = &[
    ("arp-scan", "asks for a whole network as a neighbor may"),
    ("bpftool", "tests list programs and links with it"),
    (
        "busybox-static",
        "shell commands of guests with other kernels",
    ),
    ("curl", "asks for metrics as a person does"),
    ("debootstrap", "makes the systemd host in a box"),
    ("dnsmasq-base", "a DHCP server and router, honest and rogue"),
    ("dsniff", "arpspoof, as a guest may run it"),
    ("ethtool", "the lab sets offloads"),
    ("g++", "bpf-linker links LLVM, which is C++"),
    ("iperf3", "TCP and UDP load"),
    ("iproute2", "namespaces, links, qdiscs"),
    ("iputils-arping", "who-has as a neighbor asks it"),
    ("iputils-ping", "reachability"),
    ("iputils-tracepath", "the path MTU as the kernel finds it"),
    ("isc-dhcp-client", "a guest that asks for its address"),
    ("libnet1", "the other arping, which tests fetch, links it"),
    ("ndisc6", "neighbor solicitation as a neighbor sends it"),
    (
        "ndppd",
        "what hosts answer solicitations with today, to compare",
    ),
    ("nftables", "the host's firewall"),
    ("nmap", "host discovery by ARP and by neighbor discovery"),
    ("procps", "sysctl"),
    (
        "prometheus",
        "scrapes the agent's metrics, and judges rules and dashboard",
    ),
    (
        "qemu-system-x86",
        "guests with other kernels, by software emulation",
    ),
    (
        "strace",
        "has system calls of the program fail, one at a time",
    ),
    ("systemd-container", "systemd-nspawn and machined"),
    ("tcpdump", "shows and records what is on the wire"),
    ("thc-ipv6", "attacks of a guest on neighbor discovery"),
    ("tmux", "a terminal in which tests see `top`"),
    ("traceroute", "the hops of a path, by UDP, ICMP and TCP"),
    ("xz-utils", "kernel modules are compressed with it"),
    ("zstd", "kernel modules are compressed with it"),
];

/// Installs those that are missing.
pub fn install() -> Result<()> {
    if !exists("dpkg-query") || !exists("apt-get") {
        bail!(
            "this is no Debian system: install the counterparts of {} yourself, \
             then use plain `cargo` instead of `cargo xtask setup`",
            names(PACKAGES)
        );
    }
    let missing = missing()?;
    if missing.is_empty() {
        step("Debian packages: ok");
        return Ok(());
    }
    for (package, reason) in &missing {
        step(format_args!("Debian package {package}: {reason}"));
    }
    show(apt_get()?.arg("update")).context(
        "the package lists could not be fetched: check the network and /etc/apt/sources.list*, \
         then run `cargo xtask setup` again",
    )?;
    show(
        apt_get()?
            .args(["install", "--yes", "--no-install-recommends"])
            .args(missing.iter().map(|(package, _)| package)),
    )
    .with_context(|| {
        format!(
            "apt could not install {}: install them by hand, then run `cargo xtask setup` again",
            names(&missing)
        )
    })
}

fn missing() -> Result<Vec<(&'static str, &'static str)>> {
    let mut missing = Vec::new();
    for &(package, reason) in PACKAGES {
        // The exit code alone does not tell a removed package from an installed one.
        let output = Command::new("dpkg-query")
            .args(["--show", "--showformat=${db:Status-Status}", package])
            .stderr(Stdio::null())
            .output()
            .context("cannot start dpkg-query")?;
        if output.stdout != b"installed" {
            missing.push((package, reason));
        }
    }
    Ok(missing)
}

fn apt_get() -> Result<Command> {
    let mut command = if is_root()? {
        Command::new("apt-get")
    } else if exists("sudo") {
        let mut command = Command::new("sudo");
        command.args(["DEBIAN_FRONTEND=noninteractive", "apt-get"]);
        command
    } else {
        bail!("installing Debian packages needs root: run `cargo xtask setup` as root once");
    };
    command
        .env("DEBIAN_FRONTEND", "noninteractive")
        .args(["-o", "DPkg::Lock::Timeout=300"])
        .stdin(Stdio::null());
    Ok(command)
}

fn is_root() -> Result<bool> {
    let output = Command::new("id")
        .arg("-u")
        .output()
        .context("cannot start id")?;
    Ok(output.stdout.trim_ascii() == b"0")
}

fn names(packages: &[(&str, &str)]) -> String {
    let names: Vec<_> = packages.iter().map(|(package, _)| *package).collect();
    names.join(" ")
}
