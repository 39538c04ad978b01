//! The data plane in the kernel.
pub mod attach;
mod batch;
pub mod events;
mod groups;
pub mod hidden;
mod keep;
mod kernel_fields;
pub mod log;
mod lookup;
pub mod maps;
pub mod meter;
pub mod object;
pub mod pins;
pub mod plane;
mod raise;
pub mod reader;
mod upgrade;
mod uplinks;
