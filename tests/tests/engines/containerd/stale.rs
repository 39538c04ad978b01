//! What is left of containers whose runtime has not said that they are gone.

use std::{net::IpAddr, time::Duration};

use anyhow::{Result, ensure};
use netspawn_tests::{ping, unreachable, wait_until};
use serde_json::{Value, json};

use super::{
    plugin::{Container, boot, local},
    report, scenario,
};

const SOON: Duration = Duration::from_secs(5);
const ADDRESS: &str = "203.0.113.100";

/// A plugin that gives an address and speaks the newest version, and writes down what
/// it is asked.
const RECORDER: &str = "#!/bin/sh
stdin=$(cat)
echo \"$CNI_COMMAND $CNI_CONTAINERID $CNI_IFNAME\" >> /run/recorder
case $CNI_COMMAND in
VERSION) echo '{\"cniVersion\": \"1.1.0\", \"supportedVersions\": [\"1.0.0\", \"1.1.0\"]}' ;;
ADD) echo '{\"cniVersion\": \"1.1.0\", \"ips\": [{\"address\": \"'${CNI_ARGS#IP=}'/24\"}]}' ;;
esac
";

#[test]
fn address_of_a_dead_container_is_withdrawn_and_given_again() -> Result<()> {
    let system = boot()?;
    let address: IpAddr = ADDRESS.parse()?;
    let config = local(ADDRESS);
    let a = Container::make(&system, "a")?;
    a.does("ADD", &config)?;
    ping(&system.net, address)?;
    a.end()?;
    let gone = || scenario::up(&system).is_ok_and(|up| up == 0);
    ensure!(wait_until(SOON, gone), "{}", report(&system));
    unreachable(&system.net, address)?;
    // Another source may have it at once, and the plugin's records wait for the next.
    ensure!(
        system.xdp("list")?.success()?.lines().count() == 1,
        "{}",
        report(&system)
    );
    let kept = system.run("ls /run/cni/networks/public")?;
    ensure!(kept.contains(ADDRESS), "{kept}");
    let b = Container::make(&system, "b")?;
    b.does("ADD", &config)?;
    ping(&system.net, address)?;
    // The next one finds it taken.
    let c = Container::make(&system, "c")?;
    ensure!(c.call("ADD", &config)?.is_err());

    // The same id in another namespace, as after a crash of the runtime's.
    b.end()?;
    let b = Container::make(&system, "b")?;
    b.does("ADD", &config)?;
    ping(&system.net, address)?;

    // After a reboot nothing is known of anyone, and nothing is kept.
    b.end()?;
    system.shell(
        "systemctl stop netspawn-xdp@eth0; netspawn-xdp detach; rm -r /run/netspawn /run/cni",
    )?;
    system.run("systemctl start netspawn-xdp@eth0")?;
    let d = Container::make(&system, "d")?;
    d.does("ADD", &config)?;
    ping(&system.net, address)?;
    Ok(())
}

#[test]
fn garbage_is_collected() -> Result<()> {
    let system = boot()?;
    system.write("/opt/cni/bin/recorder", RECORDER)?;
    system.run("chmod +x /opt/cni/bin/recorder")?;
    let config = json!({
        "cniVersion": "1.1.0",
        "name": "public",
        "type": "netspawn-cni",
        "ipam": {"type": "recorder"},
    });
    let mut other = config.clone();
    other["name"] = json!("other");
    for (id, number, config) in [("a", 100, &config), ("b", 101, &config), ("c", 102, &other)] {
        let args = format!("CNI_ARGS=IP=203.0.113.{number}");
        let added = Container::make(&system, id)?.call_with("ADD", config, &[&args])?;
        ensure!(added.is_ok(), "{added:?}");
    }
    let runtime = Container {
        system: &system,
        id: "a",
    };
    runtime.does("STATUS", &config)?;
    let mut gc = config.clone();
    gc["cni.dev/valid-attachments"] = json!([{"containerID": "a", "ifname": "eth0"}]);
    system.run("rm /run/recorder")?;
    runtime.does("GC", &gc)?;
    let asked = system.run("cat /run/recorder")?;
    ensure!(asked.lines().any(|line| line == "DEL b eth0"), "{asked}");
    ensure!(asked.lines().any(|line| line.starts_with("GC ")), "{asked}");
    ensure!(
        !asked.contains("DEL a") && !asked.contains("DEL c"),
        "{asked}"
    );
    for (number, there) in [(100, true), (101, false), (102, true)] {
        let address: IpAddr = [203, 0, 113, number].into();
        ensure!(ping(&system.net, address).is_ok() == there, "{number}");
    }
    let list: Value = serde_json::from_str(&system.xdp("--json list")?.success()?)?;
    ensure!(list.as_array().map(Vec::len) == Some(2), "{list:#}");
    // One that is older has neither command.
    let old = local("203.0.113.110");
    runtime.refuses("GC", &old, 1)?;
    runtime.refuses("STATUS", &old, 1)?;
    Ok(())
}
