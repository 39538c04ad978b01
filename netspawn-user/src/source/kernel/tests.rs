use super::*;
use crate::model::{Neighbor, Peer, Station};

/// A host as text: links `IFINDEX NAME KIND [MASTER]`, the other end of a veth
/// with the address 02:00:00:00:02:IFINDEX.
fn host(links: &[&str], addresses: &[&str], routes: &[&str], neighbors: &[&str]) -> Host {
    let mut host = Host::default();
    for line in links {
        let words: Vec<&str> = line.split(' ').collect();
        let ifindex: u32 = words[0].parse().unwrap();
        let kind = Some(words[2]).filter(|kind| *kind != "-");
        let names: Vec<&str> = words[1].split('=').collect();
        host.links.insert(
            ifindex,
            Link {
                ifindex,
                name: names[0].to_owned(),
                alt_names: names[1..].iter().map(|name| (*name).to_owned()).collect(),
                hardware: if kind == Some("wireguard") {
                    libc::ARPHRD_NONE
                } else {
                    libc::ARPHRD_ETHER
                },
                kind: kind.map(str::to_owned),
                mac: [2, 0, 0, 0, 1, ifindex as u8],
                mtu: 1500,
                admin_up: true,
                carrier: true,
                master: words.get(3).map(|master| index(&host, master)),
                vlan: None,
                peer: (kind == Some("veth")).then_some(Peer {
                    ifindex: 2,
                    netnsid: Some(0),
                    mac: Some([2, 0, 0, 0, 2, ifindex as u8]),
                }),
            },
        );
    }
    for line in addresses {
        let (address, on) = line.split_once(' ').unwrap();
        let on = index(&host, on);
        host.addresses.push((on, address.parse().unwrap()));
    }
    for line in routes {
        host.routes.push(route(&host, line));
    }
    for line in neighbors {
        let words: Vec<&str> = line.split(' ').collect();
        host.neighbors.push(Neighbor {
            ifindex: index(&host, words[1]),
            address: words[0].parse().unwrap(),
            mac: words.get(2).map(|mac| fields::mac(mac).unwrap()),
        });
    }
    host
}

fn index(host: &Host, name: &str) -> u32 {
    host.link(name).unwrap().ifindex
}

/// `DESTINATION IF [via GATEWAY] [metric N]`, or `DESTINATION refused`.
fn route(host: &Host, line: &str) -> Route {
    let words: Vec<&str> = line.split(' ').collect();
    let after = |word: &str| {
        let at = words.iter().position(|other| *other == word)?;
        Some(words[at + 1])
    };
    let refused = words[1] == "refused";
    Route {
        destination: words[0].parse().unwrap(),
        ifindex: (!refused).then(|| index(host, words[1])),
        gateway: after("via").map(|gateway| gateway.parse().unwrap()),
        priority: after("metric").map_or(0, |metric| metric.parse().unwrap()),
        mtu: None,
        refused,
    }
}

const LINKS: &[&str] = &[
    "2 eth0 -",
    "3 ve-web veth",
    "4 veth9 veth",
    "5 tap0 tun",
    "6 wg0 wireguard",
    "7 br0 bridge",
    "8 vb-db veth br0",
    "9 vb-mail veth br0",
    "10 tap1 tun br0",
    "11 br1 bridge",
    "12 eth1 - br1",
    "13 vb-x veth br1",
    "14 br2 bridge",
    "15 vb-only veth br2",
];
const ADDRESSES: &[&str] = &[
    "203.0.113.10/24 eth0",
    "10.1.0.5/16 eth0",
    "192.168.7.1/28 ve-web",
    "203.0.113.9/32 br0",
    "2001:db8:5::1/64 ve-web",
];
const DEFAULT: &str = "0.0.0.0/0 eth0 via 203.0.113.1";

/// Machines as `NAME INTERFACE [MAC] PREFIX…`, and the others as `- PREFIX WHY`.
fn told(survey: &Survey) -> Vec<String> {
    let machines = survey.machines.iter().map(|found| {
        let mut words = vec![found.name.clone(), found.interface.clone()];
        words.extend(found.mac.map(|mac| DisplayMac(mac).to_string()));
        words.extend(found.addresses().map(|prefix| fields::shortest(&prefix)));
        words.join(" ")
    });
    let others = survey.unattributed.iter().map(|lost| {
        format!(
            "- {} {:?}",
            fields::shortest(&lost.route.destination),
            lost.why
        )
    });
    machines.chain(others).collect()
}

#[test]
fn routes_are_attributed() {
    // Routes beside the default one, neighbors, and what comes of them.
    for (what, routes, neighbors, expected) in [
        (
            "host routes and prefixes to a veth, in order",
            &[
                "2001:db8:1::/64 ve-web via 2001:db8::2",
                "2001:db8::2/128 ve-web metric 1024",
                "203.0.113.2/32 ve-web",
            ][..],
            &[][..],
            &["web ve-web 203.0.113.2 2001:db8::2 2001:db8:1::/64"][..],
        ),
        (
            "a tap's machine by its neighbor entry",
            &["203.0.113.2/32 tap0"],
            &["203.0.113.2 tap0 02:00:00:00:00:77"],
            &["tap0 tap0 02:00:00:00:00:77 203.0.113.2"],
        ),
        (
            "a tap's machines with two addresses have none that counts",
            &["203.0.113.2/32 tap0", "203.0.113.3/32 tap0"],
            &[
                "203.0.113.2 tap0 02:00:00:00:00:77",
                "203.0.113.3 tap0 02:00:00:00:00:78",
            ],
            &["tap0 tap0 203.0.113.2 203.0.113.3"],
        ),
        (
            "uplinks, connected subnets, own addresses, link-local, multicast, refusals",
            &[
                "203.0.113.0/24 eth0",
                "198.51.100.7/32 eth0 via 203.0.113.1",
                "192.168.7.0/28 ve-web",
                "2001:db8:5::/64 ve-web",
                "203.0.113.9/32 br0",
                "169.254.9.9/32 ve-web",
                "fe80::/64 ve-web",
                "ff00::/8 ve-web",
                "224.0.0.0/4 ve-web",
                "203.0.113.66/32 refused",
            ],
            &[],
            &[],
        ),
        (
            "no default route, also not a second one",
            &[
                "0.0.0.0/0 veth9 via 192.0.2.1 metric 50",
                "192.0.2.9/32 veth9",
            ],
            &[],
            &[],
        ),
        ("no tunnels", &["203.0.113.2/32 wg0"], &[], &[]),
        (
            "the route of the lowest metric",
            &[
                "203.0.113.2/32 ve-web metric 20",
                "203.0.113.2/32 veth9 metric 10",
                "203.0.113.3/32 ve-web metric 20",
                "203.0.113.3/32 eth0 metric 10",
                "203.0.113.4/32 ve-web metric 20",
                "203.0.113.4/32 refused metric 10",
            ],
            &[],
            &["veth9 veth9 203.0.113.2"],
        ),
        (
            "behind a bridge by the peer's address",
            &["203.0.113.2/32 br0", "2001:db8::3/128 br0 metric 1024"],
            &[
                "203.0.113.2 br0 02:00:00:00:02:08",
                "2001:db8::3 br0 02:00:00:00:02:09",
            ],
            &["db vb-db 203.0.113.2", "mail vb-mail 2001:db8::3"],
        ),
        (
            "behind a bridge's tap by the forwarding database",
            &["203.0.113.2/32 br0"],
            &["203.0.113.2 br0 02:00:00:00:00:aa"],
            &["tap1 tap1 02:00:00:00:00:aa 203.0.113.2"],
        ),
        (
            "a prefix by way of a machine behind a bridge",
            &["2001:db8:1::/64 br0 via 2001:db8::3", "2001:db8:2::/64 br0"],
            &["2001:db8::3 br0 02:00:00:00:02:09"],
            &["mail vb-mail 2001:db8:1::/64", "- 2001:db8:2::/64 Shared"],
        ),
        (
            "nobody where the neighbor is unknown, or behind no port",
            &["203.0.113.2/32 br0", "203.0.113.3/32 br0"],
            &["203.0.113.2 br0", "203.0.113.3 br0 02:00:00:00:00:99"],
            &[
                "- 203.0.113.2 Silent { hop: 203.0.113.2 }",
                "- 203.0.113.3 Nowhere([2, 0, 0, 0, 0, 153])",
            ],
        ),
        (
            "the only port of a bridge",
            &["203.0.113.2/32 br2", "2001:db8:2::/64 br2"],
            &[],
            &["only vb-only 203.0.113.2 2001:db8:2::/64"],
        ),
        (
            "not a bridge of the network",
            &["203.0.113.2/32 br1"],
            &["203.0.113.2 br1 02:00:00:00:02:0d"],
            &[],
        ),
        (
            "not the port of a bridge, which routes cannot use",
            &["203.0.113.2/32 vb-db"],
            &[],
            &[],
        ),
        (
            "private ones only where the network asks for them",
            &[
                "10.88.0.2/32 ve-web",
                "10.1.0.7/32 ve-web",
                "192.168.99.1/32 ve-web",
                "fd00::2/128 ve-web metric 1024",
                "10.99.0.2/32 br0",
            ],
            &[],
            &[
                "web ve-web 10.1.0.7 192.168.99.1",
                "- 10.88.0.2 Private",
                "- 10.99.0.2 Private",
                "- fd00::2 Private",
            ],
        ),
    ] {
        let mut all = vec![DEFAULT];
        all.extend(routes);
        let host = host(LINKS, ADDRESSES, &all, neighbors);
        let unfollowed = Unfollowed {
            proxies: vec![Proxy {
                ifindex: Some(2),
                address: "192.168.99.1".parse().unwrap(),
            }],
            stations: vec![
                Station {
                    port: 12,
                    mac: [2, 0, 0, 0, 0, 0xaa],
                },
                Station {
                    port: 10,
                    mac: [2, 0, 0, 0, 0, 0xaa],
                },
            ],
        };
        assert_eq!(told(&survey(&host, &unfollowed)), expected, "{what}");
    }
}

#[test]
fn machines_are_named_after_their_ports() {
    for (links, expected) in [
        (&["3 ve-web veth"][..], &["web"][..]),
        (&["3 vb-web veth"], &["web"]),
        (&["3 web veth"], &["web"]),
        (
            &["3 ve-a-long-nam3f=ve-a-long-name-of-a-machine veth"],
            &["a-long-name-of-a-machine"],
        ),
        (&["3 veth1=enx020000000203 veth"], &["veth1"]),
        (&["3 ve-web veth", "4 vb-web veth"], &["vb-web", "ve-web"]),
        (&["3 ve-web veth", "4 web veth"], &["ve-web", "web"]),
        (&["3 ve-.x veth"], &["ve-.x"]),
        (&["3 x~y veth"], &["- 203.0.113.3 Name"]),
    ] {
        let mut all = vec!["2 eth0 -"];
        all.extend(links);
        let mut host = host(&all, &[], &[DEFAULT], &[]);
        for ifindex in 3..3 + links.len() {
            let name = host.links[&(ifindex as u32)].name.clone();
            let line = format!("203.0.113.{ifindex}/32 {name}");
            let route = route(&host, &line);
            host.routes.push(route);
        }
        let survey = survey(&host, &Unfollowed::default());
        let mut names: Vec<String> = survey
            .machines
            .iter()
            .map(|found| {
                let usual = ["ve", "vb"].map(|kind| format!("{kind}-{}", found.name));
                let link = &host.links[&found.port];
                let matches = usual
                    .iter()
                    .any(|name| *name == link.name || link.alt_names.contains(name));
                assert_eq!(found.usual_port, matches, "{}", found.name);
                found.name.clone()
            })
            .collect();
        names.extend(
            told(&survey)
                .into_iter()
                .filter(|line| line.starts_with('-')),
        );
        assert_eq!(names, expected);
    }
}

#[test]
fn proxy_neighbors_without_a_machine_are_reported() {
    let host = host(
        LINKS,
        ADDRESSES,
        &[DEFAULT, "203.0.113.2/32 ve-web", "203.0.113.3/32 br0"],
        &[],
    );
    let proxy = |address: &str, ifindex: Option<u32>| Proxy {
        ifindex,
        address: address.parse().unwrap(),
    };
    let unfollowed = Unfollowed {
        proxies: vec![
            proxy("203.0.113.2", Some(2)),
            proxy("203.0.113.3", Some(2)),
            proxy("203.0.113.4", Some(2)),
            proxy("203.0.113.5", None),
            // The network's router, for machines.
            proxy("203.0.113.1", Some(7)),
            proxy("203.0.113.1", Some(3)),
            proxy("169.254.0.1", Some(2)),
        ],
        stations: Vec::new(),
    };
    assert_eq!(
        survey(&host, &unfollowed).unrouted,
        [proxy("203.0.113.4", Some(2)), proxy("203.0.113.5", None)]
    );
}

#[test]
fn machine_behind_a_bridge_stays_when_its_neighbor_entry_goes() {
    let routes = [DEFAULT, "203.0.113.2/32 br0"];
    let before = host(
        LINKS,
        ADDRESSES,
        &routes,
        &["203.0.113.2 br0 02:00:00:00:02:08"],
    );
    let after = host(LINKS, ADDRESSES, &routes, &["203.0.113.2 br0"]);
    let mut kernel = Kernel::default();
    let mut read = |host: &Host| {
        let mut layers = Layers::default();
        kernel.declare(host, &Unfollowed::default(), &mut layers);
        layers.merge()
    };
    assert_eq!(read(&after).problems.len(), 1);
    let known = read(&before);
    assert_eq!(known.declarations["db"].interface.as_deref(), Some("vb-db"));
    assert_eq!(read(&after), known);
    // It has left the bridge, or its route is gone: nothing is remembered.
    let mut left = after.clone();
    left.links.get_mut(&8).unwrap().master = None;
    assert!(read(&left).declarations.is_empty());
    assert!(read(&after).declarations.is_empty());
    read(&before);
    assert!(
        read(&host(LINKS, ADDRESSES, &[DEFAULT], &[]))
            .declarations
            .is_empty()
    );
    assert!(read(&after).declarations.is_empty());
}
