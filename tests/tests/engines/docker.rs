//! Docker: the network driver, and containers that have labels.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use netspawn_tests::{Kit, SystemdHost, ping, unreachable, wait_ping, wait_until};

use crate::scenario::{Engine, SOON, Wanted, agent, all_answer, kill_agent, report, shows, up};

pub const KIT: Kit = Kit {
    name: "docker",
    recipe: 1,
    packages: &["docker.io"],
    backports: &[],
    script: "",
};

/// Where Docker finds the driver.
const SPEC: &str = include_str!("../../../packaging/docker/netspawn.spec");

/// Docker in a box, with a network `pub` of the driver.
pub struct Docker {
    pub system: SystemdHost,
}

impl Docker {
    /// Boots it, with the agent as its service. `settings` are more lines of
    /// `daemon.json`.
    pub fn boot(settings: &str) -> Result<Self> {
        let system = SystemdHost::with(&KIT)?;
        system.write("/usr/lib/docker/plugins/netspawn.spec", SPEC)?;
        system.write(
            "/etc/docker/daemon.json",
            &format!(
                "{{\"iptables\": false, \"ip6tables\": false, \"bridge\": \"none\",
                \"data-root\": \"/var/lib/engines/docker\", {settings}
                \"exec-opts\": [\"native.cgroupdriver=cgroupfs\"]}}"
            ),
        )?;
        system.install("")?;
        let docker = Docker { system };
        docker.sh("mkdir -p /var/lib/engines/docker
            systemctl start docker
            tar -C /tiny -c . | docker import - tiny")?;
        Ok(docker)
    }

    /// Boots it with the network that [`Wanted`] machines are of.
    fn with_network(settings: &str) -> Result<Self> {
        let docker = Docker::boot(settings)?;
        docker.sh(
            "docker network create -d netspawn --subnet 203.0.113.0/24 --ipv6 \
             --subnet 2001:db8::/64 pub",
        )?;
        Ok(docker)
    }

    /// Runs a shell script in the box that ends with the first command that fails.
    pub fn sh(&self, script: &str) -> Result<String> {
        self.system
            .shell(&format!("set -e\n{script}"))
            .with_context(|| report(&self.system))
    }

    /// What a command that has to fail says.
    fn refused(&self, line: &str) -> Result<String> {
        let output = self.system.cmd("sh").args(["-c", line]).output()?;
        ensure!(output.code() != 0, "not refused: {line}\n{output:?}");
        Ok(output.stderr)
    }

    /// Waits until the agent says something.
    fn says(&self, words: &str) -> Result<()> {
        let said = wait_until(SOON, || {
            let status = self.system.xdp("status");
            status.is_ok_and(|output| format!("{output:?}").contains(words))
        });
        ensure!(said, "not said: {words}\n{}", report(&self.system));
        Ok(())
    }

    fn is_silent(&self, address: &str) -> Result<()> {
        unreachable(&self.system.net, address.parse::<std::net::IpAddr>()?)
    }

    fn answers(&self, addresses: &[&str]) -> Result<()> {
        for address in addresses {
            let address: std::net::IpAddr = address.parse()?;
            wait_ping(&self.system.net, address, SOON).with_context(|| report(&self.system))?;
        }
        Ok(())
    }
}

/// The command line that runs a container for ever.
fn run(options: &str) -> String {
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

    fn version(&self) -> Result<String> {
        let text = self.sh("docker version --format '{{.Server.Version}}'")?;
        Ok(text.trim().to_owned())
    }
}

#[test]
fn network_driver_serves_containers() -> Result<()> {
    let docker = Docker::with_network("")?;
    shows(&docker)?;

    // Nothing is left of them, and of the network nothing was there.
    let links = docker.system.host.run("ip -o link show type veth")?;
    ensure!(!links.contains("dk") && !links.contains("dp"), "{links}");
    docker.sh("docker network rm pub")?;

    // The socket is the agent's.
    docker.system.run("netspawn-xdp detach")?;
    docker.sh("test ! -e /run/netspawn/docker.sock")?;
    Ok(())
}

#[test]
fn explore() -> Result<()> {
    let docker = Docker::with_network("\"live-restore\": true,")?;
    std::fs::write(
        "/tmp/docker-explore",
        docker.system.files().display().to_string(),
    )?;
    while !std::path::Path::new("/tmp/docker-stop").exists() {
        std::thread::sleep(std::time::Duration::from_millis(200));
    }
    Ok(())
}
