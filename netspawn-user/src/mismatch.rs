//! Where what is in place differs from what is declared, why, since when, and
//! what to do. Pure: from one view of both.

use std::{collections::BTreeMap, path::Path};

use ipnet::IpNet;
use jiff::Timestamp;
use netspawn_ebpf::abi::{EndpointEntry, endpoint_flag};
use serde::Serialize;

use crate::{
    commands::View, control::Trouble, model::DisplayMac, plan, problem::Problem, registry::Desired,
    source::Snapshot,
};

/// What differs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// An uplink lacks programs.
    Uplink,
    /// A port's guard is missing, or not the first to see packets.
    Guard,
    /// The agent cannot do something.
    Agent,
    /// Declared, and not in the maps.
    Missing,
    /// In the maps otherwise than it is declared.
    Differs,
    /// In the maps, and no longer declared.
    Withdrawn,
    /// A declaration that cannot be used, or not all of it.
    Declaration,
}

impl Kind {
    /// Whether a running agent is likely to put it right in a moment.
    pub const fn may_pass(self) -> bool {
        !matches!(self, Kind::Agent | Kind::Declaration)
    }
}

/// One difference.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Mismatch {
    /// What differs.
    pub kind: Kind,
    /// The machine, where it is one's.
    pub machine: Option<String>,
    /// The prefixes, where it is about some.
    pub prefixes: Vec<IpNet>,
    /// The port or uplink, where it is about one.
    pub interface: Option<String>,
    /// What is wrong, and why.
    pub reason: String,
    /// Since when; `null` when nobody knows.
    pub since: Option<Timestamp>,
    /// What to do; `null` when it is put right without help.
    pub remedy: Option<String>,
}

/// All differences, those that concern all machines first.
pub fn find(snapshot: &Snapshot, view: &View, desired: &Desired) -> Vec<Mismatch> {
    let mut finder = Finder {
        snapshot,
        view,
        desired,
        told: Vec::new(),
        found: Vec::new(),
    };
    finder.declarations();
    if !view.uplinks.is_empty() {
        finder.uplinks();
        finder.guards();
        finder.maps();
    }
    finder.agent();
    finder.found.sort_by(|a, b| {
        let order = |m: &Mismatch| (m.kind, m.machine.clone());
        order(a).cmp(&order(b))
    });
    finder.found
}

struct Finder<'a> {
    snapshot: &'a Snapshot,
    view: &'a View,
    desired: &'a Desired,
    /// Those of the agent's troubles that are accounted for.
    told: Vec<&'a Trouble>,
    found: Vec<Mismatch>,
}

impl<'a> Finder<'a> {
    /// Files that cannot be used, and what of them cannot be done.
    fn declarations(&mut self) {
        let problems = self.snapshot.problems.iter().chain(&self.desired.problems);
        let mut machines: BTreeMap<&Path, &str> = BTreeMap::new();
        for declaration in self.snapshot.declarations.values() {
            machines.insert(&declaration.path, &declaration.name);
        }
        for (name, (_, path)) in &self.snapshot.unusable {
            machines.insert(path, name);
        }
        for problem in problems {
            let text = problem.to_string();
            let known = self.view.troubles.iter().find(|known| known.text == text);
            self.told.extend(known);
            let remedy = Some(&problem.fault.remedy).filter(|remedy| !remedy.is_empty());
            self.found.push(Mismatch {
                kind: Kind::Declaration,
                machine: machines
                    .get(problem.path.as_path())
                    .filter(|_| !problem.path.as_os_str().is_empty())
                    .map(|name| (*name).to_owned()),
                prefixes: Vec::new(),
                interface: None,
                reason: without_remedy(problem),
                since: known.map(|known| known.since),
                remedy: remedy.cloned(),
            });
        }
    }

    fn uplinks(&mut self) {
        for uplink in &self.view.uplinks {
            if uplink.gone {
                let reason = format!("interface {} is gone", uplink.name);
                let remedy = match &self.view.agent {
                    Some(_) => "make it again; the agent attaches it then".to_owned(),
                    None => format!("netspawn-xdp detach {}", uplink.name),
                };
                self.push(Kind::Uplink, &uplink.name, reason, Some(remedy));
            } else if !uplink.missing.is_empty() {
                let reason = format!("somebody has detached {}", uplink.missing.join(" and "));
                let remedy = self.by_agent();
                self.push(Kind::Uplink, &uplink.name, reason, remedy);
            }
        }
    }

    fn guards(&mut self) {
        for (ifindex, why) in &self.view.unguarded {
            let links = &self.view.host.links;
            let name = links.get(ifindex).map_or("?", |link| &link.name);
            let remedy = self.by_agent();
            self.push(Kind::Guard, name, (*why).to_owned(), remedy);
            let held = self.view.held.ports.get(ifindex);
            let entry = held.and_then(|id| self.view.held.endpoints.get(id));
            if let (Some(entry), Some(found)) = (entry, self.found.last_mut()) {
                found.machine = Some(plan::text(&entry.name));
            }
        }
    }

    fn maps(&mut self) {
        let (held, wanted) = (&self.view.held, &self.desired.state);
        let mut ids: BTreeMap<String, u32> = BTreeMap::new();
        for (id, entry) in &held.endpoints {
            ids.insert(plan::text(&entry.name), *id);
        }
        let mut missing: BTreeMap<u32, Vec<IpNet>> = BTreeMap::new();
        let mut others: BTreeMap<(u32, u32), Vec<IpNet>> = BTreeMap::new();
        for (prefix, id) in &wanted.addresses {
            match held.addresses.get(prefix) {
                Some(owner) if owner == id => {}
                Some(owner) => others.entry((*id, *owner)).or_default().push(*prefix),
                None => missing.entry(*id).or_default().push(*prefix),
            }
        }
        for machine in &self.desired.machines {
            let Some(id) = machine.endpoint else {
                continue;
            };
            let interface = machine.interface.as_deref();
            let lacks = missing.remove(&id).unwrap_or_default();
            let Some(entry) = ids.get(&machine.name).and_then(|id| held.endpoints.get(id)) else {
                let reason = "it is declared, and not in the maps";
                self.differs(Kind::Missing, &machine.name, lacks, interface, reason);
                continue;
            };
            if !lacks.is_empty() {
                let reason = format!("declared, and not in the maps: {}", brief(&lacks));
                self.differs(Kind::Missing, &machine.name, lacks, interface, &reason);
            }
            let differences = differences(entry, &wanted.endpoints[&id]);
            if !differences.is_empty() {
                let reason = differences.join(", ");
                self.differs(Kind::Differs, &machine.name, Vec::new(), interface, &reason);
            }
        }
        for ((id, owner), prefixes) in others {
            let name = |id| held.endpoints.get(&id).map(|entry| plan::text(&entry.name));
            let machine = wanted.endpoints.get(&id);
            let machine = machine.map_or_else(|| "host".to_owned(), |e| plan::text(&e.name));
            let owner = name(owner).unwrap_or_else(|| "the host".to_owned());
            let reason = format!("the maps have {} for {owner}", brief(&prefixes));
            self.differs(Kind::Differs, &machine, prefixes, None, &reason);
        }
        let mut withdrawn: BTreeMap<u32, Vec<IpNet>> = BTreeMap::new();
        for (prefix, owner) in &held.addresses {
            if !wanted.addresses.contains_key(prefix) {
                withdrawn.entry(*owner).or_default().push(*prefix);
            }
        }
        let declared = |name: &str| self.desired.machines.iter().any(|m| m.name == name);
        let gone: Vec<(u32, String)> = ids
            .into_iter()
            .filter(|(name, id)| withdrawn.contains_key(id) || !declared(name))
            .map(|(name, id)| (id, name))
            .collect();
        for (id, name) in gone {
            let prefixes = withdrawn.remove(&id).unwrap_or_default();
            let reason = if declared(&name) {
                format!(
                    "no longer declared, and still in the maps: {}",
                    brief(&prefixes)
                )
            } else {
                "it is no longer declared, and still in the maps".to_owned()
            };
            self.differs(Kind::Withdrawn, &name, prefixes, None, &reason);
        }
    }

    /// What the agent says and nothing found here accounts for.
    fn agent(&mut self) {
        for trouble in &self.view.troubles {
            if self.told.contains(&trouble) {
                continue;
            }
            self.found.push(Mismatch {
                kind: Kind::Agent,
                machine: None,
                prefixes: Vec::new(),
                interface: None,
                reason: trouble.text.clone(),
                since: Some(trouble.since),
                remedy: None,
            });
        }
    }

    /// The maps have something otherwise than it is declared.
    fn differs(
        &mut self,
        kind: Kind,
        machine: &str,
        prefixes: Vec<IpNet>,
        interface: Option<&str>,
        what: &str,
    ) {
        // What the agent says of the port is why.
        let of_port = interface.and_then(|name| {
            let says = |trouble: &&Trouble| {
                let rest = trouble.text.strip_prefix(name);
                rest.is_some_and(|rest| rest.starts_with(": "))
            };
            self.view.troubles.iter().find(says)
        });
        self.told.extend(of_port);
        let reason = match (of_port, &self.view.agent) {
            (Some(trouble), _) => format!("{what} ({})", trouble.text),
            (None, Some(_)) => what.to_owned(),
            (None, None) => format!("{what} (no agent runs, which would apply it)"),
        };
        let remedy = match of_port {
            Some(_) => None,
            None => self.by_agent(),
        };
        self.found.push(Mismatch {
            kind,
            machine: Some(machine.to_owned()),
            prefixes,
            interface: interface.map(str::to_owned),
            reason,
            since: of_port.map(|trouble| trouble.since),
            remedy,
        });
    }

    fn push(&mut self, kind: Kind, interface: &str, reason: String, remedy: Option<String>) {
        self.found.push(Mismatch {
            kind,
            machine: None,
            prefixes: Vec::new(),
            interface: Some(interface.to_owned()),
            reason,
            since: None,
            remedy,
        });
    }

    /// The agent looks at everything every 30 s; without one, an attach does.
    fn by_agent(&self) -> Option<String> {
        match &self.view.agent {
            Some(_) => Some("the agent puts it right within 30 s; else see its log".to_owned()),
            None => {
                let uplinks = self.view.uplinks.iter();
                Some(attach(uplinks.map(|uplink| (&*uplink.name, &*uplink.mode))))
            }
        }
    }
}

/// The command that attaches uplinks, given with their modes, again.
pub fn attach<'a>(uplinks: impl Iterator<Item = (&'a str, &'a str)>) -> String {
    let (names, modes): (Vec<&str>, Vec<&str>) = uplinks.unzip();
    let mode = if modes.contains(&"xdp") {
        " --mode xdp"
    } else {
        ""
    };
    format!("netspawn-xdp attach {}{mode}", names.join(" "))
}

/// Place and fault.
fn without_remedy(problem: &Problem) -> String {
    let mut problem = problem.clone();
    problem.fault.remedy.clear();
    problem.to_string()
}

/// The first of several prefixes.
fn brief(prefixes: &[IpNet]) -> String {
    match prefixes {
        [] => String::new(),
        [one] => one.to_string(),
        [first, rest @ ..] => format!("{first} and {} more", rest.len()),
    }
}

/// How an entry of the maps differs from what it should be.
fn differences(held: &EndpointEntry, wanted: &EndpointEntry) -> Vec<String> {
    let (ours, theirs) = (&held.forward, &wanted.forward);
    let mut found = Vec::new();
    if ours.ifindex != theirs.ifindex {
        found.push(match (ours.ifindex, theirs.ifindex) {
            (0, _) => "its port is there, and not in the maps".to_owned(),
            (_, 0) => "the maps have a port for it that is gone".to_owned(),
            (ours, theirs) => format!("its port has ifindex {theirs}, in the maps {ours}"),
        });
    } else if (ours.flags ^ theirs.flags) & endpoint_flag::UP != 0 {
        found.push(if theirs.flags & endpoint_flag::UP != 0 {
            "its port has carrier, and is down in the maps".to_owned()
        } else {
            "its port has no carrier, and is up in the maps".to_owned()
        });
    }
    if ours.mac != theirs.mac && theirs.mac != [0; 6] {
        let (ours, theirs) = (DisplayMac(ours.mac), DisplayMac(theirs.mac));
        found.push(format!("its MAC is {theirs}, in the maps {ours}"));
    }
    for (differs, what) in [
        (held.tenant != wanted.tenant, "tenant"),
        (ours.vlan != theirs.vlan, "VLAN"),
        (ours.mtu != theirs.mtu, "MTU"),
        (
            (ours.flags ^ theirs.flags) & (endpoint_flag::ANY_MAC | endpoint_flag::SOURCES) != 0,
            "permission to send",
        ),
    ] {
        if differs {
            found.push(format!("the maps have another {what} for it"));
        }
    }
    found
}
