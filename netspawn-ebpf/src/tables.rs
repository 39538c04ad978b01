//! The look-ups that decisions need.

use crate::abi::{Endpoint, NextHop, Owner, Settings, Uplink};
use crate::wire::{Ipv4, Words6};

/// State that the loader keeps for the programs: BPF maps in the kernel, plain
/// maps in tests.
pub trait Tables {
    /// Policy and hints.
    fn settings(&self) -> Settings;
    /// Longest match over declared addresses and the host's own: an endpoint
    /// id, [`crate::abi::HOST`] or [`crate::abi::NOBODY`]. A number rather than
    /// an `Option`, whose payload would be undefined where LLVM compares it
    /// ahead of the discriminant, which the verifier refuses.
    fn owner4(&self, address: &Ipv4) -> Owner;
    /// As [`Tables::owner4`].
    fn owner6(&self, address: &Words6) -> Owner;
    /// Whether an endpoint owns an address by itself, rather than inside a prefix.
    fn is_single4(&self, id: Owner, address: &Ipv4) -> bool;
    /// As [`Tables::is_single4`].
    fn is_single6(&self, id: Owner, address: &Words6) -> bool;
    /// False where nobody can own the address, at less than a look-up; true says
    /// nothing.
    fn is_near4(&self, address: &Ipv4) -> bool;
    /// As [`Tables::is_near4`].
    fn is_near6(&self, address: &Words6) -> bool;
    /// Whether an endpoint may send from an address that it does not own.
    fn may_send4(&self, id: Owner, address: &Ipv4) -> bool;
    /// As [`Tables::may_send4`].
    fn may_send6(&self, id: Owner, address: &Words6) -> bool;
    /// The endpoint with that id.
    fn endpoint(&self, id: Owner) -> Option<&Endpoint>;
    /// What is known of an interface in [`crate::abi::map::PORTS`]: the endpoint whose port
    /// it is, [`crate::abi::CLOSED`], [`crate::abi::WAY`], or [`crate::abi::NOBODY`].
    fn port(&self, ifindex: u32) -> Owner;
    /// The uplink with that ifindex.
    fn uplink(&self, ifindex: u32) -> Option<&Uplink>;
    /// The host's route to an address.
    fn route4(&self, address: &Ipv4) -> Option<&NextHop>;
    /// The host's route to an address.
    fn route6(&self, address: &Words6) -> Option<&NextHop>;
}
