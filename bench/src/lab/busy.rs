//! CPU time of one core, without what strangers take of it.

use std::{
    fs,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};

/// Measures how long the core of this thread is busy for this thread and for those that
/// work for it: the core's kernel threads for softirqs and work, and processes named.
///
/// That is the time that passes, less what this thread waits for the core, plus what the
/// others run. Softirqs are counted wherever they run, also on kernels that book them to
/// no thread (`IRQ_TIME_ACCOUNTING`). This thread sleeps in [`Busy::pause`]
/// only.
pub struct Busy {
    start: Instant,
    waited: Duration,
    paused: Duration,
    helpers: Vec<u32>,
    helped: Duration,
}

impl Busy {
    /// Begins.
    pub fn start(processes: &[u32]) -> Result<Self> {
        let helpers = [kernel_threads()?, processes.to_vec()].concat();
        Ok(Busy {
            helped: run_time(&helpers),
            helpers,
            waited: waited()?,
            paused: Duration::ZERO,
            start: Instant::now(),
        })
    }

    /// Does something of which only the others' share counts, such as waiting for them.
    pub fn pause<T>(&mut self, work: impl FnOnce() -> T) -> T {
        let (start, before) = (Instant::now(), waited().unwrap_or_default());
        let result = work();
        let waited = waited().unwrap_or_default().saturating_sub(before);
        self.paused += start.elapsed().saturating_sub(waited);
        result
    }

    /// CPU time since.
    pub fn elapsed(&self) -> Result<Duration> {
        let passed = self.start.elapsed();
        let waited = waited()?.saturating_sub(self.waited);
        let helped = run_time(&self.helpers).saturating_sub(self.helped);
        Ok(passed.saturating_sub(waited + self.paused) + helped)
    }
}

/// Time on the core and time of waiting for it, of one thread.
fn schedstat(thread: &str) -> Option<(Duration, Duration)> {
    let text = fs::read_to_string(format!("/proc/{thread}/schedstat")).ok()?;
    let mut numbers = text.split_whitespace().map(str::parse);
    let mut next = || Some(Duration::from_nanos(numbers.next()?.ok()?));
    Some((next()?, next()?))
}

fn waited() -> Result<Duration> {
    let (_, waited) = schedstat("thread-self").context("the kernel keeps no /proc/…/schedstat")?;
    Ok(waited)
}

fn run_time(processes: &[u32]) -> Duration {
    let times = processes.iter().filter_map(|id| schedstat(&id.to_string()));
    times.map(|(run, _)| run).sum()
}

/// The kernel threads that do this core's softirqs and work.
fn kernel_threads() -> Result<Vec<u32>> {
    // SAFETY: the call takes nothing.
    let core = unsafe { libc::sched_getcpu() };
    named(&[format!("ksoftirqd/{core}"), format!("kworker/{core}:")])
}

/// The kernel threads whose work is bound to no core. They work for everybody.
pub fn unbound_workers() -> Result<Vec<u32>> {
    named(&["kworker/u".into()])
}

fn named(names: &[String]) -> Result<Vec<u32>> {
    let processes = fs::read_dir("/proc")?.flatten();
    Ok(processes
        .filter_map(|process| process.file_name().to_str()?.parse().ok())
        .filter(|id: &u32| {
            fs::read_to_string(format!("/proc/{id}/comm"))
                .is_ok_and(|comm| names.iter().any(|name| comm.starts_with(name)))
        })
        .collect())
}
