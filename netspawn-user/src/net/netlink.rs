//! Requests and dumps over rtnetlink (RFC 3549, `rtnetlink(7)`).
//!
//! Only the attributes asked for are read: a kernel that adds one, or an
//! interface of a kind nobody has heard of, never costs the whole message.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::fd::AsRawFd,
};

use netlink_packet_core::{NLA_F_NESTED, NLA_HEADER_SIZE, NlasIterator};
use netlink_sys::{
    Socket, SocketAddr,
    protocols::{NETLINK_GENERIC, NETLINK_NETFILTER, NETLINK_ROUTE},
};

/// Bytes of `nlmsghdr`.
const HEADER: usize = 16;
/// The kernel fills at most 32 KiB of a dump at a time.
const RECEIVE: usize = 64 * 1024;
/// `NLMSG_ERROR` ends in extended attributes.
const NLM_F_ACK_TLVS: u16 = 0x200;
/// The extended error's text.
const NLMSGERR_ATTR_MSG: u16 = 1;
/// How often a dump that changed under the reader is asked for again.
const DUMP_ATTEMPTS: u32 = 16;

/// What went wrong with a request to the kernel.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The socket itself failed.
    #[error("netlink socket: {0}")]
    Socket(#[from] io::Error),
    /// The kernel refused; `detail` is its own explanation, often empty.
    #[error("{}{}", errno, explained(detail))]
    Refused {
        /// The errno.
        errno: io::Error,
        /// `NLMSGERR_ATTR_MSG`.
        detail: String,
    },
    /// The kernel's answer is not one that belongs to the question.
    #[error("the kernel's netlink answer is cut short or has no content")]
    Malformed,
    /// The tables changed faster than they could be read.
    #[error("the kernel's tables changed {DUMP_ATTEMPTS} times while being read")]
    Changing,
}

fn explained(detail: &str) -> String {
    if detail.is_empty() {
        String::new()
    } else {
        format!(" ({detail})")
    }
}

impl Error {
    /// The errno of a refusal.
    pub fn errno(&self) -> Option<i32> {
        match self {
            Error::Refused { errno, .. } | Error::Socket(errno) => errno.raw_os_error(),
            Error::Malformed | Error::Changing => None,
        }
    }
}

/// A request under construction: type, flags, fixed header, attributes.
#[derive(Clone, Debug)]
pub struct Request {
    bytes: Vec<u8>,
}

impl Request {
    /// Starts a request of `kind` (`RTM_*`) with `flags` (`NLM_F_*`) beyond
    /// `NLM_F_REQUEST`, and the fixed header that goes with the kind.
    pub fn new(kind: u16, flags: i32, fixed: &[u8]) -> Self {
        let mut bytes = vec![0; HEADER];
        bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
        bytes[6..8].copy_from_slice(&((flags | libc::NLM_F_REQUEST) as u16).to_ne_bytes());
        bytes.extend_from_slice(fixed);
        pad(&mut bytes);
        Self { bytes }
    }

    /// Appends an attribute.
    pub fn attr(mut self, kind: u16, value: &[u8]) -> Self {
        self.bytes
            .extend_from_slice(&((4 + value.len()) as u16).to_ne_bytes());
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(value);
        pad(&mut self.bytes);
        self
    }

    /// Appends a 32-bit attribute in native byte order.
    pub fn u32(self, kind: u16, value: u32) -> Self {
        self.attr(kind, &value.to_ne_bytes())
    }

    /// Appends a zero-terminated string.
    pub fn text(self, kind: u16, value: &str) -> Self {
        let mut bytes = value.as_bytes().to_vec();
        bytes.push(0);
        self.attr(kind, &bytes)
    }

    /// Appends bytes that are no attribute: the fixed header within a nest that has one.
    pub fn fixed(mut self, bytes: &[u8]) -> Self {
        self.bytes.extend_from_slice(bytes);
        pad(&mut self.bytes);
        self
    }

    /// Appends an attribute that holds what `inner` appends.
    pub fn nest(mut self, kind: u16, inner: impl FnOnce(Self) -> Self) -> Self {
        let start = self.bytes.len();
        self = inner(self.attr(kind | NLA_F_NESTED, &[]));
        let length = (self.bytes.len() - start) as u16;
        self.bytes[start..start + 2].copy_from_slice(&length.to_ne_bytes());
        self
    }

    fn finish(&mut self, flags: i32, sequence: u32) {
        let length = self.bytes.len() as u32;
        self.bytes[..4].copy_from_slice(&length.to_ne_bytes());
        let asked = u16::from_ne_bytes([self.bytes[6], self.bytes[7]]);
        self.bytes[6..8].copy_from_slice(&(asked | flags as u16).to_ne_bytes());
        self.bytes[8..12].copy_from_slice(&sequence.to_ne_bytes());
    }
}

fn pad(bytes: &mut Vec<u8>) {
    bytes.resize(bytes.len().next_multiple_of(4), 0);
}

/// One message from the kernel.
#[derive(Clone, Copy, Debug)]
pub struct Message<'a> {
    /// `RTM_*` or `NLMSG_*`.
    pub kind: u16,
    flags: u16,
    sequence: u32,
    /// Everything after `nlmsghdr`.
    pub body: &'a [u8],
}

impl<'a> Message<'a> {
    /// Attributes after a fixed header of `fixed` bytes; stops at the first
    /// one that is cut short.
    pub fn attrs(&self, fixed: usize) -> impl Iterator<Item = (u16, &'a [u8])> + use<'a> {
        attrs(self.body.get(fixed..).unwrap_or_default())
    }

    /// A 32-bit field of the fixed header, 0 past its end.
    pub fn field(&self, offset: usize) -> u32 {
        self.body.get(offset..offset + 4).map_or(0, read_u32)
    }

    /// A byte of the fixed header, 0 past its end.
    pub fn byte(&self, offset: usize) -> u8 {
        self.body.get(offset).copied().unwrap_or(0)
    }
}

/// Attributes of `bytes` by kind, flags removed.
#[expect(
    clippy::disallowed_methods,
    reason = "this parses text or bytes; no system call can fail here"
)]
pub fn attrs(bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    NlasIterator::new(bytes).map_while(Result::ok).map(|nla| {
        let (kind, length) = (nla.kind(), usize::from(nla.length()));
        (kind, &nla.into_inner()[NLA_HEADER_SIZE..length])
    })
}

/// A native-endian number, 0 when there are too few bytes.
pub fn read_u32(bytes: &[u8]) -> u32 {
    bytes
        .first_chunk()
        .map_or(0, |bytes| u32::from_ne_bytes(*bytes))
}

/// A string up to its first zero byte.
pub fn read_text(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|byte| *byte == 0);
    String::from_utf8_lossy(&bytes[..end.unwrap_or(bytes.len())]).into_owned()
}

/// An address of 4 or 16 bytes.
pub fn read_ip(bytes: &[u8]) -> Option<IpAddr> {
    match bytes.len() {
        4 => Some(Ipv4Addr::from(*bytes.first_chunk::<4>()?).into()),
        16 => Some(Ipv6Addr::from(*bytes.first_chunk::<16>()?).into()),
        _ => None,
    }
}

/// The bytes of an address in network order.
pub fn ip_bytes(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

/// Splits a datagram into messages.
pub fn messages(mut bytes: &[u8]) -> impl Iterator<Item = Message<'_>> {
    std::iter::from_fn(move || {
        let length = read_u32(bytes.get(..HEADER)?) as usize;
        let body = bytes.get(HEADER..length)?;
        let message = Message {
            kind: u16::from_ne_bytes([bytes[4], bytes[5]]),
            flags: u16::from_ne_bytes([bytes[6], bytes[7]]),
            sequence: read_u32(&bytes[8..12]),
            body,
        };
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(message)
    })
}

/// A socket for requests, one at a time. It stays in the network namespace of
/// the thread that opened it.
pub struct Netlink {
    socket: Socket,
    buffer: Vec<u8>,
    sequence: u32,
    /// The last answer was not read to its end.
    cut_short: bool,
}

impl Netlink {
    /// Opens a socket in this thread's network namespace.
    pub fn open() -> Result<Self, Error> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        socket.set_ext_ack(true)?;
        // Without it filters of dumps are ignored, which costs time and no
        // correctness; kernels before 4.20 do not know it.
        let _ = socket.set_netlink_get_strict_chk(true);
        Ok(Self {
            socket,
            buffer: vec![0; RECEIVE],
            sequence: 0,
            cut_short: false,
        })
    }

    /// Opens a socket to netfilter in this thread's network namespace.
    pub fn open_netfilter() -> Result<Self, Error> {
        Self::open_other(NETLINK_NETFILTER)
    }

    /// Opens a socket for generic netlink in this thread's network namespace.
    pub fn open_generic() -> Result<Self, Error> {
        Self::open_other(NETLINK_GENERIC)
    }

    fn open_other(protocol: isize) -> Result<Self, Error> {
        let mut socket = Socket::new(protocol)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        Ok(Self {
            socket,
            buffer: vec![0; RECEIVE],
            sequence: 0,
            cut_short: false,
        })
    }

    /// Sends a request and waits until the kernel has carried it out.
    pub fn apply(&mut self, request: Request) -> Result<(), Error> {
        self.exchange(request, libc::NLM_F_ACK, |_| ()).map(drop)
    }

    /// Sends a request that has one answer, and reads it with `read`.
    pub fn get<T>(
        &mut self,
        request: Request,
        mut read: impl FnMut(Message<'_>) -> Option<T>,
    ) -> Result<T, Error> {
        let mut found = None;
        self.exchange(request, libc::NLM_F_ACK, |message| found = read(message))?;
        found.ok_or(Error::Malformed)
    }

    /// Collects what `read` makes of each message of a dump. A dump during
    /// which the table changed is read again from the start.
    pub fn dump<T>(
        &mut self,
        request: Request,
        mut read: impl FnMut(Message<'_>) -> Option<T>,
    ) -> Result<Vec<T>, Error> {
        for _ in 0..DUMP_ATTEMPTS {
            let mut found = Vec::new();
            let whole = self.exchange(request.clone(), libc::NLM_F_DUMP, |message| {
                found.extend(read(message));
            })?;
            if whole {
                return Ok(found);
            }
        }
        Err(Error::Changing)
    }

    /// Returns whether no answer was marked as inconsistent.
    fn exchange(
        &mut self,
        mut request: Request,
        flags: i32,
        mut read: impl FnMut(Message<'_>),
    ) -> Result<bool, Error> {
        if std::mem::take(&mut self.cut_short) {
            // A dump that is not read to its end has the kernel refuse the next one (EBUSY of
            // `__netlink_dump_start`).
            let flags = libc::MSG_DONTWAIT;
            while matches!(receive(&self.socket, &mut self.buffer, flags), Ok(1..)) {}
        }
        self.sequence = self.sequence.wrapping_add(1);
        request.finish(flags, self.sequence);
        self.socket.send(&request.bytes, 0)?;
        let mut whole = true;
        loop {
            let length = receive(&self.socket, &mut self.buffer, 0)
                .inspect_err(|_| self.cut_short = true)?;
            for message in messages(&self.buffer[..length]) {
                // A request given up on earlier may still be answered.
                if message.sequence != self.sequence {
                    continue;
                }
                whole &= i32::from(message.flags) & libc::NLM_F_DUMP_INTR == 0;
                match i32::from(message.kind) {
                    libc::NLMSG_NOOP => {}
                    libc::NLMSG_ERROR | libc::NLMSG_DONE => return outcome(&message, whole),
                    _ => read(message),
                }
            }
        }
    }
}

/// What `NLMSG_ERROR` and `NLMSG_DONE` say.
fn outcome(message: &Message<'_>, whole: bool) -> Result<bool, Error> {
    let code = message.field(0) as i32;
    if code >= 0 {
        return Ok(whole);
    }
    let detail = if message.flags & NLM_F_ACK_TLVS != 0 {
        // The refused request is quoted before the attributes, of an error.
        let quoted = if i32::from(message.kind) == libc::NLMSG_ERROR {
            (message.field(4) as usize).next_multiple_of(4)
        } else {
            0
        };
        message
            .attrs(4 + quoted)
            .find(|(kind, _)| *kind == NLMSGERR_ATTR_MSG)
            .map(|(_, text)| read_text(text))
    } else {
        None
    };
    Err(Error::Refused {
        errno: io::Error::from_raw_os_error(-code),
        detail: detail.unwrap_or_default(),
    })
}

/// Receives one datagram whole.
pub(super) fn receive(socket: &Socket, buffer: &mut [u8], flags: i32) -> io::Result<usize> {
    loop {
        // SAFETY: the pointer and length are those of a live, writable slice.
        let length = unsafe {
            libc::recv(
                socket.as_raw_fd(),
                buffer.as_mut_ptr().cast(),
                buffer.len(),
                flags,
            )
        };
        if let Ok(length) = usize::try_from(length) {
            return Ok(length.min(buffer.len()));
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nested_attributes_read_back() {
        let mut request = Request::new(16, 0, &[7; 16])
            .text(1, "bpf")
            .nest(2, |inner| inner.u32(6, 9).text(7, "name"))
            .u32(3, 5);
        request.finish(libc::NLM_F_ACK, 1);
        let message = messages(&request.bytes).next().unwrap();
        assert_eq!((message.kind, message.sequence), (16, 1));
        let found: Vec<_> = message.attrs(16).collect();
        assert_eq!(found[0], (1, &b"bpf\0"[..]));
        assert_eq!(found[2], (3, &5u32.to_ne_bytes()[..]));
        let inner: Vec<_> = attrs(found[1].1).collect();
        assert_eq!(inner, [(6, &9u32.to_ne_bytes()[..]), (7, &b"name\0"[..])]);
    }

    #[test]
    fn cut_messages_end_the_walk() {
        let mut request = Request::new(16, 0, &[0; 16]).u32(1, 1);
        request.finish(0, 1);
        for length in 0..request.bytes.len() {
            assert!(messages(&request.bytes[..length]).next().is_none());
        }
        assert!(messages(&[0; 16]).next().is_none());
    }
}
