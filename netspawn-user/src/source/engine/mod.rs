//! Engines: programs that run machines on this host and can be asked about them.
//!
//! What an engine last said is kept in `RUNDIR/engines/SOURCE.json`, which is all that
//! is ever read: by the agent, by commands, and by an agent that starts while the
//! engine is away, whose machines run on.

mod answers;
mod follow;
mod makers;
mod names;
mod places;
mod record;
pub(super) mod socket;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    path::PathBuf,
};

use anyhow::Result;
use ipnet::IpNet;
use netspawn_ebpf::wire::Mac;
use serde::{Deserialize, Serialize};

pub use self::{
    answers::Answers,
    follow::Engines,
    makers::{Maker, Makers, Unsaid, User},
    places::Placed,
    record::folder,
};
pub(super) use self::{
    follow::{ask, with_users},
    makers::{Known, OfUsers},
    names::Taken,
    places::Places,
    record::{keep, read},
};
use super::{
    Source,
    layers::{Keys, Layer, Layers},
};
use crate::problem::Fault;

/// Something that runs machines, while it can be asked.
///
/// Level-triggered: [`Engine::changed`] says only that something may differ, and what
/// does follows from the next [`Engine::machines`]. Any error ends the value; a new
/// one is opened then, and what was last said holds until that one has listed.
///
/// `libvirt.rs` is the smallest one.
pub trait Engine: Sized + Send + 'static {
    /// The source that it is.
    const SOURCE: Source;

    /// Where it may listen, for an engine that lets users name links whom the host's
    /// root need not trust. As long as nothing is there, it makes no links. It is asked
    /// even if it is not among the sources, and says [`Listed::users`].
    const USERS_AT: &'static [&'static str] = &[];

    /// Reaches the engine. What changes from now on is told.
    ///
    /// # Errors
    /// When it is not there or does not answer. An [`std::io::Error`] of the kind
    /// `NotFound` says that it is not installed, or not started.
    fn open() -> impl Future<Output = Result<Self>> + Send;

    /// All machines that run now, and the links that users have named.
    ///
    /// # Errors
    /// When the engine does not say.
    fn machines(&mut self) -> impl Future<Output = Result<Listed>> + Send;

    /// Waits until machines may have changed since they were last listed. Dropping the
    /// future loses nothing.
    ///
    /// # Errors
    /// When the engine is gone.
    fn changed(&mut self) -> impl Future<Output = Result<()>> + Send;
}

/// What an engine says at one time.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listed {
    /// The machines that run.
    pub machines: Vec<Machine>,
    /// Of an engine that lets users name links: what they have named.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub users: Option<Users>,
}

impl From<Vec<Machine>> for Listed {
    fn from(machines: Vec<Machine>) -> Self {
        Listed {
            machines,
            users: None,
        }
    }
}

/// Users of an engine whom the host's root need not trust.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Users {
    /// Whether there may be any.
    pub any: bool,
    /// Links that are theirs, or would be, by name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub links: BTreeMap<String, Named>,
}

/// A name that such a user has chosen for a link.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Named {
    /// The machine that the name was chosen for, as in [`Machine::origin`].
    pub origin: String,
    /// Whether the machine runs, so that a link of that name is its own: the engine makes
    /// none where there is one already. Otherwise the name is only asked for, and may be
    /// that of a link of somebody else's.
    pub made: bool,
}

/// A machine, or one interface of a machine with several, as an engine has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Machine {
    /// The engine's name for it; for a second interface `NAME.INTERFACE`. It need not
    /// be one that a machine can have here.
    pub name: String,
    /// Whether the name was chosen by somebody whom the host's root need not trust, so
    /// that no file is about it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub named_by_user: bool,
    /// What it is to the engine, for messages: `container web`.
    pub origin: String,
    /// Prefixes without host bits that the engine's administrator gave it. Without
    /// any it is served only if a file declares them.
    pub addresses: Vec<IpNet>,
    /// Prefixes that it may send from without owning them: those of its other
    /// interfaces.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub sources: Vec<IpNet>,
    /// Tenant, never empty.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tenant: Option<String>,
    /// Link-layer address of its end, where its port cannot tell it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac: Option<Mac>,
    /// Where its port is found.
    pub place: Place,
    /// What is wrong with what the engine has of it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub faults: Vec<Wrong>,
}

/// Where a machine's port is found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Place {
    /// The host's link of that name.
    Link(String),
    /// The host's end of a link that leads into a network namespace.
    Namespace {
        /// The namespace: a file in nsfs, as `/proc/PID/ns/net`.
        path: PathBuf,
        /// Link-layer address of the machine's end, which tells several links apart.
        mac: Option<Mac>,
        /// Name of the machine's end, which tells several links apart.
        interface: Option<String>,
    },
}

/// A [`Fault`] in what an engine has of a machine, which keeps what it holds then and
/// gets nothing new.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wrong {
    /// The label, key or element.
    pub field: String,
    /// What is wrong and what was expected.
    pub message: String,
    /// What to do next.
    pub remedy: String,
    /// Whether the field is left out instead, and the rest counts.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub left_out: bool,
}

impl Wrong {
    /// A fault in that field.
    pub fn new(field: &str, fault: Fault) -> Self {
        Wrong {
            field: field.to_owned(),
            message: fault.message,
            remedy: fault.remedy,
            left_out: false,
        }
    }

    /// A field that is left out: what it asks for is not to be had, also by a machine
    /// that holds it already.
    pub fn left_out(field: &str, fault: Fault) -> Self {
        Wrong {
            left_out: true,
            ..Wrong::new(field, fault)
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::Link(name) => f.write_str(name),
            Place::Namespace { path, .. } => write!(f, "{}", path.display()),
        }
    }
}

/// A machine answers by its default route, whichever of its addresses was asked.
pub(super) fn each_sends_for_all(machines: &mut [Machine]) {
    let all: BTreeSet<IpNet> = machines
        .iter()
        .flat_map(|machine| machine.addresses.iter().copied())
        .collect();
    for machine in machines {
        let others = all
            .iter()
            .filter(|prefix| !machine.addresses.contains(prefix));
        machine.sources = others.copied().collect();
    }
}

/// Where a machine of an engine's is found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Located {
    /// The name that it has here.
    pub name: String,
    /// The engine.
    pub source: Source,
    /// What it is to the engine, with the engine's name, for messages.
    pub origin: String,
    /// [`Machine::named_by_user`].
    pub named_by_user: bool,
    /// The place.
    pub place: Place,
}

impl Located {
    /// Whether a link's name is all that says which it is. Files of the CNI plugin are
    /// left out once their link's index is gone.
    fn by_name(&self) -> bool {
        matches!(self.place, Place::Link(_)) && self.source != Source::Cni
    }
}

/// Adds what an engine says to what other sources say. Returns where each of its
/// machines is found.
pub(super) fn lay(
    source: Source,
    machines: Vec<Machine>,
    taken: &mut Taken,
    layers: &mut Layers,
) -> Vec<Located> {
    let kind = source.kind();
    let mut places = Vec::with_capacity(machines.len());
    for machine in machines {
        let name = taken.name(&machine.name, source, machine.named_by_user, layers);
        let origin = format!("{} {}", source.name(), machine.origin);
        let path = PathBuf::from(&origin);
        places.push(Located {
            name: name.clone(),
            source,
            origin,
            named_by_user: machine.named_by_user,
            place: machine.place,
        });
        let usable = machine.faults.iter().all(|wrong| wrong.left_out);
        let problems = machine.faults.into_iter().map(|wrong| {
            Fault::new(wrong.message, wrong.remedy).at(&path, None, Some(&wrong.field))
        });
        if !usable {
            let problems = problems.collect();
            layers.unusable(name, kind, path, problems);
            continue;
        }
        for problem in problems {
            layers.problem(problem);
        }
        if machine.addresses.is_empty() {
            continue;
        }
        layers.add(
            name,
            Layer {
                kind,
                path,
                keys: Keys {
                    addresses: Some(machine.addresses),
                    sources: Some(machine.sources).filter(|sources| !sources.is_empty()),
                    tenant: machine.tenant,
                    mac: machine.mac,
                    ..Keys::default()
                },
            },
        );
    }
    places
}

#[cfg(test)]
mod tests;
