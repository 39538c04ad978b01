//! Counts what the programs do.

use netspawn_ebpf::{
    abi::{DropKey, EVENTS_LOST, NOBODY, Owner, Traffic},
    verdict::Reason,
};

use super::maps::{COUNTS, DROPS, TRAFFIC};

/// Counts a frame under its reason.
#[inline(always)]
pub fn reason(reason: Reason) {
    count(reason as u32);
}

/// Counts an event that found no room.
#[inline(always)]
pub fn event_lost() {
    count(EVENTS_LOST);
}

#[inline(always)]
fn count(index: u32) {
    if let Some(count) = COUNTS.get_ptr_mut(index) {
        // SAFETY: the slot is this CPU's own, and programs are not preempted by
        // themselves.
        unsafe { *count += 1 };
    }
}

/// Charges a dropped frame to an endpoint, if there is one.
#[inline(always)]
pub fn charge(cause: Reason, endpoint: Owner) {
    if endpoint == NOBODY {
        return;
    }
    let key = DropKey {
        endpoint,
        reason: cause as u32,
    };
    match DROPS.get_ptr_mut(key) {
        // SAFETY: the slot is this CPU's own, as in `reason`.
        Some(count) => unsafe { *count += 1 },
        None => {
            // Full or raced: the count by reason alone has been taken.
            let _ = DROPS.insert(key, 1, 0);
        }
    }
}

/// Counts a frame to a machine.
#[inline(always)]
pub fn received(id: Owner, bytes: u32) {
    if let Some(traffic) = slot(id) {
        traffic.rx_packets += 1;
        traffic.rx_bytes += u64::from(bytes);
    }
}

/// Counts a frame from a machine.
#[inline(always)]
pub fn sent(id: Owner, bytes: u32) {
    if let Some(traffic) = slot(id) {
        traffic.tx_packets += 1;
        traffic.tx_bytes += u64::from(bytes);
    }
}

#[inline(always)]
fn slot(id: Owner) -> Option<&'static mut Traffic> {
    // SAFETY: as in `reason`; the reference does not outlive the caller's
    // statement.
    TRAFFIC
        .get_ptr_mut(id)
        .map(|traffic| unsafe { &mut *traffic })
}
