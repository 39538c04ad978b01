//! The data plane as the kernel has it, for whoever watches: read in batches from what
//! is pinned, beside the process that writes it.

use std::{
    collections::{BTreeMap, HashMap},
    os::fd::AsFd as _,
    path::Path,
};

use anyhow::{Context as _, Result};
use aya::maps::{Map, MapData, PerCpuArray};
use netspawn_ebpf::{
    abi::{self, EVENTS_LOST, HOST, NAME_LEN, Owner, Traffic, map},
    verdict::Reason,
};

use super::{
    attach::Uplinks,
    lookup::{self, Shape},
    pins::Pins,
    plane::{LINKS, program_of},
};
use crate::plan::{self, State};

/// An uplink and what hangs on it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UplinkReading {
    /// Name when it was last looked at.
    pub name: String,
    /// `tc` or `xdp`, as it was attached.
    pub mode: &'static str,
    /// The programs that belong on it, and whether they are there.
    pub programs: Vec<(&'static str, bool)>,
}

/// What the maps say of a machine.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MachineReading {
    /// Frames that were delivered and forwarded.
    pub traffic: Traffic,
    /// Frames dropped, by reason.
    pub drops: BTreeMap<Reason, u64>,
}

/// How full a map is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fill {
    /// Its name, one of [`map`].
    pub map: &'static str,
    /// Entries in it.
    pub used: usize,
    /// Entries that there is room for.
    pub size: u32,
}

/// How much there is in the maps, or should be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Size {
    /// Endpoints.
    pub endpoints: usize,
    /// Ports that lead to one.
    pub ports: usize,
    /// Prefixes that machines hold.
    pub prefixes: usize,
}

impl Size {
    /// Of a state.
    pub fn of(state: &State) -> Self {
        Size {
            endpoints: state.endpoints.len(),
            ports: state.ports.len(),
            prefixes: state.prefixes(),
        }
    }
}

/// Everything at one moment, as near as several reads come to that.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Readings {
    /// Uplinks that were attached.
    pub uplinks: Vec<UplinkReading>,
    /// Frames by reason.
    pub counts: BTreeMap<Reason, u64>,
    /// Events that the programs found no room for; unknown with maps of an older
    /// version, which do not count them.
    pub events_lost: Option<u64>,
    /// Machines by name.
    pub machines: BTreeMap<String, MachineReading>,
    /// How much of what matters there is.
    pub size: Size,
    /// The maps that can become full.
    pub fills: Vec<Fill>,
}

/// A map, opened for reading.
struct Open {
    data: MapData,
    shape: Shape,
}

impl Open {
    fn each(&self, most: u32, found: impl FnMut(&[u8], &[u8])) -> Result<()> {
        lookup::each(self.data.fd().as_fd(), self.shape, most, found).context("cannot read a map")
    }

    fn fill(&self, map: &'static str, used: usize) -> Fill {
        let size = self.shape.entries;
        Fill { map, used, size }
    }

    fn all(&self, found: impl FnMut(&[u8], &[u8])) -> Result<()> {
        self.each(u32::MAX, found)
    }
}

/// Reads what is pinned.
pub struct Reader {
    pins: Pins,
    uplinks: Uplinks,
    counts: PerCpuArray<MapData, u64>,
    endpoints: Open,
    traffic: Open,
    drops: Open,
    ports: Open,
    addresses: [(&'static str, Open); 4],
}

type Name = [u8; NAME_LEN];

impl Reader {
    /// Opens what is pinned.
    ///
    /// # Errors
    /// When a map is missing.
    pub fn open(bpf_dir: &Path) -> Result<Self> {
        let pins = Pins::new(bpf_dir);
        let folder = pins.maps();
        let data = |name: &str| {
            let path = folder.join(name);
            MapData::from_pin(&path)
                .with_context(|| format!("cannot open the pinned map {}", path.display()))
        };
        let open = |name: &'static str| -> Result<Open> {
            let data = data(name)?;
            let shape = Shape::new(&data.info()?);
            Ok(Open { data, shape })
        };
        let per_cpu = |name: &'static str| -> Result<Open> {
            let data = data(name)?;
            let shape = Shape::per_cpu(&data.info()?)?;
            Ok(Open { data, shape })
        };
        let address = |name| open(name).map(|open| (name, open));
        Ok(Reader {
            uplinks: Uplinks::open()?,
            counts: PerCpuArray::try_from(Map::PerCpuArray(data(map::COUNTS)?))?,
            endpoints: open(map::ENDPOINTS)?,
            traffic: per_cpu(map::TRAFFIC)?,
            drops: per_cpu(map::DROPS)?,
            ports: open(map::PORTS)?,
            addresses: [
                address(map::ADDRS4)?,
                address(map::ADDRS6)?,
                address(map::PREFIXES4)?,
                address(map::PREFIXES6)?,
            ],
            pins,
        })
    }

    /// Reads everything.
    ///
    /// # Errors
    /// When the kernel does not tell.
    pub fn read(&mut self) -> Result<Readings> {
        let mut readings = Readings {
            uplinks: self.read_uplinks()?,
            events_lost: Some(self.count(EVENTS_LOST)?),
            ..Readings::default()
        };
        for reason in Reason::ALL {
            let count = self.count(*reason as u32)?;
            readings.counts.insert(*reason, count);
        }

        // An id changes hands by way of a free entry, and its counters are zeroed
        // meanwhile. What was read under an id is a machine's if that has the id
        // before and after.
        let before = self.names()?;
        let mut machines = self.read_traffic(&before)?;
        let drops = self.read_drops(&mut machines)?;
        let after = self.names()?;
        for (id, name) in &before {
            if after.get(id) == Some(name) {
                let machine = machines.remove(id).unwrap_or_default();
                readings.machines.insert(plan::text(name), machine);
            }
        }

        readings.size.endpoints = after.len();
        readings.fills = vec![
            self.endpoints.fill(map::ENDPOINTS, after.len()),
            self.drops.fill(map::DROPS, drops),
        ];
        for (name, open) in &self.addresses {
            let mut used = 0;
            open.all(|_, owner| {
                used += 1;
                readings.size.prefixes += usize::from(*owner != HOST.to_ne_bytes());
            })?;
            readings.fills.push(open.fill(name, used));
        }
        self.ports.all(|_, _| readings.size.ports += 1)?;
        Ok(readings)
    }

    fn read_uplinks(&mut self) -> Result<Vec<UplinkReading>> {
        let mut readings = Vec::new();
        for uplink in self.pins.uplinks()? {
            if uplink.master.is_some() {
                continue;
            }
            let folder = self.pins.uplink(&uplink.name);
            let links = LINKS.map(|(hook, file)| (hook, folder.join(file)));
            let links: Vec<_> = links
                .iter()
                .map(|(hook, path)| (*hook, path.as_path()))
                .collect();
            // On one that was just deleted there is nothing to ask for.
            let found = match uplink.has_programs() {
                true => self.uplinks.query(uplink.ifindex, &links)?,
                false => Vec::new(),
            };
            let wanted = LINKS
                .into_iter()
                .filter(|(_, file)| uplink.xdp || *file != "xdp");
            readings.push(UplinkReading {
                mode: if uplink.xdp { "xdp" } else { "tc" },
                programs: wanted
                    .map(|(hook, _)| {
                        let is_there = found.iter().any(|program| program.hook == hook);
                        (program_of(hook), is_there)
                    })
                    .collect(),
                name: uplink.name,
            });
        }
        Ok(readings)
    }

    fn count(&self, index: u32) -> Result<u64> {
        Ok(self.counts.get(&index, 0)?.iter().sum())
    }

    /// Who has which id.
    fn names(&self) -> Result<HashMap<u32, Name>> {
        let mut names = HashMap::new();
        let at = std::mem::offset_of!(abi::EndpointEntry, name);
        self.endpoints.all(|key, entry| {
            let name = entry.get(at..).and_then(<[u8]>::first_chunk::<NAME_LEN>);
            if let (Some(id), Some(name)) = (word(key), name)
                && name[0] != 0
            {
                names.insert(id, *name);
            }
        })?;
        Ok(names)
    }

    /// Traffic by id, of those that have a name.
    fn read_traffic(&self, names: &HashMap<u32, Name>) -> Result<HashMap<Owner, MachineReading>> {
        let mut machines = HashMap::with_capacity(names.len());
        let most = names.keys().max().map_or(0, |id| id + 1);
        self.traffic.each(most, |key, cpus| {
            let Some(id) = word(key).filter(|id| names.contains_key(id)) else {
                return;
            };
            let mut traffic = Traffic::default();
            for cpu in cpus.chunks_exact(size_of::<Traffic>()) {
                // The order of the struct's fields.
                let fields = [
                    &mut traffic.rx_packets,
                    &mut traffic.rx_bytes,
                    &mut traffic.tx_packets,
                    &mut traffic.tx_bytes,
                ];
                for (sum, number) in fields.into_iter().zip(numbers(cpu)) {
                    *sum += number;
                }
            }
            let drops = BTreeMap::new();
            machines.insert(id, MachineReading { traffic, drops });
        })?;
        Ok(machines)
    }

    /// Adds the drops, and counts the entries that there are.
    fn read_drops(&self, machines: &mut HashMap<Owner, MachineReading>) -> Result<usize> {
        let mut used = 0;
        self.drops.all(|key, cpus| {
            used += 1;
            // The order of `DropKey`'s fields.
            let (Some(id), Some(reason)) = (word(key), word(&key[4..])) else {
                return;
            };
            let reason = Reason::ALL.get(reason as usize);
            if let (Some(machine), Some(reason)) = (machines.get_mut(&id), reason) {
                machine.drops.insert(*reason, numbers(cpus).sum());
            }
        })?;
        Ok(used)
    }
}

/// The number at the start of a key.
fn word(bytes: &[u8]) -> Option<u32> {
    bytes.first_chunk().map(|bytes| u32::from_ne_bytes(*bytes))
}

fn numbers(bytes: &[u8]) -> impl Iterator<Item = u64> {
    bytes
        .as_chunks::<8>()
        .0
        .iter()
        .map(|bytes| u64::from_ne_bytes(*bytes))
}
