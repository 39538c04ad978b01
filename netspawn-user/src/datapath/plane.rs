//! The data plane as one thing: maps, programs, and what they hang on. The only
//! writer of all three.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    os::fd::{AsFd, OwnedFd},
    path::Path,
    time::Instant,
};

use anyhow::{Context as _, Result, bail};
use aya::Ebpf;
use ipnet::IpNet;
use netspawn_ebpf::{
    abi::{HOST, map, program},
    wire::Mac,
};

use super::{
    attach::{PortState, Ports, Uplinks, bpf, bpf::Hook},
    maps::Maps,
    object::{self, Sizes},
    pins::{self, Pins},
};
use crate::{
    cli::Mode,
    commands::UplinkView,
    config::Policy,
    model::{DisplayMac, Host, Link},
    net::{multicast, netlink::Netlink, xdp_ready},
    plan::{self, State},
    problem::{Fault, Problem},
    registry::{self, Desired, Inputs, Limits},
    source::Snapshot,
};

/// More groups than this, and the uplink takes all of them (M2).
const MAX_GROUPS: usize = 256;

/// File names of the links of an uplink.
const LINKS: [(Hook, &str); 3] = [
    (Hook::Xdp, "xdp"),
    (Hook::TcIngress, "tc-ingress"),
    (Hook::TcEgress, "tc-egress"),
];
/// Record of an uplink that is switched to all multicast.
const ALL_MULTICAST: &str = "allmulti";
/// Start of the record of a link-layer group.
const GROUP: &str = "group-";

/// What decides the content of the maps, besides what they hold.
pub struct Wanted<'a> {
    /// Machines.
    pub snapshot: &'a Snapshot,
    /// The host's network.
    pub host: &'a Host,
    /// What machines may do.
    pub policy: Policy,
    /// Until when next hops resolved now are good (`CLOCK_MONOTONIC`, ns).
    pub deadline: u64,
}

/// An attached data plane.
pub struct Plane {
    pins: Pins,
    maps: Maps,
    state: State,
    limits: Limits,
    /// Loaded by this process; `None` when it only works on what is pinned.
    programs: Option<Ebpf>,
    guard: OwnedFd,
    guard_id: u32,
    ports: Ports,
    uplinks: Uplinks,
    netlink: Netlink,
    /// Ports whose guard has been seen to by this process.
    guarded: BTreeSet<u32>,
    /// Those among them whose time has not been told.
    newly_guarded: Vec<(u32, Instant)>,
    /// Whether a port's machine takes XDP frames, where it was found out.
    takes_xdp: BTreeMap<u32, bool>,
    /// Whether this process made it.
    fresh: bool,
}

impl Plane {
    /// Opens what is pinned, without loading anything; `None` when nothing is.
    ///
    /// # Errors
    /// When it belongs to another network namespace or cannot be opened.
    pub fn open(bpf_dir: &Path) -> Result<Option<Plane>> {
        let pins = Pins::new(bpf_dir);
        if !pins.exist() {
            return Ok(None);
        }
        pins.check_namespace()?;
        let guard = bpf::open_pin(&pins.guard())
            .ok()
            .flatten()
            .with_context(|| unfinished(bpf_dir))?;
        let Some(sizes) = Sizes::pinned(&pins.maps()) else {
            bail!(unfinished(bpf_dir));
        };
        Plane::assemble(pins, sizes, guard, None, false).map(Some)
    }

    /// Loads programs, with maps of their own or with those that are pinned.
    /// Nothing runs yet that did not before.
    ///
    /// # Errors
    /// When the kernel refuses; nothing is left behind that was not there.
    pub fn load(bpf_dir: &Path, sizes: Sizes) -> Result<Plane> {
        let pins = Pins::new(bpf_dir);
        pins.check_namespace()?;
        let fresh = Sizes::pinned(&pins.maps()).is_none();
        if fresh && pins.exist() {
            // An attach that did not come to an end, or a damaged folder.
            Plane::sweep(&pins)?;
        }
        let plane = pins
            .make()
            .and_then(|()| Plane::load_with(pins.clone(), sizes, fresh));
        if plane.is_err() && fresh {
            // The first failure is the one to report.
            let _ = pins.remove_all();
        }
        plane
    }

    fn load_with(pins: Pins, sizes: Sizes, fresh: bool) -> Result<Plane> {
        let adopt = fresh || Sizes::pinned(&pins.maps()) == Some(sizes);
        let folder = if adopt { pins.maps() } else { pins.next_maps() };
        if !adopt {
            pins::remove_tree(&folder)?;
            fs::create_dir(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
        }
        let mut ebpf = object::load(Some(&folder), sizes)?;
        if !adopt {
            // The same content, in place before a program of it runs.
            let held = Maps::open(&pins.maps())?.read()?;
            let ops = plan::plan(&State::default(), &held);
            if let Err(error) = Maps::open(&folder)?.apply(&ops) {
                pins::remove_tree(&folder)?;
                return Err(error
                    .context("the machines that are attached do not fit into maps of that size"));
            }
        }
        let guard = object::classifier(&mut ebpf, program::PORT_INGRESS)?
            .fd()?
            .as_fd()
            .try_clone_to_owned()?;
        let mut plane = Plane::assemble(pins, sizes, guard, Some(ebpf), fresh)?;
        if !adopt {
            plane.maps = Maps::open(&plane.pins.next_maps())?;
        }
        Ok(plane)
    }

    fn assemble(
        pins: Pins,
        sizes: Sizes,
        guard: OwnedFd,
        programs: Option<Ebpf>,
        fresh: bool,
    ) -> Result<Plane> {
        let maps = Maps::open(&pins.maps())?;
        Ok(Plane {
            state: maps.read()?,
            maps,
            limits: Limits {
                max_machines: sizes.machines,
                max_addresses: sizes.addresses,
            },
            programs,
            guard_id: bpf::program_id(guard.as_fd())
                .context("cannot read the program that guards ports")?,
            guard,
            ports: Ports::open(&pins.ports())?,
            uplinks: Uplinks::open()?,
            netlink: Netlink::open()?,
            guarded: BTreeSet::new(),
            newly_guarded: Vec::new(),
            takes_xdp: BTreeMap::new(),
            fresh,
            pins,
        })
    }

    /// What the maps hold.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// The maps.
    pub fn maps(&self) -> &Maps {
        &self.maps
    }

    /// Room in the maps.
    pub fn limits(&self) -> Limits {
        self.limits
    }

    /// Names of the uplinks recorded.
    pub fn uplink_names(&self) -> Vec<String> {
        self.pins
            .uplinks()
            .into_iter()
            .map(|(name, _)| name)
            .collect()
    }

    /// The uplinks recorded, with what hangs on them.
    ///
    /// # Errors
    /// When the kernel does not tell.
    pub fn attached(&mut self) -> Result<Vec<UplinkView>> {
        let mut views = Vec::new();
        for (name, ifindex) in self.pins.uplinks() {
            let links = self.links(&name);
            let links: Vec<_> = links
                .iter()
                .map(|(hook, path)| (*hook, path.as_path()))
                .collect();
            let found = self.uplinks.query(ifindex, &links)?;
            let xdp = found.iter().any(|program| program.hook == Hook::Xdp);
            views.push(UplinkView {
                ifindex,
                mode: if xdp { "xdp" } else { "tc" }.to_owned(),
                programs: found
                    .iter()
                    .map(|program| program_of(program.hook).to_owned())
                    .collect(),
            });
        }
        Ok(views)
    }

    fn links(&self, name: &str) -> Vec<(Hook, std::path::PathBuf)> {
        let folder = self.pins.uplink(name);
        LINKS.map(|(hook, file)| (hook, folder.join(file))).into()
    }

    /// Attaches uplinks, and has every uplink and port that is attached already
    /// run the programs of this process. The maps are filled before a program
    /// runs on a new uplink.
    ///
    /// # Errors
    /// When one cannot be attached: then all is as it was before.
    pub fn attach(&mut self, new: &[(&Link, Mode)], wanted: &Wanted<'_>) -> Result<Desired> {
        let before = self.pins.uplinks();
        let result = self.attach_all(new, wanted);
        if result.is_err() {
            if self.fresh {
                // The first failure is the one to report.
                let _ = self.teardown();
            } else {
                for (link, _) in new {
                    if !before.iter().any(|(name, _)| *name == link.name) {
                        let _ = self.take_off(&link.name, link.ifindex);
                    }
                }
                let _ = self.sync(wanted);
            }
        }
        result
    }

    fn attach_all(&mut self, new: &[(&Link, Mode)], wanted: &Wanted<'_>) -> Result<Desired> {
        for (link, _) in new {
            self.pins
                .record_uplink(&link.name, "ifindex", &link.ifindex.to_string())?;
        }
        let resized = self.pins.next_maps().exists();
        self.pin_guard()?;
        let desired = self.sync(wanted)?;
        for (name, ifindex) in self.pins.uplinks() {
            let xdp = match new.iter().find(|(link, _)| link.name == name) {
                Some((_, mode)) => *mode == Mode::Xdp,
                None if wanted.host.link(&name).is_none() => continue,
                None => self.pins.uplink(&name).join("xdp").exists(),
            };
            self.attach_uplink(&name, ifindex, xdp)?;
        }
        self.ports.replace_program(self.guard.as_fd())?;
        if resized {
            self.pins.swap_maps()?;
            self.maps = Maps::open(&self.pins.maps())?;
        }
        self.guarded.clear();
        self.guard_ports(&self.state.ports.keys().copied().collect());
        self.fresh = false;
        Ok(desired)
    }

    /// Replaces the pin of the program that guards ports.
    fn pin_guard(&self) -> Result<()> {
        let path = self.pins.guard();
        if path.symlink_metadata().is_ok() {
            fs::remove_file(&path).with_context(|| format!("cannot remove {}", path.display()))?;
        }
        bpf::pin(self.guard.as_fd(), &path)
            .with_context(|| format!("cannot pin {}", path.display()))
    }

    /// XDP goes first, because that is what may be refused.
    fn attach_uplink(&mut self, name: &str, ifindex: u32, xdp: bool) -> Result<()> {
        let programs = self
            .programs
            .as_mut()
            .context("this process has loaded no programs")?;
        for (hook, pin) in LINKS.map(|(hook, file)| (hook, self.pins.uplink(name).join(file))) {
            let program = match hook {
                Hook::Xdp if !xdp => {
                    self.uplinks.detach(ifindex, &[(hook, &pin)])?;
                    continue;
                }
                Hook::Xdp => object::xdp(programs)?.fd()?.as_fd(),
                _ => object::classifier(programs, program_of(hook))?
                    .fd()?
                    .as_fd(),
            };
            self.uplinks.attach(ifindex, hook, program, &pin)?;
        }
        Ok(())
    }

    /// Attaches again what an uplink has lost by being deleted and made anew, or
    /// by somebody else's hand.
    ///
    /// # Errors
    /// When the kernel refuses.
    fn reattach(&mut self, host: &Host) -> Result<()> {
        if self.programs.is_none() {
            return Ok(());
        }
        for (name, recorded) in self.pins.uplinks() {
            let Some(link) = host.link(&name) else {
                continue;
            };
            if link.ifindex != recorded {
                let xdp = self.pins.uplink(&name).join("xdp").exists();
                self.attach_uplink(&name, link.ifindex, xdp)?;
                self.pins
                    .record_uplink(&name, "ifindex", &link.ifindex.to_string())?;
                for record in self.pins.records(&name) {
                    if record.starts_with(GROUP) || record == ALL_MULTICAST {
                        self.pins.forget(&name, &record)?;
                    }
                }
                tracing::info!("{name} is back, and attached again");
            }
        }
        Ok(())
    }

    /// Brings the maps, the ports' guards and the uplinks' groups up to date.
    ///
    /// A port that cannot be guarded is left out as if it did not exist, and
    /// reported among the problems.
    ///
    /// # Errors
    /// When the maps cannot be written.
    pub fn sync(&mut self, wanted: &Wanted<'_>) -> Result<Desired> {
        self.reattach(wanted.host)?;
        let uplinks: BTreeSet<u32> = self
            .pins
            .uplinks()
            .into_iter()
            .map(|(_, ifindex)| ifindex)
            .filter(|ifindex| wanted.host.links.contains_key(ifindex))
            .collect();
        self.guarded
            .retain(|ifindex| wanted.host.links.contains_key(ifindex));
        self.takes_xdp
            .retain(|ifindex, _| wanted.host.links.contains_key(ifindex));

        let mut host = std::borrow::Cow::Borrowed(wanted.host);
        let mut refused = Vec::new();
        let desired = loop {
            let desired = self.resolve(wanted, &host, &uplinks);
            let failed = self.guard_ports(&desired.state.ports.keys().copied().collect());
            if failed.is_empty() {
                if self.learn_xdp(&host, &desired) {
                    continue;
                }
                break desired;
            }
            for (ifindex, problem) in failed {
                host.to_mut().links.remove(&ifindex);
                refused.push(problem);
            }
        };

        let result = self.maps.apply(&plan::plan(&self.state, &desired.state));
        if result.is_err() {
            // What was done before the failure counts. A map that is full has no
            // room for the new beside the old, so the old goes first this time.
            self.state = self.maps.read()?;
            let mut ops = plan::plan(&self.state, &desired.state);
            ops.sort_by_key(|op| !matches!(op, plan::Op::RemoveAddress { .. }));
            if let Err(error) = self.maps.apply(&ops) {
                self.state = self.maps.read()?;
                return Err(error);
            }
        }
        let before = std::mem::replace(&mut self.state, desired.state.clone());
        for ifindex in before.ports.keys() {
            if !self.state.ports.contains_key(ifindex)
                && self.guarded.remove(ifindex)
                && let Err(error) = self.ports.remove(*ifindex)
            {
                refused.push(problem(error.to_string()));
            }
        }
        for (name, ifindex) in self.pins.uplinks() {
            if uplinks.contains(&ifindex)
                && let Err(error) = self.sync_groups(&name, ifindex)
            {
                refused.push(problem(format!("{error:#}")));
            }
        }
        let mut desired = desired;
        desired.problems.extend(refused);
        Ok(desired)
    }

    fn resolve(&self, wanted: &Wanted<'_>, host: &Host, uplinks: &BTreeSet<u32>) -> Desired {
        registry::resolve(&Inputs {
            snapshot: wanted.snapshot,
            host,
            uplinks,
            xdp_ports: &self
                .takes_xdp
                .iter()
                .filter(|(_, takes)| **takes)
                .map(|(ifindex, _)| *ifindex)
                .collect(),
            policy: wanted.policy,
            held: &self.state,
            limits: self.limits,
            deadline: wanted.deadline,
        })
    }

    /// Guards the ports that have not been seen to. Those that could not be
    /// guarded come back.
    fn guard_ports(&mut self, ports: &BTreeSet<u32>) -> Vec<(u32, Problem)> {
        let mut failed = Vec::new();
        for ifindex in ports.difference(&self.guarded.clone()) {
            match self.ports.ensure(*ifindex, self.guard.as_fd()) {
                Ok(_) => {
                    self.guarded.insert(*ifindex);
                    self.newly_guarded.push((*ifindex, Instant::now()));
                }
                Err(error) => failed.push((*ifindex, problem(error.to_string()))),
            }
        }
        failed
    }

    /// Ports that have got their guard since this was last asked, and when.
    pub fn take_newly_guarded(&mut self) -> Vec<(u32, Instant)> {
        std::mem::take(&mut self.newly_guarded)
    }

    /// Finds out which new ports take XDP frames, where an uplink sends such;
    /// whether there is one.
    fn learn_xdp(&mut self, host: &Host, desired: &Desired) -> bool {
        let xdp = self
            .pins
            .uplinks()
            .iter()
            .any(|(name, _)| self.pins.uplink(name).join("xdp").exists());
        if !xdp {
            return false;
        }
        let (ports, peers): (Vec<u32>, Vec<_>) = desired
            .state
            .ports
            .keys()
            .filter(|ifindex| !self.takes_xdp.contains_key(ifindex))
            .filter_map(|ifindex| Some((*ifindex, host.links.get(ifindex)?.peer?)))
            .unzip();
        if ports.is_empty() {
            return false;
        }
        let found = xdp_ready::take_xdp(&mut self.netlink, &peers);
        let mut any = false;
        for (ifindex, takes) in ports.into_iter().zip(found) {
            any |= takes == Some(true);
            self.takes_xdp.insert(ifindex, takes == Some(true));
        }
        any
    }

    /// Looks at the guards as the kernel has them, and forgets what was found
    /// out of machines, so that the next [`Plane::sync`] mends both.
    ///
    /// # Errors
    /// When the kernel does not tell.
    pub fn verify(&mut self) -> Result<()> {
        let states = self.ports.dump()?;
        let intact = |ifindex: &u32| {
            states
                .get(ifindex)
                .is_some_and(|state: &PortState| state.guarded_by(self.guard_id))
        };
        for ifindex in self.guarded.iter().filter(|ifindex| !intact(ifindex)) {
            tracing::warn!("the guard of interface {ifindex} was taken off; it is put back");
        }
        self.guarded.retain(intact);
        self.takes_xdp.clear();
        Ok(())
    }

    /// Has the uplink receive the solicited-node groups of single addresses, or
    /// all groups where there are prefixes or too many.
    fn sync_groups(&mut self, name: &str, ifindex: u32) -> Result<()> {
        let mut groups = BTreeSet::new();
        let mut all = false;
        for (prefix, owner) in &self.state.addresses {
            match prefix {
                IpNet::V6(net) if *owner != HOST && plan::address_map(prefix) == map::ADDRS6 => {
                    let [.., a, b, c] = net.addr().octets();
                    groups.insert([0x33, 0x33, 0xff, a, b, c]);
                }
                IpNet::V6(_) if *owner != HOST => all = true,
                _ => {}
            }
        }
        if all || groups.len() > MAX_GROUPS {
            all = true;
            groups.clear();
        }
        let records = self.pins.records(name);
        let ours: BTreeSet<Mac> = records.iter().filter_map(|name| group_of(name)).collect();
        let switched = records.iter().any(|record| record == ALL_MULTICAST);
        if all && !switched && !multicast::allmulti(&mut self.netlink, ifindex)? {
            self.pins.record_uplink(name, ALL_MULTICAST, "on")?;
            multicast::set_allmulti(&mut self.netlink, ifindex, true)?;
        }
        for group in groups.difference(&ours) {
            if multicast::join(ifindex, *group)? {
                self.pins
                    .record_uplink(name, &group_name(*group), "joined")?;
            }
        }
        for group in ours.difference(&groups) {
            multicast::leave(ifindex, *group)?;
            self.pins.forget(name, &group_name(*group))?;
        }
        if !all && switched {
            multicast::set_allmulti(&mut self.netlink, ifindex, false)?;
            self.pins.forget(name, ALL_MULTICAST)?;
        }
        Ok(())
    }

    /// Takes all that is ours off one uplink, and puts back what was changed.
    /// Goes on after failures; each is a line.
    fn take_off(&mut self, name: &str, ifindex: u32) -> Vec<String> {
        let mut failed = Vec::new();
        let links = self.links(name);
        let links: Vec<_> = links
            .iter()
            .map(|(hook, path)| (*hook, path.as_path()))
            .collect();
        if let Err(errors) = self.uplinks.detach(ifindex, &links) {
            failed.extend(errors.0.iter().map(ToString::to_string));
        }
        let exists = nix::net::if_::if_indextoname(ifindex).is_ok();
        for record in self.pins.records(name).into_iter().filter(|_| exists) {
            let result = match group_of(&record) {
                Some(group) => multicast::leave(ifindex, group).map(drop),
                None if record == ALL_MULTICAST => {
                    multicast::set_allmulti(&mut self.netlink, ifindex, false)
                }
                None => Ok(()),
            };
            failed.extend(result.err().map(|error| error.to_string()));
        }
        failed.extend(
            self.pins
                .remove_uplink(name)
                .err()
                .map(|error| format!("{error:#}")),
        );
        failed
    }

    /// Takes the data plane off the uplinks named, and the rest of it away when
    /// no uplink is left. Returns a line for each thing that failed.
    ///
    /// # Errors
    /// When an uplink is named that is not attached: then nothing is done.
    pub fn detach(&mut self, names: &[String], wanted: &Wanted<'_>) -> Result<Vec<String>> {
        let recorded = self.pins.uplinks();
        for name in names {
            if !recorded.iter().any(|(uplink, _)| uplink == name) {
                let attached: Vec<_> = recorded.iter().map(|(name, _)| name.as_str()).collect();
                bail!("{name} is not attached; attached: {}", attached.join(", "));
            }
        }
        let mut failed = Vec::new();
        let mut left = 0;
        for (name, ifindex) in &recorded {
            if names.is_empty() || names.contains(name) {
                failed.extend(self.take_off(name, *ifindex));
            } else {
                left += 1;
            }
        }
        if left > 0 {
            self.sync(wanted)?;
        } else {
            failed.extend(self.teardown());
        }
        Ok(failed)
    }

    /// Takes everything away. Goes on after failures; each is a line.
    fn teardown(&mut self) -> Vec<String> {
        let mut failed = Vec::new();
        for (name, ifindex) in self.pins.uplinks() {
            failed.extend(self.take_off(&name, ifindex));
        }
        if let Err(errors) = self.ports.remove_all() {
            failed.extend(errors.0.iter().map(ToString::to_string));
        }
        failed.extend(
            self.pins
                .remove_all()
                .err()
                .map(|error| format!("{error:#}")),
        );
        failed
    }

    /// Removes what an attach that did not come to an end has left.
    fn sweep(pins: &Pins) -> Result<()> {
        let mut uplinks = Uplinks::open()?;
        for (name, ifindex) in pins.uplinks() {
            let folder = pins.uplink(&name);
            for (hook, file) in LINKS {
                uplinks.detach(ifindex, &[(hook, &folder.join(file))])?;
            }
        }
        Ports::open(&pins.ports())?.remove_all()?;
        pins.remove_all()
    }

    /// Takes away what can be found when the maps cannot be opened any more.
    ///
    /// # Errors
    /// When something cannot be taken away.
    pub fn remove_remains(bpf_dir: &Path) -> Result<()> {
        let pins = Pins::new(bpf_dir);
        pins.check_namespace()?;
        Plane::sweep(&pins)
    }
}

fn unfinished(bpf_dir: &Path) -> String {
    format!(
        "{} holds an incomplete data plane; `netspawn-xdp attach` mends it, `netspawn-xdp \
         detach` takes it away",
        bpf_dir.display()
    )
}

const fn program_of(hook: Hook) -> &'static str {
    match hook {
        Hook::Xdp => program::UPLINK_XDP,
        Hook::TcIngress => program::UPLINK_INGRESS,
        Hook::TcEgress => program::UPLINK_EGRESS,
    }
}

fn group_name(group: Mac) -> String {
    format!("{GROUP}{}", DisplayMac(group).to_string().replace(':', ""))
}

fn group_of(record: &str) -> Option<Mac> {
    let digits = record.strip_prefix(GROUP)?;
    let number = u64::from_str_radix(digits, 16).ok()?;
    let [_, _, mac @ ..] = number.to_be_bytes();
    Some(mac)
}

fn problem(message: String) -> Problem {
    Problem {
        path: std::path::PathBuf::new(),
        line: None,
        field: None,
        fault: Fault::new(message, "it is tried again when something changes"),
    }
}
