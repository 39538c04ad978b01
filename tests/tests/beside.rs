//! What a machine, or a station on the network, says of its frames beside their bytes, each
//! case by name: where a sum is to be completed, how a super-packet is to be cut up, how
//! long a frame is, when it leaves. `fuzz_live` has what nobody thought of.

use std::{
    collections::BTreeMap,
    io::{self, Write as _},
    net::IpAddr,
    os::fd::AsRawFd as _,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use etherparse::{IpNumber, PacketBuilder, SlicedPacket, TransportSlice};
use netspawn_tests::{
    Attached, FAR4, FAR6, GATEWAY4, GATEWAY6, HOST0, HOST4, HOST6, LAN, Lab, Mode, Ns, Spec,
    TapWire, UPLINK, in_each_mode, ping,
    protocol::holds,
    vnet::{NEEDS_CSUM, PacketPort, Vnet, gso},
    wait_until,
};

type Mac = [u8; 6];

/// How long a frame may take to be counted, or to arrive.
const SOON: Duration = Duration::from_secs(10);
/// In every frame that is sent here.
const MARKER: &[u8; 16] = b"beside the bytes";
/// The machine behind a tap.
const VM: &str = "vm";
const VM_PORT: &str = "vm0";
const VM_MAC: Mac = [2, 0, 0, 0, 0x77, 1];
/// The machine behind a veth.
const WEB: &str = "web";
/// Of another tenant.
const DB: &str = "db";

/// Where the transport header is behind plain headers.
const V4: u16 = 34;
const V6: u16 = 54;
const TCP: u16 = 16;
const UDP: u16 = 6;
/// Where the frames go that need not be dropped.
const OTHER: u16 = 11;

/// What becomes of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Then {
    /// It is dropped, and counted on its machine.
    Dropped,
    /// That, or nothing is completed: a veth forgets a sum that begins in front of the
    /// packet (`skb_postpull_rcsum`).
    Harmless,
    /// It arrives on the network, as long as this, its transport checksum right once the
    /// sum that is left open is completed.
    Arrives(usize),
}

struct Case {
    name: &'static str,
    frame: Vec<u8>,
    said: Vnet,
    then: Then,
}

fn colons(mac: Mac) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

/// Somebody who sends.
enum Link {
    Packet(PacketPort),
    Tap(TapWire),
}

impl Link {
    fn send(&self, said: &Vnet, frame: &[u8]) -> io::Result<()> {
        match self {
            Link::Packet(port) => port.send(said, frame),
            Link::Tap(wire) => wire.send_vnet(said, frame),
        }
    }
}

/// The addresses that frames are made of.
#[derive(Clone, Copy)]
struct Way {
    from: Mac,
    to: Mac,
    source4: [u8; 4],
    source6: [u8; 16],
    target4: [u8; 4],
    target6: [u8; 16],
}

impl Way {
    fn v4(self, protocol: u8, inner: &[u8]) -> Vec<u8> {
        let mut frame = Vec::new();
        PacketBuilder::ethernet2(self.from, self.to)
            .ipv4(self.source4, self.target4, 64)
            .write(&mut frame, IpNumber(protocol), inner)
            .expect("a Vec takes everything");
        frame
    }

    fn v6(self, protocol: u8, inner: &[u8]) -> Vec<u8> {
        let mut frame = Vec::new();
        PacketBuilder::ethernet2(self.from, self.to)
            .ipv6(self.source6, self.target6, 64)
            .write(&mut frame, IpNumber::EXPERIMENTAL_AND_TESTING_0, inner)
            .expect("a Vec takes everything");
        frame[20] = protocol;
        frame
    }

    /// UDP whose checksum holds the sum of the pseudo-header, as a sender leaves it.
    fn udp4(self, to: u16, payload: &[u8]) -> Vec<u8> {
        let datagram = datagram(4000, to, payload);
        let pseudo = [&self.source4[..], &self.target4].concat();
        self.v4(17, &open(datagram, 17, UDP, &pseudo))
    }

    fn udp6(self, to: u16, payload: &[u8]) -> Vec<u8> {
        let datagram = datagram(4000, to, payload);
        let pseudo = [&self.source6[..], &self.target6].concat();
        self.v6(17, &open(datagram, 17, UDP, &pseudo))
    }

    fn tcp4(self, payload: usize) -> Vec<u8> {
        let pseudo = [&self.source4[..], &self.target4].concat();
        self.v4(6, &open(segment(payload), 6, TCP, &pseudo))
    }

    fn tcp6(self, payload: usize) -> Vec<u8> {
        let pseudo = [&self.source6[..], &self.target6].concat();
        self.v6(6, &open(segment(payload), 6, TCP, &pseudo))
    }
}

fn datagram(from: u16, to: u16, payload: &[u8]) -> Vec<u8> {
    let length = u16::try_from(8 + payload.len()).expect("short");
    let head = [from, to, length, 0].map(u16::to_be_bytes).concat();
    [&head[..], payload].concat()
}

fn segment(payload: usize) -> Vec<u8> {
    let mut bytes = vec![
        0x0f, 0xa0, 0x13, 0x88, 0, 0, 0, 1, 0, 0, 0, 1, 0x50, 0x10, 4, 0,
    ];
    bytes.extend([0; 4]);
    bytes.extend(MARKER.iter().cycle().take(payload));
    bytes
}

/// Writes the sum of the pseudo-header where the checksum is.
fn open(mut bytes: Vec<u8>, protocol: u8, field: u16, addresses: &[u8]) -> Vec<u8> {
    let length = u32::try_from(bytes.len()).expect("short").to_be_bytes();
    let pseudo = [addresses, &length, &[0, protocol]].concat();
    let mut sum: u32 = pseudo
        .chunks(2)
        .map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])))
        .sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    let at = usize::from(field);
    bytes[at..at + 2].copy_from_slice(&(sum as u16).to_be_bytes());
    bytes
}

/// Headers of eight bytes in front of what is inside.
fn behind(headers: &[u8], last: u8, inner: &[u8]) -> (u8, Vec<u8>) {
    let mut bytes = Vec::new();
    for next in headers.iter().skip(1).chain([&last]) {
        bytes.extend([*next, 0, 1, 4, 0, 0, 0, 0]);
    }
    bytes.extend(inner);
    (headers[0], bytes)
}

/// A sum to be completed.
fn sum(start: u16, offset: u16) -> Vnet {
    Vnet {
        flags: NEEDS_CSUM,
        csum_start: start,
        csum_offset: offset,
        ..Vnet::default()
    }
}

/// Segments of that size, behind so many bytes of headers.
fn cut(kind: u8, size: u16, start: u16, offset: u16, headers: u16) -> Vnet {
    Vnet {
        gso_type: kind,
        gso_size: size,
        hdr_len: headers,
        ..sum(start, offset)
    }
}

/// The kind of each row, to one target.
fn cases(way: Way) -> Vec<Case> {
    const BAD: Then = Then::Dropped;
    let case = |name, frame: Vec<u8>, said, then| Case {
        name,
        frame,
        said,
        then,
    };
    let mut all = Vec::new();
    let (udp4, udp6) = (way.udp4(9, MARKER), way.udp6(9, MARKER));
    let (other4, other6) = (way.udp4(OTHER, MARKER), way.udp6(OTHER, MARKER));
    // Into each pair of bytes in front of UDP's own checksum, summed from there, from the
    // packet's start, from the frame's, and from where newer kernels let a sum begin at the
    // earliest (20, in `virtio_net_hdr_to_skb`).
    for field in (0..V4 + UDP).step_by(2) {
        for start in [0, 14, 20, field] {
            let then = if start < 14 { Then::Harmless } else { BAD };
            if start <= field {
                all.push(case(
                    "IPv4",
                    other4.clone(),
                    sum(start, field - start),
                    then,
                ));
            }
        }
    }
    for field in (0..V6 + UDP).step_by(2) {
        for start in [0, 14, 20, field] {
            let then = if start < 14 { Then::Harmless } else { BAD };
            if start <= field {
                all.push(case(
                    "IPv6",
                    other6.clone(),
                    sum(start, field - start),
                    then,
                ));
            }
        }
    }
    let options = [0x1e, 4, 0, 0, 0, 0];
    let (next, inner) = behind(&[60, 60], 17, &datagram(4000, 9, MARKER));
    let extended = way.v6(next, &inner);
    all.push(case(
        "into an extension header",
        extended.clone(),
        sum(V6, options.len() as u16),
        BAD,
    ));
    all.push(case(
        "ports behind extensions",
        extended,
        sum(V6 + 16, 2),
        BAD,
    ));
    let quote = [&[3, 3, 0, 0, 0, 0, 0, 0][..], MARKER, MARKER].concat();
    all.push(case(
        "ICMP's quote",
        way.v4(1, &quote),
        sum(V4 + 8, 12),
        BAD,
    ));
    all.push(case("ICMP's type", way.v4(1, &quote), sum(V4, 0), BAD));
    let dhcp = datagram(68, 9, &[0; 64]);
    all.push(case("DHCP", way.v4(17, &dhcp), sum(V4 + 8, 4), BAD));
    let mut fragment = way.udp4(9, MARKER);
    fragment[20] = 0x20;
    fix4(&mut fragment);
    all.push(case("a fragment", fragment, sum(V4, UDP), BAD));
    all.push(case("GRE's flags", way.v4(47, &[0; 64]), sum(V4, 0), BAD));

    // What honest senders leave open.
    let inner = [&[8, 0, 0, 0, 0, 0, 9, 0][..], MARKER, MARKER].concat();
    all.push(case(
        "UDP",
        udp4.clone(),
        sum(V4, UDP),
        Then::Arrives(udp4.len()),
    ));
    all.push(case(
        "UDP in IPv6",
        udp6.clone(),
        sum(V6, UDP),
        Then::Arrives(udp6.len()),
    ));
    let vxlan = way.udp4(4789, &inner);
    all.push(case(
        "inside UDP",
        vxlan.clone(),
        sum(V4 + 8 + 8, 16),
        Then::Arrives(vxlan.len()),
    ));

    // Segments.
    let tcp4 = way.tcp4(4000);
    let tcp6 = way.tcp6(4000);
    let long4 = way.udp4(9, &MARKER.repeat(200));
    all.extend([
        case(
            "UDP's segments in TCP",
            tcp4.clone(),
            cut(gso::UDP_L4, 1400, V4, UDP, V4 + 8),
            BAD,
        ),
        case(
            "IPv6's segments in IPv4",
            tcp4.clone(),
            cut(gso::TCPV6, 1400, V4, TCP, V4 + 20),
            BAD,
        ),
        case(
            "IPv4's segments in IPv6",
            tcp6,
            cut(gso::TCPV4, 1400, V6, TCP, V6 + 20),
            BAD,
        ),
        case(
            "TCP's segments in UDP",
            long4,
            cut(gso::TCPV4, 1400, V4, TCP, V4 + 20),
            BAD,
        ),
        case(
            // Newer kernels make eight of it, which is what they let through.
            "segments of a byte",
            way.tcp4(12_000),
            cut(gso::TCPV4, 1, V4, TCP, V4 + 20),
            BAD,
        ),
        case(
            "a segment that begins elsewhere",
            tcp4.clone(),
            cut(gso::TCPV4, 1400, V4 + 20, TCP, V4 + 40),
            BAD,
        ),
        case(
            "bytes behind a super-packet",
            [&tcp4[..], &[0; 100]].concat(),
            cut(gso::TCPV4, 1400, V4, TCP, V4 + 20),
            BAD,
        ),
    ]);

    // Lengths.
    for more in [100, 1400] {
        for (frame, start) in [(&udp4, V4), (&udp6, V6)] {
            let mut long = frame.clone();
            sum(start, UDP).complete(&mut long);
            long.resize(frame.len() + more, 0);
            let then = Then::Arrives(frame.len().max(60));
            all.push(case("bytes behind", long, Vnet::default(), then));
        }
    }
    all
}

/// Makes the IPv4 header's checksum right.
fn fix4(frame: &mut [u8]) {
    frame[24..26].fill(0);
    Vnet {
        flags: NEEDS_CSUM,
        csum_start: 14,
        csum_offset: 10,
        ..Vnet::default()
    }
    .complete(&mut frame[..34]);
}

/// A lab with a machine on a veth, one behind a tap, and one of another tenant.
struct Stage {
    on: Attached,
    tap: TapWire,
}

impl Stage {
    fn raise(mode: Mode) -> Result<Self> {
        let lab = Lab::builder()
            .machine(Spec::new(WEB).address("203.0.113.2").address("2001:db8::2"))
            .machine(Spec::new(DB).address("203.0.113.3").address("2001:db8::3"))
            .machine(
                Spec::new(VM)
                    .port(VM_PORT)
                    .address("203.0.113.4")
                    .address("2001:db8::4")
                    .unplugged(),
            )
            .build()?;
        let tap = TapWire::new(&lab.host, VM_PORT)?;
        let declaration = lab.machine(VM).declaration();
        lab.declare(VM, &format!("mac = \"{}\"\n{declaration}", colons(VM_MAC)))?;
        lab.host.settled(VM_PORT)?;
        let on = Attached::new(lab, mode)?;
        // The data plane knows the way.
        for target in [IpAddr::from(GATEWAY4), GATEWAY6.into()] {
            let ns = &on.lab.machine(WEB).ns;
            let reached = wait_until(SOON, || ping(ns, target).is_ok());
            ensure!(reached, "no way to {target}");
        }
        Ok(Stage { on, tap })
    }

    fn way(&self, sender: &str, target4: [u8; 4], target6: [u8; 16]) -> Result<Way> {
        let lab = &self.on.lab;
        let machine = lab.machine(sender);
        Ok(Way {
            from: match sender {
                VM => VM_MAC,
                _ => machine.ns.mac(HOST0)?,
            },
            to: lab.host.mac(machine.port())?,
            source4: machine.v4().octets(),
            source6: machine.v6().octets(),
            target4,
            target6,
        })
    }

    fn dropped(&self, machine: &str) -> Result<BTreeMap<String, u64>> {
        let list = self.on.lab.json("list")?;
        let entry = list
            .as_array()
            .and_then(|list| list.iter().find(|entry| entry["name"] == machine))
            .with_context(|| format!("no {machine} in {list:#}"))?;
        Ok(entry["drops"]
            .as_object()
            .into_iter()
            .flatten()
            .filter_map(|(reason, count)| Some((reason.clone(), count.as_u64()?)))
            .collect())
    }
}

/// Whoever could get a frame.
struct Watches(Vec<(&'static str, PacketPort)>);

impl Watches {
    fn of(lab: &Lab) -> Result<Self> {
        let open = |ns: &Ns, interface| PacketPort::open(ns, interface);
        Ok(Watches(vec![
            ("the network", open(&lab.net, LAN)?),
            ("the host", open(&lab.host, UPLINK)?),
            ("db", open(&lab.machine(DB).ns, HOST0)?),
        ]))
    }

    /// The frames of this suite, completed, with who got them; without errors about them.
    fn heard(&mut self, way: &Way) -> Vec<(&'static str, Vec<u8>)> {
        let mut all = Vec::new();
        for (name, port) in &mut self.0 {
            port.receive(|received| {
                let mut frame = received.frame.to_vec();
                received.vnet.complete(&mut frame);
                let is_error = match frame[12..14] {
                    [8, 0] => frame[30..34] == way.source4,
                    _ => frame.len() >= 54 && frame[38..54] == way.source6,
                };
                let marked = frame.windows(MARKER.len()).any(|bytes| bytes == MARKER);
                if marked && !is_error {
                    all.push((*name, frame));
                }
            });
        }
        all
    }
}

/// Whether a frame is one of those that need not be dropped.
fn is_other(frame: &[u8]) -> bool {
    let port = match frame[12..14] {
        [8, 0] => 36,
        _ => 56,
    };
    frame.get(port..port + 2) == Some(&OTHER.to_be_bytes()[..])
}

/// Whether a frame has the source of who sent it.
fn is_from(frame: &[u8], way: &Way) -> Result<()> {
    let source = match frame[12..14] {
        [8, 0] => frame[26..30] == way.source4,
        _ => frame[22..38] == way.source6,
    };
    ensure!(source, "another source: {frame:02x?}");
    Ok(())
}

/// Whether a frame is from there, as long as said, and its UDP checksum right.
fn is_whole(frame: &[u8], way: &Way, length: usize) -> Result<()> {
    ensure!(frame.len() == length, "{} bytes, not {length}", frame.len());
    is_from(frame, way)?;
    let packet = SlicedPacket::from_ethernet(frame)?;
    let Some(TransportSlice::Udp(udp)) = packet.transport else {
        bail!("no UDP: {frame:02x?}");
    };
    let header = udp.to_header();
    let right = match packet.net {
        Some(etherparse::NetSlice::Ipv4(ip)) => {
            header.calc_checksum_ipv4(&ip.header().to_header(), udp.payload())?
        }
        Some(etherparse::NetSlice::Ipv6(ip)) => {
            header.calc_checksum_ipv6(&ip.header().to_header(), udp.payload())?
        }
        _ => bail!("no IP: {frame:02x?}"),
    };
    // What a tunnel holds is summed apart.
    ensure!(
        header.destination_port == 4789 || right == header.checksum,
        "checksum {:04x}, not {right:04x}",
        header.checksum
    );
    Ok(())
}

/// The cases that were not dropped and should have been, each sent once more.
fn passed(stage: &Stage, sender: &str, link: &Link, way: Way) -> Result<Vec<String>> {
    let mut passed = Vec::new();
    for case in cases(way) {
        let before = stage.dropped(sender)?;
        let dropped = matches!(case.then, Then::Dropped);
        if dropped && link.send(&case.said, &case.frame).is_ok() {
            let counted = wait_until(Duration::from_millis(200), || {
                stage.dropped(sender).is_ok_and(|drops| drops != before)
            });
            if !counted {
                passed.push(format!("{} {:?}", case.name, case.said));
            }
        }
    }
    Ok(passed)
}

/// Sends every case, and holds what is counted and heard against what should be; `to` is
/// who is to hear the honest ones, and nobody else anything.
fn play(stage: &Stage, sender: &str, link: &Link, way: Way, to: &str) -> Result<()> {
    let mut watches = Watches::of(&stage.on.lab)?;
    let bad = || -> Result<u64> {
        let drops = stage.dropped(sender)?;
        Ok(drops.get("bad_offload").copied().unwrap_or(0))
    };
    let mut least = bad()?;
    let (mut harmless, mut refused) = (0, 0);
    let mut arrivals = Vec::new();
    for case in cases(way) {
        // The kernel takes not every description.
        if link.send(&case.said, &case.frame).is_err() {
            refused += 1;
            continue;
        }
        match case.then {
            Then::Dropped => least += 1,
            Then::Harmless => harmless += 1,
            Then::Arrives(length) => arrivals.push((case, length)),
        }
    }
    let counted = wait_until(SOON, || bad().is_ok_and(|bad| bad >= least));
    ensure!(
        counted && bad()? <= least + harmless,
        "{sender}: {:?} dropped, not {least} ({harmless} may be; {refused} refused by the \
         kernel): {:#?}",
        stage.dropped(sender)?,
        passed(stage, sender, link, way)?
    );
    let (mut heard, mut harmless_heard) = (Vec::new(), Vec::new());
    wait_until(SOON, || {
        for (name, frame) in watches.heard(&way) {
            match is_other(&frame) {
                true => harmless_heard.push(frame),
                false => heard.push((name, frame)),
            }
        }
        heard.len() >= arrivals.len()
    });
    for frame in &harmless_heard {
        is_from(frame, &way)?;
    }
    ensure!(
        heard.len() == arrivals.len(),
        "{sender}: {} frames arrived, not {}: {:02x?}",
        heard.len(),
        arrivals.len(),
        heard
            .iter()
            .map(|(name, frame)| (name, &frame[..frame.len().min(70)]))
            .collect::<Vec<_>>()
    );
    for ((name, frame), (case, length)) in heard.iter().zip(&arrivals) {
        ensure!(*name == to, "{name} heard `{}`", case.name);
        is_whole(frame, &way, *length)
            .with_context(|| format!("{sender}: {} ({:?})", case.name, case.said))?;
    }
    Ok(())
}

fn sums_segments_and_lengths_fit_or_are_dropped(mode: Mode) -> Result<()> {
    let _rows = holds("beside::what_is_said", Some(mode), &["S1", "S2", "S3"]);
    let stage = Stage::raise(mode)?;
    let lab = &stage.on.lab;
    let web = Link::Packet(PacketPort::open(&lab.machine(WEB).ns, HOST0)?);
    let tap = Link::Tap(stage.tap);
    let stage = Stage {
        tap: TapWire::new(&lab.host, "spare")?,
        on: stage.on,
    };
    let db = stage.on.lab.machine(DB);
    for (sender, link) in [(WEB, &web), (VM, &tap)] {
        let network = stage.way(sender, FAR4.octets(), FAR6.octets())?;
        play(&stage, sender, link, network, "the network")?;
        let local = stage.way(sender, db.v4().octets(), db.v6().octets())?;
        play(&stage, sender, link, local, DB)?;
        let host = stage.way(sender, HOST4.octets(), HOST6.octets())?;
        play(&stage, sender, link, host, "the host")?;
    }
    Ok(())
}

/// A station on the network, whose frames a card hands on with what was said of them.
fn sums_from_the_network_reach_no_machine(mode: Mode) -> Result<()> {
    let _rows = holds("beside::from_the_network", Some(mode), &["S1"]);
    let stage = Stage::raise(mode)?;
    let lab = &stage.on.lab;
    let station = PacketPort::open(&lab.net, LAN)?;
    let web = lab.machine(WEB);
    let mut inside = PacketPort::open(&web.ns, HOST0)?;
    let way = Way {
        from: lab.net.mac(LAN)?,
        to: lab.host.mac(UPLINK)?,
        source4: GATEWAY4.octets(),
        source6: GATEWAY6.octets(),
        target4: web.v4().octets(),
        target6: web.v6().octets(),
    };
    let hostile: Vec<_> = cases(way)
        .into_iter()
        .filter(|case| !matches!(case.then, Then::Arrives(_)) && case.said.gso_type == 0)
        .collect();
    let mut sent = 0;
    for case in &hostile {
        // The kernel takes not every description.
        let taken = station.send(&case.said, &case.frame).is_ok();
        sent += u64::from(taken && case.then == Then::Dropped);
    }
    ensure!(sent > 30, "the kernel takes {sent} frames");
    // The last one is honest.
    let last = way.udp4(10, MARKER);
    station.send(&sum(V4, UDP), &last)?;
    let mut heard: Vec<Vec<u8>> = Vec::new();
    let came = wait_until(SOON, || {
        inside.receive(|received| {
            let mut frame = received.frame.to_vec();
            received.vnet.complete(&mut frame);
            if frame.windows(MARKER.len()).any(|bytes| bytes == MARKER) {
                heard.push(frame);
            }
        });
        heard
            .iter()
            .any(|frame| frame[36..38] == 10_u16.to_be_bytes())
    });
    ensure!(came, "the honest frame did not arrive");
    for frame in &heard {
        is_from(frame, &way)?;
    }
    // XDP hands on what it forwards without what was said of it.
    if mode == Mode::Tc {
        heard.retain(|frame| !is_other(frame));
        ensure!(heard.len() == 1, "{} frames arrived", heard.len());
        let bad = stage.dropped(WEB)?.get("bad_offload").copied();
        ensure!(bad.is_some_and(|bad| bad >= sent), "{bad:?}, not {sent}");
    }
    Ok(())
}

in_each_mode! {
    sums_segments_and_lengths_fit_or_are_dropped
    sums_from_the_network_reach_no_machine
}

/// A machine's delivery time is no other's: an uplink with `fq` sends its packets at once.
/// Frames keep that time across network namespaces from Linux 5.18 on, and packet sockets
/// set it as one from 6.10 on.
#[test]
fn departure_time_of_a_machine_is_forgotten() -> Result<()> {
    let stage = Stage::raise(Mode::Tc)?;
    let lab = &stage.on.lab;
    if let Err(error) = lab
        .host
        .run(&format!("tc qdisc replace dev {UPLINK} root fq"))
    {
        // A kernel of a guest has it.
        writeln!(
            io::stderr(),
            "skipped: no fq (CONFIG_NET_SCH_FQ): {error:#}"
        )?;
        return Ok(());
    }
    let _rows = holds("beside::departure_time", Some(Mode::Tc), &["S5"]);
    let mut watches = Watches::of(lab)?;
    let way = stage.way(WEB, FAR4.octets(), FAR6.octets())?;
    let start = Instant::now();
    send_at(
        &lab.machine(WEB).ns,
        HOST0,
        &way.udp4(9, MARKER),
        Duration::from_secs(8),
    )?;
    let came = wait_until(Duration::from_secs(7), || !watches.heard(&way).is_empty());
    ensure!(came, "not after {:?}", start.elapsed());
    Ok(())
}

/// Sends a frame that is to leave so much later (`SO_TXTIME`).
fn send_at(ns: &Ns, interface: &str, frame: &[u8], later: Duration) -> Result<()> {
    #[repr(C)]
    struct TxTime {
        clock: i32,
        flags: u32,
    }
    let ifindex = ns.ifindex(interface)?;
    ns.enter(|| {
        let socket = socket()?;
        let option = TxTime {
            clock: libc::CLOCK_MONOTONIC,
            flags: 0,
        };
        // SAFETY: the option is as long as said.
        let set = unsafe {
            libc::setsockopt(
                socket.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_TXTIME,
                (&raw const option).cast(),
                size_of_val(&option) as u32,
            )
        };
        ensure!(set == 0, "SO_TXTIME: {}", io::Error::last_os_error());
        // SAFETY: all-zero is a valid timespec, which the call writes.
        let now = unsafe {
            let mut now: libc::timespec = std::mem::zeroed();
            libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut now);
            now
        };
        let time = now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64;
        let time = time + u64::try_from(later.as_nanos())?;
        // SAFETY: all-zero is a valid address, message and control area.
        let (mut address, mut message): (libc::sockaddr_ll, libc::msghdr) =
            unsafe { std::mem::zeroed() };
        address.sll_family = libc::AF_PACKET as u16;
        address.sll_protocol = 0x0800_u16.to_be();
        address.sll_ifindex = ifindex.try_into()?;
        let mut part = libc::iovec {
            iov_base: frame.as_ptr().cast_mut().cast(),
            iov_len: frame.len(),
        };
        let mut control = [0_u64; 8];
        message.msg_name = (&raw mut address).cast();
        message.msg_namelen = size_of_val(&address) as u32;
        message.msg_iov = &raw mut part;
        message.msg_iovlen = 1;
        message.msg_control = control.as_mut_ptr().cast();
        // SAFETY: takes a number.
        message.msg_controllen = unsafe { libc::CMSG_SPACE(8) } as usize;
        // SAFETY: the control area has room for one message of eight bytes.
        let sent = unsafe {
            let header = libc::CMSG_FIRSTHDR(&raw const message);
            (*header).cmsg_level = libc::SOL_SOCKET;
            (*header).cmsg_type = libc::SCM_TXTIME;
            (*header).cmsg_len = libc::CMSG_LEN(8) as usize;
            libc::CMSG_DATA(header).cast::<u64>().write_unaligned(time);
            libc::sendmsg(socket.as_raw_fd(), &raw const message, 0)
        };
        ensure!(sent > 0, "no frame is sent: {}", io::Error::last_os_error());
        Ok(())
    })
}

fn socket() -> Result<std::os::fd::OwnedFd> {
    use std::os::fd::FromRawFd as _;
    // SAFETY: the call takes no pointers; a non-negative result is a new descriptor.
    unsafe {
        match libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) {
            -1 => Err(io::Error::last_os_error()).context("no packet socket"),
            fd => Ok(std::os::fd::OwnedFd::from_raw_fd(fd)),
        }
    }
}
