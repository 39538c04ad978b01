//! The loader of netspawn-xdp. See `docs/architecture.md` for how state flows.
#![cfg_attr(
    test,
    allow(clippy::disallowed_methods, reason = "a test that is wrong fails")
)]
pub mod agent;
pub mod check;
pub mod cli;
pub mod commands;
pub mod config;
pub mod control;
pub mod datapath;
pub mod document;
pub mod driver;
pub mod event;
pub mod explain;
pub mod fields;
pub mod folder;
pub mod gone;
pub mod guest;
pub mod import;
mod lock;
pub mod logging;
#[cfg(test)]
mod mangled;
pub mod metrics;
pub mod mismatch;
pub mod model;
pub mod net;
pub mod outcome;
pub mod output;
pub mod pinned;
pub mod plan;
pub mod problem;
pub mod registry;
pub mod revert;
pub mod source;
