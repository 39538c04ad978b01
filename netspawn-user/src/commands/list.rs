//! `list`.

use std::collections::BTreeMap;

use netspawn_ebpf::abi::endpoint_flag;

use super::{DataPlane, View, told_declarations};
use crate::{
    cli::Global,
    model::DisplayMac,
    outcome::Outcome,
    output::{ListReport, ListRow, Report},
    plan,
    registry::{Machine, MachineState},
    source::Snapshot,
};

/// Prints all machines.
///
/// # Errors
/// When the data plane cannot be read, or stdout is closed.
pub fn run(global: &Global, plane: &dyn DataPlane) -> anyhow::Result<Outcome> {
    let view = plane.view()?;
    let report = report(&told_declarations(global, &view), &view);
    report.print(global.json)?;
    if view.uplinks.is_empty() {
        tracing::warn!("no uplink is attached, so no machine is served; see `attach --help`");
    }
    for row in &report.0 {
        for conflict in &row.conflicts {
            tracing::warn!(
                "{} lacks {}, which belongs to {}",
                row.name,
                conflict.prefix,
                conflict.holder
            );
        }
    }
    Ok(Outcome::Done)
}

/// The machines declared, and what the data plane makes of them.
pub fn report(snapshot: &Snapshot, view: &View) -> ListReport {
    let machines = view.resolve(snapshot).machines;
    ListReport(
        machines
            .into_iter()
            .map(|machine| row(machine, view))
            .collect(),
    )
}

/// The state as machines meet it: one whose port is ready, but which the maps
/// do not serve yet, waits.
pub(super) fn state(machine: &Machine, view: &View) -> MachineState {
    let served = held(machine, view).is_some_and(|id| {
        let forward = &view.held.endpoints[&id].forward;
        forward.flags & endpoint_flag::UP != 0 && Some(forward.ifindex) == machine.ifindex
    });
    match machine.state {
        MachineState::Up if view.uplinks.is_empty() || !served => MachineState::Waiting,
        state => state,
    }
}

/// The id under which the maps hold a machine.
fn held(machine: &Machine, view: &View) -> Option<u32> {
    machine.endpoint.filter(|id| {
        view.held
            .endpoints
            .get(id)
            .is_some_and(|entry| plan::text(&entry.name) == machine.name)
    })
}

fn row(machine: Machine, view: &View) -> ListRow {
    let id = held(&machine, view);
    let traffic = id.map(|id| view.traffic.get(&id).copied().unwrap_or_default());
    let drops: BTreeMap<&'static str, u64> = view
        .drops
        .iter()
        .filter(|((owner, _), count)| Some(*owner) == id && **count > 0)
        .map(|((_, reason), count)| (reason.name(), *count))
        .collect();
    ListRow {
        state: state(&machine, view),
        name: machine.name,
        source: machine.source.name(),
        interface: machine.interface,
        ifindex: machine.ifindex,
        mac: machine.mac.map(|mac| DisplayMac(mac).to_string()),
        addresses: machine.addresses,
        tenant: machine.tenant,
        rx_packets: traffic.map(|traffic| traffic.rx_packets),
        rx_bytes: traffic.map(|traffic| traffic.rx_bytes),
        tx_packets: traffic.map(|traffic| traffic.tx_packets),
        tx_bytes: traffic.map(|traffic| traffic.tx_bytes),
        drops,
        conflicts: machine.conflicts,
    }
}
