//! What one source says of machines, and how several are laid over each other.

use std::{collections::BTreeMap, path::PathBuf};

use ipnet::IpNet;
use netspawn_ebpf::wire::Mac;

use super::Snapshot;
use crate::{
    model::{Declaration, SourceKind},
    problem::{Fault, Problem},
};

/// What a declaration says, as far as it says it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Keys {
    /// Port.
    pub interface: Option<String>,
    /// Prefixes without host bits, in the order given, no duplicates.
    pub addresses: Option<Vec<IpNet>>,
    /// Tenant, never empty.
    pub tenant: Option<String>,
    /// Link-layer address of the machine's end.
    pub mac: Option<Mac>,
    /// 802.1Q id on the uplink, 1 to 4094.
    pub vlan: Option<u16>,
    /// Whether it may send from any link-layer address.
    pub any_mac: Option<bool>,
    /// Prefixes that it may send from without owning them.
    pub sources: Option<Vec<IpNet>>,
}

impl Keys {
    /// These keys, and the others' where these are silent.
    pub fn over(self, other: Keys) -> Keys {
        Keys {
            interface: self.interface.or(other.interface),
            addresses: self.addresses.or(other.addresses),
            tenant: self.tenant.or(other.tenant),
            mac: self.mac.or(other.mac),
            vlan: self.vlan.or(other.vlan),
            any_mac: self.any_mac.or(other.any_mac),
            sources: self.sources.or(other.sources),
        }
    }
}

/// What one source says of one machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layer {
    /// The source.
    pub kind: SourceKind,
    /// The file, for messages; empty where there is none.
    pub path: PathBuf,
    /// What it says.
    pub keys: Keys,
}

/// Everything that sources say, before it is laid over each other.
#[derive(Clone, Debug, Default)]
pub struct Layers {
    machines: BTreeMap<String, Vec<Layer>>,
    unusable: BTreeMap<String, (SourceKind, PathBuf)>,
    unlisted: Option<(SourceKind, PathBuf)>,
    problems: Vec<Problem>,
}

impl Layers {
    /// Adds what a source says of a machine.
    pub fn add(&mut self, name: String, layer: Layer) {
        self.machines.entry(name).or_default().push(layer);
    }

    /// Whether a source of that rank names a machine.
    pub fn names(&self, name: &str, kind: SourceKind) -> bool {
        let unusable = self.unusable.get(name).map(|(kind, _)| *kind);
        let named = self.machines.get(name).into_iter().flatten();
        named
            .map(|layer| layer.kind)
            .chain(unusable)
            .any(|other| other == kind)
    }

    /// A machine is named by a file that cannot be used, so that it keeps what
    /// it holds.
    pub fn unusable(
        &mut self,
        name: String,
        kind: SourceKind,
        path: PathBuf,
        problems: Vec<Problem>,
    ) {
        self.problems.extend(problems);
        let blamed = self.unusable.entry(name).or_insert((kind, path.clone()));
        if kind < blamed.0 {
            *blamed = (kind, path);
        }
    }

    /// A folder cannot be listed, so that whoever is not named keeps what it
    /// holds.
    pub fn unlisted(&mut self, kind: SourceKind, folder: PathBuf, problem: Problem) {
        self.problems.push(problem);
        self.unlisted.get_or_insert((kind, folder));
    }

    /// Something is wrong that concerns no machine.
    pub fn problem(&mut self, problem: Problem) {
        self.problems.push(problem);
    }

    /// Lays them over each other: a source of higher rank replaces each key
    /// that it names.
    pub fn merge(self) -> Snapshot {
        let mut snapshot = Snapshot {
            unusable: self.unusable,
            unlisted: self.unlisted,
            problems: self.problems,
            ..Snapshot::default()
        };
        for (name, mut layers) in self.machines {
            layers.sort_by_key(|layer| layer.kind);
            if let Some(unusable) = snapshot.unusable.get_mut(&name) {
                if layers[0].kind < unusable.0 {
                    *unusable = (layers[0].kind, layers[0].path.clone());
                }
                continue;
            }
            match declaration(&name, layers) {
                Ok(declaration) => {
                    snapshot.declarations.insert(name, declaration);
                }
                Err((kind, problem)) => {
                    let path = problem.path.clone();
                    snapshot.problems.push(problem);
                    snapshot.unusable.insert(name, (kind, path));
                }
            }
        }
        snapshot
    }
}

/// One declaration from all that name a machine, the highest rank first.
fn declaration(name: &str, layers: Vec<Layer>) -> Result<Declaration, (SourceKind, Problem)> {
    let mut top: Option<(SourceKind, PathBuf)> = None;
    let mut keys = Keys::default();
    for layer in layers {
        keys = keys.over(layer.keys);
        top.get_or_insert((layer.kind, layer.path));
    }
    let (source, path) = top.unwrap_or((SourceKind::Config, PathBuf::new()));
    let Some(addresses) = keys.addresses else {
        let (field, example) = match source {
            SourceKind::Nspawn => ("Address", "write Address=203.0.113.2 in [X-Netspawn]"),
            _ => (
                "addresses",
                "write addresses = [\"203.0.113.2\", \"2001:db8:1::/64\"]",
            ),
        };
        let fault = Fault::new("is missing", example);
        return Err((source, fault.at(&path, None, Some(field))));
    };
    Ok(Declaration {
        name: name.to_owned(),
        source,
        path,
        interface: keys.interface,
        addresses,
        tenant: keys.tenant,
        mac: keys.mac,
        vlan: keys.vlan,
        any_mac: keys.any_mac.unwrap_or_default(),
        sources: keys.sources.unwrap_or_default(),
    })
}
