//! The data plane as one thing: maps, programs, and what they hang on. The only
//! writer of all three.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    os::fd::{AsFd, OwnedFd},
    path::{Path, PathBuf},
    time::Instant,
};

use anyhow::{Context as _, Result, bail};
use aya::Ebpf;
use netspawn_ebpf::abi::{
    CLOSED, Key, MAX_CLOSED, MAX_XDP_PORTS, Neighbor, program, settings_flag,
};
use nix::net::if_::if_nametoindex;

use super::{
    attach::{PortState, Ports, UplinkProgram, Uplinks, bpf, bpf::Hook},
    events::Events,
    groups::{self, Groups},
    keep::Kept,
    maps::{self, Maps},
    object::{self, Constants, Sizes},
    pins::{self, Pins, Uplink},
    raise,
    reader::Size,
    twice, upgrade,
};
use crate::{
    cli::Mode,
    commands::UplinkView,
    config::Policy,
    folder, gone,
    model::{Host, Link},
    net::{announce::Served, netlink::Netlink, observe::Gone, xdp_ready},
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

/// All hooks of an uplink.
pub(super) const HOOKS: [Hook; 3] = [Hook::Xdp, Hook::TcIngress, Hook::TcEgress];

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
    /// Ports with a guard of ours, whatever program it is; `None` until it was found out.
    found_guards: Option<BTreeSet<u32>>,
    /// Those among them whose time has not been told.
    newly_guarded: Vec<(u32, Instant)>,
    /// Whether a port's machine takes XDP frames, where it was found out.
    takes_xdp: BTreeMap<u32, bool>,
    /// Neighbors that the programs have been told of.
    known: BTreeSet<Neighbor>,
    /// Ports that need not be looked at for being down.
    raised: BTreeSet<u32>,
    /// Those that were set up and have not been asked for.
    newly_raised: BTreeSet<u32>,
    pub(super) kept: Kept,
    /// The last sync has left something undone.
    unfinished: bool,
    /// Links may be others than those that this process has seen to.
    doubtful: bool,
    /// Whether this process made it.
    fresh: bool,
    /// Whether its maps are to take the place of others with other sizes.
    resized: bool,
    /// Data planes of other versions, which this one replaces when it is attached.
    others: Vec<Pins>,
    /// BPFDIR, locked.
    lock: Option<File>,
}

impl Plane {
    /// Opens what is pinned, without loading anything; `None` when nothing is.
    ///
    /// # Errors
    /// When it belongs to another network namespace or cannot be opened.
    pub fn open(bpf_dir: &Path) -> Result<Option<Plane>> {
        let pins = Pins::new(bpf_dir);
        if !pins.exist()? {
            if !pins.others()?.is_empty() {
                bail!(
                    "{} holds a data plane of another version; `netspawn-xdp attach UPLINK` \
                     replaces it without losing a packet, `netspawn-xdp detach` removes it",
                    bpf_dir.display()
                );
            }
            return Ok(None);
        }
        pins.check()?;
        let guard = bpf::open_pin(&pins.guard())
            .with_context(|| format!("cannot open {}", pins.guard().display()))?
            .with_context(|| unfinished(bpf_dir))?;
        let Some(sizes) = Sizes::pinned(&pins.maps())? else {
            bail!(unfinished(bpf_dir));
        };
        Plane::assemble(pins, sizes, guard, None, false).map(Some)
    }

    /// As [`Plane::open`], for who is going to change it.
    ///
    /// # Errors
    /// As those, and when another process is about to.
    pub fn open_to_write(bpf_dir: &Path) -> Result<Option<Plane>> {
        let lock = Pins::new(bpf_dir).lock()?;
        Ok(Plane::open(bpf_dir)?.map(|plane| Plane { lock, ..plane }))
    }

    /// Loads programs, with maps of their own or with those that are pinned.
    /// Nothing runs yet that did not before. With `log`, they say what becomes of
    /// frames.
    ///
    /// # Errors
    /// When the kernel refuses; nothing is left behind that was not there.
    pub fn load(bpf_dir: &Path, sizes: Sizes, log: bool) -> Result<Plane> {
        let pins = Pins::new(bpf_dir);
        pins.check_owner()?;
        let mut lock = pins.lock()?;
        pins.check_namespace()?;
        let others = pins.others()?;
        for other in &others {
            other.check()?;
        }
        if !others.is_empty() && pins.exist()? && !upgrade::holds_links(&pins)? {
            // An upgrade that was cut short, before it replaced a program. Sweeping would
            // take off what still runs.
            pins::remove_tree(pins.root())?;
        }
        let fresh = Sizes::pinned(&pins.maps())?.is_none();
        if fresh && pins.exist()? {
            // An attach that did not come to an end, or a damaged folder.
            Plane::sweep(&pins)?;
        }
        let plane = pins
            .make()
            .and_then(|()| {
                if lock.is_none() {
                    lock = pins.lock()?;
                }
                Plane::load_with(pins.clone(), &others, sizes, log, fresh)
            })
            .map(|plane| Plane {
                others,
                lock,
                ..plane
            });
        if plane.is_err() && fresh {
            told(pins.remove_all());
        }
        plane
    }

    fn load_with(
        pins: Pins,
        others: &[Pins],
        sizes: Sizes,
        log: bool,
        fresh: bool,
    ) -> Result<Plane> {
        let adopt = fresh || sizes.fit(&pins.maps())?;
        let folder = if adopt { pins.maps() } else { pins.next_maps() };
        if !adopt {
            pins::remove_tree(&folder)?;
            folder::make(&folder, folder::PRIVATE)?;
        }
        let held = match fresh {
            true => Key::default(),
            false => Maps::open(&pins.maps())?.key()?,
        };
        let key = match held.is_made() {
            true => held,
            false => new_key(others)?,
        };
        let mut ebpf = object::load_logging(Some(&folder), sizes, Constants::of_kernel(key), log)?;
        if !held.is_made() {
            Maps::open(&pins.maps())?.set_key(key)?;
        }
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
            plane.resized = true;
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
            found_guards: None,
            newly_guarded: Vec::new(),
            newly_raised: BTreeSet::new(),
            takes_xdp: BTreeMap::new(),
            known: BTreeSet::new(),
            kept: Kept::default(),
            unfinished: false,
            doubtful: false,
            fresh,
            resized: false,
            others: Vec::new(),
            lock: None,
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

    /// What frames of this data plane carry from one program to another.
    pub fn key(&self) -> Key {
        self.state.settings.key
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
    ///
    /// # Errors
    /// When they cannot be read.
    pub fn uplink_names(&self) -> Result<Vec<String>> {
        let uplinks = self.pins.uplinks()?.into_iter();
        Ok(uplinks.map(|uplink| uplink.name).collect())
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
        for uplink in self.pins.uplinks()? {
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
        for uplink in self.pins.uplinks()? {
            let found = self.programs_on(&uplink.name, uplink.ifindex)?;
            ids.extend(found.iter().map(|on| (on.program, program_of(on.hook))));
        }
        let mut tags: BTreeMap<_, Vec<u64>> = BTreeMap::new();
        for info in aya::programs::loaded_programs() {
            let info = info.context("cannot list the programs that the kernel has")?;
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
        let mut before = None;
        let result = self.look_before(wanted).and_then(|uplinks| {
            before = Some(uplinks);
            self.attach_all(new, wanted)
        });
        if result.is_err() {
            if !self.others.is_empty() {
                // Programs of either version forward; the next attach completes it.
                let unused = upgrade::holds_links(&self.pins).map(|holds| !holds);
                told(unused.and_then(|unused| match unused {
                    true => pins::remove_tree(self.pins.root()),
                    false => Ok(()),
                }));
            } else if self.fresh {
                self.teardown().into_iter().for_each(told_line);
            } else if let Some(before) = before {
                for (link, _) in new {
                    match before.iter().find(|uplink| uplink.name == link.name) {
                        Some(uplink) => told(self.restore(uplink)),
                        None => {
                            let failed = self.take_off(&link.name, link.ifindex);
                            failed.into_iter().for_each(told_line);
                        }
                    }
                }
                told(self.kept.keep_records(&self.pins));
                told(self.sync(wanted).map(drop));
            }
        }
        result
    }

    /// The uplinks that are attached, also those of another version.
    fn look_before(&mut self, wanted: &Wanted<'_>) -> Result<Vec<Uplink>> {
        self.put_back()?;
        for other in &self.others {
            upgrade::copy_records(other, &self.pins)?;
        }
        self.follow_names(wanted.host)?;
        self.pins.uplinks()
    }

    fn attach_all(&mut self, new: &[(&Link, Mode)], wanted: &Wanted<'_>) -> Result<Desired> {
        for (link, mode) in new {
            self.record(link, *mode)?;
        }
        // What was forgotten is not to be put back.
        self.kept.keep_records(&self.pins)?;
        let resized = self.resized;
        // Before anything is attached: without descriptors for it, nothing is.
        if !resized {
            self.kept.keep_maps(&self.pins)?;
        }
        self.pin_guard()?;
        if self.fresh || !self.others.is_empty() {
            self.prefill(wanted)?;
            for other in &self.others {
                upgrade::move_links(other, &self.pins)?;
            }
            if self.others.is_empty() {
                // At egress what a machine sends is strange until its port has its guard.
                self.attach_uplinks(&[Hook::Xdp, Hook::TcIngress])?;
            } else {
                // What the other version's guards send is strange to this one's egress, and
                // not the other way round.
                self.ports.replace_program(self.guard.as_fd())?;
                self.attach_uplinks(&HOOKS)?;
            }
        }
        let desired = self.sync(wanted)?;
        self.attach_uplinks(&HOOKS)?;
        self.ports.replace_program(self.guard.as_fd())?;
        if resized {
            self.pins.swap_maps()?;
            self.maps = Maps::open(&self.pins.maps())?;
            self.known.clear();
            self.resized = false;
            self.kept.keep_maps(&self.pins)?;
        }
        let states = self.ports.dump()?;
        self.look_at(&states);
        self.guard_ports(&guarded_ports(&desired));
        for other in std::mem::take(&mut self.others) {
            upgrade::remove(&other)?;
            tracing::info!("replaced the data plane of another version");
        }
        self.kept.keep_records(&self.pins)?;
        self.fresh = false;
        Ok(desired)
    }

    /// Fills the maps before any program looks at them. Machines that are
    /// reached in another way until now lose no packet if programs find
    /// everything from the start, and uplinks deliver past the ports' queues
    /// before ports get their qdisc: the kernel drops what is sent to a port
    /// meanwhile (`qdisc_graft` in net/sched/sch_api.c deactivates the device).
    fn prefill(&mut self, wanted: &Wanted<'_>) -> Result<()> {
        let uplinks = self.pins.uplinks()?;
        let uplinks = uplinks.iter().filter(|uplink| uplink.has_programs());
        let ifindexes = uplinks.map(|uplink| uplink.ifindex).collect();
        let desired = self.resolve(wanted, wanted.host, &ifindexes);
        self.maps.apply(&plan::plan(&self.state, &desired.state))?;
        self.maps
            .know(&registry::neighbors(wanted.host, &ifindexes))?;
        self.state = desired.state;
        Ok(())
    }

    fn attach_uplinks(&mut self, hooks: &[Hook]) -> Result<()> {
        for uplink in self.pins.uplinks()? {
            if uplink.has_programs() {
                self.attach_hooks(hooks, &uplink.name, uplink.ifindex, uplink.xdp)?;
            }
        }
        Ok(())
    }

    /// Replaces the pin of the program that guards ports.
    fn pin_guard(&self) -> Result<()> {
        let path = self.pins.guard();
        let mut next = path.clone().into_os_string();
        next.push("-next");
        let next = PathBuf::from(next);
        // Left by one that was killed.
        gone::path(fs::remove_file(&next))
            .and_then(|_| bpf::pin(self.guard.as_fd(), &next))
            .and_then(|()| fs::rename(&next, &path))
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
        self.put_back()?;
        let result = self.sync_all(wanted);
        self.kept.keep_records(&self.pins)?;
        result
    }

    fn sync_all(&mut self, wanted: &Wanted<'_>) -> Result<Desired> {
        if let Some(why) = &wanted.snapshot.unplaced {
            bail!("{why}; nothing is changed until that is known");
        }
        self.follow(wanted.host)?;
        if self.doubtful {
            self.verify_guards()?;
            self.mend_uplinks()?;
            self.doubtful = false;
        }
        let uplinks: BTreeMap<u32, String> = self
            .pins
            .uplinks()?
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
        if self.found_guards.is_none() {
            // A guard of an earlier process may be on a port that is nobody's any more.
            match twice(|| self.ports.states()) {
                Ok(states) => self.look_at(&states),
                Err(error) => {
                    self.doubtful = true;
                    refused.push(problem(error.to_string()));
                }
            }
        }
        let mut closed = BTreeMap::new();
        let mut desired = loop {
            let desired = self.resolve(wanted, &host, &ifindexes);
            let failed = self.guard_ports(&guarded_ports(&desired));
            if failed.is_empty() {
                if self.learn_xdp(&host, &desired)? {
                    continue;
                }
                break desired;
            }
            let names = machines_by_port(&desired);
            for (ifindex, problem) in failed {
                host.to_mut().links.remove(&ifindex);
                let Some(problem) = problem else {
                    continue;
                };
                let name = names.get(&ifindex).map(|name| (*name).to_owned());
                closed.insert(ifindex, (name, problem.fault.message.clone()));
                refused.push(problem);
            }
        };
        close(&mut desired, &closed, wanted.host);

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
        let known = registry::neighbors(wanted.host, &ifindexes);
        self.maps
            .know(known.difference(&self.known))
            .context("cannot write the neighbors to the maps")?;
        self.known = known;
        self.state = desired.state.clone();
        let guarded = guarded_ports(&desired);
        let found = self.found_guards.get_or_insert_default();
        let left: Vec<u32> = found
            .iter()
            .filter(|ifindex| !guarded.contains(ifindex) && !closed.contains_key(ifindex))
            .copied()
            .collect();
        for ifindex in left {
            // Given back to the host, unless it is gone.
            self.guarded.remove(&ifindex);
            match twice(|| self.ports.remove(ifindex)) {
                Ok(_) => {
                    found.remove(&ifindex);
                }
                Err(error) => refused.push(problem(error.to_string())),
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
            &mut self.newly_raised,
        ) {
            refused.push(problem(format!("{error:#}")));
        }
        let groups = Groups::of(&self.state);
        for (ifindex, name) in &uplinks {
            let result =
                twice(|| groups::sync(&self.pins, &mut self.netlink, name, *ifindex, &groups));
            refused.extend(result.err().map(|error| problem(format!("{error:#}"))));
        }
        self.unfinished = !refused.is_empty();
        desired.problems.extend(refused);
        Ok(desired)
    }

    /// Puts back pins and records that somebody has removed.
    fn put_back(&mut self) -> Result<()> {
        let cannot = "pins of the data plane were removed, and cannot be put back";
        let mut missing = self.kept.put_back(&self.pins).context(cannot)?;
        if !self.kept.is_empty() && !gone::is_there(&self.pins.guard()).context(cannot)? {
            self.pins.make()?;
            missing += 1;
        }
        if missing == 0 {
            return Ok(());
        }
        // BPFDIR may be another directory by now.
        self.lock = None;
        self.lock = self.pins.lock()?;
        tracing::warn!(
            "{missing} pins and records in {} were removed; they are put back",
            self.pins.root().display()
        );
        // With the pin of a link its program goes.
        self.doubtful = true;
        self.pin_guard()
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
    /// guarded come back; without a problem one that is gone, of which the kernel tells.
    fn guard_ports(&mut self, ports: &BTreeSet<u32>) -> Vec<(u32, Option<Problem>)> {
        let mut failed = Vec::new();
        let new: Vec<u32> = ports.difference(&self.guarded).copied().collect();
        for ifindex in &new {
            // What failed for a moment's want of memory does not fail again, and is not to
            // cost a machine that is served.
            let guarded = self.ports.ensure(*ifindex, self.guard.as_fd());
            match guarded.or_else(|_| self.ports.ensure(*ifindex, self.guard.as_fd())) {
                Ok(_) => {
                    self.guarded.insert(*ifindex);
                    self.found_guards.get_or_insert_default().insert(*ifindex);
                    self.newly_guarded.push((*ifindex, Instant::now()));
                }
                Err(error) if error.is_no_interface() => failed.push((*ifindex, None)),
                Err(error) => failed.push((*ifindex, Some(problem(error.to_string())))),
            }
        }
        failed
    }

    /// Takes note of the guards that there are.
    fn look_at(&mut self, states: &BTreeMap<u32, PortState>) {
        self.guarded = intact(states, self.guard_id).collect();
        self.found_guards = Some(states.keys().copied().collect());
    }

    /// Whether the last sync has left something undone, which is among its problems, and
    /// may work the next time.
    pub fn unfinished(&self) -> bool {
        self.unfinished
    }

    /// Ports that were set up since this was last asked.
    pub fn take_newly_raised(&mut self) -> BTreeSet<u32> {
        std::mem::take(&mut self.newly_raised)
    }

    /// Ports that have got their guard since this was last asked, and when.
    pub fn take_newly_guarded(&mut self) -> Vec<(u32, Instant)> {
        std::mem::take(&mut self.newly_guarded)
    }

    /// Finds out which new ports take XDP frames, where an uplink sends such;
    /// whether there is one.
    fn learn_xdp(&mut self, host: &Host, desired: &Desired) -> Result<bool> {
        let xdp = self
            .pins
            .uplinks()?
            .iter()
            .any(|uplink| uplink.xdp && uplink.has_programs());
        if !xdp {
            return Ok(false);
        }
        let (ports, peers): (Vec<u32>, Vec<_>) = desired
            .state
            .ports
            .keys()
            .filter(|ifindex| !self.takes_xdp.contains_key(ifindex))
            .filter_map(|ifindex| Some((*ifindex, host.links.get(ifindex)?.peer?)))
            .unzip();
        if ports.is_empty() || desired.state.ports.len() > MAX_XDP_PORTS as usize {
            return Ok(false);
        }
        let found = xdp_ready::take_xdp(&mut self.netlink, &peers);
        let mut any = false;
        for (ifindex, takes) in ports.into_iter().zip(found) {
            any |= takes == Some(true);
            self.takes_xdp.insert(ifindex, takes == Some(true));
        }
        Ok(any)
    }

    /// Looks at attachments and maps as the kernel has them: puts back what uplinks
    /// lack, and forgets the guards that ports lack and what was found out of
    /// machines, so that the next [`Plane::sync`] mends both.
    ///
    /// # Errors
    /// When the kernel does not tell.
    pub fn verify(&mut self) -> Result<()> {
        let lost = self.verify_guards()?;
        for ifindex in lost {
            tracing::warn!("the guard of interface {ifindex} was taken off; it is put back");
        }
        // Others may have taken the place of those.
        self.known.clear();
        let found = self.maps.read()?;
        if found != self.state {
            tracing::warn!("somebody else has written to the maps; they are put right");
            self.state = found;
        }
        self.mend_uplinks()
    }

    /// Forgets the guards that ports lack, and what was found out of machines; those ports.
    fn verify_guards(&mut self) -> Result<Vec<u32>> {
        let states = self.ports.dump()?;
        let intact: BTreeSet<u32> = intact(&states, self.guard_id).collect();
        let lost = self.guarded.difference(&intact).copied().collect();
        self.look_at(&states);
        self.takes_xdp.clear();
        Ok(lost)
    }

    /// Forgets what this process remembers of links by their numbers, which others may
    /// have by now.
    pub fn forget(&mut self, gone: &Gone) {
        for ifindex in &gone.links {
            self.guarded.remove(ifindex);
            if let Some(found) = &mut self.found_guards {
                found.remove(ifindex);
            }
            self.takes_xdp.remove(ifindex);
            self.raised.remove(ifindex);
        }
        let is_uplink = |ifindex| self.state.uplinks.contains_key(ifindex);
        self.doubtful |= gone.any || gone.links.iter().any(is_uplink);
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
        if let Err(errors) = twice(|| self.uplinks.detach(ifindex, &links)) {
            failed.extend(errors.0.iter().map(ToString::to_string));
        }
        let put_back = groups::put_back(&self.pins, &mut self.netlink, name, ifindex);
        failed.extend(put_back);
        let removed = twice(|| self.pins.remove_uplink(name));
        failed.extend(removed.err().map(|error| format!("{error:#}")));
        let kept = self.kept.keep_records(&self.pins);
        failed.extend(kept.err().map(|error| format!("{error:#}")));
        failed
    }

    /// Takes the data plane off the uplinks named, and the rest of it away when
    /// no uplink is left. With a bridge or bond its ports go that were attached
    /// themselves. Returns a line for each thing that failed.
    ///
    /// # Errors
    /// When an uplink is named that is not attached: then nothing is done.
    pub fn detach(&mut self, names: &[String], wanted: &Wanted<'_>) -> Result<Vec<String>> {
        self.put_back()?;
        let (mut recorded, damaged) = self.pins.readable_uplinks()?;
        if damaged.is_empty() {
            self.follow_names(wanted.host)?;
            recorded = self.pins.uplinks()?;
        } else if let (false, Some((_, error))) = (names.is_empty(), damaged.into_iter().next()) {
            return Err(error);
        }
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
        // With its descriptors, of which there may be too few.
        self.kept = Kept::default();
        let mut failed = Vec::new();
        match twice(|| recorded(&self.pins)) {
            Ok(uplinks) => {
                for (name, ifindex) in uplinks {
                    failed.extend(self.take_off(&name, ifindex));
                }
            }
            Err(error) => failed.push(format!("{error:#}")),
        }
        if let Err(errors) = twice(|| self.ports.remove_all()) {
            failed.extend(errors.0.iter().map(ToString::to_string));
        }
        failed.extend(raise::lower(&self.pins, &mut self.netlink));
        let removed = twice(|| self.pins.remove_all());
        failed.extend(removed.err().map(|error| format!("{error:#}")));
        failed
    }

    /// Removes what an attach that did not come to an end, or another version, has left,
    /// and puts back what was changed.
    fn sweep(pins: &Pins) -> Result<()> {
        let mut uplinks = Uplinks::open()?;
        let mut netlink = Netlink::open()?;
        let mut failed = Vec::new();
        for (name, ifindex) in twice(|| recorded(pins))? {
            let folder = pins.uplink(&name);
            for (hook, file) in LINKS {
                twice(|| uplinks.detach(ifindex, &[(hook, &folder.join(file))]))?;
            }
            failed.extend(groups::put_back(pins, &mut netlink, &name, ifindex));
        }
        let mut ports = Ports::open(&pins.ports())?;
        twice(|| ports.remove_all())?;
        failed.extend(raise::lower(pins, &mut netlink));
        for failure in failed {
            tracing::warn!("{failure}");
        }
        twice(|| pins.remove_all())
    }

    /// Takes off the guards of a data plane whose pins are gone; how many ports had one.
    ///
    /// # Errors
    /// When the kernel does not tell, or a guard cannot be taken off.
    pub fn remove_guards(bpf_dir: &Path) -> Result<usize> {
        let mut ports = Ports::open(&Pins::new(bpf_dir).ports())?;
        let guarded = ports.states()?.len();
        if guarded > 0 {
            twice(|| ports.remove_all())?;
        }
        Ok(guarded)
    }

    /// Takes away what can be found when the maps cannot be opened any more.
    ///
    /// # Errors
    /// When something cannot be taken away.
    pub fn remove_remains(bpf_dir: &Path) -> Result<()> {
        let pins = Pins::new(bpf_dir);
        pins.check_owner()?;
        let _lock = pins.lock()?;
        let others = pins.others()?;
        for pins in std::iter::once(&pins).chain(&others) {
            pins.check()?;
        }
        for pins in std::iter::once(&pins).chain(&others) {
            Plane::sweep(pins)?;
        }
        Ok(())
    }
}

/// The ports that the program of that id guards.
fn intact(states: &BTreeMap<u32, PortState>, guard: u32) -> impl Iterator<Item = u32> {
    let guarded = states
        .iter()
        .filter(move |(_, state)| state.guarded_by(guard));
    guarded.map(|(ifindex, _)| *ifindex)
}

/// The ports that are to have a guard.
fn guarded_ports(desired: &Desired) -> BTreeSet<u32> {
    let ports = desired.state.ports.keys().chain(&desired.closed);
    ports.copied().collect()
}

/// The key of another version's data plane, or a new one.
fn new_key(others: &[Pins]) -> Result<Key> {
    for other in others {
        if let Some(key) = maps::key_of_other(&other.maps())? {
            return Ok(key);
        }
    }
    object::random_key().context("cannot make a key for the data plane")
}

/// The machine that has each port, also one without room.
fn machines_by_port(desired: &Desired) -> BTreeMap<u32, &str> {
    let machines = desired.machines.iter();
    machines
        .filter_map(|machine| Some((machine.ifindex?, &*machine.name)))
        .collect()
}

/// Has the programs know of the ports that have no guard: what comes in by them does not
/// leave by an uplink. What is more than there is room for is not closed. Of each it is
/// known whose port it is and what went wrong.
fn close(desired: &mut Desired, closed: &BTreeMap<u32, (Option<String>, String)>, host: &Host) {
    let mut ports: BTreeMap<&str, (u32, &str)> = BTreeMap::new();
    for (ifindex, (name, why)) in closed.iter().take(MAX_CLOSED as usize) {
        desired.state.interfaces.insert(*ifindex, CLOSED);
        desired.state.settings.flags |= settings_flag::CLOSED;
        ports.extend(name.as_ref().map(|name| (&**name, (*ifindex, &**why))));
    }
    if ports.is_empty() {
        return;
    }
    for machine in &mut desired.machines {
        if let Some((ifindex, why)) = ports.get(&*machine.name) {
            machine.ifindex = Some(*ifindex);
            machine.interface = host.links.get(ifindex).map(|link| link.name.clone());
            machine.closed = Some((*why).to_owned());
        }
    }
}

/// Says what went wrong while something else's failure was made good, which is the one
/// that is returned.
fn told(result: Result<()>) {
    if let Err(error) = result {
        told_line(format!("{error:#}"));
    }
}

fn told_line(line: String) {
    tracing::warn!("{line}");
}

/// Names and ifindexes of the uplinks recorded, for who takes all of them away. One whose
/// record is damaged is the interface of its name.
fn recorded(pins: &Pins) -> Result<Vec<(String, u32)>> {
    let (uplinks, damaged) = pins.readable_uplinks()?;
    let mut all: Vec<_> = uplinks
        .into_iter()
        .map(|uplink| (uplink.name, uplink.ifindex))
        .collect();
    for (name, error) in damaged {
        tracing::warn!("{error:#}");
        let ifindex = gone::interface(if_nametoindex(&*name).map_err(Into::into))
            .with_context(|| format!("cannot look for {name}"))?;
        all.push((name, ifindex.unwrap_or(0)));
    }
    Ok(all)
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
        fault: Fault::new(message, "it is tried again"),
    }
}
