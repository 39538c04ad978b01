//! From a link's coming up to its machine's first answer: one machine alone, one more
//! beside many, and many at once.
//!
//! Machines are declared and absent. Then a veth is made, and the machine's end of it set
//! up; from the moment at which the kernel has done that, the machine is sent pings from
//! the network until one is answered. Bridge and routes are set up by who makes the link,
//! in the next requests, which is the least that any tool could take.

use std::{
    fs,
    net::Ipv4Addr,
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
    sync::{
        OnceLock,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use etherparse::PacketBuilder;
use netspawn_ebpf::wire::{Mac, ether_type};
use netspawn_tests::{LAN, Ns, wait_until};
use netspawn_user::net::{
    netlink::{Netlink, Request},
    read::ifinfomsg,
};

use crate::{
    figure::{Figure, Unit, median},
    lab::{Foremost, Guests, Way, World, declare, lan_mac, machine_mac, machine4},
    run::Run,
};

const NAME: &str = "start";
const WAYS: [Way; 3] = [Way::Bridge, Way::Routed, Way::Tc];
/// Machines, all started at once if more than one.
const SIZES: [u32; 2] = [1, 1000];
/// Starts of one machine in a round.
const SINGLES: u32 = 20;
/// Between two pings of a machine, at least.
const INTERVAL: Duration = Duration::from_micros(250);
/// Pings in that time, at most: what is sent must not be what is measured.
const BURST: usize = 8;
/// All machines have answered by then.
const LIMIT: Duration = Duration::from_secs(30);
/// What a host does after the end of a link is over by then.
const SETTLE: Duration = Duration::from_millis(50);
/// The group of the links made here, by which they are deleted together.
const GROUP: u32 = 7;

/// Milliseconds from links' coming up to answers, by way and number of machines.
///
/// # Errors
/// When a world cannot be made, or a machine does not answer.
pub fn run(run: &Run) -> Result<Vec<Figure>> {
    let _first = Foremost::new()?;
    let mut figures = Vec::new();
    for size in run.sizes(&SIZES) {
        let mut subjects = Vec::new();
        for way in WAYS {
            run.step(&format!("start: {size} machines, {}", way.name()))?;
            subjects.push(Subject::new(way, size)?);
        }
        for round in 1..=run.rounds {
            for subject in &mut subjects {
                let way = subject.world.way.name();
                run.step(&format!("start: round {round}, {size} machines, {way}"))?;
                subject
                    .round()
                    .with_context(|| format!("{way}, {size} machines"))?;
            }
        }
        figures.extend(subjects.into_iter().flat_map(|subject| subject.figures));
    }
    Ok(figures)
}

/// A world without machines, and what has been found in it.
struct Subject {
    world: World,
    size: u32,
    bridge: Option<u32>,
    figures: Vec<Figure>,
}

impl Subject {
    fn new(way: Way, size: u32) -> Result<Self> {
        let mut world = World::unattached(way, 0, Guests::Together)?;
        if way.is_ours() {
            let folder = world.file("etc/machines");
            for number in 0..size {
                declare(&folder, number)?;
            }
            world.attach()?;
        }
        let bridge = match way {
            Way::Bridge => Some(world.host.ifindex("br0")?),
            _ => None,
        };
        Ok(Subject {
            world,
            size,
            bridge,
            figures: Vec::new(),
        })
    }

    fn round(&mut self) -> Result<()> {
        if self.size == 1 {
            let times = self.singles(0)?;
            self.record_times("link up to first answer", &times);
            return Ok(());
        }
        let before = self.agent_time()?;
        let starts = self.start(0..self.size)?;
        let times: Vec<_> = starts.machines.iter().map(Machine::wait).collect();
        self.record_times("link up to first answer", &times);
        let last = starts.machines.iter().map(|machine| machine.answer).max();
        let last = last.context("no machines")?;
        self.record("all answered", milliseconds(last - starts.begin));
        let last = starts.machines.iter().map(|machine| machine.up).max();
        let last = last.context("no machines")?;
        self.record("all links made", milliseconds(last - starts.begin));
        if let (Some(before), Some(after)) = (before, self.agent_time()?) {
            let used = milliseconds(after.saturating_sub(before));
            self.record("agent's CPU time until all answered", used);
        }
        self.world
            .host
            .run(&format!("ip link del p{}", self.size - 1))?;
        let times = self.singles(self.size - 1)?;
        self.record_times("one more link up to first answer", &times);
        self.clear()
    }

    /// Starts one machine alone, again and again.
    fn singles(&self, number: u32) -> Result<Vec<f64>> {
        let mut times = Vec::new();
        for _ in 0..SINGLES {
            thread::sleep(SETTLE);
            let starts = self.start(number..number + 1)?;
            times.extend(starts.machines.iter().map(Machine::wait));
            self.world.host.run(&format!("ip link del p{number}"))?;
        }
        Ok(times)
    }

    /// Deletes all links, and waits until an agent has seen to it.
    fn clear(&self) -> Result<()> {
        self.world.host.run(&format!("ip link del group {GROUP}"))?;
        if self.world.way.is_ours() {
            let gone = wait_until(LIMIT, || {
                let status = self.world.xdp(["--json", "status"]).and_then(|c| c.text());
                status.is_ok_and(|text| {
                    serde_json::from_str::<serde_json::Value>(&text)
                        .is_ok_and(|status| status["machines"]["up"] == 0)
                })
            });
            ensure!(gone, "machines are up without links");
        }
        thread::sleep(SETTLE);
        Ok(())
    }

    /// Makes the links of these machines one after the other, and pings each from then
    /// on until it answers.
    fn start(&self, numbers: std::ops::Range<u32>) -> Result<Starts> {
        let pings: Vec<_> = numbers
            .clone()
            .map(|number| self.ping(number))
            .collect::<Result<_>>()?;
        let count = pings.len();
        let ups: Vec<OnceLock<Instant>> = (0..count).map(|_| OnceLock::new()).collect();
        let answers: Vec<OnceLock<Instant>> = (0..count).map(|_| OnceLock::new()).collect();
        let inside = Packets::open(&self.world.guests[0])?;
        let outside = Packets::open(&self.world.net)?;
        let lan = self.world.net.ifindex(LAN)?;
        let over = AtomicBool::new(false);
        let mut maker = Maker {
            way: self.world.way,
            bridge: self.bridge,
            host: self.world.host.enter(|| Ok(Netlink::open()?))?,
            machines: self.world.guests[0].enter(|| Ok(Netlink::open()?))?,
            space: fs::File::open(self.world.guests[0].path())?,
        };
        let begin = thread::scope(|scope| {
            let respond = scope.spawn(|| inside.respond(&over));
            let listen = scope.spawn(|| {
                outside.listen(&over, |source| {
                    let index = source
                        .to_bits()
                        .wrapping_sub(machine4(numbers.start).to_bits());
                    if let Some(answer) = answers.get(index as usize) {
                        let _ = answer.set(Instant::now());
                    }
                })
            });
            let ask = scope.spawn(|| outside.ask(&over, lan, &pings, &ups, &answers));
            let begin = Instant::now();
            let made: Result<()> = numbers.clone().zip(&ups).try_for_each(|(number, up)| {
                let at = maker
                    .make(number)
                    .with_context(|| format!("cannot make p{number}"))?;
                let _ = up.set(at);
                Ok(())
            });
            if made.is_ok() {
                wait_until(LIMIT, || {
                    answers.iter().all(|answer| answer.get().is_some())
                });
            }
            over.store(true, Ordering::Relaxed);
            for thread in [respond, listen, ask] {
                thread.join().expect("pinging does not panic")?;
            }
            made.map(|()| begin)
        })?;
        let mut machines = Vec::new();
        for (up, answer) in ups.iter().zip(&answers) {
            if let (Some(up), Some(answer)) = (up.get(), answer.get()) {
                machines.push(Machine {
                    up: *up,
                    answer: *answer,
                });
            }
        }
        let silent = count - machines.len();
        if silent > 0 {
            bail!("{silent} of {count} machines did not answer within {LIMIT:?}");
        }
        Ok(Starts { begin, machines })
    }

    /// An echo request from the network to a machine.
    fn ping(&self, number: u32) -> Result<Vec<u8>> {
        let mut frame = Vec::new();
        PacketBuilder::ethernet2(lan_mac(), self.world.mac_from_network(number))
            .ipv4([10, 0, 0, 1], machine4(number).octets(), 64)
            .icmpv4_echo_request(1, 1)
            .write(&mut frame, &[0; 8])?;
        Ok(frame)
    }

    /// CPU time that the agent has used, if there is one.
    fn agent_time(&self) -> Result<Option<Duration>> {
        let Some(id) = self.world.agent() else {
            return Ok(None);
        };
        let mut time = Duration::ZERO;
        for task in fs::read_dir(format!("/proc/{id}/task"))? {
            let text = fs::read_to_string(task?.path().join("schedstat"))?;
            let run = text.split_whitespace().next().unwrap_or_default();
            time += Duration::from_nanos(run.parse().context("no time in schedstat")?);
        }
        Ok(Some(time))
    }

    fn record_times(&mut self, metric: &str, times: &[f64]) {
        self.record(metric, median(times));
        let mut times = times.to_vec();
        times.sort_by(f64::total_cmp);
        let rank = (times.len() * 99).div_ceil(100);
        if let Some(value) = times.get(rank.saturating_sub(1)) {
            self.record(&format!("{metric}, p99"), *value);
        }
    }

    /// Adds a round's value.
    fn record(&mut self, metric: &str, value: f64) {
        if let Some(figure) = self.figures.iter_mut().find(|f| f.metric == metric) {
            figure.rounds.push(value);
            return;
        }
        let (way, size) = (self.world.way.name(), self.size);
        let unit = Unit::Milliseconds;
        let figure = Figure::new(NAME, metric, unit, way, size, vec![value]);
        self.figures.push(figure);
    }
}

/// Who makes links.
struct Maker {
    way: Way,
    bridge: Option<u32>,
    host: Netlink,
    machines: Netlink,
    /// The machines' namespace.
    space: fs::File,
}

impl Maker {
    /// Makes a machine's link, sets the machine's end up last, as machines do, and what
    /// the way needs; when the link was up.
    fn make(&mut self, number: u32) -> Result<Instant> {
        // Known beforehand, indices need not be asked for.
        static NEXT: AtomicU32 = AtomicU32::new(100_000);
        let ifindex = NEXT.fetch_add(1, Ordering::Relaxed);
        let mut request = veth(number, ifindex, self.space.as_raw_fd());
        if let Some(bridge) = self.bridge {
            request = request.u32(libc::IFLA_MASTER, bridge);
        }
        self.host.apply(request)?;
        let set = ifinfomsg(ifindex, UP, UP);
        self.machines
            .apply(Request::new(libc::RTM_NEWLINK, 0, &set))?;
        let up = Instant::now();
        let mac = machine_mac(number);
        match self.way {
            Way::Bridge => self.host.apply(station(ifindex, mac))?,
            Way::Routed => {
                self.host.apply(route(ifindex, machine4(number)))?;
                self.host.apply(neighbor(ifindex, machine4(number), mac))?;
            }
            _ => {}
        }
        Ok(up)
    }
}

/// What a start of machines came to.
struct Starts {
    begin: Instant,
    machines: Vec<Machine>,
}

/// When a machine's link was up, and when its first answer was seen.
struct Machine {
    up: Instant,
    answer: Instant,
}

impl Machine {
    /// Milliseconds from one to the other.
    fn wait(&self) -> f64 {
        milliseconds(self.answer.saturating_duration_since(self.up))
    }
}

fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

const UP: u32 = libc::IFF_UP as u32;

/// Asks for a veth that is up, with its other end in a namespace, with the same index
/// there, and down.
fn veth(number: u32, ifindex: u32, guests: i32) -> Request {
    /// `VETH_INFO_PEER`.
    const PEER: u16 = 1;
    let mut peer = ifinfomsg(ifindex, 0, 0).to_vec();
    attribute(
        &mut peer,
        libc::IFLA_IFNAME,
        format!("g{number}\0").as_bytes(),
    );
    attribute(&mut peer, libc::IFLA_ADDRESS, &machine_mac(number));
    attribute(&mut peer, libc::IFLA_NET_NS_FD, &guests.to_ne_bytes());
    let flags = libc::NLM_F_CREATE | libc::NLM_F_EXCL;
    Request::new(libc::RTM_NEWLINK, flags, &ifinfomsg(ifindex, UP, UP))
        .text(libc::IFLA_IFNAME, &format!("p{number}"))
        .u32(libc::IFLA_GROUP, GROUP)
        .nest(libc::IFLA_LINKINFO, |info| {
            info.text(libc::IFLA_INFO_KIND, "veth")
                .nest(libc::IFLA_INFO_DATA, |data| data.attr(PEER, &peer))
        })
}

fn attribute(bytes: &mut Vec<u8>, kind: u16, value: &[u8]) {
    let length = 4 + value.len();
    bytes.extend((length as u16).to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
}

/// Asks for a route to one address.
fn route(ifindex: u32, address: Ipv4Addr) -> Request {
    let mut header = [0; 12];
    header[0] = libc::AF_INET as u8;
    header[1] = 32;
    header[4] = libc::RT_TABLE_MAIN;
    header[5] = libc::RTPROT_BOOT;
    header[6] = libc::RT_SCOPE_LINK;
    header[7] = libc::RTN_UNICAST;
    let flags = libc::NLM_F_CREATE | libc::NLM_F_REPLACE;
    Request::new(libc::RTM_NEWROUTE, flags, &header)
        .attr(libc::RTA_DST, &address.octets())
        .u32(libc::RTA_OIF, ifindex)
}

/// Asks for a permanent neighbor.
fn neighbor(ifindex: u32, address: Ipv4Addr, mac: Mac) -> Request {
    neighbor_request(libc::AF_INET, ifindex, libc::NUD_PERMANENT, 0)
        .attr(libc::NDA_DST, &address.octets())
        .attr(libc::NDA_LLADDR, &mac)
}

/// Asks for a static entry in the forwarding database of a port's bridge.
fn station(ifindex: u32, mac: Mac) -> Request {
    let state = libc::NUD_NOARP | libc::NUD_REACHABLE;
    neighbor_request(libc::AF_BRIDGE, ifindex, state, libc::NTF_MASTER).attr(libc::NDA_LLADDR, &mac)
}

fn neighbor_request(family: i32, ifindex: u32, state: u16, flags: u8) -> Request {
    let mut header = [0; 12];
    header[0] = family as u8;
    header[4..8].copy_from_slice(&ifindex.to_ne_bytes());
    header[8..10].copy_from_slice(&state.to_ne_bytes());
    header[10] = flags;
    let create = libc::NLM_F_CREATE | libc::NLM_F_REPLACE;
    Request::new(libc::RTM_NEWNEIGH, create, &header)
}

/// IPv4 packets of all interfaces of a namespace.
struct Packets(OwnedFd);

/// Where the parts of an IPv4 packet without options are in a frame.
mod offset {
    pub const SOURCE: usize = 26;
    pub const DESTINATION: usize = 30;
    pub const PROTOCOL: usize = 23;
    pub const ICMP_TYPE: usize = 34;
    pub const ICMP_CHECKSUM: usize = 36;
}

const ICMP: u8 = 1;
const ECHO_REQUEST: u8 = 8;
const ECHO_REPLY: u8 = 0;

impl Packets {
    fn open(ns: &Ns) -> Result<Self> {
        ns.enter(|| {
            let protocol = libc::c_int::from(ether_type::IPV4.to_be());
            // SAFETY: the call takes no pointers.
            let fd = unsafe {
                libc::socket(
                    libc::AF_PACKET,
                    libc::SOCK_RAW | libc::SOCK_CLOEXEC,
                    protocol,
                )
            };
            if fd < 0 {
                return Err(std::io::Error::last_os_error()).context("no packet socket");
            }
            // SAFETY: a new descriptor that nobody else owns.
            let socket = unsafe { OwnedFd::from_raw_fd(fd) };
            // Whoever waits looks up now and then whether it is over.
            let patience = libc::timeval {
                tv_sec: 0,
                tv_usec: 20_000,
            };
            // SAFETY: the value is a timeval of the length said.
            let set = unsafe {
                libc::setsockopt(
                    socket.as_raw_fd(),
                    libc::SOL_SOCKET,
                    libc::SO_RCVTIMEO,
                    (&raw const patience).cast(),
                    size_of_val(&patience).try_into()?,
                )
            };
            ensure!(set == 0, "cannot limit the time to wait for packets");
            Ok(Packets(socket))
        })
    }

    /// The next packet for one of the interfaces itself, and which; none for a while.
    fn next<'a>(&self, buffer: &'a mut [u8]) -> Option<(&'a mut [u8], i32)> {
        // SAFETY: all-zero is a valid sockaddr_ll.
        let mut from: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        let mut size = size_of_val(&from) as libc::socklen_t;
        // SAFETY: buffer and address are as long as said.
        let length = unsafe {
            libc::recvfrom(
                self.0.as_raw_fd(),
                buffer.as_mut_ptr().cast(),
                buffer.len(),
                0,
                (&raw mut from).cast(),
                &raw mut size,
            )
        };
        let frame = buffer.get_mut(..usize::try_from(length).ok()?)?;
        (from.sll_pkttype == libc::PACKET_HOST).then_some((frame, from.sll_ifindex))
    }

    fn send(&self, frame: &[u8], ifindex: i32) {
        // SAFETY: all-zero is a valid sockaddr_ll.
        let mut to: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        to.sll_family = libc::AF_PACKET as u16;
        to.sll_ifindex = ifindex;
        // SAFETY: frame and address are as long as said. What is lost is sent again.
        unsafe {
            libc::sendto(
                self.0.as_raw_fd(),
                frame.as_ptr().cast(),
                frame.len(),
                0,
                (&raw const to).cast(),
                size_of_val(&to) as libc::socklen_t,
            );
        }
    }

    /// Answers every ping where it came from.
    fn respond(&self, over: &AtomicBool) -> Result<()> {
        let mut buffer = [0; 2048];
        while !over.load(Ordering::Relaxed) {
            let Some((frame, ifindex)) = self.next(&mut buffer) else {
                continue;
            };
            if icmp_type(frame) != Some(ECHO_REQUEST) {
                continue;
            }
            let (to, from) = frame.split_at_mut(6);
            to.swap_with_slice(&mut from[..6]);
            let (from, to) = frame.split_at_mut(offset::DESTINATION);
            from[offset::SOURCE..].swap_with_slice(&mut to[..4]);
            frame[offset::ICMP_TYPE] = ECHO_REPLY;
            // RFC 1624: the sum is less by what the type was.
            let sum = &mut frame[offset::ICMP_CHECKSUM..offset::ICMP_CHECKSUM + 2];
            let old = u32::from(u16::from_be_bytes([sum[0], sum[1]]));
            let new = old + (u32::from(ECHO_REQUEST) << 8);
            let new = ((new & 0xffff) + (new >> 16)) as u16;
            sum.copy_from_slice(&new.to_be_bytes());
            self.send(frame, ifindex);
        }
        Ok(())
    }

    /// Tells of every answer to a ping who it is from.
    fn listen(&self, over: &AtomicBool, mut answered: impl FnMut(Ipv4Addr)) -> Result<()> {
        let mut buffer = [0; 2048];
        while !over.load(Ordering::Relaxed) {
            let Some((frame, _)) = self.next(&mut buffer) else {
                continue;
            };
            if icmp_type(frame) == Some(ECHO_REPLY) {
                let source: [u8; 4] = frame[offset::SOURCE..offset::DESTINATION].try_into()?;
                answered(source.into());
            }
        }
        Ok(())
    }

    /// Sends pings to the machines whose links are up and which have not answered.
    fn ask(
        &self,
        over: &AtomicBool,
        lan: u32,
        pings: &[Vec<u8>],
        ups: &[OnceLock<Instant>],
        answers: &[OnceLock<Instant>],
    ) -> Result<()> {
        let lan = lan.try_into()?;
        while !over.load(Ordering::Relaxed) {
            let waiting: Vec<_> = (0..pings.len())
                .filter(|index| ups[*index].get().is_some() && answers[*index].get().is_none())
                .collect();
            for burst in waiting.chunks(BURST) {
                for index in burst {
                    self.send(&pings[*index], lan);
                }
                thread::sleep(INTERVAL);
            }
            if waiting.is_empty() {
                thread::sleep(INTERVAL / 4);
            }
        }
        Ok(())
    }
}

/// The type of an ICMP message in an IPv4 packet without options.
fn icmp_type(frame: &[u8]) -> Option<u8> {
    (frame.get(offset::PROTOCOL) == Some(&ICMP))
        .then(|| frame.get(offset::ICMP_TYPE).copied())
        .flatten()
}
