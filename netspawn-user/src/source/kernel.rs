//! What the kernel has of setups without this program: routes to machines'
//! ports, or to bridges of such ports, and proxy neighbors.
//!
//! A port is a veth or a tap. Not looked at are interfaces with a default route
//! and bridges with other ports than these, because the network is behind them;
//! subnets that the host itself is in; and what no machine can own. Of several
//! routes to the same destination the one of the lowest metric counts, as in the
//! kernel.
//!
//! A route to a bridge says nothing of the port. The machine is found by the
//! link-layer address of its neighbor entry: it is that of a port's peer, or in
//! the bridge's forwarding database.
//!
//! Private addresses (RFC 1918, RFC 6598, RFC 4193) are as a rule behind NAT,
//! which packets would no longer pass. They count where the network asks for
//! them: with a proxy neighbor, or within a subnet of an interface with a
//! default route.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::IpAddr,
    path::{Path, PathBuf},
};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use netspawn_ebpf::wire::Mac;

use super::layers::{Keys, Layer, Layers};
use crate::{
    fields,
    model::{DisplayMac, Host, Link, Proxy, Route, SourceKind, Unfollowed},
    problem::Fault,
};

/// Prefixes that are not routed between networks, unless these agree on it.
const PRIVATE: [IpNet; 5] = [
    IpNet::V4(Ipv4Net::new_assert(std::net::Ipv4Addr::new(10, 0, 0, 0), 8)),
    IpNet::V4(Ipv4Net::new_assert(
        std::net::Ipv4Addr::new(172, 16, 0, 0),
        12,
    )),
    IpNet::V4(Ipv4Net::new_assert(
        std::net::Ipv4Addr::new(192, 168, 0, 0),
        16,
    )),
    IpNet::V4(Ipv4Net::new_assert(
        std::net::Ipv4Addr::new(100, 64, 0, 0),
        10,
    )),
    IpNet::V6(Ipv6Net::new_assert(
        std::net::Ipv6Addr::new(0xfc00, 0, 0, 0, 0, 0, 0, 0),
        7,
    )),
];

/// A machine that routes lead to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// Name, made from that of the port.
    pub name: String,
    /// Whether the port is the one that a machine of that name has without
    /// naming it.
    pub usual_port: bool,
    /// ifindex of the port.
    pub port: u32,
    /// Name of the port.
    pub interface: String,
    /// Link-layer address of the machine's end, where the port cannot tell it.
    pub mac: Option<Mac>,
    /// Its routes, by destination.
    pub routes: Vec<Route>,
}

impl Found {
    /// The prefixes routed to it.
    pub fn addresses(&self) -> impl Iterator<Item = IpNet> {
        self.routes.iter().map(|route| route.destination)
    }
}

/// Why a route counts for no machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Why {
    /// The bridge's neighbor entry has no link-layer address: the machine has
    /// not been spoken to, or does not answer.
    Silent {
        /// Who is to be asked for.
        hop: IpAddr,
    },
    /// A prefix on the link of a bridge with several ports.
    Shared,
    /// No port of the bridge has that station.
    Nowhere(Mac),
    /// It is private, and the network does not ask for it.
    Private,
    /// No machine can have the name of the port.
    Name,
}

/// A route that may lead to a machine, and counts for none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unattributed {
    /// The route.
    pub route: Route,
    /// Name of the interface it leaves through.
    pub interface: String,
    /// Why.
    pub why: Why,
}

impl Unattributed {
    /// Whether it may well be a machine's, which would be lost.
    pub fn is_loss(&self) -> bool {
        self.why != Why::Private
    }
}

impl fmt::Display for Unattributed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Unattributed {
            route, interface, ..
        } = self;
        let destination = fields::shortest(&route.destination);
        write!(f, "{destination} on {interface}: ")?;
        match &self.why {
            Why::Silent { hop } => write!(
                f,
                "{hop} does not answer, so that its port is not known; start the machine and try \
                 again"
            )?,
            Why::Shared => f.write_str("any of the bridge's ports may have it")?,
            Why::Nowhere(mac) => write!(
                f,
                "{} is behind none of the bridge's ports",
                DisplayMac(*mac)
            )?,
            Why::Private => f.write_str(
                "it is private and the network does not ask for it, so that it may be behind NAT",
            )?,
            Why::Name => f.write_str("the interface's name cannot be a machine's")?,
        }
        let port = match self.why {
            Why::Private | Why::Name => interface.as_str(),
            _ => "PORT",
        };
        write!(
            f,
            ", or write CONFIGDIR/machines/NAME.toml: interface = \"{port}\", addresses = \
             [\"{destination}\"]"
        )
    }
}

/// What the host's routes say of machines.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Survey {
    /// Machines by name.
    pub machines: Vec<Found>,
    /// Routes that count for none.
    pub unattributed: Vec<Unattributed>,
    /// Proxy neighbors facing the network whose address no route takes to a
    /// machine.
    pub unrouted: Vec<Proxy>,
    /// ifindexes of interfaces with a default route.
    pub uplinks: BTreeSet<u32>,
    /// ifindexes of the bridges that machines were found behind.
    pub bridges: BTreeSet<u32>,
}

/// Ports behind bridges, by bridge and neighbor, as they were last seen.
type Known = BTreeMap<(u32, IpAddr), u32>;

/// Attributes routes to ports.
pub fn survey(host: &Host, unfollowed: &Unfollowed) -> Survey {
    Surveyor::new(host, unfollowed).run(&mut Known::new())
}

struct Surveyor<'a> {
    host: &'a Host,
    unfollowed: &'a Unfollowed,
    uplinks: BTreeSet<u32>,
    neighbors: BTreeMap<(u32, IpAddr), Mac>,
}

/// Where a route leads.
struct Port {
    ifindex: u32,
    bridge: Option<u32>,
    /// The machine's link-layer address, where its neighbor entry has it.
    station: Option<Mac>,
}

impl<'a> Surveyor<'a> {
    fn new(host: &'a Host, unfollowed: &'a Unfollowed) -> Self {
        Surveyor {
            host,
            unfollowed,
            uplinks: host
                .routes
                .iter()
                .filter(|route| route.destination.prefix_len() == 0)
                .filter_map(|route| route.ifindex)
                .collect(),
            neighbors: host
                .neighbors
                .iter()
                .filter_map(|entry| Some(((entry.ifindex, entry.address), entry.mac?)))
                .collect(),
        }
    }

    fn run(self, known: &mut Known) -> Survey {
        let mut survey = Survey::default();
        let mut ports: BTreeMap<u32, (Vec<Route>, BTreeSet<Mac>)> = BTreeMap::new();
        let mut seen = Known::new();
        let mut routed = Vec::new();
        for route in self.routes() {
            let Some(link) = route.ifindex.and_then(|index| self.host.links.get(&index)) else {
                continue;
            };
            let Some(found) = self.port(link, route, known) else {
                continue;
            };
            routed.push(route.destination);
            let why = match found {
                _ if self.is_private(&route.destination) => Why::Private,
                Ok(port) => {
                    if let (Some(bridge), Some(hop)) = (port.bridge, hop(route)) {
                        seen.insert((bridge, hop), port.ifindex);
                    }
                    survey.bridges.extend(port.bridge);
                    let (routes, stations) = ports.entry(port.ifindex).or_default();
                    routes.push(route.clone());
                    stations.extend(port.station);
                    continue;
                }
                Err(why) => why,
            };
            survey.unattributed.push(Unattributed {
                route: route.clone(),
                interface: link.name.clone(),
                why,
            });
        }
        *known = seen;
        // Towards machines it stands for their gateways.
        let faces_network = |ifindex: u32| {
            let bridge = self.host.links.get(&ifindex).is_some_and(is_bridge);
            self.uplinks.contains(&ifindex) || !(bridge || ports.contains_key(&ifindex))
        };
        survey.unrouted = self
            .unfollowed
            .proxies
            .iter()
            .filter(|proxy| is_ownable(&proxy.address.into()))
            .filter(|proxy| proxy.ifindex.is_none_or(faces_network))
            .filter(|proxy| !routed.iter().any(|prefix| prefix.contains(&proxy.address)))
            .copied()
            .collect();
        self.name(ports, &mut survey);
        survey.uplinks = self.uplinks;
        survey
    }

    /// The routes that count, one a destination.
    fn routes(&self) -> impl Iterator<Item = &'a Route> {
        let mut best: BTreeMap<IpNet, &'a Route> = BTreeMap::new();
        for route in &self.host.routes {
            let known = best.entry(route.destination).or_insert(route);
            if route.priority < known.priority {
                *known = route;
            }
        }
        let own: BTreeSet<IpNet> = self
            .host
            .addresses
            .iter()
            .flat_map(|(_, address)| [address.trunc(), address.addr().into()])
            .collect();
        best.into_values().filter(move |route| {
            !route.refused && is_ownable(&route.destination) && !own.contains(&route.destination)
        })
    }

    /// The port that a route leads to, or why that cannot be told; `None` where
    /// it leads to no machine.
    fn port(&self, link: &Link, route: &Route, known: &Known) -> Option<Result<Port, Why>> {
        if self.uplinks.contains(&link.ifindex) {
            return None;
        }
        if !is_bridge(link) {
            let station = hop(route).and_then(|hop| self.neighbors.get(&(link.ifindex, hop)));
            return (link.master.is_none() && is_port(link)).then(|| {
                Ok(Port {
                    ifindex: link.ifindex,
                    bridge: None,
                    station: station.copied(),
                })
            });
        }
        let bridge = link.ifindex;
        let ports: Vec<&Link> = self
            .host
            .links
            .values()
            .filter(|port| port.master == Some(bridge))
            .collect();
        if ports.is_empty() || !ports.iter().all(|port| is_port(port)) {
            return None;
        }
        let hop = hop(route);
        let station = hop.and_then(|hop| self.neighbors.get(&(bridge, hop)).copied());
        let known = hop
            .and_then(|hop| known.get(&(bridge, hop)))
            .filter(|port| ports.iter().any(|link| link.ifindex == **port))
            .copied();
        let found = match (&ports[..], station, hop) {
            ([only], ..) => Ok(only.ifindex),
            (_, Some(mac), _) => self.behind(&ports, mac).ok_or(Why::Nowhere(mac)),
            (_, None, Some(hop)) => known.ok_or(Why::Silent { hop }),
            (_, None, None) => Err(Why::Shared),
        };
        Some(found.map(|ifindex| Port {
            ifindex,
            bridge: Some(bridge),
            station,
        }))
    }

    /// The port that a station is behind.
    fn behind(&self, ports: &[&Link], mac: Mac) -> Option<u32> {
        let peer = |link: &&&Link| link.peer.and_then(|peer| peer.mac) == Some(mac);
        let mut peers = ports.iter().filter(peer);
        match (peers.next(), peers.next()) {
            (Some(one), None) => return Some(one.ifindex),
            // Two with the same address: the bridge delivers to either.
            (Some(_), Some(_)) => return None,
            (None, _) => {}
        }
        let stations = &self.unfollowed.stations;
        stations
            .iter()
            .filter(|station| station.mac == mac)
            .map(|station| station.port)
            .find(|port| ports.iter().any(|link| link.ifindex == *port))
    }

    fn is_private(&self, prefix: &IpNet) -> bool {
        let asked_for = || {
            let subnets = self
                .host
                .addresses
                .iter()
                .filter(|(ifindex, _)| self.uplinks.contains(ifindex));
            let proxies = &self.unfollowed.proxies;
            subnets
                .clone()
                .any(|(_, subnet)| subnet.trunc().contains(prefix))
                || proxies.iter().any(|proxy| prefix.contains(&proxy.address))
        };
        is_private(prefix) && !asked_for()
    }

    /// Names the machines after their ports: as systemd-nspawn names ports
    /// after machines, else the port's own name, also where two have the same.
    #[expect(
        clippy::disallowed_methods,
        reason = "this parses text or bytes; no system call can fail here"
    )]
    fn name(&self, ports: BTreeMap<u32, (Vec<Route>, BTreeSet<Mac>)>, survey: &mut Survey) {
        let mut usual: BTreeMap<String, u32> = BTreeMap::new();
        for ifindex in ports.keys() {
            if let Some(name) = nspawn_name(&self.host.links[ifindex]) {
                *usual.entry(name).or_default() += 1;
            }
        }
        let own_names: BTreeSet<&str> = ports
            .keys()
            .map(|ifindex| self.host.links[ifindex].name.as_str())
            .collect();
        for (ifindex, (routes, stations)) in ports {
            let link = &self.host.links[&ifindex];
            let usual = nspawn_name(link)
                .filter(|name| usual[name] == 1 && !own_names.contains(name.as_str()));
            let usual_port = usual.is_some();
            let Some(name) = usual.or_else(|| fields::machine_name(&link.name).ok()) else {
                survey
                    .unattributed
                    .extend(routes.into_iter().map(|route| Unattributed {
                        route,
                        interface: link.name.clone(),
                        why: Why::Name,
                    }));
                continue;
            };
            let stations: Vec<Mac> = stations.into_iter().collect();
            survey.machines.push(Found {
                name,
                usual_port,
                port: ifindex,
                interface: link.name.clone(),
                mac: match stations[..] {
                    // A veth's machine has the address of the other end.
                    [only] if link.kind.as_deref() != Some("veth") => Some(only),
                    _ => None,
                },
                routes,
            });
        }
        survey.machines.sort_by(|a, b| a.name.cmp(&b.name));
    }
}

/// Whether a prefix is not routed between networks, so that it may be behind NAT.
pub(crate) fn is_private(prefix: &IpNet) -> bool {
    PRIVATE.iter().any(|private| private.contains(prefix))
}

/// Whether a machine can be behind it.
fn is_port(link: &Link) -> bool {
    link.hardware == libc::ARPHRD_ETHER && matches!(link.kind.as_deref(), Some("veth" | "tun"))
}

fn is_bridge(link: &Link) -> bool {
    link.kind.as_deref() == Some("bridge")
}

/// Whether a machine can own it.
#[expect(
    clippy::disallowed_methods,
    reason = "this parses text or bytes; no system call can fail here"
)]
fn is_ownable(prefix: &IpNet) -> bool {
    fields::prefix(&prefix.to_string()).is_ok()
}

/// Whose neighbor entry says where a route leads.
fn hop(route: &Route) -> Option<IpAddr> {
    let prefix = &route.destination;
    let single = prefix.prefix_len() == prefix.max_prefix_len();
    route.gateway.or(single.then(|| prefix.addr()))
}

/// The machine whose port systemd-nspawn names so. Names too long for an
/// interface are alternative names.
#[expect(
    clippy::disallowed_methods,
    reason = "this parses text or bytes; no system call can fail here"
)]
fn nspawn_name(link: &Link) -> Option<String> {
    let names = link.alt_names.iter().chain([&link.name]);
    names
        .filter_map(|name| name.strip_prefix("ve-").or(name.strip_prefix("vb-")))
        .find_map(|name| fields::machine_name(name).ok())
}

/// The source: remembers where machines behind bridges are, because their
/// neighbor entries go once nobody needs them.
#[derive(Debug, Default)]
pub struct Kernel {
    known: Known,
}

impl Kernel {
    /// Declares a machine for each port that routes lead to.
    pub fn read(&mut self, host: &Host, layers: &mut Layers) {
        match Unfollowed::dump() {
            Ok(unfollowed) => self.declare(host, &unfollowed, layers),
            Err(error) => {
                let fault = Fault::new(
                    format!("cannot read proxy neighbors and bridges: {error}"),
                    "machines keep what they have",
                );
                layers.unlisted(
                    SourceKind::Kernel,
                    PathBuf::new(),
                    fault.at(Path::new(""), None, Some("kernel")),
                );
            }
        }
    }

    fn declare(&mut self, host: &Host, unfollowed: &Unfollowed, layers: &mut Layers) {
        let survey = Surveyor::new(host, unfollowed).run(&mut self.known);
        for machine in survey.machines {
            let addresses = machine.addresses().collect();
            layers.add(
                machine.name,
                Layer {
                    kind: SourceKind::Kernel,
                    path: format!("routes to {}", machine.interface).into(),
                    keys: Keys {
                        interface: Some(machine.interface),
                        addresses: Some(addresses),
                        mac: machine.mac,
                        ..Keys::default()
                    },
                },
            );
        }
        for lost in survey.unattributed.iter().filter(|lost| lost.is_loss()) {
            let fault = Fault::new(lost.to_string(), "");
            layers.problem(fault.at(Path::new(""), None, Some("kernel")));
        }
    }
}

#[cfg(test)]
mod tests;
