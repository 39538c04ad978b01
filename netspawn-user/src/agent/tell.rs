//! What the agent says of what it sees: each thing once, and not too often.

use std::{
    collections::{BTreeMap, HashMap},
    time::{Duration, Instant},
};

use netspawn_ebpf::{abi::Owner, verdict::Reason};

use super::Agent;
use crate::{datapath::events::Report, plan, problem::Problem, registry::Desired};

/// How soon the same is said of a machine again.
const COMPLAIN: Duration = Duration::from_secs(60);

/// Tells problems once, and again when they come back after having gone.
#[derive(Debug, Default)]
pub(super) struct Told(Vec<Problem>);

impl Told {
    /// Logs those that are new.
    pub(super) fn tell<'a>(&mut self, problems: impl Iterator<Item = &'a Problem>) {
        let now: Vec<Problem> = problems.cloned().collect();
        for problem in now.iter().filter(|problem| !self.0.contains(problem)) {
            tracing::warn!("{problem}");
        }
        self.0 = now;
    }
}

/// Says the same of a machine once a minute at most.
#[derive(Debug, Default)]
pub(super) struct Complaints(HashMap<(Owner, Reason), (Instant, u32)>);

impl Complaints {
    /// How many like it have not been said since the last that was; `None` while
    /// it is too soon for another.
    fn next(&mut self, report: &Report, now: Instant) -> Option<u32> {
        let key = (report.endpoint, report.reason);
        match self.0.get_mut(&key) {
            Some((said, unsaid)) if now.duration_since(*said) < COMPLAIN => {
                *unsaid += 1;
                None
            }
            _ => Some(self.0.insert(key, (now, 0)).map_or(0, |(_, unsaid)| unsaid)),
        }
    }
}

impl Agent {
    pub(super) fn tell_changes(&mut self, desired: &Desired) {
        let mut states = BTreeMap::new();
        for machine in &desired.machines {
            if self.states.get(&machine.name) != Some(&machine.state) {
                let port = machine.interface.as_deref().unwrap_or("no port");
                tracing::info!("{} is {} ({port})", machine.name, machine.state.name());
            }
            states.insert(machine.name.clone(), machine.state);
        }
        for name in self
            .states
            .keys()
            .filter(|name| !states.contains_key(*name))
        {
            tracing::info!("{name} is gone");
        }
        self.states = states;
    }

    /// Says who sends what is not theirs, and defends addresses.
    pub(super) fn heed(&mut self, reports: Vec<Report>) {
        let now = Instant::now();
        let state = self.plane.state();
        for report in reports {
            // Two uplinks on one network hear each other.
            if state.uplinks.values().any(|ours| ours.mac == report.mac) {
                continue;
            }
            if let (Reason::AddressConflict, Some(address)) = (report.reason, report.address) {
                self.announcements.defend(address, now);
            }
            let Some(unsaid) = self.complaints.next(&report, now) else {
                continue;
            };
            let entry = state.endpoints.get(&report.endpoint);
            let name = entry.map_or_else(|| "?".to_owned(), |entry| plan::text(&entry.name));
            let more = match unsaid {
                0 => String::new(),
                unsaid => format!("; {unsaid} times more since this was last said"),
            };
            tracing::warn!("{name}: {report}{more}");
        }
    }
}
