//! One run of the benchmarks: what was asked for, how far it is, whether to stop.

use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Result, bail};

/// How much is measured, and where a run is.
#[derive(Debug)]
pub struct Run {
    /// Machines at most, whatever a scenario would like.
    pub machines: u32,
    /// Rounds of each path.
    pub rounds: usize,
    stop: AtomicBool,
}

impl Run {
    /// A run that has not begun.
    pub fn new(machines: u32, rounds: usize) -> Self {
        Run {
            machines,
            rounds,
            stop: AtomicBool::new(false),
        }
    }

    /// Sizes of a scenario within what was asked for, at least one.
    pub fn sizes(&self, wanted: &[u32]) -> Vec<u32> {
        let mut sizes: Vec<_> = wanted
            .iter()
            .map(|size| *size.min(&self.machines))
            .collect();
        sizes.dedup();
        sizes
    }

    /// Says what is done next, and ends the scenario where the user wants the run to
    /// stop: called before each piece of work of more than a second.
    ///
    /// # Errors
    /// When the user wants it to stop.
    pub fn step(&self, what: &str) -> Result<()> {
        if self.stop.load(Ordering::Relaxed) {
            bail!("stopped");
        }
        eprintln!("  {what}");
        Ok(())
    }

    /// Lets the next step be the end.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}
