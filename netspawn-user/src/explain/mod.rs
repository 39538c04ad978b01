//! What would happen to a frame, without sending it.
//!
//! A question ([`args`], [`spec`]) or a capture ([`capture`]) becomes frames ([`frame`]); the
//! programs ([`run`]) and the library ([`judge`]) say what they do with each in the world
//! that the maps describe ([`world`]); [`say`] puts it into words, and [`decode`] the
//! frame that would leave.

pub mod args;
pub mod capture;
pub mod decode;
pub mod frame;
pub mod judge;
pub mod run;
pub mod say;
pub mod spec;
pub mod world;

/// Where a frame meets the data plane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum At {
    /// It comes in on the uplink with this ifindex.
    Uplink(u32),
    /// The host sends it out of the uplink with this ifindex.
    Host(u32),
    /// The machine with this endpoint id sends it.
    Port(u32),
}

/// A frame at a place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Case {
    /// The place.
    pub at: At,
    /// From the Ethernet header on, without an 802.1Q tag.
    pub bytes: Vec<u8>,
    /// The tag, which the kernel keeps beside the frame.
    pub tag: Option<u16>,
    /// Payload bytes of a segment, for a super-packet; else 0.
    pub gso_size: u32,
    /// What is to be known about how it was made.
    pub remarks: Vec<String>,
}
