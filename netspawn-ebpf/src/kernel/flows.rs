//! What the host has begun with machines, where they may not reach it (`host = "deny"`).

use aya_ebpf::{
    bindings::{__sk_buff, bpf_sock, bpf_sock_tuple},
    helpers::generated::{
        bpf_ktime_get_coarse_ns, bpf_sk_lookup_udp, bpf_sk_release, bpf_skc_lookup_tcp,
    },
};
use netspawn_ebpf::{
    abi::{Flow, NO_FLOW},
    decide::reply::{PATIENCE, answered, is, opened},
    wire::protocol,
};

use super::{maps::HOST_FLOWS, packet::Packet};

/// How much older than it is an entry may be: not every packet writes.
const STALE: u64 = 1_000_000_000;
/// `BPF_F_CURRENT_NETNS`: that of the skb's device.
const THIS_NAMESPACE: u64 = u64::MAX;
/// `TCP_LISTEN` and `TCP_NEW_SYN_RECV` of include/net/tcp_states.h: of connections that a
/// machine begins.
const LISTENS: u32 = 10;
const ASKED_FOR: u32 = 12;

/// Notes what the host sends to a machine.
#[inline(always)]
pub fn note(frame: &Packet) {
    let flow = opened(frame);
    if flow != NO_FLOW {
        write(&flow);
    }
}

#[inline(never)]
fn write(flow: &Flow) {
    // SAFETY: takes nothing.
    let now = unsafe { bpf_ktime_get_coarse_ns() };
    match HOST_FLOWS.get_ptr_mut(flow) {
        // SAFETY: an entry that is reused while it is written to is another flow's, which
        // lasts a little longer.
        Some(last) => unsafe {
            if now - *last > STALE {
                *last = now;
            }
        },
        None => {
            // Out of memory: the next packet tries again.
            let _ = HOST_FLOWS.insert(flow, now, 0);
        }
    }
}

/// Whether a machine's packet for the host answers it.
#[inline(never)]
pub fn answers(raw: *mut __sk_buff) -> bool {
    let frame = Packet::of(raw);
    let flow = answered(&frame);
    flow != NO_FLOW && (is_open(&flow) || has_socket(raw, &flow))
}

#[inline(never)]
fn is_open(flow: &Flow) -> bool {
    // SAFETY: takes nothing.
    let now = unsafe { bpf_ktime_get_coarse_ns() };
    // SAFETY: values are single words.
    match unsafe { HOST_FLOWS.get(flow) } {
        Some(last) => is(flow, protocol::TCP) || now < *last + PATIENCE,
        None => false,
    }
}

/// Whether a socket of the host has this machine as its other end: for a table that has
/// no room, and packets of the host's that do not pass the uplink.
#[inline(never)]
fn has_socket(raw: *mut __sk_buff, flow: &Flow) -> bool {
    let [host0, host1, machine0, machine1, ports] = *flow;
    let (host_port, machine_port) = ((ports >> 16) as u16, ports as u16);
    let both = u64::from(machine_port.to_be()) | u64::from(host_port.to_be()) << 16;
    let v4 = host0 == 0 && host1 as u32 == u32::from_ne_bytes([0, 0, 0xff, 0xff]);
    // The machine's address, the host's, and the ports, in double words: the verifier
    // wants the stack aligned.
    let (mut tuple, size) = if v4 {
        let addresses = machine1 >> 32 | (host1 >> 32) << 32;
        ([addresses, both, 0, 0, 0], 12)
    } else {
        ([machine0, machine1, host0, host1, both], 36)
    };
    let tuple = tuple.as_mut_ptr().cast::<bpf_sock_tuple>();
    if is(flow, protocol::TCP) {
        // SAFETY: the context is valid, the tuple as long as said.
        let socket = unsafe { bpf_skc_lookup_tcp(raw.cast(), tuple, size, THIS_NAMESPACE, 0) };
        return holds(socket, |socket| {
            // SAFETY: the socket is held.
            let state = unsafe { (*socket).state };
            state != LISTENS && state != ASKED_FOR
        });
    }
    if is(flow, protocol::UDP) {
        // SAFETY: as above.
        let socket = unsafe { bpf_sk_lookup_udp(raw.cast(), tuple, size, THIS_NAMESPACE, 0) };
        return holds(socket, |socket| {
            // SAFETY: as above.
            unsafe { (*socket).dst_port != 0 }
        });
    }
    false
}

/// Looks at a socket, if there is one, and gives it back.
#[inline(always)]
fn holds(socket: *mut bpf_sock, look: impl FnOnce(*mut bpf_sock) -> bool) -> bool {
    if socket.is_null() {
        return false;
    }
    let found = look(socket);
    // SAFETY: it was found just now, and is not used again.
    unsafe { bpf_sk_release(socket.cast()) };
    found
}
