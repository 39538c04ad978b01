//! Where operations fail, and what must hold afterwards.

use std::{
    collections::BTreeSet,
    fs,
    net::IpAddr,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use netspawn_tests::{
    Agent, Canaries, Cmd, FAR4, Lab, Ns, Output, Signal, Snapshot, Spec, Stream, binary, silent,
    wait_until,
};

use crate::{
    case::{Case, Fault},
    operation::Operation,
    strace::{self, CALLS, Numbers},
};

/// Within which a machine is served after a change, a step that fails once included.
const SERVED: Duration = Duration::from_secs(10);
/// Within which something that answers does so.
const ANSWERS: Duration = Duration::from_secs(3);
/// How long something is asked that must not answer.
const SILENT: Duration = Duration::from_millis(250);
/// Time between two packets of a stream.
const INTERVAL: Duration = Duration::from_millis(5);
/// After so many operations everything is detached, and compared with what was before.
const THOROUGH: usize = 25;

/// A machine that comes and goes.
const EXTRA: &str = "203.0.113.9";
/// A container that comes and goes.
const CONTAINER: &str = "203.0.113.20";
const CONTAINER_ID: &str = "0123456789abcdef";

/// The plugin has the usual places; it sees those of the lab there.
const PLACES: &str = "set -e
mount -t overlay overlay -o lowerdir=\"$1\":/etc /etc
mount -t tmpfs run /run
mkdir /run/netspawn
mount --bind \"$2\" /run/netspawn
mount --bind \"$3\" /sys/fs/bpf
shift 3
exec \"$@\"";

/// What came of a case.
pub struct Verdict {
    /// The fault was met.
    pub reached: bool,
    /// The operation succeeded.
    pub succeeded: bool,
}

/// How far things are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Bare,
    /// Attached without an agent.
    Attached,
    /// With [`EXTRA`] added.
    Added,
    /// With [`CONTAINER`].
    Connected,
    /// With an agent.
    Followed,
}

/// A lab, how far it is, and what it has to look like.
pub struct World {
    state: State,
    agent: Option<Agent>,
    canaries: Option<Canaries>,
    lab: Lab,
    container: Ns,
    /// What there is while nothing is attached.
    bare: Snapshot,
    bare_files: BTreeSet<PathBuf>,
    /// What there is while something is.
    attached: BTreeSet<String>,
    trace: PathBuf,
    operations: usize,
}

impl World {
    /// Raises a lab.
    pub fn new() -> Result<Self> {
        let mut lab = Lab::usual()?;
        lab.add(Spec::new("extra").address(EXTRA).undeclared())?;
        fs::create_dir(lab.dir().join("over"))?;
        symlink(lab.config_dir(), lab.dir().join("over/netspawn"))?;
        symlink(binary()?, lab.dir().join("netspawn-cni"))?;
        let container = Ns::new("container")?;
        let mut world = World {
            state: State::Bare,
            agent: None,
            canaries: None,
            container,
            bare: Snapshot::host(&lab)?,
            bare_files: BTreeSet::new(),
            attached: BTreeSet::new(),
            trace: lab.dir().join("trace"),
            lab,
            operations: 0,
        };
        // Everything once: directories that are made for machines and containers stay.
        for operation in [
            Operation::Attach,
            Operation::Add,
            Operation::Remove,
            Operation::CniAdd,
            Operation::CniDel,
        ] {
            world.does(operation)?;
        }
        let output = world.command(Operation::Detach, &[])?.output()?;
        ensure!(output.code() == 0, "{output:?}");
        world.state = State::Bare;
        let bare = Snapshot::host(&world.lab)?;
        world.bare.same(&bare)?;
        world.bare = bare;
        world.bare_files = files(&world.lab.run_dir())?;
        world.come(State::Attached)?;
        world.attached = world.look()?;
        Ok(world)
    }

    /// Detaches, and finds that nothing is left.
    pub fn end(mut self) -> Result<()> {
        self.come(State::Bare)
    }

    /// How many calls an operation makes, and the numbers of those to try, as a run
    /// without a fault shows them.
    pub fn calls(&mut self, operation: Operation) -> Result<(usize, Numbers)> {
        self.prepare(operation)?;
        if operation == Operation::Detach {
            self.canaries_end()?;
        }
        let trace = format!("trace={}", CALLS.join(","));
        match operation {
            Operation::Sync => drop(self.sync(&[&trace], false)?),
            _ => {
                let output = self.command(operation, &[&trace])?.output()?;
                ensure!(output.code() == 0, "{operation}: {output:?}");
            }
        }
        self.done(operation);
        self.holds(operation)?;
        Ok(strace::numbers(&self.read_trace()?))
    }

    /// Runs an operation with a fault, and judges what follows.
    pub fn run(&mut self, case: &Case) -> Result<Verdict> {
        let operation = case.operation;
        self.prepare(operation)?;
        let options = [format!("trace={}", case.call), case.injection()];
        let options = [&*options[0], &*options[1]];
        if operation == Operation::Detach {
            self.canaries_end()?;
        }
        let verdict = if operation == Operation::Sync {
            let trace = self.sync(&options, case.fault == Fault::Kill)?;
            Verdict {
                reached: strace::injected(&trace).is_some(),
                succeeded: true,
            }
        } else {
            // The trace of the run before is not this one's.
            fs::write(&self.trace, "")?;
            let output = self.command(operation, &options)?.output()?;
            let trace = self.read_trace()?;
            let injected = strace::injected(&trace);
            self.judge(case, &output, injected).with_context(|| {
                format!(
                    "{} at {injected:?}\n{}{}{:?}",
                    output.code(),
                    output.stdout,
                    output.stderr,
                    self.lab.output("list")
                )
            })?;
            Verdict {
                reached: injected.is_some(),
                succeeded: output.code() == 0,
            }
        };
        self.nothing_lost()?;
        self.recover(case, verdict.succeeded)
            .context("the next run")?;
        self.nothing_lost().context("the next run")?;
        self.operations += 1;
        if self.state != State::Bare {
            self.come(match operation {
                Operation::Sync => State::Followed,
                _ => State::Attached,
            })?;
            if self.state == State::Attached {
                let now = self.look()?;
                let gone: Vec<_> = self.attached.difference(&now).collect();
                let new: Vec<_> = now.difference(&self.attached).collect();
                ensure!(
                    gone.is_empty() && new.is_empty(),
                    "once all is done, these are missing: {gone:?}, and these are left: {new:?}"
                );
            }
        }
        if self.operations.is_multiple_of(THOROUGH) {
            self.come(State::Bare)?;
        }
        Ok(verdict)
    }

    /// Brings about what an operation begins with.
    fn prepare(&mut self, operation: Operation) -> Result<()> {
        self.come(match operation {
            Operation::Attach => State::Bare,
            Operation::Reattach | Operation::Add | Operation::Detach | Operation::CniAdd => {
                State::Attached
            }
            Operation::Remove => State::Added,
            Operation::CniDel => State::Connected,
            Operation::Sync => State::Followed,
        })
        .with_context(|| format!("before {operation}"))
    }

    /// What an operation has led to, if it succeeded.
    fn done(&mut self, operation: Operation) {
        self.state = match operation {
            Operation::Attach | Operation::Reattach | Operation::Remove | Operation::CniDel => {
                State::Attached
            }
            Operation::Add => State::Added,
            Operation::CniAdd => State::Connected,
            Operation::Detach => State::Bare,
            Operation::Sync => State::Followed,
        };
    }

    /// Goes to a state, by way of the one that is attached with nothing more.
    fn come(&mut self, wanted: State) -> Result<()> {
        if self.state == wanted {
            return Ok(());
        }
        match self.state {
            State::Bare => self.does(Operation::Attach)?,
            State::Attached => {}
            State::Added => self.does(Operation::Remove)?,
            State::Connected => self.does(Operation::CniDel)?,
            State::Followed => {
                if let Some(agent) = self.agent.take() {
                    agent.terminate()?;
                }
                self.state = State::Attached;
            }
        }
        if self.canaries.is_none() {
            self.canaries = Some(self.streams()?);
        }
        match wanted {
            State::Bare => self.does(Operation::Detach)?,
            State::Attached => {}
            State::Added => self.does(Operation::Add)?,
            State::Connected => self.does(Operation::CniAdd)?,
            State::Followed => {
                self.agent = Some(Agent::start(&self.lab, "eth0")?);
                self.state = State::Followed;
            }
        }
        Ok(())
    }

    /// Does it without a fault.
    fn does(&mut self, operation: Operation) -> Result<()> {
        if operation == Operation::Detach {
            self.canaries_end()?;
        }
        let output = self.command(operation, &[])?.output()?;
        ensure!(
            output.code() == 0,
            "{operation} without a fault: {output:?}"
        );
        self.done(operation);
        self.holds(operation)
            .with_context(|| format!("{operation} without a fault said {output:?}"))
    }

    /// Ends the streams before what they pass through goes.
    fn canaries_end(&mut self) -> Result<()> {
        self.nothing_lost()?;
        self.canaries = None;
        Ok(())
    }

    fn streams(&self) -> Result<Canaries> {
        let lab = &self.lab;
        let (web, db) = (lab.machine("web"), lab.machine("db"));
        Canaries::start(
            vec![
                Stream::new(&lab.net, &web.ns, web.v4())?,
                Stream::new(&lab.net, &db.ns, db.v6())?,
                Stream::new(&web.ns, &db.ns, db.v4())?,
                Stream::new(&db.ns, &lab.net, FAR4)?,
                Stream::new(&lab.host, &web.ns, web.v4())?,
            ],
            INTERVAL,
        )
    }

    /// The command line of an operation, under strace where there are options for it.
    fn command(&self, operation: Operation, traced: &[&str]) -> Result<Cmd> {
        let lab = &self.lab;
        let mut words: Vec<String> = Vec::new();
        if !traced.is_empty() {
            // By seccomp other calls are not slowed down.
            words.extend(["strace", "-f", "--seccomp-bpf", "-q", "-o"].map(str::to_owned));
            words.push(self.trace.display().to_string());
            for option in traced {
                words.extend(["-e".to_owned(), (*option).to_owned()]);
            }
        }
        let cni = match operation {
            Operation::CniAdd => Some("ADD"),
            Operation::CniDel => Some("DEL"),
            _ => None,
        };
        if let Some(command) = cni {
            words.push(lab.dir().join("netspawn-cni").display().to_string());
            let config = format!(
                "{{\"cniVersion\": \"1.0.0\", \"name\": \"lab\", \"type\": \"netspawn-cni\", \
                 \"runtimeConfig\": {{\"ips\": [\"{CONTAINER}/32\"]}}}}"
            );
            let places = [lab.dir().join("over"), lab.run_dir(), lab.bpffs()];
            return Ok(lab
                .host
                .cmd("unshare")
                .args([
                    "--mount",
                    "--propagation",
                    "private",
                    "sh",
                    "-c",
                    PLACES,
                    "sh",
                ])
                .args(places)
                .args(words)
                .env("CNI_COMMAND", command)
                .env("CNI_CONTAINERID", CONTAINER_ID)
                .env("CNI_NETNS", self.container.path())
                .env("CNI_IFNAME", "eth0")
                .env("CNI_PATH", lab.dir())
                .input(config));
        }
        words.push(binary()?.display().to_string());
        words.extend(lab.options());
        let what = match operation {
            Operation::Attach | Operation::Reattach => "attach eth0 --once",
            Operation::Add => "add extra --interface ve-extra --address 203.0.113.9",
            Operation::Remove => "remove extra",
            Operation::Detach => "detach",
            _ => bail!("{operation} is no command"),
        };
        words.extend(what.split_whitespace().map(str::to_owned));
        Ok(lab
            .host
            .cmd(&words[0])
            .args(&words[1..])
            .limit(Duration::from_secs(60)))
    }

    /// Has a machine come and go under the eyes of the agent, which is traced meanwhile.
    /// Returns the trace.
    fn sync(&mut self, traced: &[&str], killed: bool) -> Result<String> {
        fs::write(&self.trace, "")?;
        let agent = self.agent.as_mut().context("no agent runs")?;
        let mut tracer = self
            .lab
            .host
            .cmd("strace")
            .args(["-f", "-o"])
            .arg(&self.trace)
            .args(traced.iter().flat_map(|option| ["-e", option]))
            .args(["-p", &agent.id().to_string()])
            .start()?;
        tracer.wait_line(Duration::from_secs(10), |line| line.contains("attached"))?;
        let declaration = self.lab.machine("extra").declaration();
        self.lab.declare("extra", &declaration)?;
        let mut alive = true;
        let mut served = Ok(());
        if killed {
            // Either it is killed, or it serves.
            wait_until(SERVED, || {
                alive = agent.running();
                served = answers(&self.lab, EXTRA, SILENT);
                !alive || served.is_ok()
            });
        } else {
            served = answers(&self.lab, EXTRA, SERVED);
        }
        if alive {
            served.context("a machine that was declared")?;
            guarded(&self.lab).context("a machine that was declared")?;
        }
        self.lab.withdraw("extra")?;
        let gone = wait_until(SERVED, || {
            alive = agent.running();
            !alive || (answers(&self.lab, EXTRA, SILENT).is_err() && guarded(&self.lab).is_err())
        });
        ensure!(gone, "a machine that was withdrawn is served or guarded");
        if alive {
            tracer.end(Signal::SIGINT, Duration::from_secs(10))?;
        }
        alive = agent.running();
        let trace = self.read_trace()?;
        if !alive {
            let agent = self.agent.take().context("no agent runs")?;
            let words = agent.words();
            ensure!(
                killed && trace.contains("killed by SIGKILL"),
                "the agent has ended\n{words}"
            );
            drop(agent);
            self.nothing_lost()?;
            self.agent = Some(Agent::start(&self.lab, "eth0")?);
        }
        Ok(trace)
    }

    /// What has to be true at once after an operation with a fault.
    fn judge(&self, case: &Case, output: &Output, injected: Option<&str>) -> Result<()> {
        let killed = output.code() == 137;
        if killed {
            ensure!(case.fault == Fault::Kill, "it was killed");
            return Ok(());
        }
        let all = format!("{}{}", output.stdout, output.stderr);
        ensure!(!all.contains("panicked"), "it panicked");
        match output.code() {
            0 => self
                .holds(case.operation)
                .context("it says that it has succeeded"),
            1 | 3 => {
                let speechless = injected.is_some_and(strace::speaks);
                let cni = matches!(case.operation, Operation::CniAdd | Operation::CniDel);
                let words = if cni { &output.stdout } else { &output.stderr };
                ensure!(
                    speechless || words.trim().len() > 10,
                    "it fails without a word"
                );
                if cni && !speechless {
                    let error: serde_json::Value = serde_json::from_str(&output.stdout)?;
                    ensure!(error["msg"].is_string(), "{error} has no message");
                }
                if case.operation == Operation::Attach && output.code() == 1 {
                    let said = ["left", "detach"].iter().any(|word| words.contains(word));
                    let bare = self.is_bare().context("it leaves more than it says");
                    ensure!(said || bare.is_ok(), bare.err().context("no error")?);
                }
                Ok(())
            }
            code => bail!("it ended with code {code}"),
        }
    }

    /// Does it again, which works.
    fn recover(&mut self, case: &Case, succeeded: bool) -> Result<()> {
        let killed = case.fault == Fault::Kill && case.index.is_multiple_of(2);
        match case.operation {
            // Whoever was killed may as well be cleaned up after.
            Operation::Attach if killed => self.does(Operation::Detach),
            Operation::Sync => Ok(()),
            // Already the case if it succeeded.
            Operation::Add if succeeded => {
                self.done(Operation::Add);
                Ok(())
            }
            // A container that is there cannot be added; a runtime deletes before it
            // tries again.
            Operation::CniAdd => {
                self.does(Operation::CniDel)?;
                self.does(Operation::CniAdd)
            }
            // What is removed already is an error.
            Operation::Remove => {
                let again = self.command(Operation::Remove, &[])?.output()?;
                ensure!([0, 1].contains(&again.code()), "{again:?}");
                self.done(Operation::Remove);
                self.holds(Operation::Remove)
                    .with_context(|| format!("{again:?}"))
            }
            other => self.does(other),
        }
    }

    /// What has to be true after an operation that has succeeded.
    fn holds(&self, operation: Operation) -> Result<()> {
        let lab = &self.lab;
        match operation {
            Operation::Attach | Operation::Reattach | Operation::Sync => {
                let machines = ["web", "db", "mail"].map(|name| lab.machine(name));
                let addresses = machines.iter().flat_map(|machine| -> [IpAddr; 2] {
                    [machine.v4().into(), machine.v6().into()]
                });
                let missing = silent(&lab.net, addresses, ANSWERS)?;
                ensure!(missing.is_empty(), "{missing:?} do not answer");
                let status = lab.json("status")?;
                ensure!(status["machines"]["up"] == 3, "{status}");
                Ok(())
            }
            Operation::Add => answers(lab, EXTRA, ANSWERS).and_then(|()| guarded(lab)),
            Operation::Remove => {
                ensure!(answers(lab, EXTRA, SILENT).is_err(), "{EXTRA} answers");
                ensure!(guarded(lab).is_err(), "the port is guarded");
                Ok(())
            }
            Operation::Detach => self.is_bare(),
            Operation::CniAdd => answers(lab, CONTAINER, ANSWERS),
            Operation::CniDel => {
                ensure!(
                    answers(lab, CONTAINER, SILENT).is_err(),
                    "{CONTAINER} answers"
                );
                let links = lab.host.run("ip -j link show type veth")?;
                let links: serde_json::Value = serde_json::from_str(&links)?;
                let links = links.as_array().context("ip lists no links")?;
                // The uplink and four machines.
                ensure!(links.len() == 5, "{links:?}");
                for folder in ["cni", "cni-begun"] {
                    let left = files(&lab.run_dir().join(folder))?;
                    ensure!(left.is_empty(), "{left:?} are left");
                }
                Ok(())
            }
        }
    }

    fn is_bare(&self) -> Result<()> {
        self.bare.same(&Snapshot::host(&self.lab)?)?;
        let files = files(&self.lab.run_dir())?;
        let left: Vec<_> = files.difference(&self.bare_files).collect();
        ensure!(left.is_empty(), "{left:?} are left");
        Ok(())
    }

    fn nothing_lost(&self) -> Result<()> {
        if let Some(canaries) = &self.canaries {
            let tally = canaries.caught_up();
            let (lost, sent) = (tally.lost, tally.sent);
            ensure!(
                lost == 0,
                "{lost} of {sent} packets are lost: {:?}",
                tally.words
            );
        }
        Ok(())
    }

    /// What is there in files and qdiscs, which has to be the same again.
    fn look(&self) -> Result<BTreeSet<String>> {
        let mut found = BTreeSet::new();
        for folder in [self.lab.run_dir(), self.lab.bpffs()] {
            // Directories for machines and containers stay once they have been made.
            let files = files(&folder)?.into_iter().filter(|path| !path.is_dir());
            found.extend(files.map(|path| path.display().to_string()));
        }
        for line in self.lab.host.run("tc qdisc show")?.lines() {
            if line.contains("ingress") || line.contains("clsact") {
                found.insert(line.to_owned());
            }
        }
        for line in self.lab.host.run("ip maddr show dev eth0")?.lines() {
            found.insert(line.trim().to_owned());
        }
        Ok(found)
    }

    fn read_trace(&self) -> Result<String> {
        let bytes = fs::read(&self.trace)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }
}

fn answers(lab: &Lab, address: &str, limit: Duration) -> Result<()> {
    let missing = silent(&lab.net, [address.parse::<IpAddr>()?], limit)?;
    ensure!(missing.is_empty(), "{address} does not answer");
    Ok(())
}

/// Whether the port of [`EXTRA`] has a guard.
fn guarded(lab: &Lab) -> Result<()> {
    let mut text = String::new();
    let guarded = wait_until(Duration::from_millis(20), || {
        text = lab
            .host
            .run("tc qdisc show dev ve-extra")
            .unwrap_or_default();
        text.contains("ingress_block")
    });
    ensure!(guarded, "ve-extra has no guard: {text}");
    Ok(())
}

/// Every path below a folder; none where there is no folder.
fn files(folder: &Path) -> Result<BTreeSet<PathBuf>> {
    let mut found = BTreeSet::new();
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(found),
        entries => entries.with_context(|| format!("cannot list {}", folder.display()))?,
    };
    for entry in entries {
        let path = entry?.path();
        if path.is_dir() && !path.is_symlink() {
            found.extend(files(&path)?);
        }
        found.insert(path);
    }
    Ok(found)
}
