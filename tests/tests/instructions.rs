//! What a packet costs in instructions, in a guest whose clock counts them: with sums left
//! to be completed and with segments, of which `BPF_PROG_TEST_RUN` has neither.
//!
//! `cargo xtask bench instructions` runs it; it measures, and fails only where packets do
//! not arrive.

use std::{
    collections::BTreeMap,
    env,
    fmt::Write as _,
    io::{self, Write as _},
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use etherparse::PacketBuilder;
use netspawn_tests::{
    Agent, Direction, FAR4, FAR6, GATEWAY4, GATEWAY6, Guest, HOST0, Kernel, LAN, Lab, Mode, Ns,
    Program, Spec, UPLINK,
    vnet::{NEEDS_CSUM, PacketPort, Vnet, gso},
};

const LIMIT: Duration = Duration::from_secs(1800);
/// Of which the median counts.
const ROUNDS: usize = 15;
/// Packets of a round.
const PACKETS: u32 = 200;

/// Who forwards: nobody but a redirect, an earlier program, this one.
const WHO: &[&str] = &["redirect", "before", "now"];

/// What is sent.
#[derive(Clone, Copy, Debug)]
struct Kind {
    name: &'static str,
    v6: bool,
    tcp: bool,
    partial: bool,
    /// Payload of a segment.
    segment: u16,
    payload: usize,
}

const KINDS: &[Kind] = &[
    Kind {
        name: "UDP, whole",
        v6: false,
        tcp: false,
        partial: false,
        segment: 0,
        payload: 64,
    },
    Kind {
        name: "UDP, sum left",
        v6: false,
        tcp: false,
        partial: true,
        segment: 0,
        payload: 64,
    },
    Kind {
        name: "UDP over IPv6, whole",
        v6: true,
        tcp: false,
        partial: false,
        segment: 0,
        payload: 64,
    },
    Kind {
        name: "UDP over IPv6, sum left",
        v6: true,
        tcp: false,
        partial: true,
        segment: 0,
        payload: 64,
    },
    Kind {
        name: "TCP, 10 segments",
        v6: false,
        tcp: true,
        partial: true,
        segment: 1400,
        payload: 14_000,
    },
    Kind {
        name: "TCP over IPv6, 10 segments",
        v6: true,
        tcp: true,
        partial: true,
        segment: 1400,
        payload: 14_000,
    },
];

/// Which way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// Machine to network: the port's program.
    Out,
    /// Network to machine: the uplink's.
    In,
}

impl Way {
    const fn name(self) -> &'static str {
        match self {
            Way::Out => "out",
            Way::In => "in",
        }
    }
}

/// On the kernels in `NETSPAWN_KERNEL_SERIES`, with the program in `NETSPAWN_BEFORE` too.
#[test]
#[ignore = "it measures: cargo xtask bench instructions"]
fn instructions_of_a_packet() -> Result<()> {
    let series = env::var("NETSPAWN_KERNEL_SERIES").unwrap_or_else(|_| "6.1 6.12".to_owned());
    let before = env::var_os("NETSPAWN_BEFORE").map(PathBuf::from);
    for series in series.split_whitespace() {
        let kernel = Kernel::series(series)?;
        let mut guest = Guest::new(&kernel)
            .modules(&["veth", "sch_ingress", "cls_bpf"])?
            .programs(&["ip", "tc"])?
            .counting()
            .netspawn_xdp()?
            .executable("instructions", &env::current_exe()?)?;
        let mut script = String::from("set -e\nexport RUST_BACKTRACE=0\n");
        for who in WHO {
            let binary = match *who {
                "before" => "/bin/netspawn-before",
                _ => "/bin/netspawn-xdp",
            };
            if *who == "before" && before.is_none() {
                continue;
            }
            writeln!(
                script,
                "NETSPAWN_WHO={who} NETSPAWN_XDP={binary} \
                 instructions --ignored --exact --nocapture side_of_the_guest"
            )?;
        }
        if let Some(before) = &before {
            guest = guest.executable("netspawn-before", before)?;
        }
        let report = guest.run(&script, LIMIT)?;
        ensure!(report.status == 0, "{}", report.console);
        let table = table(kernel.release(), &report.console, before.is_some())?;
        io::stderr().write_all(table.as_bytes())?;
    }
    Ok(())
}

fn table(release: &str, console: &str, before: bool) -> Result<String> {
    let mut figures: BTreeMap<(String, String, String), f64> = BTreeMap::new();
    for line in console.lines() {
        // The harness begins a line of its own.
        if let Some((_, rest)) = line.trim().split_once("FIGURE|") {
            let parts: Vec<&str> = rest.split('|').collect();
            let [who, way, kind, value] = parts.as_slice() else {
                continue;
            };
            let key = ((*way).to_owned(), (*kind).to_owned(), (*who).to_owned());
            figures.insert(key, value.parse()?);
        }
    }
    let mut text = format!(
        "\nkernel {release}: instructions of a packet, from the sender's call to where it is \
         dropped\n{:>3}  {:28} {:>9}",
        "", "", "redirect"
    );
    if before {
        write!(text, " {:>9} {:>9}", "before", "more")?;
    }
    writeln!(text, " {:>9} {:>9}", "now", "more")?;
    for way in [Way::Out, Way::In] {
        for kind in KINDS {
            let value = |who: &str| {
                let key = (way.name().to_owned(), kind.name.to_owned(), who.to_owned());
                figures
                    .get(&key)
                    .copied()
                    .with_context(|| format!("no figure for {key:?}\n{console}"))
            };
            let bare = value("redirect")?;
            write!(text, "{:>3}  {:28} {bare:>9.0}", way.name(), kind.name)?;
            if before {
                let before = value("before")?;
                write!(text, " {before:>9.0} {:>9.0}", before - bare)?;
            }
            let now = value("now")?;
            writeln!(text, " {now:>9.0} {:>9.0}", now - bare)?;
        }
    }
    Ok(text)
}

/// What the guest runs, once for each of [`WHO`].
#[test]
#[ignore = "it is run in a guest by instructions_of_a_packet"]
fn side_of_the_guest() -> Result<()> {
    let who = env::var("NETSPAWN_WHO")?;
    let web = Spec::new("web")
        .address("203.0.113.2")
        .address("2001:db8::2");
    let lab = Lab::builder().machine(web).build()?;
    let (lan, uplink) = (lab.net.mac(LAN)?, lab.host.mac(UPLINK)?);
    let own = lab.machine("web").ns.mac(HOST0)?;
    let colons = |mac: [u8; 6]| mac.map(|byte| format!("{byte:02x}")).join(":");
    // Nobody is asked meanwhile.
    for address in [GATEWAY4.to_string(), GATEWAY6.to_string()] {
        let lan = colons(lan);
        lab.host.run(&format!(
            "ip neigh replace {address} lladdr {lan} dev {UPLINK} nud permanent"
        ))?;
    }
    let pins = lab.bpffs();
    let web = lab.machine("web");
    let _agent;
    if who == "redirect" {
        // From the port to the uplink, from the uplink to the machine.
        let out = Program::redirect(lab.host.ifindex(UPLINK)?, false)?;
        out.clsact(&lab.host, web.port(), Direction::Ingress, &pins.join("out"))?;
        let inward = Program::redirect(lab.host.ifindex(web.port())?, true)?;
        inward.clsact(&lab.host, UPLINK, Direction::Ingress, &pins.join("in"))?;
    } else {
        _agent = Agent::start(&lab, Mode::Tc.attach())?;
    }
    let end = Program::always(2)?;
    end.clsact(&lab.net, LAN, Direction::Ingress, &pins.join("end-lan"))?;
    end.clsact(&web.ns, HOST0, Direction::Ingress, &pins.join("end-web"))?;
    for way in [Way::Out, Way::In] {
        let (from, sending, to, receiving, near, far) = match way {
            Way::Out => (
                &web.ns,
                HOST0,
                &lab.net,
                LAN,
                own,
                lab.host.mac(web.port())?,
            ),
            Way::In => (&lab.net, LAN, &web.ns, HOST0, lan, uplink),
        };
        let port = PacketPort::open(from, sending)?;
        for kind in KINDS {
            let (frame, vnet) = packet(*kind, way, near, far)?;
            let mut rounds = Vec::new();
            for _ in 0..ROUNDS {
                let before = received(to, receiving)?;
                let start = Instant::now();
                for _ in 0..PACKETS {
                    port.send(&vnet, &frame)?;
                }
                rounds.push(start.elapsed().as_nanos() as f64 / f64::from(PACKETS));
                let arrived = received(to, receiving)? - before;
                ensure!(
                    arrived >= u64::from(PACKETS),
                    "{who}, {way:?}, {kind:?}: {arrived} of {PACKETS} packets arrived"
                );
            }
            rounds.sort_by(f64::total_cmp);
            println!(
                "FIGURE|{who}|{}|{}|{:.1}",
                way.name(),
                kind.name,
                rounds[ROUNDS / 2]
            );
        }
    }
    Ok(())
}

/// Packets that an interface has received.
fn received(ns: &Ns, interface: &str) -> Result<u64> {
    let text = ns.run(&format!("ip -j -s link show dev {interface}"))?;
    let links: serde_json::Value = serde_json::from_str(&text)?;
    links[0]["stats64"]["rx"]["packets"]
        .as_u64()
        .with_context(|| format!("no count in {text}"))
}

fn packet(kind: Kind, way: Way, near: [u8; 6], far: [u8; 6]) -> Result<(Vec<u8>, Vnet)> {
    let (own4, own6) = (
        [203, 0, 113, 2],
        "2001:db8::2".parse::<std::net::Ipv6Addr>()?,
    );
    let builder = PacketBuilder::ethernet2(near, far);
    let ends = |own: [u8; 16], other: [u8; 16]| match way {
        Way::Out => (own, other),
        Way::In => (other, own),
    };
    let builder = if kind.v6 {
        let (source, destination) = ends(own6.octets(), FAR6.octets());
        builder.ipv6(source, destination, 64)
    } else {
        let (source, destination) = match way {
            Way::Out => (own4, FAR4.octets()),
            Way::In => (FAR4.octets(), own4),
        };
        builder.ipv4(source, destination, 64)
    };
    let payload = vec![0x5a; kind.payload];
    let mut frame = Vec::new();
    if kind.tcp {
        builder
            .tcp(4000, 5000, 1, 64_000)
            .ack(1)
            .write(&mut frame, &payload)?;
    } else {
        builder.udp(4000, 5000).write(&mut frame, &payload)?;
    }
    if !kind.partial {
        return Ok((frame, Vnet::default()));
    }
    let start: u16 = if kind.v6 { 54 } else { 34 };
    let (protocol, offset, header): (u8, u16, u16) =
        if kind.tcp { (6, 16, 20) } else { (17, 6, 8) };
    // The sum of the pseudo-header alone.
    let addresses = if kind.v6 { 22..54 } else { 26..34 };
    let length = frame.len() as u64 - u64::from(start);
    let mut sum: u64 = frame[addresses]
        .chunks(2)
        .map(|pair| u64::from(u16::from_be_bytes([pair[0], pair[1]])))
        .sum::<u64>()
        + u64::from(protocol)
        + length;
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    let at = usize::from(start + offset);
    frame[at..at + 2].copy_from_slice(&(sum as u16).to_be_bytes());
    let vnet = Vnet {
        flags: NEEDS_CSUM,
        gso_type: match (kind.segment, kind.v6) {
            (0, _) => gso::NONE,
            (_, false) => gso::TCPV4,
            (_, true) => gso::TCPV6,
        },
        hdr_len: if kind.segment == 0 { 0 } else { start + header },
        gso_size: kind.segment,
        csum_start: start,
        csum_offset: offset,
        ..Vnet::default()
    };
    Ok((frame, vnet))
}
