//! Makes the frame that a question is about, as its sender would.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::{Context as _, Result, bail};
use etherparse::{
    ArpHardwareId, ArpOperation, ArpPacket, EtherType, IcmpEchoHeader, Icmpv4Type, Icmpv6Type,
    IpHeaders, IpNumber, Ipv4Header, Ipv6FlowLabel, Ipv6Header, PacketBuilder,
};
use ipnet::IpNet;
use netspawn_ebpf::{
    abi::Owner,
    wire::{MIN_FRAME, Mac},
};

use super::{
    At, Case,
    args::{Asks, FromHost, Inward, Outward, Packet, Shape, Transport},
    spec::{self, ANY_PORT, End, source_and_destination},
    world::World,
};

/// A station of the network whose link-layer address nobody knows.
const STRANGER: Mac = [0x02, 0, 0, 0, 0, 0xfe];
/// Who asks on an uplink whose network has no gateway.
const ASKER4: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
/// As [`ASKER4`].
const ASKER6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0xfe);
const HOPS: u8 = 64;
/// RFC 4861 7.1.
const DISCOVERY_HOPS: u8 = 255;

/// Addresses of the two sides of a frame.
#[derive(Clone, Copy)]
struct Link {
    from: Mac,
    to: Mac,
}

impl Link {
    fn new(shape: &Shape, from: Mac, to: Mac) -> Self {
        Link {
            from: shape.mac.unwrap_or(from),
            to: shape.to_mac.unwrap_or(to),
        }
    }
}

fn case(at: At, shape: &Shape, bytes: Vec<u8>) -> Case {
    Case {
        at,
        bytes,
        tag: shape.vlan,
        gso_size: 0,
        remarks: Vec::new(),
    }
}

/// Whom frames to a solicited neighbor go to (RFC 4291 2.7.1, RFC 2464 7).
fn solicited_node(target: Ipv6Addr) -> (Ipv6Addr, Mac) {
    let [.., a, b, c] = target.octets();
    let group = Ipv6Addr::new(
        0xff02,
        0,
        0,
        0,
        0,
        1,
        0xff00 | u16::from(a),
        u16::from_be_bytes([b, c]),
    );
    (group, [0x33, 0x33, 0xff, a, b, c])
}

/// An ARP request, or a neighbor solicitation: which one, the target says.
fn question(shape: &Shape, mac: Mac, from: IpAddr, target: IpAddr) -> Result<Vec<u8>> {
    let mut frame = Vec::new();
    match (from, target) {
        (IpAddr::V4(from), IpAddr::V4(target)) => {
            let link = Link::new(shape, mac, [0xff; 6]);
            let packet = ArpPacket::new(
                ArpHardwareId::ETHERNET,
                EtherType::IPV4,
                ArpOperation::REQUEST,
                &link.from,
                &from.octets(),
                &[0; 6],
                &target.octets(),
            )?;
            PacketBuilder::ethernet2(link.from, link.to)
                .arp(packet)
                .write(&mut frame)?;
            frame.resize(frame.len().max(MIN_FRAME), 0);
        }
        (IpAddr::V6(from), IpAddr::V6(target)) => {
            let (group, group_mac) = solicited_node(target);
            let link = Link::new(shape, mac, group_mac);
            let mut body = target.octets().to_vec();
            if !from.is_unspecified() {
                body.extend([1, 1]);
                body.extend(link.from);
            }
            PacketBuilder::ethernet2(link.from, link.to)
                .ipv6(from.octets(), group.octets(), DISCOVERY_HOPS)
                .icmpv6(Icmpv6Type::NeighborSolicitation)
                .write(&mut frame, &body)?;
        }
        _ => bail!("{from} and {target} are of different families"),
    }
    Ok(frame)
}

/// A packet.
fn packet(
    link: Link,
    transport: Transport,
    source: End,
    destination: End,
    shape: &Packet,
) -> Result<Vec<u8>> {
    let headers = spec::headers(transport, destination.address);
    let payload = vec![0; usize::from(shape.size.unwrap_or(headers) - headers)];
    let hops = shape.ttl.unwrap_or(HOPS);
    let ip = match (source.address, destination.address) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            // The builder puts lengths, protocol and checksums in.
            let mut ip = Ipv4Header::new(0, hops, IpNumber::TCP, from.octets(), to.octets())?;
            ip.dont_fragment = shape.df;
            IpHeaders::Ipv4(ip, Default::default())
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            let ip = Ipv6Header {
                traffic_class: 0,
                flow_label: Ipv6FlowLabel::ZERO,
                payload_length: 0,
                next_header: IpNumber::TCP,
                hop_limit: hops,
                source: from.octets(),
                destination: to.octets(),
            };
            IpHeaders::Ipv6(ip, Default::default())
        }
        (from, to) => bail!("{from} and {to} are of different families"),
    };
    let builder = PacketBuilder::ethernet2(link.from, link.to).ip(ip);
    let (from, to) = (
        source.port.unwrap_or(ANY_PORT),
        destination.port.unwrap_or(ANY_PORT),
    );
    let echo = IcmpEchoHeader { id: 1, seq: 1 };
    let mut frame = Vec::new();
    match transport {
        Transport::Tcp => builder
            .tcp(from, to, 0, 0xffff)
            .syn()
            .write(&mut frame, &payload)?,
        Transport::Udp => builder.udp(from, to).write(&mut frame, &payload)?,
        Transport::Icmp => builder
            .icmpv4(Icmpv4Type::EchoRequest(echo))
            .write(&mut frame, &payload)?,
        Transport::Icmp6 => builder
            .icmpv6(Icmpv6Type::EchoRequest(echo))
            .write(&mut frame, &payload)?,
    }
    Ok(frame)
}

impl World {
    /// The link-layer address by which the network sends a packet of this source.
    fn station(&self, ifindex: u32, source: IpAddr) -> Mac {
        if let Some(hop) = self.route(source)
            && hop.ifindex == ifindex
            && self.is_fresh(hop)
        {
            return hop.dst_mac;
        }
        let router = self.gateway(source, ifindex).unwrap_or(source);
        self.neighbor(ifindex, router).unwrap_or(STRANGER)
    }

    /// What the host's neighbor table says of an address.
    pub fn neighbor(&self, ifindex: u32, address: IpAddr) -> Option<Mac> {
        let mut neighbors = self.host.neighbors.iter();
        neighbors
            .find(|entry| entry.ifindex == ifindex && entry.address == address)
            .and_then(|entry| entry.mac)
    }

    /// Who asks for addresses on an uplink: its router.
    fn asker(&self, ifindex: u32, target: IpAddr) -> IpAddr {
        let everywhere: IpAddr = match target {
            IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        self.gateway(everywhere, ifindex).unwrap_or(match target {
            IpAddr::V4(_) => ASKER4.into(),
            IpAddr::V6(_) => ASKER6.into(),
        })
    }

    fn uplink_mac(&self, ifindex: u32) -> Result<Mac> {
        let uplink = self.state.uplinks.get(&ifindex);
        Ok(uplink
            .with_context(|| {
                format!(
                    "the maps do not hold {}; see `netspawn-xdp status`",
                    self.interface(ifindex)
                )
            })?
            .mac)
    }

    /// A question of the network.
    ///
    /// # Errors
    /// When the uplink is not attached.
    pub fn asked(&self, asks: &Asks) -> Result<Case> {
        let ifindex = self.uplink_named(asks.uplink.as_deref(), asks.target)?;
        let from = asks
            .from
            .unwrap_or_else(|| self.asker(ifindex, asks.target));
        let station = if from.is_unspecified() {
            STRANGER
        } else {
            self.station(ifindex, from)
        };
        let frame = question(&asks.shape, station, from, asks.target)?;
        Ok(case(At::Uplink(ifindex), &asks.shape, frame))
    }

    /// A packet of the network.
    ///
    /// # Errors
    /// When the uplink is not attached.
    pub fn inward(&self, question: &Inward) -> Result<Case> {
        let Inward {
            source,
            destination,
            shape,
            ..
        } = question;
        let ifindex = self.uplink_named(question.uplink.as_deref(), source.address)?;
        let link = Link::new(
            shape,
            self.station(ifindex, source.address),
            self.uplink_mac(ifindex)?,
        );
        let frame = packet(
            link,
            question.protocol,
            *source,
            *destination,
            &question.packet,
        )?;
        Ok(case(At::Uplink(ifindex), shape, frame))
    }

    /// What a machine sends.
    ///
    /// # Errors
    /// When there is no such machine, it has no port, or no address of that family.
    pub fn outward(&self, question_of: &Outward) -> Result<Case> {
        let Outward { machine, shape, .. } = question_of;
        let id = self.machine_named(machine)?;
        let endpoint = self.machine(id).context("the machine has just gone")?;
        if endpoint.ifindex == 0 {
            bail!(
                "machine {machine} has no port, so nothing can come from it; `netspawn-xdp list` \
                 shows what it waits for"
            );
        }
        let (source, destination) = source_and_destination(&question_of.ends);
        let source = match source {
            Some(source) => source,
            None => End {
                address: self.own_address(id, machine, destination.address)?,
                port: None,
            },
        };
        let frame = match question_of.protocol.transport() {
            Some(transport) => {
                let link = Link::new(shape, endpoint.mac, endpoint.port_mac);
                packet(link, transport, source, destination, &question_of.packet)?
            }
            None => question(shape, endpoint.mac, source.address, destination.address)?,
        };
        Ok(case(At::Port(id), shape, frame))
    }

    /// The address that a machine sends from: its first single one, else the first of its
    /// first prefix that is not the prefix's own.
    fn own_address(&self, id: Owner, machine: &str, toward: IpAddr) -> Result<IpAddr> {
        let mut own: Vec<&IpNet> = self
            .prefixes_of(id)
            .filter(|net| net.addr().is_ipv4() == toward.is_ipv4())
            .collect();
        own.sort_by_key(|net| std::cmp::Reverse(net.prefix_len()));
        let family = if toward.is_ipv4() { "IPv4" } else { "IPv6" };
        let first = own.first().with_context(|| {
            format!(
                "machine {machine} has no {family} address; name the source before the destination"
            )
        })?;
        Ok(if first.prefix_len() == first.max_prefix_len() {
            first.addr()
        } else {
            match first.network() {
                IpAddr::V4(net) => Ipv4Addr::from_bits(net.to_bits() + 1).into(),
                IpAddr::V6(net) => Ipv6Addr::from_bits(net.to_bits() + 1).into(),
            }
        })
    }

    /// What the host sends.
    ///
    /// # Errors
    /// When the uplink is not attached, or the host has no address of that family there.
    pub fn from_host(&self, question_of: &FromHost) -> Result<Case> {
        let shape = &question_of.shape;
        let (source, destination) = source_and_destination(&question_of.ends);
        let to = destination.address;
        let ifindex = self.uplink_named(question_of.uplink.as_deref(), to)?;
        let source = match source {
            Some(source) => source,
            None => End {
                address: self.host_address(ifindex, to)?,
                port: None,
            },
        };
        let mac = self.uplink_mac(ifindex)?;
        let frame = match question_of.protocol.transport() {
            Some(transport) => {
                let owner = self.owner(to);
                // The neighbor that the data plane has told the host of, or a router.
                let next = match self.machine(owner) {
                    Some(endpoint) => endpoint.port_mac,
                    None => self.station(ifindex, to),
                };
                let link = Link::new(shape, mac, next);
                packet(link, transport, source, destination, &question_of.packet)?
            }
            None => question(shape, mac, source.address, to)?,
        };
        Ok(case(At::Host(ifindex), shape, frame))
    }

    fn host_address(&self, ifindex: u32, toward: IpAddr) -> Result<IpAddr> {
        let uplink = self.state.uplinks.get(&ifindex);
        let address = uplink.map(|uplink| match toward {
            IpAddr::V4(_) => IpAddr::from(uplink.address4),
            IpAddr::V6(_) => IpAddr::from(uplink.address6),
        });
        address
            .filter(|address| !address.is_unspecified())
            .with_context(|| {
                format!(
                    "the host has no {} address on {}; name the source before the destination",
                    if toward.is_ipv4() { "IPv4" } else { "IPv6" },
                    self.interface(ifindex)
                )
            })
    }
}
