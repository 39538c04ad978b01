//! podman with its CNI back end, which calls ADD and DEL.

use anyhow::{Context as _, Result};
use netspawn_tests::{Kit, SystemdHost};

use super::{
    containerd::network,
    scenario::{self, Engine, Wanted, report},
};

const KIT: Kit = Kit {
    name: "podman",
    recipe: 1,
    release: None,
    packages: &["podman", "containernetworking-plugins", "crun"],
    backports: &[],
    testing: &[],
    script: "ln -s /usr/bin/netspawn-xdp /usr/lib/cni/netspawn-cni",
};

struct Podman {
    system: SystemdHost,
}

impl Podman {
    fn start() -> Result<Self> {
        let system = SystemdHost::with(&KIT)?;
        system.install("")?;
        system.shell(
            "set -e
            mkdir -p /etc/containers /etc/cni/net.d
            cp -a /tiny /var/lib/engines/tiny
            cat > /etc/containers/containers.conf <<END
[network]
network_backend = \"cni\"
[engine]
cgroup_manager = \"cgroupfs\"
events_logger = \"file\"
END
            cat > /etc/containers/storage.conf <<END
[storage]
driver = \"vfs\"
graphroot = \"/var/lib/engines/podman\"
runroot = \"/run/containers/storage\"
END",
        )?;
        Ok(Podman { system })
    }
}

impl Engine for Podman {
    const NAME: &'static str = "podman";
    const HAS_DAEMON: bool = false;
    /// ADD returns when the agent has served the container.
    const LOSES_EVENTS: bool = false;

    fn system(&self) -> &SystemdHost {
        &self.system
    }

    fn start(&self, machines: &[Wanted]) -> Result<()> {
        let mut names = String::new();
        for machine in machines {
            let name = &machine.name;
            self.system.write(
                &format!("/etc/cni/net.d/{name}.conflist"),
                &network(name, machine),
            )?;
            names += &format!("{name}\n");
        }
        self.system
            .cmd("xargs")
            .args([
                "-P",
                "10",
                "-I{}",
                "podman",
                "run",
                "-d",
                "--name={}",
                "--network={}",
            ])
            .args(["--rootfs", "/var/lib/engines/tiny", "/bin/sleep", "1000"])
            .input(names)
            .text()
            .map(drop)
            .with_context(|| report(&self.system))
    }

    fn stop(&self, machines: &[Wanted]) -> Result<()> {
        let names: Vec<&str> = machines.iter().map(|one| one.name.as_str()).collect();
        self.system
            .run(&format!("podman rm --force --time 0 {}", names.join(" ")))
            .map(drop)
    }

    /// It has no daemon.
    fn restart(&self) -> Result<()> {
        Ok(())
    }

    fn version(&self) -> Result<String> {
        let text = self.system.run("podman --version")?;
        Ok(text.split_whitespace().last().unwrap_or("?").to_owned())
    }
}

#[test]
fn containers_are_served() -> Result<()> {
    let engine = Podman::start()?;
    scenario::shows(&engine)
}
