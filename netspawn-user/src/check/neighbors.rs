//! Others that answer in the machines' stead, and gateways that do not.

use super::{Facts, Finding, decide, machines::owner, rules::*, run, sum_up};
use crate::import::{proxy_del, set};

pub(super) fn findings(facts: &Facts) -> Vec<Finding> {
    let mut found = Vec::new();
    found.extend(proxies(facts));
    for daemon in &facts.daemons {
        let command = match &daemon.unit {
            Some(unit) if facts.systemd => format!("systemctl disable --now {unit}"),
            _ => format!("kill {}", daemon.pid),
        };
        found.push(Finding::new(
            PROXY_DAEMON,
            &daemon.name,
            format!("runs with process id {}", daemon.pid),
            run([command]),
        ));
    }
    found.extend(gateways(facts));
    found.extend(room(facts));
    found
}

fn proxies(facts: &Facts) -> Option<Finding> {
    let left: Vec<_> = facts
        .unfollowed
        .proxies
        .iter()
        .filter(|proxy| owner(facts, &proxy.address.into()).is_some())
        .collect();
    let name = |ifindex| {
        let link = facts.host.links.get(&ifindex);
        link.map(|link| link.name.as_str())
    };
    (!left.is_empty()).then(|| {
        let addresses = left.iter().map(|proxy| proxy.address.to_string());
        Finding::new(
            PROXY_NEIGHBORS_LEFT,
            "host",
            format!("has proxy neighbors {}", sum_up(addresses)),
            run(left.iter().map(|proxy| proxy_del(proxy, name))),
        )
    })
}

fn gateways(facts: &Facts) -> Vec<Finding> {
    let mut found = Vec::new();
    for route in &facts.host.routes {
        let (Some(ifindex), Some(gateway)) = (route.ifindex, route.gateway) else {
            continue;
        };
        let silent = facts.silent.contains(&(ifindex, gateway));
        if route.destination.prefix_len() == 0 && silent && facts.is_uplink(ifindex) {
            found.push(Finding::new(
                GATEWAY_SILENT,
                facts.name(ifindex),
                format!("gateway {gateway} does not answer"),
                decide(format!(
                    "compare it with what the provider says; `ip neigh show {gateway}`"
                )),
            ));
        }
    }
    found
}

/// Each machine that speaks has its gateway as a neighbor, in its own namespace but in the
/// kernel's one table.
#[expect(
    clippy::disallowed_methods,
    reason = "this parses text or bytes; no system call can fail here"
)]
fn room(facts: &Facts) -> Vec<Finding> {
    let mut found = Vec::new();
    for (&family, table) in &facts.neighbor_tables {
        let (name, sysctl) = match family {
            libc::AF_INET => ("IPv4", "ipv4"),
            _ => ("IPv6", "ipv6"),
        };
        let v4 = family == libc::AF_INET;
        let machines = facts.desired.machines.iter().filter(|machine| {
            let mut addresses = machine.addresses.iter();
            machine.ifindex.is_some() && addresses.any(|prefix| prefix.addr().is_ipv4() == v4)
        });
        let count = u32::try_from(machines.count()).unwrap_or(u32::MAX);
        if count <= table.room / 4 * 3 {
            continue;
        }
        // Old entries give way from gc_thresh2 on.
        let wanted = count.saturating_mul(3).next_power_of_two();
        let key = |threshold| format!("{sysctl}/neigh/default/{threshold}");
        let full = match table.overflows {
            0 => String::new(),
            times => format!(", full {times} times since boot"),
        };
        found.push(Finding::new(
            NEIGHBOR_TABLE_SMALL,
            "host",
            format!(
                "{count} machines with {name}, and room for {} neighbors{full}",
                table.room
            ),
            run([
                set(&key("gc_thresh3"), &wanted.to_string()),
                set(&key("gc_thresh2"), &(wanted / 2).to_string()),
            ]),
        ));
    }
    found
}
