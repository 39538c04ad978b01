//! Where metrics are served, and to whom.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::{Ipv4Addr, TcpListener, TcpStream},
    os::unix::fs::PermissionsExt as _,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use netspawn_tests::{Agent, Lab, READY, Snapshot, Spec, ping, wait_until};
use nix::sys::resource::{Resource, getrlimit, setrlimit};

use super::{
    ADDRESS, ATTACH,
    page::{self, get},
};

/// Until a client is served, whoever else is there.
const SOON: Duration = Duration::from_secs(10);

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

/// How many clients there are who do nothing.
const IDLE: usize = 1000;

/// Clients that are silent, that never come to an end of asking, and that ask and do not
/// read: each alone must not keep others out, nor leave the agent without descriptors.
#[test]
fn thousand_idle_clients_hold_nobody_up() -> Result<()> {
    // These and what the agent has are more than a process may open by default.
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    ensure!(hard > 3 * IDLE as u64, "this process may open {hard} files");
    setrlimit(Resource::RLIMIT_NOFILE, soft.max(3 * IDLE as u64), hard)?;
    let mut lab = Lab::usual()?;
    let args = ["attach"].into_iter().chain(ATTACH.split(' '));
    let mut agent = lab
        .host
        .cmd("prlimit")
        .arg("--nofile=1024:1024")
        .arg(netspawn_tests::binary()?)
        .args(lab.options())
        .args(args)
        .start()?;
    agent.wait_line(READY, |line| line.starts_with("ready:"))?;

    for said in [
        &b""[..],
        b"GET /metrics HTTP/1.1\r\nHost: x\r\nX-Slow: ",
        b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n",
    ] {
        let idle: Vec<TcpStream> = lab.host.enter(|| {
            let streams = (0..IDLE).map(|_| TcpStream::connect(ADDRESS));
            let streams = streams.collect::<std::io::Result<Vec<_>>>()?;
            for mut stream in &streams {
                match stream.write_all(said) {
                    // Let go already.
                    Err(error) if is_reset(&error) => {}
                    written => written?,
                }
            }
            Ok(streams)
        })?;
        let start = Instant::now();
        let page = get(&lab.host)?;
        let took = start.elapsed();
        let said = String::from_utf8_lossy(said);
        ensure!(page.contains("netspawn_build_info"), "{page}");
        ensure!(took < SOON, "{took:?} after {IDLE} times {said:?}");
        println!("a client after {IDLE} who said {said:?} waited {took:.1?}");
        // The agent goes on, and can open what it needs.
        lab.run("add more --interface ve-more --address 203.0.113.8")?;
        lab.run("remove more")?;
        drop(idle);
    }
    lab.add(Spec::new("late").address("203.0.113.9"))?;
    let served = wait_until(SOON, || {
        ping(&lab.net, Ipv4Addr::new(203, 0, 113, 9)).is_ok()
    });
    ensure!(served, "{}", agent.err());
    ensure!(!agent.err().contains("os error 24"), "{}", agent.err());
    Ok(())
}

fn is_reset(error: &std::io::Error) -> bool {
    use std::io::ErrorKind::{BrokenPipe, ConnectionReset};
    matches!(error.kind(), BrokenPipe | ConnectionReset)
}

/// One that says nothing is sent away, whether or not its place is needed.
#[test]
fn silent_client_is_sent_away() -> Result<()> {
    let lab = Lab::usual()?;
    let _agent = Agent::start(&lab, ATTACH)?;
    let mut silent = lab.host.enter(|| Ok(TcpStream::connect(ADDRESS)?))?;
    let mut rest = Vec::new();
    silent.set_read_timeout(Some(Duration::from_secs(60)))?;
    silent.read_to_end(&mut rest)?;
    Ok(())
}
