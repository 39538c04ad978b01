//! A station in the network that asks one question at a time.

use std::{
    ffi::CString,
    io,
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};

/// A packet socket on one interface, which sees frames before any program at tc ingress.
pub struct Station {
    socket: OwnedFd,
}

impl Station {
    /// How long an answer may take.
    pub const LIMIT: Duration = Duration::from_secs(2);

    /// One on an interface of this thread's namespace.
    pub fn new(interface: &str) -> Result<Self> {
        let name = CString::new(interface)?;
        let protocol = (libc::ETH_P_ALL as u16).to_be();
        // SAFETY: the calls take pointers to whole values that outlive them, and nobody
        // else owns the descriptor.
        unsafe {
            let fd = libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0);
            if fd < 0 {
                return Err(io::Error::last_os_error()).context("no packet socket");
            }
            let socket = OwnedFd::from_raw_fd(fd);
            let one: libc::c_int = 1;
            check(libc::setsockopt(
                fd,
                libc::SOL_PACKET,
                libc::PACKET_IGNORE_OUTGOING,
                (&raw const one).cast(),
                size_of_val(&one) as libc::socklen_t,
            ))?;
            let limit = libc::timeval {
                tv_sec: Station::LIMIT.as_secs().cast_signed(),
                tv_usec: 0,
            };
            check(libc::setsockopt(
                fd,
                libc::SOL_SOCKET,
                libc::SO_RCVTIMEO,
                (&raw const limit).cast(),
                size_of_val(&limit) as libc::socklen_t,
            ))?;
            let mut address: libc::sockaddr_ll = std::mem::zeroed();
            address.sll_family = libc::AF_PACKET as u16;
            address.sll_protocol = protocol;
            address.sll_ifindex = libc::if_nametoindex(name.as_ptr()).cast_signed();
            check(libc::bind(
                fd,
                (&raw const address).cast(),
                size_of_val(&address) as libc::socklen_t,
            ))?;
            Ok(Station { socket })
        }
    }

    /// Time from the sending of a frame to the frame that answers it.
    ///
    /// None where there is no answer for [`Station::LIMIT`].
    ///
    /// # Errors
    /// When the socket cannot be used.
    pub fn ask(
        &self,
        request: &[u8],
        is_answer: impl Fn(&[u8]) -> bool,
    ) -> Result<Option<Duration>> {
        let fd = self.socket.as_raw_fd();
        let mut frame = [0_u8; 2048];
        let start = Instant::now();
        // SAFETY: the buffer outlives the call.
        let sent = unsafe { libc::send(fd, request.as_ptr().cast(), request.len(), 0) };
        if sent < 0 {
            return Err(io::Error::last_os_error()).context("cannot send a request");
        }
        while start.elapsed() < Station::LIMIT {
            // SAFETY: as above.
            let length = unsafe { libc::recv(fd, frame.as_mut_ptr().cast(), frame.len(), 0) };
            let time = start.elapsed();
            match usize::try_from(length) {
                Ok(length) if is_answer(&frame[..length]) => return Ok(Some(time)),
                Ok(_) => {}
                Err(_) => {
                    let error = io::Error::last_os_error();
                    if error.kind() != io::ErrorKind::WouldBlock {
                        return Err(error).context("cannot receive an answer");
                    }
                }
            }
        }
        Ok(None)
    }
}

fn check(result: libc::c_int) -> Result<()> {
    match result {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()).context("cannot set a packet socket up"),
    }
}
