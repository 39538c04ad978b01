//! containerd, whose client `ctr` runs CNI plugins: ADD for a container in the
//! background, and DEL for none that is killed.

mod chained;
mod libcni;
mod plugin;
pub mod robust;
mod stale;

use anyhow::{Context as _, Result};
use netspawn_tests::{Kit, SystemdHost};

use super::scenario::{self, Engine, Wanted, report};

const KIT: Kit = Kit {
    name: "containerd",
    recipe: 5,
    release: None,
    packages: &["containerd", "containernetworking-plugins"],
    // What the newer library is built with.
    backports: &["golang-go", "golang-src*", "golang-1.*"],
    // The reference library, called libcni, in the first release of it that speaks 1.1.0;
    // what its own tests need stays out.
    testing: &["golang-github-appc-cni-*"],
    script: concat!(
        "cat > /tmp/libcni.go <<'END'\n",
        include_str!("containerd/libcni.go"),
        "END
        cd /tmp
        apt-get -q download golang-github-appc-cni-dev
        # Plugins that speak 1.1.0, beside those of this release.
        apt-get -q download containernetworking-plugins/testing
        for package in *.deb; do dpkg -x $package newer; done
        HOME=/tmp CGO_ENABLED=0 GO111MODULE=off GOPATH=/tmp/newer/usr/share/gocode \\
            go build -o /usr/bin/libcni libcni.go
        apt-get -q purge -y --autoremove golang-go
        mkdir -p /opt/cni/bin /etc/cni/net.d
        mv newer/usr/lib/cni /opt/cni/newer
        ls *.deb > /opt/cni/newer.list
        rm -r /tmp/*
        ln -s /usr/lib/cni/* /opt/cni/bin/
        for folder in /usr/lib/cni /opt/cni/bin /opt/cni/newer; do
            ln -s /usr/bin/netspawn-xdp $folder/netspawn-cni
        done",
    ),
};

/// A containerd of the archive.
pub struct Release {
    /// The record's name.
    pub name: &'static str,
    pub kit: Kit,
    /// A script that starts the daemon.
    pub start: &'static str,
}

/// That of this machine's release.
const OWN: Release = Release {
    name: "containerd",
    kit: KIT,
    start: START,
};

/// containerd in a box.
pub struct Containerd {
    pub system: SystemdHost,
    name: &'static str,
}

impl Containerd {
    /// Boots it, with the agent as its service.
    pub fn of(release: &Release) -> Result<Self> {
        let system = SystemdHost::with(&release.kit)?;
        system.install("")?;
        system.shell(
            "cp -a /tiny /var/lib/engines/tiny
            mkdir -p /var/lib/engines/containerd /etc/containerd /etc/cni/net.d",
        )?;
        system.shell(release.start)?;
        Ok(Containerd {
            system,
            name: release.name,
        })
    }
}

/// Starts the daemon.
const START: &str = "cat > /etc/containerd/config.toml <<END
version = 2
root = \"/var/lib/engines/containerd\"
disabled_plugins = [\"io.containerd.grpc.v1.cri\"]
END
    systemctl start containerd";

/// A network of that name whose only container is one with these addresses.
pub fn network(name: &str, wanted: &Wanted) -> String {
    let Wanted { v4, v6, .. } = wanted;
    format!(
        r#"{{
            "cniVersion": "1.0.0",
            "name": "{name}",
            "plugins": [{{
                "type": "netspawn-cni",
                "ipam": {{
                    "type": "host-local",
                    "dataDir": "/run/cni/networks",
                    "ranges": [
                        [{{"subnet": "203.0.113.0/24", "rangeStart": "{v4}", "rangeEnd": "{v4}"}}],
                        [{{"subnet": "2001:db8::/64", "rangeStart": "{v6}", "rangeEnd": "{v6}"}}]
                    ]
                }}
            }}]
        }}"#
    )
}

impl Engine for Containerd {
    const NAME: &'static str = "containerd";
    /// ADD returns when the agent has served the container.
    const LOSES_EVENTS: bool = false;

    fn system(&self) -> &SystemdHost {
        &self.system
    }

    fn start(&self, machines: &[Wanted]) -> Result<()> {
        let mut names = String::new();
        for machine in machines {
            let folder = format!("/etc/cni/{}", machine.name);
            self.system.write(
                &format!("{folder}/public.conflist"),
                &network("public", machine),
            )?;
            names += &format!("{}\n", machine.name);
        }
        // The client reads one folder, so each has one of its own mounted there.
        self.system
            .cmd("xargs")
            .args(["-P", "10", "-I{}", "unshare", "-m", "sh", "-ec"])
            .arg(
                "mount --bind /etc/cni/{} /etc/cni/net.d
                ctr -n k8s.io run -d --cni --rootfs /var/lib/engines/tiny {} /bin/sleep 1000",
            )
            .input(names)
            .text()
            .map(drop)
            .with_context(|| report(&self.system))
    }

    fn stop(&self, machines: &[Wanted]) -> Result<()> {
        for machine in machines {
            let name = &machine.name;
            self.system.shell(&format!(
                "ctr -n k8s.io task delete --force {name} && ctr -n k8s.io container delete {name}"
            ))?;
        }
        Ok(())
    }

    fn restart(&self) -> Result<()> {
        self.system.run("systemctl restart containerd").map(drop)
    }

    fn recorded_as(&self) -> &'static str {
        self.name
    }

    fn version(&self) -> Result<String> {
        version(&self.system)
    }
}

/// The daemon's version.
pub fn version(system: &SystemdHost) -> Result<String> {
    let text = system.run("containerd --version")?;
    let version = text.split_whitespace().nth(2).unwrap_or("?");
    Ok(version.trim_end_matches("+unknown").to_owned())
}

#[test]
fn containers_are_served() -> Result<()> {
    let engine = Containerd::of(&OWN)?;
    scenario::shows(&engine)
}
