//! Every kind of traffic, between everybody, with every offload on and off.

use std::{
    collections::BTreeMap,
    env,
    fmt::Write as _,
    io::{self, Write as _},
    net::{IpAddr, Ipv6Addr},
};

use anyhow::{Context as _, Result, ensure};
use netspawn_tests::{
    Agent, Checksums, FAR4, FAR6, GATEWAY4, GATEWAY6, HOST0, HOST4, HOST6, LAN, Lab, Mode, Ns,
    Spec, UPLINK, ready_for,
    vnet::{NEEDS_CSUM, PacketPort},
};

use crate::bulk::{Traffic, transfer};

/// Whose devices a setting is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Whose {
    /// Those that packets begin and end at.
    Ends,
    /// The uplink and the ports.
    Host,
}

/// Offloads, by their names with ethtool.
struct Setting {
    name: &'static str,
    features: &'static [(Whose, &'static str)],
}

/// Offloads of what is sent.
pub const ON: &str = "tx on sg on tso on gso on tx-udp-segmentation on";
/// The same without.
pub const OFF: &str = "tso off gso off tx-udp-segmentation off sg off tx off";

const SETTINGS: &[Setting] = &[
    Setting {
        name: "all on",
        features: &[
            (Whose::Ends, ON),
            (Whose::Host, ON),
            (Whose::Ends, "gro on"),
            (Whose::Host, "gro on"),
        ],
    },
    // Sums are left from end to end, segments are cut at once.
    Setting {
        name: "sums alone",
        features: &[
            (Whose::Ends, ON),
            (
                Whose::Ends,
                "tso off gso off tx-udp-segmentation off gro off",
            ),
            (Whose::Host, ON),
            (Whose::Host, "gro off"),
        ],
    },
    // Whatever the ends leave, the kernel does behind the programs.
    Setting {
        name: "host completes",
        features: &[
            (Whose::Ends, ON),
            (Whose::Ends, "gro off"),
            (Whose::Host, OFF),
            (Whose::Host, "gro off"),
        ],
    },
    Setting {
        name: "host joins",
        features: &[
            (Whose::Ends, OFF),
            (Whose::Ends, "gro off"),
            (Whose::Host, ON),
            (Whose::Host, "gro on"),
        ],
    },
    // Joined as lists of packets, also of UDP that is not for this host.
    Setting {
        name: "host lists",
        features: &[
            (Whose::Ends, ON),
            (Whose::Host, ON),
            (
                Whose::Host,
                "gro on rx-gro-list on rx-udp-gro-forwarding on",
            ),
        ],
    },
    Setting {
        name: "all off",
        features: &[
            (Whose::Ends, OFF),
            (Whose::Ends, "gro off"),
            (Whose::Host, OFF),
            (
                Whose::Host,
                "gro off rx-gro-list off rx-udp-gro-forwarding off",
            ),
        ],
    },
];

/// Two stations, the second of which has these addresses.
struct Pair<'a> {
    name: String,
    client: (&'a Ns, &'a str),
    server: (&'a Ns, &'a str),
    addresses: Vec<IpAddr>,
    kinds: Vec<Traffic>,
    /// Whether nothing is left to be done exactly where all is off: in mode xdp the ends
    /// join what they receive, and the network leaves nothing.
    strict: bool,
}

/// What came of each kind of traffic with each setting.
pub struct Table {
    columns: Vec<&'static str>,
    cells: BTreeMap<String, BTreeMap<&'static str, String>>,
    pub failed: Vec<String>,
    /// Frames of the column that is being filled.
    seen: Vec<(String, Vec<Vec<u8>>)>,
}

impl Table {
    pub fn new() -> Self {
        Table {
            columns: Vec::new(),
            cells: BTreeMap::new(),
            failed: Vec::new(),
            seen: Vec::new(),
        }
    }

    /// Fills a cell.
    pub fn add(&mut self, row: &str, column: &'static str, result: Result<String>) {
        if !self.columns.contains(&column) {
            self.columns.push(column);
        }
        let cell = match result {
            Ok(text) => text,
            Err(error) => {
                self.failed.push(format!("{row}, {column}: {error:#}"));
                "FAILED".to_owned()
            }
        };
        self.cells
            .entry(row.to_owned())
            .or_default()
            .insert(column, cell);
    }

    /// As [`Table::add`], with frames that [`Table::judge`] is to look at.
    fn add_seen(
        &mut self,
        row: &str,
        column: &'static str,
        result: Result<(String, Vec<Vec<u8>>)>,
    ) {
        let result = result.map(|(cell, frames)| {
            self.seen.push((row.to_owned(), frames));
            cell
        });
        self.add(row, column, result);
    }

    /// Has tcpdump judge the checksums of all frames of a column.
    fn judge(&mut self, column: &'static str) -> Result<()> {
        let seen = std::mem::take(&mut self.seen);
        let all: Vec<Vec<u8>> = seen.iter().flat_map(|(_, frames)| frames.clone()).collect();
        let verdict = Checksums::of(&all)?;
        ensure!(
            verdict.transport_right > 3 * seen.len(),
            "only {} sums of {} frames were judged",
            verdict.transport_right,
            all.len()
        );
        if verdict.wrong.is_empty() && verdict.transport.is_empty() {
            return Ok(());
        }
        // A process for each takes its time: only where it is needed.
        for (row, frames) in seen {
            let verdict = Checksums::of(&frames)?;
            if let Some(line) = verdict.wrong.iter().chain(&verdict.transport).next() {
                let error = anyhow::anyhow!("tcpdump says {line}");
                self.add(&row, column, Err(error));
            }
        }
        Ok(())
    }

    /// Prints it past the harness, which hides what tests that pass say.
    pub fn print(&self, title: &str) -> Result<()> {
        let width = self.cells.keys().map(String::len).max().unwrap_or(0);
        let mut text = format!("\n{title}\n{:width$}", "");
        for column in &self.columns {
            write!(text, "  {column:>16}")?;
        }
        text += "\n";
        for (row, cells) in &self.cells {
            write!(text, "{row:width$}")?;
            for column in &self.columns {
                let cell = cells.get(column).map_or("-", String::as_str);
                write!(text, "  {cell:>16}")?;
            }
            text += "\n";
        }
        io::stderr().write_all(text.as_bytes())?;
        Ok(())
    }

    /// Fails if a cell has.
    pub fn whole(&self, title: &str) -> Result<()> {
        self.print(title)?;
        ensure!(self.failed.is_empty(), "{}", self.failed.join("\n"));
        Ok(())
    }
}

/// Bytes of a transfer: `NETSPAWN_OFFLOADS_BYTES`, or enough for many super-packets.
pub fn bytes() -> Result<usize> {
    match env::var("NETSPAWN_OFFLOADS_BYTES") {
        Ok(text) => text
            .parse()
            .with_context(|| format!("NETSPAWN_OFFLOADS_BYTES is `{text}`")),
        Err(_) => Ok(1_000_000),
    }
}

/// What `NETSPAWN_OFFLOADS_ALL` asks of a kernel: to have everything, of which the `rest`
/// is shown, what many have not, or the `whole`.
fn all() -> Option<String> {
    env::var("NETSPAWN_OFFLOADS_ALL").ok()
}

/// Whether this kernel has a kind of link.
fn has_link(words: &str) -> Result<bool> {
    let scratch = Ns::new("scratch")?;
    scratch.run("ip link add host0 type veth peer name other")?;
    let made = scratch.run(&format!("ip link add tun42 {words}"));
    match made {
        Ok(_) => Ok(true),
        Err(error) if all().is_some() => Err(error),
        Err(_) => Ok(false),
    }
}

/// A host with machines, one of a VLAN where the kernel has them.
struct Stage {
    _agent: Agent,
    lab: Lab,
    tagged: bool,
    /// Those that the kernel has.
    tunnels: Vec<&'static Tunnel>,
    mode: Mode,
}

impl Stage {
    fn raise(mode: Mode) -> Result<Self> {
        let mut lab = Lab::usual()?;
        let tagged = has_link("link host0 type vlan id 30")?;
        if tagged {
            lab.net.run(&format!(
                "ip link add link {LAN} name lan30 type vlan id 30"
            ))?;
            lab.host.run(&format!(
                "ip link add link {UPLINK} name eth30 type vlan id 30"
            ))?;
            for (ns, interface, last) in [(&lab.net, "lan30", "1"), (&lab.host, "eth30", "10")] {
                ns.run(&format!("ip link set {interface} up"))?;
                ns.run(&format!("ip addr add 192.0.2.{last}/24 dev {interface}"))?;
                ns.run(&format!(
                    "ip addr add 2001:db8:30::{last}/64 dev {interface}"
                ))?;
            }
            lab.add(
                Spec::new("tagged")
                    .address("192.0.2.2")
                    .address("2001:db8:30::2"),
            )?;
            let declaration = lab.machine("tagged").declaration() + "vlan = 30\n";
            lab.declare("tagged", &declaration)?;
        }
        ready_for(&lab, mode)?;
        let agent = Agent::start(&lab, mode.attach())?;
        let mut tunnels = Vec::new();
        for tunnel in TUNNELS {
            if has_link(&tunnel.link(tunnel.ends(1), tunnel.ends(2)))? {
                tunnels.push(tunnel);
            }
        }
        Ok(Stage {
            _agent: agent,
            lab,
            tagged,
            tunnels,
            mode,
        })
    }

    fn set(&self, setting: &Setting) -> Result<()> {
        for (whose, features) in setting.features {
            let devices: Vec<(&Ns, &str)> = match whose {
                Whose::Ends => {
                    let machines = self.lab.machines().iter();
                    let mut ends: Vec<_> = machines.map(|m| (&m.ns, HOST0)).collect();
                    ends.push((&self.lab.net, LAN));
                    ends
                }
                Whose::Host => {
                    let machines = self.lab.machines().iter();
                    let mut ends: Vec<_> = machines.map(|m| (&self.lab.host, m.port())).collect();
                    ends.push((&self.lab.host, UPLINK));
                    ends
                }
            };
            for (ns, device) in devices {
                ethtool(ns, device, features)?;
            }
        }
        if self.mode == Mode::Xdp {
            // An XDP program cannot see what is left to be done, and a frame that it
            // redirects loses it.
            ethtool(&self.lab.net, LAN, OFF)?;
            for machine in self.lab.machines() {
                ethtool(&machine.ns, HOST0, "gro on")?;
            }
        }
        Ok(())
    }

    fn pairs(&self) -> Vec<Pair<'_>> {
        let lab = &self.lab;
        let whole = [
            Traffic::Tcp,
            Traffic::Sctp,
            Traffic::Udp,
            Traffic::UdpSegments,
        ];
        let wanted: &[Traffic] = match all().as_deref() {
            Some("rest") => &[Traffic::Sctp],
            _ => &whole,
        };
        let existing = |wanted: &[Traffic]| -> Vec<Traffic> {
            let there = |traffic: &Traffic| all().is_some() || traffic.exists();
            wanted.iter().copied().filter(there).collect()
        };
        let kinds = existing(wanted);
        let (web, db) = (lab.machine("web"), lab.machine("db"));
        let pair = |name: &str, client, server, addresses: [IpAddr; 2]| Pair {
            name: name.to_owned(),
            client,
            server,
            addresses: addresses.into(),
            kinds: kinds.clone(),
            strict: self.mode == Mode::Tc,
        };
        let mut pairs = vec![
            pair(
                "machine, network",
                (&web.ns, HOST0),
                (&lab.net, LAN),
                [FAR4.into(), FAR6.into()],
            ),
            pair(
                "network, machine",
                (&lab.net, LAN),
                (&web.ns, HOST0),
                [web.v4().into(), web.v6().into()],
            ),
            pair(
                "machine, machine",
                (&web.ns, HOST0),
                (&db.ns, HOST0),
                [db.v4().into(), db.v6().into()],
            ),
            pair(
                "machine, host",
                (&web.ns, HOST0),
                (&lab.host, UPLINK),
                [HOST4.into(), HOST6.into()],
            ),
            pair(
                "host, machine",
                (&lab.host, UPLINK),
                (&web.ns, HOST0),
                [web.v4().into(), web.v6().into()],
            ),
        ];
        if self.tagged {
            let machine = lab.machine("tagged");
            let mut tagged = pair(
                "machine of a VLAN, network",
                (&machine.ns, HOST0),
                (&lab.net, LAN),
                [
                    [192, 0, 2, 1].into(),
                    Ipv6Addr::new(0x2001, 0xdb8, 0x30, 0, 0, 0, 0, 1).into(),
                ],
            );
            tagged.kinds = existing(&whole);
            pairs.push(tagged);
        }
        pairs
    }
}

/// Sets features; those that a device has not, or has for good, stay.
pub fn ethtool(ns: &Ns, device: &str, features: &str) -> Result<()> {
    let output = ns
        .cmd("ethtool")
        .args(["-K", device])
        .args(features.split(' '))
        .output()?;
    let words = &output.stderr;
    ensure!(
        output.code() == 0 || words.contains("Could not change any device features"),
        "ethtool -K {device} {features}: {words}"
    );
    Ok(())
}

/// Everything with every setting.
pub fn run(mode: Mode) -> Result<()> {
    let stage = Stage::raise(mode)?;
    let mut table = Table::new();
    let wanted = env::var("NETSPAWN_OFFLOADS_SETTINGS");
    for setting in SETTINGS {
        if let Ok(wanted) = &wanted
            && !wanted.split(',').any(|name| name == setting.name)
        {
            continue;
        }
        stage.set(setting)?;
        for pair in stage.pairs() {
            exchange(&pair, setting.name, &mut table)?;
        }
        tunnels(&stage, setting.name, &mut table)?;
        table.judge(setting.name)?;
    }
    table.whole(&format!("transfers there and back, {}", mode.name()))
}

fn exchange(pair: &Pair<'_>, column: &'static str, table: &mut Table) -> Result<()> {
    let bytes = bytes()?;
    for address in &pair.addresses {
        let family = if address.is_ipv4() { "IPv4" } else { "IPv6" };
        for traffic in &pair.kinds {
            let row = format!("{}, {family}, {}", pair.name, traffic.name());
            let result = watched(pair, *address, *traffic, bytes, column);
            table.add_seen(&row, column, result);
        }
    }
    Ok(())
}

/// Frames of each end that are judged.
const JUDGED: usize = 300;

/// One transfer, and what both ends saw of it, with sums completed, to be judged.
fn watched(
    pair: &Pair<'_>,
    address: IpAddr,
    traffic: Traffic,
    bytes: usize,
    column: &str,
) -> Result<(String, Vec<Vec<u8>>)> {
    let mut ports = Vec::new();
    for (ns, interface) in [pair.client, pair.server] {
        ports.push(PacketPort::open(ns, interface)?);
    }
    transfer(traffic, pair.client.0, pair.server.0, address, bytes)?;
    let mut frames = Vec::new();
    let (mut left, mut segments) = (0, 0);
    for port in &mut ports {
        let mut judged = 0;
        port.receive(|received| {
            left += usize::from(received.vnet.flags & NEEDS_CSUM != 0);
            segments += usize::from(received.vnet.gso_type != 0);
            // The outer sum of a tunnel's super-packet is settled when it is cut.
            // Lists of packets have one each.
            let is_left = received.vnet.flags & NEEDS_CSUM != 0;
            let settled = received.vnet.gso_type == 0 || is_left && !is_tunnel(received.frame);
            if judged < JUDGED && settled {
                judged += 1;
                let mut frame = received.frame.to_vec();
                received.vnet.complete(&mut frame);
                frames.push(frame);
            }
        });
    }
    match column {
        _ if !pair.strict => {}
        // Before 6.2 a veth cuts UDP itself.
        "all on" if traffic == Traffic::Tcp => {
            ensure!(segments > 0, "no super-packet was seen");
        }
        "all off" => ensure!(
            left + segments == 0,
            "{left} sums were left, {segments} packets were to be cut"
        ),
        _ => {}
    }
    // tcpdump has no word on SCTP's, which is no sum: its receiver checks it.
    if traffic == Traffic::Sctp {
        frames.clear();
    }
    Ok((format!("{left} left, {segments} long"), frames))
}

/// Whether a frame is of one of [`TUNNELS`].
fn is_tunnel(frame: &[u8]) -> bool {
    let (protocol, ports) = match frame.get(12) {
        Some(8) => (frame.get(23), 34),
        _ => (frame.get(20), 54),
    };
    // Tunnels' own options stand before what IPv6 tunnels in IPv6.
    let to = frame.get(ports + 2..ports + 4);
    let to = to.map(|port| u16::from_be_bytes([port[0], port[1]]));
    match protocol {
        Some(4 | 41 | 47 | 60) => true,
        Some(17) => matches!(to, Some(4789 | 6081)),
        _ => false,
    }
}

/// Links that a machine makes by itself to the network and to another machine.
struct Tunnel {
    kind: &'static str,
    /// The words of `ip link add NAME type`, with `{local}` and `{remote}`.
    words: &'static str,
    v6: bool,
}

const TUNNELS: &[Tunnel] = &[
    Tunnel {
        kind: "vxlan",
        words: "vxlan id 42 dstport 4789 local {local} remote {remote}",
        v6: false,
    },
    Tunnel {
        kind: "vxlan",
        words: "vxlan id 42 dstport 4789 local {local} remote {remote} udpcsum",
        v6: false,
    },
    Tunnel {
        kind: "vxlan",
        words: "vxlan id 42 dstport 4789 local {local} remote {remote}",
        v6: true,
    },
    Tunnel {
        kind: "geneve",
        words: "geneve id 42 remote {remote}",
        v6: false,
    },
    Tunnel {
        kind: "geneve",
        words: "geneve id 42 remote {remote}",
        v6: true,
    },
    Tunnel {
        kind: "gre",
        words: "gre local {local} remote {remote}",
        v6: false,
    },
    Tunnel {
        kind: "gre",
        words: "gre local {local} remote {remote} csum key 7",
        v6: false,
    },
    Tunnel {
        kind: "gretap",
        words: "gretap local {local} remote {remote}",
        v6: false,
    },
    Tunnel {
        kind: "ip6gre",
        words: "ip6gre local {local} remote {remote}",
        v6: true,
    },
    Tunnel {
        kind: "ipip",
        words: "ipip local {local} remote {remote}",
        v6: false,
    },
    Tunnel {
        kind: "sit",
        words: "sit local {local} remote {remote}",
        v6: false,
    },
    Tunnel {
        kind: "ip6tnl",
        words: "ip6tnl mode any local {local} remote {remote}",
        v6: true,
    },
];

impl Tunnel {
    /// An address of the documentation's.
    fn ends(&self, last: u8) -> IpAddr {
        if self.v6 {
            Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, last.into()).into()
        } else {
            [192, 0, 2, last].into()
        }
    }

    /// What follows the name in `ip link add`.
    fn link(&self, local: IpAddr, remote: IpAddr) -> String {
        let words = self.words.replace("{local}", &local.to_string());
        format!("type {}", words.replace("{remote}", &remote.to_string()))
    }

    fn name(&self) -> String {
        let outer = if self.v6 { "IPv6" } else { "IPv4" };
        let sums = self.words.split(' ').any(|word| word.ends_with("csum"));
        let sums = if sums { " with sums" } else { "" };
        format!("{}{sums} over {outer}", self.kind)
    }

    /// The address at the second end.
    fn inner(&self) -> IpAddr {
        if self.kind == "sit" {
            Ipv6Addr::new(0xfd42, 0, 0, 0, 0, 0, 0, 2).into()
        } else {
            [10, 42, 0, 2].into()
        }
    }

    /// Makes one end.
    fn raise(&self, ns: &Ns, last: u8, local: IpAddr, remote: IpAddr) -> Result<()> {
        ns.run(&format!("ip link add tun42 {}", self.link(local, remote)))?;
        ns.run("ip link set tun42 mtu 1380 up")?;
        let address = match self.inner() {
            IpAddr::V4(_) => format!("10.42.0.{last}/24"),
            IpAddr::V6(_) => format!("fd42::{last}/64 nodad"),
        };
        ns.run(&format!("ip addr add {address} dev tun42"))
            .map(drop)
    }
}

/// Transfers within tunnels from a container to the network and to another container.
fn tunnels(stage: &Stage, column: &'static str, table: &mut Table) -> Result<()> {
    let lab = &stage.lab;
    let (web, db) = (lab.machine("web"), lab.machine("db"));
    for tunnel in &stage.tunnels {
        let (local, mut far, other): (IpAddr, IpAddr, IpAddr) = if tunnel.v6 {
            (web.v6().into(), FAR6.into(), db.v6().into())
        } else {
            (web.v4().into(), FAR4.into(), db.v4().into())
        };
        // One that cannot be told its own address takes that of its link.
        if !tunnel.words.contains("{local}") {
            far = match far {
                IpAddr::V4(_) => GATEWAY4.into(),
                IpAddr::V6(_) => GATEWAY6.into(),
            };
        }
        for (name, server, interface, remote) in [
            ("network", &lab.net, LAN, far),
            ("machine", &db.ns, HOST0, other),
        ] {
            let pair = Pair {
                name: format!("{}, machine, {name}", tunnel.name()),
                client: (&web.ns, HOST0),
                server: (server, interface),
                addresses: vec![tunnel.inner()],
                kinds: match (all().as_deref(), name) {
                    (Some("rest"), "machine") => vec![Traffic::Tcp],
                    _ => vec![Traffic::Tcp, Traffic::UdpSegments],
                },
                strict: stage.mode == Mode::Tc,
            };
            let made = tunnel
                .raise(&web.ns, 1, local, remote)
                .and_then(|()| tunnel.raise(server, 2, remote, local));
            match made {
                Ok(()) => exchange(&pair, column, table)?,
                Err(error) => table.add(&pair.name, column, Err(error)),
            }
            for ns in [&web.ns, server] {
                // One that could not be made is not there.
                let _ = ns.run("ip link del tun42");
            }
        }
    }
    Ok(())
}
