//! Declarations, and the ports of machines.

use ipnet::IpNet;

use super::{Facts, Finding, decide, guests::within, rules::*, run, subject, sum_up};
use crate::{fields, import::quoted, model::Link, registry::MachineState};

pub(super) fn findings(facts: &Facts) -> Vec<Finding> {
    let mut found = Vec::new();
    for fault in &facts.faults {
        // `PATH:LINE: what`, with a remedy behind the semicolon.
        let (subject, text) = fault.split_once(": ").unwrap_or(("declarations", fault));
        let (text, advice) = text.split_once("; ").unwrap_or((text, "correct the file"));
        found.push(Finding::new(FILE_BROKEN, subject, text, decide(advice)));
    }
    if facts.desired.machines.is_empty() && facts.faults.is_empty() {
        found.push(Finding::new(
            NO_MACHINES,
            "machines",
            "none is declared",
            decide("`netspawn-xdp add --help`, or `netspawn-xdp import` for what is there"),
        ));
    }
    found.extend(without_port(facts));
    found.extend(down(facts));
    found.extend(without_carrier(facts));
    found
}

/// A prefix as people write it.
pub(super) fn prefix_text(prefix: &IpNet) -> String {
    fields::shortest(prefix)
}

/// The machine that declares an address or a prefix around it.
pub(super) fn owner<'a>(facts: &'a Facts, prefix: &IpNet) -> Option<&'a str> {
    let machines = facts.desired.machines.iter();
    machines
        .filter(|machine| machine.addresses.iter().any(|own| own.contains(prefix)))
        .map(|machine| machine.name.as_str())
        .next()
}

fn without_port(facts: &Facts) -> Option<Finding> {
    let waiting = |machine: &&crate::registry::Machine| machine.state == MachineState::Waiting;
    let machines = facts.desired.machines.iter().filter(waiting);
    let names: Vec<&str> = machines.map(|machine| machine.name.as_str()).collect();
    (!names.is_empty()).then(|| {
        Finding::new(
            MACHINE_WITHOUT_PORT,
            subject(&names, "machines"),
            format!("declared, and without a port: {}", sum_up(&names)),
            decide("start it, or withdraw it: `netspawn-xdp remove NAME`, or delete its file"),
        )
    })
}

fn down(facts: &Facts) -> Option<Finding> {
    let ports: Vec<(&str, &Link)> = facts.ports().filter(|(_, port)| !port.admin_up).collect();
    let names: Vec<&str> = ports.iter().map(|(name, _)| *name).collect();
    let commands = ports
        .iter()
        .map(|(_, port)| format!("ip link set dev {} up", quoted(&port.name)));
    (!ports.is_empty()).then(|| {
        Finding::new(
            PORT_DOWN,
            subject(&names, "machines"),
            format!(
                "port down: {}",
                sum_up(ports.iter().map(|(_, port)| &port.name))
            ),
            run(commands),
        )
    })
}

fn without_carrier(facts: &Facts) -> Option<Finding> {
    let ports: Vec<(&str, &Link)> = facts
        .ports()
        .filter(|(_, port)| port.admin_up && !port.carrier)
        .collect();
    let names: Vec<&str> = ports.iter().map(|(name, _)| *name).collect();
    let guests = facts.guests.as_ref().map(|guests| &guests.running);
    let commands: Vec<String> = ports
        .iter()
        .filter_map(|(name, _)| guests?.get(*name))
        .filter(|guest| !guest.admin_up)
        .map(|guest| within(guest, |end| format!("ip link set dev {end} up")))
        .collect();
    let remedy = match commands.len() == ports.len() {
        true => run(commands),
        false => decide("set the machine's own interface up, in the machine"),
    };
    (!ports.is_empty()).then(|| {
        Finding::new(
            MACHINE_LINK_DOWN,
            subject(&names, "machines"),
            format!(
                "no carrier: {}",
                sum_up(ports.iter().map(|(_, port)| &port.name))
            ),
            remedy,
        )
    })
}
