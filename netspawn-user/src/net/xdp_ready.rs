//! Whether the machines' ends of veths take frames that XDP redirects to them.
//!
//! A veth drops what XDP redirects to its peer, without a word, unless its own
//! end runs NAPI: with an XDP program on it, or with GRO on. Only the machine's
//! namespace tells the latter, so it is entered, to read and nothing else.

use std::{
    collections::{BTreeMap, HashSet},
    fs::{self, File},
    io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::{fs::MetadataExt, net::UnixDatagram},
    },
    path::PathBuf,
    thread,
};

use nix::sched::{CloneFlags, setns};

use super::{
    namespace,
    netlink::{Netlink, attrs},
    read::{IFINFOMSG, get_link},
};
use crate::model::Peer;

/// `ETHTOOL_GGRO`: reads whether GRO is on.
const ETHTOOL_GGRO: u32 = 0x2b;
/// `IFLA_XDP_ATTACHED`: 0 is "nothing".
const IFLA_XDP_ATTACHED: u16 = 2;

/// For each peer whether it takes XDP frames, `None` where it could not be
/// found out. Looks through the namespaces of all processes once, so that many
/// peers are better asked for together.
pub fn take_xdp(netlink: &mut Netlink, peers: &[Peer]) -> Vec<Option<bool>> {
    let mut found: Vec<Option<bool>> = peers
        .iter()
        .map(|peer| has_xdp(netlink, peer).filter(|has| *has))
        .collect();
    let mut open: BTreeMap<Option<i32>, Vec<usize>> = BTreeMap::new();
    for (index, peer) in peers.iter().enumerate() {
        if found[index].is_none() {
            open.entry(peer.netnsid).or_default().push(index);
        }
    }
    let mut ask = |namespace: Option<OwnedFd>, indices: Vec<usize>| {
        let ifindexes = indices.iter().map(|index| peers[*index].ifindex).collect();
        for (index, gro) in indices.into_iter().zip(gro(namespace, ifindexes)) {
            found[index] = gro;
        }
    };
    if let Some(indices) = open.remove(&None) {
        ask(None, indices);
    }
    let mut seen = HashSet::new();
    for path in namespace_files() {
        if open.is_empty() {
            break;
        }
        let Ok(file) = File::open(&path) else {
            continue;
        };
        if !file
            .metadata()
            .is_ok_and(|data| seen.insert((data.dev(), data.ino())))
        {
            continue;
        }
        let netnsid = namespace::id_of_file(netlink, &file);
        if let Some(indices) = netnsid.and_then(|netnsid| open.remove(&Some(netnsid))) {
            ask(Some(file.into()), indices);
        }
    }
    found
}

/// Whether there is an XDP program on a peer.
fn has_xdp(netlink: &mut Netlink, peer: &Peer) -> Option<bool> {
    let mut request = get_link(peer.ifindex);
    if let Some(netnsid) = peer.netnsid {
        request = request.u32(libc::IFLA_TARGET_NETNSID, netnsid.cast_unsigned());
    }
    netlink
        .get(request, |message| {
            Some(
                message
                    .attrs(IFINFOMSG)
                    .filter(|(kind, _)| *kind == libc::IFLA_XDP)
                    .flat_map(|(_, value)| attrs(value))
                    .any(|(kind, value)| kind == IFLA_XDP_ATTACHED && value != [0]),
            )
        })
        .ok()
}

/// Files that stand for network namespaces: named ones first, as there are
/// fewer.
fn namespace_files() -> impl Iterator<Item = PathBuf> {
    let entries = |folder: &str| {
        fs::read_dir(folder)
            .into_iter()
            .flatten()
            .flatten()
            .map(|entry| entry.path())
    };
    entries("/run/netns").chain(
        entries("/proc")
            .filter(|path| {
                path.file_name()
                    .is_some_and(|name| name.as_encoded_bytes()[0].is_ascii_digit())
            })
            .map(|path| path.join("ns/net")),
    )
}

/// Whether GRO is on, for interfaces of a namespace (`None`: of this one).
fn gro(namespace: Option<OwnedFd>, ifindexes: Vec<u32>) -> Vec<Option<bool>> {
    let count = ifindexes.len();
    // A thread of its own: nothing else is to find itself in that namespace.
    let asked = thread::spawn(move || -> io::Result<Vec<Option<bool>>> {
        if let Some(namespace) = namespace {
            setns(namespace.as_fd(), CloneFlags::CLONE_NEWNET)?;
        }
        let socket = UnixDatagram::unbound()?;
        Ok(ifindexes
            .into_iter()
            .map(|ifindex| gro_of(&socket, ifindex).ok())
            .collect())
    });
    match asked.join() {
        Ok(Ok(answers)) => answers,
        _ => vec![None; count],
    }
}

fn gro_of(socket: &UnixDatagram, ifindex: u32) -> io::Result<bool> {
    let mut value = [ETHTOOL_GGRO, 0];
    // SAFETY: all-zero bytes are a valid `ifreq`.
    let mut ifreq: libc::ifreq = unsafe { std::mem::zeroed() };
    ifreq.ifr_ifru.ifru_ifindex = ifindex.cast_signed();
    super::multicast::ioctl(socket, libc::SIOCGIFNAME, &mut ifreq)?;
    // `ethtool_value` is the command and its value, 32 bits each.
    ifreq.ifr_ifru.ifru_data = value.as_mut_ptr().cast();
    super::multicast::ioctl(socket, libc::SIOCETHTOOL, &mut ifreq)?;
    Ok(value[1] != 0)
}
