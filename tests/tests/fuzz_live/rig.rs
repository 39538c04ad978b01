//! The host that is attacked, in the world of the rows: who sends, who listens.

use std::{
    io,
    net::{Ipv4Addr, Ipv6Addr, UdpSocket},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use netspawn_ebpf::{
    abi::Owner,
    wire::{Ipv4, Ipv6, Mac},
};
use netspawn_tests::{
    Agent, HOST0, LAN, Lab, Mode, Ns, Spec, TapWire, UPLINK, Undone, accept_xdp,
    vnet::{PacketPort, Received, Vnet},
};

use crate::{
    mend::mend,
    packets::PORTS,
    rows::{
        At,
        world::{self, ACME, BRIDGE, DB, DOWN, SMALL, TAGGED, WEB},
    },
};

/// Who sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// The machine `WEB`.
    Port,
    /// A station on the network.
    Network,
}

/// What a link is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Link {
    Veth,
    Tap,
}

/// One of the combinations.
#[derive(Clone, Copy, Debug)]
pub struct Setup {
    pub origin: Origin,
    /// Of the sender.
    pub link: Link,
    /// Of the uplink; the same where the network sends.
    pub uplink: Link,
    pub mode: Mode,
}

impl Setup {
    pub fn at(&self) -> At {
        match self.origin {
            Origin::Port => At::Port(WEB),
            Origin::Network => At::Uplink,
        }
    }
}

/// Where a frame was received.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    /// The far end of the uplink.
    Network,
    /// A machine's own interface.
    Machine(Owner),
    /// The uplink, coming in: what is for the host's stack.
    Uplink,
    /// The sender's port, behind the guard: what is for the host's stack.
    Port,
}

/// An interface to send on and to listen at.
pub enum End {
    Packet(PacketPort),
    Tap(TapWire, Vec<u8>),
}

impl End {
    fn tap(wire: TapWire) -> Self {
        End::Tap(wire, vec![0; 1 << 17])
    }

    pub fn send(&self, vnet: &Vnet, frame: &[u8]) -> io::Result<()> {
        match self {
            End::Packet(port) => port.send(vnet, frame),
            End::Tap(wire, _) => wire.send_vnet(vnet, frame),
        }
    }

    pub fn receive(&mut self, each: impl FnMut(Received<'_>)) -> usize {
        match self {
            End::Packet(port) => port.receive(each),
            End::Tap(wire, buffer) => wire.receive_vnet(buffer, each),
        }
    }
}

/// A place and its interface.
pub struct Watch {
    pub place: Place,
    pub end: End,
}

/// What changes every [`PHASE`] frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Phase {
    /// The uplink's device completes sums and cuts segments itself, so that the kernel
    /// leaves them to it.
    pub offload: bool,
    /// The host forwards, as engines have it.
    pub forward: bool,
    /// The sending tap may speak of tunnels.
    pub tunnels: bool,
}

/// Frames of a phase.
pub const PHASE: u64 = 2048;

impl Phase {
    /// The one that a frame is sent in.
    pub fn of(index: u64) -> Self {
        let number = index / PHASE;
        Phase {
            offload: number & 1 != 0,
            forward: number & 2 != 0,
            tunnels: number & 1 == 0,
        }
    }
}

/// A raised host.
pub struct Rig {
    pub setup: Setup,
    // It goes before the lab.
    _agent: Agent,
    pub lab: Lab,
    pub sender: End,
    pub watches: Vec<Watch>,
    /// Ordinary sockets, and whose they are.
    pub sockets: Vec<(Place, UdpSocket)>,
    /// Whether taps know of tunnels here (Linux 6.17).
    pub tunnels: bool,
    phase: Option<Phase>,
    _observer: Ns,
}

pub fn colons(mac: Mac) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

fn v4(address: Ipv4) -> Ipv4Addr {
    address.into()
}

fn v6(address: Ipv6) -> Ipv6Addr {
    address.into()
}

fn name(id: Owner) -> &'static str {
    match id {
        WEB => "web",
        DB => "db",
        ACME => "acme",
        SMALL => "small",
        TAGGED => "tagged",
        BRIDGE => "bridge",
        _ => "down",
    }
}

/// What a machine has, as `world` says.
fn spec(id: Owner) -> Spec {
    let four = world::prefixes4().into_iter().filter(|one| one.2 == id);
    let six = world::prefixes6().into_iter().filter(|one| one.2 == id);
    let four = four.map(|(address, length, _)| format!("{}/{length}", v4(address)));
    let six = six.map(|(address, length, _)| format!("{}/{length}", v6(address)));
    let spec = four
        .chain(six)
        .fold(Spec::new(name(id)), |spec, prefix| spec.address(&prefix));
    if id == ACME {
        spec.tenant("acme")
    } else {
        spec
    }
}

fn batch(ns: &Ns, lines: &[String]) -> Result<()> {
    let text = lines.join("\n") + "\n";
    ns.cmd("ip")
        .args(["-batch", "-"])
        .input(text.as_str())
        .text()
        .with_context(|| text.clone())
        .map(drop)
}

impl Rig {
    pub fn raise(setup: Setup) -> Result<Self> {
        let web_is_tap = setup.origin == Origin::Port && setup.link == Link::Tap;
        let mut builder = Lab::builder().port_mtu(9000);
        for id in [WEB, DB, ACME, SMALL, TAGGED, BRIDGE, DOWN] {
            let mut spec = spec(id);
            let tap = id == SMALL || id == WEB && web_is_tap;
            if tap || [TAGGED, BRIDGE, DOWN].contains(&id) {
                spec = spec.unplugged();
            }
            builder = builder.machine(spec);
        }
        let lab = builder.build()?;
        let wire = uplink(&lab, &setup)?;
        let mut taps = Vec::new();
        for id in [WEB, SMALL] {
            if id == SMALL || web_is_tap {
                taps.push((id, tap_machine(&lab, id)?));
            }
        }
        for id in [WEB, DB, ACME] {
            if id != WEB || !web_is_tap {
                machine(&lab, id, &setup)?;
            }
        }
        if setup.mode == Mode::Xdp && setup.uplink == Link::Veth {
            accept_xdp(&lab.net, LAN, &lab.bpffs().join("lab_pass"))?;
        }
        let agent = Agent::start(&lab, setup.mode.attach())?;
        let (observer, observed) = observe(&lab, setup.origin, web_is_tap)?;
        let mut rig = Self::listen(setup, lab, agent, observer, wire, taps)?;
        rig.watches.extend(observed);
        rig.sockets = rig.open_sockets()?;
        rig.resolve()?;
        // What interfaces say when they come up.
        for watch in &mut rig.watches {
            watch.end.receive(|_| {});
        }
        Ok(rig)
    }

    fn listen(
        setup: Setup,
        lab: Lab,
        agent: Agent,
        observer: Ns,
        wire: Option<TapWire>,
        taps: Vec<(Owner, TapWire)>,
    ) -> Result<Self> {
        let packet = |ns: &Ns, interface: &str| -> Result<End> {
            Ok(End::Packet(PacketPort::open(ns, interface)?))
        };
        let mut watches = Vec::new();
        let mut sender = None;
        let network = match wire {
            Some(wire) => End::tap(wire),
            None => packet(&lab.net, LAN)?,
        };
        match setup.origin {
            Origin::Port => watches.push(Watch {
                place: Place::Network,
                end: network,
            }),
            Origin::Network => sender = Some(network),
        }
        for (id, wire) in taps {
            match (setup.origin, id) {
                (Origin::Port, WEB) => sender = Some(End::tap(wire)),
                _ => watches.push(Watch {
                    place: Place::Machine(id),
                    end: End::tap(wire),
                }),
            }
        }
        for id in [WEB, DB, ACME] {
            let ns = &lab.machine(name(id)).ns;
            match (setup.origin, id) {
                (Origin::Port, WEB) if sender.is_some() => {}
                (Origin::Port, WEB) => sender = Some(packet(ns, HOST0)?),
                _ => {
                    watches.push(Watch {
                        place: Place::Machine(id),
                        end: packet(ns, HOST0)?,
                    });
                    if setup.link == Link::Tap {
                        // No header describes super-packets of tunnels.
                        watches.push(Watch {
                            place: Place::Machine(id),
                            end: End::Packet(PacketPort::plain(ns, HOST0)?),
                        });
                    }
                }
            }
        }
        if setup.origin == Origin::Port {
            watches.push(Watch {
                place: Place::Uplink,
                end: packet(&lab.host, UPLINK)?,
            });
        }
        let mut sender = sender.context("nobody sends")?;
        let tunnels = match &mut sender {
            End::Packet(_) => false,
            End::Tap(wire, _) => {
                let known = wire.offload(Undone::Tunnels).is_ok();
                wire.offload(Undone::Nothing)?;
                known
            }
        };
        Ok(Rig {
            setup,
            lab,
            sender,
            watches,
            sockets: Vec::new(),
            tunnels,
            phase: None,
            _agent: agent,
            _observer: observer,
        })
    }

    fn open_sockets(&self) -> Result<Vec<(Place, UdpSocket)>> {
        let mut all = Vec::new();
        let mut places = vec![
            (Place::Uplink, &self.lab.host),
            (Place::Machine(DB), &self.lab.machine("db").ns),
        ];
        match self.setup.origin {
            Origin::Port => places.push((Place::Network, &self.lab.net)),
            Origin::Network => places.push((Place::Machine(WEB), &self.lab.machine("web").ns)),
        }
        for (place, ns) in places {
            for port in PORTS {
                let socket = ns.enter(|| Ok(UdpSocket::bind(("::", port))?))?;
                socket.set_nonblocking(true)?;
                all.push((place, socket));
            }
        }
        Ok(all)
    }

    /// Whether a machine is on a veth here, whose stack has neighbors.
    pub fn stacks(&self) -> Vec<(Owner, &Ns)> {
        let plugged = |id: &Owner| self.lab.machine(name(*id)).plugged();
        [WEB, DB, ACME]
            .into_iter()
            .filter(plugged)
            .map(|id| (id, &self.lab.machine(name(id)).ns))
            .collect()
    }

    /// Makes it the phase of a frame.
    pub fn enter(&mut self, phase: Phase) -> Result<()> {
        if self.phase == Some(phase) {
            return Ok(());
        }
        let forward = if phase.forward { "1" } else { "0" };
        for key in ["net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"] {
            self.lab.host.set_sysctl(key, forward)?;
        }
        let undone = if phase.offload {
            Undone::All
        } else {
            Undone::Nothing
        };
        if self.setup.uplink == Link::Veth {
            let word = if phase.offload { "on" } else { "off" };
            self.lab.host.run(&format!(
                "ethtool -K {UPLINK} tx {word} sg {word} tso {word} gso {word}"
            ))?;
        }
        let tunnels = phase.tunnels && self.tunnels;
        if let End::Tap(wire, _) = &mut self.sender {
            wire.offload(if tunnels { Undone::Tunnels } else { undone })?;
        }
        for watch in &mut self.watches {
            if let (Place::Network, End::Tap(wire, _)) = (watch.place, &mut watch.end) {
                wire.offload(undone)?;
            }
        }
        self.phase = Some(phase);
        Ok(())
    }

    /// Lets the host and the sender's neighbors find each other.
    fn resolve(&mut self) -> Result<()> {
        let deadline = Instant::now() + Duration::from_secs(20);
        for number in 0.. {
            if self.ping(number, Duration::from_millis(300))? {
                return Ok(());
            }
            ensure!(Instant::now() < deadline, "no ping is answered before all");
        }
        Ok(())
    }

    /// Sends an honest echo request, and says whether it was answered. The number says
    /// over which family, and to whom.
    pub fn ping(&mut self, number: u32, limit: Duration) -> Result<bool> {
        let at = self.setup.at();
        let v6 = number & 1 != 0;
        let (source4, destination4, source6, destination6) = match (at, number & 2) {
            (At::Port(_), 0) => (world::ip4(WEB), world::FAR4, world::ip6(WEB), world::FAR6),
            (At::Port(_), _) => (world::ip4(WEB), world::HOST4, world::ip6(WEB), world::HOST6),
            _ => (world::FAR4, world::ip4(WEB), world::FAR6, world::ip6(WEB)),
        };
        let (mac, near) = match at {
            At::Port(_) => (world::mac(WEB), world::port_mac(WEB)),
            _ => (world::ROUTER, world::UPLINK),
        };
        let mut frame = [&near[..], &mac].concat();
        let echo = [0, 0, PING[0], PING[1], (number >> 8) as u8, number as u8];
        if v6 {
            frame.extend([0x86, 0xdd, 0x60, 0, 0, 0, 0, 16, 58, 64]);
            frame.extend(source6);
            frame.extend(destination6);
            frame.extend([128, 0]);
        } else {
            frame.extend([8, 0, 0x45, 0, 0, 36, 0, 0, 0x40, 0, 64, 1, 0, 0]);
            frame.extend(source4);
            frame.extend(destination4);
            frame.extend([8, 0]);
        }
        frame.extend(echo);
        frame.extend([0; 8]);
        mend(&mut frame);
        self.sender
            .send(&Vnet::default(), &frame)
            .context("an honest ping is not taken")?;
        let deadline = Instant::now() + limit;
        let mut answered = false;
        loop {
            self.respond();
            self.sender.receive(|received| {
                answered |= is_reply(received.frame, number);
            });
            if answered || Instant::now() >= deadline {
                return Ok(answered);
            }
            std::thread::sleep(Duration::from_micros(200));
        }
    }

    /// Answers pings where the network has no kernel.
    fn respond(&mut self) {
        for watch in &mut self.watches {
            if watch.place == Place::Network && matches!(watch.end, End::Tap(..)) {
                let mut answers = Vec::new();
                watch.end.receive(|received| {
                    if let Some(answer) = reply(received.frame) {
                        answers.push(answer);
                    }
                });
                for answer in answers {
                    // A reply that is lost is asked for again.
                    let _ = watch.end.send(&Vnet::default(), &answer);
                }
            }
        }
    }
}

/// The identifier of honest pings.
const PING: [u8; 2] = [0x7e, 0x57];

/// Where the echo header begins, and whether it is of IPv6.
fn echo(frame: &[u8]) -> Option<(usize, bool)> {
    let (at, v6) = match frame.get(12..14)? {
        [8, 0] if frame.get(14) == Some(&0x45) && frame.get(23) == Some(&1) => (34, false),
        [0x86, 0xdd] if frame.get(20) == Some(&58) => (54, true),
        _ => return None,
    };
    (frame.get(at + 4..at + 6)? == PING).then_some((at, v6))
}

/// Whether a frame is one of the honest pings.
pub fn is_ping(frame: &[u8]) -> bool {
    echo(frame).is_some()
}

fn is_reply(frame: &[u8], number: u32) -> bool {
    echo(frame).is_some_and(|(at, v6)| {
        frame[at] == if v6 { 129 } else { 0 } && frame[at + 7] == number as u8
    })
}

fn reply(frame: &[u8]) -> Option<Vec<u8>> {
    let (at, v6) = echo(frame)?;
    if frame[at] != if v6 { 128 } else { 8 } {
        return None;
    }
    let mut reply = [&frame[6..12], &frame[..6], &frame[12..]].concat();
    let (from, length) = if v6 { (22, 16) } else { (26, 4) };
    let (source, destination) = (from..from + length, from + length..from + 2 * length);
    reply[source.clone()].copy_from_slice(&frame[destination.clone()]);
    reply[destination].copy_from_slice(&frame[source]);
    reply[at] = if v6 { 129 } else { 0 };
    mend(&mut reply);
    Some(reply)
}

/// Makes the uplink what it is to be; the wire's end of a tap.
fn uplink(lab: &Lab, setup: &Setup) -> Result<Option<TapWire>> {
    let (router, own) = (colons(world::ROUTER), colons(world::UPLINK));
    let mut wire = None;
    if setup.uplink == Link::Tap {
        lab.host.run(&format!("ip link del {UPLINK}"))?;
        wire = Some(TapWire::new(&lab.host, UPLINK)?);
        batch(
            &lab.host,
            &[
                format!("link set {UPLINK} address {own} txqueuelen 20000"),
                format!("addr add {}/24 dev {UPLINK}", v4(world::HOST4)),
                format!("addr add {}/64 dev {UPLINK}", v6(world::HOST6)),
                format!("route add default via {}", v4(world::ASKER4)),
                format!("route add default via {}", v6(world::ASKER6)),
            ],
        )?;
    } else {
        lab.host
            .run(&format!("ip link set {UPLINK} address {own}"))?;
        batch(
            &lab.net,
            &[
                format!("link set {LAN} address {router}"),
                format!("addr add {}/32 dev lo", v4(world::FAR4)),
                format!("addr add {}/128 dev lo", v6(world::FAR6)),
                format!("route add 198.18.0.0/24 dev {LAN}"),
            ],
        )?;
    }
    if setup.origin == Origin::Network && setup.uplink == Link::Veth {
        // Its stack would answer what the host sends back to it.
        for interface in [LAN, "lo"] {
            lab.net.run(&format!("ip addr flush dev {interface}"))?;
        }
        lab.net
            .set_sysctl(&format!("net/ipv6/conf/{LAN}/disable_ipv6"), "1")?;
    }
    // Neighbors that never change: a forged answer would show.
    batch(
        &lab.host,
        &[v4(world::ASKER4).to_string(), v6(world::ASKER6).to_string()].map(|address| {
            format!("neigh replace {address} lladdr {router} dev {UPLINK} nud permanent")
        }),
    )?;
    lab.host.settled(UPLINK)?;
    Ok(wire)
}

/// A machine on a tap.
fn tap_machine(lab: &Lab, id: Owner) -> Result<TapWire> {
    let port = format!("vm-{}", name(id));
    let wire = TapWire::new(&lab.host, &port)?;
    let port_mac = colons(world::port_mac(id));
    lab.host.run(&format!(
        "ip link set {port} address {port_mac} txqueuelen 20000"
    ))?;
    let machine = lab.machine(name(id));
    lab.declare(
        name(id),
        &format!(
            "interface = {port:?}\nmac = {:?}\n{}",
            colons(world::mac(id)),
            machine.declaration()
        ),
    )?;
    lab.host.settled(&port)?;
    Ok(wire)
}

/// A machine on a veth, with the addresses of the world; only the honest pings' station
/// gets an answer of those that merely listen.
fn machine(lab: &Lab, id: Owner, setup: &Setup) -> Result<()> {
    let machine = lab.machine(name(id));
    let port = machine.port();
    lab.host.run(&format!(
        "ip link set {port} address {}",
        colons(world::port_mac(id))
    ))?;
    let mut lines = vec![format!(
        "link set {HOST0} address {}",
        colons(world::mac(id))
    )];
    let sends = id == WEB && setup.origin == Origin::Port;
    if sends {
        lines.push(format!("link set {HOST0} mtu 65535"));
    } else {
        for (far, gateway, flags) in [
            (
                v4(world::FAR4).to_string() + "/32",
                "169.254.1.1",
                " onlink",
            ),
            (v6(world::FAR6).to_string() + "/128", "fe80::1", ""),
        ] {
            lines.push(format!("route add {far} via {gateway} dev {HOST0}{flags}"));
        }
        lines.push("route replace blackhole default".to_owned());
        lines.push("-6 route replace blackhole default metric 1".to_owned());
    }
    let (families, others): (Vec<_>, Vec<_>) =
        lines.into_iter().partition(|line| line.starts_with("-6 "));
    batch(&machine.ns, &others)?;
    for line in families {
        machine.ns.run(&format!("ip {line}"))?;
    }
    if setup.mode == Mode::Xdp {
        machine.ns.run(&format!("ethtool -K {HOST0} gro on"))?;
    }
    machine.ns.settled(HOST0)
}

/// Has the kernel copy what the guard lets through to the host's stack on the sender's
/// port (netfilter's ingress comes after tc's) to an interface of its own.
fn observe(lab: &Lab, origin: Origin, web_is_tap: bool) -> Result<(Ns, Option<Watch>)> {
    let observer = Ns::new("observer")?;
    if origin == Origin::Network {
        return Ok((observer, None));
    }
    let port = if web_is_tap { "vm-web" } else { "ve-web" };
    lab.host.run(&format!(
        "ip link add obs0 mtu 65535 type veth peer name obs1 mtu 65535 netns {}",
        observer.path().display()
    ))?;
    for (ns, interface) in [(&lab.host, "obs0"), (&observer, "obs1")] {
        ns.set_sysctl(&format!("net/ipv6/conf/{interface}/disable_ipv6"), "1")?;
        ns.run(&format!("ip link set {interface} arp off up"))?;
    }
    let rules = format!(
        "table netdev watch {{ chain port {{ \
         type filter hook ingress device \"{port}\" priority 0; policy accept; \
         dup to \"obs0\"; }}; }}"
    );
    lab.host
        .cmd("nft")
        .args(["-f", "-"])
        .input(rules)
        .text()
        .context("the kernel cannot copy what passes the guard")?;
    let watch = Watch {
        place: Place::Port,
        end: End::Packet(PacketPort::open(&observer, "obs1")?),
    };
    Ok((observer, Some(watch)))
}
