//! Extension headers of IPv6 (RFC 8200 4), and what is behind them.

use super::{Frame, Ip6, L4_V6, protocol};

/// Bytes of a frame that are read in search of the end of the extension headers: those
/// of a routing header with eleven addresses, or of all others that have a use.
pub const REACH: u32 = 256;

/// Headers that are walked: one of each kind, in the order of RFC 8200 4.1.
const MOST: usize = 6;

/// Hop-by-hop options (RFC 8200 4.3).
pub const HOP_BY_HOP: u8 = 0;
/// Routing (RFC 8200 4.4).
pub const ROUTING: u8 = 43;
/// Fragment (RFC 8200 4.5).
pub const FRAGMENT: u8 = 44;
/// Authentication (RFC 4302).
pub const AUTHENTICATION: u8 = 51;
/// Destination options (RFC 8200 4.6).
pub const DESTINATION: u8 = 60;

/// Whether a header of that number is an extension with another behind it.
#[inline(always)]
pub const fn is_extension(number: u8) -> bool {
    matches!(
        number,
        HOP_BY_HOP | ROUTING | FRAGMENT | AUTHENTICATION | DESTINATION
    )
}

/// Source and destination port, host order, of the UDP header behind extension headers;
/// zeroes where something else is, or in a fragment after the first.
///
/// `None` where that cannot be told: the header is not in reach or in another fragment,
/// which no sender may do (RFC 7112), or behind more extensions than there are kinds.
#[inline(never)]
pub fn udp_ports<F: Frame + ?Sized>(frame: &F, ip: &Ip6) -> Option<(u16, u16)> {
    let end = L4_V6 + usize::from(ip.payload);
    let (mut next, mut offset) = (ip.next_header, L4_V6);
    for _ in 0..MOST {
        if !is_extension(next) {
            break;
        }
        if offset + 8 > end {
            return None;
        }
        let [following, length, high, low] = frame.read::<[u8; 4]>(offset)?;
        if next == FRAGMENT && u16::from_be_bytes([high, low]) >> 3 != 0 {
            return Some((0, 0));
        }
        offset += match next {
            FRAGMENT => 8,
            // RFC 4302 2.2.
            AUTHENTICATION => 8 + usize::from(length) * 4,
            _ => 8 + usize::from(length) * 8,
        };
        next = following;
    }
    if next != protocol::UDP {
        return if is_extension(next) {
            None
        } else {
            Some((0, 0))
        };
    }
    if offset + 4 > end {
        return None;
    }
    let [a, b, c, d] = frame.read::<[u8; 4]>(offset)?;
    Some((u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d])))
}
