//! From the setups that hosts have today to netspawn-xdp: what `import` makes of them,
//! and that nothing is lost on the way.

use std::{fs, net::IpAddr, time::Duration};

use anyhow::{Context as _, Result, ensure};
use netspawn_tests::{
    Agent, DELEGATED, Delegation, FAR4, FAR6, GATEWAY4, GATEWAY6, HOST0, HOST4, HOST6, INSIDE, Lab,
    Ns, Output, PING_INTERVAL, Pinging, Spec, UPLINK, ping, unreachable, wait_ping, wait_until,
};

/// The bridge's own addresses, which machines may have as gateways.
const BRIDGE4: &str = "203.0.113.9";
const BRIDGE6: &str = "2001:db8::9";
const PATIENCE: Duration = Duration::from_secs(20);

/// What a machine takes for its gateway.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Gateway {
    /// The bridge's global addresses.
    Bridge,
    /// The network's router, for which the bridge answers.
    Network,
    /// The bridge's link-local address, and for IPv4 that of the host.
    LinkLocal,
}

/// A machine of the old kind.
struct Guest {
    ns: Ns,
    v4: IpAddr,
    v6: IpAddr,
}

fn batch(ns: &Ns, lines: &[String]) -> Result<()> {
    ns.cmd("ip")
        .args(["-batch", "-"])
        .input(lines.join("\n") + "\n")
        .text()
        .with_context(|| lines.join("\n"))
        .map(drop)
}

/// Turns forwarding and the uplink's proxies on.
fn route_for_machines(lab: &Lab) -> Result<()> {
    for (key, value) in [
        ("net/ipv4/ip_forward", "1"),
        ("net/ipv6/conf/all/forwarding", "1"),
        ("net/ipv4/conf/eth0/proxy_arp", "1"),
        ("net/ipv6/conf/eth0/proxy_ndp", "1"),
        // Otherwise answers wait up to 0.8 s.
        ("net/ipv4/neigh/eth0/proxy_delay", "0"),
        ("net/ipv6/neigh/eth0/proxy_delay", "0"),
    ] {
        lab.host.set_sysctl(key, value)?;
    }
    Ok(())
}

/// A veth of that name, whose other end is `host0` in a new namespace, with addresses.
fn guest(lab: &Lab, port: &str, number: u8) -> Result<Guest> {
    let ns = Ns::new(port)?;
    let (v4, v6) = (
        format!("203.0.113.{number}").parse()?,
        format!("2001:db8::{number}").parse()?,
    );
    lab.host.run(&format!(
        "ip link add {port} type veth peer name {HOST0} netns {}",
        ns.path().display()
    ))?;
    batch(
        &ns,
        &[
            format!("link set {HOST0} up"),
            format!("addr add {v4}/32 dev {HOST0}"),
            format!("addr add {v6}/128 dev {HOST0} nodad"),
        ],
    )?;
    for family in ["ipv4", "ipv6"] {
        // What is resolved is asked for again within the test's time.
        for (key, value) in [
            ("base_reachable_time_ms", "1000"),
            ("delay_first_probe_time", "1"),
        ] {
            ns.set_sysctl(&format!("net/{family}/neigh/{HOST0}/{key}"), value)?;
        }
    }
    lab.host.run(&format!("ip link set {port} up"))?;
    ns.settled(HOST0)?;
    Ok(Guest { ns, v4, v6 })
}

fn default_routes(guest: &Guest, gateway4: &str, gateway6: &str) -> Result<()> {
    batch(
        &guest.ns,
        &[
            format!(
                "route add default via {gateway4} dev {HOST0} onlink src {}",
                guest.v4
            ),
            format!("route add {gateway6}/128 dev {HOST0} src {}", guest.v6),
            format!(
                "route add default via {gateway6} dev {HOST0} src {}",
                guest.v6
            ),
        ],
    )
}

/// The host's bridge, in which there is no uplink.
fn bridge(lab: &Lab) -> Result<()> {
    batch(
        &lab.host,
        &[
            "link add br0 type bridge forward_delay 0".to_owned(),
            "link set br0 up".to_owned(),
            format!("addr add {BRIDGE4}/32 dev br0"),
            format!("addr add {BRIDGE6}/128 dev br0 nodad"),
            format!("neigh add proxy {GATEWAY6} dev br0"),
        ],
    )?;
    for (key, value) in [
        ("net/ipv4/conf/br0/proxy_arp", "1"),
        ("net/ipv6/conf/br0/proxy_ndp", "1"),
        ("net/ipv4/neigh/br0/proxy_delay", "0"),
        ("net/ipv6/neigh/br0/proxy_delay", "0"),
    ] {
        lab.host.set_sysctl(key, value)?;
    }
    Ok(())
}

/// A machine in the bridge, reached by routes to the bridge.
fn bridged(lab: &Lab, port: &str, number: u8, gateway: Gateway) -> Result<Guest> {
    let guest = guest(lab, port, number)?;
    batch(
        &lab.host,
        &[
            format!("link set {port} master br0"),
            format!("route add {}/32 dev br0", guest.v4),
            format!("route add {}/128 dev br0", guest.v6),
            format!("neigh add proxy {} dev {UPLINK}", guest.v6),
        ],
    )?;
    lab.host.settled("br0")?;
    match gateway {
        Gateway::Bridge => default_routes(&guest, BRIDGE4, BRIDGE6)?,
        Gateway::Network => {
            default_routes(&guest, &GATEWAY4.to_string(), &GATEWAY6.to_string())?;
        }
        Gateway::LinkLocal => {
            default_routes(&guest, &HOST4.to_string(), &link_local(&lab.host, "br0")?)?;
        }
    }
    Ok(guest)
}

fn link_local(ns: &Ns, interface: &str) -> Result<String> {
    let text = ns.run(&format!("ip -6 -br addr show dev {interface} scope link"))?;
    let word = text
        .split_whitespace()
        .find(|word| word.starts_with("fe80"));
    let address = word.and_then(|word| word.split('/').next());
    Ok(address.context("no link-local address")?.to_owned())
}

/// Pings of each machine, with the network and with the host.
#[derive(Default)]
struct Pings {
    network: Vec<Pinging>,
    host: Vec<Pinging>,
}

impl Pings {
    fn start(lab: &Lab, guests: &[Guest]) -> Result<Self> {
        let mut pings = Pings::default();
        for guest in guests {
            for (own, far, host) in [
                (guest.v4, IpAddr::from(FAR4), IpAddr::from(HOST4)),
                (guest.v6, FAR6.into(), HOST6.into()),
            ] {
                // Whatever resolves addresses first may take its time.
                let start = |from: &Ns, to| {
                    wait_ping(from, to, PATIENCE)?;
                    Pinging::start(from, to)
                };
                pings.network.push(start(&lab.net, own)?);
                pings.network.push(start(&guest.ns, far)?);
                pings.host.push(start(&lab.host, own)?);
                pings.host.push(start(&guest.ns, host)?);
            }
        }
        Ok(pings)
    }

    /// Waits until each has had that many more answers, or one stands still.
    fn go_on(&self, count: usize) {
        let pings = || self.network.iter().chain(&self.host);
        let before: Vec<usize> = pings().map(Pinging::answers).collect();
        let limit = Duration::from_secs(5) + PING_INTERVAL * count as u32;
        wait_until(limit, || {
            let mut both = pings().zip(&before);
            both.all(|(ping, before)| ping.answers() >= before + count)
        });
    }

    /// What was lost, of which there is to be nothing between machines and the network.
    ///
    /// Between them and the host there may be two short gaps. The kernel drops what is
    /// sent to a port while the port gets its qdisc (`qdisc_graft` in
    /// net/sched/sch_api.c). And a strict rp_filter drops packets for the host that come
    /// in beside its route, from the end of a route to the agent's noticing.
    fn lost(self) -> Result<Vec<String>> {
        let network = self.network.into_iter().map(Pinging::lost_none);
        let mut lost: Vec<String> = network
            .filter_map(Result::err)
            .map(|error| format!("{error:#}"))
            .collect();
        for ping in self.host {
            let gaps = ping.gaps()?;
            if gaps.len() > 2 || gaps.iter().any(|gap| *gap > 5) {
                lost.push(format!("between machine and host: {gaps:?}"));
            }
        }
        Ok(lost)
    }
}

/// What `import` says is to be pasted.
fn commands(output: &Output) -> Vec<String> {
    let plain = |line: &&str| !line.starts_with('#') && !line.starts_with("netspawn-xdp:");
    let lines = output.stderr.lines().filter(plain);
    lines.map(str::to_owned).collect()
}

fn machine_file(lab: &Lab, name: &str) -> Result<String> {
    let path = lab.config_dir().join(format!("machines/{name}.toml"));
    fs::read_to_string(&path).with_context(|| path.display().to_string())
}

/// Imports, attaches, and takes the old setup away, while everything is pinged.
fn migrate(lab: &Lab, guests: &[Guest], prefixes: usize) -> Result<()> {
    let pings = Pings::start(lab, guests)?;
    let imported = lab.output("import --write")?;
    assert_eq!(imported.code(), 0, "{imported:?}");
    let agent = Agent::start(lab, UPLINK)?;
    let machines = guests.len();
    ensure!(
        agent
            .ready()
            .starts_with(&format!("ready: {machines} machines, {prefixes} prefixes")),
        "{}\n{}",
        agent.ready(),
        agent.words()
    );
    pings.go_on(5);
    for command in commands(&imported) {
        lab.host.run(&command)?;
        pings.go_on(5);
    }
    // Longer than what was resolved before is good for.
    pings.go_on(400);
    let lost = pings.lost()?;
    ensure!(
        lost.is_empty(),
        "{}\n{}\n{}",
        lost.join("\n"),
        imported.stderr,
        lab.run("counters")?
    );

    for (key, value) in [
        ("net/ipv4/ip_forward", "0"),
        ("net/ipv6/conf/all/forwarding", "0"),
        ("net/ipv4/conf/eth0/proxy_arp", "0"),
        ("net/ipv6/conf/eth0/proxy_ndp", "0"),
    ] {
        assert_eq!(lab.host.sysctl(key)?, value, "{key}");
    }
    for family in ["-4", "-6"] {
        assert_eq!(lab.host.run(&format!("ip {family} neigh show proxy"))?, "");
    }
    for guest in guests {
        for address in [guest.v4, guest.v6] {
            assert_eq!(lab.host.run(&format!("ip route show {address}"))?, "");
        }
    }
    // What is left has nothing to import.
    let again = lab.output("import")?;
    assert_eq!((again.code(), again.stdout.as_str()), (0, ""), "{again:?}");
    assert_eq!(commands(&again), [""; 0]);
    Ok(())
}

#[test]
fn bridge_with_host_routes_is_migrated_without_a_lost_ping() -> Result<()> {
    let lab = Lab::builder().rp_filter(1).build()?;
    route_for_machines(&lab)?;
    bridge(&lab)?;
    let guests = [
        bridged(&lab, "vb-web", 2, Gateway::Bridge)?,
        bridged(&lab, "vb-db", 3, Gateway::Network)?,
        bridged(&lab, "veth4711", 4, Gateway::LinkLocal)?,
    ];
    migrate(&lab, &guests, 6)?;
    assert_eq!(
        machine_file(&lab, "web")?,
        "addresses = [\n    \"203.0.113.2\",\n    \"2001:db8::2\",\n]\n"
    );
    assert_eq!(
        machine_file(&lab, "veth4711")?,
        "interface = \"veth4711\"\naddresses = [\n    \"203.0.113.4\",\n    \"2001:db8::4\",\n]\n"
    );
    Ok(())
}

/// A machine with a routed link, as Incus' `nictype=routed` makes it: link-local
/// gateways on the port, host routes to it, proxy neighbors on the uplink.
fn routed(lab: &Lab, port: &str, number: u8) -> Result<Guest> {
    let guest = guest(lab, port, number)?;
    batch(
        &lab.host,
        &[
            format!("addr add 169.254.0.1/32 dev {port}"),
            format!("addr add fe80::1/128 dev {port} nodad"),
            // Otherwise the host's packets come from the port's link-local address, which
            // machines do not reach.
            format!("route add {}/32 dev {port} src {HOST4}", guest.v4),
            format!("route add {}/128 dev {port}", guest.v6),
            format!("neigh add proxy {} dev {UPLINK}", guest.v4),
            format!("neigh add proxy {} dev {UPLINK}", guest.v6),
        ],
    )?;
    default_routes(&guest, "169.254.0.1", "fe80::1")?;
    Ok(guest)
}

#[test]
fn routed_links_are_migrated_without_a_lost_ping() -> Result<()> {
    let lab = Lab::builder()
        .rp_filter(1)
        .delegation(Delegation::ViaHost)
        .build()?;
    route_for_machines(&lab)?;
    // Proxy neighbors do without.
    lab.host.set_sysctl("net/ipv4/conf/eth0/proxy_arp", "0")?;
    let guests = [routed(&lab, "ve-web", 2)?, routed(&lab, "veth815", 3)?];
    lab.host.run(&format!(
        "ip route add {DELEGATED} via {} dev ve-web",
        guests[0].v6
    ))?;
    guests[0]
        .ns
        .run(&format!("ip route add local {DELEGATED} dev lo"))?;
    wait_ping(&lab.net, INSIDE, PATIENCE)?;
    let inside = Pinging::start(&lab.net, INSIDE)?;
    migrate(&lab, &guests, 5)?;
    inside.lost_none()?;
    assert_eq!(
        machine_file(&lab, "web")?,
        "addresses = [\n    \"203.0.113.2\",\n    \"2001:db8::2\",\n    \"2001:db8:1::/64\",\n]\n"
    );
    Ok(())
}

#[test]
fn machines_that_have_not_spoken_are_asked_for() -> Result<()> {
    let lab = Lab::builder().build()?;
    route_for_machines(&lab)?;
    bridge(&lab)?;
    let web = bridged(&lab, "vb-web", 2, Gateway::Bridge)?;
    let db = bridged(&lab, "vb-db", 3, Gateway::Bridge)?;
    ping(&lab.host, web.v4)?;
    lab.host.run("ip neigh flush dev br0")?;
    let both = lab.output("import")?;
    assert_eq!(both.code(), 0, "{both:?}");
    for name in ["web", "db"] {
        let path = lab.config_dir().join(format!("machines/{name}.toml"));
        let comment = format!("# {}\n", path.display());
        assert!(both.stdout.contains(&comment), "{both:?}");
        assert!(!path.exists());
    }

    // One that does not answer is left out, and keeps what it needs.
    lab.host.run("ip neigh flush dev br0")?;
    db.ns.run(&format!("ip link set {HOST0} down"))?;
    let one = lab.output("import --write")?;
    assert_eq!(one.code(), 3, "{one:?}");
    assert!(machine_file(&lab, "web").is_ok());
    assert!(machine_file(&lab, "db").is_err());
    for address in ["203.0.113.3", "2001:db8::3"] {
        let line = format!("netspawn-xdp: {address} on br0: {address} does not answer");
        assert!(one.stderr.contains(&line), "{one:?}");
    }
    assert_eq!(
        commands(&one),
        [
            "ip neigh del proxy 2001:db8::2 dev eth0",
            "ip route del 203.0.113.2/32 dev br0",
            "ip route del 2001:db8::2/128 dev br0",
        ]
    );
    Ok(())
}

#[test]
fn host_without_an_old_setup_has_nothing_to_import() -> Result<()> {
    let lab = Lab::usual()?;
    lab.host
        .run(&format!("ip route add 192.0.2.9/32 via {GATEWAY4}"))?;
    for words in ["import", "import --write"] {
        let output = lab.output(words)?;
        assert_eq!(
            (output.code(), output.stdout.as_str()),
            (0, ""),
            "{output:?}"
        );
        assert!(output.stderr.contains("nothing to import"), "{output:?}");
        assert_eq!(commands(&output), [""; 0]);
    }
    assert_eq!(lab.run("--json import")?, "[]\n");
    Ok(())
}

#[test]
fn files_that_are_there_are_never_overwritten() -> Result<()> {
    let lab = Lab::builder().build()?;
    let _guests = [
        routed(&lab, "ve-web", 2)?,
        routed(&lab, "ve-db", 3)?,
        routed(&lab, "ve-mail", 4)?,
    ];
    lab.host
        .run(&format!("ip neigh add proxy 203.0.113.66 dev {UPLINK}"))?;
    let db = "# mine\naddresses = [\"203.0.113.3\"]\n";
    lab.declare("db", db)?;
    lab.declare(
        "post",
        "interface = \"ve-x\"\naddresses = [\"203.0.113.4\"]\n",
    )?;
    let listed = lab.xdp(["--json", "import"])?.output()?;
    assert_eq!(listed.code(), 3);
    let listed: serde_json::Value = serde_json::from_str(&listed.stdout)?;
    assert_eq!(listed.as_array().map(Vec::len), Some(1), "{listed}");
    assert_eq!(listed[0]["name"], "web");
    assert_eq!(listed[0]["interface"], "ve-web");
    assert_eq!(
        listed[0]["addresses"],
        serde_json::json!(["203.0.113.2/32", "2001:db8::2/128"])
    );

    let first = lab.output("import --write")?;
    assert_eq!(first.code(), 3, "{first:?}");
    let web = lab.config_dir().join("machines/web.toml");
    assert_eq!(first.stdout, format!("{}\n", web.display()));
    assert_eq!(listed[0]["content"], machine_file(&lab, "web")?);
    assert_eq!(machine_file(&lab, "db")?, db);
    assert!(machine_file(&lab, "mail").is_err());
    for said in [
        "netspawn-xdp: db is declared, but not with 203.0.113.3/32, 2001:db8::3/128 on ve-db",
        "netspawn-xdp: mail is left out: 203.0.113.4/32 is declared by post",
        "netspawn-xdp: 203.0.113.66 has a proxy neighbor but no route to a machine",
    ] {
        assert!(first.stderr.contains(said), "{said}: {first:?}");
    }

    // What is left to do is done by hand; then there is nothing more.
    lab.declare(
        "db",
        "addresses = [\"203.0.113.3\", \"2001:db8::3\"]\ntenant = \"acme\"\n",
    )?;
    lab.withdraw("post")?;
    lab.host
        .run(&format!("ip neigh del proxy 203.0.113.66 dev {UPLINK}"))?;
    let second = lab.output("import --write")?;
    assert_eq!(second.code(), 0, "{second:?}");
    assert!(second.stdout.ends_with("/mail.toml\n"), "{second:?}");
    let third = lab.output("import --write")?;
    assert_eq!((third.code(), third.stdout.as_str()), (0, ""), "{third:?}");
    // The commands are there as long as the old setup is.
    assert_eq!(commands(&third), commands(&second));
    assert_eq!(commands(&third).len(), 12, "{third:?}");
    Ok(())
}

#[test]
fn kernel_source_follows_host_routes() -> Result<()> {
    let mut lab = Lab::builder().build()?;
    for (name, number) in [("web", 2), ("db", 3)] {
        lab.add(
            Spec::new(name)
                .address(&format!("203.0.113.{number}"))
                .address(&format!("2001:db8::{number}"))
                .undeclared(),
        )?;
    }
    let (web, db) = (lab.machine("web"), lab.machine("db"));
    let _agent = Agent::start(&lab, "eth0 --source files,kernel")?;
    assert_eq!(lab.json("list")?, serde_json::json!([]));
    // Of the uplink itself nothing is claimed.
    lab.host
        .run(&format!("ip route add 192.0.2.9/32 via {GATEWAY4}"))?;
    for machine in [web, db] {
        for address in machine.addresses() {
            lab.host
                .run(&format!("ip route add {address} dev {}", machine.port()))?;
        }
    }
    for machine in [web, db] {
        for (address, far) in [
            (IpAddr::from(machine.v4()), IpAddr::from(FAR4)),
            (machine.v6().into(), FAR6.into()),
        ] {
            wait_ping(&lab.net, address, PATIENCE)?;
            ping(&machine.ns, far)?;
            ping(&lab.host, address)?;
        }
    }
    let listed = lab.json("list")?;
    assert_eq!(listed.as_array().map(Vec::len), Some(2), "{listed}");
    assert_eq!(listed[1]["name"], "web");
    assert_eq!(listed[1]["source"], "kernel");
    assert_eq!(listed[1]["interface"], "ve-web");
    assert_eq!(listed[1]["state"], "up");

    let served = |count: usize| {
        wait_until(PATIENCE, || {
            lab.json("status")
                .is_ok_and(|status| status["prefixes"] == count)
        })
    };
    // A file of higher rank replaces each key that it names, and no other.
    lab.declare("web", "tenant = \"acme\"\n")?;
    let web_is = |source: &str, tenant: Option<&str>, addresses: usize| {
        wait_until(PATIENCE, || {
            lab.json("list").is_ok_and(|listed| {
                let web = &listed[1];
                web["source"] == source
                    && web["tenant"].as_str() == tenant
                    && web["addresses"].as_array().map(Vec::len) == Some(addresses)
                    && web["state"] == "up"
            })
        })
    };
    assert!(web_is("config", Some("acme"), 2), "{}", lab.json("list")?);
    ping(&lab.net, web.v4())?;
    lab.declare("web", "addresses = [\"203.0.113.2\"]\n")?;
    assert!(web_is("config", None, 1), "{}", lab.json("list")?);
    assert!(served(3), "{}", lab.json("status")?);
    unreachable(&lab.net, web.v6())?;
    lab.withdraw("web")?;
    assert!(web_is("kernel", None, 2), "{}", lab.json("list")?);
    assert!(served(4), "{}", lab.json("status")?);

    // A route that goes takes its address along, the last one the machine.
    lab.host
        .run(&format!("ip route del {} dev ve-db", db.v4()))?;
    assert!(served(3), "{}", lab.json("status")?);
    unreachable(&lab.net, db.v4())?;
    ping(&lab.net, db.v6())?;
    lab.host
        .run(&format!("ip -6 route del {} dev ve-db", db.v6()))?;
    assert!(served(2), "{}", lab.json("status")?);
    assert_eq!(lab.json("list")?.as_array().map(Vec::len), Some(1));
    unreachable(&lab.net, db.v6())?;
    Ok(())
}
