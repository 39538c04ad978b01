//! containerd of the release to come, with plugins that speak CNI 1.1.0: by `ctr`, and by
//! the interface that kubelet uses, whose pods get DEL. Runs on demand: the older one is
//! shown at every run.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use netspawn_tests::{Kit, SystemdHost, wait_until};

use super::{
    containerd::{Containerd, Release, robust::nothing_is_left, version},
    scenario::{self, Engine, SOON, Wanted, report},
};

/// containerd, and what a client of its other interface is made of.
const KIT: Kit = Kit {
    name: "containerd_newer",
    recipe: 1,
    release: None,
    packages: &["protobuf-compiler", "python3-grpcio", "python3-protobuf"],
    backports: &[],
    testing: &["containerd", "containernetworking-plugins"],
    script: concat!(
        "cat > /usr/bin/cri <<'END'\n",
        include_str!("containerd_newer/cri.py"),
        "END
        chmod +x /usr/bin/cri
        cd /tmp
        apt-get -q download golang-github-kubernetes-cri-api-dev/testing
        dpkg -x *.deb .
        # Without what is for Go alone.
        sed '/gogo/d' usr/share/gocode/src/k8s.io/cri-api/pkg/apis/runtime/v1/api.proto > api.proto
        protoc --python_out=/usr/lib/python3/dist-packages api.proto
        rm -r /tmp/*
        mkdir -p /opt/cni/bin
        ln -s /usr/lib/cni/* /opt/cni/bin/
        ln -s /usr/bin/netspawn-xdp /opt/cni/bin/netspawn-cni",
    ),
};

/// It is started with its other interface, and an image for pods to pause with.
const NEWER: Release = Release {
    name: "containerd_newer",
    kit: KIT,
    start: concat!(
        include_str!("image.sh"),
        include_str!("containerd_newer/start.sh")
    ),
};

/// Gives each pod the addresses of its number, as `host-local` keeps them.
const BY_NAME: &str = r#"#!/bin/sh
number=${CNI_ARGS##*K8S_POD_NAME=m}
number=${number%%;*}
v4=203.0.113.$((100 + number))
v6=$(printf 2001:db8::%x $((256 + number)))
sed "s/@4@/$v4/g; s/@6@/$v6/g" | "${0%/*}/host-local"
"#;

const NETWORK: &str = r#"{
    "cniVersion": "1.1.0",
    "name": "public",
    "plugins": [{
        "type": "netspawn-cni",
        "ipam": {
            "type": "by-name",
            "dataDir": "/run/cni/networks",
            "ranges": [
                [{"subnet": "203.0.113.0/24", "rangeStart": "@4@", "rangeEnd": "@4@"}],
                [{"subnet": "2001:db8::/64", "rangeStart": "@6@", "rangeEnd": "@6@"}]
            ]
        }
    }]
}"#;

/// When systemd kills an agent that does nothing.
const WATCHDOG: Duration = Duration::from_secs(30);

/// Pods, started as kubelet starts them.
struct Pods {
    system: SystemdHost,
}

impl Pods {
    fn start() -> Result<Self> {
        let Containerd { system, .. } = Containerd::of(&NEWER)?;
        system.write("/opt/cni/bin/by-name", BY_NAME)?;
        system.run("chmod +x /opt/cni/bin/by-name")?;
        system.write("/etc/cni/net.d/10-public.conflist", NETWORK)?;
        let pods = Pods { system };
        pods.becomes("True")?;
        Ok(pods)
    }

    fn client(&self, command: &str, machines: &[Wanted]) -> Result<String> {
        self.system
            .cmd("cri")
            .arg(command)
            .args(machines.iter().map(|machine| &machine.name))
            .limit(WATCHDOG * 2)
            .text()
            .with_context(|| report(&self.system))
    }

    /// Waits until what is told of the network begins so.
    fn becomes(&self, words: &str) -> Result<()> {
        let mut last = String::new();
        let told = wait_until(SOON, || {
            last = self.client("status", &[]).unwrap_or_default();
            last.starts_with(words)
        });
        ensure!(told, "expected {words}: {last}");
        Ok(())
    }
}

impl Engine for Pods {
    const NAME: &'static str = "containerd_newer (CRI)";
    const LOSES_EVENTS: bool = false;

    fn system(&self) -> &SystemdHost {
        &self.system
    }

    fn start(&self, machines: &[Wanted]) -> Result<()> {
        self.client("run", machines).map(drop)
    }

    fn stop(&self, machines: &[Wanted]) -> Result<()> {
        self.client("remove", machines).map(drop)
    }

    fn restart(&self) -> Result<()> {
        self.system.run("systemctl restart containerd").map(drop)
    }

    fn version(&self) -> Result<String> {
        version(&self.system)
    }
}

#[test]
fn containers_are_served() -> Result<()> {
    let engine = Containerd::of(&NEWER)?;
    scenario::shows(&engine)
}

#[test]
fn pods_are_served() -> Result<()> {
    let engine = Pods::start()?;
    scenario::shows(&engine)?;
    // DEL was called for each: nobody waits for the next ADD.
    let system = &engine.system;
    nothing_is_left(system)?;
    // The node is told by STATUS whether there is a network.
    engine.becomes("True")?;
    system.run("systemctl stop netspawn-xdp@eth0")?;
    system.xdp("detach")?.success()?;
    engine.becomes("False")?;
    system.run("systemctl start netspawn-xdp@eth0")?;
    engine.becomes("True")
}

#[test]
fn pod_without_an_answer_of_the_agent_fails_and_leaves_nothing() -> Result<()> {
    let engine = Pods::start()?;
    let system = &engine.system;
    let one = [Wanted::number(50)];
    let pid = scenario::agent(system)?;
    system.shell(&format!("kill -STOP {pid}"))?;
    let start = Instant::now();
    let started = engine.start(&one);
    let taken = start.elapsed();
    let Err(error) = started else {
        anyhow::bail!("it is served by nobody");
    };
    let words = format!("{error:#}");
    ensure!(words.contains("the agent did not answer"), "{words}");
    ensure!(taken < WATCHDOG + SOON, "{taken:?}");
    let restarted = wait_until(SOON, || scenario::agent(system).is_ok_and(|new| new != pid));
    ensure!(restarted, "the agent is not restarted\n{}", report(system));
    nothing_is_left(system)?;
    engine.start(&one)?;
    one[0].answers(system)?;
    engine.stop(&one)?;
    nothing_is_left(system)
}
