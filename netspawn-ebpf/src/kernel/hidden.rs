//! What `__sk_buff` hides of an skb: where a checksum is left to be completed, and how a
//! super-packet is to be cut up. Read by instructions that the loader has filled in, see
//! [`netspawn_ebpf::blanks`].

use core::{arch::asm, ffi::c_void, mem::MaybeUninit};

use aya_ebpf::{bindings::__sk_buff, helpers::generated::bpf_probe_read_kernel};
use netspawn_ebpf::{
    blanks::{COPY, access, constant, field, function},
    decide::offload::{self, Judged, Said},
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

/// What the sender says of a frame.
#[inline(always)]
pub fn said(raw: *mut __sk_buff) -> Said {
    // SAFETY: the context is valid for the whole run of the program.
    let (length, gso_size) = unsafe { ((*raw).len, (*raw).gso_size) };
    let mut said = Said {
        length,
        gso_size,
        ..Said::default()
    };
    let how = known!(constant::ACCESS);
    if how == access::KERNEL_CONTEXT as u64 {
        let skb = kernel_context(raw);
        if let Some(csum) = open_sum(skb) {
            say_sum(csum, load!("u16", skb, field::MAC_HEADER) as u32, &mut said);
        }
        if gso_size != 0 {
            let head = load!("u64", skb, field::HEAD);
            let end = load!("u32", skb, field::END);
            let shared = read_only(head.wrapping_add(end), known!(constant::SHARED_INFO));
            said.gso_type = load!("u32", shared, field::GSO_TYPE) as u32;
        }
    } else if how == access::PROBE as u64 {
        probe_sum(raw as u64, &mut said);
        if gso_size != 0 {
            said.gso_type = probe_gso_type(raw as u64).unwrap_or(0);
        }
    }
    said
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
fn say_sum(csum: u32, mac_header: u32, said: &mut Said) {
    said.partial = true;
    said.start = (csum & 0xffff).wrapping_sub(mac_header);
    said.field = said.start.wrapping_add(csum >> 16);
}

#[inline(always)]
fn probe_sum(raw: u64, said: &mut Said) {
    let mut fields = MaybeUninit::<[u64; COPY / 8]>::uninit();
    if !copy(
        fields.as_mut_ptr().cast(),
        known!(constant::COPY_LENGTH),
        raw.wrapping_add(known!(constant::COPY_FROM)),
    ) {
        return;
    }
    let back = known!(constant::COPY_BACK);
    let Some(csum) = open_sum((fields.as_ptr() as u64).wrapping_add(back)) else {
        return;
    };
    // On failure the sum is open somewhere: nowhere that is allowed.
    let mut mac_header = u16::MAX;
    copy(
        (&raw mut mac_header).cast(),
        2,
        raw.wrapping_add(known!(constant::MAC_HEADER)),
    );
    say_sum(csum, mac_header.into(), said);
}

#[inline(always)]
fn probe_gso_type(raw: u64) -> Option<u32> {
    let (mut head, mut end, mut kind) = (0u64, 0u32, 0u32);
    let head_at = raw.wrapping_add(known!(constant::HEAD));
    let end_at = raw.wrapping_add(known!(constant::END));
    if !copy((&raw mut head).cast(), 8, head_at) || !copy((&raw mut end).cast(), 4, end_at) {
        return None;
    }
    let shared = head.wrapping_add(end.into());
    let kind_at = shared.wrapping_add(known!(constant::GSO_TYPE));
    copy((&raw mut kind).cast(), 4, kind_at).then_some(kind)
}

/// Judges what the sender says of a frame: a [`Judged`] as a word. A global function, which
/// the verifier walks once, rather than for each way that leads here; its result is one of
/// which nothing is known.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn judge_frame(raw: *mut __sk_buff) -> u64 {
    // SAFETY: the context is valid for the whole run of the program.
    let packet = unsafe { Packet::new((*raw).data as usize, (*raw).data_end as usize) };
    offload::judge(&packet, &said(raw)).pack()
}

/// Judges what the sender says of a frame.
#[inline(always)]
pub fn judge(raw: *mut __sk_buff) -> Judged {
    Judged::unpack(judge_frame(raw))
}
