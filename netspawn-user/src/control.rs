//! One writer at a time: the lock and the agent's socket in RUNDIR.
//!
//! Whoever writes maps holds the lock, an agent for all its life. While one
//! runs, commands ask it over the socket: a JSON object in a line each way.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io::{self, BufRead as _, BufReader, Write as _},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::{
    cli::Mode,
    datapath::twice,
    driver::{self, cni::attachment},
    event::Filter,
    folder, gone, lock,
    metrics::Address,
    net::namespace,
    outcome::Usage,
    output::AgentReport,
    source::{Registered, Source, engine},
};

/// How long a command waits for another command to end.
const PATIENCE: Duration = Duration::from_secs(20);
/// How long an agent may take to answer.
const ANSWER: Duration = Duration::from_secs(60);
/// Longest line on the socket, in bytes.
pub const MAX_LINE: u64 = 1 << 16;

/// What a command asks of the agent.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "lowercase")]
pub enum Request {
    /// Reads everything anew, and brings the maps up to date.
    Sync,
    /// Says how it is.
    Status,
    /// Attaches more uplinks.
    Attach {
        /// Their names.
        uplinks: Vec<String>,
        /// How.
        mode: Mode,
    },
    /// Takes uplinks off, all when none is named; the agent ends with the last.
    Detach {
        /// Their names.
        uplinks: Vec<String>,
    },
    /// Tells what happens from now on: after the answer, each line is an
    /// [`Event`](crate::event::Event).
    Monitor(Filter),
}

/// What the agent answers.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Response {
    /// Why nothing was done.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// Whether the command line is to blame for it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub usage: bool,
    /// The agent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent: Option<Agent>,
    /// The line that tells a person what is attached.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ready: Option<String>,
    /// Where the agent serves metrics, if it does; said of an attach.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metrics: Option<Address>,
    /// What could not be done.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub failed: Vec<String>,
}

/// [`AgentReport`] on the wire.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Agent {
    /// Process id.
    pub pid: u32,
    /// When it started.
    pub since: Timestamp,
    /// When it last brought the maps up to date.
    pub last_sync: Option<Timestamp>,
    /// What machined has told it.
    #[serde(default)]
    pub registered: Registered,
    /// What it cannot do.
    #[serde(default)]
    pub troubles: Vec<Trouble>,
}

/// Something that the agent cannot do, or that is wrong in a declaration.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trouble {
    /// In words, as it is logged.
    pub text: String,
    /// Since when, as far as the agent knows.
    pub since: Timestamp,
}

impl Trouble {
    /// One that is new.
    pub fn now(text: String) -> Self {
        Trouble {
            text,
            since: Timestamp::now(),
        }
    }
}

impl From<Agent> for AgentReport {
    fn from(agent: Agent) -> Self {
        AgentReport {
            pid: agent.pid,
            since: agent.since,
            last_sync: agent.last_sync,
        }
    }
}

/// Files of RUNDIR that are not declarations.
#[derive(Clone, Debug)]
pub struct RunDir {
    folder: PathBuf,
}

/// The right to write maps, until it is dropped.
#[derive(Debug)]
pub struct Lock {
    file: File,
    path: PathBuf,
}

impl Lock {
    /// Whether it is there still: who removes RUNDIR takes it away.
    ///
    /// # Errors
    /// When the kernel does not tell.
    pub fn is_there(&self) -> Result<bool> {
        lock::is_at(&self.file, &self.path)
            .with_context(|| format!("cannot look for {}", self.path.display()))
    }
}

/// Who may write.
#[derive(Debug)]
pub enum Turn {
    /// This process.
    Mine(Lock),
    /// The agent, over this connection.
    Agent(Client),
}

impl RunDir {
    /// Names files in RUNDIR; touches nothing.
    pub fn new(folder: &Path) -> Self {
        RunDir {
            folder: folder.to_owned(),
        }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.folder
    }

    /// The agent's socket.
    pub fn socket(&self) -> PathBuf {
        self.folder.join("agent.sock")
    }

    /// What a writer holds locked.
    pub fn lock_file(&self) -> PathBuf {
        self.folder.join("lock")
    }

    fn sources_file(&self) -> PathBuf {
        self.folder.join("sources")
    }

    fn namespace_file(&self) -> PathBuf {
        self.folder.join("netns")
    }

    /// Refuses to go on where another namespace is meant.
    ///
    /// # Errors
    /// When RUNDIR serves another network namespace.
    pub fn check_namespace(&self) -> Result<()> {
        let path = self.namespace_file();
        let Some(recorded) = read(&path)? else {
            return Ok(());
        };
        if recorded.trim().parse::<u64>().is_err() {
            // Of BPFDIR's own record no doubt is left, and `attach` writes this one anew.
            tracing::warn!(
                "{} is damaged: it names no network namespace; `netspawn-xdp attach` writes it \
                 anew",
                path.display()
            );
            return Ok(());
        }
        let here = namespace::cookie().context("cannot identify the network namespace")?;
        if recorded.trim() != here.to_string() {
            bail!(
                "{} belongs to another network namespace; run this command there, give another \
                 folder with --run-dir, or delete {} if that namespace is gone",
                self.folder.display(),
                self.namespace_file().display()
            );
        }
        Ok(())
    }

    /// Records that RUNDIR serves this namespace, from these sources.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn claim(&self, sources: &BTreeSet<Source>) -> Result<()> {
        let names: Vec<&str> = sources.iter().map(|source| source.name()).collect();
        for (path, text) in [
            (self.namespace_file(), namespace::cookie()?.to_string()),
            (self.sources_file(), names.join(",")),
        ] {
            write(&path, &format!("{text}\n"))?;
        }
        Ok(())
    }

    /// The sources that the data plane was attached with; the default ones
    /// when none is.
    ///
    /// # Errors
    /// When the record cannot be read or is damaged.
    pub fn sources(&self) -> Result<BTreeSet<Source>> {
        let path = self.sources_file();
        let Some(text) = read(&path)? else {
            return Ok(Source::DEFAULT.into());
        };
        let names = text.trim().split(',').filter(|name| !name.is_empty());
        names
            .map(str::parse)
            .collect::<Result<_, _>>()
            .map_err(|_| {
                anyhow::anyhow!(
                    "{} is damaged: it names no sources; `netspawn-xdp attach` writes it anew",
                    path.display()
                )
            })
    }

    /// Removes what is not a declaration, and RUNDIR when nothing else is in it.
    /// The caller holds the lock.
    pub fn clear(&self) {
        let removed = |path: &Path, result: io::Result<Option<()>>| {
            if let Err(error) = result {
                tracing::warn!("cannot remove {}: {error}", path.display());
            }
        };
        for file in [
            self.namespace_file(),
            self.sources_file(),
            self.socket(),
            driver::docker::socket(&self.folder),
            self.lock_file(),
        ] {
            removed(&file, twice(|| gone::path(fs::remove_file(&file))));
        }
        let engines = engine::folder(&self.folder);
        removed(&engines, twice(|| gone::path(fs::remove_dir_all(&engines))));
        for directory in [
            self.folder.join("machines"),
            attachment::folder(&self.folder),
            attachment::begun_folder(&self.folder),
            self.folder.clone(),
        ] {
            // It stays while others have something in it, and harms nobody.
            let _ = twice(|| gone::path(fs::remove_dir(&directory)));
        }
    }

    /// Waits for the right to write, or for an agent that has it.
    ///
    /// # Errors
    /// When another command does not come to an end in 20 s, or RUNDIR cannot
    /// be used.
    pub fn turn(&self) -> Result<Turn> {
        folder::make(&self.folder, folder::SHARED)?;
        folder::check(&self.folder)?;
        let path = self.lock_file();
        let start = Instant::now();
        loop {
            let overdue = start.elapsed() > PATIENCE;
            if let Some(lock) = self.attempt(overdue)? {
                return Ok(Turn::Mine(lock));
            }
            if let Some(client) = self.reach()? {
                return Ok(Turn::Agent(client));
            }
            if overdue {
                bail!(
                    "{} is held by a process that does not answer; see `fuser -v {}`",
                    path.display(),
                    path.display()
                );
            }
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// Takes the right to write; `None` when another process has it.
    ///
    /// # Errors
    /// When RUNDIR cannot be used.
    pub fn try_lock(&self) -> Result<Option<Lock>> {
        self.attempt(false)
    }

    fn attempt(&self, overdue: bool) -> Result<Option<Lock>> {
        let path = self.lock_file();
        let locked = lock::attempt(&path, overdue)
            .with_context(|| format!("cannot lock {} (this needs root)", path.display()))?;
        Ok(locked.map(|file| Lock { file, path }))
    }

    /// Takes the right to write once more, which this process had until RUNDIR was removed.
    ///
    /// # Errors
    /// When RUNDIR cannot be made, or another process has taken the right meanwhile.
    pub fn lock_again(&self) -> Result<Lock> {
        folder::make(&self.folder, folder::SHARED)?;
        self.try_lock()?
            .with_context(|| format!("{} is held by another process", self.lock_file().display()))
    }

    /// Waits until nobody has the right to write: the agent has ended. Takes it from
    /// nobody.
    ///
    /// # Errors
    /// When the kernel refuses the lock.
    pub fn wait_for_lock(&self) -> Result<()> {
        let path = self.lock_file();
        lock::wait(&path).with_context(|| format!("cannot lock {}", path.display()))
    }

    /// Connects to the agent.
    ///
    /// # Errors
    /// When none runs.
    pub fn connect(&self) -> io::Result<Client> {
        let stream = UnixStream::connect(self.socket())?;
        stream.set_read_timeout(Some(ANSWER))?;
        Ok(Client { stream })
    }

    /// Connects to the agent; `None` when none runs.
    ///
    /// # Errors
    /// When that cannot be told, as to a user who may not ask.
    pub fn reach(&self) -> Result<Option<Client>> {
        gone::listener(self.connect())
            .with_context(|| format!("cannot ask the agent at {}", self.socket().display()))
    }

    /// The agent, when one runs.
    ///
    /// # Errors
    /// When that cannot be told, or it does not answer.
    pub fn agent(&self) -> Result<Option<Agent>> {
        let Some(client) = self.reach()? else {
            return Ok(None);
        };
        match client.ask(&Request::Status) {
            Ok(response) => Ok(response.agent),
            // It may have ended meanwhile.
            Err(error) => match self.reach()? {
                None => Ok(None),
                Some(_) => Err(error),
            },
        }
    }
}

/// What a file of RUNDIR says; `None` when there is none.
fn read(path: &Path) -> Result<Option<String>> {
    gone::path(fs::read_to_string(path)).with_context(|| format!("cannot read {}", path.display()))
}

/// Writes a file of RUNDIR in one step: it says what it said before, or all of the new.
fn write(path: &Path, text: &str) -> Result<()> {
    let draft = path.with_extension("draft");
    folder::create(&draft, 0o644)
        .and_then(|mut file| file.write_all(text.as_bytes()))
        .and_then(|()| fs::rename(&draft, path))
        .with_context(|| format!("cannot write {}", path.display()))
}

/// A connection to the agent.
#[derive(Debug)]
pub struct Client {
    stream: UnixStream,
}

impl Client {
    /// Has the agent answer within that time rather than a minute.
    ///
    /// # Errors
    /// When the socket refuses.
    pub fn within(self, time: Duration) -> io::Result<Self> {
        self.stream.set_read_timeout(Some(time))?;
        Ok(self)
    }

    /// Asks, and waits for the answer.
    ///
    /// # Errors
    /// When the agent refuses or ends meanwhile.
    pub fn ask(self, request: &Request) -> Result<Response> {
        Ok(self.converse(request)?.0)
    }

    /// Asks, and follows what comes after the answer.
    ///
    /// # Errors
    /// As [`Client::ask`].
    pub fn follow(self, request: &Request) -> Result<(Response, Lines)> {
        let (response, reader) = self.converse(request)?;
        // Nothing may happen for days.
        reader.get_ref().set_read_timeout(None)?;
        Ok((response, Lines(reader)))
    }

    fn converse(mut self, request: &Request) -> Result<(Response, BufReader<UnixStream>)> {
        let mut line = serde_json::to_string(request)?;
        line.push('\n');
        let gone = "the agent did not answer; see its log, or `systemctl status` of its unit";
        self.stream.write_all(line.as_bytes()).context(gone)?;
        let mut answer = String::new();
        let mut reader = BufReader::new(self.stream);
        reader.read_line(&mut answer).context(gone)?;
        if answer.is_empty() {
            bail!(gone);
        }
        let response: Response =
            serde_json::from_str(&answer).context("the agent's answer is not understood")?;
        match response.error {
            Some(error) if response.usage => bail!(Usage(error)),
            Some(error) => bail!(error),
            None => Ok((response, reader)),
        }
    }
}

/// Lines that the agent sends after its answer.
#[derive(Debug)]
pub struct Lines(BufReader<UnixStream>);

impl Lines {
    /// Waits for the next, without its end; `None` when the agent has closed the
    /// connection.
    ///
    /// # Errors
    /// When the connection breaks.
    pub fn line(&mut self) -> io::Result<Option<String>> {
        let mut line = String::new();
        match self.0.read_line(&mut line) {
            // What is cut short is no line.
            Ok(_) if line.ends_with('\n') => {
                line.pop();
                Ok(Some(line))
            }
            Ok(_) => Ok(None),
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => Ok(None),
            Err(error) => Err(error),
        }
    }
}
