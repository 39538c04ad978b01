//! Docker: the network driver, and containers that have labels.

use anyhow::{Context as _, Result, ensure};
use netspawn_tests::{Kit, SystemdHost, unreachable, wait_ping, wait_until};

use crate::scenario::{Engine, SOON, Wanted, agent, kill_agent, record, report, shows, up};

pub const KIT: Kit = Kit {
    name: "docker",
    recipe: 2,
    // The plugins are for machines of containerd beside Docker's.
    release: None,
    packages: &["docker.io", "containernetworking-plugins"],
    backports: &[],
    testing: &[],
    script: "",
};

/// Where Docker finds the driver.
const SPEC: &str = include_str!("../../../packaging/docker/netspawn.spec");

/// A Docker of the archive.
pub struct Release {
    /// The record's name.
    pub name: &'static str,
    pub kit: Kit,
    /// Lines of `daemon.json`.
    pub settings: &'static str,
}

/// That of this machine's release, without anything of its own on the host's network.
pub const OWN: Release = Release {
    name: "docker",
    kit: KIT,
    settings: "\"iptables\": false, \"ip6tables\": false, \"bridge\": \"none\",",
};

/// Docker in a box, with a network `pub` of the driver.
pub struct Docker {
    pub system: SystemdHost,
    name: &'static str,
}

impl Docker {
    /// Boots it, with the agent as its service. `settings` are more lines of
    /// `daemon.json`.
    pub fn boot(settings: &str) -> Result<Self> {
        Docker::of(&OWN, settings)
    }

    /// As [`Docker::boot`], another one.
    pub fn of(release: &Release, settings: &str) -> Result<Self> {
        let system = SystemdHost::with(&release.kit)?;
        system.write("/usr/lib/docker/plugins/netspawn.spec", SPEC)?;
        let own = release.settings;
        system.write(
            "/etc/docker/daemon.json",
            &format!(
                "{{{own} \"data-root\": \"/var/lib/engines/docker\", {settings}
                \"exec-opts\": [\"native.cgroupdriver=cgroupfs\"]}}"
            ),
        )?;
        system.install("")?;
        let docker = Docker {
            system,
            name: release.name,
        };
        docker.sh("mkdir -p /var/lib/engines/docker
            systemctl start docker
            tar -C /tiny -c . | docker import - tiny")?;
        Ok(docker)
    }

    /// Boots it with the network that [`Wanted`] machines are of.
    pub fn with_network(settings: &str) -> Result<Self> {
        Docker::boot(settings)?.and_network()
    }

    /// Makes the network that [`Wanted`] machines are of.
    pub fn and_network(self) -> Result<Self> {
        self.sh(
            "docker network create -d netspawn --subnet 203.0.113.0/24 --ipv6 \
             --subnet 2001:db8::/64 pub",
        )?;
        Ok(self)
    }

    /// Runs a shell script in the box that ends with the first command that fails.
    pub fn sh(&self, script: &str) -> Result<String> {
        self.system
            .shell(&format!("set -e\n{script}"))
            .with_context(|| report(&self.system))
    }

    /// What a command that has to fail says.
    pub fn refused(&self, line: &str) -> Result<String> {
        let output = self.system.cmd("sh").args(["-c", line]).output()?;
        ensure!(output.code() != 0, "not refused: {line}\n{output:?}");
        Ok(output.stderr)
    }

    /// Waits until status names what is wrong.
    pub fn says(&self, words: &str) -> Result<()> {
        let said = wait_until(SOON, || {
            let status = self.system.xdp("status");
            status.is_ok_and(|status| (status.stdout + &status.stderr).contains(words))
        });
        ensure!(said, "not said: {words}\n{}", report(&self.system));
        Ok(())
    }

    pub fn is_silent(&self, address: &str) -> Result<()> {
        unreachable(&self.system.net, address.parse::<std::net::IpAddr>()?)
    }

    pub fn answers(&self, addresses: &[&str]) -> Result<()> {
        for address in addresses {
            let address: std::net::IpAddr = address.parse()?;
            wait_ping(&self.system.net, address, SOON).with_context(|| report(&self.system))?;
        }
        Ok(())
    }
}

/// The command line that runs a container for ever.
pub fn run(options: &str) -> String {
    format!("docker run -d {options} tiny sleep 100000\n")
}

impl Engine for Docker {
    const NAME: &'static str = "docker";
    // Without live-restore the daemon stops them all.
    const SURVIVES: bool = false;
    // The driver makes the link, so that a start waits for it.
    const LOSES_EVENTS: bool = false;

    fn system(&self) -> &SystemdHost {
        &self.system
    }

    fn start(&self, machines: &[Wanted]) -> Result<()> {
        let mut script = String::new();
        for Wanted { name, v4, v6 } in machines {
            let line = run(&format!("--name {name} --network pub --ip {v4} --ip6 {v6}"));
            script += &format!("{} & pids=\"$pids $!\"\n", line.trim());
        }
        self.sh(&format!("{script}for pid in $pids; do wait $pid; done"))
            .map(drop)
    }

    fn stop(&self, machines: &[Wanted]) -> Result<()> {
        let names: Vec<&str> = machines.iter().map(|machine| &*machine.name).collect();
        self.sh(&format!("docker rm -f {}", names.join(" ")))
            .map(drop)
    }

    fn restart(&self) -> Result<()> {
        self.sh("systemctl restart docker").map(drop)
    }

    fn recorded_as(&self) -> &'static str {
        self.name
    }

    fn version(&self) -> Result<String> {
        let text = self.sh("docker version --format '{{.Server.Version}}'")?;
        Ok(text.trim().to_owned())
    }
}

#[test]
fn network_driver_serves_containers() -> Result<()> {
    driver_serves(&OWN)
}

#[test]
fn containers_come_back_with_the_daemon() -> Result<()> {
    come_back(&OWN)
}

#[test]
fn labels_of_containers_on_any_network_are_heeded() -> Result<()> {
    labels_are_heeded(&OWN)
}

#[test]
fn networks_tell_containers_and_tenants_apart() -> Result<()> {
    networks_tell_apart(&OWN)
}

pub fn driver_serves(release: &Release) -> Result<()> {
    let docker = Docker::of(release, "")?.and_network()?;
    shows(&docker)?;

    // Nothing is left of them, nor of the network.
    let links = docker.system.host.run("ip -o link show type veth")?;
    ensure!(!links.contains("dk") && !links.contains("dp"), "{links}");
    docker.sh("docker network rm pub")?;

    for (options, words) in [
        ("-o mtu=9000", "\"mtu\" is not an option"),
        ("-o netspawn.tenant=", "an empty tenant"),
        ("--internal", "cannot be --internal"),
        ("--gateway 198.18.0.9", "write --gateway 198.18.0.1,"),
    ] {
        let line = format!("docker network create -d netspawn --subnet 198.18.0.0/24 {options} no");
        let words_said = docker.refused(&line)?;
        ensure!(words_said.contains(words), "{line}: {words_said}");
    }

    // Without the agent nothing is made, and nothing is left.
    docker.sh("docker network create -d netspawn --subnet 198.18.0.0/24 late")?;
    docker.system.run("netspawn-xdp detach")?;
    docker.sh("test ! -e /run/netspawn/docker.sock")?;
    docker.refused("timeout 5 docker run --rm --network late tiny sleep 0")?;
    let links = docker.system.host.run("ip -o link show type veth")?;
    ensure!(!links.contains("dk") && !links.contains("dp"), "{links}");
    Ok(())
}

/// Starts of both, in the order of a boot and with the agent late.
pub fn come_back(release: &Release) -> Result<()> {
    let docker = Docker::of(release, "\"live-restore\": true,")?.and_network()?;
    let system = &docker.system;
    let machine = Wanted::number(0);
    let Wanted { name, v4, v6 } = &machine;
    let options = format!("--name {name} --restart always --network pub --ip {v4} --ip6 {v6}");
    docker.sh(&run(&options))?;
    machine.answers(system)?;

    // The daemon goes and comes: with live-restore the container does not notice.
    docker.sh("systemctl restart docker")?;
    machine.still_answers(system)?;
    docker.sh(&format!("docker stop {name}"))?;
    machine.is_silent(system)?;
    docker.sh(&format!("docker start {name}"))?;
    machine.answers(system)?;

    // Without it the container is stopped and started.
    docker
        .sh("sed -i s/true,/false,/ /etc/docker/daemon.json && kill -HUP $(cat /run/docker.pid)")?;
    docker.sh("systemctl stop docker docker.socket")?;
    machine.is_silent(system)?;
    let unit = "netspawn-xdp@eth0";
    docker.sh(&format!(
        "systemctl stop {unit}; systemctl start {unit} docker"
    ))?;
    machine.answers(system)?;

    // The daemon starts the container before the agent is there to make its link.
    docker.sh(&format!(
        "systemctl stop docker docker.socket
        systemctl stop {unit}
        # Its unit may be started three times a minute.
        systemctl reset-failed docker || true
        systemctl start --no-block docker
        sleep 1
        systemctl start {unit}"
    ))?;
    // It tries again after 1, 2, 4 and 8 seconds.
    for address in [v4, v6] {
        let address: std::net::IpAddr = address.parse()?;
        wait_ping(&system.net, address, 2 * SOON).with_context(|| report(system))?;
    }
    Ok(())
}

/// Labels of containers, on a network of another driver.
pub fn labels_are_heeded(release: &Release) -> Result<()> {
    let docker = Docker::of(release, "")?;
    let system = &docker.system;
    system.net.run("ip route add 198.18.1.0/24 dev lan0")?;
    docker.sh(
        "docker network create -d bridge --subnet 198.18.1.0/24 --ipv6 \
         --subnet 2001:db8:1::/64 -o com.docker.network.bridge.enable_ip_masquerade=false plain
        tar -C /tiny -c . | docker import -c 'LABEL netspawn.addresses=198.18.1.20' - claims",
    )?;
    let plain = |name: &str, host: u8, labels: &str| {
        run(&format!(
            "--name {name} --network plain --ip 198.18.1.{host} {labels}"
        ))
    };
    let label = |host: u8| format!("--label netspawn.addresses=198.18.1.{host}");
    docker.sh(&plain(
        "web",
        10,
        "--ip6 2001:db8:1::10 --label netspawn.addresses=198.18.1.10,2001:db8:1::10",
    ))?;
    docker.answers(&["198.18.1.10", "2001:db8:1::10"])?;

    // What an image says, and what is no address, is named and does not count.
    docker.sh(&plain("image", 20, "").replace(" tiny ", " claims "))?;
    docker.sh(&plain(
        "bad",
        21,
        "--label netspawn.addresses=198.18.1.21/24",
    ))?;
    docker.sh(&plain("empty", 22, "--label netspawn.addresses="))?;
    docker.says("container image: netspawn.addresses: \"198.18.1.20\" is the image's label")?;
    docker.says("container bad: netspawn.addresses: 198.18.1.21/24 has host bits set")?;
    for host in [20, 21, 22] {
        docker.is_silent(&format!("198.18.1.{host}"))?;
    }

    // Another container's network, and the host's, are not machines of their own.
    docker.sh(&run(&format!(
        "--name guest --network container:web {}",
        label(30)
    )))?;
    docker.sh(&run(&format!("--name host --network host {}", label(31))))?;

    // Containers come and go while the agent hears nothing.
    let pid = agent(system)?;
    system.shell(&format!("kill -STOP {pid}"))?;
    let changed = docker.sh(&format!(
        "docker rm -f web bad image empty guest host
        {}{}",
        plain("one", 40, &label(40)),
        plain("two", 41, &label(41))
    ));
    system.shell(&format!("kill -CONT {pid}"))?;
    changed?;
    docker.answers(&["198.18.1.40", "198.18.1.41"])?;
    docker.is_silent("198.18.1.10")?;
    ensure!(up(system)? == 2, "{}", report(system));

    // And while it is dead.
    kill_agent(system)?;
    docker.sh(&plain("three", 42, &label(42)))?;
    docker.answers(&["198.18.1.42"])?;
    docker.sh("docker rename three third && docker rm -f one two")?;
    let left = wait_until(SOON, || {
        let list = system.xdp("list").map(|output| output.stdout);
        list.is_ok_and(|list| list.contains("third") && !list.contains("one"))
    });
    ensure!(left, "{}", report(system));
    docker.is_silent("198.18.1.40")?;
    let shown = "labels on a bridge, labels of images, events lost, agent killed";
    record(docker.name, &docker.version()?, shown)
}

/// Containers and tenants, on several networks.
pub fn networks_tell_apart(release: &Release) -> Result<()> {
    let docker = Docker::of(release, "")?.and_network()?;
    let system = &docker.system;
    system.net.run("ip route add 198.18.2.0/23 dev lan0")?;
    docker.sh(
        "docker network create -d netspawn --subnet 198.18.2.0/24 -o netspawn.tenant=acme acme
        docker network create -d netspawn --subnet 198.18.3.0/24 more",
    )?;
    let script = [
        run("--name one --network pub --ip 203.0.113.101 --ip6 2001:db8::101"),
        run("--name two --network pub --ip 203.0.113.102 --ip6 2001:db8::102"),
        run("--name other --network acme --ip 198.18.2.10"),
        run("--name moved --network acme --ip 198.18.2.11 --label netspawn.tenant=zeta"),
    ];
    docker.sh(&script.concat())?;
    docker.answers(&[
        "203.0.113.101",
        "2001:db8::101",
        "198.18.2.10",
        "198.18.2.11",
    ])?;

    // A second network is a machine of its own, and answered by the first's route.
    docker.sh("docker network connect --ip 198.18.3.10 more one")?;
    docker.answers(&["198.18.3.10", "203.0.113.101"])?;
    let list = system.xdp("list")?.success()?;
    ensure!(list.contains("one.more"), "{list}");

    let from = |name: &str, to: &str| {
        let line = format!("docker exec {name} ping -c 1 -W 1 {to}");
        system.cmd("sh").args(["-c", &line]).output()
    };
    for (name, to, reached) in [
        ("one", "203.0.113.102", true),
        ("two", "2001:db8::101", true),
        ("two", "203.0.113.1", true),
        ("two", "198.18.2.10", false),
        ("other", "203.0.113.102", false),
        ("other", "198.18.2.11", false),
        ("other", "203.0.113.1", true),
    ] {
        let output = from(name, to)?;
        let as_wanted = (output.code() == 0) == reached;
        ensure!(as_wanted, "{name} to {to}: {output:?}\n{}", report(system));
    }

    docker.sh("docker network disconnect more one")?;
    let silent = wait_until(SOON, || docker.is_silent("198.18.3.10").is_ok());
    ensure!(silent, "{}", report(system));
    docker.answers(&["203.0.113.101"])
}
