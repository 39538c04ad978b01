//! The data plane in the kernel.
pub mod attach;
mod batch;
pub mod events;
mod groups;
pub mod log;
pub mod maps;
pub mod object;
pub mod pins;
pub mod plane;
mod raise;
mod uplinks;
