//! systemd-networkd: what it does to the interfaces in question, systemd.network(5)
//! and networkd.conf(5).

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::CString,
    fs,
    path::{Path, PathBuf},
};

use crate::{
    gone,
    model::{Host, Route},
    net::{
        netlink::{Netlink, Request, read_u32},
        read,
    },
    source::syntax::{self, Item},
};

/// Where configuration is, that of the highest rank first.
const FOLDERS: [&str; 5] = [
    "/etc/systemd",
    "/run/systemd",
    "/usr/local/lib/systemd",
    "/usr/lib/systemd",
    "/lib/systemd",
];
/// What networkd says of links, by ifindex.
const LINKS: &str = "/run/systemd/netif/links";
/// Protocols of routes that it makes itself or leaves alone (linux/rtnetlink.h):
/// kernel, static, ra, dhcp.
const OWN_ROUTES: [u8; 4] = [2, 4, 9, 16];
/// Protocols of rules that it makes itself or leaves alone: kernel, static.
const OWN_RULES: [u8; 2] = [2, 4];
/// `FRA_PRIORITY`, `FRA_PROTOCOL` (linux/fib_rules.h).
const RULE_PRIORITY: u16 = 6;
const RULE_PROTOCOL: u16 = 21;
/// Bytes of `fib_rule_hdr`.
const RULE_HEADER: usize = 12;

/// What the file for ports has that ports should not have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortFile {
    /// The file.
    pub path: PathBuf,
    /// The assignments.
    pub assignments: Vec<String>,
}

/// A route that is not networkd's own.
pub type ForeignRoute = Route;

/// What networkd does.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Networkd {
    /// Whether it deletes routes that are not its own.
    pub manages_routes: bool,
    /// Whether it deletes routing policy rules that are not its own.
    pub manages_rules: bool,
    /// Interfaces that it looks after, and would delete from, with their files.
    pub managed: BTreeMap<u32, PathBuf>,
    /// Routes of the main table that are not its own.
    pub routes: Vec<ForeignRoute>,
    /// Preferences of routing policy rules that are not its own.
    pub rules: BTreeSet<u32>,
    /// The file for ports, where it has what it should not.
    pub port_file: Option<PortFile>,
}

/// A file with its drop-ins.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Unit {
    /// Section, key and value of each assignment.
    assignments: Vec<(String, String, String)>,
}

impl Unit {
    /// Adds what a file says.
    pub fn add(&mut self, bytes: &[u8]) {
        let mut section = String::new();
        for (_, item) in syntax::items(bytes) {
            match item {
                Item::Section(name) => section = name,
                Item::Assignment(key, value) => {
                    self.assignments
                        .push((section.clone(), key, value.text().to_owned()))
                }
                Item::BrokenSection(_) | Item::Other(_) | Item::NotText => {}
            }
        }
    }

    /// What was assigned to a key last.
    pub fn last(&self, section: &str, key: &str) -> Option<&str> {
        let mut last = self.assignments.iter().rev();
        last.find(|(its, name, _)| its == section && name == key)
            .map(|(_, _, value)| value.as_str())
    }

    /// Whether a `.network` file is for a veth of that name.
    pub fn is_for_veth(&self, name: &str, container: bool) -> bool {
        let mut matches = self
            .assignments
            .iter()
            .filter(|(section, _, value)| section == "Match" && !value.is_empty())
            .peekable();
        // networkd ignores a file that says nothing of what it is for.
        matches.peek().is_some()
            && matches.all(|(_, key, value)| match key.as_str() {
                "Name" => any_glob(value, name),
                "Kind" | "Driver" => any_glob(value, "veth"),
                "Type" => any_glob(value, "ether"),
                "Virtualization" => match value.strip_prefix('!') {
                    Some(value) => (value == "container") != container,
                    None => (value == "container") == container,
                },
                _ => false,
            })
    }
}

/// Whether one of the words is a pattern for a name, or, after `!`, none is.
fn any_glob(words: &str, name: &str) -> bool {
    let (words, wanted) = match words.strip_prefix('!') {
        Some(words) => (words, false),
        None => (words, true),
    };
    let fits = |pattern: &str| {
        let (Ok(pattern), Ok(name)) = (CString::new(pattern), CString::new(name)) else {
            return false;
        };
        // SAFETY: both are strings that end in a zero.
        unsafe { libc::fnmatch(pattern.as_ptr(), name.as_ptr(), 0) == 0 }
    };
    words.split_whitespace().any(fits) == wanted
}

/// The file for a veth of that name among those of several folders, the highest
/// rank first: the first that fits in the order of names.
pub fn file_for_veth(
    folders: &[PathBuf],
    list: impl Fn(&Path) -> Vec<String>,
    read: impl Fn(&Path) -> Option<Vec<u8>>,
    name: &str,
    container: bool,
) -> Option<(PathBuf, Unit)> {
    let mut files: BTreeMap<String, PathBuf> = BTreeMap::new();
    for folder in folders {
        for file in list(folder) {
            if file.ends_with(".network") {
                let path = folder.join(&file);
                files.entry(file).or_insert(path);
            }
        }
    }
    files.into_iter().find_map(|(file, path)| {
        let mut unit = Unit::default();
        unit.add(&read(&path)?);
        let drop_ins = drop_ins(folders, &format!("{file}.d"), &list);
        for path in drop_ins {
            unit.add(&read(&path).unwrap_or_default());
        }
        unit.is_for_veth(name, container).then_some((path, unit))
    })
}

/// Drop-ins in the order in which they count.
fn drop_ins(folders: &[PathBuf], name: &str, list: impl Fn(&Path) -> Vec<String>) -> Vec<PathBuf> {
    let mut files: BTreeMap<String, PathBuf> = BTreeMap::new();
    for folder in folders {
        let folder = folder.join(name);
        for file in list(&folder) {
            if file.ends_with(".conf") {
                let path = folder.join(&file);
                files.entry(file).or_insert(path);
            }
        }
    }
    files.into_values().collect()
}

#[expect(
    clippy::disallowed_methods,
    reason = "what cannot be read is unknown to `check`, which then says nothing of it"
)]
fn list(folder: &Path) -> Vec<String> {
    let entries = gone::list(folder).unwrap_or_default();
    entries
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect()
}

/// A boolean of systemd; `None` when it is none.
pub fn boolean(text: &str) -> Option<bool> {
    match text.to_lowercase().as_str() {
        "1" | "yes" | "y" | "true" | "t" | "on" => Some(true),
        "0" | "no" | "n" | "false" | "f" | "off" => Some(false),
        _ => None,
    }
}

/// Reads all of it.
#[expect(
    clippy::disallowed_methods,
    reason = "what cannot be read is unknown to `check`, which then says nothing of it"
)]
pub fn read(host: &Host) -> Networkd {
    let folders = FOLDERS.map(PathBuf::from);
    let mut conf = Unit::default();
    let first = folders
        .iter()
        .find_map(|folder| fs::read(folder.join("networkd.conf")).ok());
    conf.add(&first.unwrap_or_default());
    for path in drop_ins(&folders, "networkd.conf.d", list) {
        conf.add(&fs::read(path).unwrap_or_default());
    }
    let manages = |key| conf.last("Network", key).and_then(boolean).unwrap_or(true);
    let network = folders.map(|folder| folder.join("network"));
    Networkd {
        manages_routes: manages("ManageForeignRoutes"),
        manages_rules: manages("ManageForeignRoutingPolicyRules"),
        managed: managed(host, &network),
        routes: foreign_routes().unwrap_or_default(),
        rules: foreign_rules().unwrap_or_default(),
        port_file: port_file(&network),
    }
}

/// Links that networkd has a file for, unless that says that all is to be kept.
#[expect(
    clippy::disallowed_methods,
    reason = "what cannot be read is unknown to `check`, which then says nothing of it"
)]
fn managed(host: &Host, folders: &[PathBuf]) -> BTreeMap<u32, PathBuf> {
    let file = |ifindex: &u32| {
        let state = fs::read_to_string(Path::new(LINKS).join(ifindex.to_string())).ok()?;
        let field = |key: &str| state.lines().find_map(|line| line.strip_prefix(key));
        let path = PathBuf::from(field("NETWORK_FILE=")?);
        let mut unit = Unit::default();
        unit.add(&fs::read(&path).unwrap_or_default());
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        for path in drop_ins(folders, &format!("{name}.d"), list) {
            unit.add(&fs::read(path).unwrap_or_default());
        }
        let keep = unit.last("Network", "KeepConfiguration");
        (keep.and_then(boolean) != Some(true)).then_some(path)
    };
    let links = host.links.keys();
    links
        .filter_map(|ifindex| Some((*ifindex, file(ifindex)?)))
        .collect()
}

fn foreign_routes() -> Result<Vec<ForeignRoute>, crate::net::Error> {
    let mut netlink = Netlink::open()?;
    let mut found = Vec::new();
    for family in [libc::AF_INET, libc::AF_INET6] {
        found.extend(netlink.dump(read::get_routes(family), |message| {
            // `rtm_protocol`.
            let own = OWN_ROUTES.contains(&message.byte(5));
            read::route(&message).filter(|route| !own && !route.refused)
        })?);
    }
    Ok(found)
}

fn foreign_rules() -> Result<BTreeSet<u32>, crate::net::Error> {
    let mut netlink = Netlink::open()?;
    let mut found = BTreeSet::new();
    for family in [libc::AF_INET, libc::AF_INET6] {
        let mut header = [0; RULE_HEADER];
        header[0] = family as u8;
        found.extend(
            netlink.dump(Request::new(libc::RTM_GETRULE, 0, &header), |message| {
                let attr = |wanted| {
                    let mut attrs = message.attrs(RULE_HEADER);
                    attrs.find(|(kind, _)| *kind == wanted)
                };
                let protocol = attr(RULE_PROTOCOL).and_then(|(_, value)| value.first().copied());
                let own = protocol.is_none_or(|protocol| OWN_RULES.contains(&protocol));
                let preference = attr(RULE_PRIORITY).map_or(0, |(_, value)| read_u32(value));
                (!own).then_some(preference)
            })?,
        );
    }
    Ok(found)
}

/// What the file for `ve-*` has that ports should not have.
#[expect(
    clippy::disallowed_methods,
    reason = "what cannot be read is unknown to `check`, which then says nothing of it"
)]
fn port_file(folders: &[PathBuf]) -> Option<PortFile> {
    let read = |path: &Path| fs::read(path).ok();
    let (path, unit) = file_for_veth(folders, list, read, "ve-any", false)?;
    let mut assignments: Vec<String> = Vec::new();
    let mut wrong = |section: &str, key: &str, is_wrong: fn(&str) -> bool| {
        let value = unit.last(section, key).filter(|value| is_wrong(value));
        assignments.extend(value.map(|value| format!("{key}={value}")));
    };
    wrong("Network", "Address", |value| !value.is_empty());
    wrong("Network", "DHCPServer", |value| {
        boolean(value) == Some(true)
    });
    wrong("Network", "IPMasquerade", |value| {
        !value.is_empty() && boolean(value) != Some(false)
    });
    wrong("Network", "LinkLocalAddressing", gives_ipv4_link_local);
    (!assignments.is_empty()).then_some(PortFile { path, assignments })
}

/// Whether `LinkLocalAddressing=` gives an IPv4 link-local address.
pub fn gives_ipv4_link_local(value: &str) -> bool {
    value == "ipv4" || boolean(value) == Some(true)
}
