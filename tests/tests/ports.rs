//! Ports without a guard, and devices on top of an uplink: nobody sends with a machine's
//! address but that machine, also on a host that forwards (rows U1, U2).

use std::{
    io,
    net::IpAddr,
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use etherparse::PacketBuilder;
use netspawn_tests::{
    Agent, Attached, Capture, Counter, Direction, GATEWAY4, GATEWAY6, HOST0, Kind, LAN, Lab,
    Machine, Mode, Ns, Signal, Spec, UPLINK, in_each_mode, ping, protocol::holds, ready_for,
    send_frame, wait_until,
};

in_each_mode! {
    withdrawn_machines_port_forges_no_machine
    port_forges_no_machine_before_its_guard_is_on
    port_of_a_machine_without_room_is_closed
    port_that_cannot_be_guarded_is_closed
    guard_of_an_earlier_process_goes_with_its_machine
    macvlan_of_another_namespace_forges_no_machine
    fragments_put_together_and_cut_again_forge_no_machine
}

const SOON: Duration = Duration::from_secs(10);
/// What is not there by then does not come.
const QUIET: Duration = Duration::from_millis(300);
const FORGED: &[u8] = b"a payload whose source is forged";
const HONEST: &[u8] = b"a payload whose source is nobody's";
/// An address that no machine has.
const NOBODY: &str = "192.0.2.66";
const NOBODY6: &str = "2001:db8:66::66";

type Mac = [u8; 6];

/// The machine that attacks; `db` is who it claims to be.
fn evil() -> Spec {
    Spec::new("evil")
        .address("203.0.113.66")
        .address("2001:db8::66")
        .tenant("mallory")
}

/// A host that forwards, as one with Docker does.
fn lab() -> Result<Lab> {
    let lab = Lab::builder().usual_machines().machine(evil()).build()?;
    forward(&lab.host)?;
    Ok(lab)
}

fn forward(ns: &Ns) -> Result<()> {
    for key in ["net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"] {
        ns.set_sysctl(key, "1")?;
    }
    for key in ["all", "default"] {
        ns.set_sysctl(&format!("net/ipv4/conf/{key}/rp_filter"), "0")?;
    }
    Ok(())
}

fn udp(from: Mac, to: Mac, source: IpAddr, destination: IpAddr, payload: &[u8]) -> Vec<u8> {
    let frame = PacketBuilder::ethernet2(from, to);
    let packet = match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            frame.ipv4(source.octets(), destination.octets(), 64)
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            frame.ipv6(source.octets(), destination.octets(), 64)
        }
        both => panic!("of two families: {both:?}"),
    };
    let mut frame = Vec::new();
    packet
        .udp(4000, 4000)
        .write(&mut frame, payload)
        .expect("a Vec takes everything");
    frame
}

/// Everybody who could hear what is forged.
struct Ears(Vec<(String, Capture)>);

impl Ears {
    fn everywhere_but(lab: &Lab, sender: &str) -> Result<Self> {
        let mut ears = vec![("the network".to_owned(), Capture::incoming(&lab.net, LAN)?)];
        for machine in lab.machines().iter().filter(|one| one.name() != sender) {
            let capture = Capture::incoming(&machine.ns, HOST0)?;
            ears.push((machine.name().to_owned(), capture));
        }
        Ok(Ears(ears))
    }

    fn heard(&mut self, bytes: &[u8]) -> Vec<String> {
        let ears = self.0.iter_mut();
        ears.filter_map(|(name, capture)| {
            let heard = !capture.containing(bytes).is_empty();
            heard.then(|| name.clone())
        })
        .collect()
    }

    fn assert_hear(&mut self, who: &str, bytes: &[u8]) -> Result<()> {
        let mut heard = Vec::new();
        let found = wait_until(SOON, || {
            heard = self.heard(bytes);
            heard.iter().any(|name| name == who)
        });
        ensure!(found, "{who} heard nothing, only {heard:?} did");
        Ok(())
    }

    fn assert_silent(&mut self, bytes: &[u8]) -> Result<()> {
        let heard = self.heard(bytes);
        ensure!(heard.is_empty(), "heard by {heard:?}");
        Ok(())
    }
}

fn parsed(text: &str) -> Result<IpAddr> {
    text.parse().with_context(|| text.to_owned())
}

/// Where forged packets could get: the network, the host, another machine.
fn destinations(lab: &Lab) -> Vec<IpAddr> {
    let mail = lab.machine("mail");
    vec![
        GATEWAY4.into(),
        GATEWAY6.into(),
        mail.v4().into(),
        mail.v6().into(),
    ]
}

/// The addresses of `db`, and one inside a prefix of `web`.
fn victims(lab: &Lab) -> Vec<IpAddr> {
    let db = lab.machine("db");
    vec![
        db.v4().into(),
        db.v6().into(),
        netspawn_tests::INSIDE.into(),
    ]
}

/// Sends through a port as everybody else, to everywhere.
fn forge(lab: &Lab, sender: &Machine) -> Result<()> {
    let (own, port) = (sender.ns.mac(HOST0)?, lab.host.mac(sender.port())?);
    for source in victims(lab) {
        for destination in destinations(lab) {
            if source.is_ipv4() == destination.is_ipv4() {
                let frame = udp(own, port, source, destination, FORGED);
                send_frame(&sender.ns, HOST0, &frame)?;
            }
        }
    }
    Ok(())
}

/// As [`forge`], with a source that is nobody's.
fn send_honestly(lab: &Lab, sender: &Machine) -> Result<()> {
    let (own, port) = (sender.ns.mac(HOST0)?, lab.host.mac(sender.port())?);
    for (source, destination) in [
        (parsed(NOBODY)?, IpAddr::from(GATEWAY4)),
        (parsed(NOBODY6)?, GATEWAY6.into()),
    ] {
        let frame = udp(own, port, source, destination, HONEST);
        send_frame(&sender.ns, HOST0, &frame)?;
    }
    Ok(())
}

/// Neighbors that the host forwards to are resolved, so that nothing waits.
fn know_neighbors(lab: &Lab) -> Result<()> {
    ping(&lab.host, GATEWAY4)?;
    ping(&lab.host, GATEWAY6)?;
    ping(&lab.host, lab.machine("mail").v4())?;
    ping(&lab.host, lab.machine("mail").v6())
}

/// That the host forwards what is forged to nobody, and anything else.
fn assert_nothing_forged(lab: &Lab, sender: &Machine) -> Result<()> {
    know_neighbors(lab)?;
    let mut ears = Ears::everywhere_but(lab, sender.name())?;
    let before = martians(lab)?;
    forge(lab, sender)?;
    send_honestly(lab, sender)?;
    ears.assert_hear("the network", HONEST)?;
    std::thread::sleep(QUIET);
    ears.assert_silent(FORGED)?;
    ensure!(martians(lab)? > before, "nothing was dropped");
    Ok(())
}

fn counted(lab: &Lab, reason: &str) -> Result<u64> {
    let counters = lab.json("counters")?;
    let count = counters["dropped"][reason].as_u64();
    count.with_context(|| format!("counters have no {reason}"))
}

fn martians(lab: &Lab) -> Result<u64> {
    counted(lab, "martian_source")
}

/// Whether some ingress qdisc is on a port.
fn is_guarded(lab: &Lab, port: &str) -> Result<bool> {
    let qdiscs = lab.host.run(&format!("tc qdisc show dev {port}"))?;
    Ok(qdiscs.contains("ingress"))
}

fn withdrawn_machines_port_forges_no_machine(mode: Mode) -> Result<()> {
    let _rows = holds("ports::withdrawn", Some(mode), &["U1", "U2"]);
    let on = Attached::new(lab()?, mode)?;
    let lab = &on.lab;
    let evil = lab.machine("evil");
    ensure!(is_guarded(lab, evil.port())?, "it has no guard");
    lab.withdraw("evil")?;
    let given_back = wait_until(SOON, || {
        is_guarded(lab, evil.port()).is_ok_and(|guarded| !guarded)
    });
    ensure!(given_back, "the guard is still on");
    assert_nothing_forged(lab, evil)?;
    // Machines go on.
    ping(&lab.net, lab.machine("db").v4())?;
    ping(&lab.machine("db").ns, GATEWAY6)
}

fn port_forges_no_machine_before_its_guard_is_on(mode: Mode) -> Result<()> {
    let _rows = holds("ports::before_the_guard", Some(mode), &["U1", "U2"]);
    let lab = Lab::builder()
        .usual_machines()
        .machine(evil().unplugged())
        .build()?;
    forward(&lab.host)?;
    ready_for(&lab, mode)?;
    let agent = Agent::start(&lab, mode.attach())?;
    know_neighbors(&lab)?;
    let stopped = nix::unistd::Pid::from_raw(agent.id().cast_signed());
    nix::sys::signal::kill(stopped, Signal::SIGSTOP)?;
    let evil = lab.machine("evil");
    lab.plug(evil)?;
    let result = assert_nothing_forged_by(&lab, evil);
    nix::sys::signal::kill(stopped, Signal::SIGCONT)?;
    result?;
    let served = wait_until(SOON, || ping(&lab.net, evil.v4()).is_ok());
    ensure!(served, "the machine is not served");
    drop(agent);
    Ok(())
}

/// As [`assert_nothing_forged`], with nobody who could be asked for counters.
fn assert_nothing_forged_by(lab: &Lab, sender: &Machine) -> Result<()> {
    let mut ears = Ears::everywhere_but(lab, sender.name())?;
    forge(lab, sender)?;
    send_honestly(lab, sender)?;
    ears.assert_hear("the network", HONEST)?;
    std::thread::sleep(QUIET);
    ears.assert_silent(FORGED)
}

/// What `status` and `list` say of the closed port of a machine.
fn assert_said_closed(lab: &Lab, machine: &Machine, why: &str) -> Result<()> {
    let status = lab.json("status")?;
    let closed = &status["closed"];
    ensure!(
        closed[0]["interface"] == machine.port()
            && closed[0]["machine"] == machine.name()
            && closed[1].is_null(),
        "{closed}"
    );
    let reason = closed[0]["reason"].as_str().unwrap_or_default();
    ensure!(reason.contains(why), "{closed}");
    let words = lab.output("status")?.stdout;
    let line = format!("{} of machine {}: ", machine.port(), machine.name());
    ensure!(words.contains(&line), "{words}");
    let list = lab.json(&format!("list {}", machine.name()))?;
    ensure!(list[0]["closed"] == closed[0]["reason"], "{list}");
    let words = lab.output("list")?.stdout;
    let cell = format!("{} (closed)", machine.port());
    ensure!(words.contains(&cell), "{words}");
    Ok(())
}

/// That nothing at all leaves a port, whatever its source.
fn assert_shut(lab: &Lab, sender: &Machine, reason: &str) -> Result<()> {
    know_neighbors(lab)?;
    let mut ears = Ears::everywhere_but(lab, sender.name())?;
    let before = counted(lab, reason)?;
    forge(lab, sender)?;
    send_honestly(lab, sender)?;
    let dropped = wait_until(SOON, || counted(lab, reason).is_ok_and(|now| now > before));
    ensure!(dropped, "nothing was dropped as {reason}");
    std::thread::sleep(QUIET);
    ears.assert_silent(FORGED)?;
    ears.assert_silent(HONEST)
}

fn port_of_a_machine_without_room_is_closed(mode: Mode) -> Result<()> {
    let _rows = holds("ports::without_room", Some(mode), &["U1"]);
    let mut lab = Lab::usual()?;
    forward(&lab.host)?;
    // Behind the others by name, which decides who gets room.
    let late = Spec::new("zevil").address("203.0.113.66").tenant("mallory");
    lab.add(late)?;
    ready_for(&lab, mode)?;
    let agent = Agent::start(&lab, &format!("{} --max-machines 3", mode.attach()))?;
    let zevil = lab.machine("zevil");
    assert_said_closed(&lab, zevil, "no room")?;
    assert_shut(&lab, zevil, "unknown_port")?;
    // It is open as soon as it is nobody's.
    lab.withdraw("zevil")?;
    let given_back = wait_until(SOON, || {
        is_guarded(&lab, zevil.port()).is_ok_and(|guarded| !guarded)
    });
    ensure!(given_back, "the guard is still on");
    ensure!(lab.json("status")?["closed"] == serde_json::json!([]));
    assert_nothing_forged(&lab, zevil)?;
    drop(agent);
    Ok(())
}

fn port_that_cannot_be_guarded_is_closed(mode: Mode) -> Result<()> {
    let _rows = holds("ports::without_guard", Some(mode), &["U1"]);
    /// Programs at one hook at most (`bpf_mprog_max` in include/linux/bpf_mprog.h).
    const FULL: usize = 63;
    let lab = Lab::builder()
        .usual_machines()
        .machine(evil().undeclared())
        .build()?;
    forward(&lab.host)?;
    let evil = lab.machine("evil");
    // The same program is not taken twice.
    let others: Vec<(Counter, OwnedFd)> = (0..FULL)
        .map(|_| {
            let counter = Counter::load(Kind::Tc)?;
            let link = counter.tcx(&lab.host, evil.port(), Direction::Ingress)?;
            Ok((counter, link))
        })
        .collect::<Result<_>>()?;
    let on = Attached::new(lab, mode)?;
    let lab = &on.lab;
    let evil = lab.machine("evil");
    lab.declare("evil", &evil.declaration())?;
    let closed = wait_until(SOON, || {
        lab.json("status")
            .is_ok_and(|status| !status["closed"][0].is_null())
    });
    ensure!(closed, "{}", lab.json("status")?);
    assert_said_closed(lab, evil, "guard")?;
    assert_shut(lab, evil, "unknown_port")?;
    // The others are served.
    ping(&lab.net, lab.machine("db").v4())?;
    // With room for the guard it is served as well.
    drop(others);
    lab.declare("evil", &format!("{}\n", evil.declaration()))?;
    let served = wait_until(SOON, || ping(&lab.net, evil.v4()).is_ok());
    ensure!(served, "{}", lab.json("status")?);
    ensure!(lab.json("status")?["closed"] == serde_json::json!([]));
    Ok(())
}

fn guard_of_an_earlier_process_goes_with_its_machine(mode: Mode) -> Result<()> {
    let _rows = holds("ports::of_an_earlier_process", Some(mode), &["U1"]);
    let lab = lab()?;
    ready_for(&lab, mode)?;
    lab.run(&format!("attach {} --once", mode.attach()))?;
    let (evil, mail) = (lab.machine("evil"), lab.machine("mail"));
    ensure!(is_guarded(&lab, evil.port())?, "it has no guard");
    lab.withdraw("evil")?;
    // Any sync of any process: this one adds another machine's file.
    lab.run("add other --interface ve-other --address 203.0.113.99")?;
    ensure!(!is_guarded(&lab, evil.port())?, "the guard is still on");
    ensure!(
        is_guarded(&lab, mail.port())?,
        "the other has none any more"
    );
    assert_nothing_forged(&lab, evil)
}

/// Sends a frame as it is, with a mark and a priority.
fn send_marked(ns: &Ns, interface: &str, frame: &[u8], mark: u32, priority: u32) -> Result<()> {
    let ifindex = ns.ifindex(interface)?;
    ns.enter(|| {
        // SAFETY: the call takes no pointers.
        let fd = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) };
        ensure!(fd >= 0, io::Error::last_os_error());
        // SAFETY: a new descriptor that nobody else has.
        let socket = unsafe { OwnedFd::from_raw_fd(fd) };
        for (option, value) in [(libc::SO_MARK, mark), (libc::SO_PRIORITY, priority)] {
            // SAFETY: the value and its length are those of a live `u32`.
            let set = unsafe {
                libc::setsockopt(
                    socket.as_raw_fd(),
                    libc::SOL_SOCKET,
                    option,
                    (&raw const value).cast(),
                    size_of_val(&value) as libc::socklen_t,
                )
            };
            ensure!(set == 0, io::Error::last_os_error());
        }
        // SAFETY: all-zero bytes are a valid `sockaddr_ll`.
        let mut to: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        to.sll_family = libc::AF_PACKET as u16;
        to.sll_ifindex = ifindex.cast_signed();
        // SAFETY: frame and address are live, and as long as said.
        let sent = unsafe {
            libc::sendto(
                socket.as_raw_fd(),
                frame.as_ptr().cast(),
                frame.len(),
                0,
                (&raw const to).cast(),
                size_of_val(&to) as libc::socklen_t,
            )
        };
        let error = io::Error::last_os_error();
        // It was dropped on its way out.
        let dropped = error.raw_os_error() == Some(libc::ENOBUFS);
        ensure!(sent > 0 || dropped, error);
        Ok(())
    })
}

fn macvlan_of_another_namespace_forges_no_machine(mode: Mode) -> Result<()> {
    const CHILD: &str = "mv0";
    let _rows = holds("ports::macvlan", Some(mode), &["U2"]);
    let on = Attached::new(lab()?, mode)?;
    let lab = &on.lab;
    let tenant = Ns::new("tenant")?;
    lab.host.run(&format!(
        "ip link add link {UPLINK} name {CHILD} index 900 type macvlan mode bridge"
    ))?;
    lab.host.run(&format!(
        "ip link set {CHILD} netns {}",
        tenant.path().display()
    ))?;
    tenant.run(&format!("ip link set {CHILD} up"))?;
    tenant.run(&format!("ip addr add 203.0.113.77/24 dev {CHILD}"))?;
    tenant.run(&format!("ip addr add 2001:db8::77/64 dev {CHILD} nodad"))?;
    // It is a station like any other.
    ping(&tenant, GATEWAY4)?;
    ping(&tenant, GATEWAY6)?;
    know_neighbors(lab)?;

    let (own, uplink) = (tenant.mac(CHILD)?, lab.host.mac(UPLINK)?);
    let lan = lab.net.mac(LAN)?;
    let mut ears = Ears::everywhere_but(lab, "")?;
    let key = 0x6e73_7864;
    let mut sent = 0;
    for from in [own, uplink] {
        for source in victims(lab) {
            for destination in destinations(lab) {
                if source.is_ipv4() != destination.is_ipv4() {
                    continue;
                }
                let frame = udp(from, lan, source, destination, FORGED);
                for (mark, priority) in [(0, 0), (key, 0), (key, key), (0, key)] {
                    send_marked(&tenant, CHILD, &frame, mark, priority)?;
                    sent += 1;
                }
            }
        }
    }
    // What it forwards comes in by an interface with the uplink's number, and is routed.
    forward(&tenant)?;
    let number = lab.host.ifindex(UPLINK)?;
    tenant.run(&format!(
        "ip link add in0 index {number} type veth peer name out0 index 901"
    ))?;
    for link in ["in0", "out0"] {
        tenant.run(&format!("ip link set {link} up"))?;
    }
    tenant.settled("in0")?;
    for source in victims(lab) {
        let gateway = match source {
            IpAddr::V4(_) => IpAddr::from(GATEWAY4),
            IpAddr::V6(_) => GATEWAY6.into(),
        };
        let (from, to) = (tenant.mac("out0")?, tenant.mac("in0")?);
        send_frame(&tenant, "out0", &udp(from, to, source, gateway, FORGED))?;
        sent += 1;
    }
    for (source, gateway) in [
        (parsed(NOBODY)?, IpAddr::from(GATEWAY4)),
        (parsed(NOBODY6)?, GATEWAY6.into()),
    ] {
        let (from, to) = (tenant.mac("out0")?, tenant.mac("in0")?);
        send_frame(&tenant, "out0", &udp(from, to, source, gateway, HONEST))?;
    }
    ears.assert_hear("the network", HONEST)?;
    let dropped = wait_until(SOON, || martians(lab).is_ok_and(|now| now >= sent));
    ensure!(dropped, "{} of {sent} were dropped", martians(lab)?);
    std::thread::sleep(QUIET);
    ears.assert_silent(FORGED)?;

    // It does not say by ARP that a machine is where it is.
    tenant.run(&format!("ip addr add 203.0.113.3/32 dev {CHILD}"))?;
    let before = martians(lab)?;
    tenant
        .cmd("ping")
        .args(["-c", "1", "-W", "1", "-I", "203.0.113.3"])
        .arg(GATEWAY4.to_string())
        .output()?;
    ensure!(martians(lab)? > before, "nothing was dropped");
    ping(&lab.net, lab.machine("db").v4())?;
    ping(&lab.net, lab.machine("db").v6())?;
    Ok(())
}

fn fragments_put_together_and_cut_again_forge_no_machine(mode: Mode) -> Result<()> {
    let _rows = holds("ports::fragments", Some(mode), &["U2"]);
    let on = Attached::new(lab()?, mode)?;
    let lab = &on.lab;
    let evil = lab.machine("evil");
    lab.withdraw("evil")?;
    let given_back = wait_until(SOON, || {
        is_guarded(lab, evil.port()).is_ok_and(|guarded| !guarded)
    });
    ensure!(given_back, "the guard is still on");
    // Connections are followed, for which fragments are put together.
    lab.host
        .cmd("nft")
        .args(["-f", "-"])
        .input(
            "table inet follow { chain forward { type filter hook forward priority 0;
             ct state new counter accept; }; }",
        )
        .text()?;
    know_neighbors(lab)?;
    let mut ears = Ears::everywhere_but(lab, "evil")?;
    let before = martians(lab)?;
    let (own, port) = (evil.ns.mac(HOST0)?, lab.host.mac(evil.port())?);
    let sources = [
        (victims(lab), FORGED),
        (vec![parsed(NOBODY)?, parsed(NOBODY6)?], HONEST),
    ];
    for (sources, payload) in sources {
        for source in sources {
            for destination in destinations(lab) {
                if source.is_ipv4() != destination.is_ipv4() {
                    continue;
                }
                // Each fragment has the payload's words whole.
                let long: Vec<u8> = payload.iter().copied().cycle().take(1600).collect();
                let whole = udp(own, port, source, destination, &long);
                for frame in fragments(&whole, 800) {
                    send_frame(&evil.ns, HOST0, &frame)?;
                }
            }
        }
    }
    ears.assert_hear("the network", HONEST)?;
    std::thread::sleep(QUIET);
    ears.assert_silent(FORGED)?;
    ensure!(martians(lab)? > before, "nothing was dropped");
    Ok(())
}

/// Cuts the IP packet of a frame into fragments with at most so many bytes of payload,
/// a multiple of eight.
fn fragments(frame: &[u8], size: usize) -> Vec<Vec<u8>> {
    let (link, packet) = frame.split_at(14);
    let v4 = packet[0] >> 4 == 4;
    let (header, payload) = packet.split_at(if v4 { 20 } else { 40 });
    let count = payload.len().div_ceil(size);
    payload
        .chunks(size)
        .enumerate()
        .map(|(number, chunk)| {
            let place = (number * size / 8) as u16;
            let more = u16::from(number + 1 < count);
            let mut header = header.to_vec();
            if v4 {
                header[2..4].copy_from_slice(&((20 + chunk.len()) as u16).to_be_bytes());
                header[4..6].copy_from_slice(&[0x12, 0x34]);
                header[6..8].copy_from_slice(&(place | more << 13).to_be_bytes());
                header[10..12].copy_from_slice(&[0, 0]);
                let words = header
                    .chunks(2)
                    .map(|w| u32::from(w[0]) << 8 | u32::from(w[1]));
                let sum: u32 = words.sum();
                let sum = (sum & 0xffff) + (sum >> 16);
                let sum = (sum & 0xffff) + (sum >> 16);
                header[10..12].copy_from_slice(&(!(sum as u16)).to_be_bytes());
            } else {
                header[4..6].copy_from_slice(&((8 + chunk.len()) as u16).to_be_bytes());
                let next = std::mem::replace(&mut header[6], 44);
                header.extend([next, 0]);
                header.extend((place << 3 | more).to_be_bytes());
                header.extend([0, 0, 0x12, 0x34]);
            }
            [link, &header, chunk].concat()
        })
        .collect()
}
