//! Frames of which a driver, or a sender, leaves little at hand: what the guard looks for
//! is found all the same.

use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};

use anyhow::{Context as _, Result, ensure};
use etherparse::{IpHeaders, IpNumber, Ipv4Extensions, Ipv4Header, Ipv4Options, PacketBuilder};
use netspawn_tests::{Attached, Capture, HOST0, Lab, Machine, Mode, in_each_mode, wait_until};

const SENDER: &str = "web";
const RECEIVER: &str = "db";
/// Longer than a page, or else the kernel makes one piece of it.
const LONG: usize = 5_000;
/// Bytes of which the first piece consists.
const AT_HAND: u16 = 34;
const SOON: std::time::Duration = std::time::Duration::from_secs(10);

fn lab() -> Result<Lab> {
    Lab::builder().usual_machines().port_mtu(9000).build()
}

/// Sends a frame in pieces, of which the first has so many bytes.
fn send_in_pieces(machine: &Machine, frame: &[u8], first: u16) -> Result<()> {
    let ifindex = machine.ns.ifindex(HOST0)?;
    machine.ns.enter(|| {
        // SAFETY: takes numbers only.
        let socket = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW, 0) };
        ensure!(socket >= 0, std::io::Error::last_os_error());
        // SAFETY: it was just made, and nobody else has it.
        let socket = unsafe { OwnedFd::from_raw_fd(socket) };
        let on: libc::c_int = 1;
        // SAFETY: the option's value is as long as said.
        let result = unsafe {
            libc::setsockopt(
                socket.as_raw_fd(),
                libc::SOL_PACKET,
                libc::PACKET_VNET_HDR,
                (&raw const on).cast(),
                size_of_val(&on) as libc::socklen_t,
            )
        };
        ensure!(result == 0, std::io::Error::last_os_error());
        // SAFETY: all-zero is a valid address.
        let mut to: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        to.sll_family = libc::AF_PACKET as u16;
        to.sll_ifindex = ifindex.cast_signed();
        let [low, high] = first.to_ne_bytes();
        let bytes = [&[0, 0, low, high, 0, 0, 0, 0, 0, 0][..], frame].concat();
        // SAFETY: buffer and address are as long as said.
        let sent = unsafe {
            libc::sendto(
                socket.as_raw_fd(),
                bytes.as_ptr().cast(),
                bytes.len(),
                0,
                (&raw const to).cast(),
                size_of_val(&to) as libc::socklen_t,
            )
        };
        ensure!(sent >= 0, std::io::Error::last_os_error());
        Ok(())
    })
}

fn dropped(lab: &Lab, reason: &str) -> Result<u64> {
    let list = lab.json("list")?;
    let machines = list.as_array().context("no list")?;
    let sender = machines.iter().find(|entry| entry["name"] == SENDER);
    Ok(sender.context("no sender")?["drops"][reason]
        .as_u64()
        .unwrap_or(0))
}

/// A datagram behind so many bytes of IPv4 options.
fn v4(lab: &Lab, options: usize, ports: (u16, u16), text: &[u8]) -> Result<Vec<u8>> {
    let (from, to) = (lab.machine(SENDER), lab.machine(RECEIVER));
    let mut header = Ipv4Header {
        time_to_live: 64,
        source: from.v4().octets(),
        destination: to.v4().octets(),
        ..Ipv4Header::default()
    };
    header.options = Ipv4Options::try_from(&vec![1; options][..])?;
    let mut frame = Vec::new();
    PacketBuilder::ethernet2(from.ns.mac(HOST0)?, lab.host.mac(from.port())?)
        .ip(IpHeaders::Ipv4(header, Ipv4Extensions::default()))
        .udp(ports.0, ports.1)
        .write(&mut frame, text)?;
    Ok(frame)
}

/// A datagram behind destination options of so many bytes, a multiple of eight.
fn v6(lab: &Lab, options: usize, ports: (u16, u16), text: &[u8]) -> Result<Vec<u8>> {
    let (from, to) = (lab.machine(SENDER), lab.machine(RECEIVER));
    let mut bytes = vec![0; options];
    bytes[..2].copy_from_slice(&[17, u8::try_from(options / 8 - 1)?]);
    bytes.extend([ports.0, ports.1].map(u16::to_be_bytes).concat());
    bytes.extend(u16::try_from(8 + text.len())?.to_be_bytes());
    bytes.extend([0, 0]);
    bytes.extend(text);
    let mut frame = Vec::new();
    PacketBuilder::ethernet2(from.ns.mac(HOST0)?, lab.host.mac(from.port())?)
        .ipv6(from.v6().octets(), to.v6().octets(), 64)
        .write(&mut frame, IpNumber::EXPERIMENTAL_AND_TESTING_0, &bytes)?;
    // Extension headers are bytes here, so the builder must not see their number.
    frame[14 + 6] = 60;
    Ok(frame)
}

fn dhcp_server_messages_in_pieces_are_seen(mode: Mode) -> Result<()> {
    let on = Attached::new(lab()?, mode)?;
    let lab = &on.lab;
    let sender = lab.machine(SENDER);
    let mut receiver = Capture::incoming(&lab.machine(RECEIVER).ns, HOST0)?;
    let text = |words: &str| {
        let mut text = vec![b'.'; LONG];
        text.extend(words.as_bytes());
        text
    };
    let honest = text("honest");
    let rogue = text("rogue");
    for (frame, reason) in [
        (v4(lab, 40, (67, 68), &rogue)?, "rogue_dhcp"),
        (v4(lab, 0, (67, 68), &rogue)?, "rogue_dhcp"),
        (v6(lab, 8, (547, 546), &rogue)?, "rogue_dhcp"),
        (v6(lab, 176, (547, 546), &rogue)?, "rogue_dhcp"),
        // Nobody has so many options, and where they end is too far away.
        (v6(lab, 1024, (547, 546), &rogue)?, "bad_frame"),
    ] {
        let before = dropped(lab, reason)?;
        send_in_pieces(sender, &frame, AT_HAND)?;
        let counted = wait_until(SOON, || dropped(lab, reason).is_ok_and(|now| now > before));
        ensure!(counted, "no {reason} for {:02x?}", &frame[..96]);
    }
    for frame in [
        v4(lab, 40, (4000, 5000), &honest)?,
        v6(lab, 176, (4000, 5000), &honest)?,
    ] {
        send_in_pieces(sender, &frame, AT_HAND)?;
    }
    let all = wait_until(SOON, || receiver.containing(b"honest").len() == 2);
    ensure!(all, "what is honest has not arrived");
    ensure!(
        receiver.containing(b"rogue").is_empty(),
        "a server was heard"
    );
    Ok(())
}

in_each_mode! {
    dhcp_server_messages_in_pieces_are_seen
}
