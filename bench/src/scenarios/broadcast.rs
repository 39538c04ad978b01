//! An ARP broadcast that is nobody's business here: what it costs a host with many machines
//! to find that out.

use std::{fs, net::Ipv4Addr, time::Duration};

use anyhow::{Context as _, Result, ensure};
use netspawn_tests::{LAN, Ns};

use crate::{
    figure::{Figure, Unit},
    lab::{Guests, Load, Way, World, frames_taking, on_one_core, unbound_workers},
    run::Run,
};

use super::answers::who_has;

/// Numbers of machines.
const MACHINES: [u32; 3] = [1, 100, 1_000];
/// Different requests.
const REQUESTS: u32 = 1 << 10;
/// How long a round's broadcasts take about.
const ROUND: Duration = Duration::from_millis(500);
/// Broadcasts of a round at most.
const MOST: u32 = 4_000_000;

/// Broadcasts of a round by macvlan: it leaves the copying to a kernel thread, with a queue
/// of 1,000. The 20 ms that sending takes at least are 20 µs for each of these.
const QUEUE: u32 = 900;

/// A world with the frames for it.
struct Path {
    world: World,
    load: Load,
    /// Broadcasts of a round.
    frames: u32,
    costs: Vec<f64>,
    copies: Vec<f64>,
}

/// CPU time of one broadcast, and how many machines got a copy, by number of machines.
///
/// # Errors
/// Without root, when a world cannot be made, when a bridge or macvlan loses copies, or
/// when the user stops.
pub fn run(run: &Run) -> Result<Vec<Figure>> {
    on_one_core(|| {
        let mut figures = Vec::new();
        for machines in run.sizes(&MACHINES) {
            figures.extend(of_size(run, machines)?);
        }
        Ok(figures)
    })
}

fn of_size(run: &Run, machines: u32) -> Result<Vec<Figure>> {
    let mut paths = Vec::new();
    for way in [Way::Bridge, Way::Macvlan, Way::Routed, Way::Tc, Way::Xdp] {
        run.step(&format!("broadcast: {machines} machines, {}", way.name()))?;
        paths.push(Path::new(way, machines)?);
    }
    for round in 1..=run.rounds {
        for path in &mut paths {
            run.step(&format!(
                "broadcast: {machines} machines, round {round} of {}, {}",
                run.rounds,
                path.world.way.name()
            ))?;
            path.round()?;
        }
    }
    let figures = paths.into_iter().flat_map(|path| {
        let name = path.world.way.name();
        [
            Figure::new(
                "broadcast",
                "CPU per broadcast",
                Unit::Nanoseconds,
                name,
                machines,
                path.costs,
            ),
            Figure::new(
                "broadcast",
                "copies to machines",
                Unit::Count,
                name,
                machines,
                path.copies,
            ),
        ]
    });
    Ok(figures.collect())
}

impl Path {
    fn new(way: Way, machines: u32) -> Result<Self> {
        // Where every machine gets a copy, every machine has a stack that looks at it.
        let guests = match way {
            Way::Bridge | Way::Macvlan => Guests::Apart,
            _ => Guests::Together,
        };
        let world = World::new(way, machines, guests)?;
        let out = world.net.ifindex(LAN)?;
        let frames: Vec<_> = (0..REQUESTS)
            .map(|number| (who_has(Ipv4Addr::from_bits(0x0aff_0000 + number)), out))
            .collect();
        // One at a time: a bridge's copies all go through the core's backlog.
        let load = Load::new(&frames)?.batches_of(1);
        let frames = match way {
            Way::Macvlan if machines > 1 => QUEUE,
            _ => frames_taking(ROUND, MOST, |count| load.fire(&world.net, count))?,
        };
        Ok(Path {
            world,
            load,
            frames,
            costs: Vec::new(),
            copies: Vec::new(),
        })
    }

    fn round(&mut self) -> Result<()> {
        let before = received(&self.world.guests)?;
        let (net, guests) = (&self.world.net, &self.world.guests);
        let mut last = before;
        let workers = match self.world.way {
            Way::Macvlan => unbound_workers()?,
            _ => Vec::new(),
        };
        let time = self.load.fire_until(net, self.frames, &workers, || {
            let now = received(guests)?;
            Ok(std::mem::replace(&mut last, now) == now)
        })?;
        let copies = (received(&self.world.guests)? - before) as f64 / f64::from(self.frames);
        // What is lost before it is copied costs next to nothing.
        let whole = match self.world.way {
            Way::Bridge | Way::Macvlan => copies / f64::from(self.world.machines),
            _ => 1.0,
        };
        ensure!(whole > 0.0, "{} delivers nothing", self.world.way.name());
        let each = time.as_secs_f64() * 1e9 / f64::from(self.frames);
        self.costs.push(each / whole);
        self.copies.push(copies);
        Ok(())
    }
}

/// Packets that machines have received so far.
fn received(guests: &[Ns]) -> Result<u64> {
    let mut sum = 0;
    for ns in guests {
        let text = ns.enter(|| {
            fs::read_to_string("/proc/thread-self/net/dev").context("no interface counters")
        })?;
        for line in text.lines() {
            let Some((name, counters)) = line.split_once(':') else {
                continue;
            };
            if name.trim_start().starts_with('g') {
                let packets = counters.split_whitespace().nth(1);
                sum += packets.context("no packet counter")?.parse::<u64>()?;
            }
        }
    }
    Ok(sum)
}
