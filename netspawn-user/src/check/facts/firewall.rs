//! The host's firewall: chains of nftables, tables of the older iptables.

use std::{
    io::Read as _,
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use serde_json::Value;

use crate::net::firewall as kernel;

/// How long a tool of the firewall may take.
const LIMIT: Duration = Duration::from_secs(5);
/// What container engines call the chains that they jump to, and the bridges that
/// their rules are about.
const ENGINES: [&str; 12] = [
    "DOCKER", "KUBE-", "CNI-", "LIBVIRT_", "NETAVARK", "docker", "br-", "virbr", "cni", "podman",
    "incusbr", "lxdbr",
];

/// A base chain.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Chain {
    /// `ip`, `ip6`, `inet` or `netdev`.
    pub family: String,
    /// Its table.
    pub table: String,
    /// Its name.
    pub name: String,
    /// `filter`, `nat` or `route`; empty where it could not be told.
    pub kind: String,
    /// The hook that it is on.
    pub hook: String,
    /// The interfaces that it is for, of the family `netdev`.
    pub devices: Vec<String>,
    /// Whether it drops what no rule decides.
    pub drops: bool,
    /// Rules in it, without those of container engines.
    pub rules: usize,
    /// Whether one of its own rules drops or rejects.
    pub refuses: bool,
}

/// A table of the older iptables.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LegacyTable {
    /// The command that names it, such as `iptables -t filter`.
    pub name: String,
    /// Rules in its chains for forwarded packets, without those of container
    /// engines; `None` where its tool is not there.
    pub rules: Option<usize>,
}

/// The firewall.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Firewall {
    /// Base chains of nftables.
    pub chains: Vec<Chain>,
    /// Words of all rules of nftables: addresses and names of interfaces among them.
    pub words: Vec<String>,
    /// Tables of the older iptables that are loaded.
    pub legacy: Vec<LegacyTable>,
}

/// Reads it; `None` when the kernel does not tell.
#[expect(
    clippy::disallowed_methods,
    reason = "what cannot be read is unknown to `check`, which then says nothing of it"
)]
pub fn read() -> Option<Firewall> {
    let chains = kernel::chains().ok()?;
    let mut firewall = match output_of(Command::new("nft").args(["-j", "list", "ruleset"])) {
        Some(text) => parse(&serde_json::from_str(&text).ok()?),
        None => Firewall {
            chains: chains.iter().map(told_by_netlink).collect(),
            ..Firewall::default()
        },
    };
    for chain in &mut firewall.chains {
        // nftables before 1.0.7 leaves the interfaces out of JSON.
        let is = |other: &&kernel::Chain| {
            (other.family, &other.table, &other.name)
                == (chain.family.as_str(), &chain.table, &chain.name)
        };
        if let Some(told) = chains.iter().find(is) {
            chain.devices.clone_from(&told.devices);
        }
    }
    for name in kernel::legacy_tables() {
        let (tool, table) = name.split_once(" -t ")?;
        let save = format!("{tool}-legacy-save");
        let rules = output_of(Command::new(save).args(["-t", table]));
        firewall.legacy.push(LegacyTable {
            rules: rules.map(|text| saved_rules(&text)),
            name,
        });
    }
    Some(firewall)
}

/// What netlink tells without the tool.
fn told_by_netlink(chain: &kernel::Chain) -> Chain {
    Chain {
        family: chain.family.to_owned(),
        table: chain.table.clone(),
        name: chain.name.clone(),
        hook: chain.hook.to_owned(),
        drops: chain.drops,
        rules: chain.rules as usize,
        // Whether they do is not known.
        refuses: chain.rules > 0,
        ..Chain::default()
    }
}

/// Reads what `nft -j list ruleset` prints.
pub fn parse(ruleset: &Value) -> Firewall {
    let mut firewall = Firewall::default();
    let objects = ruleset["nftables"].as_array();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    for object in objects.into_iter().flatten() {
        let chain = &object["chain"];
        if chain["hook"].is_string() {
            firewall.chains.push(Chain {
                family: text(&chain["family"]),
                table: text(&chain["table"]),
                name: text(&chain["name"]),
                kind: text(&chain["type"]),
                hook: text(&chain["hook"]),
                drops: chain["policy"] == "drop",
                ..Chain::default()
            });
        }
    }
    for object in objects.into_iter().flatten() {
        let rule = &object["rule"];
        let found = words(&rule["expr"]);
        let engine = |word: &String| ENGINES.iter().any(|prefix| word.starts_with(prefix));
        if rule.is_object() && !found.iter().any(engine) {
            let own = |chain: &&mut Chain| {
                rule["family"] == chain.family.as_str()
                    && rule["table"] == chain.table.as_str()
                    && rule["chain"] == chain.name.as_str()
            };
            if let Some(chain) = firewall.chains.iter_mut().find(own) {
                chain.rules += 1;
                let expressions = rule["expr"].as_array().into_iter().flatten();
                chain.refuses |= expressions
                    .filter_map(Value::as_object)
                    .any(|part| part.contains_key("drop") || part.contains_key("reject"));
            }
            firewall.words.extend(found);
        }
    }
    firewall
}

/// All strings in a value, prefixes as they are written.
fn words(value: &Value) -> Vec<String> {
    match value {
        Value::String(text) => vec![text.clone()],
        Value::Array(items) => items.iter().flat_map(words).collect(),
        Value::Object(fields) => {
            let prefix = &fields.get("prefix").unwrap_or(&Value::Null);
            if let (Some(address), Some(length)) = (prefix["addr"].as_str(), prefix["len"].as_u64())
            {
                return vec![format!("{address}/{length}")];
            }
            fields.values().flat_map(words).collect()
        }
        _ => Vec::new(),
    }
}

/// How many rules for forwarded packets `iptables-legacy-save` has printed,
/// without those of container engines.
pub fn saved_rules(text: &str) -> usize {
    text.lines()
        .filter(|line| {
            let mut words = line.split_whitespace();
            let chain = words.next().filter(|word| *word == "-A").and(words.next());
            matches!(chain, Some("FORWARD" | "PREROUTING" | "POSTROUTING"))
                && !words.any(|word| ENGINES.iter().any(|prefix| word.starts_with(prefix)))
        })
        .count()
}

/// What a tool prints; `None` when it is not there, fails, or takes too long.
#[expect(
    clippy::disallowed_methods,
    reason = "what cannot be read is unknown to `check`, which then says nothing of it"
)]
fn output_of(command: &mut Command) -> Option<String> {
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .ok()?;
    let mut stdout = child.stdout.take()?;
    let reader = thread::spawn(move || {
        let mut text = String::new();
        stdout.read_to_string(&mut text).map(|_| text)
    });
    let deadline = Instant::now() + LIMIT;
    while !reader.is_finished() && Instant::now() < deadline {
        thread::sleep(Duration::from_millis(2));
    }
    if !reader.is_finished() {
        // It is waited for below, and its output is not of use any more.
        let _ = child.kill();
    }
    let status = child.wait().ok()?;
    let text = reader.join().ok()?.ok()?;
    status.success().then_some(text)
}
