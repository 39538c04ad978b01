//! Frames of a capture.

use std::{
    fs::File,
    io::{self, Read},
    path::Path,
};

use anyhow::{Context as _, Result, bail};
use netspawn_ebpf::{
    abi::Owner,
    wire::{EthHdr, Frame as _, Ip6, Ipv4Hdr, L3, ether_type, protocol},
};
use pcap_parser::{
    Block, Linktype, PcapBlockOwned, PcapError, create_reader, traits::PcapReaderIterator,
};

use super::{At, Case, world::World};

/// Bytes read at a time; grows for longer records.
const BUFFER: usize = 1 << 16;
/// Longest record that is believed (tcpdump's own limit).
const MAX_BUFFER: usize = 1 << 20;

/// Longest frame that is believed to have been one, in bytes. What a capture says of lengths
/// is nobody's word: nothing of that size is made for it.
const MAX_FRAME: usize = 256 << 10;

/// A frame as captured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Captured {
    /// Its number, counted from 1 as wireshark does.
    pub number: u64,
    /// Its bytes, as many as were kept.
    pub bytes: Vec<u8>,
    /// Bytes that it had on the wire.
    pub length: usize,
}

/// A capture that is read frame by frame.
pub struct Capture {
    reader: Box<dyn PcapReaderIterator + Send>,
    name: String,
    buffer: usize,
    number: u64,
    links: Vec<Linktype>,
}

impl Capture {
    /// Opens a file, `-` for standard input.
    ///
    /// # Errors
    /// When it cannot be read, or is no capture.
    pub fn open(path: &Path) -> Result<Self> {
        let name = path.display().to_string();
        let file: Box<dyn Read + Send> = if path == Path::new("-") {
            Box::new(io::stdin())
        } else {
            Box::new(File::open(path).with_context(|| format!("cannot open {name}"))?)
        };
        Capture::new(file, name)
    }

    fn new(file: Box<dyn Read + Send>, name: String) -> Result<Self> {
        let reader = match create_reader(BUFFER, file) {
            Ok(reader) => reader,
            Err(PcapError::Eof) => bail!("{name} is empty"),
            Err(_) => bail!(
                "{name} is neither a pcap nor a pcapng file; make one with `tcpdump -i eth0 -w \
                 FILE`"
            ),
        };
        Ok(Capture {
            reader,
            name,
            buffer: BUFFER,
            number: 0,
            links: Vec::new(),
        })
    }

    /// The next frame; `None` after the last.
    ///
    /// # Errors
    /// When the file is cut short or damaged, or is not of Ethernet.
    pub fn next_frame(&mut self) -> Result<Option<Captured>> {
        loop {
            let wanted = match self.reader.next() {
                Ok((size, block)) => Ok((size, take(block, &mut self.links))),
                Err(PcapError::Eof) => return Ok(None),
                Err(PcapError::Incomplete(_)) => Err(Wanted::Data),
                Err(PcapError::BufferTooSmall) => Err(Wanted::Room),
                Err(PcapError::UnexpectedEof) => {
                    bail!("{} is cut short after frame {}", self.name, self.number)
                }
                Err(_) => bail!("{} is damaged after frame {}", self.name, self.number),
            };
            let (size, found) = match wanted {
                Ok(found) => found,
                Err(Wanted::Data) if self.reader.reader_exhausted() => {
                    bail!("{} is cut short after frame {}", self.name, self.number)
                }
                Err(Wanted::Data) => {
                    self.refill()?;
                    continue;
                }
                Err(Wanted::Room) => {
                    self.grow()?;
                    continue;
                }
            };
            self.reader.consume(size);
            let Some((link, bytes, length)) = found else {
                continue;
            };
            self.number += 1;
            if link != Linktype::ETHERNET {
                bail!(
                    "{}: frame {} is not Ethernet but {link}; capture on an interface, as in \
                     `tcpdump -i eth0`, not on `any`",
                    self.name,
                    self.number
                );
            }
            return Ok(Some(Captured {
                number: self.number,
                bytes,
                length,
            }));
        }
    }

    fn refill(&mut self) -> Result<()> {
        let before = self.reader.data().len();
        if self.reader.refill().is_err() {
            bail!("cannot read {}", self.name);
        }
        if self.reader.data().len() == before && !self.reader.reader_exhausted() {
            self.grow()?;
        }
        Ok(())
    }

    fn grow(&mut self) -> Result<()> {
        self.buffer *= 2;
        if self.buffer > MAX_BUFFER || !self.reader.grow(self.buffer) {
            bail!("{} is damaged after frame {}", self.name, self.number);
        }
        Ok(())
    }
}

/// What a reader lacks for the next block.
enum Wanted {
    Data,
    Room,
}

type Found = (Linktype, Vec<u8>, usize);

/// What a block holds, with padding taken off.
fn take(block: PcapBlockOwned<'_>, links: &mut Vec<Linktype>) -> Option<Found> {
    let cut = |data: &[u8], kept: u32| data[..data.len().min(kept as usize)].to_vec();
    let link = |links: &[Linktype], at: u32| {
        let unknown = Linktype(-1);
        links.get(at as usize).copied().unwrap_or(unknown)
    };
    match block {
        PcapBlockOwned::LegacyHeader(header) => {
            *links = vec![header.network];
            None
        }
        PcapBlockOwned::Legacy(frame) => {
            let bytes = cut(frame.data, frame.caplen);
            Some((link(links, 0), bytes, frame.origlen as usize))
        }
        PcapBlockOwned::NG(Block::SectionHeader(_)) => {
            links.clear();
            None
        }
        PcapBlockOwned::NG(Block::InterfaceDescription(interface)) => {
            links.push(interface.linktype);
            None
        }
        PcapBlockOwned::NG(Block::EnhancedPacket(frame)) => {
            let bytes = cut(frame.data, frame.caplen);
            Some((link(links, frame.if_id), bytes, frame.origlen as usize))
        }
        PcapBlockOwned::NG(Block::SimplePacket(frame)) => {
            let bytes = cut(frame.data, frame.origlen);
            Some((link(links, 0), bytes, frame.origlen as usize))
        }
        PcapBlockOwned::NG(_) => None,
    }
}

/// Where frames of a capture are taken to meet the data plane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// Where their link-layer addresses say.
    Any,
    /// They come in on this uplink.
    Uplink(u32),
    /// This machine sends them.
    Port(Owner),
}

/// A captured frame, or why nothing is said of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Placed {
    /// It meets the data plane.
    Case(Case),
    /// It does not, for this reason.
    Skipped(&'static str),
}

impl World {
    /// Places a captured frame.
    pub fn place(&self, place: Place, frame: &Captured) -> Placed {
        if frame.length > MAX_FRAME || frame.bytes.len() > MAX_FRAME {
            return Placed::Skipped("longer than 262144 bytes");
        }
        let Some(eth) = frame.bytes[..].read::<EthHdr>(0) else {
            return Placed::Skipped("shorter than an Ethernet header");
        };
        let of_uplink = |ifindex: &u32| {
            let uplink = self.state.uplinks.get(ifindex);
            uplink.is_some_and(|uplink| uplink.mac == eth.src_addr)
        };
        let at = match place {
            Place::Uplink(ifindex) if of_uplink(&ifindex) => {
                return Placed::Skipped("sent by this host");
            }
            Place::Uplink(ifindex) => At::Uplink(ifindex),
            Place::Port(id) => {
                let port = self.machine(id).map(|endpoint| endpoint.port_mac);
                if port == Some(eth.src_addr) {
                    return Placed::Skipped("sent to the machine");
                }
                At::Port(id)
            }
            Place::Any => {
                let ports = || self.state.endpoints.values().map(|entry| &entry.forward);
                if self.state.uplinks.keys().any(of_uplink) {
                    return Placed::Skipped("sent by this host");
                }
                if ports().any(|port| port.ifindex != 0 && port.port_mac == eth.src_addr) {
                    return Placed::Skipped("sent to a machine");
                }
                match self.machine_with(eth.src_addr, eth.dst_addr) {
                    Some(id) => At::Port(id),
                    None => {
                        let named = self.uplinks.iter().find(|uplink| {
                            let entry = self.state.uplinks.get(&uplink.ifindex);
                            entry.is_some_and(|entry| entry.mac == eth.dst_addr)
                        });
                        match named.or(self.uplinks.first()) {
                            Some(uplink) => At::Uplink(uplink.ifindex),
                            None => return Placed::Skipped("no uplink is attached"),
                        }
                    }
                }
            }
        };
        Placed::Case(self.case(at, frame))
    }

    fn case(&self, at: At, frame: &Captured) -> Case {
        let mut remarks = Vec::new();
        let mut bytes = frame.bytes.clone();
        if frame.length > bytes.len() {
            remarks.push(format!(
                "the capture has {} of its {} bytes; the rest is taken for zeros",
                bytes.len(),
                frame.length
            ));
            bytes.resize(frame.length, 0);
        }
        // The kernel has taken the outer tag off before tc.
        let tag = match bytes[..].read::<[u8; 6]>(12) {
            Some([0x81, 0, high, low, ..]) => {
                bytes.drain(12..16);
                Some(u16::from_be_bytes([high, low]))
            }
            _ => None,
        };
        let mtu = match at {
            At::Uplink(ifindex) | At::Host(ifindex) => {
                self.state.uplinks.get(&ifindex).map(|uplink| uplink.mtu)
            }
            At::Port(id) => self.machine(id).map(|endpoint| endpoint.mtu),
        };
        let gso_size = mtu.map_or(0, |mtu| segment(&bytes, mtu));
        if gso_size != 0 {
            remarks.push(format!(
                "longer than the MTU of where it is seen, so it is taken for a super-packet of \
                 segments of {gso_size} bytes"
            ));
        }
        Case {
            at,
            bytes,
            tag,
            gso_size,
            remarks,
        }
    }
}

/// Bytes of a segment's payload where a frame can only be a super-packet of the kernel;
/// else 0.
fn segment(frame: &[u8], mtu: u32) -> u32 {
    if frame.len() <= L3 + mtu as usize {
        return 0;
    }
    let kind = frame
        .read::<EthHdr>(0)
        .map(|eth| u16::from_be(eth.ether_type));
    let (header, next) = match kind {
        Some(ether_type::IPV4) => match frame.read::<Ipv4Hdr>(L3) {
            Some(ip) => (u32::from(ip.vihl & 15) * 4, ip.proto),
            None => return 0,
        },
        Some(ether_type::IPV6) => match Ip6::read(frame) {
            Some(ip) => (40, ip.next_header),
            None => return 0,
        },
        _ => return 0,
    };
    let transport = match next {
        protocol::TCP => frame
            .read::<[u8; 2]>(L3 + header as usize + 12)
            .map_or(20, |[offset, _]| u32::from(offset >> 4) * 4),
        protocol::UDP => 8,
        _ => return 0,
    };
    mtu.saturating_sub(header + transport)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(bytes: Vec<u8>) -> Result<Vec<Captured>> {
        let mut capture = Capture::new(Box::new(io::Cursor::new(bytes)), "x.pcap".to_owned())?;
        let mut frames = Vec::new();
        while let Some(frame) = capture.next_frame()? {
            frames.push(frame);
        }
        Ok(frames)
    }

    fn header(link: u32) -> Vec<u8> {
        let mut file = 0xa1b2_c3d4_u32.to_le_bytes().to_vec();
        file.extend([2_u16, 4].map(u16::to_le_bytes).concat());
        file.extend([0_u32, 0, 1 << 18, link].map(u32::to_le_bytes).concat());
        file
    }

    fn record(kept: usize, length: u32) -> Vec<u8> {
        let mut file = [0, 0, kept as u32, length].map(u32::to_le_bytes).concat();
        file.extend(vec![7; kept]);
        file
    }

    #[test]
    fn frames_are_counted_and_cut_ones_known() {
        let file = [header(1), record(60, 60), record(96, 1514)].concat();
        let frames = read(file).unwrap();
        assert_eq!(frames.len(), 2);
        assert_eq!((frames[0].number, frames[0].length), (1, 60));
        assert_eq!((frames[1].bytes.len(), frames[1].length), (96, 1514));
    }

    #[test]
    fn records_longer_than_the_buffer_are_read() {
        let file = [header(1), record(200_000, 200_000), record(60, 60)].concat();
        let frames = read(file).unwrap();
        assert_eq!(frames[0].bytes.len(), 200_000);
        assert_eq!(frames[1].number, 2);
    }

    #[test]
    fn no_more_is_made_of_a_frame_than_one_can_be() {
        let most = MAX_FRAME as u32;
        let lengths = [60, most, most + 1, u32::MAX];
        let records = lengths.map(|length| record(60, length)).concat();
        let longest = record(MAX_FRAME + 1, most + 1);
        let frames = read([header(1), records, longest].concat()).unwrap();
        let mut world = World {
            state: Default::default(),
            host: Default::default(),
            uplinks: Vec::new(),
            now: 0,
        };
        world.state.uplinks.insert(2, Default::default());
        let made = frames
            .iter()
            .map(|frame| match world.place(Place::Uplink(2), frame) {
                Placed::Case(case) => Some(case.bytes.len()),
                Placed::Skipped(why) => {
                    assert!(why.starts_with("longer than"), "{why}");
                    None
                }
            });
        let made: Vec<_> = made.collect();
        assert_eq!(made, [Some(60), Some(MAX_FRAME), None, None, None]);
    }

    proptest::proptest! {
        #[test]
        fn any_file_is_read_to_an_end_within_its_size(
            head in proptest::sample::select(vec![header(1), b"\x0a\x0d\x0d\x0a".to_vec()]),
            lengths in proptest::collection::vec((0usize..100, proptest::num::u32::ANY), 0..4),
            rest in proptest::collection::vec(proptest::num::u8::ANY, 0..200),
        ) {
            let records = lengths.iter().map(|(kept, length)| record(*kept, *length));
            let file = [head, records.collect::<Vec<_>>().concat(), rest].concat();
            let size = file.len();
            // An error is an end as well.
            if let Ok(frames) = read(file) {
                let kept: usize = frames.iter().map(|frame| frame.bytes.len()).sum();
                proptest::prop_assert!(kept <= size);
            }
        }
    }

    #[test]
    fn faults_say_where() {
        for (file, text) in [
            (vec![], "is empty"),
            (b"hello, this is a text and no capture".to_vec(), "neither"),
            (
                [header(1), record(60, 60), record(60, 60)[..40].to_vec()].concat(),
                "cut short after frame 1",
            ),
            (
                [header(276), record(60, 60)].concat(),
                "frame 1 is not Ethernet",
            ),
        ] {
            let error = read(file).unwrap_err().to_string();
            assert!(error.contains(text), "{error}");
        }
    }

    #[test]
    fn super_packets_are_told_by_their_length() {
        let mut frame = vec![0; 14 + 3000];
        frame[12..14].copy_from_slice(&[8, 0]);
        frame[14] = 0x45;
        frame[23] = 6;
        frame[46] = 0x80;
        assert_eq!(segment(&frame, 1500), 1448);
        assert_eq!(segment(&frame[..1514], 1500), 0);
        // Nobody segments those.
        frame[23] = 1;
        assert_eq!(segment(&frame, 1500), 0);
    }
}
