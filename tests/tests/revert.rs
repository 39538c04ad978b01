//! `attach --revert-after`: without a `confirm` all is as before, whatever has become of
//! the terminal, its processes and the agent; with one, it stays.
//!
//! Terminals are real: script(1) holds the other end, and when it is killed the kernel
//! hangs up.

use std::{
    fs,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _},
    path::PathBuf,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use netspawn_tests::{
    Agent, FAR4, GATEWAY4, HOST4, Lab, Mode, Pinging, Process, Signal, Snapshot, SystemdHost,
    UPLINK, all_reachable, binary, in_each_mode, ping, ready_for, remount, unreachable, wait_until,
};
use nix::{sys::signal::kill, unistd::Pid};

in_each_mode! {
    terminal_gone_reverts
    former_mode_comes_back
}

/// Time to confirm, where it is meant to run out: long enough that what comes before the
/// deadline comes before it on a busy machine.
const TIME: &str = "6s";
/// Time to confirm, where it does not matter.
const LONG: &str = "5m";
/// From the start of an attach until it has been undone after [`TIME`].
const UNDONE: Duration = Duration::from_secs(16);
const SOON: Duration = Duration::from_secs(5);

/// Runs `netspawn-xdp attach WORDS` on a terminal until it is ready. `then` are words of
/// the shell that goes on afterwards.
fn on_terminal(lab: &Lab, words: &str, then: &str) -> Result<Process> {
    let line = format!(
        "{} {} attach {words}{then}",
        binary()?.display(),
        lab.options().join(" ")
    );
    let mut terminal = lab
        .host
        // Whoever runs the tests may be under nohup(1).
        .cmd("env")
        .args([
            "--default-signal=HUP",
            "script",
            "--quiet",
            "--return",
            "--command",
            &line,
            "/dev/null",
        ])
        .start()?;
    terminal.wait_line(Duration::from_secs(20), |line| line.starts_with("ready:"))?;
    Ok(terminal)
}

/// Processes whose command line has `word` in it.
fn processes(word: &str) -> Vec<(i32, String)> {
    let Ok(entries) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    entries
        .flatten()
        .filter_map(|entry| {
            let pid = entry.file_name().to_str()?.parse().ok()?;
            let line = fs::read(entry.path().join("cmdline")).ok()?;
            Some((pid, String::from_utf8_lossy(&line).replace('\0', " ")))
        })
        .filter(|(_, line)| line.contains(word))
        .collect()
}

/// The processes that wait for deadlines in this lab.
fn keepers(lab: &Lab) -> Vec<i32> {
    processes(&lab.run_dir().display().to_string())
        .into_iter()
        .filter(|(_, line)| line.contains(" revert "))
        .map(|(pid, _)| pid)
        .collect()
}

/// The session of a process, from the fourth field after its name.
fn session(pid: i32) -> Option<i32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, rest) = stat.rsplit_once(')')?;
    rest.split_whitespace().nth(3)?.parse().ok()
}

fn agent(lab: &Lab) -> Result<i32> {
    let status = lab.json("status")?;
    let pid = status["agent"]["pid"].as_i64();
    Ok(pid.context("no agent runs")?.try_into()?)
}

/// What is pending, as `status --json` has it.
fn pending(lab: &Lab) -> Result<Option<serde_json::Value>> {
    let status = lab.json("status")?;
    Ok(Some(status["revert"].clone()).filter(|revert| !revert.is_null()))
}

/// Files of RUNDIR, sorted.
fn files(lab: &Lab) -> Vec<PathBuf> {
    let mut files: Vec<_> = fs::read_dir(lab.run_dir())
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.file_name().into())
        .collect();
    files.sort();
    files
}

/// The host as it was, and the data plane working until the time is over; then all as
/// before and nobody left.
fn reverts(lab: &Lab, before: &Snapshot, start: Instant) -> Result<()> {
    all_undone(lab, before, start)?;
    assert_eq!(files(lab), Vec::<PathBuf>::new());
    Ok(())
}

fn all_undone(lab: &Lab, before: &Snapshot, start: Instant) -> Result<()> {
    let web = lab.machine("web");
    ensure!(
        wait_until(UNDONE, || keepers(lab).is_empty()),
        "the process that undoes is still there after {:?}",
        start.elapsed()
    );
    ensure!(
        start.elapsed() >= Duration::from_secs(6),
        "undone after {:?}, which is too early",
        start.elapsed()
    );
    let left = || processes(&lab.run_dir().display().to_string());
    // The agent has been told, and ends.
    assert!(wait_until(SOON, || left().is_empty()), "{:?}", left());
    unreachable(&lab.net, web.v4())?;
    unreachable(&lab.net, web.v6())?;
    ping(&lab.net, HOST4)?;
    ping(&lab.host, FAR4)?;
    before.same(&Snapshot::host(lab)?)
}

/// Machines answer, and the host is where it was.
fn served(lab: &Lab) -> Result<()> {
    ping(&lab.net, lab.machine("web").v4())?;
    ping(&lab.net, lab.machine("web").v6())?;
    ping(&lab.net, HOST4)?;
    ping(&lab.host, GATEWAY4)
}

fn gone(pid: i32) -> bool {
    wait_until(SOON, || kill(Pid::from_raw(pid), None).is_err())
}

fn terminal_gone_reverts(mode: Mode) -> Result<()> {
    let lab = Lab::usual()?;
    ready_for(&lab, mode)?;
    let before = Snapshot::host(&lab)?;
    let start = Instant::now();
    let words = format!("{} --revert-after {TIME}", mode.attach());
    let terminal = on_terminal(&lab, &words, "")?;
    served(&lab)?;
    let agent = agent(&lab)?;
    assert_eq!(keepers(&lab).len(), 1);
    assert_ne!(session(keepers(&lab)[0]), session(agent));
    terminal.end(Signal::SIGKILL, SOON)?;
    assert!(gone(agent), "the agent outlives its terminal");
    // It has ended in order.
    assert!(!lab.run_dir().join("agent.sock").exists());
    served(&lab)?;
    assert!(start.elapsed() < Duration::from_secs(6), "too slow to say");
    reverts(&lab, &before, start)
}

#[test]
fn killed_session_reverts_what_once_has_attached() -> Result<()> {
    let lab = Lab::usual()?;
    let before = Snapshot::host(&lab)?;
    let start = Instant::now();
    let words = format!("{UPLINK} --once --revert-after {TIME}");
    let terminal = on_terminal(&lab, &words, "; sleep 100")?;
    served(&lab)?;
    // All processes of the session, as `pkill -9 --session` would. script(1) leads none.
    let children = format!("/proc/{0}/task/{0}/children", terminal.id());
    let leader: i32 = fs::read_to_string(children)?.trim().parse()?;
    ensure!(
        session(leader) == Some(leader)
            && session(std::process::id().cast_signed()) != Some(leader),
        "{leader} leads no session on the terminal"
    );
    let all: Vec<i32> = processes("")
        .into_iter()
        .map(|(pid, _)| pid)
        .filter(|pid| session(*pid) == Some(leader))
        .collect();
    for pid in &all {
        // With the first of them others may have gone.
        let _ = kill(Pid::from_raw(*pid), Signal::SIGKILL);
    }
    assert!(!all.is_empty());
    drop(terminal);
    served(&lab)?;
    reverts(&lab, &before, start)
}

#[test]
fn killed_agent_reverts() -> Result<()> {
    let lab = Lab::usual()?;
    let before = Snapshot::host(&lab)?;
    let start = Instant::now();
    let agent = Agent::start(&lab, &format!("{UPLINK} --revert-after {TIME}"))?;
    agent.kill()?;
    served(&lab)?;
    reverts(&lab, &before, start)
}

#[test]
fn living_agent_says_so_and_fails() -> Result<()> {
    let lab = Lab::usual()?;
    let before = Snapshot::host(&lab)?;
    let start = Instant::now();
    let output = lab.output(&format!("attach {UPLINK} --revert-after {TIME}"))?;
    assert_eq!(output.code(), 1, "{output:?}");
    let last = output.stderr.lines().last().unwrap_or_default();
    assert_eq!(
        last, "netspawn-xdp: not confirmed in time: eth0 is detached",
        "{output:?}"
    );
    reverts(&lab, &before, start)
}

/// Output to a terminal that takes none stops an agent just so.
#[test]
fn stopped_agent_is_killed_and_reverts() -> Result<()> {
    let lab = Lab::usual()?;
    let before = Snapshot::host(&lab)?;
    let start = Instant::now();
    let stopped = Agent::start(&lab, &format!("{UPLINK} --revert-after {TIME}"))?;
    kill(Pid::from_raw(stopped.id().cast_signed()), Signal::SIGSTOP)?;
    served(&lab)?;
    // The agent has ten seconds to answer.
    thread::sleep(Duration::from_secs(10));
    ensure!(wait_until(UNDONE, || keepers(&lab).is_empty()));
    drop(stopped);
    reverts(&lab, &before, start)
}

/// Another program that has RUNDIR/lock locked.
fn locked(lab: &Lab, mut by: netspawn_tests::Cmd) -> Result<Process> {
    by = by
        .args(["flock", "--no-fork"])
        .arg(lab.run_dir().join("lock"))
        .args(["sh", "-c", "echo locked; exec sleep 1000"]);
    let mut process = by.start()?;
    process.wait_line(SOON, |line| line == "locked")?;
    Ok(process)
}

/// Whoever has the lock, if it is no netspawn-xdp it is not ended for it, and nor is who
/// looks for it; the revert comes as soon as it can.
#[test]
fn lock_of_a_stranger_ends_nobody_and_delays_no_longer_than_it_is_held() -> Result<()> {
    /// How long a command waits for the lock.
    const PATIENCE: Duration = Duration::from_secs(20);
    /// Time to confirm: whoever takes the lock does so before it is over.
    const TIME: Duration = Duration::from_secs(15);
    let lab = Lab::usual()?;
    let before = Snapshot::host(&lab)?;
    lab.run(&format!(
        "attach {UPLINK} --once --revert-after {}s",
        TIME.as_secs()
    ))?;
    // Later than the deadline by as much as the attach has taken.
    let start = Instant::now();
    let mut stranger = locked(&lab, lab.host.cmd("env"))?;
    served(&lab)?;
    let refused = lab.output("add x --interface ve-x --address 203.0.113.99")?;
    ensure!(
        refused.code() == 1 && refused.stderr.contains("fuser"),
        "{refused:?}"
    );
    // Until the keeper has given up a turn, and has looked for somebody to end.
    let over = TIME + PATIENCE + Duration::from_secs(4);
    thread::sleep(over.saturating_sub(start.elapsed()));
    ensure!(keepers(&lab).len() == 1, "{:?}", keepers(&lab));
    ensure!(stranger.running(), "it was ended");
    served(&lab)?;
    stranger.end(Signal::SIGKILL, SOON)?;
    // It waits for its turn, or a second before it tries again.
    ensure!(wait_until(UNDONE, || keepers(&lab).is_empty()));
    before.same(&Snapshot::host(&lab)?)
}

/// Runs a program as a user who is nobody on this host.
fn as_nobody(lab: &Lab) -> netspawn_tests::Cmd {
    lab.host
        .cmd("setpriv")
        .args(["--reuid=65534", "--regid=65534", "--clear-groups"])
}

/// All below RUNDIR, with its rights; RUNDIR first.
fn tree(lab: &Lab) -> Result<Vec<(PathBuf, fs::Metadata)>> {
    let mut found = Vec::new();
    let mut left = vec![lab.run_dir()];
    while let Some(path) = left.pop() {
        let metadata = path.symlink_metadata()?;
        if metadata.is_dir() {
            for entry in fs::read_dir(&path)? {
                left.push(entry?.path());
            }
        }
        found.push((path, metadata));
    }
    Ok(found)
}

/// With an agent, a revert that is pending and a machine that is added there is all that a
/// host has in RUNDIR without engines.
#[test]
fn nobody_but_root_locks_opens_or_writes_what_is_in_the_run_directory() -> Result<()> {
    let lab = Lab::usual()?;
    // As /run/netspawn is: others get as far as there.
    for folder in [lab.dir(), &lab.run_dir()] {
        fs::set_permissions(folder, fs::Permissions::from_mode(0o755))?;
    }
    // As an older version left it.
    let lock = lab.run_dir().join("lock");
    fs::write(&lock, "")?;
    fs::set_permissions(&lock, fs::Permissions::from_mode(0o644))?;
    let line = format!(
        "umask 0; exec \"$0\" {} attach {UPLINK} --revert-after {LONG}",
        lab.options().join(" ")
    );
    let mut agent = lab
        .host
        .cmd("sh")
        .args(["-c", &line])
        .arg(binary()?)
        .start()?;
    agent.wait_line(Duration::from_secs(20), |line| line.starts_with("ready:"))?;
    lab.run("add x --interface ve-x --address 203.0.113.99")?;
    let mut seen = Vec::new();
    for (path, metadata) in tree(&lab)? {
        let name = path.strip_prefix(lab.run_dir())?.display().to_string();
        let mode = metadata.mode() & 0o7777;
        ensure!(mode & 0o022 == 0, "{name}: {mode:04o}");
        // Declarations and what is no secret may be read; nobody waits for a lock on them.
        let readable = ["", "machines", "netns", "sources"].contains(&name.as_str())
            || name.ends_with(".toml");
        if !readable {
            let private = mode & 0o077 == 0;
            ensure!(private, "{name}: {mode:04o}");
            let locked = as_nobody(&lab)
                .args(["flock", "--nonblock", "--exclusive"])
                .arg(&path)
                .arg("true")
                .output()?;
            ensure!(locked.code() != 0, "{name} can be locked by anybody");
        }
        seen.push(name);
    }
    for wanted in [
        "lock",
        "agent.sock",
        "docker.sock",
        "revert",
        "netns",
        "sources",
    ] {
        ensure!(seen.iter().any(|name| name == wanted), "{wanted}: {seen:?}");
    }
    lab.run("confirm")?;
    agent.end(Signal::SIGTERM, SOON)?;
    Ok(())
}

/// One who has opened it while an older version let him.
#[test]
fn lock_that_a_user_has_opened_before_holds_up_nothing_for_long() -> Result<()> {
    let lab = Lab::usual()?;
    for folder in [lab.dir(), &lab.run_dir()] {
        fs::set_permissions(folder, fs::Permissions::from_mode(0o755))?;
    }
    let lock = lab.run_dir().join("lock");
    fs::write(&lock, "")?;
    fs::set_permissions(&lock, fs::Permissions::from_mode(0o644))?;
    let mut user = locked(&lab, as_nobody(&lab))?;
    lab.run(&format!("attach {UPLINK} --once"))?;
    // From then on not at all.
    let start = Instant::now();
    lab.run("add x --interface ve-x --address 203.0.113.99")?;
    lab.run("remove x")?;
    lab.run("detach")?;
    ensure!(
        start.elapsed() < Duration::from_secs(15),
        "{:?}",
        start.elapsed()
    );
    ensure!(user.running());
    Ok(())
}

#[test]
fn attach_killed_halfway_reverts() -> Result<()> {
    let lab = Lab::usual()?;
    let before = Snapshot::host(&lab)?;
    for pause in [0, 2, 5, 10, 20, 40] {
        let mut attach = lab
            .xdp(["attach", UPLINK, "--revert-after", "2s"])?
            .start()?;
        attach.wait_line(SOON, |line| line.contains("confirm"))?;
        thread::sleep(Duration::from_millis(pause));
        attach.end(Signal::SIGKILL, SOON)?;
        ensure!(wait_until(UNDONE, || keepers(&lab).is_empty()));
        before
            .same(&Snapshot::host(&lab)?)
            .with_context(|| format!("killed after {pause} ms"))?;
        assert_eq!(files(&lab), Vec::<PathBuf>::new(), "after {pause} ms");
    }
    // And as if nothing had been.
    let _agent = Agent::start(&lab, UPLINK)?;
    all_reachable(&lab)
}

#[test]
fn confirmed_stays() -> Result<()> {
    let lab = Lab::usual()?;
    let start = Instant::now();
    let mut agent = Agent::start(&lab, &format!("{UPLINK} --revert-after {TIME}"))?;
    let confirm = lab.output("confirm")?;
    assert_eq!((confirm.code(), &*confirm.stdout), (0, "kept: eth0 (tc)\n"));
    assert!(keepers(&lab).is_empty());
    assert_eq!(pending(&lab)?, None);
    let again = lab.output("confirm")?;
    assert_eq!(again.code(), 1);
    assert!(again.stderr.contains("no revert is pending"), "{again:?}");
    thread::sleep(Duration::from_secs(8).saturating_sub(start.elapsed()));
    assert!(agent.running());
    all_reachable(&lab)?;
    assert!(!files(&lab).iter().any(|file| file.starts_with("revert")));
    // Nobody waits for it either: no zombie.
    let children = format!("/proc/{0}/task/{0}/children", agent.id());
    assert_eq!(fs::read_to_string(children)?, "");
    Ok(())
}

#[test]
fn status_and_attach_tell_what_is_pending() -> Result<()> {
    let lab = Lab::usual()?;
    let once = format!("attach {UPLINK} --once --revert-after {LONG}");
    let output = lab.output(&once)?;
    assert_eq!(output.code(), 0, "{output:?}");
    let told = output.stderr.lines().find(|line| line.contains("confirm"));
    let told = told.context("nothing was told")?;
    let confirm = format!(
        "--run-dir {} confirm` is run within 5m",
        lab.run_dir().display()
    );
    assert!(told.contains(&confirm), "{told}");
    assert!(told.ends_with(": eth0 is detached"), "{told}");

    let revert = pending(&lab)?.context("nothing is pending")?;
    assert_eq!(revert["pid"], keepers(&lab)[0]);
    assert_eq!(revert["phase"], "waiting");
    let left = revert["left"].as_i64().context("no time left")?;
    assert!((200..=300).contains(&left), "{revert}");
    let status = lab.run("status")?;
    let line = status.lines().last().unwrap_or_default();
    assert!(
        line.starts_with("revert ") && line.ends_with(": eth0 is detached"),
        "{status}"
    );
    assert_eq!(lab.json("confirm")?["kept"][0]["name"], UPLINK);
    Ok(())
}

#[test]
fn second_uplink_alone_is_taken_off() -> Result<()> {
    let lab = Lab::usual()?;
    second_link(&lab)?;
    let mut agent = Agent::start(&lab, UPLINK)?;
    let pings = Pinging::start(&lab.net, lab.machine("web").v4())?;
    let before = Snapshot::host(&lab)?;
    let words = lab.run(&format!("attach eth1 --revert-after {TIME}"))?;
    assert!(words.contains("eth1"), "{words}");
    assert_eq!(
        uplinks(&lab)?,
        [("eth0".into(), "tc".into()), ("eth1".into(), "tc".into())]
    );
    assert!(wait_until(UNDONE, || keepers(&lab).is_empty()));
    assert_eq!(uplinks(&lab)?, [("eth0".into(), "tc".into())]);
    assert!(agent.running());
    pings.lost_none()?;
    before.same(&Snapshot::host(&lab)?)?;
    all_reachable(&lab)
}

fn second_link(lab: &Lab) -> Result<()> {
    lab.host.run("ip link add eth1 type veth peer name far1")?;
    lab.host.run("ip link set far1 up")?;
    lab.host.run("ip link set eth1 up")?;
    lab.host.settled("eth1")
}

fn uplinks(lab: &Lab) -> Result<Vec<(String, String)>> {
    let status = lab.json("status")?;
    let text = |value: &serde_json::Value| value.as_str().unwrap_or("?").to_owned();
    Ok(status["uplinks"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|uplink| (text(&uplink["name"]), text(&uplink["mode"])))
        .collect())
}

/// With an agent that was there before, and without any.
fn former_mode_comes_back(mode: Mode) -> Result<()> {
    let other = match mode {
        Mode::Tc => Mode::Xdp,
        Mode::Xdp => Mode::Tc,
    };
    let lab = Lab::usual()?;
    ready_for(&lab, Mode::Xdp)?;
    let mut agent = Agent::start(&lab, mode.attach())?;
    let was = [(UPLINK.to_owned(), mode.name().to_owned())];
    let now = [(UPLINK.to_owned(), other.name().to_owned())];
    let change = format!("attach {} --once --revert-after {TIME}", other.attach());
    lab.run(&change)?;
    assert_eq!(uplinks(&lab)?, now);
    assert!(wait_until(UNDONE, || keepers(&lab).is_empty()));
    assert_eq!(uplinks(&lab)?, was);
    assert!(agent.running());
    all_reachable(&lab)?;
    agent.kill()?;
    lab.run(&change)?;
    assert_eq!(uplinks(&lab)?, now);
    assert!(wait_until(UNDONE, || keepers(&lab).is_empty()));
    assert_eq!(uplinks(&lab)?, was);
    all_reachable(&lab)
}

#[test]
fn takeover_gives_up_its_agent_and_nothing_else() -> Result<()> {
    let lab = Lab::usual()?;
    Agent::start(&lab, &format!("{UPLINK} --source files,nspawn"))?.kill()?;
    let pings = Pinging::start(&lab.net, lab.machine("web").v4())?;
    let output = lab.output(&format!(
        "attach {UPLINK} --source nspawn --revert-after {TIME}"
    ))?;
    // Machines of files are not served without that source, and are again.
    assert_eq!(output.code(), 1, "{output:?}");
    assert!(
        output
            .stderr
            .contains("eth0 is attached by tc again, the agent ends"),
        "{output:?}"
    );
    assert!(wait_until(UNDONE, || keepers(&lab).is_empty()));
    assert_eq!(
        fs::read_to_string(lab.run_dir().join("sources"))?,
        "files,nspawn\n"
    );
    assert_eq!(lab.json("status")?["agent"], serde_json::Value::Null);
    assert!(!pings.gaps()?.is_empty());
    all_reachable(&lab)
}

#[test]
fn attach_of_what_is_attached_has_nothing_to_undo() -> Result<()> {
    let lab = Lab::usual()?;
    let _agent = Agent::start(&lab, UPLINK)?;
    let output = lab.output(&format!("attach {UPLINK} --revert-after {TIME}"))?;
    assert_eq!(output.code(), 0, "{output:?}");
    assert!(output.stderr.contains("nothing to undo"), "{output:?}");
    assert!(keepers(&lab).is_empty());
    assert_eq!(pending(&lab)?, None);
    Ok(())
}

#[test]
fn while_pending_only_a_takeover_is_let_through() -> Result<()> {
    let lab = Lab::usual()?;
    second_link(&lab)?;
    let before = Snapshot::host(&lab)?;
    let start = Instant::now();
    lab.run(&format!("attach {UPLINK} --once --revert-after 15s"))?;
    for words in ["attach eth1 --once", "attach eth0 --once --revert-after 9s"] {
        let output = lab.output(words)?;
        assert_eq!(output.code(), 1, "{output:?}");
        assert!(output.stderr.contains("a revert is pending"), "{output:?}");
    }
    // As systemd starts the agent again.
    let agent = Agent::start(&lab, UPLINK)?;
    assert!(
        agent.words().contains("a revert is pending"),
        "{}",
        agent.words()
    );
    served(&lab)?;
    assert_eq!(keepers(&lab).len(), 1);
    assert!(wait_until(2 * UNDONE, || keepers(&lab).is_empty()));
    reverts(&lab, &before, start)
}

#[test]
fn detach_and_failure_end_what_is_pending() -> Result<()> {
    let lab = Lab::usual()?;
    second_link(&lab)?;
    let before = Snapshot::host(&lab)?;
    for once in ["", " --once"] {
        let words = format!("{UPLINK} eth1{once} --revert-after {LONG}");
        let agent = match once {
            "" => Some(Agent::start(&lab, &words)?),
            _ => lab.run(&format!("attach {words}")).map(|_| None)?,
        };
        // One of two does not.
        lab.run("detach eth1")?;
        assert_eq!(keepers(&lab).len(), 1);
        lab.run("detach")?;
        assert!(keepers(&lab).is_empty());
        drop(agent);
        before.same(&Snapshot::host(&lab)?)?;
        assert_eq!(files(&lab), Vec::<PathBuf>::new());
    }
    // No program can be pinned.
    remount(&lab.bpffs(), true)?;
    let output = lab.output(&format!("attach {UPLINK} --revert-after {LONG}"))?;
    remount(&lab.bpffs(), false)?;
    assert_eq!(output.code(), 1, "{output:?}");
    assert!(keepers(&lab).is_empty());
    before.same(&Snapshot::host(&lab)?)?;
    assert_eq!(files(&lab), Vec::<PathBuf>::new());
    Ok(())
}

#[test]
fn revert_that_fails_is_tried_again() -> Result<()> {
    let lab = Lab::usual()?;
    let before = Snapshot::host(&lab)?;
    let start = Instant::now();
    lab.run(&format!("attach {UPLINK} --once --revert-after 2s"))?;
    remount(&lab.bpffs(), true)?;
    // The maps are half gone, which is what `status` says besides.
    let mut seen = lab.output("status");
    let trying = wait_until(SOON, || {
        seen = lab.output("status");
        seen.as_ref()
            .is_ok_and(|status| status.stderr.contains("a revert is under way"))
    });
    thread::sleep(Duration::from_secs(2));
    let late = lab.output("confirm")?;
    remount(&lab.bpffs(), false)?;
    assert!(trying, "{seen:?}");
    assert_eq!(late.code(), 1);
    assert!(late.stderr.contains("too late"), "{late:?}");
    assert!(wait_until(UNDONE, || keepers(&lab).is_empty()));
    assert!(start.elapsed() > Duration::from_secs(4));
    before.same(&Snapshot::host(&lab)?)?;
    assert_eq!(files(&lab), Vec::<PathBuf>::new());
    Ok(())
}

#[test]
fn killed_process_is_told_and_confirmed() -> Result<()> {
    let lab = Lab::usual()?;
    lab.run(&format!("attach {UPLINK} --once --revert-after {LONG}"))?;
    let keeper = keepers(&lab)[0];
    for signal in [Signal::SIGHUP, Signal::SIGTERM, Signal::SIGINT] {
        kill(Pid::from_raw(keeper), signal)?;
    }
    thread::sleep(Duration::from_millis(200));
    assert_eq!(keepers(&lab), [keeper], "a polite signal ended it");
    kill(Pid::from_raw(keeper), Signal::SIGKILL)?;
    assert!(gone(keeper));
    let revert = pending(&lab)?.context("nothing is told")?;
    assert_eq!(revert["phase"], "lost");
    let confirm = lab.output("confirm")?;
    assert_eq!(confirm.code(), 0, "{confirm:?}");
    assert!(confirm.stderr.contains("was killed"), "{confirm:?}");
    served(&lab)
}

/// A service that ends takes all processes of its control group along, as a session does
/// where logind is told to (`KillUserProcesses=`).
#[test]
fn killed_service_reverts_under_systemd() -> Result<()> {
    let system = SystemdHost::boot()?;
    let addresses = ["203.0.113.2"];
    system.declare("web", &addresses)?;
    system.start_machine("web", &addresses)?;
    let web: std::net::Ipv4Addr = addresses[0].parse()?;
    let pins = system.run("find /sys/fs/bpf")?;
    system.attach(&format!("{UPLINK} --revert-after 8s"))?;
    netspawn_tests::wait_ping(&system.net, web, SOON)?;
    system.run("systemctl kill --kill-who=all --signal=SIGKILL netspawn-xdp@eth0")?;
    let scopes = "systemctl list-units --plain --no-legend netspawn-xdp-revert-*.scope";
    assert!(
        system.run(scopes)?.contains("running"),
        "{}",
        system.run(scopes)?
    );
    ping(&system.net, web)?;
    let undone = wait_until(UNDONE, || {
        system
            .run(scopes)
            .is_ok_and(|units| units.trim().is_empty())
    });
    let journal = system.run("journalctl --no-pager --output=cat --identifier=netspawn-xdp")?;
    ensure!(undone, "{journal}");
    assert!(
        journal.contains("not confirmed in time: eth0 is detached"),
        "{journal}"
    );
    unreachable(&system.net, web)?;
    ping(&system.net, HOST4)?;
    assert_eq!(system.run("find /sys/fs/bpf")?, pins);
    let files = system.run("find /run/netspawn -type f -o -type s")?;
    if files.lines().any(|file| !file.contains("/machines/")) {
        bail!("left: {files}");
    }
    Ok(())
}
