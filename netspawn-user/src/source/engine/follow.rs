//! Asking engines, once or for as long as the agent runs.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    path::{Path, PathBuf},
    pin::Pin,
    time::Duration,
};

use anyhow::{Context as _, Result};
use tokio::{
    sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel},
    task::JoinSet,
    time::{Instant, sleep, timeout},
};

use super::{Engine, Machine, keep, read};
use crate::source::{Source, docker::Docker, incus::Incus, libvirt::Libvirt};

/// How long who starts waits for an engine.
const FIRST: Duration = Duration::from_secs(2);
/// How long a list may take.
const LIST: Duration = Duration::from_secs(30);
/// How long several changes are gathered, as engines tell of each step of a start.
const SETTLE: Duration = Duration::from_millis(20);
/// How often machines are listed even if nothing is told.
const RESYNC: Duration = Duration::from_secs(30);
/// How soon an engine that is gone is tried again at first, and at most.
const RETRY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(2));

/// An engine as something that can be asked or followed.
struct Known {
    source: Source,
    list: fn() -> Task<Result<Vec<Machine>>>,
    follow: fn(Follower) -> Task<()>,
}

type Task<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// The engines there are.
const KNOWN: [Known; 3] = [known::<Docker>(), known::<Incus>(), known::<Libvirt>()];

const fn known<E: Engine>() -> Known {
    Known {
        source: E::SOURCE,
        list: || Box::pin(async { E::open().await?.machines().await }),
        follow: |follower| Box::pin(follower.run::<E>()),
    }
}

/// Asks the engines among the sources once, all at a time, and blocks for it. Those
/// that do not answer are not in the result.
pub fn ask(enabled: &BTreeSet<Source>) -> BTreeMap<Source, Vec<Machine>> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    match runtime {
        Ok(runtime) => runtime.block_on(async {
            let asked = KNOWN
                .iter()
                .filter(|engine| enabled.contains(&engine.source));
            let answers = asked.map(once).collect::<JoinSet<_>>().join_all().await;
            answers.into_iter().flatten().collect()
        }),
        Err(error) => {
            tracing::debug!("cannot ask engines: {error}");
            BTreeMap::new()
        }
    }
}

async fn once(engine: &Known) -> Option<(Source, Vec<Machine>)> {
    let name = engine.source.name();
    match timeout(FIRST, (engine.list)()).await {
        Ok(Ok(machines)) => Some((engine.source, machines)),
        Ok(Err(error)) => {
            tracing::debug!("{name} is not asked: {error:#}");
            None
        }
        Err(_) => {
            tracing::warn!("{name} has not answered within {FIRST:?}; its machines stay as known");
            None
        }
    }
}

/// Follows engines until it is dropped, and keeps what they say.
#[derive(Debug)]
pub struct Engines {
    _tasks: JoinSet<()>,
    told: UnboundedReceiver<()>,
}

impl Engines {
    /// Starts to follow those among the sources.
    pub fn follow(run_dir: &Path, enabled: &BTreeSet<Source>) -> Self {
        let mut tasks = JoinSet::new();
        let (tell, told) = unbounded_channel();
        for engine in &KNOWN {
            if enabled.contains(&engine.source) {
                tasks.spawn((engine.follow)(Follower::new(
                    engine.source,
                    run_dir,
                    &tell,
                )));
            }
        }
        Engines {
            _tasks: tasks,
            told,
        }
    }

    /// Waits until something else is kept of an engine. Dropping the future loses
    /// nothing.
    #[expect(
        clippy::disallowed_methods,
        reason = "what cannot be read is written again"
    )]
    pub async fn changed(&mut self) {
        if self.told.recv().await.is_none() {
            // No engine is among the sources.
            std::future::pending().await
        }
        while self.told.try_recv().is_ok() {}
    }
}

/// Whether an engine is followed, as far as that has been said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Said {
    Nothing,
    /// That it does not answer.
    Refused,
    Followed,
    Lost,
}

/// Follows one engine.
struct Follower {
    source: Source,
    run_dir: PathBuf,
    tell: UnboundedSender<()>,
    said: Said,
}

impl Follower {
    fn new(source: Source, run_dir: &Path, tell: &UnboundedSender<()>) -> Self {
        Follower {
            source,
            run_dir: run_dir.to_owned(),
            tell: tell.clone(),
            said: Said::Nothing,
        }
    }

    async fn run<E: Engine>(mut self) {
        let mut pause = RETRY.0;
        loop {
            let started = Instant::now();
            let Err(error) = self.session::<E>().await;
            self.lost(&error);
            if started.elapsed() > RETRY.1 {
                pause = RETRY.0;
            }
            sleep(pause).await;
            pause = (pause * 2).min(RETRY.1);
        }
    }

    /// Follows until the engine is gone.
    async fn session<E: Engine>(&mut self) -> Result<std::convert::Infallible> {
        let mut engine = timeout(LIST, E::open())
            .await
            .context("it does not answer")??;
        loop {
            let started = Instant::now();
            let machines = timeout(LIST, engine.machines())
                .await
                .context("it does not list its machines")??;
            self.followed(machines.len());
            self.keep(machines);
            // A list of thousands takes its time: half of it is the others'.
            sleep(SETTLE.max(started.elapsed())).await;
            match timeout(RESYNC, engine.changed()).await {
                Ok(changed) => changed?,
                Err(_) => tracing::trace!("{} is listed without need", self.source.name()),
            }
            sleep(SETTLE).await;
        }
    }

    #[expect(
        clippy::disallowed_methods,
        reason = "what cannot be read is written again"
    )]
    fn keep(&self, machines: Vec<Machine>) {
        if read(&self.run_dir, self.source).is_ok_and(|before| before == machines) {
            return;
        }
        match keep(&self.run_dir, self.source, &machines) {
            // Nobody listens any more when the agent ends.
            Ok(()) => drop(self.tell.send(())),
            Err(error) => tracing::error!(
                "cannot keep what {} says in {}: {error}",
                self.source.name(),
                self.run_dir.display()
            ),
        }
    }

    fn followed(&mut self, machines: usize) {
        let name = self.source.name();
        match self.said {
            Said::Followed => {}
            Said::Lost | Said::Refused => {
                tracing::info!("{name} is followed again; machines: {machines}");
            }
            Said::Nothing => tracing::info!("{name} is followed; machines: {machines}"),
        }
        self.said = Said::Followed;
    }

    fn lost(&mut self, error: &anyhow::Error) {
        let name = self.source.name();
        let missing = error
            .downcast_ref::<io::Error>()
            .is_some_and(|error| error.kind() == io::ErrorKind::NotFound);
        match self.said {
            Said::Followed => {
                tracing::warn!(
                    "lost {name} ({error:#}); its machines stay as they are, and it is followed \
                     again when it is back"
                );
                self.said = Said::Lost;
            }
            Said::Nothing if !missing => {
                tracing::warn!("{name} is not followed ({error:#}); trying again");
                self.said = Said::Refused;
            }
            _ => tracing::debug!("{name} is not followed: {error:#}"),
        }
    }
}
