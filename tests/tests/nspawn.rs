//! Real nspawn machines under a real systemd, reached from outside their host.

use std::{
    collections::BTreeMap,
    fs,
    net::IpAddr,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use netspawn_tests::{DELEGATED, GATEWAY4, HOST4, Mode, SystemdHost, fetch, ping, wait_ping};
use serde_json::Value;

const WEB: [&str; 3] = ["203.0.113.2", "2001:db8::2", DELEGATED];
const DB: [&str; 2] = ["203.0.113.3", "2001:db8::3"];
/// Until an address of a machine has passed duplicate address detection.
const UP: Duration = Duration::from_secs(10);

#[test]
fn nspawn_machines_are_reached_from_outside_by_tc() -> Result<()> {
    nspawn_machines_are_reached_from_outside(Mode::Tc)
}

#[test]
fn nspawn_machines_are_reached_from_outside_by_xdp() -> Result<()> {
    nspawn_machines_are_reached_from_outside(Mode::Xdp)
}

fn nspawn_machines_are_reached_from_outside(mode: Mode) -> Result<()> {
    let settings = machine_settings()?;
    let system = SystemdHost::boot()?;
    let pins = system.run("find /sys/fs/bpf")?;
    system.declare("web", &WEB)?;
    system.declare("db", &DB)?;
    system.start_machine("web", &WEB)?;
    system.ready_for(mode)?;
    system.attach(mode.attach())?;
    // This one comes up under a running agent.
    system.start_machine("db", &DB)?;
    reached(&system)?;

    let text = system.xdp("--json list")?.success()?;
    let list: Value = serde_json::from_str(&text).with_context(|| text.clone())?;
    for name in ["web", "db"] {
        let machine = list
            .as_array()
            .and_then(|list| list.iter().find(|machine| machine["name"] == name))
            .with_context(|| format!("no {name} in {text}"))?;
        assert_eq!(machine["state"], "up", "{machine}");
        assert_eq!(machine["interface"], format!("ve-{name}"));
    }

    system.run("systemctl kill --signal=SIGKILL netspawn-xdp@eth0")?;
    reached(&system)?;

    system.xdp("detach")?.success()?;
    assert_eq!(system.run("find /sys/fs/bpf")?, pins);
    assert!(ping(&system.net, WEB[0].parse::<IpAddr>()?).is_err());
    ping(&system.net, HOST4)?;
    drop(system);
    assert_eq!(settings, machine_settings()?);
    Ok(())
}

fn reached(system: &SystemdHost) -> Result<()> {
    for address in [WEB[0], WEB[1], "2001:db8:1::77", DB[0], DB[1]] {
        wait_ping(&system.net, address.parse::<IpAddr>()?, UP)?;
    }
    for (name, address) in [
        ("web", WEB[0]),
        ("web", WEB[1]),
        ("db", DB[0]),
        ("db", DB[1]),
    ] {
        let page = fetch(&system.net, address.parse::<IpAddr>()?)?;
        ensure!(
            page.contains(&format!("hello from {name}")),
            "{address} served {page}"
        );
    }
    // From within: the gateway, the other machine, and the host.
    let web = system.run("machinectl show web --property=Leader --value")?;
    for address in [
        GATEWAY4.to_string(),
        DB[0].into(),
        DB[1].into(),
        HOST4.to_string(),
    ] {
        system.run(&format!(
            "nsenter --target {} --net ping -n -c 1 -W 2 {address}",
            web.trim()
        ))?;
    }
    Ok(())
}

/// What a boot could change of the machine the test runs on.
fn machine_settings() -> Result<BTreeMap<PathBuf, String>> {
    let mut settings = BTreeMap::new();
    for folder in ["fs", "kernel", "vm"] {
        collect(&Path::new("/proc/sys").join(folder), &mut settings)?;
    }
    Ok(settings)
}

fn collect(folder: &Path, settings: &mut BTreeMap<PathBuf, String>) -> Result<()> {
    // What moves by itself although it can be written.
    const MOVING: [&str; 2] = ["ns_last_pid", "random"];
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if MOVING.iter().any(|name| path.ends_with(name)) {
            continue;
        }
        if path.is_dir() {
            collect(&path, settings)?;
        } else if fs::metadata(&path)?.permissions().mode() & 0o200 != 0
            && let Ok(text) = fs::read_to_string(&path)
        {
            // What cannot be written is a counter, not a setting.
            settings.insert(path, text);
        }
    }
    Ok(())
}
