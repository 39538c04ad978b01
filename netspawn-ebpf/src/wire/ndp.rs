//! Neighbor Discovery messages (RFC 4861 4).

use super::{Ipv6, L4_V6, Mac, Words6};

/// Start of the target address in a solicitation or advertisement.
pub const TARGET: usize = L4_V6 + 8;
/// Start of the options.
pub const OPTIONS: usize = L4_V6 + 24;
/// Bytes of a solicitation or advertisement without options.
pub const HEADER: usize = 24;
/// Bytes of the frame of an advertisement with a target link-layer option.
pub const ADVERTISEMENT_FRAME: usize = OPTIONS + 8;
/// Options that are looked at.
pub const MAX_OPTIONS: usize = 8;
/// Eight-byte units of a message whose checksum is verified (1,496 bytes: all
/// that fits a frame of 1,550 bytes).
pub const MAX_UNITS: usize = 187;

/// Hop limit of every valid message (RFC 4861 7.1).
pub const HOP_LIMIT: u8 = 255;

/// ICMPv6 types.
pub mod kind {
    /// Echo request (RFC 4443 4.1).
    pub const ECHO_REQUEST: u8 = 128;
    /// Echo reply (RFC 4443 4.2).
    pub const ECHO_REPLY: u8 = 129;
    /// Router advertisement.
    pub const ROUTER_ADVERTISEMENT: u8 = 134;
    /// Neighbor solicitation.
    pub const SOLICITATION: u8 = 135;
    /// Neighbor advertisement.
    pub const ADVERTISEMENT: u8 = 136;
    /// Redirect.
    pub const REDIRECT: u8 = 137;
}

/// Source link-layer address option (RFC 4861 4.6.1).
pub const OPTION_SOURCE: u8 = 1;
/// Target link-layer address option.
pub const OPTION_TARGET: u8 = 2;

/// R flag of an advertisement, first byte behind the checksum.
pub const FLAG_ROUTER: u8 = 0x80;
/// S flag.
pub const FLAG_SOLICITED: u8 = 0x40;
/// O flag.
pub const FLAG_OVERRIDE: u8 = 0x20;

/// All nodes on the link.
pub const ALL_NODES: Ipv6 = [0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
/// Its link-layer address.
pub const ALL_NODES_MAC: Mac = [0x33, 0x33, 0, 0, 0, 1];

/// The solicited-node group of an address (RFC 4291 2.7.1).
#[inline(always)]
pub const fn solicited_node(address: &Words6) -> Words6 {
    let [.., a, b, c] = address[1].to_ne_bytes();
    [
        u64::from_ne_bytes([0xff, 2, 0, 0, 0, 0, 0, 0]),
        u64::from_ne_bytes([0, 0, 0, 1, 0xff, a, b, c]),
    ]
}
