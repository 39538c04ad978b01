//! The plugin as any runtime calls it: a program, variables, and what is on stdin.

use std::net::IpAddr;

use anyhow::{Context as _, Result, ensure};
use netspawn_tests::{SystemdHost, ping, unreachable};
use serde_json::{Value, json};

use super::{KIT, report};

/// Where the plugins are.
pub const PATH: &str = "/opt/cni/bin";
/// Where those are that speak 1.1.0.
pub const NEWER: &str = "/opt/cni/newer";

/// Boots a box in which the agent runs, and containerd does not.
pub fn boot() -> Result<SystemdHost> {
    let system = SystemdHost::with(&KIT)?;
    system.install("")?;
    Ok(system)
}

/// A container: a network namespace and the names that a runtime has for it.
#[derive(Clone, Copy)]
pub struct Container<'a> {
    pub system: &'a SystemdHost,
    pub id: &'a str,
}

impl<'a> Container<'a> {
    /// Makes its namespace.
    pub fn make(system: &'a SystemdHost, id: &'a str) -> Result<Self> {
        system.run(&format!("ip netns add {id}"))?;
        Ok(Container { system, id })
    }

    /// Removes its namespace, which its links go with.
    pub fn end(&self) -> Result<()> {
        self.system
            .run(&format!("ip netns del {}", self.id))
            .map(drop)
    }

    /// Runs a command line in its namespace.
    pub fn run(&self, line: &str) -> Result<String> {
        self.system
            .run(&format!("ip netns exec {} {line}", self.id))
    }

    /// Runs the plugin for its `eth0`; the error as well is what it printed on stdout.
    pub fn call(&self, command: &str, config: &Value) -> Result<Result<Value, Value>> {
        self.call_with(command, config, &[])
    }

    /// The same with more variables, or others.
    pub fn call_with(
        &self,
        command: &str,
        config: &Value,
        variables: &[&str],
    ) -> Result<Result<Value, Value>> {
        self.call_raw(command, &config.to_string(), variables)
    }

    /// The same with anything on stdin.
    pub fn call_raw(
        &self,
        command: &str,
        stdin: &str,
        variables: &[&str],
    ) -> Result<Result<Value, Value>> {
        let output = self
            .system
            .cmd("env")
            .arg(format!("CNI_COMMAND={command}"))
            .arg(format!("CNI_CONTAINERID={}", self.id))
            .arg(format!("CNI_NETNS=/run/netns/{}", self.id))
            .args(["CNI_IFNAME=eth0", &format!("CNI_PATH={PATH}")])
            .args(variables)
            .arg(format!("{PATH}/netspawn-cni"))
            .input(stdin)
            .output()?;
        let value = if output.stdout.trim().is_empty() {
            Value::Null
        } else {
            serde_json::from_str(&output.stdout).with_context(|| format!("{output:?}"))?
        };
        Ok(match output.code() {
            0 => Ok(value),
            1 => Err(value),
            _ => anyhow::bail!("{output:?}"),
        })
    }

    /// Runs the plugin, which is to succeed.
    pub fn does(&self, command: &str, config: &Value) -> Result<Value> {
        self.call(command, config)?
            .map_err(|error| anyhow::anyhow!("{command}: {error}\n{}", report(self.system)))
    }

    /// Runs the plugin, which is to refuse with that code; its words.
    pub fn refuses(&self, command: &str, config: &Value, code: u64) -> Result<String> {
        refused(self.call(command, config)?, code)
    }
}

/// The words of a refusal with that code.
pub fn refused(outcome: Result<Value, Value>, code: u64) -> Result<String> {
    match outcome {
        Ok(value) => anyhow::bail!("it is not refused but {value}"),
        Err(error) => {
            ensure!(error["code"] == code, "expected {code}: {error}");
            ensure!(error["cniVersion"].is_string(), "{error}");
            Ok(format!("{}; {}", error["msg"], error["details"]))
        }
    }
}

/// A network of that version, whose containers have these addresses.
pub fn network(version: &str, addresses: &[&str]) -> Value {
    let addresses: Vec<Value> = addresses
        .iter()
        .map(|address| json!({"address": address}))
        .collect();
    json!({
        "cniVersion": version,
        "name": "public",
        "type": "netspawn-cni",
        "ipam": {"type": "static", "addresses": addresses},
    })
}

/// A network whose one address is given by a plugin that remembers.
pub fn local(address: &str) -> Value {
    json!({
        "cniVersion": "1.0.0",
        "name": "public",
        "type": "netspawn-cni",
        "ipam": {
            "type": "host-local",
            "dataDir": "/run/cni/networks",
            "ranges": [[{
                "subnet": "203.0.113.0/24",
                "rangeStart": address,
                "rangeEnd": address,
            }]],
        },
    })
}

fn answers(system: &SystemdHost, address: &str) -> Result<()> {
    let address: IpAddr = address.parse()?;
    ping(&system.net, address).with_context(|| report(system))
}

#[test]
fn container_is_served_when_add_returns_and_silent_when_del_does() -> Result<()> {
    let system = boot()?;
    let config = network("1.0.0", &["203.0.113.100/24", "2001:db8::100/64"]);
    let a = Container::make(&system, "a1b2c3d4e5f60718")?;
    let links = system.run("ip -br link")?;
    let result = a.does("ADD", &config)?;
    for address in ["203.0.113.100", "2001:db8::100"] {
        answers(&system, address)?;
    }
    ensure!(
        result["interfaces"][1]["sandbox"] == "/run/netns/a1b2c3d4e5f60718",
        "{result}"
    );
    let mac = result["interfaces"][1]["mac"].as_str().context("no mac")?;
    ensure!(a.run("ip link show eth0")?.contains(mac), "{result}");
    ensure!(
        result["ips"][0]
            == json!({"interface": 1, "address": "203.0.113.100/32", "gateway": "169.254.1.1"}),
        "{result}"
    );
    ensure!(system.xdp("list")?.success()?.contains("a1b2c3d4e5f6 "));
    let mut before = config.clone();
    before["prevResult"] = result;
    a.does("CHECK", &before)?;
    for words in [
        "ip address del 203.0.113.100/32 dev eth0",
        "ip route del default",
    ] {
        a.run(words)?;
        let words = a.refuses("CHECK", &before, 102)?;
        ensure!(
            words.contains("203.0.113.100/32") || words.contains("0.0.0.0/0"),
            "{words}"
        );
        a.run("ip address replace 203.0.113.100/32 dev eth0")?;
        a.run("ip route replace default via 169.254.1.1 dev eth0 onlink")?;
        a.does("CHECK", &before)?;
    }
    // Twice, and once more when the namespace is gone.
    a.does("DEL", &before)?;
    unreachable(&system.net, "203.0.113.100".parse::<IpAddr>()?)?;
    a.does("DEL", &config)?;
    a.refuses("CHECK", &before, 102)?;
    ensure!(system.run("ip -br link")? == links);
    a.end()?;
    a.does("DEL", &config)?;
    ensure!(system.run("ls /run/netspawn/cni")?.is_empty());
    Ok(())
}

#[test]
fn what_cannot_be_is_refused_and_leaves_nothing() -> Result<()> {
    let system = boot()?;
    let a = Container::make(&system, "a")?;
    let links = system.run("ip -br link")?;
    let good = network("1.0.0", &["203.0.113.100/24"]);
    let with = |key: &str, value: Value| {
        let mut config = good.clone();
        config[key] = value;
        config
    };
    for (config, code, words) in [
        (
            with("cniVersion", json!("0.2.0")),
            1,
            "0.3.0, 0.3.1, 0.4.0, 1.0.0, 1.1.0",
        ),
        (with("cniVersion", json!("1.2.0")), 1, "1.2.0"),
        (with("ipMasq", json!(true)), 2, "ipMasq: true"),
        (with("name", json!("a/b")), 7, "a/b"),
        (with("mtu", json!(60)), 7, "mtu 60"),
        (with("mtu", json!("many")), 6, "many"),
        (with("tenant", json!("")), 7, "tenant"),
        (with("ipam", Value::Null), 7, "ipam"),
        (with("ipam", json!({"type": "nobody"})), 7, "nobody"),
        (with("ipam", json!({"type": "../bin/sh"})), 7, "CNI_PATH"),
        // The plugin's own words.
        (
            with(
                "ipam",
                json!({"type": "static", "addresses": [{"address": "x"}]}),
            ),
            999,
            "x",
        ),
        (
            network("1.0.0", &["203.0.113.10/24"]),
            101,
            "belongs to host",
        ),
        (network("1.0.0", &["203.0.113.1/24"]), 101, "203.0.113.1/32"),
    ] {
        let said = match a.call("ADD", &config)? {
            // What another plugin refuses has the code that it chose.
            Err(error) if code == 999 => error.to_string(),
            outcome => refused(outcome, code).with_context(|| config.to_string())?,
        };
        ensure!(said.contains(words), "{config}: {said}");
    }
    for (variable, code) in [
        ("CNI_NETNS=/run/netns/nobody", 3),
        ("CNI_NETNS=/etc/passwd", 4),
        ("CNI_NETNS=/proc/1/ns/net", 4),
        ("CNI_IFNAME=a/b", 4),
        ("CNI_COMMAND=MOVE", 4),
        ("CNI_IFNAME=lo", 7),
    ] {
        let outcome = a.call_with("ADD", &good, &[variable])?;
        refused(outcome, code).context(variable)?;
    }
    // An address that another has, and one that is gone with its owner.
    a.does("ADD", &good)?;
    a.refuses("ADD", &good, 7)?;
    let b = Container::make(&system, "b")?;
    let words = b.refuses("ADD", &good, 101)?;
    ensure!(words.contains("203.0.113.100/32 belongs to a"), "{words}");
    answers(&system, "203.0.113.100")?;
    a.does("DEL", &good)?;
    b.does("ADD", &good)?;
    answers(&system, "203.0.113.100")?;
    b.does("DEL", &good)?;

    ensure!(system.run("ip -br link")? == links, "{links}");
    ensure!(system.run("ls /run/netspawn/cni")?.is_empty());
    ensure!(super::scenario::up(&system)? == 0);
    Ok(())
}

#[test]
fn runtime_is_told_whether_containers_can_be_connected() -> Result<()> {
    let system = SystemdHost::with(&KIT)?;
    let a = Container::make(&system, "a")?;
    let mut config = network("1.1.0", &[]);
    config.as_object_mut().context("no object")?.remove("ipam");
    config["runtimeConfig"] = json!({"ips": ["203.0.113.100/24"], "mac": "02:00:00:00:00:99"});
    config["mtu"] = json!(1400);
    a.refuses("STATUS", &config, 50)?;
    let words = a.refuses("ADD", &config, 11)?;
    ensure!(words.contains("attached to no uplink"), "{words}");
    ensure!(!system.run("ip -br link")?.contains("cni"));
    system.install("")?;
    a.does("STATUS", &config)?;
    let result = a.does("ADD", &config)?;
    ensure!(
        result
            == json!({
                "cniVersion": "1.1.0",
                "interfaces": [
                    {
                        "name": result["interfaces"][0]["name"],
                        "mac": result["interfaces"][0]["mac"],
                        "mtu": 1400,
                    },
                    {
                        "name": "eth0",
                        "mac": "02:00:00:00:00:99",
                        "mtu": 1400,
                        "sandbox": "/run/netns/a",
                    },
                ],
                "ips": [
                    {"interface": 1, "address": "203.0.113.100/32", "gateway": "169.254.1.1"}
                ],
                "routes": [{"dst": "0.0.0.0/0", "gw": "169.254.1.1"}],
                "dns": {},
            }),
        "{result:#}"
    );
    answers(&system, "203.0.113.100")?;
    // Without an agent, and then without an uplink.
    system.run("systemctl stop netspawn-xdp@eth0")?;
    a.does("DEL", &config)?;
    unreachable(&system.net, "203.0.113.100".parse::<IpAddr>()?)?;
    a.does("ADD", &config)?;
    answers(&system, "203.0.113.100")?;
    a.does("STATUS", &config)?;
    system.xdp("detach")?.success()?;
    a.refuses("STATUS", &config, 51)?;
    system.run("systemctl start netspawn-xdp@eth0")?;
    answers(&system, "203.0.113.100")?;
    system.xdp("detach")?.success()?;
    a.does("DEL", &config)?;
    a.refuses("STATUS", &config, 50)?;
    Ok(())
}
