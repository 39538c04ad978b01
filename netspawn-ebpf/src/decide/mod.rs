//! What is to happen to a frame: one function for each hook.

pub mod arp;
pub mod budget;
pub mod error;
pub mod forward;
pub mod guard;
pub mod ndp;
pub mod neighbor;
pub mod offload;
pub mod past;
pub mod reply;

use self::{
    forward::Header as _,
    offload::{Judged, Open, Said},
};
use crate::abi::{Endpoint, HOST, NOBODY, Owner, Uplink, endpoint_flag};
use crate::tables::Tables;
use crate::verdict::{Action, Reason, Verdict};
use crate::wire::{
    EthHdr, Frame, Ip6, Ipv4Hdr, Ipv6Hdr, L3, L4_V6, ether_type, is_link_local6, is_unspecified6,
    ndp::kind, protocol,
};

/// What a hook knows of a frame besides its bytes.
#[derive(Clone, Copy, Debug, Default)]
pub struct Meta {
    /// Bytes of the whole frame, also those that are not in reach.
    pub length: u32,
    /// Payload bytes of one segment of a GSO super-packet, else 0.
    pub gso_size: u32,
    /// What comes of what the sender says beside the bytes (rows S1, S2).
    pub offload: Judged,
    /// 802.1Q id of a tag kept beside the frame, else 0.
    pub vlan: u16,
    /// Whether there is such a tag (priority tags have id 0).
    pub tagged: bool,
    /// The Ethernet type that the kernel goes by (`skb->protocol`), in network order.
    pub protocol: u16,
}

impl Meta {
    /// Of a frame of which its sender says this, and whose type the kernel has read.
    #[inline(always)]
    pub fn new<F: Frame + ?Sized>(frame: &F, said: &Said) -> Self {
        Meta {
            length: said.length,
            gso_size: said.gso_size,
            offload: offload::judge(frame, said),
            protocol: frame.read::<u16>(ETHER_TYPE).unwrap_or(0),
            ..Meta::default()
        }
    }
}

/// The least number that is a type and no length (IEEE 802.3 3.2.6).
const FIRST_ETHER_TYPE: u16 = 0x600;

/// Where the Ethernet type is.
const ETHER_TYPE: usize = core::mem::offset_of!(EthHdr, ether_type);

/// Frames that come in on an uplink (rows A, N, F).
#[inline(always)]
pub fn uplink<'a, F, T>(frame: &F, meta: &Meta, uplink: &Uplink, tables: &'a T) -> Verdict<'a>
where
    F: Frame + ?Sized,
    T: Tables,
{
    let Some(eth) = frame.read::<EthHdr>(0) else {
        return Verdict::pass(Reason::Malformed);
    };
    if meta.protocol != eth.ether_type {
        return Verdict::pass(Reason::OtherProtocol);
    }
    if meta.offload.bad {
        return unfitting(frame, &eth, tables);
    }
    match u16::from_be(eth.ether_type) {
        ether_type::ARP => arp::uplink(frame, &eth, meta, uplink, tables),
        ether_type::IPV4 if eth.dst_addr == uplink.mac => {
            forward::inbound::<Ipv4Hdr, F, T>(frame, meta, forward::Origin::Network, tables)
        }
        ether_type::IPV6 => match nd_type(frame) {
            kind::SOLICITATION => {
                let verdict = ndp::uplink(frame, &eth, meta, uplink, tables);
                stacks(frame, verdict, true, tables)
            }
            kind::ADVERTISEMENT => {
                let verdict = ndp::uplink_advertisement(frame, &eth, uplink, tables);
                stacks(frame, verdict, false, tables)
            }
            _ if eth.dst_addr == uplink.mac => {
                forward::inbound::<Ip6, F, T>(frame, meta, forward::Origin::Network, tables)
            }
            _ => Verdict::pass(Reason::NotForUs),
        },
        ether_type::IPV4 => Verdict::pass(Reason::NotForUs),
        _ => Verdict::pass(Reason::OtherProtocol),
    }
}

/// Neighbor discovery that is left to the stack. One with a machine's address as its
/// destination the stack may forward, to the port or by the uplink again, and IPv6 in
/// Linux takes hardly any source amiss: row F7 holds here as well. Solicitations from the
/// unspecified address (row N4) and link-local ones get no further (`ip6_forward`).
#[inline(always)]
fn stacks<'a, F, T>(frame: &F, verdict: Verdict<'a>, solicits: bool, tables: &T) -> Verdict<'a>
where
    F: Frame + ?Sized,
    T: Tables,
{
    let Some(ip) = Ip6::read(frame) else {
        return verdict;
    };
    let stays = solicits && (is_unspecified6(&ip.source) || is_link_local6(&ip.source));
    if !matches!(verdict.action, Action::Pass) || stays || !ip.is_martian(tables) {
        return verdict;
    }
    let owner = tables.owner6(&ip.destination);
    if is_machine(owner) {
        Verdict::drop(Reason::MartianSource, owner)
    } else {
        verdict
    }
}

/// Frames of which the sender says what does not fit them, from the network or the host: a
/// machine does not get them. Neighbors are not asked so by anybody honest. All else is the
/// stack's, which completes nothing of what it takes in.
#[inline(always)]
fn unfitting<'a, F, T>(frame: &F, eth: &EthHdr, tables: &T) -> Verdict<'a>
where
    F: Frame + ?Sized,
    T: Tables,
{
    let owner = match u16::from_be(eth.ether_type) {
        ether_type::ARP => return Verdict::drop(Reason::BadOffload, NOBODY),
        ether_type::IPV4 => match frame.read::<Ipv4Hdr>(L3) {
            Some(ip) => tables.owner4(&ip.dst_addr),
            None => NOBODY,
        },
        ether_type::IPV6 => match Ip6::read(frame) {
            Some(ip) => tables.owner6(&ip.destination),
            None => NOBODY,
        },
        _ => NOBODY,
    };
    if is_machine(owner) {
        Verdict::drop(Reason::BadOffload, owner)
    } else {
        Verdict::pass(Reason::NotOwned)
    }
}

/// What [`uplink`] says of nearly all frames that go to machines; `None` says nothing.
/// Of whole packets `open` is looked at, and nothing needs to have been judged.
///
/// Here every check that fails leads to one place, while [`uplink`] keeps account of what
/// to say of each, which costs a packet more than the checks themselves.
#[inline(always)]
pub fn express<'a, F, T>(
    frame: &F,
    meta: &Meta,
    open: &Open,
    uplink: &Uplink,
    tables: &'a T,
) -> Option<Verdict<'a>>
where
    F: Frame + ?Sized,
    T: Tables,
{
    let eth = frame.read::<EthHdr>(0)?;
    if eth.dst_addr != uplink.mac || meta.protocol != eth.ether_type {
        return None;
    }
    match u16::from_be(eth.ether_type) {
        ether_type::IPV4 => forward::express::<Ipv4Hdr, F, T>(frame, meta, open, tables),
        ether_type::IPV6 => forward::express::<Ip6, F, T>(frame, meta, open, tables),
        _ => None,
    }
}

/// Frames that the host sends out of an uplink.
#[inline(always)]
pub fn host<'a, F, T>(frame: &F, meta: &Meta, tables: &'a T) -> Verdict<'a>
where
    F: Frame + ?Sized,
    T: Tables,
{
    let Some(eth) = frame.read::<EthHdr>(0) else {
        return Verdict::pass(Reason::Malformed);
    };
    if meta.tagged {
        return Verdict::pass(Reason::VlanPass);
    }
    if meta.offload.bad {
        return unfitting(frame, &eth, tables);
    }
    match u16::from_be(eth.ether_type) {
        ether_type::ARP => arp::host(frame, &eth, tables),
        ether_type::IPV4 => {
            forward::inbound::<Ipv4Hdr, F, T>(frame, meta, forward::Origin::Host, tables)
        }
        ether_type::IPV6 => match nd_type(frame) {
            kind::SOLICITATION => ndp::host(frame, &eth, tables),
            _ => forward::inbound::<Ip6, F, T>(frame, meta, forward::Origin::Host, tables),
        },
        _ => Verdict::pass(Reason::OtherProtocol),
    }
}

/// Frames that a machine sends into its port (rows P, G).
#[inline(always)]
pub fn port<'a, F, T>(
    frame: &F,
    meta: &Meta,
    id: Owner,
    endpoint: &'a Endpoint,
    tables: &'a T,
) -> Verdict<'a>
where
    F: Frame + ?Sized,
    T: Tables,
{
    let Some(eth) = frame.read::<EthHdr>(0) else {
        return Verdict::drop(Reason::BadFrame, id);
    };
    let ether_type = u16::from_be(eth.ether_type);
    if meta.tagged
        || matches!(
            ether_type,
            ether_type::VLAN | ether_type::QINQ | ether_type::QINQ_OLD
        )
    {
        return Verdict::drop(Reason::Vlan, id);
    }
    // A length in its place is 802.3's, which the kernel knows by another type.
    let framed = ether_type < FIRST_ETHER_TYPE;
    if !framed && meta.protocol != eth.ether_type || meta.offload.bad {
        return Verdict::drop(Reason::BadOffload, id);
    }
    match ether_type {
        ether_type::ARP => arp::port(frame, &eth, id, endpoint, tables),
        ether_type::IPV4 => guard::port4(frame, &eth, meta, id, endpoint, tables),
        ether_type::IPV6 => guard::port6(frame, &eth, meta, id, endpoint, tables),
        _ => Verdict::drop(Reason::EtherType, id),
    }
}

/// What [`port`] says of nearly all packets for other machines and the network; `None`
/// says nothing. See [`express`].
#[inline(always)]
pub fn express_port<'a, F, T>(
    frame: &F,
    meta: &Meta,
    open: &Open,
    id: Owner,
    endpoint: &'a Endpoint,
    tables: &'a T,
) -> Option<Verdict<'a>>
where
    F: Frame + ?Sized,
    T: Tables,
{
    let eth = frame.read::<EthHdr>(0)?;
    if meta.tagged
        || meta.protocol != eth.ether_type
        || endpoint.flags & endpoint_flag::UP == 0
        || eth.dst_addr != endpoint.port_mac
        || !may_use_mac(endpoint, &eth.src_addr)
    {
        return None;
    }
    match u16::from_be(eth.ether_type) {
        ether_type::IPV4 => {
            guard::express::<Ipv4Hdr, F, T>(frame, meta, open, id, endpoint, tables)
        }
        ether_type::IPV6 => guard::express::<Ip6, F, T>(frame, meta, open, id, endpoint, tables),
        _ => None,
    }
}

/// The type of an ICMPv6 message that follows the IPv6 header at once; 0, which
/// is reserved (RFC 4443 2.1), for anything else.
#[inline(always)]
fn nd_type<F: Frame + ?Sized>(frame: &F) -> u8 {
    const NEXT_HEADER: usize = L3 + core::mem::offset_of!(Ipv6Hdr, next_hdr);
    match frame.read::<u8>(NEXT_HEADER) {
        Some(protocol::ICMPV6) => frame.read::<u8>(L4_V6).unwrap_or(0),
        _ => 0,
    }
}

/// Whether an address is answered for: the endpoint that has it, or else why it
/// is not.
struct Answerable<'a> {
    endpoint: Option<&'a Endpoint>,
    reason: Reason,
}

#[inline(always)]
fn answerable<'a, T: Tables>(owner: Owner, meta: &Meta, tables: &'a T) -> Answerable<'a> {
    let not = |reason| Answerable {
        endpoint: None,
        reason,
    };
    match owner {
        NOBODY => not(Reason::NotOwned),
        HOST => not(Reason::ForHost),
        id => match tables.endpoint(id) {
            Some(endpoint) if endpoint.flags & endpoint_flag::UP == 0 => not(Reason::NotOwned),
            Some(endpoint) if endpoint.vlan != meta.vlan => not(Reason::VlanPass),
            endpoint => Answerable {
                endpoint,
                reason: Reason::NotOwned,
            },
        },
    }
}

/// Whether an owner is a machine.
#[inline(always)]
fn is_machine(owner: Owner) -> bool {
    owner < NOBODY
}

/// Whether the machine may use this link-layer source address.
#[inline(always)]
fn may_use_mac(endpoint: &Endpoint, mac: &[u8; 6]) -> bool {
    endpoint.flags & endpoint_flag::ANY_MAC != 0 || endpoint.mac == *mac
}
