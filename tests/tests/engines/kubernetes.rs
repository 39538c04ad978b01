//! Kubernetes: one node, whose pods are connected by `netspawn-cni`, and whose services
//! are kube-proxy's. Runs on demand, as building Kubernetes takes its time.

mod cluster;

use std::{
    collections::BTreeSet,
    io::{Read as _, Write as _},
    net::{IpAddr, TcpListener},
    thread,
};

use anyhow::{Context as _, Result, ensure};
use netspawn_tests::{
    FAR4, FAR6, HOST4, HOST6, Ns, SystemdHost, ping, unreachable, wait_ping, wait_until,
};

use self::cluster::{Cluster, PODS};
use crate::scenario::{SOON, agent, kill_agent, record, report};

const DEPLOYMENT: &str = include_str!("kubernetes/pods.yaml");
const MANY: usize = 50;

#[test]
fn node_with_fifty_pods() -> Result<()> {
    let cluster = Cluster::start(&network())?;
    let system = &cluster.system;
    cluster.wait(
        "node/node1",
        ".status.conditions[?(@.type==\"Ready\")].status",
        "True",
    )?;
    cluster.apply(DEPLOYMENT)?;
    cluster.wait("deployment/web", ".status.readyReplicas", &MANY.to_string())?;

    let pods = cluster.pods()?;
    ensure!(pods.len() == MANY, "{pods:?}");
    let addresses: Vec<IpAddr> = pods.values().flatten().copied().collect();
    ensure!(
        addresses.len() == 2 * MANY,
        "not every pod has two addresses: {pods:?}"
    );
    answer(system, &addresses)?;
    talk(&cluster)?;
    services(&cluster)?;

    kill_agent(system)?;
    still_answer(system, &addresses)?;
    let restarted = wait_until(SOON, || agent(system).is_ok());
    ensure!(restarted, "the agent is not restarted\n{}", report(system));
    still_answer(system, &addresses)?;
    for daemon in ["kubelet", "containerd"] {
        system.run(&format!("systemctl restart {daemon}"))?;
        still_answer(system, &addresses)?;
    }

    // The daemons work on: pods go, and others come.
    cluster.kubectl("scale deployment/web --replicas=5")?;
    cluster.wait_pods(5)?;
    let left: BTreeSet<IpAddr> = cluster.pods()?.into_values().flatten().collect();
    for address in addresses.iter().filter(|address| !left.contains(address)) {
        silent(system, *address)?;
    }
    cluster.kubectl("scale deployment/web --replicas=8")?;
    cluster.wait("deployment/web", ".status.readyReplicas", "8")?;
    let addresses: Vec<IpAddr> = cluster.pods()?.into_values().flatten().collect();
    answer(system, &addresses)?;

    cluster.kubectl("delete deployment/web")?;
    cluster.wait_pods(0)?;
    for address in addresses {
        silent(system, address)?;
    }
    let version = system.run("kubelet --version")?;
    let version = version.trim().trim_start_matches("Kubernetes v");
    record(
        "kubernetes",
        version,
        "node ready, 50 pods, pod to pod, host, outside and services, agent killed, \
         kubelet and containerd restarted",
    )
}

/// Pods reach each other, the host, and the outside, where they are seen by their own
/// addresses.
fn talk(cluster: &Cluster) -> Result<()> {
    let pods = cluster.pods()?;
    let (Some((first, own)), Some((last, others))) =
        (pods.first_key_value(), pods.last_key_value())
    else {
        unreachable!("there are {MANY} pods");
    };
    for other in others {
        let page = cluster.inside(first, &format!("wget -q -O - http://{}/", url(*other)))?;
        ensure!(page.trim() == last, "{other} is {page}");
    }
    for host in [IpAddr::from(HOST4), HOST6.into()] {
        cluster.inside(first, &format!("ping -c 1 -W 2 {host}"))?;
    }
    for (far, own) in [IpAddr::from(FAR4), FAR6.into()].into_iter().zip(own) {
        let port = whoami(&cluster.system.net)?;
        let seen = cluster.inside(first, &format!("wget -q -O - http://{}:{port}/", url(far)))?;
        ensure!(seen == own.to_string(), "{own} is seen as {seen}");
    }
    Ok(())
}

/// Pods and the host reach services by their addresses, the outside by the node's.
fn services(cluster: &Cluster) -> Result<()> {
    let pods = cluster.pods()?;
    let first = pods.keys().next().context("no pods")?;
    let ips = cluster.kubectl("get service/web -o jsonpath={.spec.clusterIPs[*]}")?;
    let ips: Vec<IpAddr> = ips
        .split_whitespace()
        .map(|ip| ip.parse().with_context(|| ip.to_owned()))
        .collect::<Result<_>>()?;
    ensure!(ips.len() == 2, "the service has {ips:?}");
    for ip in ips {
        let asks = format!("busybox timeout 5 wget -q -O - http://{}/", url(ip));
        // kube-proxy writes its rules some time after the pods are ready.
        let followed = wait_until(SOON, || cluster.inside(first, &asks).is_ok());
        ensure!(
            followed,
            "{ip}: {:?}\n{}",
            cluster.inside(first, &asks),
            cluster.report()
        );
        let again = format!("for i in 1 2 3 4 5 6 7 8 9 10; do {asks}; done");
        let pages = cluster.inside(first, &again)?;
        let names: BTreeSet<&str> = pages.lines().collect();
        ensure!(names.len() > 1, "{ip} is always {names:?}");
        ensure!(
            names.iter().all(|name| pods.contains_key(*name)),
            "{names:?}"
        );
        cluster.system.shell(&asks)?;
    }
    for host in [IpAddr::from(HOST4), HOST6.into()] {
        let asks = format!(
            "curl --silent --show-error --max-time 5 http://{}:30080/",
            url(host)
        );
        let page = cluster.system.net.run(&asks)?;
        ensure!(pods.contains_key(page.trim()), "{host} says {page}");
    }
    // The API server, in the host's own network.
    let kubernetes = cluster.kubectl("get service/kubernetes -o jsonpath={.spec.clusterIP}")?;
    let asks = format!(
        "busybox timeout 5 wget -q -O - --no-check-certificate \
         --header 'Authorization: Bearer token' https://{kubernetes}/readyz"
    );
    let page = cluster.inside(first, &asks)?;
    ensure!(page == "ok", "the API server says {page}");
    Ok(())
}

/// Starts a server outside that tells each client by which address it is seen; its port.
fn whoami(at: &Ns) -> Result<u16> {
    let listener = at.enter(|| Ok(TcpListener::bind(("::", 0))?))?;
    let port = listener.local_addr()?.port();
    thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let Ok(peer) = stream.peer_addr() else {
                continue;
            };
            let ip = peer.ip().to_canonical();
            let page = format!("HTTP/1.0 200 OK\r\n\r\n{ip}");
            // A client that goes away has its own error to report.
            let _ = stream
                .read(&mut [0; 4096])
                .and_then(|_| stream.write_all(page.as_bytes()));
        }
    });
    Ok(port)
}

/// An address in a URL.
fn url(ip: IpAddr) -> String {
    match ip {
        IpAddr::V4(ip) => ip.to_string(),
        IpAddr::V6(ip) => format!("[{ip}]"),
    }
}

fn answer(system: &SystemdHost, addresses: &[IpAddr]) -> Result<()> {
    addresses.iter().try_for_each(|address| {
        wait_ping(&system.net, *address, SOON).with_context(|| report(system))
    })
}

fn still_answer(system: &SystemdHost, addresses: &[IpAddr]) -> Result<()> {
    addresses
        .iter()
        .try_for_each(|address| ping(&system.net, *address).with_context(|| report(system)))
}

fn silent(system: &SystemdHost, address: IpAddr) -> Result<()> {
    let silent = wait_until(SOON, || unreachable(&system.net, address).is_ok());
    ensure!(silent, "{address} is answered for\n{}", report(system));
    Ok(())
}

/// The network configuration for the container runtime.
fn network() -> String {
    let [v4, v6] = PODS;
    format!(
        r#"{{"cniVersion": "1.0.0", "name": "pods", "plugins": [{{
            "type": "netspawn-cni",
            "ipam": {{"type": "host-local", "dataDir": "/run/cni/networks",
                "ranges": [[{{"subnet": "{v4}"}}], [{{"subnet": "{v6}"}}]]}}
        }}]}}"#
    )
}
