//! The Debian package in booted hosts: installed, run, upgraded, purged. `cargo xtask test
//! package` makes the packages.

use std::{collections::BTreeSet, env, fs, net::IpAddr, path::PathBuf, time::Duration};

use anyhow::{Context as _, Result, ensure};
use netspawn_tests::{
    Capture, HOST4, HOST6, LAN, Mode, Nspawn, Pinging, Snapshot, SystemdHost, fetch, ping,
    unreachable, wait_ping, wait_until,
};
use serde_json::Value;

const WEB: [&str; 2] = ["203.0.113.2", "2001:db8::2"];
const DB: [&str; 2] = ["203.0.113.3", "2001:db8::3"];
/// The service of the box's uplink.
const UNIT: &str = "netspawn-xdp@eth0";
const SOON: Duration = Duration::from_secs(10);
/// `systemd-analyze security` says 0 for no exposure, 10 for all.
const EXPOSURE: f64 = 3.0;

/// Makes each test for both releases.
macro_rules! on_each_release {
    ($($name:ident)*) => {
        mod debian_12 {
            $(#[test] fn $name() -> anyhow::Result<()> { super::$name("bookworm") })*
        }
        mod debian_13 {
            $(#[test] fn $name() -> anyhow::Result<()> { super::$name("trixie") })*
        }
    };
}

on_each_release! {
    package_is_installed_upgraded_without_a_loss_and_purged
    instances_stand_by_for_each_other
    uplink_that_comes_late_is_attached
    everything_works_under_the_unit_by_xdp
}

/// A package as `cargo xtask` has made it, in the box.
fn install(system: &SystemdHost, name: &str) -> Result<()> {
    let folder: PathBuf = env::var_os("NETSPAWN_DEBS")
        .context("NETSPAWN_DEBS names no folder: run `cargo xtask test package`")?
        .into();
    fs::copy(folder.join(name), system.files().join("root").join(name))?;
    system.run(&format!("dpkg --install /root/{name}"))?;
    system.run(&format!("rm /root/{name}")).map(drop)
}

/// A box in which the package is installed and declares web.
fn packaged(suite: &str) -> Result<SystemdHost> {
    let system = SystemdHost::bare(suite)?;
    install(&system, "old.deb")?;
    declare(&system)?;
    Ok(system)
}

fn declare(system: &SystemdHost) -> Result<()> {
    let text = format!("addresses = {WEB:?}\n");
    system.write("/etc/netspawn/machines/web.toml", &text)
}

/// Everything about the unit, for when something went wrong.
fn words(system: &SystemdHost) -> String {
    let all = system.shell(
        "systemctl --no-pager status 'netspawn-xdp@*'
        journalctl --no-pager --lines=60 --unit='netspawn-xdp@*'
        netspawn-xdp status; netspawn-xdp list; ip -brief address; true",
    );
    all.unwrap_or_else(|error| format!("{error:#}"))
}

fn start(system: &SystemdHost, unit: &str) -> Result<()> {
    system
        .run(&format!("systemctl start {unit}"))
        .map(drop)
        .with_context(|| words(system))
}

fn property(system: &SystemdHost, unit: &str, name: &str) -> Result<String> {
    let text = system.run(&format!("systemctl show {unit} --property={name} --value"))?;
    Ok(text.trim().to_owned())
}

fn state(system: &SystemdHost, unit: &str) -> Result<String> {
    property(system, unit, "ActiveState")
}

fn status(system: &SystemdHost) -> Result<Value> {
    let text = system.xdp("--json status")?.success()?;
    serde_json::from_str(&text).with_context(|| text.clone())
}

fn uplinks(system: &SystemdHost) -> Result<BTreeSet<String>> {
    let status = status(system)?;
    let uplinks = status["uplinks"].as_array().context("no uplinks")?;
    Ok(uplinks
        .iter()
        .filter_map(|uplink| Some(uplink["name"].as_str()?.to_owned()))
        .collect())
}

fn answers(system: &SystemdHost, name: &str, addresses: &[&str]) -> Result<()> {
    for address in addresses {
        let address: IpAddr = address.parse()?;
        wait_ping(&system.net, address, SOON).with_context(|| words(system))?;
        let mut last = String::new();
        let served = wait_until(SOON, || {
            last = fetch(&system.net, address).unwrap_or_else(|error| format!("{error:#}"));
            last.contains(&format!("hello from {name}\n"))
        });
        ensure!(served, "{address} served {last}");
    }
    Ok(())
}

/// Every file that a package or its service may leave behind.
fn files(system: &SystemdHost) -> Result<BTreeSet<String>> {
    let text = system.shell(
        "find /etc /usr /opt /srv /root /home /var /run/netspawn /run/systemd/system \
              /run/systemd/generator* -xdev 2>/dev/null || true",
    )?;
    // dpkg keeps its own books, and the journal goes on.
    const OTHERS: [&str; 5] = [
        "/var/lib/dpkg/",
        "/var/log/",
        "/var/cache/",
        "/var/lib/systemd/",
        "/var/tmp/",
    ];
    Ok(text
        .lines()
        .filter(|path| !OTHERS.iter().any(|other| path.starts_with(other)))
        .map(str::to_owned)
        .collect())
}

fn network(system: &SystemdHost) -> Result<Snapshot> {
    Snapshot::take(&system.host, &system.files().join("sys/fs/bpf"))
}

/// The exposure that systemd sees in the running unit.
fn exposure(system: &SystemdHost) -> Result<f64> {
    let text = system.run(&format!("systemd-analyze --no-pager security {UNIT}"))?;
    let line = text
        .lines()
        .find(|line| line.contains("Overall exposure level"))
        .context("systemd-analyze tells no exposure")?;
    line.split_whitespace()
        .find_map(|word| word.parse().ok())
        .with_context(|| line.to_owned())
}

fn package_is_installed_upgraded_without_a_loss_and_purged(suite: &str) -> Result<()> {
    let system = SystemdHost::bare(suite)?;
    system.start_machine("web", &WEB)?;
    settled(&system)?;
    let (files_before, network_before) = (files(&system)?, network(&system)?);

    // Installed, it does nothing until it is told to.
    install(&system, "old.deb")?;
    network_before.same(&network(&system)?)?;
    system.run("zcat /usr/share/man/man1/netspawn-xdp-attach.1.gz")?;
    system.run("ls /usr/share/doc/netspawn-xdp/examples/netspawn.toml")?;
    declare(&system)?;
    system
        .run(&format!("systemctl enable --now {UNIT}"))
        .with_context(|| words(&system))?;
    answers(&system, "web", &WEB)?;
    let exposure = exposure(&system)?;
    eprintln!("{suite}: exposure {exposure}");
    ensure!(exposure <= EXPOSURE, "exposure {exposure}");

    let pings = [
        Pinging::start(&system.net, WEB[0])?,
        Pinging::start(&system.net, WEB[1])?,
    ];
    let (old, old_pid) = (version(&system)?, property(&system, UNIT, "MainPID")?);
    install(&system, "new.deb")?;
    let running = wait_until(SOON, || {
        state(&system, UNIT).is_ok_and(|state| state == "active")
    });
    ensure!(running, "{}", words(&system));
    ensure!(version(&system)? != old, "{old} was not upgraded");
    let pid = property(&system, UNIT, "MainPID")?;
    ensure!(pid != old_pid, "the old agent runs on");
    let exe = system.run(&format!("tail -c 3 /proc/{pid}/exe"))?;
    ensure!(exe == "new", "the agent is not the new program");
    system.run("systemctl restart systemd-networkd")?;
    system.run("networkctl reload")?;
    for pings in pings {
        let answers = pings.answers();
        pings.lost_none().with_context(|| words(&system))?;
        eprintln!("{suite}: {answers} pings answered, none lost");
    }

    // A line of the operator's in the conffile is no reason to keep it.
    system.shell("echo >> /etc/netspawn/netspawn.toml")?;
    system.run("dpkg --purge netspawn-xdp")?;
    for address in WEB {
        unreachable(&system.net, address.parse::<IpAddr>()?)?;
    }
    ping(&system.net, HOST4)?;
    ping(&system.net, HOST6)?;
    let left: Vec<_> = files(&system)?
        .symmetric_difference(&files_before)
        .cloned()
        .collect();
    ensure!(left.is_empty(), "files differ: {left:?}");
    let units = system.run("systemctl list-units --all --plain --no-legend netspawn-xdp*")?;
    ensure!(units.is_empty(), "{units}");
    network_before.same(&network(&system)?)
}

/// Waits until links and addresses stay as they are.
fn settled(system: &SystemdHost) -> Result<()> {
    let ready = wait_until(SOON, || {
        let port = system.run("ip -6 -oneline addr show dev ve-web scope link -tentative");
        port.is_ok_and(|text| text.contains("fe80"))
            && system
                .inside("web", "ip -6 -oneline addr show tentative")
                .is_ok_and(|text| text.is_empty())
    });
    ensure!(ready, "the machine's link did not come up");
    Ok(())
}

fn version(system: &SystemdHost) -> Result<String> {
    system.run("dpkg-query --show netspawn-xdp")
}

fn instances_stand_by_for_each_other(suite: &str) -> Result<()> {
    const OTHER: &str = "netspawn-xdp@up1";
    let system = packaged(suite)?;
    system.shell(
        "ip link add up1 type veth peer name up1p && ip link set up1 up && ip link set up1p up",
    )?;
    system.start_machine("web", &WEB)?;
    start(&system, UNIT)?;
    answers(&system, "web", &WEB)?;
    let pings = Pinging::start(&system.net, WEB[0])?;
    start(&system, OTHER)?;
    let both: BTreeSet<String> = ["eth0".to_owned(), "up1".to_owned()].into();
    ensure!(uplinks(&system)? == both, "{}", words(&system));
    let agent = || -> Result<String> { Ok(status(&system)?["agent"]["pid"].to_string()) };
    ensure!(agent()? == property(&system, UNIT, "MainPID")?);

    // The other goes on with both uplinks, and the first then stands by for it.
    system.run(&format!("systemctl stop {UNIT}"))?;
    let other = property(&system, OTHER, "MainPID")?;
    let takes_over = wait_until(SOON, || agent().is_ok_and(|pid| pid == other));
    ensure!(takes_over, "{}", words(&system));
    ensure!(uplinks(&system)? == both, "{}", words(&system));
    start(&system, UNIT)?;
    ensure!(agent()? == other, "{}", words(&system));
    // Machines that come now are served by the agent there is.
    system.write(
        "/etc/netspawn/machines/db.toml",
        &format!("addresses = {DB:?}\n"),
    )?;
    system.start_machine("db", &DB)?;
    answers(&system, "db", &DB)?;
    // Killed, too, it has a successor.
    system.run(&format!("systemctl kill --signal=SIGKILL {OTHER}"))?;
    let first = property(&system, UNIT, "MainPID")?;
    let takes_over = wait_until(SOON, || agent().is_ok_and(|pid| pid == first));
    ensure!(takes_over, "{}", words(&system));
    pings.lost_none()?;

    let stands_by = wait_until(SOON, || {
        state(&system, OTHER).is_ok_and(|state| state == "active")
    });
    ensure!(stands_by, "{}", words(&system));
    system.xdp("detach")?.success()?;
    for unit in [UNIT, OTHER] {
        let ended = wait_until(SOON, || {
            state(&system, unit).is_ok_and(|state| state == "inactive")
        });
        ensure!(ended, "{unit}: {}", words(&system));
        ensure!(property(&system, unit, "Result")? == "success");
    }
    unreachable(&system.net, WEB[0].parse::<IpAddr>()?)
}

fn uplink_that_comes_late_is_attached(suite: &str) -> Result<()> {
    let system = packaged(suite)?;
    let unit = "netspawn-xdp@late0";
    system.run(&format!("systemctl enable {unit}"))?;
    system.run(&format!("systemctl start --no-block {unit}"))?;
    let tried = wait_until(SOON, || {
        property(&system, unit, "NRestarts").is_ok_and(|count| count != "0")
    });
    ensure!(tried, "{}", words(&system));
    ensure!(state(&system, unit)? == "activating", "{}", words(&system));
    system.shell("ip link add late0 type veth peer name late1 && ip link set late0 up")?;
    let attached = wait_until(SOON, || {
        state(&system, unit).is_ok_and(|state| state == "active")
    });
    ensure!(attached, "{}", words(&system));
    ensure!(uplinks(&system)? == ["late0".to_owned()].into());

    // It may go and come back while the agent runs.
    system.run("ip link del late0")?;
    system.shell("ip link add late0 type veth peer name late1 && ip link set late0 up")?;
    let again = wait_until(SOON, || {
        status(&system).is_ok_and(|status| status["uplinks"][0]["programs"][0].is_string())
    });
    ensure!(again, "{}", words(&system));
    ensure!(property(&system, unit, "NRestarts")? != "0");
    Ok(())
}

fn everything_works_under_the_unit_by_xdp(suite: &str) -> Result<()> {
    let system = packaged(suite)?;
    system.write(
        "/etc/netspawn/netspawn.toml",
        "[attach]\nmode = \"xdp\"\n[policy]\nhost = \"allow\"\n",
    )?;
    system.ready_for(Mode::Xdp)?;
    system.start(&Nspawn::new("web").addresses(&WEB))?;
    let mut capture = Capture::start(&system.net, LAN)?;
    start(&system, UNIT)?;
    answers(&system, "web", &WEB)?;
    let mode = &status(&system)?["uplinks"][0]["mode"];
    ensure!(mode == "xdp", "{mode}");
    let announced = capture.wait(SOON, |frame| {
        frame.get(12..14) == Some(&[8, 6])
            && frame.get(28..32) == Some(&[203, 0, 113, 2])
            && frame.get(38..42) == Some(&[203, 0, 113, 2])
    });
    ensure!(announced, "{}", words(&system));
    // Read in the machine's network namespace.
    let list: Value = serde_json::from_str(&system.xdp("--json list")?.success()?)?;
    let mac = system.inside("web", "ip -oneline link show dev host0")?;
    let listed = list[0]["mac"].as_str().context("no MAC")?;
    ensure!(mac.contains(listed), "{listed}, not {mac}");

    let said = system.run(&format!("journalctl --no-pager --output=cat --unit={UNIT}"))?;
    for refused in ["not permitted", "Permission denied", "Read-only"] {
        ensure!(!said.contains(refused), "{said}");
    }
    Ok(())
}
