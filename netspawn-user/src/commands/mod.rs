//! One file a command. Each takes its arguments and what it needs of the data
//! plane, and says how it ended.

pub mod add;
pub mod attach;
pub mod completions;
pub mod confirm;
pub mod counters;
pub mod detach;
pub mod guest;
pub mod import;
pub mod list;
pub mod man;
pub mod monitor;
pub mod remove;
pub mod status;

use std::collections::{BTreeMap, BTreeSet};

use netspawn_ebpf::{abi::Traffic, verdict::Reason};

use crate::{
    cli::Global,
    config::Policy,
    model::Host,
    output::AgentReport,
    plan::State,
    problem::Problem,
    registry::{self, Desired, Inputs, Limits, Machine},
    source::{Registered, Snapshot, Source, Sources},
};

/// What commands ask of the data plane.
pub trait DataPlane {
    /// What it is doing now. Without anything attached, that is a view with no
    /// uplinks and empty maps.
    ///
    /// # Errors
    /// When the maps or the host's network cannot be read.
    fn view(&self) -> anyhow::Result<View>;

    /// Brings it up to date with the declarations, through the agent where one
    /// runs, and returns when that is done.
    ///
    /// # Errors
    /// When it could not be brought up to date.
    fn apply(&self) -> anyhow::Result<Applied>;
}

/// An uplink that is attached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UplinkView {
    /// ifindex.
    pub ifindex: u32,
    /// `tc` or `xdp`.
    pub mode: String,
    /// Names of the programs attached to it.
    pub programs: Vec<String>,
}

/// The data plane at one moment.
#[derive(Clone, Debug)]
pub struct View {
    /// The host's network.
    pub host: Host,
    /// Uplinks attached.
    pub uplinks: Vec<UplinkView>,
    /// Content of the maps.
    pub held: State,
    /// Room in the maps.
    pub limits: Limits,
    /// [`netspawn_ebpf::abi::map::COUNTS`], summed over CPUs.
    pub counts: BTreeMap<Reason, u64>,
    /// [`netspawn_ebpf::abi::map::TRAFFIC`] by endpoint id, summed over CPUs.
    pub traffic: BTreeMap<u32, Traffic>,
    /// [`netspawn_ebpf::abi::map::DROPS`] by endpoint id.
    pub drops: BTreeMap<(u32, Reason), u64>,
    /// The agent, when one runs.
    pub agent: Option<AgentReport>,
    /// Where declarations are read from.
    pub sources: BTreeSet<Source>,
    /// What machined says of links.
    pub registered: Registered,
}

impl View {
    /// What the maps would hold if they were brought up to date now.
    pub fn resolve(&self, snapshot: &Snapshot) -> Desired {
        registry::resolve(&Inputs {
            snapshot,
            host: &self.host,
            uplinks: &self.uplinks.iter().map(|uplink| uplink.ifindex).collect(),
            xdp_ports: &BTreeSet::new(),
            policy: Policy::default(),
            held: &self.held,
            limits: self.limits,
            deadline: 0,
        })
    }
}

/// What [`DataPlane::apply`] did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Applied {
    /// Whether an uplink is attached; if none is, there was nothing to do.
    pub attached: bool,
    /// All machines.
    pub machines: Vec<Machine>,
    /// What could not be done.
    pub problems: Vec<Problem>,
}

/// The declarations as they are now.
pub fn declarations(global: &Global, view: &View) -> Snapshot {
    let mut sources = Sources::new(
        &global.config_dir,
        &global.run_dir,
        view.sources.iter().copied(),
    );
    let mut snapshot = sources.read(&view.host);
    snapshot.registered = view.registered.clone();
    snapshot
}

/// The declarations as they are now, whose problems are told on stderr.
fn told_declarations(global: &Global, view: &View) -> Snapshot {
    let snapshot = declarations(global, view);
    for problem in &snapshot.problems {
        tracing::warn!("{problem}");
    }
    snapshot
}

#[cfg(test)]
mod tests;
