//! `attach --revert-after`: an attach that is undone unless `confirm` comes in time.
//!
//! Who undoes it must not depend on who attached: a terminal may go with all of its
//! processes, and an agent may be killed. So a process of its own, started before
//! anything is changed, waits for the deadline ([`keeper`]). It and the commands meet
//! at one file, `RUNDIR/revert` ([`pending`]). What is done follows from what was
//! attached before and what is attached then ([`undo`]).

pub mod keeper;
mod launch;
mod pending;
mod undo;

use std::time::Duration;

use anyhow::{Result, bail};
use jiff::{SignedDuration, Timestamp};
use serde::Serialize;

pub use launch::Started;
use pending::{Pending, Phase, Record};
pub use undo::Attached;
use undo::{Agent, Standing, Undo};

use crate::{
    cli::{Global, Mode},
    config::AttachSettings,
    control::{RunDir, Turn},
    model::Link,
};

/// Before an attach changes anything: refuses what a pending revert forbids, and starts
/// the process that undoes this attach, when that is asked for.
///
/// # Errors
/// When a revert is pending, and the attach asks for another or changes what is
/// attached; when the process cannot be started.
pub fn begin(
    global: &Global,
    settings: &AttachSettings,
    uplinks: &[(&Link, Mode)],
    turn: &Turn,
) -> Result<Option<Started>> {
    let before = Standing::read(global)?;
    let (agent, sources) = match turn {
        Turn::Agent(_) => (Agent::Other, &before.sources),
        Turn::Mine(_) if settings.once => (Agent::None, &settings.sources),
        Turn::Mine(_) => (Agent::Own, &settings.sources),
    };
    let after = before.with(uplinks, sources);
    // The process that undoes the last one attaches too.
    if let Some(pending) = Pending::look(global)
        && pending.pid != Some(std::process::id())
    {
        if pending.phase == Phase::Lost {
            pending.remove(global);
        } else if settings.revert_after.is_some() || after.uplinks != before.uplinks {
            bail!(
                "{}; run `{}` to keep what is attached, or `netspawn-xdp detach`, then this again",
                pending.words(global),
                confirm_line(global),
            );
        } else {
            tracing::warn!("{}", pending.words(global));
            return Ok(None);
        }
    }
    let Some(time) = settings.revert_after else {
        return Ok(None);
    };
    let undo = Undo::of(&before, &after, agent);
    if undo.is_empty() {
        tracing::info!(
            "there will be nothing to undo: {} attached as before",
            settings.uplinks.join(", ")
        );
        return Ok(None);
    }
    let started = launch::start(
        global,
        &Record {
            deadline: pending::boottime().saturating_add(time.as_nanos().try_into()?),
            attach: std::process::id(),
            before,
        },
    )?;
    tracing::warn!(
        "unless `{}` is run within {}, by {}: {undo}",
        confirm_line(global),
        brief(time),
        clock_time(time),
    );
    Ok(Some(started))
}

/// Ends a revert that is pending when nothing is left for it to undo: after an attach
/// that failed, or a `detach`.
pub fn settle(global: &Global) {
    if let Some(pending) = Pending::look(global)
        && pending.phase == Phase::Waiting
    {
        match is_undone(global, &pending) {
            Ok(true) => drop(pending.remove(global)),
            Ok(false) => tracing::warn!("{}", pending.words(global)),
            Err(error) => tracing::warn!("{}; {error:#}", pending.words(global)),
        }
    }
}

fn is_undone(global: &Global, pending: &Pending) -> Result<bool> {
    let agent = RunDir::new(&global.run_dir).agent()?;
    let now = Standing::read(global)?;
    let agent = pending.record.agent(agent.map(|agent| agent.pid));
    Ok(Undo::of(&pending.record.before, &now, agent).is_empty())
}

/// What `confirm` keeps: all that is attached.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Kept {
    /// The uplinks.
    pub kept: Vec<Attached>,
}

/// Ends the revert that is pending.
///
/// # Errors
/// When none is, or when it is too late.
pub fn confirm(global: &Global) -> Result<Kept> {
    let Some(pending) = Pending::look(global) else {
        bail!(
            "no revert is pending: none was asked for, it was confirmed, or its time is over; \
             `netspawn-xdp status` shows what is attached"
        );
    };
    match pending.phase {
        Phase::Reverting => bail!("too late: {}", pending.words(global)),
        Phase::Lost => tracing::warn!("{}", pending.words(global)),
        Phase::Waiting => {}
    }
    if !pending.remove(global) {
        bail!("too late: the time is over, and what was attached is being undone");
    }
    Ok(Kept {
        kept: Standing::read(global)?.uplinks,
    })
}

/// The revert that is pending, in `status --json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RevertReport {
    /// When it is due.
    pub at: Timestamp,
    /// Seconds until then, less than zero when it is over.
    pub left: i64,
    /// The process that waits for it; `null` in its first moments.
    pub pid: Option<u32>,
    /// `waiting`, `reverting`, or `lost` when the process was killed.
    pub phase: &'static str,
    /// For people.
    #[serde(skip)]
    pub words: String,
}

/// The revert that is pending.
pub fn report(global: &Global) -> Option<RevertReport> {
    let pending = Pending::look(global)?;
    let left = pending.record.left();
    Some(RevertReport {
        at: Timestamp::now() + left,
        left: left.as_secs(),
        pid: pending.pid,
        phase: pending.phase.name(),
        words: pending.words(global),
    })
}

/// The command that keeps what is attached.
fn confirm_line(global: &Global) -> String {
    let run_dir = global.run_dir.display().to_string();
    if run_dir == "/run/netspawn" {
        "netspawn-xdp confirm".to_owned()
    } else {
        format!("netspawn-xdp --run-dir {run_dir} confirm")
    }
}

/// `1m 30s`.
#[expect(
    clippy::disallowed_methods,
    reason = "the keeper goes on whatever happens, and says what went wrong where it can"
)]
fn brief(time: impl TryInto<SignedDuration>) -> String {
    let time = time.try_into().unwrap_or(SignedDuration::MAX);
    format!("{:#}", time.round(jiff::Unit::Second).unwrap_or(time))
}

/// `12:34:56 UTC`, that time from now.
#[expect(
    clippy::disallowed_methods,
    reason = "the keeper goes on whatever happens, and says what went wrong where it can"
)]
fn clock_time(time: impl TryInto<SignedDuration>) -> String {
    let time = time.try_into().unwrap_or(SignedDuration::ZERO);
    (Timestamp::now() + time)
        .strftime("%H:%M:%S UTC")
        .to_string()
}

/// Shortest `--revert-after`.
pub const SHORTEST: Duration = Duration::from_secs(1);
/// Longest `--revert-after`.
pub const LONGEST: Duration = Duration::from_secs(24 * 60 * 60);
