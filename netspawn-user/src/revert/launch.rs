//! Starts the process that waits for the deadline, out of reach of whatever ends this one.

use std::{
    fs::File,
    io::{self, Read as _, Seek as _, Write as _},
    os::unix::process::CommandExt as _,
    process::{self, Command, Stdio},
};

use anyhow::{Context as _, Result, bail};
use nix::unistd::{ForkResult, fork, setsid};

use super::{
    keeper::{ARMED, WORD},
    pending::{Record, waiting_file},
};
use crate::cli::Global;

/// A process that undoes this attach.
#[derive(Debug)]
pub struct Started {
    // Not the file that is locked: its lock would outlive the process.
    file: File,
}

impl Started {
    /// What the process has undone, or is about to; `None` as long as the time is not over.
    #[expect(
        clippy::disallowed_methods,
        reason = "the keeper goes on whatever happens, and says what went wrong where it can"
    )]
    pub fn reverted(mut self) -> Option<String> {
        let mut text = String::new();
        self.file.rewind().ok()?;
        self.file.read_to_string(&mut text).ok()?;
        text.lines().nth(2).map(str::to_owned)
    }
}

/// Starts it, and returns when it waits for the deadline.
pub fn start(global: &Global, record: &Record) -> Result<Started> {
    let path = waiting_file(global);
    // Complete, and locked, from the moment that others see it.
    let mut draft = tempfile::NamedTempFile::new_in(&global.run_dir)
        .with_context(|| format!("cannot write to {}", global.run_dir.display()))?;
    writeln!(draft, "{}", serde_json::to_string(record)?)?;
    draft.as_file().lock()?;
    let locked = draft
        .persist_noclobber(&path)
        .with_context(|| format!("cannot make {}", path.display()))?;
    let result = launch(global, locked)
        .and_then(|()| Ok(File::open(&path)?))
        .context(
            "cannot start the process that would undo this attach, so nothing is attached; \
             `attach` without --revert-after does without it",
        );
    if result.is_err() {
        // The first failure is the one to report.
        let _ = std::fs::remove_file(&path);
    }
    Ok(Started { file: result? })
}

/// The lock goes to the process with the file, which is its standard input.
#[expect(
    clippy::disallowed_methods,
    reason = "the keeper goes on whatever happens, and says what went wrong where it can"
)]
fn launch(global: &Global, locked: File) -> Result<()> {
    let own = std::env::current_exe().context("cannot find this program")?;
    let mut command = if sd_notify::booted().unwrap_or(false) {
        // In a unit of its own: logind and systemd end sessions and services with all
        // processes in their control groups.
        let mut command = Command::new("systemd-run");
        command
            .args(["--scope", "--quiet", "--collect"])
            .arg(format!("--unit=netspawn-xdp-revert-{}", process::id()))
            .arg("--description=Undoes an attach that is not confirmed")
            // It heeds no other, and the data plane does not outlive the shutdown.
            .arg("--property=KillSignal=SIGKILL")
            .arg("--")
            .arg(own);
        command
    } else {
        Command::new(own)
    };
    let (mut words, pipe) = io::pipe()?;
    command
        .arg(WORD)
        .arg("--config-dir")
        .arg(&global.config_dir)
        .arg("--run-dir")
        .arg(&global.run_dir)
        .arg("--bpf-dir")
        .arg(&global.bpf_dir)
        .env_remove("NOTIFY_SOCKET")
        .stdin(locked)
        .stdout(pipe.try_clone()?)
        .stderr(Stdio::from(pipe));
    // SAFETY: setsid, fork and _exit are async-signal-safe, and nothing else is done
    // between the first fork and exec.
    unsafe {
        command.pre_exec(|| {
            // A session without a terminal, and a process that nobody has to wait for.
            setsid()?;
            match fork()? {
                ForkResult::Parent { .. } => libc::_exit(0),
                ForkResult::Child => Ok(()),
            }
        });
    }
    let program = command.get_program().display().to_string();
    let mut child = command
        .spawn()
        .with_context(|| format!("cannot start {program}"))?;
    child.wait()?;
    // Its ends of the pipe, which this process must not hold open.
    drop(command);
    let mut said = String::new();
    words.read_to_string(&mut said)?;
    if said.trim() != ARMED {
        bail!("{}", said.trim());
    }
    Ok(())
}
