//! CPU time of one core's work.

use std::{
    fs,
    process::Command,
    sync::LazyLock,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};

/// Whether the kernel counts the softirqs that run on top of a task as that task's time:
/// so it is without `CONFIG_IRQ_TIME_ACCOUNTING`.
static SOFTIRQS_ARE_TASK_TIME: LazyLock<bool> = LazyLock::new(|| {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let files = [
        "/proc/config.gz",
        &format!("/boot/config-{}", release.trim()),
    ];
    files.iter().any(|file| {
        Command::new("zgrep")
            .args(["-qs", "^# CONFIG_IRQ_TIME_ACCOUNTING is not set", file])
            .status()
            .is_ok_and(|status| status.success())
    })
});

/// Measures what this thread does, with the softirqs that it causes on its core.
///
/// That is the thread's CPU time with that of the core's `ksoftirqd`, in which other
/// processes have no part. Where the kernel does not count softirqs so, or does not say,
/// it is the time that passes, and the machine should do nothing else meanwhile.
pub struct Stopwatch {
    start: Instant,
    used: Duration,
}

impl Stopwatch {
    /// Starts; the thread must stay on its core.
    pub fn start() -> Result<Self> {
        LazyLock::force(&SOFTIRQS_ARE_TASK_TIME);
        Ok(Stopwatch {
            used: used()?,
            start: Instant::now(),
        })
    }

    /// Time since the start.
    pub fn elapsed(&self) -> Result<Duration> {
        if *SOFTIRQS_ARE_TASK_TIME {
            Ok(used()?.saturating_sub(self.used))
        } else {
            Ok(self.start.elapsed())
        }
    }
}

/// CPU time of this thread and of the `ksoftirqd` of its core.
fn used() -> Result<Duration> {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: the call writes a whole `timespec`.
    let result = unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut time) };
    if result != 0 {
        return Err(std::io::Error::last_os_error()).context("no CPU time of this thread");
    }
    let thread = Duration::new(time.tv_sec.cast_unsigned(), time.tv_nsec.try_into()?);
    // SAFETY: the call has no arguments.
    let core = unsafe { libc::sched_getcpu() };
    Ok(thread + ksoftirqd(core)?)
}

/// CPU time of a core's `ksoftirqd` (the first number of `/proc/PID/schedstat`).
fn ksoftirqd(core: i32) -> Result<Duration> {
    static PIDS: LazyLock<Vec<(String, u32)>> = LazyLock::new(|| {
        let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
        processes
            .filter_map(|entry| {
                let pid = entry.file_name().to_str()?.parse().ok()?;
                let name = fs::read_to_string(entry.path().join("comm")).ok()?;
                Some((name.trim().to_owned(), pid))
            })
            .filter(|(name, _)| name.starts_with("ksoftirqd/"))
            .collect()
    });
    let name = format!("ksoftirqd/{core}");
    let pid = PIDS.iter().find(|(known, _)| *known == name);
    // In a container without the host's processes there is none to be seen.
    let Some((_, pid)) = pid else {
        return Ok(Duration::ZERO);
    };
    let path = format!("/proc/{pid}/schedstat");
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
    let nanoseconds = text.split_whitespace().next().unwrap_or_default().parse();
    Ok(Duration::from_nanos(nanoseconds.with_context(|| {
        format!("{path} says `{}`", text.trim())
    })?))
}
