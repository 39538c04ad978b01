//! Reads what the kernel knows of a frame's past, see [`netspawn_ebpf::decide::past`].

use core::{ffi::c_void, mem::MaybeUninit};

use aya_ebpf::{bindings::__sk_buff, helpers::generated::bpf_probe_read_kernel};
use netspawn_ebpf::{
    abi::KernelFields,
    decide::past::{Past, Routed},
};

/// Of the kernel that runs; the loader sets it.
#[unsafe(no_mangle)]
static NETSPAWN_FIELDS: KernelFields = KernelFields {
    skb_dev: 0,
    skb_sk: 0,
    skb_dst: 0,
    skb_mac_len: 0,
    dst_dev: 0,
    dev_net: 0,
    sock_net: 0,
    known: 0,
};

/// `SKB_DST_NOREF` of include/linux/skbuff.h, in the pointer's last bit.
const NOREF: usize = 1;

const SOCKET: u32 = 1 << 8;
const RECEIVED: u32 = 1 << 9;

/// What the kernel knows of the frame's past.
#[inline(always)]
pub fn past(raw: *mut __sk_buff) -> Past {
    let packed = read(raw);
    Past {
        routed: match packed & 0xff {
            0 => Routed::Nowhere,
            1 => Routed::Here,
            _ => Routed::Elsewhere,
        },
        socket: packed & SOCKET != 0,
        received: packed & RECEIVED != 0,
    }
}

/// [`Past`] in one word. A function of its own, which is not written out for each caller.
#[inline(never)]
fn read(raw: *mut __sk_buff) -> u32 {
    // SAFETY: a live static, which the compiler is not to take for what it says here.
    let fields = unsafe { (&raw const NETSPAWN_FIELDS).read_volatile() };
    if fields.known == 0 {
        return unknown(raw);
    }
    // The context is the kernel's own skb.
    let skb = raw as usize;
    let dev = word(skb, fields.skb_dev);
    let net = word(dev, fields.dev_net);
    let dst = word(skb, fields.skb_dst) & !NOREF;
    let routed = if dst == 0 {
        Routed::Nowhere
    } else if word(word(dst, fields.dst_dev), fields.dev_net) == net {
        Routed::Here
    } else {
        Routed::Elsewhere
    };
    let sock = word(skb, fields.skb_sk);
    let mut packed = routed as u32;
    if sock != 0 && word(sock, fields.sock_net) == net {
        packed |= SOCKET;
    }
    if value::<u16>(skb, fields.skb_mac_len) != Some(0) {
        packed |= RECEIVED;
    }
    packed
}

/// Where kernel memory cannot be read: by what the context says alone, to which devices of
/// another namespace look like those of this one.
#[inline(always)]
fn unknown(raw: *mut __sk_buff) -> u32 {
    // SAFETY: the context is valid for the whole run of the program.
    let sock = unsafe { (*raw).__bindgen_anon_2.sk };
    let mut packed = Routed::Here as u32;
    if !sock.is_null() {
        packed |= SOCKET;
    }
    packed
}

/// A pointer in a structure of the kernel's; 0 where there is none to be read.
#[inline(always)]
fn word(structure: usize, offset: u32) -> usize {
    value(structure, offset).unwrap_or(0)
}

#[inline(always)]
fn value<T: Copy>(structure: usize, offset: u32) -> Option<T> {
    let mut found = MaybeUninit::<T>::zeroed();
    // SAFETY: the helper reads any address, and fails where nothing is; it writes as many
    // bytes as `found` has.
    let result = unsafe {
        bpf_probe_read_kernel(
            found.as_mut_ptr().cast::<c_void>(),
            size_of::<T>() as u32,
            (structure + offset as usize) as *const c_void,
        )
    };
    // SAFETY: all of it is zero, or what was read.
    (result == 0).then_some(unsafe { found.assume_init() })
}
