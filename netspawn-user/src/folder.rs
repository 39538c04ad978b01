//! Folders and files that nobody else may write to, whatever the umask is.

use std::{
    fs::{self, DirBuilder, File, Metadata},
    io,
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _},
    path::Path,
};

use anyhow::{Context as _, Result, bail};
use nix::{
    sys::stat::{Mode, umask},
    unistd::geteuid,
};

/// Rights of a folder in which others may find files.
pub const SHARED: u32 = 0o755;
/// Rights of a folder that is nobody else's business.
pub const PRIVATE: u32 = 0o700;

/// From now on nothing is made that others may write to. For the start of a program.
pub fn restrict() {
    let before = umask(Mode::S_IWGRP | Mode::S_IWOTH);
    umask(before | Mode::S_IWGRP | Mode::S_IWOTH);
}

/// Makes a folder, and those above it, if there is none.
///
/// # Errors
/// When it cannot be made.
pub fn make(path: &Path, mode: u32) -> Result<()> {
    DirBuilder::new()
        .recursive(true)
        .mode(mode)
        .create(path)
        .with_context(|| format!("cannot make {}", path.display()))
}

/// Refuses a folder that others may write to, or that is another user's: what is in it may
/// be anybody's.
///
/// # Errors
/// When it is one, or cannot be examined.
pub fn check(path: &Path) -> Result<()> {
    let metadata =
        fs::metadata(path).with_context(|| format!("cannot examine {}", path.display()))?;
    check_owner(path, &metadata)?;
    if is_open(&metadata) {
        bail!(
            "{} may be written to by others (mode {:04o}); see who has made what is in it, then \
             run `chmod go-w {}`",
            path.display(),
            metadata.mode() & 0o7777,
            path.display()
        );
    }
    Ok(())
}

/// Refuses what belongs to somebody else than root and the user who runs this.
///
/// # Errors
/// When it does.
pub fn check_owner(path: &Path, metadata: &Metadata) -> Result<()> {
    if is_foreign(metadata) {
        bail!(
            "{} belongs to user {}, who may put anything into it; see who has made it, and remove \
             it or give it to root",
            path.display(),
            metadata.uid()
        );
    }
    Ok(())
}

fn is_foreign(metadata: &Metadata) -> bool {
    ![0, geteuid().as_raw()].contains(&metadata.uid())
}

/// Whether others than its owner and root's own group, who has root's rights, may write to
/// it.
fn is_open(metadata: &Metadata) -> bool {
    let others = match metadata.gid() {
        0 => 0o002,
        _ => 0o022,
    };
    metadata.mode() & others != 0
}

/// Whether somebody else may make, rename or remove what is in a folder: its owner, or whoever
/// its rights let.
pub fn is_others(metadata: &Metadata) -> bool {
    is_foreign(metadata) || is_open(metadata)
}

/// Makes or empties a file with these rights.
///
/// # Errors
/// When it cannot be opened.
pub fn create(path: &Path, mode: u32) -> io::Result<File> {
    File::options()
        .create(true)
        .truncate(true)
        .write(true)
        .mode(mode)
        .open(path)
}

#[cfg(test)]
mod tests {
    use std::{
        fs::Permissions,
        os::unix::fs::{PermissionsExt as _, chown},
    };

    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().mode() & 0o7777
    }

    #[test]
    fn folders_are_nobody_elses_to_write_to() {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("a/b");
        make(&folder, SHARED).unwrap();
        check(&folder).unwrap();
        assert_eq!(mode(&folder) & 0o022, 0);
        let private = folder.join("c");
        make(&private, PRIVATE).unwrap();
        assert_eq!(mode(&private), PRIVATE);
        for (rights, group) in [(0o775, 1), (0o757, 0), (0o1777, 0)] {
            chown(&folder, None, Some(group)).unwrap();
            fs::set_permissions(&folder, Permissions::from_mode(rights)).unwrap();
            let refusal = check(&folder).unwrap_err().to_string();
            assert!(refusal.contains("chmod go-w"), "{refusal}");
        }
        assert!(check(&root.path().join("none")).is_err());
    }
}
