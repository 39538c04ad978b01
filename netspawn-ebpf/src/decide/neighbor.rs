//! Neighbors that the kernel keeps an entry for on behalf of a machine.
//!
//! Its tables have little room, which all network namespaces share, and whoever has it
//! look for unused addresses takes that room from everybody. So packets cost their machine
//! a token of its [`super::budget`] where they may make an entry: those for a destination
//! on the link, and those for the host, which answers. Stations that were heard on the
//! link cost nothing, and neither does, for a while, what has cost one already: a machine
//! pays for addresses, not for packets.

use super::{arp, nd_type};
use crate::abi::{self, MACHINE, NO_NEIGHBOR, Neighbor, Owner, nexthop_flag};
use crate::tables::Tables;
use crate::verdict::{Action, Reason, Verdict};
use crate::wire::{
    Frame, Ip6, Ipv4, Ipv4Hdr, L3, Words6, ether_type, is_link_local6, is_unspecified6,
    ndp::{HOP_LIMIT, TARGET, kind},
};

/// How long after its last packet a neighbor may be used without costing another token,
/// in nanoseconds: twice the time for which the kernel does not throw its entry out.
pub const WINDOW: u64 = 10_000_000_000;

/// An IPv4 address as an IPv6 one (RFC 4291 2.5.5.2).
#[inline(always)]
pub const fn mapped([a, b, c, d]: Ipv4) -> Words6 {
    [0, u64::from_ne_bytes([0, 0, 0xff, 0xff, a, b, c, d])]
}

/// The station that says in a frame from the network that it is there, by ARP or by
/// neighbor discovery from its own link: the other is nobody's address.
///
/// `verdict` is what has become of the frame, which was examined only where it was
/// answered.
#[inline(always)]
pub fn heard<F: Frame + ?Sized>(frame: &F, verdict: &Verdict<'_>) -> Words6 {
    const ETHER_TYPE: usize = 12;
    const NOBODY: Words6 = [0; 2];
    let concerns_us = matches!(
        verdict.reason,
        Reason::AnsweredArp | Reason::AnsweredNdp | Reason::ForHost
    );
    if !concerns_us {
        return NOBODY;
    }
    match frame.read::<u16>(ETHER_TYPE).map(u16::from_be) {
        Some(ether_type::ARP) => match arp::sender(frame) {
            Some(address) if address != [0; 4] => mapped(address),
            _ => NOBODY,
        },
        Some(ether_type::IPV6) => {
            let nd = nd_type(frame);
            if !matches!(nd, kind::SOLICITATION | kind::ADVERTISEMENT) {
                return NOBODY;
            }
            let Some(ip) = Ip6::read(frame) else {
                return NOBODY;
            };
            // From another link they are forged.
            if ip.hop_limit != HOP_LIMIT {
                return NOBODY;
            }
            let address = match nd {
                kind::SOLICITATION => ip.source,
                _ => match frame.read::<Words6>(TARGET) {
                    Some(target) => target,
                    None => NOBODY,
                },
            };
            if is_link_local6(&address) {
                NOBODY
            } else {
                address
            }
        }
        _ => NOBODY,
    }
}

/// On which link a machine's packet needs a neighbor, and which one, in one word: functions
/// of programs take few arguments. The upper half is the link's ifindex; the lower half
/// the 802.1Q id of its frames, or [`MACHINE`] where the neighbor is the sender.
pub type Link = u64;

/// None.
pub const NO_LINK: Link = 0;

/// The link on which the kernel has to have an entry, or make one, when a machine's packet
/// goes where `verdict` says: of the destination, on the link of its route, or of the
/// source where the host gets the packet, on the link by which it answers.
///
/// `ifindex` is that of the machine's port.
#[inline(always)]
pub fn link(verdict: &Verdict<'_>, ifindex: u32) -> Link {
    let link = |ifindex: u32, vlan: u32| u64::from(ifindex) << 32 | u64::from(vlan);
    match (verdict.action, verdict.hop) {
        (Action::Out, Some(hop)) if hop.flags & nexthop_flag::ON_LINK != 0 => {
            link(hop.uplink, hop.flags >> nexthop_flag::VLAN_SHIFT)
        }
        (Action::ToHost, Some(hop)) if hop.flags & nexthop_flag::ON_LINK != 0 => {
            link(hop.uplink, MACHINE)
        }
        (Action::Pass, _) => link(ifindex, MACHINE),
        _ => NO_LINK,
    }
}

/// The neighbor on a link that a machine's packet needs. Single addresses of machines do
/// not count, there are no more of them than were declared.
#[inline(always)]
pub fn sought<F, T>(frame: &F, link: Link, id: Owner, tables: &T) -> Neighbor
where
    F: Frame + ?Sized,
    T: Tables,
{
    const ETHER_TYPE: usize = 12;
    let (ifindex, vlan) = ((link >> 32) as u32, link as u32);
    let sends = vlan == MACHINE;
    match frame.read::<u16>(ETHER_TYPE).map(u16::from_be) {
        Some(ether_type::IPV4) => match frame.read::<Ipv4Hdr>(L3) {
            Some(ip) if !sends => abi::neighbor(&mapped(ip.dst_addr), ifindex, vlan),
            Some(ip) if ip.src_addr != [0; 4] && !tables.is_single4(id, &ip.src_addr) => {
                abi::neighbor(&mapped(ip.src_addr), ifindex, vlan)
            }
            _ => NO_NEIGHBOR,
        },
        // The kernel makes no entry for who advertises itself unasked.
        Some(ether_type::IPV6) if !sends || nd_type(frame) != kind::ADVERTISEMENT => {
            match Ip6::read(frame) {
                Some(ip) if !sends => abi::neighbor(&ip.destination, ifindex, vlan),
                Some(ip) if !is_unspecified6(&ip.source) && !tables.is_single6(id, &ip.source) => {
                    abi::neighbor(&ip.source, ifindex, vlan)
                }
                _ => NO_NEIGHBOR,
            }
        }
        _ => NO_NEIGHBOR,
    }
}
