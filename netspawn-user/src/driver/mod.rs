//! Network drivers: engines ask for links, and get them.

pub mod docker;
