//! The Internet checksum (RFC 1071) and its update (RFC 1624).
//!
//! Sums are kept as native-endian words: one's complement addition gives the
//! same bytes in either order (RFC 1071 2(B)), so nothing is swapped.

use super::{Frame, Ipv4Hdr, L3, Words6};

/// Folds a sum of 16- and 32-bit words to 16 bits.
#[inline(always)]
pub const fn fold(sum: u64) -> u16 {
    let sum = (sum & 0xffff_ffff) + (sum >> 32);
    let sum = (sum & 0xffff) + ((sum >> 16) & 0xffff) + (sum >> 32);
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    sum as u16
}

/// Adds eight bytes as two words.
#[inline(always)]
pub const fn add8(sum: u64, word: u64) -> u64 {
    sum + (word & 0xffff_ffff) + (word >> 32)
}

/// Adds an IPv6 address.
#[inline(always)]
pub fn add_address(sum: u64, address: &Words6) -> u64 {
    add8(add8(sum, address[0]), address[1])
}

/// The sum of an IPv6 pseudo-header (RFC 8200 8.1) for an upper layer of
/// `length` bytes.
#[inline(always)]
pub fn pseudo6(source: &Words6, destination: &Words6, length: u16, protocol: u8) -> u64 {
    let sum = add_address(add_address(0, source), destination);
    sum + u64::from(length.to_be()) + u64::from(u16::from(protocol).to_be())
}

/// Sums `length` bytes at `offset`, a multiple of eight and `8 * MAX_WORDS` at
/// most; `None` otherwise, or past the frame's end.
#[inline(always)]
pub fn sum8<const MAX_WORDS: usize>(
    frame: &(impl Frame + ?Sized),
    offset: usize,
    length: usize,
) -> Option<u64> {
    let mut sum = 0;
    let mut done = 0;
    for _ in 0..MAX_WORDS {
        if done >= length {
            break;
        }
        sum = add8(sum, frame.read::<u64>(offset + done)?);
        done += 8;
    }
    (done == length).then_some(sum)
}

/// Whether the checksum of the IPv4 header at byte 14 is right. `words` is the
/// header's length in 32-bit words, 5 to 15.
#[inline(always)]
pub fn ipv4_header_is_right(frame: &(impl Frame + ?Sized), words: usize) -> bool {
    let Some(fixed) = frame.read::<[u8; Ipv4Hdr::LEN]>(L3) else {
        return false;
    };
    let mut sum = 0u64;
    for word in fixed.as_chunks::<4>().0 {
        sum += u64::from(u32::from_ne_bytes(*word));
    }
    if words > 5 {
        for word in 5..15 {
            if word >= words {
                break;
            }
            let Some(option) = frame.read::<u32>(L3 + word * 4) else {
                return false;
            };
            sum += u64::from(option);
        }
    }
    fold(sum) == 0xffff
}

/// `check` after one 16-bit word of what it covers went from `old` to `new`
/// (RFC 1624 eqn. 3). All three are as in memory.
#[inline(always)]
pub const fn update(check: u16, old: u16, new: u16) -> u16 {
    !fold(!check as u64 + !old as u64 + new as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn update_equals_recomputation() {
        let mut state = 1u64;
        for _ in 0..100_000 {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1);
            let a = (state >> 8) as u16;
            let old = (state >> 24) as u16;
            let new = (state >> 40) as u16;
            if a | old == 0 {
                continue;
            }
            let before = !fold(u64::from(a) + u64::from(old));
            let after = !fold(u64::from(a) + u64::from(new));
            let updated = update(before, old, new);
            // 0 and 0xffff are the same number in one's complement.
            assert!(updated == after || (updated ^ after) == 0xffff && (a | new) == 0);
        }
    }

    #[test]
    fn fold_keeps_every_carry() {
        assert_eq!(fold(u64::MAX), 0xffff);
        assert_eq!(fold(0x1_0000), 1);
        assert_eq!(fold(0xffff_ffff_0000_0001), 1);
    }
}
