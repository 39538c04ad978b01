//! The kernel's neighbor tables, which everybody shares, and machines that fill them.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use netspawn_tests::{
    Attached, Capture, GATEWAY4, GATEWAY6, HOST0, HOST4, HOST6, LAN, Lab, Mode, Ns, Pinging, Spec,
    UPLINK, in_each_mode, send_frame, wait_ping, wait_until,
};

/// The machine that fills the table.
const OFFENDER: &str = "web";
/// Has prefixes on the link of the uplink.
const MANY: &str = "many";
/// Addresses of a flood, of each family. Without a budget all of them were entries, which
/// the machine on which the test runs has room for.
const FLOOD: u16 = 120;
/// Entries that the budget of one machine allows in the time of a test, and some that
/// were there before.
const FEW: usize = 70;
/// Packets in bulk.
const BULK: usize = 3_000;
/// For something that takes no time at all.
const SOON: Duration = Duration::from_secs(10);

fn unused4(number: u16) -> IpAddr {
    Ipv4Addr::new(203, 0, 113, 120 + number as u8).into()
}

fn unused6(number: u16) -> IpAddr {
    Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 1, 1, 0, number).into()
}

fn lab() -> Result<Lab> {
    Lab::builder()
        .usual_machines()
        .machine(
            Spec::new(MANY)
                .address("203.0.113.5")
                .address("2001:db8::5")
                .address("203.0.113.96/28")
                .address("2001:db8::ab00:0/112"),
        )
        .build()
}

/// Neighbors that the host has entries for on an interface.
fn entries(host: &Ns, interface: &str) -> Result<usize> {
    Ok(host
        .run(&format!("ip neigh show dev {interface}"))?
        .lines()
        .count())
}

fn dropped(lab: &Lab, machine: &str) -> Result<u64> {
    let list = lab.json("list")?;
    let machines = list.as_array().context("no list")?;
    let of = machines.iter().find(|entry| entry["name"] == machine);
    let drops = &of.context("no such machine")?["drops"];
    Ok(drops["neighbor_budget"].as_u64().unwrap_or(0))
}

/// A datagram from one of the machine's own addresses to each of these.
fn datagrams(from: &Ns, pairs: impl Iterator<Item = (IpAddr, IpAddr)>) -> Result<()> {
    for (own, to) in pairs {
        let socket = from.enter(|| Ok(UdpSocket::bind(SocketAddr::new(own, 0))?))?;
        // What was refused comes back as an error.
        drop(socket.send_to(b"anybody there?", SocketAddr::new(to, 9)));
    }
    Ok(())
}

/// Pings once: the first packet has to get through, however long it takes where the machine
/// is busy.
fn ping(from: &Ns, address: impl Into<IpAddr>) -> Result<()> {
    let address = address.into();
    from.run(&format!("ping -n -c 1 -W 10 {address}")).map(drop)
}

/// A flood from the offender to addresses that nobody has.
fn flood(lab: &Lab) -> Result<()> {
    let offender = lab.machine(OFFENDER);
    let (own4, own6) = (offender.v4().into(), offender.v6().into());
    datagrams(
        &offender.ns,
        (1..=FLOOD).map(|number| (own4, unused4(number))),
    )?;
    datagrams(
        &offender.ns,
        (1..=FLOOD).map(|number| (own6, unused6(number))),
    )
}

/// Gives the network's gateway one more address of each family, for a station that nobody
/// has spoken to.
fn station(lab: &Lab, number: u8) -> Result<[IpAddr; 2]> {
    let own4 = Ipv4Addr::new(203, 0, 113, 30 + number);
    let own6 = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 2, 2, 0, number.into());
    lab.net.run(&format!("ip addr add {own4}/32 dev {LAN}"))?;
    lab.net
        .run(&format!("ip addr add {own6}/128 dev {LAN} nodad"))?;
    Ok([own4.into(), own6.into()])
}

/// Sends a bulk of datagrams; all of them arrive.
fn bulk(lab: &Lab, from: &str, to: IpAddr) -> Result<()> {
    let mark = format!("bulk from {from} to {to}");
    let mut capture = Capture::incoming(&lab.net, LAN)?;
    let socket = lab.machine(from).ns.enter(|| {
        let any: IpAddr = match to {
            IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        Ok(UdpSocket::bind(SocketAddr::new(any, 0))?)
    })?;
    let mut arrived = 0;
    for _ in 0..BULK / 100 {
        for _ in 0..100 {
            // A port that nobody listens at is told of.
            drop(socket.send_to(mark.as_bytes(), SocketAddr::new(to, 9)));
        }
        // As much as the capture's buffer holds.
        arrived += 100;
        let all = wait_until(SOON, || {
            let heard = capture.frames().iter();
            heard
                .filter(|frame| frame.ends_with(mark.as_bytes()))
                .count()
                >= arrived
        });
        ensure!(all, "{mark}: not all of {arrived} have arrived");
    }
    Ok(())
}

fn one_machine_does_not_fill_the_neighbor_table(mode: Mode) -> Result<()> {
    let on = Attached::new(lab()?, mode)?;
    let lab = &on.lab;
    let offender = lab.machine(OFFENDER);
    let known = [IpAddr::from(GATEWAY4), GATEWAY6.into()];
    for address in known {
        wait_ping(&offender.ns, address, SOON)?;
    }
    let pings = [
        Pinging::start(&offender.ns, GATEWAY4)?,
        Pinging::start(&offender.ns, GATEWAY6)?,
    ];
    let before = entries(&lab.host, UPLINK)?;
    flood(lab)?;
    let after = entries(&lab.host, UPLINK)?;
    let drops = dropped(lab, OFFENDER)?;
    ensure!(after < before + FEW, "{before} entries, then {after}");
    ensure!(drops > u64::from(FLOOD), "{drops} dropped");

    // Everybody else, and the host, may find new neighbors at once.
    let new = [station(lab, 1)?, station(lab, 2)?, station(lab, 3)?];
    for (ns, addresses) in [&lab.machine("db").ns, &lab.machine("mail").ns, &lab.host]
        .into_iter()
        .zip(new)
    {
        for address in addresses {
            ping(ns, address).with_context(|| format!("{} to {address}", ns.name()))?;
        }
    }
    // Known ones are no matter of the budget, and it fills again.
    for address in known {
        bulk(lab, OFFENDER, address)?;
    }
    thread::sleep(Duration::from_secs(1));
    for address in station(lab, 4)? {
        ping(&offender.ns, address).with_context(|| format!("the offender to {address}"))?;
        bulk(lab, OFFENDER, address)?;
    }
    // A busy machine loses one now and then; a budget would let hardly any through.
    for ping in pings {
        let lost = ping.gaps()?;
        ensure!(lost.len() < 10, "a known neighbor lost {lost:?}");
    }
    for other in ["db", "mail"] {
        ensure!(dropped(lab, other)? == 0, "{other} pays for the offender");
    }
    Ok(())
}

fn budget_of_neighbors_holds_without_an_agent(mode: Mode) -> Result<()> {
    let on = Attached::new(lab()?, mode)?;
    let Attached { lab, agent } = on;
    let offender = lab.machine(OFFENDER);
    for address in [IpAddr::from(GATEWAY4), GATEWAY6.into()] {
        wait_ping(&offender.ns, address, SOON)?;
    }
    agent.kill()?;
    let before = entries(&lab.host, UPLINK)?;
    flood(&lab)?;
    let after = entries(&lab.host, UPLINK)?;
    ensure!(after < before + FEW, "{before} entries, then {after}");
    for address in station(&lab, 1)? {
        ping(&lab.machine("db").ns, address)?;
        bulk(&lab, "db", address)?;
    }
    // A station that has asked for the machine is known although the host never did.
    for (number, own) in [(2, IpAddr::from(offender.v4())), (3, offender.v6().into())] {
        let [asks4, asks6] = station(&lab, number)?;
        let from = if own.is_ipv4() { asks4 } else { asks6 };
        flood(&lab)?;
        lab.net.run("ip neigh flush all")?;
        lab.net
            .run(&format!("ping -n -c 1 -W 10 -I {from} {own}"))?;
    }
    Ok(())
}

/// Pings from a flood of a machine's addresses, which are all answered if they arrive.
fn pings(lab: &Lab, own: impl Fn(u16) -> Ipv6Addr, to: Ipv6Addr) -> Result<()> {
    let many = lab.machine(MANY);
    let (mac, gateway) = (many.ns.mac(HOST0)?, lab.host.mac(many.port())?);
    for number in 0..2 * FLOOD {
        let packet = etherparse::PacketBuilder::ethernet2(mac, gateway)
            .ipv6(own(number).octets(), to.octets(), 64)
            .icmpv6_echo_request(1, number);
        let mut frame = Vec::new();
        packet.write(&mut frame, b"anybody there?")?;
        send_frame(&many.ns, HOST0, &frame)?;
    }
    thread::sleep(Duration::from_millis(200));
    Ok(())
}

/// A machine with a prefix on the link has the host remember each address that it answers.
fn prefix_of_a_machine_does_not_fill_the_neighbor_table(mode: Mode) -> Result<()> {
    let on = Attached::new(lab()?, mode)?;
    let lab = &on.lab;
    let many = lab.machine(MANY);
    wait_ping(&many.ns, HOST6, SOON)?;
    let before = entries(&lab.host, UPLINK)?;
    let own = |number| Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0xab00, number);
    pings(lab, own, HOST6)?;
    let after = entries(&lab.host, UPLINK)?;
    ensure!(after < before + FEW, "{before} entries, then {after}");
    ensure!(dropped(lab, MANY)? > 0, "none is dropped");
    // The host answers the machine itself all the same, and others.
    for address in [IpAddr::from(HOST4), HOST6.into()] {
        ping(&many.ns, address)?;
        ping(&lab.machine("db").ns, address)?;
    }
    Ok(())
}

fn link_local(ns: &Ns, interface: &str) -> Result<Ipv6Addr> {
    let text = ns.run(&format!("ip -6 -o addr show dev {interface} scope link"))?;
    let word = text
        .split_whitespace()
        .find(|word| word.starts_with("fe80:"));
    let address = word.and_then(|word| word.split('/').next());
    Ok(address.context("no link-local address")?.parse()?)
}

/// The same with link-local addresses, which a machine has as many of as it likes.
fn link_local_addresses_do_not_fill_the_neighbor_table(mode: Mode) -> Result<()> {
    let on = Attached::new(lab()?, mode)?;
    let lab = &on.lab;
    let many = lab.machine(MANY);
    let port = link_local(&lab.host, many.port())?;
    let before = entries(&lab.host, many.port())?;
    let own = |number| Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0x77, number);
    pings(lab, own, port)?;
    let after = entries(&lab.host, many.port())?;
    ensure!(after < before + FEW, "{before} entries, then {after}");
    ensure!(after > before, "the host has answered nobody");
    ensure!(dropped(lab, MANY)? > 0, "none is dropped");
    Ok(())
}

in_each_mode! {
    one_machine_does_not_fill_the_neighbor_table
    budget_of_neighbors_holds_without_an_agent
    prefix_of_a_machine_does_not_fill_the_neighbor_table
    link_local_addresses_do_not_fill_the_neighbor_table
}
