//! Everything that findings are made from, read once. Nothing is changed.

mod firewall;
mod guests;
mod kernel;
mod neighbors;
mod networkd;
mod processes;
mod uplinks;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    net::IpAddr,
    path::PathBuf,
};

use anyhow::{Context as _, Result};
use ipnet::IpNet;

pub use firewall::{Chain, Firewall, LegacyTable, parse as parse_nft, saved_rules};
pub use guests::{Guest, Guests};
pub use kernel::{Kernel, Refusal};
pub use networkd::{ForeignRoute, Networkd, PortFile, Unit, file_for_veth};
pub use processes::Daemon;
pub use uplinks::Uplink;

use super::Area;
use crate::{
    cli::{Global, Mode},
    commands::{DataPlane, View, declarations},
    config::{Config, Policy},
    control::RunDir,
    datapath::pins::{Pins, Place},
    model::{Host, Link, Route, Unfollowed},
    net::read::NeighborTable,
    outcome,
    plan::State,
    registry::{self, Desired, Inputs, Limits},
    source::{Registered, Snapshot, Source},
};

/// The values below `/proc/sys/net` that are looked at, by path.
pub type Settings = BTreeMap<String, String>;

/// Everything there is to know.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    /// Whether this is root's process.
    pub root: bool,
    /// The host's network.
    pub host: Host,
    /// What `via-host` in netspawn.toml names.
    pub via_host: Vec<IpNet>,
    /// Proxy neighbors and bridges.
    pub unfollowed: Unfollowed,
    /// Neighbors that did not answer when last asked (`NUD_FAILED`).
    pub silent: BTreeSet<(u32, IpAddr)>,
    /// The room for neighbors, by family (`AF_INET`, `AF_INET6`).
    pub neighbor_tables: BTreeMap<i32, NeighborTable>,
    /// BPFDIR's file system, or why it cannot be told.
    pub place: Option<Result<Place, String>>,
    /// Why BPFDIR is refused: it is another user's.
    pub foreign: Option<String>,
    /// Why BPFDIR or RUNDIR are not this namespace's.
    pub other_namespace: Vec<String>,
    /// Why what is pinned cannot be read.
    pub unreadable: Option<String>,
    /// Whether something is attached.
    pub attached: bool,
    /// The uplinks in question.
    pub uplinks: Vec<Uplink>,
    /// Where machines are declared.
    pub sources: BTreeSet<Source>,
    /// Faults of files, each a line.
    pub faults: Vec<String>,
    /// The declarations.
    pub snapshot: Snapshot,
    /// What becomes of them with these uplinks.
    pub desired: Desired,
    /// Machines that something has come in for.
    pub reached: BTreeSet<String>,
    /// Settings of the network.
    pub settings: Settings,
    /// BPF, where it was tried.
    pub kernel: Option<Kernel>,
    /// The firewall, where it could be read.
    pub firewall: Option<Firewall>,
    /// Daemons that answer for others.
    pub daemons: Vec<Daemon>,
    /// Whether systemd is the host's init.
    pub systemd: bool,
    /// networkd, where it looks after this network namespace.
    pub networkd: Option<Networkd>,
    /// The machines' own ends, where they could be read.
    pub guests: Option<Guests>,
}

impl Facts {
    /// Whether what rules of an area need was read.
    pub fn has_read(&self, area: Area) -> bool {
        match area {
            Area::Open => true,
            Area::Bpf => self.kernel.is_some(),
            Area::Firewall => self.firewall.is_some(),
            Area::Guests => self.guests.is_some(),
            Area::Networkd => self.networkd.is_some(),
        }
    }

    /// A value below `/proc/sys/net`.
    pub fn setting(&self, key: &str) -> Option<&str> {
        self.settings.get(key).map(String::as_str)
    }

    /// Uplinks that are there, with their links.
    pub fn links(&self) -> impl Iterator<Item = (&Uplink, &Link)> {
        let link = |uplink: &Uplink| self.host.links.get(&uplink.ifindex?);
        self.uplinks
            .iter()
            .filter_map(move |uplink| Some((uplink, link(uplink)?)))
    }

    /// Whether a link is an uplink.
    pub fn is_uplink(&self, ifindex: u32) -> bool {
        self.links().any(|(_, link)| link.ifindex == ifindex)
    }

    /// Ports of machines, with the machines' names.
    pub fn ports(&self) -> impl Iterator<Item = (&str, &Link)> {
        self.desired.machines.iter().filter_map(|machine| {
            let link = self.host.links.get(&machine.ifindex?)?;
            Some((machine.name.as_str(), link))
        })
    }

    /// The host's route to an address: of the longest prefixes that of the
    /// lowest metric.
    pub fn route_to(&self, address: IpAddr) -> Option<&Route> {
        self.host
            .routes
            .iter()
            .filter(|route| route.destination.contains(&address))
            .max_by_key(|route| {
                (
                    route.destination.prefix_len(),
                    std::cmp::Reverse(route.priority),
                )
            })
    }

    /// An interface's name for messages.
    pub fn name(&self, ifindex: u32) -> String {
        match self.host.links.get(&ifindex) {
            Some(link) => link.name.clone(),
            None => format!("interface {ifindex}"),
        }
    }
}

/// Reads everything.
///
/// # Errors
/// When the host's network cannot be read.
#[expect(
    clippy::disallowed_methods,
    reason = "what cannot be read is unknown to `check`, which then says nothing of it"
)]
pub fn gather(global: &Global, named: Option<&str>, plane: &dyn DataPlane) -> Result<Facts> {
    let root = nix::unistd::geteuid().is_root();
    let pins = Pins::new(&global.bpf_dir);
    let run_dir = RunDir::new(&global.run_dir);
    let mut facts = Facts {
        root,
        unfollowed: Unfollowed::dump().context("cannot read the host's network")?,
        silent: neighbors::silent().unwrap_or_default(),
        neighbor_tables: neighbors::tables().unwrap_or_default(),
        place: Some(pins.place().map_err(|error| text(&error))),
        foreign: pins.check_owner().err().map(|error| text(&error)),
        other_namespace: [run_dir.check_namespace(), pins.check_namespace()]
            .into_iter()
            .filter_map(|result| Some(text(&result.err()?)))
            .collect(),
        ..Facts::default()
    };
    let config = Config::load(&global.config_dir).unwrap_or_else(|problems| {
        let lines = problems.iter().map(ToString::to_string);
        facts.faults.extend(lines);
        Config::default()
    });
    let mut view = match plane.view() {
        Ok(view) => view,
        Err(error) => {
            if facts.other_namespace.is_empty() && facts.foreign.is_none() {
                facts.unreadable = Some(text(&error));
            }
            nothing_attached(run_dir.sources().unwrap_or_else(|error| {
                facts.faults.push(text(&error));
                Source::DEFAULT.into()
            }))?
        }
    };
    let recorded = pins.uplinks().unwrap_or_else(|error| {
        if facts.other_namespace.is_empty() {
            facts.unreadable.get_or_insert(text(&error));
        }
        Vec::new()
    });
    facts.attached = !view.uplinks.is_empty();
    if let (false, Some(named)) = (facts.attached, &config.attach.source) {
        view.sources = named.iter().copied().collect();
    }
    facts.uplinks = uplinks::find(&view, &config, &recorded, named);
    if root {
        uplinks::read_others(&mut facts.uplinks, &pins);
    }
    let mut snapshot = declarations(global, &view);
    snapshot.registered = view.registered.clone();
    let faults = snapshot.problems.iter().map(ToString::to_string);
    facts.faults.extend(faults);
    facts.desired = registry::resolve(&Inputs {
        snapshot: &snapshot,
        host: &view.host,
        uplinks: &facts.uplinks.iter().filter_map(|up| up.ifindex).collect(),
        xdp_ports: &BTreeSet::new(),
        policy: &config.policy,
        held: &view.held,
        limits: view.limits,
        deadline: 0,
    });
    facts.snapshot = snapshot;
    facts.via_host = config.policy.via_host;
    if !root {
        // What others may not read is no fault of the file.
        facts.faults.retain(|line| !line.contains(DENIED));
    }
    facts.reached = reached(&view, &facts.desired);
    facts.sources = view.sources;
    facts.host = view.host;
    facts.settings = settings(&facts);
    let processes = processes::read();
    facts.daemons = processes.daemons;
    facts.systemd = fs::exists("/run/systemd/system").unwrap_or(false);
    if processes.networkd {
        facts.networkd = Some(networkd::read(&facts.host));
    }
    if root {
        facts.kernel = Some(kernel::read());
        facts.firewall = firewall::read();
        facts.guests = Some(guests::read(&facts.desired, &facts.host));
    }
    Ok(facts)
}

/// What the system calls `EACCES`, in messages.
const DENIED: &str = "(os error 13)";

/// An error in one line.
fn text(error: &anyhow::Error) -> String {
    outcome::lines(error).join("; ")
}

fn nothing_attached(sources: BTreeSet<Source>) -> Result<View> {
    Ok(View {
        host: Host::dump().context("cannot read the host's network")?,
        uplinks: Vec::new(),
        held: State::default(),
        unguarded: BTreeMap::new(),
        limits: Limits {
            max_machines: u32::MAX,
            max_addresses: u32::MAX,
        },
        counts: BTreeMap::new(),
        traffic: BTreeMap::new(),
        drops: BTreeMap::new(),
        agent: None,
        troubles: Vec::new(),
        sources,
        registered: Registered::default(),
        policy: Policy::default(),
    })
}

/// Machines that something has come in for.
fn reached(view: &View, desired: &Desired) -> BTreeSet<String> {
    let machines = desired.machines.iter();
    machines
        .filter(|machine| {
            let traffic = machine.endpoint.and_then(|id| view.traffic.get(&id));
            traffic.is_some_and(|traffic| traffic.rx_packets > 0)
        })
        .map(|machine| machine.name.clone())
        .collect()
}

/// Reads the settings of all, of uplinks and of ports.
#[expect(
    clippy::disallowed_methods,
    reason = "what cannot be read is unknown to `check`, which then says nothing of it"
)]
fn settings(facts: &Facts) -> Settings {
    const EACH: [&str; 5] = [
        "ipv4/conf/{}/proxy_arp",
        "ipv4/conf/{}/rp_filter",
        "ipv6/conf/{}/proxy_ndp",
        "ipv6/conf/{}/disable_ipv6",
        "ipv6/conf/{}/forwarding",
    ];
    let links = facts.links().map(|(_, link)| link);
    let ports = facts.ports().map(|(_, link)| link);
    let names = links.chain(ports).map(|link| link.name.as_str());
    let names = names.chain(["all", "default"]);
    names
        .flat_map(|name| EACH.map(|key| key.replace("{}", name)))
        .chain(["ipv4/ip_forward".to_owned()])
        .filter_map(|key| {
            let value = fs::read_to_string(PathBuf::from("/proc/sys/net").join(&key)).ok()?;
            Some((key, value.trim().to_owned()))
        })
        .collect()
}

/// The mode of an uplink that is not attached.
fn configured_mode(config: &Config) -> Mode {
    config.attach.mode.unwrap_or_default()
}
