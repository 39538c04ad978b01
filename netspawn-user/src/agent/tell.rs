//! What the agent says of what it sees: each thing once, and not too often.

use std::{
    collections::{BTreeMap, HashMap},
    time::{Duration, Instant},
};

use netspawn_ebpf::{abi::Owner, verdict::Reason};

use super::{
    Agent,
    monitor::{self, Monitors},
    ready_line,
};
use crate::{
    control::Trouble,
    datapath::events::Report,
    event::{Event, Kind},
    model::DisplayMac,
    plan::{self, State},
    problem::Problem,
    registry::{Conflict, Desired, MachineState},
};

/// How soon the same is said of a machine again, or the same problem.
const COMPLAIN: Duration = Duration::from_secs(60);
/// Changes of a machine's state that are logged as they come.
const CHANGES: u32 = 10;
/// How long it takes until one more of them is.
const REGAIN: Duration = Duration::from_secs(6);

/// Tells problems once, and again when they come back after having gone.
#[derive(Debug, Default)]
pub(super) struct Told {
    problems: Vec<Trouble>,
    /// When problems were logged that may come and go at a machine's will.
    logged: HashMap<String, Instant>,
    /// What the last attempts failed with: to sync, to look at the attachments.
    failures: [Option<Trouble>; 2],
}

/// What the agent attempts again and again.
#[derive(Clone, Copy, Debug)]
pub(super) enum Attempt {
    Sync,
    Verify,
}

impl Told {
    /// Logs those that are new, each once a minute at most.
    pub(super) fn tell<'a>(&mut self, problems: impl Iterator<Item = &'a Problem>) {
        let now = Instant::now();
        self.logged
            .retain(|_, logged| now.duration_since(*logged) < COMPLAIN);
        let mut all = Vec::new();
        for problem in problems {
            let text = problem.to_string();
            let known = self.problems.iter().find(|known| known.text == text);
            all.push(known.cloned().unwrap_or_else(|| {
                if self.logged.insert(text.clone(), now).is_none() {
                    tracing::warn!("{text}");
                }
                Trouble::now(text)
            }));
        }
        self.problems = all;
    }

    /// Remembers how an attempt has ended.
    pub(super) fn ended<T>(&mut self, attempt: Attempt, result: &anyhow::Result<T>) {
        let failure = &mut self.failures[attempt as usize];
        let text = result.as_ref().err().map(|error| format!("{error:#}"));
        if text.as_ref() != failure.as_ref().map(|failure| &failure.text) {
            *failure = text.map(Trouble::now);
        }
    }

    /// All that is wrong now.
    pub(super) fn troubles(&self) -> Vec<Trouble> {
        let failures = self.failures.iter().flatten();
        failures.chain(&self.problems).cloned().collect()
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

/// Which changes of machines' states are logged: a machine may change its own as often as it
/// likes.
#[derive(Debug, Default)]
struct Changes(HashMap<String, Change>);

#[derive(Clone, Copy, Debug)]
struct Change {
    /// How often it has changed since that was logged.
    unlogged: u32,
    /// When [`CHANGES`] may be logged again at once.
    spent: Instant,
}

impl Changes {
    /// Whether a machine's state is to be logged now, and after how many changes that were
    /// not. The last one is in the end.
    fn next(&mut self, machine: &str, changed: bool, now: Instant) -> Option<u32> {
        if !changed && !self.0.contains_key(machine) {
            return None;
        }
        let spent = now;
        let new = Change { unlogged: 0, spent };
        let change = self.0.entry(machine.to_owned()).or_insert(new);
        change.unlogged += u32::from(changed);
        change.spent = change.spent.max(now);
        if change.unlogged == 0 {
            return None;
        }
        if change.spent - now > REGAIN * (CHANGES - 1) {
            return None;
        }
        change.spent += REGAIN;
        Some(std::mem::take(&mut change.unlogged) - 1)
    }

    /// Forgets those of which nothing is left to say.
    fn forget(&mut self, now: Instant) {
        self.0
            .retain(|_, change| change.unlogged > 0 || change.spent > now);
    }
}

/// What has been said of machines and uplinks.
#[derive(Debug, Default)]
pub(super) struct Known {
    changes: Changes,
    machines: BTreeMap<String, (MachineState, Vec<Conflict>)>,
    /// Names by ifindex; `None` before the first look.
    uplinks: Option<BTreeMap<u32, String>>,
}

impl Known {
    /// Names of the machines.
    pub(super) fn machines(&self) -> impl Iterator<Item = &str> {
        self.machines.keys().map(String::as_str)
    }
}

impl Agent {
    /// Says what has changed.
    pub(super) fn tell(&mut self, desired: &Desired) {
        self.tell_machines(desired);
        self.tell_uplinks();
        self.tell_status(desired);
        if let Some(metrics) = &self.metrics {
            let faults = self.snapshot.problems.len();
            metrics.known().resolved(desired, faults);
        }
    }

    /// Has `systemctl status` show what is served, as the `ready:` line does.
    fn tell_status(&mut self, desired: &Desired) {
        if !self.service.exists() {
            return;
        }
        match ready_line(&mut self.plane, desired, self.observer.host()) {
            Ok(line) => self.service.status(line.trim_start_matches("ready: ")),
            Err(error) => tracing::debug!("cannot tell systemd what is served: {error:#}"),
        }
    }

    /// Tells those who follow why the agent ends, and has no more for them.
    pub(super) fn tell_end(&mut self) {
        self.monitors.tell(|| Event {
            message: self.end.map(str::to_owned),
            ..Event::new(Kind::End)
        });
        self.monitors = Monitors::default();
    }

    /// Says which machines came, went, or changed their state.
    fn tell_machines(&mut self, desired: &Desired) {
        let mut machines = BTreeMap::new();
        let moment = Instant::now();
        self.known.changes.forget(moment);
        for machine in &desired.machines {
            let now = (machine.state, machine.conflicts.clone());
            let before = self.known.machines.remove(&machine.name);
            let changed = before.as_ref().map(|(state, _)| *state) != Some(machine.state);
            if let Some(unlogged) = self.known.changes.next(&machine.name, changed, moment) {
                let more = match unlogged {
                    0 => String::new(),
                    unlogged => format!("; {unlogged} changes before are not logged"),
                };
                tracing::info!(
                    machine = machine.name,
                    interface = machine.interface,
                    state = machine.state.name(),
                    "{} is {} ({}){more}",
                    machine.name,
                    machine.state.name(),
                    machine.interface.as_deref().unwrap_or("no port"),
                );
            }
            if before.as_ref() != Some(&now) {
                self.monitors.tell(|| Event {
                    machine: Some(machine.name.clone()),
                    interface: machine.interface.clone(),
                    state: Some(machine.state.name().into()),
                    conflicts: machine.conflicts.clone(),
                    ..Event::new(Kind::Machine)
                });
            }
            machines.insert(machine.name.clone(), now);
        }
        let gone = std::mem::replace(&mut self.known.machines, machines);
        let up = |machines: &BTreeMap<String, (MachineState, Vec<Conflict>)>| {
            let states = machines.values().map(|(state, _)| *state);
            states.filter(|state| *state == MachineState::Up).count()
        };
        let (withdrawn, left) = (up(&gone), up(&self.known.machines));
        if is_alarming(withdrawn, left) {
            tracing::warn!(
                "{withdrawn} of {} machines that were served are withdrawn at once, because \
                 nothing declares them any more; if that is not meant, see whether the files \
                 are still there",
                withdrawn + left
            );
        }
        for name in gone.into_keys() {
            tracing::info!(machine = name, state = "gone", "{name} is gone");
            self.monitors.tell(|| Event {
                machine: Some(name),
                state: Some("gone".into()),
                ..Event::new(Kind::Machine)
            });
        }
    }

    /// Tells which uplinks came and went.
    #[expect(clippy::disallowed_methods, reason = "an event goes without the mode")]
    pub(super) fn tell_uplinks(&mut self) {
        let host = self.observer.host();
        let name = |ifindex: &u32| host.links.get(ifindex).map(|link| link.name.clone());
        let uplinks = &self.plane.state().uplinks;
        let now = uplinks.keys().map(|ifindex| (*ifindex, name(ifindex)));
        let now: BTreeMap<u32, String> = now
            .map(|(ifindex, name)| (ifindex, name.unwrap_or_else(|| "?".to_owned())))
            .collect();
        let before = self.known.uplinks.replace(now.clone());
        // Those of the start are in the `ready:` line.
        let Some(before) = before.filter(|before| !before.keys().eq(now.keys())) else {
            return;
        };
        let attached = self.plane.attached().unwrap_or_default();
        let tell = |ifindex: &u32, name: &str, state: &'static str| {
            let view = attached.iter().find(|view| view.ifindex == *ifindex);
            self.monitors.tell(|| Event {
                interface: Some(name.to_owned()),
                state: Some(state.into()),
                mode: view.map(|view| view.mode.clone().into()),
                ..Event::new(Kind::Uplink)
            });
        };
        for (ifindex, name) in &before {
            if !now.contains_key(ifindex) {
                let there = self.observer.host().links.contains_key(ifindex);
                tell(ifindex, name, if there { "detached" } else { "gone" });
            }
        }
        for (ifindex, name) in &now {
            if !before.contains_key(ifindex) {
                tell(ifindex, name, "attached");
            }
        }
    }

    /// Says who sends what is not theirs, and defends addresses.
    pub(super) fn heed(&mut self, reports: Vec<Report>) {
        let now = Instant::now();
        let state = self.plane.state();
        let links = &self.observer.host().links;
        for report in reports {
            // Two uplinks on one network hear each other.
            if state.uplinks.values().any(|ours| ours.mac == report.mac) {
                continue;
            }
            let wanted = self.monitors.wants(&report);
            let unsaid = self.complaints.next(&report, now);
            if wanted || unsaid.is_some() {
                let event = Event::reported(
                    &report,
                    machine(state, report.endpoint),
                    links.get(&report.ifindex).map(|link| link.name.clone()),
                );
                if let Some(unsaid) = unsaid {
                    complain(&event, unsaid);
                }
                if wanted {
                    let time = monitor::when(&report);
                    self.monitors.tell(|| Event { time, ..event });
                }
            }
            if let (Reason::AddressConflict, Some(address)) = (report.reason, report.address)
                && self.announcements.defend(address, now)
            {
                self.monitors.tell(|| Event {
                    machine: machine(state, report.endpoint),
                    mac: Some(DisplayMac(report.mac).to_string()),
                    address: Some(address),
                    cause: Some("conflict".into()),
                    ..Event::new(Kind::Announce)
                });
            }
        }
    }
}

/// Whether so many are withdrawn at once that it may be an accident: more than half, of ten
/// at least.
fn is_alarming(withdrawn: usize, left: usize) -> bool {
    withdrawn + left >= 10 && withdrawn > left
}

fn machine(state: &State, id: Owner) -> Option<String> {
    let entry = state.endpoints.get(&id)?;
    Some(plan::text(&entry.name))
}

fn complain(event: &Event, unsaid: u32) {
    let more = match unsaid {
        0 => String::new(),
        unsaid => format!("; {unsaid} times more since this was last said"),
    };
    tracing::warn!(
        machine = event.machine,
        interface = event.interface,
        reason = event.reason.as_deref(),
        mac = event.mac,
        address = event.address.map(|address| address.to_string()),
        "{}: {}{more}",
        event.machine.as_deref().unwrap_or("?"),
        event.words()
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn machine_that_changes_all_the_time_is_logged_seldom_and_in_the_end() {
        let start = Instant::now();
        let mut changes = Changes::default();
        assert_eq!(changes.next("web", false, start), None);
        let (mut logged, mut unlogged, mut now) = (0, 0, start);
        for _ in 0..12_000 {
            now += Duration::from_millis(5);
            if let Some(before) = changes.next("web", true, now) {
                logged += 1;
                unlogged += before;
            }
        }
        // A minute: ten at once, and one each six seconds.
        assert!((15..=CHANGES + 10).contains(&logged), "{logged}");
        assert_eq!(changes.next("db", true, now), Some(0));
        // Looked at again, it has not changed, and is logged once.
        let left = 12_000 - logged - unlogged;
        assert!(left > 0);
        assert_eq!(changes.next("web", false, now), None);
        now += REGAIN;
        assert_eq!(changes.next("web", false, now), Some(left - 1));
        assert_eq!(changes.next("web", false, now), None);
        changes.forget(now);
        assert_eq!(changes.0.len(), 1);
        changes.forget(now + REGAIN * (CHANGES + 1));
        assert!(changes.0.is_empty());
    }

    #[test]
    fn problem_that_comes_and_goes_is_logged_once_a_minute_and_told_each_time() {
        let fault = crate::problem::Fault::new("is wrong", "put it right");
        let problem = fault.at(std::path::Path::new("web.toml"), None, None);
        let mut told = Told::default();
        for _ in 0..100 {
            told.tell(std::iter::once(&problem));
            assert_eq!(told.troubles().len(), 1);
            told.tell(std::iter::empty());
            assert!(told.troubles().is_empty());
        }
        assert_eq!(told.logged.len(), 1);
    }

    #[test]
    fn more_than_half_of_ten_is_alarming() {
        assert!(is_alarming(6, 4) && is_alarming(10, 0));
        assert!(!is_alarming(5, 5) && !is_alarming(9, 0) && !is_alarming(1, 1000));
    }
}
