//! What the host has begun, and what answers it.

#[allow(dead_code, reason = "the outcomes of the rows are for the other tests")]
mod rows;

use netspawn_ebpf::{
    abi::{Flow, NO_FLOW},
    decide::reply::{answered, opened},
};
use proptest::prelude::*;

use rows::{
    build::{Inner, cut, packet, patch},
    world::*,
};

const SYN: u8 = 2;
const RST: u8 = 4;
const ACK: u8 = 16;

fn host4(inner: Inner) -> Vec<u8> {
    packet(UPLINK, mac(WEB), HOST4, ip4(WEB))
        .with(inner)
        .frame()
}

fn host6(inner: Inner) -> Vec<u8> {
    packet(UPLINK, mac(WEB), HOST6, ip6(WEB))
        .with(inner)
        .frame()
}

fn web4(inner: Inner) -> Vec<u8> {
    packet(mac(WEB), port_mac(WEB), ip4(WEB), HOST4)
        .with(inner)
        .frame()
}

fn web6(inner: Inner) -> Vec<u8> {
    packet(mac(WEB), port_mac(WEB), ip6(WEB), HOST6)
        .with(inner)
        .frame()
}

fn tcp(from: u16, to: u16, flags: u8) -> Inner {
    let mut bytes = [from, to].map(u16::to_be_bytes).concat();
    bytes.resize(20, 0);
    bytes[12] = 0x50;
    bytes[13] = flags;
    Inner::Other(6, bytes)
}

fn echo(kind: u8, protocol: u8, id: u16) -> Inner {
    let [high, low] = id.to_be_bytes();
    Inner::Other(protocol, vec![kind, 0, 0, 0, high, low, 0, 1])
}

/// An error that quotes a packet.
fn error(kind: u8, protocol: u8, quoted: &[u8]) -> Inner {
    Inner::Other(
        protocol,
        [&[kind, 3, 0, 0, 0, 0, 0, 0], &quoted[14..]].concat(),
    )
}

#[test]
fn answers_are_those_of_the_same_flow() {
    let asked = Inner::Udp(4000, 53, 20);
    let answer = Inner::Udp(53, 4000, 20);
    assert_ne!(opened(&host4(asked.clone())[..]), NO_FLOW);
    assert_eq!(
        opened(&host4(asked.clone())[..]),
        answered(&web4(answer.clone())[..])
    );
    assert_eq!(
        opened(&host6(asked.clone())[..]),
        answered(&web6(answer.clone())[..])
    );
    for other in [Inner::Udp(54, 4000, 20), Inner::Udp(53, 4001, 20)] {
        assert_ne!(
            opened(&host4(asked.clone())[..]),
            answered(&web4(other.clone())[..])
        );
        assert_ne!(
            opened(&host6(asked.clone())[..]),
            answered(&web6(other)[..])
        );
    }
    let from_another = packet(mac(DB), port_mac(DB), ip4(DB), HOST4).with(answer);
    assert_ne!(
        opened(&host4(asked)[..]),
        answered(&from_another.frame()[..])
    );
}

#[test]
fn connections_are_not_begun_by_machines() {
    let begun = opened(&host4(tcp(4000, 80, SYN))[..]);
    assert_ne!(begun, NO_FLOW);
    for flags in [SYN | ACK, ACK, RST, RST | ACK] {
        assert_eq!(begun, answered(&web4(tcp(80, 4000, flags))[..]), "{flags}");
    }
    assert_eq!(answered(&web4(tcp(80, 4000, SYN))[..]), NO_FLOW);
    assert_eq!(answered(&web6(tcp(80, 4000, SYN))[..]), NO_FLOW);
}

#[test]
fn echo_replies_answer_echo_requests() {
    assert_eq!(
        opened(&host4(echo(8, 1, 7))[..]),
        answered(&web4(echo(0, 1, 7))[..])
    );
    assert_eq!(
        opened(&host6(echo(128, 58, 7))[..]),
        answered(&web6(echo(129, 58, 7))[..])
    );
    assert_ne!(
        opened(&host4(echo(8, 1, 7))[..]),
        answered(&web4(echo(0, 1, 8))[..])
    );
    assert_eq!(answered(&web4(echo(8, 1, 7))[..]), NO_FLOW);
    assert_eq!(answered(&web6(echo(128, 58, 7))[..]), NO_FLOW);
    // Under the other's number.
    assert_eq!(answered(&web4(echo(129, 1, 7))[..]), NO_FLOW);
    assert_eq!(answered(&web6(echo(0, 58, 7))[..]), NO_FLOW);
}

#[test]
fn errors_answer_what_they_quote() {
    for inner in [Inner::Udp(4000, 53, 20), tcp(4000, 80, ACK)] {
        let (asked4, asked6) = (host4(inner.clone()), host6(inner));
        for kind in [3, 11, 12] {
            let told = web4(error(kind, 1, &asked4));
            assert_eq!(opened(&asked4[..]), answered(&told[..]));
        }
        for kind in [1, 2, 3, 4] {
            let told = web6(error(kind, 58, &asked6));
            assert_eq!(opened(&asked6[..]), answered(&told[..]));
        }
        // A redirect, and what is said to be another's packet.
        assert_eq!(answered(&web4(error(5, 1, &asked4))[..]), NO_FLOW);
        assert_eq!(answered(&web6(error(137, 58, &asked6))[..]), NO_FLOW);
        let others = packet(UPLINK, mac(WEB), FAR4, ip4(WEB)).with(Inner::Udp(4000, 53, 20));
        assert_eq!(answered(&web4(error(3, 1, &others.frame()))[..]), NO_FLOW);
    }
}

#[test]
fn what_has_no_header_answers_nothing() {
    assert_eq!(answered(&web4(Inner::Fragment)[..]), NO_FLOW);
    assert_eq!(answered(&web6(Inner::Fragment)[..]), NO_FLOW);
    assert_eq!(answered(&web6(Inner::HopByHop)[..]), NO_FLOW);
    assert_eq!(answered(&web4(Inner::Other(47, vec![0; 20]))[..]), NO_FLOW);
    let short = patch(web4(Inner::Udp(53, 4000, 20)), 14, &[0x44]);
    assert_eq!(answered(&short[..]), NO_FLOW);
    for length in 0..38 {
        assert_eq!(
            answered(&cut(web4(Inner::Udp(1, 2, 9)), length)[..]),
            NO_FLOW
        );
    }
}

proptest! {
    /// A flow is of the packet's own addresses, or of those that an error quotes, whatever
    /// else is in it.
    #[test]
    fn flow_is_of_the_packets_addresses(
        v6 in any::<bool>(),
        bytes in prop::collection::vec(any::<u8>(), 0..120),
        protocol in prop::sample::select(&[1u8, 6, 17, 44, 58, 60][..]),
    ) {
        let inner = Inner::Other(protocol, bytes);
        let frame = if v6 { web6(inner) } else { web4(inner) };
        let flow: Flow = answered(&frame[..]);
        if flow != NO_FLOW {
            let own = opened(&if v6 {
                host6(Inner::Udp(1, 2, 0))
            } else {
                host4(Inner::Udp(1, 2, 0))
            }[..]);
            prop_assert_eq!(&flow[..2], &own[..2], "of another than the host's address");
        }
    }
}
