//! What became of a frame, for people and for programs.

use std::{
    io::{self, Write},
    net::IpAddr,
};

use netspawn_ebpf::{
    abi::{HOST, NOBODY, NextHop, Owner, endpoint_flag},
    verdict::{Action, Kind, Reason, Verdict},
    wire::{ArpHdr, EthHdr, Frame as _, Ip6, Ipv4Hdr, L3, L4_V6, ether_type, ndp, protocol},
};
use serde::Serialize;

use super::{
    At, Case,
    decode::{Decoded, decode, hex},
    judge::Judged,
    run::{Run, XDP_PASS},
    world::{World, address6, is_machine},
};
use crate::{model::DisplayMac, output::Report};

/// The router that a frame would be sent to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Next {
    /// Its address by the host's routes; `null` for a destination on the link.
    pub address: Option<IpAddr>,
    /// Its link-layer address; `null` where the host has still to ask for it.
    pub mac: Option<String>,
}

/// What would happen to one frame: an object of `explain --json`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Answer {
    /// Its number in the capture.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub number: Option<u64>,
    /// `answered`, `forwarded`, `dropped`, `passed`; `skipped` for a captured frame that
    /// the data plane has sent itself.
    pub verdict: &'static str,
    /// Name of the reason, as `counters` has it; `null` for a skipped one.
    pub reason: Option<&'static str>,
    /// The reason in a sentence.
    pub meaning: String,
    /// The machine that it is for, or whose address is asked for; of what a machine sends
    /// to others than machines, that one.
    pub machine: Option<String>,
    /// That machine's tenant.
    pub tenant: Option<String>,
    /// That machine's port.
    pub port: Option<String>,
    /// The machine that sends it.
    pub from: Option<String>,
    /// Where the frame leaves, or, at tc ingress for the host, comes in again; `null`
    /// when nothing leaves.
    pub interface: Option<String>,
    /// How: `redirect_peer`, `redirect`, `redirect_neigh`, `redirect_ingress`, `xdp_tx`,
    /// `xdp_redirect`.
    pub by: Option<&'static str>,
    /// The router.
    pub next_hop: Option<Next>,
    /// The program that decides.
    pub program: &'static str,
    /// The interface that it hangs on.
    pub hook: String,
    /// The frame that is asked about.
    pub question: Decoded,
    /// Its bytes, without the tag.
    pub question_hex: String,
    /// The frame that would leave, for a drop the ICMP error about it.
    pub frame: Option<Decoded>,
    /// The bytes of that frame.
    pub hex: Option<String>,
    /// Whether the programs did what the library says; `null` where the kernel takes no
    /// such frame for a run, and the library alone speaks.
    pub agrees: Option<bool>,
    /// What is good to know besides.
    pub remarks: Vec<String>,
    /// Whether the bytes are shown to people too.
    #[serde(skip)]
    pub verbose: bool,
}

/// The address that a frame asks for, or goes to.
pub fn target(frame: &[u8]) -> Option<IpAddr> {
    let eth = frame.read::<EthHdr>(0)?;
    match u16::from_be(eth.ether_type) {
        ether_type::ARP => Some(frame.read::<ArpHdr>(L3)?.tpa.into()),
        ether_type::IPV4 => Some(frame.read::<Ipv4Hdr>(L3)?.dst_addr.into()),
        ether_type::IPV6 => {
            let ip = Ip6::read(frame)?;
            let discovers = ip.next_header == protocol::ICMPV6
                && matches!(frame.read::<u8>(L4_V6), Some(135 | 136));
            if discovers {
                return frame.read::<[u8; 16]>(ndp::TARGET).map(IpAddr::from);
            }
            Some(address6(&ip.destination))
        }
        _ => None,
    }
}

fn source(frame: &[u8]) -> Option<IpAddr> {
    let eth = frame.read::<EthHdr>(0)?;
    match u16::from_be(eth.ether_type) {
        ether_type::ARP => Some(frame.read::<ArpHdr>(L3)?.spa.into()),
        ether_type::IPV4 => Some(frame.read::<Ipv4Hdr>(L3)?.src_addr.into()),
        ether_type::IPV6 => Some(address6(&Ip6::read(frame)?.source)),
        _ => None,
    }
}

/// Where a frame goes.
struct Way {
    interface: Option<String>,
    by: Option<&'static str>,
    next_hop: Option<Next>,
}

impl Answer {
    /// Puts together what the library and the programs say.
    #[expect(
        clippy::disallowed_methods,
        reason = "this parses text or bytes; no system call can fail here"
    )]
    pub fn new(
        world: &World,
        case: &Case,
        judged: &Judged<'_>,
        runs: Result<&[Run], &'static str>,
    ) -> Self {
        let verdict = &judged.verdict;
        let last = runs.ok().and_then(<[Run]>::last);
        let reason = verdict.reason;
        let (hook, sender) = match case.at {
            At::Uplink(ifindex) | At::Host(ifindex) => (ifindex, None),
            At::Port(id) => (world.machine(id).map_or(0, |e| e.ifindex), Some(id)),
        };
        let hook = world.interface(hook);
        let way = way(world, case, judged, last, &hook);
        let machine = concerned(world, case, verdict);
        let out = last.filter(|_| way.interface.is_some());
        let mut remarks = case.remarks.clone();
        remarks.extend(hints(world, case, verdict));
        if let Err(why) = runs {
            remarks.push(format!("{why}; the library alone has decided"));
        }
        Answer {
            number: None,
            verdict: match reason.kind() {
                Kind::Pass => "passed",
                Kind::Drop => "dropped",
                Kind::Answer => "answered",
                Kind::Forward => "forwarded",
            },
            reason: Some(reason.name()),
            meaning: reason.meaning().to_owned(),
            machine: machine.and_then(|id| world.name(id)),
            tenant: machine.and_then(|id| world.tenant(id)),
            port: machine
                .and_then(|id| world.machine(id))
                .filter(|endpoint| endpoint.ifindex != 0)
                .map(|endpoint| world.interface(endpoint.ifindex)),
            from: sender.and_then(|id| world.name(id)),
            interface: way.interface,
            by: way.by,
            next_hop: way.next_hop,
            program: match (last, case.at) {
                (Some(run), _) => run.program,
                (None, At::Uplink(_)) => netspawn_ebpf::abi::program::UPLINK_INGRESS,
                (None, At::Host(_)) => netspawn_ebpf::abi::program::UPLINK_EGRESS,
                (None, At::Port(_)) => netspawn_ebpf::abi::program::PORT_INGRESS,
            },
            hook,
            question: decode(&case.bytes, case.tag),
            question_hex: hex(&case.bytes),
            frame: out.map(|run| decode(&run.frame, None)),
            hex: out.map(|run| hex(&run.frame)),
            agrees: runs.ok().map(|_| true),
            remarks,
            verbose: false,
        }
    }

    /// A captured frame that is none of the data plane's business.
    pub fn skipped(number: u64, bytes: &[u8], why: &str) -> Self {
        Answer {
            number: Some(number),
            verdict: "skipped",
            reason: None,
            meaning: format!("{why}."),
            machine: None,
            tenant: None,
            port: None,
            from: None,
            interface: None,
            by: None,
            next_hop: None,
            program: "",
            hook: String::new(),
            question: decode(bytes, None),
            question_hex: hex(bytes),
            frame: None,
            hex: None,
            agrees: None,
            remarks: Vec::new(),
            verbose: false,
        }
    }

    /// One line, for captures.
    pub fn line(&self) -> String {
        let number = self.number.unwrap_or_default();
        let reason = self.reason.unwrap_or("-");
        let place = match (&self.interface, &self.machine) {
            (Some(interface), _) => format!("> {interface}"),
            (None, Some(machine)) => machine.clone(),
            (None, None) => "-".to_owned(),
        };
        format!(
            "{number:>6}  {:<9}  {reason:<16}  {place:<17}  {}\n",
            self.verdict,
            self.question.summary()
        )
    }
}

/// Back where it came from.
fn back(case: &Case, last: Option<&Run>, hook: &str) -> Way {
    let by = match case.at {
        _ if last.is_some_and(|run| run.xdp && run.code != XDP_PASS) => "xdp_tx",
        // Up to the host, which has asked.
        At::Host(_) => "redirect_ingress",
        _ => "redirect",
    };
    Way {
        interface: Some(hook.to_owned()),
        by: Some(by),
        next_hop: None,
    }
}

fn way(world: &World, case: &Case, judged: &Judged<'_>, last: Option<&Run>, hook: &str) -> Way {
    let nowhere = Way {
        interface: None,
        by: None,
        next_hop: None,
    };
    let verdict = &judged.verdict;
    match (verdict.action, verdict.endpoint, verdict.hop) {
        (Action::Arp | Action::Ndp | Action::Echo, ..) => back(case, last, hook),
        (Action::Drop, ..) if judged.error => back(case, last, hook),
        (Action::Deliver, Some(endpoint), _) => {
            let peer = endpoint.flags & endpoint_flag::NO_PEER == 0;
            let by = match case.at {
                _ if last.is_some_and(|run| run.xdp && run.code != XDP_PASS) => "xdp_redirect",
                At::Host(_) => "redirect",
                _ if peer => "redirect_peer",
                _ => "redirect",
            };
            Way {
                interface: Some(world.interface(endpoint.ifindex)),
                by: Some(by),
                next_hop: None,
            }
        }
        (Action::Out, _, Some(hop)) => {
            let fresh = world.is_fresh(hop);
            Way {
                interface: Some(world.interface(hop.ifindex)),
                by: Some(if fresh { "redirect" } else { "redirect_neigh" }),
                next_hop: Some(next(world, case, hop, fresh)),
            }
        }
        (Action::ToHost, _, Some(hop)) => Way {
            interface: Some(world.interface(hop.ifindex)),
            by: Some("redirect_ingress"),
            next_hop: None,
        },
        _ => nowhere,
    }
}

fn next(world: &World, case: &Case, hop: &NextHop, fresh: bool) -> Next {
    let to = target(&case.bytes);
    let address = to.and_then(|to| world.gateway(to, hop.ifindex));
    let mac = if fresh {
        Some(hop.dst_mac)
    } else {
        let neighbor = address.or(to);
        neighbor.and_then(|address| world.neighbor(hop.ifindex, address))
    };
    Next {
        address,
        mac: mac.map(|mac| DisplayMac(mac).to_string()),
    }
}

/// The machine that an answer names.
fn concerned(world: &World, case: &Case, verdict: &Verdict<'_>) -> Option<Owner> {
    if is_machine(verdict.id) {
        return Some(verdict.id);
    }
    if let At::Port(id) = case.at {
        return Some(id);
    }
    let owner = world.owner(target(&case.bytes)?);
    is_machine(owner).then_some(owner)
}

/// What helps on with a verdict.
fn hints(world: &World, case: &Case, verdict: &Verdict<'_>) -> Vec<String> {
    let name = |id: Owner| world.name(id).unwrap_or_else(|| format!("endpoint {id}"));
    let to = target(&case.bytes);
    let from = source(&case.bytes);
    let owner = to.map_or(NOBODY, |to| world.owner(to));
    let mut hints = Vec::new();
    let not_up = |id: Owner| {
        let endpoint = world.machine(id).copied().unwrap_or_default();
        if endpoint.flags & endpoint_flag::UP != 0 {
            return None;
        }
        Some(if endpoint.ifindex == 0 {
            format!("{} has it, but has no port: is it running?", name(id))
        } else {
            format!(
                "{} has it, but its port {} has no carrier",
                name(id),
                world.interface(endpoint.ifindex)
            )
        })
    };
    match (verdict.reason, to) {
        (Reason::NotOwned, Some(to)) => match is_machine(owner).then(|| not_up(owner)).flatten() {
            Some(hint) => hints.push(hint),
            None => hints.push(format!(
                "no machine has {to}; `netspawn-xdp list` shows who has what"
            )),
        },
        (Reason::EndpointDown, _) => hints.extend(not_up(verdict.id)),
        (Reason::ForHost, Some(to)) if owner == HOST => {
            hints.push(format!("{to} is {}", world.of_host(to)));
        }
        (Reason::VlanPass, _) if is_machine(owner) => {
            let vlan = world.machine(owner).map_or(0, |endpoint| endpoint.vlan);
            hints.push(match vlan {
                0 => format!("{} is in no VLAN", name(owner)),
                vlan => format!("{} is in VLAN {vlan}", name(owner)),
            });
        }
        (Reason::TooBig, _) if verdict.mtu != 0 => {
            hints.push(format!("the MTU of the way on is {}", verdict.mtu));
        }
        (Reason::TenantIsolation, _) if is_machine(owner) => {
            let tenant = |id| world.tenant(id).unwrap_or_else(|| "none".to_owned());
            hints.push(format!(
                "tenant of {}: {}, of {}: {}; see `isolation` in netspawn.toml",
                name(verdict.id),
                tenant(verdict.id),
                name(owner),
                tenant(owner)
            ));
        }
        (Reason::HostDenied, _) => hints.push("see `host` in netspawn.toml".to_owned()),
        (Reason::SpoofedSource, _) => {
            if let Some(from) = from {
                hints.push(match world.owner(from) {
                    HOST => format!("{from} is {}", world.of_host(from)),
                    id if is_machine(id) => format!("{from} is an address of {}", name(id)),
                    _ => format!(
                        "{from} is not declared for {}; `sources` in its file lets a machine send \
                         from what it does not own",
                        name(verdict.id)
                    ),
                });
            }
        }
        (Reason::SpoofedMac, _) => {
            if let Some(endpoint) = world.machine(verdict.id) {
                hints.push(format!(
                    "{} has {}; `any-mac = true` in its file lets it use others",
                    name(verdict.id),
                    DisplayMac(endpoint.mac)
                ));
            }
        }
        (Reason::WrongGateway, _) => {
            if let Some(endpoint) = world.machine(verdict.id) {
                hints.push(format!(
                    "the port's link-layer address is {}",
                    DisplayMac(endpoint.port_mac)
                ));
            }
        }
        _ => {}
    }
    if let Some(hop) = verdict.hop
        && verdict.action == Action::Out
        && !world.is_fresh(hop)
    {
        hints.push(
            "the kernel puts in the link-layer addresses from its own tables; those shown are \
             the machine's"
                .to_owned(),
        );
    }
    if verdict.reason.is_told() && verdict.id != NOBODY {
        hints.push("the agent would be told, and say so in its log".to_owned());
    }
    hints
}

impl Report for Answer {
    fn cells(&self, out: &mut dyn Write) -> io::Result<()> {
        if let Some(number) = self.number {
            writeln!(out, "frame\t{number}")?;
        }
        writeln!(out, "question\t{}", self.question.summary())?;
        let Some(reason) = self.reason else {
            return writeln!(out, "verdict\t{}: {}", self.verdict, self.meaning);
        };
        writeln!(out, "verdict\t{} {reason}: {}", self.verdict, self.meaning)?;
        writeln!(out, "decided by\t{} on {}", self.program, self.hook)?;
        if let Some(machine) = &self.machine {
            let port = self.port.as_deref().unwrap_or("-");
            let tenant = self.tenant.as_deref().unwrap_or("-");
            writeln!(out, "machine\t{machine} (tenant {tenant}, port {port})")?;
        }
        if let Some(from) = self
            .from
            .as_ref()
            .filter(|from| Some(*from) != self.machine.as_ref())
        {
            writeln!(out, "from\t{from}")?;
        }
        if let (Some(interface), Some(by)) = (&self.interface, self.by) {
            let what = match (self.verdict, by) {
                ("dropped", _) => "ICMP error",
                (_, "redirect_ingress") => "to the host",
                _ => "leaves",
            };
            let hop = self.next_hop.as_ref().map(|hop| {
                let address = hop
                    .address
                    .map_or("on the link".to_owned(), |a| a.to_string());
                let mac = hop.mac.as_deref();
                let mac = mac.unwrap_or("not in the kernel's neighbor table yet");
                format!(", next hop {address} ({mac})")
            });
            let way = match by {
                "redirect_ingress" => "in on",
                "redirect_peer" => "through",
                _ => "out of",
            };
            writeln!(
                out,
                "{what}\t{way} {interface}, by {by}{}",
                hop.unwrap_or_default()
            )?;
        }
        for layer in self.frame.iter().flat_map(|frame| &frame.0) {
            writeln!(out, "  {}\t{}", layer.name, layer.line())?;
            for layer in &layer.inner {
                writeln!(out, "    {}\t{}", layer.name, layer.line())?;
            }
        }
        if self.verbose {
            writeln!(out, "asked in hex\t{}", self.question_hex)?;
            if let Some(hex) = &self.hex {
                writeln!(out, "leaves in hex\t{hex}")?;
            }
        }
        for remark in &self.remarks {
            writeln!(out, "note\t{remark}")?;
        }
        Ok(())
    }
}
