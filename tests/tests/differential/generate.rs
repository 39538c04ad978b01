//! Frames made up from a seed: by the grammar of ARP, neighbor discovery, IPv4 and IPv6,
//! from the rows, and from what coverage-guided fuzzing has found, then mutated.
//!
//! Most fields are right most of the time, because a frame with two faults says no more
//! than one with one.

use fastrand::Rng;
use netspawn_ebpf::{
    abi::{GATEWAY4, GATEWAY6, Owner},
    wire::{Ipv4, Ipv6, Mac},
};

use crate::{
    mend::mend,
    rows::{
        At, build,
        world::{self, DOWN, MACHINES},
    },
};

/// Machines that have a port; the one that is down has none.
pub fn present() -> impl Iterator<Item = Owner> {
    MACHINES.into_iter().filter(|id| *id != DOWN)
}

/// Most bytes of a frame that the interfaces take.
fn longest(at: At) -> usize {
    match at {
        At::Port(world::SMALL) => 1294,
        _ => 1514,
    }
}

/// An endless sequence of frames.
pub struct Generator {
    pub rng: Rng,
    seeds: Vec<(At, Vec<u8>)>,
}

impl Generator {
    /// `seeds` are frames to start from besides the grammar.
    pub fn new(seed: u64, seeds: Vec<(At, Vec<u8>)>) -> Self {
        Generator {
            rng: Rng::with_seed(seed),
            seeds,
        }
    }

    /// Begins anew, so that the next frame depends on nothing else.
    #[allow(dead_code, reason = "the differential test has one sequence")]
    pub fn reseed(&mut self, seed: u64) {
        self.rng = Rng::with_seed(seed);
    }

    /// A hook for the next frames.
    #[allow(dead_code, reason = "live fuzzing has one hook")]
    pub fn hook(&mut self) -> At {
        let ports: Vec<_> = present().collect();
        match self.rng.u8(..16) {
            0..8 => At::Uplink,
            8 => At::Host,
            _ => At::Port(ports[self.rng.usize(..ports.len())]),
        }
    }

    /// A frame for a hook.
    pub fn frame(&mut self, at: At) -> Vec<u8> {
        let mut frame = match self.rng.u8(..16) {
            0..3 => self.arp(at),
            3..7 => self.solicitation(at),
            7..10 => self.ipv4(at),
            10..13 => self.ipv6(at),
            13 | 14 => self.seeded(at),
            _ => self.noise(at),
        };
        if self.one_in(3) {
            self.mutate(&mut frame);
        }
        frame.truncate(longest(at));
        if frame.len() < 14 {
            frame.resize(14, 0);
        }
        frame
    }

    pub fn one_in(&mut self, n: u32) -> bool {
        self.rng.u32(..n) == 0
    }

    pub fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.rng.usize(..of.len())]
    }

    /// Right, but for one time in `n`.
    pub fn mostly<T>(&mut self, n: u32, right: T, wrong: impl FnOnce(&mut Self) -> T) -> T {
        if self.one_in(n) { wrong(self) } else { right }
    }

    fn machine(&mut self) -> Owner {
        self.pick(&world::MACHINES)
    }

    pub fn any_mac(&mut self) -> Mac {
        let id = self.machine();
        let bytes = self.rng.u64(..).to_ne_bytes();
        let random = [
            bytes[0] & 0xfe,
            bytes[1],
            bytes[2],
            bytes[3],
            bytes[4],
            bytes[5],
        ];
        self.pick(&[
            [0xff; 6],
            [0; 6],
            world::UPLINK,
            world::ROUTER,
            world::mac(id),
            world::port_mac(id),
            [0x33, 0x33, 0, 0, 0, 1],
            [1, 0, 0x5e, 0, 0, 1],
            random,
        ])
    }

    /// One of a few stations of the network, whose address and MAC go together.
    pub fn station(&mut self) -> (Mac, Ipv4, Ipv6) {
        let n = self.rng.u8(..32);
        let mut ip6 = world::ASKER6;
        ip6[13] = 0xaa;
        ip6[15] = n;
        ([2, 0, 0, 0, 0xaa, n], [203, 0, 113, 32 + n], ip6)
    }

    pub fn any4(&mut self) -> Ipv4 {
        let id = self.machine();
        let last = self.rng.u8(..);
        let random = self.rng.u32(..).to_ne_bytes();
        self.pick(&[
            world::ip4(id),
            world::HOST4,
            world::ASKER4,
            world::FREE4,
            world::FAR4,
            world::UNRESOLVED4,
            world::REFUSED4,
            world::INSIDE4,
            world::CARVED4,
            world::ROUTED4,
            GATEWAY4,
            [0; 4],
            [0xff; 4],
            [127, 0, 0, 1],
            [0, 0, 0, last],
            [224, 0, 0, last],
            [240, 0, 0, last],
            [169, 254, 7, last],
            [203, 0, 113, last],
            [198, 18, 0, last],
            [198, 51, 100, last],
            random,
        ])
    }

    pub fn any6(&mut self) -> Ipv6 {
        let id = self.machine();
        let last = self.rng.u8(..);
        let random = self.rng.u128(..).to_ne_bytes();
        let ending = |mut address: Ipv6| {
            address[15] = last;
            address
        };
        let mut mapped = [0; 16];
        mapped[10..].copy_from_slice(&[0xff, 0xff, 203, 0, 113, 101]);
        let mut loopback = [0; 16];
        loopback[15] = 1;
        self.pick(&[
            world::ip6(id),
            world::HOST6,
            world::ASKER6,
            world::FREE6,
            world::FAR6,
            world::UNRESOLVED6,
            world::REFUSED6,
            world::INSIDE6,
            world::CARVED6,
            world::ROUTED6,
            world::guest_link_local(id),
            world::port_link_local(id),
            GATEWAY6,
            [0; 16],
            loopback,
            mapped,
            [0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1],
            build::solicited(world::ip6(id)).0,
            ending(world::INSIDE6),
            ending(world::FAR6),
            ending(world::ip6(id)),
            random,
        ])
    }

    /// Source, its IPv4 and IPv6 address, and the Ethernet destination of unicast.
    pub fn ends(&mut self, at: At) -> (Mac, Ipv4, Ipv6, Mac) {
        match at {
            At::Port(id) => (
                world::mac(id),
                world::ip4(id),
                world::ip6(id),
                world::port_mac(id),
            ),
            At::Host => (world::UPLINK, world::HOST4, world::HOST6, world::ROUTER),
            At::Uplink => {
                let (mac, ip4, ip6) = self.station();
                (mac, ip4, ip6, world::UPLINK)
            }
        }
    }

    pub fn arp(&mut self, at: At) -> Vec<u8> {
        let (mac, ip4, _, near) = self.ends(at);
        let destination = if self.one_in(4) { near } else { [0xff; 6] };
        let machine = self.machine();
        let arp = build::Arp {
            destination: self.mostly(16, destination, Self::any_mac),
            source: self.mostly(24, mac, Self::any_mac),
            operation: self.mostly(12, 1, |all| all.rng.u16(..4)),
            sha: self.mostly(24, mac, Self::any_mac),
            spa: self.mostly(10, ip4, Self::any4),
            tha: self.mostly(4, [0; 6], Self::any_mac),
            tpa: self.mostly(3, world::ip4(machine), Self::any4),
        };
        if self.one_in(2) {
            return arp.frame();
        }
        let (fill, length) = (
            self.rng.u8(..),
            self.mostly(4, 60, |all| all.rng.usize(42..200)),
        );
        build::pad(arp.frame(), length, fill)
    }

    fn options(&mut self, mac: Mac) -> Vec<u8> {
        let mut options = Vec::new();
        let count = self.mostly(6, 1, |all| all.rng.u8(..11));
        for _ in 0..count {
            match self.rng.u8(..12) {
                0..9 => {
                    let kind = self.mostly(8, 1, |all| all.rng.u8(..4));
                    let mac = self.mostly(12, mac, Self::any_mac);
                    options.extend(build::option(kind, mac));
                }
                9 => options.extend([14, 1, 1, 2, 3, 4, 5, 6]),
                10 => options.extend([0xfe, 2].into_iter().chain([7; 14])),
                _ => options.extend([self.rng.u8(..), self.rng.u8(..4), 0, 0, 0, 0, 0, 0]),
            }
        }
        options
    }

    pub fn solicitation(&mut self, at: At) -> Vec<u8> {
        let (mac, _, ip6, near) = self.ends(at);
        let machine = self.machine();
        let target = self.mostly(3, world::ip6(machine), Self::any6);
        let (mut destination, mut destination_mac) = build::solicited(target);
        if self.one_in(4) {
            (destination, destination_mac) = (target, near);
        }
        let detects = self.one_in(6);
        let source = if detects { [0; 16] } else { ip6 };
        let silent = if detects {
            !self.one_in(6)
        } else {
            self.one_in(6)
        };
        let options = if silent {
            Vec::new()
        } else {
            self.options(mac)
        };
        build::Icmp6 {
            source_mac: self.mostly(24, mac, Self::any_mac),
            destination_mac: self.mostly(24, destination_mac, Self::any_mac),
            source: self.mostly(16, source, Self::any6),
            destination: self.mostly(20, destination, Self::any6),
            hops: self.mostly(24, 255, |all| all.rng.u8(..)),
            kind: self.mostly(10, 135, |all| all.rng.u8(130..140)),
            code: self.mostly(40, 0, |all| all.rng.u8(..)),
            head: self.mostly(6, [0; 4], |all| all.rng.u32(..).to_ne_bytes()),
            body: [&target[..], &options].concat(),
        }
        .frame()
    }

    fn payload(&mut self) -> usize {
        match self.rng.u8(..16) {
            0 => self.rng.usize(1200..1480),
            1..4 => self.rng.usize(..200),
            _ => self.rng.usize(..48),
        }
    }

    fn transport(&mut self, v6: bool) -> (u8, Vec<u8>) {
        let length = self.payload();
        let fill = self.rng.u8(..);
        let mut bytes = vec![fill; length];
        let ports = self.pick(&[(4000, 5000), (68, 67), (67, 68), (546, 547), (547, 546)]);
        let (from, to): (u16, u16) = self.mostly(6, (4000, 5000), |_| ports);
        match self.rng.u8(..8) {
            0..4 => {
                let header = [from, to, (length + 8) as u16, 0].map(u16::to_be_bytes);
                bytes.splice(0..0, header.concat());
                (17, bytes)
            }
            4 => {
                let mut header = [0; 20];
                header[..2].copy_from_slice(&from.to_be_bytes());
                header[2..4].copy_from_slice(&to.to_be_bytes());
                header[12] = 0x50;
                header[13] = self.rng.u8(..);
                bytes.splice(0..0, header);
                (6, bytes)
            }
            5 | 6 => {
                let request = if v6 { 128 } else { 8 };
                let kind = self.mostly(4, request, |all| all.rng.u8(..));
                let code = self.mostly(8, 0, |all| all.rng.u8(..4));
                bytes.splice(0..0, [kind, code, 0, 0, 0x12, 0x34, 0, 1]);
                (if v6 { 58 } else { 1 }, bytes)
            }
            _ => (self.rng.u8(..), bytes),
        }
    }

    fn ip_ends<A: Copy>(
        &mut self,
        at: At,
        own: A,
        machine: A,
        far: A,
        any: fn(&mut Self) -> A,
    ) -> (A, A) {
        let to = match at {
            At::Port(_) if self.one_in(2) => far,
            _ => machine,
        };
        (self.mostly(10, own, any), self.mostly(5, to, any))
    }

    fn ethernet(&mut self, source: Mac, near: Mac, kind: u16) -> Vec<u8> {
        let to = self.mostly(24, near, Self::any_mac);
        let from = self.mostly(24, source, Self::any_mac);
        [&to[..], &from, &kind.to_be_bytes()].concat()
    }

    fn trailer(&mut self, frame: &mut Vec<u8>) {
        if self.one_in(6) {
            let fill = self.rng.u8(..);
            let length = self.mostly(2, 60, |all| frame.len() + all.rng.usize(..40));
            frame.resize(frame.len().max(length), fill);
        }
    }

    fn ipv4(&mut self, at: At) -> Vec<u8> {
        let (mac, own, _, near) = self.ends(at);
        let machine = self.machine();
        let (source, destination) =
            self.ip_ends(at, own, world::ip4(machine), world::FAR4, Self::any4);
        let (protocol, inner) = self.transport(false);
        let options = self.mostly(8, Vec::new(), Self::options4);
        let header = 20 + options.len();
        let total = (header + inner.len()) as u16;
        let total = self.mostly(24, total, |all| match all.rng.u8(..3) {
            0 => total.wrapping_add(all.rng.u16(..8)),
            1 => total.saturating_sub(all.rng.u16(..40)),
            _ => all.rng.u16(..),
        });
        let mut frame = self.ethernet(mac, near, 0x0800);
        let first = 0x40 | (header / 4) as u8;
        frame.push(self.mostly(40, first, |all| all.rng.u8(..)));
        frame.push(self.mostly(6, 0, |all| all.rng.u8(..)));
        frame.extend(total.to_be_bytes());
        frame.extend(self.rng.u16(..).to_be_bytes());
        let flags = if self.one_in(2) { 0x4000 } else { 0 };
        frame.extend(self.mostly(8, flags, |all| all.rng.u16(..)).to_be_bytes());
        frame.push(self.mostly(6, 64, |all| all.rng.u8(..3)));
        frame.push(protocol);
        frame.extend([0, 0]);
        frame.extend(source);
        frame.extend(destination);
        frame.extend(options);
        frame.extend(inner);
        mend(&mut frame);
        if self.one_in(32) {
            frame[24] ^= 1 << self.rng.u8(..8);
        }
        self.trailer(&mut frame);
        frame
    }

    fn options4(&mut self) -> Vec<u8> {
        let length = 4 * self.rng.usize(1..=10);
        let mut options = vec![1; length];
        if self.one_in(2) {
            let hop = self.any4();
            let route = [7, 7, 4, hop[0], hop[1], hop[2], hop[3]];
            let mut option = self.pick(&[route, [68, 7, 5, 0, 0, 0, 0], [148, 4, 0, 0, 0, 0, 0]]);
            option[0] = self.mostly(3, option[0], |all| all.rng.u8(..));
            let length = options.len().min(option.len());
            options[..length].copy_from_slice(&option[..length]);
        }
        options
    }

    fn ipv6(&mut self, at: At) -> Vec<u8> {
        let (mac, _, own, near) = self.ends(at);
        let machine = self.machine();
        let (source, destination) =
            self.ip_ends(at, own, world::ip6(machine), world::FAR6, Self::any6);
        let (mut next, mut inner) = self.transport(true);
        let extensions = self.mostly(6, 0, |all| all.rng.u8(1..3));
        for _ in 0..extensions {
            let kind = self.pick(&[0, 60, 43, 44]);
            let body = match kind {
                44 => [next, 0, 0, self.rng.u8(..2), 0, 0, 0x12, 0x34],
                43 => [next, 0, self.rng.u8(..5), self.rng.u8(..2), 0, 0, 0, 0],
                _ => [
                    next,
                    self.mostly(8, 0, |all| all.rng.u8(..3)),
                    1,
                    4,
                    0,
                    0,
                    0,
                    0,
                ],
            };
            inner.splice(0..0, body);
            next = kind;
        }
        let length = inner.len() as u16;
        let length = self.mostly(24, length, |all| match all.rng.u8(..3) {
            0 => length.wrapping_add(all.rng.u16(..8)),
            1 => length.saturating_sub(all.rng.u16(..40)),
            _ => all.rng.u16(..),
        });
        let mut frame = self.ethernet(mac, near, 0x86dd);
        let class = self.mostly(6, 0, |all| all.rng.u32(..) & 0x0fff_ffff);
        let version = self.mostly(40, 6, |all| all.rng.u32(..16));
        frame.extend((version << 28 | class).to_be_bytes());
        frame.extend(length.to_be_bytes());
        frame.push(next);
        frame.push(self.mostly(6, 64, |all| all.rng.u8(..3)));
        frame.extend(source);
        frame.extend(destination);
        frame.extend(inner);
        mend(&mut frame);
        self.trailer(&mut frame);
        frame
    }

    /// A row or a finding of the fuzzer, for this hook where it is of another.
    fn seeded(&mut self, at: At) -> Vec<u8> {
        let index = self.rng.usize(..self.seeds.len());
        let (from, frame) = &self.seeds[index];
        let (from, mut frame) = (*from, frame.clone());
        if from != at && self.one_in(2) && frame.len() >= 12 {
            let (mac, _, _, near) = self.ends(at);
            if frame[0] & 1 == 0 {
                frame[..6].copy_from_slice(&near);
            }
            frame[6..12].copy_from_slice(&mac);
        }
        frame
    }

    fn noise(&mut self, at: At) -> Vec<u8> {
        let (mac, _, _, near) = self.ends(at);
        let any = self.rng.u16(..);
        let kind = self.pick(&[0x0806, 0x0800, 0x86dd, 0x8100, 0x88a8, 0x88cc, any]);
        let mut frame = self.ethernet(mac, near, kind);
        let length = self.rng.usize(..120);
        frame.extend(std::iter::repeat_with(|| self.rng.u8(..)).take(length));
        frame
    }

    fn mutate(&mut self, frame: &mut Vec<u8>) {
        for _ in 0..self.rng.u8(1..4) {
            let at = self.rng.usize(..frame.len());
            match self.rng.u8(..16) {
                0..6 => frame[at] ^= 1 << self.rng.u8(..8),
                6..10 => frame[at] = self.rng.u8(..),
                10..13 => frame[at] = self.pick(&[0, 1, 0x7f, 0x80, 0xff]),
                13 => frame.truncate(at.max(14)),
                14 => {
                    let more = self.rng.usize(..64);
                    frame.resize(frame.len() + more, 0);
                }
                _ => {
                    let from = self.rng.usize(..frame.len());
                    frame[at] = frame[from];
                }
            }
        }
        if !self.one_in(3) {
            mend(frame);
        }
    }
}
