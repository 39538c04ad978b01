//! The command line as users and scripts meet it: help, errors, exit codes, and what goes to
//! stdout and stderr. Nothing is attached in these tests.
//!
//! Texts are kept in `snapshots/`; after a change that is meant, `INSTA_UPDATE=always` writes
//! them anew.

use std::{fs, path::Path, process::Command};

use insta::{assert_snapshot, with_settings};
use netspawn_tests::binary;

/// Folders of one test, for `--config-dir`, `--run-dir`, `--bpf-dir`.
struct Dirs(tempfile::TempDir);

impl Dirs {
    fn new() -> Self {
        let dirs = Dirs(tempfile::tempdir().unwrap());
        for dir in ["etc/machines", "run", "bpf"] {
            fs::create_dir_all(dirs.0.path().join(dir)).unwrap();
        }
        dirs
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn write(&self, path: &str, text: &str) {
        fs::write(self.path().join(path), text).unwrap();
    }

    fn command(&self, line: &str) -> Command {
        let mut command = Command::new(binary().unwrap());
        command.args(line.split_whitespace());
        for dir in ["config", "run", "bpf"] {
            let folder = if dir == "config" { "etc" } else { dir };
            command.arg(format!("--{dir}-dir"));
            command.arg(self.path().join(folder));
        }
        command
    }

    /// Exit code, stdout and stderr of a command line, without what differs from run to run.
    fn run(&self, line: &str) -> String {
        report(&mut self.command(line)).replace(&self.path().display().to_string(), "[DIR]")
    }
}

fn report(command: &mut Command) -> String {
    let output = command.output().unwrap();
    let mut text = format!("exit code: {}\n", output.status.code().unwrap());
    for (name, bytes) in [("stdout", output.stdout), ("stderr", output.stderr)] {
        let stream = String::from_utf8(bytes).unwrap();
        if !stream.is_empty() {
            text += &format!("----- {name} -----\n{stream}");
        }
    }
    text
}

/// Exit code and output of command lines that need no folders.
fn bare(lines: &[&str]) -> String {
    let mut all = String::new();
    for line in lines {
        let mut command = Command::new(binary().unwrap());
        command.args(line.split_whitespace());
        all += &format!("$ netspawn-xdp {line}\n{}\n", report(&mut command));
    }
    all
}

/// Compares with a file in `snapshots/`.
fn kept(name: &str, text: &str) {
    with_settings!({ omit_expression => true }, {
        assert_snapshot!(name, text);
    });
}

#[test]
fn help_is_for_people() {
    kept("help", &bare(&["--help"]));
    kept("help_short", &bare(&["-h"]));
    for command in [
        "attach",
        "confirm",
        "detach",
        "add",
        "remove",
        "list",
        "status",
        "counters",
        "monitor",
        "top",
        "check",
        "import",
        "guest",
        "completions",
        "man",
    ] {
        assert_snapshot!(format!("help_{command}"), bare(&[&format!("{command} -h")]));
    }
    kept(
        "help_explain",
        &bare(&[
            "explain -h",
            "explain arp -h",
            "explain in -h",
            "explain out -h",
            "explain host -h",
            "explain pcap -h",
        ]),
    );
}

#[test]
fn senseless_command_lines_are_usage_errors() {
    kept(
        "usage",
        &bare(&[
            "",
            "atach eth0",
            "attach eth0 --mode xpd",
            "attach eth0 --source file",
            "attach eth0 --max-machines 0",
            "attach eth0 --metrics 127.0.0.1",
            "attach eth0 --metrics unix:metrics.sock",
            "attach eth0 --once --metrics 127.0.0.1:9469",
            "attach eth0 --revert-after 60",
            "attach eth0 --revert-after soon",
            "attach eth0 --revert-after 0s",
            "attach eth0 --revert-after 2d",
            "attach e/th0",
            "add web --address 203.0.113.2",
            "add web --interface ve-web",
            "add web --interface ve-web --address 203.0.113",
            "add web --interface ve-web --address 203.0.113.2/24",
            "add web --interface ve-web --address 2001:db8::1/129",
            "add web --interface ve-web --address 127.0.0.1",
            "add web --interface ve-web --address 0.0.0.0/0",
            "add we/b --interface ve-web --address 203.0.113.2",
            "add web --interface ve-web --address 203.0.113.2 --mac 01:00:5e:00:00:01",
            "add web --interface ve-web --address 203.0.113.2 --vlan 4095",
            "add web --interface ve-web --address 203.0.113.2 --tenant=",
            "remove",
            "monitor --machine we/b",
            "monitor --reason spoofed",
            "monitor --reason not_owned",
            "list --watch web",
            "status eth0",
            "counters --watch 0",
            "top --interval never",
            "top --json",
            "check e/th0",
            "check eth0 eth1",
            "guest",
            "guest we/b",
            "completions nosh",
            "man atach",
        ]),
    );
}

#[test]
fn version_is_on_stdout() {
    let version = env!("CARGO_PKG_VERSION");
    assert_eq!(
        bare(&["--version"]),
        format!(
            "$ netspawn-xdp --version\nexit code: 0\n----- stdout -----\nnetspawn-xdp {version}\n\n"
        )
    );
}

#[test]
fn attach_without_uplink_is_a_usage_error() {
    assert_snapshot!(Dirs::new().run("attach"), @"
    exit code: 2
    ----- stderr -----
    netspawn-xdp: no uplink is given; name the interface that faces the network, for instance `netspawn-xdp attach eth0`
    ");
    assert_snapshot!(Dirs::new().run("attach eth0 eth0"), @"
    exit code: 2
    ----- stderr -----
    netspawn-xdp: uplink eth0 is given twice; name it once
    ");
}

#[test]
fn confirm_without_a_pending_revert_fails() {
    assert_snapshot!(Dirs::new().run("confirm"), @"
    exit code: 1
    ----- stderr -----
    netspawn-xdp: no revert is pending: none was asked for, it was confirmed, or its time is over; `netspawn-xdp status` shows what is attached
    ");
    let dirs = Dirs::new();
    // For `attach` alone, which hands it the record.
    let mut command = dirs.command("revert");
    assert_snapshot!(report(command.stdin(std::process::Stdio::null())), @"
    exit code: 1
    ----- stderr -----
    netspawn-xdp: `revert` is for `attach --revert-after`, which starts it; see `attach --help`
    ");
}

#[test]
fn bad_configuration_is_told_line_by_line() {
    let dirs = Dirs::new();
    dirs.write(
        "etc/netspawn.toml",
        "[attach]\nmodes = \"tc\"\nmax-machines = -1\n[polciy]\n",
    );
    assert_snapshot!(dirs.run("attach eth0"), @"
    exit code: 1
    ----- stderr -----
    netspawn-xdp: [DIR]/etc/netspawn.toml:2: attach.modes: unknown key; did you mean `mode`?
    netspawn-xdp: [DIR]/etc/netspawn.toml:3: attach.max-machines: -1 is out of range; write a number from 1 to 16777216
    netspawn-xdp: [DIR]/etc/netspawn.toml:4: polciy: unknown key; did you mean `policy`?
    ");
}

#[test]
fn machine_can_be_added_listed_and_removed_without_an_uplink() {
    let dirs = Dirs::new();
    assert_snapshot!(
        dirs.run("add web --interface ve-none --address 203.0.113.2 2001:db8:1::/64 --tenant acme"),
        @"
    exit code: 0
    ----- stderr -----
     INFO web is declared; it is served once an uplink is attached
    "
    );
    assert_snapshot!(
        fs::read_to_string(dirs.path().join("run/machines/web.toml")).unwrap(),
        @r#"
    interface = "ve-none"
    addresses = [
        "203.0.113.2",
        "2001:db8:1::/64",
    ]
    tenant = "acme"
    "#
    );
    assert_snapshot!(dirs.run("list"), @"
    exit code: 0
    ----- stdout -----
    NAME  STATE    INTERFACE  MAC  ADDRESSES                       TENANT  RX  TX  DROPS
    web   waiting  ve-none    -    203.0.113.2/32 2001:db8:1::/64  acme     -   -      0
    ----- stderr -----
     WARN no uplink is attached, so no machine is served; see `attach --help`
    ");
    assert_snapshot!(dirs.run("remove web"), @"exit code: 0");
    assert_snapshot!(dirs.run("remove web"), @"
    exit code: 1
    ----- stderr -----
    netspawn-xdp: no machine web is declared: there is neither [DIR]/run/machines/web.toml nor [DIR]/etc/machines/web.toml; `netspawn-xdp list` shows those that are
    ");
}

#[test]
fn bad_file_is_named_and_the_others_are_listed() {
    let dirs = Dirs::new();
    dirs.write("etc/machines/db.toml", "addresses = [\"203.0.113.3\"]\n");
    dirs.write(
        "etc/machines/web.toml",
        "# The web\naddreses = [\"203.0.113.2\"]\n",
    );
    assert_snapshot!(dirs.run("list --json"), @r#"
    exit code: 0
    ----- stdout -----
    [
      {
        "name": "db",
        "source": "config",
        "interface": null,
        "ifindex": null,
        "mac": null,
        "addresses": [
          "203.0.113.3/32"
        ],
        "tenant": null,
        "state": "waiting",
        "rx_packets": null,
        "rx_bytes": null,
        "tx_packets": null,
        "tx_bytes": null,
        "drops": {},
        "conflicts": [],
        "closed": null,
        "mismatches": []
      }
    ]
    ----- stderr -----
     WARN no uplink is attached, so no machine is served; see `attach --help`
     WARN [DIR]/etc/machines/web.toml:2: addreses: unknown key; did you mean `addresses`?
    "#);
}

#[test]
fn remove_of_a_configured_machine_names_the_file() {
    let dirs = Dirs::new();
    dirs.write("etc/machines/db.toml", "addresses = [\"203.0.113.3\"]\n");
    assert_snapshot!(dirs.run("remove db"), @"
    exit code: 1
    ----- stderr -----
    netspawn-xdp: machine db is declared by [DIR]/etc/machines/db.toml, which `remove` leaves alone; delete or edit that file
    ");
    dirs.run("add db --interface ve-none --address 203.0.113.4");
    assert_snapshot!(dirs.run("remove db"), @"
    exit code: 3
    ----- stderr -----
    netspawn-xdp: machine db is still declared by [DIR]/etc/machines/db.toml; delete or edit that file
    ");
}

#[test]
fn guest_prints_the_file_of_a_machine() {
    let dirs = Dirs::new();
    dirs.write(
        "etc/machines/web.toml",
        "addresses = [\"203.0.113.2\", \"2001:db8:1::/64\"]\n",
    );
    assert_snapshot!(dirs.run("guest web"), @"
    exit code: 0
    ----- stdout -----
    # Made by `netspawn-xdp guest web`. Installing it again replaces it, unless
    # somebody has changed it.
    # sha256: 165c65b8be41355f202b0883774395c949c59bb87ea6b734698814b303ce3e52

    [Match]
    Kind=veth
    Name=host0

    [Network]
    DHCP=no
    # Callers by name would try an IPv4 link-local address first, in vain.
    LinkLocalAddressing=ipv6
    # The host sees to it that nobody else has the addresses; the test would take two
    # seconds, in which callers by name wait for the link-local one.
    IPv6DuplicateAddressDetection=0
    IPv6AcceptRA=no
    LLDP=no
    EmitLLDP=no

    [Address]
    Address=203.0.113.2/32

    [Address]
    Address=2001:db8:1::1/128

    # The rest of the prefix: configure more of it as [Address], or make the type
    # `local`, and all of it is this machine's.
    [Route]
    Destination=2001:db8:1::/64
    Type=unreachable

    [Route]
    Gateway=169.254.1.1
    GatewayOnLink=yes

    [Route]
    Gateway=fe80::1
    ");
    let output = dirs.command("guest web --json").output().unwrap();
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["path"], "/etc/systemd/network/10-netspawn.network");
    let text = dirs.command("guest web").output().unwrap().stdout;
    assert_eq!(report["content"], String::from_utf8(text).unwrap());
}

#[test]
fn guest_of_an_unknown_machine_names_the_nearest() {
    let dirs = Dirs::new();
    assert_snapshot!(dirs.run("guest web"), @"
    exit code: 1
    ----- stderr -----
    netspawn-xdp: no machine web is declared; `netspawn-xdp list` shows those that are
    ");
    dirs.write("etc/machines/web.toml", "addresses = [\"203.0.113.2\"]\n");
    assert_snapshot!(dirs.run("guest wbe"), @"
    exit code: 1
    ----- stderr -----
    netspawn-xdp: no machine wbe is declared; did you mean web?
    ");
    dirs.write("etc/machines/web.toml", "addresses = [\"203.0.113\"]\n");
    assert_snapshot!(dirs.run("guest web"), @r#"
    exit code: 1
    ----- stderr -----
     WARN [DIR]/etc/machines/web.toml:1: addresses: "203.0.113" is neither an IPv4 nor an IPv6 address; write an address such as 203.0.113.2 or a prefix such as 2001:db8:1::/64
    netspawn-xdp: what declares machine web cannot be used; correct [DIR]/etc/machines/web.toml
    "#);
}

#[test]
fn guest_is_installed_into_an_image_once_and_again() {
    let dirs = Dirs::new();
    let install = format!("guest web --install {}/image", dirs.path().display());
    dirs.write("etc/machines/web.toml", "addresses = [\"203.0.113.2\"]\n");
    assert_snapshot!(dirs.run(&install), @"
    exit code: 1
    ----- stderr -----
    netspawn-xdp: cannot open [DIR]/image; name the machine's root folder: No such file or directory (os error 2)
    ");
    fs::create_dir_all(dirs.path().join("image/etc")).unwrap();
    assert_snapshot!(dirs.run(&install), @"
    exit code: 0
    ----- stderr -----
     INFO [DIR]/image/etc/systemd/network/10-netspawn.network is written; the machine reads it when it starts, or by `networkctl reload`
     WARN systemd-networkd, which reads it, is not in [DIR]/image; have the machine run instead:
      ip link set host0 up
      ip address add 203.0.113.2/32 dev host0
      ip route add default via 169.254.1.1 dev host0 onlink
    ");
    let networkd = dirs.path().join("image/usr/lib/systemd");
    fs::create_dir_all(&networkd).unwrap();
    fs::write(networkd.join("systemd-networkd"), "").unwrap();
    assert_snapshot!(dirs.run(&install), @"
    exit code: 0
    ----- stderr -----
     INFO [DIR]/image/etc/systemd/network/10-netspawn.network is as it should be
     WARN systemd-networkd, which reads it, is not enabled in [DIR]/image: `systemctl --root=[DIR]/image enable systemd-networkd`
    ");
    dirs.write("image/etc/systemd/network/10-netspawn.network", "# Mine\n");
    assert_snapshot!(dirs.run(&install), @"
    exit code: 1
    ----- stderr -----
    netspawn-xdp: [DIR]/image/etc/systemd/network/10-netspawn.network was written or changed by somebody, so it is left alone; move it away, or change it by hand (without --install, what would be written is printed)
    ");
    assert_snapshot!(dirs.run("guest web --install /"), @"
    exit code: 1
    ----- stderr -----
    netspawn-xdp: / is the host's own root folder; name the machine's
    ");
}

#[test]
fn explain_names_the_part_that_is_wrong() {
    let dirs = Dirs::new();
    let lines = [
        "explain",
        "explain apr 203.0.113.2",
        "explain arp 203.0.113",
        "explain arp 2001:db8::2",
        "explain ndp 203.0.113.2",
        "explain in tcp 198.51.100.7:1234 203.0.113.2",
        "explain in tcp 198.51.100.7:1234 203.0.113.2:https",
        "explain in tcp 198.51.100.7 2001:db8::2:443",
        "explain in tcp 198.51.100.7 [2001:db8::2]:443",
        "explain in sctp 198.51.100.7 203.0.113.2",
        "explain in icmp 198.51.100.7 203.0.113.2:80",
        "explain in icmp 2001:db8:ffff::1 2001:db8::2",
        "explain in udp 198.51.100.7 203.0.113.2:53 --size 20",
        "explain in udp 198.51.100.7 203.0.113.2:53 --ttl 256",
        "explain out web arp 169.254.1.1:80",
        "explain out we/b tcp 198.51.100.7:443",
        "explain pcap trace.pcap --in eth0 --out web",
        // Nothing is attached.
        "explain arp 203.0.113.2",
        "explain pcap trace.pcap",
    ];
    let told = lines.map(|line| format!("$ netspawn-xdp {line}\n{}\n", dirs.run(line)));
    kept("explain", &told.concat());
}

#[test]
fn status_and_counters_without_an_uplink_are_empty() {
    let dirs = Dirs::new();
    // A machine that runs the tests may have a default route, or none.
    let status = dirs.run("status");
    let (first, rest) = status.split_once("attach with").unwrap();
    assert_snapshot!(first, @"
    exit code: 0
    ----- stdout -----
    status    off: nothing is attached, no machine is served;
    ");
    let (_, rest) = rest.split_once('\n').unwrap();
    assert_snapshot!(rest, @"
    uplink    none
    machines  0 up, 0 waiting, 0 down, 0 in conflict
    prefixes  0
    agent     none
    ");
    assert_snapshot!(dirs.run("counters"), @"
    exit code: 0
    ----- stdout -----
    no frames yet
    ----- stderr -----
     WARN no uplink is attached, so no machine is served; see `attach --help`
    ");
}

#[test]
fn monitor_without_an_agent_says_how_to_start_one() {
    assert_snapshot!(Dirs::new().run("monitor"), @"
    exit code: 1
    ----- stderr -----
    netspawn-xdp: no agent runs, and it alone knows what happens; start one: `netspawn-xdp attach UPLINK`
    ");
}

#[test]
fn logs_can_be_json() {
    let output = Dirs::new()
        .command("list --log-format json")
        .output()
        .unwrap();
    let line: serde_json::Value = serde_json::from_slice(&output.stderr).unwrap();
    assert_eq!(line["level"], "WARN");
    assert!(line["message"].as_str().unwrap().starts_with("no uplink"));

    let output = Dirs::new()
        .command("attach --log-format json")
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(2));
    let line: serde_json::Value = serde_json::from_slice(&output.stderr).unwrap();
    assert_eq!(line["level"], "ERROR");
}

#[test]
fn completions_are_for_every_shell() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let report = bare(&[&format!("completions {shell}")]);
        assert!(report.contains("exit code: 0"), "{report}");
        assert!(report.contains("max-machines"), "{shell}");
    }
}

#[test]
fn closed_stdout_is_no_failure() {
    let dirs = Dirs::new();
    let program = binary().unwrap();
    let status = Command::new("sh")
        .arg("-c")
        .arg(r#"{ "$0" completions zsh; echo "code $?" >&2; } | true"#)
        .arg(&program)
        .current_dir(dirs.path())
        .output()
        .unwrap();
    assert_eq!(String::from_utf8(status.stderr).unwrap(), "code 0\n");
}
