//! A cluster of one node in a box.

use std::{collections::BTreeMap, net::IpAddr, time::Duration};

use anyhow::{Context as _, Result, ensure};
use netspawn_tests::{HOST4, HOST6, Kit, LAN, SystemdHost, wait_until};
use serde_json::Value;

const KIT: Kit = Kit {
    name: "kubernetes",
    recipe: 1,
    release: None,
    packages: &[
        "conntrack",
        "containerd",
        "containernetworking-plugins",
        "etcd-server",
        "iptables",
        "openssl",
        "runc",
    ],
    backports: &[],
    testing: &[],
    script: include_str!("build.sh"),
};

/// What the box runs to become a node.
const START: &str = concat!(include_str!("../image.sh"), include_str!("start.sh"));

/// Where services have their addresses.
pub const SERVICES: [&str; 2] = ["10.96.0.0/16", "fd00:96::/112"];
/// Where pods have theirs: in the uplink's own network, found by ARP, and routed here.
pub const PODS: [&str; 2] = ["203.0.113.128/25", "2001:db8:1::/64"];

/// Until the node, or all pods, are as wanted, on two cores.
const LONG: Duration = Duration::from_secs(180);

/// A node with everything but the network plugin's configuration.
pub struct Cluster {
    pub system: SystemdHost,
}

impl Cluster {
    /// Boots the box, attaches, and starts Kubernetes with that network configuration.
    pub fn start(network: &str) -> Result<Self> {
        let system = SystemdHost::with(&KIT)?;
        let route = format!("ip -6 route replace {} via {HOST6} dev {LAN}", PODS[1]);
        system.net.run(&route)?;
        system.install(&format!("[policy]\nvia-host = {SERVICES:?}\n"))?;
        system.write("/etc/cni/net.d/10-pods.conflist", network)?;
        system
            .cmd("sh")
            .env("HOST4", HOST4.to_string())
            .env("SERVICES", SERVICES.join(","))
            .env("PODS", PODS.join(","))
            .args(["-c", START])
            .limit(LONG)
            .text()?;
        Ok(Cluster { system })
    }

    /// Runs kubectl with words split at white space.
    pub fn kubectl(&self, words: &str) -> Result<String> {
        self.client().args(words.split_whitespace()).text()
    }

    fn client(&self) -> netspawn_tests::Cmd {
        self.system
            .cmd("kubectl")
            .args(["--kubeconfig", "/var/lib/engines/kubeconfig"])
            .limit(LONG)
    }

    /// Applies what is written in YAML.
    pub fn apply(&self, text: &str) -> Result<()> {
        self.client()
            .args(["apply", "-f", "-"])
            .input(text)
            .text()
            .map(drop)
    }

    /// Runs a shell script in a pod.
    pub fn inside(&self, pod: &str, script: &str) -> Result<String> {
        self.client()
            .args(["exec", pod, "--", "sh", "-c", script])
            .text()
            .with_context(|| format!("in pod {pod}: {script}"))
    }

    /// Waits until a word of a resource is as wanted.
    pub fn wait(&self, resource: &str, path: &str, wanted: &str) -> Result<()> {
        let words = format!("get {resource} -o jsonpath={{{path}}}");
        let mut found = Ok(String::new());
        let right = wait_until(LONG, || {
            found = self.kubectl(&words);
            found.as_ref().is_ok_and(|found| found == wanted)
        });
        ensure!(
            right,
            "{path} of {resource} is {found:?}, not {wanted}\n{}",
            self.report()
        );
        Ok(())
    }

    /// Waits until that many pods run, and no others are left of those before.
    pub fn wait_pods(&self, count: usize) -> Result<()> {
        let mut names = Ok(String::new());
        let right = wait_until(LONG, || {
            names = self.kubectl("get pods -o name");
            names
                .as_ref()
                .is_ok_and(|names| names.lines().count() == count)
        });
        ensure!(right, "pods: {names:?}\n{}", self.report());
        Ok(())
    }

    /// Addresses of the pods that run, by name.
    pub fn pods(&self) -> Result<BTreeMap<String, Vec<IpAddr>>> {
        let text = self.kubectl("get pods -o json --field-selector=status.phase=Running")?;
        let list: Value = serde_json::from_str(&text)?;
        let mut pods = BTreeMap::new();
        for pod in list["items"].as_array().into_iter().flatten() {
            let name = pod["metadata"]["name"]
                .as_str()
                .context("a pod without a name")?;
            let ips = pod["status"]["podIPs"].as_array().into_iter().flatten();
            let ips = ips
                .filter_map(|ip| ip["ip"].as_str())
                .map(|ip| ip.parse().with_context(|| ip.to_owned()));
            pods.insert(name.to_owned(), ips.collect::<Result<_>>()?);
        }
        Ok(pods)
    }

    /// What there is to know when something fails.
    pub fn report(&self) -> String {
        self.system
            .shell(
                "export KUBECONFIG=/var/lib/engines/kubeconfig
                kubectl get nodes,pods,services,endpoints -o wide | head -30
                kubectl get events | tail -20
                for unit in kubelet containerd netspawn-xdp@eth0; do
                    journalctl --no-pager --output=cat --lines=25 --unit=$unit | cut -c1-300
                done",
            )
            .unwrap_or_else(|error| format!("{error:#}"))
    }
}
