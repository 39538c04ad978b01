//! `check`.

use anyhow::Result;

use super::DataPlane;
use crate::{
    check::{self, Severity, facts},
    cli::{CheckArgs, Global},
    outcome::{Failed, Outcome},
    output::CheckReport,
};

/// Looks for what keeps the data plane from working, and changes nothing.
///
/// # Errors
/// When an error was found, which is told already; when the host's network
/// cannot be read, or stdout is closed.
pub fn run(global: &Global, args: &CheckArgs, plane: &dyn DataPlane) -> Result<Outcome> {
    let facts = facts::gather(global, args.uplink.as_deref(), plane)?;
    let findings = check::judge(&facts);
    CheckReport::new(&findings).print(global.json)?;
    match findings.count(Severity::Error) {
        0 => Ok(Outcome::Done),
        _ => Err(Failed.into()),
    }
}
