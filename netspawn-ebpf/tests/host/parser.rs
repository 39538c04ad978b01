//! What smoltcp makes of a frame: a second opinion on everything that is sent.

use netspawn_ebpf::wire::{Mac, ndp};
use smoltcp::{
    phy::ChecksumCapabilities,
    wire::{
        ArpOperation, ArpPacket, ArpRepr, EthernetFrame, EthernetProtocol, Icmpv4Message,
        Icmpv4Packet, Icmpv4Repr, Icmpv6Packet, Icmpv6Repr, IpAddress, IpProtocol, Ipv4Packet,
        Ipv6Packet, NdiscNeighborFlags, NdiscRepr, TcpPacket, UdpPacket,
    },
};

/// What a frame says.
#[derive(Debug, PartialEq, Eq)]
pub enum Said {
    /// `spa` is at `sha`, told to `tpa`.
    IsAt {
        spa: [u8; 4],
        sha: Mac,
        tpa: [u8; 4],
    },
    /// The same for IPv6.
    Advertises {
        target: [u8; 16],
        mac: Mac,
        destination: [u8; 16],
        router: bool,
        solicited: bool,
        overrides: bool,
    },
    /// An echo reply.
    Pong,
    /// Another packet.
    Packet,
}

/// Reads a frame; every checksum in it must be right.
///
/// # Errors
/// Says what is wrong with it.
pub fn read(bytes: &[u8]) -> Result<Said, String> {
    let frame = EthernetFrame::new_checked(bytes).map_err(|_| "no Ethernet frame")?;
    let source = frame.src_addr();
    if !source.is_unicast() {
        return Err(format!("Ethernet source {source}"));
    }
    match frame.ethertype() {
        EthernetProtocol::Arp => arp(&frame),
        EthernetProtocol::Ipv4 => ipv4(frame.payload()),
        EthernetProtocol::Ipv6 => ipv6(&frame),
        other => Err(format!("Ethernet type {other}")),
    }
}

fn arp(frame: &EthernetFrame<&[u8]>) -> Result<Said, String> {
    let packet = ArpPacket::new_checked(frame.payload()).map_err(|_| "ARP cut short")?;
    let ArpRepr::EthernetIpv4 {
        operation,
        source_hardware_addr,
        source_protocol_addr,
        target_hardware_addr,
        target_protocol_addr,
    } = ArpRepr::parse(&packet).map_err(|_| "no ARP for IPv4")?
    else {
        return Err("no ARP for IPv4".to_owned());
    };
    if operation != ArpOperation::Reply
        || source_hardware_addr != frame.src_addr()
        || target_hardware_addr != frame.dst_addr()
    {
        return Err(format!("no reply to {target_hardware_addr}"));
    }
    if frame.payload()[28..].iter().any(|byte| *byte != 0) {
        return Err("padding is not zero".to_owned());
    }
    Ok(Said::IsAt {
        spa: source_protocol_addr.octets(),
        sha: source_hardware_addr.0,
        tpa: target_protocol_addr.octets(),
    })
}

fn ipv4(bytes: &[u8]) -> Result<Said, String> {
    let packet = Ipv4Packet::new_checked(bytes).map_err(|_| "IPv4 cut short")?;
    if packet.version() != 4 || !packet.verify_checksum() {
        return Err("IPv4 header checksum".to_owned());
    }
    if packet.more_frags() || packet.frag_offset() != 0 {
        return Ok(Said::Packet);
    }
    let source = IpAddress::from(packet.src_addr());
    let destination = IpAddress::from(packet.dst_addr());
    if packet.next_header() == IpProtocol::Icmp {
        let icmp = Icmpv4Packet::new_checked(packet.payload()).map_err(|_| "ICMP cut short")?;
        if !icmp.verify_checksum() {
            return Err("ICMP checksum".to_owned());
        }
        // What an error quotes may be anything.
        if is_error4(icmp.msg_type()) {
            return Ok(Said::Packet);
        }
        return match Icmpv4Repr::parse(&icmp, &ChecksumCapabilities::default()) {
            Ok(Icmpv4Repr::EchoReply { .. }) => Ok(Said::Pong),
            Ok(_) => Ok(Said::Packet),
            Err(_) => Err("no ICMP message".to_owned()),
        };
    }
    transport(packet.next_header(), packet.payload(), source, destination)
}

fn is_error4(kind: Icmpv4Message) -> bool {
    matches!(
        kind,
        Icmpv4Message::DstUnreachable | Icmpv4Message::TimeExceeded
    )
}

fn ipv6(frame: &EthernetFrame<&[u8]>) -> Result<Said, String> {
    let packet = Ipv6Packet::new_checked(frame.payload()).map_err(|_| "IPv6 cut short")?;
    if packet.version() != 6 {
        return Err("IPv6 version".to_owned());
    }
    let (source, destination) = (packet.src_addr(), packet.dst_addr());
    if packet.next_header() != IpProtocol::Icmpv6 {
        return transport(
            packet.next_header(),
            packet.payload(),
            source.into(),
            destination.into(),
        );
    }
    let icmp = Icmpv6Packet::new_checked(packet.payload()).map_err(|_| "ICMPv6 cut short")?;
    if !icmp.verify_checksum(&source, &destination) {
        return Err("ICMPv6 checksum".to_owned());
    }
    if icmp.msg_type().is_error() {
        return Ok(Said::Packet);
    }
    let message = Icmpv6Repr::parse(
        &source,
        &destination,
        &icmp,
        &ChecksumCapabilities::default(),
    )
    .map_err(|_| "no ICMPv6 message")?;
    match message {
        Icmpv6Repr::EchoReply { .. } => Ok(Said::Pong),
        Icmpv6Repr::Ndisc(NdiscRepr::NeighborAdvert {
            flags,
            target_addr,
            lladdr,
        }) => {
            if packet.hop_limit() != ndp::HOP_LIMIT {
                return Err(format!("hop limit {}", packet.hop_limit()));
            }
            let option = lladdr.ok_or("no target link-layer option")?;
            if option.as_bytes() != frame.src_addr().as_bytes() || source != target_addr {
                return Err("advertises for another".to_owned());
            }
            let group = destination.is_multicast();
            if group != frame.dst_addr().is_multicast() {
                return Err(format!("{destination} at {}", frame.dst_addr()));
            }
            Ok(Said::Advertises {
                target: target_addr.octets(),
                mac: frame.src_addr().0,
                destination: destination.octets(),
                router: flags.contains(NdiscNeighborFlags::ROUTER),
                solicited: flags.contains(NdiscNeighborFlags::SOLICITED),
                overrides: flags.contains(NdiscNeighborFlags::OVERRIDE),
            })
        }
        _ => Ok(Said::Packet),
    }
}

fn transport(
    protocol: IpProtocol,
    bytes: &[u8],
    source: IpAddress,
    destination: IpAddress,
) -> Result<Said, String> {
    let right = match protocol {
        IpProtocol::Udp => UdpPacket::new_checked(bytes)
            .map_err(|_| "UDP cut short")?
            .verify_checksum(&source, &destination),
        IpProtocol::Tcp => TcpPacket::new_checked(bytes)
            .map_err(|_| "TCP cut short")?
            .verify_checksum(&source, &destination),
        _ => true,
    };
    if !right {
        return Err(format!("{protocol} checksum"));
    }
    Ok(Said::Packet)
}
