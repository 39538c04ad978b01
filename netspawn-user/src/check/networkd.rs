//! What systemd-networkd does to the host's side.

use super::{
    Facts, Finding, decide,
    facts::Networkd,
    machines::{owner, prefix_text},
    rules::*,
    run, sum_up,
};
use crate::source::Source;

/// The file for ports that packages bring along.
const PORT_FILE: &str = include_str!("../../../packaging/80-container-ve.network");
/// Where it goes.
const PORT_FILE_PATH: &str = "/etc/systemd/network/80-container-ve.network";
/// The drop-in that the commands write.
const DROP_INS: &str = "/etc/systemd/networkd.conf.d";

pub(super) fn findings(facts: &Facts) -> Vec<Finding> {
    let mut found = Vec::new();
    let Some(networkd) = &facts.networkd else {
        return found;
    };
    if let Some(file) = &networkd.port_file {
        found.push(Finding::new(
            NETWORKD_PORT_FILE,
            file.path.display().to_string(),
            file.assignments.join(", "),
            run([
                "mkdir -p /etc/systemd/network".to_owned(),
                write(PORT_FILE, PORT_FILE_PATH),
                "networkctl reload".to_owned(),
            ]),
        ));
    }
    found.extend(gateways(facts, networkd));
    found.extend(routes(facts, networkd));
    found.extend(rules(networkd));
    found
}

/// A command that writes a file, without its comments.
fn write(content: &str, path: &str) -> String {
    let lines = content.lines().map(str::trim);
    let words: Vec<String> = lines
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .map(|line| format!("'{line}'"))
        .collect();
    format!("printf '%s\\n' {} >{path}", words.join(" "))
}

/// Commands that have networkd leave something alone.
fn leave_alone(key: &str, file: &str) -> super::Remedy {
    run([
        format!("mkdir -p {DROP_INS}"),
        write(
            &format!("[Network]\n{key}=no"),
            &format!("{DROP_INS}/{file}.conf"),
        ),
        "systemctl restart systemd-networkd".to_owned(),
    ])
}

/// Default routes, which a file of networkd should have.
fn gateways(facts: &Facts, networkd: &Networkd) -> Vec<Finding> {
    let mut found = Vec::new();
    for route in &networkd.routes {
        let Some((ifindex, file)) = route
            .ifindex
            .and_then(|ifindex| networkd.managed.get_key_value(&ifindex))
        else {
            continue;
        };
        if route.destination.prefix_len() == 0 && facts.is_uplink(*ifindex) {
            let gateway = route.gateway.map(|gateway| gateway.to_string());
            let gateway = gateway.unwrap_or_else(|| "the gateway".to_owned());
            found.push(Finding::new(
                NETWORKD_FOREIGN_GATEWAY,
                facts.name(*ifindex),
                format!("default route via {gateway} is not networkd's"),
                decide(format!(
                    "write it into [Network] of {}: Gateway={gateway}",
                    file.display()
                )),
            ));
        }
    }
    found
}

/// Routes that declare machines.
fn routes(facts: &Facts, networkd: &Networkd) -> Option<Finding> {
    if !networkd.manages_routes || !facts.sources.contains(&Source::Kernel) {
        return None;
    }
    let is_managed = |ifindex: u32| networkd.managed.contains_key(&ifindex);
    let at_risk: Vec<String> = networkd
        .routes
        .iter()
        .filter(|route| route.ifindex.is_some_and(is_managed))
        .filter(|route| owner(facts, &route.destination).is_some())
        .map(|route| prefix_text(&route.destination))
        .collect();
    (!at_risk.is_empty()).then(|| {
        Finding::new(
            NETWORKD_FOREIGN_ROUTES,
            "networkd",
            format!("not its own, and of machines: {}", sum_up(&at_risk)),
            leave_alone("ManageForeignRoutes", "netspawn-routes"),
        )
    })
}

fn rules(networkd: &Networkd) -> Option<Finding> {
    (networkd.manages_rules && !networkd.rules.is_empty()).then(|| {
        let preferences = networkd.rules.iter().map(u32::to_string);
        Finding::new(
            NETWORKD_FOREIGN_RULES,
            "networkd",
            format!("rules of preference {}", sum_up(preferences)),
            leave_alone("ManageForeignRoutingPolicyRules", "netspawn-rules"),
        )
    })
}
