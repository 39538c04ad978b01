//! Writes ICMP errors (RFC 792, RFC 1191, RFC 4443) in front of what they quote.
//!
//! The caller has cut the packet to the length of the quote, summed it, and moved it
//! behind the room for the headers.

use core::mem::offset_of;

use super::ethernet;
use crate::decide::offload::Open;
use crate::verdict::{Error, Family};
use crate::wire::{
    EthHdr, Frame, FrameMut, Ip6, Ipv4, Ipv4Hdr, Ipv6Hdr, L3, L4_V6, Words6, checksum, protocol,
};

/// Bytes of an IPv4 header and an ICMP error's.
pub const HEADERS4: usize = 28;
/// Bytes of an IPv6 header and an ICMPv6 error's.
pub const HEADERS6: usize = 48;

/// Eight-byte units of the longest quote, and one more.
const MAX_UNITS: usize = 1232 / 8 + 1;

/// Hops that errors start with.
const HOPS: u8 = 64;
/// Precedence of internetwork control (RFC 1812 4.3.2.5).
const CONTROL: u8 = 0xc0;

/// The sum of so many bytes of packet from byte 14 on, a multiple of eight; `None`
/// past the frame's end.
#[inline(always)]
pub fn quoted(frame: &(impl Frame + ?Sized), length: usize) -> Option<u64> {
    checksum::sum8::<MAX_UNITS>(frame, L3, length)
}

/// A transport checksum that [`settle`] knows.
struct Field {
    /// Where its header begins.
    start: usize,
    /// Where it is.
    at: usize,
    /// What the IP header adds to the sum of the packet.
    header: u64,
}

#[inline(always)]
fn field(frame: &(impl Frame + ?Sized), family: Family) -> Option<Field> {
    const TCP_CHECK: usize = 16;
    const UDP_CHECK: usize = 6;
    let (header, next, length) = match family {
        Family::V4 => {
            let ip = frame.read::<Ipv4Hdr>(L3)?;
            // A right header sums up to all ones, which is nothing.
            (0, ip.proto, usize::from(ip.vihl & 15) * 4)
        }
        Family::V6 => {
            let mut sum = checksum::add8(0, frame.read::<u64>(L3)?);
            let ip = Ip6::read(frame)?;
            sum = checksum::add_address(sum, &ip.source);
            sum = checksum::add_address(sum, &ip.destination);
            (sum, ip.next_header, Ipv6Hdr::LEN)
        }
    };
    let offset = match next {
        protocol::TCP => TCP_CHECK,
        protocol::UDP => UDP_CHECK,
        _ => return None,
    };
    Some(Field {
        start: L3 + length,
        at: L3 + length + offset,
        header,
    })
}

/// Whether [`settle`] can deal with the sum that is left open: it is TCP's or UDP's own,
/// as it is for nearly all packets, and taken to be where that cannot be seen.
#[inline(always)]
pub fn is_settled(frame: &(impl Frame + ?Sized), family: Family, open: &Open) -> bool {
    match field(frame, family) {
        Some(Field { start, at, .. }) => {
            open.unseen || (open.start, open.field) == (start as u32, at as u32)
        }
        None => false,
    }
}

/// Makes the transport checksum of the quote at byte 14 one that a device which fills it
/// in (`CHECKSUM_PARTIAL`) leaves as it is, and returns the sum of the quote with it;
/// `None` where no TCP or UDP header follows. `sum` is that of the quote before.
///
/// The device puts `-(others + field)` there; `-others / 2` is the value that this gives
/// again. In ones' complement to halve is to rotate.
#[inline(always)]
pub fn settle(frame: &mut (impl FrameMut + ?Sized), family: Family, sum: u64) -> Option<u64> {
    let Field { at, header, .. } = field(frame, family)?;
    let old = frame.read::<u16>(at)?;
    let without = u64::from(checksum::fold(sum)) + u64::from(!old);
    let others = checksum::fold(without + u64::from(!checksum::fold(header)));
    let settled = (!others).rotate_right(1);
    frame.write(at, settled)?;
    Some(without + u64::from(settled))
}

/// Type and code of ICMP.
#[inline(always)]
const fn icmp4(error: Error) -> [u8; 2] {
    match error {
        Error::TimeExceeded => [11, 0],
        Error::TooBig => [3, 4],
        Error::HostUnreachable => [3, 1],
        Error::NoRoute | Error::None => [3, 0],
    }
}

/// Type and code of ICMPv6.
#[inline(always)]
const fn icmp6(error: Error) -> [u8; 2] {
    match error {
        Error::TimeExceeded => [3, 0],
        Error::TooBig => [2, 0],
        Error::HostUnreachable => [1, 3],
        Error::NoRoute | Error::None => [1, 0],
    }
}

/// Sends the frame back to the station it came from.
#[inline(always)]
fn turn(frame: &mut (impl FrameMut + ?Sized)) -> Option<()> {
    let eth = frame.read::<EthHdr>(0)?;
    ethernet(frame, eth.src_addr, eth.dst_addr)
}

/// Writes Ethernet, IPv4 and ICMP headers in front of the quote of `length` bytes at
/// byte 42, whose sum is `quoted`.
#[inline(always)]
pub fn error4(
    frame: &mut (impl FrameMut + ?Sized),
    error: Error,
    mtu: u32,
    source: Ipv4,
    length: usize,
    quoted: u64,
) -> Option<()> {
    const QUOTE: usize = L3 + HEADERS4;
    const DONT_FRAGMENT: [u8; 2] = [0x40, 0];
    let sender = frame.read::<Ipv4>(QUOTE + offset_of!(Ipv4Hdr, src_addr))?;
    turn(frame)?;
    let mut ip = Ipv4Hdr {
        vihl: 0x45,
        tos: CONTROL,
        tot_len: ((HEADERS4 + length) as u16).to_be_bytes(),
        id: [0; 2],
        frags: DONT_FRAGMENT,
        ttl: HOPS,
        proto: protocol::ICMP,
        check: [0; 2],
        src_addr: source,
        dst_addr: sender,
    };
    let [tot_high, tot_low] = ip.tot_len;
    let mut sum = checksum::add8(
        0,
        u64::from_ne_bytes([0x45, CONTROL, tot_high, tot_low, 0, 0, 0x40, 0]),
    );
    sum += u64::from(u32::from_ne_bytes([HOPS, protocol::ICMP, 0, 0]));
    sum += u64::from(u32::from_ne_bytes(source)) + u64::from(u32::from_ne_bytes(sender));
    ip.check = (!checksum::fold(sum)).to_ne_bytes();
    frame.write(L3, ip)?;
    let [kind, code] = icmp4(error);
    let [high, low] = match error {
        Error::TooBig => (mtu as u16).to_be_bytes(),
        _ => [0; 2],
    };
    let head = u64::from_ne_bytes([kind, code, 0, 0, 0, 0, high, low]);
    frame.write(L3 + Ipv4Hdr::LEN, head)?;
    frame.write(
        L3 + Ipv4Hdr::LEN + 2,
        !checksum::fold(checksum::add8(quoted, head)),
    )
}

/// As [`error4`], in front of the quote at byte 62.
#[inline(always)]
pub fn error6(
    frame: &mut (impl FrameMut + ?Sized),
    error: Error,
    mtu: u32,
    source: Words6,
    length: usize,
    quoted: u64,
) -> Option<()> {
    const QUOTE: usize = L3 + HEADERS6;
    let sender = frame.read::<Words6>(QUOTE + offset_of!(Ipv6Hdr, src_addr))?;
    turn(frame)?;
    let payload = (length + HEADERS6 - Ipv6Hdr::LEN) as u16;
    let [high, low] = payload.to_be_bytes();
    let ip = [0x60, 0, 0, 0, high, low, protocol::ICMPV6, HOPS];
    frame.write(L3, u64::from_ne_bytes(ip))?;
    frame.write(L3 + offset_of!(Ipv6Hdr, src_addr), source)?;
    frame.write(L3 + offset_of!(Ipv6Hdr, dst_addr), sender)?;
    let [kind, code] = icmp6(error);
    let [a, b, c, d] = match error {
        Error::TooBig => mtu.to_be_bytes(),
        _ => [0; 4],
    };
    let head = u64::from_ne_bytes([kind, code, 0, 0, a, b, c, d]);
    let sum = checksum::pseudo6(&source, &sender, payload, protocol::ICMPV6);
    frame.write(L4_V6, head)?;
    frame.write(
        L4_V6 + 2,
        !checksum::fold(checksum::add8(quoted, head) + sum),
    )
}
