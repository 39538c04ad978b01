//! The programs, run on a frame by `BPF_PROG_TEST_RUN`, without a trace.
//!
//! They are loaded once more with the data plane's own tables, which they only read, and
//! with maps of their own in place of those that they write: counters, budgets, events.
//! So no counter goes up, no error is missing from a machine's budget, and the agent
//! hears of nothing; and what was counted is the reason.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd},
    path::Path,
};

use anyhow::{Context as _, Result};
use aya::{
    Ebpf,
    maps::{Array, Map, MapData, PerCpuArray, PerCpuHashMap},
    programs::Program,
};
use aya_obj::generated::{bpf_attr, bpf_cmd, bpf_map_type, bpf_prog_type};
use netspawn_ebpf::{
    abi::{Budget, Owner, map, program},
    decide::budget,
    verdict::{Error, Reason},
};

use super::{
    At, Case,
    world::{self, World},
};
use crate::datapath::object::{self, Sizes};

// Actions: include/uapi/linux/{pkt_cls,bpf}.h.
/// To the next program, or the stack.
pub const TC_NEXT: u32 = u32::MAX;
/// Dropped.
pub const TC_SHOT: u32 = 2;
/// Sent elsewhere.
pub const TC_REDIRECT: u32 = 7;
/// Dropped.
pub const XDP_DROP: u32 = 1;
/// To tc.
pub const XDP_PASS: u32 = 2;
/// Back out.
pub const XDP_TX: u32 = 3;
/// Sent elsewhere.
pub const XDP_REDIRECT: u32 = 4;

/// Longest frame that the kernel takes everywhere for a run: a page less what an skb
/// needs around it (`bpf_test_init` in net/bpf/test_run.c).
const LONGEST: usize = 3_500;
/// Bytes that an answer or error may be longer than its question.
const GROWTH: usize = 256;

// Offsets in `struct __sk_buff`.
const IFINDEX: usize = 40;
const CB: usize = 48;
const GSO_SIZE: usize = 176;
const SK_BUFF: usize = 192;

/// What a program did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Run {
    /// Whether it was XDP.
    pub xdp: bool,
    /// Its name.
    pub program: &'static str,
    /// The action.
    pub code: u32,
    /// The frame as it left it.
    pub frame: Vec<u8>,
    /// What it counted, in order of number.
    pub counted: Vec<Reason>,
    /// Whom a drop was charged to.
    pub charged: Option<Owner>,
}

/// The programs.
pub struct Stage {
    ebpf: Ebpf,
    loaded: BTreeSet<&'static str>,
    tagging: BTreeMap<&'static str, Tagging>,
}

impl Stage {
    /// Loads the maps: those of `folder` that programs only read, and others of those
    /// sizes.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn load(folder: &Path, sizes: Sizes) -> Result<Self> {
        Ok(Stage {
            ebpf: object::load_apart(folder, sizes)?,
            loaded: BTreeSet::new(),
            tagging: BTreeMap::new(),
        })
    }

    fn load_program(&mut self, name: &'static str) -> Result<()> {
        if self.loaded.insert(name) {
            let refused = || format!("the kernel does not take the program {name}");
            match name {
                program::UPLINK_XDP => object::xdp(&mut self.ebpf)?.load(),
                _ => object::classifier(&mut self.ebpf, name)?.load(),
            }
            .with_context(refused)?;
        }
        Ok(())
    }

    /// The digest of a program's instructions, which is the attached one's if they are
    /// the same.
    ///
    /// # Errors
    /// When the kernel refuses it.
    pub fn tag(&mut self, name: &'static str) -> Result<u64> {
        self.load_program(name)?;
        Ok(match self.ebpf.program(name) {
            Some(Program::SchedClassifier(program)) => program.info()?.tag(),
            Some(Program::Xdp(program)) => program.info()?.tag(),
            _ => 0,
        })
    }

    fn descriptor(&self, name: &str) -> Result<BorrowedFd<'_>> {
        let missing = || format!("the BPF object has no program {name}");
        Ok(match self.ebpf.program(name).with_context(missing)? {
            Program::SchedClassifier(program) => program.fd()?.as_fd(),
            Program::Xdp(program) => program.fd()?.as_fd(),
            _ => anyhow::bail!(missing()),
        })
    }

    /// Runs the programs that see a frame, one after the other: XDP first where it is
    /// attached, tc if that passes. `Err` within says why the kernel could not be asked.
    ///
    /// # Errors
    /// When the kernel refuses what it should take.
    pub fn run(&mut self, world: &World, case: &Case) -> Result<Result<Vec<Run>, &'static str>> {
        if let Some(why) = untestable(&case.bytes) {
            return Ok(Err(why));
        }
        let (name, ifindex) = match case.at {
            At::Uplink(ifindex) => (program::UPLINK_INGRESS, ifindex),
            At::Host(ifindex) => (program::UPLINK_EGRESS, ifindex),
            At::Port(id) => {
                let ifindex = world.machine(id).map_or(0, |endpoint| endpoint.ifindex);
                (program::PORT_INGRESS, ifindex)
            }
        };
        if let At::Port(id) = case.at {
            self.refill(id)?;
        }
        let mut runs = Vec::new();
        // XDP passes what has a tag.
        let xdp = matches!(case.at, At::Uplink(_)) && world.has_xdp(ifindex) && case.tag.is_none();
        if xdp {
            runs.push(self.run_one(program::UPLINK_XDP, ifindex, case)?);
        }
        if runs.last().is_none_or(|run| run.code == XDP_PASS) {
            runs.push(self.run_one(name, ifindex, case)?);
        }
        Ok(Ok(runs))
    }

    fn run_one(&mut self, name: &'static str, ifindex: u32, case: &Case) -> Result<Run> {
        self.load_program(name)?;
        let before = self.counts()?;
        let (code, frame) = match (name, case.tag) {
            (program::UPLINK_XDP, _) => {
                // data, data_end, data_meta, ingress_ifindex, rx_queue_index,
                // egress_ifindex of `struct xdp_md`.
                let end = case.bytes.len() as u32;
                let context = [0, end, 0, ifindex, 0, 0].map(u32::to_ne_bytes).concat();
                test_run(self.descriptor(name)?, &case.bytes, &context)
            }
            (_, tag) => {
                let mut context = [0; SK_BUFF];
                for (at, value) in [
                    (IFINDEX, ifindex),
                    (CB, tag.unwrap_or(0).into()),
                    (GSO_SIZE, case.gso_size),
                ] {
                    context[at..at + 4].copy_from_slice(&value.to_ne_bytes());
                }
                if tag.is_some() && !self.tagging.contains_key(name) {
                    let tagging = Tagging::new(self.descriptor(name)?)
                        .context("cannot put an 802.1Q tag beside a frame")?;
                    self.tagging.insert(name, tagging);
                }
                let program = match tag {
                    Some(_) => self.tagging[name].program.as_fd(),
                    None => self.descriptor(name)?,
                };
                test_run(program, &case.bytes, &context)
            }
        }
        .with_context(|| format!("cannot run {name} on a frame of {} bytes", case.bytes.len()))?;
        let counted = self
            .counts()?
            .into_iter()
            .zip(before)
            .zip(Reason::ALL)
            .filter(|((after, before), _)| after != before)
            .map(|(_, reason)| *reason)
            .collect();
        Ok(Run {
            xdp: name == program::UPLINK_XDP,
            program: name,
            code,
            frame,
            counted,
            charged: self.take_charged()?,
        })
    }

    fn counts(&self) -> Result<Vec<u64>> {
        let map = self.ebpf.map(map::COUNTS).context("no counters")?;
        let map = PerCpuArray::<&MapData, u64>::try_from(map)?;
        (0..Reason::ALL.len() as u32)
            .map(|reason| Ok(map.get(&reason, 0)?.iter().sum()))
            .collect()
    }

    /// Whom a drop was charged to since this was last asked.
    fn take_charged(&mut self) -> Result<Option<Owner>> {
        let map = self.ebpf.map_mut(map::DROPS).context("no counters")?;
        let mut map = PerCpuHashMap::<&mut MapData, [u32; 2], u64>::try_from(map)?;
        let keys: Vec<[u32; 2]> = map.keys().collect::<Result<_, _>>()?;
        for key in &keys {
            map.remove(key)?;
        }
        let charged = keys.first().map(|[endpoint, _]| *endpoint);
        if let Some(id) = charged {
            // The next frame may be answered by an error as well.
            self.refill(id)?;
        }
        Ok(charged)
    }

    /// What frames before this one have cost an endpoint, and all together, is no matter.
    fn refill(&mut self, id: Owner) -> Result<()> {
        let map = self.ebpf.map_mut(map::BUDGETS).context("no budgets")?;
        let mut map = Array::<&mut MapData, [u64; BUDGET_WORDS]>::try_from(map)?;
        map.set(id, [0; BUDGET_WORDS], 0)?;
        let map = self.ebpf.map_mut(map::SHARED).context("no budgets")?;
        let mut map = Array::<&mut MapData, u64>::try_from(map)?;
        Ok(map.set(0, 0, 0)?)
    }
}

/// Why the kernel takes no such frame for a run.
fn untestable(frame: &[u8]) -> Option<&'static str> {
    let header = match frame.get(12..14) {
        Some([8, 0]) => 20,
        Some([0x86, 0xdd]) => 40,
        _ => 1,
    };
    if frame.len() > LONGEST {
        Some("the kernel takes no frame of that length for a test run")
    } else if frame.len() < 14 + header {
        Some("the kernel takes no frame that is cut within its headers for a test run")
    } else {
        None
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

/// Runs a program on a frame; the action, and the frame as it is then.
fn test_run(program: BorrowedFd<'_>, frame: &[u8], context: &[u8]) -> io::Result<(u32, Vec<u8>)> {
    let mut out = vec![0; frame.len() + GROWTH];
    let mut attr = empty();
    // SAFETY: all members of the union are plain numbers.
    let test = unsafe { &mut attr.test };
    test.prog_fd = program.as_raw_fd().cast_unsigned();
    test.data_in = frame.as_ptr() as u64;
    test.data_size_in = frame.len() as u32;
    test.data_out = out.as_mut_ptr() as u64;
    test.data_size_out = out.len() as u32;
    test.ctx_in = context.as_ptr() as u64;
    test.ctx_size_in = context.len() as u32;
    test.repeat = 1;
    call(bpf_cmd::BPF_PROG_TEST_RUN, &mut attr)?;
    // SAFETY: as above.
    let test = unsafe { &attr.test };
    out.truncate(test.data_size_out as usize);
    Ok((test.retval, out))
}

/// A program that puts the 802.1Q tag of `cb[0]` beside the frame, as the kernel does
/// before tc, and goes on with another: a test run cannot be told of a tag.
struct Tagging {
    program: OwnedFd,
    _table: OwnedFd,
}

impl Tagging {
    fn new(target: BorrowedFd<'_>) -> io::Result<Self> {
        const SKB_VLAN_PUSH: i32 = 18;
        const TAIL_CALL: i32 = 12;
        const REGISTER_OF_MAP: u8 = 1;
        let mut attr = empty();
        // SAFETY: all members of the union are plain numbers.
        let create = unsafe { &mut attr.__bindgen_anon_1 };
        create.map_type = bpf_map_type::BPF_MAP_TYPE_PROG_ARRAY as u32;
        create.key_size = 4;
        create.value_size = 4;
        create.max_entries = 1;
        let table = descriptor(bpf_cmd::BPF_MAP_CREATE, &mut attr)?;

        let (key, value) = (0_u32, target.as_raw_fd());
        let mut attr = empty();
        // SAFETY: as above.
        let element = unsafe { &mut attr.__bindgen_anon_2 };
        element.map_fd = table.as_raw_fd().cast_unsigned();
        element.key = &raw const key as u64;
        element.__bindgen_anon_1.value = &raw const value as u64;
        call(bpf_cmd::BPF_MAP_UPDATE_ELEM, &mut attr)?;

        let insn = |code: u8, dst: u8, src: u8, offset: i16, immediate: i32| {
            let [o0, o1] = offset.to_ne_bytes();
            let [i0, i1, i2, i3] = immediate.to_ne_bytes();
            [code, src << 4 | dst, o0, o1, i0, i1, i2, i3]
        };
        let code = [
            insn(0xbf, 6, 1, 0, 0),
            insn(0x61, 3, 1, CB as i16, 0),
            insn(0xb7, 2, 0, 0, i32::from(0x8100_u16.to_be())),
            insn(0x85, 0, 0, 0, SKB_VLAN_PUSH),
            insn(0xbf, 1, 6, 0, 0),
            insn(0x18, 2, REGISTER_OF_MAP, 0, table.as_raw_fd()),
            insn(0, 0, 0, 0, 0),
            insn(0xb7, 3, 0, 0, 0),
            insn(0x85, 0, 0, 0, TAIL_CALL),
            // No action: the tail call has failed.
            insn(0xb7, 0, 0, 0, 99),
            insn(0x95, 0, 0, 0, 0),
        ];
        let mut attr = empty();
        // SAFETY: as above.
        let load = unsafe { &mut attr.__bindgen_anon_3 };
        load.prog_type = bpf_prog_type::BPF_PROG_TYPE_SCHED_CLS as u32;
        load.insns = code.as_ptr() as u64;
        load.insn_cnt = code.len() as u32;
        load.license = c"GPL".as_ptr() as u64;
        let program = descriptor(bpf_cmd::BPF_PROG_LOAD, &mut attr)?;
        Ok(Tagging {
            program,
            _table: table,
        })
    }
}

fn descriptor(command: bpf_cmd, attr: &mut bpf_attr) -> io::Result<OwnedFd> {
    let fd = call(command, attr)?;
    // SAFETY: the command has made a descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Words of a [`Budget`].
const BUDGET_WORDS: usize = size_of::<Budget>() / size_of::<u64>();

/// Whether a machine's errors of one kind of the live data plane are used up for the moment, so that
/// none would be made about its packets now.
///
/// # Errors
/// When the map cannot be read.
pub fn is_exhausted(folder: &Path, id: Owner, error: Error) -> Result<bool> {
    let data = MapData::from_pin(folder.join(map::BUDGETS))?;
    let map: Array<MapData, [u64; BUDGET_WORDS]> = Map::from_map_data(data)?.try_into()?;
    let [time_exceeded, too_big, unreachable, events, neighbors] = map.get(&id, 0)?;
    let mut budget = Budget {
        time_exceeded,
        too_big,
        unreachable,
        events,
        neighbors,
    };
    Ok(!budget::take(
        budget.error(error),
        world::now(),
        budget::OWN,
    ))
}
