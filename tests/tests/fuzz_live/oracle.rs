//! What may be seen where: nothing with a source that is not the sender's, whoever has
//! completed its checksum.

use netspawn_ebpf::{
    abi::{GATEWAY4, GATEWAY6, HOST, NOBODY, Owner},
    wire::{Ipv4, Ipv6, Mac},
};
use netspawn_tests::vnet::{Received, gso};

use crate::{
    packets::MARK,
    rig::{Origin, Place, is_ping},
    rows::world::{self, ACME, DB, MACHINES, SMALL, WEB},
};

const ARP: u16 = 0x0806;
const IPV4: u16 = 0x0800;
const IPV6: u16 = 0x86dd;
const ICMP6: u8 = 58;

/// Whose a received frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Whose {
    /// The fuzzer's, and may be there.
    Sender,
    /// Another's, who speaks for itself.
    Other,
}

/// A source, of either version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Source {
    V4(Ipv4),
    V6(Ipv6),
}

fn longest<const N: usize>(entries: &[([u8; N], u32, Owner)], address: [u8; N]) -> Owner {
    let bit = |bytes: &[u8; N], at: usize| bytes[at / 8] >> (7 - at % 8) & 1;
    entries
        .iter()
        .filter(|(net, length, _)| {
            (0..*length as usize).all(|at| bit(net, at) == bit(&address, at))
        })
        .max_by_key(|(_, length, _)| *length)
        .map_or(NOBODY, |(_, _, owner)| *owner)
}

/// Looks addresses up as the rows have them.
pub struct Oracle {
    prefixes4: Vec<(Ipv4, u32, Owner)>,
    prefixes6: Vec<(Ipv6, u32, Owner)>,
    origin: Origin,
}

/// The frame's Ethernet type behind its tags, and where what follows begins.
fn type_of(frame: &[u8]) -> Option<(u16, usize)> {
    let mut at = 12;
    loop {
        let kind = u16::from_be_bytes(frame.get(at..at + 2)?.try_into().ok()?);
        if ![0x8100, 0x88a8].contains(&kind) || at > 16 {
            return Some((kind, at + 2));
        }
        at += 4;
    }
}

/// The IP source of a frame as it is sent.
pub fn source(frame: &[u8]) -> Option<Source> {
    let (kind, at) = type_of(frame)?;
    match kind {
        IPV4 => Some(Source::V4(frame.get(at + 12..at + 16)?.try_into().ok()?)),
        IPV6 => Some(Source::V6(frame.get(at + 8..at + 24)?.try_into().ok()?)),
        _ => None,
    }
}

/// Where marks begin, in the part of a frame that holds headers. Those of two tunnels and
/// all options are shorter; so is the rest of most frames.
fn marks(frame: &[u8]) -> impl Iterator<Item = usize> {
    let seen = &frame[..frame.len().min(700)];
    seen.iter()
        .enumerate()
        .filter(|(at, byte)| **byte == MARK[0] && seen[*at..].starts_with(&MARK))
        .map(|(at, _)| at)
}

/// The number in a frame's payload: thrice, as one may have been changed, or cut.
pub fn number(frame: &[u8]) -> Option<u64> {
    let word = |at: usize| frame.get(at..at + 8);
    let at = marks(frame).find(|at| {
        word(at + 16).is_some() && word(*at) == word(at + 8) && word(*at) == word(at + 16)
    })?;
    let digits = frame[at + 4..at + 8].try_into().ok()?;
    Some(u32::from_be_bytes(digits).into())
}

impl Oracle {
    pub fn new(origin: Origin) -> Self {
        Oracle {
            prefixes4: world::prefixes4(),
            prefixes6: world::prefixes6(),
            origin,
        }
    }

    fn owner4(&self, address: Ipv4) -> Owner {
        longest(&self.prefixes4, address)
    }

    fn owner6(&self, address: Ipv6) -> Owner {
        longest(&self.prefixes6, address)
    }

    /// Whose an address is.
    pub fn owner(&self, source: Source) -> Owner {
        match source {
            Source::V4(address) => self.owner4(address),
            Source::V6(address) => self.owner6(address),
        }
    }

    /// Whether no packet from the network may have it as its source (row F7).
    pub fn is_martian(&self, source: Source) -> bool {
        if [WEB, DB, ACME, SMALL].contains(&self.owner(source)) {
            return true;
        }
        match source {
            Source::V4([0 | 127 | 224..240, ..]) | Source::V4([255, 255, 255, 255]) => true,
            Source::V4(address) => address == GATEWAY4,
            Source::V6(address) => {
                let mapped = address[..10] == [0; 10] && address[10..12] == [0xff; 2];
                let low = address[..15] == [0; 15] && address[15] <= 1;
                mapped || low || address[0] == 0xff || is_link_local(&address)
            }
        }
    }

    /// Says whose a frame is that was received somewhere, its checksum completed.
    ///
    /// # Errors
    /// What is wrong with its being there.
    pub fn judge(
        &self,
        place: Place,
        received: &Received<'_>,
        frame: &[u8],
    ) -> Result<Whose, &'static str> {
        let Some(kind) = frame.get(12..14) else {
            return Err("it has no Ethernet header");
        };
        let kind = u16::from_be_bytes([kind[0], kind[1]]);
        let from: Mac = frame[6..12].try_into().unwrap_or_default();
        let seen = Seen {
            frame,
            kind,
            from,
            marked: marks(frame).next().is_some(),
        };
        if received.tag.is_some() || [0x8100, 0x88a8].contains(&kind) {
            return Err("it is tagged");
        }
        let whose = match (self.origin, place) {
            (Origin::Port, Place::Network) => self.at_network(&seen),
            (Origin::Port, Place::Uplink) => self.at_uplink(&seen),
            (Origin::Port, Place::Port) => self.at_port(&seen),
            (Origin::Port, Place::Machine(id)) => self.at_machine(&seen, id),
            (Origin::Network, Place::Machine(id)) => self.by_network(&seen, id),
            (Origin::Network, _) => Ok(Whose::Other),
        }?;
        if whose == Whose::Sender && place != Place::Port {
            lengths(place, received, &seen)?;
        }
        Ok(whose)
    }

    fn is_hosts(&self, source: Source) -> bool {
        let link_local = matches!(source, Source::V6(address) if is_link_local(&address));
        link_local || self.owner(source) == HOST
    }

    fn is_senders(&self, source: Source) -> bool {
        self.owner(source) == WEB
    }

    fn at_network(&self, seen: &Seen<'_>) -> Result<Whose, &'static str> {
        if seen.from != world::UPLINK {
            return Err("its link-layer source is not the uplink's");
        }
        if let Some(source) = seen.source()? {
            // The data plane says where machines are.
            let defends = seen.discovery() == Some(136)
                && !seen.marked
                && seen.link_layer() == Some(world::UPLINK)
                && seen.bytes(62).map(Source::V6) == Some(source);
            if self.is_senders(source) && !defends {
                return seen.no_discovery().map(|()| Whose::Sender);
            }
        }
        self.own_talk(seen, world::UPLINK)
    }

    /// What the host, or the data plane in its name, says by itself: from one link-layer
    /// address.
    fn own_talk(&self, seen: &Seen<'_>, mac: Mac) -> Result<Whose, &'static str> {
        let link_layer = seen.link_layer();
        if link_layer.is_some_and(|named| named != mac) {
            return Err("its ARP or neighbor discovery names another's link-layer address");
        }
        if seen.kind == ARP {
            return if seen.marked {
                Err("it is ARP of the sender")
            } else {
                Ok(Whose::Other)
            };
        }
        let Some(source) = seen.source()? else {
            return Err("its type is neither IP nor ARP");
        };
        let of_host = match source {
            Source::V4(address) => {
                address == GATEWAY4 || self.owner4(address) == HOST || address == [0; 4]
            }
            Source::V6(address) => {
                // The data plane defends machines' addresses.
                let defends = seen.discovery() == Some(136) && self.owner6(address) != NOBODY;
                defends
                    || address == GATEWAY6
                    || self.owner6(address) == HOST
                    || is_link_local(&address)
                    || address == [0; 16]
            }
        };
        if !of_host {
            return Err("its source is not the sender's");
        }
        // ICMP, IGMP; group reports behind their option.
        if !seen.marked && matches!(seen.protocol(), 0 | 1 | 2 | ICMP6) {
            Ok(Whose::Other)
        } else {
            Err("its source is the host's")
        }
    }

    fn at_machine(&self, seen: &Seen<'_>, id: Owner) -> Result<Whose, &'static str> {
        if seen.from != world::port_mac(id) {
            return Err("its link-layer source is not the port's");
        }
        if let Some(source) = seen.source()?
            && self.is_senders(source)
        {
            seen.no_discovery()?;
            return if id == ACME {
                Err("it is of another tenant")
            } else {
                Ok(Whose::Sender)
            };
        }
        self.own_talk(seen, world::port_mac(id))
    }

    fn at_uplink(&self, seen: &Seen<'_>) -> Result<Whose, &'static str> {
        let source = seen.source()?;
        if seen.from == world::mac(WEB) {
            return match source {
                Some(source) if self.is_senders(source) => {
                    seen.no_discovery().map(|()| Whose::Sender)
                }
                Some(_) => Err("its source is not the sender's"),
                None => Err("it is not IP"),
            };
        }
        if seen.from == world::ROUTER {
            // The network answers, and asks.
            let stranger = source.is_none_or(|source| {
                self.owner(source) == NOBODY && !matches!(source, Source::V4([127, ..]))
            });
            return if stranger {
                Ok(Whose::Other)
            } else {
                Err("its source is not the network's")
            };
        }
        // The data plane answers the host.
        if MACHINES.iter().any(|id| world::port_mac(*id) == seen.from)
            && (seen.kind == ARP && !seen.marked || seen.discovery() == Some(136))
        {
            return match seen.link_layer() {
                Some(mac) if mac != seen.from => Err("its answer names another's address"),
                _ => Ok(Whose::Other),
            };
        }
        if let Some(source) = source
            && self.owner(source) == HOST
            && seen.is_error()
        {
            return Ok(Whose::Other);
        }
        Err("its link-layer source is neither the sender's nor the network's")
    }

    fn at_port(&self, seen: &Seen<'_>) -> Result<Whose, &'static str> {
        if seen.from != world::mac(WEB) {
            return Err("its link-layer source is not the sender's");
        }
        if seen.link_layer().is_some_and(|mac| mac != world::mac(WEB)) {
            return Err("its ARP or neighbor discovery names another's link-layer address");
        }
        if seen.kind == ARP {
            let spa: Ipv4 = seen.bytes(28).unwrap_or_default();
            return if spa == [0; 4] || self.owner4(spa) == WEB {
                Ok(Whose::Sender)
            } else {
                Err("it is ARP with a sender that is not the sender")
            };
        }
        match seen.source()? {
            None => Err("its type is neither IP nor ARP"),
            Some(source) if self.is_senders(source) => self.claims(seen),
            Some(Source::V4([0, 0, 0, 0])) if seen.protocol() == 17 => Ok(Whose::Sender),
            Some(Source::V6(address)) if is_link_local(&address) && address != GATEWAY6 => {
                self.claims(seen)
            }
            Some(Source::V6(address)) if address == [0; 16] => self.claims(seen),
            Some(_) => Err("its source is not the sender's"),
        }
    }

    /// An advertisement is about the sender's own addresses; routers' are none's.
    fn claims(&self, seen: &Seen<'_>) -> Result<Whose, &'static str> {
        match seen.discovery() {
            Some(134 | 137) => Err("it is of a router"),
            Some(136) => {
                let target: Ipv6 = seen.bytes(62).unwrap_or_default();
                if self.owner6(target) == WEB || is_link_local(&target) && target != GATEWAY6 {
                    Ok(Whose::Sender)
                } else {
                    Err("it advertises an address that is not the sender's")
                }
            }
            _ => Ok(Whose::Sender),
        }
    }

    fn by_network(&self, seen: &Seen<'_>, id: Owner) -> Result<Whose, &'static str> {
        if seen.from != world::port_mac(id) {
            return Err("its link-layer source is not the port's");
        }
        if is_ping(seen.frame) {
            return Ok(Whose::Other);
        }
        match seen.source()? {
            // The host answers what was sent to it in a machine's name.
            Some(source) if self.is_hosts(source) && seen.is_answer() => Ok(Whose::Other),
            Some(source) if seen.marked || !self.is_own_talk(seen, source, id) => {
                if self.is_martian(source) {
                    Err("its source is one that the network cannot have")
                } else {
                    seen.no_discovery().map(|()| Whose::Sender)
                }
            }
            _ => self.own_talk(seen, world::port_mac(id)),
        }
    }

    fn is_own_talk(&self, seen: &Seen<'_>, source: Source, id: Owner) -> bool {
        matches!(source, Source::V6(_)) && self.own_talk(seen, world::port_mac(id)).is_ok()
    }
}

/// Whether it is fe80::/10.
fn is_link_local(address: &Ipv6) -> bool {
    address[0] == 0xfe && address[1] & 0xc0 == 0x80
}

/// A frame that is looked at.
struct Seen<'a> {
    frame: &'a [u8],
    kind: u16,
    from: Mac,
    marked: bool,
}

impl Seen<'_> {
    fn bytes<const N: usize>(&self, at: usize) -> Option<[u8; N]> {
        self.frame.get(at..at + N)?.try_into().ok()
    }

    /// `None` if it is not IP.
    fn source(&self) -> Result<Option<Source>, &'static str> {
        let source = match self.kind {
            IPV4 => self.bytes(26).map(Source::V4),
            IPV6 => self.bytes(22).map(Source::V6),
            _ => return Ok(None),
        };
        source.map(Some).ok_or("it ends within its IP header")
    }

    fn protocol(&self) -> u8 {
        let at = if self.kind == IPV4 { 23 } else { 20 };
        self.frame.get(at).copied().unwrap_or(255)
    }

    /// The type of a message of neighbor discovery.
    fn discovery(&self) -> Option<u8> {
        let kind = *self.frame.get(54)?;
        let is = self.kind == IPV6 && self.protocol() == ICMP6 && (133..=137).contains(&kind);
        is.then_some(kind)
    }

    /// Neighbor discovery that its receiver would believe never crosses a host; but it may
    /// ask the host for a router, in its own name.
    fn no_discovery(&self) -> Result<(), &'static str> {
        match self.discovery() {
            _ if self.frame.get(21) != Some(&255) => Ok(()),
            None => Ok(()),
            Some(133) if self.link_layer().is_none_or(|mac| mac == self.from) => Ok(()),
            Some(_) => Err("it is neighbor discovery"),
        }
    }

    /// Whether it is an ICMP error.
    fn is_error(&self) -> bool {
        match (self.kind, self.protocol()) {
            (IPV4, 1) => matches!(self.frame.get(34), Some(3 | 11 | 12)),
            (IPV6, ICMP6) => matches!(self.frame.get(54), Some(1..=4)),
            _ => false,
        }
    }

    /// Whether it is what a stack says of itself about a packet that it got: an error, a
    /// redirect, an echo, a reset, an advertisement.
    fn is_answer(&self) -> bool {
        let echo = match (self.kind, self.protocol()) {
            (IPV4, 1) => matches!(self.frame.get(34), Some(0 | 5)),
            (IPV6, ICMP6) => matches!(self.frame.get(54), Some(129 | 136 | 137)),
            (IPV4, 6) => self.frame.get(47).is_some_and(|flags| flags & 4 != 0),
            (IPV6, 6) => self.frame.get(67).is_some_and(|flags| flags & 4 != 0),
            _ => false,
        };
        echo || self.is_error()
    }

    /// The link-layer address that ARP or neighbor discovery says is its sender's.
    fn link_layer(&self) -> Option<Mac> {
        if self.kind == ARP {
            return self.bytes(22);
        }
        let options = match self.discovery()? {
            133 => 62,
            134 => 70,
            135 | 136 => 78,
            _ => 94,
        };
        let option: [u8; 2] = self.bytes(options)?;
        matches!(option, [1 | 2, 1])
            .then(|| self.bytes(options + 2))
            .flatten()
    }
}

/// Rows S2 and S3 of what was forwarded.
fn lengths(place: Place, received: &Received<'_>, seen: &Seen<'_>) -> Result<(), &'static str> {
    const MTU: usize = 1500;
    let frame = seen.frame;
    let packet = if seen.kind == IPV4 {
        usize::from(u16::from_be_bytes(seen.bytes(16).unwrap_or_default()))
    } else {
        40 + usize::from(u16::from_be_bytes(seen.bytes(18).unwrap_or_default()))
    };
    let kind = received.vnet.gso_type & !gso::ECN;
    if kind == gso::NONE {
        if place == Place::Network && frame.len() > MTU + 14 {
            return Err("it is longer than the uplink's MTU");
        }
        if frame.len() > (14 + packet).max(60) {
            return Err("it is longer than its packet");
        }
        return Ok(());
    }
    if received.vnet.gso_size < 8 {
        return Err("its segments are shorter than 8 bytes");
    }
    // Segments of what is in a tunnel have the tunnel outside.
    let tunnel = matches!(seen.protocol(), 4 | 17 | 41 | 47) || seen.has_extensions();
    let fits = match kind {
        gso::TCPV4 => seen.kind == IPV4 && seen.protocol() == 6,
        gso::TCPV6 => seen.kind == IPV6 && seen.protocol() == 6,
        gso::UDP | gso::UDP_L4 => seen.protocol() == 17,
        _ => true,
    };
    if fits || tunnel {
        Ok(())
    } else {
        Err("its segmentation does not fit its protocol")
    }
}

impl Seen<'_> {
    fn has_extensions(&self) -> bool {
        self.kind == IPV6 && matches!(self.protocol(), 0 | 43 | 44 | 60)
    }
}
