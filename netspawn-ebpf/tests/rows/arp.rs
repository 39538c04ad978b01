//! Rows A1 to A7, and of P1 to P8 those of ARP.

use netspawn_ebpf::{
    abi::{GATEWAY4, NOBODY},
    verdict::Reason,
    wire::Ipv4,
};

use super::{
    At, Row,
    build::{Arp, REPLY, cut, other, pad, patch, tagged},
    world::*,
};

const OTHER_STATION: [u8; 6] = [2, 0, 0, 0, 0, 0x77];
const NONE: Ipv4 = [0; 4];

pub fn rows() -> Vec<Row> {
    [uplink(), malformed(), host(), port()].concat()
}

fn uplink() -> Vec<Row> {
    use Reason::*;
    let at = At::Uplink;
    let asks = |target| Arp::who_has(target, ASKER, ASKER4);
    let asked = asks(ip4(WEB));
    let to_us = Arp {
        destination: UPLINK,
        ..asked
    };
    let probe = Arp::who_has(ip4(WEB), ASKER, NONE);
    let router = Arp {
        source: OTHER_STATION,
        ..asked
    };
    let claims = Arp::who_has(ip4(WEB), OTHER_STATION, ip4(WEB));
    let claims_by_reply = Arp {
        operation: REPLY,
        tha: [0xff; 6],
        ..claims
    };
    let tagged_asks = asks(ip4(TAGGED));
    let answer = |name, arp: Arp| {
        Row::answer(
            name,
            at,
            arp.padded(0xa5),
            AnsweredArp,
            arp.is_at(UPLINK).padded(0),
        )
    };
    vec![
        answer("A1 broadcast request (RFC 826, packet reception)", asked),
        answer("A1 unicast request", to_us),
        answer("A1 inside a prefix", asks(INSIDE4)),
        answer("A1 inside a prefix, of another machine", asks(CARVED4)),
        Row::answer(
            "A1 without padding",
            at,
            asked.frame(),
            AnsweredArp,
            asked.is_at(UPLINK).frame(),
        ),
        Row::answer(
            "A1 padded to 50 bytes",
            at,
            pad(asked.frame(), 50, 0xff),
            AnsweredArp,
            pad(asked.is_at(UPLINK).frame(), 50, 0),
        ),
        Row::answer(
            "A1 of 1,514 bytes: what is behind is cut",
            at,
            pad(asked.frame(), 1514, 0xff),
            AnsweredArp,
            asked.is_at(UPLINK).padded(0),
        ),
        answer(
            "A1 target hardware address set (RFC 826: ignored)",
            Arp {
                tha: OTHER_STATION,
                ..asked
            },
        ),
        answer("A2 probe (RFC 5227 2.1.1, 2.4)", probe),
        Row::pass("A3 nobody's target", at, asks(FREE4).padded(0), NotOwned),
        Row::pass("A3 owner not up", at, asks(ip4(DOWN)).padded(0), NotOwned),
        Row::pass(
            "A4 gratuitous request (RFC 5227 2.4)",
            at,
            claims.padded(0),
            AddressConflict,
        )
        .charged(WEB),
        Row::pass(
            "A4 gratuitous reply",
            at,
            claims_by_reply.padded(0),
            AddressConflict,
        )
        .charged(WEB),
        Row::pass(
            "A4 a question from an owned address",
            at,
            Arp::who_has(FREE4, OTHER_STATION, ip4(WEB)).padded(0),
            AddressConflict,
        )
        .charged(WEB),
        Row::pass(
            "A4 our own announcement, come back",
            at,
            Arp::who_has(ip4(WEB), UPLINK, ip4(WEB)).padded(0),
            ForHost,
        ),
        Row::pass(
            "A5 request for the host",
            at,
            asks(HOST4).padded(0),
            ForHost,
        ),
        Row::pass(
            "A5 request for what is via the host",
            at,
            asks(VIRTUAL4).padded(0),
            ForHost,
        ),
        Row::pass(
            "A5 reply to the host",
            at,
            Arp::who_has(ASKER4, UPLINK, HOST4).is_at(ASKER).padded(0),
            ForHost,
        ),
        Row::pass(
            "A1 for another station's MAC",
            at,
            Arp {
                destination: OTHER_STATION,
                ..asked
            }
            .padded(0),
            NotForUs,
        ),
        answer("A6b sender is not the Ethernet source", router).also(ArpSourceDiffers),
        answer("A7 tag of the machine's VLAN (802.1Q)", tagged_asks).vlan(VLAN),
        answer("A7 priority tag", asked).vlan(0),
        Row::pass(
            "A7 tag of another VLAN",
            at,
            tagged_asks.padded(0),
            VlanPass,
        )
        .vlan(VLAN + 1),
        Row::pass(
            "A7 a tag where there is none",
            at,
            asked.padded(0),
            VlanPass,
        )
        .vlan(VLAN),
        Row::pass(
            "A7 no tag where there is one",
            at,
            tagged_asks.padded(0),
            VlanPass,
        ),
        Row::pass(
            "A7 tag inside the frame",
            at,
            tagged(&tagged_asks.padded(0), VLAN),
            OtherProtocol,
        ),
        Row::pass(
            "LLDP goes to the stack",
            at,
            other(ASKER, UPLINK, 0x88cc),
            OtherProtocol,
        ),
    ]
}

fn malformed() -> Vec<Row> {
    let at = At::Uplink;
    let asked = Arp::who_has(ip4(WEB), ASKER, ASKER4);
    let frame = asked.padded(0);
    let not = |name, frame| Row::pass(name, at, frame, Reason::Malformed);
    vec![
        not(
            "A6 hardware type not Ethernet",
            patch(frame.clone(), 14, &[0, 6]),
        ),
        not(
            "A6 protocol type not IPv4",
            patch(frame.clone(), 16, &[0x86, 0xdd]),
        ),
        not("A6 hardware length", patch(frame.clone(), 18, &[8])),
        not("A6 protocol length", patch(frame.clone(), 19, &[16])),
        not("A6 operation 0", patch(frame.clone(), 20, &[0, 0])),
        not("A6 reverse request", patch(frame.clone(), 20, &[0, 3])),
        not("A6 operation 257", patch(frame.clone(), 20, &[1, 1])),
        not("A6 sender multicast", patch(frame.clone(), 22, &[1])),
        not("A6 sender broadcast", patch(frame.clone(), 22, &[0xff; 6])),
        not("A6 sender zero", patch(frame.clone(), 22, &[0; 6])),
        not("A6 one byte short", cut(frame.clone(), 41)),
        not("A6 no more than an Ethernet header", cut(frame, 14)),
    ]
}

fn host() -> Vec<Row> {
    use Reason::*;
    let at = At::Host;
    let asks = |target| Arp::who_has(target, UPLINK, HOST4);
    let answer = |name, arp: Arp, mac| {
        Row::answer(name, at, arp.frame(), AnsweredArp, arp.is_at(mac).frame())
    };
    vec![
        answer("the host asks for a machine", asks(ip4(WEB)), port_mac(WEB)),
        answer(
            "the host asks for an address inside a prefix",
            asks(CARVED4),
            port_mac(DB),
        ),
        answer(
            "the host asks again, unicast",
            Arp {
                destination: port_mac(WEB),
                ..asks(ip4(WEB))
            },
            port_mac(WEB),
        ),
        Row::pass(
            "the host asks for a machine that is not up",
            at,
            asks(ip4(DOWN)).frame(),
            NotOwned,
        ),
        Row::pass(
            "the host asks for a station",
            at,
            asks(ASKER4).frame(),
            NotOwned,
        ),
        Row::pass(
            "the host announces a machine's address",
            at,
            Arp::who_has(ip4(WEB), UPLINK, ip4(WEB)).frame(),
            ForHost,
        ),
        Row::pass(
            "the host answers a station",
            at,
            Arp::who_has(HOST4, ASKER, ASKER4).is_at(UPLINK).frame(),
            ForHost,
        ),
        Row::pass(
            "the host's tagged frames are its own",
            at,
            asks(ip4(WEB)).frame(),
            VlanPass,
        )
        .vlan(5),
    ]
}

fn port() -> Vec<Row> {
    use Reason::*;
    let at = At::Port(WEB);
    let asks = |target| Arp::who_has(target, mac(WEB), ip4(WEB));
    let probes = |target| Arp::who_has(target, mac(WEB), NONE);
    let answer = |name, arp: Arp| {
        Row::answer(
            name,
            at,
            arp.frame(),
            AnsweredArp,
            arp.is_at(port_mac(WEB)).frame(),
        )
    };
    let drop = |name, arp: Arp, reason| Row::drop(name, at, arp.frame(), reason, WEB);
    vec![
        answer("P1 the gateway", asks(GATEWAY4)),
        answer("P1 another machine", asks(ip4(DB))),
        answer("P1 a machine of another tenant", asks(ip4(ACME))),
        answer("P1 the host", asks(HOST4)),
        answer("P1 nobody's address: any gateway works", asks(FREE4)),
        answer(
            "P1 reachability, unicast",
            Arp {
                destination: port_mac(WEB),
                ..asks(GATEWAY4)
            },
        ),
        answer(
            "P1 from an address inside its prefix",
            Arp::who_has(GATEWAY4, mac(WEB), INSIDE4),
        ),
        drop(
            "P2 its own address probed (RFC 5227 2.1.1)",
            probes(ip4(WEB)),
            Silent,
        ),
        drop(
            "P2 an address of its prefix probed",
            probes(INSIDE4),
            Silent,
        ),
        answer("P3 another machine's address probed", probes(ip4(DB))),
        answer("P3 the host's address probed", probes(HOST4)),
        answer("P3 the gateway's address probed", probes(GATEWAY4)),
        drop("P4 nobody's address probed", probes(FREE4), Silent),
        drop(
            "P5 sender is another machine",
            Arp::who_has(GATEWAY4, mac(WEB), ip4(DB)),
            SpoofedSource,
        ),
        drop(
            "P5 sender is nobody here",
            Arp::who_has(GATEWAY4, mac(WEB), FREE4),
            SpoofedSource,
        ),
        drop(
            "P5 sender is the host",
            Arp::who_has(GATEWAY4, mac(WEB), HOST4),
            SpoofedSource,
        ),
        drop(
            "P5 gratuitous for another's address",
            Arp::who_has(ip4(DB), mac(WEB), ip4(DB)),
            SpoofedSource,
        ),
        drop(
            "P5 sender's MAC is not the Ethernet source",
            Arp {
                sha: mac(DB),
                ..asks(GATEWAY4)
            },
            SpoofedMac,
        ),
        drop(
            "P5 the Ethernet source is not the sender's MAC",
            Arp {
                source: mac(DB),
                ..asks(GATEWAY4)
            },
            SpoofedMac,
        ),
        Row::drop(
            "P5 sender's MAC is not the Ethernet source, any MAC allowed",
            At::Port(BRIDGE),
            Arp {
                source: mac(0x42),
                ..Arp::who_has(GATEWAY4, mac(0x43), ip4(BRIDGE))
            }
            .frame(),
            SpoofedMac,
            BRIDGE,
        ),
        drop(
            "P5 another's MAC throughout",
            Arp::who_has(GATEWAY4, mac(DB), ip4(WEB)),
            SpoofedMac,
        ),
        drop(
            "P5 reply for another's address",
            Arp::who_has(ip4(DB), ASKER, ASKER4).is_at(mac(WEB)),
            SpoofedSource,
        ),
        drop("P8 gratuitous for its own address", asks(ip4(WEB)), Silent),
        drop(
            "P8 gratuitous reply",
            Arp {
                operation: REPLY,
                destination: [0xff; 6],
                ..asks(ip4(WEB))
            },
            Silent,
        ),
        Row::pass(
            "P8 the answer to the host's question",
            at,
            Arp::who_has(ip4(WEB), port_mac(WEB), HOST4)
                .is_at(mac(WEB))
                .frame(),
            ForHost,
        ),
        drop("P1 for 0.0.0.0: no station has it", asks(NONE), Silent),
        drop(
            "P1 for a group: no station has it",
            asks([224, 0, 0, 1]),
            Silent,
        ),
        drop(
            "P1 for 127.0.0.1: no station has it",
            asks([127, 0, 0, 1]),
            Silent,
        ),
        Row::drop(
            "P5 truncated",
            at,
            cut(asks(GATEWAY4).frame(), 41),
            BadFrame,
            WEB,
        ),
        Row::answer(
            "P1 a bridge of machines",
            At::Port(BRIDGE),
            Arp::who_has(GATEWAY4, mac(0x42), ip4(BRIDGE)).frame(),
            AnsweredArp,
            Arp::who_has(GATEWAY4, mac(0x42), ip4(BRIDGE))
                .is_at(port_mac(BRIDGE))
                .frame(),
        ),
        Row::drop(
            "a frame on a port that is nobody's",
            At::Port(NOBODY),
            asks(GATEWAY4).frame(),
            UnknownPort,
            NOBODY,
        ),
    ]
}
