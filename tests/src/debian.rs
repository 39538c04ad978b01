//! Packages of Debian's archive, unpacked beside the machine's own.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, bail, ensure};

/// Where what is fetched or made once is kept.
pub fn cache() -> Result<PathBuf> {
    let caches = match env::var_os("XDG_CACHE_HOME").filter(|path| !path.is_empty()) {
        Some(path) => PathBuf::from(path),
        None => {
            PathBuf::from(env::var_os("HOME").context("neither HOME nor XDG_CACHE_HOME is set")?)
                .join(".cache")
        }
    };
    let cache = caches.join("netspawn-xdp");
    fs::create_dir_all(&cache).with_context(|| format!("cannot make {}", cache.display()))?;
    Ok(cache)
}

/// An apt with one suite of Debian as its only source, so that the machine's own is not
/// changed. What it has fetched goes with the value.
pub struct Apt {
    root: PathBuf,
}

impl Apt {
    /// Reads the lists of a suite; `None` where the mirror does not serve it.
    pub fn of_suite(suite: &str) -> Result<Option<Self>> {
        // Below the temporary folder: apt fetches as a user that cannot enter root's home.
        let root = env::temp_dir().join(format!("netspawn-debian-{}", std::process::id()));
        let apt = Apt { root };
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
        let mirror = mirror()?;
        fs::write(
            apt.root.join("sources.list"),
            format!("deb {signed_by}{mirror} {suite} main\n"),
        )?;
        let updated = run(apt.command("apt-get").args(["--quiet", "update"]));
        Ok(updated.is_ok().then_some(apt))
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
        command.args(["-o", "Acquire::Languages=none"]);
        command
    }

    /// The packages whose names begin so.
    pub fn names(&self, prefix: &str) -> Result<Vec<String>> {
        let text = run(self.command("apt-cache").args(["pkgnames", prefix]))?;
        Ok(text.lines().map(str::to_owned).collect())
    }

    /// The packages that one depends on.
    pub fn depends(&self, package: &str) -> Result<Vec<String>> {
        let text = run(self.command("apt-cache").args(["depends", package]))?;
        Ok(text
            .lines()
            .filter_map(|line| line.trim().strip_prefix("Depends: "))
            .map(str::to_owned)
            .collect())
    }

    /// Fetches packages and unpacks them; the folder lives as long as this value.
    pub fn unpack(&self, packages: &[String]) -> Result<PathBuf> {
        let archives = self.root.join("archives");
        run(self
            .command("apt-get")
            .current_dir(&archives)
            // This folder belongs to whoever runs us, not to apt's own user.
            .args(["-o", "APT::Sandbox::User=root"])
            .args(["--quiet", "download"])
            .args(packages))?;
        let unpacked = self.root.join("unpacked");
        for entry in fs::read_dir(&archives)? {
            let path = entry?.path();
            if path.extension().is_some_and(|extension| extension == "deb") {
                run(Command::new("dpkg").arg("-x").arg(path).arg(&unpacked))?;
            }
        }
        Ok(unpacked)
    }
}

impl Drop for Apt {
    fn drop(&mut self) {
        // Left-overs in the temporary folder harm nobody.
        let _ = fs::remove_dir_all(&self.root);
    }
}

/// Debian's archive as this machine's own apt sources name it.
pub fn mirror() -> Result<String> {
    let listed = run(Command::new("apt-get").args([
        "indextargets",
        "--format",
        "$(ORIGIN) $(LABEL) $(SITE)",
        "Created-By: Packages",
    ]))?;
    listed
        .lines()
        .find_map(|line| line.strip_prefix("Debian Debian "))
        .map(str::to_owned)
        .context("apt knows no Debian archive: run `apt-get update`, then this again")
}

/// Runs a command to its end and returns what it printed.
fn run(command: &mut Command) -> Result<String> {
    let output = command
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot start {}", command.get_program().display()))?;
    ensure!(
        output.status.success(),
        "{} ended with {}\n{}",
        command.get_program().display(),
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    match String::from_utf8(output.stdout) {
        Ok(text) => Ok(text),
        Err(_) => bail!("{} printed no text", command.get_program().display()),
    }
}

/// What a compressed file holds; a file of another kind as it is.
pub fn decompressed(path: &Path) -> Result<Vec<u8>> {
    let program = match path.extension().and_then(|extension| extension.to_str()) {
        Some("xz") => "xz",
        Some("zst") => "zstd",
        _ => return Ok(fs::read(path)?),
    };
    let output = Command::new(program).arg("-dc").arg(path).output()?;
    ensure!(
        output.status.success(),
        "{program} cannot read {}",
        path.display()
    );
    Ok(output.stdout)
}
