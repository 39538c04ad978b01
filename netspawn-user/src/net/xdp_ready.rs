//! Whether the machines' ends of veths take frames that XDP redirects to them.
//!
//! A veth drops what XDP redirects to its peer, without a word, unless its own
//! end runs NAPI: with an XDP program on it, or with GRO on. Only the machine's
//! namespace tells the latter, so it is entered, to read and nothing else.

use std::{collections::BTreeMap, io, os::unix::net::UnixDatagram, path::PathBuf};

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
    let mut paths = namespace::find(netlink, open.keys().copied().flatten().collect());
    for (netnsid, indices) in open {
        let path = match netnsid {
            None => None,
            Some(id) => match paths.remove(&id) {
                Some(path) => Some(path),
                None => continue,
            },
        };
        let ifindexes = indices.iter().map(|index| peers[*index].ifindex).collect();
        for (index, gro) in indices.into_iter().zip(gro(path, ifindexes)) {
            found[index] = gro;
        }
    }
    found
}

/// Whether there is an XDP program on a peer.
#[expect(
    clippy::disallowed_methods,
    reason = "a machine that cannot be asked gets no XDP frames, and is asked again"
)]
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

/// Whether GRO is on, for interfaces of a namespace (`None`: of this one).
#[expect(
    clippy::disallowed_methods,
    reason = "a machine that cannot be asked gets no XDP frames, and is asked again"
)]
fn gro(namespace: Option<PathBuf>, ifindexes: Vec<u32>) -> Vec<Option<bool>> {
    let count = ifindexes.len();
    namespace::inside(namespace, move || {
        let socket = UnixDatagram::unbound()?;
        let answers = ifindexes.into_iter();
        Ok(answers
            .map(|ifindex| gro_of(&socket, ifindex).ok())
            .collect())
    })
    .unwrap_or_else(|_| vec![None; count])
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
