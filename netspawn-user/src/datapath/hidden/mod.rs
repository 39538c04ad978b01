//! Fills in the instructions that the BPF object leaves blank
//! ([`netspawn_ebpf::blanks`]): by which the programs see what the kernel's `__sk_buff`
//! hides, where a sender leaves a checksum to be completed, and how it wants a
//! super-packet cut up.
//!
//! Which way there is is found out by trying: a small program with the same instructions
//! is loaded, and never run.

pub(super) mod btf;

use std::{io, ops::Range, os::fd::OwnedFd, sync::OnceLock};

use anyhow::{Context as _, Result, bail, ensure};
use aya_obj::generated::{bpf_attr, bpf_cmd, bpf_insn, bpf_prog_type};
use netspawn_ebpf::blanks::{COPY, access, constant, field, function};
use object::{Object as _, ObjectSection as _, SectionKind};

use self::btf::{Btf, Kind};
use super::attach::bpf;

/// How the programs see those fields.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sight {
    /// Through the kernel's own context (Linux 6.2).
    Context,
    /// Through copies of kernel memory.
    Copies,
    /// Not at all.
    None,
}

/// What was found.
#[derive(Debug)]
pub struct Found {
    /// How the programs see those fields.
    pub sight: Sight,
    /// Why not at all: the kernel's words.
    pub why: Option<String>,
    layout: Layout,
}

/// Where the kernel has what; all 0 where nothing can be seen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Layout {
    ip_summed: u16,
    ip_summed_mask: u8,
    csum: u16,
    mac_header: u16,
    end: u16,
    head: u16,
    gso_type: u16,
    frag_list: u16,
    next: u16,
    len: u16,
    shared_info: u32,
    kernel_context: Option<u32>,
    read_only: Option<u32>,
}

// Instructions: include/uapi/linux/bpf.h.
const CALL: u8 = 0x85;
const MOVE: u8 = 0xb7;
const LOAD_WIDE: u8 = 0x18;
const WORD: u8 = 0x61;
const HALF: u8 = 0x69;
const BYTE: u8 = 0x71;
const DOUBLE: u8 = 0x79;
const LOADS: [u8; 4] = [WORD, HALF, BYTE, DOUBLE];
/// `BPF_PSEUDO_KFUNC_CALL`.
const KFUNC: u8 = 2;

/// How the programs see those fields on the running kernel; found out once.
pub fn found() -> &'static Found {
    static FOUND: OnceLock<Found> = OnceLock::new();
    FOUND.get_or_init(look)
}

fn look() -> Found {
    let none = |why: String| Found {
        sight: Sight::None,
        why: Some(why),
        layout: Layout::default(),
    };
    let layout = match layout() {
        Ok(Some(layout)) => layout,
        Ok(None) => {
            return none("the kernel has no BTF (CONFIG_DEBUG_INFO_BTF)".to_owned());
        }
        Err(error) => return none(format!("{error:#}")),
    };
    let mut why = Vec::new();
    for sight in [Sight::Context, Sight::Copies] {
        match attempt(sight, &layout) {
            Ok(()) => {
                return Found {
                    sight,
                    why: None,
                    layout,
                };
            }
            Err(error) => why.push(format!("{error:#}")),
        }
    }
    none(why.join("; "))
}

fn layout() -> Result<Option<Layout>> {
    const CONTEXT: &str = "bpf_cast_to_kern_ctx";
    const READ_ONLY: &str = "bpf_rdonly_cast";
    const SKB: &str = "sk_buff";
    const SHARED: &str = "skb_shared_info";
    let Some(btf) = Btf::of_kernel()? else {
        return Ok(None);
    };
    let numbers = btf.numbers(&[
        (CONTEXT, Kind::Function),
        (READ_ONLY, Kind::Function),
        (SKB, Kind::Struct),
        (SHARED, Kind::Struct),
    ])?;
    let number = |name: &str| {
        let number = numbers.get(name).copied();
        number.with_context(|| format!("the kernel's BTF has no struct {name}"))
    };
    let (skb, shared) = (number(SKB)?, number(SHARED)?);
    let offset = |of: u32, name: &str, size: u32| -> Result<u16> {
        let member = btf.member(of, name)?;
        ensure!(
            member.bit % 8 == 0 && member.bits == 0 && btf.size(member)? == size,
            "the kernel's {name} is not {size} bytes long"
        );
        Ok(u16::try_from(member.bit / 8)?)
    };
    let summed = btf.member(skb, "ip_summed")?;
    ensure!(
        summed.bits == 2 && summed.bit % 8 <= 6,
        "the kernel's ip_summed is not two bits of one byte"
    );
    let csum = offset(skb, "csum_start", 2)?;
    ensure!(
        offset(skb, "csum_offset", 2)? == csum + 2,
        "the kernel's csum_offset does not follow csum_start"
    );
    let pointer =
        |of: u32, name: &str| -> Result<u16> { Ok(u16::try_from(btf.member(of, name)?.bit / 8)?) };
    let len = offset(skb, "len", 4)?;
    ensure!(
        offset(skb, "data_len", 4)? == len + 4,
        "the kernel's data_len does not follow len"
    );
    Ok(Some(Layout {
        ip_summed: u16::try_from(summed.bit / 8)?,
        ip_summed_mask: 3 << (summed.bit % 8),
        csum,
        mac_header: offset(skb, "mac_header", 2)?,
        end: offset(skb, "end", 4)?,
        head: pointer(skb, "head")?,
        gso_type: offset(shared, "gso_type", 4)?,
        frag_list: pointer(shared, "frag_list")?,
        next: pointer(skb, "next")?,
        len,
        shared_info: shared,
        kernel_context: numbers.get(CONTEXT).copied(),
        read_only: numbers.get(READ_ONLY).copied(),
    }))
}

impl Layout {
    /// Where copies begin, and how many bytes they have.
    fn copied(&self) -> Range<u16> {
        let start = self.ip_summed.min(self.csum) & !7;
        let end = (self.ip_summed + 1).max(self.csum + 4);
        start..end
    }

    fn constant(&self, sight: Sight, number: i32) -> Option<i32> {
        let copied = self.copied();
        Some(match number {
            constant::ACCESS => match sight {
                Sight::Context => access::KERNEL_CONTEXT,
                Sight::Copies => access::PROBE,
                Sight::None => access::NONE,
            },
            constant::IP_SUMMED_MASK => self.ip_summed_mask.into(),
            constant::COPY_FROM => copied.start.into(),
            constant::COPY_BACK => -i32::from(copied.start),
            constant::COPY_LENGTH => copied.len() as i32,
            constant::END => self.end.into(),
            constant::HEAD => self.head.into(),
            constant::GSO_TYPE => self.gso_type.into(),
            constant::SHARED_INFO => self.shared_info.cast_signed(),
            constant::MAC_HEADER => self.mac_header.into(),
            constant::FRAG_LIST => self.frag_list.into(),
            constant::NEXT => self.next.into(),
            constant::LEN => self.len.into(),
            _ => return None,
        })
    }

    fn field(&self, number: i16) -> Option<i16> {
        let offset = match number {
            field::IP_SUMMED => self.ip_summed,
            field::CSUM => self.csum,
            field::MAC_HEADER => self.mac_header,
            field::END => self.end,
            field::HEAD => self.head,
            field::GSO_TYPE => self.gso_type,
            field::FRAG_LIST => self.frag_list,
            field::NEXT => self.next,
            field::LEN => self.len,
            field::DATA_LEN => self.len + 4,
            _ => return None,
        };
        // Layouts with offsets beyond are not tried.
        Some(offset.cast_signed())
    }

    /// The number of a function that is called; `None` where it is not to be called.
    fn function(&self, sight: Sight, number: i32) -> Option<Option<u32>> {
        let known = match number {
            function::KERNEL_CONTEXT => self.kernel_context,
            function::READ_ONLY => self.read_only,
            _ => return None,
        };
        Some(known.filter(|_| sight == Sight::Context))
    }
}

/// Loads a program that does what the real ones do.
fn attempt(sight: Sight, layout: &Layout) -> Result<()> {
    let code = match sight {
        Sight::Context => by_context(layout)?,
        Sight::Copies => by_copies(layout)?,
        Sight::None => return Ok(()),
    };
    load(&code).map(drop).with_context(|| match sight {
        Sight::Context => "the kernel does not let programs look at its own context",
        _ => "the kernel does not let programs copy from its memory",
    })
}

fn instruction(code: u8, destination: u8, source: u8, off: i16, imm: i32) -> bpf_insn {
    let mut instruction = bpf_insn {
        code,
        _bitfield_align_1: [],
        _bitfield_1: Default::default(),
        off,
        imm,
    };
    instruction.set_dst_reg(destination);
    instruction.set_src_reg(source);
    instruction
}

const MOVE_REGISTER: u8 = 0xbf;
const ADD_REGISTER: u8 = 0x0f;
const ADD: u8 = 0x07;
const JUMP_IF_NOT: u8 = 0x55;
const EXIT: u8 = 0x95;

fn by_context(layout: &Layout) -> Result<Vec<bpf_insn>> {
    let (Some(context), Some(read_only)) = (layout.kernel_context, layout.read_only) else {
        bail!("the kernel has no function bpf_cast_to_kern_ctx (Linux 6.2)");
    };
    let load = |code, to, from, offset: u16| instruction(code, to, from, offset.cast_signed(), 0);
    Ok(vec![
        instruction(CALL, 0, KFUNC, 0, context.cast_signed()),
        load(BYTE, 1, 0, layout.ip_summed),
        load(WORD, 1, 0, layout.csum),
        load(HALF, 1, 0, layout.mac_header),
        load(DOUBLE, 1, 0, layout.head),
        load(WORD, 2, 0, layout.end),
        instruction(ADD_REGISTER, 1, 2, 0, 0),
        instruction(MOVE, 2, 0, 0, layout.shared_info.cast_signed()),
        instruction(CALL, 0, KFUNC, 0, read_only.cast_signed()),
        load(WORD, 1, 0, layout.gso_type),
        load(DOUBLE, 1, 0, layout.frag_list),
        instruction(JUMP_IF_NOT, 1, 0, 2, 0),
        instruction(MOVE, 0, 0, 0, 0),
        instruction(EXIT, 0, 0, 0, 0),
        load(WORD, 2, 1, layout.len),
        load(DOUBLE, 1, 1, layout.next),
        instruction(MOVE, 0, 0, 0, 0),
        instruction(EXIT, 0, 0, 0, 0),
    ])
}

fn by_copies(layout: &Layout) -> Result<Vec<bpf_insn>> {
    const PROBE_READ_KERNEL: i32 = 113;
    const FRAME: u8 = 10;
    let copied = layout.copied();
    ensure!(
        copied.len() <= COPY,
        "the kernel's sk_buff has its fields too far from each other"
    );
    Ok(vec![
        instruction(MOVE_REGISTER, 3, 1, 0, 0),
        instruction(ADD, 3, 0, 0, copied.start.into()),
        instruction(MOVE_REGISTER, 1, FRAME, 0, 0),
        instruction(ADD, 1, 0, 0, -(COPY as i32)),
        instruction(MOVE, 2, 0, 0, copied.len() as i32),
        instruction(CALL, 0, 0, 0, PROBE_READ_KERNEL),
        instruction(MOVE, 0, 0, 0, 0),
        instruction(EXIT, 0, 0, 0, 0),
    ])
}

/// Loads a tc program, which is gone with its descriptor.
fn load(code: &[bpf_insn]) -> io::Result<OwnedFd> {
    let mut attr: bpf_attr = bpf::empty();
    // SAFETY: all members of the union are plain numbers.
    let program = unsafe { &mut attr.__bindgen_anon_3 };
    program.prog_type = bpf_prog_type::BPF_PROG_TYPE_SCHED_CLS as u32;
    program.insns = code.as_ptr() as u64;
    program.insn_cnt = code.len() as u32;
    // As the programs' own, which kernel functions ask for.
    program.license = c"Dual MIT/GPL".as_ptr() as u64;
    bpf::descriptor(bpf_cmd::BPF_PROG_LOAD, &mut attr)
}

/// The object with its blanks filled in, as the running kernel wants them.
///
/// # Errors
/// When the object is none, or lacks a blank: a fault of the build.
pub fn fill(bytes: &[u8]) -> Result<Aligned> {
    let Found { sight, layout, .. } = found();
    let mut filled = Aligned::new(bytes);
    let sections: Vec<Range<usize>> = {
        let elf = object::File::parse(bytes).context("the BPF object is no ELF file")?;
        let texts = elf
            .sections()
            .filter(|section| section.kind() == SectionKind::Text);
        texts
            .filter_map(|section| section.file_range())
            .map(|(start, length)| start as usize..(start + length) as usize)
            .collect()
    };
    let mut blanks = 0;
    for section in sections {
        let code = filled.bytes_mut().get_mut(section);
        blanks |= fill_section(code.context("a section is cut short")?, *sight, layout);
    }
    let all = (1u32 << (constant::ALL.len() + function::ALL.len() + field::ALL.len())) - 1;
    ensure!(blanks == all, "the BPF object lacks a blank: {blanks:#x}");
    Ok(filled)
}

/// Fills in a section; a bit for each blank of which there was one.
fn fill_section(code: &mut [u8], sight: Sight, layout: &Layout) -> u32 {
    let mut found = 0;
    let mut see = |first: usize, at: Option<usize>| {
        found |= at.map_or(0, |at| 1 << (first + at));
    };
    let (instructions, _) = code.as_chunks_mut::<8>();
    let mut rest = instructions.iter_mut();
    while let Some(bytes) = rest.next() {
        let [code, registers, low, high, a, b, c, d] = *bytes;
        let (off, imm) = (
            i16::from_le_bytes([low, high]),
            i32::from_le_bytes([a, b, c, d]),
        );
        match code {
            // The second half of it is no instruction.
            LOAD_WIDE => drop(rest.next()),
            CALL if registers == 0 => {
                if let Some(function) = layout.function(sight, imm) {
                    see(0, function::ALL.iter().position(|known| *known == imm));
                    let (code, source, imm) = match function {
                        Some(number) => (CALL, KFUNC, number),
                        None => (MOVE, 0, 0),
                    };
                    let [a, b, c, d] = imm.to_le_bytes();
                    *bytes = [code, source << 4, 0, 0, a, b, c, d];
                }
            }
            MOVE => {
                if let Some(value) = layout.constant(sight, imm) {
                    let first = function::ALL.len();
                    see(first, constant::ALL.iter().position(|known| *known == imm));
                    bytes[4..].copy_from_slice(&value.to_le_bytes());
                }
            }
            code if LOADS.contains(&code) => {
                if let Some(offset) = layout.field(off) {
                    let first = function::ALL.len() + constant::ALL.len();
                    see(first, field::ALL.iter().position(|known| *known == off));
                    bytes[2..4].copy_from_slice(&offset.to_le_bytes());
                }
            }
            _ => {}
        }
    }
    found
}

/// Bytes that begin where the headers of an ELF file may be read in place.
pub struct Aligned {
    words: Vec<u64>,
    length: usize,
}

impl Aligned {
    fn new(bytes: &[u8]) -> Self {
        let mut words = vec![0; bytes.len().div_ceil(8)];
        for (word, bytes) in words.iter_mut().zip(bytes.chunks(8)) {
            let mut whole = [0; 8];
            whole[..bytes.len()].copy_from_slice(bytes);
            *word = u64::from_ne_bytes(whole);
        }
        Aligned {
            words,
            length: bytes.len(),
        }
    }

    /// All of them.
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: the words are initialized, and at least that many bytes long.
        unsafe { std::slice::from_raw_parts(self.words.as_ptr().cast(), self.length) }
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above; any bytes are words.
        unsafe { std::slice::from_raw_parts_mut(self.words.as_mut_ptr().cast(), self.length) }
    }
}
