//! Guests with kernels of Debian's archive: for what this machine's own kernel has not,
//! and for how other versions behave.
//!
//! ```no_run
//! use std::time::Duration;
//! use netspawn_tests::{Guest, Kernel};
//!
//! # fn main() -> anyhow::Result<()> {
//! let kernel = Kernel::series("6.1")?; // fetched once, then cached
//! let report = Guest::new(&kernel)
//!     .modules(&["veth", "bonding"])?
//!     .programs(&["ip", "ping"])?
//!     .run("ip link add bond0 type bond; ip link show", Duration::from_secs(60))?;
//! assert_eq!(report.status, 0, "{}", report.console);
//! # Ok(())
//! # }
//! ```
//!
//! A guest runs a shell script from an initial file system made for it, under qemu's
//! software emulation (which needs nothing of the machine), without any network but what
//! the script makes, and powers off: 5 s and up.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use cpio::newc::{Builder, ModeFileType, trailer};

use crate::{
    debian::{Apt, cache, decompressed},
    lab::binary,
    ns::Ns,
    workdir::Workdir,
};

/// Likeliest first. Names of roles, since code names age.
const SUITES: &[&str] = &[
    "oldstable",
    "stable",
    "oldstable-backports",
    "stable-backports",
    "testing",
    "unstable",
];
/// Parts of the modules that tests may need.
const PARTS: &[&str] = &[
    "net",
    "drivers/net",
    "drivers/virtio",
    "lib",
    "crypto",
    "arch",
];
/// What init says before and after the script.
const BEGIN: &str = "GUEST BEGIN";
const STATUS: &str = "GUEST STATUS ";

/// A kernel with its modules.
pub struct Kernel {
    folder: PathBuf,
    release: String,
}

impl Kernel {
    /// The newest kernel for cloud machines of a series (`6.1`) that the archive serves,
    /// fetched once.
    pub fn series(series: &str) -> Result<Self> {
        let cache = cache()?;
        let folder = cache.join(format!("kernel-{series}"));
        // Several tests may want it at once.
        let lock = File::create(cache.join("kernel.lock"))?;
        lock.lock()?;
        if !folder.exists() {
            eprintln!("fetching a kernel {series}, once");
            let draft = cache.join("kernel.draft");
            if draft.exists() {
                fs::remove_dir_all(&draft)?;
            }
            fetch(series, &draft)?;
            fs::rename(&draft, &folder)?;
        }
        let release = fs::read_to_string(folder.join("release"))?;
        Ok(Kernel { folder, release })
    }

    /// The greatest series that the archive serves a kernel for cloud machines of.
    pub fn newest_series() -> Result<String> {
        const BEGIN: &str = "linux-image-";
        let mut newest: Option<Vec<u64>> = None;
        for suite in SUITES {
            let Some(apt) = Apt::of_suite(suite)? else {
                continue;
            };
            for name in apt.names(BEGIN)? {
                let version = &name[BEGIN.len()..];
                let series = numbers(version).get(..2).map(<[u64]>::to_vec);
                if name.ends_with("-cloud-amd64")
                    && version.starts_with(|first: char| first.is_ascii_digit())
                    && series > newest
                {
                    newest = series;
                }
            }
        }
        match newest.as_deref() {
            Some([major, minor]) => Ok(format!("{major}.{minor}")),
            _ => bail!("Debian's suites {} have no kernel", SUITES.join(", ")),
        }
    }

    /// As `uname -r` has it.
    pub fn release(&self) -> &str {
        &self.release
    }

    /// These modules after those they need, each with its content; without those that
    /// are part of the kernel.
    fn modules(&self, names: &[&str]) -> Result<Vec<(String, Vec<u8>)>> {
        let mut files = BTreeMap::new();
        for entry in fs::read_dir(self.folder.join("modules"))? {
            let path = entry?.path();
            files.insert(module_name(&path)?, path);
        }
        let list = self.folder.join("modules.builtin");
        let builtin: Option<Vec<String>> = match list.exists() {
            false => None,
            true => Some(
                fs::read_to_string(list)?
                    .lines()
                    .map(|line| module_name(Path::new(line)))
                    .collect::<Result<_>>()?,
            ),
        };
        let mut ordered = Vec::new();
        for name in names {
            self.add_module(name, &files, builtin.as_deref(), &mut ordered)?;
        }
        Ok(ordered)
    }

    fn add_module(
        &self,
        name: &str,
        files: &BTreeMap<String, PathBuf>,
        builtin: Option<&[String]>,
        ordered: &mut Vec<(String, Vec<u8>)>,
    ) -> Result<()> {
        let name = name.replace('-', "_");
        // Without a list, what is no file is taken as part of the kernel.
        let is_builtin = match builtin {
            Some(builtin) => builtin.contains(&name),
            None => !files.contains_key(&name),
        };
        if ordered.iter().any(|(known, _)| *known == name) || is_builtin {
            return Ok(());
        }
        let path = files
            .get(&name)
            .with_context(|| format!("kernel {} has no module {name}", self.release))?;
        let content = decompressed(path)?;
        for needed in needs(&content) {
            self.add_module(&needed, files, builtin, ordered)?;
        }
        ordered.push((name, content));
        Ok(())
    }
}

/// `virtio_net` of `kernel/drivers/net/virtio-net.ko.xz`.
fn module_name(path: &Path) -> Result<String> {
    let file = path
        .file_name()
        .and_then(|name| name.to_str())
        .with_context(|| format!("no module's path: {}", path.display()))?;
    let name = file.split(".ko").next().unwrap_or(file);
    Ok(name.replace('-', "_"))
}

/// The modules that one needs, as its own text section `.modinfo` names them.
fn needs(module: &[u8]) -> Vec<String> {
    const KEY: &[u8] = b"\0depends=";
    let Some(start) = module.windows(KEY.len()).position(|window| window == KEY) else {
        return Vec::new();
    };
    let rest = &module[start + KEY.len()..];
    let end = rest
        .iter()
        .position(|byte| *byte == 0)
        .unwrap_or(rest.len());
    String::from_utf8_lossy(&rest[..end])
        .split(',')
        .filter(|name| !name.is_empty())
        .map(str::to_owned)
        .collect()
}

fn fetch(series: &str, folder: &Path) -> Result<()> {
    for suite in SUITES {
        let Some(apt) = Apt::of_suite(suite)? else {
            continue;
        };
        let begin = format!("linux-image-{series}");
        let newest = apt
            .names(&begin)?
            .into_iter()
            .filter(|name| {
                name.ends_with("-cloud-amd64") && name[begin.len()..].starts_with(['.', '-', '+'])
            })
            .max_by_key(|name| numbers(name));
        let Some(image) = newest else {
            continue;
        };
        // Newer packages are split.
        let mut packages: Vec<String> = apt
            .depends(&image)?
            .into_iter()
            .filter(|name| name.starts_with("linux-binary-") || name.starts_with("linux-modules-"))
            .collect();
        packages.push(image);
        eprintln!("{} of Debian {suite}", packages.join(", "));
        return keep(&apt.unpack(&packages)?, folder);
    }
    bail!(
        "no kernel {series} for cloud machines in Debian's suites {}; see \
         `apt-cache search linux-image` for the series there are",
        SUITES.join(", ")
    )
}

/// The numbers in a text, to compare versions by.
fn numbers(text: &str) -> Vec<u64> {
    text.split(|c: char| !c.is_ascii_digit())
        .filter_map(|word| word.parse().ok())
        .collect()
}

/// Takes what is needed out of unpacked packages.
fn keep(unpacked: &Path, folder: &Path) -> Result<()> {
    fs::create_dir_all(folder.join("modules"))?;
    let tree = ["lib/modules", "usr/lib/modules"]
        .iter()
        .find_map(|path| fs::read_dir(unpacked.join(path)).ok()?.next()?.ok())
        .context("the packages hold no modules")?
        .path();
    let release = tree
        .file_name()
        .and_then(|name| name.to_str())
        .context("the folder of modules has no name")?;
    fs::write(folder.join("release"), release)?;
    let image = [
        "boot",
        "usr/lib/linux",
        &format!("usr/lib/modules/{release}"),
    ]
    .iter()
    .flat_map(|path| {
        let path = unpacked.join(path);
        [
            path.join(format!("vmlinuz-{release}")),
            path.join("vmlinuz"),
        ]
    })
    .find(|path| path.exists())
    .context("the packages hold no vmlinuz")?;
    fs::copy(image, folder.join("vmlinuz"))?;
    // Newest packages leave making the list to whoever installs them.
    let builtin = tree.join("modules.builtin");
    if builtin.exists() {
        fs::copy(builtin, folder.join("modules.builtin"))?;
    }
    for part in PARTS {
        let part = tree.join("kernel").join(part);
        if part.exists() {
            copy_modules(&part, &folder.join("modules"))?;
        }
    }
    Ok(())
}

fn copy_modules(from: &Path, to: &Path) -> Result<()> {
    for entry in fs::read_dir(from)? {
        let path = entry?.path();
        if path.is_dir() {
            copy_modules(&path, to)?;
        } else if let Some(name) = path.file_name() {
            fs::copy(&path, to.join(name))?;
        }
    }
    Ok(())
}

/// What a guest's script left.
#[derive(Debug)]
pub struct Report {
    /// Its exit code.
    pub status: i32,
    /// Everything it printed, and what the kernel complained of meanwhile.
    pub console: String,
}

impl Report {
    /// What follows `KEY=` on a line of the console.
    pub fn value(&self, key: &str) -> Result<&str> {
        self.console
            .lines()
            .find_map(|line| line.trim().strip_prefix(key)?.strip_prefix('='))
            .with_context(|| format!("the guest said no {key}\n{}", self.console))
    }
}

/// A guest to be booted.
pub struct Guest<'a> {
    kernel: &'a Kernel,
    /// By path without the leading slash.
    files: BTreeMap<String, (u32, Vec<u8>)>,
    modules: Vec<String>,
    link: Option<Link<'a>>,
    counting: bool,
}

/// A guest's card: the namespace that it is in, its tap there, its address.
struct Link<'a> {
    ns: &'a Ns,
    tap: String,
    mac: [u8; 6],
}

impl<'a> Guest<'a> {
    /// A guest with a shell and the commands of busybox.
    pub fn new(kernel: &'a Kernel) -> Self {
        Guest {
            kernel,
            files: BTreeMap::new(),
            modules: Vec::new(),
            link: None,
            counting: false,
        }
    }

    /// Its clock counts the instructions that it executes, one a nanosecond, and no time
    /// passes while it waits: what is measured by it depends on nothing else that the
    /// machine does. It has one CPU then.
    pub fn counting(mut self) -> Self {
        self.counting = true;
        self
    }

    /// Gives it a virtio card on a tap device of a namespace, which is there, with virtio
    /// headers. The module `virtio_net` drives it.
    pub fn link(mut self, ns: &'a Ns, tap: &str, mac: [u8; 6]) -> Self {
        self.link = Some(Link {
            ns,
            tap: tap.to_owned(),
            mac,
        });
        self
    }

    /// Loads modules at boot, in this order, after those they need.
    pub fn modules(mut self, names: &[&str]) -> Result<Self> {
        for (name, content) in self.kernel.modules(names)? {
            self = self.file(&format!("/modules/{name}.ko"), 0o644, content);
            if !self.modules.contains(&name) {
                self.modules.push(name);
            }
        }
        Ok(self)
    }

    /// Programs of this machine, with the libraries they are linked with.
    pub fn programs(mut self, names: &[&str]) -> Result<Self> {
        for name in names {
            let path = find_program(name)?;
            self = self.program(name, &path)?;
        }
        Ok(self)
    }

    /// The `netspawn-xdp` under test.
    pub fn netspawn_xdp(self) -> Result<Self> {
        let path = binary()?;
        self.executable("netspawn-xdp", &path)
    }

    /// A program that cargo has made, under that name.
    pub fn executable(self, name: &str, original: &Path) -> Result<Self> {
        let stripped = Workdir::new()?;
        let path = stripped.path().join(name);
        // What is only of use to a debugger takes seconds to load.
        let status = Command::new("strip")
            .arg("-o")
            .arg(&path)
            .arg(original)
            .status()
            .context("cannot start strip, of the package binutils")?;
        ensure!(status.success(), "strip cannot read {}", original.display());
        self.program(name, &path)
    }

    fn program(mut self, name: &str, path: &Path) -> Result<Self> {
        let linked = Command::new("ldd").arg(path).output()?;
        // A static program is none to ldd.
        for library in String::from_utf8_lossy(&linked.stdout)
            .split_whitespace()
            .filter(|word| word.starts_with('/'))
        {
            self = self.file(library, 0o755, fs::read(library)?);
        }
        Ok(self.file(&format!("/bin/{name}"), 0o755, fs::read(path)?))
    }

    /// A file, by its absolute path, with its permissions.
    pub fn file(mut self, path: &str, mode: u32, content: impl Into<Vec<u8>>) -> Self {
        let path = path.trim_start_matches('/').to_owned();
        self.files.insert(path, (mode, content.into()));
        self
    }

    /// Boots, runs the script with the shell, and powers off. `/proc`, `/sys`, `/run`, a
    /// bpf file system and `lo` are there.
    ///
    /// Fails if the guest does not come to the script's end within `limit`.
    pub fn run(self, script: &str, limit: Duration) -> Result<Report> {
        let guest = self.ready(script)?;
        let dir = Workdir::new()?;
        let initrd = dir.path().join("initrd");
        fs::write(&initrd, guest.archive()?)?;
        // Emulation fails at random before a script begins, with kernels that patch their
        // own code while they boot.
        let mut tries = 1..=3;
        let console = loop {
            match guest.boot(&initrd, limit) {
                Ok(console) => break console,
                Err(error) if tries.next() < Some(3) => {
                    eprintln!("{error:#}\nbooting it again");
                }
                Err(error) => return Err(error),
            }
        };
        let (console, status) = console
            .split_once(STATUS)
            .with_context(|| format!("the guest's script has no end\n{console}"))?;
        let status = status.lines().next().unwrap_or_default().trim();
        Ok(Report {
            status: status
                .parse()
                .with_context(|| format!("status `{status}`"))?,
            console: console.trim().to_owned(),
        })
    }

    /// The kernel, and an initial file system in which that script is run, for another
    /// to boot.
    pub fn image(self, script: &str) -> Result<(PathBuf, Vec<u8>)> {
        let guest = self.ready(script)?;
        Ok((guest.kernel.folder.join("vmlinuz"), guest.archive()?))
    }

    /// With all that a boot needs.
    fn ready(mut self, script: &str) -> Result<Self> {
        let busybox = find_program("busybox")?;
        self = self.program("busybox", &busybox)?;
        // In busybox's own shell its commands go before programs of the same name.
        self = self.programs(&["sh"])?;
        let init = format!(
            "#!/bin/busybox sh
             /bin/busybox --install -s /busybox
             export PATH=/bin:/busybox
             mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t devtmpfs dev /dev
             mount -t tmpfs run /run; mount -t tmpfs tmp /tmp; mount -t bpf -o mode=0700 bpf /sys/fs/bpf

             for module in {}; do insmod /modules/$module.ko; done
             ip link set lo up
             echo '{BEGIN}'
             /bin/sh /script 2>&1
             status=$?
             echo; echo \"{STATUS}$status\"
             poweroff -f\n",
            self.modules.join(" ")
        );
        Ok(self
            .file("/init", 0o755, init.replace("\n             ", "\n"))
            // Programs ask for the name of who runs them.
            .file("/etc/passwd", 0o644, "root:x:0:0:root:/root:/bin/sh\n")
            .file("/script", 0o644, script))
    }

    /// Boots once; what it printed from the script's beginning on.
    fn boot(&self, initrd: &Path, limit: Duration) -> Result<String> {
        // In a namespace of its own there is nothing that it could reach.
        let nowhere;
        let (ns, card) = match &self.link {
            Some(link) => (link.ns, link.card()),
            None => {
                nowhere = Ns::new("qemu")?;
                (&nowhere, Vec::new())
            }
        };
        const APPEND: &str = "console=ttyS0 panic=-1 oops=panic quiet mitigations=off";
        let append = if self.counting {
            format!("{APPEND} tsc=reliable nokaslr norandmaps")
        } else {
            APPEND.to_owned()
        };
        let accel: &[&str] = if self.counting {
            &[
                "-accel",
                "tcg,thread=single",
                "-icount",
                "shift=0,sleep=off",
                // Without them a copy of any length would be one instruction.
                "-cpu",
                "max,-cx16,-erms,-fsrm",
                "-smp",
                "1",
            ]
        } else {
            &[
                "-accel",
                "tcg,thread=multi",
                "-cpu",
                "max,-cx16",
                // With two, kernels that patch their code at run time (static keys) fault
                // in qemu 7.2's emulation of `iretq`.
                "-smp",
                "2",
            ]
        };
        let output = ns
            .cmd("qemu-system-x86_64")
            .args(["-nodefaults", "-no-user-config", "-machine", "q35"])
            .args(accel)
            .args(["-m", "1024"])
            .args(["-nographic", "-monitor", "none", "-serial", "stdio"])
            .args(card)
            .args(["-no-reboot", "-kernel"])
            .arg(self.kernel.folder.join("vmlinuz"))
            .arg("-initrd")
            .arg(initrd)
            .args(["-append", &append])
            .limit(limit)
            .output()
            .with_context(|| format!("a guest with kernel {}", self.kernel.release))?;
        let console = output.stdout.replace('\r', "");
        let (_, console) = console.split_once(BEGIN).with_context(|| {
            format!(
                "kernel {} did not come to the script\n{console}{}",
                self.kernel.release, output.stderr
            )
        })?;
        Ok(console.to_owned())
    }

    /// All files as the kernel wants them (Documentation/driver-api/early-userspace).
    fn archive(&self) -> Result<Vec<u8>> {
        let mut folders: Vec<String> =
            ["proc", "sys", "dev", "run", "tmp", "var", "root", "busybox"]
                .map(str::to_owned)
                .into();
        for path in self.files.keys() {
            let above = Path::new(path).ancestors().skip(1);
            folders.extend(above.filter_map(|folder| Some(folder.to_str()?.to_owned())));
        }
        folders.retain(|folder| !folder.is_empty());
        folders.sort();
        folders.dedup();
        let mut archive = Vec::new();
        for (inode, folder) in (1..).zip(folders) {
            let entry = Builder::new(&folder)
                .ino(inode)
                .mode(0o755)
                .set_mode_file_type(ModeFileType::Directory);
            entry.write(&mut archive, 0).finish()?;
        }
        for (inode, (path, (mode, content))) in (1_000..).zip(&self.files) {
            let entry = Builder::new(path)
                .ino(inode)
                .mode(*mode)
                .set_mode_file_type(ModeFileType::Regular);
            let mut writer = entry.write(&mut archive, content.len().try_into()?);
            std::io::Write::write_all(&mut writer, content)?;
            writer.finish()?;
        }
        trailer(&mut archive)?;
        Ok(archive)
    }
}

impl Link<'_> {
    /// Its words for qemu.
    fn card(&self) -> Vec<String> {
        let mac = self.mac.map(|byte| format!("{byte:02x}")).join(":");
        vec![
            "-netdev".to_owned(),
            format!(
                "tap,id=net0,ifname={},script=no,downscript=no,vnet_hdr=on",
                self.tap
            ),
            "-device".to_owned(),
            format!("virtio-net-pci,netdev=net0,mac={mac},romfile="),
        ]
    }
}

fn find_program(name: &str) -> Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/sbin", "/usr/sbin"].map(PathBuf::from))
        .map(|folder| folder.join(name))
        .find(|path| path.is_file())
        .with_context(|| format!("{name} is not installed: run `cargo xtask setup`"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modules_needed_are_read_from_the_module() {
        let module = b"\x7fELF\0license=GPL\0depends=stp,llc\0retpoline=Y\0";
        assert_eq!(needs(module), ["stp", "llc"]);
        assert_eq!(needs(b"\0depends=\0"), [""; 0]);
        assert_eq!(needs(b"none"), [""; 0]);
    }

    #[test]
    fn newer_kernels_are_greater() {
        let newer = "linux-image-6.1.0-56-cloud-amd64";
        let older = "linux-image-6.1.0-9-cloud-amd64";
        assert!(numbers(newer) > numbers(older));
    }
}
