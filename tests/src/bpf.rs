//! Small programs of "other people", assembled by hand and loaded with bpf(2), so that
//! the lab needs no compiler and shares no code with what it tests.

use std::{
    ffi::CString,
    io::Error,
    os::{
        fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
        unix::ffi::OsStrExt as _,
    },
    path::Path,
};

use anyhow::{Context as _, Result};

use crate::ns::Ns;

// Numbers of include/uapi/linux/bpf.h.
const MAP_CREATE: i32 = 0;
const MAP_LOOKUP_ELEM: i32 = 1;
const PROG_LOAD: i32 = 5;
const MAP_GET_NEXT_KEY: i32 = 4;
const OBJ_PIN: i32 = 6;
const OBJ_GET: i32 = 7;
const PROG_GET_NEXT_ID: i32 = 11;
const PROG_GET_FD_BY_ID: i32 = 13;
const OBJ_GET_INFO_BY_FD: i32 = 15;
const PROG_QUERY: i32 = 16;
const LINK_CREATE: i32 = 28;
const LINK_GET_FD_BY_ID: i32 = 30;
const LINK_GET_NEXT_ID: i32 = 31;
const MAP_TYPE_HASH: u32 = 1;
const MAP_TYPE_ARRAY: u32 = 2;
const MAP_TYPE_PERCPU_HASH: u32 = 5;
const MAP_TYPE_LRU_HASH: u32 = 9;
const MAP_TYPE_LRU_PERCPU_HASH: u32 = 10;
const MAP_TYPE_LPM_TRIE: u32 = 11;
const MAP_TYPE_DEVMAP_HASH: u32 = 25;

/// What a program is made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// clsact or tcx; lets the next program decide (`TCX_NEXT`, `TC_ACT_UNSPEC`).
    Tc,
    /// XDP; passes (`XDP_PASS`).
    Xdp,
}

/// Which way a program sees packets go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// Towards the stack.
    Ingress,
    /// Out of the interface.
    Egress,
}

impl Direction {
    /// `BPF_TCX_INGRESS` or `BPF_TCX_EGRESS`.
    const fn tcx(self) -> u32 {
        match self {
            Direction::Ingress => 46,
            Direction::Egress => 47,
        }
    }

    const fn word(self) -> &'static str {
        match self {
            Direction::Ingress => "ingress",
            Direction::Egress => "egress",
        }
    }
}

/// A program of somebody else, loaded.
pub struct Program {
    program: OwnedFd,
}

impl Program {
    /// One at tc that says the same of every packet, as 2 for `TC_ACT_SHOT`.
    pub fn always(verdict: i32) -> Result<Self> {
        Self::load(
            Kind::Tc,
            &[
                instruction(0xb7, 0, 0, 0, verdict), // r0 = verdict
                instruction(0x95, 0, 0, 0, 0),       // exit
            ],
        )
    }

    /// One at tc that sends every packet out of an interface, or to its peer.
    pub fn redirect(ifindex: u32, peer: bool) -> Result<Self> {
        let helper = if peer { 155 } else { 23 };
        Self::load(
            Kind::Tc,
            &[
                instruction(0xb7, 1, 0, 0, ifindex.try_into()?), // r1 = ifindex
                instruction(0xb7, 2, 0, 0, 0),                   // r2 = 0
                instruction(0x85, 0, 0, 0, helper),              // r0 = bpf_redirect(r1, r2)
                instruction(0x95, 0, 0, 0, 0),                   // exit
            ],
        )
    }

    fn load(kind: Kind, code: &[[u8; 8]]) -> Result<Self> {
        let program_type = match kind {
            Kind::Tc => 3,
            Kind::Xdp => 6,
        };
        let licence = c"GPL";
        let program = descriptor(
            PROG_LOAD,
            &mut attribute(
                &[(0, program_type), (4, code.len().try_into()?)],
                &[(8, code.as_ptr() as u64), (16, licence.as_ptr() as u64)],
            ),
        )
        .context("cannot load a program")?;
        Ok(Program { program })
    }

    /// Attaches by clsact, making the qdisc if there is none. Needs a place to pin to.
    pub fn clsact(&self, ns: &Ns, interface: &str, direction: Direction, pin: &Path) -> Result<()> {
        self.pin(pin)?;
        if !ns
            .run(&format!("tc qdisc show dev {interface}"))?
            .contains("clsact")
        {
            ns.run(&format!("tc qdisc add dev {interface} clsact"))?;
        }
        ns.run(&format!(
            "tc filter add dev {interface} {} pref 7 handle 7 bpf da object-pinned {}",
            direction.word(),
            pin.display()
        ))?;
        Ok(())
    }

    fn pin(&self, path: &Path) -> Result<()> {
        let name = CString::new(path.as_os_str().as_bytes())?;
        let mut attribute = attribute(
            &[(8, self.program.as_raw_fd().cast_unsigned())],
            &[(0, name.as_ptr() as u64)],
        );
        call(OBJ_PIN, &mut attribute).with_context(|| format!("cannot pin {}", path.display()))?;
        Ok(())
    }
}

/// A program that counts packets and has no opinion about them.
pub struct Counter {
    map: OwnedFd,
    program: Program,
}

impl Counter {
    /// Loads it.
    pub fn load(kind: Kind) -> Result<Self> {
        let map = descriptor(
            MAP_CREATE,
            &mut attribute(&[(0, MAP_TYPE_ARRAY), (4, 4), (8, 8), (12, 1)], &[]),
        )
        .context("cannot create a map")?;
        let verdict = match kind {
            Kind::Tc => -1,
            Kind::Xdp => 2,
        };
        let code = [
            instruction(0x62, 10, 0, -4, 0),             // *(u32 *)(r10 - 4) = 0
            instruction(0xbf, 2, 10, 0, 0),              // r2 = r10
            instruction(0x07, 2, 0, 0, -4),              // r2 += -4
            instruction(0x18, 1, 1, 0, map.as_raw_fd()), // r1 = map
            instruction(0x00, 0, 0, 0, 0),
            instruction(0x85, 0, 0, 0, 1), // r0 = bpf_map_lookup_elem(r1, r2)
            instruction(0x15, 0, 0, 2, 0), // if r0 == 0 skip 2
            instruction(0xb7, 1, 0, 0, 1), // r1 = 1
            instruction(0xdb, 0, 1, 0, 0), // lock *(u64 *)r0 += r1
            instruction(0xb7, 0, 0, 0, verdict), // r0 = verdict
            instruction(0x95, 0, 0, 0, 0), // exit
        ];
        let program = Program::load(kind, &code)?;
        Ok(Counter { map, program })
    }

    /// Attaches by tcx, until the returned link is dropped.
    pub fn tcx(&self, ns: &Ns, interface: &str, direction: Direction) -> Result<OwnedFd> {
        let fields = [
            (0, self.program.program.as_raw_fd().cast_unsigned()),
            (4, ns.ifindex(interface)?),
            (8, direction.tcx()),
        ];
        ns.enter(|| {
            descriptor(LINK_CREATE, &mut attribute(&fields, &[]))
                .with_context(|| format!("cannot attach to {interface} by tcx"))
        })
    }

    /// As [`Program::clsact`].
    pub fn clsact(&self, ns: &Ns, interface: &str, direction: Direction, pin: &Path) -> Result<()> {
        self.program.clsact(ns, interface, direction, pin)
    }

    /// Attaches as the interface's XDP program. Needs a place to pin to.
    pub fn xdp(&self, ns: &Ns, interface: &str, pin: &Path) -> Result<()> {
        self.program.pin(pin)?;
        ns.run(&format!(
            "ip link set dev {interface} xdpdrv pinned {}",
            pin.display()
        ))?;
        Ok(())
    }

    /// How many packets it saw so far.
    pub fn count(&self) -> Result<u64> {
        let (key, mut value) = (0_u32, 0_u64);
        let mut attribute = attribute(
            &[(0, self.map.as_raw_fd().cast_unsigned())],
            &[(8, (&raw const key) as u64), (16, (&raw mut value) as u64)],
        );
        call(MAP_LOOKUP_ELEM, &mut attribute).context("cannot read a counter")?;
        Ok(value)
    }
}

/// Ids of the programs attached to an interface by tcx, in order; empty where the
/// kernel has no tcx (before 6.6).
pub fn tcx_programs(ns: &Ns, interface: &str, direction: Direction) -> Result<Vec<u32>> {
    let ifindex = ns.ifindex(interface)?;
    ns.enter(|| {
        let mut ids = [0_u32; 64];
        let mut attribute = attribute(
            &[
                (0, ifindex),
                (4, direction.tcx()),
                (24, ids.len().try_into()?),
            ],
            &[(16, ids.as_mut_ptr() as u64)],
        );
        match call(PROG_QUERY, &mut attribute) {
            Ok(_) => {}
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => return Ok(Vec::new()),
            Err(error) => return Err(error).context("cannot list tcx programs"),
        }
        let count =
            u32::from_ne_bytes([attribute[24], attribute[25], attribute[26], attribute[27]]);
        Ok(ids[..count as usize].to_vec())
    })
}

/// Makes XDP_TX towards this interface arrive: the peer of a veth drops such frames
/// unless it has an XDP program (or NAPI) itself.
pub fn accept_xdp(ns: &Ns, interface: &str, pin: &Path) -> Result<Counter> {
    let pass = Counter::load(Kind::Xdp)?;
    pass.xdp(ns, interface, pin)?;
    Ok(pass)
}

/// Kinds of objects that the kernel lists by id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Object {
    /// Programs.
    Program,
    /// Links.
    Link,
}

/// All objects of a kind that the kernel has, with their ids.
pub fn objects(kind: Object) -> Result<Vec<(u32, OwnedFd)>> {
    let (next, open) = match kind {
        Object::Program => (PROG_GET_NEXT_ID, PROG_GET_FD_BY_ID),
        Object::Link => (LINK_GET_NEXT_ID, LINK_GET_FD_BY_ID),
    };
    let mut found = Vec::new();
    let mut id = 0;
    loop {
        let mut after = attribute(&[(0, id)], &[]);
        match call(next, &mut after) {
            Ok(_) => {}
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => return Ok(found),
            Err(error) => return Err(error).context("cannot list what the kernel has"),
        }
        id = word(&after, 4);
        match descriptor(open, &mut attribute(&[(0, id)], &[])) {
            Ok(object) => found.push((id, object)),
            // Gone since.
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {}
            Err(error) => return Err(error).context("cannot open what the kernel has"),
        }
    }
}

/// Ids of the maps that a program uses.
pub fn program_maps(program: &OwnedFd) -> Result<Vec<u32>> {
    let mut ids = vec![0_u32; 64];
    // `nr_map_ids` and `map_ids` of `struct bpf_prog_info`.
    let info = info(
        program,
        &[(52, ids.len().try_into()?)],
        &[(56, ids.as_mut_ptr() as u64)],
    )?;
    ids.truncate(word(&info, 52) as usize);
    Ok(ids)
}

/// Id of the program that a link is to.
pub fn link_program(link: &OwnedFd) -> Result<u32> {
    Ok(word(&info(link, &[], &[])?, 8))
}

/// Id of a map that is pinned.
pub fn pinned_map_id(path: &Path) -> Result<u32> {
    Ok(word(&info(&pinned(path)?, &[], &[])?, 4))
}

/// Number of entries of a map that is pinned; `None` where it always has the same number.
pub fn map_entries(path: &Path) -> Result<Option<usize>> {
    let map = pinned(path)?;
    let info = info(&map, &[], &[])?;
    let (kind, key_size) = (word(&info, 0), word(&info, 8) as usize);
    const COUNTED: [u32; 6] = [
        MAP_TYPE_HASH,
        MAP_TYPE_PERCPU_HASH,
        MAP_TYPE_LRU_HASH,
        MAP_TYPE_LRU_PERCPU_HASH,
        MAP_TYPE_LPM_TRIE,
        MAP_TYPE_DEVMAP_HASH,
    ];
    if !COUNTED.contains(&kind) {
        return Ok(None);
    }
    let (mut key, mut next) = (vec![0_u8; key_size], vec![0_u8; key_size]);
    let mut entries = 0;
    let mut before = 0;
    loop {
        let mut ask = attribute(
            &[(0, map.as_raw_fd().cast_unsigned())],
            &[(8, before), (16, next.as_mut_ptr() as u64)],
        );
        match call(MAP_GET_NEXT_KEY, &mut ask) {
            Ok(_) => {}
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => return Ok(Some(entries)),
            Err(error) => {
                return Err(error).with_context(|| format!("cannot read {}", path.display()));
            }
        }
        entries += 1;
        key.copy_from_slice(&next);
        before = key.as_ptr() as u64;
    }
}

fn pinned(path: &Path) -> Result<OwnedFd> {
    let name = CString::new(path.as_os_str().as_bytes())?;
    descriptor(OBJ_GET, &mut attribute(&[], &[(0, name.as_ptr() as u64)]))
        .with_context(|| format!("cannot open {}", path.display()))
}

/// `struct bpf_{prog,map,link}_info`, asked with these values at these offsets.
fn info(object: &OwnedFd, words: &[(usize, u32)], longs: &[(usize, u64)]) -> Result<[u8; 128]> {
    let mut info = attribute(words, longs);
    let mut ask = attribute(
        &[
            (0, object.as_raw_fd().cast_unsigned()),
            (4, info.len().try_into()?),
        ],
        &[(8, info.as_mut_ptr() as u64)],
    );
    call(OBJ_GET_INFO_BY_FD, &mut ask).context("the kernel says nothing about an object")?;
    Ok(info)
}

fn word(bytes: &[u8; 128], offset: usize) -> u32 {
    let mut word = [0; 4];
    word.copy_from_slice(&bytes[offset..offset + 4]);
    u32::from_ne_bytes(word)
}

fn instruction(code: u8, dst: u8, src: u8, offset: i16, immediate: i32) -> [u8; 8] {
    let [o0, o1] = offset.to_ne_bytes();
    let [i0, i1, i2, i3] = immediate.to_ne_bytes();
    [code, src << 4 | dst, o0, o1, i0, i1, i2, i3]
}

/// A `union bpf_attr` with these values at these offsets.
fn attribute(words: &[(usize, u32)], longs: &[(usize, u64)]) -> [u8; 128] {
    let mut bytes = [0; 128];
    for (offset, value) in words {
        bytes[*offset..offset + 4].copy_from_slice(&value.to_ne_bytes());
    }
    for (offset, value) in longs {
        bytes[*offset..offset + 8].copy_from_slice(&value.to_ne_bytes());
    }
    bytes
}

fn descriptor(command: i32, attribute: &mut [u8; 128]) -> Result<OwnedFd, Error> {
    let fd = call(command, attribute)?;
    // SAFETY: the command returned a new descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn call(command: i32, attribute: &mut [u8; 128]) -> Result<i32, Error> {
    // SAFETY: the attribute is as long as said; pointers in it lead to live buffers of
    // the callers, large enough for what the command reads and writes.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command,
            attribute.as_mut_ptr(),
            attribute.len(),
        )
    };
    match result {
        -1 => Err(Error::last_os_error()),
        result => Ok(result.try_into().unwrap_or_default()),
    }
}
