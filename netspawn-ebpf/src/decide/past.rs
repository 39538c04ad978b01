//! Frames that leave by an uplink, and where they have come from: row U2.
//!
//! What the host's stack forwards for a port without a guard, and what devices on top of
//! an uplink send from other namespaces, comes by here as the host's own packets do. None
//! of it may have a machine's address as its source.

use super::{is_machine, offload::Open};
use crate::abi::{CLOSED, NOBODY, Owner, Uplink, WAY, settings_flag};
use crate::tables::Tables;
use crate::verdict::Reason;
use crate::wire::{
    ArpHdr, EthHdr, Frame, Ipv4, Ipv4Hdr, Ipv6Hdr, L3, Mac, Words6, ether_type, ndp::kind, protocol,
};

/// Tags in the frame that are looked behind.
const TAGS: usize = 2;
/// Bytes of a tag in the frame.
const TAG: usize = 4;

/// Whose stack has routed a packet: the namespace of the device that its route
/// (`skb_dst`) leaves by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Routed {
    /// It has no route: a packet socket has sent it, or it comes from another namespace.
    Nowhere,
    /// The namespace of the uplink.
    Here,
    /// Another namespace.
    Elsewhere,
}

/// What the kernel knows of a frame's past. None of it can be set by who sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Past {
    /// Whose stack has routed it.
    pub routed: Routed,
    /// A socket of the uplink's namespace has sent it.
    pub socket: bool,
    /// Some device has received it since (`skb->mac_len` is set). Frames keep the socket
    /// of their sender across namespaces, so that a machine could send back what it got
    /// from the host with another source.
    pub received: bool,
}

impl Past {
    /// Of what the host itself sends.
    pub const OWN: Past = Past {
        routed: Routed::Here,
        socket: true,
        received: false,
    };
}

/// Why a frame that leaves by an uplink is to be dropped, if it is. `ingress` is the
/// interface that it has come in by (`skb->skb_iif`), 0 for none: one of a namespace that
/// only `past` tells, which costs more than all else.
#[inline(always)]
pub fn leaving<F, T>(
    frame: &F,
    ifindex: u32,
    ingress: u32,
    past: impl Fn() -> Past,
    tables: &T,
) -> Option<Reason>
where
    F: Frame + ?Sized,
    T: Tables,
{
    if ingress != 0
        && tables.settings().flags & settings_flag::CLOSED != 0
        && tables.port(ingress) == CLOSED
        && past().routed == Routed::Here
    {
        return Some(Reason::UnknownPort);
    }
    let eth = frame.read::<EthHdr>(0)?;
    let (ether_type, l3) = behind_tags(frame, &eth);
    let owner = claimed(frame, ether_type, l3, tables);
    if !is_machine(owner) {
        return None;
    }
    let uplink = tables.uplink(ifindex);
    let own = match ether_type {
        // The kernel's own ARP has neither socket nor route. That the uplink has the address
        // is true, whoever says so.
        ether_type::ARP => is_of(uplink, &eth.src_addr) && is_of(uplink, &sender(frame, l3)),
        _ if ingress == 0 => is_of(uplink, &eth.src_addr) && is_from_socket(&past()),
        _ => is_way(ingress, owner, tables) && past().routed == Routed::Here,
    };
    (!own).then_some(Reason::MartianSource)
}

/// Whether a sum is to be completed in that part of a frame by which it is known for whom it
/// speaks: behind all that is looked at here, the kernel or a card would write there.
#[inline(always)]
pub fn forges<F: Frame + ?Sized>(frame: &F, open: &Open) -> bool {
    const CHECKSUM: u32 = 2;
    if !open.somewhere {
        return false;
    }
    let Some(eth) = frame.read::<EthHdr>(0) else {
        return true;
    };
    let (ether_type, l3) = behind_tags(frame, &eth);
    let headers = match ether_type {
        ether_type::ARP => l3 + ArpHdr::LEN,
        ether_type::IPV4 => l3 + Ipv4Hdr::LEN,
        ether_type::IPV6 => {
            const NEXT_HEADER: usize = core::mem::offset_of!(Ipv6Hdr, next_hdr);
            let transport = (l3 + Ipv6Hdr::LEN) as u32;
            if frame.read::<u8>(l3 + NEXT_HEADER) == Some(protocol::ICMPV6) {
                return open.start != transport || open.field != transport + CHECKSUM;
            }
            l3 + Ipv6Hdr::LEN
        }
        _ => return false,
    };
    open.start < headers as u32 || open.field < open.start
}

/// The Ethernet type behind tags, and where what it says begins.
#[inline(always)]
fn behind_tags<F: Frame + ?Sized>(frame: &F, eth: &EthHdr) -> (u16, usize) {
    let mut ether_type = u16::from_be(eth.ether_type);
    let mut l3 = L3;
    for _ in 0..TAGS {
        if !matches!(
            ether_type,
            ether_type::VLAN | ether_type::QINQ | ether_type::QINQ_OLD
        ) {
            break;
        }
        ether_type = match frame.read::<[u8; 2]>(l3 + 2) {
            Some(bytes) => u16::from_be_bytes(bytes),
            None => 0,
        };
        l3 += TAG;
    }
    (ether_type, l3)
}

/// The machine that a frame speaks for: as the source of a packet, or as where others are
/// to find it. Anything else but a machine is of no concern.
#[inline(always)]
fn claimed<F, T>(frame: &F, ether_type: u16, l3: usize, tables: &T) -> Owner
where
    F: Frame + ?Sized,
    T: Tables,
{
    const SENDER4: usize = core::mem::offset_of!(ArpHdr, spa);
    const SOURCE4: usize = core::mem::offset_of!(Ipv4Hdr, src_addr);
    const NEXT_HEADER: usize = core::mem::offset_of!(Ipv6Hdr, next_hdr);
    const SOURCE6: usize = core::mem::offset_of!(Ipv6Hdr, src_addr);
    const TARGET: usize = Ipv6Hdr::LEN + 8;
    match ether_type {
        ether_type::ARP => owner4(frame, l3 + SENDER4, tables),
        ether_type::IPV4 => owner4(frame, l3 + SOURCE4, tables),
        ether_type::IPV6 => {
            let owner = owner6(frame, l3 + SOURCE6, tables);
            let advertises = frame.read::<u8>(l3 + NEXT_HEADER) == Some(protocol::ICMPV6)
                && frame.read::<u8>(l3 + Ipv6Hdr::LEN) == Some(kind::ADVERTISEMENT);
            if !is_machine(owner) && advertises {
                owner6(frame, l3 + TARGET, tables)
            } else {
                owner
            }
        }
        _ => NOBODY,
    }
}

#[inline(always)]
fn owner4<F: Frame + ?Sized, T: Tables>(frame: &F, offset: usize, tables: &T) -> Owner {
    match frame.read::<Ipv4>(offset) {
        Some(address) if tables.is_near4(&address) => tables.owner4(&address),
        _ => NOBODY,
    }
}

#[inline(always)]
fn owner6<F: Frame + ?Sized, T: Tables>(frame: &F, offset: usize, tables: &T) -> Owner {
    match frame.read::<Words6>(offset) {
        Some(address) if tables.is_near6(&address) => tables.owner6(&address),
        _ => NOBODY,
    }
}

/// The link-layer address that an ARP message says is the sender's.
#[inline(always)]
fn sender<F: Frame + ?Sized>(frame: &F, l3: usize) -> Mac {
    const SHA: usize = core::mem::offset_of!(ArpHdr, sha);
    frame.read::<Mac>(l3 + SHA).unwrap_or([0; 6])
}

#[inline(always)]
fn is_of(uplink: Option<&Uplink>, mac: &Mac) -> bool {
    match uplink {
        Some(uplink) => uplink.mac == *mac,
        None => false,
    }
}

/// Whether a socket of this host has sent it, and no device has received it since.
#[inline(always)]
fn is_from_socket(past: &Past) -> bool {
    past.socket && !past.received && past.routed != Routed::Elsewhere
}

/// Whether packets with a source of that machine come in by this interface: by uplinks,
/// whose programs have looked at them, and by the machine's own port, whose guard has.
#[inline(always)]
fn is_way<T: Tables>(ingress: u32, owner: Owner, tables: &T) -> bool {
    if tables.uplink(ingress).is_some() {
        return true;
    }
    let port = tables.port(ingress);
    port == WAY || port == owner
}
