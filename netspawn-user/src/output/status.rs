use std::io::{self, Write};

use jiff::Timestamp;
use serde::Serialize;

use super::{Report, cell};
use crate::revert::RevertReport;

/// An uplink in `status --json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct UplinkReport {
    /// Name, `null` when the interface is gone.
    pub name: Option<String>,
    /// ifindex.
    pub ifindex: u32,
    /// Link-layer address, lower case; `null` when the interface is gone.
    pub mac: Option<String>,
    /// `tc` or `xdp`.
    pub mode: String,
    /// Names of the programs attached to it.
    pub programs: Vec<String>,
}

/// How many machines are in each state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct MachineCounts {
    /// Served.
    pub up: usize,
    /// Without a port.
    pub waiting: usize,
    /// Port without carrier.
    pub down: usize,
    /// Lacking a prefix.
    pub conflict: usize,
}

/// The agent that runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct AgentReport {
    /// Process id.
    pub pid: u32,
    /// When it started.
    pub since: Timestamp,
    /// When it last brought the maps up to date; `null` before the first time.
    pub last_sync: Option<Timestamp>,
}

/// `status`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct StatusReport {
    /// Uplinks attached.
    pub uplinks: Vec<UplinkReport>,
    /// Machines declared.
    pub machines: MachineCounts,
    /// Prefixes that machines hold.
    pub prefixes: usize,
    /// The agent, `null` when none runs.
    pub agent: Option<AgentReport>,
    /// What undoes the last attach unless it is confirmed; `null` when nothing does.
    pub revert: Option<RevertReport>,
}

impl Report for StatusReport {
    fn cells(&self, out: &mut dyn Write) -> io::Result<()> {
        for uplink in &self.uplinks {
            writeln!(
                out,
                "uplink\t{} (ifindex {}, MAC {}, {}: {})",
                cell(uplink.name.as_ref()),
                uplink.ifindex,
                cell(uplink.mac.as_ref()),
                uplink.mode,
                uplink.programs.join(", "),
            )?;
        }
        if self.uplinks.is_empty() {
            writeln!(out, "uplink\tnone")?;
        }
        let machines = &self.machines;
        writeln!(
            out,
            "machines\t{} up, {} waiting, {} down, {} in conflict",
            machines.up, machines.waiting, machines.down, machines.conflict
        )?;
        writeln!(out, "prefixes\t{}", self.prefixes)?;
        match &self.agent {
            Some(agent) => writeln!(
                out,
                "agent\tpid {} since {}, last sync {}",
                agent.pid,
                agent.since,
                agent
                    .last_sync
                    .map_or_else(|| "not yet".to_owned(), |at| at.to_string()),
            )?,
            None => writeln!(out, "agent\tnone")?,
        }
        match &self.revert {
            Some(revert) => writeln!(out, "revert\t{}", revert.words),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> StatusReport {
        StatusReport {
            uplinks: vec![UplinkReport {
                name: Some("eth0".to_owned()),
                ifindex: 2,
                mac: Some("02:00:00:00:ee:00".to_owned()),
                mode: "tc".to_owned(),
                programs: vec!["uplink_ingress".to_owned(), "uplink_egress".to_owned()],
            }],
            machines: MachineCounts {
                up: 3,
                waiting: 1,
                ..MachineCounts::default()
            },
            prefixes: 7,
            agent: Some(AgentReport {
                pid: 42,
                since: Timestamp::from_second(1_700_000_000).unwrap(),
                last_sync: None,
            }),
            revert: None,
        }
    }

    #[test]
    fn text_is_aligned() {
        assert_eq!(
            report().render(false).unwrap(),
            "\
uplink    eth0 (ifindex 2, MAC 02:00:00:00:ee:00, tc: uplink_ingress, uplink_egress)
machines  3 up, 1 waiting, 0 down, 0 in conflict
prefixes  7
agent     pid 42 since 2023-11-14T22:13:20Z, last sync not yet
"
        );
        assert_eq!(
            StatusReport::default().render(false).unwrap(),
            "\
uplink    none
machines  0 up, 0 waiting, 0 down, 0 in conflict
prefixes  0
agent     none
"
        );
    }

    #[test]
    fn json_has_the_fields_of_the_contract() {
        let printed: serde_json::Value =
            serde_json::from_str(&report().render(true).unwrap()).unwrap();
        assert_eq!(
            printed,
            serde_json::json!({
                "uplinks": [{
                    "name": "eth0", "ifindex": 2, "mac": "02:00:00:00:ee:00", "mode": "tc",
                    "programs": ["uplink_ingress", "uplink_egress"],
                }],
                "machines": {"up": 3, "waiting": 1, "down": 0, "conflict": 0},
                "prefixes": 7,
                "agent": {"pid": 42, "since": "2023-11-14T22:13:20Z", "last_sync": null},
                "revert": null,
            })
        );
        let none: serde_json::Value =
            serde_json::from_str(&StatusReport::default().render(true).unwrap()).unwrap();
        assert_eq!(none["agent"], serde_json::Value::Null);
    }
}
