//! Byte views of frames.
//!
//! Offsets count from the start of the Ethernet header. All header fields are
//! read and written through [`Frame`] and [`FrameMut`], which check bounds and
//! do not assume alignment.

use core::mem::offset_of;

pub mod checksum;
pub mod extension;
pub mod ndp;

pub use network_types::{
    arp::ArpHdr,
    eth::EthHdr,
    ip::{Ipv4Hdr, Ipv6Hdr},
};

/// Link-layer address.
pub type Mac = [u8; 6];
/// IPv4 address in network order.
pub type Ipv4 = [u8; 4];
/// IPv6 address in network order.
pub type Ipv6 = [u8; 16];

/// An IPv6 address as the two double words that its bytes are in memory. What
/// decisions and verdicts hold passes through the BPF stack, which the verifier
/// wants aligned, unlike packets and map values.
pub type Words6 = [u64; 2];

/// The bytes of an address as double words.
#[inline(always)]
pub const fn words6(address: &Ipv6) -> Words6 {
    let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = *address;
    [
        u64::from_ne_bytes([a, b, c, d, e, f, g, h]),
        u64::from_ne_bytes([i, j, k, l, m, n, o, p]),
    ]
}

/// The fixed header of IPv6 (RFC 8200 3), without class and flow label.
#[derive(Clone, Copy, Debug)]
pub struct Ip6 {
    /// Version in the upper four bits.
    pub version: u8,
    /// Bytes behind this header, host order.
    pub payload: u16,
    /// Next header.
    pub next_header: u8,
    /// Hop limit.
    pub hop_limit: u8,
    /// Source.
    pub source: Words6,
    /// Destination.
    pub destination: Words6,
}

impl Ip6 {
    /// Reads the header at byte 14.
    #[inline(always)]
    pub fn read<F: Frame + ?Sized>(frame: &F) -> Option<Self> {
        let destination = frame.read::<Words6>(L3 + offset_of!(Ipv6Hdr, dst_addr))?;
        let source = frame.read::<Words6>(L3 + offset_of!(Ipv6Hdr, src_addr))?;
        let [version, _, _, _, high, low, next_header, hop_limit] =
            frame.read::<u64>(L3)?.to_ne_bytes();
        Some(Ip6 {
            version,
            payload: u16::from_be_bytes([high, low]),
            next_header,
            hop_limit,
            source,
            destination,
        })
    }
}

/// Bytes of an Ethernet header, which is where the network header starts.
pub const L3: usize = EthHdr::LEN;
/// Bytes of an ARP frame for IPv4 over Ethernet, without padding.
pub const ARP_FRAME: usize = L3 + ArpHdr::LEN;
/// Start of what follows an IPv6 header.
pub const L4_V6: usize = L3 + Ipv6Hdr::LEN;
/// Smallest Ethernet frame without its check sequence (IEEE 802.3 3.2.7).
pub const MIN_FRAME: usize = 60;

/// All ones.
pub const BROADCAST: Mac = [0xff; 6];

/// Ethernet types (IANA "IEEE 802 Numbers"), in host order.
pub mod ether_type {
    /// IPv4.
    pub const IPV4: u16 = 0x0800;
    /// ARP.
    pub const ARP: u16 = 0x0806;
    /// IPv6.
    pub const IPV6: u16 = 0x86dd;
    /// 802.1Q tag.
    pub const VLAN: u16 = 0x8100;
    /// 802.1ad tag.
    pub const QINQ: u16 = 0x88a8;
    /// Pre-standard nested tag, which Linux takes as one.
    pub const QINQ_OLD: u16 = 0x9100;
}

/// Protocol numbers (IANA "Protocol Numbers").
pub mod protocol {
    /// ICMP.
    pub const ICMP: u8 = 1;
    /// TCP.
    pub const TCP: u8 = 6;
    /// UDP.
    pub const UDP: u8 = 17;
    /// ICMPv6.
    pub const ICMPV6: u8 = 58;
    /// IPv4 inside.
    pub const IPIP: u8 = 4;
    /// DCCP (RFC 4340).
    pub const DCCP: u8 = 33;
    /// IPv6 inside.
    pub const IPV6: u8 = 41;
    /// GRE (RFC 2784).
    pub const GRE: u8 = 47;
    /// SCTP (RFC 9260).
    pub const SCTP: u8 = 132;
    /// UDP-Lite (RFC 3828).
    pub const UDP_LITE: u8 = 136;
    /// MPLS inside (RFC 4023).
    pub const MPLS: u8 = 137;
}

/// Whether a UDP port, in host order, is one of DHCP's (RFC 2131 4.1, RFC 8415 7.2).
#[inline(always)]
pub const fn is_dhcp_port(port: u16) -> bool {
    matches!(port, 67 | 68 | 546 | 547)
}

/// A type that any bytes are a valid value of.
///
/// # Safety
/// Without padding, without invalid bit patterns.
pub unsafe trait Pod: Copy {}
// SAFETY: bytes and integers.
unsafe impl Pod for u8 {}
// SAFETY: as above.
unsafe impl Pod for u16 {}
// SAFETY: as above.
unsafe impl Pod for u32 {}
// SAFETY: as above.
unsafe impl Pod for u64 {}
// SAFETY: an array of integers.
unsafe impl Pod for Words6 {}
// SAFETY: arrays of bytes.
unsafe impl<const N: usize> Pod for [u8; N] {}
// SAFETY: two arrays of bytes and a u16 at an even offset, no padding.
unsafe impl Pod for EthHdr {}
// SAFETY: made of byte arrays only.
unsafe impl Pod for ArpHdr {}
// SAFETY: made of byte arrays only.
unsafe impl Pod for Ipv4Hdr {}
// SAFETY: made of byte arrays only.
unsafe impl Pod for Ipv6Hdr {}

/// Read access to a frame's bytes.
pub trait Frame {
    /// Copies a `T` out at `offset`; `None` when it would end past the frame.
    fn read<T: Pod>(&self, offset: usize) -> Option<T>;
}

/// Write access to a frame's bytes.
pub trait FrameMut: Frame {
    /// Copies `value` in at `offset`; `None` when it would end past the frame.
    fn write<T: Pod>(&mut self, offset: usize, value: T) -> Option<()>;
}

impl Frame for [u8] {
    fn read<T: Pod>(&self, offset: usize) -> Option<T> {
        let bytes = self.get(offset..offset.checked_add(size_of::<T>())?)?;
        // SAFETY: `bytes` has the size of `T`, any bytes are a `T` (Pod), and
        // the read does not ask for alignment.
        Some(unsafe { bytes.as_ptr().cast::<T>().read_unaligned() })
    }
}

impl FrameMut for [u8] {
    fn write<T: Pod>(&mut self, offset: usize, value: T) -> Option<()> {
        let bytes = self.get_mut(offset..offset.checked_add(size_of::<T>())?)?;
        // SAFETY: `bytes` has the size of `T`, and the write does not ask for
        // alignment.
        unsafe { bytes.as_mut_ptr().cast::<T>().write_unaligned(value) };
        Some(())
    }
}

/// Whether the group bit is set, which no station's own address has.
#[inline(always)]
pub const fn is_multicast_mac(mac: &Mac) -> bool {
    mac[0] & 1 != 0
}

/// Multicast or limited broadcast (RFC 1112, RFC 919). The rest of 240.0.0.0/4 is neither:
/// routers of clouds answer from it.
#[inline(always)]
pub const fn is_multicast_or_broadcast4(address: &Ipv4) -> bool {
    address[0] >> 4 == 14 || u32::from_ne_bytes(*address) == u32::MAX
}

/// ff00::/8 (RFC 4291 2.7).
#[inline(always)]
pub const fn is_multicast6(address: &Words6) -> bool {
    address[0].to_ne_bytes()[0] == 0xff
}

/// ::ffff:0:0/96, an IPv4 address, which is on no link (RFC 4291 2.5.5.2,
/// draft-itojun-v6ops-v4mapped-harmful).
#[inline(always)]
pub const fn is_mapped6(address: &Words6) -> bool {
    let [a, b, c, d, ..] = address[1].to_ne_bytes();
    address[0] == 0 && u32::from_ne_bytes([a, b, c, d]) == u32::from_ne_bytes([0, 0, 0xff, 0xff])
}

/// fe80::/10 (RFC 4291 2.5.6).
#[inline(always)]
pub const fn is_link_local6(address: &Words6) -> bool {
    let [first, second, ..] = address[0].to_ne_bytes();
    first == 0xfe && second & 0xc0 == 0x80
}

/// The unspecified address `::`.
#[inline(always)]
pub const fn is_unspecified6(address: &Words6) -> bool {
    address[0] | address[1] == 0
}

/// `::1`, which never is on a link (RFC 4291 2.5.3).
#[inline(always)]
pub const fn is_loopback6(address: &Words6) -> bool {
    address[0] == 0 && address[1] == 1u64.to_be()
}
