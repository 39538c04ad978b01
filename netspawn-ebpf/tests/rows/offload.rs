//! Rows S1 to S4: what a sender says of a frame beside its bytes.

use netspawn_ebpf::{
    abi::NOBODY,
    decide::offload::{MAX_SEGMENTS, gso},
    verdict::Reason,
    wire::{Ipv4, Ipv6},
};

use super::{
    At, Row, Told,
    build::{
        Arp, Icmp6, Inner, Packet, advertisement, other, packet, pad, patch, solicitation, tagged,
    },
    world::*,
};

const PORT: At = At::Port(WEB);

/// Where the transport header is behind plain headers.
const V4: u32 = 34;
const V6: u32 = 54;

const TCP: u32 = 16;
const UDP: u32 = 6;
const ICMP: u32 = 2;
const SCTP: u32 = 8;

pub fn rows() -> Vec<Row> {
    [
        sums4(),
        sums6(),
        extended(),
        sums_of_others(),
        neighbors(),
        types(),
        sizes(),
        lengths(),
        protocols(),
        host(),
    ]
    .concat()
}

fn out4(inner: Inner) -> Packet<Ipv4> {
    packet(mac(WEB), port_mac(WEB), ip4(WEB), FAR4).with(inner)
}

fn out6(inner: Inner) -> Packet<Ipv6> {
    packet(mac(WEB), port_mac(WEB), ip6(WEB), FAR6).with(inner)
}

fn in4(inner: Inner) -> Packet<Ipv4> {
    packet(ASKER, UPLINK, ASKER4, ip4(WEB)).with(inner)
}

fn in6(inner: Inner) -> Packet<Ipv6> {
    packet(ASKER, UPLINK, ASKER6, ip6(WEB)).with(inner)
}

/// A packet of a machine that goes on, and one from the network that does.
fn goes4(name: &'static str, inner: Inner) -> [Row; 2] {
    let (out, inwards) = (out4(inner.clone()), in4(inner));
    [
        Row::forward(
            name,
            PORT,
            out.frame(),
            Reason::ForwardedOut,
            NOBODY,
            out.hop(UPLINK, ROUTER).frame(),
        ),
        Row::forward(
            name,
            At::Uplink,
            inwards.frame(),
            Reason::ForwardedIn,
            WEB,
            inwards.hop(port_mac(WEB), mac(WEB)).frame(),
        ),
    ]
}

fn goes6(name: &'static str, inner: Inner) -> [Row; 2] {
    let (out, inwards) = (out6(inner.clone()), in6(inner));
    [
        Row::forward(
            name,
            PORT,
            out.frame(),
            Reason::ForwardedOut,
            NOBODY,
            out.hop(UPLINK, ROUTER).frame(),
        ),
        Row::forward(
            name,
            At::Uplink,
            inwards.frame(),
            Reason::ForwardedIn,
            WEB,
            inwards.hop(port_mac(WEB), mac(WEB)).frame(),
        ),
    ]
}

fn bad4(name: &'static str, inner: Inner) -> [Row; 2] {
    [(PORT, out4(inner.clone())), (At::Uplink, in4(inner))]
        .map(|(at, packet)| Row::drop(name, at, packet.frame(), Reason::BadOffload, WEB))
}

fn bad6(name: &'static str, inner: Inner) -> [Row; 2] {
    [(PORT, out6(inner.clone())), (At::Uplink, in6(inner))]
        .map(|(at, packet)| Row::drop(name, at, packet.frame(), Reason::BadOffload, WEB))
}

fn all(rows: Vec<[Row; 2]>) -> Vec<Row> {
    rows.into_iter().flatten().collect()
}

fn with(rows: [Row; 2], change: impl Fn(Row) -> Row) -> [Row; 2] {
    rows.map(change)
}

/// A sum at `start` of the frame and `offset` behind it.
fn sum(rows: [Row; 2], start: u32, offset: u32) -> [Row; 2] {
    with(rows, |row| row.partial(start, offset))
}

const SMALL_TCP: Inner = Inner::Tcp(64);
const SMALL_UDP: Inner = Inner::Udp(4000, 4789, 64);

fn sums4() -> Vec<Row> {
    let other = |protocol| Inner::Other(protocol, vec![0; 64]);
    all(vec![
        sum(goes4("S1 (a) TCP", SMALL_TCP), V4, TCP),
        sum(goes4("S1 (a) UDP", SMALL_UDP), V4, UDP),
        sum(goes4("S1 (a) ICMP", other(1)), V4, ICMP),
        sum(goes4("S1 (a) SCTP", other(132)), V4, SCTP),
        sum(goes4("S1 (a) DCCP", other(33)), V4, UDP),
        sum(goes4("S1 (a) GRE", other(47)), V4, 4),
        sum(
            goes4("S1 (a) behind IPv4 options", Inner::Options(12, 4000, 5000)),
            V4 + 12,
            UDP,
        ),
        sum(goes4("S1 (b) inside UDP", SMALL_UDP), V4 + 8 + 8 + 34, TCP),
        sum(goes4("S1 (b) first bytes inside UDP", SMALL_UDP), V4 + 8, 0),
        sum(goes4("S1 (b) last bytes inside UDP", SMALL_UDP), V4 + 8, 62),
        sum(goes4("S1 (b) IPIP", other(4)), V4 + 20, TCP),
        sum(goes4("S1 (b) SIT", other(41)), V4 + 40, UDP),
        sum(goes4("S1 (b) GRE", other(47)), V4 + 4 + 20, TCP),
        sum(goes4("S1 (b) MPLS", other(137)), V4 + 4 + 20, TCP),
        sum(bad4("S1 behind UDP's end", SMALL_UDP), V4 + 8, 63),
        sum(bad4("S1 behind TCP's end", Inner::Tcp(0)), V4 + 8, 11),
        sum(bad4("S1 into the source", SMALL_UDP), 14, 12),
        sum(bad4("S1 into the source, start before", SMALL_TCP), 0, 26),
        sum(bad4("S1 into the destination", SMALL_TCP), 30, 0),
        sum(bad4("S1 into Ethernet", SMALL_TCP), 0, 0),
        sum(bad4("S1 in front of the frame", SMALL_UDP), 0xffff_fff0, 34),
        sum(
            bad4("S1 in front of the frame, round to UDP's data", SMALL_UDP),
            0xffff_fff0,
            16 + V4 + 20,
        ),
        sum(bad4("S1 far behind the frame", SMALL_UDP), 60_000, 6),
        sum(bad4("S1 into TCP's ports", SMALL_TCP), V4, 0),
        sum(bad4("S1 into TCP's flags", SMALL_TCP), V4, 12),
        sum(bad4("S1 into TCP's data", SMALL_TCP), V4 + 20, 0),
        sum(bad4("S1 into UDP's ports", SMALL_UDP), V4, 2),
        sum(
            bad4("S1 over UDP's header into its data", SMALL_UDP),
            V4,
            16,
        ),
        sum(bad4("S1 from UDP's ports", SMALL_UDP), V4 + 2, 4),
        sum(bad4("S1 into ICMP's type", other(1)), V4, 0),
        sum(
            bad4("S1 into what an ICMP error quotes", other(1)),
            V4 + 8,
            16,
        ),
        sum(bad4("S1 into GRE's flags", other(47)), V4, 0),
        sum(bad4("S1 into an unknown protocol", other(253)), V4, 2),
        sum(bad4("S1 into ESP", other(50)), V4 + 8, 2),
        sum(bad4("S1 in a fragment", Inner::Fragment), V4, UDP),
        sum(
            bad4("S1 into IPv4 options", Inner::Options(12, 4000, 5000)),
            V4,
            UDP,
        ),
        sum(
            bad4("S1 into DHCP's data", Inner::Udp(68, 4000, 64)),
            V4 + 8,
            4,
        ),
        sum(
            bad4("S1 into DHCP's data, to a client", Inner::Udp(4000, 68, 64)),
            V4 + 8,
            4,
        ),
        sum(goes4("S1 (a) DHCP", Inner::Udp(68, 4000, 64)), V4, UDP),
    ])
}

fn sums6() -> Vec<Row> {
    let other = |protocol| Inner::Other(protocol, vec![0; 64]);
    all(vec![
        sum(goes6("S1 (a) TCP in IPv6", SMALL_TCP), V6, TCP),
        sum(goes6("S1 (a) UDP in IPv6", SMALL_UDP), V6, UDP),
        sum(goes6("S1 (a) SCTP in IPv6", other(132)), V6, SCTP),
        sum(goes6("S1 (b) inside UDP in IPv6", SMALL_UDP), V6 + 8, TCP),
        sum(goes6("S1 (b) IPv4 in IPv6", other(4)), V6 + 20, TCP),
        sum(goes6("S1 (b) IPv6 in IPv6", other(41)), V6 + 40, TCP),
        sum(goes6("S1 (b) GRE in IPv6", other(47)), V6 + 4, TCP),
        sum(bad6("S1 into the IPv6 source", SMALL_UDP), 22, 0),
        sum(
            bad6("S1 into the IPv6 source, all summed", SMALL_UDP),
            14,
            22,
        ),
        sum(bad6("S1 into the hop limit", SMALL_UDP), 14, 6),
        sum(bad6("S1 into UDP's ports in IPv6", SMALL_UDP), V6, 0),
        sum(
            bad6("S1 into DHCPv6's data", Inner::Udp(546, 9, 64)),
            V6 + 8,
            4,
        ),
        sum(
            bad6("S1 into DHCPv6's data, from 547", Inner::Udp(9, 547, 64)),
            V6 + 8,
            4,
        ),
        sum(
            bad6("S1 in a fragment of IPv6", Inner::Fragment),
            V6 + 8,
            UDP,
        ),
        sum(bad6("S1 into a fragment header", Inner::Fragment), V6, 2),
        sum(bad6("S1 behind the end in IPv6", SMALL_UDP), V6 + 8, 63),
    ])
}

/// Headers of eight bytes each, the last of them followed by TCP or UDP.
fn behind(headers: &[u8], last: u8, transport: Vec<u8>) -> Inner {
    let follows = headers.iter().skip(1).chain([&last]);
    let mut bytes = Vec::new();
    for next in follows {
        bytes.extend([*next, 0, 1, 4, 0, 0, 0, 0]);
    }
    bytes.extend(transport);
    Inner::Other(headers[0], bytes)
}

fn extended() -> Vec<Row> {
    let udp = || [&[0x0f, 0xa0, 0x12, 0xb5, 0, 72, 0, 0][..], &[0; 64]].concat();
    let dhcp = || [&[2, 34, 0x12, 0xb5, 0, 72, 0, 0][..], &[0; 64]].concat();
    let name = "S1 (a) behind extension headers, as TCP with options has it";
    all(vec![
        sum(goes6(name, behind(&[0], 6, vec![0x50; 40])), V6 + 8, TCP),
        sum(
            goes6("S1 (a) UDP behind two", behind(&[60, 43], 17, udp())),
            V6 + 16,
            UDP,
        ),
        sum(
            goes6(
                "S1 (a) UDP behind four",
                behind(&[0, 60, 43, 60], 17, udp()),
            ),
            V6 + 32,
            UDP,
        ),
        sum(
            goes6(
                "S1 (b) IPv6 in IPv6, with its limit",
                behind(&[60], 41, udp()),
            ),
            V6 + 8,
            TCP,
        ),
        sum(
            bad6(
                "S1 UDP behind five",
                behind(&[0, 60, 43, 60, 60], 17, udp()),
            ),
            V6 + 40,
            UDP,
        ),
        sum(
            bad6("S1 into an extension header", behind(&[60], 17, udp())),
            V6,
            2,
        ),
        sum(
            bad6(
                "S1 the length of an extension header",
                behind(&[60], 17, udp()),
            ),
            V6 + 1,
            0,
        ),
        sum(
            bad6("S1 into UDP's ports behind one", behind(&[60], 17, udp())),
            V6 + 8,
            2,
        ),
        sum(
            bad6(
                "S1 into DHCPv6's data behind one",
                behind(&[60], 17, dhcp()),
            ),
            V6 + 24,
            2,
        ),
        sum(
            bad6("S1 in a fragment behind one", behind(&[60, 44], 17, udp())),
            V6 + 16,
            UDP,
        ),
        sum(
            bad6(
                "S1 an extension header past the end",
                behind(&[60], 60, vec![]),
            ),
            V6 + 8,
            UDP,
        ),
    ])
}

/// What is not IP has nothing to be completed.
fn sums_of_others() -> Vec<Row> {
    let bad = |name, at, frame, id| Row::drop(name, at, frame, Reason::BadOffload, id);
    let request = |asker, source, target| Arp::who_has(target, asker, source).padded(0);
    let arp = request(mac(WEB), ip4(WEB), FAR4);
    vec![
        bad("S1 ARP of a machine", PORT, arp.clone(), WEB).partial(14, 14),
        bad("S1 ARP of a machine, its padding", PORT, arp, WEB).partial(42, 4),
        bad(
            "S1 another Ethernet type of a machine",
            PORT,
            other(mac(WEB), port_mac(WEB), 0x88cc),
            WEB,
        )
        .partial(20, 4),
        bad(
            "S1 ARP that would be answered",
            At::Uplink,
            request(ASKER, ASKER4, ip4(WEB)),
            NOBODY,
        )
        .partial(14, 14),
        bad(
            "S1 ARP for the host",
            At::Uplink,
            request(ASKER, ASKER4, HOST4),
            NOBODY,
        )
        .partial(14, 14),
        Row::pass(
            "S1 the host's own business",
            At::Uplink,
            packet(ASKER, UPLINK, ASKER4, HOST4).frame(),
            Reason::NotOwned,
        )
        .partial(26, 0),
        Row::drop(
            "S1 a client of DHCP",
            PORT,
            packet(mac(WEB), [0xff; 6], [0; 4], [255; 4])
                .with(Inner::Udp(68, 67, 240))
                .frame(),
            Reason::BadOffload,
            WEB,
        )
        .partial(V4 + 8, 4),
        Row::to_stack(
            "S1 (a) a client of DHCP",
            PORT,
            packet(mac(WEB), [0xff; 6], [0; 4], [255; 4])
                .with(Inner::Udp(68, 67, 240))
                .frame(),
            Reason::DhcpClient,
            packet(mac(WEB), port_mac(WEB), [0; 4], [255; 4])
                .with(Inner::Udp(68, 67, 240))
                .frame(),
        )
        .partial(V4, UDP),
        bad(
            "S1 an echo for the gateway",
            PORT,
            packet(
                mac(WEB),
                port_mac(WEB),
                ip4(WEB),
                netspawn_ebpf::abi::GATEWAY4,
            )
            .with(Inner::Other(1, vec![8, 0, 0, 0, 0, 1, 0, 1]))
            .frame(),
            WEB,
        )
        .partial(26, 0),
    ]
}

fn neighbors() -> Vec<Row> {
    let asked = solicitation(ip6(WEB), ASKER6, ASKER, &[]);
    vec![
        Row::pass(
            "S1 a solicitation that would be answered",
            At::Uplink,
            asked.frame(),
            Reason::NotOwned,
        )
        .partial(V6 + 8, 4),
        Row::drop(
            "S1 a solicitation to a machine's own address",
            At::Uplink,
            Icmp6 {
                destination: ip6(WEB),
                ..asked
            }
            .frame(),
            Reason::BadOffload,
            WEB,
        )
        .partial(V6 + 8, 4),
    ]
}

/// So many segments of that size, cut like that.
fn cut(rows: [Row; 2], kind: u32, size: u32) -> [Row; 2] {
    with(rows, |row| row.segments(kind, size))
}

/// SCTP whose longest fragment has so many bytes, behind 20 of IPv4 and 12 of its own.
fn fragments(rows: [Row; 2], longest: u32) -> [Row; 2] {
    with(rows, |row| {
        let mut row = row.partial(V4, SCTP).segments(gso::SCTP, gso::BY_FRAGMENTS);
        row.said.longest = longest;
        row
    })
}

fn types() -> Vec<Row> {
    let tcp = || Inner::Tcp(4000);
    let udp = || Inner::Udp(4000, 4789, 4000);
    let other = |protocol| Inner::Other(protocol, vec![0x50; 4000]);
    // Ports 4000 and 8472, then what is inside.
    let list = gso::FRAGLIST;
    let tunnel = |rows, kind| cut(sum(rows, V4 + 50, TCP), kind | gso::TCPV4, 1300);
    let tunnel6 = |rows, kind| cut(sum(rows, V6 + 50, TCP), kind | gso::TCPV6, 1300);
    let v4 = |rows, kind| cut(rows, kind, 1400);
    let tcp4 = |name| sum(goes4(name, tcp()), V4, TCP);
    let tcp6 = |name| sum(goes6(name, tcp()), V6, TCP);
    let not4 = |name| sum(bad4(name, tcp()), V4, TCP);
    let not6 = |name| sum(bad6(name, tcp()), V6, TCP);
    let udp4 = |name| sum(goes4(name, udp()), V4, UDP);
    let no_udp4 = |name| sum(bad4(name, udp()), V4, UDP);
    all(vec![
        v4(tcp4("S2 TCP"), gso::TCPV4),
        v4(
            tcp4("S2 TCP from a VM, with hints"),
            gso::TCPV4 | gso::DODGY | gso::TCP_ECN | gso::FIXED_ID | gso::PARTIAL | gso::TCP_ACCECN,
        ),
        v4(goes4("S2 TCP as it came in", tcp()), gso::TCPV4 | list),
        v4(tcp6("S2 TCP in IPv6"), gso::TCPV6),
        v4(udp4("S2 UDP, datagrams"), gso::UDP_L4),
        v4(goes4("S2 UDP as it came in", udp()), gso::UDP_L4 | list),
        cut(udp4("S2 UDP, fragments fill the MTU"), gso::UDP, 1480),
        tunnel(goes4("S2 inside UDP", udp()), gso::UDP_TUNNEL),
        tunnel(
            goes4("S2 inside UDP with a checksum", udp()),
            gso::UDP_TUNNEL_CSUM,
        ),
        tunnel(
            goes4("S2 GRE inside UDP", udp()),
            gso::UDP_TUNNEL | gso::GRE,
        ),
        tunnel(goes4("S2 inside GRE", other(47)), gso::GRE),
        tunnel(
            goes4("S2 inside GRE with a checksum", other(47)),
            gso::GRE_CSUM,
        ),
        tunnel(goes4("S2 IPIP", other(4)), gso::IPXIP4),
        tunnel(goes4("S2 SIT", other(41)), gso::IPXIP4),
        tunnel6(goes6("S2 inside UDP in IPv6", udp()), gso::UDP_TUNNEL),
        tunnel6(goes6("S2 IPv6 in IPv6", other(41)), gso::IPXIP6),
        v4(not4("S2 IPv6's TCP in IPv4"), gso::TCPV6),
        v4(not6("S2 IPv4's TCP in IPv6"), gso::TCPV4),
        v4(not4("S2 UDP's in TCP"), gso::UDP_L4),
        v4(not4("S2 both kinds of TCP"), gso::TCPV4 | gso::TCPV6),
        v4(not4("S2 TCP as inside UDP"), gso::TCPV4 | gso::UDP_TUNNEL),
        v4(no_udp4("S2 TCP's in UDP"), gso::TCPV4),
        v4(no_udp4("S2 both kinds of UDP"), gso::UDP | gso::UDP_L4),
        v4(no_udp4("S2 hints and no kind"), gso::DODGY),
        v4(not4("S2 FCoE's"), gso::TCPV4 | 1 << 5),
        v4(not4("S2 ESP's"), gso::TCPV4 | 1 << 15),
        v4(not4("S2 SCTP's in TCP"), gso::SCTP),
        tunnel(bad4("S2 GRE's in UDP", udp()), gso::GRE),
        tunnel(bad4("S2 UDP's in GRE", other(47)), gso::UDP_TUNNEL),
        tunnel(bad4("S2 IPv6's tunnel in IPv4", other(4)), gso::IPXIP6),
        tunnel6(bad6("S2 IPv4's tunnel in IPv6", other(41)), gso::IPXIP4),
        cut(
            bad4("S2 a tunnel with nothing left open", udp()),
            gso::UDP_TUNNEL | gso::TCPV4,
            1300,
        ),
        cut(
            bad6(
                "S2 extended, with nothing left open",
                behind(&[60], 6, vec![0x50; 4000]),
            ),
            gso::TCPV6,
            1300,
        ),
        v4(bad4("S2 a fragment", Inner::Fragment), gso::UDP),
        v4(
            bad4("S2 a protocol without segments", other(1)),
            gso::UDP_L4,
        ),
        cut(
            sum(bad4("S2 SCTP of one size", other(132)), V4, SCTP),
            gso::SCTP,
            1400,
        ),
        cut(
            sum(bad4("S2 TCP by fragments", tcp()), V4, TCP),
            gso::TCPV4,
            gso::BY_FRAGMENTS,
        ),
        fragments(goes4("S2 SCTP by fragments that fit", other(132)), 1468),
        with(
            fragments(bad4("S2 SCTP by fragments, one too long", other(132)), 1469),
            |row| {
                Row {
                    reason: Reason::TooBig,
                    ..row
                }
                .told(Told::TooBig(1500))
            },
        ),
    ])
}

fn sizes() -> Vec<Row> {
    let tcp4 = |name, inner| sum(goes4(name, inner), V4, TCP);
    let not4 = |name, inner| sum(bad4(name, inner), V4, TCP);
    let most = MAX_SEGMENTS as usize * 16;
    all(vec![
        cut(
            tcp4("S2 eight bytes a segment", Inner::Tcp(64)),
            gso::TCPV4,
            8,
        ),
        cut(
            not4("S2 seven bytes a segment", Inner::Tcp(64)),
            gso::TCPV4,
            7,
        ),
        cut(
            tcp4("S2 as many segments as may be", Inner::Tcp(most - 20)),
            gso::TCPV4,
            16,
        ),
        cut(
            not4("S2 more segments than may be", Inner::Tcp(most - 19)),
            gso::TCPV4,
            16,
        ),
        cut(
            not4("S2 a segment beyond the packet", Inner::Tcp(1000)),
            gso::TCPV4,
            1020,
        ),
        cut(
            sum(
                goes4("S2 an inner header counts", Inner::Udp(4000, 4789, 4000)),
                V4 + 50,
                TCP,
            ),
            gso::UDP_TUNNEL | gso::TCPV4,
            // 20 of IPv4, 50 up to the inner TCP header, which says that it has 28.
            1500 - 70 - 28,
        ),
    ])
}

fn lengths() -> Vec<Row> {
    let long = |rows: [Row; 2], more: usize| {
        with(rows, |row| {
            let mut row = row;
            row.frame = pad(row.frame.clone(), row.frame.len() + more, 0);
            row.said.length = row.frame.len() as u32;
            row
        })
    };
    let tcp = || {
        sum(
            bad4("S3 a super-packet, and bytes behind", Inner::Tcp(4000)),
            V4,
            TCP,
        )
    };
    let mut rows = all(vec![
        long(goes4("S3 bytes behind the packet", Inner::Tcp(64)), 1400),
        long(
            goes6("S3 bytes behind an IPv6 packet", Inner::Tcp(64)),
            1400,
        ),
        long(
            goes4("S3 bytes behind, longer than the MTU", Inner::Tcp(64)),
            9000,
        ),
        long(
            sum(
                goes4("S3 bytes behind what is to be summed", Inner::Tcp(64)),
                V4,
                TCP,
            ),
            200,
        ),
        cut(long(tcp(), 1), gso::TCPV4, 1400),
    ]);
    // BIG TCP: neither IPv4 nor IPv6 can say how long it is.
    let big = |frame: Vec<u8>| pad(frame, 14 + 70_000, 0x50);
    let big4 = |packet: Packet<Ipv4>| super::build::fix4(patch(big(packet.frame()), 16, &[0, 0]));
    let big6 = |packet: Packet<Ipv6>| patch(big(packet.frame()), 18, &[0, 0]);
    let (out, tcp6) = (out4(Inner::Tcp(4000)), out6(Inner::Tcp(4000)));
    rows.extend([
        Row::forward(
            "S3 BIG TCP",
            PORT,
            big4(out.clone()),
            Reason::ForwardedOut,
            NOBODY,
            big4(out.hop(UPLINK, ROUTER)),
        )
        .partial(V4, TCP)
        .segments(gso::TCPV4, 1400),
        Row::forward(
            "S3 BIG TCP in IPv6",
            PORT,
            big6(tcp6.clone()),
            Reason::ForwardedOut,
            NOBODY,
            big6(tcp6.hop(UPLINK, ROUTER)),
        )
        .partial(V6, TCP)
        .segments(gso::TCPV6, 1400),
        Row::drop(
            "S3 no length, UDP",
            PORT,
            big6(out6(Inner::Udp(4000, 5000, 4000))),
            Reason::BadOffload,
            WEB,
        )
        .partial(V6, UDP)
        .segments(gso::UDP_L4, 1400),
        Row::drop(
            "S3 no length, and none needed",
            PORT,
            patch(tcp6.frame(), 18, &[0, 0]),
            Reason::BadOffload,
            WEB,
        )
        .partial(V6, TCP)
        .segments(gso::TCPV6, 1400),
    ]);
    rows
}

fn protocols() -> Vec<Row> {
    let out = out4(SMALL_UDP);
    let inwards = in4(SMALL_UDP);
    vec![
        Row::drop(
            "S4 IPv4 that the kernel takes for IPv6",
            PORT,
            out.frame(),
            Reason::BadOffload,
            WEB,
        )
        .known_as(0x86dd),
        Row::drop(
            "S4 ARP that the kernel takes for IPv4",
            PORT,
            Arp::who_has(FAR4, mac(WEB), ip4(WEB)).padded(0),
            Reason::BadOffload,
            WEB,
        )
        .known_as(0x0800),
        Row::drop(
            "S4 a length, which is 802.2",
            PORT,
            other(mac(WEB), port_mac(WEB), 46),
            Reason::EtherType,
            WEB,
        )
        .known_as(4),
        Row::drop(
            "S4 a tag in the frame first",
            PORT,
            tagged(&out.frame(), VLAN),
            Reason::Vlan,
            WEB,
        )
        .known_as(0x0800),
        Row::pass(
            "S4 from the network",
            At::Uplink,
            inwards.frame(),
            Reason::OtherProtocol,
        )
        .known_as(0x86dd),
    ]
}

/// What leaves by the uplink without having come by us.
fn host() -> Vec<Row> {
    let from = |destination| packet(UPLINK, ROUTER, HOST4, destination).with(SMALL_TCP);
    let bad = |name, frame| Row::drop(name, At::Host, frame, Reason::BadOffload, NOBODY);
    let web = packet(UPLINK, ROUTER, HOST4, ip4(WEB)).with(SMALL_TCP);
    let six = packet(UPLINK, ROUTER, HOST6, FAR6).with(SMALL_TCP);
    vec![
        bad(
            "S1 into the source, from the host's side",
            from(FAR4).frame(),
        )
        .partial(14, 12),
        bad("S1 into the IPv6 source, from the host's side", six.frame()).partial(22, 8),
        bad(
            "S1 in front of the frame, from the host's side",
            six.frame(),
        )
        .partial(0xffff_fff0, 40),
        bad("S1 under a tag, from the host's side", from(FAR4).frame())
            .partial(26, 0)
            .vlan(VLAN),
        bad(
            "S1 under two tags in the frame, from the host's side",
            tagged(&tagged(&from(FAR4).frame(), VLAN), VLAN),
        )
        .partial(14 + 8 + 12, 0),
        bad(
            "S1 into an advertisement's target, from the host's side",
            advertisement(FAR6, UPLINK, ASKER6, ASKER, 0x20).frame(),
        )
        .partial(V6 + 8, 4),
        bad(
            "S1 into an announcement's sender, from the host's side",
            Arp::who_has(FAR4, UPLINK, HOST4).frame(),
        )
        .partial(28, 0),
        Row::pass(
            "S1 what the host leaves open in its own packets",
            At::Host,
            from(FAR4).frame(),
            Reason::NotOwned,
        )
        .partial(V4 + 20, 30),
        Row::drop(
            "S1 into TCP's ports, from the host's side to a machine",
            At::Host,
            web.frame(),
            Reason::BadOffload,
            WEB,
        )
        .partial(V4, 2),
        Row::forward(
            "S1 (a) from the host to a machine",
            At::Host,
            web.frame(),
            Reason::ForwardedIn,
            WEB,
            web.via(port_mac(WEB), mac(WEB)).frame(),
        )
        .partial(V4, TCP),
    ]
}
