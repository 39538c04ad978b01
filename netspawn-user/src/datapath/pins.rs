//! What lies in BPFDIR, and whose it is.
//!
//! ```text
//! BPFDIR/v2/netns                   link whose text is the namespace's cookie
//!           maps/NAME               maps
//!           programs/port_ingress   the guard, for ports that come later
//!           ports/…                 links of ports that cannot join the block
//!           raised/IFINDEX          link whose text is the name of a port that
//!                                   was set up, and is to be set down again
//!           uplinks/NAME/ifindex    link whose text is the ifindex
//!                        mode                  `tc` or `xdp`, as it was attached
//!                        tc-ingress, tc-egress, xdp
//!                        group-MAC, mld-MAC, allmulti   what is to be put back
//!                        master                ifindex of the bridge or bond that
//!                                              has the programs in its place
//!                        follows               it is there in place of a port
//!                        gone                  its interface was deleted
//! ```
//! A bpffs holds objects, directories and symbolic links; records are the latter. Each is
//! written in one step: made beside, with [`DRAFT`] at the end of its name, and renamed.
//! So one that cannot be read as what it is was damaged by somebody, and is named.

use std::{
    collections::BTreeMap,
    fs::{self, File, Permissions, TryLockError},
    io,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};
use netspawn_ebpf::abi;
use nix::{
    fcntl::{AT_FDCWD, RenameFlags, renameat2},
    sys::{
        statfs::{FsType, statfs},
        statvfs::FsFlags,
    },
};

use crate::{folder, gone, net::namespace};

/// Record of the ifindex.
pub const IFINDEX: &str = "ifindex";
/// Record of how an uplink was attached.
pub const MODE: &str = "mode";
/// Record of the interface that has an uplink's programs in its place.
pub const MASTER: &str = "master";
/// Record of an uplink that is there in place of its ports.
pub const FOLLOWS: &str = "follows";
/// Record of an uplink whose interface was deleted.
pub const GONE: &str = "gone";
/// End of the name of a record that is being written.
const DRAFT: &str = "~";

const BPF_FS_MAGIC: FsType = FsType(libc::BPF_FS_MAGIC as _);

/// The folder of this version of the ABI.
#[derive(Clone, Debug)]
pub struct Pins {
    base: PathBuf,
    root: PathBuf,
}

/// What is recorded of an uplink.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Uplink {
    /// Its name when last looked at.
    pub name: String,
    /// Its ifindex.
    pub ifindex: u32,
    /// Whether it was attached with XDP.
    pub xdp: bool,
    /// The bridge or bond that it is a port of and that has its programs.
    pub master: Option<u32>,
    /// It was not asked for, but is there in place of ports that were.
    pub follows: bool,
    /// Its interface was deleted; programs come back with it.
    pub gone: bool,
}

impl Uplink {
    /// Whether programs hang on this very interface.
    pub fn has_programs(&self) -> bool {
        self.master.is_none() && !self.gone
    }
}

/// Name of an uplink that has a damaged record, and what is wrong.
pub type DamagedUplink = (String, anyhow::Error);

/// Where BPFDIR is or will be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// Whether that is a bpffs.
    pub is_bpffs: bool,
    /// Whether it is mounted read-only.
    pub read_only: bool,
    /// The nearest folder that exists: where to mount one.
    pub mount_point: PathBuf,
    /// A folder of the bpffs above BPFDIR to which others than root may write, and its
    /// mode: they can put something in BPFDIR's place.
    pub open: Option<(PathBuf, u32)>,
}

/// Kind of a file system, and whether it is read-only.
fn file_system(path: &Path) -> Result<(FsType, bool)> {
    let found = statfs(path).with_context(|| format!("cannot examine {}", path.display()))?;
    let read_only = found.flags().contains(FsFlags::ST_RDONLY);
    Ok((found.filesystem_type(), read_only))
}

/// The nearest directory of a bpffs above a path to which others may write.
fn open_above(path: &Path) -> Result<Option<(PathBuf, u32)>> {
    for folder in path.ancestors().skip(1) {
        let metadata = match fs::metadata(folder) {
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied
                ) =>
            {
                continue;
            }
            metadata => metadata.with_context(|| format!("cannot examine {}", folder.display()))?,
        };
        if file_system(folder)?.0 != BPF_FS_MAGIC {
            break;
        }
        if folder::is_others(&metadata) {
            return Ok(Some((folder.to_owned(), metadata.mode() & 0o7777)));
        }
    }
    Ok(None)
}

impl Pins {
    /// Names paths under BPFDIR; touches nothing.
    pub fn new(bpf_dir: &Path) -> Self {
        Pins {
            base: bpf_dir.to_owned(),
            root: bpf_dir.join(format!("v{}", abi::VERSION)),
        }
    }

    /// Where the maps are.
    pub fn maps(&self) -> PathBuf {
        self.root.join("maps")
    }

    /// Where maps of another size are made, before they take the others' place.
    pub fn next_maps(&self) -> PathBuf {
        self.root.join("maps-next")
    }

    /// The program that guards ports.
    pub fn guard(&self) -> PathBuf {
        self.root.join("programs").join(abi::program::PORT_INGRESS)
    }

    /// Links of ports.
    pub fn ports(&self) -> PathBuf {
        self.root.join("ports")
    }

    /// Records of ports that were set up.
    pub fn raised(&self) -> PathBuf {
        self.root.join("raised")
    }

    /// The directory of this version.
    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    /// Data planes of programs with another map layout in BPFDIR.
    ///
    /// # Errors
    /// When BPFDIR cannot be read.
    pub fn others(&self) -> Result<Vec<Pins>> {
        let mut others = Vec::new();
        for name in list(&self.base)? {
            let number = name.strip_prefix('v').map(str::parse::<u32>);
            let Some(Ok(version)) = number else {
                continue;
            };
            let other = Pins {
                base: self.base.clone(),
                root: self.base.join(name),
            };
            if version != abi::VERSION && other.exist()? {
                others.push(other);
            }
        }
        Ok(others)
    }

    /// Where the directories of uplinks are.
    pub(super) fn uplinks_directory(&self) -> PathBuf {
        self.root.join("uplinks")
    }

    /// The folder of an uplink. A bpffs has no dots in names (kernel's
    /// `bpf_lookup`), names of interfaces do.
    pub fn uplink(&self, name: &str) -> PathBuf {
        let name = name.replace('%', "%25").replace('.', "%2e");
        self.uplinks_directory().join(name)
    }

    fn namespace(&self) -> PathBuf {
        self.root.join("netns")
    }

    /// Whether something is attached, or left of what was.
    ///
    /// # Errors
    /// When the kernel does not tell, as to a user who may not look.
    pub fn exist(&self) -> Result<bool> {
        gone::is_there(&self.root).with_context(|| cannot_read(&self.root))
    }

    /// The file system that BPFDIR is on, or will be made on.
    ///
    /// # Errors
    /// When it cannot be examined.
    pub fn place(&self) -> Result<Place> {
        let mut there = self.base.as_path();
        while gone::path(there.metadata())
            .with_context(|| cannot_read(there))?
            .is_none()
        {
            there = match there.parent() {
                Some(parent) => parent,
                None => bail!("{}: there is no such directory", self.base.display()),
            };
        }
        let kind = file_system(there)?;
        let is_bpffs = kind.0 == BPF_FS_MAGIC;
        let open = match is_bpffs {
            true => open_above(&self.base)?,
            false => None,
        };
        let usual = ["/sys/fs", "/sys/fs/bpf"].map(Path::new).contains(&there);
        Ok(Place {
            is_bpffs,
            read_only: kind.1,
            open,
            mount_point: match usual {
                true => "/sys/fs/bpf".into(),
                false => there.to_owned(),
            },
        })
    }

    /// Locks BPFDIR for writing, until the file is closed; `None` when it is not there. The
    /// lock of RUNDIR is not enough: who removes RUNDIR while an agent runs has the next
    /// process find neither lock nor agent.
    ///
    /// # Errors
    /// When another process has it.
    pub fn lock(&self) -> Result<Option<File>> {
        let cannot = || format!("cannot lock {}", self.base.display());
        let Some(directory) = gone::path(File::open(&self.base)).with_context(cannot)? else {
            return Ok(None);
        };
        match directory.try_lock() {
            Ok(()) => Ok(Some(directory)),
            Err(TryLockError::WouldBlock) => bail!(
                "{} is in use by a process whose lock in RUNDIR was removed; an agent puts it \
                 back within half a minute: try again then (`fuser -v {}` names the process)",
                self.base.display(),
                self.base.display()
            ),
            Err(TryLockError::Error(error)) => Err(error).with_context(cannot),
        }
    }

    /// Makes the folders, and records the network namespace.
    ///
    /// # Errors
    /// When BPFDIR is not on a bpffs, or not to be written to.
    pub fn make(&self) -> Result<()> {
        let place = self.place()?;
        if !place.is_bpffs {
            bail!(
                "{} is not on a bpf filesystem; mount one with `mount -t bpf bpf {}`, or give \
                 another directory with --bpf-dir",
                self.base.display(),
                place.mount_point.display(),
            );
        }
        self.check_owner()?;
        for folder in [
            self.maps(),
            self.root.join("programs"),
            self.uplinks_directory(),
        ] {
            folder::make(&folder, folder::PRIVATE)
                .context("this needs root, and a bpf filesystem that is mounted read-write")?;
        }
        // Of one that was there before.
        fs::set_permissions(&self.base, Permissions::from_mode(folder::PRIVATE))
            .with_context(|| format!("cannot protect {}", self.base.display()))?;
        if text(&self.namespace())?.is_none() {
            record(&self.namespace(), &namespace::cookie()?.to_string())?;
        }
        Ok(())
    }

    /// Refuses to go on where another namespace is meant, or where what is pinned may be
    /// anybody's.
    ///
    /// # Errors
    /// When what is pinned was made in another network namespace, or by another user.
    pub fn check(&self) -> Result<()> {
        self.check_owner()?;
        self.check_namespace()
    }

    /// Refuses what another user has made.
    ///
    /// # Errors
    /// When BPFDIR, or what is in it, belongs to somebody else than root.
    pub fn check_owner(&self) -> Result<()> {
        for path in [&self.base, &self.root] {
            match path.symlink_metadata() {
                Ok(metadata) => folder::check_owner(path, &metadata)?,
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                // Root's, or of no use to whoever this is.
                Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {}
                Err(error) => {
                    return Err(error)
                        .with_context(|| format!("cannot examine {}", path.display()));
                }
            }
        }
        Ok(())
    }

    /// Refuses to go on where another namespace is meant.
    ///
    /// # Errors
    /// When what is pinned was made in another network namespace.
    pub fn check_namespace(&self) -> Result<()> {
        let Some(recorded) = text(&self.namespace())? else {
            return Ok(());
        };
        let here = namespace::cookie().context("cannot identify the network namespace")?;
        if recorded != here.to_string() {
            bail!(
                "{} belongs to another network namespace; run this command there, or give \
                 another directory with --bpf-dir",
                self.base.display()
            );
        }
        Ok(())
    }

    /// Records something of an uplink.
    ///
    /// # Errors
    /// When the bpffs refuses.
    pub fn record_uplink(&self, name: &str, what: &str, text: &str) -> Result<()> {
        let folder = self.uplink(name);
        folder::make(&folder, folder::PRIVATE)?;
        record(&folder.join(what), text)
    }

    /// Forgets something of an uplink.
    ///
    /// # Errors
    /// When the bpffs refuses.
    pub fn forget(&self, name: &str, what: &str) -> Result<()> {
        remove(&self.uplink(name).join(what))
    }

    /// The records of an uplink by name.
    ///
    /// # Errors
    /// When they cannot be listed.
    pub fn records(&self, name: &str) -> Result<Vec<String>> {
        list(&self.uplink(name))
    }

    /// The uplinks recorded, by name.
    ///
    /// # Errors
    /// When they cannot be read, and when a record is damaged, which is named.
    pub fn uplinks(&self) -> Result<Vec<Uplink>> {
        let (uplinks, damaged) = self.readable_uplinks()?;
        match damaged.into_iter().next() {
            Some((_, error)) => Err(error),
            None => Ok(uplinks),
        }
    }

    /// The uplinks recorded, by name, and those of which a record is damaged, with what is
    /// wrong: for who takes all of it away.
    ///
    /// # Errors
    /// When they cannot be read.
    pub fn readable_uplinks(&self) -> Result<(Vec<Uplink>, Vec<DamagedUplink>)> {
        let (mut uplinks, mut damaged) = (Vec::new(), Vec::new());
        for name in list(&self.uplinks_directory())? {
            let name = name.replace("%2e", ".").replace("%25", "%");
            match self.read_uplink(&name) {
                Ok(uplink) => uplinks.extend(uplink),
                Err(error) if error.is::<Damaged>() => damaged.push((name, error)),
                Err(error) => return Err(error),
            }
        }
        uplinks.sort_by(|a, b| a.name.cmp(&b.name));
        Ok((uplinks, damaged))
    }

    /// `None` for one that is being recorded: nothing of it is attached yet.
    fn read_uplink(&self, name: &str) -> Result<Option<Uplink>> {
        let folder = self.uplink(name);
        let read = |what| text(&folder.join(what));
        let number = |what| -> Result<Option<u32>> {
            let Some(text) = read(what)? else {
                return Ok(None);
            };
            let damaged = || Damaged(folder.join(what), text.clone());
            Ok(Some(text.parse().map_err(|_| damaged())?))
        };
        let Some(ifindex) = number(IFINDEX)? else {
            return Ok(None);
        };
        let xdp = folder.join("xdp");
        Ok(Some(Uplink {
            name: name.to_owned(),
            ifindex,
            xdp: match read(MODE)?.as_deref() {
                Some("xdp") => true,
                Some("tc") => false,
                Some(other) => bail!(Damaged(folder.join(MODE), other.to_owned())),
                None => gone::is_there(&xdp).with_context(|| cannot_read(&xdp))?,
            },
            master: number(MASTER)?,
            follows: read(FOLLOWS)?.is_some(),
            gone: read(GONE)?.is_some(),
        }))
    }

    /// All records by path: of the namespace, uplinks and ports that were set up.
    ///
    /// # Errors
    /// When they cannot be read.
    pub(super) fn all_records(&self) -> Result<BTreeMap<PathBuf, String>> {
        let mut places = vec![self.raised()];
        let uplinks = self.uplinks_directory();
        places.extend(list(&uplinks)?.into_iter().map(|name| uplinks.join(name)));
        let mut records = BTreeMap::new();
        for place in places {
            for name in list(&place)? {
                let path = place.join(name);
                let kind =
                    gone::path(path.symlink_metadata()).with_context(|| cannot_read(&path))?;
                if kind.is_some_and(|kind| kind.is_symlink())
                    && let Some(text) = text(&path)?
                {
                    records.insert(path, text);
                }
            }
        }
        let namespace = self.namespace();
        if let Some(text) = text(&namespace)? {
            records.insert(namespace, text);
        }
        Ok(records)
    }

    /// Records that a port was set up.
    ///
    /// # Errors
    /// When the bpffs refuses.
    pub fn record_raised(&self, ifindex: u32, name: &str) -> Result<()> {
        let folder = self.raised();
        fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
        record(&folder.join(ifindex.to_string()), name)
    }

    /// Forgets that a port was set up.
    ///
    /// # Errors
    /// When the bpffs refuses.
    pub fn forget_raised(&self, ifindex: u32) -> Result<()> {
        remove(&self.raised().join(ifindex.to_string()))
    }

    /// ifindexes and names of ports that were set up.
    ///
    /// # Errors
    /// When they cannot be read. What has no number for a name is nobody's record.
    pub fn raised_ports(&self) -> Result<Vec<(u32, String)>> {
        let folder = self.raised();
        let mut ports = Vec::new();
        for entry in list(&folder)? {
            if let Ok(ifindex) = entry.parse()
                && let Some(name) = text(&folder.join(entry))?
            {
                ports.push((ifindex, name));
            }
        }
        Ok(ports)
    }

    /// Moves all that is recorded of an uplink to another name, which is free.
    ///
    /// # Errors
    /// When the bpffs refuses.
    pub fn rename_uplink(&self, from: &str, to: &str) -> Result<()> {
        fs::rename(self.uplink(from), self.uplink(to))
            .with_context(|| format!("cannot rename {} to {to}", self.uplink(from).display()))
    }

    /// Removes the folder of an uplink with all its records.
    ///
    /// # Errors
    /// When the bpffs refuses.
    pub fn remove_uplink(&self, name: &str) -> Result<()> {
        remove_tree(&self.uplink(name))
    }

    /// Puts the maps of `next_maps` in the place of the others, in one step.
    ///
    /// # Errors
    /// When the bpffs refuses; the others are then still in place.
    pub fn swap_maps(&self) -> Result<()> {
        let (next, maps) = (self.next_maps(), self.maps());
        renameat2(
            AT_FDCWD,
            &next,
            AT_FDCWD,
            &maps,
            RenameFlags::RENAME_EXCHANGE,
        )
        .with_context(|| format!("cannot exchange {} and maps", next.display()))?;
        remove_tree(&next)
    }

    /// Removes everything, the folder of this version and BPFDIR when nothing
    /// else is in them.
    ///
    /// # Errors
    /// When the bpffs refuses.
    pub fn remove_all(&self) -> Result<()> {
        remove_tree(&self.root)?;
        match fs::remove_dir(&self.base) {
            Err(error)
                if !matches!(
                    error.raw_os_error(),
                    Some(libc::ENOTEMPTY | libc::ENOENT | libc::EBUSY)
                ) =>
            {
                Err(error).with_context(|| format!("cannot remove {}", self.base.display()))
            }
            _ => Ok(()),
        }
    }
}

/// A record that says nothing that is written there.
#[derive(Debug, thiserror::Error)]
#[error(
    "{} is damaged: it says \"{_1}\"; `netspawn-xdp detach` takes everything away, after which \
     `netspawn-xdp attach` begins anew", _0.display()
)]
struct Damaged(PathBuf, String);

fn cannot_read(path: &Path) -> String {
    format!("cannot read {}", path.display())
}

/// Names in a directory, without those of records that are being written; none where
/// there is no such directory.
fn list(folder: &Path) -> Result<Vec<String>> {
    let entries =
        gone::list(folder).with_context(|| format!("cannot list {}", folder.display()))?;
    let mut names = Vec::new();
    for entry in entries.into_iter().flatten() {
        let name = entry.file_name();
        // All that is written here is UTF-8.
        names.extend(
            name.to_str()
                .filter(|name| !name.ends_with(DRAFT))
                .map(str::to_owned),
        );
    }
    Ok(names)
}

/// What a record says; `None` when there is none.
fn text(path: &Path) -> Result<Option<String>> {
    let link = gone::path(fs::read_link(path)).with_context(|| cannot_read(path))?;
    Ok(link.map(|text| text.to_string_lossy().into_owned()))
}

/// Writes a record in one step.
pub(super) fn record(path: &Path, text: &str) -> Result<()> {
    let mut draft = path.as_os_str().to_owned();
    draft.push(DRAFT);
    let draft = PathBuf::from(draft);
    let made = symlink(text, &draft).or_else(|error| match error.kind() {
        // Left by one that was killed.
        io::ErrorKind::AlreadyExists => {
            fs::remove_file(&draft).and_then(|()| symlink(text, &draft))
        }
        _ => Err(error),
    });
    made.and_then(|()| fs::rename(&draft, path))
        .with_context(|| format!("cannot make {}", path.display()))
}

fn remove(path: &Path) -> Result<()> {
    gone::path(fs::remove_file(path))
        .map(drop)
        .with_context(|| format!("cannot remove {}", path.display()))
}

/// Removes a directory and what is in it, if it is there.
///
/// # Errors
/// When the bpffs refuses.
pub fn remove_tree(folder: &Path) -> Result<()> {
    gone::path(fs::remove_dir_all(folder))
        .map(drop)
        .with_context(|| format!("cannot remove {}", folder.display()))
}
