//! Direct packet access, in the form that the verifier follows: a pointer, an
//! offset it knows the bounds of, and a comparison with the packet's end.

use aya_ebpf::bindings::__sk_buff;
use netspawn_ebpf::wire::{Frame, FrameMut, Pod};

/// No offset into a frame reaches this (the verifier's `MAX_PACKET_OFF`).
const MAX_OFFSET: usize = 0x7fff;

/// The bytes of a frame in reach, from the Ethernet header on.
pub struct Packet {
    start: usize,
    end: usize,
}

impl Packet {
    /// A view of what lies between the context's `data` and `data_end`. Stale
    /// after any helper that moves packet data.
    #[inline(always)]
    pub fn new(start: usize, end: usize) -> Self {
        Packet { start, end }
    }

    /// The bytes of an skb in reach, in a function of its own: LLVM would have the caller
    /// read the pointers, cut to 32 bits.
    #[inline(always)]
    pub fn of(raw: *mut __sk_buff) -> Self {
        // SAFETY: the context is valid for the whole run of the program.
        let (start, end) = unsafe {
            (
                (&raw const (*raw).data).read_volatile(),
                (&raw const (*raw).data_end).read_volatile(),
            )
        };
        Packet::new(start as usize, end as usize)
    }

    /// Bytes in reach.
    #[inline(always)]
    pub fn reach(&self) -> usize {
        self.end - self.start
    }

    #[inline(always)]
    fn at<T>(&self, offset: usize) -> Option<*mut T> {
        if offset > MAX_OFFSET {
            return None;
        }
        let place = self.start + offset;
        if place + size_of::<T>() > self.end {
            return None;
        }
        Some(place as *mut T)
    }
}

impl Frame for Packet {
    #[inline(always)]
    fn read<T: Pod>(&self, offset: usize) -> Option<T> {
        // SAFETY: `at` has checked that all of `T` is in reach; any bytes are a
        // `T`; no alignment is assumed.
        self.at::<T>(offset)
            .map(|place| unsafe { place.read_unaligned() })
    }
}

impl FrameMut for Packet {
    #[inline(always)]
    fn write<T: Pod>(&mut self, offset: usize, value: T) -> Option<()> {
        // SAFETY: `at` has checked that all of `T` is in reach; no alignment is
        // assumed.
        self.at::<T>(offset)
            .map(|place| unsafe { place.write_unaligned(value) })
    }
}
