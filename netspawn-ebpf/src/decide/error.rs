//! ICMP errors about packets that are dropped (RFC 1812 4.3, RFC 4443 2.4): about
//! which, to whom, from where, and how much is quoted.

use crate::abi::{GATEWAY4, GATEWAY6};
use crate::tables::Tables;
use crate::verdict::Family;
use crate::wire::{
    EthHdr, Frame, Ip6, Ipv4, Ipv4Hdr, L3, L4_V6, Words6, is_multicast_mac, protocol, words6,
};

/// Which way an error goes.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Toward {
    /// Back to the network, out of the uplink.
    Network,
    /// Up to the host's own stack.
    Host,
    /// Back to the machine.
    Machine,
}

/// Bytes of a packet that an error quotes: all of it, but no more than makes a message
/// of 576 bytes (RFC 1812 4.3.2.3) or of the smallest MTU (RFC 4443 2.4 (c)). `length`
/// is the packet's own word, 0 for one beyond 64 kB (BIG TCP); `there` is what the frame
/// has.
#[inline(always)]
pub const fn quote_length(family: Family, length: u32, there: u32) -> u32 {
    let longest = match family {
        Family::V4 => 576 - 28,
        Family::V6 => 1280 - 48,
    };
    let all = if length != 0 && length < there {
        length
    } else {
        there
    };
    if all < longest { all } else { longest }
}

/// Whether an error may be sent about a packet from one station to another, as
/// decisions have found it to be: not about errors, nor about IPv4 fragments other than
/// the first, nor about what a link-layer group gets (RFC 1812 4.3.2.7, RFC 4443 2.4 (e);
/// `is_ineligible` in net/ipv6/icmp.c).
#[inline(always)]
pub fn is_due<F: Frame + ?Sized>(frame: &F, family: Family) -> bool {
    let Some(eth) = frame.read::<EthHdr>(0) else {
        return false;
    };
    if is_multicast_mac(&eth.src_addr) || is_multicast_mac(&eth.dst_addr) {
        return false;
    }
    match family {
        Family::V4 => is_due4(frame),
        Family::V6 => is_due6(frame),
    }
}

#[inline(always)]
fn is_due4<F: Frame + ?Sized>(frame: &F) -> bool {
    let Some(ip) = frame.read::<Ipv4Hdr>(L3) else {
        return false;
    };
    if u16::from_be_bytes(ip.frags) & 0x1fff != 0 {
        return false;
    }
    if ip.proto != protocol::ICMP {
        return true;
    }
    let header = usize::from(ip.vihl & 15) * 4;
    if usize::from(u16::from_be_bytes(ip.tot_len)) <= header {
        return false;
    }
    // With the byte behind it, because the verifier loses track of single ones.
    match frame.read::<[u8; 2]>(L3 + header) {
        // Unreachable, source quench, redirect, time exceeded, parameter problem.
        Some([kind, _]) => !matches!(kind, 3 | 4 | 5 | 11 | 12),
        None => false,
    }
}

/// Extension headers that are walked in search of an ICMPv6 message.
const MAX_EXTENSIONS: usize = 4;

#[inline(always)]
fn is_due6<F: Frame + ?Sized>(frame: &F) -> bool {
    const HOP_BY_HOP: u8 = 0;
    const ROUTING: u8 = 43;
    const FRAGMENT: u8 = 44;
    const AUTHENTICATION: u8 = 51;
    const DESTINATION: u8 = 60;
    const REDIRECT: u8 = 137;
    let Some(ip) = Ip6::read(frame) else {
        return false;
    };
    let end = L4_V6 + usize::from(ip.payload);
    let (mut next, mut offset) = (ip.next_header, L4_V6);
    for _ in 0..MAX_EXTENSIONS {
        match next {
            HOP_BY_HOP | ROUTING | DESTINATION | FRAGMENT | AUTHENTICATION => {}
            protocol::ICMPV6 => {
                return match frame.read::<[u8; 2]>(offset) {
                    Some(_) if offset >= end => false,
                    Some([kind, _]) => kind >= 128 && kind != REDIRECT,
                    None => false,
                };
            }
            _ => return true,
        }
        // Cut short, it is no error that anybody could read.
        if offset + 2 > end {
            return true;
        }
        let Some([following, length]) = frame.read::<[u8; 2]>(offset) else {
            return false;
        };
        if next == FRAGMENT {
            // What a later one is a part of cannot be seen.
            match frame.read::<[u8; 2]>(offset + 2) {
                _ if offset + 4 > end => return true,
                Some(place) if u16::from_be_bytes(place) >> 3 != 0 => return true,
                Some(_) => {}
                None => return false,
            }
        }
        offset += match next {
            FRAGMENT => 8,
            // RFC 4302 2.2.
            AUTHENTICATION => 8 + usize::from(length) * 4,
            _ => 8 + usize::from(length) * 8,
        };
        next = following;
    }
    false
}

/// Where an error about the IPv4 packet of `frame` comes from: the address of the
/// uplink that it came in on, or by which its sender is reached; all zero when the
/// host has none. The host is told in the name of the machine, because it would not
/// believe one of its own addresses.
#[inline(always)]
pub fn source4<F, T>(frame: &F, toward: Toward, ifindex: u32, tables: &T) -> Ipv4
where
    F: Frame + ?Sized,
    T: Tables,
{
    let Some(ip) = frame.read::<Ipv4Hdr>(L3) else {
        return [0; 4];
    };
    let uplink = match toward {
        Toward::Host => return ip.dst_addr,
        Toward::Network => tables.uplink(ifindex),
        Toward::Machine => match tables.route4(&ip.src_addr) {
            Some(hop) => tables.uplink(hop.ifindex),
            None => None,
        },
    };
    let address = match uplink {
        Some(uplink) => uplink.address4,
        None => [0; 4],
    };
    if matches!(toward, Toward::Machine) && address == [0; 4] {
        GATEWAY4
    } else {
        address
    }
}

/// As [`source4`].
#[inline(always)]
pub fn source6<F, T>(frame: &F, toward: Toward, ifindex: u32, tables: &T) -> Words6
where
    F: Frame + ?Sized,
    T: Tables,
{
    let Some(ip) = Ip6::read(frame) else {
        return [0; 2];
    };
    let uplink = match toward {
        Toward::Host => return ip.destination,
        Toward::Network => tables.uplink(ifindex),
        Toward::Machine => match tables.route6(&ip.source) {
            Some(hop) => tables.uplink(hop.ifindex),
            None => None,
        },
    };
    let address = match uplink {
        Some(uplink) => words6(&uplink.address6),
        None => [0; 2],
    };
    if matches!(toward, Toward::Machine) && address == [0; 2] {
        words6(&GATEWAY6)
    } else {
        address
    }
}
