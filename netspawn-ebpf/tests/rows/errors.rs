//! ICMP errors: about what, how much is quoted, and from where (rows F2, F3, F4, F9, G7,
//! G8). That the rows of `forward` and `guard` are told is said there.

use netspawn_ebpf::{
    verdict::Reason,
    wire::{Ipv4, Ipv6},
};

use super::{
    At, Row, Told,
    build::{Inner, Packet, fix4, packet, patch},
    world::*,
};

pub fn rows() -> Vec<Row> {
    [quotes(), never(), senders()].concat()
}

fn in4(inner: Inner) -> Packet<Ipv4> {
    packet(ASKER, UPLINK, ASKER4, ip4(WEB)).hops(1).with(inner)
}

fn in6(inner: Inner) -> Packet<Ipv6> {
    packet(ASKER, UPLINK, ASKER6, ip6(WEB)).hops(1).with(inner)
}

fn expired(name: &'static str, frame: Vec<u8>) -> Row {
    Row::drop(name, At::Uplink, frame, Reason::TtlExceeded, WEB)
}

fn told(name: &'static str, frame: Vec<u8>) -> Row {
    expired(name, frame).told(Told::TimeExceeded)
}

/// ICMP with a type, code 0, a right checksum over nothing else.
fn icmp4(kind: u8) -> Inner {
    Inner::Other(1, vec![kind, 0, !kind, 0xff, 0, 0, 0, 0])
}

/// The same number for ICMPv6, behind whatever header; no decision reads its checksum.
fn icmp6(kind: u8) -> Inner {
    Inner::Other(58, vec![kind, 0, 0, 0, 0, 0, 0, 0])
}

fn quotes() -> Vec<Row> {
    vec![
        told(
            "F2 an odd number of bytes",
            in4(Inner::Udp(1, 2, 33)).frame(),
        ),
        told(
            "F2 an odd number of bytes, IPv6",
            in6(Inner::Udp(1, 2, 33)).frame(),
        ),
        told(
            "F2 nothing but a header",
            in4(Inner::Other(253, vec![])).frame(),
        ),
        told(
            "F2 nothing but a header, IPv6",
            in6(Inner::Other(253, vec![])).frame(),
        ),
        told(
            "F2 IP options are quoted (RFC 1812 4.3.2.3)",
            in4(Inner::Options(40, 1, 2)).frame(),
        ),
        told(
            "F2 padding is not quoted",
            super::build::pad(in4(Inner::Udp(1, 2, 3)).frame(), 60, 0xff),
        ),
        told(
            "F2 548 bytes are quoted whole",
            in4(Inner::Udp(1, 2, 520)).frame(),
        ),
        told("F2 549 bytes are cut", in4(Inner::Udp(1, 2, 521)).frame()),
        told(
            "F2 1,232 bytes are quoted whole",
            in6(Inner::Udp(1, 2, 1184)).frame(),
        ),
        told(
            "F2 1,233 bytes are cut",
            in6(Inner::Udp(1, 2, 1185)).frame(),
        ),
        told(
            "F2 with a tag",
            packet(ASKER, UPLINK, ASKER4, ip4(TAGGED)).hops(1).frame(),
        )
        .charged(TAGGED)
        .vlan(VLAN),
    ]
}

/// RFC 1812 4.3.2.7, RFC 4443 2.4 (e), RFC 1191 4.
fn never() -> Vec<Row> {
    let unfragmented = packet(ASKER, UPLINK, ASKER4, ip4(SMALL)).with(Inner::Udp(1, 2, 1300));
    let may_fragment = fix4(patch(unfragmented.frame(), 20, &[0, 0]));
    let first = fix4(patch(in4(Inner::Udp(1, 2, 64)).frame(), 20, &[0x20, 0]));
    // Next header, reserved, offset and M, identification.
    let fragment = |next, offset: [u8; 2], kind| {
        let [high, low] = offset;
        in6(Inner::Other(
            44,
            vec![next, 0, high, low, 0, 0, 0, 1, kind, 0, 0, 0, 0, 0, 0, 0],
        ))
        .frame()
    };
    let behind = |next, kind| {
        in6(Inner::Other(
            0,
            vec![next, 0, 1, 4, 0, 0, 0, 0, kind, 0, 0, 0, 0, 0, 0, 0],
        ))
        .frame()
    };
    vec![
        expired("F2 about unreachable", in4(icmp4(3)).frame()),
        expired("F2 about source quench", in4(icmp4(4)).frame()),
        expired("F2 about a redirect", in4(icmp4(5)).frame()),
        expired("F2 about time exceeded", in4(icmp4(11)).frame()),
        expired("F2 about a parameter problem", in4(icmp4(12)).frame()),
        told("F2 about an echo request", in4(icmp4(8)).frame()),
        told("F2 about an echo reply", in4(icmp4(0)).frame()),
        expired(
            "F2 about a fragment that is not the first",
            in4(Inner::Fragment).frame(),
        ),
        told("F2 about a first fragment", first),
        expired("F2 about unreachable, IPv6", in6(icmp6(1)).frame()),
        expired("F2 about packet too big", in6(icmp6(2)).frame()),
        expired("F2 about an error of the future", in6(icmp6(127)).frame()),
        expired("F2 about a redirect, IPv6", in6(icmp6(137)).frame()),
        told("F2 about an echo request, IPv6", in6(icmp6(128)).frame()),
        expired("F2 about an error behind an extension", behind(58, 1)),
        told(
            "F2 about an echo request behind an extension",
            behind(58, 128),
        ),
        told("F2 about a first fragment, IPv6", fragment(58, [0, 1], 128)),
        expired(
            "F2 about an error in a first fragment",
            fragment(58, [0, 1], 1),
        ),
        told(
            "F2 about a fragment that is not the first, IPv6 (RFC 8200 4.5)",
            fragment(17, [0, 9], 0),
        ),
        told(
            "F2 about UDP behind an authentication header",
            in6(Inner::Other(
                51,
                [
                    [17, 1, 0, 0, 0, 0, 0, 1],
                    [0, 0, 0, 1, 0, 0, 0, 0],
                    [0, 1, 0, 2, 0, 8, 0, 0],
                ]
                .concat()[..20]
                    .to_vec(),
            ))
            .frame(),
        ),
        expired(
            "F2 about an error behind an authentication header",
            in6(Inner::Other(
                51,
                [
                    [58, 1, 0, 0, 0, 0, 0, 1],
                    [0, 0, 0, 1, 1, 0, 0, 0],
                    [0, 0, 0, 0, 0, 0, 0, 0],
                ]
                .concat()[..20]
                    .to_vec(),
            ))
            .frame(),
        ),
        expired(
            "F2 about ICMP whose type is behind the packet's end",
            super::build::pad(in4(Inner::Other(1, vec![])).frame(), 60, 0),
        ),
        expired(
            "F2 about ICMPv6 whose type is behind the packet's end",
            super::build::pad(in6(Inner::Other(58, vec![])).frame(), 64, 0xff),
        ),
        expired(
            "F2 to a group's Ethernet address (RFC 1812 4.3.2.7)",
            patch(in4(Inner::Udp(1, 2, 3)).frame(), 6, &[3]),
        ),
        expired(
            "F2 behind more extensions than are looked at",
            in6(Inner::Other(
                60,
                [
                    [60, 0, 1, 4, 0, 0, 0, 0],
                    [60, 0, 1, 4, 0, 0, 0, 0],
                    [60, 0, 1, 4, 0, 0, 0, 0],
                    [17, 0, 1, 4, 0, 0, 0, 0],
                    [0, 1, 0, 2, 0, 8, 0, 0],
                ]
                .concat(),
            ))
            .frame(),
        ),
        Row::drop(
            "F4 larger than the MTU, and may be fragmented",
            At::Uplink,
            may_fragment,
            Reason::TooBig,
            SMALL,
        ),
    ]
}

/// Where errors for machines and for the host come from.
fn senders() -> Vec<Row> {
    let from_web4 = |source| packet(mac(WEB), port_mac(WEB), source, FAR4).hops(1);
    let from_web6 = |source| packet(mac(WEB), port_mac(WEB), source, FAR6).hops(1);
    let at = At::Port(WEB);
    let expired =
        |name, frame| Row::drop(name, at, frame, Reason::TtlExceeded, WEB).told(Told::TimeExceeded);
    vec![
        expired("G8 from the uplink's address", from_web4(ip4(WEB)).frame()),
        expired(
            "G8 from the uplink's address, IPv6",
            from_web6(ip6(WEB)).frame(),
        ),
        expired(
            "G8 from the gateway's, without a way back",
            from_web4(INSIDE4).frame(),
        ),
        expired(
            "G8 from the gateway's, without a way back, IPv6",
            from_web6(INSIDE6).frame(),
        ),
        Row::drop(
            "the host to a machine that is not up, IPv6",
            At::Host,
            packet(UPLINK, ROUTER, HOST6, ip6(DOWN)).frame(),
            Reason::EndpointDown,
            DOWN,
        )
        .told(Told::HostUnreachable),
        Row::drop(
            "the host to a machine that is not up, by a link-layer group",
            At::Host,
            packet(UPLINK, [0x33, 0x33, 0, 0, 0, 1], HOST6, ip6(DOWN)).frame(),
            Reason::EndpointDown,
            DOWN,
        ),
    ]
}
