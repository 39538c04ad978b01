//! What the agent tells while it runs: to those who follow it, to the log, to systemd.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::IpAddr,
    os::unix::net::{UnixDatagram, UnixStream},
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use etherparse::PacketBuilder;
use netspawn_ebpf::abi::program;
use netspawn_tests::{
    Agent, Attached, GATEWAY4, HOST0, LAN, Lab, Mode, Process, Signal, SystemdHost, in_each_mode,
    ping, send_frame, wait_until,
};
use netspawn_user::datapath::object::{self, Constants, Sizes};
use serde_json::{Value, json};

/// Until what happens is told; drops are counted once a second.
const SOON: Duration = Duration::from_secs(10);
/// How soon the agent answers, whatever its readers do.
const PROMPT: Duration = Duration::from_secs(2);

/// A running `netspawn-xdp monitor`.
struct Reader(Process);

impl Reader {
    /// Starts it with these words, and waits until it follows the agent.
    fn start(lab: &Lab, words: &str) -> Result<Self> {
        let args = std::iter::once("monitor").chain(words.split_whitespace());
        let mut process = lab.xdp(args)?.start()?;
        process.wait_line(SOON, |line| line.contains("following the agent"))?;
        Ok(Reader(process))
    }

    /// The events so far, of a reader with `--json`.
    fn events(&self) -> Result<Vec<Value>> {
        let text = self.0.out();
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        whole
            .lines()
            .map(|line| serde_json::from_str(line).with_context(|| line.to_owned()))
            .collect()
    }

    /// Waits for an event with these values.
    fn wait(&mut self, wanted: &Value) -> Result<Value> {
        let mut found = None;
        let there = wait_until(SOON, || {
            let events = self.events().unwrap_or_default();
            found = events.into_iter().find(|event| has(event, wanted));
            found.is_some()
        });
        ensure!(there, "no {wanted} in\n{}{}", self.0.out(), self.0.err());
        found.context("found")
    }
}

fn has(event: &Value, wanted: &Value) -> bool {
    let wanted = wanted.as_object().into_iter().flatten();
    wanted.into_iter().all(|(key, value)| event[key] == *value)
}

/// Seconds since 1970 of a time, by somebody else's reading of RFC 3339.
fn seconds(lab: &Lab, time: &Value) -> Result<f64> {
    let time = time.as_str().context("no time")?;
    let text = lab
        .host
        .cmd("date")
        .args(["--utc", "--date", time, "+%s.%N"])
        .text()?;
    Ok(text.trim().parse()?)
}

/// Has a real client of `web` send from an address of `db`.
fn spoof(lab: &Lab) -> Result<()> {
    let (web, db) = (lab.machine("web"), lab.machine("db"));
    let address = db.v4();
    // What a tenant may do inside his machine.
    let _ = web.ns.run(&format!("ip addr add {address}/32 dev {HOST0}"));
    let output = web
        .ns
        .cmd("ping")
        .args(["-n", "-c", "3", "-i", "0.2", "-W", "1"])
        .args(["-I", &address.to_string(), &GATEWAY4.to_string()])
        .output()?;
    ensure!(output.code() != 0, "a spoofed ping was answered");
    Ok(())
}

fn spoof_by_a_real_client_is_told(mode: Mode) -> Result<()> {
    let on = Attached::usual(mode)?;
    let lab = &on.lab;
    let (mut json, mut text) = (Reader::start(lab, "--json")?, Reader::start(lab, "")?);
    spoof(lab)?;
    let web = lab.machine("web").ns.mac(HOST0)?;
    let mac = web.map(|byte| format!("{byte:02x}")).join(":");
    let event = json.wait(&json!({
        "kind": "spoof", "machine": "web", "interface": "ve-web", "reason": "spoofed_source",
        "mac": mac, "address": "203.0.113.3",
    }))?;
    let now: f64 = lab.host.run("date +%s.%N")?.trim().parse()?;
    let age = now - seconds(lab, &event["time"])?;
    ensure!((-0.1..20.0).contains(&age), "{event} is {age} s old");
    json.wait(&json!({
        "kind": "drop", "machine": "web", "interface": "ve-web", "reason": "spoofed_source",
    }))?;
    // All frames of the ping are counted, however many reports there were.
    let counted = || -> Result<(u64, u64)> {
        let told = json.events()?;
        let drop = json!({"kind": "drop", "machine": "web", "reason": "spoofed_source"});
        let told = told.iter().filter(|event| has(event, &drop));
        let list = lab.json("list")?;
        let mut machines = list.as_array().into_iter().flatten();
        let web = machines.find(|machine| machine["name"] == "web");
        let drops = &web.context("web is listed")?["drops"]["spoofed_source"];
        Ok((
            told.filter_map(|event| event["count"].as_u64()).sum(),
            drops.as_u64().unwrap_or_default(),
        ))
    };
    ensure!(
        wait_until(SOON, || counted()
            .is_ok_and(|(told, counted)| told == counted)),
        "{:?} {:#?}",
        counted()?,
        json.events()?
    );
    text.0.wait_line(SOON, |line| {
        line.contains(
            "  spoof     web           ve-web      sends from 203.0.113.3, which is not its own",
        )
    })?;
    text.0
        .wait_line(SOON, |line| line.contains("dropped: spoofed_source"))?;
    Ok(())
}

fn conflict_from_the_network_is_told_and_defended(mode: Mode) -> Result<()> {
    let on = Attached::usual(mode)?;
    let lab = &on.lab;
    let mut reader = Reader::start(lab, "--json --machine web")?;
    let stranger = [2, 0, 0, 0, 0x99, 0x99];
    let address = IpAddr::from(lab.machine("web").v4());
    let claim = netspawn_user::net::announce::announcement(stranger, address, 0);
    send_frame(&lab.net, LAN, &claim)?;
    let event = json!({
        "kind": "conflict", "machine": "web", "interface": "eth0", "reason": "address_conflict",
        "mac": "02:00:00:00:99:99", "address": "203.0.113.2",
    });
    reader.wait(&event)?;
    reader.wait(&json!({
        "kind": "announce", "cause": "conflict", "machine": "web", "address": "203.0.113.2",
    }))?;
    Ok(())
}

in_each_mode! {
    spoof_by_a_real_client_is_told
    conflict_from_the_network_is_told_and_defended
    programs_say_what_they_do_when_asked_to_alone
}

/// One machine is not served.
fn attach_beside_a_rival(lab: &Lab) -> Result<()> {
    let attached = lab.output("attach eth1 --mode tc")?;
    assert_eq!(attached.code(), 3, "{attached:?}");
    Ok(())
}

#[test]
fn machines_and_uplinks_that_come_and_go_are_told() -> Result<()> {
    let lab = Lab::usual()?;
    lab.host.run("ip link add eth1 type veth peer name far1")?;
    for end in ["eth1", "far1"] {
        lab.host.run(&format!("ip link set {end} up"))?;
    }
    let on = Attached::new(lab, Mode::Tc)?;
    let lab = &on.lab;
    let mut reader = Reader::start(lab, "--json")?;
    let machine =
        |name: &str, state: &str| json!({"kind": "machine", "machine": name, "state": state});

    let db = lab.machine("db");
    lab.host.run("ip link set ve-db down")?;
    reader.wait(&machine("db", "down"))?;
    lab.unplug(db)?;
    reader.wait(&machine("db", "waiting"))?;
    lab.plug(db)?;
    reader.wait(&machine("db", "up"))?;
    reader.wait(&json!({
        "kind": "announce", "interface": "eth0", "cause": "address", "count": 2,
    }))?;
    lab.declare("rival", "addresses = [\"203.0.113.2\"]\n")?;
    let event = reader.wait(&machine("rival", "conflict"))?;
    assert_eq!(
        event["conflicts"],
        json!([{"prefix": "203.0.113.2/32", "holder": "web"}])
    );
    lab.withdraw("mail")?;
    reader.wait(&machine("mail", "gone"))?;

    attach_beside_a_rival(lab)?;
    reader.wait(&json!({
        "kind": "uplink", "interface": "eth1", "state": "attached", "mode": "tc",
    }))?;
    reader.wait(&json!({"kind": "announce", "interface": "eth1", "cause": "attached"}))?;
    lab.run("detach eth1")?;
    reader.wait(&json!({"kind": "uplink", "interface": "eth1", "state": "detached"}))?;
    attach_beside_a_rival(lab)?;
    lab.host.run("ip link del eth1")?;
    reader.wait(&json!({"kind": "uplink", "interface": "eth1", "state": "gone"}))?;
    let mut flapped = reader.events()?;
    flapped.retain(|event| event["kind"] == "end" || event["kind"] == "lost");
    assert_eq!(flapped, [] as [Value; 0]);
    Ok(())
}

#[test]
fn drops_of_every_kind_are_told_with_their_number() -> Result<()> {
    let on = Attached::usual(Mode::Tc)?;
    let lab = &on.lab;
    let mut reader = Reader::start(lab, "--json")?;
    let (web, db) = (lab.machine("web"), lab.machine("db"));
    let (own, port) = (web.ns.mac(HOST0)?, lab.host.mac(web.port())?);
    let mut expired = Vec::new();
    PacketBuilder::ethernet2(own, port)
        .ipv4(web.v4().octets(), GATEWAY4.octets(), 1)
        .udp(4000, 4000)
        .write(&mut expired, b"")?;
    for _ in 0..7 {
        send_frame(&web.ns, HOST0, &expired)?;
    }
    // A machine that is declared and not there.
    lab.unplug(db)?;
    reader.wait(&json!({"kind": "machine", "machine": "db", "state": "waiting"}))?;
    let mac = lab.host.mac("eth0")?;
    let mut lost = Vec::new();
    PacketBuilder::ethernet2(lab.net.mac(LAN)?, mac)
        .ipv4(GATEWAY4.octets(), db.v4().octets(), 64)
        .udp(4000, 4000)
        .write(&mut lost, b"")?;
    for _ in 0..3 {
        send_frame(&lab.net, LAN, &lost)?;
    }
    let sum = |reader: &Reader, machine: &str, reason: &str| -> u64 {
        let events = reader.events().unwrap_or_default();
        let wanted = json!({"kind": "drop", "machine": machine, "reason": reason});
        let events = events.iter().filter(|event| has(event, &wanted));
        events.filter_map(|event| event["count"].as_u64()).sum()
    };
    ensure!(
        wait_until(SOON, || sum(&reader, "web", "ttl_exceeded") == 7
            && sum(&reader, "db", "endpoint_down") == 3),
        "{:#?}",
        reader.events()?
    );
    let mut text = Reader::start(lab, "")?;
    send_frame(&web.ns, HOST0, &expired)?;
    text.0.wait_line(SOON, |line| {
        line.contains("  drop      web           ve-web      1 frame dropped: ttl_exceeded")
    })?;
    Ok(())
}

#[test]
fn filters_leave_the_rest_out() -> Result<()> {
    let on = Attached::usual(Mode::Tc)?;
    let lab = &on.lab;
    let mut all = Reader::start(lab, "--json")?;
    let mut db = Reader::start(lab, "--json --machine db mail")?;
    let mut source = Reader::start(lab, "--json --reason spoofed_source,rogue_dhcp")?;
    spoof(lab)?;
    lab.unplug(lab.machine("db"))?;
    all.wait(&json!({"kind": "machine", "machine": "db", "state": "waiting"}))?;
    source.wait(&json!({"kind": "drop", "reason": "spoofed_source"}))?;
    all.wait(&json!({"kind": "drop", "reason": "spoofed_source"}))?;
    db.wait(&json!({"kind": "machine", "machine": "db", "state": "waiting"}))?;
    for event in db.events()? {
        // The lab's kernels send of themselves.
        ensure!(
            event["machine"] == "db" || event["machine"] == "mail",
            "{event}"
        );
    }
    for event in source.events()? {
        assert_eq!(event["reason"], "spoofed_source");
    }

    let output = lab.output("monitor --machine wbe")?;
    assert_eq!(output.code(), 2);
    assert_eq!(
        output.stderr,
        "netspawn-xdp: no machine wbe is declared; did you mean web?\n"
    );
    Ok(())
}

/// Makes many machines come and go at once, until a reader that reads has been told of
/// `events` of them.
struct Flood<'a> {
    lab: &'a Lab,
    present: bool,
}

/// Machines of a flood.
const MACHINES: usize = 1_500;

impl<'a> Flood<'a> {
    fn new(lab: &'a Lab) -> Result<Self> {
        let folder = lab.dir().join("away");
        fs::create_dir(&folder)?;
        for number in 0..MACHINES {
            let (high, low) = (number / 250, number % 250);
            fs::write(
                folder.join(format!("m{number}.toml")),
                format!("addresses = [\"10.9.{high}.{low}\"]\n"),
            )?;
        }
        Ok(Flood {
            lab,
            present: false,
        })
    }

    /// One event for each machine, all at once.
    fn turn(&mut self) -> Result<()> {
        let (away, there) = (
            self.lab.dir().join("away"),
            self.lab.run_dir().join("machines"),
        );
        let spare = self.lab.dir().join("spare");
        fs::rename(&there, &spare)?;
        fs::rename(&away, &there)?;
        fs::rename(&spare, &away)?;
        self.present = !self.present;
        Ok(())
    }
}

#[test]
fn stopped_reader_holds_nobody_up_and_learns_what_it_lost() -> Result<()> {
    const TURNS: usize = 14;
    let on = Attached::usual(Mode::Tc)?;
    let lab = &on.lab;
    let mut reads = Reader::start(lab, "--json")?;
    let mut stopped = Reader::start(lab, "--json")?;
    stopped.0.signal(Signal::SIGSTOP)?;
    let mut flood = Flood::new(lab)?;
    for turn in 1..=TURNS {
        flood.turn()?;
        let told = wait_until(Duration::from_secs(30), || {
            reads.0.out().matches("\"kind\":\"machine\"").count() == turn * MACHINES
        });
        ensure!(told, "turn {turn} was not told: {}", reads.0.err());
        // Meanwhile the agent does its work.
        let start = Instant::now();
        lab.run("status")?;
        ensure!(start.elapsed() < PROMPT, "took {:?}", start.elapsed());
    }
    ping(&lab.net, lab.machine("web").v4())?;
    lab.declare("last", "addresses = [\"10.9.9.9\"]\n")?;
    reads.wait(&json!({"kind": "machine", "machine": "last"}))?;
    stopped.0.signal(Signal::SIGCONT)?;
    stopped.wait(&json!({"kind": "machine", "machine": "last"}))?;

    let (all, some) = (reads.events()?, stopped.events()?);
    ensure!(all.iter().all(|event| event["kind"] != "lost"));
    let is_lost = |event: &&Value| event["kind"] == "lost";
    let lost: Vec<_> = some.iter().filter(is_lost).collect();
    let count: u64 = lost
        .iter()
        .filter_map(|event| event["count"].as_u64())
        .sum();
    ensure!(
        count > 0,
        "nothing was lost of {} events: no flood",
        all.len()
    );
    // Each is there, or counted.
    assert_eq!(some.len() - lost.len() + usize::try_from(count)?, all.len());
    Ok(())
}

#[test]
fn silent_client_holds_nobody_up() -> Result<()> {
    let on = Attached::usual(Mode::Tc)?;
    let lab = &on.lab;
    let socket = lab.run_dir().join("agent.sock");
    let silent: Vec<UnixStream> = (0..50)
        .map(|_| UnixStream::connect(&socket))
        .collect::<Result<_, _>>()?;
    let start = Instant::now();
    lab.run("status")?;
    ensure!(
        start.elapsed() < Duration::from_millis(900),
        "took {:?}",
        start.elapsed()
    );
    // Who talks for ever, or asks and does not listen, gets no further.
    let mut chatty = UnixStream::connect(&socket)?;
    chatty.set_write_timeout(Some(SOON))?;
    while chatty.write_all(&[b'x'; 4096]).is_ok() {}
    let mut garbled = UnixStream::connect(&socket)?;
    garbled.write_all(b"{\"command\":\"dance\"}\n")?;
    let mut answer = String::new();
    garbled.read_to_string(&mut answer)?;
    ensure!(answer.contains("request not understood"), "{answer}");
    assert!(lab.json("status")?["agent"].is_object());
    drop(silent);
    Ok(())
}

fn ended(mut reader: Reader) -> Result<(i32, String)> {
    let Some(status) = reader.0.wait(SOON)? else {
        bail!("the reader goes on\n{}", reader.0.out());
    };
    let err = reader.0.err();
    Ok((
        status.code().unwrap_or(-1),
        err.lines().last().unwrap_or_default().to_owned(),
    ))
}

#[test]
fn reader_ends_with_the_agent_and_says_why() -> Result<()> {
    let Attached { agent, lab } = Attached::usual(Mode::Tc)?;
    let reader = Reader::start(&lab, "--json")?;
    agent.terminate()?;
    let last = reader.events()?;
    assert_eq!(last.last().context("no event")?["kind"], "end");
    assert_eq!(
        ended(reader)?,
        (
            1,
            "netspawn-xdp: the agent has ended: it was told to (SIGTERM); the data plane goes on \
             without it; `netspawn-xdp attach eth0` starts another"
                .to_owned()
        )
    );

    let output = lab.output("monitor")?;
    assert_eq!(output.code(), 1);
    assert_eq!(
        output.stderr,
        "netspawn-xdp: no agent runs, and it alone knows what happens; start one: \
         `netspawn-xdp attach eth0`\n"
    );

    let agent = Agent::start(&lab, "eth0 --mode tc")?;
    let reader = Reader::start(&lab, "")?;
    agent.kill()?;
    let (code, why) = ended(reader)?;
    assert_eq!(code, 1);
    ensure!(why.contains("the agent has ended: without a word"), "{why}");

    let mut agent = Agent::start(&lab, "eth0 --mode tc")?;
    let reader = Reader::start(&lab, "")?;
    // One that hears nothing delays nobody's detach.
    let stopped = Reader::start(&lab, "")?;
    stopped.0.signal(Signal::SIGSTOP)?;
    lab.run("detach")?;
    let (code, why) = ended(reader)?;
    assert_eq!(code, 1);
    assert_eq!(
        why,
        "netspawn-xdp: the agent has ended: its last uplink was detached; machines are served \
         again after `netspawn-xdp attach UPLINK`"
    );
    ensure!(wait_until(SOON, || !agent.running()), "the agent goes on");
    Ok(())
}

#[test]
fn reader_ends_when_told_to_or_when_nobody_reads_it() -> Result<()> {
    let on = Attached::usual(Mode::Tc)?;
    let lab = &on.lab;
    for signal in [Signal::SIGINT, Signal::SIGTERM] {
        let reader = Reader::start(lab, "")?;
        assert_eq!(reader.0.end(signal, PROMPT)?.code(), 0, "{signal}");
    }
    // Nothing happens, and still it sees that the pipe is closed.
    let program = netspawn_tests::binary()?;
    let script = r#"{ "$@" ; echo "code $?" >&2; } | sleep 0.3"#;
    let output = lab
        .host
        .cmd("bash")
        .args(["-c", script, "bash"])
        .arg(program)
        .args(lab.options())
        .args(["monitor", "--reason", "helper_failed"])
        .limit(SOON)
        .output()?;
    ensure!(output.stderr.contains("code 0"), "{}", output.stderr);
    Ok(())
}

#[test]
fn log_as_json_has_machine_and_reason() -> Result<()> {
    let lab = Lab::usual()?;
    let mut agent = Agent::start(&lab, "eth0 --mode tc --log-format json")?;
    let line = agent.wait_line(SOON, |line| line.contains("web is up"))?;
    let entry: Value = serde_json::from_str(&line)?;
    assert_eq!(
        (&entry["machine"], &entry["state"]),
        (&json!("web"), &json!("up"))
    );
    assert_eq!(entry["interface"], "ve-web");
    spoof(&lab)?;
    let line = agent.wait_line(SOON, |line| line.contains("not its own"))?;
    let entry: Value = serde_json::from_str(&line)?;
    assert_eq!(entry["level"], "WARN");
    assert_eq!(entry["machine"], "web");
    assert_eq!(entry["reason"], "spoofed_source");
    assert_eq!(entry["interface"], "ve-web");
    assert_eq!(entry["address"], "203.0.113.3");
    // For people, the message says it all.
    drop(agent);
    let mut agent = Agent::start(&lab, "eth0 --mode tc")?;
    let line = agent.wait_line(SOON, |line| line.contains("web is up"))?;
    ensure!(line.ends_with("web is up (ve-web)"), "{line}");
    Ok(())
}

fn programs_say_what_they_do_when_asked_to_alone(mode: Mode) -> Result<()> {
    let lab = Lab::usual()?;
    netspawn_tests::ready_for(&lab, mode)?;
    let web = lab.machine("web");
    let said = |agent: &mut Agent, limit: Duration| -> Result<String> {
        lab.net.run(&format!("ip neigh flush dev {LAN}"))?;
        ping(&lab.net, web.v4())?;
        spoof(&lab)?;
        agent.wait_line(limit, |line| {
            line.contains("frame of") && line.contains(": arp")
        })?;
        agent.wait_line(limit, |line| {
            line.contains("frame of") && line.contains(": spoofed_source, endpoint")
        })
    };
    let mut agent = Agent::start(&lab, &format!("{} --log-programs", mode.attach()))?;
    said(&mut agent, SOON)?;
    let output = lab.output("attach eth0 --log-programs")?;
    assert_eq!(output.code(), 1);
    ensure!(
        output.stderr.contains("end it (the data plane goes on)"),
        "{}",
        output.stderr
    );
    agent.terminate()?;
    // The next agent's programs say nothing.
    let mut agent = Agent::start(&lab, mode.attach())?;
    ensure!(said(&mut agent, Duration::from_secs(1)).is_err());
    ensure!(!agent.words().contains("frame of"), "{}", agent.words());
    Ok(())
}

#[test]
fn what_programs_say_is_not_in_the_code_where_it_is_off() -> Result<()> {
    netspawn_tests::require_root()?;
    let sizes = Sizes {
        machines: 1,
        addresses: 1,
    };
    for name in [
        program::UPLINK_INGRESS,
        program::UPLINK_EGRESS,
        program::PORT_INGRESS,
    ] {
        let bytes = |log| -> Result<u32> {
            let mut ebpf = object::load_logging(None, sizes, Constants::NONE, log)?;
            let info = object::classifier(&mut ebpf, name)?.info()?;
            info.size_translated().context("the kernel tells no size")
        };
        let (off, on) = (bytes(false)?, bytes(true)?);
        eprintln!("{name}: {off} bytes, {on} with what it says");
        // The function is an instruction's call from where it is used.
        ensure!(
            off + 1_000 < on,
            "{name}: {off} bytes, {on} with what it says"
        );
    }
    Ok(())
}

/// A service manager's socket.
struct Manager(UnixDatagram);

impl Manager {
    fn new(path: &Path) -> Result<Self> {
        let socket = UnixDatagram::bind(path)?;
        socket.set_read_timeout(Some(SOON))?;
        Ok(Manager(socket))
    }

    /// Waits for a message, and leaves out those before it.
    fn wait(&self, wanted: &str) -> Result<()> {
        let deadline = Instant::now() + SOON;
        while Instant::now() < deadline {
            let mut message = [0; 1024];
            let length = self
                .0
                .recv(&mut message)
                .with_context(|| format!("no {wanted}"))?;
            let message = String::from_utf8_lossy(&message[..length]).into_owned();
            if message.lines().any(|line| line == wanted) {
                return Ok(());
            }
        }
        bail!("no {wanted}")
    }

    /// What has come and not been waited for.
    fn drain(&self) -> Result<usize> {
        self.0.set_nonblocking(true)?;
        let mut count = 0;
        while self.0.recv(&mut [0; 1024]).is_ok() {
            count += 1;
        }
        self.0.set_nonblocking(false)?;
        Ok(count)
    }
}

#[test]
fn service_manager_is_told_what_is_served_and_that_the_loop_turns() -> Result<()> {
    let lab = Lab::usual()?;
    let socket = lab.dir().join("notify");
    let manager = Manager::new(&socket)?;
    let agent = lab
        .xdp(["attach", "eth0", "--mode", "tc"])?
        .env("NOTIFY_SOCKET", &socket)
        .env("WATCHDOG_USEC", "400000")
        .start()?;
    manager.wait("STATUS=3 machines, 7 prefixes on eth0 (tc)")?;
    manager.wait("READY=1")?;
    manager.wait("WATCHDOG=1")?;
    manager.wait("WATCHDOG=1")?;
    lab.unplug(lab.machine("db"))?;
    manager.wait("STATUS=2 machines, 7 prefixes on eth0 (tc)")?;
    // One that does not turn says nothing.
    agent.signal(Signal::SIGSTOP)?;
    manager.drain()?;
    std::thread::sleep(Duration::from_millis(800));
    assert_eq!(manager.drain()?, 0);
    agent.signal(Signal::SIGCONT)?;
    manager.wait("WATCHDOG=1")?;
    assert_eq!(agent.end(Signal::SIGTERM, SOON)?.code(), 0);
    manager.wait("STOPPING=1")
}

#[test]
fn journal_has_fields_and_a_stuck_agent_is_restarted() -> Result<()> {
    let system = SystemdHost::boot()?;
    system.declare("web", &["203.0.113.2"])?;
    system
        .cmd("systemd-run")
        .args(["--quiet", "--unit=netspawn", "--property=Type=notify"])
        .args(["--property=WatchdogSec=2s", "--property=Restart=on-failure"])
        .args(["netspawn-xdp", "attach", "eth0"])
        .text()?;
    let show = |property: &str| -> Result<String> {
        let text = system.run(&format!(
            "systemctl show netspawn --property={property} --value"
        ))?;
        Ok(text.trim().to_owned())
    };
    assert_eq!(show("StatusText")?, "0 machines, 1 prefixes on eth0 (tc)");
    let entry = || -> Result<Value> {
        let text = system.run(
            "journalctl --output=json --no-pager NETSPAWN_MACHINE=web NETSPAWN_STATE=waiting",
        )?;
        let line = text.lines().next().context("no entry")?;
        Ok(serde_json::from_str(line)?)
    };
    ensure!(wait_until(SOON, || entry().is_ok()), "{}", system.words()?);
    let entry = entry()?;
    assert_eq!(entry["NETSPAWN_MACHINE"], "web");
    assert_eq!(entry["MESSAGE"], "web is waiting (no port)");
    assert_eq!(entry["PRIORITY"], "6");
    assert_eq!(entry["SYSLOG_IDENTIFIER"], "netspawn-xdp");
    assert_eq!(entry["_SYSTEMD_UNIT"], "netspawn.service");

    // Not stuck, it is left alone for longer than the watchdog's time.
    let first = show("MainPID")?;
    std::thread::sleep(Duration::from_secs(5));
    assert_eq!(show("MainPID")?, first);
    system.run("systemctl kill --signal=STOP netspawn")?;
    let restarted = wait_until(Duration::from_secs(20), || {
        show("MainPID").is_ok_and(|now| now != first && now != "0")
            && show("ActiveState").is_ok_and(|state| state == "active")
    });
    ensure!(
        restarted,
        "{}",
        system.run("systemctl --no-pager status netspawn")?
    );
    Ok(())
}
