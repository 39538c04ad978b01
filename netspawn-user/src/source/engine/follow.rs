//! Asking engines, once or for as long as the agent runs.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    path::{Path, PathBuf},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use tokio::{
    sync::{
        Notify,
        mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel},
    },
    task::JoinSet,
    time::{sleep, timeout},
};

use super::{Answers, Engine, Listed, keep, read};
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
    users_at: &'static [&'static str],
    list: fn() -> Task<Result<Listed>>,
    follow: fn(Follower) -> Task<()>,
}

type Task<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// The engines there are.
const KNOWN: [Known; 3] = [known::<Docker>(), known::<Incus>(), known::<Libvirt>()];

const fn known<E: Engine>() -> Known {
    Known {
        source: E::SOURCE,
        users_at: E::USERS_AT,
        list: || Box::pin(async { E::open().await?.machines().await }),
        follow: |follower| Box::pin(follower.run::<E>()),
    }
}

/// The engines that let users name links, with the paths of [`Engine::USERS_AT`].
pub fn with_users() -> impl Iterator<Item = (Source, &'static [&'static str])> {
    KNOWN
        .iter()
        .filter(|engine| !engine.users_at.is_empty())
        .map(|engine| (engine.source, engine.users_at))
}

/// The engines to ask: those among the sources, and those whose users may name links
/// that others expect.
fn asked(enabled: &BTreeSet<Source>) -> impl Iterator<Item = &'static Known> {
    KNOWN
        .iter()
        .filter(|engine| enabled.contains(&engine.source) || !engine.users_at.is_empty())
}

/// Asks the engines once, all at a time, and blocks for it. Those that do not answer are
/// not in the result.
pub fn ask(enabled: &BTreeSet<Source>, answers: &Answers) -> BTreeMap<Source, Listed> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    match runtime {
        Ok(runtime) => runtime.block_on(async {
            let said = asked(enabled).map(|engine| once(engine, answers.clone()));
            let said = said.collect::<JoinSet<_>>().join_all().await;
            said.into_iter().flatten().collect()
        }),
        Err(error) => {
            tracing::debug!("cannot ask engines: {error}");
            BTreeMap::new()
        }
    }
}

async fn once(engine: &Known, answers: Answers) -> Option<(Source, Listed)> {
    let name = engine.source.name();
    let asked = Instant::now();
    match timeout(FIRST, (engine.list)()).await {
        Ok(Ok(said)) => {
            answers.listed(engine.source, asked, has_users(&said));
            Some((engine.source, said))
        }
        Ok(Err(error)) => {
            if is_missing(&error) {
                answers.absent(engine.source, asked);
            }
            tracing::debug!("{name} is not asked: {error:#}");
            None
        }
        Err(_) => {
            tracing::warn!("{name} has not answered within {FIRST:?}; its machines stay as known");
            None
        }
    }
}

fn has_users(said: &Listed) -> bool {
    said.users.as_ref().is_some_and(|users| users.any)
}

/// Whether an engine is not there, rather than failing.
fn is_missing(error: &anyhow::Error) -> bool {
    error
        .downcast_ref::<io::Error>()
        .is_some_and(|error| error.kind() == io::ErrorKind::NotFound)
}

/// Follows engines until it is dropped, and keeps what they say.
#[derive(Debug)]
pub struct Engines {
    _tasks: JoinSet<()>,
    told: UnboundedReceiver<()>,
    wishes: BTreeMap<Source, Arc<Wish>>,
}

/// That an engine lists its machines though nothing is told to have changed.
#[derive(Debug, Default)]
struct Wish {
    made: AtomicBool,
    notify: Notify,
}

impl Wish {
    fn take(&self) -> bool {
        self.made.swap(false, Ordering::AcqRel)
    }
}

impl Engines {
    /// Starts to follow those among the sources, and those whose users name links.
    pub fn follow(run_dir: &Path, enabled: &BTreeSet<Source>, answers: &Answers) -> Self {
        let mut tasks = JoinSet::new();
        let (tell, told) = unbounded_channel();
        let mut wishes = BTreeMap::new();
        for engine in asked(enabled) {
            let wish = Arc::new(Wish::default());
            wishes.insert(engine.source, Arc::clone(&wish));
            tasks.spawn((engine.follow)(Follower {
                source: engine.source,
                run_dir: run_dir.to_owned(),
                tell: tell.clone(),
                said: Spoken::Nothing,
                answers: answers.clone(),
                wish,
            }));
        }
        Engines {
            _tasks: tasks,
            told,
            wishes,
        }
    }

    /// Has engines list their machines soon, after which [`Engines::changed`] returns
    /// whatever they say.
    pub fn ask(&self, engines: &BTreeSet<Source>) {
        for wish in engines.iter().filter_map(|source| self.wishes.get(source)) {
            wish.made.store(true, Ordering::Release);
            wish.notify.notify_one();
        }
    }

    /// Waits until something else is kept of an engine, or one has done what
    /// [`Engines::ask`] wants. Dropping the future loses
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
enum Spoken {
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
    said: Spoken,
    answers: Answers,
    wish: Arc<Wish>,
}

impl Follower {
    async fn run<E: Engine>(mut self) {
        let mut pause = RETRY.0;
        loop {
            let started = Instant::now();
            let Err(error) = self.session::<E>().await;
            if is_missing(&error) {
                self.answers.absent(self.source, started);
                if self.wish.take() {
                    self.tell();
                }
            }
            self.lost(&error);
            if started.elapsed() > RETRY.1 {
                pause = RETRY.0;
            }
            // Whoever waits for an answer waits no longer than an engine needs that is
            // back.
            tokio::select! {
                () = sleep(pause) => pause = (pause * 2).min(RETRY.1),
                () = self.wish.notify.notified() => sleep(RETRY.0).await,
            }
        }
    }

    /// Follows until the engine is gone.
    async fn session<E: Engine>(&mut self) -> Result<std::convert::Infallible> {
        let mut engine = timeout(LIST, E::open())
            .await
            .context("it does not answer")??;
        loop {
            let wish = self.wish.take();
            let started = Instant::now();
            let said = match timeout(LIST, engine.machines()).await {
                Ok(Ok(said)) => said,
                failed => {
                    // To be told of when it answers.
                    self.wish.made.fetch_or(wish, Ordering::AcqRel);
                    failed.context("it does not list its machines")??
                }
            };
            let again = self.said != Spoken::Followed;
            self.followed(said.machines.len());
            if let Some(changed) = self.keep(&said) {
                // Not before it is kept: whoever sees the moment reads this.
                self.answers.listed(self.source, started, has_users(&said));
                if changed || again || wish {
                    self.tell();
                }
            }
            // A list of thousands takes its time: half of it is the others'.
            sleep(SETTLE.max(started.elapsed())).await;
            tokio::select! {
                changed = timeout(RESYNC, engine.changed()) => match changed {
                    Ok(changed) => changed?,
                    Err(_) => tracing::trace!("{} is listed without need", self.source.name()),
                },
                () = self.wish.notify.notified() => {}
            }
            sleep(SETTLE).await;
        }
    }

    fn tell(&self) {
        // Nobody listens any more when the agent ends.
        let _ = self.tell.send(());
    }

    /// Whether what is kept has changed; `None` when it cannot be written.
    #[expect(
        clippy::disallowed_methods,
        reason = "what cannot be read is written again"
    )]
    fn keep(&self, said: &Listed) -> Option<bool> {
        if read(&self.run_dir, self.source).is_ok_and(|before| before == *said) {
            return Some(false);
        }
        match keep(&self.run_dir, self.source, said) {
            Ok(()) => Some(true),
            Err(error) => {
                tracing::error!(
                    "cannot keep what {} says in {}: {error}",
                    self.source.name(),
                    self.run_dir.display()
                );
                None
            }
        }
    }

    fn followed(&mut self, machines: usize) {
        let name = self.source.name();
        match self.said {
            Spoken::Followed => {}
            Spoken::Lost | Spoken::Refused => {
                tracing::info!("{name} is followed again; machines: {machines}");
            }
            Spoken::Nothing => tracing::info!("{name} is followed; machines: {machines}"),
        }
        self.said = Spoken::Followed;
    }

    fn lost(&mut self, error: &anyhow::Error) {
        let name = self.source.name();
        match self.said {
            Spoken::Followed => {
                tracing::warn!(
                    "lost {name} ({error:#}); its machines stay as they are, and it is followed \
                     again when it is back"
                );
                self.said = Spoken::Lost;
            }
            Spoken::Nothing if !is_missing(error) => {
                tracing::warn!("{name} is not followed ({error:#}); trying again");
                self.said = Spoken::Refused;
            }
            _ => tracing::debug!("{name} is not followed: {error:#}"),
        }
    }
}
