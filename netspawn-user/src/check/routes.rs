//! The host's routes to machines, and out of the host.

use std::{collections::BTreeMap, net::IpAddr};

use ipnet::IpNet;

use super::{
    Facts, Finding, decide,
    machines::{owner, prefix_text},
    rules::*,
    run, sum_up,
};
use crate::{import::route_del, model::Route};

pub(super) fn findings(facts: &Facts) -> Vec<Finding> {
    let mut found = Vec::new();
    found.extend(left(facts));
    found.extend(default_routes(facts));
    let mut by_interface: BTreeMap<u32, Vec<(String, &Route)>> = BTreeMap::new();
    for (machine, prefix, route) in elsewhere(facts) {
        let text = format!("{} of {machine}", prefix_text(&prefix));
        let ifindex = route.ifindex.unwrap_or_default();
        by_interface.entry(ifindex).or_default().push((text, route));
    }
    for (ifindex, routes) in by_interface {
        let name = facts.name(ifindex);
        let texts = routes.iter().map(|(text, _)| text);
        let mut own: Vec<&Route> = routes.iter().map(|(_, route)| *route).collect();
        own.dedup();
        let is_subnet = |route: &&Route| {
            let mut addresses = facts.host.addresses.iter();
            addresses.any(|(index, own)| *index == ifindex && own.trunc() == route.destination)
        };
        let remedy = if own.iter().any(is_subnet) {
            decide(format!(
                "give {name} a subnet without machines' addresses (`ip address show dev {name}`)"
            ))
        } else {
            run(own.iter().map(|route| delete(facts, route)))
        };
        let text = format!("has the host's route to {}", sum_up(texts));
        found.push(Finding::new(ROUTE_ELSEWHERE, name, text, remedy));
    }
    found
}

fn delete(facts: &Facts, route: &Route) -> String {
    route_del(route, |ifindex| {
        let link = facts.host.links.get(&ifindex);
        link.map(|link| link.name.as_str())
    })
}

/// Whether an interface leads to machines: a port, or a bridge with ports in it.
fn leads_to_machines(facts: &Facts, ifindex: u32) -> bool {
    let is = |port: &crate::model::Link| port.ifindex == ifindex || port.master == Some(ifindex);
    facts.ports().any(|(_, port)| is(port))
}

/// Host routes to machines' own prefixes by their ports.
fn left(facts: &Facts) -> Option<Finding> {
    let routes: Vec<&Route> = facts
        .host
        .routes
        .iter()
        .filter(|route| owner(facts, &route.destination).is_some())
        .filter(|route| {
            route
                .ifindex
                .is_some_and(|index| leads_to_machines(facts, index))
        })
        .collect();
    (!routes.is_empty()).then(|| {
        let texts = routes.iter().map(|route| prefix_text(&route.destination));
        let text = format!("has routes to {}", sum_up(texts));
        let commands = routes.iter().map(|route| delete(facts, route));
        Finding::new(HOST_ROUTES_LEFT, "host", text, run(commands))
    })
}

/// Prefixes of machines that the host's route leads elsewhere for: neither to an
/// uplink nor to the machines' side.
pub(super) fn elsewhere(facts: &Facts) -> Vec<(&str, IpNet, &Route)> {
    let mut found = Vec::new();
    for machine in &facts.desired.machines {
        for prefix in &machine.addresses {
            let Some(route) = facts.route_to(prefix.addr()) else {
                continue;
            };
            let astray = route.ifindex.is_some_and(|ifindex| {
                !facts.is_uplink(ifindex) && !leads_to_machines(facts, ifindex)
            });
            // Without a route of its own, it is the default route's matter.
            if astray && route.destination.prefix_len() > 0 {
                found.push((machine.name.as_str(), *prefix, route));
            }
        }
    }
    found
}

fn default_routes(facts: &Facts) -> Vec<Finding> {
    let mut found = Vec::new();
    let Some((_, link)) = facts.links().next() else {
        return found;
    };
    for (v4, family, gateway) in [
        (true, "IPv4", "GATEWAY"),
        // Where prefixes are routed to a host, that is the router's usual address.
        (false, "IPv6", "fe80::1"),
    ] {
        let of_family = |prefix: &&IpNet| prefix.addr().is_ipv4() == v4;
        let machines = &facts.desired.machines;
        let mut addresses = machines.iter().flat_map(|machine| &machine.addresses);
        if addresses.find(of_family).is_none() {
            continue;
        }
        let unspecified: IpAddr = match v4 {
            true => [0; 4].into(),
            false => [0; 16].into(),
        };
        let routes = facts.host.routes.iter();
        let defaults: Vec<&Route> = routes
            .filter(|route| route.destination.prefix_len() == 0 && !route.refused)
            .filter(|route| route.destination.addr() == unspecified)
            .collect();
        let by_uplink = |route: &&Route| route.ifindex.is_some_and(|index| facts.is_uplink(index));
        if defaults.is_empty() {
            found.push(Finding::new(
                NO_DEFAULT_ROUTE,
                family,
                "machines have addresses, and there is no default route",
                decide(format!(
                    "`ip -{} route add default via {gateway} dev {}`, with the gateway that the \
                     provider names",
                    if v4 { 4 } else { 6 },
                    link.name
                )),
            ));
        } else if !defaults.iter().any(by_uplink) {
            let names = defaults.iter().filter_map(|route| route.ifindex);
            let names = sum_up(names.map(|ifindex| facts.name(ifindex)));
            found.push(Finding::new(
                DEFAULT_ROUTE_ELSEWHERE,
                family,
                format!("the default route is by {names}, which is no uplink"),
                decide(format!(
                    "attach {names}, or add a default route by {}",
                    link.name
                )),
            ));
        }
    }
    found
}
