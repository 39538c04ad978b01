//! The command line of `explain`.

use std::{net::IpAddr, path::PathBuf};

use clap::{Args, Subcommand, ValueEnum};
use netspawn_ebpf::wire::Mac;

use super::spec::{End, address, any_mac, end, vlan};
use crate::fields;

/// `explain`.
#[derive(Args, Clone, Debug)]
#[command(after_help = "\
The programs that are attached are loaded once more, with the tables of the data plane
and counters of their own, and run on the frame by BPF_PROG_TEST_RUN: nothing is sent,
counted or told. Needs an uplink that is attached.

Examples:
  netspawn-xdp explain arp 203.0.113.2
  netspawn-xdp explain in tcp 198.51.100.7:1234 203.0.113.2:443
  netspawn-xdp explain out web icmp6 2001:db8::1
  netspawn-xdp explain pcap trace.pcap")]
pub struct ExplainArgs {
    /// What is asked.
    #[command(subcommand)]
    pub question: Question,
}

/// What is asked.
#[derive(Clone, Debug, Subcommand)]
pub enum Question {
    /// The network asks by ARP who has an address
    Arp(Asks),
    /// The network solicits a neighbor
    Ndp(Asks),
    /// A packet comes from the network
    In(Inward),
    /// A machine sends a packet, or asks for a neighbor
    Out(Outward),
    /// The host itself sends a packet, or asks for a neighbor
    Host(FromHost),
    /// Every frame of a capture, pcap or pcapng
    Pcap(Captured),
}

/// `explain arp`, `explain ndp`.
#[derive(Args, Clone, Debug)]
pub struct Asks {
    /// The address that is looked for
    #[arg(value_name = "ADDR", value_parser = address)]
    pub target: IpAddr,
    /// Who asks; 0.0.0.0 or :: for a probe [default: the gateway]
    #[arg(long, value_name = "ADDR", value_parser = address)]
    pub from: Option<IpAddr>,
    /// How the frame is made.
    #[command(flatten)]
    pub shape: Shape,
    /// Where it comes in [default: the uplink that leads to the address]
    #[arg(long, value_name = "UPLINK", value_parser = fields::interface_name)]
    pub uplink: Option<String>,
}

/// `explain in`.
#[derive(Args, Clone, Debug)]
#[command(after_help = "\
Examples:
  netspawn-xdp explain in tcp 198.51.100.7:1234 203.0.113.2:443
  netspawn-xdp explain in udp [2001:db8:ffff::1]:53 [2001:db8::2]:4000 --size 1500
  netspawn-xdp explain in icmp 198.51.100.7 203.0.113.2 --ttl 1")]
pub struct Inward {
    /// What the packet carries
    #[arg(value_enum, value_name = "PROTOCOL")]
    pub protocol: Transport,
    /// Where it comes from, with or without a port; IPv6 with a port in brackets
    #[arg(value_name = "SOURCE", value_parser = end)]
    pub source: End,
    /// Where it goes, for TCP and UDP with the port
    #[arg(value_name = "DESTINATION", value_parser = end)]
    pub destination: End,
    /// How the frame is made.
    #[command(flatten)]
    pub shape: Shape,
    /// How the packet is made.
    #[command(flatten)]
    pub packet: Packet,
    /// Where it comes in [default: the uplink that leads to the source]
    #[arg(long, value_name = "UPLINK", value_parser = fields::interface_name)]
    pub uplink: Option<String>,
}

/// `explain out`.
#[derive(Args, Clone, Debug)]
#[command(after_help = "\
Examples:
  netspawn-xdp explain out web tcp 198.51.100.7:443
  netspawn-xdp explain out web udp 203.0.113.9:5000 198.51.100.7:53
  netspawn-xdp explain out web icmp6 2001:db8::1
  netspawn-xdp explain out web arp 169.254.1.1")]
pub struct Outward {
    /// The machine
    #[arg(value_name = "MACHINE", value_parser = fields::machine_name)]
    pub machine: String,
    /// What is sent
    #[arg(value_enum, value_name = "PROTOCOL")]
    pub protocol: Sent,
    /// Where it comes from [default: the machine's first address], and where it goes, for
    /// TCP and UDP with the port; for ARP and NDP who is looked for
    #[arg(value_name = "[SOURCE] DESTINATION", num_args = 1..=2, required = true,
          value_parser = end)]
    pub ends: Vec<End>,
    /// How the frame is made.
    #[command(flatten)]
    pub shape: Shape,
    /// How the packet is made.
    #[command(flatten)]
    pub packet: Packet,
}

/// `explain host`.
#[derive(Args, Clone, Debug)]
#[command(after_help = "\
The host's own packets meet the data plane on their way out of an uplink.

Examples:
  netspawn-xdp explain host tcp 203.0.113.2:22
  netspawn-xdp explain host arp 203.0.113.2")]
pub struct FromHost {
    /// What is sent
    #[arg(value_enum, value_name = "PROTOCOL")]
    pub protocol: Sent,
    /// Where it comes from [default: the host's address on the uplink], and where it goes,
    /// for TCP and UDP with the port; for ARP and NDP who is looked for
    #[arg(value_name = "[SOURCE] DESTINATION", num_args = 1..=2, required = true,
          value_parser = end)]
    pub ends: Vec<End>,
    /// How the frame is made.
    #[command(flatten)]
    pub shape: Shape,
    /// How the packet is made.
    #[command(flatten)]
    pub packet: Packet,
    /// Where it goes out [default: the uplink that leads to the destination]
    #[arg(long, value_name = "UPLINK", value_parser = fields::interface_name)]
    pub uplink: Option<String>,
}

/// `explain pcap`.
#[derive(Args, Clone, Debug)]
#[command(after_help = "\
Without --in and --out the link-layer addresses say where a frame meets the data plane. A
capture has to be of Ethernet: `tcpdump -i any` leaves the link-layer addresses out.

Examples:
  tcpdump -i eth0 -c 100 -w trace.pcap; netspawn-xdp explain pcap trace.pcap
  netspawn-xdp explain pcap trace.pcap --in eth0 -v
  netspawn-xdp explain pcap web.pcap --out web --json")]
pub struct Captured {
    /// The capture, or - for standard input
    pub file: PathBuf,
    /// Take the frames as coming in on this uplink
    #[arg(long = "in", value_name = "UPLINK", value_parser = fields::interface_name,
          conflicts_with = "machine")]
    pub uplink: Option<String>,
    /// Take the frames as sent by this machine
    #[arg(long = "out", value_name = "MACHINE", value_parser = fields::machine_name)]
    pub machine: Option<String>,
}

/// How the frame around a packet or question is made.
#[derive(Args, Clone, Debug, Default)]
pub struct Shape {
    /// 802.1Q id of the frame
    #[arg(long, value_name = "ID", value_parser = vlan)]
    pub vlan: Option<u16>,
    /// Link-layer address that it comes from [default: what the sender has]
    #[arg(long, value_name = "MAC", value_parser = fields::mac)]
    pub mac: Option<Mac>,
    /// Link-layer address that it is sent to [default: what the sender would use]
    #[arg(long, value_name = "MAC", value_parser = any_mac)]
    pub to_mac: Option<Mac>,
}

/// How a packet is made.
#[derive(Args, Clone, Debug, Default)]
pub struct Packet {
    /// Length of the IP packet in bytes [default: its headers]
    #[arg(long, value_name = "BYTES")]
    pub size: Option<u16>,
    /// TTL or hop limit [default: 64]
    #[arg(long, value_name = "HOPS")]
    pub ttl: Option<u8>,
    /// Forbid fragments, as path MTU discovery does (IPv4)
    #[arg(long)]
    pub df: bool,
}

/// What a packet carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Transport {
    /// The first packet of a TCP connection
    Tcp,
    /// A UDP datagram
    Udp,
    /// An ICMP echo request
    Icmp,
    /// An ICMPv6 echo request
    Icmp6,
}

/// What a machine or the host sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Sent {
    /// The first packet of a TCP connection
    Tcp,
    /// A UDP datagram
    Udp,
    /// An ICMP echo request
    Icmp,
    /// An ICMPv6 echo request
    Icmp6,
    /// An ARP request
    Arp,
    /// A neighbor solicitation
    Ndp,
}

impl Sent {
    /// What the packet carries; `None` for a question about a neighbor.
    pub const fn transport(self) -> Option<Transport> {
        match self {
            Sent::Tcp => Some(Transport::Tcp),
            Sent::Udp => Some(Transport::Udp),
            Sent::Icmp => Some(Transport::Icmp),
            Sent::Icmp6 => Some(Transport::Icmp6),
            Sent::Arp | Sent::Ndp => None,
        }
    }
}
