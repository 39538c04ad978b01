//! `[X-Netspawn]` in systemd's `.nspawn` files, a section that systemd-nspawn
//! ignores:
//!
//! ```ini
//! [X-Netspawn]
//! Address=203.0.113.2 2001:db8::2
//! Address=2001:db8:1::/64
//! Tenant=acme
//! ```
//!
//! `Address=` is a list, which an empty `Address=` empties; of other keys the
//! last one counts. A file without that section declares nothing, and is
//! nobody's business here.

pub(crate) mod syntax;

use std::{
    collections::{BTreeMap, HashSet, btree_map::Entry},
    fs, io,
    path::{Path, PathBuf},
};

use ipnet::IpNet;

use self::syntax::{Item, Value};
use super::{
    files::{Folder, name_of},
    layers::{Keys, Layer, Layers},
};
use crate::{
    document, fields,
    model::SourceKind,
    problem::{Fault, Problem, did_you_mean},
};

const SECTION: &str = "X-Netspawn";
const KNOWN: &[&str] = &[
    "Address",
    "Tenant",
    "Mac",
    "Vlan",
    "Interface",
    "AnyMac",
    "Source",
];

/// The folders of `.nspawn` files that the host's root controls. The copy
/// beside an image is never read: the image's author controls it.
#[derive(Debug)]
pub struct NspawnFiles {
    /// The first that has a machine's file wins, as systemd-nspawn has it.
    folders: [Folder; 2],
}

impl NspawnFiles {
    /// The folders that systemd-nspawn reads. Nothing is read yet.
    pub fn new() -> Self {
        NspawnFiles::at(["/etc/systemd/nspawn".into(), "/run/systemd/nspawn".into()])
    }

    /// Other folders in their place.
    pub fn at(folders: [PathBuf; 2]) -> Self {
        NspawnFiles {
            folders: folders.map(Folder::new),
        }
    }

    /// The folders that are read.
    pub fn folders(&self) -> impl Iterator<Item = PathBuf> {
        self.folders.iter().map(|folder| folder.path().to_owned())
    }

    /// Reads everything.
    pub fn read(&self, layers: &mut Layers) {
        for (path, content) in self.first_of_each(layers) {
            let keys = match content {
                Ok(bytes) => parse(&path, &bytes),
                // Of a file that is named after no machine nobody expects anything.
                Err(_) if name_of(&path).is_err() => continue,
                Err(problem) => Err(vec![problem]),
            };
            let kind = SourceKind::Nspawn;
            match (name_of(&path), keys) {
                (_, Ok(None)) => {}
                (Ok(name), Ok(Some(keys))) => layers.add(name, Layer { kind, path, keys }),
                (Ok(name), Err(problems)) => layers.unusable(name, kind, path, problems),
                (Err(problem), _) => layers.problem(problem),
            }
        }
    }

    /// The files that systemd-nspawn would read, and what is in them.
    fn first_of_each(&self, layers: &mut Layers) -> Vec<(PathBuf, Result<Vec<u8>, Problem>)> {
        let mut found = BTreeMap::new();
        for folder in &self.folders {
            let paths = match folder.list("nspawn") {
                Ok(paths) => paths,
                Err(problem) => {
                    let path = folder.path().to_owned();
                    layers.unlisted(SourceKind::Nspawn, path, problem);
                    // What it hides in the next folder is not known.
                    break;
                }
            };
            for path in paths {
                let name = path.file_name().unwrap_or_default().to_owned();
                if let Entry::Vacant(entry) = found.entry(name)
                    && let Some(content) = read(&path)
                {
                    entry.insert((path, content));
                }
            }
        }
        found.into_values().collect()
    }
}

/// The content of a file; `None` where systemd-nspawn finds none and looks in
/// the next folder. What is no file, such as a link to /dev/null, is empty.
fn read(path: &Path) -> Option<Result<Vec<u8>, Problem>> {
    match fs::metadata(path) {
        Ok(metadata) if !metadata.is_file() => Some(Ok(Vec::new())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        // Told by whoever tries to read it.
        Ok(_) | Err(_) => document::read_bytes(path).transpose(),
    }
}

/// What the section in a file says; `None` when there is no such section.
///
/// # Errors
/// Everything that is wrong in it, in the order of the lines.
pub fn parse(path: &Path, bytes: &[u8]) -> Result<Option<Keys>, Vec<Problem>> {
    let mut section = Section::default();
    let mut declares = false;
    let mut inside = false;
    for (line, item) in syntax::items(bytes) {
        match item {
            Item::Section(name) => {
                inside = name == SECTION;
                declares |= inside;
                if !inside && is_meant(&name) {
                    declares = true;
                    section.fault(
                        line,
                        None,
                        Fault::new(
                            format!("[{name}] is not looked at"),
                            format!("did you mean [{SECTION}]?"),
                        ),
                    );
                }
            }
            Item::BrokenSection(text) => {
                inside = false;
                let name = text.trim_start_matches('[').split(']').next();
                declares |= name.is_some_and(is_meant);
                section.fault(
                    line,
                    None,
                    Fault::new(
                        format!("{text:?} is no section, and systemd-nspawn refuses the file"),
                        "write [NAME] and nothing after it",
                    ),
                );
            }
            Item::Assignment(key, value) if inside => section.assign(line, &key, &value),
            Item::Other(text) if inside => section.fault(
                line,
                None,
                Fault::new(
                    format!("{text:?} is no assignment"),
                    "write a key, `=` and a value, such as Address=203.0.113.2",
                ),
            ),
            Item::NotText => section.fault(
                line,
                None,
                Fault::new(
                    "is not UTF-8 text, and systemd-nspawn refuses the file",
                    "save the file as UTF-8",
                ),
            ),
            Item::Assignment(..) | Item::Other(_) => {}
        }
    }
    if !declares {
        return Ok(None);
    }
    section.finish(path).map(Some)
}

/// Whether who wrote a section's name most likely meant this one.
fn is_meant(name: &str) -> bool {
    let distance = strsim::osa_distance(&name.to_lowercase(), &SECTION.to_lowercase());
    distance <= 2
}

/// The section as far as it is read.
#[derive(Default)]
struct Section {
    keys: Keys,
    addresses: List,
    sources: List,
    faults: Vec<(usize, Option<String>, Fault)>,
}

/// A list that is assigned to several times.
#[derive(Default)]
struct List {
    prefixes: Vec<IpNet>,
    seen: HashSet<IpNet>,
}

impl List {
    /// What was assigned, if anything was.
    fn assigned(self) -> Option<Vec<IpNet>> {
        Some(self.prefixes).filter(|prefixes| !prefixes.is_empty())
    }
}

impl Section {
    fn fault(&mut self, line: usize, field: Option<&str>, fault: Fault) {
        self.faults.push((line, field.map(str::to_owned), fault));
    }

    #[expect(
        clippy::disallowed_methods,
        reason = "this parses text or bytes; no system call can fail here"
    )]
    fn check<T>(&mut self, line: usize, field: &str, result: Result<T, Fault>) -> Option<T> {
        result
            .map_err(|fault| self.fault(line, Some(field), fault))
            .ok()
    }

    fn assign(&mut self, line: usize, key: &str, value: &Value) {
        // A value begins where its first word is.
        let at = value.words().next().map_or(line, |(line, _)| line);
        let text = value.text();
        match key {
            "Address" => self.prefixes(key, value, |section| &mut section.addresses),
            "Source" => self.prefixes(key, value, |section| &mut section.sources),
            "AnyMac" => self.keys.any_mac = self.check(at, key, boolean(text)),
            "Tenant" => self.keys.tenant = self.check(at, key, fields::tenant(text)),
            "Mac" => self.keys.mac = self.check(at, key, fields::mac(text)),
            "Vlan" => self.keys.vlan = self.check(at, key, vlan(text)),
            "Interface" => {
                self.keys.interface = self.check(at, key, fields::interface_name(text));
            }
            _ => {
                let fault = Fault::new("unknown key", did_you_mean(key, KNOWN));
                self.fault(line, Some(key), fault);
            }
        }
    }

    fn prefixes(&mut self, key: &str, value: &Value, list: fn(&mut Self) -> &mut List) {
        if value.text().is_empty() {
            *list(self) = List::default();
        }
        for (line, word) in value.words() {
            let Some(prefix) = self.check(line, key, fields::prefix(word)) else {
                continue;
            };
            let list = list(self);
            if list.seen.insert(prefix) {
                list.prefixes.push(prefix);
            } else {
                let fault = Fault::new(format!("{word} is given twice"), "remove one of them");
                self.fault(line, Some(key), fault);
            }
        }
    }

    fn finish(mut self, path: &Path) -> Result<Keys, Vec<Problem>> {
        self.keys.addresses = self.addresses.assigned();
        self.keys.sources = self.sources.assigned();
        if self.faults.is_empty() {
            return Ok(self.keys);
        }
        let problem = |(line, field, fault): (usize, Option<String>, Fault)| {
            fault.at(path, Some(line), field.as_deref())
        };
        Err(self.faults.into_iter().map(problem).collect())
    }
}

fn vlan(text: &str) -> Result<u16, Fault> {
    const EXAMPLE: &str = "write a number from 1 to 4094, or remove it for untagged";
    let number = text
        .parse()
        .map_err(|_| Fault::new(format!("{text:?} is not a VLAN id"), EXAMPLE))?;
    fields::vlan(number)
}

/// As systemd reads one (`parse_boolean`).
fn boolean(text: &str) -> Result<bool, Fault> {
    let is = |words: [&str; 6]| words.iter().any(|word| text.eq_ignore_ascii_case(word));
    if is(["1", "yes", "y", "true", "t", "on"]) {
        Ok(true)
    } else if is(["0", "no", "n", "false", "f", "off"]) {
        Ok(false)
    } else {
        Err(Fault::new(
            format!("{text:?} is neither yes nor no"),
            "write yes or no",
        ))
    }
}

#[cfg(test)]
mod tests;
