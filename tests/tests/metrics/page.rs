//! The page as a person gets it, by curl.

use std::{collections::BTreeMap, thread, time::Duration};

use anyhow::{Context as _, Result, ensure};
use netspawn_tests::{Agent, Lab, Ns, ping, tcp, wait_until};

use super::{ADDRESS, ATTACH, spoof};

/// Longer than the agent serves the same page.
const ANEW: Duration = Duration::from_millis(1_100);

/// Samples by name and labels, as they are printed.
pub type Samples = BTreeMap<String, f64>;

/// The page that is served there now.
pub fn get(ns: &Ns) -> Result<String> {
    let url = format!("http://{ADDRESS}/metrics");
    ns.cmd("curl").args(["-sS", "--fail", &url]).text()
}

/// The samples of a page.
pub fn samples(page: &str) -> Result<Samples> {
    let lines = page.lines().filter(|line| !line.starts_with('#'));
    lines
        .map(|line| {
            let (name, value) = line.rsplit_once(' ').context("a sample without a value")?;
            Ok((name.to_owned(), value.parse()?))
        })
        .collect()
}

/// Fails unless promtool finds nothing to say of a page.
pub fn check(ns: &Ns, page: &str) -> Result<()> {
    let promtool = ns.cmd("promtool").args(["check", "metrics"]);
    let output = promtool.input(page).output()?;
    let words = output.stdout.clone() + &output.stderr;
    ensure!(output.code() == 0 && words.is_empty(), "promtool: {words}");
    Ok(())
}

#[test]
fn counters_are_those_that_commands_print() -> Result<()> {
    let lab = Lab::usual()?;
    let _agent = Agent::start(&lab, ATTACH)?;
    let (web, db) = (lab.machine("web"), lab.machine("db"));
    ping(&lab.net, web.v4())?;
    ping(&lab.net, web.v6())?;
    tcp(&web.ns, &db.ns, db.v4(), 1 << 20)?;
    spoof(&lab, web, 7)?;

    // The kernels in the lab say something by themselves at times: the pages before and
    // after have to be the same.
    let mut last = String::new();
    let quiet = |page: &str| -> Result<Samples> {
        let mut samples = samples(page)?;
        samples.retain(|name, _| !name.contains("sync"));
        Ok(samples)
    };
    let mut found = None;
    wait_until(Duration::from_secs(40), || {
        let before = std::mem::take(&mut last);
        let read =
            || -> Result<_> { Ok((lab.json("counters")?, lab.json("list")?, get(&lab.host)?)) };
        thread::sleep(ANEW);
        let Ok((counters, list, page)) = read() else {
            return false;
        };
        thread::sleep(ANEW);
        last = get(&lab.host).unwrap_or_default();
        let same = matches!((quiet(&page), quiet(&last)), (Ok(a), Ok(b)) if a == b);
        if same && !before.is_empty() {
            found = Some((counters, list, page));
        }
        found.is_some()
    });
    let (counters, list, page) = found.context("the lab is never quiet")?;
    check(&lab.host, &page)?;
    let samples = samples(&page)?;
    let is = |name: String, value: &serde_json::Value| {
        let sample = samples.get(&name).copied();
        assert_eq!(sample, value.as_f64(), "{name}\n{page}");
    };
    for (group, metric, label) in [
        ("passed", "passed", "reason"),
        ("dropped", "dropped", "reason"),
        ("answered", "answered", "reason"),
        ("forwarded", "forwarded", "direction"),
    ] {
        for (reason, count) in counters[group].as_object().context("no group")? {
            is(
                format!("netspawn_{metric}_frames_total{{{label}=\"{reason}\"}}"),
                count,
            );
        }
    }
    let list = list.as_array().context("no list")?;
    assert_eq!(list.len(), 3);
    for machine in list {
        let name = machine["name"].as_str().context("no name")?;
        for (metric, field) in [
            ("receive_packets", "rx_packets"),
            ("receive_bytes", "rx_bytes"),
            ("transmit_packets", "tx_packets"),
            ("transmit_bytes", "tx_bytes"),
        ] {
            is(
                format!("netspawn_machine_{metric}_total{{machine=\"{name}\"}}"),
                &machine[field],
            );
        }
        for (reason, count) in machine["drops"].as_object().context("no drops")? {
            is(
                format!(
                    "netspawn_machine_dropped_frames_total{{machine=\"{name}\",reason=\"{reason}\"}}"
                ),
                count,
            );
        }
    }
    let sample = |name: &str| samples.get(name).copied();
    let spoofed =
        "netspawn_machine_dropped_frames_total{machine=\"web\",reason=\"spoofed_source\"}";
    assert_eq!(sample(spoofed), Some(7.0));
    let bytes = sample("netspawn_machine_receive_bytes_total{machine=\"db\"}");
    assert!(bytes > Some(f64::from(1 << 20)), "{bytes:?}");
    for kind in ["endpoints", "ports", "prefixes"] {
        let expected = if kind == "prefixes" { 7.0 } else { 3.0 };
        for which in ["wanted", "programmed"] {
            let name = format!("netspawn_{which}_entries{{kind=\"{kind}\"}}");
            assert_eq!(sample(&name), Some(expected), "{name}");
        }
    }
    for (program, uplink) in [("uplink_ingress", "eth0"), ("uplink_egress", "eth0")] {
        let name = format!(
            "netspawn_uplink_program_attached{{uplink=\"{uplink}\",program=\"{program}\"}}"
        );
        assert_eq!(sample(&name), Some(1.0), "{name}");
    }
    assert_eq!(sample("netspawn_events_lost_total"), Some(0.0));
    Ok(())
}

#[test]
fn form_is_the_one_asked_for() -> Result<()> {
    let lab = Lab::usual()?;
    let _agent = Agent::start(&lab, ATTACH)?;
    let ask = |words: &str| {
        let url = format!("http://{ADDRESS}");
        let words = words.replace("URL", &url);
        let args: Vec<_> = words.split('|').map(str::to_owned).collect();
        lab.host.cmd("curl").args(["-sS", "-i"]).args(args).text()
    };
    let plain = ask("URL/metrics")?;
    assert!(
        plain.contains("content-type: text/plain; version=0.0.4"),
        "{plain}"
    );
    assert!(plain.contains("# TYPE netspawn_events_lost_total counter"));
    let open = ask("-H|Accept: application/openmetrics-text; version=1.0.0|URL/metrics")?;
    assert!(
        open.contains("content-type: application/openmetrics-text"),
        "{open}"
    );
    assert!(open.contains("# TYPE netspawn_events_lost counter"));
    assert!(open.ends_with("# EOF\n"));
    assert!(ask("-I|URL/metrics")?.starts_with("HTTP/1.1 200 "));
    assert!(ask("-X|POST|URL/metrics")?.starts_with("HTTP/1.1 405 "));
    let nothing = ask("URL/")?;
    assert!(nothing.starts_with("HTTP/1.1 404 "));
    assert!(nothing.ends_with("metrics are at /metrics\n"));
    Ok(())
}

/// An endpoint id that is used again is another machine's: what it counted before is in
/// no series of the new one.
#[test]
fn counters_never_go_on_under_another_name() -> Result<()> {
    let lab = Lab::usual()?;
    let mut agent = Agent::start(&lab, ATTACH)?;
    let web = lab.machine("web");
    let id = |name: &str| -> Result<Option<f64>> {
        let samples = samples(&get(&lab.host)?)?;
        let series = format!("netspawn_machine_receive_packets_total{{machine=\"{name}\"}}");
        Ok(samples.get(&series).copied())
    };
    for _ in 0..20 {
        ping(&lab.net, web.v4())?;
    }
    thread::sleep(ANEW);
    let before = id("web")?.context("web has no series")?;
    ensure!(before >= 20.0, "{before}");

    // The same port and addresses, so that nothing else than the name changes hands.
    let text = format!("interface = \"ve-web\"\n{}", web.declaration());
    lab.withdraw("web")?;
    agent.wait_line(Duration::from_secs(5), |line| line.contains("web is gone"))?;
    lab.declare("neo", &text)?;
    agent.wait_line(Duration::from_secs(5), |line| line.contains("neo is up"))?;
    ping(&lab.net, web.v4())?;
    thread::sleep(ANEW);
    let after = id("neo")?.context("neo has no series")?;
    ensure!(
        after > 0.0 && after < 15.0,
        "{after} packets of the new machine"
    );
    ensure!(
        id("web")?.is_none(),
        "the old machine's series is still there"
    );
    Ok(())
}
