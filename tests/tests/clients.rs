//! What real clients make of the data plane, as neighbors and as guests.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use netspawn_tests::{
    Attached, Capture, Checksums, DELEGATED, FAR4, FAR6, GATEWAY4, GATEWAY6, HOST0, HOST4, HOST6,
    INSIDE, LAN, Lab, Machine, Mode, Ns, Process, Spec, UPLINK, habets_arping, in_each_mode, ping,
    unreachable, wait_until,
};
use serde_json::Value;

/// What every port answers for.
const ANY_GATEWAY: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 1);
/// What every port answers for.
const PORT_GATEWAY: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);
/// On the uplink's network, and nobody's.
const NOBODY4: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 99);
/// On the uplink's network, and nobody's.
const NOBODY6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0x99);

fn colons(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

/// Who asks, from which interface, and the only link-layer address that may answer.
struct Asker<'a> {
    ns: &'a Ns,
    interface: &'a str,
    answered_by: String,
}

impl<'a> Asker<'a> {
    /// A neighbor on the uplink's network.
    fn outside(lab: &'a Lab) -> Result<Self> {
        Ok(Asker {
            ns: &lab.net,
            interface: LAN,
            answered_by: colons(lab.host.mac(UPLINK)?),
        })
    }

    /// A guest.
    fn guest(lab: &'a Lab, machine: &'a Machine) -> Result<Self> {
        Ok(Asker {
            ns: &machine.ns,
            interface: HOST0,
            answered_by: colons(lab.host.mac(machine.port())?),
        })
    }
}

fn arping_of_both_kinds_gets_one_answer(mode: Mode) -> Result<()> {
    let on = Attached::usual(mode)?;
    let lab = &on.lab;
    let (web, db) = (lab.machine("web"), lab.machine("db"));
    let habets = habets_arping()?;
    let outside = Asker::outside(lab)?;
    let guest = Asker::guest(lab, web)?;
    let asked = [
        (&outside, web.v4()),
        (&outside, db.v4()),
        (&outside, HOST4),
        (&guest, ANY_GATEWAY),
        (&guest, GATEWAY4),
        (&guest, HOST4),
        (&guest, db.v4()),
        (&guest, NOBODY4),
    ];
    for (asker, target) in asked {
        let answers_are = |text: &str, mark: &str, asked: usize| -> Result<()> {
            let answers: Vec<_> = text.lines().filter(|line| line.contains(mark)).collect();
            let right = |line: &&&str| line.to_lowercase().contains(&asker.answered_by);
            ensure!(
                answers.len() == asked && answers.iter().filter(right).count() == asked,
                "{target} is at {} for {}, and not:\n{text}",
                asker.answered_by,
                asker.ns.name()
            );
            Ok(())
        };
        let iputils = asker
            .ns
            .cmd("arping")
            .args(["-c", "1", "-w", "3", "-I", asker.interface])
            .arg(target.to_string())
            .text()?;
        answers_are(&iputils, "reply from", 1)?;
        let habets = asker
            .ns
            .cmd(&habets)
            .args(["-c", "3", "-W", "0.02", "-w", "3", "-i", asker.interface])
            .arg(target.to_string())
            .text()?;
        answers_are(&habets, "bytes from", 3)?;
    }
    for (asker, target) in [(&outside, NOBODY4), (&guest, web.v4())] {
        let output = asker
            .ns
            .cmd("arping")
            .args(["-c", "1", "-w", "1", "-I", asker.interface])
            .arg(target.to_string())
            .output()?;
        ensure!(output.code() == 1, "{target} answers\n{}", output.stdout);
    }
    Ok(())
}

/// Which link-layer addresses answer for what, as arp-scan prints it.
fn arp_scan(asker: &Asker) -> Result<BTreeMap<Ipv4Addr, Vec<String>>> {
    let text = asker
        .ns
        .cmd("arp-scan")
        .args(["--plain", "--numeric", "--timeout=300", "--retry=1"])
        .args(["--interface", asker.interface, "203.0.113.0/28"])
        .text()?;
    let mut found: BTreeMap<_, Vec<_>> = BTreeMap::new();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        let (Some(address), Some(mac)) = (words.next(), words.next()) else {
            bail!("arp-scan printed {line}");
        };
        found
            .entry(address.parse()?)
            .or_default()
            .push(mac.to_owned());
    }
    Ok(found)
}

fn arp_scan_finds_everybody_once(mode: Mode) -> Result<()> {
    let on = Attached::usual(mode)?;
    let lab = &on.lab;
    let web = lab.machine("web");
    let outside = Asker::outside(lab)?;
    let there: BTreeSet<_> = lab
        .machines()
        .iter()
        .map(Machine::v4)
        .chain([HOST4])
        .collect();
    let expected: BTreeMap<_, _> = there
        .iter()
        .map(|address| (*address, vec![outside.answered_by.clone()]))
        .collect();
    assert_eq!(arp_scan(&outside)?, expected, "from outside");

    let guest = Asker::guest(lab, web)?;
    let expected: BTreeMap<_, _> = (0..16)
        .map(|last| Ipv4Addr::new(203, 0, 113, last))
        .filter(|address| *address != web.v4())
        .map(|address| (address, vec![guest.answered_by.clone()]))
        .collect();
    assert_eq!(arp_scan(&guest)?, expected, "from a guest");
    Ok(())
}

/// The answers to `ndisc6`, `rdisc6`; none where it says so itself.
fn discover(asker: &Asker, program: &str, target: Option<Ipv6Addr>) -> Result<Vec<String>> {
    let output = asker
        .ns
        .cmd(program)
        .args(["-n", "-m", "-r", "2", "-w", "150"])
        .args(target.map(|target| target.to_string()))
        .arg(asker.interface)
        .output()?;
    // 2 is its word for "no response".
    ensure!([0, 2].contains(&output.code()), "{output:?}");
    let answers = output
        .stdout
        .lines()
        .filter_map(|line| line.strip_prefix("Target link-layer address: "))
        .map(str::to_lowercase)
        .collect();
    ensure!(
        !output.stdout.contains("Prefix"),
        "a router advertises itself\n{}",
        output.stdout
    );
    Ok(answers)
}

fn ndisc6_and_rdisc6_hear_one_station_and_no_router(mode: Mode) -> Result<()> {
    let on = Attached::usual(mode)?;
    let lab = &on.lab;
    let (web, db) = (lab.machine("web"), lab.machine("db"));
    let mut heard = Capture::start(&lab.net, LAN)?;
    let mut heard_within = Capture::start(&web.ns, HOST0)?;
    let outside = Asker::outside(lab)?;
    for target in [web.v6(), INSIDE, db.v6(), HOST6] {
        let answers = discover(&outside, "ndisc6", Some(target))?;
        assert_eq!(answers, [&*outside.answered_by], "{target} from outside");
    }
    let guest = Asker::guest(lab, web)?;
    for target in [PORT_GATEWAY, GATEWAY6, HOST6, db.v6(), NOBODY6] {
        let answers = discover(&guest, "ndisc6", Some(target))?;
        assert_eq!(answers, [&*guest.answered_by], "{target} from a guest");
    }
    assert!(discover(&outside, "ndisc6", Some(NOBODY6))?.is_empty());
    assert!(discover(&guest, "ndisc6", Some(INSIDE))?.is_empty());
    for asker in [&outside, &guest] {
        assert!(discover(asker, "rdisc6", None)?.is_empty());
    }
    Checksums::of(heard.frames())?.all_right(8)?;
    Checksums::of(heard_within.frames())?.all_right(10)
}

/// The hosts that nmap finds up, with the link-layer address it saw.
fn nmap(asker: &Asker, options: &[&str], targets: &[&str]) -> Result<BTreeMap<IpAddr, String>> {
    let text = asker
        .ns
        .cmd("nmap")
        .args(["-n", "-sn", "--max-retries", "1", "--host-timeout", "10s"])
        .args(["-e", asker.interface])
        .args(options)
        .args(targets)
        .text()?;
    let mut found = BTreeMap::new();
    let mut last = None;
    for line in text.lines() {
        if let Some(address) = line.strip_prefix("Nmap scan report for ") {
            last = Some(address.parse::<IpAddr>()?);
        } else if let (Some(address), Some(rest)) = (last, line.strip_prefix("MAC Address: ")) {
            let mac = rest.split(' ').next().unwrap_or_default();
            found.insert(address, mac.to_lowercase());
        }
    }
    Ok(found)
}

fn nmap_finds_machines_by_arp_and_by_neighbor_discovery(mode: Mode) -> Result<()> {
    let on = Attached::usual(mode)?;
    let lab = &on.lab;
    let (web, db) = (lab.machine("web"), lab.machine("db"));
    let outside = Asker::outside(lab)?;
    let at = |asker: &Asker, addresses: &[IpAddr]| -> BTreeMap<IpAddr, String> {
        addresses
            .iter()
            .map(|address| (*address, asker.answered_by.clone()))
            .collect()
    };
    let targets = ["203.0.113.2-5", "203.0.113.10"];
    let up = [[2, 3, 4, 10].map(|last| Ipv4Addr::new(203, 0, 113, last).into())].concat();
    assert_eq!(nmap(&outside, &["-PR"], &targets)?, at(&outside, &up));
    let targets = ["2001:db8::2", "2001:db8::3", "2001:db8::10", "2001:db8::99"];
    let up = [web.v6().into(), db.v6().into(), HOST6.into()];
    assert_eq!(nmap(&outside, &["-6"], &targets)?, at(&outside, &up));

    // A guest's address is alone on its link; with the network's prefix it looks around.
    web.ns
        .run(&format!("ip route add 203.0.113.0/24 dev {HOST0}"))?;
    web.ns
        .run(&format!("ip route add 2001:db8::/64 dev {HOST0}"))?;
    let guest = Asker::guest(lab, web)?;
    let up = [db.v4().into(), HOST4.into()];
    let targets = ["203.0.113.3", "203.0.113.10"];
    assert_eq!(nmap(&guest, &["-PR"], &targets)?, at(&guest, &up));
    let up = [db.v6().into(), HOST6.into()];
    let targets = ["2001:db8::3", "2001:db8::10"];
    assert_eq!(nmap(&guest, &["-6"], &targets)?, at(&guest, &up));
    Ok(())
}

/// Addresses of the hops, as traceroute prints them; `*` for one that says nothing.
fn hops(from: &Ns, to: IpAddr, method: &str) -> Result<Vec<String>> {
    let text = from
        .cmd("traceroute")
        .args(["-n", "-q", "1", "-m", "5", "-w", "2", "-N", "1"])
        .args([method, &to.to_string()])
        .text()?;
    text.lines()
        .skip(1)
        .map(|line| {
            let word = line.split_whitespace().nth(1);
            word.map(str::to_owned)
                .with_context(|| format!("traceroute printed {text}"))
        })
        .collect()
}

fn host_is_one_hop_to_traceroute(mode: Mode) -> Result<()> {
    let on = Attached::usual(mode)?;
    let lab = &on.lab;
    let (web, db) = (lab.machine("web"), lab.machine("db"));
    let mut heard = Capture::start(&lab.net, LAN)?;
    let mut heard_within = Capture::start(&web.ns, HOST0)?;
    let paths: [(&Ns, IpAddr, &[IpAddr]); 11] = [
        (&lab.net, web.v4().into(), &[HOST4.into()]),
        (&lab.net, web.v6().into(), &[HOST6.into()]),
        (&web.ns, FAR4.into(), &[HOST4.into()]),
        (&web.ns, FAR6.into(), &[HOST6.into()]),
        (&web.ns, GATEWAY4.into(), &[HOST4.into()]),
        (&web.ns, db.v4().into(), &[HOST4.into()]),
        (&web.ns, db.v6().into(), &[HOST6.into()]),
        (&web.ns, HOST4.into(), &[]),
        (&web.ns, HOST6.into(), &[]),
        (&lab.host, web.v4().into(), &[]),
        (&lab.host, web.v6().into(), &[]),
    ];
    // By UDP, by ICMP, by TCP.
    for method in ["-U", "-I", "-T"] {
        for (from, to, between) in paths {
            let expected: Vec<_> = between.iter().chain([&to]).map(IpAddr::to_string).collect();
            let found = hops(from, to, method)?;
            assert_eq!(found, expected, "{method} from {} to {to}", from.name());
        }
    }
    // Time exceeded, and what they are about.
    Checksums::of(heard.frames())?.all_right(20)?;
    Checksums::of(heard_within.frames())?.all_right(20)
}

/// An interface's addresses with their flags, as `ip` prints them.
fn addresses(ns: &Ns) -> Result<Vec<Value>> {
    let text = ns.run(&format!("ip -j addr show dev {HOST0}"))?;
    let mut links: Vec<Value> = serde_json::from_str(&text)?;
    let link = links.pop().context("ip printed nothing")?;
    let list = link["addr_info"].as_array().context("no addr_info")?;
    Ok(list.clone())
}

/// What became of duplicate address detection; `None` while it goes on.
fn detected(ns: &Ns, address: IpAddr) -> Result<Option<Detection>> {
    let list = addresses(ns)?;
    let Some(entry) = list
        .iter()
        .find(|entry| entry["local"] == address.to_string())
    else {
        return Ok(None);
    };
    Ok(if entry["dadfailed"] == true {
        Some(Detection::Duplicate)
    } else if entry["tentative"] == true {
        None
    } else {
        Some(Detection::Unique)
    })
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Detection {
    Unique,
    Duplicate,
}

fn linux_detects_duplicates_of_others_and_not_of_its_own(mode: Mode) -> Result<()> {
    use Detection::{Duplicate, Unique};
    let on = Attached::usual(mode)?;
    let lab = &on.lab;
    let (web, db) = (lab.machine("web"), lab.machine("db"));
    let dad = format!("net/ipv6/conf/{HOST0}/accept_dad");
    web.ns.set_sysctl(&dad, "1")?;
    lab.net
        .set_sysctl(&format!("net/ipv6/conf/{LAN}/accept_dad"), "1")?;
    web.ns
        .run(&format!("ip addr del {}/128 dev {HOST0}", web.v6()))?;
    // A guest's own, of its prefix, nobody's; another's, the host's, the gateway's name.
    let cases = [
        (web.v6(), Unique),
        (INSIDE, Unique),
        (NOBODY6, Unique),
        (db.v6(), Duplicate),
        (HOST6, Duplicate),
        (PORT_GATEWAY, Duplicate),
    ];
    for (address, _) in cases {
        web.ns
            .run(&format!("ip addr add {address}/128 dev {HOST0}"))?;
    }
    for (address, expected) in cases {
        let mut found = None;
        wait_until(Duration::from_secs(5), || {
            found = detected(&web.ns, address.into()).unwrap_or(None);
            found.is_some()
        });
        assert_eq!(found, Some(expected), "{address} in a guest");
        if address != web.v6() {
            web.ns
                .run(&format!("ip addr del {address}/128 dev {HOST0}"))?;
        }
    }
    ping(&lab.net, web.v6())?;

    // A neighbor that takes a machine's address learns that it is in use.
    for (address, expected) in [
        (web.v6(), Duplicate),
        (INSIDE, Duplicate),
        (NOBODY6, Unique),
    ] {
        lab.net
            .run(&format!("ip addr add {address}/128 dev {LAN}"))?;
        let mut found = None;
        wait_until(Duration::from_secs(5), || {
            let text = lab
                .net
                .run(&format!("ip -6 -o addr show dev {LAN} to {address}"));
            let text = text.unwrap_or_default();
            found = if text.contains("dadfailed") {
                Some(Duplicate)
            } else if text.is_empty() || text.contains("tentative") {
                None
            } else {
                Some(Unique)
            };
            found.is_some()
        });
        assert_eq!(found, Some(expected), "{address} outside");
        lab.net
            .run(&format!("ip addr del {address}/128 dev {LAN}"))?;
    }
    Ok(())
}

fn arping_detects_duplicates_of_others_and_not_of_its_own(mode: Mode) -> Result<()> {
    const FREE: i32 = 0;
    const TAKEN: i32 = 1;
    let on = Attached::usual(mode)?;
    let lab = &on.lab;
    let (web, db) = (lab.machine("web"), lab.machine("db"));
    for (ns, interface, address, expected) in [
        (&web.ns, HOST0, web.v4(), FREE),
        (&web.ns, HOST0, NOBODY4, FREE),
        (&web.ns, HOST0, db.v4(), TAKEN),
        (&web.ns, HOST0, HOST4, TAKEN),
        (&lab.net, LAN, web.v4(), TAKEN),
        (&lab.net, LAN, HOST4, TAKEN),
        (&lab.net, LAN, NOBODY4, FREE),
        (&lab.host, UPLINK, web.v4(), TAKEN),
    ] {
        let output = ns
            .cmd("arping")
            .args(["-D", "-c", "1", "-w", "1", "-I", interface])
            .arg(address.to_string())
            .output()?;
        assert_eq!(
            output.code(),
            expected,
            "{}\n{}",
            output.line,
            output.stdout
        );
    }
    Ok(())
}

/// A DHCP server in the host, behind one machine's port, that leases one address.
fn dhcp_server(lab: &Lab, machine: &Machine, lease4: Ipv4Addr) -> Result<Process> {
    let port = machine.port();
    // dnsmasq wants addresses where it serves, in one network with what it leases.
    let own6 = Ipv6Addr::from(u128::from(machine.v6()) ^ 1);
    for address in [
        format!("{HOST4}/32"),
        format!("{own6}/127 nodad noprefixroute"),
    ] {
        lab.host.run(&format!("ip addr add {address} dev {port}"))?;
    }
    let mut server = lab
        .host
        .cmd("dnsmasq")
        .args(["--conf-file=/dev/null", "--no-daemon", "--port=0"])
        .args(["--user=root", "--group=root", "--pid-file="])
        .args(["--leasefile-ro", "--no-ping", "--no-resolv", "--no-hosts"])
        .args(["--bind-dynamic", "--log-dhcp"])
        .arg(format!("--interface={port}"))
        .arg(format!("--dhcp-range={lease4},{lease4},255.255.255.0,300"))
        .arg(format!("--dhcp-range={0},{0},127,300", machine.v6()))
        .start()?;
    server.wait_line(Duration::from_secs(5), |line| {
        line.contains("DHCPv6, IP range")
    })?;
    Ok(server)
}

/// What dhclient calls: it probes an IPv4 lease before use and has it declined when
/// somebody else answers, as `dhclient-script` may be told to.
fn dhcp_script(folder: &Path) -> Result<PathBuf> {
    let script = folder.join("dhclient-script");
    fs::write(
        &script,
        "#!/bin/sh
case $reason in
BOUND)
    arping -D -q -c 2 -w 1 -I $interface $new_ip_address || exit 1
    ip addr add $new_ip_address/32 dev $interface
    ip route add default via 169.254.1.1 dev $interface onlink ;;
BOUND6)
    ip addr add $new_ip6_address/128 dev $interface ;;
esac
echo script: $reason $new_ip_address$new_ip6_address
",
    )?;
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755))?;
    Ok(script)
}

fn dhclient(lab: &Lab, machine: &Machine, family: &str) -> Result<Process> {
    let folder = lab.dir();
    let file = |kind: &str| folder.join(format!("{}{family}.{kind}", machine.name()));
    machine
        .ns
        .cmd("dhclient")
        .args([family, "-1", "-d", "-v"])
        .arg("-sf")
        .arg(dhcp_script(folder)?)
        .arg("-lf")
        .arg(file("leases"))
        .arg("-pf")
        .arg(file("pid"))
        .arg(HOST0)
        .start()
}

const LEASED: Duration = Duration::from_secs(15);

fn dhclient_probes_and_uses_its_lease(mode: Mode) -> Result<()> {
    let on = Attached::usual(mode)?;
    let lab = &on.lab;
    let (web, db) = (lab.machine("web"), lab.machine("db"));
    for machine in [web, db] {
        machine
            .ns
            .run(&format!("ip addr flush dev {HOST0} scope global"))?;
        machine
            .ns
            .set_sysctl(&format!("net/ipv6/conf/{HOST0}/accept_dad"), "1")?;
    }
    let mut quiet = Capture::incoming(&lab.machine("mail").ns, HOST0)?;
    let server = dhcp_server(lab, web, web.v4())?;
    let mut client = dhclient(lab, web, "-4")?;
    client.wait_line(LEASED, |line| line == format!("script: BOUND {}", web.v4()))?;
    let mut client6 = dhclient(lab, web, "-6")?;
    client6
        .wait_line(LEASED, |line| {
            line == format!("script: BOUND6 {}", web.v6())
        })
        .with_context(|| server.err())?;
    let mut found = None;
    wait_until(Duration::from_secs(5), || {
        found = detected(&web.ns, web.v6().into()).unwrap_or(None);
        found.is_some()
    });
    assert_eq!(found, Some(Detection::Unique));
    ping(&lab.net, web.v4())?;
    ping(&lab.net, web.v6())?;
    ping(&web.ns, FAR4)?;

    // A server that leases what another machine has is found out by the probe.
    let mut server = dhcp_server(lab, db, web.v4())?;
    let mut client = dhclient(lab, db, "-4")?;
    client.wait_line(LEASED, |line| line.contains("DHCPDECLINE"))?;
    server.wait_line(Duration::from_secs(5), |line| line.contains("DHCPDECLINE"))?;
    ping(&lab.net, web.v4())?;

    // Broadcasts of both clients and of the server are not for other machines.
    let heard = quiet
        .frames()
        .iter()
        .filter(|frame| frame.get(12..14) == Some(&[0x08, 0x00]))
        .count();
    assert_eq!(heard, 0, "mail heard IPv4");
    Ok(())
}

fn lease_that_is_not_declared_is_of_no_use(mode: Mode) -> Result<()> {
    let on = Attached::usual(mode)?;
    let lab = &on.lab;
    let web = lab.machine("web");
    web.ns
        .run(&format!("ip addr flush dev {HOST0} scope global"))?;
    let leased = Ipv4Addr::new(203, 0, 113, 77);
    let _server = dhcp_server(lab, web, leased)?;
    let mut client = dhclient(lab, web, "-4")?;
    client.wait_line(LEASED, |line| line == format!("script: BOUND {leased}"))?;
    unreachable(&web.ns, FAR4)?;
    lab.run(&format!(
        "add web --interface {} --address {leased}",
        web.port()
    ))?;
    ping(&web.ns, FAR4)?;
    ping(&lab.net, leased)
}

/// systemd-networkd alone: files of its own, no bus, no udev to wait for.
const NETWORKD: &str = r#"set -e
mount -t tmpfs -o mode=755 tmpfs /run
mkdir -p /run/systemd/network /run/systemd/netif/links /run/systemd/netif/leases
chown -R systemd-network: /run/systemd/netif
mount -t sysfs -o ro sysfs /sys
echo "$NETWORK" > /run/systemd/network/10-host0.network
export SYSTEMD_LOG_TARGET=console SYSTEMD_LOG_LEVEL=debug
exec /lib/systemd/systemd-networkd
"#;

fn networkd(machine: &Machine, network: &str) -> Result<Process> {
    machine
        .ns
        .cmd("unshare")
        .args(["--mount", "--propagation", "private", "sh", "-c", NETWORKD])
        .env("NETWORK", network)
        .start()
}

fn networkd_takes_its_addresses_and_leaves_those_of_others(mode: Mode) -> Result<()> {
    let on = Attached::usual(mode)?;
    let lab = &on.lab;
    let (web, db) = (lab.machine("web"), lab.machine("db"));
    web.ns
        .set_sysctl(&format!("net/ipv6/conf/{HOST0}/accept_dad"), "1")?;
    web.ns.run(&format!("ip addr flush dev {HOST0}"))?;
    web.ns.run(&format!("ip link set {HOST0} down"))?;
    // Its defaults detect duplicates for IPv6 alone; here IPv4 has to pass as well.
    let mut daemon = networkd(
        web,
        &format!(
            "[Match]\nName={HOST0}\n[Network]\nIPv6AcceptRA=no\n\
             Address={}/128\nAddress={}/128\nGateway={PORT_GATEWAY}\n\
             [Address]\nAddress={}/32\nDuplicateAddressDetection=both\n\
             [Address]\nAddress={}/32\nDuplicateAddressDetection=both\n\
             [Route]\nGateway={ANY_GATEWAY}\nGatewayOnLink=yes\n",
            web.v6(),
            db.v6(),
            web.v4(),
            db.v4(),
        ),
    )?;
    let seconds = Duration::from_secs(20);
    daemon.wait_line(seconds, |line| {
        line.contains(&format!("Conflict on {}", db.v4()))
    })?;
    daemon.wait_line(seconds, |line| {
        line.contains(&format!("Successfully claimed address {}", web.v4()))
    })?;
    let mut found = Vec::new();
    let own: [IpAddr; 3] = [web.v4().into(), web.v6().into(), db.v6().into()];
    let done = wait_until(seconds, || {
        found = own
            .iter()
            .map(|address| detected(&web.ns, *address).unwrap_or(None))
            .collect();
        found.iter().all(Option::is_some)
    });
    ensure!(done, "{found:?}\n{}", daemon.err());
    use Detection::{Duplicate, Unique};
    assert_eq!(found, [Some(Unique), Some(Unique), Some(Duplicate)]);
    assert_eq!(detected(&web.ns, db.v4().into())?, None);
    for machine in [web, db] {
        ping(&lab.net, machine.v4())?;
        ping(&lab.net, machine.v6())?;
    }
    ping(&web.ns, FAR4)?;
    ping(&web.ns, FAR6)
}

/// A verdict that nothing can fail would be none.
#[test]
fn broken_checksums_are_seen() -> Result<()> {
    let lab = Lab::builder()
        .machine(Spec::new("web").address("203.0.113.2").address(DELEGATED))
        .build()?;
    let mut capture = Capture::start(&lab.net, LAN)?;
    ping(&lab.net, HOST4)?;
    ping(&lab.net, HOST6)?;
    let frames: Vec<_> = capture
        .frames()
        .iter()
        .filter(|frame| frame.len() == 14 + 84 || frame.len() == 14 + 104)
        .cloned()
        .collect();
    assert_eq!(frames.len(), 4);
    Checksums::of(&frames)?.all_right(4)?;
    // The TTL, which the header's checksum covers; a byte of the payload.
    for (index, byte) in [(0, 22), (0, 60), (3, 80)] {
        let mut broken = frames.clone();
        broken[index][byte] ^= 0x55;
        assert_eq!(Checksums::of(&broken)?.wrong.len(), 1, "byte {byte}");
    }
    Ok(())
}

in_each_mode! {
    arping_of_both_kinds_gets_one_answer
    arp_scan_finds_everybody_once
    ndisc6_and_rdisc6_hear_one_station_and_no_router
    nmap_finds_machines_by_arp_and_by_neighbor_discovery
    host_is_one_hop_to_traceroute
    linux_detects_duplicates_of_others_and_not_of_its_own
    arping_detects_duplicates_of_others_and_not_of_its_own
    dhclient_probes_and_uses_its_lease
    lease_that_is_not_declared_is_of_no_use
    networkd_takes_its_addresses_and_leaves_those_of_others
}
