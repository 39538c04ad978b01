//! IP packets from machines: the source guard first, then where they may go
//! (rows P5 to P7, G1 to G11).

use super::{
    Meta,
    forward::{Header, Origin, to_machine},
    is_machine, may_use_mac, nd_type, ndp,
    offload::Open,
};
use crate::abi::{
    Endpoint, GATEWAY4, GATEWAY6, HOST, NOBODY, NextHop, Owner, endpoint_flag, nexthop_flag,
    settings_flag,
};
use crate::tables::Tables;
use crate::verdict::{Error, Family, Reason, Verdict};
use crate::wire::{
    BROADCAST, EthHdr, Frame, Ip6, Ipv4Hdr, Ipv6, L3, L4_V6, Mac, extension, is_link_local6,
    is_loopback6, is_multicast_mac, is_multicast6, is_unspecified6, ndp::kind, protocol, words6,
};

/// Bytes of an echo request without data.
const ECHO_HEADER: u32 = 8;

const DHCP4_SERVER: u16 = 67;
const DHCP4_CLIENT: u16 = 68;
const DHCP6_CLIENT: u16 = 546;
const DHCP6_SERVER: u16 = 547;

/// All_DHCP_Relay_Agents_and_Servers (RFC 8415 7.1).
const DHCP6_SERVERS: Ipv6 = [0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 2];
const DHCP6_SERVERS_MAC: Mac = [0x33, 0x33, 0, 1, 0, 2];

/// UDP source and destination port, host order.
#[inline(always)]
fn udp_ports<F: Frame + ?Sized>(frame: &F, offset: usize) -> Option<(u16, u16)> {
    let [a, b, c, d] = frame.read::<[u8; 4]>(offset)?;
    Some((u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d])))
}

/// What holds for every unicast packet that leaves a machine: it comes from the
/// machine's MAC, and is sent to the gateway's.
#[inline(always)]
fn link_layer(eth: &EthHdr, endpoint: &Endpoint) -> Result<(), Reason> {
    if !may_use_mac(endpoint, &eth.src_addr) {
        Err(Reason::SpoofedMac)
    } else if endpoint.flags & endpoint_flag::UP == 0 {
        Err(Reason::EndpointDown)
    } else {
        Ok(())
    }
}

/// Whether neighbor discovery may hide behind extension headers, where the host's stack
/// would find and believe it (RFC 6980, RFC 7113): it has 255 hops (RFC 4861 7.1), which
/// next to nothing else that has such headers does.
#[inline(always)]
fn may_hide_discovery(ip: &Ip6) -> bool {
    ip.hop_limit == 255 && extension::is_extension(ip.next_header)
}

/// Sends a packet to the host by way of the uplink that its source's route
/// leaves by, which satisfies every `rp_filter`.
#[inline(always)]
fn to_host<'a, T: Tables>(id: Owner, back: Option<&'a NextHop>, tables: &T) -> Verdict<'a> {
    match back {
        Some(hop) if tables.settings().flags & settings_flag::HOST_DENY != 0 => {
            Verdict::denied(id, Some(hop))
        }
        // The host has a route of its own to the machine, through this port or the
        // bridge that the port is in: its stack expects the packet there.
        Some(hop) if hop.flags & nexthop_flag::REFUSED != 0 => Verdict::pass(Reason::ForHost),
        Some(hop) => Verdict::to_host(id, hop),
        None => Verdict::drop(Reason::NoRoute, id),
    }
}

/// Whether the machine forwards packets of others, whose addresses it does not own.
#[inline(always)]
fn routes(endpoint: &Endpoint) -> bool {
    endpoint.flags & endpoint_flag::SOURCES != 0
}

/// The way out for a packet that is nobody's here. A VLAN's own interface is a way for
/// the machines of that VLAN alone, whom answers reach.
#[inline(always)]
fn next_hop<'a>(hop: Option<&'a NextHop>, endpoint: &Endpoint) -> Option<&'a NextHop> {
    let hop = hop?;
    let vlan = hop.flags >> nexthop_flag::VLAN_SHIFT;
    let refused = hop.flags & nexthop_flag::REFUSED != 0;
    if refused || vlan != 0 && vlan != u32::from(endpoint.vlan) {
        None
    } else {
        Some(hop)
    }
}

/// Whether a machine's packet for another may be sent to that one's own address: both
/// were in one bridge before, and have not asked again.
#[inline(always)]
fn is_addressed(eth: &EthHdr, endpoint: &Endpoint, other: Option<&Endpoint>) -> bool {
    eth.dst_addr == endpoint.port_mac
        || match other {
            Some(other) => eth.dst_addr == other.mac,
            None => false,
        }
}

/// A packet of a machine, as itself and over its gateway, to which nothing of [`port4`]
/// and [`port6`] applies but that it is sent on.
#[inline(always)]
pub(super) fn express<'a, H, F, T>(
    frame: &F,
    meta: &Meta,
    open: &Open,
    id: Owner,
    endpoint: &'a Endpoint,
    tables: &'a T,
) -> Option<Verdict<'a>>
where
    H: Header,
    F: Frame + ?Sized,
    T: Tables,
{
    let ip = H::sound(frame, meta)?;
    let sound = match ip.protocol() {
        // Servers of DHCP send from these ports.
        protocol::UDP => match udp_ports(frame, L3 + ip.header_length()) {
            Some((source, _)) => source != DHCP4_SERVER && source != DHCP6_SERVER,
            // It is not in reach yet.
            None => false,
        },
        protocol::TCP | protocol::ICMP => true,
        // Neighbor discovery, and what may hide it.
        _ => false,
    };
    if !sound {
        return None;
    }
    let needs = ip.plain(meta, open)?;
    if ip.source_owner(tables) != id || !ip.goes_far() || ip.hops() <= 1 {
        return None;
    }
    let owner = ip.far_destination_owner(tables);
    if owner == NOBODY {
        let hop = next_hop(ip.route(tables), endpoint)?;
        return (needs <= hop.mtu).then_some(Verdict::out(id, hop, H::FAMILY));
    }
    if !is_machine(owner) || owner == id {
        return None;
    }
    let other = tables.endpoint(owner)?;
    let reached = other.tenant == endpoint.tenant
        && other.flags & endpoint_flag::UP != 0
        && needs <= other.mtu;
    reached.then_some(Verdict::deliver(
        owner,
        other,
        id,
        true,
        H::FAMILY,
        ip.protocol(),
    ))
}

/// Dropped because the host has no route there, or one that refuses.
#[inline(always)]
fn unroutable<'a>(id: Owner, family: Family) -> Verdict<'a> {
    Verdict::refuse(Reason::NoRoute, id, family, Error::NoRoute, 0)
}

/// IPv4 from a machine.
#[inline(always)]
pub(super) fn port4<'a, F, T>(
    frame: &F,
    eth: &EthHdr,
    meta: &Meta,
    id: Owner,
    endpoint: &'a Endpoint,
    tables: &'a T,
) -> Verdict<'a>
where
    F: Frame + ?Sized,
    T: Tables,
{
    let drop = |reason| Verdict::drop(reason, id);
    let Some(ip) = frame.read::<Ipv4Hdr>(L3) else {
        return drop(Reason::BadFrame);
    };
    let words = usize::from(ip.vihl & 15);
    let first_fragment = u16::from_be_bytes(ip.frags) & 0x1fff == 0;
    let ports = if ip.proto == protocol::UDP && first_fragment {
        udp_ports(frame, L3 + words * 4)
    } else {
        Some((0, 0))
    };
    // RFC 2131 4.1: without an address there is no other way to send.
    if ip.src_addr == [0; 4]
        && ports == Some((DHCP4_CLIENT, DHCP4_SERVER))
        && ip.dst_addr == [255; 4]
        && eth.dst_addr == BROADCAST
    {
        if let Err(reason) = link_layer(eth, endpoint) {
            return drop(reason);
        }
        return Verdict::to_stack(Reason::DhcpClient, endpoint.port_mac);
    }
    if tables.owner4(&ip.src_addr) != id
        && !(routes(endpoint) && tables.may_send4(id, &ip.src_addr))
    {
        return drop(Reason::SpoofedSource);
    }
    if let Err(reason) = link_layer(eth, endpoint) {
        return drop(reason);
    }
    match ports {
        Some((DHCP4_SERVER, DHCP4_CLIENT)) => return drop(Reason::RogueDhcp),
        Some(_) => {}
        None => return drop(Reason::BadFrame),
    }
    if is_multicast_mac(&eth.dst_addr) || ip.dst_addr[0] >= 224 {
        return drop(Reason::Multicast);
    }
    let owner = tables.owner4(&ip.dst_addr);
    if !is_addressed(eth, endpoint, tables.endpoint(owner)) {
        return drop(Reason::WrongGateway);
    }
    let Some(ip) = Ipv4Hdr::sound(frame, meta) else {
        return drop(Reason::BadHeader);
    };
    match owner {
        owner if owner == id => drop(Reason::OwnDestination),
        owner if is_machine(owner) => {
            let origin = Origin::Machine {
                id,
                tenant: endpoint.tenant,
            };
            to_machine::<Ipv4Hdr, F, T>(frame, meta, owner, origin, tables)
        }
        HOST => to_host(id, tables.route4(&ip.src_addr), tables),
        _ => {
            if ip.dst_addr == GATEWAY4 {
                let echo = ip.proto == protocol::ICMP
                    && words == 5
                    && ip.length() >= Ipv4Hdr::LEN as u32 + ECHO_HEADER
                    && u16::from_be_bytes(ip.frags) & 0x3fff == 0
                    && frame.read::<[u8; 2]>(L3 + Ipv4Hdr::LEN) == Some([8, 0]);
                return if echo {
                    Verdict::echo(Family::V4)
                } else {
                    drop(Reason::LinkLocal)
                };
            }
            match ip.dst_addr {
                [0 | 127, ..] => return drop(Reason::MartianDestination),
                // RFC 3927 2.7: not to be forwarded.
                [169, 254, ..] => return drop(Reason::LinkLocal),
                _ => {}
            }
            let Some(hop) = next_hop(tables.route4(&ip.dst_addr), endpoint) else {
                return unroutable(id, Family::V4);
            };
            if ip.ttl <= 1 {
                return Ipv4Hdr::expired(id);
            }
            if !ip.fits(meta, hop.mtu) {
                return ip.too_big(id, hop.mtu);
            }
            Verdict::out(id, hop, Family::V4)
        }
    }
}

/// IPv6 from a machine.
#[inline(always)]
pub(super) fn port6<'a, F, T>(
    frame: &F,
    eth: &EthHdr,
    meta: &Meta,
    id: Owner,
    endpoint: &'a Endpoint,
    tables: &'a T,
) -> Verdict<'a>
where
    F: Frame + ?Sized,
    T: Tables,
{
    let drop = |reason| Verdict::drop(reason, id);
    let Some(ip) = Ip6::read(frame) else {
        return drop(Reason::BadFrame);
    };
    let nd = nd_type(frame);
    if is_unspecified6(&ip.source) {
        // Only duplicate address detection, router solicitations and MLD have
        // no source; the latter two end here.
        if !is_multicast6(&ip.destination) {
            return drop(Reason::SpoofedSource);
        }
        if nd != kind::SOLICITATION {
            return drop(Reason::Multicast);
        }
    } else if !ndp::may_use(&ip.source, id, endpoint, tables)
        // What it may send from, it may not claim.
        && (!routes(endpoint)
            || matches!(nd, kind::SOLICITATION | kind::ADVERTISEMENT)
            || is_link_local6(&ip.source)
            || !tables.may_send6(id, &ip.source))
    {
        return drop(Reason::SpoofedSource);
    }
    if let Err(reason) = link_layer(eth, endpoint) {
        return drop(reason);
    }
    match nd {
        kind::SOLICITATION | kind::ADVERTISEMENT => {
            return ndp::port(frame, eth, &ip, nd, id, endpoint, tables);
        }
        kind::ROUTER_ADVERTISEMENT | kind::REDIRECT => return drop(Reason::RogueRouter),
        _ => {}
    }
    let link_local = is_link_local6(&ip.source);
    let ports = if ip.next_header == protocol::UDP {
        udp_ports(frame, L4_V6)
    } else if extension::is_extension(ip.next_header) {
        match extension::udp_ports(frame, &ip) {
            // A client's first packets have no extensions.
            Some((DHCP6_CLIENT, _)) => Some((0, 0)),
            ports => ports,
        }
    } else {
        Some((0, 0))
    };
    let Some(ports) = ports else {
        return drop(Reason::BadFrame);
    };
    if ports == (DHCP6_SERVER, DHCP6_CLIENT) {
        return drop(Reason::RogueDhcp);
    }
    if link_local
        && ports == (DHCP6_CLIENT, DHCP6_SERVER)
        && ip.destination == words6(&DHCP6_SERVERS)
        && eth.dst_addr == DHCP6_SERVERS_MAC
    {
        return Verdict::to_stack(Reason::DhcpClient, endpoint.port_mac);
    }
    if is_multicast_mac(&eth.dst_addr) || is_multicast6(&ip.destination) {
        return drop(Reason::Multicast);
    }
    let owner = tables.owner6(&ip.destination);
    if !is_addressed(eth, endpoint, tables.endpoint(owner)) {
        return drop(Reason::WrongGateway);
    }
    let Some(ip) = Ip6::sound(frame, meta) else {
        return drop(Reason::BadHeader);
    };
    if may_hide_discovery(&ip) && (owner == HOST || is_link_local6(&ip.destination)) {
        return drop(Reason::BadFrame);
    }
    if is_link_local6(&ip.destination) {
        if ip.destination == words6(&GATEWAY6)
            && nd == kind::ECHO_REQUEST
            && u32::from(ip.payload) >= ECHO_HEADER
        {
            return Verdict::echo(Family::V6);
        }
        if ip.destination != words6(&endpoint.port_link_local)
            || ip.destination == words6(&GATEWAY6)
        {
            return drop(Reason::LinkLocal);
        }
        return if tables.settings().flags & settings_flag::HOST_DENY != 0 {
            Verdict::denied(id, None)
        } else {
            Verdict::pass(Reason::ForHost)
        };
    }
    // RFC 4291 2.5.6: a link-local source stays on its link.
    if link_local {
        return drop(Reason::SpoofedSource);
    }
    match owner {
        owner if owner == id => drop(Reason::OwnDestination),
        owner if is_machine(owner) => {
            let origin = Origin::Machine {
                id,
                tenant: endpoint.tenant,
            };
            to_machine::<Ip6, F, T>(frame, meta, owner, origin, tables)
        }
        HOST => to_host(id, tables.route6(&ip.source), tables),
        _ => {
            if is_unspecified6(&ip.destination) || is_loopback6(&ip.destination) {
                return drop(Reason::MartianDestination);
            }
            let Some(hop) = next_hop(tables.route6(&ip.destination), endpoint) else {
                return unroutable(id, Family::V6);
            };
            if ip.hop_limit <= 1 {
                return Ip6::expired(id);
            }
            if !ip.fits(meta, hop.mtu) {
                return ip.too_big(id, hop.mtu);
            }
            Verdict::out(id, hop, Family::V6)
        }
    }
}
