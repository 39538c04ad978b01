//! A real Prometheus scrapes the agent: what dashboard and alerts ask of it, it answers.

use std::{
    fs,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use netspawn_tests::{Agent, Lab, Ns, Process, Signal, ping, tcp, wait_until};
use nix::{sys::signal::kill, unistd::Pid};
use serde_json::Value;

use super::{
    ADDRESS, ATTACH,
    files::{dashboard, expressions, packaged},
    spoof,
};

const WEB: &str = "127.0.0.1:9090";

/// Machines that are declared.
const MACHINES: usize = 12;

/// How long it may take until what has happened is scraped.
const SOON: Duration = Duration::from_secs(20);

/// Prometheus in a host, whose data goes with the lab.
struct Prometheus<'a> {
    host: &'a Ns,
    _process: Process,
}

impl<'a> Prometheus<'a> {
    fn start(host: &'a Ns, dir: &Path) -> Result<Self> {
        let config = dir.join("prometheus.yml");
        let text = format!(
            "global: {{scrape_interval: 1s, scrape_timeout: 1s, evaluation_interval: 1s}}\n\
             rule_files: [{:?}]\n\
             scrape_configs:\n\
             - {{job_name: netspawn-xdp, static_configs: [{{targets: [{ADDRESS:?}]}}]}}\n",
            packaged("prometheus/alerts.yml").canonicalize()?
        );
        fs::write(&config, text)?;
        let process = host
            .cmd("prometheus")
            .arg(format!("--config.file={}", config.display()))
            .arg(format!(
                "--storage.tsdb.path={}",
                dir.join("tsdb").display()
            ))
            .arg(format!("--web.listen-address={WEB}"))
            .start()?;
        let started = Prometheus {
            host,
            _process: process,
        };
        let ready = wait_until(Duration::from_secs(30), || {
            started.api("status/buildinfo", &[]).is_ok()
        });
        ensure!(ready, "no Prometheus: {}", started._process.err());
        Ok(started)
    }

    fn api(&self, path: &str, args: &[(&str, &str)]) -> Result<Value> {
        let mut curl = self.host.cmd("curl").args(["-sS", "-G"]);
        for (name, value) in args {
            curl = curl.arg("--data-urlencode").arg(format!("{name}={value}"));
        }
        let text = curl.arg(format!("http://{WEB}/api/v1/{path}")).text()?;
        let answer: Value = serde_json::from_str(&text).with_context(|| text.clone())?;
        ensure!(answer["status"] == "success", "{path} {args:?}: {text}");
        Ok(answer["data"].clone())
    }

    /// The series that an expression gives now.
    fn query(&self, expression: &str) -> Result<Vec<Value>> {
        let data = self.api("query", &[("query", expression)])?;
        Ok(data["result"].as_array().cloned().unwrap_or_default())
    }

    /// Waits until an expression gives something.
    fn gives(&self, expression: &str) -> Result<Vec<Value>> {
        let start = Instant::now();
        loop {
            let series = self.query(expression)?;
            if !series.is_empty() {
                return Ok(series);
            }
            if start.elapsed() > SOON {
                bail!("no data: {expression}");
            }
            thread::sleep(Duration::from_millis(250));
        }
    }
}

/// An expression as Grafana would send it.
fn filled_in(expression: &str) -> String {
    [
        ("$__rate_interval", "20s"),
        ("$__range", "5m"),
        ("$instance", ".*"),
        ("$machine", ".*"),
        ("$top", "10"),
    ]
    .iter()
    .fold(expression.to_owned(), |text, (name, value)| {
        text.replace(name, value)
    })
}

/// Alerts by name, with what they ask.
fn alerts(prometheus: &Prometheus<'_>) -> Result<Vec<(String, String)>> {
    let data = prometheus.api("rules", &[])?;
    let rules = data["groups"][0]["rules"].as_array().context("no rules")?;
    rules
        .iter()
        .map(|rule| {
            let text = |key: &str| rule[key].as_str().map(str::to_owned).context("no rule");
            Ok((text("name")?, text("query")?))
        })
        .collect()
}

#[test]
fn dashboard_and_alerts_get_what_they_ask_for() -> Result<()> {
    let lab = Lab::usual()?;
    // There is room for no more, and these have no ports.
    for number in 0..MACHINES - 3 {
        let text = format!("addresses = [\"203.0.113.{}\"]\n", 100 + number);
        lab.declare(&format!("late{number}"), &text)?;
    }
    let agent = Agent::start(&lab, &format!("{ATTACH} --max-machines {MACHINES}"))?;
    let prometheus = Prometheus::start(&lab.host, lab.dir())?;
    // Zeroes before anything happens, so that it is an increase.
    prometheus.gives("netspawn_machine_dropped_frames_total{machine=\"web\"}")?;
    thread::sleep(Duration::from_secs(2));
    let (web, db) = (lab.machine("web"), lab.machine("db"));
    lab.declare("broken", "adresses = []\n")?;
    for _ in 0..5 {
        ping(&lab.net, web.v4())?;
        ping(&lab.net, db.v6())?;
    }
    tcp(&web.ns, &db.ns, db.v4(), 1 << 20)?;
    spoof(&lab, web, 20)?;

    // Alerts: what is the case, and nothing else.
    let alerts = alerts(&prometheus)?;
    let expression = |name: &str| -> Result<&str> {
        let found = alerts.iter().find(|(alert, _)| alert == name);
        Ok(&found.with_context(|| format!("no alert {name}"))?.1)
    };
    let spoofing = prometheus.gives(expression("NetspawnSpoofing")?)?;
    assert_eq!(spoofing[0]["metric"]["machine"], "web");
    assert_eq!(spoofing[0]["metric"]["reason"], "spoofed_source");
    let full = prometheus.gives(expression("NetspawnMapNearlyFull")?)?;
    assert_eq!(full[0]["metric"]["map"], "endpoints");
    prometheus.gives(expression("NetspawnFaults")?)?;
    let raised = [
        "NetspawnSpoofing",
        "NetspawnMapNearlyFull",
        "NetspawnFaults",
    ];
    for (name, expression) in &alerts {
        let series = prometheus.query(expression)?;
        assert_eq!(
            series.is_empty(),
            !raised.contains(&&**name),
            "{name}: {series:?}"
        );
    }
    let data = prometheus.api("rules", &[])?;
    for rule in data["groups"][0]["rules"].as_array().context("no rules")? {
        assert_eq!(rule["health"], "ok", "{rule}");
    }
    assert_eq!(alerts.len(), 8);

    // The dashboard.
    let dashboard = dashboard()?;
    for variable in dashboard["templating"]["list"]
        .as_array()
        .into_iter()
        .flatten()
    {
        let Some(query) = variable["query"]["query"].as_str() else {
            continue;
        };
        let inner = query
            .strip_prefix("label_values(")
            .and_then(|rest| rest.strip_suffix(")"));
        let (series, label) = inner
            .and_then(|inner| inner.rsplit_once(", "))
            .context("what?")?;
        let found = prometheus.api(
            &format!("label/{label}/values"),
            &[("match[]", &filled_in(series))],
        )?;
        let least = if label == "machine" { MACHINES } else { 1 };
        assert_eq!(
            found.as_array().map(Vec::len),
            Some(least),
            "{query}: {found}"
        );
    }
    let expressions = expressions(&dashboard);
    for (title, expression) in &expressions {
        prometheus
            .gives(&filled_in(expression))
            .with_context(|| format!("panel {title}"))?;
    }
    println!(
        "{} expressions of the dashboard have data",
        expressions.len()
    );

    // Values, as the commands have them.
    let list = lab.json("list")?;
    let drops = list
        .as_array()
        .and_then(|list| list.iter().find(|machine| machine["name"] == "web"))
        .map(|machine| machine["drops"]["spoofed_source"].clone());
    let series = prometheus.query(
        "netspawn_machine_dropped_frames_total{machine=\"web\",reason=\"spoofed_source\"}",
    )?;
    assert_eq!(drops, Some(20.into()));
    assert_eq!(series[0]["value"][1], "20");
    let waiting = prometheus.query("netspawn_machine_state{state=\"waiting\"}")?;
    assert_eq!(waiting.len(), MACHINES - 3);

    // Somebody takes an address out of the kernel's map.
    let map = lab.pins().join("maps/addrs4");
    let key = web.v4().octets().map(|byte| byte.to_string());
    let delete = lab
        .host
        .cmd("bpftool")
        .args(["map", "delete", "pinned"])
        .arg(map);
    delete.arg("key").args(key).text()?;
    let missing = prometheus.gives(expression("NetspawnNotProgrammed")?)?;
    assert_eq!(missing[0]["metric"]["kind"], "prefixes");

    // Somebody takes a program off; the agent puts it back within 30 s.
    fs::remove_file(lab.pins().join("uplinks/eth0/tc-egress"))?;
    let off = prometheus.gives(expression("NetspawnUplinkOff")?)?;
    assert_eq!(off[0]["metric"]["program"], "uplink_egress");

    // Nobody reads events: 2,048 fit, a machine may cause 100 a second.
    let process = Pid::from_raw(agent.id().cast_signed());
    kill(process, Signal::SIGSTOP)?;
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(11) {
        for machine in lab.machines().iter().filter(|machine| machine.plugged()) {
            spoof(&lab, machine, 200)?;
        }
    }
    let down = prometheus.query(expression("NetspawnAgentDown")?)?;
    kill(process, Signal::SIGCONT)?;
    assert_eq!(down.len(), 1, "an agent that does not answer is not down");
    let lost = prometheus.gives(expression("NetspawnEventsLost")?)?;
    println!("events lost: {}", lost[0]["value"][1]);

    agent.kill()?;
    prometheus.gives(expression("NetspawnAgentDown")?)?;
    Ok(())
}
