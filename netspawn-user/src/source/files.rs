//! `CONFIGDIR/machines/NAME.toml` and `RUNDIR/machines/NAME.toml`.
//!
//! A key in the latter replaces the same key in the former. A file with a
//! fault never takes a machine away (see [`Sources`](super::Sources)).
//!
//! Files whose names start with a dot or do not end in `.toml` are no
//! declarations: editors and [`write_machine`] keep their drafts there.

use std::{
    cell::Cell,
    collections::BTreeSet,
    ffi::OsStr,
    fs::{self, File, Permissions},
    io::{self, Write},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, bail};
use serde::Serialize;

use super::layers::{Keys, Layer, Layers};
use crate::{
    document::{self, Document},
    fields, gone,
    model::{Declaration, DisplayMac, SourceKind},
    problem::{Fault, Problem},
};

const KNOWN: &[&str] = &[
    "interface",
    "addresses",
    "tenant",
    "mac",
    "vlan",
    "any-mac",
    "sources",
];

/// Reads the text of a machine file; all its faults when it has any.
pub fn parse(path: &Path, text: &str) -> Result<Keys, Vec<Problem>> {
    let mut keys = Keys::default();
    let (mut document, table) = Document::parse(path, text);
    for (key, value) in &table {
        let field = key.get_ref().as_ref();
        match field {
            "interface" => {
                keys.interface = document.string(
                    field,
                    value,
                    "interface = \"ve-web\"",
                    fields::interface_name,
                );
            }
            "addresses" => {
                keys.addresses = document.some_strings(
                    field,
                    value,
                    "addresses = [\"203.0.113.2\", \"2001:db8:1::/64\"]",
                    fields::prefix,
                );
            }
            "tenant" => {
                keys.tenant = document.string(field, value, "tenant = \"acme\"", fields::tenant);
            }
            "mac" => {
                keys.mac =
                    document.string(field, value, "mac = \"02:00:00:00:00:05\"", fields::mac);
            }
            "vlan" => {
                keys.vlan = document.integer(field, value, "vlan = 30", fields::vlan);
            }
            "any-mac" => {
                keys.any_mac = document.boolean(field, value, "any-mac = true");
            }
            "sources" => {
                keys.sources = document.some_strings(
                    field,
                    value,
                    "sources = [\"10.8.0.0/24\"]",
                    fields::prefix,
                );
            }
            _ => document.unknown(field, key.span(), field, KNOWN),
        }
    }
    match document.into_problems() {
        problems if problems.is_empty() => Ok(keys),
        problems => Err(problems),
    }
}

/// The two folders.
#[derive(Debug)]
pub struct Files {
    folders: [(SourceKind, Folder); 2],
}

/// A folder of declarations.
#[derive(Debug)]
pub(super) struct Folder {
    path: PathBuf,
    /// Whether something was declared in it when it was last read.
    declared: Cell<bool>,
}

impl Folder {
    /// Nothing is read yet.
    pub(super) fn new(path: PathBuf) -> Self {
        Folder {
            path,
            declared: Cell::new(false),
        }
    }

    /// Where it is.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The files whose names end so, sorted; none when it does not exist.
    ///
    /// # Errors
    /// When it cannot be listed; and when it does not exist any more after something was
    /// declared in it: a file system that is not mounted withdraws nobody.
    pub(super) fn list(&self, extension: &str) -> Result<BTreeSet<PathBuf>, Problem> {
        let paths = list(&self.path, extension)?;
        if paths.is_none() && self.declared.get() {
            return Err(Fault::new(
                "is gone; what was declared in it holds on",
                format!(
                    "make it again (`mkdir -p {}`): what is not in it then is withdrawn",
                    self.path.display()
                ),
            )
            .at(&self.path, None, None));
        }
        let paths = paths.unwrap_or_default();
        self.declared.set(!paths.is_empty());
        Ok(paths)
    }
}

impl Files {
    /// The folders under CONFIGDIR and RUNDIR. Nothing is read yet.
    pub fn new(config_dir: &Path, run_dir: &Path) -> Self {
        Files {
            folders: [
                (SourceKind::Run, Folder::new(run_dir.join(FOLDER))),
                (SourceKind::Config, Folder::new(config_dir.join(FOLDER))),
            ],
        }
    }

    /// The folders that are read.
    pub fn folders(&self) -> impl Iterator<Item = PathBuf> {
        let folders = self.folders.iter();
        folders.map(|(_, folder)| folder.path().to_owned())
    }

    /// Reads everything.
    pub fn read(&self, layers: &mut Layers) {
        for (kind, folder) in &self.folders {
            let paths = match folder.list("toml") {
                Ok(paths) => paths,
                Err(problem) => {
                    layers.unlisted(*kind, folder.path().to_owned(), problem);
                    continue;
                }
            };
            for path in paths {
                let name = match name_of(&path) {
                    Ok(name) => name,
                    Err(problem) => {
                        layers.problem(problem);
                        continue;
                    }
                };
                let keys = match document::read(&path) {
                    Ok(None) => continue,
                    Ok(Some(text)) => parse(&path, &text),
                    Err(problem) => Err(vec![problem]),
                };
                match keys {
                    Ok(keys) => layers.add(
                        name,
                        Layer {
                            kind: *kind,
                            path,
                            keys,
                        },
                    ),
                    Err(problems) => layers.unusable(name, *kind, path, problems),
                }
            }
        }
    }
}

/// Folder of declarations in CONFIGDIR and RUNDIR.
const FOLDER: &str = "machines";

/// Where the declaration of a machine is in CONFIGDIR or RUNDIR.
pub fn machine_path(dir: &Path, name: &str) -> PathBuf {
    dir.join(FOLDER).join(format!("{name}.toml"))
}

/// The files of a folder whose names end so, sorted; `None` when it does not exist.
fn list(folder: &Path, extension: &str) -> Result<Option<BTreeSet<PathBuf>>, Problem> {
    let problem = |error: io::Error| {
        Fault::new(
            format!("cannot be listed: {error}"),
            "see that it is a directory that root can read",
        )
        .at(folder, None, None)
    };
    let Some(entries) = gone::list(folder).map_err(problem)? else {
        return Ok(None);
    };
    let mut paths = BTreeSet::new();
    for entry in entries {
        let path = entry.path();
        let draft = path
            .file_name()
            .is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
        if !draft && path.extension() == Some(OsStr::new(extension)) {
            paths.insert(path);
        }
    }
    Ok(Some(paths))
}

/// The machine that a file is named after.
pub(super) fn name_of(path: &Path) -> Result<String, Problem> {
    let stem = path.file_stem().unwrap_or_default().to_string_lossy();
    fields::machine_name(&stem).map_err(|fault| {
        Fault::new(fault.message, format!("rename the file: {}", fault.remedy)).at(path, None, None)
    })
}

/// The form in which [`write_machine`] writes.
#[derive(Serialize)]
struct Written<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    interface: Option<&'a str>,
    addresses: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tenant: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    mac: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    vlan: Option<u16>,
    #[serde(rename = "any-mac", skip_serializing_if = "Option::is_none")]
    any_mac: Option<bool>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    sources: Vec<String>,
}

/// The text of a declaration's file.
///
/// # Errors
/// None that a declaration could cause.
pub fn text_of(declaration: &Declaration) -> anyhow::Result<String> {
    let mut text = toml::to_string_pretty(&Written {
        interface: declaration.interface.as_deref(),
        addresses: declaration.addresses.iter().map(fields::shortest).collect(),
        tenant: declaration.tenant.as_deref(),
        mac: declaration.mac.map(|mac| DisplayMac(mac).to_string()),
        vlan: declaration.vlan,
        any_mac: declaration.any_mac.then_some(true),
        sources: declaration.sources.iter().map(fields::shortest).collect(),
    })?;
    if !text.ends_with('\n') {
        text.push('\n');
    }
    Ok(text)
}

/// Writes `RUNDIR/machines/NAME.toml`, in place of one that may be there:
/// whoever reads sees the old file or the new one, also after a crash. The
/// source and path of the declaration are not looked at. Returns the path.
///
/// # Errors
/// When the folder cannot be made or the file cannot be written; the old file
/// is then untouched.
pub fn write_machine(run_dir: &Path, declaration: &Declaration) -> anyhow::Result<PathBuf> {
    let path = machine_path(run_dir, &declaration.name);
    replace(&path, text_of(declaration)?.as_bytes(), SHARED)
        .with_context(|| format!("cannot write {}", path.display()))?;
    Ok(path)
}

/// What became of a file that was not to replace one that is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Created {
    /// It is written.
    Written,
    /// There is one, which says the same.
    Same,
    /// There is one, which says something else.
    Differs,
}

/// Writes `DIR/machines/NAME.toml` as [`write_machine`] does, unless there is
/// one.
///
/// # Errors
/// When the folder cannot be made, the file cannot be written, or the one that
/// is there cannot be read.
pub fn create_machine(dir: &Path, declaration: &Declaration) -> anyhow::Result<Created> {
    let path = machine_path(dir, &declaration.name);
    let text = text_of(declaration)?;
    let result = draft(&path, text.as_bytes(), SHARED).and_then(|draft| {
        draft
            .persist_noclobber(&path)
            .map_err(|error| error.error)?;
        sync_folder(&path)
    });
    match result {
        Ok(()) => Ok(Created::Written),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            let there =
                fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
            Ok(if there == text.as_bytes() {
                Created::Same
            } else {
                Created::Differs
            })
        }
        Err(error) => Err(error).with_context(|| format!("cannot write {}", path.display())),
    }
}

/// Makes the content of a file this one, at once or not at all.
pub(crate) fn replace(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    draft(path, bytes, mode)?
        .persist(path)
        .map_err(|error| error.error)?;
    sync_folder(path)
}

/// Rights of a file that everybody may read.
pub(crate) const SHARED: u32 = 0o644;
/// Rights of one that is nobody else's business.
pub(crate) const PRIVATE: u32 = 0o600;

/// A file beside the one it is to become, with its content on disk and these rights.
pub(crate) fn draft(path: &Path, bytes: &[u8], mode: u32) -> io::Result<tempfile::NamedTempFile> {
    let folder = folder_of(path);
    fs::create_dir_all(folder)?;
    let mut draft = tempfile::Builder::new()
        .prefix(".")
        .suffix(".draft")
        .permissions(Permissions::from_mode(mode))
        .tempfile_in(folder)?;
    draft.write_all(bytes)?;
    draft.as_file().sync_all()?;
    Ok(draft)
}

/// How old a draft is that nobody writes any more.
const STALE: Duration = Duration::from_secs(60);

/// Removes what those have left in a folder who were killed while they wrote a [`draft`].
///
/// # Errors
/// When it cannot be listed, or a draft cannot be removed.
#[expect(
    clippy::disallowed_methods,
    reason = "a time that lies ahead is no age; the kernel is not asked"
)]
pub(crate) fn sweep_drafts(folder: &Path) -> io::Result<()> {
    for entry in gone::list(folder)?.into_iter().flatten() {
        let name = entry.file_name();
        let name = name.as_encoded_bytes();
        if !name.starts_with(b".") || !name.ends_with(b".draft") {
            continue;
        }
        let Some(data) = gone::path(entry.metadata())? else {
            continue;
        };
        // One from the future is of a clock that was set.
        let age = data.modified()?.elapsed();
        if age.is_ok_and(|age| age < STALE) {
            continue;
        }
        gone::path(fs::remove_file(entry.path()))?;
    }
    Ok(())
}

fn folder_of(path: &Path) -> &Path {
    path.parent().unwrap_or(Path::new("."))
}

/// Puts the names in a file's folder on disk.
fn sync_folder(path: &Path) -> io::Result<()> {
    File::open(folder_of(path))?.sync_all()
}

/// What became of a machine whose file in RUNDIR is deleted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Removed {
    /// Nothing declared it.
    Unknown,
    /// Nothing declares it any more.
    Withdrawn,
    /// This file in CONFIGDIR declares it still.
    StillDeclared(PathBuf),
}

/// Deletes `RUNDIR/machines/NAME.toml`.
///
/// # Errors
/// When another file declares it, which is named, or it cannot be deleted.
pub fn remove_machine(run_dir: &Path, config_dir: &Path, name: &str) -> anyhow::Result<Removed> {
    let path = machine_path(run_dir, name);
    let configured = machine_path(config_dir, name);
    let still = gone::is_there(&configured)
        .with_context(|| format!("cannot look for {}", configured.display()))?;
    match fs::remove_file(&path) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound && still => bail!(
            "machine {name} is declared by {}, which `remove` leaves alone; delete or edit that \
             file",
            configured.display()
        ),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Removed::Unknown),
        Err(error) => {
            return Err(error).with_context(|| format!("cannot delete {}", path.display()));
        }
    }
    if let Some(folder) = path.parent() {
        File::open(folder)
            .and_then(|folder| folder.sync_all())
            .with_context(|| format!("cannot sync {}", folder.display()))?;
    }
    Ok(if still {
        Removed::StillDeclared(configured)
    } else {
        Removed::Withdrawn
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;
    use crate::{
        model::Host,
        source::{Snapshot, Source, Sources},
    };

    struct Dirs {
        _root: tempfile::TempDir,
        config: PathBuf,
        run: PathBuf,
        sources: Sources,
    }

    impl Dirs {
        fn new() -> Self {
            let root = tempfile::tempdir().unwrap();
            let (config, run) = (root.path().join("etc"), root.path().join("run"));
            let sources = Sources::new(&config, &run, [Source::Files]);
            for dir in [&config, &run] {
                fs::create_dir_all(dir.join(FOLDER)).unwrap();
            }
            Dirs {
                _root: root,
                config,
                run,
                sources,
            }
        }

        fn read(&mut self) -> Snapshot {
            self.sources.read(&Host::default())
        }

        fn config(&self, name: &str, text: &str) {
            fs::write(machine_path(&self.config, name), text).unwrap();
        }

        fn run(&self, name: &str, text: &str) {
            fs::write(machine_path(&self.run, name), text).unwrap();
        }

        /// Problems with the folder's path cut off.
        fn problems(&self, snapshot: &Snapshot) -> Vec<String> {
            let (config, run) = (self.config.display(), self.run.display());
            snapshot
                .problems
                .iter()
                .map(|problem| {
                    problem
                        .to_string()
                        .replace(&format!("{config}/machines/"), "etc:")
                        .replace(&format!("{run}/machines/"), "run:")
                })
                .collect()
        }
    }

    const PACKAGED: &str = include_str!("../../../packaging/examples/web.toml");

    #[test]
    fn packaged_file_has_every_key() {
        let mut dirs = Dirs::new();
        dirs.config("web", PACKAGED);
        assert_eq!(dirs.read().problems, []);
        let text = document::uncommented(PACKAGED);
        for key in KNOWN {
            assert!(text.contains(&format!("\n{key} = ")), "no {key}");
        }
    }

    #[test]
    fn every_key_is_read() {
        let mut dirs = Dirs::new();
        dirs.config("web", &document::uncommented(PACKAGED));
        let snapshot = dirs.read();
        assert_eq!(snapshot.problems, []);
        assert_eq!(
            snapshot.declarations["web"],
            Declaration {
                name: "web".to_owned(),
                source: SourceKind::Config,
                path: machine_path(&dirs.config, "web"),
                interface: Some("ve-web".to_owned()),
                addresses: vec![
                    "203.0.113.2/32".parse().unwrap(),
                    "2001:db8::2/128".parse().unwrap(),
                    "2001:db8:1::/64".parse().unwrap()
                ],
                tenant: Some("acme".to_owned()),
                mac: Some([2, 0, 0, 0, 0, 5]),
                vlan: Some(30),
                any_mac: true,
                sources: vec!["10.8.0.0/24".parse().unwrap()],
            }
        );
    }

    #[test]
    fn run_replaces_each_key_it_names() {
        let mut dirs = Dirs::new();
        dirs.config("web", &document::uncommented(PACKAGED));
        dirs.run("web", "addresses = [\"203.0.113.3\"]\nvlan = 31\n");
        let snapshot = dirs.read();
        let web = &snapshot.declarations["web"];
        assert_eq!(web.source, SourceKind::Run);
        assert_eq!(web.addresses, ["203.0.113.3/32".parse().unwrap()]);
        assert_eq!(web.vlan, Some(31));
        assert_eq!(web.tenant.as_deref(), Some("acme"));
    }

    #[test]
    fn folders_that_do_not_exist_are_empty() {
        let root = tempfile::tempdir().unwrap();
        let (config, run) = (root.path().join("a"), root.path().join("b"));
        let snapshot = Sources::new(&config, &run, [Source::Files]).read(&Host::default());
        assert_eq!(snapshot, Snapshot::default());
    }

    #[test]
    fn every_fault_names_file_line_field_and_remedy() {
        let mut dirs = Dirs::new();
        for (name, text, expected) in [
            (
                "a-prefix",
                "addresses = [\n  \"203.0.113.2\",\n  \"203.0.113\",\n]\n",
                "3: addresses: \"203.0.113\" is neither an IPv4 nor an IPv6 address; write an \
                 address such as 203.0.113.2 or a prefix such as 2001:db8:1::/64",
            ),
            (
                "b-hostbits",
                "addresses = [\"203.0.113.2/24\"]",
                "1: addresses: 203.0.113.2/24 has host bits set; write 203.0.113.0/24 for the \
                 whole prefix, or 203.0.113.2/32 for the one address",
            ),
            (
                "c-key",
                "addresses = [\"203.0.113.2\"]\n\naddress = \"203.0.113.2\"",
                "3: address: unknown key; did you mean `addresses`?",
            ),
            (
                "d-type",
                "addresses = \"203.0.113.2\"",
                "1: addresses: expected a list of strings, found a string; write addresses = \
                 [\"203.0.113.2\", \"2001:db8:1::/64\"]",
            ),
            (
                "e-tenant",
                "addresses = [\"203.0.113.2\"]\ntenant = \"\"",
                "2: tenant: an empty tenant is no tenant; name it, or remove the key: machines \
                 that name none form one tenant",
            ),
            (
                "f-mac",
                "addresses = [\"203.0.113.2\"]\nmac = \"01:00:5e:00:00:01\"",
                "2: mac: 01:00:5e:00:00:01 is a multicast MAC address; write the address of the \
                 machine's own interface (the first byte is even)",
            ),
            (
                "g-vlan",
                "addresses = [\"203.0.113.2\"]\nvlan = 4095",
                "2: vlan: 4095 is not a VLAN id; write a number from 1 to 4094, or remove it for \
                 untagged",
            ),
            (
                "h-empty",
                "addresses = []",
                "1: addresses: the list is empty; write addresses = [\"203.0.113.2\", \
                 \"2001:db8:1::/64\"]",
            ),
            (
                "i-twice",
                "addresses = [\"203.0.113.2\",\n\"203.0.113.2/32\"]",
                "2: addresses: 203.0.113.2/32 is given twice; remove one of them",
            ),
            (
                "j-loopback",
                "addresses = [\"127.0.0.2\"]",
                "1: addresses: 127.0.0.2 is loopback (127.0.0.0/8), which no machine can own; \
                 write an address such as 203.0.113.2 or a prefix such as 2001:db8:1::/64",
            ),
            (
                "k-vlan-type",
                "addresses = [\"203.0.113.2\"]\nvlan = \"30\"",
                "2: vlan: expected a whole number, found a string; write vlan = 30",
            ),
            (
                "l-missing",
                "",
                " addresses: is missing; write addresses = [\"203.0.113.2\", \"2001:db8:1::/64\"]",
            ),
        ] {
            dirs.config(name, text);
            let snapshot = dirs.read();
            assert_eq!(
                dirs.problems(&snapshot),
                [format!("etc:{name}.toml:{expected}")]
            );
            assert!(snapshot.keeps(name).is_some());
            fs::remove_file(machine_path(&dirs.config, name)).unwrap();
        }
    }

    #[test]
    fn syntax_errors_name_the_line() {
        let mut dirs = Dirs::new();
        dirs.config("web", "addresses = [\"203.0.113.2\"]\ntenant = acme\n");
        dirs.config("twice", "vlan = 1\nvlan = 2\n");
        let snapshot = dirs.read();
        let problems = dirs.problems(&snapshot);
        assert_eq!(problems.len(), 2, "{problems:?}");
        assert!(problems[0].starts_with("etc:twice.toml:2: is not TOML: duplicate key"));
        assert!(problems[1].starts_with("etc:web.toml:2: is not TOML: "));
    }

    #[test]
    fn files_that_are_no_text_are_reported() {
        let mut dirs = Dirs::new();
        dirs.config("ok", "addresses = [\"203.0.113.9\"]");
        fs::create_dir(machine_path(&dirs.config, "dir")).unwrap();
        fs::write(machine_path(&dirs.config, "latin1"), b"# a\n# \xe9\n").unwrap();
        fs::write(
            machine_path(&dirs.config, "large"),
            vec![b'#'; (1 << 20) + 1],
        )
        .unwrap();
        symlink("/nonexistent", machine_path(&dirs.config, "dangling")).unwrap();
        nix::unistd::mkfifo(
            &machine_path(&dirs.config, "fifo"),
            nix::sys::stat::Mode::S_IRUSR,
        )
        .unwrap();
        fs::write(dirs.config.join("machines/a b.toml"), PACKAGED).unwrap();
        fs::write(dirs.config.join("machines/.web.toml"), "x").unwrap();
        fs::write(dirs.config.join("machines/web.toml~"), "x").unwrap();
        let snapshot = dirs.read();
        assert_eq!(
            dirs.problems(&snapshot),
            [
                "etc:a b.toml: \"a b\" is not a machine name: it has ' '; rename the file: use \
                 letters, digits, `-`, `_` and `.`, 64 at most",
                "etc:dangling.toml: cannot be read: No such file or directory (os error 2); see \
                 that it is a file that root can read",
                "etc:dir.toml: is not a regular file; replace it by a file, or remove it",
                "etc:fifo.toml: is not a regular file; replace it by a file, or remove it",
                "etc:large.toml: is larger than 1048576 bytes; declare shorter prefixes instead \
                 of many addresses",
                "etc:latin1.toml:2: is not UTF-8 text; save the file as UTF-8",
            ]
        );
        assert_eq!(
            snapshot.declarations.keys().collect::<Vec<_>>(),
            ["ok"],
            "the others are used"
        );
    }

    #[test]
    fn file_that_becomes_bad_keeps_last_good_and_gone_file_withdraws() {
        let mut dirs = Dirs::new();
        dirs.config("web", &document::uncommented(PACKAGED));
        let good = dirs.read().declarations;
        dirs.config("web", "addresses = [");
        for _ in 0..2 {
            let snapshot = dirs.read();
            assert_eq!(snapshot.declarations, good);
            assert_eq!(snapshot.problems.len(), 1);
        }
        fs::remove_file(machine_path(&dirs.config, "web")).unwrap();
        assert_eq!(dirs.read(), Snapshot::default());
    }

    #[test]
    fn bad_file_of_higher_rank_does_not_uncover_the_lower() {
        let mut dirs = Dirs::new();
        dirs.config("web", &document::uncommented(PACKAGED));
        dirs.run("web", "addresses = [\"203.0.113.300\"]");
        let snapshot = dirs.read();
        assert!(snapshot.declarations.is_empty());
        assert_eq!(snapshot.keeps("web").unwrap().0, SourceKind::Run);
    }

    #[test]
    fn folder_that_cannot_be_listed_loses_nothing() {
        let mut dirs = Dirs::new();
        dirs.config("web", &document::uncommented(PACKAGED));
        let good = dirs.read().declarations;
        fs::remove_dir_all(dirs.config.join(FOLDER)).unwrap();
        fs::write(dirs.config.join(FOLDER), "").unwrap();
        let snapshot = dirs.read();
        assert_eq!(snapshot.declarations, good);
        assert!(snapshot.keeps("other").is_some());
        assert_eq!(snapshot.problems.len(), 1);
    }

    #[test]
    fn drafts_of_the_dead_are_swept() {
        let folder = tempfile::tempdir().unwrap();
        let old = File::create(folder.path().join(".a.draft")).unwrap();
        let long_ago = std::time::SystemTime::now() - 2 * STALE;
        old.set_modified(long_ago).unwrap();
        for name in [".b.draft", ".c", "d.draft"] {
            let file = File::create(folder.path().join(name)).unwrap();
            if name != ".b.draft" {
                file.set_modified(long_ago).unwrap();
            }
        }
        sweep_drafts(folder.path()).unwrap();
        let left = gone::list(folder.path()).unwrap().unwrap().into_iter();
        let left: BTreeSet<_> = left.map(|entry| entry.file_name()).collect();
        assert_eq!(left, [".b.draft", ".c", "d.draft"].map(Into::into).into());
        sweep_drafts(&folder.path().join("none")).unwrap();
    }

    #[test]
    fn folder_that_is_gone_loses_nothing_until_it_is_made_again() {
        let mut dirs = Dirs::new();
        dirs.config("web", &document::uncommented(PACKAGED));
        let good = dirs.read().declarations;
        fs::remove_dir_all(dirs.config.join(FOLDER)).unwrap();
        for _ in 0..2 {
            let snapshot = dirs.read();
            assert_eq!(snapshot.declarations, good);
            assert_eq!(snapshot.problems.len(), 1);
        }
        fs::create_dir(dirs.config.join(FOLDER)).unwrap();
        let snapshot = dirs.read();
        assert!(snapshot.declarations.is_empty() && snapshot.problems.is_empty());
        // It has nothing to lose now.
        fs::remove_dir(dirs.config.join(FOLDER)).unwrap();
        assert!(dirs.read().problems.is_empty());
    }

    #[test]
    fn written_declaration_is_read_back() {
        let mut dirs = Dirs::new();
        dirs.config("web", &document::uncommented(PACKAGED));
        let mut web = dirs.read().declarations["web"].clone();
        fs::remove_file(machine_path(&dirs.config, "web")).unwrap();
        fs::remove_dir_all(&dirs.run).unwrap();
        let path = write_machine(&dirs.run, &web).unwrap();
        assert_eq!(
            fs::read_to_string(&path).unwrap(),
            "interface = \"ve-web\"\naddresses = [\n    \"203.0.113.2\",\n    \
             \"2001:db8::2\",\n    \"2001:db8:1::/64\",\n]\ntenant = \"acme\"\nmac = \"02:00:00:00:00:05\"\nvlan = 30\n\
             any-mac = true\nsources = [\"10.8.0.0/24\"]\n"
        );
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o644);
        web.source = SourceKind::Run;
        web.path = path;
        assert_eq!(dirs.read().declarations["web"], web);
        assert_eq!(fs::read_dir(dirs.run.join(FOLDER)).unwrap().count(), 1);
    }

    #[test]
    fn remove_names_the_file_to_edit() {
        let dirs = Dirs::new();
        dirs.config("web", &document::uncommented(PACKAGED));
        dirs.run("web", &document::uncommented(PACKAGED));
        let configured = machine_path(&dirs.config, "web");
        assert_eq!(
            remove_machine(&dirs.run, &dirs.config, "web").unwrap(),
            Removed::StillDeclared(configured.clone())
        );
        let error = remove_machine(&dirs.run, &dirs.config, "web").unwrap_err();
        assert!(
            error
                .to_string()
                .contains(&configured.display().to_string())
        );
        assert_eq!(
            remove_machine(&dirs.run, &dirs.config, "nobody").unwrap(),
            Removed::Unknown
        );
        dirs.run("db", PACKAGED);
        assert_eq!(
            remove_machine(&dirs.run, &dirs.config, "db").unwrap(),
            Removed::Withdrawn
        );
    }
}
