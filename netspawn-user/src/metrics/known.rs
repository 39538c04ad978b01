use std::{sync::Arc, time::Duration};

use jiff::Timestamp;
use prometheus_client::metrics::histogram::Histogram;

use crate::{
    datapath::reader::Size,
    registry::{Desired, MachineState},
};

/// What only the agent knows.
#[derive(Clone, Debug)]
pub struct Known {
    /// When it started.
    pub(super) since: Timestamp,
    /// Machines by name.
    pub(super) machines: Arc<[(String, MachineState)]>,
    /// Prefixes that machines declare and others hold.
    pub(super) conflicts: usize,
    /// Faults of declarations, and what could not be done.
    pub(super) problems: usize,
    /// What the maps should hold.
    pub(super) wanted: Size,
    /// How long syncs took.
    pub(super) syncs: Histogram,
    /// Syncs that failed.
    pub(super) failures: u64,
    /// When the last one succeeded.
    pub(super) last_sync: Option<Timestamp>,
}

impl Known {
    pub(super) fn new(since: Timestamp) -> Self {
        Known {
            since,
            machines: Arc::new([]),
            conflicts: 0,
            problems: 0,
            wanted: Size::default(),
            // A sync takes under a millisecond with few machines, and tens of them
            // with ten thousand.
            syncs: Histogram::new([
                0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
            ]),
            failures: 0,
            last_sync: None,
        }
    }

    /// Takes note of a sync, and how long it took. `wanted` is what it wanted the maps
    /// to hold, also where it failed.
    pub fn synced(&mut self, took: Duration, succeeded: bool, wanted: Size) {
        self.syncs.observe(took.as_secs_f64());
        self.wanted = wanted;
        if succeeded {
            self.last_sync = Some(Timestamp::now());
        } else {
            self.failures += 1;
        }
    }

    /// Takes note of what was made of the declarations, which have faults of their own.
    pub fn resolved(&mut self, desired: &Desired, faults: usize) {
        self.wanted = Size::of(&desired.state);
        self.problems = faults + desired.problems.len();
        let conflicts = desired
            .machines
            .iter()
            .map(|machine| machine.conflicts.len());
        self.conflicts = conflicts.sum();
        self.machines = desired
            .machines
            .iter()
            .map(|machine| (machine.name.clone(), machine.state))
            .collect();
    }
}
