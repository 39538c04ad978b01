//! The link-layer groups of uplinks: solicitations for machines' addresses go to
//! multicast groups (RFC 4861 7.2.2), which the uplink has to receive (M2).
//!
//! They are kernel state that outlives the agent. What was done is recorded, so
//! that it can be put back; what somebody else had done is not touched.
//!
//! To receive a group is not enough where a switch sends it only to ports that
//! reported it (MLD snooping). Such a switch asks, or has a router ask, so that
//! memberships are reported from when a query has been heard: then each group is
//! also an address of the kind `autojoin`. Without a querier switches do not filter
//! (RFC 4541 3), and the uplink has no more addresses than it needs.

use std::{collections::BTreeSet, net::Ipv6Addr};

use anyhow::Result;
use ipnet::IpNet;
use netspawn_ebpf::{
    abi::{HOST, map},
    wire::Mac,
};

use super::{pins::Pins, twice, uplinks::exists};
use crate::{
    model::DisplayMac,
    net::{interface, multicast, netlink::Netlink},
    plan::{self, State},
};

/// More groups than this, and the uplink takes all of them (M2).
const MAX_GROUPS: usize = 256;
/// Record of an uplink that is switched to all multicast.
const ALL_MULTICAST: &str = "allmulti";
/// Start of the record of a link-layer group.
const GROUP: &str = "group-";
/// Start of the record of a membership that is reported, of the same group.
const REPORTED: &str = "mld-";

/// What uplinks have to receive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Groups {
    /// These groups.
    Some(BTreeSet<Mac>),
    /// All of them.
    All,
}

impl Groups {
    /// The solicited-node groups of single addresses; all groups where there
    /// are prefixes or too many.
    pub fn of(state: &State) -> Self {
        let mut groups = BTreeSet::new();
        for (prefix, owner) in &state.addresses {
            match prefix {
                IpNet::V6(net) if *owner != HOST && plan::address_map(prefix) == map::ADDRS6 => {
                    let [.., a, b, c] = net.addr().octets();
                    groups.insert([0x33, 0x33, 0xff, a, b, c]);
                    if groups.len() > MAX_GROUPS {
                        return Groups::All;
                    }
                }
                IpNet::V6(_) if *owner != HOST => return Groups::All,
                _ => {}
            }
        }
        Groups::Some(groups)
    }
}

/// Has an uplink receive what it should. What comes is there before what goes
/// is gone.
///
/// # Errors
/// When the kernel refuses.
pub fn sync(
    pins: &Pins,
    netlink: &mut Netlink,
    name: &str,
    ifindex: u32,
    wanted: &Groups,
) -> Result<()> {
    let none = BTreeSet::new();
    let (all, groups) = match wanted {
        Groups::All => (true, &none),
        Groups::Some(groups) => (false, groups),
    };
    let records = pins.records(name)?;
    let recorded = |start| -> BTreeSet<Mac> {
        let groups = records.iter().filter_map(|name| group_of(name, start));
        groups.collect()
    };
    let ours = recorded(GROUP);
    let switched = records.iter().any(|record| record == ALL_MULTICAST);
    if all && !switched && !multicast::allmulti(netlink, ifindex)? {
        pins.record_uplink(name, ALL_MULTICAST, "on")?;
        if let Err(error) = multicast::set_allmulti(netlink, ifindex, true) {
            // It may be on all the same, when only the answer was lost.
            multicast::set_allmulti(netlink, ifindex, false)?;
            pins.forget(name, ALL_MULTICAST)?;
            return Err(error.into());
        }
    }
    // Recorded before it is done: who is killed in between leaves a record too many, which
    // harms nobody. What others have joined is left alone.
    let new: Vec<Mac> = groups.difference(&ours).copied().collect();
    if !new.is_empty() {
        let others = multicast::joined(ifindex)?;
        for group in new.into_iter().filter(|group| !others.contains(group)) {
            let record = record_of(group, GROUP);
            pins.record_uplink(name, &record, "joined")?;
            if let Err(error) = multicast::add(ifindex, group) {
                pins.forget(name, &record)?;
                return Err(error.into());
            }
        }
    }
    let reported = recorded(REPORTED);
    if !reported.is_empty() || multicast::queried(name)? {
        let new: Vec<Mac> = groups.difference(&reported).copied().collect();
        let others = match new.is_empty() {
            true => Vec::new(),
            false => interface::addresses(netlink, ifindex)?,
        };
        for group in new {
            let address = address_of(group);
            if others.iter().any(|other| other.addr() == address) {
                continue;
            }
            let record = record_of(group, REPORTED);
            pins.record_uplink(name, &record, "joined")?;
            match multicast::join_reported(netlink, ifindex, address) {
                Ok(true) => {}
                Ok(false) => pins.forget(name, &record)?,
                Err(error) => {
                    multicast::leave_reported(netlink, ifindex, address)?;
                    pins.forget(name, &record)?;
                    return Err(error.into());
                }
            }
        }
    }
    for group in reported.difference(groups) {
        multicast::leave_reported(netlink, ifindex, address_of(*group))?;
        pins.forget(name, &record_of(*group, REPORTED))?;
    }
    for group in ours.difference(groups) {
        multicast::leave(ifindex, *group)?;
        pins.forget(name, &record_of(*group, GROUP))?;
    }
    if !all && switched {
        multicast::set_allmulti(netlink, ifindex, false)?;
        pins.forget(name, ALL_MULTICAST)?;
    }
    Ok(())
}

/// Does again what somebody else has undone.
///
/// # Errors
/// When the kernel refuses.
pub fn mend(pins: &Pins, netlink: &mut Netlink, name: &str, ifindex: u32) -> Result<()> {
    let records = pins.records(name)?;
    // Read once: it has a line for each group of each interface of the host.
    let joined = match records.iter().any(|name| name.starts_with(GROUP)) {
        true => multicast::joined(ifindex)?,
        false => BTreeSet::new(),
    };
    for record in records {
        if let Some(group) = group_of(&record, GROUP) {
            if !joined.contains(&group) {
                multicast::add(ifindex, group)?;
            }
        } else if let Some(group) = group_of(&record, REPORTED) {
            multicast::join_reported(netlink, ifindex, address_of(group))?;
        } else if record == ALL_MULTICAST && !multicast::allmulti(netlink, ifindex)? {
            multicast::set_allmulti(netlink, ifindex, true)?;
        }
    }
    Ok(())
}

/// Puts back what was done to an uplink, and forgets it. Goes on after failures;
/// each is a line. An interface that is gone took everything along.
pub fn put_back(pins: &Pins, netlink: &mut Netlink, name: &str, ifindex: u32) -> Vec<String> {
    let mut failed = Vec::new();
    let records = match twice(|| pins.records(name)) {
        Ok(records) => records,
        Err(error) => return vec![format!("{error:#}")],
    };
    for record in records {
        let result = if let Some(group) = group_of(&record, GROUP) {
            twice(|| multicast::leave(ifindex, group)).map(drop)
        } else if let Some(group) = group_of(&record, REPORTED) {
            let group = address_of(group);
            twice(|| multicast::leave_reported(netlink, ifindex, group)).map(|left| {
                if !left {
                    failed.push(format!(
                        "{name}: the kernel stays a member of {group}, because the link was set \
                         down meanwhile; that ends with the interface, and harms nothing"
                    ));
                }
            })
        } else if record == ALL_MULTICAST {
            twice(|| multicast::set_allmulti(netlink, ifindex, false))
        } else {
            continue;
        };
        failed.extend(result.err().map(|error| error.to_string()));
    }
    match twice(|| exists(ifindex)) {
        Ok(true) => {}
        Ok(false) => failed.clear(),
        Err(error) => failed.push(format!("{error:#}")),
    }
    let forgotten = twice(|| forget(pins, name));
    failed.extend(forgotten.err().map(|error| format!("{error:#}")));
    failed
}

/// Forgets what was done to an interface that took it along when it went.
///
/// # Errors
/// When the bpffs refuses.
pub fn forget(pins: &Pins, name: &str) -> Result<()> {
    for record in pins.records(name)? {
        let ours = [GROUP, REPORTED, ALL_MULTICAST];
        if ours.iter().any(|start| record.starts_with(start)) {
            pins.forget(name, &record)?;
        }
    }
    Ok(())
}

fn record_of(group: Mac, start: &str) -> String {
    format!("{start}{}", DisplayMac(group).to_string().replace(':', ""))
}

#[expect(
    clippy::disallowed_methods,
    reason = "this parses text or bytes; no system call can fail here"
)]
fn group_of(record: &str, start: &str) -> Option<Mac> {
    let digits = record.strip_prefix(start)?;
    let number = u64::from_str_radix(digits, 16).ok()?;
    let [_, _, mac @ ..] = number.to_be_bytes();
    Some(mac)
}

/// The solicited-node group that has this link-layer group (RFC 2464 7).
fn address_of(group: Mac) -> Ipv6Addr {
    let [_, _, _, a, b, c] = group;
    let last = u32::from_be_bytes([0xff, a, b, c]);
    Ipv6Addr::from_bits(0xff02 << 112 | 1 << 32 | u128::from(last))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_and_addresses_name_the_group() {
        let group = [0x33, 0x33, 0xff, 0, 0x12, 0x34];
        assert_eq!(record_of(group, GROUP), "group-3333ff001234");
        assert_eq!(group_of("group-3333ff001234", GROUP), Some(group));
        assert_eq!(group_of("group-3333ff001234", REPORTED), None);
        assert_eq!(address_of(group).to_string(), "ff02::1:ff00:1234");
    }
}
