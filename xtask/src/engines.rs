//! `cargo xtask test engines [NAME…]`, and the table of results in `docs/engines.md`.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};

use crate::{
    build::target_dir,
    run::{read, show, step},
    test::suite,
};

/// The suite.
pub const SUITE: &str = "engines";

const DOCUMENT: &str = "docs/engines.md";
const BEGIN: &str = "<!-- recorded: engines -->\n";
const END: &str = "<!-- end -->";
const HEAD: &str = "| engine | version | shown | on |\n|---|---|---|---|\n";

/// The modules of the suite, and whether they belong to a whole run: the others take
/// long, and run on demand.
const ENGINES: &[(&str, bool)] = &[
    ("containerd", true),
    ("containerd_newer", false),
    ("docker", true),
    ("docker_newer", false),
    ("docker_scale", false),
    ("incus", true),
    ("kubernetes", false),
    ("libvirt", false),
    ("lxc", false),
    ("podman", false),
    ("tenants", true),
];

/// Where the suite records what it has shown: engine, version and words, with tabs.
pub fn record() -> PathBuf {
    target_dir().join("engines.tsv")
}

/// Runs those named, or without a name all of them, one after the other; those of another
/// release of Debian, if one is named.
///
/// # Errors
/// When one fails; the others are run first.
pub fn run(names: &[String], release: Option<&str>) -> Result<()> {
    let known = || ENGINES.iter().map(|(name, _)| *name);
    if let Some(unknown) = names
        .iter()
        .find(|name| !known().any(|other| other == **name))
    {
        let known: Vec<_> = known().collect();
        bail!("no engine `{unknown}`: there are {}", known.join(", "));
    }
    let mut failed = Vec::new();
    for name in known().filter(|name| names.is_empty() || names.iter().any(|other| other == name)) {
        step(format_args!("suite {SUITE}: {name}"));
        match fs::remove_file(record()) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error.into()),
            _ => {}
        }
        if let Err(error) = modules(&[name], 1, release) {
            eprintln!("error: {error:#}");
            failed.push(name);
        } else {
            write(Path::new(DOCUMENT))?;
        }
    }
    if !failed.is_empty() {
        bail!("failed: {}", failed.join(", "));
    }
    Ok(())
}

/// Runs those of a whole run, which mostly wait, several tests at a time.
///
/// # Errors
/// When one fails.
pub fn run_always() -> Result<()> {
    let always = ENGINES.iter().filter(|(_, always)| *always);
    let names: Vec<&str> = always.map(|(name, _)| *name).collect();
    modules(&names, 3, None)
}

fn modules(names: &[&str], threads: u32, release: Option<&str>) -> Result<()> {
    let mut command = suite(SUITE);
    command
        .env("NETSPAWN_ENGINES", record())
        .args(["--", &format!("--test-threads={threads}")])
        .args(names.iter().map(|name| format!("{name}::")));
    if let Some(release) = release {
        command.env("NETSPAWN_ENGINES_RELEASE", release);
    }
    let before = lxc_groups();
    let result = show(&mut command);
    for group in lxc_groups().difference(&before) {
        remove_group(group);
    }
    result
}

/// Control groups of the first version that LXC and Incus make for their containers: in a
/// box, too, they are the machine's, and LXC leaves them behind. Tests that run side by side
/// could take each other's, so they go when all have ended.
fn lxc_groups() -> BTreeSet<PathBuf> {
    let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let mut folders = BTreeSet::new();
    for line in own.lines() {
        let mut fields = line.splitn(3, ':').skip(1);
        if let (Some(controllers), Some(path)) = (fields.next(), fields.next()) {
            let controllers = controllers.trim_start_matches("name=");
            let root = Path::new("/sys/fs/cgroup").join(controllers);
            folders.insert(root.join(path.trim_start_matches('/')));
            folders.insert(root);
        }
    }
    let groups = folders
        .iter()
        .filter_map(|folder| fs::read_dir(folder).ok());
    groups
        .flat_map(Iterator::flatten)
        .filter(|group| group.file_name().as_encoded_bytes().starts_with(b"lxc."))
        .map(|group| group.path())
        .collect()
}

fn remove_group(group: &Path) {
    for entry in fs::read_dir(group).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_group(&entry.path());
        }
    }
    // The kernel refuses while a process is in it: it is in use by somebody else then.
    let _ = fs::remove_dir(group);
}

/// Puts what was recorded into the document's table.
fn write(document: &Path) -> Result<()> {
    let Ok(recorded) = fs::read_to_string(record()) else {
        return Ok(());
    };
    let text = fs::read_to_string(document)
        .with_context(|| format!("cannot read {}", document.display()))?;
    let date = read(Command::new("date").args(["--utc", "+%F"]))?;
    let text = updated(&text, &recorded, date.trim())
        .with_context(|| format!("{} has no `{}`", document.display(), BEGIN.trim()))?;
    fs::write(document, text).with_context(|| format!("cannot write {}", document.display()))
}

/// The document with the rows of the engines recorded in place of their old ones.
fn updated(text: &str, recorded: &str, date: &str) -> Option<String> {
    let (before, rest) = text.split_once(BEGIN)?;
    let (old, after) = rest.split_once(END)?;
    let mut rows: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for row in old.lines().skip(HEAD.lines().count()) {
        let name = row.split('|').nth(1)?.trim();
        rows.entry(name).or_default().push(row.to_owned());
    }
    let mut fresh: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for line in recorded.lines() {
        let name = line.split('\t').next()?;
        let row = format!("| {} | {date} |", line.replace('\t', " | "));
        fresh.entry(name).or_default().push(row);
    }
    rows.extend(fresh);
    let rows: String = rows.into_values().flatten().map(|row| row + "\n").collect();
    Some(format!("{before}{BEGIN}{HEAD}{rows}{END}{after}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_of_an_engine_are_replaced() {
        let text = format!("a\n{BEGIN}{END}b\n");
        let once = updated(&text, "docker\t20.10\t10 at once\n", "2026-01-01").unwrap();
        let both = updated(&once, "incus\t6.0\tall\n", "2026-01-02").unwrap();
        let again = updated(&both, "docker\t20.11\t11 at once\n", "2026-01-03").unwrap();
        assert_eq!(
            again,
            format!(
                "a\n{BEGIN}{HEAD}| docker | 20.11 | 11 at once | 2026-01-03 |\n\
                 | incus | 6.0 | all | 2026-01-02 |\n{END}b\n"
            )
        );
    }
}
