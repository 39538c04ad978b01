//! `explain`: what it says is what happens, and it leaves no trace.

mod questions;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use netspawn_tests::{
    Agent, Attached, Capture, HOST0, LAN, Lab, Mode, Ns, Spec, UPLINK, in_each_mode, ping,
    ready_for, send_frame, wait_until, write_pcap,
};
use serde_json::Value;

use questions::QUESTIONS;

/// `web`, `db` and `mail` as usual; `other` of another tenant; `tagged` in VLAN 30; `off`,
/// which has no port; a port MTU that is smaller than the uplink's.
fn lab() -> Result<Lab> {
    let lab = Lab::builder()
        .usual_machines()
        .port_mtu(1400)
        .machine(
            Spec::new("other")
                .address("203.0.113.5")
                .address("2001:db8::5")
                .tenant("acme"),
        )
        .machine(
            Spec::new("tagged")
                .address("203.0.113.6")
                .address("2001:db8::6"),
        )
        .machine(
            Spec::new("off")
                .address("203.0.113.7")
                .address("2001:db8::7")
                .unplugged(),
        )
        .build()?;
    let tagged = lab.machine("tagged").declaration();
    lab.declare("tagged", &format!("{tagged}vlan = 30\n"))?;
    Ok(lab)
}

/// An attached lab whose host knows its gateway, so that nothing is asked in between.
fn attached(mode: Mode) -> Result<Attached> {
    let lab = lab()?;
    ready_for(&lab, mode)?;
    let on = Attached::new(lab, mode)?;
    for name in ["web", "db"] {
        let machine = on.lab.machine(name);
        ping(&on.lab.net, machine.v4())?;
        ping(&on.lab.net, machine.v6())?;
    }
    Ok(on)
}

fn ask(lab: &Lab, question: &str) -> Result<Value> {
    lab.json(&format!("explain {question}"))
}

fn bytes(hex: &Value) -> Result<Vec<u8>> {
    let hex = hex.as_str().context("no bytes")?;
    let digits: Vec<u8> = hex.bytes().collect();
    digits
        .chunks(2)
        .map(|pair| Ok(u8::from_str_radix(std::str::from_utf8(pair)?, 16)?))
        .collect()
}

/// Frames by reason, those of all kinds in one.
fn counters(lab: &Lab) -> Result<BTreeMap<String, u64>> {
    let mut all = BTreeMap::new();
    let counters = lab.json("counters")?;
    for group in counters.as_object().into_iter().flat_map(|c| c.values()) {
        for (reason, count) in group.as_object().into_iter().flatten() {
            all.insert(reason.clone(), count.as_u64().unwrap_or(0));
        }
    }
    Ok(all)
}

/// Where a question's frame is sent from.
fn mouth<'a>(lab: &'a Lab, question: &str) -> (&'a Ns, &'static str) {
    let mut words = question.split(' ');
    match (words.next(), words.next()) {
        (Some("out"), Some(name)) => (&lab.machine(name).ns, HOST0),
        (Some("host"), _) => (&lab.host, UPLINK),
        _ => (&lab.net, LAN),
    }
}

/// Where the frame that leaves has to come.
fn ear<'a>(lab: &'a Lab, question: &str, answer: &Value) -> (&'a Ns, &'static str) {
    let port = answer["interface"].as_str().unwrap_or_default();
    if answer["by"] == "redirect_ingress" {
        return (&lab.host, UPLINK);
    }
    match lab.machines().iter().find(|machine| machine.port() == port) {
        Some(machine) => (&machine.ns, HOST0),
        None if question.starts_with("host") => (&lab.host, UPLINK),
        None => (&lab.net, LAN),
    }
}

/// Bytes with the question's tag where the wire has it.
fn tagged(mut frame: Vec<u8>, question: &Value) -> Vec<u8> {
    if let Some(id) = question["question"]["vlan"]["id"].as_u64() {
        frame.splice(12..12, [0x81, 0, 0, id as u8]);
    }
    frame
}

/// Sends the very frame of a question; what is not as it was said.
fn try_out(lab: &Lab, question: &str, answer: &Value) -> Result<Vec<String>> {
    let mut faults = Vec::new();
    let reason = answer["reason"].as_str().unwrap_or_default();
    let (place, interface) = ear(lab, question, answer);
    let mut capture = Capture::incoming(place, interface)?;
    let before = counters(lab)?;
    let (sender, from) = mouth(lab, question);
    let frame = tagged(bytes(&answer["question_hex"])?, answer);
    send_frame(sender, from, &frame)?;
    if !answer["hex"].is_null() {
        let mut wanted = bytes(&answer["hex"])?;
        // The tag is taken off what goes to a machine.
        if interface != HOST0 {
            wanted = tagged(wanted, answer);
        }
        // The kernel puts the link-layer addresses in from its own table.
        let from = if answer["by"] == "redirect_neigh" {
            12
        } else {
            0
        };
        let comes = |frame: &[u8]| frame.get(from..) == Some(&wanted[from..]);
        if !capture.wait(Duration::from_secs(3), comes) {
            let heard = capture.frames();
            faults.push(format!(
                "{question}: {wanted:02x?} did not come to {interface}, but {heard:02x?}"
            ));
        }
    }
    let counted = wait_until(Duration::from_secs(2), || {
        counters(lab).is_ok_and(|after| after.get(reason) > before.get(reason))
    });
    if !counted {
        faults.push(format!("{question}: nothing was counted under {reason}"));
    }
    Ok(faults)
}

/// Every question has its answer; then the very frame is sent where its sender would, and
/// the frame that `explain` said would leave has to come where it said.
fn what_is_said_happens(mode: Mode) -> Result<()> {
    let on = attached(mode)?;
    let lab = &on.lab;
    let mut faults = Vec::new();
    let mut charged = Vec::new();
    for (question, verdict, reason, machine, interface) in QUESTIONS {
        let answer = ask(lab, question)?;
        let or_empty = |name: &str| answer[name].as_str().unwrap_or_default();
        let told = ["verdict", "reason", "machine", "interface"].map(or_empty);
        if told != [*verdict, reason, machine, interface] || answer["agrees"] != true {
            faults.push(format!("{question}: {answer:#}"));
            continue;
        }
        faults.extend(try_out(lab, question, &answer)?);
        if *verdict == "dropped" {
            charged.push((*question, *machine, *reason));
        }
    }
    let list = lab.json("list")?;
    for (question, machine, reason) in charged {
        let mut rows = list.as_array().into_iter().flatten();
        let row = rows.find(|row| row["name"] == *machine);
        if row.is_none_or(|row| row["drops"][reason].as_u64().is_none_or(|n| n == 0)) {
            faults.push(format!("{question}: {machine} was not charged"));
        }
    }
    ensure!(faults.is_empty(), "{}", faults.join("\n"));
    Ok(())
}

/// Real clients find what `explain` says.
#[test]
fn clients_find_the_same() -> Result<()> {
    let on = attached(Mode::Tc)?;
    let lab = &on.lab;
    for (address, verdict, code) in [("203.0.113.2", "answered", 0), ("203.0.113.9", "passed", 1)] {
        ensure!(ask(lab, &format!("arp {address}"))?["verdict"] == verdict);
        let arping = lab.net.cmd("arping");
        let arping = arping.args(["-c", "1", "-w", "2", "-I", LAN, address]);
        ensure!(arping.output()?.code() == code, "arping {address}");
    }
    let answer = ask(lab, "ndp 2001:db8::2")?;
    let told = answer["frame"]["icmp6"]["target_mac"].as_str();
    let found = lab.net.run(&format!("ndisc6 -1 2001:db8::2 {LAN}"))?;
    let found = found.to_lowercase();
    ensure!(told.is_some_and(|mac| found.contains(mac)), "{found}");

    let answer = ask(lab, "in icmp 203.0.113.1 203.0.113.3 --size 1401 --df")?;
    ensure!(answer["frame"]["icmp"]["mtu"] == 1400, "{answer:#}");
    ensure!(answer["frame"]["icmp"]["about"].is_null());
    ensure!(answer["frame"]["about"]["ipv4"]["length"] == 1401);
    let ping = lab.net.cmd("ping");
    let ping = ping.args([
        "-c",
        "1",
        "-W",
        "2",
        "-M",
        "do",
        "-s",
        "1373",
        "203.0.113.3",
    ]);
    let output = ping.output()?;
    ensure!(output.stdout.contains("mtu = 1400"), "{}", output.stdout);

    // With so many packets the machine's errors are used up.
    let used_up = |answer: &Value| answer["remarks"].to_string().contains("used up");
    let expired = "in icmp 203.0.113.1 203.0.113.2 --ttl 1";
    ensure!(!used_up(&ask(lab, expired)?));
    let flood = lab.net.cmd("ping");
    let flood = flood.args(["-q", "-t", "1", "-i", "0.002", "-c", "10000", "203.0.113.2"]);
    let flood = flood.start()?;
    let told = wait_until(Duration::from_secs(60), || {
        ask(lab, expired).is_ok_and(|answer| used_up(&answer))
    });
    flood.end(netspawn_tests::Signal::SIGINT, Duration::from_secs(5))?;
    ensure!(told, "nothing is said of the rate limit");

    let answer = ask(lab, "out other icmp 203.0.113.3")?;
    ensure!(answer["reason"] == "tenant_isolation", "{answer:#}");
    let ping = lab.machine("other").ns.cmd("ping");
    ensure!(
        ping.args(["-c", "1", "-W", "1", "203.0.113.3"])
            .output()?
            .code()
            == 1
    );
    Ok(())
}

/// All that is in the pinned maps that programs count and keep in.
fn traces(lab: &Lab) -> Result<BTreeMap<String, String>> {
    let folder = lab.pins().join("maps");
    let mut traces = BTreeMap::new();
    for entry in fs::read_dir(&folder)? {
        let name = entry?.file_name().into_string().unwrap_or_default();
        // bpftool does not dump ring buffers; the agent tells what is in that one.
        if name == "events" {
            continue;
        }
        let path = folder.join(&name);
        let text = lab
            .host
            .cmd("bpftool")
            .args(["-j", "map", "dump", "pinned"])
            .arg(&path)
            .text()?;
        traces.insert(name, text);
    }
    Ok(traces)
}

fn tree(folder: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        found.push(entry.path().display().to_string());
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            found.extend(tree(&entry.path()));
        }
    }
    found.sort();
    found
}

fn nothing_is_left_behind(mode: Mode) -> Result<()> {
    let mut on = attached(mode)?;
    let pcap = on.lab.dir().join("all.pcap");
    let (mut network, mut machine) = (Vec::new(), Vec::new());
    let mut reasons = BTreeSet::new();
    for (question, _, reason, ..) in QUESTIONS {
        // One of each kind does.
        if !reasons.insert((reason, question.starts_with("out"))) {
            continue;
        }
        let answer = ask(&on.lab, question)?;
        let frame = bytes(&answer["question_hex"])?;
        match question.split(' ').next() {
            Some("out") => machine.push(frame),
            Some("host") => {}
            _ => network.push(frame),
        }
    }
    write_pcap(&pcap, &network)?;
    let from_web = on.lab.dir().join("web.pcap");
    write_pcap(&from_web, &machine)?;
    let [all, from_web] = [&pcap, &from_web].map(|path| path.display().to_string());

    // No spoof, no conflict: the agent has said nothing of one.
    let words = on.agent.words();
    ensure!(
        !words.contains("not its own") && !words.contains("uses its address"),
        "{words}"
    );
    let explain = |lab: &Lab| -> Result<()> {
        let inward = lab.output(&format!("--json explain pcap {all} --in eth0"))?;
        let outward = lab.output(&format!("--json explain pcap {from_web} --out web"))?;
        for (output, count) in [(inward, network.len()), (outward, machine.len())] {
            ensure!(output.code() == 0, "{}", output.stderr);
            ensure!(output.stdout.lines().count() == count, "{}", output.stdout);
        }
        Ok(())
    };
    explain(&on.lab)?;
    std::thread::sleep(Duration::from_millis(300));
    ensure!(
        on.agent.words() == words,
        "the agent says {}",
        on.agent.words()
    );
    // That it would have said so.
    let spoof = ask(&on.lab, "out web udp 203.0.113.3:1 198.51.100.1:53")?;
    send_frame(
        &on.lab.machine("web").ns,
        HOST0,
        &bytes(&spoof["question_hex"])?,
    )?;
    on.agent
        .wait_line(Duration::from_secs(5), |line| line.contains("not its own"))?;

    // The kernels in the lab solicit routers now and then; `explain` would every time.
    let lab = &on.lab;
    on.agent.kill()?;
    let pins = tree(&lab.bpf_dir());
    let quiet = (0..5).any(|_| {
        let before = traces(lab).expect("maps can be read");
        explain(lab).expect("explain runs");
        let after = traces(lab).expect("maps can be read");
        let changed: Vec<_> = before
            .keys()
            .filter(|name| before[*name] != after[*name])
            .collect();
        if !changed.is_empty() {
            eprintln!("changed: {changed:?}");
        }
        changed.is_empty()
    });
    ensure!(quiet, "maps changed in each of five runs");
    ensure!(tree(&lab.bpf_dir()) == pins, "pins differ");
    // That traces would be seen.
    let before = traces(lab)?;
    ping(&lab.net, lab.machine("web").v4())?;
    ensure!(traces(lab)? != before);
    Ok(())
}

/// A capture made by tcpdump, as pcap and, mended by editcap, as pcapng.
fn captures_of_tcpdump_are_explained(mode: Mode) -> Result<()> {
    let on = attached(mode)?;
    let lab = &on.lab;
    let web = lab.machine("web");
    let trace = lab.dir().join("trace.pcap");
    let mut tcpdump = lab
        .host
        .cmd("tcpdump")
        .args([
            "-n",
            "-U",
            "--immediate-mode",
            "-Z",
            "root",
            "-i",
            UPLINK,
            "-w",
        ])
        .arg(&trace)
        .arg("icmp or arp")
        .start()?;
    tcpdump.wait_line(Duration::from_secs(10), |line| {
        line.contains("listening on")
    })?;
    lab.net.run("ip neigh flush all")?;
    ping(&lab.net, web.v4())?;
    let wanted = || fs::metadata(&trace).is_ok_and(|file| file.len() > 200);
    ensure!(
        wait_until(Duration::from_secs(5), wanted),
        "tcpdump wrote nothing"
    );
    tcpdump.end(netspawn_tests::Signal::SIGINT, Duration::from_secs(5))?;

    let path = trace.display();
    let text = lab.run(&format!("explain pcap {path}"))?;
    if mode == Mode::Tc {
        // XDP answers before tcpdump sees the question.
        ensure!(
            text.contains("answered") && text.contains("arp request 203.0.113.2"),
            "{text}"
        );
    }
    ensure!(text.contains("> ve-web"), "{text}");
    ensure!(text.contains("skipped"), "{text}");
    let details = lab.run(&format!("explain pcap {path} -v"))?;
    ensure!(
        details.contains("decided by") && details.contains("asked in hex"),
        "{details}"
    );

    // Without a direction named it is found by the link-layer addresses.
    let lines = lab.run(&format!("--json explain pcap {path}"))?;
    let verdicts: Vec<Value> = lines
        .lines()
        .map(serde_json::from_str)
        .collect::<Result<_, _>>()?;
    ensure!(verdicts.iter().all(|answer| answer["agrees"] != false));
    ensure!(verdicts.iter().any(|answer| answer["machine"] == "web"));
    Ok(())
}

fn unattached_and_unknown_are_told(mode: Mode) -> Result<()> {
    let lab = lab()?;
    let output = lab.output("explain arp 203.0.113.2")?;
    ensure!(output.code() == 1);
    ensure!(output.stderr.contains("attach eth0"), "{}", output.stderr);

    ready_for(&lab, mode)?;
    let agent = Agent::start(&lab, mode.attach())?;
    for (question, code, text) in [
        ("out wbe tcp 198.51.100.1:443", 1, "did you mean web?"),
        ("out xyzzy tcp 198.51.100.1:443", 1, "netspawn-xdp list"),
        ("out off tcp 198.51.100.1:443", 1, "has no port"),
        ("arp 203.0.113.2 --uplink nix", 1, "attached: eth0"),
        (
            "arp 203.0.113.2 --uplink ve-web",
            1,
            "ve-web is not attached",
        ),
        ("pcap /dev/null", 1, "is empty"),
        ("in tcp 198.51.100.7 203.0.113.2", 2, "names no port"),
    ] {
        let output = lab.output(&format!("explain {question}"))?;
        ensure!(
            output.code() == code && output.stderr.contains(text),
            "{question}: {} {}",
            output.code(),
            output.stderr
        );
    }
    agent.kill()?;
    // Without an agent, too.
    ensure!(ask(&lab, "arp 203.0.113.2")?["verdict"] == "answered");
    Ok(())
}

in_each_mode! {
    what_is_said_happens
    nothing_is_left_behind
    captures_of_tcpdump_are_explained
    unattached_and_unknown_are_told
}

/// Another build of the guard is pinned, as after an upgrade of the program alone.
#[test]
fn another_build_is_told() -> Result<()> {
    let on = attached(Mode::Tc)?;
    let lab = &on.lab;
    let quiet = lab.output("explain out web tcp 198.51.100.1:443")?;
    ensure!(!quiet.stderr.contains("another build"), "{}", quiet.stderr);
    let link = lab.pins().join("uplinks/eth0/tc-egress");
    let shown = lab
        .host
        .run(&format!("bpftool -j link show pinned {}", link.display()))?;
    let shown: Value = serde_json::from_str(&shown)?;
    let program = shown["prog_id"].as_u64().context("a link has a program")?;
    let pin = lab.pins().join("programs/port_ingress");
    fs::remove_file(&pin)?;
    lab.host
        .run(&format!("bpftool prog pin id {program} {}", pin.display()))?;
    let told = lab.output("explain out web tcp 198.51.100.1:443")?;
    ensure!(
        told.stderr.contains("another build of port_ingress"),
        "{}",
        told.stderr
    );
    ensure!(told.code() == 0);
    Ok(())
}
