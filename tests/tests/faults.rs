//! Errors are not emptiness: whatever step fails, or is taken away under the program, no
//! machine that is served is lost for it, and what is said is true.
//!
//! Failures are injected by strace into the program's own calls, in a lab: a layer of the
//! program's would only fail where it was thought of.

use std::{
    fs,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use netspawn_tests::{
    Agent, Cmd, Lab, Output, Pinging, Snapshot, UPLINK, all_reachable, binary, ping, wait_until,
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::json;

const SOON: Duration = Duration::from_secs(5);
/// How long a served port may be without its guard.
const GUARDED: Duration = Duration::from_secs(1);
const ONCE: [&str; 5] = ["attach", UPLINK, "--once", "--source", "files"];

/// The program under strace with these options of strace, in the lab's host.
fn traced(lab: &Lab, options: &[&str], args: &[&str]) -> Result<(Cmd, PathBuf)> {
    let file = lab.dir().join("strace");
    let command = lab
        .host
        .cmd("strace")
        .args(["-f", "-qq", "--seccomp-bpf", "-o"])
        .arg(&file)
        .args(options)
        .arg(binary()?)
        .args(lab.options())
        .args(args);
    Ok((command, file))
}

/// The calls of that name that the program makes, one a line, in their order.
fn calls(lab: &Lab, name: &str, args: &[&str]) -> Result<Vec<String>> {
    let (command, file) = traced(lab, &["-e", &format!("trace={name}")], args)?;
    command.text()?;
    let text = String::from_utf8_lossy(&fs::read(file)?).into_owned();
    let calls = text
        .lines()
        .filter(|line| line.contains(&format!("{name}(")));
    Ok(calls.map(str::to_owned).collect())
}

/// Has the call of that number fail once.
fn failing(lab: &Lab, name: &str, number: usize, errno: &str, args: &[&str]) -> Result<Output> {
    let inject = format!("inject={name}:error={errno}:when={number}");
    let trace = format!("trace={name}");
    traced(lab, &["-e", &trace, "-e", &inject], args)?
        .0
        .output()
}

/// Numbers of the calls whose line has both words, counted from 1 as strace does.
fn numbers(calls: &[String], words: [&str; 2]) -> Vec<usize> {
    let found = calls.iter().enumerate();
    found
        .filter(|(_, line)| words.iter().all(|word| line.contains(word)))
        .map(|(index, _)| index + 1)
        .collect()
}

/// How many calls of a kind fail, spread out over all of them: each costs a start of the
/// program. With `NETSPAWN_FAULTS=100000` it is each one.
fn sample() -> usize {
    let number = std::env::var("NETSPAWN_FAULTS").ok();
    number.and_then(|number| number.parse().ok()).unwrap_or(2)
}

/// Which maps these are.
fn inode(lab: &Lab) -> Result<u64> {
    Ok(fs::metadata(lab.pins().join("maps/endpoints"))?.ino())
}

/// The lab with everything attached, and nobody who follows.
fn attached() -> Result<Lab> {
    let lab = Lab::usual()?;
    lab.output(&ONCE.join(" "))?.success()?;
    all_reachable(&lab)?;
    Ok(lab)
}

#[test]
fn map_that_cannot_be_opened_does_not_cost_the_running_plane() -> Result<()> {
    let lab = attached()?;
    let opened = numbers(
        &calls(&lab, "bpf", &ONCE)?,
        ["BPF_OBJ_GET,", "maps/endpoints"],
    );
    ensure!(!opened.is_empty(), "no map is opened");
    for number in opened {
        let before = inode(&lab)?;
        let stream = Pinging::start(&lab.net, lab.machine("web").v4())?;
        let output = failing(&lab, "bpf", number, "ENOMEM", &ONCE)?;
        stream.lost_none().context(format!("call {number}"))?;
        assert_eq!(output.code(), 1, "call {number}: {output:?}");
        // aya makes a map that it cannot open, and finds its place taken.
        let said = ["memory", "File exists"];
        ensure!(
            said.iter().any(|word| output.stderr.contains(word)),
            "call {number}: {output:?}"
        );
        assert_eq!(before, inode(&lab)?, "other maps");
    }
    lab.output(&ONCE.join(" "))?.success()?;
    all_reachable(&lab)
}

/// Whatever the kernel refuses of an attach over a running data plane, for want of memory or
/// descriptors: nothing is lost, and the next one works.
#[test]
fn any_call_that_fails_costs_no_machine() -> Result<()> {
    let lab = attached()?;
    let stream = Pinging::start(&lab.net, lab.machine("web").v4())?;
    for (name, errno) in [
        ("openat", "EMFILE"),
        ("getdents64", "EIO"),
        ("readlink", "ENOMEM"),
        ("rename", "EIO"),
        ("sendto", "ENOMEM"),
        ("recvfrom", "ENOMEM"),
        ("socket", "EMFILE"),
        ("bpf", "ENOMEM"),
    ] {
        let all = calls(&lab, name, &ONCE)?;
        // A few of them, spread out: each costs a start of the program.
        let each = all.len().div_ceil(sample()).max(1);
        for number in (1 + each / 2..=all.len()).step_by(each) {
            let output = failing(&lab, name, number, errno, &ONCE)?;
            let what = format!("{name} {number}, {errno}: {output:?}");
            ping(&lab.net, lab.machine("mail").v4()).context(what.clone())?;
            if output.code() == 0 {
                ensure!(output.stdout.starts_with("ready: 3 machines"), "{what}");
            } else {
                ensure!(!output.stderr.is_empty(), "{what}");
            }
        }
    }
    stream.lost_none()?;
    all_reachable(&lab)?;
    lab.output("detach")?.success().map(drop)
}

#[test]
fn few_descriptors_are_said_and_nothing_is_claimed() -> Result<()> {
    let lab = Lab::usual()?;
    for limit in [24, 66, 80, 96, 112] {
        let before = Snapshot::host(&lab)?;
        let output = lab
            .host
            .cmd("prlimit")
            .arg(format!("--nofile={limit}"))
            .arg(binary()?)
            .args(lab.options())
            .args(ONCE)
            .output()?;
        match output.code() {
            0 => {
                ensure!(output.stdout.starts_with("ready: 3 machines"), "{output:?}");
                all_reachable(&lab).context(format!("{limit} descriptors"))?;
                lab.run("detach")?;
            }
            1 => before.same(&Snapshot::host(&lab)?)?,
            code => panic!("{limit} descriptors: code {code}, {output:?}"),
        }
    }
    Ok(())
}

#[test]
fn who_may_not_look_is_not_told_that_there_is_nothing() -> Result<()> {
    let lab = attached()?;
    for path in [lab.dir().to_owned(), lab.run_dir(), lab.config_dir()] {
        fs::set_permissions(path, fs::Permissions::from_mode(0o755))?;
    }
    fs::set_permissions(lab.bpffs(), fs::Permissions::from_mode(0o700))?;
    // A copy, because the program may lie where only root gets.
    let program = lab.dir().join("netspawn-xdp");
    fs::copy(binary()?, &program)?;
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755))?;
    for command in ["status", "list", "counters", "detach"] {
        let output = lab
            .host
            .cmd("setpriv")
            .args(["--reuid=65534", "--regid=65534", "--clear-groups"])
            .arg(&program)
            .args(lab.options())
            .arg(command)
            .output()?;
        assert_eq!(output.code(), 1, "{command}: {output:?}");
        ensure!(output.stderr.contains("ermission denied"), "{output:?}");
        ensure!(output.stdout.is_empty(), "{command}: {output:?}");
    }
    all_reachable(&lab)
}

/// As under a unit with `ProcSubset=pid`: the kernel's counters of MLD are not there to be
/// read, which is not the same as that no switch asks.
#[test]
fn hidden_counters_are_said() -> Result<()> {
    let lab = Lab::usual()?;
    // Its prefix would need all groups, whether or not somebody asks.
    lab.withdraw("web")?;
    let output = lab
        .host
        .cmd("unshare")
        .args(["-m", "sh", "-c"])
        .arg("mount -t proc -o subset=pid proc /proc && exec \"$@\"")
        .arg("sh")
        .arg(binary()?)
        .args(lab.options())
        .args(ONCE)
        .output()?;
    assert_eq!(output.code(), 3, "{output:?}");
    ensure!(
        output.stderr.contains("is hidden from this process"),
        "{output:?}"
    );
    Ok(())
}

#[test]
fn damaged_record_is_named_and_does_not_stop_detach() -> Result<()> {
    let lab = Lab::usual()?;
    let before = Snapshot::host(&lab)?;
    lab.output(&ONCE.join(" "))?.success()?;
    for (path, text) in [("netns", ""), ("sources", "fil")] {
        fs::write(lab.run_dir().join(path), text)?;
    }
    let record = lab.pins().join("uplinks").join(UPLINK).join("ifindex");
    fs::remove_file(&record)?;
    std::os::unix::fs::symlink("two", &record)?;
    let output = lab.output("status")?;
    assert_eq!(output.code(), 1, "{output:?}");
    let named = |output: &Output, path: &Path| output.stderr.contains(&*path.to_string_lossy());
    ensure!(named(&output, &lab.run_dir().join("sources")), "{output:?}");
    // Attach writes those of RUNDIR anew.
    fs::remove_file(lab.run_dir().join("sources"))?;
    let output = lab.output("status")?;
    assert_eq!(output.code(), 1, "{output:?}");
    ensure!(named(&output, &record), "{output:?}");
    let output = lab.output("detach")?;
    assert_eq!(output.code(), 0, "{output:?}");
    ensure!(named(&output, &record), "{output:?}");
    ensure!(!lab.pins().exists(), "{output:?}");
    before.same(&Snapshot::host(&lab)?)
}

/// Whatever of the pins is gone, `detach` takes away what is left and leaves nothing.
#[test]
fn detach_finds_what_is_left() -> Result<()> {
    let lab = Lab::usual()?;
    let before = Snapshot::host(&lab)?;
    for what in ["netns", "maps", "programs"] {
        lab.output(&ONCE.join(" "))?.success()?;
        let path = lab.pins().join(what);
        match path.symlink_metadata()?.is_dir() {
            true => fs::remove_dir_all(&path)?,
            false => fs::remove_file(&path)?,
        }
        let output = lab.output("detach")?;
        assert_eq!(output.code(), 0, "{what}: {output:?}");
        ensure!(
            !output.stderr.contains("nothing is attached"),
            "{what}: {output:?}"
        );
        before.same(&Snapshot::host(&lab)?).context(what)?;
    }
    Ok(())
}

/// Ports among the machines' that have no ingress qdisc.
fn unguarded(lab: &Lab) -> Result<Vec<String>> {
    let qdiscs = lab.host.run("tc qdisc show")?;
    let has = |port: &str| {
        qdiscs
            .lines()
            .any(|line| line.contains(&format!("dev {port} ")) && line.contains("ingress_block"))
    };
    let ports = lab
        .machines()
        .iter()
        .map(|machine| machine.port().to_owned());
    Ok(ports.filter(|port| !has(port)).collect())
}

/// A link that is deleted and made within a moment; it has the same number afterwards.
fn made_again(lab: &Lab, port: &str) -> Result<()> {
    let ifindex = lab.host.ifindex(port)?;
    let mac = lab.host.mac(port)?;
    let mac = mac.map(|byte| format!("{byte:02x}")).join(":");
    let batch = format!(
        "link del {port}\nlink add {port} index {ifindex} address {mac} type veth peer name \
         f-{port}\nlink set f-{port} up\nlink set {port} up\n"
    );
    let ip = lab.host.cmd("ip").args(["-batch", "-"]);
    ip.input(batch).text().map(drop)
}

/// One that goes to another namespace and comes back.
fn moved_and_back(lab: &Lab, port: &str) -> Result<()> {
    let [host, net] = [&lab.host, &lab.net].map(|ns| ns.path().display().to_string());
    lab.host.run(&format!("ip link set {port} netns {net}"))?;
    lab.net.run(&format!("ip link set {port} netns {host}"))?;
    lab.host.run(&format!("ip link set {port} up")).map(drop)
}

#[test]
fn link_that_comes_back_with_its_number_is_guarded() -> Result<()> {
    let lab = Lab::usual()?;
    let agent = Agent::start(&lab, "eth0 --source files")?;
    let pid = Pid::from_raw(agent.id().cast_signed());
    type Change = fn(&Lab, &str) -> Result<()>;
    let changes: [(&str, Change); 2] = [("moved", moved_and_back), ("made again", made_again)];
    for (what, change) in changes {
        for stopped in [false, true] {
            ensure!(unguarded(&lab)?.is_empty(), "{what}, {stopped}: before");
            if stopped {
                kill(pid, Signal::SIGSTOP)?;
            }
            for machine in lab.machines() {
                change(&lab, machine.port()).context(what)?;
            }
            kill(pid, Signal::SIGCONT)?;
            let guarded = wait_until(GUARDED, || {
                unguarded(&lab).is_ok_and(|ports| ports.is_empty())
            });
            let words = agent.words();
            ensure!(
                guarded,
                "{what}, {stopped}: {:?}\n{words}",
                unguarded(&lab)?
            );
        }
    }
    Ok(())
}

#[test]
fn removed_pins_are_put_back() -> Result<()> {
    let lab = Lab::usual()?;
    let before = Snapshot::host(&lab)?;
    let mut agent = Agent::start(&lab, "eth0 --source files")?;
    for (index, what) in ["uplinks/eth0", "uplinks", "maps", "programs", "netns", ""]
        .into_iter()
        .enumerate()
    {
        let path = lab.pins().join(what);
        match path.symlink_metadata()?.is_dir() {
            true => fs::remove_dir_all(&path)?,
            false => fs::remove_file(&path)?,
        }
        // Any event has it look; without one it does within half a minute.
        lab.declare(
            "other",
            &format!("addresses = [\"203.0.113.{}\"]\n", 100 + index),
        )?;
        agent
            .wait_line(SOON, |line| {
                line.contains("were removed; they are put back")
            })
            .context(what)?;
        let whole = wait_until(SOON, || all_reachable(&lab).is_ok());
        ensure!(whole, "{what}\n{}", agent.words());
        let status = lab.output("status")?;
        assert_eq!(status.code(), 0, "{what}: {status:?}");
        ensure!(agent.running(), "{what}\n{}", agent.words());
    }
    lab.withdraw("other")?;
    // The next process finds what it needs.
    agent.kill()?;
    let agent = Agent::start(&lab, "eth0 --source files")?;
    all_reachable(&lab)?;
    lab.run("detach")?;
    drop(agent);
    before.same(&Snapshot::host(&lab)?)
}

#[test]
fn removed_run_directory_lets_no_second_agent_in() -> Result<()> {
    let lab = Lab::usual()?;
    let mut agent = Agent::start(&lab, "eth0 --source files")?;
    let pid = Pid::from_raw(agent.id().cast_signed());
    // While it cannot look, nobody else gets in.
    kill(pid, Signal::SIGSTOP)?;
    fs::remove_dir_all(lab.run_dir())?;
    let second = lab.output(&ONCE.join(" "))?;
    kill(pid, Signal::SIGCONT)?;
    assert_eq!(second.code(), 1, "{second:?}");
    ensure!(second.stderr.contains("in use by a process"), "{second:?}");
    agent.wait_line(SOON, |line| {
        line.contains("it is put back, with the agent's socket")
    })?;
    let answers = wait_until(SOON, || {
        let status = lab.json("status");
        status.is_ok_and(|status| status["agent"]["pid"] == agent.id())
    });
    ensure!(answers, "{}", agent.words());
    all_reachable(&lab)?;
    lab.run("detach")?;
    ensure!(
        wait_until(SOON, || !agent.running()),
        "it goes on after detach"
    );
    assert_eq!(unguarded(&lab)?.len(), lab.machines().len());
    Ok(())
}

/// As on a host without networkd: links of an engine's machines are down, and nobody else
/// sets them up.
#[test]
fn attach_once_waits_for_ports_that_it_sets_up() -> Result<()> {
    let lab = Lab::usual()?;
    let mut kept = Vec::new();
    for machine in lab.machines() {
        lab.withdraw(machine.name())?;
        lab.host
            .run(&format!("ip link set {} down", machine.port()))?;
        kept.push(json!({
            "name": machine.name(),
            "origin": format!("domain {}", machine.name()),
            "addresses": [format!("{}/32", machine.v4())],
            "place": {"link": machine.port()},
        }));
    }
    let engines = lab.run_dir().join("engines");
    fs::create_dir(&engines)?;
    fs::write(engines.join("libvirt.json"), serde_json::to_vec(&kept)?)?;
    let output = lab.output("attach eth0 --once --source files,libvirt")?;
    ensure!(output.stdout.starts_with("ready: 3 machines"), "{output:?}");
    for machine in lab.machines() {
        ping(&lab.net, machine.v4())?;
    }
    Ok(())
}

#[test]
fn directory_that_is_gone_withdraws_nobody() -> Result<()> {
    let lab = Lab::usual()?;
    let mut agent = Agent::start(&lab, "eth0 --source files")?;
    let machines = lab.config_dir().join("machines");
    let away = lab.config_dir().join("away");
    let stream = Pinging::start(&lab.net, lab.machine("web").v4())?;
    fs::rename(&machines, &away)?;
    agent.wait_line(SOON, |line| {
        line.contains("is gone; what was declared in it holds on")
    })?;
    thread::sleep(Duration::from_millis(300));
    fs::rename(&away, &machines)?;
    thread::sleep(Duration::from_millis(300));
    stream.lost_none()?;
    ping(&lab.net, lab.machine("mail").v4())?;
    ensure!(agent.running());
    Ok(())
}

#[test]
fn detach_finds_guards_whose_pins_are_gone() -> Result<()> {
    let lab = Lab::usual()?;
    lab.output(&ONCE.join(" "))?.success()?;
    fs::remove_dir_all(lab.pins())?;
    let output = lab.output("detach")?;
    ensure!(
        output.code() == 0 && output.stderr.contains("guards of 3 ports"),
        "{output:?}"
    );
    let guards = lab.host.run("tc qdisc show")?;
    ensure!(!guards.contains("ingress_block"), "{guards}");
    let output = lab.output("detach")?;
    ensure!(output.stderr.contains("nothing is attached"), "{output:?}");
    Ok(())
}
