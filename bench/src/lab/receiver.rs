//! The receiver: a program that counts what arrives and ends it.

use std::path::Path;

use anyhow::{Context as _, Result};
use netspawn_tests::Ns;

use super::links::batch;
use crate::bpf::Sink;

/// Counts packets at the ingress of interfaces and drops them.
pub struct Receiver {
    sink: Sink,
}

impl Receiver {
    /// One that is nowhere yet.
    pub fn new() -> Result<Self> {
        Ok(Receiver { sink: Sink::new()? })
    }

    /// Counts at these interfaces of a namespace, through one shared block. Its program
    /// is pinned at `pin`, on a BPF file system.
    pub fn join(&self, ns: &Ns, interfaces: &[String], pin: &Path) -> Result<()> {
        self.sink
            .pin(pin)
            .with_context(|| format!("cannot pin the receiver at {}", pin.display()))?;
        let blocks = interfaces
            .iter()
            .map(|name| format!("qdisc add dev {name} ingress_block 7 clsact"));
        let filter = format!(
            "filter add block 7 protocol all bpf da object-pinned {}",
            pin.display()
        );
        batch(ns, "tc", blocks.chain([filter]))
    }

    /// Packets so far.
    pub fn count(&self) -> Result<u64> {
        self.sink.count()
    }
}
