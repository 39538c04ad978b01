//! An attach that fails says why and leaves nothing; bad input stops nobody else.

use std::{
    fs,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown},
    path::Path,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use netspawn_tests::{
    Agent, Attached, Counter, Kind, Lab, Mode, Output, Snapshot, UPLINK, all_reachable, binary,
    ping, ready_for, remount, wait_until,
};

/// Runs `attach`, which must fail with code 1, name all of `words` on standard error and
/// leave everything as it was.
fn fails(lab: &Lab, attach: impl FnOnce() -> Result<Output>, words: &[&str]) -> Result<()> {
    let before = Snapshot::host(lab)?;
    let output = attach()?;
    assert_eq!(output.code(), 1, "{output:?}");
    for word in words {
        assert!(
            output.stderr.to_lowercase().contains(&word.to_lowercase()),
            "`{word}` is not in {:?}",
            output.stderr
        );
    }
    assert_eq!(output.stdout, "", "{output:?}");
    before.same(&Snapshot::host(lab)?)
}

/// What stopped the attach is gone: now it works.
fn works(lab: &Lab) -> Result<()> {
    let _agent = Agent::start(lab, "eth0")?;
    all_reachable(lab)
}

#[test]
fn missing_uplink_leaves_nothing() -> Result<()> {
    let lab = Lab::usual()?;
    fails(&lab, || lab.output("attach nope0"), &["nope0"])?;
    fails(&lab, || lab.output("attach eth0 nope0"), &["nope0"])?;
    works(&lab)
}

#[test]
fn busy_xdp_slot_leaves_nothing() -> Result<()> {
    let lab = Lab::usual()?;
    ready_for(&lab, Mode::Xdp)?;
    let other = Counter::load(Kind::Xdp)?;
    other.xdp(&lab.host, UPLINK, &lab.bpffs().join("other"))?;
    fails(
        &lab,
        || lab.output("attach eth0 --mode xdp"),
        &["eth0", "xdp"],
    )?;
    let start = other.count()?;
    ping(&lab.net, netspawn_tests::HOST4)?;
    assert!(other.count()? > start);
    // Beside it, as tc.
    works(&lab)?;
    assert!(other.count()? > start + 10);
    Ok(())
}

#[test]
fn missing_permission_leaves_nothing() -> Result<()> {
    let lab = Lab::usual()?;
    let program = binary()?;
    let attach = || {
        lab.host
            .cmd("setpriv")
            .args(["--bounding-set=-all", "--inh-caps=-all"])
            .arg(&program)
            .args(lab.options())
            .args(["attach", "eth0"])
            .output()
    };
    fails(&lab, attach, &["cap_"])?;
    works(&lab)
}

#[test]
fn read_only_bpf_file_system_leaves_nothing() -> Result<()> {
    let lab = Lab::usual()?;
    let path = lab.bpffs().display().to_string();
    remount(&lab.bpffs(), true)?;
    fails(&lab, || lab.output("attach eth0"), &[&path])?;
    remount(&lab.bpffs(), false)?;
    works(&lab)
}

#[test]
fn folder_of_another_file_system_leaves_nothing() -> Result<()> {
    let lab = Lab::usual()?;
    let plain = lab.dir().join("plain");
    let path = plain.display().to_string();
    let attach = || {
        lab.host
            .cmd(binary()?)
            .args(lab.options())
            // The last one counts.
            .args(["--bpf-dir", &path, "attach", "eth0"])
            .output()
    };
    if attach()?.code() == 2 {
        // An option given twice is a usage error: name it once.
        let once = || {
            let options = lab.options();
            lab.host
                .cmd(binary()?)
                .args(&options[..4])
                .args(["--bpf-dir", &path, "attach", "eth0"])
                .output()
        };
        fails(&lab, once, &["bpf"])?;
    } else {
        fails(&lab, attach, &["bpf"])?;
    }
    works(&lab)
}

#[test]
fn dry_run_changes_nothing() -> Result<()> {
    let lab = Lab::usual()?;
    let before = Snapshot::host(&lab)?;
    let plan = lab.run("attach eth0 --dry-run")?;
    for word in ["web", "203.0.113.2", "2001:db8:1::/64"] {
        assert!(plan.contains(word), "`{word}` is not in {plan}");
    }
    before.same(&Snapshot::host(&lab)?)
}

/// A bad declaration of one machine, and what must be said about it.
const BAD: [(&str, &str, &[&str]); 7] = [
    (
        "prefix",
        "addresses = [\"203.0.113.300\"]\n",
        &["bad.toml", "203.0.113.300"],
    ),
    (
        "host bits",
        "addresses = [\"2001:db8:5::1/64\"]\n",
        &["bad.toml", "2001:db8:5::/64"],
    ),
    (
        "unknown key",
        "adresses = [\"203.0.113.80\"]\n",
        &["bad.toml", "adresses", "addresses"],
    ),
    ("not TOML", "addresses = [\"203.0.113.80\"\n", &["bad.toml"]),
    (
        "empty tenant",
        "addresses = [\"203.0.113.80\"]\ntenant = \"\"\n",
        &["bad.toml", "tenant"],
    ),
    ("wrong type", "addresses = 5\n", &["bad.toml", "addresses"]),
    (
        "malformed MAC",
        "addresses = [\"203.0.113.80\"]\nmac = \"02:00\"\n",
        &["bad.toml", "mac"],
    ),
];

#[test]
fn bad_declaration_at_start_stops_nobody_else() -> Result<()> {
    for (what, text, words) in BAD {
        let lab = Lab::usual()?;
        lab.declare("bad", text)?;
        let check = || -> Result<()> {
            let mut agent = Agent::start(&lab, "eth0")?;
            for word in words {
                agent.wait_line(Duration::from_secs(2), |line| line.contains(word))?;
            }
            assert!(
                agent.ready().starts_with("ready: 3 machines"),
                "{}",
                agent.ready()
            );
            ping(&lab.net, lab.machine("web").v4())?;
            ping(&lab.net, lab.machine("mail").v6())
        };
        check().context(what)?;
    }
    Ok(())
}

#[test]
fn bad_declaration_later_stops_nobody() -> Result<()> {
    let mut on = Attached::usual(Mode::Tc)?;
    for (what, text, words) in BAD {
        on.lab.declare("bad", text)?;
        for word in words {
            on.agent
                .wait_line(Duration::from_secs(2), |line| line.contains(word))
                .context(what)?;
        }
        all_reachable(&on.lab).context(what)?;
    }
    assert!(on.agent.running());
    Ok(())
}

#[test]
fn unreadable_declaration_stops_nobody() -> Result<()> {
    let lab = Lab::usual()?;
    // Root reads any file: what cannot be read is a folder by that name.
    fs::create_dir(lab.config_dir().join("machines/bad.toml"))?;
    let file = lab.config_dir().join("machines/worse.toml");
    fs::write(&file, [0xff, 0xfe])?;
    fs::set_permissions(&file, fs::Permissions::from_mode(0o000))?;
    let mut agent = Agent::start(&lab, "eth0")?;
    for word in ["bad.toml", "worse.toml"] {
        agent.wait_line(Duration::from_secs(2), |line| line.contains(word))?;
    }
    all_reachable(&lab)
}

#[test]
fn second_claim_of_an_address_leaves_it_to_the_holder() -> Result<()> {
    let mut on = Attached::usual(Mode::Tc)?;
    on.lab.declare(
        "aaa",
        "interface = \"ve-mail\"\naddresses = [\"203.0.113.2\"]\n",
    )?;
    on.agent.wait_line(Duration::from_secs(2), |line| {
        line.contains("203.0.113.2") && line.contains("web") && line.contains("aaa")
    })?;
    let conflict = wait_until(Duration::from_secs(2), || {
        on.lab
            .json("status")
            .is_ok_and(|status| status["machines"]["conflict"] == 1)
    });
    assert!(conflict, "{:#}", on.lab.json("status")?);
    all_reachable(&on.lab)
}

#[test]
fn address_of_the_host_cannot_be_claimed() -> Result<()> {
    let lab = Lab::usual()?;
    lab.declare(
        "thief",
        "interface = \"ve-mail\"\naddresses = [\"203.0.113.10\", \"203.0.113.1\"]\n",
    )?;
    let mut agent = Agent::start(&lab, "eth0")?;
    agent.wait_line(Duration::from_secs(2), |line| line.contains("203.0.113.10"))?;
    ping(&lab.net, netspawn_tests::HOST4)?;
    ping(&lab.host, netspawn_tests::GATEWAY4)?;
    all_reachable(&lab)
}

/// What is pinned is nobody else's to see or to take away, and a BPFDIR that a user has made
/// before is not used.
#[test]
fn bpf_dir_is_roots_alone_and_that_of_a_user_is_refused() -> Result<()> {
    let lab = Lab::usual()?;
    let dir = lab.bpf_dir();
    let mode = |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode));
    // As a bpf file system is by default: everybody may make something there.
    mode(&lab.bpffs(), 0o1777)?;
    let made = lab
        .host
        .cmd("setpriv")
        .args(["--reuid=65534", "--regid=65534", "--clear-groups", "mkdir"])
        .arg(&dir)
        .output()?;
    if made.code() != 0 {
        // The lab's folder is root's alone where it is made.
        fs::create_dir(&dir)?;
        chown(&dir, Some(65534), Some(65534))?;
    }
    let before = Snapshot::host(&lab)?;
    for words in ["attach eth0 --once", "attach eth0"] {
        let refused = lab.output(words)?;
        ensure!(refused.code() == 1, "{refused:?}");
        let text = &refused.stderr;
        ensure!(text.contains("belongs to user 65534"), "{text}");
    }
    ensure!(
        fs::read_dir(&dir)?.next().is_none(),
        "something was made in it"
    );
    before.same(&Snapshot::host(&lab)?)?;
    fs::remove_dir(&dir)?;

    // One that an older version has made is root's alone from then on.
    fs::create_dir(&dir)?;
    mode(&dir, 0o755)?;
    let line = format!(
        "umask 0; exec \"$0\" {} attach eth0 --once",
        lab.options().join(" ")
    );
    lab.host
        .cmd("sh")
        .args(["-c", &line])
        .arg(binary()?)
        .text()?;
    let mut left = vec![dir.clone()];
    while let Some(folder) = left.pop() {
        let rights = fs::metadata(&folder)?.mode() & 0o7777;
        ensure!(rights & 0o077 == 0, "{}: {rights:04o}", folder.display());
        for entry in fs::read_dir(&folder)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                left.push(entry.path());
            }
        }
    }
    // Whoever gets at it afterwards has nothing to say either.
    chown(&dir, Some(65534), None)?;
    for words in ["list", "attach eth0 --once", "detach"] {
        let refused = lab.output(words)?;
        ensure!(refused.code() == 1, "{words}: {refused:?}");
        let text = &refused.stderr;
        ensure!(text.contains("belongs to user 65534"), "{words}: {text}");
    }
    chown(&dir, Some(0), None)?;
    lab.run("detach")?;
    Ok(())
}
