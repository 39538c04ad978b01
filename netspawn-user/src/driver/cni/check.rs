//! CHECK: whether a container is connected as it was.

use std::io;

use ipnet::IpNet;

use super::{
    Call, attachment,
    environment::Target,
    error::{Error, code},
    host::open_namespace,
    result::{self, Previous, cidr},
    version::Version,
};
use crate::net::{interface, namespace, netlink::Netlink};

/// Whether it is.
pub fn run(call: &Call<'_>, target: &Target) -> Result<(), Error> {
    let Some(previous) = &call.config.previous else {
        return Err(Error::config(
            "prevResult is missing",
            "write what ADD has returned",
        ));
    };
    let result = result::read("prevResult", previous)?;
    let found = attachment::find(call.host.run_dir(), &target.container, &target.ifname);
    let found = found.map_err(|problem| changed(problem.to_string()))?;
    let Some(attachment) = found else {
        return Err(changed(format!(
            "container {} is not known to be connected",
            target.container
        )));
    };
    let view = call.host.view()?;
    let port = &attachment.port;
    if !port.is_there(&view.host) {
        return Err(changed(format!("{} is gone", port.name)));
    }
    if view.uplinks.iter().all(|uplink| uplink.gone) {
        return Err(changed("netspawn-xdp is attached to no uplink".to_owned()));
    }
    for address in &attachment.machine.addresses {
        let owner = view.held.addresses.get(address);
        let endpoint = owner.and_then(|owner| view.held.endpoints.get(owner));
        if endpoint.is_none_or(|endpoint| endpoint.forward.ifindex != port.ifindex) {
            return Err(changed(format!("{address} does not lead to {}", port.name)));
        }
    }
    check_inside(call, target, &result)?;
    match call.ipam(Some(target)) {
        Some(ipam) => ipam.check(),
        None => Ok(()),
    }
}

fn changed(what: String) -> Error {
    Error::new(
        code::CHANGED,
        what,
        "DEL and ADD connect the container again; see also `netspawn-xdp check`",
    )
}

/// Whether the container has the addresses and routes that ADD has told of.
fn check_inside(call: &Call<'_>, target: &Target, result: &Previous) -> Result<(), Error> {
    let Some(netns) = &target.netns else {
        return Ok(());
    };
    open_namespace(netns)?;
    let mut addresses: Vec<IpNet> = Vec::new();
    for ip in &result.ips {
        let interface = ip.interface.and_then(|index| result.interfaces.get(index));
        if interface.is_none_or(|one| one.name == target.ifname) {
            addresses.push(cidr(&ip.address)?);
        }
    }
    // Older results do not tell a route's table.
    let main = (call.config.version >= Version::V1_1_0).then_some(libc::RT_TABLE_MAIN.into());
    let mut routes = Vec::new();
    for route in &result.routes {
        routes.push((cidr(&route.dst)?.trunc(), route.table.or(main)));
    }
    let ifname = target.ifname.clone();
    let missing = namespace::inside(Some(netns.clone()), move || {
        let mut netlink = Netlink::open().map_err(io::Error::other)?;
        let Ok(link) = interface::find(&mut netlink, &ifname) else {
            return Ok(Some(format!("{ifname} is gone from the container")));
        };
        if !link.admin_up {
            return Ok(Some(format!("{ifname} is down in the container")));
        }
        let has = interface::addresses(&mut netlink, link.ifindex).map_err(io::Error::other)?;
        if let Some(address) = addresses.iter().find(|address| !has.contains(address)) {
            return Ok(Some(format!("{ifname} has lost the address {address}")));
        }
        for (destination, table) in routes {
            let has = interface::routes(&mut netlink, destination.addr());
            let is_it = |(to, of): &(IpNet, u32)| {
                *to == destination && table.is_none_or(|table| table == *of)
            };
            if !has.map_err(io::Error::other)?.iter().any(is_it) {
                return Ok(Some(format!("the container has no route to {destination}")));
            }
        }
        Ok(None)
    });
    match missing {
        Ok(None) => Ok(()),
        Ok(Some(what)) => Err(changed(what)),
        Err(error) => Err(Error::kernel("cannot look into the container", error)),
    }
}
