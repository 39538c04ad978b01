//! systemd-machined's side of D-Bus: `org.freedesktop.machine1(5)`.
//!
//! Signals are subscribed to before anything is listed. Machines are listed at
//! each connection and whenever machined appears on the bus. It is started at
//! each connection, and then left alone: it ends by itself when it is idle.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    io,
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, Result, anyhow, bail};
use tokio::{
    sync::{Semaphore, mpsc::UnboundedSender},
    task::JoinSet,
    time::{Instant, sleep, sleep_until, timeout},
};
use tokio_stream::StreamExt as _;
use zbus::{
    Connection, Message, MessageStream, OwnedObjectPath, OwnedVariant, connection::Builder, fdo,
};

use super::links::{Event, Registration};
use crate::net::namespace;

const BUS: &str = "org.freedesktop.DBus";
const BUS_PATH: &str = "/org/freedesktop/DBus";
const MACHINED: &str = "org.freedesktop.machine1";
const MANAGER_PATH: &str = "/org/freedesktop/machine1";
const MANAGER: &str = "org.freedesktop.machine1.Manager";
const MACHINE: &str = "org.freedesktop.machine1.Machine";
const PROPERTIES: &str = "org.freedesktop.DBus.Properties";

/// What machined and the bus may be heard of.
const SIGNALS: [&str; 2] = [
    "type='signal',sender='org.freedesktop.machine1',path='/org/freedesktop/machine1',\
     interface='org.freedesktop.machine1.Manager'",
    "type='signal',sender='org.freedesktop.DBus',path='/org/freedesktop/DBus',\
     interface='org.freedesktop.DBus',member='NameOwnerChanged',arg0='org.freedesktop.machine1'",
];

/// How long a call may take.
const CALL: Duration = Duration::from_secs(5);
/// How soon a lost connection is tried again at first, and at most.
const RETRY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(4));
/// Calls under way at a time. The bus allows a connection 128 pending replies
/// (`max_replies_per_connection`).
const CALLS: usize = 64;
/// How often machined is started for a connection. The first time may come to
/// nothing while it is still ending with the bus before.
const STARTS: u32 = 3;

/// Tells what machined tells, for ever.
pub async fn follow(tell: UnboundedSender<Event>, aloud: bool) {
    let mut follower = Follower {
        tell,
        known: BTreeMap::new(),
        serial: 0,
        speech: Speech {
            aloud,
            state: Following::NotYet,
        },
    };
    let mut pause = RETRY.0;
    loop {
        let error = match Session::open(&mut follower).await {
            Ok(mut session) => {
                pause = RETRY.0;
                session.run().await
            }
            Err(error) => error,
        };
        follower.speech.lost(&format!("{error:#}"));
        follower.tell(Event::Absent);
        sleep(pause).await;
        pause = (pause * 2).min(RETRY.1);
    }
}

/// What outlives a connection.
struct Follower {
    tell: UnboundedSender<Event>,
    /// Machines told of and not removed, with the serial of that.
    known: BTreeMap<String, u64>,
    /// Numbers what is asked.
    serial: u64,
    speech: Speech,
}

impl Follower {
    fn tell(&self, event: Event) {
        // Nobody listens any more when the process ends.
        let _ = self.tell.send(event);
    }

    fn next_serial(&mut self) -> u64 {
        self.serial += 1;
        self.serial
    }

    fn removed(&mut self, name: &str) {
        if self.known.remove(name).is_some() {
            self.tell(Event::Removed(name.to_owned()));
        }
    }
}

/// Whether machined is followed, as far as that has been said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Following {
    NotYet,
    /// It has been said that there is none.
    Without,
    Yes,
    Lost,
}

/// Says each change once.
struct Speech {
    aloud: bool,
    state: Following,
}

impl Speech {
    fn lost(&mut self, why: &str) {
        let state = match self.state {
            Following::NotYet => {
                if self.aloud {
                    tracing::info!(
                        "systemd-machined is not followed ({why}); machines' links are found by \
                         `interface` and by name, and it is followed when it is there"
                    );
                }
                Following::Without
            }
            Following::Yes => {
                if self.aloud {
                    tracing::warn!(
                        "lost systemd-machined ({why}); machines keep their links, and it is \
                         followed again when it is back"
                    );
                }
                Following::Lost
            }
            other => {
                tracing::debug!("systemd-machined: {why}");
                other
            }
        };
        self.state = state;
    }

    fn followed(&mut self, machines: usize) {
        match self.state {
            Following::Lost | Following::Without if self.aloud => {
                tracing::info!("systemd-machined is followed again; machines: {machines}");
            }
            Following::Yes => {}
            _ => tracing::debug!("systemd-machined is followed; machines: {machines}"),
        }
        self.state = Following::Yes;
    }
}

/// What a task has found out.
enum Answer {
    List(Result<List>),
    Machine(String, u64, zbus::Result<Registration>),
}

/// Machines as machined lists them.
enum List {
    Machines {
        owner: String,
        machines: Vec<(String, OwnedObjectPath)>,
    },
    /// Nobody owns the name.
    NoOwner,
    /// Its owner is in another network namespace.
    Foreign(u32),
}

/// One connection to the bus.
struct Session<'a> {
    follower: &'a mut Follower,
    connection: Connection,
    signals: Vec<MessageStream>,
    /// Unique name of machined, once its machines have been listed.
    owner: Option<String>,
    tasks: JoinSet<Answer>,
    calls: Arc<Semaphore>,
    /// What was asked about machines and not answered yet, by serial.
    asked: BTreeMap<String, u64>,
    /// Machines of the list that are not told of yet; `None` while no list is.
    awaited: Option<BTreeSet<String>>,
    /// Serial of the list that is asked for.
    listing: Option<u64>,
    /// When to list again after a failure.
    again: Option<Instant>,
    /// How often machined may still be started.
    starts: u32,
}

impl<'a> Session<'a> {
    async fn open(follower: &'a mut Follower) -> Result<Self> {
        let connection = async {
            let connection = Builder::system().method_timeout(CALL).build().await?;
            let mut signals = Vec::new();
            for rule in SIGNALS {
                signals.push(MessageStream::for_match_rule(rule, &connection, None).await?);
            }
            Ok::<_, zbus::Error>((connection, signals))
        };
        let (connection, signals) = timeout(CALL, connection)
            .await
            .context("the D-Bus system bus does not answer")?
            .context("no D-Bus system bus")?;
        let mut session = Session {
            follower,
            connection,
            signals,
            owner: None,
            tasks: JoinSet::new(),
            calls: Arc::new(Semaphore::new(CALLS)),
            asked: BTreeMap::new(),
            awaited: None,
            listing: None,
            again: None,
            starts: STARTS,
        };
        session.list();
        Ok(session)
    }

    /// Runs until the connection is lost; why it is.
    async fn run(&mut self) -> anyhow::Error {
        let mut signals: Box<dyn tokio_stream::Stream<Item = _> + Send + Unpin> =
            Box::new(tokio_stream::empty());
        for stream in std::mem::take(&mut self.signals) {
            signals = Box::new(signals.merge(stream));
        }
        loop {
            let again = self.again;
            tokio::select! {
                signal = signals.next() => match signal {
                    Some(Ok(message)) => {
                        if let Err(error) = self.signal(&message) {
                            tracing::debug!("D-Bus signal not understood: {error:#}");
                        }
                    }
                    Some(Err(error)) => return error.into(),
                    None => return anyhow!("the D-Bus system bus has closed the connection"),
                },
                Some(answer) = self.tasks.join_next() => match answer {
                    Ok(answer) => self.answer(answer),
                    Err(error) => return error.into(),
                },
                () = sleep_until(again.unwrap_or_else(Instant::now)), if again.is_some() => {
                    self.list();
                }
            }
        }
    }

    /// Asks who machined is and for its machines.
    fn list(&mut self) {
        self.again = None;
        let start = self.starts > 0;
        self.starts = self.starts.saturating_sub(1);
        self.listing = Some(self.follower.next_serial());
        let connection = self.connection.clone();
        self.tasks
            .spawn(async move { Answer::List(list(&connection, start).await) });
    }

    fn signal(&mut self, message: &Message) -> Result<()> {
        let header = message.header();
        // Anyone may send signals to a connection.
        let sender = header.sender().map_or("", |name| name.as_str());
        let member = header.member().map_or("", |name| name.as_str());
        match member {
            "NameOwnerChanged" if sender == BUS => {
                let body = message.body();
                let (_, _, owner): (&str, &str, &str) = body.deserialize()?;
                self.owner_changed(owner);
            }
            "MachineNew" if self.owner.as_deref() == Some(sender) => {
                let (name, path): (String, OwnedObjectPath) = message.body().deserialize()?;
                self.ask(name, path);
            }
            "MachineRemoved" if self.owner.as_deref() == Some(sender) => {
                let (name, _): (String, OwnedObjectPath) = message.body().deserialize()?;
                self.forget(&name);
                self.follower.removed(&name);
                self.tell_listed();
            }
            _ => {}
        }
        Ok(())
    }

    fn owner_changed(&mut self, owner: &str) {
        self.owner = None;
        if !owner.is_empty() {
            self.starts = 0;
            self.list();
        } else if self.follower.known.is_empty() {
            tracing::debug!("systemd-machined has ended, without machines");
        } else {
            self.follower.speech.lost("it has ended");
        }
    }

    fn answer(&mut self, answer: Answer) {
        match answer {
            Answer::List(Ok(List::Machines { owner, machines })) => self.listed(owner, machines),
            Answer::List(Ok(List::NoOwner)) => {
                self.follower.speech.lost("it does not run");
                self.follower.tell(Event::Absent);
                if self.starts > 0 && !self.follower.known.is_empty() {
                    self.again = Some(Instant::now() + RETRY.1);
                }
            }
            Answer::List(Ok(List::Foreign(pid))) => {
                tracing::debug!(
                    "systemd-machined (process {pid}) is in another network namespace: what it \
                     says of links is not about this one"
                );
                self.follower.tell(Event::Absent);
            }
            Answer::List(Err(error)) => {
                self.follower.speech.lost(&format!("{error:#}"));
                self.follower.tell(Event::Absent);
                self.again = Some(Instant::now() + RETRY.1);
            }
            Answer::Machine(name, serial, result) => {
                // Ended, or asked again, in the meantime.
                if self.asked.get(&name) != Some(&serial) {
                    return;
                }
                match result {
                    Ok(registration) => {
                        self.follower.known.insert(name.clone(), serial);
                        self.follower.tell(Event::New(name.clone(), registration));
                    }
                    Err(error) => {
                        tracing::debug!("systemd-machined on {name}: {error}");
                        if !is_unknown(&error) {
                            self.again = Some(Instant::now() + RETRY.1);
                        }
                    }
                }
                self.forget(&name);
                self.tell_listed();
            }
        }
    }

    fn listed(&mut self, owner: String, machines: Vec<(String, OwnedObjectPath)>) {
        self.owner = Some(owner);
        self.starts = 0;
        let serial = self.listing.unwrap_or(self.follower.serial);
        let names: BTreeSet<&str> = machines.iter().map(|(name, _)| name.as_str()).collect();
        let ended: Vec<String> = self
            .follower
            .known
            .iter()
            .filter(|(name, told)| **told < serial && !names.contains(name.as_str()))
            .map(|(name, _)| name.clone())
            .collect();
        for name in ended {
            self.follower.removed(&name);
        }
        self.follower.speech.followed(machines.len());
        self.awaited = Some(machines.iter().map(|(name, _)| name.clone()).collect());
        for (name, path) in machines {
            self.ask(name, path);
        }
        self.tell_listed();
    }

    /// Asks for a machine's properties.
    fn ask(&mut self, name: String, path: OwnedObjectPath) {
        let Some(owner) = self.owner.clone() else {
            return;
        };
        let serial = self.follower.next_serial();
        self.asked.insert(name.clone(), serial);
        let connection = self.connection.clone();
        let calls = Arc::clone(&self.calls);
        self.tasks.spawn(async move {
            // Closed never.
            let _permit = calls.acquire().await;
            let result = registration(&connection, &owner, &path).await;
            Answer::Machine(name, serial, result)
        });
    }

    fn forget(&mut self, name: &str) {
        self.asked.remove(name);
        if let Some(awaited) = &mut self.awaited {
            awaited.remove(name);
        }
    }

    fn tell_listed(&mut self) {
        if self.awaited.as_ref().is_some_and(BTreeSet::is_empty) {
            self.awaited = None;
            self.follower.tell(Event::Listed);
        }
    }
}

/// Who machined is and what machines it has.
async fn list(connection: &Connection, start: bool) -> Result<List> {
    let ask_bus = async |member: &'static str, name: &str| {
        connection
            .call_method(Some(BUS), BUS_PATH, Some(BUS), member, &name)
            .await
    };
    if start
        && let Err(error) = connection
            .call_method(
                Some(BUS),
                BUS_PATH,
                Some(BUS),
                "StartServiceByName",
                &(MACHINED, 0u32),
            )
            .await
    {
        // It may run all the same, or there is none on this host.
        tracing::debug!("cannot start systemd-machined: {error}");
    }
    let owner: String = match ask_bus("GetNameOwner", MACHINED).await {
        Ok(reply) => reply.body().deserialize()?,
        Err(zbus::Error::FDO(error)) if matches!(*error, fdo::Error::NameHasNoOwner(_)) => {
            return Ok(List::NoOwner);
        }
        Err(error) => return Err(error.into()),
    };
    let pid: u32 = ask_bus("GetConnectionUnixProcessID", &owner)
        .await?
        .body()
        .deserialize()?;
    match namespace::is_shared_with(pid) {
        Ok(true) => {}
        Ok(false) => return Ok(List::Foreign(pid)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => bail!("it has just ended"),
        Err(error) => bail!("cannot tell its network namespace: {error}"),
    }
    let reply = connection
        .call_method(
            Some(owner.as_str()),
            MANAGER_PATH,
            Some(MANAGER),
            "ListMachines",
            &(),
        )
        .await?;
    // Name, class, service, path.
    let machines: Vec<(String, String, String, OwnedObjectPath)> = reply.body().deserialize()?;
    Ok(List::Machines {
        owner,
        machines: machines
            .into_iter()
            // The host itself is listed as one.
            .filter(|(_, class, ..)| class != "host")
            .map(|(name, _, _, path)| (name, path))
            .collect(),
    })
}

/// What machined knows of a machine.
#[expect(
    clippy::disallowed_methods,
    reason = "this parses text or bytes; no system call can fail here"
)]
async fn registration(
    connection: &Connection,
    owner: &str,
    path: &OwnedObjectPath,
) -> zbus::Result<Registration> {
    let reply = connection
        .call_method(Some(owner), path, Some(PROPERTIES), "GetAll", &MACHINE)
        .await?;
    let mut properties: HashMap<String, OwnedVariant> = reply.body().deserialize()?;
    let leader = properties.remove("Leader").map(u32::try_from);
    // Before 258 nobody but root registers machines.
    let user = properties.remove("UID").map(u32::try_from);
    let interfaces: Option<Result<Vec<i32>, _>> =
        properties.remove("NetworkInterfaces").map(Vec::try_from);
    Ok(Registration {
        by_user: user.transpose()?.is_some_and(|user| user != 0),
        leader: leader.transpose()?.unwrap_or(0),
        interfaces: interfaces
            .transpose()?
            .unwrap_or_default()
            .into_iter()
            .filter_map(|ifindex| u32::try_from(ifindex).ok())
            .collect(),
    })
}

/// Whether a machine is not there any more.
fn is_unknown(error: &zbus::Error) -> bool {
    match error {
        zbus::Error::FDO(error) => matches!(
            **error,
            fdo::Error::UnknownObject(_) | fdo::Error::UnknownMethod(_)
        ),
        zbus::Error::MethodError(..) => true,
        _ => false,
    }
}
