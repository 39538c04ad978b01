//! As much of the kernel's BTF as says where a member of a struct is, and which number a
//! function or struct has (Documentation/bpf/btf.rst).
//!
//! aya reads BTF too, and keeps to itself what is in a struct.

use std::{collections::HashMap, fs, io};

use anyhow::{Context as _, Result, bail};

/// Where the kernel describes itself.
const PATH: &str = "/sys/kernel/btf/vmlinux";

const MAGIC: u16 = 0xeb9f;

/// `BTF_KIND_STRUCT`.
const STRUCT: u32 = 4;
/// `BTF_KIND_UNION`.
const UNION: u32 = 5;
/// `BTF_KIND_FUNC`.
pub const FUNC: u32 = 12;

/// Where a member is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Member {
    /// Bits from the start of the struct.
    pub bit: u32,
    /// Bits of a bitfield; 0 for what is none.
    pub bits: u32,
    /// Number of its type.
    kind: u32,
}

/// The description of a kernel.
pub struct Btf {
    types: Vec<u8>,
    strings: Vec<u8>,
    /// Where in `types` each number is, from 1 on.
    places: Vec<usize>,
}

/// A type's fixed part.
struct Type {
    name: u32,
    kind: u32,
    count: usize,
    /// Whether offsets of members hold sizes of bitfields too.
    bitfields: bool,
    /// Size in bytes, or the number of another type.
    size_or_type: u32,
}

fn word(bytes: &[u8], at: usize) -> Result<u32> {
    let bytes = bytes.get(at..).and_then(<[u8]>::first_chunk);
    Ok(u32::from_ne_bytes(*bytes.context("BTF is cut short")?))
}

impl Btf {
    /// Reads that of the running kernel; `None` where it has none
    /// (`CONFIG_DEBUG_INFO_BTF`).
    ///
    /// # Errors
    /// When it cannot be read, or not understood.
    pub fn of_kernel() -> Result<Option<Btf>> {
        let bytes = match fs::read(PATH) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error).with_context(|| format!("cannot read {PATH}")),
        };
        Btf::parse(&bytes)
            .with_context(|| format!("cannot understand {PATH}"))
            .map(Some)
    }

    fn parse(bytes: &[u8]) -> Result<Btf> {
        let magic = bytes.first_chunk().map(|bytes| u16::from_ne_bytes(*bytes));
        if magic != Some(MAGIC) {
            bail!("it is no BTF of this machine's byte order");
        }
        let header = word(bytes, 4)? as usize;
        let part = |offset: usize| -> Result<Vec<u8>> {
            let start = header + word(bytes, offset)? as usize;
            let length = word(bytes, offset + 4)? as usize;
            let part = bytes.get(start..start + length);
            Ok(part.context("BTF is cut short")?.to_vec())
        };
        let mut btf = Btf {
            types: part(8)?,
            strings: part(16)?,
            places: vec![0],
        };
        let mut at = 0;
        while at < btf.types.len() {
            btf.places.push(at);
            at += 12 + btf.behind(at)?;
        }
        Ok(btf)
    }

    fn type_at(&self, at: usize) -> Result<Type> {
        let info = word(&self.types, at + 4)?;
        Ok(Type {
            name: word(&self.types, at)?,
            kind: info >> 24 & 0x1f,
            count: (info & 0xffff) as usize,
            bitfields: info >> 31 == 1,
            size_or_type: word(&self.types, at + 8)?,
        })
    }

    /// Bytes that follow the fixed part of the type there.
    fn behind(&self, at: usize) -> Result<usize> {
        let Type { kind, count, .. } = self.type_at(at)?;
        Ok(match kind {
            // Pointer, forward, typedef, volatile, const, restrict, function, float, tag.
            2 | 7..=12 | 16 | 18 => 0,
            // Integer, variable, tag of a declaration.
            1 | 14 | 17 => 4,
            // Array.
            3 => 12,
            // Struct, union, section, enumeration of 64 bits.
            STRUCT | UNION | 15 | 19 => 12 * count,
            // Enumeration, prototype.
            6 | 13 => 8 * count,
            other => bail!("BTF has a kind {other} that is not known"),
        })
    }

    fn name(&self, offset: u32) -> &[u8] {
        let rest = self.strings.get(offset as usize..).unwrap_or_default();
        let end = rest.iter().position(|byte| *byte == 0);
        &rest[..end.unwrap_or(rest.len())]
    }

    /// The numbers of these functions and structs, by name, of those that there are.
    ///
    /// # Errors
    /// When BTF is damaged.
    pub fn numbers<'a>(&self, wanted: &[(&'a str, Kind)]) -> Result<HashMap<&'a str, u32>> {
        let mut found = HashMap::new();
        for (number, at) in (0..).zip(&self.places).skip(1) {
            let it = self.type_at(*at)?;
            let name = match it.kind {
                STRUCT | FUNC => self.name(it.name),
                _ => continue,
            };
            for (wanted, kind) in wanted {
                if it.kind == *kind as u32 && name == wanted.as_bytes() {
                    found.entry(*wanted).or_insert(number);
                }
            }
        }
        Ok(found)
    }

    /// Where a struct has a member, also inside members without a name.
    ///
    /// # Errors
    /// When there is no such member, or BTF is damaged.
    pub fn member(&self, number: u32, name: &str) -> Result<Member> {
        self.find(number, name.as_bytes(), 0)?
            .with_context(|| format!("the kernel's struct has no member {name}"))
    }

    fn find(&self, number: u32, name: &[u8], base: u32) -> Result<Option<Member>> {
        let at = *self
            .places
            .get(number as usize)
            .context("BTF names a type that it has not got")?;
        let it = self.type_at(at)?;
        if !matches!(it.kind, STRUCT | UNION) {
            return Ok(None);
        }
        for index in 0..it.count {
            let entry = at + 12 + 12 * index;
            let (member, kind) = (word(&self.types, entry)?, word(&self.types, entry + 4)?);
            let place = word(&self.types, entry + 8)?;
            let (bit, bits) = if it.bitfields {
                (base + (place & 0xff_ffff), place >> 24)
            } else {
                (base + place, 0)
            };
            let found = match self.name(member) {
                [] => self.find(kind, name, bit)?,
                found if found == name => Some(Member { bit, bits, kind }),
                _ => None,
            };
            if found.is_some() {
                return Ok(found);
            }
        }
        Ok(None)
    }

    /// Bytes of a member that is a number, or a name for one.
    ///
    /// # Errors
    /// When it is anything else.
    pub fn size(&self, member: Member) -> Result<u32> {
        let mut number = member.kind;
        // No name stands for so many others.
        for _ in 0..16 {
            let at = self.places.get(number as usize);
            let it = self.type_at(*at.context("BTF names a type that it has not got")?)?;
            match it.kind {
                1 => return Ok(it.size_or_type),
                // Typedef, volatile, const, restrict, tag.
                8..=11 | 18 => number = it.size_or_type,
                _ => break,
            }
        }
        bail!("a member of the kernel's struct is no number")
    }
}

/// What to look for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A struct.
    Struct = STRUCT as isize,
    /// A function.
    Function = FUNC as isize,
}
