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

/// Does something that may be done again, and once more when it fails: what failed for a
/// moment's want of memory does not fail again, and without an agent would be left as it is.
pub(crate) fn twice<T, E>(mut work: impl FnMut() -> Result<T, E>) -> Result<T, E> {
    work().or_else(|_| work())
}
