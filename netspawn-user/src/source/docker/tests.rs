use std::path::PathBuf;

use serde_json::{Value, json};

use super::machines::*;
use crate::source::engine::{Machine, Place};

fn networks() -> std::collections::HashMap<String, Network> {
    let network = |id: &str, name: &str, options: Value| {
        let network = json!({ "Id": id, "Name": name, "Options": options });
        Network::read(serde_json::from_value(network).unwrap()).unwrap()
    };
    [
        network("n1", "pub", json!({})),
        network("n2", "acme", json!({ "netspawn.tenant": "acme" })),
    ]
    .into()
}

/// Machines of a container with these labels on these networks (id and last byte), as
/// `name addresses tenant place`, and what is wrong with them.
fn machines(mode: &str, labels: Value, on: &[(&str, &str, u8)]) -> (Vec<Machine>, Vec<String>) {
    let endpoints: serde_json::Map<String, Value> = on
        .iter()
        .map(|(name, id, byte)| {
            let endpoint = json!({
                "NetworkID": id,
                "EndpointID": format!("{id}00000000000000"),
                "MacAddress": format!("02:42:00:00:00:{byte:02x}"),
                "IPAddress": format!("203.0.113.{byte}"),
                "GlobalIPv6Address": "",
            });
            ((*name).to_owned(), endpoint)
        })
        .collect();
    let container = json!({
        "Id": "c", "Names": ["/other/alias", "/web"], "ImageID": "i", "Labels": labels,
        "HostConfig": { "NetworkMode": mode },
        "NetworkSettings": { "Networks": endpoints },
    });
    let container = serde_json::from_value(container).unwrap();
    let image = Labels::from([("netspawn.tenant".to_owned(), "image".to_owned())]);
    let sandbox = Some(PathBuf::from("/run/docker/netns/x"));
    let machines = of(&container, &networks(), Some(&image), sandbox);
    let faults = machines
        .iter()
        .flat_map(|machine| &machine.faults)
        .map(|wrong| format!("{}: {}", wrong.field, wrong.message))
        .collect();
    (machines, faults)
}

fn addresses(machine: &Machine) -> Vec<String> {
    machine.addresses.iter().map(ToString::to_string).collect()
}

#[test]
fn network_of_ours_assigns_addresses_and_tenant() {
    let on = [("acme", "n2", 7), ("pub", "n1", 5), ("plain", "n9", 9)];
    let (machines, faults) = machines("pub", json!({}), &on);
    assert!(faults.is_empty());
    let [first, second] = &machines[..] else {
        panic!("{machines:?}");
    };
    assert_eq!((&*first.name, &*second.name), ("web", "web.acme"));
    assert_eq!(addresses(first), ["203.0.113.5/32"]);
    assert_eq!(addresses(second), ["203.0.113.7/32"]);
    // The default route is one of theirs.
    assert_eq!(first.sources, second.addresses);
    assert_eq!(second.sources, first.addresses);
    assert_eq!(
        (&first.tenant, second.tenant.as_deref()),
        (&None, Some("acme"))
    );
    assert_eq!(first.place, Place::Link("dkn10000000000".to_owned()));
}

#[test]
fn labels_replace_what_a_network_assigns() {
    let labels =
        json!({ "netspawn.addresses": "203.0.113.9, 2001:db8::/64", "netspawn.tenant": "t" });
    let (machines, faults) = machines("acme", labels, &[("acme", "n2", 7)]);
    assert!(faults.is_empty());
    assert_eq!(addresses(&machines[0]), ["203.0.113.9/32", "2001:db8::/64"]);
    assert_eq!(machines[0].tenant.as_deref(), Some("t"));
}

#[test]
fn other_networks_are_found_through_the_namespace() {
    let labels = json!({ "netspawn.addresses": "203.0.113.9", "netspawn.tenant": " " });
    let (machines, faults) = machines("plain", labels, &[("plain", "n9", 9), ("a", "n8", 8)]);
    assert!(faults.is_empty());
    assert_eq!(machines.len(), 1);
    assert_eq!(machines[0].tenant, None);
    let Place::Namespace { mac, .. } = &machines[0].place else {
        panic!("{machines:?}");
    };
    assert_eq!(*mac, Some([2, 0x42, 0, 0, 0, 9]));
}

#[test]
fn labels_of_the_image_and_bad_ones_are_named() {
    for (labels, words) in [
        (
            json!({ "netspawn.tenant": "image" }),
            "netspawn.tenant: \"image\" is the image's label, which does not count",
        ),
        (
            json!({ "netspawn.addresses": "203.0.113.0/24,203.0.113.9/24" }),
            "netspawn.addresses: 203.0.113.9/24 has host bits set",
        ),
        (
            json!({ "netspawn.addresses": "203.0.113.9 203.0.113.9/32" }),
            "netspawn.addresses: 203.0.113.9/32 is given twice",
        ),
    ] {
        let (_, faults) = machines("pub", labels, &[("pub", "n1", 5)]);
        assert_eq!(faults, [words]);
    }
}

#[test]
fn label_of_the_image_takes_nothing_from_what_the_network_has_assigned() {
    let labels = json!({ "netspawn.tenant": "image" });
    let (machines, _) = machines("pub", labels, &[("pub", "n1", 5)]);
    assert!(machines[0].faults.iter().all(|wrong| wrong.left_out));
    assert_eq!(machines[0].tenant, None);
    assert!(!machines[0].addresses.is_empty());
}

#[test]
fn networks_of_others_are_not_containers_of_their_own() {
    for (mode, own) in [
        ("host", false),
        ("container:0123", false),
        ("none", true),
        ("pub", true),
    ] {
        let container = json!({ "HostConfig": { "NetworkMode": mode } });
        let container = serde_json::from_value(container).unwrap();
        assert_eq!(has_own_network(&container), own, "{mode}");
    }
}

proptest::proptest! {
    #[test]
    fn anything_is_read_without_panic(container in crate::mangled::json(json!({
        "Id": "c", "Names": ["/other/alias", "/web"], "ImageID": "i",
        "Labels": {"netspawn.addresses": "203.0.113.5, 2001:db8::/64", "netspawn.tenant": "acme"},
        "HostConfig": { "NetworkMode": "pub" },
        "NetworkSettings": { "Networks": { "pub": {
            "NetworkID": "n1", "EndpointID": "n100000000000000", "MacAddress": "02:42:00:00:00:05",
            "IPAddress": "203.0.113.5", "GlobalIPv6Address": "2001:db8::5",
        } } },
    }))) {
        if let Ok(container) = serde_json::from_value(container) {
            let sandbox = Some(PathBuf::from("/run/docker/netns/x"));
            let _ = of(&container, &networks(), None, sandbox);
            let _ = (ours(&container), has_own_network(&container));
            let _ = (has_link(&container, &networks()), endpoints(&container).count());
        }
    }
}
