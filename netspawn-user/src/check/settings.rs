//! Settings below `/proc/sys/net`.

use std::{collections::BTreeSet, net::IpAddr};

use super::{Facts, Finding, decide, machines::prefix_text, rules::*, run, sum_up};
use crate::import::{off, set};

pub(super) fn findings(facts: &Facts) -> Vec<Finding> {
    let mut found = Vec::new();
    found.extend(forwarding(facts));
    found.extend(via_host(facts));
    found.extend(rp_filter(facts));
    for (rule, family, setting) in [
        (PROXY_ARP_ON, "ipv4", "proxy_arp"),
        (PROXY_NDP_ON, "ipv6", "proxy_ndp"),
    ] {
        found.extend(proxy(facts, rule, family, setting));
    }
    found.extend(ipv6_disabled(facts));
    found
}

fn is_on(facts: &Facts, key: &str) -> bool {
    facts.setting(key).is_some_and(|value| value != "0")
}

/// The settings that let the host forward, and whether `via-host` asks for it.
fn forwards(facts: &Facts) -> [(&'static str, bool); 2] {
    let wanted = |v4| {
        let mut prefixes = facts.via_host.iter();
        prefixes.any(|prefix| prefix.addr().is_ipv4() == v4)
    };
    [
        ("ipv4/ip_forward", wanted(true)),
        ("ipv6/conf/all/forwarding", wanted(false)),
    ]
}

fn via_host(facts: &Facts) -> Option<Finding> {
    let off: Vec<&str> = forwards(facts)
        .into_iter()
        .filter(|(key, wanted)| *wanted && !is_on(facts, key))
        .map(|(key, _)| key)
        .collect();
    (!off.is_empty()).then(|| {
        let names: Vec<String> = off.iter().map(|key| key.replace('/', ".")).collect();
        Finding::new(
            VIA_HOST_NOT_FORWARDED,
            "host",
            format!("{} is off", names.join(" and ")),
            run(off.iter().map(|key| set(key, "1"))),
        )
    })
}

fn forwarding(facts: &Facts) -> Option<Finding> {
    let on: Vec<&str> = forwards(facts)
        .into_iter()
        .filter(|(key, wanted)| !wanted && is_on(facts, key))
        .map(|(key, _)| key)
        .collect();
    let commands: Vec<String> = on.iter().map(|key| off((*key).to_owned())).collect();
    (!on.is_empty()).then(|| {
        let names: Vec<String> = on.iter().map(|key| key.replace('/', ".")).collect();
        Finding::new(
            FORWARDING_ON,
            "host",
            format!("{} is on", names.join(" and ")),
            decide(format!(
                "only if nothing else on this host routes: `{}`",
                commands.join("; ")
            )),
        )
    })
}

#[expect(
    clippy::disallowed_methods,
    reason = "this parses text or bytes; no system call can fail here"
)]
fn rp_filter(facts: &Facts) -> Vec<Finding> {
    let value = |name: &str| -> u8 {
        let key = format!("ipv4/conf/{name}/rp_filter");
        facts
            .setting(&key)
            .and_then(|value| value.parse().ok())
            .unwrap_or(0)
    };
    let elsewhere: BTreeSet<String> = super::routes::elsewhere(facts)
        .into_iter()
        .filter(|(_, prefix, _)| prefix.addr().is_ipv4())
        .map(|(_, prefix, _)| prefix_text(&prefix))
        .collect();
    if elsewhere.is_empty() {
        return Vec::new();
    }
    facts
        .links()
        // The larger of the two holds.
        .filter(|(_, link)| value("all").max(value(&link.name)) == 1)
        .map(|(uplink, link)| {
            Finding::new(
                RP_FILTER,
                &uplink.name,
                format!(
                    "rp_filter is 1, and the host's route is not by it: {}",
                    sum_up(&elsewhere)
                ),
                run([set(&format!("ipv4/conf/{}/rp_filter", link.name), "2")]),
            )
        })
        .collect()
}

/// Where a proxy is on that answers on uplinks or ports.
fn proxy(
    facts: &Facts,
    rule: &'static super::Rule,
    family: &str,
    setting: &str,
) -> Option<Finding> {
    let uplinks = facts.links().map(|(_, link)| link.name.as_str());
    let ports = facts.ports().map(|(_, link)| link.name.as_str());
    let mut places: Vec<&str> = ["all", "default"].into_iter().chain(uplinks).collect();
    places.extend(ports);
    let key = |place: &str| format!("{family}/conf/{place}/{setting}");
    places.retain(|place| is_on(facts, &key(place)));
    (!places.is_empty()).then(|| {
        Finding::new(
            rule,
            "host",
            format!("{setting} is on for {}", sum_up(&places)),
            run(places.iter().map(|place| off(key(place)))),
        )
    })
}

fn ipv6_disabled(facts: &Facts) -> Vec<Finding> {
    let machines = &facts.desired.machines;
    let mut addresses = machines.iter().flat_map(|machine| &machine.addresses);
    if !addresses.any(|prefix| matches!(prefix.addr(), IpAddr::V6(_))) {
        return Vec::new();
    }
    let key = |name: &str| format!("ipv6/conf/{name}/disable_ipv6");
    facts
        .links()
        .filter(|(_, link)| is_on(facts, &key(&link.name)))
        .map(|(uplink, link)| {
            Finding::new(
                IPV6_DISABLED,
                &uplink.name,
                "disable_ipv6 is 1",
                run([off(key(&link.name))]),
            )
        })
        .collect()
}
