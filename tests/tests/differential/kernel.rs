//! The reference: a host set up the way that is replaced here, with `proxy_arp`,
//! `proxy_ndp`, forwarding and a route for each address, in the world of the rows.
//!
//! Neighbors are permanent entries and redirects are off, so that every frame that the
//! host emits is about the one it was sent.

use std::{fmt::Write as _, net::Ipv6Addr};

use anyhow::{Context as _, Result, bail};
use netspawn_ebpf::{
    abi::{GATEWAY4, GATEWAY6, HOST, Owner},
    wire::{Ipv4, Ipv6, Mac},
};
use netspawn_tests::Ns;

use crate::{
    generate::present,
    rows::{
        At,
        world::{self, DB, SMALL, WEB},
    },
    tap::Tap,
};

/// The router that the world's routes lead to.
const ROUTER4: Ipv4 = [203, 0, 113, 254];
const ROUTER6: Ipv6 = [0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xfe];

/// Where a frame came out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    Network,
    Machine(Owner),
}

/// A frame that came out, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    pub side: Side,
    pub frame: Vec<u8>,
}

/// The reference host with its network and machines.
pub struct Kernel {
    host: Ns,
    _far: Vec<Ns>,
    taps: Vec<(Side, Tap)>,
}

fn mac(mac: Mac) -> String {
    let hex: Vec<_> = mac.iter().map(|byte| format!("{byte:02x}")).collect();
    hex.join(":")
}

fn v4(address: Ipv4) -> String {
    std::net::Ipv4Addr::from(address).to_string()
}

fn v6(address: Ipv6) -> String {
    Ipv6Addr::from(address).to_string()
}

/// A namespace that only sends and receives by packet sockets.
fn silent(name: &str) -> Result<Ns> {
    let ns = Ns::new(name)?;
    for key in ["all", "default"] {
        ns.set_sysctl(&format!("net/ipv6/conf/{key}/disable_ipv6"), "1")?;
    }
    Ok(ns)
}

fn host() -> Result<Ns> {
    let ns = Ns::new("reference")?;
    for (key, value) in [
        ("ipv4/conf/all/forwarding", "1"),
        ("ipv4/conf/default/forwarding", "1"),
        ("ipv4/conf/all/rp_filter", "1"),
        ("ipv4/conf/default/rp_filter", "1"),
        ("ipv4/conf/all/accept_redirects", "0"),
        ("ipv4/conf/default/accept_redirects", "0"),
        ("ipv4/conf/all/send_redirects", "0"),
        ("ipv4/conf/default/send_redirects", "0"),
        ("ipv4/conf/all/accept_source_route", "0"),
        ("ipv4/conf/default/proxy_arp", "1"),
        ("ipv4/icmp_ratemask", "0"),
        ("ipv4/icmp_ratelimit", "0"),
        ("ipv4/icmp_msgs_per_sec", "1000000000"),
        ("ipv4/icmp_msgs_burst", "1000000000"),
        ("ipv6/icmp/ratelimit", "0"),
        ("ipv6/conf/all/forwarding", "1"),
        ("ipv6/conf/default/forwarding", "1"),
        ("ipv6/conf/all/proxy_ndp", "1"),
        ("ipv6/conf/default/proxy_ndp", "1"),
        ("ipv6/conf/default/accept_ra", "0"),
        ("ipv6/conf/default/accept_redirects", "0"),
        ("ipv6/conf/default/addr_gen_mode", "1"),
        ("ipv6/conf/default/router_solicitations", "0"),
    ] {
        ns.set_sysctl(&format!("net/{key}"), value)?;
    }
    Ok(ns)
}

/// Runs the lines of an `ip -batch` file.
fn batch(ns: &Ns, lines: &str) -> Result<()> {
    ns.cmd("ip")
        .args(["-batch", "-"])
        .input(lines)
        .text()
        .map(drop)
}

fn links(ns: &Ns, far: &[(Side, Ns)]) -> Result<()> {
    for (side, end) in far {
        let (near, port_mac, name, end_mac, mtu) = names(*side);
        ns.run(&format!(
            "ip link add {near} mtu {mtu} address {} type veth \
             peer name {name} mtu {mtu} address {} netns {}",
            mac(port_mac),
            mac(end_mac),
            end.path().display()
        ))?;
        end.run(&format!("ip link set {name} arp off up"))?;
        ns.run(&format!("ip link set {near} up"))?;
        for family in ["ipv4", "ipv6"] {
            ns.set_sysctl(&format!("net/{family}/neigh/{near}/proxy_delay"), "0")?;
        }
    }
    Ok(())
}

/// Interface of the host, its address, the other end, its address, the MTU.
fn names(side: Side) -> (String, Mac, &'static str, Mac, u32) {
    match side {
        Side::Network => (
            "eth0".to_owned(),
            world::UPLINK,
            "lan0",
            world::ROUTER,
            1500,
        ),
        Side::Machine(id) => {
            let mtu = if id == SMALL { 1280 } else { 1500 };
            let (near, far) = (world::port_mac(id), world::mac(id));
            (format!("ve-{id}"), near, "host0", far, mtu)
        }
    }
}

/// Addresses that a proxy entry for IPv6 is made for: there are none for prefixes.
pub fn proxied6(port: Option<Owner>) -> Vec<Ipv6> {
    let mut all: Vec<Ipv6> = present()
        .filter(|id| Some(*id) != port)
        .map(world::ip6)
        .collect();
    if port != Some(WEB) {
        all.push(world::INSIDE6);
    }
    if port != Some(DB) {
        all.push(world::CARVED6);
    }
    if port.is_some() {
        all.extend([world::HOST6, world::FREE6, world::FAR6, world::ASKER6]);
    }
    all
}

fn addresses() -> Result<String> {
    let mut text = String::new();
    let permanent = |to: &str, dev: &str, at: Mac| {
        format!(
            "neigh replace {to} dev {dev} lladdr {} nud permanent\n",
            mac(at)
        )
    };
    writeln!(text, "addr add {}/32 dev eth0", v4(world::HOST4))?;
    writeln!(text, "addr add {}/32 dev lo scope link", v4(GATEWAY4))?;
    writeln!(text, "addr add {}/128 dev eth0", v6(world::HOST6))?;
    writeln!(text, "addr add fe80::10/64 dev eth0")?;
    text += &permanent(&v4(ROUTER4), "eth0", world::ROUTER);
    text += &permanent(&v6(ROUTER6), "eth0", world::ROUTER);
    // The reference's own routes to machines follow.
    let machines4 = world::prefixes4();
    let machines6 = world::prefixes6();
    let routes4 = world::routes4().into_iter();
    for (net, length, hop) in routes4
        .filter(|(net, length, _)| !machines4.iter().any(|(to, n, _)| (to, n) == (net, length)))
    {
        let to = format!("{}/{length}", v4(net));
        let hop = world::nexthops()[hop as usize];
        if hop.flags & netspawn_ebpf::abi::nexthop_flag::REFUSED != 0 {
            writeln!(text, "route add unreachable {to}")?;
        } else {
            let via = v4(ROUTER4);
            writeln!(
                text,
                "route add {to} via {via} dev eth0 onlink mtu {}",
                hop.mtu
            )?;
        }
    }
    let routes6 = world::routes6().into_iter();
    for (net, length, hop) in routes6
        .filter(|(net, length, _)| !machines6.iter().any(|(to, n, _)| (to, n) == (net, length)))
    {
        let to = format!("{}/{length}", v6(net));
        let hop = world::nexthops()[hop as usize];
        if hop.flags & netspawn_ebpf::abi::nexthop_flag::REFUSED != 0 {
            writeln!(text, "route add unreachable {to}")?;
        } else {
            let via = v6(ROUTER6);
            writeln!(text, "route add {to} via {via} dev eth0 mtu {}", hop.mtu)?;
        }
    }
    for target in proxied6(None) {
        writeln!(text, "neigh add proxy {} dev eth0", v6(target))?;
    }
    for id in present() {
        let dev = format!("ve-{id}");
        let (ip4, ip6) = (v4(world::ip4(id)), v6(world::ip6(id)));
        writeln!(text, "addr add {}/128 dev {dev}", v6(GATEWAY6))?;
        writeln!(
            text,
            "addr add {}/128 dev {dev}",
            v6(world::port_link_local(id))
        )?;
        writeln!(text, "route add {ip4}/32 dev {dev}")?;
        writeln!(text, "route add {ip6}/128 dev {dev}")?;
        writeln!(text, "route append fe80::/64 dev {dev}")?;
        text += &permanent(&ip4, &dev, world::mac(id));
        text += &permanent(&ip6, &dev, world::mac(id));
        text += &permanent(&v6(world::guest_link_local(id)), &dev, world::mac(id));
        for target in proxied6(Some(id)) {
            writeln!(text, "neigh add proxy {} dev {dev}", v6(target))?;
        }
    }
    // What is via the host is behind nobody's link.
    for (net, length, id) in world::prefixes4() {
        if length < 32 && id != HOST {
            let (to, via) = (v4(net), v4(world::ip4(id)));
            writeln!(text, "route add {to}/{length} via {via} dev ve-{id} onlink")?;
        }
    }
    for (net, length, id) in world::prefixes6() {
        if (length < 128 || net == world::CARVED6) && id != HOST {
            let (to, via) = (v6(net), v6(world::ip6(id)));
            writeln!(text, "route add {to}/{length} via {via} dev ve-{id} onlink")?;
        }
    }
    Ok(text)
}

impl Kernel {
    /// Raises it.
    pub fn new() -> Result<Self> {
        let host = host()?;
        let mut far = vec![(Side::Network, silent("network")?)];
        for id in present() {
            far.push((Side::Machine(id), silent(&format!("machine {id}"))?));
        }
        links(&host, &far)?;
        batch(&host, &addresses()?).context("the reference host cannot be set up")?;
        let mut taps = Vec::new();
        for (side, ns) in &far {
            taps.push((*side, Tap::open(ns, names(*side).2)?));
        }
        let mut kernel = Kernel {
            host,
            _far: far.into_iter().map(|(_, ns)| ns).collect(),
            taps,
        };
        // What interfaces say when they come up.
        kernel.drain();
        Ok(kernel)
    }

    /// Forgets neighbors that earlier frames taught the host.
    pub fn forget_neighbors(&mut self) -> Result<()> {
        for family in ["-4", "-6"] {
            self.host
                .cmd("ip")
                .args([family, "neigh", "flush", "all"])
                .output()?;
        }
        self.drain();
        Ok(())
    }

    /// Throws away what has come in.
    pub fn drain(&mut self) {
        for (_, tap) in &mut self.taps {
            tap.receive(|_| {});
        }
    }

    /// Sends a frame from the network or a machine, and adds all that the host emits for
    /// it to `seen`.
    pub fn send(&mut self, at: At, frame: &[u8], seen: &mut Vec<Seen>) -> Result<()> {
        let from = match at {
            At::Uplink => Side::Network,
            At::Port(id) => Side::Machine(id),
            At::Host => bail!("the reference sends nothing itself"),
        };
        let (_, tap) = self
            .taps
            .iter()
            .find(|(side, _)| *side == from)
            .with_context(|| format!("{from:?} has no interface"))?;
        tap.send(frame)
            .with_context(|| format!("{from:?} cannot send {} bytes", frame.len()))?;
        for (side, tap) in &mut self.taps {
            tap.receive(|frame| {
                seen.push(Seen {
                    side: *side,
                    frame: frame.to_vec(),
                });
            });
        }
        Ok(())
    }
}
