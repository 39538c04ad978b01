//! The machines' own ends of their links, and what is in their images.

use std::net::IpAddr;

use super::{Facts, Finding, decide, facts::Guest, rules::*, run, subject, sum_up};
use crate::{import::quoted, model::Link};

pub(super) fn findings(facts: &Facts) -> Vec<Finding> {
    let mut found = Vec::new();
    found.extend(mtu(facts));
    found.extend(port_mtu(facts));
    found.extend(link_local(facts));
    found.extend(images(facts));
    found.extend(only_ula(facts));
    let unread = facts.guests.iter().flat_map(|guests| &guests.unread);
    let unread: Vec<&String> = unread.collect();
    if !unread.is_empty() {
        found.push(Finding::new(
            GUESTS_NOT_READ,
            subject(&unread, "machines"),
            format!("not looked into: {}", sum_up(&unread)),
            decide("look there: `ip address; ip -d link`"),
        ));
    }
    found
}

/// A command in a machine's network namespace, made from its interface's name.
pub(super) fn within(guest: &Guest, command: impl FnOnce(&str) -> String) -> String {
    let namespace = quoted(&format!("--net={}", guest.namespace.display()));
    format!("nsenter {namespace} {}", command(&quoted(&guest.interface)))
}

fn set_mtu(interface: &str, mtu: u32) -> String {
    format!("ip link set dev {interface} mtu {mtu}")
}

/// The smallest MTU of the uplinks.
fn smallest(facts: &Facts) -> Option<u32> {
    facts.links().map(|(_, link)| link.mtu).min()
}

/// Running machines with their ports.
fn running(facts: &Facts) -> impl Iterator<Item = (&str, &Link, &Guest)> {
    facts.ports().filter_map(|(name, port)| {
        let guest = facts.guests.as_ref()?.running.get(name)?;
        Some((name, port, guest))
    })
}

/// Machines' ends that are larger than the uplink, and those that differ from
/// their ports.
fn mtu(facts: &Facts) -> Vec<Finding> {
    let mut found = Vec::new();
    let Some(uplink) = smallest(facts) else {
        return found;
    };
    let mut add = |rule, machines: Vec<(&str, &Link, &Guest)>| {
        if machines.is_empty() {
            return;
        }
        let names: Vec<&str> = machines.iter().map(|(name, ..)| *name).collect();
        let texts = machines.iter().map(|(name, port, guest)| {
            let (port, end) = (port.mtu, guest.mtu);
            format!("{name} {end} (port {port}, uplink {uplink})")
        });
        let commands = machines.iter().flat_map(|(_, port, guest)| {
            let mtu = guest.mtu.min(uplink);
            let inside = within(guest, |end| set_mtu(end, mtu));
            let outside = set_mtu(&quoted(&port.name), mtu);
            let inside = (guest.mtu != mtu).then_some(inside);
            inside
                .into_iter()
                .chain((port.mtu != mtu).then_some(outside))
        });
        let text = format!("MTU of {}", sum_up(texts));
        found.push(Finding::new(
            rule,
            subject(&names, "machines"),
            text,
            run(commands),
        ));
    };
    let large = |guest: &Guest| guest.mtu > uplink;
    add(
        MACHINE_MTU_LARGE,
        running(facts).filter(|(.., guest)| large(guest)).collect(),
    );
    add(
        PORT_MTU_DIFFERS,
        running(facts)
            .filter(|(_, port, guest)| port.mtu != guest.mtu && !large(guest))
            .collect(),
    );
    found
}

/// Ports that are smaller than the uplink. What their ends have is judged above.
fn port_mtu(facts: &Facts) -> Option<Finding> {
    let uplink = smallest(facts)?;
    let ends = facts.guests.as_ref().map(|guests| &guests.running);
    let end = |name: &str| ends.and_then(|running| running.get(name));
    let small: Vec<(&str, &Link)> = facts
        .ports()
        .filter(|(_, port)| port.mtu < uplink)
        .filter(|(name, port)| end(name).is_none_or(|guest| guest.mtu == port.mtu))
        .collect();
    let names: Vec<&str> = small.iter().map(|(name, _)| *name).collect();
    let texts = small
        .iter()
        .map(|(_, port)| format!("{} {} (uplink {uplink})", port.name, port.mtu));
    let commands = small.iter().flat_map(|(name, port)| {
        let outside = set_mtu(&quoted(&port.name), uplink);
        let inside = end(name).map(|guest| within(guest, |end| set_mtu(end, uplink)));
        [outside].into_iter().chain(inside)
    });
    (!small.is_empty()).then(|| {
        Finding::new(
            PORT_MTU_SMALL,
            subject(&names, "machines"),
            format!("MTU of {}", sum_up(texts)),
            run(commands),
        )
    })
}

fn link_local(facts: &Facts) -> Option<Finding> {
    let found: Vec<_> = running(facts)
        .flat_map(|(name, _, guest)| guest.link_local.iter().map(move |ip| (name, guest, ip)))
        .collect();
    let mut names: Vec<&str> = found.iter().map(|(name, ..)| *name).collect();
    names.dedup();
    let texts = found
        .iter()
        .map(|(name, _, ip)| format!("{name} {}", ip.addr()));
    let command = |(_, guest, ip): &(_, &Guest, _)| {
        within(guest, |end| format!("ip address del {ip} dev {end}"))
    };
    (!found.is_empty()).then(|| {
        Finding::new(
            GUEST_IPV4_LINK_LOCAL,
            subject(&names, "machines"),
            sum_up(texts),
            run(found.iter().map(command)),
        )
    })
}

fn images(facts: &Facts) -> Vec<Finding> {
    let images = facts.guests.iter().flat_map(|guests| &guests.images);
    images
        .map(|(name, (image, file))| {
            Finding::new(
                GUEST_IMAGE_LINK_LOCAL,
                name,
                format!("/{} in its image says so", file.display()),
                run([format!(
                    "netspawn-xdp guest {name} --install {}",
                    quoted(&image.display().to_string())
                )]),
            )
        })
        .collect()
}

fn only_ula(facts: &Facts) -> Option<Finding> {
    let is_ula = |ip: IpAddr| matches!(ip, IpAddr::V6(ip) if ip.is_unique_local());
    let names: Vec<&str> = facts
        .desired
        .machines
        .iter()
        .filter(|machine| {
            let mut v6 = machine.addresses.iter().filter(|net| net.addr().is_ipv6());
            let mut others = v6.clone().filter(|net| !is_ula(net.addr()));
            v6.next().is_some() && others.next().is_none()
        })
        .map(|machine| machine.name.as_str())
        .collect();
    (!names.is_empty()).then(|| {
        Finding::new(
            GUEST_ONLY_ULA,
            subject(&names, "machines"),
            format!("only unique local IPv6 addresses: {}", sum_up(&names)),
            decide(
                "give it an address of the host's prefix; if it is to have none, nothing is lost \
                 by glibc's choice (/etc/gai.conf changes that)",
            ),
        )
    })
}
