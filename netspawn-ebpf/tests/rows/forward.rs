//! Rows F1 to F11: from the network, and from the host itself, to machines.

use netspawn_ebpf::{
    abi::{NOBODY, Owner},
    verdict::Reason,
    wire::{Ipv4, Ipv6},
};

use super::{
    At, Row, Told,
    build::{Inner, Packet, cut, first_byte4, fix4, packet, pad, patch, tagged},
    world::*,
};

const UDP_1472: Inner = Inner::Udp(4000, 5000, 1472);
const UDP_1452: Inner = Inner::Udp(4000, 5000, 1452);

pub fn rows() -> Vec<Row> {
    [network4(), network6(), bad4(), bad6(), host()].concat()
}

fn to4(destination: Ipv4) -> Packet<Ipv4> {
    packet(ASKER, UPLINK, ASKER4, destination)
}

fn to6(destination: Ipv6) -> Packet<Ipv6> {
    packet(ASKER, UPLINK, ASKER6, destination)
}

fn in4(name: &'static str, packet: Packet<Ipv4>, id: Owner) -> Row {
    let out = packet.hop(port_mac(id), mac(id)).frame();
    Row::forward(
        name,
        At::Uplink,
        packet.frame(),
        Reason::ForwardedIn,
        id,
        out,
    )
}

fn in6(name: &'static str, packet: Packet<Ipv6>, id: Owner) -> Row {
    let out = packet.hop(port_mac(id), mac(id)).frame();
    Row::forward(
        name,
        At::Uplink,
        packet.frame(),
        Reason::ForwardedIn,
        id,
        out,
    )
}

fn network4() -> Vec<Row> {
    use Reason::*;
    let at = At::Uplink;
    let web = to4(ip4(WEB));
    let small = to4(ip4(SMALL));
    let drop =
        |name, packet: Packet<Ipv4>, reason, id| Row::drop(name, at, packet.frame(), reason, id);
    let from = |source| Packet {
        source,
        ..to4(ip4(WEB))
    };
    let padded = Packet {
        inner: Inner::Udp(1, 2, 3),
        ..web.clone()
    };
    vec![
        in4("F1 UDP (RFC 1812 5.3.1)", web.clone(), WEB),
        in4("F1 TCP", web.with(Inner::Tcp(100)), WEB),
        in4("F1 inside a prefix", to4(INSIDE4), WEB),
        in4(
            "F1 inside a longer prefix of another machine",
            to4(CARVED4),
            DB,
        ),
        in4("F1 TTL 255", web.hops(255), WEB),
        in4("F1 TTL 2", web.hops(2), WEB),
        in4("F1 1,500 bytes", web.with(UDP_1472), WEB),
        in4("F1 to a tap", to4(ip4(BRIDGE)), BRIDGE),
        in4(
            "F1 with the tag of the machine's VLAN",
            to4(ip4(TAGGED)),
            TAGGED,
        )
        .vlan(VLAN),
        Row::pass("F1 with another tag", at, web.frame(), VlanPass).vlan(VLAN),
        Row::pass("F1 without the tag", at, to4(ip4(TAGGED)).frame(), VlanPass),
        drop("F2 TTL 1 (RFC 1812 5.3.1)", web.hops(1), TtlExceeded, WEB).told(Told::TimeExceeded),
        drop("F2 TTL 0", web.hops(0), TtlExceeded, WEB).told(Told::TimeExceeded),
        drop(
            "F3 larger than the port's MTU (RFC 1191)",
            small.with(UDP_1472),
            TooBig,
            SMALL,
        )
        .told(Told::TooBig(1280)),
        in4(
            "F3 as large as the port's MTU",
            small.with(Inner::Udp(1, 2, 1252)),
            SMALL,
        ),
        drop(
            "F3 one byte larger",
            small.with(Inner::Udp(1, 2, 1253)),
            TooBig,
            SMALL,
        )
        .told(Told::TooBig(1280)),
        in4("F5 segments fit: TCP", small.with(Inner::Tcp(2480)), SMALL).gso(1240),
        in4(
            "F5 segments fit: UDP",
            small.with(Inner::Udp(1, 2, 2504)),
            SMALL,
        )
        .gso(1252),
        drop(
            "F5 segments do not fit: TCP",
            small.with(Inner::Tcp(2480)),
            TooBig,
            SMALL,
        )
        .told(Told::TooBig(1280))
        .gso(1241),
        drop(
            "F5 segments do not fit: UDP",
            small.with(Inner::Udp(1, 2, 2504)),
            TooBig,
            SMALL,
        )
        .told(Told::TooBig(1280))
        .gso(1253),
        in4(
            "F6 four bytes of IP options",
            web.with(Inner::Options(4, 1, 2)),
            WEB,
        ),
        in4(
            "F6 forty bytes of IP options",
            web.with(Inner::Options(40, 1, 2)),
            WEB,
        ),
        in4("F6 a fragment", web.with(Inner::Fragment), WEB),
        in4(
            "F6 a protocol of no number",
            web.with(Inner::Other(253, vec![1, 2, 3])),
            WEB,
        ),
        in4(
            "F6 nothing behind the header",
            web.with(Inner::Other(253, vec![])),
            WEB,
        ),
        drop(
            "F7 source is a machine's (RFC 1812 5.3.7)",
            from(ip4(DB)),
            MartianSource,
            WEB,
        ),
        drop("F7 source is the host's", from(HOST4), MartianSource, WEB),
        drop(
            "F7 source is via the host",
            from(VIRTUAL4),
            MartianSource,
            WEB,
        ),
        drop(
            "F7 source is in a machine's prefix",
            from(INSIDE4),
            MartianSource,
            WEB,
        ),
        drop(
            "F7 source multicast",
            from([224, 0, 0, 9]),
            MartianSource,
            WEB,
        ),
        drop("F7 source broadcast", from([255; 4]), MartianSource, WEB),
        drop(
            "F7 source multicast, the last one",
            from([239, 255, 255, 255]),
            MartianSource,
            WEB,
        ),
        drop(
            "F7 source is the machines' gateway",
            from(netspawn_ebpf::abi::GATEWAY4),
            MartianSource,
            WEB,
        ),
        in4(
            "F7 source link-local, a router's",
            from([169, 254, 1, 2]),
            WEB,
        ),
        in4("F7 source reserved, a router's", from([240, 0, 0, 1]), WEB),
        in4(
            "F7 source reserved, the last one",
            from([255, 255, 255, 254]),
            WEB,
        ),
        drop(
            "F7 source loopback",
            from([127, 0, 0, 1]),
            MartianSource,
            WEB,
        ),
        drop("F7 source 0/8", from([0, 0, 0, 7]), MartianSource, WEB),
        drop(
            "F7 source is the destination",
            from(ip4(WEB)),
            MartianSource,
            WEB,
        ),
        drop(
            "F9 machine not up (RFC 1812 4.3.3.1)",
            to4(ip4(DOWN)),
            EndpointDown,
            DOWN,
        )
        .told(Told::HostUnreachable),
        Row::pass("F10 nobody's", at, to4(FREE4).frame(), NotOwned),
        Row::pass("F10 the host's", at, to4(HOST4).frame(), ForHost),
        Row::pass("F10 via the host", at, to4(VIRTUAL4).frame(), ForHost),
        Row::pass(
            "F10 TTL 1, not ours to count",
            at,
            to4(HOST4).hops(1).frame(),
            ForHost,
        ),
        Row::pass("F10 broadcast", at, to4([255; 4]).frame(), NotOwned),
        Row::pass(
            "F10 to another station's MAC",
            at,
            web.via(ASKER, ROUTER).frame(),
            NotForUs,
        ),
        Row::forward(
            "F11 short, with padding",
            at,
            pad(padded.frame(), 60, 0xcc),
            ForwardedIn,
            WEB,
            pad(padded.hop(port_mac(WEB), mac(WEB)).frame(), 60, 0xcc),
        ),
        Row::forward(
            "S3 F11 long, with trailing bytes",
            at,
            pad(padded.frame(), 1600, 0xcc),
            ForwardedIn,
            WEB,
            pad(padded.hop(port_mac(WEB), mac(WEB)).frame(), 60, 0xcc),
        ),
    ]
}

fn network6() -> Vec<Row> {
    use Reason::*;
    let at = At::Uplink;
    let web = to6(ip6(WEB));
    let small = to6(ip6(SMALL));
    let drop =
        |name, packet: Packet<Ipv6>, reason, id| Row::drop(name, at, packet.frame(), reason, id);
    let from = |source| Packet {
        source,
        ..to6(ip6(WEB))
    };
    let mut loopback = [0; 16];
    loopback[15] = 1;
    let mut group = [0; 16];
    group[..2].copy_from_slice(&[0xff, 2]);
    let padded = Packet {
        inner: Inner::Other(59, vec![]),
        ..web.clone()
    };
    vec![
        in6("F1 UDP (RFC 8200 3)", web.clone(), WEB),
        in6("F1 TCP", web.with(Inner::Tcp(100)), WEB),
        in6("F1 inside a prefix", to6(INSIDE6), WEB),
        in6("F1 inside it, another machine's address", to6(CARVED6), DB),
        in6("F1 hop limit 255", web.hops(255), WEB),
        in6("F1 hop limit 2", web.hops(2), WEB),
        in6("F1 1,500 bytes", web.with(UDP_1452), WEB),
        in6("F1 to a tap", to6(ip6(BRIDGE)), BRIDGE),
        in6(
            "F1 with the tag of the machine's VLAN",
            to6(ip6(TAGGED)),
            TAGGED,
        )
        .vlan(VLAN),
        Row::pass("F1 with another tag", at, web.frame(), VlanPass).vlan(VLAN),
        drop("F2 hop limit 1 (RFC 8200 3)", web.hops(1), TtlExceeded, WEB).told(Told::TimeExceeded),
        drop("F2 hop limit 0", web.hops(0), TtlExceeded, WEB).told(Told::TimeExceeded),
        drop(
            "F3 larger than the port's MTU (RFC 8201)",
            small.with(UDP_1452),
            TooBig,
            SMALL,
        )
        .told(Told::TooBig(1280)),
        in6(
            "F3 as large as the port's MTU",
            small.with(Inner::Udp(1, 2, 1232)),
            SMALL,
        ),
        drop(
            "F3 one byte larger",
            small.with(Inner::Udp(1, 2, 1233)),
            TooBig,
            SMALL,
        )
        .told(Told::TooBig(1280)),
        in6("F5 segments fit: TCP", small.with(Inner::Tcp(2440)), SMALL).gso(1220),
        drop(
            "F5 segments do not fit: TCP",
            small.with(Inner::Tcp(2440)),
            TooBig,
            SMALL,
        )
        .told(Told::TooBig(1280))
        .gso(1221),
        in6("F6 a hop-by-hop header", web.with(Inner::HopByHop), WEB),
        in6("F6 a fragment", web.with(Inner::Fragment), WEB),
        in6(
            "F6 an unknown transport",
            web.with(Inner::Other(253, vec![128, 0, 1, 2, 3, 4])),
            WEB,
        ),
        in6("F6 no next header", web.with(Inner::Other(59, vec![])), WEB),
        drop(
            "F7 source is a machine's",
            from(ip6(DB)),
            MartianSource,
            WEB,
        ),
        drop("F7 source is the host's", from(HOST6), MartianSource, WEB),
        drop(
            "F7 source is via the host",
            from(VIRTUAL6),
            MartianSource,
            WEB,
        ),
        drop(
            "F7 source is in a machine's prefix",
            from(INSIDE6),
            MartianSource,
            WEB,
        ),
        drop(
            "F7 source multicast (RFC 4291 2.7)",
            from(group),
            MartianSource,
            WEB,
        ),
        drop(
            "F7 source loopback (RFC 4291 2.5.3)",
            from(loopback),
            MartianSource,
            WEB,
        ),
        drop(
            "F7 source unspecified (RFC 4291 2.5.2)",
            from([0; 16]),
            MartianSource,
            WEB,
        ),
        drop(
            "F7 source is the destination",
            from(ip6(WEB)),
            MartianSource,
            WEB,
        ),
        drop(
            "F7 source link-local (RFC 4291 2.5.6)",
            from(guest_link_local(9)),
            MartianSource,
            WEB,
        ),
        drop(
            "F7 source IPv4-mapped (RFC 4291 2.5.5.2)",
            from([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 203, 0, 113, 200]),
            MartianSource,
            WEB,
        ),
        drop(
            "F9 machine not up (RFC 4443 3.1)",
            to6(ip6(DOWN)),
            EndpointDown,
            DOWN,
        )
        .told(Told::HostUnreachable),
        Row::pass("F10 nobody's", at, to6(FREE6).frame(), NotOwned),
        Row::pass("F10 the host's", at, to6(HOST6).frame(), ForHost),
        Row::pass("F10 via the host", at, to6(VIRTUAL6).frame(), ForHost),
        Row::pass(
            "F10 to another station's MAC",
            at,
            web.via(ASKER, ROUTER).frame(),
            NotForUs,
        ),
        Row::forward(
            "F11 short, with padding",
            at,
            pad(padded.frame(), 60, 0xcc),
            ForwardedIn,
            WEB,
            pad(padded.hop(port_mac(WEB), mac(WEB)).frame(), 60, 0xcc),
        ),
    ]
}

/// F8.
fn bad4() -> Vec<Row> {
    use Reason::*;
    let frame = to4(ip4(WEB)).frame();
    let drop = |name, frame| Row::drop(name, At::Uplink, frame, BadHeader, WEB);
    let options = to4(ip4(WEB)).with(Inner::Options(40, 1, 2)).frame();
    let length = |length: u16| fix4(patch(frame.clone(), 16, &length.to_be_bytes()));
    vec![
        drop(
            "F8 IHL 4 (RFC 1812 5.2.2)",
            patch(frame.clone(), 14, &[0x44]),
        ),
        drop("F8 IHL 0", patch(frame.clone(), 14, &[0x40])),
        drop(
            "F8 IHL 4 under a right checksum",
            first_byte4(frame.clone(), 0x44),
        ),
        drop(
            "F8 version 5 under a right checksum",
            first_byte4(frame.clone(), 0x55),
        ),
        drop(
            "F8 IHL 15 where there are no options",
            patch(frame.clone(), 14, &[0x4f]),
        ),
        drop("F8 version 6", patch(frame.clone(), 14, &[0x65])),
        drop("F8 version 0", patch(frame.clone(), 14, &[0x05])),
        drop("F8 total length past the frame", length(61)),
        drop("F8 total length far past the frame", length(0xffff)),
        drop("F8 total length below the header", length(19)),
        drop("F8 total length 0", length(0)),
        drop(
            "F8 header checksum off by one",
            patch(frame.clone(), 24, &[frame[24].wrapping_add(1)]),
        ),
        drop("F8 header checksum zero", patch(frame.clone(), 24, &[0, 0])),
        drop(
            "F8 an option changed under the checksum",
            patch(options.clone(), 73, &[0]),
        ),
        drop(
            "F8 total length within the options",
            fix4(patch(options.clone(), 16, &[0, 40])),
        ),
        drop("F8 truncated in the options", cut(options, 50)),
        drop("F8 truncated behind the header", cut(frame.clone(), 40)),
        Row::pass(
            "F8 truncated in the header",
            At::Uplink,
            cut(frame.clone(), 33),
            Malformed,
        ),
        Row::pass(
            "F8 no more than an Ethernet header",
            At::Uplink,
            cut(frame, 14),
            Malformed,
        ),
    ]
}

fn bad6() -> Vec<Row> {
    use Reason::*;
    let frame = to6(ip6(WEB)).frame();
    let drop = |name, frame| Row::drop(name, At::Uplink, frame, BadHeader, WEB);
    vec![
        drop(
            "F8 version 4 (RFC 8200 3)",
            patch(frame.clone(), 14, &[0x40]),
        ),
        drop(
            "F8 payload length past the frame",
            patch(frame.clone(), 18, &41_u16.to_be_bytes()),
        ),
        drop(
            "F8 payload length far past the frame",
            patch(frame.clone(), 18, &[0xff, 0xff]),
        ),
        drop("F8 truncated behind the header", cut(frame.clone(), 60)),
        Row::pass(
            "F8 truncated in the header",
            At::Uplink,
            cut(frame.clone(), 53),
            Malformed,
        ),
        Row::pass(
            "F8 no more than an Ethernet header",
            At::Uplink,
            cut(frame, 14),
            Malformed,
        ),
    ]
}

/// The host's own packets: no hop is taken, they are its own.
fn host() -> Vec<Row> {
    use Reason::*;
    let at = At::Host;
    let to4 = |destination| packet(UPLINK, port_mac(WEB), HOST4, destination);
    let to6 = |destination| packet(UPLINK, port_mac(WEB), HOST6, destination);
    let out4 = |name, packet: Packet<Ipv4>, id| {
        let out = packet.via(port_mac(id), mac(id)).frame();
        Row::forward(name, at, packet.frame(), ForwardedIn, id, out)
    };
    let out6 = |name, packet: Packet<Ipv6>, id| {
        let out = packet.via(port_mac(id), mac(id)).frame();
        Row::forward(name, at, packet.frame(), ForwardedIn, id, out)
    };
    vec![
        out4("the host to a machine, IPv4", to4(ip4(WEB)), WEB),
        out4("the host to a prefix, IPv4", to4(CARVED4), DB),
        out4("the host to a machine, TTL 1", to4(ip4(WEB)).hops(1), WEB),
        out4("the host to a machine of any tenant", to4(ip4(ACME)), ACME),
        out6("the host to a machine, IPv6", to6(ip6(WEB)), WEB),
        out6("the host to a prefix, IPv6", to6(INSIDE6), WEB),
        out6(
            "the host to a machine, hop limit 1",
            to6(ip6(WEB)).hops(1),
            WEB,
        ),
        Row::drop(
            "the host to a machine that is not up",
            at,
            to4(ip4(DOWN)).frame(),
            EndpointDown,
            DOWN,
        )
        .told(Told::HostUnreachable),
        Row::drop(
            "the host, larger than the port's MTU",
            at,
            to4(ip4(SMALL)).with(UDP_1472).frame(),
            TooBig,
            SMALL,
        )
        .told(Told::TooBig(1280)),
        Row::pass(
            "the host to a station, IPv4",
            at,
            to4(ASKER4).frame(),
            NotOwned,
        ),
        Row::pass(
            "the host to a station, IPv6",
            at,
            to6(ASKER6).frame(),
            NotOwned,
        ),
        Row::pass(
            "the host to what is via itself",
            at,
            to4(VIRTUAL4).frame(),
            ForHost,
        ),
        Row::pass(
            "U2 a socket of the host as a machine, IPv4",
            at,
            packet(UPLINK, ROUTER, ip4(WEB), ASKER4).frame(),
            NotOwned,
        ),
        Row::pass(
            "U2 a socket of the host as a machine, IPv6",
            at,
            packet(UPLINK, ROUTER, INSIDE6, ASKER6).frame(),
            NotOwned,
        ),
        Row::drop(
            "U2 a machine's source from another station, IPv4",
            at,
            packet(ASKER, ROUTER, ip4(WEB), ASKER4).frame(),
            MartianSource,
            NOBODY,
        ),
        Row::drop(
            "U2 a machine's source from another station, IPv6",
            at,
            packet(ASKER, ROUTER, INSIDE6, ASKER6).frame(),
            MartianSource,
            NOBODY,
        ),
        Row::drop(
            "U2 a machine's source from another station to a machine",
            at,
            packet(ASKER, port_mac(DB), ip4(WEB), ip4(DB)).frame(),
            MartianSource,
            NOBODY,
        ),
        Row::drop(
            "U2 a machine's source from another station, with a tag",
            at,
            packet(ASKER, ROUTER, ip4(WEB), ASKER4).frame(),
            MartianSource,
            NOBODY,
        )
        .vlan(7),
        Row::drop(
            "U2 a machine's source from another station, behind tags in the frame",
            at,
            tagged(
                &tagged(&packet(ASKER, ROUTER, ip6(WEB), ASKER6).frame(), 7),
                9,
            ),
            MartianSource,
            NOBODY,
        ),
    ]
}
