//! Sets up ports that nobody sets up.
//!
//! systemd-nspawn leaves the host's end of a machine's link down: networkd sets it
//! up, by `80-container-ve.network`. Where that is masked or networkd does not run,
//! the port is set up here, once: whoever sets it down later means it.
//!
//! Network drivers of ours leave ports down as well: nothing comes from one before it
//! is guarded.

use std::{collections::BTreeSet, fs, path::Path};

use anyhow::{Context as _, Result};

use super::{pins::Pins, twice};
use crate::{
    gone,
    model::Host,
    net::{
        interface,
        netlink::{Error, Netlink, Request},
        read::ifinfomsg,
    },
};

/// Where networkd tells what it makes of links, by ifindex.
const NETWORKD: &str = "/run/systemd/netif/links";

/// Sets up those of `ports` that are down and not among `seen`, and records them
/// with their names; those that were are added to `raised`. All of `ports` are seen then,
/// but for those that could not be set up.
///
/// # Errors
/// When a port cannot be set up; the others are.
pub fn raise(
    pins: &Pins,
    netlink: &mut Netlink,
    host: &Host,
    ports: impl Iterator<Item = u32>,
    seen: &mut BTreeSet<u32>,
    raised: &mut BTreeSet<u32>,
) -> Result<()> {
    let mut result = Ok(());
    seen.retain(|ifindex| host.links.contains_key(ifindex));
    for link in ports.filter_map(|ifindex| host.links.get(&ifindex)) {
        if seen.insert(link.ifindex) && !link.admin_up {
            let done = pins.record_raised(link.ifindex, &link.name).and_then(|()| {
                set_up(netlink, link.ifindex, true)
                    .with_context(|| format!("cannot set {} up", link.name))
            });
            match done {
                Ok(()) => {
                    raised.insert(link.ifindex);
                    tracing::info!(
                        interface = link.name,
                        "{} was down, and is set up",
                        link.name
                    );
                }
                Err(error) => {
                    seen.remove(&link.ifindex);
                    result = Err(error);
                }
            }
        }
    }
    result.and(forget_gone(pins, host))
}

/// Sets down what was set up, unless networkd looks after it. Goes on after
/// failures; each is a line.
pub fn lower(pins: &Pins, netlink: &mut Netlink) -> Vec<String> {
    let recorded = match twice(|| pins.raised_ports()) {
        Ok(recorded) => recorded,
        Err(error) => return vec![format!("{error:#}")],
    };
    let mut failed = Vec::new();
    for (ifindex, name) in recorded {
        if let Err(error) = twice(|| lower_one(netlink, ifindex, &name)) {
            failed.push(format!("cannot set {name} down again: {error:#}"));
        }
    }
    failed
}

fn lower_one(netlink: &mut Netlink, ifindex: u32, name: &str) -> Result<()> {
    if interface::name_of(ifindex)?.as_deref() == Some(name) && !is_managed(ifindex)? {
        gone::link(set_up(netlink, ifindex, false))?;
    }
    Ok(())
}

fn set_up(netlink: &mut Netlink, ifindex: u32, up: bool) -> Result<(), Error> {
    let flag = libc::IFF_UP as u32;
    let header = ifinfomsg(ifindex, if up { flag } else { 0 }, flag);
    netlink.apply(Request::new(libc::RTM_NEWLINK, 0, &header))
}

/// Whether networkd has a file for a link. It would have set it up as well, only
/// later: it waits for udev.
fn is_managed(ifindex: u32) -> Result<bool> {
    let path = Path::new(NETWORKD).join(ifindex.to_string());
    let text = gone::path(fs::read_to_string(&path))
        .with_context(|| format!("cannot read {}", path.display()))?;
    let state = text.as_deref().and_then(|text| {
        text.lines()
            .find_map(|line| line.strip_prefix("ADMIN_STATE="))
    });
    Ok(state.is_some_and(|state| ["configuring", "configured"].contains(&state)))
}

fn forget_gone(pins: &Pins, host: &Host) -> Result<()> {
    for (ifindex, _) in pins.raised_ports()? {
        if !host.links.contains_key(&ifindex) {
            pins.forget_raised(ifindex)?;
        }
    }
    Ok(())
}
