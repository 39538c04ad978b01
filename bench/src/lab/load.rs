//! The generator: frames that a program writes, one after the other, into live frames of
//! `BPF_PROG_TEST_RUN` and sends out of interfaces.

use std::{os::fd::AsFd as _, time::Duration};

use anyhow::{Context as _, Result, ensure};
use netspawn_tests::Ns;

use super::busy::Busy;
use crate::bpf::{self, Cannon};

/// Frames to send, and the interfaces that they leave by.
pub struct Load {
    cannon: Cannon,
    frame: Vec<u8>,
    batch: u32,
}

impl Load {
    /// Frames of one length, a power of two of them, each with the number of the
    /// interface that it leaves by.
    pub fn new(frames: &[(Vec<u8>, u32)]) -> Result<Self> {
        ensure!(!frames.is_empty(), "no frames to send");
        Ok(Load {
            cannon: Cannon::new(frames)?,
            frame: frames[0].0.clone(),
            batch: 0,
        })
    }

    /// Has so many frames sent before the kernel takes them further, instead of 64.
    ///
    /// What is copied to many ports waits in the core's backlog, which drops beyond 1,000.
    pub fn batches_of(mut self, frames: u32) -> Self {
        self.batch = frames;
        self
    }

    /// Sends so many, the next ones each time, from this core; returns the CPU time of the
    /// sending and of everything the kernel did meanwhile on this core.
    ///
    /// Sends only while nobody else wants the core: where packets are left to the kernel's
    /// threads, these come first, and what is slow is not sent more than it takes.
    ///
    /// The other end of every interface must have NAPI (GRO on).
    pub fn fire(&self, from: &Ns, count: u32) -> Result<Duration> {
        self.fire_at(from, count, &[])
    }

    /// The same, and the CPU time of these processes.
    pub fn fire_at(&self, from: &Ns, count: u32, processes: &[u32]) -> Result<Duration> {
        self.fire_until(from, count, processes, || Ok(true))
    }

    /// The same, and what the kernel's threads still do until `done` is true, which is asked
    /// every 50 ms and whose own time is not counted.
    pub fn fire_until(
        &self,
        from: &Ns,
        count: u32,
        processes: &[u32],
        mut done: impl FnMut() -> Result<bool> + Send,
    ) -> Result<Duration> {
        from.enter(|| {
            give_way()?;
            let mut busy = Busy::start(processes)?;
            bpf::fire(self.cannon.as_fd(), &self.frame, count, self.batch)
                .context("cannot send frames")?;
            while !busy.pause(&mut done)? {
                busy.pause(|| std::thread::sleep(Duration::from_millis(50)));
            }
            busy.elapsed()
        })
    }
}

/// How many frames take so long, `most` at most; warms up what they pass.
pub fn frames_taking(
    time: Duration,
    most: u32,
    mut fire: impl FnMut(u32) -> Result<Duration>,
) -> Result<u32> {
    let mut count = 512;
    loop {
        let taken = fire(count)?;
        if taken >= time / 4 || count >= most {
            let frames = f64::from(count) * time.as_secs_f64() / taken.as_secs_f64();
            return Ok((frames as u32).clamp(1, most));
        }
        count = count.saturating_mul(4);
    }
}

/// Lets this thread run only when nobody else wants the core.
fn give_way() -> Result<()> {
    // SAFETY: the parameter outlives the call.
    let result = unsafe {
        let parameter: libc::sched_param = std::mem::zeroed();
        libc::sched_setscheduler(0, libc::SCHED_IDLE, &raw const parameter)
    };
    ensure!(
        result == 0,
        "cannot lower the priority: {}",
        std::io::Error::last_os_error()
    );
    Ok(())
}

/// Runs work on one core: threads and processes that it starts stay there as well.
pub fn on_one_core<T: Send>(work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    std::thread::scope(|scope| {
        scope
            .spawn(|| {
                crate::cost::stay_on_this_core().context("cannot stay on one core")?;
                work()
            })
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}
