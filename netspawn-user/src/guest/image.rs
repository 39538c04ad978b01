//! A machine's root folder, whose content its author controls: no link in it
//! leads out of it.

use std::{
    fs::{self, File, Metadata, Permissions},
    io::{self, Read as _, Write as _},
    os::{
        fd::AsRawFd as _,
        unix::fs::{
            FileTypeExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _, fchown,
        },
    },
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};
use nix::{
    errno::Errno,
    fcntl::{OFlag, OpenHow, ResolveFlag, openat2},
};

use super::is_unchanged;
use crate::gone;

/// Where the file is in the machine. It goes before systemd's own
/// `80-container-host0.network`.
pub const FILE: &str = "/etc/systemd/network/10-netspawn.network";
const NAME: &str = "10-netspawn.network";
/// The folders on the way to it.
const FOLDERS: [&str; 3] = ["etc", "etc/systemd", "etc/systemd/network"];
/// Many times what [`super::Guest::network_file`] makes for a few addresses.
const MAX_SIZE: u64 = 1 << 22;

/// A machine's root folder.
#[derive(Debug)]
pub struct Image {
    path: PathBuf,
    root: File,
}

impl Image {
    /// Opens it.
    ///
    /// # Errors
    /// When it is no root folder, or that of the host itself.
    pub fn open(path: &Path) -> Result<Self> {
        let shown = path.display();
        let root = File::options()
            .read(true)
            .custom_flags(libc::O_DIRECTORY)
            .open(path)
            .with_context(|| format!("cannot open {shown}; name the machine's root folder"))?;
        let (own, host) = (root.metadata()?, fs::metadata("/")?);
        if (own.dev(), own.ino()) == (host.dev(), host.ino()) {
            bail!("{shown} is the host's own root folder; name the machine's");
        }
        let image = Image {
            path: path.to_owned(),
            root,
        };
        if !image.has("etc") && !image.has("usr") {
            bail!("{shown} has neither etc nor usr; name the machine's root folder");
        }
        Ok(image)
    }

    /// Whether something is there; links are followed inside the image.
    #[expect(
        clippy::disallowed_methods,
        reason = "an image that cannot be read says nothing, and no machine depends on it"
    )]
    fn has(&self, path: &str) -> bool {
        self.inside(path, OFlag::O_PATH).is_ok()
    }

    /// Whether systemd-networkd is in the image, and starts with the machine.
    #[expect(
        clippy::disallowed_methods,
        reason = "an image that cannot be read says nothing, and no machine depends on it"
    )]
    pub fn networkd(&self) -> Networkd {
        let under = |folders: &[&str], path: &str| {
            let there = |folder: &&str| {
                let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW;
                self.inside(format!("{folder}/systemd/{path}"), flags)
                    .is_ok()
            };
            folders.iter().any(there)
        };
        if !under(&["usr/lib", "lib"], "systemd-networkd") {
            return Networkd::Missing;
        }
        let wanted = "system/multi-user.target.wants/systemd-networkd.service";
        if under(&["etc", "usr/lib", "lib"], wanted) {
            Networkd::Enabled
        } else {
            Networkd::Disabled
        }
    }

    /// Names in a folder of the image; none when there is no such folder.
    #[expect(
        clippy::disallowed_methods,
        reason = "an image that cannot be read says nothing, and no machine depends on it"
    )]
    pub fn list(&self, folder: &Path) -> Vec<String> {
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY;
        let Ok(folder) = self.inside(folder, flags) else {
            return Vec::new();
        };
        let entries = gone::list(&by_number(&folder)).unwrap_or_default();
        entries
            .into_iter()
            .flatten()
            .filter_map(|entry| entry.file_name().into_string().ok())
            .collect()
    }

    /// The content of a regular file of the image; `None` when there is none.
    #[expect(
        clippy::disallowed_methods,
        reason = "an image that cannot be read says nothing, and no machine depends on it"
    )]
    pub fn read(&self, file: &Path) -> Option<Vec<u8>> {
        let place = self.inside(file, OFlag::O_PATH).ok()?;
        if !place.metadata().ok()?.is_file() {
            return None;
        }
        let mut bytes = Vec::new();
        let mut file = File::open(by_number(&place)).ok()?.take(MAX_SIZE);
        file.read_to_end(&mut bytes).ok()?;
        Some(bytes)
    }

    /// Makes [`FILE`] in the image this text, at once or not at all. Returns
    /// where that is, as the host sees it, and whether it was something else
    /// before.
    ///
    /// # Errors
    /// When something is there that is not as this program wrote it, or it
    /// cannot be written; nothing is changed then but missing folders made.
    pub fn install(&self, text: &str) -> Result<(PathBuf, bool)> {
        let path = self.path.join(FILE.trim_start_matches('/'));
        let (folder, owner) = self.folder()?;
        let before = read(&folder).with_context(|| format!("cannot read {}", path.display()))?;
        match before {
            Found::Text(before) if before == text => return Ok((path, false)),
            Found::Nothing => {}
            Found::Text(before) if is_unchanged(&before) => {}
            Found::Text(_) => bail!(
                "{} was written or changed by somebody, so it is left alone; move it away, or \
                 change it by hand (without --install, what would be written is printed)",
                path.display()
            ),
            Found::Other(what) => bail!(
                "{} is {what}, so it is left alone; move it away",
                path.display()
            ),
        }
        write(&folder, text, &owner).with_context(|| format!("cannot write {}", path.display()))?;
        Ok((path, true))
    }

    /// Opens what is inside, following links as the machine would.
    fn inside(&self, path: impl AsRef<Path>, flags: OFlag) -> Result<File, Errno> {
        let how = OpenHow::new()
            .flags(flags | OFlag::O_CLOEXEC)
            .resolve(ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS);
        openat2(&self.root, path.as_ref(), how).map(File::from)
    }

    /// The folder of [`FILE`], made where it is missing, and the metadata of the
    /// one above it, whose owner the file gets: in an image with private users
    /// that is the machine's root.
    fn folder(&self) -> Result<(File, Metadata)> {
        let mut parent = self.root.try_clone()?;
        let mut above = parent.metadata()?;
        for path in FOLDERS {
            let shown = self.path.join(path);
            let open = || self.inside(path, OFlag::O_RDONLY | OFlag::O_DIRECTORY);
            let owner = parent.metadata()?;
            let folder = match open() {
                Err(Errno::ENOENT) => {
                    make(&parent, path, &owner)
                        .with_context(|| format!("cannot make {}", shown.display()))?;
                    open()
                }
                opened => opened,
            };
            above = owner;
            parent = folder.with_context(|| {
                format!("cannot open {}; see that it is a folder", shown.display())
            })?;
        }
        Ok((parent, above))
    }
}

/// What an image has of systemd-networkd.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Networkd {
    /// It is there and starts with the machine.
    Enabled,
    /// It is there.
    Disabled,
    /// It is not there.
    Missing,
}

/// What is in place of the file.
enum Found {
    Nothing,
    Text(String),
    /// Nothing that could be replaced.
    Other(&'static str),
}

/// A folder's path that stays the folder's own, whatever is renamed.
fn by_number(file: &File) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()))
}

/// Makes the last folder of a path in its parent, for the same owner.
fn make(parent: &File, path: &str, owner: &Metadata) -> io::Result<()> {
    let name = Path::new(path).file_name().unwrap_or_default();
    fs::create_dir(by_number(parent).join(name))?;
    let how = OpenHow::new()
        .flags(OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC);
    let folder = File::from(openat2(parent, name, how)?);
    folder.set_permissions(Permissions::from_mode(0o755))?;
    fchown(&folder, Some(owner.uid()), Some(owner.gid()))
}

fn read(folder: &File) -> io::Result<Found> {
    // Opened as a place only: the opening of a device can do things.
    let how = OpenHow::new().flags(OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC);
    let place = match openat2(folder, NAME, how) {
        Ok(place) => File::from(place),
        Err(Errno::ENOENT) => return Ok(Found::Nothing),
        Err(error) => return Err(error.into()),
    };
    let kind = place.metadata()?.file_type();
    if !kind.is_file() {
        return Ok(Found::Other(if kind.is_symlink() {
            "a symbolic link"
        } else if kind.is_dir() {
            "a folder"
        } else if kind.is_fifo() {
            "a FIFO"
        } else {
            "no regular file"
        }));
    }
    let mut bytes = Vec::new();
    File::open(by_number(&place))?
        .take(MAX_SIZE)
        .read_to_end(&mut bytes)?;
    // What is cut off or no text is not as it was written.
    Ok(Found::Text(String::from_utf8_lossy(&bytes).into_owned()))
}

fn write(folder: &File, text: &str, owner: &Metadata) -> io::Result<()> {
    let place = by_number(folder);
    let mut draft = tempfile::Builder::new()
        .prefix(".")
        .suffix(".draft")
        .tempfile_in(&place)?;
    draft.write_all(text.as_bytes())?;
    fchown(draft.as_file(), Some(owner.uid()), Some(owner.gid()))?;
    draft
        .as_file()
        .set_permissions(Permissions::from_mode(0o644))?;
    draft.as_file().sync_all()?;
    draft
        .persist(place.join(NAME))
        .map_err(|error| error.error)?;
    folder.sync_all()
}
