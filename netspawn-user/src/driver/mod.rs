//! Network drivers: engines ask for links, and get them.

pub mod cni;
pub mod docker;
