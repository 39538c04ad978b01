//! Small programs assembled by hand that run before the real ones and end in a tail
//! call, and `BPF_PROG_TEST_RUN` of any program.

use std::{
    ffi::CString,
    io,
    os::{
        fd::{AsFd, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd},
        unix::ffi::OsStrExt as _,
    },
    path::Path,
    time::Duration,
};

use anyhow::{Context as _, Result};
use aya_obj::generated::{bpf_attach_type, bpf_attr, bpf_cmd, bpf_map_type, bpf_prog_type};

/// What a program is called with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// At a tc hook.
    Tc,
    /// XDP.
    Xdp,
}

impl Kind {
    fn program_type(self) -> u32 {
        match self {
            Kind::Tc => bpf_prog_type::BPF_PROG_TYPE_SCHED_CLS as u32,
            Kind::Xdp => bpf_prog_type::BPF_PROG_TYPE_XDP as u32,
        }
    }
}

fn call(command: bpf_cmd, attr: &mut bpf_attr) -> io::Result<i32> {
    // SAFETY: `attr` is a whole `bpf_attr`, and what it points at outlives the call.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command as libc::c_int,
            std::ptr::from_mut(attr),
            size_of::<bpf_attr>(),
        )
    };
    match result {
        -1 => Err(io::Error::last_os_error()),
        value => i32::try_from(value).map_err(io::Error::other),
    }
}

fn empty() -> bpf_attr {
    // SAFETY: `bpf_attr` is a union of plain numbers.
    unsafe { std::mem::zeroed() }
}

fn descriptor(command: bpf_cmd, attr: &mut bpf_attr) -> io::Result<OwnedFd> {
    let fd = call(command, attr)?;
    // SAFETY: the command has made a descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn map(kind: bpf_map_type, value_size: usize, entries: u32) -> Result<OwnedFd> {
    let mut attr = empty();
    // SAFETY: all members of the union are plain numbers.
    let create = unsafe { &mut attr.__bindgen_anon_1 };
    create.map_type = kind as u32;
    create.key_size = 4;
    create.value_size = value_size.try_into()?;
    create.max_entries = entries;
    descriptor(bpf_cmd::BPF_MAP_CREATE, &mut attr).context("cannot create a map")
}

fn put(map: BorrowedFd<'_>, key: u32, value: *const u8) -> io::Result<()> {
    let mut attr = empty();
    // SAFETY: all members of the union are plain numbers.
    let element = unsafe { &mut attr.__bindgen_anon_2 };
    element.map_fd = map.as_raw_fd().cast_unsigned();
    element.key = &raw const key as u64;
    element.__bindgen_anon_1.value = value as u64;
    call(bpf_cmd::BPF_MAP_UPDATE_ELEM, &mut attr).map(drop)
}

fn program(kind: Kind, code: &[[u8; 8]]) -> Result<OwnedFd> {
    let mut attr = empty();
    // SAFETY: all members of the union are plain numbers.
    let load = unsafe { &mut attr.__bindgen_anon_3 };
    load.prog_type = kind.program_type();
    load.insns = code.as_ptr() as u64;
    load.insn_cnt = code.len().try_into()?;
    load.license = c"GPL".as_ptr() as u64;
    if kind == Kind::Xdp {
        // A tail call stays among programs of one attach type, and aya says this one.
        load.expected_attach_type = bpf_attach_type::BPF_XDP as u32;
    }
    descriptor(bpf_cmd::BPF_PROG_LOAD, &mut attr).context("cannot load a program")
}

/// Registers and operations of the few instructions needed.
mod asm {
    pub fn insn(code: u8, dst: u8, src: u8, offset: i16, immediate: i32) -> [u8; 8] {
        let [o0, o1] = offset.to_ne_bytes();
        let [i0, i1, i2, i3] = immediate.to_ne_bytes();
        [code, src << 4 | dst, o0, o1, i0, i1, i2, i3]
    }
    pub fn mov(dst: u8, src: u8) -> [u8; 8] {
        insn(0xbf, dst, src, 0, 0)
    }
    pub fn set(dst: u8, value: i32) -> [u8; 8] {
        insn(0xb7, dst, 0, 0, value)
    }
    pub fn add(dst: u8, value: i32) -> [u8; 8] {
        insn(0x07, dst, 0, 0, value)
    }
    pub fn load_map(dst: u8, fd: i32) -> [[u8; 8]; 2] {
        [insn(0x18, dst, 1, 0, fd), [0; 8]]
    }
    pub fn helper(number: i32) -> [u8; 8] {
        insn(0x85, 0, 0, 0, number)
    }
    pub const EXIT: [u8; 8] = [0x95, 0, 0, 0, 0, 0, 0, 0];
}

const LOOKUP: i32 = 1;
const SKB_STORE_BYTES: i32 = 9;
const TAIL_CALL: i32 = 12;
const REDIRECT: i32 = 23;
const SKB_LOAD_BYTES: i32 = 26;
const REDIRECT_PEER: i32 = 155;
const SKB_VLAN_PUSH: i32 = 18;
const XDP_STORE_BYTES: i32 = 190;

// Offsets in `struct __sk_buff`.
const MARK: i16 = 8;
const CB: i16 = 48;
const GSO_SIZE: usize = 176;
const PRIORITY: usize = 32;
const TSTAMP: usize = 152;
const SK_BUFF: usize = 192;

/// A program that ends in a tail call to another.
pub struct Trampoline {
    program: OwnedFd,
    _maps: Vec<OwnedFd>,
}

impl AsFd for Trampoline {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.program.as_fd()
    }
}

/// A table with one program in it.
fn table(target: BorrowedFd<'_>) -> Result<OwnedFd> {
    let table = map(bpf_map_type::BPF_MAP_TYPE_PROG_ARRAY, 4, 1)?;
    let fd = target.as_raw_fd();
    put(table.as_fd(), 0, (&raw const fd).cast()).context("cannot prepare a tail call")?;
    Ok(table)
}

fn tail_call(table: &OwnedFd) -> Vec<[u8; 8]> {
    use asm::{EXIT, helper, load_map, mov, set};
    let mut code = vec![mov(1, 6)];
    code.extend(load_map(2, table.as_raw_fd()));
    code.extend([set(3, 0), helper(TAIL_CALL), set(0, UNREACHED), EXIT]);
    code
}

/// What a trampoline returns whose tail call failed: no action.
const UNREACHED: i32 = 99;

impl Trampoline {
    /// Puts the 802.1Q tag in `cb[0]` beside the frame first.
    pub fn tagging(target: BorrowedFd<'_>) -> Result<Self> {
        use asm::{helper, insn, mov, set};
        let table = table(target)?;
        let mut code = vec![
            mov(6, 1),
            insn(0x61, 3, 1, CB, 0),
            set(2, i32::from(0x8100_u16.to_be())),
            helper(SKB_VLAN_PUSH),
        ];
        code.extend(tail_call(&table));
        Ok(Trampoline {
            program: program(Kind::Tc, &code)?,
            _maps: vec![table],
        })
    }

    /// Writes one of these frames over the one there is, the next each time. Their
    /// number is a power of two, and they have one length.
    pub fn replaying(kind: Kind, target: BorrowedFd<'_>, frames: &[Vec<u8>]) -> Result<Self> {
        use asm::{helper, insn, mov, set};
        let count = u32::try_from(frames.len())?;
        assert!(count.is_power_of_two(), "{count} frames");
        let length = frames[0].len();
        let table = table(target)?;
        let turn = map(bpf_map_type::BPF_MAP_TYPE_ARRAY, 8, 1)?;
        let store = map(
            bpf_map_type::BPF_MAP_TYPE_ARRAY,
            length.next_multiple_of(8),
            count,
        )?;
        for (at, frame) in (0..).zip(frames) {
            assert_eq!(frame.len(), length, "frames of one length");
            let mut value = frame.clone();
            value.resize(length.next_multiple_of(8), 0);
            put(store.as_fd(), at, value.as_ptr()).context("cannot store a frame")?;
        }
        let mut code = vec![mov(6, 1)];
        if kind == Kind::Tc {
            // Answers are marked; the mark would make the next run pass the frame.
            code.extend([set(1, 0), insn(0x63, 6, 1, MARK, 0)]);
        }
        code.extend(next_value(&turn, &store, count));
        code.extend([
            mov(1, 6),
            set(2, 0),
            mov(3, 0),
            set(4, length.try_into()?),
            set(5, 0),
            helper(match kind {
                Kind::Tc => SKB_STORE_BYTES,
                Kind::Xdp => XDP_STORE_BYTES,
            }),
        ]);
        code.extend(tail_call(&table));
        Ok(Trampoline {
            program: program(kind, &code)?,
            _maps: vec![table, turn, store],
        })
    }
}

/// Instructions that put the next of so many values of a store, whose number counts up in
/// `turn`, into r0; r6 must be saved, r7 is used.
fn next_value(turn: &OwnedFd, store: &OwnedFd, count: u32) -> Vec<[u8; 8]> {
    use asm::{EXIT, add, helper, insn, load_map, mov};
    let mut code = vec![insn(0x62, 10, 0, -4, 0), mov(2, 10), add(2, -4)];
    code.extend(load_map(1, turn.as_raw_fd()));
    code.extend([
        helper(LOOKUP),
        insn(0x55, 0, 0, 1, 0),
        EXIT,
        insn(0x79, 7, 0, 0, 0),
        mov(1, 7),
        add(1, 1),
        insn(0x7b, 0, 1, 0, 0),
        insn(0x57, 7, 0, 0, (count - 1).cast_signed()),
        insn(0x63, 10, 7, -4, 0),
        mov(2, 10),
        add(2, -4),
    ]);
    code.extend(load_map(1, store.as_raw_fd()));
    code.extend([helper(LOOKUP), insn(0x55, 0, 0, 1, 0), EXIT]);
    code
}

/// An XDP program that writes the next of many frames and sends it out of an interface.
pub struct Cannon {
    program: OwnedFd,
    _maps: [OwnedFd; 2],
}

impl AsFd for Cannon {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.program.as_fd()
    }
}

impl Cannon {
    /// Frames of one length, a power of two of them, and the interface of each.
    pub fn new(frames: &[(Vec<u8>, u32)]) -> Result<Self> {
        use asm::{EXIT, helper, insn, mov, set};
        let count = u32::try_from(frames.len())?;
        assert!(count.is_power_of_two(), "{count} frames");
        let length = frames[0].0.len();
        // The interface follows the frame.
        let behind = length.next_multiple_of(8);
        let turn = map(bpf_map_type::BPF_MAP_TYPE_ARRAY, 8, 1)?;
        let store = map(bpf_map_type::BPF_MAP_TYPE_ARRAY, behind + 8, count)?;
        for (at, (frame, ifindex)) in (0..).zip(frames) {
            assert_eq!(frame.len(), length, "frames of one length");
            let mut value = frame.clone();
            value.resize(behind, 0);
            value.extend(u64::from(*ifindex).to_ne_bytes());
            put(store.as_fd(), at, value.as_ptr()).context("cannot store a frame")?;
        }
        let mut code = vec![mov(6, 1)];
        code.extend(next_value(&turn, &store, count));
        code.extend([
            insn(0x79, 8, 0, behind.try_into()?, 0),
            mov(1, 6),
            set(2, 0),
            mov(3, 0),
            set(4, length.try_into()?),
            helper(XDP_STORE_BYTES),
            mov(1, 8),
            set(2, 0),
            helper(REDIRECT),
            EXIT,
        ]);
        Ok(Cannon {
            program: program(Kind::Xdp, &code)?,
            _maps: [turn, store],
        })
    }
}

/// Runs an XDP program on so many live frames, whose actions are carried out in the
/// namespace of this thread, after each `batch` of them (256 at most, 0 for the kernel's
/// usual 64).
pub fn fire(program: BorrowedFd<'_>, frame: &[u8], count: u32, batch: u32) -> io::Result<()> {
    const LIVE_FRAMES: u32 = 1 << 1;
    let mut attr = empty();
    // SAFETY: all members of the union are plain numbers.
    let test = unsafe { &mut attr.test };
    test.prog_fd = program.as_raw_fd().cast_unsigned();
    test.data_in = frame.as_ptr() as u64;
    test.data_size_in = frame.len().try_into().map_err(io::Error::other)?;
    test.repeat = count;
    test.flags = LIVE_FRAMES;
    test.batch_size = batch;
    call(bpf_cmd::BPF_PROG_TEST_RUN, &mut attr).map(drop)
}

/// A program that counts and drops.
pub struct Sink {
    program: OwnedFd,
    counter: OwnedFd,
}

impl Sink {
    /// Loads it.
    pub fn new(kind: Kind) -> Result<Self> {
        use asm::{EXIT, add, helper, insn, load_map, mov, set};
        const TC_ACT_SHOT: i32 = 2;
        const XDP_DROP: i32 = 1;
        let counter = map(bpf_map_type::BPF_MAP_TYPE_ARRAY, 8, 1)?;
        let mut code = vec![insn(0x62, 10, 0, -4, 0), mov(2, 10), add(2, -4)];
        code.extend(load_map(1, counter.as_raw_fd()));
        code.extend([
            helper(LOOKUP),
            insn(0x15, 0, 0, 2, 0),
            set(1, 1),
            insn(0xdb, 0, 1, 0, 0),
            set(
                0,
                match kind {
                    Kind::Tc => TC_ACT_SHOT,
                    Kind::Xdp => XDP_DROP,
                },
            ),
            EXIT,
        ]);
        Ok(Sink {
            program: program(kind, &code)?,
            counter,
        })
    }

    /// Pins the program.
    pub fn pin(&self, path: &Path) -> Result<()> {
        pin(self.program.as_fd(), path)
    }

    /// Packets so far.
    pub fn count(&self) -> Result<u64> {
        let (key, mut value) = (0_u32, 0_u64);
        let mut attr = empty();
        // SAFETY: all members of the union are plain numbers.
        let element = unsafe { &mut attr.__bindgen_anon_2 };
        element.map_fd = self.counter.as_raw_fd().cast_unsigned();
        element.key = &raw const key as u64;
        element.__bindgen_anon_1.value = &raw mut value as u64;
        call(bpf_cmd::BPF_MAP_LOOKUP_ELEM, &mut attr)?;
        Ok(value)
    }
}

/// A tc program that redirects and does nothing else: to the peer of the interface found
/// for the IPv4 destination (what it does not find passes), or out of an interface.
pub struct Bare {
    program: OwnedFd,
    _table: Option<OwnedFd>,
}

impl Bare {
    /// Destinations with their interfaces.
    pub fn new(destinations: &[([u8; 4], u32)]) -> Result<Self> {
        use asm::{EXIT, add, helper, insn, load_map, mov, set};
        const TC_ACT_UNSPEC: i32 = -1;
        let table = map(
            bpf_map_type::BPF_MAP_TYPE_HASH,
            4,
            destinations.len().max(1).try_into()?,
        )?;
        for (address, ifindex) in destinations {
            put(
                table.as_fd(),
                u32::from_ne_bytes(*address),
                (&raw const *ifindex).cast(),
            )
            .context("cannot store a destination")?;
        }
        const DESTINATION: i32 = 30;
        let mut code = vec![
            set(2, DESTINATION),
            mov(3, 10),
            add(3, -4),
            set(4, 4),
            helper(SKB_LOAD_BYTES),
            insn(0x55, 0, 0, 9, 0),
            mov(2, 10),
            add(2, -4),
        ];
        code.extend(load_map(1, table.as_raw_fd()));
        code.extend([
            helper(LOOKUP),
            insn(0x15, 0, 0, 4, 0),
            insn(0x61, 1, 0, 0, 0),
            set(2, 0),
            helper(REDIRECT_PEER),
            EXIT,
            set(0, TC_ACT_UNSPEC),
            EXIT,
        ]);
        Ok(Bare {
            program: program(Kind::Tc, &code)?,
            _table: Some(table),
        })
    }

    /// One that redirects everything out of an interface.
    pub fn out(ifindex: u32) -> Result<Self> {
        use asm::{EXIT, helper, set};
        let code = [
            set(1, ifindex.cast_signed()),
            set(2, 0),
            helper(REDIRECT),
            EXIT,
        ];
        Ok(Bare {
            program: program(Kind::Tc, &code)?,
            _table: None,
        })
    }

    /// Pins the program.
    pub fn pin(&self, path: &Path) -> Result<()> {
        pin(self.program.as_fd(), path)
    }
}

/// Pins a program.
pub fn pin(object: BorrowedFd<'_>, path: &Path) -> Result<()> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let mut attr = empty();
    // SAFETY: all members of the union are plain numbers.
    let pin = unsafe { &mut attr.__bindgen_anon_4 };
    pin.bpf_fd = object.as_raw_fd().cast_unsigned();
    pin.pathname = path.as_ptr() as u64;
    Ok(call(bpf_cmd::BPF_OBJ_PIN, &mut attr).map(drop)?)
}

/// A program that returns a number and does nothing.
pub fn idle(kind: Kind) -> Result<OwnedFd> {
    program(kind, &[asm::set(0, 2), asm::EXIT])
}

/// What a program gets besides the frame (tc only).
#[derive(Clone, Copy, Debug, Default)]
pub struct Context {
    /// `skb->mark`.
    pub mark: u32,
    /// Payload bytes of a segment.
    pub gso_size: u32,
    /// For the program that puts it beside the frame.
    pub vlan: u16,
    /// `skb->priority`.
    pub priority: u32,
    /// `skb->tstamp`, in nanoseconds.
    pub tstamp: u64,
}

/// What a run gave.
#[derive(Debug)]
pub struct Run {
    /// The action.
    pub code: u32,
    /// The frame afterwards.
    pub frame: Vec<u8>,
    /// `skb->mark` afterwards; 0 for XDP.
    pub mark: u32,
    /// `skb->priority` afterwards; 0 for XDP.
    pub priority: u32,
    /// `skb->tstamp` afterwards; 0 for XDP.
    pub tstamp: u64,
    /// Mean duration of one repetition.
    pub duration: Duration,
}

/// Bytes that a program adds to a frame at most.
const GROWTH: usize = 128;

/// Runs a program on a frame, on the loopback interface of this namespace, out of
/// which nothing is sent.
pub fn run(
    kind: Kind,
    program: BorrowedFd<'_>,
    frame: &[u8],
    context: Context,
    repeat: u32,
) -> Result<Run> {
    let mut out = vec![0; frame.len() + GROWTH];
    let mut skb = [0; SK_BUFF];
    skb[MARK as usize..][..4].copy_from_slice(&context.mark.to_ne_bytes());
    skb[CB as usize..][..4].copy_from_slice(&u32::from(context.vlan).to_ne_bytes());
    skb[GSO_SIZE..][..4].copy_from_slice(&context.gso_size.to_ne_bytes());
    skb[PRIORITY..][..4].copy_from_slice(&context.priority.to_ne_bytes());
    skb[TSTAMP..][..8].copy_from_slice(&context.tstamp.to_ne_bytes());
    let mut skb_out = [0; SK_BUFF];
    let mut attr = empty();
    // SAFETY: all members of the union are plain numbers.
    let test = unsafe { &mut attr.test };
    test.prog_fd = program.as_raw_fd().cast_unsigned();
    test.data_in = frame.as_ptr() as u64;
    test.data_size_in = frame.len().try_into()?;
    test.data_out = out.as_mut_ptr() as u64;
    test.data_size_out = out.len().try_into()?;
    test.repeat = repeat;
    if kind == Kind::Tc {
        test.ctx_in = skb.as_ptr() as u64;
        test.ctx_size_in = skb.len().try_into()?;
        test.ctx_out = skb_out.as_mut_ptr() as u64;
        test.ctx_size_out = skb_out.len().try_into()?;
    }
    call(bpf_cmd::BPF_PROG_TEST_RUN, &mut attr)
        .with_context(|| format!("cannot run a program on a frame of {} bytes", frame.len()))?;
    // SAFETY: as above.
    let test = unsafe { &attr.test };
    out.truncate(test.data_size_out as usize);
    let word = |at: usize| {
        let bytes = skb_out[at..].first_chunk().expect("within the context");
        u32::from_ne_bytes(*bytes)
    };
    Ok(Run {
        code: test.retval,
        frame: out,
        mark: word(MARK as usize),
        priority: word(PRIORITY),
        tstamp: u64::from(word(TSTAMP)) | u64::from(word(TSTAMP + 4)) << 32,
        duration: Duration::from_nanos(test.duration.into()),
    })
}
