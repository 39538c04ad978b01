//! The addresses, machines and routes that the rows speak of.

use netspawn_ebpf::{
    abi::{
        Endpoint, HOST, NextHop, Owner, Settings, Uplink, endpoint_flag, nexthop_flag,
        settings_flag,
    },
    wire::{Ipv4, Ipv6, Mac},
};

/// An ordinary machine; it has prefixes as well.
pub const WEB: Owner = 1;
/// Declared, not up.
pub const DOWN: Owner = 2;
/// Up, on VLAN 30.
pub const TAGGED: Owner = 3;
/// Another of the tenant of `WEB`, part of whose prefixes it has.
pub const DB: Owner = 4;
/// Of another tenant.
pub const ACME: Owner = 5;
/// May send from any MAC.
pub const BRIDGE: Owner = 6;
/// Its port has an MTU of 1,280.
pub const SMALL: Owner = 7;

/// The VLAN of `TAGGED`.
pub const VLAN: u16 = 30;

/// The uplink's link-layer address.
pub const UPLINK: Mac = [2, 0, 0, 0, 0, 1];
/// A station on the network, and its addresses.
pub const ASKER: Mac = [2, 0, 0, 0, 0, 0x99];
pub const ASKER4: Ipv4 = [203, 0, 113, 1];
pub const ASKER6: Ipv6 = v6(1);
/// The host's own addresses.
pub const HOST4: Ipv4 = [203, 0, 113, 10];
pub const HOST6: Ipv6 = v6(0x10);
/// In prefixes of the host, whose stack knows what to do with them: services, for instance.
pub const VIRTUAL4: Ipv4 = [10, 96, 0, 1];
pub const VIRTUAL6: Ipv6 = [0xfd, 0, 0, 0x96, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
/// The next hop of the host's routes.
pub const ROUTER: Mac = [2, 0, 0, 0, 0, 0xfe];
/// Beyond the next hop.
pub const FAR4: Ipv4 = [198, 51, 100, 7];
pub const FAR6: Ipv6 = [0x20, 1, 0xd, 0xb8, 0xff, 0xff, 0, 0, 0, 0, 0, 0, 0, 0, 0, 7];
/// Beyond a next hop whose MAC the host has not got, with an MTU of 1,400.
pub const UNRESOLVED4: Ipv4 = [100, 64, 0, 1];
pub const UNRESOLVED6: Ipv6 = [0x20, 1, 0xd, 0xb8, 0xee, 0xee, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
/// Behind a route that refuses.
pub const REFUSED4: Ipv4 = [192, 0, 2, 1];
pub const REFUSED6: Ipv6 = [0x20, 1, 0xd, 0xb8, 0xde, 0xad, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
/// Behind the interface of `VLAN` on the uplink.
pub const BEHIND_VLAN4: Ipv4 = [100, 127, 0, 1];
pub const BEHIND_VLAN6: Ipv6 = [0x20, 1, 0xd, 0xb8, 0x30, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
/// On a link without a router.
pub const NEIGHBOR4: Ipv4 = [100, 126, 0, 7];
pub const NEIGHBOR6: Ipv6 = [0x20, 1, 0xd, 0xb8, 0x0e, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 7];
/// Inside prefixes of `WEB` on that link.
pub const ON_LINK4: Ipv4 = [100, 126, 1, 7];
pub const ON_LINK6: Ipv6 = [0x20, 1, 0xd, 0xb8, 0x0e, 0, 0, 0, 0xab, 0, 0, 0, 0, 0, 0, 7];
/// On the uplink's network, nobody's.
pub const FREE4: Ipv4 = [203, 0, 113, 200];
pub const FREE6: Ipv6 = v6(0x200);
/// Inside the prefixes of `WEB`, and the part that `DB` has of them.
pub const INSIDE4: Ipv4 = [198, 18, 0, 7];
pub const INSIDE6: Ipv6 = [0x20, 1, 0xd, 0xb8, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 7];
pub const CARVED4: Ipv4 = [198, 18, 0, 200];
pub const CARVED6: Ipv6 = [0x20, 1, 0xd, 0xb8, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 5];

/// 2001:db8::x.
const fn v6(x: u16) -> Ipv6 {
    let [high, low] = x.to_be_bytes();
    [0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, high, low]
}

/// A machine's IPv4 address.
pub const fn ip4(id: Owner) -> Ipv4 {
    [203, 0, 113, 100 + id as u8]
}

/// A machine's IPv6 address.
pub const fn ip6(id: Owner) -> Ipv6 {
    v6(0x100 + id as u16)
}

/// The link-local address that a machine gave itself.
pub const fn guest_link_local(id: Owner) -> Ipv6 {
    [0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, id as u8]
}

/// The link-local address of a machine's port.
pub const fn port_link_local(id: Owner) -> Ipv6 {
    [0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2, id as u8]
}

/// A machine's link-layer address.
pub const fn mac(id: Owner) -> Mac {
    [2, 0, 0, 0, 1, id as u8]
}

/// Its port's.
pub const fn port_mac(id: Owner) -> Mac {
    [2, 0, 0, 0, 2, id as u8]
}

/// The machine with that id; `ifindex` is whatever the caller has.
pub fn endpoint(id: Owner, ifindex: u32) -> Endpoint {
    let up = match id {
        DOWN => 0,
        _ => endpoint_flag::UP,
    };
    let own = match id {
        WEB | SMALL => endpoint_flag::XDP,
        BRIDGE => endpoint_flag::ANY_MAC | endpoint_flag::NO_PEER | endpoint_flag::SOURCES,
        DB => endpoint_flag::SOURCES,
        _ => 0,
    };
    Endpoint {
        ifindex,
        flags: up | own,
        tenant: if id == ACME { 7 } else { 0 },
        mtu: if id == SMALL { 1280 } else { 1500 },
        mac: mac(id),
        port_mac: port_mac(id),
        vlan: if id == TAGGED { VLAN } else { 0 },
        pad: 0,
        port_link_local: port_link_local(id),
    }
}

/// All machines.
pub const MACHINES: [Owner; 7] = [WEB, DOWN, TAGGED, DB, ACME, BRIDGE, SMALL];

/// The uplink.
pub fn uplink() -> Uplink {
    Uplink {
        mac: UPLINK,
        pad: 0,
        mtu: 1500,
        address4: HOST4,
        address6: HOST6,
        ..Uplink::default()
    }
}

/// Single and shorter IPv4 prefixes.
pub fn prefixes4() -> Vec<(Ipv4, u32, Owner)> {
    let mut all: Vec<_> = MACHINES.iter().map(|&id| (ip4(id), 32, id)).collect();
    all.push((HOST4, 32, HOST));
    all.push(([10, 96, 0, 0], 16, HOST));
    all.push(([198, 18, 0, 0], 24, WEB));
    all.push(([198, 18, 0, 128], 25, DB));
    all.push(([100, 126, 1, 0], 24, WEB));
    all
}

/// Single and shorter IPv6 prefixes.
pub fn prefixes6() -> Vec<(Ipv6, u32, Owner)> {
    let mut prefix = INSIDE6;
    prefix[15] = 0;
    let mut services = VIRTUAL6;
    services[15] = 0;
    let mut all: Vec<_> = MACHINES.iter().map(|&id| (ip6(id), 128, id)).collect();
    all.push((HOST6, 128, HOST));
    all.push((services, 112, HOST));
    all.push((prefix, 64, WEB));
    all.push((CARVED6, 128, DB));
    let mut on_link = ON_LINK6;
    on_link[15] = 0;
    all.push((on_link, 80, WEB));
    all
}

/// From where `BRIDGE` sends for others.
pub const ROUTED4: Ipv4 = [10, 8, 0, 9];
pub const ROUTED6: Ipv6 = [0xfd, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 9];

/// IPv4 prefixes that machines send from without owning them.
pub fn sources4() -> Vec<(Owner, Ipv4, u32)> {
    vec![(BRIDGE, [10, 8, 0, 0], 24), (DB, [10, 9, 0, 0], 16)]
}

/// IPv6 prefixes.
pub fn sources6() -> Vec<(Owner, Ipv6, u32)> {
    let net = |address: Ipv6| {
        let mut net = address;
        net[15] = 0;
        net
    };
    vec![
        (BRIDGE, net(ROUTED6), 64),
        (DB, [0xfd, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], 64),
    ]
}

/// The next hops, by index.
pub fn nexthops() -> Vec<NextHop> {
    let hop = |flags, mtu| NextHop {
        deadline: u64::MAX,
        ifindex: 2,
        flags,
        mtu,
        src_mac: UPLINK,
        dst_mac: ROUTER,
        uplink: 2,
        pad: 0,
    };
    let mut stale = hop(nexthop_flag::RESOLVED, 1400);
    stale.deadline = 1;
    vec![
        hop(nexthop_flag::RESOLVED, 1500),
        stale,
        hop(nexthop_flag::REFUSED, 1500),
        hop(
            nexthop_flag::RESOLVED | u32::from(VLAN) << nexthop_flag::VLAN_SHIFT,
            1500,
        ),
        hop(nexthop_flag::ON_LINK, 1500),
    ]
}

/// IPv4 routes to an index of [`nexthops`].
pub fn routes4() -> Vec<(Ipv4, u32, u32)> {
    vec![
        ([203, 0, 113, 0], 24, 0),
        ([198, 51, 100, 0], 24, 0),
        ([100, 64, 0, 0], 10, 1),
        ([192, 0, 2, 0], 24, 2),
        // The host's own route to a machine.
        ([198, 18, 0, 128], 25, 2),
        ([100, 127, 0, 0], 16, 3),
        ([100, 126, 0, 0], 16, 4),
    ]
}

/// IPv6 routes.
pub fn routes6() -> Vec<(Ipv6, u32, u32)> {
    let net = |mut address: Ipv6| {
        address[15] = 0;
        address
    };
    vec![
        (net(ASKER6), 64, 0),
        (net(FAR6), 48, 0),
        (net(UNRESOLVED6), 48, 1),
        (net(REFUSED6), 48, 2),
        (CARVED6, 128, 2),
        (net(BEHIND_VLAN6), 64, 3),
        (net(NEIGHBOR6), 64, 4),
    ]
}

/// The settings with a policy.
pub fn settings(policy: u32) -> Settings {
    Settings {
        flags: settings_flag::PREFIXES4 | settings_flag::PREFIXES6 | policy,
        ..Settings::default()
    }
}
