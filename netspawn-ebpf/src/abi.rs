//! Layout of the BPF maps, shared by the programs and the loader.
//!
//! Every struct is `#[repr(C)]` with explicit padding; addresses and MACs are
//! byte arrays in network order, everything else is native-endian. A change of
//! any layout, map name or meaning raises [`VERSION`], because pinned maps
//! outlive the process that made them.

use crate::{
    verdict::{Error, Reason},
    wire::{Ipv4, Ipv6, Mac, Words6},
};

/// Version of everything in this module; names the pin directory (`v2`).
pub const VERSION: u32 = 2;

/// Names of maps, as pinned and as the object's symbols (15 bytes at most).
pub mod map {
    /// Hash: single IPv4 address (4 bytes) to [`super::Owner`].
    pub const ADDRS4: &str = "addrs4";
    /// Hash: single IPv6 address (16 bytes) to [`super::Owner`].
    pub const ADDRS6: &str = "addrs6";
    /// LPM trie: IPv4 prefixes shorter than 32 to [`super::Owner`].
    pub const PREFIXES4: &str = "prefixes4";
    /// LPM trie: IPv6 prefixes shorter than 128 to [`super::Owner`].
    pub const PREFIXES6: &str = "prefixes6";
    /// LPM trie: endpoint id (4 bytes, big-endian) and IPv4 prefix that it may send
    /// from without owning it, to 1.
    pub const SOURCES4: &str = "sources4";
    /// As [`SOURCES4`], for IPv6.
    pub const SOURCES6: &str = "sources6";
    /// Array: endpoint id to [`super::EndpointEntry`].
    pub const ENDPOINTS: &str = "endpoints";
    /// Hash: ifindex of a port (u32) to endpoint id (u32), and of other interfaces to
    /// [`super::CLOSED`] or [`super::WAY`].
    pub const PORTS: &str = "ports";
    /// Array of [`super::UPLINK_SLOTS`]: [`super::Uplink`], at one of the places that
    /// [`super::uplink_slot`] gives its ifindex.
    pub const UPLINKS: &str = "uplinks";
    /// LPM trie: the host's IPv4 routes to an index into [`NEXTHOPS`] (u32).
    pub const ROUTES4: &str = "routes4";
    /// LPM trie: the host's IPv6 routes to an index into [`NEXTHOPS`] (u32).
    pub const ROUTES6: &str = "routes6";
    /// Array: [`super::NextHop`].
    pub const NEXTHOPS: &str = "nexthops";
    /// Array of one [`super::Near`].
    pub const NEAR: &str = "near";
    /// Array of one [`super::Settings`].
    pub const SETTINGS: &str = "settings";
    /// Per-CPU array: [`crate::verdict::Reason`] to a count of frames (u64), and
    /// [`super::EVENTS_LOST`] to one of events.
    pub const COUNTS: &str = "counts";
    /// Per-CPU array: endpoint id to [`super::Traffic`].
    pub const TRAFFIC: &str = "traffic";
    /// Per-CPU hash: [`super::DropKey`] to a count of frames (u64).
    pub const DROPS: &str = "drops";
    /// Array: endpoint id to [`super::Budget`].
    pub const BUDGETS: &str = "budgets";
    /// Array of one [`super::SharedBudget`].
    pub const SHARED: &str = "shared";
    /// LRU hash: [`super::Neighbor`] that was heard in ARP or ND on an uplink, to 1.
    pub const STATIONS: &str = "stations";
    /// LRU hash: [`super::Neighbor`] that a machine has made the kernel look for, to a
    /// time (`CLOCK_MONOTONIC`, nanoseconds) until which it may go on (u64).
    pub const ASKED: &str = "asked";
    /// LRU hash: [`super::Flow`] of the host's to when it last sent (`CLOCK_MONOTONIC`,
    /// nanoseconds, u64). Written under `host = "deny"` alone.
    pub const HOST_FLOWS: &str = "host_flows";
    /// Ring buffer of [`super::Event`].
    pub const EVENTS: &str = "events";
    /// Devmap hash: ifindex of a port to itself, for XDP forwarding; of those ports alone
    /// whose endpoint has [`super::endpoint_flag::XDP`].
    pub const XDP_PORTS: &str = "xdp_ports";

    /// Every map of this version.
    pub const ALL: [&str; 24] = [
        ADDRS4, ADDRS6, PREFIXES4, PREFIXES6, SOURCES4, SOURCES6, ENDPOINTS, PORTS, UPLINKS,
        ROUTES4, ROUTES6, NEXTHOPS, NEAR, SETTINGS, COUNTS, TRAFFIC, DROPS, BUDGETS, SHARED,
        STATIONS, ASKED, HOST_FLOWS, EVENTS, XDP_PORTS,
    ];
}

/// Names of programs, as pinned and as the object's symbols (15 bytes at most).
pub mod program {
    /// tc, ingress of the uplink.
    pub const UPLINK_INGRESS: &str = "uplink_ingress";
    /// tc, egress of the uplink: the host's own traffic to machines.
    pub const UPLINK_EGRESS: &str = "uplink_egress";
    /// tc, ingress of every port.
    pub const PORT_INGRESS: &str = "port_ingress";
    /// XDP on the uplink, for `--mode xdp`.
    pub const UPLINK_XDP: &str = "uplink_xdp";
}

/// Default of `--max-machines`.
pub const DEFAULT_MAX_MACHINES: u32 = 16_384;
/// Ports at most for XDP to forward to. With more, each frame of a burst is for another
/// device and wakes it for itself alone, so that tc is cheaper (`docs/benchmarks.md`). And
/// whenever any device of the machine goes, the kernel looks through all buckets of the
/// devmap (`dev_map_notification` in kernel/bpf/devmap.c), with RTNL held.
pub const MAX_XDP_PORTS: u32 = 64;
/// Default of `--max-addresses`: entries of each address map.
pub const DEFAULT_MAX_ADDRESSES: u32 = 131_072;
/// Uplinks at most.
pub const MAX_UPLINKS: u32 = 64;
/// Entries of [`map::UPLINKS`], a power of two.
pub const UPLINK_SLOTS: u32 = 4 * MAX_UPLINKS;
/// Places where an uplink may be.
pub const UPLINK_PROBES: u32 = 4;

/// A place of the uplink with that ifindex, of which there are [`UPLINK_PROBES`].
///
/// An array with a place that follows from the ifindex costs a packet less than a
/// hash map.
#[inline(always)]
pub const fn uplink_slot(ifindex: u32, probe: u32) -> u32 {
    ifindex.wrapping_add(probe) & (UPLINK_SLOTS - 1)
}

/// Entries of [`map::NEXTHOPS`].
pub const MAX_NEXTHOPS: u32 = 1_024;
/// Entries of [`map::STATIONS`] and [`map::ASKED`] each. The kernel has room for 1,024
/// neighbors of a family (`gc_thresh3`), unless told otherwise.
pub const MAX_NEIGHBORS: u32 = 4_096;
/// Entries of [`map::HOST_FLOWS`].
pub const MAX_HOST_FLOWS: u32 = 16_384;
/// Entries of [`map::ROUTES4`] and [`map::ROUTES6`] each; a host with more
/// routes on its uplinks is served through the kernel's own look-up.
pub const MAX_ROUTES: u32 = 16_384;

/// The value of the address maps: an endpoint id, or [`HOST`].
pub type Owner = u32;
/// The address belongs to the host itself, which no machine can claim.
pub const HOST: Owner = u32::MAX;

/// What a look-up of an address that is not in the maps gives; never a value.
pub const NOBODY: Owner = u32::MAX - 1;

/// In [`map::PORTS`]: a machine's port that cannot be guarded. Nothing that has come in
/// by it leaves by an uplink.
pub const CLOSED: Owner = u32::MAX - 2;
/// In [`map::PORTS`]: no port, but an interface that packets from an uplink come in by:
/// a VLAN on one, or the VRF that one is in.
pub const WAY: Owner = u32::MAX - 3;
/// Entries of [`map::PORTS`] that are [`CLOSED`] or [`WAY`], of each as many at most.
pub const MAX_CLOSED: u32 = 1_024;

/// Whether a value of [`map::PORTS`] is an endpoint id.
#[inline(always)]
pub const fn is_endpoint(value: Owner) -> bool {
    value < WAY
}

/// The mark in [`Key::NONE`].
pub const MARK: u32 = 0x6e73_7864;

/// What frames carry that the data plane itself hands from one hook to another: the next
/// program that sees it sets both back to 0.
///
/// Both are made at random with the data plane, because devices on top of an uplink may be
/// in namespaces of tenants, who can send any mark and priority. On the way to the egress
/// of an uplink a frame carries both. `bpf_redirect` to ingress clears the priority
/// (`____dev_forward_skb` in include/linux/netdevice.h), and the mark where the namespace
/// changes, so that the mark alone says enough there.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Key {
    /// `skb->mark`.
    pub mark: u32,
    /// `skb->priority`.
    pub priority: u32,
}

impl Key {
    /// Of programs that are loaded without a data plane.
    pub const NONE: Key = Key {
        mark: MARK,
        priority: 0,
    };

    /// Whether it has been made.
    pub const fn is_made(self) -> bool {
        self.mark != 0 && self.priority != 0
    }
}

/// Where the kernel has what [`crate::decide::past`] asks of a frame, in bytes from the
/// beginning of each structure. All zero: not known.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct KernelFields {
    /// `sk_buff.dev`.
    pub skb_dev: u32,
    /// `sk_buff.sk`.
    pub skb_sk: u32,
    /// `sk_buff._skb_refdst`.
    pub skb_dst: u32,
    /// `sk_buff.mac_len`.
    pub skb_mac_len: u32,
    /// `dst_entry.dev`.
    pub dst_dev: u32,
    /// `net_device.nd_net.net`.
    pub dev_net: u32,
    /// `sock.__sk_common.skc_net.net`.
    pub sock_net: u32,
    /// 1 when the others are known.
    pub known: u32,
}

/// Names of global variables of the programs, which the loader sets.
pub mod global {
    /// A [`super::Key`].
    pub const KEY: &str = "NETSPAWN_KEY";
    /// [`super::KernelFields`].
    pub const KERNEL_FIELDS: &str = "NETSPAWN_FIELDS";
}

/// The IPv4 gateway that every port answers for, also its ping.
pub const GATEWAY4: Ipv4 = [169, 254, 1, 1];
/// The IPv6 gateway that every port answers for, also its ping.
pub const GATEWAY6: Ipv6 = [0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];

/// Bits of [`Endpoint::flags`].
pub mod endpoint_flag {
    /// The port exists and has carrier; otherwise nothing is answered or
    /// delivered.
    pub const UP: u32 = 1 << 0;
    /// The port has no peer device (a tap): frames go out of it with
    /// `bpf_redirect` rather than `bpf_redirect_peer`.
    pub const NO_PEER: u32 = 1 << 1;
    /// The machine may send from any MAC (nested bridges).
    pub const ANY_MAC: u32 = 1 << 2;
    /// The machine's end takes XDP frames (NAPI is on), so that XDP may
    /// forward to it.
    pub const XDP: u32 = 1 << 3;
    /// The machine has entries in [`super::map::SOURCES4`] or
    /// [`super::map::SOURCES6`].
    pub const SOURCES: u32 = 1 << 4;
}

/// What the programs need to know of one machine's attachment.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Endpoint {
    /// ifindex of the port on the host; 0 while there is none.
    pub ifindex: u32,
    /// [`endpoint_flag`] bits.
    pub flags: u32,
    /// Tenant number; machines exchange packets when theirs are equal. 0 is
    /// the tenant of those that name none.
    pub tenant: u32,
    /// MTU of the port in bytes of IP packet.
    pub mtu: u32,
    /// Link-layer address of the machine's end; zero while unknown.
    pub mac: Mac,
    /// Link-layer address of the port.
    pub port_mac: Mac,
    /// 802.1Q id on the uplink, 0 for untagged.
    pub vlan: u16,
    /// Zero.
    pub pad: u16,
    /// The port's own link-local address; zero when it has none.
    pub port_link_local: Ipv6,
}

/// Bytes kept for a name in [`EndpointEntry`]; systemd allows 64.
pub const NAME_LEN: usize = 64;

/// An entry of [`map::ENDPOINTS`]: the programs read `forward`, the loader
/// finds in the rest whose entry it is when it takes over pinned maps.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EndpointEntry {
    /// What the programs use.
    pub forward: Endpoint,
    /// Machine name, UTF-8, zero padded; all zero marks a free entry.
    pub name: [u8; NAME_LEN],
    /// Tenant name, UTF-8, zero padded; all zero when none is named.
    pub tenant: [u8; NAME_LEN],
}

/// Which addresses may have an owner: a bit for each group of IPv4 networks of length
/// 24 and IPv6 networks of length 64.
///
/// Sources of packets from the network are hardly ever near a machine's address, and a
/// look at a bit tells so at a fraction of what a look-up costs.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Near {
    /// Bit `n % 64` of word `n / 64` is that of group `n`. It is set where an owner has
    /// an address in the group.
    pub words: [u64; NEAR_WORDS],
}

/// Words of [`Near`], a power of two.
pub const NEAR_WORDS: usize = 1024;

impl Default for Near {
    fn default() -> Self {
        Near {
            words: [0; NEAR_WORDS],
        }
    }
}

impl Near {
    /// The group of an address.
    #[inline(always)]
    pub fn group4(address: &Ipv4) -> u16 {
        let [a, b, c, _] = *address;
        group(u64::from(u32::from_ne_bytes([a, b, c, 0])))
    }

    /// As [`Near::group4`].
    #[inline(always)]
    pub fn group6(address: &Words6) -> u16 {
        group(address[0])
    }

    /// Whether somebody may have an address of that group.
    #[inline(always)]
    pub fn has(&self, group: u16) -> bool {
        let word = self.words[usize::from(group >> 6) & (NEAR_WORDS - 1)];
        word >> (group & 63) & 1 != 0
    }

    /// Says that somebody has an address of that group.
    pub fn set(&mut self, group: u16) {
        self.words[usize::from(group >> 6)] |= 1 << (group & 63);
    }
}

/// The upper bits of Fibonacci hashing, which are its best.
#[inline(always)]
const fn group(network: u64) -> u16 {
    (network.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 48) as u16
}

/// An uplink as the programs see it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Uplink {
    /// Link-layer address, the one all answers carry.
    pub mac: Mac,
    /// Zero.
    pub pad: u16,
    /// MTU in bytes of IP packet.
    pub mtu: u32,
    /// Address that ICMP errors come from (RFC 1812 4.3.2.4); zero when the host
    /// has none.
    pub address4: Ipv4,
    /// Address that ICMPv6 errors come from (RFC 4443 2.2); zero when the host
    /// has none.
    pub address6: Ipv6,
    /// Its ifindex; 0 is a free place.
    pub ifindex: u32,
}

/// Bits of [`NextHop::flags`].
pub mod nexthop_flag {
    /// `dst_mac` is known, and good until `deadline`.
    pub const RESOLVED: u32 = 1 << 0;
    /// The route refuses (unreachable, blackhole, prohibit), or leads to what is not
    /// an uplink.
    pub const REFUSED: u32 = 1 << 1;
    /// The route has no router: each destination is a neighbor that the kernel keeps an
    /// entry for.
    pub const ON_LINK: u32 = 1 << 2;
    /// Bits from here on: the 802.1Q id that the interface itself puts on frames, 0
    /// for an uplink.
    pub const VLAN_SHIFT: u32 = 16;
}

/// Where a route leads.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NextHop {
    /// `CLOCK_MONOTONIC` in nanoseconds after which `dst_mac` is not to be
    /// trusted; the agent renews it.
    pub deadline: u64,
    /// ifindex of the uplink, or of a VLAN interface on it.
    pub ifindex: u32,
    /// [`nexthop_flag`] bits.
    pub flags: u32,
    /// MTU of the path in bytes of IP packet.
    pub mtu: u32,
    /// Link-layer address of the uplink.
    pub src_mac: Mac,
    /// Link-layer address of the router; meaningless unless `RESOLVED`.
    pub dst_mac: Mac,
    /// ifindex of the uplink, also where `ifindex` is that of a VLAN interface on it.
    pub uplink: u32,
    /// Zero.
    pub pad: u32,
}

/// An address on a link, as [`neighbor`] makes it.
pub type Neighbor = [u64; 3];

/// What the host exchanges with a machine: its address and the machine's (IPv4 ones as
/// IPv4-mapped), and in one word, host order, the protocol from bit 32 on, the host's port
/// or the identifier of its echo requests from bit 16 on, and the machine's port.
pub type Flow = [u64; 5];

/// None: no protocol is 0 here.
pub const NO_FLOW: Flow = [0; 5];

/// Instead of an 802.1Q id: a machine of this host, rather than a station.
pub const MACHINE: u32 = 1 << 16;

/// Nobody: no address is unspecified.
pub const NO_NEIGHBOR: Neighbor = [0; 3];

/// The address (IPv4 ones as IPv4-mapped) of a neighbor behind an interface, by the 802.1Q
/// id of its frames there, 0 for untagged.
#[inline(always)]
pub const fn neighbor(address: &Words6, ifindex: u32, vlan: u32) -> Neighbor {
    [address[0], address[1], (ifindex as u64) << 32 | vlan as u64]
}

/// Bits of [`Settings::flags`].
pub mod settings_flag {
    /// [`super::map::PREFIXES4`] has entries.
    pub const PREFIXES4: u32 = 1 << 0;
    /// [`super::map::PREFIXES6`] has entries.
    pub const PREFIXES6: u32 = 1 << 1;
    /// Machines of different tenants reach each other (`isolation = "route"`).
    pub const ISOLATION_ROUTE: u32 = 1 << 2;
    /// Machines do not reach the host (`host = "deny"`).
    pub const HOST_DENY: u32 = 1 << 3;
    /// [`super::map::PORTS`] has entries that are [`super::CLOSED`].
    pub const CLOSED: u32 = 1 << 4;
}

/// Policy and hints for all programs.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// [`settings_flag`] bits.
    pub flags: u32,
    /// What this data plane's frames carry. Programs have it from when they are loaded;
    /// here it outlives the process that made it. It stays at this place in all versions
    /// from 2 on, so that programs of two of them know each other's frames.
    pub key: Key,
}

/// Packets and bytes of one machine, on one CPU; `rx` as the machine sees it.
/// Bytes count whole Ethernet frames.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Frames to the machine.
    pub rx_packets: u64,
    /// Bytes to the machine.
    pub rx_bytes: u64,
    /// Frames from the machine that were forwarded.
    pub tx_packets: u64,
    /// Bytes from the machine that were forwarded.
    pub tx_bytes: u64,
}

/// What an endpoint may still cause, each a time before which nothing more is
/// due (`CLOCK_MONOTONIC`, nanoseconds): a token bucket in one word.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Budget {
    /// Time exceeded, about its packets and packets for it.
    pub time_exceeded: u64,
    /// Fragmentation needed and packet too big, likewise.
    pub too_big: u64,
    /// Unreachable, likewise.
    pub unreachable: u64,
    /// Events.
    pub events: u64,
    /// Neighbors that the kernel is to look for or to remember.
    pub neighbors: u64,
}

impl Budget {
    /// That of one kind of ICMP error, which the others do not spend.
    #[inline(always)]
    pub fn error(&mut self, error: Error) -> &mut u64 {
        match error {
            Error::TimeExceeded => &mut self.time_exceeded,
            Error::TooBig => &mut self.too_big,
            Error::HostUnreachable | Error::NoRoute | Error::None => &mut self.unreachable,
        }
    }
}

/// As [`Budget`], for all endpoints together.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SharedBudget {
    /// Neighbors that the kernel is to look for or to remember.
    pub neighbors: u64,
}

/// Bytes of the frame in an [`Event`]: an advertisement with its option, and more.
pub const SNAP_LEN: usize = 96;
/// Index into [`map::COUNTS`] of the events that found no room in [`map::EVENTS`].
pub const EVENTS_LOST: u32 = Reason::ALL.len() as u32;
/// Entries of [`map::COUNTS`].
pub const COUNTS_ENTRIES: u32 = EVENTS_LOST + 1;
/// Bytes of [`map::EVENTS`].
pub const EVENTS_SIZE: u32 = 1 << 18;

/// What is told of a frame whose [`crate::verdict::Reason`] is worth a word, see
/// [`crate::verdict::Reason::is_told`].
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event {
    /// `CLOCK_MONOTONIC` in nanoseconds.
    pub time: u64,
    /// A [`crate::verdict::Reason`] as a number.
    pub reason: u32,
    /// The endpoint that it concerns.
    pub endpoint: u32,
    /// ifindex of the hook.
    pub ifindex: u32,
    /// Bytes of the whole frame.
    pub length: u32,
    /// The frame from its Ethernet header on, zero behind its end.
    pub frame: [u8; SNAP_LEN],
}

/// Key of [`map::DROPS`].
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct DropKey {
    /// The endpoint that the frame was from or for.
    pub endpoint: u32,
    /// A [`crate::verdict::Reason`] as a number.
    pub reason: u32,
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::mem::{offset_of, size_of};

    #[test]
    fn layout_is_pinned() {
        assert_eq!(size_of::<Endpoint>(), 48);
        assert_eq!(offset_of!(Endpoint, mac), 16);
        assert_eq!(offset_of!(Endpoint, port_mac), 22);
        assert_eq!(offset_of!(Endpoint, vlan), 28);
        assert_eq!(offset_of!(Endpoint, port_link_local), 32);
        assert_eq!(size_of::<EndpointEntry>(), 176);
        assert_eq!(size_of::<Uplink>(), 36);
        assert_eq!(size_of::<Near>(), 8192);
        assert_eq!(offset_of!(Uplink, address6), 16);
        assert_eq!(size_of::<Budget>(), 40);
        assert_eq!(size_of::<SharedBudget>(), 8);
        assert_eq!(size_of::<Neighbor>(), 24);
        assert_eq!(size_of::<Event>(), 120);
        assert_eq!(offset_of!(Event, frame), 24);
        assert_eq!(size_of::<NextHop>(), 40);
        assert_eq!(offset_of!(NextHop, src_mac), 20);
        assert_eq!(size_of::<Settings>(), 12);
        assert_eq!(offset_of!(Settings, key), 4);
        assert_eq!(size_of::<KernelFields>(), 32);
        assert_eq!(size_of::<Traffic>(), 32);
        assert_eq!(size_of::<DropKey>(), 8);
    }

    #[test]
    fn names_fit_the_kernel() {
        for name in map::ALL {
            assert!(name.len() < 16, "{name} is cut by the kernel");
        }
    }
}
