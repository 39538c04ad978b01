//! Packets with what a sender says beside them. Half of what is said is honest or near to
//! it; the bytes are right most of the time, since a packet with two faults says no more
//! than one with one.

use netspawn_ebpf::wire::Mac;
use netspawn_tests::vnet::{NEEDS_CSUM, TUNNEL_CSUM, Vnet, gso};

use crate::{
    generate::Generator,
    mend::mend,
    rows::{At, world},
};

/// What a payload consists of: this, and the number of the frame that it was made for.
pub const MARK: [u8; 4] = [0xf5, 0x2a, 0x9d, 0x61];

/// Ports at which somebody listens everywhere.
pub const PORTS: [u16; 3] = [5000, 5353, 9];

const UDP: u8 = 17;
const TCP: u8 = 6;
const ICMP: u8 = 1;
const ICMP6: u8 = 58;
const GRE: u8 = 47;
const SCTP: u8 = 132;

/// Segments of a super-packet.
const MOST_SEGMENTS: usize = 300;

/// A frame to be sent.
pub struct Made {
    pub frame: Vec<u8>,
    pub vnet: Vnet,
}

/// An IP header and what follows it, by offsets in the frame.
#[derive(Clone, Copy, Debug)]
struct Layer {
    l3: usize,
    l4: usize,
    v6: bool,
    protocol: u8,
    /// Where the transport's checksum is.
    check: Option<usize>,
    /// Where its payload begins.
    payload: usize,
}

impl Layer {
    fn shifted(mut self, by: usize) -> Self {
        self.l3 += by;
        self.l4 += by;
        self.payload += by;
        self.check = self.check.map(|check| check + by);
        self
    }
}

/// A packet without its link header, and its layers from the outside.
struct Packet {
    bytes: Vec<u8>,
    layers: Vec<Layer>,
    v6: bool,
}

fn sum(bytes: &[u8]) -> u64 {
    bytes
        .chunks(2)
        .map(|pair| u64::from(u16::from_be_bytes([pair[0], *pair.get(1).unwrap_or(&0)])))
        .sum()
}

fn fold(mut sum: u64) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

/// The frame with that number, for a hook.
///
/// `tunnels` says whether the sender may speak of segments within tunnels.
pub fn make(generator: &mut Generator, at: At, index: u32, tunnels: bool) -> Made {
    let mut maker = Maker {
        all: generator,
        at,
        index,
        tunnels,
    };
    maker.make()
}

struct Maker<'a> {
    all: &'a mut Generator,
    at: At,
    index: u32,
    tunnels: bool,
}

impl Maker<'_> {
    fn below(&mut self, end: usize) -> usize {
        self.all.rng.usize(..end.max(1))
    }

    fn one_in(&mut self, n: u32) -> bool {
        self.all.one_in(n)
    }

    fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        self.all.pick(of)
    }

    fn make(&mut self) -> Made {
        if self.one_in(5) {
            return self.of_the_grammar();
        }
        let segments = self.one_in(4);
        let length = if segments {
            self.payload_of_segments()
        } else {
            match self.below(16) {
                0 => 1200 + self.below(272),
                1 => 200 + self.below(1000),
                _ => self.below(160),
            }
        };
        let packet = self.packet(length, 0);
        let (mac, near) = self.macs();
        let kind: u16 = if packet.v6 { 0x86dd } else { 0x0800 };
        let mut frame = [&near[..], &mac, &kind.to_be_bytes()].concat();
        frame.extend(&packet.bytes);
        let layers: Vec<Layer> = packet
            .layers
            .iter()
            .map(|layer| layer.shifted(14))
            .collect();
        self.sums(&mut frame, &layers);
        let mut vnet = if segments {
            self.segments(&frame, &layers)
        } else {
            self.checksum(&mut frame, &layers)
        };
        if self.one_in(4) {
            self.mutate(&mut frame);
        }
        self.around(&mut frame, &mut vnet);
        Made { frame, vnet }
    }

    /// A frame of the differential test: ARP, neighbor discovery, options, noise.
    fn of_the_grammar(&mut self) -> Made {
        let mut frame = self.all.frame(self.at);
        let kind = [frame[12], frame[13]];
        // Neighbor discovery has no room for it.
        if frame.len() > 90 && (kind == [8, 0] || kind == [0x86, 0xdd] && frame[20] != ICMP6) {
            let mark = self.marks(frame.len() - 82);
            frame[82..].copy_from_slice(&mark);
            mend(&mut frame);
        }
        let mut vnet = match self.below(4) {
            0 => Vnet::default(),
            1 | 2 => self.near(&frame, None),
            _ => self.anywhere(&frame),
        };
        if self.one_in(16) {
            vnet.gso_type = self.gso_type();
            vnet.gso_size = self.gso_size();
        }
        self.around(&mut frame, &mut vnet);
        Made { frame, vnet }
    }

    /// Changes that are made to any frame: tags, lengths beyond the packet, other types.
    fn around(&mut self, frame: &mut Vec<u8>, vnet: &mut Vnet) {
        if self.one_in(24) {
            let extra = match self.below(8) {
                0 => self.below(60_000),
                1 => self.below(9000),
                2..4 => self.below(1500),
                _ => self.below(40),
            };
            let fill = self.all.rng.u8(..);
            frame.resize((frame.len() + extra).min(65_000), fill);
        } else if self.one_in(48) && frame.len() > 60 {
            let keep = 14 + self.below(frame.len() - 14);
            frame.truncate(keep);
        } else if frame.len() < 60 && self.one_in(2) {
            frame.resize(60, 0);
        }
        if self.one_in(64) {
            // A length instead of a type, as 802.3 has it, or any type.
            let kind = match self.below(2) {
                0 => (frame.len() - 14).min(1500) as u16,
                _ => self.all.rng.u16(..),
            };
            frame[12..14].copy_from_slice(&kind.to_be_bytes());
        }
        if self.one_in(32) {
            let id = self.pick(&[0, 1, world::VLAN, 0x6000 | world::VLAN]);
            let kind: u16 = self.pick(&[0x8100, 0x8100, 0x88a8]);
            let tag = [kind.to_be_bytes(), id.to_be_bytes()].concat();
            frame.splice(12..12, tag);
            if self.one_in(2) {
                for at in [
                    &mut vnet.csum_start,
                    &mut vnet.hdr_len,
                    &mut vnet.outer_th,
                    &mut vnet.inner_nh,
                ] {
                    *at = at.saturating_add(4);
                }
            }
        }
        // More segments than this test has the time for.
        if vnet.gso_size != 0 && frame.len() / usize::from(vnet.gso_size) > MOST_SEGMENTS {
            vnet.gso_size = (frame.len() / MOST_SEGMENTS) as u16;
        }
    }

    fn marks(&self, length: usize) -> Vec<u8> {
        let word = [MARK, self.index.to_be_bytes()].concat();
        let mut bytes = word.repeat(length / word.len() + 1);
        bytes.truncate(length);
        bytes
    }

    fn payload_of_segments(&mut self) -> usize {
        match self.below(16) {
            0 => 20_000 + self.below(44_000),
            1..4 => 3_000 + self.below(9_000),
            _ => self.below(3_000),
        }
    }

    fn macs(&mut self) -> (Mac, Mac) {
        let (mac, _, _, near) = self.all.ends(self.at);
        let source = self.all.mostly(48, mac, Generator::any_mac);
        let destination = self.all.mostly(48, near, Generator::any_mac);
        (source, destination)
    }

    fn ends4(&mut self) -> ([u8; 4], [u8; 4]) {
        let (_, own, _, _) = self.all.ends(self.at);
        let to = match self.at {
            At::Port(_) => match self.below(16) {
                0..6 => world::FAR4,
                6 => world::ASKER4,
                7..9 => world::ip4(world::DB),
                9..12 => world::ip4(world::SMALL),
                12..15 => world::HOST4,
                _ => world::ip4(world::ACME),
            },
            _ => match self.below(8) {
                0..3 => world::ip4(world::WEB),
                3..5 => world::ip4(world::SMALL),
                5 => world::ip4(world::ACME),
                6 => world::ip4(world::DB),
                _ => world::HOST4,
            },
        };
        let inside = self.one_in(6);
        let own = match self.at {
            At::Port(_) if inside => world::INSIDE4,
            _ => own,
        };
        let source = self.all.mostly(24, own, Generator::any4);
        (source, self.all.mostly(24, to, Generator::any4))
    }

    fn ends6(&mut self) -> ([u8; 16], [u8; 16]) {
        let (_, _, own, _) = self.all.ends(self.at);
        let to = match self.at {
            At::Port(_) => match self.below(16) {
                0..6 => world::FAR6,
                6 => world::ASKER6,
                7..9 => world::ip6(world::DB),
                9..12 => world::ip6(world::SMALL),
                12..15 => world::HOST6,
                _ => world::ip6(world::ACME),
            },
            _ => match self.below(8) {
                0..3 => world::ip6(world::WEB),
                3..5 => world::ip6(world::SMALL),
                5 => world::ip6(world::ACME),
                6 => world::ip6(world::DB),
                _ => world::HOST6,
            },
        };
        let inside = self.one_in(6);
        let own = match self.at {
            At::Port(_) if inside => world::INSIDE6,
            _ => own,
        };
        let source = self.all.mostly(24, own, Generator::any6);
        (source, self.all.mostly(24, to, Generator::any6))
    }

    /// An IP packet with about `length` bytes of payload; tunnels at most two deep.
    fn packet(&mut self, length: usize, depth: usize) -> Packet {
        let v6 = self.one_in(2);
        let (protocol, bytes, check, header, mut inner) = self.transport(length, v6, depth);
        let mut head = if v6 {
            self.head6(protocol, bytes.len())
        } else {
            self.head4(protocol, bytes.len())
        };
        let l4 = head.len();
        head.extend(&bytes);
        for layer in &mut inner {
            *layer = layer.shifted(l4);
        }
        let layer = Layer {
            l3: 0,
            l4,
            v6,
            protocol,
            check: check.map(|at| l4 + at),
            payload: l4 + header,
        };
        let mut layers = vec![layer];
        layers.append(&mut inner);
        Packet {
            bytes: head,
            layers,
            v6,
        }
    }

    fn head4(&mut self, protocol: u8, length: usize) -> Vec<u8> {
        let (source, destination) = self.ends4();
        let options = if self.one_in(16) {
            4 * (1 + self.below(10))
        } else {
            0
        };
        let header = 20 + options;
        let total = ((header + length) as u16).to_be_bytes();
        let flags: u16 = self.pick(&[0, 0x4000, 0x4000, 0x4000]);
        let flags = self.all.mostly(24, flags, |all| all.rng.u16(..));
        let mut head = vec![0x40 | (header / 4) as u8, 0];
        if self.one_in(4) {
            head[1] = self.all.rng.u8(..);
        }
        head.extend(total);
        head.extend(self.all.rng.u16(..).to_be_bytes());
        head.extend(flags.to_be_bytes());
        head.extend([64, protocol, 0, 0]);
        head.extend(source);
        head.extend(destination);
        // No operation.
        head.resize(header, 1);
        head
    }

    fn head6(&mut self, protocol: u8, length: usize) -> Vec<u8> {
        let (source, destination) = self.ends6();
        let mut extensions = Vec::new();
        let mut next = protocol;
        let count = if self.one_in(8) { 1 + self.below(3) } else { 0 };
        for _ in 0..count {
            let kind = self.pick(&[0, 43, 44, 60, 60]);
            let first_fragment = [next, 0, 0, self.below(2) as u8, 0, 0, 0x12, 0x34];
            let body = match kind {
                44 => first_fragment.to_vec(),
                43 => vec![next, 0, 4, 0, 0, 0, 0, 0],
                _ => {
                    let more = self.below(3);
                    let mut options = vec![next, more as u8, 0x1e, (4 + 8 * more) as u8];
                    options.resize(8 + 8 * more, 0);
                    options
                }
            };
            extensions.splice(0..0, body);
            next = kind;
        }
        let class: u32 = if self.one_in(4) {
            self.all.rng.u32(..) & 0x0fff_ffff
        } else {
            0
        };
        let hops = self.pick(&[64, 64, 64, 255]);
        let mut head = (6 << 28 | class).to_be_bytes().to_vec();
        head.extend(((extensions.len() + length) as u16).to_be_bytes());
        head.extend([next, hops]);
        head.extend(source);
        head.extend(destination);
        head.extend(extensions);
        head
    }

    /// Protocol, bytes, where the checksum is, bytes of the header, layers within.
    #[allow(
        clippy::type_complexity,
        reason = "taken apart at once by its only caller"
    )]
    fn transport(
        &mut self,
        length: usize,
        v6: bool,
        depth: usize,
    ) -> (u8, Vec<u8>, Option<usize>, usize, Vec<Layer>) {
        let choice = if depth < 2 {
            self.below(24)
        } else {
            self.below(12)
        };
        match choice {
            0..7 => {
                let to = self.pick(&PORTS);
                let from = self.all.mostly(24, 5000, |all| all.rng.u16(..));
                let payload = self.marks(length);
                (UDP, udp(from, to, &payload), Some(6), 8, Vec::new())
            }
            7..11 => {
                let to = self.pick(&PORTS);
                let options = if self.one_in(4) {
                    4 * self.below(11)
                } else {
                    0
                };
                let header = 20 + options;
                let mut bytes = [5000_u16, to].map(u16::to_be_bytes).concat();
                bytes.extend(self.all.rng.u64(..).to_be_bytes());
                let flags = self.pick(&[0x02, 0x10, 0x18, 0x90, 0x11]);
                bytes.extend([((header / 4) << 4) as u8, flags, 0xff, 0xff, 0, 0, 0, 0]);
                bytes.resize(header, 1);
                bytes.extend(self.marks(length));
                (TCP, bytes, Some(16), header, Vec::new())
            }
            11 if v6 => {
                let kind = self.pick(&[128, 128, 129, 133, 134, 135, 136, 137, 143]);
                let mut bytes = vec![kind, 0, 0, 0, 0x12, 0x34, 0, 1];
                if matches!(kind, 135..=137) {
                    let target = self.all.any6();
                    bytes.extend(target);
                    bytes.extend([1 + (kind & 1 ^ 1), 1]);
                    bytes.extend(self.all.any_mac());
                }
                bytes.extend(self.marks(length));
                (ICMP6, bytes, Some(2), 8, Vec::new())
            }
            11 | 12 => {
                let (protocol, kind) = if v6 { (ICMP6, 128) } else { (ICMP, 8) };
                let mut bytes = vec![kind, 0, 0, 0, 0x12, 0x34, 0, 1];
                bytes.extend(self.marks(length));
                (protocol, bytes, Some(2), 8, Vec::new())
            }
            13 => {
                let mut bytes = [5000_u16, 5000].map(u16::to_be_bytes).concat();
                bytes.extend([0x12, 0x34, 0x56, 0x78, 0, 0, 0, 0]);
                // A chunk of data.
                bytes.extend([0, 3]);
                bytes.extend(((length + 16) as u16).to_be_bytes());
                bytes.resize(12 + 16, 0);
                bytes.extend(self.marks(length));
                (SCTP, bytes, Some(8), 12, Vec::new())
            }
            14 => {
                let (from, to) = if v6 { (546, 547) } else { (68, 67) };
                let payload = self.marks(length);
                (UDP, udp(from, to, &payload), Some(6), 8, Vec::new())
            }
            15 => {
                let protocol = self.all.rng.u8(..);
                (protocol, self.marks(length), None, 8, Vec::new())
            }
            16..19 => self.in_udp(length, depth),
            19..21 => self.in_gre(length, depth),
            _ => {
                let inner = self.packet(length, depth + 1);
                let protocol = if inner.v6 { 41 } else { 4 };
                (protocol, inner.bytes, None, 0, inner.layers)
            }
        }
    }

    /// VXLAN (RFC 7348) or Geneve (RFC 8926).
    fn in_udp(
        &mut self,
        length: usize,
        depth: usize,
    ) -> (u8, Vec<u8>, Option<usize>, usize, Vec<Layer>) {
        let inner = self.packet(length, depth + 1);
        let (to, mut head) = if self.one_in(2) {
            (4789, vec![8, 0, 0, 0, 0, 0, 42, 0])
        } else {
            let words = self.below(4);
            let mut head = vec![words as u8, 0, 0x65, 0x58, 0, 0, 42, 0];
            head.resize(8 + 4 * words, 0);
            (6081, head)
        };
        head.extend([2, 0, 0, 0, 3, 1, 2, 0, 0, 0, 3, 2]);
        head.extend(if inner.v6 { [0x86, 0xdd] } else { [8, 0] });
        let at = 8 + head.len();
        head.extend(inner.bytes);
        let bytes = udp(self.all.rng.u16(1024..), to, &head);
        let layers = inner.layers.iter().map(|layer| layer.shifted(at)).collect();
        (UDP, bytes, Some(6), 8, layers)
    }

    /// GRE (RFC 2784, RFC 2890), with a packet or an Ethernet frame in it.
    fn in_gre(
        &mut self,
        length: usize,
        depth: usize,
    ) -> (u8, Vec<u8>, Option<usize>, usize, Vec<Layer>) {
        let inner = self.packet(length, depth + 1);
        let (with_sum, with_key, bridged) = (self.one_in(3), self.one_in(3), self.one_in(3));
        let kind: u16 = match (bridged, inner.v6) {
            (true, _) => 0x6558,
            (_, true) => 0x86dd,
            _ => 0x0800,
        };
        let flags = u8::from(with_sum) << 7 | u8::from(with_key) << 5;
        let mut bytes = vec![flags, 0];
        bytes.extend(kind.to_be_bytes());
        if with_sum {
            bytes.extend([0; 4]);
        }
        if with_key {
            bytes.extend([0, 0, 0, 42]);
        }
        let header = bytes.len();
        if bridged {
            bytes.extend([2, 0, 0, 0, 3, 1, 2, 0, 0, 0, 3, 2]);
            bytes.extend(if inner.v6 { [0x86, 0xdd] } else { [8, 0] });
        }
        let at = bytes.len();
        bytes.extend(inner.bytes);
        let layers = inner.layers.iter().map(|layer| layer.shifted(at)).collect();
        (GRE, bytes, with_sum.then_some(4), header, layers)
    }

    /// Fills checksums in, from the inside.
    fn sums(&mut self, frame: &mut [u8], layers: &[Layer]) {
        for layer in layers.iter().rev() {
            if !layer.v6 {
                let header = layer.l3..layer.l4;
                frame[layer.l3 + 10..layer.l3 + 12].fill(0);
                let check = !fold(sum(&frame[header]));
                frame[layer.l3 + 10..layer.l3 + 12].copy_from_slice(&check.to_be_bytes());
            }
            if let Some(at) = layer.check
                // UDP has one that says it has none.
                && !(layer.protocol == UDP && self.all.one_in(3))
            {
                let check = !fold(pseudo(frame, layer) + sum(&frame[layer.l4..]));
                frame[at..at + 2].copy_from_slice(&check.to_be_bytes());
            }
        }
    }

    /// What is said of the checksum.
    fn checksum(&mut self, frame: &mut [u8], layers: &[Layer]) -> Vnet {
        match self.below(16) {
            0..4 => Vnet::default(),
            4..8 => {
                // Left to the device by the sender's kernel.
                let with: Vec<&Layer> = layers.iter().filter(|l| l.check.is_some()).collect();
                if with.is_empty() {
                    return Vnet::default();
                }
                let layer = with[self.below(with.len())];
                let vnet = honest(layer);
                let left = fold(pseudo(frame, layer));
                let at = usize::from(vnet.csum_start + vnet.csum_offset);
                frame[at..at + 2].copy_from_slice(&left.to_be_bytes());
                vnet
            }
            8..13 => {
                let layer = layers[self.below(layers.len())];
                self.near(frame, Some(&layer))
            }
            _ => self.anywhere(frame),
        }
    }

    /// A field in headers, by a sum that begins at some header.
    fn near(&mut self, frame: &[u8], layer: Option<&Layer>) -> Vnet {
        let headers = layer.map_or(60, |layer| layer.payload).min(frame.len());
        let (l3, l4) = layer.map_or((14, 34), |layer| (layer.l3, layer.l4));
        let source = if layer.is_some_and(|layer| layer.v6) {
            (l3 + 8, 16)
        } else {
            (l3 + 12, 4)
        };
        let field = match self.below(8) {
            0..3 => source.0 + self.below(source.1),
            // Within ARP, neighbor discovery, link-layer addresses.
            3 => 22 + self.below(20),
            4 => l4 + self.below(48),
            5 => self.below(14),
            6 => layer
                .and_then(|layer| layer.check)
                .unwrap_or(l4 + 6)
                .saturating_add_signed(self.pick(&[-2, -1, 0, 1, 2, 10])),
            _ => self.below(headers),
        };
        let start = match self.below(8) {
            0 => 0,
            1 => l3,
            2..4 => l4,
            4 => field,
            5 => l4.saturating_add_signed(self.pick(&[-4, -1, 1, 4, 8])),
            _ => self.below(field + 1),
        }
        .min(field);
        Vnet {
            flags: NEEDS_CSUM | self.flag(),
            csum_start: start as u16,
            csum_offset: (field - start) as u16,
            ..Vnet::default()
        }
    }

    fn anywhere(&mut self, frame: &[u8]) -> Vnet {
        let (start, offset) = if self.one_in(8) {
            (self.all.rng.u16(..), self.all.rng.u16(..))
        } else {
            let start = self.below(frame.len());
            let offset = self.below(frame.len() - start + 4);
            (start as u16, offset as u16)
        };
        Vnet {
            flags: NEEDS_CSUM | self.flag(),
            csum_start: start,
            csum_offset: offset,
            ..Vnet::default()
        }
    }

    /// Other bits of `flags`.
    fn flag(&mut self) -> u8 {
        if self.one_in(16) {
            self.all.rng.u8(..)
        } else {
            0
        }
    }

    fn gso_type(&mut self) -> u8 {
        let plain = self.pick(&[gso::NONE, gso::TCPV4, gso::UDP, gso::TCPV6, gso::UDP_L4]);
        let kind = self.all.mostly(16, plain, |all| all.rng.u8(..));
        if self.one_in(6) {
            kind | gso::ECN
        } else {
            kind
        }
    }

    fn gso_size(&mut self) -> u16 {
        let any = self.all.rng.u16(..);
        let small = 1 + self.below(64) as u16;
        self.pick(&[
            1448, 1448, 1400, 1000, 536, 100, small, any, 0xffff, 0, 8, 7,
        ])
    }

    /// What is said of a super-packet.
    fn segments(&mut self, frame: &[u8], layers: &[Layer]) -> Vnet {
        let last = layers[layers.len() - 1];
        let mut vnet = honest(&last);
        vnet.gso_type = match (last.protocol, last.v6) {
            (TCP, false) => gso::TCPV4,
            (TCP, true) => gso::TCPV6,
            (UDP, _) => self.pick(&[gso::UDP_L4, gso::UDP_L4, gso::UDP]),
            _ => self.gso_type(),
        };
        vnet.gso_size = match self.below(4) {
            0 => self.gso_size(),
            _ => self.pick(&[1448, 1400, 1000, 536]),
        };
        vnet.hdr_len = last.payload as u16;
        let outer = layers[0];
        if self.tunnels && layers.len() > 1 && outer.protocol == UDP && self.below(4) > 0 {
            vnet.gso_type |= if outer.v6 {
                gso::UDP_TUNNEL_IPV6
            } else {
                gso::UDP_TUNNEL_IPV4
            };
            vnet.outer_th = outer.l4 as u16;
            vnet.inner_nh = layers[1].l3 as u16;
            if self.one_in(2) {
                vnet.flags |= TUNNEL_CSUM;
            }
        }
        if self.one_in(3) {
            for _ in 0..1 + self.below(2) {
                self.perturb(&mut vnet, frame, &last);
            }
        }
        vnet
    }

    /// Makes one field of it wrong.
    fn perturb(&mut self, vnet: &mut Vnet, frame: &[u8], layer: &Layer) {
        let near = |all: &mut Self, right: u16| match all.below(8) {
            0..4 => right.wrapping_add_signed(all.pick(&[-8, -4, -2, -1, 1, 2, 4, 8, 20])),
            4 => 0,
            5 => frame.len() as u16,
            6 => all.below(frame.len().min(100)) as u16,
            _ => all.all.rng.u16(..),
        };
        match self.below(10) {
            0 => vnet.gso_type = self.gso_type(),
            1 => vnet.gso_type ^= 1 << self.below(8),
            2 => vnet.gso_size = self.gso_size(),
            3 => vnet.hdr_len = near(self, vnet.hdr_len),
            4 => vnet.csum_start = near(self, vnet.csum_start),
            5 => vnet.csum_offset = near(self, vnet.csum_offset),
            6 => vnet.flags ^= 1 << self.below(4),
            7 => vnet.outer_th = near(self, vnet.outer_th),
            8 => vnet.inner_nh = near(self, vnet.inner_nh),
            _ => {
                let other = self.near(frame, Some(layer));
                vnet.csum_start = other.csum_start;
                vnet.csum_offset = other.csum_offset;
            }
        }
    }

    fn mutate(&mut self, frame: &mut [u8]) {
        let headers = frame.len().min(110);
        for _ in 0..1 + self.below(3) {
            let at = self.below(headers);
            frame[at] = match self.below(4) {
                0 => frame[at] ^ 1 << self.below(8),
                1 => self.all.rng.u8(..),
                2 => self.pick(&[0, 1, 4, 6, 17, 0x7f, 0x80, 0xff]),
                _ => frame[self.below(headers)],
            };
        }
        if !self.one_in(3) {
            mend(frame);
        }
    }
}

fn udp(from: u16, to: u16, payload: &[u8]) -> Vec<u8> {
    let length = (8 + payload.len()) as u16;
    let mut bytes = [from, to, length, 0].map(u16::to_be_bytes).concat();
    bytes.extend(payload);
    bytes
}

/// What is said where a layer's own checksum is left to be completed.
fn honest(layer: &Layer) -> Vnet {
    let check = layer.check.unwrap_or(layer.l4 + 6);
    Vnet {
        flags: NEEDS_CSUM,
        csum_start: layer.l4 as u16,
        csum_offset: (check - layer.l4) as u16,
        ..Vnet::default()
    }
}

/// The sum of a layer's pseudo-header, where its protocol has one.
fn pseudo(frame: &[u8], layer: &Layer) -> u64 {
    if !matches!(layer.protocol, UDP | TCP | ICMP6) {
        return 0;
    }
    let addresses = if layer.v6 {
        layer.l3 + 8..layer.l3 + 40
    } else {
        layer.l3 + 12..layer.l3 + 20
    };
    sum(&frame[addresses]) + u64::from(layer.protocol) + (frame.len() - layer.l4) as u64
}
