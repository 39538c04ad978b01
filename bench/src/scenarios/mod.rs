//! What can be measured, a file each.

pub mod forward;
