//! Real engines in booted hosts, one module each: `cargo xtask test engines NAME`.

mod containerd;
mod docker;
mod kubernetes;
mod scenario;
