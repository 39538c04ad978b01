//! Tells the agent of frames that somebody should not have sent.

use aya_ebpf::{bindings::__sk_buff, helpers::generated::bpf_ktime_get_coarse_ns};
use netspawn_ebpf::{
    abi::{Event, NOBODY, Owner, SNAP_LEN},
    decide::budget::{self, take},
    verdict::Reason,
    wire::Frame as _,
};

use super::{
    counters,
    maps::{BUDGETS, EVENTS},
    packet::Packet,
};

/// Tells of a frame, unless its endpoint has caused too many events already. Lost, and
/// counted, where nobody reads them.
#[inline(always)]
pub fn tell(reason: Reason, endpoint: Owner, ifindex: u32, length: u32, frame: &Packet) {
    if reason.is_told() && endpoint != NOBODY {
        write(reason as u32, endpoint, ifindex, length, frame);
    }
}

#[inline(always)]
fn write(reason: u32, endpoint: Owner, ifindex: u32, length: u32, frame: &Packet) {
    // SAFETY: takes nothing.
    let now = unsafe { bpf_ktime_get_coarse_ns() };
    let Some(budget) = BUDGETS.get_ptr_mut(endpoint) else {
        return;
    };
    // SAFETY: the entry is in the map for as long as the map lives; two CPUs that
    // take the same token let one event too many through.
    if !take(unsafe { &mut (*budget).events }, now, budget::OWN) {
        return;
    }
    let Some(mut entry) = EVENTS.reserve::<Event>(0) else {
        counters::event_lost();
        return;
    };
    let event = entry.as_mut_ptr();
    // SAFETY: the entry is of that type, and ours until it is submitted; every field
    // is written.
    unsafe {
        (*event).time = now;
        (*event).reason = reason;
        (*event).endpoint = endpoint;
        (*event).ifindex = ifindex;
        (*event).length = length;
        (*event).frame = [0; SNAP_LEN];
        let words = (&raw mut (*event).frame).cast::<u16>();
        for word in 0..SNAP_LEN / 2 {
            // The end of the loop: with zeroes written in its place the verifier of
            // Linux 6.1 follows both ways of each round, 2^48 in all.
            let Some(value) = frame.read::<u16>(word * 2) else {
                break;
            };
            words.add(word).write(value);
        }
    }
    entry.submit(0);
}

/// As [`tell`], of a frame at tc.
#[inline(always)]
pub fn tell_skb(reason: Reason, endpoint: Owner, raw: *mut __sk_buff) {
    if reason.is_told() && endpoint != NOBODY {
        tell_frame(raw, reason as u32, endpoint);
    }
}

/// A global function, which the verifier walks once, rather than for each way that leads
/// here.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn tell_frame(raw: *mut __sk_buff, reason: u32, endpoint: Owner) -> u32 {
    // SAFETY: the context is valid for the whole run of the program.
    let (frame, ifindex, length) = unsafe {
        let frame = Packet::new((*raw).data as usize, (*raw).data_end as usize);
        (frame, (*raw).ifindex, (*raw).len)
    };
    write(reason, endpoint, ifindex, length, &frame);
    0
}
