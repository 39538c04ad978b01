//! What one frame costs in a program, by the number of addresses there are.
//!
//! The programs rewrite frames in place, so a repeated run would see its own answer. A
//! program in front therefore writes the next of many different frames over it each
//! time and ends in a tail call to the real one; the same with a program that does
//! nothing is the floor, which is taken off.

use std::{collections::BTreeMap, fmt, os::fd::AsFd as _, thread};

use anyhow::{Context as _, Result, ensure};
use etherparse::{ArpEthIpv4Packet, ArpOperation, EtherType, Ethernet2Header, PacketBuilder};
use netspawn_ebpf::{
    abi::{Endpoint, NextHop, Settings, Uplink, endpoint_flag, nexthop_flag, settings_flag},
    wire::{Ipv4, Ipv6, Mac},
};
use netspawn_user::datapath::object::Sizes;

use crate::{
    bpf::{self, Context},
    figure::{Figure, Unit, median},
    programs::{Hook, IFINDEX, Programs, replay_idle},
};

/// What is measured, and how thoroughly.
#[derive(Clone, Debug)]
pub struct Options {
    /// Frames in one round.
    pub repeat: u32,
    /// Rounds, of which the median counts.
    pub rounds: usize,
    /// Numbers of addresses, in ascending order, 131,072 at most.
    pub addresses: Vec<u32>,
    /// Prefixes beside the addresses, which make every miss a look-up in a trie.
    pub prefixes: u32,
    /// Programs.
    pub hooks: Vec<Hook>,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            repeat: 1_000_000,
            rounds: 7,
            addresses: vec![1, 1_000, 100_000],
            prefixes: 0,
            hooks: Hook::ALL.to_vec(),
        }
    }
}

/// How the names of frames end whose destination is inside a prefix.
pub const INSIDE: &str = "inside a prefix";

/// A kind of frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Subject {
    Arp,
    Solicitation,
    Ipv4,
    Ipv6,
    Local4,
    Local6,
    Inside4,
    Inside6,
}

impl Subject {
    /// Those that a program does something with.
    fn of(hook: Hook, prefixes: u32) -> &'static [Subject] {
        use Subject::*;
        match hook {
            Hook::PortIngress => &[Arp, Solicitation, Ipv4, Ipv6, Local4, Local6],
            _ if prefixes > 0 => &[Arp, Solicitation, Ipv4, Ipv6, Inside4, Inside6],
            _ => &[Arp, Solicitation, Ipv4, Ipv6],
        }
    }

    const fn name(self) -> &'static str {
        match self {
            Subject::Arp => "ARP",
            Subject::Solicitation => "NS",
            Subject::Ipv4 => "IPv4",
            Subject::Ipv6 => "IPv6",
            Subject::Local4 => "IPv4, machine to machine",
            Subject::Local6 => "IPv6, machine to machine",
            // Both end in `INSIDE`.
            Subject::Inside4 => "IPv4, inside a prefix",
            Subject::Inside6 => "IPv6, inside a prefix",
        }
    }

    /// What the program returns when it did its work.
    const fn code(self, hook: Hook) -> u32 {
        const TC_ACT_REDIRECT: u32 = 7;
        const XDP_TX: u32 = 3;
        const XDP_REDIRECT: u32 = 4;
        match (hook, self) {
            (Hook::UplinkXdp, Subject::Arp | Subject::Solicitation) => XDP_TX,
            (Hook::UplinkXdp, _) => XDP_REDIRECT,
            _ => TC_ACT_REDIRECT,
        }
    }
}

const UPLINK: Mac = [2, 0, 0, 0, 0, 1];
const STATION: Mac = [2, 0, 0, 0, 0, 2];
const MACHINE: Mac = [2, 0, 0, 0, 0, 3];
const PORT: Mac = [2, 0, 0, 0, 0, 4];
const STATION4: Ipv4 = [192, 0, 2, 1];
const STATION6: Ipv6 = [0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
const MACHINES: u32 = 16_384;

/// The address with that number.
fn v4(number: u32) -> Ipv4 {
    (0x0a00_0000 + number).to_be_bytes()
}

/// As above.
fn v6(number: u32) -> Ipv6 {
    (0x2001_0db8_u128 << 96 | u128::from(number)).to_be_bytes()
}

/// The /28 with that number.
fn net4(number: u32) -> Ipv4 {
    (0x0b00_0000 + number * 16).to_be_bytes()
}

/// The /64 with that number.
fn net6(number: u32) -> Ipv6 {
    (0x2001_0dba_u128 << 96 | u128::from(number) << 64).to_be_bytes()
}

/// A destination beyond the uplink.
fn far4(number: u32) -> Ipv4 {
    (0x6440_0000 + number).to_be_bytes()
}

/// As above.
fn far6(number: u32) -> Ipv6 {
    (0x2001_0db9_u128 << 96 | u128::from(number)).to_be_bytes()
}

/// The frame of a subject about the address with this number.
fn frame(hook: Hook, subject: Subject, number: u32) -> Result<Vec<u8>> {
    let inside = hook == Hook::PortIngress;
    let (source_mac, destination_mac) = match hook {
        Hook::PortIngress => (MACHINE, PORT),
        Hook::UplinkEgress => (UPLINK, PORT),
        Hook::UplinkIngress | Hook::UplinkXdp => (STATION, UPLINK),
    };
    let (source4, source6) = if inside {
        (v4(0), v6(0))
    } else {
        (STATION4, STATION6)
    };
    let (asked4, asked6) = if inside {
        (far4(number), far6(number))
    } else {
        (v4(number), v6(number))
    };
    let mut frame = Vec::new();
    let udp4 = |destination, frame: &mut Vec<u8>| {
        PacketBuilder::ethernet2(source_mac, destination_mac)
            .ipv4(source4, destination, 64)
            .udp(4000, 5000)
            .write(frame, &[0; 22])
    };
    let udp6 = |destination, frame: &mut Vec<u8>| {
        PacketBuilder::ethernet2(source_mac, destination_mac)
            .ipv6(source6, destination, 64)
            .udp(4000, 5000)
            .write(frame, &[0; 22])
    };
    match subject {
        Subject::Arp => {
            let header = Ethernet2Header {
                source: source_mac,
                destination: [0xff; 6],
                ether_type: EtherType::ARP,
            };
            let arp = ArpEthIpv4Packet {
                operation: ArpOperation::REQUEST,
                sender_mac: source_mac,
                sender_ipv4: source4,
                target_mac: [0; 6],
                target_ipv4: asked4,
            };
            frame.extend(header.to_bytes());
            frame.extend(arp.to_bytes());
            frame.resize(60, 0);
        }
        Subject::Solicitation => {
            let [.., a, b, c] = asked6;
            let group = [0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff, a, b, c];
            let body = [&asked6[..], &[1, 1], &source_mac].concat();
            PacketBuilder::ethernet2(source_mac, [0x33, 0x33, 0xff, a, b, c])
                .ipv6(source6, group, 255)
                .icmpv6_raw(135, 0, [0; 4])
                .write(&mut frame, &body)?;
        }
        Subject::Ipv4 => udp4(asked4, &mut frame)?,
        Subject::Ipv6 => udp6(asked6, &mut frame)?,
        Subject::Local4 => udp4(v4(number), &mut frame)?,
        Subject::Local6 => udp6(v6(number), &mut frame)?,
        Subject::Inside4 => udp4(net4(number), &mut frame)?,
        Subject::Inside6 => udp6(net6(number), &mut frame)?,
    }
    Ok(frame)
}

/// As many frames as are told apart, about addresses in no order.
fn frames(hook: Hook, subject: Subject, addresses: u32, prefixes: u32) -> Result<Vec<Vec<u8>>> {
    const MOST: u32 = 1 << 16;
    let different = match subject {
        Subject::Inside4 | Subject::Inside6 => prefixes,
        _ => addresses,
    };
    // The first address is the sender's own.
    let first = u32::from(matches!(subject, Subject::Local4 | Subject::Local6));
    (0..different.next_power_of_two().min(MOST))
        .map(|at| {
            // Knuth's multiplicative hash.
            let number = at.wrapping_mul(2_654_435_761) % different;
            frame(hook, subject, number.max(first))
        })
        .collect()
}

/// Programs that know so many addresses.
fn programs(addresses: u32, prefixes: u32) -> Result<Programs> {
    let mut programs = Programs::load(Sizes::default())?;
    let endpoint = Endpoint {
        ifindex: IFINDEX,
        flags: endpoint_flag::UP | endpoint_flag::XDP,
        mtu: 1500,
        mac: MACHINE,
        port_mac: PORT,
        ..Endpoint::default()
    };
    let hop = NextHop {
        deadline: u64::MAX,
        ifindex: IFINDEX,
        flags: nexthop_flag::RESOLVED,
        mtu: 1500,
        src_mac: UPLINK,
        dst_mac: STATION,
        uplink: IFINDEX,
        pad: 0,
    };
    // Machine to machine needs a second one.
    let count = addresses.max(2);
    let owner = |number| number % MACHINES;
    for id in 0..count.min(MACHINES) {
        programs.endpoint(id, endpoint)?;
    }
    let numbers = 0..count;
    let all4: Vec<_> = numbers.clone().map(|n| (v4(n), 32, owner(n))).collect();
    let all6: Vec<_> = numbers.map(|n| (v6(n), 128, owner(n))).collect();
    programs.owners4(&all4)?;
    programs.owners6(&all6)?;
    let prefixed = 0..prefixes;
    let nets4: Vec<_> = prefixed
        .clone()
        .map(|n| (net4(n), 28, owner(n % count)))
        .collect();
    let nets6: Vec<_> = prefixed.map(|n| (net6(n), 64, owner(n % count))).collect();
    programs.owners4(&nets4)?;
    programs.owners6(&nets6)?;
    let flags = match prefixes {
        0 => 0,
        _ => settings_flag::PREFIXES4 | settings_flag::PREFIXES6,
    };
    programs.settings(Settings {
        flags,
        ..Settings::default()
    })?;
    let uplink = Uplink {
        mac: UPLINK,
        mtu: 1500,
        ..Uplink::default()
    };
    programs.uplink(IFINDEX, uplink)?;
    programs.port(IFINDEX, Some(0))?;
    programs.xdp_port(IFINDEX)?;
    programs.nexthops(&[hop])?;
    programs.routes4(&[([0; 4], 0, 0)])?;
    programs.routes6(&[([0; 16], 0, 0)])?;
    Ok(programs)
}

/// Nanoseconds of one frame, less the floor, round by round.
fn cost(
    programs: &Programs,
    hook: Hook,
    subject: Subject,
    options: &Options,
    addresses: u32,
) -> Result<Vec<f64>> {
    let frames = frames(hook, subject, addresses, options.prefixes)?;
    let kind = hook.kind();
    let real = programs.replay(hook, &frames)?;
    let (_idle, floor) = replay_idle(kind, &frames)?;
    let run = |program, repeat| bpf::run(kind, program, &frames[0], Context::default(), repeat);
    // Once through all frames, so that no round pays for cold caches alone.
    let warm = u32::try_from(frames.len())?.max(10_000);
    for program in [real.as_fd(), floor.as_fd()] {
        run(program, warm)?;
    }
    let mut rounds = Vec::new();
    for _ in 0..options.rounds {
        let whole = run(real.as_fd(), options.repeat)?;
        ensure!(
            whole.code == subject.code(hook),
            "{} does not do its work with {}: action {}",
            hook.name(),
            subject.name(),
            whole.code
        );
        let floor = run(floor.as_fd(), options.repeat)?;
        rounds.push(whole.duration.as_nanos() as f64 - floor.duration.as_nanos() as f64);
    }
    Ok(rounds)
}

/// Nanoseconds, round by round.
type Rounds = Vec<f64>;

/// What was measured.
#[derive(Debug)]
pub struct Table {
    addresses: Vec<u32>,
    /// Program, frame, and the rounds for each number of addresses.
    rows: Vec<(&'static str, &'static str, Vec<Rounds>)>,
}

impl Table {
    /// The same as figures of the scenario `prog`.
    pub fn figures(&self) -> Vec<Figure> {
        let one = |program, frame, addresses: u32, rounds: &[f64]| {
            let unit = Unit::Nanoseconds;
            Figure::new("prog", frame, unit, program, addresses, rounds.to_vec())
        };
        let mut figures = Vec::new();
        for (program, frame, costs) in &self.rows {
            for (addresses, rounds) in self.addresses.iter().zip(costs) {
                figures.push(one(program, frame, *addresses, rounds));
            }
        }
        figures
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:<15}{:<26}", "program", "ns for a frame of")?;
        for count in &self.addresses {
            let word = if *count == 1 { "address" } else { "addresses" };
            write!(f, "{:>18}", format!("{count} {word}"))?;
        }
        for count in self.addresses.iter().skip(1) {
            write!(f, "{:>12}", format!("{count}/{}", self.addresses[0]))?;
        }
        for (program, frame, costs) in &self.rows {
            write!(f, "\n{program:<15}{frame:<26}")?;
            let costs: Vec<_> = costs.iter().map(|rounds| median(rounds)).collect();
            for cost in &costs {
                write!(f, "{cost:>18.0}")?;
            }
            for cost in costs.iter().skip(1) {
                write!(f, "{:>12.2}", cost / costs[0])?;
            }
        }
        Ok(())
    }
}

/// Measures, on one core; `step` hears what comes next, and may end it.
///
/// # Errors
/// Without root, when the kernel refuses a program, when a program does not do what it
/// is measured at, or those of `step`.
pub fn measure(options: &Options, step: impl Fn(&str) -> Result<()> + Sync) -> Result<Table> {
    thread::scope(|scope| {
        let measured = scope.spawn(|| {
            stay_on_this_core().context("cannot stay on one core")?;
            measure_here(options, &step)
        });
        measured.join().expect("measuring does not panic")
    })
}

fn measure_here(options: &Options, step: &dyn Fn(&str) -> Result<()>) -> Result<Table> {
    let mut costs: BTreeMap<(Hook, usize), (&str, Vec<Rounds>)> = BTreeMap::new();
    for &addresses in &options.addresses {
        let programs = programs(addresses, options.prefixes)?;
        for &hook in &options.hooks {
            step(&match options.prefixes {
                0 => format!("{}, addresses: {addresses}", hook.name()),
                prefixes => format!("{}, prefixes: {prefixes}", hook.name()),
            })?;
            for (at, subject) in (0..).zip(Subject::of(hook, options.prefixes)) {
                let cost = cost(&programs, hook, *subject, options, addresses)?;
                let (_, costs) = costs
                    .entry((hook, at))
                    .or_insert((subject.name(), Vec::new()));
                costs.push(cost);
            }
        }
    }
    let rows = costs
        .into_iter()
        .map(|((hook, _), (subject, costs))| (hook.name(), subject, costs));
    Ok(Table {
        addresses: options.addresses.clone(),
        rows: rows.collect(),
    })
}

/// Keeps this thread, and what it starts, on the core it is on.
pub(crate) fn stay_on_this_core() -> std::io::Result<()> {
    // SAFETY: the set is plain bits, and the calls take a pointer to a whole one.
    let result = unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(libc::sched_getcpu().unsigned_abs() as usize, &mut set);
        libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &set)
    };
    match result {
        0 => Ok(()),
        _ => Err(std::io::Error::last_os_error()),
    }
}
