use std::io::{self, Write};

use console::style;
use jiff::Timestamp;
use serde::Serialize;

use super::{Report, cell, time, wrap};
use crate::{
    mismatch::{Mismatch, attach},
    revert::RevertReport,
};

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

/// The port of a machine that nothing leaves.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ClosedPort {
    /// Name.
    pub interface: Option<String>,
    /// ifindex.
    pub ifindex: u32,
    /// The machine that it is declared for.
    pub machine: String,
    /// Why it is closed.
    pub reason: String,
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
    /// Ports that nothing leaves, because their machines cannot be served.
    pub closed: Vec<ClosedPort>,
    /// Prefixes that machines hold.
    pub prefixes: usize,
    /// The agent, `null` when none runs.
    pub agent: Option<AgentReport>,
    /// Where what is in place differs from what is declared.
    pub mismatches: Vec<Mismatch>,
    /// What undoes the last attach unless it is confirmed; `null` when nothing does.
    pub revert: Option<RevertReport>,
    /// The uplink to propose where none is attached.
    #[serde(skip)]
    pub proposal: Option<String>,
}

/// More mismatches than this find no room on a terminal.
const SHOWN: usize = 12;

impl StatusReport {
    /// Whether all is well, and what to do if not.
    fn verdict(&self) -> (Verdict, String) {
        if self.uplinks.is_empty() {
            let uplink = self.proposal.as_deref().unwrap_or("UPLINK");
            let attach = format!("`netspawn-xdp attach {uplink}`");
            return (
                Verdict::Off,
                format!("off: nothing is attached, no machine is served; attach with {attach}"),
            );
        }
        match self.mismatches.len() {
            0 => {
                let machines = &self.machines;
                let all = machines.up + machines.waiting + machines.down + machines.conflict;
                let uplinks: Vec<String> = self
                    .uplinks
                    .iter()
                    .map(|uplink| format!("{} ({})", cell(uplink.name.as_ref()), uplink.mode))
                    .collect();
                let (up, on) = (machines.up, uplinks.join(", "));
                (
                    Verdict::Ok,
                    format!("ok: {up} of {all} machines up on {on}"),
                )
            }
            1 => (Verdict::NotOk, "NOT OK: 1 mismatch, see below".to_owned()),
            many => (
                Verdict::NotOk,
                format!("NOT OK: {many} mismatches, see below"),
            ),
        }
    }

    fn write(&self, out: &mut dyn Write, columns: Option<usize>) -> io::Result<()> {
        let mut line = |head: &str, text: &str| match columns {
            Some(columns) => write!(out, "{}", wrap(&format!("{head:8}  "), text, columns)),
            None => writeln!(out, "{head:8}  {text}"),
        };
        let (verdict, text) = self.verdict();
        let text = match columns {
            // The word is enough; on a terminal it is coloured as well.
            Some(_) => match text.split_once(':') {
                Some((word, rest)) => format!("{}:{rest}", verdict.style(word)),
                None => text,
            },
            None => text,
        };
        line("status", &text)?;
        for uplink in &self.uplinks {
            let programs = match uplink.programs.as_slice() {
                [] => "no programs".to_owned(),
                programs => programs.join(", "),
            };
            let (name, mac) = (cell(uplink.name.as_ref()), cell(uplink.mac.as_ref()));
            line(
                "uplink",
                &format!("{name}: {} ({programs}), MAC {mac}", uplink.mode),
            )?;
        }
        if self.uplinks.is_empty() {
            line("uplink", "none")?;
        }
        let MachineCounts {
            up,
            waiting,
            down,
            conflict,
        } = self.machines;
        line(
            "machines",
            &format!("{up} up, {waiting} waiting, {down} down, {conflict} in conflict"),
        )?;
        let shown = match columns {
            Some(_) => SHOWN,
            None => usize::MAX,
        };
        for port in self.closed.iter().take(shown) {
            let (name, machine) = (cell(port.interface.as_ref()), &port.machine);
            line(
                "closed",
                &format!("{name} of machine {machine}: {}", port.reason),
            )?;
        }
        if self.closed.len() > shown {
            let more = self.closed.len() - shown;
            line(
                "",
                &format!("and {more} more; `netspawn-xdp status | less` shows them"),
            )?;
        }
        line("prefixes", &self.prefixes.to_string())?;
        match &self.agent {
            Some(agent) => line(
                "agent",
                &format!(
                    "pid {} since {}, last sync {}",
                    agent.pid,
                    time(agent.since),
                    agent.last_sync.map_or_else(|| "not yet".to_owned(), time),
                ),
            )?,
            None if self.uplinks.is_empty() => line("agent", "none")?,
            None => {
                let uplinks = self.uplinks.iter();
                let attach = attach(uplinks.map(|uplink| {
                    let name = uplink.name.as_deref().unwrap_or("-");
                    (name, &*uplink.mode)
                }));
                line(
                    "agent",
                    &format!("none: changes are not followed; `{attach}` does"),
                )?;
            }
        }
        if let Some(revert) = &self.revert {
            line("revert", &revert.words)?;
        }
        for mismatch in self.mismatches.iter().take(shown) {
            let who = mismatch.machine.as_ref().or(mismatch.interface.as_ref());
            let who = who.map_or_else(String::new, |who| format!("{who}: "));
            line("mismatch", &format!("{who}{}", mismatch.reason))?;
            let since = mismatch.since.map_or_else(|| "unknown".to_owned(), time);
            let remedy = mismatch.remedy.as_ref();
            let remedy = remedy.map_or_else(String::new, |remedy| format!("; do: {remedy}"));
            line("", &format!("since: {since}{remedy}"))?;
        }
        if self.mismatches.len() > shown {
            let more = self.mismatches.len() - shown;
            line(
                "",
                &format!("and {more} more; `netspawn-xdp status | less` shows them"),
            )?;
        }
        Ok(())
    }
}

/// The first line in a word.
#[derive(Clone, Copy)]
enum Verdict {
    Ok,
    NotOk,
    Off,
}

impl Verdict {
    fn style(self, word: &str) -> String {
        let word = style(word).bold();
        match self {
            Verdict::Ok => word.green(),
            Verdict::NotOk => word.red(),
            Verdict::Off => word.yellow(),
        }
        .to_string()
    }
}

impl Report for StatusReport {
    fn cells(&self, out: &mut dyn Write) -> io::Result<()> {
        self.write(out, None)
    }

    fn screen(&self, columns: usize) -> anyhow::Result<String> {
        let mut out = Vec::new();
        self.write(&mut out, Some(columns))?;
        Ok(String::from_utf8(out)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mismatch::Kind;

    fn report() -> StatusReport {
        StatusReport {
            uplinks: vec![UplinkReport {
                name: Some("eth0".to_owned()),
                ifindex: 2,
                mac: Some("02:00:00:00:ee:00".to_owned()),
                mode: "tc".to_owned(),
                programs: vec!["uplink_ingress".to_owned(), "uplink_egress".to_owned()],
            }],
            closed: Vec::new(),
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
            mismatches: Vec::new(),
            proposal: None,
            revert: None,
        }
    }

    fn mismatch() -> Mismatch {
        Mismatch {
            kind: Kind::Missing,
            machine: Some("web".to_owned()),
            prefixes: vec!["203.0.113.2/32".parse().unwrap()],
            interface: Some("ve-web".to_owned()),
            reason: "declared, and not in the maps: 203.0.113.2/32 (no agent runs, which would \
                     apply it)"
                .to_owned(),
            since: None,
            remedy: Some("netspawn-xdp attach eth0".to_owned()),
        }
    }

    #[test]
    fn first_line_says_whether_all_is_well() {
        assert_eq!(
            report().render(false).unwrap(),
            "\
status    ok: 3 of 4 machines up on eth0 (tc)
uplink    eth0: tc (uplink_ingress, uplink_egress), MAC 02:00:00:00:ee:00
machines  3 up, 1 waiting, 0 down, 0 in conflict
prefixes  7
agent     pid 42 since 2023-11-14T22:13:20Z, last sync not yet
"
        );
        assert_eq!(
            StatusReport::default().render(false).unwrap(),
            "\
status    off: nothing is attached, no machine is served; attach with `netspawn-xdp attach UPLINK`
uplink    none
machines  0 up, 0 waiting, 0 down, 0 in conflict
prefixes  0
agent     none
"
        );
    }

    #[test]
    fn mismatches_are_told_with_what_to_do() {
        let report = StatusReport {
            agent: None,
            mismatches: vec![mismatch()],
            ..report()
        };
        assert_eq!(
            report.screen(80).unwrap(),
            "\
status    NOT OK: 1 mismatch, see below
uplink    eth0: tc (uplink_ingress, uplink_egress), MAC 02:00:00:00:ee:00
machines  3 up, 1 waiting, 0 down, 0 in conflict
prefixes  7
agent     none: changes are not followed; `netspawn-xdp attach eth0` does
mismatch  web: declared, and not in the maps: 203.0.113.2/32 (no agent runs,
          which would apply it)
          since: unknown; do: netspawn-xdp attach eth0
"
        );
        let many = StatusReport {
            mismatches: vec![mismatch(); 20],
            ..report
        };
        assert!(
            many.screen(80)
                .unwrap()
                .ends_with("          and 8 more; `netspawn-xdp status | less` shows them\n")
        );
        assert_eq!(many.render(false).unwrap().matches("mismatch ").count(), 20);
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
                "closed": [],
                "prefixes": 7,
                "agent": {"pid": 42, "since": "2023-11-14T22:13:20Z", "last_sync": null},
                "mismatches": [],
                "revert": null,
            })
        );
        assert_eq!(
            serde_json::to_value(mismatch()).unwrap(),
            serde_json::json!({
                "kind": "missing", "machine": "web", "prefixes": ["203.0.113.2/32"],
                "interface": "ve-web", "reason": mismatch().reason, "since": null,
                "remedy": "netspawn-xdp attach eth0",
            })
        );
        let none: serde_json::Value =
            serde_json::from_str(&StatusReport::default().render(true).unwrap()).unwrap();
        assert_eq!(none["agent"], serde_json::Value::Null);
    }
}
