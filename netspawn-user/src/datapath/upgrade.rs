//! Takes over a data plane that programs with another map layout ([`abi::VERSION`]) run.
//!
//! The links of its programs move to this version's directory, where updating them
//! replaces one program by the other in one step. Before that, this version's maps are
//! filled, so that no packet meets a program without its data. Counters start anew.
//!
//! [`abi::VERSION`]: netspawn_ebpf::abi::VERSION

use std::{fs, io, os::unix::fs::symlink, path::Path};

use anyhow::{Context as _, Result};

use super::pins::{Pins, remove_tree};
use crate::gone;

/// Copies what `from` records of uplinks and ports. What `to` records already stays.
///
/// # Errors
/// When `from` cannot be read or `to` cannot be written.
pub fn copy_records(from: &Pins, to: &Pins) -> Result<()> {
    for uplink in directories(&from.uplinks_directory())? {
        copy_symlinks(
            &from.uplinks_directory().join(&uplink),
            &to.uplinks_directory().join(&uplink),
        )?;
    }
    copy_symlinks(&from.raised(), &to.raised())
}

/// Moves the pinned links of programs. They are attached all the time.
///
/// # Errors
/// When the bpffs refuses; calling it again moves what is left.
pub fn move_links(from: &Pins, to: &Pins) -> Result<()> {
    // An uplink may have been renamed since: its ifindex says which it is.
    let here = to.uplinks()?;
    for uplink in from.uplinks()? {
        let now = here.iter().find(|here| here.ifindex == uplink.ifindex);
        let name = now.map_or(&uplink.name, |here| &here.name);
        move_objects(&from.uplink(&uplink.name), &to.uplink(name))?;
    }
    move_objects(&from.ports(), &to.ports())
}

/// Whether links of programs have been moved to `pins` before: what it holds is in use.
///
/// # Errors
/// When it cannot be read.
pub fn holds_links(pins: &Pins) -> Result<bool> {
    let mut places = vec![pins.ports()];
    for uplink in directories(&pins.uplinks_directory())? {
        places.push(pins.uplinks_directory().join(uplink));
    }
    for place in places {
        if !entries(&place, |kind| kind.is_file())?.is_empty() {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Removes what the other version has left once nothing of it is attached.
///
/// # Errors
/// When the bpffs refuses.
pub fn remove(other: &Pins) -> Result<()> {
    remove_tree(other.root())
}

fn copy_symlinks(from: &Path, to: &Path) -> Result<()> {
    for name in entries(from, |kind| kind.is_symlink())? {
        let path = from.join(&name);
        let text =
            fs::read_link(&path).with_context(|| format!("cannot read {}", path.display()))?;
        fs::create_dir_all(to).with_context(|| format!("cannot make {}", to.display()))?;
        match symlink(&text, to.join(&name)) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(error)
                    .with_context(|| format!("cannot make {}", to.join(&name).display()));
            }
            _ => {}
        }
    }
    Ok(())
}

fn move_objects(from: &Path, to: &Path) -> Result<()> {
    for name in entries(from, |kind| kind.is_file())? {
        fs::create_dir_all(to).with_context(|| format!("cannot make {}", to.display()))?;
        let (from, to) = (from.join(&name), to.join(&name));
        fs::rename(&from, &to)
            .with_context(|| format!("cannot move {} to {}", from.display(), to.display()))?;
    }
    Ok(())
}

fn directories(path: &Path) -> Result<Vec<std::ffi::OsString>> {
    entries(path, |kind| kind.is_dir())
}

/// Names of the entries of a kind; none where there is no such directory.
fn entries(path: &Path, is: impl Fn(&fs::FileType) -> bool) -> Result<Vec<std::ffi::OsString>> {
    let cannot = || format!("cannot list {}", path.display());
    let listing = gone::list(path).with_context(cannot)?;
    let mut names = Vec::new();
    for entry in listing.into_iter().flatten() {
        if is(&entry.file_type().with_context(cannot)?) {
            names.push(entry.file_name());
        }
    }
    Ok(names)
}
