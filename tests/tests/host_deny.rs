//! `host = "deny"`: machines do not reach the host, but answer it.

use std::{
    fs,
    net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use etherparse::PacketBuilder;
use netspawn_tests::{
    Attached, HOST0, HOST4, HOST6, Lab, Machine, Mode, in_each_mode, ping, send_frame, tcp, udp,
    unreachable, wait_until,
};

const SOON: Duration = Duration::from_secs(10);
/// For what does not come.
const A_WHILE: Duration = Duration::from_millis(500);
const BYTES: usize = 1 << 20;

fn attached(mode: Mode) -> Result<Attached> {
    let lab = Lab::usual()?;
    fs::write(
        lab.config_dir().join("netspawn.toml"),
        "[policy]\nhost = \"deny\"\n",
    )?;
    Attached::new(lab, mode)
}

fn own(machine: &Machine) -> [IpAddr; 2] {
    [machine.v4().into(), machine.v6().into()]
}

fn denied(lab: &Lab) -> Result<u64> {
    let count = lab.json("counters")?["dropped"]["host_denied"].as_u64();
    count.context("counters have no host_denied")
}

/// Whether the host is told that nobody listens at a machine's port.
fn is_refused(lab: &Lab, address: IpAddr) -> Result<bool> {
    let any: IpAddr = match address {
        IpAddr::V4(_) => [0; 4].into(),
        IpAddr::V6(_) => [0; 16].into(),
    };
    lab.host.enter(|| {
        let socket = UdpSocket::bind(SocketAddr::new(any, 0))?;
        socket.connect(SocketAddr::new(address, 9))?;
        socket.set_read_timeout(Some(SOON))?;
        socket.send(b"anybody there?")?;
        let error = socket.recv(&mut [0; 100]).err();
        Ok(error.is_some_and(|error| error.kind() == std::io::ErrorKind::ConnectionRefused))
    })
}

/// An exchange by a socket that is not connected, from a port that is bound.
fn exchange(lab: &Lab, machine: &Machine, address: IpAddr) -> Result<()> {
    let server = machine
        .ns
        .enter(|| Ok(UdpSocket::bind(SocketAddr::new(address, 7))?))?;
    let echo = thread::spawn(move || -> Result<()> {
        server.set_read_timeout(Some(SOON))?;
        let mut buffer = [0; 100];
        let (length, from) = server.recv_from(&mut buffer)?;
        server.send_to(&buffer[..length], from)?;
        Ok(())
    });
    let any: IpAddr = match address {
        IpAddr::V4(_) => [0; 4].into(),
        IpAddr::V6(_) => [0; 16].into(),
    };
    let answer = lab.host.enter(|| {
        let socket = UdpSocket::bind(SocketAddr::new(any, 5353))?;
        socket.set_read_timeout(Some(SOON))?;
        socket.send_to(b"who are you?", SocketAddr::new(address, 7))?;
        let mut buffer = [0; 100];
        let (length, _) = socket.recv_from(&mut buffer)?;
        Ok(buffer[..length].to_vec())
    })?;
    ensure!(answer == b"who are you?", "{answer:?}");
    echo.join().expect("the server does not panic")
}

fn machines_answer_the_host(mode: Mode) -> Result<()> {
    let on = attached(mode)?;
    let lab = &on.lab;
    let web = lab.machine("web");
    for address in own(web) {
        ping(&lab.host, address).context("ping")?;
        tcp(&lab.host, &web.ns, address, BYTES)?;
        udp(&lab.host, &web.ns, address, 1000)?;
        exchange(lab, web, address).with_context(|| format!("{address}, unconnected"))?;
        ensure!(is_refused(lab, address)?, "{address} refuses nothing");
    }
    lab.host
        .run(&format!("ping -n -c 1 -W 5 -I eth0 {}", web.v4()))
        .context("bound to the uplink")?;
    // By a route of the host's own, which does not pass the uplink.
    let db = lab.machine("db");
    lab.host
        .run(&format!("ip route add {}/32 dev {}", db.v4(), db.port()))?;
    tcp(&lab.host, &db.ns, db.v4(), BYTES).context("by the host's own route")?;
    Ok(())
}

fn machines_do_not_reach_the_host(mode: Mode) -> Result<()> {
    let on = attached(mode)?;
    let lab = &on.lab;
    let web = lab.machine("web");
    let listener = lab.host.enter(|| Ok(TcpListener::bind("[::]:80")?))?;
    listener.set_nonblocking(true)?;
    // What the host has begun opens nothing else.
    ping(&lab.host, web.v4())?;
    tcp(&lab.host, &web.ns, web.v4(), BYTES)?;
    for address in [IpAddr::from(HOST4), HOST6.into()] {
        unreachable(&web.ns, address)?;
        let before = denied(lab)?;
        let connected = web.ns.enter(|| {
            Ok(TcpStream::connect_timeout(&SocketAddr::new(address, 80), A_WHILE).is_ok())
        })?;
        ensure!(!connected, "a machine is connected to {address}");
        ensure!(denied(lab)? > before, "it was not denied");
    }
    ensure!(listener.accept().is_err(), "the host has heard of it");
    // Neither an open port nor a closed one tells of itself.
    for port in [80, 81] {
        let before = denied(lab)?;
        let mut frame = Vec::new();
        PacketBuilder::ethernet2(web.ns.mac(HOST0)?, lab.host.mac(web.port())?)
            .ipv4(web.v4().octets(), HOST4.octets(), 64)
            .tcp(4000, port, 1, 1000)
            .ack(1)
            .write(&mut frame, &[])?;
        send_frame(&web.ns, HOST0, &frame)?;
        let counted = wait_until(SOON, || denied(lab).is_ok_and(|now| now > before));
        ensure!(counted, "a segment to port {port} was not denied");
    }
    Ok(())
}

in_each_mode! {
    machines_answer_the_host
    machines_do_not_reach_the_host
}
