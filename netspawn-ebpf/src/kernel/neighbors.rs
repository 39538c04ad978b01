//! Which neighbors machines may have the kernel look for.

use aya_ebpf::{bindings::__sk_buff, helpers::generated::bpf_ktime_get_coarse_ns};
use netspawn_ebpf::{
    abi::{self, NO_NEIGHBOR, Neighbor, Owner},
    decide::{
        budget,
        neighbor::{Link, WINDOW, heard, sought},
    },
    verdict::Verdict,
};

use super::{
    maps::{ASKED, BUDGETS, Maps, SHARED, STATIONS},
    packet::Packet,
};

/// How much older than it could be an entry of [`ASKED`] may grow: not every packet
/// writes.
const STALE: u64 = 1_000_000_000;

/// Notes who was heard in a frame from the network.
#[inline(always)]
pub fn hear(frame: &Packet, verdict: &Verdict<'_>, ifindex: u32, vlan: u16) {
    let address = heard(frame, verdict);
    if address == [0; 2] {
        return;
    }
    note(&abi::neighbor(&address, ifindex, u32::from(vlan)));
}

#[inline(never)]
fn note(station: &Neighbor) {
    // SAFETY: the value is not read.
    if unsafe { STATIONS.get(station) }.is_none() {
        // Raced, or out of memory: it is noted when it is heard again.
        let _ = STATIONS.insert(station, 1, 0);
    }
}

/// Whether an endpoint may have the kernel look for the neighbor on a link that its packet
/// needs, or remember it: one that was heard, one that was looked for just now, or one
/// that its budget and that of all allow.
#[inline(never)]
pub fn may_seek(raw: *mut __sk_buff, id: Owner, link: Link) -> bool {
    let frame = Packet::of(raw);
    let neighbor = &sought(&frame, link, id, &Maps);
    if *neighbor == NO_NEIGHBOR {
        return true;
    }
    // SAFETY: the value is not read.
    if unsafe { STATIONS.get(neighbor) }.is_some() {
        return true;
    }
    // SAFETY: takes nothing.
    let now = unsafe { bpf_ktime_get_coarse_ns() };
    if let Some(until) = ASKED.get_ptr_mut(neighbor) {
        // SAFETY: an entry that is reused while it is written to is another neighbor's,
        // who may go on a little longer.
        let until = unsafe { &mut *until };
        if now < *until {
            if *until < now + (WINDOW - STALE) {
                *until = now + WINDOW;
            }
            return true;
        }
    }
    let (Some(own), Some(shared)) = (BUDGETS.get_ptr_mut(id), SHARED.get_ptr_mut(0)) else {
        return false;
    };
    // SAFETY: entries are in their maps for as long as these live; two CPUs that take the
    // same token let one neighbor too many through.
    let allowed = unsafe {
        budget::take(&mut (*own).neighbors, now, budget::NEIGHBORS)
            && budget::take(&mut (*shared).neighbors, now, budget::ALL_NEIGHBORS)
    };
    if allowed {
        // Raced, or out of memory: the next packet costs another token.
        let _ = ASKED.insert(neighbor, now + WINDOW, 0);
    }
    allowed
}
