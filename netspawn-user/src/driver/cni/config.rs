//! The network configuration that a runtime writes to stdin.

use ipnet::IpNet;
use netspawn_ebpf::wire::Mac;
use serde::Deserialize;
use serde_json::Value;

use super::{
    environment::{Command, Target},
    error::{Error, code},
    result::{self, Dns},
    version::Version,
};
use crate::fields;

/// Smallest and largest MTU of a veth, in bytes.
const MTU: std::ops::RangeInclusive<u32> = 68..=65535;
/// The smallest with which IPv6 works (RFC 8200 5).
const MTU6: u32 = 1280;

/// The configuration, checked. Keys that are not ours are other plugins'.
#[derive(Clone, Debug)]
pub struct Config {
    /// The version to speak.
    pub version: Version,
    /// Name of the network.
    pub name: String,
    /// The plugin that gives addresses.
    pub ipam: Option<String>,
    /// What containers are told of name servers.
    pub dns: Dns,
    /// MTU of links; that of the uplinks without one.
    pub mtu: Option<u32>,
    /// Tenant of all containers of the network.
    pub tenant: Option<String>,
    /// Link-layer address that the runtime wants for this container.
    pub mac: Option<Mac>,
    /// Addresses that the runtime wants for this container.
    pub ips: Vec<IpNet>,
    /// Result of the plugin before, or of the ADD that is looked at.
    pub previous: Option<Value>,
    /// Containers that there still are, for GC.
    pub valid: Vec<Valid>,
    /// As it was read, for the plugin that gives addresses.
    pub raw: Value,
}

/// A container that there still is.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Valid {
    /// The runtime's id of it.
    #[serde(rename = "containerID")]
    pub container: String,
    /// Name of the interface in it.
    pub ifname: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Keys {
    name: Option<String>,
    ipam: Option<Ipam>,
    dns: Option<Dns>,
    mtu: Option<u32>,
    tenant: Option<String>,
    #[serde(default)]
    ip_masq: bool,
    #[serde(default)]
    runtime_config: PerContainer,
    #[serde(default)]
    args: Args,
    #[serde(rename = "cni.dev/valid-attachments")]
    valid: Option<Vec<Valid>>,
    /// The same as the specification has called it by mistake, and some write.
    #[serde(rename = "cni.dev/attachments")]
    attachments: Option<Vec<Valid>>,
}

#[derive(Deserialize)]
struct Ipam {
    #[serde(default, rename = "type")]
    kind: String,
}

#[derive(Default, Deserialize)]
struct Args {
    #[serde(default)]
    cni: PerContainer,
}

/// What a runtime wants for one container, by either convention.
#[derive(Default, Deserialize)]
struct PerContainer {
    mac: Option<String>,
    #[serde(default)]
    ips: Vec<String>,
}

/// The version that a configuration is written in. Without one it is older than all
/// that are spoken here.
///
/// # Errors
/// When it is no JSON, or of a version that is not spoken.
pub fn version(stdin: &[u8]) -> Result<Version, Error> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Versioned {
        #[serde(default)]
        cni_version: String,
    }
    let config = serde_json::from_slice(stdin).map_err(not_understood)?;
    let Versioned { cni_version } = result::decode(&config).map_err(not_understood)?;
    let text = if cni_version.is_empty() {
        "0.1.0"
    } else {
        &cni_version
    };
    text.parse()
}

fn not_understood(error: serde_json::Error) -> Error {
    Error::new(
        code::DECODE,
        format!("the network configuration on stdin is not understood: {error}"),
        "",
    )
}

impl Config {
    /// Reads and checks it.
    ///
    /// # Errors
    /// When it is no JSON, of a version that is not spoken or does not have the
    /// command, or wrong.
    pub fn read(stdin: &[u8], command: Command, target: Option<&Target>) -> Result<Self, Error> {
        let version = version(stdin)?;
        let since = match command {
            Command::Check => Version::V0_4_0,
            Command::Gc | Command::Status => Version::V1_1_0,
            Command::Add | Command::Del | Command::Version => Version::V0_3_0,
        };
        if version < since {
            return Err(Error::new(
                code::VERSION,
                format!("incompatible CNI version {:?}", version.name()),
                format!("{} is there since {}", command.name(), since.name()),
            ));
        }
        let raw: Value = serde_json::from_slice(stdin).map_err(not_understood)?;
        let keys: Keys = result::decode(&raw).map_err(not_understood)?;
        let name = keys.name.unwrap_or_default();
        if !is_network(&name) {
            return Err(Error::config(
                format!("name {name:?} is not the name of a network"),
                "use letters, digits, `_`, `.`, `-`, the first of them a letter or digit",
            ));
        }
        if keys.ip_masq {
            return Err(Error::new(
                code::UNSUPPORTED,
                "unsupported field ipMasq: true",
                "containers have addresses of their own, which nothing translates; leave it away",
            ));
        }
        let ipam = keys
            .ipam
            .map(|ipam| ipam.kind)
            .filter(|kind| !kind.is_empty());
        if let Some(kind) = ipam.as_deref().filter(|kind| kind.contains('/')) {
            return Err(Error::config(
                format!("ipam.type {kind:?} is a path"),
                "write the file's name; it is looked for in CNI_PATH",
            ));
        }
        if let Some(mtu) = keys.mtu.filter(|mtu| *mtu != 0 && !MTU.contains(mtu)) {
            return Err(Error::config(
                format!("mtu {mtu} is out of range"),
                format!(
                    "write {} to {} bytes, {MTU6} at least for IPv6, or leave it away for that \
                     of the uplink",
                    MTU.start(),
                    MTU.end()
                ),
            ));
        }
        let fault = |key: &str, fault: crate::problem::Fault| {
            Error::config(format!("{key}: {}", fault.message), fault.remedy)
        };
        let tenant = keys.tenant.map(|text| fields::tenant(&text)).transpose();
        let mac = keys
            .runtime_config
            .mac
            .or(keys.args.cni.mac)
            .or_else(|| Some(target?.arg("MAC")?.to_owned()))
            .map(|text| fields::mac(&text))
            .transpose();
        let ips = [keys.runtime_config.ips, keys.args.cni.ips]
            .into_iter()
            .find(|ips| !ips.is_empty())
            .unwrap_or_default();
        Ok(Config {
            version,
            name,
            ipam,
            dns: keys.dns.unwrap_or_default(),
            mtu: keys.mtu.filter(|mtu| *mtu != 0),
            tenant: tenant.map_err(|error| fault("tenant", error))?,
            mac: mac.map_err(|error| fault("mac", error))?,
            ips: ips
                .iter()
                .map(|text| result::cidr(text))
                .collect::<Result<_, _>>()?,
            previous: Some(&raw["prevResult"])
                .filter(|value| !value.is_null())
                .cloned(),
            valid: keys.valid.or(keys.attachments).unwrap_or_default(),
            raw,
        })
    }
}

fn is_network(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-'))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::driver::cni::link::Plan;

    fn read(config: &Value, command: Command) -> Result<Config, Error> {
        let target = Target {
            container: "a".to_owned(),
            ifname: "eth0".to_owned(),
            netns: None,
            args: "MAC=02:00:00:00:00:01".to_owned(),
        };
        Config::read(config.to_string().as_bytes(), command, Some(&target))
    }

    fn config(version: &str) -> Value {
        json!({"cniVersion": version, "name": "public", "type": "netspawn-cni"})
    }

    #[test]
    fn versions_have_their_commands() {
        use Command::{Add, Check, Del, Gc, Status};
        for (version, commands) in [
            ("0.1.0", &[][..]),
            ("0.2.0", &[]),
            ("0.3.0", &[Add, Del]),
            ("0.3.1", &[Add, Del]),
            ("0.4.0", &[Add, Del, Check]),
            ("1.0.0", &[Add, Del, Check]),
            ("1.1.0", &[Add, Del, Check, Gc, Status]),
            ("2.0.0", &[]),
        ] {
            for command in [Add, Del, Check, Gc, Status] {
                let outcome = read(&config(version), command);
                if commands.contains(&command) {
                    assert!(outcome.is_ok(), "{version} {command:?}");
                } else {
                    assert_eq!(
                        outcome.unwrap_err().code,
                        code::VERSION,
                        "{version} {command:?}"
                    );
                }
            }
        }
        let mut none = config("1.0.0");
        none["cniVersion"].take();
        assert_eq!(read(&none, Command::Add).unwrap_err().code, code::VERSION);
        let none = json!({"name": "public"});
        assert_eq!(read(&none, Command::Add).unwrap_err().code, code::VERSION);
        for text in ["", "{", "3", "[\"1.0.0\"]", "[\"1.0.0\", \"public\"]"] {
            let error = Config::read(text.as_bytes(), Command::Add, None).unwrap_err();
            assert_eq!(error.code, code::DECODE, "{text}");
        }
    }

    #[test]
    fn null_is_as_nothing() {
        let mut config = config("1.1.0");
        for key in [
            "runtimeConfig",
            "args",
            "ipam",
            "ipMasq",
            "dns",
            "mtu",
            "tenant",
            "prevResult",
            "cni.dev/valid-attachments",
        ] {
            config[key] = Value::Null;
        }
        assert!(read(&config, Command::Gc).is_ok());
        config["args"] = json!({"cni": {"ips": null}});
        config["dns"] = json!({"nameservers": null, "domain": null});
        assert!(read(&config, Command::Add).is_ok());
    }

    #[test]
    fn containers_that_there_are_have_either_name() {
        let mut config = config("1.1.0");
        let valid = |config: &Value| {
            let valid = read(config, Command::Gc).unwrap().valid;
            valid
                .into_iter()
                .map(|one| one.container)
                .collect::<String>()
        };
        assert_eq!(valid(&config), "");
        config["cni.dev/attachments"] = json!([{"containerID": "a", "ifname": "eth0"}]);
        assert_eq!(valid(&config), "a");
        config["cni.dev/valid-attachments"] = json!([{"containerID": "b", "ifname": "eth0"}]);
        assert_eq!(valid(&config), "b");
    }

    #[test]
    fn what_a_runtime_wants_is_taken_from_the_first_that_says_it() {
        let mut config = config("1.0.0");
        let mac = |config: &Value| read(config, Command::Add).unwrap().mac.map(|mac| mac[5]);
        assert_eq!(mac(&config), Some(1));
        config["args"] = json!({"cni": {"mac": "02:00:00:00:00:02", "ips": ["192.0.2.2"]}});
        assert_eq!(mac(&config), Some(2));
        config["runtimeConfig"] = json!({"mac": "02:00:00:00:00:03", "portMappings": []});
        assert_eq!(mac(&config), Some(3));
        let ips = read(&config, Command::Add).unwrap().ips;
        assert_eq!(ips, ["192.0.2.2/32".parse::<IpNet>().unwrap()]);
    }

    #[test]
    fn keys_of_others_are_passed_by_and_faults_of_ours_named() {
        let mut config = config("1.0.0");
        config["keyA"] = json!(["some"]);
        config["ipam"] = json!({});
        config["mtu"] = json!(0);
        config["prevResult"] = Value::Null;
        let read_one = read(&config, Command::Add).unwrap();
        assert!(read_one.ipam.is_none() && read_one.mtu.is_none() && read_one.previous.is_none());
        assert_eq!(read_one.raw, config);
        for (key, value, expected) in [
            ("name", json!(""), code::CONFIG),
            ("name", json!(3), code::DECODE),
            ("name", json!("a b"), code::CONFIG),
            ("mtu", json!(65536), code::CONFIG),
            ("tenant", json!(""), code::CONFIG),
            ("ipMasq", json!(true), code::UNSUPPORTED),
            ("ipam", json!({"type": "a/b"}), code::CONFIG),
            ("runtimeConfig", json!({"mac": "x"}), code::CONFIG),
            ("runtimeConfig", json!({"ips": ["x"]}), code::DECODE),
        ] {
            let mut config = config.clone();
            config[key] = value;
            let error = read(&config, Command::Add).unwrap_err();
            assert_eq!(error.code, expected, "{config}: {error}");
        }
    }

    fn whole() -> Value {
        json!({
            "cniVersion": "1.1.0",
            "name": "public",
            "type": "netspawn-cni",
            "mtu": 1400,
            "tenant": "acme",
            "dns": {"nameservers": ["198.51.100.53"], "search": ["example.org"]},
            "ipam": {"type": "host-local"},
            "runtimeConfig": {"mac": "02:00:00:00:00:03", "ips": ["192.0.2.2/24"]},
            "args": {"cni": {"ips": ["2001:db8::2"]}},
            "cni.dev/valid-attachments": [{"containerID": "a", "ifname": "eth0"}],
            "prevResult": {
                "cniVersion": "1.1.0",
                "interfaces": [{"name": "eth0", "mtu": 1500, "sandbox": "/run/netns/a"}],
                "ips": [{"interface": 0, "address": "192.0.2.2/24", "gateway": "192.0.2.1"}],
                "routes": [{"dst": "::/0", "mtu": 1400, "table": 100, "scope": 0}],
                "dns": {"nameservers": ["198.51.100.53"]},
            },
        })
    }

    #[test]
    fn what_is_mangled_is_right_before() {
        let config = read(&whole(), Command::Add).unwrap();
        assert!(result::read("prevResult", &config.previous.unwrap()).is_ok());
    }

    proptest::proptest! {
        /// What is almost right is taken or refused, and what is taken is of use.
        #[test]
        fn anything_is_read_without_panic(config in crate::mangled::json(whole())) {
            for (_, command) in Command::ALL {
                let Ok(config) = read(&config, command) else { continue };
                let Some(previous) = &config.previous else { continue };
                let Ok(result) = result::read("prevResult", previous) else { continue };
                let target = Target {
                    container: "a".to_owned(),
                    ifname: "eth0".to_owned(),
                    netns: None,
                    args: String::new(),
                };
                let Ok(plan) = Plan::new(&target, &result, config.mac, 1500) else { continue };
                let mut told = previous.clone();
                told["ips"] = json!(plan.ips(0));
                proptest::prop_assert!(result::read("itself", &told).is_ok());
            }
        }

        #[test]
        fn any_text_is_read_without_panic(text in crate::mangled::text(&whole().to_string())) {
            let _ = Config::read(text.as_bytes(), Command::Add, None);
        }
    }
}
