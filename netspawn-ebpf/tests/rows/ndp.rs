//! Rows N1 to N10, and of P1 to P8 those of neighbor discovery.

use netspawn_ebpf::{abi::GATEWAY6, verdict::Reason, wire::Ipv6};

use super::{
    At, Row,
    build::{
        Icmp6, Inner, advertisement, cut, option, packet, pad, patch, solicitation, solicited,
    },
    world::*,
};

const UNSPECIFIED: Ipv6 = [0; 16];
const ALL_NODES: Ipv6 = [0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
const ALL_NODES_MAC: [u8; 6] = [0x33, 0x33, 0, 0, 0, 1];
const OTHER_STATION: [u8; 6] = [2, 0, 0, 0, 0, 0x77];

// Flags of an advertisement (RFC 4861 4.4).
const R: u8 = 0x80;
const S: u8 = 0x40;
const O: u8 = 0x20;

pub fn rows() -> Vec<Row> {
    [
        uplink(),
        options(),
        invalid(),
        advertisements(),
        host(),
        port(),
    ]
    .concat()
}

/// A solicitation with the source option, as stations send it.
fn asks(target: Ipv6) -> Icmp6 {
    solicitation(target, ASKER6, ASKER, &option(1, ASKER))
}

/// What it is answered with.
fn is_at(target: Ipv6) -> Vec<u8> {
    advertisement(target, UPLINK, ASKER6, ASKER, S | O).frame()
}

fn answered(name: &'static str, frame: Vec<u8>, out: Vec<u8>) -> Row {
    Row::answer(name, At::Uplink, frame, Reason::AnsweredNdp, out)
}

fn uplink() -> Vec<Row> {
    let at = At::Uplink;
    let web = ip6(WEB);
    let bare = solicitation(web, ASKER6, ASKER, &[]);
    let unicast = |icmp: Icmp6| Icmp6 {
        destination: web,
        destination_mac: UPLINK,
        ..icmp
    };
    let dad = solicitation(web, UNSPECIFIED, ASKER, &[]);
    let defended = advertisement(web, UPLINK, ALL_NODES, ALL_NODES_MAC, O).frame();
    let from_link_local = solicitation(web, guest_link_local(9), ASKER, &option(1, ASKER));
    let (_, group_mac) = solicited(web);
    vec![
        answered(
            "N1 to the group, with the option (RFC 4861 7.2.4)",
            asks(web).frame(),
            is_at(web),
        ),
        answered("N1 inside a prefix", asks(INSIDE6).frame(), is_at(INSIDE6)),
        answered(
            "N1 inside a prefix, of another machine",
            asks(CARVED6).frame(),
            is_at(CARVED6),
        ),
        answered(
            "N1 from a link-local address",
            from_link_local.frame(),
            advertisement(web, UPLINK, guest_link_local(9), ASKER, S | O).frame(),
        ),
        answered(
            "N1 with trailing bytes that are not its own",
            pad(asks(web).frame(), 120, 0xee),
            is_at(web),
        ),
        answered(
            "N1 the option names another station",
            solicitation(web, ASKER6, ASKER, &option(1, OTHER_STATION)).frame(),
            advertisement(web, UPLINK, ASKER6, OTHER_STATION, S | O).frame(),
        ),
        answered(
            "N1 reserved field set (RFC 4861 7.1.1: ignored)",
            Icmp6 {
                head: [0xff, 1, 2, 3],
                ..asks(web)
            }
            .frame(),
            is_at(web),
        ),
        answered(
            "N1 flow label and class set: not repeated",
            patch(asks(web).frame(), 14, &[0x6f, 0xff, 0xff, 0xff]),
            is_at(web),
        ),
        answered(
            "N1 to the group without the option: grows",
            bare.frame(),
            is_at(web),
        ),
        answered(
            "N2 unicast, with the option (RFC 4861 7.2.3)",
            unicast(asks(web)).frame(),
            is_at(web),
        ),
        answered(
            "N2 unicast, without: grows (RFC 4861 7.2.4)",
            unicast(bare.clone()).frame(),
            is_at(web),
        ),
        answered(
            "N3 duplicate address detection (RFC 4862 5.4.3)",
            dad.frame(),
            defended.clone(),
        ),
        answered(
            "N3 padded to 100 bytes",
            pad(dad.frame(), 100, 0x55),
            defended,
        ),
        answered(
            "A7 tag of the machine's VLAN (802.1Q)",
            asks(ip6(TAGGED)).frame(),
            is_at(ip6(TAGGED)),
        )
        .vlan(VLAN),
        Row::pass(
            "A7 tag of another VLAN",
            at,
            asks(web).frame(),
            Reason::VlanPass,
        )
        .vlan(VLAN),
        Row::pass(
            "A7 no tag where there is one",
            at,
            asks(ip6(TAGGED)).frame(),
            Reason::VlanPass,
        ),
        Row::pass(
            "N8 nobody's target",
            at,
            asks(FREE6).frame(),
            Reason::NotOwned,
        ),
        Row::pass(
            "N8 owner not up",
            at,
            asks(ip6(DOWN)).frame(),
            Reason::NotOwned,
        ),
        Row::pass(
            "N8 the host's address",
            at,
            asks(HOST6).frame(),
            Reason::ForHost,
        ),
        Row::pass(
            "N8 what is via the host",
            at,
            asks(VIRTUAL6).frame(),
            Reason::ForHost,
        ),
        Row::pass(
            "N1 to another station's MAC",
            at,
            Icmp6 {
                destination_mac: OTHER_STATION,
                ..asks(web)
            }
            .frame(),
            Reason::NotForUs,
        ),
        Row::pass(
            "N5 from ::1 (RFC 4291 2.5.3)",
            at,
            solicitation(
                web,
                [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1],
                ASKER,
                &option(1, ASKER),
            )
            .frame(),
            Reason::Malformed,
        ),
        Row::drop(
            "N10 from an owned address",
            at,
            solicitation(FREE6, web, ASKER, &option(1, ASKER)).frame(),
            Reason::SpoofedSource,
            WEB,
        ),
        Row::drop(
            "N10 our own solicitation, come back",
            at,
            solicitation(ip6(DB), web, UPLINK, &option(1, UPLINK)).frame(),
            Reason::SpoofedSource,
            WEB,
        ),
        Row::pass(
            "N7 behind a hop-by-hop header (RFC 8200 4.3)",
            at,
            packet(ASKER, group_mac, ASKER6, solicited(web).0)
                .with(Inner::Other(
                    0,
                    [&[58, 0, 1, 4, 0, 0, 0, 0][..], &asks(web).frame()[54..]].concat(),
                ))
                .hops(255)
                .frame(),
            Reason::NotForUs,
        ),
        Row::pass(
            "N7 in a fragment (RFC 6980 5)",
            at,
            packet(ASKER, group_mac, ASKER6, solicited(web).0)
                .with(Inner::Other(
                    44,
                    [&[58, 0, 0, 1, 0, 0, 0, 9][..], &asks(web).frame()[54..]].concat(),
                ))
                .hops(255)
                .frame(),
            Reason::NotForUs,
        ),
    ]
}

/// N6.
fn options() -> Vec<Row> {
    let web = ip6(WEB);
    let own = option(1, ASKER);
    // RFC 7527 4.1: 2 + 6 bytes; the unknown one of 16.
    let nonce = [14, 1, 1, 2, 3, 4, 5, 6];
    let unknown = [&[200, 2][..], &[7; 14]].concat();
    // As large as a frame of 1,514 bytes has room for.
    let large = |left: usize| {
        let units = (1514 - 54 - 24 - left) / 8;
        [vec![201, units as u8], vec![0x5a; units * 8 - 2]].concat()
    };
    let with = |options: &[u8]| solicitation(web, ASKER6, ASKER, options).frame();
    let many = |count: usize| [own.clone(), nonce.repeat(count - 1)].concat();
    let dad = |options: &[u8]| solicitation(web, UNSPECIFIED, ASKER, options).frame();
    let defended = advertisement(web, UPLINK, ALL_NODES, ALL_NODES_MAC, O).frame();
    vec![
        answered(
            "N6 nonce behind",
            with(&[&own[..], &nonce].concat()),
            is_at(web),
        ),
        answered(
            "N6 nonce before",
            with(&[&nonce[..], &own].concat()),
            is_at(web),
        ),
        answered(
            "N6 unknown options around",
            with(&[&unknown[..], &own, &unknown].concat()),
            is_at(web),
        ),
        answered(
            "N6 a frame of 1,514 bytes",
            with(&[&large(8)[..], &own].concat()),
            is_at(web),
        ),
        answered(
            "N6 a frame of 1,514 bytes, no source option",
            with(&large(0)),
            is_at(web),
        ),
        answered(
            "N6 target option, which means nothing here",
            with(&option(2, ASKER)),
            is_at(web),
        ),
        answered(
            "N6 two source options, of which the first counts",
            with(&[option(1, ASKER), option(1, OTHER_STATION)].concat()),
            is_at(web),
        ),
        answered("N6 eight options", with(&many(8)), is_at(web)),
        answered(
            "N6 nonce in duplicate address detection (RFC 7527 4.2)",
            dad(&nonce),
            defended,
        ),
        Row::pass(
            "N6 nine options",
            At::Uplink,
            with(&many(9)),
            Reason::ManyOptions,
        ),
        Row::pass(
            "N6 sixty options",
            At::Uplink,
            with(&many(60)),
            Reason::ManyOptions,
        ),
    ]
}

/// N4 and N5.
fn invalid() -> Vec<Row> {
    let web = ip6(WEB);
    let own = option(1, ASKER);
    let sound = asks(web);
    let with = |options: &[u8]| solicitation(web, ASKER6, ASKER, options).frame();
    let not = |name, frame| Row::pass(name, At::Uplink, frame, Reason::Malformed);
    let bad = |name, frame| Row::pass(name, At::Uplink, frame, Reason::BadNd);
    let without_source = |destination, destination_mac, options: &[u8]| {
        Icmp6 {
            destination,
            destination_mac,
            ..solicitation(web, UNSPECIFIED, ASKER, options)
        }
        .frame()
    };
    let (group, group_mac) = solicited(web);
    let frame = sound.frame();
    vec![
        not(
            "N4 no source but the option (RFC 4861 7.1.1)",
            without_source(group, group_mac, &own),
        ),
        not(
            "N4 no source, to a unicast address (RFC 4861 7.1.1)",
            without_source(web, UPLINK, &[]),
        ),
        not(
            "N4 no source, to all nodes",
            without_source(ALL_NODES, ALL_NODES_MAC, &[]),
        ),
        bad(
            "N5 hop limit 254 (RFC 4861 7.1.1)",
            Icmp6 {
                hops: 254,
                ..sound.clone()
            }
            .frame(),
        ),
        bad(
            "N5 hop limit 0",
            Icmp6 {
                hops: 0,
                ..sound.clone()
            }
            .frame(),
        ),
        bad(
            "N5 checksum off by one",
            patch(frame.clone(), 57, &[frame[57].wrapping_add(1)]),
        ),
        bad("N5 checksum zero", patch(frame.clone(), 56, &[0, 0])),
        bad(
            "N5 checksum all ones",
            patch(frame.clone(), 56, &[0xff, 0xff]),
        ),
        not(
            "N5 code 1",
            Icmp6 {
                code: 1,
                ..sound.clone()
            }
            .frame(),
        ),
        not(
            "N5 length 16 (RFC 4861 7.1.1)",
            patch(frame.clone(), 18, &16_u16.to_be_bytes()),
        ),
        not("N5 length 0", patch(frame.clone(), 18, &[0, 0])),
        not(
            "N5 length no multiple of eight",
            patch(frame.clone(), 18, &31_u16.to_be_bytes()),
        ),
        not(
            "N5 length past the frame",
            patch(frame.clone(), 18, &40_u16.to_be_bytes()),
        ),
        not(
            "N5 length far past the frame",
            patch(frame.clone(), 18, &0xfff8_u16.to_be_bytes()),
        ),
        not("N5 option of length 0", with(&[1, 0, 2, 0, 0, 0, 0, 1])),
        not(
            "N5 unknown option of length 0",
            with(&[&own[..], &[99, 0, 0, 0, 0, 0, 0, 0]].concat()),
        ),
        not("N5 option past the end", with(&[200, 2, 0, 0, 0, 0, 0, 0])),
        not(
            "N5 option far past the end",
            with(&[200, 255, 0, 0, 0, 0, 0, 0]),
        ),
        not(
            "N5 source option of 16 bytes",
            with(&[&[1, 2][..], &[2; 14]].concat()),
        ),
        not(
            "N5 source option multicast",
            with(&option(1, [0x33, 0x33, 0, 0, 0, 1])),
        ),
        not("N5 source option zero", with(&option(1, [0; 6]))),
        not(
            "N5 source multicast",
            solicitation(web, ALL_NODES, ASKER, &own).frame(),
        ),
        not(
            "N5 no option, from a group's Ethernet address",
            Icmp6 {
                destination: web,
                destination_mac: UPLINK,
                ..solicitation(web, ASKER6, ALL_NODES_MAC, &[])
            }
            .frame(),
        ),
        not(
            "N5 to the group of another address",
            Icmp6 {
                destination: solicited(FREE6).0,
                ..sound.clone()
            }
            .frame(),
        ),
        not(
            "N5 to another unicast address",
            Icmp6 {
                destination: ip6(DB),
                destination_mac: UPLINK,
                ..sound.clone()
            }
            .frame(),
        ),
        not("N5 version 4", patch(frame.clone(), 14, &[0x40])),
        not("N5 truncated in the target", cut(frame.clone(), 70)),
        not("N5 truncated in the option", cut(frame.clone(), 82)),
        Row::pass(
            "N5 no more than the type",
            At::Uplink,
            cut(frame.clone(), 55),
            Reason::Malformed,
        ),
        Row::pass(
            "N5 no more than an IPv6 header",
            At::Uplink,
            cut(frame, 54),
            Reason::NotForUs,
        ),
        Row::pass(
            "N5 target multicast (RFC 4861 7.1.1)",
            At::Uplink,
            asks(ALL_NODES).frame(),
            Reason::NotOwned,
        ),
    ]
}

/// N9.
fn advertisements() -> Vec<Row> {
    let at = At::Uplink;
    let web = ip6(WEB);
    let claim = advertisement(web, OTHER_STATION, ALL_NODES, ALL_NODES_MAC, O);
    let mut rows = vec![
        Row::pass(
            "N9 for an owned address (RFC 4862 5.4.4)",
            at,
            claim.frame(),
            Reason::AddressConflict,
        )
        .charged(WEB),
        Row::pass(
            "N9 our own, come back",
            at,
            advertisement(web, UPLINK, ALL_NODES, ALL_NODES_MAC, O).frame(),
            Reason::ForHost,
        ),
        Row::pass(
            "N9 for a station's own address",
            at,
            advertisement(ASKER6, ASKER, HOST6, UPLINK, S | O).frame(),
            Reason::ForHost,
        ),
        Row::pass(
            "N9 truncated",
            at,
            cut(claim.frame(), 77),
            Reason::Malformed,
        ),
    ];
    rows.extend(forwarded());
    rows
}

/// What the stack would forward to a machine (F7).
fn forwarded() -> Vec<Row> {
    let at = At::Uplink;
    let web = ip6(WEB);
    let says = |source| Icmp6 {
        source,
        ..advertisement(ASKER6, ASKER, web, UPLINK, S | O)
    };
    let asks = |source| Icmp6 {
        source,
        destination: web,
        destination_mac: UPLINK,
        ..solicitation(ASKER6, ASKER6, ASKER, &option(1, ASKER))
    };
    let drop = |name, frame| Row::drop(name, at, frame, Reason::MartianSource, WEB);
    let mapped = *b"\0\0\0\0\0\0\0\0\0\0\xff\xff\xc0\0\x02\x01";
    vec![
        drop(
            "F7 advertisement to a machine from nowhere",
            says([0; 16]).frame(),
        ),
        drop(
            "F7 advertisement to a machine, link-local",
            says(guest_link_local(9)).frame(),
        ),
        drop(
            "F7 advertisement to a machine from a machine's",
            says(ip6(DB)).frame(),
        ),
        drop(
            "F7 advertisement to a machine from the host's",
            says(HOST6).frame(),
        ),
        drop(
            "F7 advertisement to a machine, IPv4-mapped",
            says(mapped).frame(),
        ),
        drop(
            "F7 advertisement to a machine from the host's, truncated",
            cut(says(HOST6).frame(), 60),
        ),
        drop(
            "F7 solicitation to a machine from the host's",
            asks(HOST6).frame(),
        ),
        drop(
            "F7 solicitation to a machine, IPv4-mapped",
            asks(mapped).frame(),
        ),
        drop(
            "F7 solicitation to a machine from the host's, truncated",
            cut(asks(HOST6).frame(), 60),
        ),
        Row::pass(
            "F7 advertisement to a machine from a station's",
            at,
            says(ASKER6).frame(),
            Reason::ForHost,
        ),
        Row::pass(
            "F7 solicitation to a machine from a station's",
            at,
            asks(ASKER6).frame(),
            Reason::NotOwned,
        ),
    ]
}

fn host() -> Vec<Row> {
    let at = At::Host;
    let asks = |target| solicitation(target, HOST6, UPLINK, &option(1, UPLINK));
    vec![
        Row::answer(
            "the host asks for a machine",
            at,
            asks(ip6(WEB)).frame(),
            Reason::AnsweredNdp,
            advertisement(ip6(WEB), port_mac(WEB), HOST6, UPLINK, S | O).frame(),
        ),
        Row::answer(
            "the host asks again, unicast",
            at,
            Icmp6 {
                destination: ip6(WEB),
                destination_mac: port_mac(WEB),
                ..solicitation(ip6(WEB), HOST6, UPLINK, &[])
            }
            .frame(),
            Reason::AnsweredNdp,
            advertisement(ip6(WEB), port_mac(WEB), HOST6, UPLINK, S | O).frame(),
        ),
        Row::pass(
            "the host asks for a station",
            at,
            asks(ASKER6).frame(),
            Reason::NotOwned,
        ),
        Row::pass(
            "the host asks for a machine that is not up",
            at,
            asks(ip6(DOWN)).frame(),
            Reason::NotOwned,
        ),
    ]
}

fn port() -> Vec<Row> {
    use Reason::*;
    let at = At::Port(WEB);
    let own = option(1, mac(WEB));
    let local = guest_link_local(WEB);
    let asks = |target| solicitation(target, ip6(WEB), mac(WEB), &option(1, mac(WEB)));
    let probes = |target| solicitation(target, UNSPECIFIED, mac(WEB), &[]);
    let is_at =
        |target, flags| advertisement(target, port_mac(WEB), ip6(WEB), mac(WEB), flags).frame();
    let defended =
        |target| advertisement(target, port_mac(WEB), ALL_NODES, ALL_NODES_MAC, O).frame();
    let answer = |name, icmp: Icmp6, out| Row::answer(name, at, icmp.frame(), AnsweredNdp, out);
    let drop = |name, icmp: Icmp6, reason| Row::drop(name, at, icmp.frame(), reason, WEB);
    let announces = |target, destination| Icmp6 {
        source: ip6(WEB),
        ..advertisement(target, mac(WEB), destination, ALL_NODES_MAC, O)
    };
    let message = |kind, source, head: [u8; 4], body: &[u8]| Icmp6 {
        source_mac: mac(WEB),
        destination_mac: ALL_NODES_MAC,
        source,
        destination: ALL_NODES,
        hops: 255,
        kind,
        code: 0,
        head,
        body: body.to_vec(),
    };
    vec![
        answer("P1 another machine", asks(ip6(DB)), is_at(ip6(DB), S | O)),
        answer("P1 the host", asks(HOST6), is_at(HOST6, S | O)),
        answer(
            "P1 nobody's address: any gateway works",
            asks(FREE6),
            is_at(FREE6, S | O),
        ),
        answer(
            "P6 fe80::1 (RFC 4861 7.2.4: a router says so)",
            asks(GATEWAY6),
            is_at(GATEWAY6, R | S | O),
        ),
        answer(
            "P6 fe80::1 from a link-local address",
            solicitation(GATEWAY6, local, mac(WEB), &own),
            advertisement(GATEWAY6, port_mac(WEB), local, mac(WEB), R | S | O).frame(),
        ),
        answer(
            "P6 fe80::1, unicast, without the option",
            Icmp6 {
                destination: GATEWAY6,
                destination_mac: port_mac(WEB),
                ..solicitation(GATEWAY6, ip6(WEB), mac(WEB), &[])
            },
            is_at(GATEWAY6, R | S | O),
        ),
        answer(
            "P6 the port's own link-local address",
            asks(port_link_local(WEB)),
            is_at(port_link_local(WEB), R | S | O),
        ),
        drop(
            "P6 another link-local address",
            asks(guest_link_local(DB)),
            Silent,
        ),
        drop(
            "P2 its own address probed (RFC 4862 5.4)",
            probes(ip6(WEB)),
            Silent,
        ),
        drop(
            "P2 an address of its prefix probed",
            probes(INSIDE6),
            Silent,
        ),
        drop("P2 its link-local address probed", probes(local), Silent),
        answer(
            "P3 another machine's address probed",
            probes(ip6(DB)),
            defended(ip6(DB)),
        ),
        answer(
            "P3 a part of its prefix that another has, probed",
            probes(CARVED6),
            defended(CARVED6),
        ),
        answer(
            "P3 the host's address probed",
            probes(HOST6),
            defended(HOST6),
        ),
        answer(
            "P3 fe80::1 probed",
            probes(GATEWAY6),
            advertisement(GATEWAY6, port_mac(WEB), ALL_NODES, ALL_NODES_MAC, R | O).frame(),
        ),
        drop("P4 nobody's address probed", probes(FREE6), Silent),
        drop(
            "P5 from another machine's address",
            solicitation(GATEWAY6, ip6(DB), mac(WEB), &own),
            SpoofedSource,
        ),
        drop(
            "P5 from nobody's address",
            solicitation(GATEWAY6, FREE6, mac(WEB), &own),
            SpoofedSource,
        ),
        drop(
            "P5 from the gateway's address",
            solicitation(ip6(DB), GATEWAY6, mac(WEB), &own),
            SpoofedSource,
        ),
        drop(
            "P5 from the port's address",
            solicitation(ip6(DB), port_link_local(WEB), mac(WEB), &own),
            SpoofedSource,
        ),
        drop(
            "P5 the option names another station",
            solicitation(GATEWAY6, ip6(WEB), mac(WEB), &option(1, mac(DB))),
            SpoofedMac,
        ),
        drop(
            "P5 another's MAC throughout",
            solicitation(GATEWAY6, ip6(WEB), mac(DB), &option(1, mac(DB))),
            SpoofedMac,
        ),
        drop(
            "P5 advertises another's address",
            announces(ip6(DB), ALL_NODES),
            SpoofedSource,
        ),
        drop(
            "P5 advertises fe80::1",
            announces(GATEWAY6, ALL_NODES),
            SpoofedSource,
        ),
        drop(
            "P5 advertises the port's address",
            announces(port_link_local(WEB), ALL_NODES),
            SpoofedSource,
        ),
        drop(
            "P5 advertises another's MAC",
            Icmp6 {
                body: [&ip6(WEB)[..], &option(2, mac(DB))].concat(),
                ..announces(ip6(WEB), ALL_NODES)
            },
            SpoofedMac,
        ),
        drop(
            "P8 advertises its own address",
            announces(ip6(WEB), ALL_NODES),
            Silent,
        ),
        drop(
            "P8 advertises its own link-local address",
            announces(local, ALL_NODES),
            Silent,
        ),
        Row::pass(
            "P8 the answer to the host's question",
            at,
            Icmp6 {
                destination_mac: port_mac(WEB),
                ..announces(ip6(WEB), port_link_local(WEB))
            }
            .frame(),
            ForHost,
        ),
        drop(
            "P5 hop limit 254",
            Icmp6 {
                hops: 254,
                ..asks(GATEWAY6)
            },
            BadFrame,
        ),
        drop("P5 target multicast", asks(ALL_NODES), BadFrame),
        Row::drop(
            "P5 bad checksum",
            at,
            patch(asks(GATEWAY6).frame(), 56, &[0, 0]),
            BadFrame,
            WEB,
        ),
        Row::drop(
            "P5 truncated",
            at,
            cut(asks(GATEWAY6).frame(), 70),
            BadFrame,
            WEB,
        ),
        drop(
            "P7 router advertisement (RFC 4861 4.2)",
            message(134, local, [64, 0, 7, 8], &[0; 8]),
            RogueRouter,
        ),
        drop(
            "P7 redirect (RFC 4861 4.5)",
            message(137, local, [0; 4], &[0; 32]),
            RogueRouter,
        ),
        drop(
            "router solicitation ends here",
            message(133, local, [0; 4], &[]),
            Multicast,
        ),
        drop(
            "router solicitation without a source",
            message(133, UNSPECIFIED, [0; 4], &[]),
            Multicast,
        ),
        drop(
            "MLD report ends here",
            message(131, local, [0; 4], &[0; 16]),
            Multicast,
        ),
    ]
}
