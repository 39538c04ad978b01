//! Path MTU discovery through the host, and the ICMP errors that it lives on.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::fd::AsRawFd as _,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use etherparse::{
    Icmpv4Type, Icmpv6Type, IpFragOffset, IpHeaders, IpNumber, Ipv4Header, Ipv6Header, NetSlice,
    PacketBuilder, SlicedPacket, TransportSlice, icmpv4,
};
use netspawn_tests::{
    Agent, Attached, Capture, Checksums, FAR4, FAR6, GATEWAY4, GATEWAY6, HOST0, HOST4, HOST6, LAN,
    Lab, Machine, Mode, Ns, Offload, TapWire, UPLINK, all_reachable, in_each_mode, ping, ready_for,
    send_frame, udp, wait_until,
};

/// What an ICMP error says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Says {
    TooBig(u32),
    TimeExceeded,
    Unreachable,
}

/// An ICMP error, as a parser that is not ours reads it.
#[derive(Debug)]
struct Error {
    says: Says,
    from: IpAddr,
    quote: Vec<u8>,
}

fn error(frame: &[u8]) -> Option<Error> {
    let packet = SlicedPacket::from_ethernet(frame).ok()?;
    let from = match packet.net? {
        NetSlice::Ipv4(ip) => IpAddr::from(ip.header().source_addr()),
        NetSlice::Ipv6(ip) => IpAddr::from(ip.header().source_addr()),
        _ => return None,
    };
    let (says, quote) = match packet.transport? {
        TransportSlice::Icmpv4(icmp) => {
            let says = match icmp.icmp_type() {
                Icmpv4Type::DestinationUnreachable(
                    icmpv4::DestUnreachableHeader::FragmentationNeeded { next_hop_mtu },
                ) => Says::TooBig(next_hop_mtu.into()),
                Icmpv4Type::DestinationUnreachable(_) => Says::Unreachable,
                Icmpv4Type::TimeExceeded(_) => Says::TimeExceeded,
                _ => return None,
            };
            (says, icmp.payload().to_vec())
        }
        TransportSlice::Icmpv6(icmp) => {
            let says = match icmp.icmp_type() {
                Icmpv6Type::PacketTooBig { mtu } => Says::TooBig(mtu),
                Icmpv6Type::DestinationUnreachable(_) => Says::Unreachable,
                Icmpv6Type::TimeExceeded(_) => Says::TimeExceeded,
                _ => return None,
            };
            (says, icmp.payload().to_vec())
        }
        _ => return None,
    };
    Some(Error { says, from, quote })
}

fn errors(capture: &mut Capture) -> Vec<Error> {
    capture.frames().iter().filter_map(|f| error(f)).collect()
}

/// tcpdump's verdict on the errors alone.
fn checksums(capture: &mut Capture) -> Result<Checksums> {
    let told: Vec<_> = capture
        .frames()
        .iter()
        .filter(|frame| error(frame).is_some())
        .cloned()
        .collect();
    Checksums::of(&told)
}

fn both(machine: &Machine) -> [IpAddr; 2] {
    [machine.v4().into(), machine.v6().into()]
}

const FAR: [IpAddr; 2] = [IpAddr::V4(FAR4), IpAddr::V6(FAR6)];

/// The path MTU and the number of hops that tracepath finds.
fn tracepath(from: &Ns, to: IpAddr) -> Result<(u32, u32)> {
    let text = from
        .cmd("tracepath")
        .args(["-n", "-m", "6", &to.to_string()])
        .text()?;
    let result = text
        .lines()
        .find_map(|line| line.trim().strip_prefix("Resume: pmtu "))
        .with_context(|| format!("tracepath printed {text}"))?;
    let mut words = result.split_whitespace();
    let mut number = || words.by_ref().find_map(|word| word.parse().ok());
    let (Some(mtu), Some(hops)) = (number(), number()) else {
        anyhow::bail!(
            "tracepath to {to} from {} did not arrive\n{text}",
            from.name()
        )
    };
    Ok((mtu, hops))
}

/// MTUs of the uplink's network and of the machines' links.
fn sizes(mode: Mode) -> &'static [(u32, u32)] {
    match mode {
        Mode::Tc => &[
            (1500, 1400),
            (1500, 1280),
            (1280, 1500),
            (1400, 1500),
            (1500, 9000),
            (9000, 1500),
            (9000, 1280),
        ],
        // A veth takes an XDP program up to an MTU of 3,500 or so.
        Mode::Xdp => &[(1500, 1400), (1500, 1280), (1280, 1500), (1400, 1500)],
    }
}

fn tracepath_finds_the_smaller_mtu_of_each_way(mode: Mode) -> Result<()> {
    for &(uplink, port) in sizes(mode) {
        let lab = Lab::builder()
            .usual_machines()
            .uplink_mtu(uplink)
            .port_mtu(port)
            .build()?;
        let on = Attached::new(lab, mode)?;
        let lab = &on.lab;
        let (web, db) = (lab.machine("web"), lab.machine("db"));
        let mut heard = Capture::start(&lab.net, LAN)?;
        let mut heard_within = Capture::start(&web.ns, HOST0)?;
        for (family, far) in FAR.into_iter().enumerate() {
            let smaller = uplink.min(port);
            let [web_own, db_own] = [both(web)[family], both(db)[family]];
            let host: [IpAddr; 2] = [HOST4.into(), HOST6.into()];
            for (from, to, expected) in [
                (&lab.net, web_own, (smaller, 2)),
                (&web.ns, far, (smaller, 2)),
                (&web.ns, db_own, (port, 2)),
                (&lab.host, web_own, (smaller, 1)),
                // Not by way of the network.
                (&web.ns, host[family], (port, 1)),
            ] {
                let found = tracepath(from, to)?;
                ensure!(
                    found == expected,
                    "from {} to {to}, uplink {uplink}, machines {port}: {found:?}, not {expected:?}",
                    from.name()
                );
            }
        }
        Checksums::of(heard.frames())?.all_right(4)?;
        Checksums::of(heard_within.frames())?.all_right(4)?;
    }
    Ok(())
}

/// Sets the MTU of the host's side of a machine's link alone, as an overlay's or a
/// tunnel's would be smaller than what the machine believes. The machine itself keeps to
/// it when it sends, because a veth drops what is larger without a word.
fn narrow(lab: &Lab, machine: &Machine, mtu: u32) -> Result<()> {
    // What TCP offers to take is still as large as the link.
    let believed = machine.ns.sysctl(&format!("net/ipv6/conf/{HOST0}/mtu"))?;
    let believed: u32 = believed.parse()?;
    for (family, gateway, headers) in [("-4", "169.254.1.1", 40), ("-6", "fe80::1", 60)] {
        let onlink = if family == "-4" { "onlink" } else { "" };
        machine.ns.run(&format!(
            "ip {family} route replace default via {gateway} dev {HOST0} {onlink} mtu {mtu} advmss {}",
            believed - headers
        ))?;
    }
    lab.host
        .run(&format!("ip link set {} mtu {mtu}", machine.port()))
        .map(drop)
}

/// Sets the MTU of the host's way to the network, not of its uplink.
fn narrow_way_out(lab: &Lab, mtu: u32) -> Result<()> {
    for (family, gateway) in [("-4", IpAddr::from(GATEWAY4)), ("-6", GATEWAY6.into())] {
        lab.host.run(&format!(
            "ip {family} route replace default via {gateway} dev {UPLINK} mtu {mtu}"
        ))?;
    }
    Ok(())
}

fn changed_mtus_are_found(mode: Mode) -> Result<()> {
    const SOON: Duration = Duration::from_secs(5);
    let on = Attached::usual(mode)?;
    let lab = &on.lab;
    let (web, db) = (lab.machine("web"), lab.machine("db"));
    for family in 0..2 {
        assert_eq!(tracepath(&lab.net, both(web)[family])?.0, 1500);
    }
    narrow(lab, web, 1300)?;
    narrow_way_out(lab, 1400)?;
    for (family, far) in FAR.into_iter().enumerate() {
        let own = both(web)[family];
        for (from, to, mtu) in [
            (&lab.net, own, 1300),
            (&lab.host, own, 1300),
            (&db.ns, own, 1300),
            (&db.ns, far, 1400),
        ] {
            let mut found = String::new();
            let right = wait_until(SOON, || {
                let result = tracepath(from, to);
                found = format!("{result:?}");
                result.is_ok_and(|(found, _)| found == mtu)
            });
            ensure!(right, "from {} to {to}, {mtu}: {found}", from.name());
        }
    }
    Ok(())
}

/// A router of the network's makes the error; the data plane only carries it.
fn errors_of_routers_reach_machines(mode: Mode) -> Result<()> {
    let on = Attached::usual(mode)?;
    let lab = &on.lab;
    let web = lab.machine("web");
    let beyond = Ns::new("beyond")?;
    lab.net.run(&format!(
        "ip link add tun0 mtu 1280 type veth peer name tun1 mtu 1280 netns {}",
        beyond.path().display()
    ))?;
    lab.net.set_sysctl("net/ipv4/ip_forward", "1")?;
    lab.net.set_sysctl("net/ipv6/conf/all/forwarding", "1")?;
    for (ns, line) in [
        (&lab.net, "ip link set tun0 up"),
        (&beyond, "ip link set tun1 up"),
        (&lab.net, "ip addr add 192.0.2.1/24 dev tun0"),
        (&lab.net, "ip addr add 2001:db8:2::1/64 dev tun0"),
        (&beyond, "ip addr add 192.0.2.2/24 dev tun1"),
        (&beyond, "ip addr add 2001:db8:2::2/64 dev tun1"),
        (&beyond, "ip route add default via 192.0.2.1"),
        (&beyond, "ip route add default via 2001:db8:2::1"),
    ] {
        ns.run(line)?;
    }
    lab.net.settled("tun0")?;
    beyond.settled("tun1")?;
    let mut heard = Capture::start(&web.ns, HOST0)?;
    for to in ["192.0.2.2", "2001:db8:2::2"] {
        assert_eq!(tracepath(&web.ns, to.parse()?)?, (1280, 3), "{to}");
    }
    let found = errors(&mut heard);
    for gateway in [IpAddr::from(GATEWAY4), GATEWAY6.into()] {
        let said = |error: &&Error| error.from == gateway && error.says == Says::TooBig(1280);
        assert!(found.iter().any(|error| said(&error)), "{found:#?}");
    }
    // The other way the sender's own link is the narrow one.
    for own in both(web) {
        bulk(&beyond, &web.ns, own)?;
    }
    Ok(())
}

const BULK: usize = 32 << 20;
/// The least that a transfer must make for its stalls to be none: 32 MiB in 4 s.
const GOOD: Duration = Duration::from_secs(4);

/// Sends bulk one way by TCP with the offloads of both ends, and counts it.
fn bulk(from: &Ns, to: &Ns, address: IpAddr) -> Result<Duration> {
    let listener = to.enter(|| Ok(TcpListener::bind((address, 0))?))?;
    let port = listener.local_addr()?.port();
    let start = Instant::now();
    let words = || format!("TCP from {} to {address}", from.name());
    thread::scope(|scope| {
        let receiving = scope.spawn(|| -> Result<usize> {
            let (mut stream, _) = listener.accept()?;
            stream.set_read_timeout(Some(GOOD))?;
            let copied = std::io::copy(&mut stream, &mut std::io::sink())?;
            Ok(copied.try_into()?)
        });
        let sent = from.enter(|| {
            let to = SocketAddr::new(address, port);
            let mut stream = TcpStream::connect_timeout(&to, GOOD)?;
            stream.set_write_timeout(Some(GOOD))?;
            let chunk = vec![0x5a; 1 << 16];
            for _ in 0..BULK / chunk.len() {
                std::io::Write::write_all(&mut stream, &chunk)?;
            }
            Ok(())
        });
        if sent.is_err() {
            // Lets the other thread go on from `accept`.
            let _ = to.enter(|| Ok(TcpStream::connect((address, port))?));
        }
        let received = receiving.join().expect("no panic");
        sent.with_context(words)?;
        let received = received.with_context(words)?;
        ensure!(received == BULK, "{}: {received} bytes arrived", words());
        Ok(())
    })?;
    let elapsed = start.elapsed();
    ensure!(elapsed < GOOD, "{} took {elapsed:?}", words());
    Ok(elapsed)
}

fn bulk_tcp_goes_on_after_the_error(mode: Mode) -> Result<()> {
    let pairs: &[(u32, u32)] = match mode {
        Mode::Tc => &[(1500, 1400), (9000, 1500)],
        Mode::Xdp => &[(1500, 1400)],
    };
    for &(wide, small) in pairs {
        let lab = Lab::builder()
            .usual_machines()
            .uplink_mtu(wide)
            .port_mtu(wide)
            .build()?;
        narrow(&lab, lab.machine("web"), small)?;
        narrow_way_out(&lab, small)?;
        let on = Attached::new(lab, mode)?;
        let lab = &on.lab;
        let (web, db) = (lab.machine("web"), lab.machine("db"));
        for (family, far) in FAR.into_iter().enumerate() {
            let own = both(web)[family];
            for (from, interface, to, address) in [
                (&lab.net, LAN, &web.ns, own),
                (&db.ns, HOST0, &web.ns, own),
                (&db.ns, HOST0, &lab.net, far),
                (&lab.host, UPLINK, &web.ns, own),
            ] {
                let mut heard = Capture::start(from, interface)?;
                let elapsed = bulk(from, to, address)?;
                println!(
                    "{mode:?} {wide}/{small}: 32 MiB from {} to {address} in {elapsed:?}",
                    from.name()
                );
                let found = errors(&mut heard);
                let all = found.iter().all(|error| error.says == Says::TooBig(small));
                ensure!(
                    !found.is_empty() && all,
                    "{} was told {found:?}",
                    from.name()
                );
                checksums(&mut heard)?.all_right(1)?;
            }
        }
    }
    Ok(())
}

fn set_option(socket: &UdpSocket, level: i32, name: i32, value: i32) -> Result<()> {
    // SAFETY: the value is an int of the length said.
    let done = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            name,
            (&raw const value).cast(),
            size_of_val(&value).try_into()?,
        )
    };
    ensure!(
        done == 0,
        "socket option {name}: {}",
        std::io::Error::last_os_error()
    );
    Ok(())
}

/// The path MTU as a connected socket knows it.
fn known_mtu(socket: &UdpSocket) -> Result<i32> {
    let (level, name) = if socket.peer_addr()?.is_ipv4() {
        (libc::IPPROTO_IP, libc::IP_MTU)
    } else {
        (libc::IPPROTO_IPV6, libc::IPV6_MTU)
    };
    let (mut value, mut length) = (0_i32, 4);
    // SAFETY: value and length are of the sizes said.
    let done = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            level,
            name,
            (&raw mut value).cast(),
            &raw mut length,
        )
    };
    ensure!(done == 0, "{}", std::io::Error::last_os_error());
    Ok(value)
}

/// A socket that never fragments: with `probe`, not even what it knows to be too large.
fn whole(address: IpAddr, probe: bool) -> Result<UdpSocket> {
    let any: IpAddr = match address {
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind((any, 0))?;
    let (level, name) = if address.is_ipv4() {
        (libc::IPPROTO_IP, libc::IP_MTU_DISCOVER)
    } else {
        (libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER)
    };
    let value = if probe {
        libc::IP_PMTUDISC_PROBE
    } else {
        libc::IP_PMTUDISC_DO
    };
    set_option(&socket, level, name, value)?;
    Ok(socket)
}

const fn headers(address: IpAddr) -> usize {
    if address.is_ipv4() { 28 } else { 48 }
}

/// Sends datagrams of the full size until the socket knows better, `at once` of them in
/// one super-packet (UDP_SEGMENT); then as many of the size that fits, which must arrive.
fn udp_finds(from: &Ns, to: &Ns, address: IpAddr, small: u32, at_once: usize) -> Result<()> {
    const WIDE: usize = 1500;
    let receiver = to.enter(|| Ok(UdpSocket::bind((address, 0))?))?;
    receiver.set_read_timeout(Some(Duration::from_secs(2)))?;
    let port = receiver.local_addr()?.port();
    from.enter(|| {
        let socket = whole(address, false)?;
        socket.connect((address, port))?;
        let send = |mtu: usize| -> Result<std::io::Result<usize>> {
            let size = mtu - headers(address);
            if at_once > 1 {
                set_option(&socket, libc::SOL_UDP, libc::UDP_SEGMENT, size.try_into()?)?;
            }
            Ok(socket.send(&vec![0x5a; size * at_once]))
        };
        let told = wait_until(Duration::from_secs(2), || {
            // An error in wait is returned once, instead of sending.
            let _ = send(WIDE);
            known_mtu(&socket).is_ok_and(|mtu| mtu.cast_unsigned() == small)
        });
        ensure!(told, "the path MTU is {} to it", known_mtu(&socket)?);
        let size = small as usize;
        wait_until(Duration::from_secs(1), || {
            send(size).is_ok_and(|result| result.is_ok())
        });
        let mut buffer = vec![0; 1 << 16];
        for number in 0..at_once {
            let length = receiver
                .recv(&mut buffer)
                .with_context(|| format!("datagram {number} of {at_once}"))?;
            ensure!(length == size - headers(address), "{length} bytes came");
        }
        Ok(())
    })
    .with_context(|| format!("UDP from {} to {address}", from.name()))
}

fn udp_finds_the_mtu(mode: Mode) -> Result<()> {
    const SMALL: u32 = 1380;
    let lab = Lab::usual()?;
    narrow(&lab, lab.machine("web"), SMALL)?;
    narrow_way_out(&lab, SMALL)?;
    let on = Attached::new(lab, mode)?;
    let lab = &on.lab;
    let (web, db, mail) = (lab.machine("web"), lab.machine("db"), lab.machine("mail"));
    for (family, far) in FAR.into_iter().enumerate() {
        let own = both(web)[family];
        udp_finds(&lab.net, &web.ns, own, SMALL, 1)?;
        udp_finds(&db.ns, &web.ns, own, SMALL, 1)?;
        udp_finds(&db.ns, &lab.net, far, SMALL, 1)?;
        udp_finds(&lab.host, &web.ns, own, SMALL, 1)?;
        // Nobody has told this one yet.
        udp_finds(&mail.ns, &web.ns, own, SMALL, 8)?;
        udp_finds(&mail.ns, &lab.net, far, SMALL, 8)?;
    }
    // An offload that the network's end keeps from XDP.
    if mode == Mode::Tc {
        for own in both(web) {
            lab.net.run("ip route flush cache")?;
            lab.net.run("ip -6 route flush cache")?;
            udp_finds(&lab.net, &web.ns, own, SMALL, 8)?;
        }
    }
    Ok(())
}

/// A machine's drops of one reason.
fn drops(lab: &Lab, name: &str, reason: &str) -> Result<u64> {
    let list = lab.json("list")?;
    let machine = list
        .as_array()
        .and_then(|list| list.iter().find(|machine| machine["name"] == name))
        .with_context(|| format!("no {name} in {list:#}"))?;
    Ok(machine["drops"][reason].as_u64().unwrap_or(0))
}

fn too_large_packets_that_may_be_cut_are_dropped_without_an_error(mode: Mode) -> Result<()> {
    let lab = Lab::usual()?;
    narrow(&lab, lab.machine("web"), 1400)?;
    let on = Attached::new(lab, mode)?;
    let lab = &on.lab;
    let web = lab.machine("web");
    let mut heard = Capture::start(&lab.net, LAN)?;
    let large = |count: &str, cut: &str| {
        lab.net
            .cmd("ping")
            .args(["-n", "-c", count, "-i", "0.02", "-W", "0.2", "-s", "1472"])
            .args(["-M", cut, &web.v4().to_string()])
            .output()
    };
    assert_eq!(large("3", "dont")?.code(), 1);
    assert_eq!(drops(lab, "web", "too_big")?, 3);
    assert!(errors(&mut heard).is_empty());
    // The same with DF, of which ping says what came back.
    let output = large("1", "do")?;
    assert!(output.stdout.contains("(mtu = 1400)"), "{output:?}");
    assert_eq!(drops(lab, "web", "too_big")?, 4);
    assert_eq!(errors(&mut heard).len(), 1);
    ping(&lab.net, web.v4())
}

/// Sends datagrams that are too large for `address` as fast as it goes, for half a second.
fn flood(from: &Ns, address: IpAddr) -> Result<(usize, Duration)> {
    from.enter(|| {
        let socket = whole(address, true)?;
        let payload = vec![0x5a; 1500 - headers(address)];
        let start = Instant::now();
        let mut sent = 0;
        while start.elapsed() < Duration::from_millis(500) {
            sent += usize::from(socket.send_to(&payload, (address, 9)).is_ok());
        }
        Ok((sent, start.elapsed()))
    })
}

fn errors_are_limited_for_each_machine(mode: Mode) -> Result<()> {
    const BURST: usize = 50;
    const RATE: f64 = 100.0;
    for family in 0..2 {
        let lab = Lab::usual()?;
        for machine in ["web", "db"] {
            narrow(&lab, lab.machine(machine), 1400)?;
        }
        let on = Attached::new(lab, mode)?;
        let lab = &on.lab;
        let own = both(lab.machine("web"))[family];
        // Learns link-layer addresses, so that the flood is one from its start.
        for machine in lab.machines() {
            ping(&lab.net, both(machine)[family])?;
        }
        let mut heard = Capture::incoming(&lab.net, LAN)?;
        let (sent, elapsed) = flood(&lab.net, own)?;
        let count = errors(&mut heard).len();
        let most = BURST + (RATE * elapsed.as_secs_f64()).ceil() as usize + 2;
        let least = BURST + (RATE * 0.8 * elapsed.as_secs_f64()) as usize;
        println!("{mode:?} {own}: {count} errors about {sent} datagrams in {elapsed:?}");
        ensure!(sent > 10 * most, "only {sent} datagrams were sent");
        ensure!(
            (least..=most).contains(&count),
            "{count} errors about {sent} datagrams in {elapsed:?}"
        );
        assert!(drops(lab, "web", "too_big")? >= sent as u64);
        // While one has used up its own, another has all of its.
        heard.clear();
        flood_some(&lab.net, own, 200)?;
        let other = both(lab.machine("db"))[family];
        flood_some(&lab.net, other, 20)?;
        let about = |error: &Error, address: IpAddr| {
            let octets = match address {
                IpAddr::V4(address) => address.octets().to_vec(),
                IpAddr::V6(address) => address.octets().to_vec(),
            };
            error.quote.windows(octets.len()).any(|part| part == octets)
        };
        let found = errors(&mut heard);
        let count = found.iter().filter(|error| about(error, other)).count();
        assert_eq!(count, 20, "of db's");
        let count = found.iter().filter(|error| about(error, own)).count();
        assert!(count < 20, "{count} of web's");
    }
    Ok(())
}

fn flood_some(from: &Ns, address: IpAddr, count: usize) -> Result<()> {
    from.enter(|| {
        let socket = whole(address, true)?;
        let payload = vec![0x5a; 1500 - headers(address)];
        for _ in 0..count {
            socket.send_to(&payload, (address, 9))?;
        }
        Ok(())
    })
}

/// Link-layer addresses of a frame, from and to.
type Macs = ([u8; 6], [u8; 6]);

fn ipv4(macs: Macs, header: Ipv4Header, protocol: IpNumber, payload: &[u8]) -> Result<Vec<u8>> {
    let mut frame = Vec::new();
    PacketBuilder::ethernet2(macs.0, macs.1)
        .ip(IpHeaders::Ipv4(header, Default::default()))
        .write(&mut frame, protocol, payload)?;
    Ok(frame)
}

fn ipv6(macs: Macs, header: Ipv6Header, protocol: IpNumber, payload: &[u8]) -> Result<Vec<u8>> {
    let mut frame = Vec::new();
    PacketBuilder::ethernet2(macs.0, macs.1)
        .ip(IpHeaders::Ipv6(header, Default::default()))
        .write(&mut frame, protocol, payload)?;
    Ok(frame)
}

/// Frames that die on the way and that an error is due about, or not.
struct Doomed {
    what: &'static str,
    frame: Vec<u8>,
    due: bool,
}

/// The Internet checksum (RFC 1071), for messages that tcpdump is to find nothing wrong in.
fn sum16(start: u64, bytes: &[u8]) -> u16 {
    let words = bytes
        .chunks(2)
        .map(|pair| u64::from(pair[0]) << 8 | u64::from(pair.get(1).copied().unwrap_or(0)));
    let mut sum = start + words.sum::<u64>();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

/// The sum of a pseudo-header, which is what a transport checksum that is left to the
/// device holds (RFC 9293 3.1, RFC 8200 8.1).
fn pseudo_sum(from: IpAddr, to: IpAddr, protocol: u8, length: usize) -> u16 {
    let octets = |address| match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    };
    let addresses = [octets(from), octets(to)].concat();
    sum16(u64::from(protocol) + length as u64, &addresses)
}

/// An ICMP or ICMPv6 message of 40 bytes without a meaning; `pseudo` is what its
/// checksum begins with.
fn icmp(kind: u8, mark: u8, pseudo: u16) -> Vec<u8> {
    let mut message = [&[kind, 0, 0, 0, 0, 0, 0, 0][..], &[mark; 32]].concat();
    let check = !sum16(pseudo.into(), &message);
    message[2..4].copy_from_slice(&check.to_be_bytes());
    message
}

/// IPv4 with a hop left too few. Payloads begin with something of their own.
fn doomed4(macs: Macs, from: Ipv4Addr, to: Ipv4Addr) -> Result<Vec<Doomed>> {
    let header = |protocol, length: usize| {
        Ipv4Header::new(
            length.try_into().unwrap_or(u16::MAX),
            1,
            protocol,
            from.octets(),
            to.octets(),
        )
    };
    let udp = |mark: u8| [&[0x40, mark, 0, 9, 0, 24, 0, 0][..], &[mark; 16]].concat();
    let mut all = Vec::new();
    let mut add = |what, due, header: Ipv4Header, protocol, payload: &[u8]| -> Result<()> {
        let frame = ipv4(macs, header, protocol, payload)?;
        all.push(Doomed { what, frame, due });
        Ok(())
    };
    let fragment = |more: bool, offset: u16| -> Result<Ipv4Header> {
        let mut header = header(IpNumber::UDP, 24)?;
        header.dont_fragment = false;
        header.more_fragments = more;
        header.fragment_offset = IpFragOffset::try_new(offset)?;
        Ok(header)
    };
    add(
        "a datagram",
        true,
        header(IpNumber::UDP, 24)?,
        IpNumber::UDP,
        &udp(1),
    )?;
    add(
        "a first fragment",
        true,
        fragment(true, 0)?,
        IpNumber::UDP,
        &udp(2),
    )?;
    add(
        "a later fragment",
        false,
        fragment(true, 1)?,
        IpNumber::UDP,
        &udp(3),
    )?;
    add(
        "a last fragment",
        false,
        fragment(false, 9)?,
        IpNumber::UDP,
        &udp(4),
    )?;
    for (what, kind, due) in [
        ("an echo request", 8, true),
        ("an echo reply", 0, true),
        ("unreachable", 3, false),
        ("source quench", 4, false),
        ("redirect", 5, false),
        ("time exceeded", 11, false),
        ("parameter problem", 12, false),
    ] {
        let payload = icmp(kind, 0x10 + kind, 0);
        add(
            what,
            due,
            header(IpNumber::ICMP, 40)?,
            IpNumber::ICMP,
            &payload,
        )?;
    }
    Ok(all)
}

/// As [`doomed4`], over IPv6.
fn doomed6(macs: Macs, from: Ipv6Addr, to: Ipv6Addr) -> Result<Vec<Doomed>> {
    let header = |next, length: usize| -> Result<Ipv6Header> {
        Ok(Ipv6Header {
            payload_length: length.try_into()?,
            next_header: next,
            hop_limit: 1,
            source: from.octets(),
            destination: to.octets(),
            ..Default::default()
        })
    };
    let udp = |mark: u8| [&[0x40, mark, 0, 9, 0, 24, 0xff, 0xff][..], &[mark; 16]].concat();
    let fragment = |next: IpNumber, offset: u16, rest: &[u8]| {
        let [high, low] = (offset << 3 | 1).to_be_bytes();
        [&[next.0, 0, high, low, 0, 0, 0, 7][..], rest].concat()
    };
    // Options that are passed over, as RFC 8200 4.2 has them.
    let options = |next: IpNumber, rest: &[u8]| [&[next.0, 0, 1, 4, 0, 0, 0, 0][..], rest].concat();
    const V6_FRAGMENT: IpNumber = IpNumber::IPV6_FRAGMENTATION_HEADER;
    const V6_OPTIONS: IpNumber = IpNumber::IPV6_DESTINATION_OPTIONS;
    let pseudo = pseudo_sum(from.into(), to.into(), 58, 40);
    let mut all = Vec::new();
    let mut add = |what, due, next: IpNumber, payload: &[u8]| -> Result<()> {
        let frame = ipv6(macs, header(next, payload.len())?, next, payload)?;
        all.push(Doomed { what, frame, due });
        Ok(())
    };
    let (u, i) = (IpNumber::UDP, IpNumber::IPV6_ICMP);
    add("a datagram", true, u, &udp(1))?;
    add(
        "a first fragment",
        true,
        V6_FRAGMENT,
        &fragment(u, 0, &udp(2)),
    )?;
    add(
        // RFC 4443 2.4 (e) does not exempt them, and the kernel tells.
        "a later fragment",
        true,
        V6_FRAGMENT,
        &fragment(u, 1, &udp(3)),
    )?;
    add(
        "options before a datagram",
        true,
        V6_OPTIONS,
        &options(u, &udp(4)),
    )?;
    for (what, kind, due) in [
        ("an echo request", 128, true),
        ("an echo reply", 129, true),
        ("unreachable", 1, false),
        ("packet too big", 2, false),
        ("time exceeded", 3, false),
        ("parameter problem", 4, false),
        ("an unknown error", 100, false),
        ("a redirect", 137, false),
    ] {
        add(what, due, i, &icmp(kind, kind ^ 0x20, pseudo))?;
    }
    let hidden = options(i, &icmp(1, 0x71, pseudo));
    add("unreachable behind options", false, V6_OPTIONS, &hidden)?;
    let hidden = fragment(i, 0, &icmp(1, 0x72, pseudo));
    add(
        "unreachable in a first fragment",
        false,
        V6_FRAGMENT,
        &hidden,
    )?;
    Ok(all)
}

/// Sends them from one station and checks which it is told about.
fn send_doomed(ns: &Ns, interface: &str, all: &[Doomed], teller: IpAddr) -> Result<()> {
    let mut heard = Capture::incoming(ns, interface)?;
    for doomed in all {
        send_frame(ns, interface, &doomed.frame)?;
    }
    let due = all.iter().filter(|doomed| doomed.due).count();
    wait_until(Duration::from_secs(1), || errors(&mut heard).len() >= due);
    let found = errors(&mut heard);
    for doomed in all {
        // What is quoted is as it was sent, but for what hops change.
        let told = |error: &&Error| {
            error
                .quote
                .ends_with(&doomed.frame[doomed.frame.len() - 16..])
        };
        let told: Vec<_> = found.iter().filter(told).collect();
        ensure!(
            told.len() == usize::from(doomed.due),
            "{} about {}: {told:?}",
            told.len(),
            doomed.what
        );
        for error in told {
            ensure!(
                error.says == Says::TimeExceeded && error.from == teller,
                "{}: {error:?}",
                doomed.what
            );
        }
    }
    ensure!(found.len() == due, "{found:#?}");
    checksums(&mut heard)?.all_right(due)
}

fn errors_are_not_told_about_errors_nor_later_ipv4_fragments(mode: Mode) -> Result<()> {
    let on = Attached::usual(mode)?;
    let lab = &on.lab;
    let (web, db) = (lab.machine("web"), lab.machine("db"));
    let macs = (lab.net.mac(LAN)?, lab.host.mac(UPLINK)?);
    let inward = doomed4(macs, GATEWAY4, web.v4())?;
    send_doomed(&lab.net, LAN, &inward, HOST4.into()).context("IPv4 from the network")?;
    let inward = doomed6(macs, GATEWAY6, web.v6())?;
    send_doomed(&lab.net, LAN, &inward, HOST6.into()).context("IPv6 from the network")?;
    let macs = (db.ns.mac(HOST0)?, lab.host.mac(db.port())?);
    let outward = doomed4(macs, db.v4(), FAR4)?;
    send_doomed(&db.ns, HOST0, &outward, HOST4.into()).context("IPv4 from a guest")?;
    // A guest's redirects are a router's, which it is not.
    let mut outward = doomed6(macs, db.v6(), FAR6)?;
    outward.retain(|doomed| doomed.what != "a redirect");
    send_doomed(&db.ns, HOST0, &outward, HOST6.into()).context("IPv6 from a guest")
}

fn errors_are_not_told_about_multicast(mode: Mode) -> Result<()> {
    let on = Attached::usual(mode)?;
    let lab = &on.lab;
    let web = lab.machine("web");
    let (gateway, uplink) = (lab.net.mac(LAN)?, lab.host.mac(UPLINK)?);
    let (own, port) = (web.ns.mac(HOST0)?, lab.host.mac(web.port())?);
    let mut heard = Capture::incoming(&lab.net, LAN)?;
    let mut heard_within = Capture::incoming(&web.ns, HOST0)?;
    let group4 = Ipv4Addr::new(233, 252, 0, 1);
    let group6: Ipv6Addr = "ff05::1:3".parse()?;
    let group_mac4 = [1, 0, 0x5e, 0x7c, 0, 1];
    let group_mac6 = [0x33, 0x33, 0, 1, 0, 3];
    let everybody = [0xff; 6];
    // Groups by either kind of address, and stations that nobody could answer.
    let mut inward = Vec::new();
    for (to4, to6, mac4, mac6) in [
        (group4, group6, group_mac4, group_mac6),
        (group4, group6, uplink, uplink),
        (web.v4(), web.v6(), everybody, group_mac6),
    ] {
        inward.extend(doomed4((gateway, mac4), GATEWAY4, to4)?);
        inward.extend(doomed6((gateway, mac6), GATEWAY6, to6)?);
    }
    let macs = (gateway, uplink);
    for nobody in [[0, 0, 0, 0], [127, 0, 0, 1], [224, 0, 0, 1], [255; 4]] {
        inward.extend(doomed4(macs, nobody.into(), web.v4())?);
    }
    for nobody in ["::", "::1", "ff02::1"] {
        inward.extend(doomed6(macs, nobody.parse()?, web.v6())?);
    }
    for doomed in &inward {
        send_frame(&lab.net, LAN, &doomed.frame)?;
    }
    for (to4, to6, mac4, mac6) in [
        (group4, group6, group_mac4, group_mac6),
        (group4, group6, port, port),
        (FAR4, FAR6, everybody, group_mac6),
    ] {
        let frames4 = doomed4((own, mac4), web.v4(), to4)?;
        let frames6 = doomed6((own, mac6), web.v6(), to6)?;
        for doomed in frames4.iter().chain(&frames6) {
            send_frame(&web.ns, HOST0, &doomed.frame)?;
        }
    }
    // What was sent is dealt with before the answers to these return.
    ping(&lab.net, web.v4())?;
    ping(&web.ns, FAR6)?;
    assert!(errors(&mut heard).is_empty(), "{:#?}", errors(&mut heard));
    let within = errors(&mut heard_within);
    assert!(within.is_empty(), "{within:#?}");
    Ok(())
}

/// With no sender leaving its checksums to a device, tcpdump judges all of them.
fn no_bad_checksum_anywhere(mode: Mode) -> Result<()> {
    let lab = Lab::builder().usual_machines().build()?;
    ready_for(&lab, mode)?;
    let ports = lab
        .machines()
        .iter()
        .map(|machine| (&lab.host, machine.port()));
    for (ns, interface) in ports.chain([(&lab.net, LAN), (&lab.host, UPLINK)]) {
        ns.run(&format!("ethtool -K {interface} tx off gro off"))?;
    }
    for machine in lab.machines() {
        // Without GRO it has no NAPI and XDP cannot deliver.
        let gro = if mode == Mode::Xdp { "on" } else { "off" };
        let line = format!("ethtool -K {HOST0} tx off gro {gro}");
        machine.ns.run(&line)?;
    }
    let on = Attached::new(lab, mode)?;
    let lab = &on.lab;
    let mut captures = vec![Capture::incoming(&lab.net, LAN)?];
    for machine in lab.machines() {
        captures.push(Capture::incoming(&machine.ns, HOST0)?);
    }
    let web = lab.machine("web");
    for size in [1, 1400, 4000] {
        for (own, far) in both(web).into_iter().zip(FAR) {
            udp(&lab.net, &web.ns, own, size)?;
            udp(&web.ns, &lab.net, far, size)?;
        }
    }
    all_reachable(lab)?;
    narrow(lab, web, 1400)?;
    narrow_way_out(lab, 1400)?;
    for (own, far) in both(web).into_iter().zip(FAR) {
        wait_until(Duration::from_secs(5), || {
            tracepath(&lab.net, own).is_ok_and(|(mtu, _)| mtu == 1400)
        });
        tracepath(&lab.machine("db").ns, far)?;
    }
    // Nobody answers here.
    lab.host.run("ip route add unreachable 192.0.2.0/24")?;
    lab.host
        .run("ip -6 route add unreachable 2001:db8:2::/64")?;
    let refused = wait_until(Duration::from_secs(5), || {
        ["192.0.2.9", "2001:db8:2::9"].iter().all(|address| {
            let output = web.ns.run(&format!("ping -n -c 1 -W 0.2 {address}"));
            output.is_err_and(|error| error.to_string().contains("nreachable"))
        })
    });
    assert!(refused, "no error about a route that refuses");
    // A capture ends with its interface.
    captures[3].frames();
    lab.unplug(lab.machine("mail"))?;
    wait_until(Duration::from_secs(5), || {
        let output = lab.net.run("ping -n -c 1 -W 0.2 2001:db8::4");
        output.is_err_and(|error| error.to_string().contains("nreachable"))
    });
    for (place, (capture, least)) in captures.iter_mut().zip([20, 20, 10, 5]).enumerate() {
        let verdict = Checksums::of(capture.frames())?;
        verdict.all_right(least)?;
        println!(
            "{mode:?}: {} frames, {} ICMP",
            verdict.frames, verdict.right
        );
        // What GRO has put together, which XDP needs in the machines, has no checksum.
        if mode == Mode::Tc || place == 0 {
            assert_eq!(verdict.transport, [""; 0], "of {} frames", verdict.frames);
        }
    }
    Ok(())
}

const TCP_CHECK: u16 = 16;
const UDP_CHECK: u16 = 6;

/// A frame as a card with offloads hands it over.
fn offloaded(
    macs: Macs,
    (from, to): (IpAddr, IpAddr),
    tcp: bool,
    size: usize,
    hops: u8,
) -> Result<(Vec<u8>, u16)> {
    let mut frame = Vec::new();
    let ethernet = PacketBuilder::ethernet2(macs.0, macs.1);
    let step = match (from, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => ethernet.ipv4(from.octets(), to.octets(), hops),
        (IpAddr::V6(from), IpAddr::V6(to)) => ethernet.ipv6(from.octets(), to.octets(), hops),
        _ => anyhow::bail!("{from} and {to}"),
    };
    let payload: Vec<u8> = (0..size).map(|n| (n * 7 % 251) as u8).collect();
    if tcp {
        step.tcp(4000, 4001, 1, 1000)
            .ack(1)
            .write(&mut frame, &payload)?;
    } else {
        step.udp(4000, 4001).write(&mut frame, &payload)?;
    }
    let start = if from.is_ipv4() { 34 } else { 54 };
    Ok((frame, start))
}

/// Leaves the transport checksum to the device.
fn leave(frame: &mut [u8], start: u16, field: u16, (from, to): (IpAddr, IpAddr)) {
    let at = usize::from(start + field);
    let protocol = if field == TCP_CHECK { 6 } else { 17 };
    let sum = pseudo_sum(from, to, protocol, frame.len() - usize::from(start));
    frame[at..at + 2].copy_from_slice(&sum.to_be_bytes());
}

/// A card that leaves checksums undone in what it receives, and whose driver has the kernel
/// fill them in before it sends.
#[test]
fn error_out_of_a_card_without_offloads_has_right_checksums() -> Result<()> {
    const CARD: &str = "card0";
    let lab = Lab::usual()?;
    narrow(&lab, lab.machine("web"), 1400)?;
    let wire = TapWire::new(&lab.host, CARD)?;
    let (far4, far6): (IpAddr, IpAddr) = ("192.0.2.1".parse()?, "2001:db8:2::1".parse()?);
    for address in ["192.0.2.10/24", "2001:db8:2::10/64"] {
        lab.host.run(&format!("ip addr add {address} dev {CARD}"))?;
    }
    lab.host.settled(CARD)?;
    let _agent = Agent::start(&lab, &format!("{CARD} --mode tc"))?;
    let web = lab.machine("web");
    let macs = ([2, 0, 0, 0, 0, 9], lab.host.mac(CARD)?);
    let mut sent = Vec::new();
    for addresses in [(far4, web.v4().into()), (far6, web.v6().into())] {
        let v6 = addresses.0.is_ipv6();
        let whole_size = if v6 { 1440 } else { 1460 };
        // A super-packet; one segment; a datagram; the same with a right checksum.
        let (mut frame, start) = offloaded(macs, addresses, true, 20_000, 64)?;
        leave(&mut frame, start, TCP_CHECK, addresses);
        let size = whole_size as u16;
        sent.push((frame, Offload::Segments { start, size, v6 }));
        for (tcp, field, hops) in [
            (true, TCP_CHECK, 64),
            (false, UDP_CHECK, 64),
            // Short and odd, and so quoted whole.
            (true, TCP_CHECK, 1),
            (false, UDP_CHECK, 1),
        ] {
            let size = if hops == 1 { 33 } else { whole_size };
            let (frame, start) = offloaded(macs, addresses, tcp, size, hops)?;
            sent.push((frame.clone(), Offload::None));
            let mut frame = frame;
            leave(&mut frame, start, field, addresses);
            sent.push((frame, Offload::Checksum { start, field }));
        }
    }
    let mut told = Vec::new();
    let mut wrong = Vec::new();
    for (frame, offload) in &sent {
        wire.send(frame, *offload)?;
        let mut found = None;
        wait_until(Duration::from_secs(1), || {
            while let Some(frame) = wire.receive() {
                if error(&frame).is_some() {
                    found = Some(frame);
                }
            }
            found.is_some()
        });
        let length = frame.len();
        let what = format!("a frame of {length} bytes, {offload:?}");
        let error = found.with_context(|| format!("no error about {what}"))?;
        let verdict = Checksums::of(std::slice::from_ref(&error))?;
        if let Err(error) = verdict.all_right(1) {
            wrong.push(format!("{what}: {error}"));
        }
        told.push(error);
    }
    ensure!(wrong.is_empty(), "of {}: {wrong:#?}", sent.len());
    let verdict = Checksums::of(&told)?;
    verdict.all_right(sent.len())?;
    println!("{} errors, all right", verdict.right);
    Ok(())
}

/// Veths that fill checksums in when they send, as a card does.
fn error_where_the_way_back_fills_in_has_right_checksums(mode: Mode) -> Result<()> {
    let lab = Lab::usual()?;
    narrow(&lab, lab.machine("web"), 1400)?;
    narrow_way_out(&lab, 1400)?;
    for machine in ["web", "db"] {
        let port = lab.machine(machine).port();
        lab.host.run(&format!("ethtool -K {port} tx off"))?;
    }
    lab.host.run(&format!("ethtool -K {UPLINK} tx off"))?;
    let on = Attached::new(lab, mode)?;
    let lab = &on.lab;
    let (web, db) = (lab.machine("web"), lab.machine("db"));
    for (family, far) in FAR.into_iter().enumerate() {
        let own = both(web)[family];
        for (from, interface, to, address) in [
            (&lab.net, LAN, &web.ns, own),
            (&db.ns, HOST0, &web.ns, own),
            (&db.ns, HOST0, &lab.net, far),
        ] {
            let mut heard = Capture::incoming(from, interface)?;
            let done = bulk(from, to, address);
            checksums(&mut heard)?
                .all_right(1)
                .with_context(|| format!("to {} about packets for {address}", from.name()))?;
            done?;
        }
    }
    Ok(())
}

in_each_mode! {
    tracepath_finds_the_smaller_mtu_of_each_way
    changed_mtus_are_found
    errors_of_routers_reach_machines
    bulk_tcp_goes_on_after_the_error
    udp_finds_the_mtu
    too_large_packets_that_may_be_cut_are_dropped_without_an_error
    errors_are_limited_for_each_machine
    errors_are_not_told_about_errors_nor_later_ipv4_fragments
    errors_are_not_told_about_multicast
    no_bad_checksum_anywhere
    error_where_the_way_back_fills_in_has_right_checksums
}
