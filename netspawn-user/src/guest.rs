//! What a machine needs to know of its own network: a file for systemd-networkd
//! in the machine, and the same as commands of `ip`.

mod image;

use std::{fmt::Write as _, net::IpAddr};

use ipnet::IpNet;
use netspawn_ebpf::wire::Mac;
use sha2::{Digest as _, Sha256};

pub use image::{FILE, Image, Networkd};

use crate::model::DisplayMac;

/// The gateways that every port answers for.
const GATEWAY4: &str = "169.254.1.1";
const GATEWAY6: &str = "fe80::1";
/// What a machine's end has unless it is told otherwise, in bytes.
const MTU: u32 = 1500;
/// How many addresses of a prefix are tried for one of the machine's own.
const TRIED: usize = 256;
const DIGEST: &str = "# sha256: ";

/// The machine's end of its link, as the machine sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// A veth of this name.
    Veth(String),
    /// The network card with this address, of a virtual machine.
    Card(Mac),
    /// The only network card of a virtual machine.
    AnyCard,
}

/// A machine, as far as its own network is concerned.
#[derive(Clone, Debug)]
pub struct Guest<'a> {
    /// Name.
    pub name: &'a str,
    /// What it owns, the preferred address of each family first.
    pub addresses: &'a [IpNet],
    /// Prefixes of other machines.
    pub others: &'a [IpNet],
    /// Its end of the link.
    pub end: End,
    /// The smallest MTU on its way out, in bytes of IP packet.
    pub mtu: Option<u32>,
}

impl Guest<'_> {
    /// The addresses to configure: single ones, and of each prefix the first
    /// that is free, unless a single one is in it already.
    pub fn own(&self) -> Vec<IpAddr> {
        let mut own: Vec<IpAddr> = Vec::new();
        for prefix in self.addresses {
            if single(prefix) {
                own.push(prefix.addr());
            } else if !self
                .addresses
                .iter()
                .any(|other| single(other) && prefix.contains(other))
            {
                own.extend(self.first(prefix));
            }
        }
        own
    }

    /// The first usable address of a prefix that no longer one takes away: the
    /// network's own is left out, which IPv4 stacks may treat as broadcast and
    /// which in IPv6 is every router's (RFC 4291 2.6.1).
    fn first(&self, prefix: &IpNet) -> Option<IpAddr> {
        let pair = prefix.prefix_len() + 1 == prefix.max_prefix_len();
        let taken = |address: &IpAddr| {
            let longer = |other: &&IpNet| other.prefix_len() > prefix.prefix_len();
            let mut longer = self.others.iter().filter(longer);
            longer.any(|other| other.contains(address))
        };
        prefix
            .hosts()
            .filter(|address| pair || *address != prefix.network())
            .take(TRIED)
            .find(|address| !taken(address))
    }

    /// The prefixes that are more than one address.
    fn prefixes(&self) -> impl Iterator<Item = &IpNet> {
        self.addresses.iter().filter(|prefix| !single(prefix))
    }

    fn has(&self, v4: bool) -> bool {
        self.addresses
            .iter()
            .any(|prefix| prefix.addr().is_ipv4() == v4)
    }

    /// The MTU, where the default is too large.
    fn small_mtu(&self) -> Option<u32> {
        self.mtu.filter(|mtu| *mtu < MTU)
    }

    /// The `.network` file, systemd.network(5), with a digest that tells
    /// whether anybody has changed it.
    pub fn network_file(&self) -> String {
        let mut text = format!(
            "# Made by `netspawn-xdp guest {}`. Installing it again replaces it, unless\n\
             # somebody has changed it.\n\n",
            self.name
        );
        text += &self.matches();
        if let Some(mtu) = self.small_mtu() {
            let _ = write!(text, "\n[Link]\nMTUBytes={mtu}\n");
        }
        text += "\n[Network]\n\
            DHCP=no\n\
            # Callers by name would try an IPv4 link-local address first, in vain.\n\
            LinkLocalAddressing=ipv6\n\
            # The host sees to it that nobody else has the addresses; the test would take two\n\
            # seconds, in which callers by name wait for the link-local one.\n\
            IPv6DuplicateAddressDetection=0\n\
            IPv6AcceptRA=no\n\
            LLDP=no\n\
            EmitLLDP=no\n";
        let own = self.own();
        for address in &own {
            let _ = write!(text, "\n[Address]\nAddress={}\n", IpNet::from(*address));
        }
        for prefix in self.prefixes() {
            let _ = write!(
                text,
                "\n# The rest of the prefix: configure more of it as [Address], or make the type\n\
                 # `local`, and all of it is this machine's.\n\
                 [Route]\nDestination={prefix}\nType=unreachable\n"
            );
        }
        if self.has(true) {
            let _ = write!(text, "\n[Route]\nGateway={GATEWAY4}\nGatewayOnLink=yes\n");
            let mut v4 = own.iter().filter(|address| address.is_ipv4());
            if let (Some(first), Some(_)) = (v4.next(), v4.next()) {
                let _ = writeln!(text, "PreferredSource={first}");
            }
        }
        if self.has(false) {
            let _ = write!(text, "\n[Route]\nGateway={GATEWAY6}\n");
        }
        signed(&text)
    }

    fn matches(&self) -> String {
        match &self.end {
            End::Veth(name) => format!("[Match]\nKind=veth\nName={name}\n"),
            End::Card(mac) => format!("[Match]\nMACAddress={}\n", DisplayMac(*mac)),
            End::AnyCard => {
                "[Match]\nType=ether\n# Hardware, and no bridge, VLAN or veth.\nKind=!*\n"
                    .to_owned()
            }
        }
    }

    /// The same as commands, for a machine without systemd-networkd.
    pub fn commands(&self) -> Vec<String> {
        let device = match &self.end {
            End::Veth(name) => name,
            End::Card(_) | End::AnyCard => "eth0",
        };
        let mtu = self
            .small_mtu()
            .map_or(String::new(), |mtu| format!(" mtu {mtu}"));
        let mut lines = vec![format!("ip link set {device} up{mtu}")];
        let own = self.own();
        for address in &own {
            let nodad = if address.is_ipv6() { " nodad" } else { "" };
            lines.push(format!(
                "ip address add {} dev {device}{nodad}",
                IpNet::from(*address)
            ));
        }
        for prefix in self.prefixes() {
            lines.push(format!("ip route add unreachable {prefix}"));
        }
        if self.has(true) {
            let mut v4 = own.iter().filter(|address| address.is_ipv4());
            let source = match (v4.next(), v4.next()) {
                (Some(first), Some(_)) => format!(" src {first}"),
                _ => String::new(),
            };
            lines.push(format!(
                "ip route add default via {GATEWAY4} dev {device} onlink{source}"
            ));
        }
        if self.has(false) {
            lines.push(format!("ip route add default via {GATEWAY6} dev {device}"));
        }
        lines
    }
}

fn single(prefix: &IpNet) -> bool {
    prefix.prefix_len() == prefix.max_prefix_len()
}

/// A text with a line that has the digest of all others.
fn signed(text: &str) -> String {
    let digest = hex(text);
    match text.split_once("\n\n") {
        Some((head, body)) => format!("{head}\n{DIGEST}{digest}\n\n{body}"),
        None => format!("{DIGEST}{digest}\n{text}"),
    }
}

/// Whether a text is as [`Guest::network_file`] made it, for whatever machine.
fn is_unchanged(text: &str) -> bool {
    let mut digest = None;
    let mut rest = String::new();
    for line in text.split_inclusive('\n') {
        match line.strip_prefix(DIGEST) {
            Some(found) if digest.is_none() => digest = Some(found.trim_end_matches('\n')),
            _ => rest += line,
        }
    }
    digest == Some(hex(&rest).as_str())
}

fn hex(text: &str) -> String {
    Sha256::digest(text)
        .iter()
        .fold(String::new(), |mut all, byte| {
            let _ = write!(all, "{byte:02x}");
            all
        })
}

#[cfg(test)]
mod tests;
