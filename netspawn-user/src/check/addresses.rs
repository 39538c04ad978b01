//! Machines' addresses against those of the host and of each other.

use std::net::IpAddr;

use ipnet::IpNet;

use super::{Facts, Finding, decide, machines::prefix_text, rules::*, run, sum_up};
use crate::{
    registry::{HOST_HOLDER, Machine},
    source::kernel::is_private,
};

pub(super) fn findings(facts: &Facts) -> Vec<Finding> {
    let mut found = Vec::new();
    for machine in &facts.desired.machines {
        for conflict in &machine.conflicts {
            found.push(held(facts, machine, &conflict.prefix, &conflict.holder));
        }
    }
    found.extend(private(facts));
    found.extend(not_on_link(facts));
    found.extend(routed_on_link(facts));
    found
}

/// The machine's file.
fn file(facts: &Facts, machine: &str) -> String {
    let declaration = facts.snapshot.declarations.get(machine);
    declaration.map_or_else(
        || format!("the declaration of {machine}"),
        |declaration| declaration.path.display().to_string(),
    )
}

/// A prefix that somebody else has.
fn held(facts: &Facts, machine: &Machine, prefix: &IpNet, holder: &str) -> Finding {
    let text = prefix_text(prefix);
    let name = &machine.name;
    if holder != HOST_HOLDER {
        return Finding::new(
            ADDRESS_TWICE,
            name,
            format!("declares {text}, which {holder} has"),
            decide(format!(
                "remove it from {} or from {}",
                file(facts, name),
                file(facts, holder)
            )),
        );
    }
    let configured = |(_, own): &&(u32, IpNet)| IpNet::from(own.addr()) == *prefix;
    match facts.host.addresses.iter().find(configured) {
        Some((ifindex, own)) => {
            let interface = facts.name(*ifindex);
            Finding::new(
                ADDRESS_ON_HOST,
                name,
                format!("{text} is on {interface} of the host"),
                take_from_host(facts, *ifindex, own),
            )
        }
        None => Finding::new(
            ADDRESS_RESERVED,
            name,
            format!("declares {text}, which has the gateway in it or is a subnet's own"),
            decide(format!(
                "remove it from {}, or declare longer prefixes",
                file(facts, name)
            )),
        ),
    }
}

/// The host's only address of a family is never taken away by a command that
/// somebody pastes.
fn take_from_host(facts: &Facts, ifindex: u32, own: &IpNet) -> super::Remedy {
    let interface = facts.name(ifindex);
    let command = format!("ip address del {own} dev {interface}");
    let is_global = |ip: IpAddr| match ip {
        IpAddr::V4(ip) => !ip.is_link_local() && !ip.is_loopback(),
        IpAddr::V6(ip) => !ip.is_unicast_link_local() && !ip.is_loopback(),
    };
    let spare = facts.host.addresses.iter().any(|(index, other)| {
        *index == ifindex
            && other.addr() != own.addr()
            && other.addr().is_ipv4() == own.addr().is_ipv4()
            && is_global(other.addr())
    });
    // With the longest subnet goes the way to the gateway, unless another has it.
    let single = own.prefix_len() == own.max_prefix_len();
    let sub_net_stays = facts.host.addresses.iter().any(|(index, other)| {
        *index == ifindex && other.addr() != own.addr() && other.trunc() == own.trunc()
    });
    if spare && (single || sub_net_stays) {
        run([command])
    } else {
        decide(format!(
            "it may be the host's only way in: give the host another address before `{command}`"
        ))
    }
}

fn on_link(facts: &Facts, prefix: &IpNet) -> bool {
    facts.host.addresses.iter().any(|(ifindex, subnet)| {
        facts.is_uplink(*ifindex)
            && subnet.prefix_len() < subnet.max_prefix_len()
            && subnet.trunc().contains(prefix)
    })
}

/// Prefixes of machines, with the machines.
fn prefixes(facts: &Facts) -> impl Iterator<Item = (&Machine, &IpNet)> {
    let machines = facts.desired.machines.iter();
    machines.flat_map(|machine| {
        machine
            .addresses
            .iter()
            .map(move |prefix| (machine, prefix))
    })
}

fn texts<'a>(found: &'a [(&Machine, &IpNet)]) -> impl Iterator<Item = String> + use<'a> {
    found
        .iter()
        .map(|(machine, prefix)| format!("{} of {}", prefix_text(prefix), machine.name))
}

fn private(facts: &Facts) -> Option<Finding> {
    let found: Vec<_> = prefixes(facts)
        .filter(|(_, prefix)| is_private(prefix))
        // Unique local ones are judged machine by machine.
        .filter(|(_, prefix)| prefix.addr().is_ipv4() && !on_link(facts, prefix))
        .collect();
    (!found.is_empty() && !facts.uplinks.is_empty()).then(|| {
        Finding::new(
            ADDRESS_PRIVATE,
            "network",
            format!("no uplink has a subnet with {}", sum_up(texts(&found))),
            decide("give the machine a public address, or leave it to NAT and do not declare it"),
        )
    })
}

fn not_on_link(facts: &Facts) -> Option<Finding> {
    let found: Vec<_> = prefixes(facts)
        .filter(|(machine, _)| !facts.reached.contains(&machine.name))
        .filter(|(_, prefix)| !is_private(prefix))
        .filter(|(_, prefix)| !on_link(facts, prefix))
        .collect();
    let (_, link) = facts.links().next()?;
    (!found.is_empty()).then(|| {
        Finding::new(
            ADDRESS_NOT_ON_LINK,
            "network",
            format!("no uplink has a subnet with {}", sum_up(texts(&found))),
            decide(format!(
                "have the provider route it to this host; \
                 `tcpdump -ni {} 'arp or icmp6 or net {}'` shows what comes in",
                link.name, found[0].1
            )),
        )
    })
}

/// A prefix on the link of an uplink whose gateway is link-local, as where it is
/// routed to the host.
fn routed_on_link(facts: &Facts) -> Vec<Finding> {
    let mut found = Vec::new();
    for (uplink, link) in facts.links() {
        let behind = |gateway: Option<IpAddr>| matches!(gateway, Some(IpAddr::V6(ip)) if ip.is_unicast_link_local());
        let routed = facts.host.routes.iter().any(|route| {
            route.ifindex == Some(link.ifindex)
                && route.destination.prefix_len() == 0
                && behind(route.gateway)
        });
        for (ifindex, own) in facts.host.addresses.iter().filter(|_| routed) {
            let covers = |(_, prefix): &(&Machine, &IpNet)| own.trunc().contains(*prefix);
            let is_subnet = own.addr().is_ipv6() && own.prefix_len() < own.max_prefix_len();
            if *ifindex == link.ifindex && is_subnet && prefixes(facts).any(|one| covers(&one)) {
                let single = IpNet::from(own.addr());
                found.push(Finding::new(
                    ROUTED_PREFIX_ON_LINK,
                    &uplink.name,
                    format!("has {} on-link, and a link-local gateway", own.trunc()),
                    decide(format!(
                        "if the provider routes it, make the host's address a single one: \
                         `ip address del {own} dev {0}; ip address add {single} dev {0}`",
                        link.name
                    )),
                ));
            }
        }
    }
    found
}
