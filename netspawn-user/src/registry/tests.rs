mod makers;
mod sequence;

use ipnet::Ipv4Net;
use netspawn_ebpf::abi::settings_flag;
use proptest::prelude::*;

use super::*;
use crate::{
    config::{HostAccess, Isolation},
    model::{Neighbor, Peer, Vlan},
    source::engine::Placed,
};

const ETH0: u32 = 2;
const ETH0_MAC: Mac = [2, 0, 0, 0, 0xee, 0];

/// The inputs, owned.
#[derive(Clone)]
struct World {
    snapshot: Snapshot,
    host: Host,
    uplinks: BTreeSet<u32>,
    xdp_ports: BTreeSet<u32>,
    policy: Policy,
    held: State,
    limits: Limits,
}

fn net(text: &str) -> IpNet {
    crate::fields::prefix(text).unwrap()
}

fn link(ifindex: u32, name: &str) -> Link {
    Link {
        kind: Some("veth".to_owned()),
        mac: [2, 0, 0, 0, 1, ifindex as u8],
        peer: Some(Peer {
            ifindex: 2,
            netnsid: Some(0),
            mac: Some([2, 0, 0, 0, 2, ifindex as u8]),
        }),
        ..Link::ethernet(ifindex, name)
    }
}

impl World {
    /// eth0 with 192.0.2.10/24 and 2001:db8::10/64, gateways .1 and ::1.
    fn new() -> Self {
        let mut host = Host::default();
        let mut lo = link(1, "lo");
        lo.hardware = libc::ARPHRD_LOOPBACK;
        host.links.insert(1, lo);
        let mut eth0 = link(ETH0, "eth0");
        eth0.mac = ETH0_MAC;
        eth0.kind = None;
        eth0.peer = None;
        host.links.insert(ETH0, eth0);
        host.addresses = vec![
            (1, "127.0.0.1/8".parse().unwrap()),
            (1, "::1/128".parse().unwrap()),
            (ETH0, "192.0.2.10/24".parse().unwrap()),
            (ETH0, "2001:db8::10/64".parse().unwrap()),
            (ETH0, "fe80::10/64".parse().unwrap()),
        ];
        let route = |destination: &str, gateway: Option<&str>| Route {
            destination: destination.parse().unwrap(),
            ifindex: Some(ETH0),
            gateway: gateway.map(|gateway| gateway.parse().unwrap()),
            priority: 0,
            mtu: None,
            refused: false,
        };
        host.routes = vec![
            route("0.0.0.0/0", Some("192.0.2.1")),
            route("192.0.2.0/24", None),
            route("::/0", Some("2001:db8::1")),
            route("2001:db8::/64", None),
            route("fe80::/64", None),
        ];
        host.neighbors = vec![Neighbor {
            ifindex: ETH0,
            address: "192.0.2.1".parse().unwrap(),
            mac: Some([2, 0, 0, 0, 0xee, 1]),
        }];
        World {
            snapshot: Snapshot::default(),
            host,
            uplinks: BTreeSet::from([ETH0]),
            xdp_ports: BTreeSet::new(),
            policy: Policy::default(),
            held: State::default(),
            limits: Limits {
                max_machines: 16,
                max_addresses: 64,
            },
        }
    }

    fn declare(&mut self, name: &str, addresses: &[&str]) -> &mut Declaration {
        let declaration = Declaration {
            name: name.to_owned(),
            source: SourceKind::Config,
            path: format!("/etc/netspawn/machines/{name}.toml").into(),
            interface: None,
            addresses: addresses.iter().map(|text| net(text)).collect(),
            tenant: None,
            mac: None,
            vlan: None,
            any_mac: false,
            sources: Vec::new(),
        };
        let declarations = &mut self.snapshot.declarations;
        declarations.insert(name.to_owned(), declaration);
        declarations.get_mut(name).unwrap()
    }

    fn link(&mut self, ifindex: u32, name: &str) -> &mut Link {
        self.host.links.insert(ifindex, link(ifindex, name));
        self.host.links.get_mut(&ifindex).unwrap()
    }

    fn resolve(&self) -> Desired {
        resolve(&Inputs {
            snapshot: &self.snapshot,
            host: &self.host,
            uplinks: &self.uplinks,
            xdp_ports: &self.xdp_ports,
            policy: &self.policy,
            held: &self.held,
            limits: self.limits,
            deadline: 1000,
        })
    }

    /// Resolves, and takes the result as what the maps hold.
    fn settle(&mut self) -> Desired {
        let desired = self.resolve();
        self.held = desired.state.clone();
        desired
    }
}

impl Desired {
    fn machine(&self, name: &str) -> &Machine {
        self.machines.iter().find(|m| m.name == name).unwrap()
    }

    fn entry(&self, name: &str) -> &EndpointEntry {
        &self.state.endpoints[&self.machine(name).endpoint.unwrap()]
    }

    fn owner(&self, prefix: &str) -> Option<String> {
        let owner = self.state.addresses.get(&net(prefix))?;
        Some(match self.state.endpoints.get(owner) {
            Some(entry) => plan::text(&entry.name),
            None => "host".to_owned(),
        })
    }

    fn problems(&self) -> Vec<String> {
        self.problems.iter().map(Problem::to_string).collect()
    }
}

fn conflict(prefix: &str, holder: &str) -> Conflict {
    Conflict {
        prefix: net(prefix),
        holder: holder.to_owned(),
    }
}

#[test]
fn machine_with_carrier_is_up() {
    let mut world = World::new();
    let web = world.declare("web", &["203.0.113.2", "2001:db8:1::/64"]);
    web.tenant = Some("acme".to_owned());
    web.vlan = Some(30);
    world.link(7, "ve-web");
    world
        .host
        .addresses
        .push((7, "fe80::7/64".parse().unwrap()));
    world.xdp_ports.insert(7);
    let desired = world.resolve();
    assert_eq!(desired.problems, []);
    let web = desired.machine("web");
    assert_eq!(web.state, MachineState::Up);
    assert_eq!(web.interface.as_deref(), Some("ve-web"));
    assert_eq!(web.ifindex, Some(7));
    assert_eq!(web.mac, Some([2, 0, 0, 0, 2, 7]));
    assert_eq!(
        desired.entry("web").forward,
        Endpoint {
            ifindex: 7,
            flags: endpoint_flag::UP | endpoint_flag::XDP,
            tenant: 1,
            mtu: 1500,
            mac: [2, 0, 0, 0, 2, 7],
            port_mac: [2, 0, 0, 0, 1, 7],
            vlan: 30,
            pad: 0,
            port_link_local: "fe80::7".parse::<std::net::Ipv6Addr>().unwrap().octets(),
        }
    );
    assert_eq!(desired.state.ports, BTreeMap::from([(7, 0)]));
    assert_eq!(desired.owner("203.0.113.2").as_deref(), Some("web"));
    assert_eq!(desired.owner("2001:db8:1::/64").as_deref(), Some("web"));
    assert_eq!(desired.state.settings.flags, settings_flag::PREFIXES6);
    assert_eq!(desired.state.prefixes(), 2);
}

#[test]
fn xdp_forwards_to_few_ports_only() {
    let mut world = World::new();
    world.limits.max_machines = 2 * MAX_XDP_PORTS;
    for ifindex in 100..100 + MAX_XDP_PORTS {
        let name = format!("m{ifindex}");
        world.declare(&name, &[&format!("203.0.113.{ifindex}")]);
        world.link(ifindex, &format!("ve-{name}"));
        world.xdp_ports.insert(ifindex);
    }
    let flagged = |world: &World| {
        let endpoints = world.resolve().state.endpoints;
        let flags = endpoints.values().map(|entry| entry.forward.flags);
        flags
            .filter(|flags| flags & endpoint_flag::XDP != 0)
            .count()
    };
    assert_eq!(flagged(&world), MAX_XDP_PORTS as usize);
    world.declare("more", &["203.0.113.2"]);
    world.link(99, "ve-more");
    assert_eq!(flagged(&world), 0);
}

#[test]
fn states_follow_port_and_carrier() {
    let mut world = World::new();
    for name in ["a", "b", "c"] {
        world.declare(name, &[&format!("203.0.113.{}", name.as_bytes()[0])]);
    }
    world.link(7, "ve-a");
    world.link(8, "vb-b").carrier = false;
    let desired = world.resolve();
    let states: Vec<_> = desired.machines.iter().map(|m| m.state).collect();
    assert_eq!(
        states,
        [MachineState::Up, MachineState::Down, MachineState::Waiting]
    );
    assert_eq!(desired.count(MachineState::Up), 1);
    assert_eq!(desired.entry("b").forward.flags, 0);
    assert_eq!(desired.entry("c").forward.ifindex, 0);
    assert_eq!(
        desired.owner("203.0.113.99").as_deref(),
        Some("c"),
        "shadows"
    );
}

#[test]
fn port_is_found_by_declared_default_and_alternative_name() {
    let mut world = World::new();
    world.declare("a", &["203.0.113.1"]).interface = Some("tap0".to_owned());
    world.declare("b", &["203.0.113.2"]);
    world.declare("c", &["203.0.113.3"]).interface = Some("missing".to_owned());
    let tap = world.link(7, "tap0");
    tap.kind = Some("tun".to_owned());
    tap.peer = None;
    world.link(8, "ve-truncated").alt_names = vec!["ve-b".to_owned()];
    world.link(9, "ve-c");
    let desired = world.resolve();
    let ports: Vec<_> = desired.machines.iter().map(|m| m.ifindex).collect();
    assert_eq!(ports, [Some(7), Some(8), None]);
    assert_eq!(
        desired.entry("a").forward.flags,
        endpoint_flag::UP | endpoint_flag::NO_PEER
    );
    assert_eq!(desired.machine("c").interface.as_deref(), Some("missing"));
}

#[test]
fn veth_with_both_ends_here_is_not_reached_through_its_peer() {
    let mut world = World::new();
    world.declare("a", &["203.0.113.1"]);
    world.link(7, "ve-a").peer = Some(Peer {
        ifindex: 8,
        netnsid: None,
        mac: None,
    });
    let no_peer =
        |world: &World| world.resolve().entry("a").forward.flags & endpoint_flag::NO_PEER != 0;
    assert!(no_peer(&world));
    world.link(7, "ve-a");
    assert!(!no_peer(&world));
    world.link(7, "ve-a").peer = None;
    assert!(!no_peer(&world), "not known yet");
}

#[test]
fn port_of_an_engines_machine_is_where_the_engine_says() {
    let mut world = World::new();
    world.declare("web", &["203.0.113.1"]);
    world.link(7, "ve-web");
    world.link(8, "veth1");
    let placed = Placed {
        ifindex: 8,
        by_name: false,
    };
    world.snapshot.placed.insert("web".to_owned(), Some(placed));
    assert_eq!(world.settle().machine("web").ifindex, Some(8));
    // The link is gone, and neither a name nor what the maps hold stands in for it.
    world.host.links.remove(&8);
    world.snapshot.placed.insert("web".to_owned(), None);
    assert_eq!(world.resolve().machine("web").ifindex, None);
}

#[test]
fn uplinks_and_loopback_are_no_ports() {
    let mut world = World::new();
    world.declare("a", &["203.0.113.1"]).interface = Some("eth0".to_owned());
    world.declare("b", &["203.0.113.2"]).interface = Some("lo".to_owned());
    world.declare("c", &["203.0.113.3"]).interface = Some("br0".to_owned());
    world.link(9, "br0").kind = Some("bridge".to_owned());
    let desired = world.resolve();
    assert!(desired.state.ports.is_empty());
    assert_eq!(desired.count(MachineState::Waiting), 3);
    assert_eq!(
        desired.problems()[0],
        "/etc/netspawn/machines/a.toml: interface: eth0 cannot be the port of machine a: it is an \
         uplink; name the host's end of the machine's own veth, or its tap"
    );
    assert_eq!(desired.problems.len(), 3);
}

#[test]
fn port_of_two_machines_goes_to_its_holder() {
    let mut world = World::new();
    world.declare("b", &["203.0.113.2"]).interface = Some("ve-x".to_owned());
    world.link(7, "ve-x");
    world.settle();
    world.declare("a", &["203.0.113.1"]).interface = Some("ve-x".to_owned());
    let desired = world.resolve();
    assert_eq!(desired.machine("b").state, MachineState::Up);
    assert_eq!(desired.machine("a").state, MachineState::Waiting);
    assert_eq!(desired.problems.len(), 1);
    world.held = State::default();
    assert_eq!(world.resolve().machine("a").state, MachineState::Up);
}

#[test]
fn mac_is_declared_else_the_peers_else_the_learned() {
    let mut world = World::new();
    world.declare("a", &["203.0.113.1"]).mac = Some([2, 0, 0, 0, 9, 9]);
    world.declare("b", &["203.0.113.2"]);
    world.link(7, "ve-a");
    let tap = world.link(8, "ve-b");
    tap.peer = None;
    let desired = world.settle();
    assert_eq!(desired.machine("a").mac, Some([2, 0, 0, 0, 9, 9]));
    assert_eq!(desired.machine("b").mac, None);
    let learned = [2, 0, 0, 0, 5, 5];
    let id = desired.machine("b").endpoint.unwrap();
    world.held.endpoints.get_mut(&id).unwrap().forward.mac = learned;
    assert_eq!(world.resolve().machine("b").mac, Some(learned));
    world.host.links.remove(&8);
    world.link(9, "ve-b").peer = None;
    assert_eq!(world.resolve().machine("b").mac, None, "another port");
}

#[test]
fn same_prefix_goes_to_holder_then_rank_then_name() {
    let mut world = World::new();
    world.declare("c", &["203.0.113.2"]).source = SourceKind::Run;
    world.declare("b", &["203.0.113.2", "203.0.113.3"]);
    world.declare("a", &["203.0.113.3"]);
    let desired = world.resolve();
    assert_eq!(desired.owner("203.0.113.2").as_deref(), Some("c"));
    assert_eq!(desired.owner("203.0.113.3").as_deref(), Some("a"));
    let b = desired.machine("b");
    assert_eq!(b.state, MachineState::Conflict);
    assert_eq!(
        b.conflicts,
        [conflict("203.0.113.2", "c"), conflict("203.0.113.3", "a")]
    );
    assert!(desired.problems().contains(
        &"/etc/netspawn/machines/b.toml: addresses: 203.0.113.2/32 belongs to machine c; remove \
          it here or there"
            .to_owned()
    ));

    let mut alone = World::new();
    alone.declare("b", &["203.0.113.2", "203.0.113.3"]);
    world.held = alone.resolve().state;
    let desired = world.settle();
    assert_eq!(desired.owner("203.0.113.2").as_deref(), Some("b"), "holder");
    assert_eq!(desired.machine("b").conflicts, []);
    assert_eq!(desired.machine("a").state, MachineState::Conflict);

    world.declare("b", &["203.0.113.3"]);
    let desired = world.settle();
    assert_eq!(
        desired.owner("203.0.113.2").as_deref(),
        Some("c"),
        "withdrawn"
    );
    assert_eq!(desired.owner("203.0.113.3").as_deref(), Some("b"));
}

#[test]
fn conflicts_with_one_machine_are_one_problem() {
    let mut world = World::new();
    world.declare("a", &["203.0.113.2", "203.0.113.3", "203.0.113.4"]);
    world.declare("b", &["203.0.113.2", "203.0.113.3", "203.0.113.4"]);
    let desired = world.resolve();
    assert_eq!(desired.machine("b").conflicts.len(), 3);
    assert_eq!(
        desired.problems(),
        [
            "/etc/netspawn/machines/b.toml: addresses: 203.0.113.2/32 and 2 more belong to machine a; \
             remove it here or there"
        ]
    );
}

#[test]
fn other_prefixes_of_a_conflict_stay_served() {
    let mut world = World::new();
    world.declare("a", &["203.0.113.2"]);
    world.declare("b", &["203.0.113.2", "203.0.113.3", "203.0.113.0/24"]);
    world.link(7, "ve-b");
    let desired = world.resolve();
    assert_eq!(desired.machine("b").state, MachineState::Conflict);
    assert_eq!(desired.owner("203.0.113.3").as_deref(), Some("b"));
    assert_eq!(desired.owner("203.0.113.0/24").as_deref(), Some("b"));
    assert_eq!(desired.owner("203.0.113.2").as_deref(), Some("a"));
    assert_ne!(desired.entry("b").forward.flags & endpoint_flag::UP, 0);
}

#[test]
fn host_and_gateways_cannot_be_claimed() {
    let mut world = World::new();
    world.declare(
        "a",
        &[
            "192.0.2.10",
            "192.0.2.1",
            "192.0.2.255",
            "2001:db8::/64",
            "192.0.2.11",
            "2001:db8::/125",
        ],
    );
    let desired = world.resolve();
    assert_eq!(desired.owner("192.0.2.10").as_deref(), Some("host"));
    assert_eq!(desired.owner("2001:db8::10").as_deref(), Some("host"));
    assert_eq!(desired.owner("192.0.2.11").as_deref(), Some("a"));
    for taken in [
        "192.0.2.1",
        "192.0.2.255",
        "2001:db8::/64",
        "2001:db8::/125",
    ] {
        assert_eq!(desired.owner(taken), None, "{taken}");
    }
    assert_eq!(desired.machine("a").conflicts.len(), 5);
    assert!(
        desired
            .machine("a")
            .conflicts
            .iter()
            .all(|conflict| conflict.holder == "host")
    );
    assert!(
        desired
            .state
            .addresses
            .contains_key(&"fe80::10/128".parse().unwrap())
    );
    assert!(
        !desired
            .state
            .addresses
            .contains_key(&"127.0.0.1/32".parse().unwrap())
    );
}

#[test]
fn address_that_becomes_the_hosts_is_taken_from_its_holder() {
    let mut world = World::new();
    world.declare("a", &["203.0.113.2"]);
    world.settle();
    world
        .host
        .addresses
        .push((ETH0, "203.0.113.2/32".parse().unwrap()));
    assert_eq!(
        world.resolve().owner("203.0.113.2").as_deref(),
        Some("host")
    );
}

#[test]
fn link_local_addresses_of_ports_are_not_the_hosts() {
    let mut world = World::new();
    world.link(7, "ve-web");
    world
        .host
        .addresses
        .push((7, "fe80::7/64".parse().unwrap()));
    world
        .host
        .addresses
        .push((7, "10.0.0.1/28".parse().unwrap()));
    let desired = world.resolve();
    assert!(
        !desired
            .state
            .addresses
            .contains_key(&"fe80::7/128".parse().unwrap())
    );
    assert_eq!(desired.owner("10.0.0.1").as_deref(), Some("host"));
}

#[test]
fn port_in_a_bridge_is_known_by_the_bridges_addresses() {
    let mut world = World::new();
    world.declare("web", &["203.0.113.2"]);
    world.link(9, "br0").kind = Some("bridge".to_owned());
    world.link(7, "ve-web").master = Some(9);
    for (ifindex, address) in [(7, "fe80::7/64"), (9, "fe80::9/64")] {
        let address = address.parse().unwrap();
        world.host.addresses.push((ifindex, address));
    }
    let known_by = |world: &World| {
        let web = world.resolve().state.endpoints[&0].forward;
        (web.ifindex, web.port_mac, web.port_link_local[15])
    };
    let mac = |world: &World, ifindex| world.host.links[&ifindex].mac;
    assert_eq!(known_by(&world), (7, mac(&world, 9), 9));
    // A VRF takes no frames in.
    world.link(9, "vrf0").kind = Some("vrf".to_owned());
    assert_eq!(known_by(&world), (7, mac(&world, 7), 7));
}

/// A bridge has the lowest address of its ports, which changes when one joins.
#[test]
fn gateways_address_stays_while_the_bridge_has_it_on_a_port() {
    let mut world = World::new();
    world.declare("web", &["203.0.113.2"]);
    world.link(9, "br0").kind = Some("bridge".to_owned());
    world.link(7, "ve-web").master = Some(9);
    let told = world.host.links[&7].mac;
    world.host.links.get_mut(&9).unwrap().mac = told;
    let port_mac = |world: &mut World| world.settle().state.endpoints[&0].forward.port_mac;
    assert_eq!(port_mac(&mut world), told);
    world.link(5, "ve-db").master = Some(9);
    let lowest = world.host.links[&5].mac;
    world.host.links.get_mut(&9).unwrap().mac = lowest;
    assert_eq!(port_mac(&mut world), told);
    // Out of the bridge it has its own.
    world.host.links.get_mut(&7).unwrap().mac = [2; 6];
    assert_eq!(port_mac(&mut world), lowest);
    world.host.links.get_mut(&7).unwrap().master = None;
    assert_eq!(port_mac(&mut world), [2; 6]);
}

#[test]
fn routes_through_uplinks_declare_no_machine() {
    let mut world = World::new();
    let declaration = world.declare("eth0", &["203.0.113.2"]);
    declaration.interface = Some("eth0".to_owned());
    assert_eq!(world.resolve().machines.len(), 1);
    world.declare("eth0", &["203.0.113.2"]).source = SourceKind::Kernel;
    let declaration = world.snapshot.declarations.get_mut("eth0").unwrap();
    declaration.interface = Some("eth0".to_owned());
    let desired = world.resolve();
    assert_eq!(desired.machines, []);
    assert_eq!(desired.problems(), [""; 0]);
}

#[test]
fn ids_are_kept_and_new_ones_take_what_nobody_holds() {
    let mut world = World::new();
    world.limits.max_machines = 3;
    world.declare("a", &["203.0.113.1"]);
    world.declare("b", &["203.0.113.2"]);
    world.settle();
    world.snapshot.declarations.remove("a");
    world.declare("c", &["203.0.113.3"]);
    let desired = world.resolve();
    assert_eq!(desired.machine("b").endpoint, Some(1));
    assert_eq!(desired.machine("c").endpoint, Some(2), "0 is still held");
    world.declare("d", &["203.0.113.4"]);
    let desired = world.resolve();
    assert_eq!(
        desired.machine("d").endpoint,
        Some(0),
        "nothing else is left"
    );
    world.declare("e", &["203.0.113.5"]);
    let desired = world.resolve();
    let e = desired.machine("e");
    assert_eq!((e.endpoint, e.state), (None, MachineState::Waiting));
    assert_eq!(desired.owner("203.0.113.5"), None);
    assert_eq!(
        desired.problems(),
        [
            "/etc/netspawn/machines/e.toml: there is no room for machine e: the maps hold 3; attach \
          with a larger --max-machines"
        ]
    );
}

#[test]
fn too_many_addresses_take_nothing_from_who_is_served() {
    let mut world = World::new();
    world.limits.max_addresses = 3;
    world.declare("z", &["203.0.113.9", "10.9.0.0/16"]);
    world.settle();
    world.declare("a", &["203.0.113.1", "203.0.113.2", "203.0.113.3"]);
    let desired = world.resolve();
    assert_eq!(desired.owner("203.0.113.9").as_deref(), Some("z"));
    assert_eq!(desired.owner("203.0.113.1").as_deref(), Some("a"));
    assert_eq!(desired.owner("203.0.113.2"), None, "the host has one entry");
    assert_eq!(
        desired.problems(),
        [
            "/etc/netspawn/machines/a.toml: addresses: there is no room for 2 prefixes of machine a: \
          each map holds 3; attach with a larger --max-addresses"
        ]
    );
}

#[test]
fn tenant_numbers_are_stable_and_never_handed_over_at_once() {
    let mut world = World::new();
    world.declare("a", &["203.0.113.1"]).tenant = Some("x".to_owned());
    world.declare("b", &["203.0.113.2"]).tenant = Some("y".to_owned());
    world.declare("c", &["203.0.113.3"]);
    let desired = world.settle();
    let number = |desired: &Desired, name: &str| desired.entry(name).forward.tenant;
    assert_eq!(
        [
            number(&desired, "a"),
            number(&desired, "b"),
            number(&desired, "c")
        ],
        [1, 2, 0]
    );
    world.snapshot.declarations.remove("a");
    world.declare("d", &["203.0.113.4"]).tenant = Some("w".to_owned());
    world.declare("e", &["203.0.113.5"]).tenant = Some("y".to_owned());
    let desired = world.settle();
    assert_eq!(number(&desired, "d"), 3);
    assert_eq!(number(&desired, "e"), 2);
    world.declare("f", &["203.0.113.6"]).tenant = Some("v".to_owned());
    assert_eq!(number(&world.resolve(), "f"), 1, "free by now");
}

#[test]
fn machine_with_an_unusable_file_keeps_what_it_holds() {
    let mut world = World::new();
    let web = world.declare("web", &["203.0.113.2", "2001:db8:1::/64"]);
    web.interface = Some("ve-odd".to_owned());
    web.mac = Some([2, 0, 0, 0, 9, 9]);
    web.tenant = Some("acme".to_owned());
    world.link(7, "ve-odd");
    let before = world.settle();
    world.snapshot.declarations.clear();
    world.snapshot.unusable.insert(
        "web".to_owned(),
        (SourceKind::Run, "/run/netspawn/machines/web.toml".into()),
    );
    let desired = world.settle();
    assert_eq!(desired.state, before.state);
    assert_eq!(desired.machine("web").source, SourceKind::Run);
    world.snapshot.unusable.clear();
    world.snapshot.unlisted = Some((SourceKind::Config, "/etc/netspawn/machines".into()));
    assert_eq!(world.settle().state, before.state);
    world.snapshot.unlisted = None;
    let desired = world.settle();
    assert!(desired.machines.is_empty());
    assert_eq!(desired.state.prefixes(), 0);
}

#[test]
fn routes_become_next_hops() {
    let desired = World::new().resolve();
    let hop = |destination: &str| {
        let index = desired.state.routes[&destination.parse().unwrap()];
        desired.state.nexthops[&index]
    };
    assert_eq!(
        hop("0.0.0.0/0"),
        NextHop {
            deadline: 1000,
            ifindex: ETH0,
            flags: nexthop_flag::RESOLVED,
            mtu: 1500,
            src_mac: ETH0_MAC,
            dst_mac: [2, 0, 0, 0, 0xee, 1],
            uplink: ETH0,
            pad: 0,
        }
    );
    let unresolved = NextHop {
        ifindex: ETH0,
        mtu: 1500,
        src_mac: ETH0_MAC,
        uplink: ETH0,
        ..NextHop::default()
    };
    let on_link = NextHop {
        flags: nexthop_flag::ON_LINK,
        ..unresolved
    };
    assert_eq!(hop("192.0.2.0/24"), on_link, "on the link");
    assert_eq!(hop("::/0"), unresolved, "no neighbor yet");
    assert_eq!(desired.state.routes.len(), 4, "none for link-local");
    assert_eq!(
        desired.state.uplinks,
        BTreeMap::from([(
            ETH0,
            Uplink {
                mac: ETH0_MAC,
                pad: 0,
                mtu: 1500,
                address4: [192, 0, 2, 10],
                address6: "2001:db8::10".parse::<Ipv6Addr>().unwrap().octets(),
                ifindex: ETH0,
            }
        )])
    );
}

#[test]
fn lowest_metric_serves_and_other_interfaces_are_refused() {
    let mut world = World::new();
    world.link(8, "wg0");
    let base = Route {
        destination: "10.0.0.0/8".parse().unwrap(),
        ifindex: Some(ETH0),
        gateway: Some("192.0.2.1".parse().unwrap()),
        priority: 10,
        mtu: Some(1400),
        refused: false,
    };
    let flags_and_mtu = |world: &World, destination: &str| {
        let state = world.resolve().state;
        let hop = state.nexthops[&state.routes[&destination.parse().unwrap()]];
        (hop.flags, hop.mtu)
    };
    world.host.routes.push(base.clone());
    world.host.routes.push(Route {
        ifindex: None,
        gateway: None,
        priority: 20,
        refused: true,
        ..base.clone()
    });
    assert_eq!(
        flags_and_mtu(&world, "10.0.0.0/8"),
        (nexthop_flag::RESOLVED, 1400)
    );
    world.host.routes.push(Route {
        ifindex: None,
        gateway: None,
        priority: 5,
        refused: true,
        ..base.clone()
    });
    assert_eq!(
        flags_and_mtu(&world, "10.0.0.0/8"),
        (nexthop_flag::REFUSED, 0)
    );
    for destination in ["172.16.0.0/12", "0.0.0.0/0"] {
        world.host.routes.push(Route {
            destination: destination.parse().unwrap(),
            ifindex: Some(8),
            gateway: None,
            priority: 0,
            ..base.clone()
        });
    }
    assert_eq!(
        flags_and_mtu(&world, "172.16.0.0/12"),
        (nexthop_flag::REFUSED, 0)
    );
    assert_eq!(
        flags_and_mtu(&world, "0.0.0.0/0"),
        (nexthop_flag::RESOLVED, 1500),
        "the uplink's own default serves"
    );
}

#[test]
fn vlan_interface_of_an_uplink_is_a_way_with_its_id() {
    let mut world = World::new();
    for (ifindex, name, lower) in [(20, "eth0.30", ETH0), (21, "other.30", 9)] {
        let link = world.link(ifindex, name);
        link.kind = Some("vlan".to_owned());
        link.peer = None;
        link.vlan = Some(Vlan { lower, id: 30 });
    }
    for (destination, ifindex) in [("198.51.100.0/24", 20), ("100.64.0.0/24", 21)] {
        let route = Route {
            destination: destination.parse().unwrap(),
            ifindex: Some(ifindex),
            gateway: None,
            priority: 0,
            mtu: None,
            refused: false,
        };
        world.host.routes.push(route);
    }
    let desired = world.resolve();
    let hop = |destination: &str| desired.state.nexthops[&desired.state.routes[&net(destination)]];
    assert_eq!(hop("198.51.100.0/24").ifindex, 20);
    assert_eq!(hop("198.51.100.0/24").uplink, ETH0);
    assert_eq!(hop("198.51.100.0/24").flags >> nexthop_flag::VLAN_SHIFT, 30);
    assert_eq!(hop("100.64.0.0/24").flags, nexthop_flag::REFUSED);

    world.uplinks.insert(20);
    let desired = world.resolve();
    let hop = |destination: &str| desired.state.nexthops[&desired.state.routes[&net(destination)]];
    let flags = hop("198.51.100.0/24").flags;
    assert_eq!(flags, nexthop_flag::ON_LINK, "an uplink of its own");
    assert_eq!(hop("198.51.100.0/24").uplink, 20);
}

#[test]
fn neighbors_on_uplinks_and_their_vlans_are_known() {
    let mut world = World::new();
    let link = world.link(20, "eth0.30");
    link.kind = Some("vlan".to_owned());
    link.vlan = Some(Vlan {
        lower: ETH0,
        id: 30,
    });
    let mac = Some([2, 0, 0, 0, 0xee, 7]);
    let neighbor = |ifindex, address: &str, mac| Neighbor {
        ifindex,
        address: address.parse().unwrap(),
        mac,
    };
    world.host.neighbors = vec![
        neighbor(ETH0, "192.0.2.7", mac),
        neighbor(ETH0, "192.0.2.8", None),
        neighbor(20, "2001:db8::7", mac),
        neighbor(9, "2001:db8::8", mac),
    ];
    let words = |address: &str| words6(&address.parse::<Ipv6Addr>().unwrap().octets());
    assert_eq!(
        neighbors(&world.host, &world.uplinks),
        BTreeSet::from([
            abi::neighbor(&words("::ffff:192.0.2.7"), ETH0, 0),
            abi::neighbor(&words("2001:db8::7"), ETH0, 30),
        ])
    );
}

#[test]
fn next_hop_keeps_its_index_when_its_neighbor_changes() {
    let mut world = World::new();
    let before = world.settle().state;
    world.host.neighbors[0].mac = None;
    world.host.neighbors.push(Neighbor {
        ifindex: ETH0,
        address: "2001:db8::1".parse().unwrap(),
        mac: Some([2, 0, 0, 0, 0xee, 6]),
    });
    let after = world.settle().state;
    assert_eq!(before.routes, after.routes);
    assert_ne!(before.nexthops, after.nexthops);
}

#[test]
fn too_many_routes_are_left_to_the_kernel() {
    let mut world = World::new();
    for n in 0..=MAX_ROUTES {
        world.host.routes.push(Route {
            destination: IpNet::V4(Ipv4Net::new((0x0a00_0000 + n).into(), 32).unwrap()),
            ifindex: Some(ETH0),
            gateway: Some("192.0.2.1".parse().unwrap()),
            priority: 0,
            mtu: None,
            refused: false,
        });
    }
    let desired = world.resolve();
    assert_eq!(desired.state.routes.len(), 4, "IPv6 is untouched");
    let hop = |destination: &str| desired.state.nexthops[&desired.state.routes[&net(destination)]];
    let default = desired.state.nexthops[&desired.state.routes[&"0.0.0.0/0".parse().unwrap()]];
    assert_eq!((default.flags, default.ifindex), (0, ETH0));
    assert_eq!(hop("192.0.2.0/24").flags, nexthop_flag::ON_LINK);
    assert_eq!(desired.problems.len(), 1);
}

#[test]
fn too_many_gateways_are_left_to_the_kernel() {
    let mut world = World::new();
    for n in 0..2 * MAX_NEXTHOPS {
        world.host.routes.push(Route {
            destination: IpNet::V4(Ipv4Net::new((0x0a00_0000 + n).into(), 32).unwrap()),
            ifindex: Some(ETH0),
            gateway: Some(IpAddr::V4((0xc000_0200 + n).into())),
            priority: 0,
            mtu: None,
            refused: false,
        });
    }
    let desired = world.resolve();
    assert_eq!(desired.state.routes.len(), 4 + 2 * MAX_NEXTHOPS as usize);
    assert!(desired.state.nexthops.len() <= MAX_NEXTHOPS as usize);
    for index in desired.state.routes.values() {
        assert!(desired.state.nexthops.contains_key(index));
    }
}

#[test]
fn policy_becomes_settings() {
    let mut world = World::new();
    world.policy = Policy {
        isolation: Isolation::Route,
        host: HostAccess::Deny,
        via_host: Vec::new(),
    };
    assert_eq!(
        world.resolve().state.settings.flags,
        settings_flag::ISOLATION_ROUTE | settings_flag::HOST_DENY
    );
}

#[test]
fn via_host_is_the_hosts_but_for_longer_prefixes() {
    let mut world = World::new();
    world.policy.via_host = ["10.96.0.0/16", "fd00:96::/112", "192.0.2.64/26"]
        .map(net)
        .into();
    world.declare("a", &["10.96.0.5", "10.0.0.0/8"]);
    world.declare("b", &["fd00:96::/112"]);
    let desired = world.settle();
    for prefix in ["10.96.0.0/16", "fd00:96::/112", "192.0.2.64/26"] {
        assert_eq!(desired.state.addresses[&net(prefix)], HOST, "{prefix}");
    }
    assert_eq!(desired.machine("a").conflicts, []);
    assert_eq!(
        desired.machine("b").conflicts,
        [conflict("fd00:96::/112", HOST_HOLDER)]
    );
    assert_eq!(
        desired.problems(),
        [
            "/etc/netspawn/machines/b.toml: addresses: fd00:96::/112 is the host's by `via-host` in \
          netspawn.toml; remove it, or declare longer prefixes beside it"
        ]
    );
    world.policy.via_host.clear();
    let desired = world.resolve();
    assert_eq!(desired.owner("fd00:96::/112").as_deref(), Some("b"));
    assert_eq!(desired.problems(), [""; 0]);
}

#[test]
fn via_host_cuts_off_no_station_of_the_network() {
    let mut world = World::new();
    let [subnet, wide, beyond] = ["192.0.2.0/24", "192.0.0.0/8", "10.0.0.0/8"].map(net);
    world.host.routes.push(Route {
        destination: net("10.5.0.0/16"),
        ..world.host.routes[0]
    });
    world.policy.via_host = vec![subnet, wide, beyond, net("10.5.0.0/16")];
    let desired = world.resolve();
    let of_host = |prefix: IpNet| desired.state.addresses.get(&prefix) == Some(&HOST);
    assert!(!of_host(subnet) && !of_host(wide) && !of_host(beyond));
    assert!(of_host(net("10.5.0.0/16")), "the route to it is for itself");
    let problems = desired.problems();
    assert_eq!(problems.len(), 3);
    assert_eq!(
        problems[2],
        "netspawn.toml: policy.via-host: 10.0.0.0/8 contains 10.5.0.0/16, which an uplink leads \
         to: machines would get nothing from there; write longer prefixes beside it"
    );
}

/// A few machines that want a few prefixes, from either source.
fn machines() -> impl Strategy<Value = Vec<(u8, bool, Vec<u8>)>> {
    prop::collection::vec(
        (0u8..6, any::<bool>(), prop::collection::vec(0u8..8, 1..4)),
        0..8,
    )
}

fn world_of(machines: &[(u8, bool, Vec<u8>)]) -> World {
    let mut world = World::new();
    for (name, run, prefixes) in machines {
        let prefixes: Vec<String> = prefixes
            .iter()
            .map(|n| match n % 2 {
                0 => format!("203.0.113.{n}"),
                _ => format!("2001:db8:{n}::/64"),
            })
            .collect();
        let prefixes: Vec<&str> = prefixes.iter().map(String::as_str).collect();
        let name = format!("m{name}");
        let declaration = world.declare(&name, &prefixes);
        if *run {
            declaration.source = SourceKind::Run;
        }
        let mut seen = BTreeSet::new();
        declaration.addresses.retain(|prefix| seen.insert(*prefix));
    }
    world
}

proptest! {
    #[test]
    fn order_of_arrival_does_not_matter(machines in machines(), seed in any::<u64>()) {
        // One declaration a name: the last one of the list.
        let unique: BTreeMap<u8, _> = machines.into_iter().map(|m| (m.0, m)).collect();
        let mut order: Vec<_> = unique.into_values().collect();
        let first = world_of(&order).resolve();
        let len = order.len();
        for index in 0..len {
            order.swap(index, (seed as usize).wrapping_mul(index + 7) % len);
        }
        let second = world_of(&order).resolve();
        prop_assert_eq!(&first.state, &second.state);
        prop_assert_eq!(first.machines, second.machines);
    }

    #[test]
    fn result_is_what_the_rules_say(held in machines(), machines in machines()) {
        let before = world_of(&held).resolve();
        let mut world = world_of(&machines);
        world.held = before.state.clone();
        let desired = world.resolve();
        let declarations = &world.snapshot.declarations;
        let wanted: BTreeSet<IpNet> =
            declarations.values().flat_map(|d| d.addresses.iter().copied()).collect();
        for prefix in &wanted {
            let mut claimants: Vec<&Declaration> =
                declarations.values().filter(|d| d.addresses.contains(prefix)).collect();
            claimants.sort_by_key(|d| {
                let holder = before.owner(&prefix.to_string()) == Some(d.name.clone());
                (!holder, d.source, d.name.clone())
            });
            prop_assert_eq!(desired.owner(&prefix.to_string()), Some(claimants[0].name.clone()));
            for loser in &claimants[1..] {
                let conflict = conflict(&prefix.to_string(), &claimants[0].name);
                prop_assert!(desired.machine(&loser.name).conflicts.contains(&conflict));
            }
        }
        prop_assert_eq!(desired.state.prefixes(), wanted.len());

        // Applied, it is a fixed point.
        world.held = desired.state.clone();
        let again = world.resolve();
        prop_assert_eq!(&again.state, &desired.state);
        prop_assert_eq!(plan::plan(&world.held, &again.state), vec![]);
    }
}
