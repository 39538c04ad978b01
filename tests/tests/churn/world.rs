//! Carries changes out, and compares.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    fs,
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use fastrand::Rng;
use netspawn_tests::{
    Canaries, Crowd, FAR4, FAR6, HOST4, Lab, Ns, Process, READY, Signal, Snapshot, Stream, UPLINK,
    Usage, silent,
};
use serde_json::Value;

use crate::model::{Machine, Model, Place, Said};

/// Time between two packets of a stream.
const INTERVAL: Duration = Duration::from_millis(5);
/// For so long a port may be without its guard while the agent runs, besides the time in
/// which this machine had other things to do.
const UNGUARDED: Duration = Duration::from_secs(1);
/// Until everything is as it has to be, however little of the machine there is.
const SETTLED: Duration = Duration::from_secs(60);
/// Until those answer that have to.
const ANSWERS: Duration = Duration::from_secs(10);
/// How long those are asked that must not answer.
const SILENT: Duration = Duration::from_millis(300);
/// Changes of an alias, each of which is an event: more than the agent's socket holds.
const EVENTS: usize = 25_000;
/// One of so many rounds kills the agent; stops it; overruns it.
const KILL: u32 = 8;
const STOP: u32 = 6;
const OVERRUN: u32 = 40;
/// One of so many rounds asks all machines whether they answer.
const ASK: u32 = 10;
/// The first of the numbers that links are made with.
const INDEX: u32 = 100_000;

/// Everything there is.
pub struct World {
    agent: Option<Process>,
    canaries: Canaries,
    stalls: Stalls,
    crowd: Crowd,
    aside: Ns,
    model: Model,
    random: Rng,
    bare: Snapshot,
    first: Usage,
    lab: Lab,
    numbers: Numbers,
    names: u64,
}

/// What has happened.
#[derive(Default)]
struct Numbers {
    changes: u64,
    kills: u64,
    stops: u64,
    overruns: u64,
    lost_events: u64,
    asked: u64,
    slowest: Duration,
}

/// What is done to a machine.
#[derive(Clone, Copy, Debug)]
enum Change {
    Declare,
    Withdraw,
    Plug,
    Unplug,
    /// Deleted and made again under its number, in one go.
    Again,
    /// Deleted; another is made that gets its number.
    Inherit,
    Rename,
    Home,
    /// Exchanges its name with another.
    Exchange,
    /// To another namespace.
    Move,
    /// To another namespace and back in one go.
    ThereAndBack,
    Back,
    Down,
    Up,
}

impl Change {
    const ALL: [Change; 14] = [
        Change::Declare,
        Change::Withdraw,
        Change::Plug,
        Change::Unplug,
        Change::Again,
        Change::Inherit,
        Change::Rename,
        Change::Home,
        Change::Exchange,
        Change::Move,
        Change::ThereAndBack,
        Change::Back,
        Change::Down,
        Change::Up,
    ];
}

impl World {
    /// A lab, an agent, and most of the machines.
    pub fn new(count: usize, seed: u64) -> Result<Self> {
        let lab = Lab::usual()?;
        let bare = Snapshot::host(&lab)?;
        let crowd = Crowd::new(&lab, count)?;
        let agent = start(&lab)?;
        let canaries = Canaries::start(streams(&lab)?, INTERVAL)?;
        let first = Usage::take(&lab.host, &lab.pins(), UPLINK, Some(agent.id()))?;
        let mut world = World {
            agent: Some(agent),
            canaries,
            stalls: Stalls::watch(),
            crowd,
            aside: Ns::new("aside")?,
            model: Model::new(count),
            random: Rng::with_seed(seed),
            bare,
            first,
            lab,
            numbers: Numbers::default(),
            names: 0,
        };
        let mut links = Vec::new();
        for number in 0..count {
            world.declare(number)?;
            if number % 10 != 0 {
                let (port, index) = (Crowd::port(number), world.free_index());
                let machine = &mut world.model.machines[number];
                (machine.place, machine.up) = (Place::Host(port.clone(), index), true);
                links.push((number, port, Some(index)));
            }
        }
        world.crowd.plug_as(&world.lab, &links)?;
        world.compare()?;
        world.ask()?;
        Ok(world)
    }

    /// What has happened so far.
    pub fn words(&self) -> String {
        let tally = self.canaries.so_far();
        let Numbers {
            changes,
            kills,
            stops,
            overruns,
            lost_events,
            asked,
            slowest,
        } = &self.numbers;
        format!(
            "{changes} changes, {kills} kills, {stops} stops, {overruns} overruns with \
             {lost_events} events lost, {asked} machines asked, slowest guard after {:.2} s, {} \
             packets, {} lost",
            slowest.as_secs_f64(),
            tally.sent,
            tally.lost
        )
    }

    /// Some changes, during which something may happen to the agent; then everything is
    /// as the model has it.
    pub fn round(&mut self) -> Result<()> {
        let mut changes = 1 + self.random.usize(..12);
        if self.random.u32(..OVERRUN) == 0 {
            self.signal(Signal::SIGSTOP)?;
            self.changes(changes)?;
            self.overrun()?;
            changes /= 2;
            self.changes(changes)?;
            self.signal(Signal::SIGCONT)?;
            self.numbers.overruns += 1;
        } else if self.random.u32(..KILL) == 0 {
            let agent = self.agent.take().context("no agent runs")?;
            self.changes(changes)?;
            // While it works on these.
            agent.end(Signal::SIGKILL, Duration::from_secs(10))?;
            self.changes(changes)?;
            self.agent = Some(start(&self.lab)?);
            self.numbers.kills += 1;
        } else if self.random.u32(..STOP) == 0 {
            self.signal(Signal::SIGSTOP)?;
            self.changes(changes)?;
            self.signal(Signal::SIGCONT)?;
            self.numbers.stops += 1;
        } else {
            self.changes(changes)?;
        }
        self.compare()?;
        if self.random.u32(..ASK) == 0 {
            self.ask()?;
        }
        let agent = self.agent.as_mut().context("no agent runs")?;
        ensure!(
            agent.running(),
            "the agent has ended\n{}{}",
            agent.out(),
            agent.err()
        );
        let tally = self.canaries.so_far();
        ensure!(
            tally.lost == 0,
            "{} packets are lost: {:?}",
            tally.lost,
            tally.words
        );
        Ok(())
    }

    /// Has all machines go, and finds that nothing is left.
    pub fn end(mut self) -> Result<String> {
        let (mut host, mut aside) = (String::new(), String::new());
        for machine in &mut self.model.machines {
            match &machine.place {
                Place::Gone => {}
                Place::Host(name, _) => writeln!(host, "link del {name}")?,
                Place::Aside => writeln!(aside, "link del {}", Crowd::port(machine.number))?,
            }
            machine.place = Place::Gone;
            if machine.declared {
                self.lab.withdraw(&Crowd::name(machine.number))?;
                machine.declared = false;
            }
        }
        for (ns, lines) in [(&self.lab.host, host), (&self.aside, aside)] {
            ns.cmd("ip").args(["-batch", "-"]).input(lines).text()?;
        }
        self.compare()?;
        let tally = self.canaries.caught_up();
        ensure!(
            tally.lost == 0,
            "{} packets are lost: {:?}",
            tally.lost,
            tally.words
        );
        let words = self.words();
        let agent = self.agent.take().context("no agent runs")?;
        let last = Usage::take(&self.lab.host, &self.lab.pins(), UPLINK, Some(agent.id()))?;
        for (name, before) in &self.first.0 {
            let now = last.get(name);
            // Memory has another suite, drops are counted for as long as there are machines,
            // and stations are the network's.
            let noisy = ["rss", "threads", "map drops", "map stations"].contains(&name.as_str());
            ensure!(
                noisy || now <= *before,
                "{name} was {before} and is {now} when all have gone"
            );
        }
        let output = agent.end(Signal::SIGTERM, Duration::from_secs(20))?;
        ensure!(output.code() == 0, "{output:?}");
        drop(self.canaries);
        self.lab.run("detach")?;
        self.bare.same(&Snapshot::host(&self.lab)?)?;
        Ok(words)
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        self.agent.as_ref().context("no agent runs")?.signal(signal)
    }

    fn changes(&mut self, count: usize) -> Result<()> {
        for _ in 0..count {
            let number = self.random.usize(..self.model.machines.len());
            let change = Change::ALL[self.random.usize(..Change::ALL.len())];
            self.carry_out(number, change)
                .with_context(|| format!("{change:?} of {number}"))?;
        }
        Ok(())
    }

    /// Carries a change out, if it can be.
    fn carry_out(&mut self, number: usize, change: Change) -> Result<()> {
        let Machine {
            declared,
            place,
            up,
            ..
        } = self.model.machines[number].clone();
        let port = Crowd::port(number);
        self.numbers.changes += 1;
        match (change, place) {
            (Change::Declare, _) if !declared => self.declare(number)?,
            (Change::Withdraw, _) if declared => {
                self.lab.withdraw(&Crowd::name(number))?;
                self.model.machines[number].declared = false;
            }
            (Change::Plug, Place::Gone) => self.plug(number, None)?,
            (Change::Unplug, Place::Host(name, _)) => self.unplug(number, &name)?,
            (Change::Again, Place::Host(name, index)) if name == port => {
                self.unplug(number, &name)?;
                self.plug(number, Some(index))?;
            }
            (Change::Inherit, Place::Host(name, index)) => {
                if let Some(heir) = self.other(|machine| machine.place == Place::Gone) {
                    self.unplug(number, &name)?;
                    self.plug(heir, Some(index))?;
                }
            }
            (Change::Rename, Place::Host(name, index)) if name == port => {
                let new = self.away();
                self.host(&format!("link set {name} name {new}"))?;
                self.model.machines[number].place = Place::Host(new, index);
            }
            // Back to its own name, if that is free.
            (Change::Home, Place::Host(name, index)) if name != port => {
                let taken = self.model.machines.iter().find(
                    |machine| matches!(&machine.place, Place::Host(other, _) if *other == port),
                );
                match taken.map(|machine| machine.number) {
                    Some(other) => self.exchange(number, other)?,
                    None => {
                        self.host(&format!("link set {name} name {port}"))?;
                        self.model.machines[number].place = Place::Host(port, index);
                    }
                }
            }
            (Change::Exchange, Place::Host(..)) => {
                let there = |machine: &Machine| matches!(machine.place, Place::Host(..));
                let other = self.other(|machine| there(machine) && machine.number != number);
                if let Some(other) = other {
                    self.exchange(number, other)?;
                }
            }
            (Change::Move, Place::Host(name, _)) if name == port => {
                self.host(&format!(
                    "link set {name} netns {}",
                    self.aside.path().display()
                ))?;
                let machine = &mut self.model.machines[number];
                (machine.place, machine.up) = (Place::Aside, false);
            }
            (Change::ThereAndBack, Place::Host(name, _)) if name == port => {
                self.host(&format!(
                    "link set {name} netns {}",
                    self.aside.path().display()
                ))?;
                self.back(number)?;
            }
            (Change::Back, Place::Aside) => self.back(number)?,
            (Change::Down, Place::Host(name, _)) if up => {
                self.host(&format!("link set {name} down"))?;
                self.model.machines[number].up = false;
            }
            (Change::Up, Place::Host(name, _)) if !up => {
                self.host(&format!("link set {name} up"))?;
                self.model.machines[number].up = true;
            }
            // Nothing to be done.
            _ => self.numbers.changes -= 1,
        }
        Ok(())
    }

    fn other(&mut self, fits: impl Fn(&Machine) -> bool) -> Option<usize> {
        let those = self.model.those(fits);
        (!those.is_empty()).then(|| those[self.random.usize(..those.len())])
    }

    /// A name that no declaration has.
    fn away(&mut self) -> String {
        self.names += 1;
        format!("away{}", self.names)
    }

    fn host(&self, line: &str) -> Result<()> {
        self.lab.host.run(&format!("ip {line}")).map(drop)
    }

    fn declare(&mut self, number: usize) -> Result<()> {
        let text = format!(
            "interface = \"{}\"\n{}",
            Crowd::port(number),
            Crowd::declaration(number)
        );
        self.lab.declare(&Crowd::name(number), &text)?;
        self.model.machines[number].declared = true;
        Ok(())
    }

    fn plug(&mut self, number: usize, index: Option<u32>) -> Result<()> {
        let port = Crowd::port(number);
        // The name may be another's by now.
        let taken = self
            .model
            .machines
            .iter()
            .any(|machine| matches!(&machine.place, Place::Host(name, _) if *name == port));
        let name = if taken { self.away() } else { port };
        let index = match index {
            Some(index) => index,
            None => self.free_index(),
        };
        self.crowd
            .plug_as(&self.lab, &[(number, name.clone(), Some(index))])?;
        let machine = &mut self.model.machines[number];
        (machine.place, machine.up) = (Place::Host(name, index), true);
        Ok(())
    }

    /// A number that is free in the host, often one that was used before.
    fn free_index(&mut self) -> u32 {
        let used: BTreeSet<u32> = self
            .model
            .machines
            .iter()
            .filter_map(|machine| match machine.place {
                Place::Host(_, index) => Some(index),
                _ => None,
            })
            .collect();
        let most = u32::try_from(self.model.machines.len()).unwrap_or(u32::MAX);
        loop {
            let index = INDEX + self.random.u32(..2 * most);
            if !used.contains(&index) {
                return index;
            }
        }
    }

    fn unplug(&mut self, number: usize, name: &str) -> Result<()> {
        self.host(&format!("link del {name}"))?;
        let machine = &mut self.model.machines[number];
        (machine.place, machine.up) = (Place::Gone, false);
        Ok(())
    }

    fn exchange(&mut self, one: usize, other: usize) -> Result<()> {
        let place = |number: usize| match &self.model.machines[number].place {
            Place::Host(name, index) => Ok((name.clone(), *index)),
            place => bail!("{number} is {place:?}"),
        };
        let ((first, first_index), (second, second_index)) = (place(one)?, place(other)?);
        self.host(&format!("link set {first} name between"))?;
        self.host(&format!("link set {second} name {first}"))?;
        self.host(&format!("link set between name {second}"))?;
        self.model.machines[one].place = Place::Host(second, first_index);
        self.model.machines[other].place = Place::Host(first, second_index);
        Ok(())
    }

    /// Brings a port back from where it was moved to; it is down there. It keeps its
    /// number, unless somebody else has that by now.
    fn back(&mut self, number: usize) -> Result<()> {
        let port = Crowd::port(number);
        let taken = self
            .model
            .machines
            .iter()
            .any(|machine| matches!(&machine.place, Place::Host(name, _) if *name == port));
        let name = if taken { self.away() } else { port.clone() };
        self.aside.run(&format!(
            "ip link set {port} name {name} netns {}",
            self.lab.host.path().display()
        ))?;
        self.host(&format!("link set {name} up"))?;
        let index = self.lab.host.ifindex(&name)?;
        let machine = &mut self.model.machines[number];
        (machine.place, machine.up) = (Place::Host(name, index), true);
        Ok(())
    }

    /// So many events that the agent, which is stopped, loses some.
    fn overrun(&mut self) -> Result<()> {
        let mut lines = String::new();
        let names: Vec<String> = self
            .model
            .machines
            .iter()
            .filter_map(|machine| match &machine.place {
                Place::Host(name, _) => Some(name.clone()),
                _ => None,
            })
            .collect();
        ensure!(!names.is_empty(), "there are no links");
        for (number, name) in names.iter().cycle().take(EVENTS).enumerate() {
            writeln!(lines, "link set {name} alias a{number}")?;
        }
        let before = self.lost_events()?;
        self.lab
            .host
            .cmd("ip")
            .args(["-batch", "-"])
            .input(lines)
            .limit(Duration::from_secs(120))
            .text()?;
        let lost = self.lost_events()?.saturating_sub(before);
        ensure!(lost > 0, "{EVENTS} events overran nobody");
        self.numbers.lost_events += lost;
        Ok(())
    }

    /// Events that the netlink sockets of the host have lost.
    fn lost_events(&self) -> Result<u64> {
        let table = self
            .lab
            .host
            .enter(|| Ok(fs::read_to_string("/proc/thread-self/net/netlink")?))?;
        // sk, protocol, port, groups, rmem, wmem, dump, locks, drops, inode.
        let drops = table
            .lines()
            .skip(1)
            .filter_map(|line| line.split_whitespace().nth(8)?.parse::<u64>().ok());
        Ok(drops.sum())
    }

    /// Waits until guards, and what is said, are as the model has them. Guards have to be
    /// there within their time.
    fn compare(&mut self) -> Result<()> {
        let start = Instant::now();
        let stalled = self.stalls.total();
        let guards = self.model.guards();
        let said = self.model.said();
        loop {
            let asked = start.elapsed();
            let on = self.guarded()?;
            let missing: Vec<_> = guards
                .iter()
                .filter(|(name, wanted)| **wanted == Some(true) && !on.contains(*name))
                .collect();
            let extra: Vec<_> = guards
                .iter()
                .filter(|(name, wanted)| **wanted == Some(false) && on.contains(*name))
                .collect();
            let busy = self.stalls.total().saturating_sub(stalled);
            if missing.is_empty() {
                self.numbers.slowest = self.numbers.slowest.max(asked.saturating_sub(busy));
            }
            ensure!(
                missing.is_empty() || asked < UNGUARDED + busy,
                "unguarded {:.2} s after the change (of which the machine was busy {:.2} s): \
                 {missing:?}",
                asked.as_secs_f64(),
                busy.as_secs_f64()
            );
            let found = if missing.is_empty() && extra.is_empty() {
                let found = self.listed()?;
                if found == said {
                    return Ok(());
                }
                found
            } else {
                said.clone()
            };
            let differ: Vec<_> = said
                .iter()
                .filter(|(name, wanted)| found.get(*name) != Some(wanted))
                .map(|(name, wanted)| {
                    format!("{name} is {:?} instead of {wanted:?}", found.get(name))
                })
                .chain(
                    found
                        .keys()
                        .filter(|name| !said.contains_key(*name))
                        .cloned(),
                )
                .collect();
            ensure!(
                asked < SETTLED + busy,
                "after {asked:?}: guards that nobody needs: {extra:?}; what is said: {differ:?}"
            );
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// Names of the ports that have a guard.
    fn guarded(&self) -> Result<BTreeSet<String>> {
        let text = self.lab.host.run("tc -j qdisc show")?;
        let qdiscs: Vec<Value> = serde_json::from_str(&text).context("tc prints no JSON")?;
        Ok(qdiscs
            .iter()
            .filter(|qdisc| qdisc["kind"] == "ingress")
            .filter_map(|qdisc| qdisc["dev"].as_str().map(str::to_owned))
            .collect())
    }

    /// What is said of the crowd.
    fn listed(&self) -> Result<BTreeMap<String, (Said, Option<u32>)>> {
        let list = self.lab.json("list")?;
        let machines = list.as_array().context("no list")?;
        machines
            .iter()
            .filter(|machine| {
                let name = machine["name"].as_str().unwrap_or_default();
                name.strip_prefix('m')
                    .is_some_and(|rest| rest.parse::<u32>().is_ok())
            })
            .map(|machine| {
                let name = machine["name"].as_str().context("no name")?;
                let said = [Said::Up, Said::Down, Said::Waiting]
                    .into_iter()
                    .find(|said| machine["state"] == said.name())
                    .with_context(|| format!("{machine} has an odd state"))?;
                let ifindex = match said {
                    // What it was is nobody's business.
                    Said::Waiting => None,
                    _ => Some(u32::try_from(
                        machine["ifindex"].as_u64().context("no ifindex")?,
                    )?),
                };
                Ok((name.to_owned(), (said, ifindex)))
            })
            .collect()
    }

    /// Asks all machines: those answer that have to, and no others.
    fn ask(&mut self) -> Result<()> {
        // Machines keep their addresses through all that happens to the other end, but
        // for one whose port has left the host and come back: routes are there still.
        let answering = self.model.answering();
        self.numbers.asked += self.model.machines.len() as u64;
        let addresses = |numbers: Vec<usize>| -> BTreeSet<IpAddr> {
            numbers.into_iter().flat_map(Crowd::addresses).collect()
        };
        let missing = silent(&self.lab.net, addresses(answering), ANSWERS)?;
        ensure!(missing.is_empty(), "{missing:?} do not answer");
        let others = addresses(self.model.silent());
        let silent = silent(&self.lab.net, others.clone(), SILENT)?;
        let answered: Vec<_> = others
            .iter()
            .filter(|other| !silent.contains(other))
            .collect();
        ensure!(answered.is_empty(), "{answered:?} answer");
        Ok(())
    }
}

fn start(lab: &Lab) -> Result<Process> {
    let mut process = lab.xdp(["attach", UPLINK, "--source", "files"])?.start()?;
    process.wait_line(READY, |line| line.starts_with("ready:"))?;
    Ok(process)
}

fn streams(lab: &Lab) -> Result<Vec<Stream>> {
    let (web, db, mail) = (lab.machine("web"), lab.machine("db"), lab.machine("mail"));
    Ok(vec![
        Stream::new(&lab.net, &web.ns, web.v4())?,
        Stream::new(&lab.net, &db.ns, db.v6())?,
        Stream::new(&web.ns, &mail.ns, mail.v4())?,
        Stream::new(&mail.ns, &web.ns, web.v6())?,
        Stream::new(&db.ns, &lab.net, FAR4)?,
        Stream::new(&mail.ns, &lab.net, FAR6)?,
        Stream::new(&lab.host, &db.ns, db.v4())?,
        Stream::new(&web.ns, &lab.host, HOST4)?,
    ])
}

/// How long this machine had no time for who wanted to run.
struct Stalls {
    micros: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
}

/// A nap, after which the thread wants to run again.
const NAP: Duration = Duration::from_millis(5);

impl Stalls {
    fn watch() -> Self {
        let stalls = Stalls {
            micros: Arc::default(),
            stop: Arc::default(),
        };
        let (micros, stop) = (Arc::clone(&stalls.micros), Arc::clone(&stalls.stop));
        thread::spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                let start = Instant::now();
                thread::sleep(NAP);
                let late = start.elapsed().saturating_sub(2 * NAP);
                let late = u64::try_from(late.as_micros()).unwrap_or(u64::MAX);
                micros.fetch_add(late, Ordering::Relaxed);
            }
        });
        stalls
    }

    fn total(&self) -> Duration {
        Duration::from_micros(self.micros.load(Ordering::Relaxed))
    }
}

impl Drop for Stalls {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}
