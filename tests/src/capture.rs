//! Frames on an interface: recorded, and sent by hand.

use std::{
    fs,
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
    path::Path,
    time::Duration,
};

use anyhow::{Context as _, Result};
use nix::sys::signal::Signal;

use crate::{cmd::Process, ns::Ns};

/// Every Ethernet type.
pub(crate) const ETH_P_ALL: u16 = 3;

/// Records every frame an interface sends or receives, from [`Capture::start`] on.
///
/// The kernel queues the frames, so none is missed and nothing needs to be waited for:
/// what was sent before [`Capture::frames`] is in it.
pub struct Capture {
    socket: OwnedFd,
    frames: Vec<Vec<u8>>,
    buffer: Vec<u8>,
}

impl Capture {
    /// Begins to record on an interface of a namespace.
    pub fn start(ns: &Ns, interface: &str) -> Result<Self> {
        let socket = packet_socket(ns, interface, ETH_P_ALL)?;
        set(&socket, libc::SOL_PACKET, libc::PACKET_AUXDATA, 1)?;
        // Without the right to exceed rmem_max the kernel cuts this down, which still does.
        let _ = set(&socket, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, 16 << 20);
        Ok(Capture {
            socket,
            frames: Vec::new(),
            // The longest super-packet with its headers.
            buffer: vec![0; 1 << 17],
        })
    }

    /// As [`Capture::start`], but only what the interface receives.
    pub fn incoming(ns: &Ns, interface: &str) -> Result<Self> {
        let mut capture = Capture::start(ns, interface)?;
        let option = libc::PACKET_IGNORE_OUTGOING;
        set(&capture.socket, libc::SOL_PACKET, option, 1)?;
        capture.clear();
        Ok(capture)
    }

    /// All frames so far, 802.1Q tags in place even where the kernel carries them aside.
    pub fn frames(&mut self) -> &[Vec<u8>] {
        while let Some(frame) = self.next() {
            self.frames.push(frame);
        }
        &self.frames
    }

    /// The frames in which these bytes occur.
    pub fn containing(&mut self, bytes: &[u8]) -> Vec<&Vec<u8>> {
        self.frames()
            .iter()
            .filter(|frame| frame.windows(bytes.len()).any(|window| window == bytes))
            .collect()
    }

    /// True as soon as a frame satisfies `wanted`; false when `limit` is over.
    pub fn wait(&mut self, limit: Duration, wanted: impl Fn(&[u8]) -> bool) -> bool {
        crate::wait_until(limit, || self.frames().iter().any(|frame| wanted(frame)))
    }

    /// Writes the frames so far as [`write_pcap`] does.
    pub fn save(&mut self, path: &Path) -> Result<()> {
        write_pcap(path, self.frames())
    }

    /// Forgets what was recorded so far.
    pub fn clear(&mut self) {
        self.frames();
        self.frames.clear();
    }

    fn next(&mut self) -> Option<Vec<u8>> {
        let mut part = libc::iovec {
            iov_base: self.buffer.as_mut_ptr().cast(),
            iov_len: self.buffer.len(),
        };
        let mut control = [0_u64; 16];
        // SAFETY: all-zero is a valid msghdr.
        let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
        message.msg_iov = &raw mut part;
        message.msg_iovlen = 1;
        message.msg_control = control.as_mut_ptr().cast();
        message.msg_controllen = size_of_val(&control);
        // SAFETY: the message points at a buffer and a control area of the lengths it says.
        let length = unsafe {
            libc::recvmsg(
                self.socket.as_raw_fd(),
                &raw mut message,
                libc::MSG_DONTWAIT,
            )
        };
        let mut frame = self.buffer[..usize::try_from(length).ok()?].to_vec();
        // SAFETY: the kernel filled the message, whose control area is still in scope.
        let header = unsafe { libc::CMSG_FIRSTHDR(&raw const message).as_ref() }?;
        if header.cmsg_type == libc::PACKET_AUXDATA {
            // SAFETY: a control message of this type carries a tpacket_auxdata.
            let aux = unsafe {
                libc::CMSG_DATA(header)
                    .cast::<libc::tpacket_auxdata>()
                    .read_unaligned()
            };
            if aux.tp_status & libc::TP_STATUS_VLAN_VALID != 0 && frame.len() >= 12 {
                let ethertype = match aux.tp_vlan_tpid {
                    0 => 0x8100,
                    other => other,
                };
                let tag = [ethertype.to_be_bytes(), aux.tp_vlan_tci.to_be_bytes()].concat();
                frame.splice(12..12, tag);
            }
        }
        Some(frame)
    }
}

/// Sends a whole Ethernet frame out of an interface, unchanged.
pub fn send_frame(ns: &Ns, interface: &str, frame: &[u8]) -> Result<()> {
    send_frames(ns, interface, frame, 1)
}

/// Sends the same frame so many times. The kernel takes milliseconds to close the socket
/// that each call makes.
pub fn send_frames(ns: &Ns, interface: &str, frame: &[u8], count: usize) -> Result<()> {
    let socket = packet_socket(ns, interface, 0)?;
    for _ in 0..count {
        // SAFETY: the buffer is as long as said.
        let sent = unsafe { libc::send(socket.as_raw_fd(), frame.as_ptr().cast(), frame.len(), 0) };
        if usize::try_from(sent) != Ok(frame.len()) {
            return Err(std::io::Error::last_os_error())
                .with_context(|| format!("cannot send a frame on {interface}"));
        }
    }
    Ok(())
}

pub(crate) fn packet_socket(ns: &Ns, interface: &str, protocol: u16) -> Result<OwnedFd> {
    let ifindex = ns.ifindex(interface)?;
    ns.enter(|| {
        // SAFETY: the call takes no pointers; a non-negative result is a new descriptor.
        let socket = unsafe {
            let flags = libc::SOCK_RAW | libc::SOCK_CLOEXEC;
            // No frame is queued before the socket is bound to its interface.
            match libc::socket(libc::AF_PACKET, flags, 0) {
                -1 => return Err(std::io::Error::last_os_error()).context("no packet socket"),
                fd => OwnedFd::from_raw_fd(fd),
            }
        };
        // SAFETY: all-zero is a valid sockaddr_ll.
        let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        address.sll_family = libc::AF_PACKET.try_into()?;
        address.sll_protocol = protocol.to_be();
        address.sll_ifindex = ifindex.try_into()?;
        // SAFETY: the address is a sockaddr_ll of the length said.
        let bound = unsafe {
            libc::bind(
                socket.as_raw_fd(),
                (&raw const address).cast(),
                size_of_val(&address).try_into()?,
            )
        };
        if bound != 0 {
            return Err(std::io::Error::last_os_error())
                .with_context(|| format!("cannot listen on {interface}"));
        }
        Ok(socket)
    })
}

pub(crate) fn set(socket: &OwnedFd, level: i32, option: i32, value: i32) -> Result<()> {
    // SAFETY: the value is an int of the length said.
    let done = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            option,
            (&raw const value).cast(),
            size_of_val(&value).try_into()?,
        )
    };
    if done != 0 {
        return Err(std::io::Error::last_os_error()).context("setsockopt");
    }
    Ok(())
}

/// `tcpdump` as a person would read it, one line a packet.
pub struct Tcpdump {
    process: Process,
}

impl Tcpdump {
    /// Starts it; on return it listens. It ends by itself after `count` packets.
    pub fn start(ns: &Ns, interface: &str, count: u32, filter: &str) -> Result<Self> {
        let mut process = ns
            .cmd("tcpdump")
            .args(["-nn", "-t", "-l", "--immediate-mode", "-Z", "root"])
            .args(["-c", &count.to_string(), "-i", interface])
            .args(filter.split_whitespace())
            .start()?;
        process.wait_line(Duration::from_secs(10), |line| {
            line.contains("listening on")
        })?;
        Ok(Tcpdump { process })
    }

    /// Waits until a line satisfies `wanted`, at most `limit`.
    pub fn wait(&mut self, limit: Duration, wanted: impl Fn(&str) -> bool) -> Result<String> {
        self.process.wait_line(limit, wanted)
    }

    /// Ends it and returns its lines.
    pub fn stop(mut self) -> Result<Vec<String>> {
        let text = if self.process.running() {
            self.process
                .end(Signal::SIGINT, Duration::from_secs(5))?
                .stdout
        } else {
            self.process.out()
        };
        Ok(text.lines().map(str::to_owned).collect())
    }
}

/// Writes frames as a pcap file that tcpdump and wireshark read.
pub fn write_pcap(path: &Path, frames: &[Vec<u8>]) -> Result<()> {
    // Magic, version 2.4, no time zone, no accuracy, longest frame, Ethernet.
    let mut file = 0xa1b2_c3d4_u32.to_ne_bytes().to_vec();
    file.extend([2_u16, 4].map(u16::to_ne_bytes).concat());
    file.extend([0_u32, 0, 1 << 18, 1].map(u32::to_ne_bytes).concat());
    for frame in frames {
        let length = u32::try_from(frame.len())?;
        file.extend([0, 0, length, length].map(u32::to_ne_bytes).concat());
        file.extend(frame);
    }
    fs::write(path, file).with_context(|| format!("cannot write {}", path.display()))
}
