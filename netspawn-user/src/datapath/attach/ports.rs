//! The guard of every port: the program that a machine's packets meet first.
//!
//! Ports share filter blocks with one filter each, which makes joining a port cheap and
//! replacing the program a few steps for all of them. A port on which
//! somebody else's tc or tcx programs run has a pinned tcx link at their head
//! instead, or, where the kernel has no tcx, a filter of its own before theirs.

use std::{
    collections::BTreeMap,
    fs::{self, DirBuilder},
    io,
    os::{
        fd::{AsFd, BorrowedFd},
        unix::fs::DirBuilderExt as _,
    },
    path::{Path, PathBuf},
};

use super::{
    Error, Errors, PinnedLink, at,
    bpf::{self, Attached, Hook, Place},
    bpf_on, interface_name, on, tc, tcx_programs,
};
use crate::{
    folder, gone,
    net::netlink::{self, Netlink},
};

/// Pins are named by this and the ifindex.
const PIN_PREFIX: &str = "port-";

/// How a port is guarded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Guard {
    /// By a block that ports share.
    Block,
    /// By a pinned tcx link.
    Link,
    /// By a filter on somebody else's qdisc.
    Filter,
}

/// What was found on a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PortState {
    /// How it is guarded.
    pub guard: Guard,
    /// Id of the program, `None` when the block has lost its filter.
    pub program: Option<u32>,
    /// No other program sees packets before it does.
    pub first: bool,
}

impl PortState {
    /// Whether the program of that id sees everything from the port first.
    pub fn guarded_by(&self, program: u32) -> bool {
        self.first && self.program == Some(program)
    }
}

/// The ports of this thread's network namespace.
pub struct Ports {
    netlink: Netlink,
    pins: PathBuf,
    tcx: bool,
}

impl Ports {
    /// `pins` is a folder in a bpf filesystem for the links of ports. It is
    /// made when the first one is, and removed with the last.
    pub fn open(pins: &Path) -> Result<Self, netlink::Error> {
        Ok(Self {
            netlink: Netlink::open()?,
            pins: pins.to_owned(),
            tcx: bpf::has_tcx(),
        })
    }

    /// Has it do as on a kernel without tcx.
    #[doc(hidden)]
    pub fn without_tcx(self) -> Self {
        Self { tcx: false, ..self }
    }

    /// Has `program` see what comes in on a port before anyone else, whatever
    /// is there now. On failure what was there before is there still.
    pub fn ensure(&mut self, ifindex: u32, program: BorrowedFd<'_>) -> Result<Guard, Error> {
        // tcx programs run before any filter.
        let others = if self.tcx {
            bpf::tcx_query(ifindex, Hook::TcIngress)
                .map_err(bpf_on(ifindex, "list its tcx programs"))?
                .unwrap_or_default()
        } else {
            Vec::new()
        };
        if !others.is_empty() {
            return self.ensure_link(ifindex, program, &others);
        }
        match tc::join_block(&mut self.netlink, ifindex) {
            Ok(()) => {
                self.ensure_block(ifindex, program).inspect_err(|_| {
                    // The failure is reported; this one adds nothing to it.
                    let _ = tc::leave_block(&mut self.netlink, ifindex);
                })?;
                Ok(Guard::Block)
            }
            Err(error) if error.errno() == Some(libc::EEXIST) => {
                let qdisc = tc::qdisc(&mut self.netlink, ifindex)
                    .map_err(on(ifindex, "read its ingress qdisc"))?;
                if qdisc.is_some_and(|qdisc| qdisc.is_ours()) {
                    self.ensure_block(ifindex, program)?;
                    Ok(Guard::Block)
                } else if self.tcx {
                    self.ensure_link(ifindex, program, &others)
                } else {
                    self.ensure_filter(ifindex, program)
                }
            }
            Err(error) => Err(on(ifindex, "add an ingress qdisc")(error)),
        }
    }

    /// A block's filter goes with its last port, so that each port that
    /// joins may be the first again.
    fn ensure_block(&mut self, ifindex: u32, program: BorrowedFd<'_>) -> Result<(), Error> {
        let id = bpf::program_id(program).map_err(bpf_on(ifindex, "read the program"))?;
        let parent = tc::Parent::Block(tc::block(ifindex));
        let filter =
            tc::filter(&mut self.netlink, parent).map_err(on(ifindex, "read the ports' filter"))?;
        if filter.is_some_and(|filter| filter.is_ours() && filter.program == id) {
            return Ok(());
        }
        tc::set_filter(&mut self.netlink, parent, program, false)
            .map_err(on(ifindex, "set the ports' filter"))
    }

    fn ensure_link(
        &mut self,
        ifindex: u32,
        program: BorrowedFd<'_>,
        attached: &[Attached],
    ) -> Result<Guard, Error> {
        let path = self.pin(ifindex);
        if let Some(link) = PinnedLink::open(&path)? {
            if attached
                .first()
                .is_some_and(|first| first.link == link.info.id)
            {
                bpf::link_update(link.fd.as_fd(), program)
                    .map_err(at(&path, "replace the program"))?;
                return Ok(Guard::Link);
            }
            // Somebody is before it, or it is of an interface that is gone.
            link.remove(&path)?;
        }
        let link = bpf::link_create(program, ifindex, Hook::TcIngress, Place::First)
            .map_err(bpf_on(ifindex, "attach the guard by tcx"))?;
        match DirBuilder::new().mode(folder::PRIVATE).create(&self.pins) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            result => result.map_err(at(&self.pins, "make the folder"))?,
        }
        bpf::pin(link.as_fd(), &path).map_err(at(&path, "pin the guard"))?;
        // Now that the link guards the port, the block must not count twice.
        self.leave_block(ifindex)?;
        Ok(Guard::Link)
    }

    fn ensure_filter(&mut self, ifindex: u32, program: BorrowedFd<'_>) -> Result<Guard, Error> {
        let parent = tc::Parent::Port(ifindex);
        let filter =
            tc::filter(&mut self.netlink, parent).map_err(on(ifindex, "read its filters"))?;
        if filter.is_some_and(|filter| !filter.is_ours()) {
            return Err(Error::Occupied {
                interface: interface_name(ifindex),
                place: "ingress",
            });
        }
        tc::set_filter(&mut self.netlink, parent, program, false)
            .map_err(on(ifindex, "add a filter at the head of its ingress"))?;
        Ok(Guard::Filter)
    }

    /// Takes the guard off a port, if it has one; whether it had. A port that
    /// is gone has none.
    pub fn remove(&mut self, ifindex: u32) -> Result<bool, Error> {
        let path = self.pin(ifindex);
        let mut removed = false;
        if let Some(link) = PinnedLink::open(&path)? {
            link.remove(&path)?;
            removed = true;
        }
        removed |= self.leave_block(ifindex)?;
        if !self.tcx {
            removed |= self.remove_filter(ifindex)?;
        }
        Ok(removed)
    }

    fn leave_block(&mut self, ifindex: u32) -> Result<bool, Error> {
        let action = "delete its ingress qdisc";
        let qdisc = gone::qdisc(tc::qdisc(&mut self.netlink, ifindex))
            .map_err(on(ifindex, "read its ingress qdisc"))?;
        if !qdisc.flatten().is_some_and(|qdisc| qdisc.is_ours()) {
            return Ok(false);
        }
        let left = gone::qdisc(tc::leave_block(&mut self.netlink, ifindex));
        Ok(left.map_err(on(ifindex, action))?.is_some())
    }

    fn remove_filter(&mut self, ifindex: u32) -> Result<bool, Error> {
        let parent = tc::Parent::Port(ifindex);
        let filter = gone::qdisc(tc::filter(&mut self.netlink, parent))
            .map_err(on(ifindex, "read its filters"))?;
        if !filter.flatten().is_some_and(|filter| filter.is_ours()) {
            return Ok(false);
        }
        let deleted = gone::qdisc(tc::delete_filter(&mut self.netlink, parent));
        Ok(deleted.map_err(on(ifindex, "delete its filter"))?.is_some())
    }

    /// What guards which port, by dump. Pins of ports that are gone are
    /// removed on the way.
    pub fn dump(&mut self) -> Result<BTreeMap<u32, PortState>, Error> {
        let (mut states, links) = self.look()?;
        for (ifindex, path, link, state) in links {
            match state {
                Some(state) => {
                    let before = states.insert(ifindex, state);
                    if before.is_some_and(|before| before.guard == Guard::Block) {
                        self.leave_block(ifindex)?;
                    }
                }
                None => link.remove(&path)?,
            }
        }
        Ok(states)
    }

    /// As [`Ports::dump`], for who may not change anything.
    pub fn states(&mut self) -> Result<BTreeMap<u32, PortState>, Error> {
        let (mut states, links) = self.look()?;
        let links = links.into_iter();
        states.extend(links.filter_map(|(ifindex, _, _, state)| Some((ifindex, state?))));
        Ok(states)
    }

    /// Guards by block or filter, and the pinned links with what they guard.
    #[expect(clippy::type_complexity, reason = "two callers, right above")]
    fn look(
        &mut self,
    ) -> Result<
        (
            BTreeMap<u32, PortState>,
            Vec<(u32, PathBuf, PinnedLink, Option<PortState>)>,
        ),
        Error,
    > {
        let mut states = BTreeMap::new();
        let mut programs = BTreeMap::new();
        for qdisc in self.qdiscs()? {
            let ifindex = qdisc.ifindex;
            let state = if qdisc.is_ours() {
                let block = tc::block(ifindex);
                let program = match programs.get(&block) {
                    Some(program) => *program,
                    None => {
                        let filter = tc::filter(&mut self.netlink, tc::Parent::Block(block))
                            .map_err(on(ifindex, "read the ports' filter"))?
                            .filter(tc::Filter::is_ours);
                        let program = filter.map(|filter| filter.program);
                        programs.insert(block, program);
                        program
                    }
                };
                PortState {
                    guard: Guard::Block,
                    program,
                    first: tcx_programs(ifindex, Hook::TcIngress)?.is_empty(),
                }
            } else if let Some(filter) = self.own_filter(ifindex)? {
                PortState {
                    guard: Guard::Filter,
                    program: Some(filter.program),
                    first: tc::filters(&mut self.netlink, tc::Parent::Port(ifindex))
                        .map_err(on(ifindex, "list its filters"))?
                        .first()
                        == Some(&tc::HANDLE),
                }
            } else {
                continue;
            };
            states.insert(ifindex, state);
        }
        let mut links = Vec::new();
        for (ifindex, path) in self.pins()? {
            let Some(link) = PinnedLink::open(&path)? else {
                continue;
            };
            let place = tcx_programs(ifindex, Hook::TcIngress)?
                .iter()
                .position(|entry| entry.link == link.info.id);
            let state = place.map(|place| PortState {
                guard: Guard::Link,
                program: Some(link.info.program),
                first: place == 0,
            });
            links.push((ifindex, path, link, state));
        }
        Ok((states, links))
    }

    /// Has another program guard all ports: one step for those of each block,
    /// one for each other. Goes on after a failure.
    pub fn replace_program(&mut self, program: BorrowedFd<'_>) -> Result<(), Errors> {
        let mut errors = Vec::new();
        for parent in tc::blocks().map(tc::Parent::Block) {
            match tc::filter(&mut self.netlink, parent) {
                Ok(Some(filter)) if filter.is_ours() => {
                    errors.extend(
                        tc::set_filter(&mut self.netlink, parent, program, false)
                            .map_err(on(0, "set the ports' filter"))
                            .err(),
                    );
                }
                Ok(_) => {}
                Err(error) => errors.push(on(0, "read the ports' filter")(error)),
            }
        }
        match self.pins() {
            Ok(pins) => {
                for (_, path) in pins {
                    errors.extend(replace_link(&path, program).err());
                }
            }
            Err(error) => errors.push(error),
        }
        if !self.tcx {
            match self.foreign_qdiscs() {
                Ok(ifindexes) => {
                    for ifindex in ifindexes {
                        errors.extend(self.replace_filter(ifindex, program).err());
                    }
                }
                Err(error) => errors.push(error),
            }
        }
        Errors::check(errors)
    }

    fn replace_filter(&mut self, ifindex: u32, program: BorrowedFd<'_>) -> Result<(), Error> {
        if self.own_filter(ifindex)?.is_some() {
            self.ensure_filter(ifindex, program)?;
        }
        Ok(())
    }

    /// Takes the guards off all ports. Goes on after a failure.
    pub fn remove_all(&mut self) -> Result<(), Errors> {
        let mut errors = Vec::new();
        match self.qdiscs() {
            Ok(qdiscs) => {
                for qdisc in qdiscs {
                    if qdisc.is_ours() {
                        errors.extend(self.leave_block(qdisc.ifindex).err());
                    } else if !self.tcx {
                        errors.extend(self.remove_filter(qdisc.ifindex).err());
                    }
                }
            }
            Err(error) => errors.push(error),
        }
        match self.pins() {
            Ok(pins) => {
                for (_, path) in pins {
                    let removed = PinnedLink::open(&path)
                        .and_then(|link| link.map_or(Ok(()), |link| link.remove(&path)));
                    errors.extend(removed.err());
                }
            }
            Err(error) => errors.push(error),
        }
        match fs::remove_dir(&self.pins) {
            Err(error)
                if !matches!(
                    error.kind(),
                    io::ErrorKind::NotFound | io::ErrorKind::DirectoryNotEmpty
                ) =>
            {
                errors.push(at(&self.pins, "remove the folder")(error));
            }
            _ => {}
        }
        Errors::check(errors)
    }

    fn qdiscs(&mut self) -> Result<Vec<tc::Qdisc>, Error> {
        tc::qdiscs(&mut self.netlink).map_err(on(0, "list the ingress qdiscs"))
    }

    fn foreign_qdiscs(&mut self) -> Result<Vec<u32>, Error> {
        let qdiscs = self.qdiscs()?;
        Ok(qdiscs
            .into_iter()
            .filter(|qdisc| !qdisc.is_ours())
            .map(|qdisc| qdisc.ifindex)
            .collect())
    }

    /// Our filter on another's qdisc; such are made only without tcx.
    fn own_filter(&mut self, ifindex: u32) -> Result<Option<tc::Filter>, Error> {
        if self.tcx {
            return Ok(None);
        }
        let filter = tc::filter(&mut self.netlink, tc::Parent::Port(ifindex))
            .map_err(on(ifindex, "read its filters"))?;
        Ok(filter.filter(tc::Filter::is_ours))
    }

    fn pin(&self, ifindex: u32) -> PathBuf {
        self.pins.join(format!("{PIN_PREFIX}{ifindex}"))
    }

    #[expect(
        clippy::disallowed_methods,
        reason = "this parses text or bytes; no system call can fail here"
    )]
    fn pins(&self) -> Result<Vec<(u32, PathBuf)>, Error> {
        let entries = gone::list(&self.pins).map_err(at(&self.pins, "list the directory"))?;
        let mut pins = Vec::new();
        for entry in entries.into_iter().flatten() {
            let name = entry.file_name();
            let number = name.to_str().and_then(|name| name.strip_prefix(PIN_PREFIX));
            if let Some(ifindex) = number.and_then(|number| number.parse().ok()) {
                pins.push((ifindex, entry.path()));
            }
        }
        Ok(pins)
    }
}

fn replace_link(path: &Path, program: BorrowedFd<'_>) -> Result<(), Error> {
    let Some(link) = PinnedLink::open(path)? else {
        return Ok(());
    };
    gone::attachment(bpf::link_update(link.fd.as_fd(), program))
        .map(drop)
        .map_err(at(path, "replace the program"))
}
