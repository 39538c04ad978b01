//! IP packets for machines: rows F1 to F11, G3, G4, and the host's own.

use super::{
    Meta, is_machine,
    offload::{self, Open},
};
use crate::abi::{GATEWAY4, HOST, NOBODY, NextHop, Owner, endpoint_flag, settings_flag};
use crate::tables::Tables;
use crate::verdict::{Error, Family, Reason, Verdict};
use crate::wire::{
    Frame, Ip6, Ipv4, Ipv4Hdr, Ipv6Hdr, L3, MIN_FRAME, Words6, checksum, extension, is_link_local6,
    is_loopback6, is_mapped6, is_multicast_or_broadcast4, is_multicast6, is_unspecified6, protocol,
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

/// What decisions need of an IP header, whatever its version.
pub(super) trait Header: Sized {
    /// Which one it is.
    const FAMILY: Family;

    /// The header at byte 14, not checked.
    fn read<F: Frame + ?Sized>(frame: &F) -> Option<Self>;
    /// The header at byte 14, when it is sound.
    fn sound<F: Frame + ?Sized>(frame: &F, meta: &Meta) -> Option<Self>;
    /// Who has the destination.
    fn destination_owner<T: Tables>(&self, tables: &T) -> Owner;
    /// Whether the source is one that no packet from the network can have (F7).
    fn is_martian<T: Tables>(&self, tables: &T) -> bool;
    /// Who has the source.
    fn source_owner<T: Tables>(&self, tables: &T) -> Owner;
    /// Who has the destination, which is hardly ever anybody here.
    fn far_destination_owner<T: Tables>(&self, tables: &T) -> Owner;
    /// Whether the destination is one that packets of machines may leave the host for.
    fn goes_far(&self) -> bool;
    /// The host's route to the destination.
    fn route<'a, T: Tables>(&self, tables: &'a T) -> Option<&'a NextHop>;
    /// Bytes of the packet by its own word.
    fn length(&self) -> u32;
    /// Whether the field for that is 0, as it is in a super-packet beyond 64 kB.
    fn has_no_length(&self) -> bool;
    /// Whether it is a fragment, as far as the fixed header says.
    fn is_fragment(&self) -> bool;
    /// Bytes up to the transport header, where none is behind extensions.
    fn header_length(&self) -> usize;
    /// Protocol or first next header.
    fn protocol(&self) -> u8;
    /// TTL or hop limit.
    fn hops(&self) -> u8;
    /// Whether the sender forbids fragments on the way (RFC 791, RFC 8200 5).
    fn is_whole(&self) -> bool;

    /// Dropped for being larger than `mtu`. A sender that allows fragments is
    /// told nothing, as the error is about their being forbidden (RFC 792).
    #[inline(always)]
    fn too_big<'a>(&self, id: Owner, mtu: u32) -> Verdict<'a> {
        let error = if self.is_whole() {
            Error::TooBig
        } else {
            Error::None
        };
        Verdict::refuse(Reason::TooBig, id, Self::FAMILY, error, mtu)
    }

    /// Dropped for want of hops.
    #[inline(always)]
    fn expired<'a>(id: Owner) -> Verdict<'a> {
        Verdict::refuse(
            Reason::TtlExceeded,
            id,
            Self::FAMILY,
            Error::TimeExceeded,
            0,
        )
    }

    /// Whether the packet, or each segment of a super-packet, fits an MTU (as
    /// `skb_gso_validate_network_len` has it).
    #[inline(always)]
    fn fits(&self, meta: &Meta, mtu: u32) -> bool {
        if meta.gso_size == 0 {
            self.length() <= mtu
        } else {
            meta.offload.segment <= mtu
        }
    }

    /// Where the packet ends, as an offset into the frame.
    #[inline(always)]
    fn end(&self, meta: &Meta) -> u32 {
        let none = self.has_no_length();
        offload::end(meta.length, meta.gso_size, self.length(), none)
    }

    /// Whether a frame is as long as its packet: a super-packet exactly, any other at
    /// least (S3).
    #[inline(always)]
    fn is_within(&self, meta: &Meta) -> bool {
        let end = self.end(meta);
        end == meta.length || meta.gso_size == 0 && end < meta.length
    }

    /// The bytes that have to fit an MTU, where nothing follows the packet and what is said
    /// beside it fits (S1 to S3), as it does for nearly all packets; `None` says nothing.
    /// Of what is open in a packet that is whole only `open` is looked at, so that nobody
    /// else needs to have judged it.
    #[inline(always)]
    fn plain(&self, meta: &Meta, open: &Open) -> Option<u32> {
        let end = self.end(meta);
        if end != meta.length && meta.length > MIN_FRAME as u32 {
            return None;
        }
        if meta.gso_size != 0 {
            return (!meta.offload.bad).then_some(meta.offload.segment);
        }
        if open.somewhere {
            let field = match self.protocol() {
                protocol::TCP => offload::TCP_FIELD,
                protocol::UDP => offload::UDP_FIELD,
                _ => return None,
            };
            let transport = (L3 + self.header_length()) as u32;
            if open.start != transport
                || open.field != transport + field
                || open.field + 2 > end
                || self.is_fragment()
            {
                return None;
            }
        }
        Some(self.length())
    }
}

impl Header for Ipv4Hdr {
    const FAMILY: Family = Family::V4;

    #[inline(always)]
    fn read<F: Frame + ?Sized>(frame: &F) -> Option<Self> {
        frame.read(L3)
    }

    /// RFC 1812 5.2.2: version, lengths within the frame, checksum.
    #[inline(always)]
    fn sound<F: Frame + ?Sized>(frame: &F, meta: &Meta) -> Option<Self> {
        let ip = Self::read(frame)?;
        let words = usize::from(ip.vihl & 15);
        if ip.vihl >> 4 != 4 || words < 5 {
            return None;
        }
        if ip.end(meta) < L3 as u32 + words as u32 * 4 || !ip.is_within(meta) {
            return None;
        }
        checksum::ipv4_header_is_right(frame, words).then_some(ip)
    }

    #[inline(always)]
    fn destination_owner<T: Tables>(&self, tables: &T) -> Owner {
        tables.owner4(&self.dst_addr)
    }

    #[inline(always)]
    fn source_owner<T: Tables>(&self, tables: &T) -> Owner {
        tables.owner4(&self.src_addr)
    }

    #[inline(always)]
    fn far_destination_owner<T: Tables>(&self, tables: &T) -> Owner {
        if tables.is_near4(&self.dst_addr) {
            tables.owner4(&self.dst_addr)
        } else {
            NOBODY
        }
    }

    /// RFC 1812 5.3.7; RFC 3927 2.7.
    #[inline(always)]
    fn goes_far(&self) -> bool {
        let [a, b, ..] = self.dst_addr;
        a != 0 && a != 127 && a < 224 && (a, b) != (169, 254)
    }

    #[inline(always)]
    fn route<'a, T: Tables>(&self, tables: &'a T) -> Option<&'a NextHop> {
        tables.route4(&self.dst_addr)
    }

    /// RFC 1812 5.3.7. The machines' gateway is no station of any network, unlike others of
    /// its kind (RFC 3927), whom routers answer from.
    #[inline(always)]
    fn is_martian<T: Tables>(&self, tables: &T) -> bool {
        let source: Ipv4 = self.src_addr;
        source[0] == 0
            || source[0] == 127
            || is_multicast_or_broadcast4(&source)
            || source == GATEWAY4
            || source == self.dst_addr
            || tables.is_near4(&source) && tables.owner4(&source) != NOBODY
    }

    #[inline(always)]
    fn length(&self) -> u32 {
        u32::from(u16::from_be_bytes(self.tot_len))
    }

    #[inline(always)]
    fn has_no_length(&self) -> bool {
        self.tot_len == [0; 2]
    }

    #[inline(always)]
    fn is_fragment(&self) -> bool {
        // More to come, or an offset.
        u16::from_be_bytes(self.frags) & 0x3fff != 0
    }

    #[inline(always)]
    fn header_length(&self) -> usize {
        usize::from(self.vihl & 15) * 4
    }

    #[inline(always)]
    fn protocol(&self) -> u8 {
        self.proto
    }

    #[inline(always)]
    fn hops(&self) -> u8 {
        self.ttl
    }

    #[inline(always)]
    fn is_whole(&self) -> bool {
        const DONT_FRAGMENT: u8 = 0x40;
        self.frags[0] & DONT_FRAGMENT != 0
    }
}

impl Header for Ip6 {
    const FAMILY: Family = Family::V6;

    #[inline(always)]
    fn read<F: Frame + ?Sized>(frame: &F) -> Option<Self> {
        Ip6::read(frame)
    }

    /// RFC 8200 3: version, length within the frame.
    #[inline(always)]
    fn sound<F: Frame + ?Sized>(frame: &F, meta: &Meta) -> Option<Self> {
        let ip = Ip6::read(frame)?;
        let sound = ip.version >> 4 == 6 && ip.is_within(meta);
        sound.then_some(ip)
    }

    #[inline(always)]
    fn destination_owner<T: Tables>(&self, tables: &T) -> Owner {
        tables.owner6(&self.destination)
    }

    #[inline(always)]
    fn source_owner<T: Tables>(&self, tables: &T) -> Owner {
        tables.owner6(&self.source)
    }

    #[inline(always)]
    fn far_destination_owner<T: Tables>(&self, tables: &T) -> Owner {
        if tables.is_near6(&self.destination) {
            tables.owner6(&self.destination)
        } else {
            NOBODY
        }
    }

    /// RFC 4291 2.5.2, 2.5.3, 2.5.6, 2.7.
    #[inline(always)]
    fn goes_far(&self) -> bool {
        let to: Words6 = self.destination;
        !(is_unspecified6(&to) || is_loopback6(&to) || is_multicast6(&to) || is_link_local6(&to))
    }

    #[inline(always)]
    fn route<'a, T: Tables>(&self, tables: &'a T) -> Option<&'a NextHop> {
        tables.route6(&self.destination)
    }

    /// RFC 4291 2.5.2, 2.5.3, 2.7; link-local sources stay on their link
    /// (2.5.6).
    #[inline(always)]
    fn is_martian<T: Tables>(&self, tables: &T) -> bool {
        let source: Words6 = self.source;
        is_unspecified6(&source)
            || is_loopback6(&source)
            || is_multicast6(&source)
            || is_link_local6(&source)
            || is_mapped6(&source)
            || source == self.destination
            || tables.is_near6(&source) && tables.owner6(&source) != NOBODY
    }

    #[inline(always)]
    fn length(&self) -> u32 {
        u32::from(self.payload) + Ipv6Hdr::LEN as u32
    }

    #[inline(always)]
    fn has_no_length(&self) -> bool {
        self.payload == 0
    }

    #[inline(always)]
    fn is_fragment(&self) -> bool {
        self.next_header == extension::FRAGMENT
    }

    #[inline(always)]
    fn header_length(&self) -> usize {
        Ipv6Hdr::LEN
    }

    #[inline(always)]
    fn protocol(&self) -> u8 {
        self.next_header
    }

    #[inline(always)]
    fn hops(&self) -> u8 {
        self.hop_limit
    }

    #[inline(always)]
    fn is_whole(&self) -> bool {
        true
    }
}

/// A packet from the network or the host.
#[inline(always)]
pub(super) fn inbound<'a, H, F, T>(
    frame: &F,
    meta: &Meta,
    origin: Origin,
    tables: &'a T,
) -> Verdict<'a>
where
    H: Header,
    F: Frame + ?Sized,
    T: Tables,
{
    let Some(ip) = H::read(frame) else {
        return Verdict::pass(Reason::Malformed);
    };
    match ip.destination_owner(tables) {
        NOBODY => Verdict::pass(Reason::NotOwned),
        HOST => Verdict::pass(Reason::ForHost),
        id => to_machine::<H, F, T>(frame, meta, id, origin, tables),
    }
}

/// A packet from the network to which nothing of [`to_machine`] applies but delivery.
#[inline(always)]
pub(super) fn express<'a, H, F, T>(
    frame: &F,
    meta: &Meta,
    open: &Open,
    tables: &'a T,
) -> Option<Verdict<'a>>
where
    H: Header,
    F: Frame + ?Sized,
    T: Tables,
{
    let ip = H::sound(frame, meta)?;
    // Neighbor discovery is not forwarded.
    if ip.protocol() == protocol::ICMPV6 {
        return None;
    }
    let needs = ip.plain(meta, open)?;
    let id = ip.destination_owner(tables);
    if !is_machine(id) {
        return None;
    }
    let endpoint = tables.endpoint(id)?;
    if endpoint.vlan != meta.vlan
        || endpoint.flags & endpoint_flag::UP == 0
        || ip.is_martian(tables)
        || ip.hops() <= 1
        || needs > endpoint.mtu
    {
        return None;
    }
    let protocol = ip.protocol();
    Some(Verdict::deliver(
        id,
        endpoint,
        NOBODY,
        true,
        H::FAMILY,
        protocol,
    ))
}

/// A packet for a machine.
#[inline(always)]
pub(super) fn to_machine<'a, H, F, T>(
    frame: &F,
    meta: &Meta,
    id: Owner,
    origin: Origin,
    tables: &'a T,
) -> Verdict<'a>
where
    H: Header,
    F: Frame + ?Sized,
    T: Tables,
{
    let drop = |reason| Verdict::drop(reason, id);
    let from_network = matches!(origin, Origin::Network);
    let Some(endpoint) = tables.endpoint(id) else {
        return Verdict::pass(Reason::NotOwned);
    };
    if from_network && endpoint.vlan != meta.vlan {
        return Verdict::pass(Reason::VlanPass);
    }
    let Some(ip) = H::sound(frame, meta) else {
        return drop(Reason::BadHeader);
    };
    if from_network && ip.is_martian(tables) {
        return drop(Reason::MartianSource);
    }
    if let Origin::Machine { id: sender, tenant } = origin
        && tenant != endpoint.tenant
        && tables.settings().flags & settings_flag::ISOLATION_ROUTE == 0
    {
        return Verdict::drop(Reason::TenantIsolation, sender);
    }
    if endpoint.flags & endpoint_flag::UP == 0 {
        return Verdict::refuse(
            Reason::EndpointDown,
            id,
            H::FAMILY,
            Error::HostUnreachable,
            0,
        );
    }
    let takes_hop = !matches!(origin, Origin::Host);
    if takes_hop && ip.hops() <= 1 {
        return H::expired(id);
    }
    if !ip.fits(meta, endpoint.mtu) {
        return ip.too_big(id, endpoint.mtu);
    }
    let from = match origin {
        Origin::Machine { id, .. } => id,
        _ => NOBODY,
    };
    Verdict::deliver(id, endpoint, from, takes_hop, H::FAMILY, ip.protocol())
}
