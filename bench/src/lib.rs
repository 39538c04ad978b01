//! Measures what the data plane costs, and runs its programs without a network.

mod bpf;
pub mod cost;
pub mod figure;
pub mod lab;
pub mod programs;
pub mod report;
pub mod run;
pub mod scenarios;
