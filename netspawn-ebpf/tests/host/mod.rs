//! The decisions carried out on the host: tables in plain maps, and what the programs
//! do with a verdict, without a kernel.

pub mod parser;

use std::collections::HashMap;

use netspawn_ebpf::{
    abi::{CLOSED, Endpoint, NOBODY, NextHop, Owner, Settings, Uplink, WAY, nexthop_flag},
    decide::{
        self, Meta,
        error::{self, Toward},
        offload::{Said, surplus},
        past::{self, Past},
    },
    rewrite::{
        self,
        error::{HEADERS4, HEADERS6, error4, error6, quoted},
    },
    tables::Tables,
    verdict::{Action, Error, Family, Reason, Verdict, word_mac},
    wire::{Ipv4, Ipv6, MIN_FRAME, Words6, ndp::ADVERTISEMENT_FRAME, words6},
};

use crate::rows::{
    self, At, Row,
    world::{self, DB, WEB},
};

/// Every row there is.
pub fn all_rows() -> Vec<Row> {
    [
        rows::arp::rows(),
        rows::errors::rows(),
        rows::ndp::rows(),
        rows::offload::rows(),
        rows::forward::rows(),
        rows::guard::rows(),
    ]
    .concat()
}

/// The uplink, and interfaces of the host that are no uplinks: one that nothing is known of, a VLAN on
/// the uplink, a port that cannot be guarded, the ports of `WEB` and `DB`.
pub const UPLINK_INDEX: u32 = 2;
pub const STRANGE: u32 = 60;
pub const WAY_IN: u32 = 61;
pub const SHUT: u32 = 62;
pub const PORT_OF_WEB: u32 = 100 + WEB;
pub const PORT_OF_DB: u32 = 100 + DB;
pub const INTERFACES: [u32; 5] = [STRANGE, WAY_IN, SHUT, PORT_OF_WEB, PORT_OF_DB];

/// What the map of ports has of an interface.
pub fn port(ifindex: u32) -> Owner {
    match ifindex {
        WAY_IN => WAY,
        SHUT => CLOSED,
        PORT_OF_WEB => WEB,
        PORT_OF_DB => DB,
        _ => NOBODY,
    }
}

/// The world of the rows.
pub struct World {
    pub settings: Settings,
    pub owners4: Vec<(Ipv4, u32, Owner)>,
    pub owners6: Vec<(Ipv6, u32, Owner)>,
    pub endpoints: HashMap<Owner, Endpoint>,
    pub uplink: Uplink,
    pub hops: Vec<NextHop>,
    pub routes4: Vec<(Ipv4, u32, u32)>,
    pub routes6: Vec<(Ipv6, u32, u32)>,
}

impl World {
    /// Under a policy.
    pub fn new(policy: u32) -> Self {
        World {
            settings: world::settings(policy),
            owners4: world::prefixes4(),
            owners6: world::prefixes6(),
            endpoints: world::MACHINES
                .iter()
                .map(|&id| (id, world::endpoint(id, 100 + id)))
                .collect(),
            uplink: world::uplink(),
            hops: world::nexthops(),
            routes4: world::routes4(),
            routes6: world::routes6(),
        }
    }
}

fn longest<const N: usize>(entries: &[([u8; N], u32, u32)], address: [u8; N]) -> Option<u32> {
    let bit = |bytes: &[u8; N], at: usize| bytes[at / 8] >> (7 - at % 8) & 1;
    entries
        .iter()
        .filter(|(net, length, _)| {
            (0..*length as usize).all(|at| bit(net, at) == bit(&address, at))
        })
        .max_by_key(|(_, length, _)| *length)
        .map(|(_, _, value)| *value)
}

fn bytes6(words: &Words6) -> Ipv6 {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&words[0].to_ne_bytes());
    bytes[8..].copy_from_slice(&words[1].to_ne_bytes());
    assert_eq!(words6(&bytes), *words);
    bytes
}

impl Tables for World {
    fn settings(&self) -> Settings {
        self.settings
    }

    fn owner4(&self, address: &Ipv4) -> Owner {
        longest(&self.owners4, *address).unwrap_or(NOBODY)
    }

    fn owner6(&self, address: &Words6) -> Owner {
        longest(&self.owners6, bytes6(address)).unwrap_or(NOBODY)
    }

    fn is_single4(&self, id: Owner, address: &Ipv4) -> bool {
        let single = |(net, length, owner): &(Ipv4, u32, Owner)| {
            *net == *address && *length == 32 && *owner == id
        };
        self.owners4.iter().any(single)
    }

    fn is_single6(&self, id: Owner, address: &Words6) -> bool {
        let address = bytes6(address);
        let single = |(net, length, owner): &(Ipv6, u32, Owner)| {
            *net == address && *length == 128 && *owner == id
        };
        self.owners6.iter().any(single)
    }

    fn is_near4(&self, _address: &Ipv4) -> bool {
        true
    }

    fn is_near6(&self, _address: &Words6) -> bool {
        true
    }

    fn may_send4(&self, id: Owner, address: &Ipv4) -> bool {
        let sources = world::sources4()
            .into_iter()
            .filter(|(owner, ..)| *owner == id);
        let sources: Vec<_> = sources
            .map(|(owner, net, length)| (net, length, owner))
            .collect();
        longest(&sources, *address).is_some()
    }

    fn may_send6(&self, id: Owner, address: &Words6) -> bool {
        let sources = world::sources6()
            .into_iter()
            .filter(|(owner, ..)| *owner == id);
        let sources: Vec<_> = sources
            .map(|(owner, net, length)| (net, length, owner))
            .collect();
        longest(&sources, bytes6(address)).is_some()
    }

    fn endpoint(&self, id: Owner) -> Option<&Endpoint> {
        self.endpoints.get(&id)
    }

    fn port(&self, ifindex: u32) -> Owner {
        port(ifindex)
    }

    fn uplink(&self, ifindex: u32) -> Option<&Uplink> {
        (!INTERFACES.contains(&ifindex)).then_some(&self.uplink)
    }

    fn route4(&self, address: &Ipv4) -> Option<&NextHop> {
        self.hops.get(longest(&self.routes4, *address)? as usize)
    }

    fn route6(&self, address: &Words6) -> Option<&NextHop> {
        let index = longest(&self.routes6, bytes6(address))?;
        self.hops.get(index as usize)
    }
}

/// The verdict of a hook; `None` for a port that is nobody's, which the program drops
/// by itself.
pub fn decide<'a>(
    world: &'a World,
    at: At,
    frame: &[u8],
    meta: &Meta,
    said: &Said,
) -> Option<Verdict<'a>> {
    Some(match at {
        At::Uplink => {
            let verdict = decide::uplink(frame, meta, &world.uplink, world);
            if let Some(express) = decide::express(frame, meta, &said.open, &world.uplink, world) {
                assert_eq!(express, verdict, "the short way differs: {frame:02x?}");
            }
            verdict
        }
        At::Host if past::forges(frame, &said.open) => Verdict::drop(Reason::BadOffload, NOBODY),
        At::Host => match past::leaving(frame, UPLINK_INDEX, 0, || Past::OWN, world) {
            Some(reason) => Verdict::drop(reason, NOBODY),
            None => decide::host(frame, meta, world),
        },
        At::Port(id) => {
            let endpoint = world.endpoint(id)?;
            let verdict = decide::port(frame, meta, id, endpoint, world);
            if let Some(express) =
                decide::express_port(frame, meta, &said.open, id, endpoint, world)
            {
                assert_eq!(express, verdict, "the short way differs: {frame:02x?}");
            }
            verdict
        }
    })
}

/// The frame as a verdict leaves it: `Ok(None)` when it is dropped, `Err` when it is too
/// short to be rewritten. A super-packet is not `whole`.
pub fn carry_out(
    world: &World,
    at: At,
    verdict: &Verdict<'_>,
    frame: &[u8],
    whole: bool,
) -> Result<Option<Vec<u8>>, ()> {
    let mut frame = frame.to_vec();
    let sent_on = match verdict.action {
        Action::Deliver | Action::Out | Action::ToHost => true,
        Action::Pass => matches!(at, At::Port(_)),
        _ => false,
    };
    if sent_on && let Some(length) = surplus(&frame[..], frame.len() as u32, whole) {
        frame.truncate(length as usize);
    }
    let done = match verdict.action {
        Action::Pass if verdict.mac == 0 => Some(()),
        Action::Pass => {
            frame[..6].copy_from_slice(&word_mac(verdict.mac));
            Some(())
        }
        Action::Drop => return Ok(error_about(world, at, verdict, &frame)),
        Action::Arp => {
            frame.truncate(MIN_FRAME);
            rewrite::arp_reply(&mut frame[..], word_mac(verdict.mac))
        }
        Action::Ndp => {
            frame.resize(ADVERTISEMENT_FRAME, 0);
            let (mac, asker) = (word_mac(verdict.mac), word_mac(verdict.asker));
            rewrite::advertisement(&mut frame[..], mac, asker, verdict.router)
        }
        Action::Echo => rewrite::echo_reply(&mut frame[..], verdict.family),
        Action::Deliver => {
            let to = verdict.endpoint.expect("there is where it goes");
            rewrite::ethernet(&mut frame[..], to.mac, to.port_mac).and_then(|()| {
                if verdict.takes_hop {
                    rewrite::take_hop(&mut frame[..], verdict.family)
                } else {
                    Some(())
                }
            })
        }
        Action::Out => {
            let hop = verdict.hop.expect("there is a way");
            let now = 1_000_000;
            rewrite::take_hop(&mut frame[..], verdict.family).and_then(|()| {
                if hop.flags & nexthop_flag::RESOLVED != 0 && now < hop.deadline {
                    rewrite::ethernet(&mut frame[..], hop.dst_mac, hop.src_mac)
                } else {
                    Some(())
                }
            })
        }
        Action::ToHost => {
            let hop = verdict.hop.expect("there is a way");
            frame[..6].copy_from_slice(&hop.src_mac);
            Some(())
        }
    };
    done.map(|()| Some(frame)).ok_or(())
}

/// The error that a dropped frame becomes.
fn error_about(world: &World, at: At, verdict: &Verdict<'_>, frame: &[u8]) -> Option<Vec<u8>> {
    let (error, family) = (verdict.error, verdict.family);
    if error == Error::None || !error::is_due(frame, family) {
        return None;
    }
    let toward = match at {
        At::Uplink => Toward::Network,
        At::Host => Toward::Host,
        At::Port(_) => Toward::Machine,
    };
    let headers = match family {
        Family::V4 => HEADERS4,
        Family::V6 => HEADERS6,
    };
    let (source4, source6) = (
        error::source4(frame, toward, 2, world),
        error::source6(frame, toward, 2, world),
    );
    let length = match family {
        Family::V4 => usize::from(u16::from_be_bytes([frame[16], frame[17]])),
        Family::V6 => usize::from(u16::from_be_bytes([frame[18], frame[19]])) + 40,
    };
    let there = (frame.len() - 14) as u32;
    let length = error::quote_length(family, length as u32, there) as usize;
    let mut padded = frame[..14 + length].to_vec();
    let blocks = (length & !7) + 8;
    padded.resize(14 + blocks, 0);
    let sum = quoted(&padded[..], blocks).expect("all of it is there");
    let mut out = [&frame[..14], &vec![0; headers][..], &frame[14..14 + length]].concat();
    match family {
        Family::V4 => error4(&mut out[..], error, verdict.mtu, source4, length, sum),
        Family::V6 => error6(&mut out[..], error, verdict.mtu, source6, length, sum),
    }
    .expect("there is room");
    Some(out)
}
