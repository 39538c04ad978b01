//! The part of `bpf(2)` that deals with attaching: links, their pins, and what
//! is attached where.
//!
//! aya attaches only programs that it has loaded itself. Here programs are file
//! descriptors, so that pinned ones of an earlier process do as well.

use std::{
    ffi::CString,
    io,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::Path,
    sync::OnceLock,
};

use aya_obj::generated::{bpf_attach_type, bpf_attr, bpf_cmd, bpf_link_info, bpf_prog_info};

/// `BPF_F_BEFORE`: with no relative, the head of the list.
const BPF_F_BEFORE: u32 = 1 << 3;
/// `XDP_FLAGS_DRV_MODE`: in the driver, or not at all.
const XDP_FLAGS_DRV_MODE: u32 = 1 << 2;
/// More programs on one hook than anybody has.
const QUERY: usize = 64;
/// Bytes of a program's name, its final zero included.
const NAME: usize = 16;

/// Where a link hangs a program.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Hook {
    /// tc, packets coming in.
    TcIngress,
    /// tc, packets going out.
    TcEgress,
    /// XDP in the driver.
    Xdp,
}

impl Hook {
    /// The name in JSON and in messages.
    pub const fn name(self) -> &'static str {
        match self {
            Hook::TcIngress => "tc ingress",
            Hook::TcEgress => "tc egress",
            Hook::Xdp => "xdp",
        }
    }

    const fn attach_type(self) -> bpf_attach_type {
        match self {
            Hook::TcIngress => bpf_attach_type::BPF_TCX_INGRESS,
            Hook::TcEgress => bpf_attach_type::BPF_TCX_EGRESS,
            Hook::Xdp => bpf_attach_type::BPF_XDP,
        }
    }
}

/// Whether a link goes before or after those that are there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// Before all.
    First,
    /// After all.
    Last,
}

/// A program attached by a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LinkInfo {
    /// The link's id.
    pub id: u32,
    /// The program's id.
    pub program: u32,
    /// The interface, 0 when that is gone.
    pub ifindex: u32,
}

/// One entry of what hangs on a hook.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attached {
    /// The program's id.
    pub program: u32,
    /// The link's id, 0 for a program without one.
    pub link: u32,
}

/// An attribute union with nothing set.
pub(in crate::datapath) fn empty() -> bpf_attr {
    // SAFETY: `bpf_attr` is a union of plain numbers; the kernel wants what is
    // not used to be zero.
    unsafe { std::mem::zeroed() }
}

/// Calls `bpf(2)`. Whatever `attr` points at must outlive the call.
#[expect(
    clippy::disallowed_methods,
    reason = "a program's name is for messages"
)]
pub(in crate::datapath) fn bpf(command: bpf_cmd, attr: &mut bpf_attr) -> io::Result<i32> {
    // SAFETY: `attr` is a whole `bpf_attr`, and the pointers that callers put
    // into it point to what outlives the call.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command as libc::c_int,
            std::ptr::from_mut(attr),
            size_of::<bpf_attr>(),
        )
    };
    i32::try_from(result)
        .ok()
        .filter(|result| *result >= 0)
        .ok_or_else(io::Error::last_os_error)
}

/// Calls `bpf(2)` with a command that returns a new descriptor.
pub(in crate::datapath) fn descriptor(
    command: bpf_cmd,
    attr: &mut bpf_attr,
) -> io::Result<OwnedFd> {
    let fd = bpf(command, attr)?;
    // SAFETY: this command returns a new descriptor that nobody else has.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn number(fd: BorrowedFd<'_>) -> u32 {
    fd.as_raw_fd().cast_unsigned()
}

/// Attaches a program to an interface of this thread's namespace for as long
/// as the link, or a pin of it, exists.
pub fn link_create(
    program: BorrowedFd<'_>,
    ifindex: u32,
    hook: Hook,
    place: Place,
) -> io::Result<OwnedFd> {
    let mut attr = empty();
    attr.link_create.__bindgen_anon_1.prog_fd = number(program);
    attr.link_create.__bindgen_anon_2.target_ifindex = ifindex;
    attr.link_create.attach_type = hook.attach_type() as u32;
    attr.link_create.flags = match (hook, place) {
        (Hook::Xdp, _) => XDP_FLAGS_DRV_MODE,
        (_, Place::First) => BPF_F_BEFORE,
        (_, Place::Last) => 0,
    };
    descriptor(bpf_cmd::BPF_LINK_CREATE, &mut attr)
}

/// Has a link run another program, in one step.
pub fn link_update(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    let mut attr = empty();
    attr.link_update.link_fd = number(link);
    attr.link_update.__bindgen_anon_1.new_prog_fd = number(program);
    bpf(bpf_cmd::BPF_LINK_UPDATE, &mut attr).map(drop)
}

/// Takes the program off at once; closing the last descriptor does so later.
pub fn link_detach(link: BorrowedFd<'_>) -> io::Result<()> {
    let mut attr = empty();
    attr.link_detach.link_fd = number(link);
    bpf(bpf_cmd::BPF_LINK_DETACH, &mut attr).map(drop)
}

fn path_text(path: &Path) -> io::Result<CString> {
    Ok(CString::new(path.as_os_str().as_bytes())?)
}

/// Pins an object at a path that is free.
pub fn pin(object: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let path = path_text(path)?;
    let mut attr = empty();
    attr.__bindgen_anon_4.pathname = path.as_ptr() as u64;
    attr.__bindgen_anon_4.bpf_fd = number(object);
    bpf(bpf_cmd::BPF_OBJ_PIN, &mut attr).map(drop)
}

/// Opens what is pinned; `None` when there is nothing at the path.
pub fn open_pin(path: &Path) -> io::Result<Option<OwnedFd>> {
    let path = path_text(path)?;
    let mut attr = empty();
    attr.__bindgen_anon_4.pathname = path.as_ptr() as u64;
    match descriptor(bpf_cmd::BPF_OBJ_GET, &mut attr) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        other => other.map(Some),
    }
}

fn info<T>(object: BorrowedFd<'_>, into: &mut T) -> io::Result<()> {
    let mut attr = empty();
    attr.info.bpf_fd = number(object);
    attr.info.info_len = size_of::<T>() as u32;
    attr.info.info = std::ptr::from_mut(into) as u64;
    bpf(bpf_cmd::BPF_OBJ_GET_INFO_BY_FD, &mut attr).map(drop)
}

/// What a link of tcx or XDP is attached to. The interface is one of the
/// namespace that the device is in now.
pub fn link_info(link: BorrowedFd<'_>) -> io::Result<LinkInfo> {
    // SAFETY: `bpf_link_info` is made of plain numbers.
    let mut found: bpf_link_info = unsafe { std::mem::zeroed() };
    info(link, &mut found)?;
    Ok(LinkInfo {
        id: found.id,
        program: found.prog_id,
        // SAFETY: the kernel filled what belongs to the link's type or left
        // zeroes, and every type of link used here begins with the ifindex.
        ifindex: unsafe { found.__bindgen_anon_1.tcx.ifindex },
    })
}

/// A program's id.
pub fn program_id(program: BorrowedFd<'_>) -> io::Result<u32> {
    Ok(program_info(program)?.id)
}

fn program_info(program: BorrowedFd<'_>) -> io::Result<bpf_prog_info> {
    // SAFETY: `bpf_prog_info` is made of plain numbers.
    let mut found: bpf_prog_info = unsafe { std::mem::zeroed() };
    info(program, &mut found)?;
    Ok(found)
}

/// Whether a program runs as machine code, and is not interpreted.
pub fn is_jited(program: BorrowedFd<'_>) -> io::Result<bool> {
    Ok(program_info(program)?.jited_prog_len != 0)
}

/// The name that a program was loaded with, cut to 15 bytes; `None` when the
/// program is gone.
#[expect(
    clippy::disallowed_methods,
    reason = "a program's name is for messages"
)]
pub fn program_name(id: u32) -> Option<String> {
    let mut attr = empty();
    attr.__bindgen_anon_6.__bindgen_anon_1.prog_id = id;
    let program = descriptor(bpf_cmd::BPF_PROG_GET_FD_BY_ID, &mut attr).ok()?;
    let name: [u8; NAME] = program_info(program.as_fd())
        .ok()?
        .name
        .map(|byte| byte as u8);
    Some(crate::net::netlink::read_text(&name))
}

/// A program as messages name it.
pub fn describe_program(id: u32) -> String {
    match program_name(id) {
        Some(name) if !name.is_empty() => format!("program {id} \"{name}\""),
        _ => format!("program {id}"),
    }
}

/// What hangs on a tc hook by tcx, in the order in which it runs. `None` where
/// the kernel has no tcx.
pub fn tcx_query(ifindex: u32, hook: Hook) -> io::Result<Option<Vec<Attached>>> {
    let mut programs = [0u32; QUERY];
    let mut links = [0u32; QUERY];
    let mut attr = empty();
    attr.query.__bindgen_anon_1.target_ifindex = ifindex;
    attr.query.attach_type = hook.attach_type() as u32;
    attr.query.prog_ids = programs.as_mut_ptr() as u64;
    attr.query.link_ids = links.as_mut_ptr() as u64;
    attr.query.__bindgen_anon_2.count = QUERY as u32;
    match bpf(bpf_cmd::BPF_PROG_QUERY, &mut attr) {
        Ok(_) => {}
        Err(error) => {
            return match error.raw_os_error() {
                Some(libc::ENOENT) => Ok(Some(Vec::new())),
                Some(libc::EINVAL) => Ok(None),
                _ => Err(error),
            };
        }
    }
    // SAFETY: the kernel wrote the number of entries there.
    let count = unsafe { attr.query.__bindgen_anon_2.count } as usize;
    Ok(Some(
        programs
            .into_iter()
            .zip(links)
            .take(count)
            .map(|(program, link)| Attached { program, link })
            .collect(),
    ))
}

/// Whether the kernel has tcx (Linux 6.6).
pub fn has_tcx() -> bool {
    static HAS_TCX: OnceLock<bool> = OnceLock::new();
    // `lo` is number 1 of every namespace.
    *HAS_TCX.get_or_init(|| !matches!(tcx_query(1, Hook::TcIngress), Ok(None)))
}
