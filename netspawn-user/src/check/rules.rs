//! Everything that `check` can find: one row each, of which the table in
//! `docs/reference.md` is made.

use serde::Serialize;

/// How bad a finding is, the worst first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// It will not work.
    Error,
    /// It works badly, or surprises.
    Warning,
    /// Good to know.
    Info,
}

impl Severity {
    /// The name in JSON and on the terminal.
    pub const fn name(self) -> &'static str {
        match self {
            Severity::Error => "error",
            Severity::Warning => "warning",
            Severity::Info => "info",
        }
    }
}

/// What has to be read for a rule to be judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Area {
    /// What everybody may read.
    Open,
    /// BPF: loading programs, and what is attached. Needs root.
    Bpf,
    /// The host's firewall. Needs root.
    Firewall,
    /// The machines' own network namespaces and images. Needs root.
    Guests,
    /// systemd-networkd, where it looks after this network namespace.
    Networkd,
}

/// A thing that can be found.
#[derive(Debug, PartialEq, Eq)]
pub struct Rule {
    /// Its name, which stays.
    pub id: &'static str,
    /// How bad it is.
    pub severity: Severity,
    /// What has to be read for it.
    pub area: Area,
    /// What is the case, for the reference.
    pub when: &'static str,
    /// Why it matters.
    pub why: &'static str,
}

macro_rules! rules {
    ($($name:ident: $severity:ident $area:ident $id:literal, $when:literal, $why:literal;)*) => {
        $(
            #[doc = $when]
            pub const $name: &Rule = &Rule {
                id: $id,
                severity: Severity::$severity,
                area: Area::$area,
                when: $when,
                why: $why,
            };
        )*
        /// All there are.
        pub const ALL: &[&Rule] = &[$($name),*];
    };
}

rules! {
    UNPRIVILEGED: Warning Open "unprivileged",
        "`check` does not run as root.",
        "BPF, the firewall and the machines' own networks are left out.";

    BPF_REFUSED: Error Bpf "bpf-refused",
        "The kernel refuses the programs or maps although it knows them.",
        "Nothing can be attached.";
    BPF_FEATURE_MISSING: Error Bpf "bpf-feature-missing",
        "The kernel lacks a program type, map type or helper that is needed.",
        "Nothing can be attached.";
    MEMLOCK_LIMIT: Error Bpf "memlock-limit",
        "The maps are refused, and locked memory is limited.",
        "Before Linux 5.11, and in some containers, maps count as locked memory.";
    TRAFFIC_CONTROL_MISSING: Error Bpf "traffic-control-missing",
        "The kernel has no clsact qdisc, or no BPF filter for it.",
        "Every port is guarded by a filter on its ingress qdisc.";
    TCX_MISSING: Info Bpf "tcx-missing",
        "The kernel has no tcx (before Linux 6.6).",
        "The uplink gets clsact filters in its place, which does the same.";
    BTF_MISSING: Info Bpf "btf-missing",
        "There is no `/sys/kernel/btf/vmlinux`.",
        "The programs find the fields of packets by it that decide what a machine may leave open.";
    OFFLOAD_FIELDS_UNSEEN: Warning Bpf "offload-fields-unseen",
        "Programs cannot see where a sender leaves a checksum to be completed.",
        "The guard of ports is incomplete: a machine can have the source of its packets changed behind it.";
    JIT_OFF: Warning Bpf "jit-off",
        "Programs are interpreted.",
        "Each packet costs several times as much.";
    BPFFS_MISSING: Error Open "bpffs-missing",
        "BPFDIR is not on a bpf filesystem.",
        "Maps and programs have no place to outlive the agent.";
    BPFFS_READ_ONLY: Error Open "bpffs-read-only",
        "BPFDIR is on a bpf filesystem that is mounted read-only.",
        "Nothing can be pinned.";
    BPFFS_OPEN: Warning Open "bpffs-open",
        "Others than root may write to the bpf filesystem that BPFDIR is on.",
        "They can put something in BPFDIR's place; one that is theirs is refused.";
    BPF_DIR_FOREIGN: Error Open "bpf-dir-foreign",
        "BPFDIR belongs to another user than root.",
        "What is pinned there may be anybody's, so nothing of it is used.";
    OTHER_NAMESPACE: Error Open "other-namespace",
        "BPFDIR or RUNDIR belongs to another network namespace.",
        "A data plane serves one network namespace, and commands in another are refused.";
    DATA_PLANE_UNREADABLE: Error Bpf "data-plane-unreadable",
        "What is pinned cannot be read.",
        "An attach that was cut short, or another version, has left it.";

    NO_UPLINK: Error Open "no-uplink",
        "No uplink is named, attached or configured, and there is no default route.",
        "What faces the network cannot be told.";
    UPLINK_MISSING: Error Open "uplink-missing",
        "There is no interface of the uplink's name.",
        "It cannot be attached; one that is attached already is waited for.";
    UPLINK_IS_PORT: Error Open "uplink-is-port",
        "The uplink is a port of a bridge or bond.",
        "The master takes its frames; the programs belong on that one.";
    UPLINK_NOT_ETHERNET: Error Open "uplink-not-ethernet",
        "The uplink's frames have no Ethernet header.",
        "Such a network knows neither ARP nor neighbor solicitation, and is not served.";
    UPLINK_DOWN: Error Open "uplink-down",
        "The uplink is set down.",
        "Nothing comes in or goes out.";
    UPLINK_NO_CARRIER: Error Open "uplink-no-carrier",
        "The uplink is up and has no carrier.",
        "The cable, the switch's port, or the other end is off.";
    XDP_SLOT_TAKEN: Error Bpf "xdp-slot-taken",
        "`--mode xdp`, and another's XDP program is on the uplink.",
        "An interface has one XDP program; attach is refused.";
    XDP_BEFORE_OURS: Warning Bpf "xdp-before-ours",
        "Another's XDP program is on the uplink.",
        "It sees all frames first; what it drops or redirects never reaches a machine.";
    XDP_UNSUPPORTED: Error Open "xdp-unsupported",
        "`--mode xdp`, and the uplink's driver has no native XDP.",
        "Attach is refused.";
    XDP_VIRTIO: Warning Open "xdp-virtio",
        "`--mode xdp` on virtio_net.",
        "The driver gives up all guest offloads, for the host's own traffic, too.";
    XDP_VETH: Warning Open "xdp-veth",
        "`--mode xdp` on a veth.",
        "The other end loses segmentation offload, and answers vanish unless it has NAPI.";
    TCX_BEFORE_OURS: Info Bpf "tcx-before-ours",
        "Another's tcx programs are on the uplink's ingress.",
        "Ours run after those that are there; a frame that one of them takes is not seen.";
    FILTERS_BYPASSED: Warning Bpf "filters-bypassed",
        "Another's filters are on the uplink's ingress or clsact qdisc.",
        "tcx runs before them, so that they no longer see what is for machines.";
    FILTER_SLOT_TAKEN: Error Bpf "filter-slot-taken",
        "On a kernel without tcx, an ingress qdisc or a filter of preference 1 is in the way.",
        "Attach is refused.";

    LRO_ON: Warning Open "lro-on",
        "The uplink merges packets by LRO.",
        "Merged packets cannot be taken apart again: forwarding them breaks TCP.";
    GRO_OFF: Warning Open "gro-off",
        "GRO of the uplink is off.",
        "Each packet costs its whole way into the machine, instead of one way for dozens.";
    TSO_OFF: Info Open "tso-off",
        "The uplink could segment TCP, and was told not to.",
        "The host's CPU does it for all that machines send.";
    MACHINE_GRO_OFF: Info Guests "machine-gro-off",
        "`--mode xdp`, and GRO is off at the machine's end of its link.",
        "A veth takes no XDP frames without it; the machine is served by tc.";

    MACHINE_MTU_LARGE: Warning Guests "machine-mtu-large",
        "A machine's end has a larger MTU than the uplink.",
        "What is larger is refused by ICMP, and lost where fragments are allowed.";
    PORT_MTU_DIFFERS: Warning Guests "port-mtu-differs",
        "A port and the machine's end of it differ in MTU.",
        "The smaller end drops without a word what only the other one takes.";
    PORT_MTU_SMALL: Warning Open "port-mtu-small",
        "A port has a smaller MTU than the uplink.",
        "What is larger is refused by ICMP, and lost where fragments are allowed.";

    FORWARDING_ON: Info Open "forwarding-on",
        "`ip_forward` or IPv6 forwarding is on.",
        "Machines do not need it; others on this host may.";
    VIA_HOST_NOT_FORWARDED: Warning Open "via-host-not-forwarded",
        "`via-host` names prefixes, and the host does not forward that family.",
        "Machines reach there only what the host's own programs answer.";
    RP_FILTER: Warning Open "rp-filter",
        "`rp_filter` is strict, and the host's route to a machine is not by the uplink.",
        "The host drops what that machine sends to it.";
    PROXY_ARP_ON: Warning Open "proxy-arp-on",
        "`proxy_arp` is on for an uplink or a port.",
        "Where it forwards, the host claims addresses that no machine has any more.";
    PROXY_NDP_ON: Warning Open "proxy-ndp-on",
        "`proxy_ndp` is on for an uplink or a port.",
        "The host answers solicitations that the data plane answers or leaves to others.";
    IPV6_DISABLED: Error Open "ipv6-disabled",
        "`disable_ipv6` is set on the uplink of machines with IPv6 addresses.",
        "The kernel resolves no IPv6 next hop there.";

    PROXY_NEIGHBORS_LEFT: Warning Open "proxy-neighbors-left",
        "Proxy neighbors stand for machines' addresses.",
        "The host goes on answering for them when the machine is down or gone.";
    HOST_ROUTES_LEFT: Info Open "host-routes-left",
        "Host routes lead to ports of machines.",
        "They are not needed; without them the host reaches machines as the network does.";
    PROXY_DAEMON: Warning Open "proxy-daemon",
        "A daemon that answers ARP or solicitations for others runs here.",
        "Two answer for the same address, and that one does when the machine is down.";
    GATEWAY_SILENT: Error Open "gateway-silent",
        "The gateway of a default route did not answer when last asked.",
        "Nothing leaves the host.";
    NEIGHBOR_TABLE_SMALL: Warning Open "neighbor-table-small",
        "There are more machines than three quarters of `gc_thresh3`.",
        "Each has its gateway in the kernel's one table; what finds no room waits for seconds.";

    NO_DEFAULT_ROUTE: Error Open "no-default-route",
        "There is no default route of a family that machines have addresses of.",
        "What machines send to the internet is dropped (`no_route`).";
    DEFAULT_ROUTE_ELSEWHERE: Error Open "default-route-elsewhere",
        "The default route is not by an uplink.",
        "What machines send to the internet is dropped (`no_route`).";
    ROUTE_ELSEWHERE: Warning Open "route-elsewhere",
        "The host's route to a machine is by neither an uplink nor its port.",
        "The host does not reach that machine.";
    ADDRESS_ON_HOST: Error Open "address-on-host",
        "A machine's address is configured on the host itself.",
        "The host keeps it, and the machine does not get it.";
    ADDRESS_RESERVED: Error Open "address-reserved",
        "A machine's prefix has the gateway in it, or is a subnet's network or broadcast address.",
        "Serving it would cut the host off.";
    ADDRESS_TWICE: Error Open "address-twice",
        "Two machines declare the same prefix.",
        "One of them does not get it.";
    ADDRESS_PRIVATE: Warning Open "address-private",
        "A machine has a private address that the uplink's network does not have.",
        "It leaves the host without NAT, and nobody answers it.";
    ADDRESS_NOT_ON_LINK: Info Open "address-not-on-link",
        "A machine's prefix is in no subnet of an uplink, and nothing has come in for it.",
        "The network has to route it to this host, which cannot be seen from here.";
    ROUTED_PREFIX_ON_LINK: Info Open "routed-prefix-on-link",
        "The host has machines' IPv6 prefix on-link, behind a link-local gateway.",
        "If the network routes it, the host asks in vain for each unused address of it.";

    GUEST_IPV4_LINK_LOCAL: Warning Guests "guest-ipv4-link-local",
        "A running machine has an IPv4 link-local address.",
        "Its name leads to that one first, which the host cannot reach: callers wait for 3 s.";
    GUEST_IMAGE_LINK_LOCAL: Warning Guests "guest-image-link-local",
        "networkd in a machine's image will give it an IPv4 link-local address.",
        "Its name leads to that one first, which the host cannot reach: callers wait for 3 s.";
    GUEST_ONLY_ULA: Warning Open "guest-only-ula",
        "All IPv6 addresses of a machine are unique local ones (fc00::/7).",
        "The internet does not answer them, and glibc prefers IPv4 (RFC 6724).";
    GUESTS_NOT_READ: Info Guests "guests-not-read",
        "The network namespace of a machine was not found or not read in time.",
        "Its MTU and addresses are not judged.";
    PORT_DOWN: Warning Open "port-down",
        "A machine's port is set down.",
        "The machine has no network, and its addresses are not answered for.";
    MACHINE_LINK_DOWN: Info Open "machine-link-down",
        "A machine's port is up and has no carrier.",
        "The machine has not set its end up; its addresses are not answered for.";
    MACHINE_WITHOUT_PORT: Info Open "machine-without-port",
        "A declared machine has no port.",
        "It does not run, or its declaration is forgotten.";
    NO_MACHINES: Info Open "no-machines",
        "No machine is declared.",
        "Nothing is served.";
    FILE_BROKEN: Error Open "file-broken",
        "A file has a fault.",
        "What it says is not applied.";

    FORWARD_RULES_BYPASSED: Warning Firewall "forward-rules-bypassed",
        "nftables chains for forwarded packets have rules.",
        "Packets of machines are redirected before them: nothing there holds for machines.";
    FORWARD_POLICY_DROP: Info Firewall "forward-policy-drop",
        "The forward chain's policy is drop, as Docker sets it.",
        "Harmless: packets of machines do not pass it.";
    LEGACY_RULES_BYPASSED: Warning Firewall "legacy-rules-bypassed",
        "The older iptables has rules for forwarded packets.",
        "Packets of machines are redirected before them: nothing there holds for machines.";
    EGRESS_CHAIN: Warning Firewall "egress-chain",
        "An nftables chain on the uplink's egress hook drops.",
        "What machines send does pass it, unlike all other chains.";

    NETWORKD_PORT_FILE: Warning Networkd "networkd-port-file",
        "networkd gives ports (`ve-*`) a subnet, DHCP, NAT or an IPv4 link-local address.",
        "Host and machines get addresses that lead nowhere, and NAT that nothing passes.";
    NETWORKD_FOREIGN_GATEWAY: Warning Networkd "networkd-foreign-gateway",
        "networkd looks after an uplink, and a default route by it is not its own.",
        "It is gone once networkd configures the interface anew (`networkctl reconfigure`).";
    NETWORKD_FOREIGN_ROUTES: Warning Networkd "networkd-foreign-routes",
        "Host routes declare machines (source `kernel`), and networkd manages foreign ones.",
        "It deletes them when it configures their interface anew, and the machine is gone.";
    NETWORKD_FOREIGN_RULES: Info Networkd "networkd-foreign-rules",
        "Routing policy rules are not networkd's own, and it manages foreign ones.",
        "It deletes them when it configures an interface anew.";
}
