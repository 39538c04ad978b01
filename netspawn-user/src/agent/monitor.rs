//! Those who follow the agent. Each is told what happens at its own pace: what
//! waits for the slowest is bounded, and nobody holds the agent up.
//!
//! Dropped frames come from the counters, read once a second while somebody
//! follows: that costs the programs nothing, and the numbers are exact. The
//! programs' own reports, of which there may be a hundred a second for each
//! machine, add whose addresses were claimed.

use std::{
    collections::{BTreeMap, HashMap},
    future,
    net::IpAddr,
    sync::Arc,
    time::Duration,
};

use anyhow::Result;
use jiff::Timestamp;
use netspawn_ebpf::{
    abi::Owner,
    verdict::{Kind as Fate, Reason},
    wire::Mac,
};
use nix::time::{ClockId, clock_gettime};
use tokio::{
    sync::broadcast::{Receiver, Sender, channel},
    time::{Interval, MissedTickBehavior, interval},
};

use super::Agent;
use crate::{
    datapath::{events::Report, maps::Maps},
    event::{Event, Kind},
    plan,
};

/// Events that wait for a slow reader, which loses the oldest beyond that:
/// enough for every machine of a full host to change its state at once.
const WAITING: usize = 1 << 14;
/// How often counters are read.
const PERIOD: Duration = Duration::from_secs(1);
/// Different claims of one machine that are told in a period.
const CLAIMS: usize = 5;

/// Who follows.
#[derive(Debug, Default)]
pub(super) struct Monitors(Option<Following>);

/// From where, and which address.
type Claim = (Mac, Option<IpAddr>);

/// What there is while somebody does.
#[derive(Debug)]
struct Following {
    sender: Sender<Arc<Event>>,
    period: Interval,
    drops: Drops,
    /// What has been told in this period.
    claims: HashMap<(Owner, Reason), Vec<Claim>>,
}

impl Monitors {
    /// One more reader, of what happens from now on.
    ///
    /// # Errors
    /// When the counters cannot be read.
    pub(super) fn join(&mut self, maps: &Maps) -> Result<Receiver<Arc<Event>>> {
        if let Some(following) = &self.0 {
            return Ok(following.sender.subscribe());
        }
        let (sender, receiver) = channel(WAITING);
        let mut period = interval(PERIOD);
        period.set_missed_tick_behavior(MissedTickBehavior::Delay);
        period.reset();
        self.0 = Some(Following {
            sender,
            period,
            drops: Drops::from(maps)?,
            claims: HashMap::new(),
        });
        Ok(receiver)
    }

    /// Waits for the end of a period; for ever while nobody follows.
    pub(super) async fn period(&mut self) {
        match &mut self.0 {
            Some(following) => {
                following.period.tick().await;
            }
            None => future::pending().await,
        }
    }

    /// Tells everybody, if there is anybody.
    pub(super) fn tell(&self, event: impl FnOnce() -> Event) {
        if let Some(following) = &self.0 {
            // The last may have left since the period began.
            let _ = following.sender.send(Arc::new(event()));
        }
    }

    /// Whether a report is to be told: somebody follows, it says something new in
    /// this period, and its machine has not had too many.
    pub(super) fn wants(&mut self, report: &Report) -> bool {
        let Some(following) = &mut self.0 else {
            return false;
        };
        let key = (report.endpoint, report.reason);
        let claims = following.claims.entry(key).or_default();
        let claim = (report.mac, report.address);
        let wanted = claims.len() < CLAIMS && !claims.contains(&claim);
        if wanted {
            claims.push(claim);
        }
        wanted
    }
}

impl Agent {
    /// Ends a period: says what was dropped in it.
    pub(super) fn end_period(&mut self) {
        let Some(following) = &mut self.monitors.0 else {
            return;
        };
        if following.sender.receiver_count() == 0 {
            self.monitors.0 = None;
            return;
        }
        following.claims.clear();
        let dropped = match following.drops.next(self.plane.maps()) {
            Ok(dropped) => dropped,
            Err(error) => {
                tracing::warn!("dropped frames are not told: {error:#}");
                return;
            }
        };
        let state = self.plane.state();
        for ((id, reason), count) in dropped {
            let entry = id.and_then(|id| state.endpoints.get(&id));
            let port = id.and_then(|id| state.ports.iter().find(|(_, owner)| **owner == id));
            let link = port.and_then(|(ifindex, _)| self.observer.host().links.get(ifindex));
            self.monitors.tell(|| Event {
                machine: entry.map(|entry| plan::text(&entry.name)),
                interface: link.map(|link| link.name.clone()),
                reason: Some(reason.name().into()),
                count: Some(count),
                ..Event::new(Kind::Drop)
            });
        }
    }
}

/// The time of a report.
#[expect(
    clippy::disallowed_methods,
    reason = "this parses text or bytes; no system call can fail here"
)]
pub(super) fn when(report: &Report) -> Timestamp {
    let now = Timestamp::now();
    let Ok(clock) = clock_gettime(ClockId::CLOCK_MONOTONIC) else {
        return now;
    };
    let ago = Duration::from(clock).saturating_sub(report.time);
    now.checked_sub(ago).unwrap_or(now)
}

/// A machine, where one is known, and why its frames were dropped.
type Cause = (Option<Owner>, Reason);

/// Counters of dropped frames, as they were when last looked at.
#[derive(Debug, Default)]
struct Drops {
    /// By reason.
    counts: BTreeMap<Reason, u64>,
    /// By machine.
    charged: BTreeMap<(Owner, Reason), u64>,
    /// Of what was counted since the start, how much is told for no machine and
    /// how much is not: what no machine is charged with is the difference of two
    /// maps that are not read at the same moment.
    rest: BTreeMap<Reason, i64>,
}

impl Drops {
    fn from(maps: &Maps) -> Result<Self> {
        // Frames of the time between count as charged already.
        let charged = maps.drops()?;
        Ok(Drops {
            counts: dropped(maps)?,
            charged,
            rest: BTreeMap::new(),
        })
    }

    /// What was dropped since the last time.
    fn next(&mut self, maps: &Maps) -> Result<BTreeMap<Cause, u64>> {
        let counts = dropped(maps)?;
        // As a rule nothing was, and the larger map need not be read.
        if counts == self.counts {
            return Ok(BTreeMap::new());
        }
        Ok(self.advance(counts, maps.drops()?))
    }

    /// `counts` was read before `charged`.
    fn advance(
        &mut self,
        counts: BTreeMap<Reason, u64>,
        charged: BTreeMap<(Owner, Reason), u64>,
    ) -> BTreeMap<Cause, u64> {
        let mut dropped = BTreeMap::new();
        for (reason, count) in &counts {
            let before = self.counts.get(reason).copied().unwrap_or_default();
            *self.rest.entry(*reason).or_default() += (count - before.min(*count)).cast_signed();
        }
        for ((id, reason), count) in &charged {
            let before = self.charged.get(&(*id, *reason)).copied();
            // Smaller than before, it is another machine's.
            let before = before.filter(|before| before <= count).unwrap_or_default();
            if *count > before {
                dropped.insert((Some(*id), *reason), count - before);
                *self.rest.entry(*reason).or_default() -= (count - before).cast_signed();
            }
        }
        for (reason, rest) in &mut self.rest {
            if *rest > 0 {
                dropped.insert((None, *reason), rest.unsigned_abs());
                *rest = 0;
            }
        }
        self.counts = counts;
        self.charged = charged;
        dropped
    }
}

/// Frames dropped, by reason.
fn dropped(maps: &Maps) -> Result<BTreeMap<Reason, u64>> {
    let mut counts = maps.counts()?;
    counts.retain(|reason, _| reason.kind() == Fate::Drop);
    Ok(counts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drops_are_told_by_machine_and_the_rest_for_none() {
        let mut drops = Drops::default();
        let counts = |n| BTreeMap::from([(Reason::TtlExceeded, n)]);
        let charged = |ids: &[(u32, u64)]| {
            let entries = ids.iter().map(|(id, n)| ((*id, Reason::TtlExceeded), *n));
            entries.collect::<BTreeMap<_, _>>()
        };
        let told = |id, n| ((id, Reason::TtlExceeded), n);
        let first = drops.advance(counts(10), charged(&[(1, 4), (2, 5)]));
        assert_eq!(
            Vec::from_iter(first),
            [told(None, 1), told(Some(1), 4), told(Some(2), 5)]
        );
        assert!(
            drops
                .advance(counts(10), charged(&[(1, 4), (2, 5)]))
                .is_empty()
        );
        // A frame was charged after the counts were read.
        let next = drops.advance(counts(10), charged(&[(1, 5), (2, 5)]));
        assert_eq!(Vec::from_iter(next), [told(Some(1), 1)]);
        let next = drops.advance(counts(12), charged(&[(1, 5), (2, 6)]));
        assert_eq!(Vec::from_iter(next), [told(Some(2), 1)]);
        // Another machine has the id.
        let next = drops.advance(counts(14), charged(&[(1, 2), (2, 6)]));
        assert_eq!(Vec::from_iter(next), [told(Some(1), 2)]);
    }
}
