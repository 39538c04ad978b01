//! What holds for every frame in every state of the tables, and inputs that say both.
//!
//! An input is a head and a frame: policy, port and context, then the number of changes
//! to the world of the rows and the changes, four bytes each. A change mostly concerns
//! an address of the frame itself, which random addresses would never meet.

mod oracle;
mod world;

#[path = "../../tests/host/mod.rs"]
#[allow(dead_code, reason = "rows are used by tests")]
mod host;
#[path = "../../tests/rows/mod.rs"]
#[allow(dead_code, reason = "rows are used by tests")]
mod rows;

#[path = "../../../tests/tests/differential/mend.rs"]
mod mend;

use netspawn_ebpf::{
    decide::error::quote_length,
    rewrite,
    verdict::{Error, Family},
    wire::{Ip6, Ipv4Hdr, L3, checksum, ndp, words6},
};

use rows::At;
pub use world::Input;

/// Frames from the network.
pub fn uplink(bytes: &[u8]) {
    if let Some(input) = Input::read(bytes, |_| At::Uplink) {
        oracle::hold(&input);
    }
}

/// Frames of the host.
pub fn egress(bytes: &[u8]) {
    if let Some(input) = Input::read(bytes, |_| At::Host) {
        oracle::hold(&input);
    }
}

/// Frames of a machine.
pub fn port(bytes: &[u8]) {
    let machines = rows::world::MACHINES;
    let port = |n: u8| At::Port(machines[usize::from(n) % machines.len()]);
    if let Some(input) = Input::read(bytes, port) {
        oracle::hold(&input);
    }
}

/// Where two frames of one length differ.
fn changed(before: &[u8], after: &[u8]) -> Vec<usize> {
    assert_eq!(before.len(), after.len());
    (0..before.len())
        .filter(|&at| before[at] != after[at])
        .collect()
}

/// Everything that reads, writes or sums bytes, held against etherparse.
pub fn wire(bytes: &[u8]) {
    let [pick, frame @ ..] = bytes else { return };
    let mac = [2, 0, 0, 0, 0, *pick];
    checksums(frame);
    let run = |work: &dyn Fn(&mut [u8]) -> Option<()>, allowed: &dyn Fn(usize) -> bool| {
        let mut out = frame.to_vec();
        if work(&mut out).is_some() {
            let outside = changed(frame, &out).into_iter().find(|at| !allowed(*at));
            assert_eq!(outside, None, "a byte that is not to be written");
        }
        out
    };
    run(&|out| rewrite::ethernet(out, mac, mac), &|at| at < 12);
    run(&|out| rewrite::arp_reply(out, mac), &|at| {
        at < 12 || (20..60).contains(&at)
    });
    let reply = |out: &mut [u8]| rewrite::advertisement(out, mac, mac, pick & 1 == 1);
    run(&reply, &|at| at < 12 || (14..86).contains(&at));
    if frame.len() >= 34 {
        let header = etherparse::Ipv4HeaderSlice::from_slice(&frame[L3..]);
        let sound = header.as_ref().is_ok_and(oracle::checksum_is_right);
        let out = run(&|out| rewrite::take_hop(out, Family::V4), &|at| {
            matches!(at, 22 | 24 | 25)
        });
        assert_eq!(out[22], frame[22].wrapping_sub(1));
        if sound {
            let ip = etherparse::Ipv4HeaderSlice::from_slice(&out[L3..]).expect("as before");
            assert!(oracle::checksum_is_right(&ip));
        }
        run(&|out| rewrite::echo_reply(out, Family::V4), &|at| {
            at < 12 || matches!(at, 22 | 24..=34 | 36 | 37)
        });
    }
    run(&|out| rewrite::take_hop(out, Family::V6), &|at| at == 21);
    run(&|out| rewrite::echo_reply(out, Family::V6), &|at| {
        at < 12 || matches!(at, 21..=54 | 56 | 57)
    });
    let length = frame.len() as u32;
    for family in [Family::V4, Family::V6] {
        let quote = quote_length(family, u32::from(*pick) * 8, length);
        assert!(quote <= length && quote <= 1232);
    }
    errors(frame);
}

fn checksums(frame: &[u8]) {
    if let Some(ip) = Ip6::read(frame) {
        if let Ok((header, _)) = etherparse::Ipv6Header::from_slice(&frame[L3..]) {
            assert_eq!(ip.source, words6(&header.source));
            assert_eq!(ip.destination, words6(&header.destination));
            assert_eq!(ip.payload, header.payload_length);
            assert_eq!(ip.hop_limit, header.hop_limit);
            assert_eq!(ip.next_header, header.next_header.0);
        }
    }
    if let Ok(slice) = etherparse::Ipv4HeaderSlice::from_slice(frame.get(L3..).unwrap_or_default())
    {
        let ours = checksum::ipv4_header_is_right(frame, usize::from(slice.ihl()));
        assert_eq!(ours, oracle::checksum_is_right(&slice));
    }
    let length = frame.len() / 8 * 8;
    let sum = checksum::sum8::<{ ndp::MAX_UNITS }>(frame, 0, length);
    if length <= 8 * ndp::MAX_UNITS {
        let theirs = etherparse::checksum::Sum16BitWords::new()
            .add_slice(&frame[..length])
            .ones_complement();
        let ours = !checksum::fold(sum.expect("within the frame"));
        assert!(ours == theirs || ours ^ theirs == 0xffff);
    } else {
        assert_eq!(sum, None);
    }
}

/// Errors quote what they are given, and sum it up rightly.
fn errors(frame: &[u8]) {
    use rewrite::error::{HEADERS4, HEADERS6, error4, error6, quoted};
    if frame.len() < L3 + Ipv4Hdr::LEN {
        return;
    }
    let mut out = [&frame[..L3], &[0; HEADERS4], &frame[L3..]].concat();
    let length = frame.len() - L3;
    let mut padded = frame.to_vec();
    padded.resize(L3 + length / 8 * 8 + 8, 0);
    let Some(sum) = quoted(&padded[..], length / 8 * 8 + 8) else {
        return;
    };
    if error4(
        &mut out[..],
        Error::TooBig,
        1400,
        [203, 0, 113, 10],
        length,
        sum,
    )
    .is_some()
    {
        assert_eq!(out[L3 + HEADERS4..], frame[L3..]);
        out[12..14].copy_from_slice(&[8, 0]);
        oracle::sound_error(&out);
    }
    let mut out = [&frame[..L3], &[0; HEADERS6], &frame[L3..]].concat();
    let source = words6(&rows::world::HOST6);
    if error6(&mut out[..], Error::TooBig, 1400, source, length, sum).is_some() {
        assert_eq!(out[L3 + HEADERS6..], frame[L3..]);
        out[12..14].copy_from_slice(&[0x86, 0xdd]);
        oracle::sound_error(&out);
    }
}
