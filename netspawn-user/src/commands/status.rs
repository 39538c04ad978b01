//! `status`.

use super::{DataPlane, View, list, told_declarations};
use crate::{
    cli::Global,
    model::DisplayMac,
    outcome::Outcome,
    output::{MachineCounts, Report, StatusReport, UplinkReport},
    registry::MachineState,
    revert,
    source::Snapshot,
};

/// Prints uplinks, numbers of machines, and the agent.
///
/// # Errors
/// When the data plane cannot be read, or stdout is closed.
pub fn run(global: &Global, plane: &dyn DataPlane) -> anyhow::Result<Outcome> {
    let revert = revert::report(global);
    let view = plane.view().inspect_err(|_| {
        // It may be the reason.
        if let Some(revert) = &revert {
            tracing::warn!("{}", revert.words);
        }
    })?;
    let mut report = report(&told_declarations(global, &view), &view);
    report.revert = revert;
    report.print(global.json)?;
    Ok(Outcome::Done)
}

/// Sums up.
pub fn report(snapshot: &Snapshot, view: &View) -> StatusReport {
    let mut machines = MachineCounts::default();
    for machine in &view.resolve(snapshot).machines {
        *match list::state(machine, view) {
            MachineState::Up => &mut machines.up,
            MachineState::Waiting => &mut machines.waiting,
            MachineState::Down => &mut machines.down,
            MachineState::Conflict => &mut machines.conflict,
        } += 1;
    }
    let uplinks = view.uplinks.iter().map(|uplink| {
        let link = view.host.links.get(&uplink.ifindex);
        UplinkReport {
            name: link.map(|link| link.name.clone()),
            ifindex: uplink.ifindex,
            mac: link.map(|link| DisplayMac(link.mac).to_string()),
            mode: uplink.mode.clone(),
            programs: uplink.programs.clone(),
        }
    });
    StatusReport {
        uplinks: uplinks.collect(),
        machines,
        prefixes: view.held.prefixes(),
        agent: view.agent.clone(),
        revert: None,
    }
}
