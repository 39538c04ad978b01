//! Addresses from `.nspawn` files, and the network configuration that machines get.

use std::{
    fs,
    net::IpAddr,
    os::unix::fs::{MetadataExt as _, chown},
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use netspawn_tests::{
    Agent, DELEGATED, FAR4, FAR6, HOST0, INSIDE, Lab, Nspawn, Spec, SystemdHost, UPLINK, ping,
    unreachable, wait_ping, wait_until,
};
use netspawn_user::source::parse_nspawn;
use serde_json::Value;

/// Until a machine has booted and configured its network.
const BOOT: Duration = Duration::from_secs(20);
/// Until a change of a file is applied.
const APPLIED: Duration = Duration::from_secs(5);
const FILE: &str = "etc/systemd/network/10-netspawn.network";
const SETTINGS: &str = "/etc/systemd/nspawn/web.nspawn";
/// The first address of [`DELEGATED`] that a machine is given.
const FIRST: &str = "2001:db8:1::1";

/// A folder that looks like a machine's root, below the lab's.
fn image(lab: &Lab) -> Result<PathBuf> {
    let root = lab.dir().join("image");
    for folder in ["etc", "usr"] {
        fs::create_dir_all(root.join(folder))?;
    }
    Ok(root)
}

#[test]
fn commands_for_a_machine_without_networkd_reach_the_network() -> Result<()> {
    let lab = Lab::usual()?;
    let _agent = Agent::start(&lab, UPLINK)?;
    let web = lab.machine("web");
    for line in [
        format!("ip -4 addr flush dev {HOST0}"),
        format!("ip -6 addr flush dev {HOST0} scope global"),
        format!("ip -6 route del local {DELEGATED} dev lo"),
        format!("ip link set {HOST0} down"),
    ] {
        web.ns.run(&line)?;
    }
    ensure!(
        ping(&lab.net, web.v4()).is_err(),
        "web has its addresses still"
    );

    let output = lab.output(&format!("guest web --install {}", image(&lab)?.display()))?;
    assert_eq!((output.code(), output.stdout.as_str()), (0, ""));
    let commands = output.stderr.lines().map(str::trim);
    for command in commands.filter(|line| line.starts_with("ip ")) {
        web.ns.run(command)?;
    }
    for address in ["203.0.113.2", "2001:db8::2", FIRST] {
        ping(&lab.net, address.parse::<IpAddr>()?)?;
    }
    ping(&web.ns, FAR4)?;
    ping(&web.ns, FAR6)?;
    unreachable(&lab.net, INSIDE)
}

#[test]
fn end_of_the_link_is_named_as_the_machine_has_it() -> Result<()> {
    let lab = Lab::builder()
        .machine(Spec::new("web").address("203.0.113.2"))
        .build()?;
    let web = &lab.machine("web").ns;
    let matched = |words: &str| -> Result<String> {
        let text = lab.run(&format!("guest {words}"))?;
        let lines = text.lines().skip_while(|line| *line != "[Match]");
        let lines = lines.take_while(|line| !line.is_empty());
        Ok(lines
            .filter(|line| !line.starts_with('#'))
            .collect::<Vec<_>>()
            .join(" "))
    };
    assert_eq!(matched("web")?, "[Match] Kind=veth Name=host0");
    for (name, expected) in [("lan7", "lan7"), ("a*", HOST0), ("host0", HOST0)] {
        let now = web.run("ip -o link show type veth")?;
        let now = now
            .split([':', '@'])
            .nth(1)
            .context("no link")?
            .trim()
            .to_owned();
        web.cmd("ip").args(["link", "set", &now, "down"]).text()?;
        web.cmd("ip")
            .args(["link", "set", &now, "name", name])
            .text()?;
        assert_eq!(
            matched("web")?,
            format!("[Match] Kind=veth Name={expected}")
        );
    }

    lab.host.run("ip tuntap add dev tap0 mode tap")?;
    lab.run("add vm --interface tap0 --address 203.0.113.3")?;
    assert_eq!(matched("vm")?, "[Match] Type=ether Kind=!*");
    lab.run("add vm --interface tap0 --address 203.0.113.3 --mac 02:00:00:00:00:05")?;
    assert_eq!(matched("vm")?, "[Match] MACAddress=02:00:00:00:00:05");
    lab.run("add soon --interface ve-soon --address 203.0.113.4")?;
    assert_eq!(matched("soon")?, "[Match] Kind=veth Name=host0");
    Ok(())
}

#[test]
fn smallest_mtu_on_the_way_out_is_the_machine_s() -> Result<()> {
    let lab = Lab::builder().usual_machines().uplink_mtu(1400).build()?;
    assert!(!lab.run("guest web")?.contains("MTU"));
    lab.run("attach eth0 --once")?;
    assert!(lab.run("guest web")?.contains("[Link]\nMTUBytes=1400\n"));
    lab.host.run("ip link set ve-web mtu 1300")?;
    assert!(lab.run("guest web")?.contains("[Link]\nMTUBytes=1300\n"));
    Ok(())
}

#[test]
fn installed_file_belongs_to_the_machine_s_root() -> Result<()> {
    const SHIFTED: u32 = 0x7_0000;
    let lab = Lab::usual()?;
    let root = image(&lab)?;
    for folder in ["", "etc", "usr"] {
        chown(root.join(folder), Some(SHIFTED), Some(SHIFTED))?;
    }
    let owners = || -> Result<Vec<(u32, u32)>> {
        let mut owners = Vec::new();
        for path in Path::new(FILE)
            .ancestors()
            .filter(|path| path.iter().count() > 1)
        {
            let metadata = root.join(path).metadata()?;
            owners.push((metadata.uid(), metadata.gid()));
        }
        Ok(owners)
    };
    let install = format!("--json guest web --install {}", root.display());
    let report: Value = serde_json::from_str(&lab.run(&install)?)?;
    assert_eq!(report["path"], root.join(FILE).to_str().context("no text")?);
    assert_eq!(report["content"], fs::read_to_string(root.join(FILE))?);
    assert_eq!(owners()?, [(SHIFTED, SHIFTED); 3]);

    // A file that root left behind is the machine's again once it changes.
    chown(root.join(FILE), Some(0), Some(0))?;
    lab.declare("web", "addresses = [\"203.0.113.9\"]\n")?;
    lab.run(&install)?;
    assert_eq!(owners()?, [(SHIFTED, SHIFTED); 3]);

    fs::write(root.join(FILE), "[Match]\nName=host0\n")?;
    let output = lab.output(&install)?;
    assert_eq!((output.code(), output.stdout.as_str()), (1, ""));
    assert!(
        output.stderr.contains("changed by somebody"),
        "{}",
        output.stderr
    );
    Ok(())
}

/// Makes `/var/lib/machines/NAME` in the box: its programs, a copy of its /etc, and
/// nothing else.
const IMAGE: &str = "
set -e
root=/var/lib/machines/$0
mkdir -p $root
mount -t tmpfs -o mode=755 image $root
cd $root
mkdir usr proc sys dev run tmp var root
mount --bind /usr usr
mount -o remount,bind,ro usr
cp -a /bin /sbin /lib* .
cp -a /etc .
rm -rf etc/systemd/network/* etc/systemd/nspawn etc/hostname
rm -f etc/systemd/system/*/systemd-networkd*
systemd-id128 new > etc/machine-id
";

fn machine(system: &SystemdHost, name: &str) -> Result<Value> {
    let text = system.xdp("--json list")?.success()?;
    let list: Value = serde_json::from_str(&text)?;
    list.as_array()
        .and_then(|list| list.iter().find(|machine| machine["name"] == name))
        .cloned()
        .with_context(|| format!("no {name} in {text}"))
}

#[test]
fn machine_configured_by_networkd_is_reached_at_every_address() -> Result<()> {
    let system = SystemdHost::boot()?;
    system.cmd("sh").args(["-c", IMAGE, "web"]).text()?;
    let root = "/var/lib/machines/web";
    system.write(
        SETTINGS,
        &format!(
            "[Exec]\nPrivateUsers=no\n\n[X-Netspawn]\nAddress=203.0.113.2 203.0.113.3\n\
             Address=2001:db8::2 {DELEGATED}\n"
        ),
    )?;
    system.attach(UPLINK)?;

    let output = system.xdp(&format!("guest web --install {root}"))?;
    assert_eq!(output.code(), 0);
    let enable = format!("systemctl --root={root} enable systemd-networkd");
    assert!(output.stderr.contains(&enable), "{}", output.stderr);
    system.run(&enable)?;
    let output = system.xdp(&format!("guest web --install {root}"))?;
    assert!(!output.stderr.contains("WARN"), "{}", output.stderr);
    let installed = system.run(&format!("cat {root}/{FILE}"))?;
    assert_eq!(installed, system.xdp("guest web")?.success()?);

    system.run("machinectl start web")?;
    for address in ["203.0.113.2", "203.0.113.3", "2001:db8::2", FIRST] {
        wait_ping(&system.net, address.parse::<IpAddr>()?, BOOT)?;
    }
    let web = machine(&system, "web")?;
    assert_eq!(
        (&web["source"], &web["state"]),
        (&"nspawn".into(), &"up".into())
    );
    // The same while it runs, whose own name of the link is known then.
    assert_eq!(installed, system.xdp("guest web")?.success()?);

    let addresses = system.inside("web", &format!("ip -o addr show dev {HOST0}"))?;
    assert!(!addresses.contains("169.254."), "{addresses}");
    for (target, source) in [
        (FAR4.into(), Some("203.0.113.2")),
        (IpAddr::from(FAR6), None),
    ] {
        let route = system.inside("web", &format!("ip route get {target}"))?;
        assert!(
            source.is_none_or(|source| route.contains(&format!("src {source}"))),
            "{route}"
        );
        system.inside("web", &format!("ping -n -c 1 -W 2 {target}"))?;
    }
    let rest = system.inside("web", &format!("ip route get {INSIDE} 2>&1; true"))?;
    assert!(rest.contains("No route to host"), "{rest}");

    let leader = system.leader("web")?;
    let within = |words: &str| {
        let words = words.split_whitespace();
        system
            .cmd("nsenter")
            .args(["--target", &leader.to_string(), "--all", "--"])
            .args(words)
            .text()
    };
    let status = within(&format!("networkctl --no-pager --lines=0 status {HOST0}"))?;
    assert!(
        status.contains(&format!("Network File: /{FILE}")),
        "{status}"
    );
    let complaints =
        within("journalctl --no-pager --quiet --boot --unit=systemd-networkd --priority=warning")?;
    assert_eq!(complaints, "");
    let configured = wait_until(BOOT, || {
        within(&format!("networkctl --no-pager --lines=0 status {HOST0}"))
            .is_ok_and(|status| status.contains("routable (configured)"))
    });
    ensure!(configured, "networkd waits: {status}");

    // What the file says of the rest of the prefix. It is a person's from then on.
    system.run(&format!("sed -i s/unreachable/local/ {root}/{FILE}"))?;
    within("networkctl reload")?;
    wait_ping(&system.net, INSIDE, BOOT)?;
    let output = system.xdp(&format!("guest web --install {root}"))?;
    assert_eq!(output.code(), 1, "{output:?}");
    Ok(())
}

#[test]
fn settings_of_nspawn_are_followed() -> Result<()> {
    let system = SystemdHost::boot()?;
    let section = |address: &str| format!("[X-Netspawn]\nAddress={address}\n");
    let has = |address: &str| -> Result<()> {
        let applied = wait_until(APPLIED, || {
            machine(&system, "web").is_ok_and(|web| {
                web["addresses"] == serde_json::json!([format!("{address}/32")])
                    && web["state"] == "up"
            })
        });
        ensure!(applied, "{address}: {:?}", machine(&system, "web"));
        // The list is of the files; the agent has its own time.
        wait_ping(&system.net, address.parse::<IpAddr>()?, APPLIED)
    };
    system.start(&Nspawn::new("web").addresses(&["203.0.113.2", "203.0.113.3", "203.0.113.4"]))?;
    system.attach(UPLINK)?;
    unreachable(&system.net, "203.0.113.2".parse::<IpAddr>()?)?;

    system.write("/run/systemd/nspawn/web.nspawn", &section("203.0.113.2"))?;
    has("203.0.113.2")?;
    system.write(SETTINGS, &section("203.0.113.3"))?;
    has("203.0.113.3")?;
    unreachable(&system.net, "203.0.113.2".parse::<IpAddr>()?)?;

    // A fault is told and takes nothing away.
    system.write(SETTINGS, &section("203.0.113"))?;
    let told = wait_until(APPLIED, || {
        system
            .words()
            .is_ok_and(|words| words.contains(&format!("{SETTINGS}:2: Address: ")))
    });
    ensure!(told, "{}", system.words()?);
    has("203.0.113.3")?;

    // What is no longer hidden counts again, and a masked file hides it.
    system.run(&format!("rm {SETTINGS}"))?;
    has("203.0.113.2")?;
    system.declare("web", &["203.0.113.4"])?;
    has("203.0.113.4")?;
    system.run("rm /run/netspawn/machines/web.toml")?;
    has("203.0.113.2")?;
    system.run(&format!("ln -s /dev/null {SETTINGS}"))?;
    let web = "203.0.113.2".parse::<IpAddr>()?;
    ensure!(
        wait_until(APPLIED, || ping(&system.net, web).is_err()),
        "web is served still"
    );
    ensure!(machine(&system, "web").is_err(), "web is declared still");
    unreachable(&system.net, web)
}

#[test]
fn ephemeral_machine_with_a_name_has_its_addresses() -> Result<()> {
    let system = SystemdHost::boot()?;
    system.attach(UPLINK)?;
    system.shell("cp -a /tiny /var/lib/machines/web")?;
    for (name, address) in [("web", "203.0.113.2"), ("web-1", "203.0.113.3")] {
        system.write(
            &format!("/etc/systemd/nspawn/{name}.nspawn"),
            &format!("[Exec]\nEnvironment=ADDRESS={address}\n[X-Netspawn]\nAddress={address}\n"),
        )?;
    }
    // What docs/nspawn.md says of names, and of the files that go with them.
    let start = |unit: &str, words: &str| -> Result<()> {
        let script = format!(
            "ip link set {HOST0} up; ip addr add $ADDRESS/32 dev {HOST0}
             ip route add default via 169.254.1.1 dev {HOST0} onlink; exec sleep 1000"
        );
        system
            .cmd("systemd-run")
            .args([
                "--quiet",
                "--slice=machine.slice",
                "--property=Delegate=yes",
            ])
            .args(["--property=Type=notify", "--unit", unit])
            .args(["systemd-nspawn", "--quiet", "--keep-unit", "--timezone=off"])
            .args([
                "--resolv-conf=off",
                "--link-journal=no",
                "--as-pid2",
                "--network-veth",
            ])
            .args(["--ephemeral", "--directory=/var/lib/machines/web"])
            .args(words.split_whitespace())
            .args(["/bin/sh", "-c", &script])
            .text()
            .map(drop)
    };
    start("first", "--machine=web-1")?;
    wait_ping(&system.net, "203.0.113.3".parse::<IpAddr>()?, BOOT)?;
    assert_eq!(machine(&system, "web-1")?["state"], "up");

    // Without a name of its own it reads the file of `web`, and is not `web`.
    start("second", "")?;
    let machines = system.run("machinectl list --no-legend")?;
    let made_up = machines
        .split_whitespace()
        .find_map(|word| word.strip_prefix("web-").filter(|rest| *rest != "1"))
        .with_context(|| machines.clone())?;
    assert!(
        made_up.len() == 16 && made_up.bytes().all(|b| b.is_ascii_hexdigit()),
        "{made_up}"
    );
    assert_eq!(machine(&system, "web")?["state"], "waiting");
    unreachable(&system.net, "203.0.113.2".parse::<IpAddr>()?)?;

    start("third", "--machine=web")?;
    wait_ping(&system.net, "203.0.113.2".parse::<IpAddr>()?, BOOT)
}

#[test]
fn systemd_reads_the_syntax_alike() -> Result<()> {
    // @ is the section, % the key; what systemd makes of them is shown by a unit.
    const TEXTS: [&str; 20] = [
        "[@]\n%=a\n",
        "[@]\n%=a",
        "\u{feff}[@]\r\n%=a\r\n",
        "[@]\r%=a\r",
        "[@]\n\r%=a\n\r",
        " [@] \n\t% \t=\t a b \t\n",
        "[@]\n%=a\\\nb\n",
        "[@]\n%=a\\\n# c\n;\\\n  b\n",
        "[@]\n%=a\\\n\nVlan=1\n",
        "[@]\n%=a\\\\\nVlan=1\n",
        "[@]\n%=a\\\\\\\nVlan=1\n",
        "[@]\n%=a\\",
        "[@]\n%=a\\ \nVlan=1\n",
        "[@]\n%=a\n[X-Other]\n%=b\n[@]\n",
        "[@]\n%=a\n[@]\n%=b\n",
        "%=a\n[@]\n",
        "[@]\n#%=a\n ; %=b\n",
        "[@]\n%=a=b\n",
        "[@]\n%=a\n[@ # c\n",
        "[@]\n%=a\n[\"]\n",
    ];
    let system = SystemdHost::boot()?;
    for (index, text) in TEXTS.iter().enumerate() {
        let with = |section: &str, key: &str| text.replace('@', section).replace('%', key);
        system.write(
            &format!("/run/systemd/system/t{index}.target"),
            &with("Unit", "Description"),
        )?;
    }
    system.run("systemctl daemon-reload")?;
    for (index, text) in TEXTS.iter().enumerate() {
        let unit = format!("t{index}.target");
        let state = system.run(&format!(
            "systemctl show --value --property=LoadState {unit}"
        ))?;
        let told = system.run(&format!(
            "systemctl show --value --property=Description {unit}"
        ))?;
        let theirs = match (state.trim(), told.trim_end_matches('\n')) {
            ("loaded", unset) if unset == unit => Some(None),
            ("loaded", description) => Some(Some(description.to_owned())),
            _ => None,
        };
        let with = text.replace('@', "X-Netspawn").replace('%', "Tenant");
        let ours = match parse_nspawn(Path::new("t"), with.as_bytes()) {
            Ok(keys) => Some(keys.and_then(|keys| keys.tenant)),
            Err(_) => None,
        };
        assert_eq!(ours, theirs, "{text:?} ({state})");
    }
    Ok(())
}
