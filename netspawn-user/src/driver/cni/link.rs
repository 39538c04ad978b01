//! A container's link: the host's end, and the container's with its addresses and routes.

use std::{fs, io, net::IpAddr, os::fd::AsFd as _, path::Path};

use ipnet::IpNet;
use netspawn_ebpf::wire::Mac;
use sha2::{Digest as _, Sha256};

use super::{
    environment::Target,
    error::Error,
    host,
    result::{Ip, Previous, Route, cidr},
};
use crate::{
    gone,
    net::{
        interface, namespace,
        netlink::{self, Netlink},
        veth::{self, Veth},
    },
};

/// The gateway that every port answers for.
fn gateway(family: IpAddr) -> IpAddr {
    match family {
        IpAddr::V4(_) => [169, 254, 1, 1].into(),
        IpAddr::V6(_) => [0xfe80, 0, 0, 0, 0, 0, 0, 1].into(),
    }
}

/// What a container's end is to have.
///
/// Its addresses are single ones, whatever the length of the prefix that they were given
/// with: everything goes by the gateway, so that a container has no neighbor but that.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Addresses with their gateways.
    addresses: Vec<(IpNet, IpAddr)>,
    /// Routes as they are told.
    pub routes: Vec<Route>,
    settled: Vec<interface::Route>,
    /// Link-layer address of the container's end.
    pub mac: Mac,
    /// Link-layer address of the host's end.
    pub host_mac: Mac,
    /// MTU of both ends.
    pub mtu: u32,
}

impl Plan {
    /// From what the plugin that gives addresses has said.
    ///
    /// # Errors
    /// When an address or a route is none.
    pub fn new(
        target: &Target,
        given: &Previous,
        mac: Option<Mac>,
        mtu: u32,
    ) -> Result<Self, Error> {
        let mut addresses = Vec::new();
        for ip in &given.ips {
            let address = cidr(&ip.address)?.addr();
            let gateway = ip.gateway.unwrap_or_else(|| gateway(address));
            addresses.push((IpNet::from(address), gateway));
        }
        let of_family = |family: IpAddr| {
            let mut gateways = addresses.iter().map(|(_, gateway)| *gateway);
            gateways.find(|gateway| gateway.is_ipv4() == family.is_ipv4())
        };
        let mut routes = given.routes.clone();
        if routes.is_empty() {
            let families: [IpAddr; 2] = [[0; 4].into(), [0; 16].into()];
            routes.extend(
                families
                    .into_iter()
                    .filter_map(of_family)
                    .map(Route::default),
            );
        }
        let mut settled = Vec::new();
        for route in &mut routes {
            let one =
                route.settled(|family| of_family(family).unwrap_or_else(|| gateway(family)))?;
            route.gw = one.gateway;
            settled.push(one);
        }
        Ok(Plan {
            addresses,
            routes,
            settled,
            mac: mac.unwrap_or_else(|| made_up(target, "container")),
            host_mac: made_up(target, "host"),
            mtu,
        })
    }

    /// The container's addresses.
    pub fn addresses(&self) -> Vec<IpNet> {
        self.addresses.iter().map(|(address, _)| *address).collect()
    }

    /// The addresses as they are told, on the link of that index.
    pub fn ips(&self, interface: usize) -> Vec<Ip> {
        let ip = |(address, gateway): &(IpNet, IpAddr)| Ip {
            version: None,
            interface: Some(interface),
            address: address.to_string(),
            gateway: Some(*gateway),
        };
        self.addresses.iter().map(ip).collect()
    }
}

/// A link-layer address of one end, the same at every try.
fn made_up(target: &Target, end: &str) -> Mac {
    let digest = Sha256::digest(format!("{}/{}/{end}", target.container, target.ifname));
    // Locally administered, one station's.
    let mut mac = [2, 0, 0, 0, 0, 0];
    for (byte, digit) in mac[1..].iter_mut().zip(digest.iter()) {
        *byte = *digit;
    }
    mac
}

/// Makes the link into a namespace, and sets both ends up. Returns the ifindex of the
/// host's end. What fails leaves nothing.
///
/// # Errors
/// When the kernel refuses, or the name is taken.
pub fn make(name: &str, target: &Target, netns: &Path, plan: &Plan) -> Result<u32, Error> {
    let mut netlink = Netlink::open().map_err(|error| Error::kernel("netlink", error))?;
    let namespace = host::open_namespace(netns)?;
    let link = Veth {
        name,
        alias: &format!("cni {} {}", known_by(&target.container), target.ifname),
        mtu: plan.mtu,
        peer: &target.ifname,
        mac: Some(plan.mac),
        namespace: Some(namespace.as_fd()),
    };
    link.create(&mut netlink)
        .map_err(|error| Error::kernel(format!("cannot make the veth {name}"), error))?;
    let made = configure(&mut netlink, name, target, netns, plan);
    if made.is_err()
        && let Err(error) = remove(name)
    {
        tracing::warn!("{error}");
    }
    made
}

/// As much of a container's id as there is room for.
fn known_by(id: &str) -> &str {
    id.get(..200).unwrap_or(id)
}

fn configure(
    netlink: &mut Netlink,
    name: &str,
    target: &Target,
    netns: &Path,
    plan: &Plan,
) -> Result<u32, Error> {
    let failed = |error: netlink::Error| Error::kernel(format!("cannot set up {name}"), error);
    let port = interface::find(netlink, name).map_err(failed)?;
    interface::fix(netlink, port.ifindex, plan.host_mac).map_err(failed)?;
    interface::set_up(netlink, port.ifindex).map_err(failed)?;
    let (ifname, inner) = (target.ifname.clone(), plan.clone());
    namespace::inside(Some(netns.to_owned()), move || inside(&ifname, &inner)).map_err(
        |error| {
            Error::kernel(
                format!("cannot set up {} in the container", target.ifname),
                error,
            )
        },
    )?;
    Ok(port.ifindex)
}

/// Sets the container's end up, in its namespace.
fn inside(ifname: &str, plan: &Plan) -> io::Result<()> {
    let mut netlink = Netlink::open().map_err(io::Error::other)?;
    let ifindex = interface::find(&mut netlink, ifname)
        .map_err(io::Error::other)?
        .ifindex;
    if plan
        .addresses
        .iter()
        .any(|(address, _)| address.addr().is_ipv6())
    {
        // Some engines make namespaces without IPv6.
        let switch = format!("/proc/sys/net/ipv6/conf/{ifname}/disable_ipv6");
        // A kernel without IPv6 has no such file, and says so of the address.
        let disabled = gone::path(fs::read_to_string(&switch))?;
        if disabled.is_some_and(|text| text.trim() == "1") {
            fs::write(&switch, "0")?;
        }
    }
    interface::set_up(&mut netlink, ifindex).map_err(io::Error::other)?;
    for (address, _) in &plan.addresses {
        interface::add_address(&mut netlink, ifindex, *address)
            .map_err(|error| io::Error::other(format!("address {address}: {error}")))?;
    }
    for route in &plan.settled {
        interface::add_route(&mut netlink, ifindex, route).map_err(|error| {
            io::Error::other(format!("route to {}: {error}", route.destination))
        })?;
    }
    Ok(())
}

/// Removes a link that was made here, if there is one.
///
/// # Errors
/// When the kernel refuses.
pub fn remove(name: &str) -> Result<(), Error> {
    Netlink::open()
        .and_then(|mut netlink| veth::remove(&mut netlink, name))
        .map_err(|error| Error::kernel(format!("cannot remove {name}"), error))
}

/// Whether there is an interface of that name in a namespace.
///
/// # Errors
/// When the namespace cannot be looked into.
pub fn is_taken(netns: &Path, ifname: &str) -> Result<bool, Error> {
    let name = ifname.to_owned();
    namespace::inside(Some(netns.to_owned()), move || {
        let mut netlink = Netlink::open().map_err(io::Error::other)?;
        match interface::find(&mut netlink, &name) {
            Ok(_) => Ok(true),
            Err(error) if error.errno() == Some(libc::ENODEV) => Ok(false),
            Err(error) => Err(io::Error::other(error)),
        }
    })
    .map_err(|error| Error::kernel(format!("cannot look for {ifname} in the container"), error))
}
