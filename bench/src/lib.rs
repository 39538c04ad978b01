//! Measures what the data plane costs, and runs its programs without a network.

mod bpf;
pub mod cost;
pub mod programs;
pub mod start;
