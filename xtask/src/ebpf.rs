//! The eBPF toolchain and the object it makes.
//!
//! One module for `netspawn-user/build.rs` and for xtask, so that both find the
//! same linker, build with the same flags and compute the same digest.

use std::{
    collections::BTreeSet,
    env, fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, bail};
use sha2::{Digest as _, Sha256};
use toml::{Table, Value};

/// Version of bpf-linker that objects are linked with.
pub const LINKER_VERSION: &str = "0.13.0";

/// File in a `library` folder placed by `cargo xtask setup`, naming its Rust release:
/// an update of the toolchain leaves that folder as it was.
pub const RUST_SRC_STAMP: &str = ".netspawn-rust-release";

const TARGET: &str = "bpfel-unknown-none";

/// What decides the code of the object besides its sources.
///
/// - v3 (Linux 5.1) has 32-bit registers and comparisons; v4 needs Linux 6.6.
/// - Where the kernel has efficient unaligned access (x86-64, arm64) its verifier
///   lets packets and map values be read unaligned; without the feature LLVM makes
///   one load a byte of such a read. The stack it wants aligned all the same.
/// - The architecture only chooses register layouts of kprobes, which are not
///   used: a fixed one gives every host the same object.
const FLAGS: &[&str] = &[
    "--cfg=bpf_target_arch=\"x86_64\"",
    "-Ctarget-cpu=v3",
    "-Clink-arg=--btf",
    "-Clink-arg=--cpu-features=+allows-misaligned-mem-access",
];

/// Spelled out in full, so that neither the workspace nor a user's configuration matters.
const PROFILE: &[(&str, &str)] = &[
    ("OPT_LEVEL", "3"),
    ("DEBUG", "2"),
    ("DEBUG_ASSERTIONS", "false"),
    ("OVERFLOW_CHECKS", "false"),
    ("LTO", "false"),
    ("PANIC", "abort"),
    ("INCREMENTAL", "false"),
    ("CODEGEN_UNITS", "1"),
    ("STRIP", "none"),
];

/// The installed rustc and where its eBPF companions are, or would be.
pub struct Toolchain {
    /// Release, commit and date, as `rustc --version` prints them.
    pub version: String,
    /// `1.95.0`.
    pub release: String,
    /// Major version of the LLVM that rustc uses.
    pub llvm_major: u32,
    /// rustc's own folder.
    pub sysroot: PathBuf,
    /// Folder of bpf-linker for exactly this rustc.
    pub cache: PathBuf,
}

impl Toolchain {
    /// Asks the rustc in use. Fails if there is none or no place for a cache.
    pub fn find() -> Result<Self> {
        let rustc = env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
        let verbose = output(Command::new(&rustc).arg("-vV"))?;
        let field = |name: &str| {
            verbose
                .lines()
                .find_map(|line| line.strip_prefix(name))
                .with_context(|| format!("`rustc -vV` prints no `{name}` line"))
        };
        let version = verbose.lines().next().unwrap_or_default();
        let release = field("release: ")?.to_owned();
        let commit = field("commit-hash: ")?;
        let llvm = field("LLVM version: ")?;
        let cache = match env::var_os("XDG_CACHE_HOME").filter(|path| !path.is_empty()) {
            Some(path) => PathBuf::from(path),
            None => env::home_dir()
                .context("no home folder is known: set HOME or XDG_CACHE_HOME")?
                .join(".cache"),
        };
        Ok(Toolchain {
            version: version.trim_start_matches("rustc ").to_owned(),
            llvm_major: llvm
                .split('.')
                .next()
                .and_then(|major| major.parse().ok())
                .with_context(|| format!("`rustc -vV` names LLVM `{llvm}`, not a version"))?,
            sysroot: output(Command::new(&rustc).args(["--print", "sysroot"]))?
                .trim_end()
                .into(),
            // Two builds of one release (nightly, a distribution's) carry different LLVMs.
            cache: cache
                .join("netspawn-xdp")
                .join(format!("{release}-{}", commit.get(..9).unwrap_or(commit))),
            release,
        })
    }

    /// Where `cargo xtask setup` puts bpf-linker.
    pub fn linker(&self) -> PathBuf {
        self.cache.join("bin/bpf-linker")
    }

    /// True if that bpf-linker starts and is of the wanted version.
    pub fn linker_works(&self) -> bool {
        is_linker(&self.linker())
    }

    /// Where cargo looks for the standard library's source.
    pub fn rust_src(&self) -> PathBuf {
        self.sysroot.join("lib/rustlib/src/rust/library")
    }

    /// True if the source of this very release is there.
    pub fn has_rust_src(&self) -> bool {
        let library = self.rust_src();
        // Without the stamp rustup keeps the folder up to date.
        let fits = fs::read_to_string(library.join(RUST_SRC_STAMP))
            .map_or(true, |release| release == self.release);
        fits && library.join("core/src/lib.rs").exists() && library.join("Cargo.lock").exists()
    }

    /// The linker to use and nothing else missing, or the words for what is missing.
    pub fn usable_linker(&self) -> Result<PathBuf, String> {
        if !self.has_rust_src() {
            return Err(format!("no rust-src {}", self.release));
        }
        let in_path = env::var_os("PATH").unwrap_or_default();
        [self.linker()]
            .into_iter()
            .chain(env::split_paths(&in_path).map(|folder| folder.join("bpf-linker")))
            .find(|linker| is_linker(linker))
            .ok_or_else(|| format!("no bpf-linker {LINKER_VERSION}"))
    }

    /// A cargo command for the bpf target with all flags set: `build`, `clippy`.
    pub fn cargo(
        &self,
        verb: &str,
        linker: &Path,
        workspace: &Path,
        target_dir: &Path,
    ) -> Result<Command> {
        let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        // What an outer cargo or a user set for the host's build would leak into the object.
        for (name, _) in env::vars_os() {
            let name = name.to_string_lossy();
            let kept = [
                "CARGO_HOME",
                "CARGO_HTTP",
                "CARGO_NET",
                "CARGO_REGISTR",
                "CARGO_TERM",
            ];
            if name.starts_with("CARGO_") && !kept.iter().any(|kept| name.starts_with(kept)) {
                command.env_remove(&*name);
            }
        }
        for name in [
            "RUSTC",
            "RUSTC_WRAPPER",
            "RUSTC_WORKSPACE_WRAPPER",
            "RUSTFLAGS",
        ] {
            command.env_remove(name);
        }
        let flags = [
            self.remaps(workspace)?,
            FLAGS.iter().map(ToString::to_string).collect(),
        ];
        command
            .current_dir(workspace)
            .env("RUSTC_BOOTSTRAP", "1")
            .env("CARGO_TARGET_BPFEL_UNKNOWN_NONE_LINKER", linker)
            .env("CARGO_ENCODED_RUSTFLAGS", flags.concat().join("\x1f"))
            .envs(
                PROFILE
                    .iter()
                    .map(|(name, value)| (format!("CARGO_PROFILE_RELEASE_{name}"), value)),
            )
            .args([verb, "--package", "netspawn-ebpf", "--release"])
            .args(["-Z", "build-std=core", "--target", TARGET, "--target-dir"])
            .arg(target_dir);
        Ok(command)
    }

    /// Builds the object in `target_dir` and returns its path.
    pub fn build_object(
        &self,
        linker: &Path,
        workspace: &Path,
        target_dir: &Path,
    ) -> Result<PathBuf> {
        let mut command = self.cargo("build", linker, workspace, target_dir)?;
        let status = command
            .args(["--bin", "netspawn"])
            .status()
            .context("cannot start cargo for the eBPF object")?;
        if !status.success() {
            bail!("the eBPF object could not be built: see cargo's messages above");
        }
        let linked = target_dir.join(TARGET).join("release/netspawn");
        let stripped = target_dir.join("netspawn.bpf.o");
        let object =
            fs::read(&linked).with_context(|| format!("cannot read {}", linked.display()))?;
        let object = without_dwarf(&object)
            .with_context(|| format!("{} is not an ELF object", linked.display()))?;
        fs::write(&stripped, object)
            .with_context(|| format!("cannot write {}", stripped.display()))?;
        Ok(stripped)
    }

    /// Flags that keep this machine's folders out of the object.
    fn remaps(&self, workspace: &Path) -> Result<Vec<String>> {
        let mut remaps = Vec::new();
        let mut remap = |from: &Path, to: &str| {
            remaps.push(format!("--remap-path-prefix={}={to}", from.display()));
        };
        // The last match counts, so the workspace comes after what may hold it. The registry's
        // folder exists by now: the program that calls this needed crates of it.
        let cargo_home = match env::var_os("CARGO_HOME") {
            Some(path) => PathBuf::from(path),
            None => env::home_dir()
                .context("set HOME or CARGO_HOME")?
                .join(".cargo"),
        };
        for folder in entries(&cargo_home.join("registry/src")).unwrap_or_default() {
            remap(&folder, "/crates");
        }
        remap(&self.rust_src(), "/rust/library");
        remap(workspace, ".");
        Ok(remaps)
    }
}

/// The object less its DWARF, from which the linker has made BTF: the kernel reads
/// only that, and it is four fifths smaller in the repository and in the program.
fn without_dwarf(object: &[u8]) -> Result<Vec<u8>> {
    let mut builder = object::build::elf::Builder::read(object)?;
    for section in &mut builder.sections {
        let name = section.name.as_slice();
        section.delete = name.starts_with(b".debug_") || name.starts_with(b".rel.debug_");
    }
    builder.delete_orphans();
    // LLVM keeps the sections' names among the symbols'; the builder wants them apart.
    let names = builder.sections.add();
    names.name = b".shstrtab".as_slice().into();
    names.sh_type = object::elf::SHT_STRTAB;
    names.sh_addralign = 1;
    names.data = object::build::elf::SectionData::SectionString;
    let mut stripped = Vec::new();
    builder.write(&mut stripped)?;
    Ok(stripped)
}

/// The object kept in the repository, for machines without the eBPF toolchain.
pub struct Prebuilt {
    /// Digest of the sources that it was made of.
    pub sources: String,
    /// Digest of the object itself.
    pub object: String,
    /// Version of the rustc that made it; another one makes other code.
    pub rustc: String,
}

impl Prebuilt {
    /// Path of the object.
    pub fn object_path(workspace: &Path) -> PathBuf {
        workspace.join("netspawn-ebpf/prebuilt/netspawn.bpf.o")
    }

    fn record_path(workspace: &Path) -> PathBuf {
        workspace.join("netspawn-ebpf/prebuilt/netspawn.bpf.toml")
    }

    /// Reads the record beside the object.
    pub fn read(workspace: &Path) -> Result<Self> {
        let path = Self::record_path(workspace);
        let record = table(&path)?;
        let field = |name: &str| {
            record
                .get(name)
                .and_then(Value::as_str)
                .map(str::to_owned)
                .with_context(|| format!("{}: no string `{name}`", path.display()))
        };
        Ok(Prebuilt {
            sources: field("sources")?,
            object: field("object")?,
            rustc: field("rustc")?,
        })
    }

    /// Keeps `object` in the repository with a record of what it was made of.
    pub fn write(workspace: &Path, object: &[u8], rustc: &str) -> Result<()> {
        let record = format!(
            "# Written by `cargo xtask build --prebuilt`; SHA-256 of the sources and of the object.\n\
             sources = \"{}\"\nobject = \"{}\"\nrustc = \"{rustc}\"\nbpf-linker = \"{LINKER_VERSION}\"\n",
            source_digest(workspace)?,
            hex(&Sha256::digest(object)),
        );
        let path = Self::object_path(workspace);
        fs::write(&path, object).with_context(|| format!("cannot write {}", path.display()))?;
        fs::write(Self::record_path(workspace), record)?;
        Ok(())
    }

    /// Path of the object, if it was made of the sources as they are now and is whole.
    pub fn usable(workspace: &Path) -> Result<PathBuf> {
        let record = Self::read(workspace)?;
        let path = Self::object_path(workspace);
        if record.sources != source_digest(workspace)? {
            bail!("{} was made of other sources than these", path.display());
        }
        let object = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
        if record.object != hex(&Sha256::digest(&object)) {
            bail!("{} is not the object its record describes", path.display());
        }
        Ok(path)
    }
}

/// Files and folders whose change makes the object another one.
pub fn inputs(workspace: &Path) -> [PathBuf; 4] {
    [
        "netspawn-ebpf/src",
        "netspawn-ebpf/Cargo.toml",
        "Cargo.toml",
        "Cargo.lock",
    ]
    .map(|input| workspace.join(input))
}

/// SHA-256 over everything in the repository that decides the object: sources, what
/// the manifests say about the package, the locked dependencies, linker and flags.
/// Tests' dependencies, other crates and the compiler's version have no part in it.
pub fn source_digest(workspace: &Path) -> Result<String> {
    let [source, manifest_path, root_path, lock_path] = inputs(workspace);
    let mut digest = Sha256::new();
    // A length before each part keeps neighbouring parts from running into each other.
    let mut feed = |part: &[u8]| {
        digest.update((part.len() as u64).to_be_bytes());
        digest.update(part);
    };
    let mut files = BTreeSet::new();
    collect(&source, &mut files)?;
    for file in files {
        feed(file.strip_prefix(&source)?.as_os_str().as_encoded_bytes());
        feed(&fs::read(&file)?);
    }
    let manifest = table(&manifest_path)?;
    for name in [
        "package",
        "features",
        "lib",
        "bin",
        "dependencies",
        "target",
    ] {
        feed(format!("{name} {}", canonical(manifest.get(name))).as_bytes());
    }
    let root = table(&root_path)?;
    let shared = root
        .get("workspace")
        .and_then(|workspace| workspace.get("package"));
    feed(canonical(shared).as_bytes());
    for package in locked(&table(&lock_path)?, &dependencies(&manifest)) {
        feed(package.as_bytes());
    }
    feed(LINKER_VERSION.as_bytes());
    feed(FLAGS.join(" ").as_bytes());
    for (name, value) in PROFILE {
        feed(format!("{name}={value}").as_bytes());
    }
    Ok(hex(&digest.finalize()))
}

/// Names of the crates that the package itself is built with.
fn dependencies(manifest: &Table) -> BTreeSet<String> {
    let for_targets = manifest
        .get("target")
        .and_then(Value::as_table)
        .into_iter()
        .flat_map(Table::values)
        .filter_map(Value::as_table);
    [manifest]
        .into_iter()
        .chain(for_targets)
        .filter_map(|table| table.get("dependencies")?.as_table())
        .flatten()
        .map(|(key, value)| {
            value
                .get("package")
                .and_then(Value::as_str)
                .unwrap_or(key)
                .to_owned()
        })
        .collect()
}

/// Name, version and checksum of `roots` and all that they depend on, in order.
fn locked(lock: &Table, roots: &BTreeSet<String>) -> BTreeSet<String> {
    let empty = Vec::new();
    let packages = lock
        .get("package")
        .and_then(Value::as_array)
        .unwrap_or(&empty);
    let text = |package: &Value, key: &str| {
        package
            .get(key)
            .and_then(Value::as_str)
            .unwrap_or_default()
            .to_owned()
    };
    let mut wanted: Vec<String> = roots.iter().cloned().collect();
    let mut found = BTreeSet::new();
    while let Some(want) = wanted.pop() {
        // `name`, or `name version` where the lock file holds several.
        let mut words = want.split(' ');
        let (name, version) = (words.next(), words.next());
        for package in packages {
            let package_version = text(package, "version");
            if Some(text(package, "name").as_str()) != name
                || version.is_some_and(|version| version != package_version)
            {
                continue;
            }
            let line = format!(
                "{} {package_version} {}",
                text(package, "name"),
                text(package, "checksum")
            );
            if found.insert(line) {
                let next = package
                    .get("dependencies")
                    .and_then(Value::as_array)
                    .unwrap_or(&empty);
                wanted.extend(next.iter().filter_map(Value::as_str).map(str::to_owned));
            }
        }
    }
    found
}

/// A text of `value` that does not depend on the order of keys.
fn canonical(value: Option<&Value>) -> String {
    match value {
        None => "none".to_owned(),
        Some(Value::Table(table)) => {
            let mut lines: Vec<_> = table
                .iter()
                .map(|(key, value)| format!("{key:?}:{}", canonical(Some(value))))
                .collect();
            lines.sort();
            format!("{{{}}}", lines.join(","))
        }
        Some(Value::Array(array)) => {
            let items: Vec<_> = array.iter().map(|item| canonical(Some(item))).collect();
            format!("[{}]", items.join(","))
        }
        Some(other) => other.to_string(),
    }
}

fn collect(folder: &Path, files: &mut BTreeSet<PathBuf>) -> Result<()> {
    for path in entries(folder)? {
        if path.is_dir() {
            collect(&path, files)?;
        } else {
            files.insert(path);
        }
    }
    Ok(())
}

fn entries(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut paths = Vec::new();
    for entry in
        fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))?
    {
        paths.push(entry?.path());
    }
    paths.sort();
    Ok(paths)
}

fn table(path: &Path) -> Result<Table> {
    fs::read_to_string(path)
        .with_context(|| format!("cannot read {}", path.display()))?
        .parse()
        .with_context(|| format!("{} is not TOML", path.display()))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn is_linker(path: &Path) -> bool {
    Command::new(path)
        .arg("--version")
        .stderr(Stdio::null())
        .output()
        .is_ok_and(|output| {
            String::from_utf8_lossy(&output.stdout)
                .split_whitespace()
                .any(|word| word == LINKER_VERSION)
        })
}

fn output(command: &mut Command) -> Result<String> {
    let output = command
        .output()
        .with_context(|| format!("cannot start {}", command.get_program().display()))?;
    if !output.status.success() {
        bail!(
            "{} failed: {}",
            command.get_program().display(),
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    Ok(String::from_utf8(output.stdout)?)
}
