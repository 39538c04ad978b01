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
use netspawn_ebpf::abi::{MAX_XDP_PORTS, program};

use super::{
    attach::{PortState, Ports, UplinkProgram, Uplinks, bpf, bpf::Hook},
    events::Events,
    groups::{self, Groups},
    maps::Maps,
    object::{self, Sizes},
    pins::{self, Pins},
    raise,
    reader::Size,
};
use crate::{
    cli::Mode,
    commands::UplinkView,
    config::Policy,
    folder,
    model::{Host, Link},
    net::{announce::Served, netlink::Netlink, xdp_ready},
    plan::{self, State},
    problem::{Fault, Problem},
    registry::{self, Desired, Inputs, Limits},
    source::Snapshot,
};

/// File names of the links of an uplink.
pub(crate) const LINKS: [(Hook, &str); 3] = [
    (Hook::Xdp, "xdp"),
    (Hook::TcIngress, "tc-ingress"),
    (Hook::TcEgress, "tc-egress"),
];

/// What decides the content of the maps, besides what they hold.
pub struct Wanted<'a> {
    /// Machines.
    pub snapshot: &'a Snapshot,
    /// The host's network.
    pub host: &'a Host,
    /// What machines may do.
    pub policy: &'a Policy,
    /// Until when next hops resolved now are good (`CLOCK_MONOTONIC`, ns).
    pub deadline: u64,
}

/// An attached data plane.
pub struct Plane {
    pub(super) pins: Pins,
    maps: Maps,
    state: State,
    /// What was served when this process found it.
    found: Served,
    limits: Limits,
    /// What the last sync wanted the maps to hold.
    wanted: Size,
    /// Loaded by this process; `None` when it only works on what is pinned.
    pub(super) programs: Option<Ebpf>,
    guard: OwnedFd,
    guard_id: u32,
    ports: Ports,
    pub(super) uplinks: Uplinks,
    pub(super) netlink: Netlink,
    /// Ports whose guard has been seen to by this process.
    guarded: BTreeSet<u32>,
    /// Those among them whose time has not been told.
    newly_guarded: Vec<(u32, Instant)>,
    /// Whether a port's machine takes XDP frames, where it was found out.
    takes_xdp: BTreeMap<u32, bool>,
    /// Ports that need not be looked at for being down.
    raised: BTreeSet<u32>,
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
        pins.check()?;
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
    /// Nothing runs yet that did not before. With `log`, they say what becomes of
    /// frames.
    ///
    /// # Errors
    /// When the kernel refuses; nothing is left behind that was not there.
    pub fn load(bpf_dir: &Path, sizes: Sizes, log: bool) -> Result<Plane> {
        let pins = Pins::new(bpf_dir);
        pins.check()?;
        let fresh = Sizes::pinned(&pins.maps()).is_none();
        if fresh && pins.exist() {
            // An attach that did not come to an end, or a damaged folder.
            Plane::sweep(&pins)?;
        }
        let plane = pins
            .make()
            .and_then(|()| Plane::load_with(pins.clone(), sizes, log, fresh));
        if plane.is_err() && fresh {
            // The first failure is the one to report.
            let _ = pins.remove_all();
        }
        plane
    }

    fn load_with(pins: Pins, sizes: Sizes, log: bool, fresh: bool) -> Result<Plane> {
        let adopt = fresh || Sizes::pinned(&pins.maps()) == Some(sizes);
        let folder = if adopt { pins.maps() } else { pins.next_maps() };
        if !adopt {
            pins::remove_tree(&folder)?;
            folder::make(&folder, folder::PRIVATE)?;
        }
        let mut ebpf = object::load_logging(Some(&folder), sizes, log)?;
        if log {
            super::log::follow(&mut ebpf)?;
        }
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
        let state = maps.read()?;
        Ok(Plane {
            found: Served::of(&state, None),
            raised: state.ports.keys().copied().collect(),
            state,
            maps,
            limits: Limits {
                max_machines: sizes.machines,
                max_addresses: sizes.addresses,
            },
            wanted: Size::default(),
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

    /// How much the last sync wanted the maps to hold, whether it succeeded or not.
    pub fn wanted(&self) -> Size {
        self.wanted
    }

    /// The events that the programs tell. Within a tokio runtime that has I/O.
    ///
    /// # Errors
    /// When the buffer is not there.
    pub fn events(&self) -> Result<Events> {
        Events::open(&self.pins.maps())
    }

    /// What was served before this process changed anything.
    pub fn found(&self) -> &Served {
        &self.found
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
            .map(|uplink| uplink.name)
            .collect()
    }

    /// Our programs on an uplink.
    ///
    /// # Errors
    /// When the kernel does not tell.
    pub(super) fn programs_on(&mut self, name: &str, ifindex: u32) -> Result<Vec<UplinkProgram>> {
        let links = self.links(name);
        let links: Vec<_> = links
            .iter()
            .map(|(hook, path)| (*hook, path.as_path()))
            .collect();
        Ok(self.uplinks.query(ifindex, &links)?)
    }

    /// The uplinks, with what hangs on them; for ports of a bridge or bond that
    /// is their master.
    ///
    /// # Errors
    /// When the kernel does not tell.
    pub fn attached(&mut self) -> Result<Vec<UplinkView>> {
        let mut views = Vec::new();
        for uplink in self.pins.uplinks() {
            if uplink.master.is_some() {
                continue;
            }
            let found = self.programs_on(&uplink.name, uplink.ifindex)?;
            let has = |hook| found.iter().any(|program| program.hook == hook);
            let missing = LINKS
                .iter()
                .filter(|(hook, _)| (*hook != Hook::Xdp || uplink.xdp) && !has(*hook))
                .map(|(hook, _)| program_of(*hook).to_owned());
            views.push(UplinkView {
                name: uplink.name,
                gone: uplink.gone,
                missing: missing.collect(),
                ifindex: uplink.ifindex,
                mode: if uplink.xdp { "xdp" } else { "tc" }.to_owned(),
                programs: found
                    .iter()
                    .map(|program| program_of(program.hook).to_owned())
                    .collect(),
            });
        }
        Ok(views)
    }

    /// Digests of the programs that run, by name: of those on uplinks and of the guard.
    ///
    /// # Errors
    /// When the kernel does not tell.
    pub fn program_tags(&mut self) -> Result<BTreeMap<&'static str, Vec<u64>>> {
        let mut ids = vec![(self.guard_id, program::PORT_INGRESS)];
        for uplink in self.pins.uplinks() {
            let found = self.programs_on(&uplink.name, uplink.ifindex)?;
            ids.extend(found.iter().map(|on| (on.program, program_of(on.hook))));
        }
        let mut tags: BTreeMap<_, Vec<u64>> = BTreeMap::new();
        for info in aya::programs::loaded_programs().flatten() {
            for (_, name) in ids.iter().filter(|(id, _)| *id == info.id()) {
                tags.entry(*name).or_default().push(info.tag());
            }
        }
        Ok(tags)
    }

    /// Reads the maps once more, which another process writes.
    ///
    /// # Errors
    /// When they cannot be read.
    pub fn reread(&mut self) -> Result<()> {
        self.state = self.maps.read()?;
        Ok(())
    }

    pub(super) fn links(&self, name: &str) -> Vec<(Hook, std::path::PathBuf)> {
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
        self.follow_names(wanted.host)?;
        let before = self.pins.uplinks();
        let result = self.attach_all(new, wanted);
        if result.is_err() {
            if self.fresh {
                // The first failure is the one to report.
                let _ = self.teardown();
            } else {
                for (link, _) in new {
                    match before.iter().find(|uplink| uplink.name == link.name) {
                        Some(uplink) => drop(self.restore(uplink)),
                        None => drop(self.take_off(&link.name, link.ifindex)),
                    }
                }
                let _ = self.sync(wanted);
            }
        }
        result
    }

    fn attach_all(&mut self, new: &[(&Link, Mode)], wanted: &Wanted<'_>) -> Result<Desired> {
        for (link, mode) in new {
            self.record(link, *mode)?;
        }
        let resized = self.pins.next_maps().exists();
        self.pin_guard()?;
        let desired = if self.fresh {
            self.prefill(wanted)?;
            self.attach_uplinks()?;
            self.sync(wanted)?
        } else {
            let desired = self.sync(wanted)?;
            self.attach_uplinks()?;
            desired
        };
        self.ports.replace_program(self.guard.as_fd())?;
        if resized {
            self.pins.swap_maps()?;
            self.maps = Maps::open(&self.pins.maps())?;
        }
        let states = self.ports.dump()?;
        self.guarded = intact(&states, self.guard_id).collect();
        self.guard_ports(&self.state.ports.keys().copied().collect());
        self.fresh = false;
        Ok(desired)
    }

    /// Fills the maps before any program looks at them. Machines that are
    /// reached in another way until now lose no packet if programs find
    /// everything from the start, and uplinks deliver past the ports' queues
    /// before ports get their qdisc: the kernel drops what is sent to a port
    /// meanwhile (`qdisc_graft` in net/sched/sch_api.c deactivates the device).
    fn prefill(&mut self, wanted: &Wanted<'_>) -> Result<()> {
        let uplinks = self.pins.uplinks();
        let uplinks = uplinks.iter().filter(|uplink| uplink.has_programs());
        let ifindexes = uplinks.map(|uplink| uplink.ifindex).collect();
        let desired = self.resolve(wanted, wanted.host, &ifindexes);
        self.maps.apply(&plan::plan(&self.state, &desired.state))?;
        self.state = desired.state;
        Ok(())
    }

    fn attach_uplinks(&mut self) -> Result<()> {
        for uplink in self.pins.uplinks() {
            if uplink.has_programs() {
                self.attach_uplink(&uplink.name, uplink.ifindex, uplink.xdp)?;
            }
        }
        Ok(())
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

    /// Brings the maps, the ports' guards and the uplinks' groups up to date.
    ///
    /// A port that cannot be guarded is left out as if it did not exist, and
    /// reported among the problems.
    ///
    /// # Errors
    /// When the maps cannot be written.
    pub fn sync(&mut self, wanted: &Wanted<'_>) -> Result<Desired> {
        self.follow(wanted.host)?;
        let uplinks: BTreeMap<u32, String> = self
            .pins
            .uplinks()
            .into_iter()
            .filter(|uplink| uplink.has_programs())
            .filter(|uplink| wanted.host.links.contains_key(&uplink.ifindex))
            .map(|uplink| (uplink.ifindex, uplink.name))
            .collect();
        let ifindexes = uplinks.keys().copied().collect();
        self.guarded
            .retain(|ifindex| wanted.host.links.contains_key(ifindex));
        self.takes_xdp
            .retain(|ifindex, _| wanted.host.links.contains_key(ifindex));

        let mut host = std::borrow::Cow::Borrowed(wanted.host);
        let mut refused = Vec::new();
        let desired = loop {
            let desired = self.resolve(wanted, &host, &ifindexes);
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

        self.wanted = Size::of(&desired.state);
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
        let placed = wanted.snapshot.placed.values().flatten();
        let placed = placed.map(|placed| placed.ifindex);
        let registered = wanted.snapshot.registered.ports.values();
        let named = registered.copied().chain(placed);
        let named = named.filter(|ifindex| self.state.ports.contains_key(ifindex));
        if let Err(error) = raise::raise(
            &self.pins,
            &mut self.netlink,
            wanted.host,
            named,
            &mut self.raised,
        ) {
            refused.push(problem(format!("{error:#}")));
        }
        let groups = Groups::of(&self.state);
        for (ifindex, name) in &uplinks {
            let result = groups::sync(&self.pins, &mut self.netlink, name, *ifindex, &groups);
            refused.extend(result.err().map(|error| problem(format!("{error:#}"))));
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
        let new: Vec<u32> = ports.difference(&self.guarded).copied().collect();
        for ifindex in &new {
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
            .any(|uplink| uplink.xdp && uplink.has_programs());
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
        if ports.is_empty() || desired.state.ports.len() > MAX_XDP_PORTS as usize {
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

    /// Looks at attachments and maps as the kernel has them: puts back what uplinks
    /// lack, and forgets the guards that ports lack and what was found out of
    /// machines, so that the next [`Plane::sync`] mends both.
    ///
    /// # Errors
    /// When the kernel does not tell.
    pub fn verify(&mut self) -> Result<()> {
        let states = self.ports.dump()?;
        let intact: BTreeSet<u32> = intact(&states, self.guard_id).collect();
        for ifindex in self.guarded.difference(&intact) {
            tracing::warn!("the guard of interface {ifindex} was taken off; it is put back");
        }
        self.guarded.retain(|ifindex| intact.contains(ifindex));
        self.takes_xdp.clear();
        let found = self.maps.read()?;
        if found != self.state {
            tracing::warn!("somebody else has written to the maps; they are put right");
            self.state = found;
        }
        self.mend_uplinks()
    }

    /// Ports that the maps have a machine for and that the guard does not see first,
    /// and why.
    ///
    /// # Errors
    /// When the kernel does not tell.
    pub fn unguarded(&mut self) -> Result<BTreeMap<u32, &'static str>> {
        let states = self.ports.states()?;
        let why = |ifindex| match states.get(ifindex) {
            None => Some("its guard was taken off"),
            Some(state) if !state.first => Some("another program comes before its guard"),
            Some(state) if state.program != Some(self.guard_id) => {
                Some("it runs another program than the guard that is pinned")
            }
            Some(_) => None,
        };
        let ports = self.state.ports.keys();
        Ok(ports
            .filter_map(|ifindex| Some((*ifindex, why(ifindex)?)))
            .collect())
    }

    /// Takes all that is ours off one uplink, and puts back what was changed.
    /// Goes on after failures; each is a line.
    pub(super) fn take_off(&mut self, name: &str, ifindex: u32) -> Vec<String> {
        let mut failed = Vec::new();
        let links = self.links(name);
        let links: Vec<_> = links
            .iter()
            .map(|(hook, path)| (*hook, path.as_path()))
            .collect();
        if let Err(errors) = self.uplinks.detach(ifindex, &links) {
            failed.extend(errors.0.iter().map(ToString::to_string));
        }
        let put_back = groups::put_back(&self.pins, &mut self.netlink, name, ifindex);
        failed.extend(put_back);
        failed.extend(
            self.pins
                .remove_uplink(name)
                .err()
                .map(|error| format!("{error:#}")),
        );
        failed
    }

    /// Takes the data plane off the uplinks named, and the rest of it away when
    /// no uplink is left. With a bridge or bond its ports go that were attached
    /// themselves. Returns a line for each thing that failed.
    ///
    /// # Errors
    /// When an uplink is named that is not attached: then nothing is done.
    pub fn detach(&mut self, names: &[String], wanted: &Wanted<'_>) -> Result<Vec<String>> {
        self.follow_names(wanted.host)?;
        let recorded = self.pins.uplinks();
        let mut chosen = BTreeSet::new();
        for name in names {
            let ifindex = wanted.host.link(name).map(|link| link.ifindex);
            let Some(uplink) = recorded
                .iter()
                .find(|uplink| uplink.name == *name || Some(uplink.ifindex) == ifindex)
            else {
                let attached: Vec<_> = recorded.iter().map(|uplink| &*uplink.name).collect();
                bail!("{name} is not attached; attached: {}", attached.join(", "));
            };
            let ports = recorded
                .iter()
                .filter(|port| port.master == Some(uplink.ifindex));
            chosen.extend(ports.chain([uplink]).map(|uplink| &*uplink.name));
        }
        let mut failed = Vec::new();
        let mut left = false;
        for uplink in &recorded {
            if names.is_empty() || chosen.contains(&*uplink.name) {
                failed.extend(self.take_off(&uplink.name, uplink.ifindex));
            } else {
                left |= !uplink.follows;
            }
        }
        if left {
            self.sync(wanted)?;
        } else {
            failed.extend(self.teardown());
        }
        Ok(failed)
    }

    /// Takes everything away. Goes on after failures; each is a line.
    fn teardown(&mut self) -> Vec<String> {
        let mut failed = Vec::new();
        for uplink in self.pins.uplinks() {
            failed.extend(self.take_off(&uplink.name, uplink.ifindex));
        }
        if let Err(errors) = self.ports.remove_all() {
            failed.extend(errors.0.iter().map(ToString::to_string));
        }
        failed.extend(raise::lower(&self.pins, &mut self.netlink));
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
        for uplink in pins.uplinks() {
            let folder = pins.uplink(&uplink.name);
            for (hook, file) in LINKS {
                uplinks.detach(uplink.ifindex, &[(hook, &folder.join(file))])?;
            }
        }
        Ports::open(&pins.ports())?.remove_all()?;
        raise::lower(pins, &mut Netlink::open()?);
        pins.remove_all()
    }

    /// Takes away what can be found when the maps cannot be opened any more.
    ///
    /// # Errors
    /// When something cannot be taken away.
    pub fn remove_remains(bpf_dir: &Path) -> Result<()> {
        let pins = Pins::new(bpf_dir);
        pins.check()?;
        Plane::sweep(&pins)
    }
}

/// The ports that the program of that id guards.
fn intact(states: &BTreeMap<u32, PortState>, guard: u32) -> impl Iterator<Item = u32> {
    let guarded = states
        .iter()
        .filter(move |(_, state)| state.guarded_by(guard));
    guarded.map(|(ifindex, _)| *ifindex)
}

fn unfinished(bpf_dir: &Path) -> String {
    format!(
        "{} holds an incomplete data plane; `netspawn-xdp attach` mends it, `netspawn-xdp \
         detach` takes it away",
        bpf_dir.display()
    )
}

pub(super) const fn program_of(hook: Hook) -> &'static str {
    match hook {
        Hook::Xdp => program::UPLINK_XDP,
        Hook::TcIngress => program::UPLINK_INGRESS,
        Hook::TcEgress => program::UPLINK_EGRESS,
    }
}

fn problem(message: String) -> Problem {
    Problem {
        path: std::path::PathBuf::new(),
        line: None,
        field: None,
        fault: Fault::new(message, "it is tried again when something changes"),
    }
}
