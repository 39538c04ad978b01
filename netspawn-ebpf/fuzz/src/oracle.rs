//! What must hold of a verdict and of what it makes of a frame. Frames are read by
//! etherparse and smoltcp, never by what is tested.

use etherparse::{ArpPacketSlice, Icmpv6Slice, Ipv4HeaderSlice, Ipv6HeaderSlice};
use netspawn_ebpf::{
    abi::{HOST, NOBODY, Owner, endpoint_flag, nexthop_flag, settings_flag},
    tables::Tables as _,
    verdict::{Action, Kind, Verdict},
    wire::{MIN_FRAME, words6},
};

use crate::{
    host::{World, carry_out, decide, parser},
    rows::At,
    world::Input,
};

/// Bytes of the Ethernet header.
const L3: usize = 14;

/// How long a frame is without what is behind its packet, which ends at `end` (row S3).
fn least(end: usize, frame: &[u8]) -> usize {
    end.max(MIN_FRAME).min(frame.len())
}

/// Decides, twice, carries out, and holds the outcome against the frame.
pub fn hold(input: &Input) {
    let Input {
        at,
        ref world,
        ref meta,
        ref said,
        ref frame,
    } = *input;
    let frame = frame.as_slice();
    let Some(verdict) = decide(world, at, frame, meta, said) else {
        return;
    };
    let again = decide(world, at, frame, meta, said);
    assert_eq!(Some(verdict), again, "equal bytes, other verdict");
    // With bytes out of reach the kernel's frame is longer than this one.
    if meta.length as usize != frame.len() || meta.gso_size != 0 {
        return;
    }
    let Ok(out) = carry_out(world, at, &verdict, frame, meta.gso_size == 0) else {
        panic!("{:?} does not fit the frame", verdict.action);
    };
    let kind = verdict.reason.kind();
    match verdict.action {
        Action::Pass => {
            assert_eq!(kind, Kind::Pass);
            let out = out.expect("is not dropped");
            if let At::Port(id) = at {
                // A bridge that the port is in sends it nowhere else.
                let endpoint = world.endpoint(id).expect("it has a port");
                assert_eq!(out[..6], endpoint.port_mac);
                assert_eq!(out[6..], frame[6..out.len()]);
                let end = match frame[12..14] {
                    [8, 0] => frame.get(16..18).map(|length| (L3, length)),
                    [0x86, 0xdd] => frame.get(18..20).map(|length| (L3 + 40, length)),
                    _ => None,
                };
                let end = end.map(|(at, length)| {
                    at + usize::from(u16::from_be_bytes([length[0], length[1]]))
                });
                let reached = frame.get(L3 + 40..).is_some() || frame[12] == 8;
                match end {
                    Some(end) if reached => assert_eq!(out.len(), least(end, frame)),
                    _ => assert_eq!(out.len(), frame.len()),
                }
            } else {
                assert_eq!(out, frame);
            }
        }
        Action::Drop => {
            assert_eq!(kind, Kind::Drop);
            if let Some(error) = out {
                refused(&error, frame);
            }
        }
        Action::Arp | Action::Ndp => {
            assert_eq!(kind, Kind::Answer);
            answered(input, &out.expect("an answer"));
        }
        Action::Echo => {
            assert_eq!(kind, Kind::Answer);
            assert!(matches!(at, At::Port(_)));
            echoed(&out.expect("a reply"), frame);
        }
        Action::Deliver | Action::Out | Action::ToHost => {
            assert_eq!(kind, Kind::Forward);
            forwarded(input, &verdict, &out.expect("a frame"));
        }
    }
}

/// An error: sound, to the sender, about a packet that is no error.
fn refused(error: &[u8], frame: &[u8]) {
    sound_error(error);
    assert_eq!(error[..6], frame[6..12]);
    assert_eq!(error[6..12], frame[..6]);
    let (headers, source, destination) = match frame[12..14] {
        [8, 0] => (28, 26..30, 30..34),
        _ => (48, 22..38, 38..54),
    };
    assert!(frame[L3..].starts_with(&error[L3 + headers..]));
    assert!(error.len() <= L3 + if headers == 28 { 576 } else { 1280 });
    assert_eq!(error[destination], frame[source], "not to the sender");
}

/// Whether the sum over the whole header is what it must be (RFC 1071). Not by way of
/// etherparse's own header, which has no place for the reserved flag.
pub fn checksum_is_right(ip: &Ipv4HeaderSlice<'_>) -> bool {
    let sum = etherparse::checksum::Sum16BitWords::new().add_slice(ip.slice());
    sum.ones_complement() == 0
}

/// Checksums and lengths of an ICMP error are right.
pub fn sound_error(error: &[u8]) {
    if let [8, 0] = error[12..14] {
        let ip = Ipv4HeaderSlice::from_slice(&error[L3..]).expect("an IPv4 header");
        assert!(checksum_is_right(&ip));
        let sum = etherparse::checksum::Sum16BitWords::new().add_slice(&error[L3 + 20..]);
        assert_eq!(sum.ones_complement(), 0);
        assert_eq!(usize::from(ip.total_len()), error.len() - L3);
    } else if let [0x86, 0xdd] = error[12..14] {
        let ip = Ipv6HeaderSlice::from_slice(&error[L3..]).expect("an IPv6 header");
        assert_eq!(usize::from(ip.payload_length()), error.len() - L3 - 40);
        let icmp = Icmpv6Slice::from_slice(&error[L3 + 40..]).expect("an ICMPv6 message");
        assert!(icmp.is_checksum_valid(ip.source(), ip.destination()));
    }
}

/// Whether an owner is a machine that is up.
fn is_up(world: &World, owner: Owner) -> bool {
    world
        .endpoint(owner)
        .is_some_and(|endpoint| endpoint.flags & endpoint_flag::UP != 0)
}

fn answered(input: &Input, out: &[u8]) {
    let Input {
        at, world, frame, ..
    } = input;
    let (target, asker) = match parser::read(out).expect("a sound answer") {
        parser::Said::IsAt { spa, sha, tpa } => {
            let asked = ArpPacketSlice::from_slice(&frame[L3..]).expect("ARP was asked");
            assert_eq!(asked.operation().0, 1, "no request");
            assert_eq!(
                (asked.target_protocol_addr(), asked.sender_protocol_addr()),
                (&spa[..], &tpa[..])
            );
            assert_eq!(sha, out[6..12]);
            (world.owner4(&spa), asked.sender_hw_addr().to_vec())
        }
        parser::Said::Advertises {
            target,
            destination,
            solicited,
            overrides,
            ..
        } => {
            let ip = Ipv6HeaderSlice::from_slice(&frame[L3..]).expect("IPv6 asked");
            let message = &frame[L3 + 40..][..usize::from(ip.payload_length())];
            let icmp = Icmpv6Slice::from_slice(message).expect("ICMPv6 asked");
            assert_eq!(
                (icmp.type_u8(), icmp.code_u8(), ip.hop_limit()),
                (135, 0, 255)
            );
            assert!(icmp.is_checksum_valid(ip.source(), ip.destination()));
            assert_eq!(message[8..24], target);
            let detects = ip.source() == [0; 16];
            assert!(overrides && solicited != detects);
            assert_eq!(detects, destination[0] == 0xff);
            (world.owner6(&words6(&target)), out[..6].to_vec())
        }
        other => panic!("{other:?} is no answer"),
    };
    let to_all = out[..6] == [0x33, 0x33, 0, 0, 0, 1];
    assert!(asker[0] & 1 == 0 || to_all, "an answer to a group");
    match at {
        At::Uplink | At::Host => assert!(is_up(world, target), "an answer for nobody"),
        At::Port(id) => assert_ne!(target, *id, "a machine is told of itself"),
    }
}

fn echoed(out: &[u8], frame: &[u8]) {
    assert_eq!(out.len(), frame.len());
    let (kind, source, destination) = match frame[12..14] {
        [8, 0] => (34, 26..30, 30..34),
        _ => (54, 22..38, 38..54),
    };
    assert!(matches!((frame[kind], out[kind]), (8, 0) | (128, 129)));
    assert_eq!(out[source.clone()], frame[destination.clone()]);
    assert_eq!(out[destination], frame[source]);
    assert_eq!((&out[..6], &out[6..12]), (&frame[6..12], &frame[..6]));
    assert_eq!(out[kind + 4..], frame[kind + 4..]);
}

fn forwarded(input: &Input, verdict: &Verdict<'_>, out: &[u8]) {
    let Input { at, world, .. } = input;
    let frame = input.frame.as_slice();
    let least = |end: usize| least(end, frame);
    let frame = &frame[..out.len()];
    let hops = u8::from(verdict.action == Action::Out || verdict.takes_hop);
    let sends_for = |source: bool| match at {
        At::Port(id) => {
            let flags = world.endpoint(*id).map_or(0, |endpoint| endpoint.flags);
            source && flags & endpoint_flag::SOURCES != 0
        }
        _ => false,
    };
    let (source, destination, routes) = match frame[12..14] {
        [8, 0] => {
            let ip = Ipv4HeaderSlice::from_slice(&out[L3..]).expect("an IPv4 header");
            assert!(checksum_is_right(&ip));
            assert_eq!(ip.ttl() + hops, frame[22]);
            assert_eq!(out.len(), least(usize::from(ip.total_len()) + L3));
            let kept = [12..22, 23..24, 26..frame.len()];
            assert!(
                kept.into_iter()
                    .all(|range| out[range.clone()] == frame[range])
            );
            let source = ip.source();
            let routes = matches!(at, At::Port(id) if world.may_send4(*id, &source));
            (
                world.owner4(&source),
                world.owner4(&ip.destination()),
                sends_for(routes),
            )
        }
        [0x86, 0xdd] => {
            let ip = Ipv6HeaderSlice::from_slice(&out[L3..]).expect("an IPv6 header");
            assert_eq!(ip.hop_limit() + hops, frame[21]);
            assert_eq!(out.len(), least(usize::from(ip.payload_length()) + 40 + L3));
            let kept = [12..21, 22..frame.len()];
            assert!(
                kept.into_iter()
                    .all(|range| out[range.clone()] == frame[range])
            );
            let source = words6(&ip.source());
            let routes = matches!(at, At::Port(id) if world.may_send6(*id, &source));
            (
                world.owner6(&source),
                world.owner6(&words6(&ip.destination())),
                sends_for(routes),
            )
        }
        _ => panic!("neither IPv4 nor IPv6 is forwarded"),
    };
    match at {
        At::Uplink => assert_eq!(source, NOBODY, "a source that is not the network's"),
        At::Host => {}
        At::Port(id) => assert!(
            source == *id || routes,
            "a source that is not the machine's"
        ),
    }
    match verdict.action {
        Action::Deliver => {
            assert_eq!(destination, verdict.id, "delivered to another");
            assert!(is_up(world, destination));
            let endpoint = world.endpoint(destination).expect("there is one");
            assert_eq!(out[..6], endpoint.mac);
            assert_eq!(out[6..12], endpoint.port_mac);
            if let At::Port(id) = at {
                let tenant = world.endpoint(*id).expect("there is one").tenant;
                let route = world.settings.flags & settings_flag::ISOLATION_ROUTE != 0;
                assert!(tenant == endpoint.tenant || route);
                assert_ne!(destination, *id);
            }
        }
        Action::Out => {
            assert_eq!(destination, NOBODY, "a machine's packet leaves the host");
            let hop = verdict.hop.expect("a way");
            assert_eq!(hop.flags & nexthop_flag::REFUSED, 0);
            if hop.flags & nexthop_flag::RESOLVED != 0 && hop.deadline > 1_000_000 {
                assert_eq!(out[..6], hop.dst_mac);
                assert_eq!(out[6..12], hop.src_mac);
            }
        }
        _ => {
            assert_eq!(destination, HOST);
            assert_eq!(world.settings.flags & settings_flag::HOST_DENY, 0);
        }
    }
}
