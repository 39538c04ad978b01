//! What the parts of the loader tell each other: machine declarations and the
//! state of the host's network.

use std::{collections::BTreeMap, fmt, net::IpAddr, path::PathBuf};

use ipnet::IpNet;
use netspawn_ebpf::wire::Mac;

/// Where a declaration comes from, in order of rank: a lower one wins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SourceKind {
    /// `RUNDIR/machines/NAME.toml`.
    Run,
    /// `CONFIGDIR/machines/NAME.toml`.
    Config,
    /// `[X-Netspawn]` in `NAME.nspawn`.
    Nspawn,
    /// A container of Docker.
    Docker,
    /// An instance of Incus or LXD.
    Incus,
    /// A domain of libvirt.
    Libvirt,
    /// A container that the CNI plugin has connected.
    Cni,
    /// Host routes and proxy neighbors of the kernel.
    Kernel,
}

impl SourceKind {
    /// The name in JSON and in messages.
    pub const fn name(self) -> &'static str {
        match self {
            SourceKind::Run => "run",
            SourceKind::Config => "config",
            SourceKind::Nspawn => "nspawn",
            SourceKind::Docker => "docker",
            SourceKind::Incus => "incus",
            SourceKind::Libvirt => "libvirt",
            SourceKind::Cni => "cni",
            SourceKind::Kernel => "kernel",
        }
    }
}

/// One machine as declared, after the files of higher rank have replaced the
/// keys they name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Declaration {
    /// Machine name.
    pub name: String,
    /// The source of highest rank that names it.
    pub source: SourceKind,
    /// The file of that source, for messages.
    pub path: PathBuf,
    /// Port, when the declaration names it; else `ve-NAME`, `vb-NAME`.
    pub interface: Option<String>,
    /// Prefixes without host bits, in the order given, no duplicates.
    pub addresses: Vec<IpNet>,
    /// Tenant, never empty.
    pub tenant: Option<String>,
    /// Link-layer address of the machine's end.
    pub mac: Option<Mac>,
    /// 802.1Q id on the uplink, 1 to 4094.
    pub vlan: Option<u16>,
    /// Whether it may send from any link-layer address, as a bridge does.
    pub any_mac: bool,
    /// Prefixes that it may send from without owning them, as a router does.
    pub sources: Vec<IpNet>,
}

/// The other end of a veth.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Its ifindex, in its own namespace.
    pub ifindex: u32,
    /// Its namespace's id (`IFLA_LINK_NETNSID`), `None` when it is in ours.
    pub netnsid: Option<i32>,
    /// Its link-layer address, when it could be read.
    pub mac: Option<Mac>,
}

/// An 802.1Q interface's place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Vlan {
    /// ifindex of the interface that carries its tagged frames.
    pub lower: u32,
    /// 802.1Q id, 1 to 4094.
    pub id: u16,
}

/// A network interface of the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// Interface index.
    pub ifindex: u32,
    /// Name.
    pub name: String,
    /// Alternative names (`IFLA_PROP_LIST`).
    pub alt_names: Vec<String>,
    /// Hardware type (`ARPHRD_*`), 1 for Ethernet.
    pub hardware: u16,
    /// `IFLA_INFO_KIND` (`veth`, `tun`, `bridge`…), `None` for hardware.
    pub kind: Option<String>,
    /// Link-layer address; zero where there is none.
    pub mac: Mac,
    /// MTU in bytes of IP packet.
    pub mtu: u32,
    /// `IFF_UP`.
    pub admin_up: bool,
    /// `IFF_LOWER_UP`.
    pub carrier: bool,
    /// ifindex of the bridge or bond it belongs to.
    pub master: Option<u32>,
    /// What it is the VLAN of, for an 802.1Q interface.
    pub vlan: Option<Vlan>,
    /// The other end, for a veth.
    pub peer: Option<Peer>,
}

impl Link {
    /// An Ethernet interface that is up, for tests.
    #[cfg(test)]
    pub(crate) fn ethernet(ifindex: u32, name: &str) -> Self {
        Link {
            ifindex,
            name: name.to_owned(),
            alt_names: Vec::new(),
            hardware: libc::ARPHRD_ETHER,
            kind: None,
            mac: [2, 0, 0, 0, 0, ifindex as u8],
            mtu: 1500,
            admin_up: true,
            carrier: true,
            master: None,
            vlan: None,
            peer: None,
        }
    }
}

/// A unicast route of the host's main or default table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// Destination.
    pub destination: IpNet,
    /// ifindex it leaves through; `None` for refusals.
    pub ifindex: Option<u32>,
    /// Next hop, `None` when destinations are on the link.
    pub gateway: Option<IpAddr>,
    /// Metric (`RTA_PRIORITY`); the lowest wins.
    pub priority: u32,
    /// Path MTU of the route (`RTAX_MTU`).
    pub mtu: Option<u32>,
    /// unreachable, blackhole or prohibit.
    pub refused: bool,
}

/// An entry of the host's neighbor tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Neighbor {
    /// ifindex.
    pub ifindex: u32,
    /// Address.
    pub address: IpAddr,
    /// Link-layer address, where resolved and usable (`NUD_VALID`).
    pub mac: Option<Mac>,
}

/// An address that the host answers for in another's stead (`ip neigh add
/// proxy`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Proxy {
    /// ifindex on which it answers, `None` for all.
    pub ifindex: Option<u32>,
    /// Address.
    pub address: IpAddr,
}

/// A station behind a port of a bridge, as the bridge's forwarding database
/// has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Station {
    /// ifindex of the port.
    pub port: u32,
    /// Link-layer address.
    pub mac: Mac,
}

/// Tables that are read where they are needed: the kernel does not tell of all
/// their changes, so that nobody can follow them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Unfollowed {
    /// Proxy neighbors.
    pub proxies: Vec<Proxy>,
    /// Stations behind ports of bridges, without the bridges' own.
    pub stations: Vec<Station>,
}

/// The state of the host's network that matters here.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Host {
    /// Interfaces by ifindex.
    pub links: BTreeMap<u32, Link>,
    /// The host's addresses: ifindex and address with its on-link prefix
    /// length (host bits kept).
    pub addresses: Vec<(u32, IpNet)>,
    /// Routes of the main table.
    pub routes: Vec<Route>,
    /// Neighbors.
    pub neighbors: Vec<Neighbor>,
}

impl Host {
    /// The interface of that name or alternative name.
    pub fn link(&self, name: &str) -> Option<&Link> {
        self.links
            .values()
            .find(|link| link.name == name || link.alt_names.iter().any(|alt| alt == name))
    }
}

/// A MAC address printed as lower-case hex with colons.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DisplayMac(pub Mac);

impl fmt::Display for DisplayMac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}
