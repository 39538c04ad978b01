//! Settings of one interface of this thread's network namespace.

use std::{io, net::IpAddr};

use ipnet::IpNet;
use netspawn_ebpf::wire::Mac;

use super::{
    netlink::{Error, Netlink, Request, attrs, ip_bytes, read_ip, read_text, read_u32},
    read::{self, ifinfomsg},
};
use crate::{gone, model::Link};

/// `linux/if_addr.h`: usable at once, without asking whether somebody else has it.
const IFA_F_NODAD: u8 = 0x02;
/// `linux/rtnetlink.h`: the next hop is on the link, whatever addresses say.
const RTNH_F_ONLINK: u32 = 4;
/// `linux/if_link.h`: the interface makes no link-local address of its own.
const IN6_ADDR_GEN_MODE_NONE: u8 = 1;
const IFLA_INET6_ADDR_GEN_MODE: u16 = 8;
/// `RTA_METRICS`.
const RTAX_MTU: u16 = 2;
const RTAX_ADVMSS: u16 = 8;
const IFADDRMSG: usize = 8;
const RTMSG: usize = 12;

/// A route through an interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// Destination.
    pub destination: IpNet,
    /// Next hop, taken to be on the link; without one destinations are.
    pub gateway: Option<IpAddr>,
    /// Path MTU.
    pub mtu: Option<u32>,
    /// Segment size that TCP tells the other end.
    pub advmss: Option<u32>,
    /// Metric; the kernel's default without one.
    pub priority: Option<u32>,
    /// Table; the main one without one.
    pub table: Option<u32>,
    /// `RT_SCOPE_*`; the whole world without one.
    pub scope: Option<u8>,
}

/// The link of that name.
///
/// # Errors
/// When there is none (`ENODEV`).
pub fn find(netlink: &mut Netlink, name: &str) -> Result<Link, Error> {
    let request = read::get_link(0).text(libc::IFLA_IFNAME, name);
    netlink.get(request, |message| read::link(&message))
}

/// Sets a link up.
///
/// # Errors
/// When the kernel refuses.
pub fn set_up(netlink: &mut Netlink, ifindex: u32) -> Result<(), Error> {
    let up = libc::IFF_UP as u32;
    netlink.apply(Request::new(
        libc::RTM_NEWLINK,
        0,
        &ifinfomsg(ifindex, up, up),
    ))
}

/// Gives a link an address that nothing changes by itself, as udev does with random
/// ones, and keeps it from making IPv6 addresses of its own.
///
/// # Errors
/// When the kernel refuses the link-layer address.
pub fn fix(netlink: &mut Netlink, ifindex: u32, mac: Mac) -> Result<(), Error> {
    let request = || Request::new(libc::RTM_NEWLINK, 0, &ifinfomsg(ifindex, 0, 0));
    netlink.apply(request().attr(libc::IFLA_ADDRESS, &mac))?;
    let quiet = request().nest(libc::IFLA_AF_SPEC, |families| {
        families.nest(libc::AF_INET6 as u16, |inet6| {
            inet6.attr(IFLA_INET6_ADDR_GEN_MODE, &[IN6_ADDR_GEN_MODE_NONE])
        })
    });
    if let Err(error) = netlink.apply(quiet) {
        // A kernel without IPv6 makes none either.
        tracing::debug!("interface {ifindex}: cannot keep it from making addresses: {error}");
    }
    Ok(())
}

/// Adds an address, usable at once. That it is there already is no error.
///
/// # Errors
/// When the kernel refuses.
pub fn add_address(netlink: &mut Netlink, ifindex: u32, address: IpNet) -> Result<(), Error> {
    let mut header = [0; IFADDRMSG];
    header[0] = family(address.addr());
    header[1] = address.prefix_len();
    header[2] = IFA_F_NODAD;
    header[4..8].copy_from_slice(&ifindex.to_ne_bytes());
    let bytes = ip_bytes(address.addr());
    let flags = libc::NLM_F_CREATE | libc::NLM_F_EXCL;
    exists_is_fine(
        netlink.apply(
            Request::new(libc::RTM_NEWADDR, flags, &header)
                .attr(libc::IFA_LOCAL, &bytes)
                .attr(libc::IFA_ADDRESS, &bytes),
        ),
    )
}

/// Adds a route. One to that destination that is there already is left.
///
/// # Errors
/// When the kernel refuses.
#[expect(
    clippy::disallowed_methods,
    reason = "this parses text or bytes; no system call can fail here"
)]
pub fn add_route(netlink: &mut Netlink, ifindex: u32, route: &Route) -> Result<(), Error> {
    let table = route.table.unwrap_or(libc::RT_TABLE_MAIN.into());
    let mut header = [0; RTMSG];
    header[0] = family(route.destination.addr());
    header[1] = route.destination.prefix_len();
    header[4] = u8::try_from(table).unwrap_or(libc::RT_TABLE_UNSPEC);
    header[5] = libc::RTPROT_STATIC;
    header[6] = route.scope.unwrap_or(match route.gateway {
        Some(_) => libc::RT_SCOPE_UNIVERSE,
        None => libc::RT_SCOPE_LINK,
    });
    header[7] = libc::RTN_UNICAST;
    if route.gateway.is_some() {
        header[8..12].copy_from_slice(&RTNH_F_ONLINK.to_ne_bytes());
    }
    let flags = libc::NLM_F_CREATE | libc::NLM_F_EXCL;
    let mut request = Request::new(libc::RTM_NEWROUTE, flags, &header)
        .u32(libc::RTA_OIF, ifindex)
        .u32(libc::RTA_TABLE, table);
    if route.destination.prefix_len() > 0 {
        request = request.attr(libc::RTA_DST, &ip_bytes(route.destination.network()));
    }
    if let Some(gateway) = route.gateway {
        request = request.attr(libc::RTA_GATEWAY, &ip_bytes(gateway));
    }
    if let Some(priority) = route.priority {
        request = request.u32(libc::RTA_PRIORITY, priority);
    }
    let metrics = [(RTAX_MTU, route.mtu), (RTAX_ADVMSS, route.advmss)];
    if metrics.iter().any(|(_, value)| value.is_some()) {
        request = request.nest(libc::RTA_METRICS, |nest| {
            metrics
                .iter()
                .filter_map(|(kind, value)| Some((*kind, (*value)?)))
                .fold(nest, |nest, (kind, value)| nest.u32(kind, value))
        });
    }
    exists_is_fine(netlink.apply(request))
}

/// The name of the interface of that index; `None` when there is none.
///
/// # Errors
/// When the kernel does not tell.
pub fn name_of(ifindex: u32) -> io::Result<Option<String>> {
    let mut name = [0u8; libc::IF_NAMESIZE];
    // SAFETY: the buffer has the size that the call is documented to fill.
    let found = unsafe { libc::if_indextoname(ifindex, name.as_mut_ptr().cast()) };
    gone::interface(match found.is_null() {
        true => Err(io::Error::last_os_error()),
        false => Ok(read_text(&name)),
    })
}

/// Addresses of a link.
///
/// # Errors
/// When the kernel does not tell.
pub fn addresses(netlink: &mut Netlink, ifindex: u32) -> Result<Vec<IpNet>, Error> {
    netlink.dump(read::get_addresses(), |message| {
        let (of, address) = read::address(&message)?;
        (of == ifindex).then_some(address)
    })
}

/// Destinations and tables of all unicast routes of a family.
///
/// # Errors
/// When the kernel does not tell.
#[expect(
    clippy::disallowed_methods,
    reason = "this parses text or bytes; no system call can fail here"
)]
pub fn routes(netlink: &mut Netlink, of: IpAddr) -> Result<Vec<(IpNet, u32)>, Error> {
    let mut header = [0; RTMSG];
    header[0] = family(of);
    let unspecified: IpAddr = match of {
        IpAddr::V4(_) => [0; 4].into(),
        IpAddr::V6(_) => [0; 16].into(),
    };
    netlink.dump(Request::new(libc::RTM_GETROUTE, 0, &header), |message| {
        if message.byte(7) != libc::RTN_UNICAST {
            return None;
        }
        let mut table = u32::from(message.byte(4));
        let mut destination = unspecified;
        for (kind, value) in attrs(message.body.get(RTMSG..)?) {
            match kind {
                libc::RTA_DST => destination = read_ip(value)?,
                libc::RTA_TABLE => table = read_u32(value),
                _ => {}
            }
        }
        Some((IpNet::new(destination, message.byte(1)).ok()?, table))
    })
}

fn family(address: IpAddr) -> u8 {
    match address {
        IpAddr::V4(_) => libc::AF_INET as u8,
        IpAddr::V6(_) => libc::AF_INET6 as u8,
    }
}

fn exists_is_fine(result: Result<(), Error>) -> Result<(), Error> {
    match result {
        Err(error) if error.errno() == Some(libc::EEXIST) => Ok(()),
        result => result,
    }
}
