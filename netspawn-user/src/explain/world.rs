//! What the maps say, as the library's decisions see it, and by which names people know it.

use std::{collections::BTreeMap, net::IpAddr, sync::LazyLock, time::Duration};

use anyhow::{Result, bail};
use ipnet::IpNet;
use netspawn_ebpf::{
    abi::{
        Endpoint, HOST, MAX_NEXTHOPS, NOBODY, Near, NextHop, Owner, Settings, Uplink, nexthop_flag,
        settings_flag,
    },
    tables::Tables,
    wire::{Ipv4, Ipv6, Mac, Words6},
};
use nix::time::{ClockId, clock_gettime};

use crate::{
    model::{Host, Route},
    plan::{self, State},
    problem::nearest,
};

/// An uplink that programs hang on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attached {
    /// ifindex.
    pub ifindex: u32,
    /// Whether XDP sees frames first.
    pub xdp: bool,
}

/// The data plane at one moment.
#[derive(Clone, Debug)]
pub struct World {
    /// What the maps hold.
    pub state: State,
    /// The host's network.
    pub host: Host,
    /// The uplinks.
    pub uplinks: Vec<Attached>,
    /// When that is, as [`now`] has it.
    pub now: u64,
}

/// `CLOCK_MONOTONIC_COARSE` in nanoseconds, as the programs read it.
#[expect(
    clippy::disallowed_methods,
    reason = "this parses text or bytes; no system call can fail here"
)]
pub fn now() -> u64 {
    clock_gettime(ClockId::CLOCK_MONOTONIC_COARSE)
        .map_or(0, |now| Duration::from(now).as_nanos() as u64)
}

/// What an array map has where nothing was written.
static NO_HOP: LazyLock<NextHop> = LazyLock::new(NextHop::default);

/// The prefixes that an address is in, the longest first.
#[expect(
    clippy::disallowed_methods,
    reason = "this parses text or bytes; no system call can fail here"
)]
fn prefixes(address: IpAddr) -> impl Iterator<Item = IpNet> {
    let longest = IpNet::from(address).prefix_len();
    (0..=longest)
        .rev()
        .filter_map(move |length| IpNet::new(address, length).ok())
        .map(|net| net.trunc())
}

/// The address that two words are.
pub fn address6([low, high]: &Words6) -> IpAddr {
    let mut bytes: Ipv6 = [0; 16];
    bytes[..8].copy_from_slice(&low.to_ne_bytes());
    bytes[8..].copy_from_slice(&high.to_ne_bytes());
    bytes.into()
}

impl World {
    /// Sets the moment.
    pub fn new(state: State, host: Host, uplinks: Vec<Attached>) -> Self {
        World {
            state,
            host,
            uplinks,
            now: now(),
        }
    }

    /// Who has an address: an endpoint id, [`HOST`] or [`NOBODY`].
    pub fn owner(&self, address: IpAddr) -> Owner {
        let shorter = match address {
            IpAddr::V4(_) => settings_flag::PREFIXES4,
            IpAddr::V6(_) => settings_flag::PREFIXES6,
        };
        prefixes(address)
            .filter(|net| {
                net.prefix_len() == net.max_prefix_len() || self.state.settings.flags & shorter != 0
            })
            .find_map(|net| self.state.addresses.get(&net).copied())
            .unwrap_or(NOBODY)
    }

    /// In what way an address whose owner is [`HOST`] is the host's.
    pub fn of_host(&self, address: IpAddr) -> &'static str {
        let mut own = self.host.addresses.iter();
        if own.any(|(_, own)| own.addr() == address) {
            "the host's own"
        } else {
            "the host's by `via-host` in netspawn.toml"
        }
    }

    /// The way to an address.
    pub fn route(&self, address: IpAddr) -> Option<&NextHop> {
        let index = prefixes(address).find_map(|net| self.state.routes.get(&net))?;
        match self.state.nexthops.get(index) {
            None if *index < MAX_NEXTHOPS => Some(&*NO_HOP),
            hop => hop,
        }
    }

    fn may_send(&self, id: Owner, address: IpAddr) -> bool {
        prefixes(address).any(|net| self.state.sources.contains(&(id, net)))
    }

    /// The router of the way to an address out of an interface, by the host's own routes.
    pub fn gateway(&self, address: IpAddr, ifindex: u32) -> Option<IpAddr> {
        self.host
            .routes
            .iter()
            .filter(|route| route.ifindex == Some(ifindex) && route.destination.contains(&address))
            .min_by_key(|route: &&Route| {
                (
                    std::cmp::Reverse(route.destination.prefix_len()),
                    route.priority,
                )
            })
            .and_then(|route| route.gateway)
    }

    /// Whether the agent's word about a next hop still counts.
    pub fn is_fresh(&self, hop: &NextHop) -> bool {
        hop.flags & nexthop_flag::RESOLVED != 0 && self.now < hop.deadline
    }

    /// An endpoint by id.
    pub fn machine(&self, id: Owner) -> Option<&Endpoint> {
        self.state.endpoints.get(&id).map(|entry| &entry.forward)
    }

    /// A machine's name.
    pub fn name(&self, id: Owner) -> Option<String> {
        let entry = self.state.endpoints.get(&id)?;
        Some(plan::text(&entry.name))
    }

    /// A machine's tenant.
    pub fn tenant(&self, id: Owner) -> Option<String> {
        let entry = self.state.endpoints.get(&id)?;
        Some(plan::text(&entry.tenant)).filter(|tenant| !tenant.is_empty())
    }

    /// What a machine owns.
    pub fn prefixes_of(&self, id: Owner) -> impl Iterator<Item = &IpNet> {
        self.state
            .addresses
            .iter()
            .filter(move |(_, owner)| **owner == id)
            .map(|(prefix, _)| prefix)
    }

    /// The machine of that name.
    ///
    /// # Errors
    /// When there is none, with the nearest name.
    pub fn machine_named(&self, name: &str) -> Result<Owner> {
        let names: BTreeMap<String, Owner> = self
            .state
            .endpoints
            .iter()
            .map(|(id, entry)| (plan::text(&entry.name), *id))
            .collect();
        if let Some(id) = names.get(name) {
            return Ok(*id);
        }
        let known: Vec<&str> = names.keys().map(String::as_str).collect();
        match nearest(name, &known) {
            Some(near) => bail!("the data plane knows no machine {name}; did you mean {near}?"),
            None => bail!(
                "the data plane knows no machine {name}; `netspawn-xdp list` shows those that are \
                 declared"
            ),
        }
    }

    /// An interface's name, or its number when it is gone.
    pub fn interface(&self, ifindex: u32) -> String {
        match self.host.links.get(&ifindex) {
            Some(link) => link.name.clone(),
            None => format!("ifindex {ifindex}"),
        }
    }

    /// The uplink of that name; of none, the one by which `toward` is reached.
    ///
    /// # Errors
    /// When it is not attached, with those that are.
    pub fn uplink_named(&self, name: Option<&str>, toward: IpAddr) -> Result<u32> {
        let is_attached = |ifindex: u32| self.uplinks.iter().any(|up| up.ifindex == ifindex);
        let names = || -> Vec<String> {
            let all = self.uplinks.iter();
            all.map(|uplink| self.interface(uplink.ifindex)).collect()
        };
        match name {
            Some(name) => match self.host.link(name) {
                Some(link) if is_attached(link.ifindex) => Ok(link.ifindex),
                Some(_) => bail!(
                    "{name} is not attached; uplinks that are: {}",
                    names().join(", ")
                ),
                None => bail!(
                    "there is no interface {name}; uplinks that are attached: {}",
                    names().join(", ")
                ),
            },
            None => {
                let leads = self.route(toward).map(|hop| hop.ifindex);
                let leads = leads.filter(|ifindex| is_attached(*ifindex));
                match leads.or_else(|| self.uplinks.first().map(|uplink| uplink.ifindex)) {
                    Some(ifindex) => Ok(ifindex),
                    None => bail!("no uplink is attached"),
                }
            }
        }
    }

    /// Whether XDP sees frames of an uplink first.
    pub fn has_xdp(&self, ifindex: u32) -> bool {
        let mut uplinks = self.uplinks.iter();
        uplinks.any(|uplink| uplink.ifindex == ifindex && uplink.xdp)
    }

    /// The endpoint whose machine has this link-layer address, the one that a frame to
    /// `port` would be of where several have it.
    pub fn machine_with(&self, mac: Mac, port: Mac) -> Option<Owner> {
        let has = |(_, endpoint): &(Owner, &Endpoint)| endpoint.mac == mac && endpoint.ifindex != 0;
        let all = || self.state.endpoints.iter().map(|(id, e)| (*id, &e.forward));
        all()
            .filter(has)
            .find(|(_, endpoint)| endpoint.port_mac == port)
            .or_else(|| all().find(has))
            .map(|(id, _)| id)
    }
}

impl Tables for World {
    fn settings(&self) -> Settings {
        self.state.settings
    }

    fn owner4(&self, address: &Ipv4) -> Owner {
        self.owner(IpAddr::from(*address))
    }

    fn owner6(&self, address: &Words6) -> Owner {
        self.owner(address6(address))
    }

    fn is_single4(&self, id: Owner, address: &Ipv4) -> bool {
        let address = IpNet::from(IpAddr::from(*address));
        self.state.addresses.get(&address) == Some(&id)
    }

    fn is_single6(&self, id: Owner, address: &Words6) -> bool {
        let address = IpNet::from(address6(address));
        self.state.addresses.get(&address) == Some(&id)
    }

    fn is_near4(&self, address: &Ipv4) -> bool {
        self.state.near.has(Near::group4(address))
    }

    fn is_near6(&self, address: &Words6) -> bool {
        self.state.near.has(Near::group6(address))
    }

    fn may_send4(&self, id: Owner, address: &Ipv4) -> bool {
        self.may_send(id, IpAddr::from(*address))
    }

    fn may_send6(&self, id: Owner, address: &Words6) -> bool {
        self.may_send(id, address6(address))
    }

    fn endpoint(&self, id: Owner) -> Option<&Endpoint> {
        self.machine(id)
    }

    fn port(&self, ifindex: u32) -> Owner {
        let State {
            ports, interfaces, ..
        } = &self.state;
        let found = ports.get(&ifindex).or(interfaces.get(&ifindex));
        found.copied().unwrap_or(NOBODY)
    }

    fn uplink(&self, ifindex: u32) -> Option<&Uplink> {
        self.state.uplinks.get(&ifindex)
    }

    fn route4(&self, address: &Ipv4) -> Option<&NextHop> {
        self.route(IpAddr::from(*address))
    }

    fn route6(&self, address: &Words6) -> Option<&NextHop> {
        self.route(address6(address))
    }
}

/// Whether an owner is a machine.
pub const fn is_machine(owner: Owner) -> bool {
    owner != HOST && owner != NOBODY
}

#[cfg(test)]
mod tests {
    use netspawn_ebpf::abi::{EndpointEntry, NAME_LEN};

    use super::*;
    use crate::model::Link;

    fn world() -> World {
        let mut state = State::default();
        let mut name = [0; NAME_LEN];
        name[..3].copy_from_slice(b"web");
        let entry = EndpointEntry {
            forward: Endpoint {
                ifindex: 5,
                mac: [2, 0, 0, 0, 0, 5],
                port_mac: [2, 0, 0, 0, 0, 6],
                ..Endpoint::default()
            },
            name,
            tenant: [0; NAME_LEN],
        };
        state.endpoints.insert(0, entry);
        let owners = [
            ("203.0.113.2/32", 0),
            ("203.0.113.0/28", 1),
            ("203.0.113.10/32", HOST),
            ("2001:db8:1::/64", 0),
        ];
        for (prefix, owner) in owners {
            state.addresses.insert(prefix.parse().unwrap(), owner);
        }
        for (prefix, index) in [("0.0.0.0/0", 0), ("203.0.113.0/24", 1)] {
            state.routes.insert(prefix.parse().unwrap(), index);
        }
        for (index, ifindex) in [(0, 2), (1, 3)] {
            let hop = NextHop {
                ifindex,
                ..NextHop::default()
            };
            state.nexthops.insert(index, hop);
        }
        let mut host = Host::default();
        for (ifindex, name) in [(2, "eth0"), (3, "eth1"), (5, "ve-web")] {
            host.links.insert(ifindex, Link::ethernet(ifindex, name));
        }
        let uplink = |ifindex| Attached {
            ifindex,
            xdp: false,
        };
        World::new(state, host, vec![uplink(2), uplink(3)])
    }

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn longest_prefix_owns() {
        let mut world = world();
        // As the programs, which look into tries only where they have entries.
        assert_eq!(world.owner(address("203.0.113.3")), NOBODY);
        world.state.settings.flags = settings_flag::PREFIXES4 | settings_flag::PREFIXES6;
        for (text, owner) in [
            ("203.0.113.2", 0),
            ("203.0.113.3", 1),
            ("203.0.113.10", HOST),
            ("203.0.113.99", NOBODY),
            ("2001:db8:1::7", 0),
            ("2001:db8::7", NOBODY),
        ] {
            assert_eq!(world.owner(address(text)), owner, "{text}");
        }
    }

    #[test]
    fn uplinks_are_found_by_name_and_by_route() {
        let world = world();
        let named = |name| world.uplink_named(name, address("198.51.100.1"));
        assert_eq!(named(None).unwrap(), 2);
        assert_eq!(named(Some("eth1")).unwrap(), 3);
        assert_eq!(world.uplink_named(None, address("203.0.113.9")).unwrap(), 3);
        let error = named(Some("ve-web")).unwrap_err().to_string();
        assert_eq!(
            error,
            "ve-web is not attached; uplinks that are: eth0, eth1"
        );
        let error = named(Some("eth9")).unwrap_err().to_string();
        assert!(error.starts_with("there is no interface eth9"), "{error}");
    }

    #[test]
    fn machines_are_found_by_name_and_by_link_layer_address() {
        let world = world();
        assert_eq!(world.machine_named("web").unwrap(), 0);
        let error = world.machine_named("wbe").unwrap_err().to_string();
        assert!(error.contains("did you mean web?"), "{error}");
        assert_eq!(world.machine_with([2, 0, 0, 0, 0, 5], [0xff; 6]), Some(0));
        assert_eq!(world.machine_with([2, 0, 0, 0, 0, 7], [0xff; 6]), None);
    }
}
