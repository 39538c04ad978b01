//! What holds for every frame, however broken: no panic, no answer to what is invalid,
//! no reply that another parser refuses, no packet forwarded that was changed more than
//! it must be.

mod host;
#[allow(dead_code, reason = "the outcomes of the rows are for the other tests")]
mod rows;

use netspawn_ebpf::{
    decide::{Meta, offload::Said},
    rewrite,
    verdict::{Action, Family, Kind, Verdict},
    wire::{Ipv4, Ipv6, checksum},
};
use proptest::prelude::*;
use smoltcp::{
    phy::ChecksumCapabilities,
    wire::{
        ArpOperation, ArpPacket, ArpRepr, EthernetAddress, EthernetFrame, EthernetProtocol,
        Icmpv6Packet, Icmpv6Repr, IpProtocol, Ipv4Packet, Ipv6Packet, NdiscRepr,
    },
};

use host::{World, carry_out, decide, parser};
use rows::{At, world};

/// What was asked for.
#[derive(Debug, PartialEq, Eq)]
enum Question {
    /// The owner of this address.
    V4(Ipv4),
    /// As above.
    V6(Ipv6),
}

/// The question that a reply answers.
fn answered(said: &parser::Said) -> Option<Question> {
    match said {
        parser::Said::IsAt { spa, .. } => Some(Question::V4(*spa)),
        parser::Said::Advertises { target, .. } => Some(Question::V6(*target)),
        parser::Said::Pong | parser::Said::Packet => None,
    }
}

/// What the answer to a frame has to say, when it is a question; smoltcp's opinion.
fn question(bytes: &[u8]) -> Option<Question> {
    let frame = EthernetFrame::new_checked(bytes).ok()?;
    match frame.ethertype() {
        EthernetProtocol::Arp => {
            let packet = ArpPacket::new_checked(frame.payload()).ok()?;
            let ArpRepr::EthernetIpv4 {
                operation: ArpOperation::Request,
                source_hardware_addr,
                target_protocol_addr,
                ..
            } = ArpRepr::parse(&packet).ok()?
            else {
                return None;
            };
            let sound = source_hardware_addr.is_unicast()
                && source_hardware_addr != EthernetAddress([0; 6]);
            sound.then(|| Question::V4(target_protocol_addr.octets()))
        }
        EthernetProtocol::Ipv6 => {
            let packet = Ipv6Packet::new_checked(frame.payload()).ok()?;
            if packet.version() != 6
                || packet.hop_limit() != 255
                || packet.next_header() != IpProtocol::Icmpv6
            {
                return None;
            }
            let (source, destination) = (packet.src_addr(), packet.dst_addr());
            let icmp = Icmpv6Packet::new_checked(packet.payload()).ok()?;
            if !icmp.verify_checksum(&source, &destination) {
                return None;
            }
            let plain = without_other_options(packet.payload());
            let icmp = Icmpv6Packet::new_checked(&plain[..]).ok()?;
            let unchecked = ChecksumCapabilities::ignored();
            let message = Icmpv6Repr::parse(&source, &destination, &icmp, &unchecked);
            match message.ok()? {
                Icmpv6Repr::Ndisc(NdiscRepr::NeighborSolicit {
                    target_addr,
                    lladdr,
                }) if icmp.msg_code() == 0
                    && !target_addr.is_multicast()
                    && !source.is_multicast()
                    && (!source.is_unspecified()
                        || lladdr.is_none() && destination.is_multicast()) =>
                {
                    Some(Question::V6(target_addr.octets()))
                }
                _ => None,
            }
        }
        _ => None,
    }
}

/// A solicitation whose options of other kinds than the source's address are of a kind
/// that nobody knows: the parser refuses some for what is inside, of which the kernel's
/// `ndisc_parse_options` reads nothing.
fn without_other_options(message: &[u8]) -> Vec<u8> {
    const OPTIONS: usize = 24;
    const SOURCE: u8 = 1;
    const EXPERIMENT: u8 = 253;
    let mut message = message.to_vec();
    let mut at = OPTIONS;
    while let Some([kind, length]) = message.get(at..at + 2) {
        let (kind, length) = (*kind, usize::from(*length) * 8);
        if length == 0 {
            break;
        }
        if kind != SOURCE {
            message[at] = EXPERIMENT;
        }
        at += length;
    }
    message
}

/// Whether every IPv4 or ICMPv6 field that must hold for an echo request does.
fn is_sound_ping(bytes: &[u8]) -> bool {
    let mut pong = bytes.to_vec();
    let family = if bytes[12..14] == [8, 0] {
        Family::V4
    } else {
        Family::V6
    };
    // A reply keeps a wrong checksum wrong, so that the machine drops it.
    rewrite::echo_reply(&mut pong[..], family).is_some() && parser::read(&pong).is_ok()
}

/// Holds an outcome against the frame that led to it.
fn hold(world: &World, at: At, verdict: &Verdict<'_>, frame: &[u8]) -> Result<(), TestCaseError> {
    let kind = verdict.reason.kind();
    let out = carry_out(world, at, verdict, frame, true);
    match verdict.action {
        Action::Pass => {
            prop_assert_eq!(kind, Kind::Pass);
            let out = out.expect("nothing is to be done");
            let out = out.expect("is not dropped");
            if let At::Port(id) = at {
                // What follows a packet is cut off where a machine has sent it, and a bridge
                // that the port is in sends it nowhere else.
                prop_assert!(out.len() <= frame.len());
                prop_assert_eq!(&out[..6], &world::port_mac(id)[..]);
                prop_assert_eq!(&out[6..], &frame[6..out.len()]);
            } else {
                prop_assert_eq!(&out[..], frame);
            }
        }
        Action::Drop => {
            prop_assert_eq!(kind, Kind::Drop);
            if let Ok(Some(error)) = out {
                parser::read(&error).map_err(TestCaseError::fail)?;
                prop_assert!(error.len() <= 14 + 1280);
                let headers = if frame[12] == 8 { 28 } else { 48 };
                prop_assert!(frame[14..].starts_with(&error[14 + headers..]));
                prop_assert_eq!((&error[..6], &error[6..12]), (&frame[6..12], &frame[..6]));
            }
        }
        Action::Arp | Action::Ndp => {
            prop_assert_eq!(kind, Kind::Answer);
            let out = out.expect("fits").expect("is not dropped");
            let asked = question(frame);
            prop_assert!(asked.is_some(), "no question was asked");
            let said = parser::read(&out).map_err(TestCaseError::fail)?;
            prop_assert_eq!(answered(&said), asked);
        }
        Action::Echo => {
            prop_assert_eq!(kind, Kind::Answer);
            let out = out.expect("fits").expect("is not dropped");
            if is_sound_ping(frame) {
                prop_assert_eq!(parser::read(&out), Ok(parser::Said::Pong));
            }
        }
        Action::Deliver | Action::Out | Action::ToHost => {
            prop_assert_eq!(kind, Kind::Forward);
            let out = out.expect("fits").expect("is not dropped");
            prop_assert!(out.len() <= frame.len());
            prop_assert_eq!(&out[12..14], &frame[12..14]);
            // Nothing but the padding of the smallest frame follows the packet.
            let packet = match &frame[12..14] {
                [8, 0] => usize::from(u16::from_be_bytes([frame[16], frame[17]])),
                _ => 40 + usize::from(u16::from_be_bytes([frame[18], frame[19]])),
            };
            prop_assert_eq!(out.len(), frame.len().min((14 + packet).max(60)));
            let frame = &frame[..out.len()];
            match &frame[12..14] {
                [8, 0] => forwarded4(verdict, frame, &out)?,
                [0x86, 0xdd] => forwarded6(verdict, frame, &out)?,
                other => prop_assert!(false, "{other:?} is not forwarded"),
            }
        }
    }
    Ok(())
}

fn hops(verdict: &Verdict<'_>) -> u8 {
    u8::from(verdict.action == Action::Out || verdict.takes_hop)
}

fn forwarded4(verdict: &Verdict<'_>, frame: &[u8], out: &[u8]) -> Result<(), TestCaseError> {
    for bytes in [frame, out] {
        let packet = Ipv4Packet::new_checked(&bytes[14..]);
        let sound = packet.is_ok_and(|packet| {
            packet.version() == 4 && packet.header_len() >= 20 && packet.verify_checksum()
        });
        prop_assert!(sound, "an unsound packet is forwarded");
    }
    prop_assert_eq!(out[22], frame[22] - hops(verdict));
    prop_assert_eq!(&out[14..22], &frame[14..22]);
    prop_assert_eq!(out[23], frame[23]);
    prop_assert_eq!(&out[26..], &frame[26..]);
    Ok(())
}

fn forwarded6(verdict: &Verdict<'_>, frame: &[u8], out: &[u8]) -> Result<(), TestCaseError> {
    let packet = Ipv6Packet::new_checked(&frame[14..]);
    prop_assert!(packet.is_ok_and(|packet| packet.version() == 6));
    prop_assert_eq!(out[21], frame[21] - hops(verdict));
    prop_assert_eq!(&out[14..21], &frame[14..21]);
    prop_assert_eq!(&out[22..], &frame[22..]);
    Ok(())
}

fn hook() -> impl Strategy<Value = At> {
    prop_oneof![
        3 => Just(At::Uplink),
        1 => Just(At::Host),
        3 => prop::sample::select(&world::MACHINES[..]).prop_map(At::Port),
    ]
}

fn policy() -> impl Strategy<Value = u32> {
    0..16u32
}

/// A frame of the rows at its hook, with some bytes changed, then cut or grown.
fn nearly() -> impl Strategy<Value = (At, Vec<u8>, bool)> {
    let rows: Vec<_> = host::all_rows()
        .into_iter()
        .filter(|row| {
            row.said.gso_size == 0
                && !row.said.open.somewhere
                && row.reason.name() != "unknown_port"
        })
        .map(|row| (row.at, row.frame))
        .collect();
    let change = (any::<prop::sample::Index>(), any::<u8>());
    (
        prop::sample::select(rows),
        prop::collection::vec(change, 0..4),
        prop_oneof![2 => Just(None), 1 => (0..200usize).prop_map(Some)],
        // Most changes are found by a checksum; making it right again lets them through.
        any::<bool>(),
    )
        .prop_map(|((at, mut frame), changes, length, mend)| {
            for (index, value) in changes {
                let at = index.index(frame.len());
                frame[at] = value;
            }
            if let Some(length) = length {
                frame.resize(length, 0);
            }
            if mend {
                mend_checksums(&mut frame);
            }
            (at, frame, mend)
        })
}

fn mend_checksums(bytes: &mut [u8]) {
    let Ok(mut frame) = EthernetFrame::new_checked(bytes) else {
        return;
    };
    match frame.ethertype() {
        EthernetProtocol::Ipv4 => {
            if let Ok(mut packet) = Ipv4Packet::new_checked(frame.payload_mut())
                && packet.header_len() >= 20
            {
                packet.fill_checksum();
            }
        }
        EthernetProtocol::Ipv6 => {
            if let Ok(mut packet) = Ipv6Packet::new_checked(frame.payload_mut())
                && packet.next_header() == IpProtocol::Icmpv6
            {
                let (source, destination) = (packet.src_addr(), packet.dst_addr());
                if let Ok(mut icmp) = Icmpv6Packet::new_checked(packet.payload_mut()) {
                    icmp.fill_checksum(&source, &destination);
                }
            }
        }
        _ => {}
    }
}

/// Of a frame of which its sender says nothing.
fn said(frame: &[u8]) -> Said {
    Said {
        length: frame.len() as u32,
        ..Said::default()
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(4096) })]

    #[test]
    fn any_bytes_are_handled(
        at in hook(),
        policy in policy(),
        frame in prop::collection::vec(any::<u8>(), 0..200),
        vlan in prop::option::of(0..4096u16),
    ) {
        let world = World::new(policy);
        let said = said(&frame);
        let meta = Meta {
            vlan: vlan.unwrap_or(0),
            tagged: vlan.is_some(),
            ..Meta::new(&frame[..], &said)
        };
        if let Some(verdict) = decide(&world, at, &frame, &meta, &said) {
            hold(&world, at, &verdict, &frame)?;
        }
    }

    #[test]
    fn nearly_right_frames_are_handled((at, frame, _) in nearly(), policy in policy()) {
        let world = World::new(policy);
        let said = said(&frame);
        let meta = Meta::new(&frame[..], &said);
        if let Some(verdict) = decide(&world, at, &frame, &meta, &said) {
            hold(&world, at, &verdict, &frame)?;
        }
    }

    /// `length` counts bytes that are not in reach, which no decision may rely on.
    #[test]
    fn frames_partly_out_of_reach_are_handled(
        (at, frame, _) in nearly(),
        beyond in 0..70_000u32,
        gso_size in prop_oneof![Just(0u32), 1..2000u32],
    ) {
        let world = World::new(0);
        let said = Said {
            length: frame.len() as u32 + beyond,
            gso_size,
            ..Said::default()
        };
        let meta = Meta::new(&frame[..], &said);
        if let Some(verdict) = decide(&world, at, &frame, &meta, &said) {
            let _ = carry_out(&world, at, &verdict, &frame, gso_size == 0);
        }
    }

    #[test]
    fn a_hop_keeps_the_header_right(mut header in any::<[u8; 20]>(), ttl in 1..=255u8) {
        header[0] = 0x45;
        header[2..4].copy_from_slice(&20u16.to_be_bytes());
        header[8] = ttl;
        let mut bytes = [&[0; 14][..], &header].concat();
        Ipv4Packet::new_unchecked(&mut bytes[14..]).fill_checksum();
        rewrite::take_hop(&mut bytes[..], Family::V4).expect("a whole header");
        prop_assert!(Ipv4Packet::new_unchecked(&bytes[14..]).verify_checksum());
        prop_assert!(checksum::ipv4_header_is_right(&bytes[..], 5));
        prop_assert_eq!(bytes[22], ttl - 1);
    }
}
