//! IP packets for machines: rows F1 to F11, G3, G4, and the host's own.

use super::Meta;
use crate::abi::{Endpoint, HOST, NOBODY, Owner, endpoint_flag, settings_flag};
use crate::tables::Tables;
use crate::verdict::{Action, Family, Reason, Verdict};
use crate::wire::{
    Frame, Ip6, Ipv4, Ipv4Hdr, Ipv6Hdr, L3, L4_V6, Words6, checksum, is_link_local6, is_loopback6,
    is_multicast_or_reserved4, is_multicast6, is_unspecified6, protocol,
};

/// Who sent a packet.
#[derive(Clone, Copy, Debug)]
pub(super) enum Origin {
    /// Another station on the uplink.
    Network,
    /// The host's own stack.
    Host,
    /// A machine of this host, whose source has been checked.
    Machine { id: Owner, tenant: u32 },
}

/// The IPv4 header when it is sound (RFC 1812 5.2.2): version, lengths within
/// the frame, checksum.
#[inline(always)]
pub(super) fn header4<F: Frame + ?Sized>(frame: &F, meta: &Meta) -> Option<Ipv4Hdr> {
    let ip = frame.read::<Ipv4Hdr>(L3)?;
    let words = usize::from(ip.vihl & 15);
    if ip.vihl >> 4 != 4 || words < 5 {
        return None;
    }
    let total = u32::from(u16::from_be_bytes(ip.tot_len));
    // A super-packet beyond 64 kB has a total length of 0 (BIG TCP).
    let jumbo = meta.gso_size != 0 && total == 0;
    if !jumbo && (total < words as u32 * 4 || total + L3 as u32 > meta.length) {
        return None;
    }
    checksum::ipv4_header_is_right(frame, words).then_some(ip)
}

/// The IPv6 header when it is sound (RFC 8200 3): version, length within the
/// frame.
#[inline(always)]
pub(super) fn header6<F: Frame + ?Sized>(frame: &F, meta: &Meta) -> Option<Ip6> {
    let ip = Ip6::read(frame)?;
    let payload = u32::from(ip.payload);
    let sound = ip.version >> 4 == 6 && payload + L4_V6 as u32 <= meta.length;
    sound.then_some(ip)
}

/// Whether a packet, or each segment of a super-packet, fits an MTU (as
/// `skb_gso_validate_network_len` has it). `headers` are the bytes up to the
/// transport header.
#[inline(always)]
fn fits<F: Frame + ?Sized>(
    frame: &F,
    meta: &Meta,
    packet: u32,
    headers: usize,
    protocol: u8,
    mtu: u32,
) -> bool {
    if meta.gso_size == 0 {
        return packet <= mtu;
    }
    let transport = if protocol == protocol::TCP {
        // Two bytes, because the verifier does not follow the comparison that a
        // single one compiles to.
        match frame.read::<[u8; 2]>(L3 + headers + 12) {
            Some([offset, _]) => u32::from(offset >> 4) * 4,
            None => 60,
        }
    } else {
        8
    };
    meta.gso_size + headers as u32 + transport <= mtu
}

/// [`fits`] for a sound IPv4 packet.
#[inline(always)]
pub(super) fn fits4<F: Frame + ?Sized>(frame: &F, meta: &Meta, ip: &Ipv4Hdr, mtu: u32) -> bool {
    let packet = u32::from(u16::from_be_bytes(ip.tot_len));
    fits(
        frame,
        meta,
        packet,
        usize::from(ip.vihl & 15) * 4,
        ip.proto,
        mtu,
    )
}

/// [`fits`] for a sound IPv6 packet.
#[inline(always)]
pub(super) fn fits6<F: Frame + ?Sized>(frame: &F, meta: &Meta, ip: &Ip6, mtu: u32) -> bool {
    let packet = u32::from(ip.payload) + Ipv6Hdr::LEN as u32;
    fits(frame, meta, packet, Ipv6Hdr::LEN, ip.next_header, mtu)
}

/// Sources that no packet from the network can have (F7; RFC 1812 5.3.7).
#[inline(always)]
fn martian4<T: Tables>(ip: &Ipv4Hdr, tables: &T) -> bool {
    let source: Ipv4 = ip.src_addr;
    source[0] == 0
        || source[0] == 127
        || is_multicast_or_reserved4(&source)
        || source == ip.dst_addr
        || tables.owner4(&source) != NOBODY
}

/// Sources that no packet from the network can have (F7; RFC 4291 2.5.2,
/// 2.5.3, 2.7), or that stay on their link (2.5.6).
#[inline(always)]
fn martian6<T: Tables>(ip: &Ip6, tables: &T) -> bool {
    let source: Words6 = ip.source;
    is_unspecified6(&source)
        || is_loopback6(&source)
        || is_multicast6(&source)
        || is_link_local6(&source)
        || source == ip.destination
        || tables.owner6(&source) != NOBODY
}

/// The checks that both families share once a header is sound, in the order
/// that decides which reason is counted.
#[inline(always)]
fn deliver<'a, T: Tables>(
    id: Owner,
    endpoint: &'a Endpoint,
    origin: Origin,
    family: Family,
    protocol: u8,
    hops: u8,
    tables: &T,
) -> Verdict<'a> {
    let drop = |reason| Verdict::drop(reason, id);
    if let Origin::Machine { id: sender, tenant } = origin
        && tenant != endpoint.tenant
        && tables.settings().flags & settings_flag::ISOLATION_ROUTE == 0
    {
        return Verdict::drop(Reason::TenantIsolation, sender);
    }
    if endpoint.flags & endpoint_flag::UP == 0 {
        return drop(Reason::EndpointDown);
    }
    let hop = !matches!(origin, Origin::Host);
    if hop && hops <= 1 {
        return drop(Reason::TtlExceeded);
    }
    let from = match origin {
        Origin::Machine { id, .. } => id,
        _ => NOBODY,
    };
    Verdict::deliver(id, endpoint, from, hop, family, protocol)
}

/// An IPv4 packet from the network or the host.
#[inline(always)]
pub(super) fn inbound4<'a, F, T>(
    frame: &F,
    meta: &Meta,
    origin: Origin,
    tables: &'a T,
) -> Verdict<'a>
where
    F: Frame + ?Sized,
    T: Tables,
{
    let Some(ip) = frame.read::<Ipv4Hdr>(L3) else {
        return Verdict::pass(Reason::Malformed);
    };
    match tables.owner4(&ip.dst_addr) {
        NOBODY => Verdict::pass(Reason::NotOwned),
        HOST => Verdict::pass(Reason::ForHost),
        id => machine4(frame, meta, id, origin, tables),
    }
}

/// An IPv4 packet for a machine.
#[inline(always)]
pub(super) fn machine4<'a, F, T>(
    frame: &F,
    meta: &Meta,
    id: Owner,
    origin: Origin,
    tables: &'a T,
) -> Verdict<'a>
where
    F: Frame + ?Sized,
    T: Tables,
{
    let Some(endpoint) = tables.endpoint(id) else {
        return Verdict::pass(Reason::NotOwned);
    };
    if matches!(origin, Origin::Network) && endpoint.vlan != meta.vlan {
        return Verdict::pass(Reason::VlanPass);
    }
    let Some(ip) = header4(frame, meta) else {
        return Verdict::drop(Reason::BadHeader, id);
    };
    if matches!(origin, Origin::Network) && martian4(&ip, tables) {
        return Verdict::drop(Reason::MartianSource, id);
    }
    let verdict = deliver(id, endpoint, origin, Family::V4, ip.proto, ip.ttl, tables);
    if verdict.action == Action::Deliver && !fits4(frame, meta, &ip, endpoint.mtu) {
        return Verdict::drop(Reason::TooBig, id);
    }
    verdict
}

/// An IPv6 packet from the network or the host.
#[inline(always)]
pub(super) fn inbound6<'a, F, T>(
    frame: &F,
    meta: &Meta,
    origin: Origin,
    tables: &'a T,
) -> Verdict<'a>
where
    F: Frame + ?Sized,
    T: Tables,
{
    let Some(ip) = Ip6::read(frame) else {
        return Verdict::pass(Reason::Malformed);
    };
    match tables.owner6(&ip.destination) {
        NOBODY => Verdict::pass(Reason::NotOwned),
        HOST => Verdict::pass(Reason::ForHost),
        id => machine6(frame, meta, id, origin, tables),
    }
}

/// An IPv6 packet for a machine.
#[inline(always)]
pub(super) fn machine6<'a, F, T>(
    frame: &F,
    meta: &Meta,
    id: Owner,
    origin: Origin,
    tables: &'a T,
) -> Verdict<'a>
where
    F: Frame + ?Sized,
    T: Tables,
{
    let Some(endpoint) = tables.endpoint(id) else {
        return Verdict::pass(Reason::NotOwned);
    };
    if matches!(origin, Origin::Network) && endpoint.vlan != meta.vlan {
        return Verdict::pass(Reason::VlanPass);
    }
    let Some(ip) = header6(frame, meta) else {
        return Verdict::drop(Reason::BadHeader, id);
    };
    if matches!(origin, Origin::Network) && martian6(&ip, tables) {
        return Verdict::drop(Reason::MartianSource, id);
    }
    let verdict = deliver(
        id,
        endpoint,
        origin,
        Family::V6,
        ip.next_header,
        ip.hop_limit,
        tables,
    );
    if verdict.action == Action::Deliver && !fits6(frame, meta, &ip, endpoint.mtu) {
        return Verdict::drop(Reason::TooBig, id);
    }
    verdict
}
