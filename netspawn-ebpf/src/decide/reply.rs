//! Under `host = "deny"`: what the host has begun with a machine, and what of a machine's
//! answers it. The table of it is written by what the host sends, never by a machine, so
//! that no machine can take the room of another's.

use super::neighbor::mapped;
use crate::abi::{Flow, NO_FLOW, nexthop_flag};
use crate::verdict::{Reason, Verdict};
use crate::wire::{Frame, Ipv4Hdr, L3, L4_V6, Words6, ether_type, ndp::kind, protocol};

/// How long after the host's last packet a machine may answer, in nanoseconds; TCP as long
/// as there is room.
pub const PATIENCE: u64 = 180_000_000_000;

const ETHER_TYPE: usize = 12;
const FRAGMENT: u8 = 44;

/// ICMP types that are errors about a packet, which they quote behind eight bytes
/// (RFC 792).
const fn is_error4(kind: u8) -> bool {
    matches!(kind, 3 | 11 | 12)
}

/// As [`is_error4`] (RFC 4443 2.1), those that have a meaning.
const fn is_error6(kind: u8) -> bool {
    matches!(kind, 1..=4)
}

/// An IP packet's addresses, and where its transport header is.
#[derive(Clone, Copy)]
struct Packet {
    source: Words6,
    destination: Words6,
    protocol: u8,
    transport: usize,
    v6: bool,
}

/// The IPv4 packet at a place; `None` for what has no transport header.
#[inline(always)]
fn packet4<F: Frame + ?Sized>(frame: &F, at: usize) -> Option<Packet> {
    let ip = frame.read::<Ipv4Hdr>(at)?;
    let words = usize::from(ip.vihl & 15);
    if ip.vihl >> 4 != 4 || words < 5 || u16::from_be_bytes(ip.frags) & 0x1fff != 0 {
        return None;
    }
    Some(Packet {
        source: mapped(ip.src_addr),
        destination: mapped(ip.dst_addr),
        protocol: ip.proto,
        transport: at + words * 4,
        v6: false,
    })
}

/// As [`packet4`]; behind other extension headers than that of a first fragment it is not
/// looked for.
#[inline(always)]
fn packet6<F: Frame + ?Sized>(frame: &F, at: usize) -> Option<Packet> {
    let [version, _, _, _, _, _, next, _] = frame.read::<[u8; 8]>(at)?;
    let source = frame.read::<Words6>(at + 8)?;
    let destination = frame.read::<Words6>(at + 24)?;
    if version >> 4 != 6 {
        return None;
    }
    let (protocol, transport) = if next == FRAGMENT {
        let [next, _, high, low] = frame.read::<[u8; 4]>(at + 40)?;
        if u16::from_be_bytes([high, low]) >> 3 != 0 {
            return None;
        }
        (next, at + 48)
    } else {
        (next, at + 40)
    };
    Some(Packet {
        source,
        destination,
        protocol,
        transport,
        v6: true,
    })
}

#[inline(always)]
const fn flow(
    host: &Words6,
    machine: &Words6,
    protocol: u8,
    [a, b]: [u8; 2],
    [c, d]: [u8; 2],
) -> Flow {
    let ports = u32::from_be_bytes([a, b, c, d]) as u64;
    [
        host[0],
        host[1],
        machine[0],
        machine[1],
        (protocol as u64) << 32 | ports,
    ]
}

/// The flow of a packet of the host's.
#[inline(always)]
fn begun<F: Frame + ?Sized>(frame: &F, packet: &Packet) -> Flow {
    let Some([a, b, c, d, e, f, ..]) = frame.read::<[u8; 8]>(packet.transport) else {
        return NO_FLOW;
    };
    let asks = if packet.v6 { kind::ECHO_REQUEST } else { 8 };
    let (host, machine) = (&packet.source, &packet.destination);
    match packet.protocol {
        protocol::TCP | protocol::UDP => flow(host, machine, packet.protocol, [a, b], [c, d]),
        protocol::ICMP if !packet.v6 && a == asks => {
            flow(host, machine, packet.protocol, [e, f], [0; 2])
        }
        protocol::ICMPV6 if packet.v6 && a == asks => {
            flow(host, machine, packet.protocol, [e, f], [0; 2])
        }
        _ => NO_FLOW,
    }
}

/// What the host begins, or goes on with, by a packet for a machine.
#[inline(always)]
pub fn opened<F: Frame + ?Sized>(frame: &F) -> Flow {
    let packet = match frame.read::<u16>(ETHER_TYPE).map(u16::from_be) {
        Some(ether_type::IPV4) => packet4(frame, L3),
        Some(ether_type::IPV6) => packet6(frame, L3),
        _ => None,
    };
    match packet {
        Some(packet) => begun(frame, &packet),
        None => NO_FLOW,
    }
}

/// What of the host's a machine's packet for it goes on with: that of the same addresses
/// and ports, of an echo request, or of the packet that an error is about.
#[inline(always)]
pub fn answered<F: Frame + ?Sized>(frame: &F) -> Flow {
    match frame.read::<u16>(ETHER_TYPE).map(u16::from_be) {
        Some(ether_type::IPV4) => answered4(frame),
        Some(ether_type::IPV6) => answered6(frame),
        _ => NO_FLOW,
    }
}

#[inline(always)]
fn answered4<F: Frame + ?Sized>(frame: &F) -> Flow {
    const QUOTE: usize = L3 + Ipv4Hdr::LEN + 8;
    let Some(packet) = packet4(frame, L3) else {
        return NO_FLOW;
    };
    if packet.protocol != protocol::ICMP {
        return replied(frame, &packet);
    }
    match frame.read::<[u8; 8]>(packet.transport) {
        Some([0, _, _, _, e, f, ..]) => flow(
            &packet.destination,
            &packet.source,
            protocol::ICMP,
            [e, f],
            [0; 2],
        ),
        Some([kind, ..]) if is_error4(kind) && packet.transport == L3 + Ipv4Hdr::LEN => {
            match packet4(frame, QUOTE) {
                Some(quoted) => of_quote(frame, &packet, &quoted),
                None => NO_FLOW,
            }
        }
        _ => NO_FLOW,
    }
}

#[inline(always)]
fn answered6<F: Frame + ?Sized>(frame: &F) -> Flow {
    const QUOTE: usize = L4_V6 + 8;
    let Some(packet) = packet6(frame, L3) else {
        return NO_FLOW;
    };
    if packet.protocol != protocol::ICMPV6 {
        return replied(frame, &packet);
    }
    match frame.read::<[u8; 8]>(packet.transport) {
        Some([kind::ECHO_REPLY, _, _, _, e, f, ..]) => flow(
            &packet.destination,
            &packet.source,
            protocol::ICMPV6,
            [e, f],
            [0; 2],
        ),
        Some([kind, ..]) if is_error6(kind) && packet.transport == L4_V6 => {
            match packet6(frame, QUOTE) {
                Some(quoted) => of_quote(frame, &packet, &quoted),
                None => NO_FLOW,
            }
        }
        _ => NO_FLOW,
    }
}

/// An error goes to who sent the packet that it quotes.
#[inline(always)]
fn of_quote<F: Frame + ?Sized>(frame: &F, error: &Packet, quoted: &Packet) -> Flow {
    if quoted.source == error.destination {
        begun(frame, quoted)
    } else {
        NO_FLOW
    }
}

/// TCP and UDP of a machine. A segment that begins a connection answers nothing.
#[inline(always)]
fn replied<F: Frame + ?Sized>(frame: &F, packet: &Packet) -> Flow {
    const SYN: u8 = 2;
    const ACK: u8 = 16;
    let Some([a, b, c, d]) = frame.read::<[u8; 4]>(packet.transport) else {
        return NO_FLOW;
    };
    match packet.protocol {
        protocol::TCP => match frame.read::<[u8; 2]>(packet.transport + 12) {
            Some([_, flags]) if flags & (SYN | ACK) != SYN => {}
            _ => return NO_FLOW,
        },
        protocol::UDP => {}
        _ => return NO_FLOW,
    }
    flow(
        &packet.destination,
        &packet.source,
        packet.protocol,
        [c, d],
        [a, b],
    )
}

/// Whether the protocol of a flow is one.
#[inline(always)]
pub const fn is(flow: &Flow, protocol: u8) -> bool {
    flow[4] >> 32 == protocol as u64
}

/// What becomes of an answer instead of [`Verdict::denied`].
#[inline(always)]
pub fn let_in<'a>(denied: &Verdict<'a>) -> Verdict<'a> {
    match denied.hop {
        Some(hop) if hop.flags & nexthop_flag::REFUSED == 0 => Verdict::to_host(denied.id, hop),
        _ => Verdict::pass(Reason::ForHost),
    }
}
