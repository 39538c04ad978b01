//! The generator: frames that a program writes, one after the other, into live frames of
//! `BPF_PROG_TEST_RUN` and sends out of interfaces.

use std::{os::fd::AsFd as _, time::Duration};

use anyhow::{Context as _, Result, ensure};
use netspawn_tests::Ns;

use super::cpu::Stopwatch;
use crate::bpf::{self, Cannon};

/// Frames to send, and the interfaces that they leave by.
pub struct Load {
    cannon: Cannon,
    frame: Vec<u8>,
}

impl Load {
    /// Frames of one length, a power of two of them, each with the number of the
    /// interface that it leaves by.
    pub fn new(frames: &[(Vec<u8>, u32)]) -> Result<Self> {
        ensure!(!frames.is_empty(), "no frames to send");
        Ok(Load {
            cannon: Cannon::new(frames)?,
            frame: frames[0].0.clone(),
        })
    }

    /// Sends so many, the next ones each time, from this core; returns the CPU time of
    /// the sending together with everything it caused on this core ([`Stopwatch`]).
    ///
    /// The other end of every interface must have NAPI (GRO on).
    pub fn fire(&self, from: &Ns, count: u32) -> Result<Duration> {
        from.enter(|| {
            let watch = Stopwatch::start()?;
            bpf::fire(self.cannon.as_fd(), &self.frame, count).context("cannot send frames")?;
            watch.elapsed()
        })
    }
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
