//! Containers and virtual machines of Incus, or of LXD, which speaks the same protocol.

mod instances;

use std::{fs, io, path::Path};

use anyhow::{Context as _, Result, ensure};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::{Request, body::Bytes, client::conn::http1, header::HOST};
use hyper_util::rt::TokioIo;
use serde::{Deserialize, de::DeserializeOwned};
use tokio::{
    net::UnixStream,
    time::{Duration, timeout},
};
use tokio_stream::StreamExt as _;
use tokio_tungstenite::{WebSocketStream, client_async, tungstenite::Message};

use self::instances::{Instance, Project};
use super::{
    Source,
    engine::{Engine, Listed, Users, socket},
};

/// Where they listen: Incus, LXD as a snap, LXD of a distribution. The first that
/// answers counts.
const SOCKETS: [&str; 3] = [
    "/var/lib/incus/unix.socket",
    "/var/snap/lxd/common/lxd/unix.socket",
    "/var/lib/lxd/unix.socket",
];
/// Where their services for users of the host listen, who get a project of their own
/// when they connect: incus-user and lxd-user.
const USER_SOCKETS: [&str; 3] = [
    "/var/lib/incus/unix.socket.user",
    "/var/snap/lxd/common/lxd-user/unix.socket",
    "/var/lib/lxd-user/unix.socket",
];
/// The most that is read of an answer; an instance takes some 5 kB.
const LARGEST: usize = 256 << 20;
/// Events after which machines may differ, or names of links. `profile-` and `project-` are of
/// configuration that instances have through these; others come with each command that
/// is run in a container.
const EVENTS: [&str; 14] = [
    "instance-created",
    "instance-started",
    "instance-stopped",
    "instance-shutdown",
    "instance-restarted",
    "instance-resumed",
    "instance-updated",
    "instance-renamed",
    "instance-restored",
    "instance-deleted",
    "profile-updated",
    "project-created",
    "project-updated",
    "project-renamed",
];

/// Incus, while it tells of changes.
pub struct Incus {
    socket: &'static Path,
    events: WebSocketStream<UnixStream>,
    /// What this member of a cluster is called in instances; `None` outside of one.
    member: Option<String>,
}

impl Engine for Incus {
    const SOURCE: Source = Source::Incus;
    const USERS_AT: &'static [&'static str] = &SOCKETS;

    async fn open() -> Result<Self> {
        let mut failure = io::Error::from(io::ErrorKind::NotFound);
        for path in SOCKETS.map(Path::new) {
            match socket::connect(path).await {
                Ok(stream) => return Incus::follow(path, stream).await,
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => failure = error,
            }
        }
        Err(failure.into())
    }

    async fn machines(&mut self) -> Result<Listed> {
        // What they tell is in the list.
        while let Ok(told) = timeout(Duration::ZERO, self.events.next()).await {
            is_change(told)?;
        }
        let (mut instances, projects) = ask(self.socket).await?;
        instances.retain(|instance| instance.is_of(self.member.as_deref()));
        let mut listed = listed(&instances, &projects, users_are_served());
        if let Some(users) = &mut listed.users {
            self.add_users_of_others(users).await?;
        }
        Ok(listed)
    }

    async fn changed(&mut self) -> Result<()> {
        while !is_change(self.events.next().await)? {}
        Ok(())
    }
}

impl Incus {
    /// Adds what users of the other servers have named, whose machines are not served.
    async fn add_users_of_others(&self, users: &mut Users) -> Result<()> {
        for path in SOCKETS.map(Path::new) {
            if path == self.socket {
                continue;
            }
            match socket::connect(path).await {
                Ok(_) => {}
                // Nobody listens there: one that was killed has left it.
                Err(error)
                    if matches!(
                        error.kind(),
                        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused
                    ) =>
                {
                    continue;
                }
                Err(error) => return Err(error.into()),
            }
            let (instances, projects) = ask(path).await?;
            users.any |= instances::are_restricted(&projects);
            let links = instances::named_by_users(&instances, &projects);
            users.links.extend(links);
        }
        Ok(())
    }

    async fn follow(socket: &'static Path, stream: UnixStream) -> Result<Self> {
        #[derive(Deserialize)]
        struct Server {
            environment: Environment,
        }
        #[derive(Deserialize)]
        struct Environment {
            server_clustered: bool,
            server_name: String,
        }
        let events = "ws://localhost/1.0/events?type=lifecycle&all-projects=true";
        let (events, _) = client_async(events, stream)
            .await
            .with_context(|| format!("{} tells no events", socket.display()))?;
        let Server { environment } = get(socket, "/1.0").await?;
        Ok(Incus {
            socket,
            events,
            member: environment
                .server_clustered
                .then_some(environment.server_name),
        })
    }
}

fn listed(instances: &[Instance], projects: &[Project], users_are_served: bool) -> Listed {
    Listed {
        machines: instances::machines(instances, projects),
        users: Some(Users {
            any: instances::are_restricted(projects) || users_are_served,
            links: instances::named_by_users(instances, projects),
        }),
    }
}

/// What is made of its answers, for tests.
#[cfg(test)]
pub(super) fn read(instances: &serde_json::Value, projects: &serde_json::Value) -> Listed {
    let instances: Vec<Instance> = serde_json::from_value(instances.clone()).unwrap();
    let projects: Vec<Project> = serde_json::from_value(projects.clone()).unwrap();
    listed(&instances, &projects, false)
}

/// Whether users of the host may get a project by connecting. What cannot be looked at
/// may be there.
fn users_are_served() -> bool {
    let is_there = |path: &&str| {
        !matches!(fs::symlink_metadata(path),
            Err(error) if error.kind() == io::ErrorKind::NotFound)
    };
    USER_SOCKETS.iter().any(is_there)
}

/// Whether an event is one after which machines may differ.
fn is_change(told: Option<Result<Message, tokio_tungstenite::tungstenite::Error>>) -> Result<bool> {
    #[derive(Deserialize)]
    struct Event {
        metadata: Lifecycle,
    }
    #[derive(Deserialize)]
    struct Lifecycle {
        action: String,
    }
    Ok(match told.context("its events have ended")?? {
        Message::Text(text) => {
            let event: Event = serde_json::from_str(&text).context("an event is not known")?;
            EVENTS.contains(&event.metadata.action.as_str())
        }
        Message::Binary(_) => true,
        _ => false,
    })
}

/// All instances and projects of a server. Projects first: of an instance whose project
/// is not among them nothing is known, and it is not the other way round.
async fn ask(socket: &Path) -> Result<(Vec<Instance>, Vec<Project>)> {
    let projects = get(socket, "/1.0/projects?recursion=1").await?;
    let instances = get(socket, "/1.0/instances?recursion=1&all-projects=true").await?;
    Ok((instances, projects))
}

/// Asks for something, on a connection of its own.
async fn get<T: DeserializeOwned>(socket: &Path, path: &str) -> Result<T> {
    #[derive(Deserialize)]
    struct Answer<T> {
        #[serde(default)]
        error: String,
        metadata: Option<T>,
    }
    let asked = || format!("GET {path} of {}", socket.display());
    let stream = socket::connect(socket).await?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let request = Request::get(path)
        .header(HOST, "localhost")
        .body(Empty::<Bytes>::new())?;
    let answer = async move {
        let response = sender.send_request(request).await?;
        let body = Limited::new(response.into_body(), LARGEST);
        let body = body.collect().await.map_err(anyhow::Error::from_boxed)?;
        anyhow::Ok(body.to_bytes())
    };
    // Driven here, so that it ends with this call.
    let (answer, _) = tokio::join!(answer, connection);
    let answer: Answer<T> =
        serde_json::from_slice(&answer.with_context(asked)?).with_context(asked)?;
    ensure!(
        answer.error.is_empty(),
        "{}: it says {:?}",
        asked(),
        answer.error
    );
    answer.metadata.with_context(asked)
}
