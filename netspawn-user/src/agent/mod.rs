//! The agent: follows declarations and the host's network, and brings the data
//! plane up to date whenever either changes.
//!
//! Level-triggered: an event only says that something changed. What is to be
//! done follows from the whole state, so that a lost event delays and harms
//! nothing.

mod announce;
mod monitor;
mod serve;
mod service;
mod socket;
mod tell;

use std::{collections::BTreeSet, future, net::IpAddr, pin::pin, time::Duration};

use anyhow::{Context as _, Result};
use jiff::Timestamp;
use nix::time::{ClockId, clock_gettime};
use tokio::{
    signal::unix::{SignalKind, signal},
    time::{Instant, MissedTickBehavior, interval, sleep_until},
};

use self::{
    monitor::Monitors,
    service::Service,
    socket::{Asked, Socket},
    tell::{Attempt, Complaints, Known, Told},
};
use crate::{
    cli::Global,
    config::{Config, Policy},
    control::{Lock, RunDir},
    datapath::{
        events::{Events, Report},
        plane::{Plane, Wanted},
    },
    driver,
    metrics::{Listener, Metrics},
    model::Host,
    net::{
        announce::{Queue, Sender, TIMES},
        neighbor,
        netlink::Netlink,
        observe::Observer,
    },
    registry::{Desired, MachineState},
    source::{Snapshot, Source, Sources, Watcher, engine::Engines, machined::Machined},
};

/// How often next hops are renewed and attachments looked at.
const TICK: Duration = Duration::from_secs(30);
/// How long a next hop is good for without being renewed.
const TRUST: Duration = Duration::from_secs(90);
/// How soon a sync that failed, or left something undone, is tried again.
const RETRY: Duration = Duration::from_secs(1);

/// `CLOCK_MONOTONIC` in nanoseconds, at which next hops resolved now expire.
#[expect(
    clippy::disallowed_methods,
    reason = "the failure is logged, and the rest goes on without"
)]
pub fn deadline() -> u64 {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(Duration::ZERO, Duration::from);
    u64::try_from((now + TRUST).as_nanos()).unwrap_or(u64::MAX)
}

/// `ready: 3 machines, 5 prefixes on eth0 (tc)`.
///
/// # Errors
/// When the kernel does not say what is attached.
pub fn ready_line(plane: &mut Plane, desired: &Desired, host: &Host) -> Result<String> {
    let uplinks: Vec<String> = plane
        .attached()?
        .iter()
        .map(|uplink| {
            let name = host.links.get(&uplink.ifindex).map(|link| &*link.name);
            format!("{} ({})", name.unwrap_or("?"), uplink.mode)
        })
        .collect();
    Ok(format!(
        "ready: {} machines, {} prefixes on {}",
        desired.count(MachineState::Up),
        desired.state.prefixes(),
        uplinks.join(", ")
    ))
}

/// A running agent.
pub struct Agent {
    plane: Plane,
    sources: Sources,
    machined: Option<Machined>,
    /// `None` once nothing is attached any more.
    engines: Option<Engines>,
    /// Links with the engines that were asked whose they are.
    unsaid: BTreeSet<(u32, Source)>,
    /// Docker's network driver.
    docker: Option<driver::docker::Served>,
    snapshot: Snapshot,
    policy: Policy,
    run_dir: RunDir,
    lock: Lock,
    /// RUNDIR was put back, and the socket is not in it yet.
    moved: bool,
    config_dir: std::path::PathBuf,
    observer: Observer,
    netlink: Netlink,
    since: Timestamp,
    last_sync: Option<Timestamp>,
    known: Known,
    told: Told,
    deadline: u64,
    /// How soon what a sync has left undone is tried again.
    retry_after: Duration,
    announcements: Queue,
    sender: Sender,
    events: Option<Events>,
    complaints: Complaints,
    monitors: Monitors,
    service: Service,
    /// Why it is to end.
    end: Option<&'static str>,
    metrics: Option<Metrics>,
}

/// Why the loop turns.
enum Event {
    Host,
    Files,
    Machined,
    Tick,
    Retry,
    Announce,
    Told(Vec<Report>),
    /// Somebody follows, and a period is over.
    Period,
    Watchdog,
    Asked(Asked),
    Stop(&'static str),
}

impl Agent {
    /// Takes over a data plane that has been attached by what `observer` read, which
    /// catches up with what has changed since.
    ///
    /// # Errors
    /// When the host's network cannot be followed.
    #[expect(
        clippy::disallowed_methods,
        reason = "the failure is logged, and the rest goes on without"
    )]
    pub async fn new(
        global: &Global,
        plane: Plane,
        lock: Lock,
        mut observer: Observer,
        policy: Policy,
        enabled: &BTreeSet<Source>,
        metrics: Option<Listener>,
    ) -> Result<Self> {
        let machined = if enabled.contains(&Source::Machined) {
            Some(Machined::follow().await)
        } else {
            None
        };
        let events = plane
            .events()
            .inspect_err(|error| tracing::warn!("events are not told: {error:#}"))
            .ok();
        let key = plane.key();
        let announcements = Queue::new(plane.found().clone(), TIMES);
        observer
            .catch_up()
            .context("cannot follow the host's network")?;
        let since = Timestamp::now();
        let sources = Sources::following(
            &global.config_dir,
            &global.run_dir,
            enabled.iter().copied(),
            observer.host(),
        );
        let engines = Engines::follow(&global.run_dir, enabled, sources.answers());
        Ok(Agent {
            plane,
            sources,
            machined,
            engines: Some(engines),
            unsaid: BTreeSet::new(),
            docker: enabled
                .contains(&Source::Docker)
                .then(|| serve_docker(global))
                .flatten(),
            snapshot: Snapshot::default(),
            policy,
            run_dir: RunDir::new(&global.run_dir),
            lock,
            moved: false,
            config_dir: global.config_dir.clone(),
            observer,
            netlink: Netlink::open()?,
            since,
            last_sync: None,
            known: Known::default(),
            told: Told::default(),
            deadline: deadline(),
            retry_after: RETRY,
            announcements,
            sender: Sender::open(key).context("cannot open a socket for announcements")?,
            events,
            complaints: Complaints::default(),
            monitors: Monitors::default(),
            service: Service::new(),
            end: None,
            metrics: metrics.map(|listener| Metrics::new(listener, &global.bpf_dir, since)),
        })
    }

    /// Runs until SIGTERM, SIGINT, the terminal's `hangup`, or until the last uplink is
    /// detached.
    ///
    /// # Errors
    /// When folders cannot be watched or the socket cannot be made. Failures to
    /// sync are logged and tried again.
    pub async fn run(
        mut self,
        ready: impl FnOnce(&str) -> Result<()>,
        hangup: impl Future<Output = ()>,
    ) -> Result<()> {
        let mut hangup = pin!(hangup);
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut socket = Socket::open(&self.run_dir.socket())?;
        let mut folders = self.sources.folders();
        folders.push(self.config_dir.clone());
        let mut watcher =
            Watcher::new(folders).context("cannot watch the folders of declarations")?;
        let mut tick = interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        tick.tick().await;

        self.reload();
        // Guarded by `attach`, before there were events.
        self.plane.take_newly_guarded();
        let desired = self.sync()?;
        let mut retry = None;
        self.renew_next_hops();
        if let Some(metrics) = &mut self.metrics {
            metrics.serve()?;
        }
        let line = ready_line(&mut self.plane, &desired, self.observer.host())?;
        ready(&line)?;
        self.service.ready();

        loop {
            if std::mem::take(&mut self.moved) {
                socket = Socket::open(&self.run_dir.socket())?;
            }
            let event = tokio::select! {
                _ = terminate.recv() => Event::Stop("it was told to (SIGTERM)"),
                _ = interrupt.recv() => Event::Stop("it was told to (SIGINT)"),
                () = &mut hangup => Event::Stop("its terminal is gone (SIGHUP)"),
                changed = self.observer.changed() => match changed {
                    Ok(_) => Event::Host,
                    Err(error) => {
                        tracing::warn!("cannot follow the host's network: {error}");
                        tokio::time::sleep(RETRY).await;
                        Event::Retry
                    }
                },
                changed = watcher.changed() => {
                    if let Err(error) = changed {
                        tracing::warn!("cannot watch the directories of declarations: {error}");
                        tokio::time::sleep(RETRY).await;
                    }
                    Event::Files
                }
                () = machined_changed(&mut self.machined) => Event::Machined,
                () = engines_changed(&mut self.engines) => Event::Files,
                _ = tick.tick() => Event::Tick,
                () = until(retry) => Event::Retry,
                () = until(self.announcements.next().map(Instant::from_std)) => Event::Announce,
                reports = told(&mut self.events) => Event::Told(reports),
                () = self.monitors.period() => Event::Period,
                () = self.service.watched() => Event::Watchdog,
                asked = socket.next() => Event::Asked(asked),
            };
            match event {
                Event::Stop(why) => {
                    let _ = std::fs::remove_file(self.run_dir.socket());
                    self.end = Some(why);
                    break;
                }
                Event::Host if self.sources.differ(self.observer.host()) => self.reload(),
                Event::Host | Event::Machined => {}
                Event::Retry if self.snapshot.problems.is_empty() => {}
                Event::Retry | Event::Files => self.reload(),
                Event::Tick => {
                    self.deadline = deadline();
                    self.sources.sweep();
                    self.unsaid.clear();
                    self.reload();
                    self.observer.refresh();
                    let verified = self.plane.verify();
                    self.told.ended(Attempt::Verify, &verified);
                    if let Err(error) = verified {
                        tracing::warn!("cannot look at the attachments: {error:#}");
                    }
                    self.renew_next_hops();
                }
                Event::Told(reports) => {
                    self.heed(reports);
                    continue;
                }
                Event::Announce => {
                    self.send_announcements();
                    continue;
                }
                Event::Period => {
                    self.end_period();
                    continue;
                }
                Event::Watchdog => {
                    self.service.alive();
                    continue;
                }
                Event::Asked(asked) => {
                    // Who has left meanwhile wants no answer.
                    let _ = asked.answer.send(self.answer(asked.request));
                    if self.end.is_some() {
                        break;
                    }
                    self.queue_announcements();
                    continue;
                }
            }
            retry = self.sync_or_retry();
        }
        self.service.stopping();
        self.tell_end();
        socket.close().await;
        Ok(())
    }

    /// Reads declarations and policy. A policy file that is wrong leaves the
    /// policy as it was.
    fn reload(&mut self) {
        let put_back = self.put_back_run_dir();
        if let Err(error) = &put_back {
            tracing::error!("{error:#}");
        }
        self.snapshot = self.sources.read(self.observer.host());
        match Config::load(&self.config_dir) {
            Ok(config) => self.policy = config.policy,
            Err(problems) => self.snapshot.problems.extend(problems),
        }
    }

    /// Makes RUNDIR again when somebody has removed it: without its lock and its socket
    /// another process would take this one for ended.
    fn put_back_run_dir(&mut self) -> Result<()> {
        if self.end.is_some() || self.lock.is_there()? {
            return Ok(());
        }
        let cannot = "the lock in RUNDIR was removed, and cannot be put back";
        self.lock = self.run_dir.lock_again().context(cannot)?;
        self.run_dir.claim(self.sources.enabled()).context(cannot)?;
        self.sources.keep_engines();
        self.moved = true;
        tracing::warn!(
            "the lock in {} was removed; it is put back, with the agent's socket",
            self.run_dir.path().display()
        );
        Ok(())
    }

    #[expect(
        clippy::disallowed_methods,
        reason = "the failure is logged, and the rest goes on without"
    )]
    fn sync(&mut self) -> Result<Desired> {
        if let Some(machined) = &mut self.machined {
            self.snapshot.registered = machined.registered(self.observer.host());
        }
        self.sources.place(&mut self.snapshot, self.observer.host());
        self.plane.forget(&self.observer.take_gone());
        let started = std::time::Instant::now();
        let result = self.plane.sync(&Wanted {
            snapshot: &self.snapshot,
            host: self.observer.host(),
            policy: &self.policy,
            deadline: self.deadline,
        });
        if let Some(metrics) = &self.metrics {
            let wanted = self.plane.wanted();
            metrics
                .known()
                .synced(started.elapsed(), result.is_ok(), wanted);
        }
        let desired = result?;
        self.ask_engines(&desired);
        for (ifindex, when) in self.plane.take_newly_guarded() {
            let name = self.observer.host().links.get(&ifindex);
            let after = when.saturating_duration_since(self.observer.noticed());
            tracing::info!(
                "{} is guarded, {:.1} ms after the kernel told of it",
                name.map_or("?", |link| &link.name),
                after.as_secs_f64() * 1e3
            );
        }
        self.told
            .tell(self.snapshot.problems.iter().chain(&desired.problems));
        self.tell(&desired);
        self.queue_announcements();
        self.last_sync = Some(Timestamp::now());
        Ok(desired)
    }

    /// Has engines say whose links are, once for each; `Tick` asks again.
    fn ask_engines(&mut self, desired: &Desired) {
        let new: BTreeSet<Source> = desired
            .unsaid
            .difference(&self.unsaid)
            .map(|(_, source)| *source)
            .collect();
        self.unsaid.clone_from(&desired.unsaid);
        if let Some(engines) = &self.engines
            && !new.is_empty()
        {
            engines.ask(&new);
        }
    }

    /// When to try again, if it failed.
    fn sync_or_retry(&mut self) -> Option<Instant> {
        let started = Instant::now();
        let synced = self.sync();
        // With thousands of machines half of the time is the others'.
        self.observer.rest(started.elapsed());
        self.told.ended(Attempt::Sync, &synced);
        match synced {
            // A file that could not be read may be read the next time.
            Ok(_) if !self.plane.unfinished() && self.snapshot.problems.is_empty() => {
                self.retry_after = RETRY;
                None
            }
            Ok(_) => {
                let after = self.retry_after;
                self.retry_after = (after * 2).min(TICK);
                Some(Instant::now() + after)
            }
            Err(error) => {
                tracing::error!("{error:#}; trying again");
                Some(Instant::now() + RETRY)
            }
        }
    }

    /// Has the kernel confirm the routers' addresses, which it does not do by
    /// itself while packets pass it by.
    fn renew_next_hops(&mut self) {
        let host = self.observer.host();
        let uplinks = &self.plane.state().uplinks;
        let gateways: std::collections::BTreeSet<(u32, IpAddr)> = host
            .routes
            .iter()
            .filter_map(|route| Some((route.ifindex?, route.gateway?)))
            .filter(|(ifindex, _)| uplinks.contains_key(ifindex))
            .collect();
        for (ifindex, gateway) in gateways {
            if let Err(error) = neighbor::resolve(&mut self.netlink, ifindex, gateway) {
                tracing::debug!("cannot have {gateway} resolved: {error}");
            }
        }
    }

    /// What the host and the folders look like now, rather than when the last
    /// event came.
    fn refresh(&mut self) -> Result<()> {
        self.observer
            .reread()
            .context("cannot read the host's network")?;
        self.reload();
        Ok(())
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "the failure is logged, and the rest goes on without"
)]
fn serve_docker(global: &Global) -> Option<driver::docker::Served> {
    driver::docker::Served::start(&global.run_dir, &global.bpf_dir)
        .inspect_err(|error| tracing::error!("Docker's network driver is not served: {error:#}"))
        .ok()
}

async fn machined_changed(machined: &mut Option<Machined>) {
    match machined {
        Some(machined) => machined.changed().await,
        None => future::pending().await,
    }
}

async fn engines_changed(engines: &mut Option<Engines>) {
    match engines {
        Some(engines) => engines.changed().await,
        None => future::pending().await,
    }
}

/// Waits for events. Where they cannot be waited for there are none.
async fn told(events: &mut Option<Events>) -> Vec<Report> {
    let Some(open) = events else {
        return future::pending().await;
    };
    match open.next().await {
        Ok(reports) => reports,
        Err(error) => {
            tracing::warn!("events are not told any more: {error}");
            *events = None;
            Vec::new()
        }
    }
}

async fn until(moment: Option<Instant>) {
    match moment {
        Some(moment) => sleep_until(moment).await,
        None => future::pending().await,
    }
}
