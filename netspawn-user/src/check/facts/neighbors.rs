//! The kernel's neighbors: whom it asks in vain, and how many it has room for.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use crate::net::{
    Error,
    netlink::Netlink,
    read::{self, NeighborTable},
};

/// Neighbors whose resolution failed (`NUD_FAILED`), by interface.
pub(super) fn silent() -> Result<BTreeSet<(u32, IpAddr)>, Error> {
    let mut netlink = Netlink::open()?;
    let mut failed = BTreeSet::new();
    for family in [libc::AF_INET, libc::AF_INET6] {
        failed.extend(netlink.dump(read::get_neighbors(family), |message| {
            let state = u16::from_ne_bytes([message.byte(8), message.byte(9)]);
            let neighbor = read::neighbor(&message)?;
            let failed = state & libc::NUD_FAILED != 0;
            failed.then_some((neighbor.ifindex, neighbor.address))
        })?);
    }
    Ok(failed)
}

/// The kernel's tables, by family (`AF_INET`, `AF_INET6`).
pub(super) fn tables() -> Result<BTreeMap<i32, NeighborTable>, Error> {
    let tables = Netlink::open()?.dump(read::get_neighbor_tables(), |message| {
        read::neighbor_table(&message)
    })?;
    Ok(tables.into_iter().collect())
}
