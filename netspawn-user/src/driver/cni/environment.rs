//! What a runtime says in environment variables.

use std::path::PathBuf;

use super::error::{Error, code};
use crate::fields;

/// Longest name of an interface.
const IFNAME: usize = 15;

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// Connect a container.
    Add,
    /// Disconnect it.
    Del,
    /// Say whether it is connected.
    Check,
    /// Say whether containers can be connected.
    Status,
    /// Say which versions are spoken.
    Version,
    /// Remove what containers have left behind.
    Gc,
}

impl Command {
    /// All of them, as they are written.
    pub const ALL: [(&'static str, Command); 6] = [
        ("ADD", Command::Add),
        ("DEL", Command::Del),
        ("CHECK", Command::Check),
        ("STATUS", Command::Status),
        ("VERSION", Command::Version),
        ("GC", Command::Gc),
    ];

    /// As it is written.
    pub fn name(self) -> &'static str {
        let (name, _) = Command::ALL
            .into_iter()
            .find(|(_, command)| *command == self)
            .unwrap_or(("", self));
        name
    }
}

/// An interface of a container, which is what is added and deleted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// The runtime's id of the container.
    pub container: String,
    /// Name of the interface in the container.
    pub ifname: String,
    /// The container's network namespace; DEL may come without.
    pub netns: Option<PathBuf>,
    /// `CNI_ARGS` as they came.
    pub args: String,
}

impl Target {
    /// A value in `CNI_ARGS`.
    pub fn arg(&self, key: &str) -> Option<&str> {
        self.args
            .split(';')
            .filter_map(|pair| pair.split_once('='))
            .find(|(name, _)| *name == key)
            .map(|(_, value)| value)
    }
}

/// The variables, as far as they have to be right for a command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Environment {
    /// What is to be done.
    pub command: Command,
    /// To which interface; for ADD, DEL and CHECK.
    pub target: Option<Target>,
    /// `CNI_PATH` as it came: the folders of plugins.
    pub path: String,
}

impl Environment {
    /// Reads and checks them.
    ///
    /// # Errors
    /// When one is missing or wrong, with the names of all that are.
    pub fn read(get: impl Fn(&str) -> Option<String>) -> Result<Self, Error> {
        let get = |name: &str| get(name).unwrap_or_default();
        let text = get("CNI_COMMAND");
        let named = Command::ALL.into_iter().find(|(name, _)| *name == text);
        let Some((_, command)) = named else {
            let known = Command::ALL.map(|(name, _)| name).join(", ");
            return Err(Error::new(
                code::ENVIRONMENT,
                format!("CNI_COMMAND is {text:?}"),
                format!("expected one of {known}"),
            ));
        };
        let mut wrong = Vec::new();
        let target = match command {
            Command::Add | Command::Check | Command::Del => Some(Target {
                container: get("CNI_CONTAINERID"),
                ifname: get("CNI_IFNAME"),
                netns: Some(get("CNI_NETNS"))
                    .filter(|path| !path.is_empty())
                    .map(PathBuf::from),
                args: get("CNI_ARGS"),
            }),
            Command::Status | Command::Version | Command::Gc => None,
        };
        if let Some(target) = &target {
            if !is_container_id(&target.container) {
                wrong.push(format!(
                    "CNI_CONTAINERID is {:?}, not letters, digits, `_`, `.`, `-`, the first of \
                     them a letter or digit",
                    target.container
                ));
            }
            if target.ifname.len() > IFNAME || fields::interface_name(&target.ifname).is_err() {
                wrong.push(format!(
                    "CNI_IFNAME is {:?}, not the name of an interface, which has {IFNAME} bytes \
                     at most",
                    target.ifname
                ));
            }
            if target.netns.is_none() && command != Command::Del {
                wrong.push("CNI_NETNS is missing, the path of the network namespace".to_owned());
            }
            let pairs = target.args.split(';').filter(|pair| !pair.is_empty());
            for pair in pairs.filter(|pair| !pair.contains('=')) {
                wrong.push(format!("CNI_ARGS has {pair:?}, not a KEY=VALUE"));
            }
        }
        let path = get("CNI_PATH");
        if path.is_empty() && command == Command::Gc {
            wrong.push("CNI_PATH is missing, the folders of plugins".to_owned());
        }
        if wrong.is_empty() {
            return Ok(Environment {
                command,
                target,
                path,
            });
        }
        Err(Error::new(
            code::ENVIRONMENT,
            "invalid environment variables",
            wrong.join("; "),
        ))
    }
}

fn is_container_id(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(pairs: &[(&str, &str)]) -> Result<Environment, Error> {
        Environment::read(|name| {
            let found = pairs.iter().find(|(key, _)| *key == name);
            found.map(|(_, value)| (*value).to_owned())
        })
    }

    const ADD: [(&str, &str); 5] = [
        ("CNI_COMMAND", "ADD"),
        ("CNI_CONTAINERID", "abc_1.2-3"),
        ("CNI_IFNAME", "eth0"),
        ("CNI_NETNS", "/run/netns/a"),
        ("CNI_ARGS", "IgnoreUnknown=1;K8S_POD_NAME=web=1"),
    ];

    /// The variables of ADD with one other value.
    fn with(name: &str, value: &str) -> Result<Environment, Error> {
        let mut pairs = ADD.to_vec();
        pairs.retain(|(key, _)| *key != name);
        pairs.push((name, value));
        read(&pairs)
    }

    #[test]
    fn what_is_right_is_taken() {
        let target = read(&ADD).unwrap().target.unwrap();
        assert_eq!(target.arg("K8S_POD_NAME"), Some("web=1"));
        assert_eq!(target.arg("K8S_POD_NAMESPACE"), None);
        assert!(with("CNI_ARGS", "").is_ok());
        for command in ["STATUS", "VERSION"] {
            assert!(read(&[("CNI_COMMAND", command)]).is_ok(), "{command}");
        }
        let del: Vec<_> = [("CNI_COMMAND", "DEL")]
            .into_iter()
            .chain(ADD[1..3].iter().copied())
            .collect();
        assert!(read(&del).unwrap().target.unwrap().netns.is_none());
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (name, value) in [
            ("CNI_COMMAND", ""),
            ("CNI_COMMAND", "add"),
            ("CNI_CONTAINERID", ""),
            ("CNI_CONTAINERID", "-a"),
            ("CNI_CONTAINERID", "a/b"),
            ("CNI_IFNAME", ""),
            ("CNI_IFNAME", "a-name-too-long1"),
            ("CNI_IFNAME", ".."),
            ("CNI_IFNAME", "a:b"),
            ("CNI_IFNAME", "a b"),
            ("CNI_IFNAME", "a/b"),
            ("CNI_NETNS", ""),
            ("CNI_ARGS", "A=1;B"),
        ] {
            let error = with(name, value).unwrap_err();
            assert_eq!(error.code, code::ENVIRONMENT);
            assert!(error.to_string().contains(name), "{name}={value}: {error}");
        }
        let error = read(&[("CNI_COMMAND", "ADD")]).unwrap_err().to_string();
        for name in ["CNI_CONTAINERID", "CNI_IFNAME", "CNI_NETNS"] {
            assert!(error.contains(name), "{error}");
        }
        let error = read(&[("CNI_COMMAND", "GC")]).unwrap_err().to_string();
        assert!(error.contains("CNI_PATH"), "{error}");
    }
}
