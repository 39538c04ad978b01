//! What the kernel says of things that are not there, by call.
//!
//! A thing that is absent is no failure; anything else that goes wrong is one, and is
//! never read as "there is nothing": a descriptor or memory that was short for a moment
//! would withdraw every machine. So each place that takes an error for absence asks
//! here, with the one list of errno for its kind of call.

use std::{
    fs::{self, DirEntry},
    io,
    path::Path,
};

use crate::net::netlink;

/// Of a path: opened, read as a link, listed, removed, or a pin of BPF (`BPF_OBJ_GET`).
const PATH: [i32; 1] = [libc::ENOENT];
/// Of a file of a process in /proc: the process ended before the file was opened, or
/// before it was read (`proc_pid_get_link`, `seq_file`s of `fs/proc`).
const PROCESS: [i32; 2] = [libc::ENOENT, libc::ESRCH];
/// Of a socket's path: nothing is there, or nobody listens any more (unix(7)).
const LISTENER: [i32; 2] = [libc::ENOENT, libc::ECONNREFUSED];
/// Of an attribute of a link in /sys/class/net: the link is gone, or is down and has no
/// speed (`netdev_show` and `speed_show` in net/core/net-sysfs.c).
const ATTRIBUTE: [i32; 3] = [libc::ENOENT, libc::ENODEV, libc::EINVAL];
/// Of a link by ifindex: `ioctl`, `bpf(2)`, rtnetlink (`__dev_get_by_index`); ENXIO is
/// `if_indextoname`'s.
const INTERFACE: [i32; 2] = [libc::ENODEV, libc::ENXIO];
/// Of a network namespace by process, file or id, and of a link in it (`rtnl_net_getid`,
/// `rtnl_get_net_ns_capable`): the process is gone, the file is none of a namespace, no
/// namespace has that id any more, the link is gone.
const NAMESPACE: [i32; 4] = [libc::ESRCH, libc::EINVAL, libc::EBADF, libc::ENODEV];
/// Of a BPF link whose interface is gone (`tcx_link_detach`, `bpf_xdp_link_update`).
const ATTACHMENT: [i32; 1] = [libc::ENOLINK];
/// Of a qdisc or filter: it is gone, or its interface is (`tc_modify_qdisc`,
/// `tc_del_tfilter`).
const QDISC: [i32; 2] = [libc::ENODEV, libc::ENOENT];

fn sorted<T>(result: io::Result<T>, absent: &[i32]) -> io::Result<Option<T>> {
    match result {
        Err(error)
            if error
                .raw_os_error()
                .is_some_and(|errno| absent.contains(&errno)) =>
        {
            Ok(None)
        }
        other => other.map(Some),
    }
}

/// `None` when there is nothing at the path.
///
/// # Errors
/// Any other error.
pub fn path<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    sorted(result, &PATH)
}

/// Whether there is something at a path; a symbolic link is something, wherever it leads.
///
/// # Errors
/// When the kernel does not tell.
pub fn is_there(at: &Path) -> io::Result<bool> {
    Ok(path(at.symlink_metadata())?.is_some())
}

/// The entries of a directory; `None` when there is no such directory.
///
/// # Errors
/// When they cannot all be read.
#[expect(clippy::disallowed_methods, reason = "no error is left out here")]
pub fn list(directory: &Path) -> io::Result<Option<Vec<DirEntry>>> {
    match path(fs::read_dir(directory))? {
        Some(entries) => entries.collect::<io::Result<_>>().map(Some),
        None => Ok(None),
    }
}

/// `None` when nobody listens at the path that a socket was connected to.
///
/// # Errors
/// Any other error.
pub fn listener<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    sorted(result, &LISTENER)
}

/// `None` when the process of a file in /proc has ended.
///
/// # Errors
/// Any other error.
pub fn process<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    sorted(result, &PROCESS)
}

/// `None` when a link has no such attribute in /sys, or is gone.
///
/// # Errors
/// Any other error.
pub fn attribute<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    sorted(result, &ATTRIBUTE)
}

/// `None` when there is no interface of that number.
///
/// # Errors
/// Any other error.
pub fn interface<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    sorted(result, &INTERFACE)
}

/// `None` when a BPF link's interface is gone.
///
/// # Errors
/// Any other error.
pub fn attachment<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    sorted(result, &ATTACHMENT)
}

/// Whether rtnetlink says that there is no such interface.
pub fn is_no_interface(error: &netlink::Error) -> bool {
    error
        .errno()
        .is_some_and(|errno| INTERFACE.contains(&errno))
}

/// Whether `bpf(2)` says so.
pub fn is_no_interface_to_bpf(error: &io::Error) -> bool {
    error
        .raw_os_error()
        .is_some_and(|errno| INTERFACE.contains(&errno))
}

/// `None` when rtnetlink says that there is no such interface.
///
/// # Errors
/// Any other error.
pub fn link<T>(result: Result<T, netlink::Error>) -> Result<Option<T>, netlink::Error> {
    match result {
        Err(error) if is_no_interface(&error) => Ok(None),
        other => other.map(Some),
    }
}

/// `None` when rtnetlink says that there is no such namespace, or no such link in it.
///
/// # Errors
/// Any other error.
pub fn namespace<T>(result: Result<T, netlink::Error>) -> Result<Option<T>, netlink::Error> {
    match result {
        Err(error)
            if error
                .errno()
                .is_some_and(|errno| NAMESPACE.contains(&errno)) =>
        {
            Ok(None)
        }
        other => other.map(Some),
    }
}

/// `None` when a qdisc or filter is gone, or its interface is.
///
/// # Errors
/// Any other error.
pub fn qdisc<T>(result: Result<T, netlink::Error>) -> Result<Option<T>, netlink::Error> {
    match result {
        Err(error) if error.errno().is_some_and(|errno| QDISC.contains(&errno)) => Ok(None),
        other => other.map(Some),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Sort = fn(io::Result<()>) -> io::Result<Option<()>>;

    #[test]
    fn only_what_is_listed_is_absence() {
        let kinds: [(Sort, &[i32]); 6] = [
            (path, &PATH),
            (listener, &LISTENER),
            (process, &PROCESS),
            (attribute, &ATTRIBUTE),
            (interface, &INTERFACE),
            (attachment, &ATTACHMENT),
        ];
        for (sort, absent) in kinds {
            assert_eq!(sort(Ok(())).unwrap(), Some(()));
            for errno in 1..=133 {
                let sorted = sort(Err(io::Error::from_raw_os_error(errno)));
                match absent.contains(&errno) {
                    true => assert_eq!(sorted.unwrap(), None, "{errno}"),
                    false => assert_eq!(sorted.unwrap_err().raw_os_error(), Some(errno)),
                }
            }
        }
    }

    #[test]
    fn want_of_memory_or_descriptors_is_never_absence() {
        for errno in [
            libc::ENOMEM,
            libc::EMFILE,
            libc::ENFILE,
            libc::EIO,
            libc::EACCES,
        ] {
            for list in [
                &PATH[..],
                &LISTENER,
                &PROCESS,
                &ATTRIBUTE,
                &INTERFACE,
                &ATTACHMENT,
                &QDISC,
            ] {
                assert!(!list.contains(&errno));
            }
        }
    }
}
