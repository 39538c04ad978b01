//! Sets up ports that nobody sets up.
//!
//! systemd-nspawn leaves the host's end of a machine's link down: networkd sets it
//! up, by `80-container-ve.network`. Where that is masked or networkd does not run,
//! the port is set up here, once: whoever sets it down later means it.
//!
//! Network drivers of ours leave ports down as well: nothing comes from one before it
//! is guarded.

use std::{collections::BTreeSet, fs, io, os::unix::fs::symlink, path::Path};

use anyhow::{Context as _, Result};

use super::pins::{Pins, gone};
use crate::{
    folder,
    model::Host,
    net::{
        netlink::{Error, Netlink, Request},
        read::ifinfomsg,
    },
};

/// Where networkd tells what it makes of links, by ifindex.
const NETWORKD: &str = "/run/systemd/netif/links";

/// Sets up those of `ports` that are down and not among `seen`, and records them
/// with their names. All of `ports` are seen then.
///
/// # Errors
/// When a port cannot be set up; the others are.
pub fn raise(
    pins: &Pins,
    netlink: &mut Netlink,
    host: &Host,
    ports: impl Iterator<Item = u32>,
    seen: &mut BTreeSet<u32>,
) -> Result<()> {
    let mut result = Ok(());
    seen.retain(|ifindex| host.links.contains_key(ifindex));
    for link in ports.filter_map(|ifindex| host.links.get(&ifindex)) {
        if seen.insert(link.ifindex) && !link.admin_up {
            let done = record(pins, link.ifindex, &link.name).and_then(|()| {
                set_up(netlink, link.ifindex, true)
                    .with_context(|| format!("cannot set {} up", link.name))
            });
            match done {
                Ok(()) => tracing::info!(
                    interface = link.name,
                    "{} was down, and is set up",
                    link.name
                ),
                Err(error) => result = Err(error),
            }
        }
    }
    forget_gone(pins, host);
    result
}

/// Sets down what was set up, unless networkd looks after it. Goes on after
/// failures; each is a line.
pub fn lower(pins: &Pins, netlink: &mut Netlink) -> Vec<String> {
    let mut failed = Vec::new();
    for (ifindex, name) in recorded(pins) {
        let there = nix::net::if_::if_indextoname(ifindex)
            .is_ok_and(|found| found.to_bytes() == name.as_bytes());
        if there
            && !is_managed(ifindex)
            && let Err(error) = set_up(netlink, ifindex, false)
        {
            failed.push(format!("cannot set {name} down again: {error}"));
        }
    }
    failed
}

fn set_up(netlink: &mut Netlink, ifindex: u32, up: bool) -> Result<(), Error> {
    let flag = libc::IFF_UP as u32;
    let header = ifinfomsg(ifindex, if up { flag } else { 0 }, flag);
    netlink.apply(Request::new(libc::RTM_NEWLINK, 0, &header))
}

/// Whether networkd has a file for a link. It would have set it up as well, only
/// later: it waits for udev.
fn is_managed(ifindex: u32) -> bool {
    let Ok(text) = fs::read_to_string(Path::new(NETWORKD).join(ifindex.to_string())) else {
        return false;
    };
    text.lines()
        .find_map(|line| line.strip_prefix("ADMIN_STATE="))
        .is_some_and(|state| ["configuring", "configured"].contains(&state))
}

fn record(pins: &Pins, ifindex: u32, name: &str) -> Result<()> {
    let folder = pins.raised();
    folder::make(&folder, folder::PRIVATE)?;
    symlink(name, folder.join(ifindex.to_string()))
        .or_else(|error| match error.kind() {
            io::ErrorKind::AlreadyExists => Ok(()),
            _ => Err(error),
        })
        .with_context(|| format!("cannot record {name} in {}", folder.display()))
}

/// ifindexes and names recorded.
fn recorded(pins: &Pins) -> Vec<(u32, String)> {
    let entries = fs::read_dir(pins.raised()).into_iter().flatten().flatten();
    entries
        .filter_map(|entry| {
            let ifindex = entry.file_name().to_str()?.parse().ok()?;
            let name = fs::read_link(entry.path()).ok()?;
            Some((ifindex, name.to_str()?.to_owned()))
        })
        .collect()
}

fn forget_gone(pins: &Pins, host: &Host) {
    for (ifindex, name) in recorded(pins) {
        if !host.links.contains_key(&ifindex)
            && let Err(error) = gone(fs::remove_file(pins.raised().join(ifindex.to_string())))
        {
            tracing::debug!("cannot forget that {name} was set up: {error}");
        }
    }
}
