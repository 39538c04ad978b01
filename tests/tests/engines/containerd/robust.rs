//! The plugin with what it should not be given, many at once, and killed.

use anyhow::{Context as _, Result, ensure};
use netspawn_tests::SystemdHost;
use serde_json::{Value, json};

use super::{
    plugin::{Container, PATH, boot, local, network, refused},
    report, scenario,
};

/// What is left of containers: records, addresses, links.
fn left(system: &SystemdHost) -> Result<[String; 3]> {
    Ok([
        system.shell(
            "ls -A /run/netspawn/cni /run/netspawn/cni-begun 2> /dev/null | grep json || true",
        )?,
        system.shell("find /run/cni/networks/public -name '203.*' 2> /dev/null || true")?,
        system.shell("ip -br link | grep -o '^cni[^@]*' || true")?,
    ])
}

/// That nothing is.
pub fn nothing_is_left(system: &SystemdHost) -> Result<()> {
    let left = left(system)?;
    ensure!(
        left.iter().all(String::is_empty),
        "{left:?}\n{}",
        report(system)
    );
    ensure!(scenario::up(system)? == 0, "{}", report(system));
    Ok(())
}

#[test]
fn what_makes_no_sense_is_refused_and_what_is_not_there_deleted() -> Result<()> {
    let system = boot()?;
    let a = Container::make(&system, "a")?;
    let good = network("1.0.0", &["203.0.113.100/24"]);
    for stdin in ["", "{", "null", "[]", "\u{feff}{}", "{\"cniVersion\": 1}"] {
        for command in ["ADD", "CHECK", "DEL", "GC", "STATUS"] {
            let outcome = a.call_raw(command, stdin, &[])?;
            refused(outcome, 6).with_context(|| format!("{command} {stdin:?}"))?;
        }
    }
    for variable in [
        "CNI_CONTAINERID=",
        "CNI_IFNAME=",
        "CNI_COMMAND=",
        "CNI_ARGS=IP",
    ] {
        let outcome = a.call_with("ADD", &good, &[variable])?;
        let words = refused(outcome, 4)?;
        let name = variable.split('=').next().unwrap_or_default();
        ensure!(words.contains(name), "{words}");
    }
    for (stdin, version) in [
        ("", "1.1.0"),
        ("{}", "1.1.0"),
        ("{\"cniVersion\": \"0.4.0\"}", "0.4.0"),
    ] {
        let versions = a.call_raw("VERSION", stdin, &[])?;
        let versions = versions.map_err(|error| anyhow::anyhow!("{error}"))?;
        ensure!(versions["cniVersion"] == version, "{versions}");
        ensure!(
            versions["supportedVersions"] == json!(["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"]),
            "{versions}"
        );
    }
    // What never was, wherever it was not.
    for variables in [
        &["CNI_NETNS="][..],
        &["CNI_NETNS=/run/netns/nobody"],
        &["CNI_NETNS=/etc/passwd"],
    ] {
        let deleted = a.call_with("DEL", &good, variables)?;
        ensure!(deleted == Ok(Value::Null), "{deleted:?}");
    }
    // Longer than what the kernel remembers with a link.
    let id = "z".repeat(300);
    let mut more = good.clone();
    more["keyA"] = json!({"type": ["of", "others"]});
    let with = |command: &str| a.call_with(command, &more, &[&format!("CNI_CONTAINERID={id}")]);
    let added = with("ADD")?;
    ensure!(added.is_ok(), "{added:?}");
    ensure!(scenario::up(&system)? == 1, "{}", report(&system));
    with("DEL")?.map_err(|error| anyhow::anyhow!("{error}"))?;

    let mut before = good.clone();
    before["prevResult"] = a.does("ADD", &good)?;
    a.does("CHECK", &before)?;
    for (pointer, value, words) in [
        (
            "/ips/0/address",
            json!("203.0.113.101/32"),
            "203.0.113.101/32",
        ),
        ("/interfaces/1/sandbox", json!(3), "prevResult"),
        ("/ips/0/interface", json!(9), ""),
        ("/routes/0/dst", json!("192.0.2.0/24"), "192.0.2.0/24"),
        ("", json!([[]]), "prevResult"),
        ("", Value::Null, "prevResult"),
    ] {
        let mut wrong = before.clone();
        *wrong["prevResult"]
            .pointer_mut(pointer)
            .context("no such member")? = value;
        match a.call("CHECK", &wrong)? {
            Err(error) => ensure!(error.to_string().contains(words), "{pointer}: {error}"),
            Ok(_) => ensure!(words.is_empty(), "{pointer}: CHECK finds nothing"),
        }
    }
    a.run("ip link del eth0")?;
    a.refuses("CHECK", &before, 102)?;
    a.does("DEL", &before)?;
    nothing_is_left(&system)
}

/// Runs the plugin for containers of these names, all at once.
fn at_once(system: &SystemdHost, command: &str, names: &str, config: &Value) -> Result<()> {
    system.write("/run/config", &config.to_string())?;
    system
        .cmd("xargs")
        .args(["-P", "20", "-I{}", "sh", "-ec"])
        .arg(format!(
            "export CNI_COMMAND={command} CNI_CONTAINERID={{}} CNI_NETNS=/run/netns/{{}} \
             CNI_IFNAME=eth0 CNI_PATH={PATH}
            {PATH}/netspawn-cni < /run/config"
        ))
        .input(names)
        .text()
        .map(drop)
        .with_context(|| report(system))
}

#[test]
fn twenty_come_and_go_at_once() -> Result<()> {
    let system = boot()?;
    let mut config = local("203.0.113.100");
    config["ipam"]["ranges"][0][0]["rangeEnd"] = json!("203.0.113.119");
    let names: String = (0..20).map(|number| format!("c{number}\n")).collect();
    system
        .cmd("xargs")
        .args(["-n1", "ip", "netns", "add"])
        .input(names.as_str())
        .text()?;
    for _ in 0..2 {
        at_once(&system, "ADD", &names, &config)?;
        ensure!(scenario::up(&system)? == 20, "{}", report(&system));
        at_once(&system, "DEL", &names, &config)?;
        nothing_is_left(&system)?;
    }
    Ok(())
}

/// A plugin that gives an address, and then kills who has asked for it.
const DEADLY: &str = "#!/bin/sh
\"${0%/*}/host-local\" || exit
if [ $CNI_COMMAND = ADD ] && [ $CNI_CONTAINERID = a ]; then kill -KILL $PPID; fi
";

#[test]
fn killed_at_any_time_it_leaves_nothing_that_is_not_found_again() -> Result<()> {
    let system = boot()?;
    system.write("/opt/cni/bin/deadly", DEADLY)?;
    system.run("chmod +x /opt/cni/bin/deadly")?;
    let config = local("203.0.113.100");
    let mut deadly = config.clone();
    deadly["ipam"]["type"] = json!("deadly");
    let mut a = Container::make(&system, "a")?;
    let b = Container::make(&system, "b")?;
    let killed = |config: &Value, after: u32| -> Result<()> {
        system.write("/run/config", &config.to_string())?;
        system
            .shell(&format!(
                "export CNI_COMMAND=ADD CNI_CONTAINERID=a CNI_NETNS=/run/netns/a \
                 CNI_IFNAME=eth0 CNI_PATH={PATH}
                timeout -s KILL 0.{after:03} {PATH}/netspawn-cni < /run/config || true"
            ))
            .map(drop)
    };
    let times = (4..100).step_by(12).map(|after| (&config, after));
    for (config, after) in times.chain([(&deadly, 999)]) {
        let when = || format!("killed after {after} ms: {}", report(&system));
        killed(config, after)?;
        a.does("DEL", config)?;
        nothing_is_left(&system).with_context(when)?;
        // Its runtime says nothing, and the next container finds the only address free, once
        // what was started and not killed has ended.
        killed(config, after)?;
        system.shell(
            "for file in /run/netspawn/cni-begun/*.json; do
                if [ -e $file ]; then flock $file true; fi
            done",
        )?;
        a.end()?;
        // The kernel takes a namespace's links away some time after the namespace.
        system.shell(
            "for _ in $(seq 100); do ip -o link | grep -q ' cni' || break; sleep 0.1; done",
        )?;
        b.does("ADD", config).with_context(when)?;
        b.does("DEL", config)?;
        nothing_is_left(&system).with_context(when)?;
        a = Container::make(&system, "a")?;
    }
    // The container may live on, when what is left is collected.
    let mut collect = deadly.clone();
    collect["cniVersion"] = json!("1.1.0");
    killed(&deadly, 999)?;
    let kept = left(&system)?;
    ensure!(kept[1].contains("203.0.113.100"), "{kept:?}");
    a.does("GC", &collect)?;
    nothing_is_left(&system)
}
