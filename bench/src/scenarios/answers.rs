//! What `arp` and `ndp` have in common: one station asks for machines' addresses.
//!
//! Generator, network, host, whatever answers, and the counter of the answers share one
//! core, whose CPU time is what answers are divided by. The generator runs only when
//! nobody else has anything to do there, so that a slow peer is not fed more than it takes.

use std::{
    fmt::Write as _,
    fs,
    net::{Ipv4Addr, Ipv6Addr},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use etherparse::{ArpEthIpv4Packet, ArpOperation, EtherType, Ethernet2Header, PacketBuilder};
use netspawn_tests::{LAN, UPLINK};

use crate::{
    figure::{Figure, Unit, median},
    lab::{
        Guests, Load, Ndppd, Receiver, Station, Way, World, XdpReceiver, batch, frames_taking,
        lan_mac, machine4, machine6, on_one_core, unbound_workers,
    },
    run::Run,
};

/// What is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Question {
    /// An ARP request, broadcast.
    Arp,
    /// A neighbor solicitation to the solicited-node group, with the link-layer option.
    Ndp,
}

/// Numbers of addresses.
const ADDRESSES: [u32; 4] = [1, 1_000, 10_000, 100_000];
/// Addresses of one machine at most.
const EACH: u32 = 100;
/// Machines at most.
const MACHINES: u32 = 1_000;
/// Proxy neighbors at most: each joins a group, for which the kernel walks through the
/// list of those there are, which takes minutes from here on.
const PROXIES: u32 = 80_000;
/// Different requests, the same number for every size, so that the generator's own cost is
/// the same for all.
const REQUESTS: u32 = 1 << 16;
/// How long a round's requests take about.
const ROUND: Duration = Duration::from_secs(1);
/// Frames of a round at most.
const MOST: u32 = 8_000_000;
/// Requests of a round that macvlan copies to many: a kernel thread does it, with a queue of
/// 1,000.
const QUEUE: u32 = 900;
/// Single requests of a round, at most and as far as time allows.
const SINGLE: u32 = 200;
/// How long single requests go on, of which there are three at least.
const PATIENCE: Duration = Duration::from_millis(1_500);

impl Question {
    const fn scenario(self) -> &'static str {
        match self {
            Question::Arp => "arp",
            Question::Ndp => "ndp",
        }
    }

    /// The ways that are compared, beside ndppd.
    const fn ways(self) -> &'static [Way] {
        use Way::*;
        match self {
            Question::Arp => &[Link, Bridge, Macvlan, Routed, Tc, Xdp],
            Question::Ndp => &[Link, Bridge, Macvlan, Routed, Ndppd, Tc, Xdp],
        }
    }

    /// How many addresses a way has at a size.
    fn addresses(self, way: Way, size: u32) -> u32 {
        match (self, way) {
            (Question::Ndp, Way::Routed) => size.min(PROXIES),
            _ => size,
        }
    }

    fn address(self, number: u32) -> String {
        match self {
            Question::Arp => machine4(number).to_string(),
            Question::Ndp => machine6(number).to_string(),
        }
    }

    /// The request for the address with that number.
    fn request(self, number: u32) -> Result<Vec<u8>> {
        match self {
            Question::Arp => Ok(who_has(machine4(number))),
            Question::Ndp => {
                let mut frame = Vec::new();
                let target = machine6(number).octets();
                let [.., a, b, c] = target;
                let group = [0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff, a, b, c];
                let body = [&target[..], &[1, 1], &lan_mac()].concat();
                PacketBuilder::ethernet2(lan_mac(), [0x33, 0x33, 0xff, a, b, c])
                    .ipv6(STATION6.octets(), group, 255)
                    .icmpv6_raw(135, 0, [0; 4])
                    .write(&mut frame, &body)?;
                Ok(frame)
            }
        }
    }

    /// Whether a frame is the answer for the address with that number.
    fn is_answer(self, frame: &[u8], number: u32) -> bool {
        match self {
            Question::Arp => {
                frame.get(12..14) == Some(&[8, 6])
                    && frame.get(20..22) == Some(&[0, 2])
                    && frame.get(28..32) == Some(&machine4(number).octets())
            }
            Question::Ndp => {
                frame.get(12..14) == Some(&[0x86, 0xdd])
                    && frame.get(54) == Some(&136)
                    && frame.get(62..78) == Some(&machine6(number).octets())
            }
        }
    }
}

/// The station's broadcast request for an address.
pub(super) fn who_has(target: Ipv4Addr) -> Vec<u8> {
    let header = Ethernet2Header {
        source: lan_mac(),
        destination: [0xff; 6],
        ether_type: EtherType::ARP,
    };
    let arp = ArpEthIpv4Packet {
        operation: ArpOperation::REQUEST,
        sender_mac: lan_mac(),
        sender_ipv4: STATION4.octets(),
        target_mac: [0; 6],
        target_ipv4: target.octets(),
    };
    let mut frame = Vec::from(header.to_bytes());
    frame.extend(arp.to_bytes());
    frame.resize(60, 0);
    frame
}

/// The address of `lan0`.
const STATION4: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);
/// As above.
const STATION6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1);

/// Numbers below `count` in no order: Knuth's multiplicative hash.
fn shuffled(count: u32) -> impl Iterator<Item = u32> {
    (0_u32..).map(move |at| {
        let hash = at.wrapping_mul(2_654_435_761);
        ((u64::from(hash) * u64::from(count)) >> 32) as u32
    })
}

/// A world that answers.
struct Peer {
    // It ends before the world.
    ndppd: Option<Ndppd>,
    world: World,
    addresses: u32,
    receiver: Receiver,
    load: Load,
    xdp_receiver: Option<XdpReceiver>,
}

/// What is measured with a peer.
struct Path {
    way: Way,
    name: &'static str,
    /// Answers are counted by XDP instead of tc.
    by_xdp: bool,
    /// Requests of a round.
    frames: u32,
    rates: Vec<f64>,
    latencies: Vec<f64>,
}

/// Asks, on one core.
pub fn run(run: &Run, question: Question) -> Result<Vec<Figure>> {
    on_one_core(|| {
        let mut sizes: Vec<_> = ADDRESSES
            .iter()
            .map(|size| *size.min(&run.machines.saturating_mul(EACH)))
            .collect();
        sizes.dedup();
        let mut figures = Vec::new();
        for size in sizes {
            figures.extend(of_size(run, question, size)?);
        }
        Ok(figures)
    })
}

fn of_size(run: &Run, question: Question, size: u32) -> Result<Vec<Figure>> {
    let scenario = question.scenario();
    let machines = size.min(run.machines).min(MACHINES);
    let mut peers = Vec::new();
    for &way in question.ways() {
        let own_stack = matches!(way, Way::Bridge | Way::Macvlan);
        if own_stack && size > machines {
            continue;
        }
        run.step(&format!("{scenario}: {size} addresses, {}", way.name()))?;
        let peer = Peer::new(run, question, way, machines, size)?;
        peers.push((peer, paths(way)));
    }
    for (peer, paths) in &mut peers {
        for path in paths {
            run.step(&format!(
                "{scenario}: {size} addresses, {}, frames of a round",
                path.name
            ))?;
            peer.prepare(path)?;
            path.frames = match path.way {
                Way::Macvlan if size > 1 => QUEUE,
                _ => frames_taking(ROUND, MOST, |count| peer.fire(count))?,
            };
        }
    }
    for round in 1..=run.rounds {
        for (peer, paths) in &mut peers {
            for path in paths {
                run.step(&format!(
                    "{scenario}: {size} addresses, round {round} of {}, {}",
                    run.rounds, path.name
                ))?;
                peer.prepare(path)?;
                path.rates.push(peer.rate(path.frames)?);
                if path.way != Way::Link && (path.by_xdp || path.way != Way::Xdp) {
                    path.latencies
                        .push(peer.latency(question, settle(path.way))?);
                }
            }
        }
    }
    let mut figures = Vec::new();
    for (peer, paths) in peers {
        let size = peer.addresses;
        for path in paths {
            let name = path.name;
            figures.push(Figure::new(
                scenario,
                "answers per CPU-second",
                Unit::PerSecond,
                name,
                size,
                path.rates,
            ));
            if !path.latencies.is_empty() {
                figures.push(Figure::new(
                    scenario,
                    "median latency",
                    Unit::Microseconds,
                    name,
                    size,
                    path.latencies,
                ));
            }
        }
    }
    Ok(figures)
}

/// How long requests may wait that nobody needs an answer to any more, in whose queue the
/// next one would be.
const fn settle(way: Way) -> Duration {
    match way {
        Way::RoutedDefault | Way::Ndppd => Duration::from_secs(1),
        _ => Duration::from_millis(20),
    }
}

/// The ways that a peer of this way is measured in.
///
/// The kernel keeps the proxy neighbors of all namespaces in one table, so that a second
/// world with as many would be in the way of the first: one world has both delays.
fn paths(way: Way) -> Vec<Path> {
    let path = |way: Way| Path {
        way,
        name: way.name(),
        by_xdp: false,
        frames: 0,
        rates: Vec::new(),
        latencies: Vec::new(),
    };
    match way {
        Way::Routed => vec![path(Way::Routed), path(Way::RoutedDefault)],
        Way::Xdp => vec![
            Path {
                by_xdp: true,
                ..path(way)
            },
            Path {
                name: "xdp, tc receiver",
                ..path(way)
            },
        ],
        _ => vec![path(way)],
    }
}

impl Peer {
    fn new(run: &Run, question: Question, way: Way, machines: u32, size: u32) -> Result<Self> {
        let guests = match way {
            Way::Bridge | Way::Macvlan => Guests::Apart,
            _ => Guests::Together,
        };
        let machines = if way == Way::Link { 0 } else { machines };
        let mut world = World::unattached(way, machines, guests)?;
        let addresses = question.addresses(way, size);
        match way {
            Way::Bridge | Way::Macvlan => {
                // Nobody answers what the machines ask about the station.
                for (ns, end) in world.guests.iter().zip(world.ends()) {
                    batch(ns, "ip", knows_station(&end))?;
                }
            }
            Way::Routed | Way::Ndppd => more_addresses(run, question, &world, addresses)?,
            Way::Tc | Way::Xdp => {
                declare(question, &world, addresses)?;
                world.attach()?;
            }
            _ => {}
        }
        let ndppd = match way {
            Way::Ndppd => Some(Ndppd::start(&world)?),
            _ => None,
        };
        let receiver = Receiver::new()?;
        let (ns, end) = match way {
            Way::Link => (&world.host, UPLINK),
            _ => (&world.net, LAN),
        };
        receiver.join(ns, &[end.to_owned()], &world.pin("receiver"))?;
        let out = world.net.ifindex(LAN)?;
        let xdp_receiver = (way == Way::Xdp)
            .then(|| XdpReceiver::new(&world.net, LAN, &world.pin("")))
            .transpose()?;
        let frames: Vec<_> = shuffled(addresses)
            .take(REQUESTS as usize)
            .map(|number| Ok((question.request(number)?, out)))
            .collect::<Result<_>>()?;
        Ok(Peer {
            load: Load::new(&frames)?.batches_of(match way {
                // The copies of all go through the core's backlog, which takes 1,000.
                Way::Bridge => (1_000 / machines).clamp(1, 64),
                _ => 0,
            }),
            world,
            addresses,
            receiver,
            xdp_receiver,
            ndppd,
        })
    }

    /// Makes the world what this path is.
    fn prepare(&self, path: &Path) -> Result<()> {
        if let Some(receiver) = &self.xdp_receiver {
            receiver.count_here(&self.world.net, path.by_xdp)?;
        }
        let delay = match path.way {
            Way::Routed => "0",
            Way::RoutedDefault => "80",
            _ => return Ok(()),
        };
        for family in ["ipv4", "ipv6"] {
            let key = format!("net/{family}/neigh/{UPLINK}/proxy_delay");
            self.world.host.set_sysctl(&key, delay)?;
        }
        Ok(())
    }

    /// Answers so far, whoever counted them.
    fn answers(&self) -> Result<u64> {
        let by_xdp = self.xdp_receiver.as_ref().map(XdpReceiver::count);
        Ok(self.receiver.count()? + by_xdp.transpose()?.unwrap_or(0))
    }

    /// Sends requests; returns the CPU time of all.
    fn fire(&self, count: u32) -> Result<Duration> {
        let mut daemon: Vec<_> = self.ndppd.iter().map(Ndppd::id).collect();
        if self.world.way == Way::Macvlan {
            daemon = unbound_workers()?;
        }
        let (way, receiver, mut last) = (self.world.way, &self.receiver, 0);
        self.load.fire_until(&self.world.net, count, &daemon, || {
            let now = receiver.count()?;
            Ok(way != Way::Macvlan || std::mem::replace(&mut last, now) == now)
        })
    }

    /// Answers in a second of the core.
    fn rate(&self, frames: u32) -> Result<f64> {
        let before = self.answers()?;
        let time = self.fire(frames)?;
        let answers = self.answers()? - before;
        ensure!(answers > 0, "nobody answers by {}", self.world.way.name());
        Ok(answers as f64 / time.as_secs_f64())
    }

    /// Microseconds from a request to its answer, half of the time.
    fn latency(&self, question: Question, settle: Duration) -> Result<f64> {
        if let Some(receiver) = &self.xdp_receiver {
            receiver.count_here(&self.world.net, false)?;
        }
        std::thread::sleep(settle);
        let station = self.world.net.enter(|| Station::new(LAN))?;
        let mut latencies = Vec::new();
        let begin = Instant::now();
        for number in shuffled(self.addresses).take(SINGLE as usize) {
            if begin.elapsed() > PATIENCE && latencies.len() >= 3 {
                break;
            }
            let request = question.request(number)?;
            let time = station.ask(&request, |frame| question.is_answer(frame, number))?;
            // A lost one counts as what a station waits at least.
            latencies.push(time.unwrap_or(Station::LIMIT).as_secs_f64() * 1e6);
        }
        Ok(median(&latencies))
    }
}

/// Makes the station a permanent neighbor.
fn knows_station(end: &str) -> [String; 2] {
    let mac = lan_mac().map(|byte| format!("{byte:02x}")).join(":");
    [STATION4.to_string(), STATION6.to_string()]
        .map(|station| format!("neigh replace {station} lladdr {mac} dev {end} nud permanent"))
}

/// Gives a routed world's machines more addresses: a route each, and a proxy neighbor each
/// where the kernel answers solicitations.
fn more_addresses(run: &Run, question: Question, world: &World, addresses: u32) -> Result<()> {
    const AT_ONCE: u32 = 10_000;
    let mut next = world.machines;
    while next < addresses {
        let numbers = next..addresses.min(next + AT_ONCE);
        run.step(&format!("{} addresses of {addresses} routed", numbers.end))?;
        let lines = numbers.clone().flat_map(|number| {
            let address = question.address(number);
            let route = format!("route add {address} dev p{}", number % world.machines);
            let proxy = (question == Question::Ndp && world.way == Way::Routed)
                .then(|| format!("neigh add proxy {address} dev {UPLINK}"));
            [route].into_iter().chain(proxy)
        });
        batch(&world.host, "ip", lines)?;
        next = numbers.end;
    }
    Ok(())
}

/// Declares the machines with all of their addresses.
fn declare(question: Question, world: &World, addresses: u32) -> Result<()> {
    for machine in 0..world.machines {
        let mut text = format!("interface = \"p{machine}\"\naddresses = [\n");
        for number in (machine..addresses).step_by(world.machines as usize) {
            writeln!(text, "  \"{}\",", question.address(number))?;
        }
        text.push_str("]\n");
        let path = world.file(&format!("etc/machines/m{machine}.toml"));
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}
