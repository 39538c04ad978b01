//! The reference library takes what the plugin says, in every version that both speak.

use anyhow::{Context as _, Result, ensure};
use netspawn_tests::{SystemdHost, ping};
use serde_json::{Value, json};
use std::net::IpAddr;

use super::{
    KIT,
    plugin::{Container, NEWER, PATH, boot, local, network},
    report, scenario,
};

/// All versions that are spoken.
const VERSIONS: [&str; 5] = ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];
const CONFLIST: &str = "/etc/cni/public.conflist";

/// A runtime: the library, which finds plugins in that folder, and one network.
#[derive(Clone, Copy)]
struct Runtime<'a> {
    system: &'a SystemdHost,
    folder: &'a str,
}

impl Runtime<'_> {
    /// Has the network be that.
    fn configure(&self, list: &Value) -> Result<()> {
        self.system.write(CONFLIST, &list.to_string())
    }

    /// Does something for the network; an error as the library has understood it.
    fn call(&self, command: &str, args: &[&str]) -> Result<Result<Value, Value>> {
        let output = self
            .system
            .cmd("libcni")
            .env("CNI_PATH", self.folder)
            .args([command, CONFLIST])
            .args(args)
            .output()?;
        let value = match output.stdout.trim() {
            "" => Value::Null,
            text => serde_json::from_str(text).with_context(|| format!("{output:?}"))?,
        };
        Ok(if output.code() == 0 {
            Ok(value)
        } else {
            Err(value)
        })
    }

    /// Does something for the network, which is to succeed.
    fn does(&self, command: &str, args: &[&str]) -> Result<Value> {
        self.call(command, args)?
            .map_err(|error| anyhow::anyhow!("{command}: {error}\n{}", report(self.system)))
    }

    /// Does something for `eth0` of a container, which is to succeed.
    fn does_for(&self, command: &str, id: &str) -> Result<Value> {
        self.does(
            command,
            &[id, &format!("/run/netns/{id}"), "eth0", CAPABILITIES],
        )
    }

    /// That it is refused with that code.
    fn refuses(&self, command: &str, args: &[&str], code: u64) -> Result<()> {
        match self.call(command, args)? {
            Err(error) if error["code"] == code => Ok(()),
            other => anyhow::bail!("{command} {args:?}: expected code {code}: {other:?}"),
        }
    }
}

/// What the runtime says of a container.
const CAPABILITIES: &str = r#"{"mac": "02:00:00:00:00:77"}"#;

fn list(version: &str, plugins: &[Value]) -> Value {
    json!({"cniVersion": version, "name": "public", "plugins": plugins})
}

#[test]
fn reference_library_takes_all_versions() -> Result<()> {
    let system = boot()?;
    // Those of this release do not speak the newest.
    let old = VERSIONS[..4].iter().map(|version| (PATH, *version));
    let all = VERSIONS.iter().map(|version| (NEWER, *version));
    for (folder, version) in old.chain(all) {
        let runtime = Runtime {
            system: &system,
            folder,
        };
        takes(runtime, version).with_context(|| format!("{version} with {folder}"))?;
    }
    Ok(())
}

fn takes(runtime: Runtime<'_>, version: &str) -> Result<()> {
    let system = runtime.system;
    let mut plugin = network(version, &["203.0.113.100/24", "2001:db8::100/64"]);
    plugin["dns"] = json!({"nameservers": ["198.51.100.53"]});
    plugin["capabilities"] = json!({"mac": true});
    plugin["ipam"]["routes"] = json!([
        {"dst": "0.0.0.0/0"},
        {
            "dst": "192.0.2.0/24",
            "gw": "203.0.113.1",
            "mtu": 1400,
            "advmss": 1200,
            "priority": 7,
            "table": 100,
            "scope": 0,
        },
    ]);
    let mut network = list(version, &[plugin]);
    // The highest that both know is chosen.
    network["cniVersion"] = json!("0.3.0");
    network["cniVersions"] = json!(["0.2.0", version, "9.9.9"]);
    runtime.configure(&network)?;
    let id = format!("c{}", version.replace('.', ""));
    let container = Container::make(system, &id)?;
    runtime.does("VALIDATE", &[])?;
    runtime.does("STATUS", &[])?;
    // As the library has understood it, and writes it again.
    let result = runtime.does_for("ADD", &id)?;
    let family = |number: &str| match version {
        "1.0.0" | "1.1.0" => Value::Null,
        _ => json!(number),
    };
    let since = |value: Value| match version {
        "1.1.0" => value,
        _ => Value::Null,
    };
    let inside = &result["interfaces"][1];
    ensure!(result["cniVersion"] == version, "{result:#}");
    ensure!(inside["mac"] == "02:00:00:00:00:77", "{result:#}");
    ensure!(
        inside["sandbox"] == format!("/run/netns/{id}"),
        "{result:#}"
    );
    ensure!(inside["mtu"] == since(json!(1500)), "{result:#}");
    ensure!(
        result["ips"][0]["address"] == "203.0.113.100/32",
        "{result:#}"
    );
    ensure!(result["ips"][1]["gateway"] == "fe80::1", "{result:#}");
    for (index, number) in ["4", "6"].into_iter().enumerate() {
        let ip = &result["ips"][index];
        ensure!(ip["version"] == family(number), "{result:#}");
        ensure!(ip["interface"] == 1, "{result:#}");
    }
    let route = &result["routes"][1];
    ensure!(route["gw"] == "203.0.113.1", "{result:#}");
    for (key, value) in [
        ("mtu", 1400),
        ("advmss", 1200),
        ("priority", 7),
        ("table", 100),
        ("scope", 0),
    ] {
        ensure!(route[key] == since(json!(value)), "{key}: {result:#}");
    }
    ensure!(
        result["dns"]["nameservers"][0] == "198.51.100.53",
        "{result:#}"
    );
    // Older ones of the others do not know more of a route than where it leads.
    let newest = runtime.folder == NEWER;
    let routes = container.run(if newest {
        "ip route show table 100"
    } else {
        "ip route"
    })?;
    ensure!(
        routes.contains("192.0.2.0/24 via 203.0.113.1 dev eth0"),
        "{routes}"
    );
    ensure!(
        !newest || routes.contains("metric 7 onlink mtu 1400 advmss 1200"),
        "{routes}"
    );
    if version >= "0.4.0" {
        runtime.does_for("CHECK", &id)?;
    }
    runtime.does(
        "GC",
        &[&format!(r#"[{{"containerID": "{id}", "ifname": "eth0"}}]"#)],
    )?;
    ping(&system.net, "203.0.113.100".parse::<IpAddr>()?)?;
    runtime.does_for("DEL", &id)?;
    runtime.does_for("DEL", &id)?;
    ensure!(scenario::up(system)? == 0, "{}", report(system));
    container.end()
}

#[test]
fn reference_library_takes_errors() -> Result<()> {
    let system = SystemdHost::with(&KIT)?;
    let runtime = Runtime {
        system: &system,
        folder: NEWER,
    };
    let good = network("1.1.0", &["203.0.113.100/24"]);
    let is = |key: &str, value: Value| {
        let mut plugin = good.clone();
        plugin[key] = value;
        runtime.configure(&list("1.1.0", &[plugin]))
    };
    let a = Container::make(&system, "a")?;
    let add = ["a", "/run/netns/a", "eth0"];
    is("tenant", Value::Null)?;
    runtime.refuses("STATUS", &[], 50)?;
    runtime.refuses("ADD", &add, 11)?;
    system.install("")?;
    runtime.does("STATUS", &[])?;
    for (key, value, code) in [
        ("ipMasq", json!(true), 2),
        ("mtu", json!("many"), 6),
        ("mtu", json!(1), 7),
        ("ipam", json!({"type": "nobody"}), 7),
        // The other plugin's own.
        (
            "ipam",
            json!({"type": "static", "addresses": [{"address": "x"}]}),
            999,
        ),
        (
            "ipam",
            json!({"type": "static", "addresses": [{"address": "203.0.113.1/32"}]}),
            101,
        ),
    ] {
        is(key, value)?;
        runtime
            .refuses("ADD", &add, code)
            .with_context(|| key.to_owned())?;
    }
    runtime.configure(&list("0.2.0", std::slice::from_ref(&good)))?;
    runtime.refuses("ADD", &add, 1)?;
    is("tenant", json!("acme"))?;
    for (netns, code) in [("/run/netns/nobody", 3), ("/etc/passwd", 4)] {
        runtime.refuses("ADD", &["a", netns, "eth0"], code)?;
    }
    runtime.does("ADD", &add)?;
    runtime.refuses("ADD", &add, 7)?;
    runtime.does("CHECK", &add)?;
    a.run("ip link set eth0 down")?;
    runtime.refuses("CHECK", &add, 102)?;
    system.run("systemctl stop netspawn-xdp@eth0")?;
    system.xdp("detach")?.success()?;
    runtime.refuses("STATUS", &[], 51)?;
    runtime.does("DEL", &add)?;
    runtime.refuses("STATUS", &[], 50)
}

#[test]
fn reference_library_collects_garbage() -> Result<()> {
    let system = boot()?;
    let runtime = Runtime {
        system: &system,
        folder: NEWER,
    };
    let mut plugin = local("203.0.113.100");
    plugin["ipam"]["ranges"][0][0]["rangeEnd"] = json!("203.0.113.102");
    let mut network = list("1.1.0", &[plugin]);
    network["disableGC"] = json!(true);
    runtime.configure(&network)?;
    for id in ["a", "b", "c"] {
        Container::make(&system, id)?;
        runtime.does_for("ADD", id)?;
    }
    let kept = || system.run("ls /run/cni/networks/public");
    let addresses = |there: &str| -> Result<()> {
        for (number, id) in (100..).zip(["a", "b", "c"]) {
            let address: IpAddr = [203, 0, 113, number].into();
            ensure!(
                ping(&system.net, address).is_ok() == there.contains(id),
                "{id}, expected {there}\n{}",
                report(&system)
            );
            ensure!(
                kept()?.contains(&address.to_string()) == there.contains(id),
                "{id}: {there}"
            );
        }
        Ok(())
    };
    let a = r#"[{"containerID": "a", "ifname": "eth0"}]"#;
    runtime.does("GC", &[a])?;
    addresses("abc")?;
    network["disableGC"] = json!(false);
    runtime.configure(&network)?;
    // What the runtime itself remembers it deletes before it asks for garbage; of `c` it
    // remembers nothing.
    system.run("rm /run/libcni/results/public-c-eth0")?;
    runtime.does("GC", &[a])?;
    addresses("a")?;
    // None are valid, which is written as null.
    runtime.does("GC", &[])?;
    addresses("")
}

#[test]
fn reference_library_takes_chains_of_all_versions() -> Result<()> {
    let system = boot()?;
    // What only other plugins than these would say of an interface.
    system.write(
        "/opt/cni/newer/described",
        "#!/bin/sh
\"${0%/*}/ptp\" | sed 's|\"name\": \"eth0\",|& \"socketPath\": \"/run/x.sock\", \"pciID\": \"0000:00:1f.6\",|'\n",
    )?;
    system.run("chmod +x /opt/cni/newer/described")?;
    system.net.run("ip route add 198.18.0.0/24 dev lan0")?;
    let runtime = Runtime {
        system: &system,
        folder: NEWER,
    };
    for version in VERSIONS {
        chains(runtime, version).with_context(|| version.to_owned())?;
    }
    let packages = system.run("cat /opt/cni/newer.list")?;
    let version = |name: &str| {
        let versions = packages.lines().filter_map(|line| line.strip_prefix(name));
        let version = versions.flat_map(|rest| rest.split(['-', '+', '_'])).nth(1);
        version.unwrap_or("?")
    };
    scenario::record(
        "containerd",
        &format!("libcni {}", version("golang-github-appc-cni-dev")),
        &format!(
            "CNI {} to {}, alone and after ptp, with plugins {}",
            VERSIONS[0],
            VERSIONS[VERSIONS.len() - 1],
            version("containernetworking-plugins")
        ),
    )
}

fn chains(runtime: Runtime<'_>, version: &str) -> Result<()> {
    let system = runtime.system;
    let first = json!({
        "type": "described",
        "ipam": {
            "type": "host-local",
            "dataDir": "/run/cni/networks",
            "subnet": "198.18.0.0/24",
            "routes": [{"dst": "0.0.0.0/0", "mtu": 1400, "advmss": 1200, "priority": 7}],
        },
    });
    // The second of the plugins has a file of its own.
    system.run("mkdir -p /etc/cni/public")?;
    system.write(
        "/etc/cni/public/20.conf",
        &json!({"type": "netspawn-cni", "tenant": "acme"}).to_string(),
    )?;
    let network = list(version, &[first]);
    runtime.configure(&network)?;
    runtime.does("VALIDATE", &[])?;
    runtime.does("STATUS", &[])?;
    let id = format!("c{}", version.replace('.', ""));
    let container = Container::make(system, &id)?;
    let result = runtime.does_for("ADD", &id)?;
    let address = result["ips"][0]["address"].as_str().context("no address")?;
    let address: IpAddr = address.trim_end_matches("/24").parse()?;
    ping(&system.net, address).with_context(|| report(system))?;
    let eth0 = &result["interfaces"][1];
    if version == "1.1.0" {
        ensure!(eth0["pciID"] == "0000:00:1f.6", "{result:#}");
        ensure!(eth0["socketPath"] == "/run/x.sock", "{result:#}");
        ensure!(
            result["routes"][0]
                == json!({"dst": "0.0.0.0/0", "mtu": 1400, "advmss": 1200, "priority": 7}),
            "{result:#}"
        );
    }
    ensure!(eth0["name"] == "eth0", "{result:#}");
    if version >= "0.4.0" {
        runtime.does_for("CHECK", &id)?;
    }
    runtime.does_for("DEL", &id)?;
    runtime.does_for("DEL", &id)?;
    ensure!(scenario::up(system)? == 0, "{}", report(system));
    ensure!(container.run("ip link show eth0").is_err());
    // One that is killed, with what `ptp` has left of it.
    runtime.does_for("ADD", &id)?;
    container.end()?;
    runtime.does("GC", &[])?;
    if version == "1.1.0" {
        ensure!(scenario::up(system)? == 0, "{}", report(system));
    }
    let kept = system.run("ls /run/cni/networks/public")?;
    ensure!(!kept.contains("198.18.0"), "{kept}");
    ensure!(system.run("ls /run/netspawn/cni")?.is_empty());
    Ok(())
}
