//! Turns a dropped packet into the ICMP error about it, at tc.

use aya_ebpf::{
    bindings::{__sk_buff, bpf_adj_room_mode::BPF_ADJ_ROOM_MAC},
    helpers::generated::{
        bpf_ktime_get_coarse_ns, bpf_skb_adjust_room, bpf_skb_change_tail, bpf_skb_pull_data,
    },
};
use netspawn_ebpf::{
    abi::Owner,
    decide::{
        budget,
        error::{self, Toward},
    },
    rewrite::error::{HEADERS4, HEADERS6, error4, error6, quoted, settle},
    verdict::{Error, Family},
    wire::{Frame, Ip6, Ipv4Hdr, L3, Pod},
};

use super::{
    hidden::{self, Settle},
    maps::{BUDGETS, Maps},
    packet::Packet,
};

/// Which error, about what, to whom, in one word: functions of programs take few
/// arguments.
pub const fn pack(error: Error, family: Family, toward: Toward) -> u32 {
    error as u32 | (family as u32) << 8 | (toward as u32) << 16
}

/// In that word: the sum that is left open is to be settled.
const SETTLE: u32 = 1 << 24;

const fn error_of(what: u32) -> Error {
    match what & 0xff {
        1 => Error::TimeExceeded,
        2 => Error::TooBig,
        3 => Error::HostUnreachable,
        _ => Error::NoRoute,
    }
}

const fn toward(what: u32) -> Toward {
    match what >> 16 & 0xff {
        0 => Toward::Network,
        1 => Toward::Host,
        _ => Toward::Machine,
    }
}

/// Makes the frame the error about itself, addressed to where it came from. Whether
/// that was done: otherwise the frame is to be dropped, whatever is left of it.
#[inline(always)]
pub fn make(raw: *mut __sk_buff, what: u32, mtu: u32, id: Owner) -> bool {
    let family = if is_v4(what) { Family::V4 } else { Family::V6 };
    // Found out here, because the stack of all functions that call each other is short.
    match hidden::settle(raw, family) {
        Settle::GiveUp => false,
        Settle::Field => make_error(raw, what | SETTLE, mtu, id) != 0,
        Settle::Nothing => make_error(raw, what, mtu, id) != 0,
    }
}

const fn is_v4(what: u32) -> bool {
    what >> 8 & 0xff == Family::V4 as u32
}

/// A global function, which the verifier walks once, rather than for each way that leads
/// here.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn make_error(raw: *mut __sk_buff, what: u32, mtu: u32, id: Owner) -> u32 {
    let skb = Skb(raw);
    let made = if is_v4(what) {
        make4(&skb, what, mtu, id)
    } else {
        make6(&skb, what, mtu, id)
    };
    u32::from(made.is_some())
}

#[inline(always)]
fn make4(skb: &Skb, what: u32, mtu: u32, id: Owner) -> Option<()> {
    let frame = skb.packet();
    if !error::is_due(&frame, Family::V4) {
        return None;
    }
    let source = error::source4(&frame, toward(what), skb.ifindex(), &Maps);
    if source == [0; 4] || !in_budget(id, what) {
        return None;
    }
    let ip = frame.read::<Ipv4Hdr>(L3)?;
    let quote = skb.quote(Family::V4, u32::from(u16::from_be_bytes(ip.tot_len)));
    let sum = skb.cut(Family::V4, what, quote)?;
    skb.room(HEADERS4)?;
    error4(
        &mut skb.packet(),
        error_of(what),
        mtu,
        source,
        quote as usize,
        sum,
    )
}

#[inline(always)]
fn make6(skb: &Skb, what: u32, mtu: u32, id: Owner) -> Option<()> {
    let frame = skb.packet();
    if !error::is_due(&frame, Family::V6) {
        return None;
    }
    let source = error::source6(&frame, toward(what), skb.ifindex(), &Maps);
    if source == [0; 2] || !in_budget(id, what) {
        return None;
    }
    let ip = Ip6::read(&frame)?;
    let quote = skb.quote(Family::V6, u32::from(ip.payload) + 40);
    let sum = skb.cut(Family::V6, what, quote)?;
    skb.room(HEADERS6)?;
    error6(
        &mut skb.packet(),
        error_of(what),
        mtu,
        source,
        quote as usize,
        sum,
    )
}

#[inline(always)]
fn in_budget(id: Owner, what: u32) -> bool {
    // SAFETY: takes nothing.
    let now = unsafe { bpf_ktime_get_coarse_ns() };
    match BUDGETS.get_ptr_mut(id) {
        // SAFETY: the entry is in the map for as long as the map lives; two CPUs
        // that take the same token let one error too many through.
        Some(own) => budget::take(unsafe { (*own).error(error_of(what)) }, now, budget::OWN),
        None => false,
    }
}

/// What is done to the skb on the way.
struct Skb(*mut __sk_buff);

/// Reads with pointers taken afresh each time: in a loop over one view LLVM works
/// out how far it may go, by arithmetic that the verifier forbids.
impl Frame for Skb {
    #[inline(always)]
    fn read<T: Pod>(&self, offset: usize) -> Option<T> {
        // SAFETY: the context is valid for the whole run of the program.
        let (data, end) = unsafe {
            (
                (&raw const (*self.0).data).read_volatile(),
                (&raw const (*self.0).data_end).read_volatile(),
            )
        };
        Packet::new(data as usize, end as usize).read(offset)
    }
}

impl Skb {
    #[inline(always)]
    fn packet(&self) -> Packet {
        // SAFETY: the context is valid for the whole run of the program.
        unsafe { Packet::new((*self.0).data as usize, (*self.0).data_end as usize) }
    }

    #[inline(always)]
    fn length(&self) -> u32 {
        // SAFETY: as above.
        unsafe { (*self.0).len }
    }

    #[inline(always)]
    fn ifindex(&self) -> u32 {
        // SAFETY: as above.
        unsafe { (*self.0).ifindex }
    }

    /// Bytes of the packet that are quoted. A super-packet is always cut, because
    /// that is what makes it an ordinary one.
    #[inline(always)]
    fn quote(&self, family: Family, length: u32) -> u32 {
        // SAFETY: as above.
        let segmented = unsafe { (*self.0).gso_size } != 0;
        let there = self.length() - L3 as u32;
        let there = if segmented { there - 8 } else { there };
        error::quote_length(family, length, there)
    }

    /// Cuts the frame to the quote, and returns its sum.
    #[inline(always)]
    fn cut(&self, family: Family, what: u32, quote: u32) -> Option<u64> {
        self.resize(L3 as u32 + quote)?;
        // Zeros add nothing to the sum.
        let padded = (quote & !7) + 8;
        self.resize(L3 as u32 + padded)?;
        // SAFETY: the context is valid; packet pointers are taken afresh.
        unsafe { bpf_skb_pull_data(self.0, self.length()) };
        let sum = quoted(self, padded as usize)?;
        self.resize(L3 as u32 + quote)?;
        if what & SETTLE != 0 {
            settle(&mut self.packet(), family, sum)
        } else {
            Some(sum)
        }
    }

    #[inline(always)]
    fn resize(&self, length: u32) -> Option<()> {
        // SAFETY: the context is valid; packet pointers are taken afresh.
        let result = unsafe { bpf_skb_change_tail(self.0, length, 0) };
        (result == 0).then_some(())
    }

    /// Makes room behind the Ethernet header.
    #[inline(always)]
    fn room(&self, bytes: usize) -> Option<()> {
        // SAFETY: as above.
        let result = unsafe { bpf_skb_adjust_room(self.0, bytes as i32, BPF_ADJ_ROOM_MAC, 0) };
        (result == 0).then_some(())
    }
}
