//! Keeping neighbors resolved.

use std::net::IpAddr;

use super::netlink::{Error, Netlink, Request, ip_bytes};

/// Has the kernel use a neighbor as if it had a packet for it: an unknown one
/// is solicited, a stale one is probed, a reachable one is left alone. The
/// outcome comes as an event; this does not wait for it.
pub fn resolve(netlink: &mut Netlink, ifindex: u32, address: IpAddr) -> Result<(), Error> {
    let family = match address {
        IpAddr::V4(_) => libc::AF_INET,
        IpAddr::V6(_) => libc::AF_INET6,
    };
    // ndmsg: family, padding (3), ifindex (4), state (2), flags, type.
    let mut header = [0; 12];
    header[0] = family as u8;
    header[4..8].copy_from_slice(&ifindex.to_ne_bytes());
    header[10] = libc::NTF_USE;
    netlink.apply(
        Request::new(libc::RTM_NEWNEIGH, libc::NLM_F_CREATE, &header)
            .attr(libc::NDA_DST, &ip_bytes(address)),
    )
}
