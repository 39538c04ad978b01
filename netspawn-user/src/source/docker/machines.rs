//! From what Docker says of containers to machines.

use std::{
    collections::{BTreeMap, HashMap},
    net::IpAddr,
    path::PathBuf,
};

use bollard::models::{ContainerSummary, EndpointSettings};
use ipnet::IpNet;

use super::super::engine::{Machine, Place, Wrong, each_sends_for_all};
use crate::{driver::docker as driver, fields, problem::Fault};

/// Labels of a container or an image.
pub type Labels = HashMap<String, String>;

const ADDRESSES: &str = "netspawn.addresses";
const LABELS: [&str; 2] = [ADDRESSES, driver::TENANT];

/// A network that our driver made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Network {
    name: String,
    tenant: Option<String>,
}

impl Network {
    /// Its id, and what matters here of what Docker says of it.
    pub fn read(network: bollard::models::Network) -> Option<(String, Self)> {
        let tenant = network.options.unwrap_or_default().remove(driver::TENANT);
        let (id, name) = (network.id?, network.name?);
        Some((id, Network { name, tenant }))
    }
}

/// The labels of a container that are meant for us, its image's among them.
pub fn ours(container: &ContainerSummary) -> bool {
    let labels = container.labels.as_ref();
    labels.is_some_and(|labels| LABELS.iter().any(|label| labels.contains_key(*label)))
}

/// Whether a container's network namespace is neither the host's nor that of another
/// container, which is told of by itself.
pub fn has_own_network(container: &ContainerSummary) -> bool {
    let mode = mode(container);
    mode != "host" && !mode.starts_with("container:")
}

/// Whether one of our driver's links leads into a container.
pub fn has_link(container: &ContainerSummary, networks: &HashMap<String, Network>) -> bool {
    attached(container).any(|(_, endpoint)| network(endpoint, networks).is_some())
}

/// Ids of a container's endpoints.
pub fn endpoints(container: &ContainerSummary) -> impl Iterator<Item = String> {
    attached(container).filter_map(|(_, endpoint)| endpoint.endpoint_id.clone())
}

/// The machines that a running container is: one for each network of our driver, or
/// one that is found through its network namespace. `image` has its image's labels,
/// which are nobody's word here.
#[expect(
    clippy::disallowed_methods,
    reason = "this parses text or bytes; no system call can fail here"
)]
pub fn of(
    container: &ContainerSummary,
    networks: &HashMap<String, Network>,
    image: Option<&Labels>,
    sandbox: Option<PathBuf>,
) -> Vec<Machine> {
    let Some(name) = name(container) else {
        return Vec::new();
    };
    let mut faults = Vec::new();
    let mut label = |key| {
        label(container, image, key)
            .inspect_err(|wrong| faults.push(wrong.clone()))
            .ok()
            .flatten()
    };
    let (addresses, tenant) = (label(ADDRESSES), label(driver::TENANT));
    let addresses = addresses.and_then(|text| checked(ADDRESSES, prefixes(text), &mut faults));
    let tenant = tenant.and_then(|text| checked(driver::TENANT, fields::tenant(text), &mut faults));

    let mut machines: Vec<Machine> = links(container, networks)
        .into_iter()
        .map(|(endpoint, network)| {
            let mut faults = faults.clone();
            let of_network = network.tenant.as_deref();
            let tenant = tenant
                .clone()
                .or_else(|| checked(driver::TENANT, fields::tenant(of_network?), &mut faults));
            Machine {
                name: format!("{name}.{}", network.name),
                named_by_user: false,
                origin: format!("container {name}, network {}", network.name),
                addresses: assigned(endpoint),
                sources: Vec::new(),
                tenant,
                mac: None,
                place: Place::Link(driver::link(endpoint.endpoint_id.as_deref().unwrap_or(""))),
                faults,
            }
        })
        .collect();
    if let Some(first) = machines.first_mut() {
        first.name = name.to_owned();
        first.addresses = addresses.unwrap_or_else(|| std::mem::take(&mut first.addresses));
        each_sends_for_all(&mut machines);
        return machines;
    }
    let Some(path) = sandbox else {
        return Vec::new();
    };
    let mac = primary(container).and_then(|endpoint| endpoint.mac_address.as_deref());
    vec![Machine {
        name: name.to_owned(),
        named_by_user: false,
        origin: format!("container {name}"),
        addresses: addresses.unwrap_or_default(),
        sources: Vec::new(),
        tenant,
        mac: None,
        place: Place::Namespace {
            path,
            mac: mac.and_then(|mac| fields::mac(mac).ok()),
            interface: None,
        },
        faults,
    }]
}

/// A container's endpoints in networks of our driver: that of the network it was made
/// with, then others by name.
fn links<'a>(
    container: &'a ContainerSummary,
    networks: &'a HashMap<String, Network>,
) -> Vec<(&'a EndpointSettings, &'a Network)> {
    let mode = mode(container);
    let mut links: Vec<_> = attached(container)
        .filter_map(|(_, endpoint)| Some((endpoint, network(endpoint, networks)?)))
        .collect();
    links.sort_by_key(|(endpoint, network)| {
        let is_first = mode == network.name || endpoint.network_id.as_deref() == Some(mode);
        (!is_first, &network.name)
    });
    links
}

/// The endpoint in the network that a container was made with, else the first.
fn primary(container: &ContainerSummary) -> Option<&EndpointSettings> {
    let mode = mode(container);
    let attached: BTreeMap<_, _> = attached(container).collect();
    let named = attached.get(mode);
    named.or_else(|| attached.values().next()).copied()
}

fn attached(container: &ContainerSummary) -> impl Iterator<Item = (&str, &EndpointSettings)> {
    let settings = container.network_settings.as_ref();
    let networks = settings.and_then(|settings| settings.networks.as_ref());
    networks
        .into_iter()
        .flatten()
        .map(|(name, endpoint)| (name.as_str(), endpoint))
}

fn network<'a>(
    endpoint: &EndpointSettings,
    networks: &'a HashMap<String, Network>,
) -> Option<&'a Network> {
    networks.get(endpoint.network_id.as_ref()?)
}

fn mode(container: &ContainerSummary) -> &str {
    let config = container.host_config.as_ref();
    config
        .and_then(|config| config.network_mode.as_deref())
        .unwrap_or_default()
}

/// A container's own name: links of others to it are names of it, too.
fn name(container: &ContainerSummary) -> Option<&str> {
    let names = container.names.as_ref()?.iter();
    names
        .filter_map(|name| name.strip_prefix('/'))
        .find(|name| !name.contains('/'))
}

/// What a network has assigned.
#[expect(
    clippy::disallowed_methods,
    reason = "this parses text or bytes; no system call can fail here"
)]
fn assigned(endpoint: &EndpointSettings) -> Vec<IpNet> {
    let (v4, v6) = (&endpoint.ip_address, &endpoint.global_ipv6_address);
    [v4, v6]
        .into_iter()
        .filter_map(|text| text.as_ref()?.parse::<IpAddr>().ok())
        .map(IpNet::from)
        .collect()
}

/// What a label of a container's own says; empty is nothing, and the image's is left
/// out.
fn label<'a>(
    container: &'a ContainerSummary,
    image: Option<&Labels>,
    key: &str,
) -> Result<Option<&'a str>, Wrong> {
    let Some(value) = container.labels.as_ref().and_then(|labels| labels.get(key)) else {
        return Ok(None);
    };
    if value.trim().is_empty() {
        return Ok(None);
    }
    let remedy = format!(
        "start the container with --label {key}=VALUE of its own, or with --label {key}= for none"
    );
    match image {
        None => {
            let what = "its image is not there to tell whether this is the image's label, which \
                        does not count";
            Err(Wrong::new(key, Fault::new(what, remedy)))
        }
        Some(image) if image.get(key) == Some(value) => {
            let what = format!("{value:?} is the image's label, which does not count");
            Err(Wrong::left_out(key, Fault::new(what, remedy)))
        }
        Some(_) => Ok(Some(value)),
    }
}

fn prefixes(text: &str) -> Result<Vec<IpNet>, Fault> {
    let mut prefixes = Vec::new();
    let words = text.split(|c: char| c == ',' || c.is_whitespace());
    for word in words.filter(|word| !word.is_empty()) {
        let prefix = fields::prefix(word)?;
        if prefixes.contains(&prefix) {
            return Err(Fault::new(
                format!("{word} is given twice"),
                "remove one of them",
            ));
        }
        prefixes.push(prefix);
    }
    Ok(prefixes)
}

#[expect(
    clippy::disallowed_methods,
    reason = "this parses text or bytes; no system call can fail here"
)]
fn checked<T>(key: &str, value: Result<T, Fault>, faults: &mut Vec<Wrong>) -> Option<T> {
    value
        .map_err(|fault| faults.push(Wrong::new(key, fault)))
        .ok()
}
