//! `remove`.

use anyhow::{Context as _, bail};

use super::DataPlane;
use crate::{
    cli::{Global, RemoveArgs},
    outcome::Outcome,
    plan,
    source::{Removed, machine_path, remove_machine},
};

/// Deletes `RUNDIR/machines/NAME.toml`, and applies that. What an earlier one has not applied
/// is applied.
///
/// # Errors
/// When no file of RUNDIR declares the machine, it cannot be deleted, or the
/// data plane cannot be brought up to date. The file stays deleted in the
/// latter case: the next `remove` or `attach` finishes what is left.
pub fn run(global: &Global, args: &RemoveArgs, plane: &dyn DataPlane) -> anyhow::Result<Outcome> {
    let name = &args.name;
    let removed = remove_machine(&global.run_dir, &global.config_dir, name)?;
    // An earlier one was cut short.
    let unfinished = removed == Removed::Unknown && {
        let endpoints = plane.view()?.held.endpoints;
        let mut names = endpoints.values().map(|entry| plan::text(&entry.name));
        names.any(|held| held == *name)
    };
    let applied = plane.apply().with_context(|| {
        format!(
            "machine {name} is no longer declared, but the data plane may still serve it; \
             `netspawn-xdp remove {name}` tries again"
        )
    })?;
    let declared = applied.machines.iter().any(|machine| machine.name == *name);
    match removed {
        Removed::Unknown if !unfinished || declared => bail!(
            "no machine {name} is declared: there is neither {} nor {}; `netspawn-xdp list` shows \
             those that are",
            machine_path(&global.run_dir, name).display(),
            machine_path(&global.config_dir, name).display()
        ),
        Removed::Withdrawn if declared => {
            let mut lines = vec![format!(
                "machine {name} is still served: something else declares it, or it is not known \
                 that nothing does"
            )];
            lines.extend(applied.problems.iter().map(ToString::to_string));
            Ok(Outcome::Partly(lines))
        }
        Removed::Unknown | Removed::Withdrawn => Ok(Outcome::of(applied.left().collect())),
        Removed::StillDeclared(path) => Ok(Outcome::Partly(vec![format!(
            "machine {name} is still declared by {}; delete or edit that file",
            path.display()
        )])),
    }
}
