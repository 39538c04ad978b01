//! `counters`.

use std::{collections::BTreeMap, time::Instant};

use netspawn_ebpf::verdict::Reason;

use super::{DataPlane, watch};
use crate::{
    cli::{Global, WatchArgs},
    outcome::Outcome,
    output::CountersReport,
};

/// Prints what became of frames, and why.
///
/// # Errors
/// When the data plane cannot be read, or stdout is closed.
pub fn run(global: &Global, args: &WatchArgs, plane: &dyn DataPlane) -> anyhow::Result<Outcome> {
    let mut before: Option<(Instant, BTreeMap<Reason, u64>)> = None;
    watch::show(global, args, || {
        let view = plane.view()?;
        let now = Instant::now();
        let count = |reason| view.counts.get(&reason).copied().unwrap_or(0);
        let mut report = CountersReport::new(count);
        if let Some((then, counts)) = &before {
            let seconds = now.duration_since(*then).as_secs_f64();
            report = report.with_rates(|reason| {
                watch::rate(counts.get(&reason).copied(), count(reason), seconds)
            });
        }
        let presence = watch::Presence::of(&view);
        let mut notes = Vec::new();
        if !presence.attached {
            notes.push(watch::NOTHING_ATTACHED.to_owned());
        }
        before = Some((now, view.counts));
        Ok(watch::Look {
            report,
            notes,
            presence,
        })
    })?;
    Ok(Outcome::Done)
}
