//! Pings that go on while something happens.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;

use crate::{cmd::Process, ns::Ns, wait_until};

/// Time between two pings.
pub const PING_INTERVAL: Duration = Duration::from_millis(10);
const SOON: Duration = Duration::from_secs(5);

/// A ping every 10 ms, to be asked at the end how many were lost.
pub struct Pinging {
    process: Process,
    line: String,
}

impl Pinging {
    /// Starts it; on return the first answer is there.
    pub fn start(from: &Ns, to: impl std::fmt::Display) -> Result<Self> {
        let line = format!("ping -n -i 0.01 {to} in {}", from.name());
        let mut process = from
            .cmd("ping")
            .args(["-n", "-i", "0.01"])
            .arg(to.to_string())
            .start()?;
        process.wait_line(SOON, |line| line.contains("bytes from"))?;
        Ok(Pinging { process, line })
    }

    /// How many answers have come so far.
    pub fn answers(&self) -> usize {
        let text = self.process.out();
        text.lines()
            .filter(|line| line.contains("bytes from"))
            .count()
    }

    /// Ends it, once it has gone on for a while after whatever happened, and returns
    /// how many pings in a row had no answer, for each gap.
    pub fn gaps(self) -> Result<Vec<u32>> {
        let seen = self.process.out().lines().count();
        let more = wait_until(SOON, || self.process.out().lines().count() >= seen + 10);
        ensure!(more, "{}: no more answers", self.line);
        let output = self.process.end(Signal::SIGINT, SOON)?;
        let summary = output
            .stdout
            .lines()
            .find(|line| line.contains("packets transmitted"))
            .context("ping printed no summary")?;
        let sent: u32 = summary
            .split_whitespace()
            .next()
            .and_then(|word| word.parse().ok())
            .context("ping counted nothing")?;
        let mut answered: Vec<u32> = output
            .stdout
            .lines()
            .filter_map(|line| line.split("icmp_seq=").nth(1))
            .filter_map(|rest| rest.split(' ').next()?.parse().ok())
            .collect();
        answered.sort_unstable();
        answered.dedup();
        let last = *answered.last().context("no answer at all")?;
        // A request in flight when the signal comes would count as lost.
        ensure!(last + 1 >= sent, "{}: {summary}", self.line);
        Ok(answered
            .windows(2)
            .map(|pair| pair[1] - pair[0] - 1)
            .filter(|gap| *gap > 0)
            .collect())
    }

    /// As [`Pinging::gaps`]; fails if there is one.
    pub fn lost_none(self) -> Result<()> {
        let line = self.line.clone();
        let gaps = self.gaps()?;
        ensure!(gaps.is_empty(), "{line}: lost {gaps:?}");
        Ok(())
    }
}
