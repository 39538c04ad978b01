//! Attacks from a guest: nobody but the guest itself is worse off.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv6Addr},
    path::Path,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use etherparse::{EtherType, IpNumber, Ipv6Header, PacketBuilder};
use netspawn_tests::{
    Attached, Capture, FAR4, GATEWAY4, GATEWAY6, HOST0, HOST4, HOST6, LAN, Lab, Machine, Mode, Ns,
    Pinging, Process, Signal, UPLINK, in_each_mode, ping, send_frame, wait_until,
};
use serde_json::Value;

/// The guest that attacks.
const ATTACKER: &str = "web";
/// A victim of its tenant, who could get its packets.
const VICTIM: &str = "db";
/// Whatever the reason.
const ANY: &str = "";
/// How long an attack may take to be counted.
const SOON: Duration = Duration::from_secs(10);

type Mac = [u8; 6];

fn colons(mac: Mac) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

fn both(machine: &Machine) -> [IpAddr; 2] {
    [machine.v4().into(), machine.v6().into()]
}

/// Somebody whom an attack must not reach.
struct Onlooker<'a> {
    name: String,
    ns: &'a Ns,
    /// What it receives on its only link.
    capture: Capture,
    /// Who it may hear there: the host, or the network's gateway.
    other_end: Mac,
    /// Link-layer addresses that may be in its neighbor table, by interface
    known: BTreeMap<String, Mac>,
    /// and by address, where the interface alone does not tell.
    answered: BTreeMap<String, Mac>,
    routes: Vec<String>,
}

/// Everybody but the attacker.
struct Onlookers<'a>(Vec<Onlooker<'a>>);

fn routes(ns: &Ns) -> Result<Vec<String>> {
    let mut all = Vec::new();
    for family in ["-4", "-6"] {
        let text = ns.run(&format!("ip {family} route show"))?;
        // What path MTU discovery and redirects leave is kept apart.
        let cached = ns.run(&format!("ip {family} route show cache"))?;
        all.extend(text.lines().chain(cached.lines()).map(str::to_owned));
    }
    Ok(all)
}

impl<'a> Onlookers<'a> {
    fn of(lab: &'a Lab) -> Result<Self> {
        let (lan, uplink) = (lab.net.mac(LAN)?, lab.host.mac(UPLINK)?);
        let mut all = vec![
            Onlooker {
                name: "the network".to_owned(),
                ns: &lab.net,
                capture: Capture::incoming(&lab.net, LAN)?,
                other_end: uplink,
                known: [(LAN.to_owned(), uplink)].into(),
                answered: BTreeMap::new(),
                routes: routes(&lab.net)?,
            },
            Onlooker {
                name: "the host".to_owned(),
                ns: &lab.host,
                capture: Capture::incoming(&lab.host, UPLINK)?,
                other_end: lan,
                known: [(UPLINK.to_owned(), lan)].into(),
                answered: BTreeMap::new(),
                routes: routes(&lab.host)?,
            },
        ];
        for machine in lab.machines() {
            let (own, port) = (machine.ns.mac(HOST0)?, lab.host.mac(machine.port())?);
            all[1].known.insert(machine.port().to_owned(), own);
            for address in both(machine) {
                // The host asks for it on its uplink and has the port for an answer.
                all[1].answered.insert(address.to_string(), port);
            }
            if machine.name() != ATTACKER {
                all.push(Onlooker {
                    name: machine.name().to_owned(),
                    ns: &machine.ns,
                    capture: Capture::incoming(&machine.ns, HOST0)?,
                    other_end: port,
                    known: [(HOST0.to_owned(), port)].into(),
                    answered: BTreeMap::new(),
                    routes: routes(&machine.ns)?,
                });
            }
        }
        Ok(Onlookers(all))
    }

    /// Fails unless each has heard nothing but what the other end of its link says of
    /// itself, and knows nothing that is not so.
    fn assert_unmoved(&mut self) -> Result<()> {
        for onlooker in &mut self.0 {
            onlooker
                .assert_unmoved()
                .with_context(|| onlooker.name.clone())?;
        }
        Ok(())
    }
}

impl Onlooker<'_> {
    fn assert_unmoved(&mut self) -> Result<()> {
        // Neighbor discovery and group reports of the other end go on meanwhile.
        const OWN_TALK: usize = 20;
        let other_end = self.other_end;
        let frames = self.capture.frames();
        if let Some(strange) = frames.iter().find(|frame| !is_own_talk(frame, other_end)) {
            let file = Path::new(env!("CARGO_TARGET_TMPDIR")).join("attacks.pcap");
            netspawn_tests::write_pcap(&file, frames)?;
            anyhow::bail!("heard {strange:02x?}, see {}", file.display());
        }
        ensure!(frames.len() <= OWN_TALK, "heard {} frames", frames.len());
        self.capture.clear();
        self.assert_not_deceived()
    }

    fn assert_not_deceived(&self) -> Result<()> {
        let text = self.ns.run("ip -j neigh show")?;
        let neighbors: Vec<Value> = serde_json::from_str(&text)?;
        for entry in neighbors {
            let word = |key: &str| entry[key].as_str().unwrap_or_default();
            let (interface, address, mac) = (word("dev"), word("dst"), word("lladdr"));
            let known = self.answered.get(address).or(self.known.get(interface));
            ensure!(
                mac.is_empty() || known.copied().map(colons).as_deref() == Some(mac),
                "believes {entry}"
            );
        }
        let routes = routes(self.ns)?;
        ensure!(
            routes == self.routes,
            "routes by {routes:#?}, before by {:#?}",
            self.routes
        );
        Ok(())
    }
}

/// Whether a frame is a station's own ARP, neighbor discovery or group report, which
/// names no link-layer address but its own.
fn is_own_talk(frame: &[u8], station: Mac) -> bool {
    const ARP: [u8; 2] = [0x08, 0x06];
    const IPV6: [u8; 2] = [0x86, 0xdd];
    if frame.len() < 42 || frame[6..12] != station {
        return false;
    }
    match [frame[12], frame[13]] {
        ARP => frame[22..28] == station,
        IPV6 => {
            // Group reports stand behind a hop-by-hop header of eight bytes.
            let (next, at) = match frame[20] {
                0 => (frame.get(54).copied(), 62),
                next => (Some(next), 54),
            };
            let kind = frame.get(at).copied().unwrap_or(0);
            let option = match kind {
                // Reports, version 1 and 2; solicitation of routers.
                131 | 143 => return next == Some(58),
                133 => at + 8,
                135 | 136 => at + 24,
                _ => return false,
            };
            next == Some(58)
                && frame
                    .get(option + 2..option + 8)
                    .is_none_or(|mac| mac == station)
        }
        _ => false,
    }
}

/// What is counted on a machine, by reason.
fn drops(lab: &Lab, name: &str) -> Result<BTreeMap<String, u64>> {
    let list = lab.json("list")?;
    let machine = list
        .as_array()
        .and_then(|list| list.iter().find(|machine| machine["name"] == name))
        .with_context(|| format!("no {name} in {list:#}"))?;
    Ok(machine["drops"]
        .as_object()
        .into_iter()
        .flatten()
        .filter_map(|(reason, count)| Some((reason.clone(), count.as_u64()?)))
        .collect())
}

/// The attacker's drops of one reason, or of [`ANY`].
fn dropped(lab: &Lab, reason: &str) -> u64 {
    let drops = drops(lab, ATTACKER).unwrap_or_default();
    drops
        .iter()
        .filter(|(name, _)| reason == ANY || *name == reason)
        .map(|(_, count)| count)
        .sum()
}

/// A tool that runs in the attacker until the value is dropped.
fn start(lab: &Lab, words: &str) -> Result<Process> {
    // They write to a terminal; a pipe would keep their words until they end.
    let mut all = ["stdbuf", "-oL"]
        .into_iter()
        .chain(words.split_whitespace());
    let program = all.next().context("no program")?;
    lab.machine(ATTACKER).ns.cmd(program).args(all).start()
}

/// Runs a tool in the attacker until at least so many of its frames were dropped.
fn attack(lab: &Lab, words: &str, reason: &str, least: u64) -> Result<()> {
    let before = dropped(lab, reason);
    let mut tool = start(lab, words)?;
    let counted = wait_until(SOON, || dropped(lab, reason) >= before + least);
    ensure!(
        counted,
        "{words}: {reason} is {:?}\n{}{}",
        drops(lab, ATTACKER)?,
        tool.out(),
        tool.err()
    );
    if tool.running() {
        tool.end(Signal::SIGKILL, SOON)?;
    }
    Ok(())
}

/// Frames that are a flood.
const FLOOD: u64 = 20_000;

/// thc-ipv6's tools, what their frames are dropped for, and how many at least. `{}` is
/// the victim.
const TOOLS: &[(&str, &str, u64)] = &[
    ("atk6-fake_advertise6 host0 {}", "spoofed_source", 1),
    (
        "atk6-fake_advertise6 host0 2001:db8::10",
        "spoofed_source",
        1,
    ),
    (
        "atk6-fake_advertise6 host0 2001:db8::1",
        "spoofed_source",
        1,
    ),
    ("atk6-fake_solicitate6 host0 {}", "bad_frame", 1),
    (
        "atk6-fake_router6 host0 2001:db8:66::/64",
        "rogue_router",
        1,
    ),
    (
        "atk6-fake_router26 -A 2001:db8:66::/64 host0",
        "rogue_router",
        1,
    ),
    (
        "atk6-redir6 host0 {} 2001:db8::10 fe80::1 fe80::2",
        "spoofed_source",
        1,
    ),
    ("atk6-smurf6 host0 {}", "spoofed_source", FLOOD),
    ("atk6-flood_redir6 host0", "rogue_router", FLOOD),
    ("atk6-flood_rs6 host0", "multicast", FLOOD),
];

/// Floods from link-layer addresses that are made up.
const FLOODS: &[&str] = &[
    "atk6-flood_advertise6 host0",
    "atk6-flood_solicitate6 host0",
    "atk6-flood_solicitate6 host0 {}",
    "atk6-flood_router6 host0",
    "atk6-flood_router26 host0",
    "atk6-flood_mld6 host0",
    "atk6-flood_mld26 host0",
    "atk6-flood_mldrouter6 host0",
];

fn forgeries_and_floods_of_neighbor_discovery_reach_nobody(mode: Mode) -> Result<()> {
    let on = Attached::usual(mode)?;
    let lab = &on.lab;
    let victim = lab.machine(VICTIM).v6().to_string();
    warm(lab)?;
    let mut onlookers = Onlookers::of(lab)?;
    for (words, reason, least) in TOOLS {
        attack(lab, &words.replace("{}", &victim), reason, *least)?;
        onlookers
            .assert_unmoved()
            .with_context(|| words.to_string())?;
    }
    for words in FLOODS {
        attack(lab, &words.replace("{}", &victim), "spoofed_mac", FLOOD)?;
        onlookers
            .assert_unmoved()
            .with_context(|| words.to_string())?;
    }
    attack(lab, "atk6-flood_dhcpc6 host0", "spoofed_mac", 1_000)?;
    onlookers.assert_unmoved().context("flood_dhcpc6")?;
    drop(onlookers);
    still_reached(lab)
}

/// A guest that may use any link-layer address is held to its addresses all the same.
fn floods_of_a_guest_with_any_mac_reach_nobody(mode: Mode) -> Result<()> {
    let lab = Lab::usual()?;
    let attacker = lab.machine(ATTACKER);
    lab.declare(
        ATTACKER,
        &format!("any-mac = true\n{}", attacker.declaration()),
    )?;
    let on = Attached::new(lab, mode)?;
    let lab = &on.lab;
    let victim = lab.machine(VICTIM).v6().to_string();
    warm(lab)?;
    let mut onlookers = Onlookers::of(lab)?;
    for words in FLOODS {
        attack(lab, &words.replace("{}", &victim), ANY, FLOOD)?;
        onlookers
            .assert_unmoved()
            .with_context(|| words.to_string())?;
    }
    drop(onlookers);
    still_reached(lab)
}

/// Lets everybody learn what there is to learn.
fn warm(lab: &Lab) -> Result<()> {
    for machine in lab.machines() {
        for (own, outer) in both(machine)
            .into_iter()
            .zip([IpAddr::from(GATEWAY4), GATEWAY6.into()])
        {
            ping(&lab.net, own)?;
            ping(&lab.host, own)?;
            ping(&machine.ns, outer)?;
        }
    }
    ping(&lab.host, GATEWAY4)?;
    ping(&lab.host, GATEWAY6)
}

/// Everybody reaches the victim, and the victim everybody; entries are learned anew.
fn still_reached(lab: &Lab) -> Result<()> {
    let victim = lab.machine(VICTIM);
    for ns in [&lab.net, &lab.host, &victim.ns] {
        ns.run("ip neigh flush all")?;
    }
    for own in both(victim) {
        ping(&lab.net, own)?;
        ping(&lab.host, own)?;
        ping(&lab.machine("mail").ns, own)?;
    }
    ping(&victim.ns, HOST6)?;
    ping(&victim.ns, FAR4)
}

fn flood_does_not_stop_the_pings_of_others(mode: Mode) -> Result<()> {
    const PINGS: usize = 50;
    let on = Attached::usual(mode)?;
    let lab = &on.lab;
    let victim = lab.machine(VICTIM);
    warm(lab)?;
    for (words, reason) in [
        ("atk6-flood_advertise6 host0", "spoofed_mac"),
        ("atk6-smurf6 host0 2001:db8::3", "spoofed_source"),
        ("atk6-flood_redir6 host0", "rogue_router"),
    ] {
        let before = dropped(lab, reason);
        let tool = start(lab, words)?;
        let flooded = wait_until(SOON, || dropped(lab, reason) > before + FLOOD);
        ensure!(flooded, "{words}: {}", tool.err());
        let pings = [
            Pinging::start(&lab.net, victim.v4())?,
            Pinging::start(&lab.net, victim.v6())?,
            Pinging::start(&victim.ns, FAR4)?,
            Pinging::start(&lab.host, victim.v4())?,
        ];
        let enough = wait_until(SOON, || pings.iter().all(|ping| ping.answers() >= PINGS));
        ensure!(enough, "{words}: few answers");
        let during = dropped(lab, reason) - before;
        for ping in pings {
            ping.lost_none().with_context(|| words.to_owned())?;
        }
        println!("{mode:?} {words}: no ping lost, {during} frames dropped");
        tool.end(Signal::SIGKILL, SOON)?;
    }
    Ok(())
}

/// Tools that answer what they hear: other machines' questions, and tests of addresses.
fn tools_that_lie_in_wait_hear_nothing(mode: Mode) -> Result<()> {
    let on = Attached::usual(mode)?;
    let lab = &on.lab;
    let attacker = lab.machine(ATTACKER);
    let victim = lab.machine(VICTIM);
    warm(lab)?;
    let mut waiting = Vec::new();
    for (words, ready) in [
        ("atk6-parasite6 host0", "Started"),
        ("atk6-dos-new-ip6 host0", "Started"),
        ("atk6-detect-new-ip6 host0", "Started"),
        (
            "atk6-fake_dhcps6 host0 2001:db8:66::/64 2001:db8::53",
            "Starting",
        ),
    ] {
        let mut tool = start(lab, words)?;
        tool.wait_line(SOON, |line| line.contains(ready))?;
        waiting.push((words, tool));
    }
    let mut heard = Capture::incoming(&attacker.ns, HOST0)?;
    still_reached(lab)?;
    // A new address of somebody else passes its test.
    let dad = format!("net/ipv6/conf/{HOST0}/accept_dad");
    victim.ns.set_sysctl(&dad, "1")?;
    for address in [victim.v6(), "2001:db8::77".parse::<Ipv6Addr>()?] {
        victim
            .ns
            .run(&format!("ip addr replace {address}/128 dev {HOST0}"))?;
        let unique = wait_until(SOON, || {
            let line = format!("ip -6 addr show dev {HOST0} to {address} -tentative");
            victim.ns.run(&line).is_ok_and(|text| !text.is_empty())
        });
        ensure!(unique, "{address} did not pass");
    }
    let own = lab.host.mac(attacker.port())?;
    let strange: Vec<_> = heard
        .frames()
        .iter()
        .filter(|frame| !is_own_talk(frame, own))
        .collect();
    ensure!(strange.is_empty(), "the attacker heard {strange:02x?}");
    for (words, mut tool) in waiting {
        ensure!(tool.running(), "{words} ended\n{}", tool.err());
        // What each says for every question that it answers.
        let said = tool.out() + &tool.err();
        let answered = ["Spoofed packet", "Detected new", "Received DHCP6"];
        let caught = answered.iter().any(|words| said.contains(words));
        ensure!(!caught, "{words} printed {said}");
    }
    Ok(())
}

fn arpspoof_takes_nothing_over(mode: Mode) -> Result<()> {
    let on = Attached::usual(mode)?;
    let lab = &on.lab;
    let attacker = lab.machine(ATTACKER);
    let victim = lab.machine(VICTIM);
    // It asks for its targets as if they were on its link; each port answers that.
    attacker
        .ns
        .run(&format!("ip route add 203.0.113.0/24 dev {HOST0}"))?;
    warm(lab)?;
    for target in [GATEWAY4, victim.v4(), HOST4] {
        ping(&attacker.ns, target)?;
    }
    let mut onlookers = Onlookers::of(lab)?;
    for (target, claimed) in [
        (Some(GATEWAY4), victim.v4()),
        (Some(victim.v4()), GATEWAY4),
        (Some(HOST4), victim.v4()),
        (Some(HOST4), GATEWAY4),
        (None, victim.v4()),
        (None, GATEWAY4),
        (None, HOST4),
    ] {
        let target = target.map_or(String::new(), |target| format!("-t {target}"));
        let words = format!("arpspoof -i {HOST0} {target} {claimed}");
        attack(lab, &words, "spoofed_source", 1).context(words.clone())?;
        for onlooker in &onlookers.0 {
            onlooker.assert_not_deceived().context(words.clone())?;
        }
    }
    // It tries targets out by a datagram of its own, which is fair.
    for onlooker in &mut onlookers.0 {
        let own = attacker.ns.mac(HOST0)?;
        let heard = onlooker.capture.containing(&own);
        ensure!(heard.is_empty(), "{} heard {heard:02x?}", onlooker.name);
        let arp = |frame: &&Vec<u8>| frame[12..14] == [8, 6];
        let other_end = onlooker.other_end;
        let frames = onlooker.capture.frames();
        let strange = frames
            .iter()
            .filter(arp)
            .find(|frame| !is_own_talk(frame, other_end));
        ensure!(strange.is_none(), "{} heard {strange:02x?}", onlooker.name);
    }
    drop(onlookers);
    still_reached(lab)
}

/// What each of several askers does to find a machine.
fn questions(machine: &Machine) -> [Vec<String>; 4] {
    let (v4, v6) = (machine.v4().to_string(), machine.v6().to_string());
    let words = |line: &str| line.split(' ').map(str::to_owned).collect::<Vec<_>>();
    [
        words(&format!("ping -n -c 1 -W 1 {v4}")),
        words(&format!("ping -n -c 1 -W 1 {v6}")),
        words(&format!("arping -c 1 -w 1 -I IF {v4}")),
        words(&format!("ndisc6 -n -r 1 -w 300 {v6} IF")),
    ]
}

/// With proxy_arp, machines hear each other's questions and may answer them.
fn machine_hears_nothing_while_another_is_asked_for(mode: Mode) -> Result<()> {
    let on = Attached::usual(mode)?;
    let lab = &on.lab;
    let (asked, third, other) = (lab.machine("db"), lab.machine("mail"), lab.machine("web"));
    let port = lab.host.mac(other.port())?;
    let mut heard = Capture::incoming(&other.ns, HOST0)?;
    let mut reached = Capture::incoming(&asked.ns, HOST0)?;
    for (ns, interface) in [(&lab.net, LAN), (&lab.host, UPLINK), (&third.ns, HOST0)] {
        ns.run("ip neigh flush all")?;
        for words in questions(asked) {
            let words = words.iter().map(|word| match word.as_str() {
                "IF" => interface,
                word => word,
            });
            let words: Vec<_> = words.collect();
            ns.run(&words.join(" "))?;
        }
    }
    // And for a test of whether it is taken.
    lab.net
        .cmd("arping")
        .args(["-D", "-c", "1", "-w", "1", "-I", LAN])
        .arg(asked.v4().to_string())
        .output()?;
    let frames = heard.frames();
    // The host's kernel looks for routers and reports groups on each port by itself.
    let own = |frame: &&Vec<u8>| {
        let link_local = frame.len() > 24 && frame[22..24] == [0xfe, 0x80];
        !(link_local && is_own_talk(frame, port))
    };
    let strange: Vec<_> = frames.iter().filter(own).collect();
    ensure!(strange.is_empty(), "heard {strange:02x?}");
    // The pings of three, by IPv4 and IPv6.
    let count = reached.containing(&asked.v4().octets()).len()
        + reached.containing(&asked.v6().octets()).len();
    ensure!(count >= 6, "the machine asked for heard {count} frames");
    Ok(())
}

/// Judges that believe everything would be none.
fn onlookers_notice_what_reaches_them(mode: Mode) -> Result<()> {
    let on = Attached::usual(mode)?;
    let lab = &on.lab;
    let (attacker, victim) = (lab.machine(ATTACKER), lab.machine(VICTIM));
    warm(lab)?;
    let mut onlookers = Onlookers::of(lab)?;
    onlookers.assert_unmoved()?;
    for (target, name) in [
        (victim.v4(), VICTIM),
        (GATEWAY4, "the network"),
        (HOST4, "the host"),
    ] {
        ping(&attacker.ns, target)?;
        let noticed = onlookers.assert_unmoved();
        let noticed = noticed.expect_err("a ping has reached one");
        ensure!(noticed.to_string() == name, "{noticed:#}");
        for onlooker in &mut onlookers.0 {
            onlooker.capture.clear();
        }
    }
    for (ns, interface) in [(&lab.net, LAN), (&lab.host, UPLINK), (&victim.ns, HOST0)] {
        let lie = format!("192.0.2.9 dev {interface}");
        let mac = colons(attacker.ns.mac(HOST0)?);
        ns.run(&format!("ip neigh replace {lie} lladdr {mac}"))?;
        ensure!(onlookers.assert_unmoved().is_err(), "{interface}");
        ns.run(&format!("ip neigh del {lie}"))?;
        let lie = format!("2001:db8:66::/64 dev {interface}");
        ns.run(&format!("ip route add {lie}"))?;
        ensure!(onlookers.assert_unmoved().is_err(), "{interface}");
        ns.run(&format!("ip route del {lie}"))?;
    }
    onlookers.assert_unmoved()
}

fn machine_that_has_anothers_address_is_not_heard(mode: Mode) -> Result<()> {
    let on = Attached::usual(mode)?;
    let lab = &on.lab;
    let (victim, attacker) = (lab.machine(VICTIM), lab.machine(ATTACKER));
    warm(lab)?;
    // It has them, answers for them, says so, and answers for all else as well.
    for setting in [
        "net/ipv4/conf/all/proxy_arp",
        "net/ipv4/conf/all/arp_accept",
    ] {
        attacker.ns.set_sysctl(setting, "1")?;
    }
    attacker
        .ns
        .run(&format!("ip addr add {}/24 dev {HOST0}", victim.v4()))?;
    attacker
        .ns
        .run(&format!("ip addr add {}/64 dev {HOST0} nodad", victim.v6()))?;
    let own = attacker.ns.mac(HOST0)?;
    let mut onlookers = Onlookers::of(lab)?;
    for kind in ["-U", "-A"] {
        attacker
            .ns
            .cmd("arping")
            .args([kind, "-c", "1", "-w", "1", "-I", HOST0])
            .args(["-s", &victim.v4().to_string(), &victim.v4().to_string()])
            .output()?;
    }
    ensure!(
        dropped(lab, "spoofed_source") >= 2,
        "{:?}",
        drops(lab, ATTACKER)?
    );
    onlookers.assert_unmoved()?;
    let mut reached = Capture::incoming(&victim.ns, HOST0)?;
    let mut taken = Capture::incoming(&attacker.ns, HOST0)?;
    for ns in [&lab.net, &lab.host, &lab.machine("mail").ns] {
        ns.run("ip neigh flush all")?;
        for address in both(victim) {
            ping(ns, address)?;
        }
    }
    for onlooker in &onlookers.0 {
        onlooker.assert_not_deceived()?;
    }
    let echo = |frame: &&Vec<u8>| {
        (frame[12..14] == [8, 0] && frame.get(34) == Some(&8))
            || (frame[12..14] == [0x86, 0xdd] && frame.get(54) == Some(&128))
    };
    assert_eq!(reached.frames().iter().filter(echo).count(), 6);
    assert_eq!(taken.frames().iter().filter(echo).count(), 0);
    for onlooker in &mut onlookers.0 {
        let heard = onlooker.capture.containing(&own);
        ensure!(heard.is_empty(), "{} heard {heard:02x?}", onlooker.name);
    }
    Ok(())
}

/// Frames with a payload that nobody else sends.
const MARKER: &[u8] = b"a payload that only this test sends";

fn udp(macs: (Mac, Mac), from: IpAddr, to: IpAddr, ports: (u16, u16)) -> Vec<u8> {
    let mut frame = Vec::new();
    let ethernet = PacketBuilder::ethernet2(macs.0, macs.1);
    let step = match (from, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => ethernet.ipv4(from.octets(), to.octets(), 64),
        (IpAddr::V6(from), IpAddr::V6(to)) => ethernet.ipv6(from.octets(), to.octets(), 64),
        _ => panic!("{from} and {to} are of two kinds"),
    };
    step.udp(ports.0, ports.1)
        .write(&mut frame, MARKER)
        .expect("a Vec takes everything");
    frame
}

fn a_host_of_stations_and_servers_behind_one_port_reaches_nobody(mode: Mode) -> Result<()> {
    const STATIONS: u8 = 100;
    let on = Attached::usual(mode)?;
    let lab = &on.lab;
    let (attacker, victim) = (lab.machine(ATTACKER), lab.machine(VICTIM));
    let (own, port) = (attacker.ns.mac(HOST0)?, lab.host.mac(attacker.port())?);
    warm(lab)?;
    let mut onlookers = Onlookers::of(lab)?;
    let mut count = BTreeMap::from([
        ("spoofed_mac", 0),
        ("spoofed_source", 0),
        ("rogue_dhcp", 0),
        ("vlan", 0),
    ]);
    let mut send = |reason: &'static str, frame: &[u8]| -> Result<()> {
        *count.entry(reason).or_default() += 1;
        send_frame(&attacker.ns, HOST0, frame)
    };
    let [own4, own6] = both(attacker);
    let [to4, to6] = both(victim);
    for station in 0..STATIONS {
        let mac = [2, 0x66, 0, 0, 0, station];
        send("spoofed_mac", &udp((mac, port), own4, to4, (4000, 4000)))?;
        let stranger: [IpAddr; 2] = [
            [203, 0, 113, 100 + station].into(),
            Ipv6Addr::from(0x2001_0db8_0000_0000_0000_0000_6600_0000 + u128::from(station)).into(),
        ];
        for (from, to) in stranger.into_iter().zip([to4, to6]) {
            send("spoofed_source", &udp((own, port), from, to, (4000, 4000)))?;
        }
    }
    let everybody: [IpAddr; 2] = [[255; 4].into(), "ff02::1".parse()?];
    for (from, to, mac, ports) in [
        (own4, everybody[0], [0xff; 6], (67, 68)),
        (own4, to4, port, (67, 68)),
        (own4, HOST4.into(), port, (67, 68)),
        (own6, to6, port, (547, 546)),
        (own6, HOST6.into(), port, (547, 546)),
    ] {
        send("rogue_dhcp", &udp((own, mac), from, to, ports))?;
    }
    for tag in [[0x81, 0, 0, 7], [0x88, 0xa8, 0, 7], [0x81, 0, 0xe0, 0]] {
        for (from, to) in [(own4, to4), (own6, to6), (own4, GATEWAY4.into())] {
            let frame = udp((own, port), from, to, (4000, 4000));
            let tagged = [&frame[..12], &tag, &frame[12..]].concat();
            send("vlan", &tagged)?;
        }
    }
    let right = wait_until(SOON, || {
        count.iter().all(|(reason, n)| dropped(lab, reason) == *n)
    });
    ensure!(right, "{count:?} were sent, {:?}", drops(lab, ATTACKER)?);
    onlookers.assert_unmoved()?;
    drop(onlookers);
    still_reached(lab)
}

/// dnsmasq as a guest's own router and DHCP server.
fn router_and_dhcp_server_of_a_guest_are_not_heard(mode: Mode) -> Result<()> {
    let on = Attached::usual(mode)?;
    let lab = &on.lab;
    let (attacker, victim) = (lab.machine(ATTACKER), lab.machine(VICTIM));
    warm(lab)?;
    for address in ["192.0.2.1/24", "2001:db8:66::1/64 nodad"] {
        attacker
            .ns
            .run(&format!("ip addr add {address} dev {HOST0}"))?;
    }
    let mut onlookers = Onlookers::of(lab)?;
    let mut server = attacker
        .ns
        .cmd("dnsmasq")
        .args(["--conf-file=/dev/null", "--no-daemon", "--port=0"])
        .args(["--user=root", "--group=root", "--pid-file="])
        .args(["--leasefile-ro", "--no-ping", "--no-resolv", "--no-hosts"])
        .args(["--bind-dynamic", "--log-dhcp", "--enable-ra"])
        .arg(format!("--interface={HOST0}"))
        .arg("--dhcp-range=192.0.2.2,192.0.2.9,255.255.255.0,300")
        .arg("--dhcp-range=2001:db8:66::2,2001:db8:66::9,64,300")
        .start()?;
    let advertised = wait_until(SOON, || dropped(lab, "rogue_router") >= 1);
    ensure!(advertised, "{}", server.err());
    onlookers.assert_unmoved()?;
    // A guest that asks for an address, and for a router, is heard by no other guest.
    victim
        .ns
        .cmd("dhclient")
        .args(["-4", "-1", "-d", "-sf", "/bin/true", "-lf", "/dev/null"])
        .arg("-pf")
        .arg(lab.dir().join("dhclient.pid"))
        .arg(HOST0)
        .start()?
        .wait_line(SOON, |line| line.contains("DHCPDISCOVER"))?;
    victim
        .ns
        .cmd("rdisc6")
        .args(["-r", "1", "-w", "300", HOST0])
        .output()?;
    ensure!(server.running(), "{}", server.err());
    let heard = server.out() + &server.err();
    ensure!(!heard.contains("DHCPDISCOVER"), "{heard}");
    for onlooker in &onlookers.0 {
        onlooker.assert_not_deceived()?;
    }
    Ok(())
}

/// Neighbor discovery that hides behind extension headers (RFC 6980, RFC 7113).
fn hidden(header: IpNumber) -> &'static [u8] {
    match header {
        // Offset 0, and no more to come: an atomic fragment.
        IpNumber::IPV6_FRAGMENTATION_HEADER => &[58, 0, 0, 0, 0, 0, 0, 7],
        // Four bytes of padding.
        _ => &[58, 0, 1, 4, 0, 0, 0, 0],
    }
}

fn icmp6(from: Ipv6Addr, to: Ipv6Addr, kind: u8, body: &[u8]) -> Vec<u8> {
    let mut message = [&[kind, 0, 0, 0][..], body].concat();
    let mut sum = 58 + message.len() as u64;
    let addresses = [from.octets(), to.octets()].concat();
    for pair in addresses.chunks(2).chain(message.chunks(2)) {
        sum += u64::from(pair[0]) << 8 | u64::from(pair[1]);
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    message[2..4].copy_from_slice(&(!(sum as u16)).to_be_bytes());
    message
}

fn neighbor_discovery_behind_extension_headers_deceives_nobody(mode: Mode) -> Result<()> {
    let on = Attached::usual(mode)?;
    let lab = &on.lab;
    let (attacker, victim) = (lab.machine(ATTACKER), lab.machine(VICTIM));
    let own = attacker.ns.mac(HOST0)?;
    let port = lab.host.mac(attacker.port())?;
    let link_local = |ns: &Ns, interface: &str| -> Result<Ipv6Addr> {
        let text = ns.run(&format!("ip -6 -o addr show dev {interface} scope link"))?;
        let word = text
            .split_whitespace()
            .nth(3)
            .context("no link-local address")?;
        Ok(word.split('/').next().unwrap_or_default().parse()?)
    };
    let own_local = link_local(&attacker.ns, HOST0)?;
    let port_local = link_local(&lab.host, attacker.port())?;
    // As a host that configures itself has it.
    for interface in [UPLINK, attacker.port()] {
        let key = format!("net/ipv6/conf/{interface}/accept_ra");
        lab.host.set_sysctl(&key, "1")?;
    }
    warm(lab)?;
    let onlookers = Onlookers::of(lab)?;
    let option = |kind: u8| [&[kind, 1][..], &own].concat();
    // Override, unsolicited: the claimed address is at the attacker's.
    let advertisement =
        |claimed: Ipv6Addr| [&[0x20, 0, 0, 0][..], &claimed.octets(), &option(2)].concat();
    let solicitation = |target: Ipv6Addr| [&[0; 4][..], &target.octets(), &option(1)].concat();
    // A router for half an hour, with a prefix to make addresses of.
    let prefix: Ipv6Addr = "2001:db8:66::".parse()?;
    let lifetimes = [0, 0, 7, 8].repeat(2);
    let router = [
        &[64, 0, 7, 8, 0, 0, 0, 0, 0, 0, 0, 0][..],
        &option(1),
        &[3, 4, 64, 0xc0],
        &lifetimes,
        &[0; 4],
        &prefix.octets(),
    ]
    .concat();
    let redirect = |from: Ipv6Addr, about: Ipv6Addr| {
        [&[0; 4][..], &from.octets(), &about.octets(), &option(2)].concat()
    };
    let v6 = attacker.v6();
    for header in [
        IpNumber::IPV6_DESTINATION_OPTIONS,
        IpNumber::IPV6_HEADER_HOP_BY_HOP,
        IpNumber::IPV6_FRAGMENTATION_HEADER,
    ] {
        for (from, to) in [
            (v6, HOST6),
            (v6, victim.v6()),
            (v6, GATEWAY6),
            (own_local, port_local),
            (own_local, "ff02::1".parse()?),
            (v6, "ff02::1".parse()?),
        ] {
            for (kind, body) in [
                (136, advertisement(GATEWAY6)),
                (136, advertisement(victim.v6())),
                (136, advertisement(HOST6)),
                (135, solicitation(to)),
                (134, router.clone()),
                (137, redirect(own_local, GATEWAY6)),
            ] {
                let message = icmp6(from, to, kind, &body);
                let payload = [hidden(header), &message].concat();
                let ip = Ipv6Header {
                    payload_length: payload.len().try_into()?,
                    next_header: header,
                    hop_limit: 255,
                    source: from.octets(),
                    destination: to.octets(),
                    ..Default::default()
                };
                let mac = if to.is_multicast() {
                    [0x33, 0x33, 0, 0, 0, 1]
                } else {
                    port
                };
                let mut frame = [&mac[..], &own, &EtherType::IPV6.0.to_be_bytes()].concat();
                ip.write(&mut frame)?;
                frame.extend(payload);
                send_frame(&attacker.ns, HOST0, &frame)?;
            }
            for onlooker in &onlookers.0 {
                onlooker.assert_not_deceived().with_context(|| {
                    let name = &onlooker.name;
                    format!("{name}, behind header {} from {from} to {to}", header.0)
                })?;
            }
        }
    }
    drop(onlookers);
    still_reached(lab)
}

/// How long a machine changes its link, about a hundred times a second.
const FLAPPING: Duration = Duration::from_secs(6);

/// A machine whose link comes and goes is announced and logged within a budget, and as it is
/// in the end.
#[test]
fn machine_that_sets_its_link_down_and_up_is_no_storm() -> Result<()> {
    let on = Attached::usual(Mode::Tc)?;
    let lab = &on.lab;
    let web = lab.machine(ATTACKER);
    let (v4, v6) = (web.v4().octets(), web.v6().octets());
    // Those of the start are over.
    std::thread::sleep(Duration::from_secs(3));
    let said = on.agent.words().len();
    let mut capture = Capture::incoming(&lab.net, LAN)?;
    let uplink = lab.host.mac(UPLINK)?;
    let script = format!(
        "end=$(($(date +%s) + {})); n=0
        while [ $(date +%s) -lt $end ]; do
            ip link set {HOST0} down; ip link set {HOST0} up; n=$((n + 1)); sleep 0.005
        done; echo $n",
        FLAPPING.as_secs()
    );
    let times: usize = web
        .ns
        .cmd("sh")
        .args(["-c", &script])
        .text()?
        .trim()
        .parse()?;
    ensure!(times > 50, "only {times} times");
    // Its routes went with its link.
    lab.unplug(web)?;
    lab.plug(web)?;
    let state = || -> Result<Value> {
        let list = lab.json("list")?;
        let mut machines = list.as_array().into_iter().flatten();
        let web = machines.find(|machine| machine["name"] == ATTACKER);
        Ok(web.context("no such machine")?["state"].clone())
    };
    let up = wait_until(SOON, || state().is_ok_and(|state| state == "up"));
    ensure!(up, "{}", state()?);
    ping(&lab.net, web.v4())?;
    ping(&lab.net, web.v6())?;

    let announced = |frames: &[Vec<u8>], address: &[u8]| {
        let of = |frame: &&Vec<u8>| {
            // To everybody, from the uplink, about that address.
            frame[0] & 1 == 1
                && frame[6..12] == uplink
                && frame.windows(address.len()).any(|part| part == address)
        };
        frames.iter().filter(of).count()
    };
    // At most 12 at once, and one in five seconds; solicitations of the kernel are some.
    for address in [&v4[..], &v6] {
        let count = announced(capture.frames(), address);
        ensure!(count < 30, "{count} announcements after {times} times");
        ensure!(count > 0);
    }
    let words = on.agent.words();
    let lines = |words: &str| words.lines().filter(|line| line.contains("web is")).count();
    let count = lines(&words[said..]);
    ensure!(count < 20, "{count} lines after {times} times");
    // In the end all is said: by the log, at the next look at everything, and on the network.
    capture.clear();
    let end = wait_until(Duration::from_secs(60), || {
        let last = on.agent.words();
        let last = last.lines().rfind(|line| line.contains("web is"));
        [&v4[..], &v6]
            .iter()
            .all(|address| announced(capture.frames(), address) > 0)
            && last.is_some_and(|line| line.contains("web is up"))
    });
    ensure!(end, "{}", on.agent.words());
    println!("{times} times: {count} lines");
    Ok(())
}

in_each_mode! {
    onlookers_notice_what_reaches_them
    forgeries_and_floods_of_neighbor_discovery_reach_nobody
    floods_of_a_guest_with_any_mac_reach_nobody
    flood_does_not_stop_the_pings_of_others
    tools_that_lie_in_wait_hear_nothing
    arpspoof_takes_nothing_over
    machine_hears_nothing_while_another_is_asked_for
    machine_that_has_anothers_address_is_not_heard
    a_host_of_stations_and_servers_behind_one_port_reaches_nobody
    router_and_dhcp_server_of_a_guest_are_not_heard
    neighbor_discovery_behind_extension_headers_deceives_nobody
}
