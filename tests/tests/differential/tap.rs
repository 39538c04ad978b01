//! One end of a veth: frames go out by a system call each, those that come in are read
//! from memory that the kernel writes to.

use std::{
    io,
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
    ptr,
    sync::atomic::{AtomicU32, Ordering},
};

use anyhow::{Context as _, Result, ensure};
use netspawn_tests::Ns;

/// Bytes of a slot of the ring: a header and the longest frame of an MTU of 1,500.
const SLOT: u32 = 2048;
const SLOTS: u32 = 512;
const BLOCK: u32 = 1 << 20;

/// `PACKET_IGNORE_OUTGOING` of include/uapi/linux/if_packet.h.
const IGNORE_OUTGOING: i32 = 23;

/// A packet socket on an interface.
pub struct Tap {
    socket: OwnedFd,
    ring: *mut u8,
    next: u32,
}

// SAFETY: the ring is used by its owner alone.
unsafe impl Send for Tap {}

impl Tap {
    /// Opens an interface of a namespace.
    pub fn open(ns: &Ns, interface: &str) -> Result<Self> {
        let ifindex = ns.ifindex(interface)?;
        let socket = ns.enter(|| socket(ifindex))?;
        let length = (SLOT * SLOTS) as usize;
        // SAFETY: maps the whole ring at a place of the kernel's choice; the socket
        // outlives the mapping.
        let ring = unsafe {
            libc::mmap(
                ptr::null_mut(),
                length,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                socket.as_raw_fd(),
                0,
            )
        };
        ensure!(
            ring != libc::MAP_FAILED,
            "cannot map the ring of {interface}: {}",
            io::Error::last_os_error()
        );
        Ok(Tap {
            socket,
            ring: ring.cast(),
            next: 0,
        })
    }

    /// Sends a frame. The other end has dealt with it on return: a veth without steering
    /// hands frames over in the soft interrupt that ends the system call.
    pub fn send(&self, frame: &[u8]) -> io::Result<()> {
        // SAFETY: the buffer is as long as said.
        let sent = unsafe {
            libc::send(
                self.socket.as_raw_fd(),
                frame.as_ptr().cast(),
                frame.len(),
                0,
            )
        };
        if usize::try_from(sent) == Ok(frame.len()) {
            Ok(())
        } else {
            Err(io::Error::last_os_error())
        }
    }

    /// Hands over what has come in.
    pub fn receive(&mut self, mut each: impl FnMut(&[u8])) {
        loop {
            // SAFETY: `next` is below `SLOTS`, so the slot lies within the ring.
            let slot = unsafe { self.ring.add((self.next * SLOT) as usize) };
            // SAFETY: a slot starts with its status, a word that the kernel and this
            // process change in turn.
            let status = unsafe { AtomicU32::from_ptr(slot.cast()) };
            if status.load(Ordering::Acquire) & libc::TP_STATUS_USER == 0 {
                return;
            }
            // SAFETY: the slot is this process's until its status is changed, and starts
            // with this header.
            let header = unsafe { &*slot.cast::<libc::tpacket2_hdr>() };
            // SAFETY: the kernel has written as many bytes there.
            let frame = unsafe {
                std::slice::from_raw_parts(
                    slot.add(header.tp_mac.into()),
                    header.tp_snaplen as usize,
                )
            };
            each(frame);
            status.store(libc::TP_STATUS_KERNEL, Ordering::Release);
            self.next = (self.next + 1) % SLOTS;
        }
    }
}

impl Drop for Tap {
    fn drop(&mut self) {
        // SAFETY: the mapping is this value's, nothing refers to it any more.
        unsafe { libc::munmap(self.ring.cast(), (SLOT * SLOTS) as usize) };
    }
}

fn socket(ifindex: u32) -> Result<OwnedFd> {
    // SAFETY: the call takes no pointers; a non-negative result is a new descriptor.
    let socket = unsafe {
        let flags = libc::SOCK_RAW | libc::SOCK_CLOEXEC;
        match libc::socket(libc::AF_PACKET, flags, 0) {
            -1 => return Err(io::Error::last_os_error()).context("no packet socket"),
            fd => OwnedFd::from_raw_fd(fd),
        }
    };
    let version = libc::tpacket_versions::TPACKET_V2 as i32;
    set(&socket, libc::PACKET_VERSION, &version)?;
    set(&socket, IGNORE_OUTGOING, &1)?;
    set(&socket, libc::PACKET_QDISC_BYPASS, &1)?;
    let request = libc::tpacket_req {
        tp_block_size: BLOCK,
        tp_block_nr: SLOT * SLOTS / BLOCK,
        tp_frame_size: SLOT,
        tp_frame_nr: SLOTS,
    };
    set(&socket, libc::PACKET_RX_RING, &request)?;
    // SAFETY: all-zero is a valid sockaddr_ll.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = libc::AF_PACKET.try_into()?;
    address.sll_protocol = 3_u16.to_be();
    address.sll_ifindex = ifindex.try_into()?;
    // SAFETY: the address is a sockaddr_ll of the length said.
    let bound = unsafe {
        libc::bind(
            socket.as_raw_fd(),
            (&raw const address).cast(),
            size_of_val(&address).try_into()?,
        )
    };
    ensure!(
        bound == 0,
        "cannot listen on interface {ifindex}: {}",
        io::Error::last_os_error()
    );
    Ok(socket)
}

fn set<T>(socket: &OwnedFd, option: i32, value: &T) -> Result<()> {
    // SAFETY: the value is of the length said.
    let done = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_PACKET,
            option,
            ptr::from_ref(value).cast(),
            size_of::<T>().try_into()?,
        )
    };
    ensure!(
        done == 0,
        "option {option} of a packet socket: {}",
        io::Error::last_os_error()
    );
    Ok(())
}
