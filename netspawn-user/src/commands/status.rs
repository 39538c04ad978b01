//! `status`.

use super::{Compared, DataPlane, View, compared, list, watch};
use crate::{
    cli::{Global, WatchArgs},
    model::DisplayMac,
    outcome::Outcome,
    output::{ClosedPort, MachineCounts, StatusReport, UplinkReport},
    registry::MachineState,
    revert,
};

/// Prints whether all is well: uplinks, numbers of machines, the agent, and where
/// what is in place differs from what is declared.
///
/// # Errors
/// When the data plane cannot be read, or stdout is closed.
pub fn run(global: &Global, args: &WatchArgs, plane: &dyn DataPlane) -> anyhow::Result<Outcome> {
    watch::show(global, args, || {
        let revert = revert::report(global);
        let compared = compared(global, plane).inspect_err(|_| {
            // It may be the reason.
            if let Some(revert) = &revert {
                tracing::warn!("{}", revert.words);
            }
        })?;
        let presence = watch::Presence::of(&compared.view);
        let mut report = report(compared);
        report.revert = revert;
        Ok(watch::Look {
            presence,
            report,
            notes: Vec::new(),
        })
    })?;
    Ok(Outcome::Done)
}

/// Sums up.
pub fn report(compared: Compared) -> StatusReport {
    let Compared {
        view,
        desired,
        mismatches,
        ..
    } = compared;
    let mut machines = MachineCounts::default();
    for machine in &desired.machines {
        *match list::state(machine, &view) {
            MachineState::Up => &mut machines.up,
            MachineState::Waiting => &mut machines.waiting,
            MachineState::Down => &mut machines.down,
            MachineState::Conflict => &mut machines.conflict,
        } += 1;
    }
    let closed = desired.machines.iter().filter_map(|machine| {
        Some(ClosedPort {
            interface: machine.interface.clone(),
            ifindex: machine.ifindex?,
            machine: machine.name.clone(),
            reason: list::closed(machine, &view)?,
        })
    });
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
        closed: closed.collect(),
        prefixes: view.held.prefixes(),
        agent: view.agent.clone(),
        mismatches,
        proposal: proposal(&view),
        revert: None,
    }
}

/// The interface that the host's default route goes through.
fn proposal(view: &View) -> Option<String> {
    let routes = view.host.routes.iter();
    let default = routes
        .filter(|route| route.destination.prefix_len() == 0)
        .min_by_key(|route| route.priority)?;
    let link = view.host.links.get(&default.ifindex?)?;
    Some(link.name.clone())
}
