//! Many machines on one uplink.
//!
//! - `bridge`: how many ports a bridge takes, the uplink among them.
//! - `ours`: the time from the start of `attach` to its `ready:` line with all machines
//!   up, that of `detach`, and pings from the network to 500 of them, IPv4 and IPv6.
//! - Stalls of the RTNL mutex: a thread in a namespace of its own changes the alias of a
//!   link there, every millisecond. The longest time that one change took is the figure;
//!   nothing is subtracted. `without us` is the same while nothing happens.
//! - Stalls at a mass stop: a tenth of the machines (1,000 at 10,000) end at once, in
//!   the same world with bare qdiscs, attached, and after `detach`, with these machines
//!   made anew in between.
//! - Memory per machine: what `attach` adds to unreclaimable slab, per-CPU memory and
//!   vmalloc of the whole machine (`/proc/meminfo`) and to resident memory (the agent's
//!   `VmRSS`, or nothing before it runs), less the same for one machine, divided by the
//!   machines beyond one. Maps are allocated whole and are in what one machine takes,
//!   which is a figure of its own.
//! - `bare qdisc calls`: the ingress qdiscs alone are added to all ports, and deleted, by
//!   one process without anything else: what the kernel takes at that number, in time, in
//!   memory, and when machines stop.

use std::{
    fs,
    net::IpAddr,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use netspawn_tests::{Ns, wait_until};
use netspawn_user::net::{
    netlink::{Netlink, Request},
    read::ifinfomsg,
};

use crate::{
    figure::{Figure, Unit},
    lab::{Guests, Way, World, join_block, leave_block, machine4, machine6},
    run::Run,
};

const SCENARIO: &str = "scale";
const SIZES: [u32; 3] = [1024, 4000, 10_000];
/// Ports of a bridge beside the uplink.
const BRIDGED: u32 = 1022;
const PINGED: u32 = 500;
/// How long a mass stop may take.
const STOPPED: Duration = Duration::from_secs(120);

const OURS: &str = "ours";
const WITHOUT: &str = "without us";
const BARE: &str = "bare qdisc calls";

/// All of it.
///
/// # Errors
/// When a world cannot be made, something does not answer in time, or the run is to stop.
pub fn run(run: &Run) -> Result<Vec<Figure>> {
    let mut figures = Vec::new();
    if run.machines >= BRIDGED {
        run.step("scale: ports of a bridge")?;
        figures.push(bridge()?);
    }
    run.step("scale: memory of one machine")?;
    let one = memory_of_one()?;
    figures.push(Figure::new(
        SCENARIO,
        "memory of one machine",
        Unit::Bytes,
        OURS,
        1u32,
        vec![one],
    ));
    for size in run.sizes(&SIZES) {
        figures.extend(ours(run, size, one)?);
    }
    Ok(figures)
}

/// Ports that a bridge takes.
fn bridge() -> Result<Figure> {
    let world = World::new(Way::Bridge, BRIDGED, Guests::Together)?;
    let host = &world.host;
    host.run("ip link add extra type veth peer name other")?;
    let refused = host
        .cmd("ip")
        .args(["link", "set", "extra", "master", "br0"])
        .output()?;
    ensure!(
        refused.code() != 0 && refused.stderr.contains("Exchange full"),
        "the bridge's answer to one more port: code {}, {}",
        refused.code(),
        refused.stderr
    );
    let links = host.run("ip -o link show master br0")?;
    let ports = vec![links.lines().count() as f64];
    Ok(Figure::new(
        SCENARIO,
        "ports taken",
        Unit::Count,
        "bridge",
        u64::from(BRIDGED) + 2,
        ports,
    ))
}

/// What `attach` adds with a single machine.
fn memory_of_one() -> Result<f64> {
    let mut world = World::unattached(Way::Tc, 1, Guests::Apart)?;
    quiet()?;
    let before = memory(None)?;
    world.attach()?;
    let after = memory(world.agent())?;
    Ok((after - before) as f64)
}

/// Rounds by metric and path, in the order in which they were first measured.
#[derive(Default)]
struct Rounds(Vec<(&'static str, Unit, &'static str, Vec<f64>)>);

impl Rounds {
    fn add(&mut self, metric: &'static str, unit: Unit, path: &'static str, value: f64) {
        let found = self
            .0
            .iter_mut()
            .find(|entry| (entry.0, entry.2) == (metric, path));
        match found {
            Some(entry) => entry.3.push(value),
            None => self.0.push((metric, unit, path, vec![value])),
        }
    }

    fn stall(&mut self, metric: &'static str, path: &'static str, longest: Duration) {
        self.add(
            metric,
            Unit::Milliseconds,
            path,
            longest.as_secs_f64() * 1e3,
        );
    }

    fn figures(self, size: u32) -> impl Iterator<Item = Figure> {
        self.0.into_iter().map(move |(metric, unit, path, rounds)| {
            Figure::new(SCENARIO, metric, unit, path, size, rounds)
        })
    }
}

const ATTACH_STALL: &str = "longest RTNL stall at attach";
const DETACH_STALL: &str = "longest RTNL stall at detach";
const STOP_STALL: &str = "longest RTNL stall at mass stop";

fn ours(run: &Run, size: u32, one: f64) -> Result<impl Iterator<Item = Figure>> {
    let mut rounds = Rounds::default();
    run.step(&format!("scale: {size} machines are made"))?;
    let mut world = World::unattached(Way::Tc, size, Guests::Apart)?;
    quiet()?;
    for round in 0..run.rounds {
        let of = format!(
            "scale: {size} machines, round {} of {}",
            round + 1,
            run.rounds
        );

        run.step(&format!("{of}: nothing, and bare qdisc calls"))?;
        let ((), idle) = stalls(|| {
            thread::sleep(Duration::from_secs(5));
            Ok(())
        })?;
        rounds.stall(ATTACH_STALL, WITHOUT, idle);
        rounds.stall(DETACH_STALL, WITHOUT, idle);
        let ports = world.ports();
        quiet()?;
        let before = memory(None)?;
        let (took, stall) = stalls(|| timed(|| join_block(&world.host, &ports)))?;
        rounds.add("attach", Unit::Seconds, BARE, took.as_secs_f64());
        rounds.stall(ATTACH_STALL, BARE, stall);
        let each = (memory(None)? - before) as f64 / f64::from(size);
        rounds.add("memory per machine", Unit::Bytes, BARE, each);
        run.step(&format!("{of}: machines stop with bare qdiscs"))?;
        let stall = mass_stop(&mut world)?;
        rounds.stall(STOP_STALL, BARE, stall);
        world.restart()?;
        let again = &ports[ports.len() - stopped(size)..];
        join_block(&world.host, again)?;
        let (took, stall) = stalls(|| timed(|| leave_block(&world.host, &ports)))?;
        rounds.add("detach", Unit::Seconds, BARE, took.as_secs_f64());
        rounds.stall(DETACH_STALL, BARE, stall);

        run.step(&format!("{of}: attach"))?;
        quiet()?;
        let before = memory(None)?;
        let (took, stall) = stalls(|| timed(|| world.attach()))?;
        rounds.add("attach", Unit::Seconds, OURS, took.as_secs_f64());
        rounds.stall(ATTACH_STALL, OURS, stall);
        let more = memory(world.agent())? - before;
        if size > 1 {
            let each = (more as f64 - one) / f64::from(size - 1);
            rounds.add("memory per machine", Unit::Bytes, OURS, each);
        }

        run.step(&format!("{of}: pings"))?;
        let unanswered = pings(&world)?;
        rounds.add("pings unanswered", Unit::Count, OURS, f64::from(unanswered));

        run.step(&format!("{of}: machines stop"))?;
        let stall = mass_stop(&mut world)?;
        rounds.stall(STOP_STALL, OURS, stall);
        world.restart()?;

        run.step(&format!("{of}: detach"))?;
        quiet()?;
        let (took, stall) = stalls(|| timed(|| detach(&world)))?;
        rounds.add("detach", Unit::Seconds, OURS, took.as_secs_f64());
        rounds.stall(DETACH_STALL, OURS, stall);

        run.step(&format!("{of}: machines stop without us"))?;
        let stall = mass_stop(&mut world)?;
        rounds.stall(STOP_STALL, WITHOUT, stall);
        if round + 1 < run.rounds {
            world.restart()?;
        }
    }
    Ok(rounds.figures(size))
}

fn timed(work: impl FnOnce() -> Result<()>) -> Result<Duration> {
    let start = Instant::now();
    work()?;
    Ok(start.elapsed())
}

fn detach(world: &World) -> Result<()> {
    let limit = Duration::from_secs(120);
    world.xdp(["detach"])?.limit(limit).text().map(drop)
}

/// How many of the machines a mass stop ends.
fn stopped(machines: u32) -> usize {
    (machines as usize / 10).max(1)
}

/// Ends a tenth of the machines, and waits until the kernel has removed their ports.
fn mass_stop(world: &mut World) -> Result<Duration> {
    quiet()?;
    let count = stopped(world.machines);
    let left = links(&world.host)? - count;
    let ((), longest) = stalls(|| {
        world.stop(count);
        let gone = || links(&world.host).is_ok_and(|links| links <= left);
        ensure!(
            wait_until(STOPPED, gone),
            "links of machines that were stopped are there after {STOPPED:?}"
        );
        // What the kernel, and an agent, do about it afterwards.
        thread::sleep(Duration::from_secs(1));
        Ok(())
    })?;
    Ok(longest)
}

/// Number of links in a namespace. Reading this file does not take the RTNL mutex.
fn links(ns: &Ns) -> Result<usize> {
    ns.enter(|| {
        Ok(fs::read_to_string("/proc/thread-self/net/dev")?
            .lines()
            .count()
            - 2)
    })
}

/// Pings so many machines, no two the same, by both families from the network; how many
/// pings had no answer.
fn pings(world: &World) -> Result<u32> {
    // A step that is prime to the number of machines reaches each once.
    let step = [7919, 7907, 7901]
        .into_iter()
        .find(|step| !world.machines.is_multiple_of(*step))
        .unwrap_or(1);
    let chosen = (0..PINGED.min(world.machines)).map(|n| n * step % world.machines);
    let mut unanswered = 0;
    for number in chosen {
        for address in [
            IpAddr::from(machine4(number)),
            IpAddr::from(machine6(number)),
        ] {
            let text = address.to_string();
            let output = world
                .net
                .cmd("ping")
                .args(["-n", "-c", "1", "-W", "2", &text])
                .output()?;
            if output.code() != 0 {
                eprintln!("    no answer from {address}");
                unanswered += 1;
            }
        }
    }
    Ok(unanswered)
}

/// Does something while another measures how long a change of a link takes that has
/// nothing to do with it; the longest.
fn stalls<T>(work: impl FnOnce() -> Result<T>) -> Result<(T, Duration)> {
    let ns = Ns::new("bystander")?;
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let watch = scope.spawn(|| ns.enter(|| longest_change(&over)));
        let done = work();
        over.store(true, Ordering::Relaxed);
        let longest = watch
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        Ok((done?, longest))
    })
}

/// Changes the alias of `lo` of this thread's namespace again and again.
fn longest_change(over: &AtomicBool) -> Result<Duration> {
    let mut netlink = Netlink::open()?;
    let mut longest = Duration::ZERO;
    let lo = ifinfomsg(1, 0, 0);
    for number in 0u64.. {
        if over.load(Ordering::Relaxed) {
            break;
        }
        let alias = number.to_string();
        let request = Request::new(libc::RTM_SETLINK, 0, &lo);
        let start = Instant::now();
        netlink
            .apply(request.attr(libc::IFLA_IFALIAS, alias.as_bytes()))
            .context("cannot change an alias")?;
        longest = longest.max(start.elapsed());
        thread::sleep(Duration::from_millis(1));
    }
    Ok(longest)
}

/// Waits until nothing holds the RTNL mutex for long: the kernel removes namespaces of
/// what was before in the background.
fn quiet() -> Result<()> {
    for _ in 0..120 {
        let ((), longest) = stalls(|| {
            thread::sleep(Duration::from_secs(1));
            Ok(())
        })?;
        if longest < Duration::from_millis(20) {
            return Ok(());
        }
    }
    bail!("the RTNL mutex was held for 20 ms and longer in each second of two minutes")
}

/// Bytes of the machine's memory that the kernel cannot take back, as far as network and
/// BPF use it, and of a process.
fn memory(process: Option<u32>) -> Result<i64> {
    let mut pages = sum("/proc/meminfo", &["SUnreclaim:", "Percpu:", "VmallocUsed:"])?;
    if let Some(process) = process {
        pages += sum(&format!("/proc/{process}/status"), &["VmRSS:"])?;
    }
    Ok(pages * 1024)
}

/// Sum of the lines of a file that start with these words; all must be there.
fn sum(file: &str, names: &[&str]) -> Result<i64> {
    let text = fs::read_to_string(file).with_context(|| format!("cannot read {file}"))?;
    let value = |name: &&str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name));
        let number = line.and_then(|line| line.split_whitespace().next());
        number
            .and_then(|number| number.parse::<i64>().ok())
            .with_context(|| format!("{file} has no line {name}"))
    };
    names.iter().map(value).sum()
}
