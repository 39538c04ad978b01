//! The state of a namespace as text, to compare before and after.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use crate::{
    bpf::{Direction, tcx_programs},
    lab::Lab,
    ns::Ns,
};

/// Everything of a namespace that attach may change: links with all details,
/// addresses, routes, rules, qdiscs, filters, BPF attachments, group memberships,
/// all of `/proc/sys/net`, and a bpf file system's tree.
#[derive(Clone, PartialEq, Eq)]
pub struct Snapshot {
    lines: BTreeSet<String>,
}

impl Snapshot {
    /// The state of the lab's host.
    pub fn host(lab: &Lab) -> Result<Self> {
        Snapshot::take(&lab.host, &lab.bpffs())
    }

    /// The state of a namespace and of a bpf file system.
    pub fn take(ns: &Ns, bpffs: &Path) -> Result<Self> {
        let mut lines = BTreeSet::new();
        for (label, command) in [
            ("link", "ip -d -j link"),
            ("address", "ip -j addr"),
            ("group", "ip -j maddr"),
            ("qdisc", "tc -j qdisc"),
            ("route", "ip -j route show table all"),
            ("route6", "ip -6 -j route show table all"),
            ("rule", "ip -j rule"),
            ("rule6", "ip -6 -j rule"),
            ("bpf", "bpftool -j net"),
        ] {
            let mut text = ns.run(command)?;
            if text.is_empty() {
                // Seen of `ip` on a busy machine: no output, and exit code 0.
                text = ns.run(command)?;
            }
            let mut value: Value = serde_json::from_str(&text)
                .with_context(|| format!("`{command}` printed {text}"))?;
            for entry in value.as_array_mut().into_iter().flatten() {
                // In the order in which they were joined, which says nothing.
                if let Some(Value::Array(groups)) = entry.get_mut("maddr") {
                    groups.sort_by_key(Value::to_string);
                }
            }
            for entry in value.as_array().into_iter().flatten() {
                match entry["ifname"].as_str() {
                    Some(name) => flatten(&format!("{label} {name}"), entry, &mut lines),
                    // Fields of a route or qdisc say nothing apart from each other.
                    None => {
                        lines.insert(format!("{label} {entry}"));
                    }
                }
            }
        }
        for interface in interfaces(ns)? {
            for (word, direction) in [
                ("ingress", Direction::Ingress),
                ("egress", Direction::Egress),
            ] {
                let filters = ns.run(&format!("tc filter show dev {interface} {word}"))?;
                for line in filters.lines() {
                    lines.insert(format!("filter {interface} {word} {}", line.trim()));
                }
                let programs = tcx_programs(ns, &interface, direction)?;
                if !programs.is_empty() {
                    lines.insert(format!("tcx {interface} {word} {programs:?}"));
                }
            }
        }
        let files = ns.enter(|| {
            let mut files = Vec::new();
            walk(Path::new("/proc/sys/net"), &mut files)?;
            // Read here: what the files say depends on the reader's namespace.
            Ok(files
                .into_iter()
                .filter_map(|path| Some((fs::read_to_string(&path).ok()?, path)))
                .collect::<Vec<_>>())
        })?;
        for (text, path) in files {
            lines.insert(format!("{} = {}", path.display(), text.trim_end()));
        }
        let mut pins = Vec::new();
        walk(bpffs, &mut pins)?;
        for path in pins {
            lines.insert(format!("pin {}", path.display()));
        }
        Ok(Snapshot { lines })
    }

    /// What differs, `- ` before what was and `+ ` before what is.
    pub fn changes(&self, after: &Snapshot) -> Vec<String> {
        let gone = self.lines.difference(&after.lines);
        let new = after.lines.difference(&self.lines);
        gone.map(|line| format!("- {line}"))
            .chain(new.map(|line| format!("+ {line}")))
            .collect()
    }

    /// Fails with the differences, if there are any.
    pub fn same(&self, after: &Snapshot) -> Result<()> {
        let changes = self.changes(after);
        if !changes.is_empty() {
            bail!("not as before:\n{}", changes.join("\n"));
        }
        Ok(())
    }
}

/// Names of the interfaces of a namespace.
pub fn interfaces(ns: &Ns) -> Result<Vec<String>> {
    let links: Value = serde_json::from_str(&ns.run("ip -j link")?)?;
    Ok(links
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|link| link["ifname"].as_str())
        .map(str::to_owned)
        .collect())
}

fn flatten(label: &str, value: &Value, lines: &mut BTreeSet<String>) {
    match value {
        Value::Object(fields) => {
            for (key, value) in fields {
                flatten(&format!("{label} {key}"), value, lines);
            }
        }
        other => {
            lines.insert(format!("{label} = {other}"));
        }
    }
}

fn walk(folder: &Path, found: &mut Vec<PathBuf>) -> Result<()> {
    for entry in
        fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))?
    {
        let path = entry?.path();
        // Folders count too: an empty one left behind is a leftover.
        if path.is_dir() {
            walk(&path, found)?;
        }
        found.push(path);
    }
    Ok(())
}
