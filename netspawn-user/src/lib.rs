//! The loader of netspawn-xdp. See `docs/architecture.md` for how state flows.
pub mod agent;
pub mod cli;
pub mod commands;
pub mod config;
pub mod control;
pub mod datapath;
pub mod document;
pub mod fields;
pub mod model;
pub mod net;
pub mod outcome;
pub mod output;
pub mod pinned;
pub mod plan;
pub mod problem;
pub mod registry;
pub mod source;
