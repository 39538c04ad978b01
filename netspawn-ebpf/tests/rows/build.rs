//! Whole frames, by etherparse.

use etherparse::{
    ArpEthIpv4Packet, ArpOperation, EtherType, Ethernet2Header, Icmpv4Type, Icmpv6Type, IpDscp,
    IpFragOffset, IpHeaders, IpNumber, Ipv4Extensions, Ipv4Header, Ipv4Options, PacketBuilder,
    icmpv4, icmpv6,
};
use netspawn_ebpf::{
    abi::{GATEWAY4, GATEWAY6},
    wire::{Ipv4, Ipv6, Mac},
};

use super::{At, Told, world};

/// ARP operation codes.
pub const REQUEST: u16 = 1;
pub const REPLY: u16 = 2;

/// What an ARP message says.
#[derive(Clone, Copy)]
pub struct Arp {
    pub destination: Mac,
    pub source: Mac,
    pub operation: u16,
    pub sha: Mac,
    pub spa: Ipv4,
    pub tha: Mac,
    pub tpa: Ipv4,
}

impl Arp {
    /// A broadcast request.
    pub fn who_has(tpa: Ipv4, sha: Mac, spa: Ipv4) -> Self {
        Arp {
            destination: [0xff; 6],
            source: sha,
            operation: REQUEST,
            sha,
            spa,
            tha: [0; 6],
            tpa,
        }
    }

    /// The reply of `mac` to a request.
    pub fn is_at(self, mac: Mac) -> Self {
        Arp {
            destination: self.sha,
            source: mac,
            operation: REPLY,
            sha: mac,
            spa: self.tpa,
            tha: self.sha,
            tpa: self.spa,
        }
    }

    /// 42 bytes.
    pub fn frame(self) -> Vec<u8> {
        let packet = ArpEthIpv4Packet {
            operation: ArpOperation(self.operation),
            sender_mac: self.sha,
            sender_ipv4: self.spa,
            target_mac: self.tha,
            target_ipv4: self.tpa,
        };
        let mut frame = ethernet(self.source, self.destination, EtherType::ARP);
        frame.extend(packet.to_bytes());
        frame
    }

    /// 60 bytes, the padding filled with `fill`.
    pub fn padded(self, fill: u8) -> Vec<u8> {
        pad(self.frame(), 60, fill)
    }
}

fn ethernet(source: Mac, destination: Mac, ether_type: EtherType) -> Vec<u8> {
    let header = Ethernet2Header {
        source,
        destination,
        ether_type,
    };
    header.to_bytes().to_vec()
}

/// The frame with trailing bytes up to `length`.
pub fn pad(mut frame: Vec<u8>, length: usize, fill: u8) -> Vec<u8> {
    frame.resize(frame.len().max(length), fill);
    frame
}

/// The frame with other bytes at `offset`.
pub fn patch(mut frame: Vec<u8>, offset: usize, bytes: &[u8]) -> Vec<u8> {
    frame[offset..offset + bytes.len()].copy_from_slice(bytes);
    frame
}

/// The frame cut to `length`.
pub fn cut(mut frame: Vec<u8>, length: usize) -> Vec<u8> {
    frame.truncate(length);
    frame
}

/// The frame of an Ethernet type that is none of ours.
pub fn other(source: Mac, destination: Mac, ether_type: u16) -> Vec<u8> {
    pad(
        ethernet(source, destination, EtherType(ether_type)),
        60,
        0xa5,
    )
}

/// The frame with an 802.1Q tag in it.
pub fn tagged(frame: &[u8], vlan: u16) -> Vec<u8> {
    [
        &frame[..12],
        &0x8100_u16.to_be_bytes(),
        &vlan.to_be_bytes(),
        &frame[12..],
    ]
    .concat()
}

/// A neighbor discovery or other ICMPv6 message.
#[derive(Clone)]
pub struct Icmp6 {
    pub source_mac: Mac,
    pub destination_mac: Mac,
    pub source: Ipv6,
    pub destination: Ipv6,
    pub hops: u8,
    pub kind: u8,
    pub code: u8,
    /// The four bytes behind the checksum.
    pub head: [u8; 4],
    pub body: Vec<u8>,
}

impl Icmp6 {
    /// With the right checksum.
    pub fn frame(&self) -> Vec<u8> {
        let mut frame = Vec::new();
        PacketBuilder::ethernet2(self.source_mac, self.destination_mac)
            .ipv6(self.source, self.destination, self.hops)
            .icmpv6_raw(self.kind, self.code, self.head)
            .write(&mut frame, &self.body)
            .expect("a Vec takes everything");
        frame
    }
}

/// The solicited-node group of an address and the Ethernet address of that.
pub fn solicited(target: Ipv6) -> (Ipv6, Mac) {
    let [.., a, b, c] = target;
    (
        [0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff, a, b, c],
        [0x33, 0x33, 0xff, a, b, c],
    )
}

/// A link-layer address option.
pub fn option(kind: u8, mac: Mac) -> Vec<u8> {
    [&[kind, 1][..], &mac].concat()
}

/// A solicitation to the group of its target.
pub fn solicitation(target: Ipv6, source: Ipv6, source_mac: Mac, options: &[u8]) -> Icmp6 {
    let (destination, destination_mac) = solicited(target);
    Icmp6 {
        source_mac,
        destination_mac,
        source,
        destination,
        hops: 255,
        kind: 135,
        code: 0,
        head: [0; 4],
        body: [&target, options].concat(),
    }
}

/// An advertisement with a target link-layer option; `flags` as in its first byte.
pub fn advertisement(
    target: Ipv6,
    mac: Mac,
    destination: Ipv6,
    destination_mac: Mac,
    flags: u8,
) -> Icmp6 {
    Icmp6 {
        source_mac: mac,
        destination_mac,
        source: target,
        destination,
        hops: 255,
        kind: 136,
        code: 0,
        head: [flags, 0, 0, 0],
        body: [&target[..], &option(2, mac)].concat(),
    }
}

/// An IP packet in an Ethernet frame, as it is changed on its way.
#[derive(Clone, Debug)]
pub struct Packet<A> {
    pub source_mac: Mac,
    pub destination_mac: Mac,
    pub source: A,
    pub destination: A,
    pub hops: u8,
    pub inner: Inner,
}

/// What the packet carries.
#[derive(Clone, Debug)]
pub enum Inner {
    /// UDP with these ports and as many bytes.
    Udp(u16, u16, usize),
    /// TCP with as many bytes.
    Tcp(usize),
    /// UDP with these ports behind as many bytes of IPv4 options (no-operations).
    Options(usize, u16, u16),
    /// The middle of a datagram.
    Fragment,
    /// A protocol without a parser, with these bytes.
    Other(u8, Vec<u8>),
    /// UDP behind a hop-by-hop header (IPv6).
    HopByHop,
}

/// Bytes that tell whether a payload is still what it was.
fn payload(length: usize) -> Vec<u8> {
    (0..length).map(|at| (at * 7 + 3) as u8).collect()
}

const UDP_PORTS: (u16, u16) = (4000, 5000);

impl<A: Copy> Packet<A> {
    /// The packet as it is after a hop: other Ethernet addresses, one less of TTL.
    pub fn hop(&self, source_mac: Mac, destination_mac: Mac) -> Self {
        Packet {
            source_mac,
            destination_mac,
            hops: self.hops - 1,
            ..self.clone()
        }
    }

    /// The packet with other Ethernet addresses only.
    pub fn via(&self, source_mac: Mac, destination_mac: Mac) -> Self {
        Packet {
            source_mac,
            destination_mac,
            ..self.clone()
        }
    }

    /// The packet with another TTL or hop limit.
    pub fn hops(&self, hops: u8) -> Self {
        Packet {
            hops,
            ..self.clone()
        }
    }

    /// The packet with something else in it.
    pub fn with(&self, inner: Inner) -> Self {
        Packet {
            inner,
            ..self.clone()
        }
    }
}

/// A UDP packet.
pub fn packet<A>(source_mac: Mac, destination_mac: Mac, source: A, destination: A) -> Packet<A> {
    Packet {
        source_mac,
        destination_mac,
        source,
        destination,
        hops: 64,
        inner: Inner::Udp(UDP_PORTS.0, UDP_PORTS.1, 32),
    }
}

impl Packet<Ipv4> {
    pub fn frame(&self) -> Vec<u8> {
        let mut header = Ipv4Header {
            time_to_live: self.hops,
            source: self.source,
            destination: self.destination,
            dont_fragment: true,
            identification: 0x1234,
            ..Ipv4Header::default()
        };
        let mut bytes = Vec::new();
        let start = PacketBuilder::ethernet2(self.source_mac, self.destination_mac);
        match &self.inner {
            Inner::Udp(from, to, length) => start
                .ip(IpHeaders::Ipv4(header, Ipv4Extensions::default()))
                .udp(*from, *to)
                .write(&mut bytes, &payload(*length)),
            Inner::Tcp(length) => start
                .ip(IpHeaders::Ipv4(header, Ipv4Extensions::default()))
                .tcp(UDP_PORTS.0, UDP_PORTS.1, 77, 1024)
                .write(&mut bytes, &payload(*length)),
            Inner::Options(length, from, to) => {
                header.options = Ipv4Options::try_from(&vec![1; *length][..])
                    .expect("a multiple of four, 40 at most");
                start
                    .ip(IpHeaders::Ipv4(header, Ipv4Extensions::default()))
                    .udp(*from, *to)
                    .write(&mut bytes, &payload(32))
            }
            Inner::Fragment => {
                header.dont_fragment = false;
                header.more_fragments = true;
                header.fragment_offset = IpFragOffset::try_from(185).expect("13 bits");
                start
                    .ip(IpHeaders::Ipv4(header, Ipv4Extensions::default()))
                    .write(&mut bytes, IpNumber::UDP, &payload(64))
            }
            Inner::Other(protocol, inner) => start
                .ip(IpHeaders::Ipv4(header, Ipv4Extensions::default()))
                .write(&mut bytes, IpNumber(*protocol), inner),
            Inner::HopByHop => unreachable!("IPv6 only"),
        }
        .expect("a Vec takes everything");
        bytes
    }
}

impl Packet<Ipv6> {
    pub fn frame(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        let start = PacketBuilder::ethernet2(self.source_mac, self.destination_mac).ipv6(
            self.source,
            self.destination,
            self.hops,
        );
        match &self.inner {
            Inner::Udp(from, to, length) => {
                start.udp(*from, *to).write(&mut bytes, &payload(*length))
            }
            Inner::Tcp(length) => start
                .tcp(UDP_PORTS.0, UDP_PORTS.1, 77, 1024)
                .write(&mut bytes, &payload(*length)),
            // Next header UDP, first reserved, offset and M, identification.
            Inner::Fragment => {
                let header = [17, 0, 0x05, 0xc9, 0, 0, 0x12, 0x34];
                return self
                    .with(Inner::Other(44, [&header[..], &payload(64)].concat()))
                    .frame();
            }
            // Extension headers are bytes here, so the builder must not see their number.
            Inner::Other(protocol, inner) => {
                start
                    .write(&mut bytes, IpNumber::EXPERIMENTAL_AND_TESTING_0, inner)
                    .expect("a Vec takes everything");
                return patch(bytes, 20, &[*protocol]);
            }
            // Next header UDP, eight bytes, PadN of six (RFC 8200 4.2, 4.3).
            Inner::HopByHop => {
                let header = [17, 0, 1, 4, 0, 0, 0, 0];
                return self
                    .with(Inner::Other(0, [&header[..], &payload(40)].concat()))
                    .frame();
            }
            Inner::Options(..) => unreachable!("IPv4 only"),
        }
        .expect("a Vec takes everything");
        bytes
    }
}

/// The frame with another first byte of its IPv4 header, and its checksum (RFC 1624) as
/// if that were right.
pub fn first_byte4(frame: Vec<u8>, byte: u8) -> Vec<u8> {
    let change = (i32::from(frame[14]) - i32::from(byte)) << 8;
    let check = i32::from(u16::from_be_bytes([frame[24], frame[25]])) + change;
    let check = u16::try_from(check.rem_euclid(0xffff)).expect("16 bits");
    patch(patch(frame, 14, &[byte]), 24, &check.to_be_bytes())
}

/// The IPv4 header checksum of a frame made right again.
pub fn fix4(frame: Vec<u8>) -> Vec<u8> {
    let (header, _) = Ipv4Header::from_slice(&frame[14..]).expect("an IPv4 header");
    let check = header.calc_header_checksum();
    patch(frame, 24, &check.to_be_bytes())
}

/// The ICMP error that the data plane makes of a frame: from the host's address, or the
/// gateway's where no uplink leads to the sender, or the machine's where the host itself
/// is told.
pub fn error(frame: &[u8], at: At, told: Told) -> Vec<u8> {
    let mac = |at: usize| <Mac>::try_from(&frame[at..at + 6]).expect("six bytes");
    let start = PacketBuilder::ethernet2(mac(0), mac(6));
    let mut bytes = Vec::new();
    if frame[12..14] == [8, 0] {
        let (ip, _) = Ipv4Header::from_slice(&frame[14..]).expect("an IPv4 header");
        let source = match at {
            At::Uplink => world::HOST4,
            At::Host => ip.destination,
            At::Port(_) if world::INSIDE4[..2] == ip.source[..2] => GATEWAY4,
            At::Port(_) => world::HOST4,
        };
        let header = Ipv4Header {
            dscp: IpDscp::try_new(48).expect("six bits"),
            time_to_live: 64,
            source,
            destination: ip.source,
            dont_fragment: true,
            ..Ipv4Header::default()
        };
        let kind = match told {
            Told::TimeExceeded => {
                Icmpv4Type::TimeExceeded(icmpv4::TimeExceededCode::TtlExceededInTransit)
            }
            Told::TooBig(mtu) => Icmpv4Type::DestinationUnreachable(
                icmpv4::DestUnreachableHeader::FragmentationNeeded {
                    next_hop_mtu: u16::try_from(mtu).expect("16 bits"),
                },
            ),
            Told::HostUnreachable => {
                Icmpv4Type::DestinationUnreachable(icmpv4::DestUnreachableHeader::Host)
            }
            Told::NoRoute => {
                Icmpv4Type::DestinationUnreachable(icmpv4::DestUnreachableHeader::Network)
            }
        };
        let length = usize::from(ip.total_len).min(576 - 28);
        start
            .ip(IpHeaders::Ipv4(header, Ipv4Extensions::default()))
            .icmpv4(kind)
            .write(&mut bytes, &frame[14..14 + length])
    } else {
        let address = |at: usize| <Ipv6>::try_from(&frame[at..at + 16]).expect("16 bytes");
        let (sender, destination) = (address(22), address(38));
        let source = match at {
            At::Uplink => world::HOST6,
            At::Host => destination,
            At::Port(_) if world::INSIDE6[..8] == sender[..8] => GATEWAY6,
            At::Port(_) => world::HOST6,
        };
        let kind = match told {
            Told::TimeExceeded => {
                Icmpv6Type::TimeExceeded(icmpv6::TimeExceededCode::HopLimitExceeded)
            }
            Told::TooBig(mtu) => Icmpv6Type::PacketTooBig { mtu },
            Told::HostUnreachable => {
                Icmpv6Type::DestinationUnreachable(icmpv6::DestUnreachableCode::Address)
            }
            Told::NoRoute => {
                Icmpv6Type::DestinationUnreachable(icmpv6::DestUnreachableCode::NoRoute)
            }
        };
        let payload = usize::from(u16::from_be_bytes([frame[18], frame[19]]));
        let length = (payload + 40).min(1280 - 48);
        start
            .ipv6(source, sender, 64)
            .icmpv6(kind)
            .write(&mut bytes, &frame[14..14 + length])
    }
    .expect("a Vec takes everything");
    bytes
}
