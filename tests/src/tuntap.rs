//! A tap device and the card that it stands for.

use std::{
    fs::{File, OpenOptions},
    io::{Read as _, Write as _},
    os::{fd::AsRawFd as _, unix::fs::OpenOptionsExt as _},
};

use anyhow::{Context as _, Result, ensure};

use crate::ns::Ns;

/// `TUNSETIFF` of include/uapi/linux/if_tun.h.
const TUNSETIFF: libc::Ioctl = 0x4004_54ca;
/// Bytes of `struct virtio_net_hdr`, in front of each frame.
const HEADER: usize = 10;

/// What the card has left undone in a frame that it hands to its driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Offload {
    /// Nothing; nobody has checked anything.
    None,
    /// The transport checksum, which holds the sum of the pseudo-header: from byte
    /// `start` on, in the field at `start + field`.
    Checksum {
        /// Where the transport header begins.
        start: u16,
        /// Where its checksum is, from there.
        field: u16,
    },
    /// As `Checksum`, and TCP's payload is yet to be cut into so many bytes each.
    Segments {
        /// Where the transport header begins.
        start: u16,
        /// Payload of one segment.
        size: u16,
        /// Over IPv6, not IPv4.
        v6: bool,
    },
}

/// The wire's end of a tap device; the device goes with the value.
///
/// The device takes no packets with anything left undone: the kernel fills checksums in
/// and cuts segments before, as it does for a card without such features.
pub struct TapWire {
    file: File,
}

impl TapWire {
    /// Makes a tap device in a namespace and sets it up.
    pub fn new(ns: &Ns, name: &str) -> Result<Self> {
        let file = ns.enter(|| {
            let file = OpenOptions::new()
                .read(true)
                .write(true)
                .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC)
                .open("/dev/net/tun")
                .context("no /dev/net/tun")?;
            // SAFETY: all-zero is a valid ifreq.
            let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
            ensure!(name.len() < request.ifr_name.len(), "`{name}` is too long");
            for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
                *to = from.cast_signed();
            }
            let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
            request.ifr_ifru.ifru_flags = flags.try_into()?;
            // SAFETY: the request is an ifreq.
            let made = unsafe { libc::ioctl(file.as_raw_fd(), TUNSETIFF, &raw mut request) };
            ensure!(
                made == 0,
                "cannot make {name}: {}",
                std::io::Error::last_os_error()
            );
            Ok(file)
        })?;
        ns.run(&format!("ip link set {name} up"))?;
        Ok(TapWire { file })
    }

    /// Hands a frame to the device as received.
    pub fn send(&self, frame: &[u8], offload: Offload) -> Result<()> {
        const NEEDS_CSUM: u8 = 1;
        const TCPV4: u8 = 1;
        const TCPV6: u8 = 4;
        const TCP_CHECK: u16 = 16;
        let mut header = [0; HEADER];
        let mut put = |at: usize, value: u16| {
            header[at..at + 2].copy_from_slice(&value.to_ne_bytes());
        };
        let kind = match offload {
            Offload::None => [0, 0],
            Offload::Checksum { start, field } => {
                put(6, start);
                put(8, field);
                [NEEDS_CSUM, 0]
            }
            Offload::Segments { start, size, v6 } => {
                const TCP_HEADER: u16 = 20;
                put(2, start + TCP_HEADER);
                put(4, size);
                put(6, start);
                put(8, TCP_CHECK);
                [NEEDS_CSUM, if v6 { TCPV6 } else { TCPV4 }]
            }
        };
        header[..2].copy_from_slice(&kind);
        let bytes = [&header[..], frame].concat();
        let sent = (&self.file)
            .write(&bytes)
            .context("the tap takes no frame")?;
        ensure!(sent == bytes.len(), "the tap took {sent} bytes");
        Ok(())
    }

    /// The next frame that the device has sent, if there is one.
    pub fn receive(&self) -> Option<Vec<u8>> {
        let mut bytes = vec![0; 1 << 17];
        let length = (&self.file).read(&mut bytes).ok()?;
        bytes.truncate(length);
        Some(bytes.split_off(HEADER.min(length)))
    }
}
