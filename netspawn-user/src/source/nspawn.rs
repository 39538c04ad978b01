//! `[X-Netspawn]` in systemd's `.nspawn` files.

use std::path::PathBuf;

use super::layers::Layers;

/// The folders of `.nspawn` files that the host's root controls.
#[derive(Debug)]
pub struct NspawnFiles {
    /// The first that has a machine's file wins, as systemd-nspawn has it.
    folders: [PathBuf; 2],
}

impl NspawnFiles {
    /// The folders that systemd-nspawn reads. Nothing is read yet.
    pub fn new() -> Self {
        NspawnFiles {
            folders: ["/etc/systemd/nspawn".into(), "/run/systemd/nspawn".into()],
        }
    }

    /// The folders that are read.
    pub fn folders(&self) -> impl Iterator<Item = PathBuf> + use<> {
        self.folders.clone().into_iter()
    }

    /// Reads everything.
    pub fn read(&self, _layers: &mut Layers) {}
}
