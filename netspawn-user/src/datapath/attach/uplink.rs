//! The programs of an uplink: pinned links of tcx and XDP, or filters on a
//! clsact qdisc where the kernel has no tcx.
//!
//! They come after the programs that are there, which go on seeing what they
//! saw before.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd},
    path::Path,
};

use super::{
    Error, Errors, PinnedLink, at,
    bpf::{self, Hook, Place},
    interface_name, on, tc, tcx_programs,
};
use crate::gone;
use crate::net::{
    netlink::{self, Netlink, attrs, read_u32},
    read::{IFINFOMSG, get_link},
};

/// `IFLA_XDP`'s attributes with the ids of programs, and what iproute2 calls the
/// places: in the driver, generic, in hardware.
const XDP_PLACES: [(u16, &str); 3] = [(5, "xdpdrv"), (6, "xdpgeneric"), (7, "xdpoffload")];

/// How a program is attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Means {
    /// A pinned link.
    Link,
    /// A filter on a clsact qdisc.
    Filter,
}

/// What an attach has done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// There was nothing of ours.
    Attached(Means),
    /// Ours ran another program before, or the same.
    Replaced(Means),
}

/// A program of ours on an uplink.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UplinkProgram {
    /// Where.
    pub hook: Hook,
    /// How.
    pub means: Means,
    /// Id of the program.
    pub program: u32,
}

/// The uplinks of this thread's network namespace.
pub struct Uplinks {
    netlink: Netlink,
    tcx: bool,
}

impl Uplinks {
    /// Opens what is needed to attach to uplinks.
    pub fn open() -> Result<Self, netlink::Error> {
        Ok(Self {
            netlink: Netlink::open()?,
            tcx: bpf::has_tcx(),
        })
    }

    /// Has it do as on a kernel without tcx.
    #[doc(hidden)]
    pub fn without_tcx(self) -> Self {
        Self { tcx: false, ..self }
    }

    /// Attaches a program, or puts it in the place of the one that was attached
    /// with that pin before, in one step. A pinned link whose interface is gone
    /// is made again. On failure what was there before is there still.
    pub fn attach(
        &mut self,
        ifindex: u32,
        hook: Hook,
        program: BorrowedFd<'_>,
        pin: &Path,
    ) -> Result<Change, Error> {
        if let Some(parent) = self.filter_parent(ifindex, hook) {
            return attach_filter(&mut self.netlink, ifindex, parent, program);
        }
        if let Some(link) = PinnedLink::open(pin)? {
            if self.is_live(ifindex, hook, &link)? {
                bpf::link_update(link.fd.as_fd(), program)
                    .map_err(at(pin, "replace the program"))?;
                return Ok(Change::Replaced(Means::Link));
            }
            link.remove(pin)?;
        }
        let link = bpf::link_create(program, ifindex, hook, Place::Last)
            .map_err(|error| refusal(&mut self.netlink, ifindex, hook, error))?;
        bpf::pin(link.as_fd(), pin).map_err(at(pin, "pin the link"))?;
        Ok(Change::Attached(Means::Link))
    }

    /// Takes what is attached with these pins off an uplink, which may be gone.
    /// Goes on after a failure.
    pub fn detach(&mut self, ifindex: u32, pins: &[(Hook, &Path)]) -> Result<(), Errors> {
        let mut errors = Vec::new();
        for (hook, pin) in pins {
            let removed =
                PinnedLink::open(pin).and_then(|link| link.map_or(Ok(()), |link| link.remove(pin)));
            errors.extend(removed.err());
            if let Some(parent) = self.filter_parent(ifindex, *hook) {
                errors.extend(detach_filter(&mut self.netlink, ifindex, parent).err());
            }
        }
        Errors::check(errors)
    }

    /// What of ours is attached to an uplink.
    pub fn query(
        &mut self,
        ifindex: u32,
        pins: &[(Hook, &Path)],
    ) -> Result<Vec<UplinkProgram>, Error> {
        let mut found = Vec::new();
        for (hook, pin) in pins {
            if let Some(parent) = self.filter_parent(ifindex, *hook) {
                let filter = own_filter(&mut self.netlink, ifindex, parent)?;
                found.extend(filter.map(|filter| UplinkProgram {
                    hook: *hook,
                    means: Means::Filter,
                    program: filter.program,
                }));
            } else if let Some(link) = PinnedLink::open(pin)?
                && self.is_live(ifindex, *hook, &link)?
            {
                found.push(UplinkProgram {
                    hook: *hook,
                    means: Means::Link,
                    program: link.info.program,
                });
            }
        }
        Ok(found)
    }

    /// Whether a link hangs on this interface of this namespace: its interface
    /// may have been deleted or moved, and another may have its number.
    fn is_live(&mut self, ifindex: u32, hook: Hook, link: &PinnedLink) -> Result<bool, Error> {
        if link.info.ifindex != ifindex {
            return Ok(false);
        }
        if hook == Hook::Xdp {
            let programs = gone::link(xdp_programs(&mut self.netlink, ifindex))
                .map_err(on(ifindex, "read its XDP programs"))?;
            return Ok(programs.is_some_and(|programs| programs.contains(&link.info.program)));
        }
        let attached = tcx_programs(ifindex, hook)?;
        Ok(attached.iter().any(|entry| entry.link == link.info.id))
    }

    /// Where the filter goes that stands in for a tcx link; `None` where links
    /// do.
    fn filter_parent(&self, ifindex: u32, hook: Hook) -> Option<tc::Parent> {
        if self.tcx {
            return None;
        }
        match hook {
            Hook::TcIngress => Some(tc::Parent::UplinkIngress(ifindex)),
            Hook::TcEgress => Some(tc::Parent::UplinkEgress(ifindex)),
            Hook::Xdp => None,
        }
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "the holder is named in a message, if it can be"
)]
fn refusal(netlink: &mut Netlink, ifindex: u32, hook: Hook, error: io::Error) -> Error {
    let interface = interface_name(ifindex);
    if hook != Hook::Xdp {
        return Error::Bpf {
            interface,
            action: "attach by tcx",
            source: error,
        };
    }
    match error.raw_os_error() {
        Some(libc::EBUSY | libc::EEXIST) => {
            let holders: Vec<String> = xdp_programs(netlink, ifindex)
                .unwrap_or_default()
                .into_iter()
                .map(bpf::describe_program)
                .collect();
            Error::XdpBusy {
                interface,
                holder: if holders.is_empty() {
                    "another program".to_owned()
                } else {
                    holders.join(" and ")
                },
            }
        }
        Some(libc::EPERM | libc::EACCES | libc::ENODEV) => Error::Bpf {
            interface,
            action: "attach an XDP program",
            source: error,
        },
        _ => Error::XdpRefused {
            interface,
            source: error,
        },
    }
}

/// Ids of the XDP programs of an interface.
fn xdp_programs(netlink: &mut Netlink, ifindex: u32) -> Result<Vec<u32>, netlink::Error> {
    let slots = xdp_slots(netlink, ifindex)?;
    Ok(slots.into_iter().map(|(_, program)| program).collect())
}

/// The XDP programs of an interface: what iproute2 calls their places, and their ids.
pub fn xdp_slots(
    netlink: &mut Netlink,
    ifindex: u32,
) -> Result<Vec<(&'static str, u32)>, netlink::Error> {
    netlink.get(get_link(ifindex), |message| {
        let ids = message
            .attrs(IFINFOMSG)
            .filter(|(kind, _)| *kind == libc::IFLA_XDP)
            .flat_map(|(_, value)| attrs(value));
        let slot = |(kind, value): (u16, &[u8])| {
            let (_, place) = XDP_PLACES.iter().find(|(place, _)| *place == kind)?;
            Some((*place, read_u32(value)))
        };
        Some(ids.filter_map(slot).collect())
    })
}

const fn side(parent: tc::Parent) -> &'static str {
    match parent {
        tc::Parent::UplinkEgress(_) => "egress",
        _ => "ingress",
    }
}

fn own_filter(
    netlink: &mut Netlink,
    ifindex: u32,
    parent: tc::Parent,
) -> Result<Option<tc::Filter>, Error> {
    match tc::filter(netlink, parent) {
        Ok(filter) => Ok(filter.filter(tc::Filter::is_ours)),
        Err(error) if error.errno() == Some(libc::ENODEV) => Ok(None),
        Err(error) => Err(on(ifindex, "read its filters")(error)),
    }
}

fn attach_filter(
    netlink: &mut Netlink,
    ifindex: u32,
    parent: tc::Parent,
    program: BorrowedFd<'_>,
) -> Result<Change, Error> {
    let added = match tc::add_clsact(netlink, ifindex) {
        Ok(()) => true,
        Err(error) if error.errno() == Some(libc::EEXIST) => false,
        Err(error) => return Err(on(ifindex, "add a clsact qdisc")(error)),
    };
    let result = replace_filter(netlink, ifindex, parent, program, added);
    if result.is_err() && added {
        // The failure is reported; this one adds nothing to it.
        let _ = tc::delete_clsact(netlink, ifindex);
    }
    result
}

fn replace_filter(
    netlink: &mut Netlink,
    ifindex: u32,
    parent: tc::Parent,
    program: BorrowedFd<'_>,
    mut made_qdisc: bool,
) -> Result<Change, Error> {
    if parent == tc::Parent::UplinkEgress(ifindex) {
        let qdisc = tc::qdisc(netlink, ifindex).map_err(on(ifindex, "read its ingress qdisc"))?;
        if qdisc.is_some_and(|qdisc| qdisc.kind != "clsact") {
            return Err(Error::NoEgress {
                interface: interface_name(ifindex),
            });
        }
    }
    let before = tc::filter(netlink, parent).map_err(on(ifindex, "read its filters"))?;
    if before.as_ref().is_some_and(|filter| !filter.is_ours()) {
        return Err(Error::Occupied {
            interface: interface_name(ifindex),
            place: side(parent),
        });
    }
    // Each of our filters knows of the qdisc, so that the last one to go does.
    for parent in sides(ifindex) {
        made_qdisc |= own_filter(netlink, ifindex, parent)?.is_some_and(|f| f.made_qdisc());
    }
    tc::set_filter(netlink, parent, program, made_qdisc)
        .map_err(on(ifindex, "add a filter to its clsact qdisc"))?;
    Ok(match before {
        Some(_) => Change::Replaced(Means::Filter),
        None => Change::Attached(Means::Filter),
    })
}

const fn sides(ifindex: u32) -> [tc::Parent; 2] {
    [
        tc::Parent::UplinkIngress(ifindex),
        tc::Parent::UplinkEgress(ifindex),
    ]
}

fn detach_filter(netlink: &mut Netlink, ifindex: u32, parent: tc::Parent) -> Result<(), Error> {
    let Some(filter) = own_filter(netlink, ifindex, parent)? else {
        return Ok(());
    };
    tc::delete_filter(netlink, parent).map_err(on(ifindex, "delete its filter"))?;
    if filter.made_qdisc() {
        for parent in sides(ifindex) {
            let left = tc::filters(netlink, parent).map_err(on(ifindex, "list its filters"))?;
            if !left.is_empty() {
                return Ok(());
            }
        }
        tc::delete_clsact(netlink, ifindex).map_err(on(ifindex, "delete its clsact qdisc"))?;
    }
    Ok(())
}
