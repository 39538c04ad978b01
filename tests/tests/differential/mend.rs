//! Checksums made right again, for frames that were changed by chance.

fn sum(bytes: &[u8]) -> u32 {
    let (pairs, rest) = bytes.as_chunks::<2>();
    let sum: u32 = pairs
        .iter()
        .map(|pair| u32::from(u16::from_be_bytes(*pair)))
        .sum();
    sum + rest.first().map_or(0, |byte| u32::from(*byte) << 8)
}

fn check(mut sum: u32) -> [u8; 2] {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    (!(sum as u16)).to_be_bytes()
}

/// Makes checksums of IPv4 headers and of ICMP right, which would hide every other change.
pub fn mend(frame: &mut [u8]) {
    match frame.get(12..14) {
        Some([0x08, 0x00]) if frame.len() >= 34 => {
            let header = usize::from(frame[14] & 15).max(5) * 4;
            let end = (14 + header).min(frame.len());
            frame[24..26].fill(0);
            let right = check(sum(&frame[14..end]));
            frame[24..26].copy_from_slice(&right);
            let total = 14 + usize::from(u16::from_be_bytes([frame[16], frame[17]]));
            if frame[23] == 1 && end + 4 <= total && total <= frame.len() {
                frame[end + 2..end + 4].fill(0);
                let right = check(sum(&frame[end..total]));
                frame[end + 2..end + 4].copy_from_slice(&right);
            }
        }
        Some([0x86, 0xdd]) if frame.len() >= 58 && frame[20] == 58 => {
            let length = u16::from_be_bytes([frame[18], frame[19]]);
            let end = 54 + usize::from(length);
            if end <= frame.len() && length >= 4 {
                frame[56..58].fill(0);
                let pseudo = sum(&frame[22..54]) + u32::from(length) + 58;
                let right = check(pseudo + sum(&frame[54..end]));
                frame[56..58].copy_from_slice(&right);
            }
        }
        _ => {}
    }
}
