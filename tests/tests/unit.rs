//! What uplinks go through, once more under the unit that packages install: what its
//! sandbox takes away is missed here.

use std::{net::IpAddr, time::Duration};

use anyhow::{Context as _, Result, ensure};
use netspawn_tests::{
    GATEWAY4, GATEWAY6, HOST0, HOST6, LAN, Ns, SystemdHost, UPLINK, silent, wait_until,
};
use serde_json::Value;

const WEB: [&str; 2] = ["203.0.113.2", "2001:db8::2"];
const DB: [&str; 2] = ["203.0.113.3", "2001:db8::3"];
const SOON: Duration = Duration::from_secs(20);

/// A booted host with machines that have a namespace and a link, and nothing else.
struct Boxed {
    system: SystemdHost,
    machines: [Ns; 2],
}

impl Boxed {
    fn boot() -> Result<Self> {
        let system = SystemdHost::boot()?;
        // The uplink keeps its addresses under another name.
        system.shell(
            "sed -i 's/^Name=eth0$/Name=eth0 wan0/' /etc/systemd/network/10-uplink.network
            networkctl reload",
        )?;
        let machines = [Ns::new("web")?, Ns::new("db")?];
        for (ns, addresses) in machines.iter().zip([WEB, DB]) {
            let name = ns.name();
            let text = format!("addresses = {addresses:?}\n");
            system.write(&format!("/etc/netspawn/machines/{name}.toml"), &text)?;
            let (port, path) = (format!("ve-{name}"), ns.path());
            system.host.run(&format!(
                "ip link add {port} type veth peer name {HOST0} netns {}",
                path.display()
            ))?;
            for line in [
                format!("link set {HOST0} up"),
                format!("addr add {}/32 dev {HOST0}", addresses[0]),
                format!("addr add {}/128 dev {HOST0} nodad", addresses[1]),
                format!("route add default via 169.254.1.1 dev {HOST0} onlink"),
                format!("route add default via fe80::1 dev {HOST0}"),
            ] {
                ns.run(&format!("ip {line}"))?;
            }
            system.host.run(&format!("ip link set {port} up"))?;
        }
        Ok(Boxed { system, machines })
    }

    fn answer(&self) -> Result<()> {
        let addresses: Vec<IpAddr> = WEB
            .iter()
            .chain(&DB)
            .map(|address| address.parse())
            .collect::<Result<_, _>>()?;
        let missing = silent(&self.system.net, addresses, SOON)?;
        ensure!(
            missing.is_empty(),
            "{missing:?} do not answer\n{}",
            self.words()
        );
        for machine in &self.machines {
            let gateways = [GATEWAY4.into(), GATEWAY6.into()];
            let missing = silent(machine, gateways, SOON)?;
            ensure!(
                missing.is_empty(),
                "{missing:?} do not answer {}\n{}",
                machine.name(),
                self.words()
            );
        }
        Ok(())
    }

    fn words(&self) -> String {
        self.system
            .words()
            .unwrap_or_else(|error| format!("{error:#}"))
    }

    fn uplinks(&self) -> Result<Vec<String>> {
        let text = self.system.xdp("--json status")?.success()?;
        let status: Value = serde_json::from_str(&text)?;
        let uplinks = status["uplinks"].as_array().context("no uplinks")?;
        Ok(uplinks
            .iter()
            .filter_map(|uplink| uplink["name"].as_str().map(str::to_owned))
            .collect())
    }

    fn wait_uplink(&self, name: &str) -> Result<()> {
        let right = wait_until(SOON, || self.uplinks().is_ok_and(|found| found == [name]));
        ensure!(
            right,
            "{:?} instead of {name}\n{}",
            self.uplinks(),
            self.words()
        );
        Ok(())
    }

    /// Waits until networkd has given the uplink its addresses again.
    fn configured(&self) -> Result<()> {
        let addresses = format!("ip -6 addr show dev {UPLINK} scope global -tentative");
        let configured = wait_until(SOON, || {
            let found = self.system.host.run(&addresses);
            found.is_ok_and(|text| text.contains(&HOST6.to_string()))
        });
        ensure!(configured, "networkd leaves {UPLINK} as it is");
        Ok(())
    }

    /// Groups of which the uplink is a member, as the kernel has them.
    fn groups(&self, uplink: &str) -> Result<bool> {
        let groups = self
            .system
            .host
            .run(&format!("ip -6 maddr show dev {uplink}"))?;
        Ok(["ff02::1:ff00:2", "ff02::1:ff00:3"]
            .iter()
            .all(|group| groups.contains(group)))
    }

    /// It is still the same service, without a warning, and leaves nothing.
    fn end(self) -> Result<()> {
        let restarts = self
            .system
            .run("systemctl show netspawn-xdp@eth0 --property=NRestarts --value")?;
        ensure!(
            restarts.trim() == "0",
            "{restarts} restarts\n{}",
            self.words()
        );
        let words = self.words();
        ensure!(
            !words.contains("WARN") && !words.contains("ERROR"),
            "{words}"
        );
        self.system.run("systemctl stop netspawn-xdp@eth0")?;
        // Without the agent too.
        self.answer()?;
        let output = self.system.xdp("detach")?;
        ensure!([0, 3].contains(&output.code()), "{output:?}");
        let left = self.system.shell(
            "tc qdisc show | grep -E 'ingress|clsact'; ls /sys/fs/bpf | grep netspawn; true",
        )?;
        ensure!(left.is_empty(), "{left}");
        Ok(())
    }
}

#[test]
fn queries_are_read_and_groups_are_reported() -> Result<()> {
    let on = Boxed::boot()?;
    let net = &on.system.net;
    for line in [
        "ip link add sw type bridge mcast_snooping 1 mcast_querier 1".to_owned(),
        "ip link set sw up".to_owned(),
        format!("ip addr flush dev {LAN}"),
        format!("ip link set {LAN} master sw"),
        format!("ip addr add {GATEWAY4}/24 dev sw"),
        format!("ip addr add {GATEWAY6}/64 dev sw"),
    ] {
        net.run(&line)?;
    }
    net.settled("sw")?;
    for value in ["0", "1"] {
        net.run(&format!("ip link set sw type bridge mcast_querier {value}"))?;
    }
    let asked = wait_until(SOON, || {
        let counters = on
            .system
            .host
            .run("cat /proc/thread-self/net/dev_snmp6/eth0");
        counters.is_ok_and(|text| text.contains("Icmp6InType130"))
    });
    ensure!(asked, "the switch does not ask");
    on.system.install("")?;
    let reported = wait_until(SOON, || {
        let table = net.run("bridge mdb show dev sw").unwrap_or_default();
        ["ff02::1:ff00:2", "ff02::1:ff00:3"]
            .iter()
            .all(|group| table.contains(&format!("port {LAN} grp {group} ")))
    });
    ensure!(
        reported,
        "the switch knows of\n{}\n{}",
        net.run("bridge mdb show dev sw")?,
        on.words()
    );
    on.answer()?;
    // The link goes down and comes up.
    for line in [
        format!("link set {UPLINK} down"),
        format!("link set {UPLINK} up"),
    ] {
        on.system.host.run(&format!("ip {line}"))?;
    }
    on.configured()?;
    let joined = wait_until(SOON, || on.groups(UPLINK).unwrap_or(false));
    ensure!(joined, "{}", on.words());
    on.answer()?;
    on.end()
}

#[test]
fn renamed_and_deleted_uplinks_are_followed() -> Result<()> {
    let on = Boxed::boot()?;
    on.system.install("")?;
    on.answer()?;
    let host = &on.system.host;
    host.run(&format!("ip link set {UPLINK} name wan0"))?;
    on.wait_uplink("wan0")?;
    on.answer()?;
    host.run(&format!("ip link set wan0 name {UPLINK}"))?;
    on.wait_uplink(UPLINK)?;
    on.answer()?;
    // Its driver is loaded anew.
    on.system.net.run(&format!("ip link del {LAN}"))?;
    host.run(&format!(
        "ip link add {UPLINK} type veth peer name {LAN} netns {}",
        on.system.net.path().display()
    ))?;
    for line in [
        format!("link set {LAN} up"),
        format!("addr add {GATEWAY4}/24 dev {LAN}"),
        format!("addr add {GATEWAY6}/64 dev {LAN}"),
    ] {
        on.system.net.run(&format!("ip {line}"))?;
    }
    on.wait_uplink(UPLINK)?;
    on.configured()?;
    on.answer()?;
    on.end()
}
