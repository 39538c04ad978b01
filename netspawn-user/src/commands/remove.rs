//! `remove`.

use anyhow::Context;

use super::DataPlane;
use crate::{
    cli::{Global, RemoveArgs},
    outcome::Outcome,
    source::{Removed, remove_machine},
};

/// Deletes `RUNDIR/machines/NAME.toml`, and applies that.
///
/// # Errors
/// When no file of RUNDIR declares the machine, it cannot be deleted, or the
/// data plane cannot be brought up to date. The file stays deleted in the
/// latter case: the next `attach` finishes what is left.
pub fn run(global: &Global, args: &RemoveArgs, plane: &dyn DataPlane) -> anyhow::Result<Outcome> {
    let name = &args.name;
    let removed = remove_machine(&global.run_dir, &global.config_dir, name)?;
    plane.apply().with_context(|| {
        format!("machine {name} is no longer declared, but the data plane still serves it")
    })?;
    Ok(match removed {
        Removed::Withdrawn => Outcome::Done,
        Removed::StillDeclared(path) => Outcome::Partly(vec![format!(
            "machine {name} is still declared by {}; delete or edit that file",
            path.display()
        )]),
    })
}
