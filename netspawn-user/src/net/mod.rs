//! The host's network as the kernel tells it, and the few things asked of it.

pub mod announce;
pub mod ethtool;
pub mod firewall;
pub mod interface;
pub mod multicast;
pub mod namespace;
pub mod neighbor;
pub mod netlink;
pub mod observe;
#[doc(hidden)]
pub mod read;
pub mod veth;
pub mod xdp_ready;

pub use netlink::Error;
pub use observe::Observer;
