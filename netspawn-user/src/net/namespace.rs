//! Which network namespace this is, and how it knows others.

use std::{
    fs, io,
    os::{
        fd::{AsFd, AsRawFd as _},
        unix::{fs::MetadataExt as _, net::UnixDatagram},
    },
};

use super::netlink::{Netlink, Request, read_u32};

/// Bytes of `rtgenmsg`, padded.
const RTGENMSG: usize = 4;
// include/uapi/linux/net_namespace.h.
const NETNSA_NSID: u16 = 1;
const NETNSA_PID: u16 = 2;
const NETNSA_FD: u16 = 3;

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

/// The id that this network namespace has for that of a process; `None` when
/// it has none, so that no link leads there, or the process is gone.
pub fn id_of_process(netlink: &mut Netlink, pid: u32) -> Option<i32> {
    id_of(netlink, NETNSA_PID, pid)
}

/// The id that this network namespace has for another; `None` when it has none,
/// or the file is not of a network namespace.
pub fn id_of_file(netlink: &mut Netlink, namespace: impl AsFd) -> Option<i32> {
    let fd = namespace.as_fd().as_raw_fd();
    id_of(netlink, NETNSA_FD, fd.cast_unsigned())
}

/// `RTM_GETNSID`.
fn id_of(netlink: &mut Netlink, kind: u16, which: u32) -> Option<i32> {
    let request = Request::new(libc::RTM_GETNSID, 0, &[0; RTGENMSG]).u32(kind, which);
    netlink
        .get(request, |message| {
            message
                .attrs(RTGENMSG)
                .find(|(kind, _)| *kind == NETNSA_NSID)
                .map(|(_, value)| read_u32(value).cast_signed())
        })
        .ok()
        .filter(|id| *id >= 0)
}

/// Whether a process is in this thread's network namespace.
///
/// # Errors
/// When the process is gone, or may not be looked at (without CAP_SYS_PTRACE).
pub fn is_shared_with(pid: u32) -> io::Result<bool> {
    let theirs = fs::metadata(format!("/proc/{pid}/ns/net"))?;
    let ours = fs::metadata("/proc/thread-self/ns/net")?;
    Ok((theirs.dev(), theirs.ino()) == (ours.dev(), ours.ino()))
}
