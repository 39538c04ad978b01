//! Rows G1 to G11, and P7 where it is about DHCP: what machines send.

use netspawn_ebpf::{
    abi::{GATEWAY4, GATEWAY6, Owner, settings_flag},
    verdict::Reason,
    wire::{Ipv4, Ipv6, Mac},
};

use super::{
    At, Row, Told,
    build::{Inner, Packet, cut, other, packet, patch, tagged},
    world::*,
};

pub fn rows() -> Vec<Row> {
    [source(), local(), host(), outside(), gateway(), rest()].concat()
}

const AT: At = At::Port(WEB);
const ALL_NODES: Ipv6 = [0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
const ALL_DHCP: Ipv6 = [0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 2];
const BROADCAST: Mac = [0xff; 6];

fn from4(source: Ipv4, destination: Ipv4) -> Packet<Ipv4> {
    packet(mac(WEB), port_mac(WEB), source, destination)
}

fn from6(source: Ipv6, destination: Ipv6) -> Packet<Ipv6> {
    packet(mac(WEB), port_mac(WEB), source, destination)
}

fn to4(destination: Ipv4) -> Packet<Ipv4> {
    from4(ip4(WEB), destination)
}

fn to6(destination: Ipv6) -> Packet<Ipv6> {
    from6(ip6(WEB), destination)
}

fn routed4(source: Ipv4) -> Packet<Ipv4> {
    packet(mac(BRIDGE), port_mac(BRIDGE), source, FAR4)
}

fn routed6(source: Ipv6) -> Packet<Ipv6> {
    packet(mac(BRIDGE), port_mac(BRIDGE), source, FAR6)
}

fn drop4(name: &'static str, packet: Packet<Ipv4>, reason: Reason) -> Row {
    Row::drop(name, AT, packet.frame(), reason, WEB)
}

fn drop6(name: &'static str, packet: Packet<Ipv6>, reason: Reason) -> Row {
    Row::drop(name, AT, packet.frame(), reason, WEB)
}

fn dhcp4(source: Ipv4, from: u16, to: u16) -> Packet<Ipv4> {
    packet(mac(WEB), BROADCAST, source, [255; 4]).with(Inner::Udp(from, to, 240))
}

fn dhcp6(source: Ipv6, from: u16, to: u16) -> Packet<Ipv6> {
    packet(mac(WEB), [0x33, 0x33, 0, 1, 0, 2], source, ALL_DHCP).with(Inner::Udp(from, to, 60))
}

/// A UDP header with those ports and some bytes, behind extension headers of eight bytes.
fn udp_behind(extensions: &[u8], from: u16, to: u16) -> Inner {
    let mut bytes = Vec::new();
    for (at, extension) in extensions.iter().enumerate() {
        let next = extensions.get(at + 1).copied().unwrap_or(17);
        bytes.extend(match extension {
            // The first of several.
            44 => [next, 0, 0, 1, 1, 2, 3, 4],
            // No segments left.
            43 => [next, 0, 0, 0, 0, 0, 0, 0],
            // Padding, or the security parameters' index.
            _ => [next, 0, 1, 4, 0, 0, 0, 0],
        });
    }
    let [a, b] = from.to_be_bytes();
    let [c, d] = to.to_be_bytes();
    bytes.extend([a, b, c, d, 0, 16, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8]);
    Inner::Other(extensions[0], bytes)
}

/// A DHCPv6 server's message.
fn behind(extensions: &[u8]) -> Inner {
    udp_behind(extensions, 547, 546)
}

fn client_behind() -> Inner {
    udp_behind(&[60], 546, 547)
}

/// G1, G2.
fn source() -> Vec<Row> {
    use Reason::*;
    let spoofed_mac4 = to4(FAR4).via(mac(DB), port_mac(WEB));
    let spoofed_mac6 = to6(FAR6).via(mac(DB), port_mac(WEB));
    let middle = to4(ip4(DB)).with(Inner::Fragment);
    let local4_frame = |name, frame, out| Row::forward(name, AT, frame, ForwardedLocal, DB, out);
    let bridged = packet(mac(0x42), port_mac(BRIDGE), ip4(BRIDGE), FAR4);
    vec![
        drop4(
            "G1 another machine's source",
            from4(ip4(DB), FAR4),
            SpoofedSource,
        ),
        drop4("G1 nobody's source", from4(FREE4, FAR4), SpoofedSource),
        drop4("G1 the host's source", from4(HOST4, FAR4), SpoofedSource),
        drop4(
            "G1 a source that is via the host",
            from4(VIRTUAL4, FAR4),
            SpoofedSource,
        ),
        drop4(
            "G1 source 0.0.0.0, no DHCP",
            from4([0; 4], FAR4),
            SpoofedSource,
        ),
        drop4(
            "G1 source loopback",
            from4([127, 0, 0, 1], FAR4),
            SpoofedSource,
        ),
        drop4(
            "G1 source the gateway",
            from4(GATEWAY4, FAR4),
            SpoofedSource,
        ),
        drop4("G1 source broadcast", from4([255; 4], FAR4), SpoofedSource),
        drop4(
            "G1 a part of its prefix that another has",
            from4(CARVED4, FAR4),
            SpoofedSource,
        ),
        drop4(
            "G1 before the MAC is looked at",
            from4(ip4(DB), FAR4).via(mac(DB), port_mac(WEB)),
            SpoofedSource,
        ),
        drop4(
            "G1 before the destination is looked at",
            from4(ip4(DB), [255; 4]),
            SpoofedSource,
        ),
        drop4(
            "G1 a fragment",
            from4(ip4(DB), FAR4).with(Inner::Fragment),
            SpoofedSource,
        ),
        drop6(
            "G1 another machine's source",
            from6(ip6(DB), FAR6),
            SpoofedSource,
        ),
        drop6("G1 nobody's source", from6(FREE6, FAR6), SpoofedSource),
        drop6("G1 the host's source", from6(HOST6, FAR6), SpoofedSource),
        drop6(
            "G1 a source that is via the host",
            from6(VIRTUAL6, FAR6),
            SpoofedSource,
        ),
        drop6("G1 no source", from6([0; 16], FAR6), SpoofedSource),
        drop6(
            "G1 a part of its prefix that another has",
            from6(CARVED6, FAR6),
            SpoofedSource,
        ),
        drop6(
            "G1 link-local source, further destination (RFC 4291 2.5.6)",
            from6(guest_link_local(WEB), FAR6),
            SpoofedSource,
        ),
        drop6(
            "G1 link-local source, a machine",
            from6(guest_link_local(WEB), ip6(DB)),
            SpoofedSource,
        ),
        drop6(
            "G1 the gateway's source",
            from6(GATEWAY6, ALL_NODES),
            SpoofedSource,
        ),
        Row::to_stack(
            "U3 DHCPv4 client (RFC 2131 4.1)",
            AT,
            dhcp4([0; 4], 68, 67).frame(),
            DhcpClient,
            dhcp4([0; 4], 68, 67).via(mac(WEB), port_mac(WEB)).frame(),
        ),
        Row::to_stack(
            "U3 DHCPv6 client (RFC 8415 7.1)",
            AT,
            dhcp6(guest_link_local(WEB), 546, 547).frame(),
            DhcpClient,
            dhcp6(guest_link_local(WEB), 546, 547)
                .via(mac(WEB), port_mac(WEB))
                .frame(),
        ),
        drop4(
            "U3 a DHCPv4 client's packet to another's MAC",
            dhcp4([0; 4], 68, 67).via(mac(WEB), mac(DB)),
            SpoofedSource,
        ),
        drop4(
            "U3 a DHCPv4 client's packet to another's address",
            packet(mac(WEB), BROADCAST, [0; 4], ip4(DB)).with(Inner::Udp(68, 67, 240)),
            SpoofedSource,
        ),
        drop6(
            "U3 a DHCPv6 client's packet to another's MAC",
            dhcp6(guest_link_local(WEB), 546, 547).via(mac(WEB), mac(DB)),
            Multicast,
        ),
        drop6(
            "U3 a DHCPv6 client's packet to all nodes",
            packet(
                mac(WEB),
                [0x33, 0x33, 0, 0, 0, 1],
                guest_link_local(WEB),
                ALL_NODES,
            )
            .with(Inner::Udp(546, 547, 60)),
            Multicast,
        ),
        drop6(
            "U3 a DHCPv6 client's packet to another's link-local address",
            packet(
                mac(WEB),
                mac(DB),
                guest_link_local(WEB),
                guest_link_local(DB),
            )
            .with(Inner::Udp(546, 547, 60)),
            WrongGateway,
        ),
        drop6(
            "U3 a DHCPv6 client's packet to another's address",
            packet(mac(WEB), mac(DB), guest_link_local(WEB), ip6(DB))
                .with(Inner::Udp(546, 547, 60)),
            SpoofedSource,
        ),
        Row::pass(
            "U3 a DHCPv6 client's packet to the port's own address",
            AT,
            packet(
                mac(WEB),
                port_mac(WEB),
                guest_link_local(WEB),
                port_link_local(WEB),
            )
            .with(Inner::Udp(546, 547, 60))
            .frame(),
            ForHost,
        ),
        drop4(
            "G1 a DHCPv4 client with a source not its own",
            dhcp4(FREE4, 68, 67),
            SpoofedSource,
        ),
        drop4(
            "G2 a DHCPv4 client from another's MAC",
            dhcp4([0; 4], 68, 67).via(mac(DB), BROADCAST),
            SpoofedMac,
        ),
        drop6(
            "G2 a DHCPv6 client from another's MAC",
            dhcp6(guest_link_local(WEB), 546, 547).via(mac(DB), [0x33, 0x33, 0, 1, 0, 2]),
            SpoofedMac,
        ),
        drop4("P7 DHCPv4 server", dhcp4(ip4(WEB), 67, 68), RogueDhcp),
        drop4(
            "P7 DHCPv4 server, to a machine",
            to4(ip4(DB)).with(Inner::Udp(67, 68, 240)),
            RogueDhcp,
        ),
        local4_frame(
            "P7 what is no UDP header: the middle of a datagram",
            patch(middle.frame(), 34, &[0, 67, 0, 68]),
            patch(
                middle.hop(port_mac(DB), mac(DB)).frame(),
                34,
                &[0, 67, 0, 68],
            ),
        ),
        drop6(
            "G9 a DHCPv6 client from another than a link-local address",
            dhcp6(ip6(WEB), 546, 547),
            Multicast,
        ),
        drop4(
            "P7 DHCPv4 server, to a machine, behind IP options",
            to4(ip4(DB)).with(Inner::Options(8, 67, 68)),
            RogueDhcp,
        ),
        drop6(
            "P7 DHCPv6 server",
            dhcp6(guest_link_local(WEB), 547, 546),
            RogueDhcp,
        ),
        drop6(
            "P7 DHCPv6 server, to a machine",
            to6(ip6(DB)).with(Inner::Udp(547, 546, 60)),
            RogueDhcp,
        ),
        drop4(
            "P7 DHCPv4 server, to a machine, behind forty bytes of IP options",
            to4(ip4(DB)).with(Inner::Options(40, 67, 68)),
            RogueDhcp,
        ),
        drop6(
            "P7 DHCPv6 server, to a machine, behind an extension header",
            to6(ip6(DB)).with(behind(&[60])),
            RogueDhcp,
        ),
        drop6(
            "P7 DHCPv6 server, to the network, behind all extension headers",
            to6(FAR6).with(behind(&[0, 60, 43, 44, 51, 60])),
            RogueDhcp,
        ),
        drop6(
            "P7 DHCPv6 server, in a first fragment",
            to6(ip6(DB)).with(behind(&[44])),
            RogueDhcp,
        ),
        drop6(
            "P7 more extension headers than there are kinds",
            to6(ip6(DB)).with(behind(&[0, 60, 43, 44, 51, 60, 60])),
            BadFrame,
        ),
        drop6(
            "P7 a first fragment without all headers (RFC 7112)",
            to6(ip6(DB)).with(Inner::Other(44, vec![17, 0, 0, 1, 1, 2, 3, 4])),
            BadFrame,
        ),
        drop6(
            "P7 an extension header that is cut short",
            to6(ip6(DB)).with(Inner::Other(60, vec![17, 0, 1, 4])),
            BadFrame,
        ),
        drop6(
            "U3 a DHCPv6 client's packet behind an extension header",
            dhcp6(guest_link_local(WEB), 546, 547).with(client_behind()),
            Multicast,
        ),
        drop4("G2 IPv4 from another's MAC", spoofed_mac4, SpoofedMac),
        drop6("G2 IPv6 from another's MAC", spoofed_mac6, SpoofedMac),
        Row::forward(
            "G2 nested bridges allowed",
            At::Port(BRIDGE),
            bridged.frame(),
            ForwardedOut,
            netspawn_ebpf::abi::NOBODY,
            bridged.hop(UPLINK, ROUTER).frame(),
        ),
        Row::forward(
            "G1 a source that the machine routes for",
            At::Port(BRIDGE),
            routed4(ROUTED4).frame(),
            ForwardedOut,
            netspawn_ebpf::abi::NOBODY,
            routed4(ROUTED4).hop(UPLINK, ROUTER).frame(),
        ),
        Row::forward(
            "G1 a source that the machine routes for, IPv6",
            At::Port(BRIDGE),
            routed6(ROUTED6).frame(),
            ForwardedOut,
            netspawn_ebpf::abi::NOBODY,
            routed6(ROUTED6).hop(UPLINK, ROUTER).frame(),
        ),
        Row::drop(
            "G1 a source that another machine routes for",
            At::Port(BRIDGE),
            routed4([10, 9, 0, 9]).frame(),
            SpoofedSource,
            BRIDGE,
        ),
        Row::drop(
            "G1 a source that another machine routes for, IPv6",
            At::Port(BRIDGE),
            routed6([0xfd, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 9]).frame(),
            SpoofedSource,
            BRIDGE,
        ),
        Row::drop(
            "P5 a claim to what the machine routes for",
            At::Port(BRIDGE),
            super::build::advertisement(
                ROUTED6,
                mac(BRIDGE),
                netspawn_ebpf::wire::ndp::ALL_NODES,
                netspawn_ebpf::wire::ndp::ALL_NODES_MAC,
                netspawn_ebpf::wire::ndp::FLAG_OVERRIDE,
            )
            .frame(),
            SpoofedSource,
            BRIDGE,
        ),
        Row::drop(
            "P5 a question from what the machine routes for",
            At::Port(BRIDGE),
            super::build::Arp::who_has(FREE4, mac(BRIDGE), ROUTED4).padded(0),
            SpoofedSource,
            BRIDGE,
        ),
        Row::drop(
            "the port is down for the data plane",
            At::Port(DOWN),
            packet(mac(DOWN), port_mac(DOWN), ip4(DOWN), FAR4).frame(),
            EndpointDown,
            DOWN,
        ),
    ]
}

fn local4(name: &'static str, packet: Packet<Ipv4>, id: Owner) -> Row {
    let out = packet.hop(port_mac(id), mac(id)).frame();
    Row::forward(name, AT, packet.frame(), Reason::ForwardedLocal, id, out)
}

fn local6(name: &'static str, packet: Packet<Ipv6>, id: Owner) -> Row {
    let out = packet.hop(port_mac(id), mac(id)).frame();
    Row::forward(name, AT, packet.frame(), Reason::ForwardedLocal, id, out)
}

/// G3, G4.
fn local() -> Vec<Row> {
    use Reason::*;
    let route = settings_flag::ISOLATION_ROUTE;
    vec![
        local4("G3 IPv4", to4(ip4(DB)), DB),
        local4(
            "G3 IPv4 from inside its prefix",
            from4(INSIDE4, ip4(DB)),
            DB,
        ),
        local4(
            "G3 IPv4 to the part of its prefix that another has",
            to4(CARVED4),
            DB,
        ),
        local4("G3 IPv4 to a tap", to4(ip4(BRIDGE)), BRIDGE),
        local4("G3 IPv4 across VLANs", to4(ip4(TAGGED)), TAGGED),
        local4("G3 IPv4 a fragment", to4(ip4(DB)).with(Inner::Fragment), DB),
        local4(
            "G3 IPv4 options",
            to4(ip4(DB)).with(Inner::Options(12, 1, 2)),
            DB,
        ),
        local6("G3 IPv6", to6(ip6(DB)), DB),
        local6("G3 IPv6 TCP", to6(ip6(DB)).with(Inner::Tcp(9)), DB),
        local6(
            "G3 IPv6 extension header",
            to6(ip6(DB)).with(Inner::HopByHop),
            DB,
        ),
        drop4("G4 another tenant, IPv4", to4(ip4(ACME)), TenantIsolation),
        drop6("G4 another tenant, IPv6", to6(ip6(ACME)), TenantIsolation),
        local4("G4 another tenant, policy route", to4(ip4(ACME)), ACME).policy(route),
        local6(
            "G4 another tenant, policy route, IPv6",
            to6(ip6(ACME)),
            ACME,
        )
        .policy(route),
        Row::forward(
            "G3 to the machine's own MAC, as in the bridge that they left",
            AT,
            to4(ip4(DB)).via(mac(WEB), mac(DB)).frame(),
            ForwardedLocal,
            DB,
            to4(ip4(DB)).hop(port_mac(DB), mac(DB)).frame(),
        ),
        Row::forward(
            "G3 to the machine's own MAC, IPv6",
            AT,
            to6(ip6(DB)).via(mac(WEB), mac(DB)).frame(),
            ForwardedLocal,
            DB,
            to6(ip6(DB)).hop(port_mac(DB), mac(DB)).frame(),
        ),
        drop4(
            "G3 to a third machine's MAC",
            to4(ip4(DB)).via(mac(WEB), mac(SMALL)),
            WrongGateway,
        ),
        drop6(
            "G3 to a third machine's MAC, IPv6",
            to6(ip6(DB)).via(mac(WEB), mac(SMALL)),
            WrongGateway,
        ),
        Row::drop(
            "G3 a machine that is not up",
            AT,
            to4(ip4(DOWN)).frame(),
            EndpointDown,
            DOWN,
        )
        .told(Told::HostUnreachable),
        Row::drop(
            "G8 TTL 1, to a machine",
            AT,
            to4(ip4(DB)).hops(1).frame(),
            TtlExceeded,
            DB,
        )
        .told(Told::TimeExceeded),
        Row::drop(
            "G8 larger than the machine's MTU",
            AT,
            to4(ip4(SMALL)).with(Inner::Udp(1, 2, 1300)).frame(),
            TooBig,
            SMALL,
        )
        .told(Told::TooBig(1280)),
        drop4("its own address", to4(ip4(WEB)), OwnDestination),
        drop6("its own address, IPv6", to6(ip6(WEB)), OwnDestination),
        drop6("an address of its prefix", to6(INSIDE6), OwnDestination),
    ]
}

/// G5.
fn host() -> Vec<Row> {
    use Reason::*;
    let deny = settings_flag::HOST_DENY;
    let nobody = netspawn_ebpf::abi::NOBODY;
    let to_uplink4 = to4(HOST4).via(mac(WEB), UPLINK).frame();
    let to_uplink6 = to6(HOST6).via(mac(WEB), UPLINK).frame();
    vec![
        Row::forward(
            "G5 IPv4",
            AT,
            to4(HOST4).frame(),
            ForwardedOut,
            nobody,
            to_uplink4,
        ),
        Row::forward(
            "G5 IPv6",
            AT,
            to6(HOST6).frame(),
            ForwardedOut,
            nobody,
            to_uplink6,
        ),
        Row::forward(
            "G5 from inside its prefix on the link, IPv4",
            AT,
            from4(ON_LINK4, HOST4).frame(),
            ForwardedOut,
            nobody,
            from4(ON_LINK4, HOST4).via(mac(WEB), UPLINK).frame(),
        ),
        Row::forward(
            "G5 from inside its prefix on the link, IPv6",
            AT,
            from6(ON_LINK6, HOST6).frame(),
            ForwardedOut,
            nobody,
            from6(ON_LINK6, HOST6).via(mac(WEB), UPLINK).frame(),
        ),
        Row::forward(
            "G5 via the host, IPv4",
            AT,
            to4(VIRTUAL4).frame(),
            ForwardedOut,
            nobody,
            to4(VIRTUAL4).via(mac(WEB), UPLINK).frame(),
        ),
        Row::forward(
            "G5 via the host, IPv6",
            AT,
            to6(VIRTUAL6).frame(),
            ForwardedOut,
            nobody,
            to6(VIRTUAL6).via(mac(WEB), UPLINK).frame(),
        ),
        drop4("G5 policy deny, IPv4", to4(HOST4), HostDenied).policy(deny),
        drop6("G5 policy deny, IPv6", to6(HOST6), HostDenied).policy(deny),
        drop4("G5 policy deny, via the host", to4(VIRTUAL4), HostDenied).policy(deny),
        drop6("G5 policy deny, via the host", to6(VIRTUAL6), HostDenied).policy(deny),
        drop4(
            "G5 no route back to its source",
            from4(INSIDE4, HOST4),
            NoRoute,
        ),
        Row::pass(
            "G5 the host has a route of its own to the machine",
            At::Port(DB),
            packet(mac(DB), port_mac(DB), CARVED4, HOST4).frame(),
            ForHost,
        ),
        Row::pass(
            "G5 the host has a route of its own to the machine, IPv6",
            At::Port(DB),
            packet(mac(DB), port_mac(DB), CARVED6, HOST6).frame(),
            ForHost,
        ),
        drop6(
            "P7 what may be an advertisement for the host behind an extension header",
            to6(HOST6).hops(255).with(Inner::HopByHop),
            BadFrame,
        ),
        drop6(
            "P7 what may be an advertisement for the host in a fragment",
            to6(HOST6).hops(255).with(Inner::Fragment),
            BadFrame,
        ),
        drop6(
            "P7 what may be a router advertisement for the port behind an extension header",
            from6(guest_link_local(WEB), port_link_local(WEB))
                .hops(255)
                .with(Inner::HopByHop),
            BadFrame,
        ),
        Row::forward(
            "G5 an extension header and too few hops for neighbor discovery",
            AT,
            to6(HOST6).hops(254).with(Inner::HopByHop).frame(),
            ForwardedOut,
            nobody,
            to6(HOST6)
                .hops(254)
                .with(Inner::HopByHop)
                .via(mac(WEB), UPLINK)
                .frame(),
        ),
        Row::pass(
            "G5 the port's link-local address",
            AT,
            from6(guest_link_local(WEB), port_link_local(WEB)).frame(),
            ForHost,
        ),
        drop6(
            "G5 the port's link-local address, policy deny",
            from6(guest_link_local(WEB), port_link_local(WEB)),
            HostDenied,
        )
        .policy(deny),
    ]
}

/// G6 to G8.
fn outside() -> Vec<Row> {
    use Reason::*;
    let nobody = netspawn_ebpf::abi::NOBODY;
    let out4 = |name, packet: Packet<Ipv4>| {
        let out = packet.hop(UPLINK, ROUTER).frame();
        Row::forward(name, AT, packet.frame(), ForwardedOut, nobody, out)
    };
    let out6 = |name, packet: Packet<Ipv6>| {
        let out = packet.hop(UPLINK, ROUTER).frame();
        Row::forward(name, AT, packet.frame(), ForwardedOut, nobody, out)
    };
    // The kernel fills the Ethernet addresses in when it has resolved them.
    let asked4 = to4(UNRESOLVED4);
    let asked6 = to6(UNRESOLVED6);
    let behind4 = packet(mac(TAGGED), port_mac(TAGGED), ip4(TAGGED), BEHIND_VLAN4);
    let behind6 = packet(mac(TAGGED), port_mac(TAGGED), ip6(TAGGED), BEHIND_VLAN6);
    vec![
        out4("G6 IPv4", to4(FAR4)),
        out4("G6 IPv4 TCP", to4(FAR4).with(Inner::Tcp(1))),
        out4("G6 IPv4 to a station", to4(ASKER4)),
        out4("G6 IPv4 from inside its prefix", from4(INSIDE4, FAR4)),
        out4("G6 IPv4 options", to4(FAR4).with(Inner::Options(40, 1, 2))),
        out4("G6 IPv4 a fragment", to4(FAR4).with(Inner::Fragment)),
        out4(
            "G6 IPv4 1,500 bytes",
            to4(FAR4).with(Inner::Udp(1, 2, 1472)),
        ),
        out6("G6 IPv6", to6(FAR6)),
        out6("G6 IPv6 from inside its prefix", from6(INSIDE6, FAR6)),
        out6("G6 IPv6 extension header", to6(FAR6).with(Inner::HopByHop)),
        out6("G6 IPv6 a fragment", to6(FAR6).with(Inner::Fragment)),
        Row::forward(
            "G7 neighbor unresolved, IPv4",
            AT,
            asked4.frame(),
            ForwardedOut,
            nobody,
            asked4.hop(mac(WEB), port_mac(WEB)).frame(),
        ),
        Row::forward(
            "G7 neighbor unresolved, IPv6",
            AT,
            asked6.frame(),
            ForwardedOut,
            nobody,
            asked6.hop(mac(WEB), port_mac(WEB)).frame(),
        ),
        Row::forward(
            "G7 a neighbor on the link, IPv4",
            AT,
            to4(NEIGHBOR4).frame(),
            ForwardedOut,
            nobody,
            to4(NEIGHBOR4).hop(mac(WEB), port_mac(WEB)).frame(),
        ),
        Row::forward(
            "G7 a neighbor on the link, IPv6",
            AT,
            to6(NEIGHBOR6).frame(),
            ForwardedOut,
            nobody,
            to6(NEIGHBOR6).hop(mac(WEB), port_mac(WEB)).frame(),
        ),
        tagged_out(
            "G6 by the VLAN's own interface",
            behind4.frame(),
            behind4.hop(UPLINK, ROUTER).frame(),
        ),
        tagged_out(
            "G6 by the VLAN's own interface, IPv6",
            behind6.frame(),
            behind6.hop(UPLINK, ROUTER).frame(),
        ),
        drop4(
            "G7 by a VLAN that is not the machine's",
            to4(BEHIND_VLAN4),
            NoRoute,
        )
        .told(Told::NoRoute),
        drop6(
            "G7 by a VLAN that is not the machine's, IPv6",
            to6(BEHIND_VLAN6),
            NoRoute,
        )
        .told(Told::NoRoute),
        drop4("G7 no route, IPv4", to4([8, 8, 8, 8]), NoRoute).told(Told::NoRoute),
        drop6("G7 no route, IPv6", to6([0x26; 16]), NoRoute).told(Told::NoRoute),
        drop4("G7 a route that refuses, IPv4", to4(REFUSED4), NoRoute).told(Told::NoRoute),
        drop6("G7 a route that refuses, IPv6", to6(REFUSED6), NoRoute).told(Told::NoRoute),
        drop4("G8 TTL 1", to4(FAR4).hops(1), TtlExceeded).told(Told::TimeExceeded),
        drop6("G8 hop limit 1", to6(FAR6).hops(1), TtlExceeded).told(Told::TimeExceeded),
        drop4(
            "G8 larger than the path's MTU, IPv4",
            to4(UNRESOLVED4).with(Inner::Udp(1, 2, 1373)),
            TooBig,
        )
        .told(Told::TooBig(1400)),
        drop6(
            "G8 larger than the path's MTU, IPv6",
            to6(UNRESOLVED6).with(Inner::Udp(1, 2, 1353)),
            TooBig,
        )
        .told(Told::TooBig(1400)),
    ]
}

/// A frame of `TAGGED` that leaves by an interface which does the tagging.
fn tagged_out(name: &'static str, frame: Vec<u8>, out: Vec<u8>) -> Row {
    Row::forward(
        name,
        At::Port(TAGGED),
        frame,
        Reason::ForwardedOut,
        netspawn_ebpf::abi::NOBODY,
        out,
    )
}

/// The gateway's ping, which DESIGN.md promises.
fn gateway() -> Vec<Row> {
    use Reason::*;
    // Type, code, checksum, identifier, sequence, data.
    let echo4 = |kind: u8, check: [u8; 2]| {
        Inner::Other(1, vec![kind, 0, check[0], check[1], 0, 1, 0, 2, 9, 9])
    };
    let ping4 = to4(GATEWAY4).with(echo4(8, [0xee, 0xf3]));
    let pong4 = packet(port_mac(WEB), mac(WEB), GATEWAY4, ip4(WEB)).with(echo4(0, [0xf6, 0xf3]));
    let ping6 = |kind, source: Ipv6, destination: Ipv6, source_mac, destination_mac, hops| {
        super::build::Icmp6 {
            source_mac,
            destination_mac,
            source,
            destination,
            hops,
            kind,
            code: 0,
            head: [0, 1, 0, 2],
            body: vec![9, 9, 9],
        }
        .frame()
    };
    let local = guest_link_local(WEB);
    vec![
        Row::answer(
            "the gateway's ping (RFC 792)",
            AT,
            ping4.frame(),
            AnsweredEcho,
            pong4.frame(),
        ),
        Row::answer(
            "the gateway's ping (RFC 4443 4.2)",
            AT,
            ping6(128, ip6(WEB), GATEWAY6, mac(WEB), port_mac(WEB), 64),
            AnsweredEcho,
            ping6(129, GATEWAY6, ip6(WEB), port_mac(WEB), mac(WEB), 64),
        ),
        Row::answer(
            "the gateway's ping from a link-local address",
            AT,
            ping6(128, local, GATEWAY6, mac(WEB), port_mac(WEB), 1),
            AnsweredEcho,
            ping6(129, GATEWAY6, local, port_mac(WEB), mac(WEB), 64),
        ),
        Row::answer(
            "the gateway's ping where machines may not reach the host",
            AT,
            ping4.frame(),
            AnsweredEcho,
            pong4.frame(),
        )
        .policy(settings_flag::HOST_DENY),
        Row::drop(
            "the gateway's ping in fragments",
            AT,
            super::build::fix4(patch(ping4.frame(), 20, &[0x20, 0])),
            LinkLocal,
            WEB,
        ),
        drop4(
            "the gateway has no other service, IPv4",
            to4(GATEWAY4),
            LinkLocal,
        ),
        drop6(
            "the gateway has no other service, IPv6",
            to6(GATEWAY6),
            LinkLocal,
        ),
        drop4(
            "IPv4 link-local destination (RFC 3927 2.7)",
            to4([169, 254, 9, 9]),
            LinkLocal,
        ),
        drop6(
            "IPv6 link-local destination of another",
            to6(guest_link_local(DB)),
            LinkLocal,
        ),
    ]
}

/// G9 to G11, and what is malformed.
fn rest() -> Vec<Row> {
    use Reason::*;
    let frame4 = to4(FAR4).frame();
    let frame6 = to6(FAR6).frame();
    let drop = |name, frame, reason| Row::drop(name, AT, frame, reason, WEB);
    let tagged4 = |vlan| tagged(&frame4, vlan);
    let mut double = tagged4(5);
    double[12..14].copy_from_slice(&[0x88, 0xa8]);
    vec![
        drop4(
            "G9 broadcast",
            to4([255; 4]).via(mac(WEB), BROADCAST),
            Multicast,
        ),
        drop4(
            "G9 multicast, IPv4",
            to4([224, 0, 0, 251]).via(mac(WEB), [1, 0, 0x5e, 0, 0, 251]),
            Multicast,
        ),
        drop4(
            "G9 multicast address, the gateway's MAC",
            to4([239, 1, 2, 3]),
            Multicast,
        ),
        drop4(
            "G9 unicast address, broadcast MAC",
            to4(ip4(DB)).via(mac(WEB), BROADCAST),
            Multicast,
        ),
        drop6(
            "G9 multicast, IPv6",
            to6(ALL_NODES).via(mac(WEB), [0x33, 0x33, 0, 0, 0, 1]),
            Multicast,
        ),
        drop6(
            "G9 multicast address, the gateway's MAC, IPv6",
            to6(ALL_NODES),
            Multicast,
        ),
        drop4(
            "a MAC that is not the gateway's, IPv4",
            to4(FAR4).via(mac(WEB), mac(DB)),
            WrongGateway,
        ),
        drop6(
            "a MAC that is not the gateway's, IPv6",
            to6(FAR6).via(mac(WEB), mac(DB)),
            WrongGateway,
        ),
        drop(
            "G10 LLDP",
            other(mac(WEB), [1, 0x80, 0xc2, 0, 0, 0xe], 0x88cc),
            EtherType,
        ),
        drop(
            "G10 spanning tree",
            other(mac(WEB), [1, 0x80, 0xc2, 0, 0, 0], 0x0026),
            EtherType,
        ),
        drop(
            "G10 802.1X",
            other(mac(WEB), [1, 0x80, 0xc2, 0, 0, 3], 0x888e),
            EtherType,
        ),
        drop("G11 a tag beside the frame", frame4.clone(), Vlan).vlan(5),
        drop("G11 a priority tag beside the frame", frame4.clone(), Vlan).vlan(0),
        drop("G11 a tag in the frame", tagged4(5), Vlan),
        drop("G11 802.1ad in the frame", double, Vlan),
        drop(
            "G11 a tag of the old type",
            patch(tagged4(5), 12, &[0x91, 0]),
            Vlan,
        ),
        drop(
            "G1 loopback destination",
            to4([127, 0, 0, 1]).frame(),
            MartianDestination,
        ),
        drop(
            "G1 destination 0.0.0.0",
            to4([0; 4]).frame(),
            MartianDestination,
        ),
        drop(
            "G1 destination ::",
            to6([0; 16]).frame(),
            MartianDestination,
        ),
        drop("truncated, IPv4", cut(frame4.clone(), 33), BadFrame),
        drop("truncated, IPv6", cut(frame6.clone(), 53), BadFrame),
        drop("F8 IHL 4", patch(frame4.clone(), 14, &[0x44]), BadHeader),
        drop("F8 checksum", patch(frame4.clone(), 24, &[0, 0]), BadHeader),
        drop(
            "F8 total length past the frame",
            super::build::fix4(patch(frame4, 16, &[0, 61])),
            BadHeader,
        ),
        drop(
            "F8 payload length past the frame",
            patch(frame6, 18, &[0, 41]),
            BadHeader,
        ),
    ]
}
