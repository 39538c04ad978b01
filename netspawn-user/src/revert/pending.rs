//! `RUNDIR/revert`: what is pending, and who decides whether it is undone.
//!
//! The process that will undo the attach holds the file locked for all its life, so
//! that it is seen when it was killed. One atomic step decides: `confirm` removes
//! the file, the process renames it to `RUNDIR/reverting` when the time is over.
//! Whoever comes second finds it gone.
//!
//! The first line is a [`Record`], the second the process's id, the third what it is doing
//! once the time is over.

use std::{
    fs::{self, File, TryLockError},
    io::{self, Read as _},
    path::PathBuf,
    thread,
    time::{Duration, Instant},
};

use jiff::SignedDuration;
use nix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

use super::{
    brief, clock_time,
    undo::{Agent, Standing, Undo},
};
use crate::{cli::Global, datapath::pins::Pins};

/// How long the process may take to end.
const END: Duration = Duration::from_secs(5);

/// Where it waits for the deadline.
pub fn waiting_file(global: &Global) -> PathBuf {
    global.run_dir.join("revert")
}

/// Where it is once the time is over.
pub fn reverting_file(global: &Global) -> PathBuf {
    global.run_dir.join("reverting")
}

/// `CLOCK_BOOTTIME` in nanoseconds: no setting of the clock moves it, and it goes on while the
/// machine sleeps.
#[expect(
    clippy::disallowed_methods,
    reason = "a record that is none counts as none; the keeper's own file says more"
)]
pub fn boottime() -> u64 {
    let now = clock_gettime(ClockId::CLOCK_BOOTTIME).map_or(Duration::ZERO, Duration::from);
    u64::try_from(now.as_nanos()).unwrap_or(u64::MAX)
}

/// What is to be undone, and when.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// `CLOCK_BOOTTIME` in nanoseconds.
    pub deadline: u64,
    /// Process id of the attach.
    pub attach: u32,
    /// What was attached before it.
    pub before: Standing,
}

impl Record {
    /// Time until the deadline; negative afterwards.
    #[expect(
        clippy::disallowed_methods,
        reason = "a record that is none counts as none; the keeper's own file says more"
    )]
    pub fn left(&self) -> SignedDuration {
        let left = i128::from(self.deadline) - i128::from(boottime());
        SignedDuration::from_nanos(i64::try_from(left).unwrap_or(i64::MAX))
    }

    /// What the agent of that process id is to this attach.
    pub fn agent(&self, pid: Option<u32>) -> Agent {
        match pid {
            None => Agent::None,
            Some(pid) if pid == self.attach => Agent::Own,
            Some(_) => Agent::Other,
        }
    }
}

/// How far it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// There is time to confirm.
    Waiting,
    /// The time is over.
    Reverting,
    /// The process was killed: nobody will undo anything.
    Lost,
}

impl Phase {
    /// Its name in JSON.
    pub const fn name(self) -> &'static str {
        match self {
            Phase::Waiting => "waiting",
            Phase::Reverting => "reverting",
            Phase::Lost => "lost",
        }
    }
}

/// A revert that was asked for, and has not come to an end.
#[derive(Debug)]
pub struct Pending {
    /// What and when.
    pub record: Record,
    /// The process, once it has said so.
    pub pid: Option<u32>,
    /// How far it is.
    pub phase: Phase,
    path: PathBuf,
    file: File,
}

impl Pending {
    /// The one there is. What cannot be read counts as none.
    pub fn look(global: &Global) -> Option<Pending> {
        for (path, phase) in [
            (waiting_file(global), Phase::Waiting),
            (reverting_file(global), Phase::Reverting),
        ] {
            if let Ok(mut file) = File::open(&path)
                && let Some((record, pid)) = read(&mut file)
            {
                let phase = if held(&file) { phase } else { Phase::Lost };
                return Some(Pending {
                    record,
                    pid,
                    phase,
                    path,
                    file,
                });
            }
        }
        None
    }

    /// One line for people.
    pub fn words(&self, global: &Global) -> String {
        let left = self.record.left();
        let pid = self
            .pid
            .map_or_else(|| "?".to_owned(), |pid| pid.to_string());
        match self.phase {
            Phase::Waiting => {
                let undo = match Standing::read(global) {
                    Ok(now) => Undo::of(&self.record.before, &now, Agent::Other).to_string(),
                    Err(error) => format!("what was attached since is undone ({error:#})"),
                };
                format!(
                    "a revert is pending: unless confirmed within {}, by {}: {undo}",
                    brief(left),
                    clock_time(left)
                )
            }
            Phase::Reverting => format!(
                "a revert is under way since {}, by process {pid}; it is tried again until it is done",
                clock_time(left)
            ),
            Phase::Lost => format!(
                "a revert was pending, but its process {pid} was killed; nothing will be undone"
            ),
        }
    }

    /// Ends it, and waits for its process to end; false when another was faster.
    pub fn remove(&self, global: &Global) -> bool {
        if fs::remove_file(&self.path).is_err() {
            return false;
        }
        let start = Instant::now();
        while held(&self.file) {
            if start.elapsed() > END {
                tracing::warn!(
                    "the process that would have undone the attach is still there: {}",
                    self.pid.unwrap_or_default()
                );
                break;
            }
            thread::sleep(Duration::from_millis(5));
        }
        tidy(global);
        true
    }
}

/// Removes RUNDIR when the data plane is gone, and nothing is in it: `detach` could not while
/// the revert was pending.
pub fn tidy(global: &Global) {
    if let Ok(false) = Pins::new(&global.bpf_dir).exist() {
        // Not empty: then it is in use.
        let _ = fs::remove_dir(&global.run_dir);
    }
}

/// Reads a file from its start.
#[expect(
    clippy::disallowed_methods,
    reason = "a record that is none counts as none; the keeper's own file says more"
)]
pub fn read(file: &mut File) -> Option<(Record, Option<u32>)> {
    let mut text = String::new();
    io::Seek::rewind(file).ok()?;
    file.read_to_string(&mut text).ok()?;
    let mut lines = text.lines();
    let record = serde_json::from_str(lines.next()?).ok()?;
    Some((record, lines.next().and_then(|pid| pid.parse().ok())))
}

/// Whether a process lives that has the file locked.
fn held(file: &File) -> bool {
    match file.try_lock_shared() {
        Ok(()) => {
            let _ = file.unlock();
            false
        }
        Err(TryLockError::WouldBlock) => true,
        Err(TryLockError::Error(_)) => false,
    }
}
