//! Announcements: telling the neighbors on an uplink where machines' addresses
//! are, unasked, whenever that has changed (M1).

mod frame;
mod queue;

use std::{
    io,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
    thread,
    time::Instant,
};

use netspawn_ebpf::abi::Key;

pub use frame::announcement;
pub use queue::{Announcement, Cause, Place, Queue, Round, Served, TIMES};

/// Sends announcements out of the uplinks of the network namespace of the
/// thread that opened it.
///
/// Frames carry the key of what the data plane itself sends, so that its program at the
/// uplink's egress lets them pass.
#[derive(Debug)]
pub struct Sender {
    socket: OwnedFd,
}

impl Sender {
    /// Opens a packet socket that receives nothing. `key` is the data plane's.
    ///
    /// # Errors
    /// Without CAP_NET_RAW and CAP_NET_ADMIN.
    pub fn open(key: Key) -> io::Result<Self> {
        let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
        // SAFETY: the call takes no pointers.
        let fd = unsafe { libc::socket(libc::AF_PACKET, kind, 0) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: a new descriptor that nobody else has.
        let socket = unsafe { OwnedFd::from_raw_fd(fd) };
        for (option, value) in [(libc::SO_MARK, key.mark), (libc::SO_PRIORITY, key.priority)] {
            // SAFETY: the value and its length are those of a live `u32`.
            let set = unsafe {
                libc::setsockopt(
                    socket.as_raw_fd(),
                    libc::SOL_SOCKET,
                    option,
                    (&raw const value).cast(),
                    size_of_val(&value) as libc::socklen_t,
                )
            };
            if set < 0 {
                return Err(io::Error::last_os_error());
            }
        }
        Ok(Sender { socket })
    }

    /// Sends one; never waits.
    ///
    /// # Errors
    /// When the uplink is down or gone, or its queue is full.
    pub fn send(&self, what: &Announcement) -> io::Result<()> {
        let frame = announcement(what.mac, what.address, what.vlan);
        // SAFETY: all-zero bytes are a valid `sockaddr_ll`.
        let mut to: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        to.sll_family = libc::AF_PACKET as u16;
        to.sll_protocol = u16::from_ne_bytes([frame[12], frame[13]]);
        to.sll_ifindex = what.uplink.cast_signed();
        // SAFETY: frame and address are live, and as long as said.
        let sent = unsafe {
            libc::sendto(
                self.socket.as_raw_fd(),
                frame.as_ptr().cast(),
                frame.len(),
                0,
                (&raw const to).cast(),
                size_of_val(&to) as libc::socklen_t,
            )
        };
        if sent < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(())
    }
}

/// Announces once each address that `served` has beyond `before`, at the pace of
/// the agent. Returns when all are sent.
///
/// # Errors
/// When the kernel refuses one; the others are sent all the same.
pub fn once(key: Key, before: Served, served: Served) -> io::Result<()> {
    let mut queue = Queue::new(before, 1);
    queue.update(served, Instant::now());
    if queue.next().is_none() {
        return Ok(());
    }
    let sender = Sender::open(key)?;
    let mut result = Ok(());
    while let Some(next) = queue.next() {
        thread::sleep(next.saturating_duration_since(Instant::now()));
        while let Some(what) = queue.pop(Instant::now()) {
            let sent = sender.send(&what);
            result = result.and(sent);
        }
    }
    result
}
