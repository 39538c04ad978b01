//! The maps as the loader sees them: read as a [`State`], changed by [`Op`]s,
//! which nothing else does.

use std::{
    collections::BTreeMap,
    io,
    os::fd::AsFd,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use aya::maps::{
    Array, HashMap, IterableMap as _, LpmTrie, Map, MapData, MapError, PerCpuArray, PerCpuHashMap,
    PerCpuValues, lpm_trie::Key, xdp::DevMapHash,
};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use netspawn_ebpf::{
    abi::{self, endpoint_flag, map},
    verdict::Reason,
};

use super::batch;
use crate::plan::{Op, State, address_map};

macro_rules! values {
    ($($name:ident($inner:ty);)*) => {$(
        #[repr(transparent)]
        #[derive(Clone, Copy)]
        struct $name($inner);
        // SAFETY: numbers and byte arrays with explicit padding (see `abi`).
        unsafe impl aya::Pod for $name {}
    )*};
}

values! {
    Endpoint(abi::EndpointEntry);
    Uplink(abi::Uplink);
    NextHop(abi::NextHop);
    Near(abi::Near);
    Settings(abi::Settings);
    Traffic(abi::Traffic);
    DropKey(abi::DropKey);
}

/// More endpoints than this are not cleared of drops reason by reason: it is asked
/// first what there is.
const FEW: usize = 16;

/// A free entry of the endpoint map.
const FREE: abi::EndpointEntry = abi::EndpointEntry {
    forward: abi::Endpoint {
        ifindex: 0,
        flags: 0,
        tenant: 0,
        mtu: 0,
        mac: [0; 6],
        port_mac: [0; 6],
        vlan: 0,
        pad: 0,
        port_link_local: [0; 16],
    },
    name: [0; abi::NAME_LEN],
    tenant: [0; abi::NAME_LEN],
};

/// All maps, opened from their pins.
pub struct Maps {
    folder: PathBuf,
    addrs4: HashMap<MapData, [u8; 4], u32>,
    addrs6: HashMap<MapData, [u8; 16], u32>,
    prefixes4: LpmTrie<MapData, [u8; 4], u32>,
    prefixes6: LpmTrie<MapData, [u8; 16], u32>,
    sources4: LpmTrie<MapData, [u8; 8], u8>,
    sources6: LpmTrie<MapData, [u8; 20], u8>,
    endpoints: Array<MapData, Endpoint>,
    ports: HashMap<MapData, u32, u32>,
    uplinks: Array<MapData, Uplink>,
    near: Array<MapData, Near>,
    routes4: LpmTrie<MapData, [u8; 4], u32>,
    routes6: LpmTrie<MapData, [u8; 16], u32>,
    nexthops: Array<MapData, NextHop>,
    settings: Array<MapData, Settings>,
    counts: PerCpuArray<MapData, u64>,
    traffic: PerCpuArray<MapData, Traffic>,
    drops: PerCpuHashMap<MapData, DropKey, u64>,
    stations: HashMap<MapData, abi::Neighbor, u8>,
    xdp_ports: DevMapHash<MapData>,
}

fn open<T: TryFrom<Map, Error = MapError>>(folder: &Path, name: &str) -> Result<T> {
    let path = folder.join(name);
    let data = MapData::from_pin(&path)
        .with_context(|| format!("cannot open the pinned map {}", path.display()))?;
    Map::from_map_data(data)
        .and_then(T::try_from)
        .with_context(|| format!("{} is not the map that it should be", path.display()))
}

/// The key in the pinned settings of another version; `None` where it has none.
///
/// # Errors
/// When the settings are there and cannot be read.
pub fn key_of_other(directory: &Path) -> Result<Option<abi::Key>> {
    let path = directory.join(map::SETTINGS);
    if !path
        .try_exists()
        .with_context(|| format!("cannot examine {}", path.display()))?
    {
        return Ok(None);
    }
    let context = || format!("cannot read the pinned map {}", path.display());
    let data = MapData::from_pin(&path).with_context(context)?;
    if data.info().with_context(context)?.value_size() as usize != size_of::<abi::Settings>() {
        return Ok(None);
    }
    let settings: Array<MapData, Settings> = open(directory, map::SETTINGS)?;
    let Settings(settings) = settings.get(&0, 0).with_context(context)?;
    Ok(Some(settings.key).filter(|key| key.is_made()))
}

/// A key that is gone already is as good as removed.
fn removed(result: Result<(), MapError>) -> Result<(), MapError> {
    match result {
        Err(MapError::KeyNotFound) => Ok(()),
        Err(MapError::SyscallError(error)) if error.io_error.kind() == io::ErrorKind::NotFound => {
            Ok(())
        }
        other => other,
    }
}

fn key4(net: &Ipv4Net) -> Key<[u8; 4]> {
    Key::new(u32::from(net.prefix_len()), net.network().octets())
}

fn key6(net: &Ipv6Net) -> Key<[u8; 16]> {
    Key::new(u32::from(net.prefix_len()), net.network().octets())
}

/// A key of [`map::SOURCES4`] or [`map::SOURCES6`].
fn source_key<const N: usize>(id: u32, prefix_len: u8, address: &[u8]) -> Key<[u8; N]> {
    let mut data = [0; N];
    data[..4].copy_from_slice(&id.to_be_bytes());
    data[4..].copy_from_slice(address);
    Key::new(32 + u32::from(prefix_len), data)
}

fn source4(id: u32, net: &Ipv4Net) -> Key<[u8; 8]> {
    source_key(id, net.prefix_len(), &net.network().octets())
}

fn source6(id: u32, net: &Ipv6Net) -> Key<[u8; 20]> {
    source_key(id, net.prefix_len(), &net.network().octets())
}

/// Endpoint id and prefix of such a key.
#[expect(
    clippy::disallowed_methods,
    reason = "this parses text or bytes; no system call can fail here"
)]
fn source_of<const N: usize>(key: &Key<[u8; N]>) -> Option<(u32, IpNet)> {
    let data = key.data();
    let (id, address) = data.split_first_chunk::<4>()?;
    let address = match <[u8; 4]>::try_from(address) {
        Ok(address) => std::net::IpAddr::from(address),
        Err(_) => std::net::IpAddr::from(<[u8; 16]>::try_from(address).ok()?),
    };
    let length = u8::try_from(key.prefix_len().checked_sub(32)?).ok()?;
    Some((u32::from_be_bytes(*id), IpNet::new(address, length).ok()?))
}

#[expect(
    clippy::disallowed_methods,
    reason = "this parses text or bytes; no system call can fail here"
)]
fn net4(key: &Key<[u8; 4]>) -> Option<IpNet> {
    let length = u8::try_from(key.prefix_len()).ok()?;
    Some(Ipv4Net::new(key.data().into(), length).ok()?.into())
}

#[expect(
    clippy::disallowed_methods,
    reason = "this parses text or bytes; no system call can fail here"
)]
fn net6(key: &Key<[u8; 16]>) -> Option<IpNet> {
    let length = u8::try_from(key.prefix_len()).ok()?;
    Some(Ipv6Net::new(key.data().into(), length).ok()?.into())
}

impl Maps {
    /// Opens the maps pinned in a folder.
    ///
    /// # Errors
    /// When one is missing or of another kind.
    pub fn open(folder: &Path) -> Result<Self> {
        Ok(Maps {
            folder: folder.to_owned(),
            addrs4: open(folder, map::ADDRS4)?,
            addrs6: open(folder, map::ADDRS6)?,
            prefixes4: open(folder, map::PREFIXES4)?,
            prefixes6: open(folder, map::PREFIXES6)?,
            sources4: open(folder, map::SOURCES4)?,
            sources6: open(folder, map::SOURCES6)?,
            endpoints: open(folder, map::ENDPOINTS)?,
            ports: open(folder, map::PORTS)?,
            uplinks: open(folder, map::UPLINKS)?,
            near: open(folder, map::NEAR)?,
            routes4: open(folder, map::ROUTES4)?,
            routes6: open(folder, map::ROUTES6)?,
            nexthops: open(folder, map::NEXTHOPS)?,
            settings: open(folder, map::SETTINGS)?,
            counts: open(folder, map::COUNTS)?,
            traffic: open(folder, map::TRAFFIC)?,
            drops: open(folder, map::DROPS)?,
            stations: open(folder, map::STATIONS)?,
            xdp_ports: open(folder, map::XDP_PORTS)?,
        })
    }

    /// Everything that the loader writes, as it is in the maps.
    ///
    /// # Errors
    /// When a map cannot be read.
    pub fn read(&self) -> Result<State> {
        let context = || format!("cannot read the maps in {}", self.folder.display());
        self.read_state().with_context(context)
    }

    fn read_state(&self) -> Result<State, MapError> {
        let mut state = State::default();
        each(self.addrs4.map(), 1, |address: [u8; 4], owner| {
            let net = Ipv4Net::from(std::net::Ipv4Addr::from(address));
            state.addresses.insert(net.into(), value(owner));
            true
        })?;
        each(self.addrs6.map(), 1, |address: [u8; 16], owner| {
            let net = Ipv6Net::from(std::net::Ipv6Addr::from(address));
            state.addresses.insert(net.into(), value(owner));
            true
        })?;
        for (trie, into) in [
            (&self.prefixes4, &mut state.addresses),
            (&self.routes4, &mut state.routes),
        ] {
            for entry in trie.iter() {
                let (key, value) = entry?;
                into.extend(net4(&key).map(|net| (net, value)));
            }
        }
        for (trie, into) in [
            (&self.prefixes6, &mut state.addresses),
            (&self.routes6, &mut state.routes),
        ] {
            for entry in trie.iter() {
                let (key, value) = entry?;
                into.extend(net6(&key).map(|net| (net, value)));
            }
        }
        for entry in self.sources4.iter() {
            state.sources.extend(source_of(&entry?.0));
        }
        for entry in self.sources6.iter() {
            state.sources.extend(source_of(&entry?.0));
        }
        state.endpoints = self.endpoints()?;
        for entry in self.ports.iter() {
            let (ifindex, id) = entry?;
            state.set_port(ifindex, id);
        }
        for entry in self.uplinks.iter() {
            let uplink = entry?.0;
            if uplink.ifindex != 0 {
                state.uplinks.insert(uplink.ifindex, uplink);
            }
        }
        for (index, hop) in (0u32..).zip(self.nexthops.iter()) {
            let hop = hop?.0;
            if hop != abi::NextHop::default() {
                state.nexthops.insert(index, hop);
            }
        }
        *state.near = self.near.get(&0, 0)?.0;
        state.settings = self.settings.get(&0, 0)?.0;
        Ok(state)
    }

    /// The data plane's key, which may not have been made.
    ///
    /// # Errors
    /// When the map cannot be read.
    pub fn key(&self) -> Result<abi::Key> {
        let context = || format!("cannot read the maps in {}", self.folder.display());
        Ok(self.settings.get(&0, 0).with_context(context)?.0.key)
    }

    /// Gives the data plane its key.
    ///
    /// # Errors
    /// When the map cannot be written.
    pub fn set_key(&mut self, key: abi::Key) -> Result<()> {
        let context = || format!("cannot write the maps in {}", self.folder.display());
        let Settings(settings) = self.settings.get(&0, 0).with_context(context)?;
        let settings = Settings(abi::Settings { key, ..settings });
        self.settings.set(0, settings, 0).with_context(context)
    }

    /// Says that these neighbors are there, which the programs find out by themselves
    /// when they hear them.
    ///
    /// # Errors
    /// When the map cannot be written.
    pub fn know<'a>(
        &mut self,
        neighbors: impl IntoIterator<Item = &'a abi::Neighbor>,
    ) -> Result<(), MapError> {
        for neighbor in neighbors {
            self.stations.insert(neighbor, 1, 0)?;
        }
        Ok(())
    }

    /// Carries out steps in their order. Neighboring new addresses go to the
    /// kernel in batches.
    ///
    /// # Errors
    /// Names the step that the kernel refused; those before it are done.
    pub fn apply(&mut self, ops: &[Op]) -> Result<()> {
        let clears = |op: &&Op| matches!(op, Op::ClearCounters { .. });
        let many = ops.iter().filter(clears).count() > FEW;
        let mut dropped = None;
        let mut rest = ops;
        while let Some(op) = rest.first() {
            let run = rest
                .iter()
                .take_while(|op| matches!(op, Op::SetAddress { .. }))
                .count();
            if let Op::ClearCounters { id } = op
                && many
            {
                // Nothing counts any more under the ids that are to be cleared.
                let keys = match dropped.take() {
                    Some(keys) => keys,
                    None => self.dropped()?,
                };
                let of_id = keys.get(id).into_iter().flatten().copied();
                self.clear(*id, of_id)
                    .with_context(|| format!("the kernel refused the step `{op}`"))?;
                dropped = Some(keys);
                rest = &rest[1..];
            } else if run > 1 {
                self.set_addresses(&rest[..run])
                    .with_context(|| format!("cannot write {run} addresses to the maps"))?;
                rest = &rest[run..];
            } else {
                self.step(op)
                    .with_context(|| format!("the kernel refused the step `{op}`"))?;
                rest = &rest[1..];
            }
        }
        Ok(())
    }

    fn set_addresses(&mut self, ops: &[Op]) -> Result<()> {
        let mut runs: BTreeMap<&str, batch::Run> = BTreeMap::new();
        for op in ops {
            let Op::SetAddress { prefix, owner } = op else {
                continue;
            };
            let name = address_map(prefix);
            let run = runs.entry(name).or_default();
            if name == map::PREFIXES4 || name == map::PREFIXES6 {
                run.key(&u32::from(prefix.prefix_len()).to_ne_bytes());
            }
            match prefix {
                IpNet::V4(net) => run.key(&net.network().octets()),
                IpNet::V6(net) => run.key(&net.network().octets()),
            }
            run.value(&owner.to_ne_bytes());
        }
        for (name, run) in runs {
            let map = MapData::from_pin(self.folder.join(name))?;
            run.write(map.fd().as_fd())?;
        }
        Ok(())
    }

    fn step(&mut self, op: &Op) -> Result<(), MapError> {
        match op {
            Op::SetSettings { settings } => self.settings.set(0, Settings(*settings), 0),
            Op::SetNear { near } => self.near.set(0, Near(**near), 0),
            Op::SetUplink { ifindex, uplink } => {
                let slot = match self.uplink(*ifindex)? {
                    Some(slot) => Some(slot),
                    None => self.uplink_free(*ifindex)?,
                };
                // Four uplinks whose ifindexes differ by multiples of 256.
                let slot = slot.ok_or(MapError::OutOfBounds {
                    index: *ifindex,
                    max_entries: abi::UPLINK_SLOTS,
                })?;
                self.uplinks.set(slot, Uplink(*uplink), 0)
            }
            Op::RemoveUplink { ifindex } => match self.uplink(*ifindex)? {
                Some(slot) => self.uplinks.set(slot, Uplink(abi::Uplink::default()), 0),
                None => Ok(()),
            },
            Op::SetNextHop { index, hop } => self.nexthops.set(*index, NextHop(*hop), 0),
            Op::RemoveNextHop { index } => {
                let none = NextHop(abi::NextHop::default());
                self.nexthops.set(*index, none, 0)
            }
            Op::SetRoute { destination, index } => match destination {
                IpNet::V4(net) => self.routes4.insert(&key4(net), *index, 0),
                IpNet::V6(net) => self.routes6.insert(&key6(net), *index, 0),
            },
            Op::RemoveRoute { destination } => removed(match destination {
                IpNet::V4(net) => self.routes4.remove(&key4(net)),
                IpNet::V6(net) => self.routes6.remove(&key6(net)),
            }),
            Op::ClearCounters { id } => {
                self.clear(*id, Reason::ALL.iter().map(|reason| *reason as u32))
            }
            Op::SetEndpoint { id, entry } => {
                let endpoint = &entry.forward;
                if endpoint.flags & endpoint_flag::XDP != 0 {
                    // A device that is just going away is refused; it is not
                    // forwarded to either.
                    let _ = self
                        .xdp_ports
                        .insert(endpoint.ifindex, endpoint.ifindex, None, 0);
                    return self.endpoints.set(*id, Endpoint(**entry), 0);
                }
                self.endpoints.set(*id, Endpoint(**entry), 0)?;
                // It has not been there, in most cases.
                let _ = self.xdp_ports.remove(endpoint.ifindex);
                Ok(())
            }
            Op::RemoveEndpoint { id } => self.endpoints.set(*id, Endpoint(FREE), 0),
            Op::SetPort { ifindex, id } => self.ports.insert(ifindex, id, 0),
            Op::RemovePort { ifindex } => {
                // The kernel has removed it when the device is gone.
                let _ = self.xdp_ports.remove(*ifindex);
                removed(self.ports.remove(ifindex))
            }
            Op::SetAddress { prefix, owner } => {
                let single = prefix.prefix_len() == prefix.max_prefix_len();
                match (prefix, single) {
                    (IpNet::V4(net), true) => self.addrs4.insert(net.addr().octets(), owner, 0),
                    (IpNet::V6(net), true) => self.addrs6.insert(net.addr().octets(), owner, 0),
                    (IpNet::V4(net), false) => self.prefixes4.insert(&key4(net), owner, 0),
                    (IpNet::V6(net), false) => self.prefixes6.insert(&key6(net), owner, 0),
                }
            }
            Op::AddSource { id, prefix } => match prefix {
                IpNet::V4(net) => self.sources4.insert(&source4(*id, net), 1, 0),
                IpNet::V6(net) => self.sources6.insert(&source6(*id, net), 1, 0),
            },
            Op::RemoveSource { id, prefix } => removed(match prefix {
                IpNet::V4(net) => self.sources4.remove(&source4(*id, net)),
                IpNet::V6(net) => self.sources6.remove(&source6(*id, net)),
            }),
            Op::RemoveAddress { prefix } => {
                let single = prefix.prefix_len() == prefix.max_prefix_len();
                removed(match (prefix, single) {
                    (IpNet::V4(net), true) => self.addrs4.remove(&net.addr().octets()),
                    (IpNet::V6(net), true) => self.addrs6.remove(&net.addr().octets()),
                    (IpNet::V4(net), false) => self.prefixes4.remove(&key4(net)),
                    (IpNet::V6(net), false) => self.prefixes6.remove(&key6(net)),
                })
            }
        }
    }

    /// The place of an uplink.
    fn uplink(&self, ifindex: u32) -> Result<Option<u32>, MapError> {
        self.uplink_slot(ifindex, ifindex)
    }

    /// A free place for an uplink.
    fn uplink_free(&self, ifindex: u32) -> Result<Option<u32>, MapError> {
        self.uplink_slot(ifindex, 0)
    }

    /// The first of the places of `ifindex` where `wanted` is.
    fn uplink_slot(&self, ifindex: u32, wanted: u32) -> Result<Option<u32>, MapError> {
        for probe in 0..abi::UPLINK_PROBES {
            let slot = abi::uplink_slot(ifindex, probe);
            if self.uplinks.get(&slot, 0)?.0.ifindex == wanted {
                return Ok(Some(slot));
            }
        }
        Ok(None)
    }

    /// Zeroes the traffic of an endpoint id and its drops for these reasons.
    fn clear(&mut self, id: u32, reasons: impl Iterator<Item = u32>) -> Result<(), MapError> {
        let none = abi::Traffic::default();
        let traffic = self.traffic.get(&id, 0)?;
        if traffic.iter().any(|Traffic(cpu)| *cpu != none) {
            let zero = vec![Traffic(none); traffic.len()];
            let zero = PerCpuValues::try_from(zero).map_err(MapError::IoError)?;
            self.traffic.set(id, zero, 0)?;
        }
        for reason in reasons {
            let endpoint = id;
            let key = DropKey(abi::DropKey { endpoint, reason });
            removed(self.drops.remove(&key))?;
        }
        Ok(())
    }

    /// The reasons for which something was dropped, by endpoint id.
    fn dropped(&self) -> Result<BTreeMap<u32, Vec<u32>>> {
        let mut found: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
        for key in self.drops.keys() {
            let DropKey(key) = key.context("cannot read the drops")?;
            found.entry(key.endpoint).or_default().push(key.reason);
        }
        Ok(found)
    }

    /// Frames by reason, summed over CPUs.
    ///
    /// # Errors
    /// When the map cannot be read.
    pub fn counts(&self) -> Result<BTreeMap<Reason, u64>> {
        Reason::ALL
            .iter()
            .map(|reason| {
                let values = self.counts.get(&(*reason as u32), 0)?;
                Ok((*reason, values.iter().sum()))
            })
            .collect()
    }

    /// The endpoints, by id.
    ///
    /// # Errors
    /// When the map cannot be read.
    pub fn endpoints(&self) -> Result<BTreeMap<u32, abi::EndpointEntry>, MapError> {
        let mut found = BTreeMap::new();
        each(self.endpoints.map(), 1, |id: u32, entry| {
            let Endpoint(entry) = value(entry);
            if entry.name[0] != 0 {
                found.insert(id, entry);
            }
            true
        })?;
        Ok(found)
    }

    /// Traffic of the endpoints named, summed over CPUs.
    ///
    /// # Errors
    /// When the map cannot be read.
    pub fn traffic(&self, ids: impl Iterator<Item = u32>) -> Result<BTreeMap<u32, abi::Traffic>> {
        let mut found: BTreeMap<u32, _> = ids.map(|id| (id, abi::Traffic::default())).collect();
        let Some((last, _)) = found.last_key_value() else {
            return Ok(found);
        };
        let last = *last;
        each(self.traffic.map(), nr_cpus()?, |id: u32, cpus| {
            if let Some(sum) = found.get_mut(&id) {
                for cpu in cpus.chunks_exact(size_of::<Traffic>()) {
                    let Traffic(cpu) = value(cpu);
                    sum.rx_packets += cpu.rx_packets;
                    sum.rx_bytes += cpu.rx_bytes;
                    sum.tx_packets += cpu.tx_packets;
                    sum.tx_bytes += cpu.tx_bytes;
                }
            }
            id < last
        })?;
        Ok(found)
    }

    /// Dropped frames by endpoint and reason, summed over CPUs.
    ///
    /// # Errors
    /// When the map cannot be read.
    pub fn drops(&self) -> Result<BTreeMap<(u32, Reason), u64>> {
        let mut found = BTreeMap::new();
        each(self.drops.map(), nr_cpus()?, |DropKey(key), cpus| {
            if let Some(reason) = Reason::ALL.get(key.reason as usize) {
                let count = cpus.chunks_exact(size_of::<u64>()).map(value::<u64>).sum();
                found.insert((key.endpoint, *reason), count);
            }
            true
        })?;
        Ok(found)
    }
}

/// Number of values that an entry of a per-CPU map has.
fn nr_cpus() -> Result<usize, MapError> {
    aya::util::nr_cpus().map_err(|(_, error)| MapError::IoError(error))
}

/// Hands all entries of a map to `to`, until it returns false.
fn each<K: aya::Pod>(
    map: &MapData,
    cpus: usize,
    mut to: impl FnMut(K, &[u8]) -> bool,
) -> Result<(), MapError> {
    let size = map.info()?.value_size() as usize;
    let size = if cpus > 1 {
        size.next_multiple_of(8)
    } else {
        size
    };
    batch::read(
        map.fd().as_fd(),
        size_of::<K>(),
        size * cpus,
        |key, bytes| to(value(key), bytes),
    )
    .map_err(MapError::IoError)
}

/// A value from the bytes that the kernel has copied.
fn value<T: aya::Pod>(bytes: &[u8]) -> T {
    assert!(bytes.len() >= size_of::<T>(), "the map has another layout");
    // SAFETY: there are enough bytes, any of which make a `Pod`.
    unsafe { bytes.as_ptr().cast::<T>().read_unaligned() }
}
