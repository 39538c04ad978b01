//! How long a machine takes from its start to its first answer, and what part of that
//! is the agent's.
//!
//! Real nspawn machines in a booted systemd host, started one after another. What is
//! seen is what others see: `ip monitor` in the host tells when the machine's link has
//! carrier, `ping` in the network when the machine answers; in between the map is read
//! again and again.

use std::{
    collections::BTreeMap,
    fmt,
    path::PathBuf,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context as _, Result, ensure};
use netspawn_ebpf::abi::endpoint_flag;
use netspawn_tests::{LAN, Nspawn, Process, SystemdHost};
use netspawn_user::datapath::maps::Maps;

use crate::{
    figure::{Figure, Unit},
    run::Run,
};

/// How long one machine may take for anything.
const LIMIT: Duration = Duration::from_secs(20);
/// Between two pings, in seconds, as `ping` wants it.
const INTERVAL: &str = "0.002";
/// How often the map is looked at.
const LOOK: Duration = Duration::from_micros(300);
/// Silence for that long is the end.
const SILENCE: Duration = Duration::from_millis(300);

/// A stretch of time in a machine's life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stretch {
    /// From `systemd-run systemd-nspawn …` to the carrier of the machine's link.
    StartToCarrier,
    /// From the carrier of the machine's link to its entry in the map: the agent.
    CarrierToEntry,
    /// From the start to the first answer over IPv4.
    StartToV4,
    /// From the start to the first answer over IPv6.
    StartToV6,
    /// From `machinectl terminate` to the last answer.
    EndToSilence,
}

impl Stretch {
    /// All of them, in the order of a machine's life.
    pub const ALL: [Stretch; 5] = [
        Stretch::StartToCarrier,
        Stretch::CarrierToEntry,
        Stretch::StartToV4,
        Stretch::StartToV6,
        Stretch::EndToSilence,
    ];

    const fn words(self) -> &'static str {
        match self {
            Stretch::StartToCarrier => "start to carrier",
            Stretch::CarrierToEntry => "carrier to entry in the map",
            Stretch::StartToV4 => "start to first answer, IPv4",
            Stretch::StartToV6 => "start to first answer, IPv6",
            Stretch::EndToSilence => "terminate to last answer",
        }
    }
}

/// Milliseconds of each stretch, machine by machine. Events are seen by different
/// processes, so that a short one may come out below zero.
#[derive(Clone, Debug, Default)]
pub struct Figures(BTreeMap<Stretch, Vec<f64>>);

impl Figures {
    /// The value that `percent` of the machines keep within.
    pub fn percentile(&self, stretch: Stretch, percent: f64) -> f64 {
        let mut all = self.0.get(&stretch).cloned().unwrap_or_default();
        all.sort_by(f64::total_cmp);
        let rank = (percent / 100.0 * all.len() as f64).ceil() as usize;
        all.get(rank.max(1) - 1).copied().unwrap_or(f64::NAN)
    }
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let count = self.0.values().map(Vec::len).max().unwrap_or(0);
        let title = format!("ms, {count} machines");
        write!(f, "{title:<30}{:>10}{:>10}{:>10}", "median", "p99", "max")?;
        for stretch in Stretch::ALL {
            write!(f, "\n{:<30}", stretch.words())?;
            for percent in [50.0, 99.0, 100.0] {
                write!(f, "{:>10.1}", self.percentile(stretch, percent))?;
            }
        }
        Ok(())
    }
}

/// Machines in a round.
const STARTS: u32 = 10;

/// Milliseconds of each stretch, a machine in place of a round.
///
/// # Errors
/// As of [`measure`].
pub fn run(run: &Run) -> Result<Vec<Figure>> {
    let starts = STARTS * u32::try_from(run.rounds)?;
    run.expect(starts as usize);
    let Figures(figures) = measure(starts, |what| run.step(what))?;
    let figure = |(stretch, values): (Stretch, _)| {
        let unit = Unit::Milliseconds;
        Figure::new("nspawn", stretch.words(), unit, "tc", 1_u64, values)
    };
    Ok(figures.into_iter().map(figure).collect())
}

/// Starts and ends that many machines, one after another; `step` hears what comes next,
/// and may end it.
///
/// # Errors
/// When a machine does not come up, or goes on answering, or those of `step`.
pub fn measure(starts: u32, step: impl Fn(&str) -> Result<()>) -> Result<Figures> {
    let system = SystemdHost::boot()?;
    system.install("max-machines = 256\nmax-addresses = 256\n")?;
    // The network asks at once again where it got no answer, instead of every second.
    for family in ["ipv4", "ipv6"] {
        for (key, value) in [("retrans_time_ms", "4"), ("mcast_solicit", "5000")] {
            let key = format!("net/{family}/neigh/{LAN}/{key}");
            system.net.set_sysctl(&key, value)?;
        }
    }
    let mut figures = Figures::default();
    for index in 0..starts {
        step(&format!("machine {} of {starts}", index + 1))?;
        let subject = Subject::new(&system, index)?;
        for (stretch, value) in subject
            .live()
            .with_context(|| format!("machine {}\n{}", index, system.words().unwrap_or_default()))?
        {
            figures.0.entry(stretch).or_default().push(value);
        }
    }
    Ok(figures)
}

/// One machine.
struct Subject<'a> {
    system: &'a SystemdHost,
    name: String,
    addresses: [String; 2],
    maps: PathBuf,
}

impl<'a> Subject<'a> {
    fn new(system: &'a SystemdHost, index: u32) -> Result<Self> {
        let subject = Subject {
            system,
            name: format!("m{index}"),
            addresses: [
                format!("203.0.113.{}", 20 + index % 200),
                format!("2001:db8::1:{index:x}"),
            ],
            maps: system.files().join(format!(
                "sys/fs/bpf/netspawn/v{}/maps",
                netspawn_ebpf::abi::VERSION
            )),
        };
        system.shell("rm -f /run/netspawn/machines/*")?;
        system.declare(&subject.name, &subject.words())?;
        Ok(subject)
    }

    fn words(&self) -> [&str; 2] {
        self.addresses.each_ref().map(String::as_str)
    }

    fn live(&self) -> Result<Vec<(Stretch, f64)>> {
        let system = self.system;
        let mut monitor = system
            .host
            .cmd("ip")
            .env("TZ", "UTC")
            .args(["-oneline", "-timestamp", "-tshort", "monitor", "link"])
            .start()?;
        let mut pings = Vec::new();
        for address in &self.addresses {
            let ping = system.net.cmd("ping");
            let ping = ping.args(["-n", "-D", "-i", INTERVAL, address]);
            pings.push(ping.start()?);
        }
        let machine = Nspawn::new(&self.name).addresses(&self.words()).nodad();
        let stop = AtomicBool::new(false);
        let (started, entry) = thread::scope(|scope| {
            let watch = scope.spawn(|| self.wait_entry(&stop));
            let started = now();
            let result = system.start(&machine);
            if result.is_err() {
                stop.store(true, Ordering::Relaxed);
            }
            let entry = watch.join().expect("looking at a map does not panic");
            result.and(entry).map(|entry| (started, entry))
        })?;
        let port = format!("ve-{}@", self.name);
        let line = monitor.wait_line(LIMIT, |line| {
            line.contains(&port) && line.contains("LOWER_UP")
        })?;
        let carrier = time_of_day(&line, entry)?;
        let mut answers = Vec::new();
        for ping in &mut pings {
            let line = ping.wait_line(LIMIT, is_answer)?;
            answers.push(stamp(&line).context("ping printed no time")?);
        }

        let ended = now();
        system.stop_machine(&self.name)?;
        let last = wait_silence(&pings)?;
        Ok(vec![
            (Stretch::StartToCarrier, (carrier - started) * 1e3),
            (Stretch::CarrierToEntry, (entry - carrier) * 1e3),
            (Stretch::StartToV4, (answers[0] - started) * 1e3),
            (Stretch::StartToV6, (answers[1] - started) * 1e3),
            (Stretch::EndToSilence, (last - ended).max(0.0) * 1e3),
        ])
    }

    /// When the machine's addresses are in the map and its endpoint is up.
    fn wait_entry(&self, stop: &AtomicBool) -> Result<f64> {
        let maps = Maps::open(&self.maps)?;
        let deadline = now() + LIMIT.as_secs_f64();
        while now() < deadline && !stop.load(Ordering::Relaxed) {
            let state = maps.read()?;
            let up = state.endpoints.values().any(|entry| {
                entry
                    .name
                    .starts_with(format!("{}\0", self.name).as_bytes())
                    && entry.forward.flags & endpoint_flag::UP != 0
            });
            if up {
                return Ok(now());
            }
            thread::sleep(LOOK);
        }
        anyhow::bail!("{} did not come up in the map within {LIMIT:?}", self.name)
    }
}

/// Seconds since 1970.
fn now() -> f64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs_f64()
}

fn is_answer(line: &str) -> bool {
    line.contains(" bytes from ")
}

/// The time that `ping -D` prints before a line.
fn stamp(line: &str) -> Option<f64> {
    line.strip_prefix('[')?.split(']').next()?.parse().ok()
}

/// When the last answer came, once none has come for a while.
fn wait_silence(pings: &[Process]) -> Result<f64> {
    let last = || {
        pings
            .iter()
            .filter_map(|ping| {
                let out = ping.out();
                out.lines()
                    .rev()
                    .find(|line| is_answer(line))
                    .and_then(stamp)
            })
            .fold(0.0, f64::max)
    };
    let deadline = now() + LIMIT.as_secs_f64();
    loop {
        let seen = last();
        if now() - seen > SILENCE.as_secs_f64() {
            return Ok(seen);
        }
        ensure!(now() < deadline, "the machine goes on answering");
        thread::sleep(SILENCE / 4);
    }
}

/// The time that `ip -tshort` prints, `[2026-01-31T12:34:56.789012]`, on the day of
/// another moment.
fn time_of_day(line: &str, near: f64) -> Result<f64> {
    const DAY: f64 = 86_400.0;
    let text = line
        .split(['T', ']'])
        .nth(1)
        .with_context(|| format!("no time in {line}"))?;
    let mut seconds = 0.0;
    for part in text.split(':') {
        seconds = seconds * 60.0 + part.parse::<f64>().with_context(|| line.to_owned())?;
    }
    let midnight = (near / DAY).floor() * DAY;
    let nearest = [midnight - DAY, midnight, midnight + DAY]
        .map(|day| day + seconds)
        .into_iter()
        .min_by(|a, b| (a - near).abs().total_cmp(&(b - near).abs()));
    nearest.context("no day")
}
