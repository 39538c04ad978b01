//! What the kernel did with a frame, held against what the data plane does.

use netspawn_ebpf::{
    abi::{GATEWAY4, GATEWAY6, Owner},
    verdict::Action,
    wire::ndp::kind,
};

use crate::{
    generate::present,
    kernel::{Seen, Side},
    ours::Outcome,
    rows::{At, world},
};

/// What a frame that the reference emitted is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// The host's own question or report, about its own state.
    Own,
    /// An ARP reply or a neighbor advertisement.
    Answer,
    /// A packet of the host to the sender: an error, or a reply of its stack.
    Reply,
    /// The packet that was sent, on its way.
    Forward,
}

/// Something that the two do not do alike.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Difference {
    /// The kernel answers ARP or ND, ours does not.
    KernelAnswers,
    /// Ours answers ARP or ND, the kernel does not.
    OursAnswers,
    /// Answers differ in a field.
    Answer(Field),
    /// The kernel forwards, ours does not.
    KernelForwards(Side),
    /// Ours forwards, the kernel does not.
    OursForwards,
    /// They forward to different sides.
    Elsewhere(Side),
    /// The kernel cuts the packet in fragments.
    Fragments,
    /// The forwarded packets differ, first at this byte.
    Forwarded(usize),
    /// Ours sends on what is behind the packet, the kernel cuts it.
    Trailer,
    /// The kernel's stack says something to the sender about what ours drops or sends on.
    KernelReplies(u8),
    /// Ours answers the ping of the gateway, the kernel does not.
    OursEchoes,
    /// The gateway's echo replies differ, first at this byte.
    Echo(usize),
    /// Ours makes an error about the packet, the kernel does not.
    OursErrs,
    /// The errors differ, first at this byte.
    Error(usize),
}

/// A field of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Field {
    /// Any but those below.
    Other,
    /// Source of an advertisement.
    Source,
    /// The O flag.
    Override,
    /// The R flag.
    Router,
    /// The target link-layer address option.
    Option,
    /// The Ethernet destination.
    Asker,
}

fn side(at: At) -> Side {
    match at {
        At::Port(id) => Side::Machine(id),
        _ => Side::Network,
    }
}

/// The network addresses of an IP packet in a frame.
pub fn ip_ends(frame: &[u8]) -> Option<(&[u8], &[u8])> {
    match frame.get(12..14)? {
        [8, 0] => Some((frame.get(26..30)?, frame.get(30..34)?)),
        [0x86, 0xdd] => Some((frame.get(22..38)?, frame.get(38..54)?)),
        _ => None,
    }
}

/// The type of an ICMPv6 message.
pub fn icmp6(frame: &[u8]) -> Option<u8> {
    (frame.get(12..14)? == [0x86, 0xdd] && *frame.get(20)? == 58).then(|| frame.get(54).copied())?
}

fn hosts_own(address: &[u8]) -> bool {
    address == world::HOST4
        || address == GATEWAY4
        || address == world::HOST6
        || address == GATEWAY6
        || address == [0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x10]
        || address == [0; 16]
        || present().any(|id| address == world::port_link_local(id))
}

/// What an emitted frame is.
pub fn classify(at: At, sent: &[u8], seen: &Seen) -> Class {
    let frame = &seen.frame;
    match frame.get(12..14) {
        Some([8, 6]) if frame[20..22] == [0, 2] && seen.side == side(at) => return Class::Answer,
        Some([8, 6]) => return Class::Own,
        _ => {}
    }
    let Some((source, destination)) = ip_ends(frame) else {
        return Class::Forward;
    };
    if ip_ends(sent) == Some((source, destination)) {
        return Class::Forward;
    }
    if !hosts_own(source) {
        return Class::Forward;
    }
    match icmp6(frame) {
        Some(kind::ADVERTISEMENT) if seen.side == side(at) => return Class::Answer,
        // Solicitations of routers and neighbors, reports of groups.
        Some(133 | 135 | 143 | 131 | 132) => return Class::Own,
        _ => {}
    }
    if frame[12] == 0x86 && frame[20] == 0 || destination[0] == 224 {
        return Class::Own;
    }
    if is_late(sent, frame) {
        return Class::Own;
    }
    Class::Reply
}

/// Whether an ICMP error is about another packet than this: one that has waited for a
/// neighbor, which the host gives up after seconds.
fn is_late(sent: &[u8], error: &[u8]) -> bool {
    let quote = match (error[12], icmp_type(error)) {
        (8, 3 | 4 | 5 | 11 | 12) => 14 + usize::from(error[14] & 15) * 4 + 8 + 12,
        (0x86, 1..=4) => 54 + 8 + 8,
        _ => return false,
    };
    let length = if error[12] == 8 { 8 } else { 32 };
    let (_, about) = ip_ends(sent).unwrap_or_default();
    error
        .get(quote..quote + length)
        .is_some_and(|ends| !ends.ends_with(about))
}

/// The frame without what is behind the IP packet.
pub fn trim(frame: &[u8]) -> &[u8] {
    let length = match frame.get(12..14) {
        Some([8, 0]) if frame.len() >= 34 => {
            14 + usize::from(u16::from_be_bytes([frame[16], frame[17]]))
        }
        // No length before hop-by-hop options may be that of a jumbogram (RFC 2675).
        Some([0x86, 0xdd]) if frame.len() >= 54 && frame[18..21] != [0, 0, 0] => {
            54 + usize::from(u16::from_be_bytes([frame[18], frame[19]]))
        }
        _ => frame.len(),
    };
    &frame[..length.min(frame.len())]
}

fn first_difference(a: &[u8], b: &[u8], from: usize) -> Option<usize> {
    if a.len() != b.len() {
        return Some(a.len().min(b.len()));
    }
    (from..a.len()).find(|&at| a[at] != b[at])
}

fn answers(ours: &[u8], theirs: &[u8], found: &mut Vec<Difference>) {
    let mut differ = |field| found.push(Difference::Answer(field));
    if ours[..6] != theirs[..6] {
        differ(Field::Asker);
    }
    if ours[12..14] != theirs[12..14] {
        return differ(Field::Other);
    }
    if ours[12..14] == [8, 6] {
        if ours[6..42] != theirs[6..42] {
            differ(Field::Other);
        }
        return;
    }
    if ours[22..38] != theirs[22..38] {
        let meant = ours[22..38] == ours[62..78] && hosts_own(&theirs[22..38]);
        differ(if meant { Field::Source } else { Field::Other });
    }
    const OVERRIDE: u8 = 0x20;
    const ROUTER: u8 = 0x80;
    let flags = ours[58] ^ theirs[58];
    if flags & OVERRIDE != 0 {
        let meant = ours[58] & OVERRIDE != 0;
        differ(if meant { Field::Override } else { Field::Other });
    }
    if flags & ROUTER != 0 {
        differ(Field::Router);
    }
    match theirs.len() {
        78 => differ(Field::Option),
        86 if ours[78..86] == theirs[78..86] => {}
        _ => differ(Field::Other),
    }
    // Ethernet source and type, version to flow label, next header and hop limit,
    // destination, type and code, the rest of the flags, target.
    let same = |range: std::ops::Range<usize>| ours[range.clone()] == theirs[range];
    if !(same(6..18) && same(20..22) && same(38..56) && same(59..78))
        || flags & !(OVERRIDE | ROUTER) != 0
    {
        differ(Field::Other);
    }
}

fn forwarded(ours: &Outcome, frame: &[u8], theirs: &[u8], found: &mut Vec<Difference>) {
    let trimmed = trim(frame);
    if trimmed.len() != frame.len() {
        found.push(Difference::Trailer);
    }
    // Where the kernel's neighbor table decides, it does later.
    let from = if ours.by_neighbor { 12 } else { 0 };
    if let Some(at) = first_difference(trimmed, theirs, from) {
        found.push(Difference::Forwarded(at));
    }
}

/// Where two packets of the host differ, in what is compared of them: neither Ethernet
/// addresses, as the kernel routes what ours sends back to where the question came from,
/// nor the identification of IPv4, the DF flag, and the flow label.
fn replies(ours: &[u8], theirs: &[u8]) -> Option<usize> {
    let (mut ours, mut theirs) = (trim(ours).to_vec(), trim(theirs).to_vec());
    for frame in [&mut ours, &mut theirs] {
        frame[..12].fill(0);
        if frame[12] == 8 {
            frame[18..22].fill(0);
            // The checksum covers them; the parsers of other tests check it.
            frame[24..26].fill(0);
        } else {
            frame[15..18].fill(0);
        }
    }
    let check = if ours[12] == 8 { 36..38 } else { 56..58 };
    let (mut own, mut other) = (ours.clone(), theirs.clone());
    for frame in [&mut own, &mut other] {
        frame[check.clone()].fill(0);
    }
    // A checksum differs where something else does, which says more.
    first_difference(&own, &other, 12).or_else(|| first_difference(&ours, &theirs, 12))
}

/// The side that ours forwards to.
fn goes_to(ours: &Outcome) -> Option<Side> {
    match ours.action {
        Action::Deliver => Some(Side::Machine(ours.to)),
        Action::Out => Some(Side::Network),
        _ => None,
    }
}

/// The differences between ours and what the reference emitted.
pub fn differences(at: At, sent: &[u8], ours: &Outcome, seen: &[Seen]) -> Vec<Difference> {
    let mut found = Vec::new();
    let of = |class| {
        seen.iter()
            .filter(move |seen| classify(at, sent, seen) == class)
    };
    // What is left to the stack is answered by the same kernel.
    let to_stack = matches!(ours.action, Action::Pass | Action::ToHost);

    match (
        matches!(ours.action, Action::Arp | Action::Ndp),
        of(Class::Answer).next(),
    ) {
        (false, None) => {}
        (false, Some(answer)) => {
            // The host speaks for its own addresses.
            let own = match answer.frame[12] {
                8 => hosts_own(&answer.frame[28..32]),
                _ => answer.frame.get(62..78).is_some_and(hosts_own),
            };
            if !(to_stack && own) {
                found.push(Difference::KernelAnswers);
            }
        }
        (true, None) => found.push(Difference::OursAnswers),
        (true, Some(answer)) => {
            let frame = ours.frame.as_deref().unwrap_or_default();
            answers(frame, &answer.frame, &mut found);
        }
    }

    let packets: Vec<_> = of(Class::Forward).collect();
    match (goes_to(ours), packets.as_slice()) {
        (None, []) => {}
        (None, [packet, ..]) => found.push(Difference::KernelForwards(packet.side)),
        (Some(_), []) => found.push(Difference::OursForwards),
        (Some(side), [packet, rest @ ..]) => {
            if packet.side != side {
                found.push(Difference::Elsewhere(packet.side));
            } else if !rest.is_empty() {
                found.push(Difference::Fragments);
            } else {
                let frame = ours.frame.as_deref().unwrap_or_default();
                forwarded(ours, frame, &packet.frame, &mut found);
            }
        }
    }

    let reply = of(Class::Reply).next();
    let said = match ours.action {
        Action::Echo | Action::Drop => ours.frame.as_deref(),
        _ => None,
    };
    let echoes = ours.action == Action::Echo;
    match (said, reply) {
        (None, None) => {}
        (None, Some(_)) if to_stack => {}
        (None, Some(reply)) => found.push(Difference::KernelReplies(icmp_type(&reply.frame))),
        (Some(_), None) if echoes => found.push(Difference::OursEchoes),
        (Some(_), None) => found.push(Difference::OursErrs),
        (Some(said), Some(reply)) => {
            if let Some(at) = replies(said, &reply.frame) {
                found.push(match echoes {
                    true => Difference::Echo(at),
                    false => Difference::Error(at),
                });
            }
        }
    }
    found
}

/// The ICMP type of a packet of the host, 255 for anything else.
fn icmp_type(frame: &[u8]) -> u8 {
    let found = match frame[12] {
        8 if frame[23] == 1 => frame.get(14 + usize::from(frame[14] & 15) * 4).copied(),
        8 => None,
        _ => icmp6(frame),
    };
    found.unwrap_or(255)
}

/// Everything that a rule may look at.
pub struct Case<'a> {
    pub at: At,
    /// Without its 802.1Q tag.
    pub frame: &'a [u8],
    /// The tag.
    pub tag: Option<u16>,
    pub ours: &'a Outcome,
    pub difference: &'a Difference,
}

impl Case<'_> {
    /// The machine whose port it came from.
    pub fn port(&self) -> Option<Owner> {
        match self.at {
            At::Port(id) => Some(id),
            _ => None,
        }
    }
}
