//! `CONFIGDIR/netspawn.toml`: defaults for the options of `attach`, and policy.
//!
//! `packaging/netspawn.toml` has every key with its default.
//!
//! The command line wins over the file. `attach` refuses to start with a file
//! that has a fault, because the fault may be in the policy; an agent that is
//! running goes on with the policy it has.

use std::{collections::BTreeSet, path::Path, time::Duration};

use ipnet::IpNet;
use netspawn_ebpf::abi::{DEFAULT_MAX_ADDRESSES, DEFAULT_MAX_MACHINES, settings_flag};

use crate::{
    cli::{AttachArgs, Mode},
    document::{self, Document, Value},
    fields,
    metrics::Address,
    outcome::Usage,
    problem::{Fault, Problem, did_you_mean},
    source::Source,
};

/// Name of the file in CONFIGDIR.
pub const FILE: &str = "netspawn.toml";

/// What happens between machines of different tenants.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Isolation {
    /// Dropped.
    #[default]
    Drop,
    /// Delivered as if it came from outside.
    Route,
}

/// Whether machines reach the host.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum HostAccess {
    /// They do.
    #[default]
    Allow,
    /// They don't, but for the gateway's ARP, NDP and ping.
    Deny,
}

/// `[policy]`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Policy {
    /// `isolation`.
    pub isolation: Isolation,
    /// `host`.
    pub host: HostAccess,
    /// `via-host`: what machines send there is the host's stack's to handle.
    pub via_host: Vec<IpNet>,
}

impl Policy {
    /// Its [`settings_flag`] bits.
    pub fn flags(&self) -> u32 {
        let mut flags = 0;
        if self.isolation == Isolation::Route {
            flags |= settings_flag::ISOLATION_ROUTE;
        }
        if self.host == HostAccess::Deny {
            flags |= settings_flag::HOST_DENY;
        }
        flags
    }
}

/// `[attach]`: what the command line leaves open.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AttachDefaults {
    /// `uplinks`.
    pub uplinks: Vec<String>,
    /// `mode`.
    pub mode: Option<Mode>,
    /// `source`.
    pub source: Option<Vec<Source>>,
    /// `metrics`.
    pub metrics: Option<Address>,
    /// `max-machines`.
    pub max_machines: Option<u32>,
    /// `max-addresses`.
    pub max_addresses: Option<u32>,
}

/// The whole file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Config {
    /// `[attach]`.
    pub attach: AttachDefaults,
    /// `[policy]`.
    pub policy: Policy,
}

impl Config {
    /// Reads `CONFIGDIR/netspawn.toml`; without one, everything has its
    /// default.
    ///
    /// # Errors
    /// Everything that is wrong in the file.
    pub fn load(config_dir: &Path) -> Result<Config, Vec<Problem>> {
        let path = config_dir.join(FILE);
        match document::read(&path).map_err(|problem| vec![problem])? {
            Some(text) => Config::parse(&path, &text),
            None => Ok(Config::default()),
        }
    }

    /// Reads the text of the file, whose path is for messages.
    ///
    /// # Errors
    /// Everything that is wrong in it.
    pub fn parse(path: &Path, text: &str) -> Result<Config, Vec<Problem>> {
        let mut config = Config::default();
        let (mut document, table) = Document::parse(path, text);
        for (key, value) in &table {
            match key.get_ref().as_ref() {
                "attach" => config.attach = attach(&mut document, value),
                "policy" => config.policy = policy(&mut document, value),
                other => {
                    document.unknown(other, key.span(), other, &["attach", "policy"]);
                }
            }
        }
        match document.into_problems() {
            problems if problems.is_empty() => Ok(config),
            problems => Err(problems),
        }
    }
}

/// Keys of `[attach]`.
const ATTACH_KEYS: &[&str] = &[
    "uplinks",
    "mode",
    "source",
    "metrics",
    "max-machines",
    "max-addresses",
];
/// Keys of `[policy]`.
const POLICY_KEYS: &[&str] = &["isolation", "host", "via-host"];

fn attach<'t>(document: &mut Document<'t>, section: &Value<'t>) -> AttachDefaults {
    let mut defaults = AttachDefaults::default();
    let Some(table) = document.table("attach", section) else {
        return defaults;
    };
    for (key, value) in table {
        let name = key.get_ref().as_ref();
        let field = format!("attach.{name}");
        match name {
            "uplinks" => {
                defaults.uplinks = document
                    .some_strings(
                        &field,
                        value,
                        "uplinks = [\"eth0\"]",
                        fields::interface_name,
                    )
                    .unwrap_or_default();
            }
            "mode" => {
                let modes = [("auto", Mode::Auto), ("tc", Mode::Tc), ("xdp", Mode::Xdp)];
                defaults.mode = document.string(&field, value, "mode = \"auto\"", |text| {
                    one_of(text, &modes)
                });
            }
            "source" => {
                defaults.source = document.some_strings(
                    &field,
                    value,
                    "source = [\"files\", \"machined\"]",
                    str::parse,
                );
            }
            "metrics" => {
                let example = "metrics = \"127.0.0.1:9469\"";
                defaults.metrics = document.string(&field, value, example, str::parse);
            }
            "max-machines" => {
                defaults.max_machines =
                    document.integer(&field, value, "max-machines = 16384", count);
            }
            "max-addresses" => {
                defaults.max_addresses =
                    document.integer(&field, value, "max-addresses = 131072", count);
            }
            _ => document.unknown(&field, key.span(), name, ATTACH_KEYS),
        }
    }
    defaults
}

fn policy<'t>(document: &mut Document<'t>, section: &Value<'t>) -> Policy {
    let mut policy = Policy::default();
    let Some(table) = document.table("policy", section) else {
        return policy;
    };
    for (key, value) in table {
        let name = key.get_ref().as_ref();
        let field = format!("policy.{name}");
        match name {
            "isolation" => {
                let known = [("drop", Isolation::Drop), ("route", Isolation::Route)];
                policy.isolation = document
                    .string(&field, value, "isolation = \"drop\"", |text| {
                        one_of(text, &known)
                    })
                    .unwrap_or_default();
            }
            "host" => {
                let known = [("allow", HostAccess::Allow), ("deny", HostAccess::Deny)];
                policy.host = document
                    .string(&field, value, "host = \"allow\"", |text| {
                        one_of(text, &known)
                    })
                    .unwrap_or_default();
            }
            "via-host" => {
                policy.via_host = document
                    .strings(
                        &field,
                        value,
                        "via-host = [\"10.96.0.0/16\"]",
                        fields::prefix,
                    )
                    .unwrap_or_default();
            }
            _ => document.unknown(&field, key.span(), name, POLICY_KEYS),
        }
    }
    policy
}

fn one_of<T: Copy>(text: &str, known: &[(&str, T)]) -> Result<T, Fault> {
    known
        .iter()
        .find(|(name, _)| *name == text)
        .map(|(_, value)| *value)
        .ok_or_else(|| {
            let names: Vec<&str> = known.iter().map(|(name, _)| *name).collect();
            Fault::new(
                format!("{text:?} is not one of {}", names.join(", ")),
                did_you_mean(text, &names),
            )
        })
}

/// A size of maps: at least one entry, and no more than the kernel could hold.
#[expect(
    clippy::disallowed_methods,
    reason = "this parses text or bytes; no system call can fail here"
)]
fn count(number: i64) -> Result<u32, Fault> {
    u32::try_from(number)
        .ok()
        .filter(|n| (1..=MAX_ENTRIES).contains(n))
        .ok_or_else(|| {
            Fault::new(
                format!("{number} is out of range"),
                format!("write a number from 1 to {MAX_ENTRIES}"),
            )
        })
}

/// Upper bound of `--max-machines` and `--max-addresses`.
pub const MAX_ENTRIES: u32 = 1 << 24;

/// What `attach` is to do: its command line, with the file's defaults.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AttachSettings {
    /// Names of uplinks, at least one, none twice.
    pub uplinks: Vec<String>,
    /// `--mode`.
    pub mode: Mode,
    /// `--source`.
    pub sources: BTreeSet<Source>,
    /// `--metrics`.
    pub metrics: Option<Address>,
    /// `--max-machines`.
    pub max_machines: u32,
    /// `--max-addresses`.
    pub max_addresses: u32,
    /// `--once`.
    pub once: bool,
    /// `--dry-run`.
    pub dry_run: bool,
    /// `--revert-after`.
    pub revert_after: Option<Duration>,
}

impl AttachSettings {
    /// Merges the two.
    ///
    /// # Errors
    /// When neither names an uplink, or one is named twice.
    pub fn new(args: &AttachArgs, defaults: &AttachDefaults) -> Result<Self, Usage> {
        let uplinks = if args.uplinks.is_empty() {
            &defaults.uplinks
        } else {
            &args.uplinks
        };
        if uplinks.is_empty() {
            return Err(Usage(
                "no uplink is given; name the interface that faces the network, for instance \
                 `netspawn-xdp attach eth0`"
                    .to_owned(),
            ));
        }
        for (index, name) in uplinks.iter().enumerate() {
            if uplinks[..index].contains(name) {
                return Err(Usage(format!("uplink {name} is given twice; name it once")));
            }
        }
        Ok(AttachSettings {
            uplinks: uplinks.clone(),
            mode: args.mode.or(defaults.mode).unwrap_or_default(),
            sources: args
                .source
                .as_ref()
                .or(defaults.source.as_ref())
                .map_or_else(
                    || Source::DEFAULT.into(),
                    |named| named.iter().copied().collect(),
                ),
            metrics: args
                .metrics
                .as_ref()
                .or(defaults.metrics.as_ref())
                .filter(|place| **place != Address::Off)
                .cloned(),
            max_machines: args
                .max_machines
                .or(defaults.max_machines)
                .unwrap_or(DEFAULT_MAX_MACHINES),
            max_addresses: args
                .max_addresses
                .or(defaults.max_addresses)
                .unwrap_or(DEFAULT_MAX_ADDRESSES),
            once: args.once,
            dry_run: args.dry_run,
            revert_after: args.revert_after,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Config, Vec<String>> {
        Config::parse(Path::new("netspawn.toml"), text)
            .map_err(|problems| problems.iter().map(Problem::to_string).collect())
    }

    #[test]
    fn empty_file_is_all_defaults() {
        assert_eq!(parse("").unwrap(), Config::default());
        assert_eq!(parse("[attach]\n[policy]\n").unwrap(), Config::default());
    }

    #[test]
    fn every_key_is_read() {
        let config = parse(
            "[attach]\nuplinks = [\"eth0\", \"eth1\"]\nmode = \"tc\"\nsource = [\"files\"]\n\
             metrics = \"unix:/run/metrics.sock\"\nmax-machines = 10\nmax-addresses = 20\n\
             [policy]\nisolation = \"route\"\nhost = \"deny\"\n\
             via-host = [\"10.96.0.0/16\", \"fd00:96::/112\"]\n",
        )
        .unwrap();
        assert_eq!(config.attach.uplinks, ["eth0", "eth1"]);
        assert_eq!(config.attach.mode, Some(Mode::Tc));
        assert_eq!(config.attach.source, Some(vec![Source::Files]));
        assert_eq!(
            config.attach.metrics,
            Some(Address::Unix("/run/metrics.sock".into()))
        );
        assert_eq!(config.attach.max_machines, Some(10));
        assert_eq!(config.attach.max_addresses, Some(20));
        assert_eq!(
            config.policy.flags(),
            settings_flag::ISOLATION_ROUTE | settings_flag::HOST_DENY
        );
        let via_host = ["10.96.0.0/16", "fd00:96::/112"].map(|text| text.parse().unwrap());
        assert_eq!(config.policy.via_host, via_host);
    }

    #[test]
    fn packaged_file_has_every_key_with_its_default() {
        let packaged = include_str!("../../packaging/netspawn.toml");
        assert_eq!(parse(packaged).unwrap(), Config::default());
        let text = document::uncommented(packaged);
        let keys: Vec<&str> = text
            .lines()
            .filter(|line| !line.starts_with('#'))
            .filter_map(|line| Some(line.split_once(" = ")?.0))
            .collect();
        assert_eq!(keys, [ATTACH_KEYS, POLICY_KEYS].concat());
        let config = parse(&text).unwrap();
        assert_eq!(config.policy, Policy::default());
        let set = AttachSettings::new(&AttachArgs::default(), &config.attach).unwrap();
        let uplinks = AttachArgs {
            uplinks: vec!["eth0".to_owned()],
            ..AttachArgs::default()
        };
        let default = AttachSettings::new(&uplinks, &AttachDefaults::default()).unwrap();
        assert_eq!(set, default);
    }

    #[test]
    fn all_faults_are_reported_with_line_and_key() {
        let problems = parse(
            "[atach]\n[policy]\nisolation = \"rout\"\nhots = \"deny\"\n\
             [attach]\nmax-machines = 0\nuplinks = \"eth0\"\nmode = 3\n",
        )
        .unwrap_err();
        assert_eq!(
            problems,
            [
                "netspawn.toml:1: atach: unknown key; did you mean `attach`?",
                "netspawn.toml:3: policy.isolation: \"rout\" is not one of drop, route; did you mean `route`?",
                "netspawn.toml:4: policy.hots: unknown key; did you mean `host`?",
                "netspawn.toml:6: attach.max-machines: 0 is out of range; write a number from 1 to 16777216",
                "netspawn.toml:7: attach.uplinks: expected a list of strings, found a string; write uplinks = [\"eth0\"]",
                "netspawn.toml:8: attach.mode: expected a string, found a number; write mode = \"auto\"",
            ]
        );
    }

    #[test]
    fn command_line_wins_over_file() {
        let defaults = AttachDefaults {
            uplinks: vec!["eth0".to_owned()],
            mode: Some(Mode::Tc),
            max_machines: Some(5),
            ..AttachDefaults::default()
        };
        let mut args = AttachArgs::default();
        let settings = AttachSettings::new(&args, &defaults).unwrap();
        assert_eq!(settings.uplinks, ["eth0"]);
        assert_eq!(settings.mode, Mode::Tc);
        assert_eq!(settings.max_machines, 5);
        assert_eq!(settings.max_addresses, DEFAULT_MAX_ADDRESSES);
        args.uplinks = vec!["eth1".to_owned()];
        args.mode = Some(Mode::Xdp);
        let settings = AttachSettings::new(&args, &defaults).unwrap();
        assert_eq!(settings.uplinks, ["eth1"]);
        assert_eq!(settings.mode, Mode::Xdp);
    }

    #[test]
    fn no_uplink_is_a_usage_error() {
        assert!(AttachSettings::new(&AttachArgs::default(), &AttachDefaults::default()).is_err());
    }
}
