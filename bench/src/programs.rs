//! The real programs with maps filled by hand, run by `BPF_PROG_TEST_RUN`: nothing is
//! attached, nothing is sent.

use std::{
    collections::BTreeMap,
    net::IpAddr,
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
};

use anyhow::{Context as _, Result};
use aya::{
    Ebpf,
    maps::{
        Array, HashMap, LpmTrie, MapData, PerCpuArray, PerCpuHashMap, RingBuf, lpm_trie::Key,
        xdp::DevMapHash,
    },
    programs::{Program, TcAttachType, tc},
};
use ipnet::IpNet;
use netspawn_ebpf::{
    abi::{self, Budget, NextHop, Owner, Settings, SharedBudget, Traffic, Uplink, map, program},
    verdict::Reason,
    wire::{Ipv4, Ipv6},
};
use netspawn_user::{
    datapath::{
        events::{self, Report},
        object::{self, Sizes},
    },
    plan,
};

use crate::bpf::{self, Trampoline};
pub use crate::bpf::{Context, Kind, Run};

/// The interface that runs are on: the loopback of the namespace.
pub const IFINDEX: u32 = 1;

/// Which program.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Hook {
    /// tc, ingress of the uplink.
    UplinkIngress,
    /// tc, egress of the uplink.
    UplinkEgress,
    /// tc, ingress of a port.
    PortIngress,
    /// XDP on the uplink.
    UplinkXdp,
}

impl Hook {
    /// All of them.
    pub const ALL: [Hook; 4] = [
        Hook::UplinkIngress,
        Hook::UplinkEgress,
        Hook::PortIngress,
        Hook::UplinkXdp,
    ];

    /// The program's name.
    pub const fn name(self) -> &'static str {
        match self {
            Hook::UplinkIngress => program::UPLINK_INGRESS,
            Hook::UplinkEgress => program::UPLINK_EGRESS,
            Hook::PortIngress => program::PORT_INGRESS,
            Hook::UplinkXdp => program::UPLINK_XDP,
        }
    }

    /// Its kind.
    pub const fn kind(self) -> Kind {
        match self {
            Hook::UplinkXdp => Kind::Xdp,
            _ => Kind::Tc,
        }
    }
}

/// A value whose bytes are all its own.
#[repr(transparent)]
#[derive(Clone, Copy)]
struct Value<T>(T);
// SAFETY: what goes into the maps is numbers and byte arrays with explicit padding.
unsafe impl<T: Copy + 'static> aya::Pod for Value<T> {}

/// Programs and maps, loaded for this process alone.
pub struct Programs {
    ebpf: Ebpf,
    tagging: BTreeMap<Hook, Trampoline>,
}

fn prefix(net: IpAddr, length: u32) -> Result<IpNet> {
    Ok(IpNet::new(net, length.try_into()?)?)
}

macro_rules! open {
    ($self:ident, $name:expr) => {
        $self
            .ebpf
            .map_mut($name)
            .with_context(|| format!("the BPF object has no map {}", $name))?
            .try_into()?
    };
}

impl Programs {
    /// Loads them.
    ///
    /// # Errors
    /// Without root, or when the kernel refuses a program.
    pub fn load(sizes: Sizes) -> Result<Self> {
        Ok(Programs {
            ebpf: object::load(None, sizes)?,
            tagging: BTreeMap::new(),
        })
    }

    /// Instructions that the verifier walked, by program; none where the kernel does not
    /// say (before 5.16).
    pub fn verified(&self) -> Result<Vec<(&'static str, u32)>> {
        let mut all = Vec::new();
        for hook in Hook::ALL {
            let info = match self.ebpf.program(hook.name()) {
                Some(Program::SchedClassifier(program)) => program.info()?,
                Some(Program::Xdp(program)) => program.info()?,
                _ => continue,
            };
            all.extend(
                info.verified_instruction_count()
                    .map(|count| (hook.name(), count)),
            );
        }
        Ok(all)
    }

    /// The descriptor of a program.
    pub(crate) fn descriptor(&self, hook: Hook) -> Result<BorrowedFd<'_>> {
        let missing = || format!("the BPF object has no program {}", hook.name());
        let fd = match self.ebpf.program(hook.name()).with_context(missing)? {
            Program::SchedClassifier(program) => program.fd()?,
            Program::Xdp(program) => program.fd()?,
            _ => anyhow::bail!(missing()),
        };
        Ok(fd.as_fd())
    }

    /// Attaches a tc program to an interface of this thread's namespace, until the
    /// programs are dropped.
    pub fn attach(&mut self, hook: Hook, interface: &str) -> Result<()> {
        let side = match hook {
            Hook::UplinkEgress => TcAttachType::Egress,
            _ => TcAttachType::Ingress,
        };
        // Where there is no tcx, filters need it; it may be there already.
        let _ = tc::qdisc_add_clsact(interface);
        object::classifier(&mut self.ebpf, hook.name())?
            .attach(interface, side)
            .with_context(|| format!("cannot attach {} to {interface}", hook.name()))?;
        Ok(())
    }

    /// Sets the settings.
    pub fn settings(&mut self, settings: Settings) -> Result<()> {
        let mut map: Array<&mut MapData, Value<Settings>> = open!(self, map::SETTINGS);
        Ok(map.set(0, Value(settings), 0)?)
    }

    /// Lets endpoints send from prefixes that they do not own.
    pub fn sources4(&mut self, sources: &[(Owner, Ipv4, u32)]) -> Result<()> {
        let mut map: LpmTrie<&mut MapData, [u8; 8], u8> = open!(self, map::SOURCES4);
        for (id, net, length) in sources {
            let mut key = [0; 8];
            key[..4].copy_from_slice(&id.to_be_bytes());
            key[4..].copy_from_slice(net);
            map.insert(&Key::new(32 + length, key), 1, 0)?;
        }
        Ok(())
    }

    /// As [`Programs::sources4`].
    pub fn sources6(&mut self, sources: &[(Owner, Ipv6, u32)]) -> Result<()> {
        let mut map: LpmTrie<&mut MapData, [u8; 20], u8> = open!(self, map::SOURCES6);
        for (id, net, length) in sources {
            let mut key = [0; 20];
            key[..4].copy_from_slice(&id.to_be_bytes());
            key[4..].copy_from_slice(net);
            map.insert(&Key::new(32 + length, key), 1, 0)?;
        }
        Ok(())
    }

    /// What the programs have told since this was last asked.
    pub fn reports(&mut self) -> Result<Vec<Report>> {
        let map = self.ebpf.map_mut(map::EVENTS).context("no ring buffer")?;
        let mut ring = RingBuf::try_from(map)?;
        Ok(events::take(&mut ring))
    }

    /// Lets every endpoint cause errors and events again, and have neighbors looked for.
    pub fn refill_budgets(&mut self) -> Result<()> {
        let mut map: Array<&mut MapData, Value<Budget>> = open!(self, map::BUDGETS);
        for id in 0..map.len() {
            map.set(id, Value(Budget::default()), 0)?;
        }
        let mut map: Array<&mut MapData, Value<SharedBudget>> = open!(self, map::SHARED);
        Ok(map.set(0, Value(SharedBudget::default()), 0)?)
    }

    /// Lets an endpoint cause errors and events again.
    pub fn refill_budget(&mut self, id: Owner) -> Result<()> {
        let mut map: Array<&mut MapData, Value<Budget>> = open!(self, map::BUDGETS);
        Ok(map.set(id, Value(Budget::default()), 0)?)
    }

    /// Makes an interface an uplink.
    pub fn uplink(&mut self, ifindex: u32, uplink: Uplink) -> Result<()> {
        let mut map: Array<&mut MapData, Value<Uplink>> = open!(self, map::UPLINKS);
        let uplink = Uplink { ifindex, ..uplink };
        Ok(map.set(abi::uplink_slot(ifindex, 0), Value(uplink), 0)?)
    }

    /// Makes an interface no uplink.
    pub fn no_uplink(&mut self, ifindex: u32) -> Result<()> {
        let mut map: Array<&mut MapData, Value<Uplink>> = open!(self, map::UPLINKS);
        Ok(map.set(abi::uplink_slot(ifindex, 0), Value(Uplink::default()), 0)?)
    }

    /// Sets a machine.
    pub fn endpoint(&mut self, id: Owner, endpoint: abi::Endpoint) -> Result<()> {
        let mut map: Array<&mut MapData, Value<abi::EndpointEntry>> = open!(self, map::ENDPOINTS);
        let entry = abi::EndpointEntry {
            forward: endpoint,
            name: [b'm'; abi::NAME_LEN],
            tenant: [0; abi::NAME_LEN],
        };
        Ok(map.set(id, Value(entry), 0)?)
    }

    /// Makes an interface the port of a machine, or of none.
    pub fn port(&mut self, ifindex: u32, id: Option<Owner>) -> Result<()> {
        let mut map: HashMap<&mut MapData, u32, u32> = open!(self, map::PORTS);
        match id {
            Some(id) => map.insert(ifindex, id, 0)?,
            // It may have been none before.
            None => drop(map.remove(&ifindex)),
        }
        Ok(())
    }

    /// Lets XDP forward to an interface.
    pub fn xdp_port(&mut self, ifindex: u32) -> Result<()> {
        let mut map: DevMapHash<&mut MapData> = open!(self, map::XDP_PORTS);
        Ok(map.insert(ifindex, ifindex, None, 0)?)
    }

    /// Gives IPv4 prefixes to their owners.
    pub fn owners4(&mut self, owners: &[(Ipv4, u32, Owner)]) -> Result<()> {
        let mut single: HashMap<&mut MapData, Ipv4, u32> = open!(self, map::ADDRS4);
        for (address, _, owner) in owners.iter().filter(|(_, length, _)| *length == 32) {
            single.insert(address, owner, 0)?;
        }
        let mut shorter: LpmTrie<&mut MapData, Ipv4, u32> = open!(self, map::PREFIXES4);
        for (address, length, owner) in owners.iter().filter(|(_, length, _)| *length < 32) {
            shorter.insert(&Key::new(*length, *address), owner, 0)?;
        }
        let prefix = |(net, length, _): &(Ipv4, u32, _)| prefix((*net).into(), *length);
        self.near(owners.iter().map(prefix).collect::<Result<_>>()?)
    }

    /// Gives IPv6 prefixes to their owners.
    pub fn owners6(&mut self, owners: &[(Ipv6, u32, Owner)]) -> Result<()> {
        let mut single: HashMap<&mut MapData, Ipv6, u32> = open!(self, map::ADDRS6);
        for (address, _, owner) in owners.iter().filter(|(_, length, _)| *length == 128) {
            single.insert(address, owner, 0)?;
        }
        let mut shorter: LpmTrie<&mut MapData, Ipv6, u32> = open!(self, map::PREFIXES6);
        for (address, length, owner) in owners.iter().filter(|(_, length, _)| *length < 128) {
            shorter.insert(&Key::new(*length, *address), owner, 0)?;
        }
        let prefix = |(net, length, _): &(Ipv6, u32, _)| prefix((*net).into(), *length);
        self.near(owners.iter().map(prefix).collect::<Result<_>>()?)
    }

    /// Adds to the hint where addresses are.
    fn near(&mut self, prefixes: Vec<IpNet>) -> Result<()> {
        let mut map: Array<&mut MapData, Value<abi::Near>> = open!(self, map::NEAR);
        let Value(mut near) = map.get(&0, 0)?;
        for (word, more) in near.words.iter_mut().zip(plan::near(&prefixes).words) {
            *word |= more;
        }
        Ok(map.set(0, Value(near), 0)?)
    }

    /// Sets the next hops, from index 0 on.
    pub fn nexthops(&mut self, hops: &[NextHop]) -> Result<()> {
        let mut map: Array<&mut MapData, Value<NextHop>> = open!(self, map::NEXTHOPS);
        for (index, hop) in (0..).zip(hops) {
            map.set(index, Value(*hop), 0)?;
        }
        Ok(())
    }

    /// Sets IPv4 routes to an index of the next hops.
    pub fn routes4(&mut self, routes: &[(Ipv4, u32, u32)]) -> Result<()> {
        let mut map: LpmTrie<&mut MapData, Ipv4, u32> = open!(self, map::ROUTES4);
        for (net, length, index) in routes {
            map.insert(&Key::new(*length, *net), index, 0)?;
        }
        Ok(())
    }

    /// Sets IPv6 routes to an index of the next hops.
    pub fn routes6(&mut self, routes: &[(Ipv6, u32, u32)]) -> Result<()> {
        let mut map: LpmTrie<&mut MapData, Ipv6, u32> = open!(self, map::ROUTES6);
        for (net, length, index) in routes {
            map.insert(&Key::new(*length, *net), index, 0)?;
        }
        Ok(())
    }

    /// Frames by reason, those that there were none of left out.
    pub fn counts(&self) -> Result<BTreeMap<Reason, u64>> {
        let map = self.ebpf.map(map::COUNTS).context("no counters")?;
        let map = PerCpuArray::<&MapData, u64>::try_from(map)?;
        let mut counts = BTreeMap::new();
        for reason in Reason::ALL {
            let count = map.get(&(*reason as u32), 0)?.iter().sum();
            if count > 0 {
                counts.insert(*reason, count);
            }
        }
        Ok(counts)
    }

    /// What a machine's counters say.
    pub fn traffic(&self, id: Owner) -> Result<Traffic> {
        let map = self.ebpf.map(map::TRAFFIC).context("no counters")?;
        let map = PerCpuArray::<&MapData, Value<Traffic>>::try_from(map)?;
        let mut sum = Traffic::default();
        for Value(cpu) in map.get(&id, 0)?.iter() {
            sum.rx_packets += cpu.rx_packets;
            sum.rx_bytes += cpu.rx_bytes;
            sum.tx_packets += cpu.tx_packets;
            sum.tx_bytes += cpu.tx_bytes;
        }
        Ok(sum)
    }

    /// Drops by machine and reason.
    pub fn drops(&self) -> Result<BTreeMap<(Owner, u32), u64>> {
        let map = self.ebpf.map(map::DROPS).context("no counters")?;
        let map = PerCpuHashMap::<&MapData, Value<abi::DropKey>, u64>::try_from(map)?;
        let mut drops = BTreeMap::new();
        for entry in map.iter() {
            let (Value(key), values) = entry?;
            drops.insert((key.endpoint, key.reason), values.iter().sum());
        }
        Ok(drops)
    }

    /// Runs a program on a frame, which comes in on [`IFINDEX`].
    pub fn run(&self, hook: Hook, frame: &[u8], context: Context) -> Result<Run> {
        bpf::run(hook.kind(), self.descriptor(hook)?, frame, context, 1)
    }

    /// Runs a tc program on a frame with an 802.1Q tag beside it.
    pub fn run_tagged(&mut self, hook: Hook, frame: &[u8], context: Context) -> Result<Run> {
        if !self.tagging.contains_key(&hook) {
            let trampoline = Trampoline::tagging(self.descriptor(hook)?)?;
            self.tagging.insert(hook, trampoline);
        }
        let program = self.tagging[&hook].as_fd();
        bpf::run(Kind::Tc, program, frame, context, 1)
    }

    /// A program that runs this one on one of these frames after the other.
    pub(crate) fn replay(&self, hook: Hook, frames: &[Vec<u8>]) -> Result<Trampoline> {
        Trampoline::replaying(hook.kind(), self.descriptor(hook)?, frames)
    }
}

/// The same with a program that does nothing.
pub(crate) fn replay_idle(kind: Kind, frames: &[Vec<u8>]) -> Result<(OwnedFd, Trampoline)> {
    let idle = bpf::idle(kind)?;
    let trampoline = Trampoline::replaying(kind, idle.as_fd(), frames)?;
    Ok((idle, trampoline))
}
