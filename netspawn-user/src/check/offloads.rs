//! Offloads of the uplinks and of the machines' ends.

use super::{Facts, Finding, guests::within, rules::*, run, subject, sum_up};
use crate::import::quoted;

pub(super) fn findings(facts: &Facts) -> Vec<Finding> {
    let mut found = Vec::new();
    for (uplink, link) in facts.links() {
        let Some(features) = &uplink.features else {
            continue;
        };
        let name = quoted(&link.name);
        let mut add = |rule, text: &str, switch: &str| {
            let command = format!("ethtool -K {name} {switch}");
            found.push(Finding::new(rule, &uplink.name, text, run([command])));
        };
        if features.active.contains("rx-lro") {
            add(LRO_ON, "LRO is on", "lro off");
        }
        // A veth has GRO off by itself, as its other end hands whole segments over.
        let veth = link.kind.as_deref() == Some("veth");
        if features.is_switched_off("rx-gro") && !veth {
            add(GRO_OFF, "GRO is off", "gro on");
        }
        if features.is_switched_off("tx-tcp-segmentation") {
            add(TSO_OFF, "TSO is off", "tso on");
        }
    }
    if facts.uplinks.iter().any(|uplink| uplink.xdp) {
        found.extend(machines(facts));
    }
    found
}

fn machines(facts: &Facts) -> Option<Finding> {
    let running = facts.guests.as_ref()?.running.iter();
    let off: Vec<_> = running
        .filter(|(_, guest)| guest.gro == Some(false))
        .collect();
    let names: Vec<&str> = off.iter().map(|(name, _)| name.as_str()).collect();
    let command = |guest| within(guest, |end| format!("ethtool -K {end} gro on"));
    (!off.is_empty()).then(|| {
        Finding::new(
            MACHINE_GRO_OFF,
            subject(&names, "machines"),
            format!("GRO is off at the ends of {}", sum_up(&names)),
            run(off.iter().map(|(_, guest)| command(guest))),
        )
    })
}
