//! A tap device and the card that it stands for.

use std::{
    fs::{File, OpenOptions},
    io::{self, Read as _, Write as _},
    os::{fd::AsRawFd as _, unix::fs::OpenOptionsExt as _},
};

use anyhow::{Context as _, Result, ensure};

use crate::{
    ns::Ns,
    vnet::{self, Received, Vnet, gso},
};

/// `TUNSETIFF` of include/uapi/linux/if_tun.h.
const TUNSETIFF: libc::Ioctl = 0x4004_54ca;
const TUNSETOFFLOAD: libc::Ioctl = 0x4004_54d0;
const TUNSETVNETHDRSZ: libc::Ioctl = 0x4004_54d8;

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
/// Unless [`TapWire::offload`] says otherwise the device takes no packets with anything
/// left undone: the kernel fills checksums in and cuts segments before, as it does for a
/// card without such features.
pub struct TapWire {
    file: File,
    /// Bytes in front of each frame.
    header: usize,
}

/// What the device may leave undone in packets that it sends ([`TapWire::offload`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Undone {
    /// Nothing.
    Nothing,
    /// Checksums, and segments of TCP and UDP.
    All,
    /// These, and segments within UDP tunnels: from Linux 6.17 on.
    Tunnels,
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
        Ok(TapWire {
            file,
            header: vnet::PLAIN,
        })
    }

    /// Says what the device may leave undone; with [`Undone::Tunnels`] headers are
    /// longer, and tell of tunnels both ways.
    ///
    /// # Errors
    /// When the kernel does not know it.
    pub fn offload(&mut self, undone: Undone) -> Result<()> {
        // TUN_F_CSUM, TSO4, TSO6, USO4, USO6; UDP_TUNNEL_GSO, UDP_TUNNEL_GSO_CSUM.
        let bits = match undone {
            Undone::Nothing => 0,
            Undone::All => 0x67,
            Undone::Tunnels => 0x1e7,
        };
        let header = match undone {
            Undone::Tunnels => vnet::TUNNEL,
            _ => vnet::PLAIN,
        };
        // A header too short for what is said is refused, whichever comes first.
        self.request(TUNSETOFFLOAD, 0)?;
        let size: libc::c_int = header.try_into()?;
        self.request(TUNSETVNETHDRSZ, (&raw const size) as libc::c_ulong)?;
        self.request(TUNSETOFFLOAD, bits)?;
        self.header = header;
        Ok(())
    }

    fn request(&self, request: libc::Ioctl, argument: libc::c_ulong) -> Result<()> {
        // SAFETY: the argument is a number, or the address of the int that is asked for.
        let done = unsafe { libc::ioctl(self.file.as_raw_fd(), request, argument) };
        ensure!(
            done == 0,
            "request {request:x} of a tap: {}",
            std::io::Error::last_os_error()
        );
        Ok(())
    }

    /// Hands a frame to the device as received, with what is said beside it.
    ///
    /// # Errors
    /// When the kernel takes none that is described so.
    pub fn send_vnet(&self, vnet: &Vnet, frame: &[u8]) -> io::Result<()> {
        let header = vnet.bytes(self.header);
        let parts = [
            io::IoSlice::new(&header[..self.header]),
            io::IoSlice::new(frame),
        ];
        (&self.file).write_vectored(&parts).map(drop)
    }

    /// Hands over what the device has sent, and how many frames that were. The buffer
    /// has room for the longest.
    pub fn receive_vnet(&self, buffer: &mut [u8], mut each: impl FnMut(Received<'_>)) -> usize {
        let mut all = 0;
        // The end is an error: nothing to read yet.
        while let Ok(length) = (&self.file).read(buffer) {
            all += 1;
            if length < self.header {
                continue;
            }
            let (header, frame) = buffer[..length].split_at(self.header);
            each(Received {
                vnet: Vnet::read(header),
                frame,
                tag: None,
            });
        }
        all
    }

    /// Hands a frame to the device as received.
    pub fn send(&self, frame: &[u8], offload: Offload) -> Result<()> {
        const TCP_HEADER: u16 = 20;
        const TCP_CHECK: u16 = 16;
        let vnet = match offload {
            Offload::None => Vnet::default(),
            Offload::Checksum { start, field } => Vnet {
                flags: vnet::NEEDS_CSUM,
                csum_start: start,
                csum_offset: field,
                ..Vnet::default()
            },
            Offload::Segments { start, size, v6 } => Vnet {
                flags: vnet::NEEDS_CSUM,
                gso_type: if v6 { gso::TCPV6 } else { gso::TCPV4 },
                hdr_len: start + TCP_HEADER,
                gso_size: size,
                csum_start: start,
                csum_offset: TCP_CHECK,
                ..Vnet::default()
            },
        };
        self.send_vnet(&vnet, frame)
            .context("the tap takes no frame")
    }

    /// The next frame that the device has sent, if there is one.
    pub fn receive(&self) -> Option<Vec<u8>> {
        let mut bytes = vec![0; 1 << 17];
        let length = (&self.file).read(&mut bytes).ok()?;
        bytes.truncate(length);
        Some(bytes.split_off(self.header.min(length)))
    }
}
