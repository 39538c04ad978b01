//! ARP (RFC 826, RFC 5227): rows A1 to A7, P1 to P8.

use super::{Meta, answerable, is_machine, may_use_mac};
use crate::abi::{Endpoint, GATEWAY4, HOST, NOBODY, Owner, Uplink};
use crate::tables::Tables;
use crate::verdict::{Reason, Verdict};
use crate::wire::{ArpHdr, BROADCAST, EthHdr, Frame, Ipv4, L3, is_multicast_mac};

const UNSPECIFIED: Ipv4 = [0; 4];

/// Reads an ARP message for IPv4 over Ethernet; `None` for any other (A6).
#[inline(always)]
fn parse<F: Frame + ?Sized>(frame: &F) -> Option<(ArpHdr, bool)> {
    let arp = frame.read::<ArpHdr>(L3)?;
    if arp.htype != [0, 1] || arp.ptype != [8, 0] || arp.hlen != 6 || arp.plen != 4 {
        return None;
    }
    if is_multicast_mac(&arp.sha) || arp.sha == [0; 6] {
        return None;
    }
    match arp.oper {
        [0, 1] => Some((arp, true)),
        [0, 2] => Some((arp, false)),
        _ => None,
    }
}

/// The address that the sender of a message gives as its own.
#[inline(always)]
pub(super) fn sender<F: Frame + ?Sized>(frame: &F) -> Option<Ipv4> {
    Some(parse(frame)?.0.spa)
}

#[inline(always)]
fn answer<'a>(arp: &ArpHdr, eth: &EthHdr, mac: [u8; 6]) -> Verdict<'a> {
    Verdict::arp(mac, arp.sha != eth.src_addr)
}

/// ARP from the network.
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
    let Some((arp, request)) = parse(frame) else {
        return Verdict::pass(Reason::Malformed);
    };
    if eth.dst_addr != BROADCAST && eth.dst_addr != uplink.mac {
        return Verdict::pass(Reason::NotForUs);
    }
    // A sender that uses a machine's address is in conflict with it whatever
    // it asks (RFC 5227 2.4); our own frames may come back from the network.
    if arp.spa != UNSPECIFIED && arp.sha != uplink.mac {
        let owner = tables.owner4(&arp.spa);
        if is_machine(owner) {
            return Verdict::conflict(owner);
        }
    }
    if !request || arp.sha == uplink.mac {
        return Verdict::pass(Reason::ForHost);
    }
    let answerable = answerable(tables.owner4(&arp.tpa), meta, tables);
    match answerable.endpoint {
        Some(_) => answer(&arp, eth, uplink.mac),
        None => Verdict::pass(answerable.reason),
    }
}

/// ARP from the host's own stack, on its way out.
#[inline(always)]
pub(super) fn host<'a, F, T>(frame: &F, eth: &EthHdr, tables: &'a T) -> Verdict<'a>
where
    F: Frame + ?Sized,
    T: Tables,
{
    match parse(frame) {
        Some((arp, true)) if arp.spa != arp.tpa => {
            let answerable = answerable(tables.owner4(&arp.tpa), &Meta::default(), tables);
            match answerable.endpoint {
                Some(endpoint) => answer(&arp, eth, endpoint.port_mac),
                None => Verdict::pass(answerable.reason),
            }
        }
        _ => Verdict::pass(Reason::ForHost),
    }
}

/// ARP from a machine.
#[inline(always)]
pub(super) fn port<'a, F, T>(
    frame: &F,
    eth: &EthHdr,
    id: Owner,
    endpoint: &Endpoint,
    tables: &'a T,
) -> Verdict<'a>
where
    F: Frame + ?Sized,
    T: Tables,
{
    let drop = |reason| Verdict::drop(reason, id);
    let Some((arp, request)) = parse(frame) else {
        return drop(Reason::BadFrame);
    };
    let probe = arp.spa == UNSPECIFIED;
    if !probe && tables.owner4(&arp.spa) != id {
        return drop(Reason::SpoofedSource);
    }
    if arp.sha != eth.src_addr || !may_use_mac(endpoint, &arp.sha) {
        return drop(Reason::SpoofedMac);
    }
    if !request {
        // The host may have asked through a route of its own to this port.
        return if eth.dst_addr == endpoint.port_mac && !probe {
            Verdict::pass(Reason::ForHost)
        } else {
            drop(Reason::Silent)
        };
    }
    if eth.dst_addr != BROADCAST && eth.dst_addr != endpoint.port_mac {
        return drop(Reason::Silent);
    }
    // No station has these, so that an answer would be a lie.
    if arp.tpa[0] == 0 || arp.tpa[0] == 127 || arp.tpa[0] >= 224 {
        return drop(Reason::Silent);
    }
    let answers = match tables.owner4(&arp.tpa) {
        NOBODY => !probe || arp.tpa == GATEWAY4,
        HOST => true,
        owner => owner != id,
    };
    if answers {
        answer(&arp, eth, endpoint.port_mac)
    } else {
        drop(Reason::Silent)
    }
}
