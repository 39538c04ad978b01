//! What is looked at before anything is changed.

use crate::model::{Host, Link};

/// `ARPHRD_ETHER`: frames begin with an Ethernet header.
const ETHERNET: u16 = libc::ARPHRD_ETHER;
/// Masters that take a port's frames before its own tc hook is of use.
const TAKING: [&str; 4] = ["bridge", "bond", "team", "openvswitch"];

/// Why an interface cannot be an uplink, and what can.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UplinkError {
    /// No interface has that name.
    #[error("{name}: there is no such interface; {}", offer(interfaces))]
    Unknown {
        /// What was asked for.
        name: String,
        /// The Ethernet interfaces there are, the likeliest first.
        interfaces: Vec<String>,
    },
    /// It is a port of another interface.
    #[error("{name}: is a port of the {kind} {master}; attach to {master} instead")]
    Port {
        /// What was asked for.
        name: String,
        /// The master.
        master: String,
        /// What the master is.
        kind: String,
    },
    /// Its frames have no Ethernet header.
    #[error("{name}: is {what}, not an Ethernet interface; {}", offer(interfaces))]
    NotEthernet {
        /// What was asked for.
        name: String,
        /// What it is.
        what: String,
        /// The Ethernet interfaces there are, the likeliest first.
        interfaces: Vec<String>,
    },
}

fn offer(interfaces: &[String]) -> String {
    if interfaces.is_empty() {
        "there is no Ethernet interface here".to_owned()
    } else {
        format!("Ethernet interfaces here: {}", interfaces.join(", "))
    }
}

/// The interface of that name, if it can be an uplink.
pub fn uplink_check<'a>(host: &'a Host, name: &str) -> Result<&'a Link, UplinkError> {
    let Some(link) = host.link(name) else {
        return Err(UplinkError::Unknown {
            name: name.to_owned(),
            interfaces: candidates(host, name),
        });
    };
    if link.hardware != ETHERNET {
        return Err(UplinkError::NotEthernet {
            name: name.to_owned(),
            what: match link.hardware {
                libc::ARPHRD_LOOPBACK => "the loopback interface".to_owned(),
                hardware => match &link.kind {
                    Some(kind) => format!("of kind {kind}"),
                    None => format!("of hardware type {hardware}"),
                },
            },
            interfaces: candidates(host, name),
        });
    }
    if let Some(master) = taking_master(host, link) {
        return Err(UplinkError::Port {
            name: name.to_owned(),
            master: master.name.clone(),
            kind: master.kind.clone().unwrap_or_default(),
        });
    }
    Ok(link)
}

/// The interface that has a link's frames in the end: the outermost bridge or
/// bond that it is a port of, or the link itself.
pub fn outermost<'a>(host: &'a Host, link: &'a Link) -> &'a Link {
    let mut link = link;
    // The kernel nests eight at most (`MAX_NEST_DEV`).
    for _ in 0..8 {
        match taking_master(host, link) {
            Some(master) => link = master,
            None => break,
        }
    }
    link
}

/// The master that makes a link unfit; a VRF does not.
fn taking_master<'a>(host: &'a Host, link: &Link) -> Option<&'a Link> {
    let master = host.links.get(&link.master?)?;
    let kind = master.kind.as_deref()?;
    TAKING.contains(&kind).then_some(master)
}

/// Names that would pass, the ones most like `name` first.
fn candidates(host: &Host, name: &str) -> Vec<String> {
    let mut names: Vec<&str> = host
        .links
        .values()
        .filter(|link| link.hardware == ETHERNET && taking_master(host, link).is_none())
        .map(|link| link.name.as_str())
        .collect();
    names.sort_by(|a, b| {
        let likeness = |other| strsim::jaro_winkler(name, other);
        likeness(b).total_cmp(&likeness(a)).then(a.cmp(b))
    });
    names.into_iter().map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host() -> Host {
        let mut host = Host::default();
        let mut add = |ifindex, name: &str, hardware, kind: Option<&str>, master| {
            host.links.insert(
                ifindex,
                Link {
                    ifindex,
                    name: name.to_owned(),
                    alt_names: vec![format!("alt-{name}")],
                    hardware,
                    kind: kind.map(str::to_owned),
                    mac: [2, 0, 0, 0, 0, ifindex as u8],
                    mtu: 1500,
                    admin_up: true,
                    carrier: true,
                    master,
                    vlan: None,
                    peer: None,
                },
            );
        };
        add(1, "lo", libc::ARPHRD_LOOPBACK, None, None);
        add(2, "eth0", 1, None, None);
        add(3, "eth1", 1, None, Some(4));
        add(4, "br0", 1, Some("bridge"), None);
        add(5, "wg0", 65534, Some("wireguard"), None);
        add(6, "eth2", 1, None, Some(7));
        add(7, "red", 1, Some("vrf"), None);
        host
    }

    #[test]
    fn ethernet_passes_by_either_name() {
        for name in ["eth0", "alt-eth0", "br0", "eth2"] {
            assert!(uplink_check(&host(), name).is_ok(), "{name}");
        }
    }

    #[test]
    fn outermost_master_has_the_frames() {
        let mut host = host();
        // eth1 is a port of br0; a VRF takes no frames from its ports.
        for (name, outer) in [("eth0", "eth0"), ("eth1", "br0"), ("eth2", "eth2")] {
            let link = host.link(name).unwrap();
            assert_eq!(outermost(&host, link).name, outer, "{name}");
        }
        host.links.get_mut(&4).unwrap().kind = Some("bond".to_owned());
        host.links.get_mut(&4).unwrap().master = Some(8);
        let mut bridge = host.links[&2].clone();
        (bridge.ifindex, bridge.name, bridge.kind) =
            (8, "br1".to_owned(), Some("bridge".to_owned()));
        host.links.insert(8, bridge);
        assert_eq!(outermost(&host, &host.links[&3]).name, "br1");
    }

    #[test]
    fn unfit_interfaces_are_named_with_what_to_use() {
        for (name, message) in [
            (
                "eth1",
                "eth1: is a port of the bridge br0; attach to br0 instead",
            ),
            (
                "lo",
                "lo: is the loopback interface, not an Ethernet interface; \
                 Ethernet interfaces here: br0, eth0, eth2, red",
            ),
            (
                "wg0",
                "wg0: is of kind wireguard, not an Ethernet interface; \
                 Ethernet interfaces here: br0, eth0, eth2, red",
            ),
            (
                "eht0",
                "eht0: there is no such interface; \
                 Ethernet interfaces here: eth0, eth2, br0, red",
            ),
        ] {
            assert_eq!(
                uplink_check(&host(), name).unwrap_err().to_string(),
                message
            );
        }
        assert_eq!(
            uplink_check(&Host::default(), "eth0")
                .unwrap_err()
                .to_string(),
            "eth0: there is no such interface; there is no Ethernet interface here"
        );
    }
}
