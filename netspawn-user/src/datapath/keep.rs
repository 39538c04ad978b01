//! What is pinned and recorded, kept in mind by the process that wrote it: somebody may
//! remove pins, or mount another bpffs over them. Without its records the data plane would
//! seem to have no uplinks, and withdraw every machine.

use std::{collections::BTreeMap, fs, os::fd::AsFd as _, os::fd::OwnedFd, path::PathBuf};

use anyhow::{Context as _, Result};
use netspawn_ebpf::abi::map;

use super::{
    attach::bpf,
    pins::{self, Pins},
};
use crate::gone;

/// Maps and records. Empty until something is kept.
#[derive(Default)]
pub struct Kept {
    maps: Vec<(PathBuf, OwnedFd)>,
    records: BTreeMap<PathBuf, String>,
}

impl Kept {
    /// Keeps the maps that are pinned.
    ///
    /// # Errors
    /// When one cannot be opened.
    pub fn keep_maps(&mut self, pins: &Pins) -> Result<()> {
        self.maps.clear();
        for name in map::ALL {
            let path = pins.maps().join(name);
            let fd = bpf::open_pin(&path).with_context(|| cannot_open(&path))?;
            let fd = fd.with_context(|| format!("{} is gone", path.display()))?;
            self.maps.push((path, fd));
        }
        Ok(())
    }

    /// Whether nothing is kept.
    pub fn is_empty(&self) -> bool {
        self.maps.is_empty()
    }

    /// Keeps what is recorded now. Does nothing for a process that keeps no maps: it will
    /// end before anything of it is asked for.
    ///
    /// # Errors
    /// When the records cannot be read.
    pub fn keep_records(&mut self, pins: &Pins) -> Result<()> {
        if !self.is_empty() {
            self.records = pins.all_records()?;
        }
        Ok(())
    }

    /// Puts back what is not there any more; how many things that were.
    ///
    /// # Errors
    /// When it cannot be put back, as when no bpffs is mounted.
    pub fn put_back(&self, pins: &Pins) -> Result<usize> {
        let mut missing = 0;
        for (path, fd) in &self.maps {
            if !gone::is_there(path).with_context(|| cannot_open(path))? {
                if missing == 0 {
                    pins.make()?;
                }
                missing += 1;
                bpf::pin(fd.as_fd(), path)
                    .with_context(|| format!("cannot pin {}", path.display()))?;
            }
        }
        for (path, text) in &self.records {
            if !gone::is_there(path).with_context(|| cannot_open(path))? {
                if missing == 0 {
                    pins.make()?;
                }
                missing += 1;
                if let Some(directory) = path.parent() {
                    fs::create_dir_all(directory)
                        .with_context(|| format!("cannot make {}", directory.display()))?;
                }
                pins::record(path, text)?;
            }
        }
        Ok(missing)
    }
}

fn cannot_open(path: &std::path::Path) -> String {
    format!("cannot open {}", path.display())
}
