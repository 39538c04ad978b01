//! A virtual machine with a virtio card on a tap: what its kernel leaves to the card, the
//! card leaves to the host in the virtio header, and the other way round.

use std::{
    env,
    io::{Read as _, Write as _},
    net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener, TcpStream},
    process::Command,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use netspawn_tests::{
    Agent, FAR4, FAR6, Guest, HOST0, HOST4, HOST6, Kernel, LAN, Lab, Mode, Ns, Spec, UPLINK,
};

use crate::{
    bulk::{Datagrams, Traffic, answer, answer_stream, ask, listen},
    matrix::{OFF, ON, Table, bytes, ethtool},
};

const TAP: &str = "vm0";
const MAC: [u8; 6] = [2, 0, 0, 0, 0x76, 1];
const V4: &str = "203.0.113.9";
const V6: &str = "2001:db8::9";
/// Where the guest's side takes its orders.
const ORDERS: u16 = 7000;
/// A boot, and all transfers, in emulation.
const LIMIT: Duration = Duration::from_secs(600);
const STALL: Duration = Duration::from_secs(60);

/// The guest's side: obeys one order a connection until told to end.
pub fn serve() -> Result<()> {
    let listener = TcpListener::bind((Ipv6Addr::UNSPECIFIED, ORDERS))?;
    println!("serving");
    for stream in listener.incoming() {
        let mut stream = stream?;
        stream.set_read_timeout(Some(STALL))?;
        let order = line(&mut stream)?;
        let words: Vec<&str> = order.split(' ').collect();
        let done = match words.as_slice() {
            ["end"] => return Ok(()),
            ["answer"] => answer_stream(&mut stream),
            ["datagrams", address, segments] => {
                let segments = *segments == "true";
                Datagrams::bind(address.parse()?, segments).and_then(|socket| {
                    writeln!(stream, "ready")?;
                    socket.answer()
                })
            }
            ["ask", address, bytes] => ask(Traffic::Tcp, address.parse()?, bytes.parse()?),
            ["ask-datagrams", own, address, bytes, segments] => {
                Datagrams::bind(own.parse()?, *segments == "true")
                    .and_then(|socket| socket.ask(address.parse()?, bytes.parse()?))
            }
            ["ethtool", rest @ ..] => run(rest),
            other => bail!("no order: {other:?}"),
        };
        // One that asked for its own end is not there any more.
        let _ = match done {
            Ok(()) => writeln!(stream, "done"),
            Err(error) => writeln!(stream, "{error:#}"),
        };
    }
    Ok(())
}

fn run(features: &[&str]) -> Result<()> {
    let output = Command::new("ethtool")
        .args(["-K", "eth0"])
        .args(features)
        .output()?;
    let words = String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.success() || words.contains("Could not change any device features"),
        "ethtool: {words}"
    );
    Ok(())
}

fn line(stream: &mut TcpStream) -> Result<String> {
    let mut text = Vec::new();
    let mut byte = [0];
    loop {
        stream.read_exact(&mut byte)?;
        if byte == *b"\n" {
            return Ok(String::from_utf8(text)?);
        }
        text.push(byte[0]);
    }
}

/// Gives an order.
fn order(from: &Ns, text: &str) -> Result<TcpStream> {
    from.enter(|| {
        let mut stream = TcpStream::connect_timeout(&(V4.parse::<IpAddr>()?, ORDERS).into(), STALL)
            .with_context(|| format!("no guest for `{text}`"))?;
        stream.set_read_timeout(Some(STALL))?;
        stream.set_write_timeout(Some(STALL))?;
        writeln!(stream, "{text}")?;
        Ok(stream)
    })
}

/// Gives an order, and waits until it is done.
fn obeyed(from: &Ns, text: &str) -> Result<()> {
    let mut stream = order(from, text)?;
    done(&mut stream)
}

fn done(stream: &mut TcpStream) -> Result<()> {
    let answer = line(stream)?;
    ensure!(answer == "done", "the guest says: {answer}");
    Ok(())
}

/// Transfers between a station and the guest, begun by either.
fn transfers(control: &Ns, other: &Ns, own: IpAddr, guest: IpAddr, traffic: Traffic) -> Result<()> {
    // Emulation is slow.
    let bytes = bytes()? / 3;
    let segments = traffic == Traffic::UdpSegments;
    if traffic == Traffic::Tcp {
        other
            .enter(|| {
                let to: SocketAddr = (guest, ORDERS).into();
                let mut stream = TcpStream::connect_timeout(&to, STALL)?;
                writeln!(stream, "answer")?;
                crate::bulk::ask_stream(&mut stream, bytes)
            })
            .context("begun by the station")?;
        let listener = other.enter(|| listen(traffic, (own, 0).into()))?;
        let to = listener.local_addr()?;
        return thread::scope(|scope| {
            let answering = scope.spawn(move || answer(&listener));
            let asked = obeyed(control, &format!("ask {to} {bytes}"));
            let answered = answering.join().expect("it does not panic");
            asked.context("begun by the guest")?;
            answered.context("begun by the guest, the answering side")
        });
    }
    let at: SocketAddr = (guest, 7001).into();
    let mut stream = order(control, &format!("datagrams {at} {segments}"))?;
    ensure!(line(&mut stream)? == "ready", "the guest has no socket");
    other
        .enter(|| Datagrams::bind((own, 0).into(), segments)?.ask(at, bytes))
        .context("begun by the station")?;
    done(&mut stream)?;
    let socket = other.enter(|| Datagrams::bind((own, 0).into(), segments))?;
    let to: SocketAddr = (own, socket.port()?).into();
    let from: SocketAddr = (guest, 0).into();
    thread::scope(|scope| {
        let answering = scope.spawn(move || socket.answer());
        obeyed(
            control,
            &format!("ask-datagrams {from} {to} {bytes} {segments}"),
        )
        .context("begun by the guest")?;
        answering
            .join()
            .expect("it does not panic")
            .context("begun by the guest, the answering side")
    })
}

/// What is set at the guest and other ends, and at the host.
const SETTINGS: &[(&str, &str, &str)] = &[
    ("all on", ON, ON),
    ("host completes", ON, OFF),
    ("ends do all", OFF, ON),
    ("all off", OFF, OFF),
];

/// Boots the guest, and has everybody exchange with it.
pub fn run_with(mode: Mode) -> Result<()> {
    let mut lab = Lab::usual()?;
    lab.add(Spec::new("vm").address(V4).address(V6).unplugged())?;
    lab.declare(
        "vm",
        &format!(
            "interface = {TAP:?}\nmac = {:?}\naddresses = [{V4:?}, {V6:?}]\n",
            MAC.map(|byte| format!("{byte:02x}")).join(":")
        ),
    )?;
    lab.host
        .run(&format!("ip tuntap add dev {TAP} mode tap vnet_hdr"))?;
    lab.host.run(&format!("ip link set {TAP} up"))?;
    netspawn_tests::ready_for(&lab, mode)?;
    let _agent = Agent::start(&lab, mode.attach())?;
    let kernel = Kernel::series("6.12")?;
    let guest = Guest::new(&kernel)
        .modules(&["virtio_pci", "virtio_net"])?
        .programs(&["ip", "ethtool"])?
        .executable("offloads", &env::current_exe()?)?
        .link(&lab.host, TAP, MAC);
    let script = format!(
        "set -e
         ip link set eth0 up
         ip addr add {V4}/32 dev eth0
         ip addr add {V6}/128 dev eth0 nodad
         ip route add default via 169.254.1.1 dev eth0 onlink src {V4}
         ip route add default via fe80::1 dev eth0 src {V6}
         ethtool -k eth0 | grep -E '^(tx-checksumming|tcp-seg|tx-udp-seg)' | tr ':' '='
         offloads --ignored --exact --nocapture side_of_the_guest"
    );
    let mut table = Table::new();
    let report = thread::scope(|scope| -> Result<_> {
        let running = scope.spawn(move || guest.run(&script, LIMIT));
        let filled = fill(&lab, mode, &mut table);
        // Also when it has not come so far.
        let _ = order(&lab.net, "end");
        let report = running.join().expect("it does not panic")?;
        filled.with_context(|| report.console.clone())?;
        Ok(report)
    })?;
    ensure!(report.status == 0, "{}", report.console);
    for feature in ["tx-checksumming", "tcp-segmentation-offload"] {
        let value = report.value(feature)?.trim();
        ensure!(value == "on", "the guest's card has {feature} {value}");
    }
    table.whole(&format!(
        "transfers there and back of a virtio guest, {}",
        mode.name()
    ))
}

fn fill(lab: &Lab, mode: Mode, table: &mut Table) -> Result<()> {
    let deadline = Instant::now() + LIMIT / 2;
    while order(&lab.net, "ethtool tx on").is_err() {
        ensure!(Instant::now() < deadline, "the guest does not come up");
        thread::sleep(Duration::from_millis(300));
    }
    let db = lab.machine("db");
    let (v4, v6): (IpAddr, IpAddr) = (V4.parse()?, V6.parse()?);
    for (name, ends, host) in SETTINGS {
        obeyed(&lab.net, &format!("ethtool {ends}"))?;
        let machines = lab.machines().iter().filter(|machine| machine.plugged());
        for machine in machines {
            ethtool(&machine.ns, HOST0, ends)?;
            ethtool(&lab.host, machine.port(), host)?;
        }
        // As XDP programs cannot see what is left to be done.
        let network = if mode == Mode::Xdp { OFF } else { ends };
        ethtool(&lab.net, LAN, network)?;
        ethtool(&lab.host, UPLINK, host)?;
        for (station, ns, own4, own6) in [
            ("network", &lab.net, IpAddr::from(FAR4), IpAddr::from(FAR6)),
            ("machine", &db.ns, db.v4().into(), db.v6().into()),
            ("host", &lab.host, HOST4.into(), HOST6.into()),
        ] {
            for (own, guest) in [(own4, v4), (own6, v6)] {
                let family = if own.is_ipv4() { "IPv4" } else { "IPv6" };
                for traffic in [Traffic::Tcp, Traffic::Udp, Traffic::UdpSegments] {
                    let row = format!("virtio guest, {station}, {family}, {}", traffic.name());
                    let start = Instant::now();
                    let result = transfers(&lab.net, ns, own, guest, traffic);
                    let cell = format!("{} ms", start.elapsed().as_millis());
                    table.add(&row, name, result.map(|()| cell));
                }
            }
        }
    }
    Ok(())
}
