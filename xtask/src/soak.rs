//! `cargo xtask soak`: thousands of machines that come and go for hours, with what the
//! agent and the data plane hold by the minute.

use std::{
    io::Write as _,
    net::IpAddr,
    path::PathBuf,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use netspawn_tests::{
    Agent, Canaries, Crowd, FAR4, FAR6, HOST4, Lab, SLOTS, Spec, Stream, Trend, UPLINK, Usage,
    silent, wait_until,
};
use nix::sys::resource::{UsageWho, getrusage};

use crate::{build, setup};

/// Machines that go, and come, at once.
const BURST: usize = 20;
/// How many of them are away at a time.
const AWAY: usize = 60;
/// How long a machine that has come may be without service.
const SERVED: Duration = Duration::from_secs(30);
/// Time between two packets of a stream.
const INTERVAL: Duration = Duration::from_millis(50);
/// A row is due this often.
const ROW: Duration = Duration::from_secs(60);

/// Arguments of `cargo xtask soak`.
#[derive(clap::Args)]
pub struct Args {
    /// How long
    #[arg(long, default_value_t = 100)]
    minutes: u64,
    /// Machines besides those that the streams are to
    #[arg(long, default_value_t = 2_000, value_parser = clap::value_parser!(u64).range(200..SLOTS as u64))]
    machines: u64,
    /// Percent of one CPU that the agent and this program may take together
    #[arg(long, default_value_t = 25, value_parser = clap::value_parser!(u64).range(1..=200))]
    cpu: u64,
    /// The program, instead of one that is built
    #[arg(long)]
    program: Option<PathBuf>,
}

/// Sets up, builds, runs, and ends in one line of verdict.
pub fn run(args: Args) -> Result<()> {
    netspawn_tests::require_root()?;
    if let Some(program) = &args.program {
        // SAFETY: no other thread has been started.
        unsafe { std::env::set_var("NETSPAWN_XDP", program) };
    } else {
        setup::ready()?;
        build::programs(false)?;
    }
    match soak(&args) {
        Ok(faults) if faults.is_empty() => {
            say("verdict: flat")?;
            Ok(())
        }
        Ok(faults) => {
            say(&format!("verdict: NOT FLAT: {}", faults.join("; ")))?;
            bail!("not flat");
        }
        Err(error) => {
            say(&format!("verdict: FAILED: {error:#}"))?;
            bail!("the run failed");
        }
    }
}

fn soak(args: &Args) -> Result<Vec<String>> {
    let count = usize::try_from(args.machines)?;
    let lab = [("web", 2), ("db", 3), ("mail", 4)]
        .into_iter()
        .fold(Lab::builder(), |builder, (name, number)| {
            // No prefix: an uplink joins groups one by one as long as there is none.
            let spec = Spec::new(name)
                .address(&format!("203.0.113.{number}"))
                .address(&format!("2001:db8::{number}"));
            builder.machine(spec)
        })
        .build()?;
    let before = netspawn_tests::Snapshot::host(&lab)?;
    let crowd = Crowd::new(&lab, count)?;
    let mut agent = Agent::start(&lab, "eth0 --source files")?;
    let mut pace = Pace::new(args.cpu, agent.id());
    say(&format!("{count} machines are made"))?;
    let mut population = Population::new(count);
    while let Some(numbers) = population.come(BURST) {
        come(&lab, &crowd, &numbers)?;
        pace.rest()?;
    }
    settle(&lab, count)?;
    let canaries = Canaries::start(streams(&lab)?, INTERVAL)?;

    let start = Instant::now();
    let end = start + Duration::from_secs(60 * args.minutes);
    let mut rows = Vec::new();
    let (mut comings, mut visits, mut unserved) = (0_u64, 0_u64, Vec::new());
    let mut due = start;
    loop {
        let now = Instant::now();
        if now >= due {
            // Everybody is there, so that numbers of rows can be compared.
            while let Some(numbers) = population.come(BURST) {
                come(&lab, &crowd, &numbers)?;
                comings += numbers.len() as u64;
                pace.rest()?;
            }
            settle(&lab, count)?;
            let usage = Usage::take(&lab.host, &lab.pins(), UPLINK, Some(agent.id()))?;
            let tally = canaries.so_far();
            row(
                start,
                &usage,
                &tally,
                [comings, visits, unserved.len() as u64],
            )?;
            rows.push(usage);
            if now >= end {
                break;
            }
            due = (now + ROW).min(end);
        }
        ensure!(agent.running(), "the agent has ended\n{}", agent.words());
        if population.away() >= AWAY {
            let numbers = population.come(BURST).context("somebody is away")?;
            come(&lab, &crowd, &numbers)?;
            comings += numbers.len() as u64;
            let addresses: Vec<IpAddr> = numbers
                .iter()
                .flat_map(|&number| Crowd::addresses(number))
                .collect();
            visits += addresses.len() as u64;
            let missing = silent(&lab.net, addresses, SERVED)?;
            for address in &missing {
                say(&format!("{address} was not served within {SERVED:?}"))?;
            }
            unserved.extend(missing);
        }
        let numbers = population.go(BURST);
        go(&lab, &crowd, &numbers)?;
        // What people and programs ask meanwhile, which takes descriptors of the agent.
        lab.run("--json status")?;
        lab.run("list")?;
        pace.rest()?;
    }
    let tally = canaries.finish()?;
    let mut faults = Trend::new(rows).faults()?;
    if tally.lost > 0 {
        faults.push(format!(
            "{} of {} packets were lost",
            tally.lost, tally.sent
        ));
        for words in &tally.words {
            say(words)?;
        }
    }
    if !unserved.is_empty() {
        faults.push(format!("{} addresses were not served", unserved.len()));
    }
    // What is left when all have gone.
    while let Some(numbers) = population.leave(100) {
        go(&lab, &crowd, &numbers)?;
        pace.rest()?;
    }
    settle(&lab, 0)?;
    let words = agent.terminate()?;
    let logged = words.stdout + &words.stderr;
    let warnings: Vec<&str> = logged
        .lines()
        .filter(|line| line.contains("WARN") || line.contains("ERROR"))
        .collect();
    say(&format!("the agent warned {} times", warnings.len()))?;
    for line in warnings.iter().take(20) {
        say(line)?;
    }
    lab.run("detach")?;
    let changes = before.changes(&netspawn_tests::Snapshot::host(&lab)?);
    if !changes.is_empty() {
        faults.push(format!("detach left {}", changes.join(", ")));
    }
    Ok(faults)
}

/// Packets from the network to each machine of the lab and back, between machines, from
/// a machine and from the host.
fn streams(lab: &Lab) -> Result<Vec<Stream>> {
    let (web, db, mail) = (lab.machine("web"), lab.machine("db"), lab.machine("mail"));
    Ok(vec![
        Stream::new(&lab.net, &web.ns, web.v4())?,
        Stream::new(&lab.net, &web.ns, web.v6())?,
        Stream::new(&lab.net, &db.ns, db.v4())?,
        Stream::new(&lab.net, &mail.ns, mail.v6())?,
        Stream::new(&web.ns, &db.ns, db.v4())?,
        Stream::new(&db.ns, &mail.ns, mail.v6())?,
        Stream::new(&mail.ns, &lab.net, FAR4)?,
        Stream::new(&web.ns, &lab.net, FAR6)?,
        Stream::new(&lab.host, &db.ns, db.v4())?,
        Stream::new(&mail.ns, &lab.host, HOST4)?,
    ])
}

/// Half are declared by a file of the configuration, every tenth by `add`, and the others
/// keep their files while their links come and go.
fn come(lab: &Lab, crowd: &Crowd, numbers: &[usize]) -> Result<()> {
    for &number in numbers {
        let name = Crowd::name(number);
        match number % 10 {
            0 => {
                let mut words = format!("add {name} --interface {}", Crowd::port(number));
                for address in Crowd::addresses(number) {
                    words += &format!(" --address {address}");
                }
                lab.run(&words)?;
            }
            _ => lab.declare(&name, &Crowd::declaration(number))?,
        }
    }
    crowd.plug(lab, numbers)
}

fn go(lab: &Lab, crowd: &Crowd, numbers: &[usize]) -> Result<()> {
    crowd.unplug(lab, numbers)?;
    for &number in numbers {
        let name = Crowd::name(number);
        match number % 10 {
            0 => lab.run(&format!("remove {name}")).map(drop)?,
            1..=5 => lab.withdraw(&name)?,
            _ => {}
        }
    }
    Ok(())
}

/// Waits until so many of the crowd are served, and no others but those of the lab.
fn settle(lab: &Lab, count: usize) -> Result<()> {
    let wanted = (count + lab.machines().len()) as u64;
    let mut last = serde_json::Value::Null;
    let settled = wait_until(Duration::from_secs(120), || {
        last = lab.json("status").unwrap_or_default()["machines"].take();
        let there = last["up"] == wanted && last["conflict"] == 0;
        if !there {
            thread::sleep(Duration::from_millis(500));
        }
        there
    });
    ensure!(settled, "{last} instead of {wanted} machines that are up");
    Ok(())
}

/// Who is there and who is away, by number, always the same ones in the same order.
struct Population {
    there: std::collections::VecDeque<usize>,
    away: std::collections::VecDeque<usize>,
}

impl Population {
    fn new(count: usize) -> Self {
        Population {
            there: std::collections::VecDeque::new(),
            away: (0..count).collect(),
        }
    }

    fn away(&self) -> usize {
        self.away.len()
    }

    /// The next to come; `None` when all are there.
    fn come(&mut self, most: usize) -> Option<Vec<usize>> {
        let numbers: Vec<usize> = self.away.drain(..most.min(self.away.len())).collect();
        self.there.extend(&numbers);
        (!numbers.is_empty()).then_some(numbers)
    }

    /// The next to go.
    fn go(&mut self, most: usize) -> Vec<usize> {
        let numbers: Vec<usize> = self.there.drain(..most.min(self.there.len())).collect();
        self.away.extend(&numbers);
        numbers
    }

    /// The next to go for good; `None` when nobody is there.
    fn leave(&mut self, most: usize) -> Option<Vec<usize>> {
        let numbers: Vec<usize> = self.there.drain(..most.min(self.there.len())).collect();
        (!numbers.is_empty()).then_some(numbers)
    }
}

/// Keeps to a share of a CPU.
struct Pace {
    percent: u64,
    agent: u32,
    since: Instant,
    used: Duration,
}

impl Pace {
    fn new(percent: u64, agent: u32) -> Self {
        Pace {
            percent,
            agent,
            since: Instant::now(),
            used: Duration::ZERO,
        }
    }

    /// Rests as long as it takes to make up for what has been used since the last rest.
    fn rest(&mut self) -> Result<()> {
        let used = used(self.agent)?;
        let took = used.saturating_sub(self.used);
        let share = took * 100 / u32::try_from(self.percent)?;
        thread::sleep(share.saturating_sub(self.since.elapsed()));
        self.used = used;
        self.since = Instant::now();
        Ok(())
    }
}

/// Processor time of this process, of those that it waited for, and of the agent.
fn used(agent: u32) -> Result<Duration> {
    let mut micros = 0;
    for who in [UsageWho::RUSAGE_SELF, UsageWho::RUSAGE_CHILDREN] {
        let usage = getrusage(who)?;
        for time in [usage.user_time(), usage.system_time()] {
            micros += time.tv_sec() * 1_000_000 + time.tv_usec();
        }
    }
    let stat = std::fs::read_to_string(format!("/proc/{agent}/stat"))
        .with_context(|| format!("the agent {agent} is gone"))?;
    let (_, rest) = stat
        .rsplit_once(')')
        .context("no name in a process's stat")?;
    let words: Vec<&str> = rest.split_whitespace().collect();
    for at in [11, 12] {
        let ticks: i64 = words.get(at).context("no times")?.parse()?;
        // USER_HZ is 100 on every architecture that there is a kernel's build for here.
        micros += ticks * 10_000;
    }
    Ok(Duration::from_micros(micros.try_into()?))
}

fn row(
    start: Instant,
    usage: &Usage,
    tally: &netspawn_tests::Tally,
    [comings, visits, unserved]: [u64; 3],
) -> Result<()> {
    let minutes = start.elapsed().as_secs_f64() / 60.0;
    let numbers: Vec<String> = usage
        .0
        .iter()
        .map(|(name, value)| format!("{}={value}", name.replace(' ', ":")))
        .collect();
    say(&format!(
        "{minutes:6.1} min  {}  comings={comings} visits={visits} unserved={unserved} sent={} lost={}",
        numbers.join(" "),
        tally.sent,
        tally.lost
    ))
}

/// Seen at once also in a file.
fn say(words: &str) -> Result<()> {
    let mut out = std::io::stdout();
    writeln!(out, "{words}")?;
    Ok(out.flush()?)
}
