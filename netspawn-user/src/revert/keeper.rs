//! The process that waits for the deadline, and undoes what was not confirmed.

use std::{
    fs::{self, File},
    io::{self, Write as _},
    os::{
        fd::AsFd as _,
        unix::{fs::MetadataExt as _, net::UnixDatagram},
    },
    process::ExitCode,
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use clap::Parser as _;
use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::{
        inotify::{AddWatchFlags, InitFlags, Inotify},
        signal::{SigHandler, Signal, signal},
        time::TimeSpec,
        timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags},
    },
    unistd::{dup2_stderr, dup2_stdin, dup2_stdout},
};

use super::{
    pending::{self, Record, reverting_file, waiting_file},
    undo::{Standing, Undo},
};
use crate::{
    cli::{self, AttachArgs, DetachArgs, Global},
    commands::{attach, detach},
    control::{Request, RunDir, Turn},
    datapath::pins::Pins,
    lock::Holder,
    outcome::Outcome,
};

/// The first word of its command line.
pub const WORD: &str = "revert";
/// What it says once it waits.
pub const ARMED: &str = "armed";
/// How long an agent may take to answer before it is ended: nothing may depend on it.
const ANSWER: Duration = Duration::from_secs(10);
/// Longest time between two attempts.
const PAUSE: Duration = Duration::from_secs(30);

/// The whole process.
pub fn main() -> ExitCode {
    let global = cli::Revert::parse_from(std::env::args_os().skip(1)).global;
    tracing_subscriber::fmt()
        .with_writer(Syslog::default)
        .with_ansi(false)
        .with_target(false)
        .without_time()
        .init();
    match run(&global) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Nobody is left to tell when stderr is closed.
            let _ = writeln!(io::stderr(), "netspawn-xdp: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Waits, with the record as standard input; its standard output hears [`ARMED`].
///
/// # Errors
/// When it cannot wait. Failures to undo are logged, and tried again until there are
/// none.
fn run(global: &Global) -> Result<()> {
    let mut file = File::from(io::stdin().as_fd().try_clone_to_owned()?);
    let Some((record, _)) = pending::read(&mut file) else {
        bail!("`revert` is for `attach --revert-after`, which starts it; see `attach --help`");
    };
    ignore_signals()?;
    let path = waiting_file(global);
    let watch = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)?;
    watch
        .add_watch(&path, AddWatchFlags::IN_ATTRIB)
        .with_context(|| format!("cannot watch {}", path.display()))?;
    let timer = TimerFd::new(ClockId::CLOCK_BOOTTIME, TimerFlags::TFD_CLOEXEC)?;
    let deadline = TimeSpec::from_duration(Duration::from_nanos(record.deadline));
    timer.set(
        Expiration::OneShot(deadline),
        TimerSetTimeFlags::TFD_TIMER_ABSTIME,
    )?;
    writeln!(file, "{}", std::process::id())?;
    // An attach that is gone has not changed anything yet.
    let _ = writeln!(io::stdout(), "{ARMED}");
    leave_terminal()?;

    loop {
        let mut events = [
            PollFd::new(watch.as_fd(), PollFlags::POLLIN),
            PollFd::new(timer.as_fd(), PollFlags::POLLIN),
        ];
        let _ = poll(&mut events, PollTimeout::NONE);
        let _ = watch.read_events();
        // Removed by `confirm`, or with the whole folder.
        if file.metadata()?.nlink() == 0 {
            return Ok(());
        }
        if !record.left().is_positive() {
            break;
        }
    }
    if fs::rename(&path, reverting_file(global)).is_err() {
        return Ok(());
    }
    undo(global, &record, &mut file);
    let _ = fs::remove_file(reverting_file(global));
    if let Ok(Turn::Mine(_lock)) = RunDir::new(&global.run_dir).turn()
        && let Ok(false) = Pins::new(&global.bpf_dir).exist()
    {
        RunDir::new(&global.run_dir).clear();
    }
    Ok(())
}

/// Nothing ends it but `confirm`: not a terminal that goes, not one that is stopped.
fn ignore_signals() -> Result<()> {
    for ignored in [
        Signal::SIGHUP,
        Signal::SIGINT,
        Signal::SIGQUIT,
        Signal::SIGTERM,
        Signal::SIGTSTP,
        Signal::SIGPIPE,
    ] {
        // SAFETY: no handler is installed.
        unsafe { signal(ignored, SigHandler::SigIgn) }?;
    }
    Ok(())
}

/// Lets go of the terminal, and of the folder that it was started in.
fn leave_terminal() -> Result<()> {
    let null = File::options().read(true).write(true).open("/dev/null")?;
    dup2_stdin(&null)?;
    dup2_stdout(&null)?;
    dup2_stderr(&null)?;
    std::env::set_current_dir("/")?;
    Ok(())
}

/// Tries until nothing is left to undo.
fn undo(global: &Global, record: &Record, file: &mut File) {
    let mut pause = Duration::from_secs(1);
    let mut told = String::new();
    loop {
        let tell = |undo: &Undo| {
            let words = format!("not confirmed in time: {undo}");
            if words != told {
                tracing::warn!("{words}");
                // For the attach, if it is still there.
                let _ = writeln!(file, "{words}");
                told = words;
            }
        };
        match attempt(global, record, tell) {
            Ok(true) => return,
            // Looks whether something is left.
            Ok(false) => {}
            Err(error) => {
                tracing::error!("{error:#}; trying again in {} s", pause.as_secs());
                thread::sleep(pause);
                pause = (pause * 2).min(PAUSE);
            }
        }
    }
}

/// One attempt; true when nothing was left to undo.
fn attempt(global: &Global, record: &Record, tell: impl FnOnce(&Undo)) -> Result<bool> {
    let run_dir = RunDir::new(&global.run_dir);
    // When it is our turn, or an agent answers, nobody is in the middle of an attach.
    let pid = match turn(&run_dir) {
        Ok(pid) => pid,
        Err(error) => {
            let Some(holder) = Holder::find(&run_dir.lock_file())? else {
                return Err(error);
            };
            tracing::error!(
                "process {} does not answer ({error:#}); it is killed",
                holder.pid()
            );
            holder.signal(Signal::SIGKILL)?;
            holder.has_ended(ANSWER)?;
            turn(&run_dir)?
        }
    };
    let undo = Undo::of(&record.before, &Standing::read(global)?, record.agent(pid));
    if undo.is_empty() {
        return Ok(true);
    }
    tell(&undo);
    if undo.end_agent
        && let Some(pid) = pid
    {
        end(&run_dir, pid)?;
    }
    for (name, mode) in undo.restore {
        let args = AttachArgs {
            uplinks: vec![name],
            mode: Some(mode),
            source: Some(record.before.sources.iter().copied().collect()),
            once: true,
            ..AttachArgs::default()
        };
        whole(attach::run(global, &args)?)?;
    }
    if undo.everything {
        whole(detach::run(global, &DetachArgs { uplinks: vec![] })?)?;
    } else if !undo.detach.is_empty() {
        let uplinks = undo.detach;
        whole(detach::run(global, &DetachArgs { uplinks })?)?;
    }
    Ok(false)
}

/// Process id of the agent, `None` when there is none.
fn turn(run_dir: &RunDir) -> Result<Option<u32>> {
    match run_dir.turn()? {
        Turn::Mine(_lock) => Ok(None),
        Turn::Agent(client) => {
            let response = client.within(ANSWER)?.ask(&Request::Status)?;
            Ok(response.agent.map(|agent| agent.pid))
        }
    }
}

/// Ends the agent that says it is that process.
fn end(run_dir: &RunDir, pid: u32) -> Result<()> {
    let path = run_dir.lock_file();
    let Some(agent) = Holder::find(&path)?.filter(|holder| holder.pid() == pid) else {
        bail!(
            "process {pid} says that it is the agent, and does not have {} locked as one",
            path.display()
        );
    };
    for signal in [Signal::SIGTERM, Signal::SIGKILL] {
        agent.signal(signal)?;
        if agent.has_ended(ANSWER)? {
            return Ok(());
        }
    }
    bail!("process {pid} does not end");
}

fn whole(outcome: Outcome) -> Result<()> {
    match outcome {
        Outcome::Done => Ok(()),
        Outcome::Partly(remains) => bail!("{}", remains.join("; ")),
    }
}

/// Where it logs: journald or a syslog daemon, and nowhere on a machine that has none.
#[derive(Clone, Copy, Debug, Default)]
pub struct Syslog;

impl io::Write for Syslog {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        /// Facility daemon, severity warning (RFC 3164 4.1.1).
        const PRIORITY: u8 = 3 * 8 + 4;
        let head = format!("<{PRIORITY}>netspawn-xdp[{}]: ", std::process::id());
        let whole = [head.as_bytes(), line.trim_ascii_end()].concat();
        UnixDatagram::unbound()?.send_to(&whole, "/dev/log")?;
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
