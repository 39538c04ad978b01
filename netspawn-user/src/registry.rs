//! From what the sources say and the host looks like, to what the maps should
//! hold. Pure: the same inputs give the same result, in whatever order they
//! were found.
//!
//! # Who gets a prefix
//! A longer prefix beats a shorter one by the maps' longest match. Of several
//! machines that declare the same prefix, the one that the maps record as its
//! holder keeps it until its declaration is withdrawn; without one, the source
//! of higher rank gets it, then the bytewise smaller name. A port that several
//! machines name goes by the same rule.
//!
//! No machine gets an address of the host, a prefix of `via-host`, the network or
//! broadcast address of a subnet of the host, or a prefix with the gateway of an
//! uplink's route in it: answering for those would cut the host off.
//!
//! # Whose a link is
//! A name says nothing about who has made a link. Where a file or an engine knows a
//! port by its name alone, what engines say of that link decides (`check_maker`): one
//! that users have named whom root need not trust is no port of anybody else's, and
//! as long as an engine has not said whether it is such a one, it is nobody's.

mod via_host;

use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet, HashMap},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::Path,
};

use ipnet::IpNet;
use netspawn_ebpf::{
    abi::{
        self, Endpoint, EndpointEntry, HOST, MAX_CLOSED, MAX_NEIGHBORS, MAX_NEXTHOPS, MAX_ROUTES,
        MAX_UPLINKS, MAX_XDP_PORTS, NAME_LEN, Neighbor, NextHop, Owner, Settings, Uplink, WAY,
        endpoint_flag, nexthop_flag,
    },
    wire::{Ipv6, Mac, words6},
};
use serde::{Deserialize, Serialize};

use crate::{
    config::Policy,
    model::{Declaration, Host, Link, Route, SourceKind, Vlan},
    plan::{self, State},
    problem::{Fault, Problem},
    source::{
        Snapshot, Source,
        engine::{Maker, Unsaid},
    },
};

/// Room in the maps, as they were made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Entries of the endpoint map.
    pub max_machines: u32,
    /// Entries of each address map.
    pub max_addresses: u32,
}

/// Everything that decides what the maps should hold.
#[derive(Clone, Copy, Debug)]
pub struct Inputs<'a> {
    /// What the sources say.
    pub snapshot: &'a Snapshot,
    /// The host's network.
    pub host: &'a Host,
    /// ifindexes of the uplinks.
    pub uplinks: &'a BTreeSet<u32>,
    /// ifindexes of ports whose machine's end takes XDP frames.
    pub xdp_ports: &'a BTreeSet<u32>,
    /// What machines may do.
    pub policy: &'a Policy,
    /// What the maps hold now.
    pub held: &'a State,
    /// Room in the maps.
    pub limits: Limits,
    /// Deadline of next hops that are resolved now, `CLOCK_MONOTONIC` in
    /// nanoseconds.
    pub deadline: u64,
}

/// State of a machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum MachineState {
    /// Its port exists with carrier, and it has all its prefixes.
    Up,
    /// It has no port yet, or no room.
    Waiting,
    /// Its port has no carrier.
    Down,
    /// It lacks a prefix that it declares.
    Conflict,
}

impl MachineState {
    /// All of them.
    pub const ALL: [MachineState; 4] = [
        MachineState::Up,
        MachineState::Waiting,
        MachineState::Down,
        MachineState::Conflict,
    ];

    /// The name in tables and JSON.
    pub const fn name(self) -> &'static str {
        match self {
            MachineState::Up => "up",
            MachineState::Waiting => "waiting",
            MachineState::Down => "down",
            MachineState::Conflict => "conflict",
        }
    }
}

/// Why the port of a machine without an endpoint is closed.
const NO_ROOM: &str = "there is no room for the machine";

/// Holder of what belongs to the host.
pub const HOST_HOLDER: &str = "host";

/// A prefix that a machine declares and does not get.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Conflict {
    /// The prefix.
    pub prefix: IpNet,
    /// The machine that has it, or [`HOST_HOLDER`].
    pub holder: String,
}

/// A machine and what became of its declaration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Machine {
    /// Name.
    pub name: String,
    /// Source of highest rank that declares it.
    pub source: SourceKind,
    /// Endpoint id, `None` without room.
    pub endpoint: Option<u32>,
    /// Name of its port, or the one declared while there is none.
    pub interface: Option<String>,
    /// ifindex of its port.
    pub ifindex: Option<u32>,
    /// Link-layer address of its end, as far as known.
    pub mac: Option<Mac>,
    /// All prefixes declared.
    pub addresses: Vec<IpNet>,
    /// Tenant.
    pub tenant: Option<String>,
    /// State.
    pub state: MachineState,
    /// The prefixes among `addresses` that it does not get.
    pub conflicts: Vec<Conflict>,
    /// Why nothing of it leaves its port, which is guarded for nobody.
    pub closed: Option<String>,
}

/// What should be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Desired {
    /// Content of the maps.
    pub state: State,
    /// Machines by name.
    pub machines: Vec<Machine>,
    /// Ports that are guarded for nobody, by ifindex, so that nothing leaves them.
    pub closed: BTreeSet<u32>,
    /// What cannot be done, and why; conflicts among them.
    pub problems: Vec<Problem>,
    /// Links that are nobody's port before an engine has said whose they are.
    pub unsaid: BTreeSet<(u32, Source)>,
}

impl Desired {
    /// How many machines are in a state.
    pub fn count(&self, state: MachineState) -> usize {
        self.machines
            .iter()
            .filter(|machine| machine.state == state)
            .count()
    }
}

/// Settles everything.
pub fn resolve(inputs: &Inputs<'_>) -> Desired {
    Resolver {
        inputs,
        ids: HashMap::new(),
        closed: BTreeSet::new(),
        problems: Vec::new(),
        unsaid: BTreeSet::new(),
    }
    .run()
}

struct Resolver<'a> {
    inputs: &'a Inputs<'a>,
    /// Ids that the maps have for names.
    ids: HashMap<String, u32>,
    /// Ports of machines without room.
    closed: BTreeSet<u32>,
    problems: Vec<Problem>,
    unsaid: BTreeSet<(u32, Source)>,
}

/// How a machine's port is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Basis {
    /// By its index: machined, a network namespace or the maps say it.
    Index,
    /// By the name that an engine has for it.
    Record,
    /// By the name that the declaration gives.
    Given,
    /// By the name that systemd-nspawn would give.
    Default,
}

/// Why a link is not taken for a machine's port.
enum Refusal {
    /// It is another's.
    Foreign(String, &'static str),
    /// It may be another's.
    Unsaid(Unsaid),
}

/// What a claimant is compared by where nobody holds what it wants.
type Rank<'a> = (SourceKind, &'a str);

/// A machine on its way.
struct Candidate<'a> {
    declaration: Cow<'a, Declaration>,
    /// The declaration is made up from what the maps hold.
    kept: bool,
    /// Endpoint id.
    id: Option<u32>,
    port: Option<&'a Link>,
}

impl Candidate<'_> {
    fn rank(&self) -> Rank<'_> {
        (self.declaration.source, &self.declaration.name)
    }
}

impl<'a> Resolver<'a> {
    fn run(mut self) -> Desired {
        let mut candidates = self.candidates();
        self.assign_ids(&mut candidates);
        self.assign_ports(&mut candidates);
        let tenants = self.tenants(&candidates);
        let link_locals = self.link_locals();
        let mut state = State::default();
        let mut conflicts = self.addresses(&candidates, &mut state);
        let mut machines = Vec::with_capacity(candidates.len());
        for (index, candidate) in candidates.iter().enumerate() {
            let entry = self.entry(candidate, &tenants, &link_locals);
            if let Some(id) = candidate.id {
                state.endpoints.insert(id, entry);
                let sources = candidate.declaration.sources.iter();
                state.sources.extend(sources.map(|prefix| (id, *prefix)));
                if entry.forward.ifindex != 0 {
                    state.ports.insert(entry.forward.ifindex, id);
                }
            }
            let conflicts = conflicts.remove(&index).unwrap_or_default();
            let declaration = &*candidate.declaration;
            machines.push(Machine {
                name: declaration.name.clone(),
                source: declaration.source,
                endpoint: candidate.id,
                interface: match candidate.port {
                    Some(port) => Some(port.name.clone()),
                    None => declaration.interface.clone(),
                },
                ifindex: candidate.port.map(|port| port.ifindex),
                mac: Some(entry.forward.mac).filter(|mac| *mac != [0; 6]),
                addresses: declaration.addresses.clone(),
                tenant: declaration.tenant.clone(),
                state: match candidate.port {
                    _ if !conflicts.is_empty() => MachineState::Conflict,
                    Some(port) if candidate.id.is_some() && port.carrier => MachineState::Up,
                    Some(_) if candidate.id.is_some() => MachineState::Down,
                    _ => MachineState::Waiting,
                },
                conflicts,
                closed: candidate
                    .port
                    .filter(|port| self.closed.contains(&port.ifindex))
                    .map(|_| NO_ROOM.to_owned()),
            });
        }
        if state.ports.len() > MAX_XDP_PORTS as usize {
            for entry in state.endpoints.values_mut() {
                entry.forward.flags &= !endpoint_flag::XDP;
            }
        }
        state.uplinks = self.uplinks();
        state.interfaces = self.ways();
        (state.routes, state.nexthops) = self.routes();
        state.near = plan::near(state.addresses.keys());
        state.settings = Settings {
            flags: self.inputs.policy.flags() | plan::trie_flags(state.addresses.keys()),
            key: self.inputs.held.settings.key,
        };
        Desired {
            state,
            machines,
            closed: self.closed,
            problems: self.problems,
            unsaid: self.unsaid,
        }
    }

    fn problem(&mut self, path: &Path, field: Option<&str>, message: String, remedy: &str) {
        self.problems
            .push(Fault::new(message, remedy).at(path, None, field));
    }

    /// All machines by name: those declared, and those that keep what they
    /// hold because their declaration cannot be read.
    fn candidates(&self) -> Vec<Candidate<'a>> {
        let Inputs { snapshot, held, .. } = self.inputs;
        let mut kept: BTreeMap<u32, Declaration> = BTreeMap::new();
        for (id, entry) in &held.endpoints {
            let name = plan::text(&entry.name);
            let Some((source, path)) = snapshot.keeps(&name) else {
                continue;
            };
            kept.insert(
                *id,
                Declaration {
                    name,
                    source,
                    path: path.to_owned(),
                    interface: self
                        .inputs
                        .host
                        .links
                        .get(&entry.forward.ifindex)
                        .map(|link| link.name.clone()),
                    addresses: Vec::new(),
                    tenant: Some(plan::text(&entry.tenant)).filter(|tenant| !tenant.is_empty()),
                    mac: None,
                    vlan: Some(entry.forward.vlan).filter(|vlan| *vlan != 0),
                    any_mac: entry.forward.flags & endpoint_flag::ANY_MAC != 0,
                    sources: held
                        .sources
                        .iter()
                        .filter(|(owner, _)| owner == id)
                        .map(|(_, net)| *net)
                        .collect(),
                },
            );
        }
        if !kept.is_empty() {
            for (prefix, owner) in &held.addresses {
                if let Some(declaration) = kept.get_mut(owner) {
                    declaration.addresses.push(*prefix);
                }
            }
        }
        let declared = snapshot
            .declarations
            .values()
            .filter(|declaration| !self.is_uplinks_route(declaration))
            .map(|declaration| (Cow::Borrowed(declaration), false));
        let kept = kept
            .into_values()
            .map(|declaration| (Cow::Owned(declaration), true));
        let by_name: BTreeMap<String, (Cow<'a, Declaration>, bool)> = declared
            .chain(kept)
            .map(|both| (both.0.name.clone(), both))
            .collect();
        by_name
            .into_values()
            .map(|(declaration, kept)| Candidate {
                declaration,
                kept,
                id: None,
                port: None,
            })
            .collect()
    }

    /// Whether it is made from a route that goes through an uplink, which may
    /// look like a port.
    fn is_uplinks_route(&self, declaration: &Declaration) -> bool {
        let Inputs { host, uplinks, .. } = self.inputs;
        declaration.source == SourceKind::Kernel
            && declaration
                .interface
                .as_ref()
                .and_then(|name| host.link(name))
                .is_some_and(|link| uplinks.contains(&link.ifindex))
    }

    /// Machines keep the id they hold; others get the smallest that nobody
    /// holds, and only without one left that of a machine that goes, so that an
    /// id seldom changes hands in one plan.
    fn assign_ids(&mut self, candidates: &mut [Candidate<'a>]) {
        let max = self.inputs.limits.max_machines;
        for (id, entry) in &self.inputs.held.endpoints {
            if *id < max {
                self.ids.entry(plan::text(&entry.name)).or_insert(*id);
            }
        }
        let mut taken = BTreeSet::new();
        for candidate in candidates.iter_mut() {
            candidate.id = self.ids.get(&candidate.declaration.name).copied();
            taken.extend(candidate.id);
        }
        let held = &self.inputs.held.endpoints;
        let unheld = (0..max).filter(|id| !held.contains_key(id));
        let withdrawn = held
            .keys()
            .copied()
            .filter(|id| *id < max && !taken.contains(id));
        let mut free = unheld.chain(withdrawn);
        let mut without = Vec::new();
        for candidate in candidates.iter_mut().filter(|c| c.id.is_none()) {
            candidate.id = free.next();
            if candidate.id.is_none() {
                without.push(candidate.declaration.clone());
            }
        }
        for declaration in without {
            self.problem(
                &declaration.path,
                None,
                format!(
                    "there is no room for machine {}: the maps hold {max}",
                    declaration.name
                ),
                "attach with a larger --max-machines",
            );
        }
    }

    fn assign_ports(&mut self, candidates: &mut [Candidate<'a>]) {
        let host = self.inputs.host;
        let registered = &self.inputs.snapshot.registered;
        let mut by_name: HashMap<&str, &'a Link> = HashMap::new();
        for link in host.links.values() {
            by_name.insert(&link.name, link);
        }
        for link in host.links.values() {
            for name in &link.alt_names {
                by_name.entry(name).or_insert(link);
            }
        }
        let of_machined: BTreeMap<u32, &str> = registered
            .ports
            .iter()
            .map(|(machine, ifindex)| (*ifindex, machine.as_str()))
            .collect();
        let mut claims: BTreeMap<u32, Vec<usize>> = BTreeMap::new();
        for (index, candidate) in candidates.iter().enumerate() {
            let declaration = &*candidate.declaration;
            let found = match &declaration.interface {
                Some(name) => by_name.get(name.as_str()).map(|link| (*link, Basis::Given)),
                None => self.default_port(declaration, &by_name),
            };
            // Nothing is behind the link of a machine that has ended.
            let found = found.filter(|(link, _)| !registered.ended.contains(&link.ifindex));
            let Some((link, basis)) = found else {
                continue;
            };
            if let Some(why) = self.no_port(link) {
                self.no_port_of(
                    declaration,
                    link,
                    why,
                    "name the host's end of the machine's own veth, or its tap",
                );
                continue;
            }
            let other = of_machined.get(&link.ifindex).copied();
            match self.check_maker(declaration, link, basis, other) {
                Ok(()) => {}
                Err(Refusal::Foreign(why, remedy)) => {
                    self.no_port_of(declaration, link, &why, remedy);
                    continue;
                }
                Err(Refusal::Unsaid(unsaid)) => {
                    self.unsaid.insert((link.ifindex, unsaid.by));
                    if unsaid.overdue {
                        let engine = unsaid.by.name();
                        let why = format!(
                            "it may be that of a machine of {engine}, which has not said so far"
                        );
                        self.no_port_of(
                            declaration,
                            link,
                            &why,
                            "see that the engine answers; if it is gone for good, start the agent \
                             anew",
                        );
                    }
                    continue;
                }
            }
            claims.entry(link.ifindex).or_default().push(index);
        }
        for (ifindex, claimants) in claims {
            let holder = self.inputs.held.ports.get(&ifindex).copied();
            let Some(winner) = self.winner(candidates, &claimants, holder) else {
                // There is no room for any of them. Whatever is behind it, it is no host's
                // network.
                self.closed.insert(ifindex);
                for index in claimants {
                    candidates[index].port = host.links.get(&ifindex);
                }
                continue;
            };
            for index in claimants {
                if index == winner {
                    candidates[index].port = host.links.get(&ifindex);
                    continue;
                }
                let declaration = candidates[index].declaration.clone();
                self.problem(
                    &declaration.path,
                    Some("interface"),
                    format!(
                        "{} is the port of machine {} already",
                        host.links[&ifindex].name, candidates[winner].declaration.name
                    ),
                    "name the host's end of the machine's own link",
                );
            }
        }
    }

    fn no_port_of(&mut self, declaration: &Declaration, link: &Link, why: &str, remedy: &str) {
        let (link, name) = (&link.name, &declaration.name);
        self.problem(
            &declaration.path,
            Some("interface"),
            format!("{link} cannot be the port of machine {name}: {why}"),
            remedy,
        );
    }

    /// The port of a machine whose declaration names none: what its engine or
    /// machined says, else the name that systemd-nspawn gives. As long as machined
    /// has not told, a machine keeps the port that it holds.
    fn default_port(
        &self,
        declaration: &Declaration,
        by_name: &HashMap<&str, &'a Link>,
    ) -> Option<(&'a Link, Basis)> {
        let Inputs { snapshot, host, .. } = self.inputs;
        let name = &declaration.name;
        if let Some(placed) = snapshot.placed.get(name) {
            let placed = (*placed)?;
            let basis = match placed.by_name {
                true => Basis::Record,
                false => Basis::Index,
            };
            return Some((host.links.get(&placed.ifindex)?, basis));
        }
        let index = |link| (link, Basis::Index);
        if let Some(ifindex) = snapshot.registered.ports.get(name) {
            return host.links.get(ifindex).map(index);
        }
        let named = ["ve", "vb"].iter().find_map(|kind| {
            let link = by_name.get(format!("{kind}-{name}").as_str()).copied();
            // Devices that a machine has had and may have renamed come back to the host
            // under that name when it ends. systemd-nspawn makes virtual ones.
            link.filter(|link| link.kind.is_some())
        });
        if named.is_some() || snapshot.registered.told {
            return named.map(|link| (link, Basis::Default));
        }
        let id = self.ids.get(name.as_str())?;
        let entry = self.inputs.held.endpoints.get(id)?;
        host.links.get(&entry.forward.ifindex).map(index)
    }

    /// Whether a link that was found for a machine may be its port by what is known of
    /// who has made it. `registered`: the machine that machined has it for.
    fn check_maker(
        &self,
        declaration: &Declaration,
        link: &Link,
        basis: Basis,
        registered: Option<&str>,
    ) -> Result<(), Refusal> {
        let maker = self.inputs.snapshot.makers.of(link.ifindex);
        self.check_known(declaration, link, basis, registered)
            .map_err(|refusal| match maker.and_then(|maker| maker.unsaid) {
                // What is known is of a time before this link.
                Some(unsaid) => Refusal::Unsaid(unsaid),
                None => refusal,
            })
    }

    fn check_known(
        &self,
        declaration: &Declaration,
        link: &Link,
        basis: Basis,
        registered: Option<&str>,
    ) -> Result<(), Refusal> {
        let Inputs { snapshot, .. } = self.inputs;
        let name = &declaration.name;
        let placed = snapshot.placed.get(name).copied().flatten();
        let indexed = placed.filter(|placed| !placed.by_name);
        if basis == Basis::Index
            || registered == Some(name)
            || indexed.is_some_and(|placed| placed.ifindex == link.ifindex)
        {
            return Ok(());
        }
        let nothing = Maker::default();
        let Maker {
            machine,
            user,
            wanted,
            unsaid,
        } = snapshot.makers.of(link.ifindex).unwrap_or(&nothing);
        if let Some(user) = user
            && (basis != Basis::Record || user.machine.as_ref() != Some(name))
        {
            let why = format!(
                "it is that of {}, whose users may have named it",
                user.origin
            );
            return Err(Refusal::Foreign(why, "give the machine a link of its own"));
        }
        // Root's own word about a link counts, unless an engine's machine that is declared
        // has it.
        let machine = machine.as_deref().filter(|machine| machine != name);
        let other = match basis {
            Basis::Default => machine.or(registered),
            Basis::Given if declaration.source != SourceKind::Kernel => {
                machine.filter(|machine| snapshot.declarations.contains_key(*machine))
            }
            _ => None,
        };
        if let Some(machine) = other {
            return Err(Refusal::Foreign(
                format!("it is that of machine {machine}"),
                "call the file after that machine, or give this one a link of its own",
            ));
        }
        // What was found to be its port before stays so while the link is there.
        if self.holds(name, link.ifindex) {
            return Ok(());
        }
        if let Some(unsaid) = unsaid {
            return Err(Refusal::Unsaid(*unsaid));
        }
        match wanted {
            Some(origin) if basis != Basis::Record => {
                let why = format!("it may be that of {origin}, which asks for a link of that name");
                Err(Refusal::Foreign(
                    why,
                    "remove `host_name` there, or have systemd-machined know this machine",
                ))
            }
            _ => Ok(()),
        }
    }

    /// Whether the maps have that link as that machine's port.
    fn holds(&self, name: &str, ifindex: u32) -> bool {
        let Inputs { held, .. } = self.inputs;
        let id = held.ports.get(&ifindex);
        let entry = id.and_then(|id| held.endpoints.get(id));
        entry.is_some_and(|entry| plan::text(&entry.name) == *name)
    }

    /// Why a link cannot be a port.
    fn no_port(&self, link: &Link) -> Option<&'static str> {
        if self.inputs.uplinks.contains(&link.ifindex) {
            Some("it is an uplink")
        } else if link.hardware == libc::ARPHRD_LOOPBACK {
            Some("it is the loopback interface")
        } else if link.hardware != libc::ARPHRD_ETHER {
            Some("it has no Ethernet headers")
        } else if link.kind.as_deref() == Some("bridge") {
            Some("it is a bridge, which all its ports share")
        } else {
            None
        }
    }

    /// Who of the claimants with an id gets it.
    fn winner(
        &self,
        candidates: &[Candidate<'a>],
        claimants: &[usize],
        holder: Option<u32>,
    ) -> Option<usize> {
        let held = |index: &usize| {
            let id = candidates[*index].id?;
            let entry = self.inputs.held.endpoints.get(&id)?;
            let same = plan::text(&entry.name) == candidates[*index].declaration.name;
            (same && holder == Some(id)).then_some(*index)
        };
        claimants.iter().find_map(held).or_else(|| {
            claimants
                .iter()
                .filter(|index| candidates[**index].id.is_some())
                .min_by_key(|index| candidates[**index].rank())
                .copied()
        })
    }

    /// Numbers of tenants. A new one gets a number that nobody holds, so that
    /// it is never mixed up with a tenant that goes in the same plan.
    fn tenants(&self, candidates: &[Candidate<'a>]) -> BTreeMap<String, u32> {
        let mut known: BTreeMap<String, u32> = BTreeMap::new();
        let mut taken = BTreeSet::new();
        for entry in self.inputs.held.endpoints.values() {
            let number = entry.forward.tenant;
            let name = plan::text(&entry.tenant);
            if number != 0 && !name.is_empty() && !known.contains_key(&name) && taken.insert(number)
            {
                known.insert(name, number);
            }
        }
        let mut free = (1..u32::MAX).filter(|number| !taken.contains(number));
        for candidate in candidates {
            let Some(name) = &candidate.declaration.tenant else {
                continue;
            };
            if !known.contains_key(name) {
                known.extend(free.next().map(|number| (name.clone(), number)));
            }
        }
        known
    }

    /// Settles who owns what, and returns the conflicts by candidate.
    fn addresses(
        &mut self,
        candidates: &[Candidate<'a>],
        state: &mut State,
    ) -> BTreeMap<usize, Vec<Conflict>> {
        let own = self.host_addresses();
        let subnets = self.subnet_addresses();
        let gateways = self.gateways();
        let (via_host, problems) = via_host::usable(
            &self.inputs.policy.via_host,
            self.inputs.host,
            &gateways,
            |ifindex| self.leads_to_uplink(ifindex),
        );
        self.problems.extend(problems);
        let gateway_in = |prefix: &IpNet| {
            gateways
                .range(prefix.network()..=prefix.broadcast())
                .next()
                .copied()
        };
        let mut conflicts: BTreeMap<usize, Vec<Conflict>> = BTreeMap::new();
        let mut claims: BTreeMap<IpNet, Vec<usize>> = BTreeMap::new();
        for (index, candidate) in candidates.iter().enumerate() {
            for prefix in &candidate.declaration.addresses {
                let why = if own.contains(prefix) {
                    "is an address of the host".to_owned()
                } else if via_host.contains(prefix) {
                    "is the host's by `via-host` in netspawn.toml".to_owned()
                } else if subnets.contains(prefix) {
                    "is the network or broadcast address of a subnet of the host".to_owned()
                } else if let Some(gateway) = gateway_in(prefix) {
                    format!("would take {gateway} from the gateway of an uplink")
                } else {
                    if candidate.id.is_some() {
                        claims.entry(*prefix).or_default().push(index);
                    }
                    continue;
                };
                self.problem(
                    &candidate.declaration.path,
                    Some("addresses"),
                    format!("{prefix} {why}"),
                    "remove it, or declare longer prefixes beside it",
                );
                conflicts.entry(index).or_default().push(Conflict {
                    prefix: *prefix,
                    holder: HOST_HOLDER.to_owned(),
                });
            }
        }

        let mut room: HashMap<&str, u32> = HashMap::new();
        let mut fits = |prefix: &IpNet| {
            let used = room.entry(plan::address_map(prefix)).or_default();
            *used += 1;
            *used <= self.inputs.limits.max_addresses
        };
        let mut left_out: BTreeMap<usize, usize> = BTreeMap::new();
        for prefix in own.into_iter().chain(via_host) {
            if fits(&prefix) {
                state.addresses.insert(prefix, HOST);
            }
        }
        // What is held is first to find room, so that a machine too many takes
        // nothing from those that are served.
        let mut lost: BTreeMap<(usize, usize), Vec<IpNet>> = BTreeMap::new();
        let mut settled: Vec<(bool, IpNet, usize, u32)> = Vec::with_capacity(claims.len());
        for (prefix, claimants) in claims {
            let holder = self.inputs.held.addresses.get(&prefix).copied();
            let Some(winner) = self.winner(candidates, &claimants, holder) else {
                continue;
            };
            let Some(id) = candidates[winner].id else {
                continue;
            };
            settled.push((holder.is_none(), prefix, winner, id));
            for index in claimants.into_iter().filter(|index| *index != winner) {
                lost.entry((index, winner)).or_default().push(prefix);
                conflicts.entry(index).or_default().push(Conflict {
                    prefix,
                    holder: candidates[winner].declaration.name.clone(),
                });
            }
        }
        for ((loser, winner), prefixes) in lost {
            let more = match prefixes.len() {
                1 => " belongs".to_owned(),
                count => format!(" and {} more belong", count - 1),
            };
            self.problem(
                &candidates[loser].declaration.path,
                Some("addresses"),
                format!(
                    "{}{more} to machine {}",
                    prefixes[0], candidates[winner].declaration.name
                ),
                "remove it here or there",
            );
        }
        settled.sort();
        for (_, prefix, winner, id) in settled {
            if fits(&prefix) {
                state.addresses.insert(prefix, id);
            } else {
                *left_out.entry(winner).or_default() += 1;
            }
        }
        for (index, count) in left_out {
            let declaration = &candidates[index].declaration;
            self.problem(
                &declaration.path.clone(),
                Some("addresses"),
                format!(
                    "there is no room for {count} prefixes of machine {}: each map holds {}",
                    declaration.name, self.inputs.limits.max_addresses
                ),
                "attach with a larger --max-addresses",
            );
        }
        for list in conflicts.values_mut() {
            list.sort_by_key(|conflict| conflict.prefix);
        }
        conflicts
    }

    /// Single addresses that the host's stack answers for; link-local ones only
    /// where machines could meet them, since they mean another station on each
    /// link.
    fn host_addresses(&self) -> BTreeSet<IpNet> {
        self.inputs
            .host
            .addresses
            .iter()
            .filter(|(ifindex, address)| {
                let ip = address.addr();
                let link_local = match ip {
                    IpAddr::V4(ip) => ip.is_link_local(),
                    IpAddr::V6(ip) => ip.is_unicast_link_local(),
                };
                !ip.is_loopback()
                    && !ip.is_multicast()
                    && (!link_local || self.inputs.uplinks.contains(ifindex))
            })
            .map(|(_, address)| IpNet::from(address.addr()))
            .collect()
    }

    /// Network and broadcast addresses, which the kernel takes as broadcast.
    fn subnet_addresses(&self) -> BTreeSet<IpNet> {
        self.inputs
            .host
            .addresses
            .iter()
            .filter(|(_, subnet)| subnet.addr().is_ipv4() && subnet.prefix_len() < 31)
            .flat_map(|(_, subnet)| [subnet.network(), subnet.broadcast()])
            .map(IpNet::from)
            .collect()
    }

    /// The first IPv6 link-local address of each interface.
    fn link_locals(&self) -> HashMap<u32, Ipv6> {
        let mut first = HashMap::new();
        for (ifindex, address) in &self.inputs.host.addresses {
            if let IpAddr::V6(ip) = address.addr()
                && ip.is_unicast_link_local()
            {
                first.entry(*ifindex).or_insert(ip.octets());
            }
        }
        first
    }

    fn gateways(&self) -> BTreeSet<IpAddr> {
        self.inputs
            .host
            .routes
            .iter()
            .filter(|route| {
                route
                    .ifindex
                    .is_some_and(|ifindex| self.leads_to_uplink(ifindex))
            })
            .filter_map(|route| route.gateway)
            .collect()
    }

    fn entry(
        &self,
        candidate: &Candidate<'a>,
        tenants: &BTreeMap<String, u32>,
        link_locals: &HashMap<u32, Ipv6>,
    ) -> EndpointEntry {
        let declaration = &*candidate.declaration;
        let mut entry = EndpointEntry {
            forward: Endpoint {
                vlan: declaration.vlan.unwrap_or(0),
                ..Endpoint::default()
            },
            name: padded(&declaration.name),
            tenant: [0; NAME_LEN],
        };
        if let Some(tenant) = &declaration.tenant {
            entry.tenant = padded(tenant);
            entry.forward.tenant = tenants.get(tenant).copied().unwrap_or(0);
        }
        entry.forward.mac = declaration.mac.unwrap_or_default();
        let Some(port) = candidate.port else {
            return entry;
        };
        let forward = &mut entry.forward;
        forward.ifindex = port.ifindex;
        forward.mtu = port.mtu;
        let gateway = self.gateway_side(port);
        forward.port_mac = self.gateway_mac(port, gateway, candidate);
        if port.carrier {
            forward.flags |= endpoint_flag::UP;
        }
        // bpf_redirect_peer drops what would stay in the namespace
        // (skb_do_redirect in net/core/filter.c).
        let peer_here = port.peer.is_some_and(|peer| peer.netnsid.is_none());
        if port.kind.as_deref() != Some("veth") || peer_here {
            forward.flags |= endpoint_flag::NO_PEER;
        }
        if candidate.declaration.any_mac {
            forward.flags |= endpoint_flag::ANY_MAC;
        }
        if !candidate.declaration.sources.is_empty() {
            forward.flags |= endpoint_flag::SOURCES;
        }
        if self.inputs.xdp_ports.contains(&port.ifindex) {
            forward.flags |= endpoint_flag::XDP;
        }
        forward.port_link_local = link_locals
            .get(&gateway.ifindex)
            .copied()
            .unwrap_or_default();
        // A tap's peer has no address to read: what was learned on this port
        // stays. That of a machine that keeps what it holds may be declared.
        let held = candidate
            .id
            .and_then(|id| self.inputs.held.endpoints.get(&id))
            .filter(|held| held.name == padded(&declaration.name))
            .filter(|held| held.forward.ifindex == port.ifindex)
            .map(|held| held.forward.mac)
            .filter(|mac| *mac != [0; 6]);
        let peer = port.peer.and_then(|peer| peer.mac);
        let found = if candidate.kept {
            held.or(peer)
        } else {
            peer.or(held)
        };
        forward.mac = declaration.mac.or(found).unwrap_or_default();
        entry
    }

    /// The address that ICMP errors come from: one of the uplink, else one of the
    /// host, which is what RFC 1812 calls its router id; unspecified without any.
    fn reporter4(&self, uplink: u32) -> Ipv4Addr {
        self.reporter(uplink, |address| match address {
            IpAddr::V4(address) => {
                let usable = !address.is_loopback() && !address.is_link_local();
                usable.then_some(address)
            }
            IpAddr::V6(_) => None,
        })
        .unwrap_or(Ipv4Addr::UNSPECIFIED)
    }

    /// As [`Self::reporter4`].
    fn reporter6(&self, uplink: u32) -> Ipv6Addr {
        self.reporter(uplink, |address| match address {
            IpAddr::V6(address) => {
                let usable = !address.is_loopback() && !address.is_unicast_link_local();
                usable.then_some(address)
            }
            IpAddr::V4(_) => None,
        })
        .unwrap_or(Ipv6Addr::UNSPECIFIED)
    }

    fn reporter<A>(&self, uplink: u32, usable: impl Fn(IpAddr) -> Option<A>) -> Option<A> {
        let addresses = &self.inputs.host.addresses;
        let own = addresses.iter().filter(|(ifindex, _)| *ifindex == uplink);
        own.chain(addresses)
            .find_map(|(_, address)| usable(address.addr()))
    }

    /// The interface whose addresses the machine knows its gateway by: the
    /// bridge that the port is in, so that what machines and host have resolved
    /// stays right.
    fn gateway_side<'l>(&'l self, port: &'l Link) -> &'l Link {
        port.master
            .and_then(|master| self.inputs.host.links.get(&master))
            .filter(|master| master.kind.as_deref() == Some("bridge"))
            .unwrap_or(port)
    }

    /// The address that the machine knows its gateway by. That of a bridge changes
    /// with its ports, as it is the lowest of theirs; what the machine was told stays
    /// good for as long as the bridge has it on one of them.
    fn gateway_mac(&self, port: &Link, gateway: &Link, candidate: &Candidate<'a>) -> Mac {
        let told = candidate
            .id
            .and_then(|id| self.inputs.held.endpoints.get(&id))
            .filter(|entry| {
                plan::text(&entry.name) == candidate.declaration.name
                    && entry.forward.ifindex == port.ifindex
            })
            .map(|entry| entry.forward.port_mac);
        let is_of_bridge = |mac: &Mac| {
            let links = self.inputs.host.links.values();
            [port.mac, gateway.mac].contains(mac)
                || links
                    .filter(|link| link.master == Some(gateway.ifindex))
                    .any(|link| link.mac == *mac)
        };
        match told {
            Some(mac) if gateway.ifindex != port.ifindex && is_of_bridge(&mac) => mac,
            _ => gateway.mac,
        }
    }

    fn uplinks(&mut self) -> BTreeMap<u32, Uplink> {
        let mut uplinks = BTreeMap::new();
        for ifindex in self.inputs.uplinks {
            match self.inputs.host.links.get(ifindex) {
                Some(link) if uplinks.len() < MAX_UPLINKS as usize => {
                    uplinks.insert(
                        *ifindex,
                        Uplink {
                            mac: link.mac,
                            pad: 0,
                            mtu: link.mtu,
                            address4: self.reporter4(*ifindex).octets(),
                            address6: self.reporter6(*ifindex).octets(),
                            ifindex: *ifindex,
                        },
                    );
                }
                Some(link) => self.problem(
                    Path::new(""),
                    None,
                    format!(
                        "there is no room for uplink {}: {MAX_UPLINKS} are the most",
                        link.name
                    ),
                    "detach one",
                ),
                // Deleted, or not back yet: whoever follows the links says so.
                None => {}
            }
        }
        uplinks
    }

    /// Interfaces that packets from an uplink come in by: VLANs on one, and the VRF that
    /// one is in, which takes its place (`vrf_ip_rcv` in drivers/net/vrf.c).
    fn ways(&self) -> BTreeMap<u32, Owner> {
        let Inputs { host, uplinks, .. } = self.inputs;
        let leads = |ifindex: &u32| self.leads_to_uplink(*ifindex);
        let on = host.links.values().filter(|link| leads(&link.ifindex));
        let vrf = |link: &Link| {
            let master = host.links.get(&link.master?)?;
            (master.kind.as_deref() == Some("vrf")).then_some(master.ifindex)
        };
        on.flat_map(|link| [Some(link.ifindex), vrf(link)])
            .flatten()
            .filter(|ifindex| !uplinks.contains(ifindex))
            .map(|ifindex| (ifindex, WAY))
            .take(MAX_CLOSED as usize)
            .collect()
    }

    /// The host's routes as far as they concern machines.
    ///
    /// A destination that the host reaches through an interface that is no
    /// uplink is refused: the network behind the uplink is not the way there.
    /// Where an uplink has a route for the very same destination, that one
    /// serves, whatever the metric of the other.
    fn routes(&mut self) -> (BTreeMap<IpNet, u32>, BTreeMap<u32, NextHop>) {
        let mut best: BTreeMap<IpNet, (bool, &Route)> = BTreeMap::new();
        for route in &self.inputs.host.routes {
            let beside = match route.destination {
                IpNet::V4(destination) => destination.addr().is_multicast(),
                // Link-local destinations are never forwarded.
                IpNet::V6(destination) => {
                    destination.addr().is_multicast() || destination.addr().is_unicast_link_local()
                }
            };
            if beside {
                continue;
            }
            let elsewhere = !route.refused
                && !route
                    .ifindex
                    .is_some_and(|ifindex| self.leads_to_uplink(ifindex));
            let order = |elsewhere: bool, route: &Route| {
                (elsewhere, route.priority, route.ifindex, route.gateway)
            };
            let candidate = (elsewhere, route);
            best.entry(route.destination.trunc())
                .and_modify(|(old, best)| {
                    if order(elsewhere, route) < order(*old, best) {
                        (*old, *best) = candidate;
                    }
                })
                .or_insert(candidate);
        }
        let mut ways: BTreeMap<IpNet, Way> = best
            .into_iter()
            .map(|(destination, (elsewhere, route))| (destination, self.way(elsewhere, route)))
            .collect();
        for v4 in [true, false] {
            self.limit_routes(&mut ways, v4);
        }
        self.next_hops(ways)
    }

    /// Whether an interface is an uplink, or a VLAN on one.
    fn leads_to_uplink(&self, ifindex: u32) -> bool {
        let uplinks = &self.inputs.uplinks;
        uplinks.contains(&ifindex) || self.vlan_of_uplink(ifindex).is_some()
    }

    /// The VLAN of an interface that is not an uplink, but on one.
    fn vlan_of_uplink(&self, ifindex: u32) -> Option<Vlan> {
        let Inputs { host, uplinks, .. } = self.inputs;
        vlan_of_uplink(host, uplinks, ifindex)
    }

    fn way(&self, elsewhere: bool, route: &Route) -> Way {
        let link = route
            .ifindex
            .and_then(|ifindex| self.inputs.host.links.get(&ifindex));
        match link {
            Some(link) if !elsewhere && !route.refused => Way {
                on_link: route.gateway.is_none(),
                ifindex: link.ifindex,
                gateway: route.gateway,
                mtu: route.mtu.unwrap_or(link.mtu).min(link.mtu),
            },
            _ => Way::REFUSED,
        }
    }

    /// Leaves more routes of a family than fit to the kernel: an unresolved
    /// next hop makes it look the way up. Those without a router are kept, because what
    /// goes there costs machines their budget of neighbors.
    fn limit_routes(&mut self, ways: &mut BTreeMap<IpNet, Way>, v4: bool) {
        let family = |destination: &IpNet| destination.addr().is_ipv4() == v4;
        let count = ways
            .keys()
            .filter(|destination| family(destination))
            .count();
        if count <= MAX_ROUTES as usize {
            return;
        }
        let default = if v4 {
            IpNet::new_assert([0, 0, 0, 0].into(), 0)
        } else {
            IpNet::new_assert([0u16; 8].into(), 0)
        };
        let uplink = ways
            .get(&default)
            .map(|way| way.ifindex)
            .filter(|ifindex| *ifindex != 0)
            .or_else(|| self.inputs.uplinks.first().copied())
            .unwrap_or(0);
        let mut room = MAX_ROUTES - 1;
        ways.retain(|destination, way| {
            let keep = way.on_link && room > 0 && *destination != default;
            room -= u32::from(keep && family(destination));
            keep || !family(destination)
        });
        ways.insert(default, self.unresolved(uplink));
        self.problem(
            Path::new(""),
            None,
            format!(
                "the host has {count} IPv{} routes, {MAX_ROUTES} are the most that are kept; the \
                 kernel looks each packet's way up, more slowly",
                if v4 { 4 } else { 6 }
            ),
            "keep full tables in another routing table",
        );
    }

    fn unresolved(&self, ifindex: u32) -> Way {
        match self.inputs.host.links.get(&ifindex) {
            Some(link) => Way {
                on_link: false,
                ifindex,
                gateway: None,
                mtu: link.mtu,
            },
            None => Way::REFUSED,
        }
    }

    /// Gives each way an index: the one it holds where possible, so that a
    /// change of one next hop leaves the others' routes alone.
    fn next_hops(
        &self,
        mut ways: BTreeMap<IpNet, Way>,
    ) -> (BTreeMap<IpNet, u32>, BTreeMap<u32, NextHop>) {
        // Ways that find no room are left to the kernel, uplink by uplink.
        let reserved = self.inputs.uplinks.len() + 1;
        // Those on the link are few, and come first, see `limit_routes`.
        let mut distinct: BTreeSet<Way> = ways
            .values()
            .filter(|way| way.on_link)
            .take(MAX_NEXTHOPS as usize - reserved)
            .copied()
            .collect();
        for way in ways.values_mut() {
            let room = distinct.len() + reserved < MAX_NEXTHOPS as usize;
            if !room && !distinct.contains(way) {
                *way = self.unresolved(way.ifindex);
            }
            distinct.insert(*way);
        }
        let macs: HashMap<(u32, IpAddr), Mac> = self
            .inputs
            .host
            .neighbors
            .iter()
            .filter_map(|neighbor| Some(((neighbor.ifindex, neighbor.address), neighbor.mac?)))
            .collect();
        let hops: BTreeMap<Way, NextHop> = distinct
            .into_iter()
            .map(|way| (way, self.next_hop(way, &macs)))
            .collect();

        let held = self.inputs.held;
        let mut indexes: BTreeMap<Way, u32> = BTreeMap::new();
        let mut taken: BTreeSet<u32> = BTreeSet::new();
        let ageless = |hop: &NextHop| NextHop {
            deadline: 0,
            ..*hop
        };
        for exact in [true, false] {
            for (destination, way) in &ways {
                let Some(index) = held.routes.get(destination) else {
                    continue;
                };
                let Some(old) = held.nexthops.get(index) else {
                    continue;
                };
                let hop = &hops[way];
                let same = if exact {
                    ageless(old) == ageless(hop)
                } else {
                    old.ifindex == hop.ifindex
                };
                if same && !indexes.contains_key(way) && taken.insert(*index) {
                    indexes.insert(*way, *index);
                }
            }
        }
        let unheld = (0..MAX_NEXTHOPS).filter(|index| !held.nexthops.contains_key(index));
        let reused = held.nexthops.keys().copied();
        let mut free = unheld.chain(reused).filter(|index| !taken.contains(index));
        for way in hops.keys() {
            if !indexes.contains_key(way) {
                indexes.extend(free.next().map(|index| (*way, index)));
            }
        }
        let routes = ways
            .iter()
            .filter_map(|(destination, way)| Some((*destination, *indexes.get(way)?)))
            .collect();
        let nexthops = hops
            .iter()
            .filter_map(|(way, hop)| Some((*indexes.get(way)?, *hop)))
            .collect();
        (routes, nexthops)
    }

    fn next_hop(&self, way: Way, macs: &HashMap<(u32, IpAddr), Mac>) -> NextHop {
        let Some(link) = self.inputs.host.links.get(&way.ifindex) else {
            return NextHop {
                flags: nexthop_flag::REFUSED,
                ..NextHop::default()
            };
        };
        let mut hop = NextHop {
            ifindex: way.ifindex,
            mtu: way.mtu,
            src_mac: link.mac,
            uplink: way.ifindex,
            ..NextHop::default()
        };
        if let Some(vlan) = self.vlan_of_uplink(way.ifindex) {
            hop.flags |= u32::from(vlan.id) << nexthop_flag::VLAN_SHIFT;
            hop.uplink = vlan.lower;
        }
        if way.on_link {
            hop.flags |= nexthop_flag::ON_LINK;
        }
        if let Some(mac) = way
            .gateway
            .and_then(|gateway| macs.get(&(way.ifindex, gateway)))
        {
            hop.flags |= nexthop_flag::RESOLVED;
            hop.dst_mac = *mac;
            hop.deadline = self.inputs.deadline;
        }
        hop
    }
}

/// The VLAN of an interface that is not an uplink, but on one.
fn vlan_of_uplink(host: &Host, uplinks: &BTreeSet<u32>, ifindex: u32) -> Option<Vlan> {
    let vlan = host.links.get(&ifindex)?.vlan?;
    (!uplinks.contains(&ifindex) && uplinks.contains(&vlan.lower)).then_some(vlan)
}

/// The neighbors on uplinks, and on VLANs on them, whose link-layer address the kernel
/// has, as far as there is room for them.
pub fn neighbors(host: &Host, uplinks: &BTreeSet<u32>) -> BTreeSet<Neighbor> {
    let known = host.neighbors.iter().filter(|known| known.mac.is_some());
    known
        .filter_map(|known| {
            let (uplink, vlan) = match vlan_of_uplink(host, uplinks, known.ifindex) {
                Some(vlan) => (vlan.lower, vlan.id),
                None if uplinks.contains(&known.ifindex) => (known.ifindex, 0),
                None => return None,
            };
            let address = match known.address {
                IpAddr::V4(address) => address.to_ipv6_mapped(),
                IpAddr::V6(address) => address,
            };
            let address = words6(&address.octets());
            Some(abi::neighbor(&address, uplink, vlan.into()))
        })
        .take(MAX_NEIGHBORS as usize)
        .collect()
}

/// Where a route leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Way {
    /// Every destination is a neighbor.
    on_link: bool,
    /// 0 where it is refused.
    ifindex: u32,
    gateway: Option<IpAddr>,
    mtu: u32,
}

impl Way {
    const REFUSED: Way = Way {
        on_link: false,
        ifindex: 0,
        gateway: None,
        mtu: 0,
    };
}

/// A name in a field of a map; longer ones were refused when they were read.
fn padded(text: &str) -> [u8; NAME_LEN] {
    let mut field = [0; NAME_LEN];
    let length = text.len().min(NAME_LEN);
    field[..length].copy_from_slice(&text.as_bytes()[..length]);
    field
}

#[cfg(test)]
mod tests;
