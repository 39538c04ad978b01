//! Link-layer multicast groups and `allmulti` of an interface, and memberships
//! that are reported to switches.
//!
//! The groups are the device's own, as those of `ip maddr add`, and memberships
//! are the kernel's, as those of `ip address add … autojoin`, so that both outlive
//! the process; a socket's memberships would not.

use std::{
    collections::BTreeSet,
    fs, io,
    net::Ipv6Addr,
    os::{fd::AsRawFd, unix::net::UnixDatagram},
    path::Path,
};

use netspawn_ebpf::wire::Mac;

use super::{
    netlink::{self, Netlink, Request},
    read::ifinfomsg,
};
use crate::{gone, model::DisplayMac};

/// `linux/if_addr.h`: the membership of a multicast address is the address's.
const IFA_F_MCAUTOJOIN: u32 = 0x400;
/// The kernel's counters of IPv6, a file an interface.
const COUNTERS: &str = "/proc/thread-self/net/dev_snmp6";
/// That of MLD queries received (type 130, RFC 3810 5.1).
const QUERIES: &str = "Icmp6InType130";
/// Columns: ifindex, name, group in hexadecimal, users, flags, timer.
const MEMBERS: &str = "/proc/thread-self/net/igmp6";
/// Columns: ifindex, name, users, global, address.
const LIST: &str = "/proc/thread-self/net/dev_mcast";

/// A change that the kernel refused.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Joining a group.
    #[error("{interface}: cannot join the link-layer group {}: {source}", DisplayMac(*group))]
    Join {
        /// The interface.
        interface: String,
        /// The group.
        group: Mac,
        /// The kernel's reason.
        source: io::Error,
    },
    /// Leaving a group.
    #[error("{interface}: cannot leave the link-layer group {}: {source}", DisplayMac(*group))]
    Leave {
        /// The interface.
        interface: String,
        /// The group.
        group: Mac,
        /// The kernel's reason.
        source: io::Error,
    },
    /// Reading the groups.
    #[error("cannot read the link-layer groups from {LIST}: {0}")]
    List(io::Error),
    /// Reading memberships.
    #[error("cannot read the memberships from {MEMBERS}: {0}")]
    Members(io::Error),
    /// Reading the counters of IPv6.
    #[error("cannot read from {COUNTERS} whether a switch asks who wants which group: {0}")]
    Counters(io::Error),
    /// There are counters, which this process does not see.
    #[error(
        "{COUNTERS} is hidden from this process, so that whether a switch filters groups is not \
         known, and machines may not be found by IPv6; take `ProcSubset=pid` out of the unit"
    )]
    Hidden,
    /// Switching `allmulti`.
    #[error("interface {ifindex}: cannot switch allmulti {}: {source}", if *on { "on" } else { "off" })]
    AllMulti {
        /// The interface.
        ifindex: u32,
        /// What was asked for.
        on: bool,
        /// The kernel's reason.
        source: netlink::Error,
    },
    /// Having a membership reported, or no longer.
    #[error("interface {ifindex}: cannot {action} {group} with reports to switches: {source}")]
    Report {
        /// The interface.
        ifindex: u32,
        /// What was tried.
        action: &'static str,
        /// The group.
        group: Ipv6Addr,
        /// The kernel's reason.
        source: netlink::Error,
    },
    /// There is no interface of that index.
    #[error("there is no interface with index {ifindex}: {source}")]
    NoInterface {
        /// The index.
        ifindex: u32,
        /// The kernel's reason.
        source: io::Error,
    },
}

/// A group that an interface receives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Group {
    /// The group's address.
    pub mac: Mac,
    /// How many want it: the kernel's protocols, sockets, `ip maddr add`.
    pub users: u32,
    /// Joined by `ip maddr add` or by [`join`]; there is one such join only,
    /// so this one is not to be joined, and not to be left, by anyone else.
    pub permanent: bool,
}

/// Joins a group; whether it had not been joined in this way before.
pub fn join(ifindex: u32, group: Mac) -> Result<bool, Error> {
    if joined(ifindex)?.contains(&group) {
        return Ok(false);
    }
    add(ifindex, group).map(|()| true)
}

/// The groups that were joined by [`add`] or `ip maddr add`.
pub fn joined(ifindex: u32) -> Result<BTreeSet<Mac>, Error> {
    let groups = list(ifindex)?.into_iter();
    let permanent = groups.filter(|group| group.permanent);
    Ok(permanent.map(|group| group.mac).collect())
}

/// Joins a group that is not among those [`joined`].
pub fn add(ifindex: u32, group: Mac) -> Result<(), Error> {
    let (interface, result) = change(ifindex, group, libc::SIOCADDMULTI)?;
    result.map_err(|source| Error::Join {
        interface,
        group,
        source,
    })
}

/// Leaves a group that [`join`] or `ip maddr add` joined; whether there was
/// such a join.
pub fn leave(ifindex: u32, group: Mac) -> Result<bool, Error> {
    let (interface, result) = change(ifindex, group, libc::SIOCDELMULTI)?;
    match result {
        Ok(()) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
        Err(source) => Err(Error::Leave {
            interface,
            group,
            source,
        }),
    }
}

/// The groups that an interface receives now.
pub fn list(ifindex: u32) -> Result<Vec<Group>, Error> {
    let text = fs::read_to_string(LIST).map_err(Error::List)?;
    Ok(parse(&text, ifindex))
}

#[expect(
    clippy::disallowed_methods,
    reason = "what the kernel's line does not have is left out"
)]
fn parse(text: &str, ifindex: u32) -> Vec<Group> {
    text.lines()
        .filter_map(|line| {
            let mut columns = line.split_whitespace();
            if columns.next()?.parse() != Ok(ifindex) {
                return None;
            }
            let users = columns.nth(1)?.parse().ok()?;
            let permanent = columns.next()? != "0";
            let mac = u64::from_str_radix(columns.next()?, 16).ok()?;
            let [0, 0, mac @ ..] = mac.to_be_bytes() else {
                return None;
            };
            Some(Group {
                mac,
                users,
                permanent,
            })
        })
        .collect()
}

/// Switches `IFF_ALLMULTI`, as `ip link set IF allmulticast on|off`.
pub fn set_allmulti(netlink: &mut Netlink, ifindex: u32, on: bool) -> Result<(), Error> {
    let flag = libc::IFF_ALLMULTI as u32;
    let header = ifinfomsg(ifindex, if on { flag } else { 0 }, flag);
    netlink
        .apply(Request::new(libc::RTM_NEWLINK, 0, &header))
        .map_err(|source| Error::AllMulti {
            ifindex,
            on,
            source,
        })
}

/// Whether `IFF_ALLMULTI` was switched on by somebody (not: needed by the
/// kernel for a bridge or the like, which it counts by itself).
pub fn allmulti(netlink: &mut Netlink, ifindex: u32) -> Result<bool, netlink::Error> {
    netlink.get(super::read::get_link(ifindex), |message| {
        Some(message.field(8) & libc::IFF_ALLMULTI as u32 != 0)
    })
}

/// Whether somebody on the link has asked who wants which group, as a switch does,
/// or has a router do, that then sends groups only where they were reported
/// (RFC 4541 3).
///
/// # Errors
/// When the kernel's counters cannot be read, or are hidden: a /proc that is mounted with
/// `subset=pid` has the directory, and nothing in it (`proc_lookup` in fs/proc/generic.c).
pub fn queried(interface: &str) -> Result<bool, Error> {
    let path = Path::new(COUNTERS).join(interface);
    let Some(text) = gone::path(fs::read_to_string(&path)).map_err(Error::Counters)? else {
        // The interface is gone, or does without IPv6; `lo` is always there.
        let hidden = gone::is_there(Path::new(COUNTERS)).map_err(Error::Counters)?
            && !gone::is_there(&Path::new(COUNTERS).join("lo")).map_err(Error::Counters)?;
        return match hidden {
            true => Err(Error::Hidden),
            false => Ok(false),
        };
    };
    Ok(text
        .lines()
        .filter_map(|line| line.strip_prefix(QUERIES))
        .any(|count| count.trim() != "0"))
}

/// Has the kernel join a group and report it, until [`leave_reported`]; whether it
/// was not asked to before.
///
/// When the link is set down, the address that stands for the membership goes, the
/// membership stays, and joining again is refused with EADDRINUSE.
pub fn join_reported(netlink: &mut Netlink, ifindex: u32, group: Ipv6Addr) -> Result<bool, Error> {
    let flags = libc::NLM_F_CREATE | libc::NLM_F_EXCL;
    let request = address(libc::RTM_NEWADDR, flags, ifindex, group)
        .u32(libc::IFA_FLAGS, IFA_F_MCAUTOJOIN | libc::IFA_F_NODAD);
    match netlink.apply(request) {
        Ok(()) => Ok(true),
        Err(error) if matches!(error.errno(), Some(libc::EEXIST | libc::EADDRINUSE)) => Ok(false),
        Err(source) => Err(Error::Report {
            ifindex,
            action: "join",
            group,
            source,
        }),
    }
}

/// Has the kernel leave a group that [`join_reported`] joined; whether it is a member
/// no more. One whose link was set down meanwhile stays a member for as long as the
/// interface exists: the address by which to have it leave is gone.
pub fn leave_reported(netlink: &mut Netlink, ifindex: u32, group: Ipv6Addr) -> Result<bool, Error> {
    match netlink.apply(address(libc::RTM_DELADDR, 0, ifindex, group)) {
        Ok(()) => Ok(true),
        Err(error) if error.errno() == Some(libc::EADDRNOTAVAIL) => {
            Ok(!member(ifindex, group).map_err(Error::Members)?)
        }
        Err(source) => Err(Error::Report {
            ifindex,
            action: "leave",
            group,
            source,
        }),
    }
}

/// Whether an interface is a member of an IPv6 group, whoever had it join.
fn member(ifindex: u32, group: Ipv6Addr) -> io::Result<bool> {
    let text = fs::read_to_string(MEMBERS)?;
    let (ifindex, group) = (ifindex.to_string(), format!("{:032x}", group.to_bits()));
    Ok(text.lines().any(|line| {
        let mut columns = line.split_whitespace();
        columns.next() == Some(&ifindex) && columns.nth(1) == Some(&group)
    }))
}

/// A request about an address that is a group.
fn address(kind: u16, flags: i32, ifindex: u32, group: Ipv6Addr) -> Request {
    // ifaddrmsg: family, prefix length, flags, scope, ifindex (4).
    let mut header = [
        libc::AF_INET6 as u8,
        128,
        0,
        libc::RT_SCOPE_LINK,
        0,
        0,
        0,
        0,
    ];
    header[4..].copy_from_slice(&ifindex.to_ne_bytes());
    Request::new(kind, flags, &header)
        .attr(libc::IFA_LOCAL, &group.octets())
        .attr(libc::IFA_ADDRESS, &group.octets())
}

/// `SIOCADDMULTI` or `SIOCDELMULTI`; the interface's name and the outcome.
fn change(
    ifindex: u32,
    group: Mac,
    request: libc::Ioctl,
) -> Result<(String, io::Result<()>), Error> {
    let no_interface = |source| Error::NoInterface { ifindex, source };
    let socket = UnixDatagram::unbound().map_err(no_interface)?;
    // SAFETY: all-zero bytes are a valid `ifreq`.
    let mut ifreq: libc::ifreq = unsafe { std::mem::zeroed() };
    ifreq.ifr_ifru.ifru_ifindex = ifindex as libc::c_int;
    ioctl(&socket, libc::SIOCGIFNAME, &mut ifreq).map_err(no_interface)?;
    let name = ifreq.ifr_name.map(|byte| byte as u8);
    // SAFETY: all-zero bytes are a valid `sockaddr`, whose family AF_UNSPEC is
    // the one these requests take.
    let mut address: libc::sockaddr = unsafe { std::mem::zeroed() };
    for (to, from) in address.sa_data.iter_mut().zip(group) {
        *to = from as libc::c_char;
    }
    ifreq.ifr_ifru.ifru_hwaddr = address;
    let result = ioctl(&socket, request, &mut ifreq);
    Ok((netlink::read_text(&name), result))
}

pub(super) fn ioctl(
    socket: &UnixDatagram,
    request: libc::Ioctl,
    ifreq: &mut libc::ifreq,
) -> io::Result<()> {
    // SAFETY: `ifreq` is a whole, writable `struct ifreq`, which is what these
    // requests take.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), request, ifreq) };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_are_read_by_interface() {
        let text = "\
2    eth0            1     0     01005e000001
2    eth0            2     1     3333ff000005
12   ib0             1     0     00ffffffff12401bffff000000000000ffffffff
13   eth1            1     0     333300000001
";
        assert_eq!(
            parse(text, 2),
            [
                Group {
                    mac: [0x01, 0x00, 0x5e, 0, 0, 1],
                    users: 1,
                    permanent: false
                },
                Group {
                    mac: [0x33, 0x33, 0xff, 0, 0, 5],
                    users: 2,
                    permanent: true
                },
            ]
        );
        assert!(parse(text, 12).is_empty());
    }
}
