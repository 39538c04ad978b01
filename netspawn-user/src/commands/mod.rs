//! One file a command. Each takes its arguments and what it needs of the data
//! plane, and says how it ended.

pub mod add;
pub mod attach;
pub mod check;
pub mod completions;
pub mod confirm;
pub mod counters;
pub mod detach;
pub mod explain;
pub mod guest;
pub mod import;
pub mod list;
pub mod man;
pub mod monitor;
pub mod remove;
pub mod status;
pub mod top;
pub mod watch;

use std::{
    collections::{BTreeMap, BTreeSet},
    thread,
    time::Duration,
};

use netspawn_ebpf::{abi::Traffic, verdict::Reason};

use crate::{
    cli::Global,
    config::Policy,
    control::Trouble,
    mismatch::{self, Mismatch},
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
    /// Name when it was last looked at.
    pub name: String,
    /// Its interface was deleted.
    pub gone: bool,
    /// Names of the programs that should be attached to it, and are not.
    pub missing: Vec<String>,
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
    /// Ports in the maps that their guard does not see first, and why.
    pub unguarded: BTreeMap<u32, &'static str>,
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
    /// What the agent cannot do, and since when.
    pub troubles: Vec<Trouble>,
    /// Where declarations are read from.
    pub sources: BTreeSet<Source>,
    /// What machined says of links.
    pub registered: Registered,
    /// What machines may do, as netspawn.toml says now.
    pub policy: Policy,
}

impl View {
    /// What the maps would hold if they were brought up to date now.
    pub fn resolve(&self, snapshot: &Snapshot) -> Desired {
        registry::resolve(&Inputs {
            snapshot,
            host: &self.host,
            uplinks: &self.uplinks.iter().map(|uplink| uplink.ifindex).collect(),
            xdp_ports: &BTreeSet::new(),
            policy: &self.policy,
            held: &self.held,
            limits: self.limits,
            deadline: 0,
        })
    }
}

impl Applied {
    /// What could not be done in the data plane, whose machine it may be.
    fn left(&self) -> impl Iterator<Item = String> {
        let problems = self.problems.iter();
        let left = problems.filter(|problem| problem.path.as_os_str().is_empty());
        left.map(ToString::to_string)
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

/// The data plane and the declarations, compared. While an agent runs, what it is
/// about to put right is given the time for that.
///
/// # Errors
/// When the data plane cannot be read.
pub fn compared(global: &Global, plane: &dyn DataPlane) -> anyhow::Result<Compared> {
    const SETTLES: Duration = Duration::from_millis(300);
    let compare = || -> anyhow::Result<Compared> {
        let view = plane.view()?;
        let snapshot = declarations(global, &view);
        let desired = view.resolve(&snapshot);
        let mismatches = mismatch::find(&snapshot, &view, &desired);
        Ok(Compared {
            view,
            snapshot,
            desired,
            mismatches,
        })
    };
    let compared = compare()?;
    let passing = |mismatch: &Mismatch| mismatch.kind.may_pass();
    if compared.view.agent.is_some() && compared.mismatches.iter().any(passing) {
        thread::sleep(SETTLES);
        return compare();
    }
    Ok(compared)
}

/// What [`compared`] finds.
#[derive(Clone, Debug)]
pub struct Compared {
    /// What is in place.
    pub view: View,
    /// What is declared.
    pub snapshot: Snapshot,
    /// What should be in place.
    pub desired: Desired,
    /// Where both differ.
    pub mismatches: Vec<Mismatch>,
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
