//! What questions say: addresses with ports, and what contradicts itself.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
};

use netspawn_ebpf::wire::Mac;

use super::args::{Inward, Packet, Question, Sent, Transport};
use crate::{fields, outcome::Usage, problem::Fault};

/// Source port of questions that name none: the first that the kernel does not hand out.
pub const ANY_PORT: u16 = 61_000;

/// An address, and perhaps a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct End {
    /// The address.
    pub address: IpAddr,
    /// The port.
    pub port: Option<u16>,
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.port {
            Some(port) => SocketAddr::new(self.address, port).fmt(f),
            None => self.address.fmt(f),
        }
    }
}

pub(super) fn address(text: &str) -> Result<IpAddr, Fault> {
    text.parse().map_err(|_| {
        Fault::new(
            format!("{text:?} is neither an IPv4 nor an IPv6 address"),
            "write an address such as 203.0.113.2 or 2001:db8::2",
        )
    })
}

#[expect(
    clippy::disallowed_methods,
    reason = "this parses text or bytes; no system call can fail here"
)]
pub(super) fn end(text: &str) -> Result<End, Fault> {
    const EXAMPLE: &str = "write 203.0.113.2, 203.0.113.2:443, 2001:db8::2 or [2001:db8::2]:443";
    let bare = text.strip_prefix('[').and_then(|t| t.strip_suffix(']'));
    if let Ok(address) = bare.unwrap_or(text).parse() {
        return Ok(End {
            address,
            port: None,
        });
    }
    if let Ok(both) = text.parse::<SocketAddr>() {
        return Ok(End {
            address: both.ip(),
            port: Some(both.port()),
        });
    }
    let fault = |what: String| Err(Fault::new(what, EXAMPLE));
    // What is wrong: the port, or the address.
    match text.rsplit_once(':') {
        Some((head, port)) if end(head).is_ok_and(|head| head.port.is_none()) => fault(format!(
            "{port:?} in {text:?} is not a port from 0 to 65535"
        )),
        Some((head, port)) if port.parse::<u16>().is_ok() && !head.contains(':') => {
            fault(format!("{head:?} in {text:?} is not an address"))
        }
        _ => fault(format!("{text:?} is not an address, nor one with a port")),
    }
}

pub(super) fn vlan(text: &str) -> Result<u16, Fault> {
    fields::vlan(
        text.parse()
            .map_err(|_| Fault::new(format!("{text:?} is not a number"), "write 1 to 4094"))?,
    )
}

/// A link-layer address of stations, one or many.
#[expect(
    clippy::disallowed_methods,
    reason = "this parses text or bytes; no system call can fail here"
)]
pub(super) fn any_mac(text: &str) -> Result<Mac, Fault> {
    let mut first = text.to_owned();
    // The check for one station is the only one that a group fails.
    if let Some(byte) = text.get(..2).and_then(|b| u8::from_str_radix(b, 16).ok()) {
        first.replace_range(..2, &format!("{:02x}", byte & !1));
        let mut mac = fields::mac(&first)?;
        mac[0] = byte;
        return Ok(mac);
    }
    fields::mac(text)
}

impl Question {
    /// What can be said of a question without looking at the host.
    ///
    /// # Errors
    /// [`Usage`] that names the part, what was expected, and an example.
    pub fn check(&self) -> Result<(), Usage> {
        match self {
            Question::Arp(asks) => check_asks(Sent::Arp, asks.target, asks.from),
            Question::Ndp(asks) => check_asks(Sent::Ndp, asks.target, asks.from),
            Question::In(question) => {
                let Inward {
                    source,
                    destination,
                    ..
                } = question;
                check_packet(
                    question.protocol,
                    Some(*source),
                    *destination,
                    &question.packet,
                )
            }
            Question::Out(question) => {
                check_sent(question.protocol, &question.ends, &question.packet)
            }
            Question::Host(question) => {
                check_sent(question.protocol, &question.ends, &question.packet)
            }
            Question::Pcap(_) => Ok(()),
        }
    }
}

/// Source, where there is one, and destination.
///
/// clap sees to there being one or two.
pub fn source_and_destination(ends: &[End]) -> (Option<End>, End) {
    match ends {
        [source, destination, ..] => (Some(*source), *destination),
        [destination] => (None, *destination),
        [] => unreachable!("clap asks for one at least"),
    }
}

fn check_sent(sent: Sent, ends: &[End], packet: &Packet) -> Result<(), Usage> {
    let (source, destination) = source_and_destination(ends);
    if let Some(transport) = sent.transport() {
        return check_packet(transport, source, destination, packet);
    }
    for end in ends {
        if end.port.is_some() {
            return Err(Usage(format!(
                "{end} names a port, which neither ARP nor NDP has; write {}",
                end.address
            )));
        }
    }
    if packet.size.is_some() || packet.ttl.is_some() || packet.df {
        return Err(Usage(
            "--size, --ttl and --df are for packets; leave them out for arp and ndp".to_owned(),
        ));
    }
    check_asks(sent, destination.address, source.map(|end| end.address))
}

fn check_asks(sent: Sent, target: IpAddr, from: Option<IpAddr>) -> Result<(), Usage> {
    let (wrong, right, other) = match sent {
        Sent::Arp => (IpAddr::is_ipv6 as fn(&IpAddr) -> bool, "IPv4", "ndp"),
        _ => (IpAddr::is_ipv4 as fn(&IpAddr) -> bool, "IPv6", "arp"),
    };
    for address in [Some(target), from].into_iter().flatten() {
        if wrong(&address) {
            return Err(Usage(format!(
                "{address} is not an {right} address; ask `{other}` about the other family, such \
                 as `explain {other} {}`",
                if other == "arp" {
                    "203.0.113.2"
                } else {
                    "2001:db8::2"
                }
            )));
        }
    }
    Ok(())
}

fn check_packet(
    transport: Transport,
    source: Option<End>,
    destination: End,
    packet: &Packet,
) -> Result<(), Usage> {
    let usage = |text: String| Err(Usage(text));
    let ends = || [source, Some(destination)].into_iter().flatten();
    if let Some(source) = source
        && source.address.is_ipv4() != destination.address.is_ipv4()
    {
        return usage(format!(
            "source {} and destination {} are of different families; write two IPv4 or two IPv6 \
             addresses",
            source.address, destination.address
        ));
    }
    match transport {
        Transport::Tcp | Transport::Udp => {
            if destination.port.is_none() {
                let address = destination.address;
                return usage(match address {
                    IpAddr::V4(_) => {
                        format!("destination {address} names no port; write {address}:443")
                    }
                    IpAddr::V6(_) => format!(
                        "destination {address} names no port; write [{address}]:443 (IPv6 with a \
                         port goes in brackets)"
                    ),
                });
            }
        }
        Transport::Icmp | Transport::Icmp6 => {
            if let Some(end) = ends().find(|end| end.port.is_some()) {
                return usage(format!(
                    "{end} names a port, which ICMP has not; write {}",
                    end.address
                ));
            }
            let (family, other) = match transport {
                Transport::Icmp => ("IPv4", "icmp6"),
                _ => ("IPv6", "icmp"),
            };
            if destination.address.is_ipv4() != (transport == Transport::Icmp) {
                return usage(format!(
                    "{} is not an {family} address; for the other family write `{other}`",
                    destination.address
                ));
            }
        }
    }
    if packet.df && destination.address.is_ipv6() {
        return usage(
            "--df is for IPv4; in IPv6 nothing is fragmented on the way, so leave it out"
                .to_owned(),
        );
    }
    let least = headers(transport, destination.address);
    if let Some(size) = packet.size
        && size < least
    {
        return usage(format!(
            "--size {size} is too small: the headers of such a packet have {least} bytes"
        ));
    }
    Ok(())
}

/// Bytes of the IP header and the one behind it.
pub const fn headers(transport: Transport, address: IpAddr) -> u16 {
    let ip = match address {
        IpAddr::V4(_) => 20,
        IpAddr::V6(_) => 40,
    };
    ip + match transport {
        Transport::Tcp => 20,
        Transport::Udp | Transport::Icmp | Transport::Icmp6 => 8,
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::cli::{Cli, Command};

    fn question(line: &str) -> Result<Question, String> {
        let cli = Cli::try_parse_from(
            ["netspawn-xdp", "explain"]
                .into_iter()
                .chain(line.split(' ')),
        )
        .map_err(|error| error.to_string())?;
        let Command::Explain(args) = cli.command else {
            panic!("not explain");
        };
        args.question.check().map_err(|error| error.to_string())?;
        Ok(args.question)
    }

    #[test]
    fn ends_have_a_port_or_not() {
        for (text, address, port) in [
            ("203.0.113.2", "203.0.113.2", None),
            ("203.0.113.2:443", "203.0.113.2", Some(443)),
            ("2001:db8::2", "2001:db8::2", None),
            ("[2001:db8::2]", "2001:db8::2", None),
            ("[2001:db8::2]:443", "2001:db8::2", Some(443)),
            // Not a port, as in every other program.
            ("2001:db8::2:443", "2001:db8::2:443", None),
        ] {
            let end = end(text).unwrap();
            assert_eq!(end.address, address.parse::<IpAddr>().unwrap(), "{text}");
            assert_eq!(end.port, port, "{text}");
        }
    }

    #[test]
    fn bad_ends_name_the_part() {
        for (text, part) in [
            ("", "\"\" is not an address"),
            ("203.0.113.2:", "\"\" in"),
            ("203.0.113.2:http", "\"http\" in"),
            ("203.0.113.2:65536", "\"65536\" in"),
            ("203.0.113:443", "\"203.0.113\" in"),
            ("[2001:db8::2]:x", "\"x\" in"),
            ("[2001:db8::2", "is not an address, nor"),
            ("web:443", "\"web\" in"),
            ("203.0.113.2/32", "is not an address, nor"),
        ] {
            let fault = end(text).unwrap_err();
            assert!(fault.message.contains(part), "{text}: {fault}");
            assert!(fault.remedy.contains("[2001:db8::2]:443"));
        }
    }

    #[test]
    fn all_forms_are_understood() {
        for line in [
            "arp 203.0.113.2",
            "arp 203.0.113.2 --from 203.0.113.77 --uplink eth0 --vlan 30",
            "ndp 2001:db8::2 --from ::",
            "in tcp 198.51.100.7:1234 203.0.113.2:443",
            "in tcp 198.51.100.7 203.0.113.2:443 --size 1500 --df --ttl 1",
            "in udp [2001:db8:ffff::1]:53 [2001:db8::2]:4000 --mac 02:00:00:00:00:09",
            "in icmp6 2001:db8:ffff::1 2001:db8::2 --to-mac 33:33:00:00:00:01",
            "out web tcp 198.51.100.7:443",
            "out web udp 203.0.113.2:68 198.51.100.7:53",
            "out web icmp6 2001:db8::1",
            "out web arp 169.254.1.1",
            "out web ndp :: 2001:db8::2",
            "host tcp 203.0.113.2:22",
            "host ndp 2001:db8::2 --uplink eth0",
            "pcap trace.pcap",
            "pcap - --in eth0",
            "pcap trace.pcap --out web",
        ] {
            question(line).unwrap_or_else(|error| panic!("{line}: {error}"));
        }
    }

    #[test]
    fn contradictions_are_named_with_a_way_out() {
        for (line, text) in [
            ("arp 2001:db8::2", "not an IPv4 address; ask `ndp`"),
            ("ndp 203.0.113.2", "not an IPv6 address; ask `arp`"),
            (
                "ndp 2001:db8::2 --from 203.0.113.1",
                "203.0.113.1 is not an IPv6",
            ),
            (
                "in tcp 198.51.100.7:1 203.0.113.2",
                "names no port; write 203.0.113.2:443",
            ),
            ("in tcp [::1]:1 2001:db8::2", "write [2001:db8::2]:443"),
            ("in tcp 198.51.100.7 [2001:db8::2]:1", "different families"),
            (
                "in icmp 198.51.100.7 203.0.113.2:1",
                "which ICMP has not; write 203.0.113.2",
            ),
            ("in icmp 2001:db8::1 2001:db8::2", "write `icmp6`"),
            ("in icmp6 198.51.100.7 203.0.113.2", "write `icmp`"),
            (
                "in udp 198.51.100.7 203.0.113.2:1 --size 27",
                "have 28 bytes",
            ),
            ("in udp [::1]:1 [2001:db8::2]:1 --df", "--df is for IPv4"),
            (
                "out web arp 203.0.113.2:80",
                "which neither ARP nor NDP has",
            ),
            ("out web ndp 2001:db8::1 --ttl 3", "are for packets"),
            ("out web tcp 203.0.113.2", "names no port"),
            ("pcap x --in eth0 --out web", "cannot be used with"),
        ] {
            let error = question(line).unwrap_err();
            assert!(error.contains(text), "{line}: {error}");
        }
    }

    #[test]
    fn groups_may_be_sent_to() {
        assert_eq!(any_mac("ff:ff:ff:ff:ff:ff").unwrap(), [0xff; 6]);
        assert_eq!(any_mac("02:00:00:00:00:05").unwrap(), [2, 0, 0, 0, 0, 5]);
        assert!(any_mac("02:00").is_err());
        assert!(any_mac("x").is_err());
    }
}
