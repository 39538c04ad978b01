//! Carries verdicts out on a frame's bytes.
//!
//! Each function returns `None` when the frame is shorter than what it writes;
//! bytes may then be half written, and the caller drops the frame.

pub mod error;

use core::mem::offset_of;

use crate::verdict::Family;
use crate::wire::{
    ARP_FRAME, ArpHdr, EthHdr, FrameMut, Ipv4Hdr, Ipv6Hdr, L3, L4_V6, MIN_FRAME, Mac, Words6,
    checksum, is_unspecified6,
    ndp::{self, kind},
    protocol, words6,
};

/// Offset of an Ethernet source address.
const ETH_SOURCE: usize = 6;

/// Writes both Ethernet addresses.
#[inline(always)]
pub fn ethernet(frame: &mut (impl FrameMut + ?Sized), destination: Mac, source: Mac) -> Option<()> {
    frame.write(0, destination)?;
    frame.write(ETH_SOURCE, source)
}

/// Turns the ARP request at byte 14 into the reply of `mac` (RFC 826), and zeroes
/// the padding up to the smallest frame. The caller cuts longer frames.
#[inline(always)]
pub fn arp_reply(frame: &mut (impl FrameMut + ?Sized), mac: Mac) -> Option<()> {
    let request = frame.read::<ArpHdr>(L3)?;
    ethernet(frame, request.sha, mac)?;
    frame.write(
        L3,
        ArpHdr {
            oper: [0, 2],
            sha: mac,
            spa: request.tpa,
            tha: request.sha,
            tpa: request.spa,
            ..request
        },
    )?;
    for offset in ARP_FRAME..MIN_FRAME {
        if frame.write(offset, 0u8).is_none() {
            break;
        }
    }
    Some(())
}

/// Turns the neighbor solicitation at byte 14 into the advertisement of `mac`
/// (RFC 4861 4.4) with a target link-layer option, in a frame that the caller
/// has brought to [`ndp::ADVERTISEMENT_FRAME`] bytes.
#[inline(always)]
pub fn advertisement(
    frame: &mut (impl FrameMut + ?Sized),
    mac: Mac,
    asker_mac: Mac,
    router: bool,
) -> Option<()> {
    const LENGTH: u16 = (ndp::HEADER + 8) as u16;
    let target = frame.read::<Words6>(ndp::TARGET)?;
    let source = frame.read::<Words6>(L3 + offset_of!(Ipv6Hdr, src_addr))?;
    let detects = is_unspecified6(&source);
    let asker = if detects {
        words6(&ndp::ALL_NODES)
    } else {
        source
    };
    let mut flags = ndp::FLAG_OVERRIDE;
    if !detects {
        flags |= ndp::FLAG_SOLICITED;
    }
    if router {
        flags |= ndp::FLAG_ROUTER;
    }
    let [high, low] = LENGTH.to_be_bytes();
    let ip = [0x60, 0, 0, 0, high, low, protocol::ICMPV6, ndp::HOP_LIMIT];
    let head = u64::from_ne_bytes([kind::ADVERTISEMENT, 0, 0, 0, flags, 0, 0, 0]);
    let [a, b, c, d, e, f] = mac;
    let option = u64::from_ne_bytes([ndp::OPTION_TARGET, 1, a, b, c, d, e, f]);
    let sum = checksum::pseudo6(&target, &asker, LENGTH, protocol::ICMPV6);
    let sum = checksum::add_address(checksum::add8(sum, head), &target);
    let check = !checksum::fold(checksum::add8(sum, option));
    ethernet(frame, asker_mac, mac)?;
    frame.write(L3, u64::from_ne_bytes(ip))?;
    frame.write(L3 + offset_of!(Ipv6Hdr, src_addr), target)?;
    frame.write(L3 + offset_of!(Ipv6Hdr, dst_addr), asker)?;
    frame.write(L4_V6, head)?;
    frame.write(L4_V6 + 2, check)?;
    frame.write(ndp::OPTIONS, option)
}

/// Takes one hop from the TTL (RFC 1812 5.3.1) or hop limit.
#[inline(always)]
pub fn take_hop(frame: &mut (impl FrameMut + ?Sized), family: Family) -> Option<()> {
    match family {
        Family::V4 => {
            const TTL: usize = L3 + 8;
            const CHECK: usize = L3 + 10;
            let old = frame.read::<[u8; 2]>(TTL)?;
            let new = [old[0].wrapping_sub(1), old[1]];
            let check = frame.read::<u16>(CHECK)?;
            frame.write(TTL, new[0])?;
            frame.write(
                CHECK,
                checksum::update(check, u16::from_ne_bytes(old), u16::from_ne_bytes(new)),
            )
        }
        Family::V6 => {
            const HOPS: usize = L3 + 7;
            let hops = frame.read::<u8>(HOPS)?;
            frame.write(HOPS, hops.wrapping_sub(1))
        }
    }
}

/// Turns an echo request into its reply (RFC 792, RFC 4443 4.2): addresses and
/// MACs change places, the type changes, the hop count starts again.
#[inline(always)]
pub fn echo_reply(frame: &mut (impl FrameMut + ?Sized), family: Family) -> Option<()> {
    const HOPS: u8 = 64;
    let eth = frame.read::<EthHdr>(0)?;
    ethernet(frame, eth.src_addr, eth.dst_addr)?;
    match family {
        Family::V4 => {
            let mut ip = frame.read::<Ipv4Hdr>(L3)?;
            core::mem::swap(&mut ip.src_addr, &mut ip.dst_addr);
            let old = u16::from_ne_bytes([ip.ttl, ip.proto]);
            let new = u16::from_ne_bytes([HOPS, ip.proto]);
            ip.ttl = HOPS;
            ip.check = checksum::update(u16::from_ne_bytes(ip.check), old, new).to_ne_bytes();
            frame.write(L3, ip)?;
            swap_type(frame, L3 + Ipv4Hdr::LEN, 0)
        }
        Family::V6 => {
            let mut ip = frame.read::<Ipv6Hdr>(L3)?;
            core::mem::swap(&mut ip.src_addr, &mut ip.dst_addr);
            ip.hop_limit = HOPS;
            frame.write(L3, ip)?;
            swap_type(frame, L4_V6, kind::ECHO_REPLY)
        }
    }
}

/// Sets the ICMP type at `offset`, and its checksum two bytes on.
#[inline(always)]
fn swap_type(frame: &mut (impl FrameMut + ?Sized), offset: usize, kind: u8) -> Option<()> {
    let old = frame.read::<[u8; 2]>(offset)?;
    let new = [kind, old[1]];
    let check = frame.read::<u16>(offset + 2)?;
    frame.write(offset, kind)?;
    frame.write(
        offset + 2,
        checksum::update(check, u16::from_ne_bytes(old), u16::from_ne_bytes(new)),
    )
}
