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
        system.run("ls /run/netspawn/cni")?,
        system.run("find /run/cni/networks/public -name 203.*")?,
        system.shell("ip -br link | grep -o '^cni[^@]*' || true")?,
    ])
}

/// That nothing is.
fn nothing_is_left(system: &SystemdHost) -> Result<()> {
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
    let good = network("1.1.0", &["203.0.113.100/24"]);
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
    // The longest name that a file can have.
    let id = "a".repeat(255);
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

#[test]
fn killed_at_any_time_it_leaves_nothing_that_is_not_found_again() -> Result<()> {
    let system = boot()?;
    let a = Container::make(&system, "a")?;
    let config = local("203.0.113.100");
    let other = Container::make(&system, "b")?;
    let killed = |after: u32| -> Result<()> {
        system.write("/run/config", &config.to_string())?;
        system
            .shell(&format!(
                "export CNI_COMMAND=ADD CNI_CONTAINERID=a CNI_NETNS=/run/netns/a \
                 CNI_IFNAME=eth0 CNI_PATH={PATH}
                timeout -s KILL 0.{after:03} {PATH}/netspawn-cni < /run/config || true
                # What it has started is not killed with it.
                while pidof host-local > /dev/null; do sleep 0.01; done"
            ))
            .map(drop)
    };
    let mut seen = std::collections::BTreeSet::new();
    for after in (2..150).step_by(4) {
        killed(after)?;
        let here = left(&system)?;
        seen.insert(here.map(|text| !text.is_empty()));
        a.does("DEL", &config)?;
        nothing_is_left(&system).with_context(|| format!("killed after {after} ms, then DEL"))?;
        // Its runtime says nothing, and the next container finds the only address free.
        killed(after)?;
        a.end()?;
        other
            .does("ADD", &config)
            .with_context(|| format!("killed after {after} ms"))?;
        other.does("DEL", &config)?;
        nothing_is_left(&system).with_context(|| format!("killed after {after} ms"))?;
        Container::make(&system, "a")?;
    }
    eprintln!("{seen:?}");
    Ok(())
}
