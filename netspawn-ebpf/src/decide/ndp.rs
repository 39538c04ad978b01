//! Neighbor solicitations and advertisements (RFC 4861 7, RFC 4862 5.4): rows
//! N1 to N10, P1 to P8.

use super::{Meta, answerable, is_machine, may_use_mac};
use crate::abi::{Endpoint, GATEWAY6, HOST, NOBODY, Owner, Uplink};
use crate::tables::Tables;
use crate::verdict::{MacWord, Reason, Verdict, mac_word, word_mac};
use crate::wire::{
    EthHdr, Frame, Ip6, L4_V6, Mac, Words6, checksum, is_link_local6, is_loopback6,
    is_multicast_mac, is_multicast6, is_unspecified6,
    ndp::{
        ALL_NODES_MAC, HEADER, HOP_LIMIT, MAX_OPTIONS, MAX_UNITS, OPTION_SOURCE, OPTION_TARGET,
        OPTIONS, TARGET, kind, solicited_node,
    },
    protocol, words6,
};

/// What the examination of a message found.
struct Examined {
    /// Why it is not answered.
    fault: Option<Reason>,
    /// Its link-layer address option, or [`NO_OPTION`].
    option: MacWord,
}

/// There is none; no address has all 64 bits.
const NO_OPTION: MacWord = MacWord::MAX;

#[inline(always)]
fn fault(reason: Reason) -> Examined {
    Examined {
        fault: Some(reason),
        option: NO_OPTION,
    }
}

/// The fields at fixed places, cheap enough to look up the target before the
/// rest is examined.
#[inline(always)]
fn head<F: Frame + ?Sized>(frame: &F) -> Option<(Ip6, Words6)> {
    Some((Ip6::read(frame)?, frame.read::<Words6>(TARGET)?))
}

/// Checks a message (RFC 4861 7.1.1, 7.1.2) and finds its link-layer address
/// option of the type `wanted`.
#[inline(always)]
fn examine<F: Frame + ?Sized>(frame: &F, ip: &Ip6, target: &Words6, wanted: u8) -> Examined {
    let length = usize::from(ip.payload);
    if ip.version >> 4 != 6 || frame.read::<u8>(L4_V6 + 1) != Some(0) {
        return fault(Reason::Malformed);
    }
    if length < HEADER || !length.is_multiple_of(8) || is_multicast6(target) {
        return fault(Reason::Malformed);
    }
    if ip.hop_limit != HOP_LIMIT {
        return fault(Reason::BadNd);
    }
    let end = L4_V6 + length;
    let mut option = NO_OPTION;
    let mut offset = OPTIONS;
    for _ in 0..MAX_OPTIONS {
        if offset >= end {
            break;
        }
        // Options are eight bytes long at least.
        let Some(bytes) = frame.read::<u64>(offset) else {
            return fault(Reason::Malformed);
        };
        let [kind, units, a, b, c, d, e, f] = bytes.to_ne_bytes();
        if units == 0 || kind == wanted && units != 1 {
            return fault(Reason::Malformed);
        }
        // The first counts (`ndisc_parse_options`).
        if kind == wanted && option == NO_OPTION {
            option = mac_word([a, b, c, d, e, f]);
        }
        offset += usize::from(units) * 8;
    }
    if offset < end {
        return fault(Reason::ManyOptions);
    }
    if offset > end {
        return fault(Reason::Malformed);
    }
    let Some(sum) = checksum::sum8::<MAX_UNITS>(frame, L4_V6, length) else {
        return fault(Reason::Malformed);
    };
    let pseudo = checksum::pseudo6(&ip.source, &ip.destination, ip.payload, protocol::ICMPV6);
    if checksum::fold(sum + pseudo) != 0xffff {
        return fault(Reason::BadNd);
    }
    Examined {
        fault: None,
        option,
    }
}

/// What makes a sound message a solicitation (RFC 4861 7.1.1), whose target is
/// its destination or in the destination's solicited-node group.
#[inline(always)]
fn is_solicitation(ip: &Ip6, target: &Words6, option: MacWord, eth: &EthHdr) -> bool {
    let group = ip.destination == solicited_node(target);
    let addressed = if is_unspecified6(&ip.source) {
        group && option == NO_OPTION
    } else {
        !is_multicast6(&ip.source) && (group || ip.destination == *target)
    };
    // The answer goes to one station.
    let usable = if option == NO_OPTION {
        !is_multicast_mac(&eth.src_addr)
    } else {
        option != 0 && !is_multicast_mac(&word_mac(option))
    };
    addressed && usable
}

/// Examines a solicitation, and answers it as `mac`.
#[inline(always)]
fn answer_sound<'a, F: Frame + ?Sized>(
    frame: &F,
    eth: &EthHdr,
    ip: &Ip6,
    target: &Words6,
    mac: Mac,
) -> Verdict<'a> {
    let examined = examine(frame, ip, target, OPTION_SOURCE);
    if let Some(fault) = examined.fault {
        return Verdict::pass(fault);
    }
    if !is_solicitation(ip, target, examined.option, eth) {
        return Verdict::pass(Reason::Malformed);
    }
    answer(ip, examined.option, eth, mac, false)
}

/// The advertisement that answers a solicitation: to all nodes for duplicate
/// address detection (RFC 4861 7.2.4), else to the asker.
#[inline(always)]
fn answer<'a>(ip: &Ip6, option: MacWord, eth: &EthHdr, mac: Mac, router: bool) -> Verdict<'a> {
    let asker = if is_unspecified6(&ip.source) {
        mac_word(ALL_NODES_MAC)
    } else if option != NO_OPTION {
        option
    } else {
        mac_word(eth.src_addr)
    };
    Verdict::ndp(mac, asker, router)
}

/// A solicitation from the network.
#[inline(always)]
pub(super) fn uplink<'a, F, T>(
    frame: &F,
    eth: &EthHdr,
    meta: &Meta,
    uplink: &Uplink,
    tables: &'a T,
) -> Verdict<'a>
where
    F: Frame + ?Sized,
    T: Tables,
{
    if !is_multicast_mac(&eth.dst_addr) && eth.dst_addr != uplink.mac {
        return Verdict::pass(Reason::NotForUs);
    }
    let Some((ip, target)) = head(frame) else {
        return Verdict::pass(Reason::Malformed);
    };
    if is_loopback6(&ip.source) {
        return Verdict::pass(Reason::Malformed);
    }
    let sender = tables.owner6(&ip.source);
    if is_machine(sender) {
        return Verdict::drop(Reason::SpoofedSource, sender);
    }
    let answerable = answerable(tables.owner6(&target), meta, tables);
    match answerable.endpoint {
        Some(_) => answer_sound(frame, eth, &ip, &target, uplink.mac),
        None => Verdict::pass(answerable.reason),
    }
}

/// An advertisement from the network: for the host, or in conflict with a
/// machine (RFC 4862 5.4.4).
#[inline(always)]
pub(super) fn uplink_advertisement<'a, F, T>(
    frame: &F,
    eth: &EthHdr,
    uplink: &Uplink,
    tables: &'a T,
) -> Verdict<'a>
where
    F: Frame + ?Sized,
    T: Tables,
{
    let Some((_, target)) = head(frame) else {
        return Verdict::pass(Reason::Malformed);
    };
    let owner = tables.owner6(&target);
    if is_machine(owner) && eth.src_addr != uplink.mac {
        Verdict::conflict(owner)
    } else {
        Verdict::pass(Reason::ForHost)
    }
}

/// A solicitation from the host's own stack, on its way out.
#[inline(always)]
pub(super) fn host<'a, F, T>(frame: &F, eth: &EthHdr, tables: &'a T) -> Verdict<'a>
where
    F: Frame + ?Sized,
    T: Tables,
{
    let Some((ip, target)) = head(frame) else {
        return Verdict::pass(Reason::Malformed);
    };
    let answerable = answerable(tables.owner6(&target), &Meta::default(), tables);
    match answerable.endpoint {
        Some(endpoint) => answer_sound(frame, eth, &ip, &target, endpoint.port_mac),
        None => Verdict::pass(answerable.reason),
    }
}

/// Whether a machine may use this address as a source or claim it.
#[inline(always)]
pub(super) fn may_use<T: Tables>(
    address: &Words6,
    id: Owner,
    endpoint: &Endpoint,
    tables: &T,
) -> bool {
    if is_link_local6(address) {
        *address != words6(&GATEWAY6) && *address != words6(&endpoint.port_link_local)
    } else {
        tables.owner6(address) == id
    }
}

/// A solicitation or advertisement from a machine. Its source has been checked.
#[inline(always)]
pub(super) fn port<'a, F, T>(
    frame: &F,
    eth: &EthHdr,
    ip: &Ip6,
    nd: u8,
    id: Owner,
    endpoint: &Endpoint,
    tables: &'a T,
) -> Verdict<'a>
where
    F: Frame + ?Sized,
    T: Tables,
{
    let drop = |reason| Verdict::drop(reason, id);
    let solicits = nd == kind::SOLICITATION;
    let Some(target) = frame.read::<Words6>(TARGET) else {
        return drop(Reason::BadFrame);
    };
    // To advertise an address is to claim it.
    if !solicits && !may_use(&target, id, endpoint, tables) {
        return drop(Reason::SpoofedSource);
    }
    let wanted = if solicits {
        OPTION_SOURCE
    } else {
        OPTION_TARGET
    };
    let Examined {
        fault: None,
        option,
    } = examine(frame, ip, &target, wanted)
    else {
        return drop(Reason::BadFrame);
    };
    let mac = word_mac(option);
    if option != NO_OPTION && (mac != eth.src_addr || !may_use_mac(endpoint, &mac)) {
        return drop(Reason::SpoofedMac);
    }
    if !solicits {
        // The host may have asked, for the link-local address of the machine.
        return if eth.dst_addr == endpoint.port_mac && !is_multicast6(&ip.destination) {
            Verdict::pass(Reason::ForHost)
        } else {
            drop(Reason::Silent)
        };
    }
    if !is_solicitation(ip, &target, option, eth) {
        return drop(Reason::BadFrame);
    }
    if !is_multicast_mac(&eth.dst_addr) && eth.dst_addr != endpoint.port_mac {
        return drop(Reason::Silent);
    }
    let gateway = target == words6(&GATEWAY6) || target == words6(&endpoint.port_link_local);
    let answers = if is_link_local6(&target) {
        gateway
    } else {
        match tables.owner6(&target) {
            NOBODY => !is_unspecified6(&ip.source),
            HOST => true,
            owner => owner != id,
        }
    };
    if answers {
        answer(ip, option, eth, endpoint.port_mac, gateway)
    } else {
        drop(Reason::Silent)
    }
}
