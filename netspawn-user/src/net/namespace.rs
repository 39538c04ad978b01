//! Which network namespace this is, and how it knows others.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    fs::{self, File},
    io,
    os::{
        fd::{AsFd, AsRawFd as _},
        unix::{fs::MetadataExt as _, net::UnixDatagram},
    },
    path::{Path, PathBuf},
    thread,
};

use nix::sched::{CloneFlags, setns};

use super::netlink::{Error, Netlink, Request, read_u32};
use crate::gone;

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
///
/// # Errors
/// When the kernel does not tell.
pub fn id_of_process(netlink: &mut Netlink, pid: u32) -> Result<Option<i32>, Error> {
    id_of(netlink, NETNSA_PID, pid)
}

/// The id that this network namespace has for another; `None` when it has none,
/// or the file is not of a network namespace.
///
/// # Errors
/// When the kernel does not tell.
pub fn id_of_file(netlink: &mut Netlink, namespace: impl AsFd) -> Result<Option<i32>, Error> {
    let fd = namespace.as_fd().as_raw_fd();
    id_of(netlink, NETNSA_FD, fd.cast_unsigned())
}

/// `RTM_GETNSID`.
fn id_of(netlink: &mut Netlink, kind: u16, which: u32) -> Result<Option<i32>, Error> {
    let request = Request::new(libc::RTM_GETNSID, 0, &[0; RTGENMSG]).u32(kind, which);
    let id = gone::namespace(netlink.get(request, |message| {
        message
            .attrs(RTGENMSG)
            .find(|(kind, _)| *kind == NETNSA_NSID)
            .map(|(_, value)| read_u32(value).cast_signed())
    }))?;
    Ok(id.filter(|id| *id >= 0))
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

/// Files that stand for the namespaces of these ids. Looks through the namespaces
/// of all processes once, so that many are better asked for together.
pub fn find(netlink: &mut Netlink, mut ids: BTreeSet<i32>) -> BTreeMap<i32, PathBuf> {
    let mut found = BTreeMap::new();
    let mut seen = HashSet::new();
    for path in files() {
        if ids.is_empty() {
            break;
        }
        // A process that has ended, or may not be looked at; the next may be in the same.
        let Ok(file) = File::open(&path) else {
            continue;
        };
        let Ok(data) = file.metadata() else {
            continue;
        };
        if seen.insert((data.dev(), data.ino()))
            && let Ok(Some(id)) = id_of_file(netlink, &file)
            && ids.remove(&id)
        {
            found.insert(id, path);
        }
    }
    found
}

/// Files that stand for network namespaces: named ones first, as there are
/// fewer.
#[expect(
    clippy::disallowed_methods,
    reason = "the failure is logged; what is not found is looked for again"
)]
fn files() -> impl Iterator<Item = PathBuf> {
    let entries = |folder: &str| {
        let entries = gone::list(Path::new(folder)).unwrap_or_else(|error| {
            tracing::debug!("cannot list {folder}: {error}");
            None
        });
        let entries = entries.into_iter().flatten();
        entries.map(|entry| entry.path())
    };
    entries("/run/netns").chain(
        entries("/proc")
            .filter(|path| {
                path.file_name()
                    .is_some_and(|name| name.as_encoded_bytes()[0].is_ascii_digit())
            })
            .map(|path| path.join("ns/net")),
    )
}

/// Does `work` in the namespace that a file stands for (`None`: in this one), on a
/// thread of its own: nothing else is to find itself there.
///
/// # Errors
/// When it cannot be entered (without CAP_SYS_ADMIN), and those of `work`.
#[expect(
    clippy::disallowed_methods,
    reason = "the failure is logged; what is not found is looked for again"
)]
pub fn inside<T: Send + 'static>(
    namespace: Option<PathBuf>,
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    let done = thread::spawn(move || {
        if let Some(path) = namespace {
            setns(File::open(path)?.as_fd(), CloneFlags::CLONE_NEWNET)?;
        }
        work()
    });
    done.join()
        .unwrap_or_else(|_| Err(io::Error::other("the reader of a namespace failed")))
}
