//! Attaching programs to interfaces, and taking them off again.
//!
//! Everything here works from what the kernel says is attached, never from a
//! record of its own: an attachment made by an earlier process, or taken away
//! by somebody else, is found as it is.

pub mod bpf;
mod check;
pub mod others;
pub mod ports;
mod tc;
pub mod trial;
pub mod uplink;

use std::{
    fmt, fs, io,
    os::fd::{AsFd, OwnedFd},
    path::{Path, PathBuf},
};

pub use check::{UplinkError, outermost, uplink_check};
pub use ports::{Guard, PortState, Ports};
pub use tc::{HANDLE, NAME, PRIORITY, block};
pub use uplink::{Change, Means, UplinkProgram, Uplinks};

use crate::{
    gone,
    net::{interface, netlink},
};

/// An attachment that could not be made, read or taken away.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel refused over netlink.
    #[error("{interface}: cannot {action}: {source}")]
    Netlink {
        /// The interface.
        interface: String,
        /// What was tried.
        action: &'static str,
        /// The kernel's reason.
        source: netlink::Error,
    },
    /// `bpf(2)` failed.
    #[error("{interface}: cannot {action}: {source}")]
    Bpf {
        /// The interface.
        interface: String,
        /// What was tried.
        action: &'static str,
        /// The kernel's reason.
        source: io::Error,
    },
    /// A pin could not be made, read or removed.
    #[error("{}: cannot {action}: {source}{}", path.display(), pin_hint(source))]
    Pin {
        /// The pin.
        path: PathBuf,
        /// What was tried.
        action: &'static str,
        /// The kernel's reason.
        source: io::Error,
    },
    /// The XDP slot is another's.
    #[error(
        "{interface}: its XDP slot is taken by {holder}; take that off with \
         `ip link set dev {interface} xdp off`, or by ending what holds its link, \
         or attach with `--mode tc`"
    )]
    XdpBusy {
        /// The interface.
        interface: String,
        /// The program there.
        holder: String,
    },
    /// The driver has no native XDP, or not in the interface's present state.
    #[error(
        "{interface}: its driver does not take an XDP program: {source} (native XDP may \
         need a smaller MTU, fewer queues or LRO off; `--mode tc` needs none of that)"
    )]
    XdpRefused {
        /// The interface.
        interface: String,
        /// The kernel's reason.
        source: io::Error,
    },
    /// Another's filter is where ours goes.
    #[error(
        "{interface}: another filter has preference {PRIORITY} on {place}, and ours must be \
         first; move it to a higher preference (`tc filter show dev {interface} {place}`)"
    )]
    Occupied {
        /// The interface.
        interface: String,
        /// `ingress` or `egress`.
        place: &'static str,
    },
    /// An `ingress` qdisc is in the place of the clsact one that is needed.
    #[error(
        "{interface}: it has an `ingress` qdisc, which has no side for outgoing packets; \
         replace it by `clsact`, which takes the same filters"
    )]
    NoEgress {
        /// The interface.
        interface: String,
    },
}

impl Error {
    /// Whether the interface is gone.
    pub fn is_no_interface(&self) -> bool {
        match self {
            Error::Netlink { source, .. } => gone::is_no_interface(source),
            Error::Bpf { source, .. } => gone::is_no_interface_to_bpf(source),
            _ => false,
        }
    }
}

fn pin_hint(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::ENOENT) => " (is a bpf filesystem mounted there?)",
        Some(libc::EROFS) => " (the bpf filesystem is mounted read-only)",
        Some(libc::EPERM | libc::EACCES) => " (this needs root, and a bpf filesystem)",
        _ => "",
    }
}

/// Everything that failed in a work that goes on after failures.
#[derive(Debug)]
pub struct Errors(pub Vec<Error>);

impl Errors {
    /// `Ok` when there are none.
    fn check(errors: Vec<Error>) -> Result<(), Self> {
        if errors.is_empty() {
            Ok(())
        } else {
            Err(Self(errors))
        }
    }
}

impl fmt::Display for Errors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, error) in self.0.iter().enumerate() {
            if index > 0 {
                f.write_str("; ")?;
            }
            write!(f, "{error}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Errors {}

/// An interface's name for messages.
fn interface_name(ifindex: u32) -> String {
    match interface::name_of(ifindex) {
        Ok(Some(name)) => name,
        Ok(None) | Err(_) => format!("interface {ifindex}"),
    }
}

/// Makes a netlink failure one of an interface.
fn on(ifindex: u32, action: &'static str) -> impl FnOnce(netlink::Error) -> Error {
    move |source| Error::Netlink {
        interface: interface_name(ifindex),
        action,
        source,
    }
}

/// Makes a failure of `bpf(2)` one of an interface.
fn bpf_on(ifindex: u32, action: &'static str) -> impl FnOnce(io::Error) -> Error {
    move |source| Error::Bpf {
        interface: interface_name(ifindex),
        action,
        source,
    }
}

/// Makes a failure one of a pin.
fn at(path: &Path, action: &'static str) -> impl FnOnce(io::Error) -> Error {
    move |source| Error::Pin {
        path: path.to_owned(),
        action,
        source,
    }
}

/// What hangs on an interface by tcx; nothing when the interface is gone or
/// the kernel has no tcx.
fn tcx_programs(ifindex: u32, hook: bpf::Hook) -> Result<Vec<bpf::Attached>, Error> {
    let programs = gone::interface(bpf::tcx_query(ifindex, hook))
        .map_err(bpf_on(ifindex, "list its tcx programs"))?;
    Ok(programs.flatten().unwrap_or_default())
}

/// A pinned link and what the kernel says of it.
struct PinnedLink {
    fd: OwnedFd,
    info: bpf::LinkInfo,
}

impl PinnedLink {
    fn open(path: &Path) -> Result<Option<Self>, Error> {
        let Some(fd) = bpf::open_pin(path).map_err(at(path, "open the pinned link"))? else {
            return Ok(None);
        };
        let info = bpf::link_info(fd.as_fd()).map_err(at(path, "read the pinned link"))?;
        Ok(Some(Self { fd, info }))
    }

    /// Takes the program off and removes the pin.
    fn remove(self, path: &Path) -> Result<(), Error> {
        gone::attachment(bpf::link_detach(self.fd.as_fd()))
            .map_err(at(path, "detach the pinned link"))?;
        fs::remove_file(path).map_err(at(path, "remove the pin"))
    }
}
