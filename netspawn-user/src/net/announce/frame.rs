//! The two frames that tell a link whose an address is (M1).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use bytes::{BufMut, Bytes, BytesMut};
use netspawn_ebpf::wire::{
    BROADCAST, EthHdr, L4_V6, MIN_FRAME, Mac, checksum, ether_type,
    ndp::{
        ADVERTISEMENT_FRAME, ALL_NODES, ALL_NODES_MAC, FLAG_OVERRIDE, HOP_LIMIT, OPTION_TARGET,
        kind,
    },
    protocol, words6,
};

/// Bytes of an 802.1Q tag.
const TAG: usize = 4;
/// ARP over Ethernet for IPv4, a request (RFC 826): hardware and protocol types,
/// lengths of their addresses, operation.
const ARP_REQUEST: [u8; 8] = [0, 1, 8, 0, 6, 4, 0, 1];
/// Bytes of an advertisement with its target link-layer address option.
const ADVERTISEMENT: u16 = (ADVERTISEMENT_FRAME - L4_V6) as u16;

/// The announcement that `address` is at `mac`, whole from the Ethernet header
/// on, tagged where `vlan` is not 0.
pub fn announcement(mac: Mac, address: IpAddr, vlan: u16) -> Bytes {
    match address {
        IpAddr::V4(address) => gratuitous_arp(mac, address, vlan),
        IpAddr::V6(address) => unsolicited_advertisement(mac, address, vlan),
    }
}

/// An ARP announcement (RFC 5227 2.3): a broadcast request whose sender and
/// target are the same, which every station understands, unlike the reply form.
fn gratuitous_arp(mac: Mac, address: Ipv4Addr, vlan: u16) -> Bytes {
    let mut frame = ethernet(BROADCAST, mac, vlan, ether_type::ARP);
    frame.put_slice(&ARP_REQUEST);
    frame.put_slice(&mac);
    frame.put_slice(&address.octets());
    frame.put_bytes(0, size_of::<Mac>());
    frame.put_slice(&address.octets());
    let padded = MIN_FRAME.max(frame.len());
    frame.put_bytes(0, padded - frame.len());
    frame.freeze()
}

/// An unsolicited neighbor advertisement (RFC 4861 7.2.6), with the flags that
/// answers have, but for S: it overrides, and a machine is no router.
fn unsolicited_advertisement(mac: Mac, address: Ipv6Addr, vlan: u16) -> Bytes {
    let mut message = BytesMut::with_capacity(usize::from(ADVERTISEMENT));
    message.put_u8(kind::ADVERTISEMENT);
    message.put_u8(0);
    message.put_u16(0);
    message.put_u8(FLAG_OVERRIDE);
    message.put_bytes(0, 3);
    message.put_slice(&address.octets());
    message.put_u8(OPTION_TARGET);
    message.put_u8(1);
    message.put_slice(&mac);

    let pseudo = checksum::pseudo6(
        &words6(&address.octets()),
        &words6(&ALL_NODES),
        ADVERTISEMENT,
        protocol::ICMPV6,
    );
    let sum = message.as_chunks::<8>().0.iter().fold(pseudo, |sum, word| {
        checksum::add8(sum, u64::from_ne_bytes(*word))
    });
    message[2..4].copy_from_slice(&(!checksum::fold(sum)).to_ne_bytes());

    let mut frame = ethernet(ALL_NODES_MAC, mac, vlan, ether_type::IPV6);
    frame.put_u32(6 << 28);
    frame.put_u16(ADVERTISEMENT);
    frame.put_u8(protocol::ICMPV6);
    frame.put_u8(HOP_LIMIT);
    frame.put_slice(&address.octets());
    frame.put_slice(&ALL_NODES);
    frame.put(message);
    frame.freeze()
}

fn ethernet(to: Mac, from: Mac, vlan: u16, kind: u16) -> BytesMut {
    let mut frame = BytesMut::with_capacity(EthHdr::LEN + TAG + ADVERTISEMENT_FRAME);
    frame.put_slice(&to);
    frame.put_slice(&from);
    if vlan != 0 {
        frame.put_u16(ether_type::VLAN);
        frame.put_u16(vlan);
    }
    frame.put_u16(kind);
    frame
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAC: Mac = [2, 0, 0, 0, 0, 0x10];

    /// Byte by byte as RFC 826 has it, padded to the shortest frame.
    #[test]
    fn gratuitous_arp_is_a_broadcast_request_for_itself() {
        let frame = announcement(MAC, [203, 0, 113, 2].into(), 0);
        let mut wanted = vec![0xff; 6];
        wanted.extend([2, 0, 0, 0, 0, 0x10, 8, 6, 0, 1, 8, 0, 6, 4, 0, 1]);
        wanted.extend([2, 0, 0, 0, 0, 0x10, 203, 0, 113, 2]);
        wanted.extend([0, 0, 0, 0, 0, 0, 203, 0, 113, 2]);
        wanted.resize(60, 0);
        assert_eq!(frame, wanted);
    }

    /// The checksum is summed up here in another way (RFC 1071).
    #[test]
    fn unsolicited_advertisement_overrides_at_all_nodes() {
        let address: IpAddr = "2001:db8::2".parse().unwrap();
        let frame = announcement(MAC, address, 0);
        let mut wanted = vec![0x33, 0x33, 0, 0, 0, 1, 2, 0, 0, 0, 0, 0x10, 0x86, 0xdd];
        wanted.extend([0x60, 0, 0, 0, 0, 32, 58, 255]);
        let target = [0x20, 1, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2];
        wanted.extend(target);
        wanted.extend([0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
        wanted.extend([136, 0, 0, 0, 0x20, 0, 0, 0]);
        wanted.extend(target);
        wanted.extend([2, 1, 2, 0, 0, 0, 0, 0x10]);
        let sum = wanted[22..54]
            .chunks(2)
            .chain(wanted[54..].chunks(2))
            .map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1]))
            .sum::<u32>()
            + 32
            + 58;
        let sum = (sum & 0xffff) + (sum >> 16);
        let check = !((sum & 0xffff) + (sum >> 16)) as u16;
        wanted[56..58].copy_from_slice(&check.to_be_bytes());
        assert_eq!(frame, wanted);
    }

    #[test]
    fn tag_follows_the_addresses() {
        for address in ["203.0.113.2", "2001:db8::2"] {
            let address = address.parse().unwrap();
            let plain = announcement(MAC, address, 0);
            let tagged = announcement(MAC, address, 30);
            assert_eq!(tagged[..12], plain[..12]);
            assert_eq!(tagged[12..16], [0x81, 0, 0, 30]);
            // The shortest frame is as long with a tag as without.
            assert_eq!(tagged[16..56], plain[12..52]);
        }
    }
}
