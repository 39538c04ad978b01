//! `counters`.

use super::DataPlane;
use crate::{
    cli::Global,
    outcome::Outcome,
    output::{CountersReport, Report},
};

/// Prints what became of frames, and why.
///
/// # Errors
/// When the data plane cannot be read, or stdout is closed.
pub fn run(global: &Global, plane: &dyn DataPlane) -> anyhow::Result<Outcome> {
    let view = plane.view()?;
    CountersReport::new(|reason| view.counts.get(&reason).copied().unwrap_or(0))
        .print(global.json)?;
    Ok(Outcome::Done)
}
