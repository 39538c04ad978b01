//! The source of the standard library, of exactly the installed rustc's
//! version: `core` for the bpf target is compiled from it.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, anyhow, bail};

use crate::{
    ebpf::{RUST_SRC_STAMP, Toolchain},
    run::{exists, read, show, show_within, step},
};

/// A server out of reach must not hold up a machine that has another way.
const RUSTUP_LIMIT: Duration = Duration::from_secs(20);

/// Likeliest first. Names of roles, since code names age.
const SUITES: &[&str] = &[
    "stable-backports",
    "testing",
    "unstable",
    "stable",
    "oldstable-backports",
    "oldstable",
    "experimental",
];

/// Puts the source into the sysroot unless it is there.
pub fn install(toolchain: &Toolchain) -> Result<()> {
    if toolchain.has_rust_src() {
        step("rust-src: ok");
        return Ok(());
    }
    let version = &toolchain.release;
    if exists("rustup") {
        step(format_args!("rust-src {version}: asking rustup"));
        let rustup = show_within(
            RUSTUP_LIMIT,
            Command::new("rustup")
                .args(["component", "add", "rust-src"])
                .env_remove("RUST_BACKTRACE")
                .stdin(Stdio::null()),
        );
        match rustup {
            Ok(()) if toolchain.has_rust_src() => return Ok(()),
            Ok(()) => step("rustup did not put rust-src into the toolchain in use"),
            Err(error) => step(format_args!("rustup cannot get it: {error:#}")),
        }
    }
    from_debian(toolchain).with_context(|| {
        format!(
            "no way led to the source of rustc {version}'s standard library: run `rustup component \
             add rust-src` where rustup's server is in reach, or install a Rust version whose \
             source Debian carries; until then builds can use the prebuilt eBPF object while it fits the sources"
        )
    })
}

fn from_debian(toolchain: &Toolchain) -> Result<()> {
    let version = &toolchain.release;
    for program in ["apt-get", "apt-cache", "dpkg"] {
        if !exists(program) {
            bail!("{program} is not installed");
        }
    }
    let mirrors = mirrors()?;
    for mirror in &mirrors {
        for suite in SUITES {
            step(format_args!(
                "rust-src {version}: looking in Debian {suite}"
            ));
            let apt = PrivateApt::new(mirror, suite)?;
            let Some(found) = apt.find(version)? else {
                continue;
            };
            step(format_args!("rust-src {version}: {found} is in {suite}"));
            return place(toolchain, &apt.unpack(&found)?);
        }
    }
    Err(anyhow!(
        "rust-src {version} is in none of the Debian suites {} on {} mirror(s)",
        SUITES.join(", "),
        mirrors.len()
    ))
}

/// Debian's archive as this machine's own apt sources name it.
fn mirrors() -> Result<Vec<String>> {
    let listed = read(Command::new("apt-get").args([
        "indextargets",
        "--format",
        "$(ORIGIN) $(LABEL) $(SITE)",
        "Created-By: Packages",
    ]))?;
    let mut mirrors = Vec::new();
    for line in listed.lines() {
        let site = line.strip_prefix("Debian Debian ");
        if let Some(site) = site
            && !mirrors.iter().any(|known| known == site)
        {
            mirrors.push(site.to_owned());
        }
    }
    if mirrors.is_empty() {
        bail!("apt knows no Debian archive: run `apt-get update`, then this again");
    }
    Ok(mirrors)
}

/// An apt of its own with one source, so that the machine's is not changed.
struct PrivateApt {
    root: PathBuf,
}

impl PrivateApt {
    fn new(mirror: &str, suite: &str) -> Result<Self> {
        // Below the temporary folder: apt fetches as a user that cannot enter root's home.
        let root = env::temp_dir().join(format!("netspawn-apt-{}", std::process::id()));
        let apt = PrivateApt { root };
        for folder in ["lists/partial", "archives/partial", "unpacked"] {
            fs::create_dir_all(apt.root.join(folder))?;
        }
        fs::write(apt.root.join("status"), "")?;
        let keyring = "/usr/share/keyrings/debian-archive-keyring.gpg";
        let signed_by = if Path::new(keyring).exists() {
            format!("[signed-by={keyring}] ")
        } else {
            String::new()
        };
        fs::write(
            apt.root.join("sources.list"),
            format!("deb {signed_by}{mirror} {suite} main\n"),
        )?;
        Ok(apt)
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        let mut option = |name: &str, path: PathBuf| {
            command.arg("-o").arg(format!("{name}={}", path.display()));
        };
        option("Dir::Etc::sourcelist", self.root.join("sources.list"));
        option("Dir::Etc::sourceparts", "/dev/null".into());
        option("Dir::Etc::preferences", "/dev/null".into());
        option("Dir::Etc::preferencesparts", "/dev/null".into());
        option("Dir::State", self.root.clone());
        option("Dir::State::lists", self.root.join("lists"));
        option("Dir::State::status", self.root.join("status"));
        option("Dir::Cache", self.root.clone());
        option("Dir::Cache::archives", self.root.join("archives"));
        command
            .args(["-o", "Acquire::Languages=none"])
            .env("LC_ALL", "C")
            .stdin(Stdio::null());
        command
    }

    /// The package version whose upstream part is `release`, if the suite has one.
    fn find(&self, release: &str) -> Result<Option<String>> {
        // A suite that the mirror does not serve is no error: the next one is asked.
        if show(self.command("apt-get").args(["--quiet", "update"])).is_err() {
            return Ok(None);
        }
        let listed = read(self.command("apt-cache").args(["madison", "rust-src"]))?;
        let version = listed
            .lines()
            .filter_map(|line| line.split('|').nth(1))
            .map(str::trim)
            .find(|version| upstream(version) == release);
        Ok(version.map(str::to_owned))
    }

    /// Fetches that version and returns the `library` folder in it.
    fn unpack(&self, version: &str) -> Result<PathBuf> {
        show(
            self.command("apt-get")
                .current_dir(self.root.join("archives"))
                // This folder belongs to whoever runs us, not to apt's own user.
                .args(["-o", "APT::Sandbox::User=root"])
                .args(["--quiet", "download", &format!("rust-src={version}")]),
        )?;
        let package = fs::read_dir(self.root.join("archives"))?
            .filter_map(|entry| Some(entry.ok()?.path()))
            .find(|path| path.extension().is_some_and(|extension| extension == "deb"))
            .context("apt-get download left no package")?;
        let unpacked = self.root.join("unpacked");
        show(Command::new("dpkg").arg("-x").arg(package).arg(&unpacked))?;
        let sources = unpacked.join("usr/src");
        fs::read_dir(&sources)?
            .filter_map(|entry| Some(entry.ok()?.path().join("library")))
            .find(|library| library.join("core/src/lib.rs").exists())
            .with_context(|| format!("rust-src {version} holds no library/core"))
    }
}

impl Drop for PrivateApt {
    fn drop(&mut self) {
        // Left-overs in the temporary folder harm nobody.
        let _ = fs::remove_dir_all(&self.root);
    }
}

/// `1.95.0` of `1.95.0+dfsg1-1~bpo13+1`.
fn upstream(version: &str) -> &str {
    let version = version.split_once(':').map_or(version, |(_, rest)| rest);
    version.split(['+', '-']).next().unwrap_or(version)
}

/// Copies `library` into the sysroot and renames it into place when complete,
/// so that an interrupted copy is never taken for the real thing.
fn place(toolchain: &Toolchain, library: &Path) -> Result<()> {
    let target = toolchain.rust_src();
    let parent = target.parent().context("library folder has no parent")?;
    let partial = parent.join("library.partial");
    let not_writable = || {
        format!(
            "cannot write {}: run `cargo xtask setup` as the user who owns the Rust toolchain",
            parent.display()
        )
    };
    fs::create_dir_all(parent).with_context(not_writable)?;
    for leftover in [&partial, &target] {
        if leftover.symlink_metadata().is_ok() {
            fs::remove_dir_all(leftover).with_context(not_writable)?;
        }
    }
    show(
        Command::new("cp")
            .args(["--recursive", "--dereference"])
            .arg(library)
            .arg(&partial),
    )
    .with_context(not_writable)?;
    fs::write(partial.join(RUST_SRC_STAMP), &toolchain.release).with_context(not_writable)?;
    fs::rename(&partial, &target).with_context(not_writable)
}

#[cfg(test)]
mod tests {
    use super::upstream;

    #[test]
    fn debian_version_gives_upstream_release() {
        assert_eq!(upstream("1.95.0+dfsg1-1~bpo13+1"), "1.95.0");
        assert_eq!(upstream("1.95.0-2"), "1.95.0");
        assert_eq!(upstream("1:1.95.0+dfsg1-1"), "1.95.0");
    }

    #[test]
    fn beta_is_not_the_release() {
        assert_ne!(upstream("1.95.0~beta.5+dfsg1-1~exp1"), "1.95.0");
    }
}
