//! Machines of several engines on one host: what a tenant is does not depend on who
//! runs the machine.

use anyhow::{Context as _, Result, ensure};
use netspawn_tests::{Nspawn, SystemdHost, ping, wait_until};

use super::{
    docker::Docker,
    scenario::{SOON, report},
};

/// A machine: its tenant, its addresses, and its first process as the box has it.
struct Member {
    name: &'static str,
    tenant: &'static str,
    addresses: [String; 2],
    pid: u32,
}

impl Member {
    /// Whether it reaches an address at the first ping.
    fn reaches(&self, system: &SystemdHost, address: &str) -> bool {
        system
            .cmd("nsenter")
            .args(["--target", &self.pid.to_string(), "--net"])
            .args(["ping", "-n", "-c", "1", "-W", "0.3", address])
            .text()
            .is_ok()
    }
}

fn addresses(number: u8) -> [String; 2] {
    [
        format!("203.0.113.{number}"),
        format!("2001:db8::{number:x}"),
    ]
}

fn in_docker(docker: &Docker, name: &'static str, tenant: &'static str, n: u8) -> Result<Member> {
    let [v4, v6] = addresses(n);
    docker.sh(&format!(
        "docker run -d --name {name} --network pub --ip {v4} --ip6 {v6} \
         --label netspawn.tenant={tenant} tiny sleep 1000"
    ))?;
    let pid = docker.sh(&format!("docker inspect -f '{{{{.State.Pid}}}}' {name}"))?;
    Ok(Member {
        name,
        tenant,
        addresses: [v4, v6],
        pid: pid.trim().parse()?,
    })
}

/// Run by containerd, connected by the CNI plugin, whose configuration names the tenant.
fn in_containerd(
    system: &SystemdHost,
    name: &'static str,
    tenant: &'static str,
    n: u8,
) -> Result<Member> {
    let [v4, v6] = addresses(n);
    system.write(
        "/etc/cni/net.d/public.conflist",
        &format!(
            r#"{{"cniVersion": "1.0.0", "name": "public", "plugins": [{{
                "type": "netspawn-cni", "tenant": "{tenant}",
                "ipam": {{"type": "static", "addresses": [
                    {{"address": "{v4}/32"}}, {{"address": "{v6}/128"}}
                ]}}
            }}]}}"#
        ),
    )?;
    system.shell(&format!(
        "ctr -n k8s.io run -d --cni --rootfs /var/lib/engines/tiny {name} /bin/sleep 1000"
    ))?;
    let list = system.run("ctr -n k8s.io task list")?;
    let mut rows = list.lines().map(|line| line.split_whitespace());
    let pid = rows.find_map(|mut row| (row.next()? == name).then(|| row.next())?);
    Ok(Member {
        name,
        tenant,
        addresses: [v4, v6],
        pid: pid.with_context(|| list.clone())?.parse()?,
    })
}

fn in_nspawn(
    system: &SystemdHost,
    name: &'static str,
    tenant: &'static str,
    n: u8,
) -> Result<Member> {
    let [v4, v6] = addresses(n);
    system.write(
        &format!("/etc/netspawn/machines/{name}.toml"),
        &format!("addresses = [\"{v4}\", \"{v6}\"]\ntenant = \"{tenant}\"\n"),
    )?;
    system.start(&Nspawn::new(name).addresses(&[&v4, &v6]).nodad())?;
    Ok(Member {
        name,
        tenant,
        addresses: [v4, v6],
        pid: system.leader(name)?,
    })
}

#[test]
fn tenants_are_apart_and_together_whoever_runs_the_machine() -> Result<()> {
    let docker = Docker::with_network("")?;
    let system = &docker.system;
    system.shell(
        "set -e
        cp -a /tiny /var/lib/engines/tiny
        mkdir -p /opt/cni/bin /etc/cni/net.d
        ln -s /usr/lib/cni/* /opt/cni/bin/
        ln -s /usr/bin/netspawn-xdp /opt/cni/bin/netspawn-cni",
    )?;
    let members = [
        in_docker(&docker, "web", "acme", 20)?,
        in_docker(&docker, "shop", "umbra", 21)?,
        in_containerd(system, "db", "acme", 22)?,
        in_containerd(system, "log", "umbra", 23)?,
        in_nspawn(system, "mail", "acme", 24)?,
    ];
    for member in &members {
        for address in &member.addresses {
            let reached = wait_until(SOON, || {
                let address: std::net::IpAddr = address.parse().unwrap_or([0; 4].into());
                ping(&system.net, address).is_ok()
            });
            ensure!(reached, "{} at {address}\n{}", member.name, report(system));
        }
    }
    for from in &members {
        for to in members.iter().filter(|to| to.name != from.name) {
            for address in &to.addresses {
                let (reached, wanted) = (from.reaches(system, address), from.tenant == to.tenant);
                ensure!(
                    reached == wanted,
                    "{} of {} reaches {} of {} at {address}: {reached}\n{}",
                    from.name,
                    from.tenant,
                    to.name,
                    to.tenant,
                    report(system)
                );
            }
        }
    }
    super::scenario::record(
        "tenants",
        "",
        "Docker, containerd and systemd-nspawn on one host",
    )
}
