//! `list`.

mod filter;

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Instant,
};

use anyhow::bail;
use netspawn_ebpf::abi::{CLOSED, Traffic, endpoint_flag};

use self::filter::Wanted;
use super::{Compared, DataPlane, View, compared, watch};
use crate::{
    cli::{Global, ListArgs},
    mismatch::{Kind, Mismatch},
    model::DisplayMac,
    outcome::Outcome,
    output::{ListReport, ListRow, Rates},
    plan,
    registry::{Machine, MachineState},
};

/// Traffic, and frames dropped, of machines at one time.
type Totals = BTreeMap<String, (Traffic, u64)>;

/// Prints the machines, all or those asked for.
///
/// # Errors
/// When none of those asked for exists, the data plane cannot be read, or stdout
/// is closed.
pub fn run(global: &Global, args: &ListArgs, plane: &dyn DataPlane) -> anyhow::Result<Outcome> {
    let wanted: Vec<Wanted> = args.wanted.iter().map(|text| Wanted::new(text)).collect();
    let mut before: Option<(Instant, Totals)> = None;
    let mut unknown = Vec::new();
    watch::show(global, &args.watch, || {
        let compared = compared(global, plane)?;
        let now = Instant::now();
        let mut rows = report(&compared).0;
        let mut notes = Vec::new();
        if !wanted.is_empty() {
            let chosen = filter::choose(&wanted, &rows, &compared.view.host);
            rows.retain(|row| chosen.names.contains(&row.name));
            if rows.is_empty() && before.is_none() {
                bail!(chosen.unknown.join("\n"));
            }
            unknown = chosen.unknown;
        }
        if args.watch.watch.is_some() {
            notes.extend(unknown.iter().cloned());
        }
        notes.extend(remarks(&rows, &compared, wanted.is_empty()));
        let totals = totals(&rows);
        if let Some((then, before)) = &before {
            let seconds = now.duration_since(*then).as_secs_f64();
            for row in &mut rows {
                row.per_second = rates(before.get(&row.name), totals.get(&row.name), seconds);
            }
        }
        before = Some((now, totals));
        Ok(watch::Look {
            presence: watch::Presence::of(&compared.view),
            report: ListReport(rows),
            notes,
        })
    })?;
    Ok(if args.watch.watch.is_some() {
        Outcome::Done
    } else {
        Outcome::of(unknown)
    })
}

/// What is wrong with these machines, and with what is no machine's.
fn remarks(rows: &[ListRow], compared: &Compared, all: bool) -> Vec<String> {
    let mut notes = Vec::new();
    if compared.view.uplinks.is_empty() {
        notes.push(watch::NOTHING_ATTACHED.to_owned());
    }
    let shown: BTreeSet<&str> = rows.iter().map(|row| &*row.name).collect();
    for mismatch in &compared.mismatches {
        let Mismatch { reason, remedy, .. } = mismatch;
        let concerns = match &mismatch.machine {
            Some(name) => all || shown.contains(&**name),
            None => all,
        };
        if !concerns {
            continue;
        }
        let who = match (&mismatch.machine, &mismatch.interface) {
            // Its text begins with the file.
            _ if mismatch.kind == Kind::Declaration => String::new(),
            (Some(name), _) | (None, Some(name)) => format!("{name}: "),
            (None, None) => String::new(),
        };
        let remedy = remedy
            .as_ref()
            .map_or_else(String::new, |r| format!("; {r}"));
        notes.push(format!("{who}{reason}{remedy}"));
    }
    notes
}

/// The machines declared and those served, and what the data plane makes of them.
pub fn report(compared: &Compared) -> ListReport {
    let Compared {
        view,
        desired,
        mismatches,
        ..
    } = compared;
    let mut of: BTreeMap<&str, Vec<Mismatch>> = BTreeMap::new();
    for mismatch in mismatches {
        if let Some(name) = &mismatch.machine {
            of.entry(name).or_default().push(mismatch.clone());
        }
    }
    let mut drops: BTreeMap<u32, BTreeMap<&'static str, u64>> = BTreeMap::new();
    for ((id, reason), count) in view.drops.iter().filter(|(_, count)| **count > 0) {
        drops.entry(*id).or_default().insert(reason.name(), *count);
    }
    let mut declared = BTreeSet::new();
    let mut rows = Vec::new();
    for machine in &desired.machines {
        declared.insert(&*machine.name);
        let id = held(machine, view);
        rows.push(row(machine, id, view, &mut drops));
    }
    rows.extend(
        view.held
            .endpoints
            .iter()
            .filter(|(_, entry)| !declared.contains(&*plan::text(&entry.name)))
            .map(|(id, _)| withdrawn(*id, view, &mut drops)),
    );
    for row in &mut rows {
        row.mismatches = of.remove(&*row.name).unwrap_or_default();
    }
    rows.sort_by(|a, b| a.name.cmp(&b.name));
    ListReport(rows)
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

/// Why nothing of a machine leaves its port, if that is closed.
pub(super) fn closed(machine: &Machine, view: &View) -> Option<String> {
    let held = |ifindex: u32| view.held.interfaces.get(&ifindex) == Some(&CLOSED);
    let unguarded = machine.ifindex.is_some_and(held);
    let why = unguarded.then(|| "its guard cannot be attached".to_owned());
    machine.closed.clone().or(why)
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

fn row(
    machine: &Machine,
    id: Option<u32>,
    view: &View,
    drops: &mut BTreeMap<u32, BTreeMap<&'static str, u64>>,
) -> ListRow {
    let traffic = id.map(|id| view.traffic.get(&id).copied().unwrap_or_default());
    ListRow {
        state: state(machine, view),
        name: machine.name.clone(),
        source: Some(machine.source.name()),
        interface: machine.interface.clone(),
        ifindex: machine.ifindex,
        mac: machine.mac.map(|mac| DisplayMac(mac).to_string()),
        addresses: machine.addresses.clone(),
        tenant: machine.tenant.clone(),
        rx_packets: traffic.map(|traffic| traffic.rx_packets),
        rx_bytes: traffic.map(|traffic| traffic.rx_bytes),
        tx_packets: traffic.map(|traffic| traffic.tx_packets),
        tx_bytes: traffic.map(|traffic| traffic.tx_bytes),
        drops: id.and_then(|id| drops.remove(&id)).unwrap_or_default(),
        conflicts: machine.conflicts.clone(),
        closed: closed(machine, view),
        mismatches: Vec::new(),
        per_second: None,
    }
}

/// A machine that the maps have although it is not declared any more.
fn withdrawn(
    id: u32,
    view: &View,
    drops: &mut BTreeMap<u32, BTreeMap<&'static str, u64>>,
) -> ListRow {
    let entry = &view.held.endpoints[&id];
    let forward = &entry.forward;
    let link = view.host.links.get(&forward.ifindex);
    let addresses = view.held.addresses.iter();
    let machine = Machine {
        name: plan::text(&entry.name),
        source: crate::model::SourceKind::Run,
        endpoint: Some(id),
        interface: link.map(|link| link.name.clone()),
        ifindex: Some(forward.ifindex).filter(|ifindex| *ifindex != 0),
        mac: Some(forward.mac).filter(|mac| *mac != [0; 6]),
        addresses: addresses
            .filter(|(_, owner)| **owner == id)
            .map(|(prefix, _)| *prefix)
            .collect(),
        tenant: Some(plan::text(&entry.tenant)).filter(|tenant| !tenant.is_empty()),
        state: match link {
            Some(_) if forward.flags & endpoint_flag::UP != 0 => MachineState::Up,
            Some(_) => MachineState::Down,
            None => MachineState::Waiting,
        },
        conflicts: Vec::new(),
        closed: None,
    };
    ListRow {
        source: None,
        ..row(&machine, Some(id), view, drops)
    }
}

fn totals(rows: &[ListRow]) -> Totals {
    let total = |row: &ListRow| {
        let traffic = Traffic {
            rx_packets: row.rx_packets?,
            rx_bytes: row.rx_bytes?,
            tx_packets: row.tx_packets?,
            tx_bytes: row.tx_bytes?,
        };
        Some((row.name.clone(), (traffic, row.drops.values().sum())))
    };
    rows.iter().filter_map(total).collect()
}

fn rates(
    before: Option<&(Traffic, u64)>,
    now: Option<&(Traffic, u64)>,
    seconds: f64,
) -> Option<Rates> {
    let ((before, dropped), (now, drops)) = (before?, now?);
    let rate = |before, now| watch::rate(Some(before), now, seconds);
    Some(Rates {
        rx_packets: rate(before.rx_packets, now.rx_packets),
        rx_bytes: rate(before.rx_bytes, now.rx_bytes),
        tx_packets: rate(before.tx_packets, now.tx_packets),
        tx_bytes: rate(before.tx_bytes, now.tx_bytes),
        drops: rate(*dropped, *drops),
    })
}
