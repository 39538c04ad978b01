//! Frames with what a sender says beside their bytes: `struct virtio_net_hdr`, by packet
//! sockets (root of a container has one) and by taps (the kernel of a virtual machine).

use std::{
    io,
    os::fd::{AsRawFd as _, OwnedFd},
};

use anyhow::{Context as _, Result};

use crate::{
    capture::{ETH_P_ALL, packet_socket, set},
    ns::Ns,
};

/// Bytes of `struct virtio_net_hdr`.
pub const PLAIN: usize = 10;
/// Bytes of `struct virtio_net_hdr_v1_hash_tunnel`, which taps know from Linux 6.17 on.
pub const TUNNEL: usize = 24;

/// `flags`: the checksum is yet to be written.
pub const NEEDS_CSUM: u8 = 1;
/// `flags`: so is the one of the UDP header of a tunnel.
pub const TUNNEL_CSUM: u8 = 8;

/// Values of `gso_type` (include/uapi/linux/virtio_net.h).
pub mod gso {
    pub const NONE: u8 = 0;
    pub const TCPV4: u8 = 1;
    pub const UDP: u8 = 3;
    pub const TCPV6: u8 = 4;
    pub const UDP_L4: u8 = 5;
    pub const UDP_TUNNEL_IPV4: u8 = 0x20;
    pub const UDP_TUNNEL_IPV6: u8 = 0x40;
    pub const ECN: u8 = 0x80;
}

/// What a sender says of a frame. Offsets count from the frame's first byte.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Vnet {
    pub flags: u8,
    /// One of [`gso`], with bits of it.
    pub gso_type: u8,
    /// Bytes of all headers.
    pub hdr_len: u16,
    /// Payload of a segment.
    pub gso_size: u16,
    /// From where on the sum is taken.
    pub csum_start: u16,
    /// Where it is written, from there.
    pub csum_offset: u16,
    /// Where the outer transport header begins, of a tunnel's super-packet.
    pub outer_th: u16,
    /// Where the inner network header begins.
    pub inner_nh: u16,
}

impl Vnet {
    /// The header as taps and packet sockets take it, in `size` bytes.
    pub fn bytes(&self, size: usize) -> [u8; TUNNEL] {
        let mut bytes = [0; TUNNEL];
        bytes[..2].copy_from_slice(&[self.flags, self.gso_type]);
        let mut put =
            |at: usize, value: u16| bytes[at..at + 2].copy_from_slice(&value.to_ne_bytes());
        put(2, self.hdr_len);
        put(4, self.gso_size);
        put(6, self.csum_start);
        put(8, self.csum_offset);
        if size == TUNNEL {
            put(20, self.outer_th);
            put(22, self.inner_nh);
        }
        bytes
    }

    /// Reads the header that [`Vnet::bytes`] writes.
    pub fn read(bytes: &[u8]) -> Self {
        let word = |at: usize| match bytes.get(at..at + 2) {
            Some(pair) => u16::from_ne_bytes([pair[0], pair[1]]),
            None => 0,
        };
        Vnet {
            flags: bytes[0],
            gso_type: bytes[1],
            hdr_len: word(2),
            gso_size: word(4),
            csum_start: word(6),
            csum_offset: word(8),
            outer_th: word(20),
            inner_nh: word(22),
        }
    }

    /// Does what a device would that the frame is handed to: takes the sum from
    /// `csum_start` on, and writes it (`skb_checksum_help`).
    pub fn complete(&self, frame: &mut [u8]) {
        let start = usize::from(self.csum_start);
        let field = start + usize::from(self.csum_offset);
        if self.flags & NEEDS_CSUM == 0 || field + 2 > frame.len() {
            return;
        }
        let mut sum = 0_u64;
        for pair in frame[start..].chunks(2) {
            sum += u64::from(u16::from_be_bytes([pair[0], *pair.get(1).unwrap_or(&0)]));
        }
        while sum > 0xffff {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        let sum = match !(sum as u16) {
            0 => 0xffff,
            sum => sum,
        };
        frame[field..field + 2].copy_from_slice(&sum.to_be_bytes());
    }
}

/// A frame as somebody received it.
pub struct Received<'a> {
    /// What is said beside it.
    pub vnet: Vnet,
    /// Its bytes, without a tag that the kernel carries aside.
    pub frame: &'a [u8],
    /// That tag: Ethernet type and control information.
    pub tag: Option<(u16, u16)>,
}

/// Frames that are read at once.
const ROOM: usize = 32;
/// The longest frame with its header.
const LONGEST: usize = (1 << 16) + 256;

/// A packet socket on one interface.
pub struct PacketPort {
    socket: OwnedFd,
    header: usize,
    buffers: Vec<Vec<u8>>,
    control: Vec<[u64; 8]>,
    /// Frames that the kernel could not describe (`virtio_net_hdr_from_skb`).
    pub unreadable: u64,
}

/// `PACKET_VNET_HDR` of include/uapi/linux/if_packet.h.
const PACKET_VNET_HDR: i32 = 15;

impl PacketPort {
    /// Opens an interface of a namespace; from here on it records what comes in.
    pub fn open(ns: &Ns, interface: &str) -> Result<Self> {
        Self::with(ns, interface, true)
    }

    /// As [`PacketPort::open`], without headers: also frames that no header describes.
    pub fn plain(ns: &Ns, interface: &str) -> Result<Self> {
        Self::with(ns, interface, false)
    }

    fn with(ns: &Ns, interface: &str, vnet: bool) -> Result<Self> {
        let socket = packet_socket(ns, interface, 0)?;
        if vnet {
            set(&socket, libc::SOL_PACKET, PACKET_VNET_HDR, 1)?;
        }
        set(&socket, libc::SOL_PACKET, libc::PACKET_AUXDATA, 1)?;
        set(&socket, libc::SOL_PACKET, libc::PACKET_IGNORE_OUTGOING, 1)?;
        set(&socket, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, 64 << 20)?;
        set(&socket, libc::SOL_SOCKET, libc::SO_SNDBUFFORCE, 4 << 20)?;
        let mut port = PacketPort {
            socket,
            header: if vnet { PLAIN } else { 0 },
            buffers: vec![vec![0; LONGEST]; ROOM],
            control: vec![[0; 8]; ROOM],
            unreadable: 0,
        };
        port.rebind(ns, interface)?;
        port.receive(|_| {});
        Ok(port)
    }

    /// Begins to listen only now that all options are set.
    fn rebind(&self, ns: &Ns, interface: &str) -> Result<()> {
        // SAFETY: all-zero is a valid sockaddr_ll.
        let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        address.sll_family = libc::AF_PACKET.try_into()?;
        address.sll_protocol = ETH_P_ALL.to_be();
        address.sll_ifindex = ns.ifindex(interface)?.try_into()?;
        // SAFETY: the address is a sockaddr_ll of the length said.
        let bound = unsafe {
            libc::bind(
                self.socket.as_raw_fd(),
                (&raw const address).cast(),
                size_of_val(&address).try_into()?,
            )
        };
        if bound != 0 {
            return Err(io::Error::last_os_error())
                .with_context(|| format!("cannot listen on {interface}"));
        }
        Ok(())
    }

    /// Sends a frame.
    ///
    /// # Errors
    /// When the kernel takes none that is described so.
    pub fn send(&self, vnet: &Vnet, frame: &[u8]) -> io::Result<()> {
        let mut header = vnet.bytes(PLAIN);
        let mut parts = [
            libc::iovec {
                iov_base: header.as_mut_ptr().cast(),
                iov_len: self.header,
            },
            libc::iovec {
                iov_base: frame.as_ptr().cast_mut().cast(),
                iov_len: frame.len(),
            },
        ];
        // SAFETY: all-zero is a valid msghdr.
        let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
        message.msg_iov = parts.as_mut_ptr();
        message.msg_iovlen = parts.len();
        // SAFETY: the message points at two buffers of the lengths said, which are read.
        match unsafe { libc::sendmsg(self.socket.as_raw_fd(), &raw const message, 0) } {
            -1 => Err(io::Error::last_os_error()),
            _ => Ok(()),
        }
    }

    /// Hands over what has come in, and how many frames that were.
    pub fn receive(&mut self, mut each: impl FnMut(Received<'_>)) -> usize {
        let mut all = 0;
        loop {
            let mut parts: Vec<libc::iovec> = self
                .buffers
                .iter_mut()
                .map(|buffer| libc::iovec {
                    iov_base: buffer.as_mut_ptr().cast(),
                    iov_len: buffer.len(),
                })
                .collect();
            let mut messages: Vec<libc::mmsghdr> = parts
                .iter_mut()
                .zip(&mut self.control)
                .map(|(part, control)| {
                    // SAFETY: all-zero is a valid mmsghdr.
                    let mut message: libc::mmsghdr = unsafe { std::mem::zeroed() };
                    message.msg_hdr.msg_iov = part;
                    message.msg_hdr.msg_iovlen = 1;
                    message.msg_hdr.msg_control = control.as_mut_ptr().cast();
                    message.msg_hdr.msg_controllen = size_of_val(control);
                    message
                })
                .collect();
            // SAFETY: each message points at a buffer and a control area of the lengths
            // it says, and there are as many as said.
            let count = unsafe {
                libc::recvmmsg(
                    self.socket.as_raw_fd(),
                    messages.as_mut_ptr(),
                    ROOM as u32,
                    libc::MSG_DONTWAIT,
                    std::ptr::null_mut(),
                )
            };
            if count < 0 {
                match io::Error::last_os_error().raw_os_error() {
                    // The frame has no description and is gone; others may wait.
                    Some(libc::EINVAL) => {
                        self.unreadable += 1;
                        continue;
                    }
                    // Also an interface that went down, whose socket says so once.
                    _ => return all,
                }
            }
            let count = count.unsigned_abs() as usize;
            for (message, buffer) in messages.iter().zip(&self.buffers).take(count) {
                let bytes = &buffer[..message.msg_len as usize];
                if bytes.len() < self.header {
                    continue;
                }
                let (header, frame) = bytes.split_at(self.header);
                each(Received {
                    vnet: if header.is_empty() {
                        Vnet::default()
                    } else {
                        Vnet::read(header)
                    },
                    frame,
                    tag: tag(&message.msg_hdr),
                });
            }
            all += count;
            if count < ROOM {
                return all;
            }
        }
    }

    /// How many frames found no room since this was last asked.
    pub fn lost(&self) -> Result<u64> {
        let mut statistics = [0_u32; 2];
        let mut length: libc::socklen_t = size_of_val(&statistics).try_into()?;
        // SAFETY: the buffer is as long as said.
        let done = unsafe {
            libc::getsockopt(
                self.socket.as_raw_fd(),
                libc::SOL_PACKET,
                libc::PACKET_STATISTICS,
                statistics.as_mut_ptr().cast(),
                &raw mut length,
            )
        };
        if done != 0 {
            return Err(io::Error::last_os_error()).context("no statistics of a packet socket");
        }
        Ok(statistics[1].into())
    }
}

/// The 802.1Q tag that a message says was beside the frame.
fn tag(message: &libc::msghdr) -> Option<(u16, u16)> {
    // SAFETY: the kernel filled the message, whose control area its owner still has.
    let header = unsafe { libc::CMSG_FIRSTHDR(message).as_ref() }?;
    if header.cmsg_type != libc::PACKET_AUXDATA {
        return None;
    }
    // SAFETY: a control message of this type carries a tpacket_auxdata.
    let aux = unsafe {
        libc::CMSG_DATA(header)
            .cast::<libc::tpacket_auxdata>()
            .read_unaligned()
    };
    let kind = match aux.tp_vlan_tpid {
        0 => 0x8100,
        other => other,
    };
    (aux.tp_status & libc::TP_STATUS_VLAN_VALID != 0).then_some((kind, aux.tp_vlan_tci))
}
