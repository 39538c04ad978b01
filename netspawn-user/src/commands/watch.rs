//! A report once, or again and again until somebody has seen enough.

use std::{
    io::{self, Write as _},
    os::fd::{AsRawFd, RawFd},
    time::Duration,
};

use anyhow::{Context as _, Result};
use console::style;
use crossterm::{cursor, execute, terminal};
use jiff::Timestamp;
use tokio::{
    io::{Interest, unix::AsyncFd},
    runtime::Runtime,
    signal::unix::{SignalKind, signal},
    time::{Instant, sleep_until},
};

use super::View;
use crate::{
    cli::{Global, WatchArgs},
    output::{self, Report, is_terminal},
};

/// What to say beside a report without an uplink.
pub const NOTHING_ATTACHED: &str =
    "no uplink is attached, so no machine is served; see `attach --help`";

/// One look at the data plane.
pub struct Look<R> {
    /// What it shows.
    pub report: R,
    /// What is to be said beside it.
    pub notes: Vec<String>,
    /// Who is there.
    pub presence: Presence,
}

/// Who is there, whose coming and going is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Presence {
    /// Whether an uplink is attached.
    pub attached: bool,
    /// Process id of the agent.
    pub agent: Option<u32>,
}

impl Presence {
    /// As a view has it.
    pub fn of(view: &View) -> Self {
        Presence {
            attached: !view.uplinks.is_empty(),
            agent: view.agent.as_ref().map(|agent| agent.pid),
        }
    }

    /// What has changed since `before`.
    fn changes(self, before: Presence) -> Vec<String> {
        let mut changes = Vec::new();
        match (before.attached, self.attached) {
            (true, false) => changes.push("the data plane was taken away".to_owned()),
            (false, true) => changes.push("the data plane is attached".to_owned()),
            _ => {}
        }
        match (before.agent, self.agent) {
            (before, now) if before == now => {}
            (Some(pid), None) => changes.push(format!("the agent (pid {pid}) has ended")),
            (None, Some(pid)) => changes.push(format!("an agent runs (pid {pid})")),
            (_, Some(pid)) => changes.push(format!("the agent was restarted (pid {pid})")),
            (None, None) => {}
        }
        changes
    }
}

/// How many a second, 0 when the count began anew.
pub fn rate(before: Option<u64>, now: u64, seconds: f64) -> f64 {
    let more = before.and_then(|before| now.checked_sub(before));
    #[expect(clippy::cast_precision_loss, reason = "a rate is for people")]
    more.map_or(0.0, |more| more as f64 / seconds.max(1e-3))
}

/// Prints a report, and says on stderr what is beside it; with `--watch` again
/// and again, until a signal or until nobody reads.
///
/// # Errors
/// When the first look fails, or stdout is full.
pub fn show<R: Report>(
    global: &Global,
    args: &WatchArgs,
    mut look: impl FnMut() -> Result<Look<R>>,
) -> Result<()> {
    let first = look()?;
    let Some(every) = args.watch else {
        first.report.print(global.json)?;
        tell(&first.notes);
        return Ok(());
    };
    let mut stop = Stop::new()?;
    if is_terminal() && !global.json {
        on_screen(every, first, &mut stop, &mut look)
    } else {
        appended(global.json, every, first, &mut stop, &mut look)
    }
}

fn tell(notes: &[String]) {
    for note in notes {
        tracing::warn!("{note}");
    }
}

/// Blocks separated by an empty line, or a JSON document a line.
fn appended<R: Report>(
    json: bool,
    every: Duration,
    first: Look<R>,
    stop: &mut Stop,
    look: &mut impl FnMut() -> Result<Look<R>>,
) -> Result<()> {
    let mut next = Instant::now() + every;
    let (mut presence, mut notes) = (first.presence, first.notes.clone());
    tell(&notes);
    print(&first.report, json, true)?;
    while stop.wait(next) == Woken::ByTime {
        next = Instant::now().max(next) + every;
        let now = match look() {
            Ok(now) => now,
            Err(error) => {
                let note = vec![format!("{error:#}; trying again")];
                if notes != note {
                    tell(&note);
                    notes = note;
                }
                continue;
            }
        };
        tell(&now.presence.changes(presence));
        presence = now.presence;
        if now.notes != notes {
            tell(&now.notes);
            notes = now.notes;
        }
        print(&now.report, json, false)?;
    }
    Ok(())
}

fn print<R: Report>(report: &R, json: bool, first: bool) -> Result<()> {
    if json {
        return output::print(&(serde_json::to_string(report)? + "\n"));
    }
    let gap = if first { "" } else { "\n" };
    output::print(&format!("{gap}{}", report.render(false)?))
}

/// In place. What was seen last stays when it ends.
fn on_screen<R: Report>(
    every: Duration,
    first: Look<R>,
    stop: &mut Stop,
    look: &mut impl FnMut() -> Result<Look<R>>,
) -> Result<()> {
    let mut next = Instant::now() + every;
    let mut shown = first;
    let mut event = None;
    let screen = Screen::open()?;
    loop {
        draw(every, &shown, event.as_deref())?;
        match stop.wait(next) {
            Woken::ToEnd => break,
            Woken::ByResize => continue,
            Woken::ByTime => next = Instant::now().max(next) + every,
        }
        match look() {
            Ok(now) => {
                let changes = now.presence.changes(shown.presence);
                if !changes.is_empty() {
                    event = Some(dated(&changes.join(", ")));
                }
                shown = now;
            }
            Err(error) => event = Some(dated(&format!("{error:#}; trying again"))),
        }
    }
    drop(screen);
    shown.report.print(false)
}

fn dated(text: &str) -> String {
    format!("{}: {text}", output::time(Timestamp::now()))
}

fn draw<R: Report>(every: Duration, shown: &Look<R>, event: Option<&str>) -> Result<()> {
    let (columns, rows) = terminal::size().context("cannot measure the terminal")?;
    let (columns, rows) = (usize::from(columns), usize::from(rows));
    let head = format!(
        "every {} s, Ctrl-C ends  {}",
        every.as_secs_f64(),
        output::time(Timestamp::now())
    );
    let report = shown.report.screen(columns)?;
    let notes: Vec<&str> = event
        .into_iter()
        .chain(shown.notes.iter().map(String::as_str))
        .collect();
    let mut lines = vec![style(head).dim().to_string()];
    lines.extend(report.lines().map(str::to_owned));
    let room = rows.saturating_sub(notes.len()).max(2);
    if lines.len() > room {
        let more = lines.len() - room + 1;
        lines.truncate(room - 1);
        lines.push(style(format!("… {more} lines more")).dim().to_string());
    }
    lines.extend(
        notes
            .into_iter()
            .map(|note| style(note).yellow().to_string()),
    );
    lines.truncate(rows);
    let text = output::cut(&lines.join("\n"), columns);
    // Each line clears its own rest: nothing flashes.
    let text = text.trim_end().replace('\n', "\x1b[K\r\n");
    output::print(&format!("\x1b[H{text}\x1b[K\x1b[J"))
}

/// The terminal's other screen, left when dropped.
struct Screen;

impl Screen {
    fn open() -> Result<Self> {
        execute!(io::stdout(), terminal::EnterAlternateScreen, cursor::Hide)
            .context("cannot write to the terminal")?;
        Ok(Screen)
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        // Nobody is left to tell when the terminal is gone.
        let _ = execute!(io::stdout(), cursor::Show, terminal::LeaveAlternateScreen);
        let _ = io::stdout().flush();
    }
}

/// Why [`Stop::wait`] is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Woken {
    ByTime,
    ByResize,
    ToEnd,
}

/// What ends a watch. Its runtime only waits: a look at the data plane may need one
/// of its own.
struct Stop {
    runtime: Runtime,
    signals: [tokio::signal::unix::Signal; 3],
    resized: tokio::signal::unix::Signal,
    /// Stdout, where it is a pipe whose reader may go.
    pipe: Option<AsyncFd<Stdout>>,
}

struct Stdout;

impl AsRawFd for Stdout {
    fn as_raw_fd(&self) -> RawFd {
        libc::STDOUT_FILENO
    }
}

impl Stop {
    #[expect(
        clippy::disallowed_methods,
        reason = "a terminal that is gone needs nothing"
    )]
    fn new() -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .context("cannot wait for signals")?;
        let handle = runtime.handle().clone();
        let _entered = handle.enter();
        Ok(Stop {
            signals: [
                signal(SignalKind::interrupt())?,
                signal(SignalKind::terminate())?,
                signal(SignalKind::hangup())?,
            ],
            resized: signal(SignalKind::window_change())?,
            // A file cannot be waited for.
            // SAFETY: stdout is open as long as the process is.
            pipe: unsafe { AsyncFd::register_with_interest(Stdout, Interest::ERROR) }.ok(),
            runtime,
        })
    }

    fn wait(&mut self, until: Instant) -> Woken {
        let Stop {
            runtime,
            signals: [interrupt, terminate, hangup],
            resized,
            pipe,
        } = self;
        runtime.block_on(async {
            tokio::select! {
                () = sleep_until(until) => Woken::ByTime,
                _ = interrupt.recv() => Woken::ToEnd,
                _ = terminate.recv() => Woken::ToEnd,
                _ = hangup.recv() => Woken::ToEnd,
                _ = resized.recv() => Woken::ByResize,
                () = unread(pipe.as_ref()) => Woken::ToEnd,
            }
        })
    }
}

/// Returns when nobody reads a pipe any more.
#[expect(
    clippy::disallowed_methods,
    reason = "a terminal that is gone needs nothing"
)]
async fn unread(pipe: Option<&AsyncFd<Stdout>>) {
    match pipe {
        Some(pipe) if pipe.ready(Interest::ERROR).await.is_ok() => {}
        _ => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comings_and_goings_are_told() {
        let none = Presence {
            attached: false,
            agent: None,
        };
        let there = |agent| Presence {
            attached: true,
            agent,
        };
        assert_eq!(
            there(Some(7)).changes(none),
            ["the data plane is attached", "an agent runs (pid 7)"]
        );
        assert_eq!(
            there(None).changes(there(Some(7))),
            ["the agent (pid 7) has ended"]
        );
        assert_eq!(
            there(Some(8)).changes(there(Some(7))),
            ["the agent was restarted (pid 8)"]
        );
        assert_eq!(none.changes(there(None)), ["the data plane was taken away"]);
        assert!(none.changes(none).is_empty());
    }

    #[test]
    fn count_that_began_anew_has_no_rate() {
        assert!((rate(Some(10), 30, 2.0) - 10.0).abs() < 1e-9);
        assert!(rate(Some(30), 10, 2.0).abs() < 1e-9);
        assert!(rate(None, 10, 2.0).abs() < 1e-9);
    }
}
