//! What `status`, `list` and `counters` say of a lab that is well, and of one that is not.

use std::{
    fs,
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use insta::{assert_snapshot, with_settings};
use netspawn_tests::{Agent, Attached, Lab, Mode, Signal, Tmux, binary, ping, wait_until};
use serde_json::Value;

const SOON: Duration = Duration::from_secs(10);

/// Output and words of a command, without what differs from run to run.
fn said(lab: &Lab, words: &str) -> Result<String> {
    let output = lab.output(words)?;
    let text = format!(
        "exit code: {}\n{}----- stderr -----\n{}",
        output.code(),
        output.stdout,
        output.stderr
    );
    Ok(still(lab, &text))
}

fn still(lab: &Lab, text: &str) -> String {
    let text = text.replace(&lab.dir().display().to_string(), "[DIR]");
    let mut out = Vec::new();
    for line in text.lines() {
        let words = line.split(' ').map(|word| {
            let bare = word.trim_end_matches([',', ';']);
            let rest = &word[bare.len()..];
            let is_mac = bare.len() == 17 && bare.bytes().filter(|b| *b == b':').count() == 5;
            let is_time = bare.len() == 20 && bare.ends_with('Z');
            let shown = match (is_mac, is_time) {
                // As long as what it stands for: columns stay where they are.
                (true, _) => "[MAC............]",
                (_, true) => "[TIME]",
                _ => bare,
            };
            format!("{shown}{rest}")
        });
        let mut line = words.collect::<Vec<_>>().join(" ");
        if let Some(at) = line.find("pid ") {
            let digits = line[at + 4..].chars().take_while(char::is_ascii_digit);
            line.replace_range(at + 4..at + 4 + digits.count(), "#");
        }
        out.push(line);
    }
    out.join("\n") + "\n"
}

fn kept(name: &str, text: &str) {
    with_settings!({ omit_expression => true }, {
        assert_snapshot!(name, text);
    });
}

/// The mismatches of a kind.
fn mismatches(lab: &Lab, kind: &str) -> Result<Vec<Value>> {
    let status = lab.json("status")?;
    let all = status["mismatches"].as_array().context("no mismatches")?;
    let of_kind = all.iter().filter(|mismatch| mismatch["kind"] == kind);
    Ok(of_kind.cloned().collect())
}

#[test]
fn healthy_lab_is_ok() -> Result<()> {
    let on = Attached::usual(Mode::Tc)?;
    kept("healthy_status", &said(&on.lab, "status")?);
    let status = on.lab.json("status")?;
    ensure!(status["mismatches"] == serde_json::json!([]), "{status:#}");
    let list = said(&on.lab, "list")?;
    // Counts differ: neighbor discovery has its own pace.
    let columns = list.find(" RX").context("no RX")?;
    let start = list[..columns].rfind('\n').context("no header")?;
    let width = columns - start;
    let cut: Vec<String> = list
        .lines()
        .map(|line| {
            line.chars()
                .take(width)
                .collect::<String>()
                .trim_end()
                .to_owned()
        })
        .collect();
    kept("healthy_list", &cut.join("\n"));
    let rows = on.lab.json("list")?;
    for row in rows.as_array().context("no array")? {
        ensure!(row["mismatches"] == serde_json::json!([]), "{row:#}");
    }
    Ok(())
}

#[test]
fn counters_count_what_was_answered_and_forwarded() -> Result<()> {
    let on = Attached::usual(Mode::Tc)?;
    let before = on.lab.json("counters")?;
    for _ in 0..3 {
        ping(&on.lab.net, on.lab.machine("web").v4())?;
    }
    let after = on.lab.json("counters")?;
    let more = |direction: &str| -> Result<u64> {
        let count = |report: &Value| report["forwarded"][direction].as_u64();
        Ok(count(&after).context("no count")? - count(&before).context("no count")?)
    };
    ensure!(more("in")? >= 3 && more("out")? >= 3, "{after:#}");
    ensure!(after.get("per_second").is_none(), "{after:#}");
    let text = on.lab.run("counters")?;
    ensure!(text.contains("answered   arp"), "{text}");
    Ok(())
}

#[test]
fn what_nobody_applied_is_a_mismatch() -> Result<()> {
    let lab = Lab::usual()?;
    lab.run("attach eth0 --once")?;
    lab.declare("web", "addresses = [\"203.0.113.2\", \"203.0.113.22\"]\n")?;
    lab.declare("extra", "addresses = [\"203.0.113.9\"]\n")?;
    lab.withdraw("mail")?;
    kept("mismatch_status", &said(&lab, "status")?);
    let missing = mismatches(&lab, "missing")?;
    ensure!(missing.len() == 2, "{missing:#?}");
    let web = missing
        .iter()
        .find(|m| m["machine"] == "web")
        .context("no web")?;
    ensure!(
        web["prefixes"] == serde_json::json!(["203.0.113.22/32"]),
        "{web:#}"
    );
    ensure!(
        web["since"].is_null() && web["remedy"] == "netspawn-xdp attach eth0",
        "{web:#}"
    );
    let withdrawn = mismatches(&lab, "withdrawn")?;
    let of: Vec<&str> = withdrawn
        .iter()
        .filter_map(|m| m["machine"].as_str())
        .collect();
    ensure!(of == ["mail", "web"], "{withdrawn:#?}");
    // The one that is no longer declared is served, and shown.
    ping(&lab.net, lab.machine("mail").v4())?;
    let row = &lab.json("list mail")?[0];
    ensure!(row["state"] == "up" && row["source"].is_null(), "{row:#}");
    ensure!(row["mismatches"][0]["kind"] == "withdrawn", "{row:#}");
    let text = lab.output("list web")?;
    ensure!(text.stdout.contains("up!"), "{text:?}");
    // What the remedy says helps.
    let _agent = Agent::start(&lab, "eth0")?;
    let status = lab.json("status")?;
    ensure!(status["mismatches"] == serde_json::json!([]), "{status:#}");
    Ok(())
}

#[test]
fn problems_have_the_time_since_when_the_agent_knows_them() -> Result<()> {
    let mut on = Attached::usual(Mode::Tc)?;
    on.lab.declare(
        "thief",
        "interface = \"ve-none\"\naddresses = [\"203.0.113.2\"]\n",
    )?;
    on.agent
        .wait_line(SOON, |line| line.contains("thief.toml"))?;
    kept("conflict_status", &said(&on.lab, "status")?);
    let found = mismatches(&on.lab, "declaration")?;
    ensure!(
        found.len() == 1 && found[0]["machine"] == "thief",
        "{found:#?}"
    );
    let since = found[0]["since"]
        .as_str()
        .context("since is unknown")?
        .to_owned();
    // The same later, and after the agent has looked again.
    on.lab
        .run("add other --interface ve-x --address 203.0.113.88")?;
    ensure!(mismatches(&on.lab, "declaration")?[0]["since"] == since.as_str());
    on.lab.withdraw("thief")?;
    let well = wait_until(SOON, || {
        mismatches(&on.lab, "declaration").is_ok_and(|found| found.is_empty())
    });
    ensure!(well, "{:#}", on.lab.json("status")?);
    Ok(())
}

#[test]
fn what_somebody_has_detached_is_a_mismatch() -> Result<()> {
    let lab = Lab::usual()?;
    lab.run("attach eth0 --once")?;
    lab.host.run("tc qdisc del dev ve-db ingress")?;
    let guard = mismatches(&lab, "guard")?;
    ensure!(guard.len() == 1, "{guard:#?}");
    ensure!(
        guard[0]["machine"] == "db" && guard[0]["interface"] == "ve-db",
        "{guard:#?}"
    );
    fs::remove_file(lab.pins().join("uplinks/eth0/tc-egress")).or_else(|_| {
        let mut versions = fs::read_dir(lab.bpf_dir())?.flatten();
        versions
            .try_for_each(|version| fs::remove_file(version.path().join("uplinks/eth0/tc-egress")))
    })?;
    // The kernel frees a link some time after its last pin is gone.
    let seen = wait_until(SOON, || {
        mismatches(&lab, "uplink").is_ok_and(|found| found.len() == 1)
    });
    ensure!(seen, "{:#}", lab.json("status")?);
    kept("detached_status", &said(&lab, "status")?);
    let _agent = Agent::start(&lab, "eth0")?;
    let status = lab.json("status")?;
    ensure!(status["mismatches"] == serde_json::json!([]), "{status:#}");
    Ok(())
}

#[test]
fn one_command_says_who_owns_an_address() -> Result<()> {
    let on = Attached::usual(Mode::Tc)?;
    for (asked, name) in [
        ("203.0.113.3", "db"),
        ("2001:db8:1:0:12:34:56:78", "web"),
        ("2001:db8::4/128", "mail"),
        ("mail", "mail"),
    ] {
        let rows = on.lab.json(&format!("list {asked}"))?;
        let names: Vec<&str> = rows
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|row| row["name"].as_str())
            .collect();
        ensure!(names == [name], "{asked}: {names:?}");
    }
    let mut all = String::new();
    for words in [
        "list malt",
        "list 203.0.113.10",
        "list 203.0.113.1",
        "list 203.0.113.77",
    ] {
        let output = on.lab.output(words)?;
        all += &format!("$ {words}\nexit code: {}\n{}", output.code(), output.stderr);
    }
    kept("nobody", &all);
    let output = on.lab.output("list web malt")?;
    ensure!(
        output.code() == 3 && output.stdout.contains("web"),
        "{output:?}"
    );
    ensure!(output.stderr.contains("did you mean mail?"), "{output:?}");
    Ok(())
}

#[test]
fn watch_prints_documents_until_nobody_reads() -> Result<()> {
    let on = Attached::usual(Mode::Tc)?;
    let program = binary()?.display().to_string();
    for (command, rate) in [("counters", true), ("list", true), ("status", false)] {
        let line = format!(
            "{program} {} {command} --json --watch 0.2 | head -n 3",
            on.lab.options().join(" ")
        );
        let text = on
            .lab
            .host
            .cmd("sh")
            .args(["-c", &line])
            .limit(SOON)
            .text()?;
        let documents: Vec<Value> = text
            .lines()
            .map(serde_json::from_str)
            .collect::<Result<_, _>>()
            .with_context(|| text.clone())?;
        ensure!(documents.len() == 3, "{text}");
        let rated = documents[2]
            .get("per_second")
            .or(documents[2][0].get("per_second"));
        ensure!(rated.is_some() == rate, "{command}: {}", documents[2]);
    }
    // Blocks, an empty line between them; SIGINT is a clean end.
    let mut watch = on.lab.xdp(["status", "--watch=0.2"])?.start()?;
    ensure!(wait_until(SOON, || watch
        .out()
        .matches("status    ok")
        .count()
        == 3));
    ensure!(watch.running());
    let output = watch.end(Signal::SIGINT, SOON)?;
    ensure!(output.code() == 0, "{output:?}");
    ensure!(output.stdout.contains("\n\nstatus    ok"), "{output:?}");
    Ok(())
}

#[test]
fn closed_pipe_ends_a_watch_that_has_nothing_to_print() -> Result<()> {
    let lab = Lab::usual()?;
    let mut child = Command::new(binary()?)
        .args(lab.options())
        .args(["counters", "--watch", "3600"])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()?;
    drop(child.stdout.take());
    let mut code = None;
    wait_until(SOON, || {
        code = child.try_wait().ok().flatten();
        code.is_some()
    });
    if code.is_none() {
        child.kill()?;
        child.wait()?;
    }
    ensure!(code.and_then(|status| status.code()) == Some(0), "{code:?}");
    Ok(())
}

#[test]
fn watch_goes_on_and_says_who_comes_and_goes() -> Result<()> {
    let Attached { agent, lab } = Attached::usual(Mode::Tc)?;
    let mut watch = lab.xdp(["counters", "--watch", "0.2"])?.start()?;
    ensure!(wait_until(SOON, || watch.out().contains("forwarded")
        || !watch.out().is_empty()));
    let pid = agent.id();
    agent.terminate()?;
    watch.wait_line(SOON, |line| {
        line.contains(&format!("the agent (pid {pid}) has ended"))
    })?;
    let agent = Agent::start(&lab, "eth0")?;
    let runs = format!("an agent runs (pid {})", agent.id());
    watch.wait_line(SOON, |line| line.contains(&runs))?;
    drop(agent);
    lab.run("detach")?;
    watch.wait_line(SOON, |line| line.contains("the data plane was taken away"))?;
    lab.run("attach eth0 --once")?;
    watch.wait_line(SOON, |line| line.contains("the data plane is attached"))?;
    ensure!(watch.running());
    Ok(())
}

#[test]
fn watch_redraws_in_place_and_leaves_the_last() -> Result<()> {
    let on = Attached::usual(Mode::Tc)?;
    let tmux = Tmux::start(&on.lab, 80, 24)?;
    let options = on.lab.options().join(" ");
    tmux.line(&format!(
        "{} {options} list --watch 0.2",
        binary()?.display()
    ))?;
    let screen = tmux.wait(|screen| screen.contains("RX/S"))?;
    ensure!(screen.starts_with("every 0.2 s, Ctrl-C ends"), "{screen}");
    ensure!(screen.matches("ve-web").count() == 1, "{screen}");
    ensure!(screen.contains("203.0.113.2/32 +2"), "{screen}");
    tmux.resize(60, 24)?;
    tmux.wait(|screen| screen.lines().all(|line| line.chars().count() <= 60))?;
    tmux.resize(80, 24)?;
    tmux.keys(&["C-c"])?;
    let screen = tmux.wait(|screen| screen.contains("--watch 0.2") && screen.contains("NAME"))?;
    ensure!(
        tmux.ask("#{alternate_on}#{cursor_flag}")? == "01",
        "{screen}"
    );
    // Colours on a terminal alone, and not where they are not wanted.
    ensure!(tmux.coloured()?.contains("\u{1b}[32mup"), "{screen}");
    tmux.line(&format!(
        "clear; NO_COLOR=1 {} {options} status",
        binary()?.display()
    ))?;
    tmux.wait(|screen| screen.contains("agent     pid"))?;
    let plain = tmux.coloured()?;
    ensure!(
        !plain.contains("\u{1b}[32m") && plain.contains("ok: 3 of 3"),
        "{plain}"
    );
    Ok(())
}
