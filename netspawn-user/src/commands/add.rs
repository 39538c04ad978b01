//! `add`.

use std::{fs, io, path::Path};

use anyhow::Context;

use super::{Applied, DataPlane};
use crate::{
    cli::{AddArgs, Global},
    model::{Declaration, SourceKind},
    outcome::{Outcome, Usage},
    registry::{Conflict, HOST_HOLDER, MachineState},
    source::{SHARED, machine_path, replace, write_machine},
};

/// Writes `RUNDIR/machines/NAME.toml`, and applies it. When that fails, the
/// file is as it was before.
///
/// # Errors
/// When a prefix is given twice, the file cannot be written, or the data plane
/// cannot be brought up to date.
pub fn run(global: &Global, args: &AddArgs, plane: &dyn DataPlane) -> anyhow::Result<Outcome> {
    for (index, prefix) in args.addresses.iter().enumerate() {
        if args.addresses[..index].contains(prefix) {
            return Err(Usage(format!("address {prefix} is given twice; give it once")).into());
        }
    }
    let path = machine_path(&global.run_dir, &args.name);
    let before = match fs::read(&path) {
        Ok(bytes) => Some(bytes),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => return Err(error).with_context(|| format!("cannot read {}", path.display())),
    };
    write_machine(
        &global.run_dir,
        &Declaration {
            name: args.name.clone(),
            source: SourceKind::Run,
            path: path.clone(),
            interface: Some(args.interface.clone()),
            addresses: args.addresses.clone(),
            tenant: args.tenant.clone(),
            mac: args.mac,
            vlan: args.vlan,
            any_mac: false,
            sources: Vec::new(),
        },
    )?;
    match plane.apply() {
        Ok(applied) => Ok(tell(&args.name, &path, &applied)),
        Err(error) => {
            let undone = match before {
                Some(bytes) => replace(&path, &bytes, SHARED),
                None => fs::remove_file(&path),
            };
            Err(error.context(match undone {
                Ok(()) => {
                    // What was done before the failure is undone as well; where that fails
                    // too, for the same reason, the next sync does it.
                    let _ = plane.apply();
                    format!("machine {} is not added", args.name)
                }
                Err(undone) => format!(
                    "machine {} is declared in {} (which cannot be undone: {undone}), but not \
                     served",
                    args.name,
                    path.display()
                ),
            }))
        }
    }
}

fn tell(name: &str, path: &Path, applied: &Applied) -> Outcome {
    if !applied.attached {
        tracing::info!("{name} is declared; it is served once an uplink is attached");
        return Outcome::Done;
    }
    let Some(machine) = applied.machines.iter().find(|machine| machine.name == name) else {
        return Outcome::Partly(vec![format!(
            "{name} is declared in {}, but not served",
            path.display()
        )]);
    };
    if !machine.conflicts.is_empty() {
        return Outcome::Partly(machine.conflicts.iter().map(lacks(name)).collect());
    }
    // What is wrong with this machine without being a conflict: no room, a
    // port that cannot be one.
    let rest: Vec<String> = applied
        .problems
        .iter()
        .filter(|problem| problem.path == path)
        .map(ToString::to_string)
        .chain(applied.left())
        .collect();
    if !rest.is_empty() {
        return Outcome::Partly(rest);
    }
    let port = machine.interface.as_deref().unwrap_or("its port");
    match machine.state {
        MachineState::Waiting => tracing::info!("{name} is served once {port} exists"),
        MachineState::Down => tracing::info!("{name} is served once {port} has carrier"),
        MachineState::Up | MachineState::Conflict => tracing::info!("{name} is up on {port}"),
    }
    Outcome::Done
}

fn lacks(name: &str) -> impl Fn(&Conflict) -> String {
    move |conflict| {
        let Conflict { prefix, holder } = conflict;
        if holder == HOST_HOLDER {
            format!("{name} does not get {prefix}: it belongs to the host or to its gateway")
        } else {
            format!(
                "{name} does not get {prefix}: it belongs to machine {holder}, until that one's \
                 declaration is withdrawn"
            )
        }
    }
}
