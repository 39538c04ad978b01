//! The other `arping`, whose Debian package and that of iputils exclude each other.

use std::{fs, path::PathBuf};

use anyhow::{Context as _, Result};

use crate::debian::{Apt, cache};

/// Thomas Habets' `arping`, fetched once and kept beside the machine's own programs.
pub fn habets_arping() -> Result<PathBuf> {
    let kept = cache()?.join("habets-arping");
    if kept.is_file() {
        return Ok(kept);
    }
    let release = fs::read_to_string("/etc/os-release").context("this is no Debian system")?;
    let suite = release
        .lines()
        .find_map(|line| line.strip_prefix("VERSION_CODENAME="))
        .context("/etc/os-release names no VERSION_CODENAME")?;
    let apt = Apt::of_suite(suite)?.with_context(|| {
        format!("the mirror does not serve {suite}: `apt-get update` says more")
    })?;
    let unpacked = apt.unpack(&["arping".to_owned()])?;
    // Whole or not at all, as another run may be looking for it.
    let draft = kept.with_extension(std::process::id().to_string());
    fs::copy(unpacked.join("usr/sbin/arping"), &draft)
        .context("the package `arping` has no usr/sbin/arping")?;
    fs::rename(&draft, &kept)?;
    Ok(kept)
}
