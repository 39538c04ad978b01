//! What a packet costs on its way: network to machines, machines to network, machine to
//! machine.
//!
//! One core sends, forwards and receives 64-byte frames (60 without the checksum) to
//! machines in no order, so that the time it takes is the CPU time of a packet, with the
//! generator, the links and the counting receiver in it.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use etherparse::PacketBuilder;
use netspawn_tests::{LAN, Ns, UPLINK};

use crate::{
    figure::{Figure, Unit},
    lab::{
        Guests, Load, Receiver, Way, World, ifindexes, lan_mac, machine_mac, machine4, on_one_core,
        receive_offload, uplink_mac,
    },
    run::Run,
};

/// Frames in a round.
const FRAMES: u32 = 2_000_000;
/// Frames before the first round: every neighbor, cache and branch has been met.
const WARM: u32 = 300_000;
/// Different frames: enough for every machine to have some, few enough to stay in the
/// core's caches where the machines do.
const DIFFERENT: std::ops::RangeInclusive<u32> = 1 << 10..=1 << 16;
/// Whom machines talk with, behind the network's gateway.
const FAR: [u8; 4] = [198, 51, 100, 1];
const METRIC: &str = "CPU per packet";

/// Which way packets go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Direction {
    In,
    Out,
    Local,
}

impl Direction {
    const fn scenario(self) -> &'static str {
        match self {
            Direction::In => "forward-in",
            Direction::Out => "forward-out",
            Direction::Local => "local",
        }
    }

    /// Ways that can be measured in this direction: a macvlan interface does not take
    /// frames that XDP sends, and XDP has no part in what machines send.
    const fn ways(self) -> &'static [Way] {
        match self {
            Direction::In => &[
                Way::Link,
                Way::Macvlan,
                Way::Bridge,
                Way::Routed,
                Way::Bare,
                Way::Tc,
                Way::Xdp,
            ],
            Direction::Out => &[Way::Link, Way::Bridge, Way::Routed, Way::Bare, Way::Tc],
            Direction::Local => &[Way::Bridge, Way::Routed, Way::Tc],
        }
    }

    /// Fewest machines that there is something to measure with.
    const fn least(self) -> u32 {
        match self {
            Direction::Local => 2,
            _ => 1,
        }
    }
}

/// Network to machines.
pub fn inwards(run: &Run) -> Result<Vec<Figure>> {
    measure(run, Direction::In)
}

/// Machines to network.
pub fn outwards(run: &Run) -> Result<Vec<Figure>> {
    measure(run, Direction::Out)
}

/// Machine to machine.
pub fn local(run: &Run) -> Result<Vec<Figure>> {
    measure(run, Direction::Local)
}

fn measure(run: &Run, direction: Direction) -> Result<Vec<Figure>> {
    let mut figures = Vec::new();
    for size in run.sizes(&[1, 100, 1_000, 10_000]) {
        let machines = size.max(direction.least());
        let mut tracks = Vec::new();
        for &way in direction.ways() {
            if machines <= way.most() {
                run.step(&format!("{}, {machines} machines: making", way.name()))?;
                tracks.push(Track::new(way, machines, direction)?);
            }
        }
        let mut rounds = vec![Vec::new(); tracks.len()];
        for round in 1..=run.rounds {
            run.step(&format!(
                "{} machines, round {round} of {}",
                machines, run.rounds
            ))?;
            for (track, values) in tracks.iter().zip(&mut rounds) {
                let cost = track.cost().with_context(|| {
                    format!("{} with {machines} machines", track.world.way.name())
                })?;
                values.push(cost);
            }
        }
        for (track, values) in tracks.iter().zip(rounds) {
            figures.push(Figure::new(
                direction.scenario(),
                METRIC,
                Unit::Nanoseconds,
                track.world.way.name(),
                machines,
                values,
            ));
        }
    }
    Ok(figures)
}

/// A world with its load.
struct Track {
    receiver: Receiver,
    load: Load,
    direction: Direction,
    world: World,
}

impl Track {
    fn new(way: Way, machines: u32, direction: Direction) -> Result<Self> {
        let world = World::new(way, machines, Guests::Together)?;
        let receiver = Receiver::new()?;
        let pin = world.pin("receiver");
        match direction {
            _ if way == Way::Link => receiver.join(&world.host, &[UPLINK.to_owned()], &pin)?,
            Direction::In | Direction::Local => {
                receiver.join(&world.guests[0], &world.ends(), &pin)?;
            }
            Direction::Out => receiver.join(&world.net, &[LAN.to_owned()], &pin)?,
        }
        if direction != Direction::In && way != Way::Link {
            receive_offload(&world.host, &world.ports())?;
        }
        let load = Load::new(&frames(&world, direction)?)?;
        let track = Track {
            receiver,
            load,
            direction,
            world,
        };
        track
            .alone(|shot| shot.send(WARM))
            .with_context(|| format!("{} with {machines} machines, {direction:?}", way.name()))?;
        Ok(track)
    }

    fn sender(&self) -> &Ns {
        match self.direction {
            Direction::Out | Direction::Local if self.world.way != Way::Link => {
                &self.world.guests[0]
            }
            _ => &self.world.net,
        }
    }

    fn alone<T: Send>(&self, work: impl FnOnce(&Shot<'_>) -> Result<T> + Send) -> Result<T> {
        let shot = Shot {
            from: self.sender(),
            load: &self.load,
            receiver: &self.receiver,
        };
        on_one_core(move || work(&shot))
    }

    /// Nanoseconds of one packet, without what a run costs however few frames it sends.
    fn cost(&self) -> Result<f64> {
        self.alone(|shot| {
            let call = shot.send(1_000)?;
            let whole = shot.send(FRAMES + 1_000)?;
            Ok(whole.saturating_sub(call).as_nanos() as f64 / f64::from(FRAMES))
        })
    }
}

/// From a sender to a receiver.
struct Shot<'a> {
    from: &'a Ns,
    load: &'a Load,
    receiver: &'a Receiver,
}

impl Shot<'_> {
    /// Sends frames, all of which must arrive.
    fn send(&self, count: u32) -> Result<Duration> {
        let before = self.receiver.count()?;
        let wanted = u64::from(count) * 999 / 1000;
        // What is left to ksoftirqd may still be on its way when the last has been sent.
        let mut patience = 20;
        let took = self.load.fire_until(self.from, count, &[], || {
            patience -= 1;
            Ok(self.receiver.count()? - before >= wanted || patience == 0)
        })?;
        let arrived = self.receiver.count()? - before;
        ensure!(arrived >= wanted, "{arrived} of {count} packets arrived");
        Ok(took)
    }
}

fn frames(world: &World, direction: Direction) -> Result<Vec<(Vec<u8>, u32)>> {
    let machines = world.machines;
    let lan = world.net.ifindex(LAN)?;
    let inwards = direction == Direction::In || world.way == Way::Link;
    let exits = if inwards {
        Vec::new()
    } else {
        ifindexes(&world.guests[0], &world.ends())?
    };
    let different = (4 * machines)
        .next_power_of_two()
        .clamp(*DIFFERENT.start(), *DIFFERENT.end());
    (0..different)
        .map(|at| {
            // Knuth's multiplicative hash.
            let number = at.wrapping_mul(2_654_435_761) % machines;
            let payload = [0; 18];
            let mut frame = Vec::new();
            let (source_mac, destination_mac, source, destination, exit) = match direction {
                _ if inwards => (
                    lan_mac(),
                    if world.way == Way::Link {
                        uplink_mac()
                    } else {
                        world.mac_from_network(number)
                    },
                    FAR,
                    machine4(number).octets(),
                    lan,
                ),
                Direction::Out => (
                    machine_mac(number),
                    world.mac_to_network(),
                    machine4(number).octets(),
                    FAR,
                    exits[number as usize],
                ),
                _ => {
                    let other = (number + 1 + (at >> 8) % (machines - 1)) % machines;
                    (
                        machine_mac(number),
                        if world.way == Way::Bridge {
                            machine_mac(other)
                        } else {
                            world.mac_to_network()
                        },
                        machine4(number).octets(),
                        machine4(other).octets(),
                        exits[number as usize],
                    )
                }
            };
            PacketBuilder::ethernet2(source_mac, destination_mac)
                .ipv4(source, destination, 64)
                .udp(4000, 5000)
                .write(&mut frame, &payload)?;
            Ok((frame, exit))
        })
        .collect()
}
