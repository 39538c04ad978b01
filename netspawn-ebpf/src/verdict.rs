//! What is to happen to a frame, as data.

use crate::abi::{Endpoint, NOBODY, NextHop, Owner};
use crate::wire::Mac;

macro_rules! reasons {
    ($($(#[doc = $line:literal])+ $variant:ident = $kind:ident, $name:literal;)*) => {
        /// Why a frame was passed, dropped, answered or forwarded. Each has a
        /// counter in [`crate::abi::map::COUNTS`] under its number.
        #[repr(u32)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum Reason { $($(#[doc = $line])+ $variant,)* }

        impl Reason {
            /// All reasons, in the order of their numbers.
            pub const ALL: &[Reason] = &[$(Reason::$variant,)*];

            /// The name that users look up.
            pub const fn name(self) -> &'static str {
                match self { $(Reason::$variant => $name,)* }
            }

            /// When it is counted, in a sentence for users.
            pub const fn meaning(self) -> &'static str {
                match self { $(Reason::$variant => concat!($($line),+).trim_ascii(),)* }
            }

            /// What happens to a frame for this reason.
            pub const fn kind(self) -> Kind {
                match self { $(Reason::$variant => Kind::$kind,)* }
            }
        }
    };
}

impl Reason {
    /// Whether frames dropped or passed for it are told as an
    /// [`crate::abi::Event`]: somebody does what is not theirs.
    #[inline(always)]
    pub const fn is_told(self) -> bool {
        matches!(
            self,
            Reason::AddressConflict
                | Reason::SpoofedSource
                | Reason::SpoofedMac
                | Reason::RogueRouter
                | Reason::RogueDhcp
                | Reason::BadOffload
        )
    }
}

/// What a [`Reason`] does to a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// To the kernel's stack, unchanged.
    Pass,
    /// Dropped.
    Drop,
    /// Answered in place.
    Answer,
    /// Sent on.
    Forward,
}

reasons! {
    /// Destination or target is no machine's.
    NotOwned = Pass, "not_owned";
    /// Neither ARP nor IP.
    OtherProtocol = Pass, "other_protocol";
    /// Not addressed to the uplink's link-layer address.
    NotForUs = Pass, "not_for_us";
    /// ARP or ND that breaks its RFC, or is cut short.
    Malformed = Pass, "malformed";
    /// ND with a wrong checksum or hop limit.
    BadNd = Pass, "bad_nd";
    /// ND with more options than are looked at.
    ManyOptions = Pass, "many_options";
    /// An 802.1Q tag that no machine of that VLAN owns.
    VlanPass = Pass, "vlan_pass";
    /// ARP reply, neighbor advertisement or question for the host.
    ForHost = Pass, "for_host";
    /// A DHCP client's first packets.
    DhcpClient = Pass, "dhcp_client";
    /// A frame that the data plane handed over to the stack itself.
    Handed = Pass, "handed";
    /// Another station claims an owned address.
    AddressConflict = Pass, "address_conflict";
    /// IPv4 header length, total length, version or checksum is wrong.
    BadHeader = Drop, "bad_header";
    /// Source is owned, multicast, loopback, the machines' gateway or the destination itself;
    /// on the way out of an uplink, a machine's that neither the machine nor this host has
    /// sent.
    MartianSource = Drop, "martian_source";
    /// Destination is loopback, unspecified or reserved.
    MartianDestination = Drop, "martian_destination";
    /// Destination is declared, its machine is not up.
    EndpointDown = Drop, "endpoint_down";
    /// TTL or hop limit used up.
    TtlExceeded = Drop, "ttl_exceeded";
    /// Larger than the MTU of the way on.
    TooBig = Drop, "too_big";
    /// A machine sent from an address that it does not own.
    SpoofedSource = Drop, "spoofed_source";
    /// A machine sent from a link-layer address that is not its own.
    SpoofedMac = Drop, "spoofed_mac";
    /// Router advertisement or redirect from a machine.
    RogueRouter = Drop, "rogue_router";
    /// DHCP server message from a machine.
    RogueDhcp = Drop, "rogue_dhcp";
    /// Tenants differ.
    TenantIsolation = Drop, "tenant_isolation";
    /// Machines may not reach the host, but for answers.
    HostDenied = Drop, "host_denied";
    /// A tagged frame from a machine.
    Vlan = Drop, "vlan";
    /// Multicast or broadcast from a machine.
    Multicast = Drop, "multicast";
    /// Ethernet type that is not forwarded.
    EtherType = Drop, "ether_type";
    /// Link-local destination that is not the gateway.
    LinkLocal = Drop, "link_local";
    /// A machine's packet for its own address.
    OwnDestination = Drop, "own_destination";
    /// A machine's packet to a link-layer address that is not the gateway's.
    WrongGateway = Drop, "wrong_gateway";
    /// No route of the host leads there.
    NoRoute = Drop, "no_route";
    /// A machine has made the host look for more neighbors than it may.
    NeighborBudget = Drop, "neighbor_budget";
    /// A port that belongs to no machine, or is closed.
    UnknownPort = Drop, "unknown_port";
    /// A question that is to be left without an answer (DAD of the machine's
    /// own address, announcements).
    Silent = Drop, "silent";
    /// Truncated or malformed frame from a machine.
    BadFrame = Drop, "bad_frame";
    /// Checksum offset, GSO or Ethernet type that the sender set does not fit the frame.
    BadOffload = Drop, "bad_offload";
    /// A helper of the kernel refused.
    HelperFailed = Drop, "helper_failed";
    /// ARP request answered.
    AnsweredArp = Answer, "arp";
    /// Neighbor solicitation answered.
    AnsweredNdp = Answer, "ndp";
    /// Echo request to the gateway answered.
    AnsweredEcho = Answer, "echo";
    /// ICMP error made about a dropped packet, which is counted under its own
    /// reason as well.
    AnsweredError = Answer, "icmp_error";
    /// ARP whose sender differs from the Ethernet source, answered all the same.
    ArpSourceDiffers = Answer, "arp_source_differs";
    /// Network or host to machine.
    ForwardedIn = Forward, "in";
    /// Machine to network or host.
    ForwardedOut = Forward, "out";
    /// Machine to machine.
    ForwardedLocal = Forward, "local";
}

/// Which IP header a forwarded frame has, at byte 14.
#[repr(u32)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Family {
    /// IPv4.
    #[default]
    V4,
    /// IPv6.
    V6,
}

/// The ICMP error that a dropped packet gives rise to.
#[repr(u32)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Error {
    /// None.
    #[default]
    None,
    /// Time exceeded in transit (RFC 792, RFC 4443 3.3).
    TimeExceeded,
    /// Fragmentation needed (RFC 1191), packet too big (RFC 4443 3.2).
    TooBig,
    /// Host, or address, unreachable (RFC 792, RFC 4443 3.1).
    HostUnreachable,
    /// Net unreachable, or no route (RFC 792, RFC 4443 3.1).
    NoRoute,
}

/// What is to be done with a frame.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// To the stack, unchanged but for the Ethernet destination where the verdict has one.
    Pass,
    /// Dropped.
    Drop,
    /// Rewritten to an ARP reply, back where it came from.
    Arp,
    /// Rewritten to a neighbor advertisement, back where it came from.
    Ndp,
    /// Rewritten to an echo reply from the gateway, back where it came from.
    Echo,
    /// To a machine.
    Deliver,
    /// Out of an uplink.
    Out,
    /// To the host's stack, as if it had come in on an uplink.
    ToHost,
}

/// A link-layer address in the first six bytes of a word.
pub type MacWord = u64;

/// The word of an address.
#[inline(always)]
pub const fn mac_word([a, b, c, d, e, f]: Mac) -> MacWord {
    u64::from_ne_bytes([a, b, c, d, e, f, 0, 0])
}

/// The address in a word.
#[inline(always)]
pub const fn word_mac(word: MacWord) -> Mac {
    let [a, b, c, d, e, f, ..] = word.to_ne_bytes();
    [a, b, c, d, e, f]
}

/// What is to be done with a frame, and why.
///
/// Flat, with every field set, rather than an enum with payloads: LLVM reads
/// payloads ahead of their discriminant, which the verifier refuses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verdict<'a> {
    /// What.
    pub action: Action,
    /// Why; what it is counted as.
    pub reason: Reason,
    /// `Deliver`: the machine's endpoint id. `Drop`: the endpoint it is charged
    /// to, or [`NOBODY`]. `Pass` of a conflict: the endpoint whose address it is.
    pub id: Owner,
    /// `Deliver`, `Out`, `ToHost`: the sending endpoint, or [`NOBODY`].
    pub from: Owner,
    /// `Deliver`: the machine's endpoint.
    pub endpoint: Option<&'a Endpoint>,
    /// `Out`, `ToHost`: the way. `Drop` of what the host is not to get: the way that it
    /// would go, `None` or a refusing one for straight to the stack.
    pub hop: Option<&'a NextHop>,
    /// `Arp`, `Ndp`: who answers. `Pass`: the Ethernet destination that the frame is given,
    /// 0 to leave it.
    pub mac: MacWord,
    /// `Ndp`: the Ethernet destination of the advertisement.
    pub asker: MacWord,
    /// `Ndp`: the R flag, set for the gateway's own names only.
    pub router: bool,
    /// `Arp`: the asker's address is not the Ethernet source.
    pub source_differs: bool,
    /// `Deliver`: whether the TTL or hop limit goes down by one (not for packets
    /// that the host itself made).
    pub takes_hop: bool,
    /// `Deliver`, `Out`, `Echo`, `Drop` with an error: the IP header.
    pub family: Family,
    /// `Drop`: the error to send, if the packet is one that errors are sent
    /// about.
    pub error: Error,
    /// `Drop` with [`Error::TooBig`]: the MTU of the way on.
    pub mtu: u32,
    /// `Deliver`: IP protocol or first next header.
    pub protocol: u8,
}

impl<'a> Verdict<'a> {
    #[inline(always)]
    const fn new(action: Action, reason: Reason) -> Self {
        Verdict {
            action,
            reason,
            id: NOBODY,
            from: NOBODY,
            endpoint: None,
            hop: None,
            mac: 0,
            asker: 0,
            router: false,
            source_differs: false,
            takes_hop: false,
            family: Family::V4,
            error: Error::None,
            mtu: 0,
            protocol: 0,
        }
    }

    /// To the stack, unchanged.
    #[inline(always)]
    pub const fn pass(reason: Reason) -> Self {
        Self::new(Action::Pass, reason)
    }

    /// To the stack under its own link-layer address: in a bridge, a broadcast or a group's
    /// frame would go to all ports.
    #[inline(always)]
    pub const fn to_stack(reason: Reason, mac: Mac) -> Self {
        Verdict {
            mac: mac_word(mac),
            ..Self::pass(reason)
        }
    }

    /// To the stack, unchanged: another station claims an address of this
    /// endpoint.
    #[inline(always)]
    pub const fn conflict(id: Owner) -> Self {
        Verdict {
            id,
            ..Self::pass(Reason::AddressConflict)
        }
    }

    /// Dropped, and charged to an endpoint or [`NOBODY`].
    #[inline(always)]
    pub const fn drop(reason: Reason, id: Owner) -> Self {
        Verdict {
            id,
            ..Self::new(Action::Drop, reason)
        }
    }

    /// Dropped because machines may not reach the host, unless it answers what the host has
    /// begun ([`crate::decide::reply`]).
    #[inline(always)]
    pub const fn denied(id: Owner, hop: Option<&'a NextHop>) -> Self {
        Verdict {
            hop,
            ..Self::drop(Reason::HostDenied, id)
        }
    }

    /// Dropped, charged to an endpoint, and reported to the sender.
    #[inline(always)]
    pub const fn refuse(reason: Reason, id: Owner, family: Family, error: Error, mtu: u32) -> Self {
        Verdict {
            family,
            error,
            mtu,
            ..Self::drop(reason, id)
        }
    }

    /// An ARP reply by `mac`.
    #[inline(always)]
    pub const fn arp(mac: Mac, source_differs: bool) -> Self {
        Verdict {
            mac: mac_word(mac),
            source_differs,
            ..Self::new(Action::Arp, Reason::AnsweredArp)
        }
    }

    /// A neighbor advertisement by `mac` to `asker`.
    #[inline(always)]
    pub const fn ndp(mac: Mac, asker: MacWord, router: bool) -> Self {
        Verdict {
            mac: mac_word(mac),
            asker,
            router,
            ..Self::new(Action::Ndp, Reason::AnsweredNdp)
        }
    }

    /// An echo reply.
    #[inline(always)]
    pub const fn echo(family: Family) -> Self {
        Verdict {
            family,
            ..Self::new(Action::Echo, Reason::AnsweredEcho)
        }
    }

    /// To a machine, from a machine of this host or [`NOBODY`].
    #[inline(always)]
    pub const fn deliver(
        id: Owner,
        endpoint: &'a Endpoint,
        from: Owner,
        takes_hop: bool,
        family: Family,
        protocol: u8,
    ) -> Self {
        let reason = if from == NOBODY {
            Reason::ForwardedIn
        } else {
            Reason::ForwardedLocal
        };
        Verdict {
            id,
            endpoint: Some(endpoint),
            from,
            takes_hop,
            family,
            protocol,
            ..Self::new(Action::Deliver, reason)
        }
    }

    /// Out of an uplink.
    #[inline(always)]
    pub const fn out(from: Owner, hop: &'a NextHop, family: Family) -> Self {
        Verdict {
            from,
            hop: Some(hop),
            family,
            ..Self::new(Action::Out, Reason::ForwardedOut)
        }
    }

    /// To the host by way of the uplink of `hop`.
    #[inline(always)]
    pub const fn to_host(from: Owner, hop: &'a NextHop) -> Self {
        Verdict {
            from,
            hop: Some(hop),
            ..Self::new(Action::ToHost, Reason::ForwardedOut)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn meanings_are_one_sentence_each() {
        for reason in Reason::ALL {
            let meaning = reason.meaning();
            let broken = meaning.contains("  ") || meaning.contains('\n');
            assert!(
                meaning.ends_with('.') && meaning.trim() == meaning && !broken,
                "{}: {meaning:?}",
                reason.name()
            );
        }
    }
}
