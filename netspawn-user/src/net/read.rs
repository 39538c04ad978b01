//! The kernel's messages about links, addresses, routes and neighbors, as the
//! model has them.

use std::{net::IpAddr, num::NonZeroU32};

use ipnet::IpNet;
use netspawn_ebpf::wire::{Mac, ether_type};

use super::netlink::{Error, Message, Netlink, Request, attrs, read_ip, read_text, read_u32};
use crate::gone;
use crate::model::{Link, Neighbor, Peer, Proxy, Route, Station, Vlan};

/// Bytes of `ifinfomsg`.
pub const IFINFOMSG: usize = 16;
const IFADDRMSG: usize = 8;
const RTMSG: usize = 12;
const NDMSG: usize = 12;
/// Bytes of `ndtmsg`, which begins with the family.
const NDTMSG: usize = 4;
/// Attributes of `linux/neighbour.h`.
const NDTA_THRESH3: u16 = 4;
const NDTA_STATS: u16 = 7;
/// Where `ndt_stats` has `ndts_table_fulls`, a u64.
const TABLE_FULLS: usize = 80;

/// Statistics are half of a link's message and of no use here.
const RTEXT_FILTER_SKIP_STATS: u32 = 1 << 3;
/// `rtm_flags`: the next hop is dead.
const RTNH_F_DEAD: u32 = 1;
/// `RTA_METRICS`: path MTU.
const RTAX_MTU: u16 = 2;
/// Entries that the host answers for, not entries it sends to.
const NTF_PROXY: u8 = 1 << 3;
/// `NUD_VALID` of the kernel's `net/neighbour.h`.
const NUD_VALID: u16 = libc::NUD_PERMANENT
    | libc::NUD_NOARP
    | libc::NUD_REACHABLE
    | libc::NUD_PROBE
    | libc::NUD_STALE
    | libc::NUD_DELAY;

/// An `ifinfomsg` that names one interface (0 for all).
pub fn ifinfomsg(ifindex: u32, flags: u32, change: u32) -> [u8; IFINFOMSG] {
    let mut header = [0; IFINFOMSG];
    header[4..8].copy_from_slice(&ifindex.to_ne_bytes());
    header[8..12].copy_from_slice(&flags.to_ne_bytes());
    header[12..16].copy_from_slice(&change.to_ne_bytes());
    header
}

/// Asks for all links, or for one when `flags` say no dump.
pub fn get_link(ifindex: u32) -> Request {
    Request::new(libc::RTM_GETLINK, 0, &ifinfomsg(ifindex, 0, 0))
        .u32(libc::IFLA_EXT_MASK, RTEXT_FILTER_SKIP_STATS)
}

/// Asks for all addresses.
pub fn get_addresses() -> Request {
    Request::new(libc::RTM_GETADDR, 0, &[0; IFADDRMSG])
}

/// Asks for the main table's routes of a family (`AF_INET`, `AF_INET6`).
pub fn get_routes(family: i32) -> Request {
    let mut header = [0; RTMSG];
    header[0] = family as u8;
    header[4] = libc::RT_TABLE_MAIN;
    Request::new(libc::RTM_GETROUTE, 0, &header)
}

/// Asks for all neighbors of a family.
pub fn get_neighbors(family: i32) -> Request {
    let mut header = [0; NDMSG];
    header[0] = family as u8;
    Request::new(libc::RTM_GETNEIGH, 0, &header)
}

/// Asks for all proxy neighbors of a family, which a dump of neighbors leaves
/// out (`neigh_dump_info` in net/core/neighbour.c).
pub fn get_proxies(family: i32) -> Request {
    let mut header = [0; NDMSG];
    header[0] = family as u8;
    header[10] = NTF_PROXY;
    Request::new(libc::RTM_GETNEIGH, 0, &header)
}

/// Asks for the tables of neighbors, which all network namespaces share.
pub fn get_neighbor_tables() -> Request {
    Request::new(libc::RTM_GETNEIGHTBL, 0, &[0; NDTMSG])
}

/// Asks for the forwarding databases of all bridges.
pub fn get_stations() -> Request {
    let mut header = [0; NDMSG];
    header[0] = libc::AF_BRIDGE as u8;
    Request::new(libc::RTM_GETNEIGH, 0, &header)
}

/// A link, without its peer's MAC. `None` for messages of another family,
/// which tell of bridge ports and IPv6 settings.
pub fn link(message: &Message<'_>) -> Option<Link> {
    if message.byte(0) != libc::AF_UNSPEC as u8 {
        return None;
    }
    let flags = message.field(8);
    let mut link = Link {
        ifindex: message.field(4),
        name: String::new(),
        alt_names: Vec::new(),
        hardware: u16::from_ne_bytes([message.byte(2), message.byte(3)]),
        kind: None,
        mac: Mac::default(),
        mtu: 0,
        admin_up: flags & libc::IFF_UP as u32 != 0,
        carrier: flags & libc::IFF_LOWER_UP as u32 != 0,
        master: None,
        vlan: None,
        peer: None,
    };
    let mut lower = None;
    let mut netnsid = None;
    let mut data = None;
    for (kind, value) in message.attrs(IFINFOMSG) {
        match kind {
            libc::IFLA_IFNAME => link.name = read_text(value),
            libc::IFLA_ADDRESS => link.mac = mac(value).unwrap_or_default(),
            libc::IFLA_MTU => link.mtu = read_u32(value),
            libc::IFLA_MASTER => link.master = NonZeroU32::new(read_u32(value)).map(u32::from),
            libc::IFLA_LINK => lower = NonZeroU32::new(read_u32(value)).map(u32::from),
            libc::IFLA_LINK_NETNSID => netnsid = Some(read_u32(value) as i32),
            libc::IFLA_LINKINFO => {
                let info = |wanted| attrs(value).find(|(kind, _)| *kind == wanted);
                link.kind = info(libc::IFLA_INFO_KIND).map(|(_, value)| read_text(value));
                data = info(libc::IFLA_INFO_DATA).map(|(_, value)| value);
            }
            libc::IFLA_PROP_LIST => {
                link.alt_names = attrs(value)
                    .filter(|(kind, _)| *kind == libc::IFLA_ALT_IFNAME)
                    .map(|(_, value)| read_text(value))
                    .collect();
            }
            _ => {}
        }
    }
    // Of another namespace, it is out of our hands.
    if link.kind.as_deref() == Some("vlan") && netnsid.is_none() {
        link.vlan = data.and_then(|data| vlan(data, lower?));
    }
    if link.kind.as_deref() == Some("veth") {
        link.peer = lower.map(|ifindex| Peer {
            ifindex,
            netnsid,
            mac: None,
        });
    }
    Some(link)
}

/// What a VLAN interface's `IFLA_INFO_DATA` says; `None` for 802.1ad.
fn vlan(data: &[u8], lower: u32) -> Option<Vlan> {
    const VLAN_ID: u16 = 1;
    const VLAN_PROTOCOL: u16 = 5;
    let u16_of = |wanted| {
        let (_, value) = attrs(data).find(|(kind, _)| *kind == wanted)?;
        value.first_chunk::<2>().copied()
    };
    let protocol = u16_of(VLAN_PROTOCOL).map_or(ether_type::VLAN, u16::from_be_bytes);
    let id = u16::from_ne_bytes(u16_of(VLAN_ID)?);
    (protocol == ether_type::VLAN).then_some(Vlan { lower, id })
}

/// An address of the host and the interface it is on.
#[expect(
    clippy::disallowed_methods,
    reason = "what the kernel's message does not have is left out, as that of a newer kernel"
)]
pub fn address(message: &Message<'_>) -> Option<(u32, IpNet)> {
    let mut found = None;
    for (kind, value) in message.attrs(IFADDRMSG) {
        match kind {
            // On a point-to-point link `IFA_ADDRESS` is the other end's.
            libc::IFA_LOCAL => {
                found = read_ip(value);
                break;
            }
            libc::IFA_ADDRESS => found = read_ip(value),
            _ => {}
        }
    }
    Some((message.field(4), IpNet::new(found?, message.byte(1)).ok()?))
}

/// Whether a message tells of a route of the main table that is looked up by
/// destination alone.
pub fn concerns_routes(message: &Message<'_>) -> bool {
    let table = message
        .attrs(RTMSG)
        .find(|(kind, _)| *kind == libc::RTA_TABLE)
        .map_or(u32::from(message.byte(4)), |(_, value)| read_u32(value));
    table == u32::from(libc::RT_TABLE_MAIN)
        && message.field(8) & libc::RTM_F_CLONED == 0
        && (message.byte(2), message.byte(3)) == (0, 0)
}

/// A route that delivers or refuses, unless it is to link-local addresses,
/// which every port has. Of several next hops it is the first that is alive.
#[expect(
    clippy::disallowed_methods,
    reason = "what the kernel's message does not have is left out, as that of a newer kernel"
)]
pub fn route(message: &Message<'_>) -> Option<Route> {
    if !concerns_routes(message) || message.field(8) & RTNH_F_DEAD != 0 {
        return None;
    }
    let refused = match message.byte(7) {
        libc::RTN_UNICAST => false,
        libc::RTN_BLACKHOLE | libc::RTN_UNREACHABLE | libc::RTN_PROHIBIT => true,
        _ => return None,
    };
    let unspecified: IpAddr = match i32::from(message.byte(0)) {
        libc::AF_INET => [0; 4].into(),
        libc::AF_INET6 => [0; 16].into(),
        _ => return None,
    };
    let mut destination = unspecified;
    let mut hop = Hop::default();
    let mut priority = 0;
    let mut mtu = None;
    for (kind, value) in message.attrs(RTMSG) {
        match kind {
            libc::RTA_DST => destination = read_ip(value)?,
            libc::RTA_PRIORITY => priority = read_u32(value),
            libc::RTA_METRICS => {
                mtu = attrs(value)
                    .find(|(kind, _)| *kind == RTAX_MTU)
                    .map(|(_, value)| read_u32(value))
                    .filter(|mtu| *mtu != 0);
            }
            libc::RTA_MULTIPATH => hop = first_hop(value)?,
            _ => hop.read(kind, value),
        }
    }
    if matches!(destination, IpAddr::V6(address) if address.is_unicast_link_local()) {
        return None;
    }
    if refused {
        hop = Hop::default();
    } else {
        hop.ifindex?;
    }
    Some(Route {
        destination: IpNet::new(destination, message.byte(1)).ok()?,
        ifindex: hop.ifindex,
        gateway: hop.gateway,
        priority,
        mtu,
        refused,
    })
}

#[derive(Default)]
struct Hop {
    ifindex: Option<u32>,
    gateway: Option<IpAddr>,
}

impl Hop {
    fn read(&mut self, kind: u16, value: &[u8]) {
        match kind {
            libc::RTA_OIF => self.ifindex = Some(read_u32(value)),
            libc::RTA_GATEWAY => self.gateway = read_ip(value),
            // An IPv6 next hop of an IPv4 route (RFC 5549), after its family.
            libc::RTA_VIA => self.gateway = value.get(2..).and_then(read_ip),
            _ => {}
        }
    }
}

/// The first living `rtnexthop`: length (2), flags, weight, ifindex (4),
/// attributes.
fn first_hop(mut bytes: &[u8]) -> Option<Hop> {
    const RTNEXTHOP: usize = 8;
    loop {
        let length = usize::from(u16::from_ne_bytes(*bytes.first_chunk()?));
        let entry = bytes
            .get(..length)
            .filter(|entry| entry.len() >= RTNEXTHOP)?;
        if u32::from(entry[2]) & RTNH_F_DEAD == 0 {
            let mut hop = Hop {
                ifindex: Some(read_u32(&entry[4..])),
                gateway: None,
            };
            for (kind, value) in attrs(&entry[RTNEXTHOP..]) {
                hop.read(kind, value);
            }
            return Some(hop);
        }
        bytes = bytes.get(length.next_multiple_of(4)..)?;
    }
}

/// A neighbor, unless the entry is for a group or a proxy's.
pub fn neighbor(message: &Message<'_>) -> Option<Neighbor> {
    if !matches!(i32::from(message.byte(0)), libc::AF_INET | libc::AF_INET6)
        || message.byte(10) & NTF_PROXY != 0
    {
        return None;
    }
    let state = u16::from_ne_bytes([message.byte(8), message.byte(9)]);
    let mut address = None;
    let mut station = None;
    for (kind, value) in message.attrs(NDMSG) {
        match kind {
            libc::NDA_DST => address = read_ip(value),
            libc::NDA_LLADDR => station = mac(value),
            _ => {}
        }
    }
    Some(Neighbor {
        ifindex: message.field(4),
        address: address.filter(|address| !address.is_multicast())?,
        mac: station.filter(|_| state & NUD_VALID != 0),
    })
}

/// One family's table of neighbors (`struct neigh_table`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NeighborTable {
    /// How many there can be in all network namespaces together (`gc_thresh3`); permanent
    /// ones do not count.
    pub room: u32,
    /// How often one more found no room, since boot.
    pub overflows: u64,
}

/// A table of IPv4 or IPv6 neighbors, with its family. `None` for other tables, and for the
/// messages that follow each table's with one interface's parameters.
#[expect(
    clippy::disallowed_methods,
    reason = "what the kernel's message does not have is left out, as that of a newer kernel"
)]
pub fn neighbor_table(message: &Message<'_>) -> Option<(i32, NeighborTable)> {
    let family = i32::from(message.byte(0));
    if !matches!(family, libc::AF_INET | libc::AF_INET6) {
        return None;
    }
    let (mut room, mut overflows) = (None, 0);
    for (kind, value) in message.attrs(NDTMSG) {
        match kind {
            NDTA_THRESH3 => room = Some(read_u32(value)),
            NDTA_STATS => {
                let count = value.get(TABLE_FULLS..TABLE_FULLS + 8);
                let count = count.and_then(|bytes| bytes.try_into().ok());
                overflows = count.map_or(0, u64::from_ne_bytes);
            }
            _ => {}
        }
    }
    let room = room?;
    Some((family, NeighborTable { room, overflows }))
}

/// A proxy neighbor.
pub fn proxy(message: &Message<'_>) -> Option<Proxy> {
    if message.byte(10) & NTF_PROXY == 0 {
        return None;
    }
    let (_, address) = message
        .attrs(NDMSG)
        .find(|(kind, _)| *kind == libc::NDA_DST)?;
    Some(Proxy {
        ifindex: NonZeroU32::new(message.field(4)).map(u32::from),
        address: read_ip(address)?,
    })
}

/// A station behind a port of a bridge, unless it is the bridge's own.
pub fn station(message: &Message<'_>) -> Option<Station> {
    let state = u16::from_ne_bytes([message.byte(8), message.byte(9)]);
    if i32::from(message.byte(0)) != libc::AF_BRIDGE || state & libc::NUD_PERMANENT != 0 {
        return None;
    }
    let mut station = None;
    let mut bridged = false;
    for (kind, value) in message.attrs(NDMSG) {
        match kind {
            libc::NDA_LLADDR => station = mac(value),
            // Devices have tables of their own, which have none.
            libc::NDA_MASTER => bridged = true,
            _ => {}
        }
    }
    Some(Station {
        port: message.field(4),
        mac: station.filter(|_| bridged)?,
    })
}

/// An Ethernet address; other hardware has longer and shorter ones.
#[expect(
    clippy::disallowed_methods,
    reason = "what the kernel's message does not have is left out, as that of a newer kernel"
)]
fn mac(bytes: &[u8]) -> Option<Mac> {
    bytes.try_into().ok()
}

/// The MAC of a veth's other end in another namespace, `None` when it is gone, or has none
/// of Ethernet.
///
/// # Errors
/// When the kernel does not tell.
pub fn peer_mac(netlink: &mut Netlink, ifindex: u32, netnsid: i32) -> Result<Option<Mac>, Error> {
    let request = get_link(ifindex).u32(libc::IFLA_TARGET_NETNSID, netnsid as u32);
    let found = netlink.get(request, |message| {
        let mut attrs = message.attrs(IFINFOMSG);
        let address = attrs.find(|(kind, _)| *kind == libc::IFLA_ADDRESS);
        Some(address.and_then(|(_, value)| mac(value)))
    });
    Ok(gone::namespace(found)?.flatten())
}

/// The name of a veth's other end in another namespace, `None` when it is gone.
///
/// # Errors
/// When the kernel does not tell.
pub fn peer_name(
    netlink: &mut Netlink,
    ifindex: u32,
    netnsid: i32,
) -> Result<Option<String>, Error> {
    let request = get_link(ifindex).u32(libc::IFLA_TARGET_NETNSID, netnsid as u32);
    gone::namespace(netlink.get(request, |message| {
        message
            .attrs(IFINFOMSG)
            .find(|(kind, _)| *kind == libc::IFLA_IFNAME)
            .map(|(_, value)| read_text(value))
    }))
}
