//! Where declarations of machines, and their links, come from.

mod cni;
mod docker;
pub mod engine;
mod files;
mod incus;
pub mod kernel;
mod layers;
mod libvirt;
pub mod machined;
mod nspawn;
mod watch;

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    str::FromStr,
    time::Instant,
};

use serde::{Deserialize, Serialize};

#[doc(hidden)]
pub use files::parse as parse_machine;
pub use files::{
    Created, Removed, create_machine, machine_path, remove_machine, text_of, write_machine,
};
pub(crate) use files::{PRIVATE, SHARED, draft, replace, sweep_drafts};
pub use nspawn::parse as parse_nspawn;
pub(crate) use nspawn::syntax;
pub use watch::Watcher;

use self::{
    cni::Cni,
    engine::{Answers, Known, Listed, Makers, OfUsers, Placed, Places, Taken},
    files::Files,
    kernel::Kernel,
    layers::Layers,
    nspawn::NspawnFiles,
};
use crate::{
    driver::cni::attachment,
    model::{Declaration, Host, SourceKind},
    problem::{Fault, Problem, did_you_mean},
};

/// A name that `--source` takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Source {
    /// `CONFIGDIR/machines` and `RUNDIR/machines`.
    Files,
    /// `[X-Netspawn]` in `/etc/systemd/nspawn` and `/run/systemd/nspawn`.
    Nspawn,
    /// Links of the machines that systemd-machined knows.
    Machined,
    /// Containers of Docker.
    Docker,
    /// Containers and virtual machines of Incus or LXD.
    Incus,
    /// Virtual machines of libvirt.
    Libvirt,
    /// Containers that the CNI plugin has connected: containerd, podman, Kubernetes.
    Cni,
    /// Host routes to ports, as routed setups make them, and proxy neighbors.
    Kernel,
}

impl Source {
    /// All there are.
    pub const ALL: [Source; 8] = [
        Source::Files,
        Source::Nspawn,
        Source::Machined,
        Source::Docker,
        Source::Incus,
        Source::Libvirt,
        Source::Cni,
        Source::Kernel,
    ];
    /// Those that are engines, in order of rank.
    pub const ENGINES: [Source; 4] = [Source::Docker, Source::Incus, Source::Libvirt, Source::Cni];
    /// Those used where none is named; an engine that is not there is no error. What
    /// the kernel has is left out: on a host with other routed setups it would claim
    /// what is not meant for it.
    pub const DEFAULT: [Source; 7] = [
        Source::Files,
        Source::Nspawn,
        Source::Machined,
        Source::Docker,
        Source::Incus,
        Source::Libvirt,
        Source::Cni,
    ];

    /// The name.
    pub const fn name(self) -> &'static str {
        match self {
            Source::Files => "files",
            Source::Nspawn => "nspawn",
            Source::Machined => "machined",
            Source::Docker => "docker",
            Source::Incus => "incus",
            Source::Libvirt => "libvirt",
            Source::Cni => "cni",
            Source::Kernel => "kernel",
        }
    }

    /// The rank of what it declares. Files are of two ranks, and machined declares
    /// nothing: theirs is that of the one they are closest to.
    const fn kind(self) -> SourceKind {
        match self {
            Source::Files => SourceKind::Config,
            Source::Nspawn | Source::Machined => SourceKind::Nspawn,
            Source::Docker => SourceKind::Docker,
            Source::Incus => SourceKind::Incus,
            Source::Libvirt => SourceKind::Libvirt,
            Source::Cni => SourceKind::Cni,
            Source::Kernel => SourceKind::Kernel,
        }
    }
}

impl FromStr for Source {
    type Err = Fault;

    fn from_str(text: &str) -> Result<Self, Fault> {
        Source::ALL
            .into_iter()
            .find(|source| source.name() == text)
            .ok_or_else(|| {
                Fault::new(
                    format!("{text:?} is not a source"),
                    did_you_mean(text, &Source::ALL.map(Source::name)),
                )
            })
    }
}

/// Everything that the sources say at one time.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// Machines by name.
    pub declarations: BTreeMap<String, Declaration>,
    /// Machines that are named, but by files that cannot be used: they keep
    /// what they hold. With the file of highest rank that names each.
    pub unusable: BTreeMap<String, (SourceKind, PathBuf)>,
    /// A folder that could not be listed: whoever is not named keeps what it
    /// holds.
    pub unlisted: Option<(SourceKind, PathBuf)>,
    /// What is wrong, file by file.
    pub problems: Vec<Problem>,
    /// What machined says of links.
    pub registered: Registered,
    /// Ports of the machines that engines run, by machine; `None` for one that has
    /// none yet.
    pub placed: BTreeMap<String, Option<Placed>>,
    /// Why ports could not be looked for: then nothing is to be done until they can be.
    pub unplaced: Option<String>,
    /// Who has made which link.
    pub makers: Makers,
}

/// What systemd-machined says of the links of machines.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Registered {
    /// Whether it has told. Before that, machines keep the ports that the maps
    /// have for them.
    pub told: bool,
    /// ifindex of the host's end of each machine's link, by machine.
    pub ports: BTreeMap<String, u32>,
    /// Links that were a machine's that has ended: the kernel may take a while
    /// to remove them, and nothing is behind them any more.
    pub ended: BTreeSet<u32>,
}

impl Snapshot {
    /// Whether a machine without a usable declaration keeps what it holds, and
    /// the file or folder that is to blame.
    pub fn keeps(&self, name: &str) -> Option<(SourceKind, &Path)> {
        if self.declarations.contains_key(name) {
            return None;
        }
        self.unusable
            .get(name)
            .or(self.unlisted.as_ref())
            .map(|(kind, path)| (*kind, path.as_path()))
    }
}

/// Declarations and links as they are now, for who does not follow them. What engines
/// say is kept for who does not ask them, unless nothing is to be changed.
pub fn now(
    config_dir: &Path,
    run_dir: &Path,
    enabled: &BTreeSet<Source>,
    host: &Host,
    keep: bool,
) -> Snapshot {
    let known = Known::asking(false);
    let mut sources = Sources::knowing(config_dir, run_dir, enabled.iter().copied(), known);
    // Before engines are asked, so that they say whose these are.
    sources.known.see(host, Instant::now());
    sources.asked = engine::ask(enabled, &sources.answers);
    if keep {
        for (source, said) in &sources.asked {
            if let Err(error) = engine::keep(run_dir, *source, said) {
                tracing::warn!("cannot keep what {} says: {error}", source.name());
            }
        }
    }
    let mut snapshot = sources.read(host);
    if enabled.contains(&Source::Machined) {
        snapshot.registered = machined::now(host);
    }
    snapshot
}

/// The sources that are read, and the last good declaration of each machine.
///
/// A file with a fault never takes a machine away: while the agent runs, the
/// machine keeps its last good declaration; after a restart it keeps the
/// addresses that the pinned maps hold for it. Only a file that is gone
/// withdraws a machine.
#[derive(Debug)]
pub struct Sources {
    enabled: BTreeSet<Source>,
    files: Files,
    nspawn: NspawnFiles,
    kernel: Kernel,
    cni: Cni,
    run_dir: PathBuf,
    /// What engines have just said; else what is kept counts.
    asked: BTreeMap<Source, Listed>,
    /// What is kept of engines, as it was last read.
    engines: BTreeMap<Source, Listed>,
    answers: Answers,
    places: Places,
    known: Known,
    last_good: BTreeMap<String, Declaration>,
}

impl Sources {
    /// The sources named, for a process that does not ask engines. Nothing is read yet.
    pub fn new(
        config_dir: &Path,
        run_dir: &Path,
        enabled: impl IntoIterator<Item = Source>,
    ) -> Self {
        Sources::knowing(config_dir, run_dir, enabled, Known::kept())
    }

    /// The sources named, for a process that follows engines, which say with
    /// [`Sources::answers`] when they have answered. Links of `host` are there now.
    pub fn following(
        config_dir: &Path,
        run_dir: &Path,
        enabled: impl IntoIterator<Item = Source>,
        host: &Host,
    ) -> Self {
        let mut known = Known::asking(true);
        known.see(host, Instant::now());
        Sources::knowing(config_dir, run_dir, enabled, known)
    }

    fn knowing(
        config_dir: &Path,
        run_dir: &Path,
        enabled: impl IntoIterator<Item = Source>,
        known: Known,
    ) -> Self {
        Sources {
            enabled: enabled.into_iter().collect(),
            files: Files::new(config_dir, run_dir),
            nspawn: NspawnFiles::new(),
            kernel: Kernel::default(),
            cni: Cni::default(),
            run_dir: run_dir.to_owned(),
            asked: BTreeMap::new(),
            engines: BTreeMap::new(),
            answers: Answers::default(),
            places: Places::default(),
            known,
            last_good: BTreeMap::new(),
        }
    }

    /// Those that are read.
    pub fn enabled(&self) -> &BTreeSet<Source> {
        &self.enabled
    }

    /// Where those who ask engines say when these have answered.
    pub fn answers(&self) -> &Answers {
        &self.answers
    }

    /// The folders that are read, whose changes are changes of declarations.
    pub fn folders(&self) -> Vec<PathBuf> {
        let mut folders = Vec::new();
        if self.enabled.contains(&Source::Files) {
            folders.extend(self.files.folders());
        }
        if self.enabled.contains(&Source::Nspawn) {
            folders.extend(self.nspawn.folders());
        }
        if self.enabled.contains(&Source::Cni) {
            folders.push(cni::folder(&self.run_dir));
        }
        folders
    }

    /// Reads all declarations. [`Snapshot::registered`] is left to the caller,
    /// who talks to machined.
    pub fn read(&mut self, host: &Host) -> Snapshot {
        let mut layers = Layers::default();
        if self.enabled.contains(&Source::Files) {
            self.files.read(&mut layers);
        }
        if self.enabled.contains(&Source::Nspawn) {
            self.nspawn.read(&mut layers);
        }
        self.read_engines(host, &mut layers);
        if self.enabled.contains(&Source::Kernel) {
            self.kernel.read(host, &mut layers);
        }
        let mut snapshot = layers.merge();
        for (name, declaration) in std::mem::take(&mut self.last_good) {
            if snapshot.keeps(&name).is_some() {
                snapshot.declarations.insert(name, declaration);
            }
        }
        self.last_good = snapshot.declarations.clone();
        self.place(&mut snapshot, host);
        snapshot
    }

    /// Removes what those have left in RUNDIR who were killed while they wrote there.
    pub fn sweep(&self) {
        for folder in [
            self.run_dir.join("machines"),
            cni::folder(&self.run_dir),
            attachment::begun_folder(&self.run_dir),
            engine::folder(&self.run_dir),
        ] {
            if let Err(error) = sweep_drafts(&folder) {
                tracing::warn!("cannot sweep {}: {error}", folder.display());
            }
        }
    }

    /// Writes what engines were last known to say into RUNDIR, which somebody has removed.
    pub fn keep_engines(&self) {
        for (source, machines) in &self.engines {
            if let Err(error) = engine::keep(&self.run_dir, *source, machines) {
                tracing::warn!("cannot keep what {} says: {error}", source.name());
            }
        }
    }

    /// Whether a change of the host's network may have changed what is declared.
    pub fn differ(&self, host: &Host) -> bool {
        self.enabled.contains(&Source::Kernel)
            || self.enabled.contains(&Source::Cni) && self.cni.differs(host)
    }

    /// Sets [`Snapshot::placed`] and [`Snapshot::makers`], of the machines that were last
    /// read.
    pub fn place(&mut self, snapshot: &mut Snapshot, host: &Host) {
        snapshot.placed = self.places.ports(host);
        snapshot.unplaced = self.places.failure().map(str::to_owned);
        let located = self.places.located(&snapshot.placed);
        snapshot.makers = self.known.makers(host, located, Instant::now());
    }

    fn read_engines(&mut self, host: &Host, layers: &mut Layers) {
        let mut taken = Taken::default();
        let mut places = Vec::new();
        let mut complete = true;
        self.read_users(layers);
        for source in Source::ENGINES {
            if !self.enabled.contains(&source) {
                continue;
            }
            let machines = match self.asked.get(&source) {
                Some(said) => Ok(said.machines.clone()),
                None if source == Source::Cni => self.cni.read(&self.run_dir, host),
                None => engine::read(&self.run_dir, source).map(|said| {
                    let machines = said.machines.clone();
                    self.engines.insert(source, said);
                    machines
                }),
            };
            match machines {
                Ok(machines) => places.extend(engine::lay(source, machines, &mut taken, layers)),
                Err(problem) => {
                    complete = false;
                    layers.unlisted(source.kind(), problem.path.clone(), problem);
                }
            }
        }
        if complete {
            self.places.set(places);
        }
    }

    /// What engines say of links that users have named. They need not be among the
    /// sources.
    fn read_users(&mut self, layers: &mut Layers) {
        // Before the records: what these say is no older.
        let answered = self.answers.now();
        let mut records = BTreeMap::new();
        for (source, _) in engine::with_users() {
            let said = match self.asked.get(&source) {
                Some(said) => Ok(said.users.clone()),
                None => engine::read(&self.run_dir, source).map(|said| said.users),
            };
            let record = match said {
                Ok(Some(users)) => OfUsers::Said(users),
                Ok(None) => OfUsers::Nothing,
                Err(problem) => {
                    // Of one among the sources it is reported with its machines.
                    if !self.enabled.contains(&source) {
                        layers.problem(problem);
                    }
                    OfUsers::Unreadable
                }
            };
            records.insert(source, record);
        }
        self.known.learn(answered, records);
    }
}
