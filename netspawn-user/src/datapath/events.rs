//! Events that the programs tell: somebody sends what is not theirs.

use std::{
    borrow::Borrow,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::Path,
    time::Duration,
};

use anyhow::{Context as _, Result};
use aya::maps::{Map, MapData, RingBuf};
use netspawn_ebpf::{
    abi::{Event, Owner, map},
    verdict::Reason,
    wire::{
        ArpHdr, EthHdr, Frame as _, Ip6, Ipv4Hdr, Ipv6, L3, L4_V6, Mac, Words6, ether_type,
        ndp::{self, kind},
        protocol,
    },
};
use tokio::io::{Interest, unix::AsyncFd};

/// What a frame said that led to an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Report {
    /// When, by `CLOCK_MONOTONIC`.
    pub time: Duration,
    /// Why the frame was dropped, or that it was a conflict.
    pub reason: Reason,
    /// The machine that sent it; of a conflict, the one whose address it is.
    pub endpoint: Owner,
    /// ifindex that it came in on.
    pub ifindex: u32,
    /// Link-layer address that it came from.
    pub mac: Mac,
    /// The address that it claims: sender of ARP, target of an advertisement, else
    /// the source.
    pub address: Option<IpAddr>,
}

impl Report {
    /// Reads an event; `None` for a reason that this version does not know.
    pub fn new(event: &Event) -> Option<Self> {
        let frame = &event.frame[..];
        let mac = frame.read::<EthHdr>(0)?.src_addr;
        Some(Report {
            time: Duration::from_nanos(event.time),
            reason: *Reason::ALL.get(event.reason as usize)?,
            endpoint: event.endpoint,
            ifindex: event.ifindex,
            mac,
            address: claimed(frame),
        })
    }
}

fn claimed(frame: &[u8]) -> Option<IpAddr> {
    match u16::from_be(frame.read::<EthHdr>(0)?.ether_type) {
        ether_type::ARP => Some(v4(frame.read::<ArpHdr>(L3)?.spa)),
        ether_type::IPV4 => Some(v4(frame.read::<Ipv4Hdr>(L3)?.src_addr)),
        ether_type::IPV6 => {
            let ip = Ip6::read(frame)?;
            let icmp = ip.next_header == protocol::ICMPV6;
            if icmp && frame.read::<u8>(L4_V6) == Some(kind::ADVERTISEMENT) {
                return frame.read::<Ipv6>(ndp::TARGET).map(v6);
            }
            Some(v6(bytes(ip.source)))
        }
        _ => None,
    }
}

fn v4(address: [u8; 4]) -> IpAddr {
    Ipv4Addr::from(address).into()
}

fn v6(address: Ipv6) -> IpAddr {
    Ipv6Addr::from(address).into()
}

fn bytes([low, high]: Words6) -> Ipv6 {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&low.to_ne_bytes());
    bytes[8..].copy_from_slice(&high.to_ne_bytes());
    bytes
}

/// The programs' ring buffer. One reader takes all: whoever opens it sees what comes
/// from then on, and what nobody has read.
pub struct Events {
    ring: AsyncFd<RingBuf<MapData>>,
}

impl Events {
    /// Opens the buffer pinned in a folder, within a tokio runtime that has I/O.
    ///
    /// # Errors
    /// When it is not there.
    pub fn open(folder: &Path) -> Result<Self> {
        let path = folder.join(map::EVENTS);
        let open = || -> Result<AsyncFd<RingBuf<MapData>>> {
            let ring = RingBuf::try_from(Map::RingBuf(MapData::from_pin(&path)?))?;
            // SAFETY: the ring owns its descriptor, closes it only when dropped, and
            // always gives the same one.
            Ok(unsafe { AsyncFd::register_with_interest(ring, Interest::READABLE)? })
        };
        let ring = open().with_context(|| format!("cannot read {}", path.display()))?;
        Ok(Events { ring })
    }

    /// Waits for events, and takes all there are. Dropping the future loses nothing.
    ///
    /// # Errors
    /// When the kernel does not let wait.
    pub async fn next(&mut self) -> io::Result<Vec<Report>> {
        let mut ready = self.ring.readable_mut().await?;
        let ring = ready.get_inner_mut();
        let reports = take(ring);
        ready.clear_ready();
        Ok(reports)
    }
}

/// Takes all events that are in a ring buffer.
pub fn take<M: Borrow<MapData>>(ring: &mut RingBuf<M>) -> Vec<Report> {
    let mut reports = Vec::new();
    while let Some(item) = ring.next() {
        if item.len() == size_of::<Event>() {
            // SAFETY: the bytes are as many as an event has, any are a valid one, and no
            // alignment is assumed.
            let event = unsafe { item.as_ptr().cast::<Event>().read_unaligned() };
            reports.extend(Report::new(&event));
        }
    }
    reports
}

#[cfg(test)]
mod tests {
    use netspawn_ebpf::abi::SNAP_LEN;

    use super::*;

    fn event(reason: Reason, frame: &[u8]) -> Event {
        let mut snap = [0; SNAP_LEN];
        let length = frame.len().min(SNAP_LEN);
        snap[..length].copy_from_slice(&frame[..length]);
        Event {
            time: 1,
            reason: reason as u32,
            endpoint: 7,
            ifindex: 3,
            length: frame.len() as u32,
            frame: snap,
        }
    }

    fn ethernet(ether_type: u16) -> Vec<u8> {
        let mut frame = vec![0xff; 6];
        frame.extend([2, 0, 0, 0, 0, 9]);
        frame.extend(ether_type.to_be_bytes());
        frame
    }

    #[test]
    fn reports_say_what_is_claimed() {
        let mut arp = ethernet(ether_type::ARP);
        arp.extend([0, 1, 8, 0, 6, 4, 0, 2, 2, 0, 0, 0, 0, 9, 203, 0, 113, 2]);
        arp.extend([0; 10]);
        let report = Report::new(&event(Reason::AddressConflict, &arp)).unwrap();
        assert_eq!((report.endpoint, report.ifindex), (7, 3));
        assert_eq!(report.mac, [2, 0, 0, 0, 0, 9]);
        assert_eq!(report.address, "203.0.113.2".parse().ok());

        let mut packet = ethernet(ether_type::IPV6);
        packet.extend([0x60, 0, 0, 0, 0, 0, 17, 64]);
        packet.extend("2001:db8::5".parse::<Ipv6Addr>().unwrap().octets());
        packet.extend([0; 16]);
        let report = Report::new(&event(Reason::SpoofedSource, &packet)).unwrap();
        assert_eq!(report.address, "2001:db8::5".parse().ok());
    }

    #[test]
    fn frames_cut_short_are_reported_all_the_same() {
        let short = ethernet(ether_type::IPV6);
        let report = Report::new(&event(Reason::RogueRouter, &short)).unwrap();
        assert_eq!(report.mac, [2, 0, 0, 0, 0, 9]);
        let mut unknown = event(Reason::RogueDhcp, &ethernet(0));
        unknown.reason = u32::MAX;
        assert_eq!(Report::new(&unknown), None);
    }
}
