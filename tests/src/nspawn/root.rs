//! The folders that boxes are booted from, made once and kept.

use std::{
    fs::{self, File},
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};

use crate::debian;

/// Goes up when [`make_root`] makes something else, so that cached boxes are made anew.
const RECIPE: u32 = 2;

/// What the box needs besides debootstrap's minimum.
const PACKAGES: &[&str] = &[
    "systemd",
    "systemd-sysv",
    "systemd-container",
    "dbus",
    "iproute2",
    "iputils-ping",
    "busybox-static",
    // Names of machines.
    "libnss-mymachines",
];

/// Name of the cached box of a release.
pub(super) fn folder(suite: &str) -> String {
    format!("box-{suite}-{RECIPE}")
}

/// The cached box, made if there is none: folders `root` and `tiny`.
pub(super) fn cached(suite: &str) -> Result<PathBuf> {
    let cache = debian::cache()?;
    let path = cache.join(folder(suite));
    // One maker at a time; the others find it made.
    let lock = File::create(cache.join(format!("box-{suite}.lock")))?;
    lock.lock()?;
    if path.exists() {
        return Ok(path);
    }
    let draft = cache.join(format!("box-{suite}.draft"));
    if draft.exists() {
        fs::remove_dir_all(&draft)?;
    }
    fs::create_dir(&draft)?;
    eprintln!("making the systemd host in a box ({suite}), once; this takes a minute or two");
    make_root(&draft.join("root"), suite)?;
    make_tiny(&draft.join("tiny"), &draft.join("root/bin/busybox"))?;
    fs::rename(&draft, &path)?;
    Ok(path)
}

fn make_root(root: &Path, suite: &str) -> Result<()> {
    let log = root.with_extension("log");
    let words = File::create(&log)?;
    let mut child = Command::new("debootstrap")
        .arg("--variant=minbase")
        .arg(format!("--include={}", PACKAGES.join(",")))
        .arg(suite)
        .arg(root)
        .args(mirror(suite)?)
        .stdin(Stdio::null())
        .stdout(words.try_clone()?)
        .stderr(words)
        .spawn()
        .context("cannot start debootstrap: `cargo xtask setup` installs it")?;
    let mut told = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        if told.elapsed() >= Duration::from_secs(5) {
            told = Instant::now();
            let text = fs::read_to_string(&log).unwrap_or_default();
            eprintln!("  debootstrap: {}", text.lines().last().unwrap_or_default());
        }
        thread::sleep(Duration::from_millis(100));
    };
    if !status.success() {
        let text = fs::read_to_string(&log)?;
        let tail: Vec<_> = text.lines().rev().take(5).collect();
        bail!(
            "debootstrap failed; the last of {} in reverse order:\n{}",
            log.display(),
            tail.join("\n")
        );
    }
    fs::remove_dir_all(root.join("var/cache/apt/archives"))?;
    fs::create_dir_all(root.join("tiny"))?;
    fs::create_dir_all(root.join("machines"))?;
    fs::write(root.join("usr/bin/netspawn-xdp"), "")?;
    Ok(())
}

/// A machine's root: busybox and nothing else.
fn make_tiny(tiny: &Path, busybox: &Path) -> Result<()> {
    for folder in [
        "bin", "etc", "usr/lib", "proc", "sys", "dev", "run", "tmp", "var", "root", "mnt",
    ] {
        fs::create_dir_all(tiny.join(folder))?;
    }
    fs::copy(busybox, tiny.join("bin/busybox"))?;
    for applet in ["sh", "ip", "ping", "httpd", "cat", "ls", "sleep", "wget"] {
        symlink("busybox", tiny.join("bin").join(applet))?;
    }
    for file in ["etc/os-release", "usr/lib/os-release"] {
        fs::write(tiny.join(file), "ID=tiny\n")?;
    }
    Ok(())
}

/// The release of this machine, whose programs a box of it can run.
pub(super) fn codename() -> Result<String> {
    let text = fs::read_to_string("/etc/os-release").context("this machine has no os-release")?;
    text.lines()
        .find_map(|line| line.strip_prefix("VERSION_CODENAME="))
        .map(|name| name.trim_matches('"').to_owned())
        .context("/etc/os-release names no VERSION_CODENAME: the box needs a Debian release")
}

/// The mirror that apt uses for that suite, else for this machine's own; debootstrap's own
/// choice without one.
fn mirror(suite: &str) -> Result<Option<String>> {
    let output = Command::new("apt-get")
        .args([
            "indextargets",
            "--format",
            "$(REPO_URI) $(CODENAME) $(COMPONENT)",
        ])
        .arg("Created-By: Packages")
        .output()
        .context("cannot start apt-get")?;
    let lines = String::from_utf8_lossy(&output.stdout);
    let of = |suite: &str| {
        lines.lines().find_map(|line| {
            line.strip_suffix(&format!(" {suite} main"))
                .map(str::to_owned)
        })
    };
    Ok(of(suite).or(of(&codename()?)))
}
