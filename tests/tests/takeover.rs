//! The data plane outlives the agent, and links and declarations come and go.

use std::{
    fs,
    io::{self, Write as _},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result};
use netspawn_tests::{
    Agent, Attached, FAR4, HOST0, Lab, Mode, Pinging, Snapshot, Spec, UPLINK, all_reachable,
    in_each_mode, ping, ready_for, unreachable, wait_ping, wait_until,
};

in_each_mode! {
    killed_agent_changes_nothing
    once_leaves_everything_working
    takeover_loses_no_packet
    another_version_is_replaced_without_a_lost_packet
    another_version_is_detached
    second_attach_hands_over_and_ends
    add_and_remove_work_without_agent
    add_and_remove_work_with_agent
    files_are_followed
    later_machine_comes_up_by_itself
    machine_comes_back_after_its_port_was_deleted
    detach_leaves_all_as_before
    detach_leaves_all_as_before_without_agent
}

const SOON: Duration = Duration::from_secs(5);

fn killed_agent_changes_nothing(mode: Mode) -> Result<()> {
    let Attached { agent, lab } = Attached::usual(mode)?;
    agent.kill()?;
    all_reachable(&lab)?;
    // Neighbors that forget are told again.
    for ns in [&lab.net, &lab.host] {
        ns.run("ip neigh flush all")?;
    }
    all_reachable(&lab)
}

fn once_leaves_everything_working(mode: Mode) -> Result<()> {
    let lab = Lab::usual()?;
    ready_for(&lab, mode)?;
    let words = lab.run(&format!("attach {} --once", mode.attach()))?;
    assert!(words.contains("ready: 3 machines, 7 prefixes"), "{words}");
    all_reachable(&lab)
}

fn takeover_loses_no_packet(mode: Mode) -> Result<()> {
    let Attached { agent, lab } = Attached::usual(mode)?;
    let (web, db) = (lab.machine("web"), lab.machine("db"));
    let pings = [
        Pinging::start(&lab.net, web.v4())?,
        Pinging::start(&lab.net, web.v6())?,
        Pinging::start(&web.ns, db.v4())?,
        Pinging::start(&db.ns, FAR4)?,
        Pinging::start(&lab.host, db.v6())?,
    ];
    agent.kill()?;
    let second = Agent::start(&lab, mode.attach())?;
    thread::sleep(Duration::from_millis(200));
    second.terminate()?;
    let third = Agent::start(&lab, mode.attach())?;
    third.terminate()?;
    // Other sizes: the maps are made anew and swapped.
    let words = format!("{} --max-machines 100 --max-addresses 5000", mode.attach());
    let fourth = Agent::start(&lab, &words)?;
    thread::sleep(Duration::from_millis(200));
    fourth.kill()?;
    for ping in pings {
        ping.lost_none()?;
    }
    all_reachable(&lab)
}

/// Has the data plane that is attached be one of an older map layout.
fn grown_old(lab: &Lab) -> Result<()> {
    fs::rename(lab.pins(), lab.bpf_dir().join("v1")).context("cannot rename the pins")
}

fn another_version_is_replaced_without_a_lost_packet(mode: Mode) -> Result<()> {
    let lab = Lab::usual()?;
    ready_for(&lab, mode)?;
    let before = Snapshot::host(&lab)?;
    let words = format!("{} --max-machines 100", mode.attach());
    let agent = Agent::start(&lab, &words)?;
    let (web, db) = (lab.machine("web"), lab.machine("db"));
    let pings = [
        Pinging::start(&lab.net, web.v4())?,
        Pinging::start(&lab.net, web.v6())?,
        Pinging::start(&web.ns, db.v4())?,
        Pinging::start(&db.ns, FAR4)?,
        Pinging::start(&lab.host, db.v6())?,
    ];
    agent.kill()?;
    grown_old(&lab)?;
    let output = lab.output("list")?;
    assert_eq!(output.code(), 1, "{output:?}");
    let words = lab.run(&format!("attach {} --dry-run", mode.attach()))?;
    assert!(words.contains("another version"), "{words}");
    let second = Agent::start(&lab, mode.attach())?;
    thread::sleep(Duration::from_millis(200));
    for ping in pings {
        ping.lost_none()?;
    }
    assert!(!lab.bpf_dir().join("v1").exists(), "the old pins are left");
    all_reachable(&lab)?;
    drop(second);
    lab.run("detach")?;
    before.same(&Snapshot::host(&lab)?)
}

fn another_version_is_detached(mode: Mode) -> Result<()> {
    let lab = Lab::usual()?;
    ready_for(&lab, mode)?;
    let before = Snapshot::host(&lab)?;
    let agent = Agent::start(&lab, mode.attach())?;
    agent.kill()?;
    grown_old(&lab)?;
    let output = lab.output(&format!("detach {UPLINK}"))?;
    assert_eq!(output.code(), 1, "{output:?}");
    let output = lab.output("detach")?;
    assert_eq!(output.code(), 0, "{output:?}");
    before.same(&Snapshot::host(&lab)?)
}

fn second_attach_hands_over_and_ends(mode: Mode) -> Result<()> {
    let mut on = Attached::usual(mode)?;
    let ping = Pinging::start(&on.lab.net, on.lab.machine("web").v4())?;
    on.lab.run(&format!("attach {}", mode.attach()))?;
    assert!(on.agent.running());
    ping.lost_none()
}

fn add_and_remove_work_without_agent(mode: Mode) -> Result<()> {
    let Attached { agent, lab } = Attached::new(with_undeclared()?, mode)?;
    agent.kill()?;
    add_and_remove(&lab)
}

fn add_and_remove_work_with_agent(mode: Mode) -> Result<()> {
    let on = Attached::new(with_undeclared()?, mode)?;
    add_and_remove(&on.lab)
}

fn with_undeclared() -> Result<Lab> {
    let extra = Spec::new("extra")
        .address("203.0.113.50")
        .address("2001:db8::50")
        .undeclared();
    Lab::builder().usual_machines().machine(extra).build()
}

fn add_and_remove(lab: &Lab) -> Result<()> {
    let extra = lab.machine("extra");
    unreachable(&lab.net, extra.v4())?;
    lab.run("add extra --interface ve-extra --address 203.0.113.50 2001:db8::50")?;
    // At once, not soon.
    all_reachable(lab)?;
    let file = lab.run_dir().join("machines/extra.toml");
    assert!(file.is_file());
    lab.run("remove extra")?;
    assert!(!file.exists());
    unreachable(&lab.net, extra.v4())?;
    unreachable(&lab.net, extra.v6())?;
    unreachable(&extra.ns, FAR4)?;
    ping(&lab.net, lab.machine("web").v4())
}

fn files_are_followed(mode: Mode) -> Result<()> {
    let on = Attached::new(with_undeclared()?, mode)?;
    let extra = on.lab.machine("extra");
    on.lab.declare("extra", &extra.declaration())?;
    wait_ping(&on.lab.net, extra.v4(), SOON)?;
    // Another address, the old one is gone.
    on.lab
        .declare("extra", "addresses = [\"203.0.113.51\"]\n")?;
    extra
        .ns
        .run(&format!("ip addr add 203.0.113.51/32 dev {HOST0}"))?;
    wait_ping(&on.lab.net, [203, 0, 113, 51], SOON)?;
    unreachable(&on.lab.net, extra.v4())?;
    on.lab.withdraw("extra")?;
    let gone = wait_until(SOON, || unreachable(&on.lab.net, [203, 0, 113, 51]).is_ok());
    assert!(gone);
    ping(&on.lab.net, on.lab.machine("web").v4())
}

fn later_machine_comes_up_by_itself(mode: Mode) -> Result<()> {
    let late = Spec::new("late")
        .address("203.0.113.60")
        .address("2001:db8::60")
        .unplugged();
    let lab = Lab::builder().usual_machines().machine(late).build()?;
    let on = Attached::new(lab, mode)?;
    let late = on.lab.machine("late");
    assert_eq!(on.lab.json("status")?["machines"]["waiting"], 1);
    // Both clocks are the same: what each monitor prints is stamped on arrival.
    let mut links = on
        .lab
        .host
        .cmd("ip")
        .args(["-ts", "-o", "monitor", "link"])
        .start()?;
    let mut filters = on.lab.host.cmd("tc").args(["-ts", "monitor"]).start()?;
    thread::sleep(Duration::from_millis(50));
    on.lab.plug(late)?;
    if mode == Mode::Xdp {
        late.ns.run(&format!("ethtool -K {HOST0} gro on"))?;
    }
    wait_ping(&on.lab.net, late.v4(), SOON)?;
    wait_ping(&on.lab.net, late.v6(), SOON)?;
    let carrier = links.wait_line(SOON, |line| {
        line.contains(late.port()) && line.contains("LOWER_UP")
    })?;
    let appeared = links.wait_line(SOON, |line| line.contains(late.port()))?;
    let guard = filters.wait_line(SOON, |line| line.contains("qdisc ingress"))?;
    let since = |start: &str| -> Result<f64> {
        // The minute may have ended in between.
        Ok((seconds(&guard)? - seconds(start)? + 90.0) % 60.0 - 30.0)
    };
    // Not by a macro: the figure is wanted also when the test passes.
    writeln!(
        io::stderr(),
        "guard: {:.1} ms after the port appeared, {:+.1} ms from its carrier",
        since(&appeared)? * 1e3,
        since(&carrier)? * 1e3
    )?;
    all_reachable(&on.lab)
}

/// Seconds of the minute of a line that begins with `[2026-01-31T12:34:56.789012]`.
fn seconds(line: &str) -> Result<f64> {
    let stamp = line
        .split(']')
        .next()
        .and_then(|stamp| stamp.rsplit(':').next())
        .context("no time stamp")?;
    stamp.parse().with_context(|| line.to_owned())
}

fn machine_comes_back_after_its_port_was_deleted(mode: Mode) -> Result<()> {
    let on = Attached::usual(mode)?;
    let web = on.lab.machine("web");
    on.lab.unplug(web)?;
    let gone = wait_until(SOON, || {
        on.lab
            .json("status")
            .is_ok_and(|status| status["machines"]["waiting"] == 1)
    });
    assert!(gone, "{}", on.lab.run("status")?);
    unreachable(&on.lab.net, web.v4())?;
    ping(&on.lab.net, on.lab.machine("db").v4())?;
    on.lab.plug(web)?;
    if mode == Mode::Xdp {
        web.ns.run(&format!("ethtool -K {HOST0} gro on"))?;
    }
    wait_ping(&on.lab.net, web.v4(), SOON)?;
    wait_ping(&on.lab.net, web.v6(), SOON)?;
    all_reachable(&on.lab)
}

fn detach_leaves_all_as_before(mode: Mode) -> Result<()> {
    detach(mode, |_| Ok(()))
}

fn detach_leaves_all_as_before_without_agent(mode: Mode) -> Result<()> {
    detach(mode, Agent::kill)
}

fn detach(mode: Mode, first: impl FnOnce(Agent) -> Result<()>) -> Result<()> {
    let lab = Lab::usual()?;
    ready_for(&lab, mode)?;
    // A membership and a setting that the operator made are left.
    lab.host
        .run(&format!("ip maddr add 33:33:ff:00:00:02 dev {UPLINK}"))?;
    lab.host.set_sysctl("net/ipv4/conf/ve-web/rp_filter", "2")?;
    let before = Snapshot::host(&lab)?;
    let agent = Agent::start(&lab, mode.attach())?;
    all_reachable(&lab)?;
    first(agent)?;
    let output = lab.output("detach")?;
    assert_eq!(output.code(), 0, "{output:?}");
    before.same(&Snapshot::host(&lab)?)?;
    unreachable(&lab.net, lab.machine("web").v4())?;
    // And again, as if nothing had been.
    let agent = Agent::start(&lab, mode.attach())?;
    all_reachable(&lab)?;
    drop(agent);
    lab.run("detach")?;
    before.same(&Snapshot::host(&lab)?)
}
