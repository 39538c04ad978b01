//! `[policy] via-host`: destinations of machines that are the host's stack's to handle.
//!
//! They become addresses of the host in the maps. So a machine's packet for them enters
//! the host (G5), and a packet from the network that has one of them as its source is
//! spoofed (F7): such a prefix must not have stations of the network in it.

use std::{collections::BTreeSet, net::IpAddr, path::Path};

use ipnet::IpNet;

use crate::{
    config,
    model::Host,
    problem::{Fault, Problem},
};

/// The key, as faults name it.
const FIELD: &str = "policy.via-host";

/// The prefixes that can be used, and why the others cannot. `leads_to_uplink` says of an
/// ifindex whether it is an uplink or on one.
pub(super) fn usable(
    wanted: &[IpNet],
    host: &Host,
    gateways: &BTreeSet<IpAddr>,
    leads_to_uplink: impl Fn(u32) -> bool,
) -> (BTreeSet<IpNet>, Vec<Problem>) {
    let mut used = BTreeSet::new();
    let mut problems = Vec::new();
    for prefix in wanted {
        match station(prefix, host, gateways, &leads_to_uplink) {
            None => {
                used.insert(*prefix);
            }
            Some(station) => problems.push(
                Fault::new(
                    format!(
                        "{prefix} contains {station}, which an uplink leads to: machines would \
                         get nothing from there"
                    ),
                    "write longer prefixes beside it",
                )
                .at(Path::new(config::FILE), None, Some(FIELD)),
            ),
        }
    }
    (used, problems)
}

/// What of the prefix is on the other side of an uplink. A route to the whole prefix is
/// nothing yet: hosts have them so that their own programs reach services.
fn station(
    prefix: &IpNet,
    host: &Host,
    gateways: &BTreeSet<IpAddr>,
    leads_to_uplink: impl Fn(u32) -> bool,
) -> Option<IpNet> {
    let subnets = host
        .addresses
        .iter()
        .filter(|(ifindex, subnet)| {
            leads_to_uplink(*ifindex) && subnet.prefix_len() < subnet.max_prefix_len()
        })
        .map(|(_, subnet)| subnet.trunc());
    let routed = host
        .routes
        .iter()
        .filter(|route| route.ifindex.is_some_and(&leads_to_uplink))
        .map(|route| route.destination)
        .filter(|destination| destination != prefix);
    let gateways = gateways.iter().copied().map(IpNet::from);
    subnets
        .chain(gateways)
        .chain(routed)
        .find(|part| prefix.contains(part))
}
