//! Which network namespace this is.

use std::{
    io,
    os::{fd::AsRawFd, unix::net::UnixDatagram},
};

/// Cookie of this thread's network namespace (`SO_NETNS_COOKIE`, Linux 5.14):
/// unlike an inode number it is never used again while the host runs.
pub fn cookie() -> io::Result<u64> {
    // Any socket will do; this one needs neither addresses nor privileges.
    let socket = UnixDatagram::unbound()?;
    let mut cookie = 0u64;
    let mut length = size_of::<u64>() as libc::socklen_t;
    // SAFETY: `cookie` and `length` outlive the call, and `length` is the size
    // of `cookie`.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &mut length,
        )
    };
    if result == 0 {
        Ok(cookie)
    } else {
        Err(io::Error::last_os_error())
    }
}
