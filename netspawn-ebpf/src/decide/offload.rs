//! What a sender says of a frame beside its bytes: where a checksum is to be completed,
//! how a super-packet is to be cut up, how long the frame is (rows S1 to S3).
//!
//! A machine's root says so with `PACKET_VNET_HDR`, a VM with each frame (virtio), a
//! neighbor of this host with a NIC that hands it on. Whoever sends the frame on believes
//! it, behind every check of the bytes: so it has to fit them.

use super::ETHER_TYPE;
use crate::wire::{
    Frame, Ip6, Ipv4Hdr, L3, L4_V6, MIN_FRAME, ether_type, extension, is_dhcp_port, protocol,
};

/// Bits of `skb_shinfo(skb)->gso_type` (include/linux/skbuff.h).
pub mod gso {
    /// TCP in IPv4.
    pub const TCPV4: u32 = 1 << 0;
    /// From an untrusted source: the kernel looks at its lengths itself.
    pub const DODGY: u32 = 1 << 1;
    /// TCP with CWR.
    pub const TCP_ECN: u32 = 1 << 2;
    /// The IPv4 identification stays the same (`__SKB_GSO_TCP_FIXEDID`).
    pub const FIXED_ID: u32 = 1 << 3;
    /// TCP in IPv6.
    pub const TCPV6: u32 = 1 << 4;
    /// Inside GRE.
    pub const GRE: u32 = 1 << 6;
    /// Inside GRE with a checksum.
    pub const GRE_CSUM: u32 = 1 << 7;
    /// Inside IPv4.
    pub const IPXIP4: u32 = 1 << 8;
    /// Inside IPv6.
    pub const IPXIP6: u32 = 1 << 9;
    /// Inside UDP.
    pub const UDP_TUNNEL: u32 = 1 << 10;
    /// Inside UDP with a checksum.
    pub const UDP_TUNNEL_CSUM: u32 = 1 << 11;
    /// Cut up in part already.
    pub const PARTIAL: u32 = 1 << 12;
    /// With remote checksum offload (GUE, VXLAN).
    pub const TUNNEL_REMCSUM: u32 = 1 << 13;
    /// SCTP, a segment for each fragment.
    pub const SCTP: u32 = 1 << 14;
    /// UDP, cut into IP fragments.
    pub const UDP: u32 = 1 << 16;
    /// UDP, cut into datagrams.
    pub const UDP_L4: u32 = 1 << 17;
    /// The segments are there as they came in.
    pub const FRAGLIST: u32 = 1 << 18;
    /// TCP with accurate ECN.
    pub const TCP_ACCECN: u32 = 1 << 19;
    /// As [`FIXED_ID`], outside and inside (from Linux 6.18 on).
    pub const FIXED_IDS: u32 = 3 << 30;

    /// `gso_size` of a super-packet whose fragments are the segments.
    pub const BY_FRAGMENTS: u32 = 0xffff;

    /// Bits that change nothing of what the super-packet is.
    pub(super) const HINTS: u32 = DODGY | TCP_ECN | FIXED_ID | PARTIAL | TCP_ACCECN | FIXED_IDS;
    /// What is inside a tunnel.
    pub(super) const INNER: u32 = TCPV4 | TCPV6 | UDP | UDP_L4 | SCTP;
    /// Tunnels over UDP.
    pub(super) const OVER_UDP: u32 = UDP_TUNNEL | UDP_TUNNEL_CSUM | TUNNEL_REMCSUM;
    /// GRE.
    pub(super) const OVER_GRE: u32 = GRE | GRE_CSUM;
    /// All tunnels.
    pub(super) const TUNNELS: u32 = OVER_UDP | OVER_GRE | IPXIP4 | IPXIP6;
}

/// Segments of a super-packet at most: 512 KiB, which is the kernel's `GSO_MAX_SIZE`, at
/// 536 bytes, which every host takes (RFC 9293 3.7.1).
pub const MAX_SEGMENTS: u32 = 1024;

/// Payload bytes of a segment at least, the kernel's `TCP_MIN_GSO_SIZE`.
const MIN_SEGMENT: u32 = 8;

/// Longest packet whose own word on its length is that.
const MAX_PACKET: u32 = 65_535;

/// Extension headers that are walked in search of a transport header.
const MAX_EXTENSIONS: usize = 4;

/// Where TCP's checksum is in its header.
pub(super) const TCP_FIELD: u32 = 16;
/// Where UDP's is.
pub(super) const UDP_FIELD: u32 = 6;
const UDP_HEADER: u32 = 8;
const GRE_HEADER: u32 = 4;
const FRAGMENT_HEADER: u32 = 8;
const SCTP_HEADER: u32 = 12;
const MAX_TCP_HEADER: u32 = 60;

/// What a sender says of a frame beside its bytes, and the kernel believes.
#[derive(Clone, Copy, Debug, Default)]
pub struct Said {
    /// Bytes of the whole frame.
    pub length: u32,
    /// Payload bytes of one segment of a super-packet, else 0.
    pub gso_size: u32,
    /// How a super-packet is to be cut up, as bits of [`gso`]; 0 where that cannot be seen,
    /// or where nobody said (LRO, and `BPF_PROG_TEST_RUN`).
    pub gso_type: u32,
    /// Bytes of the longest fragment of a super-packet that is cut by its fragments
    /// ([`gso::BY_FRAGMENTS`]), behind their common header.
    pub longest: u32,
    /// The checksum that is left open.
    pub open: Open,
}

/// Where a checksum is left to be completed by whoever sends the frame on
/// (`CHECKSUM_PARTIAL`). Flat, for the reason that [`crate::verdict::Verdict`] is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Open {
    /// Whether there is one.
    pub somewhere: bool,
    /// Whether it cannot be seen where. Then `somewhere` may not be known either.
    pub unseen: bool,
    /// Where the sum begins, from the Ethernet header on. Beyond every frame when it lies in
    /// front of it.
    pub start: u32,
    /// Where the sum is to be written, likewise.
    pub field: u32,
}

impl Open {
    const SOMEWHERE: u64 = 1 << 62;
    const UNSEEN: u64 = 1 << 63;
    /// More than any offset into a frame.
    const BITS: u32 = 20;

    /// As one word, for functions of programs.
    #[inline(always)]
    pub const fn pack(self) -> u64 {
        const MOST: u32 = (1 << Open::BITS) - 1;
        let start = if self.start < MOST { self.start } else { MOST };
        let field = if self.field < MOST { self.field } else { MOST };
        let somewhere = if self.somewhere { Self::SOMEWHERE } else { 0 };
        let unseen = if self.unseen { Self::UNSEEN } else { 0 };
        start as u64 | (field as u64) << Self::BITS | somewhere | unseen
    }

    /// From such a word.
    #[inline(always)]
    pub const fn unpack(word: u64) -> Self {
        let mask = (1 << Self::BITS) - 1;
        Open {
            somewhere: word & Self::SOMEWHERE != 0,
            unseen: word & Self::UNSEEN != 0,
            start: word as u32 & mask,
            field: (word >> Self::BITS) as u32 & mask,
        }
    }
}

/// What comes of what was said.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Judged {
    /// Whether it does not fit the frame.
    pub bad: bool,
    /// Bytes of the longest packet that a super-packet is cut into; 0 for what is none.
    pub segment: u32,
}

impl Judged {
    const BAD: u64 = 1 << 32;

    /// As one word, for functions of programs.
    #[inline(always)]
    pub const fn pack(self) -> u64 {
        self.segment as u64 | flag(self.bad, Self::BAD)
    }

    /// From such a word.
    #[inline(always)]
    pub const fn unpack(word: u64) -> Self {
        Judged {
            bad: word & Self::BAD != 0,
            segment: word as u32,
        }
    }
}

/// Judges what the sender says of checksum and segments.
#[inline(always)]
pub fn judge<F: Frame + ?Sized>(frame: &F, said: &Said) -> Judged {
    if !said.open.somewhere && said.gso_size == 0 {
        return Judged::default();
    }
    judge_packet(frame, said, &outer(frame, said.length, said.gso_size))
}

/// As [`judge`], of a packet that has been followed by [`outer`].
#[inline(always)]
pub fn judge_packet<F: Frame + ?Sized>(frame: &F, said: &Said, outer: &Outer) -> Judged {
    Judged {
        bad: !outer.known || !fits(frame, said, outer),
        segment: segment(frame, said, outer),
    }
}

/// Follows the packet of a frame up to its transport header.
#[inline(always)]
pub fn outer<F: Frame + ?Sized>(frame: &F, length: u32, gso_size: u32) -> Outer {
    match frame.read::<u16>(ETHER_TYPE).map(u16::from_be) {
        Some(ether_type::IPV4) => outer4(frame, length, gso_size),
        Some(ether_type::IPV6) => outer6(frame, length, gso_size),
        // No stack leaves anything open in what is not IP.
        _ => Outer::unknown(Kind::Other),
    }
}

/// Whether what the sender says of checksum and segments fits the packet.
#[inline(always)]
fn fits<F: Frame + ?Sized>(frame: &F, said: &Said, outer: &Outer) -> bool {
    sum_fits(frame, said, outer) && segments_fit(said, outer)
}

/// The length that a frame of `length` bytes is to be cut to before it is sent on: what
/// follows its packet is nobody's, and would leave unseen by every check of lengths. `None`
/// where it may stay, as in all that is not `whole` but a super-packet.
#[inline(always)]
pub fn surplus<F: Frame + ?Sized>(frame: &F, length: u32, whole: bool) -> Option<u32> {
    if !whole || length <= MIN_FRAME as u32 {
        return None;
    }
    let end = match u16::from_be(frame.read::<u16>(ETHER_TYPE)?) {
        ether_type::IPV4 => {
            let ip = frame.read::<Ipv4Hdr>(L3)?;
            L3 as u32 + u32::from(u16::from_be_bytes(ip.tot_len))
        }
        ether_type::IPV6 => L4_V6 as u32 + u32::from(Ip6::read(frame)?.payload),
        _ => return None,
    };
    let wanted = if end < MIN_FRAME as u32 {
        MIN_FRAME as u32
    } else {
        end
    };
    (wanted < length).then_some(wanted)
}

/// What a frame holds.
#[repr(u32)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Kind {
    /// Neither of these.
    #[default]
    Other,
    /// IPv4.
    Ipv4,
    /// IPv6.
    Ipv6,
}

/// Where the packet of a frame has what, as offsets into the frame. Flat, for the reason
/// that [`crate::verdict::Verdict`] is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Outer {
    /// Whether the packet could be followed up to its transport header.
    pub known: bool,
    /// Which IP header it has.
    pub kind: Kind,
    /// What follows the IP header and its extensions.
    pub protocol: u8,
    /// Where that begins.
    pub transport: u16,
    /// Where the packet ends.
    pub end: u32,
    /// Whether extension headers come before it.
    pub extended: bool,
    /// Whether it is a fragment.
    pub fragment: bool,
}

/// A bit where it is set.
#[inline(always)]
const fn flag(set: bool, bit: u64) -> u64 {
    if set { bit } else { 0 }
}

impl Outer {
    const KNOWN: u64 = 1 << 63;
    const EXTENDED: u64 = 1 << 62;
    const FRAGMENT: u64 = 1 << 61;
    const IPV4: u64 = 1 << 60;
    const IPV6: u64 = 1 << 59;

    const fn unknown(kind: Kind) -> Self {
        Outer {
            known: false,
            kind,
            protocol: 0,
            transport: L3 as u16,
            end: L3 as u32,
            extended: false,
            fragment: false,
        }
    }

    /// As one word, for functions of programs.
    #[inline(always)]
    pub const fn pack(self) -> u64 {
        let kind = match self.kind {
            Kind::Ipv4 => Self::IPV4,
            Kind::Ipv6 => Self::IPV6,
            Kind::Other => 0,
        };
        self.end as u64
            | (self.transport as u64) << 32
            | (self.protocol as u64) << 48
            | kind
            | flag(self.known, Self::KNOWN)
            | flag(self.extended, Self::EXTENDED)
            | flag(self.fragment, Self::FRAGMENT)
    }

    /// From such a word.
    #[inline(always)]
    pub const fn unpack(word: u64) -> Self {
        Outer {
            known: word & Self::KNOWN != 0,
            kind: if word & Self::IPV4 != 0 {
                Kind::Ipv4
            } else if word & Self::IPV6 != 0 {
                Kind::Ipv6
            } else {
                Kind::Other
            },
            protocol: (word >> 48) as u8,
            transport: (word >> 32) as u16,
            end: word as u32,
            extended: word & Self::EXTENDED != 0,
            fragment: word & Self::FRAGMENT != 0,
        }
    }
}

/// Where a packet ends by its own word, `packet` bytes, as an offset into a frame. A
/// super-packet beyond 64 kB has no such word (BIG TCP): it ends with the frame.
#[inline(always)]
pub(super) const fn end(length: u32, gso_size: u32, packet: u32, none: bool) -> u32 {
    if none && is_beyond(length, gso_size) {
        length
    } else {
        L3 as u32 + packet
    }
}

/// Whether this is a super-packet longer than a packet can say.
#[inline(always)]
const fn is_beyond(length: u32, gso_size: u32) -> bool {
    gso_size != 0 && length > MAX_PACKET + L3 as u32
}

#[inline(always)]
fn outer4<F: Frame + ?Sized>(frame: &F, length: u32, gso_size: u32) -> Outer {
    let Some(ip) = frame.read::<Ipv4Hdr>(L3) else {
        return Outer::unknown(Kind::Ipv4);
    };
    let total = u16::from_be_bytes(ip.tot_len);
    Outer {
        known: true,
        kind: Kind::Ipv4,
        protocol: ip.proto,
        transport: L3 as u16 + u16::from(ip.vihl & 15) * 4,
        end: end(length, gso_size, total as u32, total == 0),
        extended: false,
        // More to come, or an offset.
        fragment: u16::from_be_bytes(ip.frags) & 0x3fff != 0,
    }
}

#[inline(always)]
fn outer6<F: Frame + ?Sized>(frame: &F, length: u32, gso_size: u32) -> Outer {
    let Some(ip) = Ip6::read(frame) else {
        return Outer::unknown(Kind::Ipv6);
    };
    let end = end(
        length,
        gso_size,
        u32::from(ip.payload) + (L4_V6 - L3) as u32,
        ip.payload == 0,
    );
    let (mut protocol, mut transport) = (ip.next_header, L4_V6);
    let mut fragment = false;
    for _ in 0..MAX_EXTENSIONS {
        match protocol {
            extension::HOP_BY_HOP | extension::ROUTING | extension::DESTINATION => {}
            extension::FRAGMENT => {
                fragment = true;
                break;
            }
            _ => break,
        }
        let Some([following, units]) = frame.read::<[u8; 2]>(transport) else {
            return Outer::unknown(Kind::Ipv6);
        };
        transport += 8 + usize::from(units) * 8;
        protocol = following;
    }
    Outer {
        known: true,
        kind: Kind::Ipv6,
        protocol,
        transport: transport as u16,
        end,
        extended: transport != L4_V6,
        fragment,
    }
}

/// No field, and no header, is as far as that.
const NOWHERE: u32 = 1 << 16;

/// Where a transport header has its own checksum; [`NOWHERE`] for what has none that
/// anybody leaves open.
#[inline(always)]
const fn own_field(of: u8) -> u32 {
    match of {
        protocol::TCP => TCP_FIELD,
        protocol::UDP | protocol::UDP_LITE | protocol::DCCP => UDP_FIELD,
        protocol::ICMP | protocol::ICMPV6 => 2,
        protocol::SCTP => 8,
        protocol::GRE => 4,
        _ => NOWHERE,
    }
}

/// Bytes of the header of a tunnel, or of UDP, which may be one's; [`NOWHERE`] for what is
/// none.
#[inline(always)]
const fn tunnel_header(of: u8) -> u32 {
    match of {
        protocol::UDP => UDP_HEADER,
        protocol::GRE => GRE_HEADER,
        protocol::IPIP | protocol::IPV6 | protocol::MPLS => 0,
        _ => NOWHERE,
    }
}

/// Row S1.
#[inline(always)]
fn sum_fits<F: Frame + ?Sized>(frame: &F, said: &Said, outer: &Outer) -> bool {
    if !said.open.somewhere {
        return true;
    }
    let (start, field) = (said.open.start, said.open.field);
    let transport = u32::from(outer.transport);
    // `start` first: beyond the frame, the other may have come round to small numbers.
    if start < transport
        || start >= outer.end
        || field < start
        || field + 2 > outer.end
        || outer.fragment
    {
        return false;
    }
    if start == transport && field - start == own_field(outer.protocol) {
        return true;
    }
    let header = tunnel_header(outer.protocol);
    if header == NOWHERE || start < transport + header {
        return false;
    }
    outer.protocol != protocol::UDP
        || match frame.read::<[u8; 4]>(outer.transport as usize) {
            Some([a, b, c, d]) => {
                !is_dhcp_port(u16::from_be_bytes([a, b]))
                    && !is_dhcp_port(u16::from_be_bytes([c, d]))
            }
            None => false,
        }
}

/// Row S2. `gso_segs` is not looked at: it is 0 in what comes from a VM.
#[inline(always)]
fn segments_fit(said: &Said, outer: &Outer) -> bool {
    let size = said.gso_size;
    if size == 0 {
        return true;
    }
    let transport = u32::from(outer.transport);
    if outer.fragment || outer.end != said.length || transport >= outer.end {
        return false;
    }
    let kind = said.gso_type & !gso::HINTS;
    let tcp = kind & (gso::TCPV4 | gso::TCPV6) != 0
        || said.gso_type == 0 && outer.protocol == protocol::TCP;
    if is_beyond(said.length, size) && !tcp {
        return false;
    }
    let by_fragments = size == gso::BY_FRAGMENTS;
    if !by_fragments {
        let payload = outer.end - transport;
        if size < MIN_SEGMENT
            || size >= payload
            || u64::from(payload) > u64::from(size) * u64::from(MAX_SEGMENTS)
        {
            return false;
        }
    }
    // Not seen, or said by nobody who is not the kernel.
    if said.gso_type == 0 {
        return !by_fragments || outer.protocol == protocol::SCTP;
    }
    // What is cut by its fragments is SCTP, and nothing else.
    if by_fragments != (kind & gso::SCTP != 0) {
        return false;
    }
    // Where the headers end that each segment gets is known by the sum alone, except
    // behind plain headers.
    if !by_fragments && !said.open.somewhere && (outer.extended || kind & gso::TUNNELS != 0) {
        return false;
    }
    type_fits(kind, outer)
}

/// Whether this is a way to cut such a packet up.
#[inline(always)]
fn type_fits(kind: u32, outer: &Outer) -> bool {
    let (tcp, over_ip) = match outer.kind {
        Kind::Ipv6 => (gso::TCPV6, gso::IPXIP6),
        _ => (gso::TCPV4, gso::IPXIP4),
    };
    let known = kind & !(gso::INNER | gso::TUNNELS) == 0;
    match outer.protocol {
        protocol::TCP => kind & !gso::FRAGLIST == tcp,
        protocol::UDP if kind & gso::TUNNELS == 0 => {
            kind & !gso::FRAGLIST == gso::UDP_L4 || kind == gso::UDP
        }
        protocol::SCTP => kind == gso::SCTP,
        protocol::UDP => known && kind & gso::OVER_UDP != 0,
        protocol::GRE => known && kind & gso::OVER_GRE != 0,
        protocol::IPIP | protocol::IPV6 | protocol::MPLS => known && kind & over_ip != 0,
        _ => false,
    }
}

/// Bytes of the longest packet that a super-packet is cut into, as
/// `skb_gso_network_seglen`; 0 for what is none.
#[inline(always)]
fn segment<F: Frame + ?Sized>(frame: &F, said: &Said, outer: &Outer) -> u32 {
    if said.gso_size == 0 {
        return 0;
    }
    if said.gso_size == gso::BY_FRAGMENTS {
        let header = u32::from(outer.transport).saturating_sub(L3 as u32) + SCTP_HEADER;
        return said.longest.saturating_add(header);
    }
    said.gso_size
        .saturating_add(segment_headers(frame, said, outer))
}

/// Bytes of a segment beside its share of the payload.
#[inline(always)]
fn segment_headers<F: Frame + ?Sized>(frame: &F, said: &Said, outer: &Outer) -> u32 {
    // The sum left open is the innermost transport header's. Offsets stay those of the
    // frame until the end, whose bounds the verifier knows.
    let (transport, tcp) = if said.open.somewhere {
        (
            said.open.start,
            said.open.field.wrapping_sub(said.open.start) == TCP_FIELD,
        )
    } else {
        (u32::from(outer.transport), outer.protocol == protocol::TCP)
    };
    let header = if said.gso_type & gso::UDP != 0 && said.gso_type & gso::TUNNELS == 0 {
        // The UDP header counts as payload.
        match outer.kind {
            Kind::Ipv6 => FRAGMENT_HEADER,
            _ => 0,
        }
    } else if !tcp {
        UDP_HEADER
    } else {
        // Two bytes, because the verifier does not follow the comparison that a single one
        // compiles to.
        match frame.read::<[u8; 2]>(transport as usize + 12) {
            Some([offset, _]) => u32::from(offset >> 4) * 4,
            None => MAX_TCP_HEADER,
        }
    };
    transport.saturating_add(header).saturating_sub(L3 as u32)
}
