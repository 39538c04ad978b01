//! What systemd-networkd does to the host's side.

use super::{Facts, Finding, facts::Networkd, rules::*, run, sum_up};

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

fn routes(facts: &Facts, networkd: &Networkd) -> Option<Finding> {
    let at_risk: Vec<String> = networkd
        .routes
        .iter()
        .filter(|route| networkd.manages_routes && networkd.managed.contains(&route.ifindex))
        .map(|route| {
            let family = if route.v4 { "IPv4" } else { "IPv6" };
            format!("{family} by {}", facts.name(route.ifindex))
        })
        .collect();
    (!at_risk.is_empty()).then(|| {
        Finding::new(
            NETWORKD_FOREIGN_ROUTES,
            "networkd",
            format!("default route not its own: {}", sum_up(&at_risk)),
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
