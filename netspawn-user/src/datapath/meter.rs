//! What the pinned maps count, for who looks often.

use std::{collections::BTreeMap, fs, os::unix::fs::MetadataExt as _, path::Path};

use anyhow::{Context as _, Result};
use netspawn_ebpf::{
    abi::{EndpointEntry, Traffic, map},
    verdict::Reason,
};

use super::{maps::Maps, pins::Pins};
use crate::{gone, plan::State};

/// The maps of an attached data plane.
pub struct Meter {
    pins: Pins,
    maps: Maps,
    /// Inode of a pin, which tells these maps from others in their place.
    inode: u64,
}

/// All counts at one time.
#[derive(Clone, Debug, Default)]
pub struct Reading {
    /// Machines, by endpoint id.
    pub endpoints: BTreeMap<u32, EndpointEntry>,
    /// Their traffic, summed over CPUs.
    pub traffic: BTreeMap<u32, Traffic>,
    /// Frames dropped, by endpoint id and reason.
    pub drops: BTreeMap<(u32, Reason), u64>,
    /// Frames by what became of them.
    pub counts: BTreeMap<Reason, u64>,
}

/// `None` when the map is not pinned.
fn inode(pins: &Pins) -> Result<Option<u64>> {
    let path = pins.maps().join(map::TRAFFIC);
    let pin = gone::path(fs::symlink_metadata(&path))
        .with_context(|| format!("cannot look for {}", path.display()))?;
    Ok(pin.map(|pin| pin.ino()))
}

impl Meter {
    /// Opens the pinned maps; `None` when nothing is attached.
    ///
    /// # Errors
    /// When they belong to another network namespace or cannot be opened.
    pub fn open(bpf_dir: &Path) -> Result<Option<Meter>> {
        let pins = Pins::new(bpf_dir);
        pins.check()?;
        let (exist, inode) = (pins.exist()?, inode(&pins)?);
        let Some(inode) = inode.filter(|_| exist) else {
            return Ok(None);
        };
        let maps = Maps::open(&pins.maps())?;
        Ok(Some(Meter { pins, maps, inode }))
    }

    /// Reads the counts; `None` when these maps are pinned no more.
    ///
    /// # Errors
    /// When a map cannot be read.
    pub fn read(&self) -> Result<Option<Reading>> {
        if inode(&self.pins)? != Some(self.inode) {
            return Ok(None);
        }
        let endpoints = self.maps.endpoints().context("cannot read the machines")?;
        Ok(Some(Reading {
            traffic: self.maps.traffic(endpoints.keys().copied())?,
            drops: self.maps.drops()?,
            counts: self.maps.counts()?,
            endpoints,
        }))
    }

    /// Reads everything else.
    ///
    /// # Errors
    /// When a map cannot be read.
    pub fn state(&self) -> Result<State> {
        self.maps.read()
    }

    /// The uplinks with programs on them: `eth0 (tc)`.
    ///
    /// # Errors
    /// When they cannot be read.
    pub fn uplinks(&self) -> Result<Vec<String>> {
        let uplinks = self.pins.uplinks()?.into_iter();
        Ok(uplinks
            .filter(|uplink| uplink.master.is_none())
            .map(|uplink| match uplink {
                uplink if uplink.gone => format!("{} (gone)", uplink.name),
                uplink if uplink.xdp => format!("{} (xdp)", uplink.name),
                uplink => format!("{} (tc)", uplink.name),
            })
            .collect())
    }
}
