//! Differences that are meant, each with the row of the protocol that asks for it or the
//! reason why the kernel does otherwise. A difference that no rule explains is a failure.
//!
//! What a rule takes to be true of a frame it finds out by itself: the data plane's
//! reason alone explains nothing.

use netspawn_ebpf::{
    abi::{GATEWAY4, GATEWAY6, HOST, Owner, nexthop_flag},
    verdict::{Action, Reason},
};

use crate::{
    compare::{Case, Difference, Field, icmp6, ip_ends, trim},
    kernel::{Side, proxied6},
    mend::mend,
    rows::{
        At, build,
        world::{self, DOWN, TAGGED},
    },
};

use Difference::*;

/// Why ours does not do as the kernel does.
pub struct Rule {
    pub name: &'static str,
    explains: fn(&Case<'_>) -> bool,
}

/// The first rule that explains a case.
pub fn explanation(case: &Case<'_>) -> Option<usize> {
    RULES.iter().position(|rule| (rule.explains)(case))
}

fn within<const N: usize>(address: &[u8], net: &[u8; N], length: u32) -> bool {
    let bit = |bytes: &[u8], at: usize| bytes[at / 8] >> (7 - at % 8) & 1;
    address.len() == N && (0..length as usize).all(|at| bit(address, at) == bit(net, at))
}

fn longest<const N: usize>(entries: &[([u8; N], u32, u32)], address: &[u8]) -> Option<u32> {
    let matches = entries
        .iter()
        .filter(|(net, length, _)| within(address, net, *length));
    matches
        .max_by_key(|(_, length, _)| *length)
        .map(|(_, _, value)| *value)
}

const LINK_LOCAL: [u8; 16] = [0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

/// The machine or host that has an address of either kind.
fn owner(address: &[u8]) -> Option<Owner> {
    longest(&world::prefixes4(), address).or_else(|| longest(&world::prefixes6(), address))
}

/// Whether the host has a route to an address that does not refuse.
fn routed(address: &[u8]) -> bool {
    longest(&world::routes4(), address)
        .or_else(|| longest(&world::routes6(), address))
        .is_some_and(|hop| world::nexthops()[hop as usize].flags & nexthop_flag::REFUSED == 0)
}

/// Whether the host's route to an address leaves by the interface of a VLAN.
fn leaves_by_vlan(address: &[u8]) -> bool {
    longest(&world::routes4(), address)
        .or_else(|| longest(&world::routes6(), address))
        .is_some_and(|hop| world::nexthops()[hop as usize].flags >> nexthop_flag::VLAN_SHIFT != 0)
}

fn is_machine(address: &[u8]) -> bool {
    owner(address).is_some_and(|owner| owner != HOST)
}

/// Hop-by-hop, routing, fragment, authentication, destination options.
fn is_extension(header: u8) -> bool {
    matches!(header, 0 | 43 | 44 | 51 | 60)
}

/// Bytes of an extension header with that length field (RFC 8200 4, RFC 4302 2.2).
fn extension_length(header: u8, field: u8) -> usize {
    match header {
        44 => 8,
        51 => 8 + usize::from(field) * 4,
        _ => 8 + usize::from(field) * 8,
    }
}

/// Fields of a frame, as far as it has them.
impl Case<'_> {
    fn bytes(&self, range: std::ops::Range<usize>) -> &[u8] {
        self.frame.get(range).unwrap_or_default()
    }

    fn is_arp(&self) -> bool {
        self.bytes(12..14) == [8, 6]
    }

    fn is_v4(&self) -> bool {
        self.bytes(12..14) == [8, 0]
    }

    fn is_v6(&self) -> bool {
        self.bytes(12..14) == [0x86, 0xdd]
    }

    fn nd(&self) -> Option<u8> {
        icmp6(self.frame).filter(|kind| matches!(kind, 133..=137))
    }

    fn solicits(&self) -> bool {
        self.nd() == Some(135)
    }

    fn detects(&self) -> bool {
        self.solicits() && self.source() == [0; 16]
    }

    /// Source of the packet.
    fn source(&self) -> &[u8] {
        ip_ends(self.frame).map_or(&[], |(source, _)| source)
    }

    /// Destination of the packet.
    fn destination(&self) -> &[u8] {
        ip_ends(self.frame).map_or(&[], |(_, destination)| destination)
    }

    fn sha(&self) -> &[u8] {
        self.bytes(22..28)
    }

    fn spa(&self) -> &[u8] {
        self.bytes(28..32)
    }

    /// Whom an ARP request or a solicitation asks for.
    fn target(&self) -> &[u8] {
        if self.is_arp() {
            self.bytes(38..42)
        } else {
            self.bytes(62..78)
        }
    }

    fn on_uplink(&self) -> bool {
        self.at == At::Uplink
    }

    fn drops(&self, reason: Reason) -> bool {
        self.ours.action == Action::Drop && self.ours.reason == reason
    }

    fn passes(&self, reason: Reason) -> bool {
        self.ours.action == Action::Pass && self.ours.reason == reason
    }

    /// The kernel does something with the frame, ours does not.
    fn kernel_alone(&self) -> bool {
        matches!(
            self.difference,
            KernelForwards(_) | KernelAnswers | KernelReplies(_)
        )
    }

    /// The source link-layer options of a solicitation, without their first two bytes.
    fn source_options(&self) -> Vec<&[u8]> {
        let end = 54 + usize::from(u16::from_be_bytes([self.frame[18], self.frame[19]]));
        let mut options = self
            .frame
            .get(78..end.min(self.frame.len()))
            .unwrap_or_default();
        let mut found = Vec::new();
        while let [kind, units, ..] = *options
            && units > 0
        {
            let length = usize::from(units) * 8;
            let body = options.get(2..length).unwrap_or_default();
            if kind == 1 {
                found.push(body);
            }
            options = options.get(length..).unwrap_or_default();
        }
        found
    }

    /// Where the transport header starts and its protocol, unless extension headers lead
    /// out of the frame.
    fn transport(&self) -> Option<(usize, u8)> {
        if self.is_v4() {
            return Some((14 + usize::from(self.frame[14] & 15) * 4, self.frame[23]));
        }
        let (mut next, mut at) = (*self.frame.get(20)?, 54);
        while is_extension(next) {
            let length = extension_length(next, *self.frame.get(at + 1)?);
            next = *self.frame.get(at)?;
            at += length;
        }
        (at <= self.frame.len()).then_some((at, next))
    }

    /// The type of an ICMP or ICMPv6 message, also behind extension headers.
    fn icmp(&self) -> Option<u8> {
        let (at, protocol) = self.transport()?;
        let wanted = if self.is_v4() { 1 } else { 58 };
        (protocol == wanted).then(|| self.frame.get(at).copied())?
    }

    /// Extension headers before the transport header.
    fn extensions(&self) -> usize {
        let (mut next, mut at, mut count) = (self.frame[20], 54, 0);
        while is_extension(next) {
            let length = extension_length(next, *self.frame.get(at + 1).unwrap_or(&0));
            next = *self.frame.get(at).unwrap_or(&59);
            at += length;
            count += 1;
        }
        count
    }

    /// Whether the transport header's first two bytes are not in the packet.
    fn ends_early(&self) -> bool {
        self.transport()
            .is_some_and(|(at, _)| trim(self.frame).len() < at + 2)
    }

    fn options(&self) -> usize {
        let mut options = self.frame.get(78..).unwrap_or_default();
        let mut count = 0;
        while let [_, units, ..] = *options
            && units > 0
        {
            options = options.get(usize::from(units) * 8..).unwrap_or_default();
            count += 1;
        }
        count
    }
}

pub const RULES: &[Rule] = &[
    Rule {
        name: "A2 probes for machines' addresses are defended (arp_process: local ones only)",
        explains: |case| {
            *case.difference == OursAnswers
                && case.is_arp()
                && case.on_uplink()
                && case.spa() == [0; 4]
                && is_machine(case.target())
        },
    },
    Rule {
        name: "A1 the asker's address is none that the kernel routes back (rp_filter, arp_process)",
        explains: |case| {
            *case.difference == OursAnswers
                && case.is_arp()
                && !(routed(case.spa()) && owner(case.spa()).is_none())
        },
    },
    Rule {
        name: "A1 Ethernet destination is multicast, neither broadcast nor ours",
        explains: |case| {
            *case.difference == KernelAnswers
                && case.is_arp()
                && case.frame[0] & 1 == 1
                && case.frame[..6] != [0xff; 6]
        },
    },
    Rule {
        name: "A1 a sender that has the uplink's MAC is the host itself",
        explains: |case| {
            *case.difference == KernelAnswers && case.is_arp() && case.sha() == world::UPLINK
        },
    },
    Rule {
        name: "A6 sender hardware address zero or multicast is never answered",
        explains: |case| {
            *case.difference == KernelAnswers
                && case.is_arp()
                && (case.sha()[0] & 1 == 1 || case.sha() == [0; 6])
        },
    },
    Rule {
        name: "A6 hardware type 6 (IEEE 802) is not answered",
        explains: |case| {
            *case.difference == KernelAnswers && case.is_arp() && case.bytes(14..16) == [0, 6]
        },
    },
    Rule {
        name: "A7 the machine is on a VLAN, which the reference has not",
        explains: |case| {
            let tagged = matches!(case.difference, OursForwards | OursAnswers | OursErrs)
                && case.tag.is_some_and(|tag| tag & 0xfff == world::VLAN);
            let untagged = matches!(
                case.difference,
                KernelForwards(Side::Machine(TAGGED)) | KernelAnswers
            ) && case.passes(Reason::VlanPass)
                && (owner(case.destination()) == Some(TAGGED)
                    || owner(case.target()) == Some(TAGGED));
            case.on_uplink() && (tagged || untagged)
        },
    },
    Rule {
        name: "N1 the source of an advertisement is its target",
        explains: |case| *case.difference == Answer(Field::Source),
    },
    Rule {
        name: "N1 advertisements override (O=1)",
        explains: |case| *case.difference == Answer(Field::Override),
    },
    Rule {
        name: "N1 every address of a prefix is answered for, proxies are single addresses",
        explains: |case| {
            *case.difference == OursAnswers
                && case.solicits()
                && case.on_uplink()
                && is_machine(case.target())
                && proxied6(None)
                    .iter()
                    .all(|proxied| proxied != case.target())
        },
    },
    Rule {
        name: "N1 destination is neither the target nor its group",
        explains: |case| {
            *case.difference == KernelAnswers
                && case.solicits()
                && case.destination() != case.target()
                && !case.target().is_empty()
                && case.destination()
                    != build::solicited(case.target().try_into().expect("16 bytes")).0
        },
    },
    Rule {
        name: "N2 the answer has the option whether the solicitation has or not",
        explains: |case| *case.difference == Answer(Field::Option) && case.destination()[0] != 0xff,
    },
    Rule {
        name: "N2 without an option the kernel asks for the asker first, or uses what it knows",
        explains: |case| {
            matches!(case.difference, OursAnswers | Answer(Field::Asker))
                && case.solicits()
                && case.source_options().is_empty()
        },
    },
    Rule {
        name: "F2 F3 one byte of ICMP at the very end of the frame, shorter than any on a wire",
        explains: |case| {
            let ends = |header: usize| case.frame.len() == header + 1;
            matches!(case.difference, KernelReplies(1..=3 | 11))
                && (case.is_v4() && ends(14 + usize::from(case.frame[14] & 15) * 4)
                    || case.is_v6() && ends(54))
        },
    },
    Rule {
        name: "F2 F3 the Ethernet source is a group's: no error (RFC 1812 4.3.2.7)",
        explains: |case| {
            matches!(case.difference, KernelReplies(1..=3 | 11)) && case.frame[6] & 1 != 0
        },
    },
    Rule {
        name: "N1 a unicast destination in an Ethernet multicast is answered (ip6_forward drops)",
        explains: |case| {
            *case.difference == OursAnswers
                && case.solicits()
                && case.frame[0] & 1 == 1
                && case.destination()[0] != 0xff
        },
    },
    Rule {
        name: "N1 an asker with a multicast Ethernet source is not answered",
        explains: |case| {
            *case.difference == KernelAnswers && case.solicits() && case.frame[6] & 1 == 1
        },
    },
    Rule {
        name: "N5 ND is not forwarded, which hop limits below 255 would make void",
        explains: |case| {
            case.nd().is_some()
                && matches!(case.difference, KernelForwards(_) | KernelReplies(1 | 3))
        },
    },
    Rule {
        name: "N7 what may hide discovery behind extension headers does not reach the host",
        explains: |case| {
            let to = case.destination();
            case.port().is_some()
                && case.drops(Reason::BadFrame)
                && case.is_v6()
                && matches!(*case.bytes(20..22), [next, 255] if is_extension(next))
                && (owner(to) == Some(HOST) || within(to, &LINK_LOCAL, 10))
                && matches!(case.difference, KernelReplies(_))
        },
    },
    Rule {
        name: "N5 RS, RA, redirects, and ND behind extension headers go as any packet \
               (ip6_forward_proxy_check takes them)",
        explains: |case| {
            let kind = case.icmp();
            matches!(
                case.difference,
                OursForwards | OursErrs | Error(_) | KernelReplies(4)
            ) && case.is_v6()
                && matches!(kind, Some(133..=137))
                && (case.nd().is_none() || matches!(kind, Some(133 | 134 | 137)))
        },
    },
    Rule {
        name: "N5 an option with an address that is zero, multicast or not six bytes long",
        explains: |case| {
            *case.difference == KernelAnswers
                && case.solicits()
                && case
                    .source_options()
                    .iter()
                    .any(|mac| mac.len() != 6 || mac[0] & 1 == 1 || *mac == [0; 6])
        },
    },
    Rule {
        name: "A4 the sender claims a machine's address, here of one that is down",
        explains: |case| {
            *case.difference == KernelAnswers && case.is_arp() && owner(case.spa()) == Some(DOWN)
        },
    },
    Rule {
        name: "G9 multicast of either layer from machines is dropped, also what the host would answer",
        explains: |case| {
            case.drops(Reason::Multicast)
                && (case.destination()[0] == 0xff || case.frame[0] & 1 == 1)
                && matches!(case.difference, KernelReplies(_))
        },
    },
    Rule {
        name: "N7 a solicitation behind an extension header",
        explains: |case| {
            *case.difference == KernelAnswers
                && case.is_v6()
                && matches!(case.frame[20], 0 | 43 | 60)
        },
    },
    Rule {
        name: "N6 more than eight options",
        explains: |case| *case.difference == KernelAnswers && case.solicits() && case.options() > 8,
    },
    Rule {
        name: "N10 a solicitation from a machine's address comes in from the network",
        explains: |case| {
            case.on_uplink()
                && case.drops(Reason::SpoofedSource)
                && case.solicits()
                && is_machine(case.source())
        },
    },
    Rule {
        name: "P1 a machine gets an answer for any address but its own (no route or proxy entry)",
        explains: |case| {
            *case.difference == OursAnswers
                && !case.on_uplink()
                && owner(case.target()) != case.port()
        },
    },
    Rule {
        name: "P4 a machine's probe for an address that nobody here has",
        explains: |case| {
            *case.difference == KernelAnswers
                && case.drops(Reason::Silent)
                && case.detects()
                && owner(case.target()).is_none()
        },
    },
    Rule {
        name: "P7 messages of DHCP servers",
        explains: |case| {
            case.port().is_some() && case.drops(Reason::RogueDhcp) && case.kernel_alone()
        },
    },
    Rule {
        name: "P1 a wrong checksum stays wrong in the echo reply of the gateway",
        explains: |case| {
            let mut mended = case.frame.to_vec();
            mend(&mut mended);
            *case.difference == OursEchoes && mended != case.frame
        },
    },
    Rule {
        name: "P1 G6 the gateway answers plain pings and nothing else",
        explains: |case| {
            let to = case.destination();
            case.port().is_some()
                && matches!(case.ours.reason, Reason::LinkLocal | Reason::Multicast)
                && (to == GATEWAY4 || to == GATEWAY6)
                && matches!(case.difference, KernelReplies(_))
        },
    },
    Rule {
        name: "G6 a link-local destination that is not the gateway (the kernel forwards on the link)",
        explains: |case| {
            case.drops(Reason::LinkLocal)
                && within(case.destination(), &LINK_LOCAL, 10)
                && case.kernel_alone()
        },
    },
    Rule {
        name: "G5 no uplink has a route for the machine's own address, which the host's answer needs",
        explains: |case| {
            case.drops(Reason::NoRoute)
                && owner(case.destination()) == Some(HOST)
                && !routed(case.source())
                && matches!(case.difference, KernelReplies(_))
        },
    },
    Rule {
        name: "G11 a tagged frame, also one with VLAN 0",
        explains: |case| {
            case.drops(Reason::Vlan)
                && case.tag.is_some_and(|tag| tag & 0xfff == 0)
                && case.kernel_alone()
        },
    },
    Rule {
        name: "P1 the kernel asks for the asker first, whose link-local address it has not met",
        explains: |case| {
            *case.difference == OursEchoes
                && within(case.source(), &LINK_LOCAL, 10)
                && case
                    .port()
                    .map(world::guest_link_local)
                    .is_some_and(|own| own != case.source())
        },
    },
    Rule {
        name: "F6 IPv4 options are neither looked at nor written to (ip_options_compile)",
        explains: |case| {
            case.is_v4()
                && case.frame[14] & 15 > 5
                && matches!(
                    case.difference,
                    OursForwards | Forwarded(_) | KernelReplies(12 | 3) | OursErrs | Error(_)
                )
        },
    },
    Rule {
        name: "F6 hop-by-hop options are not looked at (ipv6_parse_hopopts)",
        explains: |case| {
            case.is_v6()
                && case.frame[20] == 0
                && matches!(
                    case.difference,
                    OursForwards | KernelReplies(4) | OursErrs | Error(_)
                )
        },
    },
    Rule {
        name: "F1 F2 F3 no route back to the source: strict rp_filter, or no way for an error",
        explains: |case| {
            matches!(case.difference, OursErrs | Error(_))
                && (!routed(case.source())
                    || owner(case.source()).is_some_and(|id| id != HOST && case.on_uplink()))
        },
    },
    Rule {
        name: "F2 F3 the error's type of service is none but precedence (RFC 1349 5.1), not the packet's",
        explains: |case| {
            case.is_v4() && *case.difference == Error(15) && case.frame[15] & 0x1e != 0
        },
    },
    Rule {
        name: "F2 F3 an error about ICMP of a type without a use (icmp_pointers: an error)",
        explains: |case| {
            *case.difference == OursErrs
                && case.is_v4()
                && matches!(case.icmp(), Some(1 | 2 | 6 | 7 | 9 | 10 | 19..))
        },
    },
    Rule {
        name: "F2 F3 no error about a redirect (RFC 4443 2.4 (e.2))",
        explains: |case| {
            matches!(case.difference, KernelReplies(1..=3))
                && case.is_v6()
                && case.icmp() == Some(137)
        },
    },
    Rule {
        name: "F2 F3 four extension headers or more, or that lead out of the packet: no error",
        explains: |case| {
            matches!(case.difference, KernelReplies(1..=3))
                && case.is_v6()
                && (case.transport().is_none() || case.ends_early() || case.extensions() >= 4)
        },
    },
    Rule {
        name: "G7 the code of unreachable is net, the kernel's that of the route",
        explains: |case| {
            case.is_v4() && case.drops(Reason::NoRoute) && *case.difference == Error(35)
        },
    },
    Rule {
        name: "P1 a machine that may use any MAC is answered at the one it uses (permanent entry)",
        explains: |case| {
            *case.difference == Answer(Field::Asker) && case.port() == Some(world::BRIDGE)
        },
    },
    Rule {
        name: "F3 the quote is as the packet came in, the kernel has taken a hop (ip6_forward)",
        explains: |case| {
            case.is_v6() && case.drops(Reason::TooBig) && *case.difference == Error(69)
        },
    },
    Rule {
        name: "G7 unreachable errors are limited (ip_error, net.ipv4.route.error_cost)",
        explains: |case| {
            *case.difference == OursErrs && case.is_v4() && case.drops(Reason::NoRoute)
        },
    },
    Rule {
        name: "F4 too big without DF: dropped, the kernel makes fragments",
        explains: |case| {
            case.drops(Reason::TooBig)
                && case.is_v4()
                && case.frame[20] & 0x40 == 0
                && matches!(case.difference, KernelForwards(_))
        },
    },
    Rule {
        name: "F7 the source is a machine's or the host's (no rp_filter for IPv6, no route to one down)",
        explains: |case| {
            case.on_uplink()
                && case.drops(Reason::MartianSource)
                && (case.is_v6() || owner(case.source()) == Some(DOWN))
                && (owner(case.source()).is_some()
                    || case.source() == case.destination()
                    || case.source() == [0; 16]
                    || within(case.source(), &LINK_LOCAL, 10))
                && case.kernel_alone()
        },
    },
    Rule {
        name: "F7 the source is IPv4-mapped, which the kernel forwards",
        explains: |case| {
            const MAPPED: [u8; 12] = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff];
            case.on_uplink()
                && case.drops(Reason::MartianSource)
                && !case.is_v4()
                && case.bytes(22..34) == MAPPED
                && case.kernel_alone()
        },
    },
    Rule {
        name: "P7 extension headers that end before what is behind them can be seen",
        explains: |case| {
            case.port().is_some() && case.drops(Reason::BadFrame) && case.kernel_alone()
        },
    },
    Rule {
        name: "F7 the source is the machines' gateway, which the kernel does not know",
        explains: |case| {
            case.on_uplink()
                && case.drops(Reason::MartianSource)
                && case.is_v4()
                && case.bytes(26..30) == GATEWAY4
                && case.kernel_alone()
        },
    },
    Rule {
        name: "F9 the machine is down: the reference has no route to it but the network's",
        explains: |case| {
            case.drops(Reason::EndpointDown)
                && owner(case.destination()) == Some(DOWN)
                && matches!(
                    case.difference,
                    KernelForwards(Side::Network) | KernelReplies(_) | OursErrs | Error(_)
                )
        },
    },
    Rule {
        name: "F10 not declared: left to the stack, which does not forward; the reference does",
        explains: |case| {
            case.on_uplink()
                && case.passes(Reason::NotOwned)
                && owner(case.destination()).is_none()
                && *case.difference == KernelForwards(Side::Network)
        },
    },
    Rule {
        name: "F10 the kernel redirects what it sends back to the same link (no switch for IPv6)",
        explains: |case| case.is_v6() && *case.difference == KernelReplies(137),
    },
    Rule {
        name: "F11 what is behind the packet is sent on, lengths in headers rule",
        explains: |case| *case.difference == Trailer,
    },
    Rule {
        name: "F1 the source has no route back (strict rp_filter of the reference)",
        explains: |case| {
            case.on_uplink()
                && *case.difference == OursForwards
                && case.is_v4()
                && !routed(case.source())
        },
    },
    Rule {
        name: "G1 a source that the machine routes for, to which the reference has no route",
        explains: |case| {
            let source = case.source();
            matches!(case.difference, OursForwards | OursErrs | OursEchoes)
                && (world::sources4().iter().any(|(id, net, length)| {
                    Some(*id) == case.port() && within(source, net, *length)
                }) || world::sources6().iter().any(|(id, net, length)| {
                    Some(*id) == case.port() && within(source, net, *length)
                }))
        },
    },
    Rule {
        name: "G1 P5 the source is not the machine's (the kernel has no rp_filter for IPv6)",
        explains: |case| {
            case.drops(Reason::SpoofedSource)
                && case.is_v6()
                && case.port().is_some()
                && owner(case.source()) != case.port()
                && case.kernel_alone()
        },
    },
    Rule {
        name: "G1 a DHCPv6 client's message is left to the stack, which does not forward",
        explains: |case| {
            case.port().is_some()
                && case.passes(Reason::DhcpClient)
                && case.bytes(54..58) == [2, 0x22, 2, 0x23]
                && matches!(case.difference, KernelForwards(_))
        },
    },
    Rule {
        name: "G2 P5 the frame or the claim is not from the machine's MAC",
        explains: |case| {
            let Some(id) = case.port() else { return false };
            let own = world::mac(id);
            let claims = case.is_arp() && case.sha() != &case.frame[6..12]
                || case.solicits()
                    && case
                        .source_options()
                        .iter()
                        .any(|mac| *mac != &case.frame[6..12]);
            case.drops(Reason::SpoofedMac)
                && (case.frame[6..12] != own || claims)
                && case.kernel_alone()
        },
    },
    Rule {
        name: "G3 sent to the other machine's own MAC, as in a bridge (to the host, not for it)",
        explains: |case| {
            let to = owner(case.destination()).filter(|owner| *owner != HOST);
            case.port().is_some()
                && to.is_some_and(|id| case.frame[..6] == world::mac(id))
                && matches!(case.difference, OursForwards | OursErrs)
        },
    },
    Rule {
        name: "G6 the way is on the link, where the kernel resolves (the reference has a router there)",
        explains: |case| {
            case.port().is_some()
                && matches!(case.difference, Forwarded(4))
                && (within(case.destination(), &[100, 126, 0, 0], 16)
                    || within(
                        case.destination(),
                        &[0x20, 1, 0xd, 0xb8, 0x0e, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
                        48,
                    ))
        },
    },
    Rule {
        name: "F11 what is behind the packet is cut to the least length of a frame, the kernel cuts all",
        explains: |case| {
            let end = match case.is_v4() {
                true => {
                    14 + usize::from(u16::from_be_bytes([
                        case.bytes(16..17)[0],
                        case.bytes(17..18)[0],
                    ]))
                }
                false => {
                    54 + usize::from(u16::from_be_bytes([
                        case.bytes(18..19)[0],
                        case.bytes(19..20)[0],
                    ]))
                }
            };
            matches!(case.difference, Forwarded(at) if *at >= end && *at >= 54)
        },
    },
    Rule {
        name: "G6 the way is a VLAN's, for its machines alone (the reference has no VLANs)",
        explains: |case| {
            case.port().is_some_and(|id| id != TAGGED)
                && case.drops(Reason::NoRoute)
                && leaves_by_vlan(case.destination())
                && matches!(
                    case.difference,
                    KernelForwards(Side::Network) | KernelReplies(_) | OursErrs | Error(_)
                )
        },
    },
    Rule {
        name: "G4 another tenant's machine",
        explains: |case| {
            let tenant = |id: Option<Owner>| id.map(|id| world::endpoint(id, 0).tenant);
            case.drops(Reason::TenantIsolation)
                && tenant(owner(case.destination())) != tenant(case.port())
                && case.kernel_alone()
        },
    },
    Rule {
        name: "G3 the machine's packet for its own address is not sent back",
        explains: |case| {
            case.drops(Reason::OwnDestination)
                && owner(case.destination()) == case.port()
                && case.kernel_alone()
        },
    },
    Rule {
        name: "G7 the kernel says that it has no route, ours drops for this or another reason",
        explains: |case| {
            case.port().is_some()
                && case.ours.action != Action::Out
                && !routed(case.destination())
                && *case.difference == KernelReplies(if case.is_v4() { 3 } else { 1 })
        },
    },
];
