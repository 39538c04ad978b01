//! The machines' own ends of their links, and the network configuration in their
//! images. Their namespaces are entered to read and nothing else.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::IpAddr,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use ipnet::IpNet;

use super::networkd::{file_for_veth, gives_ipv4_link_local};
use crate::{
    guest::{Image, Networkd},
    model::{Host, Link},
    net::{ethtool::Ethtool, namespace, netlink::Netlink, read},
    registry::Desired,
};

/// How long all machines together may take.
const TIME: Duration = Duration::from_secs(3);
/// Where images are looked for (machinectl(1)).
const IMAGES: &str = "/var/lib/machines";
/// Folders of `.network` files in an image, that of the highest rank first.
const FOLDERS: [&str; 3] = [
    "etc/systemd/network",
    "usr/lib/systemd/network",
    "lib/systemd/network",
];

/// A machine's end of its link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Guest {
    /// A file that stands for its network namespace.
    pub namespace: PathBuf,
    /// The interface's name there.
    pub interface: String,
    /// Its MTU, in bytes of IP packet.
    pub mtu: u32,
    /// Whether it is set up.
    pub admin_up: bool,
    /// Its IPv4 link-local addresses.
    pub link_local: Vec<IpNet>,
    /// Whether its GRO is on, where the kernel tells.
    pub gro: Option<bool>,
}

/// The machines, as far as they could be read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Guests {
    /// By name.
    pub running: BTreeMap<String, Guest>,
    /// Those that have a veth, and could not be read.
    pub unread: Vec<String>,
    /// Folders of images whose networkd gives an IPv4 link-local address, with the
    /// file that says so, by machine.
    pub images: BTreeMap<String, (PathBuf, PathBuf)>,
}

/// Reads them.
#[expect(
    clippy::disallowed_methods,
    reason = "what cannot be read is unknown to `check`, which then says nothing of it"
)]
pub fn read(desired: &Desired, host: &Host) -> Guests {
    let mut guests = Guests::default();
    let mut peers = Vec::new();
    for machine in &desired.machines {
        let link = machine.ifindex.and_then(|index| host.links.get(&index));
        if let Some(peer) = link.and_then(|link| link.peer)
            && let Some(netnsid) = peer.netnsid
        {
            peers.push((machine.name.clone(), peer.ifindex, netnsid));
        }
        let path = Path::new(IMAGES).join(&machine.name);
        if let Some(file) = link_local_file(&path) {
            guests.images.insert(machine.name.clone(), (path, file));
        }
    }
    let ids: BTreeSet<i32> = peers.iter().map(|(_, _, id)| *id).collect();
    let paths = match Netlink::open() {
        Ok(mut netlink) => namespace::find(&mut netlink, ids),
        Err(_) => BTreeMap::new(),
    };
    let deadline = Instant::now() + TIME;
    for (name, ifindex, netnsid) in peers {
        let path = paths.get(&netnsid).filter(|_| Instant::now() < deadline);
        let guest = path.and_then(|path| {
            let file = path.clone();
            namespace::inside(Some(path.clone()), move || end(ifindex, file)).ok()
        });
        match guest {
            Some(guest) => {
                guests.running.insert(name, guest);
            }
            None => guests.unread.push(name),
        }
    }
    guests
}

/// Reads an interface of this thread's namespace.
#[expect(
    clippy::disallowed_methods,
    reason = "what cannot be read is unknown to `check`, which then says nothing of it"
)]
fn end(ifindex: u32, namespace: PathBuf) -> io::Result<Guest> {
    let mut netlink = Netlink::open().map_err(io::Error::other)?;
    let link: Link = netlink
        .get(read::get_link(ifindex), |message| read::link(&message))
        .map_err(io::Error::other)?;
    let addresses = netlink
        .dump(read::get_addresses(), |message| read::address(&message))
        .map_err(io::Error::other)?;
    let link_local = |(index, address): &(u32, IpNet)| {
        *index == ifindex && matches!(address.addr(), IpAddr::V4(ip) if ip.is_link_local())
    };
    let features = Ethtool::open().and_then(|mut tool| tool.features(ifindex));
    Ok(Guest {
        namespace,
        interface: link.name,
        mtu: link.mtu,
        admin_up: link.admin_up,
        link_local: addresses
            .into_iter()
            .filter(link_local)
            .map(|(_, address)| address)
            .collect(),
        gro: features
            .ok()
            .map(|features| features.active.contains("rx-gro")),
    })
}

/// The file in an image by which its networkd gives `host0` an IPv4 link-local
/// address.
#[expect(
    clippy::disallowed_methods,
    reason = "what cannot be read is unknown to `check`, which then says nothing of it"
)]
fn link_local_file(path: &Path) -> Option<PathBuf> {
    let image = Image::open(path).ok()?;
    if image.networkd() != Networkd::Enabled {
        return None;
    }
    let (file, unit) = file_for_veth(
        &FOLDERS.map(PathBuf::from),
        |folder| image.list(folder),
        |file| image.read(file),
        "host0",
        true,
    )?;
    let setting = unit.last("Network", "LinkLocalAddressing")?;
    gives_ipv4_link_local(setting).then_some(file)
}
