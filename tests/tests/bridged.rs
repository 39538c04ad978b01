//! Machines whose ports are in one bridge of the host: what passes the guard is for the
//! host alone, and the bridge gives it to nobody else.

use std::{
    net::{Ipv4Addr, Ipv6Addr, UdpSocket},
    os::fd::AsRawFd as _,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use etherparse::PacketBuilder;
use netspawn_tests::{
    Attached, Capture, HOST0, Lab, Mode, in_each_mode, ping, send_frame, wait_until,
};

const BRIDGE: &str = "br0";
const SENDER: &str = "web";
/// Of other machines, in the same bridge.
const OTHERS: [&str; 2] = ["db", "mail"];
const SOON: Duration = Duration::from_secs(10);
const BROADCAST: [u8; 6] = [0xff; 6];
const SERVERS: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 1, 2);
const SERVERS_MAC: [u8; 6] = [0x33, 0x33, 0, 1, 0, 2];
/// A link-local address that the sender makes up.
const CLIENT: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0x66);

/// The usual machines in a bridge with an address of its own.
fn lab() -> Result<Lab> {
    let lab = Lab::usual()?;
    let host = &lab.host;
    host.run(&format!("ip link add {BRIDGE} type bridge forward_delay 0"))?;
    host.run(&format!("ip addr add 172.30.0.1/24 dev {BRIDGE}"))?;
    host.run(&format!("ip link set {BRIDGE} up"))?;
    for machine in lab.machines() {
        host.run(&format!("ip link set {} master {BRIDGE}", machine.port()))?;
    }
    host.settled(BRIDGE)?;
    Ok(lab)
}

/// A socket of the host's server, on the bridge alone.
fn server(lab: &Lab, address: &str) -> Result<UdpSocket> {
    let ifindex = lab.host.ifindex(BRIDGE)?;
    lab.host.enter(|| {
        let socket = UdpSocket::bind(address)?;
        let name = BRIDGE.as_bytes();
        // SAFETY: the option's value is as long as said.
        let result = unsafe {
            libc::setsockopt(
                socket.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_BINDTODEVICE,
                name.as_ptr().cast(),
                name.len() as libc::socklen_t,
            )
        };
        ensure!(result == 0, std::io::Error::last_os_error());
        if socket.local_addr()?.is_ipv6() {
            socket.join_multicast_v6(&SERVERS, ifindex)?;
        }
        socket.set_nonblocking(true)?;
        Ok(socket)
    })
}

/// Waits for a datagram with that content.
fn gets(socket: &UdpSocket, text: &str) -> bool {
    let mut buffer = [0; 2048];
    wait_until(
        SOON,
        || matches!(socket.recv(&mut buffer), Ok(length) if &buffer[..length] == text.as_bytes()),
    )
}

fn v4(source: [u8; 6], to_mac: [u8; 6], to: Ipv4Addr, text: &str) -> Result<Vec<u8>> {
    let packet = PacketBuilder::ethernet2(source, to_mac)
        .ipv4([0; 4], to.octets(), 64)
        .udp(68, 67);
    let mut frame = Vec::new();
    packet.write(&mut frame, text.as_bytes())?;
    Ok(frame)
}

fn v6(source: [u8; 6], to_mac: [u8; 6], to: Ipv6Addr, text: &str) -> Result<Vec<u8>> {
    let packet = PacketBuilder::ethernet2(source, to_mac)
        .ipv6(CLIENT.octets(), to.octets(), 64)
        .udp(546, 547);
    let mut frame = Vec::new();
    packet.write(&mut frame, text.as_bytes())?;
    Ok(frame)
}

/// What other machines hear, and the network.
struct Onlookers(Vec<(String, Capture)>);

impl Onlookers {
    fn of(lab: &Lab) -> Result<Self> {
        let machines = OTHERS.iter().map(|name| {
            let capture = Capture::incoming(&lab.machine(name).ns, HOST0)?;
            Ok(((*name).to_owned(), capture))
        });
        let mut all: Vec<_> = machines.collect::<Result<_>>()?;
        let network = Capture::incoming(&lab.net, netspawn_tests::LAN)?;
        all.push(("the network".to_owned(), network));
        Ok(Onlookers(all))
    }

    fn heard_nothing(&mut self, text: &str) -> Result<()> {
        for (name, capture) in &mut self.0 {
            let heard = capture.containing(text.as_bytes()).len();
            ensure!(heard == 0, "{name} has heard `{text}`");
        }
        Ok(())
    }
}

fn dhcp_goes_to_the_host_alone(lab: &Lab) -> Result<()> {
    let sender = lab.machine(SENDER);
    let own = sender.ns.mac(HOST0)?;
    let (server4, server6) = (server(lab, "0.0.0.0:67")?, server(lab, "[::]:547")?);
    let send = |frame: Result<Vec<u8>>| send_frame(&sender.ns, HOST0, &frame?);
    let mut onlookers = Onlookers::of(lab)?;

    send(v4(own, BROADCAST, Ipv4Addr::BROADCAST, "anybody, 4?"))?;
    ensure!(
        gets(&server4, "anybody, 4?"),
        "DHCPv4 does not reach the host"
    );
    send(v6(own, SERVERS_MAC, SERVERS, "anybody, 6?"))?;
    ensure!(
        gets(&server6, "anybody, 6?"),
        "DHCPv6 does not reach the host"
    );

    // What no client sends, to each machine by its own address, and to all.
    for name in OTHERS {
        let other = lab.machine(name);
        let to = other.ns.mac(HOST0)?;
        send(v4(own, to, Ipv4Addr::BROADCAST, "you, or anybody?"))?;
        send(v4(own, to, other.v4(), "you, or anybody?"))?;
        send(v4(own, BROADCAST, other.v4(), "you, or anybody?"))?;
        send(v6(own, to, SERVERS, "you, or anybody?"))?;
        send(v6(own, to, other.v6(), "you, or anybody?"))?;
        send(v6(own, SERVERS_MAC, other.v6(), "you, or anybody?"))?;
    }
    let all = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
    send(v6(own, [0x33, 0x33, 0, 0, 0, 1], all, "you, or anybody?"))?;

    // The server answers, by a frame of its own as servers do, to the client's address: it
    // is on its port alone.
    let mut client = Capture::incoming(&sender.ns, HOST0)?;
    let bridge = lab.host.mac(BRIDGE)?;
    let packet = PacketBuilder::ethernet2(bridge, own)
        .ipv4([172, 30, 0, 1], [172, 30, 0, 9], 64)
        .udp(67, 68);
    let mut offer = Vec::new();
    packet.write(&mut offer, b"an offer")?;
    send_frame(&lab.host, BRIDGE, &offer)?;
    let got = client.wait(SOON, |frame| frame.ends_with(b"an offer"));
    ensure!(got, "the client has got no offer");
    for text in ["anybody, 4?", "anybody, 6?", "you, or anybody?", "an offer"] {
        onlookers.heard_nothing(text)?;
    }
    Ok(())
}

fn dhcp_of_a_bridged_machine_goes_to_the_host_alone(mode: Mode) -> Result<()> {
    let on = Attached::new(lab()?, mode)?;
    dhcp_goes_to_the_host_alone(&on.lab)?;
    for name in OTHERS {
        ping(&on.lab.machine(SENDER).ns, on.lab.machine(name).v4())
            .with_context(|| name.to_owned())?;
    }
    let Attached { lab, agent } = on;
    agent.kill()?;
    dhcp_goes_to_the_host_alone(&lab).context("without an agent")
}

in_each_mode! {
    dhcp_of_a_bridged_machine_goes_to_the_host_alone
}
