//! Links that lead into containers: a port here, the container's end there.

use std::os::fd::{AsRawFd as _, BorrowedFd};

use netspawn_ebpf::wire::Mac;

use super::netlink::{Error, Message, Netlink, Request, read_text};
use super::read::{IFINFOMSG, ifinfomsg};

/// `VETH_INFO_PEER` of include/uapi/linux/veth.h.
const VETH_INFO_PEER: u16 = 1;

/// A veth to be made. Its ends stay down.
#[derive(Clone, Copy, Debug)]
pub struct Veth<'a> {
    /// Name of the host's end.
    pub name: &'a str,
    /// What is remembered of it with the link (`IFLA_IFALIAS`), 255 bytes at most.
    pub alias: &'a str,
    /// MTU of both ends in bytes of IP packet.
    pub mtu: u32,
    /// Name of the container's end.
    pub peer: &'a str,
    /// Link-layer address of the container's end; the kernel's choice without one.
    pub mac: Option<Mac>,
    /// The container's network namespace; without one its end is here as well.
    pub namespace: Option<BorrowedFd<'a>>,
}

impl Veth<'_> {
    /// Makes it. What fails leaves nothing.
    ///
    /// # Errors
    /// When the kernel refuses, as with `EEXIST` for a name that is taken.
    pub fn create(&self, netlink: &mut Netlink) -> Result<(), Error> {
        let flags = libc::NLM_F_CREATE | libc::NLM_F_EXCL;
        let request = Request::new(libc::RTM_NEWLINK, flags, &ifinfomsg(0, 0, 0))
            .text(libc::IFLA_IFNAME, self.name)
            .u32(libc::IFLA_MTU, self.mtu);
        netlink.apply(request.nest(libc::IFLA_LINKINFO, |info| {
            info.text(libc::IFLA_INFO_KIND, "veth")
                .nest(libc::IFLA_INFO_DATA, |data| {
                    data.nest(VETH_INFO_PEER, |peer| self.peer(peer))
                })
        }))?;
        if self.alias.is_empty() {
            return Ok(());
        }
        // The kernel takes it of links that are there alone.
        let request = Request::new(libc::RTM_SETLINK, 0, &ifinfomsg(0, 0, 0))
            .text(libc::IFLA_IFNAME, self.name)
            .attr(libc::IFLA_IFALIAS, self.alias.as_bytes());
        netlink.apply(request).inspect_err(|_| {
            let _ = remove(netlink, self.name);
        })
    }

    fn peer(&self, nest: Request) -> Request {
        let mut nest = nest
            .fixed(&ifinfomsg(0, 0, 0))
            .text(libc::IFLA_IFNAME, self.peer)
            .u32(libc::IFLA_MTU, self.mtu);
        if let Some(mac) = self.mac {
            nest = nest.attr(libc::IFLA_ADDRESS, &mac);
        }
        if let Some(namespace) = self.namespace {
            nest = nest.u32(libc::IFLA_NET_NS_FD, namespace.as_raw_fd().cast_unsigned());
        }
        nest
    }
}

/// Removes a link, and with a veth its other end. That there is none is no error.
///
/// # Errors
/// When the kernel refuses.
pub fn remove(netlink: &mut Netlink, name: &str) -> Result<(), Error> {
    let request =
        Request::new(libc::RTM_DELLINK, 0, &ifinfomsg(0, 0, 0)).text(libc::IFLA_IFNAME, name);
    match netlink.apply(request) {
        Err(error) if error.errno() == Some(libc::ENODEV) => Ok(()),
        result => result,
    }
}

/// What is remembered with a link; empty where nothing is.
///
/// # Errors
/// When there is no link of that name (`ENODEV`).
pub fn alias(netlink: &mut Netlink, name: &str) -> Result<String, Error> {
    let request =
        Request::new(libc::RTM_GETLINK, 0, &ifinfomsg(0, 0, 0)).text(libc::IFLA_IFNAME, name);
    let read = |message: Message<'_>| {
        let alias = message
            .attrs(IFINFOMSG)
            .find(|(kind, _)| *kind == libc::IFLA_IFALIAS);
        Some(alias.map_or(String::new(), |(_, bytes)| read_text(bytes)))
    };
    netlink.get(request, read)
}
