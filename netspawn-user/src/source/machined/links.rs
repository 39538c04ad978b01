//! From what machined tells of machines to their links. Pure, but for what it
//! asks the kernel through [`Kernel`].

use std::collections::{BTreeMap, BTreeSet};

use crate::{
    model::{Host, Link, Peer},
    source::Registered,
};

/// What systemd-nspawn calls a machine's end of its main link.
const HOST0: &str = "host0";

/// What machined knows of one machine.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Registration {
    /// Whether a user has registered it who is not root: name and links are that one's
    /// word, which counts for nothing here.
    pub by_user: bool,
    /// Process id of its first process, `Leader`; 0 when there is none.
    pub leader: u32,
    /// `NetworkInterfaces`: the host's end of its link, or with `Bridge=` and
    /// `Zone=` the bridge; nothing for links that `VirtualEthernetExtra=` makes.
    pub interfaces: Vec<u32>,
}

/// Something that machined tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A machine is registered, or is so still.
    New(String, Registration),
    /// A machine has ended.
    Removed(String),
    /// All machines there are have been told.
    Listed,
    /// Nothing is told for now: there is no machined here.
    Absent,
}

/// What is to be asked of the kernel.
pub trait Kernel {
    /// The id that this network namespace has for that of a process. `None`
    /// when it has none, so that no link leads there, or the process is gone.
    fn namespace_id(&mut self, pid: u32) -> Option<i32>;

    /// The name of a link's other end, in its own namespace.
    fn peer_name(&mut self, peer: Peer) -> Option<String>;
}

/// The machines that machined knows.
#[derive(Debug, Default)]
pub struct Machines {
    told: bool,
    running: BTreeMap<String, Machine>,
    /// Those that have ended since links were last looked at.
    leaving: Vec<(String, Machine)>,
    ended: BTreeSet<u32>,
    /// Those whose link is not clear, which is said once.
    unclear: BTreeSet<String>,
}

#[derive(Debug, Default)]
struct Machine {
    registration: Registration,
    /// Id of its network namespace, which stays as long as the namespace does.
    namespace: Option<i32>,
    /// Its link when that was last looked at.
    port: Option<u32>,
}

/// What a look at the host's links finds for a machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Found {
    Port(u32),
    Nothing,
    /// More than one, none of which stands out.
    Unclear,
}

impl Machines {
    /// Takes in what machined tells; whether that changes anything.
    pub fn apply(&mut self, event: Event) -> bool {
        match event {
            Event::New(name, registration) => {
                if let Some(known) = self.running.get(&name)
                    && known.registration == registration
                {
                    return false;
                }
                let machine = Machine {
                    registration,
                    ..Machine::default()
                };
                if let Some(old) = self.running.insert(name.clone(), machine) {
                    self.leaving.push((name, old));
                }
                true
            }
            Event::Removed(name) => match self.running.remove(&name) {
                Some(old) => {
                    self.leaving.push((name, old));
                    true
                }
                None => false,
            },
            Event::Listed => !std::mem::replace(&mut self.told, true),
            Event::Absent => false,
        }
    }

    /// Finds the machines' links among those of the host.
    pub fn registered(&mut self, host: &Host, kernel: &mut impl Kernel) -> Registered {
        let mut inside: BTreeMap<i32, Vec<&Link>> = BTreeMap::new();
        for link in host.links.values() {
            if let Some(namespace) = link.peer.and_then(|peer| peer.netnsid) {
                inside.entry(namespace).or_default().push(link);
            }
        }
        let mut look = Look {
            host,
            inside,
            kernel,
        };
        let mut ports = BTreeMap::new();
        let of_root = self.running.iter_mut();
        for (name, machine) in of_root.filter(|(_, machine)| !machine.registration.by_user) {
            let found = look.find(name, machine);
            machine.port = None;
            match found {
                Found::Port(ifindex) => {
                    machine.port = Some(ifindex);
                    ports.insert(name.clone(), ifindex);
                }
                Found::Unclear if self.unclear.insert(name.clone()) => tracing::warn!(
                    "machine {name} has several links, and none is called ve-{name}, vb-{name}, \
                     or {HOST0} on the machine's side; write `interface = \"…\"` in its file"
                ),
                _ => {}
            }
        }
        self.unclear
            .retain(|name| self.running.get(name).is_some_and(|m| m.port.is_none()));
        for (name, mut machine) in std::mem::take(&mut self.leaving) {
            if machine.registration.by_user {
                continue;
            }
            // Its process id may be another process's by now.
            machine.registration.leader = 0;
            let found = look.find(&name, &mut machine);
            self.ended.extend(machine.port);
            if let Found::Port(ifindex) = found {
                self.ended.insert(ifindex);
            }
        }
        // Without carrier a link needs no mention, and a tap that gets it back
        // is somebody's again.
        let taken: BTreeSet<u32> = ports.values().copied().collect();
        self.ended.retain(|ifindex| {
            !taken.contains(ifindex) && host.links.get(ifindex).is_some_and(|link| link.carrier)
        });
        Registered {
            told: self.told,
            ports,
            ended: self.ended.clone(),
        }
    }
}

/// One look at the host's links.
struct Look<'a, K> {
    host: &'a Host,
    /// Links by the namespace of their other end.
    inside: BTreeMap<i32, Vec<&'a Link>>,
    kernel: &'a mut K,
}

impl<K: Kernel> Look<'_, K> {
    fn find(&mut self, name: &str, machine: &mut Machine) -> Found {
        let interfaces = &machine.registration.interfaces;
        let told: Vec<&Link> = interfaces
            .iter()
            .filter_map(|ifindex| self.host.links.get(ifindex))
            .filter(|link| link.kind.as_deref() != Some("bridge"))
            .collect();
        if let [link] = told[..] {
            return Found::Port(link.ifindex);
        }
        let leader = machine.registration.leader;
        if machine.namespace.is_none() && leader != 0 {
            machine.namespace = self.kernel.namespace_id(leader);
        }
        let reachable = machine
            .namespace
            .and_then(|namespace| self.inside.get(&namespace))
            .map_or(&[][..], Vec::as_slice);
        let candidates = if told.is_empty() {
            reachable
        } else {
            told.as_slice()
        };
        let names = [format!("ve-{name}"), format!("vb-{name}")];
        if let Some(link) = candidates
            .iter()
            .find(|link| names.iter().any(|name| is_called(link, name)))
        {
            return Found::Port(link.ifindex);
        }
        let candidates: Vec<&Link> = candidates
            .iter()
            .copied()
            .filter(|link| reachable.iter().any(|other| other.ifindex == link.ifindex))
            .collect();
        // A main link that machined has told of may be away for a moment; a
        // further link of the machine must not take its place.
        if let [link] = candidates[..]
            && (interfaces.is_empty() || !told.is_empty())
        {
            return Found::Port(link.ifindex);
        }
        let main: Vec<u32> = candidates
            .iter()
            .filter(|link| {
                link.peer
                    .and_then(|peer| self.kernel.peer_name(peer))
                    .is_some_and(|name| name == HOST0)
            })
            .map(|link| link.ifindex)
            .collect();
        match main[..] {
            [ifindex] => Found::Port(ifindex),
            _ if candidates.is_empty() && told.is_empty() => Found::Nothing,
            _ => Found::Unclear,
        }
    }
}

fn is_called(link: &Link, name: &str) -> bool {
    link.name == name || link.alt_names.iter().any(|alt| alt == name)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Namespace ids by process, and names of links' other ends by ifindex.
    #[derive(Default)]
    struct Fake {
        namespaces: BTreeMap<u32, i32>,
        peers: BTreeMap<u32, &'static str>,
    }

    impl Kernel for Fake {
        fn namespace_id(&mut self, pid: u32) -> Option<i32> {
            self.namespaces.get(&pid).copied()
        }

        fn peer_name(&mut self, peer: Peer) -> Option<String> {
            self.peers.get(&peer.ifindex).map(|name| (*name).to_owned())
        }
    }

    /// A link in words: `10 ve-web veth@5`: ifindex, name, kind and the id of
    /// the other end's namespace; `+NAME` is an alternative name, `off` says
    /// that there is no carrier. The other end has the ifindex times 100.
    fn link(text: &str) -> Link {
        let mut words = text.split(' ');
        let ifindex = words.next().unwrap().parse().unwrap();
        let mut link = Link::ethernet(ifindex, words.next().unwrap());
        for word in words {
            if let Some(name) = word.strip_prefix('+') {
                link.alt_names.push(name.to_owned());
            } else if let Some(id) = word.strip_prefix("veth@") {
                link.kind = Some("veth".to_owned());
                link.peer = Some(Peer {
                    ifindex: ifindex * 100,
                    netnsid: Some(id.parse().unwrap()),
                    mac: None,
                });
            } else if word == "off" {
                link.carrier = false;
            } else {
                link.kind = Some(word.to_owned());
            }
        }
        link
    }

    fn host(links: &[&str]) -> Host {
        let links = links.iter().map(|text| link(text));
        Host {
            links: links.map(|link| (link.ifindex, link)).collect(),
            ..Host::default()
        }
    }

    fn new(name: &str, leader: u32, interfaces: &[u32]) -> Event {
        Event::New(
            name.to_owned(),
            Registration {
                by_user: false,
                leader,
                interfaces: interfaces.to_vec(),
            },
        )
    }

    fn removed(name: &str) -> Event {
        Event::Removed(name.to_owned())
    }

    #[test]
    fn port_is_the_one_that_machined_or_the_namespace_tells() {
        // Process 7 is in namespace 5, process 1 in the host's own.
        struct Row {
            what: &'static str,
            links: &'static [&'static str],
            leader: u32,
            interfaces: &'static [u32],
            host0: &'static [u32],
            port: Option<u32>,
        }
        let row = Row {
            what: "",
            links: &[],
            leader: 7,
            interfaces: &[],
            host0: &[],
            port: None,
        };
        let rows = [
            Row {
                what: "the veth that machined names",
                links: &["2 eth0", "10 ve-web veth@5", "11 extra veth@5"],
                interfaces: &[10],
                port: Some(10),
                ..row
            },
            Row {
                what: "the tap of a virtual machine",
                links: &["2 eth0", "10 vnet0 tun"],
                leader: 1,
                interfaces: &[10],
                port: Some(10),
                ..row
            },
            Row {
                what: "of several named, the one with the machine's name",
                links: &["10 a veth@5", "11 x veth@5 +vb-web"],
                interfaces: &[10, 11],
                port: Some(11),
                ..row
            },
            Row {
                what: "of several named, the one that leads to the machine",
                links: &["10 a veth@4", "11 b veth@5"],
                interfaces: &[10, 11],
                port: Some(11),
                ..row
            },
            Row {
                what: "several taps",
                links: &["10 vnet0 tun", "11 vnet1 tun"],
                leader: 1,
                interfaces: &[10, 11],
                port: None,
                ..row
            },
            Row {
                what: "behind the bridge that machined names",
                links: &["3 vz-a bridge", "9 ve-db veth@4", "10 vb-web veth@5"],
                interfaces: &[3],
                host0: &[10],
                port: Some(10),
                ..row
            },
            Row {
                what: "behind a bridge, beside a further link",
                links: &["3 br0 bridge", "10 extra veth@5", "11 vb-w veth@5 +vb-web"],
                interfaces: &[3],
                port: Some(11),
                ..row
            },
            Row {
                what: "behind a bridge, renamed",
                links: &["3 br0 bridge", "10 extra veth@5", "11 other veth@5"],
                interfaces: &[3],
                host0: &[11],
                port: Some(11),
                ..row
            },
            Row {
                what: "behind a bridge while only a further link is there",
                links: &["3 br0 bridge", "10 extra veth@5"],
                interfaces: &[3],
                port: None,
                ..row
            },
            Row {
                what: "made again after machined has named it",
                links: &["2 eth0", "12 ve-web veth@5"],
                interfaces: &[10],
                port: Some(12),
                ..row
            },
            Row {
                what: "gone, with a further link left",
                links: &["2 eth0", "11 extra veth@5"],
                interfaces: &[10],
                port: None,
                ..row
            },
            Row {
                what: "a further link alone",
                links: &["2 eth0", "11 extra veth@5", "12 other veth@4"],
                port: Some(11),
                ..row
            },
            Row {
                what: "two further links",
                links: &["11 one veth@5", "12 two veth@5"],
                port: None,
                ..row
            },
            Row {
                what: "two further links, one of them called as the main one",
                links: &["11 one veth@5", "12 two veth@5"],
                host0: &[12],
                port: Some(12),
                ..row
            },
            Row {
                what: "in the host's own namespace",
                links: &["2 eth0", "10 ve-db veth@5"],
                leader: 1,
                port: None,
                ..row
            },
            Row {
                what: "not there yet",
                links: &["2 eth0"],
                interfaces: &[10],
                port: None,
                ..row
            },
        ];
        for row in rows {
            let mut kernel = Fake {
                namespaces: [(7, 5)].into(),
                peers: row
                    .host0
                    .iter()
                    .map(|ifindex| (ifindex * 100, HOST0))
                    .collect(),
            };
            let mut machines = Machines::default();
            machines.apply(new("web", row.leader, row.interfaces));
            let found = machines.registered(&host(row.links), &mut kernel);
            assert_eq!(found.ports.get("web").copied(), row.port, "{}", row.what);
        }
    }

    #[test]
    fn namespace_that_has_no_id_yet_is_asked_for_again() {
        let mut machines = Machines::default();
        machines.apply(new("web", 7, &[]));
        let mut kernel = Fake::default();
        let host = host(&["11 extra veth@5"]);
        assert!(machines.registered(&host, &mut kernel).ports.is_empty());
        kernel.namespaces.insert(7, 5);
        assert_eq!(machines.registered(&host, &mut kernel).ports["web"], 11);
        // The leader's end comes before the machine's.
        kernel.namespaces.clear();
        assert_eq!(machines.registered(&host, &mut kernel).ports["web"], 11);
    }

    #[test]
    fn link_of_an_ended_machine_is_ended_until_it_is_gone() {
        let mut machines = Machines::default();
        let mut kernel = Fake::default();
        machines.apply(new("web", 0, &[10]));
        let there = host(&["10 ve-web veth@5"]);
        machines.registered(&there, &mut kernel);
        assert!(machines.apply(removed("web")));
        for _ in 0..2 {
            let found = machines.registered(&there, &mut kernel);
            assert_eq!(found.ports, [].into());
            assert_eq!(found.ended, [10].into());
        }
        let found = machines.registered(&host(&["2 eth0"]), &mut kernel);
        assert_eq!(found.ended, [].into());
        assert_eq!(machines.registered(&there, &mut kernel).ended, [].into());
    }

    #[test]
    fn machine_that_came_and_went_between_looks_leaves_an_ended_link() {
        let mut machines = Machines::default();
        machines.apply(new("web", 0, &[10]));
        machines.apply(removed("web"));
        let found = machines.registered(&host(&["10 ve-web veth@5"]), &mut Fake::default());
        assert_eq!((found.ports, found.ended), ([].into(), [10].into()));
    }

    #[test]
    fn link_registered_again_is_not_ended() {
        let mut machines = Machines::default();
        let tap = host(&["10 vnet0 tun"]);
        let mut kernel = Fake::default();
        machines.apply(new("vm", 0, &[10]));
        machines.registered(&tap, &mut kernel);
        machines.apply(removed("vm"));
        assert_eq!(machines.registered(&tap, &mut kernel).ended, [10].into());
        machines.apply(new("other", 0, &[10]));
        let found = machines.registered(&tap, &mut kernel);
        assert_eq!(found.ended, [].into());
        assert_eq!(found.ports["other"], 10);
    }

    #[test]
    fn link_that_lost_its_carrier_is_not_ended() {
        let mut machines = Machines::default();
        let mut kernel = Fake::default();
        machines.apply(new("vm", 0, &[10]));
        machines.apply(removed("vm"));
        machines.registered(&host(&["10 vnet0 tun"]), &mut kernel);
        machines.registered(&host(&["10 vnet0 tun off"]), &mut kernel);
        let found = machines.registered(&host(&["10 vnet0 tun"]), &mut kernel);
        assert_eq!(found.ended, [].into());
    }

    #[test]
    fn machine_registered_anew_ends_its_former_link() {
        let mut machines = Machines::default();
        let links = host(&["10 ve-web veth@5", "12 ve-web2 veth@6"]);
        machines.apply(new("web", 0, &[10]));
        machines.registered(&links, &mut Fake::default());
        assert!(machines.apply(new("web", 0, &[12])));
        let found = machines.registered(&links, &mut Fake::default());
        assert_eq!(found.ports["web"], 12);
        assert_eq!(found.ended, [10].into());
    }

    #[test]
    fn registration_by_a_user_counts_for_nothing() {
        let mut machines = Machines::default();
        let mut kernel = Fake::default();
        kernel.namespaces.insert(7, 5);
        let links = host(&["10 ve-web veth@4", "11 other veth@5"]);
        let by_user = |name: &str, interfaces: &[u32]| {
            let Event::New(name, registration) = new(name, 7, interfaces) else {
                unreachable!()
            };
            let by_user = true;
            Event::New(
                name,
                Registration {
                    by_user,
                    ..registration
                },
            )
        };
        // Neither what it says nor where its leader is, under whatever name.
        machines.apply(by_user("web", &[10]));
        machines.apply(by_user("db", &[]));
        let found = machines.registered(&links, &mut kernel);
        assert_eq!((found.ports, found.ended), ([].into(), [].into()));
        // Nor does it end a link by going.
        machines.apply(removed("web"));
        assert_eq!(machines.registered(&links, &mut kernel).ended, [].into());
        // Root's machine of that name, after it.
        machines.apply(new("web", 0, &[10]));
        assert_eq!(machines.registered(&links, &mut kernel).ports["web"], 10);
        machines.apply(by_user("web", &[11]));
        let found = machines.registered(&links, &mut kernel);
        assert_eq!(found.ports, [].into());
        assert_eq!(found.ended, [10].into());
    }

    #[test]
    fn nothing_is_told_before_the_list() {
        let mut machines = Machines::default();
        let mut kernel = Fake::default();
        assert!(machines.apply(new("web", 0, &[10])));
        assert!(!machines.apply(Event::Absent));
        assert!(!machines.registered(&Host::default(), &mut kernel).told);
        assert!(machines.apply(Event::Listed));
        assert!(!machines.apply(Event::Listed));
        assert!(!machines.apply(new("web", 0, &[10])));
        assert!(!machines.apply(removed("db")));
        assert!(machines.registered(&Host::default(), &mut kernel).told);
    }
}
