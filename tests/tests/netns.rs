//! Reachability, with a real kernel as the neighbor: everything that machines, the
//! outside and the host say to each other gets there, in both modes.

use std::{
    net::{IpAddr, Ipv6Addr},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use netspawn_tests::{
    Attached, Capture, Counter, Delegation, Direction, FAR4, FAR6, GATEWAY4, GATEWAY6, HOST0,
    HOST4, HOST6, INSIDE, Kind, LAN, Lab, Machine, Mode, Ns, Snapshot, Spec, UPLINK, all_reachable,
    in_each_mode, ping, ping_sized, ready_for, tcp, udp, unreachable, wait_until,
};

const MEGABYTES: usize = 3 << 20;

in_each_mode! {
    programs_are_where_the_mode_says
    arping_is_answered_with_the_uplinks_address
    ndisc6_is_answered_with_the_uplinks_address
    neighbors_cannot_take_an_owned_address
    machines_can_detect_duplicates
    any_gateway_works_for_machines
    outside_pings_machines
    tcp_passes_in_super_packets
    tcp_passes_in_single_frames
    udp_passes_whole_and_in_fragments
    delegated_prefix_is_reached_on_link
    delegated_prefix_is_reached_by_route
    machines_reach_each_other_within_the_host
    machines_and_host_reach_each_other_with_any_rp_filter
    nothing_of_the_hosts_forwarding_changes
    no_machine_address_of_link_layer_leaves_the_host
    programs_of_others_on_the_uplink_go_on
    qdiscs_of_others_on_ports_stay
    tenants_are_apart
}

fn both(machine: &Machine) -> [IpAddr; 2] {
    [machine.v4().into(), machine.v6().into()]
}

fn mac_text(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

fn programs_are_where_the_mode_says(mode: Mode) -> Result<()> {
    let on = Attached::usual(mode)?;
    let (word, native) = match mode {
        Mode::Tc => ("tc", false),
        Mode::Xdp => ("xdp", true),
    };
    let uplink = &on.lab.json("status")?["uplinks"][0];
    assert_eq!(uplink["name"], UPLINK);
    assert_eq!(uplink["mode"], word);
    let link = on.lab.host.run(&format!("ip -d link show dev {UPLINK}"))?;
    assert_eq!(link.contains("prog/xdp"), native, "{link}");
    assert!(!link.contains("xdpgeneric"), "{link}");
    Ok(())
}

fn arping_is_answered_with_the_uplinks_address(mode: Mode) -> Result<()> {
    let on = Attached::usual(mode)?;
    assert!(
        on.agent
            .ready()
            .starts_with("ready: 3 machines, 7 prefixes on eth0"),
        "{}",
        on.agent.ready()
    );
    let uplink = mac_text(on.lab.host.mac(UPLINK)?);
    for machine in on.lab.machines() {
        let text = on
            .lab
            .net
            .run(&format!("arping -c 1 -w 1 -I {LAN} {}", machine.v4()))?;
        assert!(text.to_lowercase().contains(&uplink), "{uplink}: {text}");
    }
    let stranger = on
        .lab
        .net
        .cmd("arping")
        .args(["-c", "1", "-w", "1", "-I", LAN, "203.0.113.99"])
        .output()?;
    assert_ne!(stranger.code(), 0, "{stranger:?}");
    Ok(())
}

fn ndisc6_is_answered_with_the_uplinks_address(mode: Mode) -> Result<()> {
    let on = Attached::usual(mode)?;
    let uplink = mac_text(on.lab.host.mac(UPLINK)?);
    let ask = |address: Ipv6Addr| {
        on.lab
            .net
            .cmd("ndisc6")
            .args(["-1", "-r", "1", "-w", "500", &address.to_string(), LAN])
            .output()
    };
    let owned = on.lab.machines().iter().map(Machine::v6);
    for address in owned.chain([INSIDE]) {
        let text = ask(address)?.success()?;
        assert!(text.to_lowercase().contains(&uplink), "{uplink}: {text}");
    }
    for stranger in ["2001:db8::99", "2001:db8:2::1"] {
        let output = ask(stranger.parse()?)?;
        assert_ne!(output.code(), 0, "{output:?}");
    }
    Ok(())
}

fn neighbors_cannot_take_an_owned_address(mode: Mode) -> Result<()> {
    let on = Attached::usual(mode)?;
    let net = &on.lab.net;
    let web = on.lab.machine("web");
    assert!(!is_free(net, LAN, &web.v4().to_string())?);
    assert!(is_free(net, LAN, "203.0.113.99")?);
    assert!(!passes_dad(net, LAN, &web.v6().to_string())?);
    assert!(passes_dad(net, LAN, "2001:db8::99")?);
    Ok(())
}

fn machines_can_detect_duplicates(mode: Mode) -> Result<()> {
    let on = Attached::usual(mode)?;
    let (web, db) = (on.lab.machine("web"), on.lab.machine("db"));
    // Its own address, which a reply would take from it.
    assert!(is_free(&web.ns, HOST0, &web.v4().to_string())?);
    web.ns
        .run(&format!("ip addr del {}/128 dev {HOST0}", web.v6()))?;
    assert!(passes_dad(&web.ns, HOST0, &web.v6().to_string())?);
    // Another's.
    assert!(!is_free(&web.ns, HOST0, &db.v4().to_string())?);
    assert!(!passes_dad(&web.ns, HOST0, &db.v6().to_string())?);
    Ok(())
}

/// Asks as RFC 5227 says, with the source 0.0.0.0.
fn is_free(ns: &Ns, interface: &str, address: &str) -> Result<bool> {
    let output = ns
        .cmd("arping")
        .args(["-D", "-c", "1", "-w", "1", "-I", interface, address])
        .output()?;
    Ok(output.code() == 0)
}

/// Adds the address as RFC 4862 says, and says what the kernel found.
fn passes_dad(ns: &Ns, interface: &str, address: &str) -> Result<bool> {
    for (key, value) in [("accept_dad", "1"), ("dad_transmits", "1")] {
        ns.set_sysctl(&format!("net/ipv6/conf/{interface}/{key}"), value)?;
    }
    ns.run(&format!("ip addr add {address}/128 dev {interface}"))?;
    let show = format!("ip -6 addr show dev {interface} to {address}/128");
    let mut text = String::new();
    let decided = wait_until(Duration::from_secs(5), || {
        text = ns.run(&show).unwrap_or_default();
        text.contains("dadfailed") || (text.contains(address) && !text.contains("tentative"))
    });
    ensure!(decided, "no result of duplicate address detection: {text}");
    ns.run(&format!("ip addr del {address}/128 dev {interface}"))?;
    Ok(!text.contains("dadfailed"))
}

fn any_gateway_works_for_machines(mode: Mode) -> Result<()> {
    let on = Attached::usual(mode)?;
    let web = on.lab.machine("web");
    let port = mac_text(on.lab.host.mac(web.port())?);
    for address in ["169.254.1.1", "203.0.113.1", "203.0.113.77", "10.9.8.7"] {
        let text = web
            .ns
            .run(&format!("arping -c 1 -w 1 -I {HOST0} {address}"))?;
        assert!(text.to_lowercase().contains(&port), "{port}: {text}");
    }
    web.ns.run("ping -n -c 1 -W 1 169.254.1.1")?;
    web.ns.run(&format!("ping -n -c 1 -W 1 fe80::1%{HOST0}"))?;
    web.ns.run(&format!(
        "ip route replace default via 203.0.113.1 dev {HOST0} onlink src {}",
        web.v4()
    ))?;
    ping(&web.ns, FAR4)
}

fn outside_pings_machines(mode: Mode) -> Result<()> {
    let on = Attached::usual(mode)?;
    for machine in on.lab.machines() {
        for address in both(machine) {
            for size in [0, 56, 1400, 4000] {
                ping_sized(&on.lab.net, address, size)?;
            }
        }
        // From beyond the gateway, and to there.
        let net = &on.lab.net;
        net.run(&format!("ping -n -c 1 -W 1 -I {FAR4} {}", machine.v4()))?;
        net.run(&format!("ping -n -c 1 -W 1 -I {FAR6} {}", machine.v6()))?;
        ping(&machine.ns, FAR4)?;
        ping(&machine.ns, FAR6)?;
        ping(&machine.ns, GATEWAY4)?;
        ping(&machine.ns, GATEWAY6)?;
    }
    Ok(())
}

/// Megabytes both ways and begun from both sides; returns the longest frame that
/// reached a machine and the longest that reached the outside.
fn exchange(lab: &Lab) -> Result<(usize, usize)> {
    let (mut into, mut out) = (0, 0);
    for machine in lab.machines() {
        let mut inside = Capture::start(&machine.ns, HOST0)?;
        let mut outside = Capture::start(&lab.net, LAN)?;
        let (own, gateway) = (machine.ns.mac(HOST0)?, lab.net.mac(LAN)?);
        for address in both(machine) {
            tcp(&lab.net, &machine.ns, address, MEGABYTES)?;
        }
        tcp(&machine.ns, &lab.net, FAR4, MEGABYTES)?;
        tcp(&machine.ns, &lab.net, FAR6, MEGABYTES)?;
        into = into.max(longest_to(inside.frames(), own));
        out = out.max(longest_to(outside.frames(), gateway));
    }
    Ok((into, out))
}

fn longest_to(frames: &[Vec<u8>], mac: [u8; 6]) -> usize {
    frames
        .iter()
        .filter(|frame| frame.starts_with(&mac))
        .map(Vec::len)
        .max()
        .unwrap_or(0)
}

fn tcp_passes_in_super_packets(mode: Mode) -> Result<()> {
    let on = Attached::usual(mode)?;
    let (into, out) = exchange(&on.lab)?;
    // An XDP program on one end of a veth takes TSO from the sender on the other.
    if mode == Mode::Tc {
        assert!(
            into > 20_000 && out > 20_000,
            "the longest frame to a machine had {into} bytes, from one {out}"
        );
    }
    Ok(())
}

fn tcp_passes_in_single_frames(mode: Mode) -> Result<()> {
    let lab = Lab::usual()?;
    ready_for(&lab, mode)?;
    let spaces = lab.machines().iter().map(|machine| (&machine.ns, HOST0));
    for (ns, interface) in spaces.chain([(&lab.net, LAN), (&lab.host, UPLINK)]) {
        ns.run(&format!("ethtool -K {interface} tso off gso off gro off"))?;
    }
    if mode == Mode::Xdp {
        // Without GRO the machine's end has no NAPI and XDP cannot deliver.
        for machine in lab.machines() {
            machine.ns.run(&format!("ethtool -K {HOST0} gro on"))?;
        }
    }
    let on = Attached::new(lab, mode)?;
    let (into, out) = exchange(&on.lab)?;
    if mode == Mode::Tc {
        assert!(into <= 1514, "a frame to a machine had {into} bytes");
    }
    assert!(out <= 1514, "a frame out of a machine had {out} bytes");
    Ok(())
}

fn udp_passes_whole_and_in_fragments(mode: Mode) -> Result<()> {
    let on = Attached::usual(mode)?;
    for machine in on.lab.machines() {
        for size in [1, 1400, 1452, 1473, 8000, 60_000] {
            for address in both(machine) {
                udp(&on.lab.net, &machine.ns, address, size)?;
            }
            udp(&machine.ns, &on.lab.net, FAR4, size)?;
            udp(&machine.ns, &on.lab.net, FAR6, size)?;
        }
    }
    Ok(())
}

fn delegated_prefix_is_reached_on_link(mode: Mode) -> Result<()> {
    delegated_prefix_is_reached(mode, Delegation::OnLink)
}

fn delegated_prefix_is_reached_by_route(mode: Mode) -> Result<()> {
    delegated_prefix_is_reached(mode, Delegation::ViaHost)
}

fn delegated_prefix_is_reached(mode: Mode, delegation: Delegation) -> Result<()> {
    let lab = Lab::builder()
        .usual_machines()
        .delegation(delegation)
        .build()?;
    let on = Attached::new(lab, mode)?;
    let web = on.lab.machine("web");
    for address in [
        INSIDE,
        "2001:db8:1::".parse()?,
        "2001:db8:1:0:ffff:ffff:ffff:ffff".parse()?,
    ] {
        for size in [56, 1400, 4000] {
            ping_sized(&on.lab.net, address, size)?;
        }
        tcp(&on.lab.net, &web.ns, address, MEGABYTES)?;
        for size in [1, 1400, 8000] {
            udp(&on.lab.net, &web.ns, address, size)?;
        }
        // From the host and from a neighbor on the same host.
        ping(&on.lab.host, address)?;
        ping(&on.lab.machine("db").ns, address)?;
    }
    // Out of the machine with such a source.
    web.ns
        .run(&format!("ping -n -c 1 -W 1 -I {INSIDE} {FAR6}"))?;
    unreachable(&on.lab.net, "2001:db8:1:1::1".parse::<Ipv6Addr>()?)
}

fn machines_reach_each_other_within_the_host(mode: Mode) -> Result<()> {
    let on = Attached::usual(mode)?;
    let mut outside = Capture::start(&on.lab.net, LAN)?;
    for from in on.lab.machines() {
        for to in on.lab.machines() {
            if from.name() == to.name() {
                continue;
            }
            for address in both(to) {
                ping_sized(&from.ns, address, 4000)?;
                tcp(&from.ns, &to.ns, address, MEGABYTES)?;
                udp(&from.ns, &to.ns, address, 1400)?;
                udp(&from.ns, &to.ns, address, 8000)?;
            }
        }
    }
    let (web, db) = (on.lab.machine("web"), on.lab.machine("db"));
    let pair = [web.v4().octets(), db.v4().octets()].concat();
    assert!(outside.containing(&pair).is_empty());
    let pair = [web.v6().octets(), db.v6().octets()].concat();
    assert!(outside.containing(&pair).is_empty());
    Ok(())
}

fn machines_and_host_reach_each_other_with_any_rp_filter(mode: Mode) -> Result<()> {
    for rp_filter in [0, 1, 2] {
        let lab = Lab::builder()
            .usual_machines()
            .rp_filter(rp_filter)
            .build()?;
        let on = Attached::new(lab, mode)?;
        for machine in on.lab.machines() {
            let check = || -> Result<()> {
                for (own, host) in both(machine).into_iter().zip([HOST4.into(), HOST6.into()]) {
                    let host: IpAddr = host;
                    ping_sized(&on.lab.host, own, 4000)?;
                    ping_sized(&machine.ns, host, 4000)?;
                    tcp(&on.lab.host, &machine.ns, own, MEGABYTES)?;
                    tcp(&machine.ns, &on.lab.host, host, MEGABYTES)?;
                    udp(&on.lab.host, &machine.ns, own, 8000)?;
                    udp(&machine.ns, &on.lab.host, host, 1400)?;
                }
                ping(&on.lab.net, machine.v4())
            };
            check().with_context(|| format!("{}, rp_filter={rp_filter}", machine.name()))?;
        }
    }
    Ok(())
}

fn nothing_of_the_hosts_forwarding_changes(mode: Mode) -> Result<()> {
    let lab = Lab::usual()?;
    ready_for(&lab, mode)?;
    let before = Snapshot::host(&lab)?;
    let on = Attached::new(lab, mode)?;
    all_reachable(&on.lab)?;
    let changes = before.changes(&Snapshot::host(&on.lab)?);
    let forbidden: Vec<_> = changes
        .iter()
        .filter(|line| {
            line.contains(" route") || line.contains(" rule") || line.contains("/proc/sys")
        })
        .collect();
    assert!(forbidden.is_empty(), "{forbidden:#?}");
    assert_eq!(on.lab.host.sysctl("net/ipv4/ip_forward")?, "0");
    assert_eq!(on.lab.host.sysctl("net/ipv6/conf/all/forwarding")?, "0");
    Ok(())
}

fn no_machine_address_of_link_layer_leaves_the_host(mode: Mode) -> Result<()> {
    let on = Attached::usual(mode)?;
    let mut outside = Capture::start(&on.lab.net, LAN)?;
    all_reachable(&on.lab)?;
    let (uplink, gateway) = (on.lab.host.mac(UPLINK)?, on.lab.net.mac(LAN)?);
    for frame in outside.frames() {
        let source = &frame[6..12];
        assert!(
            source == uplink || source == gateway,
            "a frame from {source:02x?} on the wire: {frame:02x?}"
        );
    }
    Ok(())
}

fn programs_of_others_on_the_uplink_go_on(mode: Mode) -> Result<()> {
    let lab = Lab::usual()?;
    ready_for(&lab, mode)?;
    let mut counters = Vec::new();
    let mut links = Vec::new();
    for direction in [Direction::Ingress, Direction::Egress] {
        let tcx = Counter::load(Kind::Tc)?;
        links.push(tcx.tcx(&lab.host, UPLINK, direction)?);
        let clsact = Counter::load(Kind::Tc)?;
        let pin = lab.bpffs().join(format!("other_{direction:?}"));
        clsact.clsact(&lab.host, UPLINK, direction, &pin)?;
        counters.push((format!("tcx before, {direction:?}"), tcx));
        counters.push((format!("clsact before, {direction:?}"), clsact));
    }
    let before = Snapshot::host(&lab)?;
    let on = Attached::new(lab, mode)?;
    // Somebody may also come after us.
    let late = Counter::load(Kind::Tc)?;
    let late_link = late.tcx(&on.lab.host, UPLINK, Direction::Ingress)?;
    counters.push(("tcx after, Ingress".to_owned(), late));
    all_reachable(&on.lab)?;
    for (name, counter) in &counters {
        let start = counter.count()?;
        ping(&on.lab.net, HOST4)?;
        tcp(&on.lab.host, &on.lab.net, FAR6, 1 << 20)?;
        let seen = counter.count()? - start;
        assert!(seen >= 10, "{name} saw {seen} of the host's packets");
    }
    drop(late_link);
    on.lab.run("detach")?;
    before.same(&Snapshot::host(&on.lab)?)?;
    for (name, counter) in counters.iter().filter(|(name, _)| name.contains("before")) {
        let start = counter.count()?;
        ping(&on.lab.net, HOST4)?;
        assert!(counter.count()? > start, "{name} counts no more");
    }
    Ok(())
}

fn qdiscs_of_others_on_ports_stay(mode: Mode) -> Result<()> {
    let lab = Lab::usual()?;
    ready_for(&lab, mode)?;
    // As Incus' limits and the CNI bandwidth plugin leave them.
    let counter = Counter::load(Kind::Tc)?;
    counter.clsact(
        &lab.host,
        "ve-web",
        Direction::Ingress,
        &lab.bpffs().join("other"),
    )?;
    lab.host.run("tc qdisc add dev ve-db ingress")?;
    lab.host
        .run("tc qdisc add dev ve-mail root tbf rate 1gbit burst 1mb latency 50ms")?;
    let before = Snapshot::host(&lab)?;
    let on = Attached::new(lab, mode)?;
    all_reachable(&on.lab)?;
    on.lab.run("detach")?;
    before.same(&Snapshot::host(&on.lab)?)?;
    let start = counter.count()?;
    on.lab
        .machine("web")
        .ns
        .cmd("arping")
        .args(["-c", "1", "-w", "1", "-I", HOST0, "169.254.1.1"])
        .output()?;
    assert!(counter.count()? > start, "the filter counts no more");
    Ok(())
}

fn tenants_are_apart(mode: Mode) -> Result<()> {
    let spec = |name: &str, number: u8| {
        Spec::new(name)
            .address(&format!("203.0.113.{number}"))
            .address(&format!("2001:db8::{number}"))
    };
    let lab = Lab::builder()
        .machine(spec("a1", 21).tenant("a"))
        .machine(spec("a2", 22).tenant("a"))
        .machine(spec("b1", 23).tenant("b"))
        .machine(spec("none", 24))
        .build()?;
    let on = Attached::new(lab, mode)?;
    let machine = |name| on.lab.machine(name);
    for address in both(machine("a2")) {
        tcp(&machine("a1").ns, &machine("a2").ns, address, 1 << 20)?;
    }
    for (from, to) in [("a1", "b1"), ("b1", "a2"), ("a1", "none"), ("none", "b1")] {
        for address in both(machine(to)) {
            unreachable(&machine(from).ns, address)?;
        }
    }
    for machine in on.lab.machines() {
        for address in both(machine) {
            ping(&on.lab.net, address)?;
            ping(&on.lab.host, address)?;
        }
    }
    Ok(())
}
