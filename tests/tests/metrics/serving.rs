//! Where metrics are served, and to whom.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::{TcpListener, TcpStream},
    os::unix::fs::PermissionsExt as _,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use netspawn_tests::{Agent, Lab, Snapshot, Spec, wait_until};

use super::{
    ADDRESS, ATTACH,
    page::{self, get},
};

#[test]
fn place_that_is_taken_fails_attach_before_anything_is_changed() -> Result<()> {
    let lab = Lab::usual()?;
    let before = Snapshot::host(&lab)?;
    let taken = lab.host.enter(|| Ok(TcpListener::bind(ADDRESS)?))?;
    let output = lab.output(&format!("attach {ATTACH}"))?;
    assert_eq!(output.code(), 1);
    assert!(
        output.stderr.contains(
            "netspawn-xdp: cannot serve metrics at 127.0.0.1:9469: another process listens there \
             (`ss -ltnp 'sport = :9469'` shows which); end it, or choose another port"
        ),
        "{}",
        output.stderr
    );
    let after = Snapshot::host(&lab)?;
    before.same(&after)?;
    drop(taken);
    let output = lab.output("attach eth0 --metrics 192.0.2.1:9469")?;
    assert_eq!(output.code(), 1);
    assert!(output.stderr.contains("the host has no address 192.0.2.1"));

    // The file is as good as the option.
    fs::write(
        lab.config_dir().join("netspawn.toml"),
        format!("[attach]\nmetrics = \"{ADDRESS}\"\n"),
    )?;
    let _agent = Agent::start(&lab, "eth0")?;
    page::check(&lab.host, &get(&lab.host)?)
}

#[test]
fn socket_is_for_root_and_goes_with_the_agent() -> Result<()> {
    let lab = Lab::usual()?;
    // The folder that `detach` removes.
    let path = lab.run_dir().join("metrics.sock");
    let attach = format!("eth0 --metrics unix:{}", path.display());
    let ask = || {
        let curl = lab
            .host
            .cmd("curl")
            .args(["-sS", "--fail", "--unix-socket"]);
        curl.arg(&path).arg("http://localhost/metrics").text()
    };
    let agent = Agent::start(&lab, &attach)?;
    page::check(&lab.host, &ask()?)?;
    let mode = fs::metadata(&path)?.permissions().mode();
    assert_eq!(mode & 0o777, 0o660);
    agent.terminate()?;
    ensure!(!path.exists(), "left behind by an agent that ended");

    let agent = Agent::start(&lab, &attach)?;
    agent.kill()?;
    ensure!(path.exists(), "the test wants one that is left behind");
    let mut agent = Agent::start(&lab, &attach)?;
    page::check(&lab.host, &ask()?)?;
    lab.run("detach")?;
    let ended = wait_until(Duration::from_secs(5), || !agent.running());
    ensure!(ended, "{}", agent.words());
    ensure!(!lab.run_dir().exists(), "something is left in RUNDIR");
    Ok(())
}

#[test]
fn second_attach_says_that_its_metrics_are_not_applied() -> Result<()> {
    let lab = Lab::usual()?;
    let _agent = Agent::start(&lab, ATTACH)?;
    let output = lab.output(&format!("attach {ATTACH}"))?;
    assert_eq!((output.code(), &*output.stderr), (0, ""));
    let output = lab.output("attach eth0 --metrics 127.0.0.1:9470")?;
    assert_eq!(output.code(), 3);
    assert!(output.stdout.starts_with("ready: 3 machines"));
    assert_eq!(
        output.stderr,
        "netspawn-xdp: --metrics 127.0.0.1:9470 is not applied: the agent that runs serves them \
         at 127.0.0.1:9469; end it (SIGTERM), and attach again with the option\n"
    );
    Ok(())
}

#[test]
fn slow_and_silent_clients_hold_nobody_up() -> Result<()> {
    let mut lab = Lab::usual()?;
    let _agent = Agent::start(&lab, ATTACH)?;
    let connect = || Ok(TcpStream::connect(ADDRESS)?);
    // More than are served at a time; some ask, and do not read.
    let silent: Vec<TcpStream> = (0..24)
        .map(|_| lab.host.enter(connect))
        .collect::<Result<_>>()?;
    for mut stream in silent.iter().take(4) {
        stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")?;
    }
    let mut slow = silent.last().context("no client")?;
    slow.write_all(b"GET /met")?;

    // The agent goes on.
    let start = Instant::now();
    lab.add(Spec::new("late").address("203.0.113.9"))?;
    lab.run("add more --interface ve-more --address 203.0.113.8")?;
    lab.json("status")?;
    let took = start.elapsed();
    ensure!(took < Duration::from_secs(3), "{took:?}");

    // Silent ones are sent away in 5 s, so that the next comes in turn.
    let start = Instant::now();
    let page = get(&lab.host)?;
    let took = start.elapsed();
    ensure!(page.contains("netspawn_build_info"), "{page}");
    ensure!(took < Duration::from_secs(15), "{took:?}");
    println!(
        "a client in turn after {} silent ones waited {took:.1?}",
        silent.len()
    );
    let mut rest = Vec::new();
    let mut first = silent.into_iter().nth(10).context("no client")?;
    first.set_read_timeout(Some(Duration::from_secs(10)))?;
    first.read_to_end(&mut rest)?;
    Ok(())
}
