//! The receiver: a program that counts what arrives and ends it.

use std::{
    os::fd::{AsFd as _, OwnedFd},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use netspawn_tests::Ns;

use super::links::batch;
use crate::bpf::{Kind, Sink, idle, pin};

/// Counts packets at the ingress of interfaces and drops them.
pub struct Receiver {
    sink: Sink,
}

impl Receiver {
    /// One that is nowhere yet.
    pub fn new() -> Result<Self> {
        Ok(Receiver {
            sink: Sink::new(Kind::Tc)?,
        })
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

/// The same for frames that no skb was made of: an XDP program on one interface, which can
/// let them pass as well.
///
/// A veth drops what XDP sends unless its peer has such a program.
pub struct XdpReceiver {
    sink: Sink,
    pass: OwnedFd,
    interface: String,
    programs: [PathBuf; 2],
}

impl XdpReceiver {
    /// One on an interface, which lets frames pass. Its programs are pinned in `folder`.
    pub fn new(ns: &Ns, interface: &str, folder: &Path) -> Result<Self> {
        let receiver = XdpReceiver {
            sink: Sink::new(Kind::Xdp)?,
            pass: idle(Kind::Xdp)?,
            interface: interface.to_owned(),
            programs: ["xdp-pass", "xdp-sink"].map(|name| folder.join(name)),
        };
        pin(receiver.pass.as_fd(), &receiver.programs[0])?;
        receiver.sink.pin(&receiver.programs[1])?;
        receiver.count_here(ns, false)?;
        Ok(receiver)
    }

    /// Counts and drops frames, or lets them pass.
    pub fn count_here(&self, ns: &Ns, here: bool) -> Result<()> {
        let program = self.programs[usize::from(here)].display();
        let interface = &self.interface;
        ns.run(&format!(
            "ip -force link set dev {interface} xdpdrv pinned {program}"
        ))?;
        Ok(())
    }

    /// Frames so far.
    pub fn count(&self) -> Result<u64> {
        self.sink.count()
    }
}
