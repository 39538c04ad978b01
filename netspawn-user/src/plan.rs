//! What the maps hold, and the steps from what they hold to what they should.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use ipnet::IpNet;
use netspawn_ebpf::{
    abi::{
        CLOSED, EndpointEntry, HOST, NEAR_WORDS, Near, NextHop, Owner, Settings, Uplink, WAY,
        endpoint_flag, is_endpoint, map, nexthop_flag, settings_flag,
    },
    wire::words6,
};

use crate::model::{DisplayMac, Host};

/// The content of the maps that the loader writes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct State {
    /// [`map::ENDPOINTS`]: entries that are not free, by id.
    pub endpoints: BTreeMap<u32, EndpointEntry>,
    /// [`map::PORTS`]: ifindex to endpoint id. [`map::XDP_PORTS`] has those keys whose
    /// endpoints have [`endpoint_flag::XDP`].
    pub ports: BTreeMap<u32, u32>,
    /// [`map::PORTS`]: what is no endpoint, [`CLOSED`] or [`WAY`].
    ///
    /// [`CLOSED`]: netspawn_ebpf::abi::CLOSED
    /// [`WAY`]: netspawn_ebpf::abi::WAY
    pub interfaces: BTreeMap<u32, Owner>,
    /// [`map::UPLINKS`]: by ifindex.
    pub uplinks: BTreeMap<u32, Uplink>,
    /// The four address maps; [`address_map`] says which one a prefix is in.
    pub addresses: BTreeMap<IpNet, Owner>,
    /// [`map::SOURCES4`] and [`map::SOURCES6`]: endpoint id and prefix.
    pub sources: BTreeSet<(u32, IpNet)>,
    /// [`map::ROUTES4`] and [`map::ROUTES6`]: index of the next hop.
    pub routes: BTreeMap<IpNet, u32>,
    /// [`map::NEXTHOPS`]: entries that are not all zero, by index.
    pub nexthops: BTreeMap<u32, NextHop>,
    /// [`map::NEAR`], which follows from `addresses` ([`near`]).
    pub near: Box<Near>,
    /// [`map::SETTINGS`].
    pub settings: Settings,
}

impl State {
    /// Prefixes that machines hold.
    pub fn prefixes(&self) -> usize {
        self.addresses
            .values()
            .filter(|owner| **owner != HOST)
            .count()
    }

    /// An entry of [`map::PORTS`].
    pub fn set_port(&mut self, ifindex: u32, value: Owner) {
        let (to, from) = match is_endpoint(value) {
            true => (&mut self.ports, &mut self.interfaces),
            false => (&mut self.interfaces, &mut self.ports),
        };
        to.insert(ifindex, value);
        from.remove(&ifindex);
    }

    /// All of [`map::PORTS`].
    fn all_ports(&self) -> BTreeMap<u32, Owner> {
        let both = self.ports.iter().chain(&self.interfaces);
        both.map(|(ifindex, value)| (*ifindex, *value)).collect()
    }

    /// Does what a step says.
    pub fn apply(&mut self, op: &Op) {
        match op {
            Op::SetSettings { settings } => self.settings = *settings,
            Op::SetNear { near } => self.near.clone_from(near),
            Op::SetUplink { ifindex, uplink } => {
                self.uplinks.insert(*ifindex, *uplink);
            }
            Op::RemoveUplink { ifindex } => {
                self.uplinks.remove(ifindex);
            }
            Op::SetNextHop { index, hop } => {
                self.nexthops.insert(*index, *hop);
            }
            Op::RemoveNextHop { index } => {
                self.nexthops.remove(index);
            }
            Op::SetRoute { destination, index } => {
                self.routes.insert(*destination, *index);
            }
            Op::RemoveRoute { destination } => {
                self.routes.remove(destination);
            }
            Op::ClearCounters { .. } => {}
            Op::SetEndpoint { id, entry } => {
                self.endpoints.insert(*id, **entry);
            }
            Op::RemoveEndpoint { id } => {
                self.endpoints.remove(id);
            }
            Op::SetPort { ifindex, id } => self.set_port(*ifindex, *id),
            Op::RemovePort { ifindex } => {
                self.ports.remove(ifindex);
                self.interfaces.remove(ifindex);
            }
            Op::SetAddress { prefix, owner } => {
                self.addresses.insert(*prefix, *owner);
            }
            Op::RemoveAddress { prefix } => {
                self.addresses.remove(prefix);
            }
            Op::AddSource { id, prefix } => {
                self.sources.insert((*id, *prefix));
            }
            Op::RemoveSource { id, prefix } => {
                self.sources.remove(&(*id, *prefix));
            }
        }
    }
}

/// The map that a prefix is a key of.
pub fn address_map(prefix: &IpNet) -> &'static str {
    match (prefix, prefix.prefix_len() == prefix.max_prefix_len()) {
        (IpNet::V4(_), true) => map::ADDRS4,
        (IpNet::V4(_), false) => map::PREFIXES4,
        (IpNet::V6(_), true) => map::ADDRS6,
        (IpNet::V6(_), false) => map::PREFIXES6,
    }
}

/// The hints among the settings: which tries have entries.
pub fn trie_flags<'a>(prefixes: impl IntoIterator<Item = &'a IpNet>) -> u32 {
    prefixes.into_iter().fold(0, |flags, prefix| {
        flags
            | match address_map(prefix) {
                map::PREFIXES4 => settings_flag::PREFIXES4,
                map::PREFIXES6 => settings_flag::PREFIXES6,
                _ => 0,
            }
    })
}

/// Where the owners' addresses are, as a hint: which groups have any.
pub fn near<'a>(prefixes: impl IntoIterator<Item = &'a IpNet>) -> Box<Near> {
    let mut near = Box::<Near>::default();
    for prefix in prefixes {
        // Networks of that length inside the prefix, one where it is longer.
        match prefix {
            IpNet::V4(net) => {
                let networks = 1_u32 << 24_u8.saturating_sub(net.prefix_len()).min(16);
                if networks == 1 << 16 {
                    return everywhere();
                }
                let first = net.network().to_bits();
                for number in 0..networks {
                    near.set(Near::group4(&(first + (number << 8)).to_be_bytes()));
                }
            }
            IpNet::V6(net) => {
                let networks = 1_u128 << 64_u8.saturating_sub(net.prefix_len()).min(16);
                if networks == 1 << 16 {
                    return everywhere();
                }
                let first = net.network().to_bits();
                for number in 0..networks {
                    let network = (first + (number << 64)).to_be_bytes();
                    near.set(Near::group6(&words6(&network)));
                }
            }
        }
    }
    near
}

/// A prefix with networks in (nearly) all groups.
fn everywhere() -> Box<Near> {
    Box::new(Near {
        words: [u64::MAX; NEAR_WORDS],
    })
}

/// Text in a zero-padded field of a map; what is not UTF-8 is replaced.
pub fn text(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|b| *b == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}

/// One step: a single write to one map.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    /// Says in which groups addresses have owners.
    SetNear {
        /// The new hint.
        near: Box<Near>,
    },
    /// Writes the settings.
    SetSettings {
        /// Their new value.
        settings: Settings,
    },
    /// Adds or changes an uplink.
    SetUplink {
        /// Its ifindex.
        ifindex: u32,
        /// Its entry.
        uplink: Uplink,
    },
    /// Removes an uplink.
    RemoveUplink {
        /// Its ifindex.
        ifindex: u32,
    },
    /// Adds or changes a next hop.
    SetNextHop {
        /// Its index.
        index: u32,
        /// Its entry.
        hop: NextHop,
    },
    /// Frees a next hop (zeroes it).
    RemoveNextHop {
        /// Its index.
        index: u32,
    },
    /// Adds or changes a route.
    SetRoute {
        /// Its destination.
        destination: IpNet,
        /// Index of its next hop.
        index: u32,
    },
    /// Removes a route.
    RemoveRoute {
        /// Its destination.
        destination: IpNet,
    },
    /// Zeroes traffic and drops under an id, before another machine gets it.
    ClearCounters {
        /// Endpoint id.
        id: u32,
    },
    /// Adds or changes an endpoint.
    SetEndpoint {
        /// Its id.
        id: u32,
        /// Its entry.
        entry: Box<EndpointEntry>,
    },
    /// Frees an endpoint (zeroes it).
    RemoveEndpoint {
        /// Its id.
        id: u32,
    },
    /// Adds or changes a port.
    SetPort {
        /// Its ifindex.
        ifindex: u32,
        /// Its endpoint, or what it is instead.
        id: Owner,
    },
    /// Removes a port.
    RemovePort {
        /// Its ifindex.
        ifindex: u32,
    },
    /// Gives a prefix to an owner.
    SetAddress {
        /// The prefix; see [`address_map`].
        prefix: IpNet,
        /// An endpoint id, or [`HOST`].
        owner: Owner,
    },
    /// Takes a prefix away.
    RemoveAddress {
        /// The prefix; see [`address_map`].
        prefix: IpNet,
    },
    /// Lets an endpoint send from a prefix.
    AddSource {
        /// Endpoint id.
        id: u32,
        /// The prefix.
        prefix: IpNet,
    },
    /// Lets it no longer.
    RemoveSource {
        /// Endpoint id.
        id: u32,
        /// The prefix.
        prefix: IpNet,
    },
}

/// The steps from `current` to `desired`, make before break: an endpoint
/// exists before a port or an address leads to it, and a next hop before a
/// route does; they go in the opposite order. Machines that go down stop
/// before anything else changes hands.
///
/// Next hops are changed in place: packets of a route that leaves one may take
/// its new way for the moment until the route is changed too.
pub fn plan(current: &State, desired: &State) -> Vec<Op> {
    let mut ops = Vec::new();

    // A trie is looked at while it may have entries: before the first is
    // added, until after the last is gone.
    let during = Settings {
        flags: desired.settings.flags | (current.settings.flags & TRIES),
        key: desired.settings.key,
    };
    if during != current.settings {
        ops.push(Op::SetSettings { settings: during });
    }

    // The same holds for the groups that addresses are looked up in.
    let mut nearby = desired.near.clone();
    for (word, old) in nearby.words.iter_mut().zip(&current.near.words) {
        *word |= old;
    }
    if nearby != current.near {
        ops.push(Op::SetNear {
            near: nearby.clone(),
        });
    }

    for (ifindex, uplink) in changed(&current.uplinks, &desired.uplinks) {
        ops.push(Op::SetUplink { ifindex, uplink });
    }
    for (index, hop) in changed(&current.nexthops, &desired.nexthops) {
        ops.push(Op::SetNextHop { index, hop });
    }
    for (destination, index) in changed(&current.routes, &desired.routes) {
        ops.push(Op::SetRoute { destination, index });
    }

    // An id that changes hands has to be free of all that leads to it first.
    let handed: BTreeSet<u32> = current
        .endpoints
        .iter()
        .filter(|(id, old)| {
            desired
                .endpoints
                .get(id)
                .is_some_and(|new| new.name != old.name)
        })
        .map(|(id, _)| *id)
        .collect();
    let mut addresses = current.addresses.clone();
    let mut ports = current.all_ports();
    let wanted_ports = desired.all_ports();
    // What a machine may do no longer ends before what another may do begins.
    let withdrawn = current
        .sources
        .iter()
        .filter(|source| handed.contains(&source.0) || !desired.sources.contains(source));
    ops.extend(withdrawn.map(|(id, prefix)| Op::RemoveSource {
        id: *id,
        prefix: *prefix,
    }));
    if !handed.is_empty() {
        addresses.retain(|prefix, owner| {
            let keep = !handed.contains(owner);
            if !keep {
                ops.push(Op::RemoveAddress { prefix: *prefix });
            }
            keep
        });
        ports.retain(|ifindex, id| {
            let keep = !handed.contains(id);
            if !keep {
                ops.push(Op::RemovePort { ifindex: *ifindex });
            }
            keep
        });
        ops.extend(handed.iter().map(|id| Op::RemoveEndpoint { id: *id }));
    }

    let (down, rest): (Vec<_>, Vec<_>) = changed(&current.endpoints, &desired.endpoints)
        .into_iter()
        .partition(|(id, entry)| {
            let up = |entry: &EndpointEntry| entry.forward.flags & endpoint_flag::UP != 0;
            !handed.contains(id) && current.endpoints.get(id).is_some_and(up) && !up(entry)
        });
    for (id, entry) in down.into_iter().chain(rest) {
        if handed.contains(&id) || !current.endpoints.contains_key(&id) {
            ops.push(Op::ClearCounters { id });
        }
        ops.push(Op::SetEndpoint {
            id,
            entry: Box::new(entry),
        });
    }
    let granted = desired
        .sources
        .iter()
        .filter(|source| handed.contains(&source.0) || !current.sources.contains(source));
    ops.extend(granted.map(|(id, prefix)| Op::AddSource {
        id: *id,
        prefix: *prefix,
    }));
    for (ifindex, id) in changed(&ports, &wanted_ports) {
        ops.push(Op::SetPort { ifindex, id });
    }
    for (prefix, owner) in changed(&addresses, &desired.addresses) {
        ops.push(Op::SetAddress { prefix, owner });
    }

    for prefix in gone(&addresses, &desired.addresses) {
        ops.push(Op::RemoveAddress { prefix });
    }
    for ifindex in gone(&ports, &wanted_ports) {
        ops.push(Op::RemovePort { ifindex });
    }
    for id in gone(&current.endpoints, &desired.endpoints) {
        ops.push(Op::RemoveEndpoint { id });
    }
    for destination in gone(&current.routes, &desired.routes) {
        ops.push(Op::RemoveRoute { destination });
    }
    for index in gone(&current.nexthops, &desired.nexthops) {
        ops.push(Op::RemoveNextHop { index });
    }
    for ifindex in gone(&current.uplinks, &desired.uplinks) {
        ops.push(Op::RemoveUplink { ifindex });
    }
    if nearby != desired.near {
        ops.push(Op::SetNear {
            near: desired.near.clone(),
        });
    }
    if during != desired.settings {
        ops.push(Op::SetSettings {
            settings: desired.settings,
        });
    }
    ops
}

const TRIES: u32 = settings_flag::PREFIXES4 | settings_flag::PREFIXES6;

/// Entries that are new or differ.
fn changed<K: Ord + Copy, V: PartialEq + Copy>(
    current: &BTreeMap<K, V>,
    desired: &BTreeMap<K, V>,
) -> Vec<(K, V)> {
    desired
        .iter()
        .filter(|(key, value)| current.get(key) != Some(value))
        .map(|(key, value)| (*key, *value))
        .collect()
}

/// Keys that are no longer there.
fn gone<K: Ord + Copy, V>(current: &BTreeMap<K, V>, desired: &BTreeMap<K, V>) -> Vec<K> {
    current
        .keys()
        .filter(|key| !desired.contains_key(key))
        .copied()
        .collect()
}

/// Names to say steps in.
#[derive(Clone, Debug, Default)]
pub struct Names {
    machines: BTreeMap<u32, String>,
    links: BTreeMap<u32, String>,
}

impl Names {
    /// The names that a plan may need; for an id that changes hands, the new
    /// machine's.
    pub fn new(current: &State, desired: &State, host: &Host) -> Self {
        let machines = current.endpoints.iter().chain(&desired.endpoints);
        Names {
            machines: machines
                .map(|(id, entry)| (*id, text(&entry.name)))
                .collect(),
            links: host
                .links
                .iter()
                .map(|(ifindex, link)| (*ifindex, link.name.clone()))
                .collect(),
        }
    }

    fn machine(&self, id: u32) -> String {
        match self.machines.get(&id) {
            Some(name) => name.clone(),
            None if id == HOST => "the host".to_owned(),
            None => format!("endpoint {id}"),
        }
    }

    fn link(&self, ifindex: u32) -> String {
        match self.links.get(&ifindex) {
            Some(name) => name.clone(),
            None => format!("interface {ifindex}"),
        }
    }
}

impl Op {
    /// The step in words, for `--dry-run` and logs.
    pub fn describe(&self, names: &Names) -> String {
        match self {
            Op::SetSettings { settings } => {
                let has = |flag| settings.flags & flag != 0;
                format!(
                    "settings: isolation {}, host {}{}{}",
                    if has(settings_flag::ISOLATION_ROUTE) {
                        "route"
                    } else {
                        "drop"
                    },
                    if has(settings_flag::HOST_DENY) {
                        "deny"
                    } else {
                        "allow"
                    },
                    if has(settings_flag::PREFIXES4) {
                        ", IPv4 prefixes"
                    } else {
                        ""
                    },
                    if has(settings_flag::PREFIXES6) {
                        ", IPv6 prefixes"
                    } else {
                        ""
                    },
                )
            }
            Op::SetNear { near } => {
                let groups: u32 = near.words.iter().map(|word| word.count_ones()).sum();
                format!("hint: addresses in {groups} groups of networks")
            }
            Op::SetUplink { ifindex, uplink } => format!(
                "uplink {}: answer with {}, MTU {}",
                names.link(*ifindex),
                DisplayMac(uplink.mac),
                uplink.mtu
            ),
            Op::RemoveUplink { ifindex } => format!("uplink {}: remove", names.link(*ifindex)),
            Op::SetNextHop { index, hop } => {
                let way = if hop.flags & nexthop_flag::REFUSED != 0 {
                    "refuse".to_owned()
                } else if hop.flags & nexthop_flag::RESOLVED != 0 {
                    format!("{} by {}", DisplayMac(hop.dst_mac), names.link(hop.ifindex))
                } else if hop.flags & nexthop_flag::ON_LINK != 0 {
                    format!("neighbors on {}", names.link(hop.ifindex))
                } else {
                    format!("{}, resolved by the kernel", names.link(hop.ifindex))
                };
                format!("next hop {index}: {way}")
            }
            Op::RemoveNextHop { index } => format!("next hop {index}: remove"),
            Op::SetRoute { destination, index } => format!("route {destination}: next hop {index}"),
            Op::RemoveRoute { destination } => format!("route {destination}: remove"),
            Op::ClearCounters { id } => format!("machine {}: zero counters", names.machine(*id)),
            Op::SetEndpoint { id, entry } => {
                let forward = &entry.forward;
                let mut words = format!("machine {}: ", text(&entry.name));
                words += &match forward.ifindex {
                    0 => "no port".to_owned(),
                    ifindex => {
                        let up = forward.flags & endpoint_flag::UP != 0;
                        format!(
                            "{} on {}, MAC {}, MTU {}",
                            if up { "up" } else { "down" },
                            names.link(ifindex),
                            DisplayMac(forward.mac),
                            forward.mtu
                        )
                    }
                };
                if entry.tenant[0] != 0 {
                    words += &format!(", tenant {}", text(&entry.tenant));
                }
                if forward.vlan != 0 {
                    words += &format!(", VLAN {}", forward.vlan);
                }
                format!("{words} (endpoint {id})")
            }
            Op::RemoveEndpoint { id } => format!("endpoint {id}: remove"),
            Op::SetPort { ifindex, id } => {
                let what = match *id {
                    CLOSED => "closed".to_owned(),
                    WAY => "packets from an uplink come in by it".to_owned(),
                    id => names.machine(id),
                };
                format!("port {}: {what}", names.link(*ifindex))
            }
            Op::RemovePort { ifindex } => format!("port {}: remove", names.link(*ifindex)),
            Op::SetAddress { prefix, owner } => {
                format!("address {prefix}: {}", names.machine(*owner))
            }
            Op::RemoveAddress { prefix } => format!("address {prefix}: remove"),
            Op::AddSource { id, prefix } => {
                format!("source {prefix}: allow to {}", names.machine(*id))
            }
            Op::RemoveSource { id, prefix } => {
                format!("source {prefix}: deny to {}", names.machine(*id))
            }
        }
    }
}

impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.describe(&Names::default()))
    }
}

#[cfg(test)]
mod tests {
    use netspawn_ebpf::abi::{Endpoint, NAME_LEN};
    use proptest::{collection::btree_map, prelude::*};

    use super::*;

    fn entry(name: u8, flags: u32, ifindex: u32) -> EndpointEntry {
        let mut entry = EndpointEntry {
            forward: Endpoint {
                ifindex,
                flags,
                ..Endpoint::default()
            },
            name: [0; NAME_LEN],
            tenant: [0; NAME_LEN],
        };
        entry.name[0] = b'a' + name;
        entry
    }

    fn prefix(n: u8) -> IpNet {
        match n % 3 {
            0 => format!("203.0.113.{n}/32").parse().unwrap(),
            1 => format!("10.{n}.0.0/16").parse().unwrap(),
            _ => format!("2001:db8:{n:x}::/64").parse().unwrap(),
        }
    }

    /// A state in which everything leads to something that exists.
    fn state() -> impl Strategy<Value = State> {
        (
            btree_map(0u32..6, (0u8..8, 0u32..2, 0u32..9), 0..6),
            btree_map(0u32..9, any::<prop::sample::Index>(), 0..6),
            btree_map(0u8..20, any::<prop::sample::Index>(), 0..15),
            btree_map(0u32..4, 1u32..4, 0..4),
            btree_map(0u8..20, any::<prop::sample::Index>(), 0..8),
            (
                0u32..4,
                btree_map(0u8..9, any::<prop::sample::Index>(), 0..6),
            ),
        )
            .prop_map(
                |(endpoints, ports, addresses, nexthops, routes, (policy, sources))| {
                    let mut state = State::default();
                    let mut names = BTreeSet::new();
                    for (id, (name, flags, ifindex)) in endpoints {
                        if names.insert(name) {
                            state.endpoints.insert(id, entry(name, flags, ifindex));
                        }
                    }
                    let ids: Vec<u32> = state.endpoints.keys().copied().collect();
                    if !ids.is_empty() {
                        state.ports = ports.into_iter().map(|(k, i)| (k, *i.get(&ids))).collect();
                        let sources = sources.into_iter();
                        state.sources = sources.map(|(n, i)| (*i.get(&ids), prefix(n))).collect();
                    }
                    let owners: Vec<u32> = ids.into_iter().chain([HOST]).collect();
                    state.addresses = addresses
                        .into_iter()
                        .map(|(n, i)| (prefix(n), *i.get(&owners)))
                        .collect();
                    state.nexthops = nexthops
                        .into_iter()
                        .map(|(index, ifindex)| {
                            let hop = NextHop {
                                ifindex,
                                ..NextHop::default()
                            };
                            (index, hop)
                        })
                        .collect();
                    let hops: Vec<u32> = state.nexthops.keys().copied().collect();
                    if !hops.is_empty() {
                        state.routes = routes
                            .into_iter()
                            .map(|(n, i)| (prefix(n), *i.get(&hops)))
                            .collect();
                    }
                    state.settings.flags = trie_flags(state.addresses.keys()) | policy << 2;
                    state.near = near(state.addresses.keys());
                    state
                },
            )
    }

    fn owner(state: &State, prefix: &IpNet) -> Option<String> {
        let owner = state.addresses.get(prefix)?;
        Some(match state.endpoints.get(owner) {
            Some(entry) => text(&entry.name),
            None => {
                assert_eq!(*owner, HOST, "{prefix} leads nowhere");
                "host".to_owned()
            }
        })
    }

    /// Who may send from where, by name.
    fn senders(state: &State) -> BTreeSet<(String, IpNet)> {
        let named = |(id, prefix): &(u32, IpNet)| {
            let entry = state.endpoints.get(id)?;
            Some((text(&entry.name), *prefix))
        };
        state.sources.iter().filter_map(named).collect()
    }

    proptest! {
        #[test]
        fn plan_reaches_desired_without_a_wrong_step(current in state(), desired in state()) {
            let mut now = current.clone();
            for op in plan(&current, &desired) {
                let before = now.clone();
                now.apply(&op);
                prop_assert!(
                    before != now || matches!(op, Op::ClearCounters { .. }),
                    "{} changes nothing", op
                );
                for prefix in now.addresses.keys() {
                    let owner = owner(&now, prefix);
                    prop_assert!(
                        owner == self::owner(&current, prefix) || owner == self::owner(&desired, prefix),
                        "{} belongs to {:?} after {}", prefix, owner, op
                    );
                }
                let (old, new) = (senders(&current), senders(&desired));
                for sender in senders(&now) {
                    prop_assert!(
                        old.contains(&sender) || new.contains(&sender),
                        "{:?} may send after {}", sender, op
                    );
                }
                for (port, id) in &now.ports {
                    prop_assert!(now.endpoints.contains_key(id), "port {} leads nowhere after {}", port, op);
                }
                for (route, index) in &now.routes {
                    prop_assert!(now.nexthops.contains_key(index), "route {} leads nowhere after {}", route, op);
                }
                prop_assert_eq!(
                    trie_flags(now.addresses.keys()) & !now.settings.flags, 0,
                    "a trie with entries is not looked at after {}", op
                );
                for (word, needed) in now.near.words.iter().zip(near(now.addresses.keys()).words) {
                    prop_assert_eq!(needed & !word, 0, "an address is not looked up after {}", op);
                }
            }
            prop_assert_eq!(now, desired);
        }

        #[test]
        fn kept_address_of_kept_machine_never_goes(current in state(), desired in state()) {
            let mut now = current.clone();
            let kept: Vec<IpNet> = desired.addresses.iter()
                .filter(|(prefix, owner)| {
                    current.addresses.get(prefix) == Some(owner)
                        && current.endpoints.get(owner).map(|e| e.name)
                            == desired.endpoints.get(owner).map(|e| e.name)
                })
                .map(|(prefix, _)| *prefix)
                .collect();
            for op in plan(&current, &desired) {
                now.apply(&op);
                for prefix in &kept {
                    prop_assert_eq!(now.addresses.get(prefix), current.addresses.get(prefix));
                }
            }
        }
    }

    #[test]
    fn nothing_to_do_is_an_empty_plan() {
        let mut state = State::default();
        state.endpoints.insert(0, entry(0, 1, 5));
        state.addresses.insert(prefix(0), 0);
        assert_eq!(plan(&state, &state), []);
    }

    #[test]
    fn machine_going_down_stops_first() {
        let mut current = State::default();
        current.endpoints.insert(0, entry(0, 0, 4));
        current.endpoints.insert(1, entry(1, endpoint_flag::UP, 5));
        let mut desired = current.clone();
        desired.endpoints.insert(0, entry(0, endpoint_flag::UP, 4));
        desired.endpoints.insert(1, entry(1, 0, 5));
        let ids: Vec<String> = plan(&current, &desired).iter().map(Op::to_string).collect();
        assert_eq!(
            ids,
            [
                "machine b: down on interface 5, MAC 00:00:00:00:00:00, MTU 0 (endpoint 1)",
                "machine a: up on interface 4, MAC 00:00:00:00:00:00, MTU 0 (endpoint 0)",
            ]
        );
    }

    #[test]
    fn new_machine_is_made_from_the_endpoint_up() {
        let current = State::default();
        let mut desired = State::default();
        desired.endpoints.insert(0, entry(0, endpoint_flag::UP, 5));
        desired.ports.insert(5, 0);
        desired.addresses.insert(prefix(0), 0);
        desired.addresses.insert(prefix(1), 0);
        desired.settings.flags = settings_flag::PREFIXES4;
        let names = Names::new(&current, &desired, &Host::default());
        let words = |current, desired| -> Vec<String> {
            let ops = plan(current, desired);
            ops.iter().map(|op| op.describe(&names)).collect()
        };
        assert_eq!(
            words(&current, &desired),
            [
                "settings: isolation drop, host allow, IPv4 prefixes",
                "machine a: zero counters",
                "machine a: up on interface 5, MAC 00:00:00:00:00:00, MTU 0 (endpoint 0)",
                "port interface 5: a",
                "address 10.1.0.0/16: a",
                "address 203.0.113.0/32: a",
            ]
        );
        assert_eq!(
            words(&desired, &current),
            [
                "address 10.1.0.0/16: remove",
                "address 203.0.113.0/32: remove",
                "port interface 5: remove",
                "endpoint 0: remove",
                "settings: isolation drop, host allow",
            ]
        );
    }
}
