//! Packet logic of netspawn-xdp: pure functions over byte views, used by the
//! BPF programs, by host tests and by the loader.
//!
//! [`decide`] turns a frame and the look-ups of [`tables::Tables`] into a
//! [`verdict::Verdict`]; [`rewrite`] carries one out on the bytes. The programs
//! (`main.rs`) only check bounds, call these, and return an action.
#![cfg_attr(not(test), no_std)]

pub mod abi;
pub mod blanks;
pub mod decide;
pub mod rewrite;
pub mod tables;
pub mod verdict;
pub mod wire;
