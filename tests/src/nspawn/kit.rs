//! Boxes that have more than systemd: engines, from the archive.

use std::{
    env,
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, ensure};

use super::root;
use crate::debian;

/// What a box has besides systemd. It is made once from the plain box and kept.
#[derive(Clone, Copy, Debug)]
pub struct Kit {
    /// Its name, in the cache.
    pub name: &'static str,
    /// Goes up when the kit changes, so that a cached box is made anew.
    pub recipe: u32,
    /// The release it is of. Without one it is that of `NETSPAWN_ENGINES_RELEASE`, else this
    /// machine's, as what is built here runs on that and on later ones.
    pub release: Option<&'static str>,
    /// Packages of its release.
    pub packages: &'static [&'static str],
    /// Packages, as apt's patterns, that are taken from the release's backports with
    /// all that is named here.
    pub backports: &'static [&'static str],
    /// The same from what is to be the next release.
    pub testing: &'static [&'static str],
    /// A shell script that runs in the box's root, with the network, after that.
    pub script: &'static str,
}

impl Kit {
    /// The folder with the box's `root` and `tiny`, made if there is none.
    pub(super) fn cached(&self) -> Result<PathBuf> {
        let suite = match self.release.map(str::to_owned).or_else(release_named) {
            Some(suite) => suite,
            None => root::codename()?,
        };
        let suite = suite.as_str();
        let plain = root::cached(suite)?;
        let cache = debian::cache()?;
        let name = format!("{}-{}-{}", root::folder(suite), self.name, self.recipe);
        let path = cache.join(&name);
        // One maker at a time; the others find it made.
        let lock = File::create(cache.join(format!("box-{}.lock", self.name)))?;
        lock.lock()?;
        if path.exists() {
            return Ok(path);
        }
        let draft = cache.join(format!("box-{}.draft", self.name));
        if draft.exists() {
            fs::remove_dir_all(&draft)?;
        }
        eprintln!(
            "making the box with {}, once; this takes a minute or two",
            self.name
        );
        let log = cache.join(format!("box-{}.log", self.name));
        run(
            Command::new("cp")
                .args(["-a", "--reflink=auto"])
                .args([&plain, &draft]),
            &log,
        )?;
        self.install(&draft.join("root"), suite, &log)?;
        fs::rename(&draft, &path)?;
        Ok(path)
    }

    fn install(&self, root: &Path, suite: &str, log: &Path) -> Result<()> {
        let mirror = debian::mirror()?;
        let mut sources = format!("deb {mirror} {suite} main\n");
        let backports = format!("{suite}-backports");
        let others = [
            (backports.as_str(), 'n', "", self.backports),
            // Its lists are good for a week, and a mirror's may be older; signed they are.
            ("testing", 'a', "[check-valid-until=no] ", self.testing),
        ];
        let others = others.iter().filter(|other| !other.3.is_empty());
        for (other, named_by, options, packages) in others.clone() {
            sources += &format!("deb {options}{mirror} {other} main\n");
            // Of another suite nothing but what is named.
            let release = format!("Pin: release {named_by}={other}\nPin-Priority:");
            fs::write(
                root.join("etc/apt/preferences.d").join(other),
                format!(
                    "Package: {}\n{release} 600\n\nPackage: *\n{release} 100\n",
                    packages.join(" ")
                ),
            )?;
        }
        fs::write(root.join("etc/apt/sources.list"), sources)?;
        // What packages enable would start before the test has prepared it.
        fs::create_dir_all(root.join("etc/systemd/system-preset"))?;
        let policy = root.join("usr/sbin/policy-rc.d");
        fs::write(&policy, "#!/bin/sh\nexit 101\n")?;
        run(Command::new("chmod").arg("755").arg(&policy), log)?;
        let packages: Vec<&str> = self
            .packages
            .iter()
            .copied()
            .chain(
                others
                    .flat_map(|other| other.3.iter().copied())
                    .filter(|name| !name.contains('*')),
            )
            .collect();
        let script = format!(
            "set -e
            export DEBIAN_FRONTEND=noninteractive
            ls /etc/systemd/system/*.wants/ 2>/dev/null | sort > /before
            apt-get -q update
            apt-get -q install -y --no-install-recommends {}
            for want in /etc/systemd/system/*.wants/*; do
                unit=${{want##*/}}
                grep -qx \"$unit\" /before || rm -f \"$want\"
            done
            rm /before /usr/sbin/policy-rc.d
            {}
            rm -rf /var/cache/apt/archives /var/lib/apt/lists",
            packages.join(" "),
            self.script
        );
        run(
            Command::new("systemd-nspawn")
                .args([
                    "--quiet",
                    "--register=no",
                    "--keep-unit",
                    "--as-pid2",
                    "--pipe",
                ])
                .arg(format!("--machine=netspawn-kit-{}", std::process::id()))
                .arg(format!("--directory={}", root.display()))
                .args(["--", "sh", "-c", &script]),
            log,
        )
    }
}

/// The release whose engines are asked for in place of this machine's.
pub fn release_named() -> Option<String> {
    env::var("NETSPAWN_ENGINES_RELEASE").ok()
}

/// Runs a command whose words go to a file, of which the end is told if it fails.
fn run(command: &mut Command, log: &Path) -> Result<()> {
    let words = File::options().create(true).append(true).open(log)?;
    let status = command
        .stdin(Stdio::null())
        .stdout(words.try_clone()?)
        .stderr(words)
        .status()
        .with_context(|| format!("cannot start {command:?}"))?;
    let text = || {
        let text = fs::read_to_string(log).unwrap_or_default();
        let tail: Vec<&str> = text.lines().rev().take(15).collect();
        tail.into_iter().rev().collect::<Vec<_>>().join("\n")
    };
    ensure!(
        status.success(),
        "{command:?}: {status}; the last of its words:\n{}",
        text()
    );
    Ok(())
}
