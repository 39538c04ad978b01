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
//! A bpffs holds objects, folders and symbolic links; records are the latter.

use std::{
    ffi::OsString,
    fs::{self, Permissions},
    io,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};
use netspawn_ebpf::abi;
use nix::sys::{
    statfs::{FsType, statfs},
    statvfs::FsFlags,
};

use crate::{folder, net::namespace};

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

/// The nearest folder of a bpffs above a path to which others may write.
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

/// Removes something that may be gone already.
pub(super) fn gone(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
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

    /// The folder of an uplink. A bpffs has no dots in names (kernel's
    /// `bpf_lookup`), names of interfaces do.
    pub fn uplink(&self, name: &str) -> PathBuf {
        let name = name.replace('%', "%25").replace('.', "%2e");
        self.root.join("uplinks").join(name)
    }

    /// Whether something is attached.
    pub fn exist(&self) -> bool {
        self.root.join("netns").symlink_metadata().is_ok()
    }

    /// The file system that BPFDIR is on, or will be made on.
    ///
    /// # Errors
    /// When it cannot be examined.
    pub fn place(&self) -> Result<Place> {
        let mut there = self.base.as_path();
        while !there.exists() {
            there = match there.parent() {
                Some(parent) => parent,
                None => bail!("{}: there is no such folder", self.base.display()),
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

    /// Makes the folders, and records the network namespace.
    ///
    /// # Errors
    /// When BPFDIR is not on a bpffs, or not to be written to.
    pub fn make(&self) -> Result<()> {
        let place = self.place()?;
        if !place.is_bpffs {
            bail!(
                "{} is not on a bpf filesystem; mount one with `mount -t bpf bpf {}`, or give \
                 another folder with --bpf-dir",
                self.base.display(),
                place.mount_point.display(),
            );
        }
        self.check_owner()?;
        for folder in [
            self.maps(),
            self.root.join("programs"),
            self.root.join("uplinks"),
        ] {
            folder::make(&folder, folder::PRIVATE)
                .context("this needs root, and a bpf filesystem that is mounted read-write")?;
        }
        // Of one that was there before.
        fs::set_permissions(&self.base, Permissions::from_mode(folder::PRIVATE))
            .with_context(|| format!("cannot protect {}", self.base.display()))?;
        if !self.exist() {
            self.record(&self.root.join("netns"), &namespace::cookie()?.to_string())?;
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
        let Ok(recorded) = fs::read_link(self.root.join("netns")) else {
            return Ok(());
        };
        let here = namespace::cookie().context("cannot identify the network namespace")?;
        if recorded.as_os_str() != here.to_string().as_str() {
            bail!(
                "{} belongs to another network namespace; run this command there, or give \
                 another folder with --bpf-dir",
                self.base.display()
            );
        }
        Ok(())
    }

    fn record(&self, path: &Path, text: &str) -> Result<()> {
        gone(fs::remove_file(path)).with_context(|| format!("cannot remove {}", path.display()))?;
        symlink(text, path).with_context(|| format!("cannot make {}", path.display()))
    }

    /// Records something of an uplink.
    ///
    /// # Errors
    /// When the bpffs refuses.
    pub fn record_uplink(&self, name: &str, what: &str, text: &str) -> Result<()> {
        let folder = self.uplink(name);
        folder::make(&folder, folder::PRIVATE)?;
        self.record(&folder.join(what), text)
    }

    /// Forgets something of an uplink.
    ///
    /// # Errors
    /// When the bpffs refuses.
    pub fn forget(&self, name: &str, what: &str) -> Result<()> {
        let path = self.uplink(name).join(what);
        gone(fs::remove_file(&path)).with_context(|| format!("cannot remove {}", path.display()))
    }

    /// The records of an uplink by name.
    pub fn records(&self, name: &str) -> Vec<String> {
        list(&self.uplink(name))
            .into_iter()
            .filter_map(|entry| entry.into_string().ok())
            .collect()
    }

    /// The uplinks recorded, by name.
    pub fn uplinks(&self) -> Vec<Uplink> {
        let mut uplinks: Vec<Uplink> = list(&self.root.join("uplinks"))
            .into_iter()
            .filter_map(|name| name.into_string().ok())
            .filter_map(|name| self.read_uplink(name.replace("%2e", ".").replace("%25", "%")))
            .collect();
        uplinks.sort_by(|a, b| a.name.cmp(&b.name));
        uplinks
    }

    fn read_uplink(&self, name: String) -> Option<Uplink> {
        let folder = self.uplink(&name);
        let text = |what| {
            fs::read_link(folder.join(what))
                .ok()?
                .into_os_string()
                .into_string()
                .ok()
        };
        Some(Uplink {
            ifindex: text(IFINDEX)?.parse().ok()?,
            xdp: match text(MODE) {
                Some(mode) => mode == "xdp",
                None => folder.join("xdp").exists(),
            },
            master: text(MASTER).and_then(|ifindex| ifindex.parse().ok()),
            follows: text(FOLLOWS).is_some(),
            gone: text(GONE).is_some(),
            name,
        })
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

    /// Puts the maps of `next_maps` in the place of the others.
    ///
    /// # Errors
    /// When the bpffs refuses; the others are then still in place, or gone.
    pub fn swap_maps(&self) -> Result<()> {
        remove_tree(&self.maps())?;
        fs::rename(self.next_maps(), self.maps())
            .with_context(|| format!("cannot rename {} to maps", self.next_maps().display()))
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

fn list(folder: &Path) -> Vec<OsString> {
    fs::read_dir(folder)
        .map(|entries| entries.flatten().map(|entry| entry.file_name()).collect())
        .unwrap_or_default()
}

/// Removes a folder and what is in it, if it is there.
///
/// # Errors
/// When the bpffs refuses.
pub fn remove_tree(folder: &Path) -> Result<()> {
    gone(fs::remove_dir_all(folder)).with_context(|| format!("cannot remove {}", folder.display()))
}
