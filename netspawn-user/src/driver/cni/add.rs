//! ADD: connects a container.

use std::{io, path::Path};

use ipnet::IpNet;
use serde_json::Value;

use super::{
    Call,
    attachment::{self, Attachment, Begun, Port},
    chain,
    environment::Target,
    error::{Error, code},
    host::open_namespace,
    leftovers,
    link::{self, Plan},
    result::{Dns, Interface, Ip, Previous, Success},
};
use crate::source::engine::{Machine, Place};

/// MTU of Ethernet, where no uplink says another.
const ETHERNET: u32 = 1500;
/// Digits that engines write of the many in a container's id.
const DIGITS: usize = 12;
/// The interface that needs no mention in a machine's name.
const FIRST: &str = "eth0";

/// Connects it, and returns the result that is printed. What fails leaves nothing.
pub fn run(call: &Call<'_>, target: &Target) -> Result<Value, Error> {
    let Some(netns) = target.netns.as_deref() else {
        return Err(Error::new(code::ENVIRONMENT, "CNI_NETNS is missing", ""));
    };
    open_namespace(netns)?;
    match &call.config.previous {
        Some(previous) => chain::add(call, target, netns, previous),
        None => main(call, target, netns),
    }
}

/// As the main plugin: makes the link.
fn main(call: &Call<'_>, target: &Target, netns: &Path) -> Result<Value, Error> {
    let config = call.config;
    if config.ipam.is_none() && config.ips.is_empty() {
        return Err(Error::config(
            "neither ipam nor addresses in runtimeConfig.ips",
            "write for example \"ipam\": {\"type\": \"host-local\", \"subnet\": \"203.0.113.0/24\"}",
        ));
    }
    let mtu = match config.mtu {
        Some(mtu) => mtu,
        None => call.host.uplink_mtu()?.unwrap_or(ETHERNET),
    };
    // Before anything is given, as giving back would take it from who has the interface.
    if link::is_taken(netns, &target.ifname)? {
        return Err(Error::config(
            format!("{} is in the container already", target.ifname),
            "DEL it first, or use another CNI_IFNAME",
        ));
    }
    leftovers::of_network(call, target)?;
    let _begun = begin(call, target)?;
    let ipam = call.ipam(Some(target));
    let given = match ipam {
        Some(ipam) => ipam.add()?,
        None => Previous {
            ips: config.ips.iter().map(wanted).collect(),
            ..Previous::default()
        },
    };
    let connected = connect(call, target, netns, mtu, given);
    if let (Err(_), Some(ipam)) = (&connected, ipam) {
        ipam.undo();
    }
    connected
}

/// Writes down what has to be given back if this process is killed.
fn begin(call: &Call<'_>, target: &Target) -> Result<Begun, Error> {
    let port = Port {
        ifindex: 0,
        name: attachment::port_name(&target.container, &target.ifname),
        own: true,
    };
    let machine = machine(call, target, &port.name, Vec::new());
    let attachment = call.attachment(target, port, call.delegated(), machine);
    let run_dir = call.host.run_dir();
    attachment
        .begin(run_dir)
        .map_err(|error| unwritten(&attachment::begun_folder(run_dir), &error))
}

fn unwritten(folder: &Path, error: &io::Error) -> Error {
    Error::new(
        code::IO,
        format!("cannot write to {}: {error}", folder.display()),
        "",
    )
}

/// An address that the runtime wants.
fn wanted(address: &IpNet) -> Ip {
    Ip {
        version: None,
        interface: None,
        address: address.to_string(),
        gateway: None,
    }
}

/// Makes the link for addresses that have been given, and has it served.
fn connect(
    call: &Call<'_>,
    target: &Target,
    netns: &Path,
    mtu: u32,
    given: Previous,
) -> Result<Value, Error> {
    let config = call.config;
    let name = attachment::port_name(&target.container, &target.ifname);
    let plan = Plan::new(target, &given, config.mac, mtu)?;
    let port = Port {
        ifindex: link::make(&name, target, netns, &plan)?,
        name: name.clone(),
        own: true,
    };
    let mut machine = machine(call, target, &name, plan.addresses());
    machine.mac = Some(plan.mac);
    let attachment = call.attachment(target, port, call.delegated(), machine);
    if let Err(error) = serve(call, &attachment) {
        if let Err(error) = link::remove(&name) {
            tracing::warn!("{error}");
        }
        call.host.withdraw(&error);
        return Err(error);
    }
    let success = Success {
        cni_version: config.version,
        interfaces: vec![
            Interface::new(&name, plan.host_mac, mtu, ""),
            Interface::new(&target.ifname, plan.mac, mtu, &netns.to_string_lossy()),
        ],
        ips: plan.ips(1),
        routes: plan.routes,
        dns: if config.dns == Dns::default() {
            given.dns
        } else {
            config.dns.clone()
        },
    };
    Ok(success.shaped())
}

/// Keeps what is known of a container, and returns when the data plane serves it. If it
/// does not, the container is forgotten.
pub fn serve(call: &Call<'_>, attachment: &Attachment) -> Result<(), Error> {
    let run_dir = call.host.run_dir();
    let kept = attachment
        .keep(run_dir)
        .map_err(|error| unwritten(&attachment::folder(run_dir), &error));
    let served = kept.and_then(|()| {
        let applied = call.host.apply()?;
        call.host.serves(&applied, attachment)
    });
    if served.is_err() {
        call.forget(&attachment.target());
    }
    served
}

/// A container as the data plane is to have it.
pub fn machine(call: &Call<'_>, target: &Target, port: &str, addresses: Vec<IpNet>) -> Machine {
    let arg = |key| target.arg(key).filter(|value| !value.is_empty());
    // Users of a cluster name their pods.
    let named_by_user = arg("K8S_POD_NAMESPACE").is_some();
    let (mut name, origin) = match (arg("K8S_POD_NAMESPACE"), arg("K8S_POD_NAME")) {
        (Some(namespace), Some(pod)) => {
            let name = format!("{namespace}.{pod}");
            let origin = format!("pod {name}");
            (name, origin)
        }
        // podman tells a container's name by that alone.
        (None, Some(name)) => (name.to_owned(), format!("container {name}")),
        _ => {
            let id = &target.container;
            (short(id).to_owned(), format!("container {id}"))
        }
    };
    if target.ifname != FIRST {
        name = format!("{name}.{}", target.ifname);
    }
    Machine {
        name,
        named_by_user,
        origin,
        addresses,
        tenant: call.config.tenant.clone(),
        mac: None,
        place: Place::Link(port.to_owned()),
        sources: Vec::new(),
        faults: Vec::new(),
    }
}

/// A container's id as people know it.
fn short(id: &str) -> &str {
    match id.get(..DIGITS) {
        Some(start) if id.bytes().all(|byte| byte.is_ascii_hexdigit()) => start,
        _ => id,
    }
}

#[cfg(test)]
mod tests {
    use super::short;

    #[test]
    fn digits_are_cut_and_names_are_not() {
        assert_eq!(short("0123456789abcdef"), "0123456789ab");
        assert_eq!(short("0123456789"), "0123456789");
        assert_eq!(short("default-web-server"), "default-web-server");
    }
}
