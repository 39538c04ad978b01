//! Every command of `docs/tutorial.md`, as it is printed there, on a booted systemd host.
//!
//! The document marks its blocks: `sh` is run on the host, `sh outside` beyond its uplink until
//! it succeeds, `sh interrupted` on the host until Ctrl-C. A `text` block after them is
//! what they print on stdout, where `…` stands for anything. Other blocks are refused: they would
//! be commands that nobody has tried.

use std::{
    env, fs,
    net::IpAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use netspawn_tests::{HOST4, SystemdHost, ping, unreachable, wait_until};

/// Until containers have booted and configured their network.
const BOOT: Duration = Duration::from_secs(40);
/// What the containers answer at.
const ADDRESSES: [&str; 4] = [
    "203.0.113.2",
    "2001:db8:1::2",
    "2001:db8:1::3",
    "2001:db8:1::4",
];

/// The release of Debian that the reader has.
const SUITE: &str = "bookworm";

/// What netspawn-xdp leaves while it is at work.
const LEFT: &str = "find /sys/fs/bpf /run/netspawn -mindepth 1 2>/dev/null; true";

/// What is done with a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Host,
    Outside,
    Interrupted,
}

#[derive(Debug)]
struct Block {
    line: usize,
    kind: Kind,
    script: String,
    expected: Option<String>,
}

fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// The fenced blocks of a document, in order.
fn blocks(document: &str) -> Result<Vec<Block>> {
    let mut blocks: Vec<Block> = Vec::new();
    let mut lines = document.lines().enumerate();
    while let Some((number, line)) = lines.next() {
        let Some(info) = line.strip_prefix("```") else {
            continue;
        };
        let mut text = String::new();
        for (_, line) in lines.by_ref().take_while(|(_, line)| *line != "```") {
            text += line;
            text += "\n";
        }
        let kind = match info {
            "sh" => Kind::Host,
            "sh outside" => Kind::Outside,
            "sh interrupted" => Kind::Interrupted,
            "text" => {
                let block = blocks.last_mut().context("output of no command")?;
                ensure!(
                    block.expected.replace(text).is_none(),
                    "line {}: a second output of one block",
                    number + 1
                );
                continue;
            }
            other => bail!("line {}: nobody runs `{other}`", number + 1),
        };
        blocks.push(Block {
            line: number + 1,
            kind,
            script: text,
            expected: None,
        });
    }
    Ok(blocks)
}

/// Whether a line is as expected; blanks count once, `…` stands for anything.
fn alike(line: &str, expected: &str) -> bool {
    let words = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
    let (line, expected) = (words(line), words(expected));
    let mut parts = expected.split('…').map(str::trim);
    let first = parts.next().unwrap_or_default();
    let Some(mut rest) = line.strip_prefix(first) else {
        return false;
    };
    let mut parts = parts.peekable();
    while let Some(part) = parts.next() {
        if parts.peek().is_none() {
            return rest.ends_with(part);
        }
        match rest.find(part) {
            Some(at) => rest = &rest[at + part.len()..],
            None => return false,
        }
    }
    rest.is_empty()
}

/// Whether all expected lines come in this order; a line of `…` is any number of lines.
fn printed(output: &str, expected: &str) -> Result<()> {
    let mut lines = output.lines();
    let mut any = false;
    for wanted in expected.lines() {
        if wanted == "…" {
            any = true;
            continue;
        }
        let found = if any {
            lines.any(|line| alike(line, wanted))
        } else {
            lines.next().is_some_and(|line| alike(line, wanted))
        };
        ensure!(found, "there is no `{wanted}` at its place in\n{output}");
        any = false;
    }
    ensure!(
        any || lines.next().is_none(),
        "more than expected:\n{output}"
    );
    Ok(())
}

/// What a rented machine has, and the box has not: Debian's archive. `apt-get` installs
/// nothing but the package (from the folder that `NETSPAWN_DEBS` names), and `debootstrap` gives each container the box's own programs. Nested as they are,
/// containers cannot have users of their own.
fn prepare(system: &SystemdHost) -> Result<()> {
    let debs: PathBuf = env::var_os("NETSPAWN_DEBS")
        .context("NETSPAWN_DEBS names no folder: run `cargo xtask test tutorial`")?
        .into();
    // Where the reader has put it, who is in root's home.
    let package = system.files().join("root/netspawn-xdp_0_amd64.deb");
    fs::copy(debs.join("old.deb"), package)?;
    system.write(
        "/usr/local/sbin/apt-get",
        "#!/bin/sh
set -e
test \"$1 $2\" = 'install -y'
shift 2
for what; do
    case $what in
        debootstrap|systemd-container) command -v systemd-nspawn debootstrap ;;
        ./netspawn-xdp_*.deb) dpkg --install $what ;;
        *) exit 1 ;;
    esac
done
",
    )?;
    system.write(
        "/usr/local/sbin/debootstrap",
        "#!/bin/sh
set -e
for root; do suite=$last; last=$root; done
test \"$suite\" = stable
mkdir -p $root
mount -t tmpfs -o mode=755 image $root
cd $root
mkdir usr proc sys dev run tmp var root
mount --bind /usr usr
mount -o remount,bind,ro usr
cp -a /bin /sbin /lib* .
cp -a /etc .
rm -rf etc/systemd/network/* etc/systemd/nspawn etc/hostname
rm -f etc/systemd/system/*/systemd-networkd* etc/systemd/system/netspawn*
systemd-id128 new >etc/machine-id
",
    )?;
    system.write(
        "/etc/systemd/system/systemd-nspawn@.service.d/nested.conf",
        "[Service]\nExecStart=\nExecStart=systemd-nspawn --quiet --keep-unit --boot \
         --link-journal=no --network-veth --private-users=no --settings=override --machine=%i\n",
    )?;
    system
        .shell("chmod +x /usr/local/sbin/*; systemctl daemon-reload")
        .map(drop)
}

fn run(system: &SystemdHost, block: &Block) -> Result<String> {
    let script = &block.script;
    match block.kind {
        Kind::Host => {
            let output = system
                .cmd("sh")
                .args(["-c", &format!("cd; set -eu\n{script}")])
                .limit(Duration::from_secs(120))
                .output()?;
            let words = output.stderr.clone();
            output.success().with_context(|| words)
        }
        Kind::Outside => {
            let mut last = Ok(String::new());
            wait_until(BOOT, || {
                let script = format!("set -eu\n{script}");
                last = system.net.cmd("sh").args(["-c", &script]).text();
                last.is_ok()
            });
            last
        }
        Kind::Interrupted => {
            let output = system
                .cmd("timeout")
                .args(["--preserve-status", "--signal=INT", "2"])
                .args(["sh", "-c", &format!("exec {script}")])
                .output()?;
            // 130: by the signal, as most programs end.
            ensure!([0, 130].contains(&output.code()), "{output:?}");
            Ok(output.stdout)
        }
    }
}

/// Waits for what takes a reader no patience: the containers' ends of their links.
fn booted(system: &SystemdHost) -> Result<()> {
    let up = wait_until(BOOT, || {
        let links = system.run("ip -o link show type veth");
        links.is_ok_and(|text| {
            let ports = text.lines().filter(|line| line.contains(": ve-"));
            ports.filter(|line| line.contains("LOWER_UP")).count() == 3
        })
    });
    ensure!(up, "{}", system.run("ip -o link")?);
    Ok(())
}

#[test]
fn commands_do_what_the_tutorial_says() -> Result<()> {
    let blocks = blocks(&fs::read_to_string(workspace().join("docs/tutorial.md"))?)?;
    ensure!(blocks.len() > 10, "only {} blocks were found", blocks.len());
    let system = SystemdHost::bare(SUITE)?;
    prepare(&system)?;
    let before = system.shell(LEFT)?;
    let mut outside = 0;
    for block in &blocks {
        let output = run(&system, block).and_then(|output| match &block.expected {
            Some(expected) => printed(&output, expected),
            None => Ok(()),
        });
        output.with_context(|| format!("docs/tutorial.md:{}\n{}", block.line, block.script))?;
        if block.script.contains("machinectl start") {
            booted(&system)?;
        }
        if block.kind == Kind::Outside {
            outside += 1;
            // What the document shows is true, and shows all of them.
            for address in ADDRESSES {
                ping(&system.net, address.parse::<IpAddr>()?)?;
            }
        }
    }
    ensure!(outside > 0, "nobody has tried from outside");
    for address in ADDRESSES {
        unreachable(&system.net, address.parse::<IpAddr>()?)?;
    }
    ping(&system.net, HOST4)?;
    assert_eq!(system.shell(LEFT)?, before, "left after the last step");
    Ok(())
}

#[test]
fn output_is_compared_loosely_and_can_differ() {
    assert!(printed("a  b\nc\n", "a b\nc\n").is_ok());
    assert!(printed("uplink  eth0 (tc)\n", "uplink … eth0 … tc …\n").is_ok());
    assert!(printed("a\nx\ny\nb\n", "a\n…\nb\n").is_ok());
    assert!(printed("a\nx\n", "a\n…\n").is_ok());
    for (output, expected) in [
        ("a\n", "b\n"),
        ("a\nb\n", "a\n"),
        ("a\n", "a\nb\n"),
        ("kept: eth1 (tc)\n", "kept: eth0 (tc)\n"),
        ("3 up, 1 waiting\n", "3 up, 0 waiting\n"),
        ("a x b\n", "a … c\n"),
        ("a b c\n", "a … b\n"),
        ("a b\n", "a\n"),
    ] {
        assert!(
            printed(output, expected).is_err(),
            "{output:?} {expected:?}"
        );
    }
}
