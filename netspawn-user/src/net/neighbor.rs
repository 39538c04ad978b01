//! Keeping neighbors resolved.

use std::net::IpAddr;

use super::netlink::{Error, Netlink, Request, ip_bytes};

/// Bytes of `ndmsg`: family, padding (3), ifindex (4), state (2), flags, type.
const NDMSG: usize = 12;
const NDMSG_STATE: usize = 8;
const NDMSG_FLAGS: usize = 10;

/// Has the kernel use a neighbor as if it had a packet for it: an unknown one
/// is solicited, a stale one is probed, a reachable one is left alone. The
/// outcome comes as an event; this does not wait for it.
///
/// Permanent ones and those without ARP are left alone, too: the kernel would take the
/// operator's word off a permanent one and ask the network instead (`__neigh_update` with
/// `NEIGH_UPDATE_F_USE`).
pub fn resolve(netlink: &mut Netlink, ifindex: u32, address: IpAddr) -> Result<(), Error> {
    let family = match address {
        IpAddr::V4(_) => libc::AF_INET,
        IpAddr::V6(_) => libc::AF_INET6,
    };
    let mut header = [0; NDMSG];
    header[0] = family as u8;
    header[4..NDMSG_STATE].copy_from_slice(&ifindex.to_ne_bytes());
    let request = Request::new(libc::RTM_GETNEIGH, 0, &header);
    let request = request.attr(libc::NDA_DST, &ip_bytes(address));
    let state = netlink.get(request, |message| {
        let [low, high] = [0, 1].map(|byte| message.byte(NDMSG_STATE + byte));
        Some(u16::from_ne_bytes([low, high]))
    });
    match state {
        Ok(state) if state & (libc::NUD_PERMANENT | libc::NUD_NOARP) != 0 => return Ok(()),
        Ok(_) => {}
        Err(error) if error.errno() == Some(libc::ENOENT) => {}
        Err(error) => return Err(error),
    }
    header[NDMSG_FLAGS] = libc::NTF_USE;
    netlink.apply(
        Request::new(libc::RTM_NEWNEIGH, libc::NLM_F_CREATE, &header)
            .attr(libc::NDA_DST, &ip_bytes(address)),
    )
}
