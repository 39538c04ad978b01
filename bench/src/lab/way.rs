//! Ways of packets between the uplink and the machines.

/// How a host connects its machines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Way {
    /// The uplink alone, whose packets end there: what the generator and the link cost.
    Link,
    /// A macvlan interface for each machine.
    Macvlan,
    /// A bridge with the uplink and the machines' ports.
    Bridge,
    /// Routes, permanent neighbors, `proxy_arp` and proxy neighbors, with `proxy_delay` 0.
    Routed,
    /// The same with the kernel's default `proxy_delay`.
    RoutedDefault,
    /// Routes, and ndppd in place of proxy neighbors.
    Ndppd,
    /// A tc program that looks the destination up, redirects to the peer, and does
    /// nothing else.
    Bare,
    /// netspawn-xdp, `--mode tc`.
    Tc,
    /// netspawn-xdp, `--mode xdp`.
    Xdp,
}

impl Way {
    /// Its name in reports.
    pub const fn name(self) -> &'static str {
        match self {
            Way::Link => "link",
            Way::Macvlan => "macvlan",
            Way::Bridge => "bridge",
            Way::Routed => "routed",
            Way::RoutedDefault => "routed, default delay",
            Way::Ndppd => "ndppd",
            Way::Bare => "bare redirect_peer",
            Way::Tc => "tc",
            Way::Xdp => "xdp",
        }
    }

    /// Whether it is ours.
    pub const fn is_ours(self) -> bool {
        matches!(self, Way::Tc | Way::Xdp)
    }

    /// Whether the host forwards by route.
    pub const fn is_routed(self) -> bool {
        matches!(self, Way::Routed | Way::RoutedDefault | Way::Ndppd)
    }

    /// Machines at most: a bridge has 1,023 ports, one of which is the uplink.
    pub const fn most(self) -> u32 {
        match self {
            Way::Bridge => 1022,
            _ => u32::MAX,
        }
    }
}
