//! What happens to an uplink while it is attached, and what its neighbors are told.

use std::{
    io::{self, Write as _},
    net::IpAddr,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use etherparse::{ArpOperation, NetSlice, SlicedPacket, TransportSlice, VlanSlice};
use netspawn_tests::{
    Agent, Attached, Capture, Direction, FAR4, FAR6, GATEWAY4, GATEWAY6, HOST0, HOST4, HOST6, LAN,
    Lab, Machine, Mode, Ns, Pinging, Snapshot, Spec, UPLINK, all_reachable, in_each_mode, ping,
    protocol, ready_for, send_frame, tcx_programs, unreachable, wait_ping, wait_until,
};
use netspawn_user::datapath::plane::Plane;

in_each_mode! {
    changed_mac_is_used_at_once
    uplink_that_was_down_serves_again
    uplink_made_again_is_attached_again
    renamed_uplink_stays_attached
    uplink_in_a_bridge_gives_it_the_programs
    agent_started_again_serves_the_master
}

const SOON: Duration = Duration::from_secs(5);
/// Within which answers follow a change of the uplink.
const FOLLOWS: Duration = Duration::from_millis(100);
const NEW_MAC: [u8; 6] = [2, 0, 0, 0, 0x77, 1];
/// A station that is not there.
const OTHER_MAC: &str = "02:00:00:00:99:99";

fn text(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

/// An announcement as etherparse reads it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Announced {
    address: IpAddr,
    mac: [u8; 6],
    vlan: Option<u16>,
}

/// Reads a gratuitous ARP or an unsolicited neighbor advertisement, and checks every
/// field that the RFCs fix; `None` for other frames.
fn announcement(frame: &[u8]) -> Option<Announced> {
    let packet = SlicedPacket::from_ethernet(frame).ok()?;
    let ethernet = packet.link.as_ref()?.to_header()?.ethernet2()?;
    let vlan = match packet.vlan() {
        Some(VlanSlice::SingleVlan(tag)) => Some(tag.vlan_identifier().value()),
        _ => None,
    };
    match packet.net? {
        NetSlice::Arp(arp) => {
            if arp.sender_protocol_addr() != arp.target_protocol_addr() {
                return None;
            }
            assert_eq!(arp.operation(), ArpOperation::REQUEST);
            assert_eq!(ethernet.destination, [0xff; 6]);
            assert_eq!(arp.target_hw_addr(), [0; 6]);
            assert_eq!(arp.sender_hw_addr(), ethernet.source);
            let address: [u8; 4] = arp.sender_protocol_addr().try_into().ok()?;
            Some(Announced {
                address: address.into(),
                mac: ethernet.source,
                vlan,
            })
        }
        NetSlice::Ipv6(ip) => {
            let TransportSlice::Icmpv6(message) = packet.transport? else {
                return None;
            };
            let header = ip.header();
            if message.type_u8() != 136 || header.destination_addr() != ALL_NODES {
                return None;
            }
            let bytes = message.slice();
            // R and S clear, O set; one option, the target's link-layer address.
            assert_eq!(bytes[4], 0x20, "{frame:02x?}");
            assert_eq!((bytes.len(), bytes[24], bytes[25]), (32, 2, 1));
            assert_eq!(bytes[26..32], ethernet.source);
            assert_eq!(bytes[8..24], header.source());
            assert_eq!(header.hop_limit(), 255);
            assert_eq!(ethernet.destination, [0x33, 0x33, 0, 0, 0, 1]);
            assert!(message.is_checksum_valid(header.source(), header.destination()));
            Some(Announced {
                address: header.source_addr().into(),
                mac: ethernet.source,
                vlan,
            })
        }
        _ => None,
    }
}

const ALL_NODES: std::net::Ipv6Addr = std::net::Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);

fn announced(capture: &mut Capture) -> Vec<Announced> {
    capture
        .frames()
        .iter()
        .filter_map(|frame| announcement(frame))
        .collect()
}

/// Waits until nothing has been announced for longer than repetitions are apart.
fn quiet(capture: &mut Capture) -> Result<()> {
    for _ in 0..10 {
        capture.clear();
        if !capture.wait(Duration::from_millis(1_200), |frame| {
            announcement(frame).is_some()
        }) {
            return Ok(());
        }
    }
    bail!("announcements go on: {:?}", announced(capture))
}

/// The link-layer address that a namespace has for a neighbor.
fn neighbor(ns: &Ns, address: impl Into<IpAddr>) -> Option<String> {
    let address = address.into();
    let line = ns.run(&format!("ip neigh show {address}")).ok()?;
    let mut words = line.split_whitespace();
    words.find(|word| *word == "lladdr")?;
    words.next().map(str::to_owned)
}

fn addresses(machine: &Machine) -> [IpAddr; 2] {
    [machine.v4().into(), machine.v6().into()]
}

/// Says a figure, also when the test passes.
fn say(words: impl std::fmt::Display) -> Result<()> {
    Ok(writeln!(io::stderr(), "{words}")?)
}

/// Link-layer groups of an interface as `ip maddr` has them.
fn groups(ns: &Ns, interface: &str) -> Result<Vec<String>> {
    let mut groups: Vec<String> = ns
        .run(&format!("ip maddr show dev {interface}"))?
        .lines()
        .map(|line| line.trim().to_owned())
        .filter(|line| line.starts_with("link"))
        .collect();
    groups.sort();
    Ok(groups)
}

fn uplink_names(lab: &Lab) -> Result<Vec<String>> {
    Ok(lab.json("status")?["uplinks"]
        .as_array()
        .context("no uplinks in the status")?
        .iter()
        .map(|uplink| uplink["name"].as_str().unwrap_or("null").to_owned())
        .collect())
}

/// Waits until the uplinks with programs are these.
fn wait_uplinks(lab: &Lab, names: &[&str]) -> Result<()> {
    let right = wait_until(SOON, || uplink_names(lab).is_ok_and(|found| found == names));
    ensure!(right, "{:?}\n{}", uplink_names(lab), lab.run("status")?);
    Ok(())
}

fn programs(ns: &Ns, interface: &str) -> Result<usize> {
    Ok(tcx_programs(ns, interface, Direction::Ingress)?.len()
        + tcx_programs(ns, interface, Direction::Egress)?.len())
}

fn changed_mac_is_used_at_once(mode: Mode) -> Result<()> {
    let _holds = protocol::holds(
        "uplink::changed_mac_is_used_at_once",
        Some(mode),
        &["M1", "M3"],
    );
    let on = Attached::usual(mode)?;
    let lab = &on.lab;
    let (web, db) = (lab.machine("web"), lab.machine("db"));
    all_reachable(lab)?;
    let pings = [
        (
            Pinging::start(&lab.net, web.v4())?,
            "network to machine, IPv4",
        ),
        (
            Pinging::start(&lab.net, web.v6())?,
            "network to machine, IPv6",
        ),
        (Pinging::start(&db.ns, FAR4)?, "machine to network, IPv4"),
        (Pinging::start(&db.ns, FAR6)?, "machine to network, IPv6"),
    ];
    // The host's own address, of which nobody is told, is the yardstick.
    let own = Pinging::start(&lab.net, HOST4)?;
    let mut capture = Capture::start(&lab.net, LAN)?;
    let changed = Instant::now();
    lab.host
        .run(&format!("ip link set {UPLINK} address {}", text(NEW_MAC)))?;
    let done = changed.elapsed();
    let answered = capture.wait(SOON, |frame| {
        announcement(frame).is_some_and(|what| what.mac == NEW_MAC)
    });
    ensure!(answered, "no announcement");
    say(format_args!(
        "first announcement after {:?} (the change itself took {done:?})",
        changed.elapsed()
    ))?;
    ensure!(changed.elapsed() < FOLLOWS, "later than {FOLLOWS:?}");
    // Answers carry it from now on: who asks again is told.
    let told = addresses(web).map(|address| {
        wait_until(Duration::from_secs(1), || {
            neighbor(&lab.net, address).as_deref() == Some(&text(NEW_MAC))
        })
    });
    ensure!(told == [true, true], "{}", lab.net.run("ip neigh")?);
    capture.clear();
    lab.net.run(&format!("ip neigh flush dev {LAN}"))?;
    for machine in lab.machines() {
        addresses(machine)
            .map(|address| ping(&lab.net, address))
            .into_iter()
            .collect::<Result<()>>()?;
    }
    // What machines send has it as its source, all of it.
    for frame in capture.frames() {
        let source = &frame[6..12];
        ensure!(
            source == NEW_MAC || source == lab.net.mac(LAN)?,
            "a frame with another source: {frame:02x?}"
        );
    }
    let own: u32 = own.gaps()?.iter().sum();
    for (ping, words) in pings {
        let lost: u32 = ping.gaps()?.iter().sum();
        say(format_args!(
            "{words}: {lost} lost at one in 10 ms (the host's own address: {own})"
        ))?;
        ensure!(lost <= 5, "{words}: {lost} pings lost");
    }
    all_reachable(lab)
}

/// Machines without a prefix, so that single groups are joined.
fn without_prefix() -> Result<Lab> {
    Lab::builder()
        .machine(
            Spec::new("web")
                .address("203.0.113.2")
                .address("2001:db8::2"),
        )
        .machine(
            Spec::new("db")
                .address("203.0.113.3")
                .address("2001:db8::3"),
        )
        .build()
}

/// Link-layer groups of their addresses.
const OURS: [&str; 2] = ["link  33:33:ff:00:00:02", "link  33:33:ff:00:00:03"];

/// Those of them that an interface receives because `ip maddr add` or we said so.
fn our_groups(ns: &Ns, interface: &str) -> Result<Vec<String>> {
    let mut ours = groups(ns, interface)?;
    ours.retain(|group| OURS.iter().any(|our| group.starts_with(our)));
    Ok(ours)
}

/// What an operator's network manager does after a link has come up.
fn configure(lab: &Lab, interface: &str) -> Result<()> {
    for line in [
        // Down first: a link-local address is made when it comes up.
        format!("ip link set {interface} down"),
        format!("ip link set {interface} up"),
        format!("ip addr replace {HOST4}/24 dev {interface}"),
        format!("ip addr replace {HOST6}/64 dev {interface}"),
        format!("ip route replace default via {GATEWAY4} dev {interface}"),
        format!("ip route replace default via {GATEWAY6} dev {interface}"),
    ] {
        lab.host.run(&line)?;
    }
    lab.host.settled(interface)
}

fn uplink_that_was_down_serves_again(mode: Mode) -> Result<()> {
    let _holds = protocol::holds(
        "uplink::uplink_that_was_down_serves_again",
        Some(mode),
        &["M1"],
    );
    let on = Attached::usual(mode)?;
    let lab = &on.lab;
    let before = groups(&lab.host, UPLINK)?;
    lab.host.run(&format!("ip link set {UPLINK} down"))?;
    let db = lab.machine("db");
    unreachable(&lab.net, db.v4())?;
    let mut capture = Capture::start(&lab.net, LAN)?;
    configure(lab, UPLINK)?;
    wait_ping(&lab.net, db.v4(), SOON)?;
    let wanted = addresses(db);
    for address in wanted {
        let told = wait_until(SOON, || {
            let all = announced(&mut capture);
            all.iter().filter(|what| what.address == address).count() == 3
        });
        ensure!(told, "{address}: {:?}", announced(&mut capture));
    }
    assert_eq!(groups(&lab.host, UPLINK)?, before);
    all_reachable(lab)
}

fn uplink_made_again_is_attached_again(mode: Mode) -> Result<()> {
    let mut on = Attached::new(without_prefix()?, mode)?;
    let lab = &on.lab;
    let before = our_groups(&lab.host, UPLINK)?;
    assert_eq!(before.len(), 2, "{before:?}");
    lab.host.run(&format!("ip link del {UPLINK}"))?;
    on.agent
        .wait_line(SOON, |line| line.contains("eth0 is gone"))?;
    lab.host.run(&format!(
        "ip link add {UPLINK} type veth peer name {LAN} netns {}",
        lab.net.path().display()
    ))?;
    for line in [
        format!("ip link set {LAN} up"),
        format!("ip addr add {GATEWAY4}/24 dev {LAN}"),
        format!("ip addr add {GATEWAY6}/64 dev {LAN}"),
    ] {
        lab.net.run(&line)?;
    }
    if mode == Mode::Xdp {
        netspawn_tests::accept_xdp(&lab.net, LAN, &lab.bpffs().join("lab_pass_again"))?;
    }
    let mut capture = Capture::start(&lab.net, LAN)?;
    configure(lab, UPLINK)?;
    let db = lab.machine("db");
    wait_ping(&lab.net, db.v6(), SOON)?;
    let told = capture.wait(SOON, |frame| {
        announcement(frame).is_some_and(|what| what.address == IpAddr::from(db.v4()))
    });
    ensure!(told, "not announced");
    wait_uplinks(lab, &[UPLINK])?;
    let same = wait_until(SOON, || {
        our_groups(&lab.host, UPLINK).is_ok_and(|now| now == before)
    });
    ensure!(same, "{:?}", groups(&lab.host, UPLINK)?);
    all_reachable(lab)?;
    assert_eq!(lab.output("detach")?.code(), 0);
    ensure!(programs(&lab.host, UPLINK)? == 0);
    Ok(())
}

fn rename(ns: &Ns, from: &str, to: &str) -> Result<()> {
    // Interfaces may be renamed while they are up (since Linux 6.2).
    ns.run(&format!("ip link set {from} name {to}")).map(drop)
}

fn renamed_uplink_stays_attached(mode: Mode) -> Result<()> {
    let lab = Lab::usual()?;
    ready_for(&lab, mode)?;
    let before = Snapshot::host(&lab)?;
    let mut agent = Agent::start(&lab, mode.attach())?;
    let pings = [
        Pinging::start(&lab.net, lab.machine("web").v4())?,
        Pinging::start(&lab.machine("db").ns, FAR4)?,
    ];
    rename(&lab.host, UPLINK, "wan.0")?;
    agent.wait_line(SOON, |line| line.contains("eth0 is called wan.0 now"))?;
    wait_uplinks(&lab, &["wan.0"])?;
    // Another takes the old name.
    lab.host
        .run("ip link add eth0 type veth peer name eth0-far")?;
    lab.host.run("ip link set eth0 up")?;
    lab.host.run("ip link set eth0-far up")?;
    agent.kill()?;
    let agent = Agent::start(&lab, &mode.attach().replace("eth0", "wan.0"))?;
    ensure!(agent.ready().contains("on wan.0"), "{}", agent.ready());
    assert_eq!(programs(&lab.host, "eth0")?, 0);
    for ping in pings {
        ping.lost_none()?;
    }
    all_reachable(&lab)?;
    // And without an agent.
    agent.kill()?;
    lab.host.run("ip link del eth0")?;
    rename(&lab.host, "wan.0", "eth0")?;
    assert_eq!(uplink_names(&lab)?, ["eth0"]);
    lab.run("detach eth0")?;
    before.same(&Snapshot::host(&lab)?)
}

#[test]
fn exchanged_names_and_alternative_names_are_followed() -> Result<()> {
    let lab = Lab::usual()?;
    for line in [
        "ip link add eth1 type veth peer name far1",
        "ip link set eth1 up",
        "ip link set far1 up",
        "ip link property add dev eth1 altname second-uplink",
    ] {
        lab.host.run(line)?;
    }
    let before = Snapshot::host(&lab)?;
    let agent = Agent::start(&lab, "eth0 second-uplink")?;
    assert_eq!(uplink_names(&lab)?, ["eth0", "eth1"]);
    let (first, second) = (lab.host.ifindex("eth0")?, lab.host.ifindex("eth1")?);
    // Between two looks of an agent: both names have changed hands.
    agent.kill()?;
    rename(&lab.host, "eth0", "eth2")?;
    rename(&lab.host, "eth1", "eth0")?;
    rename(&lab.host, "eth2", "eth1")?;
    let agent = Agent::start(&lab, "eth0 eth1")?;
    let status = lab.json("status")?;
    let uplinks = status["uplinks"].as_array().context("no uplinks")?;
    let mut found: Vec<_> = uplinks
        .iter()
        .map(|uplink| (uplink["name"].as_str(), uplink["ifindex"].as_u64()))
        .collect();
    found.sort();
    assert_eq!(
        found,
        [
            (Some("eth0"), Some(second.into())),
            (Some("eth1"), Some(first.into()))
        ]
    );
    all_reachable(&lab)?;
    rename(&lab.host, "eth0", "eth2")?;
    rename(&lab.host, "eth1", "eth0")?;
    rename(&lab.host, "eth2", "eth1")?;
    lab.run("detach second-uplink")?;
    wait_uplinks(&lab, &["eth0"])?;
    drop(agent);
    lab.run("detach")?;
    before.same(&Snapshot::host(&lab)?)
}

/// Puts the uplink into a bridge and has the bridge configured in its place.
fn enslave(lab: &Lab) -> Result<()> {
    lab.host
        .run("ip link add br0 type bridge mcast_snooping 0")?;
    lab.host.run("ip link set br0 up")?;
    lab.host.run(&format!("ip addr flush dev {UPLINK}"))?;
    lab.host.run(&format!("ip link set {UPLINK} master br0"))?;
    configure(lab, "br0")
}

fn uplink_in_a_bridge_gives_it_the_programs(mode: Mode) -> Result<()> {
    let _holds = protocol::holds(
        "uplink::uplink_in_a_bridge_gives_it_the_programs",
        Some(mode),
        &["M1", "M2"],
    );
    let lab = without_prefix()?;
    ready_for(&lab, mode)?;
    let before = Snapshot::host(&lab)?;
    let groups_before = groups(&lab.host, UPLINK)?;
    let mut agent = Agent::start(&lab, mode.attach())?;
    all_reachable(&lab)?;
    let attached = our_groups(&lab.host, UPLINK)?;
    assert_eq!(attached.len(), 2, "{attached:?}");
    let mut capture = Capture::start(&lab.net, LAN)?;
    enslave(&lab)?;
    agent.wait_line(SOON, |line| {
        line.contains("eth0 is a port of the bridge br0, which is attached in its place")
    })?;
    wait_uplinks(&lab, &["br0"])?;
    let told = capture.wait(SOON, |frame| announcement(frame).is_some());
    ensure!(told, "not announced on the bridge");
    wait_ping(&lab.net, lab.machine("db").v4(), SOON)?;
    assert_eq!(programs(&lab.host, UPLINK)?, 0);
    assert_eq!(programs(&lab.host, "br0")?, 2);
    assert_eq!(our_groups(&lab.host, "br0")?, attached);
    assert_eq!(our_groups(&lab.host, UPLINK)?, [""; 0]);
    all_reachable(&lab)?;
    let refused = lab.output("attach eth0")?;
    assert_eq!(refused.code(), 1);
    ensure!(
        refused.stderr.contains("attach to br0 instead"),
        "{}",
        refused.stderr
    );

    // Attached by itself it is not attached twice, and stays when the port goes.
    lab.run("attach br0")?;
    assert_eq!(programs(&lab.host, "br0")?, 2);
    lab.run("detach eth0")?;
    wait_uplinks(&lab, &["br0"])?;
    all_reachable(&lab)?;
    let words = agent.words();
    assert_eq!(
        words.matches("is a port of the bridge").count(),
        1,
        "{words}"
    );
    lab.run("detach br0")?;

    // Released, it has the programs again; that of a bridge which is gone too.
    let agent_words = release(&lab, mode, |lab| {
        lab.host.run(&format!("ip link set {UPLINK} nomaster"))?;
        lab.host.run("ip link del br0").map(drop)
    })?;
    ensure!(
        agent_words.contains("eth0 is no port any more"),
        "{agent_words}"
    );
    release(&lab, mode, |lab| lab.host.run("ip link del br0").map(drop))?;
    let after = Snapshot::host(&lab)?;
    // The operator's own doings with the bridge have changed other things.
    let ours = ["pin ", "tcx ", "bpf ", "ALLMULTI", "/allmulti"];
    let changes: Vec<_> = before
        .changes(&after)
        .into_iter()
        .filter(|change| ours.iter().any(|word| change.contains(word)))
        .collect();
    ensure!(changes.is_empty(), "{}", changes.join("\n"));
    assert_eq!(groups(&lab.host, UPLINK)?, groups_before);
    Ok(())
}

/// Its command line still names the port.
fn agent_started_again_serves_the_master(mode: Mode) -> Result<()> {
    let lab = without_prefix()?;
    ready_for(&lab, mode)?;
    let agent = Agent::start(&lab, mode.attach())?;
    enslave(&lab)?;
    wait_uplinks(&lab, &["br0"])?;
    agent.kill()?;
    let _agent = Agent::start(&lab, mode.attach())?;
    wait_uplinks(&lab, &["br0"])?;
    assert_eq!(programs(&lab.host, UPLINK)?, 0);
    assert_eq!(programs(&lab.host, "br0")?, 2);
    all_reachable(&lab)?;
    lab.run("detach").map(drop)
}

/// Attaches the plain uplink, puts it into a bridge, has it released again and detaches.
fn release(lab: &Lab, mode: Mode, let_go: impl FnOnce(&Lab) -> Result<()>) -> Result<String> {
    if lab.host.ifindex("br0").is_ok() {
        lab.host.run("ip link del br0")?;
    }
    configure(lab, UPLINK)?;
    let agent = Agent::start(lab, mode.attach())?;
    enslave(lab)?;
    wait_uplinks(lab, &["br0"])?;
    let_go(lab)?;
    configure(lab, UPLINK)?;
    wait_uplinks(lab, &[UPLINK])?;
    wait_ping(&lab.net, lab.machine("web").v6(), SOON)?;
    all_reachable(lab)?;
    let words = agent.words();
    // A bridge takes no XDP program.
    let warnings = usize::from(mode == Mode::Xdp);
    ensure!(words.matches("WARN").count() == warnings, "{words}");
    lab.run("detach")?;
    Ok(words)
}

#[test]
fn stale_neighbor_entry_is_corrected_when_a_machine_comes_up() -> Result<()> {
    let late = Spec::new("late")
        .address("203.0.113.60")
        .address("2001:db8::60")
        .unplugged();
    let lab = Lab::builder().machine(late).build()?;
    let on = Attached::new(lab, Mode::Tc)?;
    let lab = &on.lab;
    let late = lab.machine("late");
    // As learned when the addresses were elsewhere.
    for address in addresses(late) {
        lab.net.run(&format!(
            "ip neigh add {address} lladdr {OTHER_MAC} dev {LAN} nud reachable"
        ))?;
    }
    let right = text(lab.host.mac(UPLINK)?);
    lab.plug(late)?;
    for address in addresses(late) {
        let corrected = wait_until(Duration::from_secs(1), || {
            neighbor(&lab.net, address).as_deref() == Some(&right)
        });
        ensure!(corrected, "{}", lab.net.run("ip neigh")?);
    }
    Ok(())
}

#[test]
fn machine_is_announced_three_times_and_not_when_it_is_gone() -> Result<()> {
    let _holds = protocol::holds(
        "uplink::machine_is_announced_three_times_and_not_when_it_is_gone",
        None,
        &["M1"],
    );
    let lab = Lab::builder()
        .machine(
            Spec::new("web")
                .address("203.0.113.2")
                .address("2001:db8::2"),
        )
        .machine(
            Spec::new("other")
                .address("203.0.113.3")
                .address("2001:db8::/120"),
        )
        .build()?;
    // Tagged on the uplink.
    lab.declare(
        "other",
        "addresses = [\"203.0.113.3\", \"2001:db8:2::/64\"]\nvlan = 30\n",
    )?;
    let mut capture = Capture::start(&lab.net, LAN)?;
    let mut on = Attached::new(lab, Mode::Tc)?;
    let mac = on.lab.host.mac(UPLINK)?;
    let what = |address: IpAddr, vlan| Announced { address, mac, vlan };
    let web = on.lab.machine("web");
    let mut wanted: Vec<_> = std::iter::repeat_n(
        [
            what(web.v4().into(), None),
            what(web.v6().into(), None),
            what([203, 0, 113, 3].into(), Some(30)),
        ],
        3,
    )
    .flatten()
    .collect();
    wanted.sort();
    let all = wait_until(SOON, || announced(&mut capture).len() >= wanted.len());
    ensure!(all, "{:?}", announced(&mut capture));
    let mut found = announced(&mut capture);
    found.sort();
    assert_eq!(found, wanted);

    // No carrier behind the port: nothing to announce, nor what was under way.
    capture.clear();
    web.ns.run(&format!("ip link set {HOST0} down"))?;
    on.agent
        .wait_line(SOON, |line| line.contains("web is down"))?;
    web.ns.run(&format!("ip link set {HOST0} up"))?;
    on.agent
        .wait_line(SOON, |line| line.contains("web is up"))?;
    ensure!(capture.wait(SOON, |frame| announcement(frame).is_some()));
    on.lab.unplug(web)?;
    on.agent
        .wait_line(SOON, |line| line.contains("web is waiting"))?;
    capture.clear();
    // Longer than the time between two announcements.
    let more = capture.wait(Duration::from_millis(1_500), |frame| {
        announcement(frame).is_some()
    });
    ensure!(!more, "{:?}", announced(&mut capture));
    Ok(())
}

#[test]
fn takeover_announces_nothing_and_fresh_attach_once_does() -> Result<()> {
    let extra = Spec::new("extra").address("203.0.113.50").undeclared();
    let lab = Lab::builder().usual_machines().machine(extra).build()?;
    let Attached { agent, lab } = Attached::new(lab, Mode::Tc)?;
    let mut capture = Capture::start(&lab.net, LAN)?;
    quiet(&mut capture)?;
    agent.terminate()?;
    let agent = Agent::start(&lab, "eth0")?;
    agent.kill()?;
    let agent = Agent::start(&lab, "eth0 --max-machines 100")?;
    let any = capture.wait(Duration::from_millis(1_500), |frame| {
        announcement(frame).is_some()
    });
    ensure!(!any, "{:?}", announced(&mut capture));

    // What changed while no agent ran is announced.
    agent.kill()?;
    lab.host
        .run(&format!("ip link set {UPLINK} address {}", text(NEW_MAC)))?;
    let agent = Agent::start(&lab, "eth0")?;
    let told = wait_until(SOON, || announced(&mut capture).len() >= 6);
    ensure!(told, "{:?}", announced(&mut capture));
    drop(agent);
    lab.run("detach")?;
    capture.clear();
    lab.run("attach eth0 --once")?;
    let mut found: Vec<_> = announced(&mut capture)
        .iter()
        .map(|what| what.address)
        .collect();
    found.sort();
    let usual = lab
        .machines()
        .iter()
        .filter(|machine| machine.name() != "extra");
    let mut wanted: Vec<IpAddr> = usual.flat_map(addresses).collect();
    wanted.sort();
    assert_eq!(found, wanted);
    capture.clear();
    lab.run("attach eth0 --once")?;
    assert_eq!(announced(&mut capture), []);
    // So is a machine that is added without an agent.
    lab.run("add extra --interface ve-extra --address 203.0.113.50")?;
    let found: Vec<_> = announced(&mut capture)
        .iter()
        .map(|what| what.address)
        .collect();
    assert_eq!(found, [IpAddr::from([203, 0, 113, 50])]);
    Ok(())
}

#[test]
fn thousands_of_announcements_are_paced() -> Result<()> {
    let _holds = protocol::holds(
        "uplink::thousands_of_announcements_are_paced",
        None,
        &["M1"],
    );
    const COUNT: u32 = 5_000;
    let big = (0..COUNT).fold(Spec::new("big").unplugged(), |spec, number| {
        let [_, _, high, low] = number.to_be_bytes();
        spec.address(&format!("10.7.{high}.{low}"))
    });
    let lab = Lab::builder().machine(big).build()?;
    let mut on = Attached::new(lab, Mode::Tc)?;
    let lab = &on.lab;
    lab.host.run(&format!(
        "ip link add ve-big type veth peer name host0 netns {}",
        lab.machine("big").ns.path().display()
    ))?;
    lab.machine("big").ns.run("ip link set host0 up")?;
    let mut capture = Capture::start(&lab.net, LAN)?;
    lab.host.run("ip link set ve-big up")?;
    on.agent
        .wait_line(SOON, |line| line.contains("big is up"))?;
    let up = Instant::now();
    let first = capture.wait(SOON, |frame| announcement(frame).is_some());
    let waited = up.elapsed();
    ensure!(first, "nothing announced");
    say(format_args!(
        "first announcement {waited:?} after the machine was up"
    ))?;
    ensure!(waited < Duration::from_millis(50));
    let start = Instant::now();
    let mut half = None;
    let all = wait_until(Duration::from_secs(20), || {
        let count = announced(&mut capture).len();
        if count >= COUNT as usize / 2 {
            half.get_or_insert_with(|| (count, start.elapsed()));
        }
        count >= COUNT as usize
    });
    ensure!(all, "{} announced", announced(&mut capture).len());
    let rate = f64::from(COUNT) / start.elapsed().as_secs_f64();
    say(format_args!(
        "{rate:.0} announcements a second; half: {half:?}"
    ))?;
    ensure!((900.0..=1_100.0).contains(&rate), "{rate}");
    // Each of them, before any is repeated.
    let found: std::collections::BTreeSet<_> = announced(&mut capture)
        .into_iter()
        .take(COUNT as usize)
        .collect();
    assert_eq!(found.len(), COUNT as usize);
    Ok(())
}

#[test]
fn changed_mtu_is_in_the_maps_at_once() -> Result<()> {
    let on = Attached::usual(Mode::Tc)?;
    let lab = &on.lab;
    let ifindex = lab.host.ifindex(UPLINK)?;
    for mtu in [1_400, 9_000, 1_500] {
        lab.net.run(&format!("ip link set {LAN} mtu {mtu}"))?;
        lab.host.run(&format!("ip link set {UPLINK} mtu {mtu}"))?;
        let changed = Instant::now();
        let followed = wait_until(FOLLOWS, || {
            held_mtus(lab, ifindex).is_ok_and(|held| held == [mtu, mtu])
        });
        ensure!(
            followed,
            "MTU {mtu}: {:?} after {:?}",
            held_mtus(lab, ifindex)?,
            changed.elapsed()
        );
    }
    all_reachable(lab)
}

/// The MTU of the uplink and the greatest of a next hop, as the programs have them.
fn held_mtus(lab: &Lab, ifindex: u32) -> Result<[u32; 2]> {
    lab.host.enter(|| {
        let plane = Plane::open(&lab.bpf_dir())?.context("nothing is pinned")?;
        let state = plane.state();
        let hops = state.nexthops.values().filter(|hop| hop.ifindex == ifindex);
        let uplink = state.uplinks.get(&ifindex).context("no uplink")?;
        Ok([uplink.mtu, hops.map(|hop| hop.mtu).max().unwrap_or(0)])
    })
}

#[test]
fn announcements_do_not_upset_a_machine_that_detects_duplicates() -> Result<()> {
    let late = Spec::new("late").address("203.0.113.60").unplugged();
    let mut lab = Lab::builder().machine(late).build()?;
    let (address, text) = (
        [203, 0, 113, 60],
        "addresses = [\"203.0.113.60\", \"2001:db8::60\"]\n",
    );
    lab.declare("late", text)?;
    lab.add(
        Spec::new("peer")
            .address("203.0.113.61")
            .address("2001:db8::61"),
    )?;
    let on = Attached::new(lab, Mode::Tc)?;
    let lab = &on.lab;
    let late = lab.machine("late");
    lab.plug(late)?;
    // Duplicate address detection begins while the address is being announced.
    late.ns
        .set_sysctl(&format!("net/ipv6/conf/{HOST0}/accept_dad"), "1")?;
    late.ns
        .run(&format!("ip addr add 2001:db8::60/128 dev {HOST0}"))?;
    let mut words = String::new();
    let settled = wait_until(SOON, || {
        words = late
            .ns
            .run(&format!("ip -6 addr show dev {HOST0}"))
            .unwrap_or_default();
        !words.contains("tentative")
    });
    ensure!(settled && !words.contains("dadfailed"), "{words}");
    wait_ping(&lab.net, address, SOON)?;
    wait_ping(&lab.net, "2001:db8::60".parse::<IpAddr>()?, SOON)
}

#[test]
fn claimed_address_is_defended_once_and_said_once() -> Result<()> {
    let _holds = protocol::holds(
        "uplink::claimed_address_is_defended_once_and_said_once",
        None,
        &["A4", "N9"],
    );
    let mut on = Attached::new(without_prefix()?, Mode::Tc)?;
    let lab = &on.lab;
    let web = lab.machine("web");
    let mut capture = Capture::start(&lab.net, LAN)?;
    quiet(&mut capture)?;
    let intruder = [2, 0, 0, 0, 0x99, 0x99];
    assert_eq!(text(intruder), OTHER_MAC);
    for address in addresses(web) {
        for round in 0..3 {
            let claim = netspawn_user::net::announce::announcement(intruder, address, 0);
            send_frame(&lab.net, LAN, &claim)?;
            let defended = wait_until(Duration::from_secs(1), || {
                let all = announced(&mut capture);
                all.iter()
                    .any(|what| what.address == address && what.mac != intruder)
            });
            ensure!(defended == (round == 0), "{address}: round {round}");
            capture.clear();
        }
    }
    let line = on
        .agent
        .wait_line(SOON, |line| line.contains("uses its address"))?;
    ensure!(
        line.contains(&format!(
            "web: {OTHER_MAC} on the network uses its address 203.0.113.2"
        )),
        "{line}"
    );
    let words = on.agent.words();
    assert_eq!(words.matches("uses its address").count(), 1, "{words}");
    assert_eq!(on.lab.json("counters")?["passed"]["address_conflict"], 6);
    Ok(())
}

/// A switch that sends groups only where they were reported, and asks.
#[test]
fn snooping_switch_is_told_of_the_groups() -> Result<()> {
    let _holds = protocol::holds(
        "uplink::snooping_switch_is_told_of_the_groups",
        None,
        &["M2"],
    );
    let lab = without_prefix()?;
    for line in [
        "ip link add sw type bridge mcast_snooping 1 mcast_querier 1".to_owned(),
        "ip link set sw up".to_owned(),
        format!("ip addr flush dev {LAN}"),
        format!("ip link set {LAN} master sw"),
        format!("ip addr add {GATEWAY4}/24 dev sw"),
        format!("ip addr add {GATEWAY6}/64 dev sw"),
    ] {
        lab.net.run(&line)?;
    }
    lab.net.settled("sw")?;
    // It asks, from the address that it has by now.
    for value in ["0", "1"] {
        lab.net
            .run(&format!("ip link set sw type bridge mcast_querier {value}"))?;
    }
    let asked = wait_until(SOON, || {
        let counters = lab.host.run("cat /proc/thread-self/net/dev_snmp6/eth0");
        counters.is_ok_and(|text| text.contains("Icmp6InType130"))
    });
    ensure!(asked, "the switch does not ask");
    let before = Snapshot::host(&lab)?;
    let reported = || -> Result<bool> {
        let table = lab.net.run("bridge mdb show dev sw")?;
        Ok(["ff02::1:ff00:2", "ff02::1:ff00:3"]
            .iter()
            .all(|group| table.contains(&format!("port {LAN} grp {group} "))))
    };
    ensure!(!reported()?);
    let agent = Agent::start(&lab, "eth0")?;
    let told = wait_until(SOON, || reported().unwrap_or(false));
    ensure!(
        told,
        "{}\n{}",
        lab.net.run("bridge mdb show")?,
        agent.words()
    );
    // Without the agent too: the membership is the kernel's.
    agent.kill()?;
    all_reachable(&lab)?;
    let groups = lab.host.run(&format!("ip -6 maddr show dev {UPLINK}"))?;
    ensure!(
        groups.contains("ff02::1:ff00:2") && groups.contains("ff02::1:ff00:3"),
        "{groups}"
    );
    lab.run("detach")?;
    let changes: Vec<_> = before
        .changes(&Snapshot::host(&lab)?)
        .into_iter()
        .filter(|change| {
            ["ff00:2", "ff00:3", "pin "]
                .iter()
                .any(|word| change.contains(word))
        })
        .collect();
    ensure!(changes.is_empty(), "{}", changes.join("\n"));

    // The link goes down and comes up.
    let agent = Agent::start(&lab, "eth0")?;
    lab.host.run(&format!("ip link set {UPLINK} down"))?;
    configure(&lab, UPLINK)?;
    let joined = || {
        let groups = lab.host.run(&format!("ip -6 maddr show dev {UPLINK}"));
        groups.is_ok_and(|groups| {
            groups.contains("ff02::1:ff00:2") && groups.contains("ff02::1:ff00:3")
        })
    };
    ensure!(wait_until(SOON, joined), "{}", agent.words());
    all_reachable(&lab)?;
    ensure!(!agent.words().contains("WARN"), "{}", agent.words());
    // The kernel does not let go of what it joined before, which is said.
    let output = lab.output("detach")?;
    assert_eq!(output.code(), 3, "{output:?}");
    assert_eq!(
        output.stderr.matches("the kernel stays a member").count(),
        2,
        "{output:?}"
    );
    assert_eq!(output.stderr.lines().count(), 2, "{output:?}");
    Ok(())
}

#[test]
fn uplink_in_another_namespace_has_no_programs() -> Result<()> {
    let mut on = Attached::new(without_prefix()?, Mode::Tc)?;
    let lab = &on.lab;
    let other = Ns::new("other")?;
    let path = other.path();
    lab.host
        .run(&format!("ip link set {UPLINK} netns {}", path.display()))?;
    on.agent
        .wait_line(SOON, |line| line.contains("eth0 is gone"))?;
    let off = wait_until(SOON, || {
        programs(&other, UPLINK).is_ok_and(|left| left == 0)
    });
    ensure!(off, "{} programs left", programs(&other, UPLINK)?);
    // It comes back with the number that it had.
    let home = lab.host.path();
    other.run(&format!("ip link set {UPLINK} netns {}", home.display()))?;
    on.agent
        .wait_line(SOON, |line| line.contains("eth0 is back"))?;
    configure(lab, UPLINK)?;
    wait_ping(&lab.net, lab.machine("web").v4(), SOON)?;
    all_reachable(lab)
}
