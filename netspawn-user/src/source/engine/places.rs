//! From the places of machines to the ports that are there.

use std::{
    collections::{BTreeMap, HashMap},
    fs::File,
};

use super::{Located, Place};
use crate::{
    gone,
    model::{Host, Link},
    net::{
        namespace,
        netlink::{Error, Netlink},
        read,
    },
};

/// A port where an engine's machine is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Placed {
    /// Its ifindex.
    pub ifindex: u32,
    /// Whether it was found by its name alone.
    pub by_name: bool,
}

/// Where engines' machines are, and the ports that were found there.
#[derive(Default)]
pub struct Places {
    places: Vec<Located>,
    /// ifindex of the port and id of the namespace behind it, by machine. It holds as
    /// long as that link leads to a namespace of that id: neither is given to another
    /// while both exist.
    found: HashMap<String, (Place, u32, i32)>,
    /// Why a port could not be looked for the last time.
    failure: Option<String>,
}

impl std::fmt::Debug for Places {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Places")
            .field("machines", &self.places.len())
            .finish()
    }
}

impl Places {
    /// Machines and their places from now on.
    pub fn set(&mut self, places: Vec<Located>) {
        self.places = places;
    }

    /// The machines that have a port, with its ifindex.
    pub fn located<'a>(
        &'a self,
        ports: &'a BTreeMap<String, Option<Placed>>,
    ) -> impl Iterator<Item = (&'a Located, u32)> {
        let port = |machine: &Located| (*ports.get(&machine.name)?).map(|port| port.ifindex);
        let places = self.places.iter();
        places.filter_map(move |machine| Some((machine, port(machine)?)))
    }

    /// Each machine's port among the host's links, `None` while there is none.
    #[expect(
        clippy::disallowed_methods,
        reason = "the failure is kept, and nothing is changed for it"
    )]
    pub fn ports(&mut self, host: &Host) -> BTreeMap<String, Option<Placed>> {
        if self.places.is_empty() {
            self.found.clear();
            self.failure = None;
            return BTreeMap::new();
        }
        let by_name: HashMap<&str, u32> = host
            .links
            .values()
            .map(|link| (link.name.as_str(), link.ifindex))
            .collect();
        let mut inside: HashMap<i32, Vec<&Link>> = HashMap::new();
        for link in host.links.values() {
            if let Some(id) = link.peer.and_then(|peer| peer.netnsid) {
                inside.entry(id).or_default().push(link);
            }
        }
        self.failure = None;
        let mut before = std::mem::take(&mut self.found);
        let mut netlink = None;
        let mut ports = BTreeMap::new();
        for machine in &self.places {
            let Located { name, place, .. } = machine;
            let port = match place {
                Place::Link(link) => by_name.get(link.as_str()).copied(),
                Place::Namespace { .. } => {
                    let known = before.remove(name).filter(|(old, ifindex, id)| {
                        let link = host.links.get(ifindex);
                        let leads = link.and_then(|link| link.peer?.netnsid);
                        old == place && leads == Some(*id)
                    });
                    let found = match known {
                        Some((_, ifindex, id)) => Some((ifindex, id)),
                        None => look(place, &inside, &mut netlink).unwrap_or_else(|error| {
                            self.failure =
                                Some(format!("cannot look for the port of {name}: {error}"));
                            None
                        }),
                    };
                    if let Some((ifindex, id)) = found {
                        self.found
                            .insert(name.clone(), (place.clone(), ifindex, id));
                    }
                    found.map(|(ifindex, _)| ifindex)
                }
            };
            let by_name = machine.by_name();
            let port = port.map(|ifindex| Placed { ifindex, by_name });
            ports.insert(name.clone(), port);
        }
        ports
    }

    /// Why a port could not be looked for the last time: that it has none is not known then.
    pub fn failure(&self) -> Option<&str> {
        self.failure.as_deref()
    }
}

/// The link into a namespace, and the namespace's id.
fn look(
    place: &Place,
    inside: &HashMap<i32, Vec<&Link>>,
    netlink: &mut Option<Netlink>,
) -> Result<Option<(u32, i32)>, Error> {
    let Place::Namespace {
        path,
        mac,
        interface,
    } = place
    else {
        return Ok(None);
    };
    let netlink = match netlink {
        Some(netlink) => netlink,
        None => netlink.insert(Netlink::open()?),
    };
    let Some(file) = gone::process(File::open(path))? else {
        return Ok(None);
    };
    let Some(id) = namespace::id_of_file(netlink, file)? else {
        return Ok(None);
    };
    let Some(links) = inside.get(&id) else {
        return Ok(None);
    };
    let by_mac = |link: &&&Link| mac.is_some() && link.peer.and_then(|peer| peer.mac) == *mac;
    if let [only] = links.as_slice() {
        return Ok(Some((only.ifindex, id)));
    }
    if let Some(link) = links.iter().find(by_mac) {
        return Ok(Some((link.ifindex, id)));
    }
    for link in links {
        if let Some(peer) = link.peer {
            let name = read::peer_name(netlink, peer.ifindex, id)?;
            if name.is_some() && name == *interface {
                return Ok(Some((link.ifindex, id)));
            }
        }
    }
    Ok(None)
}
