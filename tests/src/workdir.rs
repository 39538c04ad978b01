//! Folders of labs: emptied at the end, and swept when a killed process left one.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::{
        Once,
        atomic::{AtomicU32, Ordering},
    },
};

use anyhow::{Context as _, Result};
use nix::mount::{MntFlags, MsFlags, mount, umount2};

const PREFIX: &str = "netspawn-lab-";

/// A folder that goes, with whatever is mounted below it, when the value is dropped.
pub struct Workdir {
    path: PathBuf,
    kept: bool,
}

impl Workdir {
    /// A new folder in the system's place for temporary files.
    pub fn new() -> Result<Self> {
        static SWEEP: Once = Once::new();
        static NEXT: AtomicU32 = AtomicU32::new(0);
        SWEEP.call_once(sweep);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("{PREFIX}{}-{number}", std::process::id());
        Workdir::at(&std::env::temp_dir().join(name))
    }

    /// A new folder of that path, which must not exist.
    pub fn at(path: &Path) -> Result<Self> {
        fs::create_dir(path).with_context(|| format!("cannot make {}", path.display()))?;
        Ok(Workdir {
            path: path.to_owned(),
            kept: false,
        })
    }

    /// A folder kept by an earlier process.
    pub fn open(path: &Path) -> Self {
        Workdir {
            path: path.to_owned(),
            kept: true,
        }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Leaves the folder in place when the value is dropped, or not.
    pub fn keep(&mut self, kept: bool) {
        self.kept = kept;
    }

    /// Makes a folder below it.
    pub fn folder(&self, name: &str) -> Result<PathBuf> {
        let path = self.path.join(name);
        fs::create_dir_all(&path).with_context(|| format!("cannot make {}", path.display()))?;
        Ok(path)
    }

    /// Makes a folder below it with a bpf file system of its own.
    pub fn bpffs(&self, name: &str) -> Result<PathBuf> {
        let path = self.folder(name)?;
        mount(
            Some("bpf"),
            &path,
            Some("bpf"),
            MsFlags::empty(),
            // As systemd mounts it.
            Some("mode=0700"),
        )
        .with_context(|| format!("cannot mount a bpf file system at {}", path.display()))?;
        Ok(path)
    }
}

impl Drop for Workdir {
    fn drop(&mut self) {
        if !self.kept {
            remove(&self.path);
        }
    }
}

/// Makes a mounted bpf file system read-only, or writable again.
pub fn remount(path: &Path, read_only: bool) -> Result<()> {
    let mut flags = MsFlags::MS_REMOUNT;
    flags.set(MsFlags::MS_RDONLY, read_only);
    mount(None::<&str>, path, None::<&str>, flags, None::<&str>)
        .with_context(|| format!("cannot mount {} again", path.display()))
}

/// Removes a folder with everything mounted below it, as far as it can.
pub fn remove(path: &Path) {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let mut below: Vec<&Path> = mounts
        .lines()
        .filter_map(|line| line.split(' ').nth(1))
        .map(Path::new)
        .filter(|mounted| mounted.starts_with(path))
        .collect();
    // The last mounted comes off first.
    below.reverse();
    let clear = below
        .iter()
        .all(|mounted| umount2(*mounted, MntFlags::MNT_DETACH).is_ok());
    // What is still mounted holds someone's files, not ours.
    if !clear || fs::remove_dir_all(path).is_err() {
        eprintln!("warning: {} could not be removed", path.display());
    }
}

/// Removes the folders of processes that are gone.
fn sweep() {
    remove_of(|pid| !Path::new(&format!("/proc/{pid}")).exists());
}

/// Removes the folders of this process, which is about to end with their values alive.
pub fn remove_all() {
    remove_of(|pid| pid == std::process::id());
}

fn remove_of(owned: impl Fn(u32) -> bool) {
    let Ok(entries) = fs::read_dir(std::env::temp_dir()) else {
        return;
    };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let owner = name
            .to_str()
            .and_then(|name| name.strip_prefix(PREFIX))
            .and_then(|rest| rest.split('-').next())
            .and_then(|pid| pid.parse::<u32>().ok());
        if owner.is_some_and(&owned) {
            remove(&entry.path());
        }
    }
}
