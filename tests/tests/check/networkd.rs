//! Findings about systemd-networkd, in the booted box: what they claim happens, and does
//! not any more after the commands.

use std::{path::PathBuf, time::Duration};

use anyhow::{Context as _, Result, bail, ensure};
use netspawn_tests::{SystemdHost, wait_until};
use netspawn_user::check::facts::{Unit, file_for_veth};
use serde_json::Value;

use crate::stage::{commands, finding, judged};

/// The findings that are provoked here.
pub const PROVOKED: &[&str] = &[
    "networkd-port-file",
    "networkd-foreign-gateway",
    "networkd-foreign-routes",
    "networkd-foreign-rules",
];

const SOON: Duration = Duration::from_secs(10);

fn check(system: &SystemdHost) -> Result<Vec<Value>> {
    let output = system.xdp("check eth0 --json")?;
    judged(&output.stdout, output.code())
}

/// Runs the commands of a finding as they are printed, after which it is gone.
fn mend(system: &SystemdHost, id: &str) -> Result<()> {
    let found = check(system)?;
    let shown = finding(&found, id).with_context(|| format!("no {id} in {found:#?}"))?;
    for command in commands(shown)? {
        system.shell(&command).with_context(|| command.clone())?;
    }
    let after = check(system)?;
    if let Some(finding) = finding(&after, id) {
        bail!("it is there still: {finding:#}");
    }
    Ok(())
}

/// Has networkd configure an interface anew, and waits until it has.
fn reconfigure(system: &SystemdHost, interface: &str) -> Result<()> {
    system.run(&format!("networkctl reconfigure {interface}"))?;
    configured(system, interface)
}

fn configured(system: &SystemdHost, interface: &str) -> Result<()> {
    let done = wait_until(SOON, || {
        let state = system.run(&format!("networkctl --no-legend list {interface}"));
        state.is_ok_and(|text| text.contains("configured"))
    });
    ensure!(done, "networkd does not configure {interface}");
    Ok(())
}

#[test]
fn networkd_s_ways_are_told_and_mended() -> Result<()> {
    let system = SystemdHost::boot()?;
    let none = |id: &str| -> Result<()> {
        let found = check(&system)?;
        ensure!(finding(&found, id).is_none(), "{found:#?}");
        Ok(())
    };
    for id in PROVOKED {
        none(id)?;
    }

    // systemd's own file for ports, which the box has put another one before.
    system.shell("rm /etc/systemd/network/10-ports.network; networkctl reload")?;
    mend(&system, "networkd-port-file")?;

    // A port whose route declares its machine.
    system.write(
        "/etc/netspawn/netspawn.toml",
        "[attach]\nsource = [\"kernel\"]\n",
    )?;
    system.shell(
        "ip link add ve-web type veth peer name web0; ip link set web0 up; ip link set ve-web up",
    )?;
    configured(&system, "ve-web")?;

    let has =
        |command: &str, word: &str| -> Result<bool> { Ok(system.run(command)?.contains(word)) };
    for (id, add, list, word) in [
        (
            "networkd-foreign-routes",
            "ip route add 203.0.113.77 dev ve-web",
            "ip route",
            "203.0.113.77 dev ve-web",
        ),
        (
            "networkd-foreign-rules",
            "ip rule add from 203.0.113.77 lookup 77",
            "ip rule",
            "203.0.113.77",
        ),
    ] {
        // What it warns of is so.
        system.run(add)?;
        reconfigure(&system, "ve-web")?;
        let gone = wait_until(SOON, || has(list, word).is_ok_and(|there| !there));
        ensure!(gone, "networkd leaves `{word}` alone");
        none(id)?;

        system.run(add)?;
        mend(&system, id)?;
        configured(&system, "ve-web")?;
        ensure!(has(list, word)?, "`{word}` is gone");
        reconfigure(&system, "ve-web")?;
        ensure!(has(list, word)?, "`{word}` is gone when configured anew");
    }

    let id = "networkd-foreign-gateway";
    system.run("ip route add default via 203.0.113.1 metric 77")?;
    let found = check(&system)?;
    let shown = finding(&found, id).with_context(|| format!("{found:#?}"))?;
    let advice = shown["advice"].as_str().unwrap_or_default();
    let file = "/etc/systemd/network/10-uplink.network: Gateway=203.0.113.1";
    ensure!(advice.ends_with(file), "{advice}");
    // The file has it already; networkd's own is what remains.
    reconfigure(&system, "eth0")?;
    let gone = wait_until(SOON, || {
        has("ip route show default", "metric 77").is_ok_and(|there| !there)
    });
    ensure!(gone, "networkd leaves the default route alone");
    none(id)
}

#[test]
fn file_for_a_veth_is_the_first_that_fits() {
    let folders: Vec<PathBuf> = ["etc", "lib"].map(PathBuf::from).into();
    let files = |path: &std::path::Path| -> Option<&'static str> {
        Some(match path.to_str()? {
            // Hides that of lib.
            "etc/10-mine.network" => "[Match]\nName=enp*\n",
            "lib/10-mine.network" => "[Match]\nName=ve-*\n",
            "lib/20-none.network" => "[Network]\nDHCP=yes\n",
            "lib/30-inside.network" => "[Match]\nVirtualization=container\nName=ve-*\n",
            "lib/40-other.network" => "[Match]\nName=!ve-*\n",
            "lib/80-ve.network" => "[Match]\nName=ve-*\nDriver=veth\n[Network]\nDHCPServer=yes\n",
            "etc/80-ve.network.d/a.conf" => "[Network]\nDHCPServer=no\n",
            _ => return None,
        })
    };
    let list = |folder: &std::path::Path| -> Vec<String> {
        let names = match folder.to_str().unwrap() {
            "etc" => &["10-mine.network"][..],
            "lib" => &[
                "10-mine.network",
                "20-none.network",
                "30-inside.network",
                "40-other.network",
                "80-ve.network",
            ],
            "etc/80-ve.network.d" => &["a.conf"],
            _ => &[],
        };
        names.iter().map(|&name| name.to_owned()).collect()
    };
    let read = |path: &std::path::Path| files(path).map(|text| text.as_bytes().to_vec());
    let (path, unit) = file_for_veth(&folders, list, read, "ve-web", false).unwrap();
    assert_eq!(path.to_str(), Some("lib/80-ve.network"));
    assert_eq!(unit.last("Network", "DHCPServer"), Some("no"));
    let (path, _) = file_for_veth(&folders, list, read, "ve-web", true).unwrap();
    assert_eq!(path.to_str(), Some("lib/30-inside.network"));

    let mut unit = Unit::default();
    unit.add(b"[Match]\nName=host0 eth?\n");
    assert!(unit.is_for_veth("host0", true) && unit.is_for_veth("eth1", true));
    assert!(!unit.is_for_veth("eth10", true));
}
