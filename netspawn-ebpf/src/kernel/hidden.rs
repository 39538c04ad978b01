//! What `__sk_buff` hides of an skb: where a checksum is left to be completed, and how a
//! super-packet is to be cut up. Read by instructions that the loader has filled in, see
//! [`netspawn_ebpf::blanks`].

use core::{arch::asm, ffi::c_void, mem::MaybeUninit};

use aya_ebpf::{
    bindings::{__sk_buff, BPF_CSUM_LEVEL_DEC, BPF_CSUM_LEVEL_INC, BPF_CSUM_LEVEL_QUERY},
    helpers::generated::{bpf_csum_level, bpf_csum_update, bpf_probe_read_kernel},
};
use netspawn_ebpf::{
    blanks::{COPY, access, constant, field, function},
    decide::offload::{self, Judged, Open, Outer, Said, gso},
    rewrite::error::is_settled,
    verdict::Family,
    wire::Pod,
};

use super::packet::Packet;

/// A constant of [`constant`], which the verifier knows the value of.
macro_rules! known {
    ($number:expr) => {{
        let value: u64;
        // SAFETY: moves a number into a register.
        unsafe { asm!("{} = {}", out(reg) value, const $number, options(nomem, nostack, pure)) };
        value
    }};
}

/// A field of [`field`] behind a pointer.
macro_rules! load {
    ($size:literal, $from:expr, $number:expr) => {{
        let value: u64;
        let from: u64 = $from;
        // SAFETY: the verifier checks the access; not `pure`, because it must not be done
        // where the pointer is none.
        unsafe {
            asm!(
                concat!("{} = *(", $size, " *)({} + {})"),
                out(reg) value, in(reg) from, const $number,
                options(readonly, nostack)
            );
        }
        value
    }};
}

/// `bpf_cast_to_kern_ctx`: the `struct sk_buff` of a context.
#[inline(always)]
fn kernel_context(raw: *mut __sk_buff) -> u64 {
    // SAFETY: not a function's address, but a number for the instruction that calls, as
    // all helpers of `aya_ebpf` are; the loader replaces it.
    let function: unsafe extern "C" fn(*mut __sk_buff) -> u64 =
        unsafe { core::mem::transmute(function::KERNEL_CONTEXT as usize) };
    // SAFETY: the context is valid.
    unsafe { function(raw) }
}

/// `bpf_rdonly_cast`: an address as one of a type that may be read.
#[inline(always)]
fn read_only(address: u64, id: u64) -> u64 {
    // SAFETY: as above.
    let function: unsafe extern "C" fn(u64, u64) -> u64 =
        unsafe { core::mem::transmute(function::READ_ONLY as usize) };
    // SAFETY: whatever the address, a load from it gives a value or 0.
    unsafe { function(address, id) }
}

/// Copies kernel memory; whether it could be read.
#[inline(always)]
fn copy(to: *mut c_void, length: u64, from: u64) -> bool {
    // SAFETY: the buffer is that long, which the verifier checks; the helper looks for
    // itself whether the address can be read.
    unsafe { bpf_probe_read_kernel(to, length as u32, from as *const c_void) == 0 }
}

/// Where a sum is left open in a frame.
#[inline(always)]
pub fn open(raw: *mut __sk_buff) -> Open {
    let how = known!(constant::ACCESS);
    if how == access::KERNEL_CONTEXT as u64 {
        let skb = kernel_context(raw);
        if let Some(csum) = open_sum(skb) {
            return at(csum, load!("u16", skb, field::MAC_HEADER) as u32);
        }
        Open::default()
    } else if how == access::PROBE as u64 {
        probe_open(raw as u64)
    } else {
        Open {
            unseen: true,
            ..Open::default()
        }
    }
}

/// `csum_start` and, above it, `csum_offset`, where a sum is left open. `skb` may also be
/// where a copy of these fields would begin.
#[inline(always)]
fn open_sum(skb: u64) -> Option<u32> {
    let mask = known!(constant::IP_SUMMED_MASK);
    // All bits of the field set: CHECKSUM_PARTIAL is 3.
    if load!("u8", skb, field::IP_SUMMED) & mask != mask {
        return None;
    }
    Some(load!("u32", skb, field::CSUM) as u32)
}

/// `csum_start` counts from the start of the buffer, as `mac_header` does.
#[inline(always)]
fn at(csum: u32, mac_header: u32) -> Open {
    let start = (csum & 0xffff).wrapping_sub(mac_header);
    Open {
        somewhere: true,
        unseen: false,
        start,
        field: start.wrapping_add(csum >> 16),
    }
}

#[inline(always)]
fn probe_open(raw: u64) -> Open {
    let mut fields = MaybeUninit::<[u64; COPY / 8]>::uninit();
    if !copy(
        fields.as_mut_ptr().cast(),
        known!(constant::COPY_LENGTH),
        raw.wrapping_add(known!(constant::COPY_FROM)),
    ) {
        return Open::default();
    }
    let mut copied = fields.as_ptr() as u64;
    let back = known!(constant::COPY_BACK);
    // The pointer on the left: on the right it would lose the function's frame of the stack
    // (`adjust_ptr_min_max_vals` of Linux 6.1).
    // SAFETY: adds two numbers.
    unsafe {
        asm!(
            "{} += {}",
            inout(reg) copied, in(reg) back,
            options(nomem, nostack, pure)
        );
    }
    match open_sum(copied) {
        // On failure the sum is open somewhere: nowhere that is allowed.
        Some(csum) => {
            let mac_header = probe::<u16>(raw, known!(constant::MAC_HEADER)).unwrap_or(u16::MAX);
            at(csum, mac_header.into())
        }
        None => Open::default(),
    }
}

/// How a super-packet is to be cut up; 0 where that cannot be seen.
#[inline(always)]
fn gso_type(raw: *mut __sk_buff) -> u32 {
    let how = known!(constant::ACCESS);
    if how == access::KERNEL_CONTEXT as u64 {
        load!("u32", shared(kernel_context(raw)), field::GSO_TYPE) as u32
    } else if how == access::PROBE as u64 {
        probe_shared(raw as u64)
            .and_then(|shared| probe::<u32>(shared, known!(constant::GSO_TYPE)))
            .unwrap_or(0)
    } else {
        0
    }
}

/// The `struct skb_shared_info` of an skb.
#[inline(always)]
fn shared(skb: u64) -> u64 {
    let head = load!("u64", skb, field::HEAD);
    let end = load!("u32", skb, field::END);
    read_only(head.wrapping_add(end), known!(constant::SHARED_INFO))
}

/// Fragments of a super-packet that are looked at.
const FRAGMENTS: usize = 64;

/// Bytes of the longest fragment of a super-packet that is cut by its fragments; more than
/// there can be where there are too many, or they cannot be seen. As [`settle_frame`].
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn longest_fragment(raw: *mut __sk_buff) -> u32 {
    const UNSEEN: u32 = u32::MAX >> 1;
    let mut longest = 0;
    let how = known!(constant::ACCESS);
    if how == access::KERNEL_CONTEXT as u64 {
        let mut fragment = load!("u64", shared(kernel_context(raw)), field::FRAG_LIST);
        for _ in 0..FRAGMENTS {
            if fragment == 0 {
                return longest;
            }
            let length = load!("u32", fragment, field::LEN) as u32;
            let length = length.saturating_sub(load!("u32", fragment, field::DATA_LEN) as u32);
            longest = if length > longest { length } else { longest };
            fragment = load!("u64", fragment, field::NEXT);
        }
    } else if how == access::PROBE as u64 {
        let Some(mut fragment) = probe_shared(raw as u64)
            .and_then(|shared| probe::<u64>(shared, known!(constant::FRAG_LIST)))
        else {
            return UNSEEN;
        };
        for _ in 0..FRAGMENTS {
            if fragment == 0 {
                return longest;
            }
            let Some(lengths) = probe::<u64>(fragment, known!(constant::LEN)) else {
                return UNSEEN;
            };
            // `data_len` follows.
            let length = (lengths as u32).saturating_sub((lengths >> 32) as u32);
            longest = if length > longest { length } else { longest };
            let Some(next) = probe::<u64>(fragment, known!(constant::NEXT)) else {
                return UNSEEN;
            };
            fragment = next;
        }
    }
    UNSEEN
}

/// A number of the kernel's, so many bytes behind an address.
#[inline(always)]
fn probe<T: Pod + Default>(address: u64, offset: u64) -> Option<T> {
    let mut value = T::default();
    let length = size_of::<T>() as u64;
    copy(
        (&raw mut value).cast(),
        length,
        address.wrapping_add(offset),
    )
    .then_some(value)
}

/// Where the `struct skb_shared_info` of an skb is.
#[inline(always)]
fn probe_shared(raw: u64) -> Option<u64> {
    let head = probe::<u64>(raw, known!(constant::HEAD))?;
    let end = probe::<u32>(raw, known!(constant::END))?;
    Some(head.wrapping_add(end.into()))
}

/// Whether a sum is left open where the fields cannot be seen: it is what none of the
/// other three states of `ip_summed` is.
#[inline(always)]
fn is_partial(raw: *mut __sk_buff) -> bool {
    // SAFETY: the context is valid; the helpers change no packet data.
    unsafe {
        if bpf_csum_level(raw, u64::from(BPF_CSUM_LEVEL_QUERY)) >= 0 {
            return false;
        }
        // Succeeds for CHECKSUM_COMPLETE alone.
        if bpf_csum_update(raw, 0) >= 0 {
            return false;
        }
        // Makes CHECKSUM_NONE a checksum that is known to be right.
        // Returns 0 whatever it has done.
        bpf_csum_level(raw, u64::from(BPF_CSUM_LEVEL_INC));
        if bpf_csum_level(raw, u64::from(BPF_CSUM_LEVEL_QUERY)) >= 0 {
            bpf_csum_level(raw, u64::from(BPF_CSUM_LEVEL_DEC));
            return false;
        }
    }
    true
}

/// What is to be done about a sum that is left open in a frame that becomes an error.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Settle {
    /// None is.
    Nothing,
    /// [`netspawn_ebpf::rewrite::error::settle`] deals with it.
    Field,
    /// What is written into the quote later would make the error a wrong one.
    GiveUp,
}

const NOTHING: u32 = 0;
const FIELD: u32 = 1;
const GIVE_UP: u32 = 2;

/// A [`Settle`] as a number; `v6` says whether it is an IPv6 packet. A global function,
/// which the verifier walks once, rather than for each way that leads here; its result is
/// one of which nothing is known.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn settle_frame(raw: *mut __sk_buff, v6: u32) -> u32 {
    let mut open = open(raw);
    if open.unseen {
        open.somewhere = is_partial(raw);
    }
    let family = if v6 != 0 { Family::V6 } else { Family::V4 };
    let (packet, ..) = frame(raw);
    if !open.somewhere {
        NOTHING
    } else if is_settled(&packet, family, &open) {
        FIELD
    } else {
        GIVE_UP
    }
}

/// What is to be done about a sum that is left open.
#[inline(always)]
pub fn settle(raw: *mut __sk_buff, family: Family) -> Settle {
    match settle_frame(raw, family as u32) {
        NOTHING => Settle::Nothing,
        FIELD => Settle::Field,
        _ => Settle::GiveUp,
    }
}

/// Bytes in reach, bytes of the whole frame, and payload of a segment.
#[inline(always)]
fn frame(raw: *mut __sk_buff) -> (Packet, u32, u32) {
    // SAFETY: the context is valid for the whole run of the program.
    unsafe {
        let packet = Packet::new((*raw).data as usize, (*raw).data_end as usize);
        (packet, (*raw).len, (*raw).gso_size)
    }
}

/// Follows the packet of a frame: an [`Outer`] as a word. As [`settle_frame`].
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn follow_frame(raw: *mut __sk_buff) -> u64 {
    let (packet, length, gso_size) = frame(raw);
    offload::outer(&packet, length, gso_size).pack()
}

/// Judges what the sender says of a frame: a [`Judged`] as a word. `outer` is an [`Outer`] as
/// a word, `longest` the bytes of the longest fragment. As [`settle_frame`].
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn judge_frame(raw: *mut __sk_buff, outer: u64, longest: u32) -> u64 {
    let open = open(raw);
    let (packet, length, gso_size) = frame(raw);
    if !open.somewhere && gso_size == 0 {
        return Judged::default().pack();
    }
    let mut said = Said {
        length,
        gso_size,
        gso_type: 0,
        longest,
        open,
    };
    if gso_size != 0 {
        said.gso_type = gso_type(raw);
    }
    offload::judge_packet(&packet, &said, &Outer::unpack(outer)).pack()
}

/// Judges what the sender says of a frame.
#[inline(always)]
pub fn judge(raw: *mut __sk_buff) -> Judged {
    // SAFETY: the context is valid for the whole run of the program.
    let gso_size = unsafe { (*raw).gso_size };
    // One after the other, because the stack of all functions that call each other is short.
    let longest = if gso_size == gso::BY_FRAGMENTS {
        longest_fragment(raw)
    } else {
        0
    };
    let outer = follow_frame(raw);
    Judged::unpack(judge_frame(raw, outer, longest))
}
