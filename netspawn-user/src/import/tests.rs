use std::path::PathBuf;

use super::*;
use crate::model::Link;

fn link(ifindex: u32, name: &str, kind: Option<&str>) -> (u32, Link) {
    let link = Link {
        kind: kind.map(str::to_owned),
        ..Link::ethernet(ifindex, name)
    };
    (ifindex, link)
}

fn route(destination: &str, ifindex: u32, gateway: Option<&str>, priority: u32) -> Route {
    Route {
        destination: destination.parse().unwrap(),
        ifindex: Some(ifindex),
        gateway: gateway.map(|gateway| gateway.parse().unwrap()),
        priority,
        mtu: None,
        refused: false,
    }
}

fn found(name: &str, interface: &str, addresses: &[&str]) -> Found {
    Found {
        name: name.to_owned(),
        usual_port: interface == format!("ve-{name}"),
        port: 3,
        interface: interface.to_owned(),
        mac: None,
        routes: addresses
            .iter()
            .map(|address| route(address, 3, None, 0))
            .collect(),
    }
}

fn snapshot(declared: &[(&str, Option<&str>, &[&str])]) -> Snapshot {
    let mut snapshot = Snapshot::default();
    for (name, interface, addresses) in declared {
        snapshot.declarations.insert(
            (*name).to_owned(),
            Declaration {
                name: (*name).to_owned(),
                source: SourceKind::Config,
                path: PathBuf::new(),
                interface: interface.map(str::to_owned),
                addresses: addresses.iter().map(|one| one.parse().unwrap()).collect(),
                tenant: None,
                mac: None,
                vlan: None,
                any_mac: false,
                sources: Vec::new(),
            },
        );
    }
    snapshot
}

#[test]
fn machines_stand_to_declarations() {
    const A: &str = "203.0.113.2/32";
    const B: &str = "2001:db8::2/128";
    let declared = |name: &str| Standing::Declared(name.to_owned());
    let taken = |prefix: &str, holder: &str| Standing::Taken {
        prefix: prefix.parse().unwrap(),
        holder: holder.to_owned(),
    };
    let web = found("web", "ve-web", &[A, B]);
    let tap = found("tap0", "tap0", &[A, B]);
    for (machine, files, expected) in [
        (&web, &[][..], Standing::New),
        (
            &web,
            &[("db", None, &["203.0.113.3/32"][..])],
            Standing::New,
        ),
        (&web, &[("web", None, &[A, B])], declared("web")),
        (
            &web,
            &[("web", None, &[A, B, "203.0.113.3/32"])],
            declared("web"),
        ),
        (&web, &[("web", Some("ve-web"), &[B, A])], declared("web")),
        (&web, &[("web", None, &[A])], Standing::Differs),
        (&web, &[("web", Some("tap9"), &[A, B])], Standing::Differs),
        (&web, &[("www", Some("ve-web"), &[A, B])], declared("www")),
        (&web, &[("www", None, &[A, B])], taken(A, "www")),
        (&web, &[("www", Some("ve-web"), &[B])], taken(B, "www")),
        (&tap, &[("tap0", Some("tap0"), &[A, B])], declared("tap0")),
        (&tap, &[("tap0", None, &[A, B])], Standing::Differs),
    ] {
        assert_eq!(standing(machine, &snapshot(files)), expected, "{files:?}");
    }
    let mut unusable = Snapshot::default();
    let blamed = (SourceKind::Config, PathBuf::new());
    unusable.unusable.insert("web".to_owned(), blamed);
    assert_eq!(standing(&web, &unusable), Standing::Differs);
}

#[test]
fn usual_ports_are_not_named() {
    assert_eq!(
        declaration(&found("web", "ve-web", &["203.0.113.2/32"])).interface,
        None
    );
    assert_eq!(
        declaration(&found("tap0", "tap0", &["203.0.113.2/32"])).interface,
        Some("tap0".to_owned())
    );
}

/// eth0 (2, uplink), ve-web (3), br0.5 (4, with the network's router as a proxy
/// neighbor).
fn scene<'a>(routes: &'a [Route], complete: bool) -> (Host, Unfollowed, Survey, Replaced<'a>) {
    let host = Host {
        links: [
            link(2, "eth0", None),
            link(3, "ve-web", Some("veth")),
            link(4, "br0.5", Some("bridge")),
        ]
        .into(),
        ..Host::default()
    };
    let proxy = |address: &str, ifindex: Option<u32>| Proxy {
        ifindex,
        address: address.parse().unwrap(),
    };
    let unfollowed = Unfollowed {
        proxies: vec![
            proxy("203.0.113.1", Some(4)),
            proxy("203.0.113.2", Some(2)),
            proxy("2001:db8:1::7", None),
            proxy("203.0.113.66", Some(2)),
        ],
        stations: Vec::new(),
    };
    let survey = Survey {
        uplinks: [2].into(),
        ..Survey::default()
    };
    let replaced = Replaced {
        prefixes: routes.iter().map(|route| route.destination).collect(),
        routes: routes.iter().collect(),
        complete,
    };
    (host, unfollowed, survey, replaced)
}

#[test]
fn cleanup_takes_answers_before_routes() {
    let routes = [
        route("203.0.113.2/32", 3, None, 0),
        route("203.0.113.8/29", 3, Some("fe80::2"), 7),
        route("2001:db8::2/128", 4, None, 1024),
        route("2001:db8:1::/64", 4, Some("2001:db8::2"), 512),
    ];
    let settings = |key: &str| {
        let on = [
            "ipv4/ip_forward",
            "ipv6/conf/all/forwarding",
            "ipv4/conf/eth0/proxy_arp",
            "ipv4/conf/default/proxy_arp",
            "ipv4/conf/br0.5/proxy_arp",
            "ipv6/conf/all/proxy_ndp",
            "ipv6/conf/wg0/proxy_ndp",
        ];
        Some(u8::from(on.contains(&key)).to_string())
    };
    let (host, unfollowed, survey, replaced) = scene(&routes, true);
    let whole = cleanup(&host, &unfollowed, &survey, &replaced, settings);
    let answers = [
        "ip neigh del proxy 203.0.113.2 dev eth0",
        "ip neigh del proxy 2001:db8:1::7",
    ];
    let ways = [
        "ip route del 203.0.113.8/29 via inet6 fe80::2 dev ve-web metric 7",
        "ip route del 2001:db8:1::/64 via 2001:db8::2 dev br0.5 metric 512",
        "ip route del 203.0.113.2/32 dev ve-web",
        "ip route del 2001:db8::2/128 dev br0.5",
    ];
    let mut expected = vec!["ip neigh del proxy 203.0.113.1 dev br0.5"];
    expected.extend(answers);
    expected.extend([
        "sysctl -w net/ipv4/conf/br0.5/proxy_arp=0",
        "sysctl -w net.ipv4.conf.eth0.proxy_arp=0",
        "sysctl -w net.ipv4.conf.default.proxy_arp=0",
        "sysctl -w net.ipv6.conf.all.proxy_ndp=0",
    ]);
    expected.extend(ways);
    assert_eq!(whole.commands, expected);
    assert_eq!(
        whole.shared,
        [
            "sysctl -w net.ipv4.ip_forward=0",
            "sysctl -w net.ipv6.conf.all.forwarding=0"
        ]
    );

    // What others need stays.
    let (host, unfollowed, survey, replaced) = scene(&routes, false);
    let partly = cleanup(&host, &unfollowed, &survey, &replaced, settings);
    assert_eq!(partly.commands, [&answers[..], &ways].concat());
    assert_eq!(partly.shared, [""; 0]);

    // Without an old setup, settings are somebody else's.
    let (host, unfollowed, survey, replaced) = scene(&[], true);
    assert_eq!(
        cleanup(&host, &unfollowed, &survey, &replaced, settings),
        Cleanup::default()
    );
}

#[test]
fn words_are_quoted_for_the_shell() {
    for (word, expected) in [("eth0.5", "eth0.5"), ("a;b", "'a;b'"), ("a'b", "'a'\\''b'")] {
        assert_eq!(quoted(word), expected);
    }
}
