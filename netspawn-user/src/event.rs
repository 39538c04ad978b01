//! What happens, as the agent tells it to those who follow it: one object a
//! line on its socket, and in `monitor --json`.

use std::{borrow::Cow, fmt, net::IpAddr};

use jiff::Timestamp;
use netspawn_ebpf::verdict::Reason;
use serde::{Deserialize, Serialize};

use crate::{datapath::events::Report, model::DisplayMac, registry::Conflict};

/// What an event is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// A machine sent from an address that is not its own.
    Spoof,
    /// A machine played router or DHCP server.
    Rogue,
    /// A station on the network uses a machine's address.
    Conflict,
    /// Frames were dropped: `count` since the last such event of the same
    /// machine and reason, which are a second apart.
    Drop,
    /// A machine's `state` or its `conflicts` changed.
    Machine,
    /// An uplink was attached or detached.
    Uplink,
    /// Addresses are announced on an uplink: `count` of them, for a `cause`.
    Announce,
    /// `count` events did not reach this reader, which was too slow.
    Lost,
    /// The agent ends; its `message` says why.
    End,
}

impl Kind {
    /// The name in lines and JSON.
    pub const fn name(self) -> &'static str {
        match self {
            Kind::Spoof => "spoof",
            Kind::Rogue => "rogue",
            Kind::Conflict => "conflict",
            Kind::Drop => "drop",
            Kind::Machine => "machine",
            Kind::Uplink => "uplink",
            Kind::Announce => "announce",
            Kind::Lost => "lost",
            Kind::End => "end",
        }
    }

    /// What a report with this reason is.
    const fn of(reason: Reason) -> Self {
        match reason {
            Reason::AddressConflict => Kind::Conflict,
            Reason::RogueRouter | Reason::RogueDhcp => Kind::Rogue,
            Reason::SpoofedSource | Reason::SpoofedMac => Kind::Spoof,
            _ => Kind::Drop,
        }
    }
}

/// A word that the agent knows, and that is read again at the other end.
type Word = Cow<'static, str>;

/// Something that happened. What many kinds have is always there, and `null`
/// where it is unknown; what few have is left out elsewhere.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// When.
    pub time: Timestamp,
    /// What.
    pub kind: Kind,
    /// The machine that it concerns; of a conflict, the one whose address it is.
    pub machine: Option<String>,
    /// The machine's port, or the uplink.
    pub interface: Option<String>,
    /// A name of [`Reason`].
    pub reason: Option<Word>,
    /// Link-layer address that frames came from.
    pub mac: Option<String>,
    /// The address that was claimed, or is defended.
    pub address: Option<IpAddr>,
    /// `up`, `waiting`, `down`, `conflict` or `gone`; of an uplink `attached`,
    /// `detached` or `gone`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<Word>,
    /// `tc` or `xdp`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<Word>,
    /// Why addresses are announced: `attached`, `mac`, `carrier`, `address` (new
    /// ones) or `conflict`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cause: Option<Word>,
    /// How many frames, addresses or events.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub count: Option<u64>,
    /// Prefixes that the machine declares and others hold.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub conflicts: Vec<Conflict>,
    /// Why the agent ends.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
}

impl Event {
    /// An event of now, about nothing yet.
    pub fn new(kind: Kind) -> Self {
        Event {
            time: Timestamp::now(),
            kind,
            machine: None,
            interface: None,
            reason: None,
            mac: None,
            address: None,
            state: None,
            mode: None,
            cause: None,
            count: None,
            conflicts: Vec::new(),
            message: None,
        }
    }

    /// What the programs report. Who sent it has a name for the agent alone.
    pub fn reported(report: &Report, machine: Option<String>, interface: Option<String>) -> Self {
        Event {
            machine,
            interface,
            reason: Some(report.reason.name().into()),
            mac: Some(DisplayMac(report.mac).to_string()),
            address: report.address,
            ..Event::new(Kind::of(report.reason))
        }
    }

    /// What happened, without when and to whom.
    pub fn words(&self) -> String {
        let or_unknown = |text: &Option<Word>| text.as_deref().unwrap_or("?").to_owned();
        let mac = self.mac.as_deref().unwrap_or("?");
        let count = self.count.unwrap_or_default();
        match (self.kind, self.address) {
            (Kind::Conflict, Some(address)) => {
                format!("{mac} on the network uses its address {address}")
            }
            (Kind::Rogue, _) if self.reason.as_deref() == Some(Reason::RogueDhcp.name()) => {
                format!("plays DHCP server (from {mac})")
            }
            (Kind::Rogue, _) => format!("plays router (from {mac})"),
            (Kind::Spoof, _) if self.reason.as_deref() == Some(Reason::SpoofedMac.name()) => {
                format!("sends from {mac}, which is not its own")
            }
            (Kind::Spoof, Some(address)) => {
                format!("sends from {address}, which is not its own (from {mac})")
            }
            (Kind::Conflict | Kind::Spoof, None) => {
                format!("{} (from {mac})", or_unknown(&self.reason))
            }
            (Kind::Drop, _) => format!("{} dropped: {}", frames(count), or_unknown(&self.reason)),
            (Kind::Machine, _) => {
                let held = self
                    .conflicts
                    .iter()
                    .map(|conflict| format!("{} is held by {}", conflict.prefix, conflict.holder));
                let held: Vec<_> = held.collect();
                match held.is_empty() {
                    true => or_unknown(&self.state),
                    false => format!("{}: {}", or_unknown(&self.state), held.join(", ")),
                }
            }
            (Kind::Uplink, _) => match &self.mode {
                Some(mode) => format!("{} ({mode})", or_unknown(&self.state)),
                None => or_unknown(&self.state),
            },
            (Kind::Announce, Some(address)) => format!(
                "announces {address}, which {} uses",
                self.mac.as_deref().unwrap_or("another station")
            ),
            (Kind::Announce, None) => {
                let why = match self.cause.as_deref() {
                    Some("attached") => "it is attached",
                    Some("mac") => "its MAC is another",
                    Some("carrier") => "it has carrier again",
                    _ => "they are new",
                };
                let plural = if count == 1 { "" } else { "es" };
                format!("announces {count} address{plural}: {why}")
            }
            (Kind::Lost, _) => format!("{count} events are lost: this reader is too slow"),
            (Kind::End, _) => self.message.clone().unwrap_or_default(),
        }
    }
}

fn frames(count: u64) -> String {
    match count {
        1 => "1 frame".to_owned(),
        _ => format!("{count} frames"),
    }
}

impl fmt::Display for Event {
    /// The line for people: time, kind, machine, interface, and what happened.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}  {:<8}  {:<12}  {:<10}  {}",
            self.time.strftime("%Y-%m-%dT%H:%M:%S%.3fZ"),
            self.kind.name(),
            self.machine.as_deref().unwrap_or("-"),
            self.interface.as_deref().unwrap_or("-"),
            self.words()
        )
    }
}

/// Which events somebody wants to see: all, unless names are given.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Filter {
    /// Machines by name.
    #[serde(default)]
    pub machines: Vec<String>,
    /// Names of [`Reason`].
    #[serde(default)]
    pub reasons: Vec<String>,
}

impl Filter {
    /// Whether an event is wanted. What the stream says of itself always is.
    pub fn passes(&self, event: &Event) -> bool {
        let among = |names: &[String], name: Option<&str>| {
            names.is_empty() || name.is_some_and(|name| names.iter().any(|known| known == name))
        };
        matches!(event.kind, Kind::Lost | Kind::End)
            || among(&self.machines, event.machine.as_deref())
                && among(&self.reasons, event.reason.as_deref())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(event: Event) -> String {
        Event {
            time: "2026-01-02T03:04:05.678901Z".parse().unwrap(),
            ..event
        }
        .to_string()
    }

    fn spoof(machine: &str, reason: Reason) -> Event {
        let report = Report {
            time: std::time::Duration::ZERO,
            reason,
            endpoint: 7,
            ifindex: 3,
            mac: [2, 0, 0, 0, 0, 9],
            address: "203.0.113.3".parse().ok(),
        };
        Event::reported(&report, Some(machine.to_owned()), Some("ve-web".to_owned()))
    }

    #[test]
    fn lines_are_aligned_and_say_what_happened() {
        assert_eq!(
            line(spoof("web", Reason::SpoofedSource)),
            "2026-01-02T03:04:05.678Z  spoof     web           ve-web      \
             sends from 203.0.113.3, which is not its own (from 02:00:00:00:00:09)"
        );
        assert_eq!(
            line(Event {
                machine: Some("web".to_owned()),
                state: Some("conflict".into()),
                conflicts: vec![Conflict {
                    prefix: "203.0.113.2/32".parse().unwrap(),
                    holder: "db".to_owned(),
                }],
                ..Event::new(Kind::Machine)
            }),
            "2026-01-02T03:04:05.678Z  machine   web           -           \
             conflict: 203.0.113.2/32 is held by db"
        );
        assert_eq!(
            line(Event {
                interface: Some("eth0".to_owned()),
                cause: Some("attached".into()),
                count: Some(1),
                ..Event::new(Kind::Announce)
            }),
            "2026-01-02T03:04:05.678Z  announce  -             eth0        \
             announces 1 address: it is attached"
        );
    }

    #[test]
    fn objects_have_what_is_common_and_null_for_the_unknown() {
        let event = Event {
            time: "2026-01-02T03:04:05.678Z".parse().unwrap(),
            reason: Some(Reason::UnknownPort.name().into()),
            count: Some(3),
            ..Event::new(Kind::Drop)
        };
        let text = serde_json::to_string(&event).unwrap();
        assert_eq!(
            text,
            r#"{"time":"2026-01-02T03:04:05.678Z","kind":"drop","machine":null,"interface":null,"reason":"unknown_port","mac":null,"address":null,"count":3}"#
        );
        assert_eq!(serde_json::from_str::<Event>(&text).unwrap(), event);
    }

    #[test]
    fn filters_pass_what_is_named_and_what_the_stream_says_of_itself() {
        let filter = Filter {
            machines: vec!["web".to_owned()],
            reasons: vec!["spoofed_mac".to_owned()],
        };
        assert!(filter.passes(&spoof("web", Reason::SpoofedMac)));
        assert!(!filter.passes(&spoof("db", Reason::SpoofedMac)));
        assert!(!filter.passes(&spoof("web", Reason::SpoofedSource)));
        assert!(!filter.passes(&Event::new(Kind::Machine)));
        assert!(filter.passes(&Event::new(Kind::Lost)));
        assert!(Filter::default().passes(&Event::new(Kind::Machine)));
    }
}
