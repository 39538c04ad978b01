//! ADD after another plugin, which has made the link and given the addresses.

use std::path::Path;

use ipnet::IpNet;
use serde_json::Value;

use super::{
    Call, add,
    attachment::Port,
    environment::Target,
    error::Error,
    host::open_namespace,
    leftovers,
    result::{self, Previous, cidr},
};
use crate::net::{namespace, netlink::Netlink, read};

/// Has the link served. The result is the one of the plugin before.
pub fn add(
    call: &Call<'_>,
    target: &Target,
    netns: &Path,
    previous: &Value,
) -> Result<Value, Error> {
    if let Some(kind) = &call.config.ipam {
        return Err(Error::config(
            format!("ipam.type {kind:?} after another plugin, which has given the addresses"),
            "leave ipam away here",
        ));
    }
    let result = result::read("prevResult", previous)?;
    leftovers::of_network(call, target)?;
    let port = port(call, target, netns, &result)?;
    let machine = add::machine(call, target, &port.name, addresses(target, &result)?);
    let attachment = call.attachment(target, port, None, machine);
    if let Err(error) = add::serve(call, &attachment) {
        call.host.withdraw(&error);
        return Err(error);
    }
    let mut result = previous.clone();
    result["cniVersion"] = call.config.version.name().into();
    Ok(result)
}

/// The addresses of the container's interface.
fn addresses(target: &Target, result: &Previous) -> Result<Vec<IpNet>, Error> {
    let of_target = |index: usize| {
        let interface = result.interfaces.get(index);
        interface.is_some_and(|one| !one.sandbox.is_empty() && one.name == target.ifname)
    };
    let addresses = result
        .ips
        .iter()
        .filter(|ip| ip.interface.is_none_or(of_target))
        .map(|ip| Ok(IpNet::from(cidr(&ip.address)?.addr())))
        .collect::<Result<Vec<_>, Error>>()?;
    if addresses.is_empty() {
        return Err(Error::config(
            format!("prevResult has no address for {}", target.ifname),
            "the plugin before needs an ipam",
        ));
    }
    Ok(addresses)
}

/// The host's end of the container's interface, among the links that the plugin before
/// has made.
fn port(call: &Call<'_>, target: &Target, netns: &Path, result: &Previous) -> Result<Port, Error> {
    let mut netlink = Netlink::open().map_err(|error| Error::kernel("netlink", error))?;
    let id = namespace::id_of_file(&mut netlink, open_namespace(netns)?)
        .map_err(|error| Error::kernel("netlink", error))?;
    let network = call.host.network()?;
    let on_host = result
        .interfaces
        .iter()
        .filter(|one| one.sandbox.is_empty());
    for link in on_host.filter_map(|one| network.link(&one.name)) {
        let Some(peer) = link
            .peer
            .filter(|peer| peer.netnsid.is_some() && peer.netnsid == id)
        else {
            continue;
        };
        let name = read::peer_name(&mut netlink, peer.ifindex, id.unwrap_or_default())
            .map_err(|error| Error::kernel("netlink", error))?;
        if name.as_deref() == Some(&target.ifname) {
            return Ok(Port {
                ifindex: link.ifindex,
                name: link.name.clone(),
                own: false,
            });
        }
    }
    Err(Error::config(
        format!(
            "prevResult names no link of the host that leads to {} in the container",
            target.ifname
        ),
        "use netspawn-cni after a plugin that makes a veth, as ptp does, or alone",
    ))
}
